"""API keys, their rights, and their place in the stack's usage plan (`knock-admin key`).

A principal is an API key. Its rights are tags on the key, and so is the name under which its grants are on
record (`knock:name`): the functions may read a key's tags, but not the key.

A key opens nothing until it is in the usage plan. So an interruption between making a key and adding it to
the plan leaves no usable key; the next run of the same command finds it by its name and stack, completes it
and shows its value, which was not shown before.

The value is shown once, when the key is made. This program reads it again only to complete a key. API Gateway
also sends values in its list of a usage plan's keys (GetUsagePlanKeys has done so since 2021, and has no
option against it): this program ignores them there, and no log has them (`aws.Aws` switches off botocore's
debug logs). A credential that may call GetUsagePlanKeys may read every value.

A rotation first marks the old key, and then makes the new one: an interruption between the two leaves the old
key working, and a key is never deleted before its successor exists. The old key is deleted by `rotate
--finish`, not by itself.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from knock_admin import inside, tags
from knock_admin.errors import AdminError
from knock_admin.output import Result, table, visible, warn
from knock_admin.targets import all_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from knock_admin.stack import Stack
    from knock_admin.trail import Entry

# The functions cache rights for about a minute.
SOON = "The API knows of it within about a minute."


@dataclass(frozen=True)
class Key:
    """An API key of the stack, without its value. `name` is the id of a key that has no name."""

    id: str
    name: str
    enabled: bool
    tags: Mapping[str, str]
    made_at: datetime | None

    @property
    def who(self) -> str:
        """Its name and id, for people. Its name may have any character, so it is escaped."""
        return f"{visible(self.name)} ({self.id})"

    @property
    def retires_at(self) -> datetime | None:
        """The time after which a rotated key may be deleted. Raises AdminError for a malformed tag."""
        text = self.tags.get(tags.RETIRES_AT)
        try:
            return tags.parse_time(text) if text else None
        except ValueError as error:
            raise AdminError(f"The tag {tags.RETIRES_AT} of the key {self.who}: {error}") from error

    @property
    def until(self) -> datetime | None:
        """The time after which it opens nothing; None if it has no such tag, or a malformed one."""
        text = self.tags.get(tags.UNTIL, "")
        return None if not text or tags.fault(tags.UNTIL, text, tags.parse_until) else tags.parse_until(text)

    @property
    def recorded_name(self) -> str:
        """The name under which its grants are on record."""
        return self.tags.get(tags.NAME) or self.id

    @property
    def name_tag(self) -> dict[str, str]:
        """The missing tag that puts its name on record; empty also if a tag cannot hold the name."""
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
            "until": self.tags.get(tags.UNTIL),
            "retires_at": self.tags.get(tags.RETIRES_AT),
            "faults": faults_of(self),
        }


def faults_of(key: Key) -> list[str]:
    """Describe the malformed tags of a key. A malformed tag gives no right."""
    readers = {
        tags.TARGETS: tags.parse_targets,
        tags.MAX_DURATION: tags.parse_duration,
        tags.MAX_LIVE: tags.parse_max_live,
        tags.ANY_SOURCE: tags.parse_any_source,
        tags.UNTIL: tags.parse_until,
        tags.RETIRES_AT: tags.parse_time,
    }
    messages = (tags.fault(tag, key.tags[tag], read) for tag, read in readers.items() if tag in key.tags)
    faults = [fault for fault in messages if fault]
    if key.tags.get(tags.OPERATOR, "false") not in ("true", "false"):
        faults.append(f"the tag {tags.OPERATOR} is neither true nor false")
    return faults


@dataclass(frozen=True)
class Listing:
    """The API keys of the account and region: those in the stack's usage plan, and the others.

    Reading it takes two list operations of API Gateway, which allows ten requests a second for the whole
    account: a command for many keys reads it once.
    """

    inside: list[Key]
    """Sorted by name; a retiring key is before its successor, also if both were made within a second."""
    outside: list[Key]

    def named(self, stack: Stack, text: str) -> list[Key]:
        """Give the plan's key with this id, or all its keys with this name: two during a rotation.

        Raises AdminError if there is none.
        """
        named_keys = [key for key in self.inside if key.id == text]
        named_keys = named_keys or [key for key in self.inside if key.name == text]
        if not named_keys:
            raise no_key(stack, text)
        return named_keys

    def begun(self, stack: Stack, name: str) -> Key | None:
        """Find a key of this name that was made for the stack, and was not added to its plan yet."""
        return next(
            (key for key in self.outside if key.name == name and key.tags.get(tags.STACK) == stack.name), None
        )


def look(stack: Stack) -> Listing:
    """List the API keys of the account and region, without values."""
    members = {
        described["id"]
        for described in stack.aws.pages(
            "apigateway", "get_usage_plan_keys", "items", usagePlanId=stack.read_plan()["id"]
        )
    }
    listed = stack.aws.pages(
        "apigateway", "get_api_keys", "items", includeValues=False, PaginationConfig={"PageSize": 500}
    )
    keys = [
        Key(
            described["id"],
            described.get("name") or described["id"],
            described.get("enabled", False),
            described.get("tags", {}),
            described.get("createdDate"),
        )
        for described in listed
    ]
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return Listing(
        sorted(
            (key for key in keys if key.id in members),
            key=lambda key: (key.name, tags.RETIRES_AT not in key.tags, key.made_at or oldest, key.id),
        ),
        [key for key in keys if key.id not in members],
    )


def keys_of(stack: Stack) -> list[Key]:
    """List the keys in the stack's usage plan, in the order of `Listing.inside`."""
    return look(stack).inside


def no_key(stack: Stack, named: str) -> AdminError:
    return AdminError(f"The stack {stack.name} has no key {visible(named)}; see `knock-admin key ls`.")


def check_targets(stack: Stack, value: str) -> None:
    """Warn of the names of targets that do not exist (yet)."""
    if value == tags.EVERY_TARGET:
        return
    known = {group.tags.get(tags.TARGET) for group in all_groups(stack)}
    for name in value.split():
        if name not in known:
            warn(f"there is no target {name} yet; make it with `knock-admin target add {name}`")


def check_times(stack: Stack, who: str, rights: Mapping[str, str], now: datetime) -> None:
    """Warn of an end in the past (a mistyped year, say) and of a duration beyond the stack's MaxDuration."""
    if beyond := beyond_limit(stack, rights):
        warn(f"{visible(who)}: {beyond}")
    if (end := rights.get(tags.UNTIL)) and tags.parse_until(end) <= now:
        warn(f"{visible(who)}: {end} is past, so the key opens nothing; `key set --until` gives it more")


def beyond_limit(stack: Stack, rights: Mapping[str, str]) -> str | None:
    """Say that a key's grants may be longer than the stack allows; None where they may not."""
    if (duration := rights.get(tags.MAX_DURATION)) is None:
        return None
    limit = tags.parse_duration(stack.setting("MAX_DURATION"))
    if tags.parse_duration(duration) <= limit:
        return None
    return f"may have grants of {duration}, and the stack allows {tags.show_duration(limit)} (MaxDuration)"


def make(
    stack: Stack,
    name: str,
    wanted: Mapping[str, str],
    on_id: Callable[[str], object] = lambda _id: None,
    keep: Callable[[str, str, str], object] = lambda _name, _id, _value: None,
    listing: Listing | None = None,
) -> tuple[str, str]:
    """Make a key with these tags and add it to the usage plan, or complete one that is not in the plan.

    Gives its id and its value. `on_id` is called with the id as soon as it is known, and `keep` with name, id
    and value before the key can be used: if it raises, the key opens nothing, and the next call completes it.
    `listing` saves reading the keys again.
    """
    gateway, plan = stack.aws.client("apigateway"), stack.read_plan()["id"]
    begun = (listing or look(stack)).begun(stack, name)
    if begun:
        key_id = begun.id
        value = gateway.get_api_key(apiKey=key_id, includeValue=True)["value"]
        gateway.tag_resource(resourceArn=stack.aws.key_arn(key_id), tags=dict(wanted))
    else:
        key = gateway.create_api_key(name=name, enabled=True, generateDistinctId=True, tags=dict(wanted))
        key_id, value = key["id"], key["value"]
    on_id(str(key_id))
    keep(name, str(key_id), str(value))
    gateway.create_usage_plan_key(usagePlanId=plan, keyId=key_id, keyType="API_KEY")
    return str(key_id), str(value)


def _result(name: str, key_id: str, value: str, *notes: str) -> Result:
    return Result(
        {"id": key_id, "name": name, "value": value},
        [value],
        notes=[f"The key {visible(name)} ({key_id}). This is its value; it is not shown again:", *notes],
    )


def add(stack: Stack, name: str, rights: Mapping[str, str]) -> Result:
    """Make a key with its rights in the stack's usage plan, and show its value.

    Raises AdminError if the plan has a key of that name. After an interruption, a second call completes it.
    """
    listing = look(stack)
    for key in listing.inside:
        if key.name == name:
            raise AdminError(
                f"The stack {stack.name} has a key {visible(key.name)} already ({key.id}): change it with "
                f"`key set`, or `key rotate` it. If nobody has seen its value, `key rm {key.id}` and add "
                "it again."
            )
    check_targets(stack, rights[tags.TARGETS])
    return _result(name, *make(stack, name, own_tags(stack, name, rights), listing=listing))


def own_tags(stack: Stack, name: str, rights: Mapping[str, str]) -> dict[str, str]:
    """Give all tags of a new key."""
    return {tags.STACK: stack.name, tags.NAME: name, **rights}


def show(stack: Stack, names: Sequence[str], now: datetime) -> Result:
    """List the stack's keys and their rights, but not their values."""
    keys = keys_of(stack)
    if missing := {*names} - {word for key in keys for word in (key.id, key.name)}:
        raise no_key(stack, ", ".join(sorted(missing)))
    keys = [key for key in keys if not names or key.name in names or key.id in names]
    rows = []
    for key in keys:
        for fault in faults_of(key):
            warn(f"{key.who}: {visible(fault)}; it gives no right")
        notes = [] if key.enabled else ["disabled"]
        if key.until:
            notes.append(f"{'until' if now < key.until else 'ended'} {key.tags[tags.UNTIL]}")
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


def change(
    stack: Stack,
    names: Sequence[str],
    wanted: Mapping[str, str],
    unwanted: Sequence[str] = (),
    *,
    more: Sequence[str] = (),
    fewer: Sequence[str] = (),
) -> Result:
    """Change the rights of keys, on every key of each name. Tags that are not named stay as they are.

    `wanted` are tags to set, and `unwanted` tags to remove; `more` and `fewer` are targets to add to and to
    remove from those that each key may open. A key without `knock:name` gets that tag too. All names and
    values are checked before the first change. A second call changes nothing.
    """
    listing = look(stack)
    chosen = list({key.id: key for name in names for key in listing.named(stack, name)}.values())
    planned = [(key, {**wanted, **_targets(key, more, fewer), **key.name_tag}) for key in chosen]
    if wanted.get(tags.TARGETS) or more:
        check_targets(stack, wanted.get(tags.TARGETS) or " ".join(more))
    lines, changed = [], []
    gateway = stack.aws.client("apigateway")
    for key, rights in planned:
        new = {tag: value for tag, value in rights.items() if key.tags.get(tag) != value}
        gone = [tag for tag in unwanted if tag in key.tags]
        if new:
            gateway.tag_resource(resourceArn=stack.aws.key_arn(key.id), tags=new)
        if gone:
            gateway.untag_resource(resourceArn=stack.aws.key_arn(key.id), tagKeys=gone)
        changed.append({"id": key.id, "name": key.name, "set": new, "removed": gone})
        changes = [f"{tag} is {value}" for tag, value in new.items()] + [f"{tag} is gone" for tag in gone]
        lines.append(f"{key.who}: {', '.join(changes) or 'nothing to change'}")
    return Result({"keys": changed}, lines, notes=[SOON])


def _targets(key: Key, more: Sequence[str], fewer: Sequence[str]) -> dict[str, str]:
    """Give the tag with a key's new targets. Raises AdminError if there are none, or too many for a tag."""
    if not more and not fewer:
        return {}
    may = key.tags.get(tags.TARGETS, "").split()
    if {"*", tags.EVERY_TARGET} & set(may):
        raise AdminError(
            f"{key.who} may open every target: there is none to add, and to take one away name "
            "those it shall have, with --targets."
        )
    names = [name for name in dict.fromkeys((*may, *more)) if name not in fewer]
    if not names:
        raise AdminError(f"{key.who} could open nothing then; `key disable` or `key rm` it instead.")
    try:
        return {tags.TARGETS: tags.parse_targets(" ".join(names))}
    except ValueError as error:
        raise AdminError(f"{key.who}: {error}") from error


def enable(stack: Stack, name: str) -> Result:
    """Enable a key, or every key of that name."""
    chosen = look(stack).named(stack, name)
    return Result(_switched(chosen, enabled=True), _switch(stack, chosen, enabled=True), notes=[SOON])


def disable(stack: Stack, name: str, *, now: datetime, revoke: bool) -> Result:
    """Disable a key, or every key of that name; `revoke` closes its live grants, which else go on.

    Raises AdminError, before any change, if the grants are to be closed and cannot be read.
    """
    chosen = look(stack).named(stack, name)
    known = inside.before_ending(stack, [key.id for key in chosen], now) if revoke else None
    lines = _switch(stack, chosen, enabled=False)
    ended, notes = _inside(stack, chosen, now, "the key is disabled", known)
    return Result(_switched(chosen, enabled=False), [*lines, *ended], notes=[SOON, *notes])


def _switched(keys: Sequence[Key], *, enabled: bool) -> dict[str, Any]:
    return {"keys": [{"id": key.id, "name": key.name, "enabled": enabled} for key in keys]}


def _switch(stack: Stack, keys: Sequence[Key], *, enabled: bool) -> list[str]:
    word, lines = "enabled" if enabled else "disabled", []
    for key in keys:
        if key.enabled != enabled:
            stack.aws.client("apigateway").update_api_key(
                apiKey=key.id,
                patchOperations=[{"op": "replace", "path": "/enabled", "value": str(enabled).lower()}],
            )
        lines.append(f"{key.who} is {word}{' already' if key.enabled == enabled else ''}")
    return lines


def _inside(
    stack: Stack, keys: Sequence[Key], now: datetime, reason: str, known: Sequence[Entry] | None
) -> tuple[list[str], list[str]]:
    """Close the live grants of keys, or list them: (lines on the grants closed, notes).

    `known` are the grants that were live before the keys were changed, or None to close none. Grants that
    were opened since are closed as well; raises AdminError if the trail cannot be read for those.
    """
    live = inside.of_keys_if_readable(stack, [key.id for key in keys], now)
    names = dict.fromkeys(
        key.name if key.name == key.recorded_name and not _needs_quotes(key.name) else key.id for key in keys
    )
    ways = " and ".join(f"`knock-admin revoke --principal {name}`" for name in names)
    if known is not None:
        ended = inside.end(stack, known if live is None else live, reason, progress=reason)
        if live is None:
            unknown = f"Whether more grants were opened before {reason} is not known; {ways} ends those."
            raise AdminError("\n".join([unknown, *ended]))
        return ended, []
    if live is None:
        return [], [f"Who is in by it now is not known; {ways} ends those grants."]
    if not live:
        return [], ["Nobody is in by it now."]
    return [], [f"Still in, until its end ({ways} ends it now):", *inside.who(live, now)]


def _needs_quotes(name: str) -> bool:
    """Say whether a name must be quoted in a shell."""
    return shlex.quote(name) != name


def rotate(stack: Stack, name: str, *, overlap: timedelta, now: datetime) -> Result:
    """Make a successor with a key's name and rights. The old key stays valid until `finish`.

    Raises AdminError if a successor exists. After an interruption, a second call completes it.
    """
    old, retires_at, key_id, value = replace(stack, name, overlap=overlap, now=now)
    return _result(
        old.name,
        key_id,
        value,
        f"The old one ({old.id}) works on; after {retires_at}, end it with "
        f"`knock-admin key rotate {visible(old.name)} --finish`.",
    )


def replace(
    stack: Stack,
    name: str,
    *,
    overlap: timedelta,
    now: datetime,
    keep: Callable[[str, str, str], object] = lambda _name, _id, _value: None,
    listing: Listing | None = None,
) -> tuple[Key, str, str, str]:
    """Make a key's successor: (the old key, the time it retires, id and value of the new key).

    `keep` and `listing` are those of `make`. Raises AdminError if a successor exists.
    """
    listing = listing or look(stack)
    named = listing.named(stack, name)
    current = [key for key in named if key.retires_at is None]
    retiring = [key for key in named if key.retires_at is not None]
    if len(current) > 1:
        raise AdminError(
            f"Several keys are called {visible(name)}: say which by id, "
            f"{', '.join(key.id for key in current)}."
        )
    if current and retiring:
        raise AdminError(
            f"The key {visible(name)} is being rotated: the old one ({retiring[0].id}) retires at "
            f"{retiring[0].tags[tags.RETIRES_AT]}. `knock-admin key rotate {visible(name)} --finish` ends "
            f"that. If nobody has seen the new one's value, `knock-admin key rm {current[0].id}` and rotate "
            "again."
        )
    old = (current or retiring)[0]
    retires_at = old.tags.get(tags.RETIRES_AT) or tags.show_time(now + overlap)
    if current:
        stack.aws.client("apigateway").tag_resource(
            resourceArn=stack.aws.key_arn(old.id), tags={tags.RETIRES_AT: retires_at}
        )
    rights = {
        tag: value for tag, value in old.tags.items() if tag != tags.RETIRES_AT and not tag.startswith("aws:")
    }
    wanted = {**old.name_tag, **rights, tags.STACK: stack.name}
    return old, retires_at, *make(stack, old.name, wanted, keep=keep, listing=listing)


def finish(stack: Stack, name: str | None, now: datetime) -> Result:
    """Delete the old keys of rotations whose overlap is over, of one name or all.

    The exit code is 1 if a named key cannot be deleted yet. A second call deletes none.
    """
    keys = keys_of(stack)
    retiring = [key for key in keys if key.retires_at is not None and name in (None, key.name, key.id)]
    if name and not retiring:
        raise AdminError(f"No key called {visible(name)} is being rotated; see `knock-admin key ls`.")
    lines, deleted, waiting = [], [], []
    for key in retiring:
        if not any(other.name == key.name and other.retires_at is None for other in keys):
            waiting.append(key.id)
            lines.append(
                f"The key {key.who} has no successor: run `knock-admin key rotate {visible(key.name)}` again."
            )
        elif key.retires_at and now < key.retires_at:
            waiting.append(key.id)
            lines.append(
                f"The key {key.who} retires at {key.tags[tags.RETIRES_AT]}; "
                f"`knock-admin key rm {key.id}` does not wait for that."
            )
        else:
            stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
            deleted.append(key.id)
            lines.append(f"deleted the old key {key.who}")
    return Result(
        {"deleted": deleted, "waiting": waiting},
        lines or ["No key is being rotated."],
        exit_code=1 if name and waiting else 0,
    )


def remove(stack: Stack, name: str, *, now: datetime, revoke: bool) -> Result:
    """Delete a key, or every key of that name; `revoke` closes its live grants, which else go on.

    Raises AdminError, before any change, if the grants are to be closed and cannot be read.
    """
    chosen = look(stack).named(stack, name)
    known = inside.before_ending(stack, [key.id for key in chosen], now) if revoke else None
    for key in chosen:
        stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
    ended, notes = _inside(stack, chosen, now, "the key is deleted", known)
    return Result(
        {"deleted": [{"id": key.id, "name": key.name} for key in chosen]},
        [*(f"deleted the key {key.who}" for key in chosen), *ended],
        notes=notes,
    )
