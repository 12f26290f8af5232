"""`knock-admin target add` and `detach` on databases, ECS services and caches; address families."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from moto.ecs.models import ecs_backends
from moto.elbv2.models import elbv2_backends
from moto.rds.models import DBInstance

from knock_admin import attach
from knock_admin.aws import Aws
from tests.clients.admin_support import ACCOUNT, REGION, World, client, make_world
from tests.clients.attachments import (
    make_caches,
    make_database,
    make_service,
    mend_caches,
    mend_deployments,
)

world = pytest.fixture(make_world)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "PAUSE", 0.0)


def pool(world: World, name: str) -> list[str]:
    answer = world.ec2.describe_security_groups(Filters=[{"Name": "tag:knock:target", "Values": [name]}])
    return [group["GroupId"] for group in answer["SecurityGroups"]]


def families(world: World, name: str) -> str:
    (group,) = pool(world, name)
    return {tag["Key"]: tag["Value"] for tag in world.group(group)["Tags"]}.get("knock:families", "")


def add(world: World, *attachments: str) -> Any:
    return world.ok("target", "add", "data", "--ports", "5432/tcp", *attachments)


@pytest.fixture
def deploys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the states that the looks at a service's deployment get, in turn; the last one stays."""
    states = ["IN_PROGRESS", "COMPLETED"]
    mend_deployments(monkeypatch, states)
    return states


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_caches(monkeypatch)


# ---------------------------------------------------------------------------- RDS


def groups_of_database(name: str) -> list[str]:
    database = client("rds").describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
    return [group["VpcSecurityGroupId"] for group in database["VpcSecurityGroups"]]


def test_a_database_keeps_its_groups_and_loses_only_the_targets(world: World) -> None:
    make_database(world, "orders")
    result = add(world, "--rds", "orders")
    assert "attached to database orders" in result.out
    assert groups_of_database("orders") == [world.office, *pool(world, "data")]
    assert "rds orders" in world.ok("target", "ls").out
    assert "still attached to database orders" in world.run("target", "rm", "data").err
    world.ok("target", "detach", "data", "--rds", "orders")
    assert groups_of_database("orders") == [world.office]


def test_a_database_is_waited_for_before_its_target_exists(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: clients/knock_admin/targets.py: `        attach.wait(aws, final)` -> `        pass`"""
    make_database(world, "orders")
    looks: list[list[str]] = []
    """The groups that were the target's at each look at the database."""

    def membership(self: DBInstance) -> list[dict[str, str]]:
        looks.append(pool(world, "data"))
        adding = len(self.vpc_security_group_ids) > 1 and len(looks) < 8
        return [
            {
                "VpcSecurityGroupId": group,
                "Status": "adding" if adding and group != world.office else "active",
            }
            for group in self.vpc_security_group_ids
        ]

    monkeypatch.setattr(DBInstance, "vpc_security_group_membership_list", property(membership))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    result = add(world, "--rds", "orders")
    assert "waiting for database orders: it is available" in result.err
    assert len(looks) >= 8
    assert not any(looks), "no group is tagged as the target's before it is attached"


def test_a_change_that_is_not_done_in_time_is_an_error_and_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database(world, "orders")
    monkeypatch.setattr(attach, "PATIENCE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(attach.Database, "unfinished", lambda *_: "it is modifying")
        result = world.run("target", "add", "data", "--ports", "5432/tcp", "--rds", "orders")
    assert (result.code, "database orders is not done after 0 minutes: it is modifying" in result.err) == (
        1,
        True,
    )
    assert "Run the same command again" in result.err
    assert pool(world, "data") == []
    add(world, "--rds", "orders")
    assert groups_of_database("orders") == [world.office, *pool(world, "data")]


def test_an_instance_of_a_cluster_stands_for_the_cluster(world: World) -> None:
    rds = client("rds")
    rds.create_db_cluster(
        DBClusterIdentifier="shop",
        Engine="aurora-postgresql",
        MasterUsername="u",
        MasterUserPassword="not-a-secret",
        VpcSecurityGroupIds=[world.office],
    )
    rds.create_db_instance(
        DBInstanceIdentifier="shop-1",
        DBInstanceClass="db.r5.large",
        Engine="aurora-postgresql",
        DBClusterIdentifier="shop",
    )
    result = add(world, "--rds", "shop-1")
    assert "shop-1 is of the cluster shop" in result.err
    assert "attached to database cluster shop" in result.out
    assert families(world, "data") == "ipv4"
    groups = rds.describe_db_clusters(DBClusterIdentifier="shop")["DBClusters"][0]["VpcSecurityGroups"]
    assert [group["VpcSecurityGroupId"] for group in groups] == [world.office, *pool(world, "data")]
    world.ok("target", "detach", "data", "--all")
    groups = rds.describe_db_clusters(DBClusterIdentifier="shop")["DBClusters"][0]["VpcSecurityGroups"]
    assert [group["VpcSecurityGroupId"] for group in groups] == [world.office]


def test_a_database_has_a_limit_of_its_own(world: World) -> None:
    make_database(world, "orders")
    result = world.run("target", "add", "data", "--ports", "5432/tcp", "--groups", "5", "--rds", "orders")
    assert (result.code, "5 security groups, which AWS raises for nobody" in result.err) == (1, True)
    assert f"database orders would have 6: {world.office} and the target's 5" in result.err


def test_a_database_that_does_not_exist_is_an_error(world: World) -> None:
    result = world.run("target", "add", "data", "--ports", "5432/tcp", "--rds", "nope")
    assert (result.code, "There is no DB instance and no DB cluster nope here" in result.err) == (1, True)


def test_ls_warns_of_a_service_that_it_may_not_ask(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    real_pages = Aws.pages

    def pages(self: Aws, service: str, operation: str, items: str, **more: Any) -> Iterator[Any]:
        if service == "rds":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeDBInstances")
        return real_pages(self, service, operation, items, **more)

    add(world, "--eip", world.eip)
    monkeypatch.setattr(Aws, "pages", pages)
    result = world.ok("target", "ls")
    assert "warning: RDS cannot be asked, so what is attached there is not shown." in result.err
    assert world.eni in result.out


# ---------------------------------------------------------------------------- ECS


def network_of_service() -> dict[str, Any]:
    (service,) = client("ecs").describe_services(cluster="main", services=["web"])["services"]
    network: dict[str, Any] = service["networkConfiguration"]["awsvpcConfiguration"]
    return network


def test_a_service_keeps_its_groups_and_its_network_and_is_waited_for(
    world: World, deploys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_service(world, groups=[world.office])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    result = add(world, "--ecs", "main/web")
    assert "waiting for ECS service main/web: " in result.err
    network = {"subnets": world.subnets[:2], "assignPublicIp": "ENABLED"}
    assert network_of_service() == {**network, "securityGroups": [world.office, *pool(world, "data")]}
    assert "ecs main/web" in world.ok("target", "ls", "data").out
    deploys[:] = ["COMPLETED"]
    world.ok("target", "detach", "data", "--all")
    assert network_of_service() == {**network, "securityGroups": [world.office]}


def test_a_service_without_a_group_keeps_the_default_one_that_its_tasks_have(
    world: World, deploys: list[str]
) -> None:
    """A service that names no group has the default one; naming the first would replace it."""
    make_service(world)
    add(world, "--ecs", "main/web")
    default = world.ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["default"]}])
    assert network_of_service()["securityGroups"] == [
        default["SecurityGroups"][0]["GroupId"],
        *pool(world, "data"),
    ]


def test_a_deployment_that_failed_is_an_error_makes_no_target_and_can_be_undone(
    world: World, deploys: list[str]
) -> None:
    make_service(world, groups=[world.office])
    deploys[:] = ["FAILED"]
    result = world.run("target", "add", "data", "--ports", "443/tcp", "--ecs", "main/web")
    assert (
        result.code,
        "The deployment of ECS service main/web failed: tasks failed to start" in result.err,
    ) == (
        1,
        True,
    )
    assert pool(world, "data") == []
    assert len(network_of_service()["securityGroups"]) == 2, (
        "the group is attached, and not tagged as a target's"
    )
    deploys[:] = ["COMPLETED"]
    world.ok("target", "detach", "data", "--all")
    assert network_of_service()["securityGroups"] == [world.office]
    world.ok("target", "rm", "data")
    assert "has no target data" in world.run("target", "detach", "data", "--all").err


def test_a_service_that_cannot_be_attached_to_says_what_to_do(world: World) -> None:
    make_service(world, groups=[world.office], controller="CODE_DEPLOY")
    for name, message in (
        ("main/web", "is deployed by CODE_DEPLOY, which sets its groups"),
        ("main/nope", "There is no ECS service nope in the cluster main"),
        ("nope/web", "There is no ECS cluster nope here"),
    ):
        result = world.run("target", "add", "data", "--ports", "443/tcp", "--ecs", name)
        assert (result.code, message in result.err) == (1, True), result.err
    backend = ecs_backends[ACCOUNT][REGION]
    (service,) = backend.services.values()
    service.network_configuration = {}
    result = world.run("target", "add", "data", "--ports", "443/tcp", "--ecs", "main/web")
    assert (result.code, "no interfaces of their own" in result.err) == (1, True)
    assert world.run("target", "add", "data", "--ports", "443/tcp", "--ecs", "web").code == 2


# ---------------------------------------------------------------------------- ElastiCache


def groups_of_cache(name: str) -> list[str]:
    (cache,) = client("elasticache").describe_cache_clusters(CacheClusterId=name)["CacheClusters"]
    return [group["SecurityGroupId"] for group in cache["SecurityGroups"]]


@pytest.mark.usefixtures("caches")
def test_a_cache_keeps_its_groups_and_loses_only_the_targets(world: World) -> None:
    make_caches(world)
    result = add(world, "--elasticache", "sessions", "queue")
    assert "attached to cache sessions\nattached to cache queue\n" in result.out
    for name in ("sessions", "queue-001"):
        assert groups_of_cache(name) == [world.office, *pool(world, "data")]
    assert "elasticache queue" in world.ok("target", "ls").out
    world.ok("target", "detach", "data", "--all")
    for name in ("sessions", "queue-001"):
        assert groups_of_cache(name) == [world.office]
    result = world.run("target", "add", "data", "--elasticache", "nope")
    assert (result.code, "no cache cluster and no replication group nope" in result.err) == (1, True)


# ---------------------------------------------------------------------------- address families


def interface(world: World, *families: str) -> str:
    """Make an interface with addresses of these families."""
    eni = world.make_interface(world.office)
    if "ipv6" in families:
        world.ec2.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6Addresses=["2001:db8::1"])
    return eni


def test_an_interface_tells_the_families_of_its_target(world: World) -> None:
    """Mutation: clients/knock_admin/attach.py: `{IPV6} if described.get("Ipv6Addresses") else set()` ->
    `set()`
    """
    add(world, "--interface", interface(world, "ipv4", "ipv6"))
    assert families(world, "data") == "ipv4 ipv6"
    result = world.ok("target", "add", "other", "--ports", "22/tcp", "--interface", interface(world, "ipv4"))
    assert families(world, "other") == "ipv4"
    assert "opens 22/tcp with 1 group, attached in 1 place, for IPv4." in result.out


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ipv4", "ipv4"),
        ("dualstack", "ipv4 ipv6"),
        ("dualstack-without-public-ipv4", "ipv6"),
        ("something new", ""),
    ],
)
def test_a_load_balancer_tells_the_families_of_its_target(world: World, kind: str, expected: str) -> None:
    balancer = world.make_balancer(groups=[world.office])
    (model,) = elbv2_backends[ACCOUNT][REGION].load_balancers.values()
    model.ip_address_type = kind  # moto's SetIpAddressType does not know all of them
    add(world, "--load-balancer", balancer)
    assert families(world, "data") == expected


def test_families_grow_with_what_is_attached_and_keep_what_an_operator_set(world: World) -> None:
    add(world, "--interface", interface(world, "ipv4"))
    world.ok("target", "set", "data", "--families", "ipv6")
    assert families(world, "data") == "ipv6"
    world.ok("target", "add", "data")
    assert families(world, "data") == "ipv6", "nothing new is attached"
    result = world.ok("target", "add", "data", "--interface", interface(world, "ipv4"))
    assert families(world, "data") == "ipv4 ipv6"
    assert "it can be reached over IPv4 and IPv6" in result.out
    world.ok("target", "set", "data", "--families", "auto")
    assert families(world, "data") == "ipv4"
    world.ok("target", "set", "data", "--families", "any")
    assert families(world, "data") == ""


def test_a_targets_families_are_unknown_while_those_of_one_attachment_are(world: World) -> None:
    add(world, "--interface", interface(world, "ipv4"))
    make_database(world, "orders")  # moto gives no NetworkType
    result = world.ok("target", "add", "data", "--rds", "orders")
    assert families(world, "data") == ""
    assert "is not known now: knocks over both are accepted" in result.out


def test_a_new_group_is_not_made_where_it_could_not_be_attached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a pod's interface, which EKS manages: its group was adopted."""
    group = world.make_group("pods")
    eni = world.make_interface(group)
    world.ok("target", "adopt", "pods", group, "--ports", "443/tcp")
    real_pages = Aws.pages

    def pages(self: Aws, service: str, operation: str, items: str, **more: Any) -> Iterator[Any]:
        for item in real_pages(self, service, operation, items, **more):
            managed = {"Description": "aws-K8S-branch-eni"}
            yield {**item, **managed} if operation == "describe_network_interfaces" else item

    monkeypatch.setattr(Aws, "pages", pages)
    result = world.run("target", "grow", "pods", "--groups", "2")
    assert (result.code, f"{eni} (aws-K8S-branch-eni)" in result.err) == (1, True)
    assert "`knock-admin target adopt pods SG`" in result.err
    assert eni in world.ok("target", "ls").out
