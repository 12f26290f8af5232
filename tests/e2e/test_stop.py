"""Ctrl-C in the middle of 500 knocks: the local stack ends within five seconds, and nothing of it is left.

As at a terminal the signal goes to the whole foreground group. What is left is looked for in /proc: every
process of a session that any of the stack's processes was in, those included that began after the signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import need
from tests.e2e.conftest import WAYS, Stack

WITHIN = 5.0  # seconds


def sessions() -> dict[int, tuple[int, int]]:
    """List what runs by process id: (its parent, its session). The dead whom nobody has buried are not."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the command, in parentheses: state, parent, process group, session (proc(5)).
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                found[int(stat.parent.name)] = (int(parent), int(session))
    return found


def family(pid: int) -> set[int]:
    """List a process, its children, their children and so on."""
    table, found = sessions(), {pid}
    while more := {child for child, (parent, _) in table.items() if parent in found} - found:
        found |= more
    return found


def knock_at_once(stack: Stack, count: int) -> list[socket.socket]:
    """Send so many knocks, each on a connection of its own, and wait for no answer."""
    url = urlsplit(stack.api_url)
    sent = []
    for number in range(count):
        connection = socket.create_connection((url.hostname or "", url.port or 0))
        connection.sendall(
            f"POST {url.path}/knock HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 0\r\n"
            f"x-api-key: {stack.keys['ci']}\r\n"  # it may hold as many grants as that
            f"X-Forwarded-For: 203.0.{number // 250}.{number % 250 + 1}\r\n\r\n".encode()
        )
        sent.append(connection)
    return sent


@pytest.mark.parametrize(("engine", "store"), WAYS)
def test_ctrl_c_in_the_middle_of_500_knocks_leaves_no_process(engine: str, store: str) -> None:
    need(sys.platform == "linux", "processes are looked for in /proc, which only Linux has")
    stack = Stack.start(engine=engine, store=store)
    connections: list[socket.socket] = []
    try:
        connections = knock_at_once(stack, 500)
        answered, _, _ = select.select(connections, [], [], 60)
        assert answered, "no knock was answered"
        ours = family(stack.process.pid)
        groups = {session for pid, (_, session) in sessions().items() if pid in ours}
        assert len(ours) > 5, "a process of each function, and workers"
        answers = len(answered)
        began = time.monotonic()
        os.killpg(stack.process.pid, signal.SIGINT)
        code = stack.process.wait(2 * WITHIN)
        took = time.monotonic() - began
        left = set(ours)
        while left and time.monotonic() < began + WITHIN:
            left = {pid for pid, (_, session) in sessions().items() if pid in ours or session in groups}
            time.sleep(0.02)
        assert not left, [describe(pid) for pid in left]
        assert (code, took < WITHIN) == (0, True), f"it ended with {code} after {took:.1f} s"
        assert answers < 500, "there was a middle to be stopped in"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stack.process.pid, signal.SIGKILL)
        stack.process.wait()
        for connection in connections:
            connection.close()


def describe(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"{pid}, gone by now"


def test_what_is_left_would_be_found() -> None:
    """The check itself: a child that outlives its parent in a session of theirs is seen."""
    need(sys.platform == "linux", "processes are looked for in /proc, which only Linux has")
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    try:
        parent.wait(10)
        assert [pid for pid, (_, session) in sessions().items() if session == parent.pid] == [child]
    finally:
        os.kill(child, signal.SIGKILL)
