"""What is DynamoDB's own: its errors, indexes, types and limits. The contract is `test_store`'s."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError

from grants.dynamodb import INDEXES, TRANSIENT, DynamoDb
from grants.errors import StoreRefused, StoreUnavailable
from grants.ledger import LARGEST
from grants.ledgers import Ledgers
from grants.store import PART, Conflict, Expected, Where
from grants.trail import Trail
from grants.values import Unreadable
from tests.adapters.parts import (
    NO_ANSWER,
    NOW,
    REGION,
    Answers,
    Emulator,
    Tables,
    answered,
    dynamodbs_own,
    new_grant,
)

STATE, KIND = Where("state", "=", "live"), Where("kind", "=", "grant")
LIVE = {"name": {"S": "g1"}, "state": {"S": "live"}}


def over(*answers: Any) -> tuple[DynamoDb, Answers]:
    client = Answers(*answers)
    return DynamoDb(client, "knock-trail"), client  # type: ignore[arg-type]


def read(store: DynamoDb, name: str = "g1") -> dict[str, set[str]]:
    return {attribute: set(texts) for attribute, texts in store.get(name).items()}


@pytest.fixture
def store(stores: Tables) -> DynamoDb:
    return stores.store()


CALLS: dict[str, Any] = {
    "get": lambda store: store.get("g1"),
    "put": lambda store: store.put("g1", {"a": "b"}),
    "delete": lambda store: store.delete("g1", expected=Expected("a", "b")),
    "scan": lambda store: list(store.query([STATE])),
    "query": lambda store: list(store.query([KIND, STATE])),
    "count": lambda store: store.count([KIND, STATE]),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class TestErrors:
    @every_call
    @pytest.mark.parametrize("code", sorted(TRANSIENT))
    def test_a_transient_error_is_unavailable(self, call: Any, code: str) -> None:
        with pytest.raises(StoreUnavailable, match=code):
            call(over(answered(code))[0])

    @every_call
    @pytest.mark.parametrize("status", [500, 503, 599])
    def test_so_is_every_error_of_the_services_own(self, call: Any, status: int) -> None:
        """Mutation: functions/grants/dynamodb.py: ` or status >= 500:` -> `:`"""
        with pytest.raises(StoreUnavailable):
            call(over(answered("NeverHeardOf", status))[0])

    @every_call
    def test_so_is_no_answer(self, call: Any) -> None:
        with pytest.raises(StoreUnavailable, match="did not answer"):
            call(over(NO_ANSWER)[0])

    @every_call
    @pytest.mark.parametrize(
        "code",
        ["AccessDeniedException", "ResourceNotFoundException", "UnrecognizedClientException", "NeverHeardOf"],
    )
    def test_a_permanent_error_is_refused(self, call: Any, code: str) -> None:
        """Mutation: functions/grants/dynamodb.py:
        `raise StoreRefused(text[:300])` -> `raise StoreUnavailable(text[:300])`
        """
        with pytest.raises(StoreRefused, match=f"{code} to .* of knock-trail"):
            call(over(answered(code))[0])

    def test_a_refusal_explains_a_bad_request_but_names_no_role(self) -> None:
        """Mutation: functions/grants/dynamodb.py: `if code in EXPLAINED:` -> `if True:`"""
        with pytest.raises(StoreRefused, match=r"of knock-trail: The table has no such index$"):
            over(answered("ValidationException", message="The table has no such index"))[0].get("g1")
        with pytest.raises(StoreRefused, match=r"of knock-trail$"):
            over(answered("AccessDeniedException", message="arn:aws:sts::123456789012:x"))[0].get("g1")

    @pytest.mark.parametrize(("attribute", "missing"), [("state", False), ("token", True)])
    def test_a_conflict_takes_the_item_from_the_answer_or_reads_it(
        self, attribute: str, missing: bool
    ) -> None:
        for answers in (
            [answered("ConditionalCheckFailedException", Item=LIVE)],
            [answered("ConditionalCheckFailedException"), {"Item": LIVE}],
        ):
            store, client = over(*answers)
            with pytest.raises(Conflict) as conflict:
                store.put("g1", {"a": "b"}, expected=Expected(attribute, "x"))
            assert conflict.value.missing is missing
            assert [operation for operation, _ in client.calls] == ["update_item", "get_item"][: len(answers)]
            assert client.calls[-1][1].get("ConsistentRead", True) is True


class TestReads:
    def test_an_item_is_read_consistently(self) -> None:
        """Mutation: functions/grants/dynamodb.py:
        `Key=_key(name), ConsistentRead=True)` -> `Key=_key(name), ConsistentRead=False)`
        """
        store, client = over({})
        store.get("g1")
        arguments = {"TableName": "knock-trail", "Key": {"name": {"S": "g1"}}, "ConsistentRead": True}
        assert client.calls == [("get_item", arguments)]

    def test_so_is_a_table_and_an_index_cannot_be(self) -> None:
        """Mutation: functions/grants/dynamodb.py:
        `arguments["ConsistentRead"] = True` -> `arguments["ConsistentRead"] = False`
        """
        store, client = over({"Items": []}, {"Items": []})
        assert [*store.query([STATE]), *store.query([KIND])] == []
        assert [(operation, arguments.get("ConsistentRead")) for operation, arguments in client.calls] == [
            ("scan", True),
            ("query", None),
        ]

    @pytest.mark.parametrize("call", ["scan", "query", "count"])
    def test_a_list_goes_on_to_its_last_page(self, call: str) -> None:
        """Mutation: functions/grants/dynamodb.py: `if not answer.get("LastEvaluatedKey"):` -> `if True:`"""
        page, empty = {"Items": [LIVE], "Count": 1}, {"Items": [], "Count": 0}
        store, client = over(page | {"LastEvaluatedKey": "1"}, empty | {"LastEvaluatedKey": "2"}, page)
        assert CALLS[call](store) == (2 if call == "count" else [("g1", {"state": ("live",)})] * 2)
        assert [arguments.get("ExclusiveStartKey") for _, arguments in client.calls] == [None, "1", "2"]

    @pytest.mark.parametrize(
        ("attributes", "index"),
        [
            (["kind"], "by-kind"),
            (["kind", "principal_id"], "by-principal"),
            (["principal_id", "closed_at", "kind"], "by-closed-at"),
        ],
    )
    def test_the_most_selective_index_is_used(self, attributes: list[str], index: str) -> None:
        store, client = over({"Items": []})
        assert list(store.query([Where(attribute, "=", "x") for attribute in attributes])) == []
        assert client.calls[0][1]["IndexName"] == index


@dynamodbs_own
class TestIndexes:
    @pytest.mark.parametrize("where", [[], [STATE], [Where("kind", ">", "a")], [Where("kind", "=", "")]])
    def test_without_an_index_there_is_no_order(self, store: DynamoDb, where: list[Where]) -> None:
        with pytest.raises(ValueError, match="without an index"):
            list(store.query(where, newest_first=True))

    @pytest.mark.parametrize(
        "more", [[Where("order", "<", "5"), Where("order", ">", "3")], [Where("kind", "<", "x")], [KIND]]
    )
    def test_an_index_takes_one_condition_on_each_of_its_keys(
        self, store: DynamoDb, more: list[Where]
    ) -> None:
        """Mutation: functions/grants/dynamodb.py:
        `sum(w.attribute == name for w in where) > 1` -> `False`
        """
        with pytest.raises(ValueError, match="one condition"):
            list(store.query([KIND, *more]))

    def test_an_item_without_an_order_is_in_no_index(self, store: DynamoDb) -> None:
        store.put("g1", {"kind": "grant", "state": "live"})
        assert list(store.query([KIND])) == []
        assert [name for name, _ in store.query([STATE])] == ["g1"]


@dynamodbs_own
class TestTypes:
    def test_a_set_has_every_text_it_contains_and_no_part_of_one(self, store: DynamoDb) -> None:
        """Mutation: functions/grants/dynamodb.py: `attribute_type({name}, :ss) and ` -> ``"""
        store.put("g1", {"kind": "grant", "order": "1", "state": "web-2"}, [("target_name", "web")])
        store.put("g1", {}, [("target_name", "vault")])
        for text, count in {"web": 1, "vault": 1, "we": 0, "": 0}.items():
            assert store.count([KIND, Where("target_name", "=", text)]) == count
            assert store.count([Where("target_name", "=", text)]) == count
        assert store.count([Where("state", "=", "web")]) == 0, "a text that contains another is not that one"

    def test_a_set_is_no_single_text_to_a_condition(self, store: DynamoDb) -> None:
        store.put("g1", {}, [("target_name", "web")])
        with pytest.raises(Conflict) as conflict:
            store.put("g1", {"state": "live"}, expected=Expected("target_name", "web"))
        assert conflict.value.missing is False
        with pytest.raises(Conflict):
            store.delete("g1", expected=Expected("target_name", None))
        assert read(store) == {"target_name": {"web"}}

    def test_a_single_text_becomes_no_set(self, store: DynamoDb) -> None:
        store.put("g1", {"state": "live"})
        with pytest.raises(StoreRefused, match="ValidationException"):
            store.put("g1", {"other": "x"}, [("state", "revoked")])
        assert read(store) == {"state": {"live"}}

    @pytest.mark.parametrize("value", [{"N": "1"}, {"BOOL": True}, {"NULL": True}, {"L": []}, {"B": b"x"}])
    def test_an_item_with_another_type_cannot_be_read_and_the_others_can(
        self, store: DynamoDb, stores: Tables, value: dict[str, Any]
    ) -> None:
        """Mutation: functions/grants/dynamodb.py:
        `tuple(content) if kind == "SS" else (kind, str(content))` -> `tuple(value["SS"])`
        """
        trail, ledgers = Trail(store), Ledgers(store)
        good, bad = new_grant(), new_grant("bad")
        for grant in (good, bad):
            trail.record(grant)
        _change(stores, bad.id, "expires_at", value)
        _change(stores, bad.id, "input_00", value)
        with pytest.raises(StoreRefused, match="cannot be read"):
            trail.get(bad.id)
        assert [record.id for record in trail.page(limit=10).records] == [good.id]
        assert {item.name for item in trail.unclosed() if isinstance(item, Unreadable)} == {bad.id}
        store.put("203.0.113.9/32", {"parts": "1", "part_000": "{}"})
        _change(stores, "203.0.113.9/32", "token", value)
        with pytest.raises(StoreRefused, match="cannot be read"):
            ledgers.read("203.0.113.9/32")


def _change(stores: Tables, name: str, attribute: str, value: dict[str, Any]) -> None:
    stores.client.update_item(
        TableName=stores.table,
        Key={"name": {"S": name}},
        UpdateExpression="SET #a = :v",
        ExpressionAttributeNames={"#a": attribute},
        ExpressionAttributeValues={":v": value},
    )


@dynamodbs_own
class TestLimits:
    def test_an_item_has_more_and_longer_texts_than_simpledbs(self, store: DynamoDb) -> None:
        store.put("g1", {"long": "é" * 5000} | {f"v{n}": "x" for n in range(256)})
        assert store.get("g1")["long"] == ("é" * 5000,)
        assert len(store.get("g1")) == 257

    def test_an_item_that_is_too_large_is_refused_whole(self, store: DynamoDb) -> None:
        before = {f"part_{n:03}": "x" * PART for n in range(LARGEST // PART)}
        store.put("g1", before)
        with pytest.raises(StoreRefused, match="Item size"):
            store.put("g1", {"part_000": "y"} | {f"more_{n:03}": "x" * PART for n in range(170)})
        assert read(store) == {name: {text} for name, text in before.items()}


def test_the_largest_ledger_is_within_the_limits_of_an_expression() -> None:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""
    store, client = over({})
    values = {"token": "x", "parts": "250"} | {f"part_{n:03}": "x" for n in range(LARGEST // PART)}
    store.put("g1", values, expected=Expected("token", "y"))
    arguments = client.calls[0][1]
    assert len(arguments["UpdateExpression"]) < 4096
    assert len(values) < 300, "operators"
    assert len(arguments["ExpressionAttributeNames"]) == len(values)
    assert len(arguments["ExpressionAttributeValues"]) == len(values) + 1


@dynamodbs_own
class TestOtherTables:
    @every_call
    def test_a_table_that_does_not_exist_is_refused(self, stores: Tables, call: Any) -> None:
        missing = DynamoDb(stores.client, "knock-none")  # type: ignore[arg-type]
        with pytest.raises(StoreRefused, match=r"ResourceNotFoundException to \w+ of knock-none: \w+"):
            call(missing)

    @pytest.mark.parametrize("name", ["get", "put", "delete"])
    def test_so_is_a_table_with_another_key(self, stores: Tables, name: str) -> None:
        table = stores.make("id", INDEXES)
        with pytest.raises(StoreRefused, match=f"ValidationException to .* of {stores.table}: .*key"):
            CALLS[name](table)

    @pytest.mark.parametrize("name", ["scan", "query"])
    def test_so_are_the_items_of_a_table_with_another_key(self, stores: Tables, name: str) -> None:
        """Mutation: functions/grants/dynamodb.py: `if "S" not in item.get("name", {}):` -> `if False:`"""
        table = stores.make("id", INDEXES)
        item = {"id": "g1", "state": "live", "kind": "grant", "order": "1"}
        stores.client.put_item(TableName=stores.table, Item={key: {"S": text} for key, text in item.items()})
        with pytest.raises(StoreRefused, match=f"the table {stores.table} has another key than `name`"):
            CALLS[name](table)

    @pytest.mark.parametrize("name", ["query", "count"])
    def test_so_is_a_table_without_the_index(self, stores: Tables, name: str) -> None:
        table = stores.make("name", {})
        with pytest.raises(StoreRefused, match=rf"\w+ to query of {stores.table}: .*by-kind"):
            CALLS[name](table)


def test_a_clients_own_second_try_after_a_lost_answer_is_a_conflict(emulator: Emulator) -> None:
    client = boto3.client("dynamodb", region_name=REGION)
    tables = Tables(client)
    store = tables.store()
    losses: list[Any] = []

    def lose(request: Any, **_: Any) -> None:
        if b"UpdateItem" in request.headers["X-Amz-Target"] and not losses:
            losses.append(request)
            raise ConnectionClosedError(endpoint_url=request.url)

    client.meta.events.register_last("before-send", lose)  # moto has written by then
    with pytest.raises(Conflict) as conflict:
        store.put("g1", {"kind": "grant"}, expected=Expected("kind", None))
    assert conflict.value.missing is False
    assert len(losses) == 1
    assert read(store) == {"kind": {"grant"}}
    losses.clear()
    Trail(store).record(new_grant())
    assert len(losses) == 1
    assert Trail(store).record(new_grant()).grant == new_grant()
    losses.clear()
    assert Trail(store).end(new_grant().id, "revoked", NOW, "alice", "") is False
