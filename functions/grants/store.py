"""What trail, ledger and refusals need of a store: items of named values, and writes with one condition each.

An item has a name and attributes; an attribute has one text, or is a set of texts. A write has one condition
at most, since SimpleDB takes no more
(https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/ConditionalPut.html). Reads are consistent:
they show every write that was answered before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import KnockError

Values = Mapping[str, tuple[str, ...]]

PART = 1024  # bytes: what SimpleDB takes as a value. A longer text is cut into parts.


class Conflict(KnockError):
    """The condition of a write did not hold; nothing was written.

    `missing`: the item lacks the attribute that the condition names.
    """

    def __init__(self, *, missing: bool) -> None:
        super().__init__("the condition of the write did not hold")
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Expected:
    """The condition of a write: the attribute has this text, or, with None, the item does not have it."""

    attribute: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Where:
    """One condition of a query; texts compare as texts."""

    attribute: str
    is_: Literal["=", "<", ">"]
    text: str


class Store(Protocol):
    """One domain or table. Every method raises StoreUnavailable or StoreRefused."""

    def get(self, name: str) -> Values:
        """Read an item; empty where there is none."""
        ...

    def put(
        self,
        name: str,
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,
    ) -> None:
        """Replace single values and add to sets, in one write. Raises Conflict."""
        ...

    def delete(self, name: str, *, expected: Expected) -> None:
        """Delete an item. Raises Conflict."""
        ...

    def query(
        self, where: Sequence[Where], *, newest_first: bool = False, page: int = 2500
    ) -> Iterator[tuple[str, Values]]:
        """Walk through the items for which `where` holds, newest `order` first or unsorted; a call a page."""
        ...

    def count(self, where: Sequence[Where]) -> int:
        """Count the items for which all of `where` holds."""
        ...
