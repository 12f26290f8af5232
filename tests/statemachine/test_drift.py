"""The drift guard, on each kind of drift, with what should have prevented it lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from grants.drift import GRACE
from grants.errors import IngressUnavailable
from grants.ingress import Ingress
from tests.harness import STACK, Knock, running

LATER = GRACE + timedelta(minutes=1)


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        stack.deliveries.drop(lambda _event: True)
        yield stack


def guard(knock: Knock) -> list[dict[str, str]]:
    findings: list[dict[str, str]] = knock.call("guard", {})["findings"]
    return findings


def add_rule(knock: Knock, port: int, cidr: str = "198.51.100.7/32", stack: str | None = STACK) -> str:
    tags = [{"Key": "knock:stack", "Value": stack}] if stack else []
    specification = [{"ResourceType": "security-group-rule", "Tags": tags}] if tags else []
    permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": cidr}]}
    answer = knock.client("ec2").authorize_security_group_ingress(
        GroupId=knock.groups["bastion"][0], IpPermissions=[permission], TagSpecifications=specification
    )
    rule: str = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    return rule


class TestGuard:
    def test_it_finds_nothing_while_all_is_well_and_counts_that_too(self, knock: Knock) -> None:
        knock.open(duration="8h")
        knock.clock.advance(LATER)
        assert guard(knock) == []
        assert knock.metrics[-1] == ("DriftFound", 0)

    def test_it_leaves_alone_what_has_just_happened(self, knock: Knock) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        assert guard(knock) == []
        assert len(knock.rules()) == 3


class TestUnclaimedRule:
    def test_it_is_closed(self, knock: Knock) -> None:
        rule = add_rule(knock, 22)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("rule without a live claim", f"closed {rule}")
        assert knock.rules() == set()
        assert guard(knock) == []
        assert knock.metrics.count(("DriftFound", 1)) == 1

    @pytest.mark.parametrize("tag", [None, "another-stack"])
    def test_a_foreign_rule_is_none(self, knock: Knock, tag: str | None) -> None:
        add_rule(knock, 22, stack=tag)
        assert guard(knock) == []
        assert len(knock.rules()) == 1

    def test_one_that_a_grant_claimed_meanwhile_stands(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_rule(knock, 22, cidr="203.0.113.7/32")
        real = Ingress.ours

        def and_then_a_knock(ingress: Ingress) -> Any:
            rules = real(ingress)
            knock.open(targets=["bastion"])
            return rules

        monkeypatch.setattr(Ingress, "ours", and_then_a_knock)
        assert guard(knock) == []
        assert len(knock.rules()) == 1

    def test_a_failure_stops_no_other_and_is_told(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = add_rule(knock, 22), add_rule(knock, 23)
        real = Ingress.revoke

        def fail(ingress: Ingress, group: str, rule_id: str) -> bool:
            if rule_id == first:
                raise IngressUnavailable("EC2 did not answer")
            return real(ingress, group, rule_id)

        monkeypatch.setattr(Ingress, "revoke", fail)
        assert {finding["did"] for finding in guard(knock)} == {
            "failed: EC2 did not answer",
            f"closed {second}",
        }


class TestGoneExecution:
    def test_its_grant_is_ended_and_closed(self, knock: Knock) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["grant_id"]) == ("live grant without an execution", grant["id"])
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["ended_by"] == "the drift guard"
        assert guard(knock) == []


class TestUnclosedGrant:
    def test_it_is_closed(self, knock: Knock) -> None:
        grant = knock.open(duration="1h")
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.advance_to(grant["expires_at"])
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["grant_id"]) == ("ended grant not closed", grant["id"])
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["status"] == "expired"


class TestMissingRule:
    def test_it_is_reported_and_not_put_back(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], duration="8h")
        (rule,) = knock.client("ec2").describe_security_group_rules(
            Filters=[{"Name": "tag:knock:grant", "Values": [grant["id"]]}]
        )["SecurityGroupRules"]
        knock.client("ec2").revoke_security_group_ingress(
            GroupId=rule["GroupId"], SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
        )
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("live claim without its rule", "reported")
        assert knock.rules() == set()

    def test_a_foreign_rule_in_its_place_is_enough(self, knock: Knock) -> None:
        add_rule(knock, 22, cidr="203.0.113.7/32", stack=None)
        knock.open(targets=["bastion"], duration="8h")
        knock.clock.advance(LATER)
        assert guard(knock) == []


class TestLeftExecution:
    def test_it_is_stopped(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        by = {"id": "k1", "name": "operator"}
        knock.call("revoke", {"how": "revoked", "grant": {"grant_id": grant["id"]}, "by": by})
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("execution of an ended grant", "stopped")
        assert knock.execution(grant["id"])["status"] == "ABORTED"
        assert guard(knock) == []
