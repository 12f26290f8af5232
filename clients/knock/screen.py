"""The program's output: data on standard output, all else on standard error.

Text from the API is printed without its control characters: a reason, which another user may have written,
must not move the terminal's cursor. A line break is such a character: the line behind it would look like
one of this program's. So an error, which may quote the API, is one line, and its hint another. Colours and
the spinner are for terminals only.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import streams
from .errors import (
    GrantNotOpened,
    KnockError,
    PoolExhausted,
    Problem,
    SourceFull,
    TargetGone,
    TooManyGrants,
    UnexpectedAnswer,
    WrongFamily,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from types import TracebackType

    from .values import Grant, Target


# What to do about a refusal, with this program's commands, which the API does not know.
HINTS: dict[type[KnockError], str] = {
    PoolExhausted: "another grant must end first: --wait 5m tries for so long",
    TooManyGrants: "end one with `knock revoke ID`, or take the place of one with `knock renew ID`",
    SourceFull: "grants of this source, yours or others', must end first: `knock ls` shows yours",
    TargetGone: "`knock whoami` shows what you may open now",
    WrongFamily: "-4 knocks over IPv4, -6 over IPv6: the source's family is that of the call to the API",
}


class OutputGone(KnockError):
    """Standard output cannot be written: it is closed, the disk is full, or its reader has closed the pipe.

    `reader_left` is True for a closed pipe, as after `head`, which is no failure.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"standard output cannot be written ({getattr(error, 'strerror', None) or error})")
        self.reader_left = isinstance(error, BrokenPipeError)


class Screen:
    """Standard output for data, standard error for the rest."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._matters: list[str] = []

    def matters(self, text: str) -> None:
        """Note a text before it is printed; it goes to standard error if standard output fails."""
        self._matters.append(text)

    def data(self, text: str) -> None:
        self._print(plain(text))

    def text(self, text: str) -> None:
        """Print a text for another program, unchanged."""
        self._print(text, end="")

    def _print(self, text: str, *, flush: bool = False, end: str = "\n") -> None:
        try:
            if text:
                print(text, end=end)
            if flush:
                sys.stdout.flush()
        except (OSError, ValueError) as error:
            streams.silence(sys.stdout)
            for important in self._matters:
                streams.say(f"knock: {plain(important)}")
            self._matters.clear()
            raise OutputGone(error) from error

    def json(self, value: Any) -> None:
        import json

        self._print(json.dumps(value, indent=2))

    def json_line(self, value: Any) -> None:
        import json

        self._print(json.dumps(value))

    def flush(self) -> None:
        """Flush standard output, for the reader of a pipe."""
        self._print("", flush=True)
        self._matters.clear()

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        cells = [[plain(cell) for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        for row in cells:
            self._print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())  # noqa: B905 — equal lengths

    def note(self, text: str) -> None:
        if not self.quiet:
            streams.say(paint(f"knock: {plain(text)}", "2", sys.stderr))

    def error(self, error: KnockError) -> None:
        if self.as_json:
            members: dict[str, Any] = {"detail": str(error)}
            if isinstance(error, Problem):
                members |= error.json
            if isinstance(error, GrantNotOpened):
                members["grant"] = error.grant.json
            if isinstance(error, UnexpectedAnswer) and error.grant_id:
                members["grant_id"] = error.grant_id
            status = {"status": error.status} if isinstance(error, Problem) else {}
            self.json_error(type(error).__name__, error.exit_code, **status, **without(members, *OURS))
            return
        lines = [plain(str(error))]
        if hint := HINTS.get(type(error)):
            lines.append(f"knock: {hint}")
        streams.say(paint("knock: ", "31", sys.stderr) + "\n".join(lines))

    def interrupted(self, error: KeyboardInterrupt) -> None:
        """Report an interruption, and what may be open."""
        detail = str(error) or "interrupted"
        if self.as_json:
            grant_id = getattr(error, "grant_id", None)
            self.json_error("Interrupted", 130, detail=detail, **({"grant_id": grant_id} if grant_id else {}))
        else:
            streams.say(f"knock: {plain(detail)}")

    def json_error(self, name: str, exit_code: int, /, *, status: int | None = None, **members: Any) -> None:
        import json

        first: dict[str, Any] = {} if status is None else {"status": status}
        streams.say(json.dumps(first | {"error": name, "exit_code": exit_code} | members))

    def progress(self, text: str) -> Spinner:
        return Spinner(text if sys.stderr.isatty() and not self.quiet else None)


OURS = ("status", "error", "exit_code")  # members of a JSON error that the API's answer does not override


def without(members: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


class Spinner:
    """A spinner on standard error during a call; without a text, nothing."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def __enter__(self) -> None:
        if self._text is None:
            return
        import threading

        self._done = threading.Event()
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        from itertools import cycle

        if self._done.wait(0.2):
            return  # the call was quick
        with suppress(OSError, ValueError):  # a terminal that was closed
            for sign in cycle("|/-\\"):
                print(f"\r{sign} {self._text} ", end="", file=sys.stderr, flush=True)
                if self._done.wait(0.1):
                    break
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._text is not None:
            self._done.set()
            self._thread.join()


def paint(text: str, code: str, stream: Any) -> str:
    """Colour a text, if the stream is a terminal with colours. https://no-color.org"""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def plain(text: str) -> str:
    """Replace the control characters of a text that may come from another user."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def say_open(grant: Grant) -> str:
    """Describe a grant in a line: its state, targets, source and end."""
    return (
        f"{'open' if grant.status == 'active' else grant.status}: {show_targets(grant.targets)} "
        f"from {grant.source} until {show_time(grant.expires_at)} ({show_left(grant.seconds_left)})"
    )


def show_targets(targets: Iterable[Target]) -> str:
    return ", ".join(str(target) for target in targets)


def show_time(at: datetime) -> str:
    """Write a time in the local time zone; without the day if it is today."""
    local = at.astimezone()
    today = local.now(local.tzinfo).date()
    return local.strftime("%H:%M:%S %Z" if local.date() == today else "%a %d %b %H:%M:%S %Z")


def show_left(seconds: float) -> str:
    """Write a duration, given in seconds, in its two largest units."""
    left, parts = max(0, int(seconds)), []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def show_event(event: Any) -> str:
    """Write an event of the trail as a line: its time, name, cause and details."""
    from .values import parse_time

    members = ((name, value) for name, value in event.items() if name not in ("at", "event", "by") and value)
    details = ", ".join(f"{name}: {_listed(value)}" for name, value in members)
    by = f" by {event['by']}" if event.get("by") else ""
    try:
        at = show_time(parse_time(str(event.get("at"))))
    except (ValueError, OverflowError):
        at = str(event.get("at"))
    return f"  {at}  {event.get('event')}{by}{f' ({details})' if details else ''}"


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
