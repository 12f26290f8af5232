"""Output that goes away, and interruptions: the exit code is right, and what was opened is known."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial

import pytest

from knock import watch
from knock.screen import OutputGone, Screen
from tests.clients.conftest import Done, wait_until
from tests.clients.double import Double

Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


WAYS = {">&-": "it is closed", ">/dev/full": "No space left on device"}


@pytest.mark.parametrize("words", ["bastion --for 1h", "bastion -q", "bastion --json"])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_opened_is_told_where_standard_output_fails(
    spawn: Run, double: Double, words: str, way: str
) -> None:
    """Mutation: clients/knock/streams.py: `if sys.stdin is None or sys.stdout is None or sys.stderr is None:`
    -> `if False:`
    """
    done = spawn("bash", "-c", f"knock {words} {way}")
    (grant,) = double.grants
    assert done.code == 1
    assert f"end it with `knock revoke {grant}`" in done.err
    assert f"knock: standard output cannot be written ({WAYS[way]})" in done.err or "OutputGone" in done.err
    assert "Traceback" not in done.err
    assert "Exception ignored" not in done.err


def test_a_reader_that_has_gone_is_told_of_what_was_opened_and_of_no_more(spawn: Run, double: Double) -> None:
    done = spawn("bash", "-c", "set -o pipefail; knock bastion --for 1h | :")
    (grant,) = double.grants
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"end it with `knock revoke {grant}`" in done.err
    done = spawn("bash", "-c", f"set -o pipefail; knock revoke {grant} | :")
    assert (done.code, f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {grant}" in done.err) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    "words", ["ls", "ls --json", "whoami", "show x", "profiles --json", "--help", "ls --help"]
)
def test_every_other_command_fails_in_words(spawn: Run, double: Double, words: str) -> None:
    spawn("knock", "bastion", "-q")
    for way in WAYS:
        done = spawn("bash", "-c", f"knock {words} {way}")
        assert done.code == 1, (way, done)
        assert "Traceback" not in done.err
        assert "Exception ignored" not in done.err


@pytest.mark.parametrize("way", ["2>&-", "2>/dev/full", "<&- >/dev/null 2>&-"])
def test_standard_error_that_fails_changes_no_exit_code(spawn: Run, double: Double, way: str) -> None:
    done = spawn("bash", "-c", f"knock bastion --for 1h {way}; echo $?; knock nosuch {way}; echo $?")
    assert done.out.splitlines()[-3:] in (["0", "1"], [done.out.splitlines()[0], "0", "1"])
    assert len(double.grants) == 1


def test_a_closed_output_s_number_is_given_to_no_connection(spawn: Run, double: Double) -> None:
    done = spawn("bash", "-c", "knock bastion --for 1h >&- 2>&-; echo $?")
    assert done.out == "1\n"
    assert all(call[0] in ("GET", "POST") for call in double.seen), "nothing was printed into the connection"


def test_a_watch_whose_reader_goes_ends_and_revokes(spawn: Run, double: Double) -> None:
    done = spawn("bash", "-c", "set -o pipefail; knock watch bastion --every 1 --revoke --json | head -n 0")
    assert (done.code, [grant["status"] for grant in double.grants.values()]) == (1, ["revoked"])
    assert "Traceback" not in done.err


def test_output_that_fails_later_is_an_error_of_ours(
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
    assert watch.OutputGone is OutputGone


# ---------------------------------------------------------------------- interruptions


def interrupted(double: Double, *words: str, when: Callable[[], object]) -> Done:
    """Run `knock` as a shell's foreground has it, and press Ctrl-C when something is true."""
    with subprocess.Popen(
        ["knock", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as running:
        wait_until(when)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=10)
    return Done(running.returncode, out, err)


def test_an_interrupted_knock_says_what_may_be_open_and_how_to_look(double: Double) -> None:
    double.faults = [10, 10]
    done = interrupted(double, "bastion", when=lambda: double.calls("POST") == 1)
    said = (
        "interrupted before the API answered: a grant may be open all the same: look with `knock ls`, "
        "and end it with `knock revoke ID`"
    )
    assert (done.code, done.out, done.err) == (130, "", f"knock: {said}\n")
    done = interrupted(double, "bastion", "--json", when=lambda: double.calls("POST") == 2)
    assert json.loads(done.err) == {"error": "Interrupted", "exit_code": 130, "detail": said}


def test_an_interrupted_wait_names_the_grant(double: Double) -> None:
    double.opens_after = 60
    done = interrupted(double, "bastion", "--json", when=lambda: double.calls("GET", "/grants/") > 0)
    (grant,) = double.grants
    told = json.loads(done.err)
    assert (done.code, told["grant_id"], told["error"]) == (130, grant, "Interrupted")
    assert f"end it with `knock revoke {grant}`" in told["detail"]


def test_an_interrupted_revocation_says_how_to_look_and_what_has_ended_already(
    run: Run, double: Double
) -> None:
    first, second = run("bastion", "-q").out.strip(), run("web", "-q").out.strip()
    double.faults = [0, 10]
    done = interrupted(double, "revoke", first, second, when=lambda: double.calls("DELETE") == 2)
    assert done.code == 130
    assert f"revoked: bastion (22/tcp) from 203.0.113.7/32, grant {first}" in done.out
    assert f"whether grant {second} has ended is not known: look with `knock show {second}`" in done.err


def test_an_interruption_before_anything_was_sent_says_no_more(double: Double) -> None:
    double.no_room = 1000
    asked: list[float] = []

    def refused_and_waiting() -> bool:
        """Half a second after it was asked: the refusal has been read, and the next knock is seconds away."""
        if not asked and double.calls("POST") == 1:
            asked.append(time.monotonic())
        return bool(asked) and time.monotonic() > asked[0] + 0.5

    done = interrupted(double, "bastion", "--wait", "5m", when=refused_and_waiting)
    assert done.code == 130
    assert re.search(r"^knock: interrupted\n\Z", done.err, re.MULTILINE)
    assert os.environ["KNOCK_URL"] == double.url
