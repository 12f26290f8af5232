"""Repeatable random numbers, and delays on the stack's clock.

Calls come from many threads, whose order no seed determines. So each throw has a random generator of its own,
seeded with the seed, the kind of call, and the call's number within its kind: a thread that is slower than in
another run changes nothing for other kinds of calls.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Bucket", "Dice", "Moment"]


class Dice:
    """Random generators by kind of call."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._thrown: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def throw(self, *kind: str) -> random.Random:
        """Return the generator for the next call of a kind."""
        with self._lock:
            number = self._thrown[kind]
            self._thrown[kind] += 1
        return self.of(*kind, str(number))

    def of(self, *name: str) -> random.Random:
        """Return the generator for a name: the same sequence each time."""
        return random.Random(f"{self._seed} {' '.join(name)}")  # noqa: S311  # has to be repeatable


@dataclass(frozen=True, slots=True)
class Moment:
    """The stack's time, and delays on it."""

    now: Callable[[], datetime]
    scale: float

    def delay(
        self, dice: random.Random, most: float, longest: float = 0, often: float = 0.04, least: float = 0
    ) -> timedelta:
        """Draw a delay in seconds: `least` to `most`, or with probability `often` up to `longest`; scaled."""
        seconds = (
            dice.uniform(most, longest) if longest and dice.random() < often else dice.uniform(least, most)
        )
        return timedelta(seconds=seconds * self.scale)


class Bucket:
    """A token bucket on the stack's clock: `size` calls at once, refilled at `rate` a second."""

    def __init__(self, now: Callable[[], datetime], size: int, rate: float) -> None:
        self._now, self._size, self._rate = now, size, rate
        self._left, self._at = float(size), now()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a token; False when there is none."""
        with self._lock:
            now = self._now()
            self._left = min(self._size, self._left + (now - self._at).total_seconds() * self._rate)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True
