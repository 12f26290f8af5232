"""Strict in-memory twins of a store, the groups and the executions, and the clock they share.

They do what the adapters do (`grants.simpledb.SimpleDb`, `grants.ingress.Ingress`, `grants.executions`),
raise what those raise, and are thousands of times as fast: the proofs run on them. Trail and ledgers have
no twin: the real ones run on the store's. The contract in tests/adapters runs over both, so a twin cannot
lie.

One method is one call to AWS. A `Hook` hears of each before it acts and after, with its arguments and
what came of it, and may raise in either place: an error before the effect, or an answer that was lost.

What a twin holds are immutable values in a few dictionaries. What AWS leaves open is a question to the
twin's user: `choose` is given all that AWS may do, the obliging thing first, and picks. A `World` picks
that unless it is told otherwise, and with `lags` of zero there is nothing to pick.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from grants.errors import (
    EngineUnavailable,
    IngressRefused,
    IngressThrottled,
    IngressUnavailable,
    KnockError,
    StoreRefused,
    StoreUnavailable,
)
from grants.ingress import Group
from grants.ledgers import Ledgers
from grants.operations import Execution, GroupFull, GroupGone, Operations, RuleDuplicate, RuleNotFound
from grants.policy import TAG_PORTS, TAG_STACK, TAG_TARGET, Limits
from grants.store import Conflict, Expected, Values, Where
from grants.timing import EC2_LAG
from grants.trail import Trail
from grants.values import Grant, Ports, Record, Rule, RuleKey, Target, compact_json

STACK = "knock"
MOST_PAIRS = 256
LONGEST = 1024
RULES_PER_GROUP = 60
LIMITS = Limits(timedelta(hours=24), timedelta(hours=24))

# For how long EC2 may show a rule that is gone, hide one that is there, and not know its id.
LAGS = EC2_LAG

T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call to AWS: whose, which, with what."""

    service: str
    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.service}.{self.name}({', '.join(map(str, self.arguments))})"


class Hook:
    """Hears of every call. This one does nothing; `before` and `after` may raise."""

    def before(self, call: Call) -> None: ...

    def after(self, call: Call, came: object) -> None:
        """`came` is the answer, or the exception that is about to be raised."""

    def twice(self, call: Call) -> bool:
        """Say whether the first answer to a store's write is lost, and the client makes the call again."""
        return False


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


def oblige(options: Sequence[T]) -> T:
    """Choose what an obliging AWS does."""
    return options[0]


class _Twin:
    service = ""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.choose: Choose = oblige


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


# ---------------------------------------------------------------------------- a store


class Item(Mapping[str, tuple[str, ...]]):
    """A store's item: it never changes, and equal ones are one to look up by."""

    __slots__ = ("_hash", "_pairs", "_values")

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self._values = dict(values)
        self._pairs = tuple(sorted(self._values.items()))
        self._hash = hash(self._pairs)

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Item):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._pairs == other._pairs)

    @property
    def pairs(self) -> int:
        """Count the pairs, as SimpleDB does."""
        return sum(map(len, self._values.values()))


NOTHING = Item({})


class Store(_Twin):
    """Twin of `grants.simpledb.SimpleDb`: one domain.

    `down` makes every call fail, before any effect; `refuses` does so for good.
    """

    def __init__(self, hook: Hook, service: str = "store") -> None:
        super().__init__(hook)
        self.service = service
        self.items: dict[str, Item] = {}
        self.down = False
        self.refuses = False

    @_call
    def get(self, name: str) -> Values:
        self._answer()
        return self.items.get(name, NOTHING)

    @_call
    def put(
        self,
        name: str,
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,
    ) -> None:
        self._answer()
        sets = tuple(sets)
        self._twice("put", name, lambda: self._put(name, values, sets, expected))

    @_call
    def delete(self, name: str, *, expected: Expected) -> None:
        self._answer()
        self._twice("delete", name, lambda: self._delete(name, expected))

    @_call
    def query(
        self, where: Sequence[Where], *, newest_first: bool = False, page: int = 2500
    ) -> Iterator[tuple[str, Values]]:
        self._answer()
        found = self._chosen(where)
        if newest_first:
            found = [(name, item) for name, item in found if "order" in item]
            found.sort(key=lambda pair: pair[1]["order"], reverse=True)
        return iter(found)

    @_call
    def count(self, where: Sequence[Where]) -> int:
        self._answer()
        return len(self._chosen(where))

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("SimpleDB answered ServiceUnavailable")
        if self.refuses:
            raise StoreRefused("SimpleDB answered AuthorizationFailure")

    def _twice(self, method: str, name: str, act: Callable[[], None]) -> None:
        if self.hook.twice(Call(self.service, method, (name,))):
            act()  # done, and nobody heard of it
        act()

    def _put(
        self,
        name: str,
        values: Mapping[str, str],
        sets: tuple[tuple[str, str], ...],
        expected: Expected | None,
    ) -> None:
        texts = [name, *itertools.chain(*values.items(), *sets)]
        if any(len(text.encode()) > LONGEST for text in texts) or not name:
            raise StoreRefused("SimpleDB answered InvalidParameterValue")
        self._check(name, expected)
        merged = dict(self.items.get(name, NOTHING))
        merged |= {key: (text,) for key, text in values.items()}
        for key, text in sets:
            merged[key] = tuple(sorted({*merged.get(key, ()), text}))
        item = Item(merged)
        if item.pairs > MOST_PAIRS or len(values) + len(sets) > MOST_PAIRS:
            raise StoreRefused("SimpleDB answered NumberItemAttributesExceeded")
        self.items[name] = item

    def _delete(self, name: str, expected: Expected) -> None:
        self._check(name, expected)
        self.items.pop(name, None)

    def _check(self, name: str, expected: Expected | None) -> None:
        if expected is None:
            return
        there = self.items.get(name, NOTHING).get(expected.attribute)
        if expected.text is None and there is not None:
            raise Conflict(missing=False)
        if expected.text is not None and there is None:
            raise Conflict(missing=True)
        if expected.text is not None and there != (expected.text,):
            raise Conflict(missing=False)

    def _chosen(self, where: Sequence[Where]) -> list[tuple[str, Item]]:
        return [
            (name, item)
            for name, item in sorted(self.items.items())
            if all(any(_compares(text, one) for text in item.get(one.attribute, ())) for one in where)
        ]


def _compares(text: str, where: Where) -> bool:
    return {"=": text == where.text, "<": text < where.text, ">": text > where.text}[where.is_]


# ---------------------------------------------------------------------------- the groups


@dataclass(frozen=True, slots=True)
class Change:
    """What a rule was until `at`: EC2 may go on to show it so. None: it was not there."""

    rule_id: str
    before: Rule | None
    at: datetime


class Ingress(_Twin):
    """Twin of `grants.ingress.Ingress`: security groups, and their rules, foreign ones too.

    `quota` is what a group holds of each address family; `refused` are groups Knock has no permission for;
    `throttled` and `down` make calls fail before any effect. Rule ids follow from the key and how many rules
    the key has had, so that the same things done in another order give the same rules.
    """

    service = "ingress"

    def __init__(self, hook: Hook, clock: Clock, stack: str = STACK) -> None:
        super().__init__(hook)
        self._clock = clock
        self.stack = stack
        self.quota: dict[str, int] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.rules: dict[str, Rule] = {}  # by id
        self.egress: dict[str, Rule] = {}
        self.other: dict[
            str, int
        ] = {}  # group → rules that name a group or a prefix list: they count for both
        self.recent: tuple[Change, ...] = ()
        self.made: dict[RuleKey, int] = {}
        self.refused: frozenset[str] = frozenset()
        self.throttled = False
        self.down = False
        self.lags = timedelta(0)

    # What people and other programs do to the groups.

    def add_group(self, group: str, quota: int = RULES_PER_GROUP, target: Target | None = None) -> None:
        self.quota[group] = quota
        self.tags.setdefault(group, {TAG_STACK: self.stack})
        if target:
            self.tag(group, target)

    def tag(self, group: str, target: Target) -> None:
        """Put a group into a target's pool."""
        self.tags[group] = {
            TAG_STACK: self.stack,
            TAG_TARGET: target.name,
            TAG_PORTS: " ".join(map(str, target.ports)),
        }

    def delete_group(self, group: str) -> None:
        """Delete a group with its rules."""
        for rule in [rule for rule in self.rules.values() if rule.key.group == group]:
            self.remove_rule(rule.id)
        del self.quota[group], self.tags[group]

    def add_rule(
        self, key: RuleKey, stack: str | None = None, grant_id: str | None = None, *, egress: bool = False
    ) -> str:
        """Add a rule by hand: a foreign one, unless it is given tags."""
        if egress:
            rule = Rule(f"sgr-{key}#egress", key, stack, grant_id)
            self.egress[rule.id] = rule
            return rule.id
        assert self.at(key) is None, "EC2 holds one rule a key"
        return self._add(key, stack, grant_id).id

    def remove_rule(self, rule_id: str) -> None:
        """Remove a rule, by hand or for Knock."""
        self._changed(rule_id, self.rules.pop(rule_id))

    def modify_rule(self, rule_id: str, key: RuleKey) -> None:
        """Change a rule's ports or CIDR by hand: it keeps its id."""
        assert self.at(key) is None, "EC2 holds one rule a key"
        rule = self.rules[rule_id]
        self.rules[rule_id] = replace(rule, key=key)
        self._changed(rule_id, rule)

    def at(self, key: RuleKey) -> Rule | None:
        """Give the rule that is really there."""
        return next((rule for rule in self.rules.values() if rule.key == key), None)

    @property
    def keys(self) -> set[RuleKey]:
        return {rule.key for rule in self.rules.values()}

    def mine(self) -> list[Rule]:
        """Give Knock's own rules as they really are."""
        return [rule for rule in self.rules.values() if self.is_ours(rule)]

    # What Knock does.

    @_call
    def authorize(self, group: str, ports: Sequence[Ports], cidr: str, grant_id: str) -> dict[RuleKey, str]:
        self._answer(group)
        if group not in self.quota:
            raise GroupGone(f"{group} does not exist any more")
        keys = [RuleKey(group, one, cidr) for one in ports]
        assert len(set(keys)) == len(keys) > 0, "EC2 refuses a call that names a rule twice, or none"
        there = self.keys
        if there & set(keys):
            raise RuleDuplicate(f"{group} has one of the rules already")
        gone = {change.before.key for change in self._recent() if change.before}
        if gone & set(keys) and self.choose([False, True]):
            raise RuleDuplicate(f"{group} has one of the rules still, as it seems")
        if self._used(group, _family(cidr)) + len(keys) > self.quota[group]:
            raise GroupFull(f"{group} has no room for another rule")
        return {key: self._add(key, self.stack, grant_id).id for key in keys}

    @_call
    def revoke(self, group: str, rule_ids: Sequence[str]) -> frozenset[str]:
        self._answer(group)
        assert rule_ids, "EC2 refuses a call that names no rule"
        there = {name for name in rule_ids if name in self.rules and self.rules[name].key.group == group}
        born = {change.rule_id for change in self._recent() if change.before is None}
        young = sorted(there & born)
        unknown = self.choose([(), *_some(young)]) if young else ()
        there -= set(unknown)
        # What is not there: an error for all, or success that names what really went.
        if there != set(rule_ids) and not self.choose([False, True]):
            raise RuleNotFound(f"{group} has not all of {', '.join(rule_ids)}")
        for name in sorted(there):
            self.remove_rule(name)
        return frozenset(there)

    @_call
    def groups(self, groups: Iterable[str]) -> dict[str, Group]:
        self._answer()
        return {
            name: Group(
                name,
                dict(self.tags[name]),
                frozenset(rule.key for rule in self._view(functools.partial(_is_in, name))),
                {version: self._used(name, version) for version in (4, 6)},
            )
            for name in sorted(set(groups))
            if name in self.quota
        }

    @_call
    def find(self, groups: Iterable[str]) -> list[Rule]:
        self._answer()
        wanted = set(groups)
        return self._view(lambda rule: rule.key.group in wanted)

    @_call
    def tagged(self, grant_id: str) -> list[Rule]:
        self._answer()
        return self._view(lambda rule: rule.grant_id == grant_id and self.is_ours(rule))

    @_call
    def show(self, rule_ids: Iterable[str]) -> list[Rule]:
        self._answer()
        wanted = set(rule_ids)
        return self._view(lambda rule: rule.id in wanted)

    @_call
    def ours(self) -> list[Rule]:
        self._answer()
        return self._view(self.is_ours)

    def is_ours(self, rule: Rule) -> bool:
        return rule.stack == self.stack

    def _view(self, wanted: Callable[[Rule], bool]) -> list[Rule]:
        """List what EC2 shows of some rules: each that changed within `lags` as it is, or as it was."""
        shown = dict(self.rules)
        older: dict[str, set[Rule | None]] = {}
        for change in self._recent():
            older.setdefault(change.rule_id, set()).add(change.before)
        for name, versions in sorted(older.items()):
            now = self.rules.get(name)
            options = [now, *sorted(versions - {now}, key=str)]
            # What is left out either way is no question.
            alike = {None if one is None or not wanted(one) else one for one in options}
            if len(alike) > 1:
                chosen = self.choose(options)
                shown.pop(name, None)
                if chosen:
                    shown[name] = chosen
        return [rule for _, rule in sorted(shown.items()) if wanted(rule)]

    def _recent(self) -> list[Change]:
        return [change for change in self.recent if self._clock() - change.at < self.lags]

    def _used(self, group: str, version: int) -> int:
        there = [rule for rule in self.rules.values() if rule.key.group == group]
        return self.other.get(group, 0) + sum(_family(rule.key.cidr) == version for rule in there)

    def _answer(self, group: str = "") -> None:
        if self.throttled:
            raise IngressThrottled("EC2's request limit is reached (RequestLimitExceeded)")
        if self.down:
            raise IngressUnavailable("EC2 answered ServiceUnavailable")
        if group in self.refused:
            raise IngressRefused("EC2 answered UnauthorizedOperation")

    def _add(self, key: RuleKey, stack: str | None, grant_id: str | None) -> Rule:
        self.made[key] = self.made.get(key, 0) + 1
        rule = Rule(f"sgr-{key.group}-{key.ports}-{key.cidr}#{self.made[key]}", key, stack, grant_id)
        self.rules[rule.id] = rule
        self._changed(rule.id, None)
        return rule

    def _changed(self, rule_id: str, before: Rule | None) -> None:
        if self.lags:
            self.recent = (*self._recent(), Change(rule_id, before, self._clock()))


def _some(names: Sequence[str]) -> list[tuple[str, ...]]:
    """List the choices of at least one; of many, each alone and all, since more is only more of the same."""
    if len(names) > 2:
        return [tuple(names), *((name,) for name in names)]
    return [choice for size in range(1, len(names) + 1) for choice in itertools.combinations(names, size)]


def _is_in(group: str, rule: Rule) -> bool:
    return rule.key.group == group


def _family(cidr: str) -> int:
    return 6 if ":" in cidr else 4


# ---------------------------------------------------------------------------- the executions


class Executions(_Twin):
    """Twin of `grants.executions.Executions`. Stopping a running one tells `stopped`, as EventBridge does.

    `young` are those that Step Functions may not show yet.
    """

    service = "executions"

    def __init__(self, hook: Hook) -> None:
        super().__init__(hook)
        self.statuses: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        self.started: dict[str, datetime] = {}
        self.young: frozenset[str] = frozenset()
        self.down = False
        self.clock: Callable[[], datetime] = Clock()
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
        self.inputs.setdefault(grant.id, compact_json(grant.as_input()))
        self.started.setdefault(grant.id, self.clock())

    @_call
    def stop(self, grant_id: str, error: str, cause: str) -> bool:
        self._answer()
        status = self.statuses.get(grant_id)
        if status == "RUNNING":
            self.statuses[grant_id] = "ABORTED"
            self.stopped(grant_id)
        return status is not None

    @_call
    def describe(self, grant_id: str) -> Execution | None:
        self._answer()
        status = self.statuses.get(grant_id)
        if status is None or (grant_id in self.young and self.choose([False, True])):
            return None
        return Execution(status, self.inputs.get(grant_id, ""))

    @_call
    def running(self) -> Iterator[tuple[str, datetime]]:
        self._answer()
        names = [name for name, status in self.statuses.items() if status == "RUNNING"]
        shown = [name for name in names if name not in self.young or not self.choose([False, True])]
        return iter([(name, self.started.get(name, self.clock())) for name in shown])

    def _answer(self) -> None:
        if self.down:
            raise EngineUnavailable("Step Functions did not answer: ServiceUnavailable")


class Closings(_Twin):
    """Twin of `grants.executions.Closings`: what was started, as (grant id, payload in JSON)."""

    service = "closings"

    def __init__(self, hook: Hook) -> None:
        super().__init__(hook)
        self.started: list[tuple[str, str]] = []
        self.down = False

    @_call
    def start(self, grant_id: str, closing: Mapping[str, Any]) -> None:
        if self.down:
            raise EngineUnavailable("Step Functions did not answer: ServiceUnavailable")
        self.started.append((grant_id, compact_json(closing)))


# ---------------------------------------------------------------------------- all of it


@dataclass(slots=True)
class World:
    """One stack: two stores, the groups and the executions, their clock, and the operations over them."""

    hook: Hook = field(default_factory=Hook)
    clock: Clock = field(default_factory=Clock)
    trail_store: Store = field(init=False)
    ledger_store: Store = field(init=False)
    ingress: Ingress = field(init=False)
    executions: Executions = field(init=False)
    closings: Closings = field(init=False)
    trail: Trail = field(init=False)
    ledgers: Ledgers = field(init=False)
    operations: Operations = field(init=False)
    counts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trail_store, self.ledger_store = Store(self.hook, "trail"), Store(self.hook, "ledger")
        self.ingress = Ingress(self.hook, self.clock)
        self.executions, self.closings = Executions(self.hook), Closings(self.hook)
        self.executions.clock = self.clock
        numbers, tokens = itertools.count(), itertools.count()
        self.trail = Trail(self.trail_store)
        self.ledgers = Ledgers(self.ledger_store, lambda: f"{next(tokens):024x}")
        self.operations = Operations(
            self.trail,
            self.ledgers,
            self.ingress,
            self.executions,
            self.closings,
            self.clock,
            limits=LIMITS,
            count=self.count,
            token=lambda: f"{next(numbers):08x}",
            sleep=lambda _seconds: None,
        )

    def count(self, metric: str, value: float) -> None:
        self.counts[metric] = self.counts.get(metric, 0) + value

    @property
    def twins(self) -> tuple[_Twin, ...]:
        return (self.trail_store, self.ledger_store, self.ingress, self.executions, self.closings)

    def listen(self, hook: Hook) -> None:
        """Let another hook hear of the calls."""
        self.hook = hook
        for twin in self.twins:
            twin.hook = hook

    def let_choose(self, choose: Choose) -> None:
        """Let somebody else say what AWS does where it may do several things."""
        for twin in self.twins:
            twin.choose = choose

    # What is really there, without a call.

    def record(self, grant_id: str) -> Record | None:
        return Trail(_Quiet(self.trail_store.items)).get(grant_id)

    def records(self) -> list[Record]:
        found = (self.record(name) for name in sorted(self.trail_store.items))
        return [record for record in found if record]

    def ledger(self, source: str) -> Any:
        return Ledgers(_Quiet(self.ledger_store.items)).read(source).ledger


class _Quiet(Store):
    """A look at a store's items that nobody hears of."""

    def __init__(self, items: dict[str, Item]) -> None:
        super().__init__(Hook())
        self.items = items
