"""`knock-admin grants`, `revoke` and `guard`: list the live grants, close some early, run the drift guard.

A grant is closed as `DELETE /grants/{id}` closes it: the revoke function revokes its rules and stops its
execution. Where that fails for now, an execution of the closings' state machine retries until it succeeds.
The steps and their order are the function's, and not repeated here. A grant named by its id is closed without
reading the trail, so it can be closed while the trail is out of reach.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from knock_admin import tags, trail
from knock_admin.errors import AdminError, FunctionFailed, UsageError, translated
from knock_admin.output import Result, note, progress, table, visible
from knock_admin.stores import equal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from knock_admin.stack import Stack
    from knock_admin.stores import AnyOf

CLOSES_WITHIN = 2.0
"""Seconds within which most authorizations that are under way have ended."""
PAUSE = 0.3
"""Seconds between two attempts."""


def show(stack: Stack, filters: Mapping[str, AnyOf], *, status: str, now: datetime, as_json: bool) -> Result:
    """List the grants that meet the filters, newest first.

    `status` is `live`, `all`, or the state in which they ended. Raises AdminError for a filter that no record
    has ever met.
    """
    where = list(filters.values())
    if status == "live":
        where += trail.live(now)
    elif status != "all":
        where.append(equal("state", status))
    entries = trail.some(stack, trail.grants(stack, where, "descending"), filters)
    if as_json:
        return Result({"grants": [entry.as_json(now) for entry in entries]}, [])
    header = ("ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "LEFT", "EXPIRES AT", "REASON")
    rows = (
        (
            entry.id,
            current := entry.status(now),
            entry.text("principal_name"),
            entry.text("source"),
            entry.target_names,
            tags.left(entry.text("expires_at"), now) if current in ("active", "pending") else "-",
            entry.text("expires_at"),
            entry.text("reason") or "-",
        )
        for entry in entries
    )
    return Result(None, table(rows, header))


def _operator(stack: Stack) -> dict[str, str]:
    """Give the AWS identity that this program runs as: its id, and the last part of its ARN as its name."""
    identity = stack.aws.client("sts").get_caller_identity()
    return {"id": identity["UserId"], "name": identity["Arn"].split(":", 5)[5]}


def invoke(stack: Stack, module: str, payload: dict[str, Any]) -> Any:
    """Invoke one of the stack's functions and give its answer, `{}` in a dry run.

    Raises FunctionFailed with the function's own error.
    """
    answer = stack.aws.client("lambda").invoke(
        FunctionName=stack.function(module), Payload=json.dumps(payload)
    )
    if stack.aws.calls.dry_run:
        return {}
    result = json.loads(answer["Payload"].read() or "null")
    if answer.get("FunctionError"):
        detail = result.get("errorMessage", "") if isinstance(result, dict) else result
        kind = result.get("errorType", "an error") if isinstance(result, dict) else "an error"
        raise FunctionFailed(kind, f"{stack.function(module)} failed with {kind}: {visible(detail)}")
    return result


def end(stack: Stack, grant_id: str, by: dict[str, str], reason: str) -> dict[str, Any]:
    """Close one grant: when this returns, its rules are revoked and its execution is stopped.

    Closing a closed grant changes nothing. Raises FunctionFailed when it could not be closed; where the grant
    has an execution, the closings' state machine then retries.
    """
    payload = {"how": "revoked", "grant": {"grant_id": grant_id}, "by": by, "reason": reason}
    payload["request"] = secrets.token_hex(8)  # so that a retry recognizes the end that this request recorded
    try:
        return _close(stack, payload)
    except FunctionFailed as error:
        started = _input_of(stack, grant_id)
        if not started:
            raise
        payload["grant"] = started
        if error.kind != "GrantNotFound":
            raise _start_closing(stack, grant_id, payload, error) from error
    try:  # its execution has started, and the grant is not on record yet
        return _close(stack, payload)
    except FunctionFailed as error:
        raise _start_closing(stack, grant_id, payload, error) from error


def _close(stack: Stack, payload: dict[str, Any]) -> dict[str, Any]:
    """Invoke the revoke function; retry for CLOSES_WITHIN while the grant is being authorized."""
    deadline = time.monotonic() + CLOSES_WITHIN
    while True:
        try:
            return dict(invoke(stack, "revoke", payload))
        except FunctionFailed as error:
            if error.kind != "RuleUnsettled" or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def _input_of(stack: Stack, grant_id: str) -> dict[str, Any] | None:
    """Read a grant from its execution's input, with which it can be closed without trail and ledger."""
    arn = stack.setting("STATE_MACHINE_ARN").replace(":stateMachine:", ":execution:")
    try:
        execution = stack.aws.client("stepfunctions").describe_execution(executionArn=f"{arn}:{grant_id}")
        started = json.loads(execution.get("input", "null"))
    except (ClientError, ValueError):
        return None
    return started if isinstance(started, dict) and started.get("grant_id") == grant_id else None


def _start_closing(
    stack: Stack, grant_id: str, payload: dict[str, Any], failure: FunctionFailed
) -> FunctionFailed:
    """Start an execution that retries to close a grant. Gives the failure, with that execution's name."""
    name = f"{grant_id[:63]}_{secrets.token_hex(8)}"
    try:
        stack.aws.client("stepfunctions").start_execution(
            stateMachineArn=stack.setting("CLOSINGS_ARN"), name=name, input=json.dumps(payload)
        )
    except ClientError as error:
        return FunctionFailed(
            failure.kind,
            f"{failure}; and no execution retries: {translated(error, stack.aws.calls.last)}",
        )
    return FunctionFailed(failure.kind, f"{failure}; the execution {name} retries until it is closed")


def revoke_matching(
    stack: Stack, filters: Mapping[str, AnyOf], reason: str, *, now: datetime, confirmed: bool
) -> Result:
    """Close the live grants that meet the filters, in the order in which they expire.

    Asks at the terminal unless `confirmed`. Raises UsageError without a terminal to ask at, AdminError when
    the answer is no.
    """
    live = trail.grants(stack, [*filters.values(), *trail.live(now)], None)
    entries = sorted(trail.some(stack, live, filters), key=lambda entry: entry.text("expires_at"))
    if entries and not (confirmed or stack.aws.calls.dry_run):
        for line in table(
            ((entry.id, entry.text("principal_name"), entry.text("source")) for entry in entries),
            ("ID", "PRINCIPAL", "SOURCE"),
        ):
            print(line, file=sys.stderr)
        _confirm(f"End {'this grant' if len(entries) == 1 else f'these {len(entries)} grants'}?")
    return revoke(stack, [entry.id for entry in entries], reason)


def revoke(stack: Stack, ids: Sequence[str], reason: str) -> Result:
    """Close these grants, and go on after one that cannot be closed: the exit code is 1 then."""
    by = _operator(stack)
    ended: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    lines: list[str] = []
    for number, grant_id in enumerate(ids, 1):
        progress(f"ending {number} of {len(ids)}: {grant_id}")
        error = _try_end(stack, grant_id, by, reason, ended)
        if error:
            failed[grant_id] = error
            lines.append(f"{grant_id}: NOT closed: {error}")
        else:
            lines.append(f"{grant_id}: {_summary(ended[-1])}")
    if failed:
        lines.append(
            f"{len(failed)} of {len(ids)} not closed. Run the same command again: closed grants stay closed."
        )
    return Result(
        {"ended": ended, "failed": failed}, lines or ["No live grant matches."], exit_code=1 if failed else 0
    )


def _try_end(
    stack: Stack, grant_id: str, by: dict[str, str], reason: str, ended: list[dict[str, Any]]
) -> str | None:
    """Close one grant and add the answer to `ended`. Gives the error's text, or None."""
    try:
        ended.append({"grant_id": grant_id, **end(stack, grant_id, by, reason)})
    except AdminError as error:
        return str(error)
    except ClientError as error:
        return str(translated(error, stack.aws.calls.last))
    return None


def _summary(revocation: dict[str, Any]) -> str:
    revoked, kept = revocation.get("revoked", []), revocation.get("kept", [])
    text = f"{revocation.get('status', 'ended')}; rules gone: {', '.join(revoked) or 'none left to close'}"
    return text + (f"; kept for other live grants: {', '.join(kept)}" if kept else "")


def _confirm(question: str) -> None:
    """Ask once. Raises UsageError without a terminal, AdminError unless the answer is yes."""
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to confirm that at: say --yes.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("Nothing was changed.")


def guard(stack: Stack) -> Result:
    """Run the drift guard now, which repairs drift and reports it. The exit code is 1 if there was drift.

    The function has no mode that reports only, so a dry run lists its invocation and no findings.
    """
    if stack.aws.calls.dry_run:
        note("what the guard would find, and mend, is not known before it has run: it does both in one")
    findings: list[dict[str, str]] = invoke(stack, "guard", {}).get("findings", [])
    if not findings:
        return Result({"findings": []}, ["The drift guard found nothing."])
    rows = [
        [finding.get(name, "") or "-" for name in ("kind", "grant_id", "rule", "did")] for finding in findings
    ]
    return Result(
        {"findings": findings}, table(rows, ("FOUND", "GRANT", "RULE", "DONE ABOUT IT")), exit_code=1
    )
