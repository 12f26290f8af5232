"""HTTP for the local stack: loopback sockets, and a WSGI server with a thread for each connection.

Clients keep many connections open (each of a function's workers keeps one to each service), few of them busy
at a time; a call may wait for a function, which makes calls itself. So in a pool of threads the calls that
wait would leave no thread for the calls they wait for, and a single loop pays for idle connections too.

Measured for that: the server's CPU time for one request of 600 bytes, answered at once, with CPython 3.11 on
two processors; and the longest wait of 10,000 requests by 50 clients.

    server                       50 clients  2 clients beside 250 idle  longest wait
    waitress 3.0                    107 µs            446 µs               0.1 s   a loop over all connections
    cheroot 11.1                    184 µs            190 µs               3.4 s   stalls as they come and go
    werkzeug 3.1, threaded            -                 -                    -     closes after each answer
    gunicorn 27's parser            140 µs            103 µs               0.4 s   its server is processes
    the same, with gunicorn_h1c     107 µs             82 µs               0.3 s
    http.server                     101 µs             68 µs               0.3 s   lenient in what it reads
    this module, httptools 0.9       42 µs             17 µs               0.2 s

None of the servers meets all three requirements: a thread a connection, persistent connections, and a clean
stop in a process that does other things too. So httptools (llhttp, Node's strict parser) parses HTTP, where
mistakes are dangerous, and the loop around it is this module's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

__all__ = ["PortInUse", "Server", "bind"]

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

log = logging.getLogger(__name__)

_BACKLOG = 1024
_CONNECTIONS = 4096
_PORTS_TO_TRY = 20
_IDLE_SECONDS = 300  # that a connection may be silent
_STOP_GRACE = 1.0  # seconds for current requests to finish
_MAX_HEAD = 256 * 1024  # bytes
_MAX_BODY = 64 * 1024 * 1024  # bytes; more than any AWS call here, and than API Gateway's 10 MB
_READ = 64 * 1024  # bytes


class PortInUse(Exception):
    """Another program listens on the port."""


def bind(port: int) -> list[socket.socket]:
    """Listen on 127.0.0.1, and on ::1 where there is IPv6, at one port; 0 picks one. Raises PortInUse."""
    for _ in range(_PORTS_TO_TRY):
        bound = [_listen(socket.AF_INET, "127.0.0.1", port)]
        try:
            bound.append(_listen(socket.AF_INET6, "::1", bound[0].getsockname()[1]))
        except PortInUse:
            bound[0].close()
            if port:
                raise
            continue  # free on 127.0.0.1 only
        except OSError:
            pass  # no IPv6 on this machine
        return bound
    raise PortInUse("no port is free on both 127.0.0.1 and ::1")


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {port} of {host} is in use by another program") from error
        raise
    return listening


class Server:
    """A WSGI application served on bound sockets, from creation until `stop`."""

    def __init__(self, app: WsgiApp, sockets: list[socket.socket], *, name: str) -> None:
        """Start serving: one thread accepts connections, and each connection has its own thread."""
        _allow_open_files()
        self._app = app
        self._sockets = sockets
        self._name = name
        self._stopping = False
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        for listening in sockets:
            listening.setblocking(False)  # a client may have disconnected again before accept()
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let current requests finish for a second, then close all connections; later calls do nothing."""
        if self._stopping:
            return
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join()
        for socket_ in (*self._sockets, self._wake, self._woken):
            socket_.close()
        self._hang_up(socket.SHUT_RD)  # idle connections end, busy ones still answer
        deadline = time.monotonic() + _STOP_GRACE
        for thread in self._threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._hang_up(socket.SHUT_RDWR)

    def _accept(self) -> None:
        poll = select.poll()  # select() knows no file descriptor over 1023
        waiting = {socket_.fileno(): socket_ for socket_ in (*self._sockets, self._woken)}
        for number in waiting:
            poll.register(number, select.POLLIN)
        while not self._stopping:
            for number, _ in poll.poll():
                if waiting[number] is self._woken:
                    return
                try:
                    connection, peer = waiting[number].accept()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        log.error("no connection more: %s", error)
                        time.sleep(0.1)
                    continue
                self._begin(connection, peer)

    def _begin(self, connection: socket.socket, peer: Any) -> None:
        if len(self._connections) >= _CONNECTIONS:
            log.error("no connection more: there are %d", _CONNECTIONS)
            connection.close()
            return
        connection.setblocking(True)
        # Not settimeout(), which adds a system call to every read.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _IDLE_SECONDS, 0))
        thread = threading.Thread(
            target=self._converse, args=(connection, peer), name=f"{self._name} connection", daemon=True
        )
        with self._lock:
            self._connections[thread] = connection
            try:
                thread.start()
            except RuntimeError as error:  # this machine has no threads left
                log.error("no connection more: %s", error)
                del self._connections[thread]
                connection.close()

    def _converse(self, connection: socket.socket, peer: Any) -> None:
        try:
            with contextlib.suppress(OSError):  # disconnected, or silent for too long
                self._answer_all(connection, _Requests(connection, peer))
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
                connection.close()  # under the lock: else `_hang_up` could shut down its number's next owner

    def _answer_all(self, connection: socket.socket, requests: _Requests) -> None:
        """Answer a connection's requests in order, until the client or the server closes it."""
        while data := connection.recv(_READ):
            refused = requests.feed(data)
            while requests.ready:
                if self._stopping:
                    return
                environ, persist = requests.ready.popleft()
                answer, persist = self._answer(environ, persist)
                connection.sendall(answer)
                if not persist:
                    _close_after_answer(connection)
                    return
            if refused:
                connection.sendall(_answer(f"{refused.value} {refused.phrase}", [], b"", persist=False))
                _close_after_answer(connection)
                return

    def _answer(self, environ: dict[str, Any], persist: bool) -> tuple[bytes, bool]:
        status, headers = "", []
        body: list[bytes] = []

        def start_response(
            line: str, response_headers: list[tuple[str, str]], _error: Any = None
        ) -> Callable[[bytes], None]:
            nonlocal status, headers
            status, headers = line, response_headers
            return body.append

        try:
            parts = self._app(environ, start_response)
            try:
                body.extend(parts)
            finally:
                if close := getattr(parts, "close", None):
                    close()
            return _answer(
                status, headers, b"".join(body), persist=persist, head=environ["REQUEST_METHOD"] == "HEAD"
            ), persist
        except Exception:
            log.exception("a request was not answered")
            return _answer("500 Internal Server Error", [], b"", persist=False), False

    def _threads(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._connections)

    def _hang_up(self, direction: int) -> None:
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # the client has closed it first
                    connection.shutdown(direction)


class _Requests:
    """Reads a connection's requests; httptools calls the methods `on_...`."""

    def __init__(self, connection: socket.socket, peer: Any) -> None:
        self.ready: deque[tuple[dict[str, Any], bool]] = deque()
        """Requests to answer, as WSGI environments, and whether the connection persists after the answer."""
        self._connection = connection
        here = connection.getsockname()
        self._constant = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": here[0],
            "SERVER_PORT": str(here[1]),
            "REMOTE_ADDR": peer[0],
            "REMOTE_PORT": str(peer[1]),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        self._parser = httptools.HttpRequestParser(self)
        self._refused: HTTPStatus | None = None
        self._in_head = True
        self._length = 0  # bytes of the head or the body, so far
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> HTTPStatus | None:
        """Parse more data; returns the status to refuse the connection with, or None."""
        if self._in_head:
            self._length += len(data)  # a head received in one part is never too long
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # To another protocol, which is not supported. The request is answered as if without Upgrade.
            self.ready[-1] = (self.ready[-1][0], False)
        except httptools.HttpParserError as error:
            log.debug("refused: %r", error)
            return self._refused or HTTPStatus.BAD_REQUEST
        if self._in_head and self._length > _MAX_HEAD:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return None

    def on_message_begin(self) -> None:
        self._in_head, self._url, self._headers, self._body = True, b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if b"_" in name:
            return  # its WSGI name would be another header's: X_Api_Key is X-Api-Key's
        key = name.decode("latin-1").upper().replace("-", "_")
        text = value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._in_head, self._length = False, 0
        headers = self._headers
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if self._parser.get_method() == b"CONNECT":
            self._refuse(HTTPStatus.NOT_IMPLEMENTED)
        if headers.pop("TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
            self._refuse(HTTPStatus.NOT_IMPLEMENTED)
        if int(headers.get("CONTENT_LENGTH", 0)) > _MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if headers.pop("EXPECT", "").strip().lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > _MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._body.append(part)

    def on_message_complete(self) -> None:
        raw = self._url.decode("latin-1")
        target = raw
        if not raw.startswith("/"):  # to a proxy: http://host/path
            target = "/" + raw.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("#")[0].partition("?")
        body = b"".join(self._body)
        environ = self._constant | {
            "REQUEST_METHOD": self._parser.get_method().decode(),
            "REQUEST_URI": raw,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1") if "%" in path else path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": f"HTTP/{self._parser.get_http_version()}",
            "wsgi.input": BytesIO(body),
        }
        for name, value in self._headers.items():
            environ[name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"] = value
        if body:
            environ["CONTENT_LENGTH"] = str(len(body))  # of a chunked body, too
        self.ready.append((environ, self._parser.should_keep_alive()))
        self._in_head, self._length, self._body = True, 0, []

    def _refuse(self, status: HTTPStatus) -> None:
        self._refused = status
        raise ValueError(status.phrase)  # httptools turns it into its own error


def _answer(
    status: str, headers: list[tuple[str, str]], body: bytes, *, persist: bool, head: bool = False
) -> bytes:
    """Write an answer with its length; the application's own Content-Length and Connection are dropped."""
    lines = [f"HTTP/1.1 {status}"]
    length = str(len(body))
    for name, value in headers:
        match name.lower():
            case "content-length":
                length = value if head else length
            case "connection" | "transfer-encoding":
                pass
            case _:
                lines.append(f"{name}: {value}")
    if not status.startswith(("1", "204", "304")):
        lines.append(f"Content-Length: {length}")
    lines.append(f"Date: {_date(int(time.time()))}")
    lines.append("Connection: " + ("keep-alive" if persist else "close"))
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (b"" if head else body)


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _close_after_answer(connection: socket.socket) -> None:
    """Close a connection so that the last answer arrives: the kernel drops it while input is unread."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(0.5)
    unread = 0
    while unread < _MAX_BODY and (part := connection.recv(_READ)):
        unread += len(part)


def _allow_open_files() -> None:
    """Raise this process's limit on open files: each connection and each worker needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
