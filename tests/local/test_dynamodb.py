"""moto's DynamoDB, mended: a write of one item is atomic, and may have many attributes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from moto import mock_aws

from local import dynamodb
from local.aws import make_tables
from local.deployment import Table

WRITERS, TURNS = 8, 12


@pytest.fixture
def client() -> Iterator[Any]:
    dynamodb.install()
    with mock_aws():
        dynamodb_client = boto3.client("dynamodb", region_name="eu-west-1")
        definition = {
            "AttributeDefinitions": [{"AttributeName": "name", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "name", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        }
        make_tables([Table("T", "t", definition, backed_up=True)], dynamodb_client)
        yield dynamodb_client


@pytest.fixture
def hasty() -> Iterator[None]:
    """Have Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_of_concurrent_writers_under_one_condition_exactly_one_writes(client: Any) -> None:
    """Mutation: local/dynamodb.py: `with _lock:` -> `if True:`."""
    client.put_item(TableName="t", Item={"name": {"S": "n"}, "count": {"N": "0"}})

    def add_one(_writer: int) -> int:
        conflicts = 0
        for _ in range(TURNS):
            while True:
                item = client.get_item(TableName="t", Key={"name": {"S": "n"}}, ConsistentRead=True)["Item"]
                count = int(item["count"]["N"])
                try:
                    client.update_item(
                        TableName="t",
                        Key={"name": {"S": "n"}},
                        UpdateExpression="SET #c = :new",
                        ConditionExpression="#c = :old",
                        ExpressionAttributeNames={"#c": "count"},
                        ExpressionAttributeValues={":old": {"N": str(count)}, ":new": {"N": str(count + 1)}},
                    )
                    break
                except client.exceptions.ConditionalCheckFailedException:
                    conflicts += 1
        return conflicts

    with ThreadPoolExecutor(WRITERS) as pool:
        assert sum(pool.map(add_one, range(WRITERS))) > 0
    item = client.get_item(TableName="t", Key={"name": {"S": "n"}})["Item"]
    assert item["count"] == {"N": str(WRITERS * TURNS)}


def test_a_write_may_have_hundreds_of_attributes(client: Any) -> None:
    """Mutation: local/dynamodb.py: `max(before, DEEP)` -> `before`."""
    before = sys.getrecursionlimit()
    client.update_item(
        TableName="t",
        Key={"name": {"S": "n"}},
        UpdateExpression="SET " + ", ".join(f"#{n:x} = :{n:x}" for n in range(300)),
        ExpressionAttributeNames={f"#{n:x}": f"v{n}" for n in range(300)},
        ExpressionAttributeValues={f":{n:x}": {"S": "x"} for n in range(300)},
    )
    assert len(client.get_item(TableName="t", Key={"name": {"S": "n"}})["Item"]) == 301
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_write_that_fails_has_changed_nothing(client: Any, exists: bool) -> None:
    """Mutation: local/dynamodb.py: `except BaseException:` -> `except StopIteration:`."""
    item = {"name": {"S": "n"}, "text": {"S": "x"}} if exists else {}
    if exists:
        client.put_item(TableName="t", Item=item)
    with pytest.raises(client.exceptions.ClientError, match="ValidationException"):
        client.update_item(
            TableName="t",
            Key={"name": {"S": "n"}},
            UpdateExpression="SET #o = :x ADD #t :added",
            ExpressionAttributeNames={"#o": "other", "#t": "text"},
            ExpressionAttributeValues={":x": {"S": "x"}, ":added": {"SS": ["y"]} if exists else {"S": "y"}},
        )
    assert client.get_item(TableName="t", Key={"name": {"S": "n"}}).get("Item", {}) == item
    assert client.scan(TableName="t")["Count"] == int(exists)


def test_installing_it_again_changes_nothing(client: Any) -> None:
    mended = dynamodb.DynamoHandler.call_action
    dynamodb.install()
    assert dynamodb.DynamoHandler.call_action is mended


def test_a_table_keeps_backups_where_the_template_says_so(client: Any) -> None:
    description = client.describe_continuous_backups(TableName="t")["ContinuousBackupsDescription"]
    assert description["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
