"""Every path of the definition, on two interpreters that know nothing of each other: the same states.

moto runs it with the clock moved along, npm's aws-local-stepfunctions with waits and pauses overridden.
Each error code that a Retry or a Catch names is raised once, and is followed as it says.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from local.invocation import InvocationResult
from tests.conftest import ROOT, need
from tests.harness import MACHINE, Knock, running

DEFINITION: dict[str, Any] = json.loads((ROOT / "statemachine" / "grant.asl.json").read_text())
TASKS = {name: state for name, state in DEFINITION["States"].items() if state["Type"] == "Task"}
INPUT = json.loads((ROOT / "tests" / "fixtures" / "inputs" / "v1.json").read_text())

AUTHORIZE, HOLD, REVOKE, EXPIRED = "AuthorizeIngress", "HoldUntilExpiry", "RevokeIngress", "Expired"
FORCE, ROLL_BACK, FORCE_BACK = "ForceRevokeIngress", "RollBackIngress", "ForceRollBackIngress"
FAILED, LOST = "AuthorizationFailed", "RevocationFailed"

# A permanent error, in every state that has a Catch. `Broken` is none of Knock's: States.ALL is for it.
PATHS: dict[str, tuple[dict[str, list[str | None]], list[str], str]] = {
    "expiry": ({}, [AUTHORIZE, HOLD, REVOKE, EXPIRED], "SUCCEEDED"),
    "rollback": ({AUTHORIZE: ["PoolExhausted"]}, [AUTHORIZE, ROLL_BACK, FAILED], "FAILED"),
    "force": ({REVOKE: ["Broken"]}, [AUTHORIZE, HOLD, REVOKE, FORCE, EXPIRED], "SUCCEEDED"),
    "rollback by force": (
        {AUTHORIZE: ["GrantEnded"], ROLL_BACK: ["TrailUnavailable"]},
        [AUTHORIZE, ROLL_BACK, FORCE_BACK, FAILED],
        "FAILED",
    ),
    "revocation lost": (
        {REVOKE: ["TrailUnavailable"], FORCE: ["Broken"]},
        [AUTHORIZE, HOLD, REVOKE, FORCE, LOST],
        "FAILED",
    ),
    "rollback lost": (
        {AUTHORIZE: ["InvalidGrant"], ROLL_BACK: ["Broken"], FORCE_BACK: ["Broken"]},
        [AUTHORIZE, ROLL_BACK, FORCE_BACK, LOST],
        "FAILED",
    ),
}
RETRIED = sorted(
    {
        (name, code)
        for name, state in TASKS.items()
        for retrier in state["Retry"]
        for code in retrier["ErrorEquals"]
        if code != "States.ALL"
    }
)


def hurried(definition: dict[str, Any]) -> dict[str, Any]:
    """Have force give up after three tries, and a task that hangs time out after a second."""
    copy: dict[str, Any] = json.loads(json.dumps(definition))
    for state in copy["States"].values():
        if state["Type"] == "Task":
            state["TimeoutSeconds"] = 1
        for retrier in state.get("Retry", []):
            retrier["MaxAttempts"] = min(retrier["MaxAttempts"], 3)
    return copy


class Moto:
    """The definition on the embedded engine, with tasks that end as they are told."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock
        self._count = 0
        self._left: dict[str, list[str | None]] = {}
        knock.invoke = self._invoke  # type: ignore[method-assign]
        definition = json.dumps(hurried(DEFINITION))
        for name in ("Authorize", "Revoke"):
            arn = f"arn:aws:lambda:eu-west-1:123456789012:function:knock-{name.lower()}"
            definition = definition.replace(f"${{{name}FunctionArn}}", arn)
        knock.client("stepfunctions").update_state_machine(stateMachineArn=MACHINE, definition=definition)

    def _invoke(self, arn: str, payload: bytes) -> InvocationResult:
        outcome = self._outcome(arn, json.loads(payload))
        if outcome == "States.Timeout":
            threading.Event().wait(1.5)  # no function can raise it: a task that hangs does
        if outcome in (None, "States.Timeout"):
            return InvocationResult(b"[]")
        return InvocationResult(json.dumps({"errorType": outcome, "errorMessage": ""}).encode(), "Unhandled")

    def _outcome(self, arn: str, payload: Any) -> str | None:
        if arn.endswith("authorize"):
            state = AUTHORIZE
        elif payload.get("how") == "force":
            state = FORCE if "rules" in payload["grant"] else FORCE_BACK
        else:
            state = {"expired": REVOKE, "failed": ROLL_BACK}[payload["how"]]
        left = self._left.get(state, [None])
        return left.pop(0) if len(left) > 1 else left[0]

    def run(self, outcomes: dict[str, list[str | None]]) -> tuple[list[str], str]:
        self._count += 1
        self._left = {name: list(left) for name, left in outcomes.items()}
        name = f"path-{self._count}"
        value = INPUT | {
            "grant_id": name,
            "expires_at": self._knock.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._knock.client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=name, input=json.dumps(value)
        )
        self._knock.wait(
            lambda: self._knock.execution_status(name) != "RUNNING",
            f"{outcomes}: it never ends",
            30,
            step=timedelta(minutes=15),
        )
        return self._knock.states(name), self._knock.execution(name)["status"]


def third(outcomes: dict[str, list[str | None]]) -> tuple[list[str], str]:
    """The definition on npm's aws-local-stepfunctions."""
    node = ROOT / "node_modules" / ".bin" / "node"
    need(node.exists(), "npm's node 22 is not installed: run npm ci")
    asked = {"definition": hurried(DEFINITION), "input": INPUT, "outcomes": outcomes}
    done = subprocess.run(
        [node, ROOT / "tests" / "statemachine" / "third_interpreter.mjs"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return said["entered"], {"ExecutionSucceeded": "SUCCEEDED", "ExecutionFailed": "FAILED"}[said["status"]]


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with running() as knock:
        knock.deliveries.drop(lambda _event: True)
        yield Moto(knock)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_the_same_on_moto_and_on_the_third_interpreter(moto: Moto, path: str) -> None:
    outcomes, states, status = PATHS[path]
    assert moto.run(outcomes) == (states, status)
    assert third(outcomes) == (states, status)


def test_the_paths_are_all_there_are() -> None:
    """Each state, and each Catch, is on one of the paths."""
    walked = {(a, b) for _, states, _ in PATHS.values() for a, b in pairwise(states)}
    arrows = {
        (name, following)
        for name, state in DEFINITION["States"].items()
        for following in [state.get("Next"), *(catcher["Next"] for catcher in state.get("Catch", []))]
        if following
    }
    assert walked == arrows


@pytest.mark.parametrize(("state", "code"), RETRIED)
def test_an_error_that_may_pass_is_tried_again_on_both(moto: Moto, state: str, code: str) -> None:
    """Mutation: the code taken out of its Retry."""
    outcomes: dict[str, list[str | None]] = {state: [code, None]}
    if state in (ROLL_BACK, FORCE_BACK):
        outcomes[AUTHORIZE] = ["PoolExhausted"]
    if state == FORCE:
        outcomes[REVOKE] = ["Broken"]
    if state == FORCE_BACK:
        outcomes[ROLL_BACK] = ["Broken"]
    expected = [AUTHORIZE, ROLL_BACK, FAILED] if AUTHORIZE in outcomes and state != AUTHORIZE else None
    expected = expected or [AUTHORIZE, HOLD, REVOKE, EXPIRED]
    assert moto.run(outcomes)[0] == expected
    # A timeout is the third interpreter's own to raise: a handler's error of that name ends its run.
    if code != "States.Timeout":
        assert third(outcomes)[0] == expected


@pytest.mark.parametrize("code", ["GrantEnded", "InvalidGrant", "PoolExhausted", "IngressRefused"])
def test_a_permanent_error_is_never_tried_again(moto: Moto, code: str) -> None:
    outcomes: dict[str, list[str | None]] = {AUTHORIZE: [code, None]}
    assert moto.run(outcomes) == ([AUTHORIZE, ROLL_BACK, FAILED], "FAILED")
    assert third(outcomes) == ([AUTHORIZE, ROLL_BACK, FAILED], "FAILED")
