"""What the operations do where several calls, clocks or grants would have to meet for it to happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from grants.errors import GrantEnded, IngressRefused, InvalidGrant, RuleUnsettled, TrailUnavailable
from grants.operations import ACTS, SETTLES
from grants.values import Grant, RuleKey, make_stamp
from tests.proofs.test_interleavings import (
    ALICE,
    BASTION,
    BOB,
    CAROL,
    HTTPS,
    KEY,
    SOURCE,
    WEB,
    fresh,
    knocks,
    opened,
)
from tests.twins import Call, Hook, World

WEB_KEY = RuleKey("sg-w", HTTPS, SOURCE)


@pytest.fixture
def world() -> World:
    return fresh()


class At(Hook):
    """Does something once, before or after a call of some name."""

    def __init__(self, name: str, act: Callable[[], object], *, after: bool = False) -> None:
        self._name, self._act, self._after = name, act, after

    def before(self, call: Call) -> None:
        if not self._after:
            self._once(call)

    def after(self, call: Call, came: object) -> None:
        if self._after:
            self._once(call)

    def _once(self, call: Call) -> None:
        if call.name == self._name:
            self._name = ""
            self._act()


def state(world: World, grant: Grant) -> Grant:
    return world.trail.grants[grant.id]


class TestAuthorization:
    def test_a_run_that_is_too_old_authorizes_nothing_and_takes_its_claims_back(self, world: World) -> None:
        """Mutation: functions/grants/operations.py:
        `if self.clock() >= stamped_at(run.stamp) + ACTS:` -> `if False:`
        """
        grant = knocks(world, "a", ALICE)
        world.listen(At("unclosed", lambda: world.clock.advance(ACTS)))
        with pytest.raises(RuleUnsettled, match="too old"):
            world.operations.authorize(grant)
        assert world.ingress.rules == {}
        assert state(world, grant).claims == frozenset()
        assert len(world.operations.authorize(grant)) == 1

    def test_two_targets_with_one_rule_share_it_to_the_end(self, world: World) -> None:
        tls = type(WEB)("tls", (HTTPS,), ("sg-w",))
        grant = knocks(world, "a", ALICE, WEB, tls)
        first, second, third = world.operations.authorize(grant)
        assert second.rule_id == third.rule_id != first.rule_id
        assert (third.target, third.key) == ("tls", second.key)
        world.operations.revoke("a", "revoked", "alice")
        assert world.ingress.rules == {}

    def test_what_it_made_is_closed_though_the_grant_was_closed_without_it(self, world: World) -> None:
        """A function that was frozen for longer than any should be."""
        grant = knocks(world, "a", ALICE)

        def meanwhile() -> None:
            world.operations.trail.end("a", "revoked", world.clock(), "alice", "")
            world.clock.advance(SETTLES)
            rule = world.ingress.rules.pop(KEY)  # nobody sees it
            world.operations.revoke("a", "revoked", "alice")
            world.ingress.rules[KEY] = rule

        world.listen(At("record_rule", meanwhile))
        with pytest.raises(GrantEnded):
            world.operations.authorize(grant)
        assert state(world, grant).closed_at
        assert world.ingress.rules == {}

    def test_what_it_made_goes_to_who_claims_it_when_the_grant_ended(self, world: World) -> None:
        grant, bob = knocks(world, "a", ALICE), knocks(world, "b", BOB, hours=2)

        def meanwhile() -> None:
            world.operations.authorize(bob)
            world.operations.trail.end("a", "revoked", world.clock(), "alice", "")

        world.listen(At("authorize", meanwhile, after=True))
        with pytest.raises(GrantEnded):
            world.operations.authorize(grant)
        assert KEY in world.ingress.rules
        world.operations.revoke("a", "revoked", "alice")
        assert KEY in world.ingress.rules
        world.operations.revoke("b", "revoked", "bob")
        assert world.ingress.rules == {}

    def test_an_input_that_is_not_what_the_trail_recorded_opens_nothing(self, world: World) -> None:
        """Mutation: functions/grants/operations.py:
        `if grant is None or (grant.source, grant.expires_at) != (asked.source, asked.expires_at):`
        -> `if grant is None:`
        """
        grant = knocks(world, "a", ALICE)
        for other in (
            replace(grant, expires_at=grant.expires_at + timedelta(days=1)),
            replace(grant, source="198.51.100.1/32"),
            replace(grant, id="b"),
        ):
            with pytest.raises(InvalidGrant):
                world.operations.authorize(other)
        assert world.ingress.rules == {}

    def test_it_takes_its_claims_back_when_ec2_refuses(self, world: World) -> None:
        """So that the grant is closed at once, and not when a claim without an outcome has settled.

        Mutation: functions/grants/operations.py:
        `except (GroupFull, GroupGone, IngressRefused, IngressThrottled):` -> `except GroupFull:`
        """
        world.ingress.refused = frozenset({"sg-a"})
        grant = knocks(world, "a", ALICE, BASTION, WEB)
        with pytest.raises(IngressRefused):
            world.operations.authorize(grant)
        assert state(world, grant).claims == frozenset()
        world.operations.revoke("a", "failed", "knock")
        assert state(world, grant).closed_at

    def test_what_it_supersedes_is_ended_by_who_ends_it_should_it_die(self, world: World) -> None:
        """Mutation: functions/grants/operations.py: `if old.id in grant.supersedes:` -> `if False:`"""
        older = opened(world, "a", ALICE)
        newer = knocks(world, "b", ALICE, hours=2, after=1)

        class Gone(BaseException):
            pass

        def die() -> None:
            raise Gone

        world.listen(At("end", die))
        with pytest.raises(Gone):
            world.operations.authorize(newer)
        assert state(world, older).state == "live"
        world.operations.revoke("b", "revoked", "alice")
        assert (state(world, older).state, state(world, older).ended_by) == ("superseded", "b")
        assert state(world, older).closed_at
        assert world.ingress.rules == {}

    def test_a_neighbour_that_cannot_be_closed_for_another_rule_does_not_stand_in_its_way(
        self, world: World
    ) -> None:
        """Nor does whoever closes that one later, by an older reading of the claims, cut it short.

        Mutation: functions/grants/operations.py:
        `return not done.kept or self.trail.condemn(grant.id, decided, {})` -> `return True`
        """
        stuck = opened(world, "a", ALICE)
        world.trail.add_claims("a", {WEB_KEY}, make_stamp(world.clock(), "gone"))  # a run died of it
        bob = knocks(world, "b", BOB, hours=2)
        world.listen(At("condemn", lambda: world.operations.authorize(bob)))
        with pytest.raises(RuleUnsettled):
            world.operations.revoke("a", "revoked", "alice")
        assert set(world.ingress.rules) == {KEY}
        world.clock.advance(SETTLES)
        world.operations.revoke("a", "revoked", "alice")
        assert set(world.ingress.rules) == {KEY}
        assert state(world, stuck).closed_at
        world.operations.revoke("b", "revoked", "bob")
        assert world.ingress.rules == {}

    def test_a_neighbour_that_cannot_be_closed_for_this_very_rule_does(self, world: World) -> None:
        opened(world, "a", ALICE)
        world.ingress.refused = frozenset({"sg-a"})
        with pytest.raises(IngressRefused):
            world.operations.revoke("a", "revoked", "alice")
        carol = knocks(world, "c", CAROL)
        with pytest.raises(IngressRefused):
            world.operations.authorize(carol)
        assert state(world, carol).claims == frozenset()


class TestRevocation:
    def test_a_grant_whose_time_is_up_keeps_nothing_open(self, world: World) -> None:
        """Though its own execution has not ended it yet, or never will.

        Mutation: functions/grants/values.py:
        `return self.state == "live" and now < self.expires_at` -> `return self.state == "live"`
        """
        opened(world, "a", ALICE, hours=2)
        other = opened(world, "b", BOB)
        world.clock.now = other.expires_at
        world.operations.revoke("a", "revoked", "alice")
        assert world.ingress.rules == {}


class TestForce:
    def test_it_closes_without_the_trail_what_others_claim_too_and_tells_later(self, world: World) -> None:
        """Early, never late. Who lost access knocks again."""
        a, b = opened(world, "a", ALICE), opened(world, "b", BOB)
        rules = {KEY: world.ingress.rules[KEY].id}
        world.trail.down = True
        with pytest.raises(TrailUnavailable):
            world.operations.force(a, rules, "expired")
        assert world.ingress.rules == {}
        world.trail.down = False
        world.operations.force(a, rules, "expired")
        assert (state(world, a).state, state(world, b).state) == ("expired", "live")
        again = knocks(world, "c", BOB, hours=2, after=1)
        world.operations.authorize(again)
        assert set(world.ingress.rules) == {KEY}
        assert state(world, b).state == "superseded"
        world.operations.revoke("c", "revoked", "bob")
        assert world.ingress.rules == {}
