"""`knock-admin trail`: the grants and refusals on record.

Grants are in the trail, refusals in a domain or table of their own; both are streamed in order of time. The
functions write them with code of their own (`functions/grants/trail.py` and `refusals.py`), which is not part
of this distribution. A test compares the two.

A filter with a name that no record has is most likely mistyped: it is an error, not an empty answer.
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
"""How far an event may precede the request of its grant, because the functions' clocks differ.

An execution whose `requested_at` is more than a minute in the future opens nothing.
"""


@dataclass(frozen=True)
class Entry:
    """One grant or one refusal on record."""

    id: str
    values: Mapping[str, tuple[str, ...]]

    def text(self, name: str) -> str:
        """Give an attribute that has one value; empty if it is missing or not set yet."""
        value = self.values.get(name, ("",))[0]
        return "" if value == "-" else value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Give an attribute whose values are JSON objects; other values as `{"unreadable": …}`."""
        return [_object(value) for value in self.values.get(name, ())]

    @property
    def input(self) -> Any:
        """The execution's input; None if it cannot be read."""
        parts = sorted(name for name in self.values if name.startswith("input_"))
        try:
            return json.loads("".join(self.values[part][0] for part in parts))
        except (ValueError, RecursionError):
            return None

    @cached_property
    def targets(self) -> list[dict[str, Any]]:
        """Names and ports, from the execution's input; names alone if it cannot be read."""
        try:
            targets = [{"name": target["name"], "ports": target["ports"]} for target in self.input["targets"]]
        except (LookupError, TypeError):
            targets = [{"name": name} for name in self.values.get("target_name", ())]
        return sorted(targets, key=lambda target: str(target["name"]))

    @property
    def target_names(self) -> str:
        return " ".join(str(target["name"]) for target in self.targets)

    @property
    def rules(self) -> list[dict[str, Any]]:
        """The rules that let the grant's source in; a foreign one existed before the grant."""
        return sorted(
            self.objects("rule"),
            key=lambda rule: [str(rule.get(name)) for name in ("target", "group", "ports")],
        )

    @property
    def groups(self) -> set[str]:
        """The security groups of its rules; if none is on record, the groups of its targets."""
        if rules := self.rules:
            return {str(rule.get("group")) for rule in rules}
        try:
            return {str(group) for target in self.input["targets"] for group in target["groups"]}
        except (LookupError, TypeError):
            return set()

    @property
    def events(self) -> list[dict[str, Any]]:
        events = [*self.objects("event"), *self.objects("authorized")]
        return sorted(events, key=lambda event: str(event.get("at")))

    def status(self, now: datetime) -> str:
        """Give the status at this time: pending, active, expired, revoked, superseded, failed or refused."""
        state = self.text("state")
        if self.text("kind") == "refusal":
            return "refused"
        if state != "live":
            return state
        if self.text("expires_at") <= tags.show_time(now):
            return "expired"
        return "active" if self.text("authorized_at") else "pending"

    def as_json(self, now: datetime) -> dict[str, Any]:
        """Write it as the API writes a grant, with its events; `kind` is `grant` or `refusal`."""
        entry: dict[str, Any] = {
            "kind": self.text("kind"),
            "id": self.id,
            "status": self.status(now),
            "principal": {"id": self.text("principal_id"), "name": self.text("principal_name")},
            "source": self.text("source"),
            "requested_at": self.text("requested_at"),
        }
        if entry["kind"] == "refusal":
            content = {"right": self.text("right") or None, "detail": self.text("detail")}
            return entry | {"call": self.text("call")} | content
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
            entry[name] = self.text(name) or None
        return entry | {"targets": self.targets, "rules": self.rules, "events": self.events}

    def row(
        self, now: datetime, columns: Sequence[str] = _COLUMNS, more: Mapping[str, object] | None = None
    ) -> list[object]:
        """Write it as a row of columns: attributes, values computed here, and `more` values of the caller."""
        special = {
            "id": self.id,
            "status": self.status(now),
            "principal": self.text("principal_name"),
            "targets": self.target_names,
            **(more or {}),
        }
        return [special.get(column, self.text(column)) for column in columns]

    def event_rows(self) -> Iterator[list[str]]:
        """Write its events as rows of `_EVENT_COLUMNS`; a refusal has one event."""
        events = self.events
        if self.text("kind") == "refusal":
            events = [
                {
                    "at": self.text("requested_at"),
                    "event": "refused",
                    "by": "knock",
                    "call": self.text("call"),
                    "detail": self.text("detail"),
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
                self.text("principal_name"),
                self.text("source"),
                text,
            ]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"unreadable": text}


def grants(stack: Stack, where: Iterable[AnyOf], order: Order | None = "ascending") -> Iterator[Entry]:
    """Yield the grants that meet all conditions, by the time they were requested."""
    items = stores.of(stack, TRAIL).select([equal("kind", "grant"), *where], order)
    return (Entry(name, values) for name, values in items)


def refusals(stack: Stack, where: Iterable[AnyOf], order: Order | None = "ascending") -> Iterator[Entry]:
    """Yield the refusals that meet all conditions, by their time."""
    items = stores.of(stack, REFUSALS).select([equal("kind", "refusal"), *where], order)
    return (Entry(name, values) for name, values in items)


KINDS = {"grant": (TRAIL, grants), "refusal": (REFUSALS, refusals)}
"""By kind of entry: the variable that names its domain or table, and the function that reads it."""


def conditions(*, principal: str | None, source: str | None, target: str | None) -> dict[str, AnyOf]:
    """Give the conditions of the filters --principal, --source and --target, by their description.

    Raises UsageError for a source that is no address and no CIDR.
    """
    where: dict[str, AnyOf] = {}
    if principal is not None:
        where[f"principal {principal}"] = (
            Where("principal_name", "=", principal),
            Where("principal_id", "=", principal),
        )
    if source is not None:
        try:
            cidr = tags.canonical_source(source)
        except ValueError as error:
            raise UsageError(f"--source: {error}") from error
        where[f"source {cidr}"] = equal("source", cidr)
    if target is not None:
        where[f"target {target}"] = equal("target_name", target)  # a refusal has none
    return where


def live(now: datetime) -> list[AnyOf]:
    """Give the conditions of a live grant. `closed_at` is among them because it has an index."""
    return [
        equal("closed_at", "-"),
        equal("state", "live"),
        (Where("expires_at", ">", tags.show_time(now)),),
    ]


def some(stack: Stack, selected: Iterator[Entry], filters: Mapping[str, AnyOf]) -> Iterator[Entry]:
    """Give the same entries. Raises AdminError if there are none, and a filter has never matched a record."""
    first = next(selected, None)
    if first is not None:
        return chain([first], selected)
    for description, condition in filters.items():
        if not any(next(read(stack, [condition], None), None) for _, read in KINDS.values()):
            raise AdminError(
                f"Nothing on record has the {description}: no grant and no refusal, ever. Is it mistyped?"
            )
    return iter(())


def moment(text: str, now: datetime) -> datetime:
    """Read a time: `2026-11-23`, `2026-11-23T21:17:19Z`, `now`, or how long ago: `24h`. Raises ValueError."""
    if text == "now":
        return now
    try:
        return now - tags.parse_duration(text)
    except ValueError:
        pass  # not a duration: a time, or neither
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError(
            f"a time is like 2026-11-23, 2026-11-23T21:17:19Z, 24h (ago) or now, not {text!r}"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def read_moment(option: str, text: str, now: datetime) -> datetime:
    """Read the time that an option of the command line has. Raises UsageError."""
    try:
        return moment(text, now).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option}: {error}") from error


def milliseconds(at: datetime) -> str:
    """Write a time as `requested_at` is written, so that sorting the texts sorts the times."""
    at = at.astimezone(timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def entries(
    stack: Stack, kinds: Sequence[str], filters: Mapping[str, AnyOf], period: Sequence[AnyOf]
) -> Iterator[Entry]:
    """Yield the entries of these kinds that meet the filters, by the time they were requested.

    Raises AdminError for a filter that no record has ever met.
    """
    reads = (KINDS[kind][1](stack, [*period, *filters.values()]) for kind in kinds)
    merged = heapq.merge(*reads, key=lambda entry: entry.text("requested_at"))
    return some(stack, merged, filters)


def entry(stack: Stack, name: str, kinds: Iterable[str]) -> Entry:
    """Read the entry with this id. Raises AdminError when there is none."""
    for kind in kinds:
        values = stores.of(stack, KINDS[kind][0]).get(name)
        if "kind" in values:
            return Entry(name, values)
    raise AdminError(f"Nothing on record has the id {name}; `knock-admin trail` lists what there is.")


def show(listed: Iterator[Entry], *, now: datetime, output: str, events: bool) -> Result:
    """Print entries, or with `events` their events, one a line. `output` is `table`, `jsonl` or `csv`."""
    if events:
        return Result(None, _events(listed, output))
    if output == "jsonl":
        return Result(None, json_lines(entry.as_json(now) for entry in listed))
    if output == "csv":
        return Result(None, csv_lines((entry.row(now) for entry in listed), _COLUMNS))
    return Result(
        None,
        table(
            _brief(listed, now),
            ("AT", "ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "BY", "WHY"),
        ),
    )


def requested_between(since: datetime | None, until: datetime | None) -> list[AnyOf]:
    """Give the conditions on the time of the request; `until` is exclusive, None is no bound."""
    conditions: list[AnyOf] = []
    # An `order` is the time of the request and the id.
    if since:
        conditions.append((Where("order", ">=", milliseconds(since)),))
    if until:
        conditions.append((Where("order", "<", milliseconds(until)),))
    return conditions


def _events(listed: Iterator[Entry], output: str) -> Iterator[str]:
    rows = in_order_of_time(listed)
    if output == "jsonl":
        return json_lines(dict(zip(_EVENT_COLUMNS, row, strict=True)) for row in rows)
    if output == "csv":
        return csv_lines(rows, _EVENT_COLUMNS)
    return table(rows, [name.upper() for name in _EVENT_COLUMNS])


def in_order_of_time(listed: Iterable[Entry]) -> Iterator[list[str]]:
    """Yield the events of entries as rows, in order of time. The entries come in order of their requests.

    An event is held back until no later entry can have an earlier event. So memory holds the events of grants
    that were live at the same time.
    """
    waiting: list[tuple[str, int, list[str]]] = []
    numbers = count()
    for entry in listed:
        before = _earliest(entry)
        while waiting and waiting[0][0] < before:
            yield heapq.heappop(waiting)[2]
        for row in entry.event_rows():
            heapq.heappush(waiting, (row[0], next(numbers), row))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _earliest(entry: Entry) -> str:
    """Give the time before which no event of an entry can be; empty if the entry's time cannot be read."""
    try:
        return milliseconds(datetime.fromisoformat(entry.text("requested_at").replace("Z", "+00:00")) - SKEW)
    except (ValueError, OverflowError):
        return ""


def _brief(listed: Iterator[Entry], now: datetime) -> Iterator[tuple[str, ...]]:
    for entry in listed:
        status = entry.status(now)
        why = [entry.text("reason"), entry.text("end_reason"), entry.text("detail")]
        yield (
            entry.text("requested_at")[:19].replace("T", " "),
            entry.id,
            status,
            entry.text("principal_name"),
            entry.text("source"),
            entry.target_names or "-",
            (entry.text("ended_at") or entry.text("expires_at"))[:19].replace("T", " ") or "-",
            entry.text("ended_by") or "-",
            " / ".join(text for text in why if text) or "-",
        )
