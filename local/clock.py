"""The embedded AWS's one clock: the time, and the callbacks that wait for it.

Everything here that waits for a time (a Wait state, a Retry's pause, an event's next delivery) waits on
this clock, so a test can move it forward and an 8 h wait ends in milliseconds. Promises: a callback is
never called early, and at most a few milliseconds late; `advance` at once runs what it makes due.

A *task*'s timeout is measured in real seconds (`after`): a function runs in real time, and a test that
jumps 8 h ahead must not time out the tasks that are running.

Decided against `threading.Timer`: it takes a thread for each callback. One thread and a heap hold any
number.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


@dataclass(order=True, slots=True)
class Timer:
    """A callback and the time it is due."""

    due: float
    order: int
    callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """Drop the callback; after it was called, do nothing."""
        self.callback = None


class Clock:
    """UTC, with an offset that only grows; runs callbacks on a thread of its own, or in `advance`.

    Callbacks must be quick and must not raise: they queue work for other threads.
    """

    # A machine that was suspended wakes with a wall clock that jumped while the monotonic clock, which
    # measures our sleep, stood still. Looking again every second bounds how late a callback can be.
    _LONGEST_SLEEP = 1.0

    def __init__(self) -> None:
        self._offset = 0.0
        self._order = itertools.count()
        self._absolute: list[Timer] = []
        self._real: list[Timer] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def now(self) -> datetime:
        """Return the time, with its zone (UTC)."""
        return datetime.fromtimestamp(self._seconds(), UTC)

    def advance(self, delta: timedelta) -> None:
        """Move the time forward; return once every callback that is due by then was called."""
        if delta < timedelta(0):
            raise ValueError(f"a clock moves forward only, not by {delta}")
        with self._changed:
            self._offset += delta.total_seconds()
            due = self._due()
            self._changed.notify()
        self._call(due)

    def at(self, when: datetime, callback: Callable[[], None]) -> Timer:
        """Call back at an absolute time on this clock; at once when that is in the past."""
        return self._add(self._absolute, when.timestamp(), callback)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back after so many real seconds, however far the clock is moved meanwhile."""
        return self._add(self._real, time.monotonic() + seconds, callback)

    def close(self) -> None:
        """Drop all callbacks and end the thread; `now` still works."""
        with self._changed:
            self._closed = True
            self._absolute.clear()
            self._real.clear()
            self._changed.notify()

    def _seconds(self) -> float:
        return time.time() + self._offset

    def _add(self, heap: list[Timer], due: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(due, next(self._order), callback)
        with self._changed:
            if self._closed:
                timer.cancel()
                return timer
            heapq.heappush(heap, timer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
                self._thread.start()
            elif heap[0] is timer:
                self._changed.notify()
        return timer

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (due := self._due()):
                    if self._closed:
                        return
                    self._changed.wait(self._sleep())
            self._call(due)

    @staticmethod
    def _call(due: list[Timer]) -> None:
        for timer in due:
            if callback := timer.callback:
                timer.callback = None
                callback()

    def _due(self) -> list[Timer]:
        due = []
        for heap, now in ((self._absolute, self._seconds()), (self._real, time.monotonic())):
            while heap and heap[0].due <= now:
                due.append(heapq.heappop(heap))
        return due

    def _sleep(self) -> float | None:
        nexts = [
            heap[0].due - now
            for heap, now in ((self._absolute, self._seconds()), (self._real, time.monotonic()))
            if heap
        ]
        return max(0.0, min(*nexts, self._LONGEST_SLEEP)) if nexts else None
