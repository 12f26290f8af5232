"""`knock-admin key`: API keys, their rights, and their place in the stack's usage plan.

A principal is an API key; its rights are tags on it. A key opens nothing until it is in the usage plan, so a
run that stopped between making a key and putting it there leaves nothing usable behind, and the next run of
the same command finds that key by its name and stack, goes on with it and shows its value, which nobody has
seen.

The value is shown once, when the key is made. API Gateway could tell it again at any time; this program never
asks, but for a key whose making it completes.

A rotation marks the old key first and makes the new one then: a stop between the two leaves the old one
working, and nothing is deleted while its successor is missing. Nothing ends the old key by itself: `rotate
--finish` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from knock_admin import tags
from knock_admin.errors import AdminError, UsageError
from knock_admin.output import Result, table, warn
from knock_admin.targets import all_groups

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from knock_admin.stack import Stack

# The functions keep rights for about a minute.
SOON = "Within about a minute."


@dataclass(frozen=True)
class Key:
    """One API key of the stack, without its value."""

    id: str
    name: str
    enabled: bool
    tags: Mapping[str, str]
    made_at: datetime | None

    @property
    def retires_at(self) -> datetime | None:
        """Give the time after which a rotated key may be deleted. Raises AdminError on a bad tag."""
        text = self.tags.get(tags.RETIRES_AT)
        try:
            return tags.parse_time(text) if text else None
        except ValueError as error:
            raise AdminError(
                f"The tag {tags.RETIRES_AT} of the key {self.name} ({self.id}): {error}"
            ) from error

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "enabled": self.enabled,
            "targets": self.tags.get(tags.TARGETS, "").split(),
            "max_duration": self.tags.get(tags.MAX_DURATION),
            "any_source": self.tags.get(tags.ANY_SOURCE),
            "operator": self.tags.get(tags.OPERATOR) == "true",
            "retires_at": self.tags.get(tags.RETIRES_AT),
            "faults": faults_of(self),
        }


def faults_of(key: Key) -> list[str]:
    """Say what is wrong with a key's tags; such a tag gives no right."""
    readers = {
        tags.TARGETS: tags.parse_targets,
        tags.MAX_DURATION: tags.parse_duration,
        tags.ANY_SOURCE: tags.parse_any_source,
        tags.RETIRES_AT: tags.parse_time,
    }
    found = (tags.fault(tag, key.tags[tag], read) for tag, read in readers.items() if tag in key.tags)
    faults = [fault for fault in found if fault]
    if key.tags.get(tags.OPERATOR, "false") not in ("true", "false"):
        faults.append(f"the tag {tags.OPERATOR} is neither true nor false")
    return faults


def _all(stack: Stack) -> list[Key]:
    found = stack.aws.pages(
        "apigateway", "get_api_keys", "items", includeValues=False, PaginationConfig={"PageSize": 500}
    )
    return [
        Key(each["id"], each["name"], each["enabled"], each.get("tags", {}), each.get("createdDate"))
        for each in found
    ]


def keys_of(stack: Stack) -> list[Key]:
    """List the keys in the stack's usage plan, by name and then by age."""
    members = {
        each["id"]
        for each in stack.aws.pages(
            "apigateway", "get_usage_plan_keys", "items", usagePlanId=stack.plan["id"]
        )
    }
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return sorted(
        (key for key in _all(stack) if key.id in members),
        key=lambda key: (key.name, key.made_at or oldest, key.id),
    )


def _find(stack: Stack, named: str) -> Key:
    """Find one key by its id or name; of a name that is being rotated, the new one. Raises AdminError."""
    keys = keys_of(stack)
    found = [key for key in keys if key.id == named] or [key for key in keys if key.name == named]
    if len(found) > 1:
        found = [key for key in found if key.retires_at is None] or found
    if not found:
        raise AdminError(f"The stack {stack.name} has no key {named}; see `knock-admin key ls`.")
    if len(found) > 1:
        raise AdminError(
            f"Several keys are called {named}: say which by id, {', '.join(key.id for key in found)}."
        )
    return found[0]


def _arn(stack: Stack, key_id: str) -> str:
    return f"arn:{stack.aws.partition}:apigateway:{stack.aws.region}::/apikeys/{key_id}"


def _check_targets(stack: Stack, value: str) -> None:
    if value == tags.EVERY_TARGET:
        return
    known = {group.tags.get(tags.TARGET) for group in all_groups(stack)}
    for name in value.split():
        if name not in known:
            warn(f"there is no target {name} yet; make it with `knock-admin target add {name}`")


def _make(stack: Stack, name: str, wanted: Mapping[str, str]) -> tuple[str, str]:
    """Make a key with these tags and put it into the usage plan, or complete one that is not in it.

    Gives its id and its value.
    """
    gateway, plan = stack.aws.client("apigateway"), stack.plan["id"]
    members = {key.id for key in keys_of(stack)}
    begun = [
        key
        for key in _all(stack)
        if key.name == name and key.tags.get(tags.STACK) == stack.name and key.id not in members
    ]
    if begun:
        key_id = begun[0].id
        value = gateway.get_api_key(apiKey=key_id, includeValue=True)["value"]
        gateway.tag_resource(resourceArn=_arn(stack, key_id), tags=dict(wanted))
    else:
        made = gateway.create_api_key(name=name, enabled=True, generateDistinctId=True, tags=dict(wanted))
        key_id, value = made["id"], made["value"]
    gateway.create_usage_plan_key(usagePlanId=plan, keyId=key_id, keyType="API_KEY")
    return str(key_id), str(value)


def _told(name: str, key_id: str, value: str, *notes: str) -> Result:
    return Result(
        {"id": key_id, "name": name, "value": value},
        [value],
        notes=[f"The key {name} ({key_id}). This is its value; it is not shown again:", *notes],
    )


def add(stack: Stack, args: Namespace) -> Result:
    """Make a key with its rights and put it into the stack's usage plan; its value is shown once."""
    if any(key.name == args.name for key in keys_of(stack)):
        raise AdminError(
            f"The stack {stack.name} has a key {args.name} already: change it with `key set`, or replace it "
            "with `key rotate`."
        )
    _check_targets(stack, args.targets)
    wanted = {tags.STACK: stack.name, tags.TARGETS: args.targets, tags.MAX_DURATION: args.max}
    if args.operator:
        wanted[tags.OPERATOR] = "true"
    if args.any_source:
        wanted[tags.ANY_SOURCE] = args.any_source
    return _told(args.name, *_make(stack, args.name, wanted))


def show(stack: Stack, args: Namespace) -> Result:
    """List the stack's keys and their rights; never their values."""
    keys = [key for key in keys_of(stack) if not args.name or key.name in args.name or key.id in args.name]
    rows = []
    for key in keys:
        for fault in faults_of(key):
            warn(f"{key.name} ({key.id}): {fault}; it gives no right")
        note = "" if key.enabled else "disabled"
        if key.tags.get(tags.RETIRES_AT):
            note = f"{note} retires {key.tags[tags.RETIRES_AT]}".strip()
        rows.append(
            (
                key.name,
                key.id,
                key.tags.get(tags.TARGETS, "none"),
                key.tags.get(tags.MAX_DURATION, "none"),
                key.tags.get(tags.ANY_SOURCE, "own"),
                "yes" if key.tags.get(tags.OPERATOR) == "true" else "no",
                note,
            )
        )
    header = ("NAME", "ID", "TARGETS", "MAX", "SOURCE", "OPERATOR", "NOTE")
    return Result({"keys": [key.as_json() for key in keys]}, table(rows, header))


def change(stack: Stack, args: Namespace) -> Result:
    """Change a key's rights; what is not named stays."""
    key = _find(stack, args.name)
    wanted: dict[str, str] = {}
    unwanted: list[str] = []
    if args.targets:
        _check_targets(stack, args.targets)
        wanted[tags.TARGETS] = args.targets
    if args.max:
        wanted[tags.MAX_DURATION] = args.max
    if args.any_source:
        wanted[tags.ANY_SOURCE] = args.any_source
    if args.operator:
        wanted[tags.OPERATOR] = "true"
    if args.no_any_source:
        unwanted.append(tags.ANY_SOURCE)
    if args.no_operator:
        unwanted.append(tags.OPERATOR)
    if not wanted and not unwanted:
        raise UsageError("Change what? Name at least one right; see `knock-admin key set --help`.")
    wanted = {tag: value for tag, value in wanted.items() if key.tags.get(tag) != value}
    unwanted = [tag for tag in unwanted if tag in key.tags]
    gateway = stack.aws.client("apigateway")
    if wanted:
        gateway.tag_resource(resourceArn=_arn(stack, key.id), tags=wanted)
    if unwanted:
        gateway.untag_resource(resourceArn=_arn(stack, key.id), tagKeys=unwanted)
    lines = [f"{tag} is {value!r}" for tag, value in wanted.items()] + [f"{tag} is gone" for tag in unwanted]
    return Result(
        {"id": key.id, "name": key.name, "set": wanted, "removed": unwanted},
        [*lines, f"The key {key.name} ({key.id}) has these rights. {SOON}"]
        if lines
        else ["Nothing to change."],
    )


def enable(stack: Stack, args: Namespace) -> Result:
    """Let a disabled key knock again."""
    return _switch(stack, args.name, enabled=True)


def disable(stack: Stack, args: Namespace) -> Result:
    """Stop a key from knocking; its running grants keep their end."""
    return _switch(stack, args.name, enabled=False)


def _switch(stack: Stack, name: str, *, enabled: bool) -> Result:
    key = _find(stack, name)
    word = "enabled" if enabled else "disabled"
    data = {"id": key.id, "name": key.name, "enabled": enabled}
    if key.enabled == enabled:
        return Result(data, [f"The key {key.name} ({key.id}) is {word} already."])
    stack.aws.client("apigateway").update_api_key(
        apiKey=key.id, patchOperations=[{"op": "replace", "path": "/enabled", "value": str(enabled).lower()}]
    )
    notes = [] if enabled else [_grants_run_on(key)]
    return Result(data, [f"The key {key.name} ({key.id}) is {word}. {SOON}"], notes=notes)


def _grants_run_on(key: Key) -> str:
    return f"Its running grants keep their end; `knock-admin revoke --principal {key.id}` ends them now."


def rotate(stack: Stack, args: Namespace) -> Result:
    """Make a new key with an old one's name and rights; the old one stays valid until `--finish`."""
    if args.finish:
        return _finish(stack, args)
    named = [key for key in keys_of(stack) if args.name in (key.name, key.id)]
    if not named:
        raise AdminError(f"The stack {stack.name} has no key {args.name}; see `knock-admin key ls`.")
    current = [key for key in named if key.retires_at is None]
    retiring = [key for key in named if key.retires_at is not None]
    if len(current) > 1:
        raise AdminError(
            f"Several keys are called {args.name}: say which by id, {', '.join(key.id for key in current)}."
        )
    if current and retiring:
        raise AdminError(
            f"The key {args.name} is being rotated: the old one ({retiring[0].id}) retires at "
            f"{retiring[0].tags[tags.RETIRES_AT]}. `knock-admin key rotate {args.name} --finish` ends that."
        )
    old = (current or retiring)[0]
    retires_at = old.tags.get(tags.RETIRES_AT) or tags.show_time(args.now + tags.parse_duration(args.overlap))
    if current:
        stack.aws.client("apigateway").tag_resource(
            resourceArn=_arn(stack, old.id), tags={tags.RETIRES_AT: retires_at}
        )
    rights = {
        tag: value for tag, value in old.tags.items() if tag != tags.RETIRES_AT and not tag.startswith("aws:")
    }
    key_id, value = _make(stack, old.name, {**rights, tags.STACK: stack.name})
    return _told(
        old.name,
        key_id,
        value,
        f"The old one ({old.id}) works on; after {retires_at}, end it with "
        f"`knock-admin key rotate {old.name} --finish`.",
    )


def _finish(stack: Stack, args: Namespace) -> Result:
    keys = keys_of(stack)
    retiring = [key for key in keys if key.retires_at is not None and args.name in (None, key.name, key.id)]
    if args.name and not retiring:
        raise AdminError(f"No key called {args.name} is being rotated; see `knock-admin key ls`.")
    lines, deleted, waiting = [], [], []
    for key in retiring:
        successor = [each for each in keys if each.name == key.name and each.retires_at is None]
        if not successor:
            waiting.append(key.id)
            lines.append(
                f"The key {key.name} ({key.id}) has no successor: "
                f"run `knock-admin key rotate {key.name}` again."
            )
        elif key.retires_at and args.now < key.retires_at:
            waiting.append(key.id)
            lines.append(
                f"The key {key.name} ({key.id}) retires at {key.tags[tags.RETIRES_AT]}; "
                f"`knock-admin key rm {key.id}` does not wait for that."
            )
        else:
            stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
            deleted.append(key.id)
            lines.append(f"deleted the old key {key.name} ({key.id})")
    return Result(
        {"deleted": deleted, "waiting": waiting},
        lines or ["No key is being rotated."],
        exit_code=1 if args.name and waiting else 0,
    )


def remove(stack: Stack, args: Namespace) -> Result:
    """Delete a key for good; its running grants keep their end."""
    key = _find(stack, args.name)
    stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
    return Result(
        {"id": key.id, "name": key.name, "deleted": True},
        [f"deleted the key {key.name} ({key.id})"],
        notes=[_grants_run_on(key)],
    )
