"""Runs when an execution was stopped, failed or timed out: closes what it can no longer close itself.

*Stop execution* is a supported way to revoke. EventBridge delivers its event at best effort; what it
loses, the drift guard finds.
https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html
"""

from __future__ import annotations

from functools import cache
from typing import Any

from grants.errors import GrantNotFound
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
    grant_id, status = detail["name"], detail["status"]
    logger.append_keys(grant_id=grant_id)
    how, by = ENDS[status]
    said = ": ".join(text for text in (detail.get("error"), detail.get("cause")) if text)
    try:
        done = wiring().operations.revoke(
            grant_id, how, by, f"execution {status.lower()}{f' ({said})' if said else ''}"
        )
    except GrantNotFound:
        logger.warning("grant_not_in_trail")  # somebody's own execution: Knock opens nothing off the record
        return {"grant_id": grant_id, "status": "unknown", "revoked": [], "kept": []}
    if done.closed_now:
        count("GrantEnded")
    logger.info("closed", extra=done.as_json() | {"how": how, "closed_now": done.closed_now})
    return done.as_json()
