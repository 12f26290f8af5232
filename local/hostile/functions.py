"""Lambda in a new account: ten functions at a time, and cold starts.

https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html ("New AWS accounts have reduced
concurrency and memory quotas").
Asynchronous retries need no row: the local Lambda always makes them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from local.hostile.dice import Dice, Moment
from local.invocation import InvocationError

CONCURRENT = 10
RECLAIMED = 0.05  # of the starts, whose environment Lambda has removed


class Lambda:
    """Counts runs. A start is cold when more runs of a function overlap than ever before, or by chance."""

    def __init__(
        self, dice: Dice, moment: Moment, count: Callable[[str], None], *, limited: bool, cold: bool
    ) -> None:
        self._dice, self._moment, self._count = dice, moment, count
        self._limited, self._cold = limited, cold
        self._busy: Counter[str] = Counter()
        self._warm: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, function: str) -> Iterator[None]:
        """Admit one run. Raises InvocationError, as Lambda does, when the concurrency is used up."""
        with self._lock:
            if self._limited and self._busy.total() >= CONCURRENT:
                self._count("concurrency")
                raise InvocationError("TooManyRequestsException", "Rate Exceeded.")
            self._busy[function] += 1
            dice = self._dice.throw("start", function)
            cold = self._busy[function] > self._warm[function] or dice.random() < RECLAIMED
            self._warm[function] = max(self._warm[function], self._busy[function])
        try:
            if cold and self._cold:
                self._count("cold-starts")
                time.sleep(self._moment.delay(dice, 2, least=0.3).total_seconds())
            yield
        finally:
            with self._lock:
                self._busy[function] -= 1
