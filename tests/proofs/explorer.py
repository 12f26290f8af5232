"""Tries every order in which concurrent operations can make their calls to AWS, on the strict twins.

A *run* is one invocation of a function. It is deterministic between its calls, so its next call follows
from the answers it has received. The orders form a graph. A state is the content of AWS and, for each
process, the answers its run has received; an edge is one call (or a fault, or a step in time). Two orders
of calls that lead to the same state continue alike, so a state is visited once; and a step that no other
process can see (the start of a run, the hint that `groups` gives) is made at once. These are the only
reductions, and they lose nothing. The orders that the graph stands for are counted all the same.

A process runs functions on AWS: an execution (authorize, hold, revoke, and force where trail or ledger
cannot be reached), a closing (after an execution that was stopped or failed, or started by a renewal; it
tries again until it is done), `DELETE /grants/{id}`, an operator's stop, a task delivered twice, the guard.
Or it is an event: a store that is down for a while, a ledger's item that is lost, a rule changed by hand.

Faults are a process that ends after a call took effect (it is tried again where AWS would: the task of a
stopped execution is not), a call that fails without an effect, an answer that is lost, and one that is
lost to the client, whose second try then meets the first one's write. Where EC2 may do several things
(tests/twins.py), each is an edge.

A ledger's token follows from its content here: a write that finds the content it read replaces it as well
as one that finds a random token, and states that differ in a token alone are one.

Time stands still while a run is under way: a run that takes longer than a function may is killed, which is
the fault *gone*. Time moves when no run is under way: to the next retry, or to the next grant's end.

At every state:   a grant that is open and live has its rules; foreign rules are as they were; a rule is
                  claimed and its grant recorded before it is made, and none is made at or after its end.
At every rest:    Knock's rules are those that live grants claim.
At the end:       none is open, every grant that ended is recorded as closed, and the ledger holds no rule.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from grants.closing import End, close, closed_before, force
from grants.drift import guard
from grants.errors import (
    EngineUnavailable,
    GrantNotFound,
    IngressThrottled,
    IngressUnavailable,
    InvalidGrant,
    KnockError,
    RuleUnsettled,
    StoreRefused,
    StoreUnavailable,
    Unavailable,
)
from grants.ledger import Ledger, Snapshot, encode
from grants.ledgers import Ledgers
from grants.opening import authorize
from grants.operations import Operations
from grants.timing import SETTLES
from grants.trail import Trail
from grants.values import Grant, Opened, Record, Rule, RuleKey
from tests import twins
from tests.twins import NOTHING, Call, Hook, Item, World

FAILS: Mapping[str, KnockError] = {
    "trail": StoreUnavailable("no answer"),
    "ledger": StoreUnavailable("no answer"),
    "ingress": IngressUnavailable("no answer"),
    "executions": EngineUnavailable("no answer"),
    "closings": EngineUnavailable("no answer"),
}
THROTTLED = IngressThrottled("the request limit is reached")
GONE = EngineUnavailable("the run is gone")

# A read has no effect: its answer is lost, or it fails.
READS = ("get", "query", "count", "find", "tagged", "show", "ours", "groups", "describe", "running")


class Violation(AssertionError):
    """An invariant does not hold; the text lists the steps that led there."""


# ---------------------------------------------------------------------------- runs


class _Next(BaseException):
    """The run's next call. Unwinds the run, since the answer is not known yet."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass(slots=True, eq=False)
class Node:
    """A run that has received some answers: its next call, or its end."""

    run: Run
    answers: tuple[Any, ...] = ()
    call: Call | None = None
    failed: KnockError | None = None
    result: Any = None
    after: dict[object, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation: the operation, its time, and in its name the number of the try."""

    name: str
    act: Callable[[Operations], object] = field(compare=False)
    at: datetime


class _Replay:
    """Answers a run's calls with the answers it has received, and unwinds it at the next call."""

    def __init__(self, service: str, answers: Iterator[Any]) -> None:
        self._service, self._answers = service, answers
        self.stack = twins.STACK

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = next(self._answers, _Next)
            if answer is _Next:
                arguments = tuple(_hashable(arg) for arg in args)
                raise _Next(Call(self._service, name, (arguments, tuple(sorted(kwargs.items())))))
            if isinstance(answer, KnockError):
                raise answer.with_traceback(None)
            return answer

        return call

    def is_ours(self, rule: Rule) -> bool:
        return rule.stack == twins.STACK


def _hashable(argument: Any) -> Any:
    """Make a tuple of an iterator, or of a collection that may change."""
    if isinstance(argument, (str, tuple, Mapping)):
        return argument
    return tuple(argument)


class _Ledgers(Ledgers):
    """Ledgers whose tokens follow from their content."""

    def write(self, before: Snapshot, after: Ledger) -> Snapshot | None:
        text = encode(after) if after else b""
        self._token = lambda: hashlib.blake2b(text, digest_size=12).hexdigest()
        return super().write(before, after)


def advance(node: Node) -> Node:
    """Run an operation up to its next call, or to its end."""
    answers = iter(node.answers)
    numbers = iter(range(99))
    operations = Operations(
        Trail(_Replay("trail", answers)),
        _Ledgers(_Replay("ledger", answers)),
        _Replay("ingress", answers),
        _Replay("executions", answers),
        _Replay("closings", answers),
        lambda: node.run.at,
        limits=twins.LIMITS,
        token=lambda: f"{node.run.name}.{next(numbers)}".replace(" ", "-"),
        sleep=lambda _seconds: None,
    )
    try:
        node.result = node.run.act(operations)
    except _Next as pending:
        node.call = pending.call
    except KnockError as error:
        node.failed = error
    return node


# ---------------------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs functions for one grant, or an event on AWS. `phase` is its state:

    ready: its next run can start. running: `node` is under way. again: it tries again in a few minutes.
    holding: an execution in its Wait state. down: an outage. done. asleep: a closing that is not started.
    `opened` is the execution's own state: the rules that AuthorizeIngress answered with.
    """

    name: str
    kind: str
    grant: Grant
    phase: str = "ready"
    task: str = ""
    tries: int = 0
    node: Node | None = None
    opened: tuple[tuple[RuleKey, str], ...] = ()
    payload: Any = None

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name, self.phase, self.task, self.tries, id(self.node), self.opened)


def execution(grant: Grant, task: str = "authorize", opened: tuple[Opened, ...] = ()) -> Process:
    """The grant's execution, from the task on."""
    own = tuple((rule.key, rule.rule_id) for rule in opened if not rule.foreign)
    return Process(f"execution {grant.id}", "execution", grant, task=task, opened=own)


def holding(grant: Grant, opened: tuple[Opened, ...] = ()) -> Process:
    """The execution of a grant that is open."""
    return replace(execution(grant, "expire", opened), phase="holding")


def forged(grant: Grant, value: dict[str, Any]) -> Process:
    """An execution with this input under the grant's id."""
    return Process(f"forged {grant.id}", "execution", grant, task="authorize", payload=value)


def again(grant: Grant, which: str = "second") -> Process:
    """The authorize task delivered once more, which is not tried again."""
    return Process(f"{which} {grant.id}", "again", grant, task="authorize")


def delete(grant: Grant) -> Process:
    """DELETE /grants/{id}: revoked at once, then stopped."""
    return Process(f"delete {grant.id}", "delete", grant, task="revoke")


def stop(grant: Grant) -> Process:
    """An operator's Stop execution."""
    return Process(f"stop {grant.id}", "stop", grant, task="stop")


def guarding(grant: Grant) -> Process:
    """The drift guard's run, which is not tried again."""
    return Process("guard", "again", grant, task="guard")


def outage(grant: Grant, *stores: str) -> Process:
    """Stores that are down for a while, at any time."""
    return Process(f"outage of {' and '.join(stores)}", "outage", grant, payload=stores)


def losing(grant: Grant) -> Process:
    """The ledger's item of the grant's source is lost, at any time."""
    return Process("the ledger is lost", "event", grant, payload="lose")


def modifying(grant: Grant, rule_id: str, key: RuleKey) -> Process:
    """An operator changes a rule by hand, at any time: it keeps its id."""
    return Process(f"{rule_id} is changed", "event", grant, payload=(rule_id, key))


def _closing(grant: Grant) -> Process:
    return Process(f"closing {grant.id}", "closing", grant, phase="asleep", task="outside")


def _end(process: Process, how: str, by: str) -> End:
    return End(how, by, closer=f"{process.kind} {how}")  # type: ignore[arg-type]


def _authorize(operations: Operations, process: Process) -> list[Opened]:
    return authorize(operations, Grant.from_input(process.payload or process.grant.as_input()))


def _own_task(how: str) -> Callable[[Operations, Process], object]:
    """Give the revoke function's operation for an execution's own tasks."""

    def act(operations: Operations, process: Process) -> object:
        try:
            grant = Grant.from_input(process.payload or process.grant.as_input())
        except InvalidGrant:
            return None
        if how == "force":
            state = "expired" if process.opened else "failed"
            return force(operations, grant, _end(process, state, "knock"), dict(process.opened))
        return close(operations, grant, _end(process, how, "knock"), dict(process.opened))

    return act


def _outside(*, forced: bool) -> Callable[[Operations, Process], object]:
    """Give the revoke function's operation for a closing: of a stopped execution, or started by a renewal."""

    def act(operations: Operations, process: Process) -> object:
        end = _end(process, "revoked", "an AWS operator")
        try:
            record = operations.trail.get(process.grant.id)
            if record and record.closed_at:
                return closed_before(record)
        except (StoreUnavailable, StoreRefused):
            if not forced:
                raise
        return (force if forced else close)(operations, process.grant, end)

    return act


def _revoke(operations: Operations, process: Process) -> object:
    close(operations, process.grant, _end(process, "revoked", "alice"))
    return operations.executions.stop(process.grant.id, "Revoked", "revoked by alice")


TASKS: Mapping[str, Callable[[Operations, Process], object]] = {
    "authorize": _authorize,
    "roll back": _own_task("failed"),
    "expire": _own_task("expired"),
    "force": _own_task("force"),
    "revoke": _revoke,
    "outside": _outside(forced=False),
    "force outside": _outside(forced=True),
    "stop": lambda operations, process: operations.executions.stop(process.grant.id, "Stop", "an operator"),
    "guard": lambda operations, _process: list(guard(operations)),
}
FORCED = {"roll back": "force", "expire": "force", "outside": "force outside"}
MOST_TRIES = 12


def _ended(process: Process, failed: KnockError | None, result: object, *, stopped: bool) -> Process:
    """Give a process after its run has ended, as AWS would continue it."""
    idle = replace(process, node=None)
    if process.kind == "execution" and stopped:  # the engine starts no more tasks
        return replace(idle, phase="done")
    if failed is None:
        if process.kind == "execution" and process.task == "authorize":
            assert isinstance(result, list)
            own = tuple((rule.key, rule.rule_id) for rule in result if not rule.foreign)
            return replace(idle, phase="holding", task="expire", tries=0, opened=own)
        return replace(idle, phase="done")
    if process.kind in ("again", "stop"):
        return replace(idle, phase="done")
    if process.task == "authorize" and not isinstance(failed, Unavailable):
        return replace(idle, phase="ready", task="roll back", tries=0)
    if process.kind == "delete" and isinstance(failed, GrantNotFound):
        return replace(idle, phase="done")
    if process.task in FORCED and isinstance(failed, (StoreUnavailable, StoreRefused)) and process.tries:
        return replace(idle, phase="ready", task=FORCED[process.task], tries=0)
    return _again(idle, failed)


def _again(process: Process, failed: KnockError) -> Process:
    """Try again: at any time from now on, or minutes later where a rule has to settle first."""
    later = isinstance(failed, RuleUnsettled) or (failed is not GONE and process.tries > 1)
    return replace(process, phase="again" if later else "ready", tries=process.tries + 1)


# ---------------------------------------------------------------------------- states


@dataclass(frozen=True, slots=True)
class State:
    """The content of AWS, and the phase of each process. `faults` may still happen."""

    aws: tuple[dict[str, Any], ...]
    now: Any
    recent: tuple[twins.Change, ...]
    started: frozenset[str]
    processes: tuple[Process, ...]
    faults: int

    @property
    def key(self) -> object:
        return (
            *(frozenset(part.items()) for part in self.aws),
            self.now,
            frozenset(self.recent),
            self.started,
            tuple(process.key for process in self.processes),
            self.faults,
        )


@functools.lru_cache(maxsize=200_000)
def _read(name: str, item: Item) -> Record:
    quiet = twins._Quiet({name: item})
    record = Trail(quiet).get(name)
    assert record
    return record


@functools.lru_cache(maxsize=200_000)
def _ledger(source: str, item: Item) -> Ledger:
    return Ledgers(twins._Quiet({source: item})).read(source).ledger


def _freeze(answer: Any) -> object:
    """Make an answer hashable: equal answers give equal values."""
    if isinstance(answer, KnockError):
        return repr(answer), vars(answer).get("missing")
    if isinstance(answer, (list, tuple)):
        return tuple(map(_freeze, answer))
    if isinstance(answer, dict):
        return frozenset(answer.items())
    return answer


class _Choices:
    """Chooses each of the things that AWS may do, one after the other."""

    def __init__(self) -> None:
        self._script: list[int] = []
        self._widths: list[int] = []

    def __call__(self, options: Any) -> Any:
        place = len(self._widths)
        if place == len(self._script):
            self._script.append(0)
        self._widths.append(len(options))
        return options[self._script[place]]

    def again(self) -> bool:
        """Go on to the next; False when all have been chosen."""
        script = self._script[: len(self._widths)]
        while script and script[-1] + 1 == self._widths[len(script) - 1]:
            script.pop()
        if not script:
            return False
        script[-1] += 1
        self._script, self._widths = script, []
        return True


class _Twice(Hook):
    """Lets the client make each write of a store twice, as if the first answer was lost."""

    def twice(self, call: Call) -> bool:
        return True


@dataclass
class Scenario:
    """A world at a moment, and the processes that go on from there at once.

    `early` are grants that may lose their rules before their end: those that an outage's force cuts short, or
    whose ledger is lost. `blind`: the hint that `groups` gives shows no rules.
    """

    world: World
    processes: list[Process]
    foreign: frozenset[RuleKey] = frozenset()
    faults: int = 1
    early: frozenset[str] = frozenset()
    lost: bool = False
    blind: bool = False


@dataclass
class Explored:
    """The size of the graph."""

    states: int = 0
    edges: int = 0
    orders: int = 0
    ends: int = 0


class Explorer:
    """Walks through every state that a scenario can come to. Raises Violation with the way there."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.world = scenario, scenario.world
        self.explored = Explored()
        self._roots: dict[object, Node] = {}
        self._orders: dict[object, int] = {}
        self._path: list[object] = []
        ingress = self.world.ingress
        self._static = {rule.id: rule for rule in ingress.rules.values() if rule.key in scenario.foreign}
        groups = ingress.groups(ingress.quota)
        if scenario.blind:
            groups = {
                name: replace(group, rule_keys=frozenset(), used={4: 0, 6: 0})
                for name, group in groups.items()
            }
        self._hint = groups
        self._grants = {process.grant.id: process.grant for process in scenario.processes}

    def explore(self) -> Explored:
        """Walk through every state there is."""
        gc.disable()  # nothing is freed before the end, so that collections would only take time
        depth = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)
        try:
            self.explored.orders = self._visit(self._begin())
        finally:
            sys.setrecursionlimit(depth)
            gc.enable()
        return self.explored

    def walk(self, dice: random.Random) -> int:
        """Go one way at random to its end. Gives the number of steps."""
        state = self._begin()
        while True:
            edges = list(self._edges(state))
            if not edges:
                self._check_end(state)
                return len(self._path)
            step, state = dice.choice(edges)
            self._path.append(step)
            self._check(state)

    def _begin(self) -> State:
        known = {p.grant.id for p in self.scenario.processes if p.kind in ("execution", "delete")}
        closings = [_closing(grant) for name, grant in self._grants.items() if name in known]
        start = self._capture((*self.scenario.processes, *closings), self.scenario.faults)
        self._check(start)
        return start

    def _visit(self, state: State) -> int:
        """Walk on from a state; give the number of orders there are from it to an end."""
        key = state.key
        if key in self._orders:
            return self._orders[key]
        self.explored.states += 1
        orders = 0
        for step, after in self._edges(state):
            self.explored.edges += 1
            self._path.append(step)
            self._check(after)
            orders += self._visit(after)
            self._path.pop()
        if not orders:
            self._check_end(state)
            self.explored.ends += 1
            orders = 1
        self._orders[key] = orders
        return orders

    # -- edges

    def _edges(self, state: State) -> Iterator[tuple[object, State]]:
        for place, process in enumerate(state.processes):
            unseen = process.phase == "ready" and process.kind not in ("execution", "outage", "event")
            if unseen:  # no other process can see that it starts
                yield from self._start(state, place)
                return
        moved = False
        for place, process in enumerate(state.processes):
            if process.phase in ("ready", "running"):
                moved = moved or process.kind != "outage"
                yield from self._move(state, place, process)
            elif process.phase == "down":
                yield f"{process.name} is over", self._with(state, place, replace(process, phase="done"))
        if not moved:
            yield from self._wait(state)

    def _move(self, state: State, place: int, process: Process) -> Iterator[tuple[object, State]]:
        if process.kind == "outage":
            yield f"{process.name} begins", self._with(state, place, replace(process, phase="down"))
        elif process.kind == "event":
            yield process.name, self._happen(state, place, process)
        elif process.phase == "ready":
            yield from self._start(state, place)
        else:
            yield from self._step(state, place)

    def _happen(self, state: State, place: int, process: Process) -> State:
        self._restore(state)
        if process.payload == "lose":
            self.world.ledger_store.items.pop(process.grant.source, None)
        else:
            rule_id, key = process.payload
            if rule_id in self.world.ingress.rules and self.world.ingress.at(key) is None:
                self.world.ingress.modify_rule(rule_id, key)
        after = self._capture(state.processes, state.faults, state.started)
        return self._with(after, place, replace(process, phase="done"))

    def _start(self, state: State, place: int) -> Iterator[tuple[object, State]]:
        process = state.processes[place]
        if process.kind == "execution" and self._stopped(state, process):
            yield f"{process.name} is stopped", self._with(state, place, replace(process, phase="done"))
            return
        if process.tries > MOST_TRIES:
            self._fail(f"{process.name} never comes to an end")
        run = Run(
            f"{process.name} {process.task} {process.tries}",
            lambda operations: TASKS[process.task](operations, process),
            state.now,
        )
        root = self._roots.get((run.name, run.at, process.opened))
        if root is None:
            root = self._roots[(run.name, run.at, process.opened)] = advance(Node(run))
        running = replace(process, phase="running", node=root)
        yield f"{process.name}: {process.task}", self._onward(state, place, running)

    def _onward(self, state: State, place: int, process: Process) -> State:
        """Put a running process in its place: past calls that no other process sees, and on at its end."""
        node = process.node
        assert node
        while node.call and node.call.name == "groups":
            node = _answer(node, self._hint, "the hint")
        process = replace(process, node=node)
        if not node.call:
            stopped = self._stopped(state, process)
            process = _ended(process, node.failed, node.result, stopped=stopped)
        return self._with(state, place, process)

    def _step(self, state: State, place: int) -> Iterator[tuple[object, State]]:
        """Make a run's next call: as it should go, and in each way it can fail."""
        process = state.processes[place]
        assert process.node
        assert process.node.call
        call = process.node.call
        answers = self._call(state, call)
        for answer, after in answers:
            yield (process.name, call, answer, ""), self._answered(after, place, answer)
        if not state.faults:
            return
        yield from self._fail_call(state, place, call)
        if call.name not in READS:
            yield from self._lose(state, place, call, answers)

    def _fail_call(self, state: State, place: int, call: Call) -> Iterator[tuple[object, State]]:
        """Let a call fail before it has done anything."""
        process, fewer = state.processes[place], replace(state, faults=state.faults - 1)
        if process.kind == "stop":
            return
        fails = [FAILS[call.service]]
        if call.service == "ingress" and call.name not in READS:
            fails.append(THROTTLED)
        for failure in fails:
            yield (process.name, call, failure, " and does nothing"), self._answered(fewer, place, failure)

    def _lose(
        self, state: State, place: int, call: Call, answers: list[tuple[Any, State]]
    ) -> Iterator[tuple[object, State]]:
        """Let a run be gone after its call took effect, or its answer be lost, to it or to the client."""
        process = state.processes[place]
        for answer, after in answers:
            if isinstance(answer, KnockError):
                continue
            step, fewer = (process.name, call, answer), replace(after, faults=state.faults - 1)
            yield (*step, ", and the run is gone"), self._gone(fewer, place)
            if process.kind != "stop":
                yield (*step, ", and the answer is lost"), self._answered(fewer, place, FAILS[call.service])
        if call.service in ("trail", "ledger"):
            for answer, after in self._call(state, call, _Twice()):
                fewer = replace(after, faults=state.faults - 1)
                yield (process.name, call, answer, " to the second try"), self._answered(fewer, place, answer)

    def _call(self, state: State, call: Call, hook: Hook | None = None) -> list[tuple[Any, State]]:
        """Make a call: (the answer, the state after), for each answer that AWS may give."""
        world = self.world
        services = {
            "trail": world.trail_store,
            "ledger": world.ledger_store,
            "ingress": world.ingress,
            "executions": world.executions,
            "closings": world.closings,
        }
        choices = _Choices()
        answers: list[tuple[Any, State]] = []
        seen: set[object] = set()
        world.let_choose(choices)
        world.listen(hook or Hook())
        if call.name == "authorize":
            self._check_claimed(state, call)
        args, kwargs = call.arguments
        while True:
            self._restore(state)
            try:
                answer = getattr(services[call.service], call.name)(*args, **dict(kwargs))
            except KnockError as error:
                answer = error
            if isinstance(answer, Iterator):
                answer = list(answer)
            after = self._capture(state.processes, state.faults, state.started)
            more = choices.again()
            if not more and not answers:
                return [(answer, after)]
            if (result := (_freeze(answer), after.key)) not in seen:
                seen.add(result)
                answers.append((answer, after))
            if not more:
                return answers

    def _answered(self, state: State, place: int, answer: Any) -> State:
        process = state.processes[place]
        assert process.node
        return self._onward(state, place, replace(process, node=_answer(process.node, answer)))

    def _gone(self, state: State, place: int) -> State:
        process = state.processes[place]
        ended = _ended(process, GONE, None, stopped=self._stopped(state, process))
        return self._with(state, place, ended)

    def _wait(self, state: State) -> Iterator[tuple[object, State]]:
        """Let time pass, now that nothing runs: to the retries, or to the next grant's end."""
        if any(p.phase == "down" for p in state.processes):
            return  # the outage ends first
        if any(p.phase == "again" for p in state.processes):
            later = state.now + SETTLES + timedelta(seconds=1)
            processes = tuple(replace(p, phase="ready") if p.phase == "again" else p for p in state.processes)
            yield "minutes pass", self._later(state, later, processes)
            return
        self._check_rest(state)
        waiting = [p for p in state.processes if p.phase == "holding"]
        if waiting:
            end = max(state.now, min(p.grant.expires_at for p in waiting))
            processes = tuple(
                replace(p, phase="ready") if p in waiting and p.grant.expires_at <= end else p
                for p in state.processes
            )
            yield "a grant's end comes", self._later(state, end, processes)

    def _later(self, state: State, now: datetime, processes: tuple[Process, ...]) -> State:
        recent = tuple(c for c in state.recent if now - c.at < self.world.ingress.lags)
        return replace(state, now=now, processes=processes, recent=recent)

    def _with(self, state: State, place: int, process: Process) -> State:
        """Put a process in its place, and start the closings of executions that were stopped or failed."""
        processes = list(state.processes)
        processes[place] = process
        if process.kind == "execution" and process.phase == "done" and not self._stopped(state, process):
            status = "SUCCEEDED" if process.opened else "FAILED"
            if not process.payload:
                *parts, statuses = state.aws
                state = replace(state, aws=(*parts, {**statuses, process.grant.id: status}))
        for number, closing in enumerate(processes):
            if closing.phase == "asleep" and self._called(state, closing):
                processes[number] = replace(closing, phase="ready")
        return replace(state, processes=tuple(processes))

    def _stopped(self, state: State, process: Process) -> bool:
        return bool(state.aws[4].get(process.grant.id) == "ABORTED" and not process.payload)

    def _called(self, state: State, process: Process) -> bool:
        name = process.grant.id
        return state.aws[4].get(name) in ("ABORTED", "FAILED") or name in state.started

    # -- the content of AWS

    def _capture(
        self, processes: tuple[Process, ...], faults: int, started: frozenset[str] = frozenset()
    ) -> State:
        world = self.world
        parts: tuple[dict[Any, Any], ...] = (
            world.trail_store.items,
            world.ledger_store.items,
            world.ingress.rules,
            world.ingress.additions,
            world.executions.statuses,
        )
        closings = started | {name for name, _ in world.closings.started}
        return State(
            tuple(dict(part) for part in parts),
            world.clock.now,
            world.ingress.recent,
            closings,
            processes,
            faults,
        )

    def _restore(self, state: State) -> None:
        world = self.world
        trail, ledger, rules, additions, statuses = (dict[Any, Any](part) for part in state.aws)
        world.trail_store.items, world.ledger_store.items = trail, ledger
        world.ingress.rules, world.ingress.additions, world.ingress.recent = rules, additions, state.recent
        world.executions.statuses, world.closings.started = statuses, []
        world.clock.now = state.now
        down = {name for p in state.processes if p.phase == "down" for name in p.payload}
        world.trail_store.down, world.ledger_store.down = "trail" in down, "ledger" in down

    # -- invariants

    def _records(self, state: State) -> list[Record]:
        return [_read(name, item) for name, item in state.aws[0].items()]

    def _check(self, state: State) -> None:
        rules = state.aws[2]
        for rule_id, rule in self._static.items():
            if rules.get(rule_id) != rule:
                self._fail(f"the foreign rule {rule_id} was touched")
        keys = {rule.key for rule in rules.values()}
        for record in self._records(state):
            if record.id in self.scenario.early or not (record.authorized_at and record.live_at(state.now)):
                continue
            for opened in record.opened:
                if opened.key not in keys and opened.rule_id not in rules:
                    self._fail(f"the live grant {record.id} has lost {opened.key}")

    def _check_claimed(self, state: State, call: Call) -> None:
        group, ports, cidr, grant_id = call.arguments[0]
        ledger = _ledger(cidr, state.aws[1].get(cidr, NOTHING))
        claim = ledger.claims.get(grant_id)
        grant = self._grants[grant_id]
        if not self.scenario.lost:
            ended = (record := state.aws[0].get(grant_id)) and _read(grant_id, record).state != "live"
            for key in (RuleKey(group, port_range, cidr) for port_range in ports):
                rule = ledger.rules.get(key)
                claimed = claim and (key in claim.rule_keys or key in claim.foreign)
                if not ended and not (claimed and rule and rule.attempts):
                    self._fail(f"{key} is authorized before {grant_id} claims it")
        if grant_id not in state.aws[0]:
            self._fail(f"{grant_id} is authorized before it is recorded")
        if state.now >= grant.expires_at:
            self._fail(f"{grant_id} is authorized at its end or later")

    def _check_rest(self, state: State) -> None:
        live = {record.id: record for record in self._records(state) if record.live_at(state.now)}
        claimed: set[RuleKey] = set()
        ids: set[str] = set()
        for source, item in state.aws[1].items():
            ledger = _ledger(source, item)
            for grant_id, claim in ledger.claims.items():
                if grant_id in live:
                    claimed |= claim.rule_keys
            ids |= {name for key, rule in ledger.rules.items() if key in claimed for name in rule.ids}
        if self.scenario.lost:
            ids |= {rule.rule_id for record in live.values() for rule in record.opened}
        ours = [rule for rule in state.aws[2].values() if rule.stack == twins.STACK]
        for rule in ours:
            if rule.key not in claimed and rule.id not in ids:
                self._fail(f"at rest, no live grant claims {rule.id}")
        present = {rule.key for rule in ours} | {
            key
            for item_source, item in state.aws[1].items()
            for key, rule in _ledger(item_source, item).rules.items()
            if rule.ids.keys() & state.aws[2].keys()
        }
        if claimed - present and not self.scenario.early:
            self._fail(f"at rest, there is no rule for {', '.join(map(str, claimed - present))}")
        for record in self._records(state):
            if record.state != "live" and not record.closed_at:
                self._fail(f"at rest, {record.id} is {record.state} and not closed")

    def _check_end(self, state: State) -> None:
        for process in state.processes:
            if process.phase not in ("done", "asleep"):
                self._fail(f"at the end, {process.name} is {process.phase}")
        for record in self._records(state):
            if record.live_at(state.now):
                self._fail(f"at the end, {record.id} is live and no process will end it")
        self._check_rest(state)
        for source, item in state.aws[1].items():
            ledger = _ledger(source, item)
            if ledger.claims or ledger.rules:
                self._fail(f"at the end, the ledger of {source} holds {ledger.claims} and {ledger.rules}")

    def _fail(self, violation: str) -> None:
        steps = "\n  ".join(map(_tell, self._path))
        raise Violation(f"{violation}, after\n  {steps}")


def _answer(node: Node, answer: Any, frozen: object = None) -> Node:
    frozen = frozen or _freeze(answer)
    after = node.after.get(frozen)
    if after is None:
        after = node.after[frozen] = advance(Node(node.run, (*node.answers, answer)))
    return after


def _tell(step: Any) -> str:
    if isinstance(step, str):
        return step
    name, call, answer, and_then = step
    arguments = ", ".join(_short(argument) for argument in call.arguments[0])
    return f"{name}: {call.service}.{call.name}({arguments}) -> {_short(answer)}{and_then}"


def _short(answer: Any) -> str:
    if isinstance(answer, Item):
        return _short(dict(answer))
    if isinstance(answer, Mapping):
        attributes = {key: value for key, value in answer.items() if not str(key).startswith("input_")}
        return str(attributes)[:700]
    if isinstance(answer, (list, tuple)):
        return f"[{', '.join(map(_short, answer))}]"
    if isinstance(answer, Rule):
        return answer.id
    return repr(answer) if isinstance(answer, KnockError) else str(answer)
