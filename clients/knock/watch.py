"""`knock watch`: keep access open while the address changes (sleep, Wi-Fi, VPN).

A check is one call: it reads the grant, and the answer has the address that the API sees. A check is made
every minute, and at once if this machine's addresses or gateway change or it wakes from sleep, which is
detected without traffic. The result decides:

    the grant is for another address     knock from this one, in place of the old grant, and close that
    the grant expires soon               knock in its place: a renewal, without a gap
    the grant expired or is superseded   knock again: a grant that superseded it is not this watch's own
    the grant was revoked                stop: revoking it was a decision against the watch
    the API cannot be reached            retry after 1, 2, 4 … 60 s, and at once on another network
    the API refuses                      stop, and print the reason

A watch renews, follows and closes only grants that it opened itself. If another grant lets this address in
already, opened by hand or by another watch, it says so once, and opens a grant of its own: that grant may end
at any time.

SIGINT, SIGTERM and SIGHUP (a closed terminal) stop it, and so does standard output that cannot be written: at
once while it waits or reads, and after the call while it opens or revokes, so that nothing is left half done
(`knock.signals`). The grant then stays open until it expires, or is revoked with --revoke. The ids of its
grants are stored, so that the next watch of the same targets continues with, or closes, the grants of a
killed one. They are stored under a lock, so that it takes no grant from a running watch.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from . import network, state
from .cli import make_parser, time_with_unit
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
from .session import FULL, Session, Wanted, say_still_open
from .signals import Signals, Stop

if TYPE_CHECKING:
    from .values import Grant

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LOOK = 3.0  # seconds between two readings of this machine's own addresses
LONGEST_PAUSE = 60.0  # seconds between attempts while the API cannot be reached

# Errors after which the watch goes on: there is room again when grants end, and a hotspot's page goes away
# after a login.
TRANSIENT = (CannotReach, Unavailable, UnexpectedAnswer, GrantNotOpened, *FULL)


def run_watch(words: list[str]) -> int:
    """`knock watch [TARGET…]`"""
    parser = make_parser(
        "watch",
        "Keep access open while your address changes. Ends on Ctrl-C, and when the grant is revoked.",
        "knock watch bastion --for 1h --revoke",
        "systemctl --user start knock-watch   as a service: see docs/watch.md",
        usage="knock watch [TARGET…] [--for TIME] [--reason TEXT] [--every SECONDS] [--revoke] [-4 | -6]\n"
        "                   [--json | -q]",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to open (default: all you may)")
    parser.add_argument(
        "--for",
        dest="duration",
        type=time_with_unit,
        metavar="TIME",
        help="how long each grant is: 90m, 8h, 1d",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    parser.add_argument("--every", type=_seconds, default=60.0, metavar="SECONDS", help="between checks (60)")
    parser.add_argument(
        "--revoke", action="store_true", help="revoke its own grant when the watch is stopped"
    )
    args = parser.parse(words)
    check_targets(parser, args, implied=False)
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api:
        slot = state.WatchSlot(" ".join([api.client.url, *sorted(args.targets)]))
        try:
            wanted = Wanted(args.targets, args.duration, args.reason)
            return Watch(api, screen, slot, wanted, every=args.every, revoke=args.revoke).run()
        finally:
            slot.close()


class Watch:
    """A watch: its grant, former grants that are to be closed, and the network at its last check.

    `every` are the seconds between checks; with `revoke` its grant is ended when it is stopped.
    """

    def __init__(
        self,
        api: Session,
        screen: Screen,
        slot: state.WatchSlot,
        wanted: Wanted,
        *,
        every: float = 60.0,
        revoke: bool = False,
    ) -> None:
        self.api = api
        self.wanted = wanted
        self.every = every
        self.revoke = revoke
        self.screen = screen
        self.slot = slot
        self.grant: Grant | None = None
        self.left_behind: list[str] = []
        self.reported: set[str] = set()  # ids of others' grants that were mentioned
        self.network = ""
        self.failures = 0
        self.signals = Signals(SIGNALS)
        self._output_gone: OutputGone | None = None

    def run(self) -> int:
        """Watch until a signal comes. Gives the exit code; raises KnockError when the API refuses."""
        with self.signals.caught():
            try:
                while True:
                    self._wait(self._check())
            except Stop:
                self._stopped()
                return self._output_gone.exit_code if self._output_gone else 0

    # ------------------------------------------------------------------ one check

    def _check(self) -> float:
        """Make a check, and act on its result. Gives the seconds until the next check."""
        self.network = network.fingerprint()
        self.api.client.close()  # after a change of network the connection would only time out
        try:
            self._look()
        except TRANSIENT as error:
            return self._pause_after(error)
        if self.failures:
            self.failures = 0
            self._tell("online", "the API answers again")
        return max(1.0, min(self.every, self._until_renewal()))

    def _pause_after(self, error: KnockError) -> float:
        """Report the first of several failures, and give the seconds until the next attempt."""
        self.failures += 1
        if self.failures == 1:
            self._tell("offline", str(error))
        pause = min(2.0 ** (self.failures - 1), LONGEST_PAUSE)
        return pause * random.uniform(0.75, 1.0)  # noqa: S311 — it spreads attempts, and is no secret

    def _look(self) -> None:
        with self.signals.interruptible():
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
            # The API closes a renewed grant; only at another address the watch closes it itself.
            self.left_behind.remove(old.id)
            self._keep()
        for grant_id in list(self.left_behind):
            status, still_open = "revoked", ""
            with contextlib.suppress(GrantNotFound):
                ended = self.api.revoke(grant_id, "knock watch has another grant")
                status, still_open = ended.status, self._left_open(ended)
            self.left_behind.remove(grant_id)
            self._keep()
            self._tell("revoked", f"{status}: grant {grant_id}, which this watch no longer needs{still_open}")

    def _find_earlier(self) -> None:
        """Continue with the grant of a killed watch of the same targets, if there is one.

        Grants that it opened with another key are left alone; an operator's key could read them.
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
        """Report, once each, the grants that let this address in already. They are left alone."""
        me = self.api.client.whoami()
        wanted = set(self.wanted.targets or (target.name for target in me.targets))
        for grant in self.api.client.grants(source=me.source):
            known = grant.id in self.reported or grant.id in self.left_behind
            own = grant.principal.id == me.principal.id and grant.status == "active"
            if own and not known and wanted & {target.name for target in grant.targets}:
                self.reported.add(grant.id)
                self._tell("found", f"{say_open(grant)}, by {grant.id}, which this watch leaves alone", grant)

    def _follow(self, grant: Grant) -> Grant | None:
        """Read the watch's grant anew; None if it has ended. Raises KnockError if it was revoked."""
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
        """Knock, in place of the old grant if there is one, which stays open until the new one is active."""
        try:
            # Not interruptible: without the answer the grant's id is not known, and it would stay open.
            grant = self.grant = self.api.open(
                *self.wanted, wait=0, by="watch", earlier=old.id if old else None
            )
        except Unavailable as error:
            if error.grant_id:  # it may be open: it is this watch's, and so is closed later
                self.left_behind.append(error.grant_id)
                self._keep()
            raise
        if old is not None:
            self.left_behind.append(old.id)
        self._keep()
        if grant.status == "pending":
            try:
                with self.signals.interruptible():
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
        """Give the seconds until the renewal: a tenth of the duration before the end, at least a minute."""
        if self.grant is None:
            return 0.0
        duration = self.grant.duration.total_seconds()
        return self.grant.seconds_left - min(max(60.0, duration / 10), 3600.0, duration / 2)

    def _keep(self) -> None:
        self.slot.keep([*self.left_behind, *([self.grant.id] if self.grant else [])])

    def _left_open(self, ended: Grant) -> str:
        """Describe, as the end of a line on a closed grant, the other grants that keep its targets open."""
        with contextlib.suppress(KnockError):
            return "".join(f"; {say_still_open(grant)}" for grant in self.api.beside([ended]))
        return ""

    # ------------------------------------------------------------------ waiting and stopping

    def _wait(self, seconds: float) -> None:
        """Wait, or until the network changes or the machine wakes from sleep."""
        deadline = time.monotonic() + seconds
        # The monotonic clock stands still while the machine sleeps, and the other clock does not.
        asleep = time.time() - time.monotonic()
        with self.signals.interruptible():
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(LOOK, left))
                woke = abs(time.time() - time.monotonic() - asleep) > 5
                if woke or network.fingerprint() != self.network:
                    self.failures = 0
                    return

    def _stopped(self) -> None:
        self.api.client.close()  # the signal may have interrupted the reading of an answer
        if self.revoke:
            try:
                for grant_id in [*self.left_behind, *([self.grant.id] if self.grant else [])]:
                    with contextlib.suppress(GrantNotFound):
                        ended = self.api.revoke(grant_id, "knock watch was stopped")
                        still_open = self._left_open(ended)
                        self._tell("stopped", f"{ended.status}: grant {grant_id}{still_open}", ended)
            except KnockError:
                self._tell_left_open("stopped, not revoked")
                raise
        else:
            self._tell_left_open("stopped")
        if self.grant is not None:  # without, the grants of an earlier watch were not looked for yet
            self.slot.keep([])

    def _tell_left_open(self, detail: str) -> None:
        if self.grant is not None:
            end = show_time(self.grant.expires_at)
            self._tell("stopped", f"{detail}; grant {self.grant.id} stays open until {end}", self.grant)

    def _tell(self, event: str, detail: str, grant: Grant | None = None) -> None:
        try:
            self._print(event, detail, grant)
        except OutputGone as error:
            if self._output_gone is None and not self.signals.stopping:
                self._output_gone = error
                self.signals.stop()

    def _print(self, event: str, detail: str, grant: Grant | None) -> None:
        at = datetime.now(timezone.utc)
        if self.screen.as_json:
            line: dict[str, Any] = {"at": f"{at:%Y-%m-%dT%H:%M:%SZ}", "event": event, "detail": detail}
            self.screen.json_line(line | ({"grant": grant.json} if grant else {}))
        elif not self.screen.quiet:
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
