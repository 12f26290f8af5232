"""Forged inputs and payloads: what states:StartExecution and lambda:InvokeFunction can do by themselves."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import StoreUnavailable
from grants.simpledb import SimpleDb
from grants.values import show_second, show_time
from tests.harness import MACHINE, STACK, Knock, forged
from tests.holes.worst import delete

CIDR = "203.0.113.7/32"
NAME = "by-hand"


def input_of(knock: Knock, grant: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(knock.execution(grant["id"])["input"])
    return value


def start(knock: Knock, value: dict[str, Any], name: str) -> str:
    """Start an execution by hand, and wait until it is over, or holds a grant."""
    knock.client("stepfunctions").start_execution(stateMachineArn=MACHINE, name=name, input=json.dumps(value))
    knock.wait(
        lambda: knock.execution_status(name) != "RUNNING" or "HoldUntilExpiry" in knock.states(name),
        "it is tried on and on",
        step=timedelta(seconds=1),
    )
    return name


class TestForgedExecution:
    """With states:StartExecution and a live grant's id, or its own, nothing opens that tags do not allow."""

    @pytest.fixture
    def vault(self, knock: Knock) -> str:
        knock.add_key("eve", targets="bastion", max_duration="24h")
        return knock.add_group("vault", "8200/tcp")

    @pytest.mark.parametrize("own_name", [False, True])
    def test_a_live_grants_id_covers_no_other_input(self, knock: Knock, vault: str, own_name: bool) -> None:
        """Mutation: functions/grants/values.py: `        if own_id != grant.id:` -> `        if False:`"""
        grant = knock.open("eve", duration="8h")
        before, ledger = knock.grant(grant["id"]), knock.ledger()
        value = input_of(knock, grant)
        value["targets"] = [{"name": "vault", "ports": ["8200/tcp"], "groups": [vault]}]
        name = start(knock, value, f"{grant['id'][:-1]}x" if own_name else NAME)
        knock.wait_status(name, "FAILED")
        assert knock.rules(vault) == set()
        # Nothing is opened, ended or recorded under that id.
        assert knock.grant(grant["id"]) | {"seconds_left": 0} == before | {"seconds_left": 0}
        assert knock.ledger() == ledger  # nor claimed

    def test_a_live_grant_is_not_ended_by_the_rollback_of_a_forged_run(
        self, knock: Knock, vault: str
    ) -> None:
        grant = knock.open("eve", duration="8h")
        state = input_of(knock, grant) | {"source": "198.51.100.1/32"}
        for how in ("expired", "failed", "force"):
            knock.call("revoke", {"how": how, "grant": state})
        for how in ("close", "force-close"):
            by_hand = {"how": "revoked", "grant": state, "by": {"id": "", "name": "eve"}}
            knock.call("revoke", {"how": how, "closing": by_hand})
            event = {"name": NAME, "status": "ABORTED", "input": json.dumps(input_of(knock, grant))}
            knock.call("revoke", {"how": how, "closing": {"detail": event}})
        assert knock.grant(grant["id"])["status"] == "active"
        assert len(knock.rules()) == 1

    @pytest.mark.parametrize(
        "target",
        [
            {"name": "vault", "ports": ["1-65535/tcp"]},
            {"name": "bastion", "ports": ["8200/tcp"]},
            {"name": "bastion", "ports": ["1-65535/tcp"]},
            {"name": "nothing", "ports": ["8200/tcp"]},
        ],
    )
    def test_an_input_with_an_id_of_its_own_opens_what_the_groups_tags_say(
        self, knock: Knock, vault: str, target: dict[str, Any]
    ) -> None:
        """Mutation: functions/grants/policy.py:
        `        if live[TAG_STACK] != stack or live[TAG_TARGET] != target.name:` -> `        if False:`

        Mutation: functions/grants/policy.py:
        `        elif _read_ports(live.get(TAG_PORTS, "")) != target.ports:` -> `        elif False:`
        """
        value = input_of(knock, knock.open("eve"))
        made_up = forged(value | {"targets": [target | {"groups": [vault]}]})
        knock.wait_status(start(knock, made_up, made_up["grant_id"]), "FAILED")
        assert knock.rules(vault) == set()
        assert "InvalidGrant" in knock.grant(made_up["grant_id"])["events"][1]["reason"]

    def test_groups_that_are_no_targets_are_never_opened(self, knock: Knock, vault: str) -> None:
        ec2 = knock.client("ec2")
        untagged = ec2.create_security_group(GroupName="plain", Description="none", VpcId=knock.vpc)[
            "GroupId"
        ]
        other_stacks = ec2.create_security_group(GroupName="other", Description="none", VpcId=knock.vpc)[
            "GroupId"
        ]
        tags = {"knock:stack": "another", "knock:target": "vault", "knock:ports": "8200/tcp"}
        ec2.create_tags(Resources=[other_stacks], Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
        value = input_of(knock, knock.open("eve"))
        for group in (untagged, other_stacks):
            target = {"name": "vault", "ports": ["8200/tcp"], "groups": [group]}
            made_up = forged(value | {"targets": [target]})
            knock.wait_status(start(knock, made_up, made_up["grant_id"]), "FAILED", step=timedelta(seconds=5))
            assert knock.rules(group) == set()

    @pytest.mark.parametrize(
        ("source", "starts", "lasts"),
        [
            ("0.0.0.0/0", 0, 1),
            ("198.51.0.0/23", 0, 1),
            ("::/0", 0, 1),
            ("2001:db8::/55", 0, 1),
            ("10.0.0.0/24", 0, 1),
            ("fe80::/64", 0, 1),
            ("198.51.100.1/32", 0, 364 * 24),
            ("198.51.100.1/32", 0, 25),
            ("198.51.100.1/32", 2, 1),
            ("198.51.100.1/32", -2, 24),
            ("198.51.100.1/32", 364 * 24, 1),
        ],
    )
    def test_nothing_opens_wider_or_longer_or_at_another_time_than_the_stack_allows(
        self, knock: Knock, source: str, starts: float, lasts: float
    ) -> None:
        """Every tagged group, with exactly the tags' own ports: from everywhere, for 364 days.

        Mutation: functions/grants/policy.py:
        `    if network.prefixlen < WIDEST[network.version]:` -> `    if False:`

        Mutation: functions/grants/policy.py:
        `    if network.num_addresses > 1 and _refused(network):` -> `    if False:`

        Mutation: functions/grants/policy.py:
        `    if not now - OLDEST_REQUEST <= grant.requested_at <= now + CLOCKS_DIFFER:` -> `    if False:`

        Mutation: functions/grants/policy.py:
        `<= round_up(grant.requested_at + limits.max_duration):` -> `:`
        """
        value = input_of(knock, knock.open(duration="1h"))
        at = knock.clock.now() + timedelta(hours=starts)
        times = {"requested_at": show_time(at), "expires_at": show_second(at + timedelta(hours=lasts))}
        made_up = forged(value | times | {"source": source})
        made_up["grant_id"] = _renamed(made_up)
        knock.wait_status(start(knock, made_up, made_up["grant_id"]), "FAILED", step=timedelta(seconds=5))
        assert {cidr for _, _, cidr in knock.rules()} == {CIDR}
        assert (knock.ledger(source).claims, knock.ledger(source).rules) == ({}, {})
        refused = knock.grant(made_up["grant_id"])
        assert (refused["status"], refused["source"]) == ("failed", source)
        (failed,) = [event for event in refused["events"] if event["event"] == "failed"]
        assert "InvalidGrant: " in failed["reason"]

    def test_a_forged_grant_within_the_limits_is_on_record_and_can_be_ended(self, knock: Knock) -> None:
        """It may be in another principal's name: that is what the permission to start executions means."""
        bob = knock.open("bob", duration="1h")
        for number, end in enumerate((_delete, _stop, _lose)):
            value = input_of(knock, bob) | {"source": f"198.51.100.{number}/32"}
            made_up = forged(value)
            start(knock, made_up, made_up["grant_id"])
            assert knock.grant(made_up["grant_id"])["status"] == "active"
            assert len(knock.rules()) == 6
            end(knock, made_up["grant_id"])
            knock.wait(lambda: len(knock.rules()) in (0, 3), "its rules are still open")
            assert knock.grant(made_up["grant_id"])["status"] == "revoked"

    def test_the_input_of_a_grant_that_ended_opens_nothing(self, knock: Knock) -> None:
        grant = knock.open(duration="1h")
        value = input_of(knock, grant)
        knock.request("DELETE", f"/grants/{grant['id']}")
        knock.wait_status(start(knock, value, NAME), "FAILED")
        assert knock.rules() == set()
        assert knock.grant(grant["id"])["status"] == "revoked"


def _renamed(value: dict[str, Any]) -> str:
    """Write the second that an id says anew, and canonical networks as ids write them."""
    who, where, _, digest = value["grant_id"].split("_")
    stamp = value["requested_at"][:19].replace("-", "").replace(":", "") + "Z"
    return f"{who}_{where}_{stamp}_{digest}"


def _delete(knock: Knock, grant_id: str) -> None:
    assert knock.request("DELETE", f"/grants/{grant_id}", key="operator").status == 200


def _stop(knock: Knock, grant_id: str) -> None:
    knock.client("stepfunctions").stop_execution(executionArn=knock.execution(grant_id)["executionArn"])
    knock.wait(lambda: knock.grant(grant_id)["status"] != "active", "its event ends nothing")


def _lose(knock: Knock, grant_id: str) -> None:
    knock.deliveries.drop(lambda _event: True)
    knock.client("stepfunctions").stop_execution(executionArn=knock.execution(grant_id)["executionArn"])
    knock.clock.advance(timedelta(minutes=16))
    assert grant_id in {finding["grant_id"] for finding in knock.call("guard", {})["findings"]}


class TestTheRevokeFunctionCalledByHand:
    """With lambda:InvokeFunction on it, no foreign rule is revoked, and no other grant's."""

    def payloads(self, knock: Knock, rule: str, group: str, port: int, known: dict[str, Any]) -> list[Any]:
        """Name a rule as a made-up grant's own, with every `how`: alone, in a closing, and in an event."""
        rules = [
            {"rule": rule, "group": group, "ports": f"{port}/tcp", "target": "web", "foreign": False},
        ]
        unknown = forged(known | {"reason": "made up", "source": "198.51.100.1/32"})
        late = forged(unknown | {"requested_at": show_time(knock.clock.now())})
        payloads: list[Any] = []
        for grant in (unknown, late, {"grant_id": "unknown"}):
            state = grant | {"rules": rules}
            payloads += [{"how": how, "grant": state} for how in ("expired", "failed", "force")]
            early = {"how": "revoked", "grant": state, "by": {"id": "", "name": "eve"}}
            payloads += [early, *({"how": how, "closing": early} for how in ("close", "force-close"))]
            text = json.dumps(state)
            event = {"name": grant["grant_id"], "status": "ABORTED", "input": text}
            payloads += [{"how": how, "closing": {"detail": event}} for how in ("close", "force-close")]
        return payloads

    @pytest.mark.parametrize("outage", [False, True])
    def test_a_foreign_rule_in_a_tagged_group_stays(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, outage: bool
    ) -> None:
        """Mutation: functions/grants/closing.py:
        `    ours = filter(operations.ingress.is_ours, shown)` -> `    ours = shown`
        """
        web = knock.groups["web"][0]
        source = "198.51.100.1/32"  # the rules are those that the made-up grant asks for
        foreign = [knock.add_rule(web, 80, source), knock.add_rule(web, 443, source, stack="another")]
        known = input_of(knock, knock.open("bob", targets=["web"], caller="198.51.100.9"))
        before = knock.rules(web)
        if outage:
            monkeypatch.setattr(SimpleDb, "_call", _store_is_down)
        for rule, port in zip(foreign, (80, 443), strict=True):
            for payload in self.payloads(knock, rule, web, port, known):
                knock.invoke(f"{STACK}-revoke", json.dumps(payload).encode())
        assert knock.rules(web) == before

    def test_another_grants_rule_stays(self, knock: Knock) -> None:
        """For two reasons: ids count only with an execution, and only for rules of the grant's own keys.

        The second by itself is tested in tests/proofs/test_operations.py, with its mutation.
        """
        alice = knock.open(targets=["bastion"], duration="8h")
        ((group, port, _),) = knock.rules()
        (rule,) = knock.of_grant(alice["id"])
        known = input_of(knock, knock.open("bob", targets=["web"], caller="198.51.100.9"))
        for payload in self.payloads(knock, rule["SecurityGroupRuleId"], group, port, known):
            knock.invoke(f"{STACK}-revoke", json.dumps(payload).encode())
        assert knock.rules(group) == {(group, 22, CIDR)}
        assert knock.grant(alice["id"])["status"] == "active"
        assert set(knock.items("trail")) == {alice["id"], known["grant_id"]}  # no made-up grant is on record

    def test_a_grants_own_end_takes_no_rule_of_anothers_that_its_state_names(self, knock: Knock) -> None:
        """Where the ledger's item is lost, rules are found by that state, and by tags."""
        web = knock.groups["web"][0]
        foreign = knock.add_rule(web, 22)
        alice = knock.open("alice", targets=["web"], duration="8h")
        bob = knock.open("bob", targets=["bastion"], duration="8h")
        delete(knock, "ledger", CIDR)
        named = [foreign, *(rule["SecurityGroupRuleId"] for rule in knock.of_grant(alice["id"]))]
        rules = [
            {"rule": rule, "group": web, "ports": "22/tcp", "target": "web", "foreign": False}
            for rule in named
        ]
        knock.call("revoke", {"how": "expired", "grant": input_of(knock, bob) | {"rules": rules}})
        assert knock.rules() == {(web, 22, CIDR), (web, 80, CIDR), (web, 443, CIDR)}


def _store_is_down(*_: object, **__: object) -> None:
    raise StoreUnavailable("SimpleDB did not answer")
