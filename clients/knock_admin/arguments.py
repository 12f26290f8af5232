"""What the commands' arguments share: types for argparse, made of parsers of ours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def checked(read: Callable[[str], Any], show: Callable[[Any], str] | None = None) -> Callable[[str], str]:
    """Make a type for argparse of a parser of ours: the text stays a text, and its error is shown."""

    def check(text: str) -> str:
        try:
            value = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return show(value) if show else text

    return check


def group_count(text: str) -> int:
    """Read how many groups a target has."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"a number from 1 to 16 was expected, not {text!r}")
    return int(text)
