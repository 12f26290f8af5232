"""The state machines' definitions: other checkers, and our own walk over every path of both.

The walk (`definition.py`) is itself tested: each of the machines below breaks one promise, and the walk
has to say which. Most of them pass every other checker here.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from grants import errors, timing
from tests.conftest import ROOT, program
from tests.statemachine.definition import (
    AUTHORIZE,
    CLOSING,
    GRANT,
    REVOKE,
    Machine,
    delays,
    load,
    problems,
)

ASL_VALIDATOR = ROOT / "node_modules" / ".bin" / "asl-validator"
SECOND_ENGINE = ROOT / "node_modules" / "stepfunctions-local"
HOW_TO_GET_NODE = "`make check` installs it"


MACHINES = {"grant": GRANT, "close": CLOSING}
every_machine = pytest.mark.parametrize("which", MACHINES.values(), ids=MACHINES)


@cache
def input_fields() -> frozenset[str]:
    """Read the fields of an execution's input from the page that promises them, but for the optional one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    example = re.search(r"## An execution's input.*?```json\n(.*?)```", text, re.DOTALL)
    assert example
    return frozenset(json.loads(example[1])) - {"renews"}


def payloads() -> dict[str, tuple[object, str | None]]:
    """Read each task's Parameters and ResultPath from the page that promises them, by its state."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("\n## The payload of a task\n")[1].split("\n## ")[0]
    read: dict[str, tuple[object, str | None]] = {}
    path: str | None = None
    for states, payload, answer in re.findall(
        r"^\| ([A-Z][^|]+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE
    ):
        names = re.findall(r"[A-Z]\w+", states)
        texts = re.findall(r"`(\{[^`]+\})`", payload)
        if not answer.startswith("the same"):
            place = re.search(r"at `(\$\.\w+)`", answer)
            path = place[1] if place else None
        for name, text in zip(names, texts * (len(names) // len(texts)), strict=True):
            read[name] = json.loads(re.sub(r'"(\w+)": <\w+>', r'"\1.$": "$"', text)), path
    return read


def broken(definition: dict[str, Any], which: Machine = GRANT) -> list[str]:
    """List the promises that a definition breaks."""
    return problems(definition, which._replace(fields=input_fields()) if which.opens else which)


def deployed(which: Machine) -> str:
    """Give the definition as it is deployed: the same bytes, the placeholders filled in."""
    text = which.path.read_text()
    for placeholder, name in ((AUTHORIZE, "knock-authorize"), (REVOKE, "knock-revoke")):
        text = text.replace(placeholder, f"arn:aws:lambda:eu-west-1:123456789012:function:{name}")
    assert "${" not in text
    return text


@pytest.fixture
def machine() -> dict[str, Any]:
    return load(GRANT)


@pytest.fixture
def closing() -> dict[str, Any]:
    return load(CLOSING)


class TestTheDefinition:
    def test_it_keeps_every_promise_of_the_walk(self, machine: dict[str, Any]) -> None:
        """Any of BAD_MACHINES is noticed, too.

        Mutation: statemachine/grant.asl.json: `"Next": "RollBackIngress"` -> `"Next": "AuthorizationFailed"`
        Mutation: statemachine/grant.asl.json:
            `"TimestampPath": "$.expires_at"` -> `"TimestampPath": "$.requested_at"`
        Mutation: statemachine/grant.asl.json: `"Next": "ForceRevokeIngress"` -> `"Next": "RevocationFailed"`
        """
        assert broken(machine) == []

    def test_the_cause_of_a_failed_authorization_survives_a_failed_rollback(
        self, machine: dict[str, Any]
    ) -> None:
        (opening,) = machine["States"]["AuthorizeIngress"]["Catch"]
        (rollback,) = machine["States"]["RollBackIngress"]["Catch"]
        assert opening["ResultPath"] == "$.error"
        assert rollback["ResultPath"] != "$.error"

    def test_rolling_back_is_retried_as_revoking_is(self, machine: dict[str, Any]) -> None:
        states = machine["States"]
        assert states["RollBackIngress"]["Retry"] == states["RevokeIngress"]["Retry"]
        assert states["ForceRollBackIngress"]["Retry"] == states["ForceRevokeIngress"]["Retry"]

    @every_machine
    def test_it_has_no_deadline_of_its_own(self, which: Machine) -> None:
        """A deadline could only prevent the revocation."""
        assert "TimeoutSeconds" not in load(which)


class TestTheClosing:
    def test_it_keeps_every_promise_of_the_walk(self, closing: dict[str, Any]) -> None:
        """Any of BAD_CLOSINGS is noticed, too.

        Mutation: statemachine/close.asl.json: `"Next": "ForceClose"` -> `"Next": "ClosingFailed"`
        Mutation: statemachine/close.asl.json: `"Next": "ClosingFailed"` -> `"Next": "Closed"`
        """
        assert broken(closing, CLOSING) == []

    def test_it_retries_as_an_execution_does(self, machine: dict[str, Any], closing: dict[str, Any]) -> None:
        """Mutation: a retrier of statemachine/close.asl.json changed."""
        for revoking, name in (("RevokeIngress", "Close"), ("ForceRevokeIngress", "ForceClose")):
            for field in ("Retry", "TimeoutSeconds"):
                assert closing["States"][name][field] == machine["States"][revoking][field]


class TestPayloads:
    def test_the_tasks_have_those_of_the_architecture_page(self) -> None:
        """Mutation: statemachine/grant.asl.json: `"how": "failed"` -> `"how": "expired"`"""
        tasks = {
            name: (state["Parameters"], state["ResultPath"])
            for machine in MACHINES.values()
            for name, state in load(machine)["States"].items()
            if state["Type"] == "Task"
        }
        assert tasks == payloads()


class TestRetries:
    """Which errors are tried again, and for how long. Full jitter makes a wait half as long on average."""

    @staticmethod
    def patience(machine: dict[str, Any], state: str, error: str) -> float:
        """Give the longest time, in seconds, that a state waits in all between tries after one error."""
        for retrier in machine["States"][state]["Retry"]:
            if error in retrier["ErrorEquals"] or "States.ALL" in retrier["ErrorEquals"]:
                return sum(delays(retrier))
        return 0.0

    @every_machine
    def test_every_error_named_in_a_retrier_can_happen(self, which: Machine) -> None:
        """Knock's by their classes; Lambda's and Step Functions' by the names AWS documents.

        https://docs.aws.amazon.com/step-functions/latest/dg/bp-lambda-serviceexception.html
        https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html
        """
        services = {
            "Lambda.AWSLambdaException",
            "Lambda.ClientExecutionTimeoutException",
            "Lambda.SdkClientException",
            "Lambda.ServiceException",
            "Lambda.TooManyRequestsException",
            "Lambda.Unknown",
            "Runtime.ExitError",
            "Sandbox.Timedout",
            "States.ALL",
            "States.Timeout",
        }
        own = {name for name, value in vars(errors).items() if inspect.isclass(value)}
        named = {
            error
            for state in load(which)["States"].values()
            for retrier in state.get("Retry", [])
            for error in retrier["ErrorEquals"]
        }
        assert named <= services | own

    @pytest.mark.parametrize("error", [e.__name__ for e in errors.Refusal.__subclasses__()])
    def test_a_permanent_error_of_authorizing_is_not_retried(
        self, machine: dict[str, Any], error: str
    ) -> None:
        assert self.patience(machine, "AuthorizeIngress", error) == 0

    @pytest.mark.parametrize(
        ("error", "shortest", "longest"),
        [
            ("StoreUnavailable", 25, 40),
            ("IngressUnavailable", 25, 40),
            ("EngineUnavailable", 25, 40),
            ("Lambda.ServiceException", 25, 40),
            ("RuleUnsettled", 220, 260),
            ("IngressThrottled", 120, 300),
            ("Lambda.TooManyRequestsException", 120, 300),
            ("States.Timeout", 1, 5),
        ],
    )
    def test_authorizing_is_retried_for_a_while_after(
        self, machine: dict[str, Any], error: str, shortest: float, longest: float
    ) -> None:
        assert shortest <= self.patience(machine, "AuthorizeIngress", error) <= longest

    def test_every_transient_error_is_retried(self, machine: dict[str, Any]) -> None:
        # Rights are read by the API alone.
        for error in set(errors.Unavailable.__subclasses__()) - {errors.RightsUnavailable}:
            assert self.patience(machine, "AuthorizeIngress", error.__name__) > 0, error.__name__

    @pytest.mark.parametrize("state", ["RevokeIngress", "RollBackIngress"])
    @pytest.mark.parametrize(
        ("error", "shortest", "longest"),
        [
            ("StoreUnavailable", 50, 90),
            ("StoreRefused", 50, 90),
            ("IngressThrottled", 600, 1_200),
            ("Lambda.TooManyRequestsException", 600, 1_200),
            ("RuleUnsettled", 360, 420),
            ("AnythingElse", 240, 360),
        ],
    )
    def test_revoking_is_retried_for_a_while_after(
        self, machine: dict[str, Any], state: str, error: str, shortest: float, longest: float
    ) -> None:
        assert shortest <= self.patience(machine, state, error) <= longest

    @pytest.mark.parametrize(
        ("which", "state", "times"),
        [
            (GRANT, "AuthorizeIngress", 1),
            (GRANT, "RevokeIngress", 2),
            (GRANT, "RollBackIngress", 2),
            (CLOSING, "Close", 2),
        ],
    )
    def test_an_attempt_settles_within_its_retries(self, which: Machine, state: str, times: float) -> None:
        """Without jitter, which could use the tries up in a moment. Closing has twice the time.

        Mutation: functions/grants/timing.py:
            `EC2_LAG = timedelta(seconds=150)` -> `EC2_LAG = timedelta(seconds=300)`
        """
        (retrier,) = (
            retrier
            for retrier in load(which)["States"][state]["Retry"]
            if "RuleUnsettled" in retrier["ErrorEquals"]
        )
        assert retrier["ErrorEquals"] == ["RuleUnsettled"]
        assert "JitterStrategy" not in retrier
        assert sum(delays(retrier)) > times * timing.SETTLES.total_seconds()

    def test_force_is_retried_for_days_at_most_a_quarter_of_an_hour_apart(
        self, machine: dict[str, Any]
    ) -> None:
        (retrier,) = machine["States"]["ForceRevokeIngress"]["Retry"]
        assert sum(delays(retrier)) / 2 > 3 * 86_400
        assert max(delays(retrier)) <= 900


class TestOtherCheckers:
    @every_machine
    def test_asl_validator_finds_nothing(self, which: Machine, tmp_path: Path) -> None:
        program("node", HOW_TO_GET_NODE)
        checker = program("asl-validator", HOW_TO_GET_NODE, str(ASL_VALIDATOR))
        path = tmp_path / which.path.name
        path.write_text(deployed(which))
        result = subprocess.run(
            [checker, "--json-path", path], capture_output=True, text=True, check=False, timeout=60
        )
        assert result.returncode == 0, result.stdout + result.stderr

    @every_machine
    def test_statelint_finds_nothing(self, which: Machine) -> None:
        from statelint.linter import Linter

        assert Linter.validate(json.loads(deployed(which))) == []

    @every_machine
    def test_the_embedded_engine_takes_it(self, which: Machine) -> None:
        from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser

        program_, _ = AmazonStateLanguageParser.parse(deployed(which))
        assert program_.start_at.start_at_name == load(which)["StartAt"]

    @every_machine
    def test_the_second_engine_takes_the_same_bytes(self, which: Machine) -> None:
        """stepfunctions-local brings a checker of its own, from 2020, and refuses what that does not know."""
        node = program("node", HOW_TO_GET_NODE)
        program("stepfunctions-local", HOW_TO_GET_NODE, str(SECOND_ENGINE))
        script = """
            const check = require(require.resolve('asl-validator', {paths: [process.argv[1]]}));
            const definition = JSON.parse(require('fs').readFileSync(0));
            process.stdout.write(JSON.stringify(check(definition)));
        """
        result = subprocess.run(
            [node, "-e", script, SECOND_ENGINE],
            input=deployed(which),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert json.loads(result.stdout) == {"isValid": True, "errors": []}


# ---------------------------------------------------------------------------- machines that break a promise

Breaking = Callable[[dict[str, Any]], object]


def authorize_straight_to_succeed(states: dict[str, Any]) -> None:
    states["AuthorizeIngress"]["Next"] = "Expired"
    del states["HoldUntilExpiry"], states["RevokeIngress"], states["ForceRevokeIngress"]


def step_after_authorize_that_may_fail(states: dict[str, Any]) -> None:
    """The commonest fault of such systems: a step between opening and its timer without a Catch."""
    states["Tell"] = {
        **copy.deepcopy(states["AuthorizeIngress"]),
        "ResultPath": "$.told",
        "Next": "HoldUntilExpiry",
    }
    del states["Tell"]["Catch"]
    states["AuthorizeIngress"]["Next"] = "Tell"


def wait_on_a_loop(states: dict[str, Any]) -> None:
    states["RevokeIngress"]["Next"] = "HoldUntilExpiry"
    states["ForceRevokeIngress"]["Next"] = "Expired"


def rollback_into_hold(states: dict[str, Any]) -> None:
    states["AuthorizeIngress"]["Catch"][0]["Next"] = "HoldUntilExpiry"
    for name in ("RollBackIngress", "ForceRollBackIngress", "AuthorizationFailed"):
        del states[name]


def permanent_error_past_the_rollback(states: dict[str, Any]) -> None:
    states["AuthorizeIngress"]["Catch"].insert(
        0, {"ErrorEquals": ["PoolExhausted"], "ResultPath": "$.error", "Next": "AuthorizationFailed"}
    )


def choice_in_the_way(states: dict[str, Any]) -> None:
    states["AuthorizeIngress"]["Next"] = "IsItLong"
    states["IsItLong"] = {
        "Comment": "Whether.",
        "Type": "Choice",
        "Choices": [{"Variable": "$.reason", "StringEquals": "x", "Next": "Expired"}],
        "Default": "HoldUntilExpiry",
    }


def retry(state: str, number: int, **fields: object) -> Breaking:
    return lambda states: states[state]["Retry"][number].update(fields)


def put(state: str, **fields: object) -> Breaking:
    return lambda states: states[state].update(fields)


def drop(state: str, field: str) -> Breaking:
    return lambda states: states[state].pop(field)


def catch(state: str, **fields: object) -> Breaking:
    return lambda states: states[state]["Catch"][0].update(fields)


BAD_MACHINES: dict[str, tuple[Breaking, str]] = {
    # Opening and its timer
    "authorize straight to succeed": (
        authorize_straight_to_succeed,
        "Expired is reached without a revoke task",
    ),
    "authorize without a catch": (
        drop("AuthorizeIngress", "Catch"),
        "an error of AuthorizeIngress is not caught",
    ),
    "authorize that catches one error alone": (
        catch("AuthorizeIngress", ErrorEquals=["States.TaskFailed"]),
        "an error of AuthorizeIngress is not caught",
    ),
    "authorize caught without a rollback": (
        catch("AuthorizeIngress", Next="AuthorizationFailed"),
        "AuthorizationFailed is reached without a revoke task",
    ),
    "one error past the rollback": (
        permanent_error_past_the_rollback,
        "AuthorizationFailed is reached without a revoke task",
    ),
    "a step between opening and its timer": (
        step_after_authorize_that_may_fail,
        "an error of Tell is not caught",
    ),
    "a choice": (choice_in_the_way, "IsItLong is a Choice"),
    "no hold": (
        put("AuthorizeIngress", Next="RevokeIngress"),
        "RevokeIngress revokes before the grant's end",
    ),
    "a hold after a failure": (rollback_into_hold, "Expired is a success after a failure"),
    # How it ends
    "a failure that succeeds": (
        put("RollBackIngress", Next="Expired"),
        "Expired is a success after a failure",
    ),
    "a forced rollback that succeeds": (
        put("ForceRollBackIngress", Next="Expired"),
        "Expired is a success after a failure",
    ),
    "force caught into a success": (
        catch("ForceRevokeIngress", Next="Expired"),
        "Expired is a success after a failure",
    ),
    "an expiry that fails": (
        put("RevokeIngress", Next="AuthorizationFailed"),
        "AuthorizationFailed is a failure after everything went well",
    ),
    "revoke given up without force": (
        catch("RevokeIngress", Next="RevocationFailed"),
        "RevokeIngress gave up and goes on to RevocationFailed, not to force",
    ),
    "revoke without a catch": (drop("RevokeIngress", "Catch"), "an error of RevokeIngress is not caught"),
    "force without a catch": (
        drop("ForceRevokeIngress", "Catch"),
        "an error of ForceRevokeIngress is not caught",
    ),
    "force that soon gives up": (retry("ForceRevokeIngress", 0, MaxAttempts=20), "does not try for days"),
    "a circle": (wait_on_a_loop, "can come back to itself"),
    # What it reads
    "a wait with a wrong path": (put("HoldUntilExpiry", TimestampPath="$.expire_at"), "reads $.expire_at"),
    "a wait for another time": (
        put("HoldUntilExpiry", TimestampPath="$.requested_at"),
        "does not wait for the absolute time at $.expires_at",
    ),
    "a wait for a duration": (
        lambda states: (
            states["HoldUntilExpiry"].update(Seconds=60) or states["HoldUntilExpiry"].pop("TimestampPath")
        ),
        "does not wait for the absolute time at $.expires_at",
    ),
    "a path without its key": (
        put("RevokeIngress", Parameters={"how": "expired", "grant": "$"}),
        "Parameters.grant would be the text $",
    ),
    "a key without its path": (
        put("RevokeIngress", Parameters={"how.$": "expired", "grant.$": "$"}),
        "Parameters.how.$ is 'expired'",
    ),
    "a misspelt name of the context object": (
        put("AuthorizeIngress", Parameters={"grant.$": "$", "id.$": "$$.Execution.ID"}),
        "reads $$.Execution.ID",
    ),
    "rules read where authorizing failed": (
        put("RollBackIngress", Parameters={"how": "failed", "grant.$": "$", "rules.$": "$.rules"}),
        "RollBackIngress reads $.rules, which may not be there",
    ),
    "a result over the state": (drop("AuthorizeIngress", "ResultPath"), "AuthorizeIngress has no ResultPath"),
    "a result over the grant's end": (
        put("AuthorizeIngress", ResultPath="$.expires_at"),
        "AuthorizeIngress puts its result over $.expires_at",
    ),
    "an error over the state": (
        lambda states: states["RevokeIngress"]["Catch"][0].pop("ResultPath"),
        "catcher 1 of RevokeIngress: has no ResultPath",
    ),
    # How it is written
    "a dangling next": (
        put("HoldUntilExpiry", Next="RevokeIngres"),
        "leads to RevokeIngres, which is no state",
    ),
    "a dangling catch": (
        catch("RevokeIngress", Next="Force"),
        "RevokeIngress leads to Force, which is no state",
    ),
    "a state without a way to it": (
        put("AuthorizeIngress", Next="RevokeIngress"),
        "HoldUntilExpiry cannot be reached",
    ),
    "a state without a comment": (put("Expired", Comment=" "), "Expired has no Comment"),
    "a task without a timeout": (
        drop("RevokeIngress", "TimeoutSeconds"),
        "RevokeIngress has no TimeoutSeconds",
    ),
    "a task without a retry": (drop("RevokeIngress", "Retry"), "RevokeIngress has no Retry"),
    "retriers in the wrong order": (
        lambda states: states["RevokeIngress"]["Retry"].reverse(),
        "retrier 1 of RevokeIngress: States.ALL must be alone and last",
    ),
    "States.ALL in company": (
        retry("RevokeIngress", 3, ErrorEquals=["States.ALL", "KeyError"]),
        "retrier 4 of RevokeIngress: States.ALL must be alone and last",
    ),
    "an error retried twice": (
        retry("RevokeIngress", 1, ErrorEquals=["StoreUnavailable"]),
        "retrier 2 of RevokeIngress: StoreUnavailable is retried above already",
    ),
    "a delay below its interval": (
        retry("RevokeIngress", 0, MaxDelaySeconds=5, IntervalSeconds=10),
        "MaxDelaySeconds 5 is below IntervalSeconds 10",
    ),
    "a retrier without a bound": (
        lambda states: states["RevokeIngress"]["Retry"][0].pop("MaxAttempts"),
        "retrier 1 of RevokeIngress: is not bounded",
    ),
    "a backoff of nothing": (retry("RevokeIngress", 0, BackoffRate=0.5), "BackoffRate is 0.5"),
    "an unknown jitter": (retry("RevokeIngress", 0, JitterStrategy="full"), "JitterStrategy"),
    "more history than AWS allows": (
        retry("ForceRevokeIngress", 0, MaxAttempts=9_000),
        "the longest history is",
    ),
    "force beyond a year": (retry("ForceRevokeIngress", 0, MaxDelaySeconds=3_000), "a year has no room for"),
    "a task that calls another function": (
        put("RevokeIngress", Resource="arn:aws:states:::lambda:invoke"),
        "RevokeIngress calls arn:aws:states:::lambda:invoke",
    ),
    "a failure without a name": (
        drop("RevocationFailed", "Error"),
        "RevocationFailed has no fixed Error and Cause",
    ),
    "a state in JSONata": (put("Expired", QueryLanguage="JSONata"), "Expired is not in JSONPath"),
    "a state without a next": (drop("HoldUntilExpiry", "Next"), "HoldUntilExpiry ends the execution without"),
}


BAD_CLOSINGS: dict[str, tuple[Breaking, str]] = {
    "a close given up without force": (
        catch("Close", Next="ClosingFailed"),
        "Close gave up and goes on to ClosingFailed, not to force",
    ),
    "a close that is not caught": (drop("Close", "Catch"), "an error of Close is not caught"),
    "force that is not caught": (drop("ForceClose", "Catch"), "an error of ForceClose is not caught"),
    "force caught into a success": (
        catch("ForceClose", Next="Closed"),
        "Closed is a success after a failure",
    ),
    "force that needs the trail": (
        put("ForceClose", Parameters={"how": "close", "closing.$": "$"}),
        "Close gave up and goes on to ForceClose, not to force",
    ),
    "force that soon gives up": (retry("ForceClose", 0, MaxAttempts=20), "does not try for days"),
    "a success that fails": (
        put("Close", Next="ClosingFailed"),
        "ClosingFailed is a failure after everything went well",
    ),
    "an input that grows by the answer": (
        put("Close", ResultPath="$.closed"),
        "Close keeps its answer at $.closed",
    ),
    "an input that grows by the error": (
        catch("Close", ResultPath="$.error"),
        "catcher 1 of Close: keeps its error at $.error",
    ),
    "an input that is replaced": (drop("ForceClose", "ResultPath"), "ForceClose keeps its answer at $,"),
    "a path that only some inputs have": (
        put("Close", Parameters={"how": "close", "closing.$": "$.detail"}),
        "Close reads $.detail, which may not be there",
    ),
    "a task that opens": (
        put("ForceClose", Resource=AUTHORIZE),
        "ForceClose calls ${AuthorizeFunctionArn}, not a function of the machine's",
    ),
    "a wait": (
        lambda states: states.update(Pause={"Type": "Wait", "Seconds": 1, "Next": "Close"}),
        "Pause is a Wait, which the machine does without",
    ),
}


class TestTheWalk:
    @pytest.mark.parametrize("name", BAD_MACHINES)
    def test_it_flags(self, machine: dict[str, Any], name: str) -> None:
        breaks, expected = BAD_MACHINES[name]
        breaks(machine["States"])
        flagged = broken(machine)
        assert any(expected in problem for problem in flagged), flagged

    @pytest.mark.parametrize("name", BAD_CLOSINGS)
    def test_it_flags_a_closing_with(self, closing: dict[str, Any], name: str) -> None:
        breaks, expected = BAD_CLOSINGS[name]
        breaks(closing["States"])
        flagged = broken(closing, CLOSING)
        assert any(expected in problem for problem in flagged), flagged

    def test_it_flags_a_closing_that_begins_otherwise(self, closing: dict[str, Any]) -> None:
        closing["StartAt"] = "Closed"
        assert broken(closing, CLOSING) == ["the first state is Closed, not the revoke task"]

    def test_it_names_the_way_to_the_fault(self, machine: dict[str, Any]) -> None:
        machine["States"]["ForceRollBackIngress"]["Next"] = "Expired"
        (problem,) = broken(machine)
        assert problem.endswith("by AuthorizeIngress > RollBackIngress > ForceRollBackIngress > Expired")

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("TimeoutSeconds", 86_400, "the machine times out after 86400 s"),
            ("QueryLanguage", "JSONata", "the machine is not in JSONPath"),
            ("Comment", "", "the machine has no Comment"),
            ("StartAt", "HoldUntilExpiry", "the first state is HoldUntilExpiry"),
            ("StartAt", "Authorize", "StartAt names Authorize, which is no state"),
        ],
    )
    def test_it_flags_a_machine_with(
        self, machine: dict[str, Any], field: str, value: object, expected: str
    ) -> None:
        machine[field] = value
        assert any(expected in problem for problem in broken(machine))
