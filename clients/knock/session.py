"""A command's dealings with the API: one client, and what this machine remembers of its answers.

It is the glue between the library, which remembers nothing, and the commands, which should not each
know what to remember.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import config, network, state
from .client import Client
from .errors import ConfigurationError, GrantNotFound, GrantNotOpened, KnockError, Refusal
from .screen import show_left, show_targets, show_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from .client import Grant, Target
    from .screen import Screen
    from .state import Opener


class Session:
    """A client, and what this machine remembers of its answers."""

    def __init__(self, profile: str | None, screen: Screen, *, impatient: bool = False) -> None:
        self.screen = screen
        self.url, key = config.access(profile)
        limits = {"timeout": 2.0, "connect_timeout": 1.0} if impatient else {}
        self.client = Client(self.url, key, **limits)

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
        wait: float = 60.0,
        *,
        by: Opener,
        renews: str | None = None,
        earlier: str | None = None,
    ) -> Grant:
        """Knock, and remember the grant, for whom it was opened and for which network.

        It takes the place of `renews`, which a person named, or of `earlier`, which this machine remembers.
        Where the API no longer knows the latter, a grant is opened beside it.
        """
        before, asked_at = network.fingerprint(), time.time()
        asked: dict[str, Any] = {"duration": duration, "source": source, "reason": reason, "wait": 0}
        try:
            grant = self.client.knock(*targets, renews=renews or earlier, **asked)
        except GrantNotFound:
            if renews or not earlier:
                raise
            state.forget(earlier)
            grant = self.client.knock(*targets, **asked)
        try:
            if wait > 0:
                grant = self.client.wait_until_active(grant, wait)
        except GrantNotOpened as error:
            grant = error.grant
            raise
        finally:
            if grant.live:
                here = source is None and grant.status == "active" and network.fingerprint() == before
                told: dict[str, Any] = {"everything": not targets, "asked_at": asked_at, "by": by}
                state.remember(self.url, grant, before if here else "", **told)
        if grant.renews:
            state.forget(grant.renews)
        if not targets:
            self.keep_targets(grant.targets)
        return grant

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
        return self.client.revoke(grant_id, reason)

    def renew(self, grant: Grant, duration: str | None, by: Opener) -> Grant:
        """Knock again in place of a grant, and remember the new one as the old one was, or as opened `by`."""
        entry, asked_at = state.entry(grant.id) or {}, time.time()
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
        """Give the ids of one's own live grants: all, or the only one, or raise ConfigurationError."""
        own = self.client.own_grants()
        ids = [grant.id for grant in (own if everything else _newest(own))]
        if len(ids) > 1 and not everything:
            raise ConfigurationError(
                "several grants are live: name one, or say --all:\n  " + "\n  ".join(ids)
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
        return done, code

    def notes(self, grant: Grant, *, named_source: bool, host: str | None = None) -> None:
        """Say what may surprise: another address for the next connection, a clock that is off."""
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
