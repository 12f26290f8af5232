"""`knock-admin target set` and `rename`: change a target while grants of it may be live.

Live grants stay as they are, unless `--revoke` closes them. A grant's record and its ledger name its rules by
group, ports and id, and do not depend on tags: it keeps its rules until its end, when they are revoked. The
new tags decide about later knocks.

The API caches targets for a minute, so the old tags may decide about a knock in that minute. The authorize
function reads the tags anew and refuses such a knock: old tags open nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knock_admin import attach, inside, keys, tags, targets
from knock_admin.errors import AdminError, UsageError
from knock_admin.output import Result, count, note, warn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from knock_admin.keys import Key
    from knock_admin.stack import Stack
    from knock_admin.tags import Ports

MINUTE = "For about a minute, knocks for it may be refused: knock again then."


def change(
    stack: Stack,
    name: str,
    *,
    ports: Sequence[Ports] | None,
    families: str | None,
    now: datetime,
    revoke: bool,
) -> Result:
    """Change the ports of a target, or the address families it can be reached over, on all its groups.

    `families` is the tag's text, `any` to remove the tag, or `auto` to determine them from the resources that
    the groups are attached to. A second call changes nothing.
    """
    if ports is None and families is None:
        raise UsageError("Change what? Name --ports or --families.")
    aws, pool = stack.aws, targets.existing(stack, name)
    wanted: dict[str, str] = {}
    if ports is not None:
        wanted[tags.PORTS] = targets.show_ports(ports)
    if families is not None:
        wanted[tags.FAMILIES] = _families(stack, [group.id for group in pool], families)
    ids = [group.id for group in pool]
    ec2, lines = aws.client("ec2"), []
    set_ = {key: text for key, text in wanted.items() if text}
    stale = [group.id for group in pool if any(group.tags.get(key) != text for key, text in set_.items())]
    if stale:
        ec2.create_tags(Resources=stale, Tags=[{"Key": key, "Value": text} for key, text in set_.items()])
    unset = [key for key in wanted.keys() - set_.keys() if any(key in group.tags for group in pool)]
    if unset:
        ec2.delete_tags(Resources=ids, Tags=[{"Key": key} for key in unset])
    moved = (
        bool(stale)
        and ports is not None
        and any(group.tags.get(tags.PORTS) != wanted[tags.PORTS] for group in pool)
    )
    ended: list[str] = []
    if revoke:
        entries = inside.live(stack, name, ids, now)
        ended = inside.end(stack, entries, f"the target {name} is changed", "the target is changed")
    elif moved:
        _stay(stack, name, ids, now, "the old ports")
    lines += ended
    if stale or unset:
        lines.append(f"{name}: " + ", ".join(f"{key} is {text or 'gone'}" for key, text in wanted.items()))
        if moved:
            note(MINUTE)
            _warn_of_the_world(stack, name, ports or (), ids)
    else:
        lines.append(f"{name}: nothing to change")
    return Result({"target": name, "set": wanted, "groups": ids, "ended": ended}, lines)


def _families(stack: Stack, groups: Sequence[str], wanted: str) -> str:
    if wanted == "any":
        return ""
    if wanted != "auto":
        return wanted
    families = attach.attached(stack.aws, groups).families
    if not families:
        warn("over which address families it can be reached cannot be told: knocks over both are accepted")
    return " ".join(sorted(families))


def _warn_of_the_world(stack: Stack, name: str, ports: Sequence[Ports], groups: Sequence[str]) -> None:
    holders = targets.holders_of(stack.aws, groups)
    for line in targets.beside_the_world(stack.aws, name, ports, set(groups), holders):
        warn(line)


def _stay(stack: Stack, name: str, groups: Sequence[str], now: datetime, unaffected: str) -> None:
    """Print the live grants that the change does not affect."""
    entries = inside.live_if_readable(stack, name, groups, now)
    if not entries:
        return
    keeps, until = (
        ("keeps", "its rules until it ends") if len(entries) == 1 else ("keep", "their rules until they end")
    )
    lines = [f"{inside.count_of(entries)} of {name} {keeps} {unaffected}, and {until}:"]
    lines += inside.who(entries, now)
    lines.append(f"`knock-admin revoke --target {name}` ends that now.")
    note("\n".join(lines))


# ---------------------------------------------------------------------------- rename


def rename(stack: Stack, old: str, new: str, *, now: datetime, revoke: bool) -> Result:
    """Give a target another name, in the tags of its groups and of the keys that may open it.

    Keys get the new name before the groups, and lose the old name after them, so that they may open the
    target at any time. After an interruption, the same call continues.
    """
    if old == new:
        raise UsageError("The new name is the old one.")
    pool, new_pool = targets.pool_of(stack, old), targets.pool_of(stack, new)
    named = [key for key in keys.keys_of(stack) if old in key.tags.get(tags.TARGETS, "").split()]
    if pool and new_pool:
        raise AdminError(
            f"There is a target {new} already ({', '.join(group.id for group in new_pool)}), and two targets "
            "do not become one: choose another name."
        )
    begun = [key for key in named if new in key.tags[tags.TARGETS].split()]
    if not pool and not (new_pool and begun):
        raise targets.no_target(stack, old)
    with_both = {key.id: _allowed(key, old, [old, new]) for key in named}
    with_new = {key.id: _allowed(key, old, [new]) for key in named}
    for key in named:
        _write(stack, key.id, key.tags[tags.TARGETS], with_both[key.id])
    ids = [group.id for group in pool]
    places = ids or [group.id for group in new_pool]
    if ids:
        stack.aws.client("ec2").create_tags(Resources=ids, Tags=[{"Key": tags.TARGET, "Value": new}])
    for key in named:
        _write(stack, key.id, with_both[key.id], with_new[key.id])
    ended: list[str] = []
    if revoke:
        entries = inside.live(stack, old, places, now)
        ended = inside.end(stack, entries, f"the target {old} is renamed", "the target is renamed")
    else:
        _stay(stack, old, places, now, "the old name on record")
    lines = [*ended, f"{old} is {new} now, with {count(len(places), 'group')}."]
    lines += [f"{key.who}: may open {new} in place of {old}" for key in named]
    note(MINUTE)
    note(f"Who knocks for {old} by name has to say {new} from now on; a plain `knock` opens it as before.")
    return Result(
        {
            "from": old,
            "target": new,
            "groups": places,
            "keys": [key.id for key in named],
            "ended": ended,
        },
        lines,
    )


def _allowed(key: Key, old: str, names: Sequence[str]) -> str:
    """Write a key's targets with `names` in place of the old name, each name once. Raises AdminError.

    After an interruption a key has both names already.
    """
    listed = key.tags[tags.TARGETS].split()
    replaced = dict.fromkeys(name for target in listed for name in (names if target == old else [target]))
    try:
        return tags.parse_targets(" ".join(replaced))
    except ValueError as error:
        raise AdminError(f"The key {key.who} cannot get the new name: {error}.") from error


def _write(stack: Stack, key_id: str, before: str, after: str) -> None:
    if before != after:
        stack.aws.client("apigateway").tag_resource(
            resourceArn=stack.aws.key_arn(key_id), tags={tags.TARGETS: after}
        )
