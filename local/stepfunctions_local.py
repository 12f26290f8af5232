"""A second engine: Step Functions from outside this process, behind the stack's own AWS endpoint.

`--engine stepfunctions-local` runs the npm package of that name, pinned in package.json, as a child;
`--engine http://…` uses any other endpoint that has the API. In both cases clients and functions call the
stack's AWS endpoint, and `Engine` passes their Step Functions calls on, so that all of AWS has one address.
These engines have no EventBridge, so `Engine` publishes the event of a stopped execution.

The npm engine listens on every interface, outlives its parent and ignores Parameters. It is started through
`stepfunctions_local.js`, which makes it listen on loopback alone, end when its standard input closes, for
whatever reason the stack ends, and fill in a task's Parameters, so that it runs the deployed definition
unchanged.

Its limits, for both state machines: it has no Retry, so the first error of a task, even a transient one, goes
straight to the Catch: where RevokeIngress or Close would have waited for an attempt's result, force follows
at once, and the Fail state after force. A Fail state ends SUCCEEDED there, so a failed closing looks like a
successful one and publishes no event. Stopping an execution does not keep its next task from running.
`tests/local/test_second_engine.py` shows each of these.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from local.endpoint import Answer, Call, Forward, failure
from local.invocation import InvocationError

__all__ = ["Engine", "EngineNotFound", "Npm", "NpmEngine"]

Publish = Callable[[dict[str, Any]], None]
"""Puts a service's event on the default event bus."""

_STARTER = Path(__file__).with_suffix(".js")


class EngineNotFound(Exception):
    """The engine cannot be started or does not answer. The message says what to do."""


class Npm:
    """The npm package stepfunctions-local, running as a child of this process."""

    def __init__(self, directory: Path, *, region: str, lambda_endpoint: str, log: IO[bytes] | int) -> None:
        """Start it from `directory`/node_modules and wait until it listens; raises EngineNotFound."""
        package = directory / "node_modules" / "stepfunctions-local"
        if not package.is_dir():
            raise EngineNotFound(f"There is no {package}. Run `npm ci` in {directory}.")
        config = {"port": 0, "region": region, "lambdaEndpoint": lambda_endpoint, "lambdaRegion": region}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own file
                ["node", str(_STARTER), json.dumps(config)],  # noqa: S607 - the node on the PATH
                cwd=directory,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the stack
            )
        except FileNotFoundError:
            raise EngineNotFound("There is no node on the PATH. Install Node.js 18 or newer.") from None
        port = next((line for line in self._process.stdout or [] if line.strip().isdigit()), None)
        if port is None:
            raise EngineNotFound(
                f"stepfunctions-local ended with code {self._process.wait()} before it listened."
            )
        self.url = f"http://127.0.0.1:{int(port)}"

    def stop(self) -> None:
        """End it. A second call does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


def _environment() -> Mapping[str, str]:
    """Return the variables that node needs, and those that silence aws-sdk 2 inside it."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "AWS_ACCESS_KEY_ID": "stepfunctionslocal",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE": "1",
    }


class Engine:
    """Step Functions at `url`: an `endpoint.Watcher` that answers its calls and forwards none."""

    def __init__(self, url: str) -> None:
        """Use the engine at `url`."""
        self.url = url
        self.publish: Publish = lambda _event: None
        self._address = urlsplit(url).netloc

    def __call__(self, call: Call, _forward: Forward) -> Answer:
        """Send a call to the engine; publish the status change of an execution that this call stopped."""
        if call.operation != "StopExecution":
            return self._ask(call.operation, call.body, call.region)
        execution = json.loads(call.body).get("executionArn")
        before = self._describe(execution, call.region)
        answer = self._ask(call.operation, call.body, call.region)
        if answer.status == 200 and before.get("status") == "RUNNING":
            self.publish(_aborted(before, json.loads(call.body), json.loads(answer.body)))
        return answer

    def start(self, machine: str, name: str, payload: bytes) -> None:
        """Start an execution for EventBridge; raises InvocationError when the engine refuses."""
        request = {"stateMachineArn": machine, "name": name, "input": payload.decode()}
        answer = self._ask("StartExecution", json.dumps(request).encode(), machine.split(":")[3])
        if answer.status == 200:
            return
        refusal = json.loads(answer.body)
        code = str(refusal.get("__type")).rpartition("#")[2]
        if code != "ExecutionAlreadyExists":
            raise InvocationError(code, str(refusal.get("message")))

    def create(self, *, name: str, definition: str, role: str, region: str) -> str:
        """Create the state machine or update it; return its ARN. Raises EngineNotFound."""
        request = {"name": name, "definition": definition, "roleArn": role}
        answer = self._ask("CreateStateMachine", json.dumps(request).encode(), region)
        body = json.loads(answer.body)
        if answer.status == 200:
            return str(body["stateMachineArn"])
        if "AlreadyExists" in str(body.get("__type")):
            machines = json.loads(self._ask("ListStateMachines", b"{}", region).body)["stateMachines"]
            arn = next(str(machine["stateMachineArn"]) for machine in machines if machine["name"] == name)
            update = {"stateMachineArn": arn, "definition": definition, "roleArn": role}
            answer = self._ask("UpdateStateMachine", json.dumps(update).encode(), region)
            if answer.status == 200:
                return arn
        raise EngineNotFound(
            f"The engine at {self.url} refuses the state machine: {answer.body.decode(errors='replace')}"
        )

    def _describe(self, execution: Any, region: str) -> dict[str, Any]:
        answer = self._ask("DescribeExecution", json.dumps({"executionArn": execution}).encode(), region)
        return json.loads(answer.body) if answer.status == 200 else {}

    def _ask(self, operation: str, body: bytes, region: str) -> Answer:
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AWSStepFunctions.{operation}",
            # Not a real signature; some engines read the region from it.
            "Authorization": f"AWS4-HMAC-SHA256 Credential=local/20200101/{region}/states/aws4_request, "
            "SignedHeaders=host, Signature=local",
        }
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request("POST", "/", self._to_engine(body, region), headers)
            answer = connection.getresponse()
            payload = self._from_engine(answer.read(), region)
        except OSError as error:
            call = Call("states", operation, region, "", body)
            return failure(
                call, "ServiceUnavailable", f"the engine at {self.url} does not answer: {error}", 503
            )
        finally:
            connection.close()
        content_type = answer.getheader("Content-Type") or "application/x-amz-json-1.0"
        return Answer(answer.status, [("Content-Type", content_type)], payload)

    def _to_engine(self, body: bytes, region: str) -> bytes:  # noqa: ARG002 - for an engine that needs it
        """Translate a request of Step Functions for the engine."""
        return body

    def _from_engine(self, body: bytes, region: str) -> bytes:  # noqa: ARG002 - for an engine that needs it
        """Translate the engine's answer into Step Functions' own."""
        return body


class NpmEngine(Engine):
    """stepfunctions-local 1.3.1, with its deviations from Step Functions translated.

    It writes the region `local` into the ARN of every execution, and describes a definition as an object and
    not as a string.
    """

    def _to_engine(self, body: bytes, region: str) -> bytes:
        return _rename_region(body, region, "local")

    def _from_engine(self, body: bytes, region: str) -> bytes:
        answer = json.loads(_rename_region(body, "local", region))
        if isinstance(answer.get("definition"), dict):
            answer["definition"] = json.dumps(answer["definition"])
        return json.dumps(answer).encode()


def _rename_region(body: bytes, old: str, new: str) -> bytes:
    return re.sub(rf"(arn:aws:states:){old}(:\d+:execution:)", rf"\g<1>{new}\g<2>", body.decode()).encode()


def _aborted(execution: dict[str, Any], request: dict[str, Any], stopped: dict[str, Any]) -> dict[str, Any]:
    """Build the event of https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html."""
    return {
        "detail-type": "Step Functions Execution Status Change",
        "source": "aws.states",
        "resources": [execution["executionArn"]],
        "detail": {
            "executionArn": execution["executionArn"],
            "stateMachineArn": execution["stateMachineArn"],
            "name": execution["name"],
            "status": "ABORTED",
            "startDate": int(execution["startDate"] * 1000),
            "stopDate": int(stopped["stopDate"] * 1000),
            "input": execution.get("input"),
            "output": None,
            "inputDetails": {"included": True},
            "outputDetails": None,
            "error": request.get("error"),
            "cause": request.get("cause"),
        },
    }
