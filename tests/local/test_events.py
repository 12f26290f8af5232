"""The embedded EventBridge: deliveries to targets, retries, and the dead-letter queue.

Facts are AWS's, from the EventBridge user guide (event delivery, dead-letter queues, event patterns).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core.base_backend import BackendDict
from moto.server import ThreadedMotoServer

from local import engine, events
from local.clock import Clock
from local.invocation import InvocationError, InvocationResult, Workers
from tests.conftest import ROOT
from tests.local.plain_moto import faults as plain_moto_faults
from tests.waiting import wait_for

REGION, ACCOUNT = "eu-west-1", "123456789012"
FUNCTION = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:stopped"
MACHINE = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:closings"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/stopped"

Json = dict[str, Any]


class World:
    """EventBridge, and a queue of Lambda's that refuses events when a test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.received: list[tuple[str, Any, datetime]] = []
        self.names: list[str] = []
        self.refusals: list[InvocationError] = []
        self.attempts = 0
        self.deliveries = events.install(self.invoke_later, self.start_execution, clock=self.clock)
        self.events = boto3.client("events", region_name=REGION)
        self.sqs = boto3.client("sqs", region_name=REGION)
        self.queue = self.sqs.create_queue(QueueName="dead-letters")["QueueUrl"]
        self.queue_arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dead-letters"

    def invoke_later(self, arn: str, payload: bytes) -> None:
        self.attempts += 1
        if self.refusals:
            raise self.refusals.pop(0) if len(self.refusals) > 1 else self.refusals[0]
        self.received.append((arn, json.loads(payload), self.clock.now()))

    def start_execution(self, arn: str, name: str, payload: bytes) -> None:
        self.names.append(name)
        self.invoke_later(arn, payload)

    def rule(
        self, pattern: Json | None = None, name: str = "rule", state: str = "ENABLED", **target: Any
    ) -> None:
        event_pattern = json.dumps(pattern if pattern is not None else {"source": ["test"]})
        self.events.put_rule(Name=name, State=state, EventPattern=event_pattern)
        self.events.put_targets(Rule=name, Targets=[{"Id": "it", "Arn": FUNCTION, **target}])

    def put(self, detail: Json | None = None, source: str = "test", **more: Any) -> str:
        entry = {"Source": source, "DetailType": "Test", "Detail": json.dumps(detail or {"a": 1}), **more}
        answer = self.events.put_events(Entries=[entry])
        assert answer["FailedEntryCount"] == 0
        event_id: str = answer["Entries"][0]["EventId"]
        return event_id

    def settled(self) -> None:
        """Wait until every event put so far was attempted."""
        finished = threading.Event()
        wait_for(lambda: self.deliveries._workers._work.empty(), "work is left")
        self.deliveries._workers.submit(finished.set)
        assert finished.wait(5)
        time.sleep(0.02)

    def dead(self) -> list[Json]:
        answer = self.sqs.receive_message(
            QueueUrl=self.queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=0
        )
        messages: list[Json] = answer.get("Messages", [])
        return messages


@pytest.fixture
def world() -> Iterator[World]:
    with mock_aws():
        new_world = World()
        yield new_world
        new_world.deliveries.shutdown()
        new_world.clock.close()


# ---------------------------------------------------------------------------------------------- delivering


def test_an_event_that_matches_reaches_the_function_as_eventbridge_sends_it(world: World) -> None:
    world.rule({"source": ["test"], "detail": {"status": ["ABORTED", "FAILED"]}})
    before = world.clock.now().replace(microsecond=0)  # the event's time is cut to seconds
    event_id = world.put({"status": "FAILED", "name": "alice"}, Resources=["arn:aws:x:::y"])
    (arn, payload, delivered_at) = wait_for(lambda: world.received, "the event is not delivered")[0]
    assert arn == FUNCTION
    assert before <= datetime.fromisoformat(payload.pop("time")) <= delivered_at
    assert payload == {
        "version": "0",
        "id": event_id,
        "detail-type": "Test",
        "source": "test",
        "account": ACCOUNT,
        "region": REGION,
        "resources": ["arn:aws:x:::y"],
        "detail": {"status": "FAILED", "name": "alice"},
    }


def test_an_event_that_does_not_match_is_not_delivered(world: World) -> None:
    world.rule({"source": ["test"], "detail": {"status": ["ABORTED"]}})
    world.put({"status": "RUNNING"})
    world.put({"status": "ABORTED"}, source="other")
    world.settled()
    assert world.attempts == 0


def test_put_events_does_not_wait_for_the_function(world: World) -> None:
    release, returned = threading.Event(), threading.Event()

    def hang(_arn: str, _payload: bytes) -> None:
        release.wait(60)
        returned.set()

    world.deliveries = events.install(hang, clock=world.clock)
    world.rule()
    world.put()
    assert not returned.is_set()
    release.set()
    assert returned.wait(5)


def test_every_target_of_every_rule_gets_the_event(world: World) -> None:
    world.rule(name="one")
    world.rule(name="two")
    another = FUNCTION.replace("stopped", "another")
    world.events.put_targets(Rule="two", Targets=[{"Id": "more", "Arn": another}])
    world.put()
    wait_for(lambda: len(world.received) == 3, "not all three are delivered")
    assert sorted(arn for arn, _, _ in world.received) == sorted([FUNCTION, FUNCTION, another])


def test_a_queue_beside_a_function_gets_the_event_too(world: World) -> None:
    world.rule(name="rule")
    world.events.put_targets(Rule="rule", Targets=[{"Id": "queue", "Arn": world.queue_arn}])
    world.put({"to": "both"})
    wait_for(lambda: world.received, "the function has not received it")
    (message,) = wait_for(world.dead, "the queue has not received it")
    assert json.loads(message["Body"])["detail"] == {"to": "both"}


def test_a_target_that_cannot_be_reached_does_not_keep_the_event_from_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.rule(name="a")
    world.events.put_rule(Name="broken", EventPattern='{"source": ["test"]}')
    world.events.put_targets(
        Rule="broken", Targets=[{"Id": "x", "Arn": f"arn:aws:sns:{REGION}:{ACCOUNT}:topic"}]
    )
    world.rule(name="c")
    with caplog.at_level(logging.ERROR):
        world.deliveries.publish(
            ACCOUNT, REGION, {"source": "test", "detail-type": "T", "resources": [], "detail": {}}
        )
        wait_for(lambda: len(world.received) == 2, "not both functions have received it")
        world.settled()
    assert "rule broken could not send an event" in caplog.text


def test_a_disabled_rule_sends_nothing(world: World) -> None:
    world.rule(state="DISABLED")
    world.put()
    world.settled()
    assert world.attempts == 0
    world.events.enable_rule(Name="rule")
    world.put()
    wait_for(lambda: world.received, "it is not delivered though the rule is enabled")


def test_a_rule_with_a_schedule_only_gets_no_events(world: World) -> None:
    world.events.put_rule(Name="daily", ScheduleExpression="rate(1 day)")
    world.events.put_targets(Rule="daily", Targets=[{"Id": "it", "Arn": FUNCTION}])
    world.put()
    world.settled()
    assert world.attempts == 0


def test_a_target_can_ask_for_an_input_of_its_own(world: World) -> None:
    world.rule(Input='{"constant": true}')
    world.put({"status": "FAILED", "who": "alice"})
    assert wait_for(lambda: world.received, "it is not delivered")[0][1] == {"constant": True}


@pytest.mark.parametrize(
    ("name", "value"),
    [("InputPath", "$.detail"), ("InputTransformer", {"InputTemplate": '"fixed"'})],
)
@pytest.mark.parametrize("target", [{"Arn": FUNCTION}, {"Arn": MACHINE, "RoleArn": ROLE}])
def test_an_input_made_of_the_event_is_refused_by_name(
    world: World, target: Json, name: str, value: Any
) -> None:
    with pytest.raises(ClientError, match=f"{name}, which the local stack does not support") as error:
        world.rule(**target, **{name: value})
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert world.events.list_targets_by_rule(Rule="rule")["Targets"] == []


# ------------------------------------------------------------------------------------------- state machines


def test_a_state_machine_is_started_with_the_event_as_it_is(world: World) -> None:
    world.rule(Arn=MACHINE, RoleArn=ROLE)
    event_id = world.put({"status": "ABORTED"})
    (arn, payload, _) = wait_for(lambda: world.received, "it is not started")[0]
    assert arn == MACHINE
    assert (payload["id"], payload["source"], payload["detail"]) == (event_id, "test", {"status": "ABORTED"})
    (name,) = world.names
    assert name.startswith(event_id)
    assert len(name) <= 80


def test_a_state_machine_needs_a_role_to_be_started_under(world: World) -> None:
    world.events.put_rule(Name="rule", EventPattern='{"source": ["test"]}')
    with pytest.raises(ClientError, match="RoleArn is required for target"):
        world.events.put_targets(Rule="rule", Targets=[{"Id": "it", "Arn": MACHINE}])


def test_a_rule_may_name_functions_state_machines_and_queues_together(world: World) -> None:
    """Mutation: only the first target gets the event."""
    world.rule()
    targets = [
        {"Id": "machine", "Arn": MACHINE, "RoleArn": ROLE, "Input": '{"a": 1}'},
        {"Id": "other", "Arn": f"{MACHINE}-2", "RoleArn": ROLE, "Input": '"fixed"'},
        {"Id": "queue", "Arn": world.queue_arn},
    ]
    world.events.put_targets(Rule="rule", Targets=targets)
    world.put({"a": 1})
    wait_for(lambda: len(world.received) == 3, "not all three are delivered")
    payloads = {arn: payload for arn, payload, _ in world.received}
    assert set(payloads) == {FUNCTION, MACHINE, f"{MACHINE}-2"}
    assert (payloads[MACHINE], payloads[f"{MACHINE}-2"]) == ({"a": 1}, "fixed")
    wait_for(world.dead, "the queue has not received it")


def test_every_attempt_of_an_event_starts_the_same_execution(world: World) -> None:
    """So a start whose answer was lost is not made twice. Mutation: a new name at each attempt."""
    world.refusals = [InvocationError("ServiceUnavailable", "no answer")]
    world.rule(Arn=MACHINE, RoleArn=ROLE)
    world.put()
    wait_for(lambda: world.attempts == 1, "the first attempt was not made")
    world.settled()
    world.refusals = []
    world.clock.advance(timedelta(seconds=1))
    wait_for(lambda: world.received, "it is not delivered")
    assert len(world.names) == 2
    assert len(set(world.names)) == 1


def test_an_event_for_an_unknown_state_machine_is_a_dead_letter_at_once(world: World) -> None:
    world.refusals = [InvocationError("StateMachineDoesNotExist", "gone")]
    world.rule(Arn=MACHINE, RoleArn=ROLE, DeadLetterConfig={"Arn": world.queue_arn})
    world.put()
    (message,) = wait_for(world.dead, "the event is not in the queue")
    assert message["MessageAttributes"]["ERROR_CODE"]["StringValue"] == "NO_RESOURCE"
    assert message["MessageAttributes"]["TARGET_ARN"]["StringValue"] == MACHINE


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("pattern", "detail", "matches"),
    [
        ({"a": [1]}, {"a": 1}, True),
        ({"a": [1]}, {"a": True}, False),
        ({"a": [True]}, {"a": 1}, False),
        ({"a": [True]}, {"a": True}, True),
        ({"a": [None]}, {"a": None}, True),
        ({"a": [None]}, {}, False),
        ({"a": ["x", "y"]}, {"a": "y"}, True),
        ({"a": ["x"]}, {"a": "X"}, False),
        ({"a": ["x"]}, {"a": ["w", "x"]}, True),
        ({"a": {"b": ["x"]}}, {"a": {"b": "x"}}, True),
        ({"a": {"b": ["x"]}}, {"a": [{"b": "w"}, {"b": "x"}]}, True),
        ({"a": {"b": ["x"], "c": [1]}}, {"a": [{"b": "x", "c": 2}, {"b": "w", "c": 1}]}, False),
        ({"a": {"b": ["x"], "c": [1]}}, {"a": [{"b": "x", "c": 1}]}, True),
        ({"a": {"b": ["x"]}}, {"a": "x"}, False),
        ({"a": [{"exists": False}]}, {"b": 1}, True),
        ({"a": [{"exists": True}]}, {"b": 1}, False),
        ({"a": {"b": [{"exists": False}]}}, {"b": 1}, True),
        ({"a": [{"prefix": "al"}]}, {"a": "alice"}, True),
        ({"a": [{"anything-but": ["bob"]}]}, {"a": "alice"}, True),
        ({"a": [{"numeric": [">", 0, "<=", 5]}]}, {"a": 5}, True),
    ],
)
def test_a_pattern_matches_as_eventbridges_do(
    world: World, pattern: Json, detail: Json, matches: bool
) -> None:
    world.rule({"detail": pattern})
    world.rule({"source": ["test"]}, name="all", Input='"all"')
    world.put(detail or {"z": 0})
    wait_for(
        lambda: any(payload == "all" for _, payload, _ in world.received),
        "the rule for all events has not received it",
    )
    world.settled()
    assert any(payload != "all" for _, payload, _ in world.received) is matches


@pytest.mark.parametrize("detail", [{}, {"b": [1]}])
def test_a_pattern_with_alternatives_is_refused_by_name(world: World, detail: Json) -> None:
    with pytest.raises(ClientError, match=r"the local stack does not support \$or") as error:
        world.rule({"source": ["test"], "detail": {"$or": [{"a": [1]}, {"a": [2]}], **detail}})
    assert error.value.response["Error"]["Code"] == "InvalidEventPatternException"
    assert world.events.list_rules()["Rules"] == []


# ---------------------------------------------------------------------------------- refusals and retries


def refusal(code: str = "ServiceException") -> InvocationError:
    return InvocationError(code, f"{code}, refused by Lambda")


def test_a_refused_event_is_retried_by_the_clock(world: World) -> None:
    world.refusals = [refusal(), refusal(), refusal()]
    world.rule()
    world.put()
    wait_for(lambda: world.attempts == 1, "the first attempt was not made")
    world.settled()
    assert world.attempts == 1
    world.clock.advance(timedelta(seconds=1))
    wait_for(lambda: world.attempts == 2, "the second attempt, up to 1 s later, was not made")
    world.refusals = []
    world.settled()
    world.clock.advance(timedelta(seconds=2))
    wait_for(lambda: world.received, "it is not delivered, up to 2 s later")


def test_an_event_refused_at_every_attempt_is_a_dead_letter(world: World) -> None:
    world.refusals = [refusal()]
    retries = {"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 3600}
    world.rule(RetryPolicy=retries, DeadLetterConfig={"Arn": world.queue_arn})
    event_id = world.put({"name": "alice"})
    for attempt in (1, 2, 3):
        wait_for(lambda attempt=attempt: world.attempts == attempt, f"attempt {attempt} was not made")
        world.settled()
        world.clock.advance(timedelta(seconds=5))
    (message,) = wait_for(world.dead, "the event is not in the queue")
    body = json.loads(message["Body"])
    assert (body["id"], body["detail"]) == (event_id, {"name": "alice"})
    assert "ingestion-time" not in body
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert attributes == {
        "RULE_ARN": f"arn:aws:events:{REGION}:{ACCOUNT}:rule/rule",
        "TARGET_ARN": FUNCTION,
        "ERROR_CODE": "ERROR_FROM_TARGET",
        "ERROR_MESSAGE": "ServiceException, refused by Lambda",
        "EXHAUSTED_RETRY_CONDITION": "MaximumRetryAttempts",
        "RETRY_ATTEMPTS": "2",
    }
    world.clock.advance(timedelta(days=1))
    world.settled()
    assert world.attempts == 3


def test_an_event_that_grows_too_old_is_a_dead_letter(world: World) -> None:
    world.refusals = [refusal()]
    world.rule(RetryPolicy={"MaximumEventAgeInSeconds": 60}, DeadLetterConfig={"Arn": world.queue_arn})
    world.put()
    for _ in range(20):
        world.settled()
        world.clock.advance(timedelta(seconds=10))
        if messages := world.dead():
            break
    attributes = messages[0]["MessageAttributes"]
    assert attributes["EXHAUSTED_RETRY_CONDITION"]["StringValue"] == "MaximumEventAgeInSeconds"
    assert 3 <= int(attributes["RETRY_ATTEMPTS"]["StringValue"]) <= 8


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ResourceNotFoundException", "NO_RESOURCE"),
        ("AccessDeniedException", "NO_PERMISSIONS"),
        ("InvalidParameterValueException", "INVALID_PARAMETER"),
    ],
)
def test_an_event_refused_with_a_permanent_error_is_a_dead_letter_at_once(
    world: World, code: str, reason: str
) -> None:
    """ "EventBridge sends these events directly to the target DLQ"."""
    world.refusals = [refusal(code)]
    world.rule(DeadLetterConfig={"Arn": world.queue_arn})
    world.put()
    (message,) = wait_for(world.dead, "the event is not in the queue")
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert (attributes["ERROR_CODE"], attributes["RETRY_ATTEMPTS"]) == (reason, "0")
    assert "EXHAUSTED_RETRY_CONDITION" not in attributes
    assert world.attempts == 1


def test_without_a_queue_a_lost_event_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.refusals = [refusal("ResourceNotFoundException")]
    world.rule()
    with caplog.at_level(logging.ERROR):
        world.put()
        wait_for(lambda: "EventBridge drops an event" in caplog.text, "it is not logged")
    assert "NO_RESOURCE" in caplog.text


def test_retries_last_for_a_day_by_default(world: World) -> None:
    world.refusals = [refusal()]
    world.rule(DeadLetterConfig={"Arn": world.queue_arn})
    world.put()
    world.settled()
    for _ in range(23):
        world.clock.advance(timedelta(minutes=60))
        world.settled()
    assert world.dead() == []
    world.refusals = []
    world.clock.advance(timedelta(minutes=20))
    wait_for(lambda: world.received, "it is not delivered after 23 hours")


# ------------------------------------------------------------------------------------------ losing, ending


def test_events_can_be_lost_on_purpose(world: World) -> None:
    world.rule()
    world.deliveries.drop(lambda event: event["detail"].get("status") == "ABORTED")
    world.put({"status": "ABORTED"})
    world.put({"status": "FAILED"})
    wait_for(lambda: world.received, "the other event is not delivered")
    world.settled()
    assert [payload["detail"]["status"] for _, payload, _ in world.received] == ["FAILED"]
    world.deliveries.drop(lambda _: False)
    world.put({"status": "ABORTED"})
    wait_for(lambda: len(world.received) == 2, "the event is lost still")


def test_after_a_shutdown_nothing_is_delivered(world: World) -> None:
    world.refusals = [refusal()]
    world.rule()
    world.put()
    wait_for(lambda: world.attempts == 1, "the first attempt was not made")
    world.settled()
    world.deliveries.shutdown()
    world.deliveries.shutdown()
    world.put()
    world.clock.advance(timedelta(days=1))
    time.sleep(0.05)
    assert world.attempts == 1


def test_installing_again_replaces_the_deliveries(world: World) -> None:
    world.rule()
    second = World()
    second.put()
    wait_for(lambda: second.received, "the new deliveries deliver nothing")
    assert world.received == []
    second.deliveries.shutdown()


def test_work_that_fails_is_logged_and_its_thread_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    finished = threading.Event()
    workers = Workers("one", 1)
    with caplog.at_level(logging.ERROR):
        workers.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        workers.submit(finished.set)
        assert finished.wait(5)
    assert "work on a one thread failed" in caplog.text
    workers.close()


def test_workers_are_reused_and_limited() -> None:
    workers = Workers("few", 3)
    names: list[str] = []
    for _ in range(5):
        finished = threading.Event()
        workers.submit(
            lambda finished=finished: (names.append(threading.current_thread().name), finished.set())
        )
        assert finished.wait(5)
        time.sleep(0.01)
    assert workers._threads == 1
    gate, running = threading.Event(), threading.Semaphore(0)
    for _ in range(10):
        workers.submit(lambda: (running.release(), gate.wait(5)))
    for _ in range(3):
        assert running.acquire(timeout=5)
    assert not running.acquire(timeout=0.05)
    assert workers._threads == 3
    workers.close()  # the seven that wait are dropped
    gate.set()
    assert not running.acquire(timeout=0.05)


# ------------------------------------------------------------------------------- with the engine, and served


def test_a_stopped_execution_reaches_the_function_of_its_rule(world: World) -> None:
    """The rule of template.yaml: ABORTED, FAILED and TIMED_OUT of one state machine, and no other."""
    sfn = boto3.client("stepfunctions", region_name=REGION)
    runs = engine.install(
        lambda _arn, _payload: InvocationResult(b"{}"), clock=world.clock, publish=world.deliveries.publish
    )
    hold = '{"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 3600, "End": true}}}'
    named_machine, other_machine = (
        sfn.create_state_machine(name=name, definition=hold, roleArn=f"arn:aws:iam::{ACCOUNT}:role/r")[
            "stateMachineArn"
        ]
        for name in ("ours", "other")
    )
    world.rule(
        {
            "source": ["aws.states"],
            "detail-type": ["Step Functions Execution Status Change"],
            "detail": {"status": ["ABORTED", "FAILED", "TIMED_OUT"], "stateMachineArn": [named_machine]},
        }
    )
    arns = [
        sfn.start_execution(stateMachineArn=machine, input='{"a":1}')["executionArn"]
        for machine in (other_machine, named_machine)
    ]
    for arn in arns:
        sfn.stop_execution(executionArn=arn, error="Revoked", cause="by hand")
    (_, event, _) = wait_for(lambda: world.received, "the event is not delivered")[0]
    world.settled()
    runs.shutdown()
    assert len(world.received) == 1
    assert (event["source"], event["resources"]) == ("aws.states", [arns[1]])
    assert (event["account"], event["region"], event["version"]) == (ACCOUNT, REGION, "0")
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    assert event["detail"]["input"] == '{"a":1}'
    assert (event["detail"]["error"], event["detail"]["cause"]) == ("Revoked", "by hand")


def test_a_stopped_execution_starts_one_of_another_machine(world: World) -> None:
    """On the embedded engine, the default: it is in this process."""
    sfn = boto3.client("stepfunctions", region_name=REGION)
    events.install(world.invoke_later, clock=world.clock)  # with its own way to start executions
    deliveries = events._deliveries
    runs = engine.install(
        lambda _arn, _payload: InvocationResult(b"{}"), clock=world.clock, publish=deliveries.publish
    )
    hold = '{"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 3600, "End": true}}}'
    succeed = '{"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}}'
    grants, closings = (
        sfn.create_state_machine(name=name, definition=definition, roleArn=ROLE)["stateMachineArn"]
        for name, definition in (("grants", hold), ("closings", succeed))
    )
    pattern = {"detail": {"status": ["ABORTED"], "stateMachineArn": [grants]}}
    dead = {"DeadLetterConfig": {"Arn": world.queue_arn}, "RoleArn": ROLE}
    world.rule(pattern, Arn=closings, **dead)
    world.rule(pattern, name="two", Arn=f"{closings}-gone", **dead)
    arn = sfn.start_execution(stateMachineArn=grants, name="g", input='{"a":1}')["executionArn"]
    sfn.stop_execution(executionArn=arn)
    (closing,) = wait_for(
        lambda: sfn.list_executions(stateMachineArn=closings)["executions"], "no closing has started"
    )
    described = sfn.describe_execution(executionArn=closing["executionArn"])
    event = json.loads(described["input"])
    assert (event["detail"]["name"], event["detail"]["status"]) == ("g", "ABORTED")
    assert (event["detail"]["input"], event["detail"]["inputDetails"]) == ('{"a":1}', {"included": True})
    (message,) = wait_for(world.dead, "the event for the unknown machine is not in the queue")
    assert message["MessageAttributes"]["ERROR_CODE"]["StringValue"] == "NO_RESOURCE"
    again = (closings, closing["name"], json.dumps(event).encode())
    events._start_here(*again)  # a second start under one name is no error
    assert len(sfn.list_executions(stateMachineArn=closings)["executions"]) == 1
    runs.shutdown()
    deliveries.shutdown()


def test_an_event_leaves_out_an_input_that_is_too_large(world: World) -> None:
    """https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html: 248 KiB, escaped."""
    sfn = boto3.client("stepfunctions", region_name=REGION)
    runs = engine.install(
        lambda _arn, _payload: InvocationResult(b"{}"), clock=world.clock, publish=world.deliveries.publish
    )
    hold = '{"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 3600, "End": true}}}'
    machine = sfn.create_state_machine(name="grants", definition=hold, roleArn=ROLE)["stateMachineArn"]
    world.rule({"detail": {"status": ["ABORTED"]}})
    for name, size in (("small", 247 * 1024), ("large", 249 * 1024)):
        value = json.dumps({"reason": "x" * size})
        arn = sfn.start_execution(stateMachineArn=machine, name=name, input=value)["executionArn"]
        sfn.stop_execution(executionArn=arn)
    wait_for(lambda: len(world.received) == 2, "not both are delivered")
    runs.shutdown()
    details = {payload["detail"]["name"]: payload["detail"] for _, payload, _ in world.received}
    assert details["small"]["inputDetails"] == {"included": True}
    assert len(details["small"]["input"]) > 247 * 1024
    assert (details["large"]["input"], details["large"]["inputDetails"]) == (None, {"included": False})


def test_a_moto_server_delivers_too() -> None:
    BackendDict.reset()
    received: list[Any] = []
    deliveries = events.install(lambda _arn, payload: received.append(json.loads(payload)))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        client = boto3.client("events", region_name=REGION, endpoint_url=f"http://127.0.0.1:{port}")
        client.put_rule(Name="r", EventPattern='{"source": ["test"]}')
        client.put_targets(Rule="r", Targets=[{"Id": "1", "Arn": FUNCTION}])
        client.put_events(Entries=[{"Source": "test", "DetailType": "T", "Detail": '{"by": "hand"}'}])
        wait_for(lambda: received, "it is not delivered")
        assert received[0]["detail"] == {"by": "hand"}
    finally:
        server.stop()
        deliveries.shutdown()
        BackendDict.reset()


# ------------------------------------------------------------------------------ is each mend still needed?


@pytest.fixture(scope="module")
def plain_moto() -> dict[str, bool]:
    return plain_moto_faults("eventbridge")


@pytest.mark.parametrize(
    "fault",
    [
        "a Lambda target raises",
        "a state machine needs no role",
        "a state machine target raises",
        "a disabled rule sends",
        "a schedule gets every event",
        "arrays of objects do not match",
        "true is 1",
    ],
)
def test_plain_moto_still_has_the_fault(plain_moto: dict[str, bool], fault: str) -> None:
    """When this fails, moto has mended it itself: see whether our mend can go (local/events.py)."""
    assert plain_moto[fault] is True


def test_every_patched_name_exists_in_moto() -> None:
    """`setattr` of a name that a new moto has renamed would mend nothing: so each must exist before."""
    script = """
        import local.events
        wrong = []
        real = setattr
        def checked(owner, name, value):
            if not hasattr(owner, name):
                wrong.append(f"{owner!r} has no {name}")
            real(owner, name, value)
        local.events.setattr = checked
        local.events.install(lambda arn, payload: None)
        assert not wrong, wrong
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr[-2000:]
