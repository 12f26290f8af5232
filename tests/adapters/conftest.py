"""Fixtures of the contract: see `parts`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from grants.store import Store
from local import dynamodb, ec2, simpledb
from tests.adapters.parts import (
    Adapters,
    Domains,
    Dynalite,
    Emulator,
    Parts,
    Stores,
    Tables,
    Twins,
    TwinStores,
)
from tests.conftest import ROOT, need, program


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    simpledb.install()
    dynamodb.install()
    ec2.install()
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        aws = Emulator()
        yield aws
        aws.close()


@pytest.fixture(params=["twin", "adapter"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return Twins() if request.param == "twin" else Adapters(request.getfixturevalue("emulator"))


@pytest.fixture(scope="session")
def dynalite() -> Iterator[Dynalite]:
    need((ROOT / "node_modules" / "dynalite").is_dir(), "dynalite is missing: run npm ci")
    server = Dynalite(program("node", "install Node.js 20 or newer"))
    yield server
    server.close()


@pytest.fixture(params=["twin", "simpledb", "dynamodb", "dynalite"])
def stores(request: pytest.FixtureRequest) -> Stores:
    """Every implementation of stores; `simpledbs_own` and `dynamodbs_own` choose some."""
    if request.param == "twin":
        return TwinStores()
    if request.param == "dynalite":
        return Tables(request.getfixturevalue("dynalite").client)
    emulator = request.getfixturevalue("emulator")
    return (
        Domains(emulator.client("sdb"))
        if request.param == "simpledb"
        else Tables(emulator.client("dynamodb"))
    )


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores.store()


@pytest.fixture
def adapters(emulator: Emulator) -> Adapters:
    return Adapters(emulator)
