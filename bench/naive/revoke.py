"""A naive task that closes: clients created on import, and the same calls as Knock's own."""

from __future__ import annotations

import json
import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

logger = Logger()
metrics = Metrics()
ec2 = boto3.client("ec2")
simpledb = boto3.client("sdb")
stepfunctions = boto3.client("stepfunctions")
TRAIL, LEDGER = os.environ["TRAIL_DOMAIN"], os.environ["LEDGER_DOMAIN"]


def put(domain: str, name: str, **values: str) -> None:
    attributes = [{"Name": key, "Value": text, "Replace": True} for key, text in values.items()]
    simpledb.put_attributes(DomainName=domain, ItemName=name, Attributes=attributes)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    grant = event["grant"]
    grant_id, source, ended_at = grant["grant_id"], grant["source"], grant["expires_at"]
    put(TRAIL, grant_id, state="expired", ended_at=ended_at, ended_by="knock")
    simpledb.get_attributes(DomainName=LEDGER, ItemName=source, ConsistentRead=True)
    put(LEDGER, source, parts="1", token=grant_id, part_000=json.dumps({"closing": grant["rules"]}))
    revoked = []
    for rule in grant["rules"]:
        ec2.revoke_security_group_ingress(GroupId=rule["group"], SecurityGroupRuleIds=[rule["rule_id"]])
        revoked.append(rule["rule_id"])
    put(LEDGER, source, parts="1", token=grant_id, part_000=json.dumps({"tombstones": revoked}))
    put(TRAIL, grant_id, closed_at=ended_at, closer="expired")
    metrics.add_metric(name="GrantEnded", unit=MetricUnit.Count, value=1)
    logger.info("closed", extra={"grant_id": grant_id, "revoked": revoked})
    return {"grant_id": grant_id, "revoked": revoked}
