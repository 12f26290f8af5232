"""The drift guard, on each kind of drift. No event of a stopped execution is delivered here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from grants import drift, wiring
from grants.drift import GRACE
from grants.errors import EngineUnavailable, IngressUnavailable, KnockError, StoreUnavailable
from grants.executions import Executions
from grants.ingress import Ingress
from grants.ledgers import Ledgers
from grants.timing import SETTLES
from grants.trail import Trail
from grants.values import show_second, show_time
from tests.conftest import STORE
from tests.harness import MACHINE, STACK, Knock, forged, running

CIDR, ELSEWHERE = "203.0.113.7/32", "198.51.100.7/32"
LATER = GRACE + timedelta(minutes=1)


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running(STORE) as stack:
        stack.deliveries.drop(lambda _event: True)
        yield stack


def guard(knock: Knock) -> list[dict[str, str]]:
    findings: list[dict[str, str]] = knock.call("guard", {})["findings"]
    return findings


def kinds(knock: Knock) -> list[tuple[str, str]]:
    return [(finding["kind"], finding["grant_id"]) for finding in guard(knock)]


def orphan(knock: Knock, port: int = 22, cidr: str = ELSEWHERE, **tags: str) -> str:
    return knock.add_rule(knock.groups["bastion"][0], port, cidr, **({"stack": STACK} | tags))


def stop(knock: Knock, *grants: dict[str, Any]) -> None:
    for grant in grants:
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])


class TestGuard:
    def test_it_finds_nothing_while_all_is_well_and_counts_that_too(self, knock: Knock) -> None:
        knock.open(duration="8h")
        knock.open("bob", caller="2001:db8::7", duration="8h")
        knock.request("DELETE", f"/grants/{knock.open(duration='8h')['id']}")
        knock.open(duration="8h", renews=knock.open(duration="8h")["id"])
        knock.expire(knock.open(duration="1m"))
        for wait in (timedelta(0), SETTLES, LATER):
            knock.clock.advance(wait)
            assert guard(knock) == []
            assert knock.metrics[-1] == ("DriftFound", 0)
        assert len(knock.rules()) == 6

    def test_it_leaves_alone_a_grant_whose_execution_has_just_stopped(self, knock: Knock) -> None:
        stop(knock, knock.open())
        assert guard(knock) == []
        assert len(knock.rules()) == 3

    def test_it_leaves_alone_a_grant_that_a_revocation_is_at_work_on(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `        busy = {key for grant in ending for key in grant.rule_keys}` -> `        busy = set()`
        """
        grant = knock.open(duration="8h")
        with monkeypatch.context() as patch:
            patch.setattr(Ingress, "revoke", fail(IngressUnavailable("EC2 did not answer")))
            knock.advance_to(grant["expires_at"])
            knock.wait(lambda: knock.ledger().released, "it is not released")
            knock.clock.advance(SETTLES)
            assert guard(knock) == []
            knock.clock.advance(SETTLES)
            assert guard(knock) == []


class TestUnclaimedRule:
    def test_it_is_closed(self, knock: Knock) -> None:
        rule = orphan(knock)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("rule without a live claim", f"closed {rule}")
        assert knock.rules() == set()
        assert guard(knock) == []
        assert knock.metrics.count(("DriftFound", 1)) == 1

    @pytest.mark.parametrize("tags", [{}, {"stack": "another-stack"}])
    def test_a_foreign_rule_stays(self, knock: Knock, tags: dict[str, str]) -> None:
        knock.add_rule(knock.groups["bastion"][0], 22, ELSEWHERE, **tags)
        assert guard(knock) == []
        assert len(knock.rules()) == 1

    def test_a_rule_that_a_grant_claims_after_it_was_listed_stays(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `        if any(self._knows(snapshot.ledger, rule.id) for snapshot in self.ledgers.values()):` ->
        `        if False:`
        """
        orphan(knock, cidr=CIDR)
        real = Ingress.ours

        def knock_meanwhile(ingress: Ingress) -> Any:
            rules = real(ingress)
            knock.open(targets=["bastion"])
            return rules

        monkeypatch.setattr(Ingress, "ours", knock_meanwhile)
        calls: list[object] = []
        monkeypatch.setattr(Ingress, "revoke", lambda *arguments: calls.append(arguments))
        monkeypatch.setattr(drift, "finish_closing", lambda *arguments: calls.append(arguments))
        assert guard(knock) == []
        assert (len(knock.rules()), calls) == (1, [])

    def test_a_rule_that_a_grant_claims_while_the_ledgers_are_listed_stays(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        orphan(knock, cidr=CIDR)
        real = Ledgers.all

        def knock_meanwhile(ledgers: Ledgers) -> Any:
            items = list(real(ledgers))
            with mock.patch.object(Ledgers, "all", real):
                grants.append(knock.open(targets=["bastion"]))
            return iter(items)

        grants: list[dict[str, Any]] = []
        monkeypatch.setattr(Ledgers, "all", knock_meanwhile)
        assert guard(knock) == []
        assert len(knock.rules()) == 1
        knock.expire(grants[0])
        assert knock.rules() == set()

    def test_a_knock_while_a_rule_is_being_closed_opens_its_own(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It closes the old rule itself, and then opens one with another id.

        Mutation: functions/grants/ledger.py:
        `        if not (rule.closing and rule.ids):` -> `        if True:`
        """
        old = orphan(knock, cidr=CIDR)
        real, grants = Ingress.revoke, []

        def knock_while_revoking(ingress: Ingress, group: str, rule_ids: Any) -> frozenset[str]:
            if not grants:
                grants.append("…")
                grants[0] = knock.open(targets=["bastion"])
            return real(ingress, group, rule_ids)

        monkeypatch.setattr(Ingress, "revoke", knock_while_revoking)
        guard(knock)
        assert len(knock.rules()) == 1
        assert knock.of_grant(grants[0]["id"])[0]["SecurityGroupRuleId"] != old
        assert knock.grant(grants[0]["id"])["status"] == "active"
        knock.expire(grants[0])
        assert knock.rules() == set()

    def test_a_closing_rule_without_a_run_is_closed(self, knock: Knock) -> None:
        grant = knock.open(duration="1h")
        with mock.patch.object(Ingress, "revoke", fail(IngressUnavailable("EC2 did not answer"))):
            knock.invoke(f"{STACK}-revoke", early(grant))
        stop(knock, grant)
        knock.lose("trail", grant["id"])
        knock.clock.advance(LATER)
        findings = guard(knock)
        assert [finding["kind"] for finding in findings] == ["rule without a live claim"]
        assert findings[0]["did"].startswith("closed sgr-")
        assert knock.rules() == set()
        assert guard(knock) == []

    def test_a_failure_is_reported_and_stops_no_other_repair(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = orphan(knock, 22), orphan(knock, 23, "198.51.100.8/32")
        real = Ingress.revoke

        def fails(ingress: Ingress, group: str, rule_ids: list[str]) -> frozenset[str]:
            if first in rule_ids:
                raise IngressUnavailable("EC2 did not answer")
            return real(ingress, group, rule_ids)

        monkeypatch.setattr(Ingress, "revoke", fails)
        assert {finding["did"] for finding in guard(knock)} == {
            "failed: EC2 did not answer",
            f"closed {second}",
        }


class TestGoneExecution:
    def test_its_grant_is_ended_and_closed(self, knock: Knock) -> None:
        grant = knock.open()
        stop(knock, grant)
        knock.clock.advance(LATER)
        assert kinds(knock) == [("live grant without an execution", grant["id"])]
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["ended_by"] == "the drift guard"
        assert guard(knock) == []

    def test_a_live_grant_that_a_list_left_out_lives_on(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            if status != "RUNNING":` -> `            if True:`
        """
        grant = knock.open(duration="8h")
        knock.clock.advance(LATER)
        monkeypatch.setattr(Executions, "running", lambda _self: iter(()))
        assert guard(knock) == []
        assert knock.grant(grant["id"])["status"] == "active"

    def test_a_stopped_execution_that_a_list_still_shows_as_running_is_found_the_next_time(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grant = knock.open(duration="8h")
        stop(knock, grant)
        knock.clock.advance(LATER)
        with monkeypatch.context() as patch:
            stale = [(grant["id"], knock.clock.now() - LATER)]
            patch.setattr(Executions, "running", lambda _self: iter(stale))
            assert guard(knock) == []
        assert kinds(knock) == [("live grant without an execution", grant["id"])]


class TestUnclosedGrant:
    def test_it_is_closed(self, knock: Knock) -> None:
        grant = knock.open(duration="1h")
        stop(knock, grant)
        knock.advance_to(grant["expires_at"])
        knock.clock.advance(LATER)
        assert kinds(knock) == [("ended grant not closed", grant["id"])]
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["status"] == "expired"


class TestMissing:
    def test_a_rule_is_reported_and_not_put_back(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], duration="8h")
        (rule,) = knock.of_grant(grant["id"])
        knock.client("ec2").revoke_security_group_ingress(
            GroupId=rule["GroupId"], SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
        )
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("live claim without its rule", "reported")
        assert knock.rules() == set()

    def test_a_foreign_rule_in_its_place_is_enough(self, knock: Knock) -> None:
        knock.add_rule(knock.groups["bastion"][0], 22)
        knock.open(targets=["bastion"], duration="8h")
        knock.clock.advance(LATER)
        assert guard(knock) == []

    def test_a_claim_is_reported_and_its_rules_are_closed_at_the_grants_end(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        knock.lose("ledger", CIDR)
        knock.clock.advance(LATER)
        assert kinds(knock) == [("live grant without its claim", grant["id"])]
        assert len(knock.rules()) == 3
        knock.expire(grant)
        assert knock.rules() == set()

    def test_a_claim_of_a_grant_that_ended_after_it_was_listed_is_not_reported(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            if current and current.state == "live":` -> `            if True:`
        """
        grant = knock.open(duration="8h")
        knock.clock.advance(LATER)
        real = Trail.unclosed

        def end_meanwhile(trail: Trail) -> Any:
            records = list(real(trail))
            knock.request("DELETE", f"/grants/{grant['id']}")
            return iter(records)

        monkeypatch.setattr(Trail, "unclosed", end_meanwhile)
        assert guard(knock) == []


class TestClaimWithoutAGrant:
    def test_the_claim_of_a_closed_grant_is_released_and_its_rules_closed(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], duration="8h")
        item = knock.items("ledger")[CIDR]
        knock.request("DELETE", f"/grants/{grant['id']}")
        knock.write("ledger", CIDR, **{name: values[0] for name, values in item.items()})
        knock.clock.advance(LATER)
        assert kinds(knock) == [("claim without a live grant", grant["id"])]
        assert knock.ledger().claims == {}
        assert guard(knock) == []

    def test_the_claim_of_a_grant_without_record_and_execution_is_released_too(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], duration="8h")
        stop(knock, grant)
        knock.lose("trail", grant["id"])
        knock.clock.advance(LATER)
        assert kinds(knock) == [("claim without a live grant", grant["id"])]
        assert knock.rules() == set()

    def test_a_claim_whose_execution_runs_stays(self, knock: Knock) -> None:
        """Mutation: functions/grants/drift.py:
        `        return execution is None or execution.status != "RUNNING"` -> `        return True`
        """
        grant = knock.open(targets=["bastion"], duration="8h")
        knock.lose("trail", grant["id"])
        knock.clock.advance(LATER)
        assert kinds(knock) == [("execution of an ended grant", grant["id"])]
        assert len(knock.rules()) == 1
        knock.advance_to(grant["expires_at"])
        knock.wait_status(grant["id"], "SUCCEEDED", step=timedelta(seconds=5))
        assert knock.rules() == set()


class TestExecutionOfAnEndedGrant:
    def test_it_is_stopped(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        with mock.patch.object(Executions, "stop", fail(EngineUnavailable("ThrottlingException"))):
            knock.invoke(f"{STACK}-revoke", early(grant))
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("execution of an ended grant", "stopped")
        assert knock.execution(grant["id"])["status"] == "ABORTED"
        assert guard(knock) == []


class TestUnreadable:
    @pytest.mark.parametrize(
        "damage", [{"input_00": "{"}, {"state": "open"}, {"expires_at": "x", "input_00": ""}]
    )
    def test_a_record_is_reported_and_blocks_nothing(self, knock: Knock, damage: dict[str, str]) -> None:
        """Neither the guard, nor lists, nor its source, nor its principal."""
        broken = knock.open(targets=["bastion"], duration="8h")
        stopped = knock.open("bob", targets=["web"], duration="8h")
        stop(knock, stopped)
        knock.write("trail", broken["id"], **damage)
        knock.clock.advance(LATER)
        assert set(kinds(knock)) == {
            ("item that cannot be read", broken["id"]),
            ("live grant without an execution", stopped["id"]),
        }
        listed = knock.request("GET", "/grants", key="operator", status="all").json["grants"]
        assert [grant["id"] for grant in listed] == [stopped["id"]]
        grant = knock.open(duration="8h")
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
        assert knock.rules() == {(knock.groups["bastion"][0], 22, CIDR)}
        # Its own end goes by force, and is tried until an operator mends the record.
        knock.advance_to(broken["expires_at"])
        knock.wait(lambda: not knock.rules(), "the rules stay open", step=timedelta(seconds=10))

    @pytest.mark.parametrize("damage", [{"part_000": "{"}, {"parts": "x"}, {"parts": "99"}])
    def test_a_ledger_is_reported_and_its_rules_are_closed_on_time(
        self, knock: Knock, damage: dict[str, str]
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `self.unreadable_sources = {item.name for item in ledgers if isinstance(item, Unreadable)}` ->
        `self.unreadable_sources = set()`
        """
        broken = knock.open(targets=["bastion"], duration="8h")
        stopped = knock.open("bob", caller="198.51.100.7", duration="8h")
        stop(knock, stopped)
        knock.write("ledger", CIDR, **damage)
        knock.clock.advance(LATER)
        assert kinds(knock)[:2] == [
            ("item that cannot be read", CIDR),
            ("live grant without an execution", stopped["id"]),
        ]
        assert len(knock.rules()) == 1
        knock.advance_to(broken["expires_at"])
        knock.wait(lambda: not knock.rules(), "the rules stay open", step=timedelta(seconds=10))
        knock.lose("ledger", CIDR)  # as an operator mends it
        knock.wait_status(broken["id"], "SUCCEEDED", step=timedelta(minutes=1))


class TestTimeInTheFuture:
    @pytest.mark.parametrize("name", ["ended_at", "authorized_at"])
    def test_one_of_a_record_is_reported_and_does_not_hide_the_grant(self, knock: Knock, name: str) -> None:
        """Mutation: functions/grants/drift.py:
        `        return abs(self.now - at) < GRACE` -> `        return self.now - at < GRACE`
        """
        grant = knock.open(targets=["bastion"], duration="8h")
        stop(knock, grant)
        future = show_time(knock.clock.now() + timedelta(days=400))
        state = {"state": "revoked"} if name == "ended_at" else {}
        knock.write("trail", grant["id"], **state, **{name: future})
        knock.clock.advance(LATER)
        findings = kinds(knock)
        assert findings[0] == ("time in the future", grant["id"])
        assert len(findings) == 2
        assert knock.rules() == set()

    @pytest.mark.parametrize("field", ["ids", "attempts", "tombstones", "released"])
    def test_one_of_a_ledger_is_reported(self, knock: Knock, field: str) -> None:
        knock.open(targets=["bastion"], duration="8h")
        future = show_time(knock.clock.now() + timedelta(days=400))
        ledger = json.loads(knock.items("ledger")[CIDR]["part_000"][0])
        (rule,) = ledger["rules"].values()
        if field == "ids":
            rule["ids"] = dict.fromkeys(rule["ids"], future)
        elif field == "attempts":
            rule["attempts"].append(f"{future}/0123abcd")
        else:
            ledger[field] = {"sgr-0123456789abcdef0": future}
        knock.write("ledger", CIDR, part_000=json.dumps(ledger))
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["rule"]) == ("time in the future", CIDR)

    def test_a_tombstone_of_a_day_to_come_does_not_keep_its_rule_open(self, knock: Knock) -> None:
        """Mutation: functions/grants/drift.py:
        `        return ledger.knows(rule_id) and not (revoked_at and revoked_at >= self.now + GRACE)` ->
        `        return ledger.knows(rule_id)`
        """
        rule_id = orphan(knock, cidr=CIDR)
        knock.open(targets=["web"], duration="8h")
        ledger = json.loads(knock.items("ledger")[CIDR]["part_000"][0])
        ledger["tombstones"] = {rule_id: show_time(knock.clock.now() + timedelta(days=400))}
        knock.write("ledger", CIDR, part_000=json.dumps(ledger))
        knock.clock.advance(LATER)
        assert [kind for kind, _ in kinds(knock)] == ["time in the future", "rule without a live claim"]
        assert {port for _, port, _ in knock.rules()} == {80, 443}

    def test_a_grant_requested_in_the_future_cannot_be_started(self, knock: Knock) -> None:
        value = json.loads(knock.execution(knock.open("bob")["id"])["input"])
        at = knock.clock.now() + timedelta(days=2)
        times = {"requested_at": show_time(at), "expires_at": show_second(at + timedelta(hours=1))}
        made_up = forged(value | times | {"source": ELSEWHERE})
        stamp = times["requested_at"][:19].replace("-", "").replace(":", "")
        who, where, _, digest = made_up["grant_id"].split("_")
        made_up["grant_id"] = f"{who}_{where}_{stamp}Z_{digest}"
        knock.client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=made_up["grant_id"], input=json.dumps(made_up)
        )
        knock.wait_status(made_up["grant_id"], "FAILED", step=timedelta(seconds=2))
        knock.clock.advance(LATER)
        assert guard(knock) == []  # it is closed on record


LOOKS: dict[str, tuple[type, str, KnockError]] = {
    "rules": (Ingress, "ours", IngressUnavailable("RequestLimitExceeded")),
    "executions": (Executions, "running", EngineUnavailable("ThrottlingException")),
    "trail": (Trail, "unclosed", StoreUnavailable("ServiceUnavailable")),
    "ledgers": (Ledgers, "all", StoreUnavailable("ServiceUnavailable")),
}


# Kinds that cannot be found without one side: they are found the next time.
NEEDS = {
    "rules": {"rule without a live claim"},
    "executions": {"live grant without an execution", "execution of an ended grant"},
    "trail": {"live grant without an execution", "claim without a live grant", "rule without a live claim"},
    "ledgers": {"claim without a live grant", "rule without a live claim"},
}


class TestEachStepAlone:
    def setting(self, knock: Knock) -> dict[str, str]:
        """Make one finding for each of the four sides."""
        stopped = knock.open("alice", duration="8h")
        stop(knock, stopped)
        unstopped = knock.open("bob", caller="198.51.100.9", duration="8h")
        with mock.patch.object(Executions, "stop", fail(EngineUnavailable("ThrottlingException"))):
            knock.invoke(f"{STACK}-revoke", early(unstopped))
        unrecorded = knock.open("bob", caller="198.51.100.10", duration="8h")
        stop(knock, unrecorded)
        knock.lose("trail", unrecorded["id"])
        orphan(knock)
        knock.clock.advance(LATER)
        return {
            "live grant without an execution": stopped["id"],
            "execution of an ended grant": unstopped["id"],
            "claim without a live grant": unrecorded["id"],
            "rule without a live claim": "",
        }

    @pytest.mark.parametrize("side", LOOKS)
    def test_a_side_that_cannot_be_listed_is_reported_and_the_others_are_repaired(
        self, knock: Knock, side: str
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            yield Finding(NOT_LOOKED, "", "", f"failed: the {side} could not be listed: {error}")` ->
        `            raise`
        """
        wanted = self.setting(knock)
        owner, method, error = LOOKS[side]
        with mock.patch.object(owner, method, fail(error)):
            findings = kinds(knock)
        assert findings[0] == ("could not look", "")
        assert dict(findings[1:]) == {k: v for k, v in wanted.items() if k not in NEEDS[side]}
        assert dict(kinds(knock)) == {k: v for k, v in wanted.items() if k in NEEDS[side]}
        assert knock.rules() == set()
        assert guard(knock) == []

    @pytest.mark.parametrize(
        ("owner", "method", "error"),
        [
            (Executions, "describe", EngineUnavailable("ThrottlingException")),
            (Trail, "end", StoreUnavailable("ServiceUnavailable")),
            (Ingress, "revoke", IngressUnavailable("RequestLimitExceeded")),
            (Ledgers, "write", StoreUnavailable("ServiceUnavailable")),
        ],
    )
    @pytest.mark.parametrize("at", [1, 2])
    def test_a_call_that_fails_stops_its_own_step_alone(
        self, knock: Knock, owner: type, method: str, error: KnockError, at: int
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            yield Finding(NOT_LOOKED, name, "", f"failed: {error}")` -> `            raise`
        """
        grants = [knock.open(caller=f"198.51.100.{n}", targets=["bastion"], duration="8h") for n in range(3)]
        stop(knock, *grants)
        knock.clock.advance(LATER)
        real, calls = getattr(owner, method), [0]

        def once(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise error
            return real(*arguments, **options)

        with mock.patch.object(owner, method, once):
            findings = guard(knock)
        assert calls[0] >= at
        failed = [finding for finding in findings if finding["did"].startswith("failed: ")]
        assert len(failed) <= 1
        assert len(knock.rules()) <= len(failed)
        assert len(findings) == 3
        knock.clock.advance(LATER)
        guard(knock)
        assert knock.rules() == set()
        assert guard(knock) == []

    def test_repairs_before_a_fault_in_knocks_code_are_reported(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/guard.py: `    finally:` -> `    except ZeroDivisionError:`"""
        grants = [knock.open(caller=f"198.51.100.{n}", targets=["bastion"]) for n in range(2)]
        stop(knock, *grants)
        knock.clock.advance(LATER)
        real, described = Executions.describe, list[str]()

        def breaks(self: Executions, grant_id: str) -> Any:
            described.append(grant_id)
            if len(described) == 2:
                raise ValueError("a fault")
            return real(self, grant_id)

        reported: list[dict[str, str]] = []
        monkeypatch.setattr(wiring.logger, "error", lambda _message, extra: reported.append(extra["finding"]))
        monkeypatch.setattr(Executions, "describe", breaks)
        result = knock.invoke(f"{STACK}-guard", b"{}")
        assert json.loads(result.payload)["errorType"] == "ValueError"
        assert ("DriftFound", 1) in knock.metrics
        assert [finding["grant_id"] for finding in reported] == described[:1]
        assert len(knock.rules()) == 1


def test_every_kind_of_finding_has_a_test() -> None:
    """The tests above name each. The schema of notifications names them too, which has its own test."""
    named = {value for name, value in vars(drift).items() if name.isupper() and isinstance(value, str)}
    text = open(__file__).read()  # noqa: PTH123, SIM115
    assert [kind for kind in named - {drift.BY} if f'"{kind}"' not in text] == []


def early(grant: dict[str, Any]) -> bytes:
    by = {"id": "k1", "name": "operator"}
    return json.dumps({"how": "revoked", "grant": {"grant_id": grant["id"]}, "by": by}).encode()


def fail(error: KnockError) -> Any:
    def failing(*_arguments: object, **_options: object) -> Any:
        raise error

    return failing


def test_a_claim_of_a_record_that_no_list_shows_is_released_unless_its_execution_runs() -> None:
    """DynamoDB lists the records that have an order: one that was forged, or changed, may lack it.

    Mutation: functions/grants/drift.py:
    `        if record is not None and record.closed_at is not None:` -> `        if record is not None:`
    """
    with running("dynamodb") as knock:
        knock.deliveries.drop(lambda _event: True)
        stopped = knock.open(targets=["bastion"], duration="8h")
        live = knock.open("bob", targets=["web"], caller="198.51.100.7", duration="8h")
        stop(knock, stopped)
        for grant in (stopped, live):
            knock.client("dynamodb").update_item(
                TableName=os.environ["TRAIL_DOMAIN"],
                Key={"name": {"S": grant["id"]}},
                UpdateExpression="REMOVE #order",
                ExpressionAttributeNames={"#order": "order"},
            )
        knock.clock.advance(LATER)
        assert kinds(knock)[0] == ("claim without a live grant", stopped["id"])
        assert {cidr for _, _, cidr in knock.rules()} == {ELSEWHERE}
