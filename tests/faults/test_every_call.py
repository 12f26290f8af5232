"""Every AWS call of every function fails in every way, and the invariants hold all the same.

The calls are not listed by hand: a clean run of each kind of grant is recorded, then run again once for
each call in it, with the fault at that call. A call added to the code is covered the day it is written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from grants.values import parse_time
from tests.faults.injector import MODES, Injector, injecting
from tests.harness import CLOSINGS, MACHINE, STACK, Hurried, Knock, running

BOTH = ["bastion", "web"]
FULL = range(1, 61)  # the ports of the static rules that fill a group
POLLS = (f"{STACK}-api: sdb.GetAttributes", f"{STACK}-api: dynamodb.GetItem")


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
        return answer.json

    def rules(self) -> set[tuple[str, int]]:
        """List the rules of the address, in the groups with room: the full ones would take long to list."""
        groups = self.knock.groups
        with_room = [*groups["bastion"], *groups["web"], *groups["full"][1:]]
        return {(group, port) for group, port, cidr in self.knock.rules(*with_room) if cidr == self.cidr}

    def grants(self) -> list[dict[str, Any]]:
        query = {"status": "all", "source": self.cidr}
        with self.injector.only_looking():
            answer = self.knock.request("GET", "/grants", key="operator", **query)
        grants: list[dict[str, Any]] = answer.json["grants"]
        return grants

    def running(self, key: str) -> list[str]:
        """List the executions that run for a key from this address, recorded or not."""
        of_run = f"{key}_{self.address.replace('.', '-')}_"
        return [name for name in self.knock.running(MACHINE) if name.startswith(of_run)]

    def closing(self) -> bool:
        """Say whether a closing is running, or an event that starts one is on its way."""
        return self.knock.at_work() or bool(self.knock.running(CLOSINGS))

    def revoke(self) -> None:
        """End alice's grants early, once: the client may not retry, so a closing continues a failed end."""
        for grant_id in self.running("alice"):
            self.knock.request("DELETE", f"/grants/{grant_id}")

    def stop(self) -> None:
        for grant_id in self.running("alice"):
            arn = MACHINE.replace(":stateMachine:", ":execution:") + f":{grant_id}"
            self.knock.client("stepfunctions").stop_execution(executionArn=arn)

    def foreign(self, port: int) -> None:
        """Put a static rule where the grant wants one."""
        group = self.knock.groups["web"][0]
        self.static[group, port] = self.knock.add_rule(group, port, self.cidr)

    def check_foreign(self) -> None:
        """Check that the static rules are untouched."""
        for rule_id in self.static.values():
            (rule,) = self.knock.client("ec2").describe_security_group_rules(SecurityGroupRuleIds=[rule_id])[
                "SecurityGroupRules"
            ]
            assert not rule.get("Tags")
            assert not rule.get("Description")


def one_rule(run: Run) -> None:
    run.open(targets=["bastion"], duration="10m")


def default_rules(run: Run) -> None:
    run.open("carol", duration="10m")


def pool_spill(run: Run) -> None:
    run.open(targets=["full"], duration="10m")


def pool_exhausted(run: Run) -> None:
    run.open(targets=["bastion", "none"], duration="10m")


def overlap(run: Run) -> None:
    run.open("bob", targets=BOTH, duration="6h")
    run.open(targets=BOTH, duration="10m")


def foreign(run: Run) -> None:
    run.foreign(443)
    run.open(targets=BOTH, duration="10m")


def renewal(run: Run) -> None:
    old = run.open(targets=BOTH, duration="10m")
    run.open(targets=BOTH, duration="20m", **({"renews": old["id"]} if "id" in old else {}))


def revocation(run: Run) -> None:
    run.open(targets=BOTH, duration="10m")
    run.revoke()


def stopped(run: Run) -> None:
    run.open(targets=BOTH, duration="10m")
    run.stop()


def source_full(run: Run) -> None:
    """With bounds of one claim a source, which the test sets."""
    run.open("bob", targets=["bastion"], duration="6h")
    run.open(targets=["bastion"], duration="10m")


def target_gone(run: Run) -> None:
    """The tags were there when the API read them, and are not when the second decision is made."""
    (group,), ec2 = run.knock.groups["gone"], run.knock.client("ec2")
    tags = [{"Key": "knock:target", "Value": "gone"}]
    ec2.create_tags(Resources=[group], Tags=tags)
    with run.injector.only_looking():
        run.knock.request("GET", "/whoami")
    ec2.delete_tags(Resources=[group], Tags=tags)
    run.open(targets=["bastion", "gone"], duration="10m")


def end_while_opening(run: Run) -> None:
    """The grant is ended just before its first rule is authorized."""

    def once(call: str) -> None:
        if call == f"{STACK}-authorize: ec2.AuthorizeSecurityGroupIngress":
            run.injector.before = lambda _call: None
            run.revoke()

    run.injector.before = once
    run.open(targets=BOTH, duration="10m")


# Each kind, and its results where no call fails: the knocks' answers, and the states the grants end in.
KINDS: dict[Callable[[Run], None], tuple[list[int], list[str]]] = {
    one_rule: ([201], ["expired"]),
    default_rules: ([201], ["expired"]),
    pool_spill: ([201], ["expired"]),
    pool_exhausted: ([409], ["failed"]),
    overlap: ([201, 201], ["expired", "expired"]),
    foreign: ([201], ["expired"]),
    renewal: ([201, 201], ["expired", "superseded"]),
    revocation: ([201], ["revoked"]),
    stopped: ([201], ["revoked"]),
    source_full: ([201, 409], ["expired", "failed"]),
    target_gone: ([202], ["failed"]),
    end_while_opening: ([503], ["revoked"]),
}


def check_until_all_ended(run: Run, injector: Injector) -> None:
    """Let time pass until no grant of alice's is live, then of bob's, and check the invariants each time."""
    knock, where = run.knock, f"{injector.mode} at {injector.hit}"
    for key in ("alice", "carol"):
        knock.wait(lambda key=key: not run.running(key), f"{where}: an execution never ends", 60, MINUTES)
    knock.wait(lambda: not run.closing(), f"{where}: a closing never ends", 60, MINUTES)

    def bobs_open() -> bool:
        statuses = {grant["id"]: grant["status"] for grant in run.grants()}
        return all(statuses.get(grant_id) == "active" for grant_id in run.running("bob"))

    def all_closed() -> bool:
        grants = [grant["id"] for grant in run.grants() if grant["principal"]["name"] != "bob"]
        return all(is_closed(knock, grant_id) for grant_id in grants)

    knock.wait(bobs_open, f"{where}: bob's grant never opens", 60, MINUTES)
    knock.wait(all_closed, f"{where}: a grant is never recorded as closed", 60, MINUTES)
    wanted = wanted_rules(run)
    assert run.rules() == wanted, f"{where}: not just {sorted(wanted)} is open"
    # bob's own end
    for grant in run.grants():
        if grant["status"] == "active":
            knock.advance_to(grant["expires_at"])
    knock.wait(lambda: not run.running("bob"), f"{where}: bob's grant never ends", 60, MINUTES)
    knock.wait(lambda: not run.closing(), f"{where}: a closing never ends", 60, MINUTES)
    assert run.rules() == set(run.static), f"{where}: a rule is open in the end"
    run.check_foreign()
    # All this without the drift guard, which has no findings.
    knock.clock.advance(timedelta(hours=1))
    assert knock.call("guard", {})["findings"] == [], where
    assert not knock.ledger(run.cidr), f"{where}: the ledger is not empty"
    for grant in run.grants():
        assert is_closed(knock, grant["id"]), f"{where}: a grant is never recorded as closed"
        if grant["status"] == "expired":
            assert parse_time(grant["ended_at"]) >= parse_time(grant["expires_at"]), where


def wanted_rules(run: Run) -> set[tuple[str, int]]:
    """List the rules to be open once alice's grants are closed: of bob's active grants, and static ones."""
    wanted, groups = set(run.static), run.knock.groups
    for grant in run.grants():
        if grant["principal"]["name"] != "bob":
            assert grant["status"] not in ("pending", "active"), "a grant outlives its execution"
        elif grant["status"] == "active":
            wanted |= {
                (groups[t["name"]][0], int(p.split("/")[0])) for t in grant["targets"] for p in t["ports"]
            }
    return wanted


MINUTES = timedelta(minutes=2)


def is_closed(knock: Knock, grant_id: str) -> bool:
    return "closed" in [event["event"] for event in knock.grant(grant_id)["events"]]


def prepare(knock: Knock) -> None:
    """Add the targets `full`, whose first group has no room, `none`, which has none at all, and `gone`.

    Alice may open each and none by default: a knock of hers that names no target would find no room.
    """
    for target, groups in (("full", 2), ("none", 1), ("gone", 1)):
        for _ in range(groups):
            knock.add_group(target, "5432/tcp")
    for target in ("full", "none"):
        for port in FULL:
            knock.add_rule(knock.groups[target][0], port, "192.0.2.0/24")
    knock.add_key("alice", targets="bastion web full none gone", max_duration="24h")
    knock.add_key("carol", targets="bastion web", max_duration="24h")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["simpledb", "dynamodb"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_invariants_hold_with_each_fault_at_each_call(
    kind: Callable[[Run], None],
    mode: str,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """No fault at any call leaves a rule open, revokes one early, or touches a foreign one.

    Mutation: functions/grants/closing.py:
    `                raise failure` -> `                return snapshot`
    """
    if kind is source_full:
        monkeypatch.setattr("grants.ledger.MAX_CLAIMS", 1)
    answers, ends = KINDS[kind]
    # A clean knock answers as soon as it has opened or failed; the wait is used up where it does neither.
    patience = 30.0 if set(answers) <= {201, 409} else 3.0 if 503 in answers else 0.5
    monkeypatch.setattr("api.OPENS_WITHIN", patience)
    monkeypatch.setattr("api.CLOSES_WITHIN", 0.0)
    monkeypatch.setattr("api.SHOWS_WITHIN", 0.0)
    with running(store) as knock:
        monkeypatch.setattr("api.time", Hurried(knock))
        monkeypatch.setattr("rest.closing.time", Hurried(knock))
        prepare(knock)
        clean = run_once(knock, kind, Injector(), 0)
        assert clean.answers == answers
        assert Counter(grant["status"] for grant in clean.grants()) == Counter(ends)
        monkeypatch.setattr("api.OPENS_WITHIN", 0.15)
        points = [at for at in calls_of(clean) if mode in ways_to_fail(at[0]) and is_failed(at[0], store)]
        for number, at in enumerate(points, 1):
            run_once(knock, kind, Injector(at, mode), number)
        for target in ("full", "none"):
            rules = {(port, cidr) for _, port, cidr in knock.rules(knock.groups[target][0])}
            assert rules == {(port, "192.0.2.0/24") for port in FULL}
        record_property("faults at calls to AWS", len(points))


def calls_of(run: Run) -> list[tuple[str, int]]:
    """List a run's calls, each with its number among its kind. Of the API's polls two stand for all."""
    counts: Counter[str] = Counter()
    points = []
    for call in run.injector.calls:
        if call not in POLLS or counts[call] < 2:
            points.append((call, counts[call]))
        counts[call] += 1
    return points


def is_failed(call: str, store: str) -> bool:
    """Say whether a call is made to fail on a store: on DynamoDB, only the store's own writes are.

    The other calls are as on SimpleDB, and a read that fails is the same to the store's adapter.
    KNOCK_FAULTS=all has all of them failed on both.
    """
    if store == "simpledb" or os.environ.get("KNOCK_FAULTS") == "all":
        return True
    return ": dynamodb." in call and len(ways_to_fail(call)) == len(MODES)


def ways_to_fail(call: str) -> tuple[str, ...]:
    """Give the modes that differ for a call: one that only reads has no effect to come before or after."""
    reads = call.rpartition(".")[2].startswith(("Get", "Describe", "Select", "List", "Query", "Scan"))
    return ("error before", "crash before") if reads else MODES


def run_once(knock: Knock, kind: Callable[[Run], None], injector: Injector, number: int) -> Run:
    run = Run(knock, number, injector)
    knock.around = injector.function
    with injecting(injector):
        kind(run)
        with injector.only_looking():
            check_until_all_ended(run, injector)
    return run
