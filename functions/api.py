"""The knock API: REST proxy events in, JSON out. Faces the network, and has no rights on EC2.

API Gateway has checked the key and the route before it calls this function, so a table of (method, resource)
is all the routing here. Errors are application/problem+json (RFC 9457).

The source is `requestContext.identity.sourceIp`, the address API Gateway's connection came from, never a
header. The request context also carries the key's value: no event is logged whole.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from typing import Any

from grants import errors, policy
from grants.errors import (
    EngineUnavailable,
    GrantNotFound,
    InvalidGrant,
    InvalidKnock,
    KnockError,
    NotAllowed,
    StoreRefused,
    StoreUnavailable,
    TooManyGrants,
    Unavailable,
    WrongFamily,
)
from grants.policy import TAG_OPERATOR, Knock, Rights
from grants.refusals import Refusals
from grants.rights import RightsReader
from grants.settings import read_limits, required
from grants.values import (
    ENDS,
    GRANT_ID,
    Event,
    Grant,
    Principal,
    Record,
    State,
    Target,
    requested_at_of,
    show_duration,
    show_second,
    show_time,
)
from grants.wiring import ONCE, WARM, Wiring, count, logger, metrics, now, prepare
from rest.answers import answer, problem, show, show_whole
from rest.closing import Closer, closing_payload
from rest.console import read_page
from rest.requests import (
    FILTERS,
    LARGEST_PAGE,
    Request,
    read_cursor,
    read_knock,
    read_limit,
    read_source,
    read_text,
)

STATUSES = ("live", "all", *ENDS)
OPENS_WITHIN = 5.0  # seconds a knock waits for its ingress before it answers 202
# Seconds between two reads of whether a grant is open. Most open within the first third of a second, where
# authorize is warm, so the first reads are closer together; a person waits half a pause too long on average.
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWS = 0.03, 0.1, 1.3
CLOSES_WITHIN = 2.0  # seconds a DELETE waits for an authorization under way to close what it opened
ENDS_WITHIN = 20.0  # seconds a DELETE /grants spends on ending grants; API Gateway times out after 29
SHOWS_WITHIN = 3.0  # seconds in which Step Functions may not show an execution that has just started
JUST_NOW = timedelta(minutes=2)  # a grant whose id is younger may have an execution, and no record yet


class ApiWiring(Wiring):
    """The clients and settings that only the API needs."""

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
    def closer(self) -> Closer:
        return Closer(self.functions, self.revoke_function, self.closings)

    @cached_property
    def readers(self) -> ThreadPoolExecutor:
        """Give the threads that count live grants and list targets while rights are read."""
        return ThreadPoolExecutor(2)


wiring = cache(ApiWiring)
prepare(lambda: (wiring().rights, wiring().trail, wiring().executions, wiring().closer))


class FailedAfterStart(Exception):
    """A knock fails though its grant has started, or may have: the answer names the grant."""

    def __init__(self, grant_id: str, error: KnockError) -> None:
        super().__init__(str(error))
        self.grant_id = grant_id
        self.error = error


def _read_rights(request: Request) -> Rights:
    """Read the caller's rights. Raises RightsUnavailable, and NotAllowed, which is put on record."""
    try:
        return wiring().rights.of_key(request.key_id)
    except NotAllowed as error:
        _record_refusal(request, Principal(request.key_id, request.key_id), error)
        raise


def _show(record: Record, request: Request) -> dict[str, Any]:
    return show(record, now(), wiring().executions.arn(record.id), request.caller)


def _show_whole(record: Record, request: Request) -> dict[str, Any]:
    return show_whole(record, now(), wiring().executions.arn(record.id), request.caller)


# ---------------------------------------------------------------------------- knocking


def knock(request: Request) -> dict[str, Any]:
    """Start a grant: its execution records it and opens the ingress."""
    requested = read_knock(request.body)
    # All three are read at the same time: a person waits for the slowest, not for their sum.
    counting = wiring().readers.submit(wiring().trail.count_live, request.key_id, now())
    listing = wiring().readers.submit(wiring().rights.targets)
    rights = _read_rights(request)
    targets, faults = listing.result()
    for fault in (*rights.faults, *faults):
        logger.error("unreadable_tag", extra={"fault": fault})
    try:
        grant = policy.decide(
            requested, rights, targets, request.caller, wiring().limits, now(), secrets.token_hex(8)
        )
        renewed = _renewed(requested.renews, request)
        _refuse_excess(rights, counting.result(), renewed)
    except (NotAllowed, InvalidKnock, GrantNotFound, TooManyGrants, WrongFamily) as error:
        _record_refusal(request, rights.principal, error)
        raise
    logger.append_keys(grant_id=grant.id)
    _start(grant)
    logger.info("started", extra={"source": grant.source, "expires_at": show_second(grant.expires_at)})
    return _await_ingress(grant, request, _left_out(requested, rights, targets, grant))


def knock_without_body(request: Request) -> dict[str, Any]:
    """Start a grant with every default, for a client that can only GET. A body is refused."""
    if request.body:
        raise InvalidKnock("body", "a GET has no body: what it asks for would not count; POST it")
    return knock(request)


def _left_out(
    requested: Knock, rights: Rights, targets: Mapping[str, Target], grant: Grant
) -> dict[str, Any]:
    """Name the targets of a knock that its grant is not for: they have no address of the source's family."""
    names = requested.targets or [target.name for target in policy.openable(rights, targets)]
    left_out = sorted(set(names) - {target.name for target in grant.targets})
    return {"left_out": left_out} if left_out else {}


def _renewed(grant_id: str | None, request: Request) -> Record | None:
    """Find the grant that a knock renews. Raises GrantNotFound for one that is not the key's own."""
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
    """Start a grant's execution, and once more after a failure: both starts are one execution.

    If the second fails too, the execution may have started, so its closing is. Raises FailedAfterStart.
    """
    try:
        try:
            wiring().executions.start(grant)
        except EngineUnavailable:
            logger.warning("start_retried", exc_info=True)
            wiring().executions.start(grant)
    except EngineUnavailable as error:
        by = {"id": "", "name": "knock"}
        wiring().closer.start(grant.id, closing_payload("failed", grant.as_input(), by, str(error)))
        detail = f"{error}. If it has started all the same, it is being closed"
        raise FailedAfterStart(grant.id, EngineUnavailable(detail)) from error


def _await_ingress(grant: Grant, request: Request, more: dict[str, Any]) -> dict[str, Any]:
    """Answer 201 once the ingress is open, or 202 after OPENS_WITHIN.

    Raises FailedAfterStart where rules may be left, or what kept the grant from opening.
    """
    deadline, pause = time.monotonic() + OPENS_WITHIN, FIRST_PAUSE
    pending = Record(grant, events=(Event(grant.requested_at, "requested", grant.principal.name),))
    while True:
        time.sleep(pause)
        try:
            record = wiring().trail.get(grant.id) or pending
        except (StoreUnavailable, StoreRefused):
            record = pending  # it has started: a later read may tell whether it is open
        late = time.monotonic() > deadline
        if record.state not in ("live", "expired", "superseded"):
            if record.closed_at or late:  # a failure is answered once no rule is left
                error = _failure(record)
                if record.closed_at and error.status != 503:
                    raise error
                raise FailedAfterStart(grant.id, error)
        elif record.authorized_at:
            return answer(201, _show(record, request) | more)
        if late:
            return answer(202, _show(record, request) | more)
        pause = min(pause * PAUSE_GROWS, LONGEST_PAUSE)


def _failure(record: Record) -> KnockError:
    """Give the error that kept a grant from opening, by the name that the trail has of a failed grant.

    The reason of a revoked grant is a person's text, and no error's name.
    """
    name, _, detail = record.end_reason.partition(": ")
    kind = getattr(errors, name, None) if record.state == "failed" else None
    before_start = (InvalidKnock, NotAllowed)
    if isinstance(kind, type) and issubclass(kind, KnockError) and not issubclass(kind, before_start):
        return kind(detail or name)
    return EngineUnavailable(f"the grant was {record.state} before it was open: {record.end_reason}")


# ---------------------------------------------------------------------------- showing


def list_grants(request: Request) -> dict[str, Any]:
    """List grants, newest first: the key's own grants; for operators, everyone's."""
    rights, query = _read_rights(request), request.query
    status = query.get("status", "live")
    if status not in STATUSES:
        raise InvalidKnock("status", f"status must be one of {', '.join(STATUSES)}")
    page = wiring().trail.page(
        limit=read_limit(query),
        after=read_cursor(query),
        live_after=now() if status == "live" else None,
        state=status if status in ENDS else None,
        **_filters(request, rights),
    )
    after = base64.urlsafe_b64encode(page.after.encode()).decode() if page.after else None
    return answer(200, {"grants": [_show(record, request) for record in page.records], "cursor": after})


def _filters(request: Request, rights: Rights) -> dict[str, str | None]:
    """Read the filters of a list. Raises InvalidKnock, and NotAllowed, which is put on record."""
    principal, source, target = (read_text(request.query, name) for name in FILTERS)
    if principal is not None and not rights.operator:
        error = NotAllowed(TAG_OPERATOR, "only an operator may ask for a principal's grants")
        _record_refusal(request, rights.principal, error)
        raise error
    return {
        "principal_id": None if rights.operator else rights.principal.id,
        "principal_name": principal,
        "source": read_source(source),
        "target": target,
    }


def _find(grant_id: str) -> Record | None:
    """Read a grant from the trail, or, where it is not recorded yet, from its execution.

    Step Functions may not show an execution that has just started, so for a young id it is asked again.
    """
    record = wiring().trail.get(grant_id)
    requested_at = requested_at_of(grant_id)
    if record or requested_at is None:
        return record
    young = abs(now() - requested_at) < JUST_NOW
    deadline, pause = time.monotonic() + SHOWS_WITHIN, 0.2
    while (execution := wiring().executions.describe(grant_id)) is None:
        if not young or time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 1.0)  # ids can be made up: few calls each, since all keys share a quota
    record = wiring().trail.get(grant_id)  # recorded meanwhile, perhaps
    return record or _started(grant_id, execution.status, execution.input)


def _started(grant_id: str, status: str, text: str) -> Record | None:
    """Make a record of an execution that has none: pending while it runs, else ended, with no rules."""
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

    A key needs no rights to show and end its own grants, so none are read for that. Raises GrantNotFound,
    alike for another key's grant and for none.
    """
    record = _find(request.grant_id)
    if record and record.grant.principal.id == request.key_id:
        return record, None
    rights = _read_rights(request)
    if record is None or not rights.operator:
        error = GrantNotFound(f"there is no grant {request.grant_id!r} that this key may see")
        if record:
            _record_refusal(request, rights.principal, error)
        raise error
    return record, rights


def show_grant(request: Request) -> dict[str, Any]:
    """Show one grant and its events."""
    return answer(200, _show_whole(_visible(request)[0], request))


# ---------------------------------------------------------------------------- ending


def end_grant(request: Request) -> dict[str, Any]:
    """End one grant early; answers once its rules are closed. A second call answers the same.

    Needs no right to open: a key may end every grant that it may see.
    """
    reason = read_text(request.query, "reason") or ""
    record, rights = _visible(request)
    if not record.closed_at:
        _end(record, rights.principal if rights else record.grant.principal, reason)
        record = wiring().trail.get(record.id) or record
    return answer(200, _show_whole(record, request))


def end_grants(request: Request) -> dict[str, Any]:
    """End every live grant that matches the filters; for operators.

    Answers with the ended grants, and `more` when time ran out: repeat the call to continue. A grant that
    cannot be closed at once does not keep others from being ended: the answer is then 503, repeat the call.
    """
    reason = read_text(request.query, "reason") or ""
    rights = _read_rights(request)
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
            _end(record, rights.principal, reason)
        except KnockError as error:
            logger.warning("grant_not_closed", extra={"revoked_grant_id": record.id}, exc_info=True)
            failure = failure or error
        else:
            ended.append(_show(wiring().trail.get(record.id) or record, request))
    if failure:
        raise failure
    return answer(200, {"grants": ended, "more": more})


def _end(record: Record, by: Principal, reason: str) -> None:
    """End a grant early; the closings' machine goes on where that fails. Raises what `Closer.close` does."""
    payload = closing_payload("revoked", record.grant.as_input(), by.as_json(), reason)
    wiring().closer.close(record.id, payload, CLOSES_WITHIN)
    logger.info("revoked", extra={"revoked_grant_id": record.id, "by": by.name})


# ---------------------------------------------------------------------------- who am I


def whoami(request: Request) -> dict[str, Any]:
    """Show the caller's principal, source and rights."""
    rights = _read_rights(request)
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
            "targets": [
                target.as_json() | {"families": list(target.families) or None}
                for target in policy.openable(rights, targets)
            ],
            "default_duration": show_duration(default),
            "max_duration": show_duration(longest) if longest else None,
            "any_source": {"ipv4": widths[4], "ipv6": widths[6]} if widths else None,
            "until": show_second(rights.until) if rights.until else None,
            "max_live": policy.max_live(rights, wiring().limits),
            "live": wiring().trail.count_live(request.key_id, now()),
            "operator": rights.operator,
            "faults": list(rights.faults),
        },
    )


def console(_request: Request) -> dict[str, Any]:
    """Serve the console page: one file, no data in it."""
    page, content_policy = read_page()
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": content_policy,
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }
    return answer(200, None, **headers) | {"body": page}


@dataclass(frozen=True, slots=True)
class Route:
    """The handler of a method on a resource, and the query parameters it takes; None ignores all of them."""

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
    """Read an event and call its route's handler. Raises what that raises."""
    route, request = ROUTES[method, resource], Request.read(event)
    if route.query is not None:
        request.only(route.query)
    return route.call(request)


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Answer a request. Every error of Knock's own becomes a problem; any other is a 500 without detail."""
    if event == WARM:
        return {}
    logger.append_keys(request_id=event["requestContext"].get("requestId"), grant_id=None)
    route = (event["httpMethod"], event["resource"])
    try:
        return dispatch(*route, event)
    except FailedAfterStart as failure:
        logger.exception("failed_after_start", extra={"route": " ".join(route)})
        return problem(failure.error, failure.grant_id)
    except Unavailable as error:
        logger.exception("unavailable", extra={"route": " ".join(route)})
        return problem(error)
    except KnockError as error:
        logger.info("refused", extra={"route": " ".join(route), "error": type(error).__name__})
        return problem(error)
    except Exception:  # noqa: BLE001  # the caller gets an answer, the log the trouble
        logger.exception("failed", extra={"route": " ".join(route)})
        return problem(KnockError("this is a fault in Knock; its log says more"))
