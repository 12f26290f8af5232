"""`knock-admin trail --open-between` and `--open-at`: which grants were open then, and for how long."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from grants.values import Grant, Principal
from knock_admin import open_periods, trail
from tests.clients.admin_support import STORES, TRAIL, World, at, make_world, make_worlds

world = pytest.fixture(make_world)
either = pytest.fixture(params=STORES)(make_worlds)

TEN = datetime(2026, 11, 23, 10, tzinfo=timezone.utc)
NOW = TEN + timedelta(hours=9)


def hour(number: float) -> datetime:
    return TEN + timedelta(hours=number - 10)


def text(number: float) -> str:
    return hour(number).strftime("%Y-%m-%dT%H:%M:%SZ")


def opened(world: World, name: str, begin: float, end: float | None, **more: Any) -> Grant:
    """Record a grant that was closed at `end`, or is open where that is None; both are hours of the day."""
    grant = world.record(name, at=hour(begin), **more)
    if end is not None:
        world.trail.end(grant.id, "revoked", hour(end), "ops", "")
        world.trail.close(grant.id, hour(end), "c", ["sgr-1"], [])
    return grant


@pytest.fixture
def day(either: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Record the grants of a day; the program's clock stands at NOW, 19:00."""
    at(monkeypatch, NOW)
    opened(either, "before", 8, 9.5)
    opened(either, "touches", 8, 10)
    opened(either, "long", 1, 18)
    opened(either, "into", 9, 10.25, target="web")
    opened(either, "inside", 10.25, 10.5)
    opened(either, "out-of", 10.75, 12, source="2001:db8::7/128")
    opened(either, "after", 11, 12)
    opened(either, "still", 9.5, None, lasts=timedelta(hours=20))
    stuck = opened(either, "stuck", -500, None, lasts=timedelta(hours=1))
    either.trail.end(stuck.id, "expired", hour(-499), "knock", "")
    # Neither a rule nor an end is on record.
    opened(either, "unseen", 10, None, open_=False, lasts=timedelta(minutes=5))
    failed = either.record("cut-off", at=hour(10), open_=False)
    either.trail.end(failed.id, "failed", hour(10.2), "knock", "")
    either.trail.close(failed.id, hour(10.2), "c", ["sgr-1"], [])  # there was a rule
    refused = either.record("refused", at=hour(10), open_=False)
    either.trail.end(refused.id, "failed", hour(10.1), "knock", "PoolExhausted")
    either.trail.close(refused.id, hour(10.1), "c", [], [])
    either.refuse(at=hour(10.5))
    return either


def names(world: World, *words: str) -> list[str]:
    out = world.ok("trail", "--json", *words).out
    return [json.loads(line)["principal"]["name"] for line in out.splitlines()]


BETWEEN = ("--open-between", text(10), text(11))


def test_now_is_a_time(day: World) -> None:
    assert set(names(day, "--open-between", "9h", "now")) == set(names(day, *BETWEEN[:2], text(19)))
    assert names(day, "--open-at", "now") == names(day, "--open-at", text(19))


def test_every_grant_that_was_open_is_listed_in_every_format(day: World) -> None:
    """Break it: filter by the time of the request, take a planned end for the end, or compare one bound."""
    rows = {
        row["principal"]: row
        for row in csv.DictReader(io.StringIO(day.ok("trail", *BETWEEN, "--format", "csv").out))
    }
    assert {name: float(row["overlap_seconds"]) / 60 for name, row in rows.items()} == {
        "stuck": 60,
        "long": 60,
        "into": 15,
        "still": 60,
        "unseen": 60,
        "cut-off": 12,
        "inside": 15,
        "out-of": 15,
    }
    assert {name: row["note"] for name, row in rows.items() if row["note"]} == {
        "stuck": open_periods.UNCLOSED,
        "unseen": f"{open_periods.UNRECORDED}; {open_periods.UNCLOSED}",
        "cut-off": open_periods.UNRECORDED,
    }
    assert (rows["still"]["status"], rows["still"]["open_until"]) == ("active", "")
    assert (rows["into"]["overlap_from"], rows["into"]["overlap_until"]) == (
        "2026-11-23T10:00:00.000Z",
        "2026-11-23T10:15:00.000Z",
    )
    entries = [json.loads(line) for line in day.ok("trail", *BETWEEN, "--format", "jsonl").out.splitlines()]
    assert {entry["principal"]["name"]: entry["overlap_seconds"] for entry in entries} == {
        name: float(row["overlap_seconds"]) for name, row in rows.items()
    }
    assert entries[0]["open_until"] is None
    assert [entry["requested_at"] for entry in entries] == sorted(entry["requested_at"] for entry in entries)
    head, *lines = day.ok("trail", *BETWEEN).out.splitlines()
    assert head.split("  ")[0] == "ID"
    assert {line.split()[1] for line in lines} == rows.keys()
    (line,) = [line for line in lines if line.split()[1] == "still"]
    assert line.split()[4:] == ["2026-11-23", "09:30:00", "still", "open", "1h", "-"]


def test_a_grant_that_closed_at_the_moment_was_not_open_then(day: World) -> None:
    assert set(names(day, "--open-at", text(10))) == {
        *("stuck", "long", "into", "still", "unseen", "cut-off"),
    }
    assert set(names(day, "--open-at", text(10.25))) == {"stuck", "long", "still", "unseen", "inside"}
    assert names(day, "--open-at", text(-600)) == []
    assert day.ok("trail", "--open-at", text(10)).out.splitlines()[1].split()[-5:] == [
        "-",
        *open_periods.UNCLOSED.split(),
    ]


def test_filters_select_among_the_open_grants(day: World) -> None:
    assert names(day, *BETWEEN, "--target", "web") == ["into"]
    assert names(day, *BETWEEN, "--source", "2001:db8::7") == ["out-of"]
    assert names(day, *BETWEEN, "--principal", "long") == ["long"]
    assert names(day, *BETWEEN, "--principal", "after") == []
    assert day.run("trail", *BETWEEN, "--principal", "nobody").code == 1


def test_an_interval_that_ends_in_the_future_is_cut_at_the_present(day: World) -> None:
    result = day.ok(
        "trail", "--open-between", text(18.5), text(30), "--format", "csv", "--principal", "still"
    )
    assert "the period goes on: this is until 2026-11-23T19:00:00Z" in result.err
    (row,) = csv.DictReader(io.StringIO(result.out))
    assert row["overlap_until"] == "2026-11-23T19:00:00.000Z"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--open-at", text(20)], "That time is in the future"),
        (["--open-between", text(20), text(21)], "That time is in the future"),
        (["--open-between", text(11), text(10)], "is not before"),
        (["--open-between", text(11), text(11)], "is not before"),
        (["--open-between", "noon", text(11)], "--open-between: a time is like"),
        (["--open-at", "noon"], "--open-at: a time is like"),
        (["--open-at", text(10), "--events"], "there is no events"),
        (["--open-at", text(10), "--kind", "refusal"], "there is no kind"),
        (["alice_1", "--open-at", text(10)], "there is no id"),
        (["--open-at", text(10), "--since", "1d"], "there is no since"),
        (["--open-at", text(10), "--open-between", text(10), text(11)], "not allowed with"),
    ],
)
def test_a_time_that_makes_no_sense_is_a_usage_error(
    world: World, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    at(monkeypatch, NOW)
    result = world.run("trail", *words)
    assert (result.code, result.out, message in result.err) == (2, "", True), result.err


def test_a_grant_whose_times_cannot_be_read_is_listed_for_every_interval(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: skip it."""
    at(monkeypatch, NOW)
    values = {"kind": "grant", "state": "live", "closed_at": "-", "authorized_at": "soon", "order": "2026 x"}
    world.store(TRAIL).put("odd", values)
    (entry,) = [json.loads(line) for line in world.ok("trail", "--json", *BETWEEN).out.splitlines()]
    assert (entry["id"], entry["note"], entry["open_from"]) == ("odd", open_periods.UNREADABLE, None)
    assert "?" in world.ok("trail", *BETWEEN).out.splitlines()[1]


def test_a_rule_closed_for_a_grant_whose_record_was_lost_counts_as_perhaps_open(world: World) -> None:
    """A trail without a grant's record gets its end alone; the closing event then lists the rules."""
    grant = Grant.decide(
        Principal("k1", "Zoë"),
        "203.0.113.7/32",
        world.record().targets,
        hour(9),
        hour(17),
        nonce="n",
    )
    world.trail.end(grant.id, "revoked", hour(11), "ops", "", grant)
    (before,) = world.trail.page(limit=1, principal_name="Zoë").records
    assert before.unopened
    for rules, counted in (([], False), (["sgr-1"], True)):
        world.store(TRAIL).put(grant.id, {"closed_at": "-"})
        world.trail.close(grant.id, hour(12), "c", rules, [])
        values = world.store(TRAIL).get(grant.id)
        assert (open_periods.open_period(trail.Entry(grant.id, values), NOW) is not None) == counted
