"""The cache of rights, used by several threads at once."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone

from grants.rights import _Cache


def test_two_threads_may_read_and_keep_answers_at_the_same_time() -> None:
    """A second thread stores its answer while this one iterates over the stored ones.

    Mutation: functions/grants/rights.py:
    `threading.Lock()` -> `__import__("contextlib").nullcontext()`
    """
    walking, stored = threading.Event(), threading.Event()
    here = threading.current_thread()

    class Moment(datetime):
        def __sub__(self, other: object) -> timedelta:  # type: ignore[override]
            if threading.current_thread() is here and armed:  # the interpreter may switch threads at any step
                walking.set()
                stored.wait(0.2)
            return datetime.__sub__(self, other)  # type: ignore[no-any-return, operator]

    armed = False
    cache = _Cache(lambda: Moment.now(timezone.utc))
    cache.get("key a", lambda: 1)

    def list_targets() -> None:
        cache.get("targets", lambda: walking.wait(5))
        stored.set()

    lister = threading.Thread(target=list_targets)
    lister.start()
    armed = True
    assert cache.get("key a", lambda: 2) == 1
    lister.join(5)
    assert cache.get("targets", lambda: None) is True
