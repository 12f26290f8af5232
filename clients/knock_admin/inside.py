"""The live grants of a target or a key, read before a command changes or removes it.

A live grant's rules are on record by group, ports and source, and its ledger has their ids. So a change of a
target's name or ports does not keep them from being revoked at the grant's end. Removing the tag
`knock:stack` from a group would: the functions may change rules only in groups that carry it.
"""

from __future__ import annotations

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

_UNKNOWN = "Nothing was changed: the key's live grants cannot be read, so none of them could be ended."


def live(stack: Stack, target: str, groups: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants that name a target, or have a rule in its groups; those that expire first first.

    A grant of a target that was renamed since has the old name on record, and is found by the groups.
    """
    ids = set(groups)
    entries = (
        entry
        for entry in trail.grants(stack, trail.live(now), None)
        if target in entry.values.get("target_name", ()) or ids & entry.groups
    )
    return sorted(entries, key=lambda entry: entry.text("expires_at"))


def of_keys(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants of keys, named by id; those that expire first first.

    Raises AdminError, and botocore's errors.
    """
    entries = [
        entry
        for key_id in keys
        for entry in trail.grants(stack, [equal("principal_id", key_id), *trail.live(now)], None)
    ]
    return sorted(entries, key=lambda entry: entry.text("expires_at"))


def of_keys_if_readable(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry] | None:
    """List the live grants of keys, for information only: None, with a warning, if they cannot be read."""
    return _tolerated(stack, lambda: of_keys(stack, keys, now))


def before_ending(stack: Stack, keys: Iterable[str], now: datetime) -> list[Entry]:
    """List the live grants of keys that will be closed. Raises AdminError if they cannot be read."""
    try:
        return of_keys(stack, keys, now)
    except AdminError as error:
        raise type(error)(f"{_UNKNOWN}\n{error}") from error
    except (BotoCoreError, ClientError) as error:
        failure = translated(error, stack.aws.calls.last)
        raise type(failure)(f"{_UNKNOWN}\n{failure}") from error


def who(entries: Sequence[Entry], now: datetime) -> Iterator[str]:
    """Lay out live grants as a table: principal, source, time left."""
    rows = (
        (
            entry.id,
            entry.text("principal_name"),
            entry.text("source"),
            tags.left(entry.text("expires_at"), now),
            entry.text("expires_at"),
        )
        for entry in entries
    )
    return table(rows, ("ID", "PRINCIPAL", "SOURCE", "LEFT", "EXPIRES AT"))


def count_of(entries: Sequence[Entry]) -> str:
    """Write the number of grants: `1 live grant`."""
    return count(len(entries), "live grant")


def end(
    stack: Stack, entries: Sequence[Entry], reason: str, progress: str = "nothing else was done"
) -> list[str]:
    """Close these grants; give a line for each. Raises AdminError when some could not be closed.

    `progress` says in that error what the command had done before.
    """
    if not entries:
        return []
    result = grants.revoke(stack, [entry.id for entry in entries], reason)
    lines = list(result.lines)
    if result.exit_code:
        raise AdminError("\n".join([f"Not all grants could be closed; {progress}:", *lines]))
    return lines


def refusal(target: str, entries: Sequence[Entry], now: datetime, choices: str) -> AdminError:
    """Make the error that lists the live grants, and the options that decide about them."""
    lines = [f"The target {target} has {count_of(entries)}:", *who(entries, now)]
    return AdminError("\n".join([*lines, f"Nothing was changed. {choices}"]))


def end_or_refuse(
    stack: Stack, target: str, groups: Iterable[str], now: datetime, *, revoke: bool, choices: str
) -> list[str]:
    """Close the live grants of a target; give a line for each. Raises AdminError if there are, and not
    `revoke`.
    """
    entries = live(stack, target, groups, now)
    if entries and not revoke:
        raise refusal(target, entries, now, choices)
    return end(stack, entries, f"the target {target} is taken away")


def live_if_readable(stack: Stack, target: str, groups: Iterable[str], now: datetime) -> list[Entry] | None:
    """List a target's live grants, for information only: None, with a warning, if they cannot be read."""
    return _tolerated(stack, lambda: live(stack, target, groups, now))


def _tolerated(stack: Stack, ask: Callable[[], list[Entry]]) -> list[Entry] | None:
    try:
        return ask()
    except AdminError as error:
        warn(f"who is in cannot be said: {error}")
    except (BotoCoreError, ClientError) as error:
        warn(f"who is in cannot be said: {translated(error, stack.aws.calls.last)}")
    return None
