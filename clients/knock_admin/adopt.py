"""`knock-admin target adopt` and `release`: existing groups become a target, and stay when it is given up.

Adopting a group only tags it: its rules, its egress and its attachments stay as they are. From then on grants
add rules to it and revoke them. The groups of one target are a pool, of which a grant uses one: so they must
be attached to the same resources, or a knock would open some of those only.

Releasing removes the tags in two steps. The functions may revoke rules only in groups that carry
`knock:stack`, so that tag is removed last: after the group has stopped being a target, after the end of each
authorization that had read its tags before, and when it has no rule of Knock's any more.

    knock:target, knock:ports gone          FLIGHT over, no rule of Knock's          knock:stack gone
    ──────────┬───────────────────────────────────────┬────────────────────────────────────┬────────
              └ authorize opens nothing new here ─────┘
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from knock_admin import attach, inside, tags, targets
from knock_admin.errors import AdminError, code_of
from knock_admin.output import Result, count, progress, warn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from knock_admin.aws import Aws
    from knock_admin.stack import Stack
    from knock_admin.tags import Ports
    from knock_admin.targets import Group
    from knock_admin.trail import Entry

FLIGHT = 40.0
"""Seconds after which every authorization that had read older tags has ended: the functions' ACTS (20 s), one
call (10 s), and a margin for EC2's eventually consistent lists."""


def adopt(stack: Stack, name: str, wanted: Sequence[str], *, ports: Sequence[Ports] | None) -> Result:
    """Make existing groups a target, or add them to one. Groups that are in it already stay as they are.

    Raises AdminError for a group that another target has, or that is not attached like the others.
    """
    aws, pool = stack.aws, targets.pool_of(stack, name)
    ports = targets.ports_of(name, pool, ports)
    chosen = _described(aws, list(dict.fromkeys(wanted)))
    for candidate in chosen:
        _refuse_taken(stack, name, candidate)
    targets.vpc_of(aws, None, [*pool, *chosen], [])
    everything = {group.id: group for group in [*pool, *chosen]}
    attached = attach.attached(aws, everything)
    _refuse_apart(name, everything, attached)
    families = attached.families if attached.holders or attached.interfaces else frozenset[str]()
    known = [group.families for group in pool]
    if known and all(known):  # the tag takes precedence: an operator may have set it
        families = frozenset[str]().union(*known)
    new = [group.id for group in chosen if group.id not in {member.id for member in pool}]
    if new:
        aws.client("ec2").create_tags(Resources=new, Tags=targets.target_tags(stack, name, ports, families))
    for line in targets.beside_the_world(aws, name, ports, set(), attached.holders):
        warn(line)
    room, rules = targets.quota(aws, targets.RULES_PER_GROUP), targets.rules_of(aws, new)
    for group in new:
        free = room - max(targets.used(rule for rule in rules if rule["GroupId"] == group))
        if free < room // 2:
            warn(f"{group} has room for {count(max(0, free), 'rule')} more: knocks beyond that are refused")
    lines = [f"adopted {group}" for group in new]
    lines += [f"{group.id} is of the target {name} already" for group in chosen if group.id not in new]
    lines.append(
        f"The target {name} opens {targets.show_ports(ports)} with {count(len(everything), 'group')}"
        + (f", for {targets.show_families(families)}." if families else ".")
    )
    if not attached.holders and not attached.interfaces:
        lines.append(
            "As far as can be seen it is attached to nothing yet, so a knock lets nobody in: attach it "
            "where its groups are set, or with `target add`."
        )
    return Result(
        {
            "target": name,
            "ports": [str(port) for port in ports],
            "families": sorted(families),
            "groups": sorted(everything),
            "adopted": new,
        },
        lines,
    )


def _described(aws: Aws, wanted: list[str]) -> list[Group]:
    """Read the named groups. Raises AdminError for one that does not exist."""
    try:
        listed = list(aws.pages("ec2", "describe_security_groups", "SecurityGroups", GroupIds=wanted))
    except ClientError as error:
        if code_of(error) not in ("InvalidGroup.NotFound", "InvalidGroupId.Malformed"):
            raise
        raise AdminError(
            f"{error.response['Error']['Message']}. Groups are named by id, like sg-0123456789abcdef0, and "
            f"must be in {aws.region}; see `aws ec2 describe-security-groups`."
        ) from error
    return [targets.read_group(group) for group in listed]


def _refuse_taken(stack: Stack, name: str, group: Group) -> None:
    """Raise AdminError for a group of another target or another stack."""
    owner, target = group.tags.get(tags.STACK), group.tags.get(tags.TARGET)
    if group.tags.get(tags.UNFINISHED):
        raise AdminError(
            f"{group.id} is a group that `target add {group.tags[tags.UNFINISHED].partition('/')[2]}` has "
            "not finished: run that again."
        )
    if owner not in (None, stack.name):
        raise AdminError(
            f"{group.id} is of the stack {owner} (target {target}): release it there first, with "
            f"`knock-admin target release {target} {group.id} --stack {owner}`."
        )
    if group.tags.get(tags.LEAVING):
        raise AdminError(
            f"{group.id} is being released: `knock-admin target release "
            f"{group.tags[tags.LEAVING].partition('/')[2]}` goes on with that. Adopt it afterwards."
        )
    if owner and target != name:
        raise AdminError(
            f"{group.id} is of the target {target}, and a group is of one target: `knock-admin target "
            f"release {target} {group.id}` first, or rename the target."
        )


def _refuse_apart(name: str, groups: dict[str, Group], attached: attach.Attached) -> None:
    """Raise AdminError for groups that are not attached to the same resources."""
    places = {group: attached.places(group) for group in sorted(groups)}
    if len(set(places.values())) > 1:
        placements = "; ".join(
            f"{group}: {', '.join(sorted(at)) or 'nothing'}" for group, at in places.items()
        )
        raise AdminError(
            "The groups of one target are a pool, of which a knock fills one, and these are attached to "
            f"different things ({placements}). A knock for {name} would open some of them only: attach "
            "them alike, or make each a target of its own. A key may open several."
        )


# ---------------------------------------------------------------------------- release


def release(stack: Stack, name: str, wanted: Sequence[str], *, now: datetime, revoke: bool) -> Result:
    """Remove Knock's tags from a target's groups, or from those named. The groups and their other rules stay.

    Live grants are closed first (`revoke`), or AdminError is raised: Knock could not revoke a rule in a group
    without tags. After an interruption, the same call continues.
    """
    aws = stack.aws
    leaving = targets.groups_where(aws, **{f"tag:{tags.LEAVING}": f"{stack.name}/{name}"})
    pool = targets.pool_of(stack, name) if leaving else targets.existing(stack, name)
    groups = {group.id: group for group in [*pool, *leaving]}
    if unknown := sorted(set(wanted) - groups.keys()):
        raise AdminError(
            f"{', '.join(unknown)}: not of the target {name}, whose groups are {', '.join(groups)}."
        )
    chosen = [group for group in groups if not wanted or group in wanted]
    # A grant of the target may have its rules in another group of the pool only: the trail says in which.
    entries = [entry for entry in inside.live(stack, name, chosen, now) if _is_in(entry, chosen)]
    if entries and not revoke:
        raise inside.refusal(
            name,
            entries,
            now,
            "Say --revoke to end them first. Without its tags, Knock could not revoke their rules.",
        )
    first = [group.id for group in pool if group.id in chosen]
    ec2 = aws.client("ec2")
    if first:
        mark = {"Key": tags.LEAVING, "Value": f"{stack.name}/{name}"}
        ec2.create_tags(Resources=first, Tags=[mark])
        gone = (tags.TARGET, tags.PORTS, tags.FAMILIES)
        ec2.delete_tags(Resources=first, Tags=[{"Key": key} for key in gone])
    ended = inside.end(
        stack,
        entries,
        f"the target {name} is released",
        "it can no longer be opened, and Knock may still revoke its rules. Run the same command again",
    )
    if not aws.calls.dry_run:
        _await_flight()
        _refuse_rules(stack, chosen)
    ec2.delete_tags(Resources=chosen, Tags=[{"Key": tags.STACK}, {"Key": tags.LEAVING}])
    remaining = sorted(group.id for group in pool if group.id not in chosen)
    lines = [*ended, *(f"released {group}" for group in chosen)]
    lines.append(
        f"The target {name} goes on with {', '.join(remaining)}."
        if remaining
        else f"There is no target {name} any more. Keys that may open it keep its name; `knock-admin "
        "doctor` names them."
    )
    if own := sorted(group for group in chosen if groups[group].made_for(stack.name)):
        lines.append(f"knock-admin made {', '.join(own)}; nothing deletes what is released but you.")
    return Result({"target": name, "released": chosen, "ended": ended}, lines)


def _is_in(entry: Entry, chosen: Sequence[str]) -> bool:
    """Say whether a grant has a rule in one of these groups. A grant that is being opened may have one: its
    rules are not on record yet.
    """
    return not entry.rules or bool(entry.groups & set(chosen))


def _await_flight() -> None:
    """Wait FLIGHT, until each authorization that read these groups' tags before has ended."""
    deadline = time.monotonic() + FLIGHT
    while (left := deadline - time.monotonic()) > 0:
        progress(f"waiting {left:.0f} s for knocks that are on their way")
        time.sleep(min(left, 10.0))


def _refuse_rules(stack: Stack, groups: Sequence[str]) -> None:
    """Raise AdminError while a group has a rule of Knock's."""
    rules = [
        rule["SecurityGroupRuleId"]
        for rule in targets.rules_of(stack.aws, groups)
        if tags.of(rule.get("Tags", [])).get(tags.STACK) == stack.name
    ]
    if rules:
        raise AdminError(
            f"Knock still has {count(len(rules), 'rule')} there "
            f"({', '.join(rules[:5])}{' …' * (len(rules) > 5)}), of a knock that was on its way or a grant "
            "that is closing. It can no longer be opened: run the same command again in a minute, with "
            "--revoke to end the grants that use those rules."
        )
