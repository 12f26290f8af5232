"""The stores of a stack's records, SimpleDB domains or DynamoDB tables, behind one interface.

The functions' environment has the kind of store (`TRAIL_STORE`) and the names. Results are streamed: a trail
of any size takes the memory of one page. In SimpleDB every read is consistent. In DynamoDB, lists of grants
are read from an index, which is eventually consistent and lags by about a second; single items, refusals and
ledgers are read consistently from the table.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.ReadConsistency.html

The functions have code of their own for both (`functions/grants/simpledb.py`, `dynamodb.py`), which is not
part of this distribution. Tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from knock_admin.errors import AdminError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from knock_admin.aws import Aws
    from knock_admin.stack import Stack

    Values = Mapping[str, tuple[str, ...]]

# The variables of the functions' environment that name the domains or tables.
TRAIL, LEDGER, REFUSALS = DOMAINS = ("TRAIL_DOMAIN", "LEDGER_DOMAIN", "REFUSALS_DOMAIN")

SIMPLEDB, DYNAMODB = STORES = ("simpledb", "dynamodb")
TITLES = {SIMPLEDB: "SimpleDB", DYNAMODB: "DynamoDB"}

Order = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Where:
    """A condition on an attribute. Texts are compared as texts; a set meets `=` if it contains the text.

    Both stores get the text as a quoted value or a parameter, so it cannot change the query.
    """

    attribute: str
    is_: Literal["=", "<", "<=", ">", ">="]
    text: str


# A query selects the items that meet at least one condition of each tuple.
AnyOf = tuple[Where, ...]


def equal(attribute: str, text: str) -> AnyOf:
    """Give the condition that an attribute has a text."""
    return (Where(attribute, "=", text),)


class Store(Protocol):
    """One domain or table. Every method raises AdminError, and botocore's errors."""

    @property
    def where(self) -> str:
        """Its kind, name and region, for people."""
        ...

    def get(self, name: str) -> Values:
        """Read one item; empty if there is none."""
        ...

    def select(self, where: Sequence[AnyOf] = (), order: Order | None = None) -> Iterator[tuple[str, Values]]:
        """Yield the items that meet all of `where`, sorted by `order` if one is given. One call a page."""
        ...

    def add(self, name: str, values: Values) -> bool:
        """Write a new item, in one call. False if there is one of that name, which is left as it is."""
        ...

    def health(self) -> Iterator[tuple[str, str]]:
        """Check it; yield pairs of a level, `ok`, `warn` or `fail`, and a text."""
        ...


def of(stack: Stack, variable: str) -> Store:
    """Give the domain or table that a variable of the functions' environment names. Raises AdminError."""
    name, region = stack.setting(variable), stack.setting("TRAIL_REGION")
    return at(stack.aws, stack.store, region, name, listed=variable == TRAIL)


def at(aws: Aws, store: str, region: str, name: str, *, listed: bool) -> Store:
    """Give a domain or table by its name; `listed` is True for a trail, whose table has indexes."""
    # Imported here because both modules use the conditions of this one.
    from knock_admin.dynamodb import INDEXES, DynamoDb
    from knock_admin.simpledb import SimpleDb

    if store == SIMPLEDB:
        return SimpleDb(aws, region, name)
    if store == DYNAMODB:
        return DynamoDb(aws, region, name, INDEXES if listed else {})
    raise AdminError(f"There is no store {store}; there are {' and '.join(STORES)}.")
