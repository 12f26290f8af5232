"""The local SimpleDB inside moto: what `install` changes, how the server routes, what an upgrade may break.

The mend leans on a few of the internals of moto and is there because of its gaps. Both are checked against
moto as it is installed, in a process of its own where nothing is mended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import boto3
import moto.backend_index
import moto.sdb.urls
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from local import simpledb

KEYS = {"aws_access_key_id": "example", "aws_secret_access_key": "example"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    simpledb.install()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def client(endpoint: str, region: str = "eu-west-1", **config: Any) -> Any:
    settings = Config(max_pool_connections=8, **config)
    return boto3.client("sdb", region_name=region, endpoint_url=endpoint, config=settings, **KEYS)


@pytest.fixture
def sdb(endpoint: str) -> Any:
    sdb_client = client(endpoint)
    sdb_client.create_domain(DomainName="trail")
    return sdb_client


def test_installing_again_changes_nothing() -> None:
    simpledb.install()
    patterns = list(moto.backend_index.backend_url_patterns)
    urls = (list(moto.sdb.urls.url_bases), dict(moto.sdb.urls.url_paths))
    simpledb.install()
    assert moto.backend_index.backend_url_patterns == patterns
    assert (moto.sdb.urls.url_bases, moto.sdb.urls.url_paths) == urls
    assert [service for service, _ in patterns].count("sdb") == 1


# The server.


def test_the_server_answers_every_operation(sdb: Any) -> None:
    attributes = [{"Name": "a", "Value": "1 & <2>"}]
    sdb.put_attributes(DomainName="trail", ItemName="i", Attributes=attributes)
    sdb.batch_put_attributes(DomainName="trail", Items=[{"Name": "j", "Attributes": attributes}])
    assert (
        sdb.get_attributes(DomainName="trail", ItemName="i", ConsistentRead=True)["Attributes"] == attributes
    )
    items = sdb.select(SelectExpression="select * from trail where a like '%&%'", ConsistentRead=True)[
        "Items"
    ]
    assert items == [{"Name": "i", "Attributes": attributes}, {"Name": "j", "Attributes": attributes}]
    assert sdb.domain_metadata(DomainName="trail")["ItemCount"] == 2
    sdb.delete_attributes(DomainName="trail", ItemName="i")
    sdb.batch_delete_attributes(DomainName="trail", Items=[{"Name": "j"}])
    assert sdb.domain_metadata(DomainName="trail")["ItemCount"] == 0
    assert sdb.list_domains()["DomainNames"] == ["trail"]
    sdb.delete_domain(DomainName="trail")
    assert "DomainNames" not in sdb.list_domains()


def test_the_servers_errors_have_their_code_status_and_message(sdb: Any) -> None:
    with pytest.raises(ClientError) as caught:
        sdb.put_attributes(
            DomainName="trail",
            ItemName="i",
            Attributes=[{"Name": "state", "Value": "expired"}],
            Expected={"Name": "state", "Value": "live"},
        )
    answer = caught.value.response
    assert answer["Error"]["Code"] == "AttributeDoesNotExist"
    assert answer["Error"]["Message"] == "Attribute (state) does not exist"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 404
    with pytest.raises(sdb.exceptions.AttributeDoesNotExist):
        raise caught.value


def test_clients_of_a_bare_endpoint_share_one_store_whatever_their_region(endpoint: str, sdb: Any) -> None:
    # Signature Version 2 names no region, so nothing in their requests tells these clients apart.
    sdb.put_attributes(DomainName="trail", ItemName="i", Attributes=[{"Name": "a", "Value": "1"}])
    for region in ("us-east-1", "ap-southeast-2", "eu-central-1"):
        regional_client = client(endpoint, region)
        assert regional_client.get_attributes(DomainName="trail", ItemName="i")["Attributes"]


def test_the_host_names_the_region_where_there_is_one(endpoint: str, sdb: Any) -> None:
    def domains(host: str) -> bool:
        form = urlencode({"Action": "ListDomains", "Version": "2009-04-15"}).encode()
        with urlopen(Request(endpoint, data=form, headers={"Host": host})) as answer:  # noqa: S310 -- our own
            return b"<DomainName>trail</DomainName>" in answer.read()

    assert domains("sdb.amazonaws.com")
    assert domains("sdb.us-east-1.amazonaws.com")
    assert not domains("sdb.eu-west-1.amazonaws.com")


@pytest.mark.parametrize("agent", ["curl/8.5.0", "a name with spaces", "ends in a slash/", "Botocore/1.44.5"])
def test_the_servers_routing_does_not_depend_on_the_user_agent(endpoint: str, sdb: Any, agent: str) -> None:
    # moto's server takes what follows the last slash of the User-Agent for the region.
    form = urlencode({"Action": "ListDomains", "Version": "2009-04-15"}).encode()
    request = Request(endpoint, data=form, headers={"User-Agent": agent})  # noqa: S310 -- our own server
    with urlopen(request) as answer:  # noqa: S310
        assert b"<DomainName>trail</DomainName>" in answer.read()


def test_a_client_that_signs_with_version_4_is_answered_too(endpoint: str, sdb: Any) -> None:
    assert client(endpoint, "us-east-1", signature_version="v4").list_domains()["DomainNames"] == ["trail"]


def test_motos_reset_empties_the_store(endpoint: str, sdb: Any) -> None:
    assert sdb.list_domains()["DomainNames"] == ["trail"]
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # noqa: S310 -- our own server
    assert "DomainNames" not in sdb.list_domains()


def test_through_the_server_no_added_value_is_lost_and_one_conditional_write_wins(sdb: Any) -> None:
    sdb.put_attributes(DomainName="trail", ItemName="grant", Attributes=[{"Name": "state", "Value": "live"}])

    def add(number: int) -> None:
        for i in range(8):
            pair = {"Name": "claim", "Value": f"{number}-{i}", "Replace": False}
            sdb.put_attributes(DomainName="trail", ItemName="grant", Attributes=[pair])

    def end(number: int) -> str:
        pair = {"Name": "state", "Value": f"ended by {number}", "Replace": True}
        try:
            sdb.put_attributes(
                DomainName="trail",
                ItemName="grant",
                Attributes=[pair],
                Expected={"Name": "state", "Value": "live"},
            )
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return f"ended by {number}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
        results = list(pool.map(end, range(8)))
    attributes = sdb.get_attributes(DomainName="trail", ItemName="grant")["Attributes"]
    claims = {attribute["Value"] for attribute in attributes if attribute["Name"] == "claim"}
    assert claims == {f"{number}-{i}" for number in range(8) for i in range(8)}
    (state,) = (attribute["Value"] for attribute in attributes if attribute["Name"] == "state")
    assert sorted(results) == sorted(["ConditionalCheckFailed"] * 7 + [state])


# moto as it is, without the mend. Each line is one gap: True while it is there.

PLAIN_MOTO = """
import json
import boto3
from moto import mock_aws

def fails(call, **arguments):
    try:
        call(**arguments)
    except Exception:
        return True
    return False

gaps = {}
with mock_aws():
    sdb = boto3.client("sdb", region_name="eu-west-1")
    sdb.create_domain(DomainName="trail")
    put = lambda **more: sdb.put_attributes(DomainName="trail", ItemName="i", **more)
    get = lambda: sdb.get_attributes(DomainName="trail", ItemName="i").get("Attributes", [])
    two = [{"Name": "a", "Value": "1", "Replace": True}, {"Name": "a", "Value": "2", "Replace": True}]
    put(Attributes=two)
    gaps["Replace keeps one of several values"] = len(get()) == 1
    put(Attributes=[{"Name": "a", "Value": "2"}])
    gaps["a value added twice is there twice"] = len(get()) > 1
    gaps["Expected is ignored"] = not fails(put, Attributes=two, Expected={"Name": "a", "Value": "7"})
    sdb.create_domain(DomainName="trail")
    gaps["CreateDomain again wipes"] = not get()
    gaps["Select"] = fails(sdb.select, SelectExpression="select * from trail")
    gaps["DeleteAttributes"] = fails(sdb.delete_attributes, DomainName="trail", ItemName="i")
    gaps["DomainMetadata"] = fails(sdb.domain_metadata, DomainName="trail")
    item = {"Name": "i", "Attributes": two}
    gaps["BatchPutAttributes"] = fails(sdb.batch_put_attributes, DomainName="trail", Items=[item])
    gaps["BatchDeleteAttributes"] = fails(sdb.batch_delete_attributes, DomainName="trail", Items=[item])
    gaps["us-east-1 is not served"] = fails(boto3.client("sdb", region_name="us-east-1").list_domains)
print(json.dumps(gaps))
"""

INTERNALS = """
import json, inspect
import moto.backend_index, moto.sdb.models, moto.sdb.responses, moto.sdb.urls
from moto.core.base_backend import BaseBackend
from moto.core.responses import BaseResponse
from moto.moto_server import werkzeug_app

Response = moto.sdb.responses.SimpleDBResponse
print(json.dumps({
    "one url path, dispatched by SimpleDBResponse":
        moto.sdb.urls.url_paths == {"{0}/$": Response.dispatch} and len(moto.sdb.urls.url_bases) == 1,
    "one pattern in the index": [s for s, _ in moto.backend_index.backend_url_patterns].count("sdb") == 1,
    "the stub has its form read, which the mend turns off": Response().automated_parameter_parsing,
    "dispatch ends in call_action": "self.call_action()" in inspect.getsource(BaseResponse._dispatch),
    "call_action is the base's": Response.call_action is BaseResponse.call_action,
    "reset empties a backend's __dict__": "self.__dict__ = {}" in inspect.getsource(BaseBackend.reset),
    "the server knows SimpleDB by its version": werkzeug_app.SERVICE_BY_VERSION == {"2009-04-15": "sdb"},
}))
"""


def plain(program: str) -> dict[str, bool]:
    """Run a program in a process where nothing is mended; return the JSON it prints."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "example", "AWS_SECRET_ACCESS_KEY": "example"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=environment,
        timeout=60,
    )
    facts: dict[str, bool] = json.loads(result.stdout)
    return facts


def test_moto_still_has_the_gaps_the_mend_is_for() -> None:
    mended = [gap for gap, there in plain(PLAIN_MOTO).items() if not there]
    assert not mended, f"moto does these itself now: {mended}. When it does them all, local/simpledb can go."


def test_motos_internals_are_as_the_mend_expects_them() -> None:
    changed = [fact for fact, holds in plain(INTERNALS).items() if not holds]
    assert not changed, (
        f"No longer so in moto: {changed}. Read local/simpledb/__init__.py and responses.py again."
    )
