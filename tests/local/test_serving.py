"""The local stack's HTTP server: what it reads, what it refuses, and how it stops."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from local import serving
from local.serving import Server, bind


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer with the request's method, path, query and body."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("X-Path", environ["PATH_INFO"]), ("X-Query", environ["QUERY_STRING"])])
    return [environ["REQUEST_METHOD"].encode(), b" ", body]


def explode(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    raise RuntimeError("of the application")


class Serving:
    def __init__(self, app: Any) -> None:
        sockets = bind(0)
        self.address = ("127.0.0.1", sockets[0].getsockname()[1])
        self.server = Server(app, sockets, name="tested")

    def raw(self, *parts: bytes) -> bytes:
        """Send these bytes in their parts, and read until the server closes the connection."""
        with socket.create_connection(self.address, timeout=5) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01 if len(parts) > 1 else 0)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(65536):
                received += part
        return received

    def threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("tested")]


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Serving]]:
    servers: list[Serving] = []

    def serve(app: Any = echo) -> Serving:
        servers.append(Serving(app))
        return servers[-1]

    yield serve
    for served in servers:
        served.server.stop()


def post(head: bytes = b"", body: bytes = b"") -> bytes:
    return b"POST /a%2Fb?c=1 HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n" + body


def test_fifty_clients_are_answered_each_on_one_connection_of_its_own(serve: Any) -> None:
    served = serve()
    together = threading.Barrier(50)

    def ask(number: int) -> tuple[set[int], set[bytes]]:
        connection = http.client.HTTPConnection(*served.address, timeout=30)
        ports, answers = set(), set()
        for _ in range(5):
            connection.request("POST", "/", b"%d" % number)
            answers.add(connection.getresponse().read())
            ports.add(connection.sock.getsockname()[1])
            if len(ports) == 1:
                together.wait(30)
        connection.close()
        return ports, answers

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(ask, range(50)))
    assert [answers for _, answers in results] == [{b"POST %d" % number} for number in range(50)]
    assert all(len(ports) == 1 for ports, _ in results)


def test_a_request_may_arrive_in_any_parts(serve: Any) -> None:
    served = serve()
    request = post(b"Content-Length: 4\r\n", b"body")
    for parts in ([request], [request[:9], request[9:30], request[30:-2], request[-2:]]):
        answer = served.raw(*parts)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\nX-Path: /a/b\r\nX-Query: c=1\r\nContent-Length: 9\r\n")
        assert answer.endswith(b"\r\n\r\nPOST body")


def test_a_body_in_chunks_arrives_as_one_with_its_length(serve: Any) -> None:
    answer = serve().raw(post(b"Transfer-Encoding: chunked\r\n", b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"))
    assert answer.endswith(b"POST body")


def test_requests_sent_without_waiting_are_answered_in_their_order(serve: Any) -> None:
    answer = serve().raw(
        post(b"Content-Length: 1\r\n", b"1") + post(b"Content-Length: 1\r\n", b"2") + b"rubbish\r\n"
    )
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]
    assert answer.index(b"POST 1") < answer.index(b"POST 2")


def test_a_request_to_upgrade_to_another_protocol_is_answered_without_it(serve: Any) -> None:
    answer = serve().raw(post(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") + b"\x00\x01")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nConnection: close\r\n" in answer


def test_a_client_that_expects_100_continue_gets_it(serve: Any) -> None:
    with socket.create_connection(serve().address, timeout=5) as connection:
        connection.sendall(post(b"Content-Length: 4\r\nExpect: 100-continue\r\n"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert connection.recv(1000).endswith(b"POST body")


@pytest.mark.parametrize("end", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
def test_a_connection_that_is_to_end_is_closed_after_the_answer_which_says_so(serve: Any, end: bytes) -> None:
    with socket.create_connection(serve().address, timeout=5) as connection:
        connection.sendall(b"GET / " + end + b"\r\n")
        received = b""
        while part := connection.recv(1000):
            received += part
    assert b"\r\nConnection: close\r\n" in received


def test_the_answer_to_head_has_the_length_and_no_body(serve: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return []

    answer = serve(app).raw(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"\r\nContent-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"rubbish\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"501"),
        (post(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"xx"), b"400"),
        (post(b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), b"400"),
        (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), b"501"),
        (post(b"Content-Length : 1\r\n", b"x"), b"400"),
        (post(b"Content-Length: 67108865\r\n"), b"413"),
        (post(b"X: " + b"x" * 300_000), b"431"),
        (post(b"X: a\x00\r\n"), b"400"),
    ],
)
def test_a_malformed_request_is_refused_and_does_not_reach_the_application(
    serve: Any, data: bytes, status: bytes
) -> None:
    requests: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        requests.append(environ)
        return echo(environ, start_response)

    assert serve(app).raw(data)[9:12] == status
    assert not requests


def test_an_incomplete_body_does_not_reach_the_application(serve: Any) -> None:
    assert serve(explode).raw(post(b"Content-Length: 5\r\n", b"body")) == b""


def test_a_body_in_chunks_has_a_limit_too(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_MAX_BODY", 3)
    answer = serve().raw(post(b"Transfer-Encoding: chunked\r\n", b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"))
    assert answer[9:12] == b"413"


def test_a_header_with_an_underscore_is_not_read_as_one_with_a_hyphen(serve: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ.get("HTTP_X_API_KEY", "none").encode()]

    assert serve(app).raw(post(b"X_Api_Key: forged\r\n")).endswith(b"none")


def test_an_application_that_fails_is_a_500_and_is_logged(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "local.serving"):
        answer = serve(explode).raw(post())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "of the application" in caplog.text


def test_stopping_ends_idle_connections_without_its_grace_and_leaves_no_thread(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_STOP_GRACE", 30)
    served = serve()
    connections = [http.client.HTTPConnection(*served.address, timeout=5) for _ in range(20)]
    for connection in connections:
        connection.request("GET", "/")
        connection.getresponse().read()
    assert len(served.threads()) == 21
    hang_ups: list[tuple[int, int]] = []
    hang_up = served.server._hang_up

    def recorded_hang_up(direction: int) -> None:
        hang_ups.append((direction, len(served.server._threads())))
        hang_up(direction)

    monkeypatch.setattr(served.server, "_hang_up", recorded_hang_up)
    served.server.stop()
    assert hang_ups == [(socket.SHUT_RD, 20), (socket.SHUT_RDWR, 0)], "idle connections end by the first"
    assert not served.threads()
    for connection in connections:
        assert connection.sock.recv(1) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(served.address)


def test_stopping_lets_a_request_under_way_have_its_answer(serve: Any) -> None:
    begun = threading.Event()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        begun.set()
        time.sleep(0.2)
        return echo(environ, start_response)

    served = serve(slow)
    connection = http.client.HTTPConnection(*served.address, timeout=5)
    connection.request("GET", "/")
    assert begun.wait(5)
    served.server.stop()
    assert connection.getresponse().read() == b"GET "
    connection.close()
