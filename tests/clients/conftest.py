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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from knock import Client
from tests.clients.double import Double
from tests.conftest import ROOT
from tests.local_stack import LocalStack
from tests.waiting import wait_for

CLIENTS = ROOT / "clients"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

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
    """A home folder of its own, with no settings in it and `knock` on the PATH."""
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
    """Files get the modes they are made with: nothing is hidden by what the tests' user has set."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `knock` in this process."""

    def knock(*words: str) -> Done:
        from knock.cli import main

        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as stop:  # argparse's way out
            code = stop.code if isinstance(stop.code, int) else 1
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return knock


@pytest.fixture
def spawn(home: Path) -> Callable[..., Done]:
    """Run a program as a person does, with its own process and streams."""

    def command(*words: str, stdin: str = "", timeout: float = 30) -> Done:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return command


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true, and fail when it is not in time."""
    wait_for(true, "it did not become true", seconds)


# ---------------------------------------------------------------------- one API, two of them


class OnDouble:
    """The knock API as the clients' tests see it, played by the double."""

    def __init__(self, double: Double) -> None:
        self.double: Double | None = double
        self.url = double.url
        self.keys: Mapping[str, str] = double.keys

    def client(self, who: str) -> Client:
        return Client(self.url, self.keys[who])

    def come_from(self, address: str) -> None:
        """Let callers have this address from now on."""
        assert self.double
        self.double.source = address

    def give_pages_of(self, size: int) -> None:
        """Let lists come in pages this small, whatever a client asks for."""
        assert self.double
        self.double.page = size

    def lets_in(self, source: str, target: str) -> bool:
        """Say whether a packet from a source passes the target's security groups."""
        assert self.double
        self.double.settle()
        active = [grant for grant in self.double.grants.values() if grant["status"] == "active"]
        open_to = [grant["targets"] for grant in active if grant["source"] == source]
        return any(target == one["name"] for targets in open_to for one in targets)


class Keys(Mapping[str, str]):
    """API keys of one test's own, made when first asked for, with the rights of the stack's samples."""

    def __init__(self, stack: dict[str, Any]) -> None:
        self._stack = stack
        self._gateway = boto3.client(
            "apigateway", endpoint_url=stack["aws_endpoint_url"], region_name=stack["region"]
        )
        self._made: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._made:
            keys = self._gateway.get_api_keys(includeValues=True)["items"]
            sample = next(key for key in keys if key["value"] == self._stack["keys"][name])
            made = self._gateway.create_api_key(name=name, enabled=True, tags=sample["tags"])
            plan = self._gateway.get_usage_plans()["items"][0]
            self._gateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=made["id"], keyType="API_KEY")
            self._made[name] = made["value"]
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stack["keys"])

    def __len__(self) -> int:
        return len(self._stack["keys"])


class OnStack:
    """The knock API of the local stack, reached through an edge that says where callers come from."""

    double = None

    def __init__(self, stack: dict[str, Any], edge: Edge) -> None:
        self.edge = edge
        self.url = edge.url
        self.keys: Mapping[str, str] = Keys(stack)
        self._groups = {name: target["groups"] for name, target in stack["targets"].items()}
        self._ec2 = boto3.client("ec2", endpoint_url=stack["aws_endpoint_url"], region_name=stack["region"])

    def client(self, who: str) -> Client:
        return Client(self.url, self.keys[who])

    def come_from(self, address: str) -> None:
        self.edge.source = address

    def give_pages_of(self, size: int) -> None:
        self.edge.page = size

    def lets_in(self, source: str, target: str) -> bool:
        groups = [{"Name": "group-id", "Values": self._groups[target]}]
        rules = self._ec2.describe_security_group_rules(Filters=groups)["SecurityGroupRules"]
        return any(
            source in (rule.get("CidrIpv4"), rule.get("CidrIpv6")) for rule in rules if not rule["IsEgress"]
        )

    def end_all(self) -> None:
        """End what a test left open: the next one comes from the same address."""
        with self.client("operator") as operator:
            for grant in list(operator.grants()):
                operator.revoke(grant.id)


Api = OnDouble | OnStack


class Edge:
    """Stands between a test and the local stack, as the internet's edge does, and names the source."""

    def __init__(self, api_url: str) -> None:
        self.source = "203.0.113.7"
        self.page = 0  # how long a list's pages are, in place of the limit that was asked for
        parts = urlsplit(api_url)
        edge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                path = re.sub(r"\blimit=\d+", f"limit={edge.page}", self.path) if edge.page else self.path
                far = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
                with closing(far):
                    far.request(self.command, path, body, headers | {"X-Forwarded-For": edge.source})
                    answer = far.getresponse()
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
    """The local stack, started once; gives what it prints."""
    log = tmp_path_factory.mktemp("stack") / "log"
    with log.open("wb") as errors, LocalStack.start(errors=errors) as running:
        yield running.said


@pytest.fixture(params=["double", "stack"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """The API under test: what holds with the double must hold with the real thing."""
    if request.param == "double":
        yield OnDouble(request.getfixturevalue("double"))
        return
    stack = request.getfixturevalue("stack")
    edge = Edge(stack["api_url"])
    made = OnStack(stack, edge)
    yield made
    made.end_all()
    edge.stop()
