"""Grants that a measurement needs: many that end in the same second, or many that have ended.

They are created by Knock's own code (functions/grants), without the knock API: that rounds the end up from
the time it reads, so knocks cannot all end in the same second, and 100,000 knocks would take an hour. From
StartExecution on nothing differs from a knock.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from bench.scale import BenchError
from bench.stacks import Stack, new_source, together, wait_until
from tools import ROOT

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
    return Trail(SimpleDb(stack.client("sdb"), stack.summary["trail_domain"]))


def executions(stack: Stack, machine_arn: str | None = None) -> Executions:
    return Executions(stack.client("stepfunctions"), machine_arn or stack.summary["state_machine_arn"])


def new_grant(
    target: str, groups: list[str], at: datetime, expires_at: datetime, source: str | None = None
) -> Grant:
    """Create a grant of one rule, for a new source unless one is named."""
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
    """Start grants and wait until they are open or have ended; in batches that this machine opens at once.

    Larger batches would wait for a function longer than a task's timeout, and would be retried.
    """
    machine, records = executions(stack), trail(stack)

    def is_open_or_ended(grant: Grant) -> bool:
        record = records.get(grant.id)
        return record is not None and (record.authorized_at is not None or record.state != "live")

    for at in range(0, len(grants), BATCH):
        start(grants[at : at + BATCH], machine)
        for grant in grants[at : at + BATCH]:
            wait_until(partial(is_open_or_ended, grant), f"{grant.id} did not open", 120, 0.05)


class _Written:
    """A store of a single item that keeps its attributes, in SimpleDB's form, and sends nothing."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._sets: list[tuple[str, str]] = []

    def put(
        self,
        name: str,  # noqa: ARG002 - there is a single item
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,  # noqa: ARG002 - there is no other writer
    ) -> None:
        self._values |= values
        self._sets += sets

    @property
    def attributes(self) -> list[dict[str, str]]:
        return [{"Name": name, "Value": text} for name, text in (*self._values.items(), *self._sets)]


class Past:
    """Ended grants, copied from one that has just ended, with other principals, sources and times.

    The trail's own code writes their items, so content and length are those of real items.
    """

    def __init__(self, stack: Stack) -> None:
        """Open a grant for a second, and read its record once it is closed."""
        self._sdb, self._domain = stack.client("sdb"), stack.summary["trail_domain"]
        answer = stack.call("POST", "/knock", "ci", new_source(), {"targets": ["bastion"], "duration": "1s"})
        if answer.status != 201:
            raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
        records = trail(stack)

        def closed() -> bool:
            record = records.get(answer.json["id"])
            return bool(record and record.closed_at)

        wait_until(closed, "a grant of 1 s was not closed", 30)
        self._model = records.get(answer.json["id"])

    def grant(self, number: int, now: datetime) -> Record:
        """Build a grant: numbers go back from yesterday by two minutes each, for twenty users in turn."""
        model = self._model
        if not (model and model.authorized_at and model.ended_at and model.closed_at):
            raise BenchError("a grant of 1 s was closed before it was open: too slow a machine")
        later = now - timedelta(days=1, minutes=2 * number) - model.grant.requested_at
        grant = Grant.decide(
            Principal(f"user{number % USERS:06}", f"user-{number % USERS:02}"),
            f"{new_source()}/32",
            model.grant.targets,
            model.grant.requested_at + later,
            model.grant.expires_at + later,
            by_name=model.grant.by_name,
            nonce=secrets.token_hex(8),
        )
        return replace(
            model,
            grant=grant,
            authorized_at=model.authorized_at + later,
            ended_at=model.ended_at + later,
            closed_at=model.closed_at + later,
            opened=tuple(replace(rule, key=replace(rule.key, cidr=grant.source)) for rule in model.opened),
        )

    def put(self, grants: list[Record]) -> None:
        """Put grants into the trail, 25 a call."""

        def put_batch(records: list[Record]) -> None:
            items = [{"Name": record.id, "Attributes": _attributes(record)} for record in records]
            self._sdb.batch_put_attributes(DomainName=self._domain, Items=items)

        together(2, put_batch, [grants[at : at + 25] for at in range(0, len(grants), 25)])


def _attributes(record: Record) -> list[dict[str, str]]:
    """Build the item of an ended grant by the four writes that Knock makes from its knock to its end."""
    if not (record.authorized_at and record.ended_at and record.closed_at):
        raise BenchError(f"{record.id} is not a grant that has ended")
    item = _Written()
    writer = Trail(item)  # type: ignore[arg-type]  # only its writes are called
    writer.record(record.grant)
    writer.authorize(record.id, record.authorized_at, record.opened)
    writer.end(record.id, record.state, record.ended_at, record.ended_by, record.end_reason)
    writer.close(record.id, record.closed_at, record.closer, [rule.rule_id for rule in record.opened], ())
    return item.attributes
