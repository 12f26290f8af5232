"""Step Functions' lists and descriptions, which are eventually consistent.

https://docs.aws.amazon.com/step-functions/latest/apireference/API_ListExecutions.html
https://docs.aws.amazon.com/step-functions/latest/apireference/API_DescribeExecution.html
Within its delay an execution that has just started is not there, and one that has ended runs.
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
    """Answers of executions as they were a moment ago; it hears of their changes through `hear`."""

    def __init__(self, dice: Dice, moment: Moment) -> None:
        self._dice, self._moment = dice, moment
        self._unseen: dict[str, datetime] = {}  # execution → until when it is not there
        self._running: dict[str, datetime] = {}  # execution → until when it still runs
        self._lock = threading.Lock()

    def hear(self, event: dict[str, Any]) -> None:
        """Hear of an execution's change from the event of it."""
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
        asked, body = json.loads(call.body), json.loads(answer.body)
        status = asked.get("statusFilter")
        shown = []
        for one in body["executions"]:
            one = _as_running(one) if one["executionArn"] in running else one
            if one["executionArn"] not in unseen and status in (None, one["status"]):
                shown.append(one)
        if status == "RUNNING" and "nextToken" not in asked:
            for ended in _STATUSES if running else ():
                page = forward(json.dumps(asked | {"statusFilter": ended, "maxResults": 1000}).encode())
                found = json.loads(page.body).get("executions", [])
                shown += [_as_running(one) for one in found if one["executionArn"] in running]
        return _with(answer, body | {"executions": shown})


def _as_running(execution: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in execution.items() if key not in _ENDED} | {"status": "RUNNING"}


def _with(answer: Answer, body: dict[str, Any]) -> Answer:
    return Answer(answer.status, answer.headers, json.dumps(body).encode())
