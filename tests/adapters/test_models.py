"""The slim models say of what functions call exactly what botocore's own say, and of nothing else."""

from __future__ import annotations

import re

import boto3
import pytest
from botocore import xform_name

from grants import wiring
from local import models
from tests.conftest import ROOT


@pytest.mark.parametrize("service", models.OPERATIONS)
def test_a_model_is_what_botocores_own_says_today(service: str) -> None:
    assert models.path(service).read_text() == models.text(service), "run python -m local.models"


def test_ec2s_model_has_every_operation_that_is_called_and_no_other() -> None:
    source = (ROOT / "functions" / "grants" / "ingress.py").read_text()
    called = set(re.findall(r"\bself\._client\.(\w+)\(", source))
    listed = set(re.findall(r"\bself\._pages\(\s*\"(\w+)\"", source))
    assert called | listed == {xform_name(operation) for operation in models.OPERATIONS["ec2"]}
    assert len(listed) == 2


def test_a_functions_ec2_client_is_made_of_the_slim_model_and_others_of_botocores() -> None:
    session = wiring._session()
    ec2 = session.client("ec2", region_name="eu-west-1")
    assert sorted(ec2.meta.service_model.operation_names) == sorted(models.OPERATIONS["ec2"])
    plain = boto3.client("ec2", region_name="eu-west-1")
    assert ec2.meta.endpoint_url == plain.meta.endpoint_url
    assert ec2.meta.service_model.api_version == plain.meta.service_model.api_version
    assert len(session.client("sdb", region_name="eu-west-1").meta.service_model.operation_names) == 10


@pytest.mark.parametrize("operation", models.OPERATIONS["ec2"])
def test_an_operation_takes_and_gives_what_it_does_in_the_whole_model(operation: str) -> None:
    slim = wiring._session().client("ec2", region_name="eu-west-1").meta.service_model
    whole = boto3.client("ec2", region_name="eu-west-1").meta.service_model
    ours, theirs = slim.operation_model(operation), whole.operation_model(operation)
    assert ours.http == theirs.http
    assert ours.metadata["protocol"] == theirs.metadata["protocol"]
    assert list(ours.input_shape.members) == list(theirs.input_shape.members)
    assert list(ours.output_shape.members) == list(theirs.output_shape.members)
