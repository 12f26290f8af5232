"""Which texts can be names: of grants and targets, as they stand in commands that are printed to be typed.

They come from what answers, which may be hostile, so they hold nothing that a shell or an option could be.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.:-]{0,199}", re.ASCII)


def is_name(text: object) -> bool:
    """Say whether a text can be the id of a grant or the name of a target."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None
