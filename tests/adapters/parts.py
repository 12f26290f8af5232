"""The parts under the contract: the strict twins, and the real adapters on the mended emulator; of stores
there are two adapters, and two implementations of DynamoDB.

Each test runs over both, so what is proved with a twin holds for the adapter. What people and other
programs do beside Knock (a group deleted, a rule added or changed by hand) each side does in its own way, and
so does the network (an answer that is lost).
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from grants.dynamodb import INDEXES, DynamoDb
from grants.executions import Closings, Executions
from grants.ingress import Ingress
from grants.simpledb import SimpleDb
from grants.store import Store
from grants.values import Grant, Ports, Principal, RuleKey, Target
from local import ec2, engine
from local.clock import Clock
from local.invocation import InvocationResult
from tests import twins
from tests.conftest import ROOT
from tests.waiting import wait_for

REGION = "eu-west-1"
NOW = datetime(2026, 11, 23, 21, 17, 19, 123_000, tzinfo=timezone.utc)
SSH, HTTP, HTTPS = Ports(22, 22, "tcp"), Ports(80, 80, "tcp"), Ports(443, 443, "tcp")
ALICE, BOB = Principal("k1", "alice"), Principal("k2", "bob")
HERE, ELSEWHERE = "203.0.113.7/32", "2001:db8::7/128"
BASTION = Target("bastion", (SSH,), ("sg-0a",))

_numbers = itertools.count()

# Prints the port it listens on. Ends when its standard input does.
_DYNALITE = """
process.stdin.resume().on('end', () => process.exit());
const server = require('dynalite')({createTableMs: 0});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


def new_grant(nonce: str = "", **changes: Any) -> Grant:
    """Make a grant of alice's for the bastion, for a day. Another `nonce` makes it another grant."""
    return Grant.decide(
        **{
            "principal": ALICE,
            "source": HERE,
            "targets": (BASTION,),
            "requested_at": NOW,
            "expires_at": NOW.replace(microsecond=0) + timedelta(days=1),
            "nonce": nonce,
            **changes,
        }
    )


class Parts(Protocol):
    """One implementation, and what happens to it beside Knock. `groups` are two groups of its own."""

    name: str
    ingress: Any
    executions: Any
    closings: Any
    groups: list[str]

    def now(self) -> datetime: ...
    def add_rule(self, key: RuleKey, *, egress: bool = False) -> str: ...
    def remove_rule(self, key: RuleKey, rule_id: str) -> None: ...
    def modify_rule(self, rule_id: str, key: RuleKey) -> None: ...
    def tag(self, group: str, target: Target) -> None: ...
    def set_quota(self, rules: int) -> None: ...
    def delete_group(self, group: str) -> None: ...
    def finish(self, grant_id: str) -> None: ...
    def closings_started(self, grant_id: str) -> list[Any]: ...


class Stores(Protocol):
    """One implementation of stores."""

    def store(self) -> Store:
        """Make a store of its own."""
        ...

    def lose_answer(self, after: int = 0) -> None:
        """Let the answer to a write be lost, after so many others: the client makes the call again."""
        ...


@dataclass
class Loss(twins.Hook):
    """Loses the answer to one write, which is so many writes ahead."""

    ahead: int = -1

    def twice(self, call: twins.Call) -> bool:
        self.ahead -= 1
        return self.ahead == -1


@dataclass
class Twins:
    """The twins."""

    name: str = "twin"

    def __post_init__(self) -> None:
        world = twins.World()
        self.ingress, self.executions, self.closings = world.ingress, world.executions, world.closings
        self.now = world.clock
        self.groups = ["sg-0a", "sg-0b"]
        for group in self.groups:
            self.ingress.add_group(group)

    def add_rule(self, key: RuleKey, *, egress: bool = False) -> str:
        return self.ingress.add_rule(key, egress=egress)

    def remove_rule(self, key: RuleKey, rule_id: str) -> None:
        self.ingress.remove_rule(rule_id)

    def modify_rule(self, rule_id: str, key: RuleKey) -> None:
        self.ingress.modify_rule(rule_id, key)

    def tag(self, group: str, target: Target) -> None:
        self.ingress.tag(group, target)

    def set_quota(self, rules: int) -> None:
        for group in self.groups:
            self.ingress.quota[group] = rules

    def delete_group(self, group: str) -> None:
        self.ingress.delete_group(group)

    def finish(self, grant_id: str) -> None:
        self.executions.finish(grant_id, "SUCCEEDED")

    def closings_started(self, grant_id: str) -> list[Any]:
        return [json.loads(text) for name, text in self.closings.started if name == grant_id]


@dataclass
class TwinStores:
    """The twins of stores."""

    loss: Loss = field(default_factory=Loss)

    def store(self) -> twins.Store:
        return twins.Store(self.loss)

    def lose_answer(self, after: int = 0) -> None:
        self.loss.ahead = after


class Lossy:
    """A client whose answers can be lost: the call is then made twice, and the second answer heard."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.ahead = -1

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)
        if not operation.startswith(("put_", "update_", "delete_")):
            return call
        self.ahead -= 1
        if self.ahead != -1:
            return call

        def twice(**arguments: Any) -> Any:
            call(**arguments)
            return call(**arguments)

        return twice


class Domains:
    """SimpleDB's domains."""

    def __init__(self, client: Any) -> None:
        self.client = Lossy(client)

    def store(self) -> SimpleDb:
        domain = f"knock-trail-{next(_numbers)}"
        self.client.create_domain(DomainName=domain)
        return SimpleDb(self.client, domain)  # type: ignore[arg-type]  # a client, wrapped

    def lose_answer(self, after: int = 0) -> None:
        self.client.ahead = after


class Tables:
    """DynamoDB's tables, with the trail's indexes. `table` is the last one made."""

    def __init__(self, client: Any) -> None:
        self.client = Lossy(client)
        self.table = ""

    def store(self) -> DynamoDb:
        return self.make("name", INDEXES)

    def make(self, key: str, indexes: Mapping[str, str]) -> DynamoDb:
        """Make a table with this key, and with indexes by attribute, as template.yaml does."""
        self.table = f"knock-trail-{next(_numbers)}"
        used = {key, *indexes, *(["order"] if indexes else [])}
        secondary = [
            {
                "IndexName": index,
                "KeySchema": [_key(attribute, "HASH"), _key("order", "RANGE")],
                "Projection": {"ProjectionType": "ALL"},
            }
            for attribute, index in indexes.items()
        ]
        self.client.create_table(
            TableName=self.table,
            AttributeDefinitions=[
                {"AttributeName": attribute, "AttributeType": "S"} for attribute in sorted(used)
            ],
            KeySchema=[_key(key, "HASH")],
            BillingMode="PAY_PER_REQUEST",
            **({"GlobalSecondaryIndexes": secondary} if secondary else {}),
        )
        wait_for(
            lambda: self.client.describe_table(TableName=self.table)["Table"]["TableStatus"] == "ACTIVE",
            f"the table {self.table} is not active",
        )
        return DynamoDb(self.client, self.table)  # type: ignore[arg-type]  # a client, wrapped

    def lose_answer(self, after: int = 0) -> None:
        self.client.ahead = after


def _key(attribute: str, kind: str) -> dict[str, str]:
    return {"AttributeName": attribute, "KeyType": kind}


class Dynalite:
    """The npm package dynalite, an independent DynamoDB, as a child of this process."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(
            [node, "-e", _DYNALITE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        port = int(self._process.stdout.readline())
        self.client = boto3.client(
            "dynamodb",
            region_name=REGION,
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="dynalite",
            aws_secret_access_key="local",
        )

    def close(self) -> None:
        self._process.communicate()  # closes its standard input, and with that it ends


class Adapters:
    """The adapters, with groups of their own."""

    name = "adapter"

    def __init__(self, emulator: Emulator) -> None:
        number = next(_numbers)
        self.emulator = emulator
        self.ec2 = emulator.client("ec2")
        self.now = emulator.clock.now
        self.stack = twins.STACK + str(number)
        self.ingress = Ingress(self.ec2, self.stack)
        self.executions = Executions(emulator.client("stepfunctions"), emulator.machine)
        self.closings = Closings(emulator.client("stepfunctions"), emulator.closings)
        vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.groups = sorted(
            self.ec2.create_security_group(GroupName=f"g{number}-{n}", Description="test", VpcId=vpc)[
                "GroupId"
            ]
            for n in range(2)
        )
        self.ec2.create_tags(Resources=self.groups, Tags=[{"Key": "knock:stack", "Value": self.stack}])
        ec2.install()

    def add_rule(self, key: RuleKey, *, egress: bool = False) -> str:
        field_, name = ("Ipv6Ranges", "CidrIpv6") if ":" in key.cidr else ("IpRanges", "CidrIp")
        call = (
            self.ec2.authorize_security_group_egress if egress else self.ec2.authorize_security_group_ingress
        )
        answer = call(
            GroupId=key.group,
            IpPermissions=[
                {
                    "IpProtocol": key.ports.protocol,
                    "FromPort": key.ports.first,
                    "ToPort": key.ports.last,
                    field_: [{name: key.cidr}],
                }
            ],
        )
        rule_id: str = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule_id

    def remove_rule(self, key: RuleKey, rule_id: str) -> None:
        self.ec2.revoke_security_group_ingress(GroupId=key.group, SecurityGroupRuleIds=[rule_id])

    def modify_rule(self, rule_id: str, key: RuleKey) -> None:
        cidr = {"CidrIpv6" if ":" in key.cidr else "CidrIpv4": key.cidr}
        ports = {"IpProtocol": key.ports.protocol, "FromPort": key.ports.first, "ToPort": key.ports.last}
        self.ec2.modify_security_group_rules(
            GroupId=key.group,
            SecurityGroupRules=[{"SecurityGroupRuleId": rule_id, "SecurityGroupRule": ports | cidr}],
        )

    def tag(self, group: str, target: Target) -> None:
        tags = {
            "knock:stack": self.stack,
            "knock:target": target.name,
            "knock:ports": " ".join(map(str, target.ports)),
        }
        self.ec2.create_tags(
            Resources=[group], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
        )

    def set_quota(self, rules: int) -> None:
        ec2.install(rules_per_group=rules)

    def delete_group(self, group: str) -> None:
        self.ec2.delete_security_group(GroupId=group)

    def finish(self, grant_id: str) -> None:
        self.emulator.finish(self.executions.arn(grant_id))

    def closings_started(self, grant_id: str) -> list[Any]:
        client = self.emulator.client("stepfunctions")
        executions = client.list_executions(stateMachineArn=self.emulator.closings)["executions"]
        return [
            json.loads(client.describe_execution(executionArn=execution["executionArn"])["input"])
            for execution in executions
            if execution["name"].startswith(grant_id[:63] + "_")
        ]


class Emulator:
    """The mended moto: one for all tests of a process, since it takes long to start."""

    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}
        self.clock = Clock()
        self.engine = engine.install(lambda _arn, _payload: InvocationResult(b"null"), clock=self.clock)
        self.machine = self._create(
            "knock-grants", {"Type": "Wait", "TimestampPath": "$.expires_at", "End": True}
        )
        self.closings = self._create("knock-closings", {"Type": "Succeed"})

    def _create(self, name: str, state: dict[str, Any]) -> str:
        arn: str = self.client("stepfunctions").create_state_machine(
            name=name,
            definition=json.dumps({"StartAt": "Only", "States": {"Only": state}}),
            roleArn="arn:aws:iam::123456789012:role/test",
        )["stateMachineArn"]
        return arn

    def client(self, service: Any) -> Any:
        if service not in self.clients:
            self.clients[service] = boto3.client(service, region_name=REGION)
        return self.clients[service]

    def finish(self, arn: str) -> None:
        """Move the clock until an execution ends."""
        self.clock.advance(timedelta(days=366))
        states = self.client("stepfunctions")
        wait_for(
            lambda: states.describe_execution(executionArn=arn)["status"] != "RUNNING",
            "the execution does not end",
        )

    def close(self) -> None:
        self.engine.shutdown()
        self.clock.close()


class Answers:
    """A client that gives these answers in turn, whatever is called, and records the calls."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls.append((operation, json.loads(json.dumps(arguments))))
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def answered(code: str, status: int = 400, message: str = "", **more: Any) -> ClientError:
    """What boto3 raises for an error that AWS answered."""
    response: Any = {"Error": {"Code": code, "Message": message}, **more}
    response["ResponseMetadata"] = {"HTTPStatusCode": status}
    return ClientError(response, "Operation")


# What holds of some stores only: of SimpleDB and its twin, or of DynamoDB.
simpledbs_own = pytest.mark.parametrize("stores", ["twin", "simpledb"], indirect=True)
dynamodbs_own = pytest.mark.parametrize("stores", ["dynamodb", "dynalite"], indirect=True)

NO_ANSWER = EndpointConnectionError(endpoint_url="https://example.com")
