"""Notifications of a grant's life, from the functions' log lines to EventBridge and a topic."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import jsonschema
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

import notify
from grants import wiring
from grants.errors import StoreUnavailable
from grants.trail import Trail
from tests.conftest import ROOT
from tests.harness import STACK, Context, Knock, running
from tests.template.transform import transformed

PAGE = (ROOT / "docs" / "notifications.md").read_text()
SCHEMA = json.loads((ROOT / "docs" / "notifications.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FILTERS = {
    resource["Properties"]["LogGroupName"]["Ref"]: resource["Properties"]["FilterPattern"]
    for resource in transformed()["Resources"].values()
    if resource["Type"] == "AWS::Logs::SubscriptionFilter"
}


def lets_through(pattern: str, line: Any) -> bool:
    """Judge a line by a filter pattern of the two forms the template uses.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
    """
    tests = re.findall(r'\$\.(\w+) (?:= "(\w+)"|(IS TRUE))', pattern)
    assert len(tests) == pattern.count("$.") > 0, pattern
    return all(line.get(name) == (text if text else True) for name, text, _ in tests)


@dataclass
class Outbox:
    """What the functions logged, and what EventBridge and the topic received."""

    knock: Knock
    lines: list[tuple[str, str, float]] = field(default_factory=list)
    entries: list[dict[str, str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)  # how many entries each PutEvents had
    messages: list[str] = field(default_factory=list)

    def deliver(self, message: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for a message in the log, and deliver the lines so far; give the events' details."""

        def logged_so_often() -> bool:
            return [json.loads(text)["message"] for _, text, _ in self.lines].count(message) >= times

        self.knock.wait(logged_so_often, f"{message} was not logged {times} times")
        before = len(self.entries)
        self.messages.clear()
        logged = [
            {"id": "1", "timestamp": int(at * 1000), "message": text}
            for group, text, at in self.lines
            if group in FILTERS and lets_through(FILTERS[group], json.loads(text))
        ]
        self.lines.clear()
        send(logged)
        assert self.messages == [entry["Detail"] for entry in self.entries[before:]]
        details = [json.loads(entry["Detail"]) for entry in self.entries[before:]]
        for detail, entry in zip(details, self.entries[before:], strict=True):
            VALIDATOR.validate(detail)
            assert entry["Source"] == "knock"
            assert entry["DetailType"] == notify.DETAIL_TYPES[detail["event"]]
        return details


def send(logged: list[dict[str, Any]], kind: str = "DATA_MESSAGE") -> Any:
    batch = {"messageType": kind, "logGroup": "g", "logEvents": logged}
    data = base64.b64encode(gzip.compress(json.dumps(batch).encode())).decode()
    return notify.handler({"awslogs": {"data": data}}, Context())


@contextmanager
def listening() -> Iterator[Outbox]:
    with running() as knock:
        outbox, inside = Outbox(knock), threading.local()
        topic = str(knock.client("sns").create_topic(Name=f"{STACK}-notifications")["TopicArn"])

        class Collect(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                group = f"{getattr(inside, 'name', '').removeprefix(f'{STACK}-').capitalize()}FunctionLogs"
                outbox.lines.append((group, self.format(record), record.created))

        @contextmanager
        def around(name: str) -> Iterator[None]:
            before, inside.name = getattr(inside, "name", ""), name
            try:
                yield
            finally:
                inside.name = before

        real = BaseClient._make_api_call  # type: ignore[attr-defined]

        def call(client: BaseClient, operation: str, arguments: Any) -> Any:
            if operation == "PutEvents":
                outbox.entries += arguments["Entries"]
                outbox.batches.append(len(arguments["Entries"]))
            if operation == "Publish":
                assert arguments["TopicArn"] == topic
                outbox.messages.append(arguments["Message"])
            return real(client, operation, arguments)

        handler = Collect()
        handler.setFormatter(wiring.logger.registered_formatter)
        wiring.logger.addHandler(handler)
        notify.wiring.cache_clear()
        knock.around = around
        try:
            with (
                mock.patch.dict(os.environ, NOTIFICATION_TOPIC=topic),
                mock.patch.object(BaseClient, "_make_api_call", call),
            ):
                yield outbox
        finally:
            notify.wiring.cache_clear()
            wiring.logger._logger.removeHandler(handler)


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    with listening() as listener:
        yield listener


class TestEvents:
    def test_a_grant_that_opens_and_expires(self, outbox: Outbox) -> None:
        grant = outbox.knock.open(targets=["bastion"], duration="10m", reason="on call")
        (opened,) = outbox.deliver("authorized")
        assert opened["event"] == "opened"
        assert opened["grant"] == {
            name: grant[name]
            for name in (
                "id",
                "principal",
                "source",
                "targets",
                "requested_at",
                "expires_at",
                "reason",
                "execution_arn",
            )
        }
        outbox.knock.expire(grant)
        (ended,) = outbox.deliver("closed")
        assert (ended["event"], ended["how"], ended["by"]) == ("ended", "expired", "knock")
        assert ended["at"] >= grant["expires_at"][:-1]

    def test_the_end_of_a_grant_is_sent_once_and_says_who_ended_it(self, outbox: Outbox) -> None:
        """The execution is stopped afterwards, and its event closes the grant a second time."""
        grant = outbox.knock.open()
        outbox.deliver("authorized")
        outbox.knock.request("DELETE", f"/grants/{grant['id']}", key="operator", reason="laptop stolen")
        (ended,) = outbox.deliver("closed", times=2)
        assert (ended["how"], ended["by"], ended["why"]) == ("revoked", "operator", "laptop stolen")
        assert ended["id"] == f"{grant['id']}/ended"

    def test_a_grant_that_is_stopped_in_the_console(self, outbox: Outbox) -> None:
        grant = outbox.knock.open()
        outbox.deliver("authorized")
        outbox.knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        (ended,) = outbox.deliver("closed")
        assert (ended["how"], ended["by"]) == ("revoked", "an AWS operator")

    def test_a_renewal_sends_the_new_grant_and_the_end_of_the_old_one(self, outbox: Outbox) -> None:
        old = outbox.knock.open()
        outbox.deliver("authorized")
        new = outbox.knock.open(renews=old["id"])
        # Each is sent at least once: a stopped execution sends the end too.
        opened, ended, *_repeats = outbox.deliver("authorized")
        assert (opened["event"], opened["grant"]["id"]) == ("opened", new["id"])
        assert (ended["how"], ended["by"], ended["grant"]["id"]) == ("superseded", new["id"], old["id"])

    def test_a_grant_that_fails_says_why(self, outbox: Outbox) -> None:
        group = outbox.knock.add_group("full", "1/tcp")
        ranges = [{"CidrIp": f"192.0.2.{number}/32"} for number in range(60)]
        permission = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "IpRanges": ranges}
        outbox.knock.client("ec2").authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        outbox.knock.add_key("dave", targets="*", max_duration="24h")
        assert outbox.knock.request("POST", "/knock", key="dave", body={"targets": ["full"]}).status == 409
        failed, *repeats = outbox.deliver("closed", times=2)
        assert failed["event"] == "failed"
        assert failed["why"].startswith("PoolExhausted: every security group of the target full")
        assert repeats == []

    def test_drift_sends_each_finding_and_the_end_of_the_grant_it_ended(self, outbox: Outbox) -> None:
        outbox.knock.deliveries.drop(lambda _event: True)
        grant = outbox.knock.open()
        outbox.knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        tags = [{"ResourceType": "security-group-rule", "Tags": [{"Key": "knock:stack", "Value": STACK}]}]
        permission = {
            "IpProtocol": "tcp",
            "FromPort": 9,
            "ToPort": 9,
            "IpRanges": [{"CidrIp": "192.0.2.9/32"}],
        }
        outbox.knock.client("ec2").authorize_security_group_ingress(
            GroupId=outbox.knock.groups["web"][0], IpPermissions=[permission], TagSpecifications=tags
        )
        outbox.knock.clock.advance(timedelta(minutes=16))
        outbox.deliver("authorized")
        outbox.knock.call("guard", {})
        details = outbox.deliver("drift_found", times=2)
        assert {(detail["event"], detail.get("finding", detail).get("kind")) for detail in details} == {
            ("drift", "live grant without an execution"),
            ("drift", "rule without a live claim"),
            ("ended", None),
        }
        (ended,) = (detail for detail in details if detail["event"] == "ended")
        assert (ended["grant"]["id"], ended["by"]) == (grant["id"], "the drift guard")
        assert len({detail["id"] for detail in details}) == 3

    def test_a_record_that_cannot_be_read_is_named_without_its_grant(self, outbox: Outbox) -> None:
        """Mutation: functions/notify.py:
        `    except StoreRefused:  # a record that cannot be read may be the finding` ->
        `    except ZeroDivisionError:`
        """
        grant = outbox.knock.open(targets=["bastion"])
        outbox.knock.client("sdb").put_attributes(
            DomainName=os.environ["TRAIL_DOMAIN"],
            ItemName=grant["id"],
            Attributes=[{"Name": "state", "Value": "?", "Replace": True}],
        )
        outbox.lines.clear()
        outbox.knock.call("guard", {})
        (drift,) = outbox.deliver("drift_found")
        assert (drift["finding"]["kind"], drift["grant"]) == ("item that cannot be read", None)
        assert grant["id"] in drift["id"]

    def test_many_events_are_sent_ten_at_a_time(self, outbox: Outbox) -> None:
        grant = outbox.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        assert send([{"timestamp": 0, "message": line}] * 23) == {"sent": 23}
        assert outbox.batches == [10, 10, 3]
        assert len(outbox.entries) == len(outbox.messages) == 23

    def test_a_forged_finding_is_sent_and_is_of_no_grant(self, outbox: Outbox) -> None:
        """As SECURITY.md says, a finding is known by its log line alone."""
        finding = {"grant_id": "unknown", "kind": "made up", "rule": "", "did": "nothing"}
        line = json.dumps({"message": "drift_found", "finding": finding})
        assert send([{"timestamp": 0, "message": line}]) == {"sent": 1}
        detail = json.loads(outbox.messages[-1])
        assert (detail["event"], detail["finding"]["kind"], detail["grant"]) == ("drift", "made up", None)


class TestIgnored:
    @pytest.mark.parametrize(
        "line",
        [
            "START RequestId: 1",
            '"authorized"',
            '{"message": "started", "grant_id": "g"}',
            '{"message": "closed", "closed_now": false, "grant_id": "g"}',
            '{"message": "authorized", "grant_id": "unknown"}',
            '{"message": "closed", "closed_now": true, "grant_id": "unknown"}',
            '{"message": "authorized", "grant_id": null}',
            '{"message": "drift_found"}',
        ],
    )
    def test_other_lines_send_nothing(self, outbox: Outbox, line: str) -> None:
        assert send([{"timestamp": 0, "message": line}]) == {"sent": 0}
        assert outbox.entries == []

    def test_a_grant_that_was_closed_before_sends_nothing(self, outbox: Outbox) -> None:
        """Mutation: `closed_now` ignored. The subscription's filter keeps such lines out as well."""
        grant = outbox.knock.open(targets=["bastion"])
        outbox.knock.request("DELETE", f"/grants/{grant['id']}")
        for closed_now, expected in ((True, 1), (False, 0)):
            line = {"message": "closed", "closed_now": closed_now, "grant_id": grant["id"]}
            assert send([{"timestamp": 0, "message": json.dumps(line)}]) == {"sent": expected}

    def test_a_control_message_sends_nothing(self, outbox: Outbox) -> None:
        assert send([{"timestamp": 0, "message": "CWL CONTROL MESSAGE"}], "CONTROL_MESSAGE") == {"sent": 0}


class TestTrouble:
    def test_events_that_eventbridge_does_not_take_fail_so_that_lambda_retries(self, outbox: Outbox) -> None:
        grant = outbox.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        answer = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "ThrottlingException"}]}
        with (
            mock.patch.object(notify.wiring().events, "put_events", return_value=answer),
            pytest.raises(notify.EventsNotDelivered, match="1 events: ThrottlingException"),
        ):
            send([{"timestamp": 0, "message": line}])

    def test_a_message_that_the_topic_does_not_take_fails_too_and_all_are_sent_again(
        self, outbox: Outbox
    ) -> None:
        """Mutation: functions/notify.py:
        `        wiring().topic.publish(TopicArn=topic, Message=_text(detail))` ->
        `        pass`
        """
        grant = outbox.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        refusal = ClientError({"Error": {"Code": "Throttled", "Message": "slow down"}}, "Publish")
        with (
            mock.patch.object(notify.wiring().topic, "publish", side_effect=refusal),
            pytest.raises(ClientError, match="Throttled"),
        ):
            send([{"timestamp": 0, "message": line}])
        send([{"timestamp": 0, "message": line}])
        assert [entry["Detail"] for entry in outbox.entries] == outbox.messages * 2

    def test_a_trail_that_is_away_fails_too(self, outbox: Outbox) -> None:
        line = json.dumps({"message": "authorized", "grant_id": "g"})
        with (
            mock.patch.object(Trail, "get", side_effect=StoreUnavailable("away")),
            pytest.raises(StoreUnavailable),
        ):
            send([{"timestamp": 0, "message": line}])


class TestThePage:
    def test_its_examples_have_the_documented_shape(self) -> None:
        """Mutation: a name changed in an example or in the schema."""
        blocks = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
        examples = [block for block in blocks if "version" in block]
        assert {example["event"] for example in examples} == {"ended", "drift"}
        for example in examples:
            VALIDATOR.validate(example)

    def test_it_names_every_kind_of_event(self) -> None:
        table = dict(re.findall(r"^\| `(Knock [\w ]+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
        assert {event: kind for kind, event in table.items()} == notify.DETAIL_TYPES
        assert set(SCHEMA["properties"]["event"]["enum"]) == set(notify.DETAIL_TYPES)

    def test_the_schema_knows_every_drift(self) -> None:
        from grants import drift

        kinds = SCHEMA["oneOf"][3]["properties"]["finding"]["properties"]["kind"]["enum"]
        in_code = {value for name, value in vars(drift).items() if name.isupper() and isinstance(value, str)}
        assert set(kinds) == in_code - {drift.BY}
