"""Plays a page: runs the commands of its `console` blocks and puts their real answers in their place.

    python -m tests.docs.player README.md      writes what is true today

A line that begins with `$ ` is run by one shell a page, so variables live on; what follows it is its
answer. What differs from run to run (ids, times, ports, keys) is replaced by something alike. It is always
evening where a page is played: whether a time is shown with its day, and the width of a table's columns
with it, do not differ.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "functions"), str(ROOT / "clients")]

from tests.conftest import zone_where_it_is_evening  # noqa: E402  # the path above first
from tests.e2e.conftest import Stack, start, stop  # noqa: E402  # the path above first

ID = re.compile(r"(?<=_)\d{8}T\d{6}Z_[0-9a-f]{8}\b")
DAY = r"[A-Z][a-z]{2} \d\d [A-Z][a-z]{2} "


class Shell:
    """One bash, with the clients on its PATH, knocking on a stack of its own as alice."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        for name, module in (("knock", "knock"), ("knock-admin", "knock_admin.cli")):
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            script.chmod(0o755)
        environment = {
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "clients"),
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "TZ": zone_where_it_is_evening(datetime.now(UTC)),
            "LC_ALL": "C.UTF-8",
            "KNOCK_URL": stack.api_url,
            "KNOCK_API_KEY": stack.keys["alice"],
            "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=folder,
        )

    def run(self, command: str) -> str:
        """Run one line, and give what a terminal would show."""
        assert self._bash.stdin
        assert self._bash.stdout
        end = uuid.uuid4().hex
        self._bash.stdin.write(f"{command}\necho; echo {end}\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.strip() == end:
                break
            lines.append(line)
        return "".join(lines).strip("\n")

    def close(self) -> None:
        assert self._bash.stdin
        self._bash.stdin.close()
        self._bash.wait(10)


def alike(text: str, stack: Stack) -> str:
    """Replace what differs from run to run."""
    for real, shown in (
        (stack.api_url, "http://127.0.0.1:8080/v1"),
        (stack.aws_endpoint_url, "http://127.0.0.1:4566"),
        *((value, f"<the key of {name}>") for name, value in stack.keys.items()),
    ):
        text = text.replace(real, shown)
    text = ID.sub("20261123T211719Z_x7k2p9ab", text)
    text = re.sub(r'"id": "[a-z0-9]{10}"', '"id": "a1b2c3d4e5"', text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2026-11-23T21:17:19.123Z", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-11-24T05:17:20Z", text)
    text = re.sub(rf"\b{DAY}05:\d\d:\d\d UTC", "Tue 24 Nov 05:17:20 UTC", text)
    text = re.sub(r"\b21:\d\d:\d\d UTC", "21:17:29 UTC", text)
    text = re.sub(r'"seconds_left": (9|10)\b', '"seconds_left": 10', text)
    return re.sub(r"\b(8 h|7 h 59 min)(?=\W|$)", "7 h 59 min", text)


def play(page: str, stack: Stack, folder: Path) -> str:
    """Give the page with what its commands answer now."""
    shell = Shell(stack, folder)
    lines: list[str] = []
    inside = False
    try:
        for line in page.splitlines():
            if line.startswith("```"):
                inside = line == "```console"
            if inside and not line.startswith(("$ ", "```")):
                continue  # an old answer
            lines.append(line)
            if inside and line.startswith("$ "):
                command = line[2:].replace("http://127.0.0.1:8080/v1", stack.api_url)
                lines += alike(shell.run(command), stack).splitlines()
    finally:
        shell.close()
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    import tempfile

    running = start("moto")
    try:
        for name in sys.argv[1:]:
            path = ROOT / name
            with tempfile.TemporaryDirectory() as where:
                path.write_text(play(path.read_text(), running, Path(where)))
    finally:
        stop(running)
