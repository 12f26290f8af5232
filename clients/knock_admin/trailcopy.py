"""`knock-admin trail copy`: carries history over after the stack's store was changed.

What is copied is what can no longer change: grants that are closed, and refusals. A ledger says what is open
now, which is the new store's to know, so it is not. Nothing that is there already is overwritten, and each
item is written by one call under the condition that there is none: twice is once, a run that was stopped goes
on, and a record that the stack has made since stands.

Both sides are read in one order, so what is there already costs a read and no write:

    source       a   b   c   d
    destination  a       c       x      b and d are written; x is of the new store

Then both are read once more: the check is that everything there was to copy is there.

A record that is not as Knock makes it (`genuine.py`) is named and not copied. For what the others say of the
past the old store is trusted, as it was before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from knock_admin import dynamodb, genuine, simpledb, stores
from knock_admin.errors import AdminError, UsageError, translated
from knock_admin.output import Result, count, note, progress, table, visible
from knock_admin.stores import DYNAMODB, REFUSALS, SIMPLEDB, TITLES, TRAIL, equal

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from datetime import datetime

    from knock_admin.stack import Stack
    from knock_admin.stores import Store, Values

KINDS = {"grant": TRAIL, "refusal": REFUSALS}
PLURALS = {"grant": "grants", "refusal": "refusals"}
OTHER = {SIMPLEDB: DYNAMODB, DYNAMODB: SIMPLEDB}

TOLD_EACH = 100
"""Items between two words on how far the copy has come."""
MOST_NAMED = 10
"""How many items of a kind are named in one line."""


@dataclass
class Tally:
    """What became of one kind of record."""

    kind: str
    source: Store
    destination: Store
    found: int = 0
    copied: int = 0
    there: int = 0
    different: list[str] = field(default_factory=list)
    """Those of which the destination holds another record; it stands."""
    left: list[str] = field(default_factory=list)
    """Those that are not closed: they are left where they are."""
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Those that the check at the end did not find."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "from": self.source.where,
            "to": self.destination.where,
            "found": self.found,
            "not_closed": self.left,
            "copied": self.copied,
            "there_before": self.there,
            "different": self.different,
            "failed": self.failed,
            "missing": self.missing,
        }


def copy(stack: Stack, args: Namespace) -> Result:
    """Copy the history of the store the stack had before into the one it has."""
    if args.to != stack.store:
        raise UsageError(
            f"The stack {stack.name} keeps its trail in {TITLES[stack.store]}, so a copy goes there: "
            f"--to {stack.store}. To change that, deploy with another TrailStore first."
        )
    tallies = [Tally(kind, *each) for kind, each in _places(stack, args).items()]
    for tally in tallies:
        _copy(stack, tally, args.now)
    if not stack.aws.calls.dry_run:
        for tally in tallies:
            _check(tally)
    well = not any(tally.failed or tally.missing for tally in tallies)
    data = {"complete": well, "records": [tally.as_json() for tally in tallies]}
    return Result(data, list(_lines(tallies, well=well)), exit_code=0 if well else 1)


# ---------------------------------------------------------------------------- from where to where


def _places(stack: Stack, args: Namespace) -> dict[str, tuple[Store, Store]]:
    """Find source and destination of each kind, and see that they are there and of Knock's shape."""
    before = OTHER[args.to]
    places: dict[str, tuple[Store, Store]] = {}
    for kind, variable in KINDS.items():
        region, name = _source(stack, before, kind, args)
        source = stores.at(stack.aws, before, region, name, listed=variable == TRAIL)
        places[kind] = source, stores.of(stack, variable)
    for pair in places.values():
        for place in pair:
            if isinstance(place, dynamodb.DynamoDb):
                place.check()
            else:
                next(place.select(), None)
    return places


def _source(stack: Stack, store: str, kind: str, args: Namespace) -> tuple[str, str]:
    """Find a domain or table that the stack had before: as named, or the only one that its name fits.

    Both stay when the store is changed. Raises UsageError when it is not clear which it is.
    """
    named = args.from_trail if kind == "grant" else args.from_refusals
    own = str(stack.aws.region)
    regions = [args.from_region] if args.from_region else [own] if store == DYNAMODB else _regions(stack)
    if named and len(regions) == 1:
        return regions[0], named
    # One endpoint may answer for every region, with the same names: then it is the stack's own.
    found = {
        name: region
        for region in sorted(regions, key=lambda region: region == own)
        for name in _names(stack, store, region)
        if (name == named if named else _fits(stack.name, store, kind, name))
    }
    if len(found) == 1:
        ((name, region),) = found.items()
        return region, name
    what = f"{TITLES[store]} {'table' if store == DYNAMODB else 'domain'}"
    option = "--from-trail" if kind == "grant" else "--from-refusals"
    known = (
        ", ".join(f"{name} in {region}" for name, region in sorted(found.items()))
        or "none that looks like it"
    )
    raise UsageError(
        f"Which {what} held the {PLURALS[kind]} of the stack {stack.name}? There is: {known}. "
        f"Name it with {option}, and its region with --from-region."
    )


def _regions(stack: Stack) -> list[str]:
    return stack.aws.trail_regions


def _names(stack: Stack, store: str, region: str) -> list[str]:
    names = dynamodb.tables if store == DYNAMODB else simpledb.domains
    try:
        return list(names(stack.aws, region))
    except ClientError as error:
        failure = translated(error, stack.aws.calls.last)
        raise type(failure)(
            f"{failure}\nThat was to find what the stack had before in {region}. Named with --from-trail, "
            "--from-refusals and --from-region, it need not be looked for."
        ) from error


def _fits(stack: str, store: str, kind: str, name: str) -> bool:
    """Say whether a name is as template.yaml names a stack's domains, and CloudFormation its tables."""
    if store == SIMPLEDB:
        what = {"grant": "trail", "refusal": "refusals"}[kind]
        return re.fullmatch(rf"{re.escape(stack)}-{what}-[0-9a-z]{{8}}", name) is not None
    what = {"grant": "TrailTable", "refusal": "RefusalsTable"}[kind]
    return re.fullmatch(rf"{re.escape(stack)}-{what}(-[0-9A-Za-z]+)?", name) is not None


# ---------------------------------------------------------------------------- the copy


Pair = tuple[str, "Values", "Values | None"]


def _paired(tally: Tally) -> Iterator[Pair]:
    """Walk through the source's records, each with what the destination holds of it; both come by `order`."""
    theirs = tally.destination.select([equal("kind", tally.kind)], "ascending")
    ahead = next(theirs, None)
    for name, values in tally.source.select([equal("kind", tally.kind)], "ascending"):
        at = (values["order"][0], name)
        while ahead and (ahead[1]["order"][0], ahead[0]) < at:
            ahead = next(theirs, None)
        yield name, values, ahead[1] if ahead and ahead[0] == name else None


def _copy(stack: Stack, tally: Tally, now: datetime) -> None:
    """Copy what can no longer change. An item that is not Knock's, or cannot be written, stops no other."""
    stack.aws.calls.uncounted = True  # there may be any number, and all of them may be done again
    try:
        for name, values, held in _paired(tally):
            if _may_change(tally, values):
                tally.left.append(name)
                continue
            tally.found += 1
            if tally.found % TOLD_EACH == 0:
                progress(f"{PLURALS[tally.kind]}: {tally.found} looked at, {tally.copied} copied")
            if wrong := genuine.fault(tally.kind, name, values, now):
                tally.failed[name] = wrong
                continue
            _carry(stack, tally, name, values, held)
    finally:
        stack.aws.calls.uncounted = False
    if stack.aws.calls.dry_run and tally.left:
        note(f"not closed, and left where they are: {_some(tally.left)}")
    if stack.aws.calls.dry_run and tally.failed:
        note(f"not as Knock records it, and not copied: {_some(list(tally.failed))}")
    if stack.aws.calls.dry_run and tally.copied:
        stack.aws.calls.plan(
            "dynamodb:PutItem" if stack.store == DYNAMODB else "sdb:PutAttributes",
            {"into": tally.destination.where, "times": tally.copied, "kind": tally.kind},
        )


def _carry(stack: Stack, tally: Tally, name: str, values: Values, held: Values | None) -> None:
    """Write a record unless the destination holds it, and count what became of it."""
    if held is None and not stack.aws.calls.dry_run:
        held = _write(stack, tally, name, values)
    elif held is None:
        tally.copied += 1
    if held is not None and _same(held, values):
        tally.there += 1
    elif held is not None:
        tally.different.append(name)


def _may_change(tally: Tally, values: Values) -> bool:
    return tally.kind == "grant" and values.get("closed_at", ("-",)) == ("-",)


def _write(stack: Stack, tally: Tally, name: str, values: Values) -> Values | None:
    """Write a record; give what is there instead, where it is there already after all."""
    try:
        if tally.destination.add(name, values):
            tally.copied += 1
            return None
        return tally.destination.get(name)
    except AdminError as error:
        tally.failed[name] = str(error)
    except ClientError as error:
        failure = translated(error, stack.aws.calls.last)
        if not _of_the_item(error):
            done = f"Before that, {count(tally.copied, tally.kind)} had been copied; run it again to go on."
            raise type(failure)(f"{failure}\n{done}") from error
        tally.failed[name] = str(failure)
    return None


def _of_the_item(error: ClientError) -> bool:
    """Say whether an error is of one item's content, so that the next may be tried."""
    return error.response.get("Error", {}).get("Code") in (
        "InvalidParameterValue",
        "NumberItemAttributesExceeded",
        "NumberSubmittedAttributesExceeded",
    )


def _same(one: Values, other: Values) -> bool:
    return {name: sorted(texts) for name, texts in one.items()} == {
        name: sorted(texts) for name, texts in other.items()
    }


def _check(tally: Tally) -> None:
    """See that everything there was to copy is there. What a list does not show yet is asked for by name."""
    progress(f"{PLURALS[tally.kind]}: checking")
    for name, values, held in _paired(tally):
        if _may_change(tally, values) or name in tally.failed:
            continue
        if held is None and "kind" not in tally.destination.get(name):
            tally.missing.append(name)


def _lines(tallies: list[Tally], *, well: bool) -> Iterator[str]:
    header = ("RECORDS", "TO COPY", "COPIED", "THERE BEFORE", "DIFFERENT", "FAILED", "NOT CLOSED")
    rows = [
        (
            PLURALS[each.kind],
            each.found,
            each.copied,
            each.there,
            len(each.different),
            len(each.failed) + len(each.missing),
            len(each.left),
        )
        for each in tallies
    ]
    yield from table(rows, header)
    for each in tallies:
        yield f"{PLURALS[each.kind]}: from {each.source.where} to {each.destination.where}"
        if each.left:
            yield f"not closed, and left where they are: {_some(each.left)}"
        if each.different:
            yield f"recorded anew in the meantime, and left as they are there: {_some(each.different)}"
        for name, why in list(each.failed.items())[:MOST_NAMED]:
            yield f"NOT copied: {visible(name)}: {visible(why)}"
        if others := list(each.failed)[MOST_NAMED:]:
            yield f"NOT copied either: {', '.join(map(visible, others))}"
        if each.missing:
            yield f"NOT there, though it was written: {_some(each.missing)}"
    if well:
        yield "All of it is there: both were read again. The ledger is not copied: it is of what is open now."
    else:
        yield "Not all of it is there. Run the same command again: twice is once."


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(map(visible, names[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
