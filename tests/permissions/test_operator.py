"""The operator's policy to copy (SECURITY.md): what knock-admin does is allowed, and little else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.admin_support import (
    ACCOUNT,
    DOMAINS,
    LEDGER,
    REFUSALS,
    REGION,
    STACK,
    TRAIL,
    TRAIL_REGION,
    make_world,
)
from tests.conftest import ROOT
from tests.permissions.operator import Call, recording, work
from tests.permissions.simulator import Request, judge
from tests.template.policies import listed

EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
GATEWAY = f"arn:aws:apigateway:{REGION}::"
PLACES = {
    "TRAIL-REGION": TRAIL_REGION,
    "TRAIL-DOMAIN": TRAIL,
    "LEDGER-DOMAIN": LEDGER,
    "REFUSALS-DOMAIN": REFUSALS,
    "REGION": REGION,
    "ACCOUNT": ACCOUNT,
    "STACK": STACK,
}
# Granted, and not among the calls recorded: why.
UNSEEN = {
    ("FindWhatIsThere", "ec2:DescribeInstances"): "target add --instance",
    ("FinishGroups", "ec2:DeleteSecurityGroup"): "target rm, when target add stopped half-way",
}


WRITES = ("PutAttributes", "BatchPutAttributes", "DeleteAttributes", "DeleteDomain")


@dataclass
class Day:
    """What an operator's day asked AWS for, and the policy for that deployment."""

    requests: list[Request]
    policy: dict[str, Any]


@pytest.fixture(scope="module")
def day() -> Day:
    """Record it once: the world is made anew for each test elsewhere."""
    capture = _Quiet()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        worlds = make_world(capture, patch)  # type: ignore[arg-type]
        world = next(worlds)
        with recording() as calls:
            work(world)
        plan = world.gateway.get_usage_plans()["items"][0]["id"]
        text = (ROOT / "docs" / "operator-policy.json").read_text().replace("USAGE-PLAN", plan)
        next(worlds, None)
    for name, value in PLACES.items():
        text = text.replace(name, value)
    found = [one for call in calls for one in asked(call)]
    return Day(list({repr(one): one for one in found}.values()), json.loads(text))


class _Quiet:
    """Stands for capsys, which no fixture of a module can use: what is printed is of no interest here."""

    def readouterr(self) -> Any:
        return type("Seen", (), {"out": "", "err": ""})


def asked(call: Call) -> Iterator[Request]:
    """Say what AWS asks IAM for one call. An operation that is not known here is an error."""
    for action, resource, context in READ[call.service](call):
        yield Request("operator", action, resource, context)


Checks = Sequence[tuple[str, str, dict[str, Any]]]


def _ec2(call: Call) -> Checks:
    action, made = f"ec2:{call.operation}", call.asked.get("TagSpecifications", [])
    groups = [
        (f"{EC2}:security-group/{group}", {f"ec2:ResourceTag/{key}": value for key, value in tags.items()})
        for group, tags in call.tags.items()
    ]
    if call.operation.startswith("Describe"):
        return [(action, "*", {})]
    if call.operation == "CreateSecurityGroup":
        tags = {tag["Key"]: tag["Value"] for one in made for tag in one["Tags"]}
        new = {f"aws:RequestTag/{key}": value for key, value in tags.items()} | {"aws:TagKeys": sorted(tags)}
        group = f"{EC2}:security-group/sg-0123456789abcdef0"
        return [
            (action, group, new),
            (action, f"{EC2}:vpc/{call.asked['VpcId']}", {}),
            ("ec2:CreateTags", group, new | {"ec2:CreateAction": call.operation}),
        ]
    if call.operation == "ModifyNetworkInterfaceAttribute":
        interface = f"{EC2}:network-interface/{call.asked['NetworkInterfaceId']}"
        return [(action, interface, {}), *((action, arn, tags) for arn, tags in groups)]
    assert groups, call
    return [(action, arn, tags) for arn, tags in groups]


def _elbv2(call: Call) -> Checks:
    action = f"elasticloadbalancing:{call.operation}"
    return [(action, "*" if call.operation.startswith("Describe") else call.asked["LoadBalancerArn"], {})]


def _apigateway(call: Call) -> Checks:
    """By the method and the path, as API Gateway's permissions are."""
    given = call.asked
    paths = {
        "GetUsagePlans": ("GET", "/usageplans"),
        "GetUsagePlanKeys": ("GET", "/usageplans/{usagePlanId}/keys"),
        "GetApiKeys": ("GET", "/apikeys"),
        "GetApiKey": ("GET", "/apikeys/{apiKey}"),
        "CreateApiKey": ("POST", "/apikeys"),
        "CreateUsagePlanKey": ("POST", "/usageplans/{usagePlanId}/keys"),
        "UpdateApiKey": ("PATCH", "/apikeys/{apiKey}"),
        "DeleteApiKey": ("DELETE", "/apikeys/{apiKey}"),
        "TagResource": ("PUT", "/tags/{resourceArn}"),
        "UntagResource": ("DELETE", "/tags/{resourceArn}"),
    }
    method, path = paths[call.operation]
    arn = GATEWAY + re.sub(r"\{(\w+)\}", lambda match: str(given[match[1]]).replace("/", "%2F"), path)
    return [(f"apigateway:{method}", arn, {})]


def _lambda(call: Call) -> Checks:
    if call.operation == "ListFunctions":
        return [("lambda:ListFunctions", "*", {})]
    action = {"Invoke": "InvokeFunction"}.get(call.operation, call.operation)
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{call.asked['FunctionName']}"
    return [(f"lambda:{action}", arn, {})]


def _sdb(call: Call) -> Checks:
    match = re.search(r" from `([^`]+)`", call.asked.get("SelectExpression", ""))
    domain = match[1] if match else call.asked["DomainName"]
    return [(f"sdb:{call.operation}", f"arn:aws:sdb:{call.region}:{ACCOUNT}:domain/{domain}", {})]


def _states(call: Call) -> Checks:
    return [(f"states:{call.operation}", call.asked.get("stateMachineArn") or call.asked["executionArn"], {})]


def _quotas(call: Call) -> Checks:
    code = f"{call.asked['ServiceCode']}/{call.asked['QuotaCode']}"
    return [(f"servicequotas:{call.operation}", f"arn:aws:servicequotas:{REGION}:{ACCOUNT}:{code}", {})]


READ = {
    "ec2": _ec2,
    "elbv2": _elbv2,
    "apigateway": _apigateway,
    "lambda": _lambda,
    "sdb": _sdb,
    "stepfunctions": _states,
    "service-quotas": _quotas,
    "events": lambda call: [
        (
            f"events:{call.operation}",
            f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{call.asked.get('Name') or call.asked['Rule']}",
            {},
        )
    ],
    "cloudwatch": lambda call: [
        (f"cloudwatch:{call.operation}", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:*", {})
    ],
    # AWS gives this one to everybody: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    "sts": lambda call: [(f"sts:{call.operation}", "*", {})],
}


class TestThePolicy:
    def test_it_allows_what_knock_admin_does(self, day: Day) -> None:
        """Mutation: an action taken away from any of its statements."""
        answers = judge(day.requests, {"operator": [day.policy]})
        pairs = zip(day.requests, answers, strict=True)
        assert [request for request, answer in pairs if not answer.allowed] == []

    def test_everything_in_it_is_used_or_has_its_reason(self, day: Day) -> None:
        used = {
            (sid, request.action)
            for request, answer in zip(
                day.requests, judge(day.requests, {"operator": [day.policy]}), strict=True
            )
            for sid in answer.allowed_by
        }
        granted = {
            (statement["Sid"], action)
            for statement in day.policy["Statement"]
            for action in listed(statement["Action"])
        }
        assert granted - used == set(UNSEEN)

    def test_it_allows_nothing_that_would_open_a_door_or_change_the_record(self, day: Day) -> None:
        ours = {"ec2:ResourceTag/knock:stack": STACK}
        group, function = f"{EC2}:security-group/sg-0", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
        domain = f"arn:aws:sdb:{TRAIL_REGION}:{ACCOUNT}:domain"
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("ec2:AuthorizeSecurityGroupIngress", group, ours),
            ("ec2:RevokeSecurityGroupIngress", group, ours),
            ("ec2:DeleteSecurityGroup", group, {"ec2:ResourceTag/knock:stack": "another"}),
            ("ec2:DeleteSecurityGroup", group, {}),
            ("ec2:CreateTags", group, ours),
            ("ec2:CreateTags", group, {"aws:RequestTag/knock:stack": STACK}),
            ("ec2:CreateSecurityGroup", group, {}),
            *((f"sdb:{what}", f"{domain}/{one}", {}) for what in WRITES for one in DOMAINS),
            ("sdb:Select", f"{domain}/another", {}),
            ("lambda:InvokeFunction", f"{function}:{STACK}-authorize", {}),
            ("lambda:UpdateFunctionCode", f"{function}:{STACK}-revoke", {}),
            ("states:StartExecution", f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants", {}),
            ("states:StopExecution", f"arn:aws:states:{REGION}:{ACCOUNT}:execution:{STACK}-grants:g", {}),
            ("states:StartExecution", f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:another-closings", {}),
            ("states:DescribeExecution", f"arn:aws:states:{REGION}:{ACCOUNT}:execution:another:g", {}),
            ("apigateway:PATCH", f"{GATEWAY}/usageplans/p", {}),
            ("apigateway:PATCH", f"{GATEWAY}/restapis/a", {}),
            ("apigateway:POST", f"{GATEWAY}/usageplans/another/keys", {}),
            ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/r", {}),
        ]
        requests = [Request("operator", *way) for way in ways]
        answers = judge(requests, {"operator": [day.policy]})
        pairs = zip(requests, answers, strict=True)
        assert [request for request, answer in pairs if answer.allowed] == []

    def test_its_placeholders_are_those_the_page_names(self) -> None:
        text = (ROOT / "docs" / "operator-policy.json").read_text()
        page = (ROOT / "SECURITY.md").read_text()
        for name in (*PLACES, "USAGE-PLAN"):
            assert name in text
            assert f"`{name}`" in page
        for statement in re.findall(r"`((?:Find|Look|Read|Attach)[A-Z]\w+)`", page):
            assert f'"Sid": "{statement}"' in text
