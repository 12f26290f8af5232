"""`knock-admin target adopt` and `release`: groups that were there before Knock, and stay when it has gone.

Adopting is tagging: a group's rules, its way out and what it is attached to stay as they are. From then on
knocks add rules to it and take them away. The groups of one target are one pool, and a knock fills one of
them: so they must be attached to the same things, or a knock would open some of them only.

Releasing takes the tags off again, in two steps. The functions may revoke rules of groups that carry
`knock:stack`, and of no others, so that tag goes last: after the group is nobody's target, after an
authorization that had read its tags before has ended, and when no rule of Knock's is left in it.

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
"""Seconds after which no authorization is under way that has read older tags: the functions' ACTS (20 s),
a call of theirs (10 s), and some for EC2's lists."""


def adopt(stack: Stack, name: str, wanted: Sequence[str], *, ports: Sequence[Ports] | None) -> Result:
    """Make existing groups a target, or add them to one. Twice changes nothing more."""
    aws, pool = stack.aws, targets.pool_of(stack, name)
    ports = targets.ports_of(name, pool, ports)
    asked = _described(aws, list(dict.fromkeys(wanted)))
    for each in asked:
        _refuse_taken(stack, name, each)
    targets.vpc_of(aws, None, [*pool, *asked], [])
    everything = {group.id: group for group in [*pool, *asked]}
    there = attach.attached(aws, everything)
    _refuse_apart(name, everything, there)
    families = there.families if there.holders or there.interfaces else frozenset[str]()
    known = [group.families for group in pool]
    if known and all(known):  # what the tag says stands: an operator may have set it
        families = frozenset[str]().union(*known)
    new = [group.id for group in asked if group.id not in {each.id for each in pool}]
    if new:
        aws.client("ec2").create_tags(Resources=new, Tags=targets.target_tags(stack, name, ports, families))
    for line in targets.beside_the_world(aws, name, ports, set(), there.holders):
        warn(line)
    room, rules = targets.quota(aws, targets.RULES_PER_GROUP), targets.rules_of(aws, new)
    for group in new:
        left = room - max(targets.used(rule for rule in rules if rule["GroupId"] == group))
        if left < room // 2:
            warn(f"{group} has room for {count(max(0, left), 'rule')} more: knocks beyond that are refused")
    lines = [f"adopted {group}" for group in new]
    lines += [f"{group.id} is of the target {name} already" for group in asked if group.id not in new]
    lines.append(
        f"The target {name} opens {targets.show_ports(ports)} with {count(len(everything), 'group')}"
        + (f", for {targets.show_families(families)}." if families else ".")
    )
    if not there.holders and not there.interfaces:
        lines.append(
            "As far as can be seen it is attached to nothing yet, so a knock lets nobody in: attach it "
            "where its groups are set, or with `target add`."
        )
    return Result(
        {
            "target": name,
            "ports": [str(each) for each in ports],
            "families": sorted(families),
            "groups": sorted(everything),
            "adopted": new,
        },
        lines,
    )


def _described(aws: Aws, wanted: list[str]) -> list[Group]:
    """Read the groups that are named. Raises AdminError for one that is not there."""
    try:
        found = list(aws.pages("ec2", "describe_security_groups", "SecurityGroups", GroupIds=wanted))
    except ClientError as error:
        if code_of(error) not in ("InvalidGroup.NotFound", "InvalidGroupId.Malformed"):
            raise
        raise AdminError(
            f"{error.response['Error']['Message']}. Groups are named by id, like sg-0123456789abcdef0, and "
            f"must be in {aws.region}; see `aws ec2 describe-security-groups`."
        ) from error
    return [targets.read_group(each) for each in found]


def _refuse_taken(stack: Stack, name: str, group: Group) -> None:
    """Raise AdminError for a group that is another target's, or another stack's."""
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


def _refuse_apart(name: str, groups: dict[str, Group], there: attach.Attached) -> None:
    """Raise AdminError for groups that are not attached to the same things."""
    places = {group: there.places(group) for group in sorted(groups)}
    if len(set(places.values())) > 1:
        shown = "; ".join(f"{group}: {', '.join(sorted(at)) or 'nothing'}" for group, at in places.items())
        raise AdminError(
            "The groups of one target are a pool, of which a knock fills one, and these are attached to "
            f"different things ({shown}). A knock for {name} would open some of them only: attach them "
            "alike, or make each a target of its own. A key may open several."
        )


# ---------------------------------------------------------------------------- release


def release(stack: Stack, name: str, wanted: Sequence[str], *, now: datetime, revoke: bool) -> Result:
    """Take Knock's tags off a target's groups, or off those named; the groups stay, with all other rules.

    Whoever is in is ended first, or it is refused: a rule in a group without tags could be closed by nobody.
    A run that stopped goes on where it was.
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
    # A grant of the target may have its rule in another group of the pool; that of the trail has all of them.
    entries = [entry for entry in inside.live(stack, name, chosen, now) if _is_in(entry, chosen)]
    if entries and not revoke:
        raise inside.refusal(
            name,
            entries,
            now,
            "Say --revoke to end them first. Without Knock's tags nobody could close their rules.",
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
        "nobody can knock for it any more, and Knock may still close its rules. Run the same command again",
    )
    if not aws.calls.dry_run:
        _await_flight()
        _refuse_rules(stack, chosen)
    ec2.delete_tags(Resources=chosen, Tags=[{"Key": tags.STACK}, {"Key": tags.LEAVING}])
    rest = sorted(group.id for group in pool if group.id not in chosen)
    lines = [*ended, *(f"released {group}" for group in chosen)]
    lines.append(
        f"The target {name} goes on with {', '.join(rest)}."
        if rest
        else f"There is no target {name} any more. Keys that may open it keep its name; `knock-admin "
        "doctor` names them."
    )
    if made := sorted(group for group in chosen if groups[group].ours):
        lines.append(f"knock-admin made {', '.join(made)}; nothing deletes what is released but you.")
    return Result({"target": name, "released": chosen, "ended": ended}, lines)


def _is_in(entry: Entry, chosen: Sequence[str]) -> bool:
    """Say whether a grant has a rule in one of these groups, or may have: one that is opening has none on
    record."""
    return not entry.rules or bool(entry.groups & set(chosen))


def _await_flight() -> None:
    """Wait until no authorization is under way that took these groups for a target's."""
    deadline = time.monotonic() + FLIGHT
    while (left := deadline - time.monotonic()) > 0:
        progress(f"waiting {left:.0f} s for knocks that are on their way")
        time.sleep(min(left, 10.0))


def _refuse_rules(stack: Stack, groups: Sequence[str]) -> None:
    """Raise AdminError while a group holds a rule of Knock's."""
    left = [
        rule["SecurityGroupRuleId"]
        for rule in targets.rules_of(stack.aws, groups)
        if tags.of(rule.get("Tags", [])).get(tags.STACK) == stack.name
    ]
    if left:
        raise AdminError(
            f"Knock still has {count(len(left), 'rule')} there "
            f"({', '.join(left[:5])}{' …' * (len(left) > 5)}), of a knock that was on its way or a grant "
            "that is closing. Nobody can knock for it any more: run the same command again in a minute, "
            "with --revoke to end whoever is in by it."
        )
