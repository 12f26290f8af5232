"""The GitHub action, its steps run as the runner runs them.

The runner gives a step its inputs as INPUT_*, what an earlier step of the same action noted as STATE_*,
and files to write states and outputs to; it reads these however the step ended. What a step prints at
the start of a line, blanks aside, after two colons is a command.
https://github.com/actions/runner, `ActionRunner.cs`, `ActionCommand.cs`
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.conftest import CLIENTS, Api, wait_until
from tests.clients.double import Double
from tests.conftest import program

ACTION = CLIENTS / "github"
META: dict[str, Any] = yaml.safe_load((ACTION / "action.yml").read_text())
KNOWN = ("::add-mask::", "::error::", "::warning::")


class Job:
    """One job of a workflow that uses the action: `main` and `post` are its steps."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.node = program("node", "apt install nodejs")
        self.inputs = {name: one.get("default", "") for name, one in META["inputs"].items()}
        self.inputs |= {name.removesuffix("_"): value for name, value in inputs.items()}
        self.state: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.log = ""

    def start(self, step: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "GITHUB_REPOSITORY": "example/shop",
            "GITHUB_WORKFLOW": "Deploy",
            "GITHUB_RUN_ID": "77",
        }
        environment |= {f"INPUT_{name.upper()}": value for name, value in self.inputs.items()}
        environment |= {f"STATE_{name}": value for name, value in self.state.items()}
        for name in ("STATE", "OUTPUT"):
            (self.folder / name).write_text("")
            environment[f"GITHUB_{name}"] = str(self.folder / name)
        return subprocess.Popen(
            [self.node, ACTION / META["runs"][step]],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, running: subprocess.Popen[str]) -> int:
        said, _ = running.communicate(timeout=30)
        self.log += said
        for name, kept in (("STATE", self.state), ("OUTPUT", self.outputs)):
            written = (self.folder / name).read_text()
            found = re.findall(r"^(\w+)<<(\w+)\n(.*?)\n\2\n", written, re.MULTILINE | re.DOTALL)
            kept |= {key: value for key, _, value in found}
        return running.returncode

    def run(self, step: str) -> int:
        return self.end(self.start(step))


MakeJob = Callable[..., Job]


@pytest.fixture
def job(double: Double, tmp_path: Path) -> MakeJob:
    def make(**inputs: str) -> Job:
        return Job(tmp_path / f"job{len(list(tmp_path.iterdir()))}", **{"url": double.url} | inputs)

    return make


def test_a_job_opens_at_its_start_and_its_post_step_ends_it(api: Api, tmp_path: Path) -> None:
    mine = Job(tmp_path / "job", url=api.url, key=api.keys["alice"], targets=" bastion\n web ", for_="30m")
    assert mine.run("main") == 0, mine.log
    assert api.lets_in("203.0.113.7/32", "bastion")
    grant = mine.outputs["id"]
    assert mine.outputs["source"] == "203.0.113.7/32"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", mine.outputs["expires_at"])
    with api.client("alice") as client:
        opened = client.grant(grant)
        assert 1700 < opened.seconds_left <= 1800
        assert re.fullmatch(r"example/shop: Deploy, run 77 \[job [0-9a-f]{16}\]", opened.reason or "")
        assert mine.run("post") == 0
        assert client.grant(grant).status == "revoked"
    assert f"open: bastion web from 203.0.113.7/32 until {mine.outputs['expires_at']}" in mine.log
    assert f"\nrevoked: {grant}\n" in mine.log
    assert not api.lets_in("203.0.113.7/32", "bastion")


def test_the_post_step_runs_always_and_every_input_is_told() -> None:
    runs = META["runs"]
    assert (runs["using"], runs["post-if"]) == ("node24", "always()")
    assert {"url", "key", "targets", "for", "reason", "wait"} == set(META["inputs"])
    assert {"id", "expires_at", "source"} == set(META["outputs"])


def test_the_key_is_masked_before_anything_is_said_and_is_nowhere_else(job: MakeJob, double: Double) -> None:
    key = double.keys["alice"]
    mine = job(key=key)
    double.faults = [0.5]
    running = mine.start("main")
    wait_until(lambda: double.calls("POST") == 1)
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert mine.end(running) == 0
    assert mine.run("post") == 0
    assert key not in listed
    assert mine.log.startswith(f"::add-mask::{key}\n")
    assert mine.log.count(key) == 2, "once a step"
    assert key not in str(mine.state) + str(mine.outputs)


def test_a_job_that_was_cancelled_before_its_turn_ends_nothing(job: MakeJob, double: Double) -> None:
    mine = job(key=double.keys["alice"])
    assert mine.run("post") == 0
    assert (mine.log, double.seen) == ("nothing was asked for, so nothing is open\n", [])


def test_what_a_killed_step_asked_for_is_found_and_ended(job: MakeJob, double: Double) -> None:
    others = job(key=double.keys["alice"])
    assert others.run("main") == 0
    mine = job(key=double.keys["alice"])
    double.page = 1
    double.faults = [0.5]
    running = mine.start("main")
    wait_until(lambda: double.calls("POST") == 2)
    running.kill()
    assert mine.end(running) == -signal.SIGKILL
    assert "id" not in mine.state
    wait_until(lambda: len(double.live("alice")) == 2)
    assert mine.run("post") == 0
    assert [grant["id"] for grant in double.live("alice")] == [others.state["id"]]
    assert others.run("post") == 0
    assert double.live("alice") == []


def test_a_step_killed_before_it_asked_leaves_nothing_to_end(job: MakeJob, double: Double) -> None:
    mine = job(key=double.keys["alice"])
    double.faults = ["drop"]
    assert mine.run("main") == 1
    assert "::error::the API at " in mine.log
    assert mine.run("post") == 0
    assert mine.log.endswith("no grant of this job is live\n")


def test_a_step_that_is_cancelled_while_it_asks_hears_the_answer(job: MakeJob, double: Double) -> None:
    mine = job(key=double.keys["alice"])
    double.faults = [0.5]
    running = mine.start("main")
    wait_until(lambda: double.calls("POST") == 1)
    running.send_signal(signal.SIGINT)
    assert mine.end(running) == 1
    assert "cancelled; the post step ends what was opened" in mine.log
    assert mine.state["id"] in double.grants
    assert mine.run("post") == 0
    assert double.live("alice") == []


@pytest.mark.parametrize("name", ["key", "url"])
def test_a_fork_without_secrets_is_told_which_variable_is_missing(
    job: MakeJob, double: Double, name: str
) -> None:
    mine = job(**{"key": double.keys["alice"]} | {name: ""})
    assert mine.run("main") == 1
    assert re.search(rf"^::error::the input {name} is empty: .*KNOCK_(API_KEY|URL)", mine.log, re.MULTILINE)
    assert mine.run("post") == 0
    assert (double.seen, mine.state) == ([], {})


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"targets": "bastion,web"}, "targets are separated by spaces: bastion web"),
        ({"for_": "5"}, "for: 5 what? Say 5m, 5h or 5s"),
        ({"wait": "5"}, 'wait: say how long, like 90s, 5m or 1h; "5" is none of them'),
        ({"url": "http://api.example.com/prod"}, "the input url must be https://HOST/STAGE"),
        ({"url": "https://me@api.example.com/prod"}, "the input url must be https://HOST/STAGE"),
        ({"key": "a\nb"}, "the input key holds a character that no API key has"),
    ],
)
def test_what_is_given_wrong_is_told_and_nothing_is_sent(
    job: MakeJob, double: Double, inputs: dict[str, str], told: str
) -> None:
    mine = job(**{"key": double.keys["alice"]} | inputs)
    assert mine.run("main") == 1
    assert f"::error::{told}" in mine.log
    assert "::add-mask::a%0Ab" in mine.log or inputs.get("key") is None, "or a line of it would be in the log"
    assert double.seen == []


def test_a_refusal_is_told_and_leaves_nothing_to_end(job: MakeJob, double: Double) -> None:
    mine = job(key=double.keys["alice"], targets="vault")
    assert mine.run("main") == 1
    assert (
        "::error::The key may not do this: the key may not open vault; it may open: bastion, web" in mine.log
    )
    assert mine.run("post") == 0
    assert len(double.seen) == 1
    wrong = job(key="x" * 30)
    assert wrong.run("main") == 1
    assert "::error::the gateway says: Forbidden" in wrong.log


FULL = {"type": "urn:knock:problem:pool-exhausted", "title": "There is no room", "detail": "bastion"}


def test_a_full_pool_is_waited_for(job: MakeJob, double: Double) -> None:
    double.faults = [(409, {}, FULL)]
    mine = job(key=double.keys["alice"], wait="5m")
    assert mine.run("main") == 0
    assert "there is no room: There is no room: bastion; trying again\n" in mine.log
    double.faults = [(409, {}, FULL)]
    assert job(key=double.keys["alice"]).run("main") == 1


def test_a_pending_grant_is_waited_for_and_one_that_fails_is_told(job: MakeJob, double: Double) -> None:
    double.opens_after = 0.2
    mine = job(key=double.keys["alice"])
    assert mine.run("main") == 0
    double.fails = "PoolExhausted: full"
    failed = job(key=double.keys["alice"], wait="2s")
    assert failed.run("main") == 1
    assert "is failed: PoolExhausted: full" in failed.log
    assert double.calls("POST") == 3
    assert failed.run("post") == 0
    assert failed.log.endswith(f"failed: {failed.state['id']}\n")


def test_a_lost_second_knock_is_found_behind_the_grant_that_failed_first(
    job: MakeJob, double: Double
) -> None:
    double.opens_after, double.fails = 0.2, "PoolExhausted: full"
    others = double.knock("bob", {})[2]["id"]
    mine = job(key=double.keys["alice"], wait="5m")

    def open_and_be_lost(handler: BaseHTTPRequestHandler) -> None:
        double.opens_after, double.fails = 0, ""
        double.knock("alice", json.loads(double.seen[-1][3]))
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    running = mine.start("main")
    wait_until(lambda: double.calls("GET") == 1)
    double.faults = [open_and_be_lost]
    assert mine.end(running) == 1
    assert double.calls("POST") == 2, mine.log
    first, second = (grant for grant in double.grants.values() if grant["id"] != others)
    assert (mine.state["id"], first["status"], second["status"]) == (first["id"], "failed", "active")
    double.faults = [(404, {}, {"title": "No such grant", "detail": "x"})]  # nor does this keep it open
    assert mine.run("post") == 0
    assert second["status"] == "revoked", mine.log
    assert f"::warning::grant {first['id']} could not be ended" in mine.log
    assert f"\nrevoked: {second['id']}\n" in mine.log


def test_a_job_that_is_cancelled_while_it_waits_for_room_knocks_no_more(job: MakeJob, double: Double) -> None:
    mine = job(key=double.keys["alice"], wait="5m")
    double.faults = [(409, {}, FULL)]
    running = mine.start("main")
    assert running.stdout is not None
    while "there is no room" not in (line := running.stdout.readline()):
        assert line, "it ended"
    running.send_signal(signal.SIGINT)
    assert mine.end(running) == 1
    assert (double.calls("POST"), double.grants) == (1, {})


def test_a_grant_that_may_have_been_opened_is_ended(job: MakeJob, double: Double) -> None:
    grant = double.knock("alice", {})[2]["id"]
    lost = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {}, lost | {"grant_id": grant})]
    mine = job(key=double.keys["alice"])
    assert mine.run("main") == 1
    assert mine.run("post") == 0
    assert double.grants[grant]["status"] == "revoked"


def test_the_post_step_tries_again_and_at_last_warns_without_failing_the_job(
    job: MakeJob, double: Double
) -> None:
    mine = job(key=double.keys["alice"])
    assert mine.run("main") == 0
    double.faults = ["drop", (429, {}, {"message": "Too Many Requests"})]
    assert mine.run("post") == 0
    assert double.live("alice") == []
    double.faults = ["drop"] * 4
    assert mine.run("post") == 0
    assert (
        f"::warning::grant {mine.state['id']} could not be ended, and ends at its own end: the API"
        in mine.log
    )


@pytest.mark.parametrize(
    "words", ["  ::set-env name=PATH::/tmp", "\n ::stop-commands::x", " ##[add-path]/tmp"]
)
def test_no_status_is_a_command_to_the_runner(job: MakeJob, double: Double, words: str) -> None:
    mine = job(key=double.keys["alice"])
    assert mine.run("main") == 0
    double.faults = [(200, {}, {"id": mine.state["id"], "status": words})]
    assert mine.run("post") == 0
    commands = [line for line in mine.log.splitlines() if line.lstrip().startswith("::") or "##[" in line]
    assert commands == [f"::add-mask::{double.keys['alice']}"] * 2, mine.log


NASTY = "\x1b[2J\u202e\n::set-env name=PATH::/tmp\n##[add-path]/tmp"


def test_no_answer_is_a_command_to_the_runner(job: MakeJob, double: Double) -> None:
    odd = double.knock("alice", {})[2] | {"source": NASTY, "expires_at": NASTY}
    answers: list[tuple[int, Any]] = [
        (201, odd),
        (201, odd | {"id": NASTY}),
        (403, {"title": NASTY, "detail": NASTY}),
        (500, {"message": NASTY}),
        (200, NASTY.encode()),
        (200, b"[]"),
        (302, b""),
    ]
    elsewhere = Double()
    for status, answer in answers:
        double.faults = [(status, {"Location": f"{elsewhere.url}/whoami"}, answer)]
        mine = job(key=double.keys["bob"])
        assert mine.run("main") == (0 if answer == odd else 1), (mine.log, answer)
        assert re.fullmatch(r"[\x20-\x7e\n]*", mine.log), mine.log
        commands = [line for line in mine.log.splitlines() if line.lstrip().startswith("::")]
        assert all(line.startswith(KNOWN) for line in commands), mine.log
        assert "##[" not in mine.log
        assert "\n" not in "".join(mine.outputs.values())
    assert elsewhere.seen == [], "the key is for one host"
    elsewhere.stop()
