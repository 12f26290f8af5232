"""Every call of AWS can be watched, broken and lost at the local stack's endpoint."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local.endpoint import Answer, Call, Endpoint, Forward, failure
from local.serving import PortInUse, Server, bind


def fake_aws(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer every call with an empty success of its protocol."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    xml = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
    body = b"<Response><SelectResult/></Response>" if xml else b"{}"
    start_response("200 OK", [("Content-Type", "text/xml" if xml else "application/json")])
    return [body]


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(fake_aws)


@pytest.fixture
def url(endpoint: Endpoint) -> Iterator[str]:
    sockets = bind(0)
    server = Server(endpoint, sockets, name="test")
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    server.stop()


@pytest.fixture
def client(url: str) -> Callable[..., Any]:
    def client(service: Any, access_key: str = "AKIATEST") -> Any:
        config = Config(retries={"total_max_attempts": 1})
        session = boto3.Session(access_key, "secret", region_name="eu-west-1")
        return session.client(service, endpoint_url=url, config=config)

    return client


class Recorder:
    """A watcher that forwards every call and records it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, call: Call, forward: Forward) -> Answer:
        self.calls.append(call)
        return forward()


@pytest.mark.parametrize(
    ("service", "method", "arguments", "names"),
    [
        ("ec2", "describe_security_groups", {}, ("ec2", "DescribeSecurityGroups")),
        ("sdb", "select", {"SelectExpression": "select * from d"}, ("sdb", "Select")),
        ("stepfunctions", "list_state_machines", {}, ("states", "ListStateMachines")),
        ("apigateway", "get_api_key", {"apiKey": "abc"}, ("apigateway", "GetApiKey")),
        ("apigateway", "get_api_keys", {}, ("apigateway", "GetApiKeys")),
        ("apigateway", "get_tags", {"resourceArn": "arn:aws:a/b"}, ("apigateway", "GetTags")),
        ("lambda", "invoke", {"FunctionName": "f", "Payload": b"{}"}, ("lambda", "Invoke")),
        ("resourcegroupstaggingapi", "get_resources", {}, ("tagging", "GetResources")),
    ],
)  # fmt: skip
def test_a_call_has_the_names_of_the_api_reference(
    endpoint: Endpoint, client: Callable[..., Any], service: str, method: str, arguments: Any, names: Any
) -> None:
    recorder = Recorder()
    with endpoint.watched_by(recorder):
        getattr(client(service, "ASIAAPIFUNCTION"), method)(**arguments)
    (call,) = recorder.calls
    assert (call.service, call.operation) == names
    assert call.access_key == "ASIAAPIFUNCTION"


def test_an_unknown_operation_is_named_by_its_path(endpoint: Endpoint, url: str) -> None:
    recorder = Recorder()
    with endpoint.watched_by(recorder):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/somewhere?x=1")
        assert connection.getresponse().status == 200
        connection.close()
    assert recorder.calls[0].operation == "GET /somewhere"


def test_a_watcher_sees_calls_only_while_it_watches(endpoint: Endpoint, client: Callable[..., Any]) -> None:
    recorder = Recorder()
    ec2 = client("ec2")
    ec2.describe_security_groups()
    with endpoint.watched_by(recorder):
        ec2.describe_security_groups()
    ec2.describe_security_groups()
    assert len(recorder.calls) == 1


def test_watchers_are_called_one_after_another_the_last_first(
    endpoint: Endpoint, client: Callable[..., Any]
) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[Call, Forward], Answer]:
        def watch(_call: Call, forward: Forward) -> Answer:
            order.append(name)
            return forward()

        return watch

    with endpoint.watched_by(named("first")), endpoint.watched_by(named("last")):
        client("ec2").describe_security_groups()
    assert order == ["last", "first"]


@pytest.mark.parametrize(
    ("service", "method", "arguments"),
    [
        ("ec2", "describe_security_groups", {}),
        ("sdb", "list_domains", {}),
        ("stepfunctions", "list_state_machines", {}),
        ("apigateway", "get_api_keys", {}),
        ("lambda", "invoke", {"FunctionName": "f"}),
    ],
)
def test_an_injected_failure_has_the_form_of_the_services_own(
    endpoint: Endpoint, client: Callable[..., Any], service: str, method: str, arguments: Any
) -> None:
    def refuse(call: Call, _forward: Forward) -> Answer:
        return failure(call, "RequestLimitExceeded", "<too> many", 400)

    with endpoint.watched_by(refuse), pytest.raises(ClientError) as caught:
        getattr(client(service), method)(**arguments)
    error = caught.value.response["Error"]
    assert (error["Code"], error["Message"]) == ("RequestLimitExceeded", "<too> many")


def test_an_answer_can_be_lost_after_aws_has_acted(endpoint: Endpoint, client: Callable[..., Any]) -> None:
    acted: list[Answer] = []

    def lose(call: Call, forward: Forward) -> Answer:
        acted.append(forward())
        return failure(call, "InternalError")

    with endpoint.watched_by(lose), pytest.raises(ClientError):
        client("ec2").describe_security_groups()
    assert acted[0].status == 200


def test_step_functions_calls_can_go_to_another_engine(client: Callable[..., Any]) -> None:
    recorder = Recorder()

    def engine(call: Call, forward: Forward) -> Answer:
        recorder(call, lambda: Answer(200, [], b"{}"))
        return Answer(200, [("Content-Type", "application/x-amz-json-1.0")], b'{"stateMachines": []}')

    sockets = bind(0)
    server = Server(Endpoint(fake_aws, engine), sockets, name="test")
    try:
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        session = boto3.Session("a", "b", region_name="eu-west-1")
        session.client("stepfunctions", endpoint_url=url).list_state_machines()
        session.client("ec2", endpoint_url=url).describe_security_groups()
    finally:
        server.stop()
    assert [call.operation for call in recorder.calls] == ["ListStateMachines"]


# Serving


def test_a_server_listens_on_loopback_of_both_families_at_one_port(url: str) -> None:
    port = int(url.rpartition(":")[2])
    hosts = ["127.0.0.1"]
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
            hosts.append("::1")
        except OSError:
            pass  # no IPv6 on this machine
    for host in hosts:
        connection = http.client.HTTPConnection(host, port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    listening = bind(0)
    port = listening[0].getsockname()[1]
    try:
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is in use"):
            bind(port)
    finally:
        for socket_ in listening:
            socket_.close()


def test_a_port_that_is_free_in_one_family_only_is_in_use() -> None:
    blocker = socket.socket(socket.AF_INET6)
    try:
        blocker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        blocker.bind(("::1", 0))
    except OSError:
        blocker.close()
        pytest.skip("this machine has no IPv6")
    blocker.listen()
    port = blocker.getsockname()[1]
    try:
        with pytest.raises(PortInUse, match=f"port {port} of ::1 is in use"):
            bind(port)
    finally:
        blocker.close()
    for listening in bind(port):  # the attempt has left nothing open
        listening.close()


def test_stopping_waits_at_most_a_second_for_a_request_and_closes_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def hang(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        begun.set()
        release.wait(60)
        start_response("200 OK", [])
        return [b""]

    waits: list[float | None] = []
    join = threading.Thread.join

    def recorded_join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "test connection":
            waits.append(timeout)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", recorded_join)
    sockets = bind(0)
    server = Server(hang, sockets, name="test")
    connection = http.client.HTTPConnection("127.0.0.1", sockets[0].getsockname()[1])
    connection.request("GET", "/")
    assert begun.wait(5)
    server.stop()
    server.stop()
    (seconds,) = waits
    assert seconds is not None
    assert seconds <= 1
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
    release.set()
