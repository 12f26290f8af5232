"""A naive task that opens: clients created on import, and the same calls as Knock's own."""

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
def handler(event: dict[str, Any], _context: Any) -> list[dict[str, Any]]:
    grant = event["grant"]
    grant_id, source = grant["grant_id"], grant["source"]
    groups = sorted({group for target in grant["targets"] for group in target["groups"]})
    ec2.describe_security_groups(Filters=[{"Name": "group-id", "Values": groups}], MaxResults=1000)
    simpledb.get_attributes(DomainName=LEDGER, ItemName=source, ConsistentRead=True)
    put(LEDGER, source, parts="1", token=grant_id, part_000=json.dumps({"claims": [grant_id]}))
    put(TRAIL, grant_id, kind="grant", state="live", source=source, input_00=json.dumps(grant)[:1000])
    opened = []
    for target in grant["targets"]:
        ports = target["ports"][0].partition("/")[0]
        answer = ec2.authorize_security_group_ingress(
            GroupId=target["groups"][0],
            IpPermissions=[
                {
                    "IpProtocol": "tcp",
                    "FromPort": int(ports),
                    "ToPort": int(ports),
                    "IpRanges": [{"CidrIp": source, "Description": f"Knock {grant_id}"}],
                }
            ],
            TagSpecifications=[
                {"ResourceType": "security-group-rule", "Tags": [{"Key": "knock:grant", "Value": grant_id}]}
            ],
        )
        opened += [rule["SecurityGroupRuleId"] for rule in answer["SecurityGroupRules"]]
    put(LEDGER, source, parts="1", token=grant_id, part_000=json.dumps({"rules": opened}))
    put(TRAIL, grant_id, authorized_at=grant["requested_at"], rule=json.dumps(opened))
    metrics.add_metric(name="GrantOpened", unit=MetricUnit.Count, value=1)
    logger.info("authorized", extra={"grant_id": grant_id, "rules": opened})
    return [{"rule_id": rule_id} for rule_id in opened]
