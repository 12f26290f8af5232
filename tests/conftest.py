"""What every kind of test shares.

A test may skip where a part is missing on a person's machine, saying which; with CI=true it fails
instead, since a test that is skipped is not passed.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import botocore.endpoint
import botocore.session
import coverage
import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until pytest_collection_finish: collecting the tests takes half the time so

# The tests that coverage is measured with. They reach what tests in this process can reach, and under
# coverage a test takes half as long again, a proof several times as long.
MEASURED = {
    *("unit", "adapters", "notifications", "local", "tools", "clients"),
}
UNMEASURED = {  # in those folders; most of what these run are other processes
    *("test_knock_sh.py", "test_github.py", "test_gitlab.py", "test_docs.py", "test_admin_docs.py"),
    *("test_admin_local.py", "test_simpledb_model.py", "test_third_interpreter.py"),
}

ROOT = Path(__file__).resolve().parents[1]

# The store of the tests that run on one at a time: SimpleDB on even days and DynamoDB on odd ones, unless
# KNOCK_TEST_STORE is set. Read here, for the workers too: a test itself sees no KNOCK_ variables.
STORES = ("simpledb", "dynamodb")
STORE = os.environ.setdefault("KNOCK_TEST_STORE", STORES[datetime.now(timezone.utc).toordinal() % 2])


# Without a deadline for one example, which fails a test that is right on a busy machine. `timeout` is enough.
hypothesis.settings.register_profile("knock", deadline=None)
hypothesis.settings.load_profile("knock")

# `make docs` sets it: the tests that play a page or take its picture then write it, where others compare.
WRITE_DOCS = os.environ.get("WRITE_DOCS") == "1"


def pytest_report_header() -> str:
    """Print the store, so that a run can be repeated."""
    return f"store: KNOCK_TEST_STORE={STORE}"


def need(present: object, missing: str) -> None:
    """Skip, or with CI=true fail, unless `present`; `missing` says what is missing and how to get it."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{missing} (with CI=true nothing is skipped)")
    pytest.skip(missing)


def program(name: str, how: str, *places: str) -> str:
    """Find a program on the PATH or in `places`, or `need` it."""
    path = shutil.which(name) or next((place for place in places if Path(place).exists()), None)
    need(path, f"{name} is not installed: {how}")
    assert path is not None
    return path


def zone_where_it_is_evening(now: datetime) -> str:
    """Give a TZ, called UTC as the pages have it, in whose clocks it is 21:17 now.

    The clients show a time with its day unless that is today, so what a page shows of a grant of eight hours
    would depend on the time of day it is played at. In this zone that grant ends tomorrow and one of an hour
    today, whenever it is.
    """
    behind = (now - now.replace(hour=21, minute=17)) // timedelta(minutes=1)
    sign, (hours, minutes) = "+" if behind >= 0 else "-", divmod(abs(behind), 60)
    return f"UTC{sign}{hours:02}:{minutes:02}"  # POSIX: what to add to the local time to get UTC


@pytest.fixture(autouse=True)
def _no_aws_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a person's own AWS account out of every test."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "KNOCK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def folder_of(item: pytest.Item) -> str:
    """Name the folder of `tests` that a test is in."""
    return item.path.relative_to(ROOT / "tests").parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests and proofs run with sockets off: what they test is pure.

    The long ones come first, so that no worker is left with one of them at the end.
    """
    items.sort(key=lambda item: not {"proofs", "faults", "test_schemathesis.py"} & set(item.path.parts))
    for item in items:
        folder = folder_of(item)
        if folder in ("unit", "proofs"):
            item.add_marker(pytest.mark.disable_socket)
        if folder not in MEASURED or item.path.name in UNMEASURED:
            item.add_marker(pytest.mark.unmeasured)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Stop the coverage measurement during a test marked `unmeasured`, its set-up included.

    pytest-cov has a marker of its own, `no_cover`, that does nothing in a worker of xdist: there it starts
    two measurements, and the one goes on where the other stops.
    """
    global emulator_is_measured
    emulator_is_measured = folder_of(item) == "local"
    stopped: list[coverage.Coverage] = []
    if item.get_closest_marker("unmeasured"):
        while measurement := coverage.Coverage.current():
            measurement.stop()
            stopped.append(measurement)
    try:
        return (yield)
    finally:
        for measurement in reversed(stopped):
            measurement.start()


def without_tracer(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make `call`, of botocore, run without coverage's tracer, under which it takes twice as long.

    Not measured then: what botocore calls of `grants.models` and `grants.trust`, and the emulator, which the
    tests in `local` measure.
    """

    def run(*arguments: Any, **named: Any) -> Any:
        tracer = sys.gettrace()
        if tracer is None or emulator_is_measured:
            return call(*arguments, **named)
        sys.settrace(None)
        try:
            return call(*arguments, **named)
        finally:
            sys.settrace(tracer)
            resume_tracer()

    return run


def resume_tracer() -> None:
    """Do nothing: coverage's tracer resumes in the callers at the next call, and this is one."""


emulator_is_measured = False
botocore.endpoint.Endpoint.make_request = without_tracer(botocore.endpoint.Endpoint.make_request)  # type: ignore[method-assign]
botocore.session.Session.create_client = without_tracer(botocore.session.Session.create_client)  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Exempt all that is imported by now from garbage collection: the tests took a tenth longer with it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sum of each count that the exhaustive tests record."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if isinstance(value, int):
                counts[name] += value
    for name, value in sorted(counts.items()):
        terminalreporter.write_line(f"tried: {value:,} {name}")
