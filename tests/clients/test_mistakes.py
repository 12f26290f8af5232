"""Mistyped words: the error comes before anything is sent."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.clients.conftest import CLIENTS, Result
from tests.clients.double import Double

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("list", "knock ls"),
        ("help", "knock --help"),
        ("status", "knock ls"),
        ("close", "knock revoke"),
        ("rvoke", "knock revoke"),
        ("revoke1", "knock revoke"),
        ("shwo", "knock show"),
        ("renw", "knock renew"),
        ("logn", "knock login"),
        ("version", "knock --version"),
    ],
)
def test_a_mistyped_command_is_no_target_and_nothing_is_sent(
    run: Run, double: Double, typed: str, meant: str
) -> None:
    for words in (
        [typed], ["--for", "1h", typed], [typed, "bastion"], [typed, "-q"], [typed, "--all"],
        [typed, "bastion", "--", "true"],
    ):  # fmt: skip
        result = run(*words)
        assert (result.code, result.out, double.requests) == (2, "", []), words
        assert f"did you mean {meant}?" in result.err
        assert f"If it is a target: knock open {typed}" in result.err


def test_a_target_named_like_a_mistyped_command_opens_once_known_or_with_open(
    run: Run, double: Double
) -> None:
    double.ports |= {"status": ["22/tcp"], "basion": ["22/tcp"]}
    assert run("status").code == 2, "nothing is known yet"
    assert run("open", "status").code == 0
    run("whoami")
    assert run("status").code == 0
    assert run("basion").out.startswith("open: basion")
    assert run("--", "close").code == 1, "a word after -- is a target, which the API refuses"


def test_a_command_after_dashes_without_run_is_a_usage_error(run: Run, double: Double) -> None:
    result = run("bastion", "--for", "1h", "--", "./deploy.sh", "--json")
    assert (result.code, result.out, double.requests) == (2, "", [])
    assert "only run takes a command behind --: knock run bastion -- ./deploy.sh" in result.err


def test_a_mistyped_target_is_recognized_by_the_cached_targets(run: Run, double: Double) -> None:
    assert run("bastoin").code == 1, "the API says so when nothing is known here"
    run("whoami")
    double.requests.clear()
    result = run("web", "bastoin")
    assert (result.code, double.requests) == (2, [])
    assert "did you mean bastion? If it is a target: knock open bastoin" in result.err
    assert run("mainframe").code == 1, "a word unlike every known target may be a new one"


@pytest.mark.parametrize("words", [[], ["open"], ["watch"], ["run", "--for", "1h"]])
def test_targets_are_separated_by_spaces(run: Run, double: Double, words: list[str]) -> None:
    result = run(*words, "bastion,web", *(["--", "true"] if "run" in words else []))
    assert (result.code, result.out, double.requests) == (2, "", [])
    assert "targets are separated by spaces: knock bastion web" in result.err


def test_words_may_stand_on_either_side_of_options(run: Run, double: Double) -> None:
    assert run("bastion", "--for", "1h", "web", "-q").code == 0
    (grant,) = double.grants.values()
    assert [target["name"] for target in grant["targets"]] == ["bastion", "web"]
    second = run("-q", "web").out.strip()
    assert run("revoke", grant["id"], "--reason", "done", second, "-q").out.split() == [grant["id"], second]
    assert run("run", "bastion", "--for", "1h", "web", "-q", "--", "true").code == 0


@pytest.mark.parametrize(
    "words", [["bastion"], ["open"], ["renew"], ["watch"], ["run", "bastion"], ["ssh-config", "bastion"]]
)
def test_a_duration_without_its_unit_is_a_usage_error(run: Run, double: Double, words: list[str]) -> None:
    result = run(*words, "--for", "5")
    assert (result.code, result.out, double.requests) == (2, "", [])
    assert "argument --for: 5 what? Say 5m, 5h or 5s" in result.err


def test_with_json_a_usage_error_is_json_too(run: Run, double: Double) -> None:
    for words, detail in (
        (["bastion", "--for", "5"], "argument --for: 5 what? Say 5m, 5h or 5s"),
        (["bastion,web"], "targets are separated by spaces: knock bastion web"),
        (["show"], "the following arguments are required: ID"),
        (["run", "bastion"], "the command stands behind --: knock run bastion -- ./deploy.sh"),
    ):
        result = run(*words, "--json")
        error = {"error": "UsageError", "exit_code": 2, "detail": detail}
        assert (result.code, result.out, json.loads(result.err)) == (2, "", error)
    assert run("run", "nosuch", "-q", "--", "echo", "--json").err.startswith("knock: "), (
        "the command's own word"
    )
    assert double.calls("GET") == 0


@pytest.mark.parametrize("words", [["show"], ["revoke"], ["renew"], ["bastion", "--renews"]])
def test_an_empty_id_is_a_variable_that_is_not_set_and_is_not_sent(
    run: Run, double: Double, words: list[str]
) -> None:
    result = run(*words, "")
    assert (result.code, result.out, double.requests) == (2, "", [])
    assert "it is empty: is a variable not set?" in result.err


def test_how_long_to_wait_is_a_time_too(run: Run, double: Double) -> None:
    for duration in ("5", "soon", "-1m"):
        result = run("bastion", f"--wait={duration}")
        assert (result.code, double.requests) == (2, [])


def test_a_full_pool_is_waited_for_and_has_an_exit_code_of_its_own(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("knock.session.time.sleep", pauses.append)
    double.no_room = 8
    result = run("bastion", "--wait", "5m")
    assert (result.code, double.calls("POST")) == (0, 9)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (
        result.err.count("knock: waiting: There is no room: every security group of bastion is full\n") == 1
    )
    monkeypatch.undo()


def test_after_the_wait_a_full_pool_and_an_unavailable_service_are_different_errors(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.no_room = 1000
    result = run("bastion", "--wait", "1s", "--json")
    assert (result.code, double.calls("POST") >= 2) == (4, True)
    assert '"status": 409, "error": "PoolExhausted", "exit_code": 4' in result.err
    result = run("bastion")
    assert result.code == 4
    assert "--wait 5m tries for so long" in result.err
    double.no_room = 0
    busy = {"type": "urn:knock:problem:store-unavailable", "title": "Try again", "status": 503, "detail": "x"}
    double.faults = [(503, {}, busy)]
    result = run("bastion", "--json")
    assert result.code == 1
    assert '"status": 503, "error": "Unavailable", "exit_code": 1' in result.err


def test_a_grant_that_failed_for_want_of_room_is_retried_too(
    run: Run, double: Double, knocks: list[str]
) -> None:
    assert run("bastion", "--wait", "1m").code == 0
    assert [grant["status"] for grant in double.grants.values()] == ["failed", "active"]
    knocks.clear()
    assert run("web").code == 4


def on_a_terminal(*words: str) -> str:
    """Run `knock` on a terminal, and give its output."""
    terminal, program_end = pty.openpty()
    with subprocess.Popen(
        ["knock", *words], stdin=program_end, stdout=program_end, stderr=program_end
    ) as running:
        os.close(program_end)
        output = b""
        try:
            while chunk := os.read(terminal, 65536):
                output += chunk
        except OSError:
            pass  # how a pty ends
    os.close(terminal)
    assert running.returncode == 0
    return output.decode()


def test_a_knock_without_targets_lists_on_a_terminal_what_it_opens(run: Run, double: Double) -> None:
    output = on_a_terminal()
    opening = "opening all you may: bastion (22/tcp), web (80/tcp, 443/tcp), for 1d"
    assert opening in output
    assert output.index(opening) < output.index("open: bastion")
    assert opening not in run().err, "elsewhere it is silent"
    assert "opening" not in on_a_terminal("bastion", "--for", "20h"), "the targets are named"
    assert "opening" not in on_a_terminal("-q"), "ids are for programs"
    del double.ports["web"]
    assert "opening all you may: bastion (22/tcp), for 1d" in on_a_terminal()
    assert "opening" not in on_a_terminal("--for", "8h")


def test_the_hook_loads_no_module_for_mistyped_words(spawn: Run) -> None:
    code = "import sys; from knock.cli import main; main(['ssh-hook']); print(*sys.modules, file=sys.stdout)"
    folder = str(CLIENTS)
    spawn("knock", "bastion", "web", "--for", "1h", "-q")
    spawn("knock", "--for", "1h", "-q")
    result = spawn(sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}")
    loaded = set(result.out.split())
    assert "knock.sshconfig" in loaded
    assert not loaded & {"difflib", "http.client", "ssl", "knock.mistakes", "knock.client"}
