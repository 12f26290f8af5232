"""The values that the API answers with: frozen, with aware datetimes in UTC. Imports no other module of ours.

Each has the API's JSON object as `json`, also with members that this version does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any


@dataclass(frozen=True)
class Principal:
    """An API key, by id and name."""

    id: str
    name: str


@dataclass(frozen=True)
class Target:
    """A target, by name, and the ports that a grant of it opens, like `22/tcp`.

    `families` are the address families, `ipv4` and `ipv6`, over which it can be reached; only `whoami` gives
    them, and only if they are known.
    """

    name: str
    ports: tuple[str, ...]
    families: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.ports)})"


@dataclass(frozen=True)
class Grant:
    """The decision to let `source` reach `targets` until `expires_at`, and its state.

    `status` is pending, active, expired, revoked, superseded or failed. `seconds_left` is by the API's clock
    at the time of the answer. `ended_by` is a principal's name, the id of the grant that superseded it, an
    AWS identity or service, or knock. `renews` is the id of the grant that this one supersedes, or empty.
    `caller` is the CIDR from which the API saw this call, which may differ from `source`. Only `Client.grant`
    and `Client.revoke` give `events`, and only `Client.knock` gives `left_out`: the names of targets that are
    not open, since they cannot be reached over the source's address family.
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
        """The requested duration: rounded down, since `expires_at` is rounded up to a second."""
        return timedelta(seconds=int((self.expires_at - self.requested_at).total_seconds()))


@dataclass(frozen=True)
class Whoami:
    """The key of a caller, its rights, and the address that the API sees.

    `max_duration` is the longest duration of a grant, or None if the key may open nothing. The key has `live`
    grants, and may have `max_live` at once. `any_source` has the shortest prefix lengths, for IPv4 and IPv6,
    of sources that the key may name, or None if it may name none. `faults` describes malformed tags of the
    key.
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
    # In Python 3.10, fromisoformat does not accept a Z.
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").astimezone(timezone.utc)
