"""Refusals: the calls that were refused, in a store of their own.

The function that faces the internet writes it, and so needs no right to write the trail.
"""

from __future__ import annotations

from datetime import datetime

from .store import Store
from .trail import cut
from .values import Principal, show_time

NONE = "-"


class Refusals:
    """The refusals in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(
        self,
        refusal_id: str,
        principal: Principal,
        source: str,
        at: datetime,
        call: str,
        right: str,
        detail: str,
    ) -> None:
        """Record that a call was refused. Twice with one id is one record.

        Raises StoreUnavailable, StoreRefused.
        """
        self._store.put(
            refusal_id,
            {
                "kind": "refusal",
                "principal_id": principal.id,
                "principal_name": cut(principal.name, 256),
                "source": source,
                "requested_at": show_time(at),
                "order": f"{show_time(at)} {refusal_id}",
                "call": call,
                "right": right or NONE,
                "detail": cut(detail, 1000),
            },
        )
