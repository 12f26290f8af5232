"""`template.yaml`, transformed as CloudFormation would: the deployed resources and their rights."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import boto3
import cfnlint
import pytest

from grants import timing
from grants.dynamodb import INDEXES
from grants.settings import SIMPLEDB_REGIONS
from grants.settings import STORES as SETTINGS_STORES
from grants.values import parse_duration
from local.template import Place, TemplateError
from local.template import load as resolve
from tests.conftest import ROOT, program
from tests.statemachine.definition import CLOSING, GRANT, LONGEST_GRANT, Machine, delays, load
from tests.template.policies import actions_of, documents, listed, statements_of
from tests.template.transform import NO_VALUE, STORES, TEMPLATE, read, transformed

WARM = {"warm": True}
FUNCTIONS = ("Api", "Authorize", "Revoke", "Guard", "Notify")
EVERY_FUNCTION = (*FUNCTIONS, "Setup")
MACHINES = {"Grants": GRANT, "Closings": CLOSING}
DOMAINS = {"Trail": "trail", "Ledger": "ledger", "Refusals": "refusals"}
TABLES = {"TrailTable": "trail", "LedgerTable": "ledger", "RefusalsTable": "refusals"}
KEPT = {"simpledb": DOMAINS, "dynamodb": TABLES}
every_machine = pytest.mark.parametrize(("name", "machine"), MACHINES.items())
SAM = ROOT / ".venv-sam" / "bin" / "sam"
HOW_TO_GET_SAM = "make set-up puts it into .venv-sam"


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def template(store: str) -> dict[str, Any]:
    return transformed(store)


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = template["Resources"]
    return section


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
    def test_sam_builds_every_function_with_its_handler(self, tmp_path: Path) -> None:
        """Without Docker, and with any Python: the functions bring no requirements."""
        resources = transformed()["Resources"]
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

    def test_each_is_in_one_group_of_the_form_and_has_a_label(self, template: dict[str, Any]) -> None:
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

    def test_the_defaults_make_no_keys_and_no_notifications(self, template: dict[str, Any]) -> None:
        defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items()}
        assert (defaults["SampleKeys"], defaults["EnableNotifications"]) == ("false", "false")
        assert defaults["DefaultDuration"] == "24h"


class TestApi:
    def test_every_route_but_the_console_needs_a_key(self, resources: dict[str, Any]) -> None:
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

    def test_every_route_declares_whether_it_needs_a_key(self) -> None:
        events = read()["Resources"]["ApiFunction"]["Properties"]["Events"].values()
        assert all("ApiKeyRequired" in event["Properties"]["Auth"] for event in events)

    def test_the_key_is_a_header(self, resources: dict[str, Any]) -> None:
        body = resources["Api"]["Properties"]["Body"]
        assert body["components"]["securitySchemes"] == {
            "api_key": {"type": "apiKey", "name": "x-api-key", "in": "header"}
        }
        assert resources["Api"]["Properties"].get("ApiKeySourceType", "HEADER") == "HEADER"

    def test_it_answers_over_ipv4_alone_unless_both_are_asked_for(self, template: dict[str, Any]) -> None:
        """With dualstack, rules would be for a person's IPv6 address, also where a target has IPv4 alone."""
        assert template["Resources"]["Api"]["Properties"]["EndpointConfiguration"] == {
            "Types": ["REGIONAL"],
            "IpAddressType": {"Ref": "ApiIpAddressType"},
        }
        declared = template["Parameters"]["ApiIpAddressType"]
        assert (declared["Default"], declared["AllowedValues"]) == ("ipv4", ["ipv4", "dualstack"])

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
                "knock:name",
                "knock:targets",
                "knock:max-duration",
                "knock:operator",
            }

    def test_a_sample_key_has_its_name_in_a_tag_since_functions_read_only_tags(
        self, resources: dict[str, Any]
    ) -> None:
        """Mutation: a tag knock:name deleted."""
        for key in of_type(resources, "AWS::ApiGateway::ApiKey").values():
            (name,) = (tag["Value"] for tag in key["Tags"] if tag["Key"] == "knock:name")
            assert key["Name"] == {"Fn::Sub": f"${{AWS::StackName}}-{name}"}


class TestFunctions:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_it_runs_on_the_runtime_and_architecture_of_the_layer(
        self, template: dict[str, Any], resources: dict[str, Any], name: str
    ) -> None:
        """Mutation: another `Runtime`, or another of `Architectures`."""
        properties = resources[f"{name}Function"]["Properties"]
        layer = template["Parameters"]["PowertoolsLayer"]["Default"]
        (architecture,) = properties["Architectures"]
        assert f"/{architecture}/{properties['Runtime']}/" in layer
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
        for variables, who in re.findall(r"^\| (`[A-Z].*?) \|.*\| ([\w, ]+) \|$", table, re.MULTILINE):
            for name in FUNCTIONS if who == "all" else who.title().split(", "):
                promised[name] |= set(re.findall(r"`([A-Z_]+)`", variables))
        assert promised["Guard"]
        for name in FUNCTIONS:
            variables = resources[f"{name}Function"]["Properties"]["Environment"]["Variables"]
            assert set(variables) == promised[name], name

    @pytest.mark.parametrize("name", EVERY_FUNCTION)
    def test_it_has_a_role_and_a_log_of_its_own(self, resources: dict[str, Any], name: str) -> None:
        properties = resources[f"{name}Function"]["Properties"]
        assert properties["Role"] == {"Fn::GetAtt": [f"{name}Role", "Arn"]}
        assert properties["LoggingConfig"] == {"LogGroup": {"Ref": f"{name}FunctionLogs"}}
        users = [
            function_name
            for function_name, function in of_type(resources, "AWS::Lambda::Function").items()
            if function["Role"] == properties["Role"]
        ]
        assert users == [f"{name}Function"]

    def test_these_tests_know_every_function(self, resources: dict[str, Any]) -> None:
        assert set(of_type(resources, "AWS::Lambda::Function")) == {f"{n}Function" for n in EVERY_FUNCTION}

    @every_machine
    def test_a_tasks_function_times_out_before_the_task(
        self, resources: dict[str, Any], name: str, machine: Machine
    ) -> None:
        for state in load(machine)["States"].values():
            if state["Type"] == "Task":
                function = state["Resource"].removeprefix("${").removesuffix("Arn}")
                timeout = resources[function]["Properties"]["Timeout"]
                assert timeout == timing.ACTS.total_seconds() < state["TimeoutSeconds"], name

    def test_names_that_running_executions_rely_on_are_fixed(self, resources: dict[str, Any]) -> None:
        """A running execution keeps the ARNs it started with: after a new name its grant would stay open."""
        names = {
            name: properties["FunctionName"]
            for name, properties in of_type(resources, "AWS::Lambda::Function").items()
        }
        assert names["AuthorizeFunction"] == {"Fn::Sub": "${AWS::StackName}-authorize"}
        assert names["RevokeFunction"] == {"Fn::Sub": "${AWS::StackName}-revoke"}
        for logical_id, name in (("Grants", "grants"), ("Closings", "closings")):
            machine = resources[logical_id]["Properties"]
            assert machine["StateMachineName"] == {"Fn::Sub": f"${{AWS::StackName}}-{name}"}

    def test_every_function_has_the_names_of_both_machines_as_they_are(
        self, resources: dict[str, Any]
    ) -> None:
        for name in FUNCTIONS:
            variables = resources[f"{name}Function"]["Properties"]["Environment"]["Variables"]
            for variable, machine in (("STATE_MACHINE_ARN", "grants"), ("CLOSINGS_ARN", "closings")):
                assert variables[variable]["Fn::Sub"].endswith(f":stateMachine:${{AWS::StackName}}-{machine}")

    def test_every_log_is_kept_for_as_long_as_the_parameter_says(self, resources: dict[str, Any]) -> None:
        groups = of_type(resources, "AWS::Logs::LogGroup")
        assert len(groups) == len(EVERY_FUNCTION) + 3  # the gateway's and the state machines'
        for name, group in groups.items():
            assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
            assert "${AWS::StackName}" in group["LogGroupName"]["Fn::Sub"], name


# Actions that take no resource, or none that is known before the call.
# https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
TAKES_NO_RESOURCE = {
    "ec2:DescribeSecurityGroupRules",
    "ec2:DescribeSecurityGroups",
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


# The actions of each role on each domain, table or index, with either store.
SDB_TASK = {
    "Trail": "GetAttributes PutAttributes",
    "Ledger": "DeleteAttributes GetAttributes PutAttributes",
}
DYNAMODB_TASK = {"TrailTable": "GetItem UpdateItem", "LedgerTable": "DeleteItem GetItem UpdateItem"}
PROMISED = {
    "simpledb": {
        "ApiRole": {"Trail": "GetAttributes Select", "Refusals": "PutAttributes"},
        "AuthorizeRole": SDB_TASK,
        "RevokeRole": SDB_TASK,
        "GuardRole": {name: f"{actions} Select" for name, actions in SDB_TASK.items()},
        "NotifyRole": {"Trail": "GetAttributes"},
    },
    "dynamodb": {
        "ApiRole": {"TrailTable": "GetItem", "TrailTable/index/*": "Query", "RefusalsTable": "UpdateItem"},
        "AuthorizeRole": DYNAMODB_TASK,
        "RevokeRole": DYNAMODB_TASK,
        "GuardRole": {
            "TrailTable": "GetItem UpdateItem",
            "TrailTable/index/by-closed-at": "Query",
            "LedgerTable": "DeleteItem GetItem Scan UpdateItem",
        },
        "NotifyRole": {"TrailTable": "GetItem"},
    },
}


def stored_in(resource: Mapping[str, Any]) -> str:
    """Give the domain, table or index that a statement's resource names."""
    if "Fn::GetAtt" in resource:
        name, attribute = resource["Fn::GetAtt"]
        assert attribute == "Arn"
        return str(name)
    text = resource["Fn::Sub"]
    domain = re.fullmatch(
        r"arn:\$\{AWS::Partition\}:sdb:\$\{Trail.Region\}:\$\{AWS::AccountId\}:domain/\$\{(\w+)\}", text
    )
    index = re.fullmatch(r"\$\{(\w+)\.Arn\}(/index/.+)", text)
    return domain[1] if domain else index[1] + index[2]  # type: ignore[index]


class TestRoles:
    def test_every_statement_has_a_name_of_its_own_and_allows(self, resources: dict[str, Any]) -> None:
        count = 0
        for name, document in documents(resources):
            sids = [statement.get("Sid") for statement in document["Statement"]]
            assert all(sids), name
            assert len(set(sids)) == len(sids), name
            assert {statement["Effect"] for statement in document["Statement"]} == {"Allow"}
            count += len(sids)
        assert count > 30

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

    def test_the_api_function_has_no_rights_in_ec2(self, resources: dict[str, Any], store: str) -> None:
        """Nor can it stop an execution, or write the trail or the ledger.

        Mutation: `ManagedPolicyArns: [!Ref IngressPolicy]` on ApiRole.
        """
        of_stores = {
            "simpledb": {"sdb:GetAttributes", "sdb:PutAttributes", "sdb:Select"},
            "dynamodb": {"dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem"},
        }
        assert actions_of("ApiRole", resources) == of_stores[store] | {
            "apigateway:GET",
            "lambda:InvokeFunction",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "states:DescribeExecution",
            "states:StartExecution",
            "tag:GetResources",
        }
        assert "ManagedPolicyArns" not in resources["ApiRole"]["Properties"]

    def test_it_reads_a_keys_tags_and_never_its_value(self, resources: dict[str, Any]) -> None:
        """GET on /apikeys/{id} can answer with the key's value.

        Mutation: template.yaml:
            `/tags/arn%3A${AWS::Partition}%3Aapigateway%3A${AWS::Region}%3A%3A%2Fapikeys%2F*` -> `/apikeys/*`
        """
        (statement,) = (
            statement
            for statement in statements_of("ApiRole", resources)
            if "apigateway:GET" in listed(statement["Action"])
        )
        assert statement["Action"] == "apigateway:GET"
        assert statement["Resource"] == [
            {"Fn::Sub": f"arn:${{AWS::Partition}}:apigateway:${{AWS::Region}}::/tags/{keys}"}
            for keys in (
                "arn%3A${AWS::Partition}%3Aapigateway%3A${AWS::Region}%3A%3A%2Fapikeys%2F*",
                "arn:${AWS::Partition}:apigateway:${AWS::Region}::/apikeys/*",
            )
        ]
        readers = {
            role
            for role, document in documents(resources)
            for statement in document["Statement"]
            if any(action.startswith("apigateway:") for action in listed(statement["Action"]))
        }
        assert readers == {"ApiRole"}

    @pytest.mark.parametrize("role", ["ApiRole", "AuthorizeRole", "RevokeRole", "GuardRole", "NotifyRole"])
    def test_a_role_has_the_promised_rights_in_the_stores(
        self, resources: dict[str, Any], store: str, role: str
    ) -> None:
        """No role deletes from the trail; only the api function's writes a refusal.

        Mutation: `domain/${Refusals}` -> `domain/${Trail}` in RecordRefusals.
        Mutation: template.yaml:
            `Action: dynamodb:UpdateItem` -> `Action: [dynamodb:UpdateItem, dynamodb:DeleteItem]`
        """
        allowed: dict[str, set[str]] = {}
        for statement in statements_of(role, resources):
            for action in listed(statement["Action"]):
                if action.startswith(("sdb:", "dynamodb:")):
                    for resource in listed(statement["Resource"]):
                        allowed.setdefault(stored_in(resource), set()).add(action.partition(":")[2])
        promised = {name: set(actions.split()) for name, actions in PROMISED[store][role].items()}
        assert allowed == promised

    @pytest.mark.parametrize(
        ("role", "more"),
        [
            (
                "AuthorizeRole",
                {
                    "ec2:AuthorizeSecurityGroupIngress",
                    "ec2:CreateTags",
                    "ec2:DescribeSecurityGroups",
                    "states:StartExecution",
                },
            ),
            ("RevokeRole", {"states:DescribeExecution"}),
            (
                "GuardRole",
                {"sqs:SendMessage", "states:DescribeExecution", "states:ListExecutions"},
            ),
        ],
    )
    def test_every_task_can_close_rules_and_authorize_alone_can_open_them(
        self, resources: dict[str, Any], role: str, more: set[str]
    ) -> None:
        allowed = actions_of(role, resources)
        assert {action for action in allowed if not action.startswith(("sdb:", "dynamodb:"))} == more | {
            "ec2:DescribeSecurityGroupRules",
            "ec2:RevokeSecurityGroupIngress",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "states:StopExecution",
        }

    def test_no_role_has_rights_in_the_store_that_was_not_chosen(
        self, resources: dict[str, Any], store: str
    ) -> None:
        """Mutation: a statement of a store outside of its `!If`."""
        chosen_prefix, other_prefix = ("sdb:", "dynamodb:") if store == "simpledb" else ("dynamodb:", "sdb:")
        allowed = {
            action for name in of_type(resources, "AWS::IAM::Role") for action in actions_of(name, resources)
        }
        assert {action for action in allowed if action.startswith(other_prefix)} == set()
        assert {action for action in allowed if action.startswith(chosen_prefix)}

    def test_only_the_api_starts_grants(self, resources: dict[str, Any]) -> None:
        """And four roles start closings. Mutation: ClosingsRole with states:StartExecution."""
        starters = {}
        for name in of_type(resources, "AWS::IAM::Role"):
            for statement in statements_of(name, resources):
                if "states:StartExecution" in listed(statement["Action"]):
                    starters[name] = {
                        resource.get("Ref") or resource["Fn::Sub"].rpartition("-")[2].capitalize()
                        for resource in listed(statement["Resource"])
                    }
        assert starters == {
            "ApiRole": {"Grants", "Closings"},
            "AuthorizeRole": {"Closings"},
            "GrantStoppedRole": {"Closings"},
            "SetupRole": {"Closings"},
        }

    @pytest.mark.parametrize("name", [*EVERY_FUNCTION])
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

    @pytest.mark.parametrize("name", EVERY_FUNCTION)
    def test_a_function_writes_to_its_own_log_alone(self, resources: dict[str, Any], name: str) -> None:
        (statement,) = (
            statement
            for statement in statements_of(f"{name}Role", resources)
            if any(action.startswith("logs:") for action in listed(statement["Action"]))
        )
        assert statement["Resource"] == {"Fn::GetAtt": [f"{name}FunctionLogs", "Arn"]}

    @pytest.mark.parametrize(
        ("role", "functions"),
        [("GrantsRole", ["AuthorizeFunction", "RevokeFunction"]), ("ClosingsRole", ["RevokeFunction"])],
    )
    def test_a_state_machine_may_run_its_tasks_and_write_its_log(
        self, resources: dict[str, Any], role: str, functions: list[str]
    ) -> None:
        run, log = statements_of(role, resources)
        assert run["Action"] == "lambda:InvokeFunction"
        assert listed(run["Resource"]) == [{"Fn::GetAtt": [name, "Arn"]} for name in functions]
        assert set(log["Action"]) <= TAKES_NO_RESOURCE

    def test_services_are_trusted_for_this_account_only(self, resources: dict[str, Any]) -> None:
        """Else another account's rule or state machine could use our roles (the confused deputy).

        Lambda and API Gateway send no source with sts:AssumeRole. EventBridge sends none to a topic, so it
        may publish to none.
        """
        for name, document in documents(resources):
            for statement in document["Statement"]:
                service = statement.get("Principal", {}).get("Service")
                if service in ("events.amazonaws.com", "states.amazonaws.com"):
                    keys = {key for test in statement["Condition"].values() for key in test}
                    assert keys & {"aws:SourceArn", "aws:SourceAccount"}, (name, statement["Sid"])
        for name, permission in of_type(resources, "AWS::Lambda::Permission").items():
            assert permission["SourceArn"], name


class TestStores:
    def test_domains_and_tables_outlive_the_stack(self, resources: dict[str, Any], store: str) -> None:
        """And a change of the store. Mutation: `DeletionPolicy: Retain` deleted."""
        for name in KEPT[store]:
            assert resources[name]["DeletionPolicy"] == "Retain"
            assert resources[name]["UpdateReplacePolicy"] == "Retain"

    def test_only_the_chosen_store_is_made(self, resources: dict[str, Any], store: str) -> None:
        """Mutation: `Condition: TrailIsInDynamoDb` deleted."""
        names = {*of_type(resources, "Custom::Domain"), *of_type(resources, "AWS::DynamoDB::Table")}
        assert names == set(KEPT[store])

    def test_each_function_has_the_store_and_all_three_names(
        self, resources: dict[str, Any], store: str
    ) -> None:
        for name in FUNCTIONS:
            variables = resources[f"{name}Function"]["Properties"]["Environment"]["Variables"]
            assert variables["TRAIL_STORE"] == {"Ref": "TrailStore"}
            names = {variables[f"{kind.upper()}_DOMAIN"]["Ref"]: kind for kind in DOMAINS.values()}
            assert names == KEPT[store]

    def test_the_outputs_have_the_same_names_with_each(self, template: dict[str, Any], store: str) -> None:
        outputs = {
            name: template["Outputs"][f"{domain}Domain"]["Value"]["Ref"]
            for name, domain in zip(KEPT[store], DOMAINS, strict=True)
        }
        assert outputs == {name: name for name in KEPT[store]}
        assert template["Outputs"]["TrailStore"]["Value"] == {"Ref": "TrailStore"}
        region = template["Outputs"]["TrailDomainRegion"]["Value"]
        for name in FUNCTIONS:
            variables = template["Resources"][f"{name}Function"]["Properties"]["Environment"]["Variables"]
            assert variables["TRAIL_REGION"] == region

    def test_the_default_store_is_simpledb_and_the_choices_are_the_functions(self) -> None:
        declared = read()["Parameters"]["TrailStore"]
        assert declared["Default"] == "simpledb"
        assert tuple(declared["AllowedValues"]) == SETTINGS_STORES == STORES

    def test_no_mapping_is_used_since_a_region_may_lack_an_entry(self) -> None:
        """Fn::FindInMap fails where the key is missing, in a branch of Fn::If that is not taken as well.

        https://github.com/aws-cloudformation/aws-cloudformation-templates/issues/271
        """
        assert "Mappings" not in read()
        assert "Fn::FindInMap" not in json.dumps(read())


class TestDomains:
    @pytest.fixture
    def template(self) -> dict[str, Any]:
        return transformed("simpledb")

    @pytest.fixture
    def resources(self, template: dict[str, Any]) -> dict[str, Any]:
        section: dict[str, Any] = template["Resources"]
        return section

    def test_all_three_are_in_the_region_that_functions_use(self, resources: dict[str, Any]) -> None:
        region = resources["ApiFunction"]["Properties"]["Environment"]["Variables"]["TRAIL_REGION"]
        assert region == {"Fn::GetAtt": ["Trail", "Region"]}
        assert resources["Trail"]["Properties"]["Region"] == {"Ref": "TrailRegion"}
        for name in ("Ledger", "Refusals"):
            assert resources[name]["Properties"]["Region"] == region

    def test_the_setup_function_may_make_domains_of_these_kinds_alone(
        self, resources: dict[str, Any]
    ) -> None:
        (statement,) = (
            candidate
            for candidate in statements_of("SetupRole", resources)
            if candidate["Action"] == "sdb:CreateDomain"
        )
        for (name, kind), resource in zip(DOMAINS.items(), statement["Resource"], strict=True):
            assert resource["Fn::Sub"].endswith(f":domain/${{AWS::StackName}}-{kind}-*")
            assert resources[name]["Properties"]["Name"] == {"Fn::Sub": f"${{AWS::StackName}}-{kind}"}

    def test_the_region_may_be_any_that_has_simpledb(self, template: dict[str, Any]) -> None:
        allowed = set(template["Parameters"]["TrailRegion"]["AllowedValues"]) - {""}
        assert allowed == SIMPLEDB_REGIONS == set(boto3.session.Session().get_available_regions("sdb"))
        assert all(
            region in template["Parameters"]["TrailRegion"]["ConstraintDescription"] for region in allowed
        )

    def test_every_region_has_a_nearest_one_with_simpledb(self, resources: dict[str, Any]) -> None:
        nearest = resources["Trail"]["Properties"]["Nearest"]
        assert set(nearest.values()) <= SIMPLEDB_REGIONS
        assert {region for region, to in nearest.items() if region == to} == SIMPLEDB_REGIONS
        assert set(nearest) >= set(boto3.session.Session().get_available_regions("stepfunctions"))

    def test_another_partition_is_refused_before_anything_is_made(self, template: dict[str, Any]) -> None:
        """Only with SimpleDB, and with what to choose. The list is there twice: a rule sees no resource.

        Mutation: `RuleCondition: !Equals [!Ref TrailStore, simpledb]` deleted.
        """
        (rule,) = template["Rules"].values()
        assert rule["RuleCondition"] == {"Fn::Equals": [{"Ref": "TrailStore"}, "simpledb"]}
        (assertion,) = rule["Assertions"]
        regions, region = assertion["Assert"]["Fn::Contains"]
        assert region == {"Ref": "AWS::Region"}
        assert sorted(regions) == sorted(template["Resources"]["Trail"]["Properties"]["Nearest"])
        for partition in ("aws-cn", "aws-us-gov"):
            assert not set(regions) & set(boto3.session.Session().get_available_regions("ec2", partition))
        assert "Choose dynamodb as TrailStore" in assertion["AssertDescription"]


class TestTables:
    @pytest.fixture
    def tables(self) -> dict[str, Any]:
        return of_type(transformed("dynamodb")["Resources"], "AWS::DynamoDB::Table")

    def test_an_item_is_found_by_its_name(self, tables: dict[str, Any]) -> None:
        for table in tables.values():
            assert table["KeySchema"] == [{"AttributeName": "name", "KeyType": "HASH"}]

    def test_the_indexes_are_those_that_the_adapter_queries(self, tables: dict[str, Any]) -> None:
        """Mutation: `ProjectionType: ALL` -> `ProjectionType: KEYS_ONLY`."""
        trail = tables["TrailTable"]
        assert {entry["IndexName"]: entry for entry in trail["GlobalSecondaryIndexes"]} == {
            index: {
                "IndexName": index,
                "KeySchema": [
                    {"AttributeName": attribute, "KeyType": "HASH"},
                    {"AttributeName": "order", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
            for attribute, index in INDEXES.items()
        }
        defined = {entry["AttributeName"]: entry["AttributeType"] for entry in trail["AttributeDefinitions"]}
        assert defined == dict.fromkeys(["name", "order", *INDEXES], "S")
        for name in ("LedgerTable", "RefusalsTable"):
            assert "GlobalSecondaryIndexes" not in tables[name]

    def test_it_scales_on_demand_and_is_protected_and_backed_up(self, tables: dict[str, Any]) -> None:
        """Mutation: `DeletionProtectionEnabled: true` -> `DeletionProtectionEnabled: false`."""
        assert len(tables) == 3
        for table in tables.values():
            assert table["BillingMode"] == "PAY_PER_REQUEST"
            assert table["DeletionProtectionEnabled"] is True
            assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}

    def test_it_has_a_generated_name_and_the_stacks_tag(self, tables: dict[str, Any]) -> None:
        """So that a retained table does not block a new stack. Mutation: a `TableName`."""
        for table in tables.values():
            assert "TableName" not in table
            assert table["Tags"] == [{"Key": "knock:stack", "Value": {"Ref": "AWS::StackName"}}]


class TestOtherPartitions:
    """China, GovCloud and the European partition: names of the partition, and no others."""

    @pytest.mark.parametrize(
        ("region", "partition", "suffix", "console"),
        [
            ("cn-north-1", "aws-cn", "amazonaws.com.cn", "console.amazonaws.cn"),
            ("us-gov-west-1", "aws-us-gov", "amazonaws.com", "console.amazonaws-us-gov.com"),
            ("eusc-de-east-1", "aws-eusc", "amazonaws.eu", "console.amazonaws-eusc.eu"),
        ],
    )
    def test_every_arn_and_address_is_of_its_own(
        self, region: str, partition: str, suffix: str, console: str
    ) -> None:
        """Mutation: `arn:${AWS::Partition}:` -> `arn:aws:` anywhere."""
        place = Place("knock", region, partition=partition)
        resolved = resolve(TEMPLATE, place, {"TrailStore": "dynamodb", "EnableNotifications": "true"})
        all_texts = [
            *texts([resource.properties for resource in resolved.resources.values()]),
            *resolved.outputs.values(),
        ]
        arns = [text for text in all_texts if re.match(r"arn:aws[a-z-]*:", text)]
        assert len(arns) > 50
        assert {text.split(":")[1] for text in arns} == {partition}
        assert f".execute-api.{region}.{suffix}/" in resolved.outputs["ApiUrl"]
        links = [text for text in all_texts if ".console." in text]
        assert len(links) == 3
        assert all(f"https://{region}.{console}/" in text for text in links)

    @pytest.mark.parametrize("region", ["cn-north-1", "us-gov-west-1"])
    def test_simpledb_is_refused_with_what_to_choose(self, region: str) -> None:
        with pytest.raises(TemplateError, match="Choose dynamodb as TrailStore"):
            resolve(TEMPLATE, Place("knock", region), {})

    @pytest.mark.parametrize(
        ("name", "accepted"),
        [
            ("/knock/powertools", True),
            ("/aws/service/powertools/python/arm64/python3.13/latest", True),
            ("/aws/service/powertools/python/x86_64/python3.13/latest", False),
            ("/other", False),
        ],
    )
    def test_a_parameter_of_the_accounts_own_may_name_the_layer(self, name: str, accepted: bool) -> None:
        pattern = read()["Parameters"]["PowertoolsLayer"]["AllowedPattern"]
        assert bool(re.fullmatch(pattern, name)) == accepted


class TestStateMachines:
    @every_machine
    def test_its_placeholders_are_filled_with_its_functions(
        self, resources: dict[str, Any], name: str, machine: Machine
    ) -> None:
        properties = resources[name]["Properties"]
        assert properties["StateMachineType"] == "STANDARD"
        assert properties["DefinitionS3Location"]["Key"] == f"statemachine/{machine.path.name}"
        text = machine.path.read_text()
        assert set(re.findall(r"\$\{(\w+)\}", text)) == set(properties["DefinitionSubstitutions"])
        for placeholder, value in properties["DefinitionSubstitutions"].items():
            assert value == {"Fn::GetAtt": [placeholder.removesuffix("Arn"), "Arn"]}

    def test_each_has_a_role_and_a_log_of_its_own(self, resources: dict[str, Any]) -> None:
        for name in MACHINES:
            properties = resources[name]["Properties"]
            assert properties["RoleArn"] == {"Fn::GetAtt": [f"{name}Role", "Arn"]}
            logging = properties["LoggingConfiguration"]
            assert logging["Level"] in ("ERROR", "ALL")
            (destination,) = logging["Destinations"]
            group = {"Fn::GetAtt": [f"{name}Logs", "Arn"]}
            assert destination["CloudWatchLogsLogGroup"]["LogGroupArn"] == group

    def test_these_tests_know_every_machine(self, resources: dict[str, Any]) -> None:
        assert set(of_type(resources, "AWS::StepFunctions::StateMachine")) == set(MACHINES)


class TestEvents:
    QUEUE: ClassVar = {"Fn::GetAtt": ["DeadLetters", "Arn"]}

    def test_stopping_failing_and_timing_out_start_a_closing_with_the_event_as_it_is(
        self, resources: dict[str, Any]
    ) -> None:
        """Mutation: `status: [ABORTED, FAILED, TIMED_OUT]` -> `status: [ABORTED]`."""
        rule = resources["GrantStopped"]["Properties"]
        assert rule["EventPattern"] == {
            "source": ["aws.states"],
            "detail-type": ["Step Functions Execution Status Change"],
            "detail": {"status": ["ABORTED", "FAILED", "TIMED_OUT"], "stateMachineArn": [{"Ref": "Grants"}]},
        }
        assert rule.get("State", "ENABLED") == "ENABLED"
        (target,) = rule["Targets"]
        assert target["Arn"] == {"Ref": "Closings"}
        assert not set(target) & {"Input", "InputPath", "InputTransformer"}

    def test_eventbridge_starts_closings_under_a_role_for_this_rule_alone(
        self, resources: dict[str, Any]
    ) -> None:
        """https://docs.aws.amazon.com/eventbridge/latest/userguide/cross-service-confused-deputy-prevention.html"""
        rule = resources["GrantStopped"]["Properties"]
        assert rule["Targets"][0]["RoleArn"] == {"Fn::GetAtt": ["GrantStoppedRole", "Arn"]}
        (start,) = statements_of("GrantStoppedRole", resources)
        assert (start["Action"], start["Resource"]) == ("states:StartExecution", {"Ref": "Closings"})
        (trust,) = resources["GrantStoppedRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"Service": "events.amazonaws.com"}
        source = trust["Condition"]["ArnEquals"]["aws:SourceArn"]["Fn::Sub"]
        assert source.endswith(f":rule/{rule['Name']['Fn::Sub']}")

    @pytest.mark.parametrize("rule", ["GrantStopped", "GuardHourly"])
    def test_an_undeliverable_event_goes_to_the_dead_letter_queue(
        self, resources: dict[str, Any], rule: str
    ) -> None:
        """Mutation: a `DeadLetterConfig` deleted."""
        (target,) = resources[rule]["Properties"]["Targets"]
        assert target["DeadLetterConfig"] == {"Arn": self.QUEUE}
        assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0
        (allow,) = resources["DeadLettersPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        assert {"Fn::GetAtt": [rule, "Arn"]} in allow["Condition"]["ArnEquals"]["aws:SourceArn"]
        assert resources["DeadLetters"]["Properties"]["SqsManagedSseEnabled"] is True

    def test_a_stop_event_is_retried_for_a_day(self, resources: dict[str, Any]) -> None:
        """As often as EventBridge can; the closing it starts goes on for days."""
        (target,) = resources["GrantStopped"]["Properties"]["Targets"]
        assert target["RetryPolicy"] == {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86_400}

    def test_a_failed_run_of_the_guard_goes_to_the_dead_letter_queue(self, resources: dict[str, Any]) -> None:
        """Mutation: its `EventInvokeConfig` deleted."""
        (config,) = (
            config
            for config in of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
            if config["FunctionName"] == {"Ref": "GuardFunction"}
        )
        assert config["DestinationConfig"]["OnFailure"]["Destination"] == self.QUEUE
        (send,) = (s for s in statements_of("GuardRole", resources) if s["Action"] == "sqs:SendMessage")
        assert send["Resource"] == self.QUEUE
        (permission,) = (
            p
            for p in of_type(resources, "AWS::Lambda::Permission").values()
            if p["SourceArn"] == {"Fn::GetAtt": ["GuardHourly", "Arn"]}
        )
        assert permission["FunctionName"] == {"Ref": "GuardFunction"}

    def test_the_guard_runs_hourly_and_can_be_switched_off(self, resources: dict[str, Any]) -> None:
        """Only the guard finds a stop whose event was lost."""
        rule = resources["GuardHourly"]["Properties"]
        assert rule["ScheduleExpression"] == "rate(1 hour)"
        assert rule["State"] == {"Fn::If": ["GuardIsScheduled", "ENABLED", "DISABLED"]}


INSTRUCTS = re.compile(r"\b(Look|Read|Open|Check|Add|Ask|Remove|Run|look|read|run)\b")


def watched_by(alarm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the metrics of an alarm: its own, or those of its expression."""
    return [
        metric["MetricStat"]["Metric"] for metric in alarm.get("Metrics", []) if "MetricStat" in metric
    ] or [alarm]


class TestAlarms:
    def test_each_says_what_to_do_and_notifies_the_topic(self, resources: dict[str, Any]) -> None:
        alarms = of_type(resources, "AWS::CloudWatch::Alarm")
        assert len(alarms) >= 12
        for name, alarm in alarms.items():
            assert INSTRUCTS.search(alarm["AlarmDescription"]), name
            assert len(alarm["AlarmDescription"]) <= 1024, name
            assert alarm["AlarmActions"] == [{"Ref": "Alarms"}], name
            # Missing data is fine, except the guard's.
            assert alarm["TreatMissingData"] == (
                "breaching" if name == "GuardSilentAlarm" else "notBreaching"
            )

    def test_every_kind_of_failure_is_watched(self, resources: dict[str, Any]) -> None:
        watched = {
            (metric["Namespace"], metric["MetricName"])
            for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
            for metric in watched_by(alarm)
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

    def test_a_metric_of_knocks_is_watched_under_the_function_that_writes_it(
        self, template: dict[str, Any]
    ) -> None:
        """Powertools gives each metric the dimension service, from POWERTOOLS_SERVICE_NAME."""
        table = template["Metadata"]["Knock"]["Metrics"]
        for name, alarm in of_type(template["Resources"], "AWS::CloudWatch::Alarm").items():
            if alarm.get("Namespace") != "Knock":
                continue
            (dimension,) = alarm["Dimensions"]
            (function,) = table[alarm["MetricName"]]["Functions"]
            variables = template["Resources"][f"{function.capitalize()}Function"]["Properties"]["Environment"]
            assert dimension["Name"] == "service", name
            assert dimension["Value"] == variables["Variables"]["POWERTOOLS_SERVICE_NAME"], name
            assert variables["Variables"]["POWERTOOLS_METRICS_NAMESPACE"] == "Knock"

    @pytest.mark.parametrize(
        ("machine", "metrics"),
        [
            ("Grants", {"ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"}),
            ("Closings", {"ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"}),
        ],
    )
    def test_every_failure_of_an_execution_is_watched(
        self, resources: dict[str, Any], machine: str, metrics: set[str]
    ) -> None:
        """Mutation: `ClosingsFailedAlarm` without one of its metrics."""
        arn = [{"Name": "StateMachineArn", "Value": {"Ref": machine}}]
        assert metrics == {
            metric["MetricName"]
            for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
            for metric in watched_by(alarm)
            if metric["Dimensions"] == arn
        }

    def test_a_closing_that_fails_counts_once_however_it_fails(self, resources: dict[str, Any]) -> None:
        alarm = resources["ClosingsFailedAlarm"]["Properties"]
        returned = [metric for metric in alarm["Metrics"] if metric.get("ReturnData", True)]
        parts = [metric["Id"] for metric in alarm["Metrics"] if "MetricStat" in metric]
        assert [metric["Expression"] for metric in returned] == [
            " + ".join(f"FILL({part}, 0)" for part in parts)
        ]
        assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (1, "GreaterThanOrEqualToThreshold")

    def test_an_attempt_that_waits_for_settles_raises_no_alarm(self, resources: dict[str, Any]) -> None:
        """A rule whose state is unknown until SETTLES is closed late, after some failed tries, by design.

        Mutation: template.yaml: `Threshold: 240000` -> `Threshold: 60000`
        Mutation: template.yaml: `DatapointsToAlarm: 3` -> `DatapointsToAlarm: 2`
        """
        (retrier,) = (
            entry
            for entry in load()["States"]["RevokeIngress"]["Retry"]
            if entry["ErrorEquals"] == ["RuleUnsettled"]
        )
        longest = timing.SETTLES.total_seconds() + max(delays(retrier)) + timing.ACTS.total_seconds()
        late = resources["RevocationLateAlarm"]["Properties"]
        assert longest * 1000 <= late["Threshold"] <= 2 * longest * 1000
        failing = resources["RevocationFailingAlarm"]["Properties"]
        assert longest < failing["Period"]  # so its errors are in two periods at most
        assert failing["DatapointsToAlarm"] == 3
        assert failing["EvaluationPeriods"] > failing["DatapointsToAlarm"]

    def test_a_failing_force_raises_an_alarm(self, resources: dict[str, Any]) -> None:
        """It is tried in each period of the alarm: the longest pause is at most a period."""
        (retrier,) = load()["States"]["ForceRevokeIngress"]["Retry"]
        assert max(delays(retrier)) <= resources["RevocationFailingAlarm"]["Properties"]["Period"]

    def test_a_guard_that_does_not_run_for_three_hours_raises_an_alarm(
        self, resources: dict[str, Any]
    ) -> None:
        silent = resources["GuardSilentAlarm"]["Properties"]
        assert (silent["Period"], silent["EvaluationPeriods"]) == (3_600, 3)
        assert resources["GuardHourly"]["Properties"]["ScheduleExpression"] == "rate(1 hour)"

    def test_the_dashboard_draws_the_alarms_line_where_it_is(self, resources: dict[str, Any]) -> None:
        body, _ = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
        assert f'"value": {resources["RevocationLateAlarm"]["Properties"]["Threshold"]},' in body

    def test_the_dashboard_shows_every_metric_and_every_alarm(self, template: dict[str, Any]) -> None:
        body, variables = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
        names_in_scope = set(template["Resources"]) | {"AWS::Region", "AWS::StackName"} | set(variables)
        for placeholder in re.findall(r"\$\{([^}]+)\}", body):
            assert placeholder.split(".")[0] in names_in_scope, placeholder
        widgets = json.loads(re.sub(r"\$\{([^}]+)\}", r"<\1>", body))["widgets"]
        drawn = {metric[1] for widget in widgets for metric in widget["properties"].get("metrics", [])}
        assert drawn >= set(template["Metadata"]["Knock"]["Metrics"])
        (alarms,) = (widget["properties"]["alarms"] for widget in widgets if widget["type"] == "alarm")
        assert {alarm.strip("<>").removesuffix(".Arn") for alarm in alarms} == {
            name
            for name, resource in template["Resources"].items()
            if resource["Type"] == "AWS::CloudWatch::Alarm" and "Condition" not in resource
        }

    def test_the_topic_has_a_subscription_only_with_an_address(self, resources: dict[str, Any]) -> None:
        assert resources["AlarmsByEmail"]["Condition"] == "AlarmEmailGiven"


class TestNotifications:
    def test_they_are_off_by_default(self, resources: dict[str, Any]) -> None:
        """Mutation: `Condition: NotificationsAreOn` deleted anywhere."""
        prefixes = ("Notify", "Notifications", "LogsMayNotify")
        names = [name for name in resources if name.startswith(prefixes) or name.endswith("News")]
        assert len(names) == 9
        for name in names:
            assert resources[name]["Condition"] == "NotificationsAreOn", name

    def test_no_other_function_takes_part_so_none_is_slowed_down(self, resources: dict[str, Any]) -> None:
        for name in (*FUNCTIONS[:-1], "Setup"):
            assert not {a for a in actions_of(f"{name}Role", resources) if a.startswith(("sns:", "events:"))}
            variables = resources[f"{name}Function"]["Properties"].get("Environment", {}).get("Variables", {})
            assert not [variable for variable in variables if "NOTIF" in variable]

    def test_only_the_function_publishes_to_the_topic(self, resources: dict[str, Any]) -> None:
        """A topic without a policy of its own takes messages from its own account alone.

        Mutation: an AWS::SNS::TopicPolicy for events.amazonaws.com.
        """
        assert of_type(resources, "AWS::SNS::TopicPolicy") == {}
        (publish,) = (s for s in statements_of("NotifyRole", resources) if s["Action"] == "sns:Publish")
        assert publish["Resource"] == {"Ref": "Notifications"}
        variables = resources["NotifyFunction"]["Properties"]["Environment"]["Variables"]
        assert variables["NOTIFICATION_TOPIC"] == {"Ref": "Notifications"}


class TestWarmth:
    def test_it_is_off_by_default(self, template: dict[str, Any]) -> None:
        """Mutation: `Condition: WarmthIsWanted` deleted."""
        assert template["Parameters"]["KeepWarm"]["Default"] == "off"
        names = [name for name in template["Resources"] if name.startswith("Warmth")]
        assert len(names) == 3
        assert {template["Resources"][name]["Condition"] for name in names} == {"WarmthIsWanted"}

    def test_it_calls_the_two_functions_of_a_knock(self, resources: dict[str, Any]) -> None:
        rule = resources["Warmth"]["Properties"]
        assert rule["ScheduleExpression"] == "rate(5 minutes)"
        assert {target["Arn"]["Fn::GetAtt"][0] for target in rule["Targets"]} == {
            "ApiFunction",
            "AuthorizeFunction",
        }
        for target in rule["Targets"]:
            assert json.loads(target["Input"]) == WARM
            assert target["RetryPolicy"] == {"MaximumRetryAttempts": 0}


class TestReserve:
    def test_nothing_is_reserved_by_default_and_otherwise_for_the_revoke_function_alone(
        self, template: dict[str, Any]
    ) -> None:
        assert template["Parameters"]["ReservedForRevoke"]["Default"] == "0"
        reserved = {
            name: function["ReservedConcurrentExecutions"]
            for name, function in of_type(template["Resources"], "AWS::Lambda::Function").items()
            if "ReservedConcurrentExecutions" in function
        }
        parameter = {"Ref": "ReservedForRevoke"}
        assert reserved == {"RevokeFunction": {"Fn::If": ["RevokeHasReserve", parameter, NO_VALUE]}}

    @pytest.mark.parametrize(("value", "reserved"), [("0", None), ("20", "20")])
    def test_it_is_what_the_parameter_says(self, value: str, reserved: str | None) -> None:
        resolved = resolve(TEMPLATE, Place("knock", "eu-west-1"), {"ReservedForRevoke": value})
        assert resolved.resources["RevokeFunction"].properties.get("ReservedConcurrentExecutions") == reserved

    @pytest.mark.parametrize("value", ["1", "9", "00", "01", "1001", "-1", "1.5", ""])
    def test_fewer_than_ten_are_refused(self, value: str) -> None:
        with pytest.raises(TemplateError, match="must be 0, or 10 to 1000"):
            resolve(TEMPLATE, Place("knock", "eu-west-1"), {"ReservedForRevoke": value})

    @pytest.mark.parametrize("value", ["10", "99", "100", "999", "1000"])
    def test_ten_to_a_thousand_are_accepted(self, value: str) -> None:
        resolve(TEMPLATE, Place("knock", "eu-west-1"), {"ReservedForRevoke": value})


BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"


class TestInAnOrganisation:
    def test_every_role_gets_the_permissions_boundary(self, resources: dict[str, Any]) -> None:
        """Also a role that SAM might add by itself. Mutation: one `PermissionsBoundary` deleted."""
        boundary = {"Fn::If": ["BoundaryIsGiven", {"Ref": "PermissionsBoundary"}, NO_VALUE]}
        roles = of_type(resources, "AWS::IAM::Role")
        assert len(roles) == 10
        assert {name: role.get("PermissionsBoundary") for name, role in roles.items()} == dict.fromkeys(
            roles, boundary
        )

    @pytest.mark.parametrize(("parameter", "boundary"), [("", None), (BOUNDARY, BOUNDARY)])
    def test_a_role_gets_the_boundary_of_the_parameter(self, parameter: str, boundary: str | None) -> None:
        resolved = resolve(TEMPLATE, Place("knock", "eu-west-1"), {"PermissionsBoundary": parameter})
        roles = resolved.all("AWS::IAM::Role")
        assert {role.properties.get("PermissionsBoundary") for role in roles} == {boundary}

    @pytest.mark.parametrize(
        ("arn", "accepted"),
        [
            (BOUNDARY, True),
            ("arn:aws-us-gov:iam::123456789012:policy/teams/boundary", True),
            ("arn:aws-cn:iam::aws:policy/PowerUserAccess", True),
            ("arn:aws:iam::123456789012:role/boundary", False),
            ("boundary", False),
        ],
    )
    def test_it_is_the_arn_of_a_policy(self, arn: str, accepted: bool) -> None:
        pattern = read()["Parameters"]["PermissionsBoundary"]["AllowedPattern"]
        assert bool(re.fullmatch(pattern, arn)) == accepted

    def test_tags_of_the_stack_reach_every_resource_that_takes_tags(self, store: str) -> None:
        """CloudFormation puts them on every resource whose type says so; docs/deploying.md names the others.

        https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-properties-resource-tags.html
        """
        kinds = {
            tags_["Type"] for tags_ in transformed(store)["Resources"].values() if "AWS::" in tags_["Type"]
        }
        tagging = {kind: schema(kind).get("tagging", {}) for kind in kinds}
        assert {kind for kind, tags_ in tagging.items() if tags_.get("taggable")} == {
            kind for kind, tags_ in tagging.items() if tags_.get("tagProperty") and tags_.get("tagOnCreate")
        }
        untagged = {kind for kind, tags_ in tagging.items() if not tags_.get("taggable")}
        page = (ROOT / "docs" / "deploying.md").read_text()
        listed_types = set(re.findall(r"`(AWS::\w+::\w+)`", page.split("## Tags")[1].split("\n## ")[0]))
        assert untagged == listed_types


def schema(kind: str) -> dict[str, Any]:
    """Give the schema of a type of resource, as cfn-lint ships it from CloudFormation's registry."""
    data = Path(cfnlint.__file__).parent / "data" / "schemas"
    digest = json.loads((data / "providers" / "us-east-1.json").read_text())[kind]
    content: dict[str, Any] = json.loads((data / "resources" / f"{digest}.json").read_text())
    return content


class TestOutputs:
    def test_each_is_described(self, template: dict[str, Any]) -> None:
        for name, output in template["Outputs"].items():
            assert output["Description"].endswith("."), name

    def test_the_outputs_that_people_and_programs_read_are_there(self, template: dict[str, Any]) -> None:
        assert set(template["Outputs"]) >= {
            "ApiUrl",
            "ConsoleUrl",
            "ClosingsArn",
            "StateMachineArn",
            "StateMachineConsole",
            "LedgerDomain",
            "RefusalsDomain",
            "TrailDomain",
            "TrailDomainRegion",
            "TrailStore",
            "UsagePlanId",
            "AlarmTopicArn",
            "RevokeFunctionName",
            "StackTag",
        }


def test_no_arn_names_a_partition(resources: dict[str, Any]) -> None:
    """But for those that SAM writes: it takes the partition from the region it transforms for."""
    ours = {name: value for name, value in resources.items() if name not in ("Api",)}
    arns = [text for text in texts(ours) if re.match(r"arn:aws[:-]", text)]
    assert [text for text in arns if ":execute-api:" not in text] == []
