"""The grammar of Knock's tags, as an operator writes it on the command line and as AWS holds it.

The functions read these tags with code of their own (`functions/grants/policy.py`), which is not part of this
distribution. A test compares the two, text by text.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STACK = "knock:stack"
TARGET = "knock:target"
PORTS = "knock:ports"
FAMILIES = "knock:families"
UNFINISHED = "knock:unfinished"
LEAVING = "knock:leaving"
MADE_BY = "knock:made-by"
TARGETS = "knock:targets"
MAX_DURATION = "knock:max-duration"
ANY_SOURCE = "knock:any-source"
OPERATOR = "knock:operator"
MAX_LIVE = "knock:max-live"
NAME = "knock:name"
UNTIL = "knock:until"
RETIRES_AT = "knock:retires-at"

# API Gateway allows letters, digits, spaces and + - = . _ : / @ in a tag, and so no `*`.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-tagging-supported-resources.html
EVERY_TARGET = "@all"

KNOCK_ADMIN = "knock-admin"
"""The value of `knock:made-by` on a group that this program made, and may delete."""

LONGEST = 256
"""The most characters of a tag's value, on an API key and on a security group.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-tagging.html
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?/(tcp|udp)", re.ASCII)
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_SHORT = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_LONGEST = timedelta(days=365)
_WIDEST = {4: 24, 6: 56}


def target_name(text: str) -> str:
    """Check a target's name. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            "a target's name is 63 letters, digits, dots, dashes and underscores at most, and starts with "
            f"a letter or a digit, not {text!r}"
        )
    return text


@dataclass(frozen=True, order=True)
class Ports:
    """A range of ports of one protocol."""

    first: int
    last: int
    protocol: str

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Read `22/tcp` or `8000-8010/udp`. Raises ValueError."""
        match = _PORTS.fullmatch(text)
        if not match:
            raise ValueError(f"ports are written like 22/tcp or 8000-8010/udp, not {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 65_535:
            raise ValueError(f"ports go from 1 to 65535, the lower first, not {text!r}")
        return cls(first, last, match[3])

    def __str__(self) -> str:
        return f"{self.first if self.first == self.last else f'{self.first}-{self.last}'}/{self.protocol}"


def parse_ports(text: str) -> tuple[Ports, ...]:
    """Read the tag `knock:ports`: `80/tcp 443/tcp`. Raises ValueError, also for an empty text."""
    ports = tuple(sorted({Ports.parse(word) for word in text.split()}))
    if not ports:
        raise ValueError("no ports; they are written like 22/tcp")
    length = len(" ".join(map(str, ports)))
    if length > LONGEST:
        raise ValueError(
            f"these ports take {length} characters, and a tag holds {LONGEST}: name ranges, like "
            "8000-8010/tcp, or make two targets"
        )
    return ports


def parse_families(text: str) -> tuple[str, ...]:
    """Read the tag `knock:families`: `ipv4`, `ipv6`, both, or empty if not known. Raises ValueError."""
    families = set(text.split())
    if not families <= {"ipv4", "ipv6"}:
        raise ValueError(f"address families are ipv4, ipv6 or both, not {text!r}")
    return tuple(sorted(families))


def parse_targets(text: str) -> str:
    """Check the value of `knock:targets`, names or every target, and give it as it is to be written.

    Raises ValueError.
    """
    names = text.split()
    if names in (["*"], [EVERY_TARGET]):
        return EVERY_TARGET
    if not names or {"*", EVERY_TARGET} & set(names):
        raise ValueError(f"name one target or more, or * ({EVERY_TARGET}) alone for all")
    value = " ".join(target_name(name) for name in names)
    if len(value) > LONGEST:
        raise ValueError(
            f"these {len(names)} targets take {len(value)} characters, and a tag holds {LONGEST}: name "
            f"fewer, or * ({EVERY_TARGET}) for every target"
        )
    return value


def parse_duration(text: str) -> timedelta:
    """Read `90m`, `8h`, `1h30m`, `7d` or a number of seconds, up to a year. Raises ValueError."""
    match = _SHORT.fullmatch(text)
    if text.isascii() and text.isdigit() and len(text) < 10:
        seconds = int(text)
    elif match and any(match.groups()):
        seconds = sum(int(n) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True) if n)
    else:
        raise ValueError(f"a duration is like 90m, 8h, 1h30m, 7d or a number of seconds, not {text!r}")
    if not 0 < seconds <= _LONGEST.total_seconds():
        raise ValueError(f"a duration is longer than zero and a year at most, not {text!r}")
    return timedelta(seconds=seconds)


def show_duration(duration: timedelta) -> str:
    """Write a duration in whole seconds, like `1h30m`."""
    seconds, parts = int(duration.total_seconds()), []
    for unit, size in _UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_any_source(text: str) -> str:
    """Check the value of `knock:any-source`: `/28`, or `/28 /60` for IPv4 and IPv6. Raises ValueError."""
    words = text.split()
    families = set()
    for word in words:
        digits = word.removeprefix("/")
        if word == digits or not (digits.isascii() and digits.isdigit()) or len(digits) > 3:
            raise ValueError(f"a prefix length is written like /28, not {word!r}")
        length = int(digits)
        family = 4 if length <= 32 else 6
        if length > 128 or length < _WIDEST[family]:
            raise ValueError(f"{word} is not between /24 and /32 (IPv4), or /56 and /128 (IPv6)")
        families.add(family)
    if not words or len(families) != len(words):
        raise ValueError("one prefix length like /28 was expected, or two, for IPv4 and IPv6, like /28 /60")
    return " ".join(words)


def parse_max_live(text: str) -> int:
    """Read the most live grants that a key may have, 1 to 9999. Raises ValueError."""
    if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII):
        raise ValueError(f"a number from 1 to 9999 was expected, not {text!r}")
    return int(text)


def parse_until(text: str) -> datetime:
    """Read the end of a key: `2027-01-15`, which is the end of that day in UTC, or a time with a Z.

    Raises ValueError.
    """
    try:
        if re.fullmatch(r"2\d{3}-\d\d-\d\d", text, re.ASCII):
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc)
            return day + timedelta(days=1)
        if text.startswith("2"):
            return parse_time(text)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"a date like 2027-01-15, or a time like 2027-01-15T17:00:00Z, was expected, not {text!r}"
    )


def principal_name(text: str) -> str:
    """Check a principal's name, which a tag of its key has as well. Raises ValueError.

    API Gateway allows letters, digits, spaces and + - = . _ : / @ in a tag; see EVERY_TARGET.
    """
    if not re.fullmatch(r"[\w +\-=.:/@]{1,128}", text) or text != text.strip():
        raise ValueError(
            f"a key's name is 128 letters, digits, spaces and + - = . _ : / @ at most, not {text!r}"
        )
    return text


def grant_id(text: str) -> str:
    """Check that a text has the form of a grant's id. Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,80}", text, re.ASCII):
        raise ValueError(f"a grant's id, as `knock-admin grants` shows it, was expected, not {text!r}")
    return text


def canonical_source(text: str) -> str:
    """Write an address or a CIDR as EC2 does: `203.0.113.7` is `203.0.113.7/32`. Raises ValueError."""
    try:
        if "%" in text:
            raise ValueError("an address with a zone has a meaning on one machine only")
        if "/" in text:
            return str(ipaddress.ip_network(text))
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"an address or a CIDR is like 203.0.113.7 or 203.0.113.0/28: {error}") from error
    # EC2 compares packets. Those of an IPv4 address are IPv4, also if it is written as a mapped IPv6 address.
    address = getattr(address, "ipv4_mapped", None) or address
    return f"{address}/{address.max_prefixlen}"


def fault(tag: str, text: str, read: Callable[[str], object]) -> str | None:
    """Say why a tag's value cannot be read; None if it can."""
    try:
        read(text)
    except ValueError as error:
        return f"the tag {tag} cannot be read: {error}"
    return None


def of(listed: list[dict[str, str]]) -> dict[str, str]:
    """Turn EC2's list of tags into a mapping."""
    return {tag["Key"]: tag["Value"] for tag in listed}


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def parse_time(text: str) -> datetime:
    """Read a time as `show_time` writes it. Raises ValueError."""
    if not _TIME.fullmatch(text):
        raise ValueError(f"a time like 2026-11-23T21:17:19Z was expected, not {text!r}")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def show_time(at: datetime) -> str:
    """Write a whole second in UTC."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def left(expires_at: str, now: datetime) -> str:
    """Give the duration until a time on record, in minutes from an hour on; `?` if it is no time."""
    try:
        seconds = (parse_time(expires_at) - now).total_seconds()
    except ValueError:
        return "?"
    size = 60 if seconds >= 3600 else 1
    return show_duration(timedelta(seconds=max(0, int(seconds // size * size))))
