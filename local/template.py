"""Read `template.yaml` as CloudFormation would, without AWS.

The template is the only wiring there is, local runs included: what a local stack is made of comes out of
this module and from nowhere else. `load` transforms the file with AWS's own SAM translator (offline), checks
the parameters, and resolves every intrinsic function, so that the rest of `local` sees plain dictionaries.
What the template says and this module cannot honour is a `TemplateError` that names it; a kind of resource is
either made, or on the short list of kinds without effect on one machine (`NO_LOCAL_EFFECT`), each with its reason.

Two alternatives were tried on paper and left: moto's CloudFormation skips half of these resources without a
word and ignores DefinitionSubstitutions; a hand-kept list of functions and routes is a copy, and copies drift.

Physical names follow CloudFormation's form, `stack-LogicalId-SUFFIX`, but the suffix is a hash instead of a
random word, so a stack started twice has the same names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from samtranslator.model.exceptions import ExceptionWithMessage, InvalidDocumentException
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

__all__ = [
    "NO_LOCAL_EFFECT",
    "Domain",
    "EventRule",
    "EventTarget",
    "Function",
    "Key",
    "Place",
    "Queue",
    "Resource",
    "RestApi",
    "Route",
    "StateMachine",
    "Template",
    "TemplateError",
    "UsagePlan",
    "load",
]

NO_LOCAL_EFFECT = {
    "AWS::ApiGateway::Account": "gives API Gateway a role to log with; nothing is logged to CloudWatch here",
    "AWS::ApiGateway::Deployment": "publishes an API's definition; here a definition is live when it is read",
    "AWS::CloudWatch::Alarm": "no metrics are collected here, so nothing could set it off",
    "AWS::CloudWatch::CompositeAlarm": "no metrics are collected here, so nothing could set it off",
    "AWS::CloudWatch::Dashboard": "no metrics are collected here, so it would be empty",
    "AWS::IAM::ManagedPolicy": "policies are not enforced here; tests of their own simulate them",
    "AWS::IAM::Policy": "policies are not enforced here; tests of their own simulate them",
    "AWS::KMS::Alias": "nothing is encrypted here",
    "AWS::KMS::Key": "nothing is encrypted here",
    "AWS::Lambda::EventInvokeConfig": "read with its function",
    "AWS::Lambda::Permission": "policies are not enforced here; tests of their own simulate them",
    "AWS::Logs::LogGroup": "functions write to the local stack's log",
    "AWS::Logs::MetricFilter": "no metrics are collected here",
    "AWS::Logs::QueryDefinition": "a saved query of the console",
    "AWS::SNS::Subscription": "alarms never go off here, so nothing is sent",
    "AWS::SNS::Topic": "alarms never go off here, so nothing is sent",
    "AWS::SNS::TopicPolicy": "policies are not enforced here; tests of their own simulate them",
    "AWS::SQS::QueuePolicy": "policies are not enforced here; tests of their own simulate them",
    "Custom::LastRules": "closes what is open when the stack is deleted; here all of AWS goes with the stack",
}

_CODE_BUCKET = "local"  # stands for the bucket `sam deploy` uploads to; the key is the path in the template


class TemplateError(Exception):
    """Something the template says that is wrong, or that a local stack cannot honour."""


@dataclass(frozen=True)
class Place:
    """Where a stack stands: what CloudFormation's pseudo parameters say."""

    stack_name: str
    region: str
    account: str = "123456789012"
    partition: str = "aws"

    @property
    def pseudo_parameters(self) -> dict[str, Any]:
        return {
            "AWS::AccountId": self.account,
            "AWS::NotificationARNs": [],
            "AWS::Partition": self.partition,
            "AWS::Region": self.region,
            "AWS::StackId": f"arn:{self.partition}:cloudformation:{self.region}:{self.account}:stack/{self.stack_name}/local",
            "AWS::StackName": self.stack_name,
            "AWS::URLSuffix": "amazonaws.com",
        }


@dataclass(frozen=True)
class _Kind:
    """What `Ref` and `GetAtt` answer for one kind of resource.

    The formats may name `{name}`, `{arn}`, `{id}` (ten characters, as API Gateway's ids) and a `Place`'s fields.
    """

    name_property: str | None = None
    arn: str = ""
    ref: str = "{name}"
    attributes: Mapping[str, str] = field(default_factory=dict)


_ARN = "arn:{partition}:%s:{region}:{account}:%s"
_KINDS: dict[str, _Kind] = {
    "AWS::ApiGateway::Account": _Kind(ref="{id}"),
    "AWS::ApiGateway::ApiKey": _Kind("Name", ref="{id}", attributes={"APIKeyId": "{id}"}),
    "AWS::ApiGateway::Deployment": _Kind(ref="{id}", attributes={"DeploymentId": "{id}"}),
    "AWS::ApiGateway::RestApi": _Kind(
        "Name", ref="{id}", attributes={"RootResourceId": "{id}", "RestApiId": "{id}"}
    ),
    "AWS::ApiGateway::Stage": _Kind("StageName"),
    "AWS::ApiGateway::UsagePlan": _Kind("UsagePlanName", ref="{id}", attributes={"Id": "{id}"}),
    "AWS::ApiGateway::UsagePlanKey": _Kind(ref="{id}"),
    "AWS::CloudWatch::Alarm": _Kind("AlarmName", _ARN % ("cloudwatch", "alarm:{name}")),
    "AWS::CloudWatch::CompositeAlarm": _Kind("AlarmName", _ARN % ("cloudwatch", "alarm:{name}")),
    "AWS::CloudWatch::Dashboard": _Kind("DashboardName"),
    "AWS::Events::Rule": _Kind("Name", _ARN % ("events", "rule/{name}")),
    "AWS::IAM::ManagedPolicy": _Kind(
        "ManagedPolicyName", "arn:{partition}:iam::{account}:policy/{name}", ref="{arn}"
    ),
    "AWS::IAM::Policy": _Kind("PolicyName"),
    "AWS::IAM::Role": _Kind(
        "RoleName", "arn:{partition}:iam::{account}:role/{name}", attributes={"RoleId": "AROA{id}"}
    ),
    "AWS::KMS::Alias": _Kind("AliasName"),
    "AWS::KMS::Key": _Kind(None, _ARN % ("kms", "key/{id}"), ref="{id}", attributes={"KeyId": "{id}"}),
    "AWS::Lambda::EventInvokeConfig": _Kind(),
    "AWS::Lambda::Function": _Kind("FunctionName", _ARN % ("lambda", "function:{name}")),
    "AWS::Lambda::Permission": _Kind(),
    "AWS::Logs::LogGroup": _Kind("LogGroupName", _ARN % ("logs", "log-group:{name}:*")),
    "AWS::Logs::MetricFilter": _Kind("FilterName"),
    "AWS::Logs::QueryDefinition": _Kind(None, ref="{id}"),
    "AWS::SDB::Domain": _Kind(),
    "AWS::SNS::Subscription": _Kind(None, _ARN % ("sns", "{name}"), ref="{arn}"),
    "AWS::SNS::Topic": _Kind(
        "TopicName", _ARN % ("sns", "{name}"), ref="{arn}", attributes={"TopicName": "{name}"}
    ),
    "AWS::SNS::TopicPolicy": _Kind(),
    "AWS::SQS::Queue": _Kind(
        "QueueName",
        _ARN % ("sqs", "{name}"),
        ref="https://sqs.{region}.amazonaws.com/{account}/{name}",
        attributes={"QueueName": "{name}", "QueueUrl": "https://sqs.{region}.amazonaws.com/{account}/{name}"},
    ),
    "AWS::SQS::QueuePolicy": _Kind(),
    "Custom::LastRules": _Kind(),
    "Custom::TrailDomain": _Kind("Domain"),
    "AWS::StepFunctions::StateMachine": _Kind(
        "StateMachineName",
        _ARN % ("states", "stateMachine:{name}"),
        ref="{arn}",
        attributes={"Name": "{name}"},
    ),
}


@dataclass(frozen=True)
class Resource:
    """One resource that the stack has: its conditions hold, its properties are plain values."""

    logical_id: str
    type: str
    name: str
    ref: str
    attributes: Mapping[str, str]
    properties: Mapping[str, Any]

    def wants(self, *honoured: str) -> None:
        """Raise a TemplateError when the resource sets a property that is not among `honoured`."""
        unknown = sorted(set(self.properties) - set(honoured))
        if unknown:
            raise TemplateError(
                f"{self.logical_id} ({self.type}) sets {', '.join(unknown)}, which the local stack does not honour."
                " Teach local/template.py what it means here, or list it there as having no local effect."
            )


@dataclass(frozen=True)
class Function:
    """A Lambda function: what its process needs to be as Lambda makes it."""

    logical_id: str
    name: str
    arn: str
    handler: str
    code: Path
    timeout: float
    memory: int
    environment: Mapping[str, str]
    runtime: str
    role: str
    tags: Mapping[str, str]
    retries: int = 2  # of an Event invocation, after the first attempt
    max_event_age: int = 21600  # seconds an Event invocation may wait in the queue
    on_failure: str | None = None  # ARN of the queue for what failed for good
    reserved: int | None = None


@dataclass(frozen=True)
class Route:
    """One method of one resource of the REST API, and the function behind it."""

    method: str
    path: str
    key_required: bool
    function_arn: str


@dataclass(frozen=True)
class UsagePlan:
    """What keys attached to it may do; None means unlimited."""

    id: str
    name: str
    rate: float | None
    burst: int | None
    quota: int | None
    period: str | None


@dataclass(frozen=True)
class Key:
    """An API key that the template itself makes."""

    logical_id: str
    name: str
    enabled: bool
    tags: Mapping[str, str]
    in_plan: bool


@dataclass(frozen=True)
class RestApi:
    """The API: its stage, its routes, and what it answers by itself where the template changes that."""

    id: str
    name: str
    stage: str
    routes: tuple[Route, ...]
    stage_variables: Mapping[str, str]
    rate: float | None
    burst: int | None
    responses: Mapping[str, Mapping[str, Any]]
    binary_types: tuple[str, ...]


@dataclass(frozen=True)
class StateMachine:
    """A state machine with its definition's placeholders filled in."""

    name: str
    arn: str
    definition: str
    role: str
    kind: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class EventTarget:
    """Who is called when a rule matches; `raw` is the target as the template has it."""

    arn: str
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class EventRule:
    """An EventBridge rule: a pattern or a schedule, and its targets."""

    name: str
    pattern: Mapping[str, Any] | None
    schedule: str | None
    enabled: bool
    description: str
    targets: tuple[EventTarget, ...]


@dataclass(frozen=True)
class Queue:
    """An SQS queue."""

    name: str
    arn: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """A SimpleDB domain and the region it is in."""

    name: str
    region: str


def load(path: Path, place: Place, parameters: Mapping[str, str] | None = None) -> Template:
    """Transform and resolve the template at `path` for a stack at `place`.

    Raises TemplateError for a parameter that is unknown, missing or not allowed, for SAM the translator
    rejects, and for whatever in the template has no meaning here.
    """
    if not path.is_file():
        raise TemplateError(f"There is no template at {path}.")
    source = yaml_parse(path.read_text())
    values = _parameter_values(source.get("Parameters", {}), parameters or {})
    _stand_in_for_uploads(source)
    logging.getLogger("samtranslator").setLevel(
        logging.ERROR
    )  # it tells of each feature flag it does not find
    try:
        translated = Translator({}, Parser(), boto_session=boto3.Session(region_name=place.region)).translate(
            source, dict(values)
        )
    except InvalidDocumentException as error:
        causes = [cause.message for cause in error.causes if isinstance(cause, ExceptionWithMessage)]
        raise TemplateError(f"{path.name} is not valid SAM: {'; '.join(causes) or error.message}") from error
    return Template(path, place, values, translated)


def _stand_in_for_uploads(source: dict[str, Any]) -> None:
    """Point every local path at a stand-in for the bucket that `sam deploy` would upload it to.

    The translator accepts nothing but S3 addresses; the path comes back out as the object's key.
    """
    sections = [resource.get("Properties") or {} for resource in source.get("Resources", {}).values()]
    sections += list((source.get("Globals") or {}).values())
    for properties in sections:
        for name in ("CodeUri", "DefinitionUri"):
            if isinstance(uri := properties.get(name), str):
                properties[name] = {"Bucket": _CODE_BUCKET, "Key": uri}


def _parameter_values(declared: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    if unknown := sorted(set(given) - set(declared)):
        raise TemplateError(
            f"The template has no parameter {', '.join(unknown)}; it has {', '.join(declared)}."
        )
    values: dict[str, Any] = {}
    for name, declaration in declared.items():
        if name not in given and "Default" not in declaration:
            raise TemplateError(f"Parameter {name} has no default and was not given.")
        text = str(given.get(name, declaration.get("Default")))
        _check_parameter(name, text, declaration)
        values[name] = text.split(",") if _is_list(declaration["Type"]) else text
    return values


def _is_list(parameter_type: str) -> bool:
    return parameter_type == "CommaDelimitedList" or parameter_type.startswith("List<")


def _check_parameter(name: str, text: str, declaration: Mapping[str, Any]) -> None:
    allowed = [str(value) for value in declaration.get("AllowedValues", [])]
    if allowed and text not in allowed:
        raise TemplateError(f"Parameter {name} is {text!r}; it must be one of {', '.join(allowed)}.")
    pattern = declaration.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, text):
        reason = declaration.get("ConstraintDescription", f"it must match {pattern}")
        raise TemplateError(f"Parameter {name} is {text!r}; {reason}.")
    limits: list[tuple[str, float, Callable[[float, float], bool]]] = [
        ("MinLength", len(text), lambda value, limit: value >= limit),
        ("MaxLength", len(text), lambda value, limit: value <= limit),
    ]
    if declaration["Type"] == "Number":
        try:
            number = float(text)
        except ValueError:
            raise TemplateError(f"Parameter {name} is {text!r}; it must be a number.") from None
        limits += [
            ("MinValue", number, lambda value, limit: value >= limit),
            ("MaxValue", number, lambda value, limit: value <= limit),
        ]
    for constraint, value, holds in limits:
        if constraint in declaration and not holds(value, float(declaration[constraint])):
            raise TemplateError(
                f"Parameter {name} is {text!r}; its {constraint} is {declaration[constraint]}."
            )


class _NoValue:
    """What `AWS::NoValue` becomes, until the property that holds it is dropped."""


_NO_VALUE = _NoValue()


class Template:
    """A template with its intrinsics resolved, and the views of it that a local stack is made from."""

    def __init__(
        self, path: Path, place: Place, parameters: Mapping[str, Any], translated: Mapping[str, Any]
    ) -> None:
        """Resolve all of it, so that whatever cannot be is reported now and by name."""
        self.path = path
        self.place = place
        self.parameters = parameters
        self._conditions = translated.get("Conditions", {})
        self._mappings = translated.get("Mappings", {})
        self._declared = translated["Resources"]
        self._evaluating: list[str] = []
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
        self._check_kinds()

    def one(self, resource_type: str) -> Resource:
        """Return the only resource of a type; raise TemplateError when there is none, or more."""
        found = self.all(resource_type)
        if len(found) != 1:
            raise TemplateError(
                f"The template has {len(found)} resources of type {resource_type}; the local stack needs one."
            )
        return found[0]

    def all(self, resource_type: str) -> list[Resource]:
        """Return the resources of a type, in the template's order."""
        return [resource for resource in self.resources.values() if resource.type == resource_type]

    # Views

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """The Lambda functions, each with its whole environment."""
        configs = {
            config.properties["FunctionName"]: config.properties
            for config in self.all("AWS::Lambda::EventInvokeConfig")
        }
        return tuple(
            self._function(resource, configs)
            for resource in self.all("AWS::Lambda::Function")
            if resource.attributes["Arn"] not in self._service_tokens
        )

    @cached_property
    def _service_tokens(self) -> set[str]:
        """The functions that CloudFormation runs for custom resources; nobody else calls them."""
        return {
            resource.properties["ServiceToken"]
            for resource in self.resources.values()
            if resource.type.startswith("Custom::")
        }

    def _function(self, resource: Resource, configs: Mapping[str, Mapping[str, Any]]) -> Function:
        resource.wants(
            "Architectures", "Code", "DeadLetterConfig", "Description", "Environment", "FunctionName", "Handler",
            "KmsKeyArn", "Layers", "LoggingConfig", "MemorySize", "ReservedConcurrentExecutions", "Role", "Runtime",
            "Tags", "Timeout", "TracingConfig",
        )  # fmt: skip
        properties = resource.properties
        if not str(properties.get("Runtime", "")).startswith("python"):
            raise TemplateError(
                f"{resource.logical_id} runs on {properties.get('Runtime')}; the local stack runs Python."
            )
        code = properties["Code"]
        if code.get("S3Bucket") != _CODE_BUCKET:
            raise TemplateError(f"{resource.logical_id} has no CodeUri that is a local path.")
        config = configs.get(resource.name, {})
        return Function(
            logical_id=resource.logical_id,
            name=resource.name,
            arn=resource.attributes["Arn"],
            handler=properties["Handler"],
            code=self.path.parent / code["S3Key"],
            timeout=float(properties.get("Timeout", 3)),
            memory=int(properties.get("MemorySize", 128)),
            environment={
                name: _text(value)
                for name, value in properties.get("Environment", {}).get("Variables", {}).items()
            },
            runtime=properties["Runtime"],
            role=properties["Role"],
            tags=_tags(properties),
            retries=int(config.get("MaximumRetryAttempts", 2)),
            max_event_age=int(config.get("MaximumEventAgeInSeconds", 21600)),
            on_failure=config.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
            or properties.get("DeadLetterConfig", {}).get("TargetArn"),
            reserved=properties.get("ReservedConcurrentExecutions"),
        )

    @cached_property
    def rest_api(self) -> RestApi:
        """The one REST API, with one stage."""
        api = self.one("AWS::ApiGateway::RestApi")
        api.wants(
            "ApiKeySourceType", "BinaryMediaTypes", "Body", "Description", "DisableExecuteApiEndpoint",
            "EndpointConfiguration", "FailOnWarnings", "MinimumCompressionSize", "Name", "Parameters", "Tags",
        )  # fmt: skip
        if api.properties.get("ApiKeySourceType", "HEADER") != "HEADER":
            raise TemplateError(
                f"{api.logical_id} takes its keys from an authorizer; the local front takes them from x-api-key."
            )
        stage = self.one("AWS::ApiGateway::Stage")
        stage.wants(
            "AccessLogSetting", "DeploymentId", "Description", "MethodSettings", "RestApiId", "StageName", "Tags",
            "TracingEnabled", "Variables",
        )  # fmt: skip
        body = api.properties["Body"]
        rate, burst = self._stage_throttle(stage)
        return RestApi(
            id=api.ref,
            name=api.properties.get("Name") or body.get("info", {}).get("title") or api.name,
            stage=stage.name,
            routes=tuple(_routes(api.logical_id, body)),
            stage_variables=stage.properties.get("Variables") or {},
            rate=rate,
            burst=burst,
            responses=body.get("x-amazon-apigateway-gateway-responses", {}),
            binary_types=tuple(
                body.get("x-amazon-apigateway-binary-media-types", api.properties.get("BinaryMediaTypes", []))
            ),
        )

    def _stage_throttle(self, stage: Resource) -> tuple[float | None, int | None]:
        rate: float | None = None
        burst: int | None = None
        for settings in stage.properties.get("MethodSettings", []):
            where = (settings.get("ResourcePath"), settings.get("HttpMethod"))
            if "ThrottlingRateLimit" not in settings and "ThrottlingBurstLimit" not in settings:
                continue
            if where != ("/*", "*"):
                raise TemplateError(
                    f"{stage.logical_id} throttles {where} alone; the local front throttles the whole stage or a key."
                )
            rate, burst = float(settings["ThrottlingRateLimit"]), int(settings["ThrottlingBurstLimit"])
        return rate, burst

    @cached_property
    def usage_plan(self) -> UsagePlan:
        """The one usage plan."""
        plan = self.one("AWS::ApiGateway::UsagePlan")
        plan.wants("ApiStages", "Description", "Quota", "Tags", "Throttle", "UsagePlanName")
        throttle, quota = plan.properties.get("Throttle", {}), plan.properties.get("Quota", {})
        if any("Throttle" in stage for stage in plan.properties["ApiStages"]):
            raise TemplateError(
                f"{plan.logical_id} throttles single methods; the local front throttles a key as a whole."
            )
        return UsagePlan(
            id=plan.ref,
            name=plan.name,
            rate=float(throttle["RateLimit"]) if "RateLimit" in throttle else None,
            burst=int(throttle["BurstLimit"]) if "BurstLimit" in throttle else None,
            quota=int(quota["Limit"]) if "Limit" in quota else None,
            period=quota.get("Period"),
        )

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The API keys that the template makes."""
        attached = {link.properties["KeyId"] for link in self.all("AWS::ApiGateway::UsagePlanKey")}
        keys = self.all("AWS::ApiGateway::ApiKey")
        for key in keys:
            key.wants("Description", "Enabled", "GenerateDistinctId", "Name", "StageKeys", "Tags")
        return tuple(
            Key(
                logical_id=key.logical_id,
                name=key.name,
                enabled=str(key.properties.get("Enabled", False)).lower() == "true",
                tags=_tags(key.properties),
                in_plan=key.ref in attached,
            )
            for key in keys
        )

    @cached_property
    def state_machine(self) -> StateMachine:
        """The one state machine, its definition read from DefinitionUri with every placeholder filled in."""
        machine = self.one("AWS::StepFunctions::StateMachine")
        machine.wants(
            "DefinitionS3Location", "DefinitionSubstitutions", "LoggingConfiguration", "RoleArn", "StateMachineName",
            "StateMachineType", "Tags", "TracingConfiguration",
        )  # fmt: skip
        location = machine.properties["DefinitionS3Location"]
        if location.get("Bucket") != _CODE_BUCKET:
            raise TemplateError(f"{machine.logical_id} has no DefinitionUri that is a local path.")
        path = self.path.parent / location["Key"]
        values = machine.properties.get("DefinitionSubstitutions", {})

        def fill(placeholder: re.Match[str]) -> str:
            name = placeholder[1]
            if name not in values:
                raise TemplateError(
                    f"{path.name} has ${{{name}}}, but {machine.logical_id} substitutes only {', '.join(values)}."
                )
            return _text(values[name])

        return StateMachine(
            name=machine.name,
            arn=machine.attributes["Arn"],
            definition=re.sub(r"\$\{([A-Za-z0-9_]+)\}", fill, path.read_text()),
            role=machine.properties["RoleArn"],
            kind=machine.properties.get("StateMachineType", "STANDARD"),
            tags=_tags(machine.properties),
        )

    @cached_property
    def event_rules(self) -> tuple[EventRule, ...]:
        """The EventBridge rules."""
        rules = self.all("AWS::Events::Rule")
        for rule in rules:
            rule.wants(
                "Description",
                "EventBusName",
                "EventPattern",
                "Name",
                "ScheduleExpression",
                "State",
                "Tags",
                "Targets",
            )
        return tuple(
            EventRule(
                name=rule.name,
                pattern=rule.properties.get("EventPattern"),
                schedule=rule.properties.get("ScheduleExpression"),
                enabled=rule.properties.get("State", "ENABLED") == "ENABLED",
                description=rule.properties.get("Description", ""),
                targets=tuple(
                    EventTarget(target["Arn"], target) for target in rule.properties.get("Targets", [])
                ),
            )
            for rule in rules
        )

    @cached_property
    def queues(self) -> tuple[Queue, ...]:
        """The SQS queues."""
        queues = self.all("AWS::SQS::Queue")
        for queue in queues:
            queue.wants(
                "KmsMasterKeyId",
                "MessageRetentionPeriod",
                "QueueName",
                "SqsManagedSseEnabled",
                "Tags",
                "VisibilityTimeout",
            )
        return tuple(
            Queue(
                queue.name,
                queue.attributes["Arn"],
                {
                    name: _text(queue.properties[name])
                    for name in ("MessageRetentionPeriod", "VisibilityTimeout")
                    if name in queue.properties
                },
            )
            for queue in queues
        )

    @cached_property
    def domain(self) -> Domain:
        """The trail's SimpleDB domain: a resource of the stack, or in another region a custom resource's."""
        domains = [Domain(domain.name, self.place.region) for domain in self.all("AWS::SDB::Domain")]
        domains += [
            Domain(domain.properties["Domain"], domain.properties["Region"])
            for domain in self.all("Custom::TrailDomain")
        ]
        if len(domains) != 1:
            raise TemplateError(
                f"The template has {len(domains)} SimpleDB domains; the local stack needs one."
            )
        return domains[0]

    # Resolving

    def _resource(self, logical_id: str, declared: Mapping[str, Any]) -> Resource:
        ref, name, attributes = self._identity(logical_id)
        properties = self._resolve(declared.get("Properties", {}), logical_id)
        return Resource(logical_id, declared["Type"], name, ref, attributes, properties)

    def _identity(self, logical_id: str) -> tuple[str, str, dict[str, str]]:
        """Return what `Ref` answers for a resource, its physical name, and what `GetAtt` answers."""
        declared = self._declared[logical_id]
        kind = _KINDS.get(declared["Type"])
        if kind is None:
            raise TemplateError(
                f"{logical_id} is of type {declared['Type']}, which the local stack does not know."
                " Teach local/template.py what it means here, or list it there as having no local effect."
            )
        digest = hashlib.sha256(f"{self.place.stack_name}/{logical_id}".encode()).digest()
        word = base64.b32encode(digest).decode()
        name = f"{self.place.stack_name}-{logical_id}-{word[:12]}"
        if kind.name_property and kind.name_property in declared.get("Properties", {}):
            given = self._resolve(
                declared["Properties"][kind.name_property], f"{logical_id}.{kind.name_property}"
            )
            name = name if given is _NO_VALUE else str(given)
        known = {
            "name": name,
            "id": word[12:22].lower(),
            "region": self.place.region,
            "account": self.place.account,
            "partition": self.place.partition,
        }
        known["arn"] = kind.arn.format(**known)
        attributes = {attribute: value.format(**known) for attribute, value in kind.attributes.items()}
        if kind.arn:
            attributes["Arn"] = known["arn"]
        return kind.ref.format(**known), name, attributes

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

    def _call(self, function: str, argument: Any, where: str) -> Any:
        functions: dict[str, Callable[[Any, str], Any]] = {
            "Ref": self._ref,
            "Fn::GetAtt": self._get_att,
            "Fn::Sub": self._sub,
            "Fn::Join": self._join,
            "Fn::If": self._if,
            "Fn::FindInMap": self._find_in_map,
            "Fn::Select": self._select,
            "Fn::Split": self._split,
        }
        if function not in functions:
            raise TemplateError(f"{where} uses {function}, which the local stack does not know.")
        return functions[function](argument, where)

    def _ref(self, name: Any, where: str) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        pseudo_parameters = self.place.pseudo_parameters
        if name in pseudo_parameters:
            return pseudo_parameters[name]
        if name in self.parameters:
            return self.parameters[name]
        if name in self._declared:
            return self._identity(name)[0]
        raise TemplateError(f"{where} refers to {name}, which is no parameter and no resource.")

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
        text, variables = (argument, {}) if isinstance(argument, str) else argument

        def fill(placeholder: re.Match[str]) -> str:
            name = placeholder[1].strip()
            if name.startswith("!"):  # ${!Literal} is written ${Literal}
                return f"${{{name[1:]}}}"
            if name in variables:
                return _text(self._resolve(variables[name], where))
            if "." in name:
                return self._get_att(name, where)
            return _text(self._ref(name, where))

        return re.sub(r"\$\{([^}]+)\}", fill, text)

    def _join(self, argument: Any, where: str) -> str:
        delimiter, values = argument
        return str(delimiter).join(_text(item) for item in self._resolve(values, where))

    def _if(self, argument: Any, where: str) -> Any:
        condition, then, otherwise = argument
        return self._resolve(then if self._holds(condition) else otherwise, where)

    def _find_in_map(self, argument: Any, where: str) -> Any:
        name, top, second = (self._resolve(item, where) for item in argument)
        try:
            return self._mappings[name][top][second]
        except KeyError:
            raise TemplateError(
                f"{where} looks up {name}.{top}.{second}, which Mappings does not have."
            ) from None

    def _select(self, argument: Any, where: str) -> Any:
        index, values = argument
        resolved = self._resolve(values, where)
        try:
            return resolved[int(self._resolve(index, where))]
        except IndexError:
            raise TemplateError(f"{where} selects item {index} of {len(resolved)}.") from None

    def _split(self, argument: Any, where: str) -> list[str]:
        delimiter, text = argument
        return _text(self._resolve(text, where)).split(delimiter)

    # Conditions and rules

    def _holds(self, condition: str | None) -> bool:
        if condition is None:
            return True
        if condition not in self._conditions:
            raise TemplateError(f"Condition {condition} is used but not declared.")
        if condition in self._evaluating:
            raise TemplateError(f"Condition {condition} depends on itself.")
        self._evaluating.append(condition)
        try:
            return self._test(self._conditions[condition], f"Conditions.{condition}")
        finally:
            self._evaluating.pop()

    def _test(self, expression: Any, where: str) -> bool:
        (function, argument), *rest = expression.items()
        if rest:
            raise TemplateError(f"{where} is not one condition.")
        tests: dict[str, Callable[[], bool]] = {
            "Condition": lambda: self._holds(argument),
            "Fn::And": lambda: all(self._test(item, where) for item in argument),
            "Fn::Or": lambda: any(self._test(item, where) for item in argument),
            "Fn::Not": lambda: not self._test(argument[0], where),
            "Fn::Equals": lambda: (
                _text(self._resolve(argument[0], where)) == _text(self._resolve(argument[1], where))
            ),
            "Fn::Contains": lambda: (
                _text(self._resolve(argument[1], where)) in map(_text, self._resolve(argument[0], where))
            ),
        }
        if function not in tests:
            raise TemplateError(
                f"{where} uses {function}, which the local stack does not know as a condition."
            )
        return tests[function]()

    def _check_rules(self, rules: Mapping[str, Any]) -> None:
        for name, rule in rules.items():
            if "RuleCondition" in rule and not self._test(rule["RuleCondition"], f"Rules.{name}"):
                continue
            for assertion in rule["Assertions"]:
                if not self._test(assertion["Assert"], f"Rules.{name}"):
                    raise TemplateError(
                        assertion.get("AssertDescription", f"The template's rule {name} does not hold.")
                    )

    def _check_kinds(self) -> None:
        made = {
            "AWS::ApiGateway::ApiKey",
            "AWS::ApiGateway::RestApi",
            "AWS::ApiGateway::Stage",
            "AWS::ApiGateway::UsagePlan",
            "AWS::ApiGateway::UsagePlanKey",
            "AWS::Events::Rule",
            "AWS::IAM::Role",
            "AWS::Lambda::Function",
            "AWS::SDB::Domain",
            "AWS::SQS::Queue",
            "AWS::StepFunctions::StateMachine",
            "Custom::TrailDomain",
        }
        for resource in self.resources.values():
            if resource.type not in made and resource.type not in NO_LOCAL_EFFECT:
                raise TemplateError(
                    f"{resource.logical_id} is of type {resource.type}, which the local stack does not make."
                )


def _routes(logical_id: str, body: Mapping[str, Any]) -> Iterable[Route]:
    schemes = body.get("securityDefinitions", body.get("components", {}).get("securitySchemes", {}))
    for path, methods in body["paths"].items():
        for method, operation in methods.items():
            where = f"{logical_id}: {method.upper()} {path}"
            integration = operation.get("x-amazon-apigateway-integration", {})
            function = re.search(
                r":lambda:path/2015-03-31/functions/(.+)/invocations$", str(integration.get("uri"))
            )
            if integration.get("type") != "aws_proxy" or function is None:
                raise TemplateError(
                    f"{where} is not a Lambda proxy integration, the only kind the local front has."
                )
            wanted = {name for one in operation.get("security", body.get("security", [])) for name in one}
            for name in wanted:
                scheme = schemes.get(name, {})
                if (scheme.get("in"), scheme.get("name")) != ("header", "x-api-key"):
                    raise TemplateError(
                        f"{where} wants the authorizer {name}; the local front knows API keys only."
                    )
            yield Route(method.upper(), path, bool(wanted), function[1])


def _tags(properties: Mapping[str, Any]) -> dict[str, str]:
    tags = properties.get("Tags") or []
    return {tag["Key"]: _text(tag["Value"]) for tag in tags}


def _text(value: Any) -> str:
    """Write a value as CloudFormation does where it wants a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
