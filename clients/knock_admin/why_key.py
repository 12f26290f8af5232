"""`knock-admin why NAME`: everything that decides whether this person gets in, in order, with the first "no".

    the key      is there, enabled, in the usage plan, has quota left, and has not ended
    its rights   can be read, and name targets, a time, and room for another grant
    each target  exists, has room, is attached to something, and has an address of the source's family
    what is      its live grants, and its last refusals
    the gateway  what it refused by itself, in the access log, where that can be asked

Each line is `ok`, `warn` or `no`. A question that may not be asked, for want of a permission, is a `warn` and
the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from knock_admin import inside, keys, tags, targets, trail
from knock_admin.errors import AdminError, Unreachable, code_of, translated
from knock_admin.output import Result, count, table, visible
from knock_admin.stores import equal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knock_admin.stack import Stack

REFUSALS = 5
"""The last ones, which are shown."""
LOGGED = 100
"""As many are counted there."""
LOG_DAYS = timedelta(days=1)
"""How far back the gateway's log is asked."""


@dataclass(frozen=True)
class Answer:
    """One thing that decides: `ok`, `warn` or `no`."""

    level: str
    what: str
    detail: str


def key(stack: Stack, name: str, *, source: str | None, now: datetime) -> Result:
    """Say of a key, by name or id, whether its holder gets in. Exit code 1 when something says no."""
    found, in_plan = _found(stack, name)
    answers: list[Answer] = []
    for each in found:
        steps: tuple[Callable[[], Iterator[Answer]], ...] = (
            lambda each=each: _of_key(stack, each, now, in_plan=in_plan),  # type: ignore[misc]
            lambda each=each: _quota(stack, each, now),  # type: ignore[misc]
            lambda each=each: _rights(stack, each, now),  # type: ignore[misc]
            lambda each=each: _targets(stack, each, source),  # type: ignore[misc]
            lambda each=each: _refusals(stack, each),  # type: ignore[misc]
            lambda each=each: _gateway(stack, each, now),  # type: ignore[misc]
        )
        for step in steps:
            answers += _asked(stack, step)
    first = next((answer for answer in answers if answer.level == "no"), None)
    verdict = f"The first no: {first.what}: {first.detail}" if first else "Nothing here says no."
    live = inside.told_of_keys(stack, [each.id for each in found], now)
    lines = [
        *table(
            [(answer.level, answer.what, answer.detail) for answer in answers], ("", "WHAT", "WHAT IT IS")
        ),
        "",
        verdict,
    ]
    if live:
        lines += ["", "In now:", *inside.who(live, now)]
    elif live is None:
        lines += ["", "Who is in now is not known."]
    data = {
        "answers": [{"level": a.level, "what": a.what, "detail": a.detail} for a in answers],
        "first_no": first and {"what": first.what, "detail": first.detail},
        "live": None if live is None else [entry.as_json(now) for entry in live],
    }
    return Result(data, lines, exit_code=1 if first else 0)


def _found(stack: Stack, name: str) -> tuple[list[keys.Key], bool]:
    """Find keys by name or id: those in the usage plan or, where there is none, others; and say which they
    are.

    Raises AdminError where there is none at all.
    """
    listing = keys.look(stack)
    found = [each for each in listing.inside if name in (each.id, each.name, each.recorded_name)]
    if found:
        return found, True
    outside = [
        each
        for each in listing.outside
        if name in (each.id, each.name) and each.tags.get(tags.STACK, stack.name) == stack.name
    ]
    if not outside:
        raise keys.no_key(stack, name)
    return outside, False


def _asked(stack: Stack, step: Callable[[], Iterator[Answer]]) -> list[Answer]:
    """Ask one question; what stops it is an answer of its own. Raises Unreachable."""
    answers: list[Answer] = []
    try:
        answers.extend(step())
    except AdminError as error:
        answers.append(Answer("warn", "could not be asked", str(error)))
    except (ClientError, BotoCoreError) as error:
        failure = translated(error, stack.aws.calls.last)
        if isinstance(failure, Unreachable):
            raise failure from error
        answers.append(Answer("warn", "could not be asked", str(failure).replace("\n", " ")))
    return answers


def _of_key(stack: Stack, each: keys.Key, now: datetime, *, in_plan: bool) -> Iterator[Answer]:
    who = each.who
    if not each.enabled:
        yield Answer(
            "no", "key", f"{who} is disabled; `knock-admin key enable {each.id}` lets it knock again"
        )
    elif not in_plan:
        yield Answer(
            "no",
            "key",
            f"{who} is not in the usage plan {stack.plan['name']}, so the gateway refuses it; "
            f"`knock-admin key add {visible(each.name)}` completes one that was begun",
        )
    else:
        yield Answer("ok", "key", f"{who} is enabled, and in the usage plan {stack.plan['name']}")
    if each.until and each.until <= now:
        yield Answer(
            "no", "until", f"it was good until {each.tags[tags.UNTIL]}; `key set --until` gives it more"
        )
    elif each.until:
        yield Answer("ok", "until", f"it is good until {each.tags[tags.UNTIL]}")
    if each.retires_at and each.retires_at <= now:
        yield Answer("warn", "rotation", f"its successor is there since before {each.tags[tags.RETIRES_AT]}")


def _quota(stack: Stack, each: keys.Key, now: datetime) -> Iterator[Answer]:
    """Ask how many requests it has left today.
    https://docs.aws.amazon.com/apigateway/latest/api/API_GetUsage.html
    """
    plan = stack.plan
    if not plan.get("quota"):
        return
    period = plan["quota"]["period"].lower()
    day = now.strftime("%Y-%m-%d")
    usage = stack.aws.client("apigateway").get_usage(
        usagePlanId=plan["id"], keyId=each.id, startDate=day, endDate=day
    )
    days = usage.get("items", {}).get(each.id) or []
    used, left = days[-1] if days else (0, plan["quota"]["limit"])
    detail = f"it has made {count(used, 'request')} of this {period}'s {plan['quota']['limit']}"
    yield Answer("no" if left <= 0 else "ok", "quota", detail)


def _rights(stack: Stack, each: keys.Key, now: datetime) -> Iterator[Answer]:
    for fault in keys.faults_of(each):
        yield Answer("no", "rights", f"{fault}; it gives no right")
    if tags.TARGETS not in each.tags:
        yield Answer("no", "rights", f"it has no tag {tags.TARGETS}, so it may open nothing")
    if tags.MAX_DURATION not in each.tags:
        yield Answer(
            "no", "rights", f"it has no tag {tags.MAX_DURATION}, so it may open nothing for any time"
        )
    most = int(each.tags.get(tags.MAX_LIVE) or stack.setting("MAX_LIVE"))
    held = len(inside.of_keys(stack, [each.id], now))
    detail = f"it holds {count(held, 'live grant')}, and may hold {most}"
    yield Answer("no" if held >= most else "ok", "live grants", detail)


def _targets(stack: Stack, each: keys.Key, source: str | None) -> Iterator[Answer]:
    """Look at each target it may open: the functions find them by the same tags."""
    named = each.tags.get(tags.TARGETS, "").split()
    pools: dict[str, list[targets.Group]] = {}
    for group in targets.all_groups(stack):
        pools.setdefault(group.tags.get(tags.TARGET, ""), []).append(group)
    pools.pop("", None)
    every = bool({"*", tags.EVERY_TARGET} & set(named))
    if every and not pools:
        yield Answer("no", "targets", "it may open every target, and there is none")
    room = targets.quota(stack.aws, targets.RULES_PER_GROUP)
    for name in sorted(pools) if every else named:
        if name not in pools:
            yield Answer("no", f"target {name}", f"there is none; `knock-admin target add {name}` makes it")
            continue
        yield from _target(stack, name, pools[name], room, source)


def _target(
    stack: Stack, name: str, pool: list[targets.Group], room: int, source: str | None
) -> Iterator[Answer]:
    what, ids = f"target {name}", [group.id for group in pool]
    faults = [fault for group in pool for fault in targets.faults_of(group)]
    if faults or len({group.ports for group in pool}) > 1:
        yield Answer(
            "no", what, "; ".join(faults) or f"its groups differ in {tags.PORTS}: it is opened for nobody"
        )
        return
    used = targets.used(targets.rules_of(stack.aws, ids))
    family = _family(source)
    free = [room * len(pool) - each for each in used]
    left = free[0 if family == "ipv4" else 1] if family else min(free)
    if left < len(pool[0].ports):
        yield Answer(
            "no" if family else "warn",
            what,
            f"it has room for {left} more rules; `target grow {name}` makes more",
        )
    known = {word for group in pool for word in group.tags.get(tags.FAMILIES, "").split()}
    if family and known and family not in known:
        yield Answer("no", what, f"it has {' and '.join(sorted(known))} alone, and {source} is {family}")
    holders = targets.holders_of(stack.aws, ids)
    if not holders:
        yield Answer("no", what, "it is attached to nothing, so its rules let nobody in")
        return
    places = count(len(holders), "place")
    yield Answer(
        "ok", what, f"{targets.show_ports(pool[0].ports)}, attached in {places}, room for {left} rules"
    )


def _family(source: str | None) -> str | None:
    return None if source is None else "ipv6" if ":" in source else "ipv4"


def _refusals(stack: Stack, each: keys.Key) -> Iterator[Answer]:
    found = trail.refusals(stack, [equal("principal_id", each.id)], "descending")
    for entry in islice(found, REFUSALS):
        at, detail = entry.one("requested_at"), visible(entry.one("detail"))
        yield Answer("warn", "refused", f"{at} from {entry.one('source')}: {detail}")


def _gateway(stack: Stack, each: keys.Key, now: datetime) -> Iterator[Answer]:
    """Look for what the gateway refused by itself: nothing of Knock's has seen those requests.

    The log's `error` is the gateway's own message, and `-` where a function answered.
    """
    group = f"/knock/{stack.name}/access"
    found = stack.aws.pages(
        "logs",
        "filter_log_events",
        "events",
        logGroupName=group,
        startTime=int((now - LOG_DAYS).timestamp() * 1000),
        filterPattern=f'{{ $.apiKeyId = "{each.id}" && $.status = "403" && $.error != "-" }}',
    )
    try:
        number = sum(1 for _ in islice(found, LOGGED))
    except ClientError as error:
        if code_of(error) != "ResourceNotFoundException":
            raise
        yield Answer("warn", "gateway", f"there is no access log {group} to look into")
        return
    if number:
        most = " at least" if number == LOGGED else ""
        yield Answer(
            "warn", "gateway", f"it answered 403 to {count(number, 'request')}{most} in the last day"
        )
    else:
        yield Answer("ok", "gateway", "it answered 403 to no request with this key in the last day")
