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
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.conftest import CLIENTS, Api
from tests.clients.double import Double
from tests.conftest import program
from tests.waiting import wait_for

ACTION = CLIENTS / "github"
META: dict[str, Any] = yaml.safe_load((ACTION / "action.yml").read_text())
KNOWN = ("::add-mask::", "::error::", "::warning::")


class Job:
    """One job of a workflow that uses the action: `main` and `post` are its steps."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.node = program("node", "apt install nodejs")
        self.inputs = {name: declared.get("default", "") for name, declared in META["inputs"].items()}
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

    def wait(self, running: subprocess.Popen[str]) -> int:
        output, _ = running.communicate(timeout=30)
        self.log += output
        for name, values in (("STATE", self.state), ("OUTPUT", self.outputs)):
            text = (self.folder / name).read_text()
            entries = re.findall(r"^(\w+)<<(\w+)\n(.*?)\n\2\n", text, re.MULTILINE | re.DOTALL)
            values |= {key: value for key, _, value in entries}
        return running.returncode

    def run(self, step: str) -> int:
        return self.wait(self.start(step))


MakeJob = Callable[..., Job]


@pytest.fixture
def job(double: Double, tmp_path: Path) -> MakeJob:
    def make(**inputs: str) -> Job:
        return Job(tmp_path / f"job{len(list(tmp_path.iterdir()))}", **{"url": double.url} | inputs)

    return make


def test_a_job_opens_at_its_start_and_its_post_step_ends_it(api: Api, tmp_path: Path) -> None:
    deploy = Job(tmp_path / "job", url=api.url, key=api.keys["alice"], targets=" bastion\n web ", for_="30m")
    assert deploy.run("main") == 0, deploy.log
    assert api.lets_in("203.0.113.7/32", "bastion")
    grant = deploy.outputs["id"]
    assert set(deploy.outputs) == set(META["outputs"])
    assert deploy.outputs["source"] == "203.0.113.7/32"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", deploy.outputs["expires_at"])
    with api.client("alice") as client:
        opened = client.grant(grant)
        assert opened.duration == timedelta(minutes=30)
        assert re.fullmatch(r"example/shop: Deploy, run 77 \[job [0-9a-f]{16}\]", opened.reason or "")
        assert deploy.run("post") == 0
        assert client.grant(grant).status == "revoked"
    assert f"open: bastion web from 203.0.113.7/32 until {deploy.outputs['expires_at']}" in deploy.log
    assert f"\nrevoked: {grant}\n" in deploy.log
    assert not api.lets_in("203.0.113.7/32", "bastion")


def test_the_post_step_runs_always_and_each_declared_input_is_read() -> None:
    runs = META["runs"]
    assert runs["using"].startswith("node"), "other kinds of actions have no post step"
    assert runs["post-if"] == "always()"
    scripts = "".join(file.read_text() for file in ACTION.glob("*.js"))
    assert set(re.findall(r'\binput\("(\w+)"\)', scripts)) == set(META["inputs"])


def test_the_key_is_masked_before_anything_is_printed_and_is_nowhere_else(
    job: MakeJob, double: Double
) -> None:
    key = double.keys["alice"]
    deploy = job(key=key)
    double.faults = [0.5]
    running = deploy.start("main")
    wait_for(lambda: double.calls("POST") == 1)
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert deploy.wait(running) == 0
    assert deploy.run("post") == 0
    assert key not in listed
    assert deploy.log.startswith(f"::add-mask::{key}\n")
    assert deploy.log.count(key) == 2, "once in each step"
    assert key not in str(deploy.state) + str(deploy.outputs)


def test_a_job_that_was_cancelled_before_its_turn_ends_nothing(job: MakeJob, double: Double) -> None:
    deploy = job(key=double.keys["alice"])
    assert deploy.run("post") == 0
    assert (deploy.log, double.requests) == ("nothing was asked for, so nothing is open\n", [])


def test_a_grant_requested_by_a_killed_step_is_found_and_ended(job: MakeJob, double: Double) -> None:
    sibling = job(key=double.keys["alice"])
    assert sibling.run("main") == 0
    deploy = job(key=double.keys["alice"])
    double.page = 1
    double.faults = [0.5]
    running = deploy.start("main")
    wait_for(lambda: double.calls("POST") == 2)
    running.kill()
    assert deploy.wait(running) == -signal.SIGKILL
    assert "id" not in deploy.state
    wait_for(lambda: len(double.live("alice")) == 2)
    assert deploy.run("post") == 0
    assert [grant["id"] for grant in double.live("alice")] == [sibling.state["id"]]
    assert sibling.run("post") == 0
    assert double.live("alice") == []


def test_a_knock_that_never_arrived_leaves_nothing_to_end(job: MakeJob, double: Double) -> None:
    deploy = job(key=double.keys["alice"])
    double.faults = ["drop"]
    assert deploy.run("main") == 1
    assert "::error::the API at " in deploy.log
    assert deploy.run("post") == 0
    assert deploy.log.endswith("no grant of this job is live\n")


def test_a_step_that_is_cancelled_during_its_knock_reads_the_answer(job: MakeJob, double: Double) -> None:
    deploy = job(key=double.keys["alice"])
    double.faults = [0.5]
    running = deploy.start("main")
    wait_for(lambda: double.calls("POST") == 1)
    running.send_signal(signal.SIGINT)
    assert deploy.wait(running) == 1
    assert "cancelled; the post step ends what was opened" in deploy.log
    assert deploy.state["id"] in double.grants
    assert deploy.run("post") == 0
    assert double.live("alice") == []


@pytest.mark.parametrize("name", ["key", "url"])
def test_a_fork_without_secrets_is_told_which_variable_is_missing(
    job: MakeJob, double: Double, name: str
) -> None:
    deploy = job(**{"key": double.keys["alice"]} | {name: ""})
    assert deploy.run("main") == 1
    assert re.search(rf"^::error::the input {name} is empty: .*KNOCK_(API_KEY|URL)", deploy.log, re.MULTILINE)
    assert deploy.run("post") == 0
    assert (double.requests, deploy.state) == ([], {})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"targets": "bastion,web"}, "targets are separated by spaces: bastion web"),
        ({"for_": "5"}, "for: 5 what? Say 5m, 5h or 5s"),
        ({"wait": "5"}, 'wait: say how long, like 90s, 5m or 1h; "5" is none of them'),
        ({"url": "http://api.example.com/prod"}, "the input url must be https://HOST/STAGE"),
        ({"url": "https://me@api.example.com/prod"}, "the input url must be https://HOST/STAGE"),
        ({"key": "a\nb"}, "the input key holds a character that no API key has"),
    ],
)
def test_an_invalid_input_is_an_error_and_nothing_is_sent(
    job: MakeJob, double: Double, inputs: dict[str, str], message: str
) -> None:
    deploy = job(**{"key": double.keys["alice"]} | inputs)
    assert deploy.run("main") == 1
    assert f"::error::{message}" in deploy.log
    assert "::add-mask::a%0Ab" in deploy.log or inputs.get("key") is None, (
        "else a line of it would be in the log"
    )
    assert double.requests == []


def test_a_refusal_is_an_error_and_leaves_nothing_to_end(job: MakeJob, double: Double) -> None:
    deploy = job(key=double.keys["alice"], targets="vault")
    assert deploy.run("main") == 1
    assert (
        "::error::The key may not do this: the key may not open vault; it may open: bastion, web"
        in deploy.log
    )
    assert deploy.run("post") == 0
    assert len(double.requests) == 1
    unknown_key = job(key="x" * 30)
    assert unknown_key.run("main") == 1
    assert "::error::the gateway says: Forbidden" in unknown_key.log


FULL = {"type": "urn:knock:problem:pool-exhausted", "title": "There is no room", "detail": "bastion"}


def test_a_full_pool_is_waited_for(job: MakeJob, double: Double) -> None:
    double.faults = [(409, {}, FULL)]
    deploy = job(key=double.keys["alice"], wait="5m")
    assert deploy.run("main") == 0
    assert "there is no room: There is no room: bastion; trying again\n" in deploy.log
    double.faults = [(409, {}, FULL)]
    assert job(key=double.keys["alice"]).run("main") == 1


def test_a_pending_grant_is_waited_for_and_a_failed_one_is_an_error(job: MakeJob, double: Double) -> None:
    double.opens_after = 0.2
    deploy = job(key=double.keys["alice"])
    assert deploy.run("main") == 0
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
    bobs = double.knock("bob", {})[2]["id"]
    deploy = job(key=double.keys["alice"], wait="5m")

    def open_and_lose_the_answer(handler: BaseHTTPRequestHandler) -> None:
        double.opens_after, double.fails = 0, ""
        double.knock("alice", json.loads(double.requests[-1].body))
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    running = deploy.start("main")
    wait_for(lambda: double.calls("GET") == 1)
    double.faults = [open_and_lose_the_answer]
    assert deploy.wait(running) == 1
    assert double.calls("POST") == 2, deploy.log
    first, second = (grant for grant in double.grants.values() if grant["id"] != bobs)
    assert (deploy.state["id"], first["status"], second["status"]) == (first["id"], "failed", "active")
    double.faults = [(404, {}, {"title": "No such grant", "detail": "x"})]  # for the first grant
    assert deploy.run("post") == 0
    assert second["status"] == "revoked", deploy.log
    assert f"::warning::grant {first['id']} could not be ended" in deploy.log
    assert f"\nrevoked: {second['id']}\n" in deploy.log


def test_a_job_that_is_cancelled_while_it_waits_for_room_knocks_no_more(job: MakeJob, double: Double) -> None:
    deploy = job(key=double.keys["alice"], wait="5m")
    double.faults = [(409, {}, FULL)]
    running = deploy.start("main")
    assert running.stdout is not None
    while "there is no room" not in (line := running.stdout.readline()):
        assert line, "the step ended"
    running.send_signal(signal.SIGINT)
    assert deploy.wait(running) == 1
    assert (double.calls("POST"), double.grants) == (1, {})


def test_a_grant_that_may_have_been_opened_is_ended(job: MakeJob, double: Double) -> None:
    grant = double.knock("alice", {})[2]["id"]
    lost = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {}, lost | {"grant_id": grant})]
    deploy = job(key=double.keys["alice"])
    assert deploy.run("main") == 1
    assert deploy.run("post") == 0
    assert double.grants[grant]["status"] == "revoked"


def test_the_post_step_tries_again_and_at_last_warns_without_failing_the_job(
    job: MakeJob, double: Double
) -> None:
    deploy = job(key=double.keys["alice"])
    assert deploy.run("main") == 0
    double.faults = ["drop", (429, {}, {"message": "Too Many Requests"})]
    assert deploy.run("post") == 0
    assert double.live("alice") == []
    double.faults = ["drop"] * 4
    assert deploy.run("post") == 0
    assert (
        f"::warning::grant {deploy.state['id']} could not be ended, and ends at its own end: the API"
        in deploy.log
    )


@pytest.mark.parametrize(
    "words", ["  ::set-env name=PATH::/tmp", "\n ::stop-commands::x", " ##[add-path]/tmp"]
)
def test_no_status_is_a_command_to_the_runner(job: MakeJob, double: Double, words: str) -> None:
    deploy = job(key=double.keys["alice"])
    assert deploy.run("main") == 0
    double.faults = [(200, {}, {"id": deploy.state["id"], "status": words})]
    assert deploy.run("post") == 0
    commands = [line for line in deploy.log.splitlines() if line.lstrip().startswith("::") or "##[" in line]
    assert commands == [f"::add-mask::{double.keys['alice']}"] * 2, deploy.log


NASTY = "\x1b[2J\u202e\n::set-env name=PATH::/tmp\n##[add-path]/tmp"


def test_no_answer_is_a_command_to_the_runner(job: MakeJob, double: Double) -> None:
    grant = double.knock("alice", {})[2] | {"source": NASTY, "expires_at": NASTY}
    answers: list[tuple[int, Any]] = [
        (201, grant),
        (201, grant | {"id": NASTY}),
        (403, {"title": NASTY, "detail": NASTY}),
        (500, {"message": NASTY}),
        (200, NASTY.encode()),
        (200, b"[]"),
        (302, b""),
    ]
    elsewhere = Double()
    for status, answer in answers:
        double.faults = [(status, {"Location": f"{elsewhere.url}/whoami"}, answer)]
        deploy = job(key=double.keys["bob"])
        assert deploy.run("main") == (0 if answer == grant else 1), (deploy.log, answer)
        assert re.fullmatch(r"[\x20-\x7e\n]*", deploy.log), deploy.log
        commands = [line for line in deploy.log.splitlines() if line.lstrip().startswith("::")]
        assert all(line.startswith(KNOWN) for line in commands), deploy.log
        assert "##[" not in deploy.log
        assert "\n" not in "".join(deploy.outputs.values())
    assert elsewhere.requests == [], "the key is for one host"
    elsewhere.stop()
