"""The trail: the audit record. Entries are only ever added, and how a grant ended is written once.

One item is one grant (docs/architecture.md has the attributes). Which rules exist, and which grants claim
them, is the ledger's to say. Reads are consistent. Every write whose order matters carries a condition, so
that a second writer learns that it is second. The first writer of an end wins, also where the grant was not
recorded yet: then an ended record is written, and a late authorize finds it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import GrantEnded, GrantNotFound, StoreRefused, StoreUnavailable
from .store import PART, Conflict, Expected, Store, Values, Where
from .values import (
    ENDS,
    MOST_RULES,
    Event,
    Grant,
    Opened,
    Ports,
    Principal,
    Record,
    State,
    Target,
    Unreadable,
    compact_json,
    parse_time,
    show_second,
    show_time,
)

logger = logging.getLogger("knock")

NOT_YET = "-"  # SimpleDB cannot ask for what is missing by index, so "not yet closed" is a value
LIVE = "live"
WHILE_LIVE = Expected("state", LIVE)
NOT_RECORDED = Expected("kind", None)
NOT_CLOSED = Expected("closed_at", NOT_YET)

# What one value of an event may take of its 1,024 bytes as JSON, which makes two bytes of some letters.
LONGEST_NAME, LONGEST_REASON, LONGEST_LIST = 128, 300, 800


@dataclass(frozen=True, slots=True)
class Page:
    """Some grants, newest first, and the `order` to go on from, if there are more."""

    records: tuple[Record, ...]
    after: str | None


class Trail:
    """The trail in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ------------------------------------------------------------------ writing

    def record(self, grant: Grant) -> Record:
        """Record a grant before its rules are authorized. An earlier record of it stands, and is given."""
        try:
            self._store.put(grant.id, *_new(grant), expected=NOT_RECORDED)
        except Conflict:
            earlier = self.get(grant.id)
            if earlier is None:  # an item without a kind is none of the trail's own
                raise StoreRefused(f"the trail's item {grant.id!r} is no grant") from None
            return earlier
        return Record(grant, events=(_requested(grant),))

    def authorize(
        self, grant_id: str, at: datetime, opened: Sequence[Opened], left_out: Sequence[str] = ()
    ) -> None:
        """Record that the grant's rules are open, while it is live. Raises GrantEnded. Twice is once.

        Its event is a single value, which a second writer replaces: a set would grow with every run of the
        same input, until the item has no room for the end. `left_out` names the targets that the knock did
        not name and that could not be opened.
        """
        event = Event(at, "authorized", "knock", {"left_out": _fitting(left_out)} if left_out else {})
        values = {"authorized_at": show_time(at), "authorized": _text(event)}
        sets = [("rule", compact_json(rule.as_json())) for rule in opened[:MOST_RULES]]
        try:
            self._store.put(grant_id, values, sets, expected=WHILE_LIVE)
        except Conflict as error:
            raise GrantEnded(f"the grant {grant_id} has ended; nothing is opened for it") from error

    def end(
        self, grant_id: str, how: State, at: datetime, by: str, reason: str, grant: Grant | None = None
    ) -> bool:
        """Record the end of a grant. The first writer wins: True says that it was this one.

        False says that it had ended before, perhaps by this writer, whose first answer was lost. Where the
        grant was not recorded yet, `grant` is recorded as ended; without `grant`, raises GrantNotFound.
        """
        by, reason = cut(by, 256), cut(reason, 1000)
        detail = {"reason": cut(reason, LONGEST_REASON)} if reason else {}
        event = Event(at, how, cut(by, LONGEST_NAME), detail)
        values = {"state": how, "ended_at": show_time(at), "ended_by": by}
        values |= {"end_reason": reason} if reason else {}
        for _ in range(3):  # a conflict is a write in between, and a record is begun and ended once
            try:
                self._store.put(grant_id, values, [("event", _text(event))], expected=WHILE_LIVE)
                return True
            except Conflict as conflict:
                if not conflict.missing:
                    return False
            if grant is None:
                raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
            item, sets = _new(grant)
            try:
                item |= values | {"unopened": "true"}
                self._store.put(grant_id, item, [*sets, ("event", _text(event))], expected=NOT_RECORDED)
                return True
            except Conflict:
                continue
        raise StoreUnavailable(f"the trail answers that {grant_id} is recorded, and that it is not")

    def close(
        self, grant_id: str, at: datetime, closer: str, revoked: Iterable[str], kept: Iterable[str]
    ) -> bool:
        """Record that an ended grant's rules are all gone, or another's. True where this closer wrote it.

        `closer` names the request, so that its retry after a lost answer recognizes its own write. `revoked`
        names rules by id, `kept` by the key that other live grants claim.
        """
        detail = {"revoked": sorted(revoked)[:20], "kept": sorted(kept)[:4]}
        event = Event(at, "closed", "knock", {key: value for key, value in detail.items() if value})
        values = {"closed_at": show_time(at), "closer": cut(closer, 256)}
        try:
            self._store.put(grant_id, values, [("event", _text(event))], expected=NOT_CLOSED)
        except Conflict:
            return self._store.get(grant_id).get("closer") == (values["closer"],)
        return True

    # ------------------------------------------------------------------ reading

    def get(self, grant_id: str) -> Record | None:
        """Read one grant as it is now, or None where there is none of that id."""
        return _record(grant_id, self._store.get(grant_id))

    def unclosed(self) -> Iterator[Record | Unreadable]:
        """Walk through every grant that is live or being closed, and the items that cannot be read."""
        for name, values in self._store.query((Where("closed_at", "=", NOT_YET),)):
            try:
                record = _record(name, values)
            except StoreRefused as error:
                yield Unreadable(name, str(error))
            else:
                if record:
                    yield record

    def count_live(self, principal_id: str, now: datetime) -> int:
        """Count a principal's live grants."""
        return self._store.count([Where("principal_id", "=", principal_id), *_live(now)])

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        live_after: datetime | None = None,
        principal_id: str | None = None,
        principal_name: str | None = None,
        source: str | None = None,
        target: str | None = None,
        state: str | None = None,
    ) -> Page:
        """List grants, newest first, from beyond `after`. All conditions given must hold.

        `live_after` keeps those live at that time. An item that cannot be read is left out and logged; the
        guard reports it. One call, or a few where a page of the store's is shorter than requested.
        """
        equal = {
            "principal_id": principal_id,
            "principal_name": principal_name,
            "source": source,
            "state": state,
            "target_name": target,
        }
        where = [Where("kind", "=", "grant")]
        where += [Where("order", "<", after)] if after else []
        where += [Where(name, "=", value) for name, value in equal.items() if value is not None]
        where += _live(live_after) if live_after else []
        records: list[Record] = []
        for name, values in self._store.query(where, newest_first=True, page=limit + 1):
            try:
                record = _record(name, values)
            except StoreRefused:
                logger.exception("record_unreadable", extra={"grant_id": name})
                continue
            if record:
                records.append(record)
            if len(records) > limit:
                return Page(tuple(records[:limit]), records[limit - 1].grant.order)
        return Page(tuple(records), None)


def _live(now: datetime) -> list[Where]:
    # A live grant is not closed: a store that keeps an index of the unclosed finds it there.
    return [
        Where("closed_at", "=", NOT_YET),
        Where("state", "=", LIVE),
        Where("expires_at", ">", show_second(now)),
    ]


# ---------------------------------------------------------------------------- items


def _requested(grant: Grant) -> Event:
    return Event(grant.requested_at, "requested", cut(grant.principal.name, LONGEST_NAME))


def _fitting(names: Sequence[str]) -> list[str]:
    """Give as many of some names as an event holds, from the first."""
    fitting: list[str] = []
    for name in names:
        if len(compact_json([*fitting, name]).encode()) > LONGEST_LIST:
            break
        fitting.append(name)
    return fitting


def _new(grant: Grant) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Write a new grant's item: single values, and sets."""
    values = {
        "kind": "grant",
        "state": LIVE,
        "closed_at": NOT_YET,
        "principal_id": grant.principal.id,
        "principal_name": grant.principal.name,
        "source": grant.source,
        "requested_at": show_time(grant.requested_at),
        "expires_at": show_second(grant.expires_at),
        "order": grant.order,
    }
    values |= {"reason": grant.reason} if grant.reason else {}
    values |= {"renews": grant.renews} if grant.renews else {}
    values |= {
        f"input_{number:02}": part for number, part in enumerate(_parts(compact_json(grant.as_input())))
    }
    names = sorted({target.name for target in grant.targets})
    return values, [("event", _text(_requested(grant))), *(("target_name", name) for name in names)]


def _parts(text: str) -> list[str]:
    """Cut a text into parts of PART bytes of UTF-8 at most, between letters."""
    parts, part, size = [], "", 0
    for letter in text:
        length = len(letter.encode())
        if size + length > PART:
            parts.append(part)
            part, size = "", 0
        part, size = part + letter, size + length
    return [*parts, part]


def _text(event: Event) -> str:
    return compact_json(event.as_json())


def cut(text: str, most: int) -> str:
    """Make one printable line of a caller's text, of so many bytes of UTF-8 at most.

    SimpleDB refuses a value of more than 1,024 bytes, and recording an end must not fail for its reason.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line.encode(errors="replace")[:most].decode(errors="ignore")


def _record(name: str, values: Values) -> Record | None:
    """Read an item. None for one that is no grant; raises StoreRefused for one that cannot be read."""
    if values.get("kind") != ("grant",):
        return None
    try:
        single = {key: texts[0] for key, texts in values.items()}
        text = "".join(single[key] for key in sorted(values) if key.startswith("input_"))
        state = single["state"]
        if state != LIVE and state not in ENDS:
            raise ValueError(f"unknown state {state!r}")
        grant = _grant(name, json.loads(text))
        rules = [Opened.from_json(json.loads(rule), grant.source) for rule in values.get("rule", ())]
        texts = (*values.get("event", ()), *values.get("authorized", ()))
        events = [Event.from_json(json.loads(text)) for text in texts]
        return Record(
            grant,
            state,  # type: ignore[arg-type]  # checked just above
            parse_time(single["authorized_at"]) if "authorized_at" in single else None,
            tuple(sorted(rules, key=lambda rule: (rule.target, rule.key))),
            parse_time(single["ended_at"]) if "ended_at" in single else None,
            single.get("ended_by", ""),
            single.get("end_reason", ""),
            None if single["closed_at"] == NOT_YET else parse_time(single["closed_at"]),
            single.get("closer", ""),
            "unopened" in single,
            tuple(sorted(events, key=lambda event: event.at)),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreRefused(f"the trail's item {name!r} cannot be read: {error}"[:300]) from error


def _grant(name: str, value: dict[str, Any]) -> Grant:
    """Read a recorded input. It was checked before it was recorded, so its id is taken as it is."""
    return Grant(
        name,
        Principal(value["principal"]["id"], value["principal"]["name"]),
        value["source"],
        tuple(
            Target(target["name"], tuple(map(Ports.parse, target["ports"])), tuple(target["groups"]))
            for target in value["targets"]
        ),
        parse_time(value["requested_at"]),
        parse_time(value["expires_at"]),
        value["reason"],
        value["by_name"],
        value.get("renews"),
        value["nonce"],
    )
