"""The Knock API for Python programs: `Client`, and the values it answers with.

Every call has a time limit, tries again only what is safe (the table in `knock.transport`), and raises
the errors of `knock.errors` and no others. One Client is for one thread at a time.

The values are those of `knock.values`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .answers import read_grant, read_opened, read_whoami
from .errors import CannotReach, GrantNotOpened, Unavailable, UnexpectedAnswer
from .transport import ANSWER_TIMEOUT, CONNECT_TIMEOUT, TRIES, Path, Transport

if TYPE_CHECKING:
    from types import TracebackType

    from .values import Grant, Whoami

PAGE = 100  # grants an answer; the API gives no more at once
MOST_PAGES = 10_000  # of one list; what gives more is not the API


class Client:
    """The Knock API at `url`, called with `api_key`.

    `timeout` bounds one answer and `connect_timeout` one connection, both in seconds. `family` 4 or 6
    connects by IPv4 or IPv6 only, which decides the source that the API sees. The key is sent as a header and
    appears in no message, repr or URL.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        family: int | None = None,
        tries: int = TRIES,
    ) -> None:
        self._transport = Transport(
            url, api_key, timeout=timeout, connect_timeout=connect_timeout, family=family, tries=tries
        )

    @classmethod
    def from_profile(
        cls,
        profile: str | None = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        family: int | None = None,
    ) -> Client:
        """Make a client of KNOCK_URL and KNOCK_API_KEY or KNOCK_KEY_FILE, or of what `knock login` stored.

        Without a name: KNOCK_PROFILE, or the profile called "default". Raises ConfigurationError.
        """
        from .config import access

        url, key = access(profile)
        return cls(url, key, timeout=timeout, connect_timeout=connect_timeout, family=family)

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
    def family(self) -> int | None:
        """4 or 6 where connections are made by IPv4 or IPv6 only. Setting it drops the open connection."""
        return self._transport.family

    @family.setter
    def family(self, family: int | None) -> None:
        self._transport.close()
        self._transport.family = family

    @property
    def unanswered(self) -> str:
        """The method of a call whose answer was still awaited when an interruption came, or empty."""
        return self._transport.unanswered

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
        grant = read_opened(self._transport.call("POST", "/knock", body=body))
        return self.wait_until_active(grant, wait) if wait > 0 else grant

    def wait_until_active(self, grant: Grant, wait: float = 60.0) -> Grant:
        """Ask about a pending grant until it is active. Raises GrantNotOpened when it ends or time is up."""
        deadline = time.monotonic() + wait
        pause, left_out = 0.25, grant.left_out
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
            why = next((str(event["reason"]) for event in reversed(grant.events) if event.get("reason")), "")
            full = grant.status == "failed" and why.startswith(("PoolExhausted", "SourceFull"))
            told = why or grant.ended_by
            raise GrantNotOpened(
                f"grant {grant.id} is {grant.status}{f': {told}' if told else ''}", grant, full=full
            )
        if left_out and not grant.left_out:  # only the answer to the knock itself names them
            return replace(grant, left_out=left_out, json={**grant.json, "left_out": list(left_out)})
        return grant

    def grant(self, grant_id: str) -> Grant:
        """Give one grant with its trail events. Raises GrantNotFound."""
        return read_grant(self._transport.call("GET", _path(grant_id)))

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
        given, seen = 0, set[str]()
        while limit is None or given < limit:
            query["limit"] = str(PAGE if limit is None else min(limit - given, PAGE))
            page = self._transport.call("GET", "/grants", query=query)
            if not isinstance(page.get("grants"), list):
                raise UnexpectedAnswer("the answer is not a list of grants")
            for value in page["grants"]:
                yield read_grant(value)
                given += 1
            if not page.get("cursor"):
                return
            query["cursor"] = str(page["cursor"])
            if query["cursor"] in seen or len(seen) == MOST_PAGES:
                raise UnexpectedAnswer("the answer's list of grants has no end")
            seen.add(query["cursor"])

    def own_grants(self, me: Whoami | None = None) -> list[Grant]:
        """Give the key's own live grants, for an operator too. `me`: what whoami said, if it is known."""
        me = me or self.whoami()
        # Only an operator may ask by name; names need not be unique, ids are.
        grants = self.grants(principal=me.principal.name if me.operator else None)
        return [grant for grant in grants if grant.principal.id == me.principal.id]

    def revoke(self, grant_id: str, reason: str | None = None) -> Grant:
        """End a grant now, and give it as it ended. The rules are gone then; twice is fine."""
        path = _path(grant_id)
        return read_grant(self._transport.call("DELETE", path, query={"reason": reason} if reason else None))

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
        return read_whoami(self._transport.call("GET", "/whoami"))


def _path(grant_id: str) -> str:
    # A word of a command line may hold bytes that are no text: the API then says that there is no such grant.
    return "/grants/" + quote(grant_id, safe="", errors="surrogatepass")
