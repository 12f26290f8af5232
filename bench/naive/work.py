"""The AWS calls of the naive API: those of Knock's own, in the same order, with boto3's defaults."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import boto3

apigateway = boto3.client("apigateway")
functions = boto3.client("lambda")
simpledb = boto3.client("sdb")
stepfunctions = boto3.client("stepfunctions")
tagging = boto3.client("resourcegroupstaggingapi")

TRAIL = os.environ["TRAIL_DOMAIN"]
REGION = os.environ["AWS_REGION"]


def open_grant(key_id: str, source: str, body: dict[str, Any]) -> dict[str, Any]:
    """Read rights, targets and the live count, start a grant's execution, and wait until it is open."""
    tags = apigateway.get_tags(resourceArn=f"arn:aws:apigateway:{REGION}::/apikeys/{key_id}")["tags"]
    groups = []
    for page in tagging.get_paginator("get_resources").paginate(
        TagFilters=[{"Key": "knock:stack", "Values": [os.environ["KNOCK_STACK"]]}],
        ResourceTypeFilters=["ec2:security-group"],
    ):
        groups += [mapping["ResourceARN"].rpartition("/")[2] for mapping in page["ResourceTagMappingList"]]
    now = datetime.now(timezone.utc)
    live = simpledb.select(
        SelectExpression=f"select count(*) from `{TRAIL}` where `principal_id` = '{key_id}'",  # noqa: S608  # ours
        ConsistentRead=True,
    )
    grant_id = f"{now:%Y%m%dt%H%M%S}z-naive"
    grant = {
        "grant_id": grant_id,
        "principal": {"id": key_id, "name": tags["knock:name"]},
        "source": source,
        "targets": [{"name": name, "ports": ["22/tcp"], "groups": groups} for name in body["targets"]],
        "requested_at": now.isoformat(),
        "expires_at": (now + timedelta(hours=8)).isoformat(),
        "live": len(live["Items"]),
    }
    stepfunctions.start_execution(
        stateMachineArn=os.environ["STATE_MACHINE_ARN"], name=grant_id, input=json.dumps(grant)
    )
    while True:
        time.sleep(0.03)
        answer = simpledb.get_attributes(DomainName=TRAIL, ItemName=grant_id, ConsistentRead=True)
        item = {attribute["Name"]: attribute["Value"] for attribute in answer.get("Attributes", [])}
        if "authorized_at" in item:
            return grant | {"status": "live", "authorized_at": item["authorized_at"]}
