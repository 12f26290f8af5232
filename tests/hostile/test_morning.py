"""Mornings on a hostile AWS with fixed seeds, hours of them in seconds; `make soak` goes on with new ones."""

from __future__ import annotations

from datetime import timedelta

import pytest

from grants import closing
from local.hostile import Plan
from tests.hostile.life import live_through

# Between them the mornings of a store meet every row that a Knock in one process can meet, but for a limit.
SEEDS = {"simpledb": (105, 116), "dynamodb": (105, 120)}
MET = {"ec2-lag", "ec2-errors", "ec2-lenient", "tagging", "events"}


@pytest.mark.parametrize(("store", "row"), [("simpledb", "sdb"), ("dynamodb", "dynamodb")])
def test_what_knock_promises_holds_through_a_morning_on_a_hostile_aws(store: str, row: str) -> None:
    met: set[str] = set()
    lost = 0
    for seed in SEEDS[store]:
        morning = live_through(Plan(seed), store=store)
        met |= morning.aws.met.keys()
        lost += len(morning.aws.events.lost) if morning.aws.events else 0
    assert met >= MET | {row}
    assert lost, "a stop that nobody heard of was the guard's to close"


def test_it_holds_in_a_storm_that_uses_up_ec2s_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bucket that a busy machine, which is slower than it is filled again, uses up too."""
    monkeypatch.setattr("local.hostile.ec2.CHANGES", (20, 2))
    morning = live_through(Plan(1), steps=2, storm=70)
    assert morning.aws.met["ec2-throttle"] > 0
    assert len(morning.held) > 60


def test_a_knock_that_believes_ec2_at_once_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: were NotFound proof that a young rule is gone, it would be seen to be open."""
    monkeypatch.setattr(closing, "SETTLES", timedelta(0))
    with pytest.raises(AssertionError, match=r"seed 100 on simpledb: .* is open"):
        live_through(Plan(100))
