"""EventBridge with deliveries to functions and state machines, with retries and dead-letter queues.

moto 5.2.5 matches events to rules and then raises for a function or a state machine. Here an event that
matches is put on Lambda's queue, or starts an execution, as on EventBridge: on threads of its own, after
PutEvents has answered. When the target refuses (`InvocationError`: no such function, no permission, an error
of the service), the target's RetryPolicy and then its DeadLetterConfig apply
(https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-event-delivery.html); pauses are on the
engine's clock. EventBridge never learns of a failure after that: a function's is handled by Lambda's queue
(`local.lambdas.Runtime.invoke_later`), an execution's by Step Functions.

    deliveries = install(runtime.invoke_later, clock=clock)
    deliveries.drop(lambda event: event["detail"]["status"] == "ABORTED")   # loses these events

It also mends moto's matching, each fault in a function of its own below, against
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-create-pattern-operators.html.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

from moto.core.exceptions import AWSError, ServiceException
from moto.events.exceptions import InvalidEventPatternException, ValidationException
from moto.events.models import (
    UNDEFINED,
    EventPattern,
    EventPatternParser,
    EventsBackend,
    Rule,
    events_backends,
)
from moto.sqs.models import sqs_backends
from moto.stepfunctions.exceptions import ExecutionAlreadyExists
from moto.stepfunctions.parser.models import stepfunctions_parser_backends
from moto.utilities.arns import parse_arn

from local.clock import Clock
from local.invocation import InvocationError, Workers

__all__ = ["Deliveries", "install"]

log = logging.getLogger(__name__)

Event = dict[str, Any]

InvokeLater = Callable[[str, bytes], object]
"""Puts a payload (JSON) on a function's queue, by ARN; raises InvocationError when Lambda refuses."""

StartExecution = Callable[[str, str, bytes], object]
"""Starts an execution: the machine's ARN, its name, the input (JSON); raises InvocationError when refused.

A second start with the same name and input does nothing, also after the execution has ended."""

_DELIVERIES_AT_ONCE = 16
_LONGEST_PAUSE = timedelta(minutes=10)  # AWS says "exponential back off and jitter" and gives no figures

_DELIVERED_HERE = ("lambda", "states")  # services of targets; all others are moto's

# Errors that EventBridge does not retry: the target's error code, and EventBridge's own.
_FINAL = {
    "ResourceNotFoundException": "NO_RESOURCE",
    "StateMachineDoesNotExist": "NO_RESOURCE",
    "AccessDeniedException": "NO_PERMISSIONS",
    "InvalidParameterValueException": "INVALID_PARAMETER",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Delivery:
    """One event for one target. Each attempt starts an execution under the same `name`."""

    rule_arn: str
    target: dict[str, Any]
    event: Event
    payload: bytes
    since: datetime
    name: str
    retries: int = 0


class Deliveries:
    """Delivers events of rules to Lambda's queue and to state machines. Created by `install`."""

    def __init__(self, invoke_later: InvokeLater, start_execution: StartExecution, clock: Clock) -> None:
        self._invoke_later = invoke_later
        self._start_execution = start_execution
        self._clock = clock
        self._workers = Workers("delivery", _DELIVERIES_AT_ONCE)
        self._lost: Callable[[Event], bool] = lambda _: False

    def drop(self, predicate: Callable[[Event], bool]) -> None:
        """Lose the events that the predicate is true for, from now on; `lambda event: False` loses none."""
        self._lost = predicate

    def publish(self, account: str, region: str, event: Event) -> None:
        """Put a service's own event on the default bus; returns before it is delivered.

        The event has its source, detail-type, resources and detail; the rest is filled in.
        """
        self._workers.submit(lambda: self._route(account, region, event))

    def send(self, rule: Rule, event: Event, transform_input: bool = True) -> None:
        """Send an event to each of a rule's targets, if it matches.

        Returns before it is delivered to a function or a state machine.
        """
        if self._lost(event) or not _applies(rule, event):
            return
        moto_targets = []
        for target in rule.targets:
            if parse_arn(target["Arn"]).service in _DELIVERED_HERE:
                self.deliver(rule.arn, target, event)
            else:
                moto_targets.append(target)
        if moto_targets:
            rest_of_rule = copy.copy(rule)
            rest_of_rule.targets = moto_targets
            _plain_send_to_targets(rest_of_rule, event, transform_input)

    def deliver(self, rule_arn: str, target: Mapping[str, Any], event: Event) -> None:
        """Queue an event for a function or a state machine, in the form that the target asks for."""
        payload = json.dumps(_target_input(target, event)).encode()
        name = f"{event['id']}_{uuid4()}"
        delivery = _Delivery(rule_arn, dict(target), event, payload, self._clock.now(), name)
        self._workers.submit(lambda: self._attempt(delivery))

    def shutdown(self) -> None:
        """Drop the events that are not delivered yet, and all later ones; a second call does nothing."""
        self._lost = lambda _: True
        self._workers.close()

    def _route(self, account: str, region: str, event: Event) -> None:
        now = self._clock.now()
        complete = {
            "version": "0",
            "id": str(uuid4()),
            "account": account,
            "time": now.timestamp(),
            "region": region,
            "ingestion-time": now.timestamp(),
            **event,
        }
        for rule in list(events_backends[account][region].event_buses["default"].rules.values()):
            try:
                self.send(rule, copy.deepcopy(complete))
            except Exception:
                log.exception("rule %s could not send an event to its targets", rule.name)

    def _attempt(self, delivery: _Delivery) -> None:
        arn = delivery.target["Arn"]
        try:
            if parse_arn(arn).service == "states":
                self._start_execution(arn, delivery.name, delivery.payload)
            else:
                self._invoke_later(arn, delivery.payload)
        except InvocationError as error:
            self._retry_or_bury(delivery, error)

    def _retry_or_bury(self, delivery: _Delivery, error: InvocationError) -> None:
        policy = delivery.target.get("RetryPolicy", {})
        oldest = timedelta(seconds=policy.get("MaximumEventAgeInSeconds", 86400))
        now = self._clock.now()
        pause = min(timedelta(seconds=2.0**delivery.retries), _LONGEST_PAUSE)
        pause *= random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
        if code := _FINAL.get(error.code):
            self._bury(delivery, code, error.message, None)
        elif delivery.retries >= policy.get("MaximumRetryAttempts", 185):
            self._bury(delivery, "ERROR_FROM_TARGET", error.message, "MaximumRetryAttempts")
        elif now + pause - delivery.since > oldest:
            self._bury(delivery, "ERROR_FROM_TARGET", error.message, "MaximumEventAgeInSeconds")
        else:
            next_attempt = dataclasses.replace(delivery, retries=delivery.retries + 1)
            self._clock.at(now + pause, lambda: self._workers.submit(lambda: self._attempt(next_attempt)))

    def _bury(self, delivery: _Delivery, code: str, message: str, exhausted: str | None) -> None:
        queue = delivery.target.get("DeadLetterConfig", {}).get("Arn")
        if queue is None:
            log.error("EventBridge drops an event for %s: %s: %s", delivery.target["Arn"], code, message)
            return
        attributes = {
            "RULE_ARN": delivery.rule_arn,
            "TARGET_ARN": delivery.target["Arn"],
            "ERROR_CODE": code,
            "ERROR_MESSAGE": message,
            "RETRY_ATTEMPTS": str(delivery.retries),
        }
        if exhausted:
            attributes["EXHAUSTED_RETRY_CONDITION"] = exhausted
        arn = parse_arn(queue)
        sqs_backends[arn.account][arn.region].send_message(
            arn.resource_id,
            json.dumps(_visible(delivery.event)),
            message_attributes={
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            },
        )


_deliveries: Deliveries
_plain_send_to_targets: Callable[..., None] = Rule.send_to_targets
_plain_put_targets: Callable[..., None] = EventsBackend.put_targets
_plain_validate_pattern: Callable[..., None] = EventPatternParser._validate_event_pattern


def _start_here(arn: str, name: str, payload: bytes) -> None:
    """Start an execution on moto's Step Functions, in this process."""
    place = parse_arn(arn)
    try:
        stepfunctions_parser_backends[place.account][place.region].start_execution(
            arn, name, payload.decode()
        )
    except ExecutionAlreadyExists:
        pass
    except AWSError as error:
        raise InvocationError(error.TYPE or "", error.message) from error
    except ServiceException as error:
        raise InvocationError(error.code, error.message) from error


def install(
    invoke_later: InvokeLater,
    start_execution: StartExecution = _start_here,
    *,
    clock: Clock | None = None,
) -> Deliveries:
    """Make moto's EventBridge in this process deliver to functions and state machines.

    A second call shuts the deliveries down and creates others. Works for `mock_aws` and for a moto server in
    this process.
    """
    global _deliveries
    if "_deliveries" in globals():
        _deliveries.shutdown()
    _deliveries = Deliveries(invoke_later, start_execution, clock or Clock())
    for owner, name, mended in (
        (EventsBackend, "put_targets", _put_targets),
        (Rule, "send_to_targets", _send_to_targets),
        (EventPattern, "matches_event", _matches_event),
        (EventPatternParser, "_validate_event_pattern", _validate_pattern),
    ):
        setattr(owner, name, mended)
    return _deliveries


def _send_to_targets(self: Rule, original_event: Event, transform_input: bool = True) -> None:
    """Deliver to functions and state machines; moto raises NotImplementedError for them, out of PutEvents."""
    _deliveries.send(self, original_event, transform_input)


def _put_targets(
    self: EventsBackend, name: str, event_bus_arn: str | None, targets: list[dict[str, Any]]
) -> None:
    """Refuse a state machine without the role to start it under, which moto accepts.

    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-identity-based.html#eb-target-permissions
    Refuse as well the ways to make an input that `_target_input` does not have.
    """
    for target in targets:
        arn = target["Arn"]
        if ":states:" in arn and not target.get("RoleArn"):
            raise ValidationException(f"RoleArn is required for target {arn}.")
        for transformation in ("InputPath", "InputTransformer"):
            if transformation in target and parse_arn(arn).service in _DELIVERED_HERE:
                raise ValidationException(
                    f"Target {arn} has an {transformation}, which the local stack does not support."
                )
    _plain_put_targets(self, name, event_bus_arn, targets)


def _validate_pattern(self: EventPatternParser, pattern: dict[str, Any]) -> None:
    """Refuse `$or`, which `_matches` does not have. moto calls this for each object of a pattern."""
    if "$or" in pattern:
        raise InvalidEventPatternException(reason="the local stack does not support $or")
    _plain_validate_pattern(self, pattern)


def _applies(rule: Rule, event: Event) -> bool:
    """Whether a rule is for an event. moto ignores that a rule is disabled, and sends every event to a rule
    that has a schedule and no pattern.
    """
    has_pattern = rule.event_pattern.dump() is not None
    return rule.state == "ENABLED" and has_pattern and rule.event_pattern.matches_event(cast("Any", event))


def _matches_event(self: EventPattern, event: Event) -> bool:
    """Match a pattern against arrays of objects too, and tell true from 1; moto does neither.

    In an array, a single element has to match the whole pattern. Named filters (prefix, numeric, ...) are
    moto's.
    """
    return _matches(json.loads(json.dumps(event)), self.get_pattern())


def _matches(node: Any, pattern: dict[str, Any]) -> bool:
    if isinstance(node, list):
        return any(_matches(element, pattern) for element in node)
    fields = node if isinstance(node, dict) else {}
    for key, expected in pattern.items():
        if isinstance(expected, dict):
            matched = _matches(fields.get(key), expected)
        else:
            matched = any(_matches_filter(fields.get(key, UNDEFINED), filter_) for filter_ in expected)
        if not matched:
            return False
    return True


def _matches_filter(value: Any, filter_: Any) -> bool:
    if isinstance(filter_, dict):
        return EventPattern._does_item_match_named_filter(value, filter_)
    values = value if isinstance(value, list) else [value]
    return any(
        element == filter_ and isinstance(element, bool) == isinstance(filter_, bool) for element in values
    )


def _visible(event: Event) -> Event:
    """Return the event as a target sees it."""
    visible = {key: value for key, value in event.items() if key != "ingestion-time"}
    if not isinstance(visible["time"], str):
        visible["time"] = datetime.fromtimestamp(visible["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return visible


def _target_input(target: Mapping[str, Any], event: Event) -> Any:
    """Return a target's input: its own Input, or the whole event.

    https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_Target.html
    """
    return json.loads(target["Input"]) if "Input" in target else _visible(event)
