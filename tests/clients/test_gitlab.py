"""The GitLab template, its scripts run as the runner runs them.

before_script and script are one shell with `set -eo pipefail`, after_script is another, both in the
project's folder and with the job's variables. A cancelled job's first shell is killed; after_script runs
all the same. https://docs.gitlab.com/ci/yaml/#after_script
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.conftest import CLIENTS
from tests.clients.double import Double
from tests.conftest import program
from tests.waiting import wait_for

TEMPLATE: dict[str, Any] = yaml.safe_load((CLIENTS / "gitlab" / "knock.yml").read_text())[".knock"]


class Job:
    """One job that extends the template."""

    def __init__(self, project: Path, number: int, shell: list[str], **variables: str) -> None:
        self.project, self.shell = project, shell
        predefined = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "CI_PROJECT_DIR": str(project),
            "CI_PROJECT_PATH": "example/shop",
            "CI_JOB_NAME": "deploy",
            "CI_JOB_ID": str(number),
        }
        self.variables = predefined | TEMPLATE["variables"] | variables

    def start(self, *script: str) -> subprocess.Popen[str]:
        lines = [*TEMPLATE["before_script"], *script]
        return self.start_shell("\n".join([self.strict(), *lines]))

    def strict(self) -> str:
        """Give the shell's options as the runner sets them; dash has no pipefail."""
        return "set -e" if "dash" in self.shell[0] else "set -eo pipefail"

    def start_shell(self, text: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.shell, "-c", text],
            env=self.variables,
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *script: str) -> tuple[int, str]:
        running = self.start(*script)
        output, _ = running.communicate(timeout=30)
        return running.returncode, output

    def run_after_script(self) -> tuple[int, str]:
        running = self.start_shell("\n".join([self.strict(), *TEMPLATE["after_script"]]))
        output, _ = running.communicate(timeout=30)
        return running.returncode, output


MakeJob = Callable[..., Job]


@pytest.fixture
def job(double: Double, tmp_path: Path) -> MakeJob:
    (tmp_path / "ci").mkdir()
    shutil.copy(CLIENTS / "knock.sh", tmp_path / "ci")

    def make(number: int = 1, shell: str = "bash", **variables: str) -> Job:
        path = program(shell, f"apt install {shell}")
        access = {"KNOCK_URL": double.url, "KNOCK_API_KEY": double.keys["alice"]}
        return Job(tmp_path, number, [path], **access | variables)

    return make


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_job_has_access_while_it_runs_and_ends_its_grant_afterwards(
    job: MakeJob, double: Double, shell: str, tmp_path: Path
) -> None:
    deploy = job(shell=shell, KNOCK_TARGETS="bastion web", KNOCK_FOR="30m")
    code, output = deploy.run('test -n "$KNOCK_GRANT"', 'echo "deployed $KNOCK_GRANT"')
    (grant,) = double.grants.values()
    assert (code, output) == (0, f"deployed {grant['id']}\n")
    assert grant["status"] == "active"
    assert re.fullmatch(r"example/shop: deploy \[job 1 [0-9a-f]{16}\]", grant["reason"])
    assert [target["name"] for target in grant["targets"]] == ["bastion", "web"]
    assert deploy.run_after_script() == (0, f"revoked: {grant['id']}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["ci"]


def test_a_job_that_fails_or_is_cancelled_ends_its_grant(job: MakeJob, double: Double) -> None:
    failing = job(1)
    assert failing.run("false", "echo not reached") == (1, "")
    assert failing.run_after_script()[0] == 0
    cancelled = job(2)
    running = cancelled.start("echo in", "sleep 60")
    assert running.stdout is not None
    assert running.stdout.readline() == "in\n"
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=10)
    assert cancelled.run_after_script()[0] == 0
    assert [grant["status"] for grant in double.grants.values()] == ["revoked"] * 2


def test_two_jobs_in_one_folder_each_end_their_own_grant(job: MakeJob, double: Double) -> None:
    first_job, second_job = job(1), job(2)
    assert (first_job.run("true")[0], second_job.run("true")[0]) == (0, 0)
    first, second = double.grants.values()
    assert first_job.run_after_script()[0] == 0
    assert (first["status"], second["status"]) == ("revoked", "active")
    assert second_job.run_after_script()[0] == 0
    assert second["status"] == "revoked"


def test_a_job_that_is_killed_during_its_knock_ends_the_grant(
    job: MakeJob, double: Double, tmp_path: Path
) -> None:
    double.faults = [0.5]
    deploy = job()
    running = deploy.start("echo not reached")
    wait_for(lambda: double.calls("POST") == 1)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=10)
    code, output = deploy.run_after_script()
    (grant,) = double.grants.values()
    assert (code, output) == (0, f"revoked: {grant['id']}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["ci"]


def lost(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def uncertain(handler: BaseHTTPRequestHandler) -> None:
    body = b'{"type": "urn:knock:problem:engine-unavailable", "title": "t", "detail": "d", "grant_id": "a_b"}'
    answer(handler, 503, body)


def from_a_proxy(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 502, b"<html>")


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("reply", [lost, uncertain, from_a_proxy])
def test_a_job_whose_answer_was_lost_ends_its_grant_and_no_other(
    job: MakeJob, double: Double, reply: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    sibling = double.knock("alice", {"reason": "example/shop: deploy"})[2]["id"]

    def open_and_answer(handler: BaseHTTPRequestHandler) -> None:
        double.knock("alice", json.loads(double.requests[-1].body))
        reply(handler)

    double.faults = [open_and_answer]
    deploy = job()
    assert deploy.run("echo not reached")[0] in (1, 3)
    (grant,) = (candidate for candidate in double.grants.values() if candidate["id"] != sibling)
    assert grant["status"] == "active"
    code, output = deploy.run_after_script()
    assert code == 0
    assert output.startswith(f"revoked: {grant['id']}\n")
    assert grant["status"] == "revoked"
    assert double.grants[sibling]["status"] == "active"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_long_name_of_a_job_leaves_room_for_the_mark(job: MakeJob, double: Double, shell: str) -> None:
    deploy = job(
        shell=shell, CI_PROJECT_PATH="group/" * 30, CI_JOB_NAME="pr\u00fcfen: " * 20, CI_JOB_ID="9" * 19
    )
    assert deploy.run("true")[0] == 0
    (grant,) = double.grants.values()
    assert len(grant["reason"]) <= 256
    assert grant["reason"].startswith("group/group/")
    assert re.search(r": pr\?\?fen: p.* \[job 9{19} [0-9a-f]{16}\]$", grant["reason"])
    assert deploy.run_after_script()[1] == f"revoked: {grant['id']}\n"


def test_a_job_that_is_refused_fails_and_leaves_nothing_to_end(job: MakeJob, double: Double) -> None:
    deploy = job(KNOCK_TARGETS="vault")
    code, output = deploy.run("echo not reached")
    assert code == 1
    assert output.startswith("knock.sh: The key may not do this: the key may not open vault")
    code, output = deploy.run_after_script()
    assert code == 0
    assert output.startswith("knock.sh: no live grant of this key has a reason that ends with [job 1 ")
    assert double.calls("DELETE") == 0


def test_a_fork_without_the_variable_is_told_its_name(job: MakeJob, double: Double) -> None:
    deploy = job()
    del deploy.variables["KNOCK_API_KEY"]
    code, output = deploy.run("echo not reached")
    assert code == 2
    assert output.startswith("KNOCK_API_KEY is not set: forks, and branches that are not protected")
    assert deploy.run_after_script() == (0, "")
    assert double.requests == []
