"""`knock watch`: keep access open while the address changes (sleep, Wi-Fi, VPN).

A check is one call: it asks how the grant is, and the answer says which address the API sees. It is made
every minute, and at once when this machine's own addresses or gateway change or it wakes from sleep, which is
seen without a byte of traffic. From there:

    the grant is from another address   knock from this one in its place, then see that the old one has ended
    it ends soon                        knock again in its place: a renewal, with no gap
    it has ended, or was superseded     knock again: what took its place is not this watch's own
    it was revoked                      stop. Whoever ended it meant it, and a program must not argue
    the API cannot be reached           try again after 1, 2, 4 … 60 s, and at once on another network
    the API refuses                     stop, with its reason

A watch renews, follows and ends only what it opened itself. Where a door is open already, by hand or by
another watch, it says so once, and opens a grant of its own beside it: the other may end at any time.

SIGINT, SIGTERM and SIGHUP (a terminal that is closed) stop it, and so does standard output that cannot be
written: at once while it waits or asks, and after the call while it opens or revokes, so that nothing is left
half done. The grant then runs to its own end, or is revoked with --revoke. A second signal ends it as it is;
not within a second, since `timeout`, and a wrapper that passes a terminal's Ctrl-C on, send one request
twice. The ids of its grants are kept, so that the next watch of the same targets takes up, or ends, what a
killed one left. They are kept under a lock, so that it takes nothing from one that is still running.
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
from .cli import parser, time_with_unit
from .commands import check_targets
from .errors import (
    CannotReach,
    GrantNotFound,
    GrantNotOpened,
    KnockError,
    Unavailable,
    UnexpectedAnswer,
)
from .screen import OutputGone, Screen, say_open, show_time
from .session import FULL, Session, say_still_open

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from .values import Grant

SAME_REQUEST = 1.0  # seconds within which a second signal says nothing that the first did not
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LOOK = 3.0  # seconds between looks at this machine's own addresses
LONGEST_PAUSE = 60.0  # seconds between tries while the API cannot be reached

# What passes without anybody's doing. There is room again as grants end; a hotspot's page goes after a login.
PASSING = (CannotReach, Unavailable, UnexpectedAnswer, GrantNotOpened, *FULL)


class _Stop(BaseException):
    """A signal came. Not an Exception: no handler of errors on the way may take it for one."""


def run_watch(words: list[str]) -> int:
    """`knock watch [TARGET…]`"""
    made = parser(
        "watch",
        "Keep access open while your address changes. Ends on Ctrl-C, and when the grant is revoked.",
        "knock watch bastion --for 1h --revoke",
        "systemctl --user start knock-watch   as a service: see docs/watch.md",
        usage="knock watch [TARGET…] [--for TIME] [--reason TEXT] [--every SECONDS] [--revoke] [-4 | -6]\n"
        "                   [--json | -q]",
    )
    made.add_argument("targets", nargs="*", metavar="TARGET", help="what to open (default: all you may)")
    made.add_argument(
        "--for",
        dest="duration",
        type=time_with_unit,
        metavar="TIME",
        help="how long each grant is: 90m, 8h, 1d",
    )
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    made.add_argument("--every", type=_seconds, default=60.0, metavar="SECONDS", help="between checks (60)")
    made.add_argument("--revoke", action="store_true", help="revoke its own grant when the watch is stopped")
    args = made.parse(words)
    check_targets(made, args, implied=False)
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api:
        slot = state.WatchSlot(" ".join([api.client.url, *sorted(args.targets)]))
        try:
            return Watch(api, args, screen, slot).run()
        finally:
            slot.close()


class Watch:
    """One watch: its grant, the grants it left behind, and how the network was when it last looked."""

    def __init__(self, api: Session, args: argparse.Namespace, screen: Screen, slot: state.WatchSlot) -> None:
        self.api = api
        self.args = args
        self.screen = screen
        self.slot = slot
        self.grant: Grant | None = None
        self.left_behind: list[str] = []
        self.found: set[str] = set()  # others' grants that were told of
        self.network = ""
        self.failures = 0
        self._stopping = False
        self._output_gone: OutputGone | None = None
        self._signalled_at = 0.0
        self._may_interrupt = False

    def run(self) -> int:
        """Watch until a signal comes. Gives the exit code; raises KnockError when the API refuses."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._signalled)
        try:
            while True:
                self._wait(self._check())
        except _Stop:
            self._stopped()
            return self._output_gone.exit_code if self._output_gone else 0
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
        with self._interruptible():
            if self.grant is None:
                self._find_earlier()
            else:
                self.grant = self._follow(self.grant)
            if self.grant is None:
                self._find_others()
        old = self.grant
        if old is None:
            self._open("opened")
        elif old.source != old.caller:
            self._open("moved", old)
        elif self._until_renewal() <= 0:
            self._open("renewed", old)
            self.left_behind.remove(old.id)  # the API ends it; at an address left behind that is waited for
            self._keep()
        for grant_id in list(self.left_behind):
            status, left = "revoked", ""
            with contextlib.suppress(GrantNotFound):
                ended = self.api.revoke(grant_id, "knock watch has another grant")
                status, left = ended.status, self._left_open(ended)
            self.left_behind.remove(grant_id)
            self._keep()
            self._tell("revoked", f"{status}: grant {grant_id}, which this watch no longer needs{left}")

    def _find_earlier(self) -> None:
        """Take up what an earlier watch of the same targets had open, if it was not stopped but killed.

        What it opened with another key, which an operator's can see, is not this watch's own.
        """
        ids = [grant_id for grant_id in self.slot.ids if grant_id not in self.left_behind]
        me = self.api.client.whoami().principal.id if ids else ""
        for grant_id in ids:
            with contextlib.suppress(GrantNotFound):
                grant = self.api.client.grant(grant_id)
                if not grant.live or grant.principal.id != me:
                    continue
                if self.grant is not None:
                    self.left_behind.append(self.grant.id)
                self.grant = grant
        if self.grant is not None:
            self._tell("found", f"{say_open(self.grant)}, by an earlier watch", self.grant)

    def _find_others(self) -> None:
        """Say, once a grant, what lets this address in already. It is left alone."""
        me = self.api.client.whoami()
        wanted = set(self.args.targets or (target.name for target in me.targets))
        for grant in self.api.client.grants(source=me.source):
            known = grant.id in self.found or grant.id in self.left_behind
            own = grant.principal.id == me.principal.id and grant.status == "active"
            if own and not known and wanted & {target.name for target in grant.targets}:
                self.found.add(grant.id)
                self._tell("found", f"{say_open(grant)}, by {grant.id}, which this watch leaves alone", grant)

    def _follow(self, grant: Grant) -> Grant | None:
        """Ask how this watch's own grant is. Gives it, or None when it is over."""
        try:
            grant = self.api.client.grant(grant.id)
        except GrantNotFound:
            return None
        if grant.status == "revoked":
            state.forget(grant.id)
            self.slot.keep([])
            raise KnockError(f"grant {grant.id} was revoked by {grant.ended_by}: the watch ends")
        return grant if grant.live else None

    def _open(self, event: str, old: Grant | None = None) -> None:
        """Knock, in place of the old grant if there is one, which is kept until the new one is open."""
        asked = self.args
        try:
            # Not to be interrupted: a knock whose answer nobody reads would stay open.
            grant = self.grant = self.api.open(
                asked.targets,
                asked.duration,
                asked.reason,
                wait=0,
                by="watch",
                earlier=old.id if old else None,
            )
        except Unavailable as error:
            if error.grant_id:  # it may be open: this watch asked for it, and ends it
                self.left_behind.append(error.grant_id)
                self._keep()
            raise
        if old is not None:
            self.left_behind.append(old.id)
        self._keep()
        if grant.status == "pending":
            try:
                with self._interruptible():
                    grant = self.grant = self.api.client.wait_until_active(grant)
            except GrantNotOpened:
                if old is not None:
                    self.left_behind.remove(old.id)
                    self.left_behind.append(grant.id)
                    self.grant = old
                    self._keep()
                raise
        self._tell(event, say_open(grant), grant)
        self.api.notes(grant, named_source=False)

    def _until_renewal(self) -> float:
        """Give the seconds until the grant should be renewed: a tenth before its end, a minute at least."""
        if self.grant is None:
            return 0.0
        whole = self.grant.duration.total_seconds()
        return self.grant.seconds_left - min(max(60.0, whole / 10), 3600.0, whole / 2)

    def _keep(self) -> None:
        self.slot.keep([*self.left_behind, *([self.grant.id] if self.grant else [])])

    def _left_open(self, ended: Grant) -> str:
        """Say what other grants keep open, to follow a line that says what has ended."""
        with contextlib.suppress(KnockError):
            return "".join(f"; {say_still_open(grant)}" for grant in self.api.beside([ended]))
        return ""

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
                        left = self._left_open(ended)
                        self._tell("stopped", f"{ended.status}: grant {grant_id}{left}", ended)
            except KnockError:
                self._tell_left_open("stopped, not revoked")
                raise
        else:
            self._tell_left_open("stopped")
        if self.grant is not None:  # else what an earlier watch left has not been looked for yet
            self.slot.keep([])

    def _tell_left_open(self, what: str) -> None:
        if self.grant is not None:
            end = show_time(self.grant.expires_at)
            self._tell("stopped", f"{what}; grant {self.grant.id} stays open until {end}", self.grant)

    def _tell(self, event: str, detail: str, grant: Grant | None = None) -> None:
        try:
            self._print(event, detail, grant)
        except OutputGone as error:
            if self._output_gone is None and not self._stopping:
                self._output_gone, self._stopping = error, True
                raise _Stop from None

    def _print(self, event: str, detail: str, grant: Grant | None) -> None:
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
