"""May this principal have this grant? The decision, and nothing else: no clock, no AWS.

Deny is the default: a right is a tag on the API key, and no tag is no right. A tag that cannot be
read gives no right either, and says so, since an operator meant something by it.

The answer is a grant, or one of the refusals of `errors` with the right that is missing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .errors import GrantNotFound, InvalidKnock, InvalidTag, NotAllowed
from .values import (
    TARGET_NAME,
    Grant,
    Ports,
    Principal,
    Target,
    name_grant,
    parse_duration,
    round_up,
    show_duration,
)

TAG_STACK = "knock:stack"
TAG_TARGET = "knock:target"
TAG_PORTS = "knock:ports"
TAG_GRANT = "knock:grant"
TAG_TARGETS = "knock:targets"
TAG_MAX_DURATION = "knock:max-duration"
TAG_ANY_SOURCE = "knock:any-source"
TAG_OPERATOR = "knock:operator"

# "@all" says the same as "*" for tools that keep to the characters AWS recommends in tags, without "*".
# https://docs.aws.amazon.com/tag-editor/latest/userguide/best-practices-and-strats.html
EVERY_TARGET = ("*", "@all")

WIDEST = {4: 24, 6: 56}

# A SimpleDB item holds 256 pairs. A target takes two of its grant's, a rule three: its claim, what became of
# it, and its end. The rest is for the grant itself, and for what is tried again.
# https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/SDBLimits.html
MOST_PAIRS = 210


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key may do, read from its tags. An empty `targets` with `every_target` False is no right."""

    principal: Principal
    targets: frozenset[str] = frozenset()
    every_target: bool = False
    max_duration: timedelta | None = None
    any_source: Mapping[int, int] | None = None
    operator: bool = False
    faults: tuple[str, ...] = ()

    def may_open(self, name: str) -> bool:
        return self.every_target or name in self.targets


def read_rights(principal: Principal, tags: Mapping[str, str]) -> Rights:
    """Read a key's tags. A tag that cannot be read gives no right and leaves a line in `faults`."""
    faults: list[str] = []

    def fault(tag: str, expected: str) -> None:
        faults.append(f"the tag {tag} of the key {principal.name!r} cannot be read: {expected}")

    names = tags.get(TAG_TARGETS, "").split()
    every = any(name in EVERY_TARGET for name in names)
    if (every and len(names) > 1) or not (every or all(TARGET_NAME.fullmatch(name) for name in names)):
        fault(TAG_TARGETS, "target names with spaces between them were expected, or * alone")
        names, every = [], False

    longest: timedelta | None = None
    if TAG_MAX_DURATION in tags:
        try:
            longest = parse_duration(tags[TAG_MAX_DURATION])
        except ValueError as error:
            fault(TAG_MAX_DURATION, str(error))

    widths: dict[int, int] | None = None
    if TAG_ANY_SOURCE in tags:
        try:
            widths = _read_widths(tags[TAG_ANY_SOURCE])
        except ValueError as error:
            fault(TAG_ANY_SOURCE, str(error))

    operator = tags.get(TAG_OPERATOR, "false")
    if operator not in ("true", "false"):
        fault(TAG_OPERATOR, "true or false was expected")

    return Rights(
        principal,
        frozenset() if every else frozenset(names),
        every,
        longest,
        widths,
        operator == "true",
        tuple(faults),
    )


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
    """Make targets of tagged security groups (id → tags): (targets by name, what could not be read).

    Groups with one target name are its pool, in order of group id. A group whose ports cannot be read,
    or are not those of its pool, is left out: it is named in the second answer and opened for nobody.
    """
    pools: dict[str, list[tuple[str, tuple[Ports, ...]]]] = {}
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
        pools.setdefault(name, []).append((group, ports))
    targets = {}
    for name, pool in pools.items():
        if len({ports for _, ports in pool}) > 1:
            faults.append(f"the groups of the target {name} differ in {TAG_PORTS}; make them equal")
            continue
        targets[name] = Target(name, pool[0][1], tuple(group for group, _ in pool))
    return targets, faults


@dataclass(frozen=True, slots=True)
class Knock:
    """A request to be let in, as it was asked: None where nothing was said."""

    targets: tuple[str, ...] | None = None
    duration: timedelta | None = None
    source: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """The stack's own: how long a grant is when nobody says, and at most."""

    default_duration: timedelta
    max_duration: timedelta


def decide(
    knock: Knock,
    rights: Rights,
    targets: Mapping[str, Target],
    caller: str,
    limits: Limits,
    now: datetime,
    random: str,
) -> Grant:
    """Decide on a knock: the grant, or a refusal raised.

    `caller` is the CIDR the gateway saw, `random` a short text that makes the grant's id unique.
    """
    # As it is recorded and shown: else a grant could seem to last a second longer than was asked for.
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    source = _source(knock.source, rights, caller)
    chosen = _targets(knock.targets, rights, targets)
    duration = _duration(knock.duration, rights, limits)
    return Grant(
        id=name_grant(rights.principal, source, now, random),
        principal=rights.principal,
        source=source,
        targets=chosen,
        requested_at=now,
        expires_at=round_up(now + duration),
        reason=knock.reason,
    )


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
            raise InvalidTag(tag, f"{fault}. Ask an operator to mend it")


def _targets(
    asked: tuple[str, ...] | None, rights: Rights, targets: Mapping[str, Target]
) -> tuple[Target, ...]:
    _refuse_faults(rights, TAG_TARGETS)
    may = openable(rights, targets)
    if asked is None:
        chosen: Sequence[Target] = may
        if not chosen:
            raise NotAllowed(TAG_TARGETS, "the key may open no target of this stack")
    else:
        by_name = {target.name: target for target in may}
        # A target that does not exist and one the key may not open are told apart for nobody.
        unknown = [name for name in asked if name not in by_name]
        if unknown:
            known = ", ".join(by_name) or "none"
            raise NotAllowed(TAG_TARGETS, f"the key may not open {', '.join(unknown)}; it may open: {known}")
        chosen = [by_name[name] for name in sorted(set(asked))]
    pairs = sum(2 + 3 * len(target.ports) for target in chosen)
    if pairs > MOST_PAIRS:
        raise InvalidKnock(
            "targets",
            f"{len(chosen)} targets with these ports take {pairs} entries of a grant's record, "
            f"and {MOST_PAIRS} is the most: name fewer",
        )
    return tuple(chosen)


def _duration(asked: timedelta | None, rights: Rights, limits: Limits) -> timedelta:
    longest = longest_duration(rights, limits)
    if asked is None:
        return min(limits.default_duration, longest)
    if asked > limits.max_duration:
        raise InvalidKnock(
            "duration",
            f"{show_duration(asked)} is longer than this stack allows: {show_duration(limits.max_duration)}",
        )
    if asked > longest:
        raise NotAllowed(
            TAG_MAX_DURATION,
            f"{show_duration(asked)} is longer than the key allows: {show_duration(longest)}",
        )
    return asked


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


def _source(asked: str | None, rights: Rights, caller: str) -> str:
    if asked is None:
        return caller
    try:
        network = ipaddress.ip_network(asked)
    except ValueError as error:
        raise InvalidKnock(
            "source",
            f"a CIDR like 203.0.113.7/32 was expected, without bits beyond its prefix: {error}"[:300],
        ) from error
    if "%" in asked:
        raise InvalidKnock("source", "an address with a zone reaches nobody from outside: name it without")
    if str(network) == caller:
        return caller
    _refuse_faults(rights, TAG_ANY_SOURCE)
    if rights.any_source is None:
        raise NotAllowed(TAG_ANY_SOURCE, f"the key may only open for the address it calls from, {caller}")
    for refused, kind in _REFUSED:
        if network.version == refused.version and network.overlaps(refused):
            raise InvalidKnock("source", f"{network} is {kind}: name a public address")
    if network.prefixlen < rights.any_source[network.version]:
        raise NotAllowed(
            TAG_ANY_SOURCE,
            f"{network} is wider than the key may name: /{rights.any_source[network.version]}",
        )
    return str(network)


def check_visible(grant: Grant | None, rights: Rights, grant_id: str) -> Grant:
    """Give the grant if the caller may see it: their own, or any for an operator. Else GrantNotFound."""
    if grant is None or not (rights.operator or grant.principal.id == rights.principal.id):
        raise GrantNotFound(f"there is no grant {grant_id!r} that this key may see")
    return grant
