"""Access to AWS: one session, its clients, and the list of calls that change something.

Every call of every command passes the hooks below, so `--dry-run` is implemented once: a call that is not
known to only read is listed with its parameters, answered here with placeholders, and never sent. When a
command fails half-way, the list of calls says what it had done before.

A call counts as reading if its operation's name starts with a reading verb. In a dry run all other calls are
held back, so an operation that this module does not know is held back too. EC2's own `DryRun` parameter was
no alternative: few services have it, and it checks permissions instead of listing calls.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from dataclasses import dataclass, field
from getpass import GetPassWarning
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config

from knock import __version__
from knock_admin.errors import not_signed_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.model import OperationModel, Shape

READING = ("Describe", "Get", "List", "Select", "Query", "Scan", "DomainMetadata")

# Services whose calls only give credentials. A profile with a role needs such a call in a dry run as well.
SIGNING_IN = ("sts", "sso", "sso-oidc", "signin")

# Services without a dual-stack endpoint. With AWS_USE_DUALSTACK_ENDPOINT botocore builds names for them that
# do not exist.
# https://docs.aws.amazon.com/vpc/latest/userguide/aws-ipv6-support.html
SINGLE_STACK = ("apigateway", "sdb")

# The debug logs of these contain whole answers, and those of API Gateway contain keys' values.
LOUD = ("boto3", "botocore", "urllib3")

# IAM's prefix of a service, if it differs from the endpoint's.
IAM_SERVICE = {"monitoring": "cloudwatch"}

CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 4},
    user_agent_extra=f"knock-admin/{__version__}",
)

# A synchronous Invoke is answered when the function has ended, and the drift guard may run for 15 minutes.
PATIENT = CONFIG.merge(Config(read_timeout=920, tcp_keepalive=True))


@dataclass(frozen=True)
class Call:
    """One call of an AWS operation."""

    name: str
    """`ec2:CreateSecurityGroup`"""
    permission: str
    """The IAM action that allows it."""
    parameters: dict[str, Any]
    reads: bool


@dataclass
class Calls:
    """The calls of one command that change something: planned (`--dry-run`) or done."""

    dry_run: bool = False
    planned: list[Call] = field(default_factory=list)
    done: list[Call] = field(default_factory=list)
    last: Call | None = None
    """The last call, whether it succeeded or not."""
    uncounted: bool = False
    """While True, `done` does not grow, because the number of calls has no bound."""
    unanswered: list[Call] = field(default_factory=list)
    """Calls that change something and were sent, but not answered: they may have been done or not."""

    def plan(self, call: str, parameters: dict[str, Any]) -> None:
        """List a call that is not an operation of AWS."""
        self.planned.append(Call(call, call, parameters, reads=False))


class Aws:
    """An operator's session and the clients made from it."""

    def __init__(
        self,
        *,
        profile: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self.calls = Calls(dry_run)
        for library in LOUD:
            logging.getLogger(library).setLevel(logging.WARNING)
        self._endpoint_url = endpoint_url
        self._session = boto3.Session(profile_name=profile, region_name=region)
        self._clients: dict[tuple[str, str | None], Any] = {}
        self._signed_in = False
        events = self._session.events
        events.register_last("before-parameter-build", self._note)
        # The stubs say that a hook returns nothing; what a before-call hook returns is the call's answer.
        events.register_last("before-call", self._hold_back)  # type: ignore[arg-type]
        events.register_last("after-call", self._remember)

    @property
    def region(self) -> str | None:
        """The session's region."""
        return self._session.region_name

    @property
    def partition(self) -> str:
        """The partition of the session's region, for ARNs."""
        return self._session.get_partition_for_region(str(self.region))

    def key_arn(self, key_id: str) -> str:
        """Give the ARN of an API key."""
        return f"arn:{self.partition}:apigateway:{self.region}::/apikeys/{key_id}"

    def read_domain(self) -> str | None:
        """Read the domain of the region's service endpoints, mostly `amazonaws.com`.

        None if the endpoints are elsewhere, as those of the local stack are. Raises Unreachable if signing in
        fails.
        """
        host = urlsplit(self.client("apigateway").meta.endpoint_url).hostname or ""
        _, region, domain = (*host.split(".", 2), "", "")[:3]
        return domain if region == self.region else None

    @property
    def trail_regions(self) -> list[str]:
        """The regions that have SimpleDB. For others botocore builds names of endpoints that do not exist."""
        return self._session.get_available_regions("sdb")

    def client(
        self, service: str, region: str | None = None
    ) -> Any:  # Any: a boto3 client has no static type
        """Give the client of a service, which is made once. Raises Unreachable if signing in fails."""
        if not self._signed_in:
            self._sign_in()
        key = (service, region)
        if key not in self._clients:
            config = PATIENT if service == "lambda" else CONFIG
            if service in SINGLE_STACK:  # a client's own configuration overrides the environment
                config = config.merge(Config(use_dualstack_endpoint=False))
            self._clients[key] = self._session.client(
                service,  # type: ignore[call-overload]  # the overloads want a literal
                region_name=region,
                endpoint_url=self._endpoint_url,
                config=config,
            )
        return self._clients[key]

    def _sign_in(self) -> None:
        """Get the profile's credentials now, from their program, file or service. Raises Unreachable.

        botocore would get them during the first call, and let any exception of theirs through. A lack of
        credentials is not an error here: botocore reports it.
        """
        try:
            with warnings.catch_warnings():
                # Without a terminal getpass warns, and then reads an MFA code from standard input.
                warnings.simplefilter("error", GetPassWarning)
                credentials = self._session.get_credentials()
                if credentials:
                    credentials.get_frozen_credentials()
        except Exception as error:
            raise not_signed_in(error, self._session.profile_name) from error
        self._signed_in = True

    def pages(self, service: str, operation: str, items: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of all pages of a list operation; `items` is the list's name in the answer."""
        for page in self.client(service).get_paginator(operation).paginate(**parameters):
            yield from page.get(items, [])

    def _note(
        self, params: dict[str, Any], model: OperationModel, context: dict[str, Any], **_: object
    ) -> None:
        service = model.service_model
        prefix = IAM_SERVICE.get(service.endpoint_prefix, service.endpoint_prefix)
        call = Call(
            name=f"{prefix}:{model.name}",
            permission=_permission(prefix, model),
            parameters=dict(params),
            reads=model.name.startswith(READING) or service.service_name in SIGNING_IN,
        )
        context["knock_call"] = call
        self.calls.last = call

    def _hold_back(
        self, model: OperationModel, context: dict[str, Any], **_: object
    ) -> tuple[AWSResponse, dict[str, Any]] | None:
        call: Call = context["knock_call"]
        if not self.calls.dry_run or call.reads:
            if not call.reads:
                self.calls.unanswered.append(call)
            return None
        self.calls.planned.append(call)
        answer = _placeholders(model.output_shape, len(self.calls.planned))
        return AWSResponse("", 200, HTTPHeaders(), io.BytesIO()), {
            **answer,
            "ResponseMetadata": {"HTTPStatusCode": 200},
        }

    def _remember(
        self, http_response: AWSResponse, parsed: dict[str, Any], context: dict[str, Any], **_: object
    ) -> None:
        call: Call = context["knock_call"]
        if call in self.calls.unanswered:
            self.calls.unanswered.remove(call)
        failed = http_response.status_code >= 300 or "FunctionError" in parsed
        if call.reads or self.calls.dry_run or self.calls.uncounted or failed:
            return
        self.calls.done.append(call)
        if sys.stderr.isatty():
            print(f"done: {call.name}", file=sys.stderr)


def _permission(prefix: str, model: OperationModel) -> str:
    """Name the IAM action of an operation."""
    if prefix == "apigateway":
        path = model.http["requestUri"].split("?")[0]
        return f"{prefix}:{model.http['method']} on {path}"
    if model.name == "Invoke":
        return "lambda:InvokeFunction"
    return f"{prefix}:{model.name}"


def _placeholders(shape: Shape | None, number: int) -> dict[str, Any]:
    """Make the answer to a call that is not sent: its texts name the planned call that they would be from."""
    members = getattr(shape, "members", {})
    return {
        name: f"<{name} of call {number}>"
        for name, member in members.items()
        if member.type_name == "string" and name != "NextToken"
    }
