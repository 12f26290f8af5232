"""Random schedules for hours: more grants, more faults and a later EC2 than every order can be tried of.

`make soak` runs until it is stopped or --hours are over. Each schedule has a number: a scenario is made up
from it and walked through once. A violation prints the number and the way there, and `--from` starts at a
number: at that one to see it again, or at the last one told to go on.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
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

SOURCES = ("203.0.113.7/32", "2001:db8::7/128")
SSH, HTTP, HTTPS = (Ports(port, port, "tcp") for port in (22, 80, 443))
TARGETS = (
    Target("bastion", (SSH,), ("sg-a",)),
    Target("web", (HTTP, HTTPS), ("sg-w",)),
    Target("pool", (SSH,), ("sg-p", "sg-q")),
)
WHO = tuple(Principal(f"k{n}", name) for n, name in enumerate(("alice", "bob", "carol")))


def make_up(number: int) -> tuple[Scenario, random.Random]:
    """Make up a scenario from its number: some grants open, some opening, and what happens to them."""
    dice = random.Random(number)  # noqa: S311  # has to come again, not to be unguessable
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
        processes += [made(grant) for made in (delete, stop, again) if dice.random() < 0.25]
        grants.append(grant)
    if dice.random() < 0.2:
        processes.append(guarding(grants[0]))
    if late:
        world.ingress.lags = LAGS
    blind = dice.random() < 0.5
    return Scenario(world, processes, frozenset(foreign), faults=dice.randint(0, 3), blind=blind), dice


def _knock(world: World, dice: random.Random, place: int, source: str, earlier: list[Grant]) -> Grant:
    now = world.clock()
    who = dice.choice(WHO[: dice.randint(1, 3)])
    own = [grant.id for grant in earlier if grant.principal == who]
    grant = Grant.decide(
        who,
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
    """Open a grant before all else begins; it holds, or its time has just come."""
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
        "--larger", action="store_true", help="first try every order of what is too large for the tests"
    )
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for scenario_of in LARGER if options.larger else []:
        found = Explorer(scenario_of(fresh())).explore()
        print(f"{scenario_of.__name__}: {found.states:,} states, {found.orders:,} orders", flush=True)
    began = told = time.monotonic()
    ends = began + options.hours * 3600
    number, steps = options.first, 0
    often = 1 if sys.stdout.isatty() else 60
    while time.monotonic() < ends:
        scenario, dice = make_up(number)
        try:
            steps += Explorer(scenario).walk(dice)
        except Violation as violation:
            raise SystemExit(f"\nschedule {number}: {violation}") from None
        number += 1
        if time.monotonic() - told >= often or time.monotonic() >= ends:
            told = time.monotonic()
            share = min(1.0, (told - began) / (ends - began))
            bar = "#" * int(share * 30)
            tried = number - options.first
            line = (
                f"[{bar:30}] {share:4.0%}  {tried:,} schedules, {steps:,} calls; go on with --from {number}"
            )
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
    print(f"\n{number - options.first} passed, 0 failed")


if __name__ == "__main__":
    main()
