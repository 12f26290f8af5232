"""Whatever people and AWS do, in whatever order: rules are the claims of live grants, and foreign ones.

One thing happens after another here; what happens at once is for test_interleavings. What AWS does is done:
a task that crashes is tried again, a stopped execution's handler runs, timers fire when their time comes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

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

from grants.drift import GRACE, guard
from grants.errors import GrantEnded, GrantNotFound, InvalidGrant, KnockError, PoolExhausted, Unavailable
from grants.operations import SETTLES
from grants.values import Grant, Ports, Principal, RuleKey, State, Target
from tests.twins import LAGS, STACK, Call, Hook, World

SSH, HTTP, HTTPS = (Ports(port, port, "tcp") for port in (22, 80, 443))
TARGETS = (
    Target("bastion", (SSH,), ("sg-a", "sg-b")),
    Target("web", (HTTP, HTTPS), ("sg-w",)),
    Target("tls", (HTTPS,), ("sg-w",)),
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
ROOM = 3  # rules a group, so that pools fill


class Crash(BaseException):
    """The function's process is gone."""


class Crashing(Hook):
    """Ends the process at a call, before or after its effect; remembers each rule that was ever made."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after_effect = False
        self.made: dict[str, RuleKey] = {}

    def before(self, call: Call) -> None:
        if self.left == 0 and not self.after_effect:
            self.left = None
            raise Crash(call)

    def after(self, call: Call, came: object) -> None:
        if call.name == "authorize" and isinstance(came, str):
            self.made[came] = call.arguments[0]
        if self.left is not None:
            if self.left == 0:
                self.left = None
                raise Crash(call)
            self.left -= 1


class Knocking(RuleBasedStateMachine):
    """Everything that may happen to one stack."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.hook = Crashing()
        self.world.listen(self.hook)
        self.world.executions.stopped = lambda grant_id: self.events.append(grant_id)
        self.events: list[str] = []
        self.asked: list[Grant] = []
        self.foreign: dict[RuleKey, str] = {}

    @initialize(late=st.booleans())
    def make(self, late: bool) -> None:
        for group in ("sg-a", "sg-b", "sg-w"):
            self.world.ingress.add_group(group, ROOM)
        if late:
            self.world.ingress.lags = LAGS

    # ------------------------------------------------------------------ what AWS does

    def run(self, act: Callable[[], object]) -> KnockError | None:
        """Run a task as AWS does: again when it crashed or was told to, with time in between."""
        for _ in range(12):
            try:
                act()
            except Crash:
                continue
            except Unavailable:
                self.world.clock.advance(SETTLES)
            except KnockError as error:
                return error
            else:
                return None
        raise AssertionError("a task never comes to an end")

    def revoke(self, grant: Grant, how: State, by: str = "knock") -> None:
        failed = self.run(lambda: self.world.operations.revoke(grant.id, how, by))
        assert failed is None or isinstance(failed, GrantNotFound)

    def deliver(self) -> None:
        """Call the handler for each execution that was stopped."""
        while self.events:
            grant = next(g for g in self.asked if g.id == self.events[0])
            self.revoke(grant, "revoked", "an AWS operator")
            self.events.pop(0)

    def fire(self) -> None:
        """Run what each execution does when its time has come."""
        for grant in self.asked:
            running = self.world.executions.statuses.get(grant.id) == "RUNNING"
            if running and self.world.clock() >= grant.expires_at:
                self.revoke(grant, "expired")
                self.world.executions.finish(grant.id, "SUCCEEDED")

    def settle(self) -> None:
        self.deliver()
        self.fire()
        self.deliver()

    # ------------------------------------------------------------------ what people do

    @rule(
        who=st.sampled_from(PRINCIPALS),
        source=st.sampled_from(SOURCES),
        wanted=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2, unique=True),
        minutes=st.integers(1, 30),
    )
    def knock(self, who: Principal, source: str, wanted: list[Target], minutes: int) -> None:
        now = self.world.clock()
        grant = Grant(
            id=f"g{len(self.asked)}",
            principal=who,
            source=source,
            targets=tuple(wanted),
            requested_at=now,
            expires_at=now.replace(microsecond=0) + timedelta(minutes=minutes),
        )
        self.world.clock.advance(timedelta(milliseconds=1))
        self.asked.append(grant)
        try:
            self.world.trail.record_request(grant)
            self.world.executions.start(grant)
        except Crash:
            pass  # the API is gone: the caller is told so, and knocks again
        if self.world.executions.statuses.get(grant.id) == "RUNNING":
            failed = self.run(lambda: self.world.operations.authorize(grant))
            if failed:
                assert isinstance(failed, (PoolExhausted, GrantEnded))
                self.revoke(grant, "failed")
                self.world.executions.finish(grant.id, "FAILED")
        elif grant.id in self.world.trail.grants:
            self.revoke(grant, "failed")  # what the API and the drift guard do: it never began
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def end_early(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.asked))
        if grant.id in self.world.trail.grants:
            self.revoke(grant, "revoked", "alice")
            self.run(lambda: self.world.executions.stop(grant.id, "Revoked", "revoked by alice"))
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def stop_execution(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.asked))
        with suppress(Crash):
            self.world.executions.stop(grant.id, "Stopped", "by an operator")
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def deliver_a_task_again(self, data: st.DataObject) -> None:
        """Late: the grant may be long over. Nobody tries this again, and it may crash."""
        grant = data.draw(st.sampled_from(self.asked))
        task = data.draw(st.sampled_from(["authorize", "revoke"]))
        state = self.world.trail.grants.get(grant.id)
        over = state is None or not state.live_at(self.world.clock())
        try:
            if task == "authorize":
                self.world.operations.authorize(grant)
            elif over:
                self.world.operations.revoke(grant.id, "expired", "knock")
        except Crash:
            pass
        except (GrantEnded, InvalidGrant, GrantNotFound):
            assert over
        except Unavailable:
            pass
        self.settle()

    @rule(key=st.sampled_from(KEYS))
    def add_a_static_rule(self, key: RuleKey) -> None:
        group = [one for one in self.world.ingress.rules if one.group == key.group and _alike(one, key)]
        if key not in self.world.ingress.rules and len(group) < ROOM:
            self.foreign[key] = self.world.ingress.add_rule(key)

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def remove_a_static_rule(self, data: st.DataObject) -> None:
        """By hand; whoever relied on it knocks again."""
        key = data.draw(st.sampled_from(sorted(self.foreign)))
        self.world.ingress.remove_rule(key)
        del self.foreign[key]
        for grant in list(self.world.trail.grants.values()):
            if grant.live_at(self.world.clock()) and key in grant.claims:
                self.revoke(grant, "revoked", "alice")
        self.settle()

    @rule(seconds=st.integers(1, 1200))
    def let_time_pass(self, seconds: int) -> None:
        self.world.clock.advance(timedelta(seconds=seconds))
        self.settle()

    @rule(calls=st.integers(0, 12), after_effect=st.booleans())
    def crash_soon(self, calls: int, after_effect: bool) -> None:
        self.hook.left, self.hook.after_effect = calls, after_effect

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def rules_are_the_claims_of_live_grants_and_foreign_ones(self) -> None:
        now = self.world.clock()
        claimed = {
            key for grant in self.world.trail.grants.values() if grant.live_at(now) for key in grant.claims
        }
        rules = self.world.ingress.rules
        assert rules.keys() == claimed | self.foreign.keys()
        for key, rule_ in rules.items():
            assert (rule_.stack == STACK) is (key not in self.foreign)
        for key, rule_id in self.foreign.items():
            assert (rules[key].id, rules[key].stack, rules[key].grant_id) == (rule_id, None, None)

    def teardown(self) -> None:
        self.hook.left = None
        self.world.clock.advance(timedelta(hours=1))
        self.settle()
        self.rules_are_the_claims_of_live_grants_and_foreign_ones()
        grants = self.world.trail.grants.values()
        for grant in grants:
            assert grant.state != "live"
            assert grant.closed_at
            assert grant.state != "expired" or grant.ended_at >= grant.expires_at
        told = {
            rule_id
            for grant in grants
            for ids in (*grant.rules.values(), *grant.condemned.values())
            for rule_id in ids
        }
        assert self.hook.made.keys() <= told, "the trail does not explain a rule"
        self.world.clock.advance(GRACE * 2)
        assert guard(self.world.operations) == []


def _alike(one: RuleKey, other: RuleKey) -> bool:
    return (":" in one.cidr) == (":" in other.cidr)


def test_rules_are_the_claims_of_live_grants_whatever_happens() -> None:
    """And the trail explains every rule that ever was.

    Mutation: functions/grants/operations.py:
        `return there.id, not self.ingress.is_ours(there)` -> `return there.id, False`
    """
    often = settings(max_examples=150, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(Knocking, settings=often)
