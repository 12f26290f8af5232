"""The AWS calls of Knock's functions, counted where they run as they are: in the harness."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

from botocore.client import BaseClient

from tests.harness import CLOSINGS, STACK, Knock

Calls = Counter[tuple[str, str]]  # by function and by operation, `invocations` among them
ASKED = ("api", "sdb.GetAttributes")  # of a knock: is the ingress open? As often as opening takes


# The function that runs; the API's second thread works in its request's context.
_inside: ContextVar[str | None] = ContextVar("inside", default=None)


@contextmanager
def counting(knock: Knock) -> Iterator[Calls]:
    """Count the functions' calls for as long as the block runs, those of the API's second thread included.

    Tags are read before: once a minute and worker, and not once a knock.
    """
    calls: Calls = Counter()
    lock = threading.Lock()
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    @contextmanager
    def around(name: str) -> Iterator[None]:
        function = name.removeprefix(f"{STACK}-")
        token = _inside.set(function)
        with lock:
            calls[function, "invocations"] += 1
        try:
            yield
        finally:
            _inside.reset(token)

    def call(client: BaseClient, operation: str, arguments: Any) -> Any:
        if function := _inside.get():
            with lock:
                calls[function, f"{client.meta.service_model.service_name}.{operation}"] += 1
        return real(client, operation, arguments)

    with (
        mock.patch.object(BaseClient, "_make_api_call", call),
        mock.patch.object(knock, "around", around),
    ):
        knock.forget()
        for key in knock.keys:
            knock.request("GET", "/whoami", key=key)
        calls.clear()
        yield calls


def await_closings(knock: Knock, number: int) -> int:
    """Wait until so many closings have ended well; give the number of states that they entered."""
    states = knock.client("stepfunctions")

    def ended() -> list[str]:
        executions = states.list_executions(stateMachineArn=CLOSINGS)["executions"]
        arns = [execution["executionArn"] for execution in executions if execution["status"] == "SUCCEEDED"]
        return arns if len(arns) == number else []

    arns = knock.wait(ended, f"there are not {number} closings that ended well")
    histories = (states.get_execution_history(executionArn=arn, maxResults=1000)["events"] for arn in arns)
    return sum("stateEnteredEventDetails" in event for history in histories for event in history)
