"""Tells EventBridge and a topic of grants that opened, ended or failed, and of drift. An option of the stack.

It reads the other functions' logs, by CloudWatch Logs' subscriptions, and the trail for the rest. So they do
nothing for it, and no revocation can hang, fail or wait for a notification. The alternative, PutEvents at
the end of each task, needs a timeout that covers name resolution too, and a grant would fail to open when its
task runs out of time.

It publishes to the topic itself. The alternative, a rule of EventBridge, supports no condition in a topic's
policy, so that rules of every account could have published there.
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-resource-based.html#eb-sns-permissions

The events are documented in docs/notifications.md, with a schema. Delivery is best effort, and at least once.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/SubscriptionFilters.html
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import cache, cached_property
from itertools import islice
from typing import Any

from grants.drift import BY
from grants.errors import KnockError, StoreRefused
from grants.settings import required
from grants.values import Grant, Record, show_second, show_time
from grants.wiring import ONCE, Wiring, logger, prepare

VERSION = 1
SOURCE = "knock"
DETAIL_TYPES = {
    "opened": "Knock Grant Opened",
    "ended": "Knock Grant Ended",
    "failed": "Knock Grant Failed",
    "drift": "Knock Drift Found",
}
# https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
MOST_ENTRIES = 10


class NotifyWiring(Wiring):
    """The clients that only this function needs."""

    @cached_property
    def events(self) -> Any:
        return self.client("events", ONCE)

    @cached_property
    def topic(self) -> Any:
        return self.client("sns", ONCE)


wiring = cache(NotifyWiring)
prepare(lambda: (wiring().events, wiring().topic, wiring().trail))


class EventsNotDelivered(KnockError):
    """EventBridge did not take all events. Lambda tries the whole batch again, twice."""


def handler(event: Mapping[str, Any], _context: object) -> dict[str, int]:
    """Tell of the grants and drift in a batch of log lines.

    Raises StoreUnavailable, StoreRefused, EventsNotDelivered and botocore's errors: Lambda retries the batch.
    """
    batch = json.loads(gzip.decompress(base64.b64decode(event["awslogs"]["data"])))
    details = [detail for line, at in _lines(batch) for detail in _details(line, at)]
    remaining = iter(details)
    while chunk := list(islice(remaining, MOST_ENTRIES)):
        answer = wiring().events.put_events(Entries=[_entry(detail) for detail in chunk])
        if answer["FailedEntryCount"]:
            codes = sorted({entry["ErrorCode"] for entry in answer["Entries"] if "ErrorCode" in entry})
            raise EventsNotDelivered(
                f"EventBridge did not take {answer['FailedEntryCount']} events: {', '.join(codes)}"
            )
    topic = required(os.environ, "NOTIFICATION_TOPIC")
    for detail in details:
        wiring().topic.publish(TopicArn=topic, Message=_text(detail))
    return {"sent": len(details)}


def _entry(detail: Mapping[str, Any]) -> dict[str, str]:
    return {"Source": SOURCE, "DetailType": DETAIL_TYPES[detail["event"]], "Detail": _text(detail)}


def _text(detail: Mapping[str, Any]) -> str:
    return json.dumps(detail, ensure_ascii=False)


def _lines(batch: Mapping[str, Any]) -> Iterator[tuple[object, datetime]]:
    """Give the lines that are JSON, and when each was written. A CONTROL_MESSAGE only tests the delivery."""
    for logged in batch["logEvents"] if batch["messageType"] == "DATA_MESSAGE" else ():
        try:
            line = json.loads(logged["message"])
        except ValueError:
            logger.warning("line_unreadable")
        else:
            yield line, datetime.fromtimestamp(logged["timestamp"] / 1000, timezone.utc)


def _details(line: object, at: datetime) -> Iterable[dict[str, Any]]:
    """Make the events of one line: none, one, or several."""
    match line:
        case {"message": "authorized", "grant_id": str(grant_id)}:
            return _of_opening(grant_id)
        case {"message": "closed", "closed_now": True, "grant_id": str(grant_id)}:
            return _of_end(grant_id)
        case {"message": "drift_found", "finding": {} as finding}:
            return _of_drift(finding, at)
    return ()


def _of_opening(grant_id: str) -> Iterator[dict[str, Any]]:
    """Tell that a grant opened, and that the grant it renewed ended, which has no line of its own."""
    record = wiring().trail.get(grant_id)
    if record is None or record.authorized_at is None:
        return
    yield _detail("opened", show_time(record.authorized_at), record.grant)
    old = wiring().trail.get(record.grant.renews) if record.grant.renews else None
    if old and old.ended_at and old.state == "superseded" and old.ended_by == grant_id:
        yield _end(old)


def _of_end(grant_id: str) -> Iterator[dict[str, Any]]:
    record = wiring().trail.get(grant_id)
    if record and record.ended_at:
        yield _end(record)


def _end(record: Record) -> dict[str, Any]:
    """Tell how a grant ended, and by whom, as the trail has it."""
    at = show_time(record.ended_at or record.grant.expires_at)
    if record.state == "failed":
        return _detail("failed", at, record.grant) | {"why": record.end_reason or None}
    end = {"how": record.state, "by": record.ended_by, "why": record.end_reason or None}
    return _detail("ended", at, record.grant) | end


def _of_drift(finding: Mapping[str, str], at: datetime) -> Iterator[dict[str, Any]]:
    """Tell of a finding of the drift guard's, and of the grant it ended."""
    try:
        record = wiring().trail.get(finding["grant_id"]) if finding["grant_id"] else None
    except StoreRefused:  # a record that cannot be read may be the finding
        logger.warning("record_unreadable", exc_info=True)
        record = None
    fields = {name: finding[name] or None for name in ("kind", "rule", "did")}
    detail = _detail("drift", show_time(at), record.grant if record else None) | {"finding": fields}
    # A grant may have several findings, in one run of the guard or in several.
    name = "/".join((finding["grant_id"] or "none", "drift", detail["at"], finding["kind"], finding["rule"]))
    yield detail | {"id": name}
    if record and record.ended_at and record.ended_by == BY:
        yield _end(record)


def _detail(event: str, at: str, grant: Grant | None) -> dict[str, Any]:
    """Write the fields that every event has. `id` is the same when an event is told twice."""
    return {
        "version": VERSION,
        "event": event,
        "id": f"{grant.id}/{event}" if grant else event,
        "at": at,
        "stack": wiring().settings.stack,
        "grant": _show(grant) if grant else None,
    }


def _show(grant: Grant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "principal": grant.principal.as_json(),
        "source": grant.source,
        "targets": [target.as_json() for target in grant.targets],
        "requested_at": show_time(grant.requested_at),
        "expires_at": show_second(grant.expires_at),
        "reason": grant.reason or None,
        "execution_arn": wiring().executions.arn(grant.id),
    }
