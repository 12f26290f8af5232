"""Lambda on one machine: each function in processes of its own, one invocation at a time in each.

Every invocation goes through here: the gateway's, the engine's tasks, EventBridge's and those of Lambda's
API. A function's processes have its own environment and nothing else; its output goes to the stack's log.
Failures have Lambda's forms: the handler's error, `Sandbox.Timedout` when the worker was killed at the
function's timeout, `Runtime.ExitError` when it ended without an answer
(https://docs.aws.amazon.com/lambda/latest/dg/troubleshooting-invocation.html).

Each function has one process that loads the handler and forks workers (see `local.worker`), and here a pool:
idle workers are used last in, first out, and invocations without a worker wait in the order of arrival. While
there are fewer workers than processors, a worker is forked as soon as an invocation needs it; after that only
when the queue has not moved for a while, since forking during a burst takes processor time from the workers
that would end the burst (30 knocks at once on two processors: 1 s with two workers at first, 6 s with
sixteen). The caller's own thread talks to the worker, so an empty handler's round trip is a write and a read
on a socket.

Decided against threads in this process (functions would share an environment, an interpreter lock and a
crash), and against a container for each function (not every machine has Docker).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from local import worker
from local.clock import Clock
from local.deployment import Function
from local.invocation import InvocationError, InvocationResult, Workers

__all__ = ["FunctionNotLoaded", "NotAnswered", "Runtime", "access_key", "environment"]

log = logging.getLogger(__name__)

MAX_PAYLOAD = 6 * 1024 * 1024  # bytes, a synchronous invocation's
MAX_QUEUED = 1024 * 1024  # bytes, an Event invocation's
MAX_ANSWER = 6291556  # bytes; https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
RETRY_PAUSES = (timedelta(minutes=1), timedelta(minutes=2))
LONGEST_REFUSAL_PAUSE = timedelta(minutes=5)

_AT_ONCE = max(2, os.cpu_count() or 0)  # workers of a function that are forked without waiting
_STALLED = 0.25  # seconds without an answer, after which another is forked, up to the limit
_END_GRACE = 0.3  # seconds a function's process may take to end its workers and itself
_EXIT_GRACE = 1.0  # seconds a worker whose socket closed may take to leave its exit status


class FunctionNotLoaded(Exception):
    """A function whose module cannot be loaded."""

    def __init__(self, function: Function, failure: Mapping[str, Any]) -> None:
        super().__init__(
            f"Function {function.logical_id} ({function.handler} in {function.code}) could not be loaded:"
            f" {failure['errorType']}: {failure['errorMessage']}"
        )
        self.failure = failure


class NotAnswered(Exception):
    """A function did not answer within its caller's patience."""


class _WorkerGone(Exception):
    """The worker closed its socket instead of answering."""


def environment(function: Function, *, region: str, endpoint_url: str) -> dict[str, str]:
    """Return the variables a function's process starts with: its own, and those that Lambda sets.

    https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html#configuration-envvars-runtime. The
    access key names the function, so that the receiver of its AWS calls knows the caller.
    """
    return {
        **function.environment,
        "AWS_ACCESS_KEY_ID": access_key(function),
        "AWS_CONFIG_FILE": os.devnull,  # or botocore reads the developer's own
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"{datetime.now(UTC):%Y/%m/%d}/[$LATEST]{uuid.uuid4().hex}",
        "AWS_REGION": region,
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "LAMBDA_RUNTIME_DIR": str(Path(worker.__file__).parent),
        "LAMBDA_TASK_ROOT": str(function.code.resolve()),
        "LANG": "en_US.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TZ": ":UTC",
        "_HANDLER": function.handler,
    } | _mac_environment()


def _mac_environment() -> dict[str, str]:
    """Return the variables that keep macOS's own libraries from aborting in a forked process."""
    if sys.platform != "darwin":
        return {}
    return {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES", "no_proxy": "*"}


def access_key(function: Function) -> str:
    """Return the access key id that a function's AWS calls are signed with."""
    return "ASIA" + re.sub(r"[^A-Z0-9]", "", function.logical_id.upper())


class _Worker:
    """The stack's end of one worker."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self._connection = connection
        self._reader = connection.makefile("rb")

    def send(self, head: bytes, payload: bytes, timeout: float) -> None:
        """Send one invocation; raises TimeoutError and _WorkerGone."""
        try:
            self._connection.settimeout(timeout)
            self._connection.sendall(worker.INVOCATION.pack(len(head), len(payload)) + head + payload)
        except ConnectionError as error:
            raise _WorkerGone from error

    def answers_by(self, when: float) -> bool:
        """Wait for the worker to answer or to end; False when it has done neither by `when` (monotonic)."""
        poll = select.poll()  # not select.select, which takes no file descriptor over 1023
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(max(0.0, when - time.monotonic()) * 1000))

    def receive(self) -> tuple[bytes, bytes]:
        """Read the answer; raises _WorkerGone when the worker ended instead."""
        try:
            lengths = self._reader.read(worker.ANSWER.size)
            if len(lengths) == worker.ANSWER.size:
                kind, length = worker.ANSWER.unpack(lengths)
                if len(answer := self._reader.read(length)) == length:
                    return kind, answer
        except OSError as error:
            raise _WorkerGone from error
        raise _WorkerGone

    def close(self) -> None:
        self._reader.close()
        self._connection.close()


class _Host:
    """The process that has loaded a function's handler, and forks its workers."""

    def __init__(self, function: Function, variables: Mapping[str, str], output: IO[bytes] | int) -> None:
        """Start it; `wait` returns when the handler is loaded."""
        self._function = function
        self._numbers = itertools.count()
        self._control, child_end = socket.socketpair()
        with child_end:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [sys.executable, "-P", "-u", worker.__file__, str(child_end.fileno())],
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[child_end.fileno()],
                start_new_session=True,  # Ctrl-C is for the stack; and one group can be killed at once
            )

    def wait(self) -> None:
        """Wait for the handler to be loaded; raises FunctionNotLoaded."""
        reply = self._read(worker.LOADED.size)
        loaded, length = worker.LOADED.unpack(reply) if reply else (False, 0)
        if loaded:
            return
        message = f"its process ended, or took longer than {worker.LOAD_SECONDS} s"
        failure = {
            "errorMessage": message,
            "errorType": "Runtime.ExitError",
            "requestId": "",
            "stackTrace": [],
        }
        if length:
            failure = json.loads(self._read(length))
        self.kill()
        raise FunctionNotLoaded(self._function, failure)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> _Worker:
        stack_end, worker_end = socket.socketpair()
        number = next(self._numbers)
        with worker_end:
            command = worker.COMMAND.pack(worker.FORK, number, 0)
            socket.send_fds(self._control, [command], [worker_end.fileno()])
        return _Worker(number, stack_end)

    def end(self, ending: _Worker, grace: float) -> int:
        """Kill a worker unless it ends within `grace` seconds; return its exit code, or minus the signal."""
        try:
            self._control.sendall(worker.COMMAND.pack(worker.END, ending.number, grace))
            reply = self._read(worker.STATUS.size)
        except OSError:
            reply = b""
        # No reply: the function's process has ended, and its workers with it.
        return int(worker.STATUS.unpack(reply)[0]) if reply else -signal.SIGKILL

    def kill(self) -> None:
        """Kill the process and its workers; a second call does nothing."""
        with contextlib.suppress(OSError):
            # Then it kills its workers, waits for them and ends, and our other threads stop waiting.
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_END_GRACE)
        except subprocess.TimeoutExpired:  # it is still loading
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._control.close()

    def _read(self, length: int) -> bytes:
        """Read exactly `length` bytes, or nothing when the process has ended."""
        received = b""
        with contextlib.suppress(OSError):
            while len(received) < length:
                if not (part := self._control.recv(length - len(received))):
                    break
                received += part
        return received if len(received) == length else b""


class _Pool:
    """One function's workers. All but the invocations themselves is done under the pool's lock."""

    def __init__(
        self, function: Function, variables: Mapping[str, str], output: IO[bytes] | int, limit: int
    ) -> None:
        self.function = function
        self._launch = functools.partial(_Host, function, variables, output)
        self._limit = limit
        self._lock = threading.RLock()
        self._host = self._launch()
        self._loaded = False
        self._idle: list[_Worker] = []
        self._count = 0
        self._waiting: deque[Future[_Worker]] = deque()
        self._moved = 0.0  # when a worker was last given back or made
        self._stopped = False

    @property
    def busy(self) -> int:
        return self._count - len(self._idle)

    def warm(self) -> None:
        """Wait until the function is loaded and have one worker ready; raises FunctionNotLoaded."""
        self.give_back(self.take(math.inf))

    def take(self, patience: float) -> _Worker:
        """Return a worker for the caller alone, until it is given back; wait in turn while all are busy.

        Raises FunctionNotLoaded, NotAnswered, and InvocationError when the stack stops meanwhile.
        """
        give_up = time.monotonic() + patience
        with self._lock:
            if self._stopped:
                raise _stopping()
            while self._idle:
                idle = self._idle.pop()
                if not idle.answers_by(0):  # an idle worker that has ended has closed its end
                    return idle
                self._drop(idle, _EXIT_GRACE)
            if self._count < min(self._limit, _AT_ONCE):
                return self._fork()
            turn: Future[_Worker] = Future()
            self._waiting.append(turn)
        while True:
            try:
                return turn.result(min(give_up - time.monotonic(), _STALLED))
            except TimeoutError:
                with self._lock:
                    if turn.done():
                        continue  # the worker came just in time
                    if self._count < self._limit and time.monotonic() - self._moved >= _STALLED:
                        self._waiting.remove(turn)
                        return self._fork()
                    if time.monotonic() >= give_up:
                        self._waiting.remove(turn)
                        raise NotAnswered(
                            f"no worker of {self.function.name} was free for {patience:g} s"
                        ) from None

    def give_back(self, returned: _Worker) -> None:
        """Hand a worker to the invocation that has waited longest, or keep it."""
        with self._lock:
            self._moved = time.monotonic()
            if self._stopped:
                returned.close()
            elif self._waiting:
                self._waiting.popleft().set_result(returned)
            else:
                self._idle.append(returned)

    def end(self, ending: _Worker, grace: float) -> int:
        """Remove a worker; return its exit code, or minus the signal that killed it."""
        with self._lock:
            status = self._drop(ending, grace)
            if self._waiting and not self._stopped:
                turn = self._waiting.popleft()
                try:
                    turn.set_result(self._fork())
                except (FunctionNotLoaded, InvocationError) as error:
                    turn.set_exception(error)
        return status

    def stop(self) -> None:
        """Kill every process; waiting invocations get an InvocationError. A second call does nothing."""
        self._stopped = True  # before the lock: its holder may be waiting for a process
        self._host.kill()
        with self._lock:
            self._host.kill()  # again: another may have been started just before we got the lock
            for idle in self._idle:
                idle.close()
            while self._waiting:
                self._waiting.popleft().set_exception(_stopping())

    def _fork(self) -> _Worker:
        if not self._host.is_running():
            # It crashed, or never loaded its function: as on Lambda, the next invocation starts another.
            self._host.kill()
            self._host = self._launch()
            self._loaded = False
        if not self._loaded:
            self._host.wait()
            self._loaded = True
        try:
            forked = self._host.fork()
        except OSError as error:  # it has just ended, perhaps because the stack stops
            raise InvocationError("ServiceException", "The function's process ended.") from error
        self._count += 1
        self._moved = time.monotonic()
        return forked

    def _drop(self, dropped: _Worker, grace: float) -> int:
        self._count -= 1
        dropped.close()
        return self._host.end(dropped, grace)


@dataclass
class _Queued:
    """A payload on a function's queue."""

    pool: _Pool
    payload: bytes
    request_id: str
    since: datetime
    failures: int = 0
    refusals: int = 0


class Runtime:
    """The functions of one stack, ready to be invoked."""

    def __init__(
        self,
        functions: Iterable[Function],
        variables: Callable[[Function], Mapping[str, str]],
        clock: Clock,
        *,
        output: IO[bytes] | int = 2,
        limit: int = 32,
    ) -> None:
        """Start a process for each function, all at once; `warm` waits for them.

        `variables` returns a function's whole environment; functions print to `output`; each function has at
        most `limit` workers; events on Lambda's queue wait by `clock`.
        """
        self._clock = clock
        self._later = Workers("lambda-queue", 64)
        self._pools: dict[str, _Pool] = {}
        self.counts: Counter[str] = Counter()
        self.reserved: Callable[[str], int | None] = lambda _name: None
        """Returns a function's reserved concurrency; None is no limit but the number of workers."""
        self.admit: Callable[[str], AbstractContextManager[None]] = lambda _name: contextlib.nullcontext()
        """Admits one run of a function; raises InvocationError when it refuses."""
        self.on_failure: Callable[[str, str], None] = lambda _destination, _record: None
        """Sends the record of an event that failed for good to a destination, by its ARN."""
        try:
            for function in functions:
                self._pools[function.name] = _Pool(function, variables(function), output, limit)
        except BaseException:
            self.stop()
            raise

    def warm(self) -> None:
        """Wait until every function is loaded; raises FunctionNotLoaded for the first that cannot be."""
        for pool in self._pools.values():
            pool.warm()

    def stop(self) -> None:
        """Kill every process at once, busy or not, and drop the queue. A second call does nothing."""
        self._later.close()
        for pool in self._pools.values():
            pool.stop()

    def function(self, name: str) -> Function:
        """Find a function by its name or ARN, with or without `$LATEST`; raises InvocationError."""
        return self._pool(name).function

    def invoke(self, name: str, payload: bytes, patience: float = math.inf) -> InvocationResult:
        """Run a function, named as `function` takes it, and wait for its answer (RequestResponse).

        Raises InvocationError when Lambda would refuse: no such function, no concurrency left, a payload over
        6 MB. Raises NotAnswered after `patience` seconds, which include the wait for a worker; the function
        goes on.
        """
        pool = self._pool(name)
        if len(payload) > MAX_PAYLOAD:
            message = f"the payload has {len(payload)} bytes; RequestResponse takes {MAX_PAYLOAD}"
            raise InvocationError("RequestTooLargeException", message)
        return self._run(pool, payload, str(uuid.uuid4()), patience)

    def invoke_later(self, name: str, payload: bytes) -> None:
        """Put a payload on a function's queue and return (Event): retried as Lambda does, by the clock.

        A function that fails is run again after one minute and after two more; a throttled event is tried
        again after pauses that grow to five minutes, for up to six hours. An event that fails for good goes
        to `on_failure`, if the function has a destination for it
        (https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html).
        Raises InvocationError for an unknown function and for a payload over 1 MB.
        """
        pool = self._pool(name)
        if len(payload) > MAX_QUEUED:
            message = f"the payload has {len(payload)} bytes; Event takes {MAX_QUEUED}"
            raise InvocationError("RequestTooLargeException", message)
        queued = _Queued(pool, payload, str(uuid.uuid4()), self._clock.now())
        self._later.submit(lambda: self._attempt(queued))

    def _attempt(self, queued: _Queued) -> None:
        function, now = queued.pool.function, self._clock.now()
        try:
            result = self._run(queued.pool, queued.payload, queued.request_id, math.inf)
        except InvocationError as error:
            if error.code != "TooManyRequestsException":  # the stack stops
                return
            result = _failure({"errorType": error.code, "errorMessage": error.message})
            pause = min(timedelta(seconds=2**queued.refusals), LONGEST_REFUSAL_PAUSE)
            queued.refusals += 1
        else:
            if result.function_error is None:
                return
            queued.failures += 1
            if queued.failures > function.retries:
                self._discard(queued, result, "RetriesExhausted")
                return
            pause = RETRY_PAUSES[queued.failures - 1]
        if now + pause - queued.since > timedelta(seconds=function.max_event_age):
            self._discard(queued, result, "EventAgeExceeded")
        else:
            self._clock.at(now + pause, lambda: self._later.submit(lambda: self._attempt(queued)))

    def _discard(self, queued: _Queued, result: InvocationResult, condition: str) -> None:
        function = queued.pool.function
        if function.on_failure is None:
            log.error("Lambda discards an event for %s: %s", function.name, condition)
            return
        record = {  # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
            "version": "1.0",
            "timestamp": self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "requestContext": {
                "requestId": queued.request_id,
                "functionArn": f"{function.arn}:$LATEST",
                "condition": condition,
                "approximateInvokeCount": queued.failures + queued.refusals,
            },
            "requestPayload": json.loads(queued.payload),
            "responseContext": {
                "statusCode": 200,
                "executedVersion": "$LATEST",
                "functionError": result.function_error,
            },
            "responsePayload": json.loads(result.payload),
        }
        self.on_failure(function.on_failure, json.dumps(record))

    def _run(self, pool: _Pool, payload: bytes, request_id: str, patience: float) -> InvocationResult:
        function = pool.function
        reserved = self.reserved(function.name)
        if reserved is not None and pool.busy >= reserved:
            raise InvocationError("TooManyRequestsException", "Rate Exceeded.")
        with self.admit(function.name):
            return self._run_admitted(pool, payload, request_id, patience)

    def _run_admitted(
        self, pool: _Pool, payload: bytes, request_id: str, patience: float
    ) -> InvocationResult:
        function = pool.function
        give_up = time.monotonic() + patience
        try:
            assigned = pool.take(patience)
        except FunctionNotLoaded as error:
            return _failure(error.failure)
        self.counts[function.name] += 1
        started = time.monotonic()
        head = {
            "id": request_id,
            "arn": function.arn,
            "deadline_ms": int((time.time() + function.timeout) * 1000),
        }
        # A worker that does not take its invocation does not answer it: `_finish` handles that.
        with contextlib.suppress(_WorkerGone, TimeoutError):
            assigned.send(json.dumps(head).encode(), payload or b"{}", function.timeout)
        if not assigned.answers_by(min(give_up, started + function.timeout)) and time.monotonic() >= give_up:
            threading.Thread(
                target=self._finish, args=(pool, assigned, request_id, started), daemon=True
            ).start()
            raise NotAnswered(f"{function.name} did not answer within {patience:g} s")
        return self._finish(pool, assigned, request_id, started)

    def _finish(self, pool: _Pool, assigned: _Worker, request_id: str, started: float) -> InvocationResult:
        """Wait until an invocation ends in any way; then keep its worker or remove it."""
        function = pool.function
        try:
            if not assigned.answers_by(started + function.timeout):
                pool.end(assigned, 0)
                message = (
                    f"RequestId: {request_id} Error: Task timed out after {function.timeout:.2f} seconds"
                )
                return _failure({"errorType": "Sandbox.Timedout", "errorMessage": message})
            kind, answer = assigned.receive()
        except _WorkerGone:
            status = pool.end(assigned, _EXIT_GRACE)
            message = f"RequestId: {request_id} Error: {_exit_message(status)}"
            return _failure({"errorType": "Runtime.ExitError", "errorMessage": message})
        pool.give_back(assigned)
        if len(answer) > MAX_ANSWER:
            message = f"Response payload size exceeded maximum allowed payload size ({MAX_ANSWER} bytes)."
            return _failure({"errorType": "Function.ResponseSizeTooLarge", "errorMessage": message})
        return InvocationResult(answer, None if kind == worker.RESULT else "Unhandled")

    def _pool(self, name: str) -> _Pool:
        match = re.fullmatch(
            r"(?:arn:[\w-]+:lambda:[\w-]+:\d{12}:function:|\d{12}:function:)?([\w-]+)(?::\$LATEST)?", name
        )
        if match is None or match[1] not in self._pools:
            raise InvocationError("ResourceNotFoundException", f"Function not found: {name}")
        return self._pools[match[1]]


def _stopping() -> InvocationError:
    return InvocationError("ServiceException", "The local stack is stopping.")


def _failure(description: Mapping[str, Any]) -> InvocationResult:
    return InvocationResult(json.dumps(description).encode(), "Unhandled")


def _exit_message(status: int) -> str:
    """Describe how a process ended, in Lambda's words."""
    if status < 0:
        return f"Runtime exited with error: signal: {_SIGNALS.get(status, str(-status))}"
    return (
        f"Runtime exited with error: exit status {status}"
        if status
        else "Runtime exited without providing a reason"
    )


_SIGNALS = {  # in the words of Go, in which Lambda is written
    -signal.SIGKILL: "killed",
    -signal.SIGSEGV: "segmentation fault",
    -signal.SIGABRT: "aborted",
    -signal.SIGTERM: "terminated",
}
