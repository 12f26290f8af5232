"""`knock watch`: keep access open while the address changes (sleep, Wi-Fi, VPN).

A check asks the API two things: which address it sees, and how the grant is. It is made every minute, and
at once when this machine's own addresses or gateway change or it wakes from sleep, which is seen without
a byte of traffic. From there:

    the grant is from another address   knock from this one, then revoke the old grant
    it ends soon, or has ended          knock again: a renewal, with no gap
    it was superseded                   somebody of the same key knocked by hand: keep watching their grant
    it was revoked                      stop. Whoever ended it meant it, and a program must not argue
    the API cannot be reached           try again after 1, 2, 4 … 60 s, and at once on another network
    the API refuses                     stop, with its reason

SIGINT and SIGTERM stop it: at once while it waits or asks, and after the call while it opens or revokes,
so that nothing is left half done. The grant then runs to its own end, or is revoked with --revoke. A second
signal ends it as it is; not within a second, since `timeout`, and a wrapper that passes a terminal's Ctrl-C
on, send one request twice.
The id of its grant is kept, so that a watch that was killed finds, and ends, what it left elsewhere.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from . import network, state
from .cli import parser
from .errors import (
    CannotReach,
    GrantNotFound,
    GrantNotOpened,
    KnockError,
    PoolExhausted,
    Unavailable,
    UnexpectedAnswer,
)
from .screen import Screen, say_open, show_time
from .session import Session

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from .client import Grant

SAME_REQUEST = 1.0  # seconds within which a second signal says nothing that the first did not
LOOK = 3.0  # seconds between looks at this machine's own addresses
LONGEST_PAUSE = 60.0  # seconds between tries while the API cannot be reached

# What passes without anybody's doing. A full pool empties as grants end; a hotspot's page goes after a login.
PASSING = (CannotReach, Unavailable, UnexpectedAnswer, PoolExhausted, GrantNotOpened)


class _Stop(BaseException):
    """A signal came. Not an Exception: no handler of errors on the way may take it for one."""


def run_watch(words: list[str]) -> int:
    """`knock watch [TARGET…]`"""
    made = parser(
        "watch",
        "Keep access open while your address changes. Ends on Ctrl-C, and when the grant is revoked.",
        "knock watch bastion --for 1h --revoke",
        "systemctl --user start knock-watch   as a service: see docs/watch.md",
        usage="knock watch [TARGET…] [--for TIME] [--reason TEXT] [--every SECONDS] [--revoke] [--json | -q]",
    )
    made.add_argument("targets", nargs="*", metavar="TARGET", help="what to open (default: all you may)")
    made.add_argument("--for", dest="duration", metavar="TIME", help="how long each grant is: 90m, 8h, 1d")
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    made.add_argument("--every", type=_seconds, default=60.0, metavar="SECONDS", help="between checks (60)")
    made.add_argument("--revoke", action="store_true", help="revoke the grant when the watch is stopped")
    args = made.parse_args(words)
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen) as api:
        return Watch(api, args, screen).run()


class Watch:
    """One watch: its grant, the grants it left behind, and how the network was when it last looked."""

    def __init__(self, api: Session, args: argparse.Namespace, screen: Screen) -> None:
        self.api = api
        self.args = args
        self.screen = screen
        self.grant: Grant | None = None
        self.left_behind: list[str] = []
        self.network = ""
        self.failures = 0
        self._stopping = False
        self._signalled_at = 0.0
        self._may_interrupt = False

    def run(self) -> int:
        """Watch until a signal comes. Gives the exit code; raises KnockError when the API refuses."""
        before = {
            number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            while True:
                self._wait(self._check())
        except _Stop:
            self._stopped()
            return 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------------ one check

    def _check(self) -> float:
        """Look once and do what is needed. Gives the seconds until the next look."""
        self.network = network.fingerprint()
        self.api.client.close()  # a connection from before a change of network would only time out
        try:
            self._look()
        except PASSING as error:
            return self._pause_after(error)
        if self.failures:
            self.failures = 0
            self._tell("online", "the API answers again")
        return max(1.0, min(float(self.args.every), self._until_renewal()))

    def _pause_after(self, error: KnockError) -> float:
        """Say once that something is wrong, and give the seconds until the next try."""
        self.failures += 1
        if self.failures == 1:
            self._tell("offline", str(error))
        pause = min(2.0 ** (self.failures - 1), LONGEST_PAUSE)
        return pause * random.uniform(0.75, 1.0)  # noqa: S311 — spreads tries, hides nothing

    def _look(self) -> None:
        client = self.api.client
        with self._interruptible():
            source = client.whoami().source
            if self.grant is None:
                self._find_earlier()
            else:
                self.grant = self._follow(self.grant)
        old = self.grant
        if old is None:
            self._open("opened")
        elif old.source != source:
            self._open("moved", leaving=old)
        elif self._until_renewal() <= 0:
            self._open("renewed")
        for grant_id in list(self.left_behind):
            with contextlib.suppress(GrantNotFound):
                self.api.revoke(grant_id, "the address changed")
            self.left_behind.remove(grant_id)
            self._keep()
            self._tell("revoked", f"revoked: grant {grant_id}, which was for another address")

    def _find_earlier(self) -> None:
        """Take up what an earlier watch of the same targets had open, if it was not stopped but killed."""
        for grant_id in state.kept_watch(self._name):
            with contextlib.suppress(GrantNotFound):
                grant = self.api.client.grant(grant_id)
                if not grant.live:
                    continue
                if self.grant is not None:
                    self.left_behind.append(self.grant.id)
                self.grant = grant
        if self.grant is not None:
            self._tell("found", say_open(self.grant), self.grant)

    def _follow(self, grant: Grant) -> Grant | None:
        """Ask how a grant is. Gives it, or the one that superseded it, or None when it is over."""
        try:
            grant = self.api.client.grant(grant.id)
            while grant.status == "superseded":
                grant = self.api.client.grant(grant.ended_by)
        except GrantNotFound:
            return None
        if grant.status == "revoked":
            state.forget(grant.id)
            state.keep_watch(self._name, [])
            raise KnockError(f"grant {grant.id} was revoked by {grant.ended_by}: the watch ends")
        return grant if grant.live else None

    def _open(self, event: str, leaving: Grant | None = None) -> None:
        asked = self.args
        # Not to be interrupted: a knock whose answer nobody reads would stay open.
        grant = self.grant = self.api.open(asked.targets, asked.duration, asked.reason, wait=0)
        if leaving is not None:
            self.left_behind.append(leaving.id)
        self._keep()
        if grant.status == "pending":
            with self._interruptible():
                grant = self.grant = self.api.client.wait_until_active(grant)
        self._tell(event, say_open(grant), grant)
        self.api.notes(grant, named_source=False)

    def _until_renewal(self) -> float:
        """Give the seconds until the grant should be renewed: a tenth before its end, a minute at least."""
        if self.grant is None:
            return 0.0
        whole = self.grant.duration.total_seconds()
        return self.grant.seconds_left - min(max(60.0, whole / 10), 3600.0, whole / 2)

    @property
    def _name(self) -> str:
        return " ".join([self.api.url, *sorted(self.args.targets)])

    def _keep(self) -> None:
        state.keep_watch(self._name, [*self.left_behind, *([self.grant.id] if self.grant else [])])

    # ------------------------------------------------------------------ waiting and stopping

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until the network changes or the machine wakes."""
        deadline = time.monotonic() + seconds
        # The one clock stands still while the machine sleeps, the other does not.
        asleep = time.time() - time.monotonic()
        with self._interruptible():
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(LOOK, left))
                woke = abs(time.time() - time.monotonic() - asleep) > 5
                if woke or network.fingerprint() != self.network:
                    self.failures = 0
                    return

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal end what is done inside; one that came before ends it here."""
        self._may_interrupt = True
        try:
            if self._stopping:
                raise _Stop
            yield
        finally:
            self._may_interrupt = False

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            if time.monotonic() - self._signalled_at >= SAME_REQUEST:
                signal.signal(
                    number, signal.SIG_DFL
                )  # who asks twice does not want to wait for a call to end
                signal.raise_signal(number)
            return
        self._stopping = True
        self._signalled_at = time.monotonic()
        if self._may_interrupt:
            self._may_interrupt = False
            raise _Stop

    def _stopped(self) -> None:
        self.api.client.close()  # the signal may have come in the middle of an answer
        if self.args.revoke:
            try:
                for grant_id in [*self.left_behind, *([self.grant.id] if self.grant else [])]:
                    with contextlib.suppress(GrantNotFound):
                        ended = self.api.revoke(grant_id, "knock watch was stopped")
                        self._tell("stopped", f"{ended.status}: grant {grant_id}", ended)
            except KnockError:
                self._tell_left_open("stopped, not revoked")
                raise
        else:
            self._tell_left_open("stopped")
        if self.grant is not None:  # else what an earlier watch left has not been looked for yet
            state.keep_watch(self._name, [])

    def _tell_left_open(self, what: str) -> None:
        if self.grant is not None:
            end = show_time(self.grant.expires_at)
            self._tell("stopped", f"{what}; grant {self.grant.id} stays open until {end}", self.grant)

    def _tell(self, event: str, detail: str, grant: Grant | None = None) -> None:
        at = datetime.now(timezone.utc)
        if self.args.json:
            told: dict[str, Any] = {"at": f"{at:%Y-%m-%dT%H:%M:%SZ}", "event": event, "detail": detail}
            self.screen.json_line(told | ({"grant": grant.json} if grant else {}))
        elif not self.args.quiet:
            self.screen.data(f"{show_time(at)}  {detail}")
        elif grant:
            self.screen.data(grant.id)
        self.screen.flush()


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    with contextlib.suppress(ValueError):
        if 1 <= (seconds := float(text)) <= 3600:
            return seconds
    raise ArgumentTypeError(f"a number of seconds from 1 to 3600 was expected, not {text!r}")
