"""`knock-admin report`: a month's hours, where overlaps count once, refusals, forced and late closings."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from grants.values import Grant
from knock_admin.report import _COLUMNS
from tests.clients.admin_support import STORES, World, at, make_world, make_worlds

world = pytest.fixture(make_world)
either = pytest.fixture(params=STORES)(make_worlds)

MONTH = datetime(2026, 11, 1, tzinfo=timezone.utc)
NEXT = datetime(2026, 12, 1, tzinfo=timezone.utc)


def opened(
    world: World,
    name: str,
    begin: datetime,
    hours: float,
    *,
    closer: str = "expired",
    late: float = 0,
    **more: Any,
) -> Grant:
    """Record a grant that expired after so many hours, and was closed so many seconds later."""
    grant = world.record(name, at=begin, lasts=timedelta(hours=hours), **more)
    end = begin + timedelta(hours=hours)
    world.trail.end(grant.id, "expired", end, "knock", "")
    world.trail.close(grant.id, end + timedelta(seconds=late), closer, ["sgr-1"], [])
    return grant


@pytest.fixture
def november(either: World, monkeypatch: pytest.MonkeyPatch) -> tuple[World, dict[str, str]]:
    """Record a November; the program's clock stands in the middle of December."""
    at(monkeypatch, NEXT + timedelta(days=14))
    named = {
        "before": opened(either, "alice", MONTH - timedelta(hours=1), 3),
        "renewed": opened(either, "alice", MONTH + timedelta(hours=1), 2),
        "late": opened(either, "alice", MONTH + timedelta(days=2), 1, target="web", late=900),
        "forced": opened(either, "bob", MONTH + timedelta(days=3), 1, closer="force", late=30),
        "over": opened(either, "bob", NEXT - timedelta(hours=2), 4),
        "october": opened(either, "carol", MONTH - timedelta(hours=3), 1),
        "december": opened(either, "carol", NEXT, 1),
    }
    stuck = either.record("dan|=1", at=NEXT - timedelta(hours=3), lasts=timedelta(hours=1))
    named["stuck"] = stuck
    for day, name in ((1, "eve"), (2, "eve"), (3, "mal")):
        either.refuse(f"refusal_{day}", name, MONTH + timedelta(days=day))
    either.refuse("refusal_9", "eve", NEXT)
    return either, {name: grant.id for name, grant in named.items()}


def test_a_month_is_counted_the_same_in_every_format(november: tuple[World, dict[str, str]]) -> None:
    """Break it: count overlapping grants twice, or the hours beyond the month's ends."""
    world, ids = november
    report = world.ok("report", "--month", "2026-11", "--json").json
    assert report == world.ok("report", "--month", "2026-11", "--format", "json").json
    assert (report["complete"], report["from"], report["until"]) == (
        True,
        "2026-11-01T00:00:00.000Z",
        "2026-12-01T00:00:00.000Z",
    )
    hours = {(row["principal"], row["target"]): (row["grants"], row["hours"]) for row in report["access"]}
    assert hours == {
        ("alice", "bastion"): (2, 3.0),
        ("alice", "web"): (1, 1.25),
        ("bob", "bastion"): (2, 3.01),
        ("dan|=1", "bastion"): (1, 3.0),
    }
    assert {row["how"]: row["count"] for row in report["endings"]} == {"expired": 5}
    assert [(row["principal"], row["right"], row["count"]) for row in report["refusals"]] == [
        ("eve", "knock:targets", 2),
        ("mal", "knock:targets", 1),
    ]
    assert [row["id"] for row in report["forced"]] == [ids["forced"]]
    assert {row["id"]: (row["closed_at"], row["late_seconds"] > 240) for row in report["late"]} == {
        ids["late"]: ("2026-11-03T01:15:00.000Z", True),
        ids["stuck"]: (None, True),
    }
    rows = list(csv.DictReader(io.StringIO(world.ok("report", "--month", "2026-11", "--format", "csv").out)))
    assert tuple(rows[0]) == _COLUMNS
    assert len(rows) == sum(len(report[name]) for name in ("access", "endings", "refusals", "forced", "late"))
    assert [
        row["principal"] for row in rows if row["target"] == "bastion" and row["section"] == "access"
    ] == [
        "alice",
        "bob",
        "dan|'=1",
    ]
    text = world.ok("report", "--month", "2026-11").out
    assert "| alice | bastion | 2 | 3.00 |" in text
    assert "| dan\\|=1 | bastion | 1 | 3.00 |" in text
    assert f"| `{ids['forced']}` | bob |" in text
    assert "10.26 hours in all." in text
    assert "goes on" not in text


def test_a_month_that_is_not_over_is_reported_as_incomplete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, MONTH + timedelta(days=9))
    world.record("alice", at=MONTH + timedelta(days=8, hours=22))
    result = world.ok("report", "--month", "2026-11", "--json")
    assert (result.json["complete"], result.json["until"]) == (False, "2026-11-10T00:00:00.000Z")
    assert result.json["access"] == [{"principal": "alice", "target": "bastion", "grants": 1, "hours": 2.0}]
    assert result.json["endings"] == []
    result = world.ok("report", "--month", "2026-11")
    assert "the month goes on: this is until 2026-11-10T00:00:00.000Z" in result.err
    assert "None." in result.out


@pytest.mark.parametrize("month", ["2026-13", "november", "2026-1", "0000-01", "2027-01", "9999-12", ""])
def test_a_text_that_is_no_month_or_a_month_to_come_is_a_usage_error(
    world: World, monkeypatch: pytest.MonkeyPatch, month: str
) -> None:
    at(monkeypatch, NEXT)
    result = world.run("report", "--month", month)
    assert (result.code, result.out, "--month: " in result.err) == (2, "", True)


def test_markdown_in_a_name_is_escaped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NEXT)
    world.refuse("refusal_1", "<b>*x*[y](z)`_\x1b", MONTH + timedelta(days=1))
    text = world.ok("report", "--month", "2026-11").out
    assert r"| \<b\>\*x\*\[y\](z)\`\_" in text
    assert "\x1b" not in text
