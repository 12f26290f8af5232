"""The largest grant opens and closes with half a second a call, though runs are killed after twenty."""

from __future__ import annotations

from collections import Counter
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
    """Every call takes A_CALL; a run that exceeds its time is killed, before the effect of that call."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.until = world.clock()
        self.calls: Counter[str] = Counter()

    def before(self, call: Call) -> None:
        self.calls[call.name] += 1
        self._world.clock.advance(A_CALL)
        if self._world.clock() > self.until:
            raise Killed(call)


def runs_needed(world: World, hook: Slow, act: Callable[[], object]) -> int:
    """Run again and again, as the state machine does, until a run succeeds. Gives the number of runs."""
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
    principal = Principal("k1", "alice")
    grant = Grant.decide(principal, SOURCE, TARGETS, now, now + timedelta(hours=1), nonce="n")
    world.executions.start(grant)
    return grant


def test_the_largest_grant_opens_in_one_run_and_closes_in_one() -> None:
    """With one call a group at each end."""
    world = World()
    grant = largest(world)
    hook = Slow(world)
    world.listen(hook)
    assert runs_needed(world, hook, lambda: authorize(world.operations, grant)) == 1
    assert len(world.ingress.rules) == MAX_RULES
    assert runs_needed(world, hook, lambda: close(world.operations, grant, End("revoked", "alice"))) == 1
    assert world.ingress.rules == {}
    assert (hook.calls["authorize"], hook.calls["revoke"]) == (GROUPS, GROUPS)


class Blind(Slow):
    """Slow, and the hint that `groups` gives shows none of the rules."""

    def before(self, call: Call) -> None:
        super().before(call)
        self._world.let_choose(lambda options: options[-1 if call.name == "groups" else 0])


def test_the_largest_grant_opens_and_closes_rule_by_rule_over_several_runs() -> None:
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
    assert 1 < runs_needed(world, hook, lambda: authorize(world.operations, grant)) < 12
    assert len(world.ingress.rules) == MAX_RULES
    world.clock.advance(SETTLES)
    for target in TARGETS:  # an operator removes one rule of each group
        removed = next(rule for rule in world.ingress.mine() if rule.key.group in target.groups)
        world.ingress.remove_rule(removed.id)
    assert 1 < runs_needed(world, hook, lambda: close(world.operations, grant, End("revoked", "alice"))) < 12
    assert world.ingress.rules == {}
    record = world.record(grant.id)
    assert record
    assert record.closed_at
