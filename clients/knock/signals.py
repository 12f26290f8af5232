"""Signals that stop a command: only where it can be interrupted, and at the latest before the next call.

    with signals.caught():             signals no longer end the program
        grant = api.open(…)            a signal is noted: a grant whose answer is not read could not be closed
        with signals.interruptible():  a signal, now or before, raises Stop
            time.sleep(60)

A second signal ends the program at once, unless it comes within SAME_REQUEST: `timeout`, and a wrapper that
passes a terminal's Ctrl-C on, send one request twice.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

SAME_REQUEST = 1.0  # seconds within which a second signal is part of the same request


class Stop(BaseException):
    """A signal came. It is not an Exception, so that no handler of errors catches it."""


class Signals:
    """Catches the signals `numbers`, but for those that `passed` handles itself and gives True for.

    `number` is the first signal that was caught, or 0. `stopping` is True from then on.
    """

    def __init__(self, numbers: Sequence[int], passed: Callable[[int], bool] = lambda _number: False) -> None:
        self.number = 0
        self.stopping = False
        self._numbers = numbers
        self._passed = passed
        self._caught_at = 0.0
        self._may_interrupt = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals, and restore their handlers at the end."""
        before = {number: signal.getsignal(number) for number in self._numbers}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as under nohup; started commands inherit it
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stop for a signal inside; at the beginning for one that came before."""
        self._may_interrupt = True
        try:
            if self.stopping:
                raise Stop
            yield
        finally:
            self._may_interrupt = False

    def stop(self) -> NoReturn:
        """Stop without a signal. The first signal from now on ends the program at once."""
        self.stopping = True
        raise Stop

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._passed(number):
            return
        if self.stopping:
            if time.monotonic() - self._caught_at >= SAME_REQUEST:
                # A second request does not wait for a call to end.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.stopping, self.number, self._caught_at = True, number, time.monotonic()
        if self._may_interrupt:
            self._may_interrupt = False
            raise Stop
