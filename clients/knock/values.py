"""What the API answers with, as values: frozen, with aware datetimes in UTC, and nothing imported of ours.

Each keeps the API's own object as `json`: what the API adds later is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any


@dataclass(frozen=True)
class Principal:
    """Who knocked: the API key's id and name."""

    id: str
    name: str


@dataclass(frozen=True)
class Target:
    """What an operator configured under a name, and the ports it opens, like `22/tcp`.

    `families` are those of `ipv4` and `ipv6` by which it can be reached, where that is known: `whoami` says
    it.
    """

    name: str
    ports: tuple[str, ...]
    families: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.ports)})"


@dataclass(frozen=True)
class Grant:
    """The decision to let `source` reach `targets` until `expires_at`, and what became of it.

    `status` is pending, active, expired, revoked, superseded or failed. `seconds_left` is by the API's clock
    at the time of the answer. `renews` is the id of the grant it takes the place of, or empty. `caller` is
    the source that the API saw this very call come from, whatever the grant's own is. `events` is filled by
    `Client.grant` and `Client.revoke` only, and `left_out` by `Client.knock`: the names of targets that were
    asked for and cannot be reached by the source's family of addresses.
    """

    id: str
    status: str
    principal: Principal
    source: str
    targets: tuple[Target, ...]
    requested_at: datetime
    expires_at: datetime
    seconds_left: int
    reason: str
    ended_at: datetime | None
    ended_by: str
    execution_arn: str
    renews: str = ""
    caller: str = ""
    events: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    json: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def live(self) -> bool:
        """Whether it is pending or active."""
        return self.status in ("pending", "active")

    @property
    def duration(self) -> timedelta:
        """How long it was asked for: `expires_at` is rounded up to a second, so this rounds down."""
        return timedelta(seconds=int((self.expires_at - self.requested_at).total_seconds()))


@dataclass(frozen=True)
class Whoami:
    """What the API says about the key and the caller: who, from where, what the key may open.

    `max_duration` is None for a key that may open nothing for any time. The key has `live` grants now and
    may have `max_live` at once. `any_source` is how wide another source may be: the prefix lengths of IPv4
    and IPv6. `faults` says what is wrong with the key's tags.
    """

    principal: Principal
    source: str
    targets: tuple[Target, ...]
    default_duration: str = ""
    max_duration: str | None = None
    operator: bool = False
    max_live: int = 0
    live: int = 0
    any_source: tuple[int, int] | None = None
    faults: tuple[str, ...] = ()
    json: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def parse_time(text: str) -> datetime:
    """Read a time as the API writes it, with a Z. Raises ValueError."""
    # Python 3.10's fromisoformat knows no Z.
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").astimezone(timezone.utc)
