"""A stack whose TrailStore was changed in CloudFormation's own console while grants ran.

Nothing can refuse that there. The new store is empty: it knows neither the grants nor their claims. Their
rules are found by what their executions say and by EC2's tags. Access may end early then, and never late.
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
    """Change to a store of the other kind: a new and empty one, since `word` is of its names."""
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

    def test_and_one_of_another_behind_the_same_address_that_came_before(self, knock: Knock) -> None:
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

    def test_and_one_whose_rules_another_opened_that_is_over(self, knock: Knock) -> None:
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


class TestOneThatIsOpening:
    def test_what_it_opened_before_is_found(self, knock: Knock) -> None:
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


class TestANewOneBesideIt:
    def test_it_shares_the_rules_and_closes_them_at_its_own_end(self, knock: Knock) -> None:
        """Found to be Knock's own by their tags, when EC2 says that they are there."""
        old = knock.open("alice", duration="1h")
        change(knock)
        new = knock.open("bob", duration="8h")
        assert len(knock.rules()) == 3
        knock.expire(old)
        assert len(knock.rules()) == 3
        knock.expire(new)
        assert knock.rules() == set()

    def test_it_ends_first_and_leaves_nothing_of_the_other_past_its_end(self, knock: Knock) -> None:
        old = knock.open("alice", duration="8h")
        change(knock)
        knock.expire(knock.open("bob", duration="1h"))
        knock.expire(old)
        assert knock.rules() == set()


class TestTheGuard:
    def test_it_leaves_a_grant_that_runs_alone_until_its_rules_have_no_claim(self, knock: Knock) -> None:
        """No record and no claim explain the rules, so it closes them: early, and never late. It says so."""
        grant = knock.open(duration="8h")
        change(knock)
        knock.clock.advance(LATER)
        found = guard(knock)
        assert set(found) == {"rule without a live claim", "execution of an ended grant"}
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
    def test_rules_of_one_ended_early_that_another_opened_are_closed(self, knock: Knock, end: str) -> None:
        """They carry the tag of one that is over, and the ids in an execution's state are told at its end."""
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

    def test_a_closing_that_died_half_way_is_finished(self, knock: Knock) -> None:
        """It had recorded the end in the old store and closed nothing; its next try has the new one."""
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


class TestBackAgain:
    def test_nothing_stays_open_past_its_end(self, knock: Knock) -> None:
        """What was ended in between left claims in the first store, which is not found again."""
        first = knock.open("alice", duration="8h")
        second = knock.open("bob", duration="1h")
        change(knock)
        assert knock.request("DELETE", f"/grants/{first['id']}").status == 200
        third = knock.open("bob", duration="2h")
        change(knock, "3ghi")
        knock.expire(second)
        knock.expire(third)
        assert knock.rules() == set()
