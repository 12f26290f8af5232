"""The knock API: REST proxy events in, JSON out. Faces the network, and can touch no EC2.

API Gateway has checked the key and routed the request by the time it is here, so a table of
(method, resource) is all the routing there is. Errors are application/problem+json (RFC 9457).

The source is `requestContext.identity.sourceIp`, the address API Gateway's connection came from, never a
header. The request context also carries the key's value: no event is logged whole.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from grants import errors, policy
from grants.errors import (
    EngineUnavailable,
    GrantNotFound,
    InvalidGrant,
    InvalidKnock,
    KnockError,
    NotAllowed,
    RuleUnsettled,
    StoreRefused,
    StoreUnavailable,
    TooManyGrants,
    Unavailable,
)
from grants.policy import TAG_OPERATOR, Knock, Rights
from grants.refusals import Refusals
from grants.rights import RightsReader
from grants.settings import read_limits, required
from grants.values import (
    ENDS,
    GRANT_ID,
    TARGET_NAME,
    Event,
    Grant,
    Principal,
    Record,
    State,
    canonical_source,
    parse_duration,
    show_duration,
    show_second,
    show_time,
    source_of,
    when_named,
)
from grants.wiring import ONCE, Wiring, count, logger, metrics, now, prepare

MOST_BYTES = 4096
MOST_TARGETS = 50
KNOCK_FIELDS = ("targets", "duration", "source", "reason", "renews")
FILTERS = ("principal", "source", "target")
STATUSES = ("live", "all", *ENDS)
# Characters. 256 of them are 1,024 bytes at most, which is what SimpleDB takes as a value.
LONGEST = {"reason": 256, "principal": 256, "source": 50, "target": 63, "renews": 80}
PAGE, LARGEST_PAGE = 50, 100
CURSOR = re.compile(r"[0-9T:.Z-]{24} [0-9A-Za-z_-]{1,80}", re.ASCII)
TRY_AGAIN_AFTER = 5  # seconds
OPENS_WITHIN = 5.0  # seconds a knock waits for its ingress before it answers 202
SETTLES_WITHIN = 2.0  # seconds a DELETE waits for an authorization under way to close what it opened
ENDS_WITHIN = 20.0  # seconds one DELETE /grants spends on ending grants; API Gateway gives up after 29
SHOWS_WITHIN = 3.0  # seconds in which Step Functions may not show an execution that has just started
JUST_NOW = timedelta(minutes=2)  # a grant named so lately may have an execution, and no record yet


class ApiWiring(Wiring):
    """What only the API needs beside the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = read_limits(os.environ)
        self.revoke_function = required(os.environ, "REVOKE_FUNCTION")

    @cached_property
    def rights(self) -> RightsReader:
        return RightsReader(
            self.client("apigateway"), self.client("resourcegroupstaggingapi"), self.settings.stack, now
        )

    @cached_property
    def refusals(self) -> Refusals:
        return Refusals(self.store(required(os.environ, "REFUSALS_DOMAIN")))

    @cached_property
    def functions(self) -> Any:
        return self.client("lambda", ONCE)

    @cached_property
    def aside(self) -> ThreadPoolExecutor:
        """Give the thread that counts live grants while rights are read."""
        return ThreadPoolExecutor(1)


wiring = cache(ApiWiring)
prepare(lambda: (wiring().rights, wiring().trail, wiring().executions, wiring().functions, wiring().closings))


class Started(Exception):
    """A knock answered with an error though its grant has started, or may have: the answer names it."""

    def __init__(self, grant_id: str, error: KnockError) -> None:
        super().__init__(str(error))
        self.grant_id = grant_id
        self.error = error


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler needs of an event: who calls from where, and what they ask."""

    key_id: str
    caller: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    repeated: tuple[str, ...]
    body: bytes
    call: str = ""

    @classmethod
    def read(cls, event: Mapping[str, Any]) -> Request:
        """Read a REST proxy event.

        https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
        """
        identity = event["requestContext"]["identity"]
        body = event.get("body") or ""
        try:
            raw = base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()
        except (binascii.Error, UnicodeEncodeError) as error:
            raise InvalidKnock("body", "the body is not text") from error
        several: Mapping[str, list[str]] = event.get("multiValueQueryStringParameters") or {}
        return cls(
            identity.get("apiKeyId") or "",
            source_of(identity["sourceIp"]),
            event.get("pathParameters") or {},
            event.get("queryStringParameters") or {},
            tuple(name for name, values in several.items() if len(values) > 1),
            raw,
            f"{event['httpMethod']} {event['resource']}",
        )

    def read_rights(self) -> Rights:
        """Read what the caller's key may do. Raises RightsUnavailable, and NotAllowed, which is recorded."""
        try:
            return wiring().rights.of_key(self.key_id)
        except NotAllowed as error:
            _record_refusal(self, Principal(self.key_id, self.key_id), error)
            raise

    @property
    def grant_id(self) -> str:
        """Read the id in the path. Raises GrantNotFound for what cannot be one."""
        grant_id = self.path.get("id", "")
        if not GRANT_ID.fullmatch(grant_id):
            raise GrantNotFound(f"there is no grant {grant_id[:80]!r} that this key may see")
        return grant_id

    def only(self, known: tuple[str, ...]) -> None:
        """Refuse query parameters that mean nothing here, or come twice: nobody should believe they did."""
        for name in self.query:
            if name not in known:
                takes = f"only {', '.join(known)}" if known else "none"
                raise InvalidKnock(
                    _quotable(name), f"there is no query parameter {name[:40]!r} here; there are {takes}"
                )
        for name in self.repeated:
            raise InvalidKnock(name, f"{name} is given more than once, and one of them would not count")


# ---------------------------------------------------------------------------- answers


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

    `grant_id` names a grant that has started all the same, or may have.
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
    if grant_id:
        body["grant_id"] = grant_id
    headers = {"Content-Type": "application/problem+json"}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(TRY_AGAIN_AFTER)
    return answer(error.status, body, **headers)


def show(record: Record, request: Request) -> dict[str, Any]:
    """Write a grant as the API answers it."""
    at, grant = now(), record.grant
    status = record.status_at(at)
    left = (grant.expires_at - at).total_seconds() if status in ("pending", "active") else 0
    return {
        "id": grant.id,
        "status": status,
        "principal": grant.principal.as_json(),
        "source": grant.source,
        "targets": [target.as_json() for target in grant.targets],
        "requested_at": show_time(grant.requested_at),
        "expires_at": show_second(grant.expires_at),
        "seconds_left": max(0, int(left)),
        "reason": grant.reason or None,
        "renews": grant.renews,
        "ended_at": show_time(record.ended_at) if record.ended_at else None,
        "ended_by": record.ended_by or None,
        "execution_arn": wiring().executions.arn(grant.id),
        "caller": request.caller,
    }


def show_whole(record: Record, request: Request) -> dict[str, Any]:
    """Write a grant with its events, as the single view does."""
    return show(record, request) | {"events": [event.as_json() for event in record.events]}


# ---------------------------------------------------------------------------- reading what is asked


def read_knock(body: bytes) -> Knock:
    """Read the body of a knock; an empty one asks for everything by default. Raises InvalidKnock."""
    if len(body) > MOST_BYTES:
        raise InvalidKnock("body", f"the body has {len(body)} bytes, and {MOST_BYTES} are the most")
    if not body:
        return Knock()
    try:
        asked = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidKnock("body", "the body is not JSON") from error
    if not isinstance(asked, dict):
        raise InvalidKnock("body", "the body must be a JSON object")
    for name in asked:
        if name not in KNOCK_FIELDS:
            raise InvalidKnock(
                _quotable(name), f"there is no field {name[:80]!r}; there are {', '.join(KNOCK_FIELDS)}"
            )
    return Knock(
        _targets(asked.get("targets")),
        _duration(asked.get("duration")),
        _text(asked, "source"),
        _text(asked, "reason") or "",
        _text(asked, "renews") or None,
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a JSON object's pairs; readers of JSON differ on which of two alike counts."""
    asked = dict(pairs)
    if len(asked) < len(pairs):
        raise InvalidKnock("body", "the body names a field twice, and one of them would not count")
    return asked


def _quotable(name: str) -> str:
    """Give a name somebody sent as it may be answered: half a surrogate pair cannot be encoded."""
    return name[:80] if name.isprintable() else "?"


def _targets(asked: object) -> tuple[str, ...] | None:
    if asked is None:
        return None
    if not isinstance(asked, list) or not 1 <= len(asked) <= MOST_TARGETS:
        raise InvalidKnock("targets", f"targets must be a list of 1 to {MOST_TARGETS} target names")
    for name in asked:
        if not isinstance(name, str) or not TARGET_NAME.fullmatch(name):
            raise InvalidKnock("targets", f"{str(name)[:40]!r} is not the name of a target")
    return tuple(asked)


def _duration(asked: object) -> Any:
    if asked is None:
        return None
    try:
        return parse_duration(asked)
    except ValueError as error:
        raise InvalidKnock("duration", str(error)) from error


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    """Read a text. Control characters are refused: SimpleDB cannot give them back as they were."""
    value, longest = asked.get(name), LONGEST[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidKnock(name, f"{name} must be a text")
    if len(value) > longest or not value.isprintable():
        raise InvalidKnock(name, f"{name} must be one line of printable text, {longest} characters at most")
    return value


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(PAGE))
    if not re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII) or int(text) > LARGEST_PAGE:
        raise InvalidKnock("limit", f"limit must be a number from 1 to {LARGEST_PAGE}")
    return int(text)


def _cursor(query: Mapping[str, str]) -> str | None:
    """Read a cursor of ours: the `order` of the last grant of the page before."""
    if "cursor" not in query:
        return None
    try:
        order = base64.urlsafe_b64decode(query["cursor"]).decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise InvalidKnock("cursor", "this is no cursor that GET /grants gave") from error
    if not CURSOR.fullmatch(order):
        raise InvalidKnock("cursor", "this is no cursor that GET /grants gave")
    return order


# ---------------------------------------------------------------------------- knocking


def knock(request: Request) -> dict[str, Any]:
    """Start a grant's execution, which records it and opens the ingress."""
    asked = read_knock(request.body)
    # Both are read at once: how many grants are live must not add to the time a knock takes.
    counted = wiring().aside.submit(wiring().trail.count_live, request.key_id, now())
    rights = request.read_rights()
    targets, faults = wiring().rights.targets()
    for fault in (*rights.faults, *faults):
        logger.error("tag_cannot_be_read", extra={"fault": fault})
    try:
        grant = policy.decide(
            asked, rights, targets, request.caller, wiring().limits, now(), secrets.token_hex(8)
        )
        renewed = _renewed(asked.renews, request)
        _refuse_excess(rights, counted.result(), renewed)
    except (NotAllowed, InvalidKnock, GrantNotFound, TooManyGrants) as error:
        _record_refusal(request, rights.principal, error)
        raise
    logger.append_keys(grant_id=grant.id)
    _start(grant)
    logger.info("started", extra={"source": grant.source, "expires_at": show_second(grant.expires_at)})
    return _await_ingress(grant, request)


def knock_without_body(request: Request) -> dict[str, Any]:
    """Start a grant for a client that can only GET: everything by default. Raises InvalidKnock for a body."""
    if request.body:
        raise InvalidKnock("body", "a GET has no body: what it asks for would not count; POST it")
    return knock(request)


def _renewed(grant_id: str | None, request: Request) -> Record | None:
    """Find the grant that a knock renews: the key's own. Raises GrantNotFound for another's."""
    if grant_id is None:
        return None
    record = _find(grant_id) if GRANT_ID.fullmatch(grant_id) else None
    if record is None or record.grant.principal.id != request.key_id:
        raise GrantNotFound(f"renews: there is no grant {grant_id!r} of this key")
    return record


def _refuse_excess(rights: Rights, live: int, renewed: Record | None) -> None:
    """Raise TooManyGrants where the key holds as many as it may, naming some to end."""
    at = now()
    most = policy.max_live(rights, wiring().limits)
    live -= bool(renewed and renewed.live_at(at))
    names: list[str] = []
    if live >= most:
        page = wiring().trail.page(limit=6, live_after=at, principal_id=rights.principal.id)
        names = [record.id for record in page.records if not renewed or record.id != renewed.id]
    policy.refuse_excess(rights, wiring().limits, live, names)


def _record_refusal(request: Request, principal: Principal, error: KnockError) -> None:
    """Put a refusal on record. Raises StoreUnavailable, StoreRefused."""
    at = now()
    count("Refusal")
    right = error.right if isinstance(error, NotAllowed) else ""
    logger.info("refused", extra={"principal": principal.name, "right": right, "detail": str(error)})
    refusal_id = f"refusal_{show_time(at)}_{secrets.token_hex(4)}"
    wiring().refusals.record(refusal_id, principal, request.caller, at, request.call, right, str(error))


def _start(grant: Grant) -> None:
    """Start a grant's execution; one that got no answer is tried again, which is the same one.

    If that fails too it may have started all the same, so it is asked to be closed. Raises Started.
    """
    try:
        try:
            wiring().executions.start(grant)
        except EngineUnavailable:
            logger.warning("start_tried_again", exc_info=True)
            wiring().executions.start(grant)
    except EngineUnavailable as error:
        closing = _payload("failed", grant.as_input(), {"id": "", "name": "knock"}, str(error))
        try:
            wiring().closings.start(grant.id, closing)
        except EngineUnavailable:
            logger.exception("closing_not_started")
        said = f"{error}. If it has started all the same, it is being closed"
        raise Started(grant.id, EngineUnavailable(said)) from error


def _await_ingress(asked: Grant, request: Request) -> dict[str, Any]:
    """Answer 201 once the ingress is open, 202 when that takes longer, or how it failed. Raises Started."""
    deadline, pause = time.monotonic() + OPENS_WITHIN, 0.03
    pending = Record(asked, events=(Event(asked.requested_at, "requested", asked.principal.name),))
    while True:
        time.sleep(pause)
        try:
            record = wiring().trail.get(asked.id) or pending
        except (StoreUnavailable, StoreRefused):
            record = pending  # it has started: whether it is open yet, a later look may tell
        late = time.monotonic() > deadline
        if record.state not in ("live", "expired", "superseded"):
            if record.closed_at or late:  # a caller who is told "no" finds nothing left behind
                error = _failure(record)
                if record.closed_at and error.status != 503:
                    raise error
                raise Started(asked.id, error)
        elif record.authorized_at:
            return answer(201, show(record, request))
        if late:
            return answer(202, show(record, request))
        pause = min(pause * 1.3, 0.4)


def _failure(record: Record) -> KnockError:
    """Say why a grant did not open, by the error's name that the trail recorded of one that failed.

    The reason of one that was revoked is somebody's own words, and no error's name.
    """
    name, _, detail = record.end_reason.partition(": ")
    known = getattr(errors, name, None) if record.state == "failed" else None
    said_before_it_began = (InvalidKnock, NotAllowed)
    if (
        isinstance(known, type)
        and issubclass(known, KnockError)
        and not issubclass(known, said_before_it_began)
    ):
        return known(detail or name)
    return EngineUnavailable(f"the grant was {record.state} before it was open: {record.end_reason}")


# ---------------------------------------------------------------------------- showing


def list_grants(request: Request) -> dict[str, Any]:
    """List grants, newest first: the key's own; for operators, everyone's."""
    rights, query = request.read_rights(), request.query
    status = query.get("status", "live")
    if status not in STATUSES:
        raise InvalidKnock("status", f"status must be one of {', '.join(STATUSES)}")
    page = wiring().trail.page(
        limit=_limit(query),
        after=_cursor(query),
        live_after=now() if status == "live" else None,
        state=status if status in ENDS else None,
        **_filters(request, rights),
    )
    after = base64.urlsafe_b64encode(page.after.encode()).decode() if page.after else None
    return answer(200, {"grants": [show(record, request) for record in page.records], "cursor": after})


def _filters(request: Request, rights: Rights) -> dict[str, str | None]:
    """Read whose grants, and which. Raises InvalidKnock, and NotAllowed, which is put on record."""
    principal, source, target = (_text(request.query, name) for name in FILTERS)
    if principal is not None and not rights.operator:
        error = NotAllowed(TAG_OPERATOR, "only an operator may ask for a principal's grants")
        _record_refusal(request, rights.principal, error)
        raise error
    return {
        "principal_id": None if rights.operator else rights.principal.id,
        "principal_name": principal,
        "source": _source(source),
        "target": target,
    }


def _source(text: str | None) -> str | None:
    """Read a source in any form as its canonical CIDR. Raises InvalidKnock."""
    try:
        return canonical_source(text) if text is not None else None
    except ValueError as error:
        raise InvalidKnock("source", f"a CIDR or an address was expected: {error}"[:300]) from error


def _find(grant_id: str) -> Record | None:
    """Read a grant from the trail, or, where it is not recorded yet, from its execution.

    Step Functions may not show an execution that has just started, so a grant named lately is asked for
    again.
    """
    record = wiring().trail.get(grant_id)
    named = when_named(grant_id)
    if record or named is None:
        return record
    lately = abs(now() - named) < JUST_NOW
    deadline = time.monotonic() + SHOWS_WITHIN
    while (execution := wiring().executions.describe(grant_id)) is None:
        if not lately or time.monotonic() > deadline:
            return None
        time.sleep(0.2)
    record = wiring().trail.get(grant_id)  # recorded meanwhile, perhaps
    return record or _started(grant_id, execution.status, execution.input)


def _started(grant_id: str, status: str, text: str) -> Record | None:
    """Make a record of an execution that has none: pending while it runs, else over, with nothing open."""
    try:
        grant = Grant.from_input(json.loads(text))
    except (ValueError, InvalidGrant):
        return None
    if grant.id != grant_id:
        return None
    state: State = {"RUNNING": "live", "ABORTED": "revoked"}.get(status, "failed")  # type: ignore[assignment]
    return Record(grant, state, events=(Event(grant.requested_at, "requested", grant.principal.name),))


def _visible(request: Request) -> tuple[Record, Rights | None]:
    """Find the grant in the path, if the caller may see it: the key's own, or any for an operator.

    Showing and ending one's own grant needs no rights, so none are read for it. Raises GrantNotFound, which
    does not tell another's grant from none.
    """
    record = _find(request.grant_id)
    if record and record.grant.principal.id == request.key_id:
        return record, None
    rights = request.read_rights()
    if record is None or not rights.operator:
        error = GrantNotFound(f"there is no grant {request.grant_id!r} that this key may see")
        if record:
            _record_refusal(request, rights.principal, error)
        raise error
    return record, rights


def show_grant(request: Request) -> dict[str, Any]:
    """Show one grant and its events."""
    return answer(200, show_whole(_visible(request)[0], request))


# ---------------------------------------------------------------------------- ending


def end_grant(request: Request) -> dict[str, Any]:
    """End one grant early; answers after its rules are gone. The second time answers the same.

    What the key may open today does not matter: a key may end what it may see.
    """
    reason = _text(request.query, "reason") or ""
    record, rights = _visible(request)
    if not record.closed_at:
        _end(record, rights.principal.as_json() if rights else record.grant.principal.as_json(), reason)
        record = wiring().trail.get(record.id) or record
    return answer(200, show_whole(record, request))


def end_grants(request: Request) -> dict[str, Any]:
    """End every live grant that matches: for an operator whose colleague lost a laptop.

    Answers with the ended grants, and `more` when time ran out: the same call goes on. One that cannot be
    closed at once keeps no other from being ended; the answer is then its 503, and the same call goes on too.
    """
    reason = _text(request.query, "reason") or ""
    rights = request.read_rights()
    if not rights.operator:
        error = NotAllowed(TAG_OPERATOR, "only an operator may end grants by a filter")
        _record_refusal(request, rights.principal, error)
        raise error
    filters = _filters(request, rights)
    if not any(filters.values()):
        raise InvalidKnock("principal", "say whose grants to end: by principal, source or target")
    deadline = time.monotonic() + ENDS_WITHIN
    ended: list[dict[str, Any]] = []
    failure: KnockError | None = None
    page = wiring().trail.page(limit=LARGEST_PAGE, live_after=now(), **filters)
    more = page.after is not None
    for record in page.records:
        if time.monotonic() > deadline:
            more = True
            break
        try:
            _end(record, rights.principal.as_json(), reason)
        except KnockError as error:
            logger.warning("grant_not_closed", extra={"revoked_grant_id": record.id}, exc_info=True)
            failure = failure or error
        else:
            ended.append(show(wiring().trail.get(record.id) or record, request))
    if failure:
        raise failure
    return answer(200, {"grants": ended, "more": more})


def _payload(how: str, grant: dict[str, Any], by: dict[str, str], reason: str) -> dict[str, Any]:
    """Write what the revoke function and the closings' machine are called with.

    `request` names this request, so that its second try knows the first one's writing.
    """
    return {"how": how, "grant": grant, "by": by, "reason": reason, "request": secrets.token_hex(8)}


def _end(record: Record, by: dict[str, str], reason: str) -> None:
    """Close a grant by the revoke function, which stops its execution too.

    What it cannot finish now goes on in the closings' machine, for as long as it takes: the client may not
    retry.
    """
    payload = _payload("revoked", record.grant.as_input(), by, reason)
    deadline = time.monotonic() + SETTLES_WITHIN
    try:
        while not _invoke_revoke(payload, patient=time.monotonic() < deadline):
            time.sleep(0.3)
    except KnockError:
        try:
            wiring().closings.start(record.id, payload)
        except EngineUnavailable:
            logger.exception("closing_not_started", extra={"grant_id": record.id})
        raise
    logger.info("revoked", extra={"revoked_grant_id": record.id, "by": by["name"]})


def _invoke_revoke(payload: dict[str, Any], *, patient: bool) -> bool:
    """Run the revoke function. False, if `patient`: an authorization is under way, and soon hears of this."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        said = wiring().functions.invoke(FunctionName=wiring().revoke_function, Payload=json.dumps(payload))
    except (ClientError, BotoCoreError) as error:
        raise EngineUnavailable(f"the revoke function did not answer: {type(error).__name__}") from error
    if said.get("FunctionError"):
        failure = json.loads(said["Payload"].read())
        name, detail = failure.get("errorType", ""), failure.get("errorMessage", "")
        known = getattr(errors, name, None)
        if known is RuleUnsettled and patient:
            return False
        if isinstance(known, type) and issubclass(known, Unavailable):
            raise known(f"the grant has ended, and its rules are being closed: {detail}")
        raise EngineUnavailable(f"the revoke function failed, and goes on trying: {name}")
    return True


# ---------------------------------------------------------------------------- who am I


def whoami(request: Request) -> dict[str, Any]:
    """Tell a person who they are to Knock, and what they may do."""
    rights = request.read_rights()
    targets, _ = wiring().rights.targets()
    default = wiring().limits.default_duration
    try:
        longest = policy.longest_duration(rights, wiring().limits)
        default = min(default, longest)
    except NotAllowed:
        longest = None
    widths = rights.any_source
    return answer(
        200,
        {
            "principal": rights.principal.as_json(),
            "source": request.caller,
            "targets": [target.as_json() for target in policy.openable(rights, targets)],
            "default_duration": show_duration(default),
            "max_duration": show_duration(longest) if longest else None,
            "any_source": {"ipv4": widths[4], "ipv6": widths[6]} if widths else None,
            "max_live": policy.max_live(rights, wiring().limits),
            "live": wiring().trail.count_live(request.key_id, now()),
            "operator": rights.operator,
            "faults": list(rights.faults),
        },
    )


# ---------------------------------------------------------------------------- the console page


def console(_request: Request) -> dict[str, Any]:
    """Serve the console page: one file, no data in it."""
    page, content_policy = _console()
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": content_policy,
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }
    return answer(200, None, **headers) | {"body": page}


@cache
def _console() -> tuple[str, str]:
    """Read the page, and write the policy under which its own script and style run, and nothing else.

    By hashes and not by nonces: the file is then served byte for byte, and a stolen nonce cannot exist.
    Trusted types make the browser refuse every string that would become markup.
    """
    page = Path(__file__).with_name("console.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    directives = (
        "default-src 'none'",
        f"script-src {hashes('script')}",
        f"style-src {hashes('style')}",
        "img-src data:",  # the icon
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return page, "; ".join(directives)


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method on a resource, and the query parameters it takes; None passes over them all."""

    call: Callable[[Request], dict[str, Any]]
    query: tuple[str, ...] | None = ()


ROUTES: dict[tuple[str, str], Route] = {
    ("POST", "/knock"): Route(knock),
    ("GET", "/knock"): Route(knock_without_body),
    ("GET", "/grants"): Route(list_grants, ("status", "limit", "cursor", *FILTERS)),
    ("DELETE", "/grants"): Route(end_grants, (*FILTERS, "reason")),
    ("GET", "/grants/{id}"): Route(show_grant),
    ("DELETE", "/grants/{id}"): Route(end_grant, ("reason",)),
    ("GET", "/whoami"): Route(whoami),
    ("GET", "/console"): Route(console, None),
}


def dispatch(method: str, resource: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Read an event and have its route answer it. Raises what the call does."""
    route, request = ROUTES[method, resource], Request.read(event)
    if route.query is not None:
        request.only(route.query)
    return route.call(request)


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Answer one request. Every error of Knock's own becomes a problem; any other is a 500 without detail."""
    logger.append_keys(request_id=event["requestContext"].get("requestId"), grant_id=None)
    route = (event["httpMethod"], event["resource"])
    try:
        return dispatch(*route, event)
    except Started as known:
        logger.exception("started_and_failed", extra={"route": " ".join(route)})
        return problem(known.error, known.grant_id)
    except Unavailable as error:
        logger.exception("unavailable", extra={"route": " ".join(route)})
        return problem(error)
    except KnockError as error:
        logger.info("refused", extra={"route": " ".join(route), "error": type(error).__name__})
        return problem(error)
    except Exception:  # noqa: BLE001  # the caller gets an answer, the log the trouble
        logger.exception("failed", extra={"route": " ".join(route)})
        return problem(KnockError("this is a fault of Knock's; its log says more"))
