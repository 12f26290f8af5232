"""The local SimpleDB through boto3: operations, conditions, limits, regions and the XML of its answers.

The cases are those of the SimpleDB developer guide (API version 2009-04-15); errors its "API Error Codes".
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import boto3
import botocore.awsrequest
import botocore.config
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws
from moto.core.request import normalize_request

from local import simpledb
from local.simpledb.responses import Responses

DOMAIN = "my-domain"
SELECT_ALL = "select * from `my-domain`"


@pytest.fixture(scope="module")
def client() -> Any:
    simpledb.install()
    return boto3.client(
        "sdb", region_name="eu-west-1", aws_access_key_id="example", aws_secret_access_key="example"
    )


@pytest.fixture
def sdb(client: Any) -> Iterator[Any]:
    with mock_aws():
        client.create_domain(DomainName=DOMAIN)
        yield client


def pairs(*items: tuple[str, str], replace: bool | None = None) -> list[dict[str, Any]]:
    extra = {} if replace is None else {"Replace": replace}
    return [{"Name": name, "Value": value, **extra} for name, value in items]


def put(sdb: Any, item: str, *items: tuple[str, str], replace: bool | None = None, **more: Any) -> None:
    sdb.put_attributes(DomainName=DOMAIN, ItemName=item, Attributes=pairs(*items, replace=replace), **more)


def get(sdb: Any, item: str, **more: Any) -> dict[str, list[str]]:
    values_by_name: dict[str, list[str]] = {}
    answer = sdb.get_attributes(DomainName=DOMAIN, ItemName=item, **more)
    for attribute in answer.get("Attributes", []):
        values_by_name.setdefault(attribute["Name"], []).append(attribute["Value"])
    return {name: sorted(values) for name, values in values_by_name.items()}


def refused(call: Any, *args: Any, **kwargs: Any) -> tuple[str, int, str]:
    """Make a call that must fail; return the error's code, status and message."""
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


def ask(action: str | None = None, **form: str) -> tuple[int, str]:
    """Send a form as it is, without the checks of botocore; return status and body."""
    body = urlencode({**({"Action": action} if action else {}), "Version": "2009-04-15", **form})
    request = botocore.awsrequest.AWSRequest(
        method="POST",
        url="https://sdb.eu-west-1.amazonaws.com/",
        data=body,
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
    ).prepare()
    normalized = normalize_request(request)
    status, _, text = Responses.dispatch(normalized, normalized.raw_url, normalized.headers)
    return status, text


# Attributes are sets of values.


def test_a_put_adds_values_and_the_same_value_twice_is_one(sdb: Any) -> None:
    put(sdb, "JumboFez", ("color", "red"), ("color", "brick"))
    put(sdb, "JumboFez", ("color", "garnet"), ("color", "red"), replace=False)
    assert get(sdb, "JumboFez") == {"color": ["brick", "garnet", "red"]}


def test_replace_removes_the_attributes_former_values_and_no_other_attribute(sdb: Any) -> None:
    # The guide's own example under PutAttributes.
    put(sdb, "I", ("a", "1"), ("b", "2"), ("b", "3"))
    put(sdb, "I", ("b", "4"), replace=True)
    assert get(sdb, "I") == {"a": ["1"], "b": ["4"]}


def test_several_values_replaced_in_one_call_all_stay(sdb: Any) -> None:
    put(sdb, "I", ("b", "2"))
    put(sdb, "I", ("b", "4"), ("b", "5"), replace=True)
    assert get(sdb, "I") == {"b": ["4", "5"]}


def test_replace_on_one_pair_of_a_name_holds_for_the_name(sdb: Any) -> None:
    put(sdb, "I", ("b", "2"))
    attributes = [*pairs(("b", "3")), *pairs(("b", "4"), replace=True)]
    sdb.put_attributes(DomainName=DOMAIN, ItemName="I", Attributes=attributes)
    assert get(sdb, "I") == {"b": ["3", "4"]}


def test_replacing_an_absent_attribute_is_no_error(sdb: Any) -> None:
    put(sdb, "I", ("b", "4"), replace=True)
    assert get(sdb, "I") == {"b": ["4"]}


def test_names_and_values_keep_their_case_spaces_and_empty_values(sdb: Any) -> None:
    put(sdb, "I", ("Size", " "), ("size", ""), ("s", "a\tb\r\nc & <d> 'é' \N{GRINNING FACE}"))
    assert get(sdb, "I") == {"Size": [" "], "size": [""], "s": ["a\tb\r\nc & <d> 'é' \N{GRINNING FACE}"]}


def test_deleting_a_value_leaves_the_others(sdb: Any) -> None:
    put(sdb, "JumboFez", ("color", "red"), ("color", "brick"), ("color", "garnet"), ("color", "blue"))
    deleted = pairs(("color", "red"), ("color", "brick"), ("color", "garnet"))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="JumboFez", Attributes=deleted)
    assert get(sdb, "JumboFez") == {"color": ["blue"]}


def test_deleting_the_empty_value_deletes_only_that(sdb: Any) -> None:
    put(sdb, "I", ("a", ""), ("a", "1"))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="I", Attributes=pairs(("a", "")))
    assert get(sdb, "I") == {"a": ["1"]}


def test_deleting_an_attribute_takes_all_its_values(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"), ("a", "2"), ("b", "3"))
    # botocore's model wants a Value; the service does not.
    assert ask("DeleteAttributes", DomainName=DOMAIN, ItemName="I", **{"Attribute.1.Name": "a"})[0] == 200
    assert get(sdb, "I") == {"b": ["3"]}


def test_deleting_without_attributes_takes_the_item(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="I")
    assert get(sdb, "I") == {}
    assert sdb.domain_metadata(DomainName=DOMAIN)["ItemCount"] == 0


def test_an_item_whose_last_value_goes_does_not_exist(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="I", Attributes=pairs(("a", "1")))
    assert sdb.domain_metadata(DomainName=DOMAIN)["ItemCount"] == 0
    assert "Items" not in sdb.select(SelectExpression=SELECT_ALL)


def test_deleting_an_absent_value_or_item_is_no_error(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="I", Attributes=pairs(("a", "2"), ("b", "1")))
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="nobody")
    assert get(sdb, "I") == {"a": ["1"]}


def test_get_returns_the_attributes_asked_for(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"))
    assert get(sdb, "I", AttributeNames=["a", "c", "nothing"], ConsistentRead=True) == {
        "a": ["1", "2"],
        "c": ["4"],
    }


# Batches.


def test_a_batch_put_writes_its_items(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"), ("b", "2"), ("b", "3"))
    items = [
        {"Name": "I", "Attributes": pairs(("b", "4"), replace=True)},
        {"Name": "J", "Attributes": pairs(("a", "5"))},
    ]
    sdb.batch_put_attributes(DomainName=DOMAIN, Items=items)
    assert get(sdb, "I") == {"a": ["1"], "b": ["4"]}
    assert get(sdb, "J") == {"a": ["5"]}


def test_a_batch_put_with_one_bad_item_writes_none(sdb: Any) -> None:
    put(sdb, "full", *((f"a{i}", "x") for i in range(256)))
    items = [
        {"Name": "J", "Attributes": pairs(("a", "5"))},
        {"Name": "full", "Attributes": pairs(("b", "5"))},
    ]
    code, status, _ = refused(sdb.batch_put_attributes, DomainName=DOMAIN, Items=items)
    assert (code, status) == ("NumberItemAttributesExceeded", 409)
    assert get(sdb, "J") == {}


def test_a_batch_names_each_item_once(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    items = [{"Name": "I", "Attributes": pairs(("a", "2"))}, {"Name": "I", "Attributes": pairs(("a", "3"))}]
    expected = ("DuplicateItemName", 400, "Item I was specified more than once.")
    assert refused(sdb.batch_put_attributes, DomainName=DOMAIN, Items=items) == expected
    assert refused(sdb.batch_delete_attributes, DomainName=DOMAIN, Items=items) == expected
    assert get(sdb, "I") == {"a": ["1"]}


def test_a_batch_holds_25_items(sdb: Any) -> None:
    items = [{"Name": f"I{i}", "Attributes": pairs(("a", "1"))} for i in range(26)]
    expected = (
        "NumberSubmittedItemsExceeded",
        409,
        "Too many items in a single call. Up to 25 items per call allowed.",
    )
    assert refused(sdb.batch_put_attributes, DomainName=DOMAIN, Items=items) == expected
    assert refused(sdb.batch_delete_attributes, DomainName=DOMAIN, Items=items) == expected
    sdb.batch_put_attributes(DomainName=DOMAIN, Items=items[:25])
    assert sdb.domain_metadata(DomainName=DOMAIN)["ItemCount"] == 25


def test_a_batch_delete_takes_values_and_items(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"), ("a", "2"))
    put(sdb, "J", ("a", "1"))
    put(sdb, "K", ("a", "1"))
    items = [{"Name": "I", "Attributes": pairs(("a", "1"))}, {"Name": "J"}, {"Name": "nobody"}]
    sdb.batch_delete_attributes(DomainName=DOMAIN, Items=items)
    assert [get(sdb, item) for item in "IJK"] == [{"a": ["2"]}, {}, {"a": ["1"]}]


# Conditions.

MULTI_VALUED = (
    "Attribute (color) is multi-valued. Conditional check can only be performed on a single-valued attribute"
)


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (
            {"Name": "quantity", "Value": "14"},
            (
                "ConditionalCheckFailed",
                409,
                "Conditional check failed. Attribute (quantity) value is (15) but was expected (14)",
            ),
        ),
        (
            {"Name": "quantity", "Value": "14", "Exists": True},
            (
                "ConditionalCheckFailed",
                409,
                "Conditional check failed. Attribute (quantity) value is (15) but was expected (14)",
            ),
        ),
        (
            {"Name": "quantity", "Exists": False},
            ("ConditionalCheckFailed", 409, "Conditional check failed. Attribute (quantity) value exists."),
        ),
        (
            {"Name": "nothing", "Value": "1"},
            ("AttributeDoesNotExist", 404, "Attribute (nothing) does not exist"),
        ),
        (
            {"Name": "color", "Value": "red"},
            (
                "MultiValuedAttribute",
                409,
                MULTI_VALUED,
            ),
        ),
        (
            {"Name": "color", "Exists": False},
            ("ConditionalCheckFailed", 409, "Conditional check failed. Attribute (color) value exists."),
        ),
        (
            {"Name": "quantity"},
            (
                "IncompleteExpectedExpression",
                400,
                "If Expected.Exists=true or unspecified, then Expected.Value has to be specified",
            ),
        ),
        (
            {"Name": "quantity", "Exists": True},
            (
                "IncompleteExpectedExpression",
                400,
                "If Expected.Exists=true or unspecified, then Expected.Value has to be specified",
            ),
        ),
        (
            {"Name": "quantity", "Value": "15", "Exists": False},
            (
                "ExistsAndExpectedValue",
                400,
                "Expected.Exists=false and Expected.Value cannot be specified together",
            ),
        ),
        ({"Value": "15"}, ("MissingParameter", 400, "The request must contain the parameter Name")),
    ],
)
def test_a_condition_that_does_not_hold_stops_put_and_delete(
    sdb: Any, expected: dict[str, Any], error: tuple[str, int, str]
) -> None:
    put(sdb, "JumboFez", ("quantity", "15"), ("color", "red"), ("color", "brick"))
    before = get(sdb, "JumboFez")
    assert refused(put, sdb, "JumboFez", ("quantity", "13"), replace=True, Expected=expected) == error
    assert refused(sdb.delete_attributes, DomainName=DOMAIN, ItemName="JumboFez", Expected=expected) == error
    assert get(sdb, "JumboFez") == before


def test_a_condition_that_holds_lets_the_write_through(sdb: Any) -> None:
    put(sdb, "I", ("version", "1"), Expected={"Name": "version", "Exists": False})
    put(sdb, "I", ("version", "2"), replace=True, Expected={"Name": "version", "Value": "1", "Exists": True})
    assert get(sdb, "I") == {"version": ["2"]}
    sdb.delete_attributes(DomainName=DOMAIN, ItemName="I", Expected={"Name": "version", "Value": "2"})
    assert get(sdb, "I") == {}


def test_a_condition_on_an_item_that_does_not_exist_is_on_no_attribute(sdb: Any) -> None:
    code, status, _ = refused(put, sdb, "new", ("a", "1"), Expected={"Name": "a", "Value": "1"})
    assert (code, status) == ("AttributeDoesNotExist", 404)
    assert get(sdb, "new") == {}


def test_a_condition_may_be_numbered_and_there_is_at_most_one(sdb: Any) -> None:
    # "Performing a Conditional Put" writes Expected.1.Name, the API reference Expected.Name.
    put(sdb, "I", ("version", "30"))
    form = {"DomainName": DOMAIN, "ItemName": "I", "Attribute.1.Name": "state", "Attribute.1.Value": "fuzzy"}
    wrong = ask("PutAttributes", **form, **{"Expected.1.Name": "version", "Expected.1.Value": "31"})
    assert wrong[0] == 409
    right = ask("PutAttributes", **form, **{"Expected.1.Name": "version", "Expected.1.Value": "30"})
    assert right[0] == 200
    for code, member in [
        ("MultipleExpectedNames", "Name"),
        ("MultipleExpectedValues", "Value"),
        ("MultipleExistsConditions", "Exists"),
    ]:
        two = {f"Expected.1.{member}": "true", f"Expected.2.{member}": "true"}
        status, body = ask("PutAttributes", **form, **two)
        assert (status, f"<Code>{code}</Code>" in body) == (400, True)


# Limits.


@pytest.mark.parametrize("kind", ["item", "name", "value"])
def test_names_and_values_are_up_to_1024_bytes(sdb: Any, kind: str) -> None:
    def write(text: str) -> None:
        item, name, value = (text if kind == part else "x" for part in ("item", "name", "value"))
        put(sdb, item, (name, value))

    write("é" * 512)  # two bytes each
    code, status, message = refused(write, "é" * 512 + "x")
    assert (code, status) == ("InvalidParameterValue", 400)
    assert message.endswith("length of 1024.")


def test_names_are_not_empty(sdb: Any) -> None:
    assert refused(put, sdb, "", ("a", "1"))[:2] == ("InvalidParameterValue", 400)
    assert refused(put, sdb, "I", ("", "1"))[:2] == ("InvalidParameterValue", 400)


def test_an_item_holds_256_pairs(sdb: Any) -> None:
    put(sdb, "I", *(("a", str(i)) for i in range(256)))
    put(sdb, "I", ("a", "7"))  # there already
    assert refused(put, sdb, "I", ("a", "256")) == (
        "NumberItemAttributesExceeded",
        409,
        "Too many attributes in this item.",
    )
    put(sdb, "I", ("a", "256"), replace=True)
    assert get(sdb, "I") == {"a": ["256"]}


def test_a_put_takes_256_attributes(sdb: Any) -> None:
    code, status, message = refused(put, sdb, "I", *(("a", str(i)) for i in range(257)))
    assert (code, status) == ("NumberSubmittedAttributesExceeded", 409)
    assert (
        message == "Too many attributes for item I in a single call. Up to 256 attributes per call allowed."
    )


@pytest.mark.parametrize("name", ["ab", "a" * 256, "no spaces", "no/slash", "é" * 3, "abc\n"])
def test_a_domain_name_is_3_to_255_of_a_few_characters(sdb: Any, name: str) -> None:
    error = ("InvalidParameterValue", 400, f"Value ({name}) for parameter DomainName is invalid.")
    assert refused(sdb.create_domain, DomainName=name) == error
    assert refused(sdb.get_attributes, DomainName=name, ItemName="I") == error
    sdb.create_domain(DomainName="aZ9_.-" + "a" * 249)


def test_an_account_has_250_domains(sdb: Any) -> None:
    for i in range(249):
        sdb.create_domain(DomainName=f"more-{i}")
    assert refused(sdb.create_domain, DomainName="too-many") == (
        "NumberDomainsExceeded",
        409,
        "The domain limit was exceeded.",
    )
    sdb.create_domain(DomainName="more-7")  # there already


# Domains.


def test_creating_a_domain_again_keeps_its_items(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    sdb.create_domain(DomainName=DOMAIN)
    assert get(sdb, "I") == {"a": ["1"]}


def test_deleting_a_domain_deletes_its_items_and_may_be_repeated(sdb: Any) -> None:
    put(sdb, "I", ("a", "1"))
    sdb.delete_domain(DomainName=DOMAIN)
    sdb.delete_domain(DomainName=DOMAIN)
    assert refused(sdb.get_attributes, DomainName=DOMAIN, ItemName="I") == (
        "NoSuchDomain",
        400,
        "The specified domain does not exist.",
    )
    sdb.create_domain(DomainName=DOMAIN)
    assert get(sdb, "I") == {}


def test_an_unknown_domain_is_refused_by_every_operation_on_items(sdb: Any) -> None:
    item = {"Name": "I", "Attributes": pairs(("a", "1"))}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (sdb.get_attributes, {"DomainName": "nowhere", "ItemName": "I"}),
        (
            sdb.put_attributes,
            {"DomainName": "nowhere", "ItemName": "I", "Attributes": pairs(("a", "1"))},
        ),
        (sdb.delete_attributes, {"DomainName": "nowhere", "ItemName": "I"}),
        (sdb.batch_put_attributes, {"DomainName": "nowhere", "Items": [item]}),
        (sdb.batch_delete_attributes, {"DomainName": "nowhere", "Items": [item]}),
        (sdb.domain_metadata, {"DomainName": "nowhere"}),
        (sdb.select, {"SelectExpression": "select * from nowhere"}),
    ]
    assert {refused(call, **arguments)[0] for call, arguments in calls} == {"NoSuchDomain"}


def test_domains_are_listed_page_by_page(sdb: Any) -> None:
    names = sorted([DOMAIN, *(f"domain-{i:03}" for i in range(120))])
    for name in names:
        sdb.create_domain(DomainName=name)
    first = sdb.list_domains()
    assert first["DomainNames"] == names[:100]
    assert sdb.list_domains(NextToken=first["NextToken"])["DomainNames"] == names[100:]
    paginator = sdb.get_paginator("list_domains")
    pages = paginator.paginate(PaginationConfig={"PageSize": 50})
    assert [len(page["DomainNames"]) for page in pages] == [50, 50, 21]
    last = sdb.list_domains(MaxNumberOfDomains=100, NextToken=first["NextToken"])
    assert "NextToken" not in last


@pytest.mark.parametrize("most", [0, 101, -1])
def test_a_page_of_domains_is_1_to_100(sdb: Any, most: int) -> None:
    code, status, message = refused(sdb.list_domains, MaxNumberOfDomains=most)
    assert (code, status) == ("InvalidParameterValue", 400)
    assert message == (
        f"Value ({most}) for parameter MaxNumberOfDomains is invalid. "
        "MaxNumberOfDomains must be between 1 and 100."
    )


@pytest.mark.parametrize("token", ["", "nonsense", base64.b64encode(b'["x", "y", "z"]').decode(), "MTIz"])
def test_a_token_of_no_answer_is_refused(sdb: Any, token: str) -> None:
    error = ("InvalidNextToken", 400, "The specified next token is not valid.")
    assert refused(sdb.list_domains, NextToken=token) == error
    assert refused(sdb.select, SelectExpression=SELECT_ALL, NextToken=token) == error


def test_metadata_counts_items_names_and_values_in_bytes(sdb: Any) -> None:
    put(sdb, "one", ("é", "12"), ("é", "345"), ("b", ""))
    put(sdb, "three", ("b", "ü"))
    metadata = sdb.domain_metadata(DomainName=DOMAIN)
    assert {name: metadata[name] for name in metadata if name not in ("ResponseMetadata", "Timestamp")} == {
        "ItemCount": 2,
        "ItemNamesSizeBytes": 8,
        "AttributeNameCount": 2,
        "AttributeNamesSizeBytes": 3,
        "AttributeValueCount": 4,
        "AttributeValuesSizeBytes": 7,
    }
    assert metadata["Timestamp"] > 1_700_000_000


# Regions.


def test_every_region_has_its_own_store(sdb: Any) -> None:
    regions = boto3.Session().get_available_regions("sdb")
    assert {"us-east-1", "eu-west-1"} < set(regions)
    for region in regions:
        client = boto3.client("sdb", region_name=region)
        client.create_domain(DomainName=region)
    for region in regions:
        client = boto3.client("sdb", region_name=region)
        names = client.list_domains()["DomainNames"]
        assert sorted(names) == sorted({region} | ({DOMAIN} if region == "eu-west-1" else set()))


def test_a_region_without_simpledb_has_no_endpoint(sdb: Any) -> None:
    client = boto3.client(
        "sdb", region_name="eu-central-1", config=botocore.config.Config(retries={"max_attempts": 0})
    )
    with pytest.raises(EndpointConnectionError, match=r"sdb\.eu-central-1\.amazonaws\.com"):
        client.list_domains()


def test_a_store_is_empty_in_the_next_mock(client: Any) -> None:
    for _ in range(2):
        with mock_aws():
            assert "DomainNames" not in client.list_domains()
            client.create_domain(DomainName=DOMAIN)


# The XML.


def test_answers_have_the_services_shape(sdb: Any) -> None:
    form = {"Attribute.0.Name": "a", "Attribute.0.Value": "1", "Attribute.0.Replace": "true"}
    status, body = ask("PutAttributes", DomainName=DOMAIN, ItemName="I", **form)
    assert status == 200
    assert body.startswith(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<PutAttributesResponse xmlns="http://sdb.amazonaws.com/doc/2009-04-15/"><ResponseMetadata><RequestId>'
    )
    assert body.endswith(
        "</RequestId><BoxUsage>0.0000219907</BoxUsage></ResponseMetadata></PutAttributesResponse>"
    )


def test_errors_have_the_services_shape_and_its_box_usage(sdb: Any) -> None:
    status, body = ask("GetAttributes", DomainName="no-<such>", ItemName="I")
    assert status == 400
    assert (
        "<Response><Errors><Error><Code>InvalidParameterValue</Code>"
        "<Message>Value (no-&lt;such&gt;) for parameter DomainName is invalid.</Message>"
        "<BoxUsage>0.0000219907</BoxUsage></Error></Errors><RequestID>"
    ) in body


@pytest.mark.parametrize(
    ("action", "form", "code", "words"),
    [
        (None, {}, "MissingAction", "No action"),
        ("Frobnicate", {}, "InvalidAction", "Frobnicate"),
        ("CreateDomain", {}, "MissingParameter", "parameter DomainName"),
        ("GetAttributes", {"DomainName": DOMAIN}, "MissingParameter", "parameter ItemName"),
        ("Select", {}, "MissingParameter", "parameter SelectExpression"),
        (
            "PutAttributes",
            {"DomainName": DOMAIN, "ItemName": "I"},
            "MissingParameter",
            "No attributes for item",
        ),
        (
            "PutAttributes",
            {"DomainName": DOMAIN, "ItemName": "I", "Attribute.1.Name": "a"},
            "MissingParameter",
            "Attribute.Value missing for Attribute.Name='a'",
        ),
        (
            "DeleteAttributes",
            {"DomainName": DOMAIN, "ItemName": "I", "Attribute.1.Value": "a"},
            "MissingParameter",
            "Attribute.Name missing for Attribute.Value='a'",
        ),
        ("BatchPutAttributes", {"DomainName": DOMAIN}, "MissingParameter", "parameter ItemName"),
        (
            "BatchPutAttributes",
            {"DomainName": DOMAIN, "Item.1.Attribute.1.Name": "a"},
            "MissingParameter",
            "parameter ItemName",
        ),
        (
            "PutAttributes",
            {
                "DomainName": DOMAIN,
                "ItemName": "I",
                "Attribute.1.Name": "a",
                "Attribute.1.Value": "1",
                "Attribute.1.Replace": "maybe",
            },
            "InvalidParameterValue",
            "Value (maybe) for parameter Replace is invalid. The Replace flag should be either true",
        ),
        (
            "PutAttributes",
            {
                "DomainName": DOMAIN,
                "ItemName": "I",
                "Attribute.1.Name": "a",
                "Attribute.1.Value": "1",
                "Expected.Name": "a",
                "Expected.Exists": "maybe",
            },
            "InvalidParameterValue",
            "Value (maybe) for parameter Expected.Exists is invalid. Expected.Exists should be either true",
        ),
        (
            "GetAttributes",
            {"DomainName": DOMAIN, "ItemName": "I", "ConsistentRead": "maybe"},
            "InvalidParameterValue",
            "Value (maybe) for parameter ConsistentRead is invalid.",
        ),
        (
            "Select",
            {"SelectExpression": "select * from x", "ConsistentRead": "maybe"},
            "InvalidParameterValue",
            "Value (maybe) for parameter ConsistentRead is invalid.",
        ),
    ],
)
def test_a_missing_or_wrong_field_is_an_error_that_names_it(
    sdb: Any, action: str | None, form: dict[str, str], code: str, words: str
) -> None:
    status, body = ask(action, **form)
    assert status == 400
    assert f"<Code>{code}</Code>" in body
    assert words in body


def test_an_error_that_repeats_text_that_xml_cannot_hold_is_still_xml(sdb: Any) -> None:
    code, status, message = refused(sdb.create_domain, DomainName="a\x00b")
    assert (code, status) == ("InvalidParameterValue", 400)
    assert message == "Value (a\N{REPLACEMENT CHARACTER}b) for parameter DomainName is invalid."


def test_text_that_xml_cannot_hold_is_returned_as_base64_and_marked_so(sdb: Any) -> None:
    form = {"Attribute.1.Name": "a\x01", "Attribute.1.Value": "\x00\ufffe"}
    assert ask("PutAttributes", DomainName=DOMAIN, ItemName="I\x02", **form)[0] == 200
    body = ask("Select", SelectExpression=SELECT_ALL)[1]

    def element(tag: str, text: str) -> str:
        return f'<{tag} encoding="base64">{base64.b64encode(text.encode()).decode()}</{tag}>'

    attribute = element("Name", "a\x01") + element("Value", "\x00\ufffe")
    assert f"<Item>{element('Name', 'I' + chr(2))}<Attribute>{attribute}</Attribute></Item>" in body
