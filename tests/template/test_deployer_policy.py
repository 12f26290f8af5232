"""The policy for whoever deploys (docs/deployer-policy.json): what CloudFormation does for them, and no more.

CloudFormation calls with the deployer's own rights. What it calls for a type of resource is in the `handlers`
of the type's schema, which cfn-lint ships of CloudFormation's registry. They name what any template may need;
what this one does not is listed here with its reason. Not in the schemas, and so not checked: what
CloudFormation asks for beside its handlers, and what AWS checks in a call that its own tables do not say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from local.template import Place, Resource, Template, load
from tests.conftest import ROOT
from tests.permissions.simulator import Request, judge
from tests.template.policies import listed
from tests.template.test_template import schema
from tests.template.transform import STORES, TEMPLATE, read

POLICY = ROOT / "docs" / "deployer-policy.json"
BOUNDARY_POLICY = ROOT / "docs" / "deployer-boundary-policy.json"
ROLE = ROOT / "docs" / "examples" / "deployer-role.yaml"
STACK, REGION, ACCOUNT, BUCKET = "knock", "eu-central-1", "123456789012", "uploads"
PLACES = {
    "REGION": REGION,
    "ACCOUNT": ACCOUNT,
    "STACK": STACK,
    "BUCKET": BUCKET,
    "BOUNDARY": "boundary",
}
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/boundary"
GATEWAY = f"arn:aws:apigateway:{REGION}::"
KEPT = (
    "AWS::DynamoDB::Table",
    "AWS::ApiGateway::Account",
)  # when the stack goes; a role beside them is as well
EVERYTHING = {
    "AlarmEmail": "ops@example.com",
    "EnableNotifications": "true",
    "KeepWarm": "on",
    "PermissionsBoundary": BOUNDARY,
    "ReservedForRevoke": "20",
    "SampleKeys": "true",
}

# What a type's handlers name and this template makes no use of.
NOT_NEEDED = {
    r"kms:.*": "nothing here has a key of its own",
    r"ec2:.*|elasticfilesystem:.*|s3files:.*": "no function is in a VPC",
    r"lambda:(GetCodeSigningConfig|(Put|Delete)FunctionCodeSigningConfig)": "no code is signed",
    r"lambda:Put(FunctionRecursionConfig|RuntimeManagementConfig|FunctionScalingConfig)": "left as they are",
    r"lambda:(PassCapacityProvider|AssociateRuntimeAlias|PublishVersion)": "no function asks for it",
    r"s3:(GetObjectVersion|GetObjectMetadata)": "SAM names no version of what it uploads",
    r"kinesis:.*|dynamodb:(Enable|Disable|Update)KinesisStreamingDestination": "no table streams",
    r"dynamodb:(ImportTable|DescribeImport|(Put|Get|Update|Delete|BatchWrite)Item|Query|Scan)": "no imports",
    r"dynamodb:(Create|Associate)TableReplica|iam:CreateServiceLinkedRole": "no table has replicas",
    r"dynamodb:(PutResourcePolicy|DeleteResourcePolicy)": "no table has a policy of its own",
    r"dynamodb:(UpdateTimeToLive|UpdateContributorInsights)": "no table has either",
    r"iam:(Attach|Detach)(Group|User)Policy": "the policy is for roles",
    r"logs:(Put|Delete)(DataProtectionPolicy|IndexPolicy|ResourcePolicy)": "no log group has one",
    r"logs:(AssociateKmsKey|DisassociateKmsKey|CreateLogDelivery|PutLogGroupDeletionProtection)": "nor these",
    r"logs:PutBearerTokenAuthentication|firehose:TagDeliveryStream": "nor these",
    r"sns:PutDataProtectionPolicy": "no topic has one",
}
OF_TYPE = {
    ("AWS::DynamoDB::Table", r"(logs|s3):.*"): "for imports",
    ("AWS::Logs::LogGroup", r"s3:.*"): "for deliveries",
    ("AWS::Logs::SubscriptionFilter", r"iam:PassRole"): "its destination is a function",
    ("AWS::SNS::Subscription", r"iam:.*"): "its destination is an address",
    ("AWS::SNS::Topic", r"iam:.*"): "it logs no deliveries",
    ("AWS::ApiGateway::RestApi", r"iam:PassRole"): "its integrations are functions, which have permissions",
    ("AWS::ApiGateway::RestApi", r"s3:GetObject"): "its definition is in the template",
}
# What is allowed for other reasons than a handler.
BESIDE = {
    "cloudformation:": "SAM and CloudFormation, for the stack itself",
    "s3:ListBucket": "SAM looks whether the code is there",
    "s3:PutObject": "SAM uploads the code",
    "ssm:GetParameters": "CloudFormation reads where the layer is",
    "lambda:InvokeFunction": "CloudFormation runs the setup function, for the template's own resources",
    "lambda:ListTags": "CloudFormation compares tags where a function reports drift",
    "sdb:ListDomains": "make deploy looks whether SimpleDB takes the account",
    "states:ListExecutions": "make deploy looks whether grants are live before another store",
}


LAYER = f"arn:aws:lambda:{REGION}:017000801446:layer:AWSLambdaPowertoolsPythonV3-python313-arm64:1"
ELSEWHERE = {
    "apigateway:UpdateRestApiPolicy": f"{GATEWAY}/restapis/api1234567",
    "cloudwatch:DescribeAlarms": "*",  # or composite alarms are not shown
    "lambda:GetLayerVersion": LAYER,
    "s3:GetObject": f"arn:aws:s3:::{BUCKET}/code.zip",
}
# As AWS publishes the layer: for everybody.
PUBLIC = {"Effect": "Allow", "Principal": "*", "Action": "lambda:GetLayerVersion", "Resource": LAYER}


def policy(path: Path = POLICY, **places: str) -> dict[str, Any]:
    text = path.read_text()
    for name, value in (PLACES | places).items():
        text = text.replace(name, value)
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def here(store: str) -> Template:
    """Resolve the template with all there is."""
    return load(TEMPLATE, Place(STACK, REGION, ACCOUNT), EVERYTHING | {"TrailStore": store})


@cache
def known(service: str) -> Any:
    data = ROOT / "node_modules" / "@cloud-copilot" / "iam-data" / "data" / "actions" / f"{service}.json"
    return json.loads(data.read_text())


def handlers(resource: Resource) -> Iterator[tuple[str, str]]:
    """Walk through what CloudFormation may call for a resource: (handler, action)."""
    for handler, said in schema(resource.type).get("handlers", {}).items():
        if handler == "list" or (handler == "delete" and resource.type in KEPT):
            continue
        for action in said.get("permissions", ()):
            needless = any(re.fullmatch(pattern, action) for pattern in NOT_NEEDED)
            needless |= any(
                resource.type == kind and re.fullmatch(pattern, action) for kind, pattern in OF_TYPE
            )
            if not needless:
                yield handler, action


def gateway_paths(resource: Resource) -> dict[str, list[str]]:
    """Give the paths of API Gateway's control plane for a resource, by whether it is there yet."""
    api, plan = "/restapis/api1234567", "/usageplans/plan123456"
    new, made = {
        "Account": ("/account", "/account"),
        "ApiKey": ("/apikeys", "/apikeys/key1234567"),
        "Deployment": (f"{api}/deployments", f"{api}/deployments/d"),
        "RestApi": ("/restapis", api),
        "Stage": (f"{api}/stages", f"{api}/stages/v1"),
        "UsagePlan": ("/usageplans", plan),
        "UsagePlanKey": (f"{plan}/keys", f"{plan}/keys/key1234567"),
    }[resource.type.rpartition("::")[2]]
    tags = [f"/tags/{quote(f'{GATEWAY}{made}', safe='')}"]
    return {"POST": [new], "GET": [new, made], "PUT": tags, "DELETE": [made, *tags], "PATCH": [made]}


def passed(resource: Resource) -> list[tuple[str, dict[str, str]]]:
    """Give the roles that a resource is handed, each with whom it is handed to."""
    service = {"Lambda": "lambda", "StepFunctions": "states", "Events": "events", "ApiGateway": "apigateway"}
    properties = resource.properties
    roles = [properties.get(name) for name in ("Role", "RoleArn", "CloudWatchRoleArn")]
    roles += [target.get("RoleArn") for target in properties.get("Targets", ())]
    context = {"iam:PassedToService": f"{service[resource.type.split('::')[1]]}.amazonaws.com"}
    return [(role, context) for role in roles if role]


def main_arn(resource: Resource, template: Template) -> str:
    """Give the ARN that IAM knows a resource by, or the one it belongs to."""
    properties, parts = resource.properties, resource.type.split("::")
    by_name = {one.ref: one for one in template.resources.values()}
    match parts[1:]:
        case ["CloudWatch", "Dashboard"]:
            return f"arn:aws:cloudwatch::{ACCOUNT}:dashboard/{resource.name}"
        case ["Lambda", "EventInvokeConfig" | "Permission"]:
            return by_name[properties["FunctionName"]].arn
        case ["Logs", "SubscriptionFilter"]:
            return by_name[properties["LogGroupName"]].arn.removesuffix(":*")
        case ["Logs", "LogGroup"]:
            return resource.arn.removesuffix(":*")
        case ["SNS", "Subscription"]:
            return str(properties["TopicArn"])
        case ["SQS", "QueuePolicy"]:
            return by_name[properties["Queues"][0]].arn
    return resource.arn


def requests(store: str) -> Iterator[Request]:
    """Walk through what IAM is asked when the stack is made, updated and deleted with everything in it."""
    template = here(store)
    for resource in template.resources.values():
        if resource.type.startswith("Custom::"):
            yield Request("deployer", "lambda:InvokeFunction", resource.properties["ServiceToken"])
            continue
        for _, action in handlers(resource):
            yield from _asked(action, resource, template)


def _asked(action: str, resource: Resource, template: Template) -> Iterator[Request]:
    service, _, name = action.partition(":")
    if action in ELSEWHERE:
        yield Request("deployer", action, ELSEWHERE[action])
    elif service == "apigateway":
        for path in gateway_paths(resource)[name]:
            yield Request("deployer", action, f"{GATEWAY}{path}")
    elif service == "iam":
        yield from _of_roles(action, resource, template)
    elif not known(service)[name.lower()]["resourceTypes"]:
        yield Request("deployer", action, "*")
    else:
        yield Request("deployer", action, main_arn(resource, template))


def _of_roles(action: str, resource: Resource, template: Template) -> Iterator[Request]:
    if action == "iam:PassRole":
        for role, context in passed(resource):
            yield Request("deployer", action, role, context)
    elif resource.type == "AWS::ApiGateway::Account":
        yield Request("deployer", action, resource.properties["CloudWatchRoleArn"])
    elif action in ("iam:AttachRolePolicy", "iam:DetachRolePolicy"):
        for role in template.all("AWS::IAM::Role"):
            yield Request("deployer", action, role.arn)
    else:
        yield Request("deployer", action, resource.arn)


@cache
def every() -> list[Request]:
    """Give what is asked with either store, each once."""
    return list({repr(one): one for store in STORES for one in requests(store)}.values())


def granted() -> Iterator[dict[str, Any]]:
    """Give the statements that allow something."""
    return (one for one in policy()["Statement"] if one["Effect"] == "Allow")


def allowed(asked: list[Request]) -> list[bool]:
    """Say of each request whether the policy allows it.

    The simulator knows no resource of API Gateway that has two forms: there the texts are compared.
    """
    judged = [one for one in asked if not one.action.startswith("apigateway:")]
    layer = {LAYER: {"Version": "2012-10-17", "Statement": [PUBLIC]}}
    answers = dict(zip(map(repr, judged), judge(judged, {"deployer": [policy()]}, layer), strict=True))
    return [answers[repr(one)].allowed if repr(one) in answers else _matches(one) for one in asked]


def _matches(asked: Request) -> bool:
    return any(
        asked.action in listed(statement["Action"])
        and any(fnmatchcase(asked.resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in granted()
    )


def denied(asked: list[Request]) -> None:
    assert asked
    assert [one for one, yes in zip(asked, allowed(asked), strict=True) if yes] == []


def test_everything_that_cloudformation_calls_is_allowed() -> None:
    """Mutation: any action of docs/deployer-policy.json taken away."""
    asked = every()
    assert len(asked) > 300
    assert [one for one, yes in zip(asked, allowed(asked), strict=True) if not yes] == []


def test_every_type_of_the_template_says_what_it_calls() -> None:
    """A type whose handlers the schemas do not tell would be passed over without a word."""
    kinds = {one.type for store in STORES for one in here(store).resources.values() if "AWS::" in one.type}
    assert {kind for kind in kinds if not schema(kind).get("handlers")} == set()
    assert len(kinds) > 20


def test_nothing_is_allowed_that_nothing_calls() -> None:
    """Mutation: an action added to docs/deployer-policy.json."""
    called = {one.action for one in every()}
    actions = {action for statement in granted() for action in listed(statement["Action"])}
    assert not {action for action in actions if "*" in action}
    assert {action for action in actions - called if not action.startswith(tuple(BESIDE))} == set()
    assert all(any(action.startswith(name) for action in actions) for name in BESIDE)


def test_every_reason_for_leaving_one_out_is_for_something_named() -> None:
    named = {
        (resource.type, action)
        for store in STORES
        for resource in here(store).resources.values()
        if "AWS::" in resource.type
        for said in schema(resource.type)["handlers"].values()
        for action in said.get("permissions", ())
    }
    for pattern in NOT_NEEDED:
        assert any(re.fullmatch(pattern, action) for _, action in named), pattern
    for kind, pattern in OF_TYPE:
        assert any(kind == of and re.fullmatch(pattern, action) for of, action in named), (kind, pattern)


def test_the_same_on_another_stacks_things_is_denied() -> None:
    """And in another account, and in another region. API Gateway's ids say nothing of the stack."""
    ours = [one for one in every() if one.resource != "*" and not one.action.startswith("s3:")]
    named = [one for one in ours if not one.action.startswith("apigateway:") and "layer" not in one.resource]
    changes: list[Callable[[str], str]] = [
        lambda arn: arn.replace(ACCOUNT, "999999999999"),
        lambda arn: arn.replace(STACK, "other"),
    ]
    denied([replace(one, resource=change(one.resource)) for one in named for change in changes])
    regional = [one for one in ours if f":{REGION}:" in one.resource]
    denied([replace(one, resource=one.resource.replace(REGION, "us-west-2")) for one in regional])


def test_a_role_may_be_handed_to_what_runs_knock_alone() -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/{STACK}-ApiRole-1"
    others = ("ec2.amazonaws.com", "glue.amazonaws.com", "cloudformation.amazonaws.com")
    denied([Request("deployer", "iam:PassRole", role, {"iam:PassedToService": other}) for other in others])


def test_who_deploys_can_neither_knock_nor_read_the_trail() -> None:
    table = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{STACK}-TrailTable-1"
    domain = f"arn:aws:sdb:eu-west-1:{ACCOUNT}:domain/{STACK}-trail-1"
    machine = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
    function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{STACK}-revoke"
    asked: list[Mapping[str, str]] = [
        {"dynamodb:GetItem": table, "dynamodb:Scan": table, "dynamodb:DeleteTable": table},
        {"sdb:Select": domain, "sdb:DeleteDomain": domain, "sdb:CreateDomain": domain},
        {"states:StartExecution": machine, "lambda:InvokeFunction": function},
        {"ec2:AuthorizeSecurityGroupIngress": f"arn:aws:ec2:{REGION}:{ACCOUNT}:security-group/sg-1"},
    ]
    denied([Request("deployer", action, arn) for one in asked for action, arn in one.items()])


# Every way to give a role rights, or somebody a role.
TAKING_OVER = (
    "iam:AttachRolePolicy",
    "iam:CreateRole",
    "iam:DeleteRolePermissionsBoundary",
    "iam:DeleteRolePolicy",
    "iam:DetachRolePolicy",
    "iam:PassRole",
    "iam:PutRolePermissionsBoundary",
    "iam:PutRolePolicy",
    "iam:UpdateAssumeRolePolicy",
)
ADMINISTRATOR = "arn:aws:iam::aws:policy/AdministratorAccess"


@pytest.mark.parametrize("stack", [STACK, "deploy", "deployers"])
def test_the_deployers_role_is_out_of_its_own_reach_whatever_the_stack_is_called(stack: str) -> None:
    """Mutation: docs/examples/deployer-role.yaml without `Path`, or docs/deployer-policy.json without
    NotItself. Not even what else the role may be given takes the second back.
    """
    made = yaml.safe_load(re.sub(r"!(\w+) ", "", ROLE.read_text()))["Resources"]["Deployer"]["Properties"]
    itself = f"arn:aws:iam::{ACCOUNT}:role{made.get('Path', '/')}{made['RoleName']}"
    context = {
        "iam:PassedToService": "lambda.amazonaws.com",
        "iam:PermissionsBoundary": BOUNDARY,
        "iam:PolicyARN": ADMINISTRATOR,
    }
    asked = [Request("deployer", action, itself, context) for action in TAKING_OVER]
    answers = judge(asked, {"deployer": [policy(STACK=stack)]})
    assert {one.result for one in answers} == {"ExplicitlyDenied"}
    without = policy(STACK=stack)
    without["Statement"] = [one for one in without["Statement"] if one["Effect"] == "Allow"]
    assert not any(one.allowed for one in judge(asked, {"deployer": [without]}))


class TestWithTheBoundaryRequired:
    """docs/deployer-boundary-policy.json beside the other one, as docs/deploying.md has it."""

    def judge(self, asked: list[Request]) -> list[bool]:
        both = {"deployer": [policy(), policy(BOUNDARY_POLICY)]}
        return [answer.allowed for answer in judge(asked, both)]

    def test_the_stack_can_be_made_updated_and_deleted_with_its_boundary(self) -> None:
        """Mutation: `policy/BOUNDARY` of NoRoleWithoutTheBoundary -> `policy/STACK-BOUNDARY`."""
        bounded = {"iam:PermissionsBoundary": BOUNDARY}
        asked = [
            replace(one, context={**one.context, **bounded})
            for one in every()
            if one.action.startswith("iam:") and one.action != "iam:DeleteRolePermissionsBoundary"
        ]
        assert {"iam:CreateRole", "iam:PutRolePermissionsBoundary"} < {one.action for one in asked}
        assert [one for one, yes in zip(asked, self.judge(asked), strict=True) if not yes] == []

    def test_no_role_gets_rights_without_it_nor_loses_it(self) -> None:
        """Mutation: any action taken out of docs/deployer-boundary-policy.json."""
        role = f"arn:aws:iam::{ACCOUNT}:role/{STACK}-ApiRole-1"
        giving = set(TAKING_OVER) - {"iam:PassRole", "iam:DeleteRolePolicy", "iam:DetachRolePolicy"}
        boundaries = [{}, {"iam:PermissionsBoundary": ADMINISTRATOR}]
        asked = [
            Request("deployer", action, role, {**boundary, "iam:PolicyARN": ADMINISTRATOR})
            for action in sorted(giving)
            for boundary in boundaries
        ]
        asked.append(Request("deployer", "iam:DeleteRolePermissionsBoundary", role, boundaries[1]))
        assert self.judge(asked) == [False] * len(asked)

    @pytest.mark.parametrize("name", ["boundary", f"{STACK}-boundary"])
    def test_the_boundary_itself_cannot_be_changed_not_even_under_an_unlucky_name(self, name: str) -> None:
        both = {"deployer": [policy(BOUNDARY=name), policy(BOUNDARY_POLICY, BOUNDARY=name)]}
        actions = ("CreatePolicyVersion", "DeletePolicy", "DeletePolicyVersion", "SetDefaultPolicyVersion")
        arn = f"arn:aws:iam::{ACCOUNT}:policy/{name}"
        asked = [Request("deployer", f"iam:{action}", arn) for action in actions]
        assert not any(answer.allowed for answer in judge(asked, both))


def test_every_statement_says_what_it_is_for_and_inline_policies_hold_them() -> None:
    """A role's inline policies hold 10,240 characters together, a managed policy 6,144.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
    """
    documents = [policy(), policy(BOUNDARY_POLICY)]
    sids = [statement["Sid"] for document in documents for statement in document["Statement"]]
    assert len(set(sids)) == len(sids)
    longest = "".join(json.dumps(one, separators=(",", ":")) for one in documents).replace(STACK, "s" * 40)
    assert len(longest) <= 10_240


def test_every_parameter_that_makes_more_is_on_here() -> None:
    """Or what a parameter adds would not be looked at."""
    assert set(read()["Resources"]) <= {name for store in STORES for name in here(store).resources}
