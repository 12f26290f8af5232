"""Runs when an execution was stopped, failed or timed out: closes what it can no longer close itself.

*Stop execution* is a supported way to revoke. EventBridge delivers its event at best effort; what it
loses, the drift guard finds.
https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from grants.errors import GrantNotFound
from grants.operations import RENEWED_BY, SUPERSEDED
from grants.values import State
from grants.wiring import Wiring, count, logger, metrics, prepare

wiring = cache(Wiring)
prepare(lambda: wiring().operations)

# Who stopped an execution is in CloudTrail only: the event does not say.
ENDS: dict[str, tuple[State, str]] = {
    "ABORTED": ("revoked", "an AWS operator"),
    "FAILED": ("failed", "knock"),
    "TIMED_OUT": ("revoked", "knock"),
}


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> dict[str, object]:
    """Close the grant whose execution the event names. Twice, or for a grant long closed, changes nothing.

    Raises what may pass, so that Lambda tries again and in the end leaves the event in the dead-letter queue.
    """
    detail = event["detail"]
    grant_id = detail["name"]
    logger.append_keys(grant_id=grant_id)
    how, by, reason = _end(detail)
    try:
        done = wiring().operations.revoke(grant_id, how, by, reason)
    except GrantNotFound:
        logger.warning("grant_not_in_trail")  # somebody's own execution: Knock opens nothing off the record
        return {"grant_id": grant_id, "status": "unknown", "revoked": [], "kept": []}
    if done.closed_now:
        count("GrantEnded")
    logger.info("closed", extra=done.as_json() | {"how": how, "closed_now": done.closed_now})
    return done.as_json()


def _end(detail: Mapping[str, Any]) -> tuple[State, str, str]:
    """Say how the grant ended, by whom and why. A renewal stops the execution first and says so in it."""
    error, cause, status = detail.get("error") or "", detail.get("cause") or "", detail["status"]
    if error == SUPERSEDED and cause.startswith(RENEWED_BY):
        return "superseded", cause.removeprefix(RENEWED_BY), ""
    said = ": ".join(text for text in (error, cause) if text)
    return *ENDS[status], f"execution {status.lower()}{f' ({said})' if said else ''}"
