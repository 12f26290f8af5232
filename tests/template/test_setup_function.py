"""The setup function, whose code stands in `template.yaml`: what it does for CloudFormation, and answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from local import engine
from local.clock import Clock
from local.invocation import InvocationResult
from local.template import Place, load
from tests.template.transform import TEMPLATE, transformed

REGION = "eu-central-1"


@dataclass(frozen=True)
class OneOf(Place):
    """A stack with an id of its own, as CloudFormation gives each."""

    stack_id: str = ""

    @property
    def pseudo_parameters(self) -> dict[str, Any]:
        return super().pseudo_parameters | {"AWS::StackId": self.arn("cloudformation", self.stack_id)}


class Answers(ModuleType):
    """Stands for `cfnresponse`, which Lambda puts beside code that is written in a template."""

    def __init__(self) -> None:
        super().__init__("cfnresponse")
        self.sent: list[tuple[str, str, str | None]] = []

    def send(
        self,
        _event: object,
        _context: object,
        status: str,
        _data: object,
        name: str,
        *,
        reason: str | None = None,
    ) -> None:
        self.sent.append((status, name, reason))


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    answers = Answers()
    monkeypatch.setitem(sys.modules, "cfnresponse", answers)
    code = transformed()["Resources"]["SetupFunction"]["Properties"]["Code"]["ZipFile"]
    namespace: dict[str, Any] = {}
    with mock_aws():
        exec(compile(code, "template.yaml:SetupFunction", "exec"), namespace)  # noqa: S102 - our own template
        pauses: list[float] = []
        namespace["time"] = SimpleNamespace(sleep=pauses.append)
        yield SimpleNamespace(
            handler=namespace["handler"], answers=answers.sent, pauses=pauses, code=namespace
        )


def ask(setup: SimpleNamespace, kind: str, request: str, **properties: str) -> None:
    setup.handler(
        {"ResourceType": f"Custom::{kind}", "RequestType": request, "ResourceProperties": properties}, None
    )


def group(name: str) -> str:
    ec2 = boto3.client("ec2", region_name=REGION)
    answer = ec2.create_security_group(GroupName=name, Description="a pool")
    return str(answer["GroupId"])


def open_rule(group_id: str, port: int, **tags: str) -> str:
    specification = [
        {
            "ResourceType": "security-group-rule",
            "Tags": [{"Key": f"knock:{k}", "Value": v} for k, v in tags.items()],
        }
    ]
    answer = boto3.client("ec2", region_name=REGION).authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": port,
                "ToPort": port,
                "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
            }
        ],
        **({"TagSpecifications": specification} if tags else {}),
    )
    return str(answer["SecurityGroupRules"][0]["SecurityGroupRuleId"])


def rules() -> set[str]:
    found = boto3.client("ec2", region_name=REGION).describe_security_group_rules()["SecurityGroupRules"]
    return {rule["SecurityGroupRuleId"] for rule in found if not rule["IsEgress"]}


def domains(region: str) -> list[str]:
    return list(boto3.client("sdb", region_name=region).list_domains().get("DomainNames", []))


class TestTrail:
    @pytest.mark.parametrize("request_", ["Create", "Update"])
    def test_the_domain_is_made_in_the_region_of_the_trail(
        self, setup: SimpleNamespace, request_: str
    ) -> None:
        ask(setup, "TrailDomain", request_, Domain="knock-trail-1c2fa620", Region="eu-west-1")
        assert domains("eu-west-1") == ["knock-trail-1c2fa620"]
        assert setup.answers == [("SUCCESS", "knock-trail-1c2fa620", None)]

    def test_a_stack_made_anew_under_an_old_name_has_a_trail_of_its_own(self) -> None:
        """Or the claims of grants that ran when the old one was deleted would keep its rules open.

        Mutation: `Domain: !Sub ${AWS::StackName}-trail`.
        """
        names = {
            load(TEMPLATE, OneOf("knock", REGION, stack_id=f"stack/knock/{word}-982a-11e3-aff7-50e2416294e0"))
            .resources["Trail"]
            .ref
            for word in ("1c2fa620", "7e5d44b0")
        }
        assert names == {"knock-trail-1c2fa620", "knock-trail-7e5d44b0"}

    def test_the_domain_stays_when_the_stack_goes(self, setup: SimpleNamespace) -> None:
        ask(setup, "TrailDomain", "Create", Domain="knock-trail-x", Region="eu-west-1")
        ask(setup, "TrailDomain", "Delete", Domain="knock-trail-x", Region="eu-west-1")
        assert domains("eu-west-1") == ["knock-trail-x"]
        assert setup.answers[-1] == ("SUCCESS", "knock-trail-x", None)

    def test_a_failure_is_answered_with_its_reason(self, setup: SimpleNamespace) -> None:
        """Without an answer CloudFormation would wait until the timeout, and then say nothing of why."""
        ask(setup, "TrailDomain", "Create", Domain="x", Region="not a region")
        ((status, name, reason),) = setup.answers
        assert (status, name) == ("FAILED", "x")
        assert reason is not None
        assert "not a region" in reason


class TestLastGrants:
    @pytest.fixture
    def machine(self, setup: SimpleNamespace) -> Iterator[str]:
        running = engine.install(lambda _arn, _payload: InvocationResult(b"null"), clock=Clock())
        states = boto3.client("stepfunctions", region_name=REGION)
        waits = {"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 3600, "End": True}}}
        answer = states.create_state_machine(
            name="knock-grants",
            definition=json.dumps(waits),
            roleArn="arn:aws:iam::123456789012:role/grants",
        )
        yield str(answer["stateMachineArn"])
        running.shutdown()

    def start(self, machine: str, name: str) -> None:
        boto3.client("stepfunctions", region_name=REGION).start_execution(stateMachineArn=machine, name=name)

    def by_status(self, machine: str) -> dict[str, str]:
        states = boto3.client("stepfunctions", region_name=REGION)
        found = states.list_executions(stateMachineArn=machine)["executions"]
        return {one["name"]: one["status"] for one in found}

    def test_deleting_the_stack_stops_its_grants_and_one_that_starts_meanwhile(
        self, setup: SimpleNamespace, machine: str
    ) -> None:
        """Mutation: one look instead of three."""
        self.start(machine, "one")
        self.start(machine, "two")
        names = iter(["late"])

        def sleep(seconds: float) -> None:
            setup.pauses.append(seconds)
            for name in names:
                self.start(machine, name)

        setup.code["time"] = SimpleNamespace(sleep=sleep)
        ask(setup, "LastGrants", "Delete", StateMachine=machine)
        assert self.by_status(machine) == {"one": "ABORTED", "two": "ABORTED", "late": "ABORTED"}
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_the_functions_that_close_stopped_grants_are_given_time(
        self, setup: SimpleNamespace, machine: str
    ) -> None:
        """EventBridge tells them some seconds later; what they miss, LastRules closes."""
        ask(setup, "LastGrants", "Delete", StateMachine=machine)
        assert setup.pauses[-1] >= 20

    @pytest.mark.parametrize("request_", ["Create", "Update"])
    def test_no_grant_is_stopped_while_the_stack_lives(
        self, setup: SimpleNamespace, machine: str, request_: str
    ) -> None:
        self.start(machine, "one")
        ask(setup, "LastGrants", request_, StateMachine=machine)
        assert self.by_status(machine) == {"one": "RUNNING"}
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_it_runs_between_the_right_to_start_and_the_state_machine(self) -> None:
        """CloudFormation deletes in the reverse order of what depends on what.

        Mutations: `DependsOn: LastGrants` deleted; `StateMachine: !Ref Grants` made a text.
        """
        resources = transformed()["Resources"]
        starters = {name for name, one in resources.items() if "states:StartExecution" in str(one)}
        assert starters == {"ApiRole"}
        assert resources["ApiRole"]["DependsOn"] == "LastGrants"
        assert resources["LastGrants"]["Properties"]["StateMachine"] == {"Ref": "Grants"}
        assert set(resources["LastGrants"]["DependsOn"]) == {"GrantStopped", "GrantStoppedMayInvoke"}


class TestLastRules:
    def test_deleting_the_stack_closes_its_rules_and_no_others(self, setup: SimpleNamespace) -> None:
        """Mutation: the Filters of the paginator deleted."""
        pool, other = group("pool"), group("other")
        ours = {
            open_rule(pool, 22, stack="knock", grant="a"),
            open_rule(other, 443, stack="knock", grant="b"),
        }
        foreign = {open_rule(pool, 443), open_rule(pool, 80, stack="another", grant="c")}
        assert rules() == ours | foreign
        ask(setup, "LastRules", "Delete", Stack="knock")
        assert rules() == foreign
        assert setup.answers == [("SUCCESS", "last-rules", None)]

    @pytest.mark.parametrize("request_", ["Create", "Update"])
    def test_nothing_is_closed_while_the_stack_lives(self, setup: SimpleNamespace, request_: str) -> None:
        rule = open_rule(group("pool"), 22, stack="knock", grant="a")
        ask(setup, "LastRules", request_, Stack="knock")
        assert rules() == {rule}
        assert setup.answers == [("SUCCESS", "last-rules", None)]

    def test_a_rule_that_is_gone_is_no_error_and_one_listed_late_is_found(
        self, setup: SimpleNamespace
    ) -> None:
        """EC2's lists are seconds old: the first shows a rule that is gone, not the one that is there."""
        pool, ec2 = group("pool"), boto3.client("ec2", region_name=REGION)
        gone = open_rule(pool, 22, stack="knock", grant="a")
        ec2.revoke_security_group_ingress(GroupId=pool, SecurityGroupRuleIds=[gone])
        late = open_rule(pool, 443, stack="knock", grant="b")
        looks = iter([gone, late, gone])

        def paginate(**_filters: object) -> list[dict[str, Any]]:
            return [{"SecurityGroupRules": [{"GroupId": pool, "SecurityGroupRuleId": next(looks)}]}]

        lagging = SimpleNamespace(
            get_paginator=lambda _operation: SimpleNamespace(paginate=paginate),
            revoke_security_group_ingress=ec2.revoke_security_group_ingress,
        )
        setup.code["boto3"] = SimpleNamespace(client=lambda *_names, **_options: lagging)
        ask(setup, "LastRules", "Delete", Stack="knock")
        assert setup.answers == [("SUCCESS", "last-rules", None)]
        assert rules() == set()
        assert sum(setup.pauses) >= 10

    def test_a_rule_that_cannot_be_closed_keeps_the_stack(
        self, setup: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rule = open_rule(group("pool"), 22, stack="knock", grant="a")

        def refuse(_self: object, operation: str, _arguments: object) -> object:
            if operation == "RevokeSecurityGroupIngress":
                raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, operation)
            return real(_self, operation, _arguments)

        from botocore.client import BaseClient

        real = BaseClient._make_api_call
        monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
        ask(setup, "LastRules", "Delete", Stack="knock")
        ((status, _, reason),) = setup.answers
        assert status == "FAILED"
        assert "UnauthorizedOperation" in str(reason)
        monkeypatch.undo()
        assert rules() == {rule}

    def test_it_runs_after_everything_that_can_open_is_gone(self) -> None:
        """CloudFormation deletes in the reverse order of what depends on what.

        Mutation: `DependsOn: LastRules` deleted.
        """
        resources = transformed()["Resources"]
        openers = {
            name
            for name, resource in resources.items()
            if "ec2:AuthorizeSecurityGroupIngress" in str(resource.get("Properties", {}))
        }
        assert openers == {"AuthorizeRole"}
        assert resources["AuthorizeRole"]["DependsOn"] == "LastRules"
