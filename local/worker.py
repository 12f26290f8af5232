"""The process that a Lambda function runs in: Lambda's Python runtime, on this machine.

Started by `local.lambdas` with nothing but the function's own environment, it loads the handler once and then
forks workers; each worker serves one invocation at a time over a socket of its own. So a function's modules
are loaded once for any number of workers, a new worker is ready in milliseconds instead of half a second of
importing boto3, and workers share their memory. It is the lifecycle of SnapStart: a handler's module is
imported before the fork.

A handler's arguments, and the form of its failures, follow `awslambdaric`, AWS's own runtime client; a test
compares the two. Decided against running that package: it has wheels for Linux only, and its protocol over
HTTP costs several times as much as a handler that does nothing.

This file is run by path and imports the standard library only: an import slows the start of every function.
Nothing survives the stack: a process whose socket closes ends, and its workers with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import decimal
import gc
import importlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

INVOCATION = struct.Struct("!II")  # lengths of the head (JSON) and of the payload, which follow
ANSWER = struct.Struct("!cI")  # RESULT or ERROR, and the length of the payload, which follows
COMMAND = struct.Struct("!cIf")  # FORK (with a file descriptor) or END, the worker's number, seconds to wait
STATUS = struct.Struct("!i")  # exit code of a worker that has ended, as of os.waitstatus_to_exitcode
LOADED = struct.Struct(
    "!?I"
)  # whether the handler was loaded, and the length of the error (JSON) that follows
RESULT, ERROR = b"R", b"E"
FORK, END = b"F", b"X"

LOAD_SECONDS = 30  # Lambda gives 10; a laptop that starts every function at once may need more

Handler = Callable[[Any, "Context"], Any]


class _Fault(Exception):
    """A failure that the runtime itself reports, under its own error type."""

    def __init__(self, error_type: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.trace = trace or []


class _Identity:
    cognito_identity_id = None
    cognito_identity_pool_id = None


class Context:
    """Lambda's context object: https://docs.aws.amazon.com/lambda/latest/dg/python-context.html."""

    def __init__(self, request_id: str, arn: str, deadline_ms: int) -> None:
        self.aws_request_id = request_id
        self.invoked_function_arn = arn
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        self.client_context = None
        self.identity = _Identity()
        self._deadline_ms = deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        """Return how many milliseconds are left until the function is timed out."""
        return max(0, self._deadline_ms - int(time.time() * 1000))


def main() -> NoReturn:
    """Load the handler, report it, and fork workers until the stack closes the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = [os.environ["_HANDLER"]]
    sys.path.insert(0, os.environ["LAMBDA_TASK_ROOT"])
    os.chdir(os.environ["LAMBDA_TASK_ROOT"])
    _set_up_logging()
    signal.alarm(LOAD_SECONDS)
    try:
        handler = load(os.environ["_HANDLER"])
    except Exception as error:  # noqa: BLE001 - reported as the answer
        failure = json.dumps(describe(error, "")).encode()
        _log_error(describe(error, ""))
        control.sendall(LOADED.pack(False, len(failure)) + failure)
        os._exit(1)
    signal.alarm(0)
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every shared page, and so copy it
    control.sendall(LOADED.pack(True, 0))
    _fork_on_command(control, handler)


def load(name: str) -> Handler:
    """Import the handler `module.function`; raise the error that Lambda would report."""
    module_name, dot, function_name = name.rpartition(".")
    if not dot:
        raise _Fault(
            "Runtime.MalformedHandlerName",
            f"Bad handler '{name}': not enough values to unpack (expected 2, got 1)",
        )
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        raise _Fault(
            "Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}"
        ) from error
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        raise _Fault(
            "Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}", trace
        ) from error
    handler: Handler | None = getattr(module, function_name, None)
    if handler is None:
        raise _Fault(
            "Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'"
        )
    return handler


def _fork_on_command(control: socket.socket, handler: Handler) -> NoReturn:
    workers: dict[int, int] = {}
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        if len(message) < COMMAND.size:  # the stack has ended
            for pid in workers.values():
                _end(pid, 0)
            os._exit(0)
        command, number, grace = COMMAND.unpack(message)
        if command == FORK:
            pid = os.fork()
            if pid == 0:
                control.close()
                _serve_until_closed(socket.socket(fileno=descriptors[0]), handler)
            workers[number] = pid
            os.close(descriptors[0])
        else:
            control.sendall(STATUS.pack(_end(workers.pop(number), grace)))


def _end(pid: int, grace: float) -> int:
    """Wait `grace` seconds for a worker to end by itself, then kill it; return its exit code or -signal."""
    give_up = time.monotonic() + grace
    while True:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= give_up:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)


def _serve_until_closed(connection: socket.socket, handler: Handler) -> NoReturn:
    code = 1
    try:
        _die_with_parent()
        reader = connection.makefile("rb")
        while len(lengths := reader.read(INVOCATION.size)) == INVOCATION.size:
            head_length, payload_length = INVOCATION.unpack(lengths)
            head = json.loads(reader.read(head_length))
            kind, answer = invoke(handler, head, reader.read(payload_length))
            connection.sendall(ANSWER.pack(kind, len(answer)) + answer)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except (BrokenPipeError, ConnectionResetError):
        code = 0  # the stack stopped while the handler ran
    except BaseException:  # noqa: BLE001 - a worker must not return into the loop it was forked from
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _die_with_parent() -> None:
    """Have the kernel kill this worker with the process that forked it, where it can (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def invoke(handler: Handler, head: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
    """Call the handler; return RESULT and its answer, or ERROR and the description of its failure."""
    request_id = _request_id.current = head["id"]
    try:
        try:
            event = json.loads(payload)
        except ValueError as error:
            raise _Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from error
        answer = handler(event, Context(request_id, head["arn"], head["deadline_ms"]))
        if isinstance(answer, bytes):
            return RESULT, answer
        try:
            return RESULT, _to_json(answer)
        except Exception as error:  # a handler can return any object, and it can raise anything
            raise _Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from error
    except Exception as error:  # noqa: BLE001 - Lambda reports every Exception; the rest ends the process
        failure = describe(error, request_id)
        _log_error(failure)
        return ERROR, _to_json(failure)


def describe(error: Exception, request_id: str) -> dict[str, Any]:
    """Describe a failure in Lambda's words, without the runtime's own frames."""
    if isinstance(error, _Fault):
        return _description(str(error), error.error_type, request_id, error.trace)
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename == __file__:
        del frames[0]
    # As tuples, so that the lines have no ^^^ marks: Lambda's have none.
    lines = traceback.format_list([(at.filename, at.lineno or 0, at.name, at.line) for at in frames])
    return _description(str(error), type(error).__name__, request_id, lines)


def _description(message: str, error_type: str, request_id: str, trace: list[str]) -> dict[str, Any]:
    return {"errorMessage": message, "errorType": error_type, "requestId": request_id, "stackTrace": trace}


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=_number).encode()


def _number(value: Any) -> int | float:
    """Write a Decimal as the number it is, as Lambda's encoder does."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


class _RequestId(logging.Filter):
    current = ""

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = self.current
        return True


_request_id = _RequestId()


def _set_up_logging() -> None:
    """Give the root logger the handler and the format that Lambda's has."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(
        "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_request_id)
    logging.getLogger().addHandler(handler)


def _log_error(failure: dict[str, Any]) -> None:
    print(f"[ERROR] {failure['errorType']}: {failure['errorMessage']}\nTraceback (most recent call last):")
    print("".join(failure["stackTrace"]))


if __name__ == "__main__":
    main()
