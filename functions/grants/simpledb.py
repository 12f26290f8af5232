"""SimpleDB as a store: one domain. Every method is one call, or one a page.

A transient error is StoreUnavailable, a permanent one StoreRefused, by the error's code: an outage is worth
another try, while a missing permission or a full item is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import StoreRefused, StoreUnavailable
from .store import Conflict, Expected, Values, Where

if TYPE_CHECKING:
    from botocore.client import BaseClient

# https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/APIError.html
TRANSIENT = {
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "ServiceOverload",
    "ServiceUnavailableException",
    "Throttling",
    "ThrottlingException",
    "RequestThrottled",
    "OperationTimedOut",
    "QueryTimeout",
}
LARGEST_PAGE = 2500


class SimpleDb:
    """The domain `domain`, through a client of the region that holds it."""

    def __init__(self, client: BaseClient, domain: str) -> None:
        self._client: Any = client
        self._domain = domain

    def get(self, name: str) -> Values:
        answer = self._call("get_attributes", ItemName=name, ConsistentRead=True)
        return _values(answer.get("Attributes", []))

    def put(
        self,
        name: str,
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,
    ) -> None:
        attributes = [{"Name": key, "Value": text, "Replace": True} for key, text in values.items()]
        attributes += [{"Name": key, "Value": text, "Replace": False} for key, text in sets]
        self._call("put_attributes", ItemName=name, Attributes=attributes, **_condition(expected))

    def delete(self, name: str, *, expected: Expected) -> None:
        self._call("delete_attributes", ItemName=name, **_condition(expected))

    def query(
        self, where: Sequence[Where], *, newest_first: bool = False, page: int = LARGEST_PAGE
    ) -> Iterator[tuple[str, Values]]:
        order = (
            [Where("order", "<", "~")]
            if newest_first and not any(condition.attribute == "order" for condition in where)
            else []
        )
        text = self._select("*", [*where, *order])
        text += " order by `order` desc" if newest_first else ""
        for item in self._pages(f"{text} limit {min(page, LARGEST_PAGE)}"):
            yield item["Name"], _values(item["Attributes"])

    def count(self, where: Sequence[Where]) -> int:
        pages = self._pages(self._select("count(*)", where))
        return sum(int(pair["Value"]) for item in pages for pair in item["Attributes"])

    def _select(self, what: str, where: Sequence[Where]) -> str:
        domain = self._domain.replace("`", "``")
        conditions = " and ".join(f"`{w.attribute}` {w.is_} {_quote(w.text)}" for w in where)
        return f"select {what} from `{domain}`" + (f" where {conditions}" if where else "")  # noqa: S608  # quoted

    def _pages(self, text: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            answer = self._call("select", domain=False, SelectExpression=text, ConsistentRead=True, **token)
            yield from answer.get("Items", [])
            if not answer.get("NextToken"):
                return
            token = {"NextToken": answer["NextToken"]}

    def _call(self, operation: str, *, domain: bool = True, **arguments: Any) -> dict[str, Any]:
        if domain:
            arguments["DomainName"] = self._domain
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            # Not in client.exceptions: SimpleDB's model does not name these.
            code = error.response["Error"]["Code"]
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in ("ConditionalCheckFailed", "AttributeDoesNotExist"):
                raise Conflict(missing=code == "AttributeDoesNotExist") from error
            if code in TRANSIENT or status >= 500:
                raise StoreUnavailable(f"SimpleDB answered {code} to {operation}") from error
            raise StoreRefused(f"SimpleDB answered {code} to {operation} in {self._domain}") from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"SimpleDB did not answer {operation}: {type(error).__name__}") from error
        return answer


def _condition(expected: Expected | None) -> dict[str, Any]:
    if expected is None:
        return {}
    value: dict[str, Any] = {"Exists": False} if expected.text is None else {"Value": expected.text}
    return {"Expected": {"Name": expected.attribute} | value}


def _values(pairs: list[dict[str, str]]) -> Values:
    values: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        values[pair["Name"]] = (*values.get(pair["Name"], ()), pair["Value"])
    return values


def _quote(value: str) -> str:
    """Quote a value for a Select: single quotes, doubled inside.

    https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/QuotingRulesSelect.html
    """
    return "'" + value.replace("'", "''") + "'"
