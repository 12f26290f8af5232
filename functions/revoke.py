"""Closes a grant: for its execution's tasks, for early revocation, and after an end from outside.

| `how` | from | with |
|---|---|---|
| `expired`, `failed` | RevokeIngress, RollBackIngress | `grant`: the execution's state |
| `force` | ForceRevokeIngress, ForceRollBackIngress | the same |
| `revoked` | `DELETE /grants/{id}` | `grant`: the input, or its id alone; `by`, `reason`, `request` |
| `close`, `force-close` | the closings' machine | `closing`: an event, or a payload as for `revoked` |

Nothing of a payload is trusted: an input under another grant's id closes nothing, and ids of rules count only
where EC2 shows them as Knock's own and as this grant's. A payload of another shape is logged and closes
nothing: it raises no error, since a retry would not help. How long a closing is retried, its state machine
says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit

from grants.closing import (
    CloseResult,
    End,
    close,
    close_by_id,
    close_tagged,
    closed_before,
    force,
    revoke_own,
)
from grants.errors import GrantNotFound, InvalidGrant, StoreRefused, StoreUnavailable
from grants.operations import Operations
from grants.trail import cut
from grants.values import GRANT_ID, Grant, Opened, RuleKey, State
from grants.wiring import Wiring, count, logger, metrics, now, prepare

wiring = cache(Wiring)
prepare(lambda: wiring().operations)

# How a payload may end a grant early; any other `how` is revoked.
EARLY: dict[str, State] = {"superseded": "superseded", "failed": "failed"}

RULE_ID = re.compile(r"sgr-[0-9a-f]{1,40}", re.ASCII)

# The event does not name the operator who stopped an execution: only CloudTrail does.
STOPPED: dict[str, tuple[State, str]] = {
    "ABORTED": ("revoked", "an AWS operator"),
    "FAILED": ("failed", "knock"),
    "TIMED_OUT": ("revoked", "knock"),
}


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> dict[str, object]:
    """Close a grant as `event["how"]` says. Twice is once.

    Running executions of earlier deployments call this with their payloads. Raises transient errors, and
    permanent ones that only an operator can resolve: the state machines retry both for days.
    """
    how = event["how"]
    try:
        result = _close(how, event)
    except InvalidGrant as error:
        logger.error("invalid_grant", extra={"detail": str(error), "by_task": cut(str(how), 80)})
        result = CloseResult(_id_of(event.get("grant")), "failed")
    if result.closed_now:
        count("GrantEnded")
        if result.state == "expired" and result.expires_at:
            lag = (now() - result.expires_at).total_seconds() * 1000
            count("RevocationLag", max(lag, 0), MetricUnit.Milliseconds)
    state = {"how": result.state, "by_task": how, "closed_now": result.closed_now}
    logger.info("closed", extra=result.as_json() | state)
    return result.as_json()


def _close(how: object, event: Mapping[str, Any]) -> CloseResult:
    """Close what a payload names. Raises InvalidGrant for one that names no grant."""
    if how in ("close", "force-close"):
        closing, forced = _object(event.get("closing")), how == "force-close"
        if "detail" in closing:
            return _close_stopped(_object(closing["detail"]), forced=forced)
        return _close_started(closing, forced=forced)
    if how == "revoked":
        return _close_early(event, forced=False)
    if how in ("expired", "failed", "force"):
        return _close_own(how, _object(event.get("grant")))
    raise InvalidGrant("the payload does not say how to close a grant")


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidGrant("the payload is not of the shape that closes a grant")
    return value


def _id_of(value: object) -> str:
    """Read a payload's grant id as it may be answered and logged, of any type and length."""
    return cut(str(value.get("grant_id")), 80) if isinstance(value, Mapping) else ""


def _name(value: object) -> str:
    """Read a grant's id that stands alone. EC2's filters would read other characters as wildcards."""
    if not isinstance(value, str) or not GRANT_ID.fullmatch(value):
        raise InvalidGrant("the payload names a grant by a text that is no grant's id")
    return value


# ---------------------------------------------------------------------------- an execution's own tasks


def _close_own(how: str, state: Mapping[str, Any]) -> CloseResult:
    logger.append_keys(grant_id=_id_of(state))
    grant, forced = Grant.from_input(state), how == "force"
    failed = how == "failed" or "rules" not in state
    # A failed AuthorizeIngress has no answer: `rules` are then from the input, which may be forged.
    opened = {} if failed or "rollback_error" in state else _own_rules(state, grant)
    end = End("failed" if failed else "expired", "knock", _reason(state) if failed else "", closer=how)
    if not forced:
        return close(wiring().operations, grant, end, opened)
    try:
        return force(wiring().forcing, grant, end, opened)
    except GrantNotFound:  # an execution under another name, and AuthorizeIngress has recorded nothing
        return _close_unknown(wiring().forcing, grant.id, forced=True)


def _own_rules(state: Mapping[str, Any], grant: Grant) -> dict[RuleKey, str]:
    """Read AuthorizeIngress's answer: its rules, foreign ones left out; none where it cannot be read."""
    with suppress(KeyError, TypeError, ValueError):
        opened = [Opened.from_json(rule, grant.source) for rule in state.get("rules", ())]
        own = [rule for rule in opened if not rule.foreign and RULE_ID.fullmatch(rule.rule_id)]
        return {rule.key: rule.rule_id for rule in own if rule.key in grant.rule_keys}
    return {}


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


# ---------------------------------------------------------------------------- early


def _close_early(payload: Mapping[str, Any], *, forced: bool) -> CloseResult:
    """Close a grant that a principal ended, or that a newer one renewed; then stop its execution."""
    operations, value = wiring().forcing if forced else wiring().operations, _object(payload.get("grant"))
    by = cut(str(_object(payload.get("by")).get("name")), 256)
    reason = cut(str(payload.get("reason") or ""), 1000)
    how = EARLY.get(str(payload.get("how")), "revoked")
    end = End(how, by, reason, closer=str(payload.get("request") or how))
    logger.append_keys(grant_id=_id_of(value))
    grant = Grant.from_input(value) if "targets" in value else None
    grant_id = grant.id if grant else _name(value.get("grant_id"))
    if grant is None:
        with _or_by_tag(operations, grant_id, forced=forced):
            result = close_by_id(operations, grant_id, end)
    else:
        result = force(operations, grant, end) if forced else close(operations, grant, end)
    cause = f"{how} by {by}" + (f": {reason}" if reason else "")
    operations.executions.stop(grant_id, how.capitalize(), cause)
    return result


# ---------------------------------------------------------------------------- from outside


def _close_started(payload: Mapping[str, Any], *, forced: bool) -> CloseResult:
    """Close a grant for a closing that the API, a renewal or a stack's deletion started."""
    try:
        return _close_early(payload, forced=forced)
    except GrantNotFound:  # its execution never started
        operations = wiring().forcing if forced else wiring().operations
        return _close_unknown(operations, _name(payload["grant"]["grant_id"]), forced=forced)


def _close_stopped(detail: Mapping[str, Any], *, forced: bool) -> CloseResult:
    """Close the grant of an execution that was stopped, that failed or that timed out.

    Its input says which grant that is; the grant's id mostly is the execution's name. An execution under
    another name is its grant's timer all the same, unless the grant's own execution runs.
    """
    operations = wiring().forcing if forced else wiring().operations
    name, status = _name(detail.get("name")), detail.get("status")
    logger.append_keys(grant_id=name)
    if status not in STOPPED:
        raise InvalidGrant("the event is not of an execution that was stopped, failed or timed out")
    how, by = STOPPED[status]
    cause = ": ".join(str(text) for text in (detail.get("error"), detail.get("cause")) if text)
    reason = f"execution {status.lower()}" + (f" ({cause})" if cause else "")
    end = End(how, by, reason, closer=f"stopped {status}")
    grant = _stopped_grant(operations, name, detail.get("input"))
    grant_id = grant.id if grant else name
    if grant_id != name and _runs(operations, grant_id):
        logger.warning("grant_has_own_execution", extra={"input_of": grant_id})
        return CloseResult(grant_id, "live")
    try:
        record = operations.trail.get(grant_id)
        if record and record.closed_at:
            return closed_before(record)
        grant = grant or (record.grant if record else None)
    except Exception:
        if not forced:
            raise
        logger.exception("trail_not_read")  # force does without the trail
    if grant is None:
        return _close_unknown(operations, grant_id, forced=forced)
    try:
        return force(operations, grant, end) if forced else close(operations, grant, end)
    except GrantNotFound:  # a forged event, or an execution under another name that recorded nothing
        return _close_unknown(operations, grant_id, forced=forced)


def _stopped_grant(operations: Operations, name: str, text: object) -> Grant | None:
    """Read a stopped execution's grant, None where its input is no grant's. Events leave out large inputs."""
    if text is None:
        execution = operations.executions.describe(name)
        text = execution.input if execution else ""
    try:
        return Grant.from_input(json.loads(text))  # type: ignore[arg-type]  # no text is a TypeError
    except (TypeError, ValueError, RecursionError, InvalidGrant):
        return None


def _runs(operations: Operations, grant_id: str) -> bool:
    """Say whether a grant's own execution holds its timer: one of its name that runs with its input."""
    execution = operations.executions.describe(grant_id)
    if execution is None or execution.status != "RUNNING":
        return False
    grant = _stopped_grant(operations, grant_id, execution.input)
    return grant is not None and grant.id == grant_id


def _close_unknown(operations: Operations, grant_id: str, *, forced: bool) -> CloseResult:
    """Close a grant's rules by their tags where neither event nor trail has it; mostly there are none."""
    logger.warning("grant_not_in_trail")
    result = CloseResult(grant_id, "unknown")
    with _or_by_tag(operations, grant_id, forced=forced):
        result.revoked = close_tagged(operations, grant_id)
    return result


@contextmanager
def _or_by_tag(operations: Operations, grant_id: str, *, forced: bool) -> Iterator[None]:
    """By force, revoke rules by a grant's tag where trail or ledger fails; the error is still raised."""
    try:
        yield
    except (StoreUnavailable, StoreRefused):
        if forced:
            count("RevocationForced")
            logger.exception("revoking_by_force")
            revoke_own(operations, grant_id)
        raise
