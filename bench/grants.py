"""Grants put where a measurement needs them: many that end in one second, or many that have ended.

They are made by Knock's own code (functions/grants), past the knock API: it rounds the end up from the moment
it reads its clock, so knocks cannot all be made to end in one second, and it would take an hour to knock
100,000 times. From StartExecution on nothing differs from a knock.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from bench.scale import BenchError
from bench.stacks import ROOT, Stack, new_source, together, wait_until

sys.path.insert(0, str(ROOT / "functions"))

from grants.executions import Executions
from grants.simpledb import SimpleDb
from grants.store import Expected
from grants.trail import Trail
from grants.values import Grant, Ports, Principal, Record, Target

__all__ = ["Executions", "Grant", "Past", "Record", "executions", "new_grant", "open_all", "start", "trail"]

AT_ONCE = 8  # threads that start grants
BATCH = 50  # grants that are being opened at the same time
USERS = 20


def trail(stack: Stack) -> Trail:
    return Trail(SimpleDb(stack.client("sdb"), stack.said["trail_domain"]))


def executions(stack: Stack, machine_arn: str | None = None) -> Executions:
    return Executions(stack.client("stepfunctions"), machine_arn or stack.said["state_machine_arn"])


def new_grant(
    target: str, groups: list[str], at: datetime, expires_at: datetime, source: str | None = None
) -> Grant:
    """Make a grant of one rule, for a source of its own unless one is named."""
    return Grant.decide(
        Principal("bench00000", "bench"),
        f"{source or new_source()}/32",
        (Target(target, (Ports.parse("22/tcp"),), tuple(groups)),),
        at,
        expires_at,
        reason="bench",
        nonce=secrets.token_hex(8),
    )


def start(grants: list[Grant], machine: Executions) -> None:
    """Start grants as a knock does: by their executions, which record and open them."""
    together(AT_ONCE, machine.start, grants)


def open_all(stack: Stack, grants: list[Grant]) -> None:
    """Start grants and wait until they are open, or over; as many at a time as this machine opens at once.

    More would wait for a function longer than the state machine lets a task run, and be tried again.
    """
    machine, kept = executions(stack), trail(stack)

    def is_settled(grant: Grant) -> bool:
        known = kept.get(grant.id)
        return known is not None and (known.authorized_at is not None or known.state != "live")

    for at in range(0, len(grants), BATCH):
        start(grants[at : at + BATCH], machine)
        for grant in grants[at : at + BATCH]:
            wait_until(partial(is_settled, grant), f"{grant.id} did not open", 120, 0.05)


class _Written:
    """A store that keeps what is written to one item, as SimpleDB's attributes, and sends nothing."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._sets: list[tuple[str, str]] = []

    def put(
        self,
        name: str,  # noqa: ARG002 - the item is one
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,  # noqa: ARG002 - nobody else writes
    ) -> None:
        self._values |= values
        self._sets += sets

    @property
    def attributes(self) -> list[dict[str, str]]:
        return [{"Name": name, "Value": text} for name, text in (*self._values.items(), *self._sets)]


class Past:
    """Grants of the past: like one that just ended, for other people, from elsewhere, at other times.

    The trail's own code writes their items, so they hold what it writes today, and are as long.
    """

    def __init__(self, stack: Stack) -> None:
        """Open a grant for a second, and read its record when it is closed."""
        self._sdb, self._domain = stack.client("sdb"), stack.said["trail_domain"]
        answer = stack.call("POST", "/knock", "ci", new_source(), {"targets": ["bastion"], "duration": "1s"})
        if answer.status != 201:
            raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
        kept = trail(stack)

        def closed() -> bool:
            record = kept.get(answer.json["id"])
            return bool(record and record.closed_at)

        wait_until(closed, "a grant of 1 s was not closed", 30)
        self._like = kept.get(answer.json["id"])

    def grant(self, number: int, now: datetime) -> Record:
        """Make up one: every two minutes back from yesterday, by twenty users in turn."""
        like = self._like
        if not (like and like.authorized_at and like.ended_at and like.closed_at):
            raise BenchError("a grant of 1 s was closed before it was open: too slow a machine")
        later = now - timedelta(days=1, minutes=2 * number) - like.grant.requested_at
        grant = Grant.decide(
            Principal(f"user{number % USERS:06}", f"user-{number % USERS:02}"),
            f"{new_source()}/32",
            like.grant.targets,
            like.grant.requested_at + later,
            like.grant.expires_at + later,
            by_name=like.grant.by_name,
            nonce=secrets.token_hex(8),
        )
        return replace(
            like,
            grant=grant,
            authorized_at=like.authorized_at + later,
            ended_at=like.ended_at + later,
            closed_at=like.closed_at + later,
            opened=tuple(replace(rule, key=replace(rule.key, cidr=grant.source)) for rule in like.opened),
        )

    def put(self, grants: list[Record]) -> None:
        """Put grants into the trail, 25 a call."""

        def batch(some: list[Record]) -> None:
            items = [{"Name": one.id, "Attributes": _attributes(one)} for one in some]
            self._sdb.batch_put_attributes(DomainName=self._domain, Items=items)

        together(2, batch, [grants[at : at + 25] for at in range(0, len(grants), 25)])


def _attributes(record: Record) -> list[dict[str, str]]:
    """Write the item of a grant from its knock to its end, as Knock writes it in four steps."""
    if not (record.authorized_at and record.ended_at and record.closed_at):
        raise BenchError(f"{record.id} is not a grant that has ended")
    written = _Written()
    kept = Trail(written)  # type: ignore[arg-type]  # only what writes is called
    kept.record(record.grant)
    kept.authorize(record.id, record.authorized_at, record.opened)
    kept.end(record.id, record.state, record.ended_at, record.ended_by, record.end_reason)
    kept.close(record.id, record.closed_at, record.closer, [rule.rule_id for rule in record.opened], ())
    return written.attributes
