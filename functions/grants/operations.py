"""The order of calls that keeps the invariants: authorize, revoke, force, supersede, guard.

Three ideas carry it, and there is no lock:

- A claim is written before its rule is authorized, and an ended grant gains no claim. So whoever reads
  the claims of a source after a grant's end knows every rule that may be open for it.
- What is done to a rule is level-triggered: act, read the claims again, and act again if the answer has
  changed. Whoever acts last on a rule has read the claims after acting, so the rule is as they say.
- A run that may act is on record until it is known to be over. Runs die between any two calls, and some
  are never tried again (a Lambda that went on while its execution was stopped), so what a run might still
  do must not depend on it. Each run has a stamp: in a claim, until it records the outcome, and among the
  closers of an ended grant. A grant is closed only when no other run may be at work for it; until then it
  is RuleUnsettled, and somebody comes back. A run is over SETTLES after its stamp, dead or alive.

            authorize(A)                           revoke(B), same rule
            claim A ─┐                             end B
                     │                             read claims: none      (A's claim not yet written)
            EC2: already there (B's)
            record                                 EC2: revoke
                     └───────────────────────────▶ read claims: A's       → authorize again, for A

Who has to close a rule follows from the record, not from looking: EC2's lists may be seconds old. Each
rule's id is in the item of a grant that claims it and is not closed, or that grant's claim has no outcome.
A grant that ends before others hands its ids over to one that stays, under the condition that it is live.

Every method may run twice, concurrently, late, or after the grant ended.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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
)
from .ingress import GroupFull, GroupGone
from .values import Grant, Ports, Rule, RuleKey, State, Target, keys_of, stamp, stamped_at

logger = logging.getLogger("knock")

# How long after its stamp a run is over, and what it did shows: the functions' timeouts (20 s for those
# of the state machine), and the seconds in which EC2 may not show a new rule yet.
SETTLES = timedelta(seconds=90)

# Claims that change at every look, this often in a row, are left to the task's retry.
LOOKS = 8


class Trail(Protocol):
    """What `trail.Trail` does; the tests' in-memory twin does the same."""

    def add_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None: ...
    def drop_claim(self, grant_id: str, key: RuleKey, stamp: str) -> None: ...
    def record_rule(
        self,
        grant_id: str,
        key: RuleKey,
        rule_id: str,
        stamp: str,
        *,
        foreign: bool = False,
        next_claim: RuleKey | None = None,
        authorized_at: datetime | None = None,
    ) -> None: ...
    def hand_over(self, grant_id: str, key: RuleKey, rule_ids: Iterable[str], stamp: str) -> None: ...
    def end(
        self, grant_id: str, how: State, at: datetime, by: str, reason: str, closer: str = ""
    ) -> bool: ...
    def begin_closing(self, grant_id: str, closer: str) -> bool: ...
    def leave_closing(self, grant_id: str, closers: Iterable[str]) -> None: ...
    def close(
        self, grant_id: str, at: datetime, revoked: Iterable[str], kept: Iterable[str], closer: str
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

    `closed_now` is False when the grant had been closed before, and there was nothing to do.
    """

    grant: Grant
    status: str
    closed_now: bool = False
    revoked: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "grant_id": self.grant.id,
            "status": self.status,
            "revoked": self.revoked,
            "kept": self.kept,
        }


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

    def _stamp(self) -> str:
        return stamp(self.clock(), self.token())

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
        run = self._stamp()
        opened: list[Opened] = []
        left: list[tuple[Target, list[RuleKey]]] = []
        for target, ports in asked.slots():
            done = _recorded(grant, target, ports)
            if done:
                opened.append(done)
            else:
                left.append(self._slot(grant, target, ports))
        if left:
            self.trail.add_claims(grant.id, {left[0][1][0]}, run)
        try:
            for number, (target, keys) in enumerate(left, 1):
                opened.append(self._open(grant, target, keys, run))
                self._record(grant, opened[-1], left[number][1][0] if number < len(left) else None, run)
            self._refuse_ended(grant)
        except GrantEnded as error:
            # It ended while this ran, or its time was up. Nobody may come after this to close what is open.
            first = self.trail.end(grant.id, "failed", self.clock(), "knock", f"GrantEnded: {error}", run)
            made = {one.key: one.rule_id for one in opened if not one.foreign}
            self._close(self._known(grant.id), run, first=first, made=made)
            raise
        self._supersede(grant, run)
        return opened

    def _refuse_ended(self, grant: Grant) -> None:
        if not grant.live_at(self.clock()):
            raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")

    def _slot(self, grant: Grant, target: Target, ports: Ports) -> tuple[Target, list[RuleKey]]:
        """Order a target's groups: those an earlier run of this task claimed first, then by id."""
        keys = [RuleKey(group, ports, grant.source) for group in sorted(target.groups)]
        return target, sorted(keys, key=lambda key: key not in grant.claims)

    def _open(self, grant: Grant, target: Target, keys: list[RuleKey], run: str) -> Opened:
        """Authorize one rule in the first group of the pool that has room."""
        for number, key in enumerate(keys):
            if number:
                self.trail.add_claims(grant.id, {key}, run)
            try:
                rule_id, foreign = self._authorize_rule(key, grant.id)
            except (GroupFull, GroupGone, IngressRefused, IngressThrottled) as error:
                # EC2 did not act for this run. A claim of another run is that one's to drop.
                self.trail.drop_claim(grant.id, key, run)
                if isinstance(error, (IngressRefused, IngressThrottled)):
                    raise
                continue
            return Opened(key, rule_id, target.name, foreign)
        raise PoolExhausted(
            f"every security group of the target {target.name} is full ({len(keys)} tried); "
            "end a grant, or ask an operator to add a group"
        )

    def _record(self, grant: Grant, opened: Opened, following: RuleKey | None, run: str) -> None:
        """Record one rule and claim the following one; with the last, record that all is open.

        One write for both, so that only one claim at a time has an open outcome. Raises GrantEnded.
        """
        self.trail.record_rule(
            grant.id,
            opened.key,
            opened.rule_id,
            run,
            foreign=opened.foreign,
            next_claim=following,
            authorized_at=self.clock() if following is None and not grant.authorized_at else None,
        )

    def _authorize_rule(self, key: RuleKey, grant_id: str) -> tuple[str, bool]:
        """Authorize one rule, or find the one that is there: (its id, whether it is foreign)."""
        for _ in range(3):
            rule_id = self.ingress.authorize(key, grant_id)
            if rule_id:
                return rule_id, False
            there = self._look_up(key)
            if there:
                return there.id, not self.ingress.is_ours(there)
        # Revoked between the two calls, or not shown yet.
        raise RuleUnsettled(f"EC2 has a rule {key} and does not show it yet")

    def _look_up(self, key: RuleKey) -> Rule | None:
        return next((rule for rule in self.ingress.find([key.group]) if rule.key == key), None)

    def _supersede(self, grant: Grant, run: str) -> None:
        """End the older grants that this one renews: same principal, same source, same targets.

        The new grant is open and recorded by now, so access never pauses. Failing here costs nothing
        but tidiness (the old grant ends by its own timer), and must not end the new one: it is logged.
        """
        try:
            for old in self.trail.unclosed(grant.source):
                now = self.clock()
                if _renews(grant, old) and (old.live_at(now) or old.ended_by == grant.id):
                    first = self.trail.end(old.id, "superseded", now, grant.id, "", run)
                    # Stopped before it is closed: a retry finds what is unclosed, not what runs on.
                    self.executions.stop(old.id, "Superseded", f"renewed by {grant.id}")
                    self._close(self._known(old.id), run, first=first)
        except KnockError:
            self.count("SupersedeFailed")
            logger.exception("supersede_failed", extra={"grant_id": grant.id})

    # ------------------------------------------------------------------ revoke

    def revoke(self, grant_id: str, how: State, by: str, reason: str = "") -> Revocation:
        """End a grant and close what it opened, save what other live grants claim.

        The first end recorded stands; the second time changes nothing and answers the same. Raises
        GrantNotFound; RuleUnsettled when another run may be at work for the grant still; other Unavailables.
        """
        run = self._stamp()
        first = self.trail.end(grant_id, how, self.clock(), by, reason, run)
        return self._close(self._known(grant_id), run, first=first)

    def force(self, state: Grant, rules: Mapping[RuleKey, str], how: State) -> Revocation:
        """Close a grant, without the trail if need be.

        With the trail this is `revoke`. Without it, every rule of ours that the grant can have opened
        goes, whoever else claims it: access may then end early, never late. The trail's error is raised
        all the same, so that this runs again until the trail can tell what happened; then other live
        grants get their rules back.
        """
        run = self._stamp()
        try:
            self.trail.end(state.id, how, self.clock(), "knock", "by force", run)
            # Not the first, even where the end is new: without the trail, rules were revoked regardless.
            return self._close(self._known(state.id), run)
        except (IngressRefused, IngressThrottled, IngressUnavailable, RuleUnsettled):
            raise  # the trail is there, and EC2 is what holds things up
        except Exception as error:  # whatever is wrong with the trail, the door is closed
            self.count("RevocationForced")
            logger.exception("revoking_by_force", extra={"grant_id": state.id})
            revoked = self._close_without_trail(state, rules)
            if isinstance(error, GrantNotFound):
                return Revocation(state, how, closed_now=True, revoked=revoked)
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
        """Revoke a rule of ours that no live grant claims. False says that one does, and it stands."""
        rule_id = rule.id
        kept: bool | None = None
        for _ in range(LOOKS):
            now = self.clock()
            live = keys_of(g for g in self.trail.unclosed(rule.key.cidr) if g.live_at(now))
            if kept is None and rule.key in live:
                return False
            if kept == (rule.key in live):
                return not kept
            kept = rule.key in live
            if not kept:
                self.ingress.revoke(rule.key.group, rule_id)
                continue
            try:
                rule_id = next(iter(self._restore(rule.key, live[rule.key])), rule_id)
            except GrantEnded:
                kept = False
        raise RuleUnsettled("other grants for this source come and go too fast to follow")

    def _known(self, grant_id: str) -> Grant:
        grant = self.trail.get(grant_id)
        if grant is None:
            raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
        return grant

    def _close(
        self, grant: Grant, run: str, *, first: bool = False, made: Mapping[RuleKey, str] | None = None
    ) -> Revocation:
        """Revoke every rule of an ended grant that no other live grant claims, until that is so.

        `first` says that this run recorded the end, so that no other has acted on the rules since; `made`
        names rules that are not on record. Raises RuleUnsettled when another run may be at work for it.
        """
        done = Revocation(grant, grant.state)
        if grant.closed_at or not (first or self.trail.begin_closing(grant.id, run)):
            return done
        failures = self._level(grant, run, done, made or {}, first=first)
        if not failures and self._at_work(
            stamp for left in grant.unsettled.values() for stamp in left - {run}
        ):
            failures.append(RuleUnsettled("what an authorization of this grant came to cannot be known yet"))
        if not failures and not self._record_closed(grant, run, done):
            failures.append(RuleUnsettled("another run is closing this grant, or died of it just now"))
        if failures:
            # What EC2 did not answer may happen yet. Until that is over, this run counts as at work.
            if not any(isinstance(failure, IngressUnavailable) for failure in failures):
                self.trail.leave_closing(grant.id, {run})
            raise failures[0]
        done.closed_now = True
        return done

    def _level(
        self, grant: Grant, run: str, done: Revocation, made: Mapping[RuleKey, str], *, first: bool
    ) -> list[KnockError]:
        """Make each rule as the claims say, until they say the same after the last act.

        Goes on to the other rules when one fails; gives the failures.
        """
        failures: list[KnockError] = []
        ids = {key: set(grant.rules.get(key, ())) for key in grant.claims}
        for key, rule_id in made.items():
            ids[key].add(rule_id)
        seen: dict[RuleKey, bool] = {}
        for _ in range(LOOKS):
            claimed = self._claimed_by_others(grant)
            stale = [key for key in sorted(grant.claims) if seen.get(key) != (key in claimed)]
            acted = False
            for key in stale:
                untouched = first and key not in seen
                seen[key] = key in claimed
                acted = acted or not (untouched and key in claimed)
                try:
                    if key not in claimed:
                        done.revoked += self._revoke_rule(grant, key, ids[key])
                        continue
                    if not untouched:
                        ids[key] |= self._restore(key, claimed[key])
                    self._hand_over(grant, key, claimed[key], ids[key], run)
                except GrantEnded:
                    del seen[key]  # the claimant: the next look shows who claims it now
                    acted = True
                except KnockError as error:
                    logger.warning("rule_not_closed", extra={"grant_id": grant.id, "rule": str(key)})
                    failures.append(error)
            if not acted:
                break
        else:
            failures.append(RuleUnsettled("other grants for this source come and go too fast to follow"))
        done.kept = [str(key) for key, kept in sorted(seen.items()) if kept]
        return failures

    def _claimed_by_others(self, grant: Grant) -> dict[RuleKey, Grant]:
        now = self.clock()
        return keys_of(
            other
            for other in self.trail.unclosed(grant.source)
            if other.id != grant.id and other.live_at(now)
        )

    def _revoke_rule(self, grant: Grant, key: RuleKey, ids: set[str]) -> list[str]:
        """Revoke the rule of one key: by the ids on record, and by looking where one may be missing.

        One rule a key: once one id is revoked, the key has none.
        """
        for rule_id in sorted(ids):
            if self.ingress.revoke(key.group, rule_id):
                return [rule_id]
        return [
            rule_id for rule_id in self._unrecorded(grant, key) if self.ingress.revoke(key.group, rule_id)
        ]

    def _unrecorded(self, grant: Grant, key: RuleKey) -> set[str]:
        """Look for the rule of a claim whose outcome is not on record. It may not show yet."""
        there = self._look_up(key) if key in grant.unsettled else None
        return {there.id} if there and self.ingress.is_ours(there) else set()

    def _hand_over(self, grant: Grant, key: RuleKey, heir: Grant, ids: set[str], run: str) -> None:
        """Leave a rule to a grant that claims it and stays: from now on that one closes it.

        Raises GrantEnded when it does not stay. An heir that knows the rule need not be told: its own
        closing comes after the end of this grant, and counts this one's claims no more.
        """
        ids |= self._unrecorded(grant, key)
        if not ids <= heir.rules.get(key, frozenset()):
            self.trail.hand_over(heir.id, key, ids, run)

    def _restore(self, key: RuleKey, claimant: Grant) -> set[str]:
        """See that a rule that a live grant claims is there, since a run for this grant may have revoked it.

        Gives the id of a rule that had to be authorized again. By authorizing it, not by looking: EC2's
        answer to a write is true now. A claim with a stamp of its own comes first, as for any authorization.
        Raises GrantEnded when the claimant has ended.
        """
        run = self._stamp()
        self.trail.add_claims(claimant.id, {key}, run)
        try:
            rule_id = self.ingress.authorize(key, claimant.id)
        except (GroupFull, GroupGone, IngressRefused, IngressThrottled) as error:
            self.trail.drop_claim(claimant.id, key, run)
            if isinstance(error, (IngressRefused, IngressThrottled)):
                raise
            # Its room is taken, or the group is gone. Nobody's retry would change that.
            self.count("RuleLost")
            logger.error("rule_lost", extra={"grant_id": claimant.id, "rule": str(key)})
            return set()
        if rule_id is None:
            self.trail.drop_claim(claimant.id, key, run)
            return set()
        # If the claimant has ended by now, the next look at the claims shows it.
        with suppress(GrantEnded):
            self.trail.record_rule(claimant.id, key, rule_id, run)
        return {rule_id}

    def _record_closed(self, grant: Grant, run: str, done: Revocation) -> bool:
        """Record that the grant is closed, unless another run may be at work on it: then give False."""
        for _ in range(2):
            if self.trail.close(grant.id, self.clock(), done.revoked, done.kept, run):
                return True
            others = self._known(grant.id).closers - {run}
            if not others or self._at_work(others):
                return False
            self.trail.leave_closing(grant.id, others)  # dead, or they had left
        return False

    def _at_work(self, stamps: Iterable[str]) -> bool:
        """Say whether any of these runs may still act, or may have acted unseen."""
        return any(self.clock() < stamped_at(stamp) + SETTLES for stamp in stamps)


def _recorded(grant: Grant, target: Target, ports: Ports) -> Opened | None:
    """Give a rule that an earlier run opened and recorded: to authorize it again could only do harm.

    Were it revoked in this moment by who ends the grant, nobody would expect it to be there again.
    """
    for group in sorted(target.groups):
        key = RuleKey(group, ports, grant.source)
        if key not in grant.claims or key in grant.unsettled:
            continue
        if key in grant.rules:
            return Opened(key, max(grant.rules[key]), target.name)
        if key in grant.foreign:
            return Opened(key, grant.foreign[key], target.name, foreign=True)
    return None


def _renews(new: Grant, old: Grant) -> bool:
    """Say whether one grant takes another's place. Order decides between two at once, so only one can."""
    return (
        old.id != new.id
        and old.order < new.order
        and old.principal.id == new.principal.id
        and old.source == new.source
        and {target.name for target in old.targets} == {target.name for target in new.targets}
    )
