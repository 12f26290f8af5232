"""What moto's DynamoDB lacks: a write that is whole or none, and one of many attributes.

moto reads an item, tests its condition and changes it in place, in as many threads as there are requests. So
two writers could both find the same condition to hold, and a reader could find an item half written. On AWS a
write of one item is one step
(https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.ReadConsistency.html); here one
request is answered at a time.

moto also leaves what an update had changed before it failed, and the item that it made for it; here it is
taken back.

moto copies an update's syntax tree, which is as deep as there are attributes, some frames each. So the 252 of
the largest ledger were too many for Python, while AWS's limit is an expression of 4 KB.
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

    Calling it again changes nothing; nothing takes it back.
    """
    if DynamoHandler.call_action is not _one_at_a_time:
        DynamoHandler.call_action = _one_at_a_time  # type: ignore[method-assign]
        DynamoDBBackend.update_item = _whole_update  # type: ignore[method-assign]


def _locked(call: Callable[[DynamoHandler], Any]) -> Callable[[DynamoHandler], Any]:
    @functools.wraps(call)
    def locked(handler: DynamoHandler) -> Any:
        with _lock:  # the answer is written within it too: it is made of the items themselves
            before = sys.getrecursionlimit()
            sys.setrecursionlimit(max(before, DEEP))
            try:
                return call(handler)
            finally:
                sys.setrecursionlimit(before)

    return locked


def _whole(update: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(update)
    def whole(backend: DynamoDBBackend, table_name: str, key: Any, *args: Any, **arguments: Any) -> Any:
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

    return whole


_one_at_a_time = _locked(DynamoHandler.call_action)
_whole_update = _whole(DynamoDBBackend.update_item)
