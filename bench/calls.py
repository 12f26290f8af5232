"""What a grant costs: AWS calls, Lambda invocations and states, by phase, and on what they depend."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from bench import grants
from bench.report import Cell, Table, spread
from bench.scale import BenchError, Scale
from bench.stacks import RULES_PER_GROUP, Stack, instrumented, new_source, wait_until

PHASES = {"knock-api": "knock", "knock-authorize": "authorize", "knock-revoke": "revoke"}
ROOM = "zz-room"  # the measured grants' target


def calls(scale: Scale) -> list[Table]:
    """Count for a few grants while few and while many others are live, and with full groups in the pool."""
    few, many = scale.live
    with instrumented() as stack:
        targets = [
            (f"bench-{n:02}", stack.add_target(f"bench-{n:02}", 1))
            for n in range(many // RULES_PER_GROUP + 1)
        ]
        stack.add_target(ROOM, 1)
        for full in scale.full_groups:
            _fill(stack, stack.add_target(f"full-{full}", full + 1)[:full])
        _open(stack, ROOM)  # the first of a worker reads tags, which are kept for a minute
        machine, record = grants.executions(stack), grants.trail(stack)
        counted: dict[int, dict[str, float]] = {}
        checks: list[float] = []
        live = 0
        for wanted in (few, many):
            now = datetime.now(UTC)
            end = now.replace(microsecond=0) + timedelta(hours=8)
            others = [
                grants.new_grant(*targets[number // RULES_PER_GROUP], at=now, expires_at=end)
                for number in range(live, wanted)
            ]
            grants.start(others, machine, record)
            _await_open(record, others)
            live = wanted
            counted[wanted], spans = _count(stack, scale.counted)
            checks += spans
        pools: list[dict[str, Cell]] = [
            {"full groups": full, "calls of authorize": _authorize_calls(stack, f"full-{full}")}
            for full in scale.full_groups
        ]
    return [
        _table(counted, few, many),
        Table(
            "Calls to authorize one rule, by full groups before the one with room",
            pools,
            ["a claim, EC2's refusal and the claim's withdrawal for each"],
        ),
        Table(
            "The trail's closed_at, after EC2's last answer",
            [{"grants": len(checks), **spread(checks, longest=True)}],
            ["the lag of the part `lag` is longer than the rule's by this much"],
        ),
    ]


def _fill(stack: Stack, groups: list[str]) -> None:
    """Fill groups with foreign rules, as many as the quota allows."""
    ec2 = stack.client("ec2")
    for group in groups:
        ranges = [{"CidrIp": f"{new_source()}/32"} for _ in range(60)]
        permission = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])


def _await_open(record: grants.Trail, started: list[grants.Grant]) -> None:
    """Wait until all are open; asked in the order they were started, so mostly of the last ones."""
    for grant in started:
        wait_until(lambda one=grant: _is_open(record, one), f"{grant.id} did not open", 120)  # type: ignore[misc]


def _is_open(record: grants.Trail, grant: grants.Grant) -> bool:
    known = record.get(grant.id)
    return known is not None and known.authorized_at is not None


def _open(stack: Stack, target: str, duration: str = "8h") -> Any:
    answer = stack.call("POST", "/knock", "ci", new_source(), {"targets": [target], "duration": duration})
    if answer.status != 201:
        raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
    return answer.json


def _count(stack: Stack, number: int) -> tuple[dict[str, float], list[float]]:
    """Count some grants from knock to end: what one comes to, and closed_at after EC2's last answer, ms."""
    stack.ask("count")
    before = set(stack.running())
    opened = [_open(stack, ROOM, "3s")["id"] for _ in range(number)]
    time.sleep(3)
    wait_until(lambda: set(stack.running()) <= before, f"{number} grants did not end", 30)
    seen = stack.ask("counts")
    sums: Counter[str] = Counter()
    for function, by_operation in seen["calls"].items():
        for operation, times in by_operation.items():
            sums[f"{PHASES.get(function, function)}: {operation}"] += times
    for function, times in seen["invocations"].items():
        sums[f"Lambda invocations: {function}"] += times
    states = stack.client("stepfunctions")
    spans = []
    record, machine = grants.trail(stack), grants.executions(stack)
    for grant_id in opened:
        history = states.get_execution_history(executionArn=machine.arn(grant_id), maxResults=1000)["events"]
        for event in history:
            if "stateEnteredEventDetails" in event:
                sums[f"states: {event['stateEnteredEventDetails']['name']}"] += 1
        known = record.get(grant_id)
        if not known or known.state != "expired" or not known.closed_at:
            raise BenchError(f"{grant_id} did not expire")
        rules = [rule for ids in known.rules.values() for rule in ids]
        spans.append((known.closed_at.timestamp() - max(seen["revoked"][rule] for rule in rules)) * 1000)
    return {what: times / number for what, times in sums.items()}, spans


def _authorize_calls(stack: Stack, target: str) -> int:
    stack.ask("count")
    execution = _open(stack, target)["execution_arn"]
    states = stack.client("stepfunctions")

    def holds() -> bool:  # the function goes on for a moment after the door is open
        history = states.get_execution_history(executionArn=execution)["events"]
        return any(event["type"] == "WaitStateEntered" for event in history)

    wait_until(holds, f"{execution} did not come to hold", 30)
    return int(sum(stack.ask("counts")["calls"]["knock-authorize"].values()))


def _table(counted: dict[int, dict[str, float]], few: int, many: int) -> Table:
    order = ["knock", "authorize", "revoke", "Lambda invocations", "states"]
    names = sorted(set(counted[few]) | set(counted[many]), key=lambda n: (order.index(n.split(": ")[0]), n))
    rows: list[dict[str, Cell]] = []
    for name in names:
        phase, what = name.split(": ")
        rows.append(
            {"phase": phase, "what": what}
            | {f"with {live} live": counted[live].get(name, 0.0) for live in (few, many)}
        )
    return Table(
        "Per grant of one rule: AWS calls, Lambda invocations, states entered",
        rows,
        [
            "knock: sdb.GetAttributes is the API asking whether the ingress is open: as often as that takes",
            "apigateway.GetApiKey and tagging.GetResources are asked once a minute and worker, then kept",
            "AWS bills a state entered as a state transition",
        ],
    )
