"""How long after `expires_at` a grant's rules are revoked, beside the lag of the engine alone.

A grant's lag is `closed_at` of its trail, minus `expires_at`: the revoke function reads the clock for it once
the ledger records the last rule as revoked, so it is never before the rule's end, and measuring it adds no
work to the stack. The part `calls` checks it against EC2's own answers.

The engine's own lag is measured with the same definition and a function that only reads the clock: same
states, same stack, same second. The difference between the two is Knock's own work.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from bench import grants
from bench.report import Table, rank, spread
from bench.scale import BenchError, Scale
from bench.stacks import RULES_PER_GROUP, Stack, instrumented, together, wait_until

MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class _Lags:
    """A round's lags, and the CPU time of ending its grants (stack, functions); all in ms."""

    closed: list[float]
    ended: list[float]
    cpu: tuple[float, float] | None


def lag(scale: Scale) -> list[Table]:
    """Measure grants that end alone, and many that end in one second."""
    lags = Table(
        "From expires_at to the rule's end",
        notes=[
            "one rule a grant; all of a round end in the same second",
            "closed: the rule is gone, by EC2 and the ledger; ended: the trail is about to hold the end",
            "engine: the same machine with a task that does nothing",
        ],
    )
    over = Table(
        "Closed over engine: Knock's own part of that lag",
        notes=["CPU: of ending the grants, however busy the machine was with something else"],
    )
    with instrumented() as stack:
        empty = _empty_machine(stack)
        targets = [
            (f"bench-{number:02}", stack.add_target(f"bench-{number:02}", 1))
            for number in range(max(size for size, _ in scale.lag_rounds) // RULES_PER_GROUP + 1)
        ]
        for size, rounds in scale.lag_rounds:
            closed: list[float] = []
            ended: list[float] = []
            engine: list[float] = []
            cpu: list[tuple[float, float]] = []
            for _ in range(rounds):
                engine += _in_time(partial(_engine_round, stack, empty, targets, size))
                measured = _in_time(partial(_knock_round, stack, targets, size))
                closed += measured.closed
                ended += measured.ended
                cpu += [measured.cpu] if measured.cpu else []
            own, idle = sorted(closed), sorted(engine)
            lags.rows += [
                {"at once": size, "rounds": rounds, "what": "closed", **spread(closed, longest=True)},
                {"at once": size, "rounds": rounds, "what": "ended", **spread(ended, longest=True)},
                {"at once": size, "rounds": rounds, "what": "engine", **spread(engine, longest=True)},
            ]
            over.rows.append(
                {
                    "at once": size,
                    "p50 ms": round(rank(own, 50) - rank(idle, 50), 1),
                    "p99 ms": round(rank(own, 99) - rank(idle, 99), 1),
                    "CPU ms a grant, stack": _cpu_a_grant(cpu, 0, size),
                    "CPU ms a grant, functions": _cpu_a_grant(cpu, 1, size),
                }
            )
    return [lags, over]


def _cpu_a_grant(cpu: list[tuple[float, float]], part: int, size: int) -> float | None:
    return round(sum(round_cpu[part] for round_cpu in cpu) / len(cpu) / size, 1) if cpu else None


class _NotAllOpen(BenchError):
    """Some grants of a round were not open yet when they ended, so its figures mean nothing."""


T = TypeVar("T")


def _in_time(measure: Callable[[float], T]) -> T:
    """Measure a round; repeat it with twice the time to open (seconds a grant) when that was too short."""
    for seconds in (0.05, 0.1, 0.2):
        with suppress(_NotAllOpen):
            return measure(seconds)
    return measure(0.4)


def _empty_machine(stack: Stack) -> str:
    """Create the grants' state machine again, with the empty function in every task; return its ARN."""
    states = stack.client("stepfunctions")
    machine = states.describe_state_machine(stateMachineArn=stack.summary["state_machine_arn"])
    empty = stack.client("lambda").get_function(FunctionName="knock-empty")["Configuration"]["FunctionArn"]
    definition, replaced = re.subn(
        r'"Resource": *"arn:[^"]*"', f'"Resource": "{empty}"', machine["definition"]
    )
    if not replaced:
        raise BenchError("the state machine has no task; look at statemachine/grant.asl.json")
    created = states.create_state_machine(name="empty", definition=definition, roleArn=machine["roleArn"])
    arn: str = created["stateMachineArn"]
    return arn


def _round(
    targets: list[tuple[str, list[str]]], size: int, seconds: float
) -> tuple[datetime, list[grants.Grant]]:
    """Create grants that end in the same second, far enough ahead to open each in `seconds`."""
    now = datetime.now(UTC)
    end = now.replace(microsecond=0) + timedelta(seconds=int(4 + size * seconds))
    return end, [
        grants.new_grant(*targets[number // RULES_PER_GROUP], at=now, expires_at=end)
        for number in range(size)
    ]


def _await(machine: grants.Executions, end: datetime, size: int) -> None:
    """Wait for a round's end, without calls while it ends: they would slow it."""
    time.sleep(max(0.0, end.timestamp() - time.time()) + 1 + size * 0.01)
    wait_until(lambda: not list(machine.running()), f"not all of {size} grants ended", 120, 1)


def _engine_round(
    stack: Stack, machine_arn: str, targets: list[tuple[str, list[str]]], size: int, seconds: float
) -> list[float]:
    end, round_grants = _round(targets, size, seconds)
    machine = grants.executions(stack, machine_arn)
    grants.start(round_grants, machine)
    _await(machine, end, size)
    states = stack.client("stepfunctions")

    def lag_of(grant: grants.Grant) -> float:
        execution = states.describe_execution(executionArn=machine.arn(grant.id))
        output = json.loads(execution["output"])
        if output["rules"]["at"] > end.timestamp():
            raise _NotAllOpen(f"{size} executions were not all waiting when they ended: too slow a machine")
        return float(output["revocation"]["at"] - end.timestamp()) * 1000

    return together(4, lag_of, round_grants)


def _knock_round(stack: Stack, targets: list[tuple[str, list[str]]], size: int, seconds: float) -> _Lags:
    end, round_grants = _round(targets, size, seconds)
    machine, records = grants.executions(stack), grants.trail(stack)
    grants.open_all(stack, round_grants)
    time.sleep(max(0.0, end.timestamp() - time.time() - 0.3))
    before = stack.cpu_ms()
    _await(machine, end, size)
    after = stack.cpu_ms()
    cpu = (after[0] - before[0], after[1] - before[1]) if before and after else None

    def lags_of(grant: grants.Grant) -> tuple[float, float]:
        record = records.get(grant.id)
        if record and not (record.authorized_at and record.authorized_at < end and record.opened):
            raise _NotAllOpen(f"{size} grants were not all open when they ended: too slow a machine")
        if not (record and record.state == "expired" and record.closed_at and record.ended_at):
            raise BenchError(f"{grant.id} is {record.state if record else 'not in the trail'}, not expired")
        return (record.closed_at - end) / MILLISECOND, (record.ended_at - end) / MILLISECOND

    lags = together(4, lags_of, round_grants)
    if open_rules := stack.open_rules():
        raise BenchError(f"{open_rules} rules are open after their grants ended")
    return _Lags([closed for closed, _ in lags], [ended for _, ended in lags], cpu)
