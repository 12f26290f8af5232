"""Tries every order in which concurrent operations can make their calls to AWS, on the strict twins.

A *run* is one invocation of a function: deterministic between its calls, so all it will do follows from
the answers it has had. What is explored is a graph. A state is what AWS holds and, for each process, the
answers its run has had; an edge is one call (or a fault, or a step in time). Two orders of calls that lead to
the same state go on alike, so a state is visited once: that is the only reduction, and it loses nothing. How
many orders the graph stands for is counted all the same.

Processes are what runs functions on AWS: an execution (authorize, hold, revoke), the handler of stopped
executions, `DELETE /grants/{id}`, an operator's stop, a task delivered twice. They try again as AWS does.
Faults are a process that is gone after a call took effect (who tries it again on AWS tries it again here: for
the task of a stopped execution that is nobody), and an answer that is lost. EC2's lists are an edge for each
thing that EC2 may show.

Time stands still while a run is under way: runs are killed when they take longer than a function may, which
is the fault *gone*. It moves when all have come to rest, to the next retry, or to the next grant's end.

At every state:   a grant that is open and live has its rules; foreign rules are as they were; a rule was
                  claimed before it was made.
At every rest:    Knock's rules are those that live grants claim.
At the end:       none is open, and every grant that ended is recorded as closed.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from grants.errors import (
    EngineUnavailable,
    IngressUnavailable,
    KnockError,
    RuleUnsettled,
    TrailUnavailable,
    Unavailable,
)
from grants.operations import SETTLES, Operations
from grants.values import Grant, Rule, RuleKey
from tests import twins
from tests.twins import Call, World

LOST: Mapping[str, KnockError] = {
    "trail": TrailUnavailable("the answer was lost"),
    "ingress": IngressUnavailable("the answer was lost"),
    "executions": EngineUnavailable("the answer was lost"),
}


# A read that fails is a run that ends there, as one that is gone.
READS = ("get", "unclosed", "find", "status")


class Violation(AssertionError):
    """An invariant does not hold; the text tells how it came to that."""


# ---------------------------------------------------------------------------- runs


class _Next(BaseException):
    """The run's next call: what unwinds it, since its answer is not known yet."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass(slots=True, eq=False)
class Node:
    """A run that has had some answers: its next call, or how it ended."""

    run: Run
    answers: tuple[Any, ...] = ()
    call: Call | None = None
    failed: KnockError | None = None
    after: dict[object, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation: which operation, for which grant, when, and its number among its kind."""

    name: str
    act: Callable[[Operations], object] = field(compare=False)
    at: Any = None


class _Replay:
    """Answers a run's calls from what it has had, and unwinds it at the first it has not."""

    def __init__(self, service: str, answers: Iterator[Any]) -> None:
        self._service, self._answers = service, answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = next(self._answers, _Next)
            if found is _Next:
                raise _Next(Call(self._service, name, (args, tuple(sorted(kwargs.items())))))
            if isinstance(found, KnockError):
                raise found.with_traceback(None)
            return found

        return call

    def is_ours(self, rule: Rule) -> bool:
        return rule.stack == twins.STACK


def advance(node: Node) -> Node:
    """Run an operation up to its next call, or to its end."""
    answers = iter(node.answers)
    numbers = iter(range(99))
    operations = Operations(
        _Replay("trail", answers),  # type: ignore[arg-type]
        _Replay("ingress", answers),  # type: ignore[arg-type]
        _Replay("executions", answers),  # type: ignore[arg-type]
        lambda: node.run.at,
        token=lambda: f"{node.run.name}.{next(numbers)}",
    )
    try:
        node.run.act(operations)
    except _Next as pending:
        node.call = pending.call
    except KnockError as error:
        node.failed = error
    return node


# ---------------------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Process:
    """Something that runs functions for one grant. `phase` is where it stands.

    ready: its next run can start. running: `node` is under way. again: it comes back in a minute. holding: an
    execution in its Wait state. done. asleep: a handler nobody has called.
    """

    name: str
    kind: str
    grant: Grant
    phase: str = "ready"
    task: str = ""
    tries: int = 0
    node: Node | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name, self.phase, self.task, self.tries, id(self.node))


def execution(grant: Grant, task: str = "authorize") -> Process:
    """The grant's execution, from the task on."""
    return Process(f"execution {grant.id}", "execution", grant, task=task)


def holding(grant: Grant) -> Process:
    """The execution of a grant that is open."""
    return Process(f"execution {grant.id}", "execution", grant, phase="holding", task="expire")


def again(grant: Grant, which: str = "second") -> Process:
    """The authorize task delivered once more, which nobody tries again."""
    return Process(f"{which} {grant.id}", "again", grant, task="authorize")


def delete(grant: Grant) -> Process:
    """DELETE /grants/{id}: revoked at once, then stopped."""
    return Process(f"delete {grant.id}", "delete", grant, task="revoke")


def stop(grant: Grant) -> Process:
    """An operator's Stop execution."""
    return Process(f"stop {grant.id}", "stop", grant, task="stop")


def _handler(grant: Grant) -> Process:
    return Process(f"handler {grant.id}", "handler", grant, phase="asleep", task="stopped")


TASKS: Mapping[str, Callable[[Operations, Grant], object]] = {
    "authorize": lambda operations, grant: operations.authorize(grant),
    "roll back": lambda operations, grant: operations.revoke(grant.id, "failed", "knock"),
    "expire": lambda operations, grant: operations.revoke(grant.id, "expired", "knock"),
    "revoke": lambda operations, grant: operations.revoke(grant.id, "revoked", "alice"),
    "stopped": lambda operations, grant: operations.revoke(grant.id, "revoked", "an AWS operator"),
    "stop": lambda operations, grant: operations.executions.stop(grant.id, "Stop", "an operator"),
}
MOST_TRIES = 9


def _ended(process: Process, failed: KnockError | None, *, stopped: bool) -> Process:
    """Say what a process does when its run has ended, as AWS would."""
    idle = replace(process, node=None)
    if process.kind == "execution":
        if stopped:  # the engine starts no more tasks
            return replace(idle, phase="done")
        if failed is None:
            if process.task == "authorize":
                return replace(idle, phase="holding", task="expire", tries=0)
            return replace(idle, phase="done")
        if process.task == "authorize" and not isinstance(failed, Unavailable):
            return replace(idle, phase="ready", task="roll back", tries=0)
        return _again(idle, failed)
    if failed is None and process.task == "revoke":
        return replace(idle, phase="ready", task="stop")
    if failed is None or process.kind in ("again", "stop") or process.task == "stop":
        return replace(idle, phase="done")
    return _again(idle, failed)


def _again(process: Process, failed: KnockError) -> Process:
    """Try again: from now on at any time, or for what has to settle first, later."""
    phase = "again" if isinstance(failed, RuleUnsettled) else "ready"
    return replace(process, phase=phase, tries=process.tries + 1)


# ---------------------------------------------------------------------------- states


@dataclass(frozen=True, slots=True)
class State:
    """What AWS holds, and where each process stands. `faults` are left to happen."""

    aws: tuple[dict[str, Any], ...]
    now: Any
    recent: tuple[twins.Change, ...]
    processes: tuple[Process, ...]
    faults: int

    @property
    def key(self) -> object:
        items, rules, made, statuses = self.aws
        return (
            frozenset([_see(item)[2] for item in items.values()]),
            frozenset(rules.values()),
            frozenset(made.items()),
            frozenset(statuses.items()),
            self.now,
            frozenset(self.recent),
            tuple(process.key for process in self.processes),
            self.faults,
        )


_seen: dict[int, tuple[Any, Grant, int]] = {}


def _see(item: Any) -> tuple[Any, Grant, int]:
    """Read an item, and hash what it says, once."""
    found = _seen.get(id(item))
    if found and found[0] is item:
        return found
    grant = item.read()
    found = _seen[id(item)] = (item, grant, hash(_content(grant)))
    _seen[id(grant)] = (grant, grant, found[2])  # so that it is recognised as an answer
    return found


def _content(grant: Grant) -> tuple[object, ...]:
    times = (grant.authorized_at, grant.ended_at, grant.closed_at)
    parts = (grant.unsettled, grant.outcomes, grant.rules, grant.condemned)
    ended = (grant.state, grant.ended_by, grant.decided, grant.supersedes)
    return (grant.id, *ended, *times, grant.claims, *(frozenset(part.items()) for part in parts))


def _read(item: Any) -> Grant:
    return _see(item)[1]


def _freeze(answer: Any) -> object:
    """Make an answer something to look up by: equal answers are one."""
    if isinstance(answer, Grant):
        return _see(answer)[2]
    if isinstance(answer, list):
        return tuple(map(_freeze, answer))
    return repr(answer) if isinstance(answer, KnockError) else answer


@dataclass
class Scenario:
    """A world at a moment, and the processes that go on from there at once."""

    world: World
    processes: list[Process]
    foreign: frozenset[RuleKey] = frozenset()
    faults: int = 1


@dataclass
class Found:
    """How much was tried."""

    states: int = 0
    edges: int = 0
    orders: int = 0
    ends: int = 0


class Explorer:
    """Walks through every state that a scenario can come to. Raises Violation with the way there."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.world = scenario, scenario.world
        self.found = Found()
        self._roots: dict[object, Node] = {}
        self._orders: dict[object, int] = {}
        self._path: list[object] = []
        self._static = {key: self.world.ingress.rules[key] for key in scenario.foreign}

    def explore(self) -> Found:
        """Walk through every state there is."""
        gc.disable()  # what is kept is kept to the end, and looked through in vain again and again
        try:
            self.found.orders = self._visit(self._begin())
        finally:
            gc.enable()
            _seen.clear()
        return self.found

    def walk(self, dice: random.Random) -> int:
        """Go one way at random to its end. Gives the number of steps."""
        state = self._begin()
        while True:
            edges = list(self._edges(state))
            if not edges:
                self._check_end(state)
                return len(self._path)
            told, state = dice.choice(edges)
            self._path.append(told)
            self._check(state)

    def _begin(self) -> State:
        grants = {process.grant.id: process.grant for process in self.scenario.processes}
        known = {p.grant.id for p in self.scenario.processes if p.kind == "execution"}
        handlers = [_handler(grant) for name, grant in grants.items() if name in known]
        start = self._capture((*self.scenario.processes, *handlers), self.scenario.faults)
        self._check(start)
        return start

    def _visit(self, state: State) -> int:
        """Walk on from a state; give the number of orders there are from it to an end."""
        key = state.key
        if key in self._orders:
            return self._orders[key]
        self.found.states += 1
        orders = 0
        for told, after in self._edges(state):
            self.found.edges += 1
            self._path.append(told)
            self._check(after)
            orders += self._visit(after)
            self._path.pop()
        if not orders:
            self._check_end(state)
            self.found.ends += 1
            orders = 1
        self._orders[key] = orders
        return orders

    # -- edges

    def _edges(self, state: State) -> Iterator[tuple[object, State]]:
        moved = False
        for place, process in enumerate(state.processes):
            if process.phase == "ready":
                moved = True
                yield from self._start(state, place)
            elif process.phase == "running":
                moved = True
                yield from self._step(state, place)
        if not moved:
            yield from self._wait(state)

    def _start(self, state: State, place: int) -> Iterator[tuple[object, State]]:
        process = state.processes[place]
        if process.kind == "execution" and self._stopped(state, process):
            yield f"{process.name} is stopped", self._with(state, place, replace(process, phase="done"))
            return
        if process.tries > MOST_TRIES:
            self._fail(f"{process.name} never comes to an end")
        run = Run(
            f"{process.name} {process.task} {process.tries}",
            lambda operations: TASKS[process.task](operations, process.grant),
            state.now,
        )
        root = self._roots.setdefault((run.name, run.at), Node(run))
        if root.call is None:
            advance(root)
        yield (
            f"{process.name}: {process.task}",
            self._with(state, place, replace(process, phase="running", node=root)),
        )

    def _step(self, state: State, place: int) -> Iterator[tuple[object, State]]:
        """Make a run's next call: as it should go, and in each way it can fail."""
        process = state.processes[place]
        assert process.node
        assert process.node.call
        call = process.node.call
        for answer, after in self._call(state, call):
            told = (process.name, call, answer)
            yield (*told, ""), self._answered(after, place, answer)
            if not state.faults:
                continue
            fewer = replace(after, faults=state.faults - 1)
            yield (*told, ", and is gone"), self._gone(fewer, place)
            if process.kind != "stop" and call.name not in READS:
                yield (*told, ", and the answer is lost"), self._answered(fewer, place, LOST[call.service])

    def _call(self, state: State, call: Call) -> list[tuple[Any, State]]:
        """Make a call: (the answer, the state after), for each answer that AWS may give."""
        views: list[Any] = [None]
        if call.name in ("find", "ours"):
            groups = set(call.arguments[0][0]) if call.arguments[0] else set()
            self._restore(state)
            views = self.world.ingress.views(lambda rule: rule.key.group in groups)
        came = []
        for view in views:
            self._restore(state)
            self.world.ingress.choose = lambda _views, view=view: view
            if call.name == "authorize":
                self._check_claimed(call)
            args, kwargs = call.arguments
            try:
                answer = getattr(getattr(self.world, call.service), call.name)(*args, **dict(kwargs))
            except KnockError as error:
                answer = error
            came.append((answer, self._capture(state.processes, state.faults)))
        return came

    def _answered(self, state: State, place: int, answer: Any) -> State:
        process = state.processes[place]
        node = process.node
        assert node
        frozen = _freeze(answer)
        after = node.after.get(frozen)
        if after is None:
            after = node.after[frozen] = advance(Node(node.run, (*node.answers, answer)))
        if after.call:
            return self._with(state, place, replace(process, node=after))
        return self._with(state, place, _ended(process, after.failed, stopped=self._stopped(state, process)))

    def _gone(self, state: State, place: int) -> State:
        process = state.processes[place]
        crash = EngineUnavailable("gone")
        return self._with(state, place, _ended(process, crash, stopped=self._stopped(state, process)))

    def _wait(self, state: State) -> Iterator[tuple[object, State]]:
        """Let time pass, now that nothing runs: to the retries, or to the next grant's end."""
        tired = [p for p in state.processes if p.phase == "again"]
        if tired:
            later = state.now + SETTLES + timedelta(seconds=1)
            processes = tuple(replace(p, phase="ready") if p.phase == "again" else p for p in state.processes)
            yield "a minute passes", replace(state, now=later, processes=processes)
            return
        self._check_rest(state)
        held = [p for p in state.processes if p.phase == "holding"]
        if held:
            end = max(state.now, min(p.grant.expires_at for p in held))
            processes = tuple(
                replace(p, phase="ready") if p in held and p.grant.expires_at <= end else p
                for p in state.processes
            )
            yield "a grant's end comes", replace(state, now=end, processes=processes)

    def _with(self, state: State, place: int, process: Process) -> State:
        """Put a process in its place, and call the handlers of executions that were stopped."""
        processes = list(state.processes)
        processes[place] = process
        if process.kind == "execution" and process.phase == "done" and not self._stopped(state, process):
            over = "FAILED" if process.task == "roll back" else "SUCCEEDED"
            *others, statuses = state.aws
            state = replace(state, aws=(*others, {**statuses, process.grant.id: over}))
        for number, one in enumerate(processes):
            if one.phase == "asleep" and self._called(state, one):
                processes[number] = replace(one, phase="ready")
        return State(state.aws, state.now, state.recent, tuple(processes), state.faults)

    def _stopped(self, state: State, process: Process) -> bool:
        return bool(state.aws[3].get(process.grant.id) == "ABORTED")

    def _called(self, state: State, process: Process) -> bool:
        return state.aws[3].get(process.grant.id) in ("ABORTED", "FAILED")

    # -- what AWS holds

    def _capture(self, processes: tuple[Process, ...], faults: int) -> State:
        world = self.world
        held = (world.trail.items, world.ingress.rules, world.ingress.made, world.executions.statuses)
        return State(
            tuple(dict(part) for part in held), world.clock.now, world.ingress.recent, processes, faults
        )

    def _restore(self, state: State) -> None:
        world = self.world
        items, rules, made, statuses = map(dict, state.aws)
        world.trail.items, world.ingress.rules, world.ingress.made = items, rules, made
        world.executions.statuses = statuses
        world.trail.grants = {name: _read(item) for name, item in items.items()}
        world.ingress.recent, world.clock.now = state.recent, state.now

    # -- what must hold

    def _check(self, state: State) -> None:
        items, rules, *_ = state.aws
        for key, rule in self._static.items():
            if rules.get(key) != rule:
                self._fail(f"the foreign rule {key} was touched")
        for item in items.values():
            grant = _read(item)
            if grant.authorized_at and grant.live_at(state.now):
                for key in grant.outcomes:
                    if key not in rules:
                        self._fail(f"the live grant {grant.id} has lost {key}")

    def _check_claimed(self, call: Call) -> None:
        key, grant_id = call.arguments[0]
        if key not in self.world.trail.grants[grant_id].claims:
            self._fail(f"{key} is authorized before {grant_id} claims it")

    def _check_rest(self, state: State) -> None:
        items, rules, *_ = state.aws
        grants = [_read(item) for item in items.values()]
        claimed = {key for grant in grants if grant.live_at(state.now) for key in grant.claims}
        ours = {key for key, rule in rules.items() if rule.stack == twins.STACK}
        if ours - claimed:
            self._fail(f"at rest, nobody claims {', '.join(map(str, ours - claimed))}")
        for grant in grants:
            if grant.state != "live" and not grant.closed_at:
                self._fail(f"at rest, {grant.id} is {grant.state} and not closed")

    def _check_end(self, state: State) -> None:
        for process in state.processes:
            if process.phase not in ("done", "asleep"):
                self._fail(f"at the end, {process.name} is {process.phase}")
        for item in state.aws[0].values():
            if _read(item).live_at(state.now):
                self._fail(f"at the end, {item.plain.id} is live and nobody will end it")
        self._check_rest(state)

    def _fail(self, what: str) -> None:
        way = "\n  ".join(map(_tell, self._path))
        raise Violation(f"{what}, after\n  {way}")


def _tell(step: Any) -> str:
    if isinstance(step, str):
        return step
    name, call, answer, and_then = step
    return f"{name}: {call.service}.{call.name}{call.arguments[0]} -> {_short(answer)}{and_then}"


def _short(answer: Any) -> str:
    if isinstance(answer, Grant):
        return f"{answer.id} {answer.state}"
    if isinstance(answer, list):
        return f"[{', '.join(map(_short, answer))}]"
    if isinstance(answer, Rule):
        return answer.id
    return repr(answer)
