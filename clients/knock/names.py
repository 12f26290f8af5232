"""Checks names of grants and targets, before they are printed in commands that a person may type.

They come from a server that may be hostile, so a name has no characters that a shell interprets, and does not
begin like an option.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.:-]{0,199}", re.ASCII)


def is_name(text: object) -> bool:
    """Say whether a text can be the id of a grant or the name of a target."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None
