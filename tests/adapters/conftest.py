"""Fixtures of the contract: see `parts`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from local import ec2, simpledb
from tests.adapters.parts import Adapters, Emulator, Parts, Twins


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    simpledb.install()
    ec2.install()
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        made = Emulator()
        yield made
        made.close()


@pytest.fixture(params=["twin", "adapter"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return Twins() if request.param == "twin" else Adapters(request.getfixturevalue("emulator"))


@pytest.fixture
def adapters(emulator: Emulator) -> Adapters:
    return Adapters(emulator)
