"""The order of calls that keeps the invariants: authorize, revoke, force, supersede.

There is no lock. Four rules carry it, and each says what may be done late, twice, or by whoever comes by:

- **Claim, then look, then authorize.** A claim is written before its rule is authorized, and an ended grant
  gains none. After its claims a run reads the other grants of its source, and first closes those that ended
  with a claim on the same rules. So from the look on, whoever ends a grant reads the new claim and leaves it
  the rule.
- **An id is condemned on record before it is revoked.** Grants share a rule by its key; a rule's id never
  comes again. Closing a grant condemns the ids that no live grant claims, in one write under the condition
  that nobody decided about this grant since the claims were read. A condemned id may be revoked by anybody,
  at any time, again and again: a rule authorized later has another id.
- **An id is in the item of a grant that is not closed.** A grant that ends while others claim its rule hands
  the id over to one of them, under the condition that it is live, before it is recorded as closed. EC2's
  lists, which may be seconds old, are only asked about what no record can tell.
- **A run that may still authorize is on record.** A claim carries the stamp of its run until its outcome
  does too. A run authorizes once a claim, and nothing when it is older than ACTS. A grant with a claim
  without outcome is closed once SETTLES has passed since the stamp: by then EC2 shows what came of it.

            authorize(A)                           close(B), same rule
            claim A ─┐                             end B
                     │                             read the claims: none     (before A's is written)
            look: B has ended ──▶ close(B) too     condemn B's id ◀─ one of the two; both see which
                                                   EC2: revoke the id, closed
            EC2: authorize ─▶ a new id

Only `authorize` authorizes: who closes needs no right to open.

Every method may run twice, concurrently, late, or after the grant ended. tests/proofs tries every order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from .errors import (
    GrantEnded,
    GrantNotFound,
    IngressRefused,
    IngressThrottled,
    IngressUnavailable,
    InvalidGrant,
    KnockError,
    PoolExhausted,
    RuleUnsettled,
    TrailUnavailable,
    Unavailable,
)
from .ingress import GroupFull, GroupGone
from .values import Grant, Ports, Rule, RuleKey, State, Target, make_stamp, stamped_at

logger = logging.getLogger("knock")

# For how long after its stamp a run authorizes: the authorize function's timeout.
ACTS = timedelta(seconds=20)

# How long after its stamp what a run did is over, and shows: ACTS, the time EC2 may take over a call that
# was sent, and the seconds in which EC2 may not show a new rule yet.
SETTLES = timedelta(seconds=60)

# Grants that change at every look, this often in a row, are left to the task's retry.
LOOKS = 8


class Trail(Protocol):
    """What `trail.Trail` does; the tests' in-memory twin does the same."""

    def add_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None: ...
    def drop_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None: ...
    def record_rule(
        self,
        grant_id: str,
        key: RuleKey,
        rule_id: str,
        stamp: str,
        *,
        foreign: bool = False,
        authorized_at: datetime | None = None,
        supersedes: Iterable[str] = (),
    ) -> None: ...
    def hand_over(self, grant_id: str, rules: Mapping[RuleKey, Iterable[str]]) -> None: ...
    def end(self, grant_id: str, how: State, at: datetime, by: str, reason: str) -> bool: ...
    def condemn(self, grant_id: str, decided: int, rules: Mapping[RuleKey, Iterable[str]]) -> bool: ...
    def close(
        self, grant_id: str, decided: int, at: datetime, revoked: Iterable[str], kept: Iterable[str]
    ) -> bool: ...
    def get(self, grant_id: str) -> Grant | None: ...
    def unclosed(self, source: str) -> list[Grant]: ...
    def all_unclosed(self) -> Iterator[Grant]: ...


class Ingress(Protocol):
    """What `ingress.Ingress` does; the tests' in-memory twin does the same."""

    def authorize(self, key: RuleKey, grant_id: str) -> str | None: ...
    def revoke(self, group: str, rule_id: str) -> bool: ...
    def find(self, groups: Iterable[str]) -> list[Rule]: ...
    def ours(self) -> list[Rule]: ...
    def is_ours(self, rule: Rule) -> bool: ...


class Executions(Protocol):
    """What `executions.Executions` does; the tests' in-memory twin does the same."""

    def stop(self, grant_id: str, error: str, cause: str) -> bool: ...
    def status(self, grant_id: str) -> str | None: ...
    def running(self) -> Iterator[str]: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """One rule a grant reaches its target by. A foreign one was there before, and stays."""

    key: RuleKey
    rule_id: str
    target: str
    foreign: bool = False

    def as_json(self) -> dict[str, object]:
        return {
            "rule": self.rule_id,
            "group": self.key.group,
            "ports": str(self.key.ports),
            "target": self.target,
            "foreign": self.foreign,
        }


@dataclass(slots=True)
class Revocation:
    """What ending a grant came to: rules revoked by id, and keys kept for other live grants.

    `closed_now` is False when the grant had been closed before, and there was nothing to do. `failures` says
    which rules could not be dealt with.
    """

    grant: Grant
    closed_now: bool = False
    revoked: list[str] = field(default_factory=list)
    kept: list[RuleKey] = field(default_factory=list)
    failures: dict[RuleKey, KnockError] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return {
            "grant_id": self.grant.id,
            "status": self.grant.state,
            "revoked": self.revoked,
            "kept": [str(key) for key in self.kept],
        }


@dataclass(slots=True)
class _Run:
    """One run that authorizes for a grant: its stamp, and what it has to answer for."""

    stamp: str
    outcomes: dict[RuleKey, tuple[str, bool]]  # on record, by it or by an earlier run
    supersedes: frozenset[str] = frozenset()  # the older grants that this one renews
    claimed: set[RuleKey] = field(default_factory=set)  # without an outcome on record
    untouched: set[RuleKey] = field(default_factory=set)  # of those: certainly without any effect
    made: dict[RuleKey, str] = field(default_factory=dict)  # of those: EC2 made this rule


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations over one stack's trail, groups and executions.

    `clock` gives the time, in UTC; `count` adds one to a metric; `token` makes a run's stamp unique.
    """

    trail: Trail
    ingress: Ingress
    executions: Executions
    clock: Callable[[], datetime]
    count: Callable[[str], None] = lambda _metric: None
    token: Callable[[], str] = lambda: os.urandom(4).hex()

    # ------------------------------------------------------------------ authorize

    def authorize(self, asked: Grant) -> list[Opened]:
        """Open what a grant asks for, and end the grant it renews. Twice adds nothing.

        Raises GrantEnded (and leaves nothing open) when the grant is over, InvalidGrant when the trail
        did not record it so, PoolExhausted; any Unavailable is worth another try.
        """
        grant = self.trail.get(asked.id)
        if grant is None or (grant.source, grant.expires_at) != (asked.source, asked.expires_at):
            raise InvalidGrant(f"the trail holds no such grant as {asked.id}: nothing is opened for it")
        self._refuse_ended(grant)
        run = self._run(grant)
        slots = asked.slots()
        opened = []
        with self._answering_for(grant, run):
            firsts = {self._order(grant, run, target, ports)[0] for target, ports in slots}
            self._claim(grant, run, firsts - run.outcomes.keys())
            others = self._clear(grant, run.claimed)
            if not grant.authorized_at:
                now = self.clock()
                run.supersedes = frozenset(
                    old.id for old in others if _renews(grant, old) and old.live_at(now)
                )
            for number, (target, ports) in enumerate(slots, 1):
                opened.append(self._open(grant, run, target, ports, others, last=number == len(slots)))
            self._refuse_ended(grant)
        self._supersede(grant, [old for old in others if old.id in run.supersedes])
        return opened

    def _refuse_ended(self, grant: Grant) -> None:
        if not grant.live_at(self.clock()):
            raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")

    def _run(self, grant: Grant) -> _Run:
        return _Run(make_stamp(self.clock(), self.token()), dict(grant.outcomes), grant.supersedes)

    def _order(self, grant: Grant, run: _Run, target: Target, ports: Ports) -> list[RuleKey]:
        """Order a target's groups: where the rule is on record, what an earlier run claimed, by id."""
        keys = [RuleKey(group, ports, grant.source) for group in sorted(target.groups)]
        return sorted(keys, key=lambda key: (key not in run.outcomes, key not in grant.claims))

    @contextmanager
    def _answering_for(self, grant: Grant, run: _Run) -> Iterator[None]:
        """Leave nothing that only this run could tell of: it may never be tried again."""
        try:
            yield
        except GrantEnded:
            # It ended while this ran. Nobody may come after this to close what was opened just now.
            for key, rule_id in run.made.items():
                self._give_up(grant, key, rule_id)
            if run.claimed:
                self.trail.drop_claims(grant.id, run.claimed, run.stamp)
            raise
        except TrailUnavailable:
            raise  # what it did not answer may be recorded, and it would not hear of this either
        except KnockError:
            if run.untouched:
                # Failing here costs time only: a claim without outcome is looked after when it has settled.
                with suppress(KnockError):
                    self.trail.drop_claims(grant.id, run.untouched, run.stamp)
            raise

    def _claim(self, grant: Grant, run: _Run, keys: set[RuleKey]) -> None:
        if keys:
            self.trail.add_claims(grant.id, keys, run.stamp)
            run.claimed |= keys
            run.untouched |= keys

    def _clear(self, grant: Grant, keys: set[RuleKey]) -> list[Grant]:
        """Look at the other grants of a source, and close those that ended with a claim on these rules.

        Gives the others as they were read, after the claims of this grant. What fails on other rules of
        theirs is not this grant's matter.
        """
        others = [one for one in self.trail.unclosed(grant.source) if one.id != grant.id]
        for other in others:
            if other.state != "live" and other.keys & keys:
                failures = self._try_to_close(other.id, other.source).failures
                for key in sorted(failures.keys() & keys):
                    raise failures[key]
        return others

    def _open(
        self,
        grant: Grant,
        run: _Run,
        target: Target,
        ports: Ports,
        others: list[Grant],
        *,
        last: bool,
    ) -> Opened:
        """Authorize one rule in the first group of the pool that has room, and record it.

        With the last one of a grant, record that all is open and what that supersedes, in the same write.
        Raises GrantEnded.
        """
        last = last and not grant.authorized_at
        keys = self._order(grant, run, target, ports)
        if keys[0] in run.outcomes:  # of an earlier run of this task, or of another target with this rule
            rule_id, foreign = run.outcomes[keys[0]]
            opened = Opened(keys[0], rule_id, target.name, foreign)
            if last:
                self._record(grant, run, opened, last=True)
            return opened
        for number, key in enumerate(keys):
            if number:
                self._claim(grant, run, {key})
                others = self._clear(grant, {key})
            try:
                rule_id, foreign = self._authorize_rule(grant, run, key, others)
            except (GroupFull, GroupGone):
                self.trail.drop_claims(grant.id, {key}, run.stamp)
                run.claimed.discard(key)
                run.untouched.discard(key)
                continue
            opened = Opened(key, rule_id, target.name, foreign)
            self._record(grant, run, opened, last=last)
            return opened
        raise PoolExhausted(
            f"every security group of the target {target.name} is full ({len(keys)} tried); "
            "end a grant, or ask an operator to add a group"
        )

    def _record(self, grant: Grant, run: _Run, opened: Opened, *, last: bool) -> None:
        self.trail.record_rule(
            grant.id,
            opened.key,
            opened.rule_id,
            run.stamp,
            foreign=opened.foreign,
            authorized_at=self.clock() if last else None,
            supersedes=run.supersedes if last else (),
        )
        run.claimed.discard(opened.key)
        run.untouched.discard(opened.key)
        run.outcomes[opened.key] = opened.rule_id, opened.foreign
        run.made.pop(opened.key, None)

    def _authorize_rule(self, grant: Grant, run: _Run, key: RuleKey, others: list[Grant]) -> tuple[str, bool]:
        """Authorize one rule, or find the one that is there: (its id, whether it is foreign).

        Once a claim: what one run may have done to a rule is then one thing.
        """
        if self.clock() >= stamped_at(run.stamp) + ACTS:
            raise RuleUnsettled("this run is too old to authorize anything: another has to")
        run.untouched.discard(key)
        try:
            rule_id = self.ingress.authorize(key, grant.id)
        except (GroupFull, GroupGone, IngressRefused, IngressThrottled):
            run.untouched.add(key)
            raise
        if rule_id:
            run.made[key] = rule_id
            return rule_id, False
        run.untouched.add(key)
        # A live grant's, most likely. Whichever id it has by now: who ends before this grant hands it over.
        known = {
            rule_id for one in (grant, *others) for rule_id in one.rules.get(key, ()) if one.state == "live"
        }
        if known:
            return max(known), False
        there = self._look_up(key)
        if not there:
            raise RuleUnsettled(f"EC2 has a rule {key} and does not show it yet")
        return there.id, not self.ingress.is_ours(there)

    def _look_up(self, key: RuleKey) -> Rule | None:
        return next((rule for rule in self.ingress.find([key.group]) if rule.key == key), None)

    def _give_up(self, grant: Grant, key: RuleKey, rule_id: str) -> None:
        """Close a rule made for a grant that ended before it was recorded, or leave it to who claims it."""
        for _ in range(LOOKS):
            around = self.trail.unclosed(grant.source)
            ended = next((one for one in around if one.id == grant.id), None)
            heir = _heirs(around, grant.id, self.clock()).get(key)
            if heir:
                with suppress(GrantEnded):
                    self.trail.hand_over(heir.id, {key: {rule_id}})
                    return
            # While the claim without outcome stands nobody closes the grant. If somebody has all the same,
            # this run is long past SETTLES, and nobody relies on the rule.
            elif ended is None or self.trail.condemn(grant.id, ended.decided, {key: {rule_id}}):
                self.ingress.revoke(key.group, rule_id)
                return
        raise RuleUnsettled("other grants for this source come and go too fast to follow")

    def _supersede(self, grant: Grant, older: list[Grant]) -> None:
        """End the older grants that this one renews: same principal, same source, same targets.

        The new grant is open by now, and has on record what it supersedes: who ends it does this as well,
        should nobody have done it. What may pass is raised by the run that opened the grant: the task's
        retry comes here again. Then failing is logged: it must not end the new grant, and the old one ends
        by its own timer.
        """
        try:
            for old in older:
                self.trail.end(old.id, "superseded", self.clock(), grant.id, "")
                # Stopped before it is closed: a retry finds what is unclosed, not what runs on.
                self.executions.stop(old.id, "Superseded", f"renewed by {grant.id}")
                self._close(old.id, old.source)
        except KnockError as error:
            if isinstance(error, Unavailable) and not grant.authorized_at:
                raise
            self.count("SupersedeFailed")
            logger.exception("supersede_failed", extra={"grant_id": grant.id})

    # ------------------------------------------------------------------ revoke

    def revoke(
        self, grant_id: str, how: State, by: str, reason: str = "", source: str | None = None
    ) -> Revocation:
        """End a grant and close what it opened, save what other live grants claim.

        The first end recorded stands; the second time changes nothing and answers the same. Who knows the
        grant's `source` saves a call. Raises GrantNotFound; RuleUnsettled when an authorization may be under
        way still; other Unavailables.
        """
        self.trail.end(grant_id, how, self.clock(), by, reason)
        return self._close(grant_id, source)

    def force(self, state: Grant, rules: Mapping[RuleKey, str], how: State) -> Revocation:
        """Close a grant, without the trail if need be.

        With the trail this is `revoke`. Without it, every rule of ours that the grant can have opened
        goes, whoever else claims it: access may then end early, never late. The trail's error is raised
        all the same, so that this runs again until the trail can tell what happened.
        """
        try:
            return self.revoke(state.id, how, "knock", "by force", state.source)
        except (IngressRefused, IngressThrottled, IngressUnavailable, RuleUnsettled):
            raise  # the trail is there, and EC2 is what holds things up
        except Exception as error:  # whatever is wrong with the trail, the door is closed
            self.count("RevocationForced")
            logger.exception("revoking_by_force", extra={"grant_id": state.id})
            revoked = self._close_without_trail(state, rules)
            if isinstance(error, GrantNotFound):
                return Revocation(replace(state, state=how), closed_now=True, revoked=revoked)
            raise

    def _close_without_trail(self, state: Grant, rules: Mapping[RuleKey, str]) -> list[str]:
        keys = {
            RuleKey(group, ports, state.source) for target, ports in state.slots() for group in target.groups
        }
        open_: dict[str, RuleKey] = {rule_id: key for key, rule_id in rules.items()}
        failures: list[KnockError] = []
        try:
            there = self.ingress.find({key.group for key in keys}) if keys else []
            open_ |= {rule.id: rule.key for rule in there if rule.key in keys and self.ingress.is_ours(rule)}
        except KnockError as error:
            failures.append(error)
        revoked = []
        for rule_id, key in open_.items():
            try:
                if self.ingress.revoke(key.group, rule_id):
                    revoked.append(rule_id)
            except KnockError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return revoked

    def revoke_unclaimed(self, rule: Rule) -> bool:
        """Revoke a rule of ours that no grant claims. False says that one does, and it stands."""
        if any(rule.key in one.keys for one in self.trail.unclosed(rule.key.cidr)):
            return False
        self.ingress.revoke(rule.key.group, rule.id)
        return True

    def _known(self, grant_id: str) -> Grant:
        grant = self.trail.get(grant_id)
        if grant is None:
            raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
        return grant

    def _close(self, grant_id: str, source: str | None) -> Revocation:
        """Close an ended grant. Raises the first of what failed, at the end."""
        done = self._try_to_close(grant_id, source)
        for key in sorted(done.failures):
            raise done.failures[key]
        return done

    def _try_to_close(self, grant_id: str, source: str | None) -> Revocation:
        """Revoke every rule of an ended grant that no other live grant claims, and hand over the others.

        Goes on to the other rules when one fails; the grant is recorded as closed when none did. Twice, and
        by several at once, is once. Raises GrantNotFound, RuleUnsettled.
        """
        done: Revocation | None = None
        for _ in range(LOOKS):
            around = self.trail.unclosed(source) if source else []
            grant = next((one for one in around if one.id == grant_id), None)
            known = grant or self._known(grant_id)
            done = replace(done, grant=known) if done else Revocation(known)
            if known.closed_at:  # before, or by somebody else meanwhile
                return done
            if grant and self._settle(grant, around, done):
                return done
            source = known.source
        raise RuleUnsettled("other grants for this source come and go too fast to follow")

    def _settle(self, grant: Grant, around: list[Grant], done: Revocation) -> bool:
        """Do once what closing a grant takes, by one reading of it. False says to read again."""
        heirs = _heirs(around, grant.id, self.clock())
        done.failures = {}
        ids = self._find_ids(grant, done.failures)
        done.kept = sorted(heirs.keys() & ids.keys())
        decided = self._condemn(grant, {key: found for key, found in ids.items() if key not in heirs})
        if decided is None or not self._hand_over(ids, heirs):
            return False
        for key in sorted(ids):
            gone = set(grant.condemned.get(key, ())) | (set() if key in heirs else ids[key])
            try:
                done.revoked += self._revoke_rule(key, gone)
            except KnockError as error:
                logger.warning("rule_not_closed", extra={"grant_id": grant.id, "rule": str(key)})
                done.failures[key] = error
        if done.failures:
            # What is kept stays so, also for those who read the claims before its heir's was written.
            return not done.kept or self.trail.condemn(grant.id, decided, {})
        for old in around:
            if old.id in grant.supersedes:
                # Its own authorization would have, but may have been stopped with its execution.
                self.trail.end(old.id, "superseded", self.clock(), grant.id, "")
                self._close(old.id, old.source)
        kept = [str(key) for key in done.kept]
        done.closed_now = self.trail.close(grant.id, decided, self.clock(), done.revoked, kept)
        return done.closed_now

    def _find_ids(self, grant: Grant, failures: dict[RuleKey, KnockError]) -> dict[RuleKey, set[str]]:
        """Find the ids of the rules a grant answers for, those condemned left out.

        Where a claim has no outcome, EC2 is asked. Until SETTLES has passed it may not show what the claim's
        run did, or the run may still be at it: that is a failure, and what shows is dealt with all the same.
        """
        ids = {key: set(grant.rules.get(key, ())) for key in grant.keys}
        for key, stamps in sorted(grant.unsettled.items()):
            try:
                there = self._look_up(key)
            except KnockError as error:
                failures[key] = error
                continue
            if there and self.ingress.is_ours(there):
                ids[key].add(there.id)
            if any(self.clock() < stamped_at(stamp) + SETTLES for stamp in stamps):
                failures[key] = RuleUnsettled(f"whether {key} was authorized cannot be known yet")
        return {key: found - grant.condemned.get(key, frozenset()) for key, found in ids.items()}

    def _condemn(self, grant: Grant, ids: Mapping[RuleKey, set[str]]) -> int | None:
        """Condemn rules, if any. Gives how many decisions there are then; None where somebody decided."""
        going = {key: found for key, found in ids.items() if found}
        if not going:
            return grant.decided
        return grant.decided + 1 if self.trail.condemn(grant.id, grant.decided, going) else None

    def _hand_over(self, ids: Mapping[RuleKey, set[str]], heirs: Mapping[RuleKey, Grant]) -> bool:
        """Put the ids of rules that others claim into the items of those. False says one of them ended."""
        by_heir: dict[str, dict[RuleKey, set[str]]] = {}
        for key, heir in heirs.items():
            new = ids.get(key, set()) - heir.rules.get(key, frozenset())
            if new:
                by_heir.setdefault(heir.id, {})[key] = new
        for heir_id, rules in by_heir.items():
            try:
                self.trail.hand_over(heir_id, rules)
            except GrantEnded:
                return False
        return True

    def _revoke_rule(self, key: RuleKey, ids: Iterable[str]) -> list[str]:
        """Revoke a rule by the ids it may have. One rule a key: once one is revoked, the key has none."""
        for rule_id in sorted(ids):
            if self.ingress.revoke(key.group, rule_id):
                return [rule_id]
        return []


def _heirs(around: Iterable[Grant], grant_id: str, now: datetime) -> dict[RuleKey, Grant]:
    """Map each rule key that live grants claim to the one of them that lasts longest."""
    live = [one for one in around if one.id != grant_id and one.live_at(now)]
    return {key: one for one in sorted(live, key=lambda one: (one.expires_at, one.id)) for key in one.claims}


def _renews(new: Grant, old: Grant) -> bool:
    """Say whether one grant takes another's place. Order decides between two at once, so only one can."""
    return (
        old.id != new.id
        and old.order < new.order
        and old.principal.id == new.principal.id
        and old.source == new.source
        and {target.name for target in old.targets} == {target.name for target in new.targets}
    )
