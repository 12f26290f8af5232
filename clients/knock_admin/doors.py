"""`knock-admin trail --open-between` and `--open-at`: whose door was open then.

A door is open from `authorized_at` to `closed_at`: one whose grant has ended and could not be closed is open
yet. What nobody can rule out is told, with a note:

    asked for ──────── authorized ════════ ended ═════ closed
                          │   open, as it is on record    │
    asked for ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ended ─ ─ ─ ┤  not on record as open; perhaps rules were

The second is a grant whose opening was cut off: it counts from when it was asked for, unless it was closed
without a rule to revoke. All grants asked for before the end of the time are looked at, however long before,
since a closing may fail for as long as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from knock_admin import tags, trail
from knock_admin.errors import UsageError
from knock_admin.output import Result, csv_lines, json_lines, table
from knock_admin.stores import Where

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from knock_admin.stack import Stack
    from knock_admin.stores import AnyOf
    from knock_admin.trail import Entry

_COLUMNS = (
    "id",
    "status",
    "principal",
    "principal_id",
    "source",
    "targets",
    "open_from",
    "open_until",
    "overlap_from",
    "overlap_until",
    "overlap_seconds",
    "reason",
    "note",
)

UNRECORDED = "not on record as open"
UNCLOSED = "ended, and not closed"
UNREADABLE = "its times cannot be read"


@dataclass(frozen=True)
class Door:
    """How long a grant's door was open, as far as the trail knows. `until` is None while it is open."""

    entry: Entry
    since: datetime
    until: datetime | None
    note: str = ""

    def within(self, first: datetime, last: datetime) -> bool:
        """Say whether it was open in this time, or at this moment where both are one."""
        begun = self.since <= last if first == last else self.since < last
        return begun and (self.until is None or self.until > first)

    def overlap(self, first: datetime, last: datetime) -> tuple[datetime, datetime]:
        """Give the part of this time in which it was open; `last` is not ahead."""
        return max(self.since, first), min(self.until or last, last)


def door(entry: Entry, now: datetime) -> Door | None:
    """Say when a grant's door was open; None where it never was."""
    authorized, closed = entry.one("authorized_at"), entry.one("closed_at")
    if not authorized and closed and not _revoked(entry):
        return None
    ended = entry.status(now) not in ("active", "pending")
    notes = [] if authorized else [UNRECORDED]
    notes += [UNCLOSED] if ended and not closed else []
    try:
        since = _time(authorized or entry.one("requested_at"))
        return Door(entry, since, _time(closed) if closed else None, "; ".join(notes))
    except ValueError:  # it is told, whatever time was asked for
        return Door(entry, datetime.min.replace(tzinfo=timezone.utc), None, UNREADABLE)


def _revoked(entry: Entry) -> bool:
    """Say whether rules were there to be revoked when the grant was closed."""
    return any(event.get("event") == "closed" and event.get("revoked") for event in entry.many("event"))


def read_time(text: str) -> datetime | None:
    """Read a time on record; None where it is none."""
    try:
        return _time(text)
    except ValueError:
        return None


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if at.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return at


def candidates(stack: Stack, where: Sequence[AnyOf], first: datetime, last: datetime) -> Iterator[Entry]:
    """Yield all grants whose door may have been open in a time: not closed before, nor asked for after."""
    asked_for = Where("order", "<", trail.milliseconds(last + trail.SKEW))
    unclosed = (Where("closed_at", "=", "-"), Where("closed_at", ">=", trail.milliseconds(first)))
    return trail.grants(stack, [(asked_for,), unclosed, *where])


def show(stack: Stack, args: Namespace) -> Result:
    """Print whose door was open in a time, or at a moment, and for how much of it."""
    others = ("id", "kind", "since", "until", "events")
    if given := [name for name in others if getattr(args, name)]:
        raise UsageError(f"With a time in which doors were open, there is no {', no '.join(given)}.")
    first, last = _asked(args)
    if first > args.now:
        raise UsageError("That time has not come: who will be in then, nobody knows.")
    notes = [f"what comes after {tags.show_time(args.now)} has not come yet"] if last > args.now else []
    last = min(last, args.now)
    filters = trail.chosen(args)
    entries = candidates(stack, list(filters.values()), first, last)
    # What is on record, and had no door open then, is no mistyped name.
    known = trail.some(stack, entries, filters)
    found = (each for each in (door(entry, args.now) for entry in known) if each and each.within(first, last))
    shape = "jsonl" if args.json else args.format
    if shape == "jsonl":
        return Result(None, json_lines(_as_json(each, first, last, args.now) for each in found), notes=notes)
    if shape == "csv":
        rows = (_row(each, first, last, args.now) for each in found)
        return Result(None, csv_lines(rows, _COLUMNS), notes=notes)
    header = ("ID", "PRINCIPAL", "SOURCE", "TARGETS", "OPEN FROM", "OPEN UNTIL", "OVERLAP", "NOTE")
    return Result(None, table((_brief(each, first, last) for each in found), header), notes=notes)


def _asked(args: Namespace) -> tuple[datetime, datetime]:
    """Read the time that was asked for. Raises UsageError."""
    if args.open_at:
        at = trail.read_moment("--open-at", args.open_at, args.now)
        return at, at
    first, last = (trail.read_moment("--open-between", text, args.now) for text in args.open_between)
    if first >= last:
        raise UsageError(f"--open-between: {args.open_between[0]} is not before {args.open_between[1]}.")
    return first, last


def _brief(each: Door, first: datetime, last: datetime) -> tuple[str, ...]:
    entry = each.entry
    begin, end = each.overlap(first, last)
    long = "-" if first == last or each.note == UNREADABLE else tags.show_duration(end - begin)
    return (
        entry.id,
        entry.one("principal_name"),
        entry.one("source"),
        entry.target_names or "-",
        _shown(each.since),
        _shown(each.until) if each.until else "still open",
        long,
        each.note or "-",
    )


def _shown(at: datetime) -> str:
    return "?" if at.year == 1 else at.strftime("%Y-%m-%d %H:%M:%S")


def _times(each: Door, first: datetime, last: datetime) -> dict[str, Any]:
    begin, end = each.overlap(first, last)
    return {
        "open_from": None if each.since.year == 1 else trail.milliseconds(each.since),
        "open_until": trail.milliseconds(each.until) if each.until else None,
        "overlap_from": trail.milliseconds(begin),
        "overlap_until": trail.milliseconds(end),
        "overlap_seconds": round((end - begin) / timedelta(seconds=1), 3),
        "note": each.note or None,
    }


def _as_json(each: Door, first: datetime, last: datetime, now: datetime) -> dict[str, Any]:
    return each.entry.as_json(now) | _times(each, first, last)


def _row(each: Door, first: datetime, last: datetime, now: datetime) -> list[object]:
    times = _times(each, first, last)
    shown = {name: "" if value is None else value for name, value in times.items()}
    return each.entry.row(now, _COLUMNS, shown)
