"""How the API waits for a grant to open: how often it reads the trail, and that it answers at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

import api
from grants.errors import StoreUnavailable
from grants.values import Grant, Ports, Principal, Record, Target
from rest.requests import Request

AT = datetime(2026, 11, 23, 21, 17, 19, tzinfo=timezone.utc)
GRANT = Grant.decide(
    Principal("k1", "alice"),
    "203.0.113.7/32",
    (Target("bastion", (Ports.parse("22/tcp"),), ("sg-1",)),),
    AT,
    AT + timedelta(hours=8),
)
REQUEST = Request("k1", "203.0.113.7/32", {}, {}, (), b"")


@dataclass
class Clock:
    """Time that passes in sleep alone, and a trail in which the grant is open after so many seconds."""

    opens_after: float
    away: bool = False
    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def get(self, _grant_id: str) -> Record:
        self.reads.append(self.now)
        if self.away:
            raise StoreUnavailable("away")
        record = Record(GRANT)
        return replace(record, authorized_at=AT) if self.now >= self.opens_after else record


def waiting(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> dict[str, Any]:
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    executions = SimpleNamespace(arn=lambda grant_id: f"arn:{grant_id}")
    monkeypatch.setattr(api, "wiring", lambda: SimpleNamespace(trail=clock, executions=executions))
    return api._await_ingress(GRANT, REQUEST, {})


def test_no_two_reads_are_more_than_a_tenth_of_a_second_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: functions/api.py:
    `pause = min(pause * PAUSE_GROWS, LONGEST_PAUSE)` -> `pause *= PAUSE_GROWS`
    """
    clock = Clock(opens_after=99)
    assert waiting(monkeypatch, clock)["statusCode"] == 202
    assert max(clock.slept) <= 0.1
    assert 5.0 < clock.now < 5.2
    assert len(clock.reads) < 60, "SimpleDB is paid by the read"


def test_the_first_reads_are_closer_together_where_most_grants_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: functions/api.py: `= 0.03, 0.1, 1.3` -> `= 0.1, 0.1, 1.3`"""
    clock = Clock(opens_after=0.25)
    assert waiting(monkeypatch, clock)["statusCode"] == 201
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[0] == 0.03
    assert len(clock.reads) == 5


@pytest.mark.parametrize("opens_after", [0.0, 0.2, 1.1, 2.7, 4.9])
def test_a_grant_that_is_open_on_record_is_answered_at_once(
    opens_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pause, no call and no second read between the record and the answer."""
    clock = Clock(opens_after)
    assert waiting(monkeypatch, clock)["statusCode"] == 201
    assert clock.now - opens_after <= 0.1
    assert len([read_at for read_at in clock.reads if read_at >= opens_after]) == 1
    assert clock.reads[-1] == clock.now


def test_a_trail_that_is_away_is_read_no_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(opens_after=0, away=True)
    assert waiting(monkeypatch, clock)["statusCode"] == 202
    assert max(clock.slept) <= 0.1
