"""Shell completion: the candidates, the calls they cost, and the scripts in the real shells."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knock import config
from tests.clients.conftest import CLIENTS, Result
from tests.clients.double import Double, Held
from tests.conftest import program

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def offered(run: Run, *words: str) -> list[str]:
    """Give the words that can follow these."""
    result = run("__complete", *words)
    assert (result.code, result.err) == (0, "")
    return [line.partition("\t")[0] for line in result.out.splitlines()]


def test_the_first_word_is_a_target_or_a_command(run: Run) -> None:
    first = offered(run, "")
    assert first[:2] == ["bastion", "web"]
    assert {"ls", "revoke", "watch", "login"} <= set(first)
    assert "ssh-hook" not in first, "a command that only ssh calls is not offered"
    assert offered(run, "re") == ["renew", "revoke"]
    assert offered(run, "b") == ["bastion"]


def test_after_a_target_other_targets_follow(run: Run) -> None:
    assert offered(run, "bastion", "") == ["web"]
    assert offered(run, "open", "") == ["bastion", "web"]
    assert offered(run, "watch", "w") == ["web"]
    assert offered(run, "--json", "") == [*["bastion", "web"], *offered(run, "")[2:]]


def test_ids_of_grants_are_offered_with_targets_and_source(run: Run, double: Double) -> None:
    first, second = run("-q", "bastion").out.strip(), run("-q", "web").out.strip()
    for command in ("show", "revoke", "renew"):
        assert sorted(offered(run, command, "")) == sorted([first, second])
    assert offered(run, "revoke", first, "") == [second]
    assert f"{second}\tweb from 203.0.113.7/32\n" in run("__complete", "revoke", "a").out


def test_options_and_their_values_are_offered(run: Run, double: Double) -> None:
    assert {"--for", "--reason", "--source", "--json"} <= set(offered(run, "bastion", "--"))
    assert offered(run, "ls", "--st") == ["--status"]
    assert offered(run, "ls", "--status", "ex") == ["expired"]
    assert "8h" in offered(run, "--for", "")
    assert offered(run, "ssh-config", "--target", "") == ["bastion", "web"]
    assert offered(run, "bastion", "--renews", "") == run("ls", "-q").out.split()
    assert {"--renews", "--new"} <= set(offered(run, "bastion", "--"))
    assert offered(run, "--reason", "") == []
    assert offered(run, "completion", "") == ["bash", "fish", "zsh"]
    assert offered(run, "whoami", "") == []
    assert offered(run) == offered(run, "")
    config.store("work", double.url, double.keys["bob"], use_keyring=False)
    assert offered(run, "--profile", "") == ["work"]
    assert offered(run, "--profile", "work", "b") == ["bastion"]


def test_exactly_the_options_of_a_command_are_offered(run: Run) -> None:
    for command in (word for word in offered(run, "") if word not in ("bastion", "web")):
        help_lines = [line for line in run(command, "--help").out.splitlines() if line.startswith("  -")]
        words = {word.strip(",") for line in help_lines for word in line.split()}
        options = {word for word in words if word.startswith("--")}
        assert set(offered(run, command, "--")) == options, command


def test_words_are_cached_and_read_from_the_api_again_when_old(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered(run, "")
    offered(run, "b")
    assert double.calls("GET") == 1
    grant = run("-q", "bastion").out.strip()
    run("ls")
    double.requests.clear()
    assert offered(run, "revoke", "") == [grant]
    assert double.calls("GET") == 0, "ls has cached it"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    offered(run, "revoke", "")
    offered(run, "")
    assert double.calls("GET") == 1, "grants were read again; targets are cached for longer"


def test_the_cached_words_hold_no_key_and_only_their_owner_can_read_them(run: Run, double: Double) -> None:
    run("bastion")
    offered(run, "revoke", "")
    offered(run, "")
    for file in config.state_folder().iterdir():
        assert double.keys["alice"] not in file.read_text()
        assert file.stat().st_mode & 0o077 == 0


def test_after_an_error_nothing_is_offered_and_nothing_printed(
    run: Run, double: Double, home: Path, limits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    double.faults = [held]
    assert offered(run, "revoke", "") == []
    assert held.waiting, "it waited for the answer, while a person waits at the prompt"
    held.release()
    (limit,) = limits
    assert limit["timeout"] <= 2
    assert limit["tries"] == 1
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    assert offered(run, "revoke", "") == []
    monkeypatch.delenv("KNOCK_URL")
    assert offered(run, "re") == ["renew", "revoke"]
    (home / ".config" / "knock").mkdir(parents=True)
    (home / ".config" / "knock" / "config.json").write_text("broken")
    assert offered(run, "--profile", "") == []


def test_a_name_with_control_characters_is_not_offered(run: Run, double: Double) -> None:
    double.ports["a\x1b[2J"] = ["22/tcp"]
    output = run("__complete", "").out
    assert "bastion" in output
    assert "\x1b" not in output
    assert "[2J" not in output


# ---------------------------------------------------------------------- the scripts, in the shells


def test_bash_completes_with_the_script(home: Path, run: Run) -> None:
    program("bash", "apt install bash")
    grant = run("-q", "bastion").out.strip()
    script = (
        'eval "$(knock completion bash)"; complete -p knock\n'
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _knock; printf "%s\\n" "${COMPREPLY[*]}"; }\n'
        'try knock re; try knock revoke ""; try knock --for 1h b; try knock nosuch-'
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "complete -o default -F _knock knock",
        "renew revoke",
        grant,
        "bastion",
        "",
    ]
    assert result.stderr == ""


def test_fish_completes_with_the_script(home: Path, run: Run) -> None:
    program("fish", "apt install fish")
    grant = run("-q", "bastion").out.strip()
    script = "knock completion fish | source; "
    script += 'complete -C "knock re"; complete -C "knock revoke "; complete -C "knock open b"'
    result = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        "renew",
        "revoke",
        grant,
        "bastion",
    ]


def test_zsh_completes_with_the_script(home: Path, run: Run) -> None:
    program("zsh", "apt install zsh")
    grant = run("-q", "bastion").out.strip()
    terminal, shell_end = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PS1": "> ", "ZDOTDIR": str(home)}
    with subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=shell_end,
        stdout=shell_end,
        stderr=shell_end,
        env=environment,
        start_new_session=True,
    ) as shell:
        os.close(shell_end)

        def type_and_read(keys: str, until: str) -> str:
            os.write(terminal, keys.encode())
            output, deadline = "", time.monotonic() + 10
            while until not in output:
                assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], output
                output += os.read(terminal, 65536).decode()
            return output

        type_and_read(
            "autoload -U compinit; compinit -u; eval \"$(knock completion zsh)\"; print rea''dy\n", "ready"
        )
        type_and_read("knock revok\t", "revoke ")
        type_and_read("al\t", grant)
        shell.kill()
    os.close(terminal)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_well_formed(run: Run, shell: str, home: Path) -> None:
    program(shell, f"apt install {shell}")
    script = run("completion", shell).out
    assert CLIENTS.name not in script, "it names no folder of this machine"
    result = subprocess.run(
        [shell, "-n", "/dev/stdin"], input=script, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert run("completion", "tcsh").code == 2
