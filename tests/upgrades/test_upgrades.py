"""A stack is updated while grants run: none is lost and none prolonged.

A running execution goes on with the definition it began with, and calls the functions of today, by name. So
nothing it needs may vanish or change its name, no role may lose what its function still does, and old inputs
must still be read. https://docs.aws.amazon.com/step-functions/latest/dg/concepts-read-consistency.html
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from grants.values import Grant, cut_to_milliseconds, parse_time, round_up
from tests.conftest import ROOT
from tests.harness import MACHINE, Knock, running
from tools.snapshot import newest, snapshot

INPUTS = sorted((ROOT / "tests" / "fixtures" / "inputs").glob("*.json"))
RELEASE = json.loads(newest().read_text())

# Logical ids of the newest release that are gone or replaced on purpose: why no running grant needs them.
RETIRED: dict[str, str] = {}
# What roles of the newest release could do and need not any more: {role: {permission: why}}.
SHRUNK: dict[str, dict[str, str]] = {}
WHAT_TO_DO = (
    f"since {newest().name}: keep it, or write down in this test why no running grant needs it "
    "(docs/upgrading.md says what it takes)"
)


def lost(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Name what an update from one snapshot to another would take from running grants, or from people."""
    for name, resource in before["resources"].items():
        if name not in now["resources"]:
            yield f"{name} is gone"
        elif now["resources"][name] != resource:
            yield f"{name} is replaced: {resource} is now {now['resources'][name]}"
    for role, permissions in before["roles"].items():
        for permission in sorted(set(permissions) - set(now["roles"].get(role, []))):
            yield f"{role} may no longer {permission}"
    yield from _lost_by_people(before, now)


def _lost_by_people(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for kind in ("parameters", "outputs"):
        for name in before[kind]:
            if name not in now[kind]:
                yield f"{kind[:-1]} {name} is gone"
    for name in now["parameters"]:
        if name not in before["parameters"] and "Default" not in now["parameters"][name]:
            yield f"parameter {name} is new and has no default"


def excused(loss: str) -> bool:
    of_role = any(
        loss == f"{role} may no longer {permission}" for role in SHRUNK for permission in SHRUNK[role]
    )
    return of_role or loss.split(" ")[0] in RETIRED


class TestTheTemplate:
    def test_nothing_a_running_grant_needs_is_renamed_replaced_or_taken_away(self) -> None:
        assert [loss for loss in lost(RELEASE, snapshot()) if not excused(loss)] == [], WHAT_TO_DO

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda now: now["resources"].pop("RevokeFunction"), "RevokeFunction is gone"),
            (
                lambda now: now["resources"]["RevokeFunction"]["named"].update(FunctionName="other"),
                "RevokeFunction is replaced",
            ),
            (
                lambda now: now["resources"]["Grants"]["named"].update(StateMachineType="EXPRESS"),
                "Grants is replaced",
            ),
            (lambda now: now["resources"]["Trail"].pop("DeletionPolicy"), "Trail is replaced"),
            (
                lambda now: now["resources"]["LastRules"].update(Condition="Sometimes"),
                "LastRules is replaced",
            ),
            (
                lambda now: now["roles"]["RevokeRole"].remove(
                    next(
                        permission
                        for permission in now["roles"]["RevokeRole"]
                        if "RevokeSecurityGroupIngress" in permission
                    )
                ),
                'RevokeRole may no longer ["ec2:RevokeSecurityGroupIngress"',
            ),
            (lambda now: now["parameters"].pop("MaxDuration"), "parameter MaxDuration is gone"),
            (lambda now: now["parameters"].update(New={"Type": "String"}), "parameter New is new"),
            (lambda now: now["outputs"].remove("ApiUrl"), "output ApiUrl is gone"),
        ],
    )
    def test_each_kind_of_loss_is_named(self, change: Callable[[Any], object], expected: str) -> None:
        before = snapshot()
        now = copy.deepcopy(before)
        change(now)
        assert [loss[: len(expected)] for loss in lost(before, now)] == [expected]

    def test_every_excuse_is_of_a_part_of_the_release_and_has_a_reason(self) -> None:
        assert set(RETIRED) <= set(RELEASE["resources"])
        assert all(RETIRED.values())
        for role, permissions in SHRUNK.items():
            assert set(permissions) <= set(RELEASE["roles"][role])
            assert all(permissions.values())


class TestOldInputs:
    """Every input version that an execution may have been started with, until its rules are closed."""

    @pytest.fixture
    def knock(self) -> Iterator[Knock]:
        with running() as stack:
            yield stack

    def input_of(self, knock: Knock, path: Path) -> dict[str, Any]:
        """Bring an input to this stack's groups and to now, under the id that is then its own."""
        old, now = Grant.from_input(json.loads(path.read_text())), knock.clock.now()
        grant = Grant.decide(
            old.principal,
            old.source,
            tuple(replace(target, groups=tuple(knock.groups[target.name])) for target in old.targets),
            cut_to_milliseconds(now),
            round_up(now + timedelta(minutes=10)),
            reason=old.reason,
            by_name=old.by_name,
            nonce=old.nonce,
        )
        return grant.as_input()

    def started(self, knock: Knock, grant_input: dict[str, Any]) -> None:
        knock.client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=grant_input["grant_id"], input=json.dumps(grant_input)
        )

    @pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
    def test_it_opens_holds_and_closes(self, knock: Knock, path: Any) -> None:
        """Mutation: a `Grant.from_input` that requires a field which the first version lacks."""
        grant_input = self.input_of(knock, path)
        grant_id = grant_input["grant_id"]
        self.started(knock, grant_input)
        knock.wait(lambda: knock.grant(grant_id)["status"] == "active", "it does not open")
        assert {cidr for _, _, cidr in knock.rules()} == {grant_input["source"]}
        knock.clock.advance(parse_time(grant_input["expires_at"]) - knock.clock.now())
        knock.wait_status(grant_id, "SUCCEEDED")
        assert knock.rules() == set()
        assert knock.grant(grant_id)["status"] == "expired"

    @pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
    @pytest.mark.parametrize("how", ["expired", "failed", "force"])
    def test_its_state_alone_is_enough_to_close_it(self, knock: Knock, path: Any, how: str) -> None:
        """As each state of an execution that began before the update calls the revoke function."""
        grant_input = self.input_of(knock, path)
        rules = knock.call("authorize", {"grant": grant_input})
        assert len(knock.rules()) == len(rules) == 1
        state = grant_input | (
            {"error": {"Error": "PoolExhausted", "Cause": "{}"}} if how == "failed" else {"rules": rules}
        )
        knock.call("revoke", {"how": how, "grant": state})
        assert knock.rules() == set()
        assert knock.grant(grant_input["grant_id"])["status"] == ("failed" if how == "failed" else "expired")

    def test_the_newest_version_is_among_them(self, knock: Knock) -> None:
        """A new version of the input brings its fixture with it."""
        grant = knock.open()
        versions = {json.loads(path.read_text())["version"] for path in INPUTS}
        assert json.loads(knock.execution(grant["id"])["input"])["version"] in versions
