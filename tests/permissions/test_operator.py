"""The policies in SECURITY.md allow the calls that knock-admin makes, with either store, and little else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

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
    World,
    make_world,
)
from tests.conftest import ROOT
from tests.permissions.operator import Call, attach_to_all, copy, look, recording, work
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
# Granted, and not among the recorded calls: why.
UNSEEN = {
    ("FindWhatIsThere", "ec2:DescribeInstances"): "target add --instance",
}


WRITES = ("PutAttributes", "BatchPutAttributes", "DeleteAttributes", "DeleteDomain")
TABLE_WRITES = ("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "UpdateTable", "DeleteTable")


# In the policy for `trail copy`.
COPIER = ("ACCOUNT", "REGION", "STACK")


# Tags with which a group would leave the stack, or become one that may be deleted.
RETAGGED = (
    ("knock:stack", "other"),
    ("knock:made-by", "knock-admin"),
    ("knock:unfinished", f"{STACK}/x"),
    ("Name", "x"),
)


def tagging(**tags: str) -> dict[str, Any]:
    """Give the condition keys of a call that sets tags."""
    context: dict[str, Any] = {f"aws:RequestTag/{name}": text for name, text in tags.items()}
    return context | {"aws:TagKeys": sorted(tags)}


@dataclass
class Day:
    """The recorded requests, and the policy for that deployment."""

    requests: list[Request]
    policy: dict[str, Any]


@pytest.fixture(scope="module")
def day() -> Day:
    """An operator's day, recorded once for all tests."""
    return record("operator-policy.json", "simpledb", work)


@pytest.fixture(scope="module")
def looking() -> Day:
    """The commands that read the trail, with DynamoDB; the others make the same calls on either store."""
    return record("operator-policy.json", "dynamodb", lambda world: look(world, world.record("alice").id))


@pytest.fixture(scope="module")
def copying() -> Day:
    return record("trail-copy-policy.json", "simpledb", copy)


@pytest.fixture(scope="module")
def attaching() -> Day:
    return record("operator-attach-policy.json", "simpledb", attach_to_all)


def record(policy: str, keeps: str, work: Callable[[World], None]) -> Day:
    """Record the calls of `work`, in a world of its own."""
    capture = _Quiet()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ends:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        worlds = make_world(capture, patch, keeps)  # type: ignore[arg-type]
        ends.callback(lambda: next(worlds, None))
        world = next(worlds)
        places = PLACES | {name.replace("_", "-"): value for name, value in world.places().items()}
        with recording() as calls:
            work(world)
        plan = world.gateway.get_usage_plans()["items"][0]["id"]
        text = (ROOT / "docs" / policy).read_text().replace("USAGE-PLAN", plan)
    for name in PLACES:
        text = text.replace(name, places[name])
    requests = [request for call in calls for request in requests_of(call)]
    return Day(list({repr(request): request for request in requests}.values()), json.loads(text))


class _Quiet:
    """Stands for capsys, which a fixture of a module cannot use; output is discarded."""

    def readouterr(self) -> Any:
        return type("Output", (), {"out": "", "err": ""})


def requests_of(call: Call) -> Iterator[Request]:
    """List AWS's questions to IAM about a call. An unknown operation is an error."""
    for action, resource, context in READ[call.service](call):
        yield Request("operator", action, resource, context)


Checks = Sequence[tuple[str, str, dict[str, Any]]]


def _ec2(call: Call) -> Checks:
    action, specifications = f"ec2:{call.operation}", call.parameters.get("TagSpecifications", [])
    groups = [
        (f"{EC2}:security-group/{group}", {f"ec2:ResourceTag/{key}": value for key, value in tags.items()})
        for group, tags in call.tags.items()
    ]
    if call.operation.startswith("Describe"):
        return [(action, "*", {})]
    if call.operation == "CreateSecurityGroup":
        tags = {tag["Key"]: tag["Value"] for specification in specifications for tag in specification["Tags"]}
        new = {f"aws:RequestTag/{key}": value for key, value in tags.items()} | {"aws:TagKeys": sorted(tags)}
        group = f"{EC2}:security-group/sg-0123456789abcdef0"
        return [
            (action, group, new),
            (action, f"{EC2}:vpc/{call.parameters['VpcId']}", {}),
            ("ec2:CreateTags", group, new | {"ec2:CreateAction": call.operation}),
        ]
    if call.operation == "ModifyNetworkInterfaceAttribute":
        interface = f"{EC2}:network-interface/{call.parameters['NetworkInterfaceId']}"
        return [(action, interface, {}), *((action, arn, tags) for arn, tags in groups)]
    assert groups, call
    if call.operation not in ("CreateTags", "DeleteTags"):
        return [(action, arn, tags) for arn, tags in groups]
    own_tags = {tag["Key"]: tag.get("Value") for tag in call.parameters["Tags"]}
    context: dict[str, Any] = {"aws:TagKeys": sorted(own_tags)}
    context |= {f"aws:RequestTag/{key}": value for key, value in own_tags.items() if value is not None}
    return [(action, arn, tags | context) for arn, tags in groups]


def _elbv2(call: Call) -> Checks:
    action = f"elasticloadbalancing:{call.operation}"
    return [
        (action, "*" if call.operation.startswith("Describe") else call.parameters["LoadBalancerArn"], {})
    ]


def _apigateway(call: Call) -> Checks:
    """Give the method and the path, as API Gateway's permissions have them."""
    parameters = call.parameters
    paths = {
        "GetUsage": ("GET", "/usageplans/{usagePlanId}/usage"),
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
    values = {name: str(value) for name, value in parameters.items()}
    forms = {path.format(**{name: way(value) for name, value in values.items()}) for way in (_quoted, str)}
    context = key_tagged(**call.tags.get(parameters.get("apiKey", ""), {}))
    context |= tagging(**parameters["tags"]) if "tags" in parameters else {}
    context |= {"aws:TagKeys": parameters["tagKeys"]} if "tagKeys" in parameters else {}
    return [(f"apigateway:{method}", GATEWAY + form, context) for form in sorted(forms)]


def key_forms() -> list[str]:
    """Give a key's ARN in both forms that a path below `/tags` may have."""
    return [_quoted(arn := f"{GATEWAY}/apikeys/k"), arn]


def key_tagged(**tags: str) -> dict[str, Any]:
    """Give the condition keys of a call on an API key; a call on `/tags` has none of them.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonapigatewaymanagement.html
    """
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


def _quoted(value: str) -> str:
    """Encode a value for a path; for `/tags`, AWS's AccessDenied names this form or the plain one."""
    return quote(value, safe="")


def _lambda(call: Call) -> Checks:
    if call.operation == "ListFunctions":
        return [("lambda:ListFunctions", "*", {})]
    action = {"Invoke": "InvokeFunction"}.get(call.operation, call.operation)
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{call.parameters['FunctionName']}"
    return [(f"lambda:{action}", arn, {})]


def _sdb(call: Call) -> Checks:
    if call.operation == "ListDomains":
        return [("sdb:ListDomains", "*", {})]
    match = re.search(r" from `([^`]+)`", call.parameters.get("SelectExpression", ""))
    domain = match[1] if match else call.parameters["DomainName"]
    return [(f"sdb:{call.operation}", f"arn:aws:sdb:{call.region}:{ACCOUNT}:domain/{domain}", {})]


def _dynamodb(call: Call) -> Checks:
    if call.operation == "ListTables":
        return [("dynamodb:ListTables", "*", {})]
    table = f"arn:aws:dynamodb:{call.region}:{ACCOUNT}:table/{call.parameters['TableName']}"
    index = call.parameters.get("IndexName")
    return [(f"dynamodb:{call.operation}", f"{table}/index/{index}" if index else table, {})]


def _states(call: Call) -> Checks:
    return [
        (
            f"states:{call.operation}",
            call.parameters.get("stateMachineArn") or call.parameters["executionArn"],
            {},
        )
    ]


def _quotas(call: Call) -> Checks:
    code = f"{call.parameters['ServiceCode']}/{call.parameters['QuotaCode']}"
    return [(f"servicequotas:{call.operation}", f"arn:aws:servicequotas:{REGION}:{ACCOUNT}:{code}", {})]


def _rds(call: Call) -> Checks:
    of_cluster = "Cluster" in call.operation
    kind, key = ("cluster", "DBClusterIdentifier") if of_cluster else ("db", "DBInstanceIdentifier")
    name = call.parameters.get(key, "*")
    return [(f"rds:{call.operation}", f"arn:aws:rds:{REGION}:{ACCOUNT}:{kind}:{name}", {})]


def _ecs(call: Call) -> Checks:
    if call.operation != "UpdateService":
        return [(f"ecs:{call.operation}", "*", {})]
    service = f"{call.parameters['cluster']}/{call.parameters['service']}"
    return [("ecs:UpdateService", f"arn:aws:ecs:{REGION}:{ACCOUNT}:service/{service}", {})]


def _elasticache(call: Call) -> Checks:
    names = {"CacheClusterId": "cluster", "ReplicationGroupId": "replicationgroup"}
    identifiers = ((kind, call.parameters[key]) for key, kind in names.items() if key in call.parameters)
    kind, name = next(identifiers, ("cluster", "*"))
    return [(f"elasticache:{call.operation}", f"arn:aws:elasticache:{REGION}:{ACCOUNT}:{kind}:{name}", {})]


READ = {
    "ec2": _ec2,
    "rds": _rds,
    "ecs": _ecs,
    "elasticache": _elasticache,
    "elbv2": _elbv2,
    "apigateway": _apigateway,
    "lambda": _lambda,
    "sdb": _sdb,
    "dynamodb": _dynamodb,
    "stepfunctions": _states,
    "service-quotas": _quotas,
    "events": lambda call: [
        (
            f"events:{call.operation}",
            f"arn:aws:events:{REGION}:{ACCOUNT}:rule/"
            + (call.parameters.get("Name") or call.parameters["Rule"]),
            {},
        )
    ],
    "cloudwatch": lambda call: [
        (f"cloudwatch:{call.operation}", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:*", {})
    ],
    "logs": lambda call: [
        (
            f"logs:{call.operation}",
            f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{call.parameters['logGroupName']}:log-stream:",
            {},
        )
    ],
    # AWS gives this one to everybody:
    # https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    "sts": lambda call: [(f"sts:{call.operation}", "*", {})],
}


def denied(day: Day) -> list[Request]:
    answers = judge(day.requests, {"operator": [day.policy]})
    return [request for request, answer in zip(day.requests, answers, strict=True) if not answer.allowed]


def used(day: Day) -> set[tuple[str, str]]:
    """List the (Sid, action) pairs that allowed a request."""
    answers = judge(day.requests, {"operator": [day.policy]})
    pairs = zip(day.requests, answers, strict=True)
    return {(sid, request.action) for request, answer in pairs for sid in answer.allowed_by}


def granted(day: Day) -> set[tuple[str, str]]:
    return {
        (statement["Sid"], action)
        for statement in day.policy["Statement"]
        for action in listed(statement["Action"])
    }


class TestThePolicyForACopy:
    def test_it_allows_a_copy_in_either_direction_and_nothing_more(self, copying: Day) -> None:
        """Mutation: an action taken away from any of its statements, or one more."""
        assert denied(copying) == []
        assert granted(copying) - used(copying) == set()

    def test_it_changes_no_ledger_and_deletes_nothing(self, copying: Day) -> None:
        table = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table"
        domain = f"arn:aws:sdb:{TRAIL_REGION}:{ACCOUNT}:domain"
        ways = [
            *((f"dynamodb:{name}", f"{table}/{STACK}-LedgerTable-1") for name in ("PutItem", "Scan")),
            *((f"dynamodb:{name}", f"{table}/{STACK}-TrailTable-1") for name in TABLE_WRITES[1:]),
            ("dynamodb:PutItem", f"{table}/another-TrailTable-1"),
            *((f"sdb:{name}", f"{domain}/{LEDGER}") for name in ("PutAttributes", "Select")),
            *((f"sdb:{name}", f"{domain}/{TRAIL}") for name in WRITES[1:]),
            ("sdb:PutAttributes", f"{domain}/another-trail-1c2fa620"),
        ]
        requests = [Request("operator", action, resource) for action, resource in ways]
        assert len(denied(Day(requests, copying.policy))) == len(ways)

    def test_its_placeholders_are_those_the_page_names(self) -> None:
        text = (ROOT / "docs" / "trail-copy-policy.json").read_text()
        assert set(re.findall(r"[A-Z]{4,}", text)) == set(COPIER)


class TestThePolicyForAttaching:
    def test_with_the_operators_own_it_allows_to_attach_to_everything(self, day: Day, attaching: Day) -> None:
        """Mutation: an action taken away from any of its statements, or one more."""
        answers = judge(attaching.requests, {"operator": [day.policy, attaching.policy]})
        pairs = zip(attaching.requests, answers, strict=True)
        assert [request for request, answer in pairs if not answer.allowed] == []
        assert granted(attaching) - used(attaching) == set()

    def test_the_operators_own_policy_does_not_allow_it(self, day: Day, attaching: Day) -> None:
        actions = {action for _, action in granted(attaching)}
        changing = [request for request in attaching.requests if request.action in actions]
        assert len(changing) >= 5
        assert denied(Day(changing, day.policy)) == changing


class TestThePolicy:
    def test_it_allows_every_call_of_knock_admin(self, day: Day) -> None:
        """Mutation: an action taken away from any of its statements."""
        assert denied(day) == []

    def test_it_allows_reading_the_trail_in_dynamodb(self, looking: Day) -> None:
        """Mutation: an action, or a resource, taken away from ReadTheTrailInDynamoDb."""
        assert {request.action for request in looking.requests} > {"dynamodb:Query", "dynamodb:Scan"}
        assert denied(looking) == []

    def test_everything_in_it_is_used_or_has_its_reason(self, day: Day, looking: Day, attaching: Day) -> None:
        read = used(Day(attaching.requests, day.policy))
        assert granted(day) - used(day) - used(looking) - read == set(UNSEEN)

    def test_it_allows_no_call_that_opens_a_rule_or_changes_the_record(self, day: Day) -> None:
        ours = {"ec2:ResourceTag/knock:stack": STACK}
        group, function = f"{EC2}:security-group/sg-0", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
        domain = f"arn:aws:sdb:{TRAIL_REGION}:{ACCOUNT}:domain"
        table = f"arn:aws:dynamodb:{TRAIL_REGION}:{ACCOUNT}:table"
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("ec2:AuthorizeSecurityGroupIngress", group, ours),
            ("ec2:RevokeSecurityGroupIngress", group, ours),
            ("ec2:DeleteSecurityGroup", group, {"ec2:ResourceTag/knock:stack": "another"}),
            ("ec2:DeleteSecurityGroup", group, {}),
            ("ec2:CreateTags", group, ours),
            ("ec2:CreateTags", group, {"aws:RequestTag/knock:stack": STACK}),
            *(("ec2:CreateTags", group, ours | tagging(**{key: value})) for key, value in RETAGGED),
            (
                "ec2:CreateTags",
                group,
                {"ec2:ResourceTag/knock:stack": "other"} | tagging(**{"knock:stack": STACK}),
            ),
            ("ec2:CreateTags", group, tagging(**{"knock:stack": STACK}, Name="mine")),
            ("ec2:DeleteTags", group, ours | {"aws:TagKeys": ["Name", "knock:stack"]}),
            ("ec2:DeleteSecurityGroup", group, ours),
            ("ec2:DeleteSecurityGroup", group, {"ec2:ResourceTag/knock:made-by": "knock-admin"}),
            ("ec2:CreateSecurityGroup", group, {}),
            *((f"sdb:{action}", f"{domain}/{name}", {}) for action in WRITES for name in DOMAINS),
            *((f"dynamodb:{action}", f"{table}/{name}", {}) for action in TABLE_WRITES for name in DOMAINS),
            ("dynamodb:Scan", f"{table}/another", {}),
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
            (
                "logs:FilterLogEvents",
                f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/{STACK}-api:",
                {},
            ),
            ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/r", {}),
        ]
        requests = [Request("operator", *way) for way in ways]
        answers = judge(requests, {"operator": [day.policy]})
        pairs = zip(requests, answers, strict=True)
        assert [request for request, answer in pairs if answer.allowed] == []

    def test_it_makes_and_changes_no_group_or_key_of_another_stack(self, day: Day) -> None:
        """Mutation: `StringEqualsIfExists` or `ForAllValues` taken out of docs/operator-policy.json: of
        FinishGroups, TagGroupsAsTheyAreMade, MakeKeys or KeepKeys.
        """
        group, key = f"{EC2}:security-group/sg-0", f"{GATEWAY}/apikeys/k"
        unfinished = {"knock:unfinished": f"{STACK}/x"}
        making = {"ec2:CreateAction": "CreateSecurityGroup"}
        finishing = {"ec2:ResourceTag/knock:unfinished": f"{STACK}/x"}
        foreign = {"knock:stack": "other", "knock:target": "bastion"}
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("ec2:CreateTags", group, making | tagging(**unfinished, **foreign)),
            ("ec2:CreateTags", group, making | tagging(**unfinished, **{"knock:stack": STACK})),
            ("ec2:CreateTags", group, making | tagging(**unfinished, access="admin")),
            ("ec2:CreateTags", group, finishing | tagging(**foreign)),
            ("ec2:CreateTags", group, finishing | tagging(access="admin")),
            ("ec2:CreateTags", group, finishing | tagging(**{"knock:unfinished": "other/x"})),
            ("apigateway:POST", f"{GATEWAY}/apikeys", tagging(**foreign)),
            *((f"apigateway:{how}", key, key_tagged(**foreign)) for how in ("PATCH", "DELETE")),
            *(("apigateway:PUT", f"{GATEWAY}/tags/{form}", tagging(**foreign)) for form in key_forms()),
        ]
        assert denied(Day(requests := [Request("operator", *way) for way in ways], day.policy)) == requests

    def test_it_allows_the_calls_that_the_page_warns_of(self, day: Day) -> None:
        """SECURITY.md, *By a permission of their own*: no condition of AWS's can deny these to operators."""
        group = f"{EC2}:security-group/sg-0"
        ours = {"ec2:ResourceTag/knock:stack": STACK}
        adopted = {"knock:stack": STACK, "knock:target": "theirs", "knock:ports": "1-65535/tcp"}
        ways: list[tuple[str, str, dict[str, Any]]] = [
            (
                "apigateway:POST",
                f"{GATEWAY}/apikeys",
                tagging(**{"knock:stack": STACK, "knock:targets": "@all"}),
            ),
            ("ec2:CreateTags", group, ours | tagging(**{"knock:ports": "1-65535/tcp"})),
            ("ec2:CreateTags", group, tagging(**adopted)),
            ("ec2:ModifyNetworkInterfaceAttribute", f"{EC2}:network-interface/eni-0", {}),
            *(
                ("apigateway:PUT", f"{GATEWAY}/tags/{form}", tagging(**{"knock:operator": "true"}))
                for form in key_forms()
            ),
            ("apigateway:DELETE", f"{GATEWAY}/apikeys/without-tags", {}),
        ]
        assert denied(Day([Request("operator", *way) for way in ways], day.policy)) == []

    def test_its_placeholders_are_those_the_page_names(self) -> None:
        text = (ROOT / "docs" / "operator-policy.json").read_text()
        page = (ROOT / "SECURITY.md").read_text()
        for name in (*PLACES, "USAGE-PLAN"):
            assert name in text
            assert f"`{name}`" in page
        for statement in re.findall(r"`((?:Find|Look|Read|Attach)[A-Z]\w+)`", page):
            assert f'"Sid": "{statement}"' in text
