"""What happens on the local stack by the clock, which a test moves. Functions keep the real time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import requests

from local.stack import Stack, running
from tests.local.processes import wait_for


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
    wait_for(lambda: states.describe_execution(**execution)["status"] == "SUCCEEDED", "it goes on")
    found = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
    assert not [rule for rule in found if rule.get("CidrIpv4") == "127.0.0.1/32"]


def test_the_drift_guard_runs_by_its_schedule(stack: Stack) -> None:
    before = stack.runtime.counts["knock-guard"]
    for day in (1, 2):
        stack.clock.advance(timedelta(days=1, seconds=1))
        wait_for(
            lambda day=day: stack.runtime.counts["knock-guard"] == before + day,
            f"it did not run on day {day}",
        )


def test_an_event_that_fails_for_good_is_a_dead_letter(stack: Stack) -> None:
    before = stack.runtime.counts["knock-stopped"]
    stack.client("lambda").invoke(FunctionName="knock-stopped", InvocationType="Event", Payload=b'{"x": 1}')
    for attempt, minutes in ((1, 1), (2, 2)):
        wait_for(lambda attempt=attempt: stack.runtime.counts["knock-stopped"] == before + attempt)
        time.sleep(0.3)  # until it has failed, too, and waits for its next attempt
        stack.clock.advance(timedelta(minutes=minutes, seconds=1))
    sqs = stack.client("sqs")
    queue = f"{stack.summary.aws_endpoint_url}/{stack.place.account}/knock-dead-letters"
    (message,) = wait_for(lambda: sqs.receive_message(QueueUrl=queue).get("Messages"), "no dead letter")
    record = json.loads(message["Body"])
    assert record["requestPayload"] == {"x": 1}
    assert record["requestContext"]["condition"] == "RetriesExhausted"
