"""Step Functions' lists and descriptions, which are eventually consistent.

https://docs.aws.amazon.com/step-functions/latest/apireference/API_ListExecutions.html
https://docs.aws.amazon.com/step-functions/latest/apireference/API_DescribeExecution.html
Within the delay of a change, a started execution is not listed yet, and an ended execution is RUNNING.
"""

from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import Any

from local.endpoint import Answer, Call, Forward, failure
from local.hostile.dice import Dice, Moment

_ENDED = ("stopDate", "output", "outputDetails", "error", "cause")
LONGEST = 5  # seconds
_STATUSES = ("SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED")


class StatesLag:
    """Answers with executions before their latest change; `hear` reports each change."""

    def __init__(self, dice: Dice, moment: Moment) -> None:
        self._dice, self._moment = dice, moment
        self._unseen: dict[str, datetime] = {}  # execution → until when it is not listed
        self._running: dict[str, datetime] = {}  # execution → until when it is shown as RUNNING
        self._lock = threading.Lock()

    def hear(self, event: dict[str, Any]) -> None:
        """Note a change of an execution's status, from its event."""
        detail = event["detail"]
        started = detail["status"] == "RUNNING"
        lag = self._moment.delay(self._dice.throw("states", "started" if started else "ended"), LONGEST)
        with self._lock:
            late = self._unseen if started else self._running
            late[detail["executionArn"]] = self._moment.now() + lag

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.operation == "DescribeExecution":
            return self._describe(call, forward)
        if call.operation == "ListExecutions":
            return self._list(call, forward)
        return forward()

    def _recent(self) -> tuple[set[str], set[str]]:
        with self._lock:
            now = self._moment.now()
            for late in (self._unseen, self._running):
                for arn in [arn for arn, until in late.items() if until <= now]:
                    del late[arn]
            return set(self._unseen), set(self._running)

    def _describe(self, call: Call, forward: Forward) -> Answer:
        arn = json.loads(call.body)["executionArn"]
        unseen, running = self._recent()
        if arn in unseen:
            return failure(call, "ExecutionDoesNotExist", f"Execution Does Not Exist: '{arn}'", 400)
        answer = forward()
        if arn in running and answer.status == 200:
            return _with(answer, _as_running(json.loads(answer.body)))
        return answer

    def _list(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        unseen, running = self._recent()
        if answer.status != 200 or not unseen | running:
            return answer
        request, body = json.loads(call.body), json.loads(answer.body)
        status = request.get("statusFilter")
        entries = []
        for execution in body["executions"]:
            arn = execution["executionArn"]
            listed = _as_running(execution) if arn in running else execution
            if arn not in unseen and status in (None, listed["status"]):
                entries.append(listed)
        if status == "RUNNING" and "nextToken" not in request:
            listed_late = running - unseen
            for ended in _STATUSES if listed_late else ():
                page = forward(json.dumps(request | {"statusFilter": ended, "maxResults": 1000}).encode())
                executions = json.loads(page.body).get("executions", [])
                entries += [
                    _as_running(execution)
                    for execution in executions
                    if execution["executionArn"] in listed_late
                ]
        return _with(answer, body | {"executions": entries})


def _as_running(execution: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in execution.items() if key not in _ENDED} | {"status": "RUNNING"}


def _with(answer: Answer, body: dict[str, Any]) -> Answer:
    return Answer(answer.status, answer.headers, json.dumps(body).encode())
