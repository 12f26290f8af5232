"""A local stack with two things added for measuring: an empty function, and a count of its AWS calls.

Its first line on standard output is that of `python -m local up --json`. Then it reads commands from standard
input: `count` starts counting, `counts` stops it and prints a line of JSON. The endpoint is watched only
while counting, so lags are those of the plain stack. It ends on SIGTERM or when its input ends.

The template is the real one with a function more, in a temporary folder with links to the files it names.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from local.endpoint import Answer, Call, Forward
from local.engine import calm_collector
from local.lambdas import access_key
from local.stack import Stack, running
from tools import ROOT

EMPTY = """\
Resources:
  EmptyFunction:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: !Sub ${AWS::StackName}-empty
      Handler: empty.handler
      CodeUri: empty/
"""


class Counts:
    """The AWS calls of the stack's functions, by function and operation, and when rules were revoked."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._functions = {access_key(function): function.name for function in stack.deployment.functions}
        self._lock = threading.Lock()
        self._calls: dict[str, Counter[str]] = {}
        self._revoked: dict[str, float] = {}
        self._before = Counter(stack.runtime.counts)

    def watch(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        ended = time.time()
        if function := self._functions.get(call.access_key):
            rules = re.findall(rb"SecurityGroupRuleId\.\d+=([^&]+)", call.body)
            with self._lock:
                self._calls.setdefault(function, Counter())[f"{call.service}.{call.operation}"] += 1
                if call.operation == "RevokeSecurityGroupIngress" and answer.status == 200:
                    self._revoked |= {rule.decode(): ended for rule in rules}
        return answer

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            return {
                "calls": self._calls,
                "revoked": self._revoked,
                "invocations": Counter(self._stack.runtime.counts) - self._before,
            }


def template(folder: Path) -> Path:
    """Write the template, with the empty function added, into a folder."""
    for name, place in (
        ("functions", ROOT / "functions"),
        ("statemachine", ROOT / "statemachine"),
        ("empty", Path(__file__).parent / "empty"),
    ):
        (folder / name).symlink_to(place)
    text = (ROOT / "template.yaml").read_text()
    path = folder / "template.yaml"
    path.write_text(re.sub(r"^Resources:\n", lambda _: EMPTY, text, count=1, flags=re.MULTILINE))
    return path


def obey(stack: Stack) -> None:
    """Count on command, until the input ends."""
    with ExitStack() as watching:
        counts: Counts | None = None
        for line in sys.stdin:
            watching.close()
            if line.strip() == "count":
                counts = Counts(stack)
                watching.enter_context(stack.endpoint.watched_by(counts.watch))
            print(json.dumps(counts.as_json() if counts else None), flush=True)


def main() -> None:
    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    logging.disable(logging.CRITICAL)  # moto prints a state's syntax tree when it fails
    with (
        tempfile.TemporaryDirectory(prefix="knock-bench-") as folder,
        Path(os.devnull).open("wb") as output,
        running(template=template(Path(folder)), output=output, store=sys.argv[1]) as stack,
    ):
        print(json.dumps(stack.summary.as_json()), flush=True)
        calm_collector()  # as `python -m local up` does
        obey(stack)


if __name__ == "__main__":
    main()
