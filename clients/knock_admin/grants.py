"""`knock-admin grants`, `revoke` and `guard`: who is in, ending it, and the smoke detector.

A grant is ended as `DELETE /grants/{id}` ends it: the revoke function closes its rules and stops its
execution, and what that cannot finish now goes on in the closings' state machine, for as long as it takes.
What is done, and in which order, is nowhere repeated here. A grant named by its id is ended without reading
the trail, so that it can be done while the trail cannot be reached.
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
    from argparse import Namespace

    from knock_admin.stack import Stack


SETTLES_WITHIN = 2.0
"""Seconds in which an authorization under way mostly ends."""
PAUSE = 0.3
"""Seconds between two tries."""


def show(stack: Stack, args: Namespace) -> Result:
    """List grants, newest first: the live ones, or those that ended in a certain way."""
    filters = trail.chosen(args)
    where = list(filters.values())
    if args.status == "live":
        where += trail.live(args.now)
    elif args.status != "all":
        where.append(equal("state", args.status))
    entries = trail.some(stack, trail.grants(stack, where, "descending"), filters)
    if args.json:
        return Result({"grants": [entry.as_json(args.now) for entry in entries]}, [])
    header = ("ID", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "LEFT", "EXPIRES AT", "REASON")
    rows = (
        (
            entry.id,
            status := entry.status(args.now),
            entry.one("principal_name"),
            entry.one("source"),
            entry.target_names,
            tags.left(entry.one("expires_at"), args.now) if status in ("active", "pending") else "-",
            entry.one("expires_at"),
            entry.one("reason") or "-",
        )
        for entry in entries
    )
    return Result(None, table(rows, header))


def _operator(stack: Stack) -> dict[str, str]:
    """Say who revokes, as AWS knows them: the identity's id, and its ARN's last part for a name."""
    identity = stack.aws.client("sts").get_caller_identity()
    return {"id": identity["UserId"], "name": identity["Arn"].split(":", 5)[5]}


def invoke(stack: Stack, module: str, payload: dict[str, Any]) -> Any:
    """Run one of the stack's functions and give its answer. Raises FunctionFailed with its own error."""
    answer = stack.aws.client("lambda").invoke(
        FunctionName=stack.function(module), Payload=json.dumps(payload)
    )
    if stack.aws.calls.dry_run:
        return {}
    said = json.loads(answer["Payload"].read() or "null")
    if answer.get("FunctionError"):
        detail = said.get("errorMessage", "") if isinstance(said, dict) else said
        kind = said.get("errorType", "an error") if isinstance(said, dict) else "an error"
        raise FunctionFailed(kind, f"{stack.function(module)} failed with {kind}: {visible(detail)}")
    return said


def end(stack: Stack, grant_id: str, by: dict[str, str], reason: str) -> dict[str, Any]:
    """End one grant: its rules are gone then, and its execution is stopped. Twice is fine.

    Raises FunctionFailed when that could not be finished; a closing goes on with it then, if the grant has an
    execution.
    """
    payload = {"how": "revoked", "grant": {"grant_id": grant_id}, "by": by, "reason": reason}
    payload["request"] = secrets.token_hex(8)  # so that a second try knows what the first has recorded
    try:
        return _close(stack, payload)
    except FunctionFailed as error:
        started = _input_of(stack, grant_id)
        if not started:
            raise
        payload["grant"] = started
        if error.kind != "GrantNotFound":
            raise _handed_over(stack, grant_id, payload, error) from error
    try:  # its execution has started, and it is not on record yet
        return _close(stack, payload)
    except FunctionFailed as error:
        raise _handed_over(stack, grant_id, payload, error) from error


def _close(stack: Stack, payload: dict[str, Any]) -> dict[str, Any]:
    """Run the revoke function, and again for a moment while the grant is still being authorized."""
    deadline = time.monotonic() + SETTLES_WITHIN
    while True:
        try:
            return dict(invoke(stack, "revoke", payload))
        except FunctionFailed as error:
            if error.kind != "RuleUnsettled" or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def _input_of(stack: Stack, grant_id: str) -> dict[str, Any] | None:
    """Read a grant from its execution's input: with that it can be closed without trail and ledger."""
    arn = stack.setting("STATE_MACHINE_ARN").replace(":stateMachine:", ":execution:")
    try:
        execution = stack.aws.client("stepfunctions").describe_execution(executionArn=f"{arn}:{grant_id}")
        started = json.loads(execution.get("input", "null"))
    except (ClientError, ValueError):
        return None
    return started if isinstance(started, dict) and started.get("grant_id") == grant_id else None


def _handed_over(
    stack: Stack, grant_id: str, payload: dict[str, Any], failure: FunctionFailed
) -> FunctionFailed:
    """Start a closing, which goes on with what the revoke function could not finish; say so, or why not."""
    name = f"{grant_id[:63]}_{secrets.token_hex(8)}"
    try:
        stack.aws.client("stepfunctions").start_execution(
            stateMachineArn=stack.setting("CLOSINGS_ARN"), name=name, input=json.dumps(payload)
        )
    except ClientError as error:
        return FunctionFailed(
            failure.kind, f"{failure}; and no closing goes on: {translated(error, stack.aws.calls.last)}"
        )
    return FunctionFailed(failure.kind, f"{failure}; a closing goes on until it is ({name})")


def revoke(stack: Stack, args: Namespace) -> Result:
    """End grants early. Goes on to the next when one fails, and says which are left."""
    chosen = [args.principal, args.source, args.target, args.all]
    if bool(args.id) == any(chosen):
        raise UsageError(
            "Which grants? Name their ids, or choose by --principal, --source, --target or --all."
        )
    ids: list[str] = list(args.id)
    if not ids:
        filters = trail.chosen(args)
        found = trail.grants(stack, [*filters.values(), *trail.live(args.now)], None)
        entries = sorted(trail.some(stack, found, filters), key=lambda entry: entry.one("expires_at"))
        ids = [entry.id for entry in entries]
        if ids and not (args.yes or stack.aws.calls.dry_run):
            for line in table(
                ((entry.id, entry.one("principal_name"), entry.one("source")) for entry in entries),
                ("ID", "PRINCIPAL", "SOURCE"),
            ):
                print(line, file=sys.stderr)
            _confirm(f"End {'this grant' if len(ids) == 1 else f'these {len(ids)} grants'}?")
    by = _operator(stack)
    ended: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    lines: list[str] = []
    for number, grant_id in enumerate(ids, 1):
        progress(f"ending {number} of {len(ids)}: {grant_id}")
        error = _try_end(stack, grant_id, by, args.reason, ended)
        if error:
            failed[grant_id] = error
            lines.append(f"{grant_id}: NOT closed: {error}")
        else:
            lines.append(f"{grant_id}: {_summary(ended[-1])}")
    if failed:
        lines.append(
            f"{len(failed)} of {len(ids)} not closed. The same command may be run again: twice is fine."
        )
    return Result(
        {"ended": ended, "failed": failed}, lines or ["No live grant matches."], exit_code=1 if failed else 0
    )


def _try_end(
    stack: Stack, grant_id: str, by: dict[str, str], reason: str, ended: list[dict[str, Any]]
) -> str | None:
    """End one grant; give what went wrong, so that the others get their turn."""
    try:
        ended.append({"grant_id": grant_id, **end(stack, grant_id, by, reason)})
    except AdminError as error:
        return str(error)
    except ClientError as error:
        return str(translated(error, stack.aws.calls.last))
    return None


def _summary(revocation: dict[str, Any]) -> str:
    gone, kept = revocation.get("revoked", []), revocation.get("kept", [])
    text = f"{revocation.get('status', 'ended')}; rules gone: {', '.join(gone) or 'none left to close'}"
    return text + (f"; kept for other live grants: {', '.join(kept)}" if kept else "")


def _confirm(question: str) -> None:
    """Ask once. Raises UsageError where nobody can answer, AdminError when the answer is no."""
    if not sys.stdin.isatty():
        raise UsageError("Nobody is here to confirm that: say --yes.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("Nothing was changed.")


def guard(stack: Stack, _args: Namespace) -> Result:
    """Run the drift guard now: it mends what it can and tells what it found; exit code 1 then.

    The function looks and mends in one and has no way to only look, so a dry run can list the call alone.
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
