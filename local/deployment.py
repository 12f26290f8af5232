"""The parts of a local stack: the template's resources, as far as they mean something on one machine.

Every resource of the template is either here or on `local.template.NO_LOCAL_EFFECT`, and of the resources
that are here every property is either read or named as one that changes nothing: anything else is a
TemplateError. So every change of the template changes the local stack or is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.template import CODE_BUCKET, NO_LOCAL_EFFECT, Place, Resource, Template, TemplateError, text

__all__ = [
    "Deployment",
    "Domain",
    "EventRule",
    "Function",
    "Key",
    "Queue",
    "RestApi",
    "Role",
    "Route",
    "StateMachine",
    "Table",
    "UsagePlan",
]

_ANY_METHOD = "x-amazon-apigateway-any-method"
_READ = {
    "AWS::ApiGateway::ApiKey",
    "AWS::ApiGateway::RestApi",
    "AWS::ApiGateway::Stage",
    "AWS::ApiGateway::UsagePlan",
    "AWS::ApiGateway::UsagePlanKey",
    "AWS::DynamoDB::Table",
    "AWS::Events::Rule",
    "AWS::IAM::Role",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::Function",
    "AWS::SQS::Queue",
    "AWS::StepFunctions::StateMachine",
    "Custom::Domain",
}


@dataclass(frozen=True)
class Function:
    """A Lambda function: its settings, as far as they matter to its process and its queue."""

    logical_id: str
    name: str
    arn: str
    handler: str
    code: Path
    runtime: str
    role: str
    timeout: float = 3
    memory: int = 128
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    reserved: int | None = None  # concurrency
    retries: int = 2  # of an Event invocation, after the first attempt
    max_event_age: int = 21600  # seconds an Event invocation may wait in the queue
    on_failure: str | None = None  # the ARN that gets an Event invocation which failed for good


@dataclass(frozen=True)
class Role:
    """An IAM role, without its policies, which are not enforced here."""

    name: str
    trust: Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """One method of one resource of the REST API, and the function behind it."""

    method: str
    path: str
    key_required: bool
    function_arn: str


@dataclass(frozen=True)
class RestApi:
    """The API: its stage, its routes, its throttle, and the gateway responses that the template changes."""

    id: str
    name: str
    stage: str
    routes: tuple[Route, ...]
    rate: float | None = None  # requests a second to one method, of all keys together; None is unlimited
    burst: int | None = None
    responses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class UsagePlan:
    """The limits of each key that is attached to it; None is unlimited."""

    id: str
    name: str
    rate: float | None = None
    burst: int | None = None
    quota: int | None = None  # requests a day (UTC)


@dataclass(frozen=True)
class Key:
    """An API key that the template itself creates."""

    name: str
    enabled: bool
    tags: Mapping[str, str]
    in_plan: bool


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
class EventRule:
    """An EventBridge rule: a pattern or a schedule, and its targets as the template has them."""

    name: str
    arn: str
    pattern: Mapping[str, Any] | None
    schedule: str | None
    enabled: bool
    description: str
    targets: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Queue:
    """An SQS queue."""

    name: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """A SimpleDB domain and the region it is in."""

    name: str
    region: str


@dataclass(frozen=True)
class Table:
    """A DynamoDB table: its arguments of CreateTable, and whether it has point-in-time recovery."""

    logical_id: str
    name: str
    definition: Mapping[str, Any]
    backed_up: bool


class Deployment:
    """The parts of one stack. All are read on creation, which so raises every TemplateError."""

    def __init__(self, template: Template) -> None:
        """Read the resolved template."""
        self._template = template
        for resource in template.resources.values():
            if resource.type not in _READ and resource.type not in NO_LOCAL_EFFECT:
                raise TemplateError(
                    f"{resource.logical_id} is of type {resource.type}, which the local stack does not make."
                )
        self.place: Place = template.place
        self.functions = tuple(self._functions())
        self.roles = tuple(self._roles())
        self.rest_api = self._rest_api()
        self.usage_plan = self._usage_plan()
        self.keys = tuple(self._keys())
        self.state_machines = tuple(self._state_machines())
        self.event_rules = tuple(self._event_rules())
        self.queues = tuple(self._queues())
        self.alarms = tuple(dict(alarm.properties) for alarm in template.all("AWS::CloudWatch::Alarm"))
        self.domains = tuple(self._domains())
        self.tables = tuple(self._tables())

    def output(self, name: str) -> str:
        """Return an output of the stack; raise TemplateError when the template does not have it."""
        if name not in self._template.outputs:
            raise TemplateError(
                f"The template has no output {name}, which the local stack tells its clients."
            )
        return text(self._template.outputs[name])

    def _functions(self) -> Iterator[Function]:
        configs = {
            config.properties["FunctionName"]: config
            for config in self._template.all("AWS::Lambda::EventInvokeConfig")
        }
        # Only CloudFormation invokes these, for the template's custom resources.
        service_tokens = {
            resource.properties["ServiceToken"]
            for resource in self._template.resources.values()
            if resource.type.startswith("Custom::")
        }
        for function in self._template.all("AWS::Lambda::Function"):
            if function.arn not in service_tokens:
                yield self._function(function, configs.get(function.name))

    def _function(self, function: Resource, config: Resource | None) -> Function:
        honoured = (
            "Code Environment FunctionName Handler MemorySize ReservedConcurrentExecutions Role Runtime"
        )
        ignored = "Architectures Description KmsKeyArn Layers LoggingConfig TracingConfig"
        function.sets_only(*honoured.split(), *ignored.split(), "Tags", "Timeout")
        queueing: Mapping[str, Any] = {}
        if config:
            config.sets_only(
                "DestinationConfig",
                "FunctionName",
                "MaximumEventAgeInSeconds",
                "MaximumRetryAttempts",
                "Qualifier",
            )
            queueing = config.properties
        properties = function.properties
        if not str(properties.get("Runtime")).startswith("python"):
            raise TemplateError(
                f"{function.logical_id} runs on {properties.get('Runtime')}, and not on Python."
            )
        variables = properties.get("Environment", {}).get("Variables", {})
        reserved = properties.get("ReservedConcurrentExecutions")
        return Function(
            logical_id=function.logical_id,
            name=function.name,
            arn=function.arn,
            handler=properties["Handler"],
            code=self._path(
                function, "CodeUri", properties["Code"].get("S3Bucket"), properties["Code"].get("S3Key")
            ),
            runtime=properties["Runtime"],
            role=properties["Role"],
            timeout=float(properties.get("Timeout", 3)),
            memory=int(properties.get("MemorySize", 128)),
            environment={name: text(value) for name, value in variables.items()},
            tags=_tags(properties),
            reserved=int(reserved) if reserved is not None else None,
            retries=int(queueing.get("MaximumRetryAttempts", 2)),
            max_event_age=int(queueing.get("MaximumEventAgeInSeconds", 21600)),
            on_failure=queueing.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination"),
        )

    def _path(self, resource: Resource, property_name: str, bucket: Any, key: Any) -> Path:
        if bucket != CODE_BUCKET:
            raise TemplateError(f"{resource.logical_id} has no {property_name} that is a local path.")
        path: Path = self._template.path.parent / key
        if not path.exists():
            raise TemplateError(
                f"{resource.logical_id} has the {property_name} {key}, and there is no {path}."
            )
        return path

    def _roles(self) -> Iterator[Role]:
        for role in self._template.all("AWS::IAM::Role"):
            yield Role(role.name, role.properties["AssumeRolePolicyDocument"])

    def _rest_api(self) -> RestApi:
        api = self._template.only("AWS::ApiGateway::RestApi")
        api.sets_only(
            "ApiKeySourceType", "Body", "Description", "EndpointConfiguration", "Name", "Parameters", "Tags",
        )  # fmt: skip
        if api.properties.get("ApiKeySourceType", "HEADER") != "HEADER":
            raise TemplateError(f"{api.logical_id} takes keys from an authorizer, and not from x-api-key.")
        stage = self._template.only("AWS::ApiGateway::Stage")
        stage.sets_only(
            "AccessLogSetting", "DeploymentId", "Description", "MethodSettings", "RestApiId", "StageName",
            "Tags", "TracingEnabled",
        )  # fmt: skip
        rate, burst = _stage_throttle(stage)
        body = api.properties["Body"]
        return RestApi(
            id=api.ref,
            name=api.properties.get("Name") or body["info"]["title"],
            stage=stage.name,
            routes=tuple(_routes(api.logical_id, body)),
            rate=rate,
            burst=burst,
            responses=body.get("x-amazon-apigateway-gateway-responses", {}),
        )

    def _usage_plan(self) -> UsagePlan:
        plan = self._template.only("AWS::ApiGateway::UsagePlan")
        plan.sets_only("ApiStages", "Description", "Quota", "Tags", "Throttle", "UsagePlanName")
        if any("Throttle" in stage for stage in plan.properties["ApiStages"]):
            raise TemplateError(
                f"{plan.logical_id} throttles single methods of a key; the local gateway does not."
            )
        throttle, quota = plan.properties.get("Throttle", {}), plan.properties.get("Quota", {})
        if quota and (period := quota.get("Period")) != "DAY":
            raise TemplateError(
                f"{plan.logical_id} has a quota a {period}; the local gateway counts by DAY only."
            )
        return UsagePlan(
            id=plan.ref,
            name=plan.name,
            rate=float(throttle["RateLimit"]) if throttle else None,
            burst=int(throttle["BurstLimit"]) if throttle else None,
            quota=int(quota["Limit"]) if quota else None,
        )

    def _keys(self) -> Iterator[Key]:
        links = self._template.all("AWS::ApiGateway::UsagePlanKey")
        attached = {link.properties["KeyId"] for link in links}
        for key in self._template.all("AWS::ApiGateway::ApiKey"):
            key.sets_only("Description", "Enabled", "Name", "Tags")
            enabled = text(key.properties.get("Enabled", False)).lower() == "true"
            yield Key(key.name, enabled, _tags(key.properties), key.ref in attached)

    def _state_machines(self) -> Iterator[StateMachine]:
        for machine in self._template.all("AWS::StepFunctions::StateMachine"):
            yield self._state_machine(machine)

    def _state_machine(self, machine: Resource) -> StateMachine:
        machine.sets_only(
            "DefinitionS3Location", "DefinitionSubstitutions", "LoggingConfiguration", "RoleArn",
            "StateMachineName", "StateMachineType", "Tags", "TracingConfiguration",
        )  # fmt: skip
        properties = machine.properties
        location = properties.get("DefinitionS3Location", {})
        path = self._path(machine, "DefinitionUri", location.get("Bucket"), location.get("Key"))
        values = properties.get("DefinitionSubstitutions", {})

        def fill(placeholder: re.Match[str]) -> str:
            if placeholder[1] not in values:
                raise TemplateError(
                    f"{path.name} has {placeholder[0]}; {machine.logical_id} substitutes {', '.join(values)}."
                )
            return text(values[placeholder[1]])

        return StateMachine(
            name=machine.name,
            arn=machine.arn,
            definition=re.sub(r"\$\{([A-Za-z0-9_]+)\}", fill, path.read_text()),
            role=properties["RoleArn"],
            kind=properties.get("StateMachineType", "STANDARD"),
            tags=_tags(properties),
        )

    def _event_rules(self) -> Iterator[EventRule]:
        for rule in self._template.all("AWS::Events::Rule"):
            rule.sets_only("Description", "EventPattern", "Name", "ScheduleExpression", "State", "Targets")
            yield EventRule(
                name=rule.name,
                arn=rule.arn,
                pattern=rule.properties.get("EventPattern"),
                schedule=rule.properties.get("ScheduleExpression"),
                enabled=rule.properties.get("State", "ENABLED") == "ENABLED",
                description=rule.properties.get("Description", ""),
                targets=tuple(rule.properties.get("Targets", [])),
            )

    def _queues(self) -> Iterator[Queue]:
        for queue in self._template.all("AWS::SQS::Queue"):
            queue.sets_only(
                "KmsMasterKeyId",
                "MessageRetentionPeriod",
                "QueueName",
                "SqsManagedSseEnabled",
                "VisibilityTimeout",
            )
            read = {"MessageRetentionPeriod", "VisibilityTimeout"}
            yield Queue(
                queue.name, {name: text(value) for name, value in queue.properties.items() if name in read}
            )

    def _domains(self) -> Iterator[Domain]:
        """Read the domains, which the setup function creates on AWS."""
        for domain in self._template.all("Custom::Domain"):
            domain.sets_only("Name", "Nearest", "Region", "ServiceTimeout", "ServiceToken")
            yield Domain(domain.name, domain.attributes["Region"])

    def _tables(self) -> Iterator[Table]:
        arguments = (
            "AttributeDefinitions",
            "BillingMode",
            "DeletionProtectionEnabled",
            "GlobalSecondaryIndexes",
            "KeySchema",
            "Tags",
        )
        for table in self._template.all("AWS::DynamoDB::Table"):
            table.sets_only(*arguments, "PointInTimeRecoverySpecification")
            properties = table.properties
            recovery = properties.get("PointInTimeRecoverySpecification", {})
            yield Table(
                table.logical_id,
                table.name,
                {name: properties[name] for name in arguments if name in properties},
                recovery.get("PointInTimeRecoveryEnabled", False),
            )


def _routes(logical_id: str, body: Mapping[str, Any]) -> Iterator[Route]:
    schemes = body.get("securityDefinitions", body.get("components", {}).get("securitySchemes", {}))
    for path, methods in body["paths"].items():
        for method, operation in methods.items():
            where = f"{logical_id}: {method.upper()} {path}"
            if method.lower() == _ANY_METHOD or "+}" in path:
                raise TemplateError(
                    f"{where} is a route for any method or any path below it, which the local gateway does "
                    "not know."
                )
            integration = operation.get("x-amazon-apigateway-integration", {})
            function = re.search(
                r":lambda:path/2015-03-31/functions/(.+)/invocations$", str(integration.get("uri"))
            )
            if integration.get("type") != "aws_proxy" or function is None:
                raise TemplateError(
                    f"{where} is no Lambda proxy integration, the only kind the local gateway has."
                )
            required = {
                name
                for alternative in operation.get("security", body.get("security", []))
                for name in alternative
            }
            for name in required:
                scheme = schemes.get(name, {})
                if (scheme.get("in"), scheme.get("name")) != ("header", "x-api-key"):
                    raise TemplateError(
                        f"{where} wants the authorizer {name}; the local gateway knows API keys only."
                    )
            yield Route(method.upper(), path, bool(required), function[1])


def _stage_throttle(stage: Resource) -> tuple[float | None, int | None]:
    """Read the stage's throttle: rate and burst of each method, for all keys together."""
    method_settings = stage.properties.get("MethodSettings", [])
    throttled = [settings for settings in method_settings if "ThrottlingRateLimit" in settings]
    if not throttled:
        return None, None
    settings = throttled[0]
    if len(throttled) > 1 or (settings["ResourcePath"], settings["HttpMethod"]) != ("/*", "*"):
        raise TemplateError(
            f"{stage.logical_id} throttles some methods alone; the local gateway throttles all alike."
        )
    return float(settings["ThrottlingRateLimit"]), int(settings["ThrottlingBurstLimit"])


def _tags(properties: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: text(tag["Value"]) for tag in properties.get("Tags", [])}
