"""Knock in one process: the functions as they are, on the mended emulator, with a movable clock.

For tests that need every path within reach (faults, the API's error paths, the state machine), and for
measuring coverage. The end-to-end tests run the same functions in processes of their own, over HTTP.

Events reach the functions, tasks run as Lambda tasks, and `clock.advance` ends a Wait of hours at once.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from unittest import mock

import boto3
from botocore.model import OperationModel
from botocore.validate import ParamValidator
from moto import mock_aws
from moto.stepfunctions.parser.api import ExecutionStatus
from moto.stepfunctions.parser.models import stepfunctions_parser_backends as stepfunctions_backends

import api
import authorize
import guard
import revoke
from grants import wiring
from grants.ledger import Ledger, decode
from local import dynamodb, ec2, engine, events, operators, simpledb
from local.aws import make_tables
from local.clock import Clock
from local.deployment import Deployment, Table
from local.invocation import InvocationResult, Workers
from local.template import Place, load
from tests.conftest import ROOT

REGION, ACCOUNT, STACK = "eu-west-1", "123456789012", "knock"
MACHINE = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
CLOSINGS = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-closings"
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "KNOCK_STACK": STACK,
    "TRAIL_STORE": "simpledb",
    "TRAIL_DOMAIN": f"{STACK}-trail-1abc",
    "LEDGER_DOMAIN": f"{STACK}-ledger-1abc",
    "REFUSALS_DOMAIN": f"{STACK}-refusals-1abc",
    "TRAIL_REGION": REGION,
    "STATE_MACHINE_ARN": MACHINE,
    "CLOSINGS_ARN": CLOSINGS,
    "REVOKE_FUNCTION": f"{STACK}-revoke",
    "DEFAULT_DURATION": "24h",
    "MAX_DURATION": "24h",
    "MAX_LIVE": "20",
    "RULES_PER_GROUP": "60",
    "POWERTOOLS_SERVICE_NAME": f"{STACK}-test",
    "POWERTOOLS_METRICS_NAMESPACE": "Knock",
    "POWERTOOLS_LOG_LEVEL": os.environ.get("POWERTOOLS_LOG_LEVEL", "INFO"),
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
}
HANDLERS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    f"{STACK}-api": api.handler,
    f"{STACK}-authorize": authorize.handler,
    f"{STACK}-revoke": revoke.handler,
    f"{STACK}-guard": guard.handler,
}
DOMAINS = ("TRAIL", "LEDGER", "REFUSALS")
MODULES = (api, authorize, guard, revoke)
THREADS = "threads"  # in Knock.busy, beside the functions: work handed over to the embedded AWS's threads


@cache
def _session() -> boto3.Session:
    """Give the session of all clients: it keeps botocore's models, which take longer to read than a grant."""
    return boto3.Session()


def check_arguments(params: dict[str, Any], model: OperationModel, **_named: object) -> None:
    """Hold a function's call against the model, as botocore would: its clients leave that to AWS."""
    if model.input_shape is None:
        return
    report = ParamValidator().validate(params, model.input_shape)
    assert not report.has_errors(), f"{model.name}: {report.generate_report()}"


wiring._session().events.register("before-parameter-build", check_arguments)


@cache
def _client(service: Any) -> Any:
    """Make a client once: it keeps no state of a run, and takes as long to make as several calls."""
    return _session().client(service, region_name=REGION)


@cache
def _tables() -> tuple[Table, ...]:
    """Read the tables that the template makes."""
    template = load(ROOT / "template.yaml", Place(STACK, REGION, ACCOUNT), {"TrailStore": "dynamodb"})
    return Deployment(template).tables


class Crash(BaseException):
    """A function's process ends at once, and does nothing afterwards."""


class Context:
    """The part of Lambda's context that Powertools reads."""

    function_name = "test"
    memory_limit_in_mb = 256
    invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:test"
    aws_request_id = "00000000-0000-0000-0000-000000000000"


@dataclass
class Answer:
    """An answer of the API."""

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
    before_invoke: Callable[[str, Any], None] = lambda _name, _payload: None
    around: Callable[[str], AbstractContextManager[None]] = lambda _name: nullcontext()
    busy: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.engine.workers = _Counted(self.engine.workers, self)  # type: ignore[assignment]
        self.deliveries._workers = _Counted(self.deliveries._workers, self)  # type: ignore[assignment]

    def at_work(self) -> bool:
        """Say whether a function or a delivery of an event is under way, or handed over to a thread."""
        self.engine.catch_up()
        return any(self.busy.values())

    def client(self, service: Any) -> Any:
        return _client(service)

    # ------------------------------------------------------------------ functions

    def invoke(self, arn: str, payload: bytes) -> InvocationResult:
        """Run a function as Lambda does: an error is an answer with `errorType`."""
        name = arn.rpartition(":")[2]
        event = json.loads(payload)
        with self.lock:
            self.busy[name] += 1
        try:
            self.before_invoke(name, event)
            with self.around(name):
                return InvocationResult(json.dumps(HANDLERS[name](event, Context())).encode())
        except Crash as crash:
            failure = {"errorType": "Runtime.ExitError", "errorMessage": f"RequestId: 0 Error: {crash}"}
            return InvocationResult(json.dumps(failure).encode(), "Unhandled")
        except Exception as error:  # noqa: BLE001  # as Lambda's runtime does
            failure = {"errorType": type(error).__name__, "errorMessage": str(error)}
            return InvocationResult(json.dumps(failure).encode(), "Unhandled")
        finally:
            with self.lock:
                self.busy[name] -= 1

    def stop(self) -> None:
        """Start nothing more, and wait until no function is at work: tests share the embedded AWS."""
        self.deliveries.shutdown()
        self.engine.shutdown()
        deadline = time.monotonic() + 5
        while self.busy.total() > self.busy[THREADS] and time.monotonic() < deadline:
            time.sleep(0.005)

    def call(self, name: str, event: Any) -> Any:
        """Run a function and give its answer. Raises AssertionError where the function fails."""
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
        """Knock, and expect 201. Of a renewal, wait too until its authorize task has ended the old grant."""
        answer = self.request("POST", "/knock", key=key, body=body or None, caller=caller)
        assert answer.status == 201, answer.text
        if "renews" in body:
            self.wait(lambda: not self.busy[f"{STACK}-authorize"], "the renewal never ends")
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
        rules = self.client("ec2").describe_security_group_rules(Filters=filters)["SecurityGroupRules"]
        return {
            (rule["GroupId"], rule["FromPort"], rule.get("CidrIpv4") or rule.get("CidrIpv6"))
            for rule in rules
            if not rule["IsEgress"]
        }

    def of_grant(self, grant_id: str) -> list[dict[str, Any]]:
        """Describe the rules that carry a grant's tag."""
        return self._described("tag:knock:grant", grant_id)

    def of_group(self, group: str) -> list[dict[str, Any]]:
        """Describe the rules of a security group."""
        return self._described("group-id", group)

    def _described(self, name: str, value: str) -> list[dict[str, Any]]:
        filters = [{"Name": name, "Values": [value]}]
        answer = self.client("ec2").describe_security_group_rules(Filters=filters)
        return [rule for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]]

    def add_rule(self, group: str, port: int, cidr: str = "203.0.113.7/32", to: int = 0, **tags: str) -> str:
        """Add a rule as an operator does; with `stack` or `grant`, one that carries Knock's tags."""
        pairs = [{"Key": f"knock:{name}", "Value": value} for name, value in tags.items()]
        permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": to or port}
        answer = self.client("ec2").authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[permission | {"IpRanges": [{"CidrIp": cidr}]}],
            TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": pairs}] if pairs else [],
        )
        rule: str = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule

    def items(self, domain: str) -> dict[str, dict[str, list[str]]]:
        """Read every item of the `trail`, the `ledger` or the `refusals`, in the current store."""
        name = os.environ[f"{domain.upper()}_DOMAIN"]
        if os.environ["TRAIL_STORE"] == "dynamodb":
            rows = self.client("dynamodb").scan(TableName=name, ConsistentRead=True)["Items"]
            return {
                item.pop("name")["S"]: {key: value.get("SS") or [value["S"]] for key, value in item.items()}
                for item in rows
            }
        answer = self.client("sdb").select(
            SelectExpression=f"select * from `{name}` limit 2500",  # noqa: S608  # no value in it
            ConsistentRead=True,
        )
        items: dict[str, dict[str, list[str]]] = {}
        for item in answer.get("Items", []):
            values = items.setdefault(item["Name"], {})
            for pair in item["Attributes"]:
                values.setdefault(pair["Name"], []).append(pair["Value"])
        return items

    def write(self, domain: str, item: str, **values: str) -> None:
        """Change an item past the functions."""
        store = os.environ[f"{domain.upper()}_DOMAIN"]
        if os.environ["TRAIL_STORE"] == "dynamodb":
            self.client("dynamodb").update_item(
                TableName=store,
                Key={"name": {"S": item}},
                AttributeUpdates={
                    name: {"Value": {"S": text}, "Action": "PUT"} for name, text in values.items()
                },
            )
        else:
            attributes = [{"Name": name, "Value": text, "Replace": True} for name, text in values.items()]
            self.client("sdb").put_attributes(DomainName=store, ItemName=item, Attributes=attributes)

    def lose(self, domain: str, item: str) -> None:
        """Delete an item past the functions."""
        store = os.environ[f"{domain.upper()}_DOMAIN"]
        if os.environ["TRAIL_STORE"] == "dynamodb":
            self.client("dynamodb").delete_item(TableName=store, Key={"name": {"S": item}})
        else:
            self.client("sdb").delete_attributes(DomainName=store, ItemName=item)

    def refusals(self) -> list[dict[str, str]]:
        """List the recorded refusals, in their order."""
        refusals = [{k: v[0] for k, v in item.items()} for item in self.items("refusals").values()]
        return sorted(refusals, key=lambda refusal: refusal["order"])

    def ledger(self, source: str = "203.0.113.7/32") -> Ledger:
        """Read a source's ledger."""
        item = self.items("ledger").get(source)
        if not item:
            return Ledger(source)
        text = "".join(item[f"part_{number:03}"][0] for number in range(int(item["parts"][0])))
        return decode(text.encode(), source)

    def closings(self) -> list[str]:
        """List the states of the closings' executions."""
        listed = self.client("stepfunctions").list_executions(stateMachineArn=CLOSINGS)["executions"]
        return [execution["status"] for execution in listed]

    def execution(self, grant_id: str) -> dict[str, Any]:
        arn = MACHINE.replace(":stateMachine:", ":execution:") + f":{grant_id}"
        execution: dict[str, Any] = self.client("stepfunctions").describe_execution(executionArn=arn)
        return execution

    def running(self, machine: str) -> list[str]:
        """List the names of a state machine's running executions, newest first, as ListExecutions does.

        Past the API, which takes a hundred times as long: tests call this while they wait.
        """
        executions = stepfunctions_backends[ACCOUNT][REGION].describe_state_machine(machine).executions[:]
        return [
            execution.name
            for execution in reversed(executions)
            if execution.exec_status == ExecutionStatus.RUNNING
        ]

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
        self, condition: Callable[[], Any], why: str, seconds: float = 10, step: timedelta | None = None
    ) -> Any:
        """Poll until `condition()` is true, moving the clock by `step` each time. Fails with `why`.

        The clock does not jump while anything is at work, or its calls would seem to take minutes; unless
        a function is held up on purpose, for half a second.
        """
        deadline, jumped = time.monotonic() + seconds, 0.0
        while True:
            answer = condition()
            if answer:
                return answer
            assert time.monotonic() < deadline, why
            if step and (not self.at_work() or time.monotonic() > jumped + 0.5):
                self.clock.advance(step)
                jumped = time.monotonic()
            else:
                time.sleep(0.005)

    def wait_status(
        self, grant_id: str, status: str, seconds: float = 10, step: timedelta | None = None
    ) -> None:
        """Poll until an execution has ended as expected; fail at once when it ended otherwise."""

        def ended() -> bool:
            if grant_id in self.running(MACHINE):
                return False
            execution = self.execution(grant_id)
            assert execution["status"] in ("RUNNING", status), execution
            return bool(execution["status"] == status)

        self.wait(ended, f"{grant_id} is not {status}", seconds, step)

    @contextmanager
    def ticking(self, step: timedelta) -> Iterator[None]:
        """Move the clock by `step` a hundred times a second, while a call waits for retries."""
        stopped = threading.Event()

        def tick() -> None:
            while not stopped.wait(0.01):
                self.clock.advance(step)

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

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
            tags={f"knock:{tag.replace('_', '-')}": value for tag, value in ({"name": name} | tags).items()},
        )["id"]
        self.keys[name] = key
        return key

    def choose(self, store: str, word: str = "2def") -> None:
        """Have the stack use a store from now on, as CloudFormation does when TrailStore is changed.

        `word` is part of the names of its domains or tables, which are made where they do not exist.
        """
        names = {f"{name}_DOMAIN": f"{STACK}-{name.lower()}-{word}" for name in DOMAINS}
        os.environ.update(names, TRAIL_STORE=store)
        _make_store(self)
        self.forget()

    def forget(self) -> None:
        """Have every function start cold, with empty caches."""
        for module in MODULES:
            module.wiring.cache_clear()


class _Counted:
    """Threads of the embedded AWS: their work counts as under way from the moment it is handed over."""

    def __init__(self, workers: Workers, knock: Knock) -> None:
        self._workers = workers
        self._knock = knock

    def submit(self, work: Callable[[], None]) -> None:
        self._count(1)

        def counted() -> None:
            try:
                work()
            finally:
                self._count(-1)

        self._workers.submit(counted)

    def close(self) -> None:
        self._workers.close()

    def _count(self, change: int) -> None:
        with self._knock.lock:
            self._knock.busy[THREADS] += change


class Hurried:
    """The `time` of a module: a pause ends as soon as nothing is at work, since more time changes nothing."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock
        self._spared = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._spared

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._knock.at_work():
                self._spared += left
                return
            time.sleep(min(left, 0.002))


class _Functions:
    """Lambda's Invoke, as the API calls it."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock

    def invoke(
        self,
        FunctionName: str,  # noqa: N803 - boto3's names
        Payload: str,  # noqa: N803
    ) -> dict[str, Any]:
        result = self._knock.invoke(FunctionName, Payload.encode())
        answer: dict[str, Any] = {"Payload": io.BytesIO(result.payload)}
        return answer | ({"FunctionError": result.function_error} if result.function_error else {})


class _Readers:
    """The API's other threads, which work in its request's context: a call of theirs counts as the API's."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._threads.submit(contextvars.copy_context().run, call, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=False)


@contextmanager
def running(store: str = "simpledb", **environment: str) -> Iterator[Knock]:
    """Run Knock with alice, bob, operator and ci, and the targets bastion (two groups) and web (one).

    `store` is simpledb or dynamodb.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT | {"TRAIL_STORE": store} | environment))
        clock = Clock()
        stack.callback(clock.close)
        simpledb.install()
        dynamodb.install()
        ec2.install()
        operators.install()
        stack.enter_context(mock_aws(config={"stepfunctions": {"execute_state_machine": True}}))
        holder: list[Knock] = []

        def invoke(arn: str, payload: bytes) -> InvocationResult:
            return holder[0].invoke(arn, payload)

        deliveries = events.install(invoke, clock=clock)
        stack.callback(deliveries.shutdown)
        step_functions = engine.install(invoke, clock=clock, publish=deliveries.publish)
        stack.callback(step_functions.shutdown)
        knock = Knock(clock, step_functions, deliveries)
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
        readers = _Readers()
        stack.callback(readers.close)
        stack.enter_context(mock.patch.object(api.ApiWiring, "readers", readers))
        knock.forget()
        stack.callback(knock.forget)
        stack.callback(knock.stop)
        _build(knock)
        yield knock


def _make_store(knock: Knock) -> None:
    """Make what the environment names: domains, or tables as the template makes them."""
    if os.environ["TRAIL_STORE"] == "dynamodb":
        names = {f"{name.title()}Table": os.environ[f"{name}_DOMAIN"] for name in DOMAINS}
        make_tables(
            [replace(table, name=names[table.logical_id]) for table in _tables()], knock.client("dynamodb")
        )
    else:
        for name in DOMAINS:
            knock.client("sdb").create_domain(DomainName=os.environ[f"{name}_DOMAIN"])


def _build(knock: Knock) -> None:
    _make_store(knock)
    for file, machine in (("grant", "grants"), ("close", "closings")):
        definition = (ROOT / "statemachine" / f"{file}.asl.json").read_text()
        for name in ("Authorize", "Revoke"):
            arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{STACK}-{name.lower()}"
            definition = definition.replace(f"${{{name}FunctionArn}}", arn)
        knock.client("stepfunctions").create_state_machine(
            name=f"{STACK}-{machine}", definition=definition, roleArn=f"arn:aws:iam::{ACCOUNT}:role/test"
        )
    rule = knock.client("events")
    pattern = {
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {"stateMachineArn": [MACHINE], "status": ["ABORTED", "FAILED", "TIMED_OUT"]},
    }
    rule.put_rule(Name="stopped", EventPattern=json.dumps(pattern))
    role = f"arn:aws:iam::{ACCOUNT}:role/test"
    rule.put_targets(Rule="stopped", Targets=[{"Id": "stopped", "Arn": CLOSINGS, "RoleArn": role}])
    for target, ports, count in (("bastion", "22/tcp", 2), ("web", "80/tcp 443/tcp", 1)):
        for _ in range(count):
            knock.add_group(target, ports)
    everyone = {"targets": "bastion web", "max_duration": "24h"}
    knock.add_key("alice", **everyone)
    knock.add_key("bob", **everyone)
    knock.add_key("operator", targets="*", max_duration="24h", operator="true")
    knock.add_key("ci", **everyone, any_source="/28 /60", max_live="1000")


def forged(value: dict[str, Any]) -> dict[str, Any]:
    """Give an execution's input the id that follows from its content, as any attacker can."""
    content = {name: part for name, part in value.items() if name != "grant_id"}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    who, _, stamp, _ = value["grant_id"].split("_")
    where = value["source"].removesuffix("/32").removesuffix("/128")
    for letter in ".:/":
        where = where.replace(letter, "-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return content | {"grant_id": f"{who}_{where}_{stamp}_{digest}"}


def at(text: str) -> datetime:
    from grants.values import parse_time

    return parse_time(text)
