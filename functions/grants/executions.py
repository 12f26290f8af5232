"""Step Functions executions: one a grant, named by the grant's id.

Every method is one call (`running` one a page).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import EngineUnavailable
from .values import Execution, Grant, compact_json

if TYPE_CHECKING:
    from botocore.client import BaseClient


class Executions:
    """The executions of the state machine `machine_arn`."""

    def __init__(self, client: BaseClient, machine_arn: str) -> None:
        self._client: Any = client
        self._machine_arn = machine_arn

    def arn(self, grant_id: str) -> str:
        """Give the ARN of a grant's execution, which follows from the machine's."""
        return self._machine_arn.replace(":stateMachine:", ":execution:") + f":{grant_id}"

    def start(self, grant: Grant) -> None:
        """Start the grant's execution. Twice is once: the same name and input are one execution.

        Any execution of this name is the grant's, an ended one too: the id follows from the input.
        https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html
        """
        try:
            self._client.start_execution(
                stateMachineArn=self._machine_arn, name=grant.id, input=compact_json(grant.as_input())
            )
        except (ClientError, BotoCoreError) as error:
            if _code(error) != "ExecutionAlreadyExists":
                raise EngineUnavailable(f"Step Functions did not start the grant: {_code(error)}") from error

    def stop(self, grant_id: str, error: str, cause: str) -> bool:
        """Stop a grant's execution, saying who and why. False says that there is none of that name.

        Stopping one that has ended changes nothing.
        """
        try:
            self._client.stop_execution(
                executionArn=self.arn(grant_id), error=error[:256], cause=cause[:32_768]
            )
        except (ClientError, BotoCoreError) as failure:
            if _code(failure) == "ExecutionDoesNotExist":
                return False
            raise EngineUnavailable(f"Step Functions did not stop {grant_id}: {_code(failure)}") from failure
        return True

    def describe(self, grant_id: str) -> Execution | None:
        """Read an execution's status and input, or None where none has that name. Eventually consistent."""
        try:
            answer = self._client.describe_execution(executionArn=self.arn(grant_id))
        except (ClientError, BotoCoreError) as error:
            if _code(error) == "ExecutionDoesNotExist":
                return None
            raise EngineUnavailable(f"Step Functions did not describe {grant_id}: {_code(error)}") from error
        return Execution(answer["status"], answer.get("input", ""))

    def running(self) -> Iterator[tuple[str, datetime]]:
        """Walk through the running executions: name, and when it started. Eventually consistent."""
        token: dict[str, str] = {}
        while True:
            try:
                answer = self._client.list_executions(
                    stateMachineArn=self._machine_arn, statusFilter="RUNNING", maxResults=1000, **token
                )
            except (ClientError, BotoCoreError) as error:
                raise EngineUnavailable(f"Step Functions did not list executions: {_code(error)}") from error
            for execution in answer["executions"]:
                yield execution["name"], execution["startDate"]
            if not answer.get("nextToken"):
                return
            token = {"nextToken": answer["nextToken"]}


class Closings:
    """The executions of the state machine that closes grants from outside their own executions."""

    def __init__(self, client: BaseClient, machine_arn: str) -> None:
        self._client: Any = client
        self._machine_arn = machine_arn

    def start(self, grant_id: str, closing: Mapping[str, Any]) -> None:
        """Start an execution that closes a grant. Each call starts another: closing twice is once."""
        name = f"{grant_id[:63]}_{os.urandom(8).hex()}"
        try:
            self._client.start_execution(
                stateMachineArn=self._machine_arn, name=name, input=compact_json(closing)
            )
        except (ClientError, BotoCoreError) as error:
            raise EngineUnavailable(
                f"Step Functions did not start the closing of {grant_id}: {_code(error)}"
            ) from error


def _code(error: ClientError | BotoCoreError) -> str:
    if isinstance(error, ClientError):
        code: str = error.response["Error"]["Code"]
        return code
    return type(error).__name__
