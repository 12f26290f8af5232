"""The setup function, whose code stands in `template.yaml`: what it does for CloudFormation, and answers."""

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
    """Stands for `cfnresponse`, which Lambda puts beside code that is written in a template."""

    def __init__(self) -> None:
        super().__init__("cfnresponse")
        self.sent: list[tuple[str, str, str | None]] = []
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
        self.sent.append((status, name, reason))
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
            answers=answers.sent,
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
    found = boto3.client("ec2", region_name=REGION).describe_security_group_rules()["SecurityGroupRules"]
    return {rule["SecurityGroupRuleId"] for rule in found if not rule["IsEgress"]}


def domains(region: str) -> list[str]:
    return list(boto3.client("sdb", region_name=region).list_domains().get("DomainNames", []))


def ask_for_domain(
    setup: SimpleNamespace, request: str, region: str, name: str = "", was: str = "", word: str = "1c2fa620"
) -> str:
    """Ask for the trail's domain as CloudFormation does; give the name that was answered, its physical id."""
    nearest = transformed()["Resources"]["Trail"]["Properties"]["Nearest"]
    asked = {"Name": "knock-trail", "Region": region, "Nearest": nearest}
    event = {
        "ResourceType": "Custom::Domain",
        "RequestType": request,
        "RequestId": f"{word}-982a-11e3-aff7-50e2416294e0",
        "ResourceProperties": asked,
    }
    if request != "Create":
        event["PhysicalResourceId"] = name
    if request == "Update":
        event["OldResourceProperties"] = asked | {"Region": was}
    setup.handler(event, None)
    status, answered, reason = setup.answers[-1]
    assert (status, reason) == ("SUCCESS", None)
    return str(answered)


class TestDomains:
    @pytest.mark.parametrize(("asked", "made"), [("us-west-2", "us-west-2"), ("", "eu-west-1")])
    def test_a_domain_is_made_in_the_region_asked_for_or_else_the_nearest(
        self, setup: SimpleNamespace, asked: str, made: str
    ) -> None:
        """The region is answered, and told to functions and policies."""
        assert ask_for_domain(setup, "Create", asked) == "knock-trail-1c2fa620"
        assert domains(made) == ["knock-trail-1c2fa620"]
        assert setup.data == [{"Region": made}]

    def test_the_same_request_twice_is_one_domain(self, setup: SimpleNamespace) -> None:
        """Lambda may deliver an event twice, and does where the function has died."""
        assert ask_for_domain(setup, "Create", "") == ask_for_domain(setup, "Create", "")
        assert domains("eu-west-1") == ["knock-trail-1c2fa620"]

    def test_one_made_anew_has_a_name_of_its_own(self, setup: SimpleNamespace) -> None:
        """Under an old name the claims of grants that have ended since would keep its rules open.

        Mutation: `return f"{asked['Name']}-{event['RequestId'][:8]}"` -> `return asked['Name']`
        """
        names = {ask_for_domain(setup, "Create", "", word=word) for word in ("1c2fa620", "7e5d44b0")}
        assert names == {"knock-trail-1c2fa620", "knock-trail-7e5d44b0"}

    @pytest.mark.parametrize("was", ["", "eu-west-1"])
    def test_an_update_keeps_it(self, setup: SimpleNamespace, was: str) -> None:
        name = ask_for_domain(setup, "Create", was)
        assert ask_for_domain(setup, "Update", "", name, was, word="7e5d44b0") == name
        assert domains("eu-west-1") == [name]
        assert setup.data[-1] == {"Region": "eu-west-1"}

    def test_in_another_region_it_is_a_new_one(self, setup: SimpleNamespace) -> None:
        """Mutation: ` or before and region_of(before) != region_of(asked)` deleted."""
        name = ask_for_domain(setup, "Create", "")
        new = ask_for_domain(setup, "Update", "us-west-2", name, "", word="7e5d44b0")
        assert (name, new) == ("knock-trail-1c2fa620", "knock-trail-7e5d44b0")
        assert (domains("eu-west-1"), domains("us-west-2")) == ([name], [new])

    def test_the_domain_stays_when_the_stack_goes(self, setup: SimpleNamespace) -> None:
        name = ask_for_domain(setup, "Create", "")
        assert ask_for_domain(setup, "Delete", "", name) == name
        assert domains("eu-west-1") == [name]

    def test_a_failure_is_answered_with_its_reason(self, setup: SimpleNamespace) -> None:
        """Without an answer CloudFormation would wait until the timeout, and then say nothing of why."""
        with pytest.raises(AssertionError):
            ask_for_domain(setup, "Create", "not a region")
        ((status, name, reason),) = setup.answers
        assert (status, name) == ("FAILED", "knock-trail-1c2fa620")
        assert "not a region" in str(reason)


def refusal(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateDomain")


class TestSimpleDbThatRefuses:
    """AWS takes no new customers for SimpleDB; which error it answers them with is not known."""

    def make(self, setup: SimpleNamespace, *answers: ClientError | None) -> tuple[str, str]:
        """Ask for a domain where SimpleDB answers so, one after the other, and the last of them for ever."""
        left = list(answers)
        made: list[str] = []

        def create_domain(*, DomainName: str) -> None:  # noqa: N803 - SimpleDB's own name
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer:
                raise answer
            made.append(DomainName)

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
        assert made == ([name] if status == "SUCCESS" else [])
        return str(status), str(reason)

    @pytest.mark.parametrize(
        ("code", "status"),
        [("OptInRequired", 403), ("AccessDenied", 403), ("AuthFailure", 401), ("SubscriptionRequired", 400)],
    )
    def test_says_so_in_words_and_what_to_do(self, setup: SimpleNamespace, code: str, status: int) -> None:
        """Mutation: template.yaml:
        `                          raise RuntimeError(REFUSED.format(region, name, error)) from error` ->
        `                          raise`
        """
        answered, reason = self.make(setup, refusal(code, status))
        assert answered == "FAILED"
        for said in (
            "SimpleDB in eu-west-1",
            "knock-trail-1c2fa620",
            code,
            "July 2024",
            "TrailStore=dynamodb",
        ):
            assert said in reason
        assert len(reason) < 2048  # of CloudFormation's 4,096 for the whole answer

    def test_only_because_the_new_role_is_not_known_everywhere_is_asked_again(
        self, setup: SimpleNamespace
    ) -> None:
        """For half a minute. Mutation: `(1, 2, 4, 8, 10, 10, None)` -> `(None,)`."""
        denied = refusal("AccessDenied", 403)
        assert self.make(setup, denied, denied, denied, denied, denied, None) == ("SUCCESS", "None")
        assert setup.pauses == [1, 2, 4, 8, 10]

    def test_for_good_is_given_up_in_time(self, setup: SimpleNamespace) -> None:
        self.make(setup, refusal("AccessDenied", 403))
        timeout = transformed()["Resources"]["Trail"]["Properties"]["ServiceTimeout"]
        assert 30 <= sum(setup.pauses) < timeout / 2

    def test_for_another_reason_is_not_asked_again(self, setup: SimpleNamespace) -> None:
        self.make(setup, refusal("NumberDomainsExceeded", 409))
        assert setup.pauses == []

    def test_and_one_that_is_out_of_order_is_told_as_it_is(self, setup: SimpleNamespace) -> None:
        status, reason = self.make(setup, refusal("ServiceUnavailable", 503))
        assert status == "FAILED"
        assert "ServiceUnavailable" in reason
        assert "TrailStore" not in reason


@dataclass
class NewRole:
    """What a role seconds old is denied: an operation, and until how many seconds of pauses have passed."""

    setup: SimpleNamespace
    denied: dict[str, int] = field(default_factory=dict)

    def look(self, operation: str) -> None:
        """Deny a call whose time has not come."""
        if sum(self.setup.pauses) < self.denied.get(operation, 0):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)


@pytest.fixture
def role(setup: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> NewRole:
    role = NewRole(setup)
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: BaseClient, operation: str, asked: object) -> object:
        role.look(operation)
        return real(client, operation, asked)

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
        found = states.list_executions(stateMachineArn=machine)["executions"]
        return {one["name"]: one["status"] for one in found}

    def inputs(self, machine: str) -> list[Any]:
        states = boto3.client("stepfunctions", region_name=REGION)
        found = states.list_executions(stateMachineArn=machine)["executions"]
        return [
            json.loads(states.describe_execution(executionArn=one["executionArn"])["input"]) for one in found
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

        made = Machines(clock, machine("knock-grants", 3600), machine("knock-closings", self.CLOSES_IN))
        setup.code["time"] = SimpleNamespace(sleep=lambda seconds: self.pause(setup, made, seconds))
        yield made
        running.shutdown()
        clock.close()

    def pause(self, setup: SimpleNamespace, machines: Machines, seconds: float) -> None:
        """Let time pass, and what is due end."""
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

    def test_each_stopped_grant_is_closed_on_record_since_the_rule_is_gone(
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

    def test_a_role_seconds_old_stops_and_closes_them_as_soon_as_it_may(
        self, setup: SimpleNamespace, machines: Machines, role: NewRole
    ) -> None:
        """A stack that cannot be made is deleted at once.

        Mutation: template.yaml: `patiently(states.start_execution, ` -> `states.start_execution(`
        """
        machines.start(machines.grants, "one")
        role.denied |= {"ListExecutions": 10, "StopExecution": 25, "StartExecution": 90}
        self.delete(setup, machines)
        assert setup.answers == [("SUCCESS", "last-grants", None)]
        role.denied.clear()
        assert machines.by_status(machines.grants) == {"one": "ABORTED"}
        assert [one["grant"] for one in machines.inputs(machines.closings)] == [{"grant_id": "one"}]

    def test_authorize_has_ended_before_the_closings_are_waited_for(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        """It may start one as long as it runs. Mutation: `(10, 10, 20)` -> `(1, 1, 1)`."""
        timeout = transformed()["Resources"]["AuthorizeFunction"]["Properties"]["Timeout"]
        self.delete(setup, machines)
        assert setup.pauses[2] >= timeout

    def test_closings_under_way_are_given_time_and_then_stopped(
        self, setup: SimpleNamespace, machines: Machines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Longer than an attempt takes to settle. Mutation: the last call of `stop` deleted."""
        states = boto3.client("stepfunctions", region_name=REGION)
        waits = {"StartAt": "Hold", "States": {"Hold": {"Type": "Wait", "Seconds": 9000, "End": True}}}
        states.update_state_machine(stateMachineArn=machines.closings, definition=json.dumps(waits))
        machines.start(machines.closings, "stubborn")
        self.delete(setup, machines)
        assert machines.by_status(machines.closings) == {"stubborn": "ABORTED"}
        assert sum(setup.pauses) > timing.SETTLES.total_seconds() + 40
        assert setup.answers == [("SUCCESS", "last-grants", None)]

    def test_nobody_waits_for_closings_that_have_ended(
        self, setup: SimpleNamespace, machines: Machines
    ) -> None:
        self.delete(setup, machines)
        assert sum(setup.pauses) <= 60

    def test_all_of_it_fits_into_the_functions_time_and_that_into_cloudformations(self) -> None:
        resources = transformed()["Resources"]
        timeout = resources["SetupFunction"]["Properties"]["Timeout"]
        for name in ("LastGrants", "LastRules"):
            assert timeout < resources[name]["Properties"]["ServiceTimeout"]
        assert timeout / 2 > 40 + 240 + 10  # pauses; the rest is for calls that are throttled

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

    def test_it_runs_between_what_starts_executions_and_what_they_need(self) -> None:
        """CloudFormation deletes in the reverse order of what depends on what.

        Mutations: a `DependsOn: LastGrants` deleted; `Closings: !Ref Closings` made a text.
        """
        needed = needs("LastGrants")
        assert needed >= {
            "Grants", "GrantsRole", "Closings", "ClosingsRole", "AuthorizeFunction", "AuthorizeRole",
            "RevokeFunction", "RevokeRole", "IngressPolicy", "Trail", "Ledger", "SetupFunction", "SetupRole",
        }  # fmt: skip
        starters = {
            name
            for name, one in transformed()["Resources"].items()
            if one["Type"] == "AWS::IAM::Role" and "states:StartExecution" in str(one)
        }
        assert starters == {"ApiRole", "AuthorizeRole", "GrantStoppedRole", "SetupRole"}
        # The authorize function runs for grants alone, and the setup function starts closings for this.
        for name in starters - {"AuthorizeRole", "SetupRole"} | {"GrantStopped"}:
            assert "LastGrants" in needs(name), name
            assert name not in needed

    def test_the_rule_goes_before_the_role_it_starts_closings_under(self) -> None:
        assert "GrantStoppedRole" in needs("GrantStopped")

    def test_nothing_needs_itself(self) -> None:
        """CloudFormation refuses a circle."""
        for name in transformed()["Resources"]:
            assert name not in needs(name)


def needs(name: str) -> set[str]:
    """List the resources that have to be there before a resource is, and are deleted after it."""
    resources = transformed()["Resources"]
    found: set[str] = set()
    ahead = [name]
    while ahead:
        one = resources[ahead.pop()]
        depends = one.get("DependsOn", [])
        direct = set([depends] if isinstance(depends, str) else depends) | set(
            references(one.get("Properties", {}))
        )
        new = {other for other in direct if other in resources} - found
        found |= new
        ahead += new
    return found


def references(value: object) -> Iterator[str]:
    """Walk through the names that Ref, GetAtt and Sub name in a part of the template."""
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
                yield from (one.partition(".")[0] for one in re.findall(r"\$\{([^}!]+)\}", text))
                yield from references(variables)
            else:
                yield from references(inner)


class TestRollBack:
    """A stack that cannot be made is deleted at once, with a role that may be seconds old."""

    def test_rules_are_closed_as_soon_as_the_role_may(self, setup: SimpleNamespace, role: NewRole) -> None:
        """Mutation: template.yaml: `pages = patiently(lambda: list(lists.paginate(Filters=ours)))` ->
        `pages = list(lists.paginate(Filters=ours))`
        """
        open_rule(group("pool"), 22, stack="knock", grant="a")
        role.denied |= {"DescribeSecurityGroupRules": 20, "RevokeSecurityGroupIngress": 45}
        ask(setup, "LastRules", "Delete", Stack="knock")
        assert setup.answers == [("SUCCESS", "last-rules", None)]
        role.denied.clear()
        assert rules() == set()

    def test_a_permission_that_does_not_come_is_told(self, setup: SimpleNamespace, role: NewRole) -> None:
        role.denied["DescribeSecurityGroupRules"] = 10_000
        ask(setup, "LastRules", "Delete", Stack="knock")
        ((status, _, reason),) = setup.answers
        assert status == "FAILED"
        assert "AccessDeniedException" in str(reason)
        assert 30 <= sum(setup.pauses) < 60


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
        assert "LastRules" in needs("AuthorizeRole")
        assert "LastRules" in needs("LastGrants")  # so it comes after the closings, too
