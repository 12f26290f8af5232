"""Which processes are alive, and which are the children of another: for tests that start some."""

from __future__ import annotations

import subprocess

from tests.conftest import program


def _processes() -> list[tuple[int, int, str]]:
    """List the processes, as (id, parent's id, command), without zombies."""
    ps = program("ps", "it comes with procps")
    listed = subprocess.run([ps, "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()[1:]]
    return [(int(pid), int(parent), command) for pid, parent, stat, command in rows if stat[0] != "Z"]


def alive(*pids: int) -> set[int]:
    """Say which of some processes are alive."""
    return {running for running, _, _ in _processes()} & set(pids)


def descendants(pid: int) -> dict[int, str]:
    """List a process's children, their children and so on, with their commands."""
    children: dict[int, str] = {}
    table = _processes()
    while new := {
        child: command
        for child, parent, command in table
        if parent in {pid, *children} and child not in children
    }:
        children |= new
    return children
