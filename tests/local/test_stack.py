"""The local stack as a whole: its parts, its answers, and that it leaves no process."""

from __future__ import annotations

import json
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from botocore.exceptions import ClientError

from grants.dynamodb import INDEXES
from local.endpoint import Answer, Call, Forward, failure
from local.lambdas import access_key
from local.serving import bind
from local.stack import KEYS, Options, Stack, StackError, running
from local.template import TemplateError
from tests.conftest import ROOT
from tests.local.processes import alive, descendants
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def _logs_of_killed_stacks_go_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with (tmp_path_factory.mktemp("stack") / "log").open("wb") as log, running(output=log) as stack:
        yield stack


_callers = iter(range(1, 250))


@pytest.fixture
def caller() -> str:
    """Return an address of no caller so far."""
    return f"198.51.100.{next(_callers)}"


def ask(
    stack: Stack, method: str, path: str, key: str | None, caller: str = "203.0.113.7", **options: Any
) -> requests.Response:
    headers = {"X-Forwarded-For": caller} | ({"x-api-key": key} if key else {})
    return requests.request(method, stack.summary.api_url + path, headers=headers, timeout=35, **options)


def knock(stack: Stack, caller: str, key: str = "alice", **body: Any) -> dict[str, Any]:
    answer = ask(stack, "POST", "/knock", stack.summary.keys[key], caller, json=body)
    assert answer.status_code == 201, answer.text
    grant: dict[str, Any] = answer.json()
    return grant


def rules(stack: Stack, caller: str) -> list[Any]:
    all_rules = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
    return [rule for rule in all_rules if rule.get("CidrIpv4") == f"{caller}/32"]


# Its parts


def test_the_summary_has_what_a_client_needs(stack: Stack) -> None:
    summary = stack.summary.as_json()
    assert set(summary) == {
        "api_url", "console_url", "aws_endpoint_url", "region", "state_machine_arn", "closings_arn",
        "trail_store", "trail_domain", "ledger_domain", "refusals_domain", "keys", "targets",
    }  # fmt: skip
    assert summary["trail_store"] == "simpledb"
    assert summary["closings_arn"].endswith(":stateMachine:knock-closings")
    assert len({summary[f"{name}_domain"] for name in ("trail", "ledger", "refusals")}) == 3
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", summary["api_url"])
    assert summary["console_url"] == summary["api_url"] + "/console"
    assert set(summary["keys"]) == {"alice", "bob", "operator", "ci"}
    assert len(set(summary["keys"].values())) == 4
    assert summary["targets"]["bastion"]["ports"] == ["22/tcp"]
    assert summary["targets"]["web"]["ports"] == ["80/tcp", "443/tcp"]
    assert [len(target["groups"]) for target in summary["targets"].values()] == [2, 1]


def test_any_client_of_aws_sees_the_templates_resources(stack: Stack) -> None:
    names = {function["FunctionName"] for function in stack.client("lambda").list_functions()["Functions"]}
    assert names == {function.name for function in stack.deployment.functions}
    machines = stack.client("stepfunctions").list_state_machines()["stateMachines"]
    assert {machine["stateMachineArn"] for machine in machines} == {
        stack.summary.state_machine_arn,
        stack.summary.closings_arn,
    }
    events = stack.client("events")
    assert {rule["Name"] for rule in events.list_rules()["Rules"]} == {"knock-stopped", "knock-guard"}
    (target,) = events.list_targets_by_rule(Rule="knock-stopped")["Targets"]
    assert target["Arn"] == stack.summary.closings_arn
    assert target["RoleArn"].startswith("arn:aws:iam::")
    assert stack.client("sqs").get_queue_url(QueueName="knock-dead-letters")["QueueUrl"]
    summary = stack.summary
    domains = [summary.ledger_domain, summary.refusals_domain, summary.trail_domain]
    assert sorted(stack.client("sdb").list_domains()["DomainNames"]) == domains
    assert stack.client("dynamodb").list_tables()["TableNames"] == []
    apigateway = stack.client("apigateway")
    (api,) = apigateway.get_rest_apis()["items"]
    paths = {resource["path"] for resource in apigateway.get_resources(restApiId=api["id"])["items"]}
    assert {route.path for route in stack.deployment.rest_api.routes} <= paths
    (plan,) = apigateway.get_usage_plans()["items"]
    assert plan["apiStages"] == [{"apiId": api["id"], "stage": "v1"}]
    assert len(apigateway.get_usage_plan_keys(usagePlanId=plan["id"])["items"]) == 4


def test_keys_and_groups_carry_the_tags_that_are_their_rights(stack: Stack) -> None:
    apigateway = stack.client("apigateway")
    keys = {key["name"]: key for key in apigateway.get_api_keys()["items"]}
    expected = {name: {"knock:name": name, **tags} for name, tags in KEYS.items()}
    assert {name: key["tags"] for name, key in keys.items()} == expected
    for name, key in keys.items():  # by the call that carries nothing else
        tags_alone = apigateway.get_tags(resourceArn=f"arn:aws:apigateway:eu-west-1::/apikeys/{key['id']}")
        assert tags_alone["tags"] == expected[name]
        assert stack.summary.keys[name] not in str(tags_alone)
    groups = [group for target in stack.summary.targets.values() for group in target["groups"]]
    described = stack.client("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"]
    tags = [{tag["Key"]: tag["Value"] for tag in group["Tags"]} for group in described]
    assert {tag["knock:stack"] for tag in tags} == {"knock"}
    assert {tag["knock:ports"] for tag in tags} == {"22/tcp", "80/tcp 443/tcp"}


def test_a_grant_opens_and_closes_by_itself(stack: Stack, caller: str) -> None:
    grant = knock(stack, caller, duration="1s")
    assert len(rules(stack, caller)) == 3
    wait_for(lambda: not rules(stack, caller), "the rules are still there")
    states = stack.client("stepfunctions")
    execution = {"executionArn": grant["execution_arn"]}
    wait_for(
        lambda: states.describe_execution(**execution)["status"] == "SUCCEEDED", "the execution has not ended"
    )


def test_stopping_an_execution_starts_a_closing_that_closes_its_rules(stack: Stack, caller: str) -> None:
    grant = knock(stack, caller, duration="1h")
    states, closings = stack.client("stepfunctions"), {"stateMachineArn": stack.summary.closings_arn}
    before = len(states.list_executions(**closings)["executions"])
    states.stop_execution(executionArn=grant["execution_arn"], error="Who", cause="why")
    wait_for(lambda: not rules(stack, caller), "the rules are still there")
    executions = states.list_executions(**closings)["executions"]
    assert len(executions) == before + 1
    closing = executions[0]
    started = states.describe_execution(executionArn=closing["executionArn"])
    event = json.loads(started["input"])
    assert (event["detail"]["name"], event["detail"]["status"]) == (grant["id"], "ABORTED")
    assert json.loads(event["detail"]["input"])["grant_id"] == grant["id"]
    wait_for(
        lambda: states.describe_execution(executionArn=closing["executionArn"])["status"] == "SUCCEEDED",
        "the closing has not ended",
    )


def test_a_job_may_hold_many_grants_at_once_from_any_source(stack: Stack) -> None:
    """Mutation: the tag knock:max-live of ci deleted."""
    for number in range(1, 25):
        knock(stack, "203.0.113.9", "ci", targets=["bastion"], source=f"203.0.113.{100 + number}/32")
    rights = ask(stack, "GET", "/whoami", stack.summary.keys["ci"]).json()
    assert (rights["max_live"], rights["live"]) == (1000, 24)


# Keys and limits, changed while it runs


@pytest.fixture
def key(stack: Stack) -> Iterator[tuple[str, str]]:
    """Make an API key, not attached to anything."""
    apigateway = stack.client("apigateway")
    created = apigateway.create_api_key(
        name="new", enabled=True, value="n" * 30, tags={"knock:targets": "web"}
    )
    yield created["id"], created["value"]
    apigateway.delete_api_key(apiKey=created["id"])


def test_a_key_opens_only_while_it_is_enabled_and_in_the_usage_plan(
    stack: Stack, key: tuple[str, str]
) -> None:
    apigateway = stack.client("apigateway")
    plan = stack.deployment.usage_plan.id
    key_id, value = key

    def status() -> int:
        return ask(stack, "GET", "/whoami", value).status_code

    def enable(yes: str) -> None:
        change = {"op": "replace", "path": "/enabled", "value": yes}
        apigateway.update_api_key(apiKey=key_id, patchOperations=[change])

    assert status() == 403
    apigateway.create_usage_plan_key(usagePlanId=plan, keyId=key_id, keyType="API_KEY")
    assert status() == 200
    enable("false")
    assert status() == 403
    enable("true")
    assert status() == 200
    apigateway.delete_usage_plan_key(usagePlanId=plan, keyId=key_id)
    assert status() == 403


def test_a_deleted_key_opens_nothing(stack: Stack) -> None:
    apigateway = stack.client("apigateway")
    created = apigateway.create_api_key(name="short-lived", enabled=True, value="s" * 30)
    apigateway.create_usage_plan_key(
        usagePlanId=stack.deployment.usage_plan.id, keyId=created["id"], keyType="API_KEY"
    )
    assert ask(stack, "GET", "/whoami", "s" * 30).status_code == 200
    apigateway.delete_api_key(apiKey=created["id"])
    assert ask(stack, "GET", "/whoami", "s" * 30).status_code == 403


def test_a_key_of_another_stages_plan_opens_nothing(stack: Stack, key: tuple[str, str]) -> None:
    apigateway = stack.client("apigateway")
    plan = apigateway.create_usage_plan(name="other", apiStages=[{"apiId": "elsewhere", "stage": "v1"}])
    apigateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=key[0], keyType="API_KEY")
    assert ask(stack, "GET", "/whoami", key[1]).status_code == 403
    apigateway.delete_usage_plan(usagePlanId=plan["id"])


def test_the_usage_plans_throttle_and_quota_are_enforced(stack: Stack, key: tuple[str, str]) -> None:
    apigateway = stack.client("apigateway")
    api = {"apiId": stack.deployment.rest_api.id, "stage": "v1"}
    plan = apigateway.create_usage_plan(
        name="tight",
        apiStages=[api],
        throttle={"rateLimit": 1, "burstLimit": 2},
        quota={"limit": 3, "period": "DAY"},
    )
    apigateway.create_usage_plan_key(usagePlanId=plan["id"], keyId=key[0], keyType="API_KEY")
    messages = [ask(stack, "GET", "/whoami", key[1]).json().get("message") for _ in range(4)]
    assert messages[:2] == [None, None]
    assert "Too Many Requests" in messages[2:]
    change = [
        {"op": "replace", "path": "/throttle/rateLimit", "value": "1000"},
        {"op": "replace", "path": "/throttle/burstLimit", "value": "1000"},
    ]
    apigateway.update_usage_plan(usagePlanId=plan["id"], patchOperations=change)
    answers = [ask(stack, "GET", "/whoami", key[1]) for _ in range(3)]
    assert answers[-1].json() == {"message": "Limit Exceeded"}
    apigateway.delete_usage_plan_key(usagePlanId=plan["id"], keyId=key[0])
    apigateway.delete_usage_plan(usagePlanId=plan["id"])


def test_a_local_stack_raises_the_templates_limits_as_a_deployment_would(stack: Stack) -> None:
    (plan,) = stack.client("apigateway").get_usage_plans()["items"]
    assert plan["throttle"] == {"rateLimit": 10000.0, "burstLimit": 5000}
    assert plan["quota"] == {"limit": 100000000, "period": "DAY"}


# Lambda's own API


def test_invoking_a_function_by_the_api_is_invoking_the_function(stack: Stack) -> None:
    answer = stack.client("lambda").invoke(FunctionName="knock-revoke", Payload=b"{}")
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    described = json.loads(answer["Payload"].read())
    assert described["errorType"] == "KeyError"
    assert described["stackTrace"]


def test_a_dry_run_runs_nothing_and_an_event_is_queued(stack: Stack) -> None:
    lambda_ = stack.client("lambda")
    before = stack.runtime.counts["knock-guard"]
    assert lambda_.invoke(FunctionName="knock-guard", InvocationType="DryRun")["StatusCode"] == 204
    assert stack.runtime.counts["knock-guard"] == before
    answer = lambda_.invoke(FunctionName="knock-guard", InvocationType="Event", Payload=b"{}")
    assert answer["StatusCode"] == 202
    wait_for(lambda: stack.runtime.counts["knock-guard"] == before + 1, "it did not run")


def test_an_unknown_function_and_one_without_concurrency_are_refused(stack: Stack) -> None:
    lambda_ = stack.client("lambda")
    with pytest.raises(ClientError) as caught:
        lambda_.invoke(FunctionName="nobody")
    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    lambda_.put_function_concurrency(FunctionName="knock-guard", ReservedConcurrentExecutions=0)
    try:
        with pytest.raises(ClientError) as caught:
            lambda_.invoke(FunctionName="knock-guard")
        assert caught.value.response["Error"]["Code"] == "TooManyRequestsException"
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    finally:
        lambda_.delete_function_concurrency(FunctionName="knock-guard")


# Calls watched and failed


def test_every_call_is_watched_with_the_function_that_makes_it(stack: Stack, caller: str) -> None:
    calls: Counter[tuple[str, str, str]] = Counter()
    names = {access_key(function): function.name for function in stack.deployment.functions}

    def count(call: Call, forward: Forward) -> Answer:
        calls[names.get(call.access_key, "?"), call.service, call.operation] += 1
        return forward()

    with stack.endpoint.watched_by(count):
        knock(stack, caller, duration="1h", targets=["bastion"])
    assert calls["knock-api", "states", "StartExecution"] == 1
    assert calls["knock-authorize", "ec2", "AuthorizeSecurityGroupIngress"] == 1
    assert not [call for call in calls if call[0] == "knock-api" and call[1] == "ec2"]
    assert {call[2] for call in calls if call[1] == "apigateway"} <= {"GetTags"}


def test_a_call_that_fails_once_is_retried(stack: Stack, caller: str) -> None:
    failures = 1

    def break_once(call: Call, forward: Forward) -> Answer:
        nonlocal failures
        if call.operation == "AuthorizeSecurityGroupIngress" and failures:
            failures -= 1
            return failure(call, "RequestLimitExceeded", status=503)
        return forward()

    with stack.endpoint.watched_by(break_once):
        answer = ask(
            stack, "POST", "/knock", stack.summary.keys["bob"], caller, json={"targets": ["bastion"]}
        )
        assert answer.status_code in (201, 202)
        wait_for(lambda: len(rules(stack, caller)) == 1, "the rule is not authorized")
    assert failures == 0


# Options


def test_an_invalid_duration_is_refused_in_the_templates_words() -> None:
    with pytest.raises(TemplateError, match=r"DefaultDuration is .24 o.clock.; must be a number and one of"):
        Stack(Options(duration="24 o'clock"))


@pytest.mark.parametrize("duration", ["25h", "2d", "1441m", "86401s"])
def test_a_duration_that_no_key_allows_is_refused_and_not_shortened(duration: str) -> None:
    with pytest.raises(StackError, match=f"A duration of {duration} is more than the keys here allow, 24h"):
        Stack(Options(duration=duration))


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(StackError, match="There is no engine 'airflow': it is moto, stepfunctions-local"):
        Stack(Options(engine="airflow"))


# The command


def up(*arguments: str, program: Sequence[str] = ("-m", "local"), **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "up", "--port", "0", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def send_knocks(summary: dict[str, Any], count: int) -> list[socket.socket]:
    """Send so many knocks at once, each on a connection of its own, and wait for no answer."""
    url = urlsplit(summary["api_url"])
    connections = []
    for number in range(count):
        connection = socket.create_connection((url.hostname, url.port))
        connection.sendall(
            f"POST {url.path}/knock HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 0\r\n"
            f"x-api-key: {summary['keys']['alice']}\r\n"
            f"X-Forwarded-For: 10.0.{number // 250}.{number % 250}\r\n\r\n".encode()
        )
        connections.append(connection)
    return connections


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_prints_one_line_of_json_and_leaves_no_process_when_stopped_amid_500_knocks(
    stop: signal.Signals,
) -> None:
    process = up("--json")
    connections = []
    try:
        assert process.stdout
        summary = json.loads(process.stdout.readline())
        connections = send_knocks(summary, 500)
        select.select(connections[:100], [], [], 30)  # the first answers come
        family = descendants(process.pid)
        process.send_signal(stop)
        output, errors = process.communicate(timeout=10)
        assert len(family) > len(summary["keys"])  # a process of each function, and workers
        wait_for(lambda: not alive(*family), f"some of these are left: {family}", 5)
    finally:
        process.kill()
        for connection in connections:
            connection.close()
    # It stopped by itself: what takes longer than STOPS_WITHIN is ended with a message and status 1.
    assert (output, errors) == ("", "")
    assert process.returncode == (-stop if stop == signal.SIGKILL else 0)


def test_the_command_ends_at_once_after_it_has_stopped() -> None:
    """Python's own end takes longer with every execution that was started: after thousands, over ten seconds.

    Mutation: local/__main__.py: `    os._exit(code)` -> `    sys.exit(code)`
    """
    code = (
        "import atexit, runpy; atexit.register(print, 'Python ends'); "
        "runpy.run_module('local', None, '__main__')"
    )
    process = up("--json", program=("-c", code))
    try:
        assert process.stdout
        assert json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert (*process.communicate(timeout=10), process.returncode) == ("", "", 0)
    finally:
        process.kill()


def test_the_command_prints_a_page_for_a_person() -> None:
    process = up("--verbose")
    try:
        assert process.stdout
        page = ""
        while "list-executions" not in page:
            line = process.stdout.readline()
            assert line, process.communicate()
            page += line
        command = re.search(r"^  (curl -X POST .*)$", page, re.MULTILINE)
        assert command
        curl = [*shlex.split(command[1]), "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        result = subprocess.run(curl, capture_output=True, text=True, check=True)
        assert result.stdout in ("201", "202")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert "POST /v1/knock 20" in errors
    key = re.search(r"x-api-key: (\w+)", command[1])
    assert key
    assert key[1] not in errors


def test_the_command_says_what_is_wrong_and_what_to_do() -> None:
    listening = bind(0)
    try:
        port = str(listening[0].getsockname()[1])
        process = up("--port", port)
        _, errors = process.communicate(timeout=20)
    finally:
        for socket_ in listening:
            socket_.close()
    assert process.returncode == 1
    assert errors == (
        f"The local stack cannot start: port {port} of 127.0.0.1 is in use by another program. On any free"
        ' port instead: make local ARGS="--port 0", or python -m local up --port 0.\n'
    )


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_an_invalid_port_is_refused(port: str) -> None:
    _, errors = (process := up("--port", port)).communicate(timeout=20)
    assert process.returncode == 2
    assert f"{port!r} is not a port" in errors


# On the other store


def test_on_dynamodb_the_tables_hold_what_the_domains_would(tmp_path: Path, caller: str) -> None:
    """In a process of its own, since a process has one embedded AWS."""
    command = [sys.executable, "-m", "local", "up", "--port", "0", "--json", "--store", "dynamodb"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        summary = json.loads(process.stdout.readline())
        session = boto3.Session("any", "any", region_name=summary["region"])
        dynamodb = session.client("dynamodb", endpoint_url=summary["aws_endpoint_url"])
        names = [summary[f"{name}_domain"] for name in ("ledger", "refusals", "trail")]
        assert summary["trail_store"] == "dynamodb"
        assert sorted(dynamodb.list_tables()["TableNames"]) == names
        described = dynamodb.describe_table(TableName=summary["trail_domain"])["Table"]
        assert {index["IndexName"] for index in described["GlobalSecondaryIndexes"]} == set(INDEXES.values())
        assert described["DeletionProtectionEnabled"] is True
        headers = {"x-api-key": summary["keys"]["alice"], "X-Forwarded-For": caller}
        grant = requests.post(f"{summary['api_url']}/knock", headers=headers, timeout=35).json()
        item = dynamodb.get_item(TableName=summary["trail_domain"], Key={"name": {"S": grant["id"]}})["Item"]
        assert item["state"] == {"S": "live"}
        ledger = dynamodb.scan(TableName=summary["ledger_domain"])["Items"]
        assert [entry["name"] for entry in ledger] == [{"S": f"{caller}/32"}]
        answer = requests.post(
            f"{summary['api_url']}/knock", json={"targets": ["vault"]}, headers=headers, timeout=35
        )
        assert answer.status_code == 403
        assert dynamodb.scan(TableName=summary["refusals_domain"])["Count"] == 1
    finally:
        process.terminate()
        process.wait(10)
