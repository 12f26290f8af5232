"""A grant's life, in one process on the embedded engine: opened, held, closed, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from grants.errors import IngressThrottled, TrailUnavailable
from tests.harness import MACHINE, REGION, STACK, Knock, at, running

CIDR = "203.0.113.7/32"
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "inputs"


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        yield stack


def events_of(grant: dict[str, Any]) -> list[str]:
    return [event["event"] for event in grant["events"]]


class TestKnock:
    def test_it_opens_one_rule_a_port_and_closes_them_at_the_end(self, knock: Knock) -> None:
        grant = knock.open(duration="8h", reason="on call")
        bastion, web = knock.groups["bastion"][0], knock.groups["web"][0]
        assert knock.rules() == {(bastion, 22, CIDR), (web, 80, CIDR), (web, 443, CIDR)}
        assert grant["status"] == "active"
        assert grant["reason"] == "on call"
        knock.advance_to(grant["expires_at"])
        knock.wait_status(grant["id"], "SUCCEEDED")
        assert knock.rules() == set()
        shown = knock.grant(grant["id"])
        assert (shown["status"], shown["seconds_left"]) == ("expired", 0)
        assert events_of(shown) == ["requested", "authorized", "expired", "closed"]
        assert at(shown["ended_at"]) >= at(shown["expires_at"])
        assert knock.states(grant["id"]) == [
            "AuthorizeIngress",
            "HoldUntilExpiry",
            "RevokeIngress",
            "Expired",
        ]

    def test_the_rules_carry_the_stack_and_the_grant(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"])
        rules = knock.client("ec2").describe_security_group_rules(
            Filters=[{"Name": "tag:knock:stack", "Values": [STACK]}]
        )["SecurityGroupRules"]
        assert [{tag["Key"]: tag["Value"] for tag in rule["Tags"]} for rule in rules] == [
            {"knock:stack": STACK, "knock:grant": grant["id"]}
        ]
        assert grant["id"] in rules[0]["Description"]

    def test_the_trail_holds_the_intent_before_the_execution_starts(self, knock: Knock) -> None:
        """Mutation: functions/api.py: `trail.record_request(grant)` -> `executions.start(grant)`"""
        seen: list[object] = []
        knock.before_invoke = lambda name, payload: seen.append(
            knock.grant(payload["grant"]["grant_id"])["status"] if name.endswith("authorize") else None
        )
        knock.open()
        assert seen == ["pending"]

    def test_an_ipv6_caller_gets_a_rule_of_one_address(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], caller="2001:db8::7")
        assert grant["source"] == "2001:db8::7/128"
        assert {cidr for _, _, cidr in knock.rules()} == {"2001:db8::7/128"}
        knock.expire(grant)
        assert knock.rules() == set()

    def test_an_opening_that_takes_longer_answers_202_and_opens_all_the_same(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.OPENS_WITHIN", 0.0)
        real = knock.before_invoke
        import threading

        gate = threading.Event()

        def held(name: str, payload: Any) -> None:
            if name.endswith("authorize"):
                assert gate.wait(10)
            real(name, payload)

        knock.before_invoke = held
        answer = knock.request("POST", "/knock")
        assert (answer.status, answer.json["status"]) == (202, "pending")
        gate.set()
        knock.wait(lambda: knock.grant(answer.json["id"])["status"] == "active", "it did not open")


class TestPoolFree:
    def test_it_tells_the_room_left_in_a_pools_last_group_when_that_is_used(self, knock: Knock) -> None:
        knock.open(targets=["bastion"])
        assert "PoolFree" not in dict(knock.metrics)
        knock.open(targets=["web"])
        knock.wait(lambda: ("PoolFree", 58) in knock.metrics, "it does not tell")

    def test_not_knowing_it_closes_no_door(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_ingress: object, _group: str) -> dict[int, int]:
            raise IngressThrottled("EC2's request limit is reached")

        monkeypatch.setattr("grants.ingress.Ingress.used", fail)
        assert knock.open(targets=["web"])["status"] == "active"
        assert "PoolFree" not in dict(knock.metrics)


class TestRenewal:
    def test_it_is_a_new_grant_and_supersedes_the_old_one_without_closing_the_door(
        self, knock: Knock
    ) -> None:
        old = knock.open()
        before = knock.rules()
        new = knock.open()
        knock.wait(lambda: knock.grant(old["id"])["status"] == "superseded", "the old one lives on")
        assert knock.rules() == before
        knock.wait_status(old["id"], "ABORTED")
        assert knock.grant(old["id"])["ended_by"] == new["id"]
        knock.expire(new)
        assert knock.rules() == set()

    def test_another_principal_behind_the_same_address_is_no_renewal(self, knock: Knock) -> None:
        alice = knock.open("alice", duration="1h")
        bob = knock.open("bob", duration="2h")
        rules = knock.rules()
        knock.expire(alice)
        assert knock.rules() == rules
        knock.expire(bob)
        assert knock.rules() == set()

    def test_other_targets_are_no_renewal(self, knock: Knock) -> None:
        both = knock.open(duration="1h")
        web = knock.open(duration="2h", targets=["web"])
        knock.expire(both)
        group = knock.groups["web"][0]
        assert knock.rules() == {(group, 80, CIDR), (group, 443, CIDR)}
        knock.expire(web)
        assert knock.rules() == set()


class TestStop:
    @pytest.mark.parametrize("said", [{}, {"error": "Laptop", "cause": "stolen"}])
    def test_stopping_an_execution_closes_its_rules_and_is_recorded_as_revoked(
        self, knock: Knock, said: dict[str, str]
    ) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"], **said)
        knock.wait(lambda: knock.rules() == set(), "the rules are still there")
        shown = knock.wait(lambda: (g := knock.grant(grant["id"]))["status"] != "active" and g, "it lives on")
        assert (shown["status"], shown["ended_by"]) == ("revoked", "an AWS operator")
        ended = next(event for event in shown["events"] if event["event"] == "revoked")
        assert all(text in ended["reason"] for text in said.values())

    def test_a_stop_whose_event_was_lost_is_found_by_the_drift_guard(self, knock: Knock) -> None:
        grant = knock.open()
        knock.deliveries.drop(lambda event: event["detail"]["status"] == "ABORTED")
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.clock.advance(timedelta(minutes=11))
        assert len(knock.rules()) == 3
        findings = knock.call("guard", {})["findings"]
        assert [finding["kind"] for finding in findings] == ["live grant without an execution"]
        assert knock.rules() == set()
        assert knock.call("guard", {}) == {"findings": []}


class TestEarlyRevocation:
    def test_it_answers_after_the_rules_are_gone_and_stops_the_execution_saying_who_and_why(
        self, knock: Knock
    ) -> None:
        grant = knock.open()
        answer = knock.request("DELETE", f"/grants/{grant['id']}", reason="done for today")
        assert knock.rules() == set()
        assert (answer.status, answer.json["status"], answer.json["ended_by"]) == (200, "revoked", "alice")
        execution = knock.execution(grant["id"])
        assert (execution["status"], execution["error"]) == ("ABORTED", "Revoked")
        assert execution["cause"] == "revoked by alice: done for today"

    def test_the_second_time_changes_nothing_and_answers_the_same(self, knock: Knock) -> None:
        grant = knock.open()
        first = knock.request("DELETE", f"/grants/{grant['id']}")
        second = knock.request("DELETE", f"/grants/{grant['id']}", reason="again")
        assert (first.status, first.json) == (second.status, second.json)

    def test_it_works_without_any_right_left(self, knock: Knock) -> None:
        grant = knock.open()
        for group in (*knock.groups["bastion"], *knock.groups["web"]):
            knock.client("ec2").delete_tags(Resources=[group], Tags=[{"Key": "knock:target"}])
        knock.forget()
        knock.request("DELETE", f"/grants/{grant['id']}")
        assert knock.rules() == set()


class TestFailedAuthorization:
    def test_it_is_rolled_back_recorded_and_the_execution_failed(self, knock: Knock) -> None:
        assert knock.request("GET", "/whoami").status == 200  # the targets are known for a minute from now on
        knock.client("ec2").delete_security_group(GroupId=knock.groups["web"][0])
        answer = knock.request("POST", "/knock")
        assert answer.status == 409, answer.text
        assert answer.json["type"] == "urn:knock:problem:pool-exhausted"
        assert knock.rules(*knock.groups["bastion"]) == set()
        failed = knock.request("GET", "/grants", key="operator", status="failed").json["grants"]
        assert len(failed) == 1
        knock.wait_status(failed[0]["id"], "FAILED")
        assert knock.states(failed[0]["id"]) == ["AuthorizeIngress", "RollBackIngress", "AuthorizationFailed"]

    def test_one_that_may_pass_is_tried_again(self, knock: Knock) -> None:
        tries: list[str] = []

        def throttled(name: str, _payload: Any) -> None:
            if name.endswith("authorize"):
                tries.append(name)
                if len(tries) < 3:
                    raise IngressThrottled("EC2's request limit is reached")

        knock.before_invoke = throttled
        answer = knock.request("POST", "/knock")
        grant = answer.json
        knock.wait(
            lambda: knock.grant(grant["id"])["status"] == "active", "not open", step=timedelta(seconds=1)
        )
        assert len(tries) == 3
        assert knock.states(grant["id"]).count("RollBackIngress") == 0


class TestTrailOutage:
    def test_a_grant_ends_by_force_when_the_trail_cannot_be_reached_and_the_trail_tells_so_later(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/operations.py:
        `revoked = self._close_without_trail(state, rules)` -> `revoked = []`
        """
        grant = knock.open()
        from grants.trail import Trail

        real = Trail._call
        down = [True]

        def call(self: Trail, operation: str, **arguments: Any) -> Any:
            if down[0]:
                raise TrailUnavailable("SimpleDB did not answer")
            return real(self, operation, **arguments)

        monkeypatch.setattr(Trail, "_call", call)
        knock.advance_to(grant["expires_at"])
        knock.wait(lambda: knock.rules() == set(), "force did not close it", step=timedelta(seconds=5))
        assert knock.execution(grant["id"])["status"] == "RUNNING"
        down[0] = False
        knock.wait_status(grant["id"], "SUCCEEDED", step=timedelta(minutes=1))
        assert knock.states(grant["id"])[-2:] == ["ForceRevokeIngress", "Expired"]
        assert events_of(knock.grant(grant["id"]))[-2:] == ["expired", "closed"]

    def test_no_new_grant_starts_and_the_answer_says_to_try_again(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from grants.trail import Trail

        def down(*_: Any, **__: Any) -> Any:
            raise TrailUnavailable("SimpleDB did not answer")

        monkeypatch.setattr(Trail, "_call", down)
        answer = knock.request("POST", "/knock")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        executions = knock.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"]
        assert executions == []


class TestInput:
    @pytest.mark.parametrize("end", ["soon", "2020-01-01T00:00:00Z", None, "2030-01-01T00:00:00+00:00"])
    def test_an_execution_with_a_bad_or_past_end_opens_nothing(self, knock: Knock, end: object) -> None:
        value = json.loads((FIXTURES / "v1.json").read_text())
        value["expires_at"] = end
        value["targets"][0]["groups"] = knock.groups["bastion"]
        knock.client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=value["grant_id"], input=json.dumps(value)
        )
        knock.wait_status(value["grant_id"], "FAILED", step=timedelta(seconds=2))
        assert knock.rules() == set()

    def test_an_execution_nobody_knocked_for_opens_nothing(self, knock: Knock) -> None:
        value = json.loads((FIXTURES / "v1.json").read_text())
        value["targets"][0]["groups"] = knock.groups["bastion"]
        knock.client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=value["grant_id"], input=json.dumps(value)
        )
        knock.wait_status(value["grant_id"], "FAILED", step=timedelta(seconds=2))
        assert knock.rules() == set()

    def test_a_late_authorize_after_the_end_opens_nothing(self, knock: Knock) -> None:
        """Mutation: functions/grants/operations.py: `if not grant.live_at(self.clock()):` -> `if False:`"""
        grant = knock.open()
        value = json.loads(knock.execution(grant["id"])["input"])
        knock.request("DELETE", f"/grants/{grant['id']}")
        result = knock.invoke(
            f"arn:aws:lambda:{REGION}:1:function:{STACK}-authorize", json.dumps({"grant": value}).encode()
        )
        assert json.loads(result.payload)["errorType"] == "GrantEnded"
        assert knock.rules() == set()
