"""The commands that check a deployment: their options, and the way from those to `grants.py` and `doctor.py`.

The functions that do the work take values. They are imported when a command runs: importing boto3 takes
longer than `--help` does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from knock_admin.output import Result
    from knock_admin.stack import Stack


def register(commands: Any, command: Callable[..., ArgumentParser]) -> None:
    """Add the commands to `commands`; `command` makes one."""
    command(
        commands,
        "guard",
        "check_commands:guard",
        "run the drift guard now; exit code 1 when it finds something",
        "knock-admin guard",
    )
    doctor = command(
        commands,
        "doctor",
        "check_commands:doctor",
        "check the deployment; exit code 1 when a check fails",
        "knock-admin doctor",
        "knock-admin doctor --test-grant",
    )
    doctor.add_argument(
        "--test-grant",
        action="store_true",
        help="make a grant on a scratch group and watch it open and close",
    )
    doctor.add_argument("--vpc", metavar="ID", help="where to make the scratch group")
    doctor.add_argument(
        "--api-url", metavar="URL", default=argparse.SUPPRESS, help="the knock API (KNOCK_URL; else found)"
    )


def guard(stack: Stack, _args: Namespace) -> Result:
    from knock_admin import grants

    return grants.guard(stack)


def doctor(stack: Stack, args: Namespace) -> Result:
    from knock_admin import doctor

    return doctor.doctor(stack, now=args.now, test_grant=args.test_grant, vpc=args.vpc)
