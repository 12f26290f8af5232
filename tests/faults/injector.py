"""A fault at the boundary of any AWS call a function makes: before its effect, after it, or for its answer.

It wraps botocore's one way out, above botocore's own retries, so that a fault is a fault and not a
second try. Only calls made inside a function count: the test's own go through untouched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from botocore.client import BaseClient
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.harness import Crash

MODES = ("error before", "effect then error", "timeout", "crash before", "crash after")


@dataclass
class Injector:
    """Counts the calls of functions; at the call number `at`, if any, it fails as `mode` says."""

    at: int | None = None
    mode: str = ""
    calls: list[str] = field(default_factory=list)
    hit: str | None = None
    exempt: int | None = None  # a thread whose calls go through: the test's own, once it only looks
    _inside: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def function(self, name: str) -> Iterator[None]:
        """Mark this thread as inside a function."""
        before = getattr(self._inside, "name", None)
        self._inside.name = name
        try:
            yield
        finally:
            self._inside.name = before

    @contextmanager
    def only_looking(self) -> Iterator[None]:
        """Let the calls of this thread through: the test looks at what there is."""
        before, self.exempt = self.exempt, threading.get_ident()
        try:
            yield
        finally:
            self.exempt = before

    def make_call(self, real: Callable[..., Any], client: BaseClient, operation: str, arguments: Any) -> Any:
        name = getattr(self._inside, "name", None)
        if name is None or self.exempt == threading.get_ident():
            return real(client, operation, arguments)
        call = f"{name}: {client.meta.service_model.service_name}.{operation}"
        with self._lock:
            self.calls.append(call)
            now = len(self.calls) - 1 == self.at
            if now:
                self.hit = call
        if not now:
            return real(client, operation, arguments)
        if self.mode == "error before":
            raise self._error(operation)
        if self.mode == "crash before":
            raise Crash(call)
        real(client, operation, arguments)
        if self.mode == "crash after":
            raise Crash(call)
        if self.mode == "timeout":
            raise ReadTimeoutError(endpoint_url=call)
        raise self._error(operation)

    def _error(self, operation: str) -> ClientError:
        response: Any = {
            "Error": {"Code": "InternalError", "Message": "injected"},
            "ResponseMetadata": {"HTTPStatusCode": 500},
        }
        return ClientError(response, operation)


@contextmanager
def injecting(injector: Injector) -> Iterator[Injector]:
    """Put the injector between every function and AWS."""
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def make_call(client: BaseClient, operation: str, arguments: Any) -> Any:
        return injector.make_call(real, client, operation, arguments)

    with mock.patch.object(BaseClient, "_make_api_call", make_call):
        yield injector
