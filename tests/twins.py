"""Strict in-memory twins of the trail, the groups and the executions, and the clock they share.

They do what the adapters do (`grants.trail.Trail`, `grants.ingress.Ingress`, `grants.executions.Executions`),
raise what those raise, and are thousands of times as fast: the proofs run on them. The contract in
tests/adapters runs over both, so a twin cannot lie.

One method is one call to AWS. A `Hook` hears of each before it acts and after, with its arguments and what
came of it, and may raise in either place: an error before the effect, or an answer that was lost.

What a twin holds are immutable values in a few dictionaries. What AWS leaves open is a question to the
twin's user: `Ingress.views` lists all that EC2 may show when asked for rules, and `Ingress.choose` picks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from grants.errors import (
    EngineUnavailable,
    GrantEnded,
    GrantNotFound,
    IngressRefused,
    IngressThrottled,
    IngressUnavailable,
    InvalidKnock,
    KnockError,
    TrailUnavailable,
)
from grants.ingress import GroupFull, GroupGone
from grants.operations import Operations
from grants.trail import Page, _cut
from grants.values import Event, Grant, Principal, Rule, RuleKey, State

STACK = "knock"
MOST_PAIRS = 256
RULES_PER_GROUP = 60

# For how long EC2 may show a rule that is gone, and hide one that is there. AWS names no number; describes
# lag by seconds (https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
LAGS = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Call:
    """One call to AWS: whose, which, with what."""

    service: str
    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.service}.{self.name}({', '.join(map(str, self.arguments))})"


class Hook:
    """Hears of every call. This one does nothing; either method may raise."""

    def before(self, call: Call) -> None: ...

    def after(self, call: Call, came: object) -> None:
        """`came` is the answer, or the exception that is about to be raised."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


class _Twin:
    service = ""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook


Method = TypeVar("Method", bound=Callable[..., Any])


def _call(method: Method) -> Method:
    """Make a method one call that the hook hears of."""

    @functools.wraps(method)
    def heard(self: _Twin, *args: Any, **kwargs: Any) -> Any:
        call = Call(self.service, method.__name__, (*args, *kwargs.values()))
        self.hook.before(call)
        try:
            answer = method(self, *args, **kwargs)
        except KnockError as error:
            self.hook.after(call, error)
            raise
        self.hook.after(call, answer)
        return answer

    return heard  # type: ignore[return-value]  # same parameters, same answer


# ---------------------------------------------------------------------------- the trail


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal's item."""

    id: str
    principal: Principal
    source: str
    at: datetime
    right: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Item:
    """A grant's item: what its single values say, and the sets that SimpleDB keeps beside them."""

    plain: Grant
    claims: frozenset[tuple[RuleKey, str]] = frozenset()  # with the stamp
    told: frozenset[tuple[RuleKey, str, bool, str]] = frozenset()  # the rule's id, foreign, the stamp
    condemned: frozenset[tuple[RuleKey, str]] = frozenset()

    def read(self) -> Grant:
        """Give the grant as the adapter reads it."""
        told = sorted(self.told)
        stamped = {(key, stamp) for key, _, _, stamp in told}
        return replace(
            self.plain,
            claims=frozenset(key for key, _ in self.claims),
            unsettled=_gather(self.claims - stamped),
            outcomes={key: (rule_id, foreign) for key, rule_id, foreign, stamp in told if stamp},
            rules=_gather((key, rule_id) for key, rule_id, foreign, _ in told if not foreign),
            condemned=_gather(self.condemned),
        )


def _gather(pairs: Iterable[tuple[RuleKey, str]]) -> dict[RuleKey, frozenset[str]]:
    found: dict[RuleKey, frozenset[str]] = {}
    for key, value in sorted(pairs):
        found[key] = found.get(key, frozenset()) | {value}
    return found


class Trail(_Twin):
    """Twin of `grants.trail.Trail`. `down` makes every call fail, before any effect."""

    service = "trail"

    def __init__(self, hook: Hook) -> None:
        super().__init__(hook)
        self.items: dict[str, _Item] = {}
        self.grants: dict[str, Grant] = {}  # the items, as they are read
        self.refusals: dict[str, Refused] = {}
        self.down = False

    @_call
    def record_request(self, grant: Grant) -> None:
        self._answer()
        if grant.id in self.grants or grant.id in self.refusals:
            return
        plain = replace(
            grant,
            requested_at=_milliseconds(grant.requested_at),
            targets=tuple(
                sorted((replace(t, groups=()) for t in grant.targets), key=lambda target: target.name)
            ),
            events=(Event(_milliseconds(grant.requested_at), "requested", grant.principal.name),),
        )
        self._put(_Item(plain))

    @_call
    def record_refusal(
        self, refusal_id: str, principal: Principal, source: str, at: datetime, right: str, detail: str
    ) -> None:
        self._answer()
        self.refusals[refusal_id] = Refused(
            refusal_id, principal, source, _milliseconds(at), right, detail[:1000]
        )

    @_call
    def add_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None:
        item = self._live(grant_id)
        self._put(replace(item, claims=item.claims | {(key, stamp) for key in keys}))

    @_call
    def drop_claims(self, grant_id: str, keys: Iterable[RuleKey], stamp: str) -> None:
        self._answer()
        item = self.items.get(grant_id)
        if item:
            self._put(replace(item, claims=item.claims - {(key, stamp) for key in keys}))

    @_call
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
    ) -> None:
        item = self._live(grant_id)
        plain = replace(item.plain, supersedes=item.plain.supersedes | set(supersedes))
        item = replace(item, plain=plain, told=item.told | {(key, rule_id, foreign, stamp)})
        if authorized_at:
            at = _milliseconds(authorized_at)
            item = _happened(item, Event(at, "authorized", "knock"), authorized_at=at)
        self._put(item)

    @_call
    def hand_over(self, grant_id: str, rules: Mapping[RuleKey, Iterable[str]]) -> None:
        item = self._live(grant_id)
        handed = {(key, rule_id, False, "") for key, ids in rules.items() for rule_id in ids}
        self._put(replace(item, told=item.told | handed))

    @_call
    def end(self, grant_id: str, how: State, at: datetime, by: str, reason: str) -> bool:
        self._answer()
        item = self.items.get(grant_id)
        if item is None:
            raise GrantNotFound(f"the trail holds no grant {grant_id!r}")
        if item.plain.state != "live":
            return False
        at = _milliseconds(at)
        event = Event(at, how, by, {"reason": _cut(reason, 300)} if reason else {})
        self._put(_happened(item, event, state=how, ended_at=at, ended_by=by, end_reason=_cut(reason, 1000)))
        return True

    @_call
    def condemn(self, grant_id: str, decided: int, rules: Mapping[RuleKey, Iterable[str]]) -> bool:
        self._answer()
        item = self.items.get(grant_id)
        if item is None or item.plain.closed_at or item.plain.decided != decided:
            return False
        condemned = item.condemned | {(key, rule_id) for key, ids in rules.items() for rule_id in ids}
        self._put(replace(item, plain=replace(item.plain, decided=decided + 1), condemned=condemned))
        return True

    @_call
    def close(
        self, grant_id: str, decided: int, at: datetime, revoked: Iterable[str], kept: Iterable[str]
    ) -> bool:
        self._answer()
        item = self.items.get(grant_id)
        if item is None or item.plain.closed_at or item.plain.decided != decided:
            return False
        detail = {"revoked": sorted(revoked)[:20], "kept": sorted(kept)[:4]}
        at = _milliseconds(at)
        event = Event(at, "closed", "knock", {key: value for key, value in detail.items() if value})
        self._put(_happened(item, event, closed_at=at, decided=-1))
        return True

    @_call
    def get(self, grant_id: str) -> Grant | None:
        self._answer()
        return self.grants.get(grant_id)

    @_call
    def unclosed(self, source: str) -> list[Grant]:
        self._answer()
        return [g for g in self.grants.values() if g.source == source and not g.closed_at]

    @_call
    def all_unclosed(self) -> Iterator[Grant]:
        self._answer()
        return iter([grant for grant in self.grants.values() if not grant.closed_at])

    @_call
    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        live_after: datetime | None = None,
        principal_id: str | None = None,
        principal_name: str | None = None,
        source: str | None = None,
        target: str | None = None,
        state: str | None = None,
    ) -> Page:
        self._answer()
        # A whole second is compared with a whole second, as the real one does with texts.
        live_after = live_after.replace(microsecond=0) if live_after else None
        found = [
            grant
            for grant in sorted(self.grants.values(), key=lambda grant: grant.order, reverse=True)
            if (after is None or grant.order < after)
            and (live_after is None or (grant.state == "live" and grant.expires_at > live_after))
            and principal_id in (None, grant.principal.id)
            and principal_name in (None, grant.principal.name)
            and source in (None, grant.source)
            and (target is None or target in {t.name for t in grant.targets})
            and state in (None, grant.state)
        ]
        more = len(found) > limit
        return Page(tuple(found[:limit]), found[limit - 1].order if more else None)

    def _answer(self) -> None:
        if self.down:
            raise TrailUnavailable("SimpleDB answered ServiceUnavailable")

    def _live(self, grant_id: str) -> _Item:
        self._answer()
        item = self.items.get(grant_id)
        if item is None or item.plain.state != "live":
            raise GrantEnded(f"the grant {grant_id} has ended; nothing is opened for it")
        return item

    def _put(self, item: _Item) -> None:
        if _pairs(item) > MOST_PAIRS:
            raise InvalidKnock("targets", "the grant has more to record than its item holds")
        self.items[item.plain.id] = item
        self.grants[item.plain.id] = item.read()


def _milliseconds(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _happened(item: _Item, event: Event, **changes: Any) -> _Item:
    """Add an event: a set in SimpleDB, so that an equal one is one, in the order of their times."""
    events = item.plain.events
    if event not in events:
        events = tuple(sorted((*events, event), key=lambda event: event.at))
    return replace(item, plain=replace(item.plain, events=events, **changes))


def _pairs(item: _Item) -> int:
    """Count the pairs of an item.

    Ten are single and always there: kind, state, closed_at, decided, two of the principal, source, two
    times, order.
    """
    grant = item.plain
    single = (grant.reason, grant.authorized_at, grant.ended_at, grant.ended_by, grant.end_reason)
    sets = (item.claims, item.told, item.condemned, grant.supersedes)
    many = (grant.targets, grant.targets, grant.events, *sets)
    return 10 + sum(map(bool, single)) + sum(map(len, many))


# ---------------------------------------------------------------------------- the groups


@dataclass(frozen=True, slots=True)
class Change:
    """A rule that was made (there) or removed (not there), and when."""

    rule: Rule
    there: bool
    at: datetime


class Ingress(_Twin):
    """Twin of `grants.ingress.Ingress`: security groups and their rules, foreign ones too.

    `quota` is what a group holds of each address family; `refused` are groups Knock has no permission for;
    `throttled` and `down` make calls fail before any effect. Rule ids follow from the key and how many rules
    the key has had, so that the same things done in another order give the same rules.
    """

    service = "ingress"

    def __init__(self, hook: Hook, clock: Clock, stack: str = STACK) -> None:
        super().__init__(hook)
        self._clock = clock
        self.stack = stack
        self.groups: dict[str, int] = {}
        self.rules: dict[RuleKey, Rule] = {}
        self.recent: tuple[Change, ...] = ()
        self.made: dict[RuleKey, int] = {}
        self.refused: frozenset[str] = frozenset()
        self.throttled = False
        self.down = False
        self.lags = timedelta(0)
        self.choose: Callable[[list[tuple[Rule, ...]]], tuple[Rule, ...]] = lambda views: views[0]

    # What people and other programs do to the groups.

    def add_group(self, group: str, quota: int = RULES_PER_GROUP) -> None:
        self.groups[group] = quota

    def delete_group(self, group: str) -> None:
        """Delete a group with its rules."""
        for key in [key for key in self.rules if key.group == group]:
            self._remove(key)
        del self.groups[group]

    def add_rule(self, key: RuleKey, stack: str | None = None, grant_id: str | None = None) -> str:
        """Add a rule by hand: a foreign one, unless it is given tags."""
        assert key not in self.rules, "EC2 holds one rule a key"
        return self._add(key, stack, grant_id).id

    def remove_rule(self, key: RuleKey) -> None:
        """Remove a rule by hand."""
        self._remove(key)

    # What Knock does.

    @_call
    def authorize(self, key: RuleKey, grant_id: str) -> str | None:
        self._answer(key.group)
        if key.group not in self.groups:
            raise GroupGone(f"{key.group} does not exist any more")
        if key in self.rules:
            return None
        family = _family(key)
        there = sum(1 for one in self.rules if one.group == key.group and _family(one) == family)
        if there >= self.groups[key.group]:
            raise GroupFull(f"{key.group} has no room for another rule")
        return self._add(key, self.stack, grant_id).id

    @_call
    def revoke(self, group: str, rule_id: str) -> bool:
        self._answer(group)
        for key, rule in self.rules.items():
            if key.group == group and rule.id == rule_id:
                self._remove(key)
                return True
        return False

    @_call
    def find(self, groups: Iterable[str]) -> list[Rule]:
        self._answer()
        wanted = set(groups)
        return list(self.choose(self.views(lambda rule: rule.key.group in wanted)))

    @_call
    def ours(self) -> list[Rule]:
        self._answer()
        return list(self.choose(self.views(self.is_ours)))

    def is_ours(self, rule: Rule) -> bool:
        return rule.stack == self.stack

    def views(self, chosen: Callable[[Rule], bool]) -> list[tuple[Rule, ...]]:
        """List all that EC2 may show of the rules chosen: as they are first, then with changes not yet shown.

        Each rule made or removed within `lags` may show or not, whatever an earlier call showed.
        """
        there = {rule.id: rule for rule in self.rules.values() if chosen(rule)}
        changed = {
            change.rule.id: change.rule
            for change in self.recent
            if chosen(change.rule) and self._clock() - change.at < self.lags
        }
        views = []
        for hidden in itertools.product((False, True), repeat=len(changed)):
            shown = dict(there)
            for (rule_id, rule), wrong in zip(changed.items(), hidden, strict=True):
                if wrong and shown.pop(rule_id, None) is None:
                    shown[rule_id] = rule
            views.append(tuple(shown[rule_id] for rule_id in sorted(shown)))
        return views

    def _answer(self, group: str = "") -> None:
        if self.throttled:
            raise IngressThrottled("EC2's request limit is reached (RequestLimitExceeded)")
        if self.down:
            raise IngressUnavailable("EC2 answered ServiceUnavailable")
        if group in self.refused:
            raise IngressRefused("EC2 answered UnauthorizedOperation")

    def _add(self, key: RuleKey, stack: str | None, grant_id: str | None) -> Rule:
        self.made[key] = self.made.get(key, 0) + 1
        rule = Rule(f"sgr-{key}#{self.made[key]}", key, stack, grant_id)
        self.rules[key] = rule
        self._changed(Change(rule, there=True, at=self._clock()))
        return rule

    def _remove(self, key: RuleKey) -> None:
        self._changed(Change(self.rules.pop(key), there=False, at=self._clock()))

    def _changed(self, change: Change) -> None:
        if self.lags:
            kept = (
                c for c in self.recent if c.rule.id != change.rule.id and self._clock() - c.at < self.lags
            )
            self.recent = (*kept, change)


def _family(key: RuleKey) -> int:
    return 6 if ":" in key.cidr else 4


# ---------------------------------------------------------------------------- the executions


class Executions(_Twin):
    """Twin of `grants.executions.Executions`. Stopping a running one tells `stopped`, as EventBridge does."""

    service = "executions"

    def __init__(self, hook: Hook) -> None:
        super().__init__(hook)
        self.statuses: dict[str, str] = {}
        self.down = False
        self.stopped: Callable[[str], None] = lambda _grant_id: None

    def arn(self, grant_id: str) -> str:
        return f"arn:aws:states:eu-west-1:123456789012:execution:{STACK}-grants:{grant_id}"

    def finish(self, grant_id: str, status: str) -> None:
        """Let a running execution end by itself."""
        if self.statuses.get(grant_id) == "RUNNING":
            self.statuses[grant_id] = status

    @_call
    def start(self, grant: Grant) -> None:
        self._answer()
        self.statuses.setdefault(grant.id, "RUNNING")

    @_call
    def stop(self, grant_id: str, error: str, cause: str) -> bool:
        self._answer()
        status = self.statuses.get(grant_id)
        if status == "RUNNING":
            self.statuses[grant_id] = "ABORTED"
            self.stopped(grant_id)
        return status is not None

    @_call
    def status(self, grant_id: str) -> str | None:
        self._answer()
        return self.statuses.get(grant_id)

    @_call
    def running(self) -> Iterator[str]:
        self._answer()
        return iter([name for name, status in self.statuses.items() if status == "RUNNING"])

    def _answer(self) -> None:
        if self.down:
            raise EngineUnavailable("Step Functions did not answer: ServiceUnavailable")


# ---------------------------------------------------------------------------- all of it


@dataclass(slots=True)
class World:
    """One stack: the three twins, their clock, and the operations over them."""

    hook: Hook = field(default_factory=Hook)
    clock: Clock = field(default_factory=Clock)
    trail: Trail = field(init=False)
    ingress: Ingress = field(init=False)
    executions: Executions = field(init=False)
    operations: Operations = field(init=False)

    def __post_init__(self) -> None:
        self.trail = Trail(self.hook)
        self.ingress = Ingress(self.hook, self.clock)
        self.executions = Executions(self.hook)
        numbers = itertools.count()
        self.operations = Operations(
            self.trail, self.ingress, self.executions, self.clock, token=lambda: f"{next(numbers):08x}"
        )

    def listen(self, hook: Hook) -> None:
        """Let another hook hear of the calls."""
        self.hook = self.trail.hook = self.ingress.hook = self.executions.hook = hook
