"""HTTP for the local stack: loopback sockets, and a WSGI server with a thread for each connection.

What is served here is called over many connections that last (each of a function's workers keeps one to each
service), few at a time; a call may wait for a function, which makes calls itself. So a pool of threads would
starve the latter of threads for the former, and one loop over all connections pays for those that are idle.

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

None of the servers has all that is wanted: a thread a connection, connections that persist, and a clean stop
within a process that does other things. So reading HTTP, where mistakes are dangerous, is httptools' (llhttp,
which is Node's and strict), and the loop around it is this module's.
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
_IDLE_SECONDS = 300  # that a connection may say nothing
_STOP_GRACE = 1.0  # seconds that requests under way have to finish
_MAX_HEAD = 256 * 1024  # bytes
_MAX_BODY = 64 * 1024 * 1024  # bytes; more than any call of AWS's here, and than API Gateway's 10 MB
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
            continue  # free on one side only
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
    """A WSGI application served on bound sockets, from now until `stop`."""

    def __init__(self, app: WsgiApp, sockets: list[socket.socket], *, name: str) -> None:
        """Begin to serve: a thread accepts connections, and each has a thread of its own."""
        _allow_open_files()
        self._app = app
        self._sockets = sockets
        self._name = name
        self._stopping = False
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        for listening in sockets:
            listening.setblocking(False)  # whoever connected may be gone again when accept() asks for it
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let requests under way finish for a second, then close every connection. Twice is once."""
        if self._stopping:
            return
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join()
        for ours in (*self._sockets, self._wake, self._woken):
            ours.close()
        self._hang_up(socket.SHUT_RD)  # which ends those that wait for a request, and lets the others answer
        deadline = time.monotonic() + _STOP_GRACE
        for thread in self._threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._hang_up(socket.SHUT_RDWR)

    def _accept(self) -> None:
        poll = select.poll()  # select() knows no file descriptor over 1023
        waiting = {ours.fileno(): ours for ours in (*self._sockets, self._woken)}
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
        # Not settimeout(), for which every read would ask twice.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _IDLE_SECONDS, 0))
        thread = threading.Thread(
            target=self._converse, args=(connection, peer), name=f"{self._name} connection", daemon=True
        )
        with self._lock:
            self._connections[thread] = connection
            try:
                thread.start()
            except RuntimeError as error:  # this machine has no thread more
                log.error("no connection more: %s", error)
                del self._connections[thread]
                connection.close()

    def _converse(self, connection: socket.socket, peer: Any) -> None:
        try:
            with contextlib.suppress(OSError):  # gone, or silent for too long
                self._answer_all(connection, _Requests(connection, peer))
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
                connection.close()  # under the lock: else whoever has its number next could be hung up on

    def _answer_all(self, connection: socket.socket, requests: _Requests) -> None:
        """Answer a connection's requests one after the other, until one side wants no more."""
        while data := connection.recv(_READ):
            refused = requests.feed(data)
            while requests.ready:
                if self._stopping:
                    return
                environ, persist = requests.ready.popleft()
                answer, persist = self._answer(environ, persist)
                connection.sendall(answer)
                if not persist:
                    _see_off(connection)
                    return
            if refused:
                connection.sendall(_answer(f"{refused.value} {refused.phrase}", [], b"", persist=False))
                _see_off(connection)
                return

    def _answer(self, environ: dict[str, Any], persist: bool) -> tuple[bytes, bool]:
        status, headers = "", []
        body: list[bytes] = []

        def start_response(
            line: str, given: list[tuple[str, str]], _error: Any = None
        ) -> Callable[[bytes], None]:
            nonlocal status, headers
            status, headers = line, given
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

    def _hang_up(self, how: int) -> None:
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # the other side was first
                    connection.shutdown(how)


class _Requests:
    """Reads a connection's requests; httptools calls the methods `on_...`."""

    def __init__(self, connection: socket.socket, peer: Any) -> None:
        self.ready: deque[tuple[dict[str, Any], bool]] = deque()
        """What is to be answered, as WSGI has it, and whether the connection is to persist then."""
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
        """Read on; returns why no more is read from this connection, once that is so."""
        if self._in_head:
            self._length += len(data)  # of a head that comes in many parts; in one it is never too long
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # To another protocol, which nobody here speaks. The request is as good as without it.
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
            return  # it would look like another: X_Api_Key like X-Api-Key
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
            environ["CONTENT_LENGTH"] = str(len(body))  # of one in chunks, too
        self.ready.append((environ, self._parser.should_keep_alive()))
        self._in_head, self._length, self._body = True, 0, []

    def _refuse(self, status: HTTPStatus) -> None:
        self._refused = status
        raise ValueError(status.phrase)  # which httptools makes its own error


def _answer(
    status: str, headers: list[tuple[str, str]], body: bytes, *, persist: bool, head: bool = False
) -> bytes:
    """Write an answer, of known length: what an application says of that or the connection is not sent."""
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


def _see_off(connection: socket.socket) -> None:
    """Close a connection so that the last answer arrives: what nobody reads would have it thrown away."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(0.5)
    unread = 0
    while unread < _MAX_BODY and (part := connection.recv(_READ)):
        unread += len(part)


def _allow_open_files() -> None:
    """Raise this process's limit on open files as far as it may: each connection and each worker is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
