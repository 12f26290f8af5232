"""The slim data say of what functions call exactly what botocore's own say, and of nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore import xform_name
from botocore.exceptions import UnknownServiceError

from grants import wiring
from grants.models import SHARED, SlimLoader
from tests.conftest import ROOT
from tools import models

FILES = (*models.OPERATIONS, models.SHARED)
REGIONS = (
    "eu-west-1",
    "us-east-1",
    "ap-southeast-7",
    "cn-north-1",
    "us-gov-west-1",
    "eusc-de-east-1",
    "eu-west-9",
)

# Where a service is called, and how the calls look there.
CALLED = {
    "apigateway": ("grants/rights.py", r"\bself\._apigateway\.(\w+)\("),
    "dynamodb": ("grants/dynamodb.py", r'"([a-z]+_item)"|"(query)" if key else "(scan)"'),
    "ec2": ("grants/ingress.py", r'\bself\._client\.(\w+)\(|\bself\._pages\(\s*"(\w+)"'),
    "events": ("notify.py", r"\.events\.(\w+)\("),
    "lambda": ("rest/closing.py", r"\bself\.functions\.(\w+)\("),
    "resourcegroupstaggingapi": ("grants/rights.py", r'\bget_paginator\("(\w+)"'),
    "sdb": ("grants/simpledb.py", r'\bself\._call\("(\w+)"'),
    "sns": ("notify.py", r"\.topic\.(\w+)\("),
    "stepfunctions": ("grants/executions.py", r"\bself\._client\.(\w+)\("),
}
every_service = pytest.mark.parametrize("service", models.OPERATIONS)


@pytest.fixture(scope="module")
def plain() -> boto3.Session:
    """Give a session of botocore's own data."""
    return boto3.Session()


def slim_session(loader: SlimLoader) -> boto3.Session:
    core = botocore.session.get_session()
    core.register_component("data_loader", loader)
    return boto3.Session(botocore_session=core)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_installed_botocore_gives(name: str) -> None:
    assert models.path(name).read_text() == models.text(name), "run python -m tools.models"


def test_there_is_a_file_for_every_service_and_no_other() -> None:
    assert {path.name for path in models.FOLDER.iterdir()} == {f"{name}.json" for name in FILES}
    assert models.SHARED == SHARED


def test_the_services_are_those_that_functions_make_clients_of() -> None:
    sources = [path.read_text() for path in (ROOT / "functions").rglob("*.py")]
    services = {name for text in sources for name in re.findall(r'\.client\(\s*"([\w-]+)"', text)}
    assert services == set(models.OPERATIONS)


@every_service
def test_a_model_has_every_operation_that_is_called_and_no_other(service: str) -> None:
    """Mutation: tools/models.py: `"events": ("PutEvents",),` -> `"events": ("PutEvents", "PutRule"),`"""
    file, pattern = CALLED[service]
    matches = re.findall(pattern, (ROOT / "functions" / file).read_text())
    called = {name for match in matches for name in ([match] if isinstance(match, str) else match) if name}
    assert called == {xform_name(operation) for operation in models.OPERATIONS[service]}


@every_service
def test_a_functions_client_is_made_of_the_slim_model_with_the_endpoint_of_botocores_own(
    service: Any, plain: boto3.Session
) -> None:
    client = wiring._session().client(service, region_name="eu-west-1")
    assert sorted(client.meta.service_model.operation_names) == sorted(models.OPERATIONS[service])
    full = plain.client(service, region_name="eu-west-1").meta.service_model
    assert client.meta.service_model.api_version == full.api_version


@every_service
@pytest.mark.parametrize("region", REGIONS)
def test_a_call_goes_to_the_endpoint_that_it_goes_to_by_botocores_own_data(
    service: Any, region: str, plain: boto3.Session
) -> None:
    """In every partition, and in a region that is newer than the data."""

    def endpoint_of(session: boto3.Session) -> tuple[str, str]:
        client = session.client(
            service, region_name=region, aws_access_key_id="testing", aws_secret_access_key="testing"
        )
        resolver = client._ruleset_resolver
        model = client.meta.service_model.operation_model(models.OPERATIONS[service][0])
        endpoint = resolver.construct_endpoint(
            model, call_args={}, request_context={"client_config": client.meta.config}
        )
        return client.meta.endpoint_url, endpoint.url

    assert endpoint_of(wiring._session()) == endpoint_of(plain)


@pytest.mark.parametrize(
    ("service", "operation"),
    [(service, operation) for service, operations in models.OPERATIONS.items() for operation in operations],
)
def test_an_operation_takes_and_gives_what_it_does_in_the_full_model(
    service: Any, operation: str, plain: boto3.Session
) -> None:
    slim = wiring._session().client(service, region_name="eu-west-1").meta.service_model
    full = plain.client(service, region_name="eu-west-1").meta.service_model
    ours, theirs = slim.operation_model(operation), full.operation_model(operation)
    assert ours.http == theirs.http
    assert ours.metadata == theirs.metadata
    for shape, full_shape in (
        (ours.input_shape, theirs.input_shape),
        (ours.output_shape, theirs.output_shape),
    ):
        assert list(shape.members if shape else ()) == list(full_shape.members if full_shape else ())


def test_the_targets_are_paged_by_what_botocores_own_says(plain: boto3.Session) -> None:
    client = wiring._session().client("resourcegroupstaggingapi", region_name="eu-west-1")
    full = plain.client("resourcegroupstaggingapi", region_name="eu-west-1")
    assert (
        vars(client.get_paginator("get_resources"))["_pagination_cfg"]
        == (vars(full.get_paginator("get_resources"))["_pagination_cfg"])
    )


# ---------------------------------------------------------------------------- another botocore


def newer_botocore(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give botocore a folder of data of a newer version: every API is of another date, and has more data."""
    own = Path(SlimLoader.BUILTIN_DATA_PATH)
    for service in (*models.OPERATIONS, "sts"):
        newest = max((own / service).iterdir())
        shutil.copytree(newest, folder / service / "2099-12-31")
    for file in own.glob("*.json"):
        if file.name != "endpoints.json":  # 1.2 MB, and in ours
            shutil.copy(file, folder / file.name)
    (folder / "something-new.json").write_text('{"new": true}')
    monkeypatch.setattr(SlimLoader, "BUILTIN_DATA_PATH", str(folder))


def test_a_newer_botocore_finds_other_data_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: functions/grants/models.py: `model = super().load_service_model(` -> `model = dict(`"""
    newer_botocore(tmp_path, monkeypatch)
    loader = SlimLoader()
    assert loader.load_data("something-new") == {"new": True}
    assert loader.load_service_model("sts", "service-2")["metadata"]["serviceId"] == "STS"
    assert loader.load_service_model("ec2", "service-2", "2099-12-31")["operations"]["RunInstances"]
    assert "pagination" in loader.load_service_model("ec2", "paginators-1")
    with pytest.raises(UnknownServiceError):
        loader.load_service_model("no-such-service", "service-2")
    session = slim_session(loader)
    for service in models.OPERATIONS:
        client: Any = session.client(service, region_name="eu-west-1")  # type: ignore[call-overload]
        assert sorted(client.meta.service_model.operation_names) == sorted(models.OPERATIONS[service])
    assert session.client("sts", region_name="eu-west-1").meta.service_model.operation_names


@pytest.mark.parametrize("content", ["{", '{"service-2": {"metadata": {}}}'])
def test_where_botocore_rejects_the_slim_data_its_own_are_used_and_the_log_says_so(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: functions/grants/wiring.py:
    `            client = boto3.Session().client(service, **named)` -> `            raise`
    """
    for name in FILES:
        (tmp_path / f"{name}.json").write_text(content if name == "ec2" else models.path(name).read_text())
    monkeypatch.setattr(wiring, "_session", lambda: slim_session(SlimLoader(tmp_path)))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    errors: list[tuple[str, str]] = []
    monkeypatch.setattr(
        wiring.logger, "exception", lambda message, extra: errors.append((message, extra["of"]))
    )
    clients = wiring.Wiring()
    assert "run_instances" in dir(clients.client("ec2", wiring.ONCE))
    assert errors == [("slim_data_not_used", "ec2")]
    assert len(clients.client("sdb").meta.service_model.operation_names) == len(models.OPERATIONS["sdb"])


def test_a_service_that_botocore_lacks_too_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not mistaken for slim data that a new botocore rejects."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnknownServiceError):
        wiring.Wiring().client("no-such-service")


ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "eu-west-1",
    "KNOCK_STACK": "knock",
    "TRAIL_STORE": "simpledb",
    "TRAIL_DOMAIN": "knock-trail-x",
    "LEDGER_DOMAIN": "knock-ledger-x",
    "TRAIL_REGION": "eu-west-1",
    "STATE_MACHINE_ARN": "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-grants",
    "CLOSINGS_ARN": "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-closings",
}
