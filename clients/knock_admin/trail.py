"""`knock-admin trail`: what happened, grants and refusals.

Grants are in the trail, refusals in a domain or table of their own; both stream in order of time. The
functions write them with code of their own (`functions/grants/trail.py` and `refusals.py`), which is not part
of this distribution. That both agree is tested.

Who asks for somebody, or something, of whom nothing is on record has most likely mistyped a name: that is an
error, and no empty answer.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from knock_admin import stores, tags
from knock_admin.errors import AdminError, UsageError
from knock_admin.output import Result, csv_lines, json_lines, table
from knock_admin.stores import REFUSALS, TRAIL, Where, equal

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from knock_admin.stack import Stack
    from knock_admin.stores import AnyOf, Order

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

SKEW = timedelta(minutes=2)
"""How much earlier than it was asked for something may have happened to a grant, by another's clock.

An execution whose `requested_at` is more than a minute ahead opens nothing.
"""


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

    @property
    def input(self) -> Any:
        """Read the execution's input; None where it cannot be read."""
        parts = sorted(name for name in self.values if name.startswith("input_"))
        try:
            return json.loads("".join(self.values[part][0] for part in parts))
        except (ValueError, RecursionError):
            return None

    @cached_property
    def targets(self) -> list[dict[str, Any]]:
        """Read names and ports from the execution's input; names alone where it cannot be read."""
        try:
            found = [{"name": target["name"], "ports": target["ports"]} for target in self.input["targets"]]
        except (LookupError, TypeError):
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
    def groups(self) -> set[str]:
        """Give the security groups its rules are in; where none is on record, those they may be put into."""
        if rules := self.rules:
            return {str(rule.get("group")) for rule in rules}
        try:
            return {str(group) for target in self.input["targets"] for group in target["groups"]}
        except (LookupError, TypeError):
            return set()

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

    def row(
        self, now: datetime, columns: Sequence[str] = _COLUMNS, more: Mapping[str, object] | None = None
    ) -> list[object]:
        """Write it as one row of columns: attributes, what is made of several, and `more` that a caller
        knows.
        """
        special = {
            "id": self.id,
            "status": self.status(now),
            "principal": self.one("principal_name"),
            "targets": self.target_names,
            **(more or {}),
        }
        return [special.get(column, self.one(column)) for column in columns]

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


def grants(stack: Stack, where: Iterable[AnyOf], order: Order | None = "ascending") -> Iterator[Entry]:
    """Yield the grants that meet all conditions, by the time they were asked for."""
    found = stores.of(stack, TRAIL).select([equal("kind", "grant"), *where], order)
    return (Entry(name, values) for name, values in found)


def refusals(stack: Stack, where: Iterable[AnyOf], order: Order | None = "ascending") -> Iterator[Entry]:
    """Yield the refusals that meet all conditions, by their time."""
    found = stores.of(stack, REFUSALS).select([equal("kind", "refusal"), *where], order)
    return (Entry(name, values) for name, values in found)


_KINDS = {"grant": (TRAIL, grants), "refusal": (REFUSALS, refusals)}


def chosen(args: Namespace) -> dict[str, AnyOf]:
    """Turn the filters of a command line into conditions, each by what it is called.

    Raises UsageError on a source that is none.
    """
    where: dict[str, AnyOf] = {}
    if args.principal is not None:
        name = args.principal
        where[f"principal {name}"] = (
            Where("principal_name", "=", name),
            Where("principal_id", "=", name),
        )
    if args.source is not None:
        try:
            source = tags.canonical_source(args.source)
        except ValueError as error:
            raise UsageError(f"--source: {error}") from error
        where[f"source {source}"] = equal("source", source)
    if args.target is not None:
        where[f"target {args.target}"] = equal("target_name", args.target)  # a refusal has none
    return where


def live(now: datetime) -> list[AnyOf]:
    """Give the conditions of a live grant; what is live is not closed, for which there is an index."""
    return [
        equal("closed_at", "-"),
        equal("state", "live"),
        (Where("expires_at", ">", tags.show_time(now)),),
    ]


def some(stack: Stack, entries: Iterator[Entry], filters: Mapping[str, AnyOf]) -> Iterator[Entry]:
    """Give the same entries. Raises AdminError where there are none, for a filter that nothing ever met."""
    first = next(entries, None)
    if first is not None:
        return chain([first], entries)
    for what, condition in filters.items():
        if not any(next(read(stack, [condition], None), None) for _, read in _KINDS.values()):
            raise AdminError(
                f"Nothing on record has the {what}: no grant and no refusal, ever. Is it mistyped?"
            )
    return iter(())


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


def read_moment(option: str, text: str, now: datetime) -> datetime:
    """Read a time of the command line. Raises UsageError."""
    try:
        return moment(text, now).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option}: {error}") from error


def milliseconds(at: datetime) -> str:
    """Write a time as `requested_at` is written; texts of one shape sort as the times do."""
    at = at.astimezone(timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def show(stack: Stack, args: Namespace) -> Result:
    """Print what happened, oldest first: grants and refusals, or their events one by one."""
    if args.open_between or args.open_at:
        from knock_admin import doors  # which reads the trail by this module

        return doors.show(stack, args)
    if args.kind == "refusal" and args.target is not None:
        raise UsageError("No refusal has a target on record: leave out --target, or --kind.")
    filters, times = chosen(args), _asked_for(args)
    kinds = [_KINDS[args.kind]] if args.kind else list(_KINDS.values())
    if args.id is None:
        reads = (read(stack, [*times, *filters.values()]) for _, read in kinds)
        merged = heapq.merge(*reads, key=lambda entry: entry.one("requested_at"))
        entries = some(stack, merged, filters)
    elif filters or times:
        raise UsageError("An id names one entry: leave out what else would choose.")
    else:
        entries = iter([_named(stack, args.id, kinds)])
    shape = "jsonl" if args.json else args.format
    if args.events:
        return Result(None, _events(entries, shape))
    if shape == "jsonl":
        return Result(None, json_lines(entry.as_json(args.now) for entry in entries))
    if shape == "csv":
        return Result(None, csv_lines((entry.row(args.now) for entry in entries), _COLUMNS))
    return Result(
        None,
        table(
            _brief(entries, args.now),
            ("AT", "ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "BY", "WHY"),
        ),
    )


def _asked_for(args: Namespace) -> list[AnyOf]:
    """Turn --since and --until into conditions. An `order` begins with the time, and goes on."""
    times = (("since", args.since, ">="), ("until", args.until, "<"))
    return [
        (Where("order", sign, milliseconds(read_moment(f"--{name}", text, args.now))),)  # type: ignore[arg-type]
        for name, text, sign in times
        if text is not None
    ]


def _named(stack: Stack, name: str, kinds: Iterable[tuple[str, Callable[..., object]]]) -> Entry:
    """Read the entry of this id. Raises AdminError when there is none."""
    for variable, _ in kinds:
        values = stores.of(stack, variable).get(name)
        if "kind" in values:
            return Entry(name, values)
    raise AdminError(f"Nothing on record has the id {name}; `knock-admin trail` lists what there is.")


def _events(entries: Iterator[Entry], shape: str) -> Iterator[str]:
    rows = in_order_of_time(entries)
    if shape == "jsonl":
        return json_lines(dict(zip(_EVENT_COLUMNS, row, strict=True)) for row in rows)
    if shape == "csv":
        return csv_lines(rows, _EVENT_COLUMNS)
    return table(rows, [name.upper() for name in _EVENT_COLUMNS])


def in_order_of_time(entries: Iterable[Entry]) -> Iterator[list[str]]:
    """Yield the events of entries, which come by the time they were asked for, as rows by their own time.

    An event waits until no later entry can have an earlier one, so what is kept are the events of grants that
    were live at one time.
    """
    waiting: list[tuple[str, int, list[str]]] = []
    numbers = count()
    for entry in entries:
        before = _earliest(entry)
        while waiting and waiting[0][0] < before:
            yield heapq.heappop(waiting)[2]
        for row in entry.event_rows():
            heapq.heappush(waiting, (row[0], next(numbers), row))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _earliest(entry: Entry) -> str:
    """Say before when none of an entry's events can have been; empty where its time cannot be read."""
    try:
        return milliseconds(datetime.fromisoformat(entry.one("requested_at").replace("Z", "+00:00")) - SKEW)
    except (ValueError, OverflowError):
        return ""


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
