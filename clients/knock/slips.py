"""Words that were meant otherwise: a mistyped command is not a target, nor is a list with commas.

What is asked of: the commands of this program, those of others that mean the same, and the names of targets
that this machine has learned. Nothing is sent. With `open` before it, any name is a target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import config, state
from .cli import COMMANDS
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What other programs call it.
OTHERS = {
    **dict.fromkeys(("help", "usage"), "--help"),
    "version": "--version",
    **dict.fromkeys(("list", "status", "dir", "grants"), "ls"),
    **dict.fromkeys(("close", "end", "stop", "delete", "rm", "lock"), "revoke"),
    **dict.fromkeys(("exec", "with"), "run"),
    **dict.fromkeys(("extend", "refresh"), "renew"),
    **dict.fromkeys(("who", "me", "id"), "whoami"),
    **dict.fromkeys(("configure", "init", "signin"), "login"),
}


def slip(words: Sequence[str], profile: str | None, *, implied: bool) -> str:
    """Say what is wrong with words that stand where targets are named; nothing when they may be targets.

    `implied`: no command was named, so that the first word may have been meant as one.
    """
    for word in words:
        if "," in word:
            names = " ".join(name for name in word.split(",") if name)
            return f"targets are separated by spaces: knock {names}"
    if not implied:
        return ""
    known = _known_targets(profile)
    for number, word in enumerate(words):
        if word in known:
            continue
        commands = [name for name in COMMANDS if name[0] != "_"] if number == 0 else []
        meant = OTHERS.get(word) if number == 0 else None
        meant = meant or _near(word, commands) or _near(word, known)
        if meant:
            said = meant if meant in known else f"knock {meant}"
            return (
                f"{word} is neither a command nor a target that is known here: did you mean {said}? "
                f"If it is a target: knock open {word}"
            )
    return ""


def _known_targets(profile: str | None) -> set[str]:
    """Give the names that this machine has learned for this API, however long ago."""
    try:
        return set(state.kept_words(config.address(profile), "targets") or ())
    except ConfigurationError:
        return set()  # said when it is used


def _near(word: str, names: Iterable[str]) -> str:
    """Give the name that a word is a slip of: a letter too few or too many, two in the wrong order."""
    from difflib import get_close_matches

    names = sorted(names)
    for name in names:
        if len(word) > 2 and word[0] == name[0] and sorted(word) == sorted(name):
            return name
    return next(iter(get_close_matches(word, names, n=1, cutoff=0.8)), "")
