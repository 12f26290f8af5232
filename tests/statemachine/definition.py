"""Walk a state machine's definition and prove promises that other checkers do not look at.

`problems(definition, machine)` answers with one sentence for each promise that the definition breaks,
and with an empty list for a definition that keeps them all. There are two machines, `GRANT` and
`CLOSING`, and most promises are made by both:

- whatever is authorized passes a revoke task before the execution ends, on every path, every Catch
  included;
- after a failure no execution succeeds, and without one none fails;
- a task that gives up is always caught; a revoke task that gives up is followed by force, and force
  by a Fail;
- a grant is held until its end before it is revoked as expired;
- every state is reachable, says what it promises, and is bounded in time, tries and history;
- a path reads only fields that are certainly there: of the input, or put there by a step on every way to it;
- the input of a closing, which may be as large as an input may be, never grows.

The walk knows the tasks by the placeholders in their Resource and reads the JSON as it is, with no
interpreter in between: the tests of the lifecycle run the same bytes on interpreters.

It knows the language that the machines keep to: JSONPath, and the states Task, Wait, Succeed and Fail.
Anything else in a definition is a problem by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT

FOLDER = ROOT / "statemachine"
END = "$.expires_at"
AUTHORIZE, REVOKE = "${AuthorizeFunctionArn}", "${RevokeFunctionArn}"

# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
MOST_EVENTS = 25_000
A_YEAR = 365 * 86_400
# The longest grant that template.yaml lets an operator allow; tests/template holds it to that.
LONGEST_GRANT = 349 * 86_400
FORCE_FOR_AT_LEAST = 3 * 86_400

# https://docs.aws.amazon.com/step-functions/latest/dg/input-output-contextobject.html
CONTEXT = {
    "Execution": {"Id", "Input", "Name", "RedriveCount", "RedriveTime", "RoleArn", "StartTime"},
    "State": {"EnteredTime", "Name", "RetryCount"},
    "StateMachine": {"Id", "Name"},
    "Task": {"Token"},
}

Definition = Mapping[str, Any]
State = Mapping[str, Any]


class Machine(NamedTuple):
    """One of the two machines, and the promises of that one alone.

    `fields` are those of every input of its executions: of a closing's input, which has several forms, none.
    """

    path: Path
    states: frozenset[str]
    tasks: frozenset[str]  # the functions it may call, by their placeholders
    force: str  # `how` of the task that needs neither trail nor ledger
    keeps_results: bool  # else its input never grows
    fields: frozenset[str] = frozenset()

    @property
    def opens(self) -> bool:
        return AUTHORIZE in self.tasks


GRANT = Machine(
    FOLDER / "grant.asl.json",
    states=frozenset({"Task", "Wait", "Succeed", "Fail"}),
    tasks=frozenset({AUTHORIZE, REVOKE}),
    force="force",
    keeps_results=True,
)
CLOSING = Machine(
    FOLDER / "close.asl.json",
    states=frozenset({"Task", "Succeed", "Fail"}),
    tasks=frozenset({REVOKE}),
    force="force-close",
    keeps_results=False,
)


def load(machine: Machine = GRANT) -> dict[str, Any]:
    """Read a definition with its placeholders left in."""
    definition: dict[str, Any] = json.loads(machine.path.read_text())
    return definition


def problems(definition: Definition, machine: Machine) -> list[str]:
    """List every promise that the definition breaks."""
    wrong = [*_shape(definition, machine)]
    if wrong:  # nothing can be walked whose states do not hang together
        return wrong
    return [
        *_reach(definition),
        *_machine_timeout(definition),
        *_states(definition, machine),
        *_retriers(definition),
        *_catchers(definition, machine),
        *_payloads(definition),
        *_reading(definition, machine.fields),
        *_ends(definition, machine),
        *_bounds(definition),
    ]


class Step(NamedTuple):
    """One way out of a state: to `target`, or to nowhere when an error is not caught."""

    target: str | None
    failed: bool
    puts: str | None = None


def steps(state: State) -> Iterator[Step]:
    """Walk through the ways out of a state, errors included."""
    if state["Type"] in ("Task", "Wait"):
        yield Step(state["Next"], failed=False, puts=state.get("ResultPath"))
    if state["Type"] == "Task":
        for catcher in state.get("Catch", []):
            yield Step(catcher["Next"], failed=True, puts=catcher.get("ResultPath"))
        if not any("States.ALL" in catcher["ErrorEquals"] for catcher in state.get("Catch", [])):
            yield Step(None, failed=True)


def is_authorize(state: State) -> bool:
    return bool(state.get("Resource") == AUTHORIZE)


def is_revoke(state: State) -> bool:
    return bool(state.get("Resource") == REVOKE)


def how(state: State) -> object:
    return state.get("Parameters", {}).get("how")


# ---------------------------------------------------------------------------- one state at a time


def _shape(definition: Definition, machine: Machine) -> Iterator[str]:
    states = definition["States"]
    first = AUTHORIZE if machine.opens else REVOKE
    if definition["StartAt"] not in states:
        yield f"StartAt names {definition['StartAt']}, which is no state"
    elif states[definition["StartAt"]].get("Resource") != first:
        task = first.removeprefix("${").removesuffix("FunctionArn}").lower()
        yield f"the first state is {definition['StartAt']}, not the {task} task"
    for name, state in states.items():
        if state["Type"] not in machine.states:
            yield f"{name} is a {state['Type']}, which the machine does without"
        elif state["Type"] in ("Task", "Wait") and "Next" not in state:
            yield f"{name} ends the execution without saying how: it has no Next"
        else:
            for step in steps(state):
                if step.target is not None and step.target not in states:
                    yield f"{name} leads to {step.target}, which is no state"


def _reach(definition: Definition) -> Iterator[str]:
    reached: set[str] = set()
    ahead = [definition["StartAt"]]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += [step.target for step in steps(definition["States"][name]) if step.target]
    for name in definition["States"]:
        if name not in reached:
            yield f"{name} cannot be reached"


def _machine_timeout(definition: Definition) -> Iterator[str]:
    if not str(definition.get("Comment", "")).strip():
        yield "the machine has no Comment"
    if definition.get("QueryLanguage", "JSONPath") != "JSONPath":
        yield "the machine is not in JSONPath"
    timeout = definition.get("TimeoutSeconds")
    if timeout is not None and timeout < LONGEST_GRANT + FORCE_FOR_AT_LEAST:
        yield f"the machine times out after {timeout} s, before its longest wait has ended and been revoked"


def _states(definition: Definition, machine: Machine) -> Iterator[str]:
    checks = {"Task": _task, "Wait": _wait, "Succeed": _nothing, "Fail": _fail}
    for name, state in definition["States"].items():
        if not str(state.get("Comment", "")).strip():
            yield f"{name} has no Comment that gives its promise"
        if state.get("QueryLanguage", "JSONPath") != "JSONPath":
            yield f"{name} is not in JSONPath"
        yield from (f"{name} {wrong}" for wrong in checks[state["Type"]](state, machine))


def _task(state: State, machine: Machine) -> Iterator[str]:
    if state.get("Resource") not in machine.tasks:
        yield f"calls {state.get('Resource')}, not a function of the machine's by its ARN"
    if not _whole(state.get("TimeoutSeconds")):
        yield "has no TimeoutSeconds"
    if not state.get("Retry"):
        yield "has no Retry"
    yield from _result_path(state, machine, "answer")


def _result_path(part: Mapping[str, Any], machine: Machine, kind: str) -> Iterator[str]:
    """Judge where a task's answer, or a catcher's error, is put."""
    path = part.get("ResultPath", "$")
    if machine.keeps_results and path in ("$", None):
        yield f"has no ResultPath, so its {kind} would take the state's place or be lost"
    if not machine.keeps_results and path is not None:
        yield f"keeps its {kind} at {path}, so the input would change or grow"


def _wait(state: State, _machine: Machine) -> Iterator[str]:
    if set(state) & {"Seconds", "SecondsPath", "Timestamp"} or state.get("TimestampPath") != END:
        yield f"does not wait for the absolute time at {END}"


def _fail(state: State, _machine: Machine) -> Iterator[str]:
    # stepfunctions-local refuses a definition with ErrorPath or CausePath.
    if not (state.get("Error") and state.get("Cause")):
        yield "has no fixed Error and Cause"


def _nothing(_state: State, _machine: Machine) -> Iterator[str]:
    return iter(())


def _retriers(definition: Definition) -> Iterator[str]:
    for name, state in _tasks(definition):
        retriers = state.get("Retry", [])
        named: list[str] = []
        for number, retrier in enumerate(retriers, start=1):
            where = f"retrier {number} of {name}"
            errors = retrier["ErrorEquals"]
            if "States.ALL" in errors and (len(errors) > 1 or number < len(retriers)):
                yield f"{where}: States.ALL must be alone and last"
            yield from (f"{where}: {error} is retried above already" for error in errors if error in named)
            named += errors
            interval, longest = retrier.get("IntervalSeconds"), retrier.get("MaxDelaySeconds")
            if not (_whole(interval) and _whole(longest) and _whole(retrier.get("MaxAttempts"))):
                yield f"{where}: is not bounded by IntervalSeconds, MaxDelaySeconds and MaxAttempts"
            elif longest < interval:
                yield f"{where}: MaxDelaySeconds {longest} is below IntervalSeconds {interval}"
            rate = retrier.get("BackoffRate")
            if not isinstance(rate, float) or rate < 1:
                yield f"{where}: BackoffRate is {rate}, not a fraction of 1.0 or more"
            if retrier.get("JitterStrategy", "NONE") not in ("FULL", "NONE"):
                yield f"{where}: JitterStrategy is neither FULL nor NONE"


def _catchers(definition: Definition, machine: Machine) -> Iterator[str]:
    for name, state in _tasks(definition):
        catchers = state.get("Catch", [])
        for number, catcher in enumerate(catchers, start=1):
            where = f"catcher {number} of {name}"
            errors = catcher["ErrorEquals"]
            if "States.ALL" in errors and (len(errors) > 1 or number < len(catchers)):
                yield f"{where}: States.ALL must be alone and last"
            yield from (f"{where}: {wrong}" for wrong in _result_path(catcher, machine, "error"))
        if is_revoke(state):
            yield from _force_after(definition, name, state, machine.force)


def _force_after(definition: Definition, name: str, state: State, force: str) -> Iterator[str]:
    forced = how(state) == force
    for step in steps(state):
        if not step.failed or step.target is None:
            continue
        target = definition["States"][step.target]
        if forced and target["Type"] != "Fail":
            yield f"{name} gave up and goes on to {step.target}, not to a Fail"
        if not forced and not (is_revoke(target) and how(target) == force):
            yield f"{name} gave up and goes on to {step.target}, not to force"
    if forced and sum(map(_mean_wait, state.get("Retry", []))) < FORCE_FOR_AT_LEAST:
        yield f"{name} does not try for days"


def _payloads(definition: Definition) -> Iterator[str]:
    for name, state in definition["States"].items():
        for key, value in _payload(state):
            path = isinstance(value, str) and value.startswith("$")
            if path and not key.endswith(".$"):
                yield f"{name}: {key} would be the text {value}; a path needs a key that ends in .$"
            if key.endswith(".$") and not (path or str(value).startswith("States.")):
                yield f"{name}: {key} is {value!r}, which is no path"
        for read in _paths_of(state):
            if read.startswith("$$") and not _in_context(read):
                yield f"{name} reads {read}, which the context object does not have"


def _in_context(path: str) -> bool:
    """Say whether the context object has what a path like `$$.Execution.Id` reads."""
    _, *names = path.split(".")
    return not names or (names[0] in CONTEXT and (len(names) == 1 or names[1] in CONTEXT[names[0]]))


# ---------------------------------------------------------------------------- every way


def _reading(definition: Definition, fields: frozenset[str]) -> Iterator[str]:
    """Find paths to fields that may not be there, and results put over fields of the input."""
    certain: dict[str, frozenset[str]] = {definition["StartAt"]: fields}
    ahead = [definition["StartAt"]]
    while ahead:  # certain are the fields that every way to a state agrees on
        name = ahead.pop()
        for step in steps(definition["States"][name]):
            if step.target is None:
                continue
            brings = certain[name] | ({_field(step.puts)} if step.puts else set())
            agreed = certain.get(step.target, brings) & brings
            if certain.get(step.target) != agreed:
                certain[step.target] = agreed
                ahead.append(step.target)
    for name, known in certain.items():
        state = definition["States"][name]
        for path in _paths_of(state):
            if path.startswith("$.") and _field(path) not in known:
                yield f"{name} reads {path}, which may not be there"
        for step in steps(state):
            if step.puts and _field(step.puts) in fields:
                yield f"{name} puts its result over {step.puts} of the input"


class Walk(NamedTuple):
    """The state that a walk has reached, and what happened on its way."""

    name: str
    authorized: bool | None = None  # None before the task, then whether it succeeded
    waited: bool = False
    closed: bool | None = None  # None before a revoke task, then whether the last one succeeded


def _ends(definition: Definition, machine: Machine) -> Iterator[str]:
    """Walk every way through the machine and judge how it ends."""
    states = definition["States"]
    faults: dict[str, None] = {}
    begin = Walk(definition["StartAt"])
    previous: dict[Walk, Walk | None] = {begin: None}
    ahead = [begin]
    while ahead:
        walk = ahead.pop()
        state = states[walk.name]
        if state["Type"] in ("Succeed", "Fail"):
            if wrong := _judge(walk, state, machine):
                faults[f"{wrong}, by {_way(walk, previous)}"] = None
            continue
        if walk.authorized and not walk.waited and is_revoke(state):
            faults[f"{walk.name} revokes before the grant's end, by {_way(walk, previous)}"] = None
        for step in steps(state):
            if step.target is None:
                faults[f"an error of {walk.name} is not caught, by {_way(walk, previous)}"] = None
                continue
            after = _after(walk, state, step)
            if after not in previous:
                previous[after] = walk
                ahead.append(after)
    yield from faults


def _after(walk: Walk, state: State, step: Step) -> Walk:
    assert step.target is not None
    onward = walk._replace(name=step.target)
    if is_authorize(state):
        return onward._replace(authorized=not step.failed, waited=False, closed=None)
    if is_revoke(state):
        return onward._replace(closed=not step.failed)
    return onward._replace(waited=walk.waited or state["Type"] == "Wait")


def _judge(walk: Walk, state: State, machine: Machine) -> str | None:
    if walk.closed is None:
        return f"{walk.name} is reached without a revoke task"
    well = bool(walk.closed and (walk.authorized or not machine.opens))
    if state["Type"] == "Succeed" and not well:
        return f"{walk.name} is a success after a failure"
    if state["Type"] == "Fail" and well:
        return f"{walk.name} is a failure after everything went well"
    return None


def _way(walk: Walk, previous: Mapping[Walk, Walk | None]) -> str:
    names: list[str] = []
    at: Walk | None = walk
    while at is not None:
        names.append(at.name)
        at = previous[at]
    return " > ".join(reversed(names))


def _bounds(definition: Definition) -> Iterator[str]:
    """Bound the history of the longest way, and the time it takes to close after the grant's end."""
    states = definition["States"]

    @cache
    def longest(name: str, measure: Callable[[State], float], above: tuple[str, ...] = ()) -> float:
        if name in above:
            raise RecursionError(name)
        way = (*above, name)
        ahead = [longest(step.target, measure, way) for step in steps(states[name]) if step.target]
        return measure(states[name]) + max(ahead, default=0.0)

    try:
        events = longest(definition["StartAt"], _events)
        expiring = [name for name, state in states.items() if how(state) in ("expired", "close")]
        after_end = max((longest(name, _seconds) for name in expiring), default=0.0)
    except RecursionError as circle:
        yield f"{circle} can come back to itself, so nothing bounds the execution"
        return
    if events > MOST_EVENTS:
        yield f"the longest history is {events:.0f} events, over the {MOST_EVENTS} an execution may have"
    if LONGEST_GRANT + after_end > A_YEAR:
        days = after_end / 86_400
        yield f"revoking may take {days:.1f} days, which a year has no room for after the longest grant"


# ---------------------------------------------------------------------------- measures


def delays(retrier: Mapping[str, Any]) -> list[float]:
    """Give the longest delay before each further try, in seconds; jitter makes them shorter.

    What a retrier leaves out has Step Functions' own defaults.
    https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html
    """
    longest = retrier.get("MaxDelaySeconds", float("inf"))
    waits, wait = [], retrier.get("IntervalSeconds", 1)
    for _ in range(retrier.get("MaxAttempts", 3)):
        waits.append(min(wait, longest))
        wait = waits[-1] * retrier.get("BackoffRate", 2.0)
    return waits


def _mean_wait(retrier: Mapping[str, Any]) -> float:
    """Give the time a retrier waits in all; full jitter halves it on average."""
    return sum(delays(retrier)) / (2 if retrier.get("JitterStrategy") == "FULL" else 1)


def _tries(state: State) -> int:
    """Count the tries of a task at most: each retrier has its own count."""
    return 1 + sum(len(delays(retrier)) for retrier in state.get("Retry", []))


def _seconds(state: State) -> float:
    """Bound the time a state takes; the Wait takes what the grant asked for."""
    waits = sum(sum(delays(retrier)) for retrier in state.get("Retry", []))
    return float(_tries(state) * state.get("TimeoutSeconds", 0) + waits)


def _events(state: State) -> int:
    """Count history events: entered and exited, and scheduled, started and ended for each try."""
    return 2 + (3 * _tries(state) if state["Type"] == "Task" else 0)


# ---------------------------------------------------------------------------- small things


def _tasks(definition: Definition) -> Iterator[tuple[str, State]]:
    return ((name, state) for name, state in definition["States"].items() if state["Type"] == "Task")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _field(path: str) -> str:
    """Give the first field that a path like `$.error.Cause` names."""
    return re.split(r"[.\[]", path.removeprefix("$."))[0]


def _leaves(template: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(template, Mapping):
        for inner, value in template.items():
            yield from _leaves(value, f"{key}.{inner}" if key else inner)
    elif isinstance(template, list):
        for value in template:
            yield from _leaves(value, key)
    else:
        yield key, template


def _payload(state: State) -> Iterator[tuple[str, object]]:
    for field in ("Parameters", "ResultSelector"):
        yield from ((f"{field}.{key}", value) for key, value in _leaves(state.get(field, {})))


def _paths_of(state: State) -> Iterator[str]:
    """Walk through the paths that a state reads."""
    for field in ("InputPath", "OutputPath", "TimestampPath", "SecondsPath", "TimeoutSecondsPath"):
        if isinstance(path := state.get(field), str):
            yield path
    for _, value in _payload(state):
        if isinstance(value, str) and value.startswith("$"):
            yield value
