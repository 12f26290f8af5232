"""Plays a page: runs the commands of its `console` blocks and writes their real output below them.

    python -m tests.docs.player README.md docs/tour.md      updates the output on these pages

Pages that are played together are played on one stack, one after the other.

A line that begins with `$ ` is a command. One shell runs all of a page's, so variables live on. The lines
after it are its output, as printed but for addresses and keys. Ids and times differ from run to run: they are
masked when two runs are compared, and not on the page, where a grant of ten seconds would seem to last all
night. Whether a time is shown with its day depends on the time of day, and the width of a table's columns
with it, so the number of spaces is not compared either.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

from tests.conftest import ROOT

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "functions"), str(ROOT / "clients")]

from tests.e2e.conftest import Stack  # the path above first

ID = re.compile(r"(?<=_)\d{8}T\d{6}Z_[0-9a-f]{16}\b")
DAY = r"[A-Z][a-z]{2} +\d\d? [A-Z][a-z]{2} "


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
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
            "KNOCK_URL": stack.api_url,
            "KNOCK_API_KEY": stack.keys["alice"],
            "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
            "AWS_DEFAULT_REGION": stack.region,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
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
        """Run a command line, and give what a terminal would show."""
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


def as_on_page(text: str, stack: Stack) -> str:
    """Give output as the page shows it: at the usual addresses, without a key's value."""
    for real, usual in (
        (stack.api_url, "http://127.0.0.1:8080/v1"),
        (stack.aws_endpoint_url, "http://127.0.0.1:4566"),
        *((value, f"<the key of {name}>") for name, value in stack.keys.items()),
    ):
        text = text.replace(real, usual)
    return text


def comparable_lines(page: str) -> list[str]:
    """Give a page's lines with ids, times and widths masked, to compare two runs."""
    page = ID.sub("ID", page)
    page = re.sub(r'("id": ?"|alice \()[a-z0-9]{10}\b', r"\1KEY", page)
    page = re.sub(r'(?<="nonce":")[0-9a-f]{16}(?=")', "NONCE", page)
    page = re.sub(r"\b(sgr?)-[0-9a-f]{17}\b", r"\1-ID", page)
    page = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME.ms", page)
    page = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", page)
    page = re.sub(rf"\b(?:{DAY})?\d\d:\d\d:\d\d UTC", "TIME", page)
    page = re.sub(r'"seconds_left": (9|10)\b', '"seconds_left": 10', page)
    page = re.sub(r"\b(8 h|7 h 59 min)(?=\W|$)", "8 h", page)
    return [re.sub(r" {2,}", "  ", line).rstrip() for line in page.splitlines()]


def play(page: str, stack: Stack, folder: Path) -> str:
    """Give the page with the output that its commands have now."""
    shell = Shell(stack, folder)
    lines: list[str] = []
    inside = False
    try:
        for line in page.splitlines():
            if line.startswith("```"):
                inside = line == "```console"
            if inside and not line.startswith(("$ ", "```")):
                continue  # old output
            lines.append(line)
            if inside and line.startswith("$ "):
                command = line[2:].replace("http://127.0.0.1:8080/v1", stack.api_url)
                lines += as_on_page(shell.run(command), stack).splitlines()
    finally:
        shell.close()
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    import tempfile

    with Stack.start(store="simpledb") as running:
        for name in sys.argv[1:]:
            path = ROOT / name
            page = path.read_text()
            with tempfile.TemporaryDirectory() as folder:
                played_page = play(page, running, Path(folder))
            if comparable_lines(played_page) != comparable_lines(page):  # else new ids and times alone
                path.write_text(played_page)
