"""Closes a grant: for RevokeIngress, RollBackIngress and the force states, and for early revocation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit

from grants.errors import GrantNotFound, InvalidGrant
from grants.operations import Revocation
from grants.values import Grant, Ports, RuleKey
from grants.wiring import Wiring, count, logger, metrics, now, prepare

wiring = cache(Wiring)
prepare(lambda: wiring().operations)


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> dict[str, object]:
    """End the grant in `event["grant"]` as `event["how"]` says, and close what it opened.

    Twice is once. Running executions of earlier deployments call this with the payloads of theirs: only
    `how` and `grant.grant_id` are relied on, but for force, which reads the execution's whole state.
    """
    how, state = event["how"], event["grant"]
    logger.append_keys(grant_id=str(state.get("grant_id")))
    operations = wiring().operations
    if how == "force":
        done = operations.force(Grant.from_input(state), _rules(state), _end_of(state))
    elif how == "revoked":
        done = operations.revoke(
            state["grant_id"], "revoked", event["by"]["name"], event.get("reason") or "", state.get("source")
        )
    else:
        try:
            done = operations.revoke(
                str(state.get("grant_id")), how, "knock", _reason(state), state.get("source")
            )
        except GrantNotFound:
            return _close_unrecorded(state, how)
    _report(done, how)
    return done.as_json()


def _close_unrecorded(state: Mapping[str, Any], how: str) -> dict[str, object]:
    """Close what the execution's own state names, when the trail holds no such grant.

    An input that is no grant was refused by AuthorizeIngress too, before anything was opened.
    """
    logger.error("grant_not_in_trail")
    try:
        grant = Grant.from_input(state)
    except InvalidGrant as error:
        return {
            "grant_id": state.get("grant_id"),
            "status": "failed",
            "revoked": [],
            "kept": [],
            "note": str(error),
        }
    done = wiring().operations.force(grant, _rules(state), _end_of(state))
    _report(done, how)
    return done.as_json()


def _rules(state: Mapping[str, Any]) -> dict[RuleKey, str]:
    """Read the rules AuthorizeIngress answered with. Foreign ones are not Knock's to close."""
    return {
        RuleKey(rule["group"], Ports.parse(rule["ports"]), state["source"]): rule["rule"]
        for rule in state.get("rules", [])
        if not rule["foreign"]
    }


def _end_of(state: Mapping[str, Any]) -> Any:
    return "expired" if "rules" in state else "failed"


def _reason(state: Mapping[str, Any]) -> str:
    """Read why AuthorizeIngress failed: Step Functions puts the function's error, as JSON, in Cause."""
    error = state.get("error")
    if not isinstance(error, Mapping):
        return ""
    name, cause = str(error.get("Error", "")), str(error.get("Cause", ""))
    try:
        cause = json.loads(cause)["errorMessage"]
    except (ValueError, KeyError, TypeError):
        cause = cause[:300]
    return f"{name}: {cause}" if cause else name


def _report(done: Revocation, how: str) -> None:
    if done.closed_now:
        count("GrantEnded")
        if how == "expired":
            lag = (now() - done.grant.expires_at).total_seconds() * 1000
            count("RevocationLag", max(lag, 0), MetricUnit.Milliseconds)
    logger.info("closed", extra=done.as_json() | {"how": how, "closed_now": done.closed_now})
