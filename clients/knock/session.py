"""A command's dealings with the API: one client, and what this machine remembers of its answers.

It is the glue between the library, which remembers nothing, and the commands, which should not each
know what to remember.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import config, network, state
from .client import Client
from .errors import ConfigurationError, GrantNotOpened, KnockError, Refusal
from .screen import show_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from .client import Grant, Target
    from .screen import Screen


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
    ) -> Grant:
        """Knock, and remember the grant if it is for the network this machine is on."""
        before, asked_at = network.fingerprint(), time.time()
        grant = self.client.knock(*targets, duration=duration, source=source, reason=reason, wait=wait)
        state.forget_superseded(self.url, grant)
        if source is None and grant.status == "active" and network.fingerprint() == before:
            state.remember(self.url, grant, before, everything=not targets, asked_at=asked_at)
        if not targets:
            self.keep_targets(grant.targets)
        return grant

    def revoke(self, grant_id: str, reason: str | None = None) -> Grant:
        """End a grant, and forget it here first: a wrong "open" would be the worse error."""
        state.forget(grant_id)
        return self.client.revoke(grant_id, reason)

    def renew(self, grant: Grant, duration: str | None) -> Grant:
        """Knock again for what a grant opens, and remember the new one as the old one was."""
        entry, asked_at = state.entry(grant.id), time.time()
        new = self.client.renew(grant, duration=duration)
        state.forget_superseded(self.url, new)
        if entry:
            state.remember(self.url, new, entry["network"], everything=entry["all"], asked_at=asked_at)
        return new

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
        """Give one's own live grants: all, or those from the address the API sees, or raise KnockError."""
        source = self.client.whoami().source
        own = _newest(self.client.own_grants())
        chosen = own if everything else [grant for grant in own if grant.source == source]
        if not chosen:
            elsewhere = ", ".join(sorted({grant.source for grant in own}))
            raise KnockError(
                f"nothing is open from {source}"
                + (f", only from {elsewhere} (renew --all)" if elsewhere else "")
                + ": knock to open"
            )
        return chosen

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


def _newest(grants: Iterable[Grant]) -> list[Grant]:
    """Leave out what a newer grant is about to supersede: it is active a moment before the old one ends."""
    chosen: dict[Any, Grant] = {}
    for grant in grants:  # newest first, as the API lists them
        chosen.setdefault((grant.source, grant.targets), grant)
    return list(chosen.values())
