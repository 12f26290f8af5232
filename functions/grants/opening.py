"""Authorizing what a grant asks for.

    claim in the ledger            ─┐ one of         end in the trail
    record in the trail, or find it │ them sees
    ended: release, open nothing   ─┘ the other      release in the ledger
    finish what is closing of these rules            revoke what is closing, by id
    EC2: authorize, one call a group
    result in the ledger (own claim gone:
      the rule is closing: revoke it)
    authorized in the trail

Nothing of the input is trusted: tags and limits are looked at again first. Only authorizing creates rules,
and only between `requested_at` and `expires_at`, within ACTS of its attempt's beginning.
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
    KnockError,
    PoolExhausted,
    RuleUnsettled,
    StoreUnavailable,
)
from .ledger import (
    Foreign,
    Ledger,
    Made,
    Nothing,
    Result,
    Unsent,
    attempted_at,
    claim,
    name_attempt,
    record_results,
    release,
)
from .ledgers import Snapshot
from .operations import Group, GroupFull, GroupGone, Operations, RuleDuplicate
from .timing import ACTS, PROGRESS
from .values import Grant, Opened, Ports, Record, Rule, RuleKey, Target

logger = logging.getLogger("knock")

# Rules that the ledger knows, which one run asks EC2 for all the same: it alone knows at once of what was
# removed by hand, or by force in an outage. Beyond these its list is believed, so that a run that goes on
# from others' comes on.
ASKED = 8


@dataclass(slots=True)
class _Slot:
    """One range of ports of a target, to be opened in one of these groups' rules: the first that has room."""

    target: str
    ports: Ports
    choices: list[RuleKey]
    result: Made | Foreign | None = None

    @property
    def key(self) -> RuleKey:
        return self.choices[0]


@dataclass(slots=True)
class _Run:
    """One run of authorize: its attempt, its slots, and what of its results is not in the ledger yet."""

    grant: Grant
    attempt: str
    slots: list[_Slot]
    groups: Mapping[str, Group]
    snapshot: Snapshot
    last: Mapping[str, str]  # target → the last group of its pool
    recorded_at: datetime
    results: dict[RuleKey, Result] = field(default_factory=dict)
    shown: list[Rule] = field(default_factory=list)  # EC2's list of the slots' groups, once it was asked for
    sent: set[RuleKey] = field(default_factory=set)  # keys of calls whose effect is not known
    asked: int = 0  # how many known rules EC2 was asked for

    @property
    def pending(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot.result is None]


def authorize(operations: Operations, grant: Grant) -> list[Opened]:
    """Open what a grant asks for, and then end the grant it renews. Twice adds nothing.

    A grant that is open already cannot fail any more: whoever runs its input once more must not end it so.
    Raises GrantEnded (and leaves nothing open) when the grant is over; InvalidGrant, TargetGone, SourceFull,
    PoolExhausted, IngressRefused, StoreRefused; any Unavailable is worth another try.
    """
    _refuse_ended(operations, grant)
    try:
        opened = _authorize(operations, grant)
    except (GrantEnded, StoreUnavailable):
        raise
    except KnockError:
        record = _open_already(operations, grant)
        if record is None:
            raise
        logger.warning("open_already", extra={"grant_id": grant.id}, exc_info=True)
        opened = list(record.opened)
    if grant.renews:
        supersede(operations, grant, grant.renews)
    return opened


def _open_already(operations: Operations, grant: Grant) -> Record | None:
    """Read the record of a grant that another run has opened; None where there is none that can be read."""
    with suppress(KnockError):
        record = operations.trail.get(grant.id)
        if record and record.live_at(operations.clock()) and record.authorized_at:
            return record
    return None


def _known(ledger: Ledger, record: Record) -> bool:
    """Say whether the ledger has all that a grant opened: one that was lost has to be filled again."""
    rules = ledger.rules
    return all(
        one.foreign or ((rule := rules.get(one.key)) and not rule.closing and one.rule_id in rule.ids)
        for one in record.opened
    )


def _authorize(operations: Operations, grant: Grant) -> list[Opened]:
    groups = operations.ingress.groups(group for target in grant.targets for group in target.groups)
    targets, left_out = _confirm(operations, grant, groups)
    run = _claim(operations, grant, targets, groups)
    try:
        record = operations.trail.record(grant)
        if record.state != "live":
            raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")
        if record.authorized_at and _known(run.snapshot.ledger, record):
            _record(operations, run, unsent=True)
            return list(record.opened)
        while run.pending:
            _clear(operations, run)
            _authorize_group(operations, run)
        opened = _finish(operations, run)
        operations.trail.authorize(grant.id, operations.clock(), opened, left_out)
    except GrantEnded:
        _give_up(operations, run)
        raise
    except StoreUnavailable:
        raise  # it would not hear of this either: the attempt settles by itself
    except KnockError:
        with suppress(KnockError):  # costs time only: an attempt without a result settles by itself
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
    """Claim the first choice of every slot, in one write. Raises SourceFull."""
    now = operations.clock()
    attempt, last = (
        name_attempt(now, operations.token()),
        {target.name: max(target.groups) for target in targets},
    )
    run = _Run(grant, attempt, [], groups, Snapshot(Ledger(grant.source), None), last, now)

    def transition(ledger: Ledger) -> Ledger:
        run.slots = [
            _slot(operations, grant, target, ports, groups, ledger)
            for target in targets
            for ports in target.ports
        ]
        return _claimed(operations, run, ledger)

    run.snapshot = operations.change(grant.source, transition)
    return run


def _claimed(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    keys = [slot.key for slot in run.pending]
    grant = run.grant
    return claim(ledger, grant.id, grant.expires_at, keys, run.attempt, operations.clock(), grant.renews)


def _claimed_again(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    """Claim what is pending by now. Raises GrantEnded where the grant's claim has been released meanwhile."""
    if run.grant.id not in ledger.claims:
        raise GrantEnded(f"the grant {run.grant.id} has ended; nothing is opened for it")
    return _claimed(operations, run, ledger)


def _slot(
    operations: Operations,
    grant: Grant,
    target: Target,
    ports: Ports,
    groups: Mapping[str, Group],
    ledger: Ledger,
) -> _Slot:
    """Put a target's groups in order: where the grant has the rule, where there is one to share, where there
    is room.

    Room is a hint, seconds old: a group that looks full comes last, and is tried all the same.
    """
    version = ipaddress.ip_network(grant.source).version
    mine = ledger.claims.get(grant.id)

    def order(key: RuleKey) -> tuple[bool, bool, bool, str]:
        rule = ledger.rules.get(key)
        return (
            not (mine and (key in mine.rule_keys or key in mine.foreign)),
            not (rule and rule.ids and not rule.closing),
            groups[key.group].used[version] >= operations.rules_per_group,
            key.group,
        )

    return _Slot(
        target.name, ports, sorted((RuleKey(g, ports, grant.source) for g in target.groups), key=order)
    )


def _clear(operations: Operations, run: _Run) -> None:
    """See to it that the ledger has this run's attempt for every pending slot; what is closing has to go
    first.
    """
    keys = {slot.key for slot in run.pending}
    for _ in range(len(keys) + 8):
        rules = run.snapshot.ledger.rules
        if all(key in rules and run.attempt in rules[key].attempts for key in keys):
            return
        run.snapshot = finish_closing(operations, run.grant.source, keys, run.snapshot)

        run.snapshot = operations.change(
            run.grant.source, lambda ledger: _claimed_again(operations, run, ledger), run.snapshot
        )
    raise RuleUnsettled("other grants for this source come and go too fast to follow")


# ---------------------------------------------------------------------------- authorizing


def _authorize_group(operations: Operations, run: _Run) -> None:
    """Authorize what is pending in the first pending slot's group: in one call, or one at a time.

    Rules that are known to be there would have EC2 refuse the whole call, so those are asked for singly.
    """
    group = run.pending[0].key.group
    slots = [slot for slot in run.pending if slot.key.group == group]
    rules, shown = run.snapshot.ledger.rules, run.groups[group].rule_keys
    new = [slot for slot in slots if not rules[slot.key].ids and slot.key not in shown]
    if len(new) > 1 and _authorize_together(operations, run, group, new):
        slots = [slot for slot in slots if slot not in new]
    for slot in slots:
        known = rules[slot.key].ids
        if known and run.asked >= ASKED and _is_listed(operations, run, slot, known):
            continue
        run.asked += bool(known)
        _authorize_one(operations, run, slot)
        if operations.clock() >= run.recorded_at + PROGRESS:
            _record(operations, run)
    full = [slot for slot in slots if slot.result is None]
    if full:
        _move_on(operations, run, full)


def _authorize_together(operations: Operations, run: _Run, group: str, slots: list[_Slot]) -> bool:
    """Try several rules of one group in one call. False: it was refused as a whole, and each is to be tried
    singly.
    """
    try:
        made = _send(operations, run, group, slots)
    except (RuleDuplicate, GroupFull, GroupGone):
        return False
    for slot in slots:
        _came_to(run, slot, Made(made[slot.key]))
    return True


def _authorize_one(operations: Operations, run: _Run, slot: _Slot) -> None:
    """Authorize one rule, or find the one that is there.

    A slot whose group is full or gone is left pending.
    """
    try:
        made = _send(operations, run, slot.key.group, [slot])
    except RuleDuplicate:
        _came_to(run, slot, _look_up(operations, run, slot.key))
    except (GroupFull, GroupGone):
        return
    else:
        _came_to(run, slot, Made(made[slot.key]))


def _send(operations: Operations, run: _Run, group: str, slots: list[_Slot]) -> dict[RuleKey, str]:
    """Make the one call that creates rules: not at or after the grant's end, and not after this run's
    time.
    """
    _refuse_ended(operations, run.grant)
    if operations.clock() >= attempted_at(run.attempt) + ACTS:
        raise RuleUnsettled("this run is too old to authorize anything: the next one goes on")
    keys = {slot.key for slot in slots}
    run.sent |= keys
    try:
        made = operations.ingress.authorize(
            group, [slot.ports for slot in slots], run.grant.source, run.grant.id
        )
    except (RuleDuplicate, GroupFull, GroupGone, IngressThrottled, IngressRefused):
        run.sent -= keys
        raise
    run.sent -= keys
    return made


def _came_to(run: _Run, slot: _Slot, result: Made | Foreign) -> None:
    slot.result = result
    run.results[slot.key] = result


def _look_up(operations: Operations, run: _Run, key: RuleKey) -> Made | Foreign:
    """Say which rule EC2 calls a duplicate: one of Knock's own, or a foreign one.

    An id with a tombstone is not there, whatever EC2 still lists or calls a duplicate.
    """
    there = _shown(run, key)
    if there is None:  # not listed in this run, or not yet
        run.shown = operations.ingress.find({slot.key.group for slot in run.slots})
        there = _shown(run, key)
    if there is None:
        raise RuleUnsettled(f"EC2 has a rule {key} and does not show it yet")
    return Made(there.id) if operations.ingress.is_ours(there) else Foreign(there.id)


def _is_listed(operations: Operations, run: _Run, slot: _Slot, known: Mapping[str, datetime]) -> bool:
    """Take a rule as there that the ledger knows and EC2 lists: claimed by now, nobody revokes it any
    more.
    """
    if not run.shown:
        run.shown = operations.ingress.find({one.key.group for one in run.slots})
    there = _shown(run, slot.key)
    if there is None or there.id not in known:
        return False
    _came_to(run, slot, Made(there.id))
    return True


def _shown(run: _Run, key: RuleKey) -> Rule | None:
    tombstones = run.snapshot.ledger.tombstones
    return next((rule for rule in run.shown if rule.key == key and rule.id not in tombstones), None)


def _move_on(operations: Operations, run: _Run, slots: list[_Slot]) -> None:
    """Go on to the next group of a pool: one write records that the full one has nothing, and claims the
    next.
    """
    for slot in slots:
        run.results[slot.key] = Nothing()
        tried = slot.choices.pop(0)
        if not slot.choices:
            slot.choices = [tried]
            raise PoolExhausted(
                f"every security group of the target {slot.target} is full; "
                "end a grant, or ask an operator to add a group"
            )

    run.snapshot = operations.change(
        run.grant.source,
        lambda ledger: _claimed_again(operations, run, _with_results(operations, run, ledger)),
        run.snapshot,
    )
    run.results.clear()
    run.recorded_at = operations.clock()


# ---------------------------------------------------------------------------- results


def _with_results(operations: Operations, run: _Run, ledger: Ledger) -> Ledger:
    return record_results(ledger, run.grant.id, run.attempt, run.results, operations.clock())


def _record(operations: Operations, run: _Run, *, unsent: bool = False) -> None:
    """Record the results so far.

    `unsent`: this run sends nothing more, so what it never sent made nothing.
    """
    if unsent:
        keys = {slot.key for slot in run.pending} - run.sent
        run.results |= {key: Unsent() for key in keys}
    if run.results:
        run.snapshot = operations.change(
            run.grant.source, lambda ledger: _with_results(operations, run, ledger), run.snapshot
        )
        run.results.clear()
    run.recorded_at = operations.clock()


def _finish(operations: Operations, run: _Run) -> list[Opened]:
    """Record the results, and see that all rules are there and this grant's own claim is too."""
    _record(operations, run)
    ledger = run.snapshot.ledger
    if run.grant.id not in ledger.claims:
        raise GrantEnded(f"the grant {run.grant.id} ended while it was authorized")
    opened = []
    for slot, result in [(slot, slot.result) for slot in run.slots if slot.result]:
        rule = ledger.rules.get(slot.key)
        there = rule and not rule.closing and result.rule_id in rule.ids
        if isinstance(result, Made) and not there:
            raise RuleUnsettled(f"the rule {slot.key} went while it was authorized")
        opened.append(Opened(slot.key, result.rule_id, slot.target, isinstance(result, Foreign)))
    _refuse_ended(operations, run.grant)
    return opened


def _give_up(operations: Operations, run: _Run) -> None:
    """Leave nothing open of a grant that ended meanwhile: nobody may come after this run.

    What cannot be closed yet is closing in the ledger, and blocks *closed* for whoever closes the grant.
    """
    _record(operations, run, unsent=True)
    untouched = None if run.sent else run.attempt
    source = run.grant.source

    def transition(ledger: Ledger) -> Ledger:
        if not ledger.has_trace(run.grant.id):
            return ledger  # it was lost meanwhile, which whoever closes the grant has to see
        return release(ledger, run.grant.id, operations.clock(), untouched)

    run.snapshot = operations.change(source, transition, run.snapshot)
    try:
        finish_closing(operations, source, run.grant.rule_keys, run.snapshot)
    except KnockError:
        logger.warning("rule_not_closed", extra={"grant_id": run.grant.id}, exc_info=True)


def _report_room(operations: Operations, run: _Run) -> None:
    """Count the rules that the last group of a pool still takes, when this grant had to use it: for an
    alarm.
    """
    version = ipaddress.ip_network(run.grant.source).version
    for group in {slot.key.group for slot in run.slots if slot.key.group == run.last[slot.target]}:
        new = sum(
            slot.key.group == group and slot.key not in run.groups[group].rule_keys for slot in run.slots
        )
        free = operations.rules_per_group - run.groups[group].used[version] - new
        operations.count("PoolFree", max(0, free))


# ---------------------------------------------------------------------------- renewals


def supersede(operations: Operations, grant: Grant, old_id: str) -> None:
    """End the grant that this one renews, now that it is open: its own principal's, or none.

    What fails is handed to the closings' machine. If that fails too the old grant runs to its own end, which
    is logged and counted: it must not end the new one.
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
            logger.warning("supersede_handed_over", extra={"grant_id": grant.id}, exc_info=True)
            operations.closings.start(
                old.id,
                {"how": "superseded", "grant": old.grant.as_input(), "by": {"id": "", "name": grant.id}},
            )
    except KnockError:
        operations.count("SupersedeFailed", 1)
        logger.exception("supersede_failed", extra={"grant_id": grant.id})
