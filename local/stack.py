"""The local stack: template, functions, embedded AWS and gateway, with targets to knock on.

    with running() as stack:
        requests.post(f"{stack.summary.api_url}/knock", headers={"x-api-key": stack.summary.keys["alice"]})

Everything that deploys comes from `template.yaml`. The targets and keys, which an operator would add by hand,
are created here, with new key values at every start. Nothing is kept when the stack stops, and no process is
left, however it stops.

The parts start in an order that saves time: the functions' processes load while this one imports moto and
deploys to it.
"""

from __future__ import annotations

import functools
import logging
import secrets
import socket
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import JSONFileLoader

from local.clock import Clock
from local.deployment import Deployment
from local.endpoint import Endpoint
from local.gateway import Caller, Gateway
from local.hostile import Hostile, Plan
from local.lambdas import Runtime, environment
from local.serving import Server, bind
from local.stepfunctions_local import Engine as OutsideEngine
from local.stepfunctions_local import Npm, NpmEngine
from local.template import Place, load

if TYPE_CHECKING:
    from local.aws import Embedded

__all__ = ["Options", "Stack", "StackError", "Summary", "running"]

ROOT = Path(__file__).resolve().parent.parent
REGION = "eu-west-1"

# A deployment's default limits are for people; a local stack is for tests and measurements. So it raises
# them, as a deployment would: by parameters.
LOCAL_PARAMETERS = {
    "ThrottleRate": "10000",
    "ThrottleBurst": "5000",
    "QuotaPerDay": "100000000",
    "StageThrottleRate": "10000",
    "StageThrottleBurst": "5000",
}

# target name -> its ports, and how many security groups are its pool
TARGETS = {"bastion": (["22/tcp"], 2), "web": (["80/tcp", "443/tcp"], 1)}

LONGEST = "24h"
# principal's name -> the tags of its key, to which knock:name is added
KEYS = {
    "alice": {"knock:targets": "bastion web", "knock:max-duration": LONGEST},
    "bob": {"knock:targets": "bastion web", "knock:max-duration": LONGEST},
    "operator": {"knock:targets": "@all", "knock:max-duration": LONGEST, "knock:operator": "true"},
    "ci": {
        "knock:targets": "@all",
        "knock:max-duration": LONGEST,
        "knock:any-source": "/28 /60",
        "knock:max-live": "1000",
    },
}


class StackError(Exception):
    """The stack cannot start with these options. The message says why and what to do."""


@functools.cache
def _parsed(path: str) -> Any:
    return _plain_load_file(JSONFileLoader(), path)


# botocore parses its models again in every session, and moto creates sessions while it is imported: a third
# of a second of JSON. Within a session botocore itself shares the parsed models.
_plain_load_file = JSONFileLoader.load_file
JSONFileLoader.load_file = staticmethod(_parsed)  # type: ignore[method-assign]


@dataclass(frozen=True)
class Options:
    """How to run a stack."""

    port: int = 0  # of the gateway; 0 picks a free one
    aws_port: int = 0
    duration: str | None = None  # DefaultDuration; None leaves the template's
    engine: str = "moto"  # or stepfunctions-local, or the address of a Step Functions endpoint
    store: str | None = None  # TrailStore, simpledb or dynamodb; None leaves the template's
    stack_name: str = "knock"
    region: str = REGION
    parameters: Mapping[str, str] = field(default_factory=dict)  # the template's, over LOCAL_PARAMETERS
    template: Path = ROOT / "template.yaml"
    workers: int = 32  # of each function, at most
    output: IO[bytes] | int = 2  # of the functions
    hostile: Plan | None = None  # None: an AWS without faults and delays
    furnished: bool = False  # with the resources of local/surroundings.py, which the targets are attached to


@dataclass(frozen=True)
class Summary:
    """A running stack's addresses, keys and names, for clients; the line that `--json` prints."""

    api_url: str
    console_url: str
    aws_endpoint_url: str
    region: str
    state_machine_arn: str
    closings_arn: str
    trail_store: str
    trail_domain: str  # of DynamoDB, a table's name
    ledger_domain: str
    refusals_domain: str
    keys: Mapping[str, str]
    targets: Mapping[str, Mapping[str, list[str]]]
    hostile: Mapping[str, Any] | None = None  # of a hostile stack: its plan

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "hostile" or value}


class Stack:
    """A running stack. A process can run one at a time, since moto's state belongs to the process."""

    summary: Summary

    def __init__(self, options: Options) -> None:
        """Start every part; return when all of them answer.

        Raises StackError, TemplateError, PortInUse, EngineNotFound, FunctionNotLoaded, and then leaves no
        process behind.
        """
        self.options = options
        self.place = Place(options.stack_name, options.region)
        self.deployment = Deployment(load(options.template, self.place, _parameters(options)))
        if options.duration and _seconds(options.duration) > _seconds(LONGEST):
            raise StackError(f"A duration of {options.duration} is more than the keys here allow, {LONGEST}.")
        self.clock = Clock()
        self._servers: list[Server] = []
        self._sockets: list[socket.socket] = []
        self._stops = ExitStack()
        self._stops.callback(self.clock.close)
        # Called after the other stops, which end the functions and executions that requests wait for.
        self._stops.callback(self._stop_serving)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        options = self.options
        gateway_sockets, aws_sockets = self._bind(options.port), self._bind(options.aws_port)
        self.aws_endpoint_url = f"http://127.0.0.1:{aws_sockets[0].getsockname()[1]}"
        outside_engine = self._outside_engine()
        self.runtime = Runtime(
            self.deployment.functions,
            lambda function: environment(
                function, region=self.place.region, endpoint_url=self.aws_endpoint_url
            ),
            self.clock,
            output=options.output,
            limit=options.workers,
        )
        self._stops.callback(self.runtime.stop)
        self._start_aws(aws_sockets, outside_engine)
        hostile = self._be_hostile(options.hostile) if options.hostile else None
        self._deploy(state_machines=outside_engine is None)
        targets, keys = self._create_targets(), self._create_keys()
        if options.furnished:
            from local.surroundings import furnish

            furnish(
                self.client, self.deployment, {name: target["groups"] for name, target in targets.items()}
            )
        self._start_gateway(gateway_sockets, hostile)
        self.summary = self._summarize(gateway_sockets, targets, keys)
        if hostile:
            hostile.begin()

    def _start_aws(self, sockets: list[socket.socket], outside_engine: OutsideEngine | None) -> None:
        from local.aws import Embedded  # importing moto is slow; the functions load meanwhile

        self.aws: Embedded = Embedded(
            self.runtime,
            self.clock,
            self.place,
            start_elsewhere=outside_engine.start if outside_engine else None,
        )
        self._stops.callback(self.aws.stop)
        if outside_engine:
            outside_engine.publish = self.aws.publish
        self.endpoint = Endpoint(self.aws.app, outside_engine)
        self._serve(self.endpoint, sockets, "aws")
        self._session = boto3.Session("local", "local", region_name=self.place.region)

    def _deploy(self, *, state_machines: bool) -> None:
        from local.aws import deploy

        try:
            deploy(self.deployment, self.client, state_machines=state_machines)
        except ClientError as error:
            raise StackError(_refused(error)) from error
        for rule in self.deployment.event_rules:
            if rule.schedule and rule.enabled:
                self.aws.schedule(rule)

    def _start_gateway(self, sockets: list[socket.socket], hostile: Hostile | None) -> None:
        from local.operators import count_usage_by

        api = self.deployment.rest_api

        def current_keys() -> Iterable[Caller]:
            return self.aws.keys(api)

        keys = hostile.keys(current_keys) if hostile else current_keys
        self.gateway = Gateway(api, self.place, keys, self.runtime.invoke)
        count_usage_by(self.gateway.used)
        self.runtime.warm()
        self._serve(self.gateway, sockets, "gateway")

    def _summarize(
        self, sockets: list[socket.socket], targets: dict[str, dict[str, list[str]]], keys: dict[str, str]
    ) -> Summary:
        plan = self.options.hostile
        api_url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/{self.deployment.rest_api.stage}"
        return Summary(
            api_url=api_url,
            console_url=f"{api_url}/console",
            aws_endpoint_url=self.aws_endpoint_url,
            region=self.place.region,
            state_machine_arn=self.deployment.output("StateMachineArn"),
            closings_arn=self.deployment.output("ClosingsArn"),
            trail_store=self.deployment.output("TrailStore"),
            trail_domain=self.deployment.output("TrailDomain"),
            ledger_domain=self.deployment.output("LedgerDomain"),
            refusals_domain=self.deployment.output("RefusalsDomain"),
            keys=keys,
            targets=targets,
            hostile=plan.as_json() if plan else None,
        )

    def _be_hostile(self, plan: Plan) -> Hostile:
        """Put a hostile AWS around the embedded one. Its faults and delays begin with `begin`."""
        if self.aws.engine is None:
            raise StackError("A hostile AWS works with the embedded engine only: leave --engine out.")
        hostile = Hostile(plan, self.clock.now, self.clock.at)
        self._stops.enter_context(self.endpoint.watched_by(hostile))
        self.aws.engine.publish = hostile.publish(self.aws.deliveries.publish)
        self.runtime.admit = hostile.admit
        return hostile

    def client(self, service: str, region: str | None = None) -> Any:
        """Create a boto3 client of this stack's AWS."""
        config = Config(retries={"total_max_attempts": 1}, read_timeout=120)
        create: Any = self._session.client  # its type takes literal service names only
        return create(service, region, endpoint_url=self.aws_endpoint_url, config=config)

    def stop(self) -> None:
        """Stop every part at once, in reverse order of starting, busy or not. A second call does nothing."""
        # Current requests fail on parts that have stopped; those errors are not worth a log line.
        logging.getLogger("local.serving").setLevel(logging.CRITICAL)
        self._stops.close()

    def _bind(self, port: int) -> list[socket.socket]:
        sockets = bind(port)
        self._sockets += sockets
        return sockets

    def _serve(self, app: Any, sockets: list[socket.socket], name: str) -> None:
        self._servers.append(Server(app, sockets, name=name))

    def _stop_serving(self) -> None:
        for server in self._servers:
            server.stop()
        for listening in self._sockets:
            listening.close()

    def _outside_engine(self) -> OutsideEngine | None:
        """Start or reach the engine of the options and create the state machines there; None if embedded."""
        choice = self.options.engine
        if choice == "moto":
            return None
        if choice == "stepfunctions-local":
            npm = Npm(
                ROOT, region=self.place.region, lambda_endpoint=self.aws_endpoint_url, log=self.options.output
            )
            self._stops.callback(npm.stop)
            engine: OutsideEngine = NpmEngine(npm.url)
        elif choice.startswith("http://"):
            engine = OutsideEngine(choice)
        else:
            raise StackError(
                f"There is no engine {choice!r}: it is moto, stepfunctions-local, or an address that begins http://."
            )
        for machine in self.deployment.state_machines:
            arn = engine.create(
                name=machine.name, definition=machine.definition, role=machine.role, region=self.place.region
            )
            if arn != machine.arn:
                raise StackError(
                    f"The engine at {engine.url} calls a state machine {arn}, and the template {machine.arn}."
                    " Run the engine for the same region and account."
                )
        return engine

    def _create_targets(self) -> dict[str, dict[str, list[str]]]:
        ec2 = self.client("ec2")
        targets = {}
        for name, (ports, size) in TARGETS.items():
            tags = {
                "knock:stack": self.place.stack_name,
                "knock:target": name,
                "knock:ports": " ".join(ports),
                "knock:made-by": "knock-admin",  # so that it can delete them, as its own
            }
            # The form by which `knock-admin` knows the groups that it made, in `targets.Group.made_for`.
            description = f"Knock opens {' '.join(ports)} here (target {name} of {self.place.stack_name})"
            specification = {
                "ResourceType": "security-group",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
            groups = [
                ec2.create_security_group(
                    GroupName=f"{self.place.stack_name}-{name}-{number}",
                    Description=description,
                    TagSpecifications=[specification],
                )["GroupId"]
                for number in range(1, size + 1)
            ]
            targets[name] = {"ports": ports, "groups": groups}
        return targets

    def _create_keys(self) -> dict[str, str]:
        apigateway = self.client("apigateway")
        keys = {}
        for name, tags in KEYS.items():
            value = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))
            created = apigateway.create_api_key(
                name=name, value=value, enabled=True, tags={"knock:name": name, **tags}
            )
            apigateway.create_usage_plan_key(
                usagePlanId=self.deployment.usage_plan.id, keyId=created["id"], keyType="API_KEY"
            )
            keys[name] = value
        return keys


def _refused(error: ClientError) -> str:
    """Describe AWS's refusal to set the stack up; for SimpleDB's, name the alternative."""
    refusal = error.response["Error"]
    description = f"AWS answered {refusal['Code']} to {error.operation_name}: {refusal['Message']}"
    if error.operation_name != "CreateDomain":
        return description
    return (
        f"{description} SimpleDB takes no accounts that have not used it before:"
        " keep the trail in DynamoDB (--store dynamodb)."
    )


def _parameters(options: Options) -> dict[str, str]:
    parameters = {**LOCAL_PARAMETERS, **options.parameters}
    if options.duration is not None:
        parameters["DefaultDuration"] = options.duration
    if options.store is not None:
        parameters["TrailStore"] = options.store
    return parameters


def _seconds(duration: str) -> int:
    """Read a duration that the template's own pattern has accepted."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


@contextmanager
def running(**options: Any) -> Iterator[Stack]:
    """Run a stack for as long as the block runs; takes the fields of `Options`."""
    stack = Stack(Options(**options))
    try:
        yield stack
    finally:
        stack.stop()
