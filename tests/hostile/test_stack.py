"""The hostile stack over HTTP, with a fixed seed: the main job, a storm, a stop, and the clients.

Delays are scaled to a tenth, so the tests wait for seconds. They see the rules as they really are with an
access key of its own (local.hostile.TRUTH). The variable HOSTILE_SEED has them run with another seed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from local.hostile import TRUTH, Plan
from tests.conftest import ROOT
from tests.e2e.conftest import Stack
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)

SEED = Plan(int(os.environ.get("HOSTILE_SEED", "12")), scale=0.1)
MINUTE = 60.0
PENDING = 4 * MINUTE  # the longest that a knock may be pending: Knock's own times are not scaled
TRANSIENT = (1, 3, 4)  # the clients' exit codes for transient errors


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    errors = tmp_path_factory.mktemp("hostile") / "errors"
    options = "--hostile", str(SEED.seed), "--hostile-scale", str(SEED.scale)
    with errors.open("wb") as to, Stack.start(*options, errors=to) as running:
        yield running
    assert "Traceback" not in errors.read_text(), errors.read_text()


def truly(stack: Stack, service: Any) -> Any:
    """Make a client that sees AWS as it is."""
    return boto3.client(
        service,
        endpoint_url=stack.aws_endpoint_url,
        region_name=stack.region,
        aws_access_key_id=TRUTH,
        aws_secret_access_key="any",
    )


def open_ports(stack: Stack, cidr: str) -> set[int]:
    """List the ports that are really open to a source."""
    rules = truly(stack, "ec2").describe_security_group_rules()["SecurityGroupRules"]
    return {rule["FromPort"] for rule in rules if cidr in (rule.get("CidrIpv4"), rule.get("CidrIpv6"))}


def patiently(ask: Callable[[], requests.Response]) -> requests.Response:
    """Send a request again after each transient error, when its Retry-After is over."""
    deadline = time.monotonic() + PENDING
    while True:
        answer = ask()
        if answer.status_code not in (429, 500, 503):
            return answer
        if answer.status_code == 500:  # Lambda refused to run one function more: no effect
            assert answer.json() == {"message": "Internal server error"}, answer.text
        if answer.status_code != 429:
            assert "Retry-After" in answer.headers, answer.text
        assert time.monotonic() < deadline, f"refused for too long: {answer.status_code} {answer.text}"
        time.sleep(float(answer.headers.get("Retry-After", "1")) * random.uniform(0.5, 1))  # noqa: S311


def knock(stack: Stack, caller: str, key: str = "alice", **body: Any) -> dict[str, Any]:
    """Knock, and wait until the grant is no longer pending."""
    answer = patiently(lambda: stack.call("POST", "/knock", key, caller, json=body))
    assert answer.status_code in (201, 202), answer.text
    grant: dict[str, Any] = answer.json()
    deadline = time.monotonic() + PENDING
    while grant["status"] == "pending":
        assert time.monotonic() < deadline, f"answered 202, and never active: {grant}"
        time.sleep(0.5)
        grant = show(stack, grant["id"], key)
    return grant


def show(stack: Stack, grant_id: str, key: str = "operator") -> dict[str, Any]:
    answer = patiently(lambda: stack.call("GET", f"/grants/{grant_id}", key))
    assert answer.status_code == 200, answer.text
    grant: dict[str, Any] = answer.json()
    return grant


def ended(stack: Stack, grant_id: str) -> dict[str, Any]:
    """Wait until the trail says how a grant ended, and give it.

    test_morning.py checks when it is closed on record. Where the answer to the revocation of a young rule was
    lost, that takes three minutes of Knock's own, after which NotFound proves that the rule is gone.
    """
    deadline = time.monotonic() + MINUTE
    while not (grant := show(stack, grant_id))["ended_at"]:  # its status is expired as soon as its time is up
        assert time.monotonic() < deadline, f"it has not ended: {grant}"
        time.sleep(0.5)
    return grant


def shut(stack: Stack, cidr: str) -> None:
    """Wait until no port is open to a source, a minute at most."""
    wait_for(
        lambda: not open_ports(stack, cidr),
        "a port is open a minute after the end",
        MINUTE,
        pause=0.3,
        longest=0.3,
    )


def end(stack: Stack, grant_id: str, key: str = "alice") -> None:
    """End a grant; after an answer of 503 its closing goes on by itself."""
    answer = stack.call("DELETE", f"/grants/{grant_id}", key)
    while answer.status_code != 200 and show(stack, grant_id)["status"] in ("pending", "active"):
        answer = patiently(lambda: stack.call("DELETE", f"/grants/{grant_id}", key))
    assert answer.status_code in (200, 503), answer.text


def event_names(grant: dict[str, Any]) -> list[str]:
    return [event["event"] for event in grant["events"]]


def test_the_stack_prints_its_plan_with_the_seed(stack: Stack) -> None:
    assert stack.hostile == SEED.as_json()


@pytest.mark.parametrize(("caller", "suffix"), [("203.0.113.21", "/32"), ("2001:db8::21", "/128")])
def test_a_grant_is_open_when_it_is_active_and_shut_within_a_minute_of_its_end(
    stack: Stack, caller: str, suffix: str
) -> None:
    grant = knock(stack, caller, duration="6s")
    if grant["status"] == "active":
        assert open_ports(stack, caller + suffix) == {22, 80, 443}
    record = ended(stack, grant["id"])
    shut(stack, caller + suffix)
    ends = datetime.fromisoformat(grant["expires_at"].replace("Z", "+00:00"))
    assert datetime.fromisoformat(record["ended_at"].replace("Z", "+00:00")) >= ends, "it was cut short"
    assert (record["status"], event_names(record)[:3]) == ("expired", ["requested", "authorized", "expired"])


def test_two_people_behind_one_address_share_rules_until_the_last_grant_ends(stack: Stack) -> None:
    cidr = "203.0.113.27/32"
    first, second = knock(stack, "203.0.113.27"), knock(stack, "203.0.113.27", "bob")
    end(stack, first["id"])
    assert ended(stack, first["id"])["status"] == "revoked"
    assert open_ports(stack, cidr) == {22, 80, 443}
    renewed = knock(stack, "203.0.113.27", "bob", renews=second["id"])
    assert ended(stack, second["id"])["status"] == "superseded"
    assert open_ports(stack, cidr) == {22, 80, 443}
    end(stack, renewed["id"], "bob")
    assert ended(stack, renewed["id"])["status"] == "revoked"
    shut(stack, cidr)


def test_stopping_an_execution_closes_the_grant_unless_the_stop_event_was_lost(stack: Stack) -> None:
    grant = knock(stack, "203.0.113.25")
    truly(stack, "stepfunctions").stop_execution(executionArn=grant["execution_arn"], cause="laptop stolen")
    deadline = time.monotonic() + MINUTE
    while open_ports(stack, "203.0.113.25/32"):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    if event_was_lost(stack, grant["id"]):
        return  # the guard closes it: tests/hostile/test_morning.py runs the guard
    assert not open_ports(stack, "203.0.113.25/32")
    record = ended(stack, grant["id"])
    assert (record["status"], record["ended_by"]) == ("revoked", "an AWS operator")
    assert "laptop stolen" in json.dumps(record["events"])


def event_was_lost(stack: Stack, grant_id: str) -> bool:
    """Say whether no closing was started for a grant that was stopped."""
    states = truly(stack, "stepfunctions")
    executions = states.list_executions(stateMachineArn=stack.closings_arn, maxResults=1000)["executions"]
    inputs = [
        states.describe_execution(executionArn=execution["executionArn"])["input"] for execution in executions
    ]
    return not any(grant_id in text for text in inputs)


def test_a_storm_of_more_knocks_than_functions_may_run_loses_no_grant_and_leaves_no_rule(
    stack: Stack,
) -> None:
    callers = [f"198.51.100.{number}" for number in range(1, 17)]

    def knock_and_check(caller: str) -> dict[str, Any]:
        own = Stack(stack.process, stack.summary, stack.engine, stack.store)  # a connection of its own
        grant = knock(own, caller, "ci", targets=["bastion"], duration="1h")
        assert open_ports(own, f"{caller}/32") == {22}
        return grant

    with ThreadPoolExecutor(len(callers)) as pool:
        grants = list(pool.map(knock_and_check, callers))
    assert len({grant["id"] for grant in grants}) == len(callers)
    for grant in grants:
        end(stack, grant["id"], "ci")
        assert event_names(ended(stack, grant["id"]))[:3] == ["requested", "authorized", "revoked"]
    for caller in callers:
        shut(stack, f"{caller}/32")


# ---------------------------------------------------------------------------- the clients


@dataclass
class Terminal:
    """A terminal in which a client is run again after a transient error, up to six times."""

    stack: Stack
    home: Path
    command: list[str]

    def run(self, *words: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT / "clients"),
            "TZ": "UTC",
            "KNOCK_URL": self.stack.api_url,
            "KNOCK_API_KEY": self.stack.summary["keys"]["bob"],
        }
        for _ in range(6):
            result = subprocess.run(
                [*self.command, *words],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert "Traceback" not in result.stderr + result.stdout, result.stderr
            if result.returncode == 0 or "no live grant" in result.stderr:  # an earlier try ended it
                return result.stdout
            assert result.returncode in TRANSIENT, (result.returncode, result.stderr)
            assert result.stderr.startswith("knock"), result.stderr
            time.sleep(1)
        raise AssertionError(f"{words}: {result.stderr}")


@pytest.mark.parametrize(
    ("command", "target", "port"),
    [
        ([sys.executable, "-m", "knock"], "bastion", 22),
        # Another target, so that neither client has to wait for rules of the other.
        (["sh", str(ROOT / "clients" / "knock.sh")], "web", 443),
    ],
    ids=["knock", "knock.sh"],
)
def test_a_client_knocks_lists_renews_and_revokes_without_a_traceback(
    stack: Stack, tmp_path: Path, command: list[str], target: str, port: int
) -> None:
    terminal = Terminal(stack, tmp_path, command)
    terminal.run(target, "--for", "1h")
    assert port in open_ports(stack, "127.0.0.1/32")
    assert "active" in terminal.run("ls")
    if "-m" in command:
        terminal.run("renew")
        assert port in open_ports(stack, "127.0.0.1/32")
        terminal.run("whoami")
    terminal.run("revoke", "--all")
    shut(stack, "127.0.0.1/32")


ADMIN = [sys.executable, "-c", "import sys; from knock_admin.cli import main; sys.exit(main())"]


def administer(stack: Stack, home: Path, *words: str, over: str = "") -> tuple[str, str]:
    """Run knock-admin, again when it fails, as an operator does; give its standard output and error.

    `over` is part of its error when an earlier try was successful after all.
    """
    failed = False
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "clients"),
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": stack.region,
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
    }
    for _ in range(6):
        result = subprocess.run(
            [*ADMIN, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in result.stderr + result.stdout, result.stderr
        if result.returncode == 0:
            return result.stdout, result.stderr
        if failed and over and over in result.stderr:
            return "", ""
        failed = True
        time.sleep(2)
    raise AssertionError(f"{words}: {result.stderr}")


def test_an_operators_changes_of_keys_and_targets_take_effect_late(stack: Stack, tmp_path: Path) -> None:
    value, message = administer(stack, tmp_path, "key", "add", "dave", "--targets", "bastion", "--max", "8h")
    (key,) = re.findall(r"dave \((\w+)\)", message)
    assert key in administer(stack, tmp_path, "key", "ls")[0]

    def takes_effect(status: int) -> None:
        deadline = time.monotonic() + 30  # a tenth of 150 seconds, and as much for a busy machine
        while (
            answer := patiently(lambda: stack.call("GET", "/whoami", value.strip()))
        ).status_code != status:
            assert answer.status_code in (200, 403), answer.text
            assert time.monotonic() < deadline, "the change of the key takes no effect"
            time.sleep(0.5)

    takes_effect(200)
    administer(stack, tmp_path, "target", "add", "db", "--ports", "5432/tcp")
    administer(stack, tmp_path, "target", "rm", "db", over="has no target db")
    everything = knock(stack, "203.0.113.98", "operator", duration="5s")
    assert {target["name"] for target in everything["targets"]} == {"bastion", "web"}
    administer(stack, tmp_path, "key", "disable", key)  # by id, since its name may be missing from lists
    takes_effect(403)
