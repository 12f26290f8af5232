"""What a stack keeps its records in: SimpleDB domains or DynamoDB tables, read in one way.

The functions' environment says which (`TRAIL_STORE`) and what they are called. Nothing read is kept: a trail
of any size streams in the memory of one page. In SimpleDB every read is consistent. In DynamoDB, lists of
grants come from an index, which may lag behind by about a second; single items, refusals and ledgers are read
from the table itself.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.ReadConsistency.html

The functions have code of their own for both (`functions/grants/simpledb.py`, `dynamodb.py`), which is not
part of this distribution. That both agree is tested.
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
    """One condition; texts compare as texts. An attribute that is a set fulfils `=` if it contains the text.

    Both stores are asked for it: no value can be read as a part of the query.
    """

    attribute: str
    is_: Literal["=", "<", "<=", ">", ">="]
    text: str


# A query holds for what meets at least one condition of each tuple.
AnyOf = tuple[Where, ...]


def equal(attribute: str, text: str) -> AnyOf:
    """Give the condition that an attribute has a text."""
    return (Where(attribute, "=", text),)


class Store(Protocol):
    """One domain or table. Every method raises AdminError, or what botocore raises."""

    @property
    def where(self) -> str:
        """Say what and where this is, for people."""
        ...

    def get(self, name: str) -> Values:
        """Read one item; empty where there is none."""
        ...

    def select(self, where: Sequence[AnyOf] = (), order: Order | None = None) -> Iterator[tuple[str, Values]]:
        """Yield the items for which all of `where` holds, by their `order` if asked. One call a page."""
        ...

    def add(self, name: str, values: Values) -> bool:
        """Write an item that is not there yet, in one call. False says that there is one, untouched."""
        ...

    def health(self) -> Iterator[tuple[str, str]]:
        """Say how it is doing: `ok`, `warn` or `fail`, and why."""
        ...


def of(stack: Stack, variable: str) -> Store:
    """Give the domain or table that a variable of the functions' environment names. Raises AdminError."""
    name, region = stack.setting(variable), stack.setting("TRAIL_REGION")
    return at(stack.aws, stack.store, region, name, listed=variable == TRAIL)


def at(aws: Aws, store: str, region: str, name: str, *, listed: bool) -> Store:
    """Give a domain or table by its name; `listed` says that it is a trail, whose table has indexes."""
    # Imported here, since both take this module's conditions.
    from knock_admin.dynamodb import INDEXES, DynamoDb
    from knock_admin.simpledb import SimpleDb

    if store == SIMPLEDB:
        return SimpleDb(aws, region, name)
    if store == DYNAMODB:
        return DynamoDb(aws, region, name, INDEXES if listed else {})
    raise AdminError(f"There is no store {store}; there are {' and '.join(STORES)}.")
