"""Every AWS call of every function fails in every way, and the invariants hold all the same.

The calls are not listed by hand: a clean run of each kind of grant is recorded, then run again once for
each call in it, with the fault at that call. A call added to the code is covered the day it is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from grants.values import parse_time
from tests.faults.injector import MODES, Injector, injecting
from tests.harness import Knock, running


@dataclass
class Run:
    """One run of one kind of grant, from an address of its own."""

    knock: Knock
    number: int
    injector: Injector
    static: dict[tuple[str, int], str] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)  # of the knocks

    @property
    def address(self) -> str:
        return f"198.18.{self.number // 250}.{self.number % 250 + 1}"

    @property
    def cidr(self) -> str:
        return f"{self.address}/32"

    def open(self, key: str = "alice", **body: object) -> Any:
        answer = self.knock.request("POST", "/knock", key=key, body=body, caller=self.address)
        self.answers.append(answer.status)
        return answer

    def rules(self) -> set[tuple[str, int]]:
        """List what is open for the address, in the groups with room: asked often, and those are full."""
        groups = self.knock.groups
        with_room = [*groups["bastion"], *groups["web"], *groups["full"][1:]]
        return {(group, port) for group, port, cidr in self.knock.rules(*with_room) if cidr == self.cidr}

    def grants(self) -> list[dict[str, Any]]:
        query = {"status": "all", "source": self.cidr}
        with self.injector.only_looking():
            answer = self.knock.request("GET", "/grants", key="operator", **query)
        found: list[dict[str, Any]] = answer.json["grants"]
        return found

    def running(self) -> list[dict[str, Any]]:
        return [g for g in self.grants() if self.knock.execution_status(g["id"]) == "RUNNING"]

    def revoke(self) -> None:
        """End alice's grants early, as a person does: again, when told to try again."""
        for grant in self.grants():
            if grant["principal"]["name"] == "alice" and grant["status"] in ("pending", "active"):
                for _ in range(5):
                    if self.knock.request("DELETE", f"/grants/{grant['id']}").status == 200:
                        break
                    self.knock.clock.advance(timedelta(seconds=70))

    def stop(self) -> None:
        for grant in self.running():
            if grant["principal"]["name"] == "alice":
                self.knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])

    def foreign(self, port: int) -> None:
        """Put a static rule where the grant wants one."""
        permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
        group = self.knock.groups["web"][0]
        answer = self.knock.client("ec2").authorize_security_group_ingress(
            GroupId=group, IpPermissions=[permission | {"IpRanges": [{"CidrIp": self.cidr}]}]
        )
        self.static[group, port] = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]

    def check_foreign(self) -> None:
        """The static rules are the ones that were put there, untouched."""
        for rule_id in self.static.values():
            (rule,) = self.knock.client("ec2").describe_security_group_rules(SecurityGroupRuleIds=[rule_id])[
                "SecurityGroupRules"
            ]
            assert not rule.get("Tags")
            assert not rule.get("Description")


BOTH = ["bastion", "web"]
FULL = range(1, 61)  # the ports of the static rules that fill a group


def one_rule(run: Run) -> None:
    run.open(targets=["bastion"], duration="10m")


def two_ports(run: Run) -> None:
    run.open(targets=["web"], duration="10m")


def pool_spill(run: Run) -> None:
    run.open(targets=["full"], duration="10m")


def pool_exhausted(run: Run) -> None:
    run.open(targets=["bastion", "none"], duration="10m")


def overlap(run: Run) -> None:
    run.open("bob", targets=BOTH, duration="6h")
    run.open("alice", targets=BOTH, duration="10m")


def foreign(run: Run) -> None:
    run.foreign(443)
    run.open(targets=BOTH, duration="10m")


def renewal(run: Run) -> None:
    run.open(targets=BOTH, duration="10m")
    run.open(targets=BOTH, duration="20m")


def revocation(run: Run) -> None:
    run.open(targets=BOTH, duration="10m")
    run.revoke()


def stopped(run: Run) -> None:
    run.open(targets=BOTH, duration="10m")
    run.stop()


# Each kind, and what comes of it where nothing fails: the knocks' answers, and how the grants end.
KINDS: dict[Callable[[Run], None], tuple[list[int], list[str]]] = {
    one_rule: ([201], ["expired"]),
    two_ports: ([201], ["expired"]),
    pool_spill: ([201], ["expired"]),
    pool_exhausted: ([409], ["failed"]),
    overlap: ([201, 201], ["expired", "expired"]),
    foreign: ([201], ["expired"]),
    renewal: ([201, 201], ["expired", "superseded"]),
    revocation: ([201], ["revoked"]),
    stopped: ([201], ["revoked"]),
}


def settle(run: Run, injector: Injector) -> None:
    """Let time pass until no execution of alice's runs, and check what must hold then and at the very end."""
    knock = run.knock

    def alices_over() -> bool:
        return not [grant for grant in run.running() if grant["principal"]["name"] == "alice"]

    knock.wait(alices_over, f"{injector.hit}: an execution never ends", 60, step=timedelta(minutes=3))

    # One that ran to its end has ended its grant; another does by an event, tried again when it fails.
    outlives = f"{injector.mode} at {injector.hit}: alice's grant outlives its execution"

    def alices_ended() -> bool:
        live = [g for g in run.grants() if (g["principal"]["name"], g["status"]) == ("alice", "active")]
        assert "SUCCEEDED" not in {knock.execution_status(grant["id"]) for grant in live}, outlives
        return not live

    knock.wait(alices_ended, outlives, 60, step=timedelta(seconds=30))
    live = [grant for grant in run.grants() if grant["status"] == "active"]
    wanted = set(run.static)
    for grant in live:
        assert grant["principal"]["name"] == "bob"
        wanted |= {(knock.groups["bastion"][0], 22)}
        wanted |= {(knock.groups["web"][0], port) for port in (80, 443)}
    check_open(run, wanted, injector)
    for grant in live:
        knock.advance_to(grant["expires_at"])
    knock.wait(
        lambda: not run.running(), f"{injector.hit}: bob's grant never ends", 60, step=timedelta(minutes=3)
    )
    check_open(run, set(run.static), injector)
    run.check_foreign()
    started = [grant["id"] for grant in run.grants() if knock.execution_status(grant["id"])]
    knock.wait(
        lambda: all(is_closed(knock, grant_id) for grant_id in started),
        f"{injector.mode} at {injector.hit}: a grant is never recorded as closed",
        60,
        step=timedelta(seconds=30),
    )
    # All this without the drift guard. What it finds is a grant whose knock died before StartExecution.
    knock.clock.advance(timedelta(hours=1))
    for finding in knock.call("guard", {})["findings"]:
        assert knock.execution_status(finding["grant_id"]) is None, (injector.mode, injector.hit, finding)
        assert finding["did"] == "closed; nothing was open"
    for grant in run.grants():
        assert grant["status"] not in ("pending", "active"), injector.hit
        assert is_closed(knock, grant["id"]), injector.hit
        if grant["status"] == "expired":
            assert parse_time(grant["ended_at"]) >= parse_time(grant["expires_at"]), injector.hit


def is_closed(knock: Knock, grant_id: str) -> bool:
    return "closed" in [event["event"] for event in knock.grant(grant_id)["events"]]


def check_open(run: Run, wanted: set[tuple[str, int]], injector: Injector) -> None:
    """Just these are open: at once, or when a closing that an event began has had its retries."""
    why = f"{injector.mode} at {injector.hit}: not just {sorted(wanted)} is open"
    run.knock.wait(lambda: run.rules() == wanted, why, 60, step=timedelta(seconds=30))


def prepare(knock: Knock) -> None:
    """Add the targets `full`, whose first group has no room, and `none`, which has none at all.

    Alice may open each and none by default: a knock of hers that names no target would find no room.
    """
    for target, groups in (("full", 2), ("none", 1)):
        for _ in range(groups):
            knock.add_group(target, "5432/tcp")
        for port in FULL:
            permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
            knock.client("ec2").authorize_security_group_ingress(
                GroupId=knock.groups[target][0],
                IpPermissions=[permission | {"IpRanges": [{"CidrIp": "192.0.2.0/24"}]}],
            )
    knock.add_key("alice", targets="bastion web full none", max_duration="24h")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_invariants_hold_whatever_fails_at_whichever_call(
    kind: Callable[[Run], None],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """No fault at any call leaves a door open, shuts one early, or touches a foreign rule.

    Mutation: functions/grants/operations.py: `raise done.failures[key]` -> `pass`
    """
    with running() as knock:
        prepare(knock)
        clean = run_once(knock, kind, Injector(), 0)
        answers, ends = KINDS[kind]
        assert clean.answers == answers
        assert Counter(grant["status"] for grant in clean.grants()) == Counter(ends)
        calls = clean.injector.calls
        monkeypatch.setattr("api.OPENS_WITHIN", 0.2)
        monkeypatch.setattr("api.SETTLES_WITHIN", 0.2)
        points = [at for at, call in enumerate(calls) if mode in ways_to_fail(call)]
        for at in points:
            run_once(knock, kind, Injector(at, mode), at + 1)
        for target in ("full", "none"):
            there = {(port, cidr) for _, port, cidr in knock.rules(knock.groups[target][0])}
            assert there == {(port, "192.0.2.0/24") for port in FULL}
        record_property("faults at calls to AWS", len(points))


def ways_to_fail(call: str) -> tuple[str, ...]:
    """Give the modes that differ for a call: one that only reads has no effect to come before or after."""
    reads = call.rpartition(".")[2].startswith(("Get", "Describe", "Select", "List"))
    return ("error before", "crash before") if reads else MODES


def run_once(knock: Knock, kind: Callable[[Run], None], injector: Injector, number: int) -> Run:
    run = Run(knock, number, injector)
    knock.around = injector.function
    with injecting(injector):
        kind(run)
        with injector.only_looking():
            settle(run, injector)
    return run
