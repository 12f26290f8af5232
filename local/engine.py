"""Step Functions on moto's interpreter, mended where it differs from AWS.

moto 5.2.5 executes the States Language, but it waits in naive local time, keeps two threads for every
execution, drops the error and cause given to StopExecution, publishes no status changes, and accepts
definitions and names that AWS refuses. This module mends that in the running process and leaves the
interpreter itself alone. Each mend's docstring says what moto does, what AWS does and which page says
so; `tests/local/test_engine.py` proves each mend, and fails when a new moto makes it needless or
breaks it.

**How executions run.** All of them run on one thread, the engine's, each as a greenlet that is parked
while its execution waits: in a Wait state, before a retry, and while a function runs. So an execution
that waits costs a few kilobytes, and a thousand that end in one second do not compete for the
interpreter's lock. Functions are called on other threads; the states that would block anywhere else
(Parallel, Map, service integrations) are refused with their definition. Every change of an execution
is made on the engine's thread, in order; so StopExecution can answer after the execution has ended.
Decided against: moto's threads with a longer switch interval (two threads an execution, and a lag of
seconds when a thousand end together), and an interpreter of our own (the definition is to be tested
against a reading of the language that is not ours).

    engine = install(invoke)             # invoke(function_arn, payload) -> InvocationResult
    engine.clock.advance(timedelta(hours=8))
    engine.shutdown()
"""

from __future__ import annotations

import copy
import functools
import gc
import json
import logging
import queue
import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from greenlet import GreenletExit, getcurrent, greenlet
from greenlet._greenlet import enable_optional_cleanup  # the package re-exports it without a type
from moto.stepfunctions.parser.api import ExecutionStatus, HistoryEventType
from moto.stepfunctions.parser.asl.component.common.error_name.error_equals_decl import ErrorEqualsDecl
from moto.stepfunctions.parser.asl.component.common.error_name.error_name import ErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.path import result_path
from moto.stepfunctions.parser.asl.component.common.retry.max_attempts_decl import MaxAttemptsOutcome
from moto.stepfunctions.parser.asl.component.common.retry.retrier_decl import RetrierDecl
from moto.stepfunctions.parser.asl.component.common.retry.retrier_outcome import RetrierOutcome
from moto.stepfunctions.parser.asl.component.common.string import string_expression
from moto.stepfunctions.parser.asl.component.common.timeouts.timeout import EvalTimeoutError
from moto.stepfunctions.parser.asl.component.eval_component import EvalComponent
from moto.stepfunctions.parser.asl.component.program.program import Program
from moto.stepfunctions.parser.asl.component.state.exec.execute_state import ExecutionState
from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils
from moto.stepfunctions.parser.asl.component.state.exec.state_task.state_task_lambda import StateTaskLambda
from moto.stepfunctions.parser.asl.component.state.wait.wait_function.timestamp import Timestamp
from moto.stepfunctions.parser.asl.component.state.wait.wait_function.wait_function import WaitFunction
from moto.stepfunctions.parser.asl.eval import environment, states
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.eval.event.event_manager import EventManager
from moto.stepfunctions.parser.asl.eval.program_state import (
    ProgramEnded,
    ProgramError,
    ProgramState,
    ProgramStopped,
    ProgramTimedOut,
)
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.utils import json_path
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str
from moto.stepfunctions.parser.asl.utils.json_path import NoSuchJsonPathError
from moto.stepfunctions.parser.backend.execution import BaseExecutionWorkerCommunication, Execution
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker

from local import engine_api
from local.clock import Clock
from local.invocation import InvocationError, InvocationResult, Invoke, Workers

__all__ = ["Clock", "Engine", "InvocationError", "InvocationResult", "calm_collector", "install"]

log = logging.getLogger(__name__)

Publish = Callable[[str, str, dict[str, Any]], None]
"""Puts an event on the default bus: the account, the region, the event as EventBridge delivers it."""


# seconds; https://docs.aws.amazon.com/lambda/latest/dg/configuration-timeout.html, and some seconds to answer
_LONGEST_INVOCATION = 960

_CALLS_AT_ONCE = 64  # of functions

# bytes; https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html
_LONGEST_EVENT_DATA = 248 * 1024

_SCALARS = frozenset({str, int, float, bool, type(None)})


class _Interrupted(BaseException):
    """Thrown into an execution that was stopped or timed out; no Exception, so moto does not catch it."""


class _Run(greenlet):
    """A running execution. It runs on the engine's thread only, and is parked there between steps."""

    def __init__(self, engine: Engine, execution: Any) -> None:
        super().__init__(self._live)
        self.engine = engine
        self.execution = execution
        self.task_seconds = 0
        self._turn = 0

    @property
    def env(self) -> Any:
        return self.execution.exec_worker.env

    def _live(self) -> None:
        try:
            self.execution.exec_worker._execution_logic()
        except Exception as error:
            # A fault of the engine, not of the definition. The execution must not stay RUNNING for ever.
            log.exception("%s failed in the engine itself", self.execution.exec_arn)
            self.execution.stop_date = self.engine.clock.now()
            self.execution.error, self.execution.cause = "States.Runtime", repr(error)
            self.execution.exec_status = ExecutionStatus.FAILED
            self.engine.ended(self.execution)

    def follow(self, program: Any) -> None:
        """Evaluate the definition until it ends, is interrupted or times out, and record how it ended."""
        if program.timeout_seconds:
            self.engine.clock.at(
                self.execution.start_date + timedelta(seconds=program.timeout_seconds.timeout_seconds),
                lambda: self.engine.post(self.time_out),
            )
        try:
            program._eval_body(self.env)
        except _Interrupted:
            program._eval_body(self.env)  # not RUNNING any more, so this only records the end

    def sleep_until(self, when: datetime) -> None:
        """Park until a time on the engine's clock."""
        turn = self._turn
        timer = self.engine.clock.at(when, lambda: self.engine.post(lambda: self._resume(turn, None)))
        self._answer(timer.cancel)

    def call(self, work: Callable[[], Any], seconds: float) -> Any:
        """Park while a worker does the work; raise its error, or `EvalTimeoutError` after `seconds`."""
        turn = self._turn
        # A task without a timeout has moto's default of three years: the timer would outlive the process.
        timer = self.engine.clock.after(
            min(seconds, _LONGEST_INVOCATION),
            lambda: self.engine.post(lambda: self._resume(turn, EvalTimeoutError())),
        )
        self.engine.workers.submit(lambda: self._report(turn, work))
        return self._answer(timer.cancel)

    def time_out(self) -> None:
        if not self.dead:
            self.env.set_timed_out()
            self.throw(_Interrupted())

    def stop(self, error: str | None, cause: str | None) -> None:
        self.env.set_stop(stop_date=self.engine.clock.now(), error=error, cause=cause)
        self.throw(_Interrupted())

    def _report(self, turn: int, work: Callable[[], Any]) -> None:
        try:
            answer = work()
        except Exception as error:  # noqa: BLE001 - raised in the execution
            answer = error
        self.engine.post(lambda: self._resume(turn, answer))

    def _resume(self, turn: int, answer: Any) -> None:
        # An answer to a turn that is over (after a timeout or a stop) is dropped.
        if self._turn == turn and not self.dead:
            self.switch(answer)

    def _park(self) -> Any:
        try:
            return self.engine.hub.switch()
        finally:
            self._turn += 1

    def _answer(self, clean_up: Callable[[], None]) -> Any:
        try:
            answer = self._park()
        finally:
            clean_up()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Engine:
    """Runs the executions of this process. Created by `install`."""

    def __init__(self, invoke: Invoke, clock: Clock, publish: Publish) -> None:
        self.invoke = invoke
        self.clock = clock
        self.publish = publish
        self.workers = Workers("task", _CALLS_AT_ONCE)
        self.hub: greenlet
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._runs: dict[Any, _Run] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Drop every execution, running or waiting, without a record; a second call does nothing."""
        self._wait_for(lambda: self._drop(lambda _: True))
        self._jobs.put(None)
        self._thread.join()
        self.workers.close()

    def forget(self, account: str, region: str) -> None:
        """Drop the executions of one backend, which is being reset."""
        self._wait_for(lambda: self._drop(lambda e: (e.account_id, e.region_name) == (account, region)))

    def begin(self, execution: Any) -> None:
        """Start an execution."""
        if not self._thread.is_alive():
            raise RuntimeError("the engine was shut down; call local.engine.install again")
        self.announce(execution)
        self.post(lambda: self._begin(execution))

    def stop(self, execution: Any, error: str | None, cause: str | None) -> None:
        """End an execution as ABORTED; return when it has ended. Does nothing after it has ended."""

        def stop() -> None:
            if run := self._runs.get(execution):
                run.stop(error, cause)

        self._wait_for(stop)

    def catch_up(self) -> None:
        """Return when every execution started so far has made its first step."""
        self._wait_for(lambda: None)

    def ended(self, execution: Any) -> None:
        """Announce the status an execution ended with."""
        self._runs.pop(execution, None)
        self.announce(execution)

    def announce(self, execution: Any) -> None:
        self.publish(execution.account_id, execution.region_name, _status_change(execution))

    def post(self, job: Callable[[], None]) -> None:
        """Queue a job for the engine's thread, which runs jobs in order."""
        self._jobs.put(job)

    def _wait_for(self, job: Callable[[], None]) -> None:
        finished = threading.Event()

        def finish() -> None:
            try:
                job()
            finally:
                finished.set()

        self.post(finish)
        while self._thread.is_alive() and not finished.wait(0.1):
            pass

    def _begin(self, execution: Any) -> None:
        run = self._runs[execution] = _Run(self, execution)
        run.switch()

    def _drop(self, chosen: Callable[[Any], bool]) -> None:
        for execution in [execution for execution in self._runs if chosen(execution)]:
            self._runs.pop(execution).throw(GreenletExit())

    def _work(self) -> None:
        self.hub = getcurrent()
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of the engine's failed")


_engine: Engine


def install(invoke: Invoke, *, clock: Clock | None = None, publish: Publish | None = None) -> Engine:
    """Mend moto's Step Functions in this process and start an engine that runs its executions.

    `invoke` is called for every Lambda task, at most 64 times at once. A second call shuts the engine
    down and starts another. Works for `mock_aws` and for a moto server in this process.
    """
    global _engine
    if "_engine" in globals():
        _engine.shutdown()
    # When a thread ends, greenlet searches all objects for leaked frames: it holds the interpreter's lock for
    # 30 ms, and for longer than a stack may take to stop where thousands of executions have run.
    enable_optional_cleanup(False)
    _engine = Engine(invoke, clock or Clock(), publish or (lambda *_: None))
    _mend()
    return _engine


def calm_collector() -> None:
    """Turn garbage collection on, and keep it from long pauses; called once the process is ready to serve.

    moto, botocore and the parser leave half a million objects, and a full collection visits each: it stops
    every execution for 0.3 s, and it comes when many end together. Present objects are exempt from now on,
    and full collections rare: the last of 1,000 tasks due together starts 0.2 s late instead of 0.5 s.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def _mend() -> None:
    engine_api.mend(_engine)
    for owner, name, mended in (
        (ExecutionWorker, "_get_evaluation_entrypoint", _entrypoint),
        (Execution, "start", _start),
        (Execution, "stop", _stop),
        (Execution, "to_history_output", _to_history_output),
        (BaseExecutionWorkerCommunication, "terminated", _terminated),
        (Program, "eval", _eval_program),
        (ExecutionState, "_evaluate_with_timeout", _evaluate_with_timeout),
        (lambda_eval_utils, "execute_lambda_function_integration", _call_function),
        (StateTaskLambda, "_from_error", _task_error),
        (WaitFunction, "_eval_body", _wait_seconds),
        (Timestamp, "_eval_body", _wait_timestamp),
        (Timestamp, "_from_timestamp_string", staticmethod(_parse_timestamp)),
        (RetrierDecl, "_eval_body", _retry),
        (ErrorEqualsDecl, "_eval_body", _error_equals),
        (EvalComponent, "_log_failure_event_exception", _log_quietly),
        (EvalComponent, "_log_exception", _log_quietly),
        (EventManager, "_get_current_timestamp", staticmethod(lambda: _engine.clock.now())),
        *(
            (module, "copy", SimpleNamespace(deepcopy=_copied))
            for module in (states, environment, string_expression, result_path)
        ),
        *((module, "parse", _parsed_path[module]) for module in (json_path, result_path)),
    ):
        setattr(owner, name, mended)


# moto's own functions, which the mends call
_plain_to_history_output = Execution.to_history_output
_plain_task_error = StateTaskLambda._from_error
_plain_error_equals = ErrorEqualsDecl._eval_body
_parsed_path = {module: functools.cache(module.parse) for module in (json_path, result_path)}


def _current_run() -> _Run:
    """Return the execution that is running here."""
    return cast("_Run", getcurrent())


@functools.lru_cache(maxsize=256)
def _program(definition: str) -> Any:
    """Parse a definition once. A program has no state of an execution, so executions can share it."""
    return AmazonStateLanguageParser.parse(definition)[0]


def _entrypoint(self: Any) -> Any:
    """Return the parsed definition; moto parses it again for every execution, 5 to 10 ms each."""
    return _program(self._evaluation_details.state_machine_details.definition)


def _copied(value: Any) -> Any:
    """Copy a JSON value or a `ProgramState` as `copy.deepcopy` does, at a tenth of its cost.

    moto copies every state's input and output some thirty times over an execution's life.
    """
    if isinstance(value, dict):
        return {key: part if type(part) in _SCALARS else _copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [part if type(part) in _SCALARS else _copied(part) for part in value]
    return copy.copy(value) if isinstance(value, ProgramState) else value


def _start(self: Any) -> None:
    """Hand the execution to the engine; moto starts two threads for it."""
    self.exec_worker = self._get_start_execution_worker()
    self.exec_status = ExecutionStatus.RUNNING
    _engine.begin(self)


def _stop(self: Any, stop_date: object, error: str | None, cause: str | None) -> None:  # noqa: ARG001 - moto's
    """End the execution before StopExecution answers, with its error and cause.

    moto drops both, waits for a running task, and fails when the execution has not been parsed yet. On AWS a
    function that is running goes on, and its result is dropped
    (https://docs.aws.amazon.com/step-functions/latest/apireference/API_StopExecution.html).
    """
    _engine.stop(self, error, cause)


def _to_history_output(self: Any) -> Any:
    """Show the history of an execution from its first moment; moto fails until it has been parsed."""
    if self.exec_worker.env is None:
        _engine.catch_up()
    return _plain_to_history_output(self)


def _eval_program(self: Any, env: Any) -> None:
    """Evaluate the program on the engine's thread; moto starts a thread for it."""
    env.next_state_name = self.start_at.start_at_name
    _current_run().follow(self)


def _terminated(self: Any) -> None:
    """Record how an execution ended, status last, and announce it.

    moto keeps no error and cause of a stop, shows SUCCEEDED before the output is there, and emits no events.
    """
    execution = self.execution
    env = execution.exec_worker.env
    state = env.program_state()
    execution.stop_date = _engine.clock.now()
    match state:
        case ProgramEnded():
            execution.output = env.states.get_input()
            status = ExecutionStatus.SUCCEEDED
        case ProgramStopped():
            execution.error, execution.cause, execution.stop_date = state.error, state.cause, state.stop_date
            status = ExecutionStatus.ABORTED
        case ProgramError():
            failure = state.error or {}
            execution.error, execution.cause = failure.get("error"), failure.get("cause")
            status = ExecutionStatus.FAILED
        case ProgramTimedOut():
            status = ExecutionStatus.TIMED_OUT
    execution.exec_status = status  # last: a reader who sees it sees the rest too
    _engine.ended(execution)


def _wait_seconds(self: Any, env: Any) -> None:
    """Wait by the engine's clock, interruptibly."""
    _current_run().sleep_until(_engine.clock.now() + timedelta(seconds=self._get_wait_seconds(env=env)))


def _wait_timestamp(self: Any, env: Any) -> None:
    """Wait until an absolute time, exactly.

    moto takes the difference to local time without a zone and cuts it to whole seconds, so it is wrong in
    every zone but UTC and up to 1 s early; and it raises TypeError for a value that is no string. AWS takes
    RFC 3339 and cuts its milliseconds; any other value fails the execution with States.Runtime
    (https://docs.aws.amazon.com/step-functions/latest/dg/state-wait.html).
    """
    self.string.eval(env=env)
    text = env.stack.pop()
    when = _parse_timestamp(text)
    if when is None:
        raise FailureEventException(self._create_failure_event(env, text))
    _current_run().sleep_until(when)


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


def _parse_timestamp(text: object) -> datetime | None:
    """Read a timestamp to the second; None for any other value. moto refuses the offsets of RFC 3339."""
    if not isinstance(text, str) or not (parts := _TIMESTAMP.fullmatch(text)):
        return None
    try:
        return datetime.fromisoformat(parts[1] + parts[2])
    except ValueError:
        return None


def _retry(self: Any, env: Any) -> None:
    """Pause before a retry by the engine's clock, interruptibly; moto's `time.sleep` is neither."""
    self.error_equals.eval(env)
    if not env.stack.pop():
        env.stack.append(RetrierOutcome.Skipped)
        return
    self.max_attempts.eval(env=env)
    if env.stack.pop() == MaxAttemptsOutcome.EXHAUSTED:
        env.stack.append(RetrierOutcome.Failed)
        return
    for part in (self.interval_seconds, self.backoff_rate, self.max_delay_seconds, self.jitter_strategy):
        part.eval(env=env)
    _current_run().sleep_until(_engine.clock.now() + timedelta(seconds=env.stack.pop()))
    env.stack.append(RetrierOutcome.Executed)


def _error_equals(self: Any, env: Any) -> None:
    """Match only the errors that AWS lets a Retry or Catch match; moto's States.ALL matches every error.

    States.ALL catches neither States.DataLimitExceeded nor States.Runtime, and the latter "will always cause
    the execution to fail" (https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html).
    """
    name = env.stack[-1].error_name
    everything = ErrorEqualsDecl._STATE_ALL_ERROR in self.error_names
    if name == "States.Runtime" or (name == "States.DataLimitExceeded" and everything):
        env.stack[-1] = False
        return
    _plain_error_equals(self, env)


def _log_quietly(self: Any, **failure: Exception) -> None:
    """Log a failure at DEBUG; moto logs the whole syntax tree of the evaluation, at ERROR."""
    log.debug("%s failed: %r", type(self).__name__, failure)


def _evaluate_with_timeout(self: Any, env: Any) -> None:
    """Evaluate a Lambda task in place and park for the function only; moto starts a thread for each task.

    The steps are moto's own.
    """
    self.timeout.eval(env=env)
    _current_run().task_seconds = env.stack.pop()
    frame = env.open_frame()
    frame.states.reset(input_value=env.states.get_input())
    frame.stack = _copied(env.stack)
    try:
        self._eval_execution(frame)
    finally:
        frame.set_ended()
        env.close_frame(frame)
    output = frame.stack.pop()
    env.stack.append(output)
    if not self._is_language_query_jsonpath():
        env.states.set_result(output)
    for part in (self.assign_decl, self.result_selector, self.result_path):
        if part:
            part.eval(env=env)


def _call_function(
    env: Any,
    parameters: dict[str, Any],
    region: str,  # noqa: ARG001 - moto's signature
    state_credentials: object,  # noqa: ARG001 - moto's signature
) -> None:
    """Call the function through the engine's `invoke`; moto creates a boto3 client and calls localhost."""
    arn, payload = parameters["FunctionName"], parameters["Payload"]
    run = _current_run()
    result = run.call(functools.partial(_engine.invoke, arn, payload), run.task_seconds)
    text = result.payload.decode()
    if result.function_error:
        raise lambda_eval_utils.LambdaFunctionErrorException(result.function_error, text)
    env.stack.append({"Payload": json.loads(text) if text else None, "StatusCode": 200})


def _task_error(self: Any, env: Any, ex: Exception) -> Any:
    """Name the error a Lambda task failed with as AWS does; moto calls most of them "Exception".

    A function's own error has the errorType of its payload, which is the cause; without one, as from an
    older runtime's timeout, it is Lambda.Unknown. When Lambda refuses to run it, it is "Lambda." and the code
    (https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html). A path without
    a value is States.Runtime.
    """
    match ex:
        case lambda_eval_utils.LambdaFunctionErrorException():
            error, cause = _function_error(ex.payload)
        case InvocationError():
            error, cause = f"Lambda.{ex.code}", ex.message
        case NoSuchJsonPathError():
            raise ex  # the state fails the execution with States.Runtime, past Retry and Catch
        case _:
            return _plain_task_error(self, env, ex)
    return FailureEvent(
        env=env,
        error_name=ErrorName(error),  # moto's CustomErrorName raises for a function's "States.Timeout"
        event_type=HistoryEventType.LambdaFunctionFailed,
        event_details=cast(
            "EventDetails", {"lambdaFunctionFailedEventDetails": {"error": error, "cause": cause}}
        ),
    )


def _function_error(payload: str) -> tuple[str, str]:
    try:
        return json.loads(payload)["errorType"], payload
    except (ValueError, KeyError, TypeError):
        return "Lambda.Unknown", (
            "The cause could not be determined because Lambda did not return an error type. "
            f"Returned payload: {payload}"
        )


def _status_change(execution: Any) -> dict[str, Any]:
    """Describe an execution as "Step Functions Execution Status Change" does; moto emits no such events.

    Input that makes the event too large is left out.

    https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html
    """
    status = execution.exec_status.value
    succeeded = status == "SUCCEEDED"
    output = _json(execution.output) if succeeded else None
    # The sizes of both as strings in the event, with their quotes escaped.
    room = _LONGEST_EVENT_DATA - len(json.dumps(output))
    included = len(json.dumps(execution.execution_input)) <= room
    return {
        "detail-type": "Step Functions Execution Status Change",
        "source": "aws.states",
        "resources": [execution.exec_arn],
        "detail": {
            "executionArn": execution.exec_arn,
            "stateMachineArn": execution.state_machine_arn,
            "name": execution.name,
            "status": status,
            "startDate": _milliseconds(execution.start_date),
            "stopDate": _milliseconds(execution.stop_date) if execution.stop_date else None,
            "input": execution.execution_input if included else None,
            "output": output,
            "inputDetails": {"included": included},
            "outputDetails": {"included": True} if succeeded else None,
            "error": execution.error,
            "cause": execution.cause,
        },
    }


def _milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000)


def _json(value: Any) -> str:
    return to_json_str(value, separators=(",", ":"))
