"""Read `template.yaml` as CloudFormation would, without AWS.

The template wires local runs too. `load` transforms the file with AWS's own SAM translator (offline), checks
the parameters and resolves every intrinsic function, so that `local.deployment` reads plain dictionaries. A
resource type, a function or an attribute that is not known here is a `TemplateError` that names it; types
without effect on one machine are on a short list (`NO_LOCAL_EFFECT`), each with its reason.

Decided against moto's CloudFormation, which skips half of these resources silently and ignores
DefinitionSubstitutions, and against a list of functions and routes kept by hand, which would go out of date.

Physical names have CloudFormation's form, `stack-LogicalId-SUFFIX`, but the suffix is a hash instead of a
random word: the same stack has the same names at every start.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import yaml
from samtranslator.model.exceptions import InvalidDocumentException  # type: ignore[import-untyped]
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]
from samtranslator.yaml_helper import intrinsics_multi_constructor  # type: ignore[import-untyped]

__all__ = ["CODE_BUCKET", "NO_LOCAL_EFFECT", "Place", "Resource", "Template", "TemplateError", "load", "text"]

_POLICIES = "policies are not enforced here; tests of their own simulate them"
_METRICS = "no metrics are collected here"
_ALARMS = "no metrics are collected here, so no alarm goes off and no message is sent"
NO_LOCAL_EFFECT = {
    "AWS::ApiGateway::Account": "gives API Gateway a role to log with, and there is no CloudWatch to log to",
    "AWS::ApiGateway::Deployment": "publishes an API's definition; here it is live as it is read",
    "AWS::CloudWatch::Alarm": _ALARMS,
    "AWS::CloudWatch::Dashboard": _METRICS,
    "AWS::IAM::ManagedPolicy": _POLICIES,
    "AWS::Lambda::Permission": _POLICIES,
    "AWS::Logs::LogGroup": "functions print to the local stack's log",
    "AWS::Logs::SubscriptionFilter": "functions print to the local stack's log, which has no subscriptions",
    "AWS::SNS::Subscription": _ALARMS,
    "AWS::SNS::Topic": _ALARMS,
    "AWS::SQS::QueuePolicy": _POLICIES,
    "Custom::LastGrants": "stops what runs when the stack is deleted; here all of AWS goes with the stack",
    "Custom::LastRules": "closes what is open when the stack is deleted; here all of AWS goes with the stack",
}

# What the template uses of the parameters section. Another type, as a list, has values of another form.
_PARAMETER_TYPES = {"AWS::SSM::Parameter::Value<String>", "Number", "String"}
_PARAMETER_KEYS = {
    "AllowedPattern", "AllowedValues", "ConstraintDescription", "Default", "Description", "MaxValue",
    "MinValue", "Type",
}  # fmt: skip
# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
_LONGEST_PARAMETER = 4096

CODE_BUCKET = "local"  # stands for the bucket `sam deploy` uploads to; the key is the path in the template


class TemplateError(Exception):
    """The template is wrong somewhere, or a local stack cannot honour it. The message names the place."""


@dataclass(frozen=True)
class Place:
    """Where a stack is deployed: the values of CloudFormation's pseudo parameters."""

    stack_name: str
    region: str
    account: str = "123456789012"
    partition: str = "aws"

    def arn(self, service: str, resource: str) -> str:
        region = "" if service == "iam" else self.region  # IAM is global
        return f"arn:{self.partition}:{service}:{region}:{self.account}:{resource}"

    @property
    def url_suffix(self) -> str:
        suffixes = {"aws-cn": "amazonaws.com.cn", "aws-eusc": "amazonaws.eu"}
        return suffixes.get(self.partition, "amazonaws.com")

    @property
    def pseudo_parameters(self) -> dict[str, Any]:
        return {
            "AWS::AccountId": self.account,
            "AWS::Partition": self.partition,
            "AWS::Region": self.region,
            "AWS::StackName": self.stack_name,
            "AWS::URLSuffix": self.url_suffix,
        }


@dataclass(frozen=True)
class _Kind:
    """The values of `Ref` and `GetAtt` for one type of resource.

    `name` is the property that sets its name. The formats may hold `{name}`, `{arn}`, `{id}` (ten
    characters, as API Gateway's ids) and a `Place`'s fields. `arn` is "service:resource".
    """

    name: str | None = None
    arn: str | None = None
    ref: str = "{name}"
    attributes: Mapping[str, str] = field(default_factory=dict)


_QUEUE_URL = "https://sqs.{region}.{url_suffix}/{account}/{name}"
_BY_ID = _Kind(ref="{id}")
_KINDS: dict[str, _Kind] = {
    "AWS::ApiGateway::Account": _BY_ID,
    "AWS::ApiGateway::ApiKey": _Kind("Name", ref="{id}"),
    "AWS::ApiGateway::Deployment": _BY_ID,
    "AWS::ApiGateway::RestApi": _Kind("Name", ref="{id}"),
    "AWS::ApiGateway::Stage": _Kind("StageName"),
    "AWS::ApiGateway::UsagePlan": _Kind("UsagePlanName", ref="{id}"),
    "AWS::ApiGateway::UsagePlanKey": _BY_ID,
    "AWS::CloudWatch::Alarm": _Kind("AlarmName", "cloudwatch:alarm:{name}"),
    "AWS::CloudWatch::Dashboard": _Kind("DashboardName"),
    "AWS::DynamoDB::Table": _Kind("TableName", "dynamodb:table/{name}"),
    "AWS::Events::Rule": _Kind("Name", "events:rule/{name}"),
    "AWS::IAM::ManagedPolicy": _Kind("ManagedPolicyName", "iam:policy/{name}", ref="{arn}"),
    "AWS::IAM::Role": _Kind("RoleName", "iam:role/{name}"),
    "AWS::Lambda::EventInvokeConfig": _Kind(),
    "AWS::Lambda::Function": _Kind("FunctionName", "lambda:function:{name}"),
    "AWS::Lambda::Permission": _Kind(),
    "AWS::Logs::LogGroup": _Kind("LogGroupName", "logs:log-group:{name}:*"),
    "AWS::Logs::SubscriptionFilter": _Kind("FilterName"),
    "AWS::SNS::Subscription": _Kind(arn="sns:{name}", ref="{arn}"),
    "AWS::SNS::Topic": _Kind("TopicName", "sns:{name}", ref="{arn}", attributes={"TopicName": "{name}"}),
    "AWS::SQS::Queue": _Kind("QueueName", "sqs:{name}", _QUEUE_URL, {"QueueName": "{name}"}),
    "AWS::SQS::QueuePolicy": _Kind(),
    "AWS::StepFunctions::StateMachine": _Kind(
        "StateMachineName", "states:stateMachine:{name}", ref="{arn}", attributes={"Name": "{name}"}
    ),
    "Custom::Domain": _Kind(),
    "Custom::LastGrants": _Kind(),
    "Custom::LastRules": _Kind(),
}


@dataclass(frozen=True)
class Resource:
    """One resource of the stack: its condition holds, its properties are plain values."""

    logical_id: str
    type: str
    name: str
    ref: str
    attributes: Mapping[str, str]
    properties: Mapping[str, Any]

    @property
    def arn(self) -> str:
        return self.attributes["Arn"]

    def sets_only(self, *honoured: str) -> None:
        """Raise a TemplateError when the resource sets a property that is not among `honoured`."""
        if unknown := sorted(set(self.properties) - set(honoured)):
            raise TemplateError(
                f"{self.logical_id} ({self.type}) sets {', '.join(unknown)}, which the local stack does not"
                " honour. Teach local/deployment.py what it means here, or that it means nothing."
            )


def load(path: Path, place: Place, parameters: Mapping[str, str] | None = None) -> Template:
    """Transform and resolve the template at `path` for a stack at `place`.

    Raises TemplateError for a parameter that is unknown, missing or not allowed, for SAM that the translator
    rejects, and for every part of the template that has no meaning here.
    """
    if not path.is_file():
        raise TemplateError(f"There is no template at {path}.")
    source = _read(path)
    values = _parameter_values(source.get("Parameters", {}), parameters or {})
    _stand_in_for_uploads(source)
    logging.getLogger("samtranslator").setLevel(
        logging.ERROR
    )  # it warns of each feature flag that is not set
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=place.region))
    try:
        translated = translator.translate(source, dict(values))
    except InvalidDocumentException as error:
        causes = "; ".join(cause.message for cause in error.causes)
        raise TemplateError(f"{path.name} is not valid SAM: {causes}") from error
    return Template(path, place, values, translated)


def text(value: Any) -> str:
    """Write a value as CloudFormation does where it needs a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _read(path: Path) -> dict[str, Any]:
    """Parse the template with CloudFormation's short forms, as SAM's own parser does, ten times as fast."""

    class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """A class of our own: the constructor below is added to it and not to yaml's own loader."""

    _Loader.add_multi_constructor("!", intrinsics_multi_constructor)
    source: dict[str, Any] = yaml.load(path.read_text(), _Loader)  # noqa: S506 - it is a safe loader
    return source


def _stand_in_for_uploads(source: dict[str, Any]) -> None:
    """Point every local path at a stand-in for the bucket that `sam deploy` would upload it to.

    The translator accepts S3 addresses only; `Deployment` reads the path back from the object's key.
    """
    sections = [resource.get("Properties") or {} for resource in source.get("Resources", {}).values()]
    sections += list((source.get("Globals") or {}).values())
    for properties in sections:
        for name in ("CodeUri", "DefinitionUri"):
            if isinstance(uri := properties.get(name), str) and not uri.startswith("s3://"):
                properties[name] = {"Bucket": CODE_BUCKET, "Key": uri}


def _parameter_values(declared: Mapping[str, Any], arguments: Mapping[str, str]) -> dict[str, Any]:
    if unknown := sorted(set(arguments) - set(declared)):
        raise TemplateError(
            f"The template has no parameter {', '.join(unknown)}; it has {', '.join(declared)}."
        )
    values: dict[str, Any] = {}
    for name, declaration in declared.items():
        unknown = sorted(set(declaration) - _PARAMETER_KEYS)
        if declaration["Type"] not in _PARAMETER_TYPES:
            unknown.append(f"the type {declaration['Type']}")
        if unknown:
            raise TemplateError(
                f"Parameter {name} has {', '.join(unknown)}, which the local stack does not know."
            )
        if name not in arguments and "Default" not in declaration:
            raise TemplateError(f"Parameter {name} has no default and was not given.")
        value = str(arguments.get(name, declaration.get("Default")))
        if fault := _fault(value, declaration):
            raise TemplateError(
                f"Parameter {name} is {value!r}; {declaration.get('ConstraintDescription', fault)}"
            )
        values[name] = value
    return values


def _fault(value: str, declaration: Mapping[str, Any]) -> str | None:
    """Name the first declared constraint that a parameter's value violates; None where it meets all."""
    allowed = [str(option) for option in declaration.get("AllowedValues", [])]
    if allowed and value not in allowed:
        return f"it must be one of {', '.join(allowed)}."
    pattern = declaration.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, value):
        return f"it must match {pattern}"
    if len(value) > _LONGEST_PARAMETER:
        return f"it is longer than {_LONGEST_PARAMETER} characters."
    if declaration["Type"] == "Number":
        try:
            number = float(value)
        except ValueError:
            return "it must be a number."
        least, most = declaration.get("MinValue", number), declaration.get("MaxValue", number)
        if not float(least) <= number <= float(most):
            return f"it must be from {least} to {most}."
    return None


_NO_VALUE = object()  # stands for AWS::NoValue until the property that holds it is dropped


class Template:
    """A template with its intrinsics resolved."""

    def __init__(
        self, path: Path, place: Place, parameters: Mapping[str, Any], translated: Mapping[str, Any]
    ) -> None:
        """Resolve all of it. Raises a TemplateError that names the first part that cannot be resolved."""
        self.path = path
        self.place = place
        self.parameters = parameters
        self._declared = translated["Resources"]
        self._conditions: dict[str, bool] = {}
        for condition, expression in translated.get("Conditions", {}).items():
            self._conditions[condition] = self._test(expression, f"Conditions.{condition}")
        self._check_rules(translated.get("Rules", {}))
        self.resources = {
            logical_id: self._resource(logical_id, declared)
            for logical_id, declared in self._declared.items()
            if self._holds(declared.get("Condition"))
        }
        self.outputs: dict[str, Any] = {
            name: self._resolve(output["Value"], f"Outputs.{name}")
            for name, output in translated.get("Outputs", {}).items()
            if self._holds(output.get("Condition"))
        }

    def all(self, resource_type: str) -> list[Resource]:
        """Return the resources of a type, in the template's order."""
        return [resource for resource in self.resources.values() if resource.type == resource_type]

    def only(self, resource_type: str) -> Resource:
        """Return the only resource of a type; raise TemplateError when there is none, or more."""
        matches = self.all(resource_type)
        if len(matches) != 1:
            raise TemplateError(
                f"The template has {len(matches)} resources of type {resource_type};"
                " the local stack needs one."
            )
        return matches[0]

    def _resource(self, logical_id: str, declared: Mapping[str, Any]) -> Resource:
        ref, name, attributes = self._identity(logical_id)
        properties = self._resolve(declared.get("Properties", {}), logical_id)
        return Resource(logical_id, declared["Type"], name, ref, attributes, properties)

    def _identity(self, logical_id: str) -> tuple[str, str, dict[str, str]]:
        """Return the `Ref` of a resource, its physical name, and its attributes for `GetAtt`."""
        declared = self._declared[logical_id]
        kind = _KINDS.get(declared["Type"])
        if kind is None:
            raise TemplateError(
                f"{logical_id} is of type {declared['Type']}, which the local stack does not know. Teach"
                " local/template.py and local/deployment.py what it means here, or that it means nothing."
            )
        digest = hashlib.sha256(f"{self.place.stack_name}/{logical_id}".encode()).digest()
        word = base64.b32encode(digest).decode()
        name = f"{self.place.stack_name}-{logical_id}-{word[:12]}"
        if kind.name and kind.name in declared.get("Properties", {}):
            declared_name = self._resolve(declared["Properties"][kind.name], f"{logical_id}.{kind.name}")
            name = name if declared_name is _NO_VALUE else text(declared_name)
        fields = {"name": name, "id": word[12:22].lower(), "url_suffix": self.place.url_suffix}
        fields |= vars(self.place)
        attributes = {attribute: value.format(**fields) for attribute, value in kind.attributes.items()}
        if declared["Type"] == "Custom::Domain":
            fields["name"], attributes["Region"] = self._answer_for_domain(logical_id, word)
        if kind.arn:
            service, _, resource = kind.arn.format(**fields).partition(":")
            fields["arn"] = attributes["Arn"] = self.place.arn(service, resource)
        return kind.ref.format(**fields), fields["name"], attributes

    def _answer_for_domain(self, logical_id: str, word: str) -> tuple[str, str]:
        """Return the name and the region of a domain, as the template's setup function does on AWS."""
        properties = self._resolve(self._declared[logical_id].get("Properties", {}), logical_id)
        missing = {"Name", "Region"} - set(properties)
        region = properties.get("Region") or properties.get("Nearest", {}).get(self.place.region)
        if missing or not region:
            raise TemplateError(f"{logical_id} has no Name, or no Region and none near {self.place.region}.")
        return f"{properties['Name']}-{word[:8].lower()}", region

    # Intrinsic functions

    def _resolve(self, value: Any, where: str) -> Any:
        if isinstance(value, list):
            resolved = [self._resolve(item, f"{where}[{index}]") for index, item in enumerate(value)]
            return [item for item in resolved if item is not _NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            name, argument = next(iter(value.items()))
            if name == "Ref" or str(name).startswith("Fn::"):
                return self._call(name, argument, where)
        plain = {key: self._resolve(item, f"{where}.{key}") for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not _NO_VALUE}

    @cached_property
    def _functions(self) -> dict[str, Callable[[Any, str], Any]]:
        return {
            "Ref": self._ref,
            "Fn::GetAtt": self._get_att,
            "Fn::If": self._if,
            "Fn::Sub": self._sub,
        }

    def _call(self, function: str, argument: Any, where: str) -> Any:
        if function not in self._functions:
            raise TemplateError(f"{where} uses {function}, which the local stack does not know.")
        return self._functions[function](argument, where)

    def _ref(self, name: Any, where: str) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        values = {**self.parameters, **self.place.pseudo_parameters}
        if name in values:
            return values[name]
        if name in self._declared:
            return self._identity(name)[0]
        raise TemplateError(
            f"{where} refers to {name}, which is no parameter, no resource and no pseudo parameter that"
            " the local stack knows."
        )

    def _get_att(self, argument: Any, where: str) -> str:
        logical_id, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
        if logical_id not in self._declared:
            raise TemplateError(f"{where} refers to {logical_id}, which is no resource.")
        attributes = self._identity(logical_id)[2]
        if attribute not in attributes:
            raise TemplateError(
                f"{where} reads {logical_id}.{attribute}; for {self._declared[logical_id]['Type']}"
                f" the local stack knows {', '.join(attributes) or 'no attributes'}."
            )
        return attributes[attribute]

    def _sub(self, argument: Any, where: str) -> str:
        template, variables = (argument, {}) if isinstance(argument, str) else argument

        def fill(placeholder: re.Match[str]) -> str:
            name = placeholder[1].strip()
            if name.startswith("!"):
                raise TemplateError(f"{where} escapes {placeholder[0]}, which the local stack does not know.")
            if name in variables:
                return text(self._resolve(variables[name], where))
            if "." in name:
                return self._get_att(name, where)
            return text(self._ref(name, where))

        return re.sub(r"\$\{([^}]+)\}", fill, template)

    def _if(self, argument: Any, where: str) -> Any:
        condition, then, otherwise = argument
        return self._resolve(then if self._holds(condition) else otherwise, where)

    # Conditions and rules

    def _holds(self, condition: str | None) -> bool:
        if condition is None:
            return True
        if condition not in self._conditions:
            raise TemplateError(f"Condition {condition} is used but not declared.")
        return self._conditions[condition]

    def _test(self, expression: Any, where: str) -> bool:
        function, argument = next(iter(expression.items()))
        match function:
            case "Fn::Not":
                return not self._test(argument[0], where)
            case "Fn::Equals":
                left, right = (text(self._resolve(item, where)) for item in argument)
                return left == right
            case "Fn::Contains":
                values, value = (self._resolve(item, where) for item in argument)
                return text(value) in [text(item) for item in values]
        raise TemplateError(f"{where} uses {function}, which the local stack does not know as a condition.")

    def _check_rules(self, rules: Mapping[str, Any]) -> None:
        for name, rule in rules.items():
            where = f"Rules.{name}"
            if "RuleCondition" in rule and not self._test(rule["RuleCondition"], where):
                continue
            for assertion in rule["Assertions"]:
                if not self._test(assertion["Assert"], where):
                    raise TemplateError(assertion.get("AssertDescription", f"The rule {name} does not hold."))
