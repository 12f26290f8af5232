"""Thousands of requests made from docs/openapi.json, well-formed and not, against a whole stack.

schemathesis checks each answer against the document (status, content type, headers, schema), that malformed
requests are refused and well-formed ones are not. Two checks do not depend on which ones it runs, since its
report is read again for them: no 5xx, and exactly as many executions as grants answered.

The cases are the same in every run. How many there were is printed.
"""

from __future__ import annotations

import json
import os
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
from tests.once import once

# The keys that requests are made with, and how many cases to make of each operation, beside those at the
# edges of its schema.
CASES = {"no rights": 116, "alice": 116, "operator": 116, "wrong": 40}
AT_LEAST = 5000
NAMES = {"no rights": "eve"}  # of keys whose name in the stack differs


@dataclass
class Result:
    """What a run of schemathesis printed, asked and started."""

    status: int
    output: str
    requests: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, status
    executions: int = 0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status in self.requests)

    def count(self, path: str, *statuses: int) -> int:
        return sum(requested == path and status in statuses for _, requested, status in self.requests)


@contextmanager
def running() -> Iterator[Stack]:
    """A stack of its own, since thousands of grants are left on it."""
    with Stack.start() as started:
        apigateway = started.client("apigateway")
        (plan,) = apigateway.get_usage_plans()["items"]
        eve = apigateway.create_api_key(name="eve", value="e" * 40, enabled=True)
        apigateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=eve["id"], keyType="API_KEY")
        for key in apigateway.get_api_keys()["items"]:
            if key["name"] in ("alice", "operator"):  # so that hundreds of their knocks open
                arn = f"arn:aws:apigateway:{started.region}::/apikeys/{key['id']}"
                apigateway.tag_resource(resourceArn=arn, tags={"knock:max-live": "1000"})
        started.summary["keys"] |= {"no rights": "e" * 40, "wrong": "w" * 40}
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


def run(stack: Stack, key: str, folder: Path) -> Result:
    report = folder / "report.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests/e2e/schemathesis.toml"),
        *("run", document(folder), "--url", stack.api_url, "--no-color", "--max-examples", str(CASES[key])),
        *("--report", "ndjson", "--report-ndjson-path", report),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "KNOCK_API_KEY": stack.keys[key],
        "KNOCK_CALLERS": f"203.0.113.{16 * list(CASES).index(key)}/28",
    }
    completed = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    result = Result(completed.returncode, completed.stdout + completed.stderr)
    prefix = stack.api_url.partition("://")[2].partition("/")[2]
    for line in report.read_text().splitlines():
        for interaction in interactions(json.loads(line)):
            path = interaction["request"]["uri"].partition(f"/{prefix}")[2].partition("?")[0]
            answer = interaction.get("response")
            result.requests.append(
                (interaction["request"]["method"], path, answer["status_code"] if answer else 0)
            )
    result.executions = sum(name.startswith(f"{NAMES.get(key, key)}_") for name in executions(stack))
    print(f"schemathesis as {key}: {len(result.requests)} cases, {dict(sorted(result.statuses.items()))}")
    return result


def interactions(event: dict[str, Any]) -> list[Any]:
    finished = event.get("ScenarioFinished") or {}
    return list((finished.get("recorder") or {}).get("interactions", {}).values())


def executions(stack: Stack) -> list[str]:
    """List the executions' names, which begin with the name of the key that knocked."""
    paginator = stack.client("stepfunctions").get_paginator("list_executions")
    pages = paginator.paginate(stateMachineArn=stack.state_machine_arn)
    return [execution["name"] for page in pages for execution in page["executions"]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return once(tmp_path_factory, "schemathesis", run_all)


def run_all(folder: Path) -> dict[str, Result]:
    folders = [folder / str(number) for number, _ in enumerate(CASES)]
    for path in folders:
        path.mkdir()
    with running() as stack, ThreadPoolExecutor(2) as pool:
        by_key = pool.map(lambda key, path: run(stack, key, path), CASES, folders)
        results = dict(zip(CASES, by_key, strict=True))
        results["all keys"] = Result(0, "", executions=len(executions(stack)))
        return results


pytestmark = pytest.mark.timeout(1200)  # thousands of requests, on whatever machine


class TestGeneratedRequests:
    def test_at_least_5000_are_made(
        self, results: dict[str, Result], record_property: Callable[[str, object], None]
    ) -> None:
        cases = sum(len(results[key].requests) for key in CASES)
        record_property("requests generated from the API's document", cases)
        assert cases >= AT_LEAST

    @pytest.mark.parametrize("key", CASES)
    def test_each_is_answered_as_the_document_says(self, results: dict[str, Result], key: str) -> None:
        assert results[key].status == 0, results[key].output[-8000:]

    @pytest.mark.parametrize("key", CASES)
    def test_none_is_answered_with_a_server_error(self, results: dict[str, Result], key: str) -> None:
        assert not [request for request in results[key].requests if not 200 <= request[2] < 500]

    @pytest.mark.parametrize("key", ["no rights", "wrong"])
    def test_a_key_without_rights_starts_no_execution(self, results: dict[str, Result], key: str) -> None:
        assert results[key].count("/knock", 400, 403) > CASES[key]
        assert results[key].count("/knock", 200, 201, 202) == 0
        assert results[key].executions == 0

    def test_every_execution_belongs_to_a_key_that_may_knock(self, results: dict[str, Result]) -> None:
        assert results["all keys"].executions == results["alice"].executions + results["operator"].executions

    @pytest.mark.parametrize("key", ["operator", "alice"])
    def test_a_refused_request_starts_no_execution(self, results: dict[str, Result], key: str) -> None:
        """There are as many executions as grants answered."""
        assert results[key].count("/knock", 400, 403) > 0
        assert results[key].executions == results[key].count("/knock", 201, 202) > 0

    def test_a_wrong_key_gets_nothing_but_the_console(self, results: dict[str, Result]) -> None:
        assert {path for _, path, status in results["wrong"].requests if status == 200} == {"/console"}
