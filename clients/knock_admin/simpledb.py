"""A SimpleDB domain as a store of records. All reads are consistent."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from knock_admin.errors import AdminError, code_of
from knock_admin.output import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from knock_admin.aws import Aws
    from knock_admin.stores import AnyOf, Order, Values, Where

PAGE = 2500  # items; SimpleDB gives no more at once, nor more than 1 MB
LARGEST = 10 * 1024**3


class SimpleDb:
    """The domain `name` in a region."""

    def __init__(self, aws: Aws, region: str, name: str) -> None:
        self._aws, self._region, self._name = aws, region, name

    @property
    def where(self) -> str:
        return f"the domain {self._name} in {self._region}"

    def get(self, name: str) -> Values:
        with self._explained():
            answer = self._client.get_attributes(DomainName=self._name, ItemName=name, ConsistentRead=True)
        return _values(answer.get("Attributes", []))

    def select(self, where: Sequence[AnyOf] = (), order: Order | None = None) -> Iterator[tuple[str, Values]]:
        conditions = [" or ".join(map(_condition, either)) for either in where]
        # A Select may sort only by an attribute that has a condition.
        conditions += ["`order` is not null"] if order else []
        domain = self._name.replace("`", "``")
        expression = f"select * from `{domain}`"  # noqa: S608 - every value in it went through `quote`
        expression += (
            f" where {' and '.join(f'({condition})' for condition in conditions)}" if conditions else ""
        )
        expression += f" order by `order` {'asc' if order == 'ascending' else 'desc'}" if order else ""
        token: dict[str, str] = {}
        while True:
            with self._explained():
                answer = self._client.select(
                    SelectExpression=f"{expression} limit {PAGE}", ConsistentRead=True, **token
                )
            for item in answer.get("Items", []):
                yield item["Name"], _values(item["Attributes"])
            if not answer.get("NextToken"):
                return
            token = {"NextToken": answer["NextToken"]}

    def add(self, name: str, values: Values) -> bool:
        attributes = [
            {"Name": attribute, "Value": text, "Replace": False}
            for attribute, texts in values.items()
            for text in texts
        ]
        with self._explained():
            try:
                self._client.put_attributes(
                    DomainName=self._name,
                    ItemName=name,
                    Attributes=attributes,
                    Expected={"Name": "kind", "Exists": False},
                )
            except ClientError as error:
                if code_of(error) != "ConditionalCheckFailed":
                    raise
                return False
        return True

    def health(self) -> Iterator[tuple[str, str]]:
        regions = self._aws.trail_regions
        if self._region not in regions:
            yield "fail", f"{self._region} has no SimpleDB; it is in {', '.join(regions)}"
            return
        with self._explained():
            metadata = self._client.domain_metadata(DomainName=self._name)
        sizes = ("ItemNamesSizeBytes", "AttributeNamesSizeBytes", "AttributeValuesSizeBytes")
        size = sum(metadata[name] for name in sizes)
        usage = f"{count(metadata['ItemCount'], 'item')}, {size * 100 // LARGEST} % of 10 GB"
        yield "warn" if size > LARGEST * 8 // 10 else "ok", f"{self._name} in {self._region}: {usage}"

    @property
    def _client(self) -> Any:
        return self._aws.client("sdb", self._region)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise AdminError for a domain that does not exist."""
        try:
            yield
        except ClientError as error:
            if code_of(error) != "NoSuchDomain":
                raise
            raise AdminError(
                f"There is no SimpleDB domain {self._name} in {self._region}. It was deleted, or the name is "
                "wrong: compare the stack's outputs."
            ) from error


def quote(value: str) -> str:
    """Quote a value for a Select.

    https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/QuotingRulesSelect.html
    """
    return "'" + value.replace("'", "''") + "'"


def domains(aws: Aws, region: str) -> Iterator[str]:
    """Yield the names of a region's domains."""
    token: dict[str, str] = {}
    while True:
        answer = aws.client("sdb", region).list_domains(**token)
        yield from answer.get("DomainNames", [])
        if not answer.get("NextToken"):
            return
        token = {"NextToken": answer["NextToken"]}


def _condition(where: Where) -> str:
    attribute = where.attribute.replace("`", "``")
    return f"`{attribute}` {where.is_} {quote(where.text)}"


def _values(pairs: list[dict[str, str]]) -> Values:
    values: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        values[pair["Name"]] = (*values.get(pair["Name"], ()), pair["Value"])
    return values
