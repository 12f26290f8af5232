"""`knock run`: open a grant, run a command, and end the grant, however the command ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from knock import run as run_module
from knock import signals
from tests.clients.conftest import Api, Result
from tests.clients.double import Double, Held
from tests.waiting import wait_for

Run = Callable[..., Result]

# Prints a line when it is ready and the signals that it got, once each time, and exits with 7.
COUNTS = """
import signal, sys, time
signals = []
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, _: signals.append(number))
print("ready", flush=True)
until = time.monotonic() + 20
while not signals and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.3)
print(*signals, flush=True)
sys.exit(7)
"""
COMMAND = ("run", "bastion", "--for", "1h", "--", sys.executable, "-c", COUNTS)


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `knock` without a terminal; processes that still run at the end are killed."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                ["knock", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def statuses(double: Double) -> list[str]:
    double.update_grants()
    return [grant["status"] for grant in double.grants.values()]


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until the command behind `knock run` has started."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_access_is_open_while_the_command_runs_and_closed_afterwards(
    api: Api, spawn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    result = spawn(
        "knock", "run", "bastion", "--for", "1h", "--reason", "a job", "--", "knock", "ls", "--json"
    )
    (grant,) = json.loads(result.out)["grants"]
    assert (result.code, grant["status"], grant["reason"]) == (0, "active", "a job")
    assert result.err.startswith("knock: open: bastion (22/tcp) from 203.0.113.7/32 until ")
    assert result.err.endswith(f"knock: ended: grant {grant['id']}\n")
    assert not api.lets_in("203.0.113.7/32", "bastion")
    with api.client("alice") as client:
        assert client.grant(grant["id"]).events[-1]["event"] in ("revoked", "closed")


def test_the_exit_code_and_the_streams_are_the_commands(spawn: Run, double: Double) -> None:
    """Mutation: clients/knock/run.py: `self._end()` -> `pass`"""
    result = spawn(
        "knock", "run", "bastion", "-q", "--", "sh", "-c", "cat; echo wrong >&2; exit 7", stdin="in"
    )
    assert (result.code, result.out, result.err) == (7, "in", "wrong\n")
    result = spawn("knock", "run", "bastion", "web", "-q", "--", "sh", "-c", "kill -9 $$")
    assert (result.code, result.out, result.err) == (137, "", "")
    assert statuses(double) == ["revoked", "revoked"]


def test_words_after_the_two_dashes_are_the_commands_alone(spawn: Run, double: Double) -> None:
    result = spawn("knock", "run", "-q", "bastion", "--", "echo", "--json", "--", "-q")
    assert (result.code, result.out) == (0, "--json -- -q\n")
    assert [grant["targets"][0]["name"] for grant in double.grants.values()] == ["bastion"]


@pytest.mark.parametrize("words", [["bastion"], ["bastion", "--"], ["bastion", "ls"]])
def test_without_a_command_nothing_is_opened(run: Run, double: Double, words: list[str]) -> None:
    result = run("run", *words)
    assert (result.code, double.requests) == (2, [])
    assert "the command stands behind --: knock run bastion -- ./deploy.sh" in result.err


def test_a_command_that_cannot_be_started_leaves_nothing_open(run: Run, double: Double, home: Path) -> None:
    plain, broken, odd = home / "plain", home / "broken", home / "odd"
    plain.write_text("no program")
    broken.write_text("#!/no/such/interpreter\n")
    odd.write_bytes(b"\0\1\2")
    for file in (broken, odd):
        file.chmod(0o755)
    for command, code in (("no-such-program", 127), (str(home / "nosuch"), 127), (str(plain), 126)):
        result = run("run", "bastion", "--", command)
        assert (result.code, double.requests) == (code, []), command
        assert result.err.endswith("; nothing was opened\n")
    for command, code in ((str(broken), 127), (str(odd), 126)):
        result = run("run", "bastion", "--", command)
        assert result.code == code, command
        assert f"knock: {command} cannot be started: " in result.err
    assert statuses(double) == ["revoked", "revoked"]


def test_a_knock_that_is_refused_runs_nothing(run: Run, double: Double, home: Path) -> None:
    touch = ("--", "touch", str(home / "ran"))
    assert run("run", "nosuch", *touch).code == 1
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    assert run("run", "bastion", *touch).code == 4
    double.stop()
    assert run("run", "bastion", *touch).code == 3
    assert not (home / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on_and_the_grant_ends_after_the_command(
    start: Callable[..., subprocess.Popen[str]], double: Double, number: signal.Signals
) -> None:
    """The command ends in its own time, and with its own code.

    Mutation: clients/knock/run.py: `if number not in _KEYBOARD or not _at_the_keyboard():` -> `if False:`
    """
    process = start(*COMMAND)
    ready(process)
    assert statuses(double) == ["active"]
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (7, f"{int(number)}\n"), err
    assert statuses(double) == ["revoked"]


def test_ctrl_c_on_a_terminal_reaches_the_command_once(double: Double, home: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("knock", ["knock", *COMMAND])  # noqa: S606 — the program under test
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:
        pass  # how a terminal ends
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, output
    assert b"\r\n2\r\n" in output.replace(b"^C", b"\r\n"), "one SIGINT, though two processes got it"
    assert statuses(double) == ["revoked"]


def test_a_ctrl_c_that_the_command_gets_too_is_told_from_a_sent_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_terminal(*_: object) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr(os, "open", no_terminal)
    assert not run_module._at_the_keyboard(), "no terminal: a signal was sent, and is passed on"
    monkeypatch.setattr(os, "open", lambda *_: 7)
    monkeypatch.setattr(os, "close", lambda _: None)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    assert run_module._at_the_keyboard()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    assert not run_module._at_the_keyboard(), "in the background"
    monkeypatch.setattr(os, "tcgetpgrp", no_terminal)
    assert not run_module._at_the_keyboard()
    monkeypatch.setattr(sys, "platform", "win32")
    assert run_module._at_the_keyboard(), "a console's Ctrl-C goes to all of its programs"


def test_a_closed_terminal_ends_the_grant(double: Double, home: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("knock", ["knock", "run", "bastion", "--", "sleep", "30"])  # noqa: S606 — as above
    wait_for(lambda: statuses(double) == ["active"])
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert statuses(double) == ["revoked"]


def test_a_signal_during_the_knock_waits_for_its_answer_and_ends_the_grant(
    start: Callable[..., subprocess.Popen[str]], double: Double, home: Path
) -> None:
    double.faults = [1.0]
    process = start("run", "bastion", "--", "touch", str(home / "ran"))
    wait_for(lambda: double.calls("POST") == 1)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert statuses(double) == ["revoked"]
    assert not (home / "ran").exists()


def test_a_signal_while_a_grant_is_pending_ends_it(
    start: Callable[..., subprocess.Popen[str]], double: Double
) -> None:
    double.opens_after = 60
    process = start("run", "bastion", "--", "true")
    wait_for(lambda: double.calls("GET", "/grants/") > 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, statuses(double)) == (130, ["revoked"]), err


def test_a_signal_while_there_is_no_room_leaves_nothing_open(
    start: Callable[..., subprocess.Popen[str]], double: Double
) -> None:
    double.no_room = 1000
    process = start("run", "bastion", "--wait", "5m", "--", "true")
    wait_for(lambda: double.calls("POST") > 0)
    process.terminate()
    process.communicate(timeout=30)
    assert (process.returncode, statuses(double)) == (143, [])


def test_a_second_signal_ends_the_program_at_once(
    start: Callable[..., subprocess.Popen[str]], double: Double
) -> None:
    held = Held()
    double.faults = [held]
    process = start("run", "bastion", "--", "true")
    wait_for(lambda: double.calls("POST") == 1)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=signals.SAME_REQUEST + 0.1)
    process.terminate()
    assert process.wait(timeout=15) == -signal.SIGTERM
    assert held.waiting, "it waited for the answer"
    held.release()


def test_a_full_pool_is_waited_for_as_long_as_wait_says(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knock.run.time.sleep", lambda _: None)
    double.no_room = 3
    result = run("run", "bastion", "--wait", "5m", "--", "true")
    assert (result.code, double.calls("POST"), statuses(double)) == (0, 4, ["revoked"])
    assert result.err.count("waiting: ") == 1
    double.no_room = 1
    assert run("run", "bastion", "--", "true").code == 4


@pytest.mark.usefixtures("knocks")
def test_a_grant_that_fails_for_want_of_room_is_retried_as_long_as_wait_says(
    run: Run, double: Double
) -> None:
    assert run("run", "bastion", "--wait", "1m", "--", "true").code == 0
    assert statuses(double) == ["failed", "revoked"]


def test_a_grant_that_may_be_open_after_an_error_is_ended(run: Run, double: Double) -> None:
    grant = json.loads(run("bastion", "--json").out)["id"]
    answer = {"title": "Try again", "status": 503, "detail": "no answer", "grant_id": grant}
    double.faults = [(503, {}, answer)]
    result = run("run", "bastion", "--", "true")
    assert (result.code, statuses(double)) == (1, ["revoked"])
    assert f"ended: grant {grant}" in result.err


@pytest.mark.parametrize("answer", [{"status": "active"}, {"targets": [{"name": "bastion"}]}])
def test_a_grant_whose_answer_cannot_be_read_is_ended_all_the_same(
    run: Run, double: Double, answer: dict[str, object]
) -> None:
    """Break it: read all of an answer before its id."""
    grant = json.loads(run("bastion", "--json").out)["id"]
    double.faults = [(201, {}, {"id": grant, **answer})]
    result = run("run", "bastion", "--", "true")
    assert (result.code, statuses(double)) == (3, ["revoked"])
    assert f"ended: grant {grant}" in result.err
    assert f"' is missing. Grant {grant} may be open all the same: look with `knock ls`" in result.err
    double.faults = [(201, {}, {"id": grant, **answer})]
    error = json.loads(run("bastion", "--json").err)
    assert (error["error"], error["grant_id"], error["exit_code"]) == ("UnexpectedAnswer", grant, 3)


def test_a_revocation_that_fails_is_reported_and_the_exit_code_is_the_commands(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knock.run.time.sleep", lambda _: None)
    monkeypatch.setattr("knock.transport.time.sleep", lambda _: None)
    double.faults = [0, *["drop"] * 9]
    result = run("run", "bastion", "--for", "1h", "--", "sh", "-c", "exit 5")
    (grant,) = double.grants
    assert result.code == 5
    assert f"knock: grant {grant} could not be ended, and it stays open until " in result.err
    assert f"end it with `knock revoke {grant}`" in result.err
    double.faults = [0, *["drop"] * 5]
    assert run("run", "web", "--", "true").code == 0
    assert statuses(double) == ["active", "revoked"], "a revocation whose answer is lost is repeated"


def test_a_grant_that_ended_before_its_command_is_reported(run: Run, double: Double) -> None:
    result = run("run", "bastion", "--for", "1s", "--", "sleep", "2.1")
    assert result.code == 0
    assert "had ended before: expired" in result.err


def test_the_end_of_a_job_leaves_its_siblings_grant_open(
    start: Callable[..., subprocess.Popen[str]], spawn: Run, double: Double
) -> None:
    process = start(*COMMAND)
    ready(process)
    assert spawn("knock", "run", "bastion", "--for", "10m", "--", "true").code == 0
    assert sorted(statuses(double)) == ["active", "revoked"]
    process.terminate()
    process.communicate(timeout=30)
    assert statuses(double) == ["revoked", "revoked"]
