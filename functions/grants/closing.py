"""Closing a grant: its end on record, its claim released, and every rule revoked that no other live grant
claims.

    close                                     force, where trail or ledger cannot be had
    end in the trail: the first writer wins   revoke the rules tagged with the grant's id, and the ids that
    release in the ledger                     its execution's state names, also where other grants claim them
    revoke what is closing, by id             once the ledger answers: those ids are lost, and close
    revoked in the ledger
    closed in the trail

A close is done when, in one reading of the ledger, the grant holds no claim and none of its rules is closing.
Its rules are every key of its targets: not those its claim named, which is gone by then. Every step may have
been done before, by this run or another, and is recorded as it is done, so that a close that is cut off makes
progress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from .errors import (
    EngineUnavailable,
    GrantNotFound,
    IngressRefused,
    IngressThrottled,
    IngressUnavailable,
    KnockError,
    RuleUnsettled,
)
from .ledger import (
    Ledger,
    LedgerRule,
    Snapshot,
    quiescent,
    record_ids,
    record_lost,
    record_revoked,
    release,
)
from .operations import Operations, RuleNotFound
from .timing import ENGINE_LAG, PROGRESS, SETTLES
from .values import Grant, Record, Rule, RuleKey, State

logger = logging.getLogger("knock")

# Sweeps over a source's closing rules, and late claims of the grant's own, before a run gives up.
SWEEPS = 50
LATE_CLAIMS = 8


@dataclass(frozen=True, slots=True)
class End:
    """How a grant ends, by whom and why; `closer` names the request, so that a retry recognizes its write."""

    how: State
    by: str
    reason: str = ""
    closer: str = ""


@dataclass(slots=True)
class CloseResult:
    """The result of closing a grant: rules revoked, by id, and keys kept for other live grants.

    `closed_now` is False when another request had closed the grant before.
    """

    grant_id: str
    state: str
    expires_at: datetime | None = None
    closed_now: bool = False
    revoked: list[str] = field(default_factory=list)
    kept: list[RuleKey] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "grant_id": self.grant_id,
            "status": self.state,
            "revoked": self.revoked,
            "kept": [str(key) for key in self.kept],
        }


# ---------------------------------------------------------------------------- close


def close(
    operations: Operations, grant: Grant, end: End, opened: Mapping[RuleKey, str] | None = None
) -> CloseResult:
    """End a grant and close it. The first end recorded stands; twice is once.

    `opened` are the ids of its own rules, where its execution's state names them. Raises GrantNotFound for a
    grant that was neither recorded nor started; RuleUnsettled while an attempt's result is not known; other
    transient errors; IngressRefused, StoreRefused.
    """
    _end(operations, grant, end)
    result = CloseResult(grant.id, end.how, grant.expires_at)
    rule_keys = set(grant.rule_keys)
    for _ in range(LATE_CLAIMS):
        snapshot = _release(operations, grant, opened or {}, rule_keys)
        snapshot = finish_closing(operations, grant.source, rule_keys, snapshot, result.revoked)
        if grant.id in snapshot.ledger.released and grant.id not in snapshot.ledger.claims:
            break  # this reading is of the ledger in which the claim was released
    else:
        raise RuleUnsettled(f"{grant.id} is claimed again and again in the ledger of {grant.source}")
    result.kept = sorted(snapshot.ledger.rules.keys() & rule_keys)
    kept = [str(key) for key in result.kept]
    result.closed_now = operations.trail.close(
        grant.id, operations.clock(), end.closer or end.how, result.revoked, kept
    )
    return result


def close_by_id(operations: Operations, grant_id: str, end: End) -> CloseResult:
    """Close a recorded grant of which only the id is known. Raises GrantNotFound, and what `close` does."""
    record = operations.trail.get(grant_id)
    if record is None:
        raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
    if record.closed_at:
        return closed_before(record)
    return close(operations, record.grant, end, own_rules(record))


def closed_before(record: Record) -> CloseResult:
    """Give the result for a grant that is closed on record: nothing to do."""
    return CloseResult(record.id, record.state, record.grant.expires_at)


def own_rules(record: Record) -> dict[RuleKey, str]:
    """Give the ids of the rules that a grant opened, foreign ones left out."""
    return {rule.key: rule.rule_id for rule in record.opened if not rule.foreign}


def _end(operations: Operations, grant: Grant, end: End) -> None:
    """Record the end, before anything else.

    Where there is no record yet, an ended one is written, so that a late authorize opens nothing; but none
    for a grant without an execution, whose input could be forged.
    """
    now = operations.clock()
    try:
        operations.trail.end(grant.id, end.how, now, end.by, end.reason)
    except GrantNotFound:
        if operations.executions.describe(grant.id) is None:
            if abs(now - grant.requested_at) < ENGINE_LAG:
                raise EngineUnavailable(f"Step Functions does not show {grant.id} yet") from None
            raise
        operations.trail.end(grant.id, end.how, now, end.by, end.reason, grant)


def _release(
    operations: Operations, grant: Grant, opened: Mapping[RuleKey, str], rule_keys: set[RuleKey]
) -> Snapshot:
    """Drop a grant's claim. Where the ledger has no trace of it, search for its rules and record them first.

    One write does both, so that a released grant on record proves the search. The keys that the search adds
    are added to `rule_keys`. Raises RuleUnsettled while a rule of an attempt that the ledger lost may be
    hidden.
    """
    lost_ids: dict[RuleKey, set[str]] = {}
    searched = may_be_hidden = False

    def transition(ledger: Ledger) -> Ledger:
        if not ledger.has_trace(grant.id) and (may_be_hidden or not searched):
            return record_ids(ledger, lost_ids, operations.clock())
        return record_ids(release(ledger, grant.id, operations.clock()), lost_ids, operations.clock())

    snapshot = operations.change(grant.source, transition)
    if not snapshot.ledger.has_trace(grant.id):
        lost_ids, may_be_hidden = _find_lost(operations, grant, opened)
        searched = True
        rule_keys.update(lost_ids)
        snapshot = operations.change(grant.source, transition, snapshot)
    if not snapshot.ledger.has_trace(grant.id):
        finish_closing(operations, grant.source, rule_keys, snapshot)
        raise RuleUnsettled(f"which rules were authorized for {grant.id} is not known yet")
    return snapshot


def _find_lost(
    operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]
) -> tuple[dict[RuleKey, set[str]], bool]:
    """Search for a grant's rules that its ledger may have lost: (ids by key, whether more may be hidden)."""
    record, now = operations.trail.get(grant.id), operations.clock()
    own = own_rules(record) if record else {}
    lost_ids: dict[RuleKey, set[str]] = {}
    if record and record.authorized_at and now < record.authorized_at + SETTLES:
        # EC2 may not show them yet. Later only rules that it shows count: the rest were revoked, perhaps by
        # an earlier try of this close, and a slow close that waited for those ids again would never end.
        lost_ids = {key: {rule_id} for key, rule_id in own.items()}
    for rule in (*operations.ingress.tagged(grant.id), *_named(operations, grant, {**own, **opened})):
        lost_ids.setdefault(rule.key, set()).add(rule.id)
    ended_at = record.ended_at if record and not record.unopened and not record.authorized_at else None
    return lost_ids, bool(ended_at and operations.clock() < ended_at + SETTLES)


def _named(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> list[Rule]:
    """List the rules that an execution's state names by id, and that are this grant's.

    That state may be forged. So only rules count that EC2 shows as Knock's own, and as made for this grant or
    of a key that this grant may have, since it shares such rules with other grants of its source.
    """
    shown, own_keys = operations.ingress.show(opened.values()), grant.rule_keys
    ours = filter(operations.ingress.is_ours, shown)
    return [rule for rule in ours if rule.grant_id == grant.id or rule.key in own_keys]


# ---------------------------------------------------------------------------- rules that are closing


@dataclass(slots=True)
class _Sweep:
    """The results of one pass over closing rules, by rule key.

    `gone` are ids that are revoked, `new_ids` those that EC2 shows and the ledger lacks, `without_effect` the
    quiescent attempts of which EC2 shows no rule.
    """

    gone: dict[RuleKey, set[str]] = field(default_factory=dict)
    new_ids: dict[RuleKey, set[str]] = field(default_factory=dict)
    without_effect: dict[RuleKey, frozenset[str]] = field(default_factory=dict)
    failures: list[KnockError] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    @property
    def progress(self) -> bool:
        return bool(self.gone or self.new_ids or self.without_effect)


def finish_closing(
    operations: Operations,
    source: str,
    rule_keys: Iterable[RuleKey],
    snapshot: Snapshot | None = None,
    revoked: list[str] | None = None,
) -> Snapshot:
    """Revoke those of some rules that are closing, until none is. Gives the ledger as it then is.

    Every run may, for any grant. Goes on to the other rules when one fails, and then raises the first
    failure; RuleUnsettled where results are not known yet. Ids that EC2 named as removed are added to
    `revoked`.
    """
    wanted = frozenset(rule_keys)
    for _ in range(SWEEPS):
        snapshot = snapshot or operations.ledgers.read(source)
        closing = snapshot.ledger.closing(wanted)
        if not closing:
            return snapshot
        sweep = _sweep(operations, snapshot.ledger, closing)
        if revoked is not None:
            revoked += sweep.revoked
        snapshot = operations.change(source, lambda ledger, s=sweep: _record(ledger, s, operations), snapshot)  # type: ignore[misc]
        if not snapshot.ledger.closing(wanted):
            return snapshot
        if not sweep.progress:
            for failure in sweep.failures:
                raise failure
            break
    raise RuleUnsettled(f"whether {len(closing)} rules of {source} are gone is not known yet")


def _record(ledger: Ledger, sweep: _Sweep, operations: Operations) -> Ledger:
    now = operations.clock()
    ledger = record_revoked(ledger, sweep.gone, sweep.without_effect, now)
    # A rule that was closing may be open again by now: its ids are then for its claimants' runs to find.
    closing = {
        key: ids for key, ids in sweep.new_ids.items() if (rule := ledger.rules.get(key)) and rule.closing
    }
    return record_ids(ledger, closing, now)


def _sweep(operations: Operations, ledger: Ledger, closing: Mapping[RuleKey, LedgerRule]) -> _Sweep:
    """Revoke closing rules, group by group, and look for attempts' rules. Stops after PROGRESS to record."""
    sweep, began = _Sweep(), operations.clock()
    groups: dict[str, dict[RuleKey, LedgerRule]] = {}
    for key, rule in closing.items():
        groups.setdefault(key.group, {})[key] = rule
    for group, rules in groups.items():
        if sweep.progress and operations.clock() >= began + PROGRESS:
            return sweep
        _revoke_group(operations, group, rules, sweep)
    attempted = {
        key: rule
        for key, rule in closing.items()
        if rule.attempts and rule.ids.keys() <= sweep.gone.get(key, set())
    }
    if attempted:
        _find_attempted(operations, ledger, attempted, sweep)
    return sweep


def _revoke_group(
    operations: Operations, group: str, rules: Mapping[RuleKey, LedgerRule], sweep: _Sweep
) -> None:
    """Revoke the ids of one group's closing rules: in one call, or one by one where that is refused."""
    ids = {name: (key, at) for key, rule in rules.items() for name, at in rule.ids.items()}
    batches = [sorted(ids)] if ids else []
    began = operations.clock()
    while batches:
        batch = batches.pop(0)
        if sweep.progress and operations.clock() >= began + PROGRESS:
            return
        try:
            removed = operations.ingress.revoke(group, batch)
        except RuleNotFound:
            removed = frozenset()
            if len(batch) > 1:
                batches += [[name] for name in batch]
                continue
        except KnockError as error:
            logger.warning("rule_not_revoked", extra={"group": group, "rules": batch})
            sweep.failures.append(error)
            continue
        sweep.revoked += sorted(removed)
        for name in batch:
            key, at = ids[name]
            # EC2 may not know an id yet that it gave a moment ago: NotFound proves nothing of a young one.
            if name in removed or operations.clock() >= at + SETTLES:
                sweep.gone.setdefault(key, set()).add(name)


def _find_attempted(
    operations: Operations, ledger: Ledger, attempted: Mapping[RuleKey, LedgerRule], sweep: _Sweep
) -> None:
    """Find the rules of attempts without a result. That EC2 shows none counts once they are quiescent."""
    asked_at = operations.clock()
    try:
        shown = operations.ingress.find({key.group for key in attempted})
    except KnockError as error:
        sweep.failures.append(error)
        return
    for key, rule in attempted.items():
        gone = sweep.gone.get(key, set())
        new_ids = {
            listed.id
            for listed in shown
            if listed.key == key
            and operations.ingress.is_ours(listed)
            and listed.id not in gone
            and not ledger.knows(listed.id)
        }
        if new_ids:
            sweep.new_ids[key] = new_ids
        elif all(quiescent(attempt, asked_at) for attempt in rule.attempts):
            sweep.without_effect[key] = rule.attempts


# ---------------------------------------------------------------------------- force


def force(
    operations: Operations, grant: Grant, end: End, opened: Mapping[RuleKey, str] | None = None
) -> CloseResult:
    """Close a grant, without trail and ledger if need be.

    With them this is `close`, and the ids that an earlier try revoked by force are recorded as lost. Without
    them, on their permanent errors too, the rules that are certainly this grant's own are revoked, also where
    other grants claim them: access may then end early, never late. The error is raised all the same, so that
    the task is retried until the close is on record.
    """
    try:
        _record_forced(operations, grant, opened or {})
        return close(operations, grant, end, opened)
    except (IngressRefused, IngressThrottled, IngressUnavailable, RuleUnsettled):
        raise  # trail and ledger answer: the failure is EC2's
    except (GrantNotFound, EngineUnavailable):
        raise  # the trail answers, and holds no such grant
    except Exception:  # whatever fails in trail or ledger, the rules are revoked
        operations.count("RevocationForced", 1)
        logger.exception("revoking_by_force", extra={"grant_id": grant.id})
        revoke_own(operations, grant.id, lambda: _shared(operations, grant, opened or {}))
        raise


def _shared(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> list[Rule]:
    """List a grant's rules that may carry another grant's tag: from its execution's state and its record.

    Both are needed: an event of a stopped execution carries no state, and the trail may not answer.
    """
    with suppress(KnockError):
        record = operations.trail.get(grant.id)
        opened = (own_rules(record) if record else {}) | dict(opened)
    return _named(operations, grant, opened)


def _record_forced(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> None:
    """Record as lost those of the execution's own ids that EC2, SETTLES after their record, does not show."""
    if not opened:
        return
    snapshot = operations.ledgers.read(grant.source)
    old = operations.clock() - SETTLES
    ids = {
        name
        for rule in snapshot.ledger.rules.values()
        for name, at in rule.ids.items()
        if not rule.closing and at <= old and name in set(opened.values())
    }
    if not ids:
        return
    lost = ids - {rule.id for rule in operations.ingress.show(ids)}
    if lost:
        operations.change(
            grant.source, lambda ledger: record_lost(ledger, lost, operations.clock()), snapshot
        )


def revoke_own(operations: Operations, grant_id: str, named: Callable[[], list[Rule]] = list) -> list[str]:
    """Revoke the rules that EC2 shows as Knock's and as this grant's: by its tag, and by its state.

    No other rule of the source is touched, so that a retry closes no grant that opened meanwhile. Goes on
    when one fails, and then raises the first failure.
    """
    ingress = operations.ingress
    failures: list[KnockError] = []
    rules: dict[str, Rule] = {}
    revoked: list[str] = []
    listings: list[Callable[[], list[Rule]]] = [lambda: ingress.tagged(grant_id), named]
    for list_rules in listings:
        try:
            rules |= {rule.id: rule for rule in list_rules()}
        except KnockError as error:
            failures.append(error)
    for rule in rules.values():
        try:
            revoked += ingress.revoke(rule.key.group, [rule.id])
        except RuleNotFound:
            continue
        except KnockError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return revoked


def close_tagged(operations: Operations, grant_id: str) -> list[str]:
    """Close, through their sources' ledgers, the rules that carry the tag of a grant that has no record.

    Such a grant's claims there are released. Gives the ids revoked.
    """
    revoked: list[str] = []
    by_source: dict[str, dict[RuleKey, set[str]]] = {}
    for rule in operations.ingress.tagged(grant_id):
        by_source.setdefault(rule.key.cidr, {}).setdefault(rule.key, set()).add(rule.id)
    for source, tagged in by_source.items():
        snapshot = operations.change(
            source,
            lambda ledger, t=tagged: _release_and_record(ledger, t, grant_id, operations.clock()),  # type: ignore[misc]
        )
        finish_closing(operations, source, tagged, snapshot, revoked)
    return revoked


def _release_and_record(
    ledger: Ledger, ids_by_key: Mapping[RuleKey, set[str]], grant_id: str, now: datetime
) -> Ledger:
    return record_ids(release(ledger, grant_id, now), ids_by_key, now)
