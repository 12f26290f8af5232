"""The setup function, whose code is in `template.yaml`: its effects for CloudFormation, and its answers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto import mock_aws

from grants import timing
from local import engine
from local.clock import Clock
from local.invocation import InvocationResult
from tests.template.transform import transformed

REGION = "eu-central-1"


class Answers(ModuleType):
    """Stands for `cfnresponse`, a module that Lambda adds to code in a template."""

    def __init__(self) -> None:
        super().__init__("cfnresponse")
        self.statuses: list[tuple[str, str, str | None]] = []
        self.data: list[object] = []

    def send(
        self,
        _event: object,
        _context: object,
        status: str,
        data: object,
        name: str,
        *,
        reason: str | None = None,
    ) -> None:
        self.statuses.append((status, name, reason))
        self.data.append(data)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_REGION", REGION)
    answers = Answers()
    monkeypatch.setitem(sys.modules, "cfnresponse", answers)
    code = transformed()["Resources"]["SetupFunction"]["Properties"]["Code"]["ZipFile"]
    namespace: dict[str, Any] = {}
    with mock_aws():
        exec(compile(code, "template.yaml:SetupFunction", "exec"), namespace)  # noqa: S102 - our own template
        pauses: list[float] = []
        namespace["time"] = SimpleNamespace(sleep=pauses.append)
        yield SimpleNamespace(
            handler=namespace["handler"],
            answers=answers.statuses,
            data=answers.data,
            pauses=pauses,
            code=namespace,
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
    answer = boto3.client("ec2", region_name=REGION).describe_security_group_rules()
    return {rule["SecurityGroupRuleId"] for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]}


def domains(region: str) -> list[str]:
    return list(boto3.client("sdb", region_name=region).list_domains().get("DomainNames", []))


def ask_for_domain(
    setup: SimpleNamespace,
    request: str,
    region: str,
    name: str = "",
    old_region: str = "",
    word: str = "1c2fa620",
) -> str:
    """Ask for the trail's domain as CloudFormation does; give its physical id, the name that was answered."""
    nearest = transformed()["Resources"]["Trail"]["Properties"]["Nearest"]
    properties = {"Name": "knock-trail", "Region": region, "Nearest": nearest}
    event = {
        "ResourceType": "Custom::Domain",
        "RequestType": request,
        "RequestId": f"{word}-982a-11e3-aff7-50e2416294e0",
        "ResourceProperties": properties,
    }
    if request != "Create":
        event["PhysicalResourceId"] = name
    if request == "Update":
        event["OldResourceProperties"] = properties | {"Region": old_region}
    setup.handler(event, None)
    status, answered, reason = setup.answers[-1]
    assert (status, reason) == ("SUCCESS", None)
    return str(answered)


class TestDomains:
    @pytest.mark.parametrize(("region", "expected"), [("us-west-2", "us-west-2"), ("", "eu-west-1")])
    def test_a_domain_is_made_in_the_given_region_or_else_the_nearest(
        self, setup: SimpleNamespace, region: str, expected: str
    ) -> None:
        """The region is answered, for functions and policies."""
        assert ask_for_domain(setup, "Create", region) == "knock-trail-1c2fa620"
        assert domains(expected) == ["knock-trail-1c2fa620"]
        assert setup.data == [{"Region": expected}]

    def test_the_same_request_twice_is_one_domain(self, setup: SimpleNamespace) -> None:
        """Lambda may deliver an event twice, and does so after the function crashed."""
        assert ask_for_domain(setup, "Create", "") == ask_for_domain(setup, "Create", "")
        assert domains("eu-west-1") == ["knock-trail-1c2fa620"]

    def test_a_domain_made_anew_has_another_name(self, setup: SimpleNamespace) -> None:
        """Under the old name, claims of grants that ended meanwhile would keep their rules open.

        Mutation: `return f"{asked['Name']}-{event['RequestId'][:8]}"` -> `return asked['Name']`
        """
        names = {ask_for_domain(setup, "Create", "", word=word) for word in ("1c2fa620", "7e5d44b0")}
        assert names == {"knock-trail-1c2fa620", "knock-trail-7e5d44b0"}

    @pytest.mark.parametrize("old_region", ["", "eu-west-1"])
    def test_an_update_keeps_the_domain(self, setup: SimpleNamespace, old_region: str) -> None:
        name = ask_for_domain(setup, "Create", old_region)
        assert ask_for_domain(setup, "Update", "", name, old_region, word="7e5d44b0") == name
        assert domains("eu-west-1") == [name]
        assert setup.data[-1] == {"Region": "eu-west-1"}

    def test_an_update_of_the_region_makes_a_new_domain(self, setup: SimpleNamespace) -> None:
        """Mutation: ` or before and region_of(before) != region_of(asked)` deleted."""
        name = ask_for_domain(setup, "Create", "")
        new = ask_for_domain(setup, "Update", "us-west-2", name, "", word="7e5d44b0")
        assert (name, new) == ("knock-trail-1c2fa620", "knock-trail-7e5d44b0")
        assert (domains("eu-west-1"), domains("us-west-2")) == ([name], [new])

    def test_the_domain_stays_when_the_stack_is_deleted(self, setup: SimpleNamespace) -> None:
        name = ask_for_domain(setup, "Create", "")
        assert ask_for_domain(setup, "Delete", "", name) == name
        assert domains("eu-west-1") == [name]

    def test_a_failure_is_answered_with_its_reason(self, setup: SimpleNamespace) -> None:
        """Without an answer CloudFormation would wait until the timeout, and give no reason."""
        with pytest.raises(AssertionError):
            ask_for_domain(setup, "Create", "not a region")
        ((status, name, reason),) = setup.answers
        assert (status, name) == ("FAILED", "knock-trail-1c2fa620")
        assert "not a region" in str(reason)


def refusal(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateDomain")


class TestRefusals:
    """AWS takes no new customers for SimpleDB; the error it gives them is not documented."""

    def make(self, setup: SimpleNamespace, *answers: ClientError | None) -> tuple[str, str]:
        """Ask for a domain while SimpleDB gives these answers in turn, and the last one from then on."""
        remaining = list(answers)
        created: list[str] = []

        def create_domain(*, DomainName: str) -> None:  # noqa: N803 - SimpleDB's own name
            answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            if answer:
                raise answer
            created.append(DomainName)

        simpledb = SimpleNamespace(create_domain=create_domain)
        setup.code["boto3"] = SimpleNamespace(client=lambda *_names, **_options: simpledb)
        nearest = transformed()["Resources"]["Trail"]["Properties"]["Nearest"]
        event = {
            "ResourceType": "Custom::Domain",
            "RequestType": "Create",
            "RequestId": "1c2fa620-982a-11e3-aff7-50e2416294e0",
            "ResourceProperties": {"Name": "knock-trail", "Region": "", "Nearest": nearest},
        }
        setup.handler(event, None)
        ((status, name, reason),) = setup.answers
        assert created == ([name] if status == "SUCCESS" else [])
        return str(status), str(reason)

    @pytest.mark.parametrize(
        ("code", "status"),
        [("OptInRequired", 403), ("AccessDenied", 403), ("AuthFailure", 401), ("SubscriptionRequired", 400)],
    )
    def test_a_refusal_says_what_to_do(self, setup: SimpleNamespace, code: str, status: int) -> None:
        """Mutation: template.yaml:
        `                          raise RuntimeError(REFUSED.format(region, name, error)) from error` ->
        `                          raise`
        """
        answered, reason = self.make(setup, refusal(code, status))
        assert answered == "FAILED"
        for text in (
            "SimpleDB in eu-west-1",
            "knock-trail-1c2fa620",
            code,
            "July 2024",
            "TrailStore=dynamodb",
        ):
            assert text in reason
        assert len(reason) < 2048  # of CloudFormation's 4,096 for the whole answer

    def test_a_refusal_of_the_new_role_is_tried_again(self, setup: SimpleNamespace) -> None:
        """A new role takes seconds to be known. Mutation: `(1, 2, 4, 8, 10, 10, None)` -> `(None,)`."""
        denied = refusal("AccessDenied", 403)
        assert self.make(setup, denied, denied, denied, denied, denied, None) == ("SUCCESS", "None")
        assert setup.pauses == [1, 2, 4, 8, 10]

    def test_a_lasting_refusal_is_given_up_in_time(self, setup: SimpleNamespace) -> None:
        self.make(setup, refusal("AccessDenied", 403))
        timeout = transformed()["Resources"]["Trail"]["Properties"]["ServiceTimeout"]
        assert 30 <= sum(setup.pauses) < timeout / 2

    def test_another_error_is_not_tried_again(self, setup: SimpleNamespace) -> None:
        self.make(setup, refusal("NumberDomainsExceeded", 409))
        assert setup.pauses == []

    def test_an_outage_is_reported_as_it_is(self, setup: SimpleNamespace) -> None:
        status, reason = self.make(setup, refusal("ServiceUnavailable", 503))
        assert status == "FAILED"
        assert "ServiceUnavailable" in reason
        assert "TrailStore" not in reason


@dataclass
class NewRole:
    """A role made seconds ago: its denied operations, each with the seconds after which it is allowed."""

    setup: SimpleNamespace
    denied: dict[str, int] = field(default_factory=dict)

    def check(self, operation: str) -> None:
        """Deny an operation that is not allowed yet."""
        if sum(self.setup.pauses) < self.denied.get(operation, 0):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)


@pytest.fixture
def role(setup: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> NewRole:
    role = NewRole(setup)
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: BaseClient, operation: str, parameters: object) -> object:
        role.check(operation)
        return real(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    return role


@dataclass
class Machines:
    """The two state machines, and a clock that the setup function's pauses move."""

    clock: Clock
    grants: str
    closings: str

    def start(self, machine: str, name: str) -> None:
        states = boto3.client("stepfunctions", region_name=REGION)
        states.start_execution(stateMachineArn=machine, name=name)

    def by_status(self, machine: str) -> dict[str, str]:
        states = boto3.client("stepfunctions", region_name=REGION)
        executions = states.list_executions(stateMachineArn=machine)["executions"]
        return {execution["name"]: execution["status"] for execution in executions}

    def inputs(self, machine: str) -> list[Any]:
        states = boto3.client("stepfunctions", region_name=REGION)
        executions = states.list_executions(stateMachineArn=machine)["executions"]
        return [
            json.loads(states.describe_execution(executionArn=execution["executionArn"])["input"])
            for execution in executions
        ]


class TestLastGrants:
    CLOSES_IN = 30  # seconds a closing takes here

    @pytest.fixture
    def machines(self, setup: SimpleNamespace) -> Iterator[Machines]:
        clock = Clock()
        running = engine.install(lambda _arn, _payload: InvocationResult(b"null"), clock=clock)
        states = boto3.client("stepfunctions", region_name=REGION)

        def machine(name: str, seconds: int) -> str:
            waits = {"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": seconds, "End": True}}}
            answer = states.create_state_machine(
                name=name, definition=json.dumps(waits), roleArn="arn:aws:iam::123456789012:role/r"
            )
            return str(answer["stateMachineArn"])

        both = Machines(clock, machine("knock-grants", 3600), machine("knock-closings", self.CLOSES_IN))
        setup.code["time"] = SimpleNamespace(sleep=lambda seconds: self.pause(setup, both, seconds))
        yield both
        running.shutdown()
        clock.close()

    def pause(self, setup: SimpleNamespace, machines: Machines, seconds: float) -> None:
        """Let time pass, and executions end that are due."""
        setup.pauses.append(seconds)
        machines.clock.advance(timedelta(seconds=seconds))
        time.sleep(0.05)

    def delete(self, setup: SimpleNamespace, machines: Machines, request: str = "Delete") -> None:
        ask(setup, "LastGrants", request, StateMachine=machines.grants, Closings=machines.closings)

    def test_deleting_the_stack_stops_its_grants_and_one_that_starts_meanwhile(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        """Mutation: one look instead of three."""
        machines.start(machines.grants, "one")
        machines.start(machines.grants, "two")
        names = iter(["late"])

        def sleep(seconds: float) -> None:
            self.pause(setup, machines, seconds)
            for name in names:
                machines.start(machines.grants, name)

        setup.code["time"] = SimpleNamespace(sleep=sleep)
        self.delete(setup, machines)
        assert machines.by_status(machines.grants) == {"one": "ABORTED", "two": "ABORTED", "late": "ABORTED"}
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_each_stopped_grant_is_closed_on_record_although_the_event_rule_is_deleted(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        """Mutation: the call of `start_execution` deleted."""
        machines.start(machines.grants, "one")
        machines.start(machines.grants, "two")
        self.delete(setup, machines)
        assert set(machines.by_status(machines.closings).values()) == {"SUCCEEDED"}
        by = {"id": "cloudformation", "name": "CloudFormation"}
        assert sorted(machines.inputs(machines.closings), key=str) == [
            {"how": "revoked", "grant": {"grant_id": name}, "by": by, "reason": "the stack is deleted"}
            for name in ("one", "two")
        ]

    def test_a_new_role_stops_and_closes_them_once_it_is_allowed_to(
        self, setup: SimpleNamespace, machines: Machines, role: NewRole
    ) -> None:
        """A stack that cannot be made is deleted at once, when its roles are new.

        Mutation: template.yaml: `patiently(states.start_execution, ` -> `states.start_execution(`
        """
        machines.start(machines.grants, "one")
        role.denied |= {"ListExecutions": 10, "StopExecution": 25, "StartExecution": 90}
        self.delete(setup, machines)
        assert setup.answers == [("SUCCESS", "last-grants", None)]
        role.denied.clear()
        assert machines.by_status(machines.grants) == {"one": "ABORTED"}
        assert [closing["grant"] for closing in machines.inputs(machines.closings)] == [{"grant_id": "one"}]

    def test_authorize_has_ended_before_the_closings_are_waited_for(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        """It may start a closing as long as it runs. Mutation: `(10, 10, 20)` -> `(1, 1, 1)`."""
        timeout = transformed()["Resources"]["AuthorizeFunction"]["Properties"]["Timeout"]
        self.delete(setup, machines)
        assert setup.pauses[2] >= timeout

    def test_running_closings_are_given_time_and_then_stopped(
        self, setup: SimpleNamespace, machines: Machines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Longer than SETTLES. Mutation: the last call of `stop` deleted."""
        states = boto3.client("stepfunctions", region_name=REGION)
        waits = {"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 9000, "End": True}}}
        states.update_state_machine(stateMachineArn=machines.closings, definition=json.dumps(waits))
        machines.start(machines.closings, "stubborn")
        self.delete(setup, machines)
        assert machines.by_status(machines.closings) == {"stubborn": "ABORTED"}
        assert sum(setup.pauses) > timing.SETTLES.total_seconds() + 40
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_closings_that_have_ended_are_not_waited_for(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        self.delete(setup, machines)
        assert sum(setup.pauses) <= 60

    def test_its_pauses_fit_into_the_functions_timeout_and_that_into_cloudformations(self) -> None:
        resources = transformed()["Resources"]
        timeout = resources["SetupFunction"]["Properties"]["Timeout"]
        for name in ("LastGrants", "LastRules"):
            assert timeout < resources[name]["Properties"]["ServiceTimeout"]
        assert timeout / 2 > 40 + 240 + 10  # pauses; the other half is for throttled calls

    @pytest.mark.parametrize("request_", ["Create", "Update"])
    def test_no_grant_is_stopped_while_the_stack_lives(
        self, setup: SimpleNamespace, machines: Machines, request_: str
    ) -> None:
        machines.start(machines.grants, "one")
        machines.start(machines.closings, "two")
        self.delete(setup, machines, request_)
        assert machines.by_status(machines.grants) == {"one": "RUNNING"}
        assert machines.by_status(machines.closings) == {"two": "RUNNING"}
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_it_is_deleted_after_roles_that_start_executions_and_before_what_those_need(self) -> None:
        """CloudFormation deletes a resource before those it depends on.

        Mutations: a `DependsOn: LastGrants` deleted; `Closings: !Ref Closings` made a text.
        """
        needed = needs("LastGrants")
        assert needed >= {
            "Grants", "GrantsRole", "Closings", "ClosingsRole", "AuthorizeFunction", "AuthorizeRole",
            "RevokeFunction", "RevokeRole", "IngressPolicy", "Trail", "Ledger", "SetupFunction", "SetupRole",
        }  # fmt: skip
        starters = {
            name
            for name, resource in transformed()["Resources"].items()
            if resource["Type"] == "AWS::IAM::Role" and "states:StartExecution" in str(resource)
        }
        assert starters == {"ApiRole", "AuthorizeRole", "GrantStoppedRole", "SetupRole"}
        # The authorize function runs for grants alone, and the setup function starts these closings itself.
        for name in starters - {"AuthorizeRole", "SetupRole"} | {"GrantStopped"}:
            assert "LastGrants" in needs(name), name
            assert name not in needed

    def test_the_rule_of_stop_events_is_deleted_before_its_role(self) -> None:
        assert "GrantStoppedRole" in needs("GrantStopped")

    def test_no_resource_depends_on_itself(self) -> None:
        """CloudFormation refuses circular dependencies."""
        for name in transformed()["Resources"]:
            assert name not in needs(name)


def needs(name: str) -> set[str]:
    """List the resources that a resource depends on, also indirectly; they are deleted after it."""
    resources = transformed()["Resources"]
    needed: set[str] = set()
    ahead = [name]
    while ahead:
        resource = resources[ahead.pop()]
        depends = resource.get("DependsOn", [])
        direct = set([depends] if isinstance(depends, str) else depends) | set(
            references(resource.get("Properties", {}))
        )
        new = {dependency for dependency in direct if dependency in resources} - needed
        needed |= new
        ahead += new
    return needed


def references(value: object) -> Iterator[str]:
    """Walk through the names in Ref, GetAtt and Sub in a part of the template."""
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "Ref":
                yield inner
            elif key == "Fn::GetAtt":
                yield inner[0] if isinstance(inner, list) else inner.partition(".")[0]
            elif key == "Fn::Sub":
                text, variables = (inner, {}) if isinstance(inner, str) else inner
                yield from (
                    placeholder.partition(".")[0] for placeholder in re.findall(r"\$\{([^}!]+)\}", text)
                )
                yield from references(variables)
            else:
                yield from references(inner)


class TestRollBack:
    """A stack that cannot be made is deleted at once, by a role made seconds ago."""

    def test_rules_are_closed_once_the_role_is_allowed_to(
        self, setup: SimpleNamespace, role: NewRole
    ) -> None:
        """Mutation: template.yaml: `pages = patiently(lambda: list(lists.paginate(Filters=ours)))` ->
        `pages = list(lists.paginate(Filters=ours))`
        """
        open_rule(group("pool"), 22, stack="knock", grant="a")
        role.denied |= {"DescribeSecurityGroupRules": 20, "RevokeSecurityGroupIngress": 45}
        ask(setup, "LastRules", "Delete", Stack="knock")
        assert setup.answers == [("SUCCESS", "last-rules", None)]
        role.denied.clear()
        assert rules() == set()

    def test_a_permission_that_stays_denied_is_reported(self, setup: SimpleNamespace, role: NewRole) -> None:
        role.denied["DescribeSecurityGroupRules"] = 10_000
        ask(setup, "LastRules", "Delete", Stack="knock")
        ((status, _, reason),) = setup.answers
        assert status == "FAILED"
        assert "AccessDeniedException" in str(reason)
        assert 30 <= sum(setup.pauses) < 60


class TestLastRules:
    def test_deleting_the_stack_revokes_its_rules_and_no_others(self, setup: SimpleNamespace) -> None:
        """Mutation: the Filters of the paginator deleted."""
        pool, another = group("pool"), group("other")
        ours = {
            open_rule(pool, 22, stack="knock", grant="a"),
            open_rule(another, 443, stack="knock", grant="b"),
        }
        foreign = {open_rule(pool, 443), open_rule(pool, 80, stack="another", grant="c")}
        assert rules() == ours | foreign
        ask(setup, "LastRules", "Delete", Stack="knock")
        assert rules() == foreign
        assert setup.answers == [("SUCCESS", "last-rules", None)]

    @pytest.mark.parametrize("request_", ["Create", "Update"])
    def test_no_rule_is_revoked_while_the_stack_lives(self, setup: SimpleNamespace, request_: str) -> None:
        rule = open_rule(group("pool"), 22, stack="knock", grant="a")
        ask(setup, "LastRules", request_, Stack="knock")
        assert rules() == {rule}
        assert setup.answers == [("SUCCESS", "last-rules", None)]

    def test_a_rule_already_revoked_is_no_error_and_a_rule_listed_late_is_revoked(
        self, setup: SimpleNamespace
    ) -> None:
        """EC2's lists are eventually consistent: the first has the revoked rule, and not the open one."""
        pool, ec2 = group("pool"), boto3.client("ec2", region_name=REGION)
        revoked = open_rule(pool, 22, stack="knock", grant="a")
        ec2.revoke_security_group_ingress(GroupId=pool, SecurityGroupRuleIds=[revoked])
        late = open_rule(pool, 443, stack="knock", grant="b")
        looks = iter([revoked, late, revoked])

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

    def test_a_rule_that_cannot_be_revoked_keeps_the_stack(
        self, setup: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rule = open_rule(group("pool"), 22, stack="knock", grant="a")

        def refuse(_self: object, operation: str, _arguments: object) -> object:
            if operation == "RevokeSecurityGroupIngress":
                raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, operation)
            return real(_self, operation, _arguments)

        real = BaseClient._make_api_call  # type: ignore[attr-defined]
        monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
        ask(setup, "LastRules", "Delete", Stack="knock")
        ((status, _, reason),) = setup.answers
        assert status == "FAILED"
        assert "UnauthorizedOperation" in str(reason)
        monkeypatch.undo()
        assert rules() == {rule}

    def test_it_is_deleted_after_every_role_that_can_open_rules(self) -> None:
        """CloudFormation deletes a resource before those it depends on.

        Mutation: `DependsOn: LastRules` deleted.
        """
        resources = transformed()["Resources"]
        openers = {
            name
            for name, resource in resources.items()
            if "ec2:AuthorizeSecurityGroupIngress" in str(resource.get("Properties", {}))
        }
        assert openers == {"AuthorizeRole"}
        assert "LastRules" in needs("AuthorizeRole")
        assert "LastRules" in needs("LastGrants")  # so it is deleted after the closings, too
