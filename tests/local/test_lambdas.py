"""Functions run as on Lambda: their own environment, its failures, its limits, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from local import worker
from local.clock import Clock
from local.deployment import Function
from local.invocation import InvocationError, InvocationResult
from local.lambdas import FunctionNotLoaded, NotAnswered, Runtime, access_key, environment
from tests.conftest import ROOT
from tests.local.processes import alive
from tests.waiting import wait_for

HANDLERS = """
import decimal, logging, os, signal, sys, time
from pathlib import Path

with Path("loads").open("a") as file:
    file.write("x")
calls = 0

def echo(event, context):
    return {"event": event, "environment": dict(os.environ), "path": sys.path, "argv": sys.argv,
            "directory": os.getcwd(), "pid": os.getpid()}

def context(event, context):
    return {name: getattr(context, name) for name in event} | {
        "identity": context.identity.cognito_identity_id,
        "remaining": context.get_remaining_time_in_millis(), "now": time.time() * 1000}

def fail(event, context):
    raise ValueError("no " + event["reason"])

def end(event, context):
    os.kill(os.getpid(), event) if event > 64 or event in (6, 9, 11) else os._exit(event)

def leave(event, context):
    sys.exit(event)

def hang(event, context):
    Path("hanging").write_text(str(os.getpid()))
    time.sleep(60)

def slow(event, context):
    time.sleep(event)
    return os.getpid()

def unserializable(event, context):
    return {"when": object()}

def number(event, context):
    return [decimal.Decimal("1.5"), decimal.Decimal("3"), "é"]

def raw(event, context):
    return b'"raw"'

def large(event, context):
    return "x" * event

def count(event, context):
    global calls
    calls += 1
    return calls

def log(event, context):
    print("printed")
    logging.getLogger().warning("logged")

def flaky(event, context):
    attempts = Path(event["file"])
    with attempts.open("a") as file:
        file.write("x")
    if attempts.stat().st_size <= event["failures"]:
        raise ValueError("not yet")
"""


def function(directory: Path, name: str, **fields: Any) -> Function:
    defaults: dict[str, Any] = {
        "logical_id": f"{name.title()}Function",
        "name": f"test-{name}",
        "arn": f"arn:aws:lambda:eu-west-1:123456789012:function:test-{name}",
        "handler": f"handlers.{name}",
        "code": directory,
        "runtime": "python3.13",
        "role": "arn:aws:iam::123456789012:role/test",
        "timeout": 10.0,
        "environment": {"OWN": "value"},
    }
    return Function(**defaults | fields)


def variables(function: Function) -> dict[str, str]:
    return environment(function, region="eu-west-1", endpoint_url="http://127.0.0.1:1")


NAMES = [
    "echo", "context", "fail", "end", "leave", "hang", "slow", "unserializable", "number", "raw", "large",
    "count", "log", "flaky",
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    code = tmp_path_factory.mktemp("code")
    (code / "handlers.py").write_text(HANDLERS)
    return code


@pytest.fixture(scope="module")
def output(directory: Path) -> Path:
    return directory / "output"


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


@pytest.fixture(scope="module")
def runtime(directory: Path, output: Path, clock: Clock) -> Iterator[Runtime]:
    short = {"hang": 0.4}
    functions = [function(directory, name, timeout=short.get(name, 10.0)) for name in NAMES]
    with output.open("wb") as file:
        lambda_runtime = Runtime(functions, variables, clock, output=file, limit=3)
        try:
            lambda_runtime.warm()
            yield lambda_runtime
        finally:
            lambda_runtime.stop()


@pytest.fixture
def call(runtime: Runtime) -> Callable[..., Any]:
    def call(name: str, event: object = None) -> Any:
        result = runtime.invoke(f"test-{name}", json.dumps(event).encode())
        assert result.function_error is None, result.payload
        return json.loads(result.payload)

    return call


@pytest.fixture
def failure(runtime: Runtime) -> Callable[..., dict[str, Any]]:
    def failure(name: str, event: object = None) -> dict[str, Any]:
        result = runtime.invoke(f"test-{name}", json.dumps(event).encode())
        assert result.function_error == "Unhandled"
        described: dict[str, Any] = json.loads(result.payload)
        return described

    return failure


def test_a_function_gets_its_event_and_its_answer_comes_back(call: Callable[..., Any]) -> None:
    assert call("echo", {"a": [1, None, "é"]})["event"] == {"a": [1, None, "é"]}


def test_a_function_sees_its_own_environment_and_nothing_of_the_stacks(
    call: Callable[..., Any], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = call("echo")["environment"]
    assert environ.pop("OWN") == "value"
    assert environ["AWS_LAMBDA_FUNCTION_NAME"] == "test-echo"
    assert environ["_HANDLER"] == "handlers.echo"
    assert environ["LAMBDA_TASK_ROOT"] == str(directory)
    assert environ["TZ"] == ":UTC"
    assert environ["AWS_CONFIG_FILE"] == environ["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    shared = {"PATH", "LANG", "LC_CTYPE", "_HANDLER", "TZ"}
    assert not [name for name in environ if not name.startswith(("AWS_", "LAMBDA_")) and name not in shared]


def test_a_functions_calls_are_signed_with_a_key_that_names_it(
    call: Callable[..., Any], directory: Path
) -> None:
    assert call("echo")["environment"]["AWS_ACCESS_KEY_ID"] == access_key(function(directory, "echo"))
    assert access_key(function(directory, "echo")) == "ASIAECHOFUNCTION"


def test_a_function_imports_its_own_code_first_and_none_of_the_stacks(
    call: Callable[..., Any], directory: Path
) -> None:
    answer = call("echo")
    assert answer["path"][0] == str(directory)
    assert str(ROOT) not in answer["path"]
    assert str(ROOT / "local") not in answer["path"]
    assert answer["directory"] == str(directory)


def test_the_context_is_lambdas(call: Callable[..., Any]) -> None:
    names = ["aws_request_id", "function_name", "function_version", "invoked_function_arn"]
    names += ["memory_limit_in_mb", "log_group_name", "log_stream_name", "client_context"]
    before = time.time() * 1000
    context = call("context", names)
    after = time.time() * 1000
    assert len(context["aws_request_id"]) == 36
    assert context["function_name"] == "test-context"
    assert context["function_version"] == "$LATEST"
    assert context["invoked_function_arn"] == "arn:aws:lambda:eu-west-1:123456789012:function:test-context"
    assert context["memory_limit_in_mb"] == "128"
    assert context["log_group_name"] == "/aws/lambda/test-context"
    assert "[$LATEST]" in context["log_stream_name"]
    deadline = context["now"] + context["remaining"]
    # 10 s from the invocation, whose time lies between; both ends of the sum are cut to milliseconds.
    assert before + 10_000 - 2 <= deadline <= after + 10_000 + 2


def test_each_invocation_has_a_request_id_of_its_own(call: Callable[..., Any]) -> None:
    first, second = (call("context", ["aws_request_id"])["aws_request_id"] for _ in range(2))
    assert first != second


def test_a_worker_is_reused_with_its_state(call: Callable[..., Any]) -> None:
    first = call("count")
    assert [call("count"), call("count")] == [first + 1, first + 2]


def test_an_error_has_lambdas_form_and_the_handlers_frames_alone(
    failure: Callable[..., dict[str, Any]], directory: Path
) -> None:
    described = failure("fail", {"reason": "luck"})
    assert (described["errorMessage"], described["errorType"]) == ("no luck", "ValueError")
    assert len(described["requestId"]) == 36
    (line,) = described["stackTrace"]
    assert line.startswith(f'  File "{directory}/handlers.py", line ')
    assert line.endswith('in fail\n    raise ValueError("no " + event["reason"])\n')


def test_an_answer_that_is_not_json_is_a_marshal_error(failure: Callable[..., dict[str, Any]]) -> None:
    described = failure("unserializable")
    assert described["errorType"] == "Runtime.MarshalError"
    assert described["errorMessage"] == (
        "Unable to marshal response: Object of type object is not JSON serializable"
    )


def test_decimals_and_bytes_are_written_as_lambda_does(call: Callable[..., Any]) -> None:
    assert call("number") == [1.5, 3, "é"]
    assert call("raw") == "raw"


def test_an_event_that_is_not_json_is_an_unmarshal_error(runtime: Runtime) -> None:
    result = runtime.invoke("test-echo", b"{")
    assert json.loads(result.payload)["errorType"] == "Runtime.UnmarshalError"


def test_no_payload_is_an_empty_object(runtime: Runtime) -> None:
    assert json.loads(runtime.invoke("test-echo", b"").payload)["event"] == {}


def test_a_function_that_takes_too_long_is_killed_and_its_error_is_a_timeout(
    failure: Callable[..., dict[str, Any]], directory: Path
) -> None:
    described = failure("hang")
    assert described["errorType"] == "Sandbox.Timedout"
    assert described["errorMessage"].endswith("Error: Task timed out after 0.40 seconds")
    assert not alive(int((directory / "hanging").read_text()))


@pytest.mark.parametrize(
    ("handler", "event", "message"),
    [
        ("end", 3, "Runtime exited with error: exit status 3"),
        ("end", 9, "Runtime exited with error: signal: killed"),
        ("end", 11, "Runtime exited with error: signal: segmentation fault"),
        ("leave", 0, "Runtime exited without providing a reason"),
        ("leave", 7, "Runtime exited with error: exit status 7"),
        ("leave", "words", "Runtime exited with error: exit status 1"),
    ],
)
def test_a_process_that_ends_is_an_exit_error_with_its_status(
    failure: Callable[..., dict[str, Any]], handler: str, event: object, message: str
) -> None:
    described = failure(handler, event)
    assert described["errorType"] == "Runtime.ExitError"
    assert described["errorMessage"].endswith(f"Error: {message}")


def test_a_worker_that_ends_is_replaced(failure: Callable[..., dict[str, Any]]) -> None:
    for _ in range(5):  # more than the limit of workers
        failure("leave", 1)


def test_a_worker_that_dies_between_invocations_is_replaced(call: Callable[..., Any]) -> None:
    first = call("echo")["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not alive(first))
    assert call("echo")["pid"] != first


def test_a_function_whose_own_process_dies_is_loaded_again(call: Callable[..., Any], directory: Path) -> None:
    pid = call("echo")["pid"]
    loads = (directory / "loads").stat().st_size
    os.kill(os.getpgid(pid), signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert call("echo")["pid"] != pid
    assert (directory / "loads").stat().st_size == loads + 1


def test_an_answer_over_the_limit_is_an_error(
    runtime: Runtime, failure: Callable[..., dict[str, Any]]
) -> None:
    assert len(runtime.invoke("test-large", b"6291554").payload) == 6291556
    assert failure("large", 6291555)["errorType"] == "Function.ResponseSizeTooLarge"


def test_a_payload_over_the_limit_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InvocationError) as caught:
        runtime.invoke("test-echo", b"x" * (6 * 1024 * 1024 + 1))
    assert caught.value.code == "RequestTooLargeException"
    with pytest.raises(InvocationError) as caught:
        runtime.invoke_later("test-echo", b"x" * (1024 * 1024 + 1))
    assert caught.value.code == "RequestTooLargeException"


@pytest.mark.parametrize(
    "name",
    [
        "test-echo",
        "test-echo:$LATEST",
        "123456789012:function:test-echo",
        "arn:aws:lambda:eu-west-1:123456789012:function:test-echo",
        "arn:aws:lambda:eu-west-1:123456789012:function:test-echo:$LATEST",
    ],
)
def test_a_function_answers_to_all_its_names(runtime: Runtime, name: str) -> None:
    assert runtime.function(name).name == "test-echo"


@pytest.mark.parametrize("name", ["nobody", "test-echo:1", "arn:aws:s3:::test-echo", ""])
def test_an_unknown_function_is_refused(runtime: Runtime, name: str) -> None:
    with pytest.raises(InvocationError) as caught:
        runtime.invoke(name, b"{}")
    assert caught.value.code == "ResourceNotFoundException"


def test_printed_and_logged_lines_go_to_the_output(call: Callable[..., Any], output: Path) -> None:
    call("log")
    wait_for(lambda: "logged" in output.read_text())
    assert "printed\n" in output.read_text()
    assert "[WARNING]\t2" in output.read_text()  # Lambda's own format, with the time in UTC


def test_invocations_run_at_once_up_to_the_limit_while_no_worker_gets_free(runtime: Runtime) -> None:
    with ThreadPoolExecutor(9) as threads:
        pids = list(threads.map(lambda _: runtime.invoke("test-slow", b"0.7").payload, range(6)))
    assert len(set(pids)) == 3  # the limit


def test_a_queue_that_moves_is_served_by_the_first_workers(directory: Path, clock: Clock) -> None:
    runtime = Runtime([function(directory, "slow")], variables, clock, limit=50)
    try:
        with ThreadPoolExecutor(30) as threads:
            pids = list(threads.map(lambda _: runtime.invoke("test-slow", b"0.02").payload, range(60)))
    finally:
        runtime.stop()
    assert len(set(pids)) <= (os.cpu_count() or 2) + 1


def test_invocations_are_served_in_the_order_of_arrival(runtime: Runtime) -> None:
    order: list[int] = []

    def invoke(number: int) -> None:
        runtime.invoke("test-slow", b"0.3")
        order.append(number)

    threads = [threading.Thread(target=invoke, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)  # so that they come one after the other
    for thread in threads:
        thread.join()
    assert [number // 3 for number in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_reserved_concurrency_refuses_an_invocation_over_it(runtime: Runtime, directory: Path) -> None:
    runtime.reserved = {"test-count": 0, "test-slow": 1}.get
    try:
        with pytest.raises(InvocationError) as caught:
            runtime.invoke("test-count", b"{}")
        assert caught.value.code == "TooManyRequestsException"
        assert runtime.invoke("test-slow", b"0").function_error is None
    finally:
        runtime.reserved = lambda _name: None


def test_a_caller_out_of_patience_gets_an_error_and_the_function_goes_on(
    runtime: Runtime, directory: Path
) -> None:
    file = directory / "slow-but-sure"
    with pytest.raises(NotAnswered):
        runtime.invoke("test-slow", b"0.3", patience=0.05)
    event = json.dumps({"file": str(file), "failures": 0}).encode()
    assert runtime.invoke("test-flaky", event, patience=5).function_error is None
    with ThreadPoolExecutor(3) as threads:  # all three workers are usable: the slow one was given back
        list(threads.map(lambda _: runtime.invoke("test-slow", b"0.2"), range(3)))


def test_patience_includes_the_wait_for_a_worker(runtime: Runtime) -> None:
    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(runtime.invoke, "test-slow", b"0.4") for _ in range(3)]
        time.sleep(0.1)
        with pytest.raises(NotAnswered, match="no worker of test-slow was free"):
            runtime.invoke("test-slow", b"0", patience=0.05)
        assert not any(future.done() for future in busy), "it waited for a worker"
        assert [future.result().function_error for future in busy] == [None] * 3


def test_invocations_are_counted_by_function(runtime: Runtime) -> None:
    before = runtime.counts["test-number"]
    runtime.invoke("test-number", b"{}")
    assert runtime.counts["test-number"] == before + 1


# Lambda's queue


def flaky(runtime: Runtime, file: Path, failures: int) -> None:
    runtime.invoke_later("test-flaky", json.dumps({"file": str(file), "failures": failures}).encode())


def attempts(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def test_an_event_is_retried_after_one_minute_and_after_two_more(
    runtime: Runtime, clock: Clock, tmp_path: Path
) -> None:
    file = tmp_path / "attempts"
    flaky(runtime, file, failures=2)
    wait_for(lambda: attempts(file) == 1)
    time.sleep(0.1)
    clock.advance(timedelta(seconds=55))
    time.sleep(0.1)
    assert attempts(file) == 1
    clock.advance(timedelta(seconds=6))
    wait_for(lambda: attempts(file) == 2)
    time.sleep(0.1)
    clock.advance(timedelta(seconds=121))
    wait_for(lambda: attempts(file) == 3)
    clock.advance(timedelta(minutes=10))
    time.sleep(0.1)
    assert attempts(file) == 3


def test_an_event_that_fails_for_good_goes_to_its_destination(
    directory: Path, clock: Clock, tmp_path: Path
) -> None:
    records: list[tuple[str, dict[str, Any]]] = []
    failing = function(directory, "flaky", retries=0, on_failure="arn:aws:sqs:eu-west-1:123456789012:dead")
    runtime = Runtime([failing], variables, clock)
    try:
        runtime.on_failure = lambda destination, record: records.append((destination, json.loads(record)))
        flaky(runtime, tmp_path / "attempts", failures=9)
        wait_for(lambda: records)
    finally:
        runtime.stop()
    ((destination, record),) = records
    assert destination.endswith(":dead")
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestContext"]["approximateInvokeCount"] == 1
    assert record["requestPayload"]["failures"] == 9
    assert record["responsePayload"]["errorType"] == "ValueError"


def test_a_throttled_event_waits_and_is_discarded_when_too_old(
    directory: Path, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = function(directory, "flaky", max_event_age=60)
    runtime = Runtime([old], variables, clock)
    refused: list[int | None] = [0, 0, None]
    runtime.reserved = lambda _name: refused.pop(0) if refused else None
    try:
        flaky(runtime, tmp_path / "patient", failures=0)
        for _ in range(2):
            time.sleep(0.1)
            clock.advance(timedelta(seconds=5))
        wait_for(lambda: attempts(tmp_path / "patient") == 1)
        runtime.reserved = lambda _name: 0
        flaky(runtime, tmp_path / "never", failures=0)
        for _ in range(7):  # 1 + 2 + 4 + … seconds
            time.sleep(0.05)
            clock.advance(timedelta(seconds=40))
        wait_for(lambda: "EventAgeExceeded" in caplog.text)
    finally:
        runtime.stop()
    assert attempts(tmp_path / "never") == 0


# Loading and stopping


@pytest.mark.parametrize(
    ("handler", "code", "error"),
    [
        (
            "nothing.handler",
            "",
            "Runtime.ImportModuleError: Unable to import module 'nothing': No module named",
        ),
        ("broken.handler", "import nowhere", "Unable to import module 'broken': No module named 'nowhere'"),
        (
            "broken.handler",
            "def (",
            "Runtime.UserCodeSyntaxError: Syntax error in module 'broken': invalid syntax",
        ),
        ("broken.other", "", "Runtime.HandlerNotFound: Handler 'other' missing on module 'broken'"),
        ("broken", "", "Runtime.MalformedHandlerName: Bad handler 'broken'"),
        ("broken.handler", "1 / 0", "ZeroDivisionError: division by zero"),
        ("broken.handler", "import os; os._exit(1)", "Runtime.ExitError: its process ended"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_an_error_with_its_reason(
    tmp_path: Path, handler: str, code: str, error: str, clock: Clock
) -> None:
    (tmp_path / "broken.py").write_text(code)
    runtime = Runtime([function(tmp_path, "broken", handler=handler)], variables, clock)
    try:
        with pytest.raises(FunctionNotLoaded) as caught:
            runtime.warm()
        assert error in str(caught.value)
        assert "BrokenFunction" in str(caught.value)
        result = runtime.invoke(
            "test-broken", b"{}"
        )  # Lambda, too, loads it again, and answers with the failure
        assert result.function_error == "Unhandled"
        (tmp_path / "broken.py").write_text("def handler(event, context):\n    return 'mended'")
        if handler == "broken.handler":
            assert runtime.invoke("test-broken", b"{}") == InvocationResult(b'"mended"')
    finally:
        runtime.stop()


def test_stopping_ends_every_process_and_every_waiting_invocation(directory: Path, clock: Clock) -> None:
    runtime = Runtime([function(directory, "slow"), function(directory, "echo")], variables, clock, limit=1)
    pid = json.loads(runtime.invoke("test-echo", b"{}").payload)["pid"]
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(runtime.invoke, "test-slow", b"30") for _ in range(3)]
        pool = runtime._pools["test-slow"]
        wait_for(lambda: pool.busy == 1 and len(pool._waiting) == 2, "one runs and two wait")
        runtime.stop()
        outcomes = [future.exception() or future.result() for future in waiting]
    assert [type(outcome) for outcome in outcomes].count(InvocationError) == 2
    (killed,) = (outcome for outcome in outcomes if isinstance(outcome, InvocationResult))
    assert json.loads(killed.payload)["errorType"] == "Runtime.ExitError"  # not its answer, nor its timeout
    assert not alive(pid)
    with pytest.raises(InvocationError):
        runtime.invoke("test-echo", b"{}")
    runtime.stop()


def test_no_process_is_left_when_the_stack_is_killed(directory: Path) -> None:
    program = textwrap.dedent(f"""
        import threading, time
        from pathlib import Path
        from local.clock import Clock
        from local.deployment import Function
        from local.lambdas import Runtime, environment
        function = Function("Hang", "hang", "arn:aws:lambda:eu-west-1:123456789012:function:hang",
                            "handlers.hang", Path({str(directory)!r}), "python3.13", "role", timeout=60)
        runtime = Runtime([function], lambda f: environment(f, region="eu-west-1", endpoint_url="x"), Clock())
        threading.Thread(target=runtime.invoke, args=("hang", b"")).start()
        time.sleep(60)
    """)
    hanging = directory / "hanging"
    hanging.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(lambda: hanging.exists() and hanging.read_text())
    pid = int(hanging.read_text())
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))


# The worker beside AWS's own runtime


@pytest.mark.skipif(sys.platform != "linux", reason="awslambdaric has wheels for Linux only")
@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("fail", b'{"reason": "luck"}'),
        ("fail", b"{}"),
        ("unserializable", b"null"),
        ("echo", b"{"),
        ("number", b"null"),
        ("raw", b"null"),
        ("count", b"[]"),
    ],
)
def test_the_worker_answers_as_awss_own_runtime_does(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, payload: bytes
) -> None:
    from awslambdaric import bootstrap
    from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller

    for variable, value in variables(function(directory, name)).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.chdir(directory)
    monkeypatch.delitem(sys.modules, "handlers", raising=False)
    handler = worker.load(f"handlers.{name}")
    answers: list[tuple[bytes, Any]] = []

    class Client:
        marshaller = LambdaMarshaller()

        def post_invocation_result(self, request_id: str, result: Any, kind: str, _: object) -> None:
            answers.append((worker.RESULT, result))

        def post_invocation_error(self, request_id: str, error: str, _fault: str, _: object) -> None:
            answers.append((worker.ERROR, error))

    bootstrap.handle_event_request(
        Client(),
        handler,
        "id",
        payload,
        "application/json",
        None,
        None,
        "arn",
        0,
        None,
        bootstrap.StandardLogSink(),
    )
    monkeypatch.setattr(sys.modules["handlers"], "calls", 0)
    kind, answer = worker.invoke(handler, {"id": "id", "arn": "arn", "deadline_ms": 0}, payload)
    ((their_kind, their_answer),) = answers
    assert kind == their_kind
    ours, aws = json.loads(answer), json.loads(their_answer)
    if isinstance(aws, dict):  # their JSON parser's messages have other details
        assert ours.pop("errorMessage").split(":")[0] == aws.pop("errorMessage").split(":")[0]
    assert ours == aws


# The worker's own loop, run in this process, so that its exit can be recorded


class ProcessEnded(BaseException):
    """Raised in place of the end of the process."""


@pytest.mark.parametrize(
    ("ending", "code"),
    [(None, 0), (SystemExit(), 0), (SystemExit(4), 4), (SystemExit("why"), 1), (KeyboardInterrupt(), 1)],
)
def test_a_workers_exit_code_tells_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, directory: Path, ending: BaseException | None, code: int
) -> None:
    for variable, value in variables(function(directory, "x")).items():
        monkeypatch.setenv(variable, value)
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise ProcessEnded

    def handler(event: Any, context: worker.Context) -> Any:
        if ending and event == "end":
            raise ending
        return [event, context.function_name]

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    ours, theirs = socket.socketpair()
    head = json.dumps({"id": "id", "arn": "arn", "deadline_ms": 0}).encode()
    for event in (b'"go"', b'"end"'):
        ours.sendall(worker.INVOCATION.pack(len(head), len(event)) + head + event)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(ProcessEnded):
        worker._serve_until_closed(theirs, handler)
    theirs.shutdown(socket.SHUT_WR)
    with ours, ours.makefile("rb") as reader:
        answers = reader.read()
    kind, length = worker.ANSWER.unpack(answers[: worker.ANSWER.size])
    assert (kind, answers[worker.ANSWER.size :][:length]) == (worker.RESULT, b'["go", "test-x"]')
    assert statuses == [code]
