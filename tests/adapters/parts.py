"""The parts under the contract: the strict twins, and the real adapters on the mended emulator.

Each test runs over both, so what a proof learns from a twin is so for the adapter. What people and other
programs do beside Knock (a group deleted, a rule added by hand) each side does in its own way.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import boto3

from grants.executions import Executions
from grants.ingress import Ingress
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, RuleKey, Target
from local import ec2, engine
from local.clock import Clock
from local.invocation import InvocationResult
from tests import twins

REGION = "eu-west-1"
NOW = datetime(2026, 11, 23, 21, 17, 19, 123_000, tzinfo=timezone.utc)
SSH, HTTP, HTTPS = Ports(22, 22, "tcp"), Ports(80, 80, "tcp"), Ports(443, 443, "tcp")
ALICE, BOB = Principal("k1", "alice"), Principal("k2", "bob")
HERE = "203.0.113.7/32"

_numbers = itertools.count()


def grant(grant_id: str, **changes: Any) -> Grant:
    """A grant of alice's for the bastion, for a day."""
    return Grant(
        **{
            "id": grant_id,
            "principal": ALICE,
            "source": HERE,
            "targets": (Target("bastion", (SSH,), ("sg-0a",)),),
            "requested_at": NOW,
            "expires_at": NOW.replace(microsecond=0) + timedelta(days=1),
            **changes,
        }
    )


class Parts(Protocol):
    """One implementation, and what happens to it beside Knock. `groups` are two groups of its own."""

    name: str
    trail: Any
    ingress: Any
    executions: Any
    groups: list[str]

    def now(self) -> datetime: ...
    def add_rule(self, key: RuleKey) -> str: ...
    def remove_rule(self, key: RuleKey, rule_id: str) -> None: ...
    def set_quota(self, rules: int) -> None: ...
    def delete_group(self, group: str) -> None: ...
    def finish(self, grant_id: str) -> None: ...


@dataclass
class Twins:
    """The twins."""

    name: str = "twin"

    def __post_init__(self) -> None:
        world = twins.World()
        self.trail, self.ingress, self.executions = world.trail, world.ingress, world.executions
        self.now = world.clock
        self.groups = ["sg-0a", "sg-0b"]
        for group in self.groups:
            self.ingress.add_group(group)

    def add_rule(self, key: RuleKey) -> str:
        return self.ingress.add_rule(key)

    def remove_rule(self, key: RuleKey, rule_id: str) -> None:
        self.ingress.remove_rule(key)

    def set_quota(self, rules: int) -> None:
        for group in self.groups:
            self.ingress.groups[group] = rules

    def delete_group(self, group: str) -> None:
        self.ingress.delete_group(group)

    def finish(self, grant_id: str) -> None:
        self.executions.finish(grant_id, "SUCCEEDED")


class Adapters:
    """The adapters, in a domain and with groups of their own."""

    name = "adapter"

    def __init__(self, emulator: Emulator) -> None:
        number = next(_numbers)
        self.emulator = emulator
        sdb, self.ec2 = emulator.client("sdb"), emulator.client("ec2")
        domain = f"knock-Trail-{number}"
        sdb.create_domain(DomainName=domain)
        self.trail = Trail(sdb, domain)
        self.now = emulator.clock.now
        self.ingress = Ingress(self.ec2, twins.STACK + str(number))
        self.executions = Executions(emulator.client("stepfunctions"), emulator.machine)
        vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.groups = sorted(
            self.ec2.create_security_group(GroupName=f"g{number}-{n}", Description="test", VpcId=vpc)[
                "GroupId"
            ]
            for n in range(2)
        )
        ec2.install()

    def add_rule(self, key: RuleKey) -> str:
        field, name = ("Ipv6Ranges", "CidrIpv6") if ":" in key.cidr else ("IpRanges", "CidrIp")
        answer = self.ec2.authorize_security_group_ingress(
            GroupId=key.group,
            IpPermissions=[
                {
                    "IpProtocol": key.ports.protocol,
                    "FromPort": key.ports.first,
                    "ToPort": key.ports.last,
                    field: [{name: key.cidr}],
                }
            ],
        )
        rule_id: str = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule_id

    def remove_rule(self, key: RuleKey, rule_id: str) -> None:
        self.ec2.revoke_security_group_ingress(GroupId=key.group, SecurityGroupRuleIds=[rule_id])

    def set_quota(self, rules: int) -> None:
        ec2.install(rules_per_group=rules)

    def delete_group(self, group: str) -> None:
        self.ec2.delete_security_group(GroupId=group)

    def finish(self, grant_id: str) -> None:
        self.emulator.finish(self.executions.arn(grant_id))


class Emulator:
    """The mended moto: one for all tests of a process, since it takes long to start."""

    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}
        self.clock = Clock()
        self.engine = engine.install(lambda _arn, _payload: InvocationResult(b"null"), clock=self.clock)
        states = {"Hold": {"Type": "Wait", "TimestampPath": "$.expires_at", "End": True}}
        self.machine: str = self.client("stepfunctions").create_state_machine(
            name="knock-grants",
            definition=json.dumps({"StartAt": "Hold", "States": states}),
            roleArn="arn:aws:iam::123456789012:role/test",
        )["stateMachineArn"]

    def client(self, service: Any) -> Any:
        if service not in self.clients:
            self.clients[service] = boto3.client(service, region_name=REGION)
        return self.clients[service]

    def finish(self, arn: str) -> None:
        """Move the clock until an execution ends."""
        self.clock.advance(timedelta(days=366))
        deadline = datetime.now(timezone.utc) + timedelta(seconds=10)
        while self.client("stepfunctions").describe_execution(executionArn=arn)["status"] == "RUNNING":
            assert datetime.now(timezone.utc) < deadline, "the execution does not end"

    def close(self) -> None:
        self.engine.shutdown()
        self.clock.close()
