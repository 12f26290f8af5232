"""`knock-admin trail --open-between` and `--open-at`: the grants that were open in a period.

A grant is open from `authorized_at` to `closed_at`: also after its end, until it is closed. A grant
that may have been open is listed too, with a note:

    requested ──────── authorized ════════ ended ═════ closed
                          │   open, as it is on record    │
    requested ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ended ─ ─ ─ ┤  not on record as open, and perhaps it had rules

The second is a grant whose opening was interrupted. It counts from its request on, unless closing it revoked
no rule. All grants requested before the end of the period are read, however old, because closing a grant has
no time limit.
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
    from collections.abc import Iterator, Mapping, Sequence

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
class OpenPeriod:
    """The time in which a grant was open, by the trail. `until` is None while it is open."""

    entry: Entry
    since: datetime
    until: datetime | None
    note: str = ""

    def within(self, first: datetime, last: datetime) -> bool:
        """Say whether it was open in a period, or at a moment if `first` and `last` are equal."""
        begun = self.since <= last if first == last else self.since < last
        return begun and (self.until is None or self.until > first)

    def overlap(self, first: datetime, last: datetime) -> tuple[datetime, datetime]:
        """Give the part of a period in which it was open. `last` is not in the future."""
        return max(self.since, first), min(self.until or last, last)


def open_period(entry: Entry, now: datetime) -> OpenPeriod | None:
    """Give the time in which a grant was open; None if it never was."""
    authorized, closed = entry.text("authorized_at"), entry.text("closed_at")
    if not authorized and closed and not _revoked(entry):
        return None
    ended = entry.status(now) not in ("active", "pending")
    notes = [] if authorized else [UNRECORDED]
    notes += [UNCLOSED] if ended and not closed else []
    try:
        since = _time(authorized or entry.text("requested_at"))
        return OpenPeriod(entry, since, _time(closed) if closed else None, "; ".join(notes))
    except ValueError:  # listed for every period, with a note
        return OpenPeriod(entry, datetime.min.replace(tzinfo=timezone.utc), None, UNREADABLE)


def _revoked(entry: Entry) -> bool:
    """Say whether closing the grant revoked rules."""
    return any(event.get("event") == "closed" and event.get("revoked") for event in entry.objects("event"))


def read_time(text: str) -> datetime | None:
    """Read a time on record; None if it cannot be read."""
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
    """Yield the grants that may have been open in a period: neither closed before nor requested after
    it.
    """
    requested = Where("order", "<", trail.milliseconds(last + trail.SKEW))
    unclosed = (Where("closed_at", "=", "-"), Where("closed_at", ">=", trail.milliseconds(first)))
    return trail.grants(stack, [(requested,), unclosed, *where])


def show(
    stack: Stack,
    filters: Mapping[str, AnyOf],
    first: datetime,
    last: datetime,
    *,
    now: datetime,
    output: str,
) -> Result:
    """Print the grants that were open in a period, or at a moment if `first` and `last` are equal.

    `output` is `table`, `jsonl` or `csv`. Raises UsageError for a period that begins in the future, and
    AdminError for a filter that no record has ever met.
    """
    if first > now:
        raise UsageError("That time is in the future: no grant is on record for it yet.")
    notes = [f"the period goes on: this is until {tags.show_time(now)}"] if last > now else []
    last = min(last, now)
    entries = candidates(stack, list(filters.values()), first, last)
    # A name that is on record is not mistyped, even if none of its grants was open in the period.
    known = trail.some(stack, entries, filters)
    candidate_periods = (open_period(entry, now) for entry in known)
    periods = (period for period in candidate_periods if period and period.within(first, last))
    if output == "jsonl":
        return Result(None, json_lines(_as_json(period, first, last, now) for period in periods), notes=notes)
    if output == "csv":
        rows = (_row(period, first, last, now) for period in periods)
        return Result(None, csv_lines(rows, _COLUMNS), notes=notes)
    header = ("ID", "PRINCIPAL", "SOURCE", "TARGETS", "OPEN FROM", "OPEN UNTIL", "OVERLAP", "NOTE")
    return Result(None, table((_brief(period, first, last) for period in periods), header), notes=notes)


def _brief(period: OpenPeriod, first: datetime, last: datetime) -> tuple[str, ...]:
    entry = period.entry
    begin, end = period.overlap(first, last)
    long = "-" if first == last or period.note == UNREADABLE else tags.show_duration(end - begin)
    return (
        entry.id,
        entry.text("principal_name"),
        entry.text("source"),
        entry.target_names or "-",
        _time_text(period.since),
        _time_text(period.until) if period.until else "still open",
        long,
        period.note or "-",
    )


def _time_text(at: datetime) -> str:
    return "?" if at.year == 1 else at.strftime("%Y-%m-%d %H:%M:%S")


def _times(period: OpenPeriod, first: datetime, last: datetime) -> dict[str, Any]:
    begin, end = period.overlap(first, last)
    return {
        "open_from": None if period.since.year == 1 else trail.milliseconds(period.since),
        "open_until": trail.milliseconds(period.until) if period.until else None,
        "overlap_from": trail.milliseconds(begin),
        "overlap_until": trail.milliseconds(end),
        "overlap_seconds": round((end - begin) / timedelta(seconds=1), 3),
        "note": period.note or None,
    }


def _as_json(period: OpenPeriod, first: datetime, last: datetime, now: datetime) -> dict[str, Any]:
    return period.entry.as_json(now) | _times(period, first, last)


def _row(period: OpenPeriod, first: datetime, last: datetime, now: datetime) -> list[object]:
    times = _times(period, first, last)
    texts = {name: "" if value is None else value for name, value in times.items()}
    return period.entry.row(now, _COLUMNS, texts)
