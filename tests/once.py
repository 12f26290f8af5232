"""What is made once in a run of the tests, also where pytest-xdist spreads them over several processes."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """Give what `make` gives for a new folder. The first process calls it, and the others wait for that."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored = folder / "result"
        if not stored.exists():
            if (folder / "work").exists():
                pytest.fail(f"another test failed while it made {name}: see there")
            (folder / "work").mkdir()
            stored.write_bytes(pickle.dumps(make(folder / "work")))
        value: T = pickle.loads(stored.read_bytes())  # noqa: S301  # our own, of a moment ago
    return value
