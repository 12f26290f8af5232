"""`knock-admin why NAME`: checks all that decides about a key's knocks, in order, and names the first "no".

    the key      exists, is enabled, is in the usage plan, has quota left, and has not ended
    its rights   can be read, and name targets and a duration; the key may have another live grant
    each target  exists, has room, is attached to something, and has an address of the source's family
    the record   the key's live grants, and its last refusals
    the gateway  the requests that API Gateway refused by itself, from the access log

Each line is `ok`, `warn` or `no`. A check that lacks a permission is a `warn`, and the other checks go on.
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
"""The number of refusals shown, the latest."""
LOGGED = 100
"""The most requests of the gateway's log that are counted."""
LOG_DAYS = timedelta(days=1)
"""The part of the gateway's log that is read, up to now."""


@dataclass(frozen=True)
class Answer:
    """The result of a check: `ok`, `warn` or `no`."""

    level: str
    subject: str
    detail: str


def key(stack: Stack, name: str, *, source: str | None, now: datetime) -> Result:
    """Say whether a key, by name or id, can knock. The exit code is 1 if the result of a check is `no`."""
    named, in_plan = _named(stack, name)
    answers: list[Answer] = []
    for api_key in named:
        steps: tuple[Callable[[], Iterator[Answer]], ...] = (
            lambda api_key=api_key: _of_key(stack, api_key, now, in_plan=in_plan),  # type: ignore[misc]
            lambda api_key=api_key: _quota(stack, api_key, now),  # type: ignore[misc]
            lambda api_key=api_key: _rights(stack, api_key, now),  # type: ignore[misc]
            lambda api_key=api_key: _targets(stack, api_key, source),  # type: ignore[misc]
            lambda api_key=api_key: _refusals(stack, api_key),  # type: ignore[misc]
            lambda api_key=api_key: _gateway(stack, api_key, now),  # type: ignore[misc]
        )
        for step in steps:
            answers += _run(stack, step)
    first = next((answer for answer in answers if answer.level == "no"), None)
    verdict = f"The first no: {first.subject}: {first.detail}" if first else "Nothing here says no."
    live = inside.of_keys_if_readable(stack, [api_key.id for api_key in named], now)
    lines = [
        *table(
            [(answer.level, answer.subject, answer.detail) for answer in answers], ("", "WHAT", "WHAT IT IS")
        ),
        "",
        verdict,
    ]
    if live:
        lines += ["", "In now:", *inside.who(live, now)]
    elif live is None:
        lines += ["", "Who is in now is not known."]
    data = {
        "answers": [{"level": a.level, "what": a.subject, "detail": a.detail} for a in answers],
        "first_no": first and {"what": first.subject, "detail": first.detail},
        "live": None if live is None else [entry.as_json(now) for entry in live],
    }
    return Result(data, lines, exit_code=1 if first else 0)


def _named(stack: Stack, name: str) -> tuple[list[keys.Key], bool]:
    """Find keys by name or id: (keys, whether they are in the usage plan). Those in the plan take precedence.

    Raises AdminError if there is none.
    """
    listing = keys.look(stack)
    inside_plan = [key for key in listing.inside if name in (key.id, key.name, key.recorded_name)]
    if inside_plan:
        return inside_plan, True
    outside = [
        key
        for key in listing.outside
        if name in (key.id, key.name) and key.tags.get(tags.STACK, stack.name) == stack.name
    ]
    if not outside:
        raise keys.no_key(stack, name)
    return outside, False


def _run(stack: Stack, step: Callable[[], Iterator[Answer]]) -> list[Answer]:
    """Run one check; an error that stops it is a `warn`, but for Unreachable, which is raised."""
    answers: list[Answer] = []
    try:
        answers.extend(step())
    except Unreachable:
        raise
    except AdminError as error:
        answers.append(Answer("warn", "could not be asked", str(error)))
    except (ClientError, BotoCoreError) as error:
        failure = translated(error, stack.aws.calls.last)
        if isinstance(failure, Unreachable):
            raise failure from error
        answers.append(Answer("warn", "could not be asked", str(failure).replace("\n", " ")))
    return answers


def _of_key(stack: Stack, api_key: keys.Key, now: datetime, *, in_plan: bool) -> Iterator[Answer]:
    who = api_key.who
    if not api_key.enabled:
        yield Answer(
            "no", "key", f"{who} is disabled; `knock-admin key enable {api_key.id}` lets it knock again"
        )
    elif not in_plan:
        yield Answer(
            "no",
            "key",
            f"{who} is not in the usage plan {stack.read_plan()['name']}, so the gateway refuses it; "
            f"`knock-admin key add {visible(api_key.name)}` completes one that was begun",
        )
    else:
        yield Answer("ok", "key", f"{who} is enabled, and in the usage plan {stack.read_plan()['name']}")
    if api_key.until and api_key.until <= now:
        yield Answer(
            "no", "until", f"it was good until {api_key.tags[tags.UNTIL]}; `key set --until` gives it more"
        )
    elif api_key.until:
        yield Answer("ok", "until", f"it is good until {api_key.tags[tags.UNTIL]}")
    if api_key.retires_at and api_key.retires_at <= now:
        yield Answer(
            "warn", "rotation", f"its successor is there since before {api_key.tags[tags.RETIRES_AT]}"
        )


def _quota(stack: Stack, api_key: keys.Key, now: datetime) -> Iterator[Answer]:
    """Check how many requests the key has left today.
    https://docs.aws.amazon.com/apigateway/latest/api/API_GetUsage.html
    """
    plan = stack.read_plan()
    if not plan.get("quota"):
        return
    period = plan["quota"]["period"].lower()
    day = now.strftime("%Y-%m-%d")
    usage = stack.aws.client("apigateway").get_usage(
        usagePlanId=plan["id"], keyId=api_key.id, startDate=day, endDate=day
    )
    days = usage.get("items", {}).get(api_key.id) or []
    used, remaining = days[-1] if days else (0, plan["quota"]["limit"])
    detail = f"it has made {count(used, 'request')} of this {period}'s {plan['quota']['limit']}"
    yield Answer("no" if remaining <= 0 else "ok", "quota", detail)


def _rights(stack: Stack, api_key: keys.Key, now: datetime) -> Iterator[Answer]:
    for fault in keys.faults_of(api_key):
        yield Answer("no", "rights", f"{fault}; it gives no right")
    if tags.TARGETS not in api_key.tags:
        yield Answer("no", "rights", f"it has no tag {tags.TARGETS}, so it may open nothing")
    if tags.MAX_DURATION not in api_key.tags:
        yield Answer(
            "no", "rights", f"it has no tag {tags.MAX_DURATION}, so it may open nothing for any time"
        )
    most = int(api_key.tags.get(tags.MAX_LIVE) or stack.setting("MAX_LIVE"))
    live = len(inside.of_keys(stack, [api_key.id], now))
    detail = f"it holds {count(live, 'live grant')}, and may hold {most}"
    yield Answer("no" if live >= most else "ok", "live grants", detail)


def _targets(stack: Stack, api_key: keys.Key, source: str | None) -> Iterator[Answer]:
    """Check each target that the key may open, which the functions find by the same tags."""
    named = api_key.tags.get(tags.TARGETS, "").split()
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
    subject, ids = f"target {name}", [group.id for group in pool]
    faults = [fault for group in pool for fault in targets.faults_of(group)]
    if faults or len({group.ports for group in pool}) > 1:
        yield Answer(
            "no",
            subject,
            "; ".join(faults) or f"its groups differ in {tags.PORTS}, so no knock opens it",
        )
        return
    used = targets.used(targets.rules_of(stack.aws, ids))
    family = _family(source)
    ipv4, ipv6 = (room * len(pool) - number for number in used)
    free_rules = {"ipv4": ipv4, "ipv6": ipv6}[family] if family else min(ipv4, ipv6)
    if free_rules < len(pool[0].ports):
        yield Answer(
            "no" if family else "warn",
            subject,
            f"it has room for {free_rules} more rules; `target grow {name}` makes more",
        )
    known = {word for group in pool for word in group.tags.get(tags.FAMILIES, "").split()}
    if family and known and family not in known:
        yield Answer("no", subject, f"it has {' and '.join(sorted(known))} alone, and {source} is {family}")
    holders = targets.holders_of(stack.aws, ids)
    if not holders:
        yield Answer("no", subject, "it is attached to nothing, so its rules let nobody in")
        return
    places = count(len(holders), "place")
    yield Answer(
        "ok",
        subject,
        f"{targets.show_ports(pool[0].ports)}, attached in {places}, room for {free_rules} rules",
    )


def _family(source: str | None) -> str | None:
    return None if source is None else "ipv6" if ":" in source else "ipv4"


def _refusals(stack: Stack, api_key: keys.Key) -> Iterator[Answer]:
    listed = trail.refusals(stack, [equal("principal_id", api_key.id)], "descending")
    for entry in islice(listed, REFUSALS):
        at, detail = entry.text("requested_at"), visible(entry.text("detail"))
        yield Answer("warn", "refused", f"{at} from {entry.text('source')}: {detail}")


def _gateway(stack: Stack, api_key: keys.Key, now: datetime) -> Iterator[Answer]:
    """Count the requests that API Gateway refused by itself, which reach no function.

    The log's `error` is the gateway's message, and `-` if a function answered.
    """
    group = f"/knock/{stack.name}/access"
    events = stack.aws.pages(
        "logs",
        "filter_log_events",
        "events",
        logGroupName=group,
        startTime=int((now - LOG_DAYS).timestamp() * 1000),
        filterPattern=f'{{ $.apiKeyId = "{api_key.id}" && $.status = "403" && $.error != "-" }}',
    )
    try:
        number = sum(1 for _ in islice(events, LOGGED))
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
