"""`knock-admin trail`: what happened, grants and refusals.

Grants are in the trail, refusals in a domain of their own; both stream in order of time. The functions write
them with code of their own (`functions/grants/trail.py` and `refusals.py`), which is not part of this
distribution. That both agree is tested.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from knock_admin import simpledb, tags
from knock_admin.errors import UsageError
from knock_admin.output import Result, csv_lines, json_lines, table
from knock_admin.simpledb import quote

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Mapping

    from knock_admin.stack import Stack

_COLUMNS = (
    "requested_at",
    "kind",
    "id",
    "status",
    "principal",
    "principal_id",
    "source",
    "targets",
    "expires_at",
    "authorized_at",
    "ended_at",
    "ended_by",
    "end_reason",
    "closed_at",
    "reason",
    "renews",
    "call",
    "right",
    "detail",
)
_EVENT_COLUMNS = ("at", "event", "by", "id", "principal", "source", "detail")


@dataclass(frozen=True)
class Entry:
    """One grant or one refusal, as it is on record."""

    id: str
    values: Mapping[str, tuple[str, ...]]

    def one(self, name: str) -> str:
        """Give an attribute that has one value; empty where it is missing or not yet set."""
        value = self.values.get(name, ("",))[0]
        return "" if value == "-" else value

    def many(self, name: str) -> list[dict[str, Any]]:
        """Give an attribute whose values are JSON objects; a value that is none is shown as it is."""
        return [_object(value) for value in self.values.get(name, ())]

    @cached_property
    def targets(self) -> list[dict[str, Any]]:
        """Read names and ports from the execution's input; names alone where it cannot be read."""
        parts = sorted(name for name in self.values if name.startswith("input_"))
        try:
            asked = json.loads("".join(self.values[part][0] for part in parts))["targets"]
            found = [{"name": target["name"], "ports": target["ports"]} for target in asked]
        except (ValueError, LookupError, TypeError):
            found = [{"name": name} for name in self.values.get("target_name", ())]
        return sorted(found, key=lambda target: str(target["name"]))

    @property
    def target_names(self) -> str:
        return " ".join(str(target["name"]) for target in self.targets)

    @property
    def rules(self) -> list[dict[str, Any]]:
        """Give the rules that the grant reached its targets by; a foreign one was there before."""
        return sorted(
            self.many("rule"), key=lambda rule: [str(rule.get(name)) for name in ("target", "group", "ports")]
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        events = [*self.many("event"), *self.many("authorized")]
        return sorted(events, key=lambda event: str(event.get("at")))

    def status(self, now: datetime) -> str:
        """Give the status people see, at this time: pending, active, how it ended, or refused."""
        state = self.one("state")
        if self.one("kind") == "refusal":
            return "refused"
        if state != "live":
            return state
        if self.one("expires_at") <= tags.show_time(now):
            return "expired"
        return "active" if self.one("authorized_at") else "pending"

    def as_json(self, now: datetime) -> dict[str, Any]:
        """Write it in the shape the API gives a grant, with its events; `kind` tells a refusal."""
        entry: dict[str, Any] = {
            "kind": self.one("kind"),
            "id": self.id,
            "status": self.status(now),
            "principal": {"id": self.one("principal_id"), "name": self.one("principal_name")},
            "source": self.one("source"),
            "requested_at": self.one("requested_at"),
        }
        if entry["kind"] == "refusal":
            said = {"right": self.one("right") or None, "detail": self.one("detail")}
            return entry | {"call": self.one("call")} | said
        for name in (
            "expires_at",
            "authorized_at",
            "ended_at",
            "ended_by",
            "end_reason",
            "closed_at",
            "reason",
            "renews",
        ):
            entry[name] = self.one(name) or None
        return entry | {"targets": self.targets, "rules": self.rules, "events": self.events}

    def row(self, now: datetime) -> list[str]:
        """Write it as one row of `_COLUMNS`."""
        special = {
            "id": self.id,
            "status": self.status(now),
            "principal": self.one("principal_name"),
            "targets": self.target_names,
        }
        return [special.get(column, self.one(column)) for column in _COLUMNS]

    def event_rows(self) -> Iterator[list[str]]:
        """Write its events as rows of `_EVENT_COLUMNS`; a refusal is one event."""
        events = self.events
        if self.one("kind") == "refusal":
            events = [
                {
                    "at": self.one("requested_at"),
                    "event": "refused",
                    "by": "knock",
                    "call": self.one("call"),
                    "detail": self.one("detail"),
                }
            ]
        for event in events:
            detail = {key: value for key, value in event.items() if key not in ("at", "event", "by")}
            text = "; ".join(
                f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
                for key, value in detail.items()
            )
            yield [
                *(str(event.get(name, "")) for name in ("at", "event", "by")),
                self.id,
                self.one("principal_name"),
                self.one("source"),
                text,
            ]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"unreadable": text}


def grants(stack: Stack, where: list[str], order: str) -> Iterator[Entry]:
    """Yield the grants that meet all conditions, in this order."""
    found = simpledb.select(stack, simpledb.TRAIL, ["`kind` = 'grant'", *where], order)
    return (Entry(name, values) for name, values in found)


def refusals(stack: Stack, where: list[str], order: str) -> Iterator[Entry]:
    """Yield the refusals that meet all conditions, in this order."""
    found = simpledb.select(stack, simpledb.REFUSALS, ["`kind` = 'refusal'", *where], order)
    return (Entry(name, values) for name, values in found)


def conditions(args: Namespace) -> list[str]:
    """Turn the filters of a command line into conditions. Raises UsageError on a source that is none."""
    where = []
    if args.principal:
        name = quote(args.principal)
        where.append(f"(`principal_name` = {name} or `principal_id` = {name})")
    if args.source:
        try:
            where.append(f"`source` = {quote(tags.canonical_source(args.source))}")
        except ValueError as error:
            raise UsageError(f"--source: {error}") from error
    if args.target:
        where.append(f"`target_name` = {quote(args.target)}")  # which a refusal does not have
    return where


def live(now: datetime) -> list[str]:
    """Give the conditions that a live grant meets."""
    return ["`state` = 'live'", f"`expires_at` > {quote(tags.show_time(now))}"]


def moment(text: str, now: datetime) -> datetime:
    """Read a time: `2026-11-23`, `2026-11-23T21:17:19Z`, or how long ago, like `24h`. Raises ValueError."""
    try:
        return now - tags.parse_duration(text)
    except ValueError:
        pass  # not a duration: a time, or neither
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError(
            f"a time is like 2026-11-23, 2026-11-23T21:17:19Z or 24h (ago), not {text!r}"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def _milliseconds(at: datetime) -> str:
    """Write a time as `requested_at` is written; texts of one shape sort as the times do."""
    at = at.astimezone(timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def show(stack: Stack, args: Namespace) -> Result:
    """Print what happened, oldest first: grants and refusals, or their events one by one."""
    # What a Select sorts by must be in a condition.
    where = ["`requested_at` is not null", *conditions(args)]
    where += [f"itemName() = {quote(args.id)}"] if args.id else []
    try:
        if args.since:
            where.append(f"`requested_at` >= {quote(_milliseconds(moment(args.since, args.now)))}")
        if args.until:
            where.append(f"`requested_at` < {quote(_milliseconds(moment(args.until, args.now)))}")
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error
    kinds = {"grant": grants, "refusal": refusals}
    chosen = [kinds[args.kind]] if args.kind else [grants, refusals]
    entries = heapq.merge(
        *(read(stack, where, "`requested_at` asc") for read in chosen),
        key=lambda entry: entry.one("requested_at"),
    )
    shape = "jsonl" if args.json else args.format
    if shape == "jsonl":
        return Result(None, json_lines(entry.as_json(args.now) for entry in entries))
    rows = (
        row for entry in entries for row in (entry.event_rows() if args.events else [entry.row(args.now)])
    )
    header = _EVENT_COLUMNS if args.events else _COLUMNS
    if shape == "csv":
        return Result(None, csv_lines(rows, header))
    if args.events:
        return Result(None, table(rows, [name.upper() for name in header]))
    return Result(
        None,
        table(
            _brief(entries, args.now),
            ("AT", "ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "BY", "WHY"),
        ),
    )


def _brief(entries: Iterator[Entry], now: datetime) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        status = entry.status(now)
        why = [entry.one("reason"), entry.one("end_reason"), entry.one("detail")]
        yield (
            entry.one("requested_at")[:19].replace("T", " "),
            entry.id,
            status,
            entry.one("principal_name"),
            entry.one("source"),
            entry.target_names or "-",
            (entry.one("ended_at") or entry.one("expires_at"))[:19].replace("T", " ") or "-",
            entry.one("ended_by") or "-",
            " / ".join(text for text in why if text) or "-",
        )
