"""Whether AWS would allow a request under the policies of `template.yaml`, by `@cloud-copilot/iam-simulate`.

The policies are the deployed ones: the template transformed and resolved for one place, with each role's
managed policy beside its inline ones. The simulator knows AWS's actions, their resources and their
conditions. It runs offline, in a process of its own, and is not deployed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from local.template import Place, Template, load
from tests.conftest import ROOT, need, program
from tests.harness import ACCOUNT, REGION, STACK

PACKAGE = ROOT / "node_modules" / "@cloud-copilot" / "iam-simulate"


@dataclass(frozen=True)
class Request:
    """A question to IAM: may `by` do this action on this resource, with these condition keys?"""

    by: str  # a role's logical id, or a service such as events.amazonaws.com
    action: str
    resource: str
    context: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    account: str = ACCOUNT

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"context": dict(self.context)}


@dataclass(frozen=True)
class Answer:
    """IAM's decision, and the Sids of the statements that allowed the request."""

    result: str
    allowed_by: tuple[str, ...] = ()
    why: str = ""

    @property
    def allowed(self) -> bool:
        """Say whether it is allowed; fail on an error of the simulator's."""
        assert self.result in ("Allowed", "ImplicitlyDenied", "ExplicitlyDenied"), self
        return self.result == "Allowed"


@dataclass(frozen=True)
class Deployed:
    """The template's resources at one place, and what their policies allow."""

    template: Template

    def role(self, logical_id: str) -> list[dict[str, Any]]:
        """Give the policy documents of a role: inline, and the stack's own managed ones."""
        properties = self.template.resources[logical_id].properties
        managed = {policy.ref: policy for policy in self.template.all("AWS::IAM::ManagedPolicy")}
        return [policy["PolicyDocument"] for policy in properties.get("Policies", [])] + [
            managed[arn].properties["PolicyDocument"]
            for arn in properties.get("ManagedPolicyArns", [])
            if arn in managed
        ]

    @property
    def roles(self) -> dict[str, list[dict[str, Any]]]:
        return {role.logical_id: self.role(role.logical_id) for role in self.template.all("AWS::IAM::Role")}

    @property
    def resource_policies(self) -> dict[str, dict[str, Any]]:
        """Give the resource policies: who may invoke a function or send to a queue or topic."""
        statements: dict[str, list[dict[str, Any]]] = {}
        functions = {function.ref: function.arn for function in self.template.all("AWS::Lambda::Function")}
        for permission in self.template.all("AWS::Lambda::Permission"):
            properties = permission.properties
            account = properties.get("SourceAccount")
            arn = functions.get(properties["FunctionName"], properties["FunctionName"])
            statements.setdefault(arn, []).append(
                {
                    "Sid": permission.logical_id,
                    "Effect": "Allow",
                    "Principal": {"Service": properties["Principal"]},
                    "Action": properties["Action"],
                    "Resource": arn,
                    "Condition": {"ArnLike": {"aws:SourceArn": properties["SourceArn"]}}
                    | ({"StringEquals": {"aws:SourceAccount": account}} if account else {}),
                }
            )
        for kind in ("AWS::SQS::QueuePolicy", "AWS::SNS::TopicPolicy"):
            for policy in self.template.all(kind):
                for statement in policy.properties["PolicyDocument"]["Statement"]:
                    statements.setdefault(statement["Resource"], []).append(statement)
        return {arn: {"Version": "2012-10-17", "Statement": list_} for arn, list_ in statements.items()}

    def arn(self, logical_id: str) -> str:
        return self.template.resources[logical_id].arn

    def environment(self, function: str) -> dict[str, str]:
        """Give the environment variables of a function."""
        variables: dict[str, str] = self.template.resources[function].properties["Environment"]["Variables"]
        return variables

    def judge(self, requests: Iterable[Request]) -> list[Answer]:
        return judge(requests, self.roles, self.resource_policies)


@cache
def deployed(region: str = REGION, **parameters: str) -> Deployed:
    """Resolve the template for a region, for its policies."""
    return Deployed(load(ROOT / "template.yaml", Place(STACK, region, ACCOUNT), parameters))


def judge(
    requests: Iterable[Request],
    policies: Mapping[str, Sequence[Mapping[str, Any]]],
    resource_policies: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Answer]:
    """Have the simulator judge requests, all in one process."""
    need(PACKAGE.exists(), "npm's @cloud-copilot/iam-simulate is not installed: run npm ci")
    questions = {
        "policies": policies,
        "resource_policies": resource_policies or {},
        "requests": [request.as_json() for request in requests],
    }
    result = subprocess.run(
        [program("node", "the simulator runs in it"), ROOT / "tests" / "permissions" / "simulate.mjs"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [
        Answer(answer["result"], tuple(answer.get("allowed_by", ())), answer.get("why", ""))
        for answer in json.loads(result.stdout)
    ]
