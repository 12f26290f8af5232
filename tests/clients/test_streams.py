"""Output that fails, and interruptions: the exit code is right, and the grant is named."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from knock.screen import OutputGone, Screen
from tests.clients.conftest import Result
from tests.clients.double import Double
from tests.waiting import wait_for

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


WAYS = {">&-": "it is closed", ">/dev/full": "No space left on device"}


@pytest.mark.parametrize("words", ["bastion --for 1h", "bastion -q", "bastion --json"])
@pytest.mark.parametrize("way", WAYS)
def test_the_grant_is_named_on_standard_error_where_standard_output_fails(
    spawn: Run, double: Double, words: str, way: str
) -> None:
    """Mutation: clients/knock/streams.py: `if sys.stdin is None or sys.stdout is None or sys.stderr is None:`
    -> `if False:`
    """
    result = spawn("bash", "-c", f"knock {words} {way}")
    (grant,) = double.grants
    assert result.code == 1
    assert f"end it with `knock revoke {grant}`" in result.err
    assert (
        f"knock: standard output cannot be written ({WAYS[way]})" in result.err or "OutputGone" in result.err
    )
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_after_a_reader_that_has_gone_the_grant_is_named_and_nothing_else(spawn: Run, double: Double) -> None:
    result = spawn("bash", "-c", "set -o pipefail; knock bastion --for 1h | :")
    (grant,) = double.grants
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert f"end it with `knock revoke {grant}`" in result.err
    result = spawn("bash", "-c", f"set -o pipefail; knock revoke {grant} | :")
    assert (result.code, f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {grant}" in result.err) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    "words", ["ls", "ls --json", "whoami", "show x", "profiles --json", "--help", "ls --help"]
)
def test_every_other_command_fails_without_a_traceback(spawn: Run, double: Double, words: str) -> None:
    spawn("knock", "bastion", "-q")
    for way in WAYS:
        result = spawn("bash", "-c", f"knock {words} {way}")
        assert result.code == 1, (way, result)
        assert "Traceback" not in result.err
        assert "Exception ignored" not in result.err


@pytest.mark.parametrize("way", ["2>&-", "2>/dev/full", "<&- >/dev/null 2>&-"])
def test_standard_error_that_fails_changes_no_exit_code(spawn: Run, double: Double, way: str) -> None:
    result = spawn("bash", "-c", f"knock bastion --for 1h {way}; echo $?; knock nosuch {way}; echo $?")
    assert result.out.splitlines()[-3:] in (["0", "1"], [result.out.splitlines()[0], "0", "1"])
    assert len(double.grants) == 1


def test_the_descriptor_of_a_closed_output_is_not_used_by_a_connection(spawn: Run, double: Double) -> None:
    result = spawn("bash", "-c", "knock bastion --for 1h >&- 2>&-; echo $?")
    assert result.out == "1\n"
    assert len(double.grants) == 1
    assert all(request.method in ("GET", "POST") for request in double.requests), (
        "nothing was printed into the connection"
    )


def test_a_watch_whose_reader_goes_ends_and_revokes(spawn: Run, double: Double) -> None:
    result = spawn("bash", "-c", "set -o pipefail; knock watch bastion --every 1 --revoke --json | head -n 0")
    assert (result.code, [grant["status"] for grant in double.grants.values()]) == (1, ["revoked"])
    assert "Traceback" not in result.err


def test_output_that_fails_at_the_flush_is_repeated_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    screen = Screen()
    screen.matters("open: bastion")
    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(OutputGone, match="Input/output error"):
        screen.flush()
    assert capsys.readouterr().err == "knock: open: bastion\n"


# ---------------------------------------------------------------------- interruptions


def interrupted(double: Double, *words: str, when: Callable[[], object]) -> Result:
    """Run `knock` as a shell's foreground job, and send it the SIGINT of a Ctrl-C when a condition holds."""
    with subprocess.Popen(
        ["knock", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as running:
        wait_for(when)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=10)
    return Result(running.returncode, out, err)


def test_an_interrupted_knock_says_that_a_grant_may_be_open_and_how_to_look(double: Double) -> None:
    double.faults = [10, 10]
    result = interrupted(double, "bastion", when=lambda: double.calls("POST") == 1)
    message = (
        "interrupted before the API answered: a grant may be open all the same: look with `knock ls`, "
        "and end it with `knock revoke ID`"
    )
    assert (result.code, result.out, result.err) == (130, "", f"knock: {message}\n")
    result = interrupted(double, "bastion", "--json", when=lambda: double.calls("POST") == 2)
    assert json.loads(result.err) == {"error": "Interrupted", "exit_code": 130, "detail": message}


def test_an_interrupted_wait_names_the_grant(double: Double) -> None:
    double.opens_after = 60
    result = interrupted(double, "bastion", "--json", when=lambda: double.calls("GET", "/grants/") > 0)
    (grant,) = double.grants
    error = json.loads(result.err)
    assert (result.code, error["grant_id"], error["error"]) == (130, grant, "Interrupted")
    assert f"end it with `knock revoke {grant}`" in error["detail"]


def test_an_interrupted_revocation_names_ended_and_uncertain_grants(run: Run, double: Double) -> None:
    first, second = run("bastion", "-q").out.strip(), run("web", "-q").out.strip()
    double.faults = [0, 10]
    result = interrupted(double, "revoke", first, second, when=lambda: double.calls("DELETE") == 2)
    assert result.code == 130
    assert f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {first}" in result.out
    assert f"whether grant {second} has ended is not known: look with `knock show {second}`" in result.err


def test_an_interruption_between_two_knocks_says_nothing_more(double: Double) -> None:
    double.no_room = 1000
    with subprocess.Popen(
        ["knock", "bastion", "--wait", "5m"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("knock: waiting: There is no room")
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=10)
    assert (running.returncode, stderr) == (130, "knock: interrupted\n")
