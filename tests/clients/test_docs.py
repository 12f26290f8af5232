"""The users' pages in docs/: every transcript is run again, and every example is one that works.

`make docs` writes the answers and the reference anew. Ids, times and addresses of the
stack differ from run to run, so both sides are made to look alike before they are compared. It is always
evening where a page is played, so that times of the next day carry their day, as on the page.
"""

from __future__ import annotations

import configparser
import os
import plistlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from knock import CannotReach, ConfigurationError, KeyringUnavailable, PoolExhausted, Refusal
from knock.cli import COMMANDS
from tests.clients.conftest import CLIENTS, ROOT, OnStack, Result
from tests.conftest import WRITE_DOCS, program, zone_where_it_is_evening
from tests.docs.index import USERS, commands, tasks

REFERENCE = ROOT / "docs" / "knock-reference.md"
Run = Callable[..., Result]


URL = "https://abc123.execute-api.eu-central-1.amazonaws.com/prod"
ALIKE = [
    (r"http://127\.0\.0\.1:\d+/v1", URL),
    (r"PROFILE  URL +KEY IN", f"PROFILE  {'URL':<{len(URL)}}  KEY IN"),
    (r"alice_203-0-113-7_\d{8}T\d{6}Z_[0-9a-f]{16}", "alice_203-0-113-7_20261123T211719Z_1a2b3c4d5e6f7081"),
    (r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-11-24T05:17:20Z"),
    (r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2026-11-23T21:17:19.123Z"),
    (r"\w{3} \d\d \w{3} 05:\d\d:\d\d UTC", "Tue 24 Nov 05:17:20 UTC"),
    (r"\b21:\d\d:\d\d UTC", "21:17:19 UTC"),
    (r"\b22:\d\d:\d\d UTC", "22:17:20 UTC"),
    (r"sgr-[0-9a-f]{17}", "sgr-0a1b2c3d4e5f60718"),
    (r"\b(7 h 59 min|8 h)\b", "8 h"),
    (r"\b(59 min( \d+ s)?|1 h)\b", "1 h"),
    (r"\b(287\d\d|28800) s left", "28800 s left"),
    (r"\b(359\d|3600)\b", "3600"),
    (r"\([a-z0-9]{10}\)", "(a1b2c3d4e5)"),
    (r'"id": "[a-z0-9]{10}"', '"id": "a1b2c3d4e5"'),
    (r"(arn:aws:states:[^ ]*):[0-9]{12}:", r"\1:123456789012:"),
    (r" +$", ""),
]  # fmt: skip


def alike(text: str) -> str:
    """Make the texts of two runs equal where only ids, times and addresses differ."""
    for pattern, same in ALIKE:
        text = re.sub(pattern, same, text, flags=re.MULTILINE)
    return text


def play(page: str, api: OnStack, home: Path) -> str:
    """Run a page's commands in one shell, and give the page with the answers they print now."""
    with api.client("alice") as client:
        for grant in client.grants():
            client.revoke(grant.id)
    (home / "key.txt").write_text(api.keys["alice"] + "\n")
    for text, name in re.findall(r"^```python\n(# (\S+\.py)\n.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (home / name).write_text(text)
    os.environ.update(URL=api.url, KEY=api.keys["alice"], COLUMNS="100")
    if not any("export KNOCK_URL" in line or "knock login" in line for line in commands(page)):
        subprocess.run(["knock", "login", "--url", api.url], input=api.keys["alice"], text=True, check=True,
                       capture_output=True)  # fmt: skip
    script = "set +e\n"
    for command in commands(page):
        script += f"{{ {command}\n}} 2>&1\nprintf '\\036'\n"
    zone = zone_where_it_is_evening(datetime.now(UTC))
    result = subprocess.run(
        ["bash", "-c", script], cwd=home, env=os.environ | {"TZ": zone}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert result.stderr == ""
    answers = iter(result.stdout.replace(str(home), "~").split("\036"))

    def answered(block: re.Match[str]) -> str:
        lines = (line for line in block[1].splitlines() if line.startswith("$ "))
        return "```console\n" + "".join(f"{line}\n{next(answers)}" for line in lines) + "```"

    return re.sub(r"^```console\n(.*?)^```$", answered, page, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def at_home(home: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the programs where pipx would put them."""
    program("curl", "apt install curl")
    folder = home / ".local" / "bin"
    folder.mkdir(parents=True)
    (folder / "knock").symlink_to(programs / "knock")
    (folder / "knock.sh").symlink_to(CLIENTS / "knock.sh")
    python = folder / "python3"  # an interpreter that has the library
    python.write_text(f'#!/bin/sh\nPYTHONPATH={CLIENTS} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("URL", "KEY", "COLUMNS"):
        monkeypatch.setenv(name, "")
    return home


@pytest.fixture
def on_stack(request: pytest.FixtureRequest) -> Iterator[OnStack]:
    from tests.clients.conftest import Edge

    stack = request.getfixturevalue("stack")
    edge = Edge(stack["api_url"])
    api_of_stack = OnStack(stack, edge)
    yield api_of_stack
    api_of_stack.end_all()
    edge.stop()


@pytest.mark.parametrize("file", tasks(USERS), ids=lambda file: file.name)
def test_every_transcript_is_what_the_program_prints_today(
    file: Path, on_stack: OnStack, at_home: Path
) -> None:
    page = file.read_text()
    played_page = alike(play(page, on_stack, at_home))
    if WRITE_DOCS:
        if alike(page).splitlines() != played_page.splitlines():
            file.write_text(played_page)
    else:
        assert alike(page).splitlines() == played_page.splitlines(), "`make docs` writes the page"


def test_the_reference_is_the_help_of_every_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [
        "# knock: every command's help",
        "",
        "Written by the program itself; `tests/clients/test_docs.py` keeps it so.",
        "[Using Knock](knock.md) shows the commands at work.",
    ]
    for command in ("", *(name for name in COMMANDS if not name.startswith("_"))):
        prog = f"knock {command}".rstrip()
        result = run(*prog.split()[1:], "--help")
        assert (result.code, result.err) == (0, "")
        lines += ["", f"## {prog}", "", "```console", f"$ {prog} --help", *result.out.splitlines(), "```"]
    if WRITE_DOCS:
        REFERENCE.write_text("\n".join(lines) + "\n")
    assert REFERENCE.read_text().splitlines() == lines


def systemd_unit() -> str:
    """Give the unit that the page on watching shows."""
    text = (ROOT / "docs" / "watch.md").read_text()
    block = re.search(r"```ini\n(.*?)```", text, re.DOTALL)
    assert block
    return block[1]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    verifier = program("systemd-analyze", "apt install systemd")
    knock = tmp_path / ".local" / "bin" / "knock"  # a missing command would be an error
    knock.parent.mkdir(parents=True)
    knock.write_text("#!/bin/sh\n")
    knock.chmod(0o755)
    (tmp_path / "knock-watch.service").write_text(systemd_unit())
    result = subprocess.run(
        [verifier, "--user", "verify", tmp_path / "knock-watch.service"],
        env={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, ""), (
        "an unknown setting is only a warning"
    )


def test_the_unit_restarts_after_transient_errors_and_not_after_permanent_ones() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(systemd_unit())
    prevented = {int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()}
    assert unit["Service"]["Restart"] == "on-failure", "also after a crash, or a kill for want of memory"
    assert {Refusal.exit_code, ConfigurationError.exit_code} == prevented
    assert not {CannotReach.exit_code, KeyringUnavailable.exit_code, PoolExhausted.exit_code} & prevented


def test_the_systemd_unit_runs_a_valid_command() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(systemd_unit())
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[0] == "%h/.local/bin/knock"
    check_command(words[1:])


def test_the_launchd_agent_runs_a_valid_command() -> None:
    text = (ROOT / "docs" / "watch.md").read_text()
    agent: dict[str, Any] = plistlib.loads(re.search(r"```xml\n(.*?)```", text, re.DOTALL)[1].encode())  # type: ignore[index]
    assert agent["ProgramArguments"][0].endswith("/knock")
    check_command(agent["ProgramArguments"][1:])


def check_command(words: list[str]) -> None:
    """Fail unless the program's own parser accepts the words: the error is then that no API is known."""
    result = subprocess.run(
        [sys.executable, "-m", "knock", *words],
        cwd=CLIENTS,
        env={"HOME": "/nonexistent", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no API is known yet" in result.stderr
