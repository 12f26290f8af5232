"""`knock run`: open targets, run a command, and close the grant, however the command ends.

    open              the command runs with this terminal, in this process group
    SIGINT, SIGQUIT   the terminal sends to the command as well, so they are passed on only where there is
                      no terminal: there, one sent to this process alone is not told from Ctrl-C
    SIGTERM, SIGHUP   are passed on to the command, and so are SIGUSR1 and SIGUSR2
    the command ends  the grant is closed; the exit code is the command's (128 + n for a signal)

A signal during a call to the API takes effect after its answer: a grant whose id was not read could not be
closed. Until the command has started, a signal ends `knock run` with the exit code 128 + n and nothing open.
After SIGKILL or a power cut, the grant stays open until it expires.

The command runs in the same process group, and not in one of its own as in a shell's job control: in a
pipeline the other programs belong to that group, and would lose the terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from .cli import make_parser, split_at_dashes
from .commands import add_knock_options, check_targets
from .errors import (
    CannotReach,
    GrantNotFound,
    GrantNotOpened,
    KnockError,
    Unavailable,
    UnexpectedAnswer,
)
from .screen import Screen, say_open, show_time
from .session import FULL, LONGEST_PAUSE, WAIT, Session, Wanted, may_retry
from .signals import Signals, Stop

if TYPE_CHECKING:
    from .values import Grant

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as of shells

# The signals that a terminal sends to all programs of its foreground process group.
_KEYBOARD = [getattr(signal, name) for name in ("SIGINT", "SIGQUIT") if hasattr(signal, name)]
_SENT = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
_PASSED = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def run_run(words: list[str]) -> int:
    """`knock run [TARGET…] -- COMMAND…`"""
    parser = make_parser(
        "run",
        "Open targets, run a command, and end what was opened, however the command ends. The exit code is\n"
        "the command's. Should this program be killed, the grant ends at its own end: say with --for how\n"
        "long the command takes at most.",
        "knock run bastion --for 1h --reason deploy -- ./deploy.sh",
        "knock run bastion -- ssh bastion uptime",
        "knock run db --wait 5m -- make migrate       wait for room in a full pool",
        usage="knock run [TARGET…] [--for TIME] [--reason TEXT] [--source CIDR] [--wait TIME] [-4 | -6]\n"
        "                 [--json | -q] -- COMMAND…",
    )
    add_knock_options(parser)
    own, has_dashes, command = split_at_dashes(words)
    args = parser.parse(own)
    if not has_dashes or not command:
        parser.error("the command stands behind --: knock run bastion -- ./deploy.sh")
    check_targets(parser, args, implied=False)
    if args.wait == 0.0:
        args.wait = None  # the command needs an active grant
    screen = Screen(args.json, args.quiet)
    if code := _cannot_start(command[0], screen):
        return code
    with Session(args.profile, screen, family=args.family) as api:
        wanted = Wanted(args.targets, args.duration, args.reason, args.source)
        return Run(api, screen, command, wanted, args.wait).run()


def _cannot_start(program: str, screen: Screen) -> int:
    """Check, before anything is opened, that a program can be started. Gives 0, or the exit code."""
    if which(program):
        return 0
    exists = os.sep in program and Path(program).exists()
    why = "may not be executed" if exists else "is not found"
    screen.error(KnockError(f"{program} {why}; nothing was opened"))
    return NOT_EXECUTABLE if exists else NOT_FOUND


class Run:
    """A command that runs while a grant is open. `wait` is how long to retry while there is no room."""

    def __init__(
        self, api: Session, screen: Screen, command: list[str], wanted: Wanted, wait: float | None
    ) -> None:
        self.api = api
        self.wanted = wanted
        self.wait = wait
        self.screen = screen
        self.command = command
        self.grant: Grant | None = None
        self.maybe_open: list[str] = []  # ids of grants that the API named in errors
        self.child: subprocess.Popen[bytes] | None = None
        self.signals = Signals((*_KEYBOARD, *_SENT, *_PASSED), self._pass_on)

    def run(self) -> int:
        """Open, run the command, close. Gives the exit code; raises KnockError if the grant does not open."""
        with self.signals.caught():
            try:
                return self._run()
            except Stop:
                return 128 + self.signals.number
            finally:
                self._end()

    def _run(self) -> int:
        grant = self._open()
        self.screen.note(say_open(grant))
        self.api.notes(grant, named_source=self.wanted.source is not None)
        with self.signals.interruptible():
            pass
        try:
            self.child = subprocess.Popen(self.command)  # noqa: S603 — the command that the user asks to run
        except OSError as error:
            self.screen.error(KnockError(f"{self.command[0]} cannot be started: {error.strerror}"))
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        if self.signals.number:  # it came after `interruptible`, and before the start
            self._send(self.signals.number)
        code = self.child.wait()
        return code if code >= 0 else 128 - code

    def _open(self) -> Grant:
        """Knock, and wait until the grant is active; retry while there is no room, for --wait seconds."""
        deadline, pause = time.monotonic() + (self.wait or 0.0), 1.0
        while True:
            try:
                # Not interruptible: without the answer the grant's id is not known, it could not be closed.
                self.grant = self.api.open(*self.wanted, wait=0.0, by="script")
                with self.signals.interruptible():
                    self.grant = self.api.client.wait_until_active(self.grant, self.wait or WAIT)
            except UnexpectedAnswer as error:
                if error.grant_id:
                    self.maybe_open.append(error.grant_id)
                raise
            except (*FULL, Unavailable, GrantNotOpened) as error:
                if isinstance(error, Unavailable) and error.grant_id:
                    self.maybe_open.append(error.grant_id)
                left = deadline - time.monotonic()
                if left <= 0 or not may_retry(error):
                    raise
                self.grant = None  # nothing was opened
                if pause == 1.0:
                    self.screen.note(f"waiting: {error}")
            else:
                return self.grant
            with self.signals.interruptible():
                time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _end(self) -> None:
        """Close the grant, and those that may be open. Reports errors, and raises none."""
        ids = [*self.maybe_open, *([self.grant.id] if self.grant else [])]
        self.api.client.close()  # a signal may have interrupted the reading of an answer
        for grant_id in ids:
            try:
                ended = self._revoke(grant_id)
            except GrantNotFound:
                continue  # the grant was never started
            except KnockError as error:
                end = (
                    f"it stays open until {show_time(self.grant.expires_at)}"
                    if self.grant
                    else "it may be open"
                )
                failure = (
                    f"grant {grant_id} could not be ended, and {end}: end it with `knock revoke {grant_id}`"
                )
                self.screen.error(KnockError(f"{failure} ({error})"))
                continue
            if ended.status == "revoked":
                self.screen.note(f"ended: grant {grant_id}")
            else:
                self.screen.note(f"grant {grant_id} had ended before: {ended.status}")

    def _revoke(self, grant_id: str) -> Grant:
        """Revoke a grant, with three attempts: revoking it again changes nothing."""
        tries = 0
        while True:
            tries += 1
            try:
                return self.api.revoke(grant_id, "knock run has ended")
            except (CannotReach, Unavailable):
                if tries == 3:
                    raise
            time.sleep(tries)

    # ------------------------------------------------------------------ signals

    def _pass_on(self, number: int) -> bool:
        """Pass a signal on to the command, if it runs. True if the signal needs no other handling."""
        if self.child is not None and self.child.returncode is None:
            if number not in _KEYBOARD or not _at_the_keyboard():
                self._send(number)
            return True
        return number in _PASSED

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.child is not None:
                self.child.send_signal(number)


def _at_the_keyboard() -> bool:
    """Say whether this process is in a terminal's foreground, where the command gets Ctrl-C too."""
    if sys.platform == "win32":
        return True  # a console's Ctrl-C goes to all of its programs
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        foreground: int = os.tcgetpgrp(terminal)
    except OSError:
        return False
    finally:
        os.close(terminal)
    return foreground == os.getpgrp()
