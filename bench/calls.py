"""The cost of a grant in AWS calls, Lambda invocations and states: by phase, in several situations."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

from bench import grants
from bench.report import Cell, Table, spread
from bench.scale import BenchError, Scale
from bench.stacks import RULES_PER_GROUP, Stack, instrumented, new_source, wait_until

PHASES = {"knock-api": "knock", "knock-authorize": "authorize", "knock-revoke": "revoke"}
ORDER = ("knock", "authorize", "revoke", "all", "Lambda invocations", "states")
ROOM, FULL = "zz-room", "zz-full"  # targets of one rule, for the measured grants
DEFAULT = ("bastion", "web")  # the local stack's: three rules, in two groups

# Read once a minute by each worker, and then cached: no part of a grant's cost.
CACHED = {"apigateway.GetTags", "tagging.GetResources"}
POLL = "sdb.GetAttributes"  # by the API only: is the ingress open?


def calls(scale: Scale) -> list[Table]:
    """Count for a few grants in each situation that could raise the cost of a grant."""
    few, many = scale.live
    counted: dict[str, dict[str, float]] = {}
    checks: list[float] = []
    with instrumented() as stack:
        targets = [
            (f"bench-{n:02}", stack.add_target(f"bench-{n:02}", 1))
            for n in range(many // RULES_PER_GROUP + 1)
        ]
        room = stack.add_target(ROOM, 1)
        _fill(stack, stack.add_target(FULL, scale.full_groups + 1)[: scale.full_groups])
        live = 0

        def measure(situation: str, *names: str, source: str | None = None) -> None:
            counted[situation], spans = _count(stack, scale, names, source)
            checks.extend(spans)

        for number in (few, many):
            _open_more(stack, targets, live, number)
            live = number
            measure(f"1 rule, {live} live", ROOM)
            measure(f"3 rules, {live} live", *DEFAULT)
        measure(f"1 rule, {scale.full_groups} full groups first", FULL)
        source = new_source()
        _crowd(stack, source, (ROOM, room), scale.of_one_source - 1)
        measure(f"1 rule, no. {scale.of_one_source} of its source", ROOM, source=source)
        measure(f"3 rules, no. {scale.of_one_source} of its source", *DEFAULT, source=source)
    return [
        _table(counted, scale),
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


def _open_more(stack: Stack, targets: list[tuple[str, list[str]]], live: int, total: int) -> None:
    """Open grants of other principals, each from its own address, until `total` are live."""
    now, end = _working_day()
    missing = [
        grants.new_grant(*targets[number // RULES_PER_GROUP], at=now, expires_at=end)
        for number in range(live, total)
    ]
    grants.open_all(stack, missing)


def _crowd(stack: Stack, source: str, target: tuple[str, list[str]], number: int) -> None:
    """Open grants of other principals behind one address, all of them for the same target."""
    now, end = _working_day()
    neighbours = [grants.new_grant(*target, at=now, expires_at=end, source=source) for _ in range(number)]
    grants.open_all(stack, neighbours)


def _working_day() -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now, now.replace(microsecond=0) + timedelta(hours=8)


def _open(stack: Stack, targets: tuple[str, ...], source: str | None, seconds: int) -> str:
    body = {"targets": list(targets), "duration": f"{seconds}s"}
    answer = stack.call("POST", "/knock", "ci", source or new_source(), body)
    if answer.status != 201:
        raise BenchError(f"a knock was answered with {answer.status}: {answer.json}")
    grant_id: str = answer.json["id"]
    return grant_id


def _count(
    stack: Stack, scale: Scale, targets: tuple[str, ...], source: str | None
) -> tuple[dict[str, float], list[float]]:
    """Count some grants from knock to end: the cost of each, and closed_at after EC2's last answer, in ms.

    A single grant where a source is named: several that end together would count each other's conflicts.
    """
    number = 1 if source else scale.counted
    stack.ask("count")
    before = set(stack.running())
    opened = [_open(stack, targets, source, scale.lasts) for _ in range(number)]
    time.sleep(scale.lasts)
    wait_until(lambda: set(stack.running()) <= before, f"{number} grants did not end", 30)
    counts = stack.ask("counts")
    sums: Counter[str] = Counter()
    for function, by_operation in counts["calls"].items():
        for operation, times in by_operation.items():
            if operation not in CACHED:
                sums[f"{PHASES.get(function, function)}: {operation}"] += times
    # How often the API polls depends on time: once, where opening is quick.
    sums["all: AWS calls, with one look of the API"] = sum(sums.values()) - sums[f"knock: {POLL}"] + number
    for function, times in counts["invocations"].items():
        sums[f"Lambda invocations: {function}"] += times
    states = stack.client("stepfunctions")
    spans = []
    trail, machine = grants.trail(stack), grants.executions(stack)
    for grant_id in opened:
        history = states.get_execution_history(executionArn=machine.arn(grant_id), maxResults=1000)["events"]
        for event in history:
            if "stateEnteredEventDetails" in event:
                sums[f"states: {event['stateEnteredEventDetails']['name']}"] += 1
        record = trail.get(grant_id)
        if not record or record.state != "expired" or not record.closed_at:
            raise BenchError(f"{grant_id} did not expire")
        answers = [
            counts["revoked"][rule.rule_id] for rule in record.opened if rule.rule_id in counts["revoked"]
        ]
        spans += [(record.closed_at.timestamp() - max(answers)) * 1000] if answers else []
    return {name: times / number for name, times in sums.items()}, spans


def _table(counted: dict[str, dict[str, float]], scale: Scale) -> Table:
    names = {name for counts in counted.values() for name in counts}
    rows: list[dict[str, Cell]] = []
    for name in sorted(names, key=lambda n: (ORDER.index(n.split(": ")[0]), n)):
        phase, operation = name.split(": ")
        counts_by_situation = {situation: counts.get(name, 0.0) for situation, counts in counted.items()}
        rows.append({"phase": phase, "what": operation, **counts_by_situation})
    return Table(
        "Per grant: AWS calls, Lambda invocations, states entered",
        rows,
        [
            f"knock: {POLL} is the API asking whether the ingress is open: as often as that takes",
            f"not counted: {' and '.join(sorted(CACHED))}, asked once a minute and worker, then kept",
            "full groups: of the target's pool, in front of the one with room",
            f"no. {scale.of_one_source} of its source: the others there have the one-rule target open",
            "AWS bills a state entered as a state transition",
        ],
    )
