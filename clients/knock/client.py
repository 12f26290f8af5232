"""The Knock API for Python programs: `Client`.

Every call has a time limit, is retried only if that is safe (the table in `knock.transport`), and raises only
the errors of `knock.errors`. Results are the values of `knock.values`. A Client is not thread-safe.
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

PAGE = 100  # grants in a page; the API gives no more
MOST_PAGES = 10_000  # of a list; a server that gives more is not the API


class Client:
    """The Knock API at `url`, called with `api_key`.

    `timeout` is the limit for an answer and `connect_timeout` that for a connection, both in seconds.
    `family` is 4 or 6 to connect over IPv4 or IPv6 only, which decides the source that the API sees. `tries`
    is the most attempts of a call. The key is sent as a header, and is in no message, repr or URL. Raises
    ConfigurationError for a malformed URL or key.
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
        """Make a client from KNOCK_URL and KNOCK_API_KEY or KNOCK_KEY_FILE, or from a stored profile.

        Without a name, the profile is KNOCK_PROFILE, or "default". Raises ConfigurationError.
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
        """Close the connection. The client can still be used: the next call makes a new connection."""
        self._transport.close()

    @property
    def url(self) -> str:
        """The API's URL, without a slash at the end."""
        return self._transport.url

    @property
    def path(self) -> Path | None:
        """The path of the last connection: this machine's address, the peer's, and the proxy, if any."""
        return self._transport.path

    @property
    def family(self) -> int | None:
        """4 or 6 to connect over IPv4 or IPv6 only, or None. Setting it closes the connection."""
        return self._transport.family

    @family.setter
    def family(self, family: int | None) -> None:
        self._transport.close()
        self._transport.family = family

    @property
    def unanswered(self) -> str:
        """The method of the call that an interruption has cut off before its answer, or empty."""
        return self._transport.unanswered

    @property
    def clock_ahead(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the API's, within a second; None if not known."""
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
        """Start a grant, and give it once it is active.

        Without targets, it is for all that the key may open. `duration` is a text like "8h" or a number of
        seconds; the stack has a default. `source` is the CIDR to let in, else this caller's address. `renews`
        is the id of a grant of this key, which is superseded once the new one is active; it has no effect if
        that grant has ended, and raises GrantNotFound for a grant of another key. Each call starts a new
        grant, beside those that are live.

        Raises GrantNotOpened if the grant fails, or is still pending after `wait` seconds. With `wait=0` the
        pending grant is returned. After AnswerLost, or an error with a `grant_id`, a grant may be open.
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
        """Poll a pending grant until it is active, for `wait` seconds. Raises GrantNotOpened if it is not."""
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
                trouble = error  # the grant goes on in AWS: keep polling until the deadline
        if grant.status != "active":
            why = next((str(event["reason"]) for event in reversed(grant.events) if event.get("reason")), "")
            full = grant.status == "failed" and why.startswith(("PoolExhausted", "SourceFull"))
            cause = why or grant.ended_by
            raise GrantNotOpened(
                f"grant {grant.id} is {grant.status}{f': {cause}' if cause else ''}", grant, full=full
            )
        if left_out and not grant.left_out:  # only the answer to the knock names them
            return replace(grant, left_out=left_out, json={**grant.json, "left_out": list(left_out)})
        return grant

    def grant(self, grant_id: str) -> Grant:
        """Give a grant with its events. Raises GrantNotFound."""
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
        """Yield the key's own live grants, for an operator everyone's, newest first. Reads page after page.

        `status` selects another state, or "all". `principal` (for operators), `source` and `target` are
        filters, and `limit` is the most grants to give.
        """
        filters = {"status": status, "principal": principal, "source": source, "target": target}
        query = {name: value for name, value in filters.items() if value is not None}
        count, seen = 0, set[str]()
        while limit is None or count < limit:
            query["limit"] = str(PAGE if limit is None else min(limit - count, PAGE))
            page = self._transport.call("GET", "/grants", query=query)
            if not isinstance(page.get("grants"), list):
                raise UnexpectedAnswer("the answer is not a list of grants")
            for value in page["grants"]:
                yield read_grant(value)
                count += 1
            if not page.get("cursor"):
                return
            query["cursor"] = str(page["cursor"])
            if query["cursor"] in seen or len(seen) == MOST_PAGES:
                raise UnexpectedAnswer("the answer's list of grants has no end")
            seen.add(query["cursor"])

    def own_grants(self, me: Whoami | None = None) -> list[Grant]:
        """Give the key's own live grants, also for an operator. `me` saves the call of `whoami`."""
        me = me or self.whoami()
        # Only an operator may filter by name. Names need not be unique, but ids are.
        grants = self.grants(principal=me.principal.name if me.operator else None)
        return [grant for grant in grants if grant.principal.id == me.principal.id]

    def revoke(self, grant_id: str, reason: str | None = None) -> Grant:
        """Close a grant, and give it as it has ended: its rules are revoked then.

        Revoking it again changes nothing. Raises GrantNotFound.
        """
        path = _path(grant_id)
        return read_grant(self._transport.call("DELETE", path, query={"reason": reason} if reason else None))

    def renew(
        self, grant: Grant, *, duration: str | int | timedelta | None = None, wait: float = 60.0
    ) -> Grant:
        """Start a grant with the targets, the source and the reason of another, and its duration by default.

        The old grant is superseded once the new one is active: there is no gap. Raises as `knock`.
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
        """Give the key's principal and rights, and the address that the API sees."""
        return read_whoami(self._transport.call("GET", "/whoami"))


def _path(grant_id: str) -> str:
    # A command line's argument may have bytes that are no text: the API answers that there is no such grant.
    return "/grants/" + quote(grant_id, safe="", errors="surrogatepass")
