"""A DynamoDB table as a store of records; its key is `name`.

The trail's table has indexes, which sort its grants by `order`. The tables of refusals and ledgers have none:
they are scanned, consistently, and sorted here if an order is given: on disk beyond some thousands of items.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from knock_admin.errors import AdminError, code_of
from knock_admin.output import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from knock_admin.aws import Aws
    from knock_admin.stores import AnyOf, Order, Values, Where

# Each has this attribute as its partition key and `order` as its sort key; the most selective first.
# template.yaml makes them.
INDEXES = {"closed_at": "by-closed-at", "kind": "by-kind"}

# Attributes that the functions write as sets, also if there is one text.
SETS = frozenset({"event", "rule", "target_name"})

SORTED_IN_MEMORY = 10_000


class DynamoDb:
    """The table `name` in a region; `indexes` has the names of its indexes by their partition keys."""

    def __init__(self, aws: Aws, region: str, name: str, indexes: Mapping[str, str]) -> None:
        self._aws, self._region, self._name, self._indexes = aws, region, name, indexes

    @property
    def where(self) -> str:
        return f"the table {self._name} in {self._region}"

    def get(self, name: str) -> Values:
        if not name:  # a key cannot be empty, and DynamoDB rejects a request with an empty one
            return {}
        with self._explained():
            answer = self._client.get_item(
                TableName=self._name, Key={"name": {"S": name}}, ConsistentRead=True
            )
        return _values(answer.get("Item", {}))

    def select(self, where: Sequence[AnyOf] = (), order: Order | None = None) -> Iterator[tuple[str, Values]]:
        key = self._key_of(where)
        if order and not key:
            return _sorted(self._pages(*_filter(where), ConsistentRead=True), order)
        if not key:
            return self._pages(*_filter(where), ConsistentRead=True)
        keys = [
            condition
            for either in where
            for condition in either
            if len(either) == 1 and condition.attribute in key
        ]
        filters = [either for either in where if len(either) > 1 or either[0] not in keys]
        first, last, outside = _range(keys)
        if first and last and first > last:  # DynamoDB rejects an empty range
            return iter(())
        partition = next(condition for condition in keys if condition.attribute == key[0])
        items = self._pages(
            *_filter(filters),
            keys=_key_condition(partition, first, last),
            IndexName=self._indexes[key[0]],
            ScanIndexForward=order != "descending",
        )
        return (item for item in items if item[1]["order"][0] not in outside)

    def add(self, name: str, values: Values) -> bool:
        item = {attribute: _written(attribute, texts) for attribute, texts in values.items()}
        with self._explained():
            try:
                self._client.put_item(
                    TableName=self._name,
                    Item=item | {"name": {"S": name}},
                    ConditionExpression="attribute_not_exists(kind)",
                )
            except ClientError as error:
                if code_of(error) != "ConditionalCheckFailedException":
                    raise
                return False
        return True

    def health(self) -> Iterator[tuple[str, str]]:
        with self._explained():
            table = self._client.describe_table(TableName=self._name)["Table"]
            backups = self._client.describe_continuous_backups(TableName=self._name)
        yield from (("fail", fault) for fault in self._faults(table))
        if not table.get("DeletionProtectionEnabled"):
            yield "warn", f"{self._name} may be deleted: its deletion protection is off"
        described = backups["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
        if described.get("PointInTimeRecoveryStatus") != "ENABLED":
            yield "warn", f"{self._name} has no backups: its point-in-time recovery is off"
        # DynamoDB updates these numbers every six hours:
        # https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TableDescription.html
        size = f"{count(table.get('ItemCount', 0), 'item')}, {table.get('TableSizeBytes', 0) >> 20} MB"
        yield "ok", f"{self._name} in {self._region}: {size}, as counted in the last six hours"

    def check(self) -> None:
        """Raise AdminError for a table that has not Knock's schema."""
        with self._explained():
            table = self._client.describe_table(TableName=self._name)["Table"]
        if faults := list(self._faults(table)):
            raise AdminError("; ".join(faults))

    # ------------------------------------------------------------------ DynamoDB

    def _faults(self, table: Mapping[str, Any]) -> Iterator[str]:
        if table["TableStatus"] not in ("ACTIVE", "UPDATING"):
            yield f"{self._name} is {table['TableStatus']}"
        if table["KeySchema"] != [_schema("name", "HASH")]:
            yield f"{self._name} is no table of Knock's: its key is not `name`"
        known = {index["IndexName"]: index for index in table.get("GlobalSecondaryIndexes", ())}
        for attribute, index in self._indexes.items():
            schema = [_schema(attribute, "HASH"), _schema("order", "RANGE")]
            if index not in known or known[index]["KeySchema"] != schema:
                yield f"{self._name} has no index {index} of {attribute} and order, as the trail's table has"
            elif known[index].get("IndexStatus", "ACTIVE") != "ACTIVE":
                yield f"the index {index} of {self._name} is {known[index]['IndexStatus']}"

    def _key_of(self, where: Sequence[AnyOf]) -> tuple[str, str] | None:
        """Give the keys of the most selective index that the conditions allow, or None."""
        fixed = {
            condition.attribute
            for (condition, *more) in where
            if not more and condition.is_ == "=" and condition.text
        }
        return next(((name, "order") for name in self._indexes if name in fixed), None)

    def _pages(
        self,
        condition: str,
        names: Mapping[str, str],
        texts: Mapping[str, Any],
        keys: tuple[str, Mapping[str, str], Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> Iterator[tuple[str, Values]]:
        """Yield the items of all pages: of a query of an index by `keys`, or of a scan of the table."""
        key_condition, key_names, key_texts = keys or ("", {}, {})
        arguments |= {"TableName": self._name}
        arguments |= {"KeyConditionExpression": key_condition} if keys else {}
        arguments |= {"FilterExpression": condition} if condition else {}
        arguments |= {"ExpressionAttributeNames": {**names, **key_names}} if names or key_names else {}
        arguments |= {"ExpressionAttributeValues": {**texts, **key_texts}} if texts or key_texts else {}
        while True:
            with self._explained(arguments.get("IndexName", "")):
                answer = (self._client.query if keys else self._client.scan)(**arguments)
            for item in answer["Items"]:
                if "S" not in item.get("name", {}):
                    raise self._strange("an item has no `name`")
                yield item["name"]["S"], _values(item)
            if not answer.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    @property
    def _client(self) -> Any:
        return self._aws.client("dynamodb", self._region)

    @contextmanager
    def _explained(self, index: str = "") -> Iterator[None]:
        """Raise AdminError for a table or index that does not exist, or has another schema."""
        try:
            yield
        except ClientError as error:
            code, message = code_of(error), error.response["Error"].get("Message", "")
            if code == "ResourceNotFoundException":
                raise AdminError(
                    f"There is no DynamoDB table {self._name} in {self._region}"
                    + (f", or it has no index {index}" if index else "")
                    + ". It was deleted, or the name is wrong: compare the stack's outputs."
                ) from error
            if code == "ValidationException":
                raise self._strange(message) from error
            raise

    def _strange(self, fault: str) -> AdminError:
        return AdminError(
            f"The DynamoDB table {self._name} in {self._region} is not of the shape that Knock's has "
            f"(template.yaml makes it): {fault}"
        )


def tables(aws: Aws, region: str) -> Iterator[str]:
    """Yield the names of a region's tables."""
    yield from aws.client("dynamodb", region).get_paginator("list_tables").paginate().search("TableNames[]")


def _schema(attribute: str, kind: str) -> dict[str, str]:
    return {"AttributeName": attribute, "KeyType": kind}


def _range(keys: Sequence[Where]) -> tuple[str, str, set[str]]:
    """Give the first and last `order` that conditions allow, empty without a bound, and those excluded."""
    bounds = [condition for condition in keys if condition.attribute == "order"]
    first = max((bound.text for bound in bounds if bound.is_ in (">", ">=")), default="")
    last = min((bound.text for bound in bounds if bound.is_ in ("<", "<=")), default="")
    return first, last, {bound.text for bound in bounds if bound.is_ in ("<", ">")}


def _key_condition(key: Where, first: str, last: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Write the condition on an index's keys. It may have one condition on `order`, with inclusive bounds.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Query.KeyConditionExpressions.html
    """
    term, names, texts = "#k = :k", {"#k": key.attribute}, {":k": {"S": key.text}}
    if first or last:
        names["#o"] = "order"
        texts |= {name: {"S": end} for name, end in ((":first", first), (":last", last)) if end}
        term += " and #o " + (
            "between :first and :last" if first and last else ">= :first" if first else "<= :last"
        )
    return term, names, texts


def _filter(where: Sequence[AnyOf]) -> tuple[str, dict[str, str], dict[str, Any]]:
    names: dict[str, str] = {}
    texts: dict[str, Any] = {}
    terms = []
    for either in where:
        alternatives = []
        for condition in either:
            name, value = f"#f{len(names)}", f":f{len(names)}"
            names[name], texts[value] = condition.attribute, {"S": condition.text}
            alternatives.append(f"{name} {condition.is_} {value}")
            if (
                condition.attribute in SETS and condition.is_ == "="
            ):  # of a text, `contains` would find a substring
                texts[":ss"] = {"S": "SS"}
                alternatives.append(f"(attribute_type({name}, :ss) and contains({name}, {value}))")
        term = " or ".join(alternatives)  # DynamoDB rejects redundant parentheses
        terms.append(f"({term})" if len(alternatives) > 1 and len(where) > 1 else term)
    return " and ".join(terms), names, texts


def _sorted(items: Iterable[tuple[str, Values]], order: Order) -> Iterator[tuple[str, Values]]:
    """Sort any number of items by `order`, with a merge sort in temporary files beyond SORTED_IN_MEMORY.

    Items without `order` are left out, as in an index.
    """

    def key(item: tuple[str, Values]) -> str:
        return item[1]["order"][0]

    backwards, ordered = order == "descending", (item for item in items if "order" in item[1])
    with ExitStack() as files:
        runs: list[Iterator[tuple[str, Values]]] = []
        while run := sorted(islice(ordered, SORTED_IN_MEMORY), key=key, reverse=backwards):
            if not runs and len(run) < SORTED_IN_MEMORY:
                yield from run
                return
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            file.writelines(f"{json.dumps(item)}\n" for item in run)
            file.seek(0)
            runs.append(
                (name, {attribute: tuple(texts) for attribute, texts in values.items()})
                for name, values in map(json.loads, file)
            )
        yield from heapq.merge(*runs, key=key, reverse=backwards)


def _written(attribute: str, texts: tuple[str, ...]) -> dict[str, Any]:
    if attribute in SETS or len(texts) > 1:
        return {"SS": sorted(set(texts))}
    return {"S": texts[0]}


def _values(item: Mapping[str, Any]) -> Values:
    return {attribute: _texts(value) for attribute, value in item.items() if attribute != "name"}


def _texts(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Read an attribute. A type that Knock does not write was made by hand, and is shown as text."""
    ((kind, content),) = value.items()
    if kind == "S":
        return (content,)
    return tuple(content) if kind == "SS" else (str(content),)
