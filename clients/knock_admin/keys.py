"""`knock-admin key`: API keys, their rights, and their place in the stack's usage plan.

A principal is an API key; its rights are tags on it, and so is the name under which its grants are on record
(`knock:name`): the functions may read a key's tags, and not the key.

A key opens nothing until it is in the usage plan, so a run that stopped between making a key and putting it
there leaves nothing usable behind, and the next run of the same command finds that key by its name and stack,
goes on with it and shows its value, which nobody has seen.

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
    from collections.abc import Callable, Mapping

    from knock_admin.stack import Stack

# The functions keep rights for about a minute.
SOON = "The API knows of it within about a minute."


@dataclass(frozen=True)
class Key:
    """One API key of the stack, without its value. `name` is its id where it has no name of its own."""

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

    @property
    def recorded_name(self) -> str:
        """Give the name under which its grants are on record."""
        return self.tags.get(tags.NAME) or self.id

    @property
    def name_tag(self) -> dict[str, str]:
        """Give the tag it lacks to be on record under its own name; empty where no tag can hold that."""
        if tags.NAME in self.tags or tags.fault(tags.NAME, self.name, tags.principal_name):
            return {}
        return {tags.NAME: self.name}

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "enabled": self.enabled,
            "targets": self.tags.get(tags.TARGETS, "").split(),
            "max_duration": self.tags.get(tags.MAX_DURATION),
            "max_live": int(max_live) if (max_live := self.tags.get(tags.MAX_LIVE, "")).isdecimal() else None,
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
        tags.MAX_LIVE: tags.parse_max_live,
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
        Key(
            each["id"],
            each.get("name") or each["id"],
            each.get("enabled", False),
            each.get("tags", {}),
            each.get("createdDate"),
        )
        for each in found
    ]


def keys_of(stack: Stack) -> list[Key]:
    """List the keys in the stack's usage plan, by name, and one that retires before its successor.

    Their age alone does not tell: two keys may be of one second.
    """
    members = {
        each["id"]
        for each in stack.aws.pages(
            "apigateway", "get_usage_plan_keys", "items", usagePlanId=stack.plan["id"]
        )
    }
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return sorted(
        (key for key in _all(stack) if key.id in members),
        key=lambda key: (key.name, tags.RETIRES_AT not in key.tags, key.made_at or oldest, key.id),
    )


def _named(stack: Stack, named: str) -> list[Key]:
    """Find the key with this id, or every key with this name: two, while one is rotated.

    Raises AdminError when there is none.
    """
    keys = keys_of(stack)
    found = [key for key in keys if key.id == named] or [key for key in keys if key.name == named]
    if not found:
        raise _no_key(stack, named)
    return found


def _no_key(stack: Stack, named: str) -> AdminError:
    return AdminError(f"The stack {stack.name} has no key {named}; see `knock-admin key ls`.")


def _arn(stack: Stack, key_id: str) -> str:
    return f"arn:{stack.aws.partition}:apigateway:{stack.aws.region}::/apikeys/{key_id}"


def _check_targets(stack: Stack, value: str) -> None:
    if value == tags.EVERY_TARGET:
        return
    known = {group.tags.get(tags.TARGET) for group in all_groups(stack)}
    for name in value.split():
        if name not in known:
            warn(f"there is no target {name} yet; make it with `knock-admin target add {name}`")


def make(
    stack: Stack, name: str, wanted: Mapping[str, str], made: Callable[[str], object] = lambda _id: None
) -> tuple[str, str]:
    """Make a key with these tags and put it into the usage plan, or complete one that is not in it.

    Gives its id and its value; `made` is told the id as soon as there is one.
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
        key = gateway.create_api_key(name=name, enabled=True, generateDistinctId=True, tags=dict(wanted))
        key_id, value = key["id"], key["value"]
    made(str(key_id))
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
    for key in keys_of(stack):
        if key.name == args.name:
            raise AdminError(
                f"The stack {stack.name} has a key {key.name} already ({key.id}): change it with `key set`, "
                f"or `key rotate` it. If nobody has seen its value, `key rm {key.id}` and add it again."
            )
    _check_targets(stack, args.targets)
    wanted = {tags.STACK: stack.name, tags.NAME: args.name, **_rights(args)}
    return _told(args.name, *make(stack, args.name, wanted))


def show(stack: Stack, args: Namespace) -> Result:
    """List the stack's keys and their rights; never their values."""
    keys = keys_of(stack)
    if missing := {*args.name} - {word for key in keys for word in (key.id, key.name)}:
        raise _no_key(stack, ", ".join(sorted(missing)))
    keys = [key for key in keys if not args.name or key.name in args.name or key.id in args.name]
    rows = []
    for key in keys:
        for fault in faults_of(key):
            warn(f"{key.name} ({key.id}): {fault}; it gives no right")
        notes = [] if key.enabled else ["disabled"]
        if key.tags.get(tags.RETIRES_AT):
            notes.append(f"retires {key.tags[tags.RETIRES_AT]}")
        if key.recorded_name != key.name:
            notes.append(f"on record as {key.recorded_name}")
        rows.append(
            (
                key.name,
                key.id,
                key.tags.get(tags.TARGETS, "none"),
                key.tags.get(tags.MAX_DURATION, "none"),
                key.tags.get(tags.MAX_LIVE, "stack's"),
                key.tags.get(tags.ANY_SOURCE, "own"),
                "yes" if key.tags.get(tags.OPERATOR) == "true" else "no",
                ", ".join(notes),
            )
        )
    header = ("NAME", "ID", "TARGETS", "MAX", "LIVE", "SOURCE", "OPERATOR", "NOTE")
    return Result({"keys": [key.as_json() for key in keys]}, table(rows, header))


def _rights(args: Namespace) -> dict[str, str]:
    """Write the rights that a command line names as tags."""
    rights = {tags.TARGETS: args.targets, tags.MAX_DURATION: args.max, tags.ANY_SOURCE: args.any_source}
    rights[tags.OPERATOR] = "true" if args.operator else None
    rights[tags.MAX_LIVE] = args.max_live
    return {tag: value for tag, value in rights.items() if value}


def change(stack: Stack, args: Namespace) -> Result:
    """Change a principal's rights, on every key of that name; what is not named stays.

    A key without the tag under which its grants are on record gets that too.
    """
    wanted = _rights(args)
    unwanted = [tags.ANY_SOURCE] * args.no_any_source + [tags.OPERATOR] * args.no_operator
    unwanted += [tags.MAX_LIVE] * args.no_max_live
    if not wanted and not unwanted:
        raise UsageError("Change what? Name at least one right; see `knock-admin key set --help`.")
    if both := wanted.keys() & set(unwanted):
        raise UsageError(f"{', '.join(sorted(both))}: given and taken in one command.")
    if args.targets:
        _check_targets(stack, args.targets)
    lines, changed = [], []
    gateway = stack.aws.client("apigateway")
    for key in _named(stack, args.name):
        new = {tag: value for tag, value in {**wanted, **key.name_tag}.items() if key.tags.get(tag) != value}
        gone = [tag for tag in unwanted if tag in key.tags]
        if new:
            gateway.tag_resource(resourceArn=_arn(stack, key.id), tags=new)
        if gone:
            gateway.untag_resource(resourceArn=_arn(stack, key.id), tagKeys=gone)
        changed.append({"id": key.id, "name": key.name, "set": new, "removed": gone})
        what = [f"{tag} is {value}" for tag, value in new.items()] + [f"{tag} is gone" for tag in gone]
        lines.append(f"{key.name} ({key.id}): {', '.join(what) or 'nothing to change'}")
    return Result({"keys": changed}, lines, notes=[SOON])


def enable(stack: Stack, args: Namespace) -> Result:
    """Let a disabled key, or every key of that name, knock again."""
    return _switch(stack, args.name, enabled=True)


def disable(stack: Stack, args: Namespace) -> Result:
    """Stop a key, or every key of that name, from knocking; running grants keep their end."""
    return _switch(stack, args.name, enabled=False)


def _switch(stack: Stack, name: str, *, enabled: bool) -> Result:
    word, found, lines = "enabled" if enabled else "disabled", _named(stack, name), []
    for key in found:
        if key.enabled != enabled:
            stack.aws.client("apigateway").update_api_key(
                apiKey=key.id,
                patchOperations=[{"op": "replace", "path": "/enabled", "value": str(enabled).lower()}],
            )
        lines.append(f"{key.name} ({key.id}) is {word}{' already' if key.enabled == enabled else ''}")
    return Result(
        {"keys": [{"id": key.id, "name": key.name, "enabled": enabled} for key in found]},
        lines,
        notes=[SOON] if enabled else [SOON, *_grants_run_on(found)],
    )


def _grants_run_on(keys: list[Key]) -> list[str]:
    names = dict.fromkeys(key.name if key.name == key.recorded_name else key.id for key in keys)
    return [
        f"Running grants keep their end; `knock-admin revoke --principal {name}` ends them now."
        for name in names
    ]


def rotate(stack: Stack, args: Namespace) -> Result:
    """Make a new key with an old one's name and rights; the old one stays valid until `--finish`."""
    if args.finish:
        return _finish(stack, args)
    named = _named(stack, args.name)
    current = [key for key in named if key.retires_at is None]
    retiring = [key for key in named if key.retires_at is not None]
    if len(current) > 1:
        raise AdminError(
            f"Several keys are called {args.name}: say which by id, {', '.join(key.id for key in current)}."
        )
    if current and retiring:
        raise AdminError(
            f"The key {args.name} is being rotated: the old one ({retiring[0].id}) retires at "
            f"{retiring[0].tags[tags.RETIRES_AT]}. `knock-admin key rotate {args.name} --finish` ends that. "
            f"If nobody has seen the new one's value, `knock-admin key rm {current[0].id}` and rotate again."
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
    key_id, value = make(stack, old.name, {**old.name_tag, **rights, tags.STACK: stack.name})
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
    """Delete a key, or every key of that name, for good; running grants keep their end."""
    found = _named(stack, args.name)
    for key in found:
        stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
    return Result(
        {"deleted": [{"id": key.id, "name": key.name} for key in found]},
        [f"deleted the key {key.name} ({key.id})" for key in found],
        notes=_grants_run_on(found),
    )
