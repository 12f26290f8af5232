"""The cost of a cold start: each function in a fresh process, beside a naive function for the same work.

Measured from the start of the process through its first invocation, and for a second invocation after AWS has
closed the connections; over TLS, against a recorded AWS (`recorded`). The naive functions are in bench/naive.
Both are run in turn, and each ratio is of two successive runs, so that other load affects both alike. Figures
are CPU time, which other load on this machine does not add to.

As on Lambda, a function has no bytecode of its own, except in the rows that measure it; the libraries have.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.grants import Grant  # before the functions' own modules: it puts their folder on the path
from bench.recorded import GROUP, RULE, Recorded
from bench.report import Cell, Table
from bench.scale import BenchError, Scale
from grants import ledger
from grants.values import Ports, Principal, Target
from local.deployment import Deployment
from local.lambdas import environment
from local.stack import REGION
from local.template import Place, load
from tools import ROOT, bytecode

SOURCE = "203.0.113.7/32"

# Our function, and the naive functions it is compared with.
PAIRS = {
    "api": ("api", "api_validating"),
    "authorize": ("authorize",),
    "revoke": ("revoke",),
}


@dataclass
class Runs:
    """Milliseconds of CPU: until the module is loaded, until the first answer, and of the second
    invocation."""

    loaded: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    def add(self, cpu: list[float]) -> None:
        loaded, first, second = cpu
        self.loaded.append(loaded)
        self.first.append(first)
        self.second.append(second - first)


def cold(scale: Scale) -> list[Table]:
    """Measure cold starts and second invocations, in turn with the naive functions."""
    return tables(measure({"": ROOT / "functions"}, scale.colds))


def measure(folders: dict[str, Path], rounds: int) -> dict[tuple[str, str], Runs]:
    """Run every function of some folders, and the naive functions, in turn. Keys: kind and function."""
    with tempfile.TemporaryDirectory(prefix="knock-bench-") as scratch:
        kinds = {"naive": _copy(ROOT / "bench" / "naive", Path(scratch) / "naive")}
        for kind, folder in folders.items():
            kinds[f"knock{kind}"] = _copy(folder, Path(scratch) / f"knock{kind}")
            compiled = kinds[f"knock{kind}, bytecode"] = _copy(folder, Path(scratch) / f"compiled{kind}")
            bytecode.write(compiled)
        aws = Recorded(Path(scratch))
        try:
            return _rounds(aws, kinds, rounds)
        finally:
            aws.close()


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return to


def _rounds(aws: Recorded, kinds: dict[str, Path], rounds: int) -> dict[tuple[str, str], Runs]:
    runs_by_function: dict[tuple[str, str], Runs] = {}
    environments = variables()
    for _ in range(rounds):
        for function, naive in PAIRS.items():
            for kind, folder in kinds.items():
                for module in naive if kind == "naive" else (function,):
                    runs = runs_by_function.setdefault((kind, module), Runs())
                    runs.add(run(aws, folder, module, environments[function], prepared(aws, function))[0])
    return runs_by_function


def prepared(aws: Recorded, function: str) -> dict[str, Any]:
    """Set the recorded AWS's state for a function, and return the event to invoke it with."""
    now = datetime.now(UTC).replace(microsecond=0)
    target = Target("bastion", (Ports.parse("22/tcp"),), (GROUP,))
    grant = Grant.decide(Principal("k1", "alice"), SOURCE, (target,), now, now + timedelta(hours=8))
    aws.items = _ledger(grant) if function == "revoke" else {}
    return _event(function, grant.as_input())


def _event(function: str, grant: dict[str, Any]) -> dict[str, Any]:
    """Return the event to invoke a function with."""
    if function == "api":
        return {
            "resource": "/knock",
            "path": "/knock",
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json"},
            "multiValueHeaders": {"Content-Type": ["application/json"]},
            "queryStringParameters": None,
            "multiValueQueryStringParameters": None,
            "pathParameters": None,
            "stageVariables": None,
            "requestContext": {
                "requestId": "r",
                "path": "/v1/knock",
                "stage": "v1",
                "identity": {"apiKeyId": "k1", "sourceIp": "203.0.113.7"},
            },
            "body": json.dumps({"targets": ["bastion"], "duration": "8h"}),
            "isBase64Encoded": False,
        }
    if function == "authorize":
        return {"grant": grant}
    rule = {"rule": RULE, "group": GROUP, "ports": "22/tcp", "target": "bastion", "foreign": False}
    return {"how": "expired", "grant": grant | {"rules": [rule | {"rule_id": RULE}]}}


def _ledger(grant: Grant) -> dict[str, dict[str, str]]:
    """Return the ledger of an open grant, in the store's form."""
    at, (key,) = grant.requested_at, grant.rule_keys
    attempt = ledger.name_attempt(at, "bench")
    claimed = ledger.claim(ledger.Ledger(SOURCE), grant.id, grant.expires_at, [key], attempt, at)
    opened = ledger.record_results(claimed, grant.id, attempt, {key: ledger.Own(RULE)}, at)
    return {SOURCE: {"token": "t", "parts": "1", "part_000": ledger.encode(opened).decode()}}


def variables() -> dict[str, dict[str, str]]:
    """Return every function's environment: the template's, with AWS's own endpoints."""
    place = Place("knock", REGION)
    environments = {}
    for function in Deployment(load(ROOT / "template.yaml", place)).functions:
        variables = environment(function, region=REGION, endpoint_url="")
        del variables["AWS_ENDPOINT_URL"]
        environments[function.handler.partition(".")[0]] = variables | {"PYTHONDONTWRITEBYTECODE": "1"}
    return environments


def run(
    aws: Recorded, folder: Path, module: str, environment: dict[str, str], event: dict[str, Any]
) -> tuple[list[float], str]:
    """Start a function's process and invoke it twice, its connections closed before each.

    Returns the CPU used so far, in milliseconds: when it was loaded, and after each answer; and its log.
    Raises BenchError unless it did its work both times.
    """
    command = [sys.executable, str(ROOT / "bench" / "first.py"), str(folder), module, str(aws.port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
            command,
            env=environment | {"FIRST_CA": aws.ca},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        lines: list[dict[str, Any]] = []
        with process:
            for event_line in ("", *[json.dumps(event) + "\n"] * 2):
                aws.hang_up()
                _write(process, event_line)
                if not (answer := _read(process)):
                    break
                lines.append(json.loads(answer))
        log.seek(0)
        logged = log.read()
    answers = [line["answer"] for line in lines[1:]]
    if len(answers) != 2 or not all(map(_succeeded, answers)):
        raise BenchError(f"{folder.name} {module} answered {answers}\n{logged[-4000:]}")
    return [line["cpu"] for line in lines], logged


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin  # noqa: S101 - asked for
    with contextlib.suppress(BrokenPipeError):  # it has ended: then `_read` returns nothing
        process.stdin.write(line)
        process.stdin.flush()


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout  # noqa: S101 - asked for
    return process.stdout.readline()


def _succeeded(answer: Any) -> bool:
    """Whether a function did its work: a failure has no figure."""
    if isinstance(answer, list):
        return len(answer) == 1
    return answer.get("statusCode") == 201 or answer.get("revoked") == [RULE]


def tables(runs_by_function: dict[tuple[str, str], Runs]) -> list[Table]:
    """Build the tables: medians, quartiles, and ratios of successive runs."""
    starts = Table(
        "Cold: CPU from the start of a process through its first answer",
        notes=[
            "medians of runs in turn; ratio: median of pairs with the naive function, the last of two",
            "over TLS, against a recorded AWS; bytecode: Knock's own modules come compiled",
        ],
    )
    again = Table("Warm with closed connections: CPU of a second invocation", notes=list(starts.notes[:1]))
    for function, naive in PAIRS.items():
        beside = runs_by_function["naive", naive[-1]]
        for kind, module in runs_by_function:
            if module not in (function, *naive):
                continue
            runs = runs_by_function[kind, module]
            row: dict[str, Cell] = {
                "function": f"{kind}: {module.replace('_', ' ')}",
                "runs": len(runs.first),
            }
            loaded: dict[str, Cell] = {"of it loading ms": round(statistics.median(runs.loaded), 1)}
            starts.rows.append(row | loaded | _spread(runs.first, beside.first))
            again.rows.append(row | _spread(runs.second, beside.second))
    return [starts, again]


def _spread(values: list[float], beside: list[float]) -> dict[str, Cell]:
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    ratios = [value / naive for value, naive in zip(values, beside, strict=True)]
    return {
        "CPU ms": round(middle, 1),
        "quartiles": f"{low:.0f} to {high:.0f}",
        "ratio": f"{statistics.median(ratios):.2f}",
    }
