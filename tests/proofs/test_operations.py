"""The operations where the timing of several calls, clocks or grants has to coincide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from grants.closing import End, close, force, own_rules
from grants.drift import guard
from grants.errors import (
    GrantEnded,
    GrantNotFound,
    IngressUnavailable,
    InvalidGrant,
    RuleUnsettled,
    StoreRefused,
    StoreUnavailable,
)
from grants.opening import authorize
from grants.timing import ACTS, EC2_LAG, GRACE, SETTLES
from grants.values import Grant, RuleKey
from tests.proofs.test_interleavings import (
    ALICE,
    BASTION,
    BOB,
    HTTP,
    HTTPS,
    KEY,
    POOL,
    SOURCE,
    WEB,
    fresh,
    is_late,
    knocks,
    opened,
    over,
)
from tests.twins import Call, Hook, World

REVOKED = End("revoked", "alice")


@pytest.fixture
def world() -> World:
    return fresh()


class At(Hook):
    """Acts once, before or after the first call of a name."""

    def __init__(self, name: str, act: Callable[[], object], *, after: bool = False) -> None:
        self._name, self._act, self._after = name, act, after

    def before(self, call: Call) -> None:
        if not self._after:
            self._once(call)

    def after(self, call: Call, result: object) -> None:
        if self._after:
            self._once(call)

    def _once(self, call: Call) -> None:
        if call.name == self._name:
            self._name = ""
            self._act()


def fail(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


class TestAuthorization:
    def test_a_run_that_is_too_old_authorizes_nothing(self, world: World) -> None:
        """Mutation: functions/grants/opening.py:
        `if operations.clock() >= attempted_at(run.attempt) + ACTS:` -> `if False:`
        """
        grant = knocks(world, "a", ALICE)
        world.listen(At("put", lambda: world.clock.advance(ACTS), after=True))
        with pytest.raises(RuleUnsettled, match="too old"):
            authorize(world.operations, grant)
        assert world.ingress.rules == {}
        assert len(authorize(world.operations, grant)) == 1

    def test_nothing_is_authorized_at_or_after_the_grants_end(self, world: World) -> None:
        """Mutation: functions/grants/opening.py:
        `if not grant.live_at(operations.clock()):` -> `if False:`
        """
        grant = knocks(world, "a", ALICE, hours=5 / 3600)
        world.listen(At("put", lambda: over(world, grant), after=True))
        with pytest.raises(GrantEnded):
            authorize(world.operations, grant)
        assert world.ingress.additions == {}
        assert world.ledger(SOURCE).claims == {}

    def test_an_input_under_another_grants_id_is_no_grant(self, world: World) -> None:
        grant, _ = opened(world, "a", ALICE)
        forged = replace(grant, targets=(BASTION, WEB))
        with pytest.raises(InvalidGrant, match="its own id is"):
            Grant.from_input(forged.as_input())

    def test_another_input_of_a_recorded_grants_id_opens_nothing(self, world: World) -> None:
        """An id is a digest of 64 bits, so that two inputs of one id can be searched for.

        Mutation: functions/grants/opening.py: `        if record.grant != grant:` -> `        if False:`
        """
        grant = knocks(world, "a", ALICE)
        world.operations.trail.record(grant)
        with pytest.raises(GrantEnded, match="another grant is on record"):
            authorize(world.operations, replace(grant, targets=(WEB,)))
        assert world.ingress.rules == {}

    def test_a_copy_of_a_live_input_that_is_too_large_answers_with_its_rules(self, world: World) -> None:
        """Mutation: functions/grants/opening.py:
        `        record = _authorized_record(operations, grant)` -> `        record = None`
        """
        grant, rules = opened(world, "a", ALICE)
        assert authorize(world.operations, grant, too_large=True) == list(rules)
        with pytest.raises(InvalidGrant, match="too large"):
            authorize(world.operations, knocks(world, "b", BOB), too_large=True)
        assert {rule.grant_id for rule in world.ingress.rules.values()} == {grant.id}

    def test_a_run_after_the_end_claims_nothing(self, world: World) -> None:
        grant, _ = opened(world, "a", ALICE)
        close(world.operations, grant, REVOKED)
        with pytest.raises(GrantEnded):
            authorize(world.operations, grant)
        assert world.ledger(SOURCE).rules == {}

    def test_a_run_long_after_the_end_makes_no_rule(self, world: World) -> None:
        """Mutation: functions/grants/opening.py: `if record.state != "live":` -> `if False:`"""
        grant, _ = opened(world, "a", ALICE)
        close(world.operations, grant, REVOKED)
        world.clock.advance(SETTLES)
        opened(world, "b", BOB, WEB)  # its write drops old entries, the released grant too
        with pytest.raises(GrantEnded):
            authorize(world.operations, grant)
        assert world.ingress.additions[KEY] == 1

    def test_a_run_whose_grant_ended_meanwhile_closes_the_rule_it_made(self, world: World) -> None:
        """Mutation: functions/grants/opening.py: `    _withdraw(operations, run)` -> `    pass`"""
        grant = knocks(world, "a", ALICE)
        world.listen(
            At("authorize", lambda: world.trail.end(grant.id, "revoked", world.clock(), "alice", ""))
        )
        with pytest.raises(GrantEnded):
            authorize(world.operations, grant)
        assert world.ingress.rules == {}

    def test_a_renewal_that_cannot_end_the_old_grant_starts_a_closing_for_it(self, world: World) -> None:
        """Mutation: functions/grants/opening.py: `operations.closings.start(` -> `str(`"""
        old, _ = opened(world, "a", ALICE)
        grant = knocks(world, "b", ALICE, renews=old)
        world.listen(At("stop", fail(StoreUnavailable("no answer"))))
        assert authorize(world.operations, grant)
        assert [name for name, _ in world.closings.started] == [old.id]

    def test_a_renewal_ends_no_other_principals_grant(self, world: World) -> None:
        """Mutation: functions/grants/opening.py:
        `if old is None or old.grant.principal.id != grant.principal.id or` -> `if old is None or`
        """
        old, _ = opened(world, "a", BOB)
        authorize(world.operations, knocks(world, "b", ALICE, renews=old))
        record = world.record(old.id)
        assert record
        assert record.state == "live"


class TestClosing:
    def test_an_id_that_ec2_does_not_know_yet_is_not_gone(self, world: World) -> None:
        is_late(world)
        grant, _ = opened(world, "a", ALICE)
        world.let_choose(lambda options: options[-1])
        with pytest.raises(RuleUnsettled):
            close(world.operations, grant, REVOKED)
        record = world.record(grant.id)
        assert record
        assert not record.closed_at
        world.clock.advance(EC2_LAG)
        close(world.operations, grant, REVOKED)
        assert world.ingress.rules == {}

    def test_an_attempt_is_looked_for_until_it_is_quiescent(self, world: World) -> None:
        """Mutation: functions/grants/timing.py:
        `SETTLES = ACTS + CALL + EC2_LAG` -> `SETTLES = (ACTS + CALL + EC2_LAG) / 2`
        """
        is_late(world)
        grant = knocks(world, "a", ALICE)
        world.listen(At("authorize", fail(IngressUnavailable("its answer was lost")), after=True))
        with pytest.raises(IngressUnavailable):
            authorize(world.operations, grant)
        world.let_choose(lambda options: options[-1])
        for _ in range(14):
            with pytest.raises(RuleUnsettled):
                close(world.operations, grant, REVOKED)
            world.clock.advance(timedelta(seconds=10))
        world.clock.advance(SETTLES)
        close(world.operations, grant, REVOKED)
        assert world.ingress.rules == {}

    def test_a_grant_is_not_closed_when_the_search_for_an_attempt_fails(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `if not snapshot.ledger.closing(wanted):`
        -> `if sweep.failures or not snapshot.ledger.closing(wanted):`
        """
        grant = knocks(world, "a", ALICE)
        world.listen(At("authorize", fail(IngressUnavailable("its answer was lost")), after=True))
        with pytest.raises(IngressUnavailable):
            authorize(world.operations, grant)
        world.clock.advance(SETTLES)
        world.listen(At("find", fail(IngressUnavailable("no answer"))))
        with pytest.raises(IngressUnavailable):
            close(world.operations, grant, REVOKED)
        record = world.record(grant.id)
        assert record
        assert not record.closed_at
        close(world.operations, grant, REVOKED)
        assert world.ingress.rules == {}

    def test_ids_that_a_caller_names_close_no_other_grants_rules(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `return [rule for rule in ours if rule.grant_id == grant.id or rule.key in own_keys]`
        -> `return list(ours)`
        """
        grant, _ = opened(world, "a", ALICE)
        close(world.operations, grant, REVOKED)
        world.clock.advance(SETTLES)
        now, elsewhere = world.clock(), "198.51.100.9/32"
        neighbour = Grant.decide(BOB, elsewhere, (BASTION, WEB), now, now + timedelta(hours=1), nonce="b")
        neighbours_rules = authorize(world.operations, neighbour)
        foreign = world.ingress.add_rule(RuleKey("sg-p", HTTP, SOURCE))
        named = {rule.key: rule.rule_id for rule in neighbours_rules} | {KEY: foreign}
        for act in (close, force):
            act(world.operations, grant, REVOKED, named)
        assert {rule.rule_id for rule in neighbours_rules} | {foreign} == world.ingress.rules.keys()


class TestForce:
    def test_it_closes_its_own_rules_alone_and_goes_on_when_one_fails(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `revoked += ingress.revoke(rule.key.group, [rule.id])`
        -> `revoked += [] if failures else ingress.revoke(rule.key.group, [rule.id])`
        Mutation: functions/grants/closing.py:
            `ours = filter(operations.ingress.is_ours, shown)` -> `ours = shown`
        Mutation: functions/grants/closing.py:
        `[lambda: ingress.tagged(grant_id), named]` -> `[lambda: ingress.ours(), named]`
        """
        foreign = world.ingress.add_rule(RuleKey("sg-w", HTTPS, SOURCE))
        grant, rules = opened(world, "a", ALICE, BASTION, WEB)
        _, neighbours_rules = opened(world, "b", BOB, POOL)
        world.ledger_store.refuses = True
        world.listen(At("revoke", fail(IngressUnavailable("no answer"))))
        with pytest.raises(IngressUnavailable):
            force(world.operations, grant, REVOKED, {rule.key: rule.rule_id for rule in rules})
        assert len(world.ingress.mine()) == 2
        assert {foreign, neighbours_rules[0].rule_id} <= world.ingress.rules.keys()

    @pytest.mark.parametrize("error", [RuleUnsettled("not yet"), IngressUnavailable("no answer")])
    def test_it_needs_trail_and_ledger_where_they_answer(self, world: World, error: Exception) -> None:
        """Mutation: functions/grants/closing.py:
        `except (IngressRefused, IngressThrottled, IngressUnavailable, RuleUnsettled):`
        -> `except IngressRefused:`
        """
        grant, rules = opened(world, "a", ALICE)
        opened(world, "b", BOB)
        world.listen(At("get", fail(error)))
        with pytest.raises(type(error)):
            force(world.operations, grant, REVOKED, {rule.key: rule.rule_id for rule in rules})
        assert KEY in world.ingress.keys

    def test_it_closes_nothing_for_a_grant_that_never_started(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `except (GrantNotFound, EngineUnavailable):` -> `except ImportError:`
        """
        _, rules = opened(world, "a", ALICE)
        unstarted = replace(knocks(world, "b", BOB))
        del world.executions.statuses[unstarted.id]
        world.clock.advance(SETTLES)
        with pytest.raises(GrantNotFound):
            force(world.operations, unstarted, REVOKED, {rule.key: rule.rule_id for rule in rules})
        assert KEY in world.ingress.keys

    def test_it_closes_a_shared_rule_by_the_trail_where_the_ledger_cannot_be_read(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `opened = (own_rules(record) if record else {}) | dict(opened)` -> `pass`
        """
        first, _ = opened(world, "a", ALICE)
        grant, _ = opened(world, "b", BOB)
        close(world.operations, first, REVOKED)
        record = world.record(grant.id)
        assert record
        assert own_rules(record)
        world.ledger_store.refuses = True
        with pytest.raises(StoreRefused):
            force(world.operations, grant, REVOKED)
        assert world.ingress.rules == {}

    def test_a_new_grant_meets_no_dead_id_of_an_old_outage(self, world: World) -> None:
        """Mutation: functions/grants/closing.py:
        `if not rule.closing and at <= old and` -> `if at > old and`
        """
        grant, rules = opened(world, "a", ALICE)
        second, _ = opened(world, "b", BOB, hours=2)
        world.clock.advance(SETTLES)
        own = {rule.key: rule.rule_id for rule in rules}
        world.ledger_store.down = True
        with pytest.raises(StoreUnavailable):
            force(world.operations, grant, REVOKED, own)
        world.ledger_store.down = False
        force(world.operations, grant, REVOKED, own)
        assert rules[0].rule_id in world.ledger(SOURCE).tombstones
        third, third_rules = opened(world, "c", BOB)
        assert third_rules[0].rule_id != rules[0].rule_id
        close(world.operations, second, REVOKED)
        close(world.operations, third, REVOKED)
        assert world.ingress.rules == {}


class TestGuard:
    def test_it_ends_no_live_grant_that_a_list_left_out(self, world: World) -> None:
        """Mutation: functions/grants/drift.py: `if status != "RUNNING":` -> `if True:`"""
        grant, _ = opened(world, "a", ALICE)
        world.clock.advance(GRACE)
        world.executions.young = frozenset({grant.id})
        answers = iter([True])
        world.executions.choose = lambda _options: next(answers, False)
        assert list(guard(world.operations)) == []
        record = world.record(grant.id)
        assert record
        assert record.state == "live"

    def test_it_finds_nothing_where_all_is_well(self, world: World) -> None:
        opened(world, "a", ALICE)
        closed, _ = opened(world, "b", BOB, WEB)
        close(world.operations, closed, REVOKED)
        world.executions.finish(closed.id, "ABORTED")
        world.clock.advance(GRACE)
        assert list(guard(world.operations)) == []

    def test_a_failing_search_hides_no_other_finding(self, world: World) -> None:
        grant, _ = opened(world, "a", ALICE)
        world.executions.finish(grant.id, "SUCCEEDED")
        over(world, grant)
        world.clock.advance(GRACE)
        world.listen(At("running", fail(IngressUnavailable("no answer"))))
        kinds = [finding.kind for finding in guard(world.operations)]
        assert kinds == ["could not look", "ended grant not closed"]
        assert world.ingress.rules == {}
