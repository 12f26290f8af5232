"""An operator's day with knock-admin, with every AWS call recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from botocore.client import BaseClient

from knock_admin import adopt, attach, doctor, trailcopy
from tests.clients.admin_support import CLOSINGS, MACHINE, STACK, World, client, scratch_api
from tests.clients.attachments import (
    make_caches,
    make_database,
    make_service,
    mend_caches,
    mend_deployments,
)


class StoreUnavailable(Exception):
    """An error with the name that the functions give it."""


def _unavailable(_payload: object) -> None:
    raise StoreUnavailable("SimpleDB did not answer")


def work(world: World) -> None:
    """Use every command, each in every way that makes other calls to AWS."""
    world.plan_stage()
    client("events").put_rule(Name=f"{STACK}-stopped", EventPattern='{"source": ["aws.states"]}')
    world.functions["guard"] = lambda _payload: {"findings": []}
    balancer = world.make_balancer(groups=[world.office])
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("target", "add", "web", "--ports", "80/tcp", "--load-balancer", balancer)
    world.ok("target", "grow", "bastion", "--groups", "2")
    world.ok("target", "ls")
    world.ok("key", "add", "bob", "--targets", "web", "--max", "8h")
    move(world)
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h")
    world.ok("key", "set", "alice", "--targets", "bastion", "shop", "--operator", "--max-live", "9")
    world.ok("key", "set", "alice", "--no-operator")
    world.ok("key", "ls")
    world.run("why", "alice")
    world.ok("key", "disable", "alice")
    world.ok("key", "enable", "alice")
    many(world)
    world.ok("key", "rotate", "alice", "--overlap", "1s")
    time.sleep(1.1)  # an overlap is a whole number of seconds
    world.ok("key", "rotate", "alice", "--finish")
    world.make_machines(MACHINE, CLOSINGS)
    grant = world.start(world.record("alice"))
    world.functions["revoke"] = lambda _payload: {
        "grant_id": grant.id,
        "status": "revoked",
        "revoked": [],
        "kept": [],
    }
    world.ok("grants")
    world.ok("revoke", grant.id)
    world.functions["revoke"] = _unavailable
    world.run("revoke", grant.id)  # a closing takes it over
    world.ok("guard")
    look(world, grant.id)
    grant_a_test(world)
    world.trail.end(grant.id, "revoked", datetime.now(timezone.utc), "ops", "")
    world.ok("target", "detach", "bastion", "--all")
    world.ok("target", "detach", "shop", "--all")
    world.ok("target", "rm", "bastion")
    world.ok("key", "rm", "alice")


def many(world: World) -> None:
    """Make and replace many keys at once, and end the grants of a key that is removed."""
    with TemporaryDirectory() as folder:
        people = Path(folder) / "people.csv"
        people.write_text("name,targets,max,until\ncarol,shop,8h,2099-01-15\ndave,shop,8h,\n")
        world.ok("key", "add", "--from", str(people), "--values", f"{folder}/keys.csv")
        world.ok("key", "rotate", "--all", "--overlap", "1d", "--values", f"{folder}/new-keys.csv")
    world.ok("key", "set", "carol", "dave", "--add-targets", "bastion", "--no-until")
    for key in world.gateway.get_api_keys()["items"]:
        if "knock:retires-at" in key["tags"]:
            world.ok("key", "rm", key["id"], "--revoke")


def move(world: World) -> None:
    """Change targets, and adopt and release existing groups."""
    world.ok("target", "set", "web", "--ports", "443/tcp", "--families", "any")
    world.ok("target", "set", "web", "--families", "auto")
    world.ok("target", "rename", "web", "shop")
    group = world.make_group("theirs")
    world.ok("target", "adopt", "theirs", group, "--ports", "443/tcp")
    with mock.patch.object(adopt, "FLIGHT", 0.0):
        world.ok("target", "release", "theirs")
    world.open_rule(group, "203.0.113.7/32")
    rules = world.ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    for rule in rules["SecurityGroupRules"]:
        world.run("why", rule["SecurityGroupRuleId"])


def attach_to_all(world: World) -> None:
    """Attach a target to databases, services and caches."""
    with pytest.MonkeyPatch.context() as patch:
        mend_caches(patch)
        mend_deployments(patch, ["COMPLETED"])
        patch.setattr(attach, "PAUSE", 0.0)
        make_database(world, "orders")
        client("rds").create_db_cluster(
            DBClusterIdentifier="shop",
            Engine="aurora-postgresql",
            MasterUsername="u",
            MasterUserPassword="not-a-secret",
            VpcSecurityGroupIds=[world.office],
        )
        make_service(world)
        make_caches(world)
        places = ["--rds", "orders", "shop", "--ecs", "main/web", "--elasticache", "sessions", "queue"]
        world.ok("target", "add", "data", "--ports", "5432/tcp", *places)
        world.ok("target", "detach", "data", *places)


def look(world: World, grant_id: str) -> None:
    """Use every command that reads trail or ledger."""
    world.ok("grants")
    world.ok("trail")
    world.ok("trail", grant_id)
    world.run("trail", "--principal", "nobody")
    world.ok("trail", "--open-at", "1s")
    world.ok("report", "--month", f"{datetime.now(timezone.utc):%Y-%m}")
    world.ok("ledger", "203.0.113.7")
    world.run("doctor")


def copy(world: World) -> None:
    """Copy the trail to the other store, and back."""
    for _ in range(2):
        grant = world.record("alice")
        world.refuse()
        world.trail.end(grant.id, "revoked", datetime.now(timezone.utc), "ops", "")
        world.trail.close(grant.id, datetime.now(timezone.utc), "c", [], [])
        world.change_store()
        with mock.patch.object(trailcopy, "_paired", _unlisted):
            world.ok("trail", "copy", "--to", world.keeps)  # gets each item by its name
        world.ok("trail", "copy", "--to", world.keeps)


_listed = trailcopy._paired


def _unlisted(tally: trailcopy.Tally) -> Iterator[trailcopy.Pair]:
    """List no item of the destination, as an index that lags behind may."""
    return ((name, values, None) for name, values, _ in _listed(tally))


def grant_a_test(world: World) -> None:
    """Check the deployment with a short grant."""
    with scratch_api(world) as api, mock.patch.object(doctor, "PAUSE", 0.02):
        world.run("doctor", "--test-grant", "--api-url", api.url)
    assert api.asked[-1][0] == "GET /grants/doctor_1", api.asked


@dataclass(frozen=True)
class Call:
    """A call of knock-admin's, and the tags that its groups, or its API key, had then."""

    service: str
    region: str
    operation: str
    parameters: Mapping[str, Any]
    tags: Mapping[str, Mapping[str, str]]


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Record every call that knock-admin makes."""
    calls: list[Call] = []
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        if "knock-admin" in (client.meta.config.user_agent_extra or ""):
            service = client.meta.service_model.service_name
            groups = (
                {text for text in _texts(parameters) if text.startswith("sg-")} if service == "ec2" else set()
            )
            tags = {}
            if groups and not operation.startswith("Describe"):
                answer = real(client, "DescribeSecurityGroups", {"GroupIds": sorted(groups)})
                tags = {
                    group["GroupId"]: {tag["Key"]: tag["Value"] for tag in group["Tags"]}
                    for group in answer["SecurityGroups"]
                }
            elif service == "apigateway" and (key := parameters.get("apiKey")):
                tags = {key: real(client, "GetApiKey", {"apiKey": key})["tags"]}
            calls.append(Call(service, client.meta.region_name, operation, dict(parameters), tags))
        return real(client, operation, parameters)

    with mock.patch.object(BaseClient, "_make_api_call", call):
        yield calls


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
