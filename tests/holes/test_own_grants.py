"""Grants of one key behind one address, as of parallel jobs: the end of one leaves the others open."""

from __future__ import annotations

import threading
from typing import Any

from tests.harness import Knock

CIDR = "203.0.113.7/32"


class TestParallelJobs:
    """Mutation: functions/grants/ledger.py:
    `    ledger = replace(ledger, rules=rules)` -> `    ledger = replace(ledger, rules=rules, claims={})`
    """

    def test_ending_one_early_leaves_the_other_open(self, knock: Knock) -> None:
        first = knock.open(targets=["bastion"], duration="1h")
        second = knock.open(targets=["bastion"], duration="10m")
        assert knock.request("DELETE", f"/grants/{second['id']}").status == 200
        assert len(knock.rules()) == 1
        assert knock.grant(first["id"])["status"] == "active"
        assert knock.execution_status(first["id"]) == "RUNNING"
        knock.expire(first)
        assert knock.rules() == set()

    def test_the_end_of_the_shorter_one_leaves_the_other_open(self, knock: Knock) -> None:
        first = knock.open(targets=["bastion"], duration="1h")
        knock.expire(knock.open(targets=["bastion"], duration="10m"))
        assert len(knock.rules()) == 1
        assert knock.grant(first["id"])["status"] == "active"

    def test_a_stop_a_renewal_and_a_failure_end_one_grant_each(self, knock: Knock) -> None:
        first = knock.open(duration="1h")
        stopped = knock.open(duration="1h")
        knock.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
        knock.wait(lambda: knock.closings() == ["SUCCEEDED"], "its closing does not end")
        renewed = knock.open(duration="1h")
        last = knock.open(duration="2h", renews=renewed["id"])
        full = knock.add_group("full", "5432/tcp")
        for port in range(1, 61):
            knock.add_rule(full, port, "192.0.2.0/24")
        knock.add_key("eve", targets="bastion full", max_duration="1h")
        assert knock.request("POST", "/knock", key="eve").status == 409
        assert len(knock.rules(*knock.groups["bastion"], *knock.groups["web"])) == 3
        statuses = [knock.grant(grant["id"])["status"] for grant in (first, stopped, renewed, last)]
        assert statuses == ["active", "revoked", "superseded", "active"]

    def test_jobs_at_once_each_have_a_grant_and_an_open_rule(self, knock: Knock) -> None:
        opened: list[tuple[int, Any]] = []

        def job() -> None:
            grant = knock.open("ci", targets=["bastion"], duration="10m")
            opened.append((len(knock.rules()), grant["id"]))
            assert knock.request("DELETE", f"/grants/{grant['id']}", key="ci").status == 200

        jobs = [threading.Thread(target=job) for _ in range(8)]
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join()
        assert [rules for rules, _ in opened] == [1] * 8
        assert len({grant_id for _, grant_id in opened}) == 8
        assert knock.rules() == set()
