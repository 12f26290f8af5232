"""The clock everything embedded waits by."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from local.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_now_is_utc_with_its_zone(clock: Clock) -> None:
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)
    assert clock.now().utcoffset() == timedelta(0)


def test_a_callback_is_called_at_its_time_and_not_before(clock: Clock) -> None:
    due = clock.now() + timedelta(milliseconds=80)
    called: list[datetime] = []
    done = threading.Event()
    clock.at(due, lambda: (called.append(clock.now()), done.set()))
    clock.at(due - timedelta(milliseconds=10), lambda: None)  # someone else's wakes the thread early
    assert done.wait(5)
    assert due <= called[0] < due + timedelta(seconds=1)


def test_what_is_past_is_called_at_once(clock: Clock) -> None:
    done = threading.Event()
    clock.at(clock.now() - timedelta(days=1), done.set)
    assert done.wait(1)


def test_advancing_calls_all_who_are_due_in_their_order(clock: Clock) -> None:
    called: list[int] = []
    done = threading.Event()
    for hours in (3, 1, 2):
        clock.at(clock.now() + timedelta(hours=hours), lambda hours=hours: called.append(hours))
    clock.at(clock.now() + timedelta(hours=3, minutes=1), done.set)
    clock.at(clock.now() + timedelta(hours=9), lambda: called.append(9))
    before = clock.now()
    clock.advance(timedelta(hours=8))
    assert done.is_set(), "advance returns once it has called all that are due"
    assert called == [1, 2, 3]
    assert clock.now() - before >= timedelta(hours=8)


def test_a_new_callback_that_is_due_first_is_not_late(clock: Clock) -> None:
    clock.at(clock.now() + timedelta(hours=1), lambda: None)
    done = threading.Event()
    started = time.monotonic()
    clock.at(clock.now() + timedelta(milliseconds=50), done.set)
    assert done.wait(5)
    assert time.monotonic() - started < 0.9  # the thread was asleep, and looks again after 1 s by itself


def test_real_seconds_do_not_move_with_the_clock(clock: Clock) -> None:
    done = threading.Event()
    clock.after(0.15, done.set)
    clock.advance(timedelta(days=1))
    assert not done.wait(0.05)
    assert done.wait(5)


def test_a_cancelled_callback_is_not_called(clock: Clock) -> None:
    cancelled, done = threading.Event(), threading.Event()
    timer = clock.at(clock.now() + timedelta(hours=1), cancelled.set)
    clock.at(clock.now() + timedelta(hours=2), done.set)
    timer.cancel()
    clock.advance(timedelta(hours=3))
    assert done.wait(1)
    assert not cancelled.is_set()


def test_a_clock_does_not_go_back(clock: Clock) -> None:
    with pytest.raises(ValueError, match="forward only"):
        clock.advance(timedelta(seconds=-1))


def test_a_closed_clock_tells_the_time_and_calls_nobody(clock: Clock) -> None:
    called = threading.Event()
    clock.at(clock.now() + timedelta(hours=1), called.set)
    clock.close()
    clock.at(clock.now(), called.set)
    clock.advance(timedelta(hours=2))
    assert not called.wait(0.1)
    assert clock.now() > datetime.now(UTC) + timedelta(hours=1)


def test_a_wall_clock_that_jumps_is_noticed_within_about_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop that slept: the wall clock has moved on, what our sleep is measured by has not."""
    done = threading.Event()
    clock.at(clock.now() + timedelta(hours=1), done.set)
    time.sleep(0.05)  # its thread has gone to sleep
    real = time.time
    monkeypatch.setattr("local.clock.time.time", lambda: real() + 7200)
    assert done.wait(5)
