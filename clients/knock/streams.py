"""Standard streams that may be closed, full, or of another encoding.

`>&-` leaves Python without a stream, and its number free for the next socket; a full disk or a reader that
has gone shows only when the last bytes are flushed, in Python's own end. So each stream is made one that can
be written to, and what cannot be written is an OSError where it is written.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class _Closed(io.TextIOBase):
    """Standard output that was closed before the program began."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")

    def isatty(self) -> bool:
        return False


def prepare() -> None:
    """Make all three streams usable, and let them show as ? what their encoding lacks.

    A name that somebody else chose must not be an error.
    """
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _fill()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a program that calls us may have put another thing there
            stream.reconfigure(errors="replace")


def _fill() -> None:
    """Take the numbers of closed streams, so that no connection gets one, and put something there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = io.StringIO()


def silence(stream: Any) -> None:
    """Let what is left in a stream's buffer go nowhere: Python would complain when it exits."""
    if stream in (sys.__stdout__, sys.__stderr__) and stream is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(text: str) -> None:
    """Write a line to standard error, if there is one: what is said there changes no exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)
