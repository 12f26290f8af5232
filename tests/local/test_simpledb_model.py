"""The local SimpleDB compared with a simple model, and under threads.

The model is a dict of dicts of sets and a scan of it. Its reading of `and` on one attribute is the guide's:
"Each attribute is considered individually against the comparison conditions defined in the predicate."
"""

# ruff: noqa: S608 -- statements are what is under test here, and no database but the one under test reads them

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from local.simpledb.errors import SimpleDBError
from local.simpledb.select import ITEM_NAME, parse
from local.simpledb.store import Delete, Expected, Put, Store

ITEMS = ["i", "j", "k", "l"]
ATTRIBUTES = ["a", "b", "order"]
VALUES = ["", "a", "aa", "ab", "b", "ba", "é", "'%`"]

Model = dict[str, dict[str, set[str]]]

# Writes.

names, items, values = st.sampled_from(ATTRIBUTES), st.sampled_from(ITEMS), st.sampled_from(VALUES)
puts = st.lists(st.builds(Put, names, values, st.booleans()), min_size=1, max_size=4)
deletes = st.lists(st.builds(Delete, names, st.none() | values), max_size=3)
conditions = st.none() | st.builds(Expected, names, st.none() | values)
writes = st.one_of(
    st.tuples(st.just("put"), st.dictionaries(items, puts, min_size=1, max_size=1), conditions),
    st.tuples(st.just("delete"), st.dictionaries(items, deletes, min_size=1, max_size=1), conditions),
    st.tuples(st.just("put"), st.dictionaries(items, puts, min_size=1, max_size=4), st.none()),
    st.tuples(st.just("delete"), st.dictionaries(items, deletes, min_size=1, max_size=4), st.none()),
)
Write = tuple[str, dict[str, list[Any]], "Expected | None"]


def refusal(model: Model, item: str, condition: Expected | None) -> str | None:
    if condition is None:
        return None
    current = model.get(item, {}).get(condition.name, set())
    if condition.value is None:
        return "ConditionalCheckFailed" if current else None
    if not current:
        return "AttributeDoesNotExist"
    if len(current) > 1:
        return "MultiValuedAttribute"
    return None if current == {condition.value} else "ConditionalCheckFailed"


def write_model(model: Model, write: Write) -> str | None:
    kind, changes, condition = write
    for item in changes:
        code = refusal(model, item, condition)
        if code:
            return code
    for item, wanted in changes.items():
        attributes = model.setdefault(item, {})
        if kind == "put":
            for name in {put.name for put in wanted if put.replace}:
                attributes.pop(name, None)
            for put in wanted:
                attributes.setdefault(put.name, set()).add(put.value)
        elif not wanted:
            attributes.clear()
        else:
            for delete in wanted:
                removed = attributes.get(delete.name, set()) if delete.value is None else {delete.value}
                attributes[delete.name] = attributes.get(delete.name, set()) - removed
        model[item] = {name: texts for name, texts in attributes.items() if texts}
        if not model[item]:
            del model[item]
    return None


def write_store(store: Store, write: Write) -> str | None:
    kind, changes, condition = write
    try:
        (store.put if kind == "put" else store.delete)("domain", changes, condition)
    except SimpleDBError as error:
        return error.code
    return None


def content(store: Store) -> Model:
    read = {item: store.get("domain", item).attributes for item in ITEMS}
    for attributes in read.values():
        assert all(len(set(texts)) == len(texts) for texts in attributes.values())
    return {item: {name: set(texts) for name, texts in read[item].items()} for item in ITEMS if read[item]}


@settings(max_examples=150)
@given(st.lists(writes, max_size=15))
def test_writes_and_conditions_do_what_the_model_does(history: list[Write]) -> None:
    store, model = Store(), {}
    store.create_domain("domain")
    for write in history:
        assert write_store(store, write) == write_model(model, write)
        assert content(store) == model


# Selects. An expression is (operator, …), written as text for the store and judged as it is by the model.

Expression = tuple[Any, ...]

TESTS: dict[str, Callable[..., bool]] = {
    "=": lambda value, low: value == low,
    "!=": lambda value, low: value != low,
    "<": lambda value, low: value < low,
    "<=": lambda value, low: value <= low,
    ">": lambda value, low: value > low,
    ">=": lambda value, low: value >= low,
    "between": lambda value, low, high: low <= value <= high,
    "in": lambda value, *wanted: value in wanted,
    "starts": lambda value, text: value.startswith(text),
    "ends": lambda value, text: value.endswith(text),
    "holds": lambda value, text: text in value,
    "lacks": lambda value, text: text not in value,
}
PLAIN = [operator for operator in TESTS if operator not in ("between", "in")]
operands = st.sampled_from([*ATTRIBUTES, ITEM_NAME])
comparisons = st.one_of(
    st.tuples(
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "starts", "ends", "holds", "lacks"]),
        operands,
        values,
    ),
    st.tuples(st.just("between"), operands, values, values),
    st.tuples(st.just("in"), operands, values, values),
)
leaves = st.one_of(
    comparisons,
    comparisons.filter(lambda leaf: leaf[1] is not ITEM_NAME).map(lambda leaf: ("every", leaf)),
    st.tuples(st.sampled_from(["null", "not null"]), operands),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "and", "or", "intersection"]), inner, inner),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=6,
)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def pattern(text: str) -> str:
    return text.replace("%", "\\%")


def as_text(expression: Expression) -> str:
    operator = expression[0]
    if operator in ("and", "or", "intersection"):
        return f"({as_text(expression[1])}) {operator} ({as_text(expression[2])})"
    if operator == "not":
        return f"not ({as_text(expression[1])})"
    if operator == "every":
        _, attribute, *constants = expression[1]
        return comparison_text(expression[1][0], f"every(`{attribute}`)", constants)
    attribute = "itemName()" if expression[1] is ITEM_NAME else f"`{expression[1]}`"
    if operator in ("null", "not null"):
        return f"{attribute} is {operator}"
    return comparison_text(operator, attribute, list(expression[2:]))


def comparison_text(operator: str, attribute: str, constants: list[str]) -> str:
    if operator == "between":
        return f"{attribute} between {quoted(constants[0])} and {quoted(constants[1])}"
    if operator == "in":
        return f"{attribute} in ({', '.join(map(quoted, constants))})"
    text = pattern(constants[0])
    likes = {"starts": f"{text}%", "ends": f"%{text}", "holds": f"%{text}%", "lacks": f"%{text}%"}
    if operator in likes:
        return f"{attribute} {'not ' if operator == 'lacks' else ''}like {quoted(likes[operator])}"
    return f"{attribute} {operator} {quoted(constants[0])}"


def values_of(name: str, attributes: dict[str, set[str]], attribute: str | None) -> set[str]:
    return {name} if attribute is ITEM_NAME else attributes.get(attribute, set())


def sole(expression: Expression) -> tuple[str | None] | None:
    """Return the one attribute all comparisons below are on; None if there are others or set operators."""
    if expression[0] in TESTS:
        return (expression[1],)
    if expression[0] in ("and", "or") and sole(expression[1]) == sole(expression[2]):
        return sole(expression[1])
    return None


def passes(expression: Expression, value: str) -> bool:
    if expression[0] == "and":
        return passes(expression[1], value) and passes(expression[2], value)
    if expression[0] == "or":
        return passes(expression[1], value) or passes(expression[2], value)
    return TESTS[expression[0]](value, *expression[2:])


def chain(expression: Expression) -> Iterator[Expression]:
    if expression[0] == "and":
        yield from chain(expression[1])
        yield from chain(expression[2])
    else:
        yield expression


def holds(expression: Expression, name: str, attributes: dict[str, set[str]]) -> bool:
    operator, *arguments = expression
    if operator == "and":
        parts = list(chain(expression))
        for attribute in {sole(part) for part in parts} - {None}:
            of_attribute = [part for part in parts if sole(part) == attribute]
            candidates = values_of(name, attributes, attribute[0])
            if not any(all(passes(part, value) for part in of_attribute) for value in candidates):
                return False
        return all(holds(part, name, attributes) for part in parts if sole(part) is None)
    if operator == "or":
        return any(holds(part, name, attributes) for part in arguments)
    if operator == "intersection":
        return all(holds(part, name, attributes) for part in arguments)
    if operator == "not":
        return not holds(arguments[0], name, attributes)
    if operator == "every":
        candidates = values_of(name, attributes, arguments[0][1])
        return bool(candidates) and all(passes(arguments[0], value) for value in candidates)
    candidates = values_of(name, attributes, arguments[0])
    if operator in ("null", "not null"):
        return bool(candidates) == (operator == "not null")
    return any(passes(expression, value) for value in candidates)


def scanned(model: Model, where: Expression, order: str | None, descending: bool) -> list[str]:
    rows = []
    for name, attributes in model.items():
        candidates = values_of(name, attributes, order)
        if candidates and holds(where, name, attributes):
            rows.append(((max if descending else min)(candidates), name))
    return [name for _, name in sorted(rows, reverse=descending)]


def selected(store: Store, statement: str, page: int) -> list[str]:
    """Return the names a statement finds, page by page as a client with tokens would."""
    query, after, names = parse(statement), None, []
    for _ in ITEMS:
        rows = store.select(query, after, page + 1)
        assert len(rows) <= page + 1
        assert all(a[0] > b[0] if query.descending else a[0] < b[0] for a, b in pairwise(rows))
        names += [position[1] for position, _ in rows[:page]]
        if len(rows) <= page:
            return names
        after = rows[page - 1][0]
    pytest.fail(f"more pages than items: {names}")


@settings(max_examples=300)
@given(
    before=st.lists(writes, max_size=8),
    after=st.lists(writes, max_size=8),
    where=expressions,
    order=st.none() | names,
    descending=st.booleans(),
    page=st.integers(1, 3),
)
@example(  # the value an item stands by lies outside the range asked for
    before=[("put", {"i": [Put("a", "a"), Put("a", "b")], "j": [Put("a", "aa")]}, None)],
    after=[],
    where=(">", "a", "aa"),
    order="a",
    descending=False,
    page=1,
)
def test_a_select_finds_what_a_scan_finds_before_and_after_writes(
    before: list[Write], after: list[Write], where: Expression, order: str | None, descending: bool, page: int
) -> None:
    store, model = Store(), {}
    store.create_domain("domain")
    text = f"select * from domain where {as_text(where)}"
    if order:
        text = (
            f"select * from domain where ({as_text(where)}) and (`{order}` is not null or `{order}` like '%')"
        )
        text += f" order by `{order}` {'desc' if descending else 'asc'}"
    descending = descending and order is not None
    if order and ("null", order) in leaves_of(where):
        with pytest.raises(SimpleDBError, match="InvalidSortExpression"):
            parse(text)
        return
    for history in (before, after):  # the second round finds its indices made by the first
        for write in history:
            assert write_store(store, write) == write_model(model, write)
        assert selected(store, text, page) == scanned(model, where, order, descending)
    for attribute, index in store._domain("domain")._indices.items():  # an index keeps no value that is gone
        assert index.values == sorted({v for a in model.values() for v in a.get(attribute, set())})


def leaves_of(expression: Expression) -> set[Expression]:
    if expression[0] in ("and", "or", "intersection", "not"):
        return {leaf for part in expression[1:] for leaf in leaves_of(part)}
    return {expression[1] if expression[0] == "every" else expression}


@settings(max_examples=100)
@given(history=st.lists(writes, max_size=8), where=expressions, page=st.integers(1, 3))
def test_both_ways_to_run_a_select_have_the_same_result(
    history: list[Write], where: Expression, page: int
) -> None:
    """Collecting candidates and walking the order: the estimate chooses for speed, never for the result."""
    assume(("null", "a") not in leaves_of(where))
    store = Store()
    store.create_domain("domain")
    for write in history:
        write_store(store, write)
    query = parse(f"select * from domain where {as_text(where)} intersection a is not null order by a desc")
    domain = store._domain("domain")
    stretches = domain._candidates(query.where)
    index = domain._index("a")
    collected = domain._collect(query, None, page, stretches)
    walked = domain._along(query, None, page, index, domain._walk(query, index, None), len(ITEMS))
    assert collected == walked


# Threads, under a switch interval so short that a missing lock shows.


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Run work in threads that start together; return what each returned or raised."""
    barrier, results = Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except SimpleDBError as error:
            results[number] = error.code

    threads = [Thread(target=run, args=(number,)) for number in range(count)]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def test_of_values_added_by_8_threads_none_is_lost() -> None:
    store = Store()
    store.create_domain("domain")

    def add(number: int) -> None:
        for i in range(30):
            store.put("domain", {"item": [Put("claim", f"{number}-{i}")]})

    at_once(8, add)
    assert set(store.get("domain", "item").attributes["claim"]) == {
        f"{n}-{i}" for n in range(8) for i in range(30)
    }


def test_of_8_conditional_writes_one_wins() -> None:
    for _ in range(20):
        store = Store()
        store.create_domain("domain")
        store.put("domain", {"grant": [Put("state", "live")]})

        def end(number: int, store: Store = store) -> None:
            puts = [Put("state", f"ended by {number}", replace=True)]
            store.put("domain", {"grant": puts}, Expected("state", "live"))

        results = at_once(8, end)
        assert sorted(map(str, results)) == ["ConditionalCheckFailed"] * 7 + ["None"]
        winner = results.index(None)
        assert store.get("domain", "grant").attributes["state"] == (f"ended by {winner}",)


def test_selects_beside_writes_see_whole_items() -> None:
    store = Store()
    store.create_domain("domain")
    query = parse("select * from domain where a = 'x' and b = 'x' order by a")

    def work(number: int) -> None:
        for i in range(100):
            if number % 2:
                store.put("domain", {f"{number}-{i}": [Put("a", "x"), Put("b", "x")]})
                store.delete("domain", {f"{number}-{i - 1}": []})
            else:
                for _, item in store.select(query, None, 50):
                    assert item.attributes == {"a": ("x",), "b": ("x",)}

    assert at_once(6, work) == [None] * 6
    assert [position[1] for position, _ in store.select(query, None, None)] == ["1-99", "3-99", "5-99"]
