"""`knock-admin target`: pools of security groups, and the resources that they are attached to.

A group is made in this order: create it, remove its egress rules, attach it, and only then tag it as the
target's. The next knock may use a group as soon as it is tagged, so a group that is tagged before it is
attached would take rules that open nothing. Until then it has the tag `knock:unfinished`, by which the next
run of the same command finds it and continues.

A new group allows all egress, and the rules of all groups of an interface add up. So that rule is removed
from the pool's groups: attaching a target must open nothing, in or out.

Whoever may tag groups can forge these tags. The description of a group cannot be changed after it was made,
so it says which groups knock-admin made: only those are finished, or deleted.

`gather, decide, apply`: a change that would exceed the limit of groups, span several VPCs or leave an
interface without a group is refused before the first call that changes something.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from knock_admin import attach, inside, tags
from knock_admin.errors import AdminError, UsageError, already_done
from knock_admin.output import Result, count, table, warn
from knock_admin.tags import Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from knock_admin.attach import Attached, Holder
    from knock_admin.aws import Aws
    from knock_admin.stack import Stack

    Places = Mapping[str, Sequence[str]]
    """The resources that a command line names, by option (`attach.OPTIONS`)."""

# https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html#vpc-limits-security-groups
GROUPS_PER_INTERFACE = ("L-2AFB9258", 5)
RULES_PER_GROUP = ("L-0EA8095F", 60)
WORLD = ("0.0.0.0/0", "::/0")
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSecurityGroup.html
LONGEST_DESCRIPTION = 255
SCRATCH_DESCRIPTION = "A test of knock-admin doctor; it is attached to nothing and can be deleted"
"""The description of the group that `doctor --test-grant` makes."""


@dataclass(frozen=True)
class Group:
    """One security group of a target's pool."""

    id: str
    name: str
    vpc: str
    tags: dict[str, str]
    description: str

    @property
    def ports(self) -> tuple[Ports, ...]:
        """Its ports. Raises AdminError, which names the group, if its tag cannot be read."""
        try:
            return tags.parse_ports(self.tags.get(tags.PORTS, ""))
        except ValueError as error:
            raise AdminError(f"The tag {tags.PORTS} of {self.id} cannot be read: {error}") from error

    @property
    def families(self) -> frozenset[str]:
        """Its address families; empty if they are not known, or their tag cannot be read."""
        try:
            return frozenset(tags.parse_families(self.tags.get(tags.FAMILIES, "")))
        except ValueError:
            return frozenset()

    def made_for(self, stack: str) -> bool:
        """Say whether knock-admin made it for this stack, and so may finish and delete it.

        Name and description cannot be changed, unlike tags. The description names the target's first name
        and ports, which may have changed since.
        """
        scratch = self.description == SCRATCH_DESCRIPTION and self.name.startswith(f"{stack}-doctor-")
        target = re.fullmatch(rf"Knock opens .+ here \(target \S+ of {re.escape(stack)}\)", self.description)
        return self.tags.get(tags.MADE_BY) == tags.KNOCK_ADMIN and (scratch or target is not None)


# ---------------------------------------------------------------------------- gather


def quota(aws: Aws, which: tuple[str, int]) -> int:
    """Give the account's quota; AWS's default, with a warning, if Service Quotas cannot be called."""
    code, default = which
    try:
        answer = aws.client("service-quotas").get_service_quota(ServiceCode="vpc", QuotaCode=code)
    except (ClientError, BotoCoreError) as error:
        warn(f"the quota {code} cannot be read ({error}); taking AWS's default of {default}")
        return default
    return int(answer["Quota"]["Value"])


def groups_where(aws: Aws, **filters: str) -> list[Group]:
    """List the groups that meet all filters of EC2's, sorted by id."""
    listed = aws.pages(
        "ec2",
        "describe_security_groups",
        "SecurityGroups",
        Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()],
    )
    return sorted(map(read_group, listed), key=lambda group: group.id)


def read_group(described: Mapping[str, Any]) -> Group:
    """Read a group as EC2 describes it."""
    return Group(
        described["GroupId"],
        described["GroupName"],
        described["VpcId"],
        tags.of(described.get("Tags", [])),
        described["Description"],
    )


def pool_of(stack: Stack, name: str) -> list[Group]:
    """List the finished groups of a target, in the order in which knocks use them."""
    return groups_where(stack.aws, **{f"tag:{tags.STACK}": stack.name, f"tag:{tags.TARGET}": name})


def all_groups(stack: Stack) -> list[Group]:
    """List all groups with the stack's tag, also those with malformed tags."""
    return groups_where(stack.aws, **{f"tag:{tags.STACK}": stack.name})


def unfinished_groups(stack: Stack, name: str) -> list[Group]:
    """List the groups of a target that a command has begun to make or to remove.

    Groups that have the tag and were not made by knock-admin are left out, with a warning.
    """
    made, foreign = marked_unfinished(stack, name)
    for group in foreign:
        warn(forged(group))
    return made


def marked_unfinished(stack: Stack, name: str = "*") -> tuple[list[Group], list[Group]]:
    """List the groups with the tag `knock:unfinished` of a target, or of every one: those that knock-admin
    made, and the others.
    """
    marked = groups_where(stack.aws, **{f"tag:{tags.UNFINISHED}": f"{stack.name}/{name}"})
    made = [group for group in marked if group.made_for(stack.name)]
    return made, [group for group in marked if group not in made]


def forged(group: Group) -> str:
    """Describe a group that has the tag `knock:unfinished` and was not made by knock-admin."""
    return (
        f"{group.id} has the tag {tags.UNFINISHED}, and knock-admin did not make it: it is left as it is; "
        "find out who put the tag there, and take it off"
    )


def existing(stack: Stack, name: str) -> list[Group]:
    """List the groups of a target. Raises AdminError if there is no such target."""
    pool = pool_of(stack, name)
    if not pool:
        raise no_target(stack, name)
    return pool


def no_target(stack: Stack, name: str) -> AdminError:
    """Make the error for a target that does not exist."""
    return AdminError(f"The stack {stack.name} has no target {name}; see `knock-admin target ls`.")


def ports_of(name: str, pool: Sequence[Group], wanted: Sequence[Ports] | None) -> tuple[Ports, ...]:
    """Give the ports of a target: those of its groups, or for a new one the `wanted` ones.

    Raises AdminError if they differ, UsageError if there are none.
    """
    known = {group.ports for group in pool}
    if len(known) > 1:
        raise AdminError(
            f"The groups of the target {name} differ in {tags.PORTS}: make them equal with `knock-admin "
            f"target set {name} --ports …`."
        )
    if not known and not wanted:
        raise UsageError(f"There is no target {name} yet: name its ports, like --ports 22/tcp.")
    if known and wanted and known != {tuple(wanted)}:
        raise AdminError(
            f"The target {name} has the ports {show_ports(known.pop())}, not {show_ports(wanted)}. Change "
            f"them with `knock-admin target set {name} --ports {show_ports(wanted)}`."
        )
    return known.pop() if known else tuple(wanted or ())


def holders_of(aws: Aws, groups: Iterable[str]) -> list[Holder]:
    """List the resources that any of the groups is attached to; see `attach.attached`."""
    return list(attach.attached(aws, groups).holders)


def rules_of(aws: Aws, groups: Iterable[str]) -> list[dict[str, Any]]:
    """List the ingress rules of groups, as EC2 describes them."""
    rules = attach.of_groups(aws, "describe_security_group_rules", "SecurityGroupRules", groups)
    return [rule for rule in rules if not rule["IsEgress"]]


def used(rules: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Count rules as the quota does: (IPv4, IPv6). A rule for a group or a prefix list counts in both."""
    v4 = v6 = 0
    for rule in rules:
        v4 += "CidrIpv6" not in rule
        v6 += "CidrIpv4" not in rule
    return v4, v6


def world_open(aws: Aws, ports: Sequence[Ports] | None, groups: Iterable[str]) -> list[str]:
    """Describe the rules of these groups that open one of these ports (None: anything) to the whole world."""
    return [
        f"{rule['GroupId']} opens {_rule_ports(rule)} to {rule.get('CidrIpv4') or rule.get('CidrIpv6')} "
        f"({rule['SecurityGroupRuleId']})"
        for rule in rules_of(aws, groups)
        if (rule.get("CidrIpv4") or rule.get("CidrIpv6")) in WORLD
        and (ports is None or any(_covers(rule, range_) for range_ in ports))
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


def beside_the_world(
    aws: Aws, name: str, ports: Sequence[Ports], pool: set[str], holders: Iterable[Holder]
) -> list[str]:
    """Describe, a line each, the rules that make a target pointless: other groups on the same resources open
    its ports to the world.
    """
    other_groups = {group for holder in holders for group in holder.groups} - pool
    open_rules = world_open(aws, ports, other_groups) if other_groups else []
    return [
        f"the target {name} guards nothing there: {line}, and is attached beside it" for line in open_rules
    ]


# ---------------------------------------------------------------------------- decide and apply


def add(
    stack: Stack,
    name: str,
    *,
    ports: Sequence[Ports] | None,
    groups: int | None,
    vpc: str | None,
    places: Places,
) -> Result:
    """Make a target, complete one that is unfinished, or attach it to more resources.

    A second call changes nothing. Raises AdminError, before any change, for what cannot be attached.
    """
    pool, unfinished = pool_of(stack, name), unfinished_groups(stack, name)
    ports = ports_of(name, pool, ports)
    return _complete(stack, name, ports, pool, unfinished, groups or max(1, len(pool)), vpc, places)


def grow(stack: Stack, name: str, groups: int) -> Result:
    """Give a target more groups, attached where its groups are attached. `groups` is their total."""
    pool = existing(stack, name)
    return _complete(
        stack, name, ports_of(name, pool, None), pool, unfinished_groups(stack, name), groups, None, {}
    )


def _refuse_open_strangers(stack: Stack, name: str, pool: list[Group], holders: Iterable[Holder]) -> None:
    """Refuse to attach a group that has the target's tags, was made elsewhere, and lets in the whole world.

    Somebody who may only tag groups could else have any group attached to the target's resources.
    """
    strangers = [
        group.id
        for group in pool
        if not group.made_for(stack.name) and any(group.id not in holder.groups for holder in holders)
    ]
    if strangers and (open_rules := world_open(stack.aws, None, strangers)):
        raise AdminError(
            f"The target {name} has a group that knock-admin did not make, and that lets in the whole world: "
            f"{'; '.join(open_rules)}. Nothing is attached: take that rule away, or Knock's tags off the "
            "group."
        )


def _complete(
    stack: Stack,
    name: str,
    ports: tuple[Ports, ...],
    pool: list[Group],
    unfinished: list[Group],
    wanted: int,
    asked_vpc: str | None,
    places: Places,
) -> Result:
    aws = stack.aws
    have = {group.id: group for group in [*pool, *unfinished]}
    attached = attach.attached(aws, have)
    holders = {(holder.kind, holder.id): holder for holder in [*attached.holders, *attach.named(aws, places)]}
    _refuse_open_strangers(stack, name, pool, holders.values())
    vpc = vpc_of(aws, asked_vpc, have.values(), holders.values())
    missing = max(0, wanted - len(have))
    _refuse_more_than_fit(aws, holders.values(), have.keys(), missing)
    if missing and attached.unsupported:
        raise AdminError(
            f"The target {name} is attached to {', '.join(attached.unsupported)}, where this program cannot "
            "attach a new group: make one, attach it there, and take it in with `knock-admin target adopt "
            f"{name} SG`."
        )

    created = [
        _create(stack, name, ports, vpc["VpcId"], number) for number in _numbers(stack, name, vpc, missing)
    ]
    new = [*(group.id for group in unfinished), *created]
    for group in new:
        _close_way_out(aws, group, vpc)
    everything = [*sorted(have), *created]
    final = {
        holder: [*holder.groups, *(group for group in everything if group not in holder.groups)]
        for holder in holders.values()
    }
    lacking = {holder: groups for holder, groups in final.items() if len(groups) > len(holder.groups)}
    attach.change(aws, lacking, "attaching")
    if new or lacking:
        attach.wait(aws, final)  # also for changes that an interrupted run has begun
    families = _families(aws, pool, everything, list(holders.values()), list(lacking), attached)
    _tag_new(stack, name, ports, new, families)
    changes = _tag_families(aws, [group for group in pool if group.id not in new], families)
    for line in beside_the_world(aws, name, ports, set(everything), holders.values()):
        warn(line)
    lines = [f"made {group} in {vpc['VpcId']}" for group in sorted(created)]
    lines += [f"finished {group.id}" for group in unfinished]
    lines += [f"attached to {holder}" for holder in lacking]
    lines += changes
    lines.append(
        f"The target {name} opens {show_ports(ports)} with {count(len(everything), 'group')}"
        + (f", attached in {count(len(holders), 'place')}" if holders else "")
        + (f", for {show_families(families)}." if families else ".")
    )
    if not holders and not attached.interfaces:
        lines.append("It is attached to nothing yet, so a knock lets nobody in: attach it with `target add`.")
    return Result(
        {
            "target": name,
            "ports": [str(port) for port in ports],
            "vpc": vpc["VpcId"],
            "families": sorted(families),
            "groups": everything,
            "made": created,
            "attached": [holder.id for holder in lacking],
        },
        lines,
    )


def _refuse_more_than_fit(aws: Aws, holders: Iterable[Holder], have: Iterable[str], missing: int) -> None:
    """Raise AdminError if a resource would have more groups than it may."""
    limit, ids = quota(aws, GROUPS_PER_INTERFACE), set(have)
    total = len(ids) + missing
    fixed, raisable = list[str](), list[str]()
    for holder in holders:
        other_groups, most = set(holder.groups) - ids, holder.limit or limit
        if len(other_groups) + total > most:
            would = f"{holder} would have {len(other_groups) + total}: {', '.join(sorted(other_groups))}"
            (fixed if holder.limit else raisable).append(f"{would} and the target's {total}")
    if raisable:
        raise AdminError(
            f"An interface may have {limit} security groups here, and "
            + "; ".join([*raisable, *fixed])
            + ". Ask for fewer "
            "groups, detach others, or have the quota raised (Service Quotas, vpc, L-2AFB9258)."
        )
    if fixed:
        raise AdminError(
            f"It may have {attach.FIXED_LIMIT} security groups, which AWS raises for nobody, and "
            f"{'; '.join(fixed)}. Ask for fewer groups, or detach others."
        )


def _families(
    aws: Aws,
    pool: Sequence[Group],
    everything: Sequence[str],
    holders: Sequence[Holder],
    lacking: Sequence[Holder],
    attached: Attached,
) -> frozenset[str]:
    """Give the address families over which a target can be reached; empty if not known.

    The families of its tag are kept, since an operator may have set them; those of newly attached resources
    are added.
    """
    known = {group.families for group in pool}
    before: frozenset[str] = frozenset().union(*known) if known and all(known) else frozenset()
    if before and not lacking:
        return before
    if lacking and not aws.calls.dry_run and not all(holder.families for holder in lacking):
        attached = attach.attached(aws, everything)  # new tasks have got their addresses meanwhile
    if before:
        new = attach.families_of(lacking, attached.interfaces)
        return before | new if new else new
    return attach.families_of(holders, attached.interfaces)


def _tag_new(
    stack: Stack, name: str, ports: Sequence[Ports], new: Sequence[str], families: frozenset[str]
) -> None:
    """Tag finished groups as the target's: from now on knocks use them."""
    if not new:
        return
    ec2 = stack.aws.client("ec2")
    ec2.create_tags(Resources=list(new), Tags=target_tags(stack, name, ports, families))
    ec2.delete_tags(Resources=list(new), Tags=[{"Key": tags.UNFINISHED}])


def target_tags(
    stack: Stack, name: str, ports: Sequence[Ports], families: frozenset[str]
) -> list[dict[str, str]]:
    """Give the tags that make a group a target's."""
    wanted = {tags.STACK: stack.name, tags.TARGET: name, tags.PORTS: show_ports(ports)}
    if families:
        wanted[tags.FAMILIES] = " ".join(sorted(families))
    return [{"Key": key, "Value": value} for key, value in wanted.items()]


def _tag_families(aws: Aws, pool: Sequence[Group], families: frozenset[str]) -> list[str]:
    """Write the families' tag on groups where it differs. Gives lines on the change."""
    text = " ".join(sorted(families))
    stale = [group.id for group in pool if group.tags.get(tags.FAMILIES, "") != text]
    if not stale:
        return []
    if not families:
        aws.client("ec2").delete_tags(Resources=stale, Tags=[{"Key": tags.FAMILIES}])
        return [
            "Over which address families it can be reached is not known now: knocks over both are accepted."
        ]
    aws.client("ec2").create_tags(Resources=stale, Tags=[{"Key": tags.FAMILIES, "Value": text}])
    return [f"it can be reached over {show_families(families)}"]


def vpc_of(aws: Aws, named: str | None, groups: Iterable[Group], holders: Iterable[Holder]) -> dict[str, Any]:
    """Give the VPC of all groups and resources; the default VPC if there are none. Raises AdminError."""
    reasons: dict[str, str] = {}
    for holder in holders:
        reasons.setdefault(holder.vpc, str(holder))
    for group in groups:
        reasons.setdefault(group.vpc, f"the group {group.id}")
    if named:
        reasons.setdefault(named, "--vpc")
    if len(reasons) > 1:
        raise AdminError(
            "A target lies in one VPC, and these are in several: "
            + ", ".join(f"{why} in {vpc}" for vpc, why in sorted(reasons.items()))
            + ". Make one target a VPC."
        )
    query: dict[str, Any] = (
        {"VpcIds": list(reasons)} if reasons else {"Filters": [{"Name": "is-default", "Values": ["true"]}]}
    )
    vpcs: list[dict[str, Any]] = aws.client("ec2").describe_vpcs(**query)["Vpcs"]
    if not vpcs:
        raise UsageError("There is no default VPC here: say where with --vpc, or what to attach to.")
    return vpcs[0]


def _numbers(stack: Stack, name: str, vpc: dict[str, Any], missing: int) -> list[int]:
    """Choose numbers for the names of new groups, which must be unique in the VPC."""
    if not missing:
        return []
    names = {group.name for group in groups_where(stack.aws, **{"vpc-id": vpc["VpcId"]})}
    free = (n for n in range(1, len(names) + missing + 1) if f"{stack.name}-{name}-{n}" not in names)
    return [number for number, _ in zip(free, range(missing), strict=False)]


def _create(stack: Stack, name: str, ports: Sequence[Ports], vpc: str, number: int) -> str:
    ec2 = stack.aws.client("ec2")
    group = f"{stack.name}-{name}-{number}"
    created = ec2.create_security_group(
        GroupName=group,
        Description=_description(stack, name, ports),
        VpcId=vpc,
        TagSpecifications=[
            {
                "ResourceType": "security-group",
                "Tags": [
                    {"Key": "Name", "Value": group},
                    {"Key": tags.MADE_BY, "Value": tags.KNOCK_ADMIN},
                    {"Key": tags.UNFINISHED, "Value": f"{stack.name}/{name}"},
                ],
            }
        ],
    )
    if not stack.aws.calls.dry_run:
        ec2.get_waiter("security_group_exists").wait(GroupIds=[created["GroupId"]], WaiterConfig={"Delay": 1})
    return str(created["GroupId"])


def _description(stack: Stack, name: str, ports: Sequence[Ports]) -> str:
    """Describe a new group in the form that `Group.made_for` knows it by: what is too long is cut from the
    ports.
    """
    start, opened, end = "Knock opens ", show_ports(ports), f" here (target {name} of {stack.name})"
    room = LONGEST_DESCRIPTION - len(start) - len(end)
    return start + (opened if len(opened) <= room else f"{opened[: room - 3]}...") + end


def _close_way_out(aws: Aws, group: str, vpc: dict[str, Any]) -> None:
    """Remove a new group's egress rules. Rules that are gone already are no error."""
    ways: list[dict[str, Any]] = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": WORLD[0]}]}]
    if vpc.get("Ipv6CidrBlockAssociationSet"):
        ways.append({"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": WORLD[1]}]})
    for way in ways:
        with already_done("InvalidPermission.NotFound"):
            aws.client("ec2").revoke_security_group_egress(GroupId=group, IpPermissions=[way])


def detach(
    stack: Stack, name: str, *, places: Places, everywhere: bool, now: datetime, revoke: bool, leave: bool
) -> Result:
    """Detach the target's groups from the named resources, or from all. Other groups stay attached.

    Live grants are closed first (`revoke`), or go on without effect there (`leave`), or AdminError is raised.
    """
    aws = stack.aws
    unfinished = unfinished_groups(stack, name)  # a run of `add` that was stopped attached those
    ids = {group.id for group in [*(pool_of if unfinished else existing)(stack, name), *unfinished]}
    if everywhere:
        attached = attach.attached(aws, ids)
        holders = list(attached.holders)
        for line in attached.unsupported:
            warn(f"{line} keeps its groups: take them off where they are set")
    else:
        if not any(places.values()):
            raise UsageError("Detach from what? Name it, or say --all.")
        holders = [holder for holder in attach.named(aws, places) if ids & set(holder.groups)]
    if not holders:
        return Result(
            {"target": name, "detached": [], "ended": []}, [f"The target {name} is not attached there."]
        )
    remaining = {holder: [group for group in holder.groups if group not in ids] for holder in holders}
    bare = [str(holder) for holder, groups in remaining.items() if not groups]
    if bare:
        raise AdminError(
            f"{', '.join(bare)} would be left without a security group, which AWS does not allow: attach "
            "another first."
        )
    if leave:
        stay, ended = inside.live_if_readable(stack, name, ids, now), []
        if stay:
            warn(f"{inside.count_of(stay)} of the target {name} left open, reaching nothing there")
    else:
        ended = inside.end_or_refuse(
            stack,
            name,
            ids,
            now,
            revoke=revoke,
            choices="Say --revoke to end them first, or --leave-grants to detach under them: they run to "
            "their end then, and reach nothing there.",
        )
    attach.change(aws, remaining, "detaching from")
    attach.wait(aws, remaining)
    return Result(
        {"target": name, "detached": [holder.id for holder in holders], "ended": ended},
        [*ended, *(f"detached from {holder}" for holder in holders)],
    )


def remove(stack: Stack, name: str, *, now: datetime, revoke: bool, yes: bool) -> Result:
    """Delete a target's groups, if this program made them, and they have no rules and no attachments.

    For hours, the tagging API, from which the API reads the targets, lists deleted groups with the tags they
    had: so their tags are removed first. They get `knock:unfinished` then, by which a second call finds them
    after an interruption. Raises AdminError while grants of the target are live, unless `revoke`.
    """
    aws = stack.aws
    unfinished = unfinished_groups(stack, name)
    pool = pool_of(stack, name) if unfinished else existing(stack, name)
    groups = {group.id: group for group in [*pool, *unfinished]}
    if adopted := sorted(group.id for group in groups.values() if not group.made_for(stack.name)):
        raise AdminError(
            f"knock-admin did not make {', '.join(adopted)}, so it does not delete: `knock-admin target "
            f"release {name} {' '.join(adopted)}` takes Knock's tags off and leaves what was there before."
        )
    entries = inside.live(stack, name, groups, now)
    if entries and not revoke:
        raise inside.refusal(name, entries, now, f"Say --revoke to end them, and to delete {name} then.")
    holders = attach.attached(aws, groups)
    if holders.holders or holders.unsupported:
        places = [*map(str, holders.holders), *holders.unsupported]
        raise AdminError(
            f"The target {name} is still attached to {', '.join(places)}: `knock-admin target detach {name} "
            "--all` first."
        )
    if not yes and not aws.calls.dry_run:
        _ask(
            f"Delete {count(len(groups), 'group')} of the target {name} ({', '.join(sorted(groups))})"
            + (f", and end {inside.count_of(entries)}" if entries else "")
            + f"? `target release {name}` would leave them. [y/N] "
        )
    ended = inside.end(stack, entries, f"the target {name} is deleted")
    rules = [] if aws.calls.dry_run and entries else rules_of(aws, groups)
    if rules:
        raise AdminError(
            f"The target {name} still has {count(len(rules), 'rule')} "
            f"({', '.join(rule['SecurityGroupRuleId'] for rule in rules[:5])}{' …' * (len(rules) > 5)}), "
            "and no live grant: `knock-admin why` says of each what it is. `knock-admin guard` closes what "
            "Knock left; remove other rules by hand."
        )
    untag(stack, name, [group.id for group in pool])
    for group in groups:
        aws.client("ec2").delete_security_group(GroupId=group)
    return Result(
        {"target": name, "deleted": list(groups), "ended": ended},
        [*ended, *(f"deleted {group}" for group in groups)],
    )


def _ask(question: str) -> None:
    """Ask once, if there is a terminal. Raises AdminError unless the answer is yes."""
    if not sys.stdin.isatty():
        return
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("Nothing was changed.")


def untag(stack: Stack, name: str, groups: Sequence[str]) -> None:
    """Remove the target's tags from groups, and mark them as unfinished groups of that target."""
    if not groups:
        return
    ec2 = stack.aws.client("ec2")
    mark = {"Key": tags.UNFINISHED, "Value": f"{stack.name}/{name}"}
    ec2.create_tags(Resources=list(groups), Tags=[mark])
    gone = (tags.STACK, tags.TARGET, tags.PORTS, tags.FAMILIES)
    ec2.delete_tags(Resources=list(groups), Tags=[{"Key": key} for key in gone])


def show(stack: Stack, names: Sequence[str]) -> Result:
    """List targets: rules used and free by address family, and the resources each group is attached to."""
    aws, groups = stack.aws, all_groups(stack)
    if names:
        if missing := {*names} - {group.tags.get(tags.TARGET) for group in groups}:
            raise no_target(stack, ", ".join(sorted(missing)))
        groups = [group for group in groups if group.tags.get(tags.TARGET) in names]
    ids = [group.id for group in groups]
    room = quota(aws, RULES_PER_GROUP)
    rules, attachments = rules_of(aws, ids), attach.attached(aws, ids)
    targets: dict[str, dict[str, Any]] = {}
    rows = []
    # Without duplicates: the groups of a pool are attached beside the same groups.
    warnings: dict[str, None] = {}
    for group in sorted(groups, key=lambda group: (group.tags.get(tags.TARGET, ""), group.id)):
        name, ports = group.tags.get(tags.TARGET, ""), group.tags.get(tags.PORTS, "")
        warnings |= dict.fromkeys(faults_of(group))
        v4, v6 = used(rule for rule in rules if rule["GroupId"] == group.id)
        attached = [holder for holder in attachments.holders if group.id in holder.groups]
        targets.setdefault(
            name,
            {
                "name": name,
                "ports": ports.split(),
                "families": group.tags.get(tags.FAMILIES, "").split(),
                "groups": [],
            },
        )["groups"].append(
            {
                "id": group.id,
                "name": group.name,
                "vpc": group.vpc,
                "adopted": not group.made_for(stack.name),
                "rules": {
                    "ipv4": {"used": v4, "free": max(0, room - v4)},
                    "ipv6": {"used": v6, "free": max(0, room - v6)},
                },
                "attached": [holder.id for holder in attached],
            }
        )
        where = _where(group, attached, attachments)
        rows.append(
            (
                name,
                ports,
                show_families(group.families) or "any",
                group.id,
                "" if group.made_for(stack.name) else "adopted",
                v4,
                max(0, room - v4),
                v6,
                max(0, room - v6),
                where,
            )
        )
        if not faults_of(group):
            warnings |= dict.fromkeys(beside_the_world(aws, name, group.ports, {*ids}, attached))
    for line in warnings:
        warn(line)
    header = (
        "TARGET",
        "PORTS",
        "FAMILY",
        "GROUP",
        "MADE",
        "V4 USED",
        "FREE",
        "V6 USED",
        "FREE",
        "ATTACHED TO",
    )
    return Result({"targets": list(targets.values())}, table(rows, header))


def _where(group: Group, holders: Sequence[Holder], attachments: Attached) -> str:
    """Name the resources that a group is attached to, for a table."""
    names = [holder.brief for holder in holders]
    names += sorted(attachments.places(group.id) & {line.split()[0] for line in attachments.unsupported})
    return ", ".join(names) or "nothing"


def faults_of(group: Group) -> list[str]:
    """Describe the malformed tags of a group. Knocks do not use a group that has one."""
    readers: dict[str, Callable[[str], object]] = {
        tags.TARGET: tags.target_name,
        tags.PORTS: tags.parse_ports,
        tags.FAMILIES: tags.parse_families,
    }
    faults = (tags.fault(tag, group.tags.get(tag, ""), read) for tag, read in readers.items())
    return [f"{group.id}: {fault}" for fault in faults if fault]


def show_ports(ports: Iterable[Ports]) -> str:
    """Write ports as in their tag."""
    return " ".join(map(str, ports))


def show_families(families: Iterable[str]) -> str:
    """Write address families for people: `IPv4 and IPv6`."""
    return " and ".join(sorted(family.replace("ip", "IP") for family in families))
