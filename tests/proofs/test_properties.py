"""Random schedules of people and AWS: rules are the claims of live grants, and foreign ones.

Operations run one after the other here; test_interleavings runs them at once. AWS does its part: a task
that crashes is tried again, a closing follows an execution that was stopped, timers fire when they are due.
And AWS does it as badly as is documented: calls fail before or after their effect, answers are lost to the
client, which then meets its own write, EC2's lists are late and disagree, ids are unknown, a rule that is
gone is called a duplicate, and time passes within a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from grants.closing import End, close, force
from grants.drift import guard
from grants.errors import (
    EngineUnavailable,
    GrantEnded,
    GrantNotFound,
    IngressThrottled,
    IngressUnavailable,
    InvalidGrant,
    KnockError,
    PoolExhausted,
    StoreUnavailable,
    Unavailable,
)
from grants.opening import authorize
from grants.timing import ACTS, GRACE, SETTLES
from grants.values import Grant, Ports, Principal, RuleKey, State, Target
from tests.twins import LAGS, Call, Hook, World

SSH, HTTP, HTTPS = (Ports(port, port, "tcp") for port in (22, 80, 443))
TARGETS = (
    Target("bastion", (SSH,), ("sg-a", "sg-b")),
    Target("web", (HTTP, HTTPS), ("sg-w",)),
    Target("tls", (HTTPS,), ("sg-t",)),
)
PRINCIPALS = tuple(Principal(f"k{n}", name) for n, name in enumerate(("alice", "bob", "carol")))
SOURCES = ("203.0.113.7/32", "2001:db8::7/128")
KEYS = tuple(
    RuleKey(group, ports, source)
    for target in TARGETS
    for group in target.groups
    for ports in target.ports
    for source in SOURCES
)
GROUPS = ("sg-a", "sg-b", "sg-w", "sg-t")
ROOM = 3  # rules a group, so that pools fill
EFFECT = ("put", "delete", "authorize", "revoke", "stop", "start")


class Crash(BaseException):
    """The function's process ends."""


FAILS: dict[str, Callable[[str], KnockError]] = {
    "trail": StoreUnavailable,
    "ledger": StoreUnavailable,
    "ingress": IngressUnavailable,
    "executions": EngineUnavailable,
    "closings": EngineUnavailable,
}


class Unkind(Hook):
    """Makes calls fail, by dice: none at rest, and three at most a run; kills a run after its time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = random.Random(0)  # noqa: S311  # has to be reproducible
        self.odds = 0.0
        self.slow = 0.0
        self.left = 0
        self.until = world.clock()
        self.ends: dict[str, Any] = {}

    def begin(self) -> None:
        self.left, self.until = 3, self.world.clock() + ACTS

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Let no call fail for a while."""
        odds, slow = self.odds, self.slow
        self.odds, self.slow = 0, 0.0
        try:
            yield
        finally:
            self.odds, self.slow = odds, slow

    def happens(self) -> bool:
        if self.left and self.dice.random() < self.odds:
            self.left -= 1
            return True
        return False

    def before(self, call: Call) -> None:
        if call.name == "authorize":  # as it is sent: a slow call may take effect later
            assert self.world.clock() < self.ends[call.arguments[3]], "a rule is made at its grant's end"
        if self.slow:
            self.world.clock.advance(timedelta(milliseconds=self.dice.randrange(int(self.slow * 1000))))
            if self.world.clock() > self.until:
                raise Crash(call)
        if call.name == "authorize":
            assert self.world.record(call.arguments[3]), "a rule is made before its grant is recorded"
            claim = self.world.ledger(call.arguments[2]).claims.get(call.arguments[3])
            assert claim is not None, "a rule is made before it is claimed"
        if self.happens():
            if self.dice.random() < 0.4:
                raise Crash(call)
            if call.service == "ingress" and self.dice.random() < 0.3:
                raise IngressThrottled("too many calls")
            raise FAILS[call.service]("it did not act")

    def after(self, call: Call, result: object) -> None:
        if call.name in EFFECT and not isinstance(result, KnockError) and self.happens():
            if self.dice.random() < 0.4:
                raise Crash(call)
            raise FAILS[call.service]("its answer was lost")

    def twice(self, call: Call) -> bool:
        return self.happens()

    def choose(self, options: Sequence[Any]) -> Any:
        return self.dice.choice(options) if self.odds else options[0]


class Knocking(RuleBasedStateMachine):
    """Everything that may happen to one stack."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.hook = Unkind(self.world)
        self.world.listen(self.hook)
        self.world.let_choose(self.hook.choose)
        self.world.executions.stopped = lambda grant_id: self.events.append(grant_id)
        self.events: list[str] = []
        self.grants: dict[str, Grant] = {}
        self.foreign: dict[RuleKey, str] = {}
        self.forced: dict[str, datetime] = {}  # source → until when force may have cut its grants short

    @initialize(late=st.booleans(), seed=st.integers(0, 2**32), odds=st.sampled_from([0, 0.03, 0.1]))
    def make(self, late: bool, seed: int, odds: float) -> None:
        for target in TARGETS:
            for group in target.groups:
                self.world.ingress.add_group(group, ROOM, target)
        if late:
            self.world.ingress.lags = LAGS
        self.hook.dice, self.hook.odds = random.Random(seed), odds  # noqa: S311  # has to be reproducible
        self.hook.slow = 1.5 if odds else 0.0

    # ------------------------------------------------------------------ AWS

    def run(self, act: Callable[[], object]) -> KnockError | None:
        """Run a task as AWS does: again when it crashed or was told to, with time in between."""
        odds, slow = self.hook.odds, self.hook.slow
        try:
            for tries in range(60):
                if tries == 30:
                    self.hook.odds, self.hook.slow = 0, 0.0  # faults do not last for ever
                self.hook.begin()
                try:
                    act()
                except Crash:
                    self.world.clock.advance(timedelta(seconds=1))
                except Unavailable:
                    self.world.clock.advance(SETTLES / 4)
                except KnockError as error:
                    return error
                else:
                    return None
        finally:
            self.hook.odds, self.hook.slow = odds, slow
        raise AssertionError("a task never ends")

    def end(self, grant: Grant, how: State, by: str = "knock") -> None:
        end = End(how, by, closer=how)
        forced = self.hook.dice.random() < 0.3
        before = self.world.counts.get("RevocationForced")
        failed = self.run(lambda: (force if forced else close)(self.world.operations, grant, end))
        if self.world.counts.get("RevocationForced") != before:
            self.forced[grant.source] = self.world.clock() + SETTLES
        assert failed is None or isinstance(failed, GrantNotFound), failed

    def deliver(self) -> None:
        """Run the closings of executions that were stopped, and those that a renewal started."""
        while self.events or self.world.closings.started:
            started, self.world.closings.started = self.world.closings.started, []
            names = [*self.events, *(name for name, _ in started)]
            self.events = []
            for name in names:
                self.end(self.grants[name], "revoked", "an AWS operator")

    def fire(self) -> None:
        """End each grant whose time is up, as its execution does."""
        for grant in list(self.grants.values()):
            running = self.world.executions.statuses.get(grant.id) == "RUNNING"
            if running and self.world.clock() >= grant.expires_at:
                self.end(grant, "expired")
                self.world.executions.finish(grant.id, "SUCCEEDED")

    def settle(self) -> None:
        for _ in range(20):  # time passes meanwhile, and more grants end
            self.deliver()
            self.fire()
            running = [n for n, status in self.world.executions.statuses.items() if status == "RUNNING"]
            if not self.events and all(self.grants[n].live_at(self.world.clock()) for n in running):
                return

    # ------------------------------------------------------------------ people

    @rule(
        principal=st.sampled_from(PRINCIPALS),
        source=st.sampled_from(SOURCES),
        requested=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2, unique=True),
        minutes=st.integers(1, 50),
        renews=st.integers(0, 3),
    )
    def knock(
        self, principal: Principal, source: str, requested: list[Target], minutes: int, renews: int
    ) -> None:
        now = self.world.clock()
        own = [g.id for g in self.grants.values() if g.principal == principal]
        grant = Grant.decide(
            principal,
            source,
            tuple(requested),
            now,
            now.replace(microsecond=0) + timedelta(minutes=minutes),
            nonce=f"n{len(self.grants)}",
            renews=own[-1] if renews == 1 and own else None,
        )
        self.grants[grant.id] = grant
        self.hook.ends[grant.id] = grant.expires_at
        with self.hook.calm():
            self.world.executions.start(grant)
        failed = self.run(lambda: authorize(self.world.operations, grant))
        if failed:
            assert isinstance(failed, (PoolExhausted, GrantEnded, InvalidGrant)), failed
            self.end(grant, "failed")
            self.world.executions.finish(grant.id, "FAILED")
        self.settle()

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def end_early(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.grants.values(), key=lambda g: g.order)))
        self.end(grant, "revoked", "alice")
        self.run(lambda: self.world.executions.stop(grant.id, "Revoked", "revoked by alice"))
        self.settle()

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def stop_execution(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.grants.values(), key=lambda g: g.order)))
        self.run(lambda: self.world.executions.stop(grant.id, "Stopped", "by an operator"))
        self.settle()

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def deliver_authorize_again(self, data: st.DataObject) -> None:
        """Late: the grant may have ended long ago. This is not tried again, and may crash."""
        grant = data.draw(st.sampled_from(sorted(self.grants.values(), key=lambda g: g.order)))
        self.hook.begin()
        with suppress(Crash, GrantEnded, PoolExhausted, InvalidGrant, Unavailable):
            authorize(self.world.operations, grant)
        self.world.clock.advance(SETTLES)
        record = self.world.record(grant.id)
        if record and record.state == "live":
            self.run(lambda: authorize(self.world.operations, grant))
        elif self.hook.odds:  # a claim minutes after the end, of a run that died, is left to the guard
            self.sweep()
        self.settle()

    @rule(key=st.sampled_from(KEYS))
    def add_a_static_rule(self, key: RuleKey) -> None:
        present = [
            other
            for other in self.world.ingress.keys
            if other.group == key.group and _same_family(other, key)
        ]
        if key not in present and len(present) < ROOM:
            self.foreign[key] = self.world.ingress.add_rule(key)
            self.world.clock.advance(SETTLES)  # else EC2's lists may take it for a rule that is gone
            self.settle()

    @precondition(lambda self: self.world.ingress.mine())
    @rule(data=st.data(), port=st.integers(2000, 2003))
    def change_a_rule_by_hand(self, data: st.DataObject, port: int) -> None:
        """It keeps its id; the grants that claim it are ended, and one that a renewal could not close."""
        changed = data.draw(st.sampled_from(sorted(self.world.ingress.mine(), key=lambda rule: rule.id)))
        key = RuleKey(changed.key.group, Ports(port, port, "tcp"), changed.key.cidr)
        if self.world.ingress.at(key):
            return
        self.world.ingress.modify_rule(changed.id, key)
        ledger = self.world.ledger(changed.key.cidr)
        for name, claim in ledger.claims.items():
            if any(changed.id in ledger.rules[k].ids for k in claim.rule_keys if k in ledger.rules):
                self.end(self.grants[name], "revoked", "alice")
                self.run(lambda name=name: self.world.executions.stop(name, "Revoked", ""))  # type: ignore[misc]
        for record in self.world.records():
            ids = {opened.rule_id for opened in record.opened}
            if record.state == "superseded" and not record.closed_at and changed.id in ids:
                self.end(record.grant, "superseded")
        self.settle()

    @rule(seconds=st.integers(1, 1200))
    def let_time_pass(self, seconds: int) -> None:
        self.world.clock.advance(timedelta(seconds=seconds))
        self.settle()

    @rule()
    def sweep(self) -> None:
        """Run the guard: it may find claims and rules that were left, and ends no live grant."""
        self.world.clock.advance(GRACE * 2)
        self.settle()
        live = {r.id for r in self.world.records() if r.live_at(self.world.clock())}
        with self.hook.calm():
            list(guard(self.world.operations))
        ended = {r.id for r in self.world.records() if not r.live_at(self.world.clock())}
        assert not live & ended

    # ------------------------------------------------------------------ invariants

    @invariant()
    def rules_are_the_claims_of_live_grants_and_foreign_ones(self) -> None:
        now = self.world.clock()
        live = {r.id: r for r in self.world.records() if r.live_at(now)}
        claimed = {
            key
            for source in SOURCES
            for name, claim in self.world.ledger(source).claims.items()
            if name in live
            for key in claim.rule_keys
        }
        ours = {rule.key for rule in self.world.ingress.mine()}
        # A renewal that could neither close the old grant nor start its closing leaves it to its own end.
        superseded = {
            key
            for r in self.world.records()
            if r.state == "superseded" and not r.closed_at and now < r.grant.expires_at
            for key in r.grant.rule_keys
        }
        if not self.world.counts.get("SupersedeFailed"):
            superseded = set()
        assert ours <= claimed | superseded, f"no live grant claims {ours - claimed - superseded}"
        present = self.world.ingress.keys
        for record in live.values():
            cut = record.grant.requested_at < self.forced.get(record.grant.source, record.grant.requested_at)
            if record.authorized_at and not cut:
                assert {opened.key for opened in record.opened} <= present, f"{record.id} has lost its rules"
        for key, rule_id in self.foreign.items():
            rule_ = self.world.ingress.rules[rule_id]
            assert (rule_.key, rule_.stack, rule_.grant_id) == (key, None, None)

    def teardown(self) -> None:
        self.hook.odds, self.hook.slow = 0, 0.0
        self.world.clock.advance(timedelta(hours=1))
        self.settle()
        self.rules_are_the_claims_of_live_grants_and_foreign_ones()
        assert not self.world.ingress.mine()
        for record in self.world.records():
            assert record.state != "live"
            assert record.closed_at
            assert record.ended_at
            assert record.state != "expired" or record.ended_at >= record.grant.expires_at
        self.world.clock.advance(GRACE * 2)
        list(guard(self.world.operations))
        assert list(guard(self.world.operations)) == []
        assert self.world.ledger_store.items == {}, "the ledgers are empty in the end"


def _same_family(key: RuleKey, other: RuleKey) -> bool:
    return (":" in key.cidr) == (":" in other.cidr)


def test_rules_are_the_claims_of_live_grants_whatever_happens() -> None:
    """Calls that fail, late lists and crashes change nothing of that.

    Mutation: functions/grants/opening.py:
        `return Own(rule.id) if operations.ingress.is_ours(rule) else Foreign(rule.id)`
        -> `return Own(rule.id)`
    """
    often = settings(max_examples=300, stateful_step_count=20)
    run_state_machine_as_test(Knocking, settings=often)
