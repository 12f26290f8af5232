"""Checks that Knock can have written a record, before `trail copy` copies it.

A grant's id ends with a digest of all other fields of its execution's input (docs/architecture.md), and the
record has that input. So principal, source, targets, times and reason have not been changed since the id was
made. The end of a grant, and a refusal, have no digest: their format and their times are checked. This is no
protection against an attacker who could write the old store, and compute digests: it finds records that were
altered, truncated or written by another program, and those that would count as live in the new trail for
ever.

The functions' reader (`functions/grants/values.py`, `trail.py`) is not part of this distribution.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from knock_admin.dynamodb import SETS
from knock_admin.trail import SKEW, Entry

if TYPE_CHECKING:
    from knock_admin.stores import Values

ENDS = ("expired", "revoked", "superseded", "failed")
DIGITS = 16
LONGEST_ID = 80
LONGEST = timedelta(days=366)
"""The longest grant: Step Functions waits for a year at most."""

_TIME = re.compile(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_NAME = re.compile(r"[0-9A-Za-z_.:-]{1,200}", re.ASCII)


def fault(kind: str, name: str, values: Values, now: datetime) -> str | None:
    """Say why a closed grant or a refusal is not genuine; None if it may be."""
    try:
        _read(kind, name, values, now)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        return f"it is no {kind} as Knock records it: {reason}"
    return None


def _read(kind: str, name: str, values: Values, now: datetime) -> None:
    """Raise ValueError for a record that is not genuine, or the error of reading another format."""
    if many := sorted(key for key, texts in values.items() if key not in SETS and len(texts) != 1):
        raise ValueError(f"{', '.join(many)} has several values")
    single = {key: texts[0] for key, texts in values.items() if key not in SETS}
    if not _NAME.fullmatch(name):
        raise ValueError("its id is malformed")
    requested_at = _past(single, "requested_at", now)
    if single["order"] != f"{single['requested_at']} {name}":
        raise ValueError(f"its `order` is {single['order']!r}")
    needed = ("principal_id", "principal_name", "source", *(("call", "right") if kind == "refusal" else ()))
    if empty := [key for key in needed if not single[key]]:
        raise ValueError(f"its {', '.join(empty)} is empty")
    if kind == "grant":
        _compare(name, values, single)
        _check_end(single, requested_at, now)
        _check_sets(values, now)


def _check_end(single: dict[str, str], requested_at: datetime, now: datetime) -> None:
    """Raise ValueError unless the grant has ended, and its times are possible."""
    expires_at = _time(single, "expires_at")
    if not timedelta(0) < expires_at - requested_at <= LONGEST:
        raise ValueError(f"it was asked for at {single['requested_at']}, until {single['expires_at']}")
    if single["state"] not in ENDS:
        raise ValueError(f"it is closed, and its state is {single['state']!r}")
    for key in ("ended_at", "closed_at", *(("authorized_at",) if "authorized_at" in single else ())):
        if _past(single, key, now) < requested_at - SKEW:
            raise ValueError(f"its {key} is before it was asked for")


def _check_sets(values: Values, now: datetime) -> None:
    """Raise ValueError unless the grant's events and rules can be read."""
    for text in (*values.get("event", ()), *values.get("authorized", ())):
        event = json.loads(text)
        _past(event, "at", now)
        if not isinstance(event["event"], str):
            raise ValueError("an event has no name")
    for text in values.get("rule", ()):
        rule = json.loads(text)
        if not all(isinstance(rule[key], str) for key in ("rule", "group", "ports", "target")):
            raise ValueError("a rule is not written as Knock writes it")


def _compare(name: str, values: Values, single: dict[str, str]) -> None:
    """Raise ValueError unless the id and the other attributes agree with the input."""
    input_: Any = Entry(name, values).input
    if not isinstance(input_, dict):
        raise ValueError("its input cannot be read")
    if input_["grant_id"] != name:
        raise ValueError(f"its input is that of {input_['grant_id']!r}")
    if name != (own := own_id(input_)):
        raise ValueError(f"its id is not the digest of its input, which gives {own}")
    wanted = {
        "principal_id": input_["principal"]["id"],
        "principal_name": input_["principal"]["name"],
        "source": input_["source"],
        "requested_at": input_["requested_at"],
        "expires_at": input_["expires_at"],
        "reason": input_["reason"],
        "renews": input_.get("renews", ""),
    }
    if differing := sorted(key for key, text in wanted.items() if single.get(key, "") != text):
        raise ValueError(f"its input has another {', '.join(differing)}")
    if {target["name"] for target in input_["targets"]} != set(values.get("target_name", ())):
        raise ValueError("its input has other targets")


def own_id(input_: dict[str, Any]) -> str:
    """Compute the id of an execution's input, like `alice_203-0-113-7_20261123T211719Z_…`."""
    content = {key: value for key, value in input_.items() if key != "grant_id"}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
    network = ipaddress.ip_network(input_["source"])
    where = str(network.network_address) if network.num_addresses == 1 else str(network)
    when = _time(input_, "requested_at").strftime("%Y%m%dT%H%M%SZ")
    tail = f"_{_plain(where)}_{when}_{digest}"
    return (_plain(input_["principal"]["name"]).strip("-") or "key")[: LONGEST_ID - len(tail)] + tail


def _plain(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z-]", "-", text)


def _time(record: dict[str, Any], key: str) -> datetime:
    """Read a time in Knock's format. Raises ValueError."""
    if not _TIME.fullmatch(record[key]):
        raise ValueError(f"its {key} is {record[key]!r}, which is no time")
    return datetime.fromisoformat(record[key].replace("Z", "+00:00"))


def _past(record: dict[str, Any], key: str, now: datetime) -> datetime:
    at = _time(record, key)
    if at > now + SKEW:
        raise ValueError(f"its {key} is {record[key]}, which is yet to come")
    return at
