"""The drift guard: compares the trail, the rules tagged for this stack and the running executions.

It is a smoke detector, not a sweeper: nothing depends on it, and it is expected to find nothing. What it
finds is something that was lost on the way, an event of EventBridge's most likely (AWS delivers those at
best effort). It closes what should be closed, and never touches a foreign rule.

Rules are listed before the trail is read: a claim is written before its rule, so the trail explains
every rule in the list. What happened in the last GRACE is left alone: its own machinery is at work on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from .errors import GrantNotFound, KnockError
from .operations import Operations
from .values import Grant, Rule, RuleKey, State

logger = logging.getLogger("knock")

# Longer than the tasks' retries need when nothing is wrong, and than any list of AWS's is behind.
GRACE = timedelta(minutes=10)

BY = "the drift guard"  # who ended a grant, in the trail

UNCLAIMED_RULE = "rule without a live claim"
GONE_EXECUTION = "live grant without an execution"
UNCLOSED_GRANT = "ended grant not closed"
MISSING_RULE = "live claim without its rule"
LEFT_EXECUTION = "execution of an ended grant"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should not be, and what was done about it."""

    kind: str
    grant_id: str
    rule: str
    did: str

    def as_json(self) -> dict[str, str]:
        return {"kind": self.kind, "grant_id": self.grant_id, "rule": self.rule, "did": self.did}


def guard(operations: Operations) -> list[Finding]:
    """Find every drift and mend it, one at a time: a failure is in its finding and stops no other.

    Twice finds nothing the second time, but for live claims whose rule is missing: those are reported
    only, since somebody took the rule away by hand and may have meant it. Raises TrailUnavailable,
    IngressUnavailable or EngineUnavailable when there is nothing to compare.
    """
    return list(_Guard(operations).findings())


class _Guard:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._now = operations.clock()
        self._rules = operations.ingress.ours()
        self._running = set(operations.executions.running())
        self._unclosed = list(operations.trail.all_unclosed())

    def findings(self) -> Iterator[Finding]:
        for grant in self._unclosed:
            yield from self._of_grant(grant)
        # Whatever an unclosed grant claims is its own matter, dealt with just now or left alone.
        claimed = {key for grant in self._unclosed for key in grant.keys}
        for rule in self._rules:
            if rule.key not in claimed:
                yield from self._of_rule(rule)
        known = {grant.id for grant in self._unclosed}
        for name in sorted(self._running - known):
            yield from self._of_execution(name)

    def _recent(self, at: datetime) -> bool:
        return self._now - at < GRACE

    def _of_grant(self, grant: Grant) -> Iterator[Finding]:
        operations = self._operations
        if not grant.live_at(self._now):
            if not self._recent(grant.ended_at or grant.expires_at):
                yield _mend(
                    UNCLOSED_GRANT,
                    grant.id,
                    "",
                    lambda: _closed(operations.revoke(grant.id, "expired", BY).revoked),
                )
            return
        if self._recent(grant.requested_at):
            return
        if grant.id not in self._running:
            status = operations.executions.status(grant.id)
            if status != "RUNNING":
                how: State = "failed" if status == "FAILED" else "revoked"
                reason = f"its execution is {(status or 'gone').lower()}"
                yield _mend(
                    GONE_EXECUTION,
                    grant.id,
                    "",
                    lambda: _closed(operations.revoke(grant.id, how, BY, reason).revoked),
                )
                return
        there = {rule.key for rule in self._rules}
        for key in sorted(grant.claims - there):
            if not self._somebodys(key):
                yield Finding(MISSING_RULE, grant.id, str(key), "reported")

    def _somebodys(self, key: RuleKey) -> bool:
        """Say whether any rule, a foreign one too, lets the claim's source in."""
        return any(rule.key == key for rule in self._operations.ingress.find([key.group]))

    def _of_rule(self, rule: Rule) -> Iterator[Finding]:
        """Close a rule of ours nobody claims, unless a claim came since the trail was read."""
        closed: list[bool] = []

        def close() -> str:
            closed.append(self._operations.revoke_unclaimed(rule))
            return _closed([rule.id])

        finding = _mend(UNCLAIMED_RULE, rule.grant_id or "", f"{rule.id} {rule.key}", close)
        if closed != [False]:
            yield finding

    def _of_execution(self, name: str) -> Iterator[Finding]:
        """Stop an execution that outlived its grant: the console's list is of live grants."""
        grant = self._operations.trail.get(name)
        if grant is None:
            yield Finding(LEFT_EXECUTION, name, "", "reported: the trail holds no such grant")
        elif grant.ended_at and grant.closed_at and not self._recent(grant.ended_at):
            cause = f"the grant is {grant.state}"
            yield _mend(
                LEFT_EXECUTION,
                name,
                "",
                lambda: (
                    "stopped" if self._operations.executions.stop(name, "Drift", cause) else "gone by itself"
                ),
            )


def _closed(rules: list[str]) -> str:
    return f"closed {', '.join(rules)}" if rules else "closed; nothing was open"


def _mend(kind: str, grant_id: str, rule: str, act: Callable[[], str]) -> Finding:
    try:
        did = act()
    except GrantNotFound:
        did = "gone by itself"
    except KnockError as error:
        logger.exception("drift_not_mended", extra={"grant_id": grant_id, "kind": kind})
        did = f"failed: {error}"
    return Finding(kind, grant_id, rule, did)
