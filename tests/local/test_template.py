"""The template is read as CloudFormation reads it, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from local.deployment import Deployment
from local.template import NO_LOCAL_EFFECT, Place, Template, TemplateError, load
from tests.conftest import ROOT

PLACE = Place("knock", "eu-west-1")

QUEUE = """
  Q:
    Type: AWS::SQS::Queue
    Properties:
"""


def template(tmp_path: Path, text: str, **parameters: str) -> Template:
    path = tmp_path / "template.yaml"
    path.write_text("Transform: AWS::Serverless-2016-10-31\n" + dedent(text))
    return load(path, PLACE, parameters)


def resolved(tmp_path: Path, expression: str, sections: str = "") -> Any:
    """Resolve one expression, as the output of a template."""
    text = f"Outputs:\n  It:\n    Value: {expression}\nResources:\n{QUEUE}      QueueName: q\n{sections}"
    return template(tmp_path, text).outputs["It"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("!Ref AWS::Region", "eu-west-1"),
        ("!Ref AWS::AccountId", "123456789012"),
        ("!Ref AWS::Partition", "aws"),
        ("!Ref AWS::URLSuffix", "amazonaws.com"),
        ("!Ref AWS::StackName", "knock"),
        ("!Ref Q", "https://sqs.eu-west-1.amazonaws.com/123456789012/q"),
        ("!GetAtt Q.Arn", "arn:aws:sqs:eu-west-1:123456789012:q"),
        ("{Fn::GetAtt: [Q, QueueName]}", "q"),
        ("!Sub '${AWS::StackName}-x'", "knock-x"),
        ("!Sub '${Q.Arn}/x'", "arn:aws:sqs:eu-west-1:123456789012:q/x"),
        ("!Sub ['${A}-${B}', {A: 1, B: !Ref AWS::Region}]", "1-eu-west-1"),
        ("!Sub ['${A} ${B}', {A: true, B: 3}]", "true 3"),
        ("!If [Holds, a, b]", "a"),
        ("!If [Fails, a, b]", "b"),
        ("!If [One, a, b]", "a"),
        ("[a, !If [Fails, b, !Ref AWS::NoValue]]", ["a"]),
        ("{a: 1, b: !Ref AWS::NoValue}", {"a": 1}),
    ],
)
def test_an_intrinsic_has_cloudformations_value(tmp_path: Path, expression: str, value: object) -> None:
    sections = """
Conditions:
  Holds: !Equals [!Ref AWS::Region, eu-west-1]
  Fails: !Not [!Equals [!Ref AWS::Region, eu-west-1]]
  One: !Equals [1, "1"]
"""
    assert resolved(tmp_path, expression, sections) == value


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("!Ref Nobody", "Outputs.It refers to Nobody"),
        ("!Sub '${Nobody}'", "refers to Nobody"),
        ("!GetAtt Nobody.Arn", "refers to Nobody, which is no resource"),
        ("!GetAtt Q.Colour", r"reads Q.Colour; for AWS::SQS::Queue the local stack knows QueueName, Arn"),
        ("!If [Nowhere, a, b]", "Condition Nowhere is used but not declared"),
    ],
)
def test_an_invalid_expression_is_an_error_that_names_it(
    tmp_path: Path, expression: str, complaint: str
) -> None:
    with pytest.raises(TemplateError, match=complaint):
        resolved(tmp_path, expression)


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("!Cidr [a, 1, 2]", "Fn::Cidr"),
        ("!FindInMap [M, a, b]", "Fn::FindInMap"),
        ("!ImportValue x", "Fn::ImportValue"),
        ("!Join ['-', [a, b]]", "Fn::Join"),
        ("!Select [1, [a, b]]", "Fn::Select"),
        ("!Split ['/', a/b]", "Fn::Split"),
        ("!Ref AWS::NotificationARNs", "AWS::NotificationARNs"),
        ("!Ref AWS::StackId", "AWS::StackId"),
        ("!Sub '${AWS::StackId}'", "AWS::StackId"),
        ("!Sub '${!Literal}'", "${!Literal}"),
    ],
)
def test_what_knocks_template_does_without_is_refused_by_name(
    tmp_path: Path, expression: str, name: str
) -> None:
    sections = "Mappings: {M: {a: {b: c}}}"
    with pytest.raises(TemplateError, match=r"the local stack (does not know|knows)") as error:
        resolved(tmp_path, expression, sections)
    assert re.match(rf"Outputs.It \w+( to)? {re.escape(name)}, which ", str(error.value))


def test_a_resource_whose_condition_does_not_hold_is_not_there(tmp_path: Path) -> None:
    text = f"""
Conditions: {{Never: !Equals [a, b]}}
Resources:
{QUEUE}      QueueName: q
  Other: {{Type: AWS::SQS::Queue, Condition: Never}}
Outputs:
  Here: {{Value: 1}}
  Gone: {{Value: !Ref Other, Condition: Never}}
"""
    read = template(tmp_path, text)
    assert list(read.resources) == ["Q"]
    assert read.outputs == {"Here": 1}


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("!Length [1]", "Fn::Length"),
        ("!And [!Equals [1, 1], !Equals [1, 1]]", "Fn::And"),
        ("!Or [!Equals [1, 1], !Equals [1, 1]]", "Fn::Or"),
        ("!Condition B", "Condition"),
        ("!Not [!Condition B]", "Condition"),
        ("!Equals [!Join ['', [a]], a]", "Fn::Join"),
    ],
)
def test_an_unknown_function_in_a_condition_is_an_error(tmp_path: Path, expression: str, name: str) -> None:
    """Also in a condition that nothing uses."""
    text = f"Conditions:\n  B: !Equals [a, a]\n  A: {expression}\nResources:\n  Q: {{Type: AWS::SQS::Queue}}"
    with pytest.raises(TemplateError, match=rf"Conditions.A\S* uses {name}, which the local stack does not"):
        template(tmp_path, text)


def test_an_unknown_type_of_resource_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="Table is of type AWS::Kinesis::Stream"):
        template(tmp_path, "Resources:\n  Table: {Type: AWS::Kinesis::Stream}")


def test_names_have_cloudformations_form_and_stay_the_same(tmp_path: Path) -> None:
    first = template(tmp_path, "Resources:\n  Q: {Type: AWS::SQS::Queue}").resources["Q"].name
    again = template(tmp_path, "Resources:\n  Q: {Type: AWS::SQS::Queue}").resources["Q"].name
    assert first == again
    assert first.startswith("knock-Q-")
    assert len(first) == len("knock-Q-") + 12


@pytest.mark.parametrize(
    ("declaration", "value", "complaint"),
    [
        ("{Type: String, AllowedValues: [a, b]}", "c", "P is 'c'; it must be one of a, b"),
        ("{Type: String, AllowedPattern: '[a-z]+'}", "1", "it must match"),
        ("{Type: String, AllowedPattern: '[a-z]+', ConstraintDescription: letters.}", "1", "letters"),
        ("{Type: String}", "a" * 4097, "it is longer than 4096 characters"),
        ("{Type: Number}", "many", "it must be a number"),
        ("{Type: Number, MinValue: 1}", "0", "it must be from 1 to"),
        ("{Type: Number, MaxValue: 5}", "6", "to 5"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_refused(
    tmp_path: Path, declaration: str, value: str, complaint: str
) -> None:
    text = f"Parameters:\n  P: {declaration}\nResources:\n  Q: {{Type: AWS::SQS::Queue}}"
    with pytest.raises(TemplateError, match=complaint):
        template(tmp_path, text, P=value)


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ("{Type: String, MinLength: 1}", "MinLength"),
        ("{Type: String, MaxLength: 9}", "MaxLength"),
        ("{Type: String, NoEcho: true}", "NoEcho"),
        ("{Type: CommaDelimitedList}", "the type CommaDelimitedList"),
        ("{Type: List<Number>}", "the type List<Number>"),
    ],
)
def test_a_declaration_that_is_not_supported_is_refused_by_name(
    tmp_path: Path, declaration: str, complaint: str
) -> None:
    text = f"Parameters:\n  P: {declaration}\nResources:\n  Q: {{Type: AWS::SQS::Queue}}"
    with pytest.raises(
        TemplateError, match=f"Parameter P has {complaint}, which the local stack does not know"
    ):
        template(tmp_path, text, P="1")


def test_a_parameter_has_its_default_unless_it_is_given(tmp_path: Path) -> None:
    text = """
Parameters:
  P: {Type: String, Default: default}
Outputs: {P: {Value: !Ref P}}
Resources: {Q: {Type: AWS::SQS::Queue}}
"""
    assert template(tmp_path, text).outputs == {"P": "default"}
    assert template(tmp_path, text, P="given").outputs["P"] == "given"


def test_a_parameter_that_is_missing_or_unknown_is_refused(tmp_path: Path) -> None:
    text = "Parameters: {P: {Type: String}}\nResources: {Q: {Type: AWS::SQS::Queue}}"
    with pytest.raises(TemplateError, match="P has no default and was not given"):
        template(tmp_path, text)
    with pytest.raises(TemplateError, match="no parameter R; it has P"):
        template(tmp_path, text, P="p", R="r")


def test_a_rule_that_does_not_hold_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    text = """
Rules:
  Elsewhere:
    RuleCondition: !Equals [!Ref AWS::Region, us-east-1]
    Assertions: [{Assert: !Equals [a, b]}]
  Here:
    Assertions:
      - {Assert: !Contains [[eu-west-1], !Ref AWS::Region]}
      - {Assert: !Contains [[eu-west-2], !Ref AWS::Region], AssertDescription: Not in Ireland.}
Resources: {Q: {Type: AWS::SQS::Queue}}
"""
    with pytest.raises(TemplateError, match="Not in Ireland"):
        template(tmp_path, text)


def test_sam_that_the_translator_rejects_is_an_error_with_its_words(tmp_path: Path) -> None:
    text = "Resources: {F: {Type: AWS::Serverless::Function, Properties: {Handler: a.b, CodeUri: x/}}}"
    with pytest.raises(TemplateError, match=r"not valid SAM: .*Runtime"):
        template(tmp_path, text)


def test_a_missing_template_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="There is no template"):
        load(tmp_path / "template.yaml", PLACE)


# The real template. `changed` gives a copy in which one thing is different.


class _Loader(yaml.SafeLoader):
    """Keeps CloudFormation's short forms as they are."""


class _Tagged(yaml.YAMLObject):
    def __init__(self, node: yaml.Node) -> None:
        self.node = node


_Loader.add_multi_constructor("!", lambda _loader, _suffix, node: _Tagged(node))
yaml.SafeDumper.add_representer(_Tagged, lambda _dumper, tagged: tagged.node)


def changed(tmp_path: Path, change: Any) -> Deployment:
    source = yaml.load((ROOT / "template.yaml").read_text(), _Loader)  # noqa: S506 - a safe loader
    change(source)
    for folder in ("functions", "statemachine"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(source))
    return Deployment(load(tmp_path / "template.yaml", PLACE))


@pytest.fixture(scope="module")
def real() -> Deployment:
    return Deployment(load(ROOT / "template.yaml", PLACE))


def test_the_functions_are_the_templates(real: Deployment) -> None:
    functions = {function.handler: function for function in real.functions}
    assert {"api.handler", "authorize.handler", "revoke.handler", "guard.handler"} <= set(functions)
    api = functions["api.handler"]
    assert api.code == ROOT / "functions"
    assert api.environment["KNOCK_STACK"] == "knock"
    grants, closings = real.state_machines
    assert api.environment["STATE_MACHINE_ARN"] == grants.arn == real.output("StateMachineArn")
    assert api.environment["CLOSINGS_ARN"] == closings.arn == real.output("ClosingsArn")
    domains = [domain.name for domain in real.domains]
    assert [api.environment[f"{name}_DOMAIN"] for name in ("TRAIL", "LEDGER", "REFUSALS")] == domains
    assert [real.output(f"{name}Domain") for name in ("Trail", "Ledger", "Refusals")] == domains
    assert api.environment["MAX_LIVE"] == "20"
    assert api.environment["REVOKE_FUNCTION"] == functions["revoke.handler"].name
    assert functions["guard.handler"].on_failure == PLACE.arn("sqs", real.queues[0].name)


def test_the_alarms_are_read_as_cloudwatch_takes_them(real: Deployment) -> None:
    alarms = {alarm["AlarmName"]: alarm for alarm in real.alarms}
    assert {"knock-RevocationLate", "knock-RevocationFailing", "knock-DriftFound"} <= set(alarms)
    assert all(alarm["AlarmDescription"] and alarm["AlarmActions"] for alarm in alarms.values())


def test_a_function_that_only_cloudformation_calls_is_left_out(real: Deployment) -> None:
    assert "knock-setup" not in {function.name for function in real.functions}


def test_only_the_console_needs_no_key(real: Deployment) -> None:
    routes = {(route.method, route.path): route.key_required for route in real.rest_api.routes}
    assert [route for route, key in routes.items() if not key] == [("GET", "/console")]
    assert ("POST", "/knock") in routes
    assert real.rest_api.stage == "v1"


def test_each_definition_has_every_placeholder_filled_in(real: Deployment) -> None:
    grants, closings = real.state_machines
    assert (grants.name, closings.name) == ("knock-grants", "knock-closings")
    for machine in real.state_machines:
        assert "${" not in machine.definition
        assert ":function:knock-revoke" in machine.definition
    assert ":function:knock-authorize" in grants.definition
    assert ":function:knock-authorize" not in closings.definition


def test_an_unknown_output_is_an_error(real: Deployment) -> None:
    with pytest.raises(TemplateError, match="no output Nothing"):
        real.output("Nothing")


def test_the_rule_for_stopped_executions_has_its_role_queue_and_retries(real: Deployment) -> None:
    rule = next(rule for rule in real.event_rules if rule.pattern)
    assert rule.pattern
    grants, closings = real.state_machines
    assert rule.pattern["detail"]["stateMachineArn"] == [grants.arn]
    (target,) = rule.targets
    assert target["Arn"] == closings.arn
    assert target["RoleArn"] in {PLACE.arn("iam", f"role/{role.name}") for role in real.roles}
    assert target["DeadLetterConfig"]["Arn"].endswith(":knock-dead-letters")
    assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0


@pytest.mark.parametrize(
    ("region", "trail"),
    [("eu-west-1", "eu-west-1"), ("us-east-1", "us-east-1"), ("eu-central-1", "eu-west-1")],
)
def test_domains_are_in_the_stacks_region_or_the_nearest_that_has_simpledb(region: str, trail: str) -> None:
    deployment = Deployment(load(ROOT / "template.yaml", Place("knock", region)))
    assert {domain.region for domain in deployment.domains} == {trail}
    assert len(deployment.domains) == 3
    assert deployment.functions[0].environment["TRAIL_REGION"] == trail


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-west-1", "aws"), ("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("xx-new-1", "aws-new")],
)
def test_with_dynamodb_there_are_tables_in_the_stacks_own_region_in_every_partition(
    region: str, partition: str
) -> None:
    place = Place("knock", region, partition=partition)
    deployment = Deployment(load(ROOT / "template.yaml", place, {"TrailStore": "dynamodb"}))
    assert deployment.domains == ()
    names = [table.name for table in deployment.tables]
    environment = deployment.functions[0].environment
    assert [environment[f"{name}_DOMAIN"] for name in ("TRAIL", "LEDGER", "REFUSALS")] == names
    assert (environment["TRAIL_STORE"], environment["TRAIL_REGION"]) == ("dynamodb", region)
    assert [deployment.output(f"{name}Domain") for name in ("Trail", "Ledger", "Refusals")] == names
    assert all(table.backed_up for table in deployment.tables)
    assert deployment.functions[0].arn.startswith(f"arn:{partition}:lambda:{region}:")


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(TemplateError, match="TrailStore is 'mongodb'; must be simpledb or dynamodb"):
        load(ROOT / "template.yaml", PLACE, {"TrailStore": "mongodb"})


def test_a_region_without_simpledb_near_it_is_refused() -> None:
    with pytest.raises(TemplateError, match="SimpleDB"):
        load(ROOT / "template.yaml", Place("knock", "cn-north-1", partition="aws-cn"))


def test_sample_keys_are_read_with_their_tags() -> None:
    deployment = Deployment(load(ROOT / "template.yaml", PLACE, {"SampleKeys": "true"}))
    assert all(key.enabled and key.in_plan and key.tags for key in deployment.keys)
    assert len(deployment.keys) == 2


def test_every_type_without_local_effect_is_in_the_template() -> None:
    """An entry for a type that the template lacks would hide a resource that is added later."""
    loaded = load(ROOT / "template.yaml", PLACE)
    source = yaml.load((ROOT / "template.yaml").read_text(), _Loader)  # noqa: S506 - a safe loader
    types = {resource.type for resource in loaded.resources.values()}
    types |= {resource["Type"] for resource in source["Resources"].values()}
    assert set(NO_LOCAL_EFFECT) <= types


def test_a_change_of_the_template_is_a_change_of_the_stack(tmp_path: Path) -> None:
    def change(source: dict[str, Any]) -> None:
        properties = source["Resources"]["ApiFunction"]["Properties"]
        properties["Timeout"] = 7
        properties["ReservedConcurrentExecutions"] = 3
        properties["Environment"]["Variables"]["NEW"] = True
        properties["Events"]["WhoAmI"]["Properties"]["Path"] = "/who"
        source["Resources"]["UsagePlan"]["Properties"]["Throttle"] = {"RateLimit": 2, "BurstLimit": 3}
        source["Resources"]["UsagePlan"]["Properties"].pop("Quota")
        source["Resources"]["Api"]["Properties"].pop("MethodSettings")

    deployment = changed(tmp_path, change)
    api = next(function for function in deployment.functions if function.handler == "api.handler")
    assert (api.timeout, api.reserved, api.environment["NEW"]) == (7, 3, "true")
    assert "/who" in {route.path for route in deployment.rest_api.routes}
    plan = deployment.usage_plan
    assert (plan.rate, plan.burst, plan.quota) == (2, 3, None)
    assert (deployment.rest_api.rate, deployment.rest_api.burst) == (None, None)


def _add(logical_id: str, **properties: Any) -> Any:
    def change(source: dict[str, Any]) -> None:
        source["Resources"][logical_id]["Properties"].update(properties)

    return change


def _authorize_whoami_by_iam(source: dict[str, Any]) -> None:
    event = source["Resources"]["ApiFunction"]["Properties"]["Events"]["WhoAmI"]
    event["Properties"]["Auth"] = {"Authorizer": "AWS_IAM", "ApiKeyRequired": True}


def _route(**properties: str) -> Any:
    def change(source: dict[str, Any]) -> None:
        source["Resources"]["ApiFunction"]["Properties"]["Events"]["WhoAmI"]["Properties"].update(properties)

    return change


def _resource(resource_type: str, **properties: Any) -> Any:
    def change(source: dict[str, Any]) -> None:
        source["Resources"]["New"] = {"Type": resource_type, "Properties": properties}

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            _add("ApiFunction", FileSystemConfigs=[]),
            r"ApiFunction \(AWS::Lambda::Function\) sets FileSystemConfigs",
        ),
        (_add("ApiFunction", Runtime="nodejs22.x"), "ApiFunction runs on nodejs22.x, and not on Python"),
        (_add("ApiFunction", CodeUri="s3://bucket/key"), "ApiFunction has no CodeUri that is a local path"),
        (_add("ApiFunction", CodeUri="nowhere/"), "ApiFunction has the CodeUri nowhere/, and there is no"),
        (
            _add("UsagePlan", ApiStages=[{"ApiId": "x", "Stage": "y", "Throttle": {}}]),
            "throttles single methods",
        ),
        (_add("Api", ApiKeySourceType="AUTHORIZER"), "takes keys from an authorizer"),
        (_add("Api", BinaryMediaTypes=["image/png"]), "sets BinaryMediaTypes"),
        (_add("Api", Variables={"colour": "blue"}), "sets Variables"),
        (_route(Method="any"), "X-AMAZON-APIGATEWAY-ANY-METHOD /whoami is a route for any method"),
        (_route(Path="/files/{name+}"), r"GET /files/{name\+} is a route for .* any path"),
        (_add("UsagePlan", Quota={"Limit": 9, "Period": "WEEK"}), "UsagePlan has a quota a WEEK"),
        (_add("UsagePlan", Quota={"Limit": 9, "Period": "MONTH"}), "UsagePlan has a quota a MONTH"),
        (_authorize_whoami_by_iam, "GET /whoami wants the authorizer AWS_IAM"),
        (_add("Api", Cors="'*'"), "OPTIONS .* is no Lambda proxy integration"),
        (
            _add(
                "Api", MethodSettings=[{"ResourcePath": "/x", "HttpMethod": "GET", "ThrottlingRateLimit": 1}]
            ),
            "throttles some methods alone",
        ),
        (_add("Grants", DefinitionUri="s3://bucket/key"), "Grants has no DefinitionUri that is a local path"),
        (_add("Grants", DefinitionSubstitutions={"Other": "x"}), r"has \$\{\w+\}; Grants substitutes Other"),
        (
            _resource("Custom::Domain", ServiceToken="x", Name="x", Region="eu-west-1", Export=True),
            r"New \(Custom::Domain\) sets Export",
        ),
        (_resource("Custom::Domain", ServiceToken="x", Region="eu-west-1"), "New has no Name"),
        (_resource("Custom::Domain", ServiceToken="x", Name="x", Region=""), "no Region and none near"),
        (_resource("AWS::DynamoDB::Table", StreamSpecification={}), "New .* sets StreamSpecification"),
        (
            _resource("AWS::ApiGateway::UsagePlan", ApiStages=[]),
            "2 resources of type AWS::ApiGateway::UsagePlan",
        ),
        (_resource("AWS::SQS::Queue", FifoQueue=True), r"New \(AWS::SQS::Queue\) sets FifoQueue"),
    ],
)
def test_what_the_local_stack_cannot_honour_is_an_error_that_names_it(
    tmp_path: Path, change: Any, complaint: str
) -> None:
    with pytest.raises(TemplateError, match=complaint):
        changed(tmp_path, change)
