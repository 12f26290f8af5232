"""The recipes for scripts, CI and Terraform in docs/jobs.md and docs/terraform.md.

Ansible is not among the tools of the gate, so its recipe is played here by what it uses of Ansible:
blocks with always, `uri`, `command`, `assert`, register, until, retries, when and failed_when, with
Jinja's own expressions. Terraform's is read: what it says about groups, tags and rules.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

from tests.clients.conftest import CLIENTS, ROOT, Result
from tests.clients.double import Double
from tests.conftest import program

EXAMPLES = ROOT / "docs" / "examples"
JOBS = (ROOT / "docs" / "jobs.md").read_text()
(PLAY,) = yaml.safe_load((EXAMPLES / "ansible.yml").read_text())
OF_A_TASK = {
    "name", "when", "register", "until", "retries", "delay", "failed_when", "changed_when", "no_log",
    "delegate_to", "run_once", "ignore_unreachable", "ansible.builtin.uri", "ansible.builtin.command",
    "ansible.builtin.assert",
}  # fmt: skip


class Failed(Exception):
    """A task failed."""


class Unreachable(Exception):
    """A host cannot be reached, and the task does not say to go on: Ansible stops there, without `always`."""


class Player:
    """Plays the tasks of a play as Ansible does, as far as the recipe needs it."""

    def __init__(self, environment: dict[str, str], *, reached: bool = True, **extra: str) -> None:
        self.reached = reached
        self.jinja = NativeEnvironment(autoescape=False)
        self.jinja.globals["lookup"] = lambda _kind, name: environment[name]
        self.facts: dict[str, Any] = dict(extra)
        self.facts |= {name: self.value(value) for name, value in PLAY["vars"].items()}

    def value(self, template: Any) -> Any:
        if isinstance(template, dict):
            return {key: self.value(part) for key, part in template.items()}
        if isinstance(template, list):
            return [self.value(part) for part in template]
        return self.jinja.from_string(template).render(self.facts) if isinstance(template, str) else template

    def holds(self, expression: str) -> bool:
        return bool(self.jinja.compile_expression(expression)(**self.facts))

    def play(self) -> None:
        for block in PLAY["tasks"]:
            failed: Failed | None = None
            try:
                for task in block["block"]:
                    self.task(task)
            except Failed as error:
                failed = error
            for task in block["always"]:
                self.task(task)
            if failed:
                raise failed

    def task(self, task: dict[str, Any]) -> None:
        assert set(task) <= OF_A_TASK, f"Ansible or this player knows no {set(task) - OF_A_TASK}"
        if "when" in task and not self.holds(task["when"]):
            return
        for retries_left in range(task.get("retries", 0), -1, -1):
            failed, result = self.execute(task)
            self.facts[task.get("register", "_")] = result
            if "until" not in task or self.holds(task["until"]):
                break
            failed = True
            if retries_left:
                time.sleep(min(task["delay"], 0.05))
        if "failed_when" in task:
            failed = self.holds(task["failed_when"])
        if failed:
            raise Failed(task["name"])

    def execute(self, task: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        if assertion := task.get("ansible.builtin.assert"):
            return not self.holds(assertion["that"]), {}
        if command := task.get("ansible.builtin.command"):
            if not self.reached:
                if not task.get("ignore_unreachable"):
                    raise Unreachable
                return False, {"unreachable": True}
            process = subprocess.run(self.value(command).split(), check=False)
            return process.returncode != 0, {"rc": process.returncode}
        call = self.value(task["ansible.builtin.uri"])
        body = json.dumps(call["body"]).encode() if "body" in call else None
        url = urlsplit(call["url"])
        with closing(http.client.HTTPConnection(url.netloc, timeout=10)) as api:
            try:
                api.request(call.get("method", "GET"), url.path, body, call["headers"])
                answer = api.getresponse()
                result = {"status": answer.status, "json": json.load(answer)}
            except OSError:
                result = {"status": -1}
        return result["status"] not in call.get("status_code", [200]), result


@pytest.fixture
def ansible(double: Double) -> dict[str, str]:
    return {"KNOCK_URL": double.url, "KNOCK_API_KEY": double.keys["alice"]}


def test_the_ansible_recipe_opens_for_its_tasks_and_ends_what_it_opened(
    double: Double, ansible: dict[str, str]
) -> None:
    double.opens_after = 0.2
    Player(ansible, deploy="true").play()
    (grant,) = double.grants.values()
    assert (grant["status"], grant["reason"]) == ("revoked", "ansible")
    assert [event["event"] for event in grant["events"]] == ["requested", "authorized", "revoked"]


def test_the_ansible_recipe_ends_what_it_opened_when_a_task_fails_or_an_answer_is_lost(
    double: Double, ansible: dict[str, str]
) -> None:
    with pytest.raises(Failed, match="Deploy"):
        Player(ansible, deploy="false").play()
    double.faults = [0, 0, "drop"]
    Player(ansible, deploy="true").play()
    with pytest.raises(Failed, match="Every host was reached"):
        Player(ansible, reached=False, deploy="true").play()
    double.opens_after, double.fails = 0.1, "PoolExhausted: full"
    with pytest.raises(Failed, match="Wait until it is open"):
        Player(ansible, deploy="true").play()
    assert [grant["status"] for grant in double.grants.values()] == [*["revoked"] * 3, "failed"]


def test_the_ansible_recipe_ends_nothing_when_the_knock_is_refused(double: Double) -> None:
    with pytest.raises(Failed, match=r"^Knock$"):
        Player({"KNOCK_URL": double.url, "KNOCK_API_KEY": "x" * 30}).play()
    assert len(double.requests) == 1


def test_the_ansible_recipe_gathers_no_facts_through_the_shut_door_and_logs_no_key() -> None:
    assert PLAY["gather_facts"] is False
    calls = [
        task for part in PLAY["tasks"][0].values() if isinstance(part, list) for task in part
        if "ansible.builtin.uri" in task
    ]  # fmt: skip
    assert len(calls) == 3
    assert all(task["no_log"] and task["run_once"] and task["delegate_to"] == "localhost" for task in calls)


def yaml_blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", JOBS, re.DOTALL)]


def test_the_workflow_on_the_page_gives_the_action_what_it_knows() -> None:
    (workflow,) = (block for block in yaml_blocks() if "jobs" in block)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    (knock_step,) = (step for step in steps if "/clients/github@" in step.get("uses", ""))
    inputs = yaml.safe_load((CLIENTS / "github" / "action.yml").read_text())["inputs"]
    assert set(knock_step["with"]) <= set(inputs)
    assert {name for name, declared in inputs.items() if declared.get("required")} <= set(knock_step["with"])
    assert knock_step["with"]["key"] == "${{ secrets.KNOCK_API_KEY }}"


def test_the_gitlab_job_on_the_page_extends_the_template_and_sets_what_it_knows() -> None:
    (pipeline,) = (block for block in yaml_blocks() if "include" in block)
    template = yaml.safe_load((CLIENTS / "gitlab" / "knock.yml").read_text())[".knock"]
    (job,) = (entry for entry in pipeline.values() if isinstance(entry, dict) and "extends" in entry)
    assert job["extends"] == ".knock"
    assert set(job["variables"]) <= set(template["variables"])
    assert not {"before_script", "after_script"} & set(job)


# ---------------------------------------------------------------------- a shell script


@pytest.fixture
def script(double: Double, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script on the page, with knock.sh on its PATH."""
    program("curl", "apt install curl")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "knock.sh").symlink_to(CLIENTS / "knock.sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    (text,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", JOBS, re.DOTALL)
    file = tmp_path / "backup"
    file.write_text(text)
    return file


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_script_on_the_page_closes_behind_itself(
    script: Path, double: Double, spawn: Callable[..., Result], shell: str
) -> None:
    result = spawn(program(shell, f"apt install {shell}"), str(script))
    assert result == Result(0, "the backup runs\n", "")
    script.write_text(script.read_text().replace("echo", "false"))
    assert spawn(shell, str(script)).code == 1
    script.write_text(script.read_text().replace("false", "echo in; sleep 5 #"))
    with subprocess.Popen([shell, script], stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"in\n"
        os.killpg(running.pid, signal.SIGTERM)
    assert running.returncode == 1
    assert [(grant["status"], grant["reason"]) for grant in double.grants.values()] == [
        ("revoked", "backup")
    ] * 3


# ---------------------------------------------------------------------- Terraform


def resources() -> dict[tuple[str, str], str]:
    """Give the text of each resource of the example, by type and name."""
    text = (EXAMPLES / "terraform.tf").read_text()
    blocks = re.findall(r'^resource "(\w+)" "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL)
    return {(kind, name): body for kind, name, body in blocks}


def test_the_terraform_example_has_no_rule_within_a_group() -> None:
    groups = [body for (kind, _), body in resources().items() if kind == "aws_security_group"]
    assert len(groups) == 2
    for body in groups:
        assert not re.search(r"^\s*(ingress|egress)\b", body, re.MULTILINE)
    kinds = {kind for kind, _ in resources()}
    assert {"aws_vpc_security_group_ingress_rule", "aws_vpc_security_group_egress_rule"} <= kinds
    assert not {"aws_security_group_rule", "aws_vpc_security_group_rules_exclusive"} & kinds


def test_the_tags_of_the_terraform_example_make_a_target() -> None:
    from grants.policy import read_targets

    body = resources()["aws_security_group", "knock_bastion"]
    tags = dict(re.findall(r'"(knock:\w+)"\s*=\s*"?([^"\n]+)"?', body))
    assert tags.pop("knock:stack") == "var.knock_stack"
    targets, faults = read_targets({"sg-1": tags, "sg-2": tags})
    assert faults == []
    assert targets["bastion"].groups == ("sg-1", "sg-2")
    assert [str(ports) for ports in targets["bastion"].ports] == ["22/tcp"]
    instance = resources()["aws_instance", "bastion"]
    assert "aws_security_group.knock_bastion[*].id" in instance, (
        "a group that is attached to nothing guards nothing"
    )
