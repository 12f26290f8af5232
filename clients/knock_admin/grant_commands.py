"""The commands about live grants: their options, and the way from those to `grants.py`.

The functions that do the work take values. They are imported when a command runs: importing boto3 takes
longer than `--help` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knock_admin import tags
from knock_admin.arguments import add_filters, checked, conditions

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from knock_admin.output import Result
    from knock_admin.stack import Stack


def register(commands: Any, command: Callable[..., ArgumentParser]) -> None:
    """Add the commands to `commands`; `command` makes one."""
    show = command(
        commands,
        "grants",
        "grant_commands:show",
        "list grants: who is in, from where, for how long",
        "knock-admin grants",
        "knock-admin grants --principal alice --status all",
        changing=False,
    )
    add_filters(show)
    show.add_argument(
        "--status",
        choices=["live", "all", "expired", "revoked", "superseded", "failed"],
        default="live",
        help="live (default), all, or how they ended",
    )
    revoke = command(
        commands,
        "revoke [ID ...]",
        "grant_commands:revoke",
        "end grants early; answers after their rules are gone",
        "knock-admin revoke alice_203-0-113-7_20261123T211719Z_9f86d081884c7d65 --reason 'left the team'",
        "knock-admin revoke --principal alice --reason 'laptop stolen' --yes",
    )
    revoke.add_argument("id", nargs="*", type=checked(tags.grant_id), help="grants, by id")
    add_filters(revoke)
    revoke.add_argument("--all", action="store_true", help="every live grant of the stack")
    revoke.add_argument("--reason", default="", help="why, for the trail")
    revoke.add_argument("--yes", action="store_true", help="do not ask before ending what the filters choose")


def show(stack: Stack, args: Namespace) -> Result:
    from knock_admin import grants

    return grants.show(stack, conditions(args), status=args.status, now=args.now, as_json=args.json)


def revoke(stack: Stack, args: Namespace) -> Result:
    from knock_admin import grants
    from knock_admin.errors import UsageError

    selects = any([args.principal, args.source, args.target, args.all])
    if bool(args.id) == selects:
        raise UsageError(
            "Which grants? Name their ids, or choose by --principal, --source, --target or --all."
        )
    if args.id:
        return grants.revoke(stack, args.id, args.reason)
    return grants.revoke_matching(stack, conditions(args), args.reason, now=args.now, confirmed=args.yes)
