"""The metrics the alarms watch are written: by the function, under the name and in the unit of the template.

The functions run in processes of their own and print their metrics as they do on AWS, where CloudWatch takes
them out of the log. The failures that write the rest are caused with the functions in one process.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from grants import wiring
from grants.errors import EngineUnavailable
from grants.executions import Closings, Executions
from grants.trail import Trail
from tests.e2e.conftest import Stack
from tests.harness import STACK, running
from tests.template.transform import read

# (name, the function that writes it, unit). The template's Metadata lists them; other tests compare the
# alarms with it.
Metric = tuple[str, str, str]
PROMISED = {
    (name, f"{STACK}-{function}", metric["Unit"])
    for name, metric in read()["Metadata"]["Knock"]["Metrics"].items()
    for function in metric["Functions"]
}
OF_FAILURES = {
    ("RevocationForced", f"{STACK}-revoke", "Count"),
    ("SupersedeFailed", f"{STACK}-authorize", "Count"),
}


def metrics_in(log: Path) -> Iterator[Metric]:
    """Read the metrics in a log as CloudWatch does."""
    for line in log.read_text().splitlines():
        if '"CloudWatchMetrics"' in line:
            record: dict[str, Any] = json.loads(line[line.index("{") :])
            for directive in record["_aws"]["CloudWatchMetrics"]:
                assert (directive["Namespace"], directive["Dimensions"]) == ("Knock", [["service"]])
                for metric in directive["Metrics"]:
                    assert record[metric["Name"]], "no value"
                    yield metric["Name"], record["service"], metric["Unit"]


def test_knocks_ends_and_refusals_write_every_metric_but_those_of_failures(tmp_path: Path) -> None:
    """Mutations: `@metrics.log_metrics` deleted; a `POWERTOOLS_SERVICE_NAME` changed; any `count` deleted."""
    log = tmp_path / "log"
    # --verbose: the log then has what the functions print
    with log.open("wb") as errors, Stack.start("--verbose", errors=errors) as stack:
        stack.open(targets=["web"], duration="2s")  # a pool of one group: PoolFree is written
        stopped = stack.open("bob")
        stack.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
        stack.open(renews=stack.open()["id"])
        assert stack.call("POST", "/knock", json={"targets": ["vault"]}).status_code == 403
        stack.client("lambda").invoke(FunctionName=f"{STACK}-guard", Payload=b"{}")
        stack.wait(lambda: set(metrics_in(log)) >= PROMISED - OF_FAILURES, "a metric is not written")
    assert set(metrics_in(log)) == PROMISED - OF_FAILURES


def test_failures_write_the_metrics_of_failures() -> None:
    """The trail fails when a grant is forced to its end; a renewal cannot end the older grant."""
    added: list[Metric] = []
    function = threading.local()

    @contextmanager
    def around(name: str) -> Iterator[None]:
        before, function.name = getattr(function, "name", ""), name
        try:
            yield
        finally:
            function.name = before

    def add(name: str, unit: Any, value: float) -> None:
        assert value
        added.append((name, function.name, unit.value))

    def names() -> set[str]:
        return {name for name, _, _ in added}

    with running() as knock, mock.patch.object(wiring.metrics, "add_metric", add):
        knock.around = around
        away, first = EngineUnavailable("away"), knock.open()
        with mock.patch.object(Executions, "stop", side_effect=away):
            second = knock.open(renews=first["id"])
            knock.wait(knock.closings, "no closing is started")
        knock.wait(
            lambda: set(knock.closings()) == {"SUCCEEDED"}, "the closing runs on", step=timedelta(seconds=1)
        )
        assert "SupersedeFailed" not in names(), "a closing was started, so nothing failed"
        with (
            mock.patch.object(Executions, "stop", side_effect=away),
            mock.patch.object(Closings, "start", side_effect=away),
        ):
            third = knock.open(renews=second["id"])
            knock.wait(lambda: "SupersedeFailed" in names(), "SupersedeFailed is not written")
        state = {**json.loads(knock.execution(third["id"])["input"]), "rules": []}
        with mock.patch.object(Trail, "end", side_effect=OSError("away")):
            knock.invoke(f"{STACK}-revoke", json.dumps({"how": "force", "grant": state}).encode())
    assert set(added) >= OF_FAILURES
    assert set(added) <= PROMISED
