"""The clock everything embedded waits by."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from local.clock import Clock

START = datetime(2026, 11, 23, 21, 17, 19, tzinfo=UTC)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


class FakeTime:
    """The machine's wall clock and monotonic clock, moved by the test alone.

    `sleeps` has the seconds of each sleep of the clock's thread, as it begins. The thread sleeps until it is
    notified, by the clock or by `pass_by`.
    """

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic = START.timestamp(), 1000.0
        self.sleeps: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._changed = clock._changed
        self._wait = self._changed.wait
        machine = SimpleNamespace(time=lambda: self.wall, monotonic=lambda: self.monotonic)
        monkeypatch.setattr("local.clock.time", machine)
        monkeypatch.setattr(self._changed, "wait", self._sleep)

    def pass_by(self, seconds: float) -> None:
        """Move both clocks and end the sleep."""
        with self._changed:
            self.wall += seconds
            self.monotonic += seconds
            self._changed.notify()

    def _sleep(self, seconds: float | None) -> None:
        self.sleeps.put(seconds)
        self._wait()


@pytest.fixture
def fake(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    return FakeTime(clock, monkeypatch)


def test_now_is_utc_with_its_zone(clock: Clock, fake: FakeTime) -> None:
    assert clock.now() == START
    assert clock.now().utcoffset() == timedelta(0)


def test_a_callback_is_called_at_its_time_and_not_before(clock: Clock, fake: FakeTime) -> None:
    called: list[datetime] = []
    done = threading.Event()
    clock.at(START + timedelta(seconds=0.75), lambda: (called.append(clock.now()), done.set()))
    assert fake.sleeps.get(timeout=5) == 0.75
    clock.at(START + timedelta(seconds=0.5), lambda: None)  # another callback, which wakes the thread early
    assert fake.sleeps.get(timeout=5) == 0.5
    fake.pass_by(0.5)
    assert fake.sleeps.get(timeout=5) == 0.25
    assert called == []
    fake.pass_by(0.25)
    assert done.wait(5)
    assert called == [START + timedelta(seconds=0.75)]


def test_a_callback_whose_time_is_past_is_called_at_once(clock: Clock, fake: FakeTime) -> None:
    done = threading.Event()
    clock.at(clock.now() - timedelta(days=1), done.set)
    assert done.wait(5)


def test_advancing_calls_all_that_are_due_in_their_order(clock: Clock) -> None:
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


def test_a_new_callback_that_is_due_first_wakes_the_thread(clock: Clock, fake: FakeTime) -> None:
    done = threading.Event()
    clock.at(START + timedelta(hours=1), lambda: None)
    assert fake.sleeps.get(timeout=5) == 1
    clock.at(START + timedelta(seconds=0.25), done.set)
    assert fake.sleeps.get(timeout=5) == 0.25
    fake.pass_by(0.25)
    assert done.wait(5)


def test_real_seconds_do_not_move_with_the_clock(clock: Clock, fake: FakeTime) -> None:
    done = threading.Event()
    clock.after(0.5, done.set)
    assert fake.sleeps.get(timeout=5) == 0.5
    clock.advance(timedelta(days=1))
    assert fake.sleeps.get(timeout=5) == 0.5
    assert not done.is_set()
    fake.pass_by(0.5)
    assert done.wait(5)


def test_a_cancelled_callback_is_not_called(clock: Clock) -> None:
    cancelled, done = threading.Event(), threading.Event()
    timer = clock.at(clock.now() + timedelta(hours=1), cancelled.set)
    clock.at(clock.now() + timedelta(hours=2), done.set)
    timer.cancel()
    clock.advance(timedelta(hours=3))
    assert done.wait(5)
    assert not cancelled.is_set()


def test_a_clock_does_not_go_back(clock: Clock) -> None:
    with pytest.raises(ValueError, match="forward only"):
        clock.advance(timedelta(seconds=-1))


def test_a_closed_clock_tells_the_time_and_makes_no_calls(clock: Clock) -> None:
    called = threading.Event()
    clock.at(clock.now() + timedelta(hours=1), called.set)
    thread = clock._thread
    assert thread
    clock.close()
    thread.join(5)
    assert not thread.is_alive()
    clock.at(clock.now(), called.set)
    clock.advance(timedelta(hours=2))
    assert not called.is_set()
    assert clock.now() > datetime.now(UTC) + timedelta(hours=1)


def test_a_wall_clock_that_jumps_is_noticed_within_a_second(clock: Clock, fake: FakeTime) -> None:
    """A machine that was suspended: its wall clock has moved on, its monotonic clock has not."""
    done = threading.Event()
    clock.at(START + timedelta(hours=1), done.set)
    assert fake.sleeps.get(timeout=5) == 1
    fake.wall += 7200
    fake.pass_by(1)
    assert done.wait(5)
