"""`knock-admin report`: a month for an auditor, in UTC.

It has the hours that each principal had access to each target, the refusals, the grants that were closed
late, and those that only the forcing task closed, after all attempts of the ordinary task had failed. Two
grants of a principal for a target at the same time count once; one grant for two targets counts for both.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from knock_admin import open_periods, trail
from knock_admin.errors import UsageError
from knock_admin.output import Result, csv_lines, visible
from knock_admin.stores import Where

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from knock_admin.open_periods import OpenPeriod
    from knock_admin.stack import Stack
    from knock_admin.trail import Entry

LATE = timedelta(minutes=4)
"""A closing that is longer than this after the grant's end is late, as for the alarm RevocationLate."""
FORCED = "force"
"""The `closer` of a grant that ForceRevokeIngress or ForceRollBackIngress closed."""

_NAME = re.compile(r"[0-9A-Za-z_-]{1,80}", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#&~])")

_COLUMNS = (
    "section",
    "how",
    "principal",
    "target",
    "source",
    "grants",
    "hours",
    "call",
    "right",
    "count",
    "id",
    "ended_by",
    "due",
    "closed_at",
    "late_seconds",
)

Row = dict[str, Any]


@dataclass
class Hours:
    """The times in which one principal had access to one target."""

    grants: int = 0
    open: list[tuple[datetime, datetime]] = field(default_factory=list)

    def total(self) -> float:
        """Give the hours of access. Times that overlap count once."""
        seconds, reached = 0.0, None
        for begin, end in sorted(self.open):
            begin = max(begin, reached) if reached else begin
            if end > begin:
                seconds += (end - begin).total_seconds()
                reached = end
        return round(seconds / 3600, 2)


def show(stack: Stack, name: str, *, now: datetime, output: str) -> Result:
    """Report the month `name`, like `2026-11`, or the part of it that has passed.

    `output` is `markdown`, `csv` or `json`. Raises UsageError for a month that has not begun.
    """
    first, last = month(name, now)
    until = min(last, now)
    figures = make(stack, first, until, now)
    head = {
        "stack": stack.name,
        "month": name,
        "from": trail.milliseconds(first),
        "until": trail.milliseconds(until),
        "complete": until == last,
    }
    notes = [] if until == last else [f"the month goes on: this is until {trail.milliseconds(until)}"]
    if output == "json":
        return Result(head | figures, [], notes=notes)
    if output == "csv":
        rows = ([row.get(column, "") for column in _COLUMNS] for row in _flat(figures))
        return Result(None, csv_lines(rows, _COLUMNS), notes=notes)
    return Result(None, _markdown(head, figures), notes=notes)


def month(text: str, now: datetime) -> tuple[datetime, datetime]:
    """Give the first moment of a month like `2026-11`, and of the month after it. Raises UsageError."""
    try:
        if not re.fullmatch(r"\d{4}-\d\d", text, re.ASCII):
            raise ValueError(text)
        first = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=timezone.utc)
        last = (first + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--month: a month is like 2026-11, not {text!r}.") from error
    if first > now:
        raise UsageError(f"--month: {text} has not begun.")
    return first, last


def make(stack: Stack, first: datetime, last: datetime, now: datetime) -> dict[str, list[Row]]:
    """Read the grants and refusals of a period and count them. Memory use is a few numbers a grant."""
    hours: dict[tuple[str, str], Hours] = {}
    endings: Counter[str] = Counter()
    forced: list[Row] = []
    late: list[Row] = []
    for entry in open_periods.candidates(stack, (), first, last):
        period = open_periods.open_period(entry, now)
        if period and period.within(first, last) and period.note != open_periods.UNREADABLE:
            _add(hours, period, first, last)
        due, closed = _due(entry, now), open_periods.read_time(entry.text("closed_at"))
        if due and first <= due < last:
            endings[entry.status(now)] += 1
            if (closed or now) - due > LATE:
                late.append(_closing(entry, due, closed, now))
        if entry.text("closer") == FORCED and closed and first <= closed < last:
            forced.append(_closing(entry, due, closed, now))
    return {
        "access": [
            {"principal": who, "target": target, "grants": access.grants, "hours": access.total()}
            for (who, target), access in sorted(hours.items())
        ],
        "endings": [{"how": how, "count": number} for how, number in sorted(endings.items())],
        "refusals": _refusals(stack, first, last),
        "forced": forced,
        "late": late,
    }


def _add(hours: dict[tuple[str, str], Hours], period: OpenPeriod, first: datetime, last: datetime) -> None:
    who = period.entry.text("principal_name") or period.entry.text("principal_id")
    for target in period.entry.targets:
        access = hours.setdefault((who, str(target["name"])), Hours())
        access.grants += 1
        access.open.append(period.overlap(first, last))


def _due(entry: Entry, now: datetime) -> datetime | None:
    """Give the time at which a grant ended and had to be closed; None for a live one."""
    status = entry.status(now)
    if status in ("active", "pending"):
        return None
    return open_periods.read_time(entry.text("expires_at" if status == "expired" else "ended_at"))


def _closing(entry: Entry, due: datetime | None, closed: datetime | None, now: datetime) -> Row:
    return {
        "id": entry.id,
        "principal": entry.text("principal_name"),
        "source": entry.text("source"),
        "target": entry.target_names,
        "ended_by": entry.text("ended_by"),
        "due": trail.milliseconds(due) if due else None,
        "closed_at": trail.milliseconds(closed) if closed else None,
        "late_seconds": round(((closed or now) - due).total_seconds(), 1) if due else None,
    }


def _refusals(stack: Stack, first: datetime, last: datetime) -> list[Row]:
    times = [
        (Where("order", ">=", trail.milliseconds(first)),),
        (Where("order", "<", trail.milliseconds(last)),),
    ]
    counted = Counter(
        (entry.text("principal_name"), entry.text("call"), entry.text("right"))
        for entry in trail.refusals(stack, times, None)
    )
    return [
        {"principal": who, "call": call, "right": right or None, "count": number}
        for (who, call, right), number in sorted(counted.items())
    ]


# ---------------------------------------------------------------------------- output


def _flat(figures: dict[str, list[Row]]) -> Iterator[Row]:
    """Give one row for each figure; the column `section` names the section that it is from."""
    for section, rows in figures.items():
        for row in rows:
            known = {name: "" if value is None else value for name, value in row.items()}
            yield known | {"section": section}


def _markdown(head: Row, figures: dict[str, list[Row]]) -> Iterator[str]:
    yield f"# Knock: {head['month']}, stack {_text(head['stack'])}"
    yield ""
    yield f"From {head['from']} until {head['until']}{'' if head['complete'] else '; the month goes on'}."
    hours = sum(row["hours"] for row in figures["access"])
    yield from _section(
        "Who had access, to what",
        ("Person", "Target", "Grants", "Hours"),
        [
            (row["principal"], row["target"], row["grants"], f"{row['hours']:.2f}")
            for row in figures["access"]
        ],
        f"{hours:.2f} hours in all. A grant counts from `authorized_at` to `closed_at`.",
    )
    yield from _section(
        "How grants ended", ("How", "Grants"), [(row["how"], row["count"]) for row in figures["endings"]]
    )
    yield from _section(
        "What was refused",
        ("Person", "Call", "Right", "Times"),
        [(row["principal"], row["call"], row["right"] or "-", row["count"]) for row in figures["refusals"]],
    )
    closings = ("Grant", "Person", "Source", "Targets", "Due", "Closed", "Seconds late")
    for title, name, text in (
        ("Closed by force", "forced", "Trail, ledger or EC2 failed; `ForceRevokeIngress` closed the grant."),
        ("Closed late, or not yet", "late", "More than four minutes after the grant's end."),
    ):
        rows = [
            (
                row["id"],
                row["principal"],
                row["source"],
                row["target"],
                row["due"] or "-",
                row["closed_at"] or "not yet",
                row["late_seconds"] if row["late_seconds"] is not None else "-",
            )
            for row in figures[name]
        ]
        yield from _section(title, closings, rows, text)


def _section(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], text: str = ""
) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    lines = [f"| {' | '.join(map(_text, row))} |" for row in rows]
    if not lines:
        yield "None."
        return
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    yield from lines
    if text:
        yield from ("", text)


def _text(value: object) -> str:
    """Escape a value for Markdown; a grant's id becomes code."""
    text = visible(value)
    if "_" in text and _NAME.fullmatch(text):
        return f"`{text}`"
    return _MARKDOWN.sub(r"\\\1", text)
