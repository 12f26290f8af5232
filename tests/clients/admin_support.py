"""What the tests of knock-admin share: an AWS account in this process, and a way to run the program in it."""

from __future__ import annotations

import functools
import io
import json
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import ClientCreator
from botocore.exceptions import ClientError
from botocore.loaders import create_loader
from moto import mock_aws
from moto.awslambda_simple.models import LambdaSimpleBackend

import local.ec2
import local.operators
import local.simpledb
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, Target, name_grant, round_up, show_time
from knock_admin import aws as admin_aws
from knock_admin import cli
from knock_admin.cli import main

ROOT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"
TRAIL_REGION = "eu-west-1"
LOADER = create_loader()
ACCOUNT = "123456789012"
STACK = "knock"
MACHINE = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-grants"
DOMAIN = "knock-Trail-1ABC"
MODULES = ("api", "authorize", "revoke", "stopped", "guard")


_classes: dict[str, Any] = {}
_make_class = ClientCreator._create_client_class  # type: ignore[attr-defined]  # not in the stubs


def client_class(self: ClientCreator, service: str, model: Any) -> Any:
    """Make the class of a service's clients, once: EC2's has 700 methods."""
    if service not in _classes:
        _classes[service] = _make_class(self, service, model)
    return _classes[service]


@functools.cache
def client(service: str, region: str = REGION) -> Any:
    """Give a client for a test's own use; they hold nothing of an account, so all tests share them."""
    return boto3.client(service, region)  # type: ignore[call-overload]  # the overloads want a literal


@dataclass
class Ran:
    """What a run of the program came to."""

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
    """What the functions answer, by module. One that raises fails as a function does."""

    def __post_init__(self) -> None:
        self.ec2: Any = client("ec2")
        self.elb: Any = client("elbv2")
        self.gateway: Any = client("apigateway")
        self.sdb: Any = client("sdb", TRAIL_REGION)
        self.make_stack(STACK)
        self.sdb.create_domain(DomainName=DOMAIN)
        self.trail = Trail(self.sdb, DOMAIN)
        self.vpc = self.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0][
            "VpcId"
        ]
        in_vpc = [{"Name": "vpc-id", "Values": [self.vpc]}]
        self.subnets = [each["SubnetId"] for each in self.ec2.describe_subnets(Filters=in_vpc)["Subnets"]]
        self.office = self.make_group("office")
        self.eni = self.make_interface(self.office)
        address = self.ec2.allocate_address(Domain="vpc")
        self.eip, self.allocation = address["PublicIp"], address["AllocationId"]
        self.ec2.associate_address(AllocationId=self.allocation, NetworkInterfaceId=self.eni)

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
                        "TRAIL_DOMAIN": DOMAIN,
                        "TRAIL_REGION": TRAIL_REGION,
                        "STATE_MACHINE_ARN": MACHINE,
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
        made = self.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc or self.vpc)
        return str(made["GroupId"])

    def make_interface(self, *groups: str, subnet: str | None = None) -> str:
        made = self.ec2.create_network_interface(SubnetId=subnet or self.subnets[0], Groups=list(groups))
        return str(made["NetworkInterface"]["NetworkInterfaceId"])

    def make_balancer(self, kind: str = "application", *, groups: list[str] | None = None) -> str:
        given = {"SecurityGroups": groups} if groups else {}
        made = self.elb.create_load_balancer(Name=f"lb-{kind}", Subnets=self.subnets[:2], Type=kind, **given)
        return str(made["LoadBalancers"][0]["LoadBalancerArn"])

    def groups_of(self, interface: str) -> list[str]:
        found = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"][0]
        return [group["GroupId"] for group in found["Groups"]]

    def open_rule(self, group: str, cidr: str, *, port: int = 22, protocol: str = "tcp") -> None:
        ranges = {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}
        ports = {} if protocol == "-1" else {"FromPort": port, "ToPort": port}
        self.ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[{"IpProtocol": protocol, **ports, **ranges}]
        )

    def group(self, group: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
        return found

    def record(
        self,
        name: str = "alice",
        *,
        source: str = "203.0.113.7/32",
        target: str = "bastion",
        at: datetime | None = None,
        lasts: timedelta = timedelta(hours=8),
        reason: str = "",
        random: str = "x7k2p9",
        open_: bool = True,
    ) -> Grant:
        """Record a grant in the trail, as the functions do."""
        at = at or datetime.now(timezone.utc)
        principal = Principal(f"id-{name}"[:10], name)
        targets = (Target(target, (Ports.parse("22/tcp"),), ("sg-0a",)),)
        grant_id = name_grant(principal, source, at, random)
        grant = Grant(grant_id, principal, source, targets, at, round_up(at + lasts), reason)
        self.trail.record_request(grant)
        if open_:
            event = json.dumps({"at": show_time(at), "event": "authorized", "by": "knock"})
            said = {"authorized_at": show_time(at), "event": event}
            self.sdb.put_attributes(
                DomainName=DOMAIN,
                ItemName=grant.id,
                Attributes=[{"Name": name, "Value": value} for name, value in said.items()],
            )
        return grant

    def run(self, *argv: str) -> Ran:
        """Run the program with its usual place in AWS given."""
        self.capsys.readouterr()
        try:
            code = main([*argv, "--region", REGION])
        except SystemExit as leaving:  # argparse's way to refuse a command line
            code = int(leaving.code or 0)
        seen = self.capsys.readouterr()
        return Ran(code, seen.out, seen.err)

    def ok(self, *argv: str) -> Ran:
        """Run the program and see that it succeeds."""
        ran = self.run(*argv)
        assert ran.code == 0, ran.err
        return ran


def answer_for(world: World) -> Callable[..., Any]:
    """Make what moto calls in place of a function's container."""

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
    local.ec2.install()
    local.operators.install()
    local.simpledb.install()
    # Reading botocore's models takes most of a test's time: once is enough. They do not change.
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    monkeypatch.setattr(ClientCreator, "_create_client_class", client_class)
    monkeypatch.setattr("moto.ec2.models.amis.settings.ec2_load_default_amis", lambda: False)
    with mock_aws(config={"lambda": {"use_docker": False}}):
        yield


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Iterator[None]:
    """Let the n-th changing call (from 1) fail: before it is sent, or after AWS has done it."""
    seen = 0
    original = {name: getattr(admin_aws.Aws, name) for name in ("_hold_back", "_remember")}
    error = ClientError({"Error": {"Code": "InternalError", "Message": "injected"}}, "Injected")

    def count(call: admin_aws.Call) -> None:
        nonlocal seen
        seen += not call.reads
        if not call.reads and seen == number:
            raise error

    def hold_back(self: Any, model: Any, context: Any, **rest: Any) -> Any:
        if not after:
            count(context["knock_call"])
        return original["_hold_back"](self, model=model, context=context, **rest)

    def remember(self: Any, http_response: Any, context: Any, **rest: Any) -> None:
        if after:
            count(context["knock_call"])
        original["_remember"](self, http_response=http_response, context=context, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(admin_aws.Aws, "_hold_back", hold_back)
        patch.setattr(admin_aws.Aws, "_remember", remember)
        yield


def make_world(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Give a world of its own to each test: `world = pytest.fixture(make_world)`."""
    with account(monkeypatch):
        made = World(capsys)
        monkeypatch.setattr(LambdaSimpleBackend, "invoke", answer_for(made))
        yield made


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Let the program believe that it is another time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment.astimezone(tz)

    monkeypatch.setattr(cli, "datetime", Clock)


@contextmanager
def local_stack() -> Iterator[dict[str, Any]]:
    """Run the local stack in a process of its own; give the summary it prints. Stopped as Ctrl-C stops it."""
    command = [sys.executable, "-m", "local", "up", "--json", "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stack:
        assert stack.stdout is not None
        assert stack.stderr is not None
        # What the functions say must not fill the pipe; a stack that does not start is quoted.
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(stack.stderr or ()), daemon=True)
        listener.start()
        try:
            line = stack.stdout.readline()
            assert line, f"the local stack did not start: {''.join(said)}"
            yield json.loads(line)
        finally:
            stack.send_signal(signal.SIGINT)
            stack.wait(20)
            listener.join(5)
