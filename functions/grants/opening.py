"""Authorizing what a grant asks for.

    claim in the ledger            ─┐ one of         end in the trail
    record in the trail, or find it │ them sees
    ended: release, open nothing   ─┘ the other      release in the ledger
    finish what is closing of these rules            revoke what is closing, by id
    EC2: authorize, one call a group
    result in the ledger (own claim gone:
      the rule is closing: revoke it)
    authorized in the trail

Nothing of the input is trusted: tags and limits are checked again first. Only authorizing creates rules, and
only between `requested_at` and `expires_at`, within ACTS of its attempt's beginning.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from . import policy
from .closing import End, close, finish_closing, own_rules
from .errors import (
    GrantEnded,
    IngressRefused,
    IngressThrottled,
    InvalidGrant,
    KnockError,
    PoolExhausted,
    RuleUnsettled,
    StoreUnavailable,
)
from .ledger import (
    Foreign,
    Ledger,
    NoRule,
    Own,
    Result,
    Snapshot,
    Unsent,
    attempted_at,
    claim,
    name_attempt,
    record_results,
    release,
)
from .operations import Group, GroupFull, GroupGone, Operations, RuleDuplicate
from .timing import ACTS, PROGRESS
from .values import Grant, Opened, Ports, Record, Rule, RuleKey, Target

logger = logging.getLogger("knock")

# Of rules on record, how many a run still authorizes: only that call shows at once what was removed by hand,
# or by force in an outage. For the rest it believes EC2's list, so that a run over many shared rules ends.
MOST_PROBES = 8


@dataclass(slots=True)
class _Placement:
    """One range of ports of a target, to be opened in one group of its pool: the first that has room."""

    target: str
    ports: Ports
    candidates: list[RuleKey]
    result: Own | Foreign | None = None

    @property
    def key(self) -> RuleKey:
        return self.candidates[0]


@dataclass(slots=True)
class _Run:
    """One run of authorize: its attempt, its placements, and the results that are not in the ledger yet."""

    grant: Grant
    attempt: str
    placements: list[_Placement]
    groups: Mapping[str, Group]
    snapshot: Snapshot
    last_groups: Mapping[str, str]  # target → the last group of its pool
    recorded_at: datetime
    results: dict[RuleKey, Result] = field(default_factory=dict)
    listed: list[Rule] = field(default_factory=list)  # EC2's list of the placements' groups, once read
    sent: set[RuleKey] = field(default_factory=set)  # keys of calls whose effect is not known
    probes: int = 0  # rules on record that EC2 was asked for

    @property
    def pending(self) -> list[_Placement]:
        return [placement for placement in self.placements if placement.result is None]

    @property
    def candidate_groups(self) -> set[str]:
        return {placement.key.group for placement in self.placements}


def authorize(operations: Operations, grant: Grant, *, too_large: bool = False) -> list[Opened]:
    """Open what a grant asks for, and then end the grant it renews. Twice adds nothing.

    A grant that is open cannot fail any more: a second run of its input must not end it by an error, and no
    more may a copy of it that is `too_large` for the rules to be added.
    Raises GrantEnded (and leaves nothing open) when the grant has ended; InvalidGrant, TargetGone,
    SourceFull, PoolExhausted, IngressRefused, StoreRefused; any Unavailable is transient.
    """
    _refuse_ended(operations, grant)
    try:
        if too_large:
            raise InvalidGrant("the execution's input is too large: no room is left for the rules")
        opened = _authorize(operations, grant)
    except (GrantEnded, StoreUnavailable):
        raise
    except KnockError:
        record = _authorized_record(operations, grant)
        if record is None:
            raise
        logger.warning("already_authorized", extra={"grant_id": grant.id}, exc_info=True)
        opened = list(record.opened)
    if grant.renews:
        supersede(operations, grant, grant.renews)
    return opened


def _authorized_record(operations: Operations, grant: Grant) -> Record | None:
    """Read the record of a grant that another run has opened; None where it cannot be read, or is no such."""
    with suppress(KnockError):
        record = operations.trail.get(grant.id)
        if record and record.live_at(operations.clock()) and record.authorized_at:
            return record
    return None


def _has_all(ledger: Ledger, record: Record) -> bool:
    """Say whether the ledger has every rule that a grant opened: one that was lost has to be filled again."""
    rules = ledger.rules
    return all(
        own.foreign or ((rule := rules.get(own.key)) and not rule.closing and own.rule_id in rule.ids)
        for own in record.opened
    )


def _authorize(operations: Operations, grant: Grant) -> list[Opened]:
    groups = operations.ingress.groups(group for target in grant.targets for group in target.groups)
    targets, left_out = _confirm(operations, grant, groups)
    run = _claim(operations, grant, targets, groups)
    try:
        record = operations.trail.record(grant)
        if record.state != "live":
            raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")
        if record.grant != grant:  # an id is a digest of 64 bits: two inputs of one id can be searched for
            raise GrantEnded(f"another grant is on record as {grant.id}; nothing is opened for this one")
        if record.authorized_at and _has_all(run.snapshot.ledger, record):
            _record(operations, run, unsent=True)
            return list(record.opened)
        while run.pending:
            _ensure_attempts(operations, run)
            _authorize_group(operations, run)
        opened = _finish(operations, run)
        operations.trail.authorize(grant.id, operations.clock(), opened, left_out)
    except GrantEnded:
        _withdraw(operations, run)
        raise
    except StoreUnavailable:
        raise  # a write would fail too: without a result, the attempt becomes quiescent
    except KnockError:
        with suppress(KnockError):  # costs time only: without a result, the attempt becomes quiescent
            _record(operations, run, unsent=True)
        raise
    _report_room(operations, run)
    return opened


def _refuse_ended(operations: Operations, grant: Grant) -> None:
    if not grant.live_at(operations.clock()):
        raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")


def _confirm(
    operations: Operations, grant: Grant, groups: Mapping[str, Group]
) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    tags = {name: group.tags for name, group in groups.items()}
    return policy.confirm(grant, tags, operations.ingress.stack, operations.limits, operations.clock())


# ---------------------------------------------------------------------------- claiming


def _claim(
    operations: Operations, grant: Grant, targets: tuple[Target, ...], groups: Mapping[str, Group]
) -> _Run:
    """Claim the first candidate of every placement, in one write. Raises SourceFull."""
    now = operations.clock()
    attempt = name_attempt(now, operations.token())
    last_groups = {target.name: max(target.groups) for target in targets}
    run = _Run(grant, attempt, [], groups, Snapshot(Ledger(grant.source), None), last_groups, now)

    def transition(ledger: Ledger) -> Ledger:
        run.placements = [
            _place(operations, grant, target, ports, groups, ledger)
            for target in targets
            for ports in target.ports
        ]
        return _add_claim(operations, run, ledger)

    run.snapshot = operations.change(grant.source, transition)
    return run


def _add_claim(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    keys = [placement.key for placement in run.pending]
    grant = run.grant
    return claim(ledger, grant.id, grant.expires_at, keys, run.attempt, operations.clock(), grant.renews)


def _renew_claim(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    """Claim what is pending now. Raises GrantEnded where the grant's claim has been released meanwhile."""
    if run.grant.id not in ledger.claims:
        raise GrantEnded(f"the grant {run.grant.id} has ended; nothing is opened for it")
    return _add_claim(operations, run, ledger)


def _place(
    operations: Operations,
    grant: Grant,
    target: Target,
    ports: Ports,
    groups: Mapping[str, Group],
    ledger: Ledger,
) -> _Placement:
    """Put a target's groups in order: those whose rule the grant claims, whose rule it can share, with room.

    Room is a hint, seconds old: a group that looks full comes last, and is tried all the same.
    """
    version = ipaddress.ip_network(grant.source).version
    own_claim = ledger.claims.get(grant.id)

    def order(key: RuleKey) -> tuple[bool, bool, bool, str]:
        rule = ledger.rules.get(key)
        return (
            not (own_claim and (key in own_claim.rule_keys or key in own_claim.foreign)),
            not (rule and rule.ids and not rule.closing),
            groups[key.group].used[version] >= operations.rules_per_group,
            key.group,
        )

    keys = (RuleKey(group, ports, grant.source) for group in target.groups)
    return _Placement(target.name, ports, sorted(keys, key=order))


def _ensure_attempts(operations: Operations, run: _Run) -> None:
    """Put this run's attempt in the ledger for every pending key; closing rules are revoked first."""
    keys = {placement.key for placement in run.pending}
    for _ in range(len(keys) + 8):
        rules = run.snapshot.ledger.rules
        if all(key in rules and run.attempt in rules[key].attempts for key in keys):
            return
        run.snapshot = finish_closing(operations, run.grant.source, keys, run.snapshot)

        run.snapshot = operations.change(
            run.grant.source, lambda ledger: _renew_claim(operations, run, ledger), run.snapshot
        )
    raise RuleUnsettled("other grants for this source begin and end too fast to follow")


# ---------------------------------------------------------------------------- authorizing


def _authorize_group(operations: Operations, run: _Run) -> None:
    """Authorize what is pending in the first pending placement's group: in one call, or one at a time.

    Rules that exist would have EC2 refuse the whole call, so each of those is a call of its own.
    """
    group = run.pending[0].key.group
    placements = [placement for placement in run.pending if placement.key.group == group]
    rules, existing = run.snapshot.ledger.rules, run.groups[group].rule_keys
    new = [p for p in placements if not rules[p.key].ids and p.key not in existing]
    if len(new) > 1 and _authorize_together(operations, run, group, new):
        placements = [placement for placement in placements if placement not in new]
    for placement in placements:
        ids = rules[placement.key].ids
        if ids and run.probes >= MOST_PROBES and _accept_listed(operations, run, placement, ids):
            continue
        run.probes += bool(ids)
        _authorize_one(operations, run, placement)
        if operations.clock() >= run.recorded_at + PROGRESS:
            _record(operations, run)
    refused = [placement for placement in placements if placement.result is None]
    if refused:
        _try_next_groups(operations, run, refused)


def _authorize_together(operations: Operations, run: _Run, group: str, placements: list[_Placement]) -> bool:
    """Authorize several rules of one group in one call. False: EC2 refused the whole call."""
    try:
        rule_ids = _send(operations, run, group, placements)
    except (RuleDuplicate, GroupFull, GroupGone):
        return False
    for placement in placements:
        _set_result(run, placement, Own(rule_ids[placement.key]))
    return True


def _authorize_one(operations: Operations, run: _Run, placement: _Placement) -> None:
    """Authorize one rule, or find the one that exists.

    A placement whose group is full or gone is left pending.
    """
    try:
        rule_ids = _send(operations, run, placement.key.group, [placement])
    except RuleDuplicate:
        _set_result(run, placement, _find_duplicate(operations, run, placement.key))
    except (GroupFull, GroupGone):
        return
    else:
        _set_result(run, placement, Own(rule_ids[placement.key]))


def _send(operations: Operations, run: _Run, group: str, placements: list[_Placement]) -> dict[RuleKey, str]:
    """Make the one call that creates rules: before the grant's end, and within ACTS of the attempt."""
    _refuse_ended(operations, run.grant)
    if operations.clock() >= attempted_at(run.attempt) + ACTS:
        raise RuleUnsettled("this run is too old to authorize anything: the next one continues")
    keys = {placement.key for placement in placements}
    run.sent |= keys
    try:
        rule_ids = operations.ingress.authorize(
            group, [placement.ports for placement in placements], run.grant.source, run.grant.id
        )
    except (RuleDuplicate, GroupFull, GroupGone, IngressThrottled, IngressRefused):
        run.sent -= keys
        raise
    run.sent -= keys
    return rule_ids


def _set_result(run: _Run, placement: _Placement, result: Own | Foreign) -> None:
    placement.result = result
    run.results[placement.key] = result


def _find_duplicate(operations: Operations, run: _Run, key: RuleKey) -> Own | Foreign:
    """Find the rule that EC2 calls a duplicate: one of Knock's own, or a foreign one.

    An id with a tombstone is gone, even while EC2 still lists it or calls its rule a duplicate.
    """
    rule = _listed(run, key)
    if rule is None:  # not listed in this run, or not yet
        run.listed = operations.ingress.find(run.candidate_groups)
        rule = _listed(run, key)
    if rule is None:
        raise RuleUnsettled(f"EC2 has a rule {key} and does not show it yet")
    return Own(rule.id) if operations.ingress.is_ours(rule) else Foreign(rule.id)


def _accept_listed(
    operations: Operations, run: _Run, placement: _Placement, ids: Mapping[str, datetime]
) -> bool:
    """Accept an open rule that EC2 lists under an id on record: now that it is claimed, no run revokes it."""
    if not run.listed:
        run.listed = operations.ingress.find(run.candidate_groups)
    rule = _listed(run, placement.key)
    if rule is None or rule.id not in ids:
        return False
    _set_result(run, placement, Own(rule.id))
    return True


def _listed(run: _Run, key: RuleKey) -> Rule | None:
    tombstones = run.snapshot.ledger.tombstones
    return next((rule for rule in run.listed if rule.key == key and rule.id not in tombstones), None)


def _try_next_groups(operations: Operations, run: _Run, placements: list[_Placement]) -> None:
    """Go on to the next group: one write records that the full one has no rule, and claims the next."""
    for placement in placements:
        run.results[placement.key] = NoRule()
        full = placement.candidates.pop(0)
        if not placement.candidates:
            placement.candidates = [full]
            raise PoolExhausted(
                f"every security group of the target {placement.target} is full; "
                "end a grant, or ask an operator to add a group"
            )

    run.snapshot = operations.change(
        run.grant.source,
        lambda ledger: _renew_claim(operations, run, _with_results(operations, run, ledger)),
        run.snapshot,
    )
    run.results.clear()
    run.recorded_at = operations.clock()


# ---------------------------------------------------------------------------- results


def _with_results(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    return record_results(ledger, run.grant.id, run.attempt, run.results, operations.clock())


def _record(operations: Operations, run: _Run, *, unsent: bool = False) -> None:
    """Record the results so far.

    `unsent`: this run sends no more calls, so for a key that it never sent there is no rule.
    """
    if unsent:
        keys = {placement.key for placement in run.pending} - run.sent
        run.results |= {key: Unsent() for key in keys}
    if run.results:
        run.snapshot = operations.change(
            run.grant.source, lambda ledger: _with_results(operations, run, ledger), run.snapshot
        )
        run.results.clear()
    run.recorded_at = operations.clock()


def _finish(operations: Operations, run: _Run) -> list[Opened]:
    """Record the results, and check that the ledger has every rule as open, and this grant's claim."""
    _record(operations, run)
    ledger = run.snapshot.ledger
    if run.grant.id not in ledger.claims:
        raise GrantEnded(f"the grant {run.grant.id} ended while it was authorized")
    opened = []
    for placement, result in [(p, p.result) for p in run.placements if p.result]:
        rule = ledger.rules.get(placement.key)
        is_open = rule and not rule.closing and result.rule_id in rule.ids
        if isinstance(result, Own) and not is_open:
            raise RuleUnsettled(f"the rule {placement.key} was revoked while it was authorized")
        opened.append(Opened(placement.key, result.rule_id, placement.target, isinstance(result, Foreign)))
    _refuse_ended(operations, run.grant)
    return opened


def _withdraw(operations: Operations, run: _Run) -> None:
    """Leave nothing open of a grant that ended meanwhile: this may be its last run.

    A rule that cannot be revoked yet is closing in the ledger, and keeps the grant's close from being done.
    """
    _record(operations, run, unsent=True)
    untouched = None if run.sent else run.attempt
    source = run.grant.source

    def transition(ledger: Ledger) -> Ledger:
        if not ledger.has_trace(run.grant.id):
            return ledger  # it was lost meanwhile, which the grant's close has to see
        return release(ledger, run.grant.id, operations.clock(), untouched)

    run.snapshot = operations.change(source, transition, run.snapshot)
    try:
        finish_closing(operations, source, run.grant.rule_keys, run.snapshot)
    except KnockError:
        logger.warning("rule_not_closed", extra={"grant_id": run.grant.id}, exc_info=True)


def _report_room(operations: Operations, run: _Run) -> None:
    """Report, for an alarm, how many rules a pool's last group still takes, if this grant has used it."""
    version = ipaddress.ip_network(run.grant.source).version
    for group in {p.key.group for p in run.placements if p.key.group == run.last_groups[p.target]}:
        existing = run.groups[group].rule_keys
        new = sum(p.key.group == group and p.key not in existing for p in run.placements)
        free = operations.rules_per_group - run.groups[group].used[version] - new
        operations.count("PoolFree", max(0, free))


# ---------------------------------------------------------------------------- renewals


def supersede(operations: Operations, grant: Grant, old_id: str) -> None:
    """End the grant that this one renews, now that it is open: its own principal's, or none.

    Where that fails, an execution of the closings' machine is started for it. If that fails too, the old
    grant runs to its own end, which is logged and counted: it must not end the new one.
    """
    end = End("superseded", grant.id, closer=grant.id)
    try:
        old = operations.trail.get(old_id)
        if old is None or old.grant.principal.id != grant.principal.id or old.id == grant.id or old.closed_at:
            return
        try:
            if close(operations, old.grant, end, own_rules(old)).closed_now:
                operations.count("GrantEnded", 1)
            operations.executions.stop(old.id, "Superseded", f"renewed by {grant.id}")
        except KnockError:
            logger.warning("supersede_queued", extra={"grant_id": grant.id}, exc_info=True)
            operations.closings.start(
                old.id,
                {"how": "superseded", "grant": old.grant.as_input(), "by": {"id": "", "name": grant.id}},
            )
    except KnockError:
        operations.count("SupersedeFailed", 1)
        logger.exception("supersede_failed", extra={"grant_id": grant.id})
