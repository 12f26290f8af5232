"""Random schedules for hours, with more grants, faults and lags than an exploration of every order can have.

`make soak` runs until it is stopped or --hours are over. Each schedule has a number, from which its scenario
is generated; one order of its steps is tried. A violation prints the number and the steps. `--from` is the
number to start at: that of a violation to see it again, or the last number printed to continue.

With --hostile the numbers are seeds of a hostile AWS (`local.hostile`), on which the functions run.

With --suites, which `make soak` gives where ARGS is empty, all tests are run first, on each store: the gate
runs most of them on one, and fails only the writes of the other. That takes half an hour.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from grants.errors import KnockError
from grants.opening import authorize
from grants.values import Grant, Ports, Principal, RuleKey, Target
from tests.proofs.explorer import (
    Explorer,
    Process,
    Scenario,
    Violation,
    again,
    delete,
    execution,
    guarding,
    holding,
    stop,
)
from tests.proofs.test_interleavings import LARGER, fresh
from tests.twins import LAGS, World
from tools import ROOT

STORES = ("simpledb", "dynamodb")
STACK_EVERY = 25  # mornings; after so many, the tests over HTTP run as well

SOURCES = ("203.0.113.7/32", "2001:db8::7/128")
SSH, HTTP, HTTPS = (Ports(port, port, "tcp") for port in (22, 80, 443))
TARGETS = (
    Target("bastion", (SSH,), ("sg-a",)),
    Target("web", (HTTP, HTTPS), ("sg-w",)),
    Target("pool", (SSH,), ("sg-p", "sg-q")),
)
PRINCIPALS = tuple(Principal(f"k{n}", name) for n, name in enumerate(("alice", "bob", "carol")))


def make_up(number: int) -> tuple[Scenario, random.Random]:
    """Generate a scenario from its number: grants that are open or opening, and what happens to them."""
    dice = random.Random(number)  # noqa: S311  # it has to be reproducible, not unpredictable
    world = World()
    for target in TARGETS:
        for group in target.groups:
            world.ingress.add_group(group, dice.choice((2, 3, 60)), target)
    source = dice.choice(SOURCES)
    foreign = {
        RuleKey(group, ports, source)
        for group, ports in (("sg-a", SSH), ("sg-w", HTTPS))
        if dice.random() < 0.2
    }
    for key in sorted(foreign):
        world.ingress.add_rule(key)
    late = dice.random() < 0.5
    if late and dice.random() < 0.5:
        world.ingress.lags = LAGS
    processes: list[Process] = []
    grants: list[Grant] = []
    for place in range(dice.randint(2, 4)):
        grant = _knock(world, dice, place, source, grants)
        opens_first = not processes and dice.random() < 0.4
        processes.append(_open(world, dice, grant) if opens_first else execution(grant))
        processes += [process_of(grant) for process_of in (delete, stop, again) if dice.random() < 0.25]
        grants.append(grant)
    if dice.random() < 0.2:
        processes.append(guarding(grants[0]))
    if late:
        world.ingress.lags = LAGS
    blind = dice.random() < 0.5
    return Scenario(world, processes, frozenset(foreign), faults=dice.randint(0, 3), blind=blind), dice


def _knock(world: World, dice: random.Random, place: int, source: str, earlier: list[Grant]) -> Grant:
    now = world.clock()
    principal = dice.choice(PRINCIPALS[: dice.randint(1, 3)])
    own = [grant.id for grant in earlier if grant.principal == principal]
    grant = Grant.decide(
        principal,
        source,
        tuple(dice.sample(TARGETS, dice.randint(1, 2))),
        now,
        now + timedelta(hours=dice.choice((1, 1, 2))),
        nonce=f"n{place}",
        renews=dice.choice(own) if own and dice.random() < 0.5 else None,
    )
    world.executions.start(grant)
    return grant


def _open(world: World, dice: random.Random, grant: Grant) -> Process:
    """Open a grant before the other processes start. It holds, or is about to expire."""
    try:
        rules = tuple(authorize(world.operations, grant))
    except KnockError:  # no room
        return execution(grant, "roll back")
    if dice.random() < 0.5:
        return holding(grant, rules)
    world.clock.now = grant.expires_at
    return execution(grant, "expire", rules)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="first", type=int, default=0, help="the number to start at")
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--larger",
        action="store_true",
        help="first explore every order of the scenarios that are too large for the tests",
    )
    parser.add_argument(
        "--hostile", action="store_true", help="live through mornings on a hostile AWS instead, a seed each"
    )
    parser.add_argument(
        "--suites", action="store_true", help="first run all tests on each store, with every fault on both"
    )
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for store in STORES if options.suites else []:
        _run_suites(store)
    for scenario_of in LARGER if options.larger else []:
        explored = Explorer(scenario_of(fresh())).explore()
        print(f"{scenario_of.__name__}: {explored.states:,} states, {explored.orders:,} orders", flush=True)
    if options.hostile:
        _soak(options, "mornings", _morning)
    else:
        _soak(options, "schedules", _schedule)


def _run_suites(store: str) -> None:
    """Run all tests on a store, showing what pytest shows. Raises SystemExit where one fails."""
    print(f"all tests on {store}:", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "3", "--dist", "worksteal", "-q"],
        cwd=ROOT,
        env=os.environ | {"KNOCK_TEST_STORE": store, "KNOCK_FAULTS": "all"},
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"\nKNOCK_TEST_STORE={store} KNOCK_FAULTS=all pytest: failed")


def _schedule(number: int) -> int:
    """Try a schedule; give its number of calls. Raises SystemExit for a violation."""
    scenario, dice = make_up(number)
    try:
        calls: int = Explorer(scenario).walk(dice)
    except Violation as violation:
        raise SystemExit(f"\nschedule {number}: {violation}") from None
    return calls


def _morning(seed: int) -> int:
    """Run the morning of a seed on a hostile AWS, with the stores in turn; give its number of grants.

    For every STACK_EVERY-th seed, the tests over HTTP run as well. Raises SystemExit for a violation.
    """
    from local.hostile import Plan  # imports moto, which schedules do not need
    from tests.hostile.life import live_through

    try:
        morning = live_through(Plan(seed), store=STORES[seed % 2])
    except AssertionError as violation:
        raise SystemExit(f"\nmorning {violation}") from None
    if seed % STACK_EVERY == 0:
        _run_stack(seed)
    return len(morning.started)


def _run_stack(seed: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "tests/hostile/test_stack.py"],
        cwd=ROOT,
        env=os.environ | {"HOSTILE_SEED": str(seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(
            f"\nseed {seed}, HOSTILE_SEED={seed} pytest tests/hostile/test_stack.py:\n{result.stdout}"
        )


def _soak(options: argparse.Namespace, unit: str, try_one: Callable[[int], int]) -> None:
    """Try numbers until the time is over, and show progress."""
    began = shown_at = time.monotonic()
    ends = began + options.hours * 3600
    number, total = options.first, 0
    often = 1 if sys.stdout.isatty() else 60
    while time.monotonic() < ends:
        total += try_one(number)
        number += 1
        if time.monotonic() - shown_at >= often or time.monotonic() >= ends:
            shown_at = time.monotonic()
            share = min(1.0, (shown_at - began) / (ends - began))
            bar = "#" * int(share * 30)
            count, of = number - options.first, "grants" if options.hostile else "calls"
            line = f"[{bar:30}] {share:4.0%}  {count:,} {unit}, {total:,} {of}; go on with --from {number}"
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
    print(f"\n{number - options.first} passed, 0 failed")


if __name__ == "__main__":
    main()
