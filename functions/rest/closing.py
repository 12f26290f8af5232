"""Closes grants for the API, which has no rights on EC2: by the revoke function or the closings' machine."""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from grants import errors
from grants.errors import EngineUnavailable, KnockError, RuleUnsettled, Unavailable
from grants.executions import Closings

logger = logging.getLogger("knock")

PAUSE = 0.3  # seconds between two tries while an authorization is under way


def closing_payload(how: str, grant: dict[str, Any], by: dict[str, str], reason: str) -> dict[str, Any]:
    """Write the payload of the revoke function and of the closings' machine.

    `request` names this request, so that a retry recognizes its write.
    """
    return {"how": how, "grant": grant, "by": by, "reason": reason, "request": secrets.token_hex(8)}


@dataclass(frozen=True, slots=True)
class Closer:
    """Closes grants through AWS Lambda (`functions`, the client) and the closings' state machine."""

    functions: Any
    revoke_function: str
    closings: Closings

    def close(self, grant_id: str, payload: dict[str, Any], patience: float) -> None:
        """Close a grant, trying again for `patience` seconds while an authorization of it is under way.

        The client may not retry, so a close that fails is left to the closings' machine, which retries for
        days. The error is raised all the same: StoreUnavailable, RuleUnsettled, or another Unavailable. Twice
        is once.
        """
        deadline = time.monotonic() + patience
        try:
            while not self._invoke(payload, patient=time.monotonic() < deadline):
                time.sleep(PAUSE)
        except KnockError:
            self.start(grant_id, payload)
            raise

    def start(self, grant_id: str, payload: dict[str, Any]) -> None:
        """Start a closing. A failure to is logged: the drift guard then closes what is left open."""
        try:
            self.closings.start(grant_id, payload)
        except EngineUnavailable:
            logger.exception("closing_not_started", extra={"closing_of": grant_id})

    def _invoke(self, payload: dict[str, Any], *, patient: bool) -> bool:
        """Call the revoke function. False, if `patient`: an authorization under way will soon see the end."""
        try:
            response = self.functions.invoke(FunctionName=self.revoke_function, Payload=json.dumps(payload))
        except (ClientError, BotoCoreError) as error:
            raise EngineUnavailable(f"the revoke function did not answer: {type(error).__name__}") from error
        if not response.get("FunctionError"):
            return True
        failure = json.loads(response["Payload"].read())
        name, detail = failure.get("errorType", ""), failure.get("errorMessage", "")
        kind = getattr(errors, name, None)
        if kind is RuleUnsettled and patient:
            return False
        if isinstance(kind, type) and issubclass(kind, Unavailable):
            raise kind(f"the grant has ended, and its rules are being closed: {detail}")
        raise EngineUnavailable(f"the revoke function failed, and is called again: {name}")
