"""Reads a stack's three domains: the trail, the ledger and the refusals.

Reads are consistent and nothing is kept: a domain of any size streams in the memory of one page. Every value
that comes from the command line is quoted, so none can be read as a part of the query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from knock_admin.stack import Stack

    Values = Mapping[str, tuple[str, ...]]

# The variables of the functions' environment that name the domains.
TRAIL, LEDGER, REFUSALS = DOMAINS = ("TRAIL_DOMAIN", "LEDGER_DOMAIN", "REFUSALS_DOMAIN")

_PAGE = 2500  # the most that SimpleDB gives, within 1 MB


def quote(value: str) -> str:
    """Quote a value for a Select.

    https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/QuotingRulesSelect.html
    """
    return "'" + value.replace("'", "''") + "'"


def client(stack: Stack) -> Any:
    """Give the client of the region that the domains are in."""
    return stack.aws.client("sdb", stack.setting("TRAIL_REGION"))


def get(stack: Stack, domain: str, name: str) -> Values:
    """Read one item of a domain; empty where there is none."""
    answer = client(stack).get_attributes(
        DomainName=stack.setting(domain), ItemName=name, ConsistentRead=True
    )
    return _values(answer.get("Attributes", []))


def select(
    stack: Stack, domain: str, where: Sequence[str] = (), order: str = ""
) -> Iterator[tuple[str, Values]]:
    """Yield the items that meet all conditions, in this order. One call a page."""
    name = stack.setting(domain).replace("`", "``")
    expression = f"select * from `{name}`"  # noqa: S608 - every value in it went through `quote`
    expression += f" where {' and '.join(where)}" if where else ""
    expression += f" order by {order}" if order else ""
    token: dict[str, str] = {}
    while True:
        answer = client(stack).select(
            SelectExpression=f"{expression} limit {_PAGE}", ConsistentRead=True, **token
        )
        for item in answer.get("Items", []):
            yield item["Name"], _values(item["Attributes"])
        if not answer.get("NextToken"):
            return
        token = {"NextToken": answer["NextToken"]}


def _values(pairs: list[dict[str, str]]) -> Values:
    values: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        values[pair["Name"]] = (*values.get(pair["Name"], ()), pair["Value"])
    return values
