"""The hostile AWS for a Knock in one process: the same watcher that is put in a stack's AWS endpoint.

It wraps botocore's way into the embedded AWS, below botocore's own retries. The functions' calls meet it,
from any of their threads; the test's own calls see AWS as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from moto.core.botocore_stubber import BotocoreStubber, MockRawResponse

from local.endpoint import Answer, read_call
from local.hostile import Hostile, Plan
from tests.harness import Knock

_CALLER: ContextVar[str | None] = ContextVar("caller", default=None)


@contextmanager
def meeting_it(name: str | None) -> Iterator[None]:
    """Have calls in this block meet the hostile AWS as those of a caller; with None they see AWS as it is."""
    token = _CALLER.set(name)
    try:
        yield
    finally:
        _CALLER.reset(token)


@contextmanager
def hostile(knock: Knock, plan: Plan) -> Iterator[Hostile]:
    """Put the hostile AWS between every function and AWS, on the clock of `knock`."""
    watcher = Hostile(plan, knock.clock.now, knock.clock.at)
    plain = BotocoreStubber.__call__

    def call(stubber: BotocoreStubber, event_name: str, request: AWSPreparedRequest, **more: Any) -> Any:
        def ask(sent_request: AWSPreparedRequest) -> Any:
            return plain(stubber, event_name, sent_request, **more)

        name = _CALLER.get()
        return ask(request) if name is None else _ask(watcher, name, request, ask)

    engine, before = knock.engine, knock.around
    deliver = engine.publish
    engine.publish, knock.around = watcher.publish(deliver), meeting_it
    watcher.begin()
    try:
        with mock.patch.object(BotocoreStubber, "__call__", call):
            yield watcher
    finally:
        engine.publish, knock.around = deliver, before


def _ask(
    watcher: Hostile, name: str, request: AWSPreparedRequest, ask: Callable[[AWSPreparedRequest], Any]
) -> AWSResponse:
    body = request.body or b""
    payload = body.encode() if isinstance(body, str) else bytes(body)
    headers = {key.lower(): _text(value) for key, value in request.headers.items()}
    call = read_call(
        {
            "HTTP_AUTHORIZATION": headers.get("authorization", ""),
            "HTTP_X_AMZ_TARGET": headers.get("x-amz-target"),
            "CONTENT_TYPE": headers.get("content-type", ""),
            "REQUEST_METHOD": request.method,
            "REQUEST_URI": urlsplit(request.url).path,
        },
        payload,
    )
    call = replace(call, access_key=f"ASIA{name.upper()}")

    def forward(changed: bytes = payload) -> Answer:
        changed_headers = (
            request.headers
            if changed is payload
            else {**request.headers, "Content-Length": str(len(changed))}
        )
        answer = ask(
            AWSPreparedRequest(request.method, request.url, changed_headers, changed, request.stream_output)
        )
        return Answer(answer.status_code, list(answer.headers.items()), answer.content)

    answer = watcher(call, forward)
    headers = {key: value for key, value in answer.headers if key.lower() != "content-length"}
    return AWSResponse(request.url, answer.status, headers, MockRawResponse(answer.body))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
