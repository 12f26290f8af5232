"""Argument types and options that several modules of commands use."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from knock_admin import tags

if TYPE_CHECKING:
    from collections.abc import Callable

    from knock_admin.stores import AnyOf


def checked(read: Callable[[str], Any], show: Callable[[Any], str] | None = None) -> Callable[[str], str]:
    """Make an argument type for argparse from a parser that raises ValueError.

    The argument stays a text: the one given, or what `show` makes of the value. The message of a ValueError
    becomes the usage error's.
    """

    def check(text: str) -> str:
        try:
            value = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return show(value) if show else text

    return check


SOURCE = checked(tags.canonical_source, str)
"""The argument type of an address or a CIDR."""


def group_count(text: str) -> int:
    """Read how many groups a target has, from 1 to 16. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"a number from 1 to 16 was expected, not {text!r}")
    return int(text)


def add_filters(command: argparse.ArgumentParser) -> None:
    """Add the options that select grants and refusals of the trail."""
    command.add_argument("--principal", metavar="NAME", help="of one key, by name or id")
    command.add_argument("--source", metavar="CIDR", help="for one source: an address or a CIDR")
    command.add_argument("--target", metavar="NAME", help="for one target")


def conditions(args: argparse.Namespace) -> dict[str, AnyOf]:
    """Read the options of `add_filters`. Raises UsageError for a source that is no address and no CIDR."""
    from knock_admin import trail

    return trail.conditions(principal=args.principal, source=args.source, target=args.target)
