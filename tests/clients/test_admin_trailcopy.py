"""`knock-admin trail copy`: all history goes to the other store and back; a second run changes nothing."""

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
    """Record closed grants, a live one, and refusals; give the id of the live grant."""
    for number in range(closed):
        at = NOW - timedelta(hours=9, minutes=number)
        close(world, world.record("Zoë", at=at, reason="on call 🚪" * 20, renews="zoe_1"))
    for number in range(3):
        world.refuse(f"refusal_{number}", at=NOW - timedelta(minutes=number))
    world.claim("203.0.113.7/32")
    return world.record("bob").id


def items_of(world: World, name: str) -> dict[str, Values]:
    """Read all items of a domain or table, with the values of sets sorted."""
    return {
        item: {attribute: tuple(sorted(texts)) for attribute, texts in values.items()}
        for item, values in world.store(name).query(())
    }


def summary(result: Any) -> dict[str, tuple[int, int, int]]:
    return {
        counts["kind"]: (counts["found"], counts["copied"], counts["there_before"])
        for counts in result.json["records"]
    }


def test_history_is_copied_completely_and_a_second_run_changes_nothing(either: World) -> None:
    """Break it: copy live grants, leave an attribute out, or write without a condition."""
    live = record_history(either)
    before = {name: items_of(either, name) for name in DOMAINS}
    either.change_store()
    words = ("trail", "copy", "--to", either.keeps)
    assert [
        call["parameters"]["times"] for call in either.ok(*words, "--dry-run", "--json").json["calls"]
    ] == [
        4,
        3,
    ]
    assert items_of(either, TRAIL) == {}
    result = either.ok(*words, "--json")
    assert summary(result) == {"grant": (4, 4, 0), "refusal": (3, 3, 0)}
    assert (result.json["complete"], result.json["records"][0]["not_closed"]) == (True, [live])
    assert items_of(either, TRAIL) == {name: values for name, values in before[TRAIL].items() if name != live}
    assert items_of(either, REFUSALS) == before[REFUSALS]
    assert items_of(either, LEDGER) == {}
    again = either.ok(*words)
    assert again.out.splitlines()[1].split() == ["grants", "4", "0", "4", "0", "0", "1"]
    assert f"not closed, and left where they are: {live}" in again.out
    assert "The ledger is not copied" in again.out
    assert summary(either.ok(*words, "--json")) == {"grant": (4, 0, 4), "refusal": (3, 0, 3)}
    assert [record.id for record in either.trail.page(limit=9).records] == sorted(
        (name for name in before[TRAIL] if name != live), key=lambda name: before[TRAIL][name]["order"]
    )[::-1]


def test_a_copy_back_restores_the_items_and_sets_are_written_as_sets(world: World) -> None:
    """Break it: write `event` as a text where a grant has a single event."""
    record_history(world)
    before = items_of(world, TRAIL)
    world.change_store()
    world.ok("trail", "copy", "--to", "dynamodb")
    for item in world.dynamodb.scan(TableName=world.named(TRAIL))["Items"]:
        assert {name for name, value in item.items() if "SS" in value} == SETS
    world.sdb.delete_domain(DomainName=TRAIL)
    world.change_store()
    world.ok("trail", "copy", "--to", "simpledb")
    assert items_of(world, TRAIL) == {
        name: values for name, values in before.items() if values["closed_at"] != ("-",)
    }


def test_a_record_that_the_stack_has_made_since_is_not_overwritten(either: World) -> None:
    """Break it: write without the condition, or count a record that differs as copied before."""
    closed = either.record("alice", at=NOW - timedelta(hours=9))
    close(either, closed)
    either.change_store()
    either.trail.record(closed)
    either.trail.end(closed.id, "failed", NOW, "knock", "found")
    result = either.ok("trail", "copy", "--to", either.keeps, "--json")
    assert (result.json["records"][0]["different"], result.json["records"][0]["copied"]) == ([closed.id], 0)
    assert (record := either.trail.get(closed.id)) is not None
    assert record.end_reason == "found"
    assert f"left as they are there: {closed.id}" in either.ok("trail", "copy", "--to", either.keeps).out


def test_a_record_that_is_written_between_listing_and_copying_is_not_overwritten(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: write without a condition in either store."""
    closed = either.record("alice", at=NOW - timedelta(hours=9))
    close(either, closed)
    either.change_store()
    either.trail.record(closed)
    real_paired = trailcopy._paired
    # Hide the record from the listing: it is written between that and the copy.
    monkeypatch.setattr(
        trailcopy, "_paired", lambda tally: ((name, values, None) for name, values, _ in real_paired(tally))
    )
    result = either.ok("trail", "copy", "--to", either.keeps, "--json")
    assert result.json["records"][0]["different"] == [closed.id]
    assert items_of(either, TRAIL)[closed.id]["state"] == ("live",)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the n-th write fail before it is sent, with an error."""

    def stop(number: int, error: Exception) -> None:
        real = aws.Aws._hold_back
        writes = 0

        def hold_back(self: Any, model: Any, context: Any, **more: Any) -> Any:
            nonlocal writes
            writes += not context["knock_call"].reads
            if not context["knock_call"].reads and writes == number:
                raise error
            return real(self, model=model, context=context, **more)

        monkeypatch.setattr(aws.Aws, "_hold_back", hold_back)

    return stop


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "P"),
            1,
            "dynamodb:PutItem",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_copy_that_was_stopped_is_completed_by_running_it_again(
    world: World, stopping: Any, error: Exception, code: int, message: str
) -> None:
    """Break it: fail at a record that is there already."""
    record_history(world)
    world.change_store()
    stopping(3, error)
    result = world.run("trail", "copy", "--to", "dynamodb")
    assert (result.code, message in result.err) == (code, True), result.err
    assert "PutItem {" not in result.err, "copied records are not listed call by call"
    assert len(items_of(world, TRAIL)) == 2
    assert summary(world.ok("trail", "copy", "--to", "dynamodb", "--json"))["grant"] == (4, 2, 2)


def test_an_item_that_cannot_be_written_is_named_and_the_others_are_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: end the copy there, or leave the item out silently."""
    record_history(world, closed=2)
    monkeypatch.setattr(genuine, "fault", lambda *_: None)
    odd = {"kind": "grant", "closed_at": "2026", "order": "2026 odd", "principal_id": ""}
    world.store(TRAIL).put("odd", odd)
    world.change_store()
    result = world.run("trail", "copy", "--to", "dynamodb")
    assert result.code == 1
    assert "NOT copied: odd: The DynamoDB table" in result.out
    assert result.out.endswith(
        "Not all of it is there. Run the same command again: it copies only what is missing.\n"
    )
    assert len(items_of(world, TRAIL)) == 2
    assert len(items_of(world, REFUSALS)) == 3


def test_records_that_were_lost_on_the_way_are_found_by_the_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: count every record as copied whose write was answered."""
    record_history(world, closed=2)
    world.change_store()
    monkeypatch.setattr(DynamoDb, "add", lambda *_: True)
    result = world.run("trail", "copy", "--to", "dynamodb", "--json")
    assert (result.code, result.json["complete"]) == (1, False)
    assert [len(counts["missing"]) for counts in result.json["records"]] == [2, 3]


def test_a_record_that_an_index_does_not_list_yet_is_read_by_its_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index is eventually consistent; the condition of a write and a read by name are not."""
    record_history(world, closed=2)
    world.change_store()
    world.ok("trail", "copy", "--to", "dynamodb")
    real = DynamoDb.select

    def lag(store: DynamoDb, *conditions: Any) -> Iterator[Any]:
        return iter(()) if world.named(TRAIL) in store.where else real(store, *conditions)

    monkeypatch.setattr(DynamoDb, "select", lag)
    result = world.ok("trail", "copy", "--to", "dynamodb", "--json")
    assert summary(result)["grant"] == (2, 0, 2)


def test_progress_is_reported_by_kind_of_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record_history(world, closed=2)
    world.change_store()
    messages: list[str] = []
    monkeypatch.setattr(trailcopy, "progress", messages.append)
    monkeypatch.setattr(trailcopy, "TOLD_EACH", 1)
    world.ok("trail", "copy", "--to", "dynamodb")
    assert messages[:2] == ["grants: 1 looked at, 0 copied", "grants: 2 looked at, 1 copied"]
    assert messages[-1] == "refusals: checking"


# ---------------------------------------------------------------------------- records that are not Knock's


INVENTED = "bob_198-51-100-7_20261101T000000Z_0000000000000000"


def test_a_record_that_is_not_as_knock_makes_it_is_named_and_not_copied(world: World) -> None:
    """Break it: copy every item. One grant is invented, and a live one is marked as closed."""
    record_history(world, closed=2)
    item = next(iter(items_of(world, TRAIL).items()))[1] | {"principal_name": ("bob",)}
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
        result = world.run(*words, "--json")
        assert (result.code, result.json["complete"]) == (1, False)
        failed = [counts["failed"] for counts in result.json["records"]]
        assert [sorted(reasons) for reasons in failed] == [sorted([INVENTED, live]), ["refusal_odd"]]
        assert failed[0][live] == "it is no grant as Knock records it: its input has another expires_at"
        assert set(items_of(world, TRAIL)) & {INVENTED, live} == set()
        assert len(items_of(world, TRAIL)) == 2
    assert f"NOT copied: {INVENTED}: it is no grant as Knock records it: " in world.run(*words).out


def forge(world: World, name: str, values: Any, domain: str = TRAIL) -> None:
    """Put an item as anybody with write access to the domain can."""
    attributes = [{"Name": key, "Value": text} for key, texts in values.items() for text in texts]
    world.sdb.put_attributes(DomainName=domain, ItemName=name, Attributes=attributes)


def test_each_fault_of_a_record_is_named(world: World) -> None:
    """Break it: leave out any of the checks of `genuine.py`."""
    grant = world.record("Zoë", at=NOW - timedelta(hours=9), reason="on call 🚪" * 20, renews="zoe_1")
    close(world, grant)
    world.refuse("refusal_1", at=NOW)
    (name, item), *_ = items_of(world, TRAIL).items()
    (_, refusal), *_ = items_of(world, REFUSALS).items()
    assert genuine.fault("grant", name, item, NOW) is None
    assert genuine.fault("refusal", "refusal_1", refusal, NOW) is None
    input_text = "".join(item[key][0] for key in sorted(item) if key.startswith("input_"))
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
        ({"event": ("[]",)}, "list indices must be integers"),
        ({"event": ('{"at": "2026-01-01T00:00:00Z", "event": 1}',)}, "an event has no name"),
        ({"rule": ('{"rule": "sgr-1"}',)}, "'group' is missing"),
        ({"rule": ('{"rule": "sgr-1", "group": 1, "ports": "", "target": ""}',)}, "a rule is not written"),
        (parts, "its input cannot be read"),
        (parts | {"input_00": (input_text.replace('"nonce":""', '"nonce":"1"'),)}, "is not the digest of"),
        (parts | {"input_00": (input_text.replace("sg-0a", "sg-0b"),)}, "is not the digest of its input"),
        (parts | {"input_00": (input_text.replace(name, INVENTED),)}, f"that of '{INVENTED}'"),
    ]  # fmt: skip
    for change, message in cases:
        altered = {key: texts for key, texts in (item | change).items() if texts is not None}
        fault = genuine.fault("grant", name, altered, NOW) or "nothing"
        assert fault.startswith("it is no grant as Knock records it: "), (change, fault)
        assert message in fault, (change, fault)
    other_name = name.replace("Zo", "Al")
    moved = {key: tuple(text.replace(name, other_name) for text in texts) for key, texts in item.items()}
    assert "is not the digest" in str(genuine.fault("grant", other_name, moved, NOW)), (
        "the digest covers the principal's name"
    )
    for key in ("call", "principal_id", "requested_at"):
        without = {name: texts for name, texts in refusal.items() if name != key}
        assert f"'{key}' is missing" in str(genuine.fault("refusal", "refusal_1", without, NOW))
    assert "its id is malformed" in str(genuine.fault("refusal", "a\nb", refusal, NOW))


# ---------------------------------------------------------------------------- the source of a copy


def test_a_copy_to_a_store_that_the_stack_does_not_use_is_a_usage_error(world: World) -> None:
    result = world.run("trail", "copy", "--to", "dynamodb")
    assert (result.code, "keeps its trail in SimpleDB, so a copy goes there" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("domains", "words", "code", "message"),
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
    world: World, domains: list[str], words: list[str], code: int, message: str
) -> None:
    """Break it: take the first domain that matches."""
    for name in domains:
        world.sdb.create_domain(DomainName=name)
    world.change_store()
    result = world.run("trail", "copy", "--to", "dynamodb", *words)
    assert (result.code, message in result.err) == (code, True), result.err
    if code == 2:
        assert result.out == ""


def test_without_permission_to_list_domains_the_error_says_how_to_name_the_source(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_aws: Any, context: Any, **_: Any) -> None:
        if context["knock_call"].name == "sdb:ListDomains":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListDomains")

    world.change_store()
    monkeypatch.setattr(aws.Aws, "_hold_back", deny)
    result = world.run("trail", "copy", "--to", "dynamodb")
    assert (result.code, "Your credentials need sdb:ListDomains." in result.err) == (1, True)
    assert "Named with --from-trail, --from-refusals and --from-region, it need not" in result.err
    named = ("--from-trail", TRAIL, "--from-refusals", REFUSALS, "--from-region", TRAIL_REGION)
    world.ok("trail", "copy", "--to", "dynamodb", *named)


def test_a_table_is_found_as_cloudformation_names_it(world: World) -> None:
    fits = trailcopy._fits
    assert fits("knock", "dynamodb", "grant", "knock-TrailTable-1ABC23DEF4GH5")
    assert fits("knock", "dynamodb", "refusal", "knock-RefusalsTable-1ABC23DEF4GH5")
    assert not fits("knock", "dynamodb", "grant", "knock-two-TrailTable-1ABC23DEF4GH5")
    assert not fits("knock", "dynamodb", "grant", "knock-LedgerTable-1ABC23DEF4GH5")
    result = world.run("trail", "copy", "--to", "simpledb")
    assert (result.code, "Which DynamoDB table held the grants" in result.err) == (2, True)


def test_a_table_of_another_shape_is_refused_before_anything_is_written(world: World) -> None:
    """Break it: copy without checking the table's key."""
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
    result = world.run("trail", "copy", "--to", "dynamodb")
    assert (result.code, "is no table of Knock's: its key is not `name`" in result.err) == (1, True)
    assert items_of(world, TRAIL) == {}
