"""API Gateway on one machine: a WSGI application that is the stage of a REST API.

It routes as a REST API does, checks API keys and their usage plan, builds the Lambda proxy event field by
field (https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html) and
turns the function's answer into HTTP. Its own refusals are those of the real gateway. Keys and usage plans
are read at every request, so a change through the API Gateway API takes effect at once. Throttles count real
time, because clients do.

It also plays the internet's edge. On AWS the source of a request is the address of the TCP peer, and no
header can change it. Here every client would have the same loopback address, so behind a loopback peer, and
only there, the last address in X-Forwarded-For is the source: the address that an edge would have appended.

The API is served under its stage (`/v1/knock`), as on AWS, so clients and the console page use the same paths
in both places. Three things differ from AWS and do not matter to Knock: names of headers arrive in title
case, a header sent twice arrives as one value joined by a comma, and nothing is compressed.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from werkzeug.http import HTTP_STATUS_CODES

from local.deployment import RestApi, Route
from local.invocation import InvocationError, InvocationResult
from local.lambdas import NotAnswered
from local.template import Place

__all__ = ["Caller", "Gateway", "UsageLimits"]

log = logging.getLogger(__name__)

MAX_BODY = 10 * 1024 * 1024  # bytes; https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
PATIENCE = 29.0  # seconds the gateway waits for an integration, by the same page


@dataclass(frozen=True)
class UsageLimits:
    """The limits of a usage plan for each of its keys; None is unlimited."""

    plan_id: str
    rate: float | None = None
    burst: int | None = None
    quota: int | None = None  # requests a day (UTC)


@dataclass(frozen=True)
class Caller:
    """An API key that opens the stage, and its limits."""

    key_id: str
    value: str
    limits: UsageLimits


Keys = Callable[[], Iterable[Caller]]
"""Lists the keys that open this stage now: enabled, and in one of its usage plans."""

Invoke = Callable[[str, bytes, float], InvocationResult]
"""Runs a function (ARN, payload, longest wait in seconds); raises NotAnswered and InvocationError."""

# The gateway responses: status, message, and the error type in a header.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html
_ANSWERS = {
    "BAD_REQUEST_PARAMETERS": (400, "Bad Request", "BadRequestException"),
    "INVALID_API_KEY": (403, "Forbidden", "ForbiddenException"),
    "MISSING_AUTHENTICATION_TOKEN": (
        403,
        "Missing Authentication Token",
        "MissingAuthenticationTokenException",
    ),
    "REQUEST_TOO_LARGE": (413, "Request Too Long", "RequestTooLargeException"),
    "THROTTLED": (429, "Too Many Requests", "TooManyRequestsException"),
    "QUOTA_EXCEEDED": (429, "Limit Exceeded", "LimitExceededException"),
    "API_CONFIGURATION_ERROR": (500, "Internal server error", "InternalServerErrorException"),
    "DEFAULT_5XX": (502, "Internal server error", "InternalServerErrorException"),
    "INTEGRATION_TIMEOUT": (504, "Endpoint request timed out", "InternalServerErrorException"),
}

# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-known-issues.html
_REMAPPED = {"connection", "content-length", "date", "server", "transfer-encoding", "www-authenticate"}

_HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Refused(Exception):
    """The gateway refuses a request; `kind` is the type of its gateway response."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _TokenBucket:
    """A throttle: `burst` requests at once, refilled at `rate` a second."""

    def __init__(self) -> None:
        """Begin full. Each request brings rate and burst, so a changed usage plan takes effect at once."""
        self._spent = 0.0
        self._at = 0.0

    def take(self, rate: float, burst: int, now: float) -> bool:
        """Take one token at `now` (seconds of any steady clock); False when there is none."""
        self._spent = max(0.0, self._spent - (now - self._at) * rate)
        self._at = now
        if self._spent + 1 > burst:
            return False
        self._spent += 1
        return True


class _Usage:
    """How much of its limits each key has used."""

    def __init__(self, steady: Callable[[], float], utc: Callable[[], datetime]) -> None:
        self._steady = steady
        self._utc = utc
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], _TokenBucket] = {}
        self._quotas: dict[tuple[str, str], tuple[date, int]] = {}

    def count(self, route: Route, api: RestApi, caller: Caller | None) -> None:
        """Count one request to a method and of a key; raises _Refused when a limit is reached."""
        with self._lock:
            self._throttle((route.method, route.path), api.rate, api.burst)
            if caller:
                holder = (caller.limits.plan_id, caller.key_id)
                self._throttle(holder, caller.limits.rate, caller.limits.burst)
                self._spend(holder, caller.limits.quota)

    def _throttle(self, bucket: tuple[str, str], rate: float | None, burst: int | None) -> None:
        if rate is None or burst is None:
            return
        if not self._buckets.setdefault(bucket, _TokenBucket()).take(rate, burst, self._steady()):
            raise _Refused("THROTTLED")

    def _spend(self, holder: tuple[str, str], quota: int | None) -> None:
        if quota is None:
            return
        used = self._used_today(holder)
        if used >= quota:
            raise _Refused("QUOTA_EXCEEDED")
        self._quotas[holder] = (self._utc().date(), used + 1)

    def used(self, holder: tuple[str, str]) -> int:
        """Return how many requests of its quota a key has used today."""
        with self._lock:
            return self._used_today(holder)

    def _used_today(self, holder: tuple[str, str]) -> int:
        today = self._utc().date()
        day, used = self._quotas.get(holder, (today, 0))
        return used if day == today else 0


class Gateway:
    """The stage of a REST API, as a WSGI application."""

    def __init__(
        self,
        api: RestApi,
        place: Place,
        keys: Keys,
        invoke: Invoke,
        *,
        steady: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Serve `api` under `/<stage>`; `steady` is what throttles count by, `utc` what quotas do."""
        self._api = api
        self._place = place
        self._keys = keys
        self._invoke = invoke
        self._utc = utc
        self._usage = _Usage(steady, utc)
        self._resources = _resources(api.routes)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answer one request."""
        request_id = str(uuid.uuid4())
        extended_id = base64.b64encode(secrets.token_bytes(11)).decode()
        began = time.monotonic()
        try:
            answer = self._answer(environ, request_id, extended_id)
        except _Refused as refused:
            answer = self._gateway_response(refused.kind, request_id, extended_id)
        headers = [("x-amzn-RequestId", request_id), ("x-amz-apigw-id", extended_id), *answer.headers]
        headers.append(("Content-Length", str(len(answer.body))))
        log.info(
            "%s %s %d in %.0f ms, request %s",
            environ["REQUEST_METHOD"],
            quote(environ["PATH_INFO"]),
            answer.status,
            (time.monotonic() - began) * 1000,
            request_id,
        )
        start_response(f"{answer.status} {HTTP_STATUS_CODES.get(answer.status, 'Unknown')}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def used(self, plan_id: str, key_id: str) -> int:
        """Return how many requests of its quota a key has used today."""
        return self._usage.used((plan_id, key_id))

    def _answer(self, environ: dict[str, Any], request_id: str, extended_id: str) -> _Answer:
        path = _raw_path(environ)
        route, parameters = self._route(environ["REQUEST_METHOD"], path)
        source = _source(environ)
        caller = self._caller(environ) if route.key_required else None
        self._usage.count(route, self._api, caller)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > MAX_BODY:
            raise _Refused("REQUEST_TOO_LARGE")
        body = environ["wsgi.input"].read(length)
        event = self._event(environ, route, parameters, source, caller, body, request_id, extended_id)
        try:
            result = self._invoke(route.function_arn, json.dumps(event).encode(), PATIENCE)
        except NotAnswered:
            raise _Refused("INTEGRATION_TIMEOUT") from None
        except InvocationError as error:
            log.info("request %s: Lambda refused: %s: %s", request_id, error.code, error.message)
            raise _Refused("API_CONFIGURATION_ERROR") from None
        if result.function_error:
            raise _Refused("DEFAULT_5XX")
        return self._from_function(result.payload, request_id)

    # Route and caller

    def _route(self, method: str, path: str) -> tuple[Route, dict[str, str] | None]:
        segments = path.strip("/").split("/")
        if segments[0] != self._api.stage:
            raise _Refused("INVALID_API_KEY")  # no such stage: {"message":"Forbidden"}
        segments = [unquote(segment) for segment in segments[1:]]
        for resource, methods in self._resources:
            parameters = _match(resource, segments)
            if parameters is not None:
                if method in methods:
                    return methods[method], parameters or None
                break
        raise _Refused("MISSING_AUTHENTICATION_TOKEN")

    def _caller(self, environ: Mapping[str, Any]) -> Caller:
        sent_key = environ.get("HTTP_X_API_KEY", "").encode("latin-1")
        match = None
        for caller in self._keys():  # always all of them: else the time taken would tell which key matched
            if hmac.compare_digest(caller.value.encode(), sent_key):
                match = caller
        if match is None:
            raise _Refused("INVALID_API_KEY")
        return match

    # The event

    def _event(
        self,
        environ: Mapping[str, Any],
        route: Route,
        parameters: dict[str, str] | None,
        source: str,
        caller: Caller | None,
        body: bytes,
        request_id: str,
        extended_id: str,
    ) -> dict[str, Any]:
        now = self._utc()
        host = environ.get("HTTP_HOST", environ["SERVER_NAME"])
        headers = _headers(environ)
        headers["X-Forwarded-For"] = _forwarded_for(environ, source)
        headers["X-Forwarded-Port"] = environ["SERVER_PORT"]
        headers["X-Forwarded-Proto"] = environ["wsgi.url_scheme"]
        headers["X-Amzn-Trace-Id"] = f"Root=1-{int(now.timestamp()):08x}-{secrets.token_hex(12)}"
        path = unquote(_raw_path(environ))
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        values_by_name: dict[str, list[str]] = {}
        for name, value in query:
            values_by_name.setdefault(name, []).append(value)
        return {
            "resource": route.path,
            "path": path.removeprefix(f"/{self._api.stage}") or "/",
            "httpMethod": environ["REQUEST_METHOD"],
            "headers": headers,
            "multiValueHeaders": {name: [value] for name, value in headers.items()},
            "queryStringParameters": dict(query) or None,
            "multiValueQueryStringParameters": values_by_name or None,
            "pathParameters": parameters,
            "stageVariables": None,
            "requestContext": {
                "resourceId": _resource_id(route.path),
                "resourcePath": route.path,
                "operationName": None,
                "httpMethod": environ["REQUEST_METHOD"],
                "extendedRequestId": extended_id,
                "requestTime": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
                "path": path,
                "accountId": self._place.account,
                "protocol": environ["SERVER_PROTOCOL"],
                "stage": self._api.stage,
                "domainPrefix": host.split(".")[0],
                "requestTimeEpoch": int(now.timestamp() * 1000),
                "requestId": request_id,
                "identity": _identity(environ, source, caller),
                "domainName": host,
                "deploymentId": "local",
                "apiId": self._api.id,
            },
            "body": body.decode(errors="replace") or None,
            "isBase64Encoded": False,  # the API has no binary media types
        }

    # The answer

    def _from_function(self, payload: bytes, request_id: str) -> _Answer:
        try:
            return self._proxied(json.loads(payload))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("request %s: malformed Lambda proxy response: %s", request_id, error)
            raise _Refused("DEFAULT_5XX") from None

    def _proxied(self, answer: Any) -> _Answer:
        unknown = set(answer) - {"statusCode", "headers", "multiValueHeaders", "body", "isBase64Encoded"}
        if unknown:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        status = int(answer["statusCode"])
        if not 100 <= status <= 599:
            raise ValueError(f"status {status}")
        body = answer.get("body")
        if not isinstance(body, str | None):
            raise TypeError("the body is not a string")
        values_by_name = dict(answer.get("multiValueHeaders") or {})
        for name, value in (answer.get("headers") or {}).items():
            values_by_name.setdefault(name, [value])
        headers = [_header(name, value) for name, values in values_by_name.items() for value in values]
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("Content-Type", "application/json"))
        return _Answer(status, headers, (body or "").encode())

    def _gateway_response(self, kind: str, request_id: str, extended_id: str) -> _Answer:
        status, message, error_type = _ANSWERS[kind]
        family = f"DEFAULT_{status // 100}XX"
        custom = self._api.responses.get(kind, self._api.responses.get(family, {}))
        context = {
            "$context.error.messageString": json.dumps(message),
            "$context.error.message": message,
            "$context.error.responseType": kind,
            "$context.extendedRequestId": extended_id,
            "$context.requestId": request_id,
        }
        templates = custom.get("responseTemplates") or {
            "application/json": '{"message":$context.error.messageString}'
        }
        content_type, text = next(iter(templates.items()))
        for name, value in context.items():  # messageString before its prefix, message
            text = text.replace(name, value)
        headers = [("Content-Type", content_type), ("x-amzn-ErrorType", error_type)]
        for name, value in (custom.get("responseParameters") or {}).items():
            header = name.removeprefix("gatewayresponse.header.")
            headers = [(n, v) for n, v in headers if n.lower() != header.lower()]
            headers.append((header, context.get(value, value.strip("'"))))
        return _Answer(int(custom.get("statusCode") or status), headers, text.encode())


def _resources(routes: Iterable[Route]) -> list[tuple[list[str], dict[str, Route]]]:
    """Group routes by resource, the most specific first: fixed segments before `{name}`."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = route
    resources = [
        (path.strip("/").split("/") if path != "/" else [], methods) for path, methods in by_path.items()
    ]
    return sorted(
        resources, key=lambda resource: [(segment.startswith("{"), segment) for segment in resource[0]]
    )


def _match(resource: list[str], segments: list[str]) -> dict[str, str] | None:
    """Return the path parameters when `segments` are a path of the resource, else None."""
    parameters: dict[str, str] = {}
    for index, part in enumerate(resource):
        if index >= len(segments) or not segments[index]:
            return None
        if part.startswith("{"):
            parameters[part[1:-1]] = segments[index]
        elif part != segments[index]:
            return None
    return parameters if len(segments) == len(resource) else None


def _source(environ: Mapping[str, Any]) -> str:
    """Return the address a request came from: the peer's, or behind loopback the last of X-Forwarded-For.

    Raises _Refused when that is no address: an edge always writes one, and any other address would be a
    guess.
    """
    peer = _address(environ["REMOTE_ADDR"])
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")
    if not forwarded or not peer.is_loopback:
        return str(peer)
    try:
        return str(_address(forwarded.rsplit(",", 1)[-1].strip()))
    except ValueError:
        raise _Refused("BAD_REQUEST_PARAMETERS") from None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise ValueError(f"{text} has a zone, which means nothing to anyone else")
        return address.ipv4_mapped or address
    return address


def _forwarded_for(environ: Mapping[str, Any], source: str) -> str:
    """Write X-Forwarded-For as the edge does: what the client sent, then the source."""
    forwarded = environ.get("HTTP_X_FORWARDED_FOR", "")
    if forwarded and _address(environ["REMOTE_ADDR"]).is_loopback:
        forwarded = forwarded.rpartition(",")[0].strip()  # the edge itself has appended the last address
    return f"{forwarded}, {source}" if forwarded else source


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    headers = {name[5:]: value for name, value in environ.items() if name.startswith("HTTP_")}
    headers |= {name: environ[name] for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(name)}
    return {name.replace("_", "-").title(): value for name, value in headers.items()}


def _identity(environ: Mapping[str, Any], source: str, caller: Caller | None) -> dict[str, Any]:
    identity: dict[str, Any] = dict.fromkeys(
        (
            "cognitoIdentityPoolId", "accountId", "cognitoIdentityId", "caller", "principalOrgId",
            "accessKey", "cognitoAuthenticationType", "cognitoAuthenticationProvider", "userArn", "user",
        )
    )  # fmt: skip
    identity |= {"sourceIp": source, "userAgent": environ.get("HTTP_USER_AGENT")}
    return identity | ({"apiKey": caller.value, "apiKeyId": caller.key_id} if caller else {})


def _header(name: str, value: Any) -> tuple[str, str]:
    """Return a header in a form that HTTP can carry; raises ValueError or TypeError when it cannot."""
    if not isinstance(value, str | int | float):
        raise TypeError(f"header {name} is not a string")
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if not _HTTP_TOKEN.fullmatch(name) or re.search(r"[\r\n\0]", text):
        raise ValueError(f"header {name!r} cannot be sent")
    text.encode("latin-1")
    return (f"x-amzn-Remapped-{name}" if name.lower() in _REMAPPED else name), text


def _raw_path(environ: Mapping[str, Any]) -> str:
    """Return the path as it was sent, in which an encoded slash is part of a segment."""
    raw: str = environ.get("REQUEST_URI") or quote(environ["PATH_INFO"].encode("latin-1"))
    return raw.partition("?")[0]


def _resource_id(path: str) -> str:
    """Derive a resource's id from its path: six letters and digits, like API Gateway's."""
    number = uuid.uuid5(uuid.NAMESPACE_URL, path).int
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[number // 36**place % 36] for place in range(6))
