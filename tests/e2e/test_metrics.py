"""What the alarms watch is really written: by the function, under the name and in the unit the template says.

The functions run in processes of their own and print their metrics as they do on AWS, where CloudWatch takes
them out of the log. What only goes wrong on a bad day is brought about with the functions in one process.
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

# (metric, the function that writes it, unit). The template's Metadata has them all; other tests compare the
# alarms with it.
Written = tuple[str, str, str]
PROMISED = {
    (name, f"{STACK}-{function}", said["Unit"])
    for name, said in read()["Metadata"]["Knock"]["Metrics"].items()
    for function in said["Functions"]
}
ON_A_BAD_DAY = {
    ("RevocationForced", f"{STACK}-revoke", "Count"),
    ("SupersedeFailed", f"{STACK}-authorize", "Count"),
}


def printed(log: Path) -> Iterator[Written]:
    """Read the metrics in a log as CloudWatch does."""
    for line in log.read_text().splitlines():
        if '"CloudWatchMetrics"' in line:
            said: dict[str, Any] = json.loads(line[line.index("{") :])
            for directive in said["_aws"]["CloudWatchMetrics"]:
                assert (directive["Namespace"], directive["Dimensions"]) == ("Knock", [["service"]])
                for metric in directive["Metrics"]:
                    assert said[metric["Name"]], "no value"
                    yield metric["Name"], said["service"], metric["Unit"]


def test_a_days_work_writes_every_metric_that_is_no_misfortunes(tmp_path: Path) -> None:
    """Mutations: `@metrics.log_metrics` deleted; a `POWERTOOLS_SERVICE_NAME` changed; any `count` deleted."""
    log = tmp_path / "log"
    # --verbose: then what functions print is there too
    with log.open("wb") as errors, Stack.start("--verbose", errors=errors) as stack:
        stack.open(targets=["web"], duration="2s")  # web's one group is the last of its pool
        stopped = stack.open("bob")
        stack.client("stepfunctions").stop_execution(executionArn=stopped["execution_arn"])
        stack.open(renews=stack.open()["id"])
        assert stack.call("POST", "/knock", json={"targets": ["vault"]}).status_code == 403
        stack.client("lambda").invoke(FunctionName=f"{STACK}-guard", Payload=b"{}")
        stack.wait(lambda: set(printed(log)) >= PROMISED - ON_A_BAD_DAY, "not all of them are written")
    assert set(printed(log)) == PROMISED - ON_A_BAD_DAY


def test_a_bad_day_writes_the_others() -> None:
    """The trail is away when a grant is forced to its end; a renewal can neither close the older grant nor
    have that done.
    """
    written: list[Written] = []
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
        written.append((name, function.name, unit.value))

    def names() -> set[str]:
        return {name for name, _, _ in written}

    with running() as knock, mock.patch.object(wiring.metrics, "add_metric", add):
        knock.around = around
        away, first = EngineUnavailable("away"), knock.open()
        with mock.patch.object(Executions, "stop", side_effect=away):
            second = knock.open(renews=first["id"])
            knock.wait(knock.closings, "it is not closed from outside")
        knock.wait(lambda: set(knock.closings()) == {"SUCCEEDED"}, "it runs on", step=timedelta(seconds=1))
        assert "SupersedeFailed" not in names(), "what closes it from outside was there"
        with (
            mock.patch.object(Executions, "stop", side_effect=away),
            mock.patch.object(Closings, "start", side_effect=away),
        ):
            third = knock.open(renews=second["id"])
            knock.wait(lambda: "SupersedeFailed" in names(), "it does not tell")
        state = {**json.loads(knock.execution(third["id"])["input"]), "rules": []}
        with mock.patch.object(Trail, "end", side_effect=OSError("away")):
            knock.invoke(f"{STACK}-revoke", json.dumps({"how": "force", "grant": state}).encode())
    assert set(written) >= ON_A_BAD_DAY
    assert set(written) <= PROMISED
