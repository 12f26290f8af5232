"""`knock-admin target`: pools of security groups, and what they are attached to.

A group is made in this order: create it, take its way out away, attach it, and only then tag it as the
target's. A group that is tagged is filled by the next knock, in order of its random id, so a group tagged
before it is attached would swallow rules that open nothing. Until then it carries `knock:unfinished`, by
which the next run of the same command finds it and goes on.

A new group lets everything out; the rules of all groups of an interface add up. So the pool's groups lose
that rule: attaching a target must open nothing, in or out.

`gather, decide, apply`: what would pass the limit of groups, lie in another VPC or leave an interface without
a group is refused before the first change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from knock_admin import tags
from knock_admin.errors import AdminError, UsageError, already_done
from knock_admin.output import Result, count, progress, table, warn
from knock_admin.tags import Ports

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator, Sequence

    from knock_admin.aws import Aws
    from knock_admin.stack import Stack

# https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html#vpc-limits-security-groups
GROUPS_PER_INTERFACE = ("L-2AFB9258", 5)
RULES_PER_GROUP = ("L-0EA8095F", 60)
WORLD = ("0.0.0.0/0", "::/0")
FILTER_VALUES = 200
"""The most values a filter of EC2's takes."""


@dataclass(frozen=True)
class Group:
    """One security group of a target's pool."""

    id: str
    name: str
    vpc: str
    tags: dict[str, str]

    @property
    def ports(self) -> tuple[Ports, ...]:
        """Read the ports. Raises AdminError naming the group."""
        try:
            return tags.parse_ports(self.tags.get(tags.PORTS, ""))
        except ValueError as error:
            raise AdminError(f"The tag {tags.PORTS} of {self.id} cannot be read: {error}") from error


@dataclass(frozen=True)
class Holder:
    """Something that security groups are attached to: a network interface or a load balancer."""

    id: str
    kind: str
    vpc: str
    groups: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    def set_groups(self, aws: Aws, groups: Sequence[str]) -> None:
        """Replace the groups by these, in one call.

        AWS has no call that adds or takes one group, so a change that somebody else makes between our reading
        and this call is lost.
        """
        if self.kind == "interface":
            aws.client("ec2").modify_network_interface_attribute(
                NetworkInterfaceId=self.id, Groups=list(groups)
            )
        else:
            aws.client("elbv2").set_security_groups(LoadBalancerArn=self.id, SecurityGroups=list(groups))


# ---------------------------------------------------------------------------- gather


def quota(aws: Aws, which: tuple[str, int]) -> int:
    """Give the account's own quota, or AWS's default when Service Quotas cannot be asked."""
    code, default = which
    try:
        answer = aws.client("service-quotas").get_service_quota(ServiceCode="vpc", QuotaCode=code)
    except (ClientError, BotoCoreError) as error:
        warn(f"the quota {code} cannot be read ({error}); taking AWS's default of {default}")
        return default
    return int(answer["Quota"]["Value"])


def _groups(aws: Aws, **filters: str) -> list[Group]:
    found = aws.pages(
        "ec2",
        "describe_security_groups",
        "SecurityGroups",
        Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()],
    )
    return sorted(
        (
            Group(each["GroupId"], each["GroupName"], each["VpcId"], tags.of(each.get("Tags", [])))
            for each in found
        ),
        key=lambda group: group.id,
    )


def pool_of(stack: Stack, name: str) -> list[Group]:
    """List the finished groups of a target, in the order in which they are filled."""
    return _groups(stack.aws, **{f"tag:{tags.STACK}": stack.name, f"tag:{tags.TARGET}": name})


def all_groups(stack: Stack) -> list[Group]:
    """List every group tagged for the stack, well-formed or not."""
    return _groups(stack.aws, **{f"tag:{tags.STACK}": stack.name})


def _unfinished(stack: Stack, name: str) -> list[Group]:
    return _groups(stack.aws, **{f"tag:{tags.UNFINISHED}": f"{stack.name}/{name}"})


def _existing(stack: Stack, name: str) -> list[Group]:
    pool = pool_of(stack, name)
    if not pool:
        raise _no_target(stack, name)
    return pool


def _no_target(stack: Stack, name: str) -> AdminError:
    return AdminError(f"The stack {stack.name} has no target {name}; see `knock-admin target ls`.")


def _interface(each: dict[str, Any]) -> Holder:
    if each.get("RequesterManaged"):
        raise AdminError(
            f"{each['NetworkInterfaceId']} is managed by an AWS service ({each.get('Description')}): its "
            "groups are set there. A load balancer is named with --load-balancer."
        )
    return Holder(
        each["NetworkInterfaceId"],
        "interface",
        each["VpcId"],
        tuple(group["GroupId"] for group in each["Groups"]),
    )


def _load_balancer(each: dict[str, Any]) -> Holder:
    groups = tuple(each.get("SecurityGroups", []))
    if each["Type"] not in ("application", "network"):
        raise AdminError(
            f"{each['LoadBalancerArn']} is a {each['Type']} load balancer, and those have no groups."
        )
    if each["Type"] == "network" and not groups:
        raise AdminError(
            f"{each['LoadBalancerArn']} is a network load balancer that was made without security groups, "
            "and AWS lets none be added later. Make one with a group, or attach what is behind it."
        )
    return Holder(each["LoadBalancerArn"], "load balancer", each["VpcId"], groups)


def _asked_holders(aws: Aws, args: Namespace) -> list[Holder]:
    """Find the interfaces and load balancers that the command line names. Raises AdminError."""
    ec2 = aws.client("ec2")
    ids: list[str] = list(args.interface)
    for eip in args.eip:
        key = "AllocationIds" if eip.startswith("eipalloc-") else "PublicIps"
        address = ec2.describe_addresses(**{key: [eip]})["Addresses"][0]
        if not address.get("NetworkInterfaceId"):
            raise AdminError(
                f"The Elastic IP {eip} is associated with nothing, so there is nothing to attach to."
            )
        ids.append(address["NetworkInterfaceId"])
    if args.instance:
        for reservation in aws.pages("ec2", "describe_instances", "Reservations", InstanceIds=args.instance):
            for instance in reservation["Instances"]:
                found = [interface["NetworkInterfaceId"] for interface in instance["NetworkInterfaces"]]
                if not found:
                    raise AdminError(f"The instance {instance['InstanceId']} has no network interface.")
                ids += found
    holders = []
    if ids:
        interfaces = aws.pages(
            "ec2",
            "describe_network_interfaces",
            "NetworkInterfaces",
            NetworkInterfaceIds=list(dict.fromkeys(ids)),
        )
        holders += [_interface(each) for each in interfaces]
    if args.load_balancer:
        balancers = aws.pages(
            "elbv2",
            "describe_load_balancers",
            "LoadBalancers",
            LoadBalancerArns=list(dict.fromkeys(args.load_balancer)),
        )
        holders += [_load_balancer(each) for each in balancers]
    return holders


def _of_groups(aws: Aws, operation: str, items: str, groups: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield what a describe operation of EC2's finds for any of the groups."""
    ids = sorted(set(groups))
    for start in range(0, len(ids), FILTER_VALUES):
        values = ids[start : start + FILTER_VALUES]
        yield from aws.pages("ec2", operation, items, Filters=[{"Name": "group-id", "Values": values}])


def holders_of(aws: Aws, groups: Iterable[str]) -> list[Holder]:
    """List what any of the groups is attached to. A load balancer is listed itself, not its interfaces."""
    wanted = set(groups)
    if not wanted:
        return []
    found = _of_groups(aws, "describe_network_interfaces", "NetworkInterfaces", wanted)
    interfaces = {each["NetworkInterfaceId"]: each for each in found if not each.get("RequesterManaged")}
    balancers = aws.pages("elbv2", "describe_load_balancers", "LoadBalancers")
    return [_interface(each) for each in interfaces.values()] + [
        _load_balancer(each) for each in balancers if wanted & set(each.get("SecurityGroups", []))
    ]


def rules_of(aws: Aws, groups: Iterable[str]) -> list[dict[str, Any]]:
    """List the ingress rules of groups, as EC2 shows them."""
    found = _of_groups(aws, "describe_security_group_rules", "SecurityGroupRules", groups)
    return [rule for rule in found if not rule["IsEgress"]]


def used(rules: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Count rules as the quota does: IPv4 and IPv6 apart, what names no CIDR (a group, a list) in both."""
    v4 = v6 = 0
    for rule in rules:
        v4 += "CidrIpv6" not in rule
        v6 += "CidrIpv4" not in rule
    return v4, v6


def world_open(aws: Aws, ports: Sequence[Ports], groups: Iterable[str]) -> list[str]:
    """Say which rules of these groups open one of these ports to the whole world."""
    return [
        f"{rule['GroupId']} opens {_rule_ports(rule)} to {rule.get('CidrIpv4') or rule.get('CidrIpv6')} "
        f"({rule['SecurityGroupRuleId']})"
        for rule in rules_of(aws, groups)
        if (rule.get("CidrIpv4") or rule.get("CidrIpv6")) in WORLD
        and any(_covers(rule, each) for each in ports)
    ]


def _covers(rule: dict[str, Any], ports: Ports) -> bool:
    if rule["IpProtocol"] == "-1":
        return True
    # Protocols are named or numbered: tcp is 6, udp 17.
    protocol = {"6": "tcp", "17": "udp"}.get(rule["IpProtocol"], rule["IpProtocol"])
    first: int = rule.get("FromPort", -1)
    last: int = rule.get("ToPort", -1)
    same = protocol == ports.protocol
    return same and (first == -1 or (first <= ports.last and ports.first <= last))


def _rule_ports(rule: dict[str, Any]) -> str:
    if rule["IpProtocol"] == "-1":
        return "everything"
    first, last = rule.get("FromPort", -1), rule.get("ToPort", -1)
    return f"{first if first == last else f'{first}-{last}'}/{rule['IpProtocol']}"


def _beside_the_world(
    aws: Aws, name: str, ports: Sequence[Ports], pool: set[str], holders: list[Holder]
) -> list[str]:
    """Say, a line each, which rules of other groups there make a target pointless."""
    others = {group for holder in holders for group in holder.groups} - pool
    found = world_open(aws, ports, others) if others else []
    return [f"the target {name} guards nothing there: {line}, and is attached beside it" for line in found]


# ---------------------------------------------------------------------------- decide and apply


def add(stack: Stack, args: Namespace) -> Result:
    """Make a target, complete one that is unfinished, or attach one to more. Twice changes nothing more."""
    pool, unfinished = pool_of(stack, args.name), _unfinished(stack, args.name)
    known = {group.ports for group in pool}
    asked = tags.parse_ports(" ".join(args.ports)) if args.ports else None
    if len(known) > 1:
        raise AdminError(
            f"The groups of the target {args.name} differ in {tags.PORTS}; make them equal first."
        )
    if not known and asked is None:
        raise UsageError(f"There is no target {args.name} yet: name its ports, like --ports 22/tcp.")
    if known and asked and known != {asked}:
        raise AdminError(
            f"The target {args.name} has the ports {_show(known.pop())}, not {_show(asked)}. To change them, "
            f"change the tag {tags.PORTS} of all its groups: {', '.join(group.id for group in pool)}."
        )
    ports = known.pop() if known else asked or ()
    return _complete(stack, args, ports, pool, unfinished, args.groups or max(1, len(pool)), args.vpc)


def grow(stack: Stack, args: Namespace) -> Result:
    """Give a target more groups, attached to all that the others are attached to."""
    pool = _existing(stack, args.name)
    return _complete(stack, args, pool[0].ports, pool, _unfinished(stack, args.name), args.groups, None)


def _complete(
    stack: Stack,
    args: Namespace,
    ports: tuple[Ports, ...],
    pool: list[Group],
    unfinished: list[Group],
    wanted: int,
    asked_vpc: str | None,
) -> Result:
    aws, name = stack.aws, args.name
    have = {group.id: group for group in [*pool, *unfinished]}
    holders = {holder.id: holder for holder in [*_asked_holders(aws, args), *holders_of(aws, have)]}
    vpc = vpc_of(aws, asked_vpc, have.values(), holders.values())
    missing = max(0, wanted - len(have))
    limit = quota(aws, GROUPS_PER_INTERFACE)
    total = len(have) + missing
    too_many = [
        f"{holder} would have {len(others) + total}: {', '.join(sorted(others))} and the target's {total}"
        for holder in holders.values()
        if len(others := set(holder.groups) - have.keys()) + total > limit
    ]
    if too_many:
        raise AdminError(
            f"An interface may have {limit} security groups here, and "
            + "; ".join(too_many)
            + ". Ask for fewer "
            "groups, detach others, or have the quota raised (Service Quotas, vpc, L-2AFB9258)."
        )

    ec2 = aws.client("ec2")
    made = [
        _create(stack, name, ports, vpc["VpcId"], number) for number in _numbers(stack, name, vpc, missing)
    ]
    new = [*(group.id for group in unfinished), *made]
    for group in new:
        _close_way_out(aws, group, vpc)
    everything = [*sorted(have), *made]
    attached = []
    for number, holder in enumerate(holders.values(), 1):
        groups = [*holder.groups, *(group for group in everything if group not in holder.groups)]
        if len(groups) > len(holder.groups):
            progress(f"attaching {number} of {len(holders)}: {holder}")
            holder.set_groups(aws, groups)
            attached.append(holder)
    if new:
        ec2.create_tags(
            Resources=new,
            Tags=[
                {"Key": tags.STACK, "Value": stack.name},
                {"Key": tags.TARGET, "Value": name},
                {"Key": tags.PORTS, "Value": _show(ports)},
            ],
        )
        ec2.delete_tags(Resources=new, Tags=[{"Key": tags.UNFINISHED}])
    for line in _beside_the_world(aws, name, ports, set(everything), list(holders.values())):
        warn(line)
    lines = [f"made {group} in {vpc['VpcId']}" for group in sorted(made)]
    lines += [f"finished {group.id}" for group in unfinished]
    lines += [f"attached to {holder}" for holder in attached]
    lines.append(
        f"The target {name} opens {_show(ports)} with {count(len(everything), 'group')}"
        + (f", attached in {count(len(holders), 'place')}." if holders else ".")
    )
    if not holders:
        lines.append("It is attached to nothing yet, so a knock lets nobody in: attach it with `target add`.")
    return Result(
        {
            "target": name,
            "ports": [str(each) for each in ports],
            "vpc": vpc["VpcId"],
            "groups": everything,
            "made": made,
            "attached": [holder.id for holder in attached],
        },
        lines,
    )


def vpc_of(aws: Aws, asked: str | None, groups: Iterable[Group], holders: Iterable[Holder]) -> dict[str, Any]:
    """Find the one VPC that everything lies in; the default VPC when nothing says. Raises AdminError."""
    reasons: dict[str, str] = {}
    for holder in holders:
        reasons.setdefault(holder.vpc, str(holder))
    for group in groups:
        reasons.setdefault(group.vpc, f"the group {group.id}")
    if asked:
        reasons.setdefault(asked, "--vpc")
    if len(reasons) > 1:
        raise AdminError(
            "A target lies in one VPC, and these are in several: "
            + ", ".join(f"{why} in {vpc}" for vpc, why in sorted(reasons.items()))
            + ". Make one target a VPC."
        )
    query: dict[str, Any] = (
        {"VpcIds": list(reasons)} if reasons else {"Filters": [{"Name": "is-default", "Values": ["true"]}]}
    )
    found: list[dict[str, Any]] = aws.client("ec2").describe_vpcs(**query)["Vpcs"]
    if not found:
        raise UsageError("There is no default VPC here: say where with --vpc, or what to attach to.")
    return found[0]


def _numbers(stack: Stack, name: str, vpc: dict[str, Any], missing: int) -> list[int]:
    """Choose numbers for new groups' names, which must be free in the VPC."""
    if not missing:
        return []
    taken = {group.name for group in _groups(stack.aws, **{"vpc-id": vpc["VpcId"]})}
    free = (n for n in range(1, len(taken) + missing + 1) if f"{stack.name}-{name}-{n}" not in taken)
    return [number for number, _ in zip(free, range(missing), strict=False)]


def _create(stack: Stack, name: str, ports: Sequence[Ports], vpc: str, number: int) -> str:
    ec2 = stack.aws.client("ec2")
    group = f"{stack.name}-{name}-{number}"
    made = ec2.create_security_group(
        GroupName=group,
        Description=f"Knock opens {_show(ports)} here (target {name} of {stack.name})"[:255],
        VpcId=vpc,
        TagSpecifications=[
            {
                "ResourceType": "security-group",
                "Tags": [
                    {"Key": "Name", "Value": group},
                    {"Key": tags.UNFINISHED, "Value": f"{stack.name}/{name}"},
                ],
            }
        ],
    )
    if not stack.aws.calls.dry_run:
        ec2.get_waiter("security_group_exists").wait(GroupIds=[made["GroupId"]], WaiterConfig={"Delay": 1})
    return str(made["GroupId"])


def _close_way_out(aws: Aws, group: str, vpc: dict[str, Any]) -> None:
    """Take a new group's rules that let everything out. What is gone already is done."""
    ways: list[dict[str, Any]] = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": WORLD[0]}]}]
    if vpc.get("Ipv6CidrBlockAssociationSet"):
        ways.append({"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": WORLD[1]}]})
    for way in ways:
        with already_done("InvalidPermission.NotFound"):
            aws.client("ec2").revoke_security_group_egress(GroupId=group, IpPermissions=[way])


def detach(stack: Stack, args: Namespace) -> Result:
    """Take the target's groups off what is named, or off everything, and keep the other groups there."""
    aws, pool = stack.aws, _existing(stack, args.name)
    ids = {group.id for group in pool}
    if args.all:
        holders = holders_of(aws, ids)
    else:
        holders = [holder for holder in _asked_holders(aws, args) if ids & set(holder.groups)]
        if not (args.eip or args.instance or args.interface or args.load_balancer):
            raise UsageError("Detach from what? Name it, or say --all.")
    left = {holder: [group for group in holder.groups if group not in ids] for holder in holders}
    bare = [str(holder) for holder, groups in left.items() if not groups]
    if bare:
        raise AdminError(
            f"{', '.join(bare)} would be left without a security group, which AWS does not allow: "
            "attach another first."
        )
    for holder, groups in left.items():
        progress(f"detaching from {holder}")
        holder.set_groups(aws, groups)
    lines = [f"detached from {holder}" for holder in holders] or [
        f"The target {args.name} is not attached there."
    ]
    return Result({"target": args.name, "detached": [holder.id for holder in holders]}, lines)


def remove(stack: Stack, args: Namespace) -> Result:
    """Delete a target's groups, if they hold no rule and are attached to nothing."""
    aws = stack.aws
    unfinished = _unfinished(stack, args.name)
    pool = [*(pool_of(stack, args.name) if unfinished else _existing(stack, args.name)), *unfinished]
    ids = list(dict.fromkeys(group.id for group in pool))
    rules, holders = rules_of(aws, ids), holders_of(aws, ids)
    if rules:
        raise AdminError(
            f"The target {args.name} still has {count(len(rules), 'rule')} "
            f"({', '.join(rule['SecurityGroupRuleId'] for rule in rules[:5])}{' …' * (len(rules) > 5)}). End "
            f"its grants with `knock-admin revoke --target {args.name}`; remove other rules by hand."
        )
    if holders:
        raise AdminError(
            f"The target {args.name} is still attached to {', '.join(map(str, holders))}: "
            f"`knock-admin target detach {args.name} --all` first."
        )
    for group in ids:
        aws.client("ec2").delete_security_group(GroupId=group)
    return Result({"target": args.name, "deleted": ids}, [*(f"deleted {group}" for group in ids)])


def show(stack: Stack, args: Namespace) -> Result:
    """List the targets: rules used and free by family, and what each group is attached to."""
    aws, groups = stack.aws, all_groups(stack)
    if args.name:
        if missing := {*args.name} - {group.tags.get(tags.TARGET) for group in groups}:
            raise _no_target(stack, ", ".join(sorted(missing)))
        groups = [group for group in groups if group.tags.get(tags.TARGET) in args.name]
    ids = [group.id for group in groups]
    room = quota(aws, RULES_PER_GROUP)
    rules, holders = rules_of(aws, ids), holders_of(aws, ids)
    targets: dict[str, dict[str, Any]] = {}
    rows = []
    warnings: dict[str, None] = {}  # each once, in order: the groups of a pool share what is beside them
    for group in sorted(groups, key=lambda group: (group.tags.get(tags.TARGET, ""), group.id)):
        name, ports = group.tags.get(tags.TARGET, ""), group.tags.get(tags.PORTS, "")
        warnings |= dict.fromkeys(faults_of(group))
        v4, v6 = used(rule for rule in rules if rule["GroupId"] == group.id)
        attached = [holder for holder in holders if group.id in holder.groups]
        targets.setdefault(name, {"name": name, "ports": ports.split(), "groups": []})["groups"].append(
            {
                "id": group.id,
                "name": group.name,
                "vpc": group.vpc,
                "rules": {
                    "ipv4": {"used": v4, "free": max(0, room - v4)},
                    "ipv6": {"used": v6, "free": max(0, room - v6)},
                },
                "attached": [holder.id for holder in attached],
            }
        )
        where = ", ".join(holder.id.split("loadbalancer/")[-1] for holder in attached) or "nothing"
        rows.append((name, ports, group.id, group.vpc, v4, max(0, room - v4), v6, max(0, room - v6), where))
        if not faults_of(group):
            warnings |= dict.fromkeys(_beside_the_world(aws, name, group.ports, {*ids}, attached))
    for line in warnings:
        warn(line)
    header = ("TARGET", "PORTS", "GROUP", "VPC", "V4 USED", "FREE", "V6 USED", "FREE", "ATTACHED TO")
    return Result({"targets": list(targets.values())}, table(rows, header))


def faults_of(group: Group) -> list[str]:
    """Say what is wrong with a group's tags; a group with a fault is opened for nobody."""
    readers = {tags.TARGET: tags.target_name, tags.PORTS: tags.parse_ports}
    faults = (tags.fault(tag, group.tags.get(tag, ""), read) for tag, read in readers.items())
    return [f"{group.id}: {fault}" for fault in faults if fault]


def _show(ports: Iterable[Ports]) -> str:
    return " ".join(map(str, ports))
