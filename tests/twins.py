"""Strict in-memory twins of a store, the groups and the executions, and the clock they share.

They do what the adapters do (`grants.simpledb.SimpleDb`, `grants.ingress.Ingress`, `grants.executions`),
raise what those raise, and are thousands of times as fast: the proofs run on them. Trail and ledgers have
no twin: the real ones run on the store's. The contract in tests/adapters runs over both, so a twin cannot
lie.

One method is one call to AWS. A `Hook` is called before each and after it, with its arguments and its
result, and may raise in either place: an error before the effect, or an answer that was lost.

The state of a twin is immutable values in a few dictionaries. Where AWS may do several things, `choose` is
given all of them, the most obliging first, and picks one. A `World` picks the first unless `let_choose`
sets another choice, and with `lags` of zero there is nothing to pick.
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
    """One call to AWS: the service, the method and its arguments."""

    service: str
    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.service}.{self.name}({', '.join(map(str, self.arguments))})"


class Hook:
    """Is called with every call. This one does nothing; `before` and `after` may raise."""

    def before(self, call: Call) -> None: ...

    def after(self, call: Call, result: object) -> None:
        """`result` is the answer, or the exception that is about to be raised."""

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
    """Make a method one call, with the hook before and after it."""

    @functools.wraps(method)
    def hooked(self: _Twin, *args: Any, **kwargs: Any) -> Any:
        call = Call(self.service, method.__name__, (*args, *kwargs.values()))
        self.hook.before(call)
        try:
            answer = method(self, *args, **kwargs)
        except KnockError as error:
            self.hook.after(call, error)
            raise
        self.hook.after(call, answer)
        return answer

    return hooked  # type: ignore[return-value]  # same parameters, same answer


# ---------------------------------------------------------------------------- a store


class Item(Mapping[str, tuple[str, ...]]):
    """A store's item: immutable, and hashable by its content."""

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
        items = self._chosen(where)
        if newest_first:
            items = [(name, item) for name, item in items if "order" in item]
            items.sort(key=lambda pair: pair[1]["order"], reverse=True)
        return iter(items)

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
            act()  # it took effect, and its answer is lost
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
        value = self.items.get(name, NOTHING).get(expected.attribute)
        if expected.text is None and value is not None:
            raise Conflict(missing=False)
        if expected.text is not None and value is None:
            raise Conflict(missing=True)
        if expected.text is not None and value != (expected.text,):
            raise Conflict(missing=False)

    def _chosen(self, where: Sequence[Where]) -> list[tuple[str, Item]]:
        return [
            (name, item)
            for name, item in sorted(self.items.items())
            if all(any(_compares(text, part) for text in item.get(part.attribute, ())) for part in where)
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
    `throttled` and `down` make calls fail before any effect. Rule ids follow from the key and its number of
    `additions`, so that the same calls in another order give the same rules.
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
        # By group: rules that name a group or a prefix list, which count for both address families.
        self.references: dict[str, int] = {}
        self.recent: tuple[Change, ...] = ()
        self.additions: dict[RuleKey, int] = {}
        self.refused: frozenset[str] = frozenset()
        self.throttled = False
        self.down = False
        self.lags = timedelta(0)

    # Changes by people and other programs.

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
        """Give the rule that has a key now, whatever EC2 shows."""
        return next((rule for rule in self.rules.values() if rule.key == key), None)

    @property
    def keys(self) -> set[RuleKey]:
        return {rule.key for rule in self.rules.values()}

    def mine(self) -> list[Rule]:
        """Give Knock's own rules as they are now, whatever EC2 shows."""
        return [rule for rule in self.rules.values() if self.is_ours(rule)]

    # Calls of Knock.

    @_call
    def authorize(self, group: str, ports: Sequence[Ports], cidr: str, grant_id: str) -> dict[RuleKey, str]:
        self._answer(group)
        if group not in self.quota:
            raise GroupGone(f"{group} does not exist any more")
        keys = [RuleKey(group, port_range, cidr) for port_range in ports]
        assert len(set(keys)) == len(keys) > 0, "EC2 refuses a call that names a rule twice, or none"
        if self.keys & set(keys):
            raise RuleDuplicate(f"{group} has one of the rules already")
        recently_gone = {change.before.key for change in self._recent() if change.before}
        if recently_gone & set(keys) and self.choose([False, True]):
            raise RuleDuplicate(f"{group} has one of the rules still, it seems")
        if self._used(group, _family(cidr)) + len(keys) > self.quota[group]:
            raise GroupFull(f"{group} has no room for another rule")
        return {key: self._add(key, self.stack, grant_id).id for key in keys}

    @_call
    def revoke(self, group: str, rule_ids: Sequence[str]) -> frozenset[str]:
        self._answer(group)
        assert rule_ids, "EC2 refuses a call that names no rule"
        known = {name for name in rule_ids if name in self.rules and self.rules[name].key.group == group}
        born = {change.rule_id for change in self._recent() if change.before is None}
        young = sorted(known & born)
        unknown = self.choose([(), *_some(young)]) if young else ()
        known -= set(unknown)
        # Where an id is not there: an error for all, or success that names those that were removed.
        if known != set(rule_ids) and not self.choose([False, True]):
            raise RuleNotFound(f"{group} has not all of {', '.join(rule_ids)}")
        for name in sorted(known):
            self.remove_rule(name)
        return frozenset(known)

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
        rules = dict(self.rules)
        earlier: dict[str, set[Rule | None]] = {}
        for change in self._recent():
            earlier.setdefault(change.rule_id, set()).add(change.before)
        for name, versions in sorted(earlier.items()):
            current = self.rules.get(name)
            options = [current, *sorted(versions - {current}, key=str)]
            # A rule that is left out in every version leaves nothing to choose.
            views = {None if version is None or not wanted(version) else version for version in options}
            if len(views) > 1:
                chosen = self.choose(options)
                rules.pop(name, None)
                if chosen:
                    rules[name] = chosen
        return [rule for _, rule in sorted(rules.items()) if wanted(rule)]

    def _recent(self) -> list[Change]:
        return [change for change in self.recent if self._clock() - change.at < self.lags]

    def _used(self, group: str, version: int) -> int:
        rules = [rule for rule in self.rules.values() if rule.key.group == group]
        return self.references.get(group, 0) + sum(_family(rule.key.cidr) == version for rule in rules)

    def _answer(self, group: str = "") -> None:
        if self.throttled:
            raise IngressThrottled("EC2's request limit is reached (RequestLimitExceeded)")
        if self.down:
            raise IngressUnavailable("EC2 answered ServiceUnavailable")
        if group in self.refused:
            raise IngressRefused("EC2 answered UnauthorizedOperation")

    def _add(self, key: RuleKey, stack: str | None, grant_id: str | None) -> Rule:
        self.additions[key] = self.additions.get(key, 0) + 1
        rule = Rule(f"sgr-{key.group}-{key.ports}-{key.cidr}#{self.additions[key]}", key, stack, grant_id)
        self.rules[rule.id] = rule
        self._changed(rule.id, None)
        return rule

    def _changed(self, rule_id: str, before: Rule | None) -> None:
        if self.lags:
            self.recent = (*self._recent(), Change(rule_id, before, self._clock()))


def _some(names: Sequence[str]) -> list[tuple[str, ...]]:
    """List the choices of at least one name; of more than two, each alone and all of them."""
    if len(names) > 2:
        return [tuple(names), *((name,) for name in names)]
    return [choice for size in range(1, len(names) + 1) for choice in itertools.combinations(names, size)]


def _is_in(group: str, rule: Rule) -> bool:
    return rule.key.group == group


def _family(cidr: str) -> int:
    return 6 if ":" in cidr else 4


# ---------------------------------------------------------------------------- the executions


class Executions(_Twin):
    """Twin of `grants.executions.Executions`. Stopping a running one calls `stopped`, as EventBridge does.

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
        listed = [name for name in names if name not in self.young or not self.choose([False, True])]
        return iter([(name, self.started.get(name, self.clock())) for name in listed])

    def _answer(self) -> None:
        if self.down:
            raise EngineUnavailable("Step Functions did not answer: ServiceUnavailable")


class Closings(_Twin):
    """Twin of `grants.executions.Closings`. `started` has them as (grant id, payload in JSON)."""

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


# ---------------------------------------------------------------------------- a stack


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
        """Set the hook of every call."""
        self.hook = hook
        for twin in self.twins:
            twin.hook = hook

    def let_choose(self, choose: Choose) -> None:
        """Set the choice wherever AWS may do several things."""
        for twin in self.twins:
            twin.choose = choose

    # What the stores contain, read without a call.

    def record(self, grant_id: str) -> Record | None:
        return Trail(_Quiet(self.trail_store.items)).get(grant_id)

    def records(self) -> list[Record]:
        records = (self.record(name) for name in sorted(self.trail_store.items))
        return [record for record in records if record]

    def ledger(self, source: str) -> Any:
        return Ledgers(_Quiet(self.ledger_store.items)).read(source).ledger


class _Quiet(Store):
    """A store's items, to be read without a hook."""

    def __init__(self, items: dict[str, Item]) -> None:
        super().__init__(Hook())
        self.items = items
