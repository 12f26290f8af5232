"""A grant's life, in one process on the embedded engine: opened, held, closed, and each kind of failure."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from grants.dynamodb import DynamoDb
from grants.errors import IngressThrottled, KnockError, StoreRefused, StoreUnavailable
from grants.executions import Executions
from grants.ingress import Ingress
from grants.simpledb import SimpleDb
from grants.values import RuleKey, parse_time, show_second
from tests.conftest import ROOT, STORE
from tests.faults.injector import Injector, injecting
from tests.harness import MACHINE, STACK, Knock, at, forged, running

CIDR = "203.0.113.7/32"
CALLS = {
    "simpledb": ("sdb.GetAttributes", "sdb.Select"),
    "dynamodb": ("dynamodb.GetItem", "dynamodb.Query"),
}
ADAPTER: Any = {"simpledb": SimpleDb, "dynamodb": DynamoDb}[STORE]
FIXTURES = ROOT / "tests" / "fixtures" / "inputs"


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running(STORE) as stack:
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
        expired = knock.grant(grant["id"])
        assert (expired["status"], expired["seconds_left"]) == ("expired", 0)
        assert events_of(expired) == ["requested", "authorized", "expired", "closed"]
        assert at(expired["ended_at"]) >= at(expired["expires_at"])
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

    def test_ledger_and_trail_hold_the_intent_before_any_rule_is_made(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/opening.py:
        `    record = operations.trail.record(grant)` ->
        `    record = __import__("grants.values").values.Record(grant)`
        """
        real, intents = Ingress.authorize, []

        def look(self: Ingress, *arguments: Any) -> dict[RuleKey, str]:
            (item,) = knock.items("trail").values()
            (claim,) = knock.ledger().claims.values()
            intents.append((item["state"], item["closed_at"], len(claim.rule_keys)))
            return real(self, *arguments)

        monkeypatch.setattr(Ingress, "authorize", look)
        knock.open()
        assert intents == [(["live"], ["-"], 3)] * 2

    def test_an_ipv6_caller_gets_a_rule_of_one_address(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], caller="2001:db8::7")
        assert grant["source"] == "2001:db8::7/128"
        assert {cidr for _, _, cidr in knock.rules()} == {"2001:db8::7/128"}
        knock.expire(grant)
        assert knock.rules() == set()

    def test_a_slow_opening_answers_202_and_opens_all_the_same(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.OPENS_WITHIN", 0.0)
        gate = threading.Event()

        def wait_at_the_gate(name: str, _payload: Any) -> None:
            if name.endswith("authorize"):
                assert gate.wait(10)

        knock.before_invoke = wait_at_the_gate
        answer = knock.request("POST", "/knock")
        assert (answer.status, answer.json["status"]) == (202, "pending")
        gate.set()
        knock.wait(lambda: knock.grant(answer.json["id"])["status"] == "active", "it did not open")


class TestCalls:
    """How many calls to AWS a grant takes with one poll; tags are read once a minute, not once a knock."""

    @pytest.mark.parametrize(
        ("targets", "rules", "most", "changes"), [(["bastion"], 1, 16, 2), (None, 3, 18, 4)]
    )
    def test_a_grant_takes_few(
        self, knock: Knock, targets: list[str] | None, rules: int, most: int, changes: int
    ) -> None:
        knock.add_key("eve", targets="bastion web", max_duration="1h")
        knock.request("GET", "/whoami", key="eve")
        injector = Injector()
        knock.around = injector.function
        with injecting(injector):
            grant = knock.open("eve", **({"targets": targets} if targets else {}))
            assert len(knock.rules()) == rules
            knock.expire(grant)
        calls = [call.partition(": ")[2] for call in injector.calls]
        get, count = CALLS[STORE]
        polls = [call for call in injector.calls if call == f"{STACK}-api: {get}"]
        assert count in calls  # the count of live grants, in a thread of its own
        assert len(calls) - len(polls) + 1 <= most, calls
        changed = [call for call in calls if "SecurityGroupIngress" in call]
        assert len(changed) == changes  # one call a group, at each end


class TestPoolFree:
    def test_it_is_the_room_left_in_a_pools_last_group_once_that_is_used(self, knock: Knock) -> None:
        knock.open(targets=["bastion"])
        assert "PoolFree" not in dict(knock.metrics)
        knock.open(targets=["web"])
        knock.wait(lambda: ("PoolFree", 58) in knock.metrics, "it is not counted")


class TestGrantsBesideEachOther:
    def test_each_knock_is_a_grant_and_ends_by_itself(self, knock: Knock) -> None:
        short = knock.open(duration="1h")
        long = knock.open(duration="2h")
        assert short["id"] != long["id"]
        rules = knock.rules()
        knock.expire(short)
        assert knock.rules() == rules
        assert knock.grant(long["id"])["status"] == "active"
        knock.expire(long)
        assert knock.rules() == set()
        assert {knock.grant(grant["id"])["status"] for grant in (short, long)} == {"expired"}

    def test_another_principal_behind_the_same_address_is_let_in_as_well(self, knock: Knock) -> None:
        alice = knock.open("alice", duration="1h")
        bob = knock.open("bob", duration="2h")
        rules = knock.rules()
        knock.expire(alice)
        assert knock.rules() == rules
        knock.expire(bob)
        assert knock.rules() == set()

    def test_the_trail_names_the_rules_that_stay_open_for_another_grant(self, knock: Knock) -> None:
        short = knock.open(duration="1h")
        long = knock.open(duration="2h", targets=["web"])
        knock.expire(short)
        group = knock.groups["web"][0]
        assert knock.rules() == {(group, 80, CIDR), (group, 443, CIDR)}
        closed = knock.grant(short["id"])["events"][-1]
        assert closed["kept"] == [f"{group}/tcp/{port}/{port}/{CIDR}" for port in (443, 80)]
        assert len(closed["revoked"]) == 1
        knock.expire(long)
        assert knock.rules() == set()


class TestRenewal:
    def test_it_is_a_new_grant_and_supersedes_the_old_one_without_revoking_a_rule(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/opening.py: `    if grant.renews:` -> `    if False:`"""
        old = knock.open()
        before = knock.rules()
        revoked: list[str] = []
        real = Ingress.revoke

        def revoke(self: Ingress, group: str, rule_ids: Any) -> frozenset[str]:
            revoked.extend(rule_ids)
            return real(self, group, rule_ids)

        monkeypatch.setattr(Ingress, "revoke", revoke)
        new = knock.open(renews=old["id"])
        knock.wait(lambda: knock.grant(old["id"])["status"] == "superseded", "the old one lives on")
        assert (knock.rules(), revoked) == (before, [])
        knock.wait_status(old["id"], "ABORTED")
        superseded = knock.grant(old["id"])
        assert (superseded["ended_by"], events_of(superseded)[-1]) == (new["id"], "closed")
        assert knock.execution(old["id"])["cause"] == f"renewed by {new['id']}"
        knock.expire(new)
        assert knock.rules() == set()

    def test_rules_that_the_new_grant_does_not_open_are_closed(self, knock: Knock) -> None:
        old = knock.open()
        knock.open(targets=["web"], renews=old["id"])
        group = knock.groups["web"][0]
        knock.wait(lambda: knock.rules() == {(group, 80, CIDR), (group, 443, CIDR)}, "more is open")

    def test_a_renewal_that_does_not_open_ends_nothing(self, knock: Knock) -> None:
        old = knock.open(targets=["bastion"])
        full = knock.add_group("full", "5432/tcp")
        for port in range(1, 61):
            knock.add_rule(full, port, "192.0.2.0/24")
        arn = f"arn:aws:apigateway:eu-west-1::/apikeys/{knock.keys['alice']}"
        knock.client("apigateway").tag_resource(resourceArn=arn, tags={"knock:targets": "bastion full"})
        knock.forget()
        answer = knock.request("POST", "/knock", body={"renews": old["id"]})
        assert answer.json["type"] == "urn:knock:problem:pool-exhausted"
        assert knock.grant(old["id"])["status"] == "active"
        assert len(knock.rules(*knock.groups["bastion"])) == 1


class TestStop:
    @pytest.mark.parametrize("reason", [{}, {"error": "Laptop", "cause": "stolen"}])
    def test_stopping_an_execution_closes_its_rules_and_is_recorded_as_revoked(
        self, knock: Knock, reason: dict[str, str]
    ) -> None:
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"], **reason)
        knock.wait(lambda: knock.rules() == set(), "the rules are still there")
        revoked = knock.wait(
            lambda: (g := knock.grant(grant["id"]))["status"] != "active" and g, "it lives on"
        )
        assert (revoked["status"], revoked["ended_by"]) == ("revoked", "an AWS operator")
        ended = next(event for event in revoked["events"] if event["event"] == "revoked")
        assert all(text in ended["reason"] for text in reason.values())
        knock.wait(lambda: knock.closings() == ["SUCCEEDED"], "its closing does not end")

    def test_stopping_an_execution_before_its_record_keeps_it_from_opening(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.OPENS_WITHIN", 0.0)
        gate = threading.Event()
        knock.before_invoke = lambda name, _payload: name.endswith("authorize") and gate.wait(10)
        grant = knock.request("POST", "/knock").json
        stop = threading.Thread(
            target=knock.client("stepfunctions").stop_execution,
            kwargs={"executionArn": grant["execution_arn"]},
        )
        stop.start()  # the emulator answers once the task has ended
        event = {"name": grant["id"], "status": "ABORTED", "input": knock.execution(grant["id"])["input"]}
        knock.call("revoke", {"how": "close", "closing": {"detail": event}})
        assert events_of(knock.grant(grant["id"])) == ["requested", "revoked", "closed"]
        gate.set()
        stop.join()
        knock.wait_status(grant["id"], "ABORTED")
        assert knock.rules() == set()

    def test_a_stop_whose_event_was_lost_is_found_by_the_drift_guard(self, knock: Knock) -> None:
        grant = knock.open()
        knock.deliveries.drop(lambda event: event["detail"]["status"] == "ABORTED")
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.clock.advance(timedelta(minutes=16))
        assert len(knock.rules()) == 3
        findings = knock.call("guard", {})["findings"]
        assert [finding["kind"] for finding in findings] == ["live grant without an execution"]
        assert knock.rules() == set()
        assert knock.call("guard", {}) == {"findings": []}

    def test_an_event_without_its_input_closes_by_the_trail_or_by_tags(self, knock: Knock) -> None:
        """EventBridge leaves a large input out.

        Mutation: functions/revoke.py:
        `        grant = grant or (record.grant if record else None)` -> `        pass`
        """
        grant = knock.open()
        detail = {"name": grant["id"], "status": "TIMED_OUT", "stateMachineArn": MACHINE}
        with mock.patch.object(Executions, "describe", return_value=None):  # its history is lost too
            knock.call("revoke", {"how": "close", "closing": {"detail": detail}})
        revoked = knock.grant(grant["id"])
        assert (revoked["status"], revoked["ended_by"]) == ("revoked", "knock")
        assert knock.rules() == set()
        unrecorded = knock.open()
        knock.lose("trail", unrecorded["id"])
        knock.lose("ledger", CIDR)
        knock.call("revoke", {"how": "close", "closing": {"detail": detail | {"name": unrecorded["id"]}}})
        assert knock.rules() == set()


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

    def test_it_works_without_any_target_left(self, knock: Knock) -> None:
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
        with knock.ticking(timedelta(milliseconds=500)):  # its tags could be shown late
            answer = knock.request("POST", "/knock", body={"targets": ["bastion", "web"]})
        assert answer.status == 409, answer.text
        assert answer.json["type"] == "urn:knock:problem:target-gone"
        assert knock.rules(*knock.groups["bastion"]) == set()
        failed = knock.request("GET", "/grants", key="operator", status="failed").json["grants"]
        assert len(failed) == 1
        knock.wait_status(failed[0]["id"], "FAILED")
        states = knock.states(failed[0]["id"])
        assert list(dict.fromkeys(states)) == ["AuthorizeIngress", "RollBackIngress", "AuthorizationFailed"]

    def test_a_target_that_is_gone_is_left_out_where_the_knock_did_not_name_it(self, knock: Knock) -> None:
        """Mutation: functions/grants/policy.py:
        `    if left_out and (grant.by_name or not confirmed):` -> `    if left_out:`
        """
        assert knock.request("GET", "/whoami").status == 200
        knock.client("ec2").delete_security_group(GroupId=knock.groups["web"][0])
        grant = knock.open()
        assert knock.rules(*knock.groups["bastion"]) == {(knock.groups["bastion"][0], 22, CIDR)}
        authorized = knock.grant(grant["id"])["events"][1]
        assert (authorized["event"], authorized["left_out"]) == ("authorized", ["web"])
        answers = (grant, knock.grant(grant["id"]), *knock.request("GET", "/grants").json["grants"])
        assert [[target["name"] for target in answer["targets"]] for answer in answers] == [["bastion"]] * 3

    def test_a_transient_error_is_tried_again(self, knock: Knock) -> None:
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


class TestStoreOutage:
    @pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRefused("no permission")])
    def test_a_grant_ends_by_force_without_its_store_and_is_recorded_as_closed_later(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, error: KnockError
    ) -> None:
        """By a permanent error as well as in an outage.

        Mutation: functions/grants/closing.py:
        `        revoke_own(operations, grant.id, lambda: _shared(operations, grant, opened or {}))` ->
        `        pass`
        """
        grant = knock.open()
        real, down = ADAPTER._call, [True]

        def call(self: Any, operation: str, **arguments: Any) -> Any:
            if down[0]:
                raise error
            return real(self, operation, **arguments)

        monkeypatch.setattr(ADAPTER, "_call", call)
        knock.advance_to(grant["expires_at"])
        knock.wait(lambda: knock.rules() == set(), "force did not close it", step=timedelta(seconds=5))
        assert knock.execution(grant["id"])["status"] == "RUNNING"
        down[0] = False
        knock.wait_status(grant["id"], "SUCCEEDED", step=timedelta(minutes=1))
        assert knock.states(grant["id"])[-2:] == ["ForceRevokeIngress", "Expired"]
        assert events_of(knock.grant(grant["id"]))[-2:] == ["expired", "closed"]
        assert dict(knock.metrics)["RevocationForced"] == 1

    def test_force_revokes_no_rule_that_is_opened_later(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The dead id that it left in the ledger is not taken for a rule.

        Mutation: functions/grants/closing.py:
        `        _record_forced(operations, grant, opened or {})` -> `        pass`
        """
        first = knock.open(duration="1h")
        second = knock.open("bob", duration="8h")
        real, down = ADAPTER._call, [True]

        def call(self: Any, operation: str, **arguments: Any) -> Any:
            if down[0]:
                raise StoreUnavailable("away")
            return real(self, operation, **arguments)

        monkeypatch.setattr(ADAPTER, "_call", call)
        knock.advance_to(first["expires_at"])
        knock.wait(lambda: knock.rules() == set(), "force did not close it", step=timedelta(seconds=5))
        down[0] = False
        dead = {rule_id for rule in knock.ledger().rules.values() for rule_id in rule.ids}
        knock.wait_status(first["id"], "SUCCEEDED", step=timedelta(minutes=1))
        assert dead
        assert not dead & {rule_id for rule in knock.ledger().rules.values() for rule_id in rule.ids}
        third = knock.open("bob", duration="8h", renews=second["id"])
        assert len(knock.rules()) == 3
        knock.clock.advance(timedelta(hours=1))
        assert len(knock.rules()) == 3
        knock.expire(third)
        assert knock.rules() == set()


class TestInput:
    @pytest.mark.parametrize("end", ["soon", "2020-01-01T00:00:00Z", None, "2030-01-01T00:00:00+00:00"])
    def test_an_execution_with_a_bad_or_past_end_opens_nothing(self, knock: Knock, end: object) -> None:
        value = json.loads(knock.execution(knock.open("bob")["id"])["input"])
        start(knock, forged(value | {"expires_at": end, "source": "198.51.100.1/32"}))
        assert {cidr for _, _, cidr in knock.rules()} == {CIDR}

    def test_an_input_from_long_ago_opens_nothing(self, knock: Knock) -> None:
        value = json.loads((FIXTURES / "v1.json").read_text())
        value["targets"][0]["groups"] = knock.groups["bastion"]
        start(knock, forged(value | {"expires_at": show_second(knock.clock.now() + timedelta(hours=1))}))
        assert knock.rules() == set()

    def test_a_forged_input_is_on_record_as_failed(self, knock: Knock) -> None:
        value = json.loads(knock.execution(knock.open("bob")["id"])["input"])
        later = show_second(parse_time(value["expires_at"]) + timedelta(days=300))
        grant_id = start(knock, forged(value | {"expires_at": later}))
        failed = knock.grant(grant_id)
        assert (failed["status"], events_of(failed)) == ("failed", ["requested", "failed", "closed"])
        assert "InvalidGrant" in failed["events"][1]["reason"]

    @pytest.mark.parametrize("lost", [False, True])
    def test_a_late_authorize_after_an_early_end_makes_no_call_to_ec2(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, lost: bool
    ) -> None:
        """By the ledger, which remembers released grants; and by the trail, where the ledger was lost.

        Mutation: functions/grants/opening.py:
        `        if record.state != "live":` -> `        if False:`
        """
        grant = knock.open()
        value = json.loads(knock.execution(grant["id"])["input"])
        knock.request("DELETE", f"/grants/{grant['id']}")
        if lost:
            knock.lose("ledger", CIDR)
        calls: list[object] = []
        monkeypatch.setattr(Ingress, "authorize", lambda *arguments: calls.append(arguments))
        result = knock.invoke(f"{STACK}-authorize", json.dumps({"grant": value}).encode())
        assert json.loads(result.payload)["errorType"] == "GrantEnded"
        assert calls == []
        assert knock.ledger().claims == {}

    def test_a_late_authorize_after_the_grants_end_claims_nothing(self, knock: Knock) -> None:
        """Mutation: functions/grants/opening.py:
        `    if not grant.live_at(operations.clock()):` -> `    if False:`
        """
        grant = knock.open(duration="1h")
        value = json.loads(knock.execution(grant["id"])["input"])
        knock.expire(grant)
        before = knock.items("ledger")
        result = knock.invoke(f"{STACK}-authorize", json.dumps({"grant": value}).encode())
        assert json.loads(result.payload)["errorType"] == "GrantEnded"
        assert knock.items("ledger") == before
        assert knock.rules() == set()


def start(knock: Knock, value: dict[str, Any]) -> str:
    """Start an execution by hand, under its input's id, and wait until it has failed."""
    grant_id: str = value["grant_id"]
    knock.client("stepfunctions").start_execution(
        stateMachineArn=MACHINE, name=grant_id, input=json.dumps(value)
    )
    knock.wait_status(grant_id, "FAILED", step=timedelta(seconds=2))
    return grant_id
