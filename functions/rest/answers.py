"""Answers: JSON, and problems in application/problem+json (RFC 9457). No clock, no AWS."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from grants.errors import InvalidKnock, KnockError, NotAllowed, Unavailable, WrongFamily
from grants.values import Record, show_second, show_time

TRY_AGAIN_AFTER = 5  # seconds


def answer(status: int, body: object, **headers: str) -> dict[str, Any]:
    """Answer with JSON, not to be kept by any cache."""
    return {
        "statusCode": status,
        "headers": {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        | headers,
        "body": json.dumps(body, ensure_ascii=False),
    }


def problem(error: KnockError, grant_id: str | None = None) -> dict[str, Any]:
    """Answer with a problem, RFC 9457: what was wrong, in `detail`, for a person.

    `grant_id` names a grant that has started though the answer is an error, or may have.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
    body: dict[str, Any] = {
        "type": f"urn:knock:problem:{name}",
        "title": error.title,
        "status": error.status,
        "detail": str(error) + (f" (grant {grant_id})" if grant_id else ""),
    }
    if isinstance(error, InvalidKnock):
        body["field"] = error.field
    if isinstance(error, NotAllowed):
        body["right"] = error.right
    if isinstance(error, WrongFamily):
        body["families"] = list(error.families)
    if grant_id:
        body["grant_id"] = grant_id
    headers = {"Content-Type": "application/problem+json"}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(TRY_AGAIN_AFTER)
    return answer(error.status, body, **headers)


def show(record: Record, at: datetime, execution_arn: str, caller: str) -> dict[str, Any]:
    """Write a grant as an answer at the time `at` has it; `caller` is the CIDR that the call came from."""
    grant = record.grant
    status = record.status_at(at)
    left = (grant.expires_at - at).total_seconds() if status in ("pending", "active") else 0
    return {
        "id": grant.id,
        "status": status,
        "principal": grant.principal.as_json(),
        "source": grant.source,
        "targets": [target.as_json() for target in record.targets],
        "requested_at": show_time(grant.requested_at),
        "expires_at": show_second(grant.expires_at),
        "seconds_left": max(0, int(left)),
        "reason": grant.reason or None,
        "renews": grant.renews,
        "ended_at": show_time(record.ended_at) if record.ended_at else None,
        "ended_by": record.ended_by or None,
        "execution_arn": execution_arn,
        "caller": caller,
    }


def show_whole(record: Record, at: datetime, execution_arn: str, caller: str) -> dict[str, Any]:
    """Write a grant with its events, as the answers about a single grant have it."""
    return show(record, at, execution_arn, caller) | {"events": [event.as_json() for event in record.events]}
