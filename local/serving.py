"""HTTP for the local stack: loopback sockets, and a WSGI server on threads.

waitress serves, because it was measured: 8,000 requests a second to 50 clients, where werkzeug's development
server did 2,000 and cheroot stalled for a second now and then. It has a fixed number of threads; there are
many of them, since a request may wait for a function, which makes requests itself: too few, and a burst of
the former would starve the latter for ever.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from waitress import wasyncore
from waitress.server import create_server
from waitress.trigger import trigger

__all__ = ["PortInUse", "Server", "bind"]

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_BACKLOG = 1024
_CONNECTIONS = 4096
_PORTS_TO_TRY = 20


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

    def __init__(self, app: WsgiApp, sockets: list[socket.socket], *, threads: int, name: str) -> None:
        """Begin to serve, on a thread of its own."""
        _allow_open_files()
        logging.getLogger("waitress").setLevel(
            logging.ERROR
        )  # it warns of every request that waits for a thread
        self._channels: dict[int, Any] = {}
        self._server = create_server(
            app,
            map=self._channels,
            sockets=sockets,
            threads=threads,
            ident=None,
            backlog=_BACKLOG,
            connection_limit=_CONNECTIONS,
            channel_timeout=300,
            asyncore_use_poll=True,  # select() knows no file descriptor over 1023
            clear_untrusted_proxy_headers=False,  # who may set them is the front's to decide
        )
        self._thread = threading.Thread(target=self._server.run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let requests under way finish for a second, then close every connection. Twice is once."""
        if not self._thread.is_alive():
            return
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        waker = next(channel for channel in self._channels.values() if isinstance(channel, trigger))
        # On the server's own thread: another's would close what that one is about to poll.
        waker.pull_trigger(self._close)  # type: ignore[arg-type]  # it is called with nothing
        self._thread.join()

    def _close(self) -> None:
        wasyncore.close_all(self._channels, ignore_all=True)


def _allow_open_files() -> None:
    """Raise this process's limit on open files as far as it may: each connection and each worker is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
