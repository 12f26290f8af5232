"""What was typed is not what was meant: that is said before anything is sent."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.clients.conftest import CLIENTS, Done
from tests.clients.double import Double

Run = Callable[..., Done]


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
def test_a_mistyped_command_is_no_target_and_asks_nothing(
    run: Run, double: Double, typed: str, meant: str
) -> None:
    for words in (
        [typed], ["--for", "1h", typed], [typed, "bastion"], [typed, "-q"], [typed, "--all"],
        [typed, "bastion", "--", "true"],
    ):  # fmt: skip
        done = run(*words)
        assert (done.code, done.out, double.seen) == (2, "", []), words
        assert f"did you mean {meant}?" in done.err
        assert f"If it is a target: knock open {typed}" in done.err


def test_a_target_of_such_a_name_opens_once_it_is_known_or_with_open(run: Run, double: Double) -> None:
    double.ports |= {"status": ["22/tcp"], "basion": ["22/tcp"]}
    assert run("status").code == 2, "nothing is known yet"
    assert run("open", "status").code == 0
    run("whoami")
    assert run("status").code == 0
    assert run("basion").out.startswith("open: basion")
    assert run("--", "close").code == 1, "what stands behind -- is a target: the API says that it is none"


def test_a_command_behind_dashes_is_no_target_where_run_was_left_out(run: Run, double: Double) -> None:
    done = run("bastion", "--for", "1h", "--", "./deploy.sh", "--json")
    assert (done.code, done.out, double.seen) == (2, "", [])
    assert "only run takes a command behind --: knock run bastion -- ./deploy.sh" in done.err


def test_a_mistyped_target_is_told_from_what_this_machine_has_learned(run: Run, double: Double) -> None:
    assert run("bastoin").code == 1, "the API says so when nothing is known here"
    run("whoami")
    double.seen.clear()
    done = run("web", "bastoin")
    assert (done.code, double.seen) == (2, [])
    assert "did you mean bastion? If it is a target: knock open bastoin" in done.err
    assert run("mainframe").code == 1, "what is near nothing may be a target that is new"


@pytest.mark.parametrize("words", [[], ["open"], ["watch"], ["run", "--for", "1h"]])
def test_targets_are_separated_by_spaces(run: Run, double: Double, words: list[str]) -> None:
    done = run(*words, "bastion,web", *(["--", "true"] if "run" in words else []))
    assert (done.code, done.out, double.seen) == (2, "", [])
    assert "targets are separated by spaces: knock bastion web" in done.err


def test_words_may_stand_on_either_side_of_options(run: Run, double: Double) -> None:
    assert run("bastion", "--for", "1h", "web", "-q").code == 0
    (grant,) = double.grants.values()
    assert [target["name"] for target in grant["targets"]] == ["bastion", "web"]
    other = run("-q", "web").out.strip()
    assert run("revoke", grant["id"], "--reason", "done", other, "-q").out.split() == [grant["id"], other]
    assert run("run", "bastion", "--for", "1h", "web", "-q", "--", "true").code == 0


@pytest.mark.parametrize(
    "words", [["bastion"], ["open"], ["renew"], ["watch"], ["run", "bastion"], ["ssh-config", "bastion"]]
)
def test_a_time_without_its_unit_is_asked_for_it(run: Run, double: Double, words: list[str]) -> None:
    done = run(*words, "--for", "5")
    assert (done.code, done.out, double.seen) == (2, "", [])
    assert "argument --for: 5 what? Say 5m, 5h or 5s" in done.err


def test_with_json_what_is_typed_wrong_is_json_too(run: Run, double: Double) -> None:
    for words, detail in (
        (["bastion", "--for", "5"], "argument --for: 5 what? Say 5m, 5h or 5s"),
        (["bastion,web"], "targets are separated by spaces: knock bastion web"),
        (["show"], "the following arguments are required: ID"),
        (["run", "bastion"], "the command stands behind --: knock run bastion -- ./deploy.sh"),
    ):
        done = run(*words, "--json")
        told = {"error": "UsageError", "exit_code": 2, "detail": detail}
        assert (done.code, done.out, json.loads(done.err)) == (2, "", told)
    assert run("run", "nosuch", "-q", "--", "echo", "--json").err.startswith("knock: "), (
        "the command's own word"
    )
    assert double.calls("GET") == 0


@pytest.mark.parametrize("words", [["show"], ["revoke"], ["renew"], ["bastion", "--renews"]])
def test_an_empty_id_is_a_variable_that_is_not_set_and_is_not_sent(
    run: Run, double: Double, words: list[str]
) -> None:
    done = run(*words, "")
    assert (done.code, done.out, double.seen) == (2, "", [])
    assert "it is empty: is a variable not set?" in done.err


def test_how_long_to_wait_is_a_time_too(run: Run, double: Double) -> None:
    for wrong in ("5", "soon", "-1m"):
        done = run("bastion", f"--wait={wrong}")
        assert (done.code, double.seen) == (2, [])


def test_a_full_pool_is_waited_for_and_has_an_exit_code_of_its_own(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("knock.session.time.sleep", pauses.append)
    double.no_room = 8
    done = run("bastion", "--wait", "5m")
    assert (done.code, double.calls("POST")) == (0, 9)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert done.err.count("knock: waiting: There is no room: every security group of bastion is full\n") == 1
    monkeypatch.undo()


def test_when_the_time_is_up_no_room_is_told_from_no_service(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.no_room = 1000
    done = run("bastion", "--wait", "1s", "--json")
    assert (done.code, double.calls("POST") >= 2) == (4, True)
    assert '"status": 409, "error": "PoolExhausted", "exit_code": 4' in done.err
    done = run("bastion")
    assert done.code == 4
    assert "--wait 5m tries for so long" in done.err
    double.no_room = 0
    busy = {"type": "urn:knock:problem:store-unavailable", "title": "Try again", "status": 503, "detail": "x"}
    double.faults = [(503, {}, busy)]
    done = run("bastion", "--json")
    assert done.code == 1
    assert '"status": 503, "error": "Unavailable", "exit_code": 1' in done.err


def test_a_grant_that_failed_for_want_of_room_is_tried_again_too(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, waits = double.knock, []

    def knock(who: str, asked: dict[str, object]) -> object:
        waits.append(who)
        double.opens_after, double.fails = (0.1, "PoolExhausted: full") if len(waits) == 1 else (0.0, "")
        return real(who, asked)

    monkeypatch.setattr(double, "knock", knock)
    assert run("bastion", "--wait", "1m").code == 0
    assert [grant["status"] for grant in double.grants.values()] == ["failed", "active"]
    waits.clear()
    assert run("web").code == 4


def on_a_terminal(*words: str) -> str:
    """Run `knock` on a terminal, and give what it said there."""
    near, far = pty.openpty()
    with subprocess.Popen(["knock", *words], stdin=far, stdout=far, stderr=far) as running:
        os.close(far)
        said = b""
        try:
            while chunk := os.read(near, 65536):
                said += chunk
        except OSError:
            pass  # how a pty ends
    os.close(near)
    assert running.returncode == 0
    return said.decode()


def test_a_knock_that_names_nothing_says_on_a_terminal_what_it_is_about_to_open(
    run: Run, double: Double
) -> None:
    said = on_a_terminal()
    opening = "opening all you may: bastion (22/tcp), web (80/tcp, 443/tcp), for 1d"
    assert opening in said
    assert said.index(opening) < said.index("open: bastion")
    assert opening not in run().err, "elsewhere it is silent"
    assert "opening" not in on_a_terminal("bastion", "--for", "20h"), "what is named is known"
    assert "opening" not in on_a_terminal("-q"), "ids are for programs"
    del double.ports["web"]
    assert "opening all you may: bastion (22/tcp), for 1d" in on_a_terminal()
    assert "opening" not in on_a_terminal("--for", "8h")


def test_slips_cost_a_start_nothing(spawn: Run) -> None:
    code = "import sys; from knock.cli import main; main(['ssh-hook']); print(*sys.modules, file=sys.stdout)"
    folder = str(CLIENTS)
    spawn("knock", "bastion", "web", "--for", "1h", "-q")
    spawn("knock", "--for", "1h", "-q")
    done = spawn(sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}")
    assert not set(done.out.split()) & {"difflib", "http.client", "ssl", "knock.slips", "knock.client"}
