"""Step Functions from outside: the npm package, and any other endpoint, behind the stack's one address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from local.endpoint import Call
from local.invocation import InvocationError
from local.stack import Stack, StackError, running
from local.stepfunctions_local import Engine, EngineNotFound, Npm, NpmEngine
from tests.conftest import ROOT, need
from tests.local.processes import alive, descendants
from tests.waiting import wait_for

ARN = "arn:aws:states:eu-west-1:123456789012"


@pytest.fixture(autouse=True)
def _logs_of_killed_stacks_go_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(scope="module")
def package() -> None:
    need(
        (ROOT / "node_modules" / "stepfunctions-local").is_dir(), "stepfunctions-local is missing: run npm ci"
    )


@pytest.fixture(scope="module")
def stack(package: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with (
        (tmp_path_factory.mktemp("stack") / "log").open("wb") as log,
        running(engine="stepfunctions-local", output=log) as stack,
    ):
        yield stack


def knock(stack: Stack, caller: str, duration: str) -> dict[str, Any]:
    headers = {"x-api-key": stack.summary.keys["alice"], "X-Forwarded-For": caller}
    answer = requests.post(
        f"{stack.summary.api_url}/knock", headers=headers, json={"duration": duration}, timeout=35
    )
    assert answer.status_code == 201, answer.text
    grant: dict[str, Any] = answer.json()
    return grant


def rules(stack: Stack, caller: str) -> list[Any]:
    all_rules = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
    return [rule for rule in all_rules if rule.get("CidrIpv4") == f"{caller}/32"]


def test_the_templates_own_definitions_run_there(stack: Stack) -> None:
    states = stack.client("stepfunctions")
    listed = {machine["stateMachineArn"] for machine in states.list_state_machines()["stateMachines"]}
    grants, closings = stack.summary.state_machine_arn, stack.summary.closings_arn
    assert {f"{ARN}:stateMachine:knock-grants", f"{ARN}:stateMachine:knock-closings"} == {grants, closings}
    assert listed >= {grants, closings}
    for machine in stack.deployment.state_machines:
        described = states.describe_state_machine(stateMachineArn=machine.arn)
        assert json.loads(described["definition"]) == json.loads(machine.definition)
    assert stack.aws.engine is None


def test_a_grant_opens_and_closes_by_itself(stack: Stack) -> None:
    grant = knock(stack, "198.51.100.1", "2s")
    assert len(rules(stack, "198.51.100.1")) == 3
    states = stack.client("stepfunctions")
    listed = states.list_executions(stateMachineArn=stack.summary.state_machine_arn, statusFilter="RUNNING")
    assert [execution["executionArn"] for execution in listed["executions"]] == [grant["execution_arn"]]
    wait_for(lambda: not rules(stack, "198.51.100.1"), "the rules are still there")
    execution = {"executionArn": grant["execution_arn"]}
    wait_for(
        lambda: states.describe_execution(**execution)["status"] == "SUCCEEDED", "the execution has not ended"
    )


def test_a_stopped_execution_is_announced_and_a_closing_closes_its_rules(stack: Stack) -> None:
    grant = knock(stack, "198.51.100.2", "1h")
    events: list[dict[str, Any]] = []
    stack.aws.deliveries.drop(lambda event: bool(events.append(event)))
    states = stack.client("stepfunctions")
    for _ in range(2):  # a second stop is not announced
        states.stop_execution(executionArn=grant["execution_arn"], error="Who", cause="why")
    wait_for(lambda: not rules(stack, "198.51.100.2"), "the rules are still there")
    (event,) = {event["id"]: event for event in events}.values()
    assert event["detail-type"] == "Step Functions Execution Status Change"
    detail = event["detail"]
    assert (detail["status"], detail["error"], detail["cause"]) == ("ABORTED", "Who", "why")
    assert detail["executionArn"] == grant["execution_arn"]
    assert detail["stateMachineArn"] == stack.summary.state_machine_arn
    assert json.loads(detail["input"])["grant_id"] == grant["id"]
    assert detail["stopDate"] >= detail["startDate"] > 1.7e12
    (closing,) = states.list_executions(stateMachineArn=stack.summary.closings_arn)["executions"]
    started = states.describe_execution(executionArn=closing["executionArn"])
    assert json.loads(started["input"])["detail"]["name"] == grant["id"]
    wait_for(
        lambda: states.describe_execution(executionArn=closing["executionArn"])["status"] == "SUCCEEDED",
        "the closing has not ended",
    )


class TestLimitsOfStepfunctionsLocal:
    """Where stepfunctions-local differs from AWS, so that tests of these things run on the embedded engine.

    A definition of two states: a task that fails once, and what its Catch leads to.
    """

    def run(self, stack: Stack, name: str, fails: str, **task: Any) -> dict[str, Any]:
        states = stack.client("stepfunctions")
        revoke = next(
            function for function in stack.deployment.functions if function.handler == "revoke.handler"
        )
        definition = {
            "StartAt": "Close",
            "States": {
                "Close": {
                    "Type": "Task",
                    "Resource": revoke.arn,
                    "Parameters": {"no": "how"},  # on which the function fails
                    "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": "End"}],
                    "Next": "Well",
                    **task,
                },
                "Well": {"Type": "Succeed"},
                "End": {"Type": fails} | ({"Error": "E", "Cause": "C"} if fails == "Fail" else {}),
            },
        }
        machine = states.create_state_machine(
            name=name, definition=json.dumps(definition), roleArn="arn:aws:iam::123456789012:role/r"
        )["stateMachineArn"]
        arn = states.start_execution(stateMachineArn=machine, name="e", input='{"a": 1}')["executionArn"]
        wait_for(
            lambda: states.describe_execution(executionArn=arn)["status"] != "RUNNING",
            "the execution has not ended",
        )
        described: dict[str, Any] = states.describe_execution(executionArn=arn)
        history = states.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        return described | {"failures": sum(event["type"] == "LambdaFunctionFailed" for event in history)}

    def test_a_task_is_never_retried(self, stack: Stack, package: None) -> None:
        """So a transient error of Close leads to ForceClose at once."""
        retrier = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 1, "MaxAttempts": 2}
        assert self.run(stack, "retries", "Succeed", Retry=[retrier])["failures"] == 1

    def test_a_failed_execution_is_a_success(self, stack: Stack, package: None) -> None:
        """So ClosingFailed and AuthorizationFailed raise no event, and no closing starts for them."""
        assert self.run(stack, "fails", "Fail")["status"] == "SUCCEEDED"


def test_an_unknown_execution_is_the_engines_own_error(stack: Stack) -> None:
    with pytest.raises(ClientError) as caught:
        stack.client("stepfunctions").stop_execution(executionArn=f"{ARN}:execution:knock-grants:nobody")
    assert caught.value.response["Error"]["Code"] == "ExecutionDoesNotExist"


def test_creating_the_state_machine_again_updates_it(stack: Stack) -> None:
    process = Npm(ROOT, region="eu-west-1", lambda_endpoint=stack.summary.aws_endpoint_url, log=2)
    try:
        engine = NpmEngine(process.url)
        arguments = {"name": "again", "role": "arn:aws:iam::123456789012:role/r", "region": "eu-west-1"}
        first = {"StartAt": "A", "States": {"A": {"Type": "Succeed"}}}
        second = {"StartAt": "B", "States": {"B": {"Type": "Succeed"}}}
        arn = engine.create(definition=json.dumps(first), **arguments)
        assert engine.create(definition=json.dumps(second), **arguments) == arn == f"{ARN}:stateMachine:again"
        call = Call(
            "states", "DescribeStateMachine", "eu-west-1", "", json.dumps({"stateMachineArn": arn}).encode()
        )
        described = json.loads(
            engine(call, lambda: pytest.fail("the call is forwarded to the embedded AWS")).body
        )
        assert json.loads(described["definition"]) == second
        with pytest.raises(EngineNotFound, match="refuses the state machine"):
            engine.create(definition="{}", **{**arguments, "name": "bad"})
    finally:
        process.stop()
        process.stop()


def test_it_listens_on_loopback_alone(stack: Stack, package: None) -> None:
    process = Npm(ROOT, region="eu-west-1", lambda_endpoint=stack.summary.aws_endpoint_url, log=2)
    try:
        listening = Path("/proc/net/tcp6")
        port = f"{int(process.url.rpartition(':')[2]):04X}"
        if listening.exists():
            assert f":{port} " not in listening.read_text()
            assert f"0100007F:{port} " in Path("/proc/net/tcp").read_text()
    finally:
        process.stop()


def test_no_process_of_it_is_left_when_the_stack_is_killed(package: None) -> None:
    command = [
        sys.executable,
        "-m",
        "local",
        "up",
        "--json",
        "--port",
        "0",
        "--engine",
        "stepfunctions-local",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline()
    family = descendants(process.pid)
    assert any("stepfunctions_local.js" in command for command in family.values())
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(*family), f"some of these are left: {family}", 5)


def test_a_missing_package_or_node_is_an_error_that_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineNotFound, match=r"There is no .*stepfunctions-local. Run `npm ci`"):
        Npm(tmp_path, region="eu-west-1", lambda_endpoint="http://127.0.0.1:1", log=2)
    (tmp_path / "node_modules" / "stepfunctions-local").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineNotFound, match=r"There is no node on the PATH. Install Node.js"):
        Npm(tmp_path, region="eu-west-1", lambda_endpoint="http://127.0.0.1:1", log=2)


def test_an_engine_that_ends_before_it_listens_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node_modules" / "stepfunctions-local").mkdir(parents=True)
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\nexit 7\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EngineNotFound, match="ended with code 7 before it listened"):
        Npm(tmp_path, region="eu-west-1", lambda_endpoint="http://127.0.0.1:1", log=2)


# Any other endpoint


class Recorder(BaseHTTPRequestHandler):
    """A Step Functions endpoint that records calls and runs nothing."""

    place = ARN
    calls: list[tuple[str, Any]]

    def do_POST(self) -> None:
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.calls.append((operation, body))
        status, content = self.respond(operation, body)
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def respond(self, operation: str, body: Any) -> tuple[int, Any]:
        if operation == "StartExecution" and body["name"] in ("again", "refused"):
            code = {"again": "ExecutionAlreadyExists", "refused": "StateMachineDoesNotExist"}[body["name"]]
            return 400, {"__type": f"com.amazonaws.states#{code}", "message": "refused by the engine"}
        return 200, {"stateMachineArn": f"{self.place}:stateMachine:{body.get('name')}", "stateMachines": []}

    def log_message(self, *_: Any) -> None:
        """Log no requests."""


@pytest.fixture
def recorder() -> Iterator[Callable[[], tuple[str, list[tuple[str, Any]]]]]:
    Recorder.calls = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda: (f"http://127.0.0.1:{server.server_address[1]}", Recorder.calls)
    server.shutdown()
    server.server_close()


def test_any_other_endpoint_gets_the_state_machine_and_the_calls(
    recorder: Callable[[], tuple[str, list[tuple[str, Any]]]], tmp_path: Path
) -> None:
    url, calls = recorder()
    with (tmp_path / "log").open("wb") as log, running(engine=url, output=log) as stack:
        (create, machine), (create_closings, closings) = calls[:2]
        assert (create, create_closings) == ("CreateStateMachine", "CreateStateMachine")
        assert (machine["name"], closings["name"]) == ("knock-grants", "knock-closings")
        assert "HoldUntilExpiry" in machine["definition"]
        assert "ForceClose" in closings["definition"]
        assert stack.client("stepfunctions").list_state_machines()["stateMachines"] == []
    assert calls[-1][0] == "ListStateMachines"


def test_an_endpoint_of_another_account_is_refused(
    recorder: Callable[[], tuple[str, list[tuple[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "place", "arn:aws:states:us-east-1:000000000000")
    url, _ = recorder()
    with pytest.raises(StackError, match="same region and account"), running(engine=url):
        pass


def test_an_execution_is_started_there_for_eventbridge_once(
    recorder: Callable[[], tuple[str, list[tuple[str, Any]]]],
) -> None:
    url, calls = recorder()
    machine = f"{ARN}:stateMachine:knock-closings"
    Engine(url).start(machine, "event", b'{"a":1}')
    assert calls == [("StartExecution", {"stateMachineArn": machine, "name": "event", "input": '{"a":1}'})]
    Engine(url).start(machine, "again", b"{}")  # it runs already: no error
    with pytest.raises(InvocationError, match="refused by the engine") as caught:
        Engine(url).start(machine, "refused", b"{}")
    assert caught.value.code == "StateMachineDoesNotExist"
    with pytest.raises(InvocationError) as caught:
        Engine("http://127.0.0.1:9").start(machine, "event", b"{}")
    assert caught.value.code == "ServiceUnavailable"


def test_an_endpoint_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(EngineNotFound, match="does not answer"), running(engine="http://127.0.0.1:9"):
        pass
    call = Call("states", "StartExecution", "eu-west-1", "", b"{}")
    answer = Engine("http://127.0.0.1:9")(
        call, lambda: pytest.fail("the call is forwarded to the embedded AWS")
    )
    assert (answer.status, json.loads(answer.body)["__type"]) == (503, "ServiceUnavailable")
