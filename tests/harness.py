"""The whole of Knock in one process: the functions as they are, on the mended emulator, with a movable clock.

For tests that need every path within reach (faults, the API's error paths, the state machine) and the
coverage of it. The end-to-end tests run the same functions in processes of their own, over HTTP.

Events reach the functions, tasks run as Lambda tasks, and `clock.advance` ends a Wait of hours at once.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from moto import mock_aws

import api
import authorize
import guard
import revoke
import stopped
from grants import wiring
from local import ec2, engine, events, operators, simpledb
from local.clock import Clock
from local.invocation import InvocationResult

ROOT = Path(__file__).resolve().parents[1]
REGION, ACCOUNT, STACK = "eu-west-1", "123456789012", "knock"
MACHINE = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "KNOCK_STACK": STACK,
    "TRAIL_DOMAIN": f"{STACK}-Trail-1ABC",
    "TRAIL_REGION": REGION,
    "STATE_MACHINE_ARN": MACHINE,
    "REVOKE_FUNCTION": f"{STACK}-revoke",
    "DEFAULT_DURATION": "24h",
    "MAX_DURATION": "24h",
    "RULES_PER_GROUP": "60",
    "POWERTOOLS_SERVICE_NAME": f"{STACK}-test",
    "POWERTOOLS_METRICS_NAMESPACE": "Knock",
    "POWERTOOLS_LOG_LEVEL": "INFO",
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
}
HANDLERS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    f"{STACK}-api": api.handler,
    f"{STACK}-authorize": authorize.handler,
    f"{STACK}-revoke": revoke.handler,
    f"{STACK}-stopped": stopped.handler,
    f"{STACK}-guard": guard.handler,
}
MODULES = (api, authorize, guard, revoke, stopped)


class Crash(BaseException):
    """A function's process is gone: nothing it would have done afterwards is done."""


class Context:
    """What Powertools reads of Lambda's context."""

    function_name = "test"
    memory_limit_in_mb = 256
    invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:test"
    aws_request_id = "00000000-0000-0000-0000-000000000000"


@dataclass
class Answer:
    """What the API answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Knock:
    """A running Knock. `keys` maps a name to its API key's id."""

    clock: Clock
    engine: engine.Engine
    deliveries: events.Deliveries
    keys: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    metrics: list[tuple[str, float]] = field(default_factory=list)
    clients: dict[str, Any] = field(default_factory=dict)
    before_invoke: Callable[[str, Any], None] = lambda _name, _payload: None
    around: Callable[[str], AbstractContextManager[None]] = lambda _name: nullcontext()

    def client(self, service: Any) -> Any:
        if service not in self.clients:
            self.clients[service] = boto3.client(service, region_name=REGION)
        return self.clients[service]

    # ------------------------------------------------------------------ functions

    def invoke(self, arn: str, payload: bytes) -> InvocationResult:
        """Run a function as Lambda does: an error is an answer with `errorType`."""
        name = arn.rpartition(":")[2]
        event = json.loads(payload)
        try:
            self.before_invoke(name, event)
            with self.around(name):
                return InvocationResult(json.dumps(HANDLERS[name](event, Context())).encode())
        except Crash as crash:
            said = {"errorType": "Runtime.ExitError", "errorMessage": f"RequestId: 0 Error: {crash}"}
            return InvocationResult(json.dumps(said).encode(), "Unhandled")
        except Exception as error:  # noqa: BLE001  # as Lambda's runtime does
            said = {"errorType": type(error).__name__, "errorMessage": str(error)}
            return InvocationResult(json.dumps(said).encode(), "Unhandled")

    def invoke_later(self, arn: str, payload: bytes, attempt: int = 1) -> None:
        """Run a function as Lambda's queue does: an error is tried again after one minute and after two.

        https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
        """
        if self.invoke(arn, payload).function_error and attempt < 3:

            def again() -> None:
                threading.Thread(
                    target=self.invoke_later, args=(arn, payload, attempt + 1), daemon=True
                ).start()

            self.clock.at(self.clock.now() + timedelta(minutes=attempt), again)

    def call(self, name: str, event: Any) -> Any:
        """Run a function and give its answer; an error of its is raised as AssertionError."""
        result = self.invoke(f"{STACK}-{name}", json.dumps(event).encode())
        answer = json.loads(result.payload)
        assert result.function_error is None, answer
        return answer

    # ------------------------------------------------------------------ HTTP

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str = "alice",
        body: object = None,
        raw: str | None = None,
        caller: str = "203.0.113.7",
        headers: dict[str, str] | None = None,
        **query: str,
    ) -> Answer:
        """Call the API as the gateway does after it has checked the key."""
        parts = path.strip("/").split("/")
        parameters = {"id": "/".join(parts[1:])} if parts[0] == "grants" and len(parts) > 1 else None
        event = {
            "resource": "/grants/{id}" if parameters else path,
            "path": path,
            "httpMethod": method,
            "headers": headers or {},
            "queryStringParameters": query or None,
            "pathParameters": parameters,
            "body": raw if raw is not None else (None if body is None else json.dumps(body)),
            "isBase64Encoded": False,
            "requestContext": {
                "requestId": "r1",
                "identity": {
                    "sourceIp": caller,
                    "apiKeyId": self.keys.get(key, key),
                    "apiKey": f"value-of-{key}",
                },
            },
        }
        try:
            with self.around(f"{STACK}-api"):
                result = api.handler(event, Context())
        except Crash:
            return Answer(502, {}, '{"message": "Internal server error"}')
        return Answer(result["statusCode"], result["headers"], result["body"])

    def open(self, key: str = "alice", caller: str = "203.0.113.7", **body: object) -> dict[str, Any]:
        """Knock, and expect an open door."""
        answer = self.request("POST", "/knock", key=key, body=body or None, caller=caller)
        assert answer.status == 201, answer.text
        grant: dict[str, Any] = answer.json
        return grant

    def grant(self, grant_id: str, key: str = "operator") -> dict[str, Any]:
        answer = self.request("GET", f"/grants/{grant_id}", key=key)
        assert answer.status == 200, answer.text
        grant: dict[str, Any] = answer.json
        return grant

    # ------------------------------------------------------------------ AWS, as an operator sees it

    def rules(self, *groups: str) -> set[tuple[str, int, str]]:
        """List the open ingress: (group, first port, CIDR)."""
        filters = [
            {"Name": "group-id", "Values": list(groups) or [g for gs in self.groups.values() for g in gs]}
        ]
        found = self.client("ec2").describe_security_group_rules(Filters=filters)["SecurityGroupRules"]
        return {
            (rule["GroupId"], rule["FromPort"], rule.get("CidrIpv4") or rule.get("CidrIpv6"))
            for rule in found
            if not rule["IsEgress"]
        }

    def execution(self, grant_id: str) -> dict[str, Any]:
        arn = MACHINE.replace(":stateMachine:", ":execution:") + f":{grant_id}"
        execution: dict[str, Any] = self.client("stepfunctions").describe_execution(executionArn=arn)
        return execution

    def execution_status(self, grant_id: str) -> str | None:
        """Give an execution's status, or None where it never started."""
        try:
            status: str = self.execution(grant_id)["status"]
        except self.client("stepfunctions").exceptions.ExecutionDoesNotExist:
            return None
        return status

    def states(self, grant_id: str) -> list[str]:
        """List the states an execution entered, in order."""
        arn = MACHINE.replace(":stateMachine:", ":execution:") + f":{grant_id}"
        history = self.client("stepfunctions").get_execution_history(executionArn=arn, maxResults=1000)[
            "events"
        ]
        return [e["stateEnteredEventDetails"]["name"] for e in history if "stateEnteredEventDetails" in e]

    def wait(
        self, what: Callable[[], Any], why: str, seconds: float = 10, step: timedelta | None = None
    ) -> Any:
        """Poll until `what()` is true, moving the clock by `step` each time; fail with `why` at last."""
        deadline = time.monotonic() + seconds
        while True:
            found = what()
            if found:
                return found
            assert time.monotonic() < deadline, why
            if step:
                self.clock.advance(step)
            time.sleep(0.01)

    def wait_status(
        self, grant_id: str, status: str, seconds: float = 10, step: timedelta | None = None
    ) -> None:
        """Poll until an execution has ended as expected; fail at once when it ended otherwise."""

        def ended() -> bool:
            now = self.execution(grant_id)
            assert now["status"] in ("RUNNING", status), now
            return bool(now["status"] == status)

        self.wait(ended, f"{grant_id} is not {status}", seconds, step)

    def expire(self, grant: dict[str, Any]) -> None:
        """Move the clock to a grant's end and wait for its execution's."""
        self.advance_to(grant["expires_at"])
        self.wait_status(grant["id"], "SUCCEEDED")

    def advance_to(self, text: str) -> None:
        from grants.values import parse_time

        self.clock.advance(max(parse_time(text) - self.clock.now(), timedelta(0)) + timedelta(milliseconds=5))

    def add_group(self, target: str, ports: str) -> str:
        group: str = self.client("ec2").create_security_group(
            GroupName=f"{target}-{len(self.groups.get(target, []))}", Description="test", VpcId=self.vpc
        )["GroupId"]
        tags = {"knock:stack": STACK, "knock:target": target, "knock:ports": ports}
        self.client("ec2").create_tags(
            Resources=[group], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
        )
        self.groups[target] = sorted([*self.groups.get(target, []), group])
        self.forget()
        return group

    @property
    def vpc(self) -> str:
        vpcs = self.client("ec2").describe_vpcs()["Vpcs"]
        vpc: str = vpcs[0]["VpcId"]
        return vpc

    def add_key(self, name: str, **tags: str) -> str:
        key: str = self.client("apigateway").create_api_key(
            name=name,
            enabled=True,
            tags={f"knock:{tag.replace('_', '-')}": value for tag, value in tags.items()},
        )["id"]
        self.keys[name] = key
        return key

    def forget(self) -> None:
        """Have every function start cold: caches are gone."""
        for module in MODULES:
            module.wiring.cache_clear()


class _Functions:
    """Lambda's Invoke, as the API calls it."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock

    def invoke(
        self,
        FunctionName: str,  # noqa: N803 - boto3's names
        Payload: str,  # noqa: N803
        InvocationType: str = "RequestResponse",  # noqa: N803
    ) -> dict[str, Any]:
        if InvocationType == "Event":
            later = (FunctionName, Payload.encode())
            threading.Thread(target=self._knock.invoke_later, args=later, daemon=True).start()
            return {"StatusCode": 202}
        result = self._knock.invoke(FunctionName, Payload.encode())
        answer: dict[str, Any] = {"Payload": io.BytesIO(result.payload)}
        return answer | ({"FunctionError": result.function_error} if result.function_error else {})


@contextmanager
def running(**environment: str) -> Iterator[Knock]:
    """Run Knock with alice, bob, operator and ci, and the targets bastion (two groups) and web (one)."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT | environment))
        clock = Clock()
        stack.callback(clock.close)
        simpledb.install()
        ec2.install()
        operators.install()
        stack.enter_context(mock_aws(config={"stepfunctions": {"execute_state_machine": True}}))
        holder: list[Knock] = []

        def invoke(arn: str, payload: bytes) -> InvocationResult:
            return holder[0].invoke(arn, payload)

        deliveries = events.install(lambda arn, payload: holder[0].invoke_later(arn, payload), clock=clock)
        stack.callback(deliveries.shutdown)
        made = engine.install(invoke, clock=clock, publish=deliveries.publish)
        stack.callback(made.shutdown)
        knock = Knock(clock, made, deliveries)
        holder.append(knock)
        for module in (wiring, *MODULES):
            if hasattr(module, "now"):
                stack.enter_context(mock.patch.object(module, "now", clock.now))
        stack.enter_context(
            mock.patch.object(
                wiring.metrics,
                "add_metric",
                lambda name, unit, value: knock.metrics.append((name, value)),  # noqa: ARG005
            )
        )
        stack.enter_context(mock.patch.object(api.ApiWiring, "functions", _Functions(knock)))
        knock.forget()
        stack.callback(knock.forget)
        _build(knock)
        yield knock


def _build(knock: Knock) -> None:
    knock.client("sdb").create_domain(DomainName=os.environ["TRAIL_DOMAIN"])
    definition = (ROOT / "statemachine" / "grant.asl.json").read_text()
    for name in ("Authorize", "Revoke"):
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{STACK}-{name.lower()}"
        definition = definition.replace(f"${{{name}FunctionArn}}", arn)
    knock.client("stepfunctions").create_state_machine(
        name=f"{STACK}-grants", definition=definition, roleArn=f"arn:aws:iam::{ACCOUNT}:role/test"
    )
    rule = knock.client("events")
    pattern = {
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {"stateMachineArn": [MACHINE], "status": ["ABORTED", "FAILED", "TIMED_OUT"]},
    }
    rule.put_rule(Name="stopped", EventPattern=json.dumps(pattern))
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{STACK}-stopped"
    rule.put_targets(Rule="stopped", Targets=[{"Id": "stopped", "Arn": arn}])
    for target, ports, count in (("bastion", "22/tcp", 2), ("web", "80/tcp 443/tcp", 1)):
        for _ in range(count):
            knock.add_group(target, ports)
    everyone = {"targets": "bastion web", "max_duration": "24h"}
    knock.add_key("alice", **everyone)
    knock.add_key("bob", **everyone)
    knock.add_key("operator", targets="*", max_duration="24h", operator="true")
    knock.add_key("ci", **everyone, any_source="/28 /60")


def at(text: str) -> datetime:
    from grants.values import parse_time

    return parse_time(text)
