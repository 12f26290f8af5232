"""The embedded AWS: moto, mended, with the template's resources.

`Embedded` installs the mends and connects the services that moto does not: Step Functions' tasks and
EventBridge's targets run the stack's functions, and so does Lambda's own API. `deploy` then creates, through
the AWS API as any client would, every resource of the template that a client can see. moto's state belongs to
the process, so there is one `Embedded` at a time; creating it empties AWS.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from botocore.exceptions import ClientError
from flask import Flask
from moto.apigateway.models import apigateway_backends
from moto.apigateway.utils import ApigwRestApiIdentifier, ApigwUsagePlanIdentifier
from moto.awslambda.exceptions import LambdaClientError, UnknownFunctionException
from moto.awslambda_simple.models import LambdaSimpleBackend, lambda_simple_backends
from moto.core.base_backend import BackendDict
from moto.core.config import default_user_config
from moto.iam.models import iam_backends
from moto.moto_server import werkzeug_app
from moto.sqs.models import sqs_backends
from moto.utilities.id_generator import moto_id_manager
from werkzeug.exceptions import HTTPException

from local import dynamodb, ec2, engine, events, operators, simpledb
from local.clock import Clock
from local.deployment import Deployment, EventRule, Function, RestApi, Table
from local.events import StartExecution
from local.gateway import Caller, UsageLimits
from local.invocation import InvocationError
from local.lambdas import Runtime
from local.serving import WsgiApp
from local.template import Place, TemplateError

__all__ = ["Client", "Embedded", "deploy", "make_tables"]

Client = Callable[..., Any]
"""Creates a boto3 client of a service: `client("ec2")`, `client("sdb", region="us-east-1")`."""


class Embedded:
    """moto as one AWS, running the functions of `runtime` on `clock`."""

    def __init__(
        self, runtime: Runtime, clock: Clock, place: Place, *, start_elsewhere: StartExecution | None = None
    ) -> None:
        """Mend moto in this process and empty it.

        `start_elsewhere` starts executions for EventBridge's rules, where another engine runs them.
        """
        self._place = place
        self._clock = clock
        self._runtime = runtime
        os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # loading them is slow
        default_user_config["lambda"] = {"use_docker": False}
        default_user_config["stepfunctions"] = {"execute_state_machine": True}
        setattr(werkzeug_app, "DISABLE_GLOBAL_CORS", True)  # noqa: B010 - mypy; else any web page could call it
        simpledb.install()
        dynamodb.install()
        ec2.install()
        operators.install()
        BackendDict.reset()
        self.engine: engine.Engine | None = None
        if start_elsewhere:
            self.deliveries = events.install(runtime.invoke_later, start_elsewhere, clock=clock)
        else:
            self.deliveries = events.install(runtime.invoke_later, clock=clock)
            self.engine = engine.install(runtime.invoke, clock=clock, publish=self.deliveries.publish)
        LambdaSimpleBackend.invoke = _lambda_api(runtime)  # type: ignore[method-assign]
        runtime.reserved = self._reserved
        runtime.on_failure = _send_to_queue
        self.app: WsgiApp = _Dispatcher(werkzeug_app.create_backend_app)

    def publish(self, event: dict[str, Any]) -> None:
        """Put a service's event on the default event bus."""
        self.deliveries.publish(self._place.account, self._place.region, event)

    def keys(self, api: RestApi) -> Iterable[Caller]:
        """List the keys that open the API's stage now: enabled, and in a usage plan of the stage."""
        backend = apigateway_backends[self._place.account][self._place.region]
        stage = {"apiId": api.id, "stage": api.stage}
        for plan in list(backend.usage_plans.values()):
            if not any(stage.items() <= attached.items() for attached in plan.api_stages):
                continue
            limits = _limits(plan)
            for key_id in list(backend.usage_plan_keys.get(plan.id, {})):
                key = backend.keys.get(key_id)
                if key is not None and key.enabled:
                    yield Caller(key.id, key.value, limits)

    def schedule(self, rule: EventRule) -> None:
        """Run a scheduled rule's targets on the stack's clock, from one period from now on."""
        rate = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", rule.schedule or "")
        if rate is None:
            raise TemplateError(f"{rule.name} runs at {rule.schedule}; the local stack knows only rate(…).")
        every = (
            int(rate[1])
            * {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}[rate[2]]
        )

        def run() -> None:
            now = self._clock.now()
            event = {
                "version": "0",
                "id": str(uuid4()),
                "detail-type": "Scheduled Event",
                "source": "aws.events",
                "account": self._place.account,
                "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "region": self._place.region,
                "resources": [rule.arn],
                "detail": {},
            }
            for target in rule.targets:
                self.deliveries.deliver(rule.arn, target, event)
            self._clock.at(now + every, run)

        self._clock.at(self._clock.now() + every, run)

    def stop(self) -> None:
        """Drop running executions and undelivered events. A second call does nothing."""
        self.deliveries.shutdown()
        if self.engine:
            self.engine.shutdown()

    def _reserved(self, name: str) -> int | None:
        function = lambda_simple_backends[self._place.account][self._place.region].get_function(name)
        return None if function.reserved_concurrency is None else int(function.reserved_concurrency)


class _Dispatcher(werkzeug_app.DomainDispatcherApplication):
    """Sends each call to its service, which is looked up once for each host.

    moto lists its own folder twice for every call, under a lock: 300 disk accesses, two thirds of a call's
    time, while all other calls wait. Most services have one address, "/", for all operations; for these
    Flask's contexts, signals and routing, which take a quarter of the rest of the time, are left out.
    """

    get_backend_for_host = functools.lru_cache(maxsize=256)(
        werkzeug_app.DomainDispatcherApplication.get_backend_for_host
    )

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a call."""
        app = self.get_application(environ)
        if environ["PATH_INFO"] != "/" or environ["REQUEST_METHOD"] != "POST":
            return app(environ, start_response)
        request: Any = app.request_class(environ)  # moto's own, not only Flask's
        try:
            result = _at_root(app)(request, request.raw_url, dict(request.headers))
        except HTTPException as error:
            return error.get_response(environ)(environ, start_response)
        except ClientError as error:
            result = 400, {}, error.response["Error"]["Message"]
        status, headers, content = result if len(result) == 3 else (200, {}, result)
        return app.response_class(content, status, headers)(environ, start_response)


@functools.cache
def _at_root(app: Flask) -> Callable[..., Any]:
    """Find the callback for a POST to "/" in a service's application, under moto's wrapper for Flask."""
    endpoint, _ = app.url_map.bind("").match("/", "POST")
    view: Any = app.view_functions[endpoint]  # moto's convert_to_flask_response
    callback: Callable[..., Any] = view.callback
    return callback


def _lambda_api(runtime: Runtime) -> Callable[..., bytes]:
    def invoke(
        self: Any, function_name: str, qualifier: str | None, body: Any, headers: Any, response_headers: Any
    ) -> bytes:
        """Answer Invoke, for its three invocation types; moto 5.2.5 returns the payload it was sent."""
        name = self.get_function(function_name, qualifier).function_name
        payload = body if isinstance(body, bytes) else (body or "{}").encode()
        kind = headers.get("X-Amz-Invocation-Type", "RequestResponse")
        try:
            if kind == "DryRun":
                return b""
            if kind == "Event":
                runtime.invoke_later(name, payload)
                return b""
            result = runtime.invoke(name, payload)
        except InvocationError as error:
            if error.code == "ResourceNotFoundException":
                raise UnknownFunctionException(function_name) from error
            raise _refusal(error) from error
        response_headers["x-amz-executed-version"] = "$LATEST"
        if result.function_error:
            response_headers["x-amz-function-error"] = result.function_error
        return result.payload

    return invoke


def _refusal(error: InvocationError) -> LambdaClientError:
    refusal = LambdaClientError(error.code, error.message)
    refusal.code = {"TooManyRequestsException": 429, "RequestTooLargeException": 413}.get(error.code, 500)
    return refusal


def _send_to_queue(destination: str, record: str) -> None:
    _, _, _, region, account, queue = destination.split(":")
    sqs_backends[account][region].send_message(queue, record)


def _limits(plan: Any) -> UsageLimits:
    rate, burst = plan.throttle.get("rateLimit"), plan.throttle.get("burstLimit")
    quota = plan.quota.get("limit")
    if (period := plan.quota.get("period", "DAY")) != "DAY":
        raise NotImplementedError(
            f"Usage plan {plan.id} has a quota a {period}; the local gateway counts by DAY only."
        )
    return UsageLimits(
        plan.id,
        None if rate is None else float(rate),
        None if burst is None else int(burst),
        None if quota is None else int(quota),
    )


def deploy(stack: Deployment, client: Client, *, state_machines: bool) -> None:
    """Create the template's resources; its state machines only where the embedded engine runs them."""
    for domain in stack.domains:
        client("sdb", region=domain.region).create_domain(DomainName=domain.name)
    if stack.tables:
        make_tables(stack.tables, client("dynamodb"))
    for queue in stack.queues:
        client("sqs").create_queue(QueueName=queue.name, Attributes=dict(queue.attributes))
    roles = iam_backends[stack.place.account][stack.place.partition]  # creating a client of IAM is slow
    for role in stack.roles:
        roles.create_role(role.name, json.dumps(role.trust), "/", None, "", [], "3600")
    _deploy_functions(stack.functions, client("lambda"))
    for machine in stack.state_machines if state_machines else ():
        client("stepfunctions").create_state_machine(
            name=machine.name,
            definition=machine.definition,
            roleArn=machine.role,
            type=machine.kind,
            tags=[{"key": name, "value": value} for name, value in machine.tags.items()],
        )
    _deploy_rules(stack.event_rules, client("events"))
    _deploy_api(stack, client("apigateway"))


def make_tables(tables: Iterable[Table], dynamodb: Any) -> None:
    """Create empty DynamoDB tables through a client."""
    for table in tables:
        dynamodb.create_table(TableName=table.name, **table.definition)
        if table.backed_up:
            recovery = {"PointInTimeRecoveryEnabled": True}
            dynamodb.update_continuous_backups(
                TableName=table.name, PointInTimeRecoverySpecification=recovery
            )


def _deploy_functions(functions: Iterable[Function], lambda_: Any) -> None:
    packages: dict[Path, bytes] = {}
    for function in functions:
        if function.code not in packages:
            packages[function.code] = _zip(function.code)
        lambda_.create_function(
            FunctionName=function.name,
            Runtime=function.runtime,
            Role=function.role,
            Handler=function.handler,
            Code={"ZipFile": packages[function.code]},
            Timeout=int(function.timeout),
            MemorySize=function.memory,
            Environment={"Variables": dict(function.environment)},
            Tags=dict(function.tags),
            Architectures=["arm64"],
        )
        if function.reserved is not None:
            lambda_.put_function_concurrency(
                FunctionName=function.name, ReservedConcurrentExecutions=function.reserved
            )


def _zip(directory: Path) -> bytes:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(directory))
    return package.getvalue()


def _deploy_rules(rules: Iterable[EventRule], events_: Any) -> None:
    for rule in rules:
        trigger = (
            {"EventPattern": json.dumps(rule.pattern)}
            if rule.pattern
            else {"ScheduleExpression": rule.schedule}
        )
        state = "ENABLED" if rule.enabled else "DISABLED"
        events_.put_rule(Name=rule.name, State=state, Description=rule.description, **trigger)
        events_.put_targets(Rule=rule.name, Targets=[dict(target) for target in rule.targets])


def _deploy_api(stack: Deployment, apigateway: Any) -> None:
    api, plan, place = stack.rest_api, stack.usage_plan, stack.place
    # The template's outputs name these ids, so moto has to take them as they are.
    moto_id_manager.set_custom_id(ApigwRestApiIdentifier(place.account, place.region, api.name), api.id)
    moto_id_manager.set_custom_id(ApigwUsagePlanIdentifier(place.account, place.region, plan.name), plan.id)
    apigateway.create_rest_api(name=api.name, endpointConfiguration={"types": ["REGIONAL"]})
    resources = {"/": apigateway.get_resources(restApiId=api.id)["items"][0]["id"]}
    for route in api.routes:
        resource = _resource(apigateway, api.id, resources, route.path)
        method = {"restApiId": api.id, "resourceId": resource, "httpMethod": route.method}
        apigateway.put_method(**method, authorizationType="NONE", apiKeyRequired=route.key_required)
        function = f"lambda:path/2015-03-31/functions/{route.function_arn}/invocations"
        uri = f"arn:{place.partition}:apigateway:{place.region}:{function}"
        apigateway.put_integration(**method, type="AWS_PROXY", integrationHttpMethod="POST", uri=uri)
    apigateway.create_deployment(restApiId=api.id, stageName=api.stage)
    throttle = {"rateLimit": plan.rate, "burstLimit": plan.burst}
    quota = {"limit": plan.quota, "period": "DAY"}
    apigateway.create_usage_plan(
        name=plan.name,
        apiStages=[{"apiId": api.id, "stage": api.stage}],
        **({"throttle": throttle} if plan.rate is not None else {}),
        **({"quota": quota} if plan.quota is not None else {}),
    )
    for key in stack.keys:
        created = apigateway.create_api_key(name=key.name, enabled=key.enabled, tags=dict(key.tags))
        if key.in_plan:
            apigateway.create_usage_plan_key(usagePlanId=plan.id, keyId=created["id"], keyType="API_KEY")


def _resource(apigateway: Any, api: str, resources: dict[str, str], path: str) -> str:
    """Return the id of an API's resource; create it and its parents where they are missing."""
    if path not in resources:
        parent_path, _, part = path.rpartition("/")
        parent = _resource(apigateway, api, resources, parent_path or "/")
        resources[path] = apigateway.create_resource(restApiId=api, parentId=parent, pathPart=part)["id"]
    return resources[path]
