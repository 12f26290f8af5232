"""Decides whether a principal may have a grant. Pure: no clock, no AWS.

Deny is the default: a right is a tag on the API key, and no tag is no right. A tag that cannot be
read gives no right either, and is reported, since an operator set it for a purpose.

The decision is a grant, or one of the refusals of `errors` with the right that is missing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from .errors import (
    InvalidGrant,
    InvalidKnock,
    InvalidTag,
    NotAllowed,
    RuleUnsettled,
    TargetGone,
    TooManyGrants,
    WrongFamily,
)
from .timing import TAGS_LAG
from .values import (
    FAMILIES,
    LARGEST_INPUT,
    LONGEST_TEXT,
    MOST_GROUPS,
    MOST_RULES,
    MOST_TARGETS,
    TARGET_NAME,
    Grant,
    Ports,
    Principal,
    Target,
    compact_json,
    cut_to_milliseconds,
    family_of,
    parse_duration,
    parse_until,
    round_up,
    show_duration,
    show_second,
    show_time,
)

TAG_STACK = "knock:stack"
TAG_TARGET = "knock:target"
TAG_PORTS = "knock:ports"
TAG_GRANT = "knock:grant"
TAG_TARGETS = "knock:targets"
TAG_MAX_DURATION = "knock:max-duration"
TAG_ANY_SOURCE = "knock:any-source"
TAG_OPERATOR = "knock:operator"
TAG_MAX_LIVE = "knock:max-live"
TAG_UNTIL = "knock:until"
TAG_NAME = "knock:name"
TAG_FAMILIES = "knock:families"

# "@all" says the same as "*" for tools that keep to the characters AWS recommends in tags, without "*".
# https://docs.aws.amazon.com/tag-editor/latest/userguide/best-practices-and-strats.html
EVERY_TARGET = ("*", "@all")

WIDEST = {4: 24, 6: 56}

# The second decision is made soon after an execution starts: its task is retried for minutes.
OLDEST_REQUEST = timedelta(hours=1)
CLOCKS_DIFFER = timedelta(minutes=1)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key may do, read from its tags. An empty `targets` with `every_target` False is no right."""

    principal: Principal
    targets: frozenset[str] = frozenset()
    every_target: bool = False
    max_duration: timedelta | None = None
    any_source: Mapping[int, int] | None = None
    operator: bool = False
    max_live: int | None = None
    until: datetime | None = None
    faults: tuple[str, ...] = ()

    def may_open(self, name: str) -> bool:
        return self.every_target or name in self.targets


def read_rights(principal: Principal, tags: Mapping[str, str]) -> Rights:
    """Read a key's tags. A tag that cannot be read gives no right and leaves a line in `faults`."""
    faults: list[str] = []

    def fault(tag: str, expected: str) -> None:
        faults.append(f"the tag {tag} of the key {principal.name!r} cannot be read: {expected}")

    def read(tag: str, parse: Callable[[str], T]) -> T | None:
        if tag not in tags:
            return None
        try:
            return parse(tags[tag])
        except ValueError as error:
            fault(tag, str(error))
            return None

    if len(principal.name) > LONGEST_TEXT or not principal.name.isprintable():
        principal = Principal(principal.id, principal.id)  # a grant in such a name cannot be recorded
        fault(TAG_NAME, f"one line of {LONGEST_TEXT} printable characters at most was expected")

    names = read(TAG_TARGETS, _read_names) or []
    every = any(name in EVERY_TARGET for name in names)
    return Rights(
        principal,
        frozenset() if every else frozenset(names),
        every,
        read(TAG_MAX_DURATION, parse_duration),
        read(TAG_ANY_SOURCE, _read_widths),
        read(TAG_OPERATOR, _read_operator) or False,
        read(TAG_MAX_LIVE, _read_max_live),
        read(TAG_UNTIL, parse_until),
        tuple(faults),
    )


def _read_names(text: str) -> list[str]:
    names = text.split()
    every = any(name in EVERY_TARGET for name in names)
    if (every and len(names) > 1) or not (every or all(TARGET_NAME.fullmatch(name) for name in names)):
        raise ValueError("target names with spaces between them were expected, or * alone")
    return names


def _read_operator(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false was expected")
    return text == "true"


def _read_max_live(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII):
        raise ValueError("a number from 1 to 9999 was expected")
    return int(text)


def _read_widths(text: str) -> dict[int, int]:
    """Read `/28` (IPv4), `/60` (IPv6) or both. A key may always name a single address of either family."""
    widths = {4: 32, 6: 128}
    shapes = "a prefix length like /28 was expected, or two for IPv4 and IPv6, like /28 /60"
    words = text.split()
    if not 1 <= len(words) <= 2:
        raise ValueError(shapes)
    seen = set()
    for word in words:
        if not (word.startswith("/") and word[1:].isascii() and word[1:].isdigit() and len(word) <= 4):
            raise ValueError(shapes)
        length = int(word[1:])
        family = 4 if length <= 32 else 6
        if family in seen or length > 128:
            raise ValueError(shapes)
        if length < WIDEST[family]:
            raise ValueError(f"{word} is wider than /24 (IPv4) or /56 (IPv6), the widest there is")
        seen.add(family)
        widths[family] = length
    return widths


def read_targets(groups: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Target], list[str]]:
    """Make targets of tagged security groups (id → tags): (targets by name, faults in the tags).

    Groups with one target name are its pool, in order of group id. A group whose ports cannot be read,
    or are not those of its pool, is left out of the targets and named among the faults.
    """
    pools: dict[str, list[tuple[str, tuple[Ports, ...]]]] = {}
    families: dict[str, list[tuple[str, ...]]] = {}
    faults: list[str] = []
    for group, tags in sorted(groups.items()):
        if TAG_TARGET not in tags:
            continue  # taken out of its pool: Knock may still close what is open there
        name = tags[TAG_TARGET]
        if not TARGET_NAME.fullmatch(name):
            faults.append(f"{group}: the tag {TAG_TARGET} is not a target's name")
            continue
        try:
            ports = tuple(sorted({Ports.parse(word) for word in tags.get(TAG_PORTS, "").split()}))
        except ValueError as error:
            faults.append(f"{group}: the tag {TAG_PORTS} cannot be read: {error}")
            continue
        if not ports:
            faults.append(f"{group}: the tag {TAG_PORTS} names no ports; it is written like 22/tcp")
            continue
        group_families = tags.get(TAG_FAMILIES, "").split()
        if not set(group_families) <= set(FAMILIES):
            faults.append(f"{group}: the tag {TAG_FAMILIES} is not ipv4, ipv6 or both: it is passed over")
            group_families = []
        families.setdefault(name, []).append(tuple(group_families))
        pools.setdefault(name, []).append((group, ports))
    targets = {}
    for name, pool in pools.items():
        if len({ports for _, ports in pool}) > 1:
            faults.append(f"the groups of the target {name} differ in {TAG_PORTS}; make them equal")
            continue
        group_ids = tuple(group for group, _ in pool)
        targets[name] = Target(name, pool[0][1], group_ids, _families_of_pool(families[name]))
    return targets, faults


def _families_of_pool(families: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Give the families that a pool's groups have together; none where any group's are not known."""
    if not all(families):
        return ()
    return tuple(family for family in FAMILIES if any(family in of_group for of_group in families))


@dataclass(frozen=True, slots=True)
class Knock:
    """A request for a grant: None where the caller left a field out."""

    targets: tuple[str, ...] | None = None
    duration: timedelta | None = None
    source: str | None = None
    reason: str = ""
    renews: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The stack's limits: a grant's duration, by default and at most; a principal's live grants, at most."""

    default_duration: timedelta
    max_duration: timedelta
    max_live: int = 20


def decide(
    knock: Knock,
    rights: Rights,
    targets: Mapping[str, Target],
    caller: str,
    limits: Limits,
    now: datetime,
    nonce: str,
) -> Grant:
    """Decide on a knock: the grant, or a refusal raised.

    `caller` is the CIDR the gateway saw, `nonce` a random text that makes the grant's id unique. Targets that
    have no address of the source's family are not in the grant.
    """
    # As it is recorded and shown: else a grant could seem to last a second longer than was requested.
    now = cut_to_milliseconds(now)
    source = _source(knock.source, rights, caller)
    chosen = _reachable(_targets(knock.targets, rights, targets), source)
    duration = _duration(knock.duration, rights, limits)
    grant = Grant.decide(
        rights.principal,
        source,
        chosen,
        now,
        _end(knock.duration, rights, now, round_up(now + duration)),
        reason=knock.reason,
        by_name=knock.targets is not None,
        renews=knock.renews,
        nonce=nonce,
    )
    size = len(compact_json(grant.as_input()).encode())
    if size > LARGEST_INPUT:
        raise InvalidKnock("targets", f"these targets take {size} bytes to record: name fewer")
    return grant


def refuse_excess(rights: Rights, limits: Limits, live: int, names: Sequence[str]) -> None:
    """Refuse a knock of a principal that holds `live` grants, if those are as many as it may.

    `names` are the ids of some of them. Knocks in flight at the same time are not counted; they exceed the
    limit by the plan's burst at most. Raises TooManyGrants, InvalidTag.
    """
    _refuse_faults(rights, TAG_MAX_LIVE)
    most = max_live(rights, limits)
    if live >= most:
        some = ", ".join(names[:5]) + (", …" if live > len(names[:5]) else "")
        raise TooManyGrants(f"the key holds {live} live grants, and {most} is the most: end one of {some}")


def max_live(rights: Rights, limits: Limits) -> int:
    """Give how many grants the principal may hold at once."""
    return rights.max_live or limits.max_live


# ---------------------------------------------------------------------------- the second decision


def confirm(
    grant: Grant, tags: Mapping[str, Mapping[str, str]], stack: str, limits: Limits, now: datetime
) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Decide again, trusting nothing of an execution's input: (targets that may be opened, names left out).

    `tags` are those of the groups that exist. A group counts where its live tags name the target and the same
    ports. Raises InvalidGrant; TargetGone for a target that was requested by name and has no group left, or
    where none has; RuleUnsettled while EC2 may not show its tags yet.
    """
    _confirm_source(grant.source)
    _confirm_times(grant, limits, now)
    names = [target.name for target in grant.targets]
    if len(set(names)) < len(names) or not all(map(TARGET_NAME.fullmatch, names)):
        raise InvalidGrant("a grant's targets have names, each its own")
    confirmed, left_out = [], []
    for target in grant.targets:
        groups = _confirmed_groups(target, tags, stack)
        if groups:
            confirmed.append(replace(target, groups=groups))
        else:
            left_out.append(target.name)
    if left_out and (grant.by_name or not confirmed):
        if now < grant.requested_at + TAGS_LAG:
            raise RuleUnsettled(f"EC2 does not show the tags of {', '.join(left_out)} yet")
        raise TargetGone(f"no security group is tagged for {', '.join(left_out)} any more: ask an operator")
    return tuple(confirmed), tuple(left_out)


def _confirm_source(source: str) -> None:
    network = ipaddress.ip_network(source)
    if network.prefixlen < WIDEST[network.version]:
        raise InvalidGrant(f"{source} is wider than /24 (IPv4) or /56 (IPv6)")
    if network.num_addresses > 1 and _refused(network):
        raise InvalidGrant(f"{source} is {_refused(network)}, and not a single address")


def _confirm_times(grant: Grant, limits: Limits, now: datetime) -> None:
    if not now - OLDEST_REQUEST <= grant.requested_at <= now + CLOCKS_DIFFER:
        raise InvalidGrant(
            f"it was asked for at {show_time(grant.requested_at)}, and now is {show_time(now)}"
        )
    if not grant.requested_at < grant.expires_at <= round_up(grant.requested_at + limits.max_duration):
        raise InvalidGrant(f"it lasts longer than this stack allows: {show_duration(limits.max_duration)}")


def _confirmed_groups(target: Target, tags: Mapping[str, Mapping[str, str]], stack: str) -> tuple[str, ...]:
    """Give the groups whose live tags are the target's. Raises InvalidGrant where there are only others."""
    groups, differ = [], ""
    for group in sorted(set(target.groups)):
        live = tags.get(group, {})
        if TAG_STACK not in live or TAG_TARGET not in live:
            continue  # gone, released, or not shown yet
        if live[TAG_STACK] != stack or live[TAG_TARGET] != target.name:
            differ = f"{group} is not of the target {target.name}"
        elif _read_ports(live.get(TAG_PORTS, "")) != target.ports:
            differ = f"{group} has the ports {live.get(TAG_PORTS, '')!r}, not those of the grant"
        else:
            groups.append(group)
    if differ and not groups:
        raise InvalidGrant(f"the security groups' tags say otherwise: {differ}")
    return tuple(groups)


def _read_ports(text: str) -> tuple[Ports, ...] | None:
    try:
        return tuple(sorted({Ports.parse(word) for word in text.split()}))
    except ValueError:
        return None


def openable(rights: Rights, targets: Mapping[str, Target]) -> list[Target]:
    """List the targets that exist and that the key may open, by name."""
    return [target for name, target in sorted(targets.items()) if rights.may_open(name)]


def longest_duration(rights: Rights, limits: Limits) -> timedelta:
    """Give the longest grant the key may ask for. Raises NotAllowed without a right to any."""
    _refuse_faults(rights, TAG_MAX_DURATION)
    if rights.max_duration is None:
        raise NotAllowed(
            TAG_MAX_DURATION,
            f"the key has no tag {TAG_MAX_DURATION}, so it may not open anything for any time",
        )
    return min(rights.max_duration, limits.max_duration)


def _refuse_faults(rights: Rights, tag: str) -> None:
    for fault in rights.faults:
        if f" {tag} " in fault:
            raise InvalidTag(tag, f"{fault}. Ask an operator to correct it")


def _targets(
    requested: tuple[str, ...] | None, rights: Rights, targets: Mapping[str, Target]
) -> tuple[Target, ...]:
    _refuse_faults(rights, TAG_TARGETS)
    allowed = openable(rights, targets)
    if requested is None:
        chosen: Sequence[Target] = allowed
        if not chosen:
            raise NotAllowed(TAG_TARGETS, "the key may open no target of this stack")
    else:
        by_name = {target.name: target for target in allowed}
        # The refusal does not say whether a target exists that the key may not open.
        refused = [name for name in requested if name not in by_name]
        if refused:
            names = ", ".join(by_name) or "none"
            raise NotAllowed(TAG_TARGETS, f"the key may not open {', '.join(refused)}; it may open: {names}")
        chosen = [by_name[name] for name in sorted(set(requested))]
    rules = sum(len(target.ports) for target in chosen)
    if len(chosen) > MOST_TARGETS:
        raise InvalidKnock(
            "targets", f"these are {len(chosen)} targets, and {MOST_TARGETS} is the most: name fewer"
        )
    if rules > MOST_RULES:
        raise InvalidKnock(
            "targets",
            f"{len(chosen)} targets with these ports take {rules} rules, and {MOST_RULES} is the most: "
            "name fewer",
        )
    groups = sum(len(target.groups) for target in chosen)
    if groups > MOST_GROUPS:
        raise InvalidKnock(
            "targets",
            f"these targets have {groups} security groups, and {MOST_GROUPS} is the most: name fewer",
        )
    return tuple(chosen)


def _duration(requested: timedelta | None, rights: Rights, limits: Limits) -> timedelta:
    longest = longest_duration(rights, limits)
    if requested is None:
        return min(limits.default_duration, longest)
    if requested > limits.max_duration:
        most = show_duration(limits.max_duration)
        raise InvalidKnock("duration", f"{show_duration(requested)} is longer than this stack allows: {most}")
    if requested > longest:
        raise NotAllowed(
            TAG_MAX_DURATION,
            f"{show_duration(requested)} is longer than the key allows: {show_duration(longest)}",
        )
    return requested


def _end(requested: timedelta | None, rights: Rights, now: datetime, end: datetime) -> datetime:
    """Give when a grant ends: not after the key's `until`. Raises NotAllowed where a named duration would."""
    _refuse_faults(rights, TAG_UNTIL)
    until = rights.until
    if until is None or (end <= until and now < until):
        return end
    if now >= until:
        raise NotAllowed(TAG_UNTIL, f"the key was good until {show_second(until)}")
    if requested is not None:
        raise NotAllowed(TAG_UNTIL, f"the key is good until {show_second(until)}: name a shorter duration")
    return until


def _reachable(targets: tuple[Target, ...], source: str) -> tuple[Target, ...]:
    """Leave out the targets that have no address of the source's family. Raises WrongFamily if all are.

    A rule for them could match no connection, and would take the room of one that can.
    """
    family = family_of(source)
    reachable = tuple(target for target in targets if not target.families or family in target.families)
    if not reachable:
        (other,) = (name for name in FAMILIES if name != family)
        words, digit = {"ipv4": "IPv4", "ipv6": "IPv6"}, other[-1]
        names = ", ".join(target.name for target in targets)
        raise WrongFamily(
            f"{source} is an {words[family]} address, and {names} can be reached by {words[other]} alone: "
            f"knock over {words[other]} (knock -{digit}, or curl -{digit})",
            (other,),
        )
    return reachable


# Named sources are public addresses. A caller's own is taken as the gateway gives it, private ones too.
# https://www.iana.org/assignments/iana-ipv4-special-registry and the one for IPv6
_REFUSED = [
    (ipaddress.ip_network(cidr), kind)
    for cidr, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("64:ff9b:1::/48", "private"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
]


def _refused(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str | None:
    """Name the refused kind of which a network is; None for a public one."""
    kinds = (
        kind for refused, kind in _REFUSED if network.version == refused.version and network.overlaps(refused)
    )
    return next(kinds, None)


def _source(requested: str | None, rights: Rights, caller: str) -> str:
    if requested is None:
        return caller
    try:
        network = ipaddress.ip_network(requested)
    except ValueError as error:
        raise InvalidKnock(
            "source",
            f"a CIDR like 203.0.113.7/32 was expected, without bits beyond its prefix: {error}"[:300],
        ) from error
    if "%" in requested:
        raise InvalidKnock("source", "an address with a zone is known to one host alone: leave the zone out")
    if str(network) == caller:
        return caller
    _refuse_faults(rights, TAG_ANY_SOURCE)
    if rights.any_source is None:
        raise NotAllowed(TAG_ANY_SOURCE, f"the key may only open for the address it calls from, {caller}")
    if kind := _refused(network):
        raise InvalidKnock("source", f"{network} is {kind}: name a public address")
    if network.prefixlen < rights.any_source[network.version]:
        raise NotAllowed(
            TAG_ANY_SOURCE,
            f"{network} is wider than the key may name: /{rights.any_source[network.version]}",
        )
    return str(network)
