"""A command's dealings with the API: one client, and what this machine remembers of its answers.

It is the glue between the library, which remembers nothing, and the commands, which should not each
know what to remember.
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


# What passes as others' grants end, and certainly opened nothing.
FULL = (PoolExhausted, SourceFull, TooManyGrants)

WAIT = 60.0  # seconds for a pending grant when nothing is said
LONGEST_PAUSE = 30.0  # seconds between tries while there is no room: each is an execution of its own


class NothingToRevoke(KnockError):
    """There is no grant to end, so none was ended."""


class Session:
    """A client, and what this machine remembers of its answers.

    `limits` are those of `Client`: a hook and a key press wait less than a person's own command. `family` is
    4 or 6 where the API is to be called over IPv4 or IPv6 alone.
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
        """Knock, and remember the grant, for whom it was opened and for which network.

        It takes the place of `renews`, which a person named, or of `earlier`, which this machine remembers.
        Where the API no longer knows the latter, a grant is opened beside it. `wait` seconds at most, it is
        tried again while there is no room, and a pending grant is waited for: WAIT when None is said, and
        with 0 it is given as it is.
        """
        deadline = time.monotonic() + (wait or 0.0)
        pause = 1.0
        while True:
            try:
                knock = Knock(self, targets, duration, reason, source, by, renews=renews, earlier=earlier)
                return knock.open(WAIT if wait is None else wait)
            except (*FULL, Unavailable, GrantNotOpened) as error:
                left = deadline - time.monotonic()
                if left <= 0 or not passes(error):
                    raise
                if pause == 1.0:
                    self.screen.note(f"waiting: {error}")
            time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)

    def earlier(self, targets: Sequence[str], duration: str | None, source: str | None) -> str | None:
        """Give the id of what was opened by hand here for the same targets and source, if this outlasts it.

        The API is asked only when something is remembered: for the source it sees, the key's own id, and how
        long a grant is when nothing is said.
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
        """End a grant, and forget it here first: a wrong "open" would be the worse error."""
        state.forget(grant_id)
        try:
            return self.client.revoke(grant_id, reason)
        except KeyboardInterrupt:
            if not self.client.unanswered:
                raise
            what = f"interrupted: whether grant {grant_id} has ended is not known: look with "
            raise Interrupted(what + f"`knock show {grant_id}`", grant_id) from None

    def renew(self, grant: Grant, duration: str | None, by: Opener) -> Grant:
        """Knock again in place of a grant, and remember the new one as the old one was, or as opened `by`."""
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
        """Give the other active grants that let the same principal in from the same source to a same target.

        They keep it open when these end. One call a source. Raises KnockError.
        """
        these = {grant.id for grant in grants}
        return [
            other
            for source in sorted({grant.source for grant in grants})
            for other in self.client.grants(source=source)
            if other.id not in these
            and other.status == "active"
            and any(_shares(other, grant) for grant in grants)
        ]

    def note_sooner(self, grant: Grant) -> None:
        """Say when another grant keeps all of this one's targets open for longer: its end closes nothing."""
        try:
            others = self.beside([grant])
        except KnockError:
            return  # the door is open, and that was said
        names = {target.name for target in grant.targets}
        longer = [
            other
            for other in others
            if other.id != grant.renews
            and other.expires_at > grant.expires_at
            and names <= {target.name for target in other.targets}
        ]
        if longer:
            last = max(longer, key=lambda other: other.expires_at)
            self.screen.note(f"this ends sooner than what is open already: {say_still_open(last)}")

    def own_ids(self, *, everything: bool) -> list[str]:
        """Give the ids of one's own live grants: all, or those that were opened by hand on this machine.

        What a script, a watch or ssh's hook opened ends by its id: others may be at work behind it. Raises
        NothingToRevoke when there are none.
        """
        own = [grant.id for grant in _newest(self.client.own_grants())]
        if everything:
            if not own:
                raise NothingToRevoke("nothing to revoke: this key has no live grant")
            return own
        ids = [grant_id for grant_id in own if (state.entry(grant_id) or {}).get("by") == "hand"]
        if not ids:
            others = "; this key has others: `knock ls` shows them, and --all ends all" if own else ""
            raise NothingToRevoke(
                f"nothing to revoke: nothing that was opened by hand on this machine is live{others}"
            )
        return ids

    def renewable(self, *, everything: bool) -> list[Grant]:
        """Give what was opened by hand on this machine: all, or what is from the address the API sees.

        What something else opened is left alone, and said: it is renewed by whoever names it.
        Raises KnockError when nothing is left to renew.
        """
        me = self.client.whoami()
        own = _newest(self.client.own_grants(me))
        here = own if everything else [grant for grant in own if grant.source == me.source]
        chosen: list[Grant] = []
        others: list[Grant] = []
        for grant in here:
            by_hand = (state.entry(grant.id) or {}).get("by") == "hand"
            (chosen if by_hand else others).append(grant)
        named = "".join(f"\n  {grant.id}" for grant in others)
        if chosen:
            if others:
                self.screen.note(
                    f"{len(others)} more that were not opened by hand on this machine are not renewed: "
                    f"name them: {' '.join(grant.id for grant in others)}"
                )
            return chosen
        if others:
            raise KnockError(f"what is open was not opened by hand on this machine: name one:{named}")
        elsewhere = ", ".join(sorted({grant.source for grant in own}))
        raise KnockError(
            f"nothing is open from {me.source}"
            + (f", only from {elsewhere} (renew --all)" if elsewhere else "")
            + ": knock to open"
        )

    def each(self, things: Iterable[Any], act: Callable[[Any], Grant], what: str) -> tuple[list[Grant], int]:
        """Act on each thing, show what goes wrong, and give what was done, and the exit code.

        A refusal of one lets the others go on; no answer at all ends it, and what was done is still told.
        """
        done, code = [], 0
        for thing in things:
            try:
                with self.screen.progress(what):
                    done.append(act(thing))
            except (Refusal, GrantNotOpened) as error:
                self.screen.error(error)
                code = error.exit_code
            except KnockError as error:
                self.screen.error(error)
                return done, error.exit_code
            except Interrupted as error:
                self.screen.interrupted(error)
                return done, 130
        return done, code

    def notes(self, grant: Grant, *, named_source: bool, host: str | None = None) -> None:
        """Say what may surprise: a target left out, another address of the next connection, a wrong clock."""
        if grant.left_out:
            used, other = (6, 4) if ":" in grant.source else (4, 6)
            names = " ".join(grant.left_out)
            self.screen.note(
                f"{names} cannot be reached over IPv{used} and is not open: knock -{other} {names}"
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
        """Keep the names of all targets the key may open, for completion."""
        state.keep_words(self.url, "targets", {target.name: ", ".join(target.ports) for target in targets})

    def keep_grants(self, grants: Iterable[Grant]) -> None:
        """Keep the ids of live grants, for completion."""
        words = {g.id: f"{' '.join(target.name for target in g.targets)} from {g.source}" for g in grants}
        state.keep_words(self.url, "grants", words)


class Limits(NamedTuple):
    """How long a command waits, in seconds, and how often it tries."""

    answer: float = ANSWER_TIMEOUT
    connect: float = CONNECT_TIMEOUT
    tries: int = TRIES
    keyring: float = 20.0


class Knock:
    """One knock of a session: sent, answered, waited for, and remembered."""

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
        self.asked: dict[str, Any] = {"duration": duration, "source": source, "reason": reason, "wait": 0}

    def open(self, wait: float) -> Grant:
        """Knock, wait for a pending grant, and remember it."""
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
            what = f"interrupted: grant {grant.id} may be open all the same: end it with "
            raise Interrupted(what + f"`knock revoke {grant.id}`", grant.id) from None
        finally:
            if grant.live:
                here = self.source is None and grant.status == "active" and network.fingerprint() == before
                told: dict[str, Any] = {"everything": not self.targets, "asked_at": asked_at, "by": self.by}
                state.remember(self.session.url, grant, before if here else "", **told)
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
        """Knock, and once more over the other family where a target can only be reached by that one."""
        try:
            return self.client.knock(*self.targets, renews=renews, **self.asked)
        except WrongFamily as error:
            family = self._other_family(error)
            if family is None:
                raise
            refused = error
        self.client.family = family
        try:
            grant = self.client.knock(*self.targets, renews=renews, **self.asked)
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
        """Tell which family to call the API by, if that was left to this program."""
        path = self.client.path
        if self.source or self.client.family or path is None or path.proxy:
            return None
        used = 6 if ":" in path.peer else 4
        others = [family for family in error.families or (4, 6) if family != used]
        return others[0] if others else None


@contextlib.contextmanager
def interruptible(client: Client) -> Iterator[None]:
    """Turn an interruption of a knock whose answer was awaited into one that says what may be open."""
    try:
        yield
    except KeyboardInterrupt:
        if client.unanswered != "POST":
            raise
        what = "interrupted before the API answered: a grant may be open all the same: look with `knock ls`, "
        raise Interrupted(what + "and end it with `knock revoke ID`") from None


def passes(error: KnockError) -> bool:
    """Say whether the same knock may succeed later, and certainly opened nothing now."""
    if isinstance(error, GrantNotOpened):
        return error.full
    return not (isinstance(error, Unavailable) and error.grant_id)


def _newest(grants: Sequence[Grant]) -> list[Grant]:
    """Leave out what a newer grant is about to supersede: it is active a moment before the old one ends."""
    replaced = {grant.renews for grant in grants if grant.status == "active"}
    return [grant for grant in grants if grant.id not in replaced]


def _shares(one: Grant, other: Grant) -> bool:
    """Say whether two grants let the same principal in from the same source to a same target."""
    if (one.principal.id, one.source) != (other.principal.id, other.source):
        return False
    return bool({target.name for target in one.targets} & {target.name for target in other.targets})


def say_still_open(grant: Grant) -> str:
    """Say until when a grant keeps a door open, and which one it is."""
    end = show_time(grant.expires_at)
    return f"still open until {end} by {grant.id}: {show_targets(grant.targets)} from {grant.source}"


_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def read_duration(text: str) -> int:
    """Read a duration as the API does, in seconds; 0 for what is none, which the API then says better."""
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
    """Write a source as the API keeps it, 203.0.113.7 as 203.0.113.7/32; what is none stays as it is."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(source, strict=False))
    except ValueError:
        return source
