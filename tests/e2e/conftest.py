"""A local stack in a process of its own, as a person starts it, and the tools that person has."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT
from tests.local_stack import LocalStack
from tests.waiting import wait_for

ENGINES = ("moto", "stepfunctions-local")
STORES = ("simpledb", "dynamodb")
WAYS = [(engine, store) for engine in ENGINES for store in STORES]


class Stack(LocalStack):
    """A local stack, and the tools that a person has: HTTP, the AWS CLI, the rules in EC2."""

    @cached_property
    def session(self) -> requests.Session:
        return requests.Session()

    def call(
        self, method: str, path: str, key: str | None = "alice", caller: str | None = None, **more: Any
    ) -> requests.Response:
        """Call the API over HTTP; `caller` plays the address the edge saw."""
        headers = more.pop("headers", {})
        if key:
            headers["x-api-key"] = self.summary["keys"].get(key, key)
        if caller:
            headers["X-Forwarded-For"] = caller
        url = self.summary["api_url"] + path
        return self.session.request(method, url, headers=headers, timeout=35, **more)

    def open(self, key: str = "alice", caller: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.call("POST", "/knock", key, caller, json=body)
        assert answer.status_code == 201, answer.text
        grant: dict[str, Any] = answer.json()
        return grant

    def aws(self, *arguments: str) -> Any:
        """Run the AWS CLI against the stack, as an operator would."""
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": self.summary["region"],
            "AWS_ENDPOINT_URL": self.summary["aws_endpoint_url"],
        }
        aws = str(ROOT / ".venv" / "bin" / "aws")
        command = [aws if Path(aws).exists() else "aws", *arguments, "--output", "json"]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout) if result.stdout.strip() else None

    def rules(self, cidr: str | None = None) -> set[tuple[str, int, str]]:
        """List the open ingress: (group, first port, CIDR)."""
        rules = self.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
        groups = {group for target in self.summary["targets"].values() for group in target["groups"]}
        return {
            (rule["GroupId"], rule["FromPort"], address)
            for rule in rules
            if rule["GroupId"] in groups
            and not rule["IsEgress"]
            and (address := rule.get("CidrIpv4") or rule.get("CidrIpv6"))
            and cidr in (None, address)
        }

    def wait(self, condition: Callable[[], Any], why: str, seconds: float = 15) -> Any:
        return wait_for(condition, why, seconds)


@pytest.fixture(scope="session", params=WAYS, ids="-".join)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack on each engine and store, shared by the tests: each knocks from an address of its own."""
    engine, store = request.param
    with Stack.start(engine=engine, store=store) as started:
        yield started


@pytest.fixture(scope="session", params=STORES)
def moto_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack on the embedded engine, on each store in turn."""
    with Stack.start(store=request.param) as started:
        yield started
