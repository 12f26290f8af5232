"""The resources that security groups are attached to: finding them, and changing their groups.

| kind | named by | where its groups are set | when the change is done |
|---|---|---|---|
| network interface | `--eip`, `--instance`, `--interface` | the interface | at once |
| load balancer | `--load-balancer` | the load balancer | at once |
| RDS or Aurora | `--rds` | the cluster, or an instance without one | minutes later |
| ECS service | `--ecs` | its tasks' network configuration: a deployment | when tasks are replaced |
| ElastiCache | `--elasticache` | the replication group, or a cluster without one | minutes later |

No service has a call that adds or removes one group: the whole list is replaced. So a change that another
program makes between reading the list and replacing it is lost.

Where AWS answers before the change is done, `wait` polls until it is. All other resources with groups (launch
templates, pods, functions in a VPC) are for `target adopt`: their groups are set where they are defined.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from botocore.exceptions import ClientError

from knock_admin.errors import DENIED, AdminError, code_of, translated
from knock_admin.output import note, progress, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from knock_admin.aws import Aws

FILTER_VALUES = 200
"""The most values in a filter of EC2's."""

# https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html ("Security groups (VPC)", not
# adjustable)
# https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_AwsVpcConfiguration.html
FIXED_LIMIT = 5

PAUSE = 5.0
"""Seconds between two polls of a resource that is being changed."""
PATIENCE = 1800.0
"""Seconds after which `wait` gives up. An ECS deployment that cannot start its tasks never ends."""

IPV4, IPV6 = "ipv4", "ipv6"
OPTIONS = ("eip", "instance", "interface", "load_balancer", "rds", "ecs", "elasticache")
"""The options of the command line that name resources."""

# How the descriptions begin of interfaces that AWS makes for the kinds above.
_KNOWN = (
    "ELB ",
    "RDSNetworkInterface",
    "ElastiCache",
    "arn:aws:ecs:",
    "arn:aws-us-gov:ecs:",
    "arn:aws-cn:ecs:",
)


@dataclass(frozen=True)
class Holder:
    """A resource that security groups are attached to."""

    id: str
    vpc: str
    groups: tuple[str, ...]
    families: frozenset[str] = frozenset()
    """The address families it can be reached over; empty if its description does not have them."""

    kind: ClassVar[str] = ""
    limit: ClassVar[int | None] = None
    """The most groups it may have; None for the quota of a network interface."""

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def brief(self) -> str:
        """A short name, for a table."""
        return self.id

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        """Replace its groups, in one call."""
        raise NotImplementedError

    def unfinished(self, _aws: Aws, _groups: Sequence[str], /) -> str:
        """Say what remains of a change to these groups; empty when it is done."""
        return ""


@dataclass(frozen=True)
class Interface(Holder):
    kind = "interface"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        aws.client("ec2").modify_network_interface_attribute(NetworkInterfaceId=self.id, Groups=list(groups))


@dataclass(frozen=True)
class LoadBalancer(Holder):
    kind = "load balancer"

    @property
    def brief(self) -> str:
        return self.id.split("loadbalancer/")[-1]

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        aws.client("elbv2").set_security_groups(LoadBalancerArn=self.id, SecurityGroups=list(groups))


@dataclass(frozen=True)
class Database(Holder):
    """A DB instance that is in no cluster."""

    kind = "database"
    limit = FIXED_LIMIT

    @property
    def brief(self) -> str:
        return f"rds {self.id}"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        aws.client("rds").modify_db_instance(
            DBInstanceIdentifier=self.id, VpcSecurityGroupIds=list(groups), ApplyImmediately=True
        )

    def unfinished(self, aws: Aws, groups: Sequence[str], /) -> str:
        described = aws.client("rds").describe_db_instances(DBInstanceIdentifier=self.id)["DBInstances"][0]
        return _differing(_of_rds(described), groups) and f"it is {described['DBInstanceStatus']}"


@dataclass(frozen=True)
class DatabaseCluster(Holder):
    """An Aurora or Multi-AZ cluster. Its instances have the cluster's groups."""

    kind = "database cluster"
    limit = FIXED_LIMIT

    @property
    def brief(self) -> str:
        return f"rds {self.id}"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        aws.client("rds").modify_db_cluster(
            DBClusterIdentifier=self.id, VpcSecurityGroupIds=list(groups), ApplyImmediately=True
        )

    def unfinished(self, aws: Aws, groups: Sequence[str], /) -> str:
        described = aws.client("rds").describe_db_clusters(DBClusterIdentifier=self.id)["DBClusters"][0]
        return _differing(_of_rds(described), groups) and f"it is {described['Status']}"


@dataclass(frozen=True)
class Service(Holder):
    """An ECS service whose tasks have their own network interfaces (`awsvpc`)."""

    network: tuple[tuple[str, Any], ...] = ()
    """The rest of its awsvpc configuration, which a change must repeat."""

    kind = "ECS service"
    limit = FIXED_LIMIT

    @property
    def brief(self) -> str:
        return f"ecs {self.id}"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        cluster, _, name = self.id.partition("/")
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in self.network}
        aws.client("ecs").update_service(
            cluster=cluster,
            service=name,
            networkConfiguration={"awsvpcConfiguration": {**settings, "securityGroups": list(groups)}},
        )

    def unfinished(self, aws: Aws, groups: Sequence[str], /) -> str:
        """Look at the deployment: a running task keeps the groups that it was started with."""
        deployments = _service(aws, self.id)["deployments"]
        ours = [
            deployment
            for deployment in deployments
            if set(_awsvpc(deployment).get("securityGroups", ())) == set(groups)
        ]
        # A failed deployment may have been rolled back: then the newest deployment has the old groups.
        failed = [deployment for deployment in ours if deployment.get("rolloutState") == "FAILED"]
        if failed:
            why = failed[0].get("rolloutStateReason", "ECS does not say why")
            raise AdminError(
                f"The deployment of {self} failed: {why}. Mend the service, then run the same command again."
            )
        newest = next((deployment for deployment in ours if deployment["status"] == "PRIMARY"), None)
        if newest is None:
            return "its deployment has not begun"
        if newest.get("rolloutState") == "COMPLETED" and len(deployments) == 1:
            return ""
        return f"{newest['runningCount']} of {newest['desiredCount']} new tasks run"


@dataclass(frozen=True)
class Cache(Holder):
    """An ElastiCache cluster, or a replication group with all its clusters."""

    replicated: bool = False

    kind = "cache"

    @property
    def brief(self) -> str:
        return f"elasticache {self.id}"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        client = aws.client("elasticache")
        parameters = {"SecurityGroupIds": list(groups), "ApplyImmediately": True}
        if self.replicated:
            client.modify_replication_group(ReplicationGroupId=self.id, **parameters)
        else:
            client.modify_cache_cluster(CacheClusterId=self.id, **parameters)

    def unfinished(self, aws: Aws, groups: Sequence[str], /) -> str:
        waiting = [
            f"{cluster['CacheClusterId']} is {cluster['CacheClusterStatus']}"
            for cluster in _members(aws, self.id)
            if _differing(_of_cache(cluster), groups)
        ]
        return ", ".join(waiting)


# ---------------------------------------------------------------------------- reading


def _of_rds(described: Mapping[str, Any]) -> dict[str, str]:
    """Give the groups of a database, each with its state: adding, active, removing."""
    memberships = described.get("VpcSecurityGroups", [])
    return {membership["VpcSecurityGroupId"]: membership["Status"] for membership in memberships}


def _staying(states: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(group for group, state in states.items() if state != "removing")


def _of_cache(described: Mapping[str, Any]) -> dict[str, str]:
    memberships = described.get("SecurityGroups", [])
    return {membership["SecurityGroupId"]: membership["Status"] for membership in memberships}


def _differing(states: Mapping[str, str], groups: Iterable[str]) -> str:
    """Name the groups that are to be added or removed; empty when there are none."""
    wanted = set(groups)
    unwanted = {group for group in states if group not in wanted}
    return " ".join(sorted(unwanted | {group for group in wanted if states.get(group) != "active"}))


def _network(described: Mapping[str, Any]) -> frozenset[str]:
    """Read the address families of a database or a cache; empty if AWS does not say."""
    return {
        "IPV4": frozenset({IPV4}),
        "IPV6": frozenset({IPV6}),
        "DUAL": frozenset({IPV4, IPV6}),
        "DUAL_STACK": frozenset({IPV4, IPV6}),
    }.get(str(described.get("NetworkType", "")).upper(), frozenset())


def _vpc_of(aws: Aws, name: str, groups: Sequence[str]) -> str:
    """Give the VPC of a resource, which is the VPC of its groups. Raises AdminError if it has no group."""
    if not groups:
        raise AdminError(f"{name} has no security group of a VPC, so none can be added to it.")
    described = aws.client("ec2").describe_security_groups(GroupIds=[groups[0]])["SecurityGroups"]
    return str(described[0]["VpcId"])


def _managed(described: Mapping[str, Any]) -> bool:
    """Say whether an interface's groups are set elsewhere: by an AWS service, or by Kubernetes for a pod.

    https://docs.aws.amazon.com/eks/latest/userguide/security-groups-for-pods.html
    """
    pod = str(described.get("Description", "")).lower().startswith("aws-k8s-branch-eni")
    return pod or bool(described.get("RequesterManaged"))


def interface(described: Mapping[str, Any]) -> Interface:
    """Read a network interface. Raises AdminError if an AWS service manages it."""
    if _managed(described):
        raise AdminError(
            f"{described['NetworkInterfaceId']} is managed by an AWS service "
            f"({described.get('Description')}): its groups are set there. A load balancer is named with "
            "--load-balancer, a database with --rds, an ECS service with --ecs, a cache with --elasticache; "
            "for others see `target adopt`."
        )
    return Interface(
        described["NetworkInterfaceId"],
        described["VpcId"],
        tuple(group["GroupId"] for group in described["Groups"]),
        _addresses(described),
    )


def _addresses(described: Mapping[str, Any]) -> frozenset[str]:
    families = {IPV6} if described.get("Ipv6Addresses") else set()
    return frozenset(families | ({IPV4} if described.get("PrivateIpAddress") else set()))


def load_balancer(described: Mapping[str, Any]) -> LoadBalancer:
    """Read a load balancer. Raises AdminError if it cannot have groups."""
    groups = tuple(described.get("SecurityGroups", []))
    if described["Type"] not in ("application", "network"):
        raise AdminError(
            f"{described['LoadBalancerArn']} is a {described['Type']} load balancer, and those have no "
            "groups."
        )
    if described["Type"] == "network" and not groups:
        raise AdminError(
            f"{described['LoadBalancerArn']} is a network load balancer that was made without security "
            "groups, and AWS lets none be added later. Make one with a group, or attach what is behind it."
        )
    # https://docs.aws.amazon.com/elasticloadbalancing/latest/application/application-load-balancers.html#ip-address-type
    families = {
        "ipv4": frozenset({IPV4}),
        "dualstack": frozenset({IPV4, IPV6}),
        "dualstack-without-public-ipv4": frozenset({IPV6}),
    }.get(described.get("IpAddressType", ""), frozenset())
    return LoadBalancer(described["LoadBalancerArn"], described["VpcId"], groups, families)


def _database(aws: Aws, described: Mapping[str, Any]) -> Database:
    name, groups = described["DBInstanceIdentifier"], _staying(_of_rds(described))
    return Database(name, _vpc_of(aws, f"The database {name}", groups), groups, _network(described))


def _database_cluster(aws: Aws, described: Mapping[str, Any]) -> DatabaseCluster:
    name, groups = described["DBClusterIdentifier"], _staying(_of_rds(described))
    return DatabaseCluster(
        name, _vpc_of(aws, f"The database cluster {name}", groups), groups, _network(described)
    )


def _named_database(aws: Aws, name: str) -> Holder:
    """Find a DB instance or cluster by its identifier. For an instance of a cluster, give the cluster."""
    rds, cluster = aws.client("rds"), name
    try:
        instance = rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
        if not instance.get("DBClusterIdentifier"):
            return _database(aws, instance)
        cluster = instance["DBClusterIdentifier"]
        note(
            f"{name} is of the cluster {cluster}, and its groups are the cluster's: all its instances get "
            "them"
        )
    except ClientError as error:
        if code_of(error) not in ("DBInstanceNotFound", "DBInstanceNotFoundFault"):
            raise
    try:
        return _database_cluster(aws, rds.describe_db_clusters(DBClusterIdentifier=cluster)["DBClusters"][0])
    except ClientError as error:
        if code_of(error) != "DBClusterNotFoundFault":
            raise
        raise AdminError(
            f"There is no DB instance and no DB cluster {name} here; see `aws rds describe-db-instances`."
        ) from error


def _service(aws: Aws, name: str) -> dict[str, Any]:
    cluster, slash, service = name.partition("/")
    if not slash or not cluster or not service:
        raise AdminError(f"An ECS service is named like main/web, its cluster first, not {name!r}.")
    services: list[dict[str, Any]]
    try:
        services = aws.client("ecs").describe_services(cluster=cluster, services=[service])["services"]
    except ClientError as error:
        if code_of(error) != "ClusterNotFoundException":
            raise
        raise AdminError(f"There is no ECS cluster {cluster} here; see `aws ecs list-clusters`.") from error
    if not services or services[0].get("status") != "ACTIVE":
        raise AdminError(
            f"There is no ECS service {service} in the cluster {cluster}; see `aws ecs list-services "
            f"--cluster {cluster}`."
        )
    return services[0]


def _awsvpc(described: Mapping[str, Any]) -> dict[str, Any]:
    return dict((described.get("networkConfiguration") or {}).get("awsvpcConfiguration") or {})


def _named_service(aws: Aws, name: str) -> Service:
    service = _service(aws, name)
    network = _awsvpc(service)
    if not network:
        raise AdminError(
            f"The tasks of the ECS service {name} have no interfaces of their own (network mode awsvpc): "
            "attach the instances they run on."
        )
    controller = service.get("deploymentController", {}).get("type", "ECS")
    if controller != "ECS":
        raise AdminError(
            f"The ECS service {name} is deployed by {controller}, which sets its groups: add a group there, "
            "and take it in with `target adopt`."
        )
    return _read_service(aws, name, network)


def _read_service(aws: Aws, name: str, network: Mapping[str, Any]) -> Service:
    ec2, groups = aws.client("ec2"), tuple(network.get("securityGroups", ()))
    subnets = ec2.describe_subnets(SubnetIds=[network["subnets"][0]])["Subnets"]
    vpc = str(subnets[0]["VpcId"])
    if not groups:  # then tasks have the default group, which a list of groups would replace
        in_vpc = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}]
        groups = tuple(
            group["GroupId"] for group in ec2.describe_security_groups(Filters=in_vpc)["SecurityGroups"]
        )
    settings = tuple(
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in network.items()
        if key != "securityGroups"
    )
    return Service(name, vpc, groups, frozenset(), settings)


def _members(aws: Aws, name: str) -> list[dict[str, Any]]:
    """List the cache clusters of a replication group, or the single cluster of that name."""
    client = aws.client("elasticache")
    try:
        clusters = client.describe_cache_clusters(CacheClusterId=name)["CacheClusters"]
    except ClientError as error:
        if code_of(error) != "CacheClusterNotFound":
            raise
        try:
            group = client.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"][0]
        except ClientError as missing:
            if code_of(missing) != "ReplicationGroupNotFoundFault":
                raise
            raise AdminError(
                f"There is no cache cluster and no replication group {name} here. The groups of a "
                "serverless cache are set there; take one in with `target adopt`."
            ) from missing
        clusters = [
            cluster
            for member in group["MemberClusters"]
            for cluster in client.describe_cache_clusters(CacheClusterId=member)["CacheClusters"]
        ]
    return list(clusters)


def _cache(aws: Aws, described: Mapping[str, Any]) -> Cache:
    group = described.get("ReplicationGroupId")
    name, groups = str(group or described["CacheClusterId"]), _staying(_of_cache(described))
    return Cache(name, _vpc_of(aws, f"The cache {name}", groups), groups, _network(described), bool(group))


def _named_cache(aws: Aws, name: str) -> Cache:
    return _cache(aws, _members(aws, name)[0])


# ---------------------------------------------------------------------------- finding


def named(aws: Aws, places: Mapping[str, Sequence[str]]) -> list[Holder]:
    """Find the resources that the command line names, by option; each once. Raises AdminError."""
    holders: list[Holder] = []
    if ids := _named_interfaces(aws, places):
        listed = aws.pages("ec2", "describe_network_interfaces", "NetworkInterfaces", NetworkInterfaceIds=ids)
        holders += [interface(described) for described in listed]
    balancers = list(dict.fromkeys(places.get("load_balancer", ())))
    arns = [balancer for balancer in balancers if balancer.startswith("arn:")]
    for how, which in (
        ("LoadBalancerArns", arns),
        ("Names", [balancer for balancer in balancers if balancer not in arns]),
    ):  # a call takes either ARNs or names
        if which:
            listed = aws.pages("elbv2", "describe_load_balancers", "LoadBalancers", **{how: which})
            holders += [load_balancer(described) for described in listed]
    by_name: dict[str, Callable[[Aws, str], Holder]] = {
        "rds": _named_database,
        "ecs": _named_service,
        "elasticache": _named_cache,
    }
    holders += [read(aws, name) for option, read in by_name.items() for name in places.get(option, ())]
    return list({(holder.kind, holder.id): holder for holder in holders}.values())


def _named_interfaces(aws: Aws, places: Mapping[str, Sequence[str]]) -> list[str]:
    ec2 = aws.client("ec2")
    ids = list(places.get("interface", ()))
    for eip in places.get("eip", ()):
        key = "AllocationIds" if eip.startswith("eipalloc-") else "PublicIps"
        address = ec2.describe_addresses(**{key: [eip]})["Addresses"][0]
        if not address.get("NetworkInterfaceId"):
            raise AdminError(
                f"The Elastic IP {eip} is associated with nothing, so there is nothing to attach to."
            )
        ids.append(address["NetworkInterfaceId"])
    if instances := list(places.get("instance", ())):
        for reservation in aws.pages("ec2", "describe_instances", "Reservations", InstanceIds=instances):
            for instance in reservation["Instances"]:
                attached = [interface["NetworkInterfaceId"] for interface in instance["NetworkInterfaces"]]
                if not attached:
                    raise AdminError(f"The instance {instance['InstanceId']} has no network interface.")
                ids += attached
    return list(dict.fromkeys(ids))


def of_groups(aws: Aws, operation: str, items: str, groups: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the items that a describe operation of EC2's lists for any of the groups."""
    ids = sorted(set(groups))
    for start in range(0, len(ids), FILTER_VALUES):
        values = ids[start : start + FILTER_VALUES]
        yield from aws.pages("ec2", operation, items, Filters=[{"Name": "group-id", "Values": values}])


@dataclass(frozen=True)
class Attached:
    """The resources that some groups are attached to."""

    holders: tuple[Holder, ...]
    interfaces: tuple[Mapping[str, Any], ...]
    """All interfaces, also those that AWS made for a holder, or for a resource of an unknown kind."""

    @property
    def unsupported(self) -> list[str]:
        """Name the interfaces of resources that this program cannot attach groups to."""
        return [
            f"{interface['NetworkInterfaceId']} ({interface.get('Description') or 'managed by AWS'})"
            for interface in self.interfaces
            if _managed(interface) and not str(interface.get("Description", "")).startswith(_KNOWN)
        ]

    def places(self, group: str) -> frozenset[str]:
        """Name all resources and managed interfaces that a group is attached to."""
        holders = {str(holder) for holder in self.holders if group in holder.groups}
        return frozenset(
            holders
            | {
                interface["NetworkInterfaceId"]
                for interface in self.interfaces
                if _managed(interface) and group in {listed["GroupId"] for listed in interface["Groups"]}
            }
        )

    @property
    def families(self) -> frozenset[str]:
        """The address families over which any of them can be reached; empty if not known."""
        return families_of(self.holders, self.interfaces)


def families_of(holders: Iterable[Holder], interfaces: Iterable[Mapping[str, Any]] = ()) -> frozenset[str]:
    """Join the address families of resources. Empty if one is not known: it may be reachable over both."""
    families, tasks = set[str](), False
    for interface in interfaces:
        description = str(interface.get("Description", ""))
        if description.startswith("ELB "):
            continue  # a load balancer without public IPv4 has private IPv4 there
        families |= _addresses(interface)
        tasks |= ":ecs:" in description
    for holder in holders:
        if not holder.families and not (isinstance(holder, Service) and tasks):
            return frozenset()
        families |= holder.families
    return frozenset(families)


def attached(aws: Aws, groups: Iterable[str]) -> Attached:
    """Find the resources that any of the groups is attached to.

    A load balancer is listed itself, and its interfaces are not. A service that the credentials may not list
    is left out, with a warning.
    """
    wanted = set(groups)
    if not wanted:
        return Attached((), ())
    listed = of_groups(aws, "describe_network_interfaces", "NetworkInterfaces", wanted)
    interfaces = {described["NetworkInterfaceId"]: described for described in listed}
    holders: list[Holder] = [
        interface(described) for described in interfaces.values() if not _managed(described)
    ]
    balancers = aws.pages("elbv2", "describe_load_balancers", "LoadBalancers")
    holders += [
        load_balancer(balancer) for balancer in balancers if wanted & set(balancer.get("SecurityGroups", []))
    ]
    for service, look in (("RDS", _databases), ("ECS", _services), ("ElastiCache", _caches)):
        try:
            holders += look(aws, wanted)
        except ClientError as error:
            if code_of(error) not in DENIED:
                raise
            missing = translated(error, aws.calls.last)
            warn(f"{service} cannot be asked, so what is attached there is not shown. {missing}")
    return Attached(tuple(holders), tuple(interfaces.values()))


def _databases(aws: Aws, wanted: set[str]) -> list[Holder]:
    instances: list[Holder] = [
        _database(aws, instance)
        for instance in aws.pages("rds", "describe_db_instances", "DBInstances")
        if not instance.get("DBClusterIdentifier") and wanted & _of_rds(instance).keys()
    ]
    clusters = aws.pages("rds", "describe_db_clusters", "DBClusters")
    return instances + [
        _database_cluster(aws, cluster) for cluster in clusters if wanted & _of_rds(cluster).keys()
    ]


def _services(aws: Aws, wanted: set[str]) -> list[Holder]:
    services: list[Holder] = []
    for cluster in aws.pages("ecs", "list_clusters", "clusterArns"):
        names = list(aws.pages("ecs", "list_services", "serviceArns", cluster=cluster))
        for start in range(0, len(names), 10):  # DescribeServices takes ten at most
            answer = aws.client("ecs").describe_services(
                cluster=str(cluster), services=[str(name) for name in names[start : start + 10]]
            )
            for service in answer["services"]:
                network = _awsvpc(service)
                if wanted & set(network.get("securityGroups", ())):
                    name = f"{str(cluster).rpartition('/')[2]}/{service['serviceName']}"
                    services.append(_read_service(aws, name, network))
    return services


def _caches(aws: Aws, wanted: set[str]) -> list[Holder]:
    clusters = aws.pages("elasticache", "describe_cache_clusters", "CacheClusters")
    caches = [_cache(aws, cluster) for cluster in clusters if wanted & _of_cache(cluster).keys()]
    return list({cache.id: cache for cache in caches}.values())


# ---------------------------------------------------------------------------- changing


def change(aws: Aws, changes: Mapping[Holder, Sequence[str]], doing: str) -> None:
    """Set the groups of each holder. AWS may finish the change later; see `wait`."""
    for number, (holder, groups) in enumerate(changes.items(), 1):
        progress(f"{doing} {number} of {len(changes)}: {holder}")
        holder.set_groups(aws, groups)


def wait(aws: Aws, changes: Mapping[Holder, Sequence[str]]) -> None:
    """Poll until every holder has exactly these groups, and report progress.

    Raises AdminError after PATIENCE, and for a deployment that fails. A dry run returns at once.
    """
    if aws.calls.dry_run:
        return
    deadline, reported = time.monotonic() + PATIENCE, dict[Holder, str]()
    while True:
        unfinished = {
            holder: text for holder, groups in changes.items() if (text := holder.unfinished(aws, groups))
        }
        for holder, text in unfinished.items():
            if reported.get(holder) != text:
                progress(f"waiting for {holder}: {text}")
        if not unfinished:
            return
        reported = unfinished
        if time.monotonic() >= deadline:
            raise AdminError(
                "; ".join(
                    f"{holder} is not done after {PATIENCE / 60:.0f} minutes: {text}"
                    for holder, text in unfinished.items()
                )
                + ". AWS goes on with it."
            )
        time.sleep(PAUSE)
