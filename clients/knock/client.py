"""The Knock API for Python programs: `Client`, and the values it answers with.

Every call has a time limit, tries again only what is safe (the table in `knock.transport`), and raises
the errors of `knock.errors` and no others. One Client is for one thread at a time.

The values are frozen and hold aware datetimes in UTC. Each keeps the API's own object as `json`: what
the API adds later is there at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .errors import CannotReach, GrantNotOpened, Unavailable, UnexpectedAnswer
from .transport import ANSWER_TIMEOUT, CONNECT_TIMEOUT, Path, Transport

if TYPE_CHECKING:
    from types import TracebackType

PAGE = 100  # grants an answer; the API gives no more at once


@dataclass(frozen=True)
class Principal:
    """Who knocked: the API key's id and name."""

    id: str
    name: str


@dataclass(frozen=True)
class Target:
    """What an operator configured under a name, and the ports it opens, like `22/tcp`."""

    name: str
    ports: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.ports)})"


@dataclass(frozen=True)
class Grant:
    """The decision to let `source` reach `targets` until `expires_at`, and what became of it.

    `status` is pending, active, expired, revoked, superseded or failed. `seconds_left` is by the API's
    clock at the time of the answer. `renews` is the id of the grant it takes the place of, or empty.
    `caller` is the source that the API saw this very call come from, whatever the grant's own is.
    `events` is filled by `Client.grant` and `Client.revoke` only.
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
    json: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def live(self) -> bool:
        """Whether it is pending or active."""
        return self.status in ("pending", "active")

    @property
    def duration(self) -> timedelta:
        """How long it was asked for: `expires_at` is rounded up to a second, so this rounds down."""
        return timedelta(seconds=int((self.expires_at - self.requested_at).total_seconds()))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Grant:
        """Read a grant as the API writes it. Raises UnexpectedAnswer."""
        try:
            return cls(
                id=str(value["id"]),
                status=str(value["status"]),
                principal=_principal(value["principal"]),
                source=str(value["source"]),
                targets=_targets(value["targets"]),
                requested_at=parse_time(value["requested_at"]),
                expires_at=parse_time(value["expires_at"]),
                seconds_left=int(value["seconds_left"]),
                reason=str(value.get("reason") or ""),
                ended_at=parse_time(value["ended_at"]) if value.get("ended_at") else None,
                ended_by=str(value.get("ended_by") or ""),
                execution_arn=str(value.get("execution_arn") or ""),
                renews=str(value.get("renews") or ""),
                caller=str(value.get("caller") or ""),
                events=tuple(dict(event) for event in value.get("events") or ()),
                json=value,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnexpectedAnswer(f"the answer is not a grant as this client knows it: {error!r}") from error


@dataclass(frozen=True)
class Whoami:
    """What the API says about the key and the caller: who, from where, what the key may open.

    `max_duration` is None for a key that may open nothing for any time. The key has `live` grants now and
    may have `max_live` at once.
    """

    principal: Principal
    source: str
    targets: tuple[Target, ...]
    default_duration: str = ""
    max_duration: str | None = None
    operator: bool = False
    max_live: int = 0
    live: int = 0
    json: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Whoami:
        """Read an answer of GET /whoami. Raises UnexpectedAnswer."""
        try:
            return cls(
                principal=_principal(value["principal"]),
                source=str(value["source"]),
                targets=_targets(value["targets"]),
                default_duration=str(value.get("default_duration") or ""),
                max_duration=value.get("max_duration"),
                operator=bool(value.get("operator")),
                max_live=int(value.get("max_live") or 0),
                live=int(value.get("live") or 0),
                json=value,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnexpectedAnswer(f"the answer does not say who is calling: {error!r}") from error


class Client:
    """The Knock API at `url`, called with `api_key`.

    `timeout` bounds one answer and `connect_timeout` one connection, both in seconds. The key is sent as
    a header and appears in no message, repr or URL.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._transport = Transport(url, api_key, timeout=timeout, connect_timeout=connect_timeout)

    @classmethod
    def from_profile(
        cls,
        profile: str | None = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> Client:
        """Make a client of KNOCK_URL and KNOCK_API_KEY, or of what `knock login` stored.

        Without a name: KNOCK_PROFILE, or the profile called "default". Raises ConfigurationError.
        """
        from .config import access

        url, key = access(profile)
        return cls(url, key, timeout=timeout, connect_timeout=connect_timeout)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the open connection. The client can still be used: the next call makes a new one."""
        self._transport.close()

    @property
    def url(self) -> str:
        """The API's URL, without a slash at the end."""
        return self._transport.url

    @property
    def path(self) -> Path | None:
        """How the last connection went: this machine's address, the other end's, the proxy if any."""
        return self._transport.path

    @property
    def clock_ahead(self) -> float | None:
        """Seconds that this machine's clock is ahead of the API's, by its last answer. Good to a second."""
        return self._transport.clock_ahead

    def knock(
        self,
        *targets: str,
        duration: str | int | timedelta | None = None,
        source: str | None = None,
        reason: str | None = None,
        renews: str | None = None,
        wait: float = 60.0,
    ) -> Grant:
        """Ask to be let in, and give the grant once it is active.

        Without targets: all the key may open. `duration` is like "8h", or in seconds; without it the
        stack's default. Each knock opens a grant of its own, beside those that are open. `renews` is the id
        of an own grant that this one takes the place of: it ends, superseded, once the new one is open; one
        that has ended is passed over, and another's raises GrantNotFound.
        A grant still pending after `wait` seconds raises GrantNotOpened, as one that failed does; with
        `wait=0` it is returned as it is.
        """
        body: dict[str, Any] = {}
        if targets:
            body["targets"] = list(targets)
        if duration is not None:
            body["duration"] = int(duration.total_seconds()) if isinstance(duration, timedelta) else duration
        if source is not None:
            body["source"] = source
        if reason:
            body["reason"] = reason
        if renews:
            body["renews"] = renews
        grant = Grant.from_json(self._transport.call("POST", "/knock", body=body))
        return self.wait_until_active(grant, wait) if wait > 0 else grant

    def wait_until_active(self, grant: Grant, wait: float = 60.0) -> Grant:
        """Ask about a pending grant until it is active. Raises GrantNotOpened when it ends or time is up."""
        deadline = time.monotonic() + wait
        pause = 0.25
        trouble: CannotReach | Unavailable | None = None
        while grant.status == "pending":
            left = deadline - time.monotonic()
            if left <= 0:
                known = f"; the API could not be asked: {trouble}" if trouble else ""
                raise GrantNotOpened(f"grant {grant.id} is still pending after {wait:g} s{known}", grant)
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 2.0)
            try:
                grant, trouble = self.grant(grant.id), None
            except (CannotReach, Unavailable) as error:
                trouble = error  # the grant goes on without us: keep asking until the deadline
        if grant.status != "active":
            why = f": {grant.json['ended_by']}" if grant.json.get("ended_by") else ""
            raise GrantNotOpened(f"grant {grant.id} is {grant.status}{why}", grant)
        return grant

    def grant(self, grant_id: str) -> Grant:
        """Give one grant with its trail events. Raises GrantNotFound."""
        return Grant.from_json(self._transport.call("GET", f"/grants/{quote(grant_id, safe='')}"))

    def grants(
        self,
        *,
        status: str | None = None,
        principal: str | None = None,
        source: str | None = None,
        target: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Grant]:
        """Give the live grants, the key's own, or everyone's for an operator, page after page.

        `status="all"` gives the ended ones too; the others narrow the choice; `limit` stops early.
        """
        asked = {"status": status, "principal": principal, "source": source, "target": target}
        query = {name: value for name, value in asked.items() if value is not None}
        given = 0
        while limit is None or given < limit:
            query["limit"] = str(PAGE if limit is None else min(limit - given, PAGE))
            page = self._transport.call("GET", "/grants", query=query)
            if not isinstance(page.get("grants"), list):
                raise UnexpectedAnswer("the answer is not a list of grants")
            for value in page["grants"]:
                yield Grant.from_json(value)
                given += 1
            if not page.get("cursor"):
                return
            query["cursor"] = str(page["cursor"])

    def own_grants(self, me: Whoami | None = None) -> list[Grant]:
        """Give the key's own live grants, for an operator too. `me`: what whoami said, if it is known."""
        me = me or self.whoami()
        # Only an operator may ask by name; names need not be unique, ids are.
        grants = self.grants(principal=me.principal.name if me.operator else None)
        return [grant for grant in grants if grant.principal.id == me.principal.id]

    def revoke(self, grant_id: str, reason: str | None = None) -> Grant:
        """End a grant now, and give it as it ended. The rules are gone then; twice is fine."""
        path = f"/grants/{quote(grant_id, safe='')}"
        return Grant.from_json(
            self._transport.call("DELETE", path, query={"reason": reason} if reason else None)
        )

    def renew(
        self, grant: Grant, *, duration: str | int | timedelta | None = None, wait: float = 60.0
    ) -> Grant:
        """Knock again for what a grant opens, from its source, for as long as it was asked for.

        The new grant takes its place: it ends, superseded, once the new one is open, and there is no gap.
        """
        return self.knock(
            *(target.name for target in grant.targets),
            duration=grant.duration if duration is None else duration,
            source=grant.source,
            reason=grant.reason,
            renews=grant.id,
            wait=wait,
        )

    def whoami(self) -> Whoami:
        """Ask who the key is, which address the API sees, and what the key may open."""
        return Whoami.from_json(self._transport.call("GET", "/whoami"))


def _principal(value: Mapping[str, Any]) -> Principal:
    return Principal(str(value["id"]), str(value["name"]))


def _targets(values: list[Mapping[str, Any]]) -> tuple[Target, ...]:
    return tuple(Target(str(value["name"]), tuple(str(p) for p in value["ports"])) for value in values)


def parse_time(text: str) -> datetime:
    """Read a time as the API writes it, with a Z. Raises ValueError."""
    # Python 3.10's fromisoformat knows no Z.
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").astimezone(timezone.utc)
