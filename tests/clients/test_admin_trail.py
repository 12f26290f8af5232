"""`knock-admin trail` and `grants`: filters, formats, stores, and hostile values."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from grants.values import Grant, Opened, Ports, Principal, RuleKey, Target, show_second, show_time
from knock_admin import cli, dynamodb, output, stores, trail
from knock_admin.aws import Aws
from knock_admin.dynamodb import DynamoDb
from knock_admin.errors import AdminError
from knock_admin.simpledb import SimpleDb
from knock_admin.stores import Store, Where, equal
from tests.clients.admin_support import (
    LEDGER,
    REFUSALS,
    STORES,
    TRAIL,
    World,
    at,
    client,
    make_world,
    make_worlds,
)

world = pytest.fixture(make_world)
either = pytest.fixture(params=STORES)(make_worlds)
"""A world with one store, and with the other."""

NOW = datetime.now(timezone.utc).replace(microsecond=0)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the program's clock at NOW, from which a filter such as 150m counts."""
    at(monkeypatch, NOW)


def ids(result: Any) -> list[str]:
    return [json.loads(line)["id"] for line in result.out.splitlines()]


def put(world: World, name: str, domain: str = TRAIL, **values: str) -> None:
    """Write an item into a domain or table, also one that the functions would not write."""
    world.store(domain).put(name, values)


@pytest.fixture
def recorded(world: World) -> list[str]:
    return record_entries(world)


def record_entries(world: World) -> list[str]:
    """Record three grants and a refusal, an hour apart; give their ids."""
    first = world.record("alice", at=NOW - timedelta(hours=3))
    second = world.record("bob", at=NOW - timedelta(hours=2), source="2001:db8::7/128")
    third = world.record("alice", at=NOW - timedelta(hours=1), target="web")
    world.trail.end(first.id, "revoked", NOW - timedelta(minutes=170), "user/root", "left the team")
    world.refuse(at=NOW)
    return [first.id, second.id, third.id, "refusal_1"]


def test_the_trail_is_everything_oldest_first(world: World, recorded: list[str]) -> None:
    assert ids(world.ok("trail", "--format", "jsonl")) == recorded
    assert ids(world.ok("trail", "--json")) == recorded


def filters() -> list[tuple[list[str], list[int]]]:
    """Give filters, each with which of the four entries it chooses."""
    return [
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
        (["--since", "1h", "--until", "2h"], []),
        (["--since", "10m", "--principal", "bob"], []),
        (["--kind", "refusal", "--principal", "bob"], []),
    ]


def test_filters_choose_and_an_id_shows_one_entry(either: World) -> None:
    """Break it: compare times with `>`, or leave one bound out of the query of DynamoDB's index."""
    recorded = record_entries(either)
    for options, chosen in filters():
        assert ids(either.ok("trail", "--json", *options)) == [recorded[index] for index in chosen], options
    for name in recorded:
        assert ids(either.ok("trail", name, "--json")) == [name]
    live = [grant["id"] for grant in either.ok("grants", "--json").json["grants"]]
    assert live == [recorded[2], recorded[1]]
    command = ["grants", "--status", "all", "--principal", "alice", "--target", "web", "--json"]
    assert [grant["id"] for grant in either.ok(*command).json["grants"]] == [recorded[2]]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trail", "--principal", "nobody"], "has the principal nobody: no grant and no refusal, ever"),
        (["trail", "--principal", "nobody", "--format", "csv"], "has the principal nobody"),
        (["trail", "--principal", "alice", "--target", "wbe"], "has the target wbe"),
        (["trail", "--target", ""], "has the target "),
        (["trail", "--source", "192.0.2.1", "--events"], "has the source 192.0.2.1/32"),
        (["trail", "alice_1"], "has the id alice_1"),
        (["trail", "--open-at", "1m", "--target", "wbe"], "has the target wbe"),
        (["grants", "--principal", "nobody"], "has the principal nobody"),
        (["revoke", "--principal", "nobody", "--yes"], "has the principal nobody"),
    ],
)
def test_a_name_that_is_nowhere_on_record_is_an_error_and_no_empty_table(
    world: World, recorded: list[str], command: list[str], message: str
) -> None:
    """Break it: show an empty table for it."""
    result = world.run(*command)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"Nothing on record {message}" in result.err


def test_a_name_on_record_that_the_other_filters_exclude_gives_an_empty_table(
    world: World, recorded: list[str]
) -> None:
    revoked = recorded[0]
    assert world.ok("trail", "--principal", "bob", "--since", "1h").out.count("\n") == 1
    assert world.ok("grants", "--principal", "eve").out.count("\n") == 1
    assert world.ok("grants", "--source", "203.0.113.7", "--target", "bastion").out.count(revoked) == 0


def test_the_two_words_of_a_command_are_names_where_names_are_expected() -> None:
    """Break it: join the two words wherever they are."""
    parser = cli.make_parser()
    assert parser.parse_args(["key", "ls", "trail", "copy"]).name == ["trail", "copy"]
    assert parser.parse_args(["--json", "trail", "copy", "--to", "dynamodb"]).run == "trail_commands:copy"
    assert parser.parse_args(["--stack", "trail", "trail", "x"]).id == "x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alice_1", "--principal", "alice"], "An id names one entry"),
        (["alice_1", "--since", "1d"], "An id names one entry"),
        (["--kind", "refusal", "--target", "web"], "No refusal has a target"),
    ],
)
def test_filters_that_make_no_sense_together_are_a_usage_error(
    world: World, words: list[str], message: str
) -> None:
    result = world.run("trail", *words)
    assert (result.code, message in result.err) == (2, True)


def test_no_value_is_read_as_a_part_of_the_query(either: World) -> None:
    """Break it: return `'{value}'` from quote."""
    record_entries(either)
    for hostile in ("x' or `kind` = 'grant", "' or itemName() like '%", "`", "x'; --", "''", ":k or 1"):
        for words in ([hostile], ["--principal", hostile], ["--target", hostile]):
            result = either.run("trail", "--json", *words)
            assert (result.code, result.out) == (1, ""), words
    assert ids(either.ok("trail", "--json", "--principal", "alice")) != []


def test_a_part_of_a_targets_name_is_not_its_name(either: World) -> None:
    """Break it: ask DynamoDB whether a text contains another."""
    either.record(target="bastion2")
    put(either, "by hand", kind="grant", state="live", closed_at="-", order="2026 x", target_name="bastion3")
    assert either.run("trail", "--target", "bastion").code == 1
    assert ids(either.ok("trail", "--json", "--target", "bastion3")) == ["by hand"]


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
    result = world.run("trail", *bad)
    assert (result.code, result.err.startswith("knock-admin: ")) == (2, True)


def test_json_has_the_shape_the_api_gives_a_grant(world: World, recorded: list[str]) -> None:
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


def a_grant(**more: Any) -> Grant:
    """Decide on a grant of two targets, as long a text as the trail records with it."""
    targets = (
        Target("web", (Ports.parse("80/tcp"), Ports.parse("443/tcp")), ("sg-0b",)),
        Target("bastion", (Ports.parse("22/tcp"),), tuple(f"sg-{number:017x}" for number in range(200))),
    )
    return Grant.decide(
        Principal("k1", "Zoë"), "2001:db8::7/128", targets, NOW, NOW + timedelta(hours=8), nonce="n", **more
    )


def entry_of(world: World, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(world.ok("trail", name, "--json").out)
    return entry


def test_an_entry_is_what_the_functions_read_at_every_step_of_a_grant(either: World) -> None:
    """This program shows what the functions' own reader gives.

    Break it: read another attribute, leave out a part of the input, or a status.
    """
    grant = a_grant(reason="on call 🚪" * 20, renews="alice_before")
    opened = [
        Opened(RuleKey("sg-0b", Ports.parse("443/tcp"), grant.source), "sgr-1", "web"),
        Opened(RuleKey("sg-0c", Ports.parse("22/tcp"), grant.source), "sgr-2", "bastion", foreign=True),
    ]
    steps: list[Callable[[], object]] = [
        lambda: either.trail.record(grant),
        lambda: either.trail.authorize(grant.id, NOW, opened, ["printer"]),
        lambda: either.trail.end(grant.id, "revoked", NOW, "ops", "laptop stolen"),
        lambda: either.trail.close(grant.id, NOW, "closer", ["sgr-1"], ["sg-0c/tcp/22/22/::/0"]),
    ]
    for step in steps:
        step()
        record = either.trail.get(grant.id)
        assert record
        entry = entry_of(either, grant.id)
        assert entry == {
            "kind": "grant",
            "id": grant.id,
            "status": record.status_at(NOW),
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
            "targets": [target.as_json() for target in sorted(grant.targets, key=lambda target: target.name)],
            "rules": [rule.as_json() for rule in record.opened],
            "events": [event.as_json() for event in record.events],
        }
    assert len(entry["events"]) == 4
    assert entry["rules"] != []


def test_a_grant_of_which_only_the_end_was_recorded_is_shown(world: World) -> None:
    grant = a_grant()
    world.trail.end(grant.id, "failed", NOW, "knock", "PoolExhausted: full", grant)
    entry = entry_of(world, grant.id)
    assert (entry["status"], entry["end_reason"], entry["renews"]) == ("failed", "PoolExhausted: full", None)
    assert [target["name"] for target in entry["targets"]] == ["bastion", "web"]


def test_grants_and_refusals_are_listed_in_one_order_of_time(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: read one domain after the other, or a table without an index unsorted."""
    monkeypatch.setattr(dynamodb, "SORTED_IN_MEMORY", 2)  # so that most items are sorted on disk
    for minutes in (50, 40, 30, 20, 10):
        either.record(at=NOW - timedelta(minutes=minutes))
        either.refuse(f"refusal_{minutes}", at=NOW - timedelta(minutes=minutes - 5))
    entries = [json.loads(line) for line in either.ok("trail", "--json").out.splitlines()]
    assert [entry["kind"] for entry in entries] == ["grant", "refusal"] * 5
    assert [entry["requested_at"] for entry in entries] == sorted(entry["requested_at"] for entry in entries)
    assert entries[1]["call"] == "POST /knock"


def test_a_domain_that_the_filters_exclude_is_not_read(world: World, recorded: list[str]) -> None:
    world.sdb.delete_domain(DomainName=REFUSALS)
    assert ids(world.ok("trail", "--kind", "grant", "--json")) == recorded[:3]
    assert world.run("trail").code == 1


def test_csv_has_a_line_a_grant_and_every_column(world: World, recorded: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(world.ok("trail", "--format", "csv").out)))
    assert [row["id"] for row in rows] == recorded
    assert (rows[0]["status"], rows[0]["end_reason"], rows[3]["detail"]) == (
        "revoked",
        "left the team",
        "may not open web",
    )


def test_events_are_a_line_each_with_their_details(world: World, recorded: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(world.ok("trail", "--events", "--format", "csv").out)))
    assert [row["event"] for row in rows] == [
        *("requested", "authorized", "revoked"),
        *("requested", "authorized"),
        *("requested", "authorized"),
        "refused",
    ]
    assert [json.loads(line) for line in world.ok("trail", "--events", "--json").out.splitlines()] == rows
    assert rows[2]["detail"] == "reason: left the team"
    assert rows[2]["by"] == "user/root"
    assert rows[-1]["detail"] == "call: POST /knock; detail: may not open web"
    assert "refused" in world.ok("trail", "--events").out


def test_events_are_listed_in_order_of_time_and_not_grant_by_grant(world: World) -> None:
    """Break it: list the events grant by grant, or expect the functions' clocks to agree."""
    long = world.record("alice", at=NOW - timedelta(hours=5))
    short = world.record("bob", at=NOW - timedelta(hours=4))
    world.trail.end(short.id, "revoked", NOW - timedelta(hours=3), "ops", "")
    world.refuse(at=NOW - timedelta(hours=2))
    late = world.record("carol", at=NOW - timedelta(hours=1), open_=False)
    world.trail.authorize(late.id, NOW - timedelta(hours=1, seconds=2), [])  # by a clock that is slow
    world.trail.end(long.id, "revoked", NOW - timedelta(minutes=30), "ops", "")
    rows = [json.loads(line) for line in world.ok("trail", "--events", "--json").out.splitlines()]
    assert [(row["event"], row["principal"]) for row in rows] == [
        ("requested", "alice"),
        ("authorized", "alice"),
        ("requested", "bob"),
        ("authorized", "bob"),
        ("revoked", "bob"),
        ("refused", "eve"),
        ("authorized", "carol"),
        ("requested", "carol"),
        ("revoked", "alice"),
    ]


def test_events_are_sorted_while_entries_are_read() -> None:
    """Break it: read all entries before sorting their events."""
    read = 0

    def entries() -> Any:
        nonlocal read
        for minutes in range(1000):
            read += 1
            time = show_time(NOW + timedelta(minutes=minutes))
            event = json.dumps({"at": time, "event": "requested", "by": "alice"})
            yield trail.Entry(f"g{minutes}", {"requested_at": (time,), "event": (event,)})

    rows = trail.in_order_of_time(entries())
    assert next(rows)[3] == "g0"
    assert read < 5
    assert sum(1 for _ in rows) == 999


def test_the_table_says_who_from_where_to_what_and_why(world: World, recorded: list[str]) -> None:
    lines = world.ok("trail").out.splitlines()
    assert lines[0].split() == ["AT", "ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "BY", "WHY"]
    assert lines[1].endswith("user/root  left the team")
    assert lines[4].endswith("may not open web")


HOSTILE = '=HYPERLINK("x")\x1b[31m\r\n\u202e\u2028\x9b\ud83d'[:-1] + "\x07é😀"


def test_a_hostile_value_never_reaches_the_terminal_unescaped(world: World) -> None:
    """Break it: print values unescaped. SimpleDB holds XML's characters; a test below has the others."""
    put(
        world,
        "odd",
        kind="grant",
        state="live",
        closed_at="-",
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


def test_a_hostile_value_in_an_error_is_escaped(world: World) -> None:
    """Break it: print an error, a warning, or a line outside tables unescaped."""
    hostile = "a\x1b[31m\u202eb"
    for command in (["trail", hostile], ["trail", "--principal", hostile], ["key", "rm", hostile]):
        result = world.run(*command)
        assert (result.code, result.out) == (1, "")
        assert not set(result.err) & set("\x1b\u202e"), command
        assert "a\\x1b[31m\\u202eb" in result.err
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    change = {"op": "replace", "path": "/name", "value": "x\x1b\ny"}
    world.gateway.update_usage_plan(usagePlanId=plan, patchOperations=[change])
    result = world.run("key", "ls")
    assert (result.code, "There are: x\\x1b\\ny" in result.err) == (1, True)


def test_control_characters_are_escaped_and_letters_are_not() -> None:
    text = output.visible(HOSTILE)
    assert text == '=HYPERLINK("x")\\x1b[31m\\r\\n\\u202e\\u2028\\x9b\\x07é😀'


@pytest.mark.parametrize(
    ("value", "cell"),
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
        ("a;=1+1", "a;'=1+1"),
        ("a,,+1", "a,,'+1"),
        ("a| @SUM(A1)", "a|' @SUM(A1)"),
        ('a;"=1"', 'a;\'"=1"'),
        ("a\n=1", "a\\n=1"),
        ("on call -1", "on call '-1"),
        ("a \uff0b1", "a '\uff0b1"),
        ("x='=1", "x='=1"),
    ],
)
def test_a_csv_cell_that_a_spreadsheet_would_calculate_is_quoted(value: str, cell: str) -> None:
    assert output.cell(value) == cell
    (row,) = list(csv.reader(io.StringIO(next(iter(list(output.csv_lines([[value]], ["h"]))[1:])))))
    assert row == [cell]


def test_a_table_chooses_its_widths_by_the_first_hundred_rows_and_streams_the_rest() -> None:
    read: list[int] = []

    def rows() -> Any:
        for number in range(1000):
            read.append(number)
            yield (number, "x" * number)

    lines = output.table(rows(), ("N", "TEXT"))
    assert next(lines) == "N   TEXT"
    assert len(read) == 100
    assert sum(1 for _ in lines) == 1000


class Pages:
    """Answers with 40 pages of 100 items, as SimpleDB and as DynamoDB."""

    pages = 40

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def client(self, *_: str) -> Pages:
        return self

    def select(self, **parameters: Any) -> dict[str, Any]:
        self.requests.append(parameters)
        item = [{"Name": "order", "Value": "x" * 1000}]
        page = {"Items": [{"Name": f"item-{number}", "Attributes": item} for number in range(100)]}
        return page if len(self.requests) == self.pages else {**page, "NextToken": str(len(self.requests))}

    def query(self, **parameters: Any) -> dict[str, Any]:
        self.requests.append(parameters)
        item = {"order": {"S": "x" * 1000}}
        page = {"Items": [{"name": {"S": f"item-{number}"}, **item} for number in range(100)]}
        return (
            page
            if len(self.requests) == self.pages
            else {**page, "LastEvaluatedKey": str(len(self.requests))}
        )


AWS = Pages()
READERS: list[Store] = [
    SimpleDb(AWS, "r", "a`TRAIL"),  # type: ignore[arg-type]  # an Aws of this test's own
    DynamoDb(AWS, "r", "t", dynamodb.INDEXES),  # type: ignore[arg-type]  # the same
]


@pytest.mark.parametrize("store", READERS, ids=STORES)
def test_a_trail_of_any_size_is_read_page_after_page_in_constant_memory(store: Store) -> None:
    """Break it: collect the entries in a list, or ask without ConsistentRead."""
    requests = AWS.requests = []
    entries = store.select([equal("kind", "grant")], "ascending")
    next(entries)
    assert len(requests) == 1
    tracemalloc.start()
    count = 1 + sum(1 for _ in entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 2_000_000, "a page is 100 kB, all of them 4 MB"
    if isinstance(store, SimpleDb):
        assert all(call["ConsistentRead"] is True for call in requests)
        assert [call.get("NextToken") for call in requests] == [None, *(str(n) for n in range(1, 40))]
        assert requests[0]["SelectExpression"].startswith("select * from `a``TRAIL` where")
    else:
        assert {call["IndexName"] for call in requests} == {"by-kind"}


def test_a_table_without_an_index_is_sorted_in_either_direction_and_read_consistently(world: World) -> None:
    world.change_store()
    for number in (2, 3, 1):
        world.refuse(f"refusal_{number}", at=NOW - timedelta(minutes=number))
    put(world, "no order", REFUSALS, kind="refusal")
    table = DynamoDb(AccountClients(), "eu-central-1", world.named(REFUSALS), {})  # type: ignore[arg-type]  # the same
    for order, names in (("ascending", "321"), ("descending", "123")):
        items = table.select([equal("kind", "refusal")], order)  # type: ignore[arg-type]  # a literal
        assert [name for name, _ in items] == [f"refusal_{number}" for number in names]
    since = Where("order", ">", show_time(NOW - timedelta(minutes=2)))
    assert [name for name, _ in table.select([(since,)], "ascending")] == ["refusal_2", "refusal_1"]
    assert table.get("") == {}


def test_both_stores_include_or_exclude_the_ends_of_a_range(either: World) -> None:
    """Break it: forget that DynamoDB's BETWEEN includes both ends."""
    orders = [either.record(str(number), at=NOW - timedelta(hours=number)).order for number in (3, 2, 1)]
    first, middle, last = orders
    aws: Any = AccountClients()
    store: Store = SimpleDb(aws, "eu-west-1", TRAIL)
    if either.keeps == "dynamodb":
        store = DynamoDb(aws, "eu-central-1", either.named(TRAIL), dynamodb.INDEXES)
    ranges: list[tuple[list[Where], list[str]]] = [
        ([], orders),
        ([Where("order", ">=", middle)], [middle, last]),
        ([Where("order", ">", middle)], [last]),
        ([Where("order", "<=", middle)], [first, middle]),
        ([Where("order", "<", middle)], [first]),
        ([Where("order", ">=", first), Where("order", "<=", last)], orders),
        ([Where("order", ">", first), Where("order", "<", last)], [middle]),
        ([Where("order", ">", first), Where("order", ">=", last)], [last]),
        ([Where("order", ">", last), Where("order", "<", first)], []),
    ]
    for conditions, expected in ranges:
        for order in ("ascending", "descending"):
            items = store.select([equal("kind", "grant"), *((condition,) for condition in conditions)], order)  # type: ignore[arg-type]
            selected = [values["order"][0] for _, values in items]
            assert selected == (expected if order == "ascending" else expected[::-1]), (conditions, order)


def test_dynamodb_is_not_asked_for_a_range_that_ends_before_it_begins() -> None:
    """DynamoDB answers that with an error: the upper bound must be greater than or equal to the lower."""
    AWS.requests = []
    conditions = [(Where("order", ">", "2"),), (Where("order", "<", "1"),)]
    assert list(READERS[1].select([equal("kind", "grant"), *conditions], "ascending")) == []
    assert AWS.requests == []


class AccountClients:
    """An Aws with the clients of the account in this process."""

    def client(self, service: str, region: str) -> Any:
        return client(service, region)


def test_a_missing_table_or_one_of_another_shape_is_an_error(world: World, recorded: list[str]) -> None:
    """Break it: show botocore's error, or read items without a name."""
    world.change_store()
    for domain in (TRAIL, REFUSALS, LEDGER):
        world.dynamodb.update_table(TableName=world.named(domain), DeletionProtectionEnabled=False)
        world.dynamodb.delete_table(TableName=world.named(domain))
    for command in (["trail"], ["grants"], ["ledger", "203.0.113.7"], ["trail", "--kind", "refusal"]):
        result = world.run(*command)
        assert (result.code, result.out) == (1, "")
        assert "There is no DynamoDB table knock-" in result.err
    for domain in (TRAIL, REFUSALS):
        world.dynamodb.create_table(
            TableName=world.named(domain),
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        world.dynamodb.put_item(
            TableName=world.named(domain), Item={"id": {"S": "x"}, "kind": {"S": "refusal"}}
        )
    no_index, other_shape = "or it has no index by-", "is not of the shape that Knock's has"
    for command, message in (
        (["trail", "--kind", "grant"], no_index),
        (["grants"], no_index),
        (["trail", "x"], other_shape),
        (["trail", "--kind", "refusal"], other_shape),
    ):
        result = world.run(*command)
        assert (result.code, result.out) == (1, "")
        assert message in result.err, command
    findings = world.run("doctor", "--json").json["findings"]
    details = {finding["what"]: finding["detail"] for finding in findings if finding["level"] == "fail"}
    assert "There is no DynamoDB table" in details["ledger"]
    assert "its key is not `name`" in details["refusals"]


def test_the_doctor_checks_tables_as_it_checks_domains(world: World) -> None:
    """Break it: accept a table without deletion protection."""

    def findings_by_check() -> dict[tuple[str, str], str]:
        findings = world.run("doctor", "--json").json["findings"]
        kinds = ("trail", "ledger", "refusals")
        return {
            (finding["level"], finding["what"]): finding["detail"]
            for finding in findings
            if finding["what"] in kinds
        }

    world.change_store()
    world.record()
    healthy = findings_by_check()
    assert {level for level, _ in healthy} == {"ok"}
    assert f"{world.named(TRAIL)} in eu-central-1: 1 item, 0 MB" in healthy["ok", "trail"]
    for domain in (TRAIL, LEDGER, REFUSALS):
        world.dynamodb.update_table(TableName=world.named(domain), DeletionProtectionEnabled=False)
    off = {"PointInTimeRecoveryEnabled": False}
    world.dynamodb.update_continuous_backups(
        TableName=world.named(LEDGER), PointInTimeRecoverySpecification=off
    )
    unprotected = findings_by_check()
    assert "its deletion protection is off" in unprotected["warn", "trail"]
    assert "its point-in-time recovery is off" in unprotected["warn", "ledger"]
    world.store(LEDGER).put("203.0.113.8/32", {"parts": "1"})
    assert "203.0.113.8/32 cannot be read" in findings_by_check()["fail", "ledger"]


def test_a_missing_domain_is_an_error(world: World) -> None:
    world.sdb.delete_domain(DomainName=TRAIL)
    result = world.run("grants")
    assert (result.code, result.out) == (1, "")
    assert f"There is no SimpleDB domain {TRAIL} in eu-west-1" in result.err


@pytest.mark.parametrize(
    ("command", "permission"),
    [
        (["trail"], "dynamodb:Query"),
        (["trail", "--kind", "refusal"], "dynamodb:Scan"),
        (["ledger", "203.0.113.7"], "dynamodb:GetItem"),
    ],
)
def test_a_read_that_is_denied_names_the_permission(
    world: World, monkeypatch: pytest.MonkeyPatch, command: list[str], permission: str
) -> None:
    world.change_store()

    def deny(_aws: Aws, context: Any, **_: Any) -> None:
        if context["knock_call"].name.startswith("dynamodb:"):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "Denied")

    monkeypatch.setattr(Aws, "_hold_back", deny)
    result = world.run(*command)
    assert (result.code, result.out) == (1, "")
    assert f"Your credentials need {permission}." in result.err


def test_a_store_that_this_program_does_not_know_is_an_error(world: World) -> None:
    """Break it: treat any other name as SimpleDB."""
    functions = client("lambda")
    known = functions.get_function_configuration(FunctionName="knock-api")["Environment"]
    known["Variables"]["TRAIL_STORE"] = "dynamodb"
    functions.update_function_configuration(FunctionName="knock-api", Environment=known)
    result = world.run("trail")
    assert (result.code, "name as TRAIL_STORE: dynamodb, simpledb" in result.err) == (1, True)
    known["Variables"]["TRAIL_STORE"] = ""
    functions.update_function_configuration(FunctionName="knock-api", Environment=known)
    assert world.ok("trail", "--kind", "grant").out.startswith("AT ")
    with pytest.raises(AdminError, match="There is no store s3"):
        stores.at(None, "s3", "r", "n", listed=False)  # type: ignore[arg-type]  # no call is made


def test_grants_lists_the_live_ones_newest_first(world: World, recorded: list[str]) -> None:
    expired = world.record("carol", at=NOW - timedelta(hours=9))
    assert [grant["id"] for grant in world.ok("grants", "--json").json["grants"]] == [
        recorded[2],
        recorded[1],
    ]
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
    assert lines[1].split()[:5] == [recorded[2], "active", "alice", "203.0.113.7/32", "web"]
    assert expired.id not in "".join(lines)


def test_grants_of_every_status_or_of_one(world: World, recorded: list[str]) -> None:
    expired = world.record("carol", at=NOW - timedelta(hours=9))
    pending = world.record("dan", at=NOW, open_=False)
    statuses = {
        grant["id"]: grant["status"]
        for grant in world.ok("grants", "--status", "all", "--json").json["grants"]
    }
    assert statuses == {
        pending.id: "pending",
        recorded[2]: "active",
        recorded[1]: "active",
        recorded[0]: "revoked",
        expired.id: "expired",
    }
    revoked = world.ok("grants", "--status", "revoked", "--json").json["grants"]
    assert [grant["id"] for grant in revoked] == [recorded[0]]
    chosen = world.ok(
        "grants", "--principal", "bob", "--source", "2001:db8::7", "--target", "bastion", "--json"
    )
    assert [grant["id"] for grant in chosen.json["grants"]] == [recorded[1]]
    assert "-" in world.ok("grants", "--status", "revoked").out.splitlines()[1].split()


def test_a_grant_whose_end_cannot_be_read_is_listed_too(world: World) -> None:
    times = {"order": "2026 odd", "expires_at": "9999", "authorized_at": "x", "closed_at": "-"}
    put(world, "odd", kind="grant", state="live", **times)
    assert world.ok("grants").out.splitlines()[1].split() == ["odd", "active", "?", "9999", "-"]
