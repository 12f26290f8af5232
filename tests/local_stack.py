"""The local stack in a process of its own, as a person starts it. Tests start one here.

But for tests of the command itself: what it prints, how it fails and how it ends (`local`, `hostile`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

import boto3

from tests.conftest import ROOT, STORE, need

STARTS_WITHIN = 60.0  # seconds; on an idle machine it takes three
STOPS_WITHIN = 10.0


@dataclass
class LocalStack:
    """A running `python -m local up --json`: `summary` is its first line; `stack.api_url` reads from it.

    As a context manager it stops at the end, by SIGTERM.
    """

    process: subprocess.Popen[str]
    summary: dict[str, Any]
    engine: str
    store: str

    @classmethod
    def start(
        cls, *arguments: str, engine: str = "moto", store: str = STORE, errors: IO[bytes] | None = None
    ) -> Self:
        """Start a stack and wait for its line of JSON; `errors` takes its standard error.

        `store` is simpledb or dynamodb: that of KNOCK_TEST_STORE by default.
        """
        if engine == "stepfunctions-local":
            package = ROOT / "node_modules" / ".bin" / "stepfunctions-local"
            need(package.exists(), "npm's stepfunctions-local is not installed: run npm ci")
        up = ["local", "up", "--port", "0", "--json", "--engine", engine, "--store", store]
        process = subprocess.Popen(
            [sys.executable, "-m", *up, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        timer = threading.Timer(STARTS_WITHIN, process.kill)
        timer.start()
        try:
            assert process.stdout
            line = process.stdout.readline()
        finally:
            timer.cancel()
        assert line, (
            f"the stack ended with {process.wait(10)}, or took longer than {STARTS_WITHIN} s to answer"
        )
        return cls(process, json.loads(line), engine, store)

    def stop(self) -> None:
        """Stop it by SIGTERM; kill it and fail when it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOPS_WITHIN)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["summary"][name]
        except KeyError:
            raise AttributeError(name) from None

    def client(self, service: Any) -> Any:
        """Make a client of boto3 for a service of the stack's AWS."""
        return boto3.client(
            service,
            endpoint_url=self.summary["aws_endpoint_url"],
            region_name=self.summary["region"],
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
