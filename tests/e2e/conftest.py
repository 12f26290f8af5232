"""A local stack in a process of its own, as a person starts it, and the tools that person has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import boto3
import pytest
import requests

from tests.conftest import ROOT, STORE, need
from tests.waiting import wait_for

ENGINES = ("moto", "stepfunctions-local")
STORES = ("simpledb", "dynamodb")
WAYS = [(engine, store) for engine in ENGINES for store in STORES]


@dataclass
class Stack:
    """A running `python -m local up --json`, by what its first line says."""

    process: subprocess.Popen[str]
    said: dict[str, Any]
    engine: str
    store: str

    def __getattr__(self, name: str) -> Any:
        return self.said[name]

    @cached_property
    def session(self) -> requests.Session:
        return requests.Session()

    def call(
        self, method: str, path: str, key: str | None = "alice", caller: str | None = None, **more: Any
    ) -> requests.Response:
        """Call the API over HTTP; `caller` plays the address the edge saw."""
        headers = more.pop("headers", {})
        if key:
            headers["x-api-key"] = self.said["keys"].get(key, key)
        if caller:
            headers["X-Forwarded-For"] = caller
        return self.session.request(method, self.said["api_url"] + path, headers=headers, timeout=35, **more)

    def open(self, key: str = "alice", caller: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.call("POST", "/knock", key, caller, json=body)
        assert answer.status_code == 201, answer.text
        grant: dict[str, Any] = answer.json()
        return grant

    def client(self, service: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.said["aws_endpoint_url"],
            region_name=self.said["region"],
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )

    def aws(self, *arguments: str) -> Any:
        """Run the AWS CLI against the stack, as an operator would."""
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": self.said["region"],
            "AWS_ENDPOINT_URL": self.said["aws_endpoint_url"],
        }
        aws = str(ROOT / ".venv" / "bin" / "aws")
        command = [aws if Path(aws).exists() else "aws", *arguments, "--output", "json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def rules(self, cidr: str | None = None) -> set[tuple[str, int, str]]:
        """List the open ingress: (group, first port, CIDR)."""
        found = self.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
        groups = {group for target in self.said["targets"].values() for group in target["groups"]}
        return {
            (rule["GroupId"], rule["FromPort"], address)
            for rule in found
            if rule["GroupId"] in groups
            and not rule["IsEgress"]
            and (address := rule.get("CidrIpv4") or rule.get("CidrIpv6"))
            and cidr in (None, address)
        }

    def wait(self, what: Callable[[], Any], why: str, seconds: float = 15) -> Any:
        return wait_for(what, why, seconds)


def start(engine: str, *arguments: str, store: str = STORE, errors: IO[bytes] | None = None) -> Stack:
    """Start a stack and wait for its line of JSON; `errors` takes its standard error.

    `store` is what KNOCK_TEST_STORE says, where it is not said: simpledb or dynamodb.
    """
    if engine == "stepfunctions-local":
        package = ROOT / "node_modules" / ".bin" / "stepfunctions-local"
        need(package.exists(), "npm's stepfunctions-local is not installed: run npm ci")
    up = ["local", "up", "--port", "0", "--json", "--engine", engine, "--store", store]
    process = subprocess.Popen(
        [sys.executable, "-m", *up, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line, f"the stack ended with {process.wait(10)} before it answered"
    return Stack(process, json.loads(line), engine, store)


def stop(stack: Stack) -> None:
    stack.process.send_signal(signal.SIGTERM)
    try:
        stack.process.wait(10)
    finally:
        if stack.process.poll() is None:
            os.killpg(stack.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session", params=WAYS, ids="-".join)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack on each engine and store, shared by the tests: each knocks from an address of its own."""
    engine, store = request.param
    started = start(engine, store=store)
    yield started
    stop(started)


@pytest.fixture(scope="session", params=STORES)
def moto_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack on the embedded engine, on each store in turn."""
    started = start("moto", store=request.param)
    yield started
    stop(started)
