"""The embedded Step Functions: what AWS does and moto does not, mend by mend.

Facts are AWS's, from the Step Functions developer guide and API reference; the mends' docstrings name the
pages. The last part asks plain moto, in a process of its own, whether each mend is still needed.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.server import ThreadedMotoServer
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker

from local import engine_api
from local.clock import Clock, Timer
from local.engine import Engine, InvocationError, InvocationResult, install
from tests.conftest import ROOT
from tests.local.plain_moto import faults as plain_moto_faults
from tests.waiting import wait_for

REGION, ACCOUNT = "eu-west-1", "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/engine"
FUNCTION = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"

Json = dict[str, Any]


class RecordingClock(Clock):
    """A clock that records the times it is to call back at."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[datetime] = []

    def at(self, when: datetime, callback: Callable[[], None]) -> Timer:
        self.due.append(when)
        return super().at(when, callback)


class World:
    """One engine, its clock, functions that are Python callables, and the events it published."""

    def __init__(self) -> None:
        self.clock = RecordingClock()
        self.functions: dict[str, Callable[[Any], Any]] = {"work": lambda payload: payload}
        self.calls: list[tuple[str, Any, datetime]] = []
        self.events: list[Json] = []
        self.engine: Engine = install(
            self.invoke, clock=self.clock, publish=lambda _account, _region, event: self.events.append(event)
        )

    def invoke(self, arn: str, payload: bytes) -> InvocationResult:
        name = arn.removeprefix(FUNCTION)
        self.calls.append((name, json.loads(payload), self.clock.now()))
        answer = self.functions[name](json.loads(payload))
        return (
            answer if isinstance(answer, InvocationResult) else InvocationResult(json.dumps(answer).encode())
        )


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("stepfunctions", region_name=REGION)


@pytest.fixture
def world(client: Any) -> Iterator[World]:
    new_world = World()
    yield new_world
    new_world.engine.shutdown()
    new_world.clock.close()


@pytest.fixture
def sfn(client: Any, world: World) -> Any:
    """The client, of an account without state machines."""
    engine_api.stepfunctions_parser_backends[ACCOUNT].reset()
    return client


def ended(sfn: Any, arn: str, status: str) -> Json:
    """Wait until an execution has ended with this status, and describe it; any other fails."""
    execution: Json = wait_for(
        lambda: (described := sfn.describe_execution(executionArn=arn))["status"] != "RUNNING" and described,
        f"{arn} has not ended",
        10,
    )
    assert execution["status"] == status, execution
    return execution


def definition(states: Json, start: str | None = None, **more: Any) -> str:
    return json.dumps({"StartAt": start or next(iter(states)), "States": states, **more})


def machine(sfn: Any, states: Json, start: str | None = None, name: str = "m", **more: Any) -> str:
    answer = sfn.create_state_machine(name=name, definition=definition(states, start, **more), roleArn=ROLE)
    arn: str = answer["stateMachineArn"]
    return arn


def run(sfn: Any, states: Json, payload: Any = None, **more: Any) -> str:
    """Start an execution of a new machine."""
    arn = machine(sfn, states, **more)
    return start(sfn, arn, payload)


def start(sfn: Any, arn: str, payload: Any = None, **more: Any) -> str:
    answer = sfn.start_execution(
        stateMachineArn=arn, input=json.dumps({} if payload is None else payload), **more
    )
    execution: str = answer["executionArn"]
    return execution


def task(function: str = "work", **more: Any) -> Json:
    return {
        "Type": "Task",
        "Resource": FUNCTION + function,
        **({} if "Next" in more else {"End": True}),
        **more,
    }


def stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def history(sfn: Any, arn: str, **more: Any) -> list[Json]:
    events: list[Json] = sfn.get_execution_history(executionArn=arn, **more)["events"]
    return events


def failed(**error: str) -> InvocationResult:
    return InvocationResult(json.dumps(error).encode(), "Unhandled")


WAIT_THEN_WORK: Json = {"Hold": {"Type": "Wait", "TimestampPath": "$.until", "Next": "Work"}, "Work": task()}


# --------------------------------------------------------------------------------------------- waits


def test_a_wait_ends_at_its_timestamp_and_not_before(world: World, sfn: Any) -> None:
    when = (world.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    arn = run(sfn, WAIT_THEN_WORK, {"until": stamp(when)})
    wait_for(lambda: world.clock.due, "the wait has not begun")
    assert world.clock.due == [when], "test_clock.py shows that the clock calls back at this time"
    world.clock.advance(when - world.clock.now())
    ended(sfn, arn, "SUCCEEDED")
    assert when <= world.calls[0][2]


def test_a_wait_of_eight_hours_ends_when_the_clock_is_moved(world: World, sfn: Any) -> None:
    when = (world.clock.now() + timedelta(hours=8)).replace(microsecond=0)
    arn = run(sfn, WAIT_THEN_WORK, {"until": stamp(when)})
    wait_for(lambda: history(sfn, arn)[-1]["type"] == "WaitStateEntered", "the wait has not begun")
    world.clock.advance(timedelta(hours=7))
    time.sleep(0.03)
    assert not world.calls
    world.clock.advance(timedelta(hours=1))
    described = ended(sfn, arn, "SUCCEEDED")
    assert described["stopDate"] - described["startDate"] > timedelta(hours=7, minutes=59)
    # The two are one moment, written with milliseconds by two ways of rounding.
    assert abs(history(sfn, arn)[-1]["timestamp"] - described["stopDate"]) <= timedelta(milliseconds=1)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_wait_does_not_depend_on_the_local_time_zone(
    world: World, sfn: Any, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        later = run(sfn, WAIT_THEN_WORK, {"until": stamp(world.clock.now() + timedelta(hours=1))})
        world.clock.advance(timedelta(minutes=59))
        time.sleep(0.03)
        assert sfn.describe_execution(executionArn=later)["status"] == "RUNNING"
        world.clock.advance(timedelta(minutes=1, seconds=1))
        ended(sfn, later, "SUCCEEDED")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_milliseconds_of_a_timestamp_are_cut(world: World, sfn: Any) -> None:
    second = (world.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    fraction = second.strftime("%Y-%m-%dT%H:%M:%S.999999Z")
    arn = run(sfn, WAIT_THEN_WORK, {"until": fraction})
    wait_for(lambda: world.clock.due, "the wait has not begun")
    assert world.clock.due == [second]
    world.clock.advance(second - world.clock.now())
    ended(sfn, arn, "SUCCEEDED")


@pytest.mark.parametrize(
    "past", ["1970-01-01T00:00:00Z", "2016-03-14T01:59:00.123456789Z", "2016-03-14T01:59:00+05:45"]
)
def test_a_wait_for_a_timestamp_in_the_past_ends_at_once(world: World, sfn: Any, past: str) -> None:
    ended(sfn, run(sfn, WAIT_THEN_WORK, {"until": past}), "SUCCEEDED")


def test_a_timestamp_with_an_offset_is_that_moment(world: World, sfn: Any) -> None:
    when = (world.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    abroad = (when + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00")
    arn = run(sfn, WAIT_THEN_WORK, {"until": abroad})
    wait_for(lambda: history(sfn, arn)[-1]["type"] == "WaitStateEntered", "the wait has not begun")
    world.clock.advance(timedelta(minutes=58))
    assert sfn.describe_execution(executionArn=arn)["status"] == "RUNNING"
    world.clock.advance(timedelta(minutes=2))
    ended(sfn, arn, "SUCCEEDED")


@pytest.mark.parametrize(
    "malformed",
    [
        "tomorrow",
        "",
        "2026-11-24",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-24T24:61:00Z",
        "2026-11-24 21:17:20Z",
        "2026-11-24t21:17:20z",
        "2026-11-24T21:17:20",
        "2026-11-24T21:17:20Z\n",
        "2026-11-24T21:17:20 Z",
        1795555040,
        None,
        {"at": "2026-11-24T21:17:20Z"},
    ],
)
def test_a_malformed_timestamp_fails_the_execution(world: World, sfn: Any, malformed: Any) -> None:
    described = ended(sfn, run(sfn, WAIT_THEN_WORK, {"until": malformed}), "FAILED")
    assert described["error"] == "States.Runtime"
    assert "does not reference a valid ISO-8601 extended offset date-time" in described["cause"]
    assert not world.calls


def test_a_timestamp_that_is_missing_fails_the_execution(world: World, sfn: Any) -> None:
    described = ended(sfn, run(sfn, WAIT_THEN_WORK, {}), "FAILED")
    assert described["error"] == "States.Runtime"
    assert "$.until" in described["cause"]


def test_a_wait_by_seconds_is_by_the_clock(world: World, sfn: Any) -> None:
    arn = run(sfn, {"Hold": {"Type": "Wait", "Seconds": 3600, "Next": "Work"}, "Work": task()})
    wait_for(lambda: history(sfn, arn)[-1]["type"] == "WaitStateEntered", "the wait has not begun")
    world.clock.advance(timedelta(seconds=3601))
    ended(sfn, arn, "SUCCEEDED")


# --------------------------------------------------------------------------------- tasks and their errors


def test_a_task_calls_its_function_by_arn_with_its_input(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda payload: {"got": payload}
    states = {"Work": task(Parameters={"how": "expired", "grant.$": "$"}, ResultPath="$.answer")}
    described = ended(sfn, run(sfn, states, {"a": 1}), "SUCCEEDED")
    assert world.calls[0][:2] == ("work", {"how": "expired", "grant": {"a": 1}})
    assert json.loads(described["output"]) == {
        "a": 1,
        "answer": {"got": {"how": "expired", "grant": {"a": 1}}},
    }


CAUGHT: Json = {"Caught": {"Type": "Pass", "End": True}}


def caught(*names: str, **more: Any) -> Json:
    """A task whose errors of these names are caught, with the error at $.error."""
    catch = [{"ErrorEquals": list(names), "ResultPath": "$.error", "Next": "Caught"}]
    return {"Work": task(Catch=catch, **more), **CAUGHT}


@pytest.mark.parametrize(
    "error",
    ["PoolExhausted", "Sandbox.Timedout", "Runtime.ExitError", "Runtime.ImportModuleError", "States.Timeout"],
)
def test_a_function_error_is_caught_by_its_error_type(world: World, sfn: Any, error: str) -> None:
    """As for a raw ARN on AWS: the error is the payload's errorType, the cause is the payload."""
    answer = failed(errorMessage="no room", errorType=error, requestId="1", stackTrace="")
    world.functions["work"] = lambda _: answer
    described = ended(sfn, run(sfn, caught(error)), "SUCCEEDED")
    assert json.loads(described["output"])["error"] == {"Error": error, "Cause": answer.payload.decode()}


def test_an_uncaught_function_error_fails_the_execution(world: World, sfn: Any) -> None:
    answer = failed(errorMessage="no room", errorType="PoolExhausted")
    world.functions["work"] = lambda _: answer
    arn = run(sfn, {"Work": task()})
    described = ended(sfn, arn, "FAILED")
    assert (described["error"], described["cause"]) == ("PoolExhausted", answer.payload.decode())
    last = history(sfn, arn)[-2:]
    assert [event["type"] for event in last] == ["LambdaFunctionFailed", "ExecutionFailed"]
    details = {"error": "PoolExhausted", "cause": answer.payload.decode()}
    assert last[0]["lambdaFunctionFailedEventDetails"] == details
    assert last[1]["executionFailedEventDetails"] == details


@pytest.mark.parametrize(
    "payload",
    [b'{"errorMessage":"2024-11-26T00:36:39.604Z 5b Task timed out after 600.15 seconds"}', b"", b"[1]"],
)
def test_a_function_error_without_a_type_is_lambda_unknown(world: World, sfn: Any, payload: bytes) -> None:
    world.functions["work"] = lambda _: InvocationResult(payload, "Unhandled")
    described = ended(sfn, run(sfn, caught("Lambda.Unknown")), "SUCCEEDED")
    assert json.loads(described["output"])["error"]["Cause"] == (
        "The cause could not be determined because Lambda did not return an error type. "
        f"Returned payload: {payload.decode()}"
    )


def test_a_refused_invocation_is_lambdas_error(world: World, sfn: Any) -> None:
    def refuse(_: Any) -> Any:
        raise InvocationError("TooManyRequestsException", "Rate Exceeded.")

    world.functions["work"] = refuse
    described = ended(sfn, run(sfn, caught("Lambda.TooManyRequestsException")), "SUCCEEDED")
    assert json.loads(described["output"])["error"] == {
        "Error": "Lambda.TooManyRequestsException",
        "Cause": "Rate Exceeded.",
    }


def test_an_invoke_that_breaks_fails_the_task_and_nothing_else(world: World, sfn: Any) -> None:
    world.functions["broken"] = lambda _: 1 / 0
    described = ended(sfn, run(sfn, {"Work": task("broken")}), "FAILED")
    assert "division by zero" in described["cause"]
    ended(sfn, run(sfn, {"Work": task()}, name="next"), "SUCCEEDED")


def test_a_task_that_takes_too_long_is_states_timeout(
    world: World, sfn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After real seconds, while the function hangs; its late answer is dropped."""
    hung, release = threading.Event(), threading.Event()
    timers: list[tuple[float, Callable[[], None]]] = []

    def after(seconds: float, callback: Callable[[], None]) -> Timer:
        timers.append((seconds, callback))
        return Timer(seconds, 0, callback)

    def hang(_: Any) -> Any:
        hung.set()
        release.wait(60)
        return {"late": True}

    monkeypatch.setattr(world.clock, "after", after)

    world.functions["hang"] = hang
    states = {
        "Work": task("hang", TimeoutSeconds=1, Catch=[{"ErrorEquals": ["States.Timeout"], "Next": "Hold"}]),
        "Hold": {"Type": "Wait", "Seconds": 3600, "End": True},
    }
    arn = run(sfn, states)
    assert hung.wait(5)
    world.clock.advance(timedelta(minutes=5))  # a function takes real time, whatever the clock is moved to
    assert history(sfn, arn)[-1]["type"] == "LambdaFunctionStarted"
    ((seconds, time_out),) = timers
    assert seconds == 1
    time_out()
    wait_for(lambda: history(sfn, arn)[-1]["type"] == "WaitStateEntered", "the timeout was not caught")
    types = [event["type"] for event in history(sfn, arn)]
    assert "LambdaFunctionTimedOut" in types
    release.set()
    time.sleep(0.05)
    assert sfn.describe_execution(executionArn=arn)["status"] == "RUNNING"  # the late answer is dropped
    world.clock.advance(timedelta(hours=1))
    described = ended(sfn, arn, "SUCCEEDED")
    assert json.loads(described["output"])["Error"] == "States.Timeout"
    assert "LambdaFunctionSucceeded" not in [event["type"] for event in history(sfn, arn)]


def test_a_result_that_is_too_large_is_not_caught_by_states_all(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: "x" * 300_000
    described = ended(sfn, run(sfn, caught("States.ALL")), "FAILED")
    assert described["error"] == "States.DataLimitExceeded"


def test_a_result_that_is_too_large_is_caught_by_its_name(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: "x" * 300_000
    ended(sfn, run(sfn, caught("States.DataLimitExceeded")), "SUCCEEDED")


@pytest.mark.parametrize("name", ["States.ALL", "States.Runtime", "States.TaskFailed"])
@pytest.mark.parametrize("wrong", [{"Parameters": {"a.$": "$.nowhere"}}, {"TimeoutSecondsPath": "$.nowhere"}])
def test_a_runtime_error_is_neither_caught_nor_retried(
    world: World, sfn: Any, name: str, wrong: Json
) -> None:
    retry = [{"ErrorEquals": [name], "IntervalSeconds": 3600, "MaxAttempts": 3}]
    described = ended(sfn, run(sfn, caught(name, **wrong, Retry=retry)), "FAILED")
    assert described["error"] == "States.Runtime"
    assert "nowhere" in described["cause"]
    assert not world.calls


def test_states_all_catches_every_other_error(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: failed(errorMessage="", errorType="Anything")
    ended(sfn, run(sfn, caught("States.ALL")), "SUCCEEDED")


# ----------------------------------------------------------------------------------------------- retries


def test_retries_back_off_up_to_a_delay_and_then_fail(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: failed(errorMessage="", errorType="IngressThrottled")
    retry = {"IntervalSeconds": 100, "BackoffRate": 2.0, "MaxDelaySeconds": 300, "MaxAttempts": 4}
    arn = run(sfn, {"Work": task(Retry=[{"ErrorEquals": ["IngressThrottled"], **retry}])})
    for attempt, pause in enumerate((100, 200, 300, 300), start=1):
        wait_for(lambda attempt=attempt: len(world.calls) == attempt, f"attempt {attempt} was not made")
        wait_for(
            lambda: history(sfn, arn)[-1]["type"] == "LambdaFunctionFailed", "the attempt has not failed"
        )
        time.sleep(0.01)  # the pause begins right after the event
        world.clock.advance(timedelta(seconds=pause - 5))
        time.sleep(0.03)
        assert len(world.calls) == attempt
        world.clock.advance(timedelta(seconds=5))
    described = ended(sfn, arn, "FAILED")
    assert described["error"] == "IngressThrottled"
    assert len(world.calls) == 5


def test_full_jitter_draws_a_pause_from_zero_to_the_interval(
    world: World, sfn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[float, float]] = []
    monkeypatch.setattr(
        "moto.stepfunctions.parser.asl.component.common.retry.jitter_strategy_decl.random.uniform",
        lambda low, high: ranges.append((low, high)) or high / 2,
    )
    answers = iter([failed(errorMessage="", errorType="Busy"), {"ok": True}])
    world.functions["work"] = lambda _: next(answers)
    retry = [{"ErrorEquals": ["Busy"], "IntervalSeconds": 100, "JitterStrategy": "FULL"}]
    arn = run(sfn, {"Work": task(Retry=retry)})
    wait_for(lambda: ranges, "no pause was drawn")
    time.sleep(0.01)
    world.clock.advance(timedelta(seconds=51))
    ended(sfn, arn, "SUCCEEDED")
    assert ranges == [(0, 100)]


def test_the_first_matching_retrier_applies(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: failed(errorMessage="", errorType="GrantEnded")
    retry = [
        {"ErrorEquals": ["Other"], "MaxAttempts": 9},
        {"ErrorEquals": ["GrantEnded"], "MaxAttempts": 0},
        {"ErrorEquals": ["States.ALL"], "MaxAttempts": 9},
    ]
    ended(sfn, run(sfn, {"Work": task(Retry=retry)}), "FAILED")
    assert len(world.calls) == 1
    assert world.clock.due == [], "it paused before a retry"


def test_a_stop_ends_the_pause_before_a_retry(world: World, sfn: Any) -> None:
    world.functions["work"] = lambda _: failed(errorMessage="", errorType="Busy")
    retry = [{"ErrorEquals": ["Busy"], "IntervalSeconds": 3600}]
    arn = run(sfn, {"Work": task(Retry=retry)})
    wait_for(
        lambda: history(sfn, arn)[-1]["type"] == "LambdaFunctionFailed", "the first attempt has not failed"
    )
    sfn.stop_execution(executionArn=arn)
    assert sfn.describe_execution(executionArn=arn)["status"] == "ABORTED"
    world.clock.advance(timedelta(hours=2))
    time.sleep(0.03)
    assert len(world.calls) == 1


# ------------------------------------------------------------------------------------------------- stops


def test_a_stop_keeps_its_error_and_cause(world: World, sfn: Any) -> None:
    arn = run(sfn, WAIT_THEN_WORK, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    answer = sfn.stop_execution(executionArn=arn, error="Revoked", cause="alice: done early")
    described = sfn.describe_execution(executionArn=arn)
    assert described["status"] == "ABORTED"
    assert (described["error"], described["cause"]) == ("Revoked", "alice: done early")
    assert described["stopDate"] == answer["stopDate"]
    last = history(sfn, arn)[-1]
    assert last["type"] == "ExecutionAborted"
    assert last["executionAbortedEventDetails"] == {"error": "Revoked", "cause": "alice: done early"}
    assert not [timer for timer in world.clock._absolute if timer.callback]  # no timer is left
    world.clock.advance(timedelta(hours=2))
    time.sleep(0.03)
    assert not world.calls


def test_a_stop_without_reasons_has_none(world: World, sfn: Any) -> None:
    arn = run(sfn, WAIT_THEN_WORK, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    sfn.stop_execution(executionArn=arn)
    described = sfn.describe_execution(executionArn=arn)
    assert "error" not in described
    assert "cause" not in described


def test_an_execution_can_be_stopped_before_its_first_step(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    hold = threading.Event()
    world.engine.post(lambda: hold.wait(10) and None)  # type: ignore[func-returns-value]
    execution = start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    threading.Timer(0.15, hold.set).start()
    sfn.stop_execution(executionArn=execution, cause="at once")
    assert sfn.describe_execution(executionArn=execution)["status"] == "ABORTED"
    for _ in range(30):
        execution = start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
        sfn.stop_execution(executionArn=execution)
        assert sfn.describe_execution(executionArn=execution)["status"] == "ABORTED"


def test_a_stop_does_not_wait_for_the_function_that_runs(world: World, sfn: Any) -> None:
    running, release, returned = threading.Event(), threading.Event(), threading.Event()

    def hang(_: Any) -> Any:
        running.set()
        release.wait(10)
        returned.set()
        return {}

    world.functions["hang"] = hang
    arn = run(sfn, {"Work": task("hang", Next="More"), "More": task()})
    assert running.wait(5)
    sfn.stop_execution(executionArn=arn, cause="not waiting")
    assert not returned.is_set()
    before = history(sfn, arn)
    assert before[-1]["type"] == "ExecutionAborted"
    release.set()
    assert returned.wait(5)  # the function goes on; its result is dropped
    time.sleep(0.03)
    assert history(sfn, arn) == before
    assert sfn.describe_execution(executionArn=arn)["status"] == "ABORTED"
    assert [name for name, _, _ in world.calls] == ["hang"]


def test_a_stop_after_the_end_changes_nothing(world: World, sfn: Any) -> None:
    arn = run(sfn, {"Work": task()})
    described = ended(sfn, arn, "SUCCEEDED")
    answer = sfn.stop_execution(executionArn=arn, cause="too late")
    assert answer["stopDate"] == described["stopDate"]
    assert sfn.describe_execution(executionArn=arn)["status"] == "SUCCEEDED"
    assert len(world.events) == 2


def test_stopping_an_unknown_execution_is_an_error(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    for unknown in (
        arn.replace(":stateMachine:", ":execution:") + ":nobody",
        f"arn:aws:states:{REGION}:{ACCOUNT}:execution:nothing:nobody",
    ):
        with pytest.raises(ClientError) as error:
            sfn.stop_execution(executionArn=unknown)
        assert error.value.response["Error"]["Code"] == "ExecutionDoesNotExist"


# ------------------------------------------------------------------------------------- starting and names


@pytest.mark.parametrize("character", list('<>{}[]?*"#%\\^|~`$&,;:/ \t\x00\x7f\x9f\ufffe'))
def test_a_name_with_a_forbidden_character_is_refused(world: World, sfn: Any, character: str) -> None:
    arn = machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        sfn.start_execution(stateMachineArn=arn, name=f"a{character}b")
    assert error.value.response["Error"]["Code"] == "InvalidName"
    assert sfn.list_executions(stateMachineArn=arn)["executions"] == []


@pytest.mark.parametrize("name", ["a", "alice_203-0-113-7_20261123T211719Z_x7k2p9", "é.(a)=b+c@d!", "a" * 80])
def test_an_allowed_name_is_kept(world: World, sfn: Any, name: str) -> None:
    execution = start(sfn, machine(sfn, {"Work": task()}), name=name)
    assert execution == f"arn:aws:states:{REGION}:{ACCOUNT}:execution:m:{name}"
    assert ended(sfn, execution, "SUCCEEDED")["name"] == name


def test_a_name_of_81_characters_is_refused(world: World, sfn: Any) -> None:
    with pytest.raises(ClientError) as error:
        start(sfn, machine(sfn, {"Work": task()}), name="a" * 81)
    assert error.value.response["Error"]["Code"] == "ValidationException"


def test_an_execution_without_a_name_gets_one_of_its_own(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    names = {start(sfn, arn).rpartition(":")[2] for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) for name in names)


def test_the_same_name_and_input_while_it_runs_is_the_same_execution(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    payload = json.dumps({"until": stamp(world.clock.now() + timedelta(hours=1))})
    first, second = (sfn.start_execution(stateMachineArn=arn, name="same", input=payload) for _ in range(2))
    assert (first["executionArn"], first["startDate"]) == (second["executionArn"], second["startDate"])
    assert len(sfn.list_executions(stateMachineArn=arn)["executions"]) == 1


def test_the_same_name_with_another_input_already_exists(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))}, name="same")
    with pytest.raises(ClientError) as error:
        start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=2))}, name="same")
    assert error.value.response["Error"]["Code"] == "ExecutionAlreadyExists"


def test_the_same_name_after_the_end_already_exists(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    ended(sfn, start(sfn, arn, name="same"), "SUCCEEDED")
    with pytest.raises(ClientError) as error:
        start(sfn, arn, name="same")
    assert error.value.response["Error"]["Code"] == "ExecutionAlreadyExists"


def test_of_concurrent_starts_under_one_name_one_runs(
    world: World, sfn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine_api.Execution
    monkeypatch.setattr(
        engine_api, "Execution", lambda **arguments: (time.sleep(0.005), plain(**arguments))[1]
    )
    arn = machine(sfn, {"Hold": {"Type": "Wait", "Seconds": 3600, "End": True}})
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(start(sfn, arn, {"a": 1}, name="same")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert len(set(answers)) == 1
    assert len([event for event in world.events if event["detail"]["status"] == "RUNNING"]) == 1


def test_input_that_is_no_json_is_refused(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        sfn.start_execution(stateMachineArn=arn, input="{no")
    assert error.value.response["Error"]["Code"] == "InvalidExecutionInput"


def test_input_over_256_kib_is_refused(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        start(sfn, arn, "x" * 262_143)
    assert error.value.response["Error"]["Code"] == "ValidationException"


def test_starting_an_unknown_machine_is_an_error(world: World, sfn: Any) -> None:
    with pytest.raises(ClientError) as error:
        start(sfn, f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:nothing")
    assert error.value.response["Error"]["Code"] == "StateMachineDoesNotExist"


def test_a_definition_is_parsed_once(world: World, sfn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = machine(sfn, {"Work": task()}, Comment="parsed once")
    parsed: list[str] = []
    plain = AmazonStateLanguageParser.parse
    monkeypatch.setattr(AmazonStateLanguageParser, "parse", lambda text: parsed.append(text) or plain(text))
    for execution in [start(sfn, arn) for _ in range(20)]:
        ended(sfn, execution, "SUCCEEDED")
    assert len(parsed) <= 1


# ------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("states", "start_at", "where"),
    [
        ({"A": task(Next="Nowhere")}, "A", "Nowhere at /States/A/Next"),
        ({"A": task()}, "Nowhere", "Nowhere at /StartAt"),
        (
            {"A": task(Catch=[{"ErrorEquals": ["States.ALL"], "Next": "Gone"}])},
            "A",
            "Gone at /States/A/Catch[0]/Next",
        ),
        (
            {
                "A": {
                    "Type": "Choice",
                    "Choices": [{"Variable": "$.a", "IsPresent": True, "Next": "B"}],
                    "Default": "C",
                },
                "B": task(),
            },
            "A",
            "C at /States/A/Default",
        ),
        ({"A": task(), "B": task()}, "A", 'State "B" is not reachable'),
    ],
)
def test_a_transition_to_a_missing_state_is_refused(
    world: World, sfn: Any, states: Json, start_at: str, where: str
) -> None:
    with pytest.raises(ClientError) as error:
        machine(sfn, states, start_at)
    assert error.value.response["Error"]["Code"] == "InvalidDefinition"
    assert where in error.value.response["Error"]["Message"]


_INNER: Json = {"StartAt": "A", "States": {"A": {"Type": "Pass", "End": True}}}


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"Type": "Parallel", "Branches": [_INNER]}, "is a Parallel state, which the local stack does not"),
        ({"Type": "Map", "ItemProcessor": _INNER}, "is a Map state, which the local stack does not support"),
        *(
            ({"Type": "Task", "Resource": resource, "Parameters": {}}, f"calls {resource}; the local stack")
            for resource in (
                "arn:aws:states:::lambda:invoke",
                "arn:aws:states:::lambda:invoke.waitForTaskToken",
                "arn:aws:states:::aws-sdk:dynamodb:listTables",
                f"arn:aws:states:{REGION}:{ACCOUNT}:activity:by-hand",
            )
        ),
    ],
)
def test_a_state_that_the_engine_does_not_run_is_refused_by_name(
    world: World, sfn: Any, state: Json, complaint: str
) -> None:
    states = {"First": task(Next="Other"), "Other": {**state, "End": True}}
    with pytest.raises(ClientError) as error:
        machine(sfn, states)
    assert error.value.response["Error"]["Code"] == "InvalidDefinition"
    assert f"/States/Other {complaint}" in error.value.response["Error"]["Message"]
    arn = machine(sfn, {"First": task()})
    with pytest.raises(ClientError) as error:
        sfn.update_state_machine(stateMachineArn=arn, definition=definition(states))
    assert f"/States/Other {complaint}" in error.value.response["Error"]["Message"]


def test_a_definition_that_does_not_parse_is_refused(world: World, sfn: Any) -> None:
    with pytest.raises(ClientError) as error:
        sfn.create_state_machine(name="m", definition="{}", roleArn=ROLE)
    assert error.value.response["Error"]["Code"] == "InvalidDefinition"


def test_the_projects_own_definition_is_accepted(world: World, sfn: Any) -> None:
    text = (ROOT / "statemachine/grant.asl.json").read_text()
    text = re.sub(r"\$\{[^}]+\}", FUNCTION + "work", text)
    sfn.create_state_machine(name="grants", definition=text, roleArn=ROLE)


def test_creating_the_same_machine_again_is_the_same_machine(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    again = sfn.create_state_machine(
        name="m", definition=definition({"Work": task()}), roleArn=f"arn:aws:iam::{ACCOUNT}:role/another"
    )
    assert again["stateMachineArn"] == arn


def test_another_machine_of_the_same_name_already_exists(world: World, sfn: Any) -> None:
    machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        machine(sfn, {"Other": task()})
    assert error.value.response["Error"]["Code"] == "StateMachineAlreadyExists"


def test_an_update_leaves_running_executions_their_definition(world: World, sfn: Any) -> None:
    world.functions["new"] = lambda _: "new"
    arn = machine(sfn, WAIT_THEN_WORK)
    when = {"until": stamp(world.clock.now() + timedelta(hours=1))}
    old = start(sfn, arn, when, name="old")
    now = definition({"Work": task("new")})
    sfn.update_state_machine(stateMachineArn=arn, definition=now)
    ended(sfn, start(sfn, arn, when, name="new"), "SUCCEEDED")
    world.clock.advance(timedelta(hours=1))
    ended(sfn, old, "SUCCEEDED")
    assert [name for name, _, _ in world.calls] == ["new", "work"]
    assert sfn.describe_state_machine_for_execution(executionArn=old)["definition"] == definition(
        WAIT_THEN_WORK
    )
    assert sfn.describe_state_machine(stateMachineArn=arn)["definition"] == now


def test_an_update_with_a_transition_to_a_missing_state_is_refused(world: World, sfn: Any) -> None:
    arn = machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        sfn.update_state_machine(stateMachineArn=arn, definition=definition({"Work": task(Next="Gone")}))
    assert error.value.response["Error"]["Code"] == "InvalidDefinition"


# ----------------------------------------------------------------------------------------------- looking


@pytest.mark.parametrize("value", ["bare", 5, None, True, ["a"], {"a": "é"}])
def test_an_output_is_json(world: World, sfn: Any, value: Any) -> None:
    world.functions["work"] = lambda _: value
    described = ended(sfn, run(sfn, {"Work": task()}), "SUCCEEDED")
    assert json.loads(described["output"]) == value
    assert described["outputDetails"] == {"included": True}
    assert json.loads(world.events[-1]["detail"]["output"]) == value


def test_a_describe_while_it_runs_shows_the_input_and_no_end(world: World, sfn: Any) -> None:
    payload = {"until": stamp(world.clock.now() + timedelta(hours=1)), "b": 1.5}
    arn = run(sfn, WAIT_THEN_WORK, payload)
    described = sfn.describe_execution(executionArn=arn)
    assert described["status"] == "RUNNING"
    assert json.loads(described["input"]) == payload
    assert not {"stopDate", "output", "error", "cause"} & set(described)


def test_a_failed_execution_shows_its_error_and_cause(world: World, sfn: Any) -> None:
    states = {"Bad": {"Type": "Fail", "Error": "RevocationFailed", "Cause": "the rules stayed"}}
    arn = run(sfn, states)
    described = ended(sfn, arn, "FAILED")
    assert (described["error"], described["cause"]) == ("RevocationFailed", "the rules stayed")
    assert described["stopDate"] >= described["startDate"]
    assert [event["type"] for event in history(sfn, arn)] == [
        "ExecutionStarted",
        "FailStateEntered",
        "ExecutionFailed",
    ]


def test_a_machines_own_timeout_is_by_the_clock(world: World, sfn: Any) -> None:
    arn = run(sfn, {"Hold": {"Type": "Wait", "Seconds": 7200, "End": True}}, TimeoutSeconds=3600)
    wait_for(lambda: history(sfn, arn)[-1]["type"] == "WaitStateEntered", "the wait has not begun")
    world.clock.advance(timedelta(seconds=3601))
    described = ended(sfn, arn, "TIMED_OUT")
    assert described["stopDate"] > described["startDate"]
    assert history(sfn, arn)[-1]["type"] == "ExecutionTimedOut"


def test_a_machines_timeout_after_the_end_does_nothing(world: World, sfn: Any) -> None:
    arn = run(sfn, {"Work": task()}, TimeoutSeconds=3600)
    ended(sfn, arn, "SUCCEEDED")
    world.clock.advance(timedelta(hours=2))
    time.sleep(0.03)
    assert sfn.describe_execution(executionArn=arn)["status"] == "SUCCEEDED"


def test_executions_are_listed_newest_first(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    when = {"until": stamp(world.clock.now() + timedelta(hours=1))}
    for number in range(5):
        start(sfn, arn, when, name=f"e{number}")
    sfn.stop_execution(executionArn=arn.replace(":stateMachine:", ":execution:") + ":e3")
    listed = sfn.list_executions(stateMachineArn=arn)["executions"]
    assert [item["name"] for item in listed] == ["e4", "e3", "e2", "e1", "e0"]
    assert [item["status"] for item in listed] == ["RUNNING", "ABORTED", "RUNNING", "RUNNING", "RUNNING"]
    assert "stopDate" in listed[1]
    assert "stopDate" not in listed[0]
    running = sfn.list_executions(stateMachineArn=arn, statusFilter="RUNNING")["executions"]
    assert [item["name"] for item in running] == ["e4", "e2", "e1", "e0"]


def test_pages_of_a_listing_miss_no_execution_while_others_start_and_stop(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    execution = arn.replace(":stateMachine:", ":execution:") + ":"
    when = {"until": stamp(world.clock.now() + timedelta(hours=1))}
    for number in range(7):
        start(sfn, arn, when, name=f"e{number}")
    query = {"stateMachineArn": arn, "statusFilter": "RUNNING", "maxResults": 3}
    first = sfn.list_executions(**query)
    sfn.stop_execution(executionArn=execution + "e3")  # the next page's first
    start(sfn, arn, when, name="newer")
    second = sfn.list_executions(**query, nextToken=first["nextToken"])
    names = [item["name"] for page in (first, second) for item in page["executions"]]
    assert names == ["e6", "e5", "e4", "e2", "e1", "e0"]
    assert "nextToken" not in second


def test_a_last_page_has_no_token(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    for _ in range(4):
        start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    first = sfn.list_executions(stateMachineArn=arn, maxResults=2)
    second = sfn.list_executions(stateMachineArn=arn, maxResults=2, nextToken=first["nextToken"])
    assert len(second["executions"]) == 2
    assert "nextToken" not in second


@pytest.mark.parametrize("token", ["nonsense", "WyJ4Il0=", "bnVsbA==", "é"])
def test_an_invalid_token_is_refused(world: World, sfn: Any, token: str) -> None:
    arn = machine(sfn, {"Work": task()})
    with pytest.raises(ClientError) as error:
        sfn.list_executions(stateMachineArn=arn, nextToken=token)
    assert error.value.response["Error"]["Code"] == "InvalidToken"


def test_a_token_of_another_query_is_refused(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    for _ in range(2):
        start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    token = sfn.list_executions(stateMachineArn=arn, maxResults=1)["nextToken"]
    with pytest.raises(ClientError) as error:
        sfn.list_executions(stateMachineArn=arn, statusFilter="RUNNING", nextToken=token)
    assert error.value.response["Error"]["Code"] == "InvalidToken"


@pytest.mark.parametrize("wrong", [{"statusFilter": "DONE"}, {"maxResults": 1001}, {"maxResults": -1}])
def test_a_listing_refuses_invalid_parameters(world: World, sfn: Any, wrong: Json) -> None:
    arn = machine(sfn, {"Work": task()})
    unchecked = boto3.client("stepfunctions", region_name=REGION, config=Config(parameter_validation=False))
    with pytest.raises(ClientError) as error:
        unchecked.list_executions(stateMachineArn=arn, **wrong)
    assert error.value.response["Error"]["Code"] == "ValidationException"


def test_a_history_is_in_order_and_its_ids_count(world: World, sfn: Any) -> None:
    arn = run(sfn, WAIT_THEN_WORK, {"until": "2016-03-14T01:59:00Z"})
    ended(sfn, arn, "SUCCEEDED")
    events = history(sfn, arn)
    assert [event["type"] for event in events] == [
        "ExecutionStarted",
        "WaitStateEntered",
        "WaitStateExited",
        "TaskStateEntered",
        "LambdaFunctionScheduled",
        "LambdaFunctionStarted",
        "LambdaFunctionSucceeded",
        "TaskStateExited",
        "ExecutionSucceeded",
    ]
    assert [event["id"] for event in events] == list(range(1, 10))
    # After ExecutionStarted the first state's event follows "event 0", on AWS too.
    assert [event["previousEventId"] for event in events] == [0, 0, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_history_comes_in_pages_in_either_order(world: World, sfn: Any, backwards: bool) -> None:
    arn = run(sfn, WAIT_THEN_WORK, {"until": "2016-03-14T01:59:00Z"})
    ended(sfn, arn, "SUCCEEDED")
    query = {"executionArn": arn, "maxResults": 4, "reverseOrder": backwards}
    ids: list[int] = []
    pages = 0
    token: Json = {}
    while True:
        page = sfn.get_execution_history(**query, **token)
        ids += [event["id"] for event in page["events"]]
        pages += 1
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert pages == 3
    assert ids == (list(range(9, 0, -1)) if backwards else list(range(1, 10)))


def test_a_history_exists_from_the_start(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    payload = {"until": stamp(world.clock.now() + timedelta(hours=1))}
    for _ in range(30):
        assert history(sfn, start(sfn, arn, payload))[0]["type"] == "ExecutionStarted"


def test_a_history_can_leave_the_data_out(world: World, sfn: Any) -> None:
    arn = run(sfn, {"Work": task()}, {"secret": "x"})
    ended(sfn, arn, "SUCCEEDED")
    assert "secret" in str(history(sfn, arn))
    without = history(sfn, arn, includeExecutionData=False)
    assert len(without) == 7
    assert "secret" not in str(without)


# ------------------------------------------------------------------------------------------ status events


def test_every_status_change_is_announced(world: World, sfn: Any) -> None:
    when = (world.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    arn = machine(sfn, WAIT_THEN_WORK)
    execution = start(sfn, arn, {"until": stamp(when)}, name="alice")
    world.clock.advance(timedelta(hours=1))
    described = ended(sfn, execution, "SUCCEEDED")
    running, succeeded = world.events
    common = {
        "executionArn": execution,
        "stateMachineArn": arn,
        "name": "alice",
        "startDate": int(described["startDate"].timestamp() * 1000),
        "input": described["input"],
        "inputDetails": {"included": True},
        "error": None,
        "cause": None,
    }
    assert running == {
        "source": "aws.states",
        "detail-type": "Step Functions Execution Status Change",
        "resources": [execution],
        "detail": {**common, "status": "RUNNING", "stopDate": None, "output": None, "outputDetails": None},
    }
    assert succeeded["detail"] == {
        **common,
        "status": "SUCCEEDED",
        "stopDate": int(described["stopDate"].timestamp() * 1000),
        "output": described["output"],
        "outputDetails": {"included": True},
    }


def test_failed_timed_out_and_aborted_are_announced_once_each(world: World, sfn: Any) -> None:
    bad = run(sfn, {"Bad": {"Type": "Fail", "Error": "E", "Cause": "C"}}, name="bad")
    ended(sfn, bad, "FAILED")
    hold: Json = {"Hold": {"Type": "Wait", "Seconds": 7200, "End": True}}
    slow = run(sfn, hold, name="slow", TimeoutSeconds=60)
    stopped = run(sfn, hold, name="stopped")
    sfn.stop_execution(executionArn=stopped, error="Revoked", cause="by alice")
    world.clock.advance(timedelta(seconds=61))
    ended(sfn, slow, "TIMED_OUT")
    details = {
        event["detail"]["executionArn"]: event["detail"]
        for event in world.events
        if event["detail"]["status"] != "RUNNING"
    }
    assert len(world.events) == 6
    assert [
        (d["status"], d["error"], d["cause"]) for d in (details[bad], details[slow], details[stopped])
    ] == [
        ("FAILED", "E", "C"),
        ("TIMED_OUT", None, None),
        ("ABORTED", "Revoked", "by alice"),
    ]
    assert all(d["stopDate"] >= d["startDate"] and d["output"] is None for d in details.values())


# ---------------------------------------------------------------------------------------- the engine itself


def test_a_failing_execution_logs_no_syntax_tree(
    world: World, sfn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.functions["work"] = lambda _: failed(errorMessage="", errorType="PoolExhausted")
    with caplog.at_level(logging.INFO):
        ended(sfn, run(sfn, caught("States.ALL")), "SUCCEEDED")
        ended(sfn, run(sfn, {"Work": task()}, name="uncaught"), "FAILED")
        ended(sfn, run(sfn, WAIT_THEN_WORK, {"until": 1}, name="malformed"), "FAILED")
    assert [record for record in caplog.records if record.name.startswith(("moto", "local"))] == []


def test_a_thousand_waiting_executions_cost_no_threads(world: World, sfn: Any) -> None:
    """And when all of their waits end in one second, each of them works."""
    arn = machine(sfn, WAIT_THEN_WORK)
    ended(sfn, start(sfn, arn, {"until": "2016-03-14T01:59:00Z"}), "SUCCEEDED")
    world.calls.clear()
    backend = engine_api.stepfunctions_parser_backends[ACCOUNT][REGION]
    before = threading.active_count()
    when = (world.clock.now() + timedelta(hours=8)).replace(microsecond=0)
    for number in range(1000):
        backend.start_execution(arn, f"e{number}", json.dumps({"until": stamp(when), "number": number}))
    wait_for(lambda: len(world.engine._runs) == 1000, "not all are running")
    assert threading.active_count() <= before
    world.clock.advance(when - world.clock.now() - timedelta(milliseconds=300))
    wait_for(
        lambda: sum(event["detail"]["status"] == "SUCCEEDED" for event in world.events) == 1001,
        "not all have ended",
        60,
    )
    lags = sorted((at - when).total_seconds() * 1000 for _, _, at in world.calls)
    assert sorted(payload["number"] for _, payload, _ in world.calls) == list(range(1000))
    assert lags[0] >= 0
    # A figure to read, not to assert: the machine may be busy.
    sys.stdout.write(f"1,000 waits that end together: lag p50 {lags[500]:.0f} ms, p99 {lags[990]:.0f} ms\n")


def test_a_shutdown_drops_every_execution_and_waits_for_no_function(world: World, sfn: Any) -> None:
    release = threading.Event()
    running, returned = threading.Event(), threading.Event()

    def hang(_: Any) -> Any:
        running.set()
        release.wait(10)
        returned.set()

    world.functions["hang"] = hang
    arn = machine(sfn, WAIT_THEN_WORK)
    backend = engine_api.stepfunctions_parser_backends[ACCOUNT][REGION]
    when = stamp(world.clock.now() + timedelta(hours=8))
    for number in range(1000):
        backend.start_execution(arn, f"e{number}", json.dumps({"until": when}))
    run(sfn, {"Work": task("hang")}, name="hung")
    assert running.wait(10)
    world.engine.shutdown()
    assert not returned.is_set(), "it waited for the function"
    announced = len(world.events)
    world.clock.advance(timedelta(hours=9))
    release.set()
    time.sleep(0.05)
    assert len(world.events) == announced
    assert [name for name, _, _ in world.calls] == ["hang"]
    with pytest.raises(RuntimeError, match="shut down"):
        backend.start_execution(arn, "late", "{}")
    world.engine.shutdown()  # a second one does nothing


def test_a_process_ends_though_a_function_hangs() -> None:
    script = """
        import json, threading, boto3
        from moto import mock_aws
        from local.engine import install
        running = threading.Event()
        install(lambda arn, payload: (running.set(), threading.Event().wait()))
        with mock_aws():
            sfn = boto3.client("stepfunctions", region_name="eu-west-1")
            arn = "arn:aws:lambda:eu-west-1:123456789012:function:f"
            task = {"Type": "Task", "Resource": arn, "End": True}
            hold = {"Type": "Wait", "Seconds": 9999, "End": True}
            for name, state in (("task", task), ("hold", hold)):
                arn = sfn.create_state_machine(
                    name=name,
                    roleArn="arn:aws:iam::123456789012:role/r",
                    definition=json.dumps({"StartAt": "S", "States": {"S": state}}),
                )["stateMachineArn"]
                sfn.start_execution(stateMachineArn=arn)
            assert running.wait(10)
    """
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=20).returncode == 0
    )


def test_an_execution_that_the_engine_cannot_run_has_failed(
    world: World, sfn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> Any:
        raise AssertionError("no environment today")

    arn = machine(sfn, {"Work": task()})
    with monkeypatch.context() as patched:
        patched.setattr(ExecutionWorker, "_get_evaluation_environment", broken)
        described = ended(sfn, start(sfn, arn), "FAILED")
    assert (described["error"], described["cause"]) == (
        "States.Runtime",
        "AssertionError('no environment today')",
    )
    assert world.events[-1]["detail"]["status"] == "FAILED"
    assert "failed in the engine itself" in caplog.text
    ended(sfn, start(sfn, arn), "SUCCEEDED")


def test_a_job_that_fails_does_not_end_the_engine(
    world: World, sfn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.engine.post(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    ended(sfn, run(sfn, {"Work": task()}), "SUCCEEDED")
    assert "ZeroDivisionError" in caplog.text


def test_a_calm_collector_exempts_present_objects_and_collects_seldom() -> None:
    script = """
        import gc
        from local.engine import calm_collector
        gc.disable()
        calm_collector()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 100_000
        collections = []
        gc.callbacks.append(lambda phase, _: collections.append(phase))
        objects = [[] for _ in range(15_000)]  # Python's own threshold is below 3,000
        assert not collections, collections
    """
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=60).returncode == 0
    )


def test_installing_again_replaces_the_engine(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    first = world.clock
    second = World()
    first.advance(timedelta(hours=2))
    ended(sfn, start(sfn, arn, {"until": "2016-03-14T01:59:00Z"}), "SUCCEEDED")
    assert world.calls == []
    assert len(second.calls) == 1
    second.engine.shutdown()


def test_a_reset_of_moto_drops_its_executions(world: World, sfn: Any) -> None:
    arn = machine(sfn, WAIT_THEN_WORK)
    start(sfn, arn, {"until": stamp(world.clock.now() + timedelta(hours=1))})
    elsewhere = boto3.client("stepfunctions", region_name="us-east-1")
    execution = start(
        elsewhere,
        machine(elsewhere, WAIT_THEN_WORK),
        {"until": stamp(world.clock.now() + timedelta(hours=1))},
    )
    engine_api.stepfunctions_parser_backends[ACCOUNT][REGION].reset()
    world.clock.advance(timedelta(hours=2))
    ended(elsewhere, execution, "SUCCEEDED")
    assert len(world.calls) == 1


def test_a_moto_server_runs_the_same_engine() -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server_world = World()
    server.start()
    try:
        _, port = server.get_host_and_port()
        sfn = boto3.client("stepfunctions", region_name=REGION, endpoint_url=f"http://127.0.0.1:{port}")
        arn = machine(sfn, WAIT_THEN_WORK, name="server")
        when = {"until": stamp(server_world.clock.now() + timedelta(hours=8))}
        stopped, waiting = start(sfn, arn, when, name="one"), start(sfn, arn, when, name="two")
        sfn.stop_execution(executionArn=stopped, cause="by hand")
        assert sfn.describe_execution(executionArn=stopped)["cause"] == "by hand"
        server_world.clock.advance(timedelta(hours=8))
        ended(sfn, waiting, "SUCCEEDED")
        with pytest.raises(ClientError) as error:
            start(sfn, arn, when, name="one")
        assert error.value.response["Error"]["Code"] == "ExecutionAlreadyExists"
    finally:
        server.stop()
        server_world.engine.shutdown()


# --------------------------------------------------------------------------- is each mend still needed?


@pytest.fixture(scope="module")
def plain_moto() -> dict[str, bool]:
    """Which faults moto has as it is installed, asked in a process where nothing is mended."""
    return plain_moto_faults("stepfunctions")


@pytest.mark.parametrize(
    "fault",
    [
        "a wait ends early",
        "an offset is refused",
        "a number for a timestamp is a TypeError",
        "an execution takes two threads",
        "a stop's cause is dropped",
        "a stop waits for the function",
        "a page token fails once an execution has ended",
        "a bare string is not quoted",
        "a history is one page",
        "an error without a type is called Exception",
        "States.ALL matches every error",
        "an execution without a name is called None",
        "any name is accepted",
        "a running execution is described by the updated definition",
        "TIMED_OUT has no stopDate",
        "a second machine of the same name is accepted",
        "a dangling Next is accepted",
        "no events are emitted",
        "a definition is parsed each time",
        "a retry's pause cannot be interrupted",
        "a syntax tree is logged",
    ],
)
def test_plain_moto_still_has_the_fault(plain_moto: dict[str, bool], fault: str) -> None:
    """When this fails, moto has mended it itself: see whether our mend can go (local/engine*.py)."""
    assert plain_moto[fault] is True


def test_every_patched_name_exists_in_moto() -> None:
    """`setattr` of a name that a new moto has renamed would mend nothing: so each must exist before."""
    script = """
        import local.engine, local.engine_api
        wrong = []
        for module in (local.engine, local.engine_api):
            real = setattr
            def checked(owner, name, value):
                if not hasattr(owner, name):
                    wrong.append(f"{owner!r} has no {name}")
                real(owner, name, value)
            module.setattr = checked
        local.engine.install(lambda arn, payload: None)
        assert not wrong, wrong
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr[-2000:]
