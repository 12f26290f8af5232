"""The two stores compared in one run: AWS calls of a grant, and the time to its 201.

Both stacks run at the same time, and knocks go to them in turn, so that other load affects both alike.
"""

from __future__ import annotations

import time
from collections import Counter

from bench.report import Cell, Table, spread
from bench.scale import BenchError, Scale
from bench.stacks import Stack, instrumented, new_source, wait_until

STORES = ("simpledb", "dynamodb")
NAMES = {"simpledb": "SimpleDB", "dynamodb": "DynamoDB"}
SITUATIONS = {"1 rule": ["bastion"], "3 rules": ["bastion", "web"]}
# Read once a minute by each worker, and then cached.
CACHED = {"apigateway.GetTags", "tagging.GetResources"}
# Polls of the API, whose number depends on time.
POLLS = {"sdb.GetAttributes", "dynamodb.GetItem"}


def stores(scale: Scale) -> list[Table]:
    """Measure knocks in turn on a stack of each store, and count the AWS calls of a grant."""
    with instrumented("simpledb") as simpledb, instrumented("dynamodb") as dynamodb:
        stacks = {"simpledb": simpledb, "dynamodb": dynamodb}
        return [_times(stacks, scale), _calls(stacks, scale)]


def _times(stacks: dict[str, Stack], scale: Scale) -> Table:
    table = Table("From a knock to 201, by store", notes=["knocks of each, in turn, one after the other"])
    for situation, targets in SITUATIONS.items():
        took: dict[str, list[float]] = {store: [] for store in STORES}
        for number in range(scale.knocks_alone + 1):
            for store, stack in stacks.items():
                source = new_source()
                answer = stack.call("POST", "/knock", "ci", source, {"targets": targets, "duration": "8h"})
                if answer.status != 201:
                    raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
                if number:  # a worker's first request reads the key's tags, and creates its clients
                    took[store].append(answer.ms)
                stack.call("DELETE", f"/grants/{answer.json['id']}", "ci", source)
        for store in STORES:
            row: dict[str, Cell] = {"knocks": situation, "store": NAMES[store], "count": len(took[store])}
            table.rows.append(row | spread(took[store], longest=True))
    return table


def _calls(stacks: dict[str, Stack], scale: Scale) -> Table:
    counted = {
        (store, situation): _count(stack, targets, scale)
        for store, stack in stacks.items()
        for situation, targets in SITUATIONS.items()
    }
    operations = sorted({name for counts in counted.values() for name in counts if name != "all"})
    rows: list[dict[str, Cell]] = [
        {"what": name}
        | {
            f"{NAMES[store]}, {situation}": counted[store, situation].get(name, 0.0)
            for store, situation in counted
        }
        for name in (*operations, "all")
    ]
    notes = [
        "per grant, from the knock to its end; of the API's looks at the trail one",
        f"not counted: {' and '.join(sorted(CACHED))}, which are kept for a minute",
    ]
    return Table("AWS calls of a grant, by store", rows, notes)


def _count(stack: Stack, targets: list[str], scale: Scale) -> dict[str, float]:
    """Count the AWS calls of some grants from knock to end; return the calls of one."""
    stack.ask("count")
    before = set(stack.running())
    for _ in range(scale.counted):
        body = {"targets": targets, "duration": f"{scale.lasts}s"}
        if (answer := stack.call("POST", "/knock", "ci", new_source(), body)).status != 201:
            raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
    time.sleep(scale.lasts)
    wait_until(lambda: set(stack.running()) <= before, f"{scale.counted} grants did not end", 30)
    sums: Counter[str] = Counter()
    for function, by_operation in stack.ask("counts")["calls"].items():
        for operation, times in by_operation.items():
            if operation in POLLS and function.endswith("-api"):
                sums[operation] += scale.counted
            elif operation not in CACHED:
                sums[operation] += times
    sums["all"] = sum(sums.values())
    return {name: times / scale.counted for name, times in sums.items()}
