"""The drift guard, on each kind of drift, with what should have prevented it lost on the way."""

from __future__ import annotations

import json
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

    def test_it_leaves_alone_what_has_just_happened(self, knock: Knock) -> None:
        stop(knock, knock.open())
        assert guard(knock) == []
        assert len(knock.rules()) == 3

    def test_and_what_a_revocation_is_at_work_on(self, knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
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
    def test_a_foreign_rule_is_none(self, knock: Knock, tags: dict[str, str]) -> None:
        knock.add_rule(knock.groups["bastion"][0], 22, ELSEWHERE, **tags)
        assert guard(knock) == []
        assert len(knock.rules()) == 1

    def test_one_that_a_grant_claimed_since_it_was_listed_stands(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `        if any(snapshot.ledger.knows(rule.id) for snapshot in self.ledgers.values()):` ->
        `        if False:`
        """
        orphan(knock, cidr=CIDR)
        real = Ingress.ours

        def and_then_a_knock(ingress: Ingress) -> Any:
            rules = real(ingress)
            knock.open(targets=["bastion"])
            return rules

        monkeypatch.setattr(Ingress, "ours", and_then_a_knock)
        asked: list[object] = []
        monkeypatch.setattr(Ingress, "revoke", lambda *given: asked.append(given))
        monkeypatch.setattr(drift, "finish_closing", lambda *given: asked.append(given))
        assert guard(knock) == []
        assert (len(knock.rules()), asked) == (1, [])

    def test_one_that_a_grant_claims_while_it_is_looked_at_stands(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        orphan(knock, cidr=CIDR)
        real = Ledgers.all

        def and_then_a_knock(ledgers: Ledgers) -> Any:
            found = list(real(ledgers))
            with mock.patch.object(Ledgers, "all", real):
                grant.append(knock.open(targets=["bastion"]))
            return iter(found)

        grant: list[dict[str, Any]] = []
        monkeypatch.setattr(Ledgers, "all", and_then_a_knock)
        assert guard(knock) == []
        assert len(knock.rules()) == 1
        knock.expire(grant[0])
        assert knock.rules() == set()

    def test_a_knock_that_comes_while_one_is_being_closed_has_its_door_all_the_same(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It closes the old rule itself, and then opens one with another id.

        Mutation: functions/grants/ledger.py:
        `        if not (rule.closing and rule.ids):` -> `        if True:`
        """
        old = orphan(knock, cidr=CIDR)
        real, grants = Ingress.revoke, []

        def and_a_knock(ingress: Ingress, group: str, rule_ids: Any) -> frozenset[str]:
            if not grants:
                grants.append("…")
                grants[0] = knock.open(targets=["bastion"])
            return real(ingress, group, rule_ids)

        monkeypatch.setattr(Ingress, "revoke", and_a_knock)
        guard(knock)
        assert len(knock.rules()) == 1
        assert knock.of_grant(grants[0]["id"])[0]["SecurityGroupRuleId"] != old
        assert knock.grant(grants[0]["id"])["status"] == "active"
        knock.expire(grants[0])
        assert knock.rules() == set()

    def test_one_that_is_closing_and_that_nobody_works_on_is_finished(self, knock: Knock) -> None:
        grant = knock.open(duration="1h")
        with mock.patch.object(Ingress, "revoke", fail(IngressUnavailable("EC2 did not answer"))):
            knock.invoke(f"{STACK}-revoke", early(grant))
        stop(knock, grant)
        knock.lose("trail", grant["id"])
        knock.clock.advance(LATER)
        found = guard(knock)
        assert [finding["kind"] for finding in found] == ["rule without a live claim"]
        assert found[0]["did"].startswith("closed sgr-")
        assert knock.rules() == set()
        assert guard(knock) == []

    def test_a_failure_stops_no_other_and_is_told(
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

    def test_what_a_list_shows_as_running_though_it_was_stopped_is_found_the_next_time(
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

    def test_of_one_that_ended_since_it_was_listed_nothing_is(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            if current and current.state == "live":` -> `            if True:`
        """
        grant = knock.open(duration="8h")
        knock.clock.advance(LATER)
        real = Trail.unclosed

        def and_then_its_end(trail: Trail) -> Any:
            records = list(real(trail))
            knock.request("DELETE", f"/grants/{grant['id']}")
            return iter(records)

        monkeypatch.setattr(Trail, "unclosed", and_then_its_end)
        assert guard(knock) == []


class TestLeftClaim:
    def test_one_of_a_grant_that_is_closed_is_released_and_its_rules_closed(self, knock: Knock) -> None:
        grant = knock.open(targets=["bastion"], duration="8h")
        item = knock.items("ledger")[CIDR]
        knock.request("DELETE", f"/grants/{grant['id']}")
        knock.write("ledger", CIDR, **{name: values[0] for name, values in item.items()})
        knock.clock.advance(LATER)
        assert kinds(knock) == [("claim without a live grant", grant["id"])]
        assert knock.ledger().claims == {}
        assert guard(knock) == []

    def test_one_of_a_grant_without_record_and_execution_is_too(self, knock: Knock) -> None:
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


class TestLeftExecution:
    def test_it_is_stopped(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        with mock.patch.object(Executions, "stop", fail(EngineUnavailable("ThrottlingException"))):
            knock.invoke(f"{STACK}-revoke", early(grant))
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["did"]) == ("execution of an ended grant", "stopped")
        assert knock.execution(grant["id"])["status"] == "ABORTED"
        assert guard(knock) == []


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        "damage", [{"input_00": "{"}, {"state": "open"}, {"expires_at": "x", "input_00": ""}]
    )
    def test_a_record_is_told_of_and_blocks_nothing(self, knock: Knock, damage: dict[str, str]) -> None:
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
        again = knock.open(duration="8h")
        assert knock.request("DELETE", f"/grants/{again['id']}").status == 200
        assert knock.rules() == {(knock.groups["bastion"][0], 22, CIDR)}
        knock.advance_to(broken["expires_at"])  # its own end goes by force, and tries until somebody mends it
        knock.wait(lambda: not knock.rules(), "the door stays open", step=timedelta(seconds=10))

    @pytest.mark.parametrize("damage", [{"part_000": "{"}, {"parts": "x"}, {"parts": "99"}])
    def test_a_ledger_is_told_of_and_its_rules_are_closed_on_time(
        self, knock: Knock, damage: dict[str, str]
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `self.unreadable_sources = {item.name for item in ledgers if isinstance(item, Unreadable)}` ->
        `self.unreadable_sources = set()`
        """
        broken = knock.open(targets=["bastion"], duration="8h")
        other = knock.open("bob", caller="198.51.100.7", duration="8h")
        stop(knock, other)
        knock.write("ledger", CIDR, **damage)
        knock.clock.advance(LATER)
        assert kinds(knock)[:2] == [
            ("item that cannot be read", CIDR),
            ("live grant without an execution", other["id"]),
        ]
        assert len(knock.rules()) == 1
        knock.advance_to(broken["expires_at"])
        knock.wait(lambda: not knock.rules(), "the door stays open", step=timedelta(seconds=10))
        knock.lose("ledger", CIDR)  # as an operator mends it
        knock.wait_status(broken["id"], "SUCCEEDED", step=timedelta(minutes=1))


class TestTheFuture:
    @pytest.mark.parametrize("name", ["ended_at", "authorized_at"])
    def test_a_records_is_told_of_and_does_not_make_it_look_away(self, knock: Knock, name: str) -> None:
        """Mutation: functions/grants/drift.py:
        `        return abs(self.now - at) < GRACE` -> `        return self.now - at < GRACE`
        """
        grant = knock.open(targets=["bastion"], duration="8h")
        stop(knock, grant)
        future = show_time(knock.clock.now() + timedelta(days=400))
        state = {"state": "revoked"} if name == "ended_at" else {}
        knock.write("trail", grant["id"], **state, **{name: future})
        knock.clock.advance(LATER)
        found = kinds(knock)
        assert found[0] == ("time in the future", grant["id"])
        assert len(found) == 2
        assert knock.rules() == set()

    @pytest.mark.parametrize("what", ["ids", "attempts", "tombstones", "released"])
    def test_a_ledgers_is_told_of(self, knock: Knock, what: str) -> None:
        knock.open(targets=["bastion"], duration="8h")
        future = show_time(knock.clock.now() + timedelta(days=400))
        ledger = json.loads(knock.items("ledger")[CIDR]["part_000"][0])
        (rule,) = ledger["rules"].values()
        if what == "ids":
            rule["ids"] = dict.fromkeys(rule["ids"], future)
        elif what == "attempts":
            rule["attempts"].append(f"{future}/0123abcd")
        else:
            ledger[what] = {"sgr-0123456789abcdef0": future}
        knock.write("ledger", CIDR, part_000=json.dumps(ledger))
        knock.clock.advance(LATER)
        (finding,) = guard(knock)
        assert (finding["kind"], finding["rule"]) == ("time in the future", CIDR)

    def test_a_grant_that_was_asked_for_in_the_future_is_none_that_anybody_can_start(
        self, knock: Knock
    ) -> None:
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


# What cannot be told without one side is found the next time.
NEEDS = {
    "rules": {"rule without a live claim"},
    "executions": {"live grant without an execution", "execution of an ended grant"},
    "trail": {"live grant without an execution", "claim without a live grant", "rule without a live claim"},
    "ledgers": {"claim without a live grant", "rule without a live claim"},
}


class TestEachStepAlone:
    def setting(self, knock: Knock) -> dict[str, str]:
        """Leave one thing behind for each of the four sides."""
        gone = knock.open("alice", duration="8h")
        stop(knock, gone)
        left = knock.open("bob", caller="198.51.100.9", duration="8h")
        with mock.patch.object(Executions, "stop", fail(EngineUnavailable("ThrottlingException"))):
            knock.invoke(f"{STACK}-revoke", early(left))
        lost = knock.open("bob", caller="198.51.100.10", duration="8h")
        stop(knock, lost)
        knock.lose("trail", lost["id"])
        orphan(knock)
        knock.clock.advance(LATER)
        return {
            "live grant without an execution": gone["id"],
            "execution of an ended grant": left["id"],
            "claim without a live grant": lost["id"],
            "rule without a live claim": "",
        }

    @pytest.mark.parametrize("what", LOOKS)
    def test_one_side_that_cannot_be_looked_at_is_told_and_the_rest_is_mended(
        self, knock: Knock, what: str
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            yield Finding(NOT_LOOKED, "", "", f"failed: the {side} could not be listed: {error}")` ->
        `            raise`
        """
        wanted = self.setting(knock)
        owner, method, error = LOOKS[what]
        with mock.patch.object(owner, method, fail(error)):
            found = kinds(knock)
        assert found[0] == ("could not look", "")
        assert dict(found[1:]) == {k: v for k, v in wanted.items() if k not in NEEDS[what]}
        assert dict(kinds(knock)) == {k: v for k, v in wanted.items() if k in NEEDS[what]}
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
    def test_a_call_that_fails_costs_its_own_step_alone(
        self, knock: Knock, owner: type, method: str, error: KnockError, at: int
    ) -> None:
        """Mutation: functions/grants/drift.py:
        `            yield Finding(NOT_LOOKED, name, "", f"failed: {error}")` -> `            raise`
        """
        grants = [knock.open(caller=f"198.51.100.{n}", targets=["bastion"], duration="8h") for n in range(3)]
        stop(knock, *grants)
        knock.clock.advance(LATER)
        real, calls = getattr(owner, method), [0]

        def once(*asked: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise error
            return real(*asked, **named)

        with mock.patch.object(owner, method, once):
            found = guard(knock)
        assert calls[0] >= at
        failed = [finding for finding in found if finding["did"].startswith("failed: ")]
        assert len(failed) <= 1
        assert len(knock.rules()) <= len(failed)
        assert len(found) == 3
        knock.clock.advance(LATER)
        guard(knock)
        assert knock.rules() == set()
        assert guard(knock) == []

    def test_what_was_mended_before_a_fault_of_knocks_own_is_told(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/guard.py: `    finally:` -> `    except ZeroDivisionError:`"""
        grants = [knock.open(caller=f"198.51.100.{n}", targets=["bastion"]) for n in range(2)]
        stop(knock, *grants)
        knock.clock.advance(LATER)
        real, seen = Executions.describe, list[str]()

        def breaks(self: Executions, grant_id: str) -> Any:
            seen.append(grant_id)
            if len(seen) == 2:
                raise ValueError("a fault")
            return real(self, grant_id)

        told: list[dict[str, str]] = []
        monkeypatch.setattr(wiring.logger, "error", lambda _message, extra: told.append(extra["finding"]))
        monkeypatch.setattr(Executions, "describe", breaks)
        result = knock.invoke(f"{STACK}-guard", b"{}")
        assert json.loads(result.payload)["errorType"] == "ValueError"
        assert ("DriftFound", 1) in knock.metrics
        assert [finding["grant_id"] for finding in told] == seen[:1]
        assert len(knock.rules()) == 1


def test_these_are_all_the_kinds_there_are() -> None:
    """Each has a test above, and docs/notifications.schema.json names it."""
    named = {value for name, value in vars(drift).items() if name.isupper() and isinstance(value, str)}
    text = open(__file__).read()  # noqa: PTH123, SIM115
    assert [kind for kind in named - {drift.BY} if f'"{kind}"' not in text] == []


def early(grant: dict[str, Any]) -> bytes:
    by = {"id": "k1", "name": "operator"}
    return json.dumps({"how": "revoked", "grant": {"grant_id": grant["id"]}, "by": by}).encode()


def fail(error: KnockError) -> Any:
    def failing(*_asked: object, **_named: object) -> Any:
        raise error

    return failing
