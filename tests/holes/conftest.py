"""Holes of earlier versions, each tried again on Knock as a whole.

Each class is one hole that was reproduced on an earlier version. The functions run as they are, on the
embedded AWS.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Knock, running


@pytest.fixture
def knock() -> Iterator[Knock]:
    with running() as stack:
        yield stack
