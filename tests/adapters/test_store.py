"""The contract of a store, over every one there is; and what is SimpleDB's own, its errors above all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from grants.errors import StoreRefused, StoreUnavailable
from grants.simpledb import TRANSIENT, SimpleDb
from grants.store import Conflict, Expected, Store, Values, Where
from tests.adapters.parts import NO_ANSWER, Answers, Stores, answered, simpledbs_own

STATE, KIND = Where("state", "=", "live"), Where("kind", "=", "grant")
HOSTILE = ["it's", "' or `state` = 'live", "`", '"', "\\", "%", "é ✓", " ", "a''b"]


def read(values: Values) -> dict[str, set[str]]:
    return {name: set(texts) for name, texts in values.items()}


def names(items: Iterable[tuple[str, Values]]) -> list[str]:
    return [name for name, _ in items]


class TestItem:
    def test_there_is_none_before_it_is_written(self, store: Store) -> None:
        assert read(store.get("g1")) == {}

    def test_values_replace_and_sets_grow(self, store: Store) -> None:
        store.put("g1", {"state": "live", "at": "1"}, [("event", "a"), ("event", "b")])
        store.put("g1", {"state": "revoked"}, [("event", "b"), ("event", "c")])
        assert read(store.get("g1")) == {"state": {"revoked"}, "at": {"1"}, "event": {"a", "b", "c"}}
        assert store.get("g1")["state"] == ("revoked",)
        assert read(store.get("g2")) == {}

    @pytest.mark.parametrize("text", HOSTILE)
    def test_a_hostile_text_is_kept_as_it_is(self, store: Store, text: str) -> None:
        store.put(text, {"text": text}, [("set", text)])
        assert read(store.get(text)) == {"text": {text}, "set": {text}}
        assert names(store.query([Where("text", "=", text), Where("set", "=", text)])) == [text]
        assert store.count([Where("text", "=", text)]) == 1
        assert names(store.query([Where("state", "=", text)])) == []

    @simpledbs_own
    def test_a_text_of_its_limit_is_kept_and_a_longer_one_refused(self, store: Store) -> None:
        store.put("g1", {"long": "é" * 512})
        assert store.get("g1")["long"] == ("é" * 512,)
        for values, sets in (({"long": "x" * 1025}, []), ({"x": "x"}, [("set", "é" * 513)])):
            with pytest.raises(StoreRefused):
                store.put("g1", values, sets)
        assert read(store.get("g1")) == {"long": {"é" * 512}}

    @simpledbs_own
    def test_it_holds_as_many_pairs_as_simpledb_does(self, store: Store) -> None:
        store.put("g1", {f"v{n}": "x" for n in range(200)})
        store.put("g1", {}, [("set", str(n)) for n in range(56)])
        before = read(store.get("g1"))
        assert sum(map(len, before.values())) == 256
        with pytest.raises(StoreRefused):
            store.put("g1", {"v0": "changed"}, [("set", "56")])
        assert read(store.get("g1")) == before
        store.put("g1", {"v0": "changed"}, [("set", "55")])
        assert store.get("g1")["v0"] == ("changed",)


class TestCondition:
    def test_it_is_written_where_there_is_no_such_attribute(self, store: Store) -> None:
        store.put("g1", {"kind": "grant"}, expected=Expected("kind", None))
        with pytest.raises(Conflict) as conflict:
            store.put("g1", {"kind": "other"}, [("event", "x")], expected=Expected("kind", None))
        assert conflict.value.missing is False
        assert read(store.get("g1")) == {"kind": {"grant"}}
        store.put("g1", {"other": "x"}, expected=Expected("state", None))

    def test_it_is_written_where_the_attribute_has_this_value(self, store: Store) -> None:
        """Mutation: functions/grants/simpledb.py:
        `Attributes=attributes, **_condition(expected)` -> `Attributes=attributes`
        """
        store.put("g1", {"state": "live"})
        store.put("g1", {"state": "revoked"}, expected=Expected("state", "live"))
        with pytest.raises(Conflict) as conflict:
            store.put("g1", {"state": "expired"}, [("event", "x")], expected=Expected("state", "live"))
        assert conflict.value.missing is False
        assert read(store.get("g1")) == {"state": {"revoked"}}

    def test_a_conflict_says_whether_the_attribute_is_missing(self, store: Store) -> None:
        for _ in range(2):
            with pytest.raises(Conflict) as conflict:
                store.put("g1", {"state": "revoked"}, expected=Expected("state", "live"))
            assert conflict.value.missing is True
            assert read(store.get("g1")) == {}
        store.put("g1", {"other": "x"})
        with pytest.raises(Conflict) as conflict:
            store.put("g1", {"state": "revoked"}, expected=Expected("state", "live"))
        assert conflict.value.missing is True

    def test_a_client_that_retries_after_a_lost_answer_meets_its_own_write(
        self, stores: Stores, store: Store
    ) -> None:
        store.put("g1", {"state": "live"})
        stores.lose_answer()
        with pytest.raises(Conflict):
            store.put("g1", {"state": "revoked"}, expected=Expected("state", "live"))
        assert store.get("g1")["state"] == ("revoked",)
        stores.lose_answer()
        store.put("g1", {"state": "closed"})
        stores.lose_answer()
        with pytest.raises(Conflict) as conflict:
            store.delete("g1", expected=Expected("state", "closed"))
        assert conflict.value.missing is True
        assert read(store.get("g1")) == {}


class TestDelete:
    def test_the_whole_item_is_deleted_where_the_condition_holds(self, store: Store) -> None:
        """Mutation: functions/grants/simpledb.py:
        `ItemName=name, **_condition(expected)` -> `ItemName=name`
        """
        store.put("g1", {"token": "1", "part_000": "x"}, [("set", "a")])
        with pytest.raises(Conflict):
            store.delete("g1", expected=Expected("token", "2"))
        assert store.get("g1")["token"] == ("1",)
        store.delete("g1", expected=Expected("token", "1"))
        assert read(store.get("g1")) == {}, "with its sets"
        assert list(store.query(())) == []

    def test_the_deletion_of_a_missing_item_is_a_conflict(self, store: Store) -> None:
        with pytest.raises(Conflict) as conflict:
            store.delete("g1", expected=Expected("token", "1"))
        assert conflict.value.missing is True


class TestQuery:
    @pytest.fixture
    def many(self, store: Store) -> Store:
        """Items 0 to 8: even ones are live; 3 and 6 have the target web; 8 has no order."""
        for n in range(9):
            values = {"kind": "grant", "state": "live" if n % 2 == 0 else "revoked"}
            values |= {"order": f"{n}"} if n < 8 else {}
            targets = [("target", "bastion"), *([("target", "web")] if n in (3, 6) else [])]
            store.put(f"g{n}", values, targets)
        return store

    @pytest.mark.parametrize(
        ("where", "numbers"),
        [
            ([], "012345678"),
            ([STATE], "02468"),
            ([Where("order", "<", "3")], "012"),
            ([Where("order", ">", "5")], "67"),
            ([STATE, Where("order", ">", "3"), Where("order", "<", "7")], "46"),
            ([Where("target", "=", "web")], "36"),
            ([Where("target", "=", "web"), STATE], "6"),
            ([Where("target", "=", "we")], ""),
            ([Where("missing", "=", "x")], ""),
            ([KIND, STATE, Where("order", "<", "5")], "024"),
            ([KIND, Where("target", "=", "web"), Where("order", ">", "3")], "6"),
            ([KIND, Where("order", "=", "6")], "6"),
            ([Where("kind", "=", "")], ""),
            ([KIND, Where("state", "<", "m"), Where("order", "<", "9")], "0246"),
        ],
    )
    def test_all_conditions_hold(self, many: Store, where: list[Where], numbers: str) -> None:
        expected = [f"g{n}" for n in numbers]
        assert sorted(names(many.query(where))) == expected
        assert many.count(where) == len(expected)

    @pytest.mark.parametrize("page", [1, 2, 3, 5, 100])
    @pytest.mark.parametrize("newest_first", [True, False])
    def test_pages_meet(self, many: Store, page: int, newest_first: bool) -> None:
        where = [KIND, STATE] if newest_first else [STATE]  # DynamoDB knows an order in an index alone
        item_names = names(many.query(where, newest_first=newest_first, page=page))
        assert sorted(item_names) == [f"g{n}" for n in ((0, 2, 4, 6) if newest_first else (0, 2, 4, 6, 8))]

    def test_the_newest_come_first_and_items_without_an_order_are_left_out(self, many: Store) -> None:
        assert names(many.query([KIND], newest_first=True)) == [f"g{n}" for n in range(7, -1, -1)]
        older = [KIND, Where("order", "<", "5")]
        assert names(many.query(older, newest_first=True)) == ["g4", "g3", "g2", "g1", "g0"]

    @simpledbs_own
    def test_simpledb_orders_without_an_index_too(self, many: Store) -> None:
        assert names(many.query([], newest_first=True)) == [f"g{n}" for n in range(7, -1, -1)]
        between = [Where("order", ">", "2"), Where("order", "<", "5")]
        assert names(many.query([KIND, *between], newest_first=True)) == ["g4", "g3"]

    def test_an_item_has_all_its_attributes(self, many: Store) -> None:
        (_, item) = next(iter(many.query([Where("order", "=", "6")])))
        assert read(item) == {
            "kind": {"grant"},
            "state": {"live"},
            "order": {"6"},
            "target": {"bastion", "web"},
        }

    def test_more_than_a_page_of_the_stores_are_found(self, store: Store) -> None:
        for n in range(120):
            store.put(f"g{n:03}", {"state": "live", "order": f"{n:03}", "long": "x" * 1000})
        assert len(list(store.query([STATE], page=50))) == 120
        assert store.count([STATE]) == 120


# ---------------------------------------------------------------------------- SimpleDB's own


def over(*answers: Any) -> tuple[SimpleDb, Answers]:
    client = Answers(*answers)
    return SimpleDb(client, "knock-trail"), client  # type: ignore[arg-type]


CALLS = {
    "get": lambda store: store.get("g1"),
    "put": lambda store: store.put("g1", {"a": "b"}),
    "delete": lambda store: store.delete("g1", expected=Expected("a", "b")),
    "query": lambda store: list(store.query([STATE])),
    "count": lambda store: store.count([STATE]),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class TestErrors:
    @every_call
    @pytest.mark.parametrize("code", sorted(TRANSIENT))
    def test_a_transient_error_is_unavailable(self, call: Any, code: str) -> None:
        with pytest.raises(StoreUnavailable, match=code):
            call(over(answered(code))[0])

    @every_call
    @pytest.mark.parametrize("status", [500, 502, 503, 599])
    def test_so_is_every_error_of_the_services_own(self, call: Any, status: int) -> None:
        """Mutation: functions/grants/simpledb.py: ` or status >= 500:` -> `:`"""
        with pytest.raises(StoreUnavailable):
            call(over(answered("NeverHeardOf", status))[0])

    @every_call
    def test_so_is_no_answer(self, call: Any) -> None:
        with pytest.raises(StoreUnavailable, match="did not answer"):
            call(over(NO_ANSWER)[0])

    @every_call
    @pytest.mark.parametrize(
        "code",
        [
            "NoSuchDomain",
            "AuthorizationFailure",
            "AccessDenied",
            "InvalidClientTokenId",
            "NumberItemAttributesExceeded",
            "NumberDomainBytesExceeded",
            "InvalidParameterValue",
            "MultiValuedAttribute",
            "NeverHeardOf",
        ],
    )
    def test_a_permanent_error_is_refused(self, call: Any, code: str) -> None:
        """Mutation: functions/grants/simpledb.py:
        `raise StoreRefused(f"SimpleDB` -> `raise StoreUnavailable(f"SimpleDB`
        """
        with pytest.raises(StoreRefused, match=code):
            call(over(answered(code))[0])

    @pytest.mark.parametrize(
        ("code", "missing"), [("ConditionalCheckFailed", False), ("AttributeDoesNotExist", True)]
    )
    def test_a_condition_that_does_not_hold_is_a_conflict(self, code: str, missing: bool) -> None:
        with pytest.raises(Conflict) as conflict:
            over(answered(code, 409))[0].put("g1", {"a": "b"}, expected=Expected("a", "c"))
        assert conflict.value.missing is missing


class TestReads:
    def test_a_read_is_consistent(self) -> None:
        """Mutation: functions/grants/simpledb.py:
        `ItemName=name, ConsistentRead=True)` -> `ItemName=name, ConsistentRead=False)`
        """
        store, client = over({})
        store.get("g1")
        assert client.calls == [
            ("get_attributes", {"DomainName": "knock-trail", "ItemName": "g1", "ConsistentRead": True})
        ]

    @pytest.mark.parametrize("name", ["query", "count"])
    def test_a_list_is_consistent_and_goes_on_to_its_last_page(self, name: str) -> None:
        """Mutation: functions/grants/simpledb.py: `if not answer.get("NextToken"):` -> `if True:`"""
        items = {
            "query": [{"Name": "g1", "Attributes": [{"Name": "state", "Value": "live"}]}],
            "count": [{"Name": "Domain", "Attributes": [{"Name": "Count", "Value": "1"}]}],
        }
        store, client = over(
            {"Items": items[name], "NextToken": "1"}, {"NextToken": "2"}, {"Items": items[name]}
        )
        answer = CALLS[name](store)
        assert answer == (2 if name == "count" else [("g1", {"state": ("live",)})] * 2)
        assert [arguments.get("NextToken") for _, arguments in client.calls] == [None, "1", "2"]
        assert all(arguments["ConsistentRead"] for _, arguments in client.calls)

    def test_a_list_is_consistent(self) -> None:
        """Mutation: functions/grants/simpledb.py:
        `SelectExpression=text, ConsistentRead=True` -> `SelectExpression=text, ConsistentRead=False`
        """
        store, client = over({})
        assert list(store.query([STATE])) == []
        assert client.calls[0][1]["ConsistentRead"] is True
