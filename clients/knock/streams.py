"""Handles standard streams that are closed, full, or have another encoding.

After `>&-` Python has no stream, and the next socket gets its descriptor. A full disk or a closed pipe shows
only when the last bytes are flushed, at Python's exit. So each stream is made writable, and a failure raises
OSError where the text is written.
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
    """Make all three streams usable, and have them print ? for characters that their encoding lacks.

    A name that another user chose must not cause an error.
    """
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _fill()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a calling program may have replaced it
            stream.reconfigure(errors="replace")


def _fill() -> None:
    """Replace closed streams, and occupy their descriptors, so that no connection gets one."""
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
    """Discard the rest of a stream's buffer: else Python reports an error when it exits."""
    if stream in (sys.__stdout__, sys.__stderr__) and stream is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(text: str) -> None:
    """Write a line to standard error. A failure is ignored, and does not change the exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)
