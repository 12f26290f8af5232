"""API keys, their rights, and their place in the stack's usage plan (`knock-admin key`).

A principal is an API key; its rights are tags on it, and so is the name under which its grants are on record
(`knock:name`): the functions may read a key's tags, and not the key.

A key opens nothing until it is in the usage plan, so a run that stopped between making a key and putting it
there leaves nothing usable behind, and the next run of the same command finds that key by its name and stack,
goes on with it and shows its value, which nobody has seen.

The value is shown once, when the key is made. This program asks for it again in one case only: for a key
whose making it completes. API Gateway sends values all the same where it lists a usage plan's keys
(GetUsagePlanKeys has done so since 2021, and takes no option against it): they are in that answer on its way
to this process, are read by nothing here, and are in no log of ours (`aws.Aws` lets none of botocore's
through). Who may call GetUsagePlanKeys, may read every value.

A rotation marks the old key first and makes the new one then: a stop between the two leaves the old one
working, and nothing is deleted while its successor is missing. Nothing ends the old key by itself: `rotate
--finish` does.
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
    def who(self) -> str:
        """Name it in a line for people; whoever made it may have put anything into its name."""
        return f"{visible(self.name)} ({self.id})"

    @property
    def retires_at(self) -> datetime | None:
        """Give the time after which a rotated key may be deleted. Raises AdminError on a bad tag."""
        text = self.tags.get(tags.RETIRES_AT)
        try:
            return tags.parse_time(text) if text else None
        except ValueError as error:
            raise AdminError(f"The tag {tags.RETIRES_AT} of the key {self.who}: {error}") from error

    @property
    def until(self) -> datetime | None:
        """Give the time after which it opens nothing; None where there is none, or none that can be read."""
        text = self.tags.get(tags.UNTIL, "")
        return None if not text or tags.fault(tags.UNTIL, text, tags.parse_until) else tags.parse_until(text)

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
            "until": self.tags.get(tags.UNTIL),
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
        tags.UNTIL: tags.parse_until,
        tags.RETIRES_AT: tags.parse_time,
    }
    found = (tags.fault(tag, key.tags[tag], read) for tag, read in readers.items() if tag in key.tags)
    faults = [fault for fault in found if fault]
    if key.tags.get(tags.OPERATOR, "false") not in ("true", "false"):
        faults.append(f"the tag {tags.OPERATOR} is neither true nor false")
    return faults


@dataclass(frozen=True)
class Listing:
    """One look at the API keys of the account and region: those in the stack's usage plan, and the others.

    It takes two lists of API Gateway, which takes ten requests a second of the whole account: what works on
    many keys looks once.
    """

    inside: list[Key]
    """By name, and one that retires before its successor: two may be of one second, so age alone does not
    tell."""
    outside: list[Key]

    def named(self, stack: Stack, text: str) -> list[Key]:
        """Find the key of the plan with this id, or every key with this name: two, while one is rotated.

        Raises AdminError when there is none.
        """
        found = [key for key in self.inside if key.id == text]
        found = found or [key for key in self.inside if key.name == text]
        if not found:
            raise no_key(stack, text)
        return found

    def begun(self, stack: Stack, name: str) -> Key | None:
        """Find a key of this name that was made for the stack and is not in its plan yet."""
        return next(
            (key for key in self.outside if key.name == name and key.tags.get(tags.STACK) == stack.name), None
        )


def look(stack: Stack) -> Listing:
    """List the API keys of the account and region, without values."""
    members = {
        each["id"]
        for each in stack.aws.pages(
            "apigateway", "get_usage_plan_keys", "items", usagePlanId=stack.plan["id"]
        )
    }
    found = stack.aws.pages(
        "apigateway", "get_api_keys", "items", includeValues=False, PaginationConfig={"PageSize": 500}
    )
    keys = [
        Key(
            each["id"],
            each.get("name") or each["id"],
            each.get("enabled", False),
            each.get("tags", {}),
            each.get("createdDate"),
        )
        for each in found
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
    """List the keys in the stack's usage plan, by name, and one that retires before its successor."""
    return look(stack).inside


def no_key(stack: Stack, named: str) -> AdminError:
    return AdminError(f"The stack {stack.name} has no key {visible(named)}; see `knock-admin key ls`.")


def _arn(stack: Stack, key_id: str) -> str:
    return f"arn:{stack.aws.partition}:apigateway:{stack.aws.region}::/apikeys/{key_id}"


def check_targets(stack: Stack, value: str) -> None:
    """Warn of targets that are named and are not there (yet)."""
    if value == tags.EVERY_TARGET:
        return
    known = {group.tags.get(tags.TARGET) for group in all_groups(stack)}
    for name in value.split():
        if name not in known:
            warn(f"there is no target {name} yet; make it with `knock-admin target add {name}`")


def make(
    stack: Stack,
    name: str,
    wanted: Mapping[str, str],
    made: Callable[[str], object] = lambda _id: None,
    keep: Callable[[str, str, str], object] = lambda _name, _id, _value: None,
    listing: Listing | None = None,
) -> tuple[str, str]:
    """Make a key with these tags and put it into the usage plan, or complete one that is not in it.

    Gives its id and its value; `made` is told the id as soon as there is one. `keep` gets name, id and value
    before the key can be used: what it raises leaves a key that opens nothing, and that the next run
    completes. `listing` is a look from before, which saves one.
    """
    gateway, plan = stack.aws.client("apigateway"), stack.plan["id"]
    begun = (listing or look(stack)).begun(stack, name)
    if begun:
        key_id = begun.id
        value = gateway.get_api_key(apiKey=key_id, includeValue=True)["value"]
        gateway.tag_resource(resourceArn=_arn(stack, key_id), tags=dict(wanted))
    else:
        key = gateway.create_api_key(name=name, enabled=True, generateDistinctId=True, tags=dict(wanted))
        key_id, value = key["id"], key["value"]
    made(str(key_id))
    keep(name, str(key_id), str(value))
    gateway.create_usage_plan_key(usagePlanId=plan, keyId=key_id, keyType="API_KEY")
    return str(key_id), str(value)


def _told(name: str, key_id: str, value: str, *notes: str) -> Result:
    return Result(
        {"id": key_id, "name": name, "value": value},
        [value],
        notes=[f"The key {visible(name)} ({key_id}). This is its value; it is not shown again:", *notes],
    )


def add(stack: Stack, name: str, rights: Mapping[str, str]) -> Result:
    """Make a key with its rights and put it into the stack's usage plan; its value is shown once."""
    listing = look(stack)
    for key in listing.inside:
        if key.name == name:
            raise AdminError(
                f"The stack {stack.name} has a key {visible(key.name)} already ({key.id}): change it with "
                f"`key set`, or `key rotate` it. If nobody has seen its value, `key rm {key.id}` and add "
                "it again."
            )
    check_targets(stack, rights[tags.TARGETS])
    return _told(name, *make(stack, name, own_tags(stack, name, rights), listing=listing))


def own_tags(stack: Stack, name: str, rights: Mapping[str, str]) -> dict[str, str]:
    """Give all tags of a new key."""
    return {tags.STACK: stack.name, tags.NAME: name, **rights}


def show(stack: Stack, names: Sequence[str], now: datetime) -> Result:
    """List the stack's keys and their rights; never their values."""
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
    """Change principals' rights, on every key of each name; what is not named stays.

    `more` and `fewer` are targets to add to what each may open, and to take away. A key without the tag under
    which its grants are on record gets that too. All names are looked up, and all new lists checked, before
    the first change. Twice changes nothing the second time.
    """
    listing = look(stack)
    found = list({key.id: key for name in names for key in listing.named(stack, name)}.values())
    planned = [(key, {**wanted, **_targets(key, more, fewer), **key.name_tag}) for key in found]
    if wanted.get(tags.TARGETS) or more:
        check_targets(stack, wanted.get(tags.TARGETS) or " ".join(more))
    lines, changed = [], []
    gateway = stack.aws.client("apigateway")
    for key, rights in planned:
        new = {tag: value for tag, value in rights.items() if key.tags.get(tag) != value}
        gone = [tag for tag in unwanted if tag in key.tags]
        if new:
            gateway.tag_resource(resourceArn=_arn(stack, key.id), tags=new)
        if gone:
            gateway.untag_resource(resourceArn=_arn(stack, key.id), tagKeys=gone)
        changed.append({"id": key.id, "name": key.name, "set": new, "removed": gone})
        what = [f"{tag} is {value}" for tag, value in new.items()] + [f"{tag} is gone" for tag in gone]
        lines.append(f"{key.who}: {', '.join(what) or 'nothing to change'}")
    return Result({"keys": changed}, lines, notes=[SOON])


def _targets(key: Key, more: Sequence[str], fewer: Sequence[str]) -> dict[str, str]:
    """Give the tag of a key whose targets change by some. Raises AdminError where that cannot be written."""
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
    """Let a disabled key, or every key of that name, knock again."""
    found = look(stack).named(stack, name)
    return Result(_switched(found, enabled=True), _switch(stack, found, enabled=True), notes=[SOON])


def disable(stack: Stack, name: str, *, now: datetime, revoke: bool) -> Result:
    """Stop a key, or every key of that name, from knocking; its live grants keep their end, or are ended."""
    found = look(stack).named(stack, name)
    known = inside.before_ending(stack, [key.id for key in found], now) if revoke else None
    lines = _switch(stack, found, enabled=False)
    ended, notes = _inside(stack, found, now, "the key is disabled", known)
    return Result(_switched(found, enabled=False), [*lines, *ended], notes=[SOON, *notes])


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
    """Say who is in by some keys, and how to end that; or end it: (lines of what was ended, notes).

    `known` are those that were in before the keys were touched, where they are to be ended. They are, with
    whoever has come in since; raises AdminError where it cannot be said who has.
    """
    live = inside.told_of_keys(stack, [key.id for key in keys], now)
    names = dict.fromkeys(
        key.name if key.name == key.recorded_name and not _needs_quotes(key.name) else key.id for key in keys
    )
    ways = " and ".join(f"`knock-admin revoke --principal {name}`" for name in names)
    if known is not None:
        ended = inside.end(
            stack, known if live is None else live, reason, done="what was asked for the key is done"
        )
        if live is None:
            raise AdminError(
                "\n".join([f"Who came in while {reason} is not known; {ways} ends that later.", *ended])
            )
        return ended, []
    if live is None:
        return [], [f"Who is in by it now is not known; {ways} ends whoever is."]
    if not live:
        return [], ["Nobody is in by it now."]
    return [], [f"Still in, until its end ({ways} ends it now):", *inside.who(live, now)]


def _needs_quotes(name: str) -> bool:
    """Say whether a shell would not take a name as it is."""
    return shlex.quote(name) != name


def rotate(stack: Stack, name: str, *, overlap: timedelta, now: datetime) -> Result:
    """Make a new key with an old one's name and rights; the old one stays valid until `finish`."""
    old, retires_at, key_id, value = replace(stack, name, overlap=overlap, now=now)
    return _told(
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
    """Make a key's successor: (the old one, when it retires, the new one's id and value). `keep` and
    `listing` as in `make`.
    """
    listing = listing or look(stack)
    found = listing.named(stack, name)
    current = [key for key in found if key.retires_at is None]
    retiring = [key for key in found if key.retires_at is not None]
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
            resourceArn=_arn(stack, old.id), tags={tags.RETIRES_AT: retires_at}
        )
    rights = {
        tag: value for tag, value in old.tags.items() if tag != tags.RETIRES_AT and not tag.startswith("aws:")
    }
    wanted = {**old.name_tag, **rights, tags.STACK: stack.name}
    return old, retires_at, *make(stack, old.name, wanted, keep=keep, listing=listing)


def finish(stack: Stack, name: str | None, now: datetime) -> Result:
    """Delete the old keys of rotations whose time has come: of one name, or all. Twice is once."""
    keys = keys_of(stack)
    retiring = [key for key in keys if key.retires_at is not None and name in (None, key.name, key.id)]
    if name and not retiring:
        raise AdminError(f"No key called {visible(name)} is being rotated; see `knock-admin key ls`.")
    lines, deleted, waiting = [], [], []
    for key in retiring:
        successor = [each for each in keys if each.name == key.name and each.retires_at is None]
        if not successor:
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
    """Delete a key, or every key of that name, for good; its live grants keep their end, or are ended."""
    found = look(stack).named(stack, name)
    known = inside.before_ending(stack, [key.id for key in found], now) if revoke else None
    for key in found:
        stack.aws.client("apigateway").delete_api_key(apiKey=key.id)
    ended, notes = _inside(stack, found, now, "the key is deleted", known)
    return Result(
        {"deleted": [{"id": key.id, "name": key.name} for key in found]},
        [*(f"deleted the key {key.who}" for key in found), *ended],
        notes=notes,
    )
