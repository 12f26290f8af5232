"""A model of the time from a knock to its 201 on AWS: the sum of its waits, cold and warm, before and now.

This machine can measure CPU time (the part `cold`); AWS's latencies are assumptions, dated, in
docs/cost/latencies.json. The model adds them up along the path that a person waits for:

    gateway → api: rights, targets, count (at the same time) → StartExecution
            → authorize: groups, ledger, trail, EC2, ledger, trail → the API's next poll → answer

Further assumptions: a function that starts has a whole CPU, and later the share for its memory; this
machine's CPU is as fast as Lambda's; both functions are cold, or both are warm; connections have been closed
and caches have expired, since small teams knock a few times a day; the API polls half a pause after the
ingress is open.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tools import ROOT

LATENCIES = ROOT / "docs" / "cost" / "latencies.json"

PARTS = (
    "API Gateway",
    "new sandboxes",
    "loading",
    "functions' CPU",
    "connections",
    "rights",
    "Step Functions",
    "trail and ledger",
    "EC2",
    "waiting to look",
)

# Calls that authorize makes to the store until a grant of one rule is on record as open;
# tests/cost/test_calls.py counts them.
AUTHORIZE_GETS, AUTHORIZE_PUTS = 1, 4
# Connections that are opened in sequence: the API's for rights and Step Functions, authorize's for EC2 and
# the store.
CONNECTIONS = 4


@dataclass(frozen=True)
class Case:
    """A situation of a knock, and how long each part of it takes."""

    name: str
    milliseconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.milliseconds.values())


@dataclass(frozen=True)
class Version:
    """The model's inputs that differ by version of the code: CPU by function, and how the API waits."""

    name: str
    memory: int
    cpu: dict[str, dict[str, float]]
    rights_at_once: bool
    half_a_pause: float


def cases(page: str) -> list[Case]:
    """Return the model's cases, from a figures page and the data file; ValueError for a missing figure."""
    data = json.loads(LATENCIES.read_text())
    before = data["before"]
    versions = (
        Version("before", before["memory"], before, rights_at_once=False, half_a_pause=85),
        Version("now", _memory(), _measured(page), rights_at_once=True, half_a_pause=50),
    )
    return [_case(version, data, cold=cold) for cold in (True, False) for version in versions]


def _case(version: Version, data: dict[str, Any], *, cold: bool) -> Case:
    took, share = data["milliseconds"], data["megabytes_a_cpu"] / version.memory
    functions = [version.cpu["api"], version.cpu["authorize"]]
    rights = [took["apigateway.GetTags"], took["tagging.GetResources"], took["sdb.Select"]]
    puts = AUTHORIZE_PUTS * took["sdb.PutAttributes"]
    if cold:
        loading = sum(cpu["loading"] for cpu in functions)
        work = sum(max(0.0, cpu["first"] - cpu["loading"]) for cpu in functions) * max(1.0, share)
    else:
        loading, work = 0.0, sum(cpu["second"] for cpu in functions) * max(1.0, share)
    return Case(
        f"{'cold' if cold else 'warm'}, {version.name}",
        {
            "API Gateway": took["API Gateway, both ways"],
            "new sandboxes": 2 * took["a sandbox for a function"] * cold,
            "loading": loading,
            "functions' CPU": work,
            "connections": CONNECTIONS * took["a TLS connection"],
            "rights": max(rights) if version.rights_at_once else rights[0] + rights[1],
            "Step Functions": took["states.StartExecution"] + took["from an execution's start to its task's"],
            "trail and ledger": (AUTHORIZE_GETS + 1) * took["sdb.GetAttributes"] + puts,
            "EC2": took["ec2.DescribeSecurityGroups"] + took["ec2.AuthorizeSecurityGroupIngress"],
            "waiting to look": version.half_a_pause,
        },
    )


def _measured(page: str) -> dict[str, dict[str, float]]:
    """Read the CPU of Knock's functions from the page's part `cold`."""
    from bench.plots import table

    first = {
        row["function"]: row
        for row in table(page, "Cold: CPU from the start of a process through its first answer")
    }
    second = {
        row["function"]: row
        for row in table(page, "Warm with closed connections: CPU of a second invocation")
    }
    try:
        return {
            name: {
                "loading": float(first[f"knock: {name}"]["of it loading ms"]),
                "first": float(first[f"knock: {name}"]["CPU ms"]),
                "second": float(second[f"knock: {name}"]["CPU ms"]),
            }
            for name in ("api", "authorize")
        }
    except KeyError as error:
        raise ValueError(f"the page's part `cold` has no row {error}") from error


def _memory() -> int:
    """Read the memory of the functions that a person waits for from the template."""
    template = (ROOT / "template.yaml").read_text()
    sizes = {
        re.findall(rf"^  {name}:.*?^      MemorySize: (\d+)", template, re.MULTILINE | re.DOTALL)[0]
        for name in ("ApiFunction", "AuthorizeFunction")
    }
    if len(sizes) != 1:
        raise ValueError("the functions that people wait for differ in memory: the model takes one")
    return int(sizes.pop())
