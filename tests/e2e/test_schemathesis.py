"""Thousands of requests made from docs/openapi.json, well-formed and not, against a whole stack.

schemathesis checks each answer against the document (status, content type, headers, schema), that what is
malformed is refused and what is not is taken. Here its record is read again, so that what matters does not
depend on which checks it runs: no 5xx, and exactly as many executions as there were grants answered.

The cases are the same in every run. How many there were is printed.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import Stack

# Who asks: their key, and how many cases to make of each operation, beside those at the edges of its schema.
CASES = {"no rights": 116, "alice": 116, "operator": 116, "wrong": 40}
AT_LEAST = 5000
NAMES = {"no rights": "eve"}  # an API key's that is not called as here


@dataclass
class Ran:
    """What one run of schemathesis did."""

    status: int
    output: str
    requests: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, status
    executions: int = 0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status in self.requests)

    def count(self, path: str, *statuses: int) -> int:
        return sum(asked == path and status in statuses for _, asked, status in self.requests)


@contextmanager
def running() -> Iterator[Stack]:
    """A stack of its own: thousands of grants are nobody else's business."""
    with Stack.start() as started:
        apigateway = started.client("apigateway")
        (plan,) = apigateway.get_usage_plans()["items"]
        made = apigateway.create_api_key(name="eve", value="e" * 40, enabled=True)
        apigateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=made["id"], keyType="API_KEY")
        for key in apigateway.get_api_keys()["items"]:
            if key["name"] in ("alice", "operator"):  # so that hundreds of their knocks open
                arn = f"arn:aws:apigateway:{started.region}::/apikeys/{key['id']}"
                apigateway.tag_resource(resourceArn=arn, tags={"knock:max-live": "1000"})
        started.said["keys"] |= {"no rights": "e" * 40, "wrong": "w" * 40}
        yield started


def document(folder: Path) -> Path:
    """Write the document as it is for this stack, where no key may have more than a day."""
    described = json.loads((ROOT / "docs" / "openapi.json").read_text())
    seconds = described["components"]["schemas"]["Knock"]["properties"]["duration"]["anyOf"][0]
    assert seconds["type"] == "integer"
    seconds["maximum"] = 86_400
    path = folder / "openapi.json"
    path.write_text(json.dumps(described))
    return path


def run(stack: Stack, who: str, folder: Path) -> Ran:
    report = folder / "report.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests/e2e/schemathesis.toml"),
        *("run", document(folder), "--url", stack.api_url, "--no-color", "--max-examples", str(CASES[who])),
        *("--report", "ndjson", "--report-ndjson-path", report),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "KNOCK_API_KEY": stack.keys[who],
        "KNOCK_CALLERS": f"203.0.113.{16 * list(CASES).index(who)}/28",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    ran = Ran(done.returncode, done.stdout + done.stderr)
    prefix = stack.api_url.partition("://")[2].partition("/")[2]
    for line in report.read_text().splitlines():
        for interaction in interactions(json.loads(line)):
            path = interaction["request"]["uri"].partition(f"/{prefix}")[2].partition("?")[0]
            answer = interaction.get("response")
            ran.requests.append(
                (interaction["request"]["method"], path, answer["status_code"] if answer else 0)
            )
    ran.executions = sum(name.startswith(f"{NAMES.get(who, who)}_") for name in executions(stack))
    print(f"schemathesis as {who}: {len(ran.requests)} cases, {dict(sorted(ran.statuses.items()))}")
    return ran


def interactions(event: dict[str, Any]) -> list[Any]:
    finished = event.get("ScenarioFinished") or {}
    return list((finished.get("recorder") or {}).get("interactions", {}).values())


def executions(stack: Stack) -> list[str]:
    """List the executions' names, which begin with who knocked."""
    pages = stack.client("stepfunctions").get_paginator("list_executions")
    found = pages.paginate(stateMachineArn=stack.state_machine_arn)
    return [execution["name"] for page in found for execution in page["executions"]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Run it once, also where several processes share the tests out among them."""
    base = tmp_path_factory.getbasetemp()
    once = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "schemathesis"
    once.mkdir(exist_ok=True)
    with (once / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = once / "ran"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(run_all(once)))
        done: dict[str, Ran] = pickle.loads(kept.read_bytes())  # noqa: S301  # our own, of a moment ago
    return done


def run_all(folder: Path) -> dict[str, Ran]:
    folders = [folder / str(number) for number, _ in enumerate(CASES)]
    for one in folders:
        one.mkdir()
    with running() as stack, ThreadPoolExecutor(2) as two:
        done = two.map(lambda who, folder: run(stack, who, folder), CASES, folders)
        everybody = dict(zip(CASES, done, strict=True))
        everybody["anybody"] = Ran(0, "", executions=len(executions(stack)))
        return everybody


pytestmark = pytest.mark.timeout(1200)  # thousands of requests, on whatever machine


class TestGeneratedRequests:
    def test_there_are_thousands(
        self, ran: dict[str, Ran], record_property: Callable[[str, object], None]
    ) -> None:
        cases = sum(len(ran[who].requests) for who in CASES)
        record_property("requests generated from the API's document", cases)
        assert cases >= AT_LEAST

    @pytest.mark.parametrize("who", CASES)
    def test_each_is_answered_as_the_document_says(self, ran: dict[str, Ran], who: str) -> None:
        assert ran[who].status == 0, ran[who].output[-8000:]

    @pytest.mark.parametrize("who", CASES)
    def test_none_is_answered_with_a_fault(self, ran: dict[str, Ran], who: str) -> None:
        assert not [request for request in ran[who].requests if not 200 <= request[2] < 500]

    @pytest.mark.parametrize("who", ["no rights", "wrong"])
    def test_a_key_without_rights_starts_no_execution(self, ran: dict[str, Ran], who: str) -> None:
        assert ran[who].count("/knock", 400, 403) > CASES[who]
        assert ran[who].count("/knock", 200, 201, 202) == 0
        assert ran[who].executions == 0

    def test_every_execution_is_somebodys_who_may_knock(self, ran: dict[str, Ran]) -> None:
        assert ran["anybody"].executions == ran["alice"].executions + ran["operator"].executions

    @pytest.mark.parametrize("who", ["operator", "alice"])
    def test_a_refused_request_starts_no_execution(self, ran: dict[str, Ran], who: str) -> None:
        """As many executions as grants answered: what was refused started none."""
        assert ran[who].count("/knock", 400, 403) > 0
        assert ran[who].executions == ran[who].count("/knock", 201, 202) > 0

    def test_a_wrong_key_gets_nothing_but_the_console(self, ran: dict[str, Ran]) -> None:
        assert {path for _, path, status in ran["wrong"].requests if status == 200} == {"/console"}
