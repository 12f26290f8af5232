"""EventBridge that delivers: rules call Lambda targets, failures are retried, the lost go to their queue.

moto 5.2.5 matches events to rules and then raises for a Lambda target. Here what matches is delivered,
on threads of its own and on the engine's clock, in the two stages AWS has:

1. **EventBridge** hands the event to Lambda's queue. Lambda refusing (no such function, no permission,
   a fault of the service) is EventBridge's to handle: the target's RetryPolicy, then its DeadLetterConfig
   (https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-event-delivery.html).
2. **Lambda** takes events off its queue. A function that fails is run two more times, one and two minutes
   later; throttling is retried for 6 hours. What still fails is discarded, and EventBridge never hears of it
   (https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html).

Because `invoke` answers both at once, the stages are told apart by what it answers: an `InvocationError`
is the first stage's, throttling excepted; a function error is the second's.

    deliveries = install(invoke, clock=clock)
    deliveries.drop(lambda event: event["detail"]["status"] == "ABORTED")   # an event that is lost
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from jsonpath_ng.ext import parser as jsonpath
from moto.events.models import EventPattern, Rule, events_backends
from moto.events.utils import EventTemplateParser
from moto.sqs.models import sqs_backends
from moto.utilities.arns import parse_arn

from local.clock import Clock
from local.invocation import InvocationError, InvocationResult, Invoke, Workers

__all__ = ["Deliveries", "install", "publish"]

log = logging.getLogger(__name__)

Event = dict[str, Any]

_FUNCTION_RETRIES = (timedelta(minutes=1), timedelta(minutes=2))
_LONGEST_IN_LAMBDA = timedelta(hours=6)
_LONGEST_THROTTLE_PAUSE = timedelta(minutes=5)
_LONGEST_PAUSE = timedelta(minutes=10)  # AWS says "exponential back off and jitter" and gives no figures

# Errors EventBridge does not retry, by Lambda's error code, and what it calls them.
_FINAL = {
    "ResourceNotFoundException": "NO_RESOURCE",
    "AccessDeniedException": "NO_PERMISSIONS",
    "InvalidParameterValueException": "INVALID_PARAMETER",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Delivery:
    """One event on its way to one Lambda target."""

    rule: Rule
    target: dict[str, Any]
    event: Event
    payload: bytes
    since: datetime
    attempts: int = 0

    @property
    def policy(self) -> tuple[int, timedelta]:
        policy = self.target.get("RetryPolicy", {})
        return (
            policy.get("MaximumRetryAttempts", 185),
            timedelta(seconds=policy.get("MaximumEventAgeInSeconds", 86400)),
        )


class Deliveries:
    """Carries events from rules to Lambda functions. Made by `install`."""

    def __init__(self, invoke: Invoke, clock: Clock, workers: int) -> None:
        self._invoke = invoke
        self._clock = clock
        self._workers = Workers("delivery", workers)
        self._dropped: Callable[[Event], bool] = lambda _: False

    def drop(self, predicate: Callable[[Event], bool]) -> None:
        """Lose the events this is true for, from now on; `lambda event: False` loses none again."""
        self._dropped = predicate

    def publish(self, account: str, region: str, event: Event) -> None:
        """Put a service's own event on the default bus; returns before anyone has it."""
        self._workers.submit(lambda: self._route(account, region, event))

    def deliver(self, rule: Rule, target: dict[str, Any], event: Event) -> None:
        """Send an event to a rule's Lambda target; returns before the function has it."""
        payload = json.dumps(_target_input(target, event)).encode()
        delivery = _Delivery(rule, target, event, payload, self._clock.now())
        self._workers.submit(lambda: self._attempt(delivery))

    def invoke_async(self, function_arn: str, payload: bytes) -> None:
        """Put a payload on Lambda's queue, as Invoke with `InvocationType` Event does."""
        since = self._clock.now()
        self._workers.submit(lambda: self._run(function_arn, payload, since))

    def shutdown(self) -> None:
        """Drop what is not delivered yet; a second call does nothing."""
        self._dropped = lambda _: True
        self._workers.close()

    def lost(self, event: Event) -> bool:
        return self._dropped(event)

    def _route(self, account: str, region: str, event: Event) -> None:
        now = self._clock.now()
        complete: Any = {
            "version": "0",
            "id": str(uuid4()),
            "account": account,
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": region,
            "ingestion-time": now.timestamp(),
            **event,
        }
        for rule in list(events_backends[account][region].event_buses["default"].rules.values()):
            try:
                rule.send_to_targets(copy.deepcopy(complete))
            except Exception:
                log.exception("rule %s could not send an event to its targets", rule.name)

    def _attempt(self, delivery: _Delivery) -> None:
        arn = delivery.target["Arn"]
        try:
            result = self._invoke(arn, delivery.payload)
        except InvocationError as error:
            if error.code == "TooManyRequestsException":
                self._throttled(arn, delivery.payload, self._clock.now(), 1)
            else:
                self._refused(delivery, error)
        else:
            self._check(arn, delivery.payload, self._clock.now(), 1, result)

    def _refused(self, delivery: _Delivery, error: InvocationError) -> None:
        most, oldest = delivery.policy
        if code := _FINAL.get(error.code):
            self._bury(delivery, code, error.message, None)
            return
        pause = _pause(delivery.attempts, _LONGEST_PAUSE)
        now = self._clock.now()
        if delivery.attempts >= most:
            self._bury(delivery, "ERROR_FROM_TARGET", error.message, "MaximumRetryAttempts")
        elif now + pause - delivery.since > oldest:
            self._bury(delivery, "ERROR_FROM_TARGET", error.message, "MaximumEventAgeInSeconds")
        else:
            again = dataclasses.replace(delivery, attempts=delivery.attempts + 1)
            self._later(pause, lambda: self._attempt(again))

    def _run(self, arn: str, payload: bytes, since: datetime, attempt: int = 1, throttled: int = 0) -> None:
        try:
            result = self._invoke(arn, payload)
        except InvocationError as error:
            if error.code in _FINAL:
                log.error("Lambda discards an event for %s: %s", arn, error.message)
            else:
                self._throttled(arn, payload, since, attempt, throttled)
        else:
            self._check(arn, payload, since, attempt, result)

    def _check(
        self, arn: str, payload: bytes, since: datetime, attempt: int, result: InvocationResult
    ) -> None:
        if result.function_error is None:
            return
        if attempt > len(_FUNCTION_RETRIES):
            log.error("Lambda discards an event for %s: the function failed %d times", arn, attempt)
            return
        self._later(_FUNCTION_RETRIES[attempt - 1], lambda: self._run(arn, payload, since, attempt + 1))

    def _throttled(self, arn: str, payload: bytes, since: datetime, attempt: int, throttled: int = 0) -> None:
        pause = min(timedelta(seconds=2**throttled), _LONGEST_THROTTLE_PAUSE)
        if self._clock.now() + pause - since > _LONGEST_IN_LAMBDA:
            log.error("Lambda discards an event for %s: throttled for 6 hours", arn)
            return
        self._later(pause, lambda: self._run(arn, payload, since, attempt, throttled + 1))

    def _later(self, pause: timedelta, work: Callable[[], None]) -> None:
        self._clock.at(self._clock.now() + pause, lambda: self._workers.submit(work))

    def _bury(self, delivery: _Delivery, code: str, message: str, exhausted: str | None) -> None:
        rule, target = delivery.rule, delivery.target
        queue = target.get("DeadLetterConfig", {}).get("Arn")
        if not queue:
            log.error("EventBridge drops an event for %s: %s", target["Arn"], message)
            return
        attributes = {
            "RULE_ARN": rule.arn,
            "TARGET_ARN": target["Arn"],
            "ERROR_CODE": code,
            "ERROR_MESSAGE": message,
            "RETRY_ATTEMPTS": str(delivery.attempts),
        }
        if exhausted:
            attributes["EXHAUSTED_RETRY_CONDITION"] = exhausted
        arn = parse_arn(queue)
        sqs_backends[arn.account][arn.region].send_message(
            arn.resource_id,
            json.dumps(_visible(delivery.event)),
            message_attributes={
                name: {"data_type": "String", "string_value": value} for name, value in attributes.items()
            },
        )


_deliveries: Deliveries
_plain_send_to_targets = Rule.send_to_targets
_plain_matches_filters = EventPattern._does_item_match_filters


def install(invoke: Invoke, *, clock: Clock | None = None, workers: int = 16) -> Deliveries:
    """Make moto's EventBridge in this process deliver to Lambda targets.

    `invoke` is called at most `workers` times at once. Called again, it replaces the deliveries; the ones
    before are shut down.
    """
    global _deliveries
    if "_deliveries" in globals():
        _deliveries.shutdown()
    _deliveries = Deliveries(invoke, clock or Clock(), workers)
    setattr(Rule, "send_to_targets", _send_to_targets)  # noqa: B010 - mypy forbids assigning to a method
    return _deliveries


def publish(account: str, region: str, event: Event) -> None:
    """Put a service's own event on the default bus, when `install` was called; else nobody listens."""
    if "_deliveries" in globals():
        _deliveries.publish(account, region, event)


def _send_to_targets(self: Any, original_event: Any, transform_input: bool = True) -> None:
    if self.state != "ENABLED" or self.event_pattern.dump() is None or _deliveries.lost(original_event):
        return
    if not self.event_pattern.matches_event(original_event):
        return
    others = []
    for target in self.targets:
        if parse_arn(target["Arn"]).service == "lambda":
            _deliveries.deliver(self, target, original_event)
        else:
            others.append(target)
    if others:
        rest = copy.copy(self)
        rest.targets = others
        _plain_send_to_targets(rest, original_event, transform_input)


def _visible(event: Event) -> Event:
    shown = {key: value for key, value in event.items() if key != "ingestion-time"}
    if not isinstance(shown["time"], str):
        shown["time"] = datetime.fromtimestamp(shown["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return shown


def _target_input(target: dict[str, Any], event: Event) -> Any:
    if "Input" in target:
        return json.loads(target["Input"])
    shown = _visible(event)
    if path := target.get("InputPath"):
        found = jsonpath.parse(path).find(shown)
        return found[0].value if found else None
    if transformer := target.get("InputTransformer"):
        source: Any = {**shown, "ingestion-time": event["ingestion-time"]}
        return EventTemplateParser.parse(
            transformer["InputTemplate"], transformer.get("InputPathsMap", {}), source
        )
    return shown


def _pause(attempts: int, longest: timedelta) -> timedelta:
    return min(timedelta(seconds=2.0**attempts), longest) * random.uniform(0.5, 1)  # noqa: S311 - jitter
