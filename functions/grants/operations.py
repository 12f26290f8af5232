"""The order of calls that keeps the invariants: authorize, revoke, force, supersede, guard.

Two ideas carry it, and there is no lock:

- A claim is written before its rule is authorized, and an ended grant gains no claim. So whoever reads
  the claims of a source after a grant's end knows every rule that may be open for it.
- What is done to a rule is level-triggered: act, read the claims again, and act again if the answer has
  changed. Whoever acts last on a rule has read the claims after acting, so the rule is as they say.
  A crash in between is made good by the task's retry, which starts from the claims again.

            authorize(A)                           revoke(B), same rule
            claim A ─┐                             end B
                     │                             read claims: none      (A's claim not yet written)
            EC2: already there (B's)
            record                                 EC2: revoke
                     └───────────────────────────▶ read claims: A's       → authorize again, for A

Every method may run twice, concurrently, late, or after the grant ended.
"""

from __future__ import annotations

import logging
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
from .values import Grant, Ports, Rule, RuleKey, State, Target, keys_of

logger = logging.getLogger("knock")

# For how long after a grant's end an authorization of it may still be under way and unseen: the
# authorize function's timeout (20 s), and the seconds in which EC2 may not show a new rule yet.
SETTLES = timedelta(seconds=60)

# Claims that change at every look, this often in a row, are left to the task's retry.
LOOKS = 8


class Trail(Protocol):
    """What `trail.Trail` does; the tests' in-memory twin does the same."""

    def add_claims(self, grant_id: str, keys: Iterable[RuleKey]) -> None: ...
    def drop_claim(self, grant_id: str, key: RuleKey) -> None: ...
    def record_rule(
        self,
        grant_id: str,
        key: RuleKey,
        rule_id: str,
        *,
        foreign: bool = False,
        next_claim: RuleKey | None = None,
        authorized_at: datetime | None = None,
    ) -> None: ...
    def end(self, grant_id: str, how: State, at: datetime, by: str, reason: str) -> bool: ...
    def close(self, grant_id: str, at: datetime, revoked: Iterable[str], kept: Iterable[str]) -> None: ...
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

    `clock` gives the time, in UTC; `count` adds one to a metric.
    """

    trail: Trail
    ingress: Ingress
    executions: Executions
    clock: Callable[[], datetime]
    count: Callable[[str], None] = lambda _metric: None

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
        slots = [self._slot(grant, target, ports) for target, ports in asked.slots()]
        self._claim(grant, slots[0][1][0])
        opened: list[Opened] = []
        try:
            for number, (target, keys) in enumerate(slots, 1):
                opened.append(self._open(grant, target, keys))
                self._record(grant, opened[-1], slots[number][1][0] if number < len(slots) else None)
            self._refuse_ended(grant)
        except GrantEnded:
            # It ended while this ran. Nobody may come after this to close what was opened just now.
            self._close(self._known(grant.id), {o.key: o.rule_id for o in opened if not o.foreign})
            raise
        self._supersede(grant)
        return opened

    def _refuse_ended(self, grant: Grant) -> None:
        if not grant.live_at(self.clock()):
            raise GrantEnded(f"the grant {grant.id} has ended; nothing is opened for it")

    def _slot(self, grant: Grant, target: Target, ports: Ports) -> tuple[Target, list[RuleKey]]:
        """Order a target's groups: those an earlier run of this task claimed first, then by id."""
        keys = [RuleKey(group, ports, grant.source) for group in sorted(target.groups)]
        return target, sorted(keys, key=lambda key: key not in grant.claims)

    def _open(self, grant: Grant, target: Target, keys: list[RuleKey]) -> Opened:
        """Authorize one rule in the first group of the pool that has room."""
        for number, key in enumerate(keys):
            if number:
                self._claim(grant, key)
            try:
                rule_id, foreign = self._authorize_rule(key, grant.id)
            except (GroupFull, GroupGone, IngressRefused, IngressThrottled) as error:
                # EC2 did not act. Unless an earlier run of this task left the claim: that one may have.
                if key not in grant.claims:
                    self.trail.drop_claim(grant.id, key)
                if isinstance(error, (IngressRefused, IngressThrottled)):
                    raise
                continue
            return Opened(key, rule_id, target.name, foreign)
        raise PoolExhausted(
            f"every security group of the target {target.name} is full ({len(keys)} tried); "
            "end a grant, or ask an operator to add a group"
        )

    def _claim(self, grant: Grant, key: RuleKey) -> None:
        if key not in grant.claims:
            self.trail.add_claims(grant.id, {key})

    def _record(self, grant: Grant, opened: Opened, following: RuleKey | None) -> None:
        """Record one rule and claim the following one; with the last, record that all is open.

        One write for both, so that only one claim at a time has an open outcome. Raises GrantEnded.
        """
        self.trail.record_rule(
            grant.id,
            opened.key,
            opened.rule_id,
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

    def _supersede(self, grant: Grant) -> None:
        """End the older grants that this one renews: same principal, same source, same targets.

        The new grant is open and recorded by now, so access never pauses. Failing here costs nothing
        but tidiness (the old grant ends by its own timer), and must not end the new one: it is logged.
        """
        try:
            for old in self.trail.unclosed(grant.source):
                now = self.clock()
                if _renews(grant, old) and (old.live_at(now) or old.ended_by == grant.id):
                    self.trail.end(old.id, "superseded", now, grant.id, "")
                    # Stopped before it is closed: a retry finds what is unclosed, not what runs on.
                    self.executions.stop(old.id, "Superseded", f"renewed by {grant.id}")
                    self._close(self._known(old.id))
        except KnockError:
            self.count("SupersedeFailed")
            logger.exception("supersede_failed", extra={"grant_id": grant.id})

    # ------------------------------------------------------------------ revoke

    def revoke(self, grant_id: str, how: State, by: str, reason: str = "") -> Revocation:
        """End a grant and close what it opened, save what other live grants claim.

        The first end recorded stands; the second time changes nothing and answers the same. Raises
        GrantNotFound; RuleUnsettled when an authorization may be under way still; other Unavailables.
        """
        self.trail.end(grant_id, how, self.clock(), by, reason)
        return self._close(self._known(grant_id))

    def force(self, state: Grant, rules: Mapping[RuleKey, str], how: State) -> Revocation:
        """Close a grant, without the trail if need be.

        With the trail this is `revoke`. Without it, every rule of ours that the grant can have opened
        goes, whoever else claims it: access may then end early, never late. The trail's error is raised
        all the same, so that this runs again until the trail can tell what happened; then other live
        grants get their rules back.
        """
        try:
            return self.revoke(state.id, how, "knock", "by force")
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
        made = {rule.key: rule.id}
        kept: bool | None = None
        for _ in range(LOOKS):
            now = self.clock()
            live = keys_of(g for g in self.trail.unclosed(rule.key.cidr) if g.live_at(now))
            if kept is None and rule.key in live:
                return False
            if kept == (rule.key in live):
                return not kept
            kept = rule.key in live
            if kept:
                made |= self._keep(rule.key, live[rule.key])
            else:
                self.ingress.revoke(rule.key.group, made[rule.key])
        raise RuleUnsettled("other grants for this source come and go too fast to follow")

    def _known(self, grant_id: str) -> Grant:
        grant = self.trail.get(grant_id)
        if grant is None:
            raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
        return grant

    def _close(self, grant: Grant, just_opened: Mapping[RuleKey, str] | None = None) -> Revocation:
        """Revoke every rule of an ended grant that no other live grant claims, until that is so.

        Goes on to the other rules when one fails, and raises the first failure at the end.
        """
        done = Revocation(grant, grant.state)
        if grant.closed_at and not just_opened:
            return done
        failures: list[KnockError] = []
        seen: dict[RuleKey, bool] = {}
        made = dict(just_opened or {})
        for _ in range(LOOKS):
            claimed = self._claimed_by_others(grant)
            stale = [key for key in sorted(grant.claims) if seen.get(key) != (key in claimed)]
            if not stale:
                break
            for key in stale:
                seen[key] = key in claimed
                try:
                    if key in claimed:
                        made |= self._keep(key, claimed[key])
                    else:
                        done.revoked += self._revoke_rule(grant, key, made.get(key))
                except KnockError as error:
                    logger.warning("rule_not_closed", extra={"grant_id": grant.id, "rule": str(key)})
                    failures.append(error)
        else:
            failures.append(RuleUnsettled("other grants for this source come and go too fast to follow"))
        if failures:
            raise failures[0]
        done.kept = [str(key) for key, kept in sorted(seen.items()) if kept]
        self.trail.close(grant.id, self.clock(), done.revoked, done.kept)
        done.closed_now = True
        return done

    def _claimed_by_others(self, grant: Grant) -> dict[RuleKey, Grant]:
        now = self.clock()
        return keys_of(
            other
            for other in self.trail.unclosed(grant.source)
            if other.id != grant.id and other.live_at(now)
        )

    def _keep(self, key: RuleKey, claimant: Grant) -> dict[RuleKey, str]:
        """See that a rule other live grants claim is there, whoever revoked it meanwhile.

        Gives the rule's id if it was not, and had to be authorized again. By authorizing it, not by
        looking: EC2's answer to a write is true now, a list may be seconds old.
        """
        with suppress(GroupGone):
            rule_id = self.ingress.authorize(key, claimant.id)
            if rule_id:
                # If the claimant has ended by now, the next look at the claims shows it.
                with suppress(GrantEnded):
                    self.trail.record_rule(claimant.id, key, rule_id)
                return {key: rule_id}
        return {}

    def _revoke_rule(self, grant: Grant, key: RuleKey, just_opened: str | None) -> list[str]:
        """Revoke the rule of one key: by the ids recorded for it, else by looking it up.

        Raises RuleUnsettled when nothing is recorded, nothing shows, and an authorization may still be
        under way. One rule a key: once one id is revoked, the key has none.
        """
        ids = sorted(grant.rules.get(key, frozenset()) | ({just_opened} if just_opened else set()))
        for rule_id in ids:
            if self.ingress.revoke(key.group, rule_id):
                return [rule_id]
        there = self._look_up(key)
        if there and self.ingress.is_ours(there):
            return [there.id] if self.ingress.revoke(key.group, there.id) else []
        settled = ids or there or key in grant.foreign
        if not settled and self.clock() < (grant.ended_at or self.clock()) + SETTLES:
            raise RuleUnsettled(f"whether {key} was authorized cannot be known yet")
        return []


def _renews(new: Grant, old: Grant) -> bool:
    """Say whether one grant takes another's place. Order decides between two at once, so only one can."""
    return (
        old.id != new.id
        and old.order < new.order
        and old.principal.id == new.principal.id
        and old.source == new.source
        and {target.name for target in old.targets} == {target.name for target in new.targets}
    )
