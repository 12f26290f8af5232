"""How long things take: each number in `grants.timing`, and what it is derived from, tied together.

attempt ── 20 s ──┬─ 10 s ─┬────────── 150 s ──────────┐ SETTLES
written  function │  call  │ EC2's lists               │ 180 s
         killed   │ over   │ (130 s have been seen)    │
retries for RuleUnsettled ────────────────────────────── 235 s and more ─┐
RevocationLate ───────────────────────────────────────── 240 s           │
the guard's GRACE ─────────────────────────────────────────────────────── 15 min
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from grants import closing, ledger, policy, timing, wiring
from tests.statemachine.definition import CLOSING, GRANT, delays, load
from tests.template.transform import TEMPLATE, read

SETTLES = timing.SETTLES.total_seconds()
ACTS = timing.ACTS.total_seconds()
CALL = timing.CALL.total_seconds()

# Seconds. The longest that an EC2 list has been seen to lag: a fact of the field, not of this code.
# https://github.com/hashicorp/terraform/issues/6325
SEEN = 130

TASKS = {
    name: state
    for machine in (GRANT, CLOSING)
    for name, state in load(machine)["States"].items()
    if state["Type"] == "Task"
}
UNTIL_FORCE = ("RevokeIngress", "RollBackIngress", "Close")
every_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    declared: dict[str, Any] = read()["Resources"]
    return declared


def retrier(name: str, error: str) -> dict[str, Any]:
    """Give the retrier of a task that an error meets: the first that names it, or all."""
    first: dict[str, Any] = next(
        candidate
        for candidate in TASKS[name]["Retry"]
        if {error, "States.ALL"} & set(candidate["ErrorEquals"])
    )
    return first


def patience(name: str, error: str) -> float:
    """Sum the pauses of a task's retries, in seconds: the least time it goes on for; with jitter, 0."""
    retry = retrier(name, error)
    return 0.0 if "JitterStrategy" in retry else sum(delays(retry))


class TestSettles:
    def test_ec2_may_lag_as_long_as_it_has_been_seen_to(self) -> None:
        """Mutation: functions/grants/timing.py:
        `SETTLES = ACTS + CALL + EC2_LAG` -> `SETTLES = (ACTS + CALL + EC2_LAG) / 2`
        Mutation: functions/grants/timing.py: `SETTLES = ACTS + CALL + EC2_LAG` -> `SETTLES = EC2_LAG`
        """
        assert SETTLES - ACTS - CALL > SEEN
        assert timing.EC2_LAG.total_seconds() > SEEN

    @pytest.mark.parametrize("function", ["AuthorizeFunction", "RevokeFunction"])
    def test_a_function_acts_until_lambda_kills_it(self, resources: dict[str, Any], function: str) -> None:
        """Mutation: functions/grants/timing.py:
        `ACTS = timedelta(seconds=20)` -> `ACTS = timedelta(seconds=15)`
        """
        assert resources[function]["Properties"]["Timeout"] == ACTS

    @every_task
    def test_lambda_kills_a_function_before_its_task_times_out(self, name: str) -> None:
        assert TASKS[name]["TimeoutSeconds"] >= ACTS + 5

    def test_the_guard_may_act_longer_than_the_functions_of_a_grant(self, resources: dict[str, Any]) -> None:
        assert resources["GuardFunction"]["Properties"]["Timeout"] > ACTS

    def test_the_ledger_and_closing_wait_for_the_same_time(self) -> None:
        assert ledger.SETTLES is closing.SETTLES is timing.SETTLES


class TestClients:
    def test_a_call_to_ec2_is_made_once_and_is_over_within_its_time(self) -> None:
        """Mutation: functions/grants/wiring.py:
        `    read_timeout=READ_TIMEOUT,` -> `    read_timeout=READ_TIMEOUT * 2,`
        """
        assert wiring.ONCE.connect_timeout + wiring.ONCE.read_timeout == CALL == 10
        assert wiring.ONCE.retries == {"mode": "standard", "total_max_attempts": 1}

    def test_an_answer_that_ec2_gives_in_time_can_be_recorded_before_the_function_is_killed(self) -> None:
        """Mutation: functions/grants/timing.py:
        `CONNECT_TIMEOUT, READ_TIMEOUT = 2, 8` -> `CONNECT_TIMEOUT, READ_TIMEOUT = 2, 16`
        """
        assert CALL + timing.PROGRESS.total_seconds() + 5 < ACTS

    def test_force_leaves_most_of_its_time_to_ec2(self) -> None:
        """It tries to read and to write trail and ledger, each by a client that does not wait long.

        Mutation: functions/grants/timing.py:
        `, FORCE_READ_TIMEOUT = 1, 2` -> `, FORCE_READ_TIMEOUT = 2, 8`
        """
        assert wiring.HASTY.retries["total_max_attempts"] == 1
        assert wiring.HASTY.connect_timeout == timing.FORCE_CONNECT_TIMEOUT
        assert wiring.HASTY.read_timeout == timing.FORCE_READ_TIMEOUT
        assert timing.FORCE_PATIENCE.total_seconds() + CALL < ACTS

    def test_other_clients_give_up_before_the_function_is_killed(self) -> None:
        once = wiring.TWICE.connect_timeout + wiring.TWICE.read_timeout
        assert once * wiring.TWICE.retries["total_max_attempts"] < ACTS


class TestPatience:
    @pytest.mark.parametrize("name", ["AuthorizeIngress", *UNTIL_FORCE])
    def test_a_task_tries_again_until_every_attempt_is_quiescent(self, name: str) -> None:
        """Without jitter: with it, the pauses could add up to nothing.

        Mutation: functions/grants/timing.py:
        `SETTLES = ACTS + CALL + EC2_LAG` -> `SETTLES = (ACTS + CALL + EC2_LAG) * 2`
        """
        assert patience(name, "RuleUnsettled") > 1.25 * SETTLES

    @pytest.mark.parametrize("name", UNTIL_FORCE)
    def test_a_revocation_waits_for_two_attempts_one_after_the_other(self, name: str) -> None:
        """One may begin just before the grant ends, and another before the first is quiescent."""
        assert patience(name, "RuleUnsettled") > 2 * SETTLES

    @pytest.mark.parametrize("name", UNTIL_FORCE)
    def test_an_outage_of_the_stores_leads_to_force_long_before_the_guard_acts(self, name: str) -> None:
        most = sum(delays(retrier(name, "StoreUnavailable")))
        assert most < timing.GRACE.total_seconds() / 4

    def test_the_guard_leaves_alone_a_grant_that_is_being_revoked(self) -> None:
        """All the tries of a task that raises RuleUnsettled, each of which may run until it is killed.

        Mutation: functions/grants/timing.py: `timedelta(minutes=15)` -> `timedelta(minutes=8)`
        """
        for name in UNTIL_FORCE:
            waits = delays(retrier(name, "RuleUnsettled"))
            assert sum(waits) + ACTS * (len(waits) + 1) < timing.GRACE.total_seconds(), name
        assert timing.GRACE > 4 * timing.SETTLES

    def test_the_guard_leaves_alone_a_grant_that_is_being_authorized(self) -> None:
        waits = delays(retrier("AuthorizeIngress", "RuleUnsettled"))
        assert sum(waits) + ACTS * (len(waits) + 1) < timing.GRACE.total_seconds()

    def test_tags_that_do_not_show_are_read_again_until_they_are_late(self) -> None:
        assert patience("AuthorizeIngress", "RuleUnsettled") > 10 * timing.TAGS_LAG.total_seconds()

    def test_the_retries_of_a_task_end_before_its_request_is_too_old(self) -> None:
        """The second decision takes no input older than this: the longest that all retries take, with room.

        Mutation: functions/grants/policy.py:
        `OLDEST_REQUEST = timedelta(hours=1)` -> `OLDEST_REQUEST = timedelta(minutes=10)`
        """
        task = TASKS["AuthorizeIngress"]
        tries = 1 + sum(len(delays(retry)) for retry in task["Retry"])
        most = sum(sum(delays(retry)) for retry in task["Retry"]) + tries * task["TimeoutSeconds"]
        assert most < policy.OLDEST_REQUEST.total_seconds()

    def test_clocks_differ_by_less_than_a_request_may_be_ahead(self) -> None:
        assert timing.SKEW < policy.CLOCKS_DIFFER


class TestAlarms:
    def test_a_revocation_is_late_only_after_an_attempt_is_quiescent_and_its_retry_is_over(
        self, resources: dict[str, Any]
    ) -> None:
        """Mutation: template.yaml: `Threshold: 240000` -> `Threshold: 120000`"""
        alarm = resources["RevocationLateAlarm"]["Properties"]
        pause = max(max(delays(retrier(name, "RuleUnsettled"))) for name in UNTIL_FORCE)
        assert alarm["MetricName"] == "RevocationLag"
        assert SETTLES + pause + ACTS < alarm["Threshold"] / 1000 < timing.GRACE.total_seconds()

    def test_the_guards_interval_is_longer_than_its_grace(self) -> None:
        (hours,) = re.findall(r"ScheduleExpression: rate\((\d+) hours?\)", TEMPLATE.read_text())
        assert timedelta(hours=int(hours)) > timing.GRACE
