"""`knock-admin trail` and `grants`: filters, formats, and values that are data and nothing else."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from grants.values import Grant, Opened, Ports, Principal, RuleKey, Target, show_second, show_time
from knock_admin import output, simpledb
from tests.clients.admin_support import REFUSALS, TRAIL, World, make_world

world = pytest.fixture(make_world)

NOW = datetime.now(timezone.utc).replace(microsecond=0)


def ids(ran: Any) -> list[str]:
    return [json.loads(line)["id"] for line in ran.out.splitlines()]


def put(world: World, name: str, domain: str = TRAIL, **values: str) -> None:
    """Write an item as it may be found in a domain, however it came there."""
    world.sdb.put_attributes(
        DomainName=domain,
        ItemName=name,
        Attributes=[{"Name": key, "Value": value} for key, value in values.items()],
    )


@pytest.fixture
def three(world: World) -> list[str]:
    """Record three grants and a refusal, an hour apart; give their ids."""
    first = world.record("alice", at=NOW - timedelta(hours=3))
    second = world.record("bob", at=NOW - timedelta(hours=2), source="2001:db8::7/128")
    third = world.record("alice", at=NOW - timedelta(hours=1), target="web")
    world.trail.end(first.id, "revoked", NOW - timedelta(minutes=170), "user/root", "left the team")
    world.refuse(at=NOW)
    return [first.id, second.id, third.id, "refusal_1"]


def test_the_trail_is_everything_oldest_first(world: World, three: list[str]) -> None:
    assert ids(world.ok("trail", "--format", "jsonl")) == three
    assert ids(world.ok("trail", "--json")) == three


FILTERS: list[tuple[list[str], list[int]]] = [
    (["--principal", "alice"], [0, 2]),
    (["--principal", "id-bob"], [1]),
    (["--source", "203.0.113.7"], [0, 2]),
    (["--source", "203.0.113.7/32"], [0, 2]),
    (["--source", "2001:0db8::0007"], [1]),
    (["--target", "web"], [2]),
    (["--kind", "refusal"], [3]),
    (["--kind", "grant", "--principal", "alice", "--target", "bastion"], [0]),
    (["--since", "150m"], [1, 2, 3]),
    (["--until", "150m"], [0]),
    (["--since", "150m", "--until", "30m"], [1, 2]),
    (["--since", (NOW - timedelta(hours=2)).isoformat()], [1, 2, 3]),
    (["--until", (NOW - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")], [0]),
    (["--since", (NOW + timedelta(days=2)).strftime("%Y-%m-%d")], []),
    (["--principal", "nobody"], []),
]


def test_filters_choose(world: World, three: list[str]) -> None:
    for filters, chosen in FILTERS:
        assert ids(world.ok("trail", "--json", *filters)) == [three[index] for index in chosen], filters


def test_one_entry_is_shown_by_its_id(world: World, three: list[str]) -> None:
    assert ids(world.ok("trail", three[1], "--json")) == [three[1]]


def test_no_value_is_read_as_a_part_of_the_query(world: World, three: list[str]) -> None:
    """Break it: return `'{value}'` from quote."""
    for hostile in ("x' or `kind` = 'grant", "' or itemName() like '%", "`", "x'; --", "''"):
        for named in ([hostile], ["--principal", hostile], ["--target", hostile]):
            assert ids(world.ok("trail", "--json", *named)) == [], named
    assert ids(world.ok("trail", "--json", "--principal", "alice")) != []


@pytest.mark.parametrize(
    "bad",
    [
        ["--source", "there"],
        ["--source", "203.0.113.7/24"],
        ["--since", "yesterday"],
        ["--until", "9" * 9 + "d"],
    ],
)
def test_a_filter_that_cannot_be_read_is_a_usage_error(world: World, bad: list[str]) -> None:
    ran = world.run("trail", *bad)
    assert (ran.code, ran.err.startswith("knock-admin: ")) == (2, True)


def test_json_has_the_shape_the_api_gives_a_grant(world: World, three: list[str]) -> None:
    first, _, _, refusal = [json.loads(line) for line in world.ok("trail", "--json").out.splitlines()]
    assert first["principal"] == {"id": "id-alice", "name": "alice"}
    assert first["targets"] == [{"name": "bastion", "ports": ["22/tcp"]}]
    assert (first["status"], first["ended_by"], first["end_reason"]) == (
        "revoked",
        "user/root",
        "left the team",
    )
    assert [event["event"] for event in first["events"]] == ["requested", "authorized", "revoked"]
    assert refusal == {
        "kind": "refusal",
        "id": "refusal_1",
        "status": "refused",
        "principal": {"id": "id-eve", "name": "eve"},
        "source": "203.0.113.9/32",
        "requested_at": refusal["requested_at"],
        "call": "POST /knock",
        "right": "knock:targets",
        "detail": "may not open web",
    }


def a_grant(**rest: Any) -> Grant:
    """Decide on a grant of two targets, as long a text as the trail records with it."""
    targets = (
        Target("web", (Ports.parse("80/tcp"), Ports.parse("443/tcp")), ("sg-0b",)),
        Target("bastion", (Ports.parse("22/tcp"),), tuple(f"sg-{number:017x}" for number in range(200))),
    )
    return Grant.decide(
        Principal("k1", "Zoë"), "2001:db8::7/128", targets, NOW, NOW + timedelta(hours=8), nonce="n", **rest
    )


def shown(world: World, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(world.ok("trail", name, "--json").out)
    return entry


def test_what_the_functions_record_is_what_is_read_at_every_step_of_a_grant(world: World) -> None:
    """One truth: the functions write and read, and this program says the same.

    Break it: read another attribute, leave out a part of the input, or a status.
    """
    grant = a_grant(reason="on call 🚪" * 20, renews="alice_before")
    opened = [
        Opened(RuleKey("sg-0b", Ports.parse("443/tcp"), grant.source), "sgr-1", "web"),
        Opened(RuleKey("sg-0c", Ports.parse("22/tcp"), grant.source), "sgr-2", "bastion", foreign=True),
    ]
    steps: list[Callable[[], object]] = [
        lambda: world.trail.record(grant),
        lambda: world.trail.authorize(grant.id, NOW, opened, ["printer"]),
        lambda: world.trail.end(grant.id, "revoked", NOW, "ops", "laptop stolen"),
        lambda: world.trail.close(grant.id, NOW, "closer", ["sgr-1"], ["sg-0c/tcp/22/22/::/0"]),
    ]
    for step in steps:
        step()
        record = world.trail.get(grant.id)
        assert record
        entry = shown(world, grant.id)
        assert entry == {
            "kind": "grant",
            "id": grant.id,
            "status": record.status_at(datetime.now(timezone.utc)),
            "principal": grant.principal.as_json(),
            "source": grant.source,
            "requested_at": show_time(grant.requested_at),
            "expires_at": show_second(grant.expires_at),
            "authorized_at": show_time(record.authorized_at) if record.authorized_at else None,
            "ended_at": show_time(record.ended_at) if record.ended_at else None,
            "ended_by": record.ended_by or None,
            "end_reason": record.end_reason or None,
            "closed_at": show_time(record.closed_at) if record.closed_at else None,
            "reason": grant.reason,
            "renews": grant.renews,
            "targets": [target.as_json() for target in sorted(grant.targets, key=lambda one: one.name)],
            "rules": [rule.as_json() for rule in record.opened],
            "events": [event.as_json() for event in record.events],
        }
    assert len(entry["events"]) == 4
    assert entry["rules"] != []


def test_an_end_without_a_record_before_is_read_too(world: World) -> None:
    grant = a_grant()
    world.trail.end(grant.id, "failed", NOW, "knock", "PoolExhausted: full", grant)
    entry = shown(world, grant.id)
    assert (entry["status"], entry["end_reason"], entry["renews"]) == ("failed", "PoolExhausted: full", None)
    assert [target["name"] for target in entry["targets"]] == ["bastion", "web"]


def test_grants_and_refusals_are_told_in_one_order_of_time(world: World) -> None:
    """Break it: read one domain after the other."""
    for minutes in (50, 30, 10):
        world.record(at=NOW - timedelta(minutes=minutes))
        world.refuse(f"refusal_{minutes}", at=NOW - timedelta(minutes=minutes - 5))
    kinds = [json.loads(line)["kind"] for line in world.ok("trail", "--json").out.splitlines()]
    assert kinds == ["grant", "refusal"] * 3


def test_a_domain_that_is_not_asked_for_is_not_read(world: World, three: list[str]) -> None:
    world.sdb.delete_domain(DomainName=REFUSALS)
    assert ids(world.ok("trail", "--kind", "grant", "--json")) == three[:3]
    assert world.run("trail").code == 1


def test_csv_has_a_line_a_grant_and_every_column(world: World, three: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(world.ok("trail", "--format", "csv").out)))
    assert [row["id"] for row in rows] == three
    assert (rows[0]["status"], rows[0]["end_reason"], rows[3]["detail"]) == (
        "revoked",
        "left the team",
        "may not open web",
    )


def test_events_are_a_line_each_with_their_details(world: World, three: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(world.ok("trail", "--events", "--format", "csv").out)))
    assert [row["event"] for row in rows] == [
        *("requested", "authorized", "revoked"),
        *("requested", "authorized"),
        *("requested", "authorized"),
        "refused",
    ]
    assert rows[2]["detail"] == "reason: left the team"
    assert rows[2]["by"] == "user/root"
    assert rows[-1]["detail"] == "call: POST /knock; detail: may not open web"
    assert "refused" in world.ok("trail", "--events").out


def test_the_table_says_who_from_where_to_what_and_why(world: World, three: list[str]) -> None:
    lines = world.ok("trail").out.splitlines()
    assert lines[0].split() == ["AT", "ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "BY", "WHY"]
    assert lines[1].endswith("user/root  left the team")
    assert lines[4].endswith("may not open web")


HOSTILE = '=HYPERLINK("x")\x1b[31m\r\n\u202e\u2028\x9b\ud83d'[:-1] + "\x07é😀"


def test_a_hostile_value_never_reaches_the_terminal_as_it_is(world: World) -> None:
    """Break it: print the values themselves. SimpleDB holds what XML can; the rest is in the test below."""
    put(
        world,
        "odd",
        kind="grant",
        state="live",
        requested_at="2026-11-23T00:00:00.000Z",
        order="2026-11-23T00:00:00.000Z odd",
        expires_at="2999-01-01T00:00:00Z",
        principal_name="=cmd|' /C calc'!A0",
        principal_id="x",
        source="203.0.113.7/32",
        reason="a\u202eb\u2028c\x85d\te",
        input_00="not json",
        target_name="wo\u202erd",
        event='["neither"]',
    )
    for command in (
        ["trail"],
        ["trail", "--events"],
        ["trail", "--format", "csv"],
        ["trail", "--json"],
        ["grants"],
    ):
        out = world.ok(*command).out
        assert not set(out) & set("\u202e\u2028\x85\t\x1b"), command
        assert "odd" in out
    (row,) = csv.DictReader(io.StringIO(world.ok("trail", "--format", "csv").out))
    assert row["principal"] == "'=cmd|' /C calc'!A0"
    (entry,) = [json.loads(line) for line in world.ok("trail", "--json").out.splitlines()]
    assert entry["reason"] == "a\u202eb\u2028c\x85d\te"
    assert entry["targets"] == [{"name": "wo\u202erd"}]
    assert entry["events"] == [{"unreadable": '["neither"]'}]


def test_what_steers_a_terminal_is_shown_as_an_escape_and_letters_stay() -> None:
    shown = output.visible(HOSTILE)
    assert shown == '=HYPERLINK("x")\\x1b[31m\\r\\n\\u202e\\u2028\\x9b\\x07é😀'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "\\t=1"),
        ("\uff1d1", "'\uff1d1"),
        ("1-1", "1-1"),
        ("a,b", "a,b"),
    ],
)
def test_a_csv_cell_that_a_spreadsheet_would_calculate_is_quoted(value: str, written: str) -> None:
    assert output.cell(value) == written
    (row,) = list(csv.reader(io.StringIO(next(iter(list(output.csv_lines([[value]], ["h"]))[1:])))))
    assert row == [written]


def test_a_table_chooses_its_widths_by_the_first_hundred_rows_and_streams_the_rest() -> None:
    seen: list[int] = []

    def rows() -> Any:
        for number in range(1000):
            seen.append(number)
            yield (number, "x" * number)

    lines = output.table(rows(), ("N", "TEXT"))
    assert next(lines) == "N   TEXT"
    assert len(seen) == 100
    assert sum(1 for _ in lines) == 1000


def test_a_trail_of_any_size_is_read_page_after_page_in_constant_memory(world: World) -> None:
    """Break it: collect the entries in a list, or ask without ConsistentRead."""
    asked: list[dict[str, Any]] = []

    class Client:
        pages = 40

        def select(self, **parameters: Any) -> dict[str, Any]:
            asked.append(parameters)
            item = [{"Name": "requested_at", "Value": "x" * 1000}]
            page = {"Items": [{"Name": f"item-{number}", "Attributes": item} for number in range(100)]}
            return page if len(asked) == self.pages else {**page, "NextToken": str(len(asked))}

    class Aws:
        def client(self, *_: str) -> Client:
            return Client()

    class Stack:
        aws = Aws()

        def setting(self, name: str) -> str:
            return f"a`{name}"

    entries = simpledb.select(Stack(), simpledb.TRAIL, ["`kind` = 'grant'"], "`order`")  # type: ignore[arg-type]
    next(entries)
    assert len(asked) == 1
    tracemalloc.start()
    count = 1 + sum(1 for _ in entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 2_000_000, "a page is 100 kB, all of them 4 MB"
    assert all(call["ConsistentRead"] is True for call in asked)
    assert [call.get("NextToken") for call in asked] == [None, *(str(n) for n in range(1, 40))]
    assert asked[0]["SelectExpression"].startswith("select * from `a``TRAIL_DOMAIN` where")


def test_grants_lists_the_live_ones_newest_first(world: World, three: list[str]) -> None:
    over = world.record("carol", at=NOW - timedelta(hours=9))
    assert [grant["id"] for grant in world.ok("grants", "--json").json["grants"]] == [three[2], three[1]]
    lines = world.ok("grants").out.splitlines()
    assert lines[0].split() == [
        "ID",
        "STATUS",
        "PRINCIPAL",
        "SOURCE",
        "TARGETS",
        "LEFT",
        "EXPIRES",
        "AT",
        "REASON",
    ]
    assert lines[1].split()[:5] == [three[2], "active", "alice", "203.0.113.7/32", "web"]
    assert over.id not in "".join(lines)


def test_grants_of_every_status_or_of_one(world: World, three: list[str]) -> None:
    over = world.record("carol", at=NOW - timedelta(hours=9))
    pending = world.record("dan", at=NOW, open_=False)
    seen = {
        grant["id"]: grant["status"]
        for grant in world.ok("grants", "--status", "all", "--json").json["grants"]
    }
    assert seen == {
        pending.id: "pending",
        three[2]: "active",
        three[1]: "active",
        three[0]: "revoked",
        over.id: "expired",
    }
    revoked = world.ok("grants", "--status", "revoked", "--json").json["grants"]
    assert [grant["id"] for grant in revoked] == [three[0]]
    chosen = world.ok(
        "grants", "--principal", "bob", "--source", "2001:db8::7", "--target", "bastion", "--json"
    )
    assert [grant["id"] for grant in chosen.json["grants"]] == [three[1]]
    assert "-" in world.ok("grants", "--status", "revoked").out.splitlines()[1].split()


def test_a_grant_whose_end_cannot_be_read_is_listed_all_the_same(world: World) -> None:
    put(world, "odd", kind="grant", state="live", order="2026 odd", expires_at="9999", authorized_at="x")
    assert world.ok("grants").out.splitlines()[1].split() == ["odd", "active", "?", "9999", "-"]
