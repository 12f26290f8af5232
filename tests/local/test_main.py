"""The command line without a stack: what it prints, how it ends. test_stack.py runs it with one."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from local import __main__ as command
from local.lambdas import FunctionNotLoaded
from local.serving import PortInUse
from local.stack import Options, StackError, Summary
from local.stepfunctions_local import EngineNotFound

SUMMARY = Summary(
    api_url="http://127.0.0.1:8080/v1",
    console_url="http://127.0.0.1:8080/v1/console",
    aws_endpoint_url="http://127.0.0.1:5000",
    region="eu-west-1",
    state_machine_arn="arn:aws:states:eu-west-1:123456789012:stateMachine:knock-grants",
    closings_arn="arn:aws:states:eu-west-1:123456789012:stateMachine:knock-closings",
    trail_store="simpledb",
    trail_domain="knock-trail",
    ledger_domain="knock-ledger",
    refusals_domain="knock-refusals",
    keys={"alice": "a-key", "operator": "another", "ci": "third"},
    targets={"bastion": {"ports": ["22/tcp"], "groups": ["sg-1", "sg-2"]}},
)


class FakeStack:
    """A stack that is stopped by a signal as soon as it runs."""

    summary = SUMMARY
    options: Options
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    failure: BaseException | None = None
    stopped = 0

    def __init__(self, options: Options) -> None:
        FakeStack.options = options
        if FakeStack.failure:
            raise FakeStack.failure
        for number, stop in enumerate(FakeStack.signals):
            threading.Timer(0.1 + number / 10, os.kill, [os.getpid(), stop]).start()

    def stop(self) -> None:
        FakeStack.stopped += 1


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeStack]]:
    monkeypatch.setattr(command, "Stack", FakeStack)
    monkeypatch.setattr(FakeStack, "failure", None)
    monkeypatch.setattr(FakeStack, "stopped", 0)
    monkeypatch.setattr(FakeStack, "signals", (signal.SIGTERM,))
    monkeypatch.setattr(command, "_give_up_in", lambda _seconds: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    handlers = {stop: signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM)}
    yield FakeStack
    for stop, handler in handlers.items():
        signal.signal(stop, handler)


def test_json_is_one_line_with_everything(fake: type[FakeStack], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["up", "--json"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert json.loads(output) == SUMMARY.as_json()
    assert fake.stopped == 1


def test_options_reach_the_stack(fake: type[FakeStack]) -> None:
    arguments = "--port 1 --aws-port 2 --duration 8h --engine stepfunctions-local --store dynamodb"
    command.main(["up", *arguments.split()])
    options = fake.options
    assert (options.port, options.aws_port, options.duration) == (1, 2, "8h")
    assert (options.engine, options.store) == ("stepfunctions-local", "dynamodb")
    assert options.furnished, "the operators' pages name what that makes"
    command.main(["up"])
    assert fake.options.store is None  # the template's default
    assert (fake.options.port, fake.options.duration, fake.options.engine) == (8080, "24h", "moto")


def test_the_page_has_urls_keys_and_a_line_to_paste(
    fake: type[FakeStack], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.signals = (signal.SIGINT,)
    assert command.main(["up", "--verbose"]) == 0
    page = capsys.readouterr().out
    assert "alice     a-key  bastion and web for 24h\n" in page
    assert "operator  another  every target for 24h, sees and ends everyone's grants\n" in page
    assert (
        "ci        third  every target for 24h, for any source of /28 or /60, 1000 grants at once\n" in page
    )
    assert "bastion   22/tcp on sg-1, sg-2" in page
    assert 'curl -X POST -H "x-api-key: a-key" http://127.0.0.1:8080/v1/knock -d' in page
    assert "export KNOCK_URL=http://127.0.0.1:8080/v1 KNOCK_API_KEY=a-key" in page
    assert "export AWS_ENDPOINT_URL=http://127.0.0.1:5000 AWS_DEFAULT_REGION=" in page
    assert "aws stepfunctions list-executions --state-machine-arn arn:" in page
    assert "log         standard error" in page


@pytest.mark.parametrize(
    "failure", [StackError("why"), EngineNotFound("why"), FunctionNotLoaded.__new__(FunctionNotLoaded, "why")]
)
def test_a_stack_that_cannot_start_is_an_error_with_its_reason(
    fake: type[FakeStack], failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = failure
    assert command.main(["up", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("The local stack cannot start: ")
    assert "why" in captured.err


@pytest.mark.parametrize("ports", [["--port", "8080"], ["--port", "0", "--aws-port", "5000"], []])
def test_a_port_in_use_is_an_error_that_says_how_to_get_a_free_one(
    fake: type[FakeStack], ports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = PortInUse("port 8080 of 127.0.0.1 is in use by another program")
    assert command.main(["up", *ports]) == 1
    stderr = capsys.readouterr().err
    assert "is in use by another program. On any free port instead: " in stderr
    assert 'make local ARGS="--port 0"' in stderr


def test_where_no_port_is_free_no_other_is_proposed(
    fake: type[FakeStack], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = PortInUse("no port is free on both 127.0.0.1 and ::1")
    assert command.main(["up", "--port", "0"]) == 1
    assert capsys.readouterr().err == (
        "The local stack cannot start: no port is free on both 127.0.0.1 and ::1\n"
    )


def test_being_stopped_while_starting_is_no_error(fake: type[FakeStack]) -> None:
    fake.failure = KeyboardInterrupt()
    assert command.main(["up"]) == 0


def test_a_second_signal_ends_it_at_once(
    fake: type[FakeStack], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(fake, "stop", lambda _stack: ended.wait(5))
    fake.signals = (signal.SIGINT, signal.SIGINT)
    command.main(["up"])
    assert codes == [130]


def test_a_stop_that_begins_is_ended_within_five_seconds_of_the_signal(
    fake: type[FakeStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    monkeypatch.setattr(command, "_give_up_in", steps.append)
    monkeypatch.setattr(fake, "stop", lambda _stack: steps.append("stop"))
    assert command.main(["up"]) == 0
    seconds, step = steps
    assert step == "stop"
    assert command.POLL_SECONDS + seconds < 5


def test_a_stop_that_takes_too_long_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    command._give_up_in(0.05)
    assert ended.wait(5)
    assert codes == [1]
    assert "did not stop within 0.05 s" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["down"], ["up", "--port", "99999"], ["up", "--store", "mongodb"]])
def test_an_invalid_command_line_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "python -m local" in capsys.readouterr().err


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[Any]) -> None:
    with pytest.raises(SystemExit):
        command.main(["up", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "Example: python -m local up" in output
    assert "nothing is kept when it stops" in output, "it says why there is no --keep"
