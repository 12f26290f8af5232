"""Closing a grant: its end on record, its claim released, and every rule revoked that no other live grant
claims.

    close                                     force, where trail or ledger cannot be had
    end in the trail: the first writer wins   revoke the rules tagged with the grant's id, and the ids that
    release in the ledger                     its execution's state names, whoever else claims them
    revoke what is closing, by id             once the ledger answers: those ids are lost, and close
    revoked in the ledger
    closed in the trail

A close is done when, in one reading of the ledger, the grant holds no claim and none of its rules is closing.
Its rules are every key of its targets: not what its claim named, which is gone by then. Every step may have
been done before, by this run or another; whatever was done stays done, so that a close that is cut off makes
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
    quiescent,
    record_found,
    record_lost,
    record_revoked,
    release,
)
from .ledgers import Snapshot
from .operations import Operations, RuleNotFound
from .timing import ENGINE_LAG, PROGRESS, SETTLES
from .values import Grant, Record, Rule, RuleKey, State

logger = logging.getLogger("knock")

# Sweeps over a source's closing rules, and late claims of the grant's own, that one run puts up with.
SWEEPS = 50
LATE_CLAIMS = 8


@dataclass(frozen=True, slots=True)
class End:
    """How a grant ends, by whom and why; `closer` names the request, so that a second try knows its own
    writing.
    """

    how: State
    by: str
    reason: str = ""
    closer: str = ""


@dataclass(slots=True)
class Revocation:
    """What closing a grant came to: rules revoked by id, and keys kept for other live grants.

    `closed_now` is False when the grant had been closed before by another request.
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
) -> Revocation:
    """End a grant and close it. The first end recorded stands; twice is once.

    `opened` are the ids of its own rules, where its execution's state names them. Raises GrantNotFound for a
    grant that was neither recorded nor started; RuleUnsettled while what an attempt came to cannot be known;
    other Unavailables; IngressRefused, StoreRefused.
    """
    _end(operations, grant, end)
    done = Revocation(grant.id, end.how, grant.expires_at)
    rule_keys = set(grant.rule_keys)
    for _ in range(LATE_CLAIMS):
        snapshot = _release(operations, grant, opened or {}, rule_keys)
        snapshot = finish_closing(operations, grant.source, rule_keys, snapshot, done.revoked)
        if grant.id in snapshot.ledger.released and grant.id not in snapshot.ledger.claims:
            break  # this reading is of the ledger that the claim was released in
    else:
        raise RuleUnsettled(f"what the ledger of {grant.source} knows of {grant.id} changes again and again")
    done.kept = sorted(snapshot.ledger.rules.keys() & rule_keys)
    kept = [str(key) for key in done.kept]
    done.closed_now = operations.trail.close(
        grant.id, operations.clock(), end.closer or end.how, done.revoked, kept
    )
    return done


def close_by_id(operations: Operations, grant_id: str, end: End) -> Revocation:
    """Close a recorded grant of which only the id is known. Raises GrantNotFound, and what `close` does."""
    record = operations.trail.get(grant_id)
    if record is None:
        raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
    if record.closed_at:
        return closed_before(record)
    return close(operations, record.grant, end, own_rules(record))


def closed_before(record: Record) -> Revocation:
    """Say of a grant that is closed that there was nothing to do."""
    return Revocation(record.id, record.state, record.grant.expires_at)


def own_rules(record: Record) -> dict[RuleKey, str]:
    """Give the ids of the rules that a grant opened, foreign ones left out."""
    return {rule.key: rule.rule_id for rule in record.opened if not rule.foreign}


def _end(operations: Operations, grant: Grant, end: End) -> None:
    """Record the end, as the first thing. Where there is no record yet, an ended one keeps a late run from
    opening.

    None is written for a grant without an execution: its input could be anybody's.
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
    """Drop a grant's claim. Where the ledger knows nothing of it, what it has opened is found first, and
    recorded.

    In the same write, so that the released grant on record says that this was done. The keys of what was
    found are added to `rule_keys`. Raises RuleUnsettled while an attempt that the ledger lost could go
    unseen.
    """
    found: dict[RuleKey, set[str]] = {}
    searched = unseen = False

    def transition(ledger: Ledger) -> Ledger:
        if not ledger.has_trace(grant.id) and (unseen or not searched):
            return record_found(ledger, found, operations.clock())
        return record_found(release(ledger, grant.id, operations.clock()), found, operations.clock())

    snapshot = operations.change(grant.source, transition)
    if not snapshot.ledger.has_trace(grant.id):
        found, unseen = _find_lost(operations, grant, opened)
        searched = True
        rule_keys.update(found)
        snapshot = operations.change(grant.source, transition, snapshot)
    if not snapshot.ledger.has_trace(grant.id):
        finish_closing(operations, grant.source, rule_keys, snapshot)
        raise RuleUnsettled(f"what was authorized for {grant.id} cannot be known yet")
    return snapshot


def _find_lost(
    operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]
) -> tuple[dict[RuleKey, set[str]], bool]:
    """Find what a grant has opened that its ledger may have lost; and say whether an attempt could go unseen
    yet.
    """
    record, now = operations.trail.get(grant.id), operations.clock()
    own = own_rules(record) if record else {}
    found: dict[RuleKey, set[str]] = {}
    if record and record.authorized_at and now < record.authorized_at + SETTLES:
        # EC2 may not show them yet. Later only what it shows counts: the rest was revoked, perhaps by an
        # earlier try of this close, and a slow close that waited for those ids again would never end.
        found = {key: {rule_id} for key, rule_id in own.items()}
    for rule in (*operations.ingress.tagged(grant.id), *_named(operations, grant, {**own, **opened})):
        found.setdefault(rule.key, set()).add(rule.id)
    ended_at = record.ended_at if record and not record.unopened and not record.authorized_at else None
    return found, bool(ended_at and operations.clock() < ended_at + SETTLES)


def _named(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> list[Rule]:
    """List the rules that an execution's state names by id, and that are this grant's.

    Anybody may have written that state. So only what EC2 shows counts: Knock's own, made for this grant, or
    of a key that this grant may have, since it shares such rules with other grants of its source.
    """
    shown, own_keys = operations.ingress.show(opened.values()), grant.rule_keys
    ours = filter(operations.ingress.is_ours, shown)
    return [rule for rule in ours if rule.grant_id == grant.id or rule.key in own_keys]


# ---------------------------------------------------------------------------- rules that are closing


@dataclass(slots=True)
class _Sweep:
    """What one pass over closing rules came to."""

    gone: dict[RuleKey, set[str]] = field(default_factory=dict)
    found: dict[RuleKey, set[str]] = field(default_factory=dict)
    silent: dict[RuleKey, frozenset[str]] = field(default_factory=dict)
    failures: list[KnockError] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    @property
    def progress(self) -> bool:
        return bool(self.gone or self.found or self.silent)


def finish_closing(
    operations: Operations,
    source: str,
    rule_keys: Iterable[RuleKey],
    snapshot: Snapshot | None = None,
    revoked: list[str] | None = None,
) -> Snapshot:
    """Revoke those of some rules that are closing, until none is; anybody may. Gives the ledger as it then
    is.

    Goes on to the other rules when one fails, and then raises the first failure; RuleUnsettled where what is
    left cannot be known yet. Ids that EC2 named as removed are added to `revoked`.
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
    raise RuleUnsettled(f"what became of {len(closing)} rules of {source} cannot be known yet")


def _record(ledger: Ledger, sweep: _Sweep, operations: Operations) -> Ledger:
    now = operations.clock()
    ledger = record_revoked(ledger, sweep.gone, sweep.silent, now)
    # What was seen as closing may be open by now, and what a list then showed is for its claimants to find.
    found = {key: ids for key, ids in sweep.found.items() if (rule := ledger.rules.get(key)) and rule.closing}
    return record_found(ledger, found, now)


def _sweep(operations: Operations, ledger: Ledger, closing: Mapping[RuleKey, LedgerRule]) -> _Sweep:
    """Revoke what is closing, group by group, and look for what attempts came to. Stops when there is much to
    record.
    """
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
        _look_for(operations, ledger, attempted, sweep)
    return sweep


def _revoke_group(
    operations: Operations, group: str, rules: Mapping[RuleKey, LedgerRule], sweep: _Sweep
) -> None:
    """Revoke the ids of one group's closing rules: in one call, and one by one where that is refused as a
    whole.
    """
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
            # EC2 may not know an id yet that it gave a moment ago: NotFound says nothing of a young one.
            if name in removed or operations.clock() >= at + SETTLES:
                sweep.gone.setdefault(key, set()).add(name)


def _look_for(
    operations: Operations, ledger: Ledger, attempted: Mapping[RuleKey, LedgerRule], sweep: _Sweep
) -> None:
    """Look in EC2 for what attempts without a result came to. Nothing shown proves something when they are
    quiescent.
    """
    asked_at = operations.clock()
    try:
        shown = operations.ingress.find({key.group for key in attempted})
    except KnockError as error:
        sweep.failures.append(error)
        return
    for key, rule in attempted.items():
        gone = sweep.gone.get(key, set())
        there = {
            one.id
            for one in shown
            if one.key == key
            and operations.ingress.is_ours(one)
            and one.id not in gone
            and not ledger.knows(one.id)
        }
        if there:
            sweep.found[key] = there
        elif all(quiescent(attempt, asked_at) for attempt in rule.attempts):
            sweep.silent[key] = rule.attempts


# ---------------------------------------------------------------------------- force


def force(
    operations: Operations, grant: Grant, end: End, opened: Mapping[RuleKey, str] | None = None
) -> Revocation:
    """Close a grant, without trail and ledger if need be.

    With them this is `close`, and what an earlier try revoked by force is recorded as lost. Without them,
    permanent errors of theirs included, the rules that are certainly this grant's own go, whoever else claims
    them: access may then end early, never late. The error is raised all the same, so that this runs again
    until the trail can tell.
    """
    try:
        _record_forced(operations, grant, opened or {})
        return close(operations, grant, end, opened)
    except (IngressRefused, IngressThrottled, IngressUnavailable, RuleUnsettled):
        raise  # trail and ledger are there, and EC2 is what holds things up
    except (GrantNotFound, EngineUnavailable):
        raise  # the trail is there, and knows of no such grant
    except Exception:  # whatever is wrong with trail or ledger, the door is closed
        operations.count("RevocationForced", 1)
        logger.exception("revoking_by_force", extra={"grant_id": grant.id})
        revoke_own(operations, grant.id, lambda: _shared(operations, grant, opened or {}))
        raise


def _shared(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> list[Rule]:
    """List the rules that a grant has though they may carry another's tag: by its state, and by the trail if
    it answers.

    The state of a stopped execution is not at hand, and it may be the ledger alone that cannot be had.
    """
    with suppress(KnockError):
        record = operations.trail.get(grant.id)
        opened = (own_rules(record) if record else {}) | dict(opened)
    return _named(operations, grant, opened)


def _record_forced(operations: Operations, grant: Grant, opened: Mapping[RuleKey, str]) -> None:
    """Record as lost those of the execution's own ids that EC2, asked long after, does not show any more."""
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

    Nothing else of the source is touched, so that a door that opens later is not shut by a try that comes
    again. Goes on when one fails, and then raises the first failure.
    """
    ingress = operations.ingress
    failures: list[KnockError] = []
    rules: dict[str, Rule] = {}
    revoked: list[str] = []
    looks: list[Callable[[], list[Rule]]] = [lambda: ingress.tagged(grant_id), named]
    for look in looks:
        try:
            rules |= {rule.id: rule for rule in look()}
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

    What such a grant claims there is released. Gives the ids revoked.
    """
    revoked: list[str] = []
    by_source: dict[str, dict[RuleKey, set[str]]] = {}
    for rule in operations.ingress.tagged(grant_id):
        by_source.setdefault(rule.key.cidr, {}).setdefault(rule.key, set()).add(rule.id)
    for source, found in by_source.items():
        snapshot = operations.change(
            source,
            lambda ledger, f=found: _found_without_claim(ledger, f, grant_id, operations.clock()),  # type: ignore[misc]
        )
        finish_closing(operations, source, found, snapshot, revoked)
    return revoked


def _found_without_claim(
    ledger: Ledger, found: Mapping[RuleKey, set[str]], grant_id: str, now: datetime
) -> Ledger:
    return record_found(release(ledger, grant_id, now), found, now)
