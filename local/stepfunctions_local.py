"""A second engine: Step Functions from outside this process, behind the stack's own AWS endpoint.

`--engine stepfunctions-local` runs the npm package of that name, pinned in package.json, as a child;
`--engine http://…` takes any other endpoint that has the API. Either way clients and functions talk to the
stack's AWS endpoint, and `Engine` passes their Step Functions calls on, so that one address serves all of AWS
and a stopped execution is announced as AWS would: these engines have no EventBridge to tell.

The npm engine listens on every interface, outlives its parent and knows no Parameters. It is started through
`stepfunctions_local.js`, which makes it listen on loopback alone, end when the stack's end of its standard
input closes, however that comes about, and fill in a task's Parameters, so that the very definition that
deploys runs on it too.

What it cannot show, of both state machines: it knows no Retry, so the first error of a task, a transient one
too, goes straight to the Catch: a RevokeIngress or Close that would have waited for an attempt to settle is
followed by force at once, and force by the Fail state. A Fail state ends SUCCEEDED there, so a closing that
failed cannot be told from one that did not, and raises no event. Stopping an execution does not keep its next
task from running. `tests/local/test_second_engine.py` shows each of these.
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
                ["node", str(_STARTER), json.dumps(config)],  # noqa: S607 - whichever node the person has
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
        """End it. The second time does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


def _environment() -> Mapping[str, str]:
    """Return what node needs, and what aws-sdk 2 inside it wants to be quiet."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "AWS_ACCESS_KEY_ID": "stepfunctionslocal",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE": "1",
    }


class Engine:
    """Step Functions at `url`: an `endpoint.Watcher` that takes its calls and never forwards one."""

    def __init__(self, url: str) -> None:
        """Talk to the engine at `url`."""
        self.url = url
        self.publish: Publish = lambda _event: None
        self._address = urlsplit(url).netloc

    def __call__(self, call: Call, _forward: Forward) -> Answer:
        """Pass a call on; announce an execution that this call stopped."""
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
        asked = {"stateMachineArn": machine, "name": name, "input": payload.decode()}
        answer = self._ask("StartExecution", json.dumps(asked).encode(), machine.split(":")[3])
        if answer.status == 200:
            return
        said = json.loads(answer.body)
        code = str(said.get("__type")).rpartition("#")[2]
        if code != "ExecutionAlreadyExists":
            raise InvocationError(code, str(said.get("message")))

    def create(self, *, name: str, definition: str, role: str, region: str) -> str:
        """Create the state machine, or update what is there; return its ARN. Raises EngineNotFound."""
        wanted = {"name": name, "definition": definition, "roleArn": role}
        answer = self._ask("CreateStateMachine", json.dumps(wanted).encode(), region)
        said = json.loads(answer.body)
        if answer.status == 200:
            return str(said["stateMachineArn"])
        if "AlreadyExists" in str(said.get("__type")):
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
            # Signed by nobody; some engines read the region from here.
            "Authorization": f"AWS4-HMAC-SHA256 Credential=local/20200101/{region}/states/aws4_request, "
            "SignedHeaders=host, Signature=local",
        }
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request("POST", "/", self._theirs(body, region), headers)
            answer = connection.getresponse()
            said = self._ours(answer.read(), region)
        except OSError as error:
            call = Call("states", operation, region, "", body)
            return failure(
                call, "ServiceUnavailable", f"the engine at {self.url} does not answer: {error}", 503
            )
        finally:
            connection.close()
        content_type = answer.getheader("Content-Type") or "application/x-amz-json-1.0"
        return Answer(answer.status, [("Content-Type", content_type)], said)

    def _theirs(self, body: bytes, region: str) -> bytes:  # noqa: ARG002 - for an engine that needs it
        """Put a request in the engine's words."""
        return body

    def _ours(self, body: bytes, region: str) -> bytes:  # noqa: ARG002 - for an engine that needs it
        """Put an answer in Step Functions' words."""
        return body


class NpmEngine(Engine):
    """stepfunctions-local 1.3.1, where it does not speak as Step Functions does.

    It calls the region of every execution `local`, whatever it was started with, and describes a definition
    as an object and not as a text.
    """

    def _theirs(self, body: bytes, region: str) -> bytes:
        return _rename_region(body, region, "local")

    def _ours(self, body: bytes, region: str) -> bytes:
        answer = json.loads(_rename_region(body, "local", region))
        if isinstance(answer.get("definition"), dict):
            answer["definition"] = json.dumps(answer["definition"])
        return json.dumps(answer).encode()


def _rename_region(body: bytes, old: str, new: str) -> bytes:
    return re.sub(rf"(arn:aws:states:){old}(:\d+:execution:)", rf"\g<1>{new}\g<2>", body.decode()).encode()


def _aborted(execution: dict[str, Any], asked: dict[str, Any], stopped: dict[str, Any]) -> dict[str, Any]:
    """Make the event of https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html."""
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
            "error": asked.get("error"),
            "cause": asked.get("cause"),
        },
    }
