"""What the clients' tests share: an API to call, a home of its own, and ways to run the programs."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from knock import Client, session
from tests.clients.double import Double
from tests.conftest import ROOT
from tests.local_stack import LocalStack

CLIENTS = ROOT / "clients"


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def double() -> Iterator[Double]:
    api = Double()
    yield api
    api.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `knock` as pip would install it, and nothing else."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "knock"
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(CLIENTS)!r})\n"
        "from knock.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def home(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, with no settings in it and `knock` on the PATH."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("XDG_", "SSL_CERT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Files get the modes they are made with, whatever umask the tests' user has."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run `knock` in this process."""

    def knock(*words: str) -> Result:
        from knock.cli import main

        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as stop:  # argparse's way out
            code = stop.code if isinstance(stop.code, int) else 1
        output = capsys.readouterr()
        return Result(code, output.out, output.err)

    return knock


@pytest.fixture
def spawn(home: Path) -> Callable[..., Result]:
    """Run a program in a process of its own."""

    def command(*words: str, stdin: str = "", timeout: float = 30) -> Result:
        result = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Result(result.returncode, result.stdout, result.stderr)

    return command


@pytest.fixture
def knocks(double: Double, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the first knock's grant fail for want of room, and collect who knocked; cleared, it begins anew."""
    real, principals = double.knock, list[str]()

    def knock(principal: str, request: dict[str, object]) -> object:
        principals.append(principal)
        first = len(principals) == 1
        double.opens_after, double.fails = (0.1, "PoolExhausted: full") if first else (0.0, "")
        return real(principal, request)

    monkeypatch.setattr(double, "knock", knock)
    return principals


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the options of each client that a command makes: its timeouts and tries."""
    options: list[dict[str, Any]] = []

    def client(*arguments: Any, **given: Any) -> Client:
        options.append(given)
        return Client(*arguments, **given)

    monkeypatch.setattr(session, "Client", client)
    return options


def check_time_left(duration: timedelta, *, began: datetime, expires_at: datetime, seconds_left: int) -> None:
    """Fail unless the end and the time left are those of a grant opened between `began` and now.

    However long a test takes, they lie between the values for `began` and those for now.
    """
    ended = datetime.now(timezone.utc)
    began = began.replace(microsecond=0)
    assert began + duration <= expires_at <= ended + duration + timedelta(seconds=1)
    assert int((expires_at - ended).total_seconds()) <= seconds_left
    assert seconds_left <= int((expires_at - began).total_seconds())


# ---------------------------------------------------------------------- the API, on double and stack


class OnDouble:
    """The knock API as the clients' tests see it, played by the double."""

    def __init__(self, double: Double) -> None:
        self.double: Double | None = double
        self.url = double.url
        self.keys: Mapping[str, str] = double.keys

    def client(self, principal: str) -> Client:
        return Client(self.url, self.keys[principal])

    def come_from(self, address: str) -> None:
        """Let callers have this address from now on."""
        assert self.double
        self.double.source = address

    def count_requests(self) -> int:
        """Count the requests of all callers."""
        assert self.double
        return len(self.double.requests)

    def give_pages_of(self, size: int) -> None:
        """Let lists come in pages this small, whatever a client asks for."""
        assert self.double
        self.double.page = size

    def lets_in(self, source: str, target: str) -> bool:
        """Say whether a packet from a source passes the target's security groups."""
        assert self.double
        self.double.update_grants()
        return any(
            grant["status"] == "active"
            and grant["source"] == source
            and target in [opened["name"] for opened in grant["targets"]]
            for grant in self.double.grants.values()
        )


class Keys(Mapping[str, str]):
    """API keys of one test's own, made at their first use, with the rights of the stack's samples."""

    def __init__(self, stack: dict[str, Any]) -> None:
        self._stack = stack
        self._gateway = boto3.client(
            "apigateway", endpoint_url=stack["aws_endpoint_url"], region_name=stack["region"]
        )
        self._values: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._values:
            samples = self._gateway.get_api_keys(includeValues=True)["items"]
            tags = next(sample["tags"] for sample in samples if sample["value"] == self._stack["keys"][name])
            key = self._gateway.create_api_key(name=name, enabled=True, tags=tags)
            plan = self._gateway.get_usage_plans()["items"][0]
            self._gateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=key["id"], keyType="API_KEY")
            self._values[name] = key["value"]
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stack["keys"])

    def __len__(self) -> int:
        return len(self._stack["keys"])


class OnStack:
    """The knock API of the local stack, behind an `Edge`."""

    double = None

    def __init__(self, stack: dict[str, Any], edge: Edge) -> None:
        self.edge = edge
        self.url = edge.url
        self.keys: Mapping[str, str] = Keys(stack)
        self._groups = {name: target["groups"] for name, target in stack["targets"].items()}
        self._ec2 = boto3.client("ec2", endpoint_url=stack["aws_endpoint_url"], region_name=stack["region"])

    def client(self, principal: str) -> Client:
        return Client(self.url, self.keys[principal])

    def come_from(self, address: str) -> None:
        self.edge.source = address

    def count_requests(self) -> int:
        return self.edge.requests

    def give_pages_of(self, size: int) -> None:
        self.edge.page = size

    def lets_in(self, source: str, target: str) -> bool:
        groups = [{"Name": "group-id", "Values": self._groups[target]}]
        rules = self._ec2.describe_security_group_rules(Filters=groups)["SecurityGroupRules"]
        return any(
            source in (rule.get("CidrIpv4"), rule.get("CidrIpv6")) for rule in rules if not rule["IsEgress"]
        )

    def end_all(self) -> None:
        """Revoke the grants that a test left open: the next test comes from the same address."""
        with self.client("operator") as operator:
            for grant in list(operator.grants()):
                operator.revoke(grant.id)


Api = OnDouble | OnStack


class Edge:
    """A proxy before the local stack that says where callers come from, as the edge of AWS does."""

    def __init__(self, api_url: str) -> None:
        self.source = "203.0.113.7"
        self.page = 0  # how long a list's pages are, in place of the caller's limit; 0 is the caller's
        self.requests = 0
        parts = urlsplit(api_url)
        edge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                edge.requests += 1
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                path = re.sub(r"\blimit=\d+", f"limit={edge.page}", self.path) if edge.page else self.path
                stack = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
                with closing(stack):
                    stack.request(self.command, path, body, headers | {"X-Forwarded-For": edge.source})
                    answer = stack.getresponse()
                    content = answer.read()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_DELETE = do_GET  # noqa: N815 — the names are http.server's

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}{parts.path}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The local stack, started once; gives the JSON that it prints."""
    log = tmp_path_factory.mktemp("stack") / "log"
    with log.open("wb") as errors, LocalStack.start(errors=errors) as running:
        yield running.summary


@pytest.fixture(params=["double", "stack"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """The API under test: a test with this fixture runs on the double and on the local stack."""
    if request.param == "double":
        yield OnDouble(request.getfixturevalue("double"))
        return
    stack = request.getfixturevalue("stack")
    edge = Edge(stack["api_url"])
    on_stack = OnStack(stack, edge)
    yield on_stack
    on_stack.end_all()
    edge.stop()
