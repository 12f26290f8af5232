"""The largest grant opens and closes with half a second a call, though runs are killed after twenty."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from grants.closing import End, close
from grants.errors import RuleUnsettled, Unavailable
from grants.ledger import MAX_RULES
from grants.opening import authorize
from grants.timing import ACTS, SETTLES
from grants.values import Grant, Ports, Principal, Target
from tests.twins import STACK, Call, Hook, World

A_CALL = timedelta(seconds=0.5)
SOURCE = "203.0.113.7/32"
GROUPS = 8
EACH = MAX_RULES // GROUPS
TARGETS = tuple(
    Target(
        f"t{number}",
        tuple(Ports(port, port, "tcp") for port in range(1000, 1000 + EACH)),
        (f"sg-{number}",),
    )
    for number in range(GROUPS)
)


class Killed(BaseException):
    """Lambda ends the run: it took longer than the function may."""


class Slow(Hook):
    """Every call takes its time; when the run's own is over it is killed, before the effect of that call."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.until = world.clock()
        self.calls = 0

    def before(self, call: Call) -> None:
        self.calls += 1
        self._world.clock.advance(A_CALL)
        if self._world.clock() > self.until:
            raise Killed(call)


def until_done(world: World, hook: Slow, act: Callable[[], object]) -> int:
    """Run again and again, as the state machine does, until it is done. Gives the number of runs."""
    for runs in range(1, 40):
        hook.until = world.clock() + ACTS
        try:
            act()
        except Killed:
            world.clock.advance(timedelta(seconds=2))
        except RuleUnsettled:
            world.clock.advance(timedelta(seconds=30))
        except Unavailable:
            world.clock.advance(timedelta(seconds=2))
        else:
            return runs
    raise AssertionError("it never ends")


def largest(world: World) -> Grant:
    for target in TARGETS:
        world.ingress.add_group(target.groups[0], target=target)
    now = world.clock()
    who = Principal("k1", "alice")
    grant = Grant.decide(who, SOURCE, TARGETS, now, now + timedelta(hours=1), nonce="n")
    world.executions.start(grant)
    return grant


def test_the_largest_grant_opens_and_closes_however_often_it_is_cut_off() -> None:
    """One call a group: eight calls at each end, and the whole takes one run."""
    world = World()
    grant = largest(world)
    hook = Slow(world)
    world.listen(hook)
    assert until_done(world, hook, lambda: authorize(world.operations, grant)) == 1
    assert len(world.ingress.rules) == MAX_RULES
    assert until_done(world, hook, lambda: close(world.operations, grant, End("revoked", "alice"))) == 1
    assert world.ingress.rules == {}


class Blind(Slow):
    """Slow, and the hint that `groups` gives shows none of the rules that there are."""

    def before(self, call: Call) -> None:
        super().before(call)
        self._world.let_choose(lambda options: options[-1 if call.name == "groups" else 0])


def test_it_opens_and_closes_one_rule_at_a_time() -> None:
    """A call for several rules of a group is refused as a whole where one is there already, or is not there.

    Mutation: functions/grants/timing.py:
        `PROGRESS = timedelta(seconds=4)` -> `PROGRESS = timedelta(hours=4)`
    Mutation: functions/grants/opening.py:
        `if operations.clock() >= run.recorded_at + PROGRESS:` -> `if False:`
    Mutation: functions/grants/opening.py: `if ids and run.probes >= MOST_PROBES and` -> `if False and`
    """
    world = World()
    grant = largest(world)
    world.ingress.lags = timedelta(hours=1)
    for target in TARGETS:
        world.ingress.add_rule(
            min(key for key in grant.rule_keys if key.group in target.groups), STACK, "another"
        )
    hook = Blind(world)
    world.listen(hook)
    assert 1 < until_done(world, hook, lambda: authorize(world.operations, grant)) < 12
    assert len(world.ingress.rules) == MAX_RULES
    world.clock.advance(SETTLES)
    for target in TARGETS:  # somebody takes one rule of each group away
        gone = next(rule for rule in world.ingress.mine() if rule.key.group in target.groups)
        world.ingress.remove_rule(gone.id)
    assert 1 < until_done(world, hook, lambda: close(world.operations, grant, End("revoked", "alice"))) < 12
    assert world.ingress.rules == {}
    record = world.record(grant.id)
    assert record
    assert record.closed_at
