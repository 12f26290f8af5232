"""`knock-admin trail copy`: history goes to the other store and back, whole, and twice is once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from grants.store import Values
from knock_admin import aws, genuine, trailcopy
from knock_admin.dynamodb import SETS, DynamoDb
from tests.clients.admin_support import (
    DOMAINS,
    LEDGER,
    REFUSALS,
    STORES,
    TRAIL,
    TRAIL_REGION,
    World,
    make_world,
    make_worlds,
)

world = pytest.fixture(make_world)
either = pytest.fixture(params=STORES)(make_worlds)

NOW = datetime.now(timezone.utc).replace(microsecond=0)


def close(world: World, grant: Any) -> None:
    world.trail.end(grant.id, "revoked", NOW, "ops", "done")
    world.trail.close(grant.id, NOW, "c", ["sgr-1"], [])


def record_history(world: World, *, closed: int = 4) -> str:
    """Record closed grants, one that lives, and refusals; give the id of the one that lives."""
    for number in range(closed):
        at = NOW - timedelta(hours=9, minutes=number)
        close(world, world.record("Zoë", at=at, reason="on call 🚪" * 20, renews="zoe_1"))
    for number in range(3):
        world.refuse(f"refusal_{number}", at=NOW - timedelta(minutes=number))
    world.claim("203.0.113.7/32")
    return world.record("bob").id


def held(world: World, name: str) -> dict[str, Values]:
    """Read all of a domain or table, whatever order its sets are in."""
    return {
        item: {attribute: tuple(sorted(texts)) for attribute, texts in values.items()}
        for item, values in world.store(name).query(())
    }


def summary(ran: Any) -> dict[str, tuple[int, int, int]]:
    return {one["kind"]: (one["found"], one["copied"], one["there_before"]) for one in ran.json["records"]}


def test_history_goes_over_whole_and_twice_is_once(either: World) -> None:
    """Break it: copy what is live, leave an attribute out, or write without a condition."""
    live = record_history(either)
    before = {name: held(either, name) for name in DOMAINS}
    either.change_store()
    words = ("trail", "copy", "--to", either.keeps)
    assert [
        call["parameters"]["times"] for call in either.ok(*words, "--dry-run", "--json").json["calls"]
    ] == [
        4,
        3,
    ]
    assert held(either, TRAIL) == {}
    ran = either.ok(*words, "--json")
    assert summary(ran) == {"grant": (4, 4, 0), "refusal": (3, 3, 0)}
    assert (ran.json["complete"], ran.json["records"][0]["not_closed"]) == (True, [live])
    assert held(either, TRAIL) == {name: values for name, values in before[TRAIL].items() if name != live}
    assert held(either, REFUSALS) == before[REFUSALS]
    assert held(either, LEDGER) == {}
    again = either.ok(*words)
    assert again.out.splitlines()[1].split() == ["grants", "4", "0", "4", "0", "0", "1"]
    assert f"not closed, and left where they are: {live}" in again.out
    assert "The ledger is not copied" in again.out
    assert summary(either.ok(*words, "--json")) == {"grant": (4, 0, 4), "refusal": (3, 0, 3)}
    assert [record.id for record in either.trail.page(limit=9).records] == sorted(
        (name for name in before[TRAIL] if name != live), key=lambda name: before[TRAIL][name]["order"]
    )[::-1]


def test_what_is_copied_back_is_what_it_was_and_sets_are_sets(world: World) -> None:
    """Break it: write `event` as a text where a grant has one."""
    record_history(world)
    before = held(world, TRAIL)
    world.change_store()
    world.ok("trail", "copy", "--to", "dynamodb")
    for item in world.dynamodb.scan(TableName=world.named(TRAIL))["Items"]:
        assert {name for name, value in item.items() if "SS" in value} == SETS
    world.sdb.delete_domain(DomainName=TRAIL)
    world.change_store()
    world.ok("trail", "copy", "--to", "simpledb")
    assert held(world, TRAIL) == {name: one for name, one in before.items() if one["closed_at"] != ("-",)}


def test_a_record_that_the_stack_has_made_since_stands(either: World) -> None:
    """Break it: write without the condition, or take another record for the same."""
    over = either.record("alice", at=NOW - timedelta(hours=9))
    close(either, over)
    either.change_store()
    either.trail.record(over)
    either.trail.end(over.id, "failed", NOW, "knock", "found")
    ran = either.ok("trail", "copy", "--to", either.keeps, "--json")
    assert (ran.json["records"][0]["different"], ran.json["records"][0]["copied"]) == ([over.id], 0)
    assert (record := either.trail.get(over.id)) is not None
    assert record.end_reason == "found"
    assert f"left as they are there: {over.id}" in either.ok("trail", "copy", "--to", either.keeps).out


def test_what_was_written_since_the_look_is_left_as_it_is(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: write without a condition in either store."""
    over = either.record("alice", at=NOW - timedelta(hours=9))
    close(either, over)
    either.change_store()
    either.trail.record(over)
    look = trailcopy._paired
    # The record came between the look at the list and the write.
    monkeypatch.setattr(
        trailcopy, "_paired", lambda tally: ((name, values, None) for name, values, _ in look(tally))
    )
    ran = either.ok("trail", "copy", "--to", either.keeps, "--json")
    assert ran.json["records"][0]["different"] == [over.id]
    assert held(either, TRAIL)[over.id]["state"] == ("live",)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the n-th write fail before it is sent, with an error."""

    def stop(number: int, error: Exception) -> None:
        real = aws.Aws._hold_back
        seen = 0

        def hold_back(self: Any, model: Any, context: Any, **rest: Any) -> Any:
            nonlocal seen
            seen += not context["knock_call"].reads
            if not context["knock_call"].reads and seen == number:
                raise error
            return real(self, model=model, context=context, **rest)

        monkeypatch.setattr(aws.Aws, "_hold_back", hold_back)

    return stop


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "P"),
            1,
            "dynamodb:PutItem",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_copy_that_was_stopped_goes_on(
    world: World, stopping: Any, error: Exception, code: int, said: str
) -> None:
    """Break it: stop for good at what is there already."""
    record_history(world)
    world.change_store()
    stopping(3, error)
    ran = world.run("trail", "copy", "--to", "dynamodb")
    assert (ran.code, said in ran.err) == (code, True), ran.err
    assert "PutItem {" not in ran.err, "what was copied is not listed call by call"
    assert len(held(world, TRAIL)) == 2
    assert summary(world.ok("trail", "copy", "--to", "dynamodb", "--json"))["grant"] == (4, 2, 2)


def test_an_item_that_cannot_be_written_is_named_and_the_others_are_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: let it end the copy, or be left out without a word."""
    record_history(world, closed=2)
    monkeypatch.setattr(genuine, "fault", lambda *_: None)
    odd = {"kind": "grant", "closed_at": "2026", "order": "2026 odd", "principal_id": ""}
    world.store(TRAIL).put("odd", odd)
    world.change_store()
    ran = world.run("trail", "copy", "--to", "dynamodb")
    assert ran.code == 1
    assert "NOT copied: odd: The DynamoDB table" in ran.out
    assert ran.out.endswith("Not all of it is there. Run the same command again: twice is once.\n")
    assert len(held(world, TRAIL)) == 2
    assert len(held(world, REFUSALS)) == 3


def test_what_is_lost_on_the_way_is_found_by_the_check(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break it: believe every answer."""
    record_history(world, closed=2)
    world.change_store()
    monkeypatch.setattr(DynamoDb, "add", lambda *_: True)
    ran = world.run("trail", "copy", "--to", "dynamodb", "--json")
    assert (ran.code, ran.json["complete"]) == (1, False)
    assert [len(one["missing"]) for one in ran.json["records"]] == [2, 3]


def test_what_a_list_does_not_show_yet_is_looked_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index lags behind: the condition of a write, and a look at the table, tell what is there."""
    record_history(world, closed=2)
    world.change_store()
    world.ok("trail", "copy", "--to", "dynamodb")
    real = DynamoDb.select

    def lag(store: DynamoDb, *rest: Any) -> Iterator[Any]:
        return iter(()) if world.named(TRAIL) in store.where else real(store, *rest)

    monkeypatch.setattr(DynamoDb, "select", lag)
    ran = world.ok("trail", "copy", "--to", "dynamodb", "--json")
    assert summary(ran)["grant"] == (2, 0, 2)


def test_how_far_it_has_come_is_told_on_a_terminal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record_history(world, closed=2)
    world.change_store()
    said: list[str] = []
    monkeypatch.setattr(trailcopy, "progress", said.append)
    monkeypatch.setattr(trailcopy, "TOLD_EACH", 1)
    world.ok("trail", "copy", "--to", "dynamodb")
    assert said[:2] == ["grants: 1 looked at, 0 copied", "grants: 2 looked at, 1 copied"]
    assert said[-1] == "refusals: checking"


# ---------------------------------------------------------------------------- what is not Knock's


INVENTED = "bob_198-51-100-7_20261101T000000Z_0000000000000000"


def test_a_record_that_is_not_as_knock_makes_it_is_named_and_not_copied(world: World) -> None:
    """Break it: copy what there is. One is invented, one says that it is closed and live."""
    record_history(world, closed=2)
    item = next(iter(held(world, TRAIL).items()))[1] | {"principal_name": ("bob",)}
    forge(world, INVENTED, item)
    live = world.record("carol").id
    world.store(TRAIL).put(
        live, {"closed_at": "2026-01-01T00:00:00.000Z", "expires_at": "2099-01-01T00:00:00Z"}
    )
    forge(world, "refusal_odd", {"kind": ("refusal",), "order": ("2026 refusal_odd",)}, REFUSALS)
    world.change_store()
    words = ("trail", "copy", "--to", "dynamodb")
    assert f"not as Knock records it, and not copied: {INVENTED}" in world.ok(*words, "--dry-run").err
    for _ in range(2):
        ran = world.run(*words, "--json")
        assert (ran.code, ran.json["complete"]) == (1, False)
        failed = [one["failed"] for one in ran.json["records"]]
        assert [sorted(one) for one in failed] == [sorted([INVENTED, live]), ["refusal_odd"]]
        assert failed[0][live] == "it is no grant as Knock records it: its input has another expires_at"
        assert set(held(world, TRAIL)) & {INVENTED, live} == set()
        assert len(held(world, TRAIL)) == 2
    assert f"NOT copied: {INVENTED}: it is no grant as Knock records it: " in world.run(*words).out


def forge(world: World, name: str, values: Any, domain: str = TRAIL) -> None:
    """Put an item as whoever may write the domain can."""
    attributes = [{"Name": key, "Value": text} for key, texts in values.items() for text in texts]
    world.sdb.put_attributes(DomainName=domain, ItemName=name, Attributes=attributes)


def test_each_thing_that_the_digest_or_the_shape_tells_is_told(world: World) -> None:
    """Break it: leave out any of the checks of `genuine.py`."""
    grant = world.record("Zoë", at=NOW - timedelta(hours=9), reason="on call 🚪" * 20, renews="zoe_1")
    close(world, grant)
    world.refuse("refusal_1", at=NOW)
    (name, item), *_ = held(world, TRAIL).items()
    (_, refusal), *_ = held(world, REFUSALS).items()
    assert genuine.fault("grant", name, item, NOW) is None
    assert genuine.fault("refusal", "refusal_1", refusal, NOW) is None
    asked = "".join(item[key][0] for key in sorted(item) if key.startswith("input_"))
    parts = {key: ("",) for key in item if key.startswith("input_")}
    far = (NOW + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"principal_name": ("bob",)}, "has another principal_name"),
        ({"principal_id": ("",)}, "its principal_id is empty"),
        ({"source": ("0.0.0.0/0",)}, "has another source"),
        ({"reason": ("none",)}, "has another reason"),
        ({"renews": ("other",)}, "has another renews"),
        ({"expires_at": ("2099-01-01T00:00:00Z",)}, "has another expires_at"),
        ({"target_name": ("web",)}, "other targets"),
        ({"state": ("live",)}, "its state is 'live'"),
        ({"state": ("open",)}, "its state is 'open'"),
        ({"state": ("revoked", "live")}, "state has several values"),
        ({"closed_at": ("x",)}, "its closed_at is 'x', which is no time"),
        ({"closed_at": (far,)}, "which is yet to come"),
        ({"closed_at": ("2026-01-01T00:00:00Z",)}, "before it was asked for"),
        ({"ended_at": None}, "'ended_at' is missing"),
        ({"authorized_at": ("soon",)}, "its authorized_at is 'soon'"),
        ({"order": ("2026",)}, "its `order` is '2026'"),
        ({"event": ("[]",)}, ""),
        ({"event": ('{"at": "2026-01-01T00:00:00Z", "event": 1}',)}, "an event has no name"),
        ({"rule": ('{"rule": "sgr-1"}',)}, "'group' is missing"),
        ({"rule": ('{"rule": "sgr-1", "group": 1, "ports": "", "target": ""}',)}, "a rule is not written"),
        (parts, "its input cannot be read"),
        (parts | {"input_00": (asked.replace('"nonce":""', '"nonce":"1"'),)}, "is not the digest of its"),
        (parts | {"input_00": (asked.replace("sg-0a", "sg-0b"),)}, "is not the digest of its input"),
        (parts | {"input_00": (asked.replace(name, INVENTED),)}, f"that of '{INVENTED}'"),
    ]  # fmt: skip
    for change, said in cases:
        altered = {key: texts for key, texts in (item | change).items() if texts is not None}
        fault = genuine.fault("grant", name, altered, NOW) or "nothing"
        assert fault.startswith("it is no grant as Knock records it: "), (change, fault)
        assert said in fault, (change, fault)
    other = name.replace("Zo", "Al")
    moved = {key: tuple(text.replace(name, other) for text in texts) for key, texts in item.items()}
    assert "is not the digest" in str(genuine.fault("grant", other, moved, NOW)), "who it names counts"
    for key in ("call", "principal_id", "requested_at"):
        without = {name: texts for name, texts in refusal.items() if name != key}
        assert f"'{key}' is missing" in str(genuine.fault("refusal", "refusal_1", without, NOW))
    assert "its id is none" in str(genuine.fault("refusal", "a\nb", refusal, NOW))


# ---------------------------------------------------------------------------- which is the source


def test_a_copy_goes_where_the_stack_keeps_its_trail(world: World) -> None:
    ran = world.run("trail", "copy", "--to", "dynamodb")
    assert (ran.code, "keeps its trail in SimpleDB, so a copy goes there" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("others", "words", "code", "said"),
    [
        (
            ["knock-trail-0badf00d"],
            [],
            2,
            "knock-trail-0badf00d in eu-west-1, knock-trail-1c2fa620 in eu-west-1",
        ),
        (["knock-trail-0badf00d"], ["--from-trail", TRAIL], 0, ""),
        (["knock-trail-0badf00d"], ["--from-trail", TRAIL, "--from-region", TRAIL_REGION], 0, ""),
        (["knock-trail-of-another", "knock-two-trail-0badf00d"], [], 0, ""),
        ([], ["--from-region", "us-east-1"], 2, "There is: none that looks like it"),
        ([], ["--from-trail", "another"], 2, "Name it with --from-trail"),
        (
            [],
            ["--from-trail", "gone", "--from-region", TRAIL_REGION],
            1,
            "There is no SimpleDB domain gone in eu-west-1",
        ),
    ],
)
def test_the_source_is_found_by_its_name_or_named(
    world: World, others: list[str], words: list[str], code: int, said: str
) -> None:
    """Break it: take the first that is found."""
    for name in others:
        world.sdb.create_domain(DomainName=name)
    world.change_store()
    ran = world.run("trail", "copy", "--to", "dynamodb", *words)
    assert (ran.code, said in ran.err) == (code, True), ran.err
    if code == 2:
        assert ran.out == ""


def test_who_may_not_look_for_the_source_is_told_that_it_can_be_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_aws: Any, context: Any, **_: Any) -> None:
        if context["knock_call"].name == "sdb:ListDomains":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListDomains")

    world.change_store()
    monkeypatch.setattr(aws.Aws, "_hold_back", deny)
    ran = world.run("trail", "copy", "--to", "dynamodb")
    assert (ran.code, "Your credentials need sdb:ListDomains." in ran.err) == (1, True)
    assert "Named with --from-trail, --from-refusals and --from-region, it need not" in ran.err
    named = ("--from-trail", TRAIL, "--from-refusals", REFUSALS, "--from-region", TRAIL_REGION)
    world.ok("trail", "copy", "--to", "dynamodb", *named)


def test_a_table_is_found_as_cloudformation_names_it(world: World) -> None:
    fits = trailcopy._fits
    assert fits("knock", "dynamodb", "grant", "knock-TrailTable-1ABC23DEF4GH5")
    assert fits("knock", "dynamodb", "refusal", "knock-RefusalsTable-1ABC23DEF4GH5")
    assert not fits("knock", "dynamodb", "grant", "knock-two-TrailTable-1ABC23DEF4GH5")
    assert not fits("knock", "dynamodb", "grant", "knock-LedgerTable-1ABC23DEF4GH5")
    ran = world.run("trail", "copy", "--to", "simpledb")
    assert (ran.code, "Which DynamoDB table held the grants" in ran.err) == (2, True)


def test_a_table_of_another_shape_is_refused_before_anything_is_written(world: World) -> None:
    """Break it: see what becomes of it."""
    record_history(world)
    world.change_store()
    world.dynamodb.update_table(TableName=world.named(REFUSALS), DeletionProtectionEnabled=False)
    world.dynamodb.delete_table(TableName=world.named(REFUSALS))
    world.dynamodb.create_table(
        TableName=world.named(REFUSALS),
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    ran = world.run("trail", "copy", "--to", "dynamodb")
    assert (ran.code, "is no table of Knock's: its key is not `name`" in ran.err) == (1, True)
    assert held(world, TRAIL) == {}
