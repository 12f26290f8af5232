"""The number of runs of each measurement: in full, or just enough to see that it works."""

from __future__ import annotations

from dataclasses import dataclass


class BenchError(Exception):
    """A figure could not be measured. The message says why and, where possible, what to do."""


@dataclass(frozen=True)
class Scale:
    starts: int = 5
    imports: int = 5
    colds: int = 15
    commands: int = 20
    knocks_alone: int = 60
    knocks_together: int = 500
    in_flight: int = 50
    lag_rounds: tuple[tuple[int, int], ...] = ((1, 10), (100, 3), (1000, 2))  # grants at once, how often
    live: tuple[int, int] = (10, 1000)
    counted: int = 5
    lasts: int = 6  # seconds that a counted grant lasts: it must be open by then
    full_groups: int = 5
    of_one_source: int = 64  # the most that a source may have live
    ended: tuple[int, ...] = (100, 10_000, 100_000)
    listings: int = 30
    load_requests: int = 1000
    load_clients: int = 50


FULL = Scale()
QUICK = Scale(
    starts=1,
    imports=1,
    colds=1,
    commands=2,
    knocks_alone=3,
    knocks_together=12,
    in_flight=4,
    lag_rounds=((1, 1), (5, 1)),
    live=(2, 6),
    counted=2,
    lasts=3,
    full_groups=2,
    of_one_source=5,
    ended=(50, 200),
    listings=2,
    load_requests=60,
    load_clients=6,
)
