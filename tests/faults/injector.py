"""A fault at the boundary of any AWS call a function makes: before its effect, after it, or for its answer.

It wraps botocore's one way out, above botocore's own retries, so that a fault is a fault and not a
second try. Only calls made inside a function count, in any of its threads: the test's own go through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from botocore.client import BaseClient
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.harness import Crash

MODES = ("error before", "effect then error", "timeout", "crash before", "crash after")


@dataclass
class Injector:
    """Records the calls of functions. At `at`, a call and its number among its kind, it fails as `mode` says.

    `before` is called with each call before it is made.
    """

    at: tuple[str, int] | None = None
    mode: str = ""
    before: Callable[[str], None] = lambda _call: None
    calls: list[str] = field(default_factory=list)
    hit: str | None = None
    exempt: int | None = None  # a thread whose calls go through: the test's own, inside only_looking
    _inside: ContextVar[str | None] = field(default_factory=lambda: ContextVar("inside", default=None))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def function(self, name: str) -> Iterator[None]:
        """Mark this context as inside a function."""
        token = self._inside.set(name)
        try:
            yield
        finally:
            self._inside.reset(token)

    @contextmanager
    def only_looking(self) -> Iterator[None]:
        """Let the calls of this thread through, while the test looks at the stack."""
        before, self.exempt = self.exempt, threading.get_ident()
        try:
            yield
        finally:
            self.exempt = before

    def make_call(self, real: Callable[..., Any], client: BaseClient, operation: str, arguments: Any) -> Any:
        name = self._inside.get()
        if name is None or self.exempt == threading.get_ident():
            return real(client, operation, arguments)
        call = f"{name}: {client.meta.service_model.service_name}.{operation}"
        self.before(call)
        with self._lock:
            fails = (call, self.calls.count(call)) == self.at
            self.calls.append(call)
            if fails:
                self.hit = call
        if not fails:
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
