"""Attacks that worked on earlier versions, each by itself: they are refused or undone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from grants.errors import InvalidGrant
from grants.ingress import Ingress
from grants.timing import GRACE
from grants.values import Grant
from tests.adversary.moves import BASTION, WEB, Forged, Input
from tests.adversary.world import World, world
from tests.harness import CLOSINGS, MACHINE, STACK


@pytest.fixture
def attacked() -> Iterator[World]:
    with world() as stack:
        yield stack


def start(attacked: World, name: str, value: Any, machine: str = MACHINE) -> None:
    attacked.knock.client("stepfunctions").start_execution(
        stateMachineArn=machine, name=name, input=json.dumps(value)
    )


def revoke(attacked: World, **payload: Any) -> None:
    attacked.knock.invoke(f"{STACK}-revoke", json.dumps(payload).encode())


def stop(attacked: World, name: str) -> None:
    arn = f"{MACHINE.replace(':stateMachine:', ':execution:')}:{name}"
    attacked.knock.client("stepfunctions").stop_execution(executionArn=arn, cause="stop it")


def open_of(attacked: World, grant_id: str) -> set[str]:
    return {rule.id for rule in attacked.rules() if ("knock:grant", grant_id) in rule.tags}


VICTIMS = ("alice", "bob", "elsewhere", "foreign", "equal")


class TestRulesNamedByHand:
    """The state of an execution names rules by id, and a forged one may name any."""

    @pytest.mark.parametrize("how", ["expired", "failed", "force"])
    def test_another_grants_rules_stay(self, attacked: World, how: str) -> None:
        """Mutation: `_named` gives all that is Knock's, or force revokes where the trail knows no grant."""
        before = attacked.rules()
        for word in (*VICTIMS, "sgr-*"):
            value = Input(Forged(requested=-60), rules=(word,)).make(attacked)
            revoke(attacked, how=how, grant=value)
            assert attacked.rules() == before
        assert "RevocationForced" not in dict(attacked.knock.metrics)
        attacked.check()

    def test_they_stay_where_an_execution_that_names_them_fails(self, attacked: World) -> None:
        """Once the ids went to the wrong source's ledger, as closing, and the guard revoked them later.

        Mutation: `_named` gives all that is Knock's.
        """
        before, values = attacked.rules(), []
        for number, word in enumerate(VICTIMS):
            forged = Forged(source=f"8.8.8.{number}/32", targets=(BASTION, WEB), lasts=30 * 86_400)
            values.append(Input(forged, rules=(word,)).make(attacked))
            start(attacked, values[-1]["grant_id"], values[-1])
        attacked.settle()
        for _ in range(2):
            attacked.knock.clock.advance(GRACE + timedelta(minutes=1))
            assert attacked.knock.call("guard", {})["findings"] == []
            assert attacked.rules() == before
            for value in values:  # the ledger has dropped the grant by now
                for how in ("expired", "failed", "force"):
                    revoke(attacked, how=how, grant=value)
            assert attacked.rules() == before


class TestNames:
    @pytest.mark.parametrize("how", ["close", "force-close"])
    def test_a_name_is_not_used_as_a_filter_pattern(self, attacked: World, how: str) -> None:
        """By a pattern EC2 lists every grant's rules, and a ledger that was lost does not claim them."""
        by = {"id": "k", "name": "mallory"}
        with mock.patch.object(Ingress, "tagged", return_value=[]) as tagged:
            for name in ("*", "alice*", "????????*", "", "x" * 81):
                detail = {"name": name, "status": "ABORTED", "input": "{}"}
                revoke(attacked, how=how, closing={"detail": detail})
                revoke(attacked, how=how, closing={"how": "revoked", "grant": {"grant_id": name}, "by": by})
        assert not tagged.called

    @pytest.mark.parametrize("junk", ["", "x" * 100_000], ids=["in the event", "too large for an event"])
    @pytest.mark.parametrize("way", ["stopped", "ended by the revoke function", "swept by the guard"])
    def test_a_grant_is_closed_with_its_timer_under_another_grants_name(
        self, attacked: World, way: str, junk: str
    ) -> None:
        """Once the rule outlived its grant: the stopped execution had the name of a closed grant."""
        closed = Forged(source="198.51.100.8/32", lasts=30).make(attacked)
        value = Forged(lasts=7200).make(attacked) | {"junk": junk}
        start(attacked, closed["grant_id"], value)
        start(attacked, "other", closed)
        attacked.settle()
        assert open_of(attacked, value["grant_id"])
        attacked.knock.clock.advance(timedelta(minutes=1))
        attacked.settle()
        if way == "stopped":
            stop(attacked, closed["grant_id"])
        elif way == "swept by the guard":
            attacked.knock.clock.advance(GRACE + timedelta(minutes=1))
            attacked.knock.call("guard", {})
        else:
            by = {"id": "k", "name": "mallory"}
            revoke(attacked, how="revoked", grant={"grant_id": closed["grant_id"]}, by=by)
        assert attacked.knock.execution_status(closed["grant_id"]) == "ABORTED"
        attacked.knock.wait(
            lambda: not open_of(attacked, value["grant_id"]), "its rule is open without a timer"
        )
        assert attacked.records()[value["grant_id"]].state == "revoked"
        attacked.check()

    def test_a_copy_of_an_execution_that_is_stopped_ends_nothing(self, attacked: World) -> None:
        start(attacked, "copy", attacked.inputs["alice"])
        attacked.settle()
        stop(attacked, "copy")
        attacked.settle()
        assert attacked.records()[attacked.ids["alice"]].state == "live"
        attacked.check()

    def test_an_execution_of_the_right_name_with_another_input_is_no_timer(self, attacked: World) -> None:
        value = Forged(lasts=7200).make(attacked)
        decoy = Forged(source="198.51.100.8/32", lasts=7200).make(attacked)
        start(attacked, value["grant_id"], decoy)
        start(attacked, "timer", value)
        attacked.settle()
        stop(attacked, "timer")
        attacked.knock.wait(
            lambda: not open_of(attacked, value["grant_id"]), "its rule is open without a timer"
        )
        attacked.check()


class TestReplays:
    def test_running_an_input_once_more_ends_nothing(self, attacked: World) -> None:
        """Once an input was refused as too old after an hour, and rolled back: the grant ended as failed."""
        attacked.knock.clock.advance(timedelta(minutes=61))
        start(attacked, "copy", attacked.inputs["alice"])
        attacked.settle()
        assert attacked.knock.states("copy") == ["AuthorizeIngress", "HoldUntilExpiry"]
        attacked.check()
        assert attacked.records()[attacked.ids["alice"]].state == "live"

    def test_running_an_input_whose_target_is_gone_ends_nothing(self, attacked: World) -> None:
        for group in ("bastion", "second", "web"):
            attacked.knock.client("ec2").delete_tags(
                Resources=[attacked.group(group)], Tags=[{"Key": "knock:target"}]
            )
        start(attacked, "copy", attacked.inputs["alice"])
        attacked.settle()
        attacked.check()
        assert attacked.records()[attacked.ids["alice"]].state == "live"

    def test_many_runs_of_one_input_do_not_fill_its_item(self, attacked: World) -> None:
        """Once each run added an event, until the item had no room for the end."""
        value = attacked.inputs["alice"]
        before = attacked.trail.get(attacked.ids["alice"])
        for number in range(8):
            attacked.knock.call("authorize", {"grant": value})
            attacked.trail.authorize(
                attacked.ids["alice"], attacked.at(number), before.opened if before else ()
            )
        after = attacked.trail.get(attacked.ids["alice"])
        assert before
        assert after
        assert [event.event for event in after.events] == [event.event for event in before.events]
        assert after.opened == before.opened

    def test_an_input_whose_ledger_is_lost_fills_it_again(self, attacked: World) -> None:
        source = attacked.inputs["alice"]["source"]
        attacked.knock.client("sdb").delete_attributes(
            DomainName=os.environ["LEDGER_DOMAIN"], ItemName=source
        )
        start(attacked, "copy", attacked.inputs["alice"])
        attacked.settle()
        attacked.end_all("delete")


class TestLongTexts:
    @pytest.mark.parametrize("text", ['"' * 400, "\\" * 5000, "é" * 700, "\ud800", "\U0001f600" * 300])
    @pytest.mark.parametrize("how", ["revoked", "force-close"])
    def test_a_long_name_or_reason_ends_the_grant_on_record(
        self, attacked: World, how: str, text: str
    ) -> None:
        """Once a text that the store refused looked like an outage, and force revoked what was on record."""
        payload = {"how": "revoked", "grant": attacked.inputs["alice"], "by": {"name": text}, "reason": text}
        revoke(attacked, **(payload if how == "revoked" else {"how": how, "closing": payload}))
        attacked.settle()
        record = attacked.records()[attacked.ids["alice"]]
        assert record.state == "revoked"
        assert record.closed_at
        attacked.check()


class TestInputsThatCouldNotBeClosed:
    @pytest.mark.parametrize(
        "change",
        [
            {"requested_at": "0001-01-01T00:00:00.000Z"},
            {"requested_at": "9999-12-31T23:59:59.999Z"},
            {"expires_at": "9999-12-31T23:59:59Z"},
        ],
    )
    def test_a_year_that_is_not_written_as_it_is_read_is_refused(
        self, attacked: World, change: dict[str, str]
    ) -> None:
        with pytest.raises(InvalidGrant):
            Grant.from_input(attacked.inputs["alice"] | change)

    def test_more_groups_than_a_close_can_list_are_refused(self, attacked: World) -> None:
        groups = ("bastion", *(f"sg-{number}" for number in range(2500)))
        value = Forged(targets=(("bastion", ("22/tcp",), groups),)).make(attacked)
        with pytest.raises(InvalidGrant):
            Grant.from_input(value)
        before = attacked.rules()
        start(attacked, value["grant_id"], value)
        attacked.settle()
        assert attacked.knock.states(value["grant_id"])[-1] == "AuthorizationFailed"
        assert attacked.rules() == before

    def test_an_input_with_no_room_for_the_rules_opens_nothing(self, attacked: World) -> None:
        """Above 256 KiB Step Functions ends the execution past every Catch, with the rules open."""
        before = attacked.rules()
        value = Forged().make(attacked) | {"junk": "x" * 150_000}
        start(attacked, value["grant_id"], value)
        attacked.settle()
        assert attacked.rules() == before

    def test_a_copy_of_a_live_input_that_leaves_no_room_ends_nothing(self, attacked: World) -> None:
        """Once its execution failed, and its rollback closed the grant, whose own execution went on."""
        value = Forged(lasts=7200).make(attacked)
        start(attacked, value["grant_id"], value)
        attacked.settle()
        rules = open_of(attacked, value["grant_id"])
        start(attacked, "copy", value | {"junk": "x" * 150_000})
        attacked.settle()
        assert open_of(attacked, value["grant_id"]) == rules != set()
        assert attacked.knock.grant(value["grant_id"])["status"] == "active"

    @pytest.mark.parametrize(
        "value", [[], "x", {"detail": []}, {"detail": {"name": "x", "status": "RUNNING"}}]
    )
    def test_a_closing_that_names_no_grant_ends_at_the_first_try(self, attacked: World, value: Any) -> None:
        start(attacked, "junk", value, CLOSINGS)
        attacked.settle()
        arn = f"{CLOSINGS.replace(':stateMachine:', ':execution:')}:junk"
        history = attacked.knock.client("stepfunctions").get_execution_history(executionArn=arn)["events"]
        types = [event["type"] for event in history]
        assert types[-1] == "ExecutionSucceeded"
        assert types.count("LambdaFunctionScheduled") == 1, types

    def test_a_grant_that_never_started_is_not_closed_for_days(self, attacked: World) -> None:
        value = Forged(requested=-60).make(attacked)
        closing = {"how": "failed", "grant": value, "by": {"id": "", "name": "knock"}, "reason": "x"}
        start(attacked, "closing", closing, CLOSINGS)
        detail = {"name": value["grant_id"], "status": "ABORTED", "input": json.dumps(value)}
        start(attacked, "made-by-hand", {"detail": detail}, CLOSINGS)
        attacked.settle()
        assert not attacked.executions(CLOSINGS)
        assert value["grant_id"] not in attacked.records()

    def test_an_execution_under_another_name_that_opened_nothing_ends_soon(self, attacked: World) -> None:
        value = Forged(targets=((BASTION[0], ("1-65535/tcp",), BASTION[2]),)).make(attacked)
        before = attacked.knock.clock.now()
        start(attacked, "another", value)
        attacked.settle()
        assert attacked.knock.execution_status("another") == "FAILED"
        assert attacked.knock.clock.now() - before < timedelta(minutes=30)
