"""An operator's day with knock-admin, and every AWS call it makes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from botocore.client import BaseClient

from knock_admin import doctor
from tests.clients.admin_support import CLOSINGS, MACHINE, STACK, World, client, scratch_api


class StoreUnavailable(Exception):
    """As the functions name it."""


def _unavailable(_payload: object) -> None:
    raise StoreUnavailable("SimpleDB did not answer")


def work(world: World) -> None:
    """Use every command, each in the ways that differ in what they ask AWS."""
    world.plan_stage()
    client("events").put_rule(Name=f"{STACK}-stopped", EventPattern='{"source": ["aws.states"]}')
    world.functions["guard"] = lambda _payload: {"findings": []}
    balancer = world.make_balancer(groups=[world.office])
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("target", "add", "web", "--ports", "80/tcp", "--load-balancer", balancer)
    world.ok("target", "grow", "bastion", "--groups", "2")
    world.ok("target", "ls")
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h")
    world.ok("key", "set", "alice", "--targets", "bastion", "web", "--operator", "--max-live", "9")
    world.ok("key", "set", "alice", "--no-operator")
    world.ok("key", "ls")
    world.ok("key", "disable", "alice")
    world.ok("key", "enable", "alice")
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
    world.run("revoke", grant.id)  # is handed over to a closing
    world.ok("trail")
    world.ok("trail", grant.id)
    world.ok("guard")
    world.ok("ledger", "203.0.113.7")
    grant_a_test(world)
    world.ok("target", "detach", "bastion", "--all")
    world.ok("target", "detach", "web", "--all")
    world.ok("target", "rm", "bastion")
    world.ok("key", "rm", "alice")


def grant_a_test(world: World) -> None:
    """Check the deployment, with a grant that closes soon."""
    with scratch_api(world) as api, mock.patch.object(doctor, "PAUSE", 0.02):
        world.run("doctor", "--test-grant", "--api-url", api.url)
    assert api.asked[-1][0] == "GET /grants/doctor_1", api.asked


@dataclass(frozen=True)
class Call:
    """One call of knock-admin's, and the tags that the groups in it had then."""

    service: str
    region: str
    operation: str
    asked: Mapping[str, Any]
    tags: Mapping[str, Mapping[str, str]]


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Record every call that knock-admin makes."""
    calls: list[Call] = []
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: BaseClient, operation: str, asked: dict[str, Any]) -> Any:
        if "knock-admin" in (client.meta.config.user_agent_extra or ""):
            service = client.meta.service_model.service_name
            groups = {text for text in _texts(asked) if text.startswith("sg-")} if service == "ec2" else set()
            tags = {}
            if groups and not operation.startswith("Describe"):
                found = real(client, "DescribeSecurityGroups", {"GroupIds": sorted(groups)})["SecurityGroups"]
                tags = {one["GroupId"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in found}
            calls.append(Call(service, client.meta.region_name, operation, dict(asked), tags))
        return real(client, operation, asked)

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
