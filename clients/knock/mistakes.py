"""Finds mistakes in the names of targets: a mistyped command, or a list with commas.

It compares them with this program's commands, names that other programs have for these, and the cached names
of targets. Nothing is sent. After the word `open`, any name is a target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import config, state
from .cli import COMMANDS
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The names that other programs have for these commands.
SYNONYMS = {
    **dict.fromkeys(("help", "usage"), "--help"),
    "version": "--version",
    **dict.fromkeys(("list", "status", "dir", "grants"), "ls"),
    **dict.fromkeys(("close", "end", "stop", "delete", "rm", "lock"), "revoke"),
    **dict.fromkeys(("exec", "with"), "run"),
    **dict.fromkeys(("extend", "refresh"), "renew"),
    **dict.fromkeys(("who", "me", "id"), "whoami"),
    **dict.fromkeys(("configure", "init", "signin"), "login"),
}


def find_mistake(words: Sequence[str], profile: str | None, *, implied: bool) -> str:
    """Describe a mistake in the names of targets; empty if they may be names of targets.

    `implied` is True if no command was given, so that the first word may be a mistyped command.
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
        meant = SYNONYMS.get(word) if number == 0 else None
        meant = meant or _near(word, commands) or _near(word, known)
        if meant:
            suggestion = meant if meant in known else f"knock {meant}"
            return (
                f"{word} is neither a command nor a target that is known here: did you mean {suggestion}? "
                f"If it is a target: knock open {word}"
            )
    return ""


def _known_targets(profile: str | None) -> set[str]:
    """Give the cached names of targets for this API, of any age."""
    try:
        return set(state.kept_words(config.address(profile), "targets") or ())
    except ConfigurationError:
        return set()  # reported when the API is called


def _near(word: str, names: Iterable[str]) -> str:
    """Give the name that a word resembles, but for a missing, added or swapped letter; empty if none."""
    from difflib import get_close_matches

    names = sorted(names)
    for name in names:
        if len(word) > 2 and word[0] == name[0] and sorted(word) == sorted(name):
            return name
    return next(iter(get_close_matches(word, names, n=1, cutoff=0.8)), "")
