"""A Knock with grants, foreign rules and near-miss groups, and the invariants that no attack may break.

Attacks are drawn without knowing any id, so they use words (`alice`, `ended`, `foreign`), which the world
translates to the ids, inputs and rules of the moment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from grants.ledgers import Ledgers
from grants.policy import WIDEST, read_targets
from grants.simpledb import SimpleDb
from grants.timing import GRACE
from grants.trail import Trail
from grants.values import (
    ENDS,
    Grant,
    Ports,
    Principal,
    Record,
    RuleKey,
    Target,
    Unreadable,
    cut_to_milliseconds,
    parse_time,
    round_up,
)
from tests.harness import CLOSINGS, MACHINE, STACK, Knock, running

VICTIM_SOURCE = "203.0.113.7"
LONGEST = timedelta(hours=24)
POLLS_BEFORE_THE_CLOCK_MOVES = 12
# Times that the clock is moved by half a minute: longer than any task but force is tried again.
STILL_AT_WORK = 600


@dataclass(frozen=True)
class Open:
    """One ingress rule as EC2 shows it."""

    id: str
    key: RuleKey
    tags: tuple[tuple[str, str], ...]

    @property
    def is_ours(self) -> bool:
        return ("knock:stack", STACK) in self.tags


@dataclass
class World:
    """A stack to attack, and its invariants."""

    knock: Knock
    ids: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    foreign: frozenset[Open] = frozenset()
    allowed: set[tuple[str, Ports]] = field(default_factory=set)  # by tags, now or before
    _ends: dict[str, datetime] = field(default_factory=dict)  # of executions known to wait for them

    # ------------------------------------------------------------------ building it

    def build(self) -> None:
        knock = self.knock
        bastion, second, web = *knock.groups["bastion"], *knock.groups["web"]
        self.groups = {"bastion": bastion, "second": second, "web": web}
        self._group("untagged", {})
        self._group("other-stack", {"stack": "other", "target": "bastion", "ports": "22/tcp"})
        self._group("released", {"stack": STACK})
        self._group("odd-name", {"stack": STACK, "target": "bastion 2", "ports": "22/tcp"})
        self._group("odd-ports", {"stack": STACK, "target": "odd", "ports": "22/tcp 0-9/icmp"})
        self._add_foreign(bastion, "198.51.100.1/32")  # like a rule that an attack may request
        self._add_foreign(bastion, "192.0.2.1/32")
        self._add_foreign(self.groups["untagged"], f"{VICTIM_SOURCE}/32")
        self._add_foreign(self.groups["other-stack"], "192.0.2.2/32", "other")
        self.foreign = frozenset(rule for rule in self.rules() if not rule.is_ours)
        for name, key, body in (
            ("expired", "alice", {"duration": "1m", "targets": ["web"]}),
            ("ended", "bob", {"duration": "8h"}),
            ("alice", "alice", {"duration": "8h"}),
            ("bob", "bob", {"duration": "5h", "targets": ["bastion"]}),
            ("elsewhere", "bob", {"duration": "23h", "targets": ["web"]}),
        ):
            caller = "203.0.113.200" if name == "elsewhere" else VICTIM_SOURCE
            grant = knock.open(key, caller=caller, **body)
            self.ids[name] = grant["id"]
            self.inputs[name] = json.loads(knock.execution(grant["id"])["input"])
            if name == "expired":
                knock.expire(grant)
            elif name == "ended":
                assert knock.request("DELETE", f"/grants/{grant['id']}", key="bob").status == 200
        self.look_at_tags()

    def _group(self, name: str, tags: Mapping[str, str]) -> None:
        ec2 = self.knock.client("ec2")
        group = ec2.create_security_group(GroupName=name, Description="test", VpcId=self.knock.vpc)["GroupId"]
        if tags:
            ec2.create_tags(
                Resources=[group],
                Tags=[{"Key": f"knock:{key}", "Value": value} for key, value in tags.items()],
            )
        self.groups[name] = group

    def _add_foreign(self, group: str, cidr: str, stack: str = "") -> None:
        tags = [{"Key": "knock:stack", "Value": stack}, {"Key": "knock:grant", "Value": "theirs"}]
        self.knock.client("ec2").authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": cidr}]}
            ],
            **(
                {"TagSpecifications": [{"ResourceType": "security-group-rule", "Tags": tags}]}
                if stack
                else {}
            ),
        )

    # ------------------------------------------------------------------ looking at it

    def rules(self) -> list[Open]:
        """List every ingress rule of the account."""
        rules = self.knock.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
        return [
            Open(
                rule["SecurityGroupRuleId"],
                RuleKey(
                    rule["GroupId"],
                    Ports(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]),
                    rule.get("CidrIpv4") or rule["CidrIpv6"],
                ),
                tuple(sorted((tag["Key"], tag["Value"]) for tag in rule.get("Tags", []))),
            )
            for rule in rules
            if not rule["IsEgress"]
        ]

    def look_at_tags(self) -> None:
        """Add the ports that tags allow now to those they have allowed."""
        ours = [{"Name": "tag:knock:stack", "Values": [STACK]}]
        groups = self.knock.client("ec2").describe_security_groups(Filters=ours)["SecurityGroups"]
        tagged = {group["GroupId"]: {tag["Key"]: tag["Value"] for tag in group["Tags"]} for group in groups}
        targets, _ = read_targets(tagged)
        self.allowed |= {(group, ports) for t in targets.values() for group in t.groups for ports in t.ports}

    def _store(self, domain: str) -> SimpleDb:
        return SimpleDb(self.knock.client("sdb"), os.environ[domain])

    @property
    def trail(self) -> Trail:
        return Trail(self._store("TRAIL_DOMAIN"))

    def records(self) -> dict[str, Record]:
        return {record.id: record for record in self.trail.page(limit=2000).records}

    def live(self) -> list[Record]:
        now = self.knock.clock.now()
        return [record for record in self.records().values() if record.live_at(now)]

    def executions(self, machine: str = MACHINE) -> list[str]:
        """List the names of the running executions."""
        answer = self.knock.client("stepfunctions").list_executions(
            stateMachineArn=machine, statusFilter="RUNNING", maxResults=1000
        )
        return [execution["name"] for execution in answer["executions"]]

    def group(self, word: str) -> str:
        return self.groups.get(word, word)

    def id_of(self, word: str) -> str:
        """Give the grant's id that a word stands for, or the word."""
        return self.ids.get(word, word)

    def rule_of(self, word: str) -> Mapping[str, Any]:
        """Give a rule as an execution's state names it: the first of a grant, or a foreign one."""
        record = self.records().get(self.ids.get(word, ""))
        if record and record.opened:
            return record.opened[0].as_json()
        foreign = sorted(self.foreign, key=lambda rule: rule.key)
        rule = foreign[{"foreign": 0, "equal": 1, "theirs": 2}.get(word, 0)]
        fields = {
            "group": rule.key.group,
            "ports": str(rule.key.ports),
            "target": "bastion",
            "foreign": False,
        }
        return fields | {"rule": word if "*" in word else rule.id}

    def forge(
        self,
        who: str,
        source: str,
        targets: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...],
        requested: int,
        lasts: int,
        renews: str | None,
        *,
        by_name: bool,
    ) -> dict[str, Any]:
        """Make the input of a grant that the API never decided on, with the id of its content."""
        at = cut_to_milliseconds(self.knock.clock.now()) + timedelta(seconds=requested)
        grant = Grant.decide(
            Principal(self.knock.keys.get(who, who), who),
            source,
            tuple(
                Target(name, tuple(map(Ports.parse, ports)), tuple(map(self.group, groups)))
                for name, ports, groups in targets
            ),
            at,
            round_up(at + timedelta(seconds=lasts)),
            by_name=by_name,
            renews=self.id_of(renews) if renews else None,
            nonce=f"{len(self.ids):016}",
        )
        self.ids["forged"], self.inputs["forged"] = grant.id, grant.as_input()
        return grant.as_input()

    # ------------------------------------------------------------------ letting it settle

    def settle(self) -> None:
        """Wait until nothing is at work: each execution waits for its end. Moves the clock for retries."""
        before: object = None
        polls = moved = 0
        while busy := self._at_work():
            polls = polls + 1 if busy == before else 0
            before = busy
            if polls >= POLLS_BEFORE_THE_CLOCK_MOVES:
                self.knock.clock.advance(timedelta(seconds=30))
                polls, moved = 0, moved + 1
                assert moved < STILL_AT_WORK, f"still at work: {busy}"
            time.sleep(0.002)

    def _at_work(self) -> list[tuple[str, int]]:
        busy = []
        for machine in (MACHINE, CLOSINGS):
            for name in self.executions(machine):
                if self._ends.get(name, self.knock.clock.now()) <= self.knock.clock.now():
                    history = self._history(machine, name)
                    if not self._waits(name, history):
                        busy.append((name, len(history)))
        return sorted(busy)

    def _history(self, machine: str, name: str) -> list[Any]:
        arn = f"{machine.replace(':stateMachine:', ':execution:')}:{name}"
        states = self.knock.client("stepfunctions")
        return list(states.get_execution_history(executionArn=arn, maxResults=1000)["events"])

    def _waits(self, name: str, history: list[Any]) -> bool:
        """Say whether an execution is in its Wait state, and the grant's end is ahead."""
        entered = [e["stateEnteredEventDetails"] for e in history if "stateEnteredEventDetails" in e]
        if not entered or entered[-1]["name"] != "HoldUntilExpiry":
            return False
        self._ends[name] = parse_time(json.loads(entered[-1]["input"])["expires_at"])
        return self._ends[name] > self.knock.clock.now()

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Check the invariants while nothing is at work. An event may still be on its way to a closing."""
        deadline = time.monotonic() + 5
        while True:
            try:
                return self._check()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
            self.settle()

    def _check(self) -> None:
        self.look_at_tags()
        now, rules, records = self.knock.clock.now(), self.rules(), self.records()
        assert frozenset(rule for rule in rules if not rule.is_ours) == self.foreign
        assert not [item for item in self.trail.unclosed() if isinstance(item, Unreadable)]
        live = {record.id: record for record in records.values() if record.live_at(now)}
        claimed = {key for record in live.values() for key in record.grant.rule_keys}
        ours = {rule.key: rule for rule in rules if rule.is_ours}
        for key, rule in ours.items():
            assert dict(rule.tags)["knock:grant"] in records, f"{rule} is off the record"
            assert key in claimed, f"{rule} is open without a live grant"
            assert (key.group, key.ports) in self.allowed, f"tags do not allow {rule}"
            network = ipaddress.ip_network(key.cidr)
            assert network.prefixlen >= WIDEST[network.version]
            assert network.num_addresses == 1 or network.is_global or key.cidr.startswith("203.0.113"), rule
        for record in live.values():
            grant = record.grant
            assert grant.expires_at - grant.requested_at <= LONGEST + timedelta(seconds=1)
            assert grant.requested_at <= now + timedelta(minutes=1)
            present = ours.keys() | {rule.key for rule in self.foreign}
            assert {opened.key for opened in record.opened} <= present, (
                f"a rule of the live grant {record.id} is gone"
            )
        for name in ("alice", "bob", "elsewhere"):
            record = records[self.ids[name]]
            assert record.grant == Grant.from_input(self.inputs[name])
            if record.state != "live":
                assert record.state in ENDS
                assert record.ended_at
                assert record.closed_at
                assert record.state in {event.event for event in record.events}

    def end_all(self, way: str) -> None:
        """End every grant in one way, and check that nothing is left of any."""
        for record in self.live():
            if way == "delete":
                answer = self.knock.request("DELETE", f"/grants/{record.id}", key="operator")
                assert answer.status == 200, answer.text
            elif way == "stop":
                self._stop(record)
        self.settle()
        if way in ("delete", "stop"):
            # Events are not delivered at once.
            self.knock.wait(lambda: not self._open(), f"{way} left a rule")
            self.settle()
        ends = [record.grant.expires_at for record in self.records().values() if record.closed_at is None]
        if way == "guard":
            self._lose_timers()
        now = self.knock.clock.now()
        self.knock.clock.advance(max([*ends, now]) - now + timedelta(seconds=10))
        self.settle()
        if way != "guard":
            assert not self._open(), "a rule is open past its end"
        for _ in range(2):
            self.knock.clock.advance(GRACE + timedelta(minutes=1))
            findings = self.knock.call("guard", {})["findings"]
            self.settle()
            assert not [finding for finding in findings if finding["did"].startswith("failed")]
        self.check()
        assert not self._open()
        assert not list(self.trail.unclosed())
        # An execution that runs a closed grant's input under another name ends with that grant.
        self.knock.clock.advance(LONGEST)
        self.settle()
        assert not self.executions()
        assert not self.executions(CLOSINGS)
        ledgers = list(Ledgers(self._store("LEDGER_DOMAIN")).all())
        assert not [
            item
            for item in ledgers
            if isinstance(item, Unreadable) or item.ledger.claims or item.ledger.rules
        ]

    def _open(self) -> list[Open]:
        return [rule for rule in self.rules() if rule.is_ours]

    def _stop(self, record: Record) -> None:
        """Stop every execution that runs a grant's input, whatever its name."""
        states = self.knock.client("stepfunctions")
        for name in self.executions():
            arn = f"{MACHINE.replace(':stateMachine:', ':execution:')}:{name}"
            if json.loads(states.describe_execution(executionArn=arn)["input"])["grant_id"] == record.id:
                states.stop_execution(executionArn=arn, cause="stop it")

    def _lose_timers(self) -> None:
        """Stop every execution, and lose the events of that."""
        self.knock.deliveries.drop(lambda _event: True)
        states = self.knock.client("stepfunctions")
        for name in self.executions():
            states.stop_execution(executionArn=f"{MACHINE.replace(':stateMachine:', ':execution:')}:{name}")

    def at(self, seconds: int) -> datetime:
        return self.knock.clock.now() + timedelta(seconds=seconds)


@contextmanager
def world() -> Iterator[World]:
    """Run a world."""
    with running() as knock:
        attacked = World(knock)
        attacked.build()
        yield attacked
