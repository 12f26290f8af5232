"""HTTP to the Knock API: one request at a time, with limits, retries, and an error for every failure.

It uses `http.client`, and not requests or httpx: the client has no dependencies and starts quickly, and the
phases of a call (name, connection, TLS, sent, answered) decide whether it may be retried.

Calls are retried twice at most, after a growing pause or that of Retry-After:

    failure                                       GET, DELETE   POST /knock
    not connected, transient (refused, reset)     retry         retry: the API did not get it
    not connected, permanent (name, TLS)          no            no
    sent, connection lost before the answer       retry         no
    sent, no answer in time                       no            no: the time is over
    429 of the gateway (not for a used-up quota)  retry         retry: the API did not get it
    503 with Retry-After                          retry         retry: the API says that nothing was opened
    503 that names a grant                        -             no: that grant may be open
    other 5xx                                     retry         no: a fault, the gateway's answer, or no JSON
                                                                is a lost answer, as is a 2xx that is no JSON

A knock whose answer is lost is not sent again: the grant may exist, and each knock starts another. The error
says so, and the user decides whether to open one beside it.

A key is sent only to its URL: redirects are not followed, and plain http is refused, except to this machine.
The system's resolver has its own time limit; all other phases have one here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from . import __version__
from .errors import (
    MAYBE_MADE,
    AnswerLost,
    CannotReach,
    GrantNotFound,
    InvalidKnock,
    KeyRejected,
    KnockError,
    NotAllowed,
    PoolExhausted,
    Refusal,
    SourceFull,
    TargetGone,
    Throttled,
    TooManyGrants,
    Unavailable,
    UnexpectedAnswer,
    WrongFamily,
)
from .proxies import proxy_for
from .urls import check_key, clean_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRIES = 3
LONGEST_PAUSE = 20.0  # seconds; with a longer Retry-After the error is raised
GATEWAY = "The gateway says"
LARGEST_ANSWER = 8 * 1024 * 1024

# The gateway answers with an error if a function takes more than 29 s, so waiting longer is useless.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html
ANSWER_TIMEOUT = 32.0
CONNECT_TIMEOUT = 5.0  # for each address of the API's name

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Path(NamedTuple):
    """The path of a connection: this machine's address, the peer's, and the proxy's host and port, if any."""

    local: str
    peer: str
    proxy: str | None


class Transport:
    """Calls one API with one key. It is not thread-safe.

    `family` is 4 or 6 to connect over that address family only, or None. `tries` is the most attempts of a
    call. `unanswered` is the method of a call that an exception cut off before its answer, or empty.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float,
        connect_timeout: float,
        family: int | None = None,
        tries: int = TRIES,
    ) -> None:
        self.url = clean_url(url)
        parts = urlsplit(self.url)
        self.host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path
        self._headers = {
            "x-api-key": check_key(api_key),
            "accept": "application/json, application/problem+json",
            "user-agent": f"knock/{__version__} python/{sys.version_info[0]}.{sys.version_info[1]}",
        }
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._tries = tries
        self._connection: http.client.HTTPConnection | None = None
        self.family = family
        self.unanswered = ""
        self.path: Path | None = None
        self.clock_ahead: float | None = None

    def close(self) -> None:
        """Close the connection, if there is one. The next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make a call, with retries, and give the JSON object of its answer. Raises KnockError."""
        repeatable = method in ("GET", "DELETE")
        trouble: CannotReach | Unavailable
        tries = 0
        while True:
            tries += 1
            pause = 0.25 * 2**tries * random.uniform(0.5, 1)  # noqa: S311 — it spreads attempts, and is no secret
            try:
                return self._call_once(method, path, query, body, reuse=repeatable)
            except AnswerLost as error:
                again, trouble = repeatable and error.transient, error
            except CannotReach as error:
                again, trouble = error.transient, error
            except Throttled as error:
                # "Limit Exceeded" is a used-up quota, which lasts for longer than any pause here.
                again, trouble = error.detail != "Limit Exceeded", error
                pause = pause if error.retry_after is None else error.retry_after
            except Unavailable as error:
                again, trouble = repeatable or (error.retry_after is not None and not error.grant_id), error
                pause = pause if error.retry_after is None else error.retry_after
            self.close()
            if not again or tries >= self._tries or pause > LONGEST_PAUSE:
                raise trouble
            time.sleep(pause)

    def _call_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        *,
        reuse: bool,
    ) -> dict[str, Any]:
        target = self._prefix + path + (f"?{urlencode(query, errors='surrogatepass')}" if query else "")
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        if not reuse:
            self.close()
        reused = self._connection is not None
        connection = self._connection or self._connect()
        self._connection = connection
        began = time.time()
        status, answered, content = 0, http.client.HTTPMessage(), b""
        timed_out = threading.Event()
        sock: socket.socket = connection.sock
        sock.settimeout(self._timeout)

        def give_up() -> None:
            timed_out.set()
            # The plain socket's shutdown: SSLSocket's would remove the TLS layer while the reader uses it.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

        # The socket's timeout starts again with every byte; the timer is for the whole answer.
        alarm = threading.Timer(self._timeout, give_up)
        alarm.daemon = True
        alarm.start()
        self.unanswered = method
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            status, answered = response.status, response.headers
            content = response.read(LARGEST_ANSWER + 1)
            if response.length and len(content) <= LARGEST_ANSWER:
                raise ConnectionResetError("the answer broke off")
            if response.will_close:
                self.close()
            self.unanswered = ""
        except (TimeoutError, OSError, http.client.HTTPException, ValueError) as error:
            self.unanswered = ""
            self.close()
            late = timed_out.is_set() or isinstance(error, TimeoutError)
            if reused and not late and isinstance(error, (ConnectionError, ssl.SSLError)):
                # The server had closed the kept connection. Only repeatable calls use a kept one.
                return self._call_once(method, path, query, body, reuse=False)
            raise self._lost(method, error, late=late) from error
        finally:
            alarm.cancel()
        self._compare_clocks(answered.get("date"), began)
        if len(content) > LARGEST_ANSWER:
            self.close()  # the rest is still to come
            raise self._unexpected(
                method, status, f"{self.host} answered with more than {LARGEST_ANSWER} bytes"
            )
        return self._judge(method, status, answered, content)

    # ------------------------------------------------------------------ connecting

    def _connect(self) -> http.client.HTTPConnection:
        proxy = proxy_for(self.host, self._port) if self._tls else None
        host, port = (proxy.host, proxy.port) if proxy else (self.host, self._port)
        connection: http.client.HTTPConnection | None = None
        try:
            if self._tls:
                connection = http.client.HTTPSConnection(
                    host, port, timeout=self._connect_timeout, context=tls_context()
                )
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self._connect_timeout)
            if self.family:
                # http.client makes its socket with this attribute; it has no public way to choose the family.
                connection._create_connection = _connect_by(self.family)  # type: ignore[attr-defined]
            if proxy:
                connection.set_tunnel(self.host, self._port, proxy.headers)
            connection.connect()
        except (OSError, http.client.HTTPException, ValueError) as error:
            from .diagnosis import why_not_connected

            if connection is not None:
                connection.close()
            raise why_not_connected(error, self.host, self._port, proxy, self.family) from error
        sock = connection.sock
        self.path = Path(
            sock.getsockname()[0], sock.getpeername()[0], f"{proxy.host}:{proxy.port}" if proxy else None
        )
        return connection

    def _lost(self, method: str, error: Exception, *, late: bool) -> AnswerLost:
        from .diagnosis import words

        message = (
            f"{self.host} did not answer within {self._timeout:g} s"
            if late
            else f"the connection to {self.host} was lost before the answer ({words(error)})"
        )
        if method == "POST":
            message += f". {MAYBE_MADE}"
        return AnswerLost(message, transient=not late)

    def _compare_clocks(self, date: str | None, began: float) -> None:
        if not date:
            return
        from email.utils import parsedate_to_datetime

        try:
            api_time = parsedate_to_datetime(date).timestamp() + 0.5  # the header has whole seconds
        except (TypeError, ValueError, OverflowError, IndexError):
            return
        self.clock_ahead = (began + time.time()) / 2 - api_time

    # ------------------------------------------------------------------ answers

    def _judge(
        self, method: str, status: int, headers: http.client.HTTPMessage, content: bytes
    ) -> dict[str, Any]:
        try:
            answer = json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._unexpected(method, status, self._not_the_api(status, headers))
        if 200 <= status < 300:
            return answer
        if 300 <= status < 400:
            raise UnexpectedAnswer(self._not_the_api(status, headers))
        retry_after = _retry_after(headers.get("retry-after"))
        problem = self._problem(status, answer, retry_after)
        if method == "POST" and isinstance(problem, Unavailable) and self._may_have_begun(problem):
            raise AnswerLost(f"{self.host} answered {status}: {problem}. {MAYBE_MADE}")
        raise problem

    @staticmethod
    def _may_have_begun(problem: Unavailable) -> bool:
        """Say whether the grant of a knock may have been started, and its id is not known.

        That is so after a fault of the function, and if the gateway answers in its place, because it failed
        or took too long. A 503 of the API names the grant, or says that nothing was opened.
        """
        if problem.status < 500 or problem.grant_id or problem.retry_after is not None:
            return False
        return problem.status == 500 or problem.title == GATEWAY

    def _unexpected(self, method: str, status: int, message: str) -> KnockError:
        """Make the error for an answer that is not the API's. After a 2xx or a 5xx, which a proxy or the
        gateway may send, the API may have got the knock.
        """
        if method == "POST" and (200 <= status < 300 or status >= 500):
            return AnswerLost(f"{message}. {MAYBE_MADE}")
        return UnexpectedAnswer(message)

    def _not_the_api(self, status: int, headers: http.client.HTTPMessage) -> str:
        message = f"{self.host} answered {status}"
        if 300 <= status < 400:
            try:
                host = urlsplit(headers.get("location") or "").hostname
            except ValueError:
                host = None
            message += f", a redirect to {host}" if host else ", a redirect"
        else:
            message += f" with {headers.get_content_type()}"
        return (
            f"{message}: that is not the Knock API. Is the URL {self.url} right, with its stage "
            "(like /prod)? A proxy, or a hotspot that wants a login first, can also answer so"
        )

    def _problem(self, status: int, answer: dict[str, Any], retry_after: float | None) -> KnockError:
        if "title" not in answer:
            # The gateway's own answers are {"message": …}.
            message = str(answer.get("message", ""))
            if status == 403 and message == "Missing Authentication Token":
                return UnexpectedAnswer(
                    f"{self.url} has no such route: is that the whole URL of the Knock API, with its stage?"
                )
            if status == 403:
                answer = {
                    "title": "The key is not accepted",
                    "detail": "it is wrong, disabled or another API's",
                }
                return KeyRejected(status, answer)
            answer = {"title": GATEWAY, "detail": message}
        if status == 429:
            return Throttled(status, answer, retry_after)
        if status >= 500:
            return Unavailable(status, answer, retry_after)
        name = str(answer.get("type", "")).rpartition(":")[2]  # urn:knock:problem:pool-exhausted
        return _REFUSALS.get(name, Refusal)(status, answer)


_REFUSALS: dict[str, type[Refusal]] = {
    "invalid-knock": InvalidKnock,
    "not-allowed": NotAllowed,
    "invalid-tag": NotAllowed,
    "grant-not-found": GrantNotFound,
    "pool-exhausted": PoolExhausted,
    "source-full": SourceFull,
    "too-many-grants": TooManyGrants,
    "target-gone": TargetGone,
    "wrong-family": WrongFamily,
}


def tls_context() -> ssl.SSLContext:
    """Make the context that checks the API's certificate.

    Python 3.13 and later refuse certificates that do not conform to RFC 5280, as those of some companies'
    authorities. KNOCK_TLS_LENIENT=1 disables that check; chain, name and dates are still checked.
    https://docs.python.org/3/library/ssl.html#ssl.VERIFY_X509_STRICT
    """
    context = ssl.create_default_context()
    if os.environ.get("KNOCK_TLS_LENIENT") == "1":
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _connect_by(family: int) -> Callable[..., socket.socket]:
    """Give a function like socket.create_connection that uses one address family."""

    def connect(address: tuple[str, int], timeout: float, _source: object = None) -> socket.socket:
        trouble: OSError = OSError("no address")
        for info in socket.getaddrinfo(*address, FAMILIES[family], socket.SOCK_STREAM):
            sock = None
            try:
                sock = socket.socket(*info[:3])
                sock.settimeout(timeout)
                sock.connect(info[4])
            except OSError as error:
                trouble = error
                if sock is not None:
                    sock.close()
                continue
            return sock
        raise trouble

    return connect


def _no_number(name: str) -> float:
    """Refuse NaN and Infinity, which Python's JSON parser accepts."""
    raise ValueError(f"{name} is not JSON")


def _retry_after(value: str | None) -> float | None:
    """Read Retry-After, seconds or a date, as seconds from now; None if it is missing or malformed.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if not value:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
