"""`template.yaml`, transformed as CloudFormation would: what gets deployed keeps its promises."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from grants.settings import SIMPLEDB_REGIONS
from grants.values import parse_duration
from tests.conftest import ROOT, program
from tests.statemachine.definition import LONGEST_GRANT, load
from tests.template.policies import actions_of, documents, listed, statements_of
from tests.template.transform import TEMPLATE, read, transformed

FUNCTIONS = ("Api", "Authorize", "Revoke", "Stopped", "Guard", "Notify")
EVERYONE_IN_THE_STACK = (*FUNCTIONS, "Setup")
SAM = ROOT / ".venv-sam" / "bin" / "sam"
HOW_TO_GET_SAM = "make set-up puts it into .venv-sam"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return transformed()


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"]
    return found


def of_type(resources: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {name: value["Properties"] for name, value in resources.items() if value["Type"] == kind}


def texts(value: object) -> Iterator[str]:
    """Walk through every text in a part of the template."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def sam(*arguments: str | Path, cwd: Path) -> None:
    result = subprocess.run(
        [program("sam", HOW_TO_GET_SAM, str(SAM)), *map(str, arguments), "--template", str(TEMPLATE)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(cwd),
            "AWS_DEFAULT_REGION": "eu-west-1",
            "SAM_CLI_TELEMETRY": "0",
        },
        timeout=110,
    )
    assert result.returncode == 0, result.stdout + result.stderr


class TestTools:
    def test_sam_builds_every_function_with_its_handler(
        self, tmp_path: Path, resources: dict[str, Any]
    ) -> None:
        """Without Docker and whatever Python is here: the functions bring no requirements."""
        sam("build", "--build-dir", tmp_path / "built", cwd=tmp_path)
        for name in FUNCTIONS:
            module, function = resources[f"{name}Function"]["Properties"]["Handler"].split(".")
            code = (tmp_path / "built" / f"{name}Function" / f"{module}.py").read_text()
            defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
            assert function in defined


class TestParameters:
    def test_each_is_described_and_has_a_default_it_allows(self, template: dict[str, Any]) -> None:
        for name, parameter in template["Parameters"].items():
            assert parameter["Description"].endswith("."), name
            default = parameter["Default"]
            if "AllowedPattern" in parameter:
                assert re.fullmatch(parameter["AllowedPattern"], default), name
                assert parameter["Type"] != "String" or parameter["ConstraintDescription"], name
            if "AllowedValues" in parameter:
                assert default in parameter["AllowedValues"], name
            if "MinValue" in parameter:
                assert parameter["MinValue"] <= default <= parameter["MaxValue"], name

    def test_each_stands_in_one_group_of_the_form_and_has_a_label(self, template: dict[str, Any]) -> None:
        form = template["Metadata"]["AWS::CloudFormation::Interface"]
        grouped = [name for group in form["ParameterGroups"] for name in group["Parameters"]]
        assert sorted(grouped) == sorted(template["Parameters"])
        assert set(form["ParameterLabels"]) == set(template["Parameters"])

    @pytest.mark.parametrize("name", ["DefaultDuration", "MaxDuration"])
    @pytest.mark.parametrize(
        "text", ["1s", "999999s", "90m", "99999m", "1h", "24h", "7999h", "1d", "99d", "349d"]
    )
    def test_a_duration_it_allows_leaves_room_to_revoke(
        self, template: dict[str, Any], name: str, text: str
    ) -> None:
        assert re.fullmatch(template["Parameters"][name]["AllowedPattern"], text)
        assert 0 < parse_duration(text).total_seconds() <= LONGEST_GRANT

    @pytest.mark.parametrize("name", ["DefaultDuration", "MaxDuration"])
    @pytest.mark.parametrize(
        "text", ["", "0s", "0h", "350d", "366d", "8000h", "100000m", "24", "24 o'clock", "-1h"]
    )
    def test_a_duration_it_refuses(self, template: dict[str, Any], name: str, text: str) -> None:
        assert not re.fullmatch(template["Parameters"][name]["AllowedPattern"], text)

    @pytest.mark.parametrize("email", ["alarms@example.com", ""])
    def test_an_address_for_alarms_it_allows(self, template: dict[str, Any], email: str) -> None:
        assert re.fullmatch(template["Parameters"]["AlarmEmail"]["AllowedPattern"], email)

    def test_people_who_set_nothing_get_no_keys_and_no_notifications(self, template: dict[str, Any]) -> None:
        defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items()}
        assert (defaults["SampleKeys"], defaults["EnableNotifications"]) == ("false", "false")
        assert defaults["DefaultDuration"] == "24h"


class TestApi:
    def test_its_routes_are_the_designs_and_only_the_console_is_open(self, resources: dict[str, Any]) -> None:
        """Mutation: `Auth: {ApiKeyRequired: false}` on any other route."""
        routes = {
            (method.upper(), path): bool(operation["security"])
            for path, methods in resources["Api"]["Properties"]["Body"]["paths"].items()
            for method, operation in methods.items()
        }
        assert routes == {
            ("POST", "/knock"): True,
            ("GET", "/knock"): True,
            ("GET", "/grants"): True,
            ("DELETE", "/grants"): True,
            ("GET", "/grants/{id}"): True,
            ("DELETE", "/grants/{id}"): True,
            ("GET", "/whoami"): True,
            ("GET", "/console"): False,
        }

    def test_every_route_says_itself_whether_it_needs_a_key(self) -> None:
        events = read()["Resources"]["ApiFunction"]["Properties"]["Events"].values()
        assert all("ApiKeyRequired" in event["Properties"]["Auth"] for event in events)

    def test_the_key_is_a_header(self, resources: dict[str, Any]) -> None:
        body = resources["Api"]["Properties"]["Body"]
        assert body["components"]["securitySchemes"] == {
            "api_key": {"type": "apiKey", "name": "x-api-key", "in": "header"}
        }
        assert resources["Api"]["Properties"].get("ApiKeySourceType", "HEADER") == "HEADER"

    def test_it_answers_over_ipv6_too(self, resources: dict[str, Any]) -> None:
        assert resources["Api"]["Properties"]["EndpointConfiguration"] == {
            "Types": ["REGIONAL"],
            "IpAddressType": "dualstack",
        }

    def test_its_access_log_is_json_and_has_no_key_value(self, resources: dict[str, Any]) -> None:
        """`$context.identity.apiKey` is the value; `apiKeyId` is not.

        https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-mapping-template-reference.html
        """
        (stage,) = of_type(resources, "AWS::ApiGateway::Stage").values()
        log = json.loads(stage["AccessLogSetting"]["Format"])
        assert log["apiKeyId"] == "$context.identity.apiKeyId"
        assert not re.search(r"apiKey(?!Id)\b", " ".join(log.values()))

    def test_nothing_is_cached_compressed_or_logged_with_its_headers(self, resources: dict[str, Any]) -> None:
        (stage,) = of_type(resources, "AWS::ApiGateway::Stage").values()
        (settings,) = stage["MethodSettings"]
        assert (settings["ResourcePath"], settings["HttpMethod"]) == ("/*", "*")
        assert settings["CachingEnabled"] is False
        assert settings["DataTraceEnabled"] is False
        assert settings["LoggingLevel"] == "OFF"
        assert not stage.get("CacheClusterEnabled")
        assert "MinimumCompressionSize" not in resources["Api"]["Properties"]

    def test_a_key_is_throttled_as_the_parameters_say(self, resources: dict[str, Any]) -> None:
        plan = resources["UsagePlan"]["Properties"]
        assert plan["Throttle"] == {
            "RateLimit": {"Ref": "ThrottleRate"},
            "BurstLimit": {"Ref": "ThrottleBurst"},
        }
        assert plan["Quota"] == {"Limit": {"Ref": "QuotaPerDay"}, "Period": "DAY"}
        (stage,) = of_type(resources, "AWS::ApiGateway::Stage")
        assert plan["ApiStages"] == [{"ApiId": {"Ref": "Api"}, "Stage": {"Ref": stage}}]

    def test_keys_are_made_only_when_asked_for_and_carry_no_value(self, resources: dict[str, Any]) -> None:
        keys = of_type(resources, "AWS::ApiGateway::ApiKey")
        assert set(keys) == {"SampleUserKey", "SampleOperatorKey"}
        for name, key in keys.items():
            assert resources[name]["Condition"] == "SampleKeysAreWanted"
            assert "Value" not in key
            assert {tag["Key"] for tag in key["Tags"]} <= {
                "knock:targets",
                "knock:max-duration",
                "knock:operator",
            }


class TestFunctions:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_it_runs_as_designed(self, resources: dict[str, Any], name: str) -> None:
        properties = resources[f"{name}Function"]["Properties"]
        assert properties["Runtime"] == "python3.13"
        assert properties["Architectures"] == ["arm64"]
        assert properties["Handler"] == f"{name.lower()}.handler"
        assert properties["Code"]["S3Key"] == "functions/"
        assert properties["Layers"] == [{"Ref": "PowertoolsLayer"}]

    def test_they_bring_no_requirements(self) -> None:
        assert not (ROOT / "functions" / "requirements.txt").exists()

    def test_the_layer_is_the_version_the_tests_run_against(self, template: dict[str, Any]) -> None:
        pinned = re.search(
            r"^aws-lambda-powertools==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
        )
        assert pinned
        layer = template["Parameters"]["PowertoolsLayer"]
        assert layer["Default"] == f"/aws/service/powertools/python/arm64/python3.13/{pinned[1]}"

    def test_each_has_the_environment_of_the_architecture_page(self, resources: dict[str, Any]) -> None:
        page = (ROOT / "docs" / "architecture.md").read_text()
        table = page.split("## Environment of the functions")[1].split("\n\n")[0]
        promised: dict[str, set[str]] = {name: set() for name in FUNCTIONS}
        for variables, who in re.findall(r"^\| (`[A-Z].*?) \|.*\| (\w+) \|$", table, re.MULTILINE):
            for name in FUNCTIONS if who == "all" else [who.capitalize()]:
                promised[name] |= set(re.findall(r"`([A-Z_]+)`", variables))
        assert promised["Guard"]
        for name in FUNCTIONS:
            variables = resources[f"{name}Function"]["Properties"]["Environment"]["Variables"]
            assert set(variables) == promised[name], name

    @pytest.mark.parametrize("name", EVERYONE_IN_THE_STACK)
    def test_it_has_a_role_and_a_log_of_its_own(self, resources: dict[str, Any], name: str) -> None:
        properties = resources[f"{name}Function"]["Properties"]
        assert properties["Role"] == {"Fn::GetAtt": [f"{name}Role", "Arn"]}
        assert properties["LoggingConfig"] == {"LogGroup": {"Ref": f"{name}FunctionLogs"}}
        users = [
            other
            for other, function in of_type(resources, "AWS::Lambda::Function").items()
            if function["Role"] == properties["Role"]
        ]
        assert users == [f"{name}Function"]

    def test_there_is_no_function_that_these_tests_do_not_know(self, resources: dict[str, Any]) -> None:
        assert set(of_type(resources, "AWS::Lambda::Function")) == {
            f"{n}Function" for n in EVERYONE_IN_THE_STACK
        }

    def test_a_task_gives_up_before_the_state_machine_does(self, resources: dict[str, Any]) -> None:
        for state in load()["States"].values():
            if state["Type"] == "Task":
                name = state["Resource"].removeprefix("${").removesuffix("Arn}")
                assert resources[name]["Properties"]["Timeout"] < state["TimeoutSeconds"]

    def test_names_that_running_executions_rely_on_are_fixed(self, resources: dict[str, Any]) -> None:
        """An execution goes on with the ARNs of the day it started: a new name would lose its grant."""
        names = {
            name: properties["FunctionName"]
            for name, properties in of_type(resources, "AWS::Lambda::Function").items()
        }
        assert names["AuthorizeFunction"] == {"Fn::Sub": "${AWS::StackName}-authorize"}
        assert names["RevokeFunction"] == {"Fn::Sub": "${AWS::StackName}-revoke"}
        assert resources["Grants"]["Properties"]["StateMachineName"] == {
            "Fn::Sub": "${AWS::StackName}-grants"
        }

    def test_every_log_is_kept_for_as_long_as_the_parameter_says(self, resources: dict[str, Any]) -> None:
        groups = of_type(resources, "AWS::Logs::LogGroup")
        assert len(groups) == len(EVERYONE_IN_THE_STACK) + 2  # the gateway's and the state machine's
        for name, group in groups.items():
            assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
            assert "${AWS::StackName}" in group["LogGroupName"]["Fn::Sub"], name


# Actions that IAM knows no resource for, or none that is known before the call.
# https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
TAKES_NO_RESOURCE = {
    "ec2:DescribeSecurityGroupRules",
    "tag:GetResources",
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
}


class TestRoles:
    def test_every_statement_says_what_it_is_for_and_allows(self, resources: dict[str, Any]) -> None:
        seen = 0
        for name, document in documents(resources):
            sids = [statement.get("Sid") for statement in document["Statement"]]
            assert all(sids), name
            assert len(set(sids)) == len(sids), name
            assert {statement["Effect"] for statement in document["Statement"]} == {"Allow"}
            seen += len(sids)
        assert seen > 30

    def test_no_action_is_a_wildcard(self, resources: dict[str, Any]) -> None:
        for name, document in documents(resources):
            for statement in document["Statement"]:
                assert not any("*" in action for action in listed(statement["Action"])), name

    def test_every_resource_is_named_unless_the_action_takes_none(self, resources: dict[str, Any]) -> None:
        for _, document in documents(resources):
            for statement in document["Statement"]:
                # A trust policy has no resource.
                if "*" in listed(statement.get("Resource")):
                    assert set(listed(statement["Action"])) <= TAKES_NO_RESOURCE, statement["Sid"]

    def test_the_function_that_faces_the_network_can_touch_no_ec2(self, resources: dict[str, Any]) -> None:
        """Mutation: `ManagedPolicyArns: [!Ref IngressPolicy]` on ApiRole."""
        assert actions_of("ApiRole", resources) == {
            "apigateway:GET",
            "lambda:InvokeFunction",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "sdb:GetAttributes",
            "sdb:PutAttributes",
            "sdb:Select",
            "states:StartExecution",
            "states:StopExecution",
            "tag:GetResources",
        }
        assert "ManagedPolicyArns" not in resources["ApiRole"]["Properties"]

    @pytest.mark.parametrize(
        ("role", "more"),
        [
            (
                "AuthorizeRole",
                {
                    "ec2:AuthorizeSecurityGroupIngress",
                    "ec2:CreateTags",
                    "sdb:DeleteAttributes",
                    "states:StopExecution",
                },
            ),
            ("RevokeRole", {"sqs:SendMessage"}),
            ("StoppedRole", {"sqs:SendMessage"}),
            (
                "GuardRole",
                {
                    "sqs:SendMessage",
                    "states:DescribeExecution",
                    "states:ListExecutions",
                    "states:StopExecution",
                },
            ),
        ],
    )
    def test_who_closes_rules_can_do_that_and_only_one_can_open_them(
        self, resources: dict[str, Any], role: str, more: set[str]
    ) -> None:
        assert actions_of(role, resources) == more | {
            "ec2:DescribeSecurityGroupRules",
            "ec2:RevokeSecurityGroupIngress",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "sdb:GetAttributes",
            "sdb:PutAttributes",
            "sdb:Select",
        }

    @pytest.mark.parametrize("name", [*EVERYONE_IN_THE_STACK])
    def test_only_groups_and_rules_with_the_stacks_tag_are_in_reach(
        self, resources: dict[str, Any], name: str
    ) -> None:
        """Mutation: the Condition of RevokeRulesOfTaggedGroups or OpenTaggedGroups deleted."""
        stack = {"Ref": "AWS::StackName"}
        for statement in statements_of(f"{name}Role", resources):
            for action in listed(statement["Action"]):
                if not action.startswith("ec2:") or action in TAKES_NO_RESOURCE:
                    continue
                equals = statement["Condition"]["StringEquals"]
                if statement["Resource"]["Fn::Sub"].endswith(":security-group/*"):
                    assert equals == {"ec2:ResourceTag/knock:stack": stack}
                else:
                    assert statement["Resource"]["Fn::Sub"].endswith(":security-group-rule/*")
                    assert equals["aws:RequestTag/knock:stack"] == stack
                if action == "ec2:CreateTags":
                    assert equals["ec2:CreateAction"] == "AuthorizeSecurityGroupIngress"

    @pytest.mark.parametrize("name", EVERYONE_IN_THE_STACK)
    def test_a_function_writes_to_its_own_log_alone(self, resources: dict[str, Any], name: str) -> None:
        (statement,) = (
            statement
            for statement in statements_of(f"{name}Role", resources)
            if any(action.startswith("logs:") for action in listed(statement["Action"]))
        )
        assert statement["Resource"] == {"Fn::GetAtt": [f"{name}FunctionLogs", "Arn"]}

    def test_the_state_machine_may_run_the_two_tasks_and_write_its_log(
        self, resources: dict[str, Any]
    ) -> None:
        run, log = statements_of("GrantsRole", resources)
        assert run["Action"] == "lambda:InvokeFunction"
        assert run["Resource"] == [
            {"Fn::GetAtt": ["AuthorizeFunction", "Arn"]},
            {"Fn::GetAtt": ["RevokeFunction", "Arn"]},
        ]
        assert set(log["Action"]) <= TAKES_NO_RESOURCE

    def test_services_are_let_in_only_for_this_account(self, resources: dict[str, Any]) -> None:
        """Or somebody else's rule or state machine could use what is ours (the confused deputy).

        Lambda and API Gateway send no source with sts:AssumeRole, and EventBridge none to a topic.
        https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-resource-based.html#eb-sns-permissions
        """
        for name, document in documents(resources):
            for statement in document["Statement"]:
                service = statement.get("Principal", {}).get("Service")
                if statement["Action"] == "sns:Publish":
                    assert "Condition" not in statement
                elif service in ("events.amazonaws.com", "states.amazonaws.com"):
                    keys = {key for test in statement["Condition"].values() for key in test}
                    assert keys & {"aws:SourceArn", "aws:SourceAccount"}, (name, statement["Sid"])
        for name, permission in of_type(resources, "AWS::Lambda::Permission").items():
            assert permission["SourceArn"], name


class TestTrail:
    def test_it_outlives_the_stack(self, resources: dict[str, Any]) -> None:
        """Mutation: `DeletionPolicy: Retain` deleted."""
        assert resources["Trail"]["DeletionPolicy"] == "Retain"
        assert resources["Trail"]["UpdateReplacePolicy"] == "Retain"

    def test_a_person_may_name_the_regions_that_have_simpledb(self, template: dict[str, Any]) -> None:
        allowed = set(template["Parameters"]["TrailRegion"]["AllowedValues"]) - {""}
        assert allowed == SIMPLEDB_REGIONS == set(boto3.session.Session().get_available_regions("sdb"))
        assert all(
            region in template["Parameters"]["TrailRegion"]["ConstraintDescription"] for region in allowed
        )

    def test_every_region_has_a_nearest_one_with_simpledb(self, template: dict[str, Any]) -> None:
        nearest = {region: to["Region"] for region, to in template["Mappings"]["NearestTrail"].items()}
        assert set(nearest.values()) <= SIMPLEDB_REGIONS
        assert {region for region, to in nearest.items() if region == to} == SIMPLEDB_REGIONS
        assert set(nearest) >= set(boto3.session.Session().get_available_regions("stepfunctions"))

    def test_another_partition_is_told_before_anything_is_made(self, template: dict[str, Any]) -> None:
        """A rule cannot look into a mapping, so the list is there twice."""
        (rule,) = template["Rules"].values()
        (assertion,) = rule["Assertions"]
        regions, region = assertion["Assert"]["Fn::Contains"]
        assert region == {"Ref": "AWS::Region"}
        assert sorted(regions) == sorted(template["Mappings"]["NearestTrail"])
        for other in ("aws-cn", "aws-us-gov"):
            assert not set(regions) & set(boto3.session.Session().get_available_regions("ec2", other))
        assert "SimpleDB" in assertion["AssertDescription"]


class TestStateMachine:
    def test_its_placeholders_are_filled_with_the_two_functions(self, resources: dict[str, Any]) -> None:
        properties = resources["Grants"]["Properties"]
        assert properties["StateMachineType"] == "STANDARD"
        assert properties["DefinitionS3Location"]["Key"] == "statemachine/grant.asl.json"
        text = (ROOT / "statemachine" / "grant.asl.json").read_text()
        assert set(re.findall(r"\$\{(\w+)\}", text)) == set(properties["DefinitionSubstitutions"])
        for name, value in properties["DefinitionSubstitutions"].items():
            assert value == {"Fn::GetAtt": [name.removesuffix("Arn"), "Arn"]}

    def test_it_logs_its_errors(self, resources: dict[str, Any]) -> None:
        logging = resources["Grants"]["Properties"]["LoggingConfiguration"]
        assert logging["Level"] in ("ERROR", "ALL")
        (destination,) = logging["Destinations"]
        assert destination["CloudWatchLogsLogGroup"]["LogGroupArn"] == {"Fn::GetAtt": ["GrantsLogs", "Arn"]}

    def test_stopping_failing_and_timing_out_close_the_grant(self, resources: dict[str, Any]) -> None:
        rule = resources["GrantStopped"]["Properties"]
        assert rule["EventPattern"] == {
            "source": ["aws.states"],
            "detail-type": ["Step Functions Execution Status Change"],
            "detail": {"status": ["ABORTED", "FAILED", "TIMED_OUT"], "stateMachineArn": [{"Ref": "Grants"}]},
        }
        assert rule.get("State", "ENABLED") == "ENABLED"
        assert [target["Arn"] for target in rule["Targets"]] == [{"Fn::GetAtt": ["StoppedFunction", "Arn"]}]

    @pytest.mark.parametrize(
        ("rule", "function"), [("GrantStopped", "StoppedFunction"), ("GuardDaily", "GuardFunction")]
    )
    def test_what_an_event_could_not_do_is_not_lost(
        self, resources: dict[str, Any], rule: str, function: str
    ) -> None:
        """Mutation: a `DeadLetterConfig` or an `EventInvokeConfig` deleted."""
        queue = {"Fn::GetAtt": ["DeadLetters", "Arn"]}
        (target,) = resources[rule]["Properties"]["Targets"]
        assert target["DeadLetterConfig"] == {"Arn": queue}
        assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0
        (config,) = (
            config
            for config in of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
            if config["FunctionName"] == {"Ref": function}
        )
        assert config["DestinationConfig"]["OnFailure"]["Destination"] == queue
        role = function.replace("Function", "Role")
        (send,) = (s for s in statements_of(role, resources) if s["Action"] == "sqs:SendMessage")
        assert send["Resource"] == queue
        (let,) = resources["DeadLettersPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        assert {"Fn::GetAtt": [rule, "Arn"]} in let["Condition"]["ArnEquals"]["aws:SourceArn"]
        assert resources["DeadLetters"]["Properties"]["SqsManagedSseEnabled"] is True
        (permission,) = (
            p
            for p in of_type(resources, "AWS::Lambda::Permission").values()
            if p["SourceArn"] == {"Fn::GetAtt": [rule, "Arn"]}
        )
        assert permission["FunctionName"] == {"Ref": function}

    def test_the_guard_runs_daily_and_can_be_switched_off(self, resources: dict[str, Any]) -> None:
        rule = resources["GuardDaily"]["Properties"]
        assert rule["ScheduleExpression"] == "rate(1 day)"
        assert rule["State"] == {"Fn::If": ["GuardIsScheduled", "ENABLED", "DISABLED"]}


DOES = re.compile(r"\b(Look|Read|Open|Check|Add|Ask|Remove|Run|look|read|run)\b")


class TestAlarms:
    def test_each_says_what_to_do_and_tells_somebody(self, resources: dict[str, Any]) -> None:
        alarms = of_type(resources, "AWS::CloudWatch::Alarm")
        assert len(alarms) >= 12
        for name, alarm in alarms.items():
            assert DOES.search(alarm["AlarmDescription"]), name
            assert len(alarm["AlarmDescription"]) <= 1024, name
            assert alarm["AlarmActions"] == [{"Ref": "Alarms"}], name
            # Silence is calm, but for the guard's.
            assert alarm["TreatMissingData"] == (
                "breaching" if name == "GuardSilentAlarm" else "notBreaching"
            )

    def test_what_issue_and_design_ask_for_is_watched(self, resources: dict[str, Any]) -> None:
        watched = {
            (alarm["Namespace"], alarm["MetricName"])
            for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
        }
        assert watched >= {
            ("Knock", "RevocationLag"),
            ("Knock", "RevocationForced"),
            ("Knock", "DriftFound"),
            ("Knock", "PoolFree"),
            ("Knock", "Refusal"),
            ("Knock", "SupersedeFailed"),
            ("AWS/Lambda", "Errors"),
            ("AWS/Lambda", "Throttles"),
            ("AWS/States", "ExecutionsFailed"),
            ("AWS/States", "ExecutionsAborted"),
            ("AWS/States", "ExecutionsTimedOut"),
            ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
            ("AWS/ApiGateway", "5XXError"),
        }

    def test_a_metric_of_ours_is_watched_under_the_function_that_writes_it(
        self, template: dict[str, Any]
    ) -> None:
        """Powertools gives each metric the dimension service, from POWERTOOLS_SERVICE_NAME."""
        table = template["Metadata"]["Knock"]["Metrics"]
        for name, alarm in of_type(template["Resources"], "AWS::CloudWatch::Alarm").items():
            if alarm["Namespace"] != "Knock":
                continue
            (dimension,) = alarm["Dimensions"]
            (function,) = table[alarm["MetricName"]]["Functions"]
            variables = template["Resources"][f"{function.capitalize()}Function"]["Properties"]["Environment"]
            assert dimension["Name"] == "service", name
            assert dimension["Value"] == variables["Variables"]["POWERTOOLS_SERVICE_NAME"], name
            assert variables["Variables"]["POWERTOOLS_METRICS_NAMESPACE"] == "Knock"

    def test_the_dashboard_shows_every_metric_and_every_alarm(self, template: dict[str, Any]) -> None:
        body, variables = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
        known = set(template["Resources"]) | {"AWS::Region", "AWS::StackName"} | set(variables)
        for placeholder in re.findall(r"\$\{([^}]+)\}", body):
            assert placeholder.split(".")[0] in known, placeholder
        widgets = json.loads(re.sub(r"\$\{([^}]+)\}", r"<\1>", body))["widgets"]
        shown = {metric[1] for widget in widgets for metric in widget["properties"].get("metrics", [])}
        assert shown >= set(template["Metadata"]["Knock"]["Metrics"])
        (alarms,) = (widget["properties"]["alarms"] for widget in widgets if widget["type"] == "alarm")
        assert {alarm.strip("<>").removesuffix(".Arn") for alarm in alarms} == {
            name
            for name, resource in template["Resources"].items()
            if resource["Type"] == "AWS::CloudWatch::Alarm" and "Condition" not in resource
        }

    def test_nobody_is_subscribed_without_an_address(self, resources: dict[str, Any]) -> None:
        assert resources["AlarmsByEmail"]["Condition"] == "AlarmEmailGiven"


class TestNotifications:
    def test_they_are_off_unless_asked_for(self, resources: dict[str, Any]) -> None:
        """Mutation: `Condition: NotificationsAreOn` deleted anywhere."""
        theirs = ("Notify", "Notifications", "GrantChanged", "LogsMayNotify")
        names = [name for name in resources if name.startswith(theirs) or name.endswith("News")]
        assert len(names) == 12
        for name in names:
            assert resources[name]["Condition"] == "NotificationsAreOn", name

    def test_no_other_function_takes_part_so_none_can_be_held_up(self, resources: dict[str, Any]) -> None:
        for name in (*FUNCTIONS[:-1], "Setup"):
            assert not {a for a in actions_of(f"{name}Role", resources) if a.startswith(("sns:", "events:"))}
            variables = resources[f"{name}Function"]["Properties"].get("Environment", {}).get("Variables", {})
            assert not [variable for variable in variables if "NOTIF" in variable]

    def test_the_topic_gets_what_eventbridge_gets_and_of_this_stack_alone(
        self, resources: dict[str, Any]
    ) -> None:
        rule = resources["GrantChanged"]["Properties"]
        assert rule["EventPattern"] == {"source": ["knock"], "detail": {"stack": [{"Ref": "AWS::StackName"}]}}
        (target,) = rule["Targets"]
        assert (target["Arn"], target["InputPath"]) == ({"Ref": "Notifications"}, "$.detail")


class TestOutputs:
    def test_each_is_described(self, template: dict[str, Any]) -> None:
        for name, output in template["Outputs"].items():
            assert output["Description"].endswith("."), name

    def test_what_people_and_programs_need_is_there(self, template: dict[str, Any]) -> None:
        assert set(template["Outputs"]) >= {
            "ApiUrl",
            "ConsoleUrl",
            "StateMachineArn",
            "StateMachineConsole",
            "TrailDomain",
            "TrailDomainRegion",
            "UsagePlanId",
            "AlarmTopicArn",
            "RevokeFunctionName",
            "StackTag",
        }


def test_no_arn_names_a_partition(resources: dict[str, Any]) -> None:
    """What SAM writes itself is left out: it takes the partition from the region it transforms for."""
    ours = {name: value for name, value in resources.items() if name not in ("Api",)}
    written = [text for text in texts(ours) if re.match(r"arn:aws[:-]", text)]
    assert [text for text in written if ":execute-api:" not in text] == []
