"""How long after `expires_at` a grant's rules are gone, beside what the engine alone takes.

A grant's lag is `closed_at` of its trail, minus `expires_at`: the revoke function reads the clock for it when
the ledger has it that the last rule is gone, so it is never earlier than the rule's end, and taking it costs
the stack nothing while it works. The part `calls` checks it against EC2's own answers.

The engine's own lag is taken from the same definition with a function that does nothing but read the clock:
same states, same stack, same second. What is between the two is Knock's own work.
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
    """A round's lags, and the CPU time (stack, functions) that ending it took; all in ms."""

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
                one = _in_time(partial(_knock_round, stack, targets, size))
                closed += one.closed
                ended += one.ended
                cpu += [one.cpu] if one.cpu else []
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
                    "CPU ms a grant, stack": _each(cpu, 0, size),
                    "CPU ms a grant, functions": _each(cpu, 1, size),
                }
            )
    return [lags, over]


def _each(cpu: list[tuple[float, float]], whose: int, size: int) -> float | None:
    return round(sum(one[whose] for one in cpu) / len(cpu) / size, 1) if cpu else None


class _NotAllOpen(BenchError):
    """Some of a round were not open yet when they ended: they measured something else."""


T = TypeVar("T")


def _in_time(measure: Callable[[float], T]) -> T:
    """Measure a round, again with twice the time to open (seconds a grant) when that was too short."""
    for seconds in (0.05, 0.1, 0.2):
        with suppress(_NotAllOpen):
            return measure(seconds)
    return measure(0.4)


def _empty_machine(stack: Stack) -> str:
    """Make the grants' machine again, with the empty function in every task; give its ARN."""
    states = stack.client("stepfunctions")
    machine = states.describe_state_machine(stateMachineArn=stack.said["state_machine_arn"])
    empty = stack.client("lambda").get_function(FunctionName="knock-empty")["Configuration"]["FunctionArn"]
    definition, replaced = re.subn(
        r'"Resource": *"arn:[^"]*"', f'"Resource": "{empty}"', machine["definition"]
    )
    if not replaced:
        raise BenchError("the state machine has no task; look at statemachine/grant.asl.json")
    made = states.create_state_machine(name="empty", definition=definition, roleArn=machine["roleArn"])
    arn: str = made["stateMachineArn"]
    return arn


def _round(
    targets: list[tuple[str, list[str]]], size: int, seconds: float
) -> tuple[datetime, list[grants.Grant]]:
    """Make grants that end in one second, `seconds` a grant ahead, which is for opening them."""
    now = datetime.now(UTC)
    end = now.replace(microsecond=0) + timedelta(seconds=int(4 + size * seconds))
    return end, [
        grants.new_grant(*targets[number // RULES_PER_GROUP], at=now, expires_at=end)
        for number in range(size)
    ]


def _await(machine: grants.Executions, end: datetime, size: int) -> None:
    """Wait for a round's end without a call while it ends: whoever asks then is in its way."""
    time.sleep(max(0.0, end.timestamp() - time.time()) + 1 + size * 0.01)
    wait_until(lambda: not list(machine.running()), f"not all of {size} grants ended", 120, 1)


def _engine_round(
    stack: Stack, machine_arn: str, targets: list[tuple[str, list[str]]], size: int, seconds: float
) -> list[float]:
    end, made = _round(targets, size, seconds)
    machine = grants.executions(stack, machine_arn)
    grants.start(made, machine)
    _await(machine, end, size)
    states = stack.client("stepfunctions")

    def one(grant: grants.Grant) -> float:
        execution = states.describe_execution(executionArn=machine.arn(grant.id))
        output = json.loads(execution["output"])
        if output["rules"]["at"] > end.timestamp():
            raise _NotAllOpen(f"{size} executions were not all waiting when they ended: too slow a machine")
        return float(output["revocation"]["at"] - end.timestamp()) * 1000

    return together(4, one, made)


def _knock_round(stack: Stack, targets: list[tuple[str, list[str]]], size: int, seconds: float) -> _Lags:
    end, made = _round(targets, size, seconds)
    machine, record = grants.executions(stack), grants.trail(stack)
    grants.open_all(stack, made)
    time.sleep(max(0.0, end.timestamp() - time.time() - 0.3))
    before = stack.cpu_ms()
    _await(machine, end, size)
    after = stack.cpu_ms()
    cpu = (after[0] - before[0], after[1] - before[1]) if before and after else None

    def one(grant: grants.Grant) -> tuple[float, float]:
        known = record.get(grant.id)
        if known and not (known.authorized_at and known.authorized_at < end and known.opened):
            raise _NotAllOpen(f"{size} grants were not all open when they ended: too slow a machine")
        if not (known and known.state == "expired" and known.closed_at and known.ended_at):
            raise BenchError(f"{grant.id} is {known.state if known else 'not in the trail'}, not expired")
        return (known.closed_at - end) / MILLISECOND, (known.ended_at - end) / MILLISECOND

    lags = together(4, one, made)
    if left := stack.open_rules():
        raise BenchError(f"{left} rules are open after their grants ended")
    return _Lags([closed for closed, _ in lags], [ended for _, ended in lags], cpu)
