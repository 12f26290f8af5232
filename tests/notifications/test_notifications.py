"""Notifications: what is told of a grant's life, from the functions' log lines to EventBridge and a topic."""

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
class Told:
    """What the functions logged, and what EventBridge and the topic were told of it."""

    knock: Knock
    lines: list[tuple[str, str, float]] = field(default_factory=list)
    entries: list[dict[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def deliver(self, message: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for a message in the log, and deliver the lines so far; give the details told of them."""

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
def listening() -> Iterator[Told]:
    with running() as knock:
        told, inside = Told(knock), threading.local()
        topic = str(knock.client("sns").create_topic(Name=f"{STACK}-notifications")["TopicArn"])

        class Collect(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                group = f"{getattr(inside, 'name', '').removeprefix(f'{STACK}-').capitalize()}FunctionLogs"
                told.lines.append((group, self.format(record), record.created))

        @contextmanager
        def around(name: str) -> Iterator[None]:
            before, inside.name = getattr(inside, "name", ""), name
            try:
                yield
            finally:
                inside.name = before

        real = BaseClient._make_api_call  # type: ignore[attr-defined]

        def call(client: BaseClient, operation: str, asked: Any) -> Any:
            if operation == "PutEvents":
                told.entries += asked["Entries"]
            if operation == "Publish":
                assert asked["TopicArn"] == topic
                told.messages.append(asked["Message"])
            return real(client, operation, asked)

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
                yield told
        finally:
            notify.wiring.cache_clear()
            wiring.logger._logger.removeHandler(handler)


@pytest.fixture
def told() -> Iterator[Told]:
    with listening() as found:
        yield found


class TestWhatIsTold:
    def test_a_grant_that_opens_and_expires(self, told: Told) -> None:
        grant = told.knock.open(targets=["bastion"], duration="10m", reason="on call")
        (opened,) = told.deliver("authorized")
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
        told.knock.expire(grant)
        (ended,) = told.deliver("closed")
        assert (ended["event"], ended["how"], ended["by"]) == ("ended", "expired", "knock")
        assert ended["at"] >= grant["expires_at"][:-1]

    def test_one_that_somebody_ends_is_told_once_and_by_whom(self, told: Told) -> None:
        """The execution is stopped afterwards, and its event closes the grant a second time."""
        grant = told.knock.open()
        told.deliver("authorized")
        told.knock.request("DELETE", f"/grants/{grant['id']}", key="operator", reason="laptop stolen")
        (ended,) = told.deliver("closed", times=2)
        assert (ended["how"], ended["by"], ended["why"]) == ("revoked", "operator", "laptop stolen")
        assert ended["id"] == f"{grant['id']}/ended"

    def test_one_that_is_stopped_in_the_console(self, told: Told) -> None:
        grant = told.knock.open()
        told.deliver("authorized")
        told.knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        (ended,) = told.deliver("closed")
        assert (ended["how"], ended["by"]) == ("revoked", "an AWS operator")

    def test_a_renewal_tells_of_the_new_one_and_of_the_old_ones_end(self, told: Told) -> None:
        old = told.knock.open()
        told.deliver("authorized")
        new = told.knock.open(renews=old["id"])
        opened, ended, *_again = told.deliver("authorized")  # at least once: a stopped execution tells too
        assert (opened["event"], opened["grant"]["id"]) == ("opened", new["id"])
        assert (ended["how"], ended["by"], ended["grant"]["id"]) == ("superseded", new["id"], old["id"])

    def test_one_that_fails_says_why(self, told: Told) -> None:
        group = told.knock.add_group("full", "1/tcp")
        ranges = [{"CidrIp": f"192.0.2.{number}/32"} for number in range(60)]
        permission = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "IpRanges": ranges}
        told.knock.client("ec2").authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        told.knock.add_key("dave", targets="*", max_duration="24h")
        assert told.knock.request("POST", "/knock", key="dave", body={"targets": ["full"]}).status == 409
        failed, *again = told.deliver("closed", times=2)
        assert failed["event"] == "failed"
        assert failed["why"].startswith("PoolExhausted: every security group of the target full")
        assert again == []

    def test_drift_tells_what_was_found_and_of_the_grant_it_ended(self, told: Told) -> None:
        told.knock.deliveries.drop(lambda _event: True)
        grant = told.knock.open()
        told.knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        tags = [{"ResourceType": "security-group-rule", "Tags": [{"Key": "knock:stack", "Value": STACK}]}]
        permission = {
            "IpProtocol": "tcp",
            "FromPort": 9,
            "ToPort": 9,
            "IpRanges": [{"CidrIp": "192.0.2.9/32"}],
        }
        told.knock.client("ec2").authorize_security_group_ingress(
            GroupId=told.knock.groups["web"][0], IpPermissions=[permission], TagSpecifications=tags
        )
        told.knock.clock.advance(timedelta(minutes=16))
        told.deliver("authorized")
        told.knock.call("guard", {})
        details = told.deliver("drift_found", times=2)
        assert {(one["event"], one.get("finding", one).get("kind")) for one in details} == {
            ("drift", "live grant without an execution"),
            ("drift", "rule without a live claim"),
            ("ended", None),
        }
        (ended,) = (one for one in details if one["event"] == "ended")
        assert (ended["grant"]["id"], ended["by"]) == (grant["id"], "the drift guard")
        assert len({one["id"] for one in details}) == 3

    def test_what_cannot_be_read_is_told_of_by_its_name_alone(self, told: Told) -> None:
        """Mutation: functions/notify.py:
        `    except StoreRefused:  # a record that cannot be read may be the finding` ->
        `    except ZeroDivisionError:`
        """
        grant = told.knock.open(targets=["bastion"])
        told.knock.client("sdb").put_attributes(
            DomainName=os.environ["TRAIL_DOMAIN"],
            ItemName=grant["id"],
            Attributes=[{"Name": "state", "Value": "?", "Replace": True}],
        )
        told.lines.clear()
        told.knock.call("guard", {})
        (drift,) = told.deliver("drift_found")
        assert (drift["finding"]["kind"], drift["grant"]) == ("item that cannot be read", None)
        assert grant["id"] in drift["id"]

    def test_many_go_out_ten_at_a_time(self, told: Told) -> None:
        grant = told.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        assert send([{"timestamp": 0, "message": line}] * 23) == {"told": 23}
        assert len(told.entries) == len(told.messages) == 23

    def test_a_finding_made_up_by_who_invokes_it_is_told_and_is_of_no_grant(self, told: Told) -> None:
        """As SECURITY.md has it: the log line alone says what the guard found."""
        finding = {"grant_id": "unknown", "kind": "made up", "rule": "", "did": "nothing"}
        line = json.dumps({"message": "drift_found", "finding": finding})
        assert send([{"timestamp": 0, "message": line}]) == {"told": 1}
        detail = json.loads(told.messages[-1])
        assert (detail["event"], detail["finding"]["kind"], detail["grant"]) == ("drift", "made up", None)


class TestWhatIsNot:
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
    def test_other_lines(self, told: Told, line: str) -> None:
        assert send([{"timestamp": 0, "message": line}]) == {"told": 0}
        assert told.entries == []

    def test_a_grant_that_had_been_closed_before(self, told: Told) -> None:
        """Mutation: `closed_now` passed over. The subscription's filter keeps such lines out as well."""
        grant = told.knock.open(targets=["bastion"])
        told.knock.request("DELETE", f"/grants/{grant['id']}")
        for closed_now, expected in ((True, 1), (False, 0)):
            line = {"message": "closed", "closed_now": closed_now, "grant_id": grant["id"]}
            assert send([{"timestamp": 0, "message": json.dumps(line)}]) == {"told": expected}

    def test_a_control_message(self, told: Told) -> None:
        assert send([{"timestamp": 0, "message": "CWL CONTROL MESSAGE"}], "CONTROL_MESSAGE") == {"told": 0}


class TestTrouble:
    def test_what_eventbridge_does_not_take_fails_so_that_lambda_tries_again(self, told: Told) -> None:
        grant = told.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        answer = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "ThrottlingException"}]}
        with (
            mock.patch.object(notify.wiring().events, "put_events", return_value=answer),
            pytest.raises(notify.NotTold, match="1 events: ThrottlingException"),
        ):
            send([{"timestamp": 0, "message": line}])

    def test_a_topic_that_does_not_take_one_fails_too_and_all_are_told_again(self, told: Told) -> None:
        """Mutation: functions/notify.py:
        `        wiring().topic.publish(TopicArn=topic, Message=_text(detail))` ->
        `        pass`
        """
        grant = told.knock.open(targets=["bastion"])
        line = json.dumps({"message": "authorized", "grant_id": grant["id"]})
        refusal = ClientError({"Error": {"Code": "Throttled", "Message": "slow down"}}, "Publish")
        with (
            mock.patch.object(notify.wiring().topic, "publish", side_effect=refusal),
            pytest.raises(ClientError, match="Throttled"),
        ):
            send([{"timestamp": 0, "message": line}])
        send([{"timestamp": 0, "message": line}])
        assert [entry["Detail"] for entry in told.entries] == told.messages * 2

    def test_a_trail_that_is_away_fails_too(self, told: Told) -> None:
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
        named = {value for name, value in vars(drift).items() if name.isupper() and isinstance(value, str)}
        assert set(kinds) == named - {drift.BY}
