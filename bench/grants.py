"""Grants put where a measurement needs them: many that end in one second, or many that have ended.

They are made by Knock's own code (functions/grants), past the knock API: it rounds the end up from the moment
it reads its clock, so knocks cannot all be made to end in one second, and it would take an hour to knock
100,000 times. From StartExecution on nothing differs from a knock.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from bench.stacks import ROOT, Stack, new_source, together

sys.path.insert(0, str(ROOT / "functions"))

from grants.executions import Executions
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, RuleKey, Target, name_grant

__all__ = ["Executions", "Grant", "Trail", "ended", "executions", "new_grant", "put", "start", "trail"]

AT_ONCE = 8  # threads that start grants
USERS = 20


def trail(stack: Stack) -> Trail:
    return Trail(stack.client("sdb"), stack.said["trail_domain"])


def executions(stack: Stack, machine_arn: str | None = None) -> Executions:
    return Executions(stack.client("stepfunctions"), machine_arn or stack.said["state_machine_arn"])


def new_grant(
    target: str,
    groups: list[str],
    at: datetime,
    expires_at: datetime,
    principal: Principal | None = None,
) -> Grant:
    """Make a grant of one rule for a source of its own."""
    who = principal or Principal("bench00000", "bench")
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


class _Sheet:
    """A SimpleDB client that writes on paper: what the trail would have put, as the item would be then."""

    def __init__(self) -> None:
        self.pairs: dict[str, list[str]] = {}

    def put_attributes(self, *, Attributes: list[Mapping[str, Any]], **_: Any) -> dict[str, Any]:  # noqa: N803
        for pair in Attributes:
            kept = [] if pair["Replace"] else self.pairs.setdefault(pair["Name"], [])
            self.pairs[pair["Name"]] = [*kept, pair["Value"]]
        return {}


def ended(number: int, now: datetime) -> Grant:
    """Make up a grant of the past: one every two minutes, by twenty users in turn."""
    at = now - timedelta(days=1, minutes=2 * number)
    user = number % USERS
    who = Principal(f"user{user:06}", f"user-{user:02}")
    return new_grant("bastion", ["sg-0a"], at, at.replace(microsecond=0) + timedelta(hours=8), who)


def put(stack: Stack, grants: list[Grant]) -> None:
    """Put ended grants into the trail, 25 a call, as the trail's own code would have left them."""
    sdb, domain = stack.client("sdb"), stack.said["trail_domain"]

    def batch(items: list[Grant]) -> None:
        sdb.batch_put_attributes(
            DomainName=domain, Items=[{"Name": g.id, "Attributes": list(_attributes(g))} for g in items]
        )

    together(2, batch, [grants[at : at + 25] for at in range(0, len(grants), 25)])


def _attributes(grant: Grant) -> Iterator[dict[str, str]]:
    sheet = _Sheet()
    record: Any = Trail(sheet, "paper")  # type: ignore[arg-type] # it is a client to the trail
    key = RuleKey(grant.targets[0].groups[0], grant.targets[0].ports[0], grant.source)
    rule, second = f"sgr-{secrets.token_hex(8)}", timedelta(seconds=1)
    record.record_request(grant)
    record.add_claims(grant.id, [key])
    record.record_rule(grant.id, key, rule, authorized_at=grant.requested_at + second)
    record.end(grant.id, "expired", grant.expires_at, "knock", "")
    record.close(grant.id, grant.expires_at + second, [rule], [])
    for name, values in sheet.pairs.items():
        for value in values:
            yield {"Name": name, "Value": value}
