"""SimpleDB's data: domains, items and attributes that are sets of values, with every operation atomic.

A `Store` is one region of one account. It keeps the developer guide's promises, is always consistent (so
ConsistentRead has no effect, and a client that omits it is not noticed here), and is fast with 100,000 items
in a domain.

How Select is fast. A domain keeps its item names sorted and, for each attribute that a Select has used, an
index: the attribute's distinct values, sorted, and the items with each value. A Select takes the cheaper of
two plans, by an estimate: collect the items of the best index, test them and sort them; or walk the index of
the requested order, test each item, and stop when the page is full. The first plan suits few candidates, the
second many.

Indices are built at the first Select that needs them, so a write pays only for attributes that are selected.
Sorted lists with `bisect` rather than a tree or the sortedcontainers package: inserting into a list of
100,000 strings takes tens of microseconds, and it saves a dependency.

Items are never changed in place: a write builds new items and stores them at the end. So a refused call has
changed nothing, and an item that was read stays the same while it is being turned into XML.
"""

from __future__ import annotations

import re
import sys
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from local.simpledb.errors import SimpleDBError, invalid_value, missing
from local.simpledb.select import (
    ITEM_NAME,
    And,
    Intersection,
    NotNull,
    Or,
    Predicate,
    Query,
    Spans,
    Values,
    overlap,
)

LONGEST = 1024
MOST_PAIRS = 256
MOST_ITEMS_IN_A_BATCH = 25
MOST_DOMAINS = 250
MOST_DOMAINS_LISTED = 100

_DOMAIN_NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}")
_SPANS_SUMMED = 32
"""An estimate sums the items of up to so many distinct values; of more it takes the average."""


@dataclass(frozen=True, slots=True)
class Put:
    """One name and value to write."""

    name: str
    value: str
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """An attribute to delete; with a value, only that value of it."""

    name: str
    value: str | None = None


@dataclass(frozen=True)
class Expected:
    """The condition of a write: the attribute has this value only, or, with None, does not exist."""

    name: str
    value: str | None


@dataclass(slots=True)
class Item:
    """An item as written. `xml` caches its XML, which is valid for ever: an item never changes."""

    attributes: dict[str, tuple[str, ...]]
    xml: str | None = field(default=None, compare=False)


Position = tuple[str, str]
"""A row's place in its Select's order: the value it is sorted by, then its name."""

Row = tuple[Position, Item]


class _Names:
    """The item names of a domain as an index: each name is a value of one item."""

    one_value_each = True

    def __init__(self) -> None:
        self.values: list[str] = []

    def items(self, value: str) -> Iterable[str]:
        return (value,)

    def weight(self, start: int, end: int) -> int:
        return end - start


class _Index:
    """The distinct values of an attribute, sorted, and the items with each value."""

    def __init__(self, attribute: str, items: dict[str, Item]) -> None:
        self._items: dict[str, set[str]] = {}
        self._pairs = 0
        self._having = 0
        for name, item in items.items():
            values = item.attributes.get(attribute)
            if values:
                self._having += 1
                self._pairs += len(values)
                for value in values:
                    self._items.setdefault(value, set()).add(name)
        self.values = sorted(self._items)

    @property
    def one_value_each(self) -> bool:
        return self._pairs == self._having

    def items(self, value: str) -> Iterable[str]:
        return self._items[value]

    def weight(self, start: int, end: int) -> int:
        """Estimate how many items have the values from start to end."""
        if end - start <= _SPANS_SUMMED:
            return sum(len(self._items[value]) for value in self.values[start:end])
        return (end - start) * self._pairs // len(self.values)

    def change(self, name: str, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        """Update the index after an item's write."""
        self._having += bool(after) - bool(before)
        self._pairs += len(after) - len(before)
        for value in before:
            if value not in after:
                items = self._items[value]
                items.remove(name)
                if not items:
                    del self._items[value]
                    del self.values[bisect_left(self.values, value)]
        for value in after:
            if value not in before:
                if value not in self._items:
                    self._items[value] = set()
                    insort(self.values, value)
                self._items[value].add(name)


_Stretch = tuple["_Names | _Index", int, int]


class Domain:
    """The items of one domain."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._names = _Names()
        self._indices: dict[str, _Index] = {}

    def write(self, name: str, attributes: dict[str, tuple[str, ...]]) -> None:
        """Store an item's attributes; without any, the item does not exist."""
        item = self.items.get(name)
        before = item.attributes if item else {}
        if attributes:
            self.items[name] = Item(attributes)
            if item is None:
                insort(self._names.values, name)
        elif item is not None:
            del self.items[name]
            del self._names.values[bisect_left(self._names.values, name)]
        for attribute, index in self._indices.items():
            old, new = before.get(attribute, ()), attributes.get(attribute, ())
            if old is not new:
                index.change(name, old, new)

    def checked(self, name: str, expected: Expected | None) -> dict[str, tuple[str, ...]]:
        """Return an item's attributes, in a dict to change, if the condition holds."""
        item = self.items.get(name)
        attributes = dict(item.attributes) if item else {}
        if expected is not None:
            _check_expected(attributes.get(expected.name, ()), expected)
        return attributes

    def _index(self, attribute: str | None) -> _Names | _Index:
        if attribute is ITEM_NAME:
            return self._names
        index = self._indices.get(attribute)
        if index is None:
            index = self._indices[attribute] = _Index(attribute, self.items)
        return index

    def find(self, query: Query, after: Position | None, most: int | None) -> list[Row]:
        """Return the first rows a query finds after a position, in its order; all of them without `most`.

        Rows of a query without order by are in the order of their names: the service promises no order, but
        pages must neither overlap nor leave gaps. An item with several values of the sort attribute is sorted
        by the least when ascending and by the greatest when descending; an item without the attribute is left
        out ("returned results must contain the attribute on which you are sorting").
        """
        index = self._index(query.order)
        spans = self._walk(query, index, after)
        walk = sum(index.weight(start, end) for start, end in spans)
        stretches = None if query.where is None else self._candidates(query.where)
        if stretches is not None:
            candidates = sum(source.weight(start, end) for source, start, end in stretches)
            if most is not None:
                # Matches are spread about evenly along the walk, so a full page ends it early.
                walk = min(walk, most * len(self.items) // max(candidates, 1))
            rows = self._along(query, after, most, index, spans, candidates) if walk <= candidates else None
            return self._collect(query, after, most, stretches) if rows is None else rows
        return self._along(query, after, most, index, spans, len(self.items)) or []

    def _position(self, query: Query, name: str, item: Item) -> Position | None:
        if query.order is ITEM_NAME:
            return name, name
        values = item.attributes.get(query.order)
        if not values:
            return None
        return (max(values) if query.descending else min(values)), name

    def _collect(
        self, query: Query, after: Position | None, most: int | None, stretches: list[_Stretch]
    ) -> list[Row]:
        names = {
            name
            for source, start, end in stretches
            for value in source.values[start:end]
            for name in source.items(value)
        }
        rows: list[Row] = []
        for name in names:
            item = self.items[name]
            position = self._position(query, name, item)
            if position is None or (after and (position >= after if query.descending else position <= after)):
                continue
            if query.where is None or query.where(name, item.attributes):
                rows.append((position, item))
        rows.sort(key=lambda row: row[0], reverse=query.descending)
        return rows[:most]

    def _along(
        self,
        query: Query,
        after: Position | None,
        most: int | None,
        index: _Names | _Index,
        spans: Spans,
        patience: int,
    ) -> list[Row] | None:
        """Walk the order's index. None: `patience` items were tested, and the page is still not full."""
        rows: list[Row] = []
        for start, end in reversed(spans) if query.descending else spans:
            for at in reversed(range(start, end)) if query.descending else range(start, end):
                value = index.values[at]
                for name in sorted(index.items(value), reverse=query.descending):
                    position = (value, name)
                    if after and (position >= after if query.descending else position <= after):
                        continue
                    item = self.items[name]
                    if not index.one_value_each and self._position(query, name, item) != position:
                        continue
                    if query.where is None or query.where(name, item.attributes):
                        rows.append((position, item))
                        if len(rows) == most:
                            return rows
                    patience -= 1
                    if patience < 0:
                        return None
        return rows

    def _walk(self, query: Query, index: _Names | _Index, after: Position | None) -> Spans:
        """Return the spans of the order's index that a walk has to visit."""
        values = index.values
        spans: Spans = [(0, len(values))] if values else []
        if after and query.descending:
            spans = overlap(spans, [(0, bisect_right(values, after[0]))])
        elif after:
            spans = overlap(spans, [(bisect_left(values, after[0]), len(values))])
        # Of an item with several values, the sort value may be outside the predicate's spans.
        if query.where is not None and index.one_value_each:
            parts: Sequence[Predicate] = (
                query.where.parts if isinstance(query.where, And | Intersection) else (query.where,)
            )
            for part in parts:
                if isinstance(part, Values) and part.attribute == query.order:
                    spans = overlap(spans, part.test.spans(values))
        return spans

    def _candidates(self, predicate: Predicate) -> list[_Stretch] | None:
        """Return spans of indices that contain all matches of a predicate; None when no index does."""
        match predicate:
            case Values(attribute, test):
                index = self._index(attribute)
                return [(index, start, end) for start, end in test.spans(index.values)]
            case NotNull(attribute):
                index = self._index(attribute)
                return [(index, 0, len(index.values))]
            case And(parts) | Intersection(parts):
                options = [stretches for part in parts if (stretches := self._candidates(part)) is not None]
                return min(
                    options, key=lambda stretches: sum(i.weight(a, b) for i, a, b in stretches), default=None
                )
            case Or(parts):
                joined: list[_Stretch] = []
                for part in parts:
                    stretches = self._candidates(part)
                    if stretches is None:
                        return None
                    joined += stretches
                return joined
            case _:
                return None


class Store:
    """The domains of one region. Every method is atomic and raises `SimpleDBError` as the service does."""

    def __init__(self) -> None:
        self._domains: dict[str, Domain] = {}
        self._lock = Lock()

    def _domain(self, name: str) -> Domain:
        _check_domain_name(name)
        domain = self._domains.get(name)
        if domain is None:
            raise SimpleDBError("NoSuchDomain", "The specified domain does not exist.")
        return domain

    def create_domain(self, name: str) -> None:
        """Create a domain; does nothing when it exists."""
        _check_domain_name(name)
        with self._lock:
            if name not in self._domains and len(self._domains) >= MOST_DOMAINS:
                raise SimpleDBError("NumberDomainsExceeded", "The domain limit was exceeded.", 409)
            self._domains.setdefault(name, Domain())

    def delete_domain(self, name: str) -> None:
        """Delete a domain and its items; does nothing when it does not exist."""
        _check_domain_name(name)
        with self._lock:
            self._domains.pop(name, None)

    def list_domains(self, after: str, most: int) -> list[str]:
        """Return up to `most` domain names in order, those after `after`."""
        with self._lock:
            names = sorted(self._domains)
        start = bisect_right(names, after)
        return names[start : start + most]

    def domain_metadata(self, name: str) -> dict[str, int]:
        """Count a domain. Sizes are in bytes of UTF-8; the Timestamp is now, in whole seconds."""
        with self._lock:
            items = dict(self._domain(name).items)
        attributes = {attribute for item in items.values() for attribute in item.attributes}
        values = [
            value
            for item in items.values()
            for attribute_values in item.attributes.values()
            for value in attribute_values
        ]
        return {
            "ItemCount": len(items),
            "ItemNamesSizeBytes": sum(map(_size, items)),
            "AttributeNameCount": len(attributes),
            "AttributeNamesSizeBytes": sum(map(_size, attributes)),
            "AttributeValueCount": len(values),
            "AttributeValuesSizeBytes": sum(map(_size, values)),
            "Timestamp": int(time.time()),
        }

    def get(self, domain: str, item: str) -> Item:
        """Return an item; an item that does not exist has no attributes."""
        _check_item_name(item)
        with self._lock:
            return self._domain(domain).items.get(item) or Item({})

    def put(self, domain: str, writes: dict[str, list[Put]], expected: Expected | None = None) -> None:
        """Write attributes of one or more items, all or nothing. `expected` is for each item's write."""
        for item, puts in writes.items():
            _check_puts(item, puts)
        with self._lock:
            target = self._domain(domain)
            items = {item: _with(target.checked(item, expected), puts) for item, puts in writes.items()}
            for item, attributes in items.items():
                target.write(item, attributes)

    def delete(self, domain: str, writes: dict[str, list[Delete]], expected: Expected | None = None) -> None:
        """Delete from one or more items, all or nothing; ignores attributes and values that do not exist.

        An empty list of deletes means the whole item.
        """
        for item, deletes in writes.items():
            _check_item_name(item)
            for delete in deletes:
                _check_attribute(delete.name, delete.value or "")
        with self._lock:
            target = self._domain(domain)
            items = {
                item: _without(target.checked(item, expected), deletes) for item, deletes in writes.items()
            }
            for item, attributes in items.items():
                target.write(item, attributes)

    def select(self, query: Query, after: Position | None, most: int | None) -> list[Row]:
        """Return the rows of a query as `Domain.find` does."""
        with self._lock:
            return self._domain(query.domain).find(query, after, most)


def _check_expected(values: tuple[str, ...], expected: Expected) -> None:
    """Refuse a write whose condition these values of the attribute do not meet."""
    name = expected.name
    if expected.value is None:
        if values:
            message = f"Conditional check failed. Attribute ({name}) value exists."
            raise SimpleDBError("ConditionalCheckFailed", message, 409)
        return
    if not values:
        raise SimpleDBError("AttributeDoesNotExist", f"Attribute ({name}) does not exist", 404)
    if len(values) > 1:
        raise SimpleDBError(
            "MultiValuedAttribute",
            f"Attribute ({name}) is multi-valued. "
            "Conditional check can only be performed on a single-valued attribute",
            409,
        )
    (value,) = values
    if value != expected.value:
        message = (
            f"Conditional check failed. Attribute ({name}) value is ({value}) "
            f"but was expected ({expected.value})"
        )
        raise SimpleDBError("ConditionalCheckFailed", message, 409)


def _with(attributes: dict[str, tuple[str, ...]], puts: list[Put]) -> dict[str, tuple[str, ...]]:
    """Add values. Replace applies to earlier values only: values of the same call are all kept."""
    # The keys of a dict are a set that keeps its order.
    fresh: dict[str, dict[str, None]] = {put.name: {} for put in puts if put.replace}
    for put in puts:
        if put.name not in fresh:
            fresh[put.name] = dict.fromkeys(attributes.get(put.name, ()))
        fresh[put.name][put.value] = None
    # Interned, as every item has the same few names.
    attributes |= {sys.intern(name): tuple(values) for name, values in fresh.items()}
    if sum(map(len, attributes.values())) > MOST_PAIRS:
        raise SimpleDBError("NumberItemAttributesExceeded", "Too many attributes in this item.", 409)
    return attributes


def _without(attributes: dict[str, tuple[str, ...]], deletes: list[Delete]) -> dict[str, tuple[str, ...]]:
    """Remove values, whole attributes or, without deletes, all attributes."""
    if not deletes:
        return {}
    for delete in deletes:
        values = attributes.pop(delete.name, ())
        if delete.value is not None:
            remaining = tuple(value for value in values if value != delete.value)
            if remaining:
                attributes[delete.name] = remaining
    return attributes


def _size(text: str) -> int:
    return len(text.encode())


def _too_long(text: str) -> bool:
    # A character takes at most four bytes, so short texts need not be encoded to be measured.
    return len(text) * 4 > LONGEST and _size(text) > LONGEST


def _check_domain_name(name: str) -> None:
    if not _DOMAIN_NAME.fullmatch(name):
        raise invalid_value(name, "DomainName")


def _check_item_name(name: str) -> None:
    if not name:
        raise invalid_value(name, "Item", "The empty string is an illegal item name")
    if _too_long(name):
        raise invalid_value(name, "Item", f"Value exceeds max length of {LONGEST}.")


def _check_attribute(name: str, value: str) -> None:
    if not name:
        raise invalid_value(name, "Name", "The empty string is an illegal attribute name")
    if _too_long(name):
        raise invalid_value(name, "Name", f"Value exceeds maximum length of {LONGEST}.")
    if _too_long(value):
        raise invalid_value(value, "Value", f"Value exceeds maximum length of {LONGEST}.")


def _check_puts(item: str, puts: list[Put]) -> None:
    _check_item_name(item)
    if not puts:
        raise missing(f"No attributes for item ='{item}'.")
    if len(puts) > MOST_PAIRS:
        raise SimpleDBError(
            "NumberSubmittedAttributesExceeded",
            f"Too many attributes for item {item} in a single call. "
            f"Up to {MOST_PAIRS} attributes per call allowed.",
            409,
        )
    for put in puts:
        _check_attribute(put.name, put.value)
