"""SimpleDB's Select language: a statement is parsed into a `Query`, whose predicate tests an item.

Grammar and meaning are those of the developer guide's "Using Select"
(docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/UsingSelect.html). A small recursive descent
parser rather than pyparsing: parsing is on every request's path, and this one takes tens of microseconds.

The guide's rules for attributes with several values, as they are implemented here:

- A comparison holds if any value satisfies it.
- Comparisons on the same attribute joined by `and` and `or` are a single predicate, and each value is tested
  against the whole predicate: `Keyword = 'Book' and Keyword = 'Hardcover'` finds nothing, by the guide's own
  table. This holds at any place in a chain of `and`. `intersection` joins sets of items, so it finds items
  with both.
- `every(a)` must hold for each value, and the item must have a value. Each `every` comparison is a predicate
  of its own.
- `not` is the complement of the items that its expression finds, including items without the attribute.

Where the guide is silent, the stricter reading is implemented, so that a statement that passes here passes on
AWS: `between` counts as two of the 20 comparisons and `in` as one for each constant; `%` is allowed only at
the start or the end of a `like` constant. The guide is silent on precedence too: here `intersection` binds
loosest, then `or`, `and`, `not`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from local.simpledb.errors import SimpleDBError, invalid_value

ITEM_NAME = None
"""In the place of an attribute's name: the predicate or the order is on itemName()."""

DEFAULT_PAGE = 100
LONGEST_PAGE = 2500
MOST_COMPARISONS = 20
MOST_ATTRIBUTES = 20
MOST_REQUESTED = 256
DEEPEST_NESTING = 50

Attributes = Mapping[str, tuple[str, ...]]
"""An item: attribute name → its values, each once, in the order they were added."""

Spans = list[tuple[int, int]]
"""Half-open ranges of positions in a sorted list of values, in order and disjoint."""

# fmt: off
RESERVED = frozenset([
    "or", "and", "not", "from", "where", "select", "like", "null", "is", "order", "by", "asc", "desc", "in",
    "between", "intersection", "limit", "every",
])
# fmt: on


# Tests of a single value. `spans` returns the parts of a sorted list that contain all values a test accepts;
# a Select looks at these parts of an index only. They may contain other values too.


@dataclass(frozen=True)
class OneOf:
    """= and in."""

    values: tuple[str, ...]

    def __call__(self, value: str) -> bool:
        return value in self.values

    def spans(self, values: list[str]) -> Spans:
        starts = [bisect_left(values, value) for value in self.values]
        positions = zip(starts, self.values, strict=True)
        return [(i, i + 1) for i, value in sorted(positions) if i < len(values) and values[i] == value]


@dataclass(frozen=True)
class Other:
    """!=."""

    value: str

    def __call__(self, value: str) -> bool:
        return value != self.value

    def spans(self, values: list[str]) -> Spans:
        low, high = bisect_left(values, self.value), bisect_right(values, self.value)
        return [span for span in ((0, low), (high, len(values))) if span[0] < span[1]]


@dataclass(frozen=True)
class Range:
    """<, <=, >, >= and between. Text order: by code point, which is also the order of UTF-8 bytes."""

    low: str | None = None
    low_included: bool = True
    high: str | None = None
    high_included: bool = True

    def __call__(self, value: str) -> bool:
        if self.low is not None and not (value > self.low or (self.low_included and value == self.low)):
            return False
        return self.high is None or value < self.high or (self.high_included and value == self.high)

    def spans(self, values: list[str]) -> Spans:
        start, end = 0, len(values)
        if self.low is not None:
            start = (bisect_left if self.low_included else bisect_right)(values, self.low)
        if self.high is not None:
            end = (bisect_right if self.high_included else bisect_left)(values, self.high)
        return [(start, end)] if start < end else []


@dataclass(frozen=True)
class Like:
    """like: the text between the percent signs, and on which sides these are."""

    text: str
    any_start: bool
    any_end: bool

    def __call__(self, value: str) -> bool:
        if self.any_start:
            return self.text in value if self.any_end else value.endswith(self.text)
        return value.startswith(self.text) if self.any_end else value == self.text

    def spans(self, values: list[str]) -> Spans:
        start, end = 0, len(values)
        if not self.any_start:
            start = bisect_left(values, self.text)
            # No valid text is greater than this one and still starts with the prefix.
            end = bisect_right(values, self.text + chr(0x10FFFF) * 2)
        return [(start, end)] if start < end else []


@dataclass(frozen=True)
class Unlike:
    """not like."""

    like: Like

    def __call__(self, value: str) -> bool:
        return not self.like(value)

    def spans(self, values: list[str]) -> Spans:
        return [(0, len(values))] if values else []


@dataclass(frozen=True)
class AllOf:
    """Tests of one value joined by and."""

    tests: tuple[Test, ...]

    def __call__(self, value: str) -> bool:
        return all(test(value) for test in self.tests)

    def spans(self, values: list[str]) -> Spans:
        spans = self.tests[0].spans(values)
        for test in self.tests[1:]:
            spans = overlap(spans, test.spans(values))
        return spans


@dataclass(frozen=True)
class AnyOf:
    """Tests of one value joined by or."""

    tests: tuple[Test, ...]

    def __call__(self, value: str) -> bool:
        return any(test(value) for test in self.tests)

    def spans(self, values: list[str]) -> Spans:
        merged: Spans = []
        for start, end in sorted(span for test in self.tests for span in test.spans(values)):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged


Test = OneOf | Other | Range | Like | Unlike | AllOf | AnyOf


def overlap(left: Spans, right: Spans) -> Spans:
    """Return the intersection of two lists of spans."""
    common = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            common.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return common


# Predicates: tests of an item.


@dataclass(frozen=True)
class Values:
    """Some value of an attribute passes a test; with `every`, all do, and the attribute exists."""

    attribute: str | None
    test: Test
    every: bool = False

    def __call__(self, name: str, attributes: Attributes) -> bool:
        if self.attribute is ITEM_NAME:
            return self.test(name)
        values = attributes.get(self.attribute)
        if not values:
            return False
        test = self.test
        if self.every:
            return all(test(value) for value in values)
        return any(test(value) for value in values)


@dataclass(frozen=True)
class Null:
    """is null. An item's name is never null."""

    attribute: str | None

    def __call__(self, _name: str, attributes: Attributes) -> bool:
        return self.attribute is not ITEM_NAME and self.attribute not in attributes


@dataclass(frozen=True)
class NotNull:
    """is not null."""

    attribute: str | None

    def __call__(self, _name: str, attributes: Attributes) -> bool:
        return self.attribute is ITEM_NAME or self.attribute in attributes


@dataclass(frozen=True)
class And:
    """Expressions joined by and; comparisons on the same attribute are merged already."""

    parts: tuple[Predicate, ...]

    def __call__(self, name: str, attributes: Attributes) -> bool:
        return all(part(name, attributes) for part in self.parts)


@dataclass(frozen=True)
class Intersection:
    """Expressions joined by intersection: each finds its items on its own."""

    parts: tuple[Predicate, ...]

    def __call__(self, name: str, attributes: Attributes) -> bool:
        return all(part(name, attributes) for part in self.parts)


@dataclass(frozen=True)
class Or:
    """Expressions joined by or."""

    parts: tuple[Predicate, ...]

    def __call__(self, name: str, attributes: Attributes) -> bool:
        return any(part(name, attributes) for part in self.parts)


@dataclass(frozen=True)
class Not:
    """All items of the domain except those that the expression finds."""

    part: Predicate

    def __call__(self, name: str, attributes: Attributes) -> bool:
        return not self.part(name, attributes)


Predicate = Values | Null | NotNull | And | Intersection | Or | Not


def _all_of(parts: list[Predicate]) -> Predicate:
    """Join by and: nested chains are flattened, comparisons on the same attribute become one predicate."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, And) else (part,))]
    tests: dict[str | None, list[Test]] = {}
    unmerged: list[Predicate] = []
    for part in flat:
        if isinstance(part, Values) and not part.every:
            tests.setdefault(part.attribute, []).append(part.test)
        else:
            unmerged.append(part)
    merged: list[Predicate] = [
        Values(attribute, attribute_tests[0] if len(attribute_tests) == 1 else AllOf(tuple(attribute_tests)))
        for attribute, attribute_tests in tests.items()
    ]
    joined = merged + unmerged
    return joined[0] if len(joined) == 1 else And(tuple(joined))


def _any_of(parts: list[Predicate]) -> Predicate:
    """Join by or: if all are comparisons on the same attribute, they become one predicate."""
    if len(parts) == 1:
        return parts[0]
    values = [part for part in parts if isinstance(part, Values) and not part.every]
    if len(values) == len(parts) and len({part.attribute for part in values}) == 1:
        return Values(values[0].attribute, AnyOf(tuple(part.test for part in values)))
    return Or(tuple(parts))


# The statement.


@dataclass(frozen=True)
class Query:
    """A parsed Select statement. `attributes` is the output list; `counting` means count(*)."""

    domain: str
    everything: bool
    counting: bool
    attributes: tuple[str, ...]
    where: Predicate | None
    order: str | None
    descending: bool
    limit: int | None
    identity: str = field(compare=False)
    """Equal for statements that can use each other's next tokens: same domain, where and order by."""


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<number>[0-9]+)
    | (?P<sign><=|>=|!=|[=<>(),*])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_PERCENT = re.compile(r"\\{1,2}%")
_LIKE = re.compile(r"(?P<start>%?)(?P<text>(?:\\{1,2}%|[^%])*)(?P<end>%?)", re.DOTALL)
_COMPARISONS: dict[str, Callable[[str], Test]] = {
    "=": lambda text: OneOf((text,)),
    "!=": Other,
    ">": lambda text: Range(low=text, low_included=False),
    ">=": lambda text: Range(low=text),
    "<": lambda text: Range(high=text, high_included=False),
    "<=": lambda text: Range(high=text),
}


_QUOTES = "'\"`"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _refuse(message: str) -> NoReturn:
    raise SimpleDBError(
        "InvalidQueryExpression", f"The specified query expression syntax is not valid. {message}"
    )


def _tokens(statement: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(statement, at)
        if match is None:
            unread = statement[at:].lstrip()
            hint = " (a quote that is not closed?)" if unread[0] in _QUOTES else ""
            if unread[0] in "-.":
                hint = " (a name with such a character stands in backticks)"
            _refuse(f"Cannot read {unread[:20]!r} at character {len(statement) - len(unread) + 1}{hint}.")
        kind = match.lastgroup or ""
        text = match[kind]
        yield _Token(kind, text, match.start(kind) + 1)
        if kind == "end":
            return
        at = match.end()


class _Parser:
    """The recursive descent through a statement, with a method for each rule of the grammar."""

    def __init__(self, statement: str) -> None:
        self.tokens = list(_tokens(statement))
        self.next = 0
        self.depth = 0
        self.comparisons = 0
        self.compared: set[str | None] = set()
        self.constrained: set[str | None] = set()
        self.null: set[str | None] = set()

    # The tokens.

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def take(self) -> _Token:
        token = self.token
        self.next += 1
        return token

    def fail_expecting(self, expected: str) -> NoReturn:
        next_token = "the statement ends" if self.token.kind == "end" else f"found {self.token.text!r}"
        _refuse(f"Expected {expected} at character {self.token.at}, but {next_token}.")

    def is_next(self, *words: str) -> bool:
        for offset, word in enumerate(words):
            token = self.tokens[self.next + offset]
            if token.kind not in ("word", "sign") or token.text.lower() != word:
                return False
        return True

    def skip(self, *words: str) -> bool:
        if not self.is_next(*words):
            return False
        self.next += len(words)
        return True

    def demand(self, *words: str) -> None:
        if not self.skip(*words):
            self.fail_expecting(" ".join(words))

    # Names and constants.

    def name(self, expected: str) -> str:
        token = self.token
        if token.kind == "quoted":
            return self.take().text[1:-1].replace("``", "`")
        if token.kind != "word":
            self.fail_expecting(
                f"{expected} (quote it with backticks if it holds other than letters, digits, _ and $)"
            )
        if token.text.lower() in RESERVED:
            self.fail_expecting(f"{expected} ({token.text!r} is a reserved word: quote it with backticks)")
        return self.take().text

    def operand(self) -> str | None:
        return (
            ITEM_NAME if self.skip("itemname", "(", ")") else self.name("an attribute's name or itemName()")
        )

    def constant(self) -> str:
        if self.token.kind != "text":
            self.fail_expecting("a constant in quotes")
        text = self.take().text
        return text[1:-1].replace(text[0] * 2, text[0])

    # The statement.

    def query(self) -> Query:
        self.demand("select")
        everything, counting, attributes = self.output()
        self.demand("from")
        domain = self.name("a domain's name")
        where = self.intersection() if self.skip("where") else None
        order, descending = self.order() if self.skip("order") else (ITEM_NAME, False)
        limit = self.limit(counting) if self.skip("limit") else None
        if self.token.kind != "end":
            self.fail_expecting(
                "and, or, intersection, order by, limit or the end"
                if where
                else "where, order by, limit or the end"
            )
        identity = repr((domain, where, order, descending))
        return Query(domain, everything, counting, attributes, where, order, descending, limit, identity)

    def output(self) -> tuple[bool, bool, tuple[str, ...]]:
        if self.skip("*"):
            return True, False, ()
        if self.skip("count", "(", "*", ")"):
            return False, True, ()
        requested = [self.operand()]
        while self.skip(","):
            requested.append(self.operand())
        if len(requested) > MOST_REQUESTED:
            raise SimpleDBError("TooManyRequestedAttributes", "Too many attributes requested.")
        return False, False, tuple(dict.fromkeys(name for name in requested if name is not ITEM_NAME))

    def order(self) -> tuple[str | None, bool]:
        self.demand("by")
        order = self.operand()
        if order not in self.constrained or order in self.null:
            raise SimpleDBError(
                "InvalidSortExpression",
                "The sort attribute must be present in at least one of the predicates, "
                "and the predicate cannot contain the is null operator.",
            )
        return order, not self.skip("asc") and self.skip("desc")

    def limit(self, counting: bool) -> int:
        if self.token.kind != "number":
            self.fail_expecting("a whole number")
        limit = int(self.take().text)
        if limit < 1 or (limit > LONGEST_PAGE and not counting):
            raise invalid_value(
                limit, "MaxNumberOfItems", f"MaxNumberOfItems must be between 1 and {LONGEST_PAGE}."
            )
        return limit

    # The where clause, loosest first.

    def intersection(self) -> Predicate:
        parts = [self.alternatives()]
        while self.skip("intersection"):
            parts.append(self.alternatives())
        return parts[0] if len(parts) == 1 else Intersection(tuple(parts))

    def alternatives(self) -> Predicate:
        parts = [self.conjunction()]
        while self.skip("or"):
            parts.append(self.conjunction())
        return _any_of(parts)

    def conjunction(self) -> Predicate:
        parts = [self.negation()]
        while self.skip("and"):
            parts.append(self.negation())
        return _all_of(parts)

    def negation(self) -> Predicate:
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            _refuse(
                f"More than {DEEPEST_NESTING} levels of not and parentheses at character {self.token.at}."
            )
        predicate: Predicate
        if self.skip("not"):
            predicate = Not(self.negation())
        elif self.skip("("):
            predicate = self.intersection()
            self.demand(")")
        else:
            predicate = self.comparison()
        self.depth -= 1
        return predicate

    def comparison(self) -> Predicate:
        every = self.skip("every")
        if every:
            self.demand("(")
            attribute: str | None = self.name("an attribute's name")
            self.demand(")")
        else:
            attribute = self.operand()
        if not every and self.skip("is"):
            absent = not self.skip("not")
            self.demand("null")
            self.count(attribute, 1)
            if absent:
                self.null.add(attribute)
                return Null(attribute)
            self.constrained.add(attribute)
            return NotNull(attribute)
        test, comparisons = self.test()
        self.count(attribute, comparisons)
        self.constrained.add(attribute)
        return Values(attribute, test, every)

    def test(self) -> tuple[Test, int]:
        if self.token.text in _COMPARISONS:
            comparison = _COMPARISONS[self.take().text]
            return comparison(self.constant()), 1
        if self.skip("between"):
            low = self.constant()
            self.demand("and")
            return Range(low=low, high=self.constant()), 2
        if self.skip("in"):
            self.demand("(")
            constants = [self.constant()]
            while self.skip(","):
                constants.append(self.constant())
            self.demand(")")
            return OneOf(tuple(dict.fromkeys(constants))), len(constants)
        if self.skip("like"):
            return self.like(), 1
        if self.skip("not", "like"):
            return Unlike(self.like()), 1
        return self.fail_expecting("=, !=, <, <=, >, >=, like, not like, between, in, is null or is not null")

    def like(self) -> Like:
        """Read a like constant. A literal percent sign has a backslash before it."""
        at = self.token.at
        match = _LIKE.fullmatch(self.constant())
        if match is None:
            _refuse(
                f"The constant at character {at} has a % that is neither at its start nor at its end "
                "(write \\% for the sign itself)."
            )
        return Like(_PERCENT.sub("%", match["text"]), bool(match["start"]), bool(match["end"]))

    def count(self, attribute: str | None, comparisons: int) -> None:
        """Enforce the limits "comparisons" and "unique attributes per Select expression"."""
        self.compared.add(attribute)
        if len(self.compared) > MOST_ATTRIBUTES:
            raise SimpleDBError("InvalidNumberPredicates", "Too many predicates in the query expression.")
        self.comparisons += comparisons
        if self.comparisons > MOST_COMPARISONS:
            raise SimpleDBError(
                "InvalidNumberValueTests", "Too many value tests per predicate in the query expression."
            )


@lru_cache(maxsize=2048)
def parse(statement: str) -> Query:
    """Read a Select statement.

    Raises `SimpleDBError`: InvalidQueryExpression (with the place), InvalidSortExpression,
    InvalidNumberValueTests, InvalidNumberPredicates, TooManyRequestedAttributes, InvalidParameterValue.
    """
    return _Parser(statement).query()
