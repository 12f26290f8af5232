"""How long after `expires_at` a grant's rules are gone, beside what the engine alone takes.

A grant's lag is `closed_at` of its trail, minus `expires_at`: the revoke function reads the clock for it when
EC2 has answered that the last rule is gone, so it is never earlier than the rule's end, and taking it costs
the stack nothing while it works. The part `calls` checks it against EC2's own answers.

The engine's own lag is taken from the same definition with a function that does nothing but read the clock:
same states, same stack, same second. What is between the two is Knock's own work.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta

from bench import grants
from bench.report import Cell, Table, rank, spread
from bench.scale import BenchError, Scale
from bench.stacks import RULES_PER_GROUP, Stack, instrumented, together, wait_until


def lag(scale: Scale) -> list[Table]:
    """Measure grants that end alone, and many that end in one second."""
    table = Table(
        "From expires_at to the rule's end",
        notes=[
            "one rule a grant; all of a round end in the same second",
            "closed: EC2 has answered that the rule is gone; ended: the trail holds the end",
            "engine: the same machine with a task that does nothing",
        ],
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
            for _ in range(rounds):
                engine += _engine_round(stack, empty, targets, size)
                one_closed, one_ended = _knock_round(stack, targets, size)
                closed += one_closed
                ended += one_ended
            own, idle = sorted(closed), sorted(engine)
            row: dict[str, Cell] = {"at once": size, "rounds": rounds}
            row |= spread(closed, "closed ", longest=True)
            row |= {"ended p99 ms": rank(sorted(ended), 99)}
            row |= spread(engine, "engine ", longest=True)
            row["p50 over engine ms"] = round(rank(own, 50) - rank(idle, 50), 1)
            row["p99 over engine ms"] = round(rank(own, 99) - rank(idle, 99), 1)
            table.rows.append(row)
    return [table]


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


def _round(targets: list[tuple[str, list[str]]], size: int) -> tuple[datetime, list[grants.Grant]]:
    """Make grants that end in one second, far enough ahead for all to be open by then."""
    now = datetime.now(UTC)
    end = now.replace(microsecond=0) + timedelta(seconds=int(4 + size * 0.06))
    return end, [
        grants.new_grant(*targets[number // RULES_PER_GROUP], at=now, expires_at=end)
        for number in range(size)
    ]


def _await(machine: grants.Executions, end: datetime, size: int) -> None:
    """Wait for a round's end without a call while it ends: whoever asks then is in its way."""
    time.sleep(max(0.0, end.timestamp() - time.time()) + 1 + size * 0.01)
    wait_until(lambda: not list(machine.running()), f"not all of {size} grants ended", 120, 1)


def _engine_round(
    stack: Stack, machine_arn: str, targets: list[tuple[str, list[str]]], size: int
) -> list[float]:
    end, made = _round(targets, size)
    machine = grants.executions(stack, machine_arn)
    grants.start(made, machine, None)
    _await(machine, end, size)
    states = stack.client("stepfunctions")

    def one(grant: grants.Grant) -> float:
        execution = states.describe_execution(executionArn=machine.arn(grant.id))
        output = json.loads(execution["output"])
        if output["rules"]["at"] > end.timestamp():
            raise BenchError(f"{size} executions were not all waiting when they ended: too slow a machine")
        return float(output["revocation"]["at"] - end.timestamp()) * 1000

    return together(4, one, made)


def _knock_round(
    stack: Stack, targets: list[tuple[str, list[str]]], size: int
) -> tuple[list[float], list[float]]:
    end, made = _round(targets, size)
    machine, record = grants.executions(stack), grants.trail(stack)
    grants.start(made, machine, record)
    _await(machine, end, size)

    def one(grant: grants.Grant) -> tuple[float, float]:
        known = record.get(grant.id)
        if not (known and known.state == "expired" and known.closed_at and known.ended_at):
            raise BenchError(f"{grant.id} is {known.state if known else 'not in the trail'}, not expired")
        if not known.authorized_at or known.authorized_at > end or not known.rules:
            raise BenchError(f"{size} grants were not all open when they ended: too slow a machine")
        return tuple((at - end).total_seconds() * 1000 for at in (known.closed_at, known.ended_at))  # type: ignore[return-value]

    lags = together(4, one, made)
    if left := stack.open_rules():
        raise BenchError(f"{left} rules are open after their grants ended")
    return [closed for closed, _ in lags], [ended for _, ended in lags]
