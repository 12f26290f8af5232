"""How the embedded AWS calls a Lambda function, independent of the runtime.

It takes a function's ARN and a payload, and returns an `InvocationResult`. It fails in Lambda's own two ways
(https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html): the function ran and failed
(`function_error`, with the error in the payload), or it was not run at all (`InvocationError`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """The answer of an Invoke: the payload and, for a function that failed, `X-Amz-Function-Error`."""

    payload: bytes
    function_error: str | None = None


class InvocationError(Exception):
    """The function was not run: Lambda refused. `code` is Lambda's error code.

    For example `TooManyRequestsException`, `ResourceNotFoundException`, `ServiceException`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


Invoke = Callable[[str, bytes], InvocationResult]
"""Runs a function: its ARN, the payload (JSON). Called from many threads at once."""


class Workers:
    """Threads that wait for functions to answer: started when needed, up to a limit, then reused.

    Daemon threads, unlike `concurrent.futures`' own, which the interpreter joins on exit: a function
    that hangs must not keep the process from ending.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Queue work, begun in order of submission; its errors are logged."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1  # an idle thread is reserved for this work
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        """Drop the work that has not begun; each thread ends after its current work."""
        with self._lock, contextlib.suppress(queue.Empty):
            while True:
                self._work.get_nowait()
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("work on a %s thread failed", self._name)
            with self._lock:
                self._idle += 1
