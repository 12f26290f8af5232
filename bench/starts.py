"""Start times: of the local stack, of each function's process, and of the clients."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import Cell, Table
from bench.scale import BenchError, Scale
from bench.stacks import local_up, stop
from local.deployment import Deployment
from local.lambdas import environment
from local.stack import REGION
from local.template import Place, load
from tools import ROOT

# The clients and objects that a function creates in its first invocation, and later ones reuse.
FUNCTIONS = {
    "api": "w.rights, w.trail, w.executions, w.functions, w.closings",
    "authorize": "w.opening",
    "revoke": "w.operations",
    "guard": "w.operations",
    "notify": "w.events, w.trail",
}

IMPORT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
began = time.perf_counter()
import {module}
imported = time.perf_counter()
w = {module}.wiring()
{clients}
clients_made_at = time.perf_counter()
{peak}
print(json.dumps([(imported - began) * 1000, (clients_made_at - imported) * 1000, peak]))
"""

# MiB. Linux's getrusage includes the process's memory before its exec; /proc does not.
PEAK = """
import resource, sys
if sys.platform == "linux":
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(lines["VmHWM"].split()[0]) / 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
"""


def start(scale: Scale) -> list[Table]:
    """Measure `local up` from its start to its line of JSON, and from SIGTERM to its end."""
    ups, downs = [], []
    for _ in range(scale.starts):
        with local_up() as stack:
            ups.append(stack.started_in * 1000)
            downs.append(stop(stack) * 1000)
    rows: list[dict[str, Cell]] = [
        {
            "local up": label,
            "runs": len(values),
            "fastest ms": round(min(values)),
            "median ms": round(statistics.median(values)),
            "slowest ms": round(max(values)),
        }
        for label, values in (("until it answers", ups), ("until it is gone", downs))
    ]
    return [Table("Starting and stopping the local stack", rows)]


def functions(scale: Scale) -> list[Table]:
    """Measure each function's module in a fresh process: a cold start without Lambda's own part."""
    table = Table(
        "A function's fresh process",
        notes=[
            "medians; clients: making the AWS clients, once a process; bare: the interpreter alone",
            "notify is deployed only where notifications are asked for",
        ],
    )
    scripts = {"bare Python": f"import json\n{PEAK}\nprint(json.dumps([0, 0, peak]))"}
    scripts |= {
        module: IMPORT.format(module=module, clients=clients, peak=PEAK)
        for module, clients in FUNCTIONS.items()
    }
    variables: dict[str, dict[str, str]] = {"bare Python": {}}
    place = Place("knock", REGION)
    for function in Deployment(
        load(ROOT / "template.yaml", place, {"EnableNotifications": "true"})
    ).functions:
        name = function.handler.partition(".")[0]
        variables[name] = environment(function, region=REGION, endpoint_url="http://127.0.0.1:9")
        del variables[name][
            "AWS_LAMBDA_INITIALIZATION_TYPE"
        ]  # with it, importing a module creates its clients as well
    for name, script in scripts.items():
        command = [sys.executable, "-c", script, str(ROOT / "functions")]
        runs = [_json(command, variables[name]) for _ in range(scale.imports)]
        imported, created, peak = (statistics.median(values) for values in zip(*runs, strict=True))
        table.rows.append(
            {
                "function": name,
                "import ms": round(imported),
                "clients ms": round(created),
                "peak memory MiB": round(peak),
            }
        )
    return [table]


def _json(command: list[str], variables: dict[str, str]) -> list[float]:
    result = subprocess.run(  # noqa: S603 - our own interpreter
        command, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    if result.returncode:
        raise BenchError(f"a function's module cannot be loaded: {result.stderr}")
    figures: list[float] = json.loads(result.stdout)
    return figures


def clients(scale: Scale) -> list[Table]:
    """Measure starts of `knock`, which should not be noticeable, beside bare Python's."""
    entry = [sys.executable, "-c", "import sys; from knock.cli import main; sys.exit(main())"]
    with tempfile.TemporaryDirectory(prefix="knock-bench-") as home:
        variables = {
            "HOME": home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "clients"),
            "XDG_CONFIG_HOME": str(Path(home) / "config"),
            "XDG_STATE_HOME": str(Path(home) / "state"),
        }
        with local_up() as stack:
            variables |= {
                "KNOCK_URL": stack.summary["api_url"],
                "KNOCK_API_KEY": stack.summary["keys"]["alice"],
            }
            _timed([*entry, "open", "bastion", "--for", "8h"], variables)
        # The stack has stopped: a hook that called it would fail.
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "knock --version": [*entry, "--version"],
            "ssh hook, a live grant known": [*entry, "ssh-hook", "--target", "bastion"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(scale.commands):  # in turn, so that other load affects all commands alike
            for name, command in commands.items():
                times[name].append(_timed(command, variables))
    bare = statistics.median(times["python -c pass"])
    rows: list[dict[str, Cell]] = [
        {
            "command": name,
            "runs": len(values),
            "fastest ms": round(min(values), 1),
            "median ms": round(statistics.median(values), 1),
            "median over bare ms": round(statistics.median(values) - bare, 1),
        }
        for name, values in times.items()
    ]
    return [Table("Starts of the client", rows, ["the hook runs without any API to ask"])]


def _timed(command: list[str], variables: dict[str, str]) -> float:
    began = time.perf_counter()
    result = subprocess.run(  # noqa: S603 - our own interpreter and client
        command, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    took = (time.perf_counter() - began) * 1000
    if result.returncode:
        raise BenchError(f"{' '.join(command[-3:])} ended with {result.returncode}: {result.stderr}")
    return took
