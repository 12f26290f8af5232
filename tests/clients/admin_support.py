"""What the tests of knock-admin share: an AWS account in this process, and a way to run the program in it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest
from botocore.client import ClientCreator
from botocore.exceptions import ClientError
from botocore.loaders import create_loader
from moto import mock_aws
from moto.awslambda_simple.models import LambdaSimpleBackend

import local.dynamodb
import local.ec2
import local.engine
import local.operators
import local.simpledb
from grants.dynamodb import DynamoDb
from grants.ledger import Ledger, Own, claim, name_attempt, record_results
from grants.ledgers import Ledgers
from grants.refusals import Refusals
from grants.simpledb import SimpleDb
from grants.store import Store
from grants.trail import Trail
from grants.values import Grant, Opened, Ports, Principal, RuleKey, Target, cut_to_milliseconds, round_up
from knock_admin import aws as admin_aws
from knock_admin import cli
from knock_admin.cli import main
from local.aws import make_tables
from local.deployment import Deployment, Table
from local.invocation import InvocationResult
from local.template import Place, load
from tests.conftest import ROOT

REGION = "eu-central-1"
TRAIL_REGION = "eu-west-1"
LOADER = create_loader()
ACCOUNT = "123456789012"
STACK = "knock"
MACHINE = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
CLOSINGS = MACHINE.replace("-grants", "-closings")
TRAIL, LEDGER, REFUSALS = DOMAINS = [f"{STACK}-{kind}-1c2fa620" for kind in ("trail", "ledger", "refusals")]
MODULES = ("api", "authorize", "revoke", "guard")
STORES = ("simpledb", "dynamodb")


_classes: dict[str, Any] = {}
_make_class = ClientCreator._create_client_class  # type: ignore[attr-defined]  # not in the stubs


def client_class(self: ClientCreator, service: str, model: Any) -> Any:
    """Make the class of a service's clients, once: EC2's has 700 methods."""
    if service not in _classes:
        _classes[service] = _make_class(self, service, model)
    return _classes[service]


@functools.cache
def client(service: str, region: str = REGION) -> Any:
    """Give a client for a test's own use; clients hold no state of an account, so all tests share them."""
    return boto3.client(service, region)  # type: ignore[call-overload]  # the overloads want a literal


@functools.cache
def tables() -> tuple[Table, ...]:
    """Read the tables that the template makes."""
    template = load(ROOT / "template.yaml", Place(STACK, REGION, ACCOUNT), {"TrailStore": "dynamodb"})
    return Deployment(template).tables


TABLES = dict(zip(DOMAINS, ("TrailTable", "LedgerTable", "RefusalsTable"), strict=True))
"""The template's tables, by the domains in whose place they are."""


@dataclass
class CommandResult:
    """What a run of the program gave back: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class World:
    """An account with one stack of Knock, and an interface behind an Elastic IP."""

    capsys: pytest.CaptureFixture[str]
    functions: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """What is run as the functions, by module. One that raises fails as a function of Lambda's does."""
    keeps: str = "simpledb"
    """The store that the trail is in: simpledb or dynamodb."""

    def __post_init__(self) -> None:
        self.ec2: Any = client("ec2")
        self.elb: Any = client("elbv2")
        self.gateway: Any = client("apigateway")
        self.sdb: Any = client("sdb", TRAIL_REGION)
        self.dynamodb: Any = client("dynamodb")
        self.make_stack(STACK)
        self.make_store()
        self.use_store()
        self.vpc = self.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0][
            "VpcId"
        ]
        in_vpc = [{"Name": "vpc-id", "Values": [self.vpc]}]
        self.subnets = [subnet["SubnetId"] for subnet in self.ec2.describe_subnets(Filters=in_vpc)["Subnets"]]
        self.office = self.make_group("office")
        self.eni = self.make_interface(self.office)
        address = self.ec2.allocate_address(Domain="vpc")
        self.eip, self.allocation = address["PublicIp"], address["AllocationId"]
        self.ec2.associate_address(AllocationId=self.allocation, NetworkInterfaceId=self.eni)

    def make_store(self) -> None:
        """Create the store's domains or tables."""
        if self.keeps == "simpledb":
            for domain in DOMAINS:
                self.sdb.create_domain(DomainName=domain)
        else:
            make_tables(tables(), self.dynamodb)

    def use_store(self) -> None:
        """Open the trail, the ledgers and the refusals in the store with the functions' own adapters."""
        self.trail = Trail(self.store(TRAIL))
        self.ledgers = Ledgers(self.store(LEDGER))
        self.refusals = Refusals(self.store(REFUSALS))

    def store(self, name: str) -> Store:
        """Give a domain, or the table in its place, as the functions use it."""
        if self.keeps == "simpledb":
            return SimpleDb(self.sdb, name)
        return DynamoDb(self.dynamodb, self.named(name))

    def named(self, domain: str) -> str:
        """Give the name of a domain, or of the table that is in its place."""
        if self.keeps == "simpledb":
            return domain
        return next(table.name for table in tables() if table.logical_id == TABLES[domain])

    def change_store(self) -> None:
        """Change the stack's store, as a deployment with another TrailStore does: the old store stays."""
        self.keeps = {"simpledb": "dynamodb", "dynamodb": "simpledb"}[self.keeps]
        for module in MODULES:
            function = f"{STACK}-{module}"
            known = client("lambda").get_function_configuration(FunctionName=function)["Environment"]
            known["Variables"] |= self.places()
            client("lambda").update_function_configuration(FunctionName=function, Environment=known)
        with suppress(ClientError):  # it has been made before
            self.make_store()
        self.use_store()

    def places(self) -> dict[str, str]:
        """Give the functions' environment variables that name the store, its parts and its region."""
        return {
            "TRAIL_STORE": self.keeps,
            "TRAIL_DOMAIN": self.named(TRAIL),
            "LEDGER_DOMAIN": self.named(LEDGER),
            "REFUSALS_DOMAIN": self.named(REFUSALS),
            "TRAIL_REGION": TRAIL_REGION if self.keeps == "simpledb" else REGION,
        }

    def make_stack(self, name: str) -> None:
        role = client("iam").create_role(RoleName=f"{name}-role", AssumeRolePolicyDocument="{}")["Role"][
            "Arn"
        ]
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr("api.py", "")
        functions = client("lambda")
        for module in MODULES:
            functions.create_function(
                FunctionName=f"{name}-{module}",
                Runtime="python3.13",
                Role=role,
                Handler=f"{module}.handler",
                Code={"ZipFile": code.getvalue()},
                Environment={
                    "Variables": {
                        "KNOCK_STACK": name,
                        **self.places(),
                        "STATE_MACHINE_ARN": MACHINE,
                        "CLOSINGS_ARN": CLOSINGS,
                        **({"MAX_LIVE": "20", "MAX_DURATION": "24h"} if module == "api" else {}),
                    }
                },
            )
        self.gateway.create_usage_plan(
            name=name, throttle={"rateLimit": 5.0, "burstLimit": 20}, quota={"limit": 5000, "period": "DAY"}
        )

    def plan_stage(self) -> None:
        """Connect the stack's usage plan to a stage of an API, as a deployment does."""
        api = self.gateway.create_rest_api(name=STACK)["id"]
        root = self.gateway.get_resources(restApiId=api)["items"][0]["id"]
        self.gateway.put_method(restApiId=api, resourceId=root, httpMethod="GET", authorizationType="NONE")
        self.gateway.put_integration(restApiId=api, resourceId=root, httpMethod="GET", type="MOCK")
        self.gateway.create_deployment(restApiId=api, stageName="v1")
        plan = self.gateway.get_usage_plans()["items"][0]["id"]
        change = {"op": "add", "path": "/apiStages", "value": f"{api}:v1"}
        self.gateway.update_usage_plan(usagePlanId=plan, patchOperations=[change])

    def make_group(self, name: str, vpc: str | None = None) -> str:
        answer = self.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc or self.vpc)
        return str(answer["GroupId"])

    def tag(self, group: str, tags: dict[str, str]) -> None:
        self.ec2.create_tags(
            Resources=[group], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
        )

    def make_interface(self, *groups: str, subnet: str | None = None) -> str:
        answer = self.ec2.create_network_interface(SubnetId=subnet or self.subnets[0], Groups=list(groups))
        return str(answer["NetworkInterface"]["NetworkInterfaceId"])

    def make_balancer(self, kind: str = "application", *, groups: list[str] | None = None) -> str:
        more = {"SecurityGroups": groups} if groups else {}
        answer = self.elb.create_load_balancer(Name=f"lb-{kind}", Subnets=self.subnets[:2], Type=kind, **more)
        return str(answer["LoadBalancers"][0]["LoadBalancerArn"])

    def groups_of(self, interface: str) -> list[str]:
        description = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])[
            "NetworkInterfaces"
        ][0]
        return [group["GroupId"] for group in description["Groups"]]

    def open_rule(self, group: str, cidr: str, *, port: int = 22, protocol: str = "tcp") -> None:
        ranges = {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}
        ports = {} if protocol == "-1" else {"FromPort": port, "ToPort": port}
        self.ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[{"IpProtocol": protocol, **ports, **ranges}]
        )

    def group(self, group: str) -> dict[str, Any]:
        description: dict[str, Any] = self.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
        return description

    def record(
        self,
        name: str = "alice",
        *,
        source: str = "203.0.113.7/32",
        target: str = "bastion",
        at: datetime | None = None,
        lasts: timedelta = timedelta(hours=8),
        reason: str = "",
        nonce: str = "",
        renews: str | None = None,
        open_: bool = True,
        group: str = "sg-0a",
        key: str | None = None,
    ) -> Grant:
        """Record a grant in the trail, as the functions do; `key` is the id of the principal's key."""
        at = cut_to_milliseconds(at or datetime.now(timezone.utc))
        principal = Principal(key or f"id-{name}"[:10], name)
        targets = (Target(target, (Ports.parse("22/tcp"),), (group,)),)
        grant = Grant.decide(
            principal, source, targets, at, round_up(at + lasts), reason=reason, renews=renews, nonce=nonce
        )
        self.trail.record(grant)
        if open_:
            rule = f"sgr-{hashlib.sha256(grant.id.encode()).hexdigest()[:17]}"
            opened = Opened(RuleKey(group, targets[0].ports[0], source), rule, target)
            self.trail.authorize(grant.id, at, [opened])
        return grant

    def make_machines(self, *arns: str) -> None:
        """Make state machines, whose executions run on."""
        definition = {"StartAt": "W", "States": {"W": {"Type": "Wait", "Seconds": 999, "End": True}}}
        for arn in arns:
            client("stepfunctions").create_state_machine(
                name=arn.rpartition(":")[2],
                definition=json.dumps(definition),
                roleArn=f"arn:aws:iam::{ACCOUNT}:role/knock-role",
            )

    def start(self, grant: Grant, name: str | None = None) -> Grant:
        """Start a grant's execution, or one of another name with the grant's input."""
        client("stepfunctions").start_execution(
            stateMachineArn=MACHINE, name=name or grant.id, input=json.dumps(grant.as_input())
        )
        return grant

    def refuse(
        self,
        refusal_id: str = "refusal_1",
        name: str = "eve",
        at: datetime | None = None,
        key: str | None = None,
    ) -> None:
        """Record a refusal, as the API does."""
        self.refusals.record(
            refusal_id,
            Principal(key or f"id-{name}"[:10], name),
            "203.0.113.9/32",
            at or datetime.now(timezone.utc),
            "POST /knock",
            "knock:targets",
            "may not open web",
        )

    def claim(self, source: str, *, grants: int = 1, rules: int = 0) -> None:
        """Put claims, and open rules, of so many grants into a source's ledger, as the functions do."""
        now = datetime.now(timezone.utc)
        keys = [RuleKey("sg-0a", Ports(port, port, "tcp"), source) for port in range(1, rules + 1)]
        ledger = Ledger(source)
        for number in range(grants):
            claimed = keys if number == 0 else []
            attempt = name_attempt(now, str(number))
            ledger = claim(ledger, f"grant_{number}", now + timedelta(hours=8), claimed, attempt, now)
            results = {key: Own(f"sgr-{key.ports.first:03}") for key in claimed}
            ledger = record_results(ledger, f"grant_{number}", attempt, results, now)
        self.ledgers.write(self.ledgers.read(source), ledger)

    def run(self, *argv: str) -> CommandResult:
        """Run the program in the account's region; give its exit code and what it printed."""
        self.capsys.readouterr()
        try:
            code = main([*argv, "--region", REGION])
        except SystemExit as refused:  # argparse's way to refuse a command line
            code = int(refused.code or 0)
        output = self.capsys.readouterr()
        return CommandResult(code, output.out, output.err)

    def ok(self, *argv: str) -> CommandResult:
        """Run the program, which must succeed."""
        result = self.run(*argv)
        assert result.code == 0, result.err
        return result


def make_worlds(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Give a world with each store in turn: `world = pytest.fixture(params=STORES)(make_worlds)`."""
    yield from make_world(capsys, monkeypatch, request.param)


def answer_for(world: World) -> Callable[..., Any]:
    """Make the method that moto calls in place of a function's container."""

    def invoke(
        self: Any, function_name: str, qualifier: str | None, body: Any, headers: Any, response_headers: Any
    ) -> bytes:
        module = function_name.rpartition("-")[2]
        try:
            answer = world.functions[module](json.loads(body or "null"))
        except Exception as error:  # noqa: BLE001 - a function's failure is an answer of Lambda's
            response_headers["x-amz-function-error"] = "Unhandled"
            answer = {"errorType": type(error).__name__, "errorMessage": str(error)}
        return json.dumps(answer).encode()

    return invoke


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give an empty account, with moto's gaps mended as the local stack mends them."""
    local.dynamodb.install()
    local.ec2.install()
    local.operators.install()
    local.simpledb.install()
    # Reading botocore's models takes most of a test's time: once is enough. They do not change.
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    monkeypatch.setattr(ClientCreator, "_create_client_class", client_class)
    monkeypatch.setattr("moto.ec2.models.amis.settings.ec2_load_default_amis", lambda: False)
    with mock_aws(config={"lambda": {"use_docker": False}}):
        # A mend of moto's Step Functions lasts for the process: make it here too, whichever test ran first.
        runs = local.engine.install(lambda _arn, _payload: InvocationResult(b"{}"))
        yield
        runs.shutdown()


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Iterator[None]:
    """Let the n-th changing call (from 1) fail: before it is sent, or after AWS has done it."""
    changes = 0
    original = {name: getattr(admin_aws.Aws, name) for name in ("_hold_back", "_remember")}
    error = ClientError({"Error": {"Code": "InternalError", "Message": "injected"}}, "Injected")

    def count(call: admin_aws.Call) -> None:
        nonlocal changes
        changes += not call.reads
        if not call.reads and changes == number:
            raise error

    def hold_back(self: Any, model: Any, context: Any, **more: Any) -> Any:
        if not after:
            count(context["knock_call"])
        return original["_hold_back"](self, model=model, context=context, **more)

    def remember(self: Any, http_response: Any, context: Any, **more: Any) -> None:
        if after:
            count(context["knock_call"])
        original["_remember"](self, http_response=http_response, context=context, **more)

    with monkeypatch.context() as patch:
        patch.setattr(admin_aws.Aws, "_hold_back", hold_back)
        patch.setattr(admin_aws.Aws, "_remember", remember)
        yield


def make_world(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, keeps: str = "simpledb"
) -> Iterator[World]:
    """Give a world of its own to each test: `world = pytest.fixture(make_world)`."""
    with account(monkeypatch):
        world = World(capsys, keeps=keeps)
        monkeypatch.setattr(LambdaSimpleBackend, "invoke", answer_for(world))
        yield world


def run_later(seconds: float, action: Callable[[], None]) -> None:
    """Run an action in a thread of its own after some seconds."""
    threading.Timer(seconds, action).start()


class Api(HTTPServer):
    """A knock API that opens and closes a rule in the scratch group, as its attributes say."""

    def __init__(self, world: World) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.world = world
        self.opens = True
        self.closes = True
        self.accepts = 1  # the number of the first request that is let in with the key
        self.knows = 1  # the number of the first whoami that names the target
        self.keys: set[str] = set()
        self.status = "expired"
        self.group = ""
        self.closed = True
        self.refuses: int | None = None
        self.target = ""
        self.on_knock: Callable[[str], object] = lambda _group: None
        self.schedule: Callable[[float, Callable[[], None]], object] = run_later
        """Called at a knock with the seconds until its rule goes, and the function that revokes it."""
        self.asked: list[tuple[str, bool]] = []
        """The requests, each with whether the scratch group was a target at that time."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def close(self) -> None:
        """Revoke the rule that the knock authorized."""
        permission = {
            "IpProtocol": "tcp",
            "FromPort": 9,
            "ToPort": 9,
            "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
        }
        self.world.ec2.revoke_security_group_ingress(GroupId=self.group, IpPermissions=[permission])


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, *_: object) -> None:
        return

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def grant(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": "doctor_1",
            "status": status,
            "principal": {"id": "k", "name": self.server.target},
            "source": "203.0.113.7/32",
            "targets": [{"name": self.server.target, "ports": ["9/tcp"]}],
            "requested_at": "2026-11-23T21:17:19.123Z",
            "expires_at": "2026-11-23T21:17:30Z",
            "seconds_left": 10,
            "reason": None,
            "ended_at": None,
            "ended_by": None,
            "renews": None,
            "execution_arn": "arn",
            "caller": "203.0.113.7/32",
            **more,
        }

    def scratch(self) -> tuple[str, str]:
        """Find the scratch group and the target that its tags name; record the request."""
        groups = self.server.world.ec2.describe_security_groups()["SecurityGroups"]
        group = next(group for group in groups if group["GroupName"].startswith("knock-doctor-"))
        tags = {tag["Key"]: tag["Value"] for tag in group["Tags"]}
        target = tags.get("knock:target", "") if tags.get("knock:stack") == STACK else ""
        self.server.asked.append((f"{self.command} {self.path.split('/v1')[1].split('?')[0]}", bool(target)))
        return group["GroupId"], target

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["x-api-key"])
        _, target = self.scratch()
        if self.path.endswith("/whoami"):
            self.server.knows -= 1
            known = target if self.server.knows <= 0 else ""
            self.server.target = known or self.server.target
            targets = [{"name": known, "ports": ["9/tcp"]}] if known else []
            principal = {"id": "k", "name": self.server.target}
            self.answer(200, {"principal": principal, "source": "203.0.113.7/32", "targets": targets})
            return
        if "/grants/" not in self.path:
            self.server.accepts -= 1
            if self.server.accepts > 0:
                self.answer(403, {"message": "Forbidden"})
            else:
                self.answer(200, {"grants": [], "cursor": None})
            return
        events = [{"at": "2026-11-23T21:17:30.100Z", "event": "closed", "by": "knock"}] * self.server.closed
        self.answer(200, self.grant(self.server.status, events=events))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        group, _ = self.scratch()
        if self.server.refuses:
            self.answer(self.server.refuses, {"title": "Full", "detail": "every group is full"})
            return
        if self.server.opens:
            self.server.world.open_rule(group, "203.0.113.7/32", port=9)
        self.server.group = group
        self.server.on_knock(group)
        if self.server.closes:
            self.server.schedule(0.1, self.server.close)
        self.answer(201, self.grant("active"))


@contextmanager
def scratch_api(world: World) -> Iterator[Api]:
    """Run such an API."""
    server = Api(world)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Stop the program's clock at a moment."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment.astimezone(tz)

    monkeypatch.setattr(cli, "datetime", Clock)
