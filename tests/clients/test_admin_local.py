"""knock-admin against the local stack, as an operator works; and what moto is mended with for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

import local.operators
from knock import Client, KeyRejected, NotAllowed
from knock_admin import doctor, grants
from knock_admin.cli import main
from knock_admin.errors import FunctionFailed
from tests.clients.admin_support import LOADER, REGION, ROOT, Ran, World, make_world
from tests.local_stack import LocalStack

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
def test_what_does_not_exist_cannot_be_tagged(world: World, kind: str) -> None:
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
    other = world.make_group("other")
    interface = world.make_interface(world.office, world.make_group("third"))

    def found(*groups: str) -> set[str]:
        filters = [{"Name": "group-id", "Values": list(groups)}]
        answer = world.ec2.describe_network_interfaces(Filters=filters)
        return {each["NetworkInterfaceId"] for each in answer["NetworkInterfaces"]}

    assert found(world.office, other) == {world.eni, interface}
    assert found(other) == set()
    assert world.eni in found(world.office[:-1] + "?")


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
    """Run the local stack as people do, in a process of its own."""
    with LocalStack.start() as running:
        yield running.said


@pytest.fixture
def run(
    stack: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack["aws_endpoint_url"])
    monkeypatch.setenv("AWS_REGION", stack["region"])
    monkeypatch.setenv("KNOCK_URL", stack["api_url"])

    def admin(*words: str, code: int = 0) -> Ran:
        capsys.readouterr()
        seen = main(list(words))
        said = capsys.readouterr()
        assert seen == code, said.err
        return Ran(seen, said.out, said.err)

    return admin


def cannot_finish(*_: Any) -> Any:
    """Fail as the revoke function does while the trail cannot be reached."""
    raise FunctionFailed("StoreUnavailable", "knock-revoke failed with StoreUnavailable")


def test_a_stack_that_has_just_been_started_has_nothing_amiss(run: Callable[..., Ran]) -> None:
    findings = run("doctor", "--json").json["findings"]
    assert [each for each in findings if each["level"] != "ok"] == []


def test_the_api_counts_what_a_key_has_left_whether_or_not_it_is_enabled(
    stack: dict[str, Any], run: Callable[..., Ran]
) -> None:
    """Break it: ask only the keys that open the stage."""
    for _ in range(2):
        Client(stack["api_url"], stack["keys"]["bob"]).whoami()
    run("key", "disable", "bob")
    told = run("why", "bob", code=1).out
    assert "it has made 2 requests of this day's " in told
    assert "The first no: key: bob" in told
    run("key", "enable", "bob")


@pytest.fixture
def fresh_stack() -> Iterator[dict[str, Any]]:
    """A stack whose API has read no rights yet: it keeps them for a minute."""
    with LocalStack.start() as running:
        yield running.said


def test_an_operators_day(
    fresh_stack: dict[str, Any], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target and a key are made and used, seen, rotated and ended; at the end nothing is open.

    One test, because one thing leads to another.
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
    seen = run("doctor", "--test-grant", "--json").json["findings"]
    assert [each["level"] for each in seen if each["what"] == "test grant"] == ["ok", "ok"], seen
    assert [each for each in seen if each["level"] == "fail"] == []

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

    # What the revoke function cannot finish, a closing does, by what this program hands on to it.
    other = client.knock("db", duration="20m")
    with monkeypatch.context() as patch:
        patch.setattr(grants, "invoke", cannot_finish)
        said = run("revoke", other.id, "--reason", "an outage", code=1).out
    assert re.search(rf"{other.id}: NOT closed: .*; a closing goes on until it is \(.+\)", said)
    deadline = time.monotonic() + 30
    while (ended := client.grant(other.id)).events[-1]["event"] != "closed":
        assert time.monotonic() < deadline, ended.events
        time.sleep(0.1)
    (revoked,) = [event for event in ended.events if event["event"] == "revoked"]
    assert revoked["reason"] == "an outage"
    assert client.grant(grant.id).status == "active", "the other grant of that source goes on"

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
    left = ec2.authorize_security_group_ingress(
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
    found = run("guard", code=1).out
    assert "rule without a live claim" in found
    assert left in found

    run("key", "rm", "carol")
    run("target", "detach", "db", "--all")
    run("target", "rm", "db")
    assert {target["name"] for target in run("target", "ls", "--json").json["targets"]} == {"bastion", "web"}


def test_a_pipe_that_closes_early_leaves_no_traceback(stack: dict[str, Any]) -> None:
    where = {
        "AWS_ENDPOINT_URL": stack["aws_endpoint_url"],
        "AWS_REGION": stack["region"],
        "PYTHONPATH": str(ROOT / "clients"),
    }
    program = [sys.executable, "-m", "knock_admin.cli", "trail", "--format", "csv"]
    with subprocess.Popen(
        program, env={**os.environ, **where}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        ran.stdout.close()
        assert ran.stderr.read() == b""
