"""The drift guard: compares the trail, the ledgers, the rules tagged for this stack and running executions.

It is a smoke detector, not a sweeper: only a grant whose stop event was lost depends on it, and it is
expected to find nothing. It closes what should be closed through the ledger, as every close does, and never
touches a foreign rule.

Each step stands alone: one that fails is a finding, and the others go on. Items that cannot be read, and
times in the future, are findings too. Changes of the last GRACE are left alone: their own runs and retries
may not be done. Rules are listed before the ledgers are read: a claim is written before its rule, so the
ledgers explain every rule in the list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from .closing import End, close, finish_closing, own_rules
from .errors import GrantNotFound, KnockError
from .ledger import Ledger, Snapshot, attempted_at, record_ids, release, tidy
from .operations import Operations
from .timing import GRACE
from .values import Record, Rule, RuleKey, State, Unreadable, requested_at_of, show_time

logger = logging.getLogger("knock")

BY = "the drift guard"  # as the trail names it, in `ended_by`

UNCLAIMED_RULE = "rule without a live claim"
GONE_EXECUTION = "live grant without an execution"
UNCLOSED_GRANT = "ended grant not closed"
MISSING_RULE = "live claim without its rule"
MISSING_CLAIM = "live grant without its claim"
LEFT_CLAIM = "claim without a live grant"
LEFT_EXECUTION = "execution of an ended grant"
UNREADABLE = "item that cannot be read"
FUTURE = "time in the future"
NOT_LOOKED = "could not look"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One drift, and what the guard did about it."""

    kind: str
    grant_id: str
    rule: str
    did: str

    def as_json(self) -> dict[str, str]:
        return {"kind": self.kind, "grant_id": self.grant_id, "rule": self.rule, "did": self.did}


def guard(operations: Operations) -> Iterator[Finding]:
    """Find every drift and repair it, one at a time; each finding is given as soon as it is made.

    A second run finds nothing but what the first only reported: a live claim whose rule is missing, since an
    operator may have removed it on purpose, items that cannot be read, and times in the future.
    """
    return _Guard(operations).findings()


@dataclass(slots=True)
class _Guard:
    operations: Operations
    now: datetime = field(init=False)
    rules: list[Rule] | None = None
    running: dict[str, datetime] | None = None
    records: dict[str, Record] = field(default_factory=dict)
    ledgers: dict[str, Snapshot] = field(default_factory=dict)
    unreadable_grants: set[str] = field(default_factory=set)  # grants whose records cannot be read
    unreadable_sources: set[str] | None = None  # sources whose ledgers cannot be read; None: not listed

    def __post_init__(self) -> None:
        self.now = self.operations.clock()

    def findings(self) -> Iterator[Finding]:
        operations = self.operations
        self.rules = yield from self._list_side("rules", operations.ingress.ours)
        self.running = yield from self._list_side("executions", lambda: dict(operations.executions.running()))
        records = yield from self._list_side("trail", lambda: list(operations.trail.unclosed()))
        ledgers = yield from self._list_side("ledgers", lambda: list(operations.ledgers.all()))
        for item in (*(records or ()), *(ledgers or ())):
            if isinstance(item, Unreadable):
                yield Finding(UNREADABLE, item.name, "", f"reported: {item.why}"[:300])
        if ledgers is not None:
            self.unreadable_sources = {item.name for item in ledgers if isinstance(item, Unreadable)}
        self.unreadable_grants = {item.name for item in records or () if isinstance(item, Unreadable)}
        self.records = {item.id: item for item in records or () if isinstance(item, Record)}
        self.ledgers = {item.ledger.source: item for item in ledgers or () if isinstance(item, Snapshot)}
        for record in self.records.values():
            yield from self._step(record.id, self._of_record(record))
        if records is not None and ledgers is not None:
            for snapshot in self.ledgers.values():
                yield from self._step(snapshot.ledger.source, self._of_ledger(snapshot))
            for rule in self.rules or ():
                yield from self._step(rule.grant_id or "", self._of_rule(rule))
        for name, started in sorted((self.running or {}).items()):
            if name not in self.records.keys() | self.unreadable_grants:
                yield from self._step(name, self._of_execution(name, started))

    def _list_side(self, side: str, listing: Callable[[], T]) -> Generator[Finding, None, T | None]:
        """List one side of the comparison; None, and a finding, where that fails."""
        try:
            return listing()
        except KnockError as error:
            logger.exception("drift_check_failed", extra={"side": side})
            yield Finding(NOT_LOOKED, "", "", f"failed: the {side} could not be listed: {error}")
            return None

    def _step(self, name: str, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Give the findings of one step; one that fails is a finding too, and stops no other step."""
        try:
            yield from findings
        except KnockError as error:
            logger.exception("drift_check_failed", extra={"grant_id": name})
            yield Finding(NOT_LOOKED, name, "", f"failed: {error}")

    def _recent(self, at: datetime) -> bool:
        return abs(self.now - at) < GRACE

    def _future(self, grant_id: str, source: str, times: Iterable[datetime | None]) -> Iterator[Finding]:
        """Report a time that is still to come: steps that wait for it would wait for as long."""
        at = max((at for at in times if at), default=self.now)
        if at >= self.now + GRACE:
            yield Finding(FUTURE, grant_id, source, f"reported: {show_time(at)}")

    # ------------------------------------------------------------------ one grant, one ledger, one rule, …

    def _of_record(self, record: Record) -> Iterator[Finding]:
        operations, grant = self.operations, record.grant
        times = (grant.requested_at, record.authorized_at, record.ended_at)
        yield from self._future(record.id, "", times)
        if not record.live_at(self.now):
            if not self._recent(record.ended_at or grant.expires_at):
                yield self._close(UNCLOSED_GRANT, record, "expired", "")
            return
        if self._recent(grant.requested_at):
            return
        if self.running is not None and record.id not in self.running:
            execution = operations.executions.describe(record.id)  # a list may have left it out
            status = execution.status if execution else "gone"
            if status != "RUNNING":
                how: State = "failed" if status == "FAILED" else "revoked"
                yield self._close(GONE_EXECUTION, record, how, f"its execution is {status.lower()}")
                return
        yield from self._of_live(record)

    def _of_live(self, record: Record) -> Iterator[Finding]:
        """Report what a live grant lacks: its claim, or a rule that was removed by hand."""
        snapshot = self.ledgers.get(record.grant.source)
        if not record.authorized_at or self.rules is None:
            return
        claim = snapshot.ledger.claims.get(record.id) if snapshot else None
        own, lacking = own_rules(record), list[Finding]()
        unreadable = self.unreadable_sources
        if claim is None and own and unreadable is not None and record.grant.source not in unreadable:
            lacking.append(Finding(MISSING_CLAIM, record.id, "", "reported: its rules are closed at its end"))
        listed = {rule.key for rule in self.rules}
        for key in sorted(own.keys() - listed):
            if not any(rule.key == key for rule in self.operations.ingress.find([key.group])):
                lacking.append(Finding(MISSING_RULE, record.id, str(key), "reported"))
        if lacking:
            current = self.operations.trail.get(record.id)
            if current and current.state == "live":  # else it ended since it was listed
                yield from lacking

    def _close(self, kind: str, record: Record, how: State, reason: str) -> Finding:
        end = End(how, BY, reason, closer=BY)

        def act() -> str:
            return _closed(close(self.operations, record.grant, end, own_rules(record)).revoked)

        return _repair(kind, record.id, "", act)

    def _of_ledger(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Release claims of ended grants, finish what is closing, and tidy the ledger."""
        operations, source, ledger = self.operations, snapshot.ledger.source, snapshot.ledger
        rules = ledger.rules.values()
        attempts = {attempted_at(attempt) for rule in rules for attempt in rule.attempts}
        ids = {at for rule in rules for at in rule.ids.values()}
        yield from self._future(
            "", source, {*attempts, *ids, *ledger.tombstones.values(), *ledger.released.values()}
        )
        for grant_id in sorted(snapshot.ledger.claims):
            if self._is_over(grant_id):
                yield _repair(
                    LEFT_CLAIM,
                    grant_id,
                    "",
                    lambda name=grant_id: self._release(source, name),  # type: ignore[misc]
                )
        left = set() if any(map(self._recent, ledger.released.values())) else self._left_closing(ledger)
        if left:
            keys = ", ".join(map(str, sorted(left)))[:300]
            yield _repair(UNCLAIMED_RULE, "", keys, lambda: self._finish(source, left))
        operations.change(source, lambda ledger: tidy(ledger, operations.clock()))

    def _left_closing(self, ledger: Ledger) -> set[RuleKey]:
        """Give the closing rules that no recent run is closing."""
        unclosed = (record for record in self.records.values() if record.grant.source == ledger.source)
        ending = (r.grant for r in unclosed if self._recent(r.ended_at or r.grant.expires_at))
        busy = {key for grant in ending for key in grant.rule_keys}
        return {
            key
            for key, rule in ledger.closing(ledger.rules.keys() - busy).items()
            if not any(map(self._recent, {*rule.ids.values(), *map(attempted_at, rule.attempts)}))
        }

    def _is_over(self, grant_id: str) -> bool:
        """Say whether a claim's grant is over: closed, or neither listed nor its execution running."""
        at = requested_at_of(grant_id)
        if grant_id in self.records.keys() | self.unreadable_grants or (at and self._recent(at)):
            return False  # an unclosed grant is closed by its record, and an unreadable record is reported
        record = self.operations.trail.get(grant_id)
        if record is not None and record.closed_at is not None:
            return not self._recent(record.closed_at)
        # Without a record; or with one that is in no list, as a forged one can be.
        execution = self.operations.executions.describe(grant_id)
        return execution is None or execution.status != "RUNNING"

    def _release(self, source: str, grant_id: str) -> str:
        operations = self.operations
        snapshot = operations.change(source, lambda ledger: release(ledger, grant_id, operations.clock()))
        revoked: list[str] = []
        finish_closing(operations, source, snapshot.ledger.rules, snapshot, revoked)
        return _closed(revoked)

    def _finish(self, source: str, rule_keys: set[RuleKey]) -> str:
        revoked: list[str] = []
        finish_closing(self.operations, source, rule_keys, revoked=revoked)
        return _closed(revoked)

    def _of_rule(self, rule: Rule) -> Iterator[Finding]:
        """Close a rule of Knock's that no ledger knows, unless a live grant opened or claims it."""
        if any(self._knows(snapshot.ledger, rule.id) for snapshot in self.ledgers.values()):
            return
        record = self.records.get(rule.grant_id or "")
        if record and (record.live_at(self.now) or self._recent(record.grant.expires_at)):
            return  # the grant's own close finds the rule by its tag
        source = record.grant.source if record else rule.key.cidr
        closed: list[str] = []

        def act() -> str:
            operations = self.operations
            snapshot = operations.change(
                source, lambda ledger: record_ids(ledger, {rule.key: {rule.id}}, operations.clock())
            )
            finish_closing(operations, source, {rule.key}, snapshot, closed)
            return _closed(closed)

        finding = _repair(UNCLAIMED_RULE, rule.grant_id or "", f"{rule.id} {rule.key}", act)
        if closed or finding.did.startswith("failed"):
            yield finding

    def _knows(self, ledger: Ledger, rule_id: str) -> bool:
        """Say whether a ledger has an id; but not if it says that its rule is to be revoked in the future."""
        revoked_at = ledger.tombstones.get(rule_id)
        return ledger.knows(rule_id) and not (revoked_at and revoked_at >= self.now + GRACE)

    def _of_execution(self, name: str, started: datetime) -> Iterator[Finding]:
        """Stop an execution that outlived its grant: running executions are the live grants."""
        record = self.operations.trail.get(name)
        if record is None:
            if not self._recent(started):
                yield Finding(LEFT_EXECUTION, name, "", "reported: the trail holds no such grant")
        elif record.ended_at and record.closed_at and not self._recent(record.ended_at):
            cause = f"the grant is {record.state}"
            yield _repair(
                LEFT_EXECUTION,
                name,
                "",
                lambda: (
                    "stopped" if self.operations.executions.stop(name, "Drift", cause) else "gone by itself"
                ),
            )


def _closed(rules: Iterable[str]) -> str:
    names = ", ".join(rules)
    return f"closed {names}" if names else "closed; nothing was open"


def _repair(kind: str, grant_id: str, rule: str, act: Callable[[], str]) -> Finding:
    try:
        did = act()
    except GrantNotFound:
        did = "gone by itself"
    except KnockError as error:
        logger.exception("drift_repair_failed", extra={"grant_id": grant_id, "kind": kind})
        did = f"failed: {error}"
    return Finding(kind, grant_id, rule, did)
