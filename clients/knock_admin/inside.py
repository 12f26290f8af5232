"""Who is in by a target, asked before something is done to it under them.

A live grant's rules are on record by group, ports and source, and its ledger has their ids. So nothing that
happens to a target's name or ports keeps them from being closed at the grant's end. What would is taking away
the tag `knock:stack`: the functions may touch no other group.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from knock_admin import grants, tags, trail
from knock_admin.errors import AdminError, translated
from knock_admin.output import count, table, warn
from knock_admin.stores import equal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from knock_admin.stack import Stack
    from knock_admin.trail import Entry

_UNKNOWN = "Nothing was changed: who is in by the key cannot be said, so nobody could be ended."


def live(stack: Stack, target: str, groups: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants of a target, or with a rule in its groups, the one that ends first at the top.

    The second are those of a target that was renamed: they have its old name on record until their end.
    """
    ids = set(groups)
    found = (
        entry
        for entry in trail.grants(stack, trail.live(now), None)
        if target in entry.values.get("target_name", ()) or ids & entry.groups
    )
    return sorted(found, key=lambda entry: entry.one("expires_at"))


def of_keys(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants of keys, named by id, by their ends. Raises AdminError, or what botocore
    raises.
    """
    found = [
        entry
        for key_id in keys
        for entry in trail.grants(stack, [equal("principal_id", key_id), *trail.live(now)], None)
    ]
    return sorted(found, key=lambda entry: entry.one("expires_at"))


def told_of_keys(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry] | None:
    """List the live grants of keys where that decides nothing; None, with a warning, where it is unknown."""
    return _tolerated(stack, lambda: of_keys(stack, keys, now))


def before_ending(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants of keys that are to be ended. Raises AdminError where that is unknown."""
    try:
        return of_keys(stack, keys, now)
    except AdminError as error:
        raise type(error)(f"{_UNKNOWN}\n{error}") from error
    except (BotoCoreError, ClientError) as error:
        failure = translated(error, stack.aws.calls.last)
        raise type(failure)(f"{_UNKNOWN}\n{failure}") from error


def who(entries: Sequence[Entry], now: datetime) -> Iterator[str]:
    """Lay out live grants: who is in, from where, for how long."""
    rows = (
        (
            entry.id,
            entry.one("principal_name"),
            entry.one("source"),
            tags.left(entry.one("expires_at"), now),
            entry.one("expires_at"),
        )
        for entry in entries
    )
    return table(rows, ("ID", "PRINCIPAL", "SOURCE", "LEFT", "EXPIRES AT"))


def count_of(entries: Sequence[Entry]) -> str:
    """Write how many grants there are: `1 live grant`."""
    return count(len(entries), "live grant")


def end(
    stack: Stack, entries: Sequence[Entry], reason: str, done: str = "nothing else was done"
) -> list[str]:
    """End these grants; give a line for each. Raises AdminError when one could not be closed.

    `done` says in that error what of the command has been done.
    """
    if not entries:
        return []
    chosen = Namespace(
        id=[entry.id for entry in entries], principal=None, source=None, target=None, all=False
    )
    chosen.reason, chosen.yes = reason, True
    result = grants.revoke(stack, chosen)
    lines = list(result.lines)
    if result.exit_code:
        raise AdminError("\n".join([f"Not all grants could be closed; {done}:", *lines]))
    return lines


def refusal(target: str, entries: Sequence[Entry], now: datetime, choices: str) -> AdminError:
    """Make the error that says who is in, and what there is to choose."""
    lines = [f"The target {target} has {count_of(entries)}:", *who(entries, now)]
    return AdminError("\n".join([*lines, f"Nothing was changed. {choices}"]))


def end_or_refuse(
    stack: Stack, target: str, groups: Iterable[str], now: datetime, *, revoke: bool, choices: str
) -> list[str]:
    """End whoever is in by a target, or refuse and say who it is. Gives a line for each that was ended."""
    entries = live(stack, target, groups, now)
    if entries and not revoke:
        raise refusal(target, entries, now, choices)
    return end(stack, entries, f"the target {target} is taken away")


def told(stack: Stack, target: str, groups: Iterable[str], now: datetime) -> list[Entry] | None:
    """List who is in where that decides nothing; None, with a warning, where the trail cannot be read."""
    return _tolerated(stack, lambda: live(stack, target, groups, now))


def _tolerated(stack: Stack, ask: Callable[[], list[Entry]]) -> list[Entry] | None:
    try:
        return ask()
    except AdminError as error:
        warn(f"who is in cannot be said: {error}")
    except (BotoCoreError, ClientError) as error:
        warn(f"who is in cannot be said: {translated(error, stack.aws.calls.last)}")
    return None
