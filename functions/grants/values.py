"""Knock's values: parsed once, frozen, and the same in every module.

Times are aware datetimes in UTC; text is parsed here and nowhere else. Nothing here reads a clock,
the environment or AWS.

A rule key, not a rule id, is what grants share: EC2 keeps one rule for each (group, protocol, ports,
CIDR), whatever its description says
(https://docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from .errors import InvalidGrant

State = Literal["live", "expired", "revoked", "superseded", "failed"]
ENDS: tuple[State, ...] = ("expired", "revoked", "superseded", "failed")

# Step Functions waits for a year at most, and so does an execution.
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
LONGEST = timedelta(days=365)

DIGITS = 16  # of the digest in a grant's id: a second input for one cannot be found in a grant's lifetime

# Bytes of an input that the trail records (an item has 256 pairs of 1,024 bytes), characters of a text in it.
LARGEST_INPUT = 30_000
LONGEST_TEXT = 256

# Targets and rules one grant may have, so that its record holds them all. A source may hold as many rules
# (ledger.MAX_RULES), so with more a grant could never open.
MOST_TARGETS = 50
MOST_RULES = 128

# Security groups of a grant's targets together: as many as EC2 takes as the values of one filter.
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html
MOST_GROUPS = 200


# ---------------------------------------------------------------------------- times and durations


def show_time(at: datetime) -> str:
    """Write a time with milliseconds and a Z. Texts of this shape sort as the times do."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def show_second(at: datetime) -> str:
    """Write a whole second with a Z: the shape of `expires_at`, which a Wait state reads."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# Of this millennium: other years are written or added to differently than they are read.
_TIME = re.compile(r"(2\d{3})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)


def parse_time(text: object) -> datetime:
    """Read a time in the shapes this module writes. Raises ValueError on anything else."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a time like 2026-11-23T21:17:19Z was expected, not {text!r}"[:200])
    # Not by strptime, which is written in Python: loading it takes 5 ms of a cold start.
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    microsecond = int((match[7] or "").ljust(6, "0"))
    return datetime(year, month, day, hour, minute, second, microsecond, timezone.utc)


_DATE = re.compile(r"2\d{3}-\d\d-\d\d", re.ASCII)


def parse_until(text: str) -> datetime:
    """Read until when a key is good: `2027-01-15` is to the end of that day, in UTC; or a time with a Z.

    Raises ValueError on anything else.
    """
    try:
        if _DATE.fullmatch(text):
            return parse_time(f"{text}T00:00:00Z") + timedelta(days=1)
        return parse_time(text).replace(microsecond=0)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            "a date like 2027-01-15, or a time like 2027-01-15T17:00:00Z, was expected"
        ) from error


def cut_to_milliseconds(at: datetime) -> datetime:
    """Cut a time to what `show_time` writes."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def round_up(at: datetime) -> datetime:
    """Round up to the whole second: a Wait state cuts fractions off, and a grant must not end early."""
    return at if at.microsecond == 0 else at.replace(microsecond=0) + timedelta(seconds=1)


# In the order of the groups of _SHORT and _ISO, and in which `show_duration` writes them.
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_SHORT = re.compile(
    r"(?:(\d{1,9}) ?d)? ?(?:(\d{1,9}) ?h)? ?(?:(\d{1,9}) ?m)? ?(?:(\d{1,9}) ?s)?", re.ASCII | re.IGNORECASE
)
_ISO = re.compile(r"P(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})S)?)?", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}", re.ASCII)
DURATION_SHAPES = "a duration is like 90m, 8h, 1h30m, 1d, PT8H or a number of seconds"


def parse_duration(value: object) -> timedelta:
    """Read a duration: `90m`, `1h30m`, `1 s`, `PT8H`, `86400` or the number 86400, which is seconds.

    Raises ValueError, in words for the caller, on anything else, on zero and on more than LONGEST. How
    long a key's grants may be is for `policy` to decide.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(DURATION_SHAPES)
    if isinstance(value, float):
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"{DURATION_SHAPES}; {value!r} is not a whole number of seconds")
        value = int(value)
    if isinstance(value, int):
        seconds = value
    else:
        text = value.strip()
        if _SECONDS.fullmatch(text):
            seconds = int(text)
        else:
            match = _ISO.fullmatch(text.upper()) or _SHORT.fullmatch(text)
            if len(text) > 40 or not match or not any(match.groups()) or text[-1] in "Tt":
                raise ValueError(f"{DURATION_SHAPES}; {text[:40]!r} is none of them")
            seconds = sum(int(n) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True) if n)
    if seconds <= 0:
        raise ValueError("a duration must be longer than zero")
    if seconds > LONGEST.total_seconds():
        raise ValueError("no grant can last longer than a year")
    return timedelta(seconds=seconds)


def show_duration(duration: timedelta) -> str:
    """Write a duration as a person would type it: `8h`, `1h30m`, `1d`."""
    left, parts = int(duration.total_seconds()), []
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


# ---------------------------------------------------------------------------- ports, rules, targets

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?/(tcp|udp)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """A range of ports of one protocol, as an operator writes it: `22/tcp`, `8000-8010/udp`."""

    first: int
    last: int
    protocol: str

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Read `22/tcp`. Raises ValueError with the shape that was expected."""
        match = _PORTS.fullmatch(text)
        if not match:
            raise ValueError(f"ports are written like 22/tcp or 8000-8010/udp, not {text[:40]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 65_535:
            raise ValueError(f"ports go from 1 to 65535, the lower first, not {text[:40]!r}")
        return cls(first, last, match[3])

    def __str__(self) -> str:
        range_ = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{range_}/{self.protocol}"


@dataclass(frozen=True, slots=True, order=True)
class RuleKey:
    """What makes an EC2 ingress rule the same rule: its group, its ports and its CIDR."""

    group: str
    ports: Ports
    cidr: str

    @classmethod
    def parse(cls, text: str) -> RuleKey:
        """Read what `str` wrote. Raises ValueError."""
        group, protocol, first, last, cidr = text.split("/", 4)
        return cls(group, Ports(int(first), int(last), protocol), cidr)

    def __str__(self) -> str:
        ports = self.ports
        return f"{self.group}/{ports.protocol}/{ports.first}/{ports.last}/{self.cidr}"


@dataclass(frozen=True, slots=True)
class Rule:
    """An ingress rule as EC2 shows it, with the tags by which Knock knows its own."""

    id: str
    key: RuleKey
    stack: str | None = None
    grant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What an operator configured under a name: ports, and a pool of groups, filled in order of group id.

    `groups` is empty where only the name and the ports matter (the trail, the API's answers). `families` are
    the address families (`ipv4`, `ipv6`) by which the target can be reached; empty is not known. They decide
    whether a rule would be of use, not whether it is allowed, so an execution's input does not carry them.
    """

    name: str
    ports: tuple[Ports, ...]
    groups: tuple[str, ...] = ()
    families: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Give the name and the ports, as the trail and the API's answers hold them."""
        return {"name": self.name, "ports": [str(ports) for ports in self.ports]}


FAMILIES = ("ipv4", "ipv6")

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of an API key, by the key's id and name. Never its value, never an address."""

    id: str
    name: str

    def as_json(self) -> dict[str, str]:
        return {"id": self.id, "name": self.name}


def source_of(address: str) -> str:
    """Turn one address into its CIDR: /32, or /128. Raises ValueError.

    An IPv4-mapped IPv6 address is the IPv4 address: EC2 matches the packet, which is IPv4.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ipaddress.IPv6Address(int(ip))  # without a scope id
    return f"{ip}/{ip.max_prefixlen}"


def family_of(source: str) -> str:
    """Give a CIDR's address family: `ipv4` or `ipv6`."""
    return f"ipv{ipaddress.ip_network(source).version}"


# ---------------------------------------------------------------------------- grants


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a grant's life. `by` says who caused it, `detail` the rest a reader needs."""

    at: datetime
    event: str
    by: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"at": show_time(self.at), "event": self.event, "by": self.by, **self.detail}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Event:
        detail = {key: item for key, item in value.items() if key not in ("at", "event", "by")}
        return cls(parse_time(value["at"]), value["event"], value["by"], detail)


@dataclass(frozen=True, slots=True)
class Grant:
    """The decision to let one source reach named targets until `expires_at`: an execution's input.

    `by_name` says that the knock named its targets: one that cannot be opened then fails the grant, and is
    left out of it otherwise. `renews` is the id of the principal's own grant that ends once this one is open.
    The id follows from all other fields (`Grant.decide`), so that no other input can run under it; `nonce`
    keeps the ids of two equal knocks apart.
    """

    id: str
    principal: Principal
    source: str
    targets: tuple[Target, ...]
    requested_at: datetime
    expires_at: datetime
    reason: str = ""
    by_name: bool = True
    renews: str | None = None
    nonce: str = ""

    @classmethod
    def decide(
        cls,
        principal: Principal,
        source: str,
        targets: tuple[Target, ...],
        requested_at: datetime,
        expires_at: datetime,
        **rest: Any,
    ) -> Grant:
        """Make a grant with the id that follows from its content."""
        grant = cls("", principal, source, targets, requested_at, expires_at, **rest)
        return replace(grant, id=grant._own_id())

    def _own_id(self) -> str:
        content = {name: value for name, value in self.as_input().items() if name != "grant_id"}
        digest = hashlib.sha256(compact_json(content).encode()).hexdigest()[:DIGITS]
        return name_grant(self.principal, self.source, self.requested_at, digest)

    def live_at(self, now: datetime) -> bool:
        """Say whether its end is still to come."""
        return now < self.expires_at

    @property
    def order(self) -> str:
        """A unique text that sorts by `requested_at`."""
        return f"{show_time(self.requested_at)} {self.id}"

    @property
    def rule_keys(self) -> frozenset[RuleKey]:
        """Give the key of every rule it may have: each range of ports in each group of the target's pool."""
        return frozenset(
            RuleKey(group, ports, self.source)
            for target in self.targets
            for ports in target.ports
            for group in target.groups
        )

    def as_input(self) -> dict[str, Any]:
        """Write the input of this grant's execution (docs/architecture.md: version 1)."""
        return {
            "version": 1,
            "grant_id": self.id,
            "principal": self.principal.as_json(),
            "source": self.source,
            "targets": [target.as_json() | {"groups": list(target.groups)} for target in self.targets],
            "by_name": self.by_name,
            "requested_at": show_time(self.requested_at),
            "expires_at": show_second(self.expires_at),
            "reason": self.reason,
            "nonce": self.nonce,
        } | ({"renews": self.renews} if self.renews else {})

    @classmethod
    def from_input(cls, value: object) -> Grant:
        """Read an execution's input, or its later state. What a task added (`rules`, `error`, …) is ignored.

        Raises InvalidGrant naming what is wrong: an id that is not that of its content, a text or a list
        longer than the trail records, a bad `expires_at`, which would fail the Wait state after the rules
        were authorized.
        """
        try:
            if not isinstance(value, Mapping):
                raise ValueError("an object was expected")
            if value.get("version", 1) != 1:
                raise ValueError(f"version {value['version']!r} is newer than this code")
            grant = cls(
                id=_text(value["grant_id"]),
                principal=Principal(_text(value["principal"]["id"]), _text(value["principal"]["name"])),
                source=_canonical(value["source"]),
                targets=_targets(value["targets"]),
                requested_at=parse_time(value["requested_at"]),
                expires_at=_whole_second(value["expires_at"]),
                reason=_text(value["reason"], empty=True),
                by_name=value["by_name"] is True,
                renews=_text(value["renews"]) if "renews" in value else None,
                nonce=_text(value["nonce"], empty=True),
            )
            size = len(compact_json(grant.as_input()).encode())
            if size > LARGEST_INPUT:
                raise ValueError(f"it has {size} bytes, and {LARGEST_INPUT} are the most that is recorded")
            own_id = grant._own_id()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise InvalidGrant(f"the execution's input is not a grant: {problem}"[:500]) from error
        if own_id != grant.id:
            raise InvalidGrant(
                f"the input is not that of the grant {grant.id[:80]!r}: its own id is {own_id}"
            )
        return grant


@dataclass(frozen=True, slots=True)
class Opened:
    """One rule by which a grant reaches its target. A foreign one was there before, and is never revoked."""

    key: RuleKey
    rule_id: str
    target: str
    foreign: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule_id,
            "group": self.key.group,
            "ports": str(self.key.ports),
            "target": self.target,
            "foreign": self.foreign,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str) -> Opened:
        """Read what `as_json` wrote. Raises KeyError, TypeError, ValueError."""
        key = RuleKey(_text(value["group"]), Ports.parse(value["ports"]), source)
        return cls(key, _text(value["rule"]), _text(value["target"]), value["foreign"] is True)


@dataclass(frozen=True, slots=True)
class Execution:
    """A grant's execution: its status (`RUNNING`, `SUCCEEDED`, …), and its input as text."""

    status: str
    input: str


@dataclass(frozen=True, slots=True)
class Record:
    """A grant in the trail: the decision, its state, the rules it opened, and its events.

    `state` is `live` until the end is written, once; `closed_at` says that all its rules are gone or another
    grant's. `closer` names the request that recorded this, so that its retry recognizes its own write.
    `unopened` says that the record began as ended, so nothing can have been opened for it.
    """

    grant: Grant
    state: State = "live"
    authorized_at: datetime | None = None
    opened: tuple[Opened, ...] = ()
    ended_at: datetime | None = None
    ended_by: str = ""
    end_reason: str = ""
    closed_at: datetime | None = None
    closer: str = ""
    unopened: bool = False
    events: tuple[Event, ...] = ()

    @property
    def id(self) -> str:
        return self.grant.id

    @property
    def targets(self) -> tuple[Target, ...]:
        """Give the targets that it reaches: once it is open, without those that were gone by then."""
        reached = {rule.target for rule in self.opened}
        return tuple(target for target in self.grant.targets if target.name in reached) or self.grant.targets

    def live_at(self, now: datetime) -> bool:
        """Say whether it has not ended, and its end is still to come."""
        return self.state == "live" and self.grant.live_at(now)

    def status_at(self, now: datetime) -> str:
        """Give the status people see: pending, active, or how it ended."""
        if self.state != "live":
            return self.state
        if now >= self.grant.expires_at:
            return "expired"
        return "active" if self.authorized_at else "pending"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item of the trail or of the ledgers that cannot be read, and why."""

    name: str
    why: str


def _targets(values: Any) -> tuple[Target, ...]:
    targets = tuple(
        Target(
            _text(value["name"]),
            tuple(Ports.parse(ports) for ports in value["ports"]),
            tuple(_text(group) for group in value["groups"]),
        )
        for value in values
    )
    if not targets or not all(target.ports and target.groups for target in targets):
        raise ValueError("a grant has targets, and each has ports and groups")
    if len(targets) > MOST_TARGETS or sum(len(target.ports) for target in targets) > MOST_RULES:
        raise ValueError(f"{MOST_TARGETS} targets and {MOST_RULES} rules are the most that is recorded")
    if sum(len(target.groups) for target in targets) > MOST_GROUPS:
        raise ValueError(f"its targets have more than {MOST_GROUPS} groups")
    return targets


def _text(value: object, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"a text was expected, not {value!r}"[:100])
    if len(value) > LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"one line of {LONGEST_TEXT} characters at most was expected, not {value!r}"[:100])
    return value


def _canonical(value: object) -> str:
    text = _text(value)
    if str(ipaddress.ip_network(text)) != text:
        raise ValueError(f"the source {text!r} is not written as EC2 writes it")
    return text


def _whole_second(value: object) -> datetime:
    at = parse_time(value)
    if at.microsecond:
        raise ValueError("expires_at must be a whole second")
    return at


# An execution's name: https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html
GRANT_ID = re.compile(r"[0-9A-Za-z_-]{1,80}", re.ASCII)


def name_grant(principal: Principal, source: str, at: datetime, digest: str) -> str:
    """Name a grant so that the list of running executions reads at a glance: who, from where, when.

    Example: `alice_203-0-113-7_20261123T211719Z_9f86d081884c7d65`. 80 characters of [0-9A-Za-z_-] at most.
    """
    network = ipaddress.ip_network(source)
    where = str(network.network_address) if network.num_addresses == 1 else str(network)
    when = at.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    tail = f"_{_plain(where)}_{when}_{digest}"
    return (_plain(principal.name).strip("-") or "key")[: 80 - len(tail)] + tail


def _plain(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z-]", "-", text)


def compact_json(value: object) -> str:
    """Write JSON without spaces, keys in order: equal values are equal texts."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def canonical_source(text: str) -> str:
    """Write an address or a CIDR as its canonical CIDR: `2001:DB8::7` is `2001:db8::7/128`.

    Raises ValueError.
    """
    if "%" in text:
        raise ValueError("an address with a zone is known to one host alone: leave the zone out")
    return str(ipaddress.ip_network(text)) if "/" in text else source_of(text)


_NAMED = re.compile(r"[0-9A-Za-z-]+_[0-9A-Za-z-]+_(\d{8}T\d{6})Z_[0-9a-f]" + f"{{{DIGITS}}}", re.ASCII)


def requested_at_of(grant_id: str) -> datetime | None:
    """Read from a grant's id when it was requested, to the second; None where it does not say."""
    match = _NAMED.fullmatch(grant_id)
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc) if match else None
    except ValueError:
        return None
