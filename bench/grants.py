"""Grants put where a measurement needs them: many that end in one second, or many that have ended.

They are made by Knock's own code (functions/grants), past the knock API: it rounds the end up from the moment
it reads its clock, so knocks cannot all be made to end in one second, and it would take an hour to knock
100,000 times. From StartExecution on nothing differs from a knock.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta

from bench.scale import BenchError
from bench.stacks import ROOT, Stack, new_source, together, wait_until

sys.path.insert(0, str(ROOT / "functions"))

from grants.executions import Executions
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, Target, name_grant, parse_time, show_second, show_time

__all__ = ["Ended", "Executions", "Grant", "Past", "Trail", "executions", "new_grant", "start", "trail"]

AT_ONCE = 8  # threads that start grants
USERS = 20


def trail(stack: Stack) -> Trail:
    return Trail(stack.client("sdb"), stack.said["trail_domain"])


def executions(stack: Stack, machine_arn: str | None = None) -> Executions:
    return Executions(stack.client("stepfunctions"), machine_arn or stack.said["state_machine_arn"])


def new_grant(target: str, groups: list[str], at: datetime, expires_at: datetime) -> Grant:
    """Make a grant of one rule for a source of its own."""
    who = Principal("bench00000", "bench")
    source = f"{new_source()}/32"
    return Grant(
        id=name_grant(who, source, at, secrets.token_hex(4)),
        principal=who,
        source=source,
        targets=(Target(target, (Ports.parse("22/tcp"),), tuple(groups)),),
        requested_at=at,
        expires_at=expires_at,
        reason="bench",
    )


def start(grants: list[Grant], machine: Executions, record: Trail | None) -> None:
    """Start grants as a knock does: the trail's record first (none: no trail), then the execution."""

    def one(grant: Grant) -> None:
        if record:
            record.record_request(grant)
        machine.start(grant)

    together(AT_ONCE, one, grants)


@dataclass(frozen=True)
class Ended:
    """A grant of the past, as the trail's item of it."""

    id: str
    order: str
    principal: str
    attributes: list[dict[str, str]]


class Past:
    """Grants of the past: copies of one that just ended, for other people, from elsewhere, at other times.

    So they are as long as real ones are, and hold what the trail's code of today writes.
    """

    def __init__(self, stack: Stack) -> None:
        """Open a grant for a second, and read its item when it is closed."""
        self._sdb, self._domain = stack.client("sdb"), stack.said["trail_domain"]
        answer = stack.call("POST", "/knock", "ci", new_source(), {"targets": ["bastion"], "duration": "1s"})
        if answer.status != 201:
            raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
        wait_until(lambda: "closed_at" in self._read(answer.json["id"]), "a grant of 1 s was not closed", 30)
        self._id = answer.json["id"]
        self._item = self._read(self._id)

    def _read(self, grant_id: str) -> dict[str, list[str]]:
        """Read an item; what is not yet is left out."""
        pairs = self._sdb.get_attributes(DomainName=self._domain, ItemName=grant_id, ConsistentRead=True)
        item: dict[str, list[str]] = {}
        for pair in pairs["Attributes"]:
            if pair["Value"] != "-":
                item.setdefault(pair["Name"], []).append(pair["Value"])
        return item

    def grant(self, number: int, now: datetime) -> Ended:
        """Make up one: every two minutes back from yesterday, by twenty users in turn."""
        (old_source,), (requested_at,), (old_name,) = (
            self._item[name] for name in ("source", "requested_at", "principal_name")
        )
        at = now - timedelta(days=1, minutes=2 * number)
        later = at - parse_time(requested_at)
        source = f"{new_source()}/32"
        user = Principal(f"user{number % USERS:06}", f"user-{number % USERS:02}")
        grant_id = name_grant(user, source, at, secrets.token_hex(4))
        changes = {
            self._id: grant_id,
            old_source: source,
            f'"by":"{old_name}"': f'"by":"{user.name}"',
            **{
                text: show(parse_time(text) + later)
                for name in ("requested_at", "authorized_at", "ended_at", "closed_at", "expires_at")
                for text in self._item[name]
                for show in (show_second if name == "expires_at" else show_time,)
            },
        }
        item = self._item | {"principal_id": [user.id], "principal_name": [user.name]}
        attributes = []
        for name, values in item.items():
            for value in values:
                for old, new in changes.items():
                    value = value.replace(old, new)
                attributes.append({"Name": name, "Value": value})
        return Ended(grant_id, f"{show_time(at)} {grant_id}", user.name, attributes)

    def put(self, grants: list[Ended]) -> None:
        """Put grants into the trail, 25 a call."""

        def batch(some: list[Ended]) -> None:
            items = [{"Name": grant.id, "Attributes": grant.attributes} for grant in some]
            self._sdb.batch_put_attributes(DomainName=self._domain, Items=items)

        together(2, batch, [grants[at : at + 25] for at in range(0, len(grants), 25)])
