"""What happens on the local stack by the clock, which a test moves. Functions keep the real time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests

from local.stack import Stack, running
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with (tmp_path_factory.mktemp("stack") / "log").open("wb") as log, running(output=log) as stack:
        yield stack


def test_moving_the_clock_ends_a_grant_of_hours(stack: Stack) -> None:
    headers = {"x-api-key": stack.summary.keys["alice"]}
    answer = requests.post(
        f"{stack.summary.api_url}/knock", headers=headers, json={"duration": "8h"}, timeout=35
    )
    assert answer.status_code == 201, answer.text
    states, execution = stack.client("stepfunctions"), {"executionArn": answer.json()["execution_arn"]}
    assert states.describe_execution(**execution)["status"] == "RUNNING"
    stack.clock.advance(timedelta(hours=8, seconds=1))
    wait_for(
        lambda: states.describe_execution(**execution)["status"] == "SUCCEEDED", "the execution has not ended"
    )
    rules = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
    assert not [rule for rule in rules if rule.get("CidrIpv4") == "127.0.0.1/32"]


def test_the_drift_guard_runs_by_its_schedule(stack: Stack) -> None:
    before = stack.runtime.counts["knock-guard"]
    for hour in (1, 2):
        stack.clock.advance(timedelta(hours=1, seconds=1))
        wait_for(
            lambda hour=hour: stack.runtime.counts["knock-guard"] == before + hour,
            f"it did not run in hour {hour}",
        )


def test_an_event_that_is_refused_until_it_is_too_old_is_a_dead_letter(stack: Stack) -> None:
    lambda_ = stack.client("lambda")
    lambda_.put_function_concurrency(FunctionName="knock-guard", ReservedConcurrentExecutions=0)
    lambda_.invoke(FunctionName="knock-guard", InvocationType="Event", Payload=b'{"x": 1}')
    sqs = stack.client("sqs")
    queue = f"{stack.summary.aws_endpoint_url}/{stack.place.account}/knock-dead-letters"

    def dead() -> list[dict[str, Any]]:
        stack.clock.advance(timedelta(minutes=10))
        messages: list[dict[str, Any]] = sqs.receive_message(QueueUrl=queue).get("Messages", [])
        return [
            record
            for record in (json.loads(message["Body"]) for message in messages)
            if record["requestPayload"] == {"x": 1}
        ]

    (record,) = wait_for(dead, "no dead letter")
    lambda_.delete_function_concurrency(FunctionName="knock-guard")
    assert record["requestContext"]["condition"] == "EventAgeExceeded"
