"""The operators' documentation: every transcript is run again and compared.

`make docs` writes them anew. A transcript is a `console` block: a line that begins with `$ ` is run, the
lines after it are its answer. Between transcripts `<!-- do: … -->` names an event that readers do not see
(`Scene.do`). All pages, in the order in which docs/operators.md lists them, are one story against one local
stack: it takes seconds to start. Ids, times and values differ from run to run: constants of the same look
replace them (`Alike`).
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore.client import ClientCreator

from knock_admin import adopt, cli, doctor
from local.aws import make_tables
from tests.clients.admin_support import LOADER, client_class, tables
from tests.conftest import ROOT, WRITE_DOCS
from tests.docs.index import OPERATORS, commands, tasks
from tests.local_stack import LocalStack

REFERENCE = ROOT / "docs/operators-reference.md"
DOMAINS = {f"{kind}_domain": f"knock-{kind}-1c2fa620" for kind in ("trail", "ledger", "refusals")}
NAMED = "20261123T211719Z_9f86d081884c7d65"
BALANCERS = {"web": "50dc6c495c0c9188", "shop": "8c5e0d9a3b1f2e47"}
# Days that the pages name, and how many days from now they stand for: an end in the past has another message.
DAYS = {"2027-01-15": 47, "2027-01-31": 63}


def run(words: list[str]) -> str:
    """Run knock-admin in this process; give what a terminal would show."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        cli.main(words)
    return output.getvalue()


def answer(command: str) -> str:
    """Run a line of a page: knock-admin in this process, which saves time, and the AWS CLI in a shell."""
    if command.startswith("knock-admin "):
        return run(shlex.split(command)[1:])
    assert command.startswith("aws "), f"these pages run knock-admin and aws, not {command}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.stdout


class Scene:
    """A fresh local stack; nothing is added to it or removed from it for the pages."""

    def __init__(self, stack: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        self.stack = stack
        self.ec2 = self.client("ec2")
        self.gateway = self.client("apigateway")
        balancers = self.client("elbv2").describe_load_balancers()["LoadBalancers"]
        self.balancers = {balancer["LoadBalancerName"]: balancer["LoadBalancerArn"] for balancer in balancers}
        self.grants: dict[str, str] = {}
        self.month = f"{datetime.now(timezone.utc):%Y-%m}"

    def client(self, service: str) -> Any:
        return boto3.client(  # type: ignore[call-overload]  # the overloads want a literal
            service, self.stack["region"], endpoint_url=self.stack["aws_endpoint_url"]
        )

    def knock(self, name: str, **body: Any) -> None:
        """Knock with a key, from its own address; remember the grant."""
        keys = self.gateway.get_api_keys(includeValues=True)["items"]
        value = next(key["value"] for key in keys if key["name"] == name)
        request = urllib.request.Request(  # noqa: S310 - the local stack's own address
            f"{self.stack['api_url']}/knock",
            json.dumps(body).encode(),
            {"x-api-key": value, "X-Forwarded-For": "203.0.113.7"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
                self.grants[name] = json.load(answer)["id"]
        except urllib.error.HTTPError as refused:
            if refused.code != 403:
                raise

    def do(self, event: str, page: str) -> None:
        """Let something happen between two transcripts of a page."""
        if saving := re.fullmatch(r"save (\S+)", event):
            *_, saved = re.findall(r"^```csv\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
            (self.folder / saving[1]).write_text(self.real(saved))
            return
        events: dict[str, Callable[[], Any]] = {
            "alice knocks": lambda: self.knock(
                "alice", targets=["bastion"], duration="7h59m30s", reason="on call"
            ),
            "ci knocks": lambda: self.knock(
                "ci", targets=["web"], source="203.0.113.80/28", duration="29m50s", reason="build 1312"
            ),
            "bob knocks": lambda: self.knock(
                "bob", targets=["bastion"], duration="7h59m30s", reason="update"
            ),
            "builds asks for too much": lambda: self.knock("builds", targets=["bastion"]),
            "a second passes": lambda: time.sleep(1.0),  # its grants have been open for a second then
            "alice leaves": lambda: run(["revoke", self.grants["alice"]]),
            "bob leaves": lambda: run(["revoke", self.grants["bob"]]),
            "the stack keeps its trail in DynamoDB": lambda: self.change_store("dynamodb"),
            "the stack keeps its trail in SimpleDB": lambda: self.change_store("simpledb"),
        }
        events[event]()

    @staticmethod
    def day(days: int) -> str:
        """Give the day so many days from now."""
        return f"{datetime.now(timezone.utc) + timedelta(days=days):%Y-%m-%d}"

    def change_store(self, store: str) -> None:
        """Let the functions name another store, as a deployment with another TrailStore does."""
        functions = self.client("lambda")
        if store == "dynamodb":
            make_tables(tables(), self.client("dynamodb"))
        for function in functions.list_functions()["Functions"]:
            known = function["Environment"]["Variables"]
            for table in tables():
                name = f"{table.logical_id.removesuffix('Table').lower()}_domain"
                known[name.upper()] = table.name if store == "dynamodb" else self.stack[name]
            functions.update_function_configuration(
                FunctionName=function["FunctionName"],
                Environment={"Variables": known | {"TRAIL_STORE": store}},
            )

    def real(self, command: str) -> str:
        """Replace the names and days of the page by those of this run."""
        for page_day, days in DAYS.items():
            command = command.replace(page_day, self.day(days))
        command = command.replace("--month 2026-11", f"--month {self.month}")
        for name, page_domain in DOMAINS.items():
            command = command.replace(page_domain, self.stack[name])
        for grant in self.grants.values():
            command = command.replace(re.sub(r"\d{8}T\d{6}Z_[0-9a-f]{16}$", NAMED, grant), grant)
        return command


class Alike:
    """Replaces texts that differ from run to run by constants of the same length and look."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._known = {scene.stack[name]: page_domain for name, page_domain in DOMAINS.items()}
        for name, page_id in BALANCERS.items():
            self._known[scene.balancers[name].rpartition("/")[2]] = page_id
        self._known |= {scene.day(days): page_day for page_day, days in DAYS.items()}
        plan = scene.gateway.get_usage_plans()["items"][0]
        self._known[plan["id"]] = "p1l2a3n4x5"
        self._numbers: dict[str, str] = {}
        self._keys = 0
        self.learn_keys()

    def learn_keys(self) -> None:
        """Remember the ids and values of new keys, which no pattern would tell from other texts."""
        keys = self._scene.gateway.get_api_keys(includeValues=True)["items"]
        # Keys made by one command have the same second of creation: their names order them.
        for key in sorted(keys, key=lambda key: (self._keys > 0 and key["createdDate"], key["name"])):
            if key["id"] not in self._known:
                self._keys += 1
                self._known[key["id"]] = f"a1b2c3d4{self._keys:02}"
                self._known[key["value"]] = f"EXAMPLE{self._keys:02}kN0ckKnockkN0ckKnockkN0ckKnock1"[:40]

    def __call__(self, text: str) -> str:
        self.learn_keys()
        for real, alike in self._known.items():
            text = text.replace(real, alike)
        text = re.sub(r"\b(sg|sgr|vpc|eni)-[0-9a-f]{17}\b", self._numbered, text)
        text = re.sub(r"(?<=_)\d{8}T\d{6}Z_[0-9a-f]{16}", NAMED, text)
        text = re.sub(r"\brefusal_(\S{24})_[0-9a-f]{8}", r"refusal_\1_9f86d081", text)
        text = re.sub(r"\bdoctor-[0-9a-f]{8}", "doctor-0a1b2c3d", text)
        text = text.replace(f"Knock: {self._scene.month}", "Knock: 2026-11")
        text = re.sub(r"(?<=Z,)\d+\.\d+(?=,)", "12.345", text)  # the seconds of an overlap
        text = re.sub(r"\b0\.\d\d(?= \||$| hours)", "0.01", text, flags=re.MULTILINE)  # hours
        text = re.sub(r"(?<=:\d\d  )\d+s +(?=\S)", "12s      ", text)
        text = re.sub(r"(?<!\d)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2026-11-23T21:17:19.123Z", text)
        text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-11-24T05:17:20Z", text)
        text = re.sub(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-23 21:17:19", text)
        text = re.sub(
            r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "1a2b3c4d-0a1b-2c3d-4e5f-0a1b2c3d4e5f", text
        )
        return re.sub(r"\b29m\d\ds\b", "29m49s", text)

    def real(self, command: str) -> str:
        """Replace the ids of the page in a command by those of this run."""
        ids = {alike: real for real, alike in self._numbers.items()}
        return re.sub(
            r"\b(sg|sgr|vpc|eni)-[0-9a-f]{17}\b", lambda match: ids.get(match[0], match[0]), command
        )

    def _numbered(self, match: re.Match[str]) -> str:
        kind = match[1]
        if match[0] not in self._numbers:
            number = sum(known.startswith(f"{kind}-") for known in self._numbers) + 1
            self._numbers[match[0]] = f"{kind}-0a{number:015x}"
        return self._numbers[match[0]]


def played(page: str, scene: Scene, alike: Alike) -> str:
    """Play a page: give its text with the answers that its commands have now."""
    lines: list[str] = []
    inside = False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
        if inside and not line.startswith(("$ ", "```")):
            continue  # an old answer
        lines.append(line)
        if match := re.fullmatch(r"<!-- do: (.+) -->", line):
            scene.do(match[1], "\n".join(lines))
        if inside and line.startswith("$ "):
            lines += alike(answer(alike.real(scene.real(line[2:])))).splitlines()
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Write the reference: the help of every command."""
    lines = [
        "# knock-admin: every command's help",
        "",
        "Written by the program itself; `tests/clients/test_admin_docs.py` keeps it so.",
        "[Operating Knock](operators.md) shows the commands at work.",
    ]
    for prog, parser in _parsers(cli.make_parser()):
        help_lines = parser.format_help().splitlines()
        lines += [
            "",
            f"## {prog}",
            "",
            "```console",
            f"$ {prog} --help",
            *help_lines,
            "```",
        ]
    return "\n".join(lines) + "\n"


def _parsers(parser: Any) -> Iterator[tuple[str, Any]]:
    yield parser.prog, parser
    for action in parser._actions:
        for child in (action.choices or {}).values() if action.nargs == "A..." else ():
            yield from _parsers(child)


def play(pages: list[str], folder: Path) -> list[str]:
    """Play pages, one after the other, on a stack of their own."""
    config = folder / "config"
    # Version 1 of the AWS CLI needs this; the pages are written for version 2.
    config.write_text("[preview]\nsdb = true\n")
    with LocalStack.start(store="simpledb") as running, ExitStack() as patches:
        stack = running.summary
        environment = {
            "AWS_ENDPOINT_URL": stack["aws_endpoint_url"],
            "AWS_REGION": stack["region"],
            "KNOCK_URL": stack["api_url"],
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_CONFIG_FILE": str(config),
        }
        patches.enter_context(mock.patch.dict(os.environ, environment))
        patches.enter_context(mock.patch.object(doctor, "TEST_DURATION", 2))
        patches.enter_context(mock.patch.object(doctor, "PAUSE", 0.1))
        patches.enter_context(mock.patch.object(adopt, "FLIGHT", 0.0))
        patches.enter_context(mock.patch("botocore.session.create_loader", return_value=LOADER))
        patches.enter_context(mock.patch.object(ClientCreator, "_create_client_class", client_class))
        patches.enter_context(chdir(folder))
        scene = Scene(stack, folder)
        alike = Alike(scene)
        return [played(page, scene, alike) for page in pages]


@pytest.mark.timeout(180)
def test_every_transcript_is_what_the_commands_answer(tmp_path: Path) -> None:
    files = tasks(OPERATORS)
    pages = [file.read_text(encoding="utf-8") for file in files]
    assert sum(len(commands(page)) for page in pages) > 30
    for file, text, page in zip(files, play(pages, tmp_path), pages, strict=True):
        if WRITE_DOCS:
            file.write_text(text, encoding="utf-8")
        else:
            assert text == page, f"{file.name}: `make docs` writes the page: read what has changed"


def test_the_reference_has_the_help_of_every_command() -> None:
    if WRITE_DOCS:
        REFERENCE.write_text(reference(), encoding="utf-8")
    assert reference() == REFERENCE.read_text(encoding="utf-8"), "`make docs` writes it"
