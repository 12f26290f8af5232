"""A stack whose TrailStore was changed in CloudFormation's own console while grants ran.

That cannot be refused there. The new store is empty: it has neither the grants nor their claims. Their rules
are found by the state of their executions and by EC2's tags. Access may end early then, and never late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from grants.timing import GRACE, SETTLES
from tests.faults.injector import Injector, injecting
from tests.harness import STACK, Knock, running

CIDR = "203.0.113.7/32"
OTHER = {"simpledb": "dynamodb", "dynamodb": "simpledb"}
LATER = GRACE + timedelta(minutes=1)


@pytest.fixture(params=["simpledb", "dynamodb"])
def knock(request: pytest.FixtureRequest) -> Iterator[Knock]:
    """A stack on each store, which is changed to the other in the test."""
    with running(request.param) as stack:
        yield stack


def change(knock: Knock, word: str = "2def") -> None:
    """Change to a store of the other kind: a new and empty one, since `word` is part of its names."""
    knock.choose(OTHER[os.environ["TRAIL_STORE"]], word)


def guard(knock: Knock) -> list[str]:
    findings: list[dict[str, str]] = knock.call("guard", {})["findings"]
    return sorted(finding["kind"] for finding in findings)


def stop(knock: Knock, grant: dict[str, Any]) -> None:
    knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])


class TestAGrantThatRan:
    def test_it_ends_on_time(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        change(knock)
        assert len(knock.rules()) == 3
        knock.expire(grant)
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["status"] == "expired"
        knock.clock.advance(LATER)
        assert guard(knock) == []

    def test_it_ends_with_an_earlier_grant_behind_the_same_address(self, knock: Knock) -> None:
        """They share rules, which carry the first one's tag; the second has their ids in its own state.

        The new store knows no claims, so the first to end closes them for both.
        """
        first = knock.open("alice", duration="1h")
        second = knock.open("bob", duration="8h")
        change(knock)
        knock.expire(first)
        assert knock.rules() == set()
        knock.expire(second)
        assert knock.grant(second["id"])["status"] == "expired"

    def test_it_ends_on_time_where_a_grant_that_ended_had_opened_its_rules(self, knock: Knock) -> None:
        first = knock.open("alice", duration="1h")
        second = knock.open("bob", duration="8h")
        knock.expire(first)
        change(knock)
        assert len(knock.rules()) == 3
        knock.expire(second)
        assert knock.rules() == set()

    def test_stopped_in_the_console_it_is_closed(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        change(knock)
        stop(knock, grant)
        knock.wait(lambda: knock.rules() == set(), "its rules stay")
        knock.wait(lambda: knock.closings() == ["SUCCEEDED"], "its closing does not end", step=SETTLES)
        assert knock.grant(grant["id"])["status"] == "revoked"

    def test_its_owner_can_end_it(self, knock: Knock) -> None:
        grant = knock.open(duration="8h")
        change(knock)
        answer = knock.request("DELETE", f"/grants/{grant['id']}")
        assert (answer.status, answer.json["status"]) == (200, "revoked")
        assert knock.rules() == set()
        knock.wait_status(grant["id"], "ABORTED")

    def test_its_owner_sees_it(self, knock: Knock) -> None:
        """From its execution, as one that has no record yet."""
        grant = knock.open(duration="8h")
        change(knock)
        assert knock.grant(grant["id"], "alice")["status"] == "pending"

    def test_renewed_it_goes_on_to_its_own_end(self, knock: Knock) -> None:
        old = knock.open(duration="1h")
        change(knock)
        answer = knock.request("POST", "/knock", body={"duration": "8h", "renews": old["id"]})
        assert answer.status == 201, answer.text
        knock.expire(old)
        knock.expire(answer.json)
        assert knock.rules() == set()


class TestAGrantThatIsOpening:
    def test_its_rule_of_a_run_on_the_old_store_is_found(self, knock: Knock) -> None:
        """Its first run died after EC2 had made a rule; the second one has the new store."""
        runs: list[str] = []

        def count(name: str, _payload: object) -> None:
            if name == f"{STACK}-authorize":
                runs.append(name)
                if len(runs) == 2:
                    change(knock)

        knock.before_invoke = count
        injector = Injector((f"{STACK}-authorize: ec2.AuthorizeSecurityGroupIngress", 0), "crash after")
        knock.around = injector.function
        with injecting(injector), knock.ticking(timedelta(milliseconds=50)):
            grant = knock.open(duration="8h")
        assert (injector.hit is not None, len(runs)) == (True, 2)
        assert len(knock.rules()) == 3
        knock.expire(grant)
        assert knock.rules() == set()


class TestANewGrantBesideAnOldOne:
    def test_it_shares_the_rules_and_closes_them_at_its_own_end(self, knock: Knock) -> None:
        """By their tags they are Knock's own, where EC2 calls them duplicates."""
        old = knock.open("alice", duration="1h")
        change(knock)
        new = knock.open("bob", duration="8h")
        assert len(knock.rules()) == 3
        knock.expire(old)
        assert len(knock.rules()) == 3
        knock.expire(new)
        assert knock.rules() == set()

    def test_where_it_ends_first_no_rule_is_open_past_the_old_ones_end(self, knock: Knock) -> None:
        old = knock.open("alice", duration="8h")
        change(knock)
        knock.expire(knock.open("bob", duration="1h"))
        knock.expire(old)
        assert knock.rules() == set()


class TestTheGuard:
    def test_it_closes_the_rules_of_a_running_grant_that_has_no_claim(self, knock: Knock) -> None:
        """No record and no claim explain the rules, so it closes them, early, and reports that."""
        grant = knock.open(duration="8h")
        change(knock)
        knock.clock.advance(LATER)
        kinds = guard(knock)
        assert set(kinds) == {"rule without a live claim", "execution of an ended grant"}
        assert knock.rules() == set()
        knock.expire(grant)
        assert knock.rules() == set()

    def test_a_grant_whose_stop_event_was_lost_is_closed(self, knock: Knock) -> None:
        knock.deliveries.drop(lambda _event: True)
        grant = knock.open(duration="8h")
        change(knock)
        stop(knock, grant)
        knock.clock.advance(LATER)
        assert len(knock.rules()) == 3
        assert set(guard(knock)) == {"rule without a live claim"}
        assert knock.rules() == set()
        assert guard(knock) == []

    @pytest.mark.parametrize("end", ["DELETE", "stop"])
    def test_rules_of_a_grant_ended_early_that_another_had_opened_are_closed(
        self, knock: Knock, end: str
    ) -> None:
        """They have an ended grant's tag, and an execution passes on the ids in its state only at its end."""
        first = knock.open("alice", duration="1h")
        second = knock.open("bob", duration="8h")
        knock.expire(first)
        change(knock)
        if end == "stop":
            stop(knock, second)
            knock.wait(lambda: knock.closings() == ["SUCCEEDED"], "its closing does not end", step=SETTLES)
        else:
            assert knock.request("DELETE", f"/grants/{second['id']}", key="bob").status == 200
        knock.clock.advance(LATER)
        assert set(guard(knock)) == {"rule without a live claim"}
        assert knock.rules() == set()
        assert guard(knock) == []

    def test_a_closing_whose_run_died_is_finished(self, knock: Knock) -> None:
        """It had recorded the end in the old store and revoked no rule; its next try has the new store."""
        grant, crashed = (
            knock.open(duration="1h"),
            Injector((f"{STACK}-revoke: ec2.RevokeSecurityGroupIngress", 0), "crash before"),
        )
        tries: list[str] = []

        def count(name: str, _payload: object) -> None:
            if name == f"{STACK}-revoke":
                tries.append(name)
                if len(tries) == 2:
                    change(knock)

        knock.before_invoke, knock.around = count, crashed.function
        with injecting(crashed):
            knock.advance_to(grant["expires_at"])
            knock.wait(lambda: len(tries) > 1, "it is not tried again", step=timedelta(seconds=1))
            knock.wait_status(grant["id"], "SUCCEEDED", step=timedelta(seconds=1))
        assert crashed.hit
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["status"] == "expired"


class TestChangedTwice:
    def test_nothing_stays_open_past_its_end(self, knock: Knock) -> None:
        """Grants that ended in between left claims in the first store, which are not found again."""
        first = knock.open("alice", duration="8h")
        second = knock.open("bob", duration="1h")
        change(knock)
        assert knock.request("DELETE", f"/grants/{first['id']}").status == 200
        third = knock.open("bob", duration="2h")
        change(knock, "3ghi")
        knock.expire(second)
        knock.expire(third)
        assert knock.rules() == set()
