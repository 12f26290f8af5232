"""Every path of both definitions, on two interpreters that know nothing of each other: the same states.

moto runs them with the clock moved along, npm's aws-local-stepfunctions with waits and pauses overridden.
Each error code that a Retry or a Catch names is raised once, and leads where the definition says. The
functions are not run here: a task ends as the path says.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import boto3
import pytest
from moto import mock_aws

from local import engine
from local.clock import Clock
from local.invocation import InvocationResult
from tests.conftest import ROOT, need
from tests.statemachine.definition import CLOSING, GRANT, Machine, load
from tests.waiting import wait_for

REGION = "eu-west-1"
GRANT_INPUT = json.loads((ROOT / "tests" / "fixtures" / "inputs" / "v1.json").read_text())
CLOSING_INPUT = {"detail-type": "Step Functions Execution Status Change", "detail": {"status": "ABORTED"}}

AUTHORIZE, HOLD, REVOKE, EXPIRED = "AuthorizeIngress", "HoldUntilExpiry", "RevokeIngress", "Expired"
FORCE, ROLL_BACK, FORCE_BACK = "ForceRevokeIngress", "RollBackIngress", "ForceRollBackIngress"
FAILED, LOST = "AuthorizationFailed", "RevocationFailed"
CLOSE, FORCE_CLOSE, CLOSED, CLOSING_FAILED = "Close", "ForceClose", "Closed", "ClosingFailed"

Results = Mapping[str, list[str | None]]


class Path(NamedTuple):
    """The results of the tasks (the last one repeats), the states that are entered then, and the status."""

    machine: Machine
    results: Results
    states: list[str]
    status: str


# A permanent error, in every state that has a Catch. `Broken` is none of Knock's: States.ALL is for it.
PATHS = {
    "expiry": Path(GRANT, {}, [AUTHORIZE, HOLD, REVOKE, EXPIRED], "SUCCEEDED"),
    "rollback": Path(GRANT, {AUTHORIZE: ["PoolExhausted"]}, [AUTHORIZE, ROLL_BACK, FAILED], "FAILED"),
    "force": Path(GRANT, {REVOKE: ["Broken"]}, [AUTHORIZE, HOLD, REVOKE, FORCE, EXPIRED], "SUCCEEDED"),
    "rollback by force": Path(
        GRANT,
        {AUTHORIZE: ["GrantEnded"], ROLL_BACK: ["StoreUnavailable"]},
        [AUTHORIZE, ROLL_BACK, FORCE_BACK, FAILED],
        "FAILED",
    ),
    "revocation lost": Path(
        GRANT,
        {REVOKE: ["StoreRefused"], FORCE: ["Broken"]},
        [AUTHORIZE, HOLD, REVOKE, FORCE, LOST],
        "FAILED",
    ),
    "rollback lost": Path(
        GRANT,
        {AUTHORIZE: ["InvalidGrant"], ROLL_BACK: ["Broken"], FORCE_BACK: ["Broken"]},
        [AUTHORIZE, ROLL_BACK, FORCE_BACK, LOST],
        "FAILED",
    ),
    "closing": Path(CLOSING, {}, [CLOSE, CLOSED], "SUCCEEDED"),
    "closing by force": Path(
        CLOSING, {CLOSE: ["StoreUnavailable"]}, [CLOSE, FORCE_CLOSE, CLOSED], "SUCCEEDED"
    ),
    "closing lost": Path(
        CLOSING,
        {CLOSE: ["Broken"], FORCE_CLOSE: ["Broken"]},
        [CLOSE, FORCE_CLOSE, CLOSING_FAILED],
        "FAILED",
    ),
}
# The failures that lead to a state which the usual path does not pass.
BEFORE: dict[str, Results] = {
    ROLL_BACK: {AUTHORIZE: ["PoolExhausted"]},
    FORCE_BACK: {AUTHORIZE: ["PoolExhausted"], ROLL_BACK: ["Broken"]},
    FORCE: {REVOKE: ["Broken"]},
    FORCE_CLOSE: {CLOSE: ["Broken"]},
}
RETRIED = sorted(
    {
        (name, code)
        for machine in (GRANT, CLOSING)
        for name, state in load(machine)["States"].items()
        for retrier in state.get("Retry", [])
        for code in retrier["ErrorEquals"]
        if code != "States.ALL"
    }
)


def machine_of(state: str) -> Machine:
    return next(machine for machine in (GRANT, CLOSING) if state in load(machine)["States"])


def hurried(machine: Machine) -> dict[str, Any]:
    """Have force give up after three tries, and a task that hangs time out after a second."""
    definition = load(machine)
    for state in definition["States"].values():
        if state["Type"] == "Task":
            state["TimeoutSeconds"] = 1
        for retrier in state.get("Retry", []):
            retrier["MaxAttempts"] = min(retrier["MaxAttempts"], 3)
    return definition


class Moto:
    """The definitions on the embedded engine, with tasks that end in the given results."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine = engine.install(self._invoke, clock=self.clock)
        self._states = boto3.client("stepfunctions", region_name=REGION)
        self._count = 0
        self._left: dict[str, list[str | None]] = {}
        self.inputs: list[Any] = []
        self._arns = {machine.path.stem: self._make(machine) for machine in (GRANT, CLOSING)}

    def _make(self, machine: Machine) -> str:
        definition = json.dumps(hurried(machine))
        for name in ("Authorize", "Revoke"):
            arn = f"arn:aws:lambda:{REGION}:123456789012:function:knock-{name.lower()}"
            definition = definition.replace(f"${{{name}FunctionArn}}", arn)
        answer = self._states.create_state_machine(
            name=machine.path.stem, definition=definition, roleArn="arn:aws:iam::123456789012:role/r"
        )
        return str(answer["stateMachineArn"])

    def _invoke(self, arn: str, payload: bytes) -> InvocationResult:
        event = json.loads(payload)
        self.inputs.append(event)
        state = AUTHORIZE if arn.endswith("authorize") else self._revoking(event)
        left = self._left.get(state, [None])
        result = left.pop(0) if len(left) > 1 else left[0]
        if result == "States.Timeout":
            threading.Event().wait(1.5)  # no function can raise it: a task that hangs does
        if result in (None, "States.Timeout"):
            return InvocationResult(b"[]")
        return InvocationResult(json.dumps({"errorType": result, "errorMessage": ""}).encode(), "Unhandled")

    @staticmethod
    def _revoking(event: Any) -> str:
        """Say which state calls the revoke function with an event."""
        how: str = event["how"]
        if how == "force":
            return FORCE if "rules" in event["grant"] else FORCE_BACK
        return {"expired": REVOKE, "failed": ROLL_BACK, "close": CLOSE, "force-close": FORCE_CLOSE}[how]

    def run(self, machine: Machine, results: Results) -> tuple[list[str], str]:
        """Run an execution to its end: the states it entered, and how it ended."""
        self._count += 1
        self._left = {name: list(left) for name, left in results.items()}
        now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        value = GRANT_INPUT | {"expires_at": now} if machine.opens else CLOSING_INPUT
        arn = self._states.start_execution(
            stateMachineArn=self._arns[machine.path.stem],
            name=f"path-{self._count}",
            input=json.dumps(value),
        )["executionArn"]

        def ended() -> str | None:
            status: str = self._states.describe_execution(executionArn=arn)["status"]
            if status == "RUNNING":
                self.clock.advance(timedelta(minutes=15))
                return None
            return status

        status: str = wait_for(ended, f"{results}: it never ends", seconds=30, longest=0.01)
        history = self._states.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        entered = [
            event["stateEnteredEventDetails"]["name"]
            for event in history
            if "stateEnteredEventDetails" in event
        ]
        return entered, status


def third(machine: Machine, results: Results) -> tuple[list[str], str]:
    """Run a definition on npm's aws-local-stepfunctions: the states it entered, and how it ended."""
    node = ROOT / "node_modules" / ".bin" / "node"
    need(node.exists(), "npm's node 22 is not installed: run npm ci")
    value = GRANT_INPUT if machine.opens else CLOSING_INPUT
    request = {"definition": hurried(machine), "input": value, "outcomes": results}
    result = subprocess.run(
        [node, ROOT / "tests" / "statemachine" / "third_interpreter.mjs"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    return output["entered"], {"ExecutionSucceeded": "SUCCEEDED", "ExecutionFailed": "FAILED"}[
        output["status"]
    ]


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        interpreter = Moto()
        yield interpreter
        interpreter.engine.shutdown()
        interpreter.clock.close()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_is_the_same_on_moto_and_on_the_third_interpreter(moto: Moto, path: Path) -> None:
    assert moto.run(path.machine, path.results) == (path.states, path.status)
    assert third(path.machine, path.results) == (path.states, path.status)


def test_the_paths_cover_every_state_and_every_catch() -> None:
    walked = {(a, b) for path in PATHS.values() for a, b in pairwise(path.states)}
    arrows = {
        (name, following)
        for machine in (GRANT, CLOSING)
        for name, state in load(machine)["States"].items()
        for following in [state.get("Next"), *(catcher["Next"] for catcher in state.get("Catch", []))]
        if following
    }
    assert walked == arrows


@pytest.mark.parametrize(("state", "code"), RETRIED)
def test_a_transient_error_is_tried_again_on_both(moto: Moto, state: str, code: str) -> None:
    """Mutation: the code taken out of its Retry."""
    machine = machine_of(state)
    before = BEFORE.get(state, {})
    results: Results = {**before, state: [code, None]}
    # The same states as without the error of `state`: those of the path with the failures before it alone.
    expected = moto.run(machine, before)
    assert state in expected[0]
    assert moto.run(machine, results) == expected
    # A timeout is the third interpreter's own to raise: a handler's error of that name ends its run.
    if code != "States.Timeout":
        assert third(machine, results) == expected


@pytest.mark.parametrize(
    "code",
    [
        "GrantEnded",
        "InvalidGrant",
        "PoolExhausted",
        "SourceFull",
        "TargetGone",
        "IngressRefused",
        "StoreRefused",
    ],
)
def test_a_permanent_error_is_never_tried_again(moto: Moto, code: str) -> None:
    results: Results = {AUTHORIZE: [code, None]}
    expected = ([AUTHORIZE, ROLL_BACK, FAILED], "FAILED")
    assert moto.run(GRANT, results) == expected
    assert third(GRANT, results) == expected


def test_force_closes_with_the_very_input_the_closing_began_with(moto: Moto) -> None:
    """Mutation: statemachine/close.asl.json: a `"ResultPath": null` -> `"ResultPath": "$.error"`"""
    moto.inputs.clear()
    moto.run(CLOSING, {CLOSE: ["StoreUnavailable"]})
    assert moto.inputs[0] == {"how": "close", "closing": CLOSING_INPUT}
    assert moto.inputs[-1] == {"how": "force-close", "closing": CLOSING_INPUT}
