"""The Step Functions API around the engine: names, definitions, starting, stopping, describing, listing.

Each function below replaces one of moto 5.2.5's, whose fault the docstring names; AWS's behaviour is from the
operation's page in https://docs.aws.amazon.com/step-functions/latest/apireference/.
`local.engine.install` installs them.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult
from moto.stepfunctions import responses
from moto.stepfunctions.exceptions import (
    ExecutionAlreadyExists,
    ExecutionDoesNotExist,
    InvalidExecutionInput,
    InvalidName,
    InvalidToken,
    NameTooLongException,
    ValidationException,
)
from moto.stepfunctions.parser import api
from moto.stepfunctions.parser.api import ExecutionStatus, InvalidDefinition, StateMachineAlreadyExists
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str
from moto.stepfunctions.parser.backend.execution import Execution
from moto.stepfunctions.parser.models import StepFunctionsParserBackend, stepfunctions_parser_backends
from moto.stepfunctions.responses import StepFunctionResponse

_LONGEST_INPUT = 262_144  # bytes; https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
_LARGEST_PAGE = 1000
_PAGE = 100

# White space, brackets, wildcards, special characters, control characters, surrogates and non-characters.
_FORBIDDEN_IN_NAMES = re.compile(
    '[\\s<>{}\\[\\]?*"#%\\\\^|~`$&,;:/\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff\U0010ffff]'
)

_starting = threading.Lock()
_plain_create = StepFunctionsParserBackend.create_state_machine
_plain_validate = StepFunctionsParserBackend._validate_definition
_plain_reset = StepFunctionsParserBackend.reset


def mend(engine: Any) -> None:
    """Install the functions of this module in moto; `engine` runs the executions."""

    def start(
        backend: Any, state_machine_arn: str, name: str | None = None, execution_input: str = "{}"
    ) -> Any:
        return _start_execution(engine, backend, state_machine_arn, name, execution_input)

    def reset(backend: Any) -> None:
        """Drop a backend's executions too; moto leaves them running into the next test."""
        engine.forget(backend.account_id, backend.region_name)
        _plain_reset(backend)

    for error in vars(api).values():
        if isinstance(error, type) and issubclass(error, AWSError) and error is not AWSError:
            error.TYPE = vars(error)["code"]  # moto's own errors reach the client without their code

    for owner, name, mended in (
        (responses, "get_backend", lambda account, region: stepfunctions_parser_backends[account][region]),
        (StepFunctionsParserBackend, "reset", reset),
        (StepFunctionsParserBackend, "_validate_definition", staticmethod(validate_definition)),
        (StepFunctionsParserBackend, "create_state_machine", _create_state_machine),
        (StepFunctionsParserBackend, "start_execution", start),
        (StepFunctionsParserBackend, "describe_execution", _find_execution),
        (StepFunctionResponse, "stop_execution", _stop_execution),
        (StepFunctionResponse, "describe_execution", _describe_execution),
        (StepFunctionResponse, "describe_state_machine_for_execution", _describe_for_execution),
        (StepFunctionResponse, "list_executions", _list_executions),
        (StepFunctionResponse, "get_execution_history", _get_execution_history),
    ):
        setattr(owner, name, mended)


def _create_state_machine(self: Any, name: str, definition: str, roleArn: str, **rest: Any) -> Any:  # noqa: N803
    """Refuse a second machine of the same name that differs; moto returns the first one.

    CreateStateMachine is idempotent by name, definition, type and the logging, tracing and encryption
    configurations; another role or other tags are ignored.
    """
    for machine in self.state_machines:
        same = {
            "definition": definition,
            "type": rest.get("sm_type") or "STANDARD",
            "loggingConfiguration": rest.get("loggingConfiguration") or {"level": "OFF"},
            "tracingConfiguration": rest.get("tracingConfiguration") or {"enabled": False},
            "encryptionConfiguration": rest.get("encryptionConfiguration") or {"type": "AWS_OWNED_KEY"},
        }
        if machine.name == name and any(getattr(machine, key) != value for key, value in same.items()):
            raise StateMachineAlreadyExists(f"State Machine Already Exists: '{machine.arn}'")
    return _plain_create(self, name, definition, roleArn, **rest)


@functools.lru_cache(maxsize=256)  # errors are not cached
def validate_definition(definition: str) -> None:
    """Refuse a definition with an unknown target or an unreachable state; moto accepts both.

    AWS names them MISSING_TRANSITION_TARGET
    (https://docs.aws.amazon.com/step-functions/latest/apireference/API_ValidateStateMachineDefinition.html).
    Refuse as well the states that AWS and moto run and `local.engine` does not.
    """
    _plain_validate(definition)
    machine = json.loads(definition)
    faults = [*_unsupported(machine), *_faults(machine)]
    if faults:
        raise InvalidDefinition(f"Invalid State Machine Definition: '{', '.join(faults)}'")


def _unsupported(machine: dict[str, Any]) -> Iterator[str]:
    for name, state in machine["States"].items():
        if state["Type"] in ("Parallel", "Map"):
            yield f"/States/{name} is a {state['Type']} state, which the local stack does not support"
        elif state["Type"] == "Task" and ":function:" not in state["Resource"]:
            yield f"/States/{name} calls {state['Resource']}; the local stack supports Lambda functions only"


def _faults(machine: dict[str, Any]) -> Iterator[str]:
    states = machine["States"]
    reached = {machine["StartAt"]}
    if machine["StartAt"] not in states:
        yield f"MISSING_TRANSITION_TARGET: Missing 'Next' target: {machine['StartAt']} at /StartAt"
    for name, state in states.items():
        here = f"/States/{name}"
        for path, target in _transitions(state):
            reached.add(target)
            if target not in states:
                yield f"MISSING_TRANSITION_TARGET: Missing 'Next' target: {target} at {here}/{path}"
    for name in states:
        if name not in reached:
            yield f'MISSING_TRANSITION_TARGET: State "{name}" is not reachable. at /States/{name}'


def _transitions(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("Next", "Default"):
        if key in state:
            yield key, state[key]
    for key in ("Choices", "Catch"):
        for index, rule in enumerate(state.get(key, ())):
            yield f"{key}[{index}]/Next", rule["Next"]


def _start_execution(
    engine: Any, backend: Any, state_machine_arn: str, name: str | None, execution_input: str
) -> Any:
    """Start an execution under a unique name; moto accepts any name, and names an unnamed one "None".

    A name is 1 to 80 characters and unique for 90 days (here: for ever). While an execution runs, the same
    name and input return it; otherwise ExecutionAlreadyExists. The execution keeps the definition of its
    start through any UpdateStateMachine.
    """
    machine = backend.describe_state_machine(state_machine_arn)
    name = str(uuid4()) if name is None else name
    if len(name) > 80:
        raise NameTooLongException(name)
    if not name or _FORBIDDEN_IN_NAMES.search(name):
        raise InvalidName(f"Invalid Name: '{name}'")
    if len(execution_input.encode()) > _LONGEST_INPUT:
        raise ValidationException(
            "1 validation error detected: Value at 'input' failed to satisfy constraint: "
            f"Member must have length less than or equal to {_LONGEST_INPUT}"
        )
    try:
        json.loads(execution_input)
    except ValueError as error:
        raise InvalidExecutionInput(f"Invalid State Machine Execution Input: '{error}'") from error
    start = machine.arn.partition(":stateMachine:")[0]
    arn = f"{start}:execution:{machine.name}:{name}"
    owner = backend._get_state_machine_for_execution(arn)  # not the version that `machine` may be
    with _starting:
        by_name = _by_name(owner)
        if existing := by_name.get(name):
            if existing.status == "RUNNING" and existing.execution_input == execution_input:
                return existing
            raise ExecutionAlreadyExists(f"Execution Already Exists: '{arn}'")
        execution = Execution(
            name=name,
            sm_type=machine.sm_type,
            role_arn=machine.roleArn,
            exec_arn=arn,
            account_id=backend.account_id,
            region_name=backend.region_name,
            state_machine=copy.copy(machine),
            start_date=engine.clock.now(),
            cloud_watch_logging_session=None,
            input_data=execution_input,
            activity_store={},
        )
        execution.start()
        owner.executions.append(execution)
        by_name[name] = execution
    return execution


def _by_name(machine: Any) -> dict[str, Any]:
    """Return a machine's executions by name; moto searches all of them for each call."""
    executions: dict[str, Any] = machine.__dict__.setdefault("executions_by_name", {})
    return executions


def _find_execution(self: Any, execution_arn: str) -> Any:
    self._validate_execution_arn(execution_arn)
    machine = self._get_state_machine_for_execution(execution_arn)
    execution = _by_name(machine).get(execution_arn.rpartition(":")[2])
    if execution is None or execution.execution_arn != execution_arn:
        raise ExecutionDoesNotExist(f"Execution Does Not Exist: '{execution_arn}'")
    return execution


def _stop_execution(self: Any) -> ActionResult:
    """Stop with the error and cause of the call, which moto drops; answer when the execution has ended."""
    execution = _find_execution(self.stepfunction_backend, self._get_param("executionArn"))
    execution.stop(None, self._get_param("error"), self._get_param("cause"))
    return ActionResult({"stopDate": execution.stop_date})


def _describe_execution(self: Any) -> ActionResult:
    """Describe with stopDate and error in every status that has them, and the output as JSON.

    moto leaves stopDate out of TIMED_OUT, and returns an output that is a string without its quotes.
    """
    execution = _find_execution(self.stepfunction_backend, self._get_param("executionArn"))
    status = execution.exec_status  # read once; the other fields were set before it
    described = {
        **_summary(execution, status),
        "input": execution.execution_input,
        "inputDetails": {"included": True},
    }
    if status == ExecutionStatus.SUCCEEDED:
        described["output"] = to_json_str(execution.output, separators=(",", ":"))
        described["outputDetails"] = {"included": True}
    elif status != ExecutionStatus.RUNNING:
        for key in ("error", "cause"):
            if (value := getattr(execution, key)) is not None:
                described[key] = value
    return ActionResult(described)


def _summary(execution: Any, status: ExecutionStatus) -> dict[str, Any]:
    summary = {
        "executionArn": execution.execution_arn,
        "stateMachineArn": execution.state_machine_arn,
        "name": execution.name,
        "status": status.value,
        "startDate": execution.start_date,
    }
    if status != ExecutionStatus.RUNNING:
        summary["stopDate"] = execution.stop_date
    return summary


def _describe_for_execution(self: Any) -> ActionResult:
    """Describe the machine as it was when the execution started; moto describes it as it is now."""
    execution = _find_execution(self.stepfunction_backend, self._get_param("executionArn"))
    machine = execution.state_machine
    return ActionResult(
        {
            "stateMachineArn": machine.arn,
            "name": machine.name,
            "definition": machine.definition,
            "roleArn": machine.roleArn,
            "updateDate": machine.update_date,
            "loggingConfiguration": machine.loggingConfiguration,
            "tracingConfiguration": machine.tracingConfiguration,
        }
    )


def _list_executions(self: Any) -> ActionResult:
    """List newest first, in pages that stay right while executions start and end.

    moto's token names the next page's first execution, so a listing of RUNNING fails with InvalidToken when
    that execution ends between two pages; ours names a position in the order of starting.
    """
    machine = self.stepfunction_backend.describe_state_machine(self._get_param("stateMachineArn"))
    status = self._get_param("statusFilter")
    if status is not None and status not in ExecutionStatus.__members__:
        raise ValidationException(
            f"1 validation error detected: Value '{status}' at 'statusFilter' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(ExecutionStatus.__members__)}]"
        )
    started = machine.executions[:]
    size = _page_size(self)
    place = _place(self, f"{machine.arn} {status}", len(started))
    page: list[dict[str, Any]] = []
    while place > 0 and len(page) < size:
        place -= 1
        execution = started[place]
        now = execution.exec_status
        if status in (None, now.value):
            page.append(_summary(execution, now))
    more = any(status in (None, execution.status) for execution in started[:place])
    return _page("executions", page, f"{machine.arn} {status}", place if more else None)


def _get_execution_history(self: Any) -> ActionResult:
    """Return the events in pages, in either order, without data on request; moto returns all of them."""
    execution = _find_execution(self.stepfunction_backend, self._get_param("executionArn"))
    backwards = bool(self._get_param("reverseOrder"))
    events: Sequence[dict[str, Any]] = execution.to_history_output()["events"]
    query = f"{execution.execution_arn} {backwards}"
    # Backwards, a place is an event's id: events that are added after the first page do not move it.
    if backwards:
        place = _place(self, query, len(events))
        page = list(reversed(events[max(0, place - _page_size(self)) : place]))
        following = place - len(page)
        more = following > 0
    else:
        place = _place(self, query, 0)
        page = list(events[place : place + _page_size(self)])
        following = place + len(page)
        more = following < len(events)
    if self._get_param("includeExecutionData") is False:
        page = [_without_data(event) for event in page]
    return _page("events", page, query, following if more else None)


def _without_data(event: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {name: part for name, part in value.items() if name not in ("input", "output")}
        if isinstance(value, dict)
        else value
        for key, value in event.items()
    }


def _page_size(self: Any) -> int:
    size = self._get_int_param("maxResults") or _PAGE
    if not 0 < size <= _LARGEST_PAGE:
        raise ValidationException(
            f"1 validation error detected: Value '{size}' at 'maxResults' failed to satisfy constraint: "
            f"Member must have value less than or equal to {_LARGEST_PAGE}"
        )
    return int(size)


def _place(self: Any, query: str, first: int) -> int:
    """Return the place that a token names, or the first place; a token of another query is refused."""
    token = self._get_param("nextToken")
    if token is None:
        return first
    try:
        place, token_query = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError) as error:
        raise InvalidToken from error
    if token_query != query:
        raise InvalidToken
    return int(place)


def _page(key: str, page: list[Any], query: str, following: int | None) -> ActionResult:
    answer: dict[str, Any] = {key: page}
    if following is not None:
        answer["nextToken"] = base64.urlsafe_b64encode(json.dumps([following, query]).encode()).decode()
    return ActionResult(answer)
