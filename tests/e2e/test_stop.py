"""Ctrl-C in the middle of 500 knocks: the local stack stops at once, and leaves no process behind.

As at a terminal the signal goes to the whole foreground group. Processes that remain are looked for in /proc:
every process of a session that any of the stack's processes was in, also one started after the signal.

"At once" is within five seconds. The stack keeps to them by itself: it ends with status 1 when it has not
stopped by then. So status 0 is the proof, and no test has to measure time.
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

from local.__main__ import POLL_SECONDS, STOPS_WITHIN
from tests.conftest import need
from tests.e2e.conftest import WAYS, Stack

DEADLINE = 10.0  # seconds, for a poll


def sessions() -> dict[int, tuple[int, int]]:
    """List the running processes by id: (its parent, its session). Zombies are left out."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the command, in parentheses: state, parent, process group, session (proc(5)).
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                table[int(stat.parent.name)] = (int(parent), int(session))
    return table


def family(pid: int) -> set[int]:
    """List a process, its children, their children and so on."""
    table, pids = sessions(), {pid}
    while more := {child for child, (parent, _) in table.items() if parent in pids} - pids:
        pids |= more
    return pids


def knock_at_once(stack: Stack, count: int) -> list[socket.socket]:
    """Send `count` knocks, each on a connection of its own, and wait for no answer."""
    url = urlsplit(stack.api_url)
    connections = []
    for number in range(count):
        connection = socket.create_connection((url.hostname or "", url.port or 0))
        connection.sendall(
            f"POST {url.path}/knock HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 0\r\n"
            f"x-api-key: {stack.keys['ci']}\r\n"  # whose tag knock:max-live allows that many
            f"X-Forwarded-For: 203.0.{number // 250}.{number % 250 + 1}\r\n\r\n".encode()
        )
        connections.append(connection)
    return connections


@pytest.mark.parametrize(("engine", "store"), WAYS)
def test_ctrl_c_in_the_middle_of_500_knocks_leaves_no_process(engine: str, store: str) -> None:
    need(sys.platform == "linux", "processes are looked for in /proc, which only Linux has")
    assert POLL_SECONDS + STOPS_WITHIN < 5
    stack = Stack.start(engine=engine, store=store)
    connections: list[socket.socket] = []
    try:
        connections = knock_at_once(stack, 500)
        answered, _, _ = select.select(connections, [], [], 60)
        assert answered, "no knock was answered"
        ours = family(stack.process.pid)
        groups = {session for pid, (_, session) in sessions().items() if pid in ours}
        assert len(ours) > 5, "a process of each function, and workers"
        assert len(answered) < 500, "all were answered before the signal"
        os.killpg(stack.process.pid, signal.SIGINT)
        assert stack.process.wait(DEADLINE) == 0, f"it did not stop within {STOPS_WITHIN} s"
        deadline = time.monotonic() + DEADLINE
        while left := {pid for pid, (_, session) in sessions().items() if pid in ours or session in groups}:
            assert time.monotonic() < deadline, [describe(pid) for pid in left]
            time.sleep(0.02)
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
        return f"{pid}, which has ended"


def test_a_child_that_outlives_its_parent_is_listed_by_their_session() -> None:
    """Of the check above itself: it would find what is left."""
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
