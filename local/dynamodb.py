"""Mends of moto's DynamoDB: atomic writes, and updates of many attributes.

moto reads an item, tests its condition and changes it in place, in as many threads as there are requests. So
the same condition could hold for two writers, and a reader could read a half-written item. On AWS a write of
one item is atomic
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.ReadConsistency.html); here
requests are answered one at a time.

moto keeps the changes that a failed update had made so far, and the item it had created for the update; here
both are undone.

moto copies an update's syntax tree by recursion, some frames for each attribute. So an update of the largest
ledger's 252 attributes reached Python's recursion limit, while AWS limits an expression to 4 KB.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.responses import DynamoHandler

__all__ = ["install"]

DEEP = 10_000  # frames

_lock = threading.RLock()


def install() -> None:
    """Mend moto in this process, before a mock or a server starts.

    A second call changes nothing. The mends cannot be undone.
    """
    if DynamoHandler.call_action is not _one_at_a_time:
        DynamoHandler.call_action = _one_at_a_time  # type: ignore[method-assign]
        DynamoDBBackend.update_item = _atomic_update  # type: ignore[method-assign]


def _locked(call: Callable[[DynamoHandler], Any]) -> Callable[[DynamoHandler], Any]:
    @functools.wraps(call)
    def locked(handler: DynamoHandler) -> Any:
        with _lock:  # held while the answer is serialized too, which reads the stored items
            before = sys.getrecursionlimit()
            sys.setrecursionlimit(max(before, DEEP))
            try:
                return call(handler)
            finally:
                sys.setrecursionlimit(before)

    return locked


def _undoing(update: Callable[..., Any]) -> Callable[..., Any]:
    """Make an update that is undone if it fails."""

    @functools.wraps(update)
    def atomic(backend: DynamoDBBackend, table_name: str, key: Any, *args: Any, **arguments: Any) -> Any:
        table = backend.get_table(table_name)
        keys = backend.get_keys_value(table, key)
        before = copy.deepcopy(table.get_item(*keys))
        try:
            return update(backend, table_name, key, *args, **arguments)
        except BaseException:
            item = table.get_item(*keys)
            if item and before:
                item.attrs = before.attrs
            elif item:
                table.delete_item(*keys)
            raise

    return atomic


_one_at_a_time = _locked(DynamoHandler.call_action)
_atomic_update = _undoing(DynamoDBBackend.update_item)
