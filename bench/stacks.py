"""Stacks to measure, each in a process of its own, so that measuring takes none of the stack's time.

`local_up()` is `python -m local up`, as a person starts it. `instrumented()` is the same with an empty
function added, and counts AWS calls on command (bench/instrumented.py).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import boto3
from botocore.config import Config

from bench.scale import BenchError
from tools import ROOT

RULES_PER_GROUP = 50  # of the 60 that EC2 allows: no pool is ever full by accident

T = TypeVar("T")
R = TypeVar("R")

_addresses = count(int(IPv4Address("198.18.0.1")))  # RFC 2544: addresses for benchmarks


def new_source() -> str:
    """Return an address that has not been a source before."""
    return str(IPv4Address(next(_addresses)))


@dataclass(frozen=True)
class Answer:
    status: int
    json: Any
    ms: float  # from the request's first byte to the answer's last


@dataclass
class Stack:
    """A running stack; `summary` is its first line."""

    process: subprocess.Popen[str]
    summary: dict[str, Any]
    started_in: float  # seconds to that line
    _threads: threading.local = field(default_factory=threading.local)

    def call(
        self,
        method: str,
        path: str,
        key: str = "ci",
        source: str | None = None,
        body: Any = None,
        **query: str,
    ) -> Answer:
        """Call the API on this thread's connection; `source` is the address that the edge would have seen."""
        url = urlsplit(self.summary["api_url"])
        if not hasattr(self._threads, "connection"):
            self._threads.connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
        headers = {"x-api-key": self.summary["keys"][key]} | ({"X-Forwarded-For": source} if source else {})
        target = url.path + path + (f"?{urlencode(query)}" if query else "")
        began = time.perf_counter()
        self._threads.connection.request(method, target, json.dumps(body) if body else None, headers)
        answer = self._threads.connection.getresponse()
        text = answer.read()
        took = (time.perf_counter() - began) * 1000
        return Answer(answer.status, json.loads(text), took)

    def client(self, service: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.summary["aws_endpoint_url"],
            region_name=self.summary["region"],
            aws_access_key_id="bench",
            aws_secret_access_key="bench",  # noqa: S106 - the local stack checks none
            config=Config(max_pool_connections=50, read_timeout=120, retries={"total_max_attempts": 1}),
        )

    def add_target(self, name: str, groups: int, ports: str = "22/tcp") -> list[str]:
        """Create a target, as an operator does. Call before the first knock: the API caches the targets."""
        ec2 = self.client("ec2")
        tags = {"knock:stack": "knock", "knock:target": name, "knock:ports": ports}
        specification = {
            "ResourceType": "security-group",
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        group_ids = [
            ec2.create_security_group(
                GroupName=f"{name}-{number}", Description="bench", TagSpecifications=[specification]
            )["GroupId"]
            for number in range(groups)
        ]
        return sorted(group_ids)

    def running(self) -> list[str]:
        """List the names of the running executions."""
        paginator = self.client("stepfunctions").get_paginator("list_executions")
        pages = paginator.paginate(stateMachineArn=self.summary["state_machine_arn"], statusFilter="RUNNING")
        return [execution["name"] for page in pages for execution in page["executions"]]

    def open_rules(self) -> int:
        """Count the ingress rules of all targets' groups."""
        paginator = self.client("ec2").get_paginator("describe_security_group_rules")
        pages = paginator.paginate(Filters=[{"Name": "tag:knock:stack", "Values": ["knock"]}])
        return sum(len(page["SecurityGroupRules"]) for page in pages)

    def cpu_ms(self) -> tuple[float, float] | None:
        """Return the CPU time so far of the stack's process and of its functions'; None without /proc."""
        if sys.platform != "linux":
            return None
        parents, times = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                # pid (name) state ppid …: the name may contain anything, so read from its end
                with suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(fields[1])
                    times[int(entry.name)] = sum(map(int, fields[11:13])) * 1000 / os.sysconf("SC_CLK_TCK")
        own, family = self.process.pid, {self.process.pid}
        while children := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= children
        return times[own], sum(times[pid] for pid in family - {own})

    def ask(self, command: str) -> Any:
        """Send a command to an instrumented stack; return its answer."""
        assert self.process.stdin  # noqa: S101 - instrumented() opened it
        assert self.process.stdout  # noqa: S101
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def local_up() -> Iterator[Stack]:
    """Run `python -m local up` for as long as the block runs."""
    with _started(["-m", "local", "up", "--port", "0", "--json"]) as stack:
        yield stack


@contextmanager
def instrumented(store: str = "simpledb") -> Iterator[Stack]:
    """Run a stack that has an empty function and counts its AWS calls."""
    with _started(["-m", "bench.instrumented", store]) as stack:
        yield stack


def stop(stack: Stack) -> float:
    """Stop a stack as Ctrl-C does; return the seconds it took."""
    began = time.perf_counter()
    stack.process.send_signal(signal.SIGTERM)
    if (code := stack.process.wait(30)) != 0:
        raise BenchError(f"the stack ended with {code}; run `python -m local up --verbose` to see why")
    return time.perf_counter() - began


@contextmanager
def _started(arguments: list[str]) -> Iterator[Stack]:
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
        [sys.executable, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KNOCK_"))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout  # noqa: S101 - it is a pipe
        line = process.stdout.readline()
        if not line:
            raise BenchError(
                f"the stack ended with {process.wait(10)} before it answered; its words are above"
            )
        stack = Stack(process, json.loads(line), time.perf_counter() - began)
        try:
            yield stack
        except Exception as error:
            if code := process.poll():
                raise BenchError(f"the stack ended with {code} while it was measured: {error}") from error
            raise
        if process.poll() is None:
            stop(stack)
    finally:
        process.kill()
        process.wait()


def together(threads: int, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call `work` on each item, on so many threads; raise the first failure."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def wait_until(is_done: Callable[[], bool], why: str, seconds: float, step: float = 0.2) -> None:
    """Poll until `is_done()`; raise BenchError with `why` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise BenchError(f"{why} within {seconds:g} s")
        time.sleep(step)
