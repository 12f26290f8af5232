"""DynamoDB as a store: one table, its items by `name`. Every method is one call, or one a page.

Only single-item writes with one condition are used, as SimpleDB has no others. `get` and every condition, on
which invariants rest, read the table consistently. Queries read a global secondary index, which may lag by
about a second: they are for lists, for the guard, which leaves recent changes alone, and to count live
grants.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.ReadConsistency.html

A single value is a string, a set a string set:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import StoreRefused, StoreUnavailable
from .store import Conflict, Expected, Values, Where

if TYPE_CHECKING:
    from botocore.client import BaseClient

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
TRANSIENT = {
    "InternalServerError",
    "ItemCollectionSizeLimitExceededException",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "ReplicatedWriteConflictException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
    "TransactionConflictException",
}

# Errors whose message says which table, key or index is wrong. That of a missing permission names the
# account, which holders of keys are not to see.
EXPLAINED = {"ResourceNotFoundException", "ValidationException"}

# Each has this attribute as its partition key and `order` as its sort key; the most selective first.
# template.yaml makes them, and a test compares.
INDEXES = {"closed_at": "by-closed-at", "principal_id": "by-principal", "kind": "by-kind"}

SMALLEST_PAGE = 100


class DynamoDb:
    """The table `table`. An attribute that was once written as a set stays one."""

    def __init__(self, client: BaseClient, table: str) -> None:
        self._client: Any = client
        self._table = table

    def get(self, name: str) -> Values:
        answer = self._call("get_item", Key=_key(name), ConsistentRead=True)
        return _values(answer.get("Item", {}))

    def put(
        self,
        name: str,
        values: Mapping[str, str],
        sets: Iterable[tuple[str, str]] = (),
        *,
        expected: Expected | None = None,
    ) -> None:
        names: dict[str, str] = {}
        texts: dict[str, Any] = {}
        for attribute, text in values.items():
            texts[_value(_name(attribute, names))] = {"S": text}
        update = "SET " + ", ".join(f"{n} = {_value(n)}" for n in names) if values else ""
        added: dict[str, set[str]] = {}
        for attribute, text in sets:
            added.setdefault(_name(attribute, names), set()).add(text)
        texts |= {_value(n): {"SS": sorted(members)} for n, members in added.items()}
        if added:
            update += " ADD " + ", ".join(f"{n} {_value(n)}" for n in added)
        condition = _condition(expected, names, texts)
        self._write(
            "update_item",
            name,
            expected,
            UpdateExpression=update.strip(),
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=texts,
            **condition,
        )

    def delete(self, name: str, *, expected: Expected) -> None:
        names: dict[str, str] = {}
        texts: dict[str, Any] = {}
        condition = _condition(expected, names, texts)
        if texts:
            condition["ExpressionAttributeValues"] = texts
        self._write("delete_item", name, expected, ExpressionAttributeNames=names, **condition)

    def query(
        self, where: Sequence[Where], *, newest_first: bool = False, page: int = 2500
    ) -> Iterator[tuple[str, Values]]:
        """Walk through items; `newest_first` takes one of INDEXES among the conditions.

        Where an index is used, items without `order` are left out. Only `=` looks into sets.
        """
        if newest_first and not _index(where):
            raise ValueError("without an index there is no order")
        # DynamoDB's limit counts the items it reads, before the filter.
        for answer in self._pages(where, newest_first=newest_first, Limit=max(page, SMALLEST_PAGE)):
            for item in answer["Items"]:
                if "S" not in item.get("name", {}):
                    raise StoreRefused(f"the table {self._table} has another key than `name`")
                yield item["name"]["S"], _values(item)

    def count(self, where: Sequence[Where]) -> int:
        return sum(answer["Count"] for answer in self._pages(where, Select="COUNT"))

    # ------------------------------------------------------------------ DynamoDB

    def _pages(
        self, where: Sequence[Where], *, newest_first: bool = False, **arguments: Any
    ) -> Iterator[dict[str, Any]]:
        """Ask for pages: of an index where one fits, else of the table itself, consistently.

        A query takes one condition on each key of its index, and a filter takes none:
        https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Query.FilterExpression.html
        """
        key = _index(where)
        if key and any(sum(w.attribute == name for w in where) > 1 for name in (key, "order")):
            raise ValueError(f"the index of {key} takes one condition on it, and one on order")
        names: dict[str, str] = {}
        texts: dict[str, Any] = {}
        key_terms, terms = [], []
        for number, condition in enumerate(where):
            name, value = _name(condition.attribute, names), f":w{number}"
            texts[value] = {"S": condition.text}
            term = f"{name} {condition.is_} {value}"
            if key and condition.attribute in (key, "order"):
                key_terms.append(term)
            elif condition.is_ == "=":
                texts[":ss"] = {"S": "SS"}  # an attribute that is a set has the text if it contains it
                terms.append(f"({term} or (attribute_type({name}, :ss) and contains({name}, {value})))")
            else:
                terms.append(term)
        if terms:
            arguments["FilterExpression"] = " and ".join(terms)
        if texts:
            arguments |= {"ExpressionAttributeNames": names, "ExpressionAttributeValues": texts}
        if key:
            arguments |= {"IndexName": INDEXES[key], "KeyConditionExpression": " and ".join(key_terms)}
            arguments["ScanIndexForward"] = not newest_first
        else:
            arguments["ConsistentRead"] = True
        while True:
            answer = self._call("query" if key else "scan", **arguments)
            yield answer
            if not answer.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _write(self, operation: str, name: str, expected: Expected | None, **arguments: Any) -> None:
        try:
            self._call(operation, Key=_key(name), **arguments)
        except _ConditionFailed as failed:
            item = failed.item if failed.item is not None else self.get(name)
            raise Conflict(missing=expected is None or expected.attribute not in item) from failed

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(TableName=self._table, **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "ConditionalCheckFailedException":
                raise _ConditionFailed(error.response.get("Item")) from error  # type: ignore[arg-type]
            if code in TRANSIENT or status >= 500:
                raise StoreUnavailable(f"DynamoDB answered {code} to {operation}") from error
            text = f"DynamoDB answered {code} to {operation} of {self._table}"
            if code in EXPLAINED:
                text += f": {error.response['Error'].get('Message', '')}"
            raise StoreRefused(text[:300]) from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"DynamoDB did not answer {operation}: {type(error).__name__}") from error
        return answer


def _index(where: Sequence[Where]) -> str | None:
    """Give the attribute whose index fits a query best, if any does. A key cannot be an empty text."""
    equal = {condition.attribute for condition in where if condition.is_ == "=" and condition.text}
    return next((attribute for attribute in INDEXES if attribute in equal), None)


class _ConditionFailed(Exception):
    """The condition did not hold; `item` is the item as it is, where DynamoDB returns it."""

    def __init__(self, item: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.item = item


def _key(name: str) -> dict[str, Any]:
    return {"name": {"S": name}}


def _name(attribute: str, names: dict[str, str]) -> str:
    """Give a short placeholder for an attribute: an expression holds 4 KB, and some words are reserved.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ReservedWords.html
    """
    used = next((placeholder for placeholder, name in names.items() if name == attribute), None)
    placeholder = used or f"#{len(names):x}"
    names[placeholder] = attribute
    return placeholder


def _value(placeholder: str) -> str:
    return placeholder.replace("#", ":")


def _condition(expected: Expected | None, names: dict[str, str], texts: dict[str, Any]) -> dict[str, Any]:
    if expected is None:
        return {}
    name = _name(expected.attribute, names)
    if expected.text is None:
        term = f"attribute_not_exists({name})"
    else:
        texts[":expected"] = {"S": expected.text}
        term = f"{name} = :expected"
    return {"ConditionExpression": term, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}


def _values(item: Mapping[str, Any]) -> Values:
    return {attribute: _texts(value) for attribute, value in item.items() if attribute != "name"}


def _texts(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Read an attribute.

    One of another type was written by hand. As two texts no reader takes it for a value, so its item is
    reported as unreadable, and a list goes on.
    """
    ((kind, content),) = value.items()
    if kind == "S":
        return (content,)
    return tuple(content) if kind == "SS" else (kind, str(content))
