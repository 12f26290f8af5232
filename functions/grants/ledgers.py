"""The ledgers of a stack in a store: one item a source, replaced whole by one conditional write.

A ledger is one text in numbered parts of at most 1,024 bytes (SimpleDB's limit for a value), with their count
and the token. Parts beyond the count are left from a longer text, and ignored. So a write never needs more
room than the item has, and an empty ledger's item is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from .errors import StoreRefused
from .ledger import LARGEST, Ledger, Snapshot, decode, encode
from .store import PART, Conflict, Expected, Store, Values
from .values import Unreadable


class Ledgers:
    """The ledgers in a store. `token` makes a random token: an item made again never repeats one."""

    def __init__(self, store: Store, token: Callable[[], str] = lambda: os.urandom(12).hex()) -> None:
        self._store = store
        self._token = token

    def read(self, source: str) -> Snapshot:
        """Read a source's ledger, an empty one where there is no item.

        Raises StoreUnavailable, and StoreRefused for one that cannot be read.
        """
        values = self._store.get(source)
        return _snapshot(source, values) if values else Snapshot(Ledger(source), None)

    def write(self, before: Snapshot, after: Ledger) -> Snapshot | None:
        """Write a ledger by compare-and-set on the token of `before`; None where that does not hold any more.

        A client's retry after a lost answer meets the token that it wrote itself: that is success. Raises
        StoreUnavailable, StoreRefused.
        """
        expected = Expected("token", before.token)
        if not after:
            return self._delete(before, after, expected)
        token, text = self._token(), encode(after)
        if len(text) > LARGEST:
            raise StoreRefused(f"the ledger of {after.source} is longer than an item: {len(text)} bytes")
        parts = [text[at : at + PART].decode("ascii") for at in range(0, len(text), PART)]
        values = {"token": token, "parts": str(len(parts))}
        values |= {f"part_{number:03}": part for number, part in enumerate(parts)}
        try:
            self._store.put(after.source, values, expected=expected)
        except Conflict:
            if self._store.get(after.source).get("token") != (token,):
                return None
        return Snapshot(after, token)

    def _delete(self, before: Snapshot, after: Ledger, expected: Expected) -> Snapshot | None:
        if before.token is None:
            return before
        try:
            self._store.delete(after.source, expected=expected)
        except Conflict:
            if self._store.get(after.source):
                return None
        return Snapshot(after, None)

    def all(self) -> Iterator[Snapshot | Unreadable]:
        """Walk through every source's ledger. One call a page."""
        for name, values in self._store.query(()):
            try:
                yield _snapshot(name, values)
            except StoreRefused as error:
                yield Unreadable(name, str(error))


def _snapshot(source: str, values: Values) -> Snapshot:
    try:
        (token,), (count,) = values["token"], values["parts"]
        text = "".join(part for number in range(int(count)) for (part,) in [values[f"part_{number:03}"]])
        return Snapshot(decode(text.encode(), source), token)
    except (KeyError, ValueError) as error:
        raise StoreRefused(f"the ledger of {source} cannot be read: {error}"[:300]) from error
