"""`knock-admin ledger`: which live grants claim which rules of a source.

The ledger of a source has the claims of its live grants, and of each rule its phase, its ids and the attempts
to authorize it. This module reads a ledger and writes nothing. The functions read and write it with code of
their own (`functions/grants/ledgers.py`), which is not part of this distribution. A test compares the two.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from knock_admin import stores, tags
from knock_admin.errors import AdminError
from knock_admin.output import Result, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from knock_admin.stack import Stack
    from knock_admin.stores import Values

# The limits of a source. A knock that would exceed them is refused (SourceFull).
MOST_CLAIMS = 64
MOST_RULES = 128


def show(stack: Stack, source: str, *, now: datetime) -> Result:
    """Show the ledger of one source: claims, rules, tombstones, and grants that were released lately."""
    ledger = decode(source, stores.of(stack, stores.LEDGER).get(source))
    claims, rules = len(ledger["claims"]), len(ledger["rules"])
    lines = [f"{source}: {claims} of {MOST_CLAIMS} claims, {rules} of {MOST_RULES} rules"]
    for header, rows in _tables(ledger, now):
        if rows:
            lines += ["", *table(rows, header)]
    return Result(ledger, lines)


def _tables(
    ledger: dict[str, Any], now: datetime
) -> Iterator[tuple[tuple[str, ...], list[tuple[object, ...]]]]:
    yield (
        ("CLAIM OF GRANT", "UNTIL", "LEFT", "RULES", "FOREIGN RULES"),
        [
            (
                claim["grant_id"],
                claim["expires_at"],
                tags.left(claim["expires_at"], now),
                len(claim["rules"]),
                ", ".join(rule["rule"] for rule in claim["foreign"]) or "-",
            )
            for claim in ledger["claims"]
        ],
    )
    yield (
        ("RULE IN", "PORTS", "PHASE", "IDS", "ATTEMPTS", "CLAIMED BY"),
        [
            (
                rule["group"],
                rule["ports"] + (f" for {rule['cidr']}" if rule["cidr"] != ledger["source"] else ""),
                rule["phase"],
                ", ".join(written["rule"] for written in rule["ids"]) or "-",
                ", ".join(rule["attempts"]) or "-",
                _some(rule["claimed_by"]),
            )
            for rule in ledger["rules"]
        ],
    )
    yield (
        ("TOMBSTONE", "REVOKED AT"),
        [(tombstone["rule"], tombstone["at"]) for tombstone in ledger["tombstones"]],
    )
    yield (
        ("RELEASED GRANT", "AT"),
        [(release["grant_id"], release["at"]) for release in ledger["released"]],
    )


def _some(grants: list[str]) -> str:
    if len(grants) < 2:
        return "".join(grants) or "-"
    return f"{grants[0]} and {len(grants) - 1} more"


def decode(source: str, values: Values) -> dict[str, Any]:
    """Read an item of the ledger, in the shape that `--json` prints. No item is an empty ledger.

    Raises AdminError for an item that cannot be read.
    """
    try:
        content = json.loads(_text(values)) if values else {}
        keys = [_key(text, source) for text in content.get("keys", [])]
        claims = [
            {
                "grant_id": grant,
                "expires_at": claim["until"],
                "rules": [keys[number] for number in claim["rules"]],
                "foreign": [keys[n] | {"rule": rule} for n, rule in _numbered(claim.get("foreign", {}))],
            }
            for grant, claim in content.get("claims", {}).items()
        ]
        claims.sort(key=lambda claim: (claim["expires_at"], claim["grant_id"]))
        rules = [
            keys[n]
            | {
                "phase": rule["phase"],
                "ids": _timed("rule", rule["ids"]),
                "attempts": list(rule["attempts"]),
                "claimed_by": [claim["grant_id"] for claim in claims if keys[n] in claim["rules"]],
            }
            for n, rule in _numbered(content.get("rules", {}))
        ]
        return {
            "source": source,
            "claims": claims,
            "rules": rules,
            "tombstones": _timed("rule", content.get("tombstones", {})),
            "released": _timed("grant_id", content.get("released", {})),
        }
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise AdminError(
            f"The ledger of {source} cannot be read: {type(error).__name__} {error}"[:300]
        ) from error


def _text(values: Values) -> str:
    """Join the parts. Parts beyond the item's count are left over from a longer text."""
    (count,) = values["parts"]
    return "".join(part for number in range(int(count)) for (part,) in [values[f"part_{number:03}"]])


def _key(text: str, source: str) -> dict[str, Any]:
    """Read a rule's key: `sg-0a/tcp/22/22`, and its CIDR where that is not the source."""
    group, protocol, first, last, *cidr = text.split("/", 4)
    return {
        "group": group,
        "ports": str(tags.Ports(int(first), int(last), protocol)),
        "cidr": cidr[0] if cidr else source,
    }


def _numbered(values: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Sort values that are stored by the number of a rule key."""
    return sorted(((int(number), value) for number, value in values.items()), key=lambda pair: pair[0])


def _timed(name: str, times: Mapping[str, str]) -> list[dict[str, str]]:
    return [{name: key, "at": at} for key, at in sorted(times.items(), key=lambda pair: (pair[1], pair[0]))]
