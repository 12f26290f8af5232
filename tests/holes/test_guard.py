"""The drift guard beside other operations: it closes no rule of a live grant, and looks at everything."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any
from unittest import mock

from grants.errors import EngineUnavailable
from grants.executions import Executions
from grants.ingress import Ingress
from grants.values import show_time
from tests.harness import STACK, Knock

CIDR = "203.0.113.7/32"
LATER = timedelta(minutes=16)


def damage(knock: Knock, domain: str, item: str, name: str, value: str) -> None:
    knock.client("sdb").put_attributes(
        DomainName=os.environ[f"{domain.upper()}_DOMAIN"],
        ItemName=item,
        Attributes=[{"Name": name, "Value": value, "Replace": True}],
    )


class TestGuard:
    def test_it_closes_no_orphan_that_a_knock_adopts_meanwhile(self, knock: Knock) -> None:
        """After it was listed, or just before it is revoked.

        Mutation: functions/grants/ledger.py:
        `        if not (rule.closing and rule.ids):` -> `        if True:`
        """
        for method in ("ours", "revoke"):
            grants: list[dict[str, Any]] = []
            knock.add_rule(knock.groups["bastion"][0], 22, CIDR, stack=STACK)
            real = getattr(Ingress, method)

            def knock_meanwhile(
                *arguments: Any, real: Any = real, grants: list[Any] = grants, method: str = method
            ) -> Any:
                rules = real(*arguments) if method == "ours" else None
                if not grants:
                    grants.append({})
                    grants[0] = knock.open(targets=["bastion"], duration="1h")
                return rules if method == "ours" else real(*arguments)

            with mock.patch.object(Ingress, method, knock_meanwhile):
                knock.call("guard", {})
            (grant,) = grants
            assert len(knock.rules()) == 1, method
            assert knock.grant(grant["id"])["status"] == "active"
            knock.expire(grant)
            assert knock.rules() == set()
            knock.clock.advance(LATER)
            assert knock.call("guard", {})["findings"] == []

    def test_a_failing_call_stops_no_other_repair(self, knock: Knock) -> None:
        """Mutation: functions/grants/drift.py:
        `            yield Finding(NOT_LOOKED, name, "", f"failed: {error}")` -> `            raise`
        """
        knock.deliveries.drop(lambda _event: True)
        grants = [knock.open(caller=f"198.51.100.{n}", targets=["bastion"]) for n in range(3)]
        for grant in grants:
            knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.clock.advance(LATER)
        real, calls = Executions.describe, [0]

        def second_fails(self: Executions, grant_id: str) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise EngineUnavailable("ThrottlingException")
            return real(self, grant_id)

        with mock.patch.object(Executions, "describe", second_fails):
            kinds = sorted(finding["kind"] for finding in knock.call("guard", {})["findings"])
        assert kinds == ["could not look", *["live grant without an execution"] * 2]
        assert len(knock.rules()) == 1
        knock.call("guard", {})
        assert knock.rules() == set()

    def test_an_unreadable_item_blocks_neither_the_guard_nor_lists_nor_its_source(self, knock: Knock) -> None:
        """Mutation: functions/grants/trail.py:
        `            except StoreRefused as error:` -> `            except ValueError as error:`

        Mutation: functions/grants/trail.py:
        `                logger.exception("record_unreadable", extra={"grant_id": name})` ->
        `                raise`
        """
        knock.deliveries.drop(lambda _event: True)
        broken, stopped = knock.open(targets=["bastion"]), knock.open("bob", targets=["web"])
        damage(knock, "trail", broken["id"], "input_00", "{")
        knock.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
        knock.clock.advance(LATER)
        kinds = {finding["kind"] for finding in knock.call("guard", {})["findings"]}
        assert kinds == {"item that cannot be read", "live grant without an execution"}
        listed = knock.request("GET", "/grants", key="operator", status="all").json["grants"]
        assert [grant["id"] for grant in listed] == [stopped["id"]]
        grant = knock.open(targets=["web"])
        assert knock.request("DELETE", f"/grants/{grant['id']}").status == 200
        assert knock.rules() == {(knock.groups["bastion"][0], 22, CIDR)}

    def test_a_time_in_the_future_does_not_hide_a_grant_from_it(self, knock: Knock) -> None:
        """Mutation: functions/grants/drift.py:
        `        return abs(self.now - at) < GRACE` -> `        return self.now - at < GRACE`
        """
        knock.deliveries.drop(lambda _event: True)
        grant = knock.open()
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        future = show_time(knock.clock.now() + timedelta(days=1000))
        damage(knock, "trail", grant["id"], "state", "revoked")
        damage(knock, "trail", grant["id"], "ended_at", future)
        knock.clock.advance(LATER)
        kinds = {finding["kind"] for finding in knock.call("guard", {})["findings"]}
        assert kinds == {"time in the future", "ended grant not closed"}
        assert knock.rules() == set()
