"""The policies to copy (SECURITY.md), for operators and for `trail copy`: what knock-admin does is allowed.

And little else, with either store.
"""

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
# Granted, and not among the calls recorded: why.
UNSEEN = {
    ("FindWhatIsThere", "ec2:DescribeInstances"): "target add --instance",
}


WRITES = ("PutAttributes", "BatchPutAttributes", "DeleteAttributes", "DeleteDomain")
TABLE_WRITES = ("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "UpdateTable", "DeleteTable")


# In the policy for `trail copy`.
COPIER = ("ACCOUNT", "REGION", "STACK")


# No group of the stack's may be given away, or be made one that may be deleted.
RETAGGED = (
    ("knock:stack", "other"),
    ("knock:made-by", "knock-admin"),
    ("knock:unfinished", f"{STACK}/x"),
    ("Name", "x"),
)


def tagging(**given: str) -> dict[str, Any]:
    """Say what AWS tells a policy of a call that sets tags."""
    asked: dict[str, Any] = {f"aws:RequestTag/{name}": text for name, text in given.items()}
    return asked | {"aws:TagKeys": sorted(given)}


@dataclass
class Day:
    """What was asked of AWS, and the policy for that deployment."""

    requests: list[Request]
    policy: dict[str, Any]


@pytest.fixture(scope="module")
def day() -> Day:
    """Record it once: the world is made anew for each test elsewhere."""
    return record("operator-policy.json", "simpledb", work)


@pytest.fixture(scope="module")
def looking() -> Day:
    """Record what reads the trail in DynamoDB; all else is the same."""
    return record("operator-policy.json", "dynamodb", lambda world: look(world, world.record("alice").id))


@pytest.fixture(scope="module")
def copying() -> Day:
    return record("trail-copy-policy.json", "simpledb", copy)


@pytest.fixture(scope="module")
def attaching() -> Day:
    return record("operator-attach-policy.json", "simpledb", attach_to_all)


def record(policy: str, keeps: str, work: Callable[[World], None]) -> Day:
    """Record what some work asks AWS for, in a world of its own."""
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
    if call.operation not in ("CreateTags", "DeleteTags"):
        return [(action, arn, tags) for arn, tags in groups]
    given = {tag["Key"]: tag.get("Value") for tag in call.asked["Tags"]}
    asked: dict[str, Any] = {"aws:TagKeys": sorted(given)}
    asked |= {f"aws:RequestTag/{key}": value for key, value in given.items() if value is not None}
    return [(action, arn, tags | asked) for arn, tags in groups]


def _elbv2(call: Call) -> Checks:
    action = f"elasticloadbalancing:{call.operation}"
    return [(action, "*" if call.operation.startswith("Describe") else call.asked["LoadBalancerArn"], {})]


def _apigateway(call: Call) -> Checks:
    """By the method and the path, as API Gateway's permissions are."""
    given = call.asked
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
    values = {name: str(value) for name, value in given.items()}
    forms = {path.format(**{name: way(value) for name, value in values.items()}) for way in (_quoted, str)}
    context = key_tagged(**call.tags.get(given.get("apiKey", ""), {}))
    context |= tagging(**given["tags"]) if "tags" in given else {}
    context |= {"aws:TagKeys": given["tagKeys"]} if "tagKeys" in given else {}
    return [(f"apigateway:{method}", GATEWAY + form, context) for form in sorted(forms)]


def key_forms() -> list[str]:
    """Give a key's ARN in both forms that a path below `/tags` may have."""
    return [_quoted(arn := f"{GATEWAY}/apikeys/k"), arn]


def key_tagged(**tags: str) -> dict[str, Any]:
    """Say what AWS tells a policy of the key that a call is about; of `/tags` it tells nothing of the kind.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonapigatewaymanagement.html
    """
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


def _quoted(value: str) -> str:
    """Write a value as a path holds it: of tags, AWS's refusals have named this form and the plain one."""
    return quote(value, safe="")


def _lambda(call: Call) -> Checks:
    if call.operation == "ListFunctions":
        return [("lambda:ListFunctions", "*", {})]
    action = {"Invoke": "InvokeFunction"}.get(call.operation, call.operation)
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{call.asked['FunctionName']}"
    return [(f"lambda:{action}", arn, {})]


def _sdb(call: Call) -> Checks:
    if call.operation == "ListDomains":
        return [("sdb:ListDomains", "*", {})]
    match = re.search(r" from `([^`]+)`", call.asked.get("SelectExpression", ""))
    domain = match[1] if match else call.asked["DomainName"]
    return [(f"sdb:{call.operation}", f"arn:aws:sdb:{call.region}:{ACCOUNT}:domain/{domain}", {})]


def _dynamodb(call: Call) -> Checks:
    if call.operation == "ListTables":
        return [("dynamodb:ListTables", "*", {})]
    table = f"arn:aws:dynamodb:{call.region}:{ACCOUNT}:table/{call.asked['TableName']}"
    index = call.asked.get("IndexName")
    return [(f"dynamodb:{call.operation}", f"{table}/index/{index}" if index else table, {})]


def _states(call: Call) -> Checks:
    return [(f"states:{call.operation}", call.asked.get("stateMachineArn") or call.asked["executionArn"], {})]


def _quotas(call: Call) -> Checks:
    code = f"{call.asked['ServiceCode']}/{call.asked['QuotaCode']}"
    return [(f"servicequotas:{call.operation}", f"arn:aws:servicequotas:{REGION}:{ACCOUNT}:{code}", {})]


def _rds(call: Call) -> Checks:
    of_cluster = "Cluster" in call.operation
    kind, key = ("cluster", "DBClusterIdentifier") if of_cluster else ("db", "DBInstanceIdentifier")
    name = call.asked.get(key, "*")
    return [(f"rds:{call.operation}", f"arn:aws:rds:{REGION}:{ACCOUNT}:{kind}:{name}", {})]


def _ecs(call: Call) -> Checks:
    if call.operation != "UpdateService":
        return [(f"ecs:{call.operation}", "*", {})]
    service = f"{call.asked['cluster']}/{call.asked['service']}"
    return [("ecs:UpdateService", f"arn:aws:ecs:{REGION}:{ACCOUNT}:service/{service}", {})]


def _elasticache(call: Call) -> Checks:
    names = {"CacheClusterId": "cluster", "ReplicationGroupId": "replicationgroup"}
    found = ((kind, call.asked[key]) for key, kind in names.items() if key in call.asked)
    kind, name = next(found, ("cluster", "*"))
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
            f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{call.asked.get('Name') or call.asked['Rule']}",
            {},
        )
    ],
    "cloudwatch": lambda call: [
        (f"cloudwatch:{call.operation}", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:*", {})
    ],
    "logs": lambda call: [
        (
            f"logs:{call.operation}",
            f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{call.asked['logGroupName']}:log-stream:",
            {},
        )
    ],
    # AWS gives this one to everybody: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    "sts": lambda call: [(f"sts:{call.operation}", "*", {})],
}


def denied(day: Day) -> list[Request]:
    answers = judge(day.requests, {"operator": [day.policy]})
    return [one for one, answer in zip(day.requests, answers, strict=True) if not answer.allowed]


def used(day: Day) -> set[tuple[str, str]]:
    """Give the statements and actions by which something was allowed."""
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
            *((f"dynamodb:{what}", f"{table}/{STACK}-LedgerTable-1") for what in ("PutItem", "Scan")),
            *((f"dynamodb:{what}", f"{table}/{STACK}-TrailTable-1") for what in TABLE_WRITES[1:]),
            ("dynamodb:PutItem", f"{table}/another-TrailTable-1"),
            *((f"sdb:{what}", f"{domain}/{LEDGER}") for what in ("PutAttributes", "Select")),
            *((f"sdb:{what}", f"{domain}/{TRAIL}") for what in WRITES[1:]),
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

    def test_what_it_allows_the_operators_own_does_not(self, day: Day, attaching: Day) -> None:
        changing = [
            one for one in attaching.requests if one.action in {action for _, action in granted(attaching)}
        ]
        assert len(changing) >= 5
        assert denied(Day(changing, day.policy)) == changing


class TestThePolicy:
    def test_it_allows_what_knock_admin_does(self, day: Day) -> None:
        """Mutation: an action taken away from any of its statements."""
        assert denied(day) == []

    def test_it_allows_reading_the_trail_in_dynamodb(self, looking: Day) -> None:
        """Mutation: an action, or a resource, taken away from ReadTheTrailInDynamoDb."""
        assert {one.action for one in looking.requests} > {"dynamodb:Query", "dynamodb:Scan"}
        assert denied(looking) == []

    def test_everything_in_it_is_used_or_has_its_reason(self, day: Day, looking: Day, attaching: Day) -> None:
        read = used(Day(attaching.requests, day.policy))
        assert granted(day) - used(day) - used(looking) - read == set(UNSEEN)

    def test_it_allows_nothing_that_would_open_a_door_or_change_the_record(self, day: Day) -> None:
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
            *((f"sdb:{what}", f"{domain}/{one}", {}) for what in WRITES for one in DOMAINS),
            *((f"dynamodb:{what}", f"{table}/{one}", {}) for what in TABLE_WRITES for one in DOMAINS),
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

    def test_it_makes_nothing_of_another_stacks_and_changes_no_key_tagged_for_one(self, day: Day) -> None:
        """Mutation: `StringEqualsIfExists` or `ForAllValues` taken out of docs/operator-policy.json: of
        FinishGroups, TagGroupsAsTheyAreMade, MakeKeys or KeepKeys.
        """
        group, key = f"{EC2}:security-group/sg-0", f"{GATEWAY}/apikeys/k"
        unfinished = {"knock:unfinished": f"{STACK}/x"}
        making = {"ec2:CreateAction": "CreateSecurityGroup"}
        finishing = {"ec2:ResourceTag/knock:unfinished": f"{STACK}/x"}
        theirs = {"knock:stack": "other", "knock:target": "bastion"}
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("ec2:CreateTags", group, making | tagging(**unfinished, **theirs)),
            ("ec2:CreateTags", group, making | tagging(**unfinished, **{"knock:stack": STACK})),
            ("ec2:CreateTags", group, making | tagging(**unfinished, access="admin")),
            ("ec2:CreateTags", group, finishing | tagging(**theirs)),
            ("ec2:CreateTags", group, finishing | tagging(access="admin")),
            ("ec2:CreateTags", group, finishing | tagging(**{"knock:unfinished": "other/x"})),
            ("apigateway:POST", f"{GATEWAY}/apikeys", tagging(**theirs)),
            *((f"apigateway:{how}", key, key_tagged(**theirs)) for how in ("PATCH", "DELETE")),
            *(("apigateway:PUT", f"{GATEWAY}/tags/{form}", tagging(**theirs)) for form in key_forms()),
        ]
        assert denied(Day(requests := [Request("operator", *way) for way in ways], day.policy)) == requests

    def test_it_allows_what_the_page_warns_of(self, day: Day) -> None:
        """SECURITY.md, *By a permission of their own*: what no condition of AWS's can keep from operators."""
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
