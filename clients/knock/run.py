"""`knock run`: open, run a command, and end what was opened, however the command ends.

    opened            the command runs with this terminal, in this process group
    SIGINT, SIGQUIT   of the keyboard the command gets by itself; sent to this process they are passed on
    SIGTERM, SIGHUP   are passed on, and so are SIGUSR1 and SIGUSR2
    the command ends  the grant is ended, and the exit code is the command's (128 + n for a signal)

A signal that comes while the API is asked waits for its answer: a grant whose id nobody has read could not be
ended. Until the command has started, a signal ends `knock run` with 128 + n and nothing open. What no program
can answer (SIGKILL, a power cut) leaves a grant that its own end closes.

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
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from .cli import parser
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
from .session import FULL, LONGEST_PAUSE, WAIT, Session, passes

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from .values import Grant

SAME_REQUEST = 1.0  # seconds within which a second signal says nothing that the first did not
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells say it

# What the terminal sends to every program of its foreground group.
_KEYBOARD = [getattr(signal, name) for name in ("SIGINT", "SIGQUIT") if hasattr(signal, name)]
_SENT = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
_PASSED = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def run_run(words: list[str]) -> int:
    """`knock run [TARGET…] -- COMMAND…`"""
    made = parser(
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
    add_knock_options(made)
    own, parted, command = _part(words)
    args = made.parse(own)
    if not parted or not command:
        made.error("the command stands behind --: knock run bastion -- ./deploy.sh")
    check_targets(made, args, implied=False)
    if args.wait == 0.0:
        args.wait = None  # a command can only run behind an open door
    screen = Screen(args.json, args.quiet)
    if code := _cannot_start(command[0], screen):
        return code
    with Session(args.profile, screen, family=args.family) as api:
        return Run(api, args, screen, command).run()


def _part(words: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]


def _cannot_start(program: str, screen: Screen) -> int:
    """Give the exit code of a command that cannot be started, before anything is opened; 0 if it can."""
    if which(program):
        return 0
    there = os.sep in program and Path(program).exists()
    why = "may not be executed" if there else "is not found"
    screen.error(KnockError(f"{program} {why}; nothing was opened"))
    return NOT_EXECUTABLE if there else NOT_FOUND


class _Stop(BaseException):
    """A signal came while nothing was open. Not an Exception: no handler of errors may take it for one."""


class Run:
    """One command behind one grant."""

    def __init__(self, api: Session, args: argparse.Namespace, screen: Screen, command: list[str]) -> None:
        self.api = api
        self.args = args
        self.screen = screen
        self.command = command
        self.grant: Grant | None = None
        self.maybe_open: list[str] = []  # ids that the API named in answers that were errors
        self.child: subprocess.Popen[bytes] | None = None
        self._caught = 0
        self._caught_at = 0.0
        self._may_interrupt = False

    def run(self) -> int:
        """Open, run, end. Gives the exit code; raises KnockError when the door does not open."""
        before = {number: signal.getsignal(number) for number in (*_KEYBOARD, *_SENT, *_PASSED)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as under nohup: the command inherits it
                signal.signal(number, self._signalled)
        try:
            return self._run()
        except _Stop:
            return 128 + self._caught
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        grant = self._open()
        self.screen.note(say_open(grant))
        self.api.notes(grant, named_source=self.args.source is not None)
        with self._interruptible():
            pass
        try:
            self.child = subprocess.Popen(self.command)  # noqa: S603 — what the person asks to run
        except OSError as error:
            self.screen.error(KnockError(f"{self.command[0]} cannot be started: {error.strerror}"))
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        if self._caught:  # between the last look and the start
            self._pass(self._caught)
        code = self.child.wait()
        return code if code >= 0 else 128 - code

    def _open(self) -> Grant:
        """Knock until a grant is active; again while there is no room, if that was asked for."""
        args = self.args
        deadline, pause = time.monotonic() + (args.wait or 0.0), 1.0
        while True:
            try:
                # Not to be interrupted: a grant whose answer nobody reads could not be ended.
                self.grant = self.api.open(
                    args.targets, args.duration, args.reason, args.source, 0.0, by="script"
                )
                with self._interruptible():
                    self.grant = self.api.client.wait_until_active(self.grant, args.wait or WAIT)
            except UnexpectedAnswer as error:
                if error.grant_id:
                    self.maybe_open.append(error.grant_id)
                raise
            except (*FULL, Unavailable, GrantNotOpened) as error:
                if isinstance(error, Unavailable) and error.grant_id:
                    self.maybe_open.append(error.grant_id)
                left = deadline - time.monotonic()
                if left <= 0 or not passes(error):
                    raise
                self.grant = None  # it opened nothing
                if pause == 1.0:
                    self.screen.note(f"waiting: {error}")
            else:
                return self.grant
            with self._interruptible():
                time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _end(self) -> None:
        """End what was opened: an answer that is lost is asked for again, since twice is fine."""
        ids = [*self.maybe_open, *([self.grant.id] if self.grant else [])]
        self.api.client.close()  # a signal may have come in the middle of an answer
        for grant_id in ids:
            try:
                ended = self._revoke(grant_id)
            except GrantNotFound:
                continue  # it never began
            except KnockError as error:
                end = (
                    f"it stays open until {show_time(self.grant.expires_at)}"
                    if self.grant
                    else "it may be open"
                )
                said = (
                    f"grant {grant_id} could not be ended, and {end}: end it with `knock revoke {grant_id}`"
                )
                self.screen.error(KnockError(f"{said} ({error})"))
                continue
            if ended.status == "revoked":
                self.screen.note(f"ended: grant {grant_id}")
            else:
                self.screen.note(f"grant {grant_id} had ended before: {ended.status}")

    def _revoke(self, grant_id: str) -> Grant:
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

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal end what is done inside; one that came before ends it here."""
        self._may_interrupt = True
        try:
            if self._caught:
                raise _Stop
            yield
        finally:
            self._may_interrupt = False

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self.child is not None and self.child.returncode is None:
            if number not in _KEYBOARD or not _at_the_keyboard():
                self._pass(number)
            return
        if number in _PASSED:
            return
        if self._caught:
            if time.monotonic() - self._caught_at >= SAME_REQUEST:
                signal.signal(
                    number, signal.SIG_DFL
                )  # who asks twice does not want to wait for a call to end
                signal.raise_signal(number)
            return
        self._caught, self._caught_at = number, time.monotonic()
        if self._may_interrupt:
            self._may_interrupt = False
            raise _Stop

    def _pass(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.child is not None:
                self.child.send_signal(number)


def _at_the_keyboard() -> bool:
    """Say whether this process is in a terminal's foreground: Ctrl-C then reaches the command by itself."""
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
