"""knock-admin against the local stack, as an operator uses it; and the mends of moto that it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

import local.operators
from knock import Client, KeyRejected, NotAllowed
from knock_admin import doctor, grants
from knock_admin.cli import main
from knock_admin.errors import FunctionFailed
from tests.clients.admin_support import LOADER, REGION, ROOT, CommandResult, World, make_world
from tests.local_stack import LocalStack
from tests.waiting import wait_for

world = pytest.fixture(make_world)


# ---------------------------------------------------------------------------- the mends, each by itself


def arn(kind: str, name: str) -> str:
    return f"arn:aws:apigateway:{REGION}::/{kind}/{name}"


def test_an_api_key_is_tagged_and_untagged_by_its_arn(world: World) -> None:
    gateway = world.gateway
    key = gateway.create_api_key(name="alice", tags={"a": "1"})["id"]
    gateway.tag_resource(resourceArn=arn("apikeys", key), tags={"b": "2", "c": "3"})
    gateway.untag_resource(resourceArn=arn("apikeys", key), tagKeys=["a", "b"])
    assert gateway.get_tags(resourceArn=arn("apikeys", key))["tags"] == {"c": "3"}
    assert gateway.get_api_key(apiKey=key)["tags"] == {"c": "3"}


def test_a_usage_plan_is_tagged_by_its_arn(world: World) -> None:
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    world.gateway.tag_resource(resourceArn=arn("usageplans", plan), tags={"b": "2"})
    assert world.gateway.get_tags(resourceArn=arn("usageplans", plan))["tags"] == {"b": "2"}


@pytest.mark.parametrize("kind", ["apikeys", "usageplans"])
def test_a_resource_that_does_not_exist_cannot_be_tagged(world: World, kind: str) -> None:
    with pytest.raises(world.gateway.exceptions.NotFoundException):
        world.gateway.tag_resource(resourceArn=arn(kind, "none"), tags={"b": "2"})


def test_stages_are_tagged_by_motos_own_code(world: World) -> None:
    world.plan_stage()
    api = world.gateway.get_rest_apis()["items"][0]["id"]
    stage = arn("restapis", f"{api}/stages/v1")
    world.gateway.tag_resource(resourceArn=stage, tags={"a": "1", "b": "2"})
    world.gateway.untag_resource(resourceArn=stage, tagKeys=["a"])
    assert world.gateway.get_tags(resourceArn=stage)["tags"] == {"b": "2"}


def test_a_key_that_is_deleted_leaves_its_usage_plan(world: World) -> None:
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    key = world.gateway.create_api_key(name="alice")["id"]
    world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")
    world.gateway.delete_api_key(apiKey=key)
    assert world.gateway.get_usage_plan_keys(usagePlanId=plan)["items"] == []


def test_several_values_of_a_filter_mean_any_of_them(world: World) -> None:
    unused = world.make_group("other")
    interface = world.make_interface(world.office, world.make_group("third"))

    def with_groups(*groups: str) -> set[str]:
        filters = [{"Name": "group-id", "Values": list(groups)}]
        answer = world.ec2.describe_network_interfaces(Filters=filters)
        return {item["NetworkInterfaceId"] for item in answer["NetworkInterfaces"]}

    assert with_groups(world.office, unused) == {world.eni, interface}
    assert with_groups(unused) == set()
    assert world.eni in with_groups(world.office[:-1] + "?")


def test_the_usage_of_keys_is_what_the_gateway_has_counted(world: World) -> None:
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    keys = [world.gateway.create_api_key(name=name)["id"] for name in ("alice", "bob")]
    for key in keys:
        world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")
    day = {"startDate": "2026-11-23", "endDate": "2026-11-23"}
    assert world.gateway.get_usage(usagePlanId=plan, **day)["items"] == {}
    local.operators.count_usage_by(lambda in_plan, key: 12 if (in_plan, key) == (plan, keys[0]) else 0)
    assert world.gateway.get_usage(usagePlanId=plan, **day)["items"] == {keys[0]: [[12, 4988]]}
    assert world.gateway.get_usage(usagePlanId=plan, keyId=keys[1], **day)["items"] == {}
    with pytest.raises(world.gateway.exceptions.NotFoundException):
        world.gateway.get_usage(usagePlanId="none", **day)


# ---------------------------------------------------------------------------- an operator's day


@pytest.fixture(scope="module")
def stack() -> Iterator[dict[str, Any]]:
    """Run the local stack, as `make local` does, in a process of its own."""
    with LocalStack.start() as running:
        yield running.summary


@pytest.fixture
def run(
    stack: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack["aws_endpoint_url"])
    monkeypatch.setenv("AWS_REGION", stack["region"])
    monkeypatch.setenv("KNOCK_URL", stack["api_url"])

    def admin(*words: str, code: int = 0) -> CommandResult:
        capsys.readouterr()
        exit_code = main(list(words))
        output = capsys.readouterr()
        assert exit_code == code, output.err
        return CommandResult(exit_code, output.out, output.err)

    return admin


def cannot_finish(*_: Any) -> Any:
    """Fail as the revoke function does while the trail cannot be reached."""
    raise FunctionFailed("StoreUnavailable", "knock-revoke failed with StoreUnavailable")


def test_the_doctor_finds_no_fault_in_a_fresh_stack(run: Callable[..., CommandResult]) -> None:
    findings = run("doctor", "--json").json["findings"]
    assert [finding for finding in findings if finding["level"] != "ok"] == []


def test_why_shows_the_requests_of_a_key_whether_or_not_it_is_enabled(
    stack: dict[str, Any], run: Callable[..., CommandResult]
) -> None:
    """Break it: count the requests of enabled keys alone."""
    for _ in range(2):
        Client(stack["api_url"], stack["keys"]["bob"]).whoami()
    run("key", "disable", "bob")
    output = run("why", "bob", code=1).out
    assert "it has made 2 requests of this day's " in output
    assert "The first no: key: bob" in output
    run("key", "enable", "bob")


@pytest.fixture
def fresh_stack() -> Iterator[dict[str, Any]]:
    """Run a stack whose API has read no rights yet: it caches them for a minute."""
    with LocalStack.start() as running:
        yield running.summary


def test_an_operators_day(
    fresh_stack: dict[str, Any], run: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make, use, list, rotate and remove a target and a key; at the end nothing is open.

    One test, because each step needs the ones before it.
    """
    stack = fresh_stack
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack["aws_endpoint_url"])
    monkeypatch.setenv("KNOCK_URL", stack["api_url"])
    ec2 = boto3.client("ec2", stack["region"], endpoint_url=stack["aws_endpoint_url"])
    subnet = ec2.describe_subnets()["Subnets"][0]
    office = ec2.create_security_group(GroupName="office", Description="office", VpcId=subnet["VpcId"])[
        "GroupId"
    ]
    interface = ec2.create_network_interface(SubnetId=subnet["SubnetId"], Groups=[office])["NetworkInterface"]
    eni = interface["NetworkInterfaceId"]

    run("target", "add", "db", "--ports", "5432/tcp", "--groups", "2", "--interface", eni)
    carol = run("key", "add", "carol", "--targets", "db", "--max", "1h").out.strip()
    groups = [group["id"] for group in run("target", "ls", "db", "--json").json["targets"][0]["groups"]]

    # The API has read no target yet, so it knows all of them, the scratch one too.
    monkeypatch.setattr(doctor, "TEST_DURATION", 2)
    monkeypatch.setattr(doctor, "PAUSE", 0.1)
    findings = run("doctor", "--test-grant", "--json").json["findings"]
    assert [finding["level"] for finding in findings if finding["what"] == "test grant"] == ["ok", "ok"], (
        findings
    )
    assert [finding for finding in findings if finding["level"] == "fail"] == []

    client = Client(stack["api_url"], carol)
    grant = client.knock("db", duration="30m", reason="=1+1 for the pager")
    used = run("target", "ls", "db", "--json").json["targets"][0]["groups"]
    family = "ipv6" if ":" in grant.source else "ipv4"
    assert sum(group["rules"][family]["used"] for group in used) == 1
    assert "The target db has 1 live grant:" in run("target", "rm", "db", code=1).err
    (live,) = run("grants", "--principal", "carol", "--json").json["grants"]
    assert (live["id"], live["status"], live["source"]) == (grant.id, "active", grant.source)
    assert "'=1+1 for the pager" in run("trail", grant.id, "--format", "csv").out

    ledger = run("ledger", grant.source, "--json").json
    assert [claim["grant_id"] for claim in ledger["claims"]] == [grant.id]
    assert [(rule["ports"], rule["phase"], rule["claimed_by"]) for rule in ledger["rules"]] == [
        ("5432/tcp", "open", [grant.id])
    ]

    # A closing finishes what the revoke function cannot, with the input that this program gives it.
    second = client.knock("db", duration="20m")
    with monkeypatch.context() as patch:
        patch.setattr(grants, "invoke", cannot_finish)
        output = run("revoke", second.id, "--reason", "an outage", code=1).out
    assert re.search(rf"{second.id}: NOT closed: .*; the execution \S+ retries until it is closed", output)

    def closed() -> list[dict[str, Any]] | None:
        events = client.grant(second.id).events
        return events if events[-1]["event"] == "closed" else None

    second_events = wait_for(closed, "the closing did not close the grant", seconds=30)
    (revoked,) = [event for event in second_events if event["event"] == "revoked"]
    assert revoked["reason"] == "an outage"
    assert client.grant(grant.id).status == "active", "the first grant of that source goes on"

    new = run("key", "rotate", "carol").out.strip()
    assert Client(stack["api_url"], new).whoami().principal.name == "carol"
    assert client.whoami().principal.name == "carol", "the old key works on"
    run("key", "disable", "carol")
    for value in (new, carol):
        with pytest.raises((KeyRejected, NotAllowed)):
            Client(stack["api_url"], value).whoami()

    stolen = run("revoke", "--principal", "carol", "--reason", "laptop stolen", "--yes")
    assert re.fullmatch(rf"{grant.id}: revoked; rules gone: sgr-\w+\n", stolen.out)
    assert (
        ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": groups}])[
            "SecurityGroupRules"
        ]
        == []
    )
    events = [
        line.split(",")[1] for line in run("trail", grant.id, "--events", "--format", "csv").out.splitlines()
    ]
    assert events == ["event", "requested", "authorized", "revoked", "closed"]
    execution = boto3.client("stepfunctions", stack["region"], endpoint_url=stack["aws_endpoint_url"])
    stopped = execution.describe_execution(executionArn=grant.json["execution_arn"])
    assert (stopped["status"], stopped["error"]) == ("ABORTED", "Revoked")
    assert re.fullmatch(r"revoked by \S+: laptop stolen", stopped["cause"])
    again = run("revoke", grant.id)
    assert "revoked" in again.out

    assert run("guard").out == "The drift guard found nothing.\n"
    rule = ec2.authorize_security_group_ingress(
        GroupId=groups[0],
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 5432,
                "ToPort": 5432,
                "IpRanges": [{"CidrIp": "203.0.113.99/32"}],
            }
        ],
        TagSpecifications=[
            {
                "ResourceType": "security-group-rule",
                "Tags": [{"Key": "knock:stack", "Value": "knock"}, {"Key": "knock:grant", "Value": "nobody"}],
            }
        ],
    )["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    output = run("guard", code=1).out
    assert "rule without a live claim" in output
    assert rule in output

    run("key", "rm", "carol")
    run("target", "detach", "db", "--all")
    run("target", "rm", "db")
    assert {target["name"] for target in run("target", "ls", "--json").json["targets"]} == {"bastion", "web"}


def test_a_pipe_that_closes_early_leaves_no_traceback(stack: dict[str, Any]) -> None:
    environment = {
        "AWS_ENDPOINT_URL": stack["aws_endpoint_url"],
        "AWS_REGION": stack["region"],
        "PYTHONPATH": str(ROOT / "clients"),
    }
    program = [sys.executable, "-m", "knock_admin.cli", "trail", "--format", "csv"]
    with subprocess.Popen(
        program, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
