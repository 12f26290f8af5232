"""The stack that is signed off: one on AWS when one is named, the local stack otherwise.

    make e2e STACK=knock                 # with your own AWS credentials and region

It makes a security group of its own, attached to nothing and tagged as a target, and an API key of its own in
the stack's usage plan. No other group, key or grant is touched, and both are removed at the end, also when a
test fails.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from grants.dynamodb import DynamoDb
from grants.simpledb import SimpleDb
from grants.trail import Trail
from knock_admin import stack as stacks
from knock_admin.aws import Aws
from tests.local_stack import LocalStack
from tests.waiting import wait_for

STACK = os.environ.get("KNOCK_SIGNOFF_STACK")  # read here, before a fixture takes a person's settings away
PORT = 9  # discard: no program listens there, even if the group were attached


@pytest.fixture(autouse=True)
def _no_aws_of_ones_own(request: pytest.FixtureRequest) -> None:
    """Leave the person's AWS settings alone when their stack is to be signed off; else keep them out."""
    if not STACK:
        for name in list(os.environ):
            if name.startswith(("AWS_", "KNOCK_")):
                request.getfixturevalue("monkeypatch").delenv(name)


@dataclass
class Deployment:
    """A deployed stack, and the key, target and group that the sign-off made in it."""

    stack: stacks.Stack
    api_url: str
    seconds: int  # how long a grant lasts
    settles: float  # how long AWS may take to know a new key and target: rights are cached, keys spread
    key: str = ""
    key_id: str = ""
    target: str = ""
    group: str = ""

    def client(self, service: str, region: str | None = None) -> Any:
        return self.stack.aws.client(service, region)

    @cached_property
    def trail(self) -> Trail:
        region, domain = self.stack.setting("TRAIL_REGION"), self.stack.setting("TRAIL_DOMAIN")
        if self.stack.setting("TRAIL_STORE") == "dynamodb":
            return Trail(DynamoDb(self.client("dynamodb", region), domain))
        return Trail(SimpleDb(self.client("sdb", region), domain))

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        return requests.request(
            method, self.api_url + path, headers={"x-api-key": self.key}, timeout=35, **more
        )

    def open(self, reason: str, **more: str) -> dict[str, Any]:
        """Knock for a grant, and wait until its rule is there."""
        body = {"targets": [self.target], "duration": f"{self.seconds}s", "reason": reason} | more
        answer = self.call("POST", "/knock", json=body)
        assert answer.status_code in (201, 202), answer.text
        grant: dict[str, Any] = answer.json()
        self.wait(lambda: self.rules() == {grant["source"]}, "the rule is not there", 20)
        return grant

    def rules(self) -> set[str]:
        """List the CIDRs that the scratch group lets in."""
        filters = [{"Name": "group-id", "Values": [self.group]}]
        rules = self.client("ec2").describe_security_group_rules(Filters=filters)["SecurityGroupRules"]
        return {rule.get("CidrIpv4") or rule["CidrIpv6"] for rule in rules if not rule["IsEgress"]}

    def status(self, grant: dict[str, Any]) -> str:
        arn = grant["execution_arn"]
        status: str = self.client("stepfunctions").describe_execution(executionArn=arn)["status"]
        return status

    def events(self, grant: dict[str, Any]) -> list[str]:
        """List the events of a grant, read from the store."""
        record = self.trail.get(grant["id"])
        return [event.event for event in record.events] if record else []

    def wait(self, condition: Callable[[], Any], why: str, seconds: float) -> Any:
        return wait_for(condition, why, seconds, pause=0.1, longest=2)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """The stack that is named, or a local one, with a scratch group and a key that are deleted at the end."""
    with ExitStack() as cleanup:
        yield _furnish(_on_aws(STACK) if STACK else _local(cleanup), cleanup)


def _on_aws(name: str) -> Deployment:
    stack = stacks.find(Aws(), name)
    return Deployment(stack, stack.read_api_url(), seconds=60, settles=180)


def _local(cleanup: ExitStack) -> Deployment:
    local = cleanup.enter_context(LocalStack.start())
    environment = {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    patch = cleanup.enter_context(pytest.MonkeyPatch.context())
    for name, value in environment.items():
        patch.setenv(name, value)
    aws = Aws(region=local.region, endpoint_url=local.aws_endpoint_url)
    return Deployment(stacks.find(aws, None), local.api_url, seconds=4, settles=75)


def _furnish(deployment: Deployment, cleanup: ExitStack) -> Deployment:
    deployment.target = f"signoff-{secrets.token_hex(4)}"
    ec2, gateway = deployment.client("ec2"), deployment.client("apigateway")
    vpc = os.environ.get("KNOCK_SIGNOFF_VPC") or ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    tags = {
        "knock:stack": deployment.stack.name,
        "knock:target": deployment.target,
        "knock:ports": f"{PORT}/tcp",
    }
    deployment.group = ec2.create_security_group(
        GroupName=deployment.target,
        Description="Scratch group of Knock's sign-off; may be deleted",
        VpcId=vpc,
        TagSpecifications=[
            {
                "ResourceType": "security-group",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ],
    )["GroupId"]
    cleanup.callback(_delete_group, deployment)
    key = gateway.create_api_key(
        name=deployment.target,
        enabled=True,
        tags={
            "knock:stack": deployment.stack.name,
            "knock:name": deployment.target,
            "knock:targets": deployment.target,
            "knock:max-duration": "20m",
        },
    )
    deployment.key, deployment.key_id = key["value"], key["id"]
    cleanup.callback(gateway.delete_api_key, apiKey=deployment.key_id)
    cleanup.callback(_end_grants, deployment)
    gateway.create_usage_plan_key(
        usagePlanId=deployment.stack.read_plan()["id"], keyId=deployment.key_id, keyType="API_KEY"
    )
    deployment.wait(
        lambda: _knows(deployment), "the API does not know the new key and target", deployment.settles
    )
    return deployment


def _knows(deployment: Deployment) -> bool:
    answer = deployment.call("GET", "/whoami")
    return answer.status_code == 200 and deployment.target in {
        target["name"] for target in answer.json()["targets"]
    }


def _end_grants(deployment: Deployment) -> None:
    """End the grants that a failed test left live, with the same key."""
    answer = deployment.call("GET", "/grants")
    for grant in answer.json().get("grants", []):
        deployment.call("DELETE", f"/grants/{grant['id']}", params={"reason": "end of the sign-off"})


def _delete_group(deployment: Deployment) -> None:
    try:
        # Untagged first: the tagging API lists deleted groups for hours, with the tags that they had.
        marks = ("knock:stack", "knock:target", "knock:ports")
        deployment.client("ec2").delete_tags(
            Resources=[deployment.group], Tags=[{"Key": key} for key in marks]
        )
        deployment.client("ec2").delete_security_group(GroupId=deployment.group)
    except ClientError as error:  # the stack may be gone by then, and the clean-up must go on
        print(f"delete the security group {deployment.group} yourself: {error}")
