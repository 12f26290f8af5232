"""Permissions, proved by use: each call that a function makes is allowed, and no other call is.

The calls are not listed by hand: they are recorded while the functions go through a deployment's whole life,
and then judged under the policies of the template. An action that no recorded call uses must be removed, or
have its reason in UNSEEN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.harness import ACCOUNT, REGION, STACK
from tests.permissions.life import live
from tests.permissions.simulator import Answer, Deployed, Request, deployed
from tests.template.policies import listed

TASKS = ("AuthorizeRole", "RevokeRole", "GuardRole")
EVERYONE = ("ApiRole", *TASKS, "NotifyRole", "SetupRole", "GrantsRole", "ClosingsRole", "GrantStoppedRole")

# Granted, and in no call that a function makes itself: why.
LAMBDAS_LOG = "Lambda itself writes what a function prints, under the function's role"
LAMBDAS_DESTINATION = (
    "Lambda itself leaves an event that failed for good in the queue, under the function's role"
)
STATES_LOG = "Step Functions itself sets up its log delivery, under the state machine's role"
UNSEEN = {
    ("WriteOwnLog", "logs:CreateLogStream"): LAMBDAS_LOG,
    ("WriteOwnLog", "logs:PutLogEvents"): LAMBDAS_LOG,
    ("KeepWhatFailed", "sqs:SendMessage"): LAMBDAS_DESTINATION,
    **{
        ("DeliverLog", f"logs:{action}"): STATES_LOG
        for action in (
            "CreateLogDelivery",
            "DeleteLogDelivery",
            "DescribeLogGroups",
            "DescribeResourcePolicies",
            "GetLogDelivery",
            "ListLogDeliveries",
            "PutResourcePolicy",
            "UpdateLogDelivery",
        )
    },
}

# The same, for a single role.
LEDGERS_END = (
    "a ledger that this task writes holds at least its grant's release; if that were deleted by the time"
    " it writes, AccessDenied would fail the grant"
)
UNSEEN_OF = {
    ("AuthorizeRole", "KeepLedger", "sdb:DeleteAttributes"): LEDGERS_END,
    ("AuthorizeRole", "KeepLedger", "dynamodb:DeleteItem"): LEDGERS_END,
}

STORES = {"simpledb": "sdb", "dynamodb": "dynamodb"}  # the service in IAM's actions

OTHER_ACCOUNT, OTHER_REGION = "999999999999", "us-west-2"
EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
GROUP, RULE = f"{EC2}:security-group/sg-0", f"{EC2}:security-group-rule/sgr-0"
OURS = {"ec2:ResourceTag/knock:stack": STACK, "aws:ResourceTag/knock:stack": STACK}
NEW = {"aws:RequestTag/knock:stack": STACK, "aws:RequestTag/knock:grant": "g"}
KEYS = {"aws:TagKeys": ["knock:grant", "knock:stack"]}
MADE = {"ec2:CreateAction": "AuthorizeSecurityGroupIngress"}


@dataclass
class Judged:
    """The recorded requests, and whether the policies allow them."""

    deployed: Deployed
    requests: list[Request]
    store: str

    @cached_property
    def answers(self) -> list[Answer]:
        return self.deployed.judge(self.requests)

    def of(self, role: str, service: str = "") -> list[Request]:
        return [
            request for request in self.requests if request.by == role and request.action.startswith(service)
        ]


def everything(store: str, region: str = REGION) -> Deployed:
    """Deploy the template with all its options, on a store."""
    return deployed(region, EnableNotifications="true", TrailStore=store)


@pytest.fixture(scope="module", params=STORES)
def judged(request: pytest.FixtureRequest) -> Judged:
    here = everything(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "testing"), ("AWS_SECRET_ACCESS_KEY", "testing")):
            patch.setenv(name, value)
        return Judged(here, live(here), request.param)


def granted(here: Deployed) -> Iterator[tuple[str, str, str]]:
    """Walk through what every role is granted: (role, Sid, action)."""
    for role, documents in here.roles.items():
        for document in documents:
            for statement in document["Statement"]:
                for action in listed(statement["Action"]):
                    yield role, statement["Sid"], action


def denied(requests: list[Request]) -> None:
    """Check that none of these is allowed, on either store."""
    assert requests
    for store in STORES:
        answers = everything(store).judge(requests)
        allowed = [request for request, answer in zip(requests, answers, strict=True) if answer.allowed]
        assert allowed == [], store


def store_arn(here: Deployed, kind: str) -> str:
    """Give the ARN of the trail's, the ledger's or the refusals' domain or table."""
    settings = here.environment("ApiFunction")
    kind_of_store = "table" if settings["TRAIL_STORE"] == "dynamodb" else "domain"
    service = STORES[settings["TRAIL_STORE"]]
    return (
        f"arn:aws:{service}:{settings['TRAIL_REGION']}:{ACCOUNT}:{kind_of_store}/{settings[f'{kind}_DOMAIN']}"
    )


def keys_of(action: str) -> tuple[set[str], dict[str, set[str]]]:
    """Look up in AWS's documentation: an action's condition keys, and those of each of its resource types."""
    service, _, name = action.partition(":")
    data = ROOT / "node_modules" / "@cloud-copilot" / "iam-data" / "data"
    entry = json.loads((data / "actions" / f"{service}.json").read_text())[name.lower()]
    types: dict[str, Any] = {}
    if service == "apigateway":  # its actions list no keys: the resource types do
        types = json.loads((data / "resourceTypes" / f"{service}.json").read_text())
    return set(entry["conditionKeys"]), {
        resource_type["name"]: {
            *resource_type["conditionKeys"],
            *types.get(resource_type["name"].lower(), {}).get("conditionKeys", ()),
        }
        for resource_type in entry["resourceTypes"]
    }


# API Gateway's ARNs are paths, which tell the resource type.
PATHS = {"/apikeys/": "ApiKey", "/apikeys": "ApiKeys", "/tags/": "Tags"}


def kind_of(resource: str) -> str:
    """Give the resource type that an ARN is of."""
    own = resource.split(":", 5)[-1]
    return next((PATHS[path] for path in PATHS if own.startswith(path)), re.split("[:/]", own)[0])


def unknown_keys(statement: Mapping[str, Any]) -> set[tuple[str, str]]:
    """List the (action, condition key) pairs of a statement that IAM would never fill in.

    A condition on such a key fails for ever, or, under ForAllValues, holds for ever.
    """
    unknown, keys_of_any = set(), set()
    tests = statement.get("Condition", {})
    for action in listed(statement["Action"]):
        own, by_type = keys_of(action)
        for resource in listed(statement["Resource"]):
            keys_of_resource = {key.partition("/")[0] for key in own | by_type.get(kind_of(resource), set())}
            keys_of_any |= keys_of_resource
            unknown |= {
                (action, key)
                for test, keys in tests.items()
                for key in keys
                if not test.endswith("IfExists") and key.partition("/")[0] not in keys_of_resource
            }
    # IfExists lets requests without the key pass, so some of the statement's requests have to have it.
    lenient = {key for test, keys in tests.items() if test.endswith("IfExists") for key in keys}
    return unknown | {("any", key) for key in lenient if key.partition("/")[0] not in keys_of_any}


class TestConditions:
    @pytest.mark.parametrize("store", STORES)
    @pytest.mark.parametrize("role", EVERYONE)
    def test_every_key_is_one_that_aws_fills_in_for_the_action(self, role: str, store: str) -> None:
        """The simulator takes any keys in a request; AWS fills in those it documents."""
        documents = everything(store).roles[role]
        statements = [statement for document in documents for statement in document["Statement"]]
        assert statements
        assert {key for statement in statements for key in unknown_keys(statement)} == set()

    def test_so_is_every_key_in_the_policy_for_operators(self) -> None:
        policy = json.loads((ROOT / "docs" / "operator-policy.json").read_text())
        statements = policy["Statement"]
        assert any("Condition" in statement for statement in statements)
        assert {key for statement in statements for key in unknown_keys(statement)} == set()

    @pytest.mark.parametrize(
        ("action", "resource", "key"),
        [
            ("ec2:RevokeSecurityGroupIngress", GROUP, "ec2:CreateAction"),
            ("ec2:AuthorizeSecurityGroupIngress", RULE, "ec2:ResourceTag/knock:stack"),
            ("states:StopExecution", f"arn:aws:states:{REGION}:{ACCOUNT}:execution:m:e", "aws:RequestTag/x"),
        ],
    )
    def test_a_key_that_aws_does_not_fill_in_is_found(self, action: str, resource: str, key: str) -> None:
        condition = {"StringEquals": {key: "x"}}
        assert unknown_keys({"Action": action, "Resource": resource, "Condition": condition}) == {
            (action, key)
        }


class TestRecordedCalls:
    def test_every_call_of_every_function_is_allowed(self, judged: Judged) -> None:
        """Mutations: an action taken away from a statement of `template.yaml`; a name that does not match."""
        pairs = zip(judged.requests, judged.answers, strict=True)
        assert [request for request, answer in pairs if not answer.allowed] == []

    @pytest.mark.parametrize("role", EVERYONE)
    def test_every_role_has_recorded_calls(self, judged: Judged, role: str) -> None:
        assert judged.of(role)

    def test_everything_granted_is_used_or_has_its_reason(self, judged: Judged) -> None:
        """By statement: two statements that allow the same would hide each other."""
        used = {
            (request.by, sid, request.action)
            for request, answer in zip(judged.requests, judged.answers, strict=True)
            for sid in answer.allowed_by
        }
        unused = {(role, sid, action) for role, sid, action in granted(judged.deployed)} - used
        other_services = {name for name in STORES.values() if name != STORES[judged.store]}
        reasons = {entry for entry in UNSEEN_OF if entry[2].partition(":")[0] not in other_services}
        assert {entry for entry in unused if entry[1:] not in UNSEEN} == reasons

    def test_every_reason_is_for_an_action_that_is_granted_and_unused(self, judged: Judged) -> None:
        recorded = {request.action for request in judged.requests}
        everything = {(sid, action) for _, sid, action in granted(judged.deployed)}
        assert set(UNSEEN) <= everything
        assert not {action for _, action in UNSEEN} & recorded

    @pytest.mark.parametrize("region", ["eu-central-1", "ap-southeast-2"])
    def test_the_trail_is_in_reach_in_any_region(self, judged: Judged, region: str) -> None:
        """Mutation: `${Trail.Region}` -> `${AWS::Region}` in KeepTrail."""
        here, moved = judged.deployed, everything(judged.store, region)
        arns = {store_arn(here, kind): store_arn(moved, kind) for kind in ("TRAIL", "LEDGER", "REFUSALS")}
        requests = [
            replace(request, resource=arns[arn] + request.resource.removeprefix(arn))
            for role in ("ApiRole", *TASKS, "NotifyRole")
            for request in judged.of(role, f"{STORES[judged.store]}:")
            for arn in arns
            if request.resource == arn or request.resource.startswith(f"{arn}/")
        ]
        assert len(requests) == sum(
            len(judged.of(role, f"{STORES[judged.store]}:")) for role in ("ApiRole", *TASKS, "NotifyRole")
        )
        assert all(answer.allowed for answer in moved.judge(requests))


class TestOtherCalls:
    """Every request here has to be denied."""

    @pytest.mark.parametrize("role", EVERYONE)
    def test_the_same_calls_elsewhere_are_denied(self, judged: Judged, role: str) -> None:
        """In another account, in another region, or on resources of another name."""
        requests = []
        for request in judged.of(role):
            if request.resource == "*":
                continue
            here = request.resource
            if f":{ACCOUNT}:" in here:
                requests.append(replace(request, resource=here.replace(f":{ACCOUNT}:", f":{OTHER_ACCOUNT}:")))
            if request.action != "sdb:CreateDomain":  # the setup function itself finds the nearest region
                requests.append(replace(request, resource=here.replace(f":{REGION}:", f":{OTHER_REGION}:")))
            if not request.action.startswith(("ec2:", "apigateway:", "events:")):  # no names of ours there
                requests.append(replace(request, resource=here.replace(STACK, "another")))
        denied(requests)

    def test_a_group_without_the_stacks_tag_is_out_of_reach(self) -> None:
        """Mutation: the Condition of OpenTaggedGroups, or of CloseRulesOfTaggedGroups, deleted."""
        wrong: list[dict[str, str]] = [
            {},
            {"knock:stack": "another"},
            {"knock:stack": ""},
            {"knock:stack": STACK.upper()},
            {"knock:target": "bastion", "Name": STACK},
        ]
        denied(
            [
                Request(
                    role,
                    f"ec2:{way}SecurityGroupIngress",
                    GROUP,
                    {
                        f"{kind}:ResourceTag/{key}": value
                        for key, value in tags.items()
                        for kind in ("ec2", "aws")
                    },
                )
                for role in (*TASKS, "SetupRole")
                for way in ("Authorize", "Revoke")
                for tags in wrong
            ]
        )

    def test_the_tasks_can_do_nothing_else_in_ec2(self) -> None:
        """Mutations: a condition of TagRulesAsTheyAreMade or MakeTaggedRules deleted."""
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("AuthorizeSecurityGroupIngress", RULE, NEW | {"aws:RequestTag/knock:stack": "another"}),
            ("CreateTags", RULE, NEW | KEYS),  # an existing rule: it would be adopted
            ("CreateTags", RULE, NEW | KEYS | {"ec2:CreateAction": "RunInstances"}),
            ("CreateTags", RULE, NEW | MADE | {"aws:TagKeys": ["knock:stack", "Name"]}),
            ("CreateTags", RULE, NEW | KEYS | MADE | {"aws:RequestTag/knock:stack": "another"}),
            ("CreateTags", GROUP, OURS | NEW | KEYS | MADE),  # or it could widen its own reach
            ("CreateTags", GROUP, NEW | KEYS),
            ("DeleteTags", RULE, KEYS),
            ("DeleteTags", GROUP, OURS | KEYS),
            ("AuthorizeSecurityGroupEgress", GROUP, OURS),
            ("RevokeSecurityGroupEgress", GROUP, OURS),
            ("ModifySecurityGroupRules", GROUP, OURS),
            ("UpdateSecurityGroupRuleDescriptionsIngress", GROUP, OURS),
            ("DeleteSecurityGroup", GROUP, OURS),
            ("CreateSecurityGroup", GROUP, NEW | KEYS),
            ("ModifyNetworkInterfaceAttribute", f"{EC2}:network-interface/eni-0", OURS),
            ("RunInstances", f"{EC2}:instance/*", {}),
            ("DescribeInstances", "*", {}),
        ]
        denied(
            [
                Request(role, f"ec2:{action}", resource, context)
                for role in TASKS
                for action, resource, context in ways
            ]
        )

    def test_the_api_can_do_nothing_at_all_in_ec2(self, judged: Judged) -> None:
        """Mutation: `ManagedPolicyArns: [!Ref IngressPolicy]` on ApiRole."""
        permitted = [request for role in (*TASKS, "SetupRole") for request in judged.of(role, "ec2:")]
        actions = {request.action for request in permitted}
        assert actions >= {"ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"}
        denied([replace(request, by="ApiRole") for request in permitted])
        assert not [
            entry for entry in granted(judged.deployed) if entry[0] == "ApiRole" and entry[2][:4] == "ec2:"
        ]

    @pytest.mark.parametrize("role", EVERYONE)
    def test_no_role_can_undo_the_record_or_widen_its_rights(self, judged: Judged, role: str) -> None:
        machine, closings = judged.deployed.arn("Grants"), judged.deployed.arn("Closings")
        execution = f"{machine.replace(':stateMachine:', ':execution:')}:g"
        key, tags = f"arn:aws:apigateway:{REGION}::/apikeys", f"arn:aws:apigateway:{REGION}::/tags"
        ways = [
            *_of_the_store(judged, role),
            *(
                Request(role, f"states:{action}StateMachine", arn)
                for action in ("Update", "Delete")
                for arn in (machine, closings)
            ),
            Request(role, "states:RedriveExecution", f"{machine.replace('stateMachine', 'execution')}:g"),
            Request(role, "lambda:UpdateFunctionCode", judged.deployed.arn("RevokeFunction")),
            Request(role, "lambda:InvokeFunction", judged.deployed.arn("GuardFunction")),
            Request(role, "lambda:InvokeFunction", judged.deployed.arn("ApiFunction")),
            Request(role, "apigateway:PATCH", f"{key}/k"),
            Request(role, "apigateway:DELETE", f"{key}/k"),
            Request(role, "apigateway:POST", key),
            Request(role, "apigateway:GET", key),  # the list, which can hold every key's value
            Request(role, "apigateway:GET", f"{key}/k"),  # which can hold this key's value
            Request(role, "apigateway:GET", f"{tags}/arn%3Aaws%3Aapigateway%3A{REGION}%3A%3A%2Frestapis%2Fa"),
            Request(role, "apigateway:PUT", f"{tags}/arn%3Aaws%3Aapigateway%3A{REGION}%3A%3A%2Fapikeys%2Fk"),
            Request(role, "apigateway:GET", f"arn:aws:apigateway:{REGION}::/usageplans"),
            Request(role, "iam:PassRole", judged.deployed.arn("RevokeRole")),
            Request(role, "sts:AssumeRole", judged.deployed.arn("RevokeRole")),
            Request(role, "events:PutRule", judged.deployed.arn("GrantStopped")),
            Request(role, "sns:Publish", judged.deployed.arn("Alarms")),
            Request(role, "sqs:DeleteMessage", judged.deployed.arn("DeadLetters")),
            Request(role, "s3:GetObject", "arn:aws:s3:::bucket/key"),
        ]
        if role != "GrantsRole":
            ways.append(Request(role, "lambda:InvokeFunction", judged.deployed.arn("AuthorizeFunction")))
        if role != "ApiRole":
            ways.append(Request(role, "states:StartExecution", machine))
        if role == "ApiRole":
            ways.append(Request(role, "states:ListExecutions", machine))
            ways.append(Request(role, "states:StopExecution", execution))
            ways.append(
                Request(role, "states:DescribeExecution", execution.replace("-grants:", "-closings:"))
            )
        if role not in ("ApiRole", "AuthorizeRole", "GrantStoppedRole", "SetupRole"):
            ways.append(Request(role, "states:StartExecution", closings))
        bus = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus"
        ways += [
            Request(role, "events:PutEvents", f"{bus}/default", {"events:source": ["another"]}),
            Request(role, "events:PutEvents", f"{bus}/default", {"events:source": ["knock", "another"]}),
            Request(role, "events:PutEvents", f"{bus}/default"),
            Request(role, "events:PutEvents", f"{bus}/another", {"events:source": ["knock"]}),
        ]
        denied(ways)

    def test_a_function_writes_to_its_own_log_alone(self, judged: Judged) -> None:
        logs = {
            group.logical_id: f"{group.arn.removesuffix(':*')}:log-stream:s"
            for group in judged.deployed.template.all("AWS::Logs::LogGroup")
        }
        requests = {
            (role, log): Request(role, "logs:PutLogEvents", arn)
            for role in (*TASKS, "ApiRole", "NotifyRole", "SetupRole")
            for log, arn in logs.items()
        }
        answers = judged.deployed.judge(requests.values())
        allowed = {pair for pair, answer in zip(requests, answers, strict=True) if answer.allowed}
        own = {
            (role, role.replace("Role", "FunctionLogs"))
            for role in (*TASKS, "ApiRole", "NotifyRole", "SetupRole")
        }
        assert allowed == own


def _of_the_store(judged: Judged, role: str) -> list[Request]:
    """List the requests on domains or tables that a role must not make."""
    trail, ledger, refusals = (store_arn(judged.deployed, kind) for kind in ("TRAIL", "LEDGER", "REFUSALS"))
    if judged.store == "simpledb":
        put, delete, get = "PutAttributes", "DeleteAttributes", "GetAttributes"
        lists, more_actions = ["Select"], ["DeleteDomain", "BatchPutAttributes", "BatchDeleteAttributes"]
    else:
        put, delete, get, lists = "UpdateItem", "DeleteItem", "GetItem", ["Query", "Scan"]
        more_actions = [
            "BatchWriteItem", "DeleteTable", "PartiQLDelete", "PartiQLInsert", "PartiQLUpdate", "PutItem",
            "PutResourcePolicy", "UpdateContinuousBackups", "UpdateTable", "UpdateTimeToLive",
        ]  # fmt: skip
    ways = [(action, arn) for action in more_actions for arn in (trail, ledger, refusals)]
    ways += [(delete, trail), (delete, refusals), *((action, refusals) for action in (get, *lists))]
    if judged.store == "dynamodb":
        ways += [("Scan", trail), ("Query", ledger), ("Scan", f"{trail}/index/by-kind")]
    if role != "ApiRole":
        ways.append((put, refusals))
    if role not in TASKS:
        ways += [(put, trail), *((action, ledger) for action in (put, delete, get, *lists))]
    if role not in ("ApiRole", "GuardRole"):
        ways += [(lists[0], trail if judged.store == "simpledb" else f"{trail}/index/by-closed-at")]
    if role not in ("ApiRole", *TASKS, "NotifyRole"):
        ways.append((get, trail))
    service = STORES[judged.store]
    listed_all = Request(role, "sdb:ListDomains" if service == "sdb" else "dynamodb:ListTables", "*")
    return [listed_all, *(Request(role, f"{service}:{action}", arn) for action, arn in ways)]


class TestResourcePolicies:
    """The policies of functions, of the queue and of the topics."""

    def routes(self, here: Deployed) -> list[str]:
        """Give the source ARN of a call of each route, as API Gateway names it."""
        api = here.template.resources["Api"]
        (stage,) = here.template.all("AWS::ApiGateway::Stage")
        return [
            f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{api.ref}/{stage.ref}/{method.upper()}{path}"
            for path, methods in api.properties["Body"]["paths"].items()
            for method in methods
        ]

    def test_api_gateway_may_run_the_api_by_every_route(self) -> None:
        here = deployed()
        function, api = here.arn("ApiFunction"), here.template.resources["Api"].ref
        requests = [
            Request("apigateway.amazonaws.com", "lambda:InvokeFunction", function, {"aws:SourceArn": route})
            for route in self.routes(here)
        ]
        assert len(requests) == 8
        assert all(answer.allowed for answer in here.judge(requests))
        denied(
            [
                replace(
                    request,
                    context={"aws:SourceArn": str(request.context["aws:SourceArn"]).replace(api, "other")},
                )
                for request in requests
            ]
        )
        denied([replace(request, resource=here.arn("RevokeFunction")) for request in requests])

    def test_the_guards_rule_may_run_its_own_function_alone(self) -> None:
        here, function = deployed(), "GuardFunction"
        source = {"aws:SourceArn": here.arn("GuardHourly")}
        (answer,) = here.judge(
            [Request("events.amazonaws.com", "lambda:InvokeFunction", here.arn(function), source)]
        )
        assert answer.allowed
        other_functions = ["ApiFunction", "AuthorizeFunction", "RevokeFunction", "SetupFunction"]
        other_rule = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/another"
        denied(
            [
                *(
                    Request("events.amazonaws.com", "lambda:InvokeFunction", here.arn(name), source)
                    for name in other_functions
                ),
                Request(
                    "events.amazonaws.com",
                    "lambda:InvokeFunction",
                    here.arn(function),
                    {"aws:SourceArn": other_rule},
                ),
            ]
        )

    def test_only_the_logs_of_this_stack_may_notify(self) -> None:
        here = deployed(EnableNotifications="true")
        requests = {
            log.logical_id: Request(
                "logs.amazonaws.com",
                "lambda:InvokeFunction",
                here.arn("NotifyFunction"),
                {"aws:SourceArn": log.arn, "aws:SourceAccount": ACCOUNT},
            )
            for log in here.template.all("AWS::Logs::LogGroup")
        }
        for filter_ in here.template.all("AWS::Logs::SubscriptionFilter"):
            name = filter_.properties["LogGroupName"]
            (log,) = (group for group in here.template.all("AWS::Logs::LogGroup") if group.name == name)
            (answer,) = here.judge([requests[log.logical_id]])
            assert answer.allowed
        request = requests["RevokeFunctionLogs"]
        source = str(request.context["aws:SourceArn"])
        denied(
            [
                replace(
                    request, context={**request.context, "aws:SourceArn": source.replace("knock", "other")}
                ),
                replace(request, context={**request.context, "aws:SourceAccount": OTHER_ACCOUNT}),
            ]
        )

    def test_the_warmth_rule_may_run_the_two_functions_of_a_knock(self) -> None:
        here = deployed(KeepWarm="on")
        source = {"aws:SourceArn": here.arn("Warmth")}
        requests = {
            name: Request(
                "events.amazonaws.com", "lambda:InvokeFunction", here.arn(f"{name}Function"), source
            )
            for name in ("Api", "Authorize", "Revoke", "Guard", "Setup")
        }
        answers = zip(requests, here.judge(requests.values()), strict=True)
        assert {name for name, answer in answers if answer.allowed} == {"Api", "Authorize"}

    def test_no_service_may_publish_to_the_topics(self) -> None:
        """Neither has a policy of its own, and the default one is for the account's own principals.

        https://docs.aws.amazon.com/sns/latest/dg/sns-access-policy-language-using.html
        """
        here = deployed(EnableNotifications="true")
        assert here.template.all("AWS::SNS::TopicPolicy") == []
        services = ("events.amazonaws.com", "cloudwatch.amazonaws.com", "lambda.amazonaws.com")
        topics = [here.arn(name) for name in ("Notifications", "Alarms")]
        denied([Request(service, "sns:Publish", topic) for service in services for topic in topics])

    def test_only_the_stacks_own_rules_may_leave_dead_letters(self) -> None:
        here = deployed()
        queue = here.arn("DeadLetters")

        def send(source: str) -> Request:
            return Request("events.amazonaws.com", "sqs:SendMessage", queue, {"aws:SourceArn": source})

        assert all(
            answer.allowed
            for answer in here.judge([send(here.arn("GrantStopped")), send(here.arn("GuardHourly"))])
        )
        denied([send(f"arn:aws:events:{REGION}:{ACCOUNT}:rule/another")])
