"""Databases, services and caches that a target's groups are attached to; and mends of moto's for them."""

from __future__ import annotations

from typing import Any

import pytest
from moto.core.responses import ActionResult
from moto.ecs.models import EC2ContainerServiceBackend
from moto.elasticache.models import CacheCluster
from moto.elasticache.responses import ElastiCacheResponse

from tests.clients.admin_support import World, client


def make_database(world: World, name: str, **more: Any) -> None:
    client("rds").create_db_instance(
        DBInstanceIdentifier=name,
        DBInstanceClass="db.t3.micro",
        Engine="postgres",
        AllocatedStorage=10,
        MasterUsername="u",
        MasterUserPassword="not-a-secret",
        **{"VpcSecurityGroupIds": [world.office], **more},
    )


def mend_deployments(patch: pytest.MonkeyPatch, states: list[str]) -> None:
    """Make an update of a service's network a deployment, which moto does not.

    Each call that describes it gives the next of these states, and the last one from then on.
    """
    update_service = EC2ContainerServiceBackend.update_service

    def update(self: EC2ContainerServiceBackend, properties: dict[str, Any]) -> Any:
        service = update_service(self, properties)
        service.deployments = [
            {
                **service.deployments[0],
                "id": "ecs-svc/new",
                "networkConfiguration": service.network_configuration,
                "rolloutState": states[0],
                "rolloutStateReason": "tasks failed to start",
            },
            {**service.deployments[0], "status": "ACTIVE"},
        ]
        return service

    describe = EC2ContainerServiceBackend.describe_services

    def described(self: EC2ContainerServiceBackend, *arguments: Any) -> Any:
        answer = describe(self, *arguments)
        for service in answer[0]:
            if service.deployments[0]["id"] == "ecs-svc/new":
                state = service.deployments[0]["rolloutState"] = (
                    states.pop(0) if len(states) > 1 else states[0]
                )
                if state == "COMPLETED":
                    del service.deployments[1:]
        return answer

    patch.setattr(EC2ContainerServiceBackend, "update_service", update)
    patch.setattr(EC2ContainerServiceBackend, "describe_services", described)


def make_service(world: World, *, groups: list[str] | None = None, controller: str = "ECS") -> None:
    ecs = client("ecs")
    ecs.create_cluster(clusterName="main")
    ecs.register_task_definition(
        family="t", networkMode="awsvpc", containerDefinitions=[{"name": "a", "image": "a", "memory": 10}]
    )
    network = {"subnets": world.subnets[:2], "assignPublicIp": "ENABLED", "securityGroups": groups or []}
    ecs.create_service(
        cluster="main",
        serviceName="web",
        taskDefinition="t",
        desiredCount=2,
        networkConfiguration={"awsvpcConfiguration": network},
        deploymentController={"type": controller},
    )


def mend_caches(patch: pytest.MonkeyPatch) -> None:
    """Let moto give and change the security groups of caches, and of the clusters of a replication group."""

    def security_groups(self: CacheCluster) -> list[dict[str, str]]:
        return [{"SecurityGroupId": group, "Status": "active"} for group in self.security_group_ids]

    def modify_cluster(self: ElastiCacheResponse) -> Any:
        cluster = self.elasticache_backend.cache_clusters[self._get_param("CacheClusterId")]
        cluster.security_group_ids = self._get_param("SecurityGroupIds")
        return ActionResult({"CacheCluster": cluster})

    def modify_group(self: ElastiCacheResponse) -> Any:
        group = self.elasticache_backend.replication_groups[self._get_param("ReplicationGroupId")]
        for cluster in self.elasticache_backend.cache_clusters.values():
            if cluster.replication_group_id == group.replication_group_id:
                cluster.security_group_ids = self._get_param("SecurityGroupIds")
        return ActionResult({"ReplicationGroup": group})

    patch.setattr(CacheCluster, "security_groups", property(security_groups), raising=False)
    patch.setattr(ElastiCacheResponse, "modify_cache_cluster", modify_cluster, raising=False)
    patch.setattr(ElastiCacheResponse, "modify_replication_group", modify_group)


def make_caches(world: World) -> None:
    """Make a cluster of its own, `sessions`, and a replication group of one, `queue`."""
    cache = client("elasticache")
    for name, more in (
        ("sessions", {"NetworkType": "dual_stack"}),
        ("queue-001", {"ReplicationGroupId": "queue"}),
    ):
        cache.create_cache_cluster(
            CacheClusterId=name,
            Engine="redis",
            CacheNodeType="cache.t4g.micro",
            NumCacheNodes=1,
            SecurityGroupIds=[world.office],
            **more,
        )
    cache.create_replication_group(
        ReplicationGroupId="queue",
        ReplicationGroupDescription="d",
        Engine="redis",
        CacheNodeType="cache.t4g.micro",
    )
