"""HTTP to the Knock API: one request at a time, and every way it can fail said in plain words.

`http.client` and not requests or httpx: few dependencies and a quick start are promised, and the phases
of a call (name, connection, TLS, sent, answered) must be told apart to know what may be tried again.

What is tried again, twice at most, with a growing pause or the one that Retry-After asks for:

    what happened                               GET, DELETE   POST /knock
    not connected, may pass (refused, reset)    yes           yes: the API never saw it
    not connected, needs mending (name, TLS)    no            no
    sent, connection lost before the answer     yes           no
    sent, no answer in time                     no            no: the time is used up
    429 of the gateway (not a used-up quota)    yes           yes: the API never saw it
    503 with Retry-After                        yes           yes: the API says nothing was opened
    503 that names a grant                      -             no: that grant may be open
    other 5xx                                   yes           no

A knock that was sent and not answered is not sent again by itself: the grant may exist, and each knock
opens one of its own. Whether to open another beside it is for the person to say; the error tells them.

A key goes only to the URL it was given for: redirects are not followed, and plain http is refused except
to this machine. The time to resolve a name is the system resolver's own; all else has a limit here.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import random
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlencode, urlsplit

from . import __version__
from .errors import (
    AnswerLost,
    CannotReach,
    ConfigurationError,
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping

TRIES = 3
LONGEST_PAUSE = 20.0  # seconds; a longer Retry-After is for the caller to wait out
LARGEST_ANSWER = 8 * 1024 * 1024

# The gateway gives up on a function after 29 s and says so; waiting longer gains nothing.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html
ANSWER_TIMEOUT = 32.0
CONNECT_TIMEOUT = 5.0  # for each address of the API's name


class Path(NamedTuple):
    """How the API was reached: the address used on this machine, the other end's, and the proxy, if any."""

    local: str
    peer: str
    proxy: str | None


class Transport:
    """Calls one API with one key. Not safe for use by several threads at once."""

    def __init__(self, url: str, api_key: str, *, timeout: float, connect_timeout: float) -> None:
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
        self._connection: http.client.HTTPConnection | None = None
        self.path: Path | None = None
        self.clock_ahead: float | None = None

    def close(self) -> None:
        """Drop the open connection, if there is one. The next call makes a new one."""
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
        """Make one call and give the JSON object it answers with. Raises the errors of `knock.errors`."""
        repeatable = method in ("GET", "DELETE")
        trouble: CannotReach | Unavailable
        tries = 0
        while True:
            tries += 1
            pause = 0.25 * 2**tries * random.uniform(0.5, 1)  # noqa: S311 — spreads tries, hides nothing
            try:
                return self._call_once(method, path, query, body, reuse=repeatable)
            except AnswerLost as error:
                again, trouble = repeatable and error.passing, error
            except CannotReach as error:
                again, trouble = error.passing, error
            except Throttled as error:
                # "Limit Exceeded" is a used-up quota, which no pause of ours outlasts.
                again, trouble = error.detail != "Limit Exceeded", error
                pause = pause if error.retry_after is None else error.retry_after
            except Unavailable as error:
                again, trouble = repeatable or (error.retry_after is not None and not error.grant_id), error
                pause = pause if error.retry_after is None else error.retry_after
            self.close()
            if not again or tries == TRIES or pause > LONGEST_PAUSE:
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
        target = self._prefix + path + (f"?{urlencode(query)}" if query else "")
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        if not reuse:
            self.close()
        kept = self._connection is not None
        connection = self._connection or self._connect()
        self._connection = connection
        began = time.time()
        status, answered, content = 0, http.client.HTTPMessage(), b""
        timed_out = threading.Event()
        sock: socket.socket = connection.sock
        sock.settimeout(self._timeout)

        def give_up() -> None:
            timed_out.set()
            # The plain socket's shutdown: an SSLSocket's own would pull the TLS layer from under the reader.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

        # The socket's own timeout starts anew with every byte; this one holds for the whole answer.
        alarm = threading.Timer(self._timeout, give_up)
        alarm.daemon = True
        alarm.start()
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            status, answered = response.status, response.headers
            content = response.read(LARGEST_ANSWER + 1)
            if response.length and len(content) <= LARGEST_ANSWER:
                raise ConnectionResetError("the answer broke off")
            if response.will_close:
                self.close()
        except (TimeoutError, OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            late = timed_out.is_set() or isinstance(error, TimeoutError)
            if kept and not late and isinstance(error, (ConnectionError, ssl.SSLError)):
                # The server had closed the kept connection meanwhile. Only repeatable calls come here.
                return self._call_once(method, path, query, body, reuse=False)
            raise self._lost(method, error, late=late) from error
        finally:
            alarm.cancel()
        self._compare_clocks(answered.get("date"), began)
        if len(content) > LARGEST_ANSWER:
            self.close()  # the rest is still to come
            raise UnexpectedAnswer(f"{self.host} answered with more than {LARGEST_ANSWER} bytes")
        return self._judge(status, answered, content)

    # ------------------------------------------------------------------ connecting

    def _connect(self) -> http.client.HTTPConnection:
        proxy = _proxy_for(self.host, self._port) if self._tls else None
        connection: http.client.HTTPConnection
        if self._tls:
            host, port = (proxy.host, proxy.port) if proxy else (self.host, self._port)
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._connect_timeout, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self.host, self._port, timeout=self._connect_timeout)
        try:
            if proxy:
                connection.set_tunnel(self.host, self._port, proxy.headers)
            connection.connect()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            connection.close()
            raise _why_not_connected(error, self.host, self._port, proxy) from error
        sock = connection.sock
        self.path = Path(
            sock.getsockname()[0], sock.getpeername()[0], f"{proxy.host}:{proxy.port}" if proxy else None
        )
        return connection

    def _lost(self, method: str, error: Exception, *, late: bool) -> AnswerLost:
        what = (
            f"{self.host} did not answer within {self._timeout:g} s"
            if late
            else f"the connection to {self.host} was lost before the answer ({_words(error)})"
        )
        if method == "POST":
            what += ". The grant may have been made: look with `knock ls`; another knock opens one beside it"
        return AnswerLost(what, passing=not late)

    def _compare_clocks(self, date: str | None, began: float) -> None:
        if not date:
            return
        from email.utils import parsedate_to_datetime

        try:
            theirs = parsedate_to_datetime(date).timestamp() + 0.5  # the header has whole seconds
        except (TypeError, ValueError):
            return
        self.clock_ahead = (began + time.time()) / 2 - theirs

    # ------------------------------------------------------------------ answers

    def _judge(self, status: int, headers: http.client.HTTPMessage, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UnexpectedAnswer(self._not_the_api(status, headers))
        if 200 <= status < 300:
            return answer
        if 300 <= status < 400:
            raise UnexpectedAnswer(self._not_the_api(status, headers))
        raise self._problem(status, answer, _retry_after(headers.get("retry-after")))

    def _not_the_api(self, status: int, headers: http.client.HTTPMessage) -> str:
        what = f"{self.host} answered {status}"
        if 300 <= status < 400:
            elsewhere = urlsplit(headers.get("location") or "").hostname
            what += f", a redirect to {elsewhere}" if elsewhere else ", a redirect"
        else:
            what += f" with {headers.get_content_type()}"
        return (
            f"{what}: that is not the Knock API. Is the URL {self.url} right, with its stage (like /prod)? "
            "A proxy, or a hotspot that wants a login first, can also answer so"
        )

    def _problem(self, status: int, answer: dict[str, Any], retry_after: float | None) -> KnockError:
        if "title" not in answer:
            # The gateway's own answers are {"message": …}, here or before the functions are asked.
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
            answer = {"title": "The gateway says", "detail": message}
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
}


# ---------------------------------------------------------------------- what is sent, and where to


def clean_url(url: str) -> str:
    """Check the API's URL and cut what people paste along with it. Raises ConfigurationError."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not _printable(url):
        raise ConfigurationError(f"{url[:200]!r} is not a URL like https://api.example.com/prod")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            "the URL is only https://HOST/STAGE: no user, no ?, no #; a key has no place in it"
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(
            f"http:// would show the key to the network on the way to {host}: use https://"
        )
    path = parts.path.rstrip("/")
    for end in ("/knock", "/console", "/whoami", "/grants"):
        path = path.removesuffix(end)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


def check_key(key: str) -> str:
    """Check that a key can be a header's value. The message never repeats it. Raises ConfigurationError."""
    key = key.strip()
    if not key:
        raise ConfigurationError("the API key is empty")
    if not _printable(key):
        raise ConfigurationError(
            "the API key holds a space or a character that no key has: was it pasted whole?"
        )
    return key


def _printable(text: str) -> bool:
    """Say whether a text is ASCII without spaces and control characters: what a header or a URL can hold."""
    return all("!" <= character <= "~" for character in text)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Proxy(NamedTuple):
    host: str
    port: int
    headers: dict[str, str]


def _proxy_for(host: str, port: int) -> _Proxy | None:
    """Find the proxy for a host: HTTPS_PROXY, ALL_PROXY and NO_PROXY, or the system's setting."""
    names = {name.lower() for name in os.environ}
    if sys.platform not in ("darwin", "win32") and not names & {"https_proxy", "all_proxy"}:
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    address = proxies.get("https") or proxies.get("all")
    if not address or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        proxy_host, proxy_port = parts.hostname, parts.port or 80
    except ValueError:
        proxy_host, proxy_port = None, 0
    if not proxy_host or parts.scheme != "http":
        raise ConfigurationError(
            f"the proxy setting for {host} is not one of http://PROXY:PORT (its kind is {parts.scheme!r}): "
            "change HTTPS_PROXY, or name the API's host in NO_PROXY"
        )
    headers = {}
    if parts.username is not None:
        import base64

        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["proxy-authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    return _Proxy(proxy_host, proxy_port, headers)


# ---------------------------------------------------------------------- why it failed, in words


def _why_not_connected(error: Exception, host: str, port: int, proxy: _Proxy | None) -> CannotReach:
    """Turn what the system says about a connection into what to look at."""
    near = f"the proxy {proxy.host}:{proxy.port}" if proxy else f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return CannotReach(_about_certificate(error, host))
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # not there on every error of the module
        if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return CannotReach(f"{host}:{port} does not speak TLS: is the URL right, with its port?")
        return CannotReach(f"TLS with {host} failed ({reason or _words(error)})", passing=True)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        name = proxy.host if proxy else host
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            return CannotReach(f"no name server answers for {name}: is this machine offline?")
        what = "proxy" if proxy else "API"
        return CannotReach(
            f"the {what}'s name {name} is not known to DNS: is it spelt right? Behind a VPN, is that up?"
        )
    text = str(error)
    if text.startswith("Tunnel connection failed"):
        status = text.partition(": ")[2]
        if status.startswith("407"):
            return CannotReach(
                f"{near} wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@{near.split()[-1]}"
            )
        return CannotReach(f"{near} will not connect to {host}:{port}: {status}")
    if isinstance(error, TimeoutError):
        return CannotReach(f"{near} does not answer: connecting timed out", passing=True)
    if isinstance(error, ConnectionError):
        return CannotReach(f"{near} does not take the connection ({_words(error)})", passing=True)
    return CannotReach(f"{near} cannot be reached ({_words(error)})", passing=True)


# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62
_UNKNOWN_ISSUER = (18, 19, 20, 21)


def _about_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if error.verify_code == _NOT_YET_VALID:
        return (
            f"the certificate of {host} is not valid yet, and this machine's clock says {now}: "
            "if that is wrong, set the clock"
        )
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {host} is no longer valid, and this machine's clock says {now}: "
            "if that is wrong, set the clock; if it is right, tell an operator"
        )
    if error.verify_code == _WRONG_NAME:
        return f"the certificate is not for {host}: the URL is wrong, or something on the way answers for it"
    if error.verify_code in _UNKNOWN_ISSUER:
        return (
            f"the certificate of {host} is signed by nobody this machine trusts ({error.verify_message}). "
            "Behind a company's proxy that reads TLS, point SSL_CERT_FILE at its certificates"
        )
    return f"the certificate of {host} does not hold ({error.verify_message})"


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _retry_after(value: str | None) -> float | None:
    """Read Retry-After: seconds, or a date. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
