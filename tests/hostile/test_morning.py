"""Mornings on a hostile AWS with fixed seeds: hours in seconds. `make soak` goes on with new seeds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from grants import closing
from local.hostile import Plan
from tests.hostile.life import live_through

# Together the mornings of a store meet every row that a Knock in one process can meet, but for EC2's limits.
SEEDS = {"simpledb": (105, 116), "dynamodb": (105, 120)}
MET = {"ec2-lag", "ec2-errors", "ec2-lenient", "tagging", "events"}


@pytest.mark.parametrize(("store", "row"), [("simpledb", "sdb"), ("dynamodb", "dynamodb")])
def test_every_check_holds_through_a_morning_on_a_hostile_aws(store: str, row: str) -> None:
    met: set[str] = set()
    lost = 0
    for seed in SEEDS[store]:
        morning = live_through(Plan(seed), store=store)
        met |= morning.aws.met.keys()
        lost += len(morning.aws.events.lost) if morning.aws.events else 0
    assert met >= MET | {row}
    assert lost, "no stop event was lost, so the guard had none to close"


def test_every_check_holds_in_a_storm_that_uses_up_ec2s_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is refilled slowly, so that it is used up on a slow machine too."""
    monkeypatch.setattr("local.hostile.ec2.CHANGES", (20, 2))
    morning = live_through(Plan(1), steps=2, storm=70)
    assert morning.aws.met["ec2-throttle"] > 0
    assert len(morning.grants) > 60


def test_the_checks_notice_a_knock_that_believes_ec2_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SETTLES at zero, Knock takes NotFound of a young rule for proof that it is gone."""
    monkeypatch.setattr(closing, "SETTLES", timedelta(0))
    with pytest.raises(AssertionError, match=r"seed 100 on simpledb: .* is open"):
        live_through(Plan(100))
