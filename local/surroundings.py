"""Resources beside Knock's, so that the commands of every page for operators work on a fresh local stack.

| resource | attached to | for the page |
|---|---|---|
| instance `bastion`, Elastic IP 198.51.100.10 | the target `bastion` | all |
| load balancer `web` | the target `web` | all |
| instance `jump`, Elastic IP 198.51.100.20 | a group that opens SSH to the world | make-a-target |
| load balancer `shop` | no target | make-a-target |
| database `orders` | no target | attach-to-more |
| group `reports`, on an interface | no target | adopt-groups |
| the template's alarms, none of which ever goes off | | check-the-deployment |

Only `python -m local up` creates them: without, a test's stack starts a quarter of a second sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moto.rds.models import rds_backends

from local.deployment import Deployment

__all__ = ["furnish"]

BASTION, JUMP = "198.51.100.10", "198.51.100.20"
_IMAGE = "ami-0123456789abcdef0"  # no instance boots here


def furnish(
    client: Callable[[str], Any], deployment: Deployment, targets: Mapping[str, Sequence[str]]
) -> None:
    """Create all of them. `targets` are the groups of each target."""
    ec2 = client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
    servers, admin, reports = (_group(ec2, name) for name in ("servers", "admin", "reports"))
    world = [{"CidrIp": "0.0.0.0/0"}]
    ec2.authorize_security_group_ingress(
        GroupId=admin,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": world}],
    )
    _instance(ec2, "bastion", BASTION, subnets[0], [servers, *targets["bastion"]])
    _instance(ec2, "jump", JUMP, subnets[0], [admin])
    ec2.create_network_interface(SubnetId=subnets[0], Groups=[reports], Description="reports")
    balancers = client("elbv2")
    for name, groups in (("web", [servers, *targets["web"]]), ("shop", [servers])):
        balancers.create_load_balancer(Name=name, Subnets=subnets, SecurityGroups=groups)
    place = deployment.place
    rds_backends[place.account][place.region].create_db_instance(  # creating a client of RDS is slow
        {
            "db_instance_identifier": "orders",
            "db_instance_class": "db.t4g.micro",
            "engine": "postgres",
            "allocated_storage": 20,
            "master_username": "orders",
            "manage_master_user_password": True,
            "vpc_security_group_ids": [servers],
        }
    )
    cloudwatch = client("cloudwatch")
    for alarm in deployment.alarms:
        cloudwatch.put_metric_alarm(**alarm)


def _group(ec2: Any, name: str) -> str:
    return str(ec2.create_security_group(GroupName=name, Description=name)["GroupId"])


def _instance(ec2: Any, name: str, address: str, subnet: str, groups: Sequence[str]) -> None:
    """Run an instance behind an Elastic IP."""
    instance = ec2.run_instances(
        ImageId=_IMAGE,
        InstanceType="t4g.nano",
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet,
        SecurityGroupIds=list(groups),
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}],
    )["Instances"][0]
    allocated = ec2.allocate_address(Domain="vpc", Address=address)
    ec2.associate_address(AllocationId=allocated["AllocationId"], InstanceId=instance["InstanceId"])
