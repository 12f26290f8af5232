"""Records every AWS call the functions make, as the questions AWS would ask IAM about it.

It wraps the method that makes all of botocore's calls, as `tests/faults/injector.py` does, and knows for each
operation which resources and condition keys AWS checks. An operation it does not know fails the test.
https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock
from urllib.parse import quote

from botocore.client import BaseClient

from tests.harness import ACCOUNT, CLOSINGS, REGION, STACK, Crash, Knock
from tests.permissions.simulator import Request

PREFIXES = {"stepfunctions": "states", "resourcegroupstaggingapi": "tag"}


class Recorder:
    """The requests recorded so far; `unknown` names operations whose checks are not known here."""

    def __init__(self, ec2: BaseClient) -> None:
        self._ec2_client = ec2  # with all operations; the functions' own client knows the ones they call only
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.crash_after = ""  # the operation whose caller dies once, right after it
        self._inside: ContextVar[str | None] = ContextVar("inside", default=None)

    @property
    def _role(self) -> str | None:
        return self._inside.get()

    @contextmanager
    def function(self, name: str) -> Iterator[None]:
        """Mark this context as inside a function: its calls are made under that function's role.

        The harness runs the function's other threads in the same context.
        """
        token = self._inside.set(f"{name.removeprefix(f'{STACK}-').capitalize()}Role")
        try:
            yield
        finally:
            self._inside.reset(token)

    def invocation(self, name: str, payload: Any) -> None:
        """Record who invokes a function: another function, or a state machine, and who started that."""
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
        if "closing" in payload:
            self._add("ClosingsRole", "lambda:InvokeFunction", arn)
            if "detail" in payload["closing"]:
                self._add("GrantStoppedRole", "states:StartExecution", CLOSINGS)
        elif name != f"{STACK}-guard" and "grant" in payload:  # the tests themselves invoke the guard
            self._add(self._role or "GrantsRole", "lambda:InvokeFunction", arn)

    def _add(self, by: str, action: str, resource: str, context: dict[str, Any] | None = None) -> None:
        self.requests.append(Request(by, action, resource, context or {}))

    def call(self, real: Callable[..., Any], client: BaseClient, operation: str, parameters: Any) -> Any:
        """Record a call that a function makes, and make it."""
        if self._role:
            service = client.meta.service_model.service_name
            read = getattr(self, f"_{service}", None)
            resources = read(real, client, operation, parameters) if read else None
            if resources is None:
                self.unknown.append(f"{service}.{operation}")
            for action, resource, context in resources or []:
                self._add(self._role, action, resource, context)
            if operation == self.crash_after:
                self.crash_after = ""
                real(client, operation, parameters)
                raise Crash(operation)
        return real(client, operation, parameters)

    # ------------------------------------------------------------------ what AWS checks, service by service

    def _ec2(self, real: Callable[..., Any], _client: object, operation: str, parameters: Any) -> Any:
        if operation in ("DescribeSecurityGroups", "DescribeSecurityGroupRules"):
            return [(f"ec2:{operation}", "*", {"ec2:Region": REGION})]
        if operation not in ("AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress"):
            return None
        arn = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
        (group,) = real(self._ec2_client, "DescribeSecurityGroups", {"GroupIds": [parameters["GroupId"]]})[
            "SecurityGroups"
        ]
        tags = {tag["Key"]: tag["Value"] for tag in group.get("Tags", [])}
        of_group = {"ec2:Region": REGION, "ec2:SecurityGroupID": group["GroupId"]}
        for key, value in tags.items():
            of_group |= {f"ec2:ResourceTag/{key}": value, f"aws:ResourceTag/{key}": value}
        checks = [(f"ec2:{operation}", f"{arn}:security-group/{group['GroupId']}", of_group)]
        for specification in parameters.get("TagSpecifications", []):
            rule_tags = {tag["Key"]: tag["Value"] for tag in specification["Tags"]}
            of_rule: dict[str, Any] = {"ec2:Region": REGION, "aws:TagKeys": sorted(rule_tags)}
            of_rule |= {f"aws:RequestTag/{key}": value for key, value in rule_tags.items()}
            new = f"{arn}:{specification['ResourceType']}/sgr-0123456789abcdef0"
            checks.append((f"ec2:{operation}", new, of_rule))
            checks.append(("ec2:CreateTags", new, of_rule | {"ec2:CreateAction": operation}))
        return checks

    def _sdb(self, _real: object, client: BaseClient, operation: str, parameters: Any) -> Any:
        match = re.search(r" from `([^`]+)` ", parameters.get("SelectExpression", ""))
        domain = match[1] if match else parameters["DomainName"]
        arn = f"arn:aws:sdb:{client.meta.region_name}:{ACCOUNT}:domain/{domain}"
        return [(f"sdb:{operation}", arn, {})]

    def _dynamodb(self, _real: object, client: BaseClient, operation: str, parameters: Any) -> Any:
        if operation not in ("DeleteItem", "GetItem", "Query", "Scan", "UpdateItem"):
            return None
        arn = f"arn:aws:dynamodb:{client.meta.region_name}:{ACCOUNT}:table/{parameters['TableName']}"
        index = f"/index/{parameters['IndexName']}" if "IndexName" in parameters else ""
        return [(f"dynamodb:{operation}", arn + index, {})]

    def _stepfunctions(self, _real: object, _client: object, operation: str, parameters: Any) -> Any:
        return [(f"states:{operation}", parameters.get("stateMachineArn") or parameters["executionArn"], {})]

    def _sns(self, _real: object, _client: object, operation: str, parameters: Any) -> Any:
        return [(f"sns:{operation}", parameters["TopicArn"], {})]

    def _events(self, _real: object, _client: object, operation: str, parameters: Any) -> Any:
        arn = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/default"
        assert not any("EventBusName" in entry for entry in parameters["Entries"])
        sources = sorted({entry["Source"] for entry in parameters["Entries"]})
        return [(f"events:{operation}", arn, {"events:source": sources})]

    def _apigateway(self, _real: object, _client: object, operation: str, parameters: Any) -> Any:
        """Give the method and the path: with the ARN encoded, as documented, and as it is."""
        if operation != "GetTags":
            return None
        arn, tags = parameters["resourceArn"], f"arn:aws:apigateway:{REGION}::/tags"
        return [("apigateway:GET", f"{tags}/{path}", {}) for path in (quote(arn, safe=""), arn)]

    def _resourcegroupstaggingapi(self, _real: object, _client: object, operation: str, _asked: Any) -> Any:
        return [(f"tag:{operation}", "*", {})]


@contextmanager
def recording(knock: Knock) -> Iterator[Recorder]:
    """Put a recorder between every function and AWS."""
    recorder = Recorder(knock.client("ec2"))
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def make_call(client: BaseClient, operation: str, parameters: Any) -> Any:
        return recorder.call(real, client, operation, parameters)

    knock.around, knock.before_invoke = recorder.function, recorder.invocation
    with mock.patch.object(BaseClient, "_make_api_call", make_call):
        yield recorder
