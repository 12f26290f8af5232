"""`knock-admin trail copy`: copies the history from the store that the stack had before.

It copies the records that can no longer change: closed grants, and refusals. It does not copy ledgers, which
say what is open now: the new store has its own. Each item is written by one conditional call, which never
overwrites. So a second run copies nothing again, an interrupted run can be continued, and a record that the
stack has written since is kept.

Both stores are read in the same order, so an item that the destination has costs a read and no write:

    source       a   b   c   d
    destination  a       c       x      b and d are written; x is a record of the new store

Then both are read again, to check that the destination has every item that was to be copied.

A record that Knock cannot have written (`genuine.py`) is reported and not copied. What genuine records say is
trusted, as the old store was.
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
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from knock_admin.stack import Stack
    from knock_admin.stores import Store, Values

KINDS = {"grant": TRAIL, "refusal": REFUSALS}
PLURALS = {"grant": "grants", "refusal": "refusals"}
OTHER = {SIMPLEDB: DYNAMODB, DYNAMODB: SIMPLEDB}

TOLD_EACH = 100
"""Items between two reports of progress."""
MOST_NAMED = 10
"""The most items that are named in one line."""


@dataclass
class Tally:
    """The results of copying one kind of record."""

    kind: str
    source: Store
    destination: Store
    to_copy: int = 0
    copied: int = 0
    there_before: int = 0
    different: list[str] = field(default_factory=list)
    """Ids under which the destination has a different record, which is kept."""
    not_closed: list[str] = field(default_factory=list)
    """Grants that are not closed, and so not copied."""
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Ids that the check at the end did not find in the destination."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "from": self.source.where,
            "to": self.destination.where,
            "found": self.to_copy,
            "not_closed": self.not_closed,
            "copied": self.copied,
            "there_before": self.there_before,
            "different": self.different,
            "failed": self.failed,
            "missing": self.missing,
        }


def copy(
    stack: Stack, to: str, *, names: Mapping[str, str | None], region: str | None, now: datetime
) -> Result:
    """Copy the history from the stack's former store to its present store, `to`.

    `names` has the former domain or table of each kind and `region` its region, each None to search for it.
    Raises UsageError if they are not clear, or `to` is not the stack's store. A second run copies nothing
    again.
    """
    if to != stack.store:
        raise UsageError(
            f"The stack {stack.name} keeps its trail in {TITLES[stack.store]}, so a copy goes there: "
            f"--to {stack.store}. To change that, deploy with another TrailStore first."
        )
    tallies = [Tally(kind, *pair) for kind, pair in _places(stack, OTHER[to], names, region).items()]
    for tally in tallies:
        _copy(stack, tally, now)
    if not stack.aws.calls.dry_run:
        for tally in tallies:
            _check(tally)
    well = not any(tally.failed or tally.missing for tally in tallies)
    data = {"complete": well, "records": [tally.as_json() for tally in tallies]}
    return Result(data, list(_lines(tallies, well=well)), exit_code=0 if well else 1)


# ---------------------------------------------------------------------------- source and destination


def _places(
    stack: Stack, before: str, names: Mapping[str, str | None], region: str | None
) -> dict[str, tuple[Store, Store]]:
    """Find source and destination of each kind, and check that they exist and have Knock's schema."""
    places: dict[str, tuple[Store, Store]] = {}
    for kind, variable in KINDS.items():
        source_region, name = _source(stack, before, kind, names[kind], region)
        source = stores.at(stack.aws, before, source_region, name, listed=variable == TRAIL)
        places[kind] = source, stores.of(stack, variable)
    for pair in places.values():
        for place in pair:
            if isinstance(place, dynamodb.DynamoDb):
                place.check()
            else:
                next(place.select(), None)
    return places


def _source(stack: Stack, store: str, kind: str, named: str | None, region: str | None) -> tuple[str, str]:
    """Give region and name of the former domain or table: as named, or the only one that fits the stack.

    A change of the store keeps both stores. Raises UsageError unless exactly one fits.
    """
    own = str(stack.aws.region)
    regions = [region] if region else [own] if store == DYNAMODB else stack.aws.trail_regions
    if named and len(regions) == 1:
        return regions[0], named
    # An endpoint may answer for every region with the same names; the stack's own region then wins.
    fitting = {
        name: region
        for region in sorted(regions, key=lambda region: region == own)
        for name in _names(stack, store, region)
        if (name == named if named else _fits(stack.name, store, kind, name))
    }
    if len(fitting) == 1:
        ((name, where),) = fitting.items()
        return where, name
    store_kind = f"{TITLES[store]} {'table' if store == DYNAMODB else 'domain'}"
    option = "--from-trail" if kind == "grant" else "--from-refusals"
    known = (
        ", ".join(f"{name} in {where}" for name, where in sorted(fitting.items()))
        or "none that looks like it"
    )
    raise UsageError(
        f"Which {store_kind} held the {PLURALS[kind]} of the stack {stack.name}? There is: {known}. "
        f"Name it with {option}, and its region with --from-region."
    )


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
    """Say whether template.yaml gives a stack's domains such names, or CloudFormation its tables."""
    if store == SIMPLEDB:
        title = {"grant": "trail", "refusal": "refusals"}[kind]
        return re.fullmatch(rf"{re.escape(stack)}-{title}-[0-9a-z]{{8}}", name) is not None
    title = {"grant": "TrailTable", "refusal": "RefusalsTable"}[kind]
    return re.fullmatch(rf"{re.escape(stack)}-{title}(-[0-9A-Za-z]+)?", name) is not None


# ---------------------------------------------------------------------------- the copy


Pair = tuple[str, "Values", "Values | None"]


def _paired(tally: Tally) -> Iterator[Pair]:
    """Yield the source's records, each with the destination's record of the same id, or None."""
    copies = tally.destination.select([equal("kind", tally.kind)], "ascending")
    ahead = next(copies, None)
    for name, values in tally.source.select([equal("kind", tally.kind)], "ascending"):
        at = (values["order"][0], name)
        while ahead and (ahead[1]["order"][0], ahead[0]) < at:
            ahead = next(copies, None)
        yield name, values, ahead[1] if ahead and ahead[0] == name else None


def _copy(stack: Stack, tally: Tally, now: datetime) -> None:
    """Copy the records that can no longer change; pass over those that are not genuine or not accepted."""
    stack.aws.calls.uncounted = True  # their number has no bound, and repeating them changes nothing
    try:
        for name, values, existing in _paired(tally):
            if _may_change(tally, values):
                tally.not_closed.append(name)
                continue
            tally.to_copy += 1
            if tally.to_copy % TOLD_EACH == 0:
                progress(f"{PLURALS[tally.kind]}: {tally.to_copy} looked at, {tally.copied} copied")
            if wrong := genuine.fault(tally.kind, name, values, now):
                tally.failed[name] = wrong
                continue
            _carry(stack, tally, name, values, existing)
    finally:
        stack.aws.calls.uncounted = False
    if stack.aws.calls.dry_run and tally.not_closed:
        note(f"not closed, and left where they are: {_some(tally.not_closed)}")
    if stack.aws.calls.dry_run and tally.failed:
        note(f"not as Knock records it, and not copied: {_some(list(tally.failed))}")
    if stack.aws.calls.dry_run and tally.copied:
        stack.aws.calls.plan(
            "dynamodb:PutItem" if stack.store == DYNAMODB else "sdb:PutAttributes",
            {"into": tally.destination.where, "times": tally.copied, "kind": tally.kind},
        )


def _carry(stack: Stack, tally: Tally, name: str, values: Values, existing: Values | None) -> None:
    """Write a record unless the destination has one of that id, and count the result."""
    if existing is None and not stack.aws.calls.dry_run:
        existing = _write(stack, tally, name, values)
    elif existing is None:
        tally.copied += 1
    if existing is not None and _same(existing, values):
        tally.there_before += 1
    elif existing is not None:
        tally.different.append(name)


def _may_change(tally: Tally, values: Values) -> bool:
    return tally.kind == "grant" and values.get("closed_at", ("-",)) == ("-",)


def _write(stack: Stack, tally: Tally, name: str, values: Values) -> Values | None:
    """Write a record. Gives the destination's record if it has one after all, else None."""
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
            so_far = f"Before that, {count(tally.copied, tally.kind)} had been copied; run it again to go on."
            raise type(failure)(f"{failure}\n{so_far}") from error
        tally.failed[name] = str(failure)
    return None


def _of_the_item(error: ClientError) -> bool:
    """Say whether an error is about one item's content, so that the next item can be tried."""
    return error.response.get("Error", {}).get("Code") in (
        "InvalidParameterValue",
        "NumberItemAttributesExceeded",
        "NumberSubmittedAttributesExceeded",
    )


def _same(first: Values, second: Values) -> bool:
    return {name: sorted(texts) for name, texts in first.items()} == {
        name: sorted(texts) for name, texts in second.items()
    }


def _check(tally: Tally) -> None:
    """Check that the destination has every item. An item that its index does not list yet is read by id."""
    progress(f"{PLURALS[tally.kind]}: checking")
    for name, values, existing in _paired(tally):
        if _may_change(tally, values) or name in tally.failed:
            continue
        if existing is None and "kind" not in tally.destination.get(name):
            tally.missing.append(name)


def _lines(tallies: list[Tally], *, well: bool) -> Iterator[str]:
    header = ("RECORDS", "TO COPY", "COPIED", "THERE BEFORE", "DIFFERENT", "FAILED", "NOT CLOSED")
    rows = [
        (
            PLURALS[tally.kind],
            tally.to_copy,
            tally.copied,
            tally.there_before,
            len(tally.different),
            len(tally.failed) + len(tally.missing),
            len(tally.not_closed),
        )
        for tally in tallies
    ]
    yield from table(rows, header)
    for tally in tallies:
        yield f"{PLURALS[tally.kind]}: from {tally.source.where} to {tally.destination.where}"
        if tally.not_closed:
            yield f"not closed, and left where they are: {_some(tally.not_closed)}"
        if tally.different:
            yield f"recorded anew in the meantime, and left as they are there: {_some(tally.different)}"
        for name, why in list(tally.failed.items())[:MOST_NAMED]:
            yield f"NOT copied: {visible(name)}: {visible(why)}"
        if further := list(tally.failed)[MOST_NAMED:]:
            yield f"NOT copied either: {', '.join(map(visible, further))}"
        if tally.missing:
            yield f"NOT there, though it was written: {_some(tally.missing)}"
    if well:
        yield "All of it is there: both were read again. The ledger is not copied: it is of what is open now."
    else:
        yield "Not all of it is there. Run the same command again: it copies only what is missing."


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(map(visible, names[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
