"""Connects the commands with the library: a client, and the state that this machine keeps of its answers.

The library keeps no state. The state that commands need is kept here, in one place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import config, network, state
from .client import Client
from .errors import (
    AnswerLost,
    CannotReach,
    GrantNotFound,
    GrantNotOpened,
    Interrupted,
    KnockError,
    PoolExhausted,
    Refusal,
    SourceFull,
    TooManyGrants,
    Unavailable,
    WrongFamily,
)
from .screen import show_left, show_targets, show_time
from .transport import ANSWER_TIMEOUT, CONNECT_TIMEOUT, TRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from .screen import Screen
    from .state import Opener
    from .values import Grant, Target


# Errors for want of room, which end when other grants end. Nothing was opened.
FULL = (PoolExhausted, SourceFull, TooManyGrants)

WAIT = 60.0  # seconds to wait for a pending grant, by default
LONGEST_PAUSE = 30.0  # seconds between attempts while there is no room; each attempt is an execution


class Wanted(NamedTuple):
    """What a command opens: targets (all that the key may open, if empty), for how long, why and to whom."""

    targets: Sequence[str]
    duration: str | None
    reason: str | None
    source: str | None = None


class NothingToRevoke(KnockError):
    """There is no grant to revoke."""


class Session:
    """A client, and the state that this machine keeps of its answers.

    `limits` are those of `Client`; they are shorter for ssh's hook and completion. `family` is 4 or 6 to call
    the API over IPv4 or IPv6 only.
    """

    def __init__(
        self, profile: str | None, screen: Screen, *, limits: Limits | None = None, family: int | None = None
    ) -> None:
        self.screen = screen
        limits = limits or Limits()
        self.url, key = config.access(profile, patience=limits.keyring)
        self.client = Client(
            self.url,
            key,
            timeout=limits.answer,
            connect_timeout=limits.connect,
            tries=limits.tries,
            family=family,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def open(
        self,
        targets: Sequence[str],
        duration: str | None = None,
        reason: str | None = None,
        source: str | None = None,
        wait: float | None = None,
        *,
        by: Opener,
        renews: str | None = None,
        earlier: str | None = None,
    ) -> Grant:
        """Knock, and store the grant with its opener and this network.

        The grant supersedes `renews`, the id that the user named, or `earlier`, an id from this machine's
        state; the API may not know the latter any more, and then it has no effect. For `wait` seconds, the
        knock is retried while there is no room, and a pending grant is polled. None is no retry, and WAIT for
        a pending grant; with 0 a pending grant is returned. Raises the errors of `Client.knock`.
        """
        deadline = time.monotonic() + (wait or 0.0)
        pause = 1.0
        while True:
            try:
                knock = Knock(self, targets, duration, reason, source, by, renews=renews, earlier=earlier)
                return knock.open(WAIT if wait is None else wait)
            except (*FULL, Unavailable, GrantNotOpened) as error:
                left = deadline - time.monotonic()
                if left <= 0 or not may_retry(error):
                    raise
                if pause == 1.0:
                    self.screen.note(f"waiting: {error}")
            time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)

    def earlier(self, targets: Sequence[str], duration: str | None, source: str | None) -> str | None:
        """Give the id of a grant that was opened by hand here, for the same targets and source, and that ends
        before this knock would; else None.

        It calls the API only if there is such a grant, for the source, the key's id and the default duration.
        """
        entries = state.opened_by("hand", self.url, targets)
        if not entries:
            return None
        me = self.client.whoami()
        seconds = read_duration(duration or me.default_duration)
        wanted = (me.principal.id, canonical(source) if source else me.source)
        for entry in entries:
            same = (entry.get("principal"), entry.get("source")) == wanted
            if same and seconds and time.time() + seconds > entry["until"]:
                grant_id: str = entry["id"]
                return grant_id
        return None

    def revoke(self, grant_id: str, reason: str | None = None) -> Grant:
        """Revoke a grant. It is removed from the state before, since a wrong "open" there would be worse.

        Raises Interrupted if Ctrl-C cuts the call off before its answer.
        """
        state.forget(grant_id)
        try:
            return self.client.revoke(grant_id, reason)
        except KeyboardInterrupt:
            if not self.client.unanswered:
                raise
            raise Interrupted(
                f"interrupted: whether grant {grant_id} has ended is not known: look with "
                f"`knock show {grant_id}`",
                grant_id,
            ) from None

    def renew(self, grant: Grant, duration: str | None, by: Opener) -> Grant:
        """Renew a grant, and store the new one with the old one's opener, or `by` if that is not known."""
        entry, asked_at = state.entry(grant.id) or {}, time.time()
        with interruptible(self.client):
            new = self.client.renew(grant, duration=duration)
        state.forget(grant.id)
        state.remember(
            self.url,
            new,
            entry.get("network", ""),
            everything=entry.get("all", False),
            asked_at=asked_at,
            by=entry.get("by", by),
        )
        return new

    def beside(self, grants: Sequence[Grant]) -> list[Grant]:
        """Give the other active grants that share a principal, source and target with one of these.

        They keep targets open after these have ended. It makes a call for each source. Raises KnockError.
        """
        ids = {grant.id for grant in grants}
        return [
            candidate
            for source in sorted({grant.source for grant in grants})
            for candidate in self.client.grants(source=source)
            if candidate.id not in ids
            and candidate.status == "active"
            and any(_shares(candidate, grant) for grant in grants)
        ]

    def note_sooner(self, grant: Grant) -> None:
        """Print a note if another grant keeps all targets of this one open for longer."""
        try:
            overlapping = self.beside([grant])
        except KnockError:
            return  # the grant is open, which is printed already
        names = {target.name for target in grant.targets}
        longer = [
            candidate
            for candidate in overlapping
            if candidate.id != grant.renews
            and candidate.expires_at > grant.expires_at
            and names <= {target.name for target in candidate.targets}
        ]
        if longer:
            last = max(longer, key=lambda candidate: candidate.expires_at)
            self.screen.note(f"this ends sooner than what is open already: {say_still_open(last)}")

    def own_ids(self, *, everything: bool) -> list[str]:
        """Give the ids of the key's live grants: all, or those that were opened by hand on this machine.

        Grants that a script, a watch or ssh's hook opened may be in use, and have to be named to be revoked.
        Raises NothingToRevoke if there are none.
        """
        own = [grant.id for grant in _newest(self.client.own_grants())]
        if everything:
            if not own:
                raise NothingToRevoke("nothing to revoke: this key has no live grant")
            return own
        ids = [grant_id for grant_id in own if (state.entry(grant_id) or {}).get("by") == "hand"]
        if not ids:
            hint = "; this key has others: `knock ls` shows them, and --all ends all" if own else ""
            raise NothingToRevoke(
                f"nothing to revoke: nothing that was opened by hand on this machine is live{hint}"
            )
        return ids

    def renewable(self, *, everything: bool) -> list[Grant]:
        """Give the live grants that were opened by hand on this machine: all, or those of this address.

        Other grants have to be named to be renewed; a note lists them. Raises KnockError if there are none.
        """
        me = self.client.whoami()
        own = _newest(self.client.own_grants(me))
        here = own if everything else [grant for grant in own if grant.source == me.source]
        chosen: list[Grant] = []
        by_others: list[Grant] = []
        for grant in here:
            by_hand = (state.entry(grant.id) or {}).get("by") == "hand"
            (chosen if by_hand else by_others).append(grant)
        listed = " ".join(grant.id for grant in by_others)
        if chosen:
            if by_others:
                self.screen.note(
                    f"{len(by_others)} more that were not opened by hand on this machine are not renewed: "
                    f"name them: {listed}"
                )
            return chosen
        if by_others:
            raise KnockError(f"what is open was not opened by hand on this machine: name one: {listed}")
        sources = ", ".join(sorted({grant.source for grant in own}))
        raise KnockError(
            f"nothing is open from {me.source}"
            + (f", only from {sources} (renew --all)" if sources else "")
            + ": knock to open"
        )

    def for_each(
        self, items: Iterable[Any], act: Callable[[Any], Grant], label: str
    ) -> tuple[list[Grant], int]:
        """Act on each item and print errors. Gives the results, and the exit code. `label` is the spinner's.

        It goes on after a refusal, and stops if the API does not answer.
        """
        results, code = [], 0
        for item in items:
            try:
                with self.screen.progress(label):
                    results.append(act(item))
            except (Refusal, GrantNotOpened) as error:
                self.screen.error(error)
                code = error.exit_code
            except KnockError as error:
                self.screen.error(error)
                return results, error.exit_code
            except Interrupted as error:
                self.screen.interrupted(error)
                return results, 130
        return results, code

    def notes(self, grant: Grant, *, named_source: bool, host: str | None = None) -> None:
        """Print notes on targets left out, a different address of the next connection, and a wrong clock."""
        if grant.left_out:
            used, unused = (6, 4) if ":" in grant.source else (4, 6)
            names = " ".join(grant.left_out)
            self.screen.note(
                f"{names} cannot be reached over IPv{used} and is not open: knock -{unused} {names}"
            )
        if not named_source:
            for sentence in network.differences(grant, self.client, host):
                self.screen.note(sentence)
        self.note_clock()

    def note_clock(self) -> None:
        ahead = self.client.clock_ahead
        if ahead is not None and abs(ahead) > 30:
            way = "ahead of" if ahead > 0 else "behind"
            self.screen.note(
                f"this machine's clock is {show_left(abs(ahead))} {way} the API's, which decides: set it"
            )

    def keep_targets(self, targets: Iterable[Target]) -> None:
        """Store the names of all targets that the key may open, for completion."""
        state.keep_words(self.url, "targets", {target.name: ", ".join(target.ports) for target in targets})

    def keep_grants(self, grants: Iterable[Grant]) -> None:
        """Store the ids of live grants, for completion."""
        words = {g.id: f"{' '.join(target.name for target in g.targets)} from {g.source}" for g in grants}
        state.keep_words(self.url, "grants", words)


class Limits(NamedTuple):
    """The time limits of a command, in seconds, and its most attempts of a call."""

    answer: float = ANSWER_TIMEOUT
    connect: float = CONNECT_TIMEOUT
    tries: int = TRIES
    keyring: float = 20.0


class Knock:
    """A knock of a session: sent, polled, and stored."""

    def __init__(
        self,
        session: Session,
        targets: Sequence[str],
        duration: str | None,
        reason: str | None,
        source: str | None,
        by: Opener,
        *,
        renews: str | None,
        earlier: str | None,
    ) -> None:
        self.session = session
        self.client = session.client
        self.targets = targets
        self.source = source
        self.by = by
        self.renews = renews
        self.earlier = earlier
        self.parameters: dict[str, Any] = {
            "duration": duration,
            "source": source,
            "reason": reason,
            "wait": 0,
        }

    def open(self, wait: float) -> Grant:
        """Knock, poll a pending grant for `wait` seconds, and store the grant."""
        before, asked_at = network.fingerprint(), time.time()
        with interruptible(self.client):
            grant = self._send()
        try:
            if wait > 0:
                grant = self.client.wait_until_active(grant, wait)
        except GrantNotOpened as error:
            grant = error.grant
            raise
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: grant {grant.id} may be open all the same: end it with "
                f"`knock revoke {grant.id}`",
                grant.id,
            ) from None
        finally:
            if grant.live:
                here = self.source is None and grant.status == "active" and network.fingerprint() == before
                state.remember(
                    self.session.url,
                    grant,
                    before if here else "",
                    everything=not self.targets,
                    asked_at=asked_at,
                    by=self.by,
                )
        if grant.renews:
            state.forget(grant.renews)
        if not self.targets:
            self.session.keep_targets(grant.targets)
        return grant

    def _send(self) -> Grant:
        try:
            return self._send_by_family(self.renews or self.earlier)
        except GrantNotFound:
            if self.renews or not self.earlier:
                raise
            state.forget(self.earlier)
            return self._send_by_family(None)

    def _send_by_family(self, renews: str | None) -> Grant:
        """Knock, and again over the other address family if a target can only be reached over that."""
        try:
            return self.client.knock(*self.targets, renews=renews, **self.parameters)
        except WrongFamily as error:
            family = self._other_family(error)
            if family is None:
                raise
            refused = error
        self.client.family = family
        try:
            grant = self.client.knock(*self.targets, renews=renews, **self.parameters)
        except AnswerLost:
            raise
        except CannotReach as error:
            self.client.family = None
            self.session.screen.note(f"to knock over IPv{family} was tried: {error}")
            raise refused from error
        self.session.screen.note(
            f"knocked over IPv{family}, the only way to {' '.join(t.name for t in grant.targets)}"
        )
        return grant

    def _other_family(self, error: WrongFamily) -> int | None:
        """Give the address family to call the API over instead; None if there is none, or no choice."""
        path = self.client.path
        if self.source or self.client.family or path is None or path.proxy:
            return None
        used = 6 if ":" in path.peer else 4
        families = [family for family in error.families or (4, 6) if family != used]
        return families[0] if families else None


@contextlib.contextmanager
def interruptible(client: Client) -> Iterator[None]:
    """Raise Interrupted, with what may be open, if Ctrl-C cuts a knock off before its answer."""
    try:
        yield
    except KeyboardInterrupt:
        if client.unanswered != "POST":
            raise
        raise Interrupted(
            "interrupted before the API answered: a grant may be open all the same: look with `knock ls`, "
            "and end it with `knock revoke ID`"
        ) from None


def may_retry(error: KnockError) -> bool:
    """Say whether the same knock may succeed later, and has certainly opened nothing."""
    if isinstance(error, GrantNotOpened):
        return error.full
    return not (isinstance(error, Unavailable) and error.grant_id)


def _newest(grants: Sequence[Grant]) -> list[Grant]:
    """Leave out grants that an active one is about to supersede: both are active for a moment."""
    replaced = {grant.renews for grant in grants if grant.status == "active"}
    return [grant for grant in grants if grant.id not in replaced]


def _shares(first: Grant, second: Grant) -> bool:
    """Say whether two grants have the same principal and source, and a target in common."""
    if (first.principal.id, first.source) != (second.principal.id, second.source):
        return False
    return bool({target.name for target in first.targets} & {target.name for target in second.targets})


def say_still_open(grant: Grant) -> str:
    """Describe a grant that keeps targets open, and until when."""
    end = show_time(grant.expires_at)
    return f"still open until {end} by {grant.id}: {show_targets(grant.targets)} from {grant.source}"


_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def read_duration(text: str) -> int:
    """Read a duration as the API does, in seconds; 0 for a malformed one, which the API refuses."""
    import re

    text = text.strip().lower()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return int(text)
    unit = [rf"(?:(\d{{1,9}}) ?{name})?" for name in _UNITS]
    match = re.fullmatch(" ?".join(unit), text, re.ASCII) or re.fullmatch(
        f"p{unit[0]}(?:t{''.join(unit[1:])})?", text, re.ASCII
    )
    if not match or text.endswith("t"):
        return 0
    numbers = zip(match.groups(), _UNITS.values(), strict=True)
    return sum(int(number) * size for number, size in numbers if number)


def canonical(source: str) -> str:
    """Write a source as the API does, 203.0.113.7 as 203.0.113.7/32. A malformed one stays as it is."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(source, strict=False))
    except ValueError:
        return source
