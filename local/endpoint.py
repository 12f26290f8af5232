"""The AWS endpoint of the local stack: moto's services at one address, where calls can be watched and broken.

Every AWS call passes through `Endpoint`, whether from a function, from an engine outside this process or from
the AWS CLI. Tests and measurements see each call there, with the function that made it (named by its access
key), and may delay it, answer in AWS's place, or lose the answer after AWS has acted:

    def lose_answers(call: Call, forward: Forward) -> Answer:
        answer = forward()
        return failure(call, "InternalError") if call.operation == "PutAttributes" else answer

    with endpoint.watched_by(lose_answers):
        ...

Without a watcher a call takes moto's own time only.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from botocore.loaders import Loader
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.test import run_wsgi_app

from local.serving import WsgiApp

__all__ = ["Answer", "Call", "Endpoint", "Forward", "Watcher", "failure", "read_call"]


@dataclass(frozen=True)
class Call:
    """One call of an AWS operation."""

    service: str  # as the request is signed: ec2, sdb, states, apigateway, lambda, tagging, …
    operation: str  # as the API reference names it: AuthorizeSecurityGroupIngress
    region: str
    access_key: str  # of a function: local.lambdas.access_key(function)
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The answer to a call."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


Forward = Callable[..., Answer]
"""Sends the call on, to the next watcher or to AWS, and returns the answer. The last watcher before AWS may
pass another body, of the same service: that makes a call of its own."""

Watcher = Callable[[Call, Forward], Answer]
"""Sees a call; returns the answer of `forward`, or another. Called from many threads at once."""


def failure(call: Call, code: str, message: str = "injected by a test", status: int = 500) -> Answer:
    """Build the error answer of `call`'s service, in its own protocol."""
    if call.service in _XML_ERRORS:
        body = _XML_ERRORS[call.service].format(code=escape(code), message=escape(message))
        return Answer(status, [("Content-Type", "text/xml")], body.encode())
    headers = [("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-ErrorType", code)]
    return Answer(
        status, headers, json.dumps({"__type": code, "message": message, "Message": message}).encode()
    )


_XML_ERRORS = {
    "ec2": "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
    "<RequestID>local</RequestID></Response>",
    "sdb": "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message><BoxUsage>0</BoxUsage>"
    "</Error></Errors><RequestID>local</RequestID></Response>",
}


class Endpoint:
    """A WSGI application that hands each call to moto, through the watchers."""

    def __init__(self, aws: WsgiApp, step_functions: Watcher | None = None) -> None:
        """Serve `aws`; `step_functions` takes the calls to Step Functions, where another engine runs them."""
        self._aws = aws
        self._step_functions = step_functions
        self._watchers: tuple[Watcher, ...] = ()
        self._lock = threading.Lock()

    @contextmanager
    def watched_by(self, watcher: Watcher) -> Iterator[None]:
        """Pass every call through `watcher`; the last watcher added sees it first."""
        with self._lock:
            self._watchers = (watcher, *self._watchers)
        try:
            yield
        finally:
            with self._lock:
                self._watchers = tuple(added for added in self._watchers if added is not watcher)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer one call."""
        watchers = self._watchers
        if self._step_functions and environ.get("HTTP_X_AMZ_TARGET", "").startswith("AWSStepFunctions."):
            watchers += (self._step_functions,)
        if not watchers:
            return self._aws(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        call = read_call(environ, body)

        def forward(payload: bytes = body) -> Answer:
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(payload), str(len(payload))
            chunks, status, headers = run_wsgi_app(self._aws, environ, buffered=True)
            return Answer(int(status.split()[0]), list(headers), b"".join(chunks))

        for watcher in reversed(watchers):
            forward = functools.partial(watcher, call, forward)
        answer = forward()
        headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
        headers.append(("Content-Length", str(len(answer.body))))
        start_response(f"{answer.status} {HTTP_STATUS_CODES.get(answer.status, 'Unknown')}", headers)
        return [answer.body]


_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]*/([^/]+)/([^/]+)/aws4_request")


def read_call(environ: Mapping[str, Any], body: bytes) -> Call:
    """Read which operation a request calls: from its target, its Action, or its method and path."""
    signed = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    access_key, region, service = signed.groups() if signed else ("", "", "")
    form: dict[str, list[str]] = {}
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        form = parse_qs(body.decode(errors="replace"))
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        operation = target.rpartition(".")[2]
    elif "Action" in form:
        operation = form["Action"][0]
    else:
        path = environ["REQUEST_URI"].partition("?")[0]  # as sent: an ARN in it has its slashes encoded
        operation = _rest_operation(service, environ["REQUEST_METHOD"], path)
    if not signed and "AWSAccessKeyId" in form:  # SimpleDB: signature version 2
        access_key, service = form["AWSAccessKeyId"][0], "sdb"
    return Call(service, operation, region, access_key, body)


def _rest_operation(service: str, method: str, path: str) -> str:
    for known_method, pattern, name in _rest_operations(service):
        if method == known_method and pattern.fullmatch(path):
            return name
    return f"{method} {path}"


@functools.cache
def _rest_operations(service: str) -> list[tuple[str, re.Pattern[str], str]]:
    """List a service's REST operations by method and path, fixed paths before those with names in them."""
    if service not in ("apigateway", "lambda"):
        return []
    model = Loader().load_service_model(service, "service-2")
    operations = []
    for name, operation in model["operations"].items():
        path = operation["http"]["requestUri"].partition("?")[0].rstrip("/")
        pattern = re.sub(r"\\{[^}]*\\\+\\}", ".+", re.sub(r"\\{[^}+]*\\}", "[^/]+", re.escape(path)))
        operations.append((operation["http"]["method"], re.compile(pattern + "/?"), name))
    return sorted(operations, key=lambda operation: len(operation[1].pattern), reverse=True)
