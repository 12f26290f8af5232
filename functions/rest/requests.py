"""Requests as the handlers need them: a REST proxy event, parsed once. No clock, no AWS.

All other parts of an event are ignored, and every text that is read is bounded.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from grants.errors import GrantNotFound, InvalidKnock
from grants.policy import Knock
from grants.values import GRANT_ID, TARGET_NAME, canonical_source, parse_duration, source_of

MOST_BYTES = 4096
MOST_TARGETS = 50
KNOCK_FIELDS = ("targets", "duration", "source", "reason", "renews")
FILTERS = ("principal", "source", "target")
# Characters. 256 of them are 1,024 bytes at most, which is what SimpleDB takes as a value.
LONGEST = {"reason": 256, "principal": 256, "source": 50, "target": 63, "renews": 80}
PAGE, LARGEST_PAGE = 50, 100
CURSOR = re.compile(r"[0-9T:.Z-]{24} [0-9A-Za-z_-]{1,80}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of an event that handlers need: the caller's key and address, path, query and body."""

    key_id: str
    caller: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    repeated: tuple[str, ...]
    body: bytes
    call: str = ""

    @classmethod
    def read(cls, event: Mapping[str, Any]) -> Request:
        """Read a REST proxy event.

        https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
        """
        identity = event["requestContext"]["identity"]
        body = event.get("body") or ""
        try:
            raw = base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()
        except (binascii.Error, UnicodeEncodeError) as error:
            raise InvalidKnock("body", "the body is not text") from error
        parameters: Mapping[str, list[str]] = event.get("multiValueQueryStringParameters") or {}
        return cls(
            identity.get("apiKeyId") or "",
            source_of(identity["sourceIp"]),
            event.get("pathParameters") or {},
            event.get("queryStringParameters") or {},
            tuple(name for name, values in parameters.items() if len(values) > 1),
            raw,
            f"{event['httpMethod']} {event['resource']}",
        )

    @property
    def grant_id(self) -> str:
        """Read the id in the path. Raises GrantNotFound for a text that cannot be one."""
        grant_id = self.path.get("id", "")
        if not GRANT_ID.fullmatch(grant_id):
            raise GrantNotFound(f"there is no grant {grant_id[:80]!r} that this key may see")
        return grant_id

    def only(self, allowed: tuple[str, ...]) -> None:
        """Refuse query parameters that are unknown or repeated, rather than ignore them."""
        for name in self.query:
            if name not in allowed:
                takes = f"only {', '.join(allowed)}" if allowed else "none"
                raise InvalidKnock(
                    _quotable(name), f"there is no query parameter {name[:40]!r} here; there are {takes}"
                )
        for name in self.repeated:
            raise InvalidKnock(name, f"{name} is given more than once, and one of them would not count")


def read_knock(body: bytes) -> Knock:
    """Read the body of a knock; without one every field has its default. Raises InvalidKnock."""
    if len(body) > MOST_BYTES:
        raise InvalidKnock("body", f"the body has {len(body)} bytes, and {MOST_BYTES} are the most")
    if not body:
        return Knock()
    try:
        fields = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidKnock("body", "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise InvalidKnock("body", "the body must be a JSON object")
    for name in fields:
        if name not in KNOCK_FIELDS:
            raise InvalidKnock(
                _quotable(name), f"there is no field {name[:80]!r}; there are {', '.join(KNOCK_FIELDS)}"
            )
    return Knock(
        read_targets(fields.get("targets")),
        read_duration(fields.get("duration")),
        read_text(fields, "source"),
        read_text(fields, "reason") or "",
        read_text(fields, "renews") or None,
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a JSON object's pairs. Repeated names are refused: parsers differ on which counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidKnock("body", "the body names a field twice, and one of them would not count")
    return fields


def _quotable(name: str) -> str:
    """Give a name from a request as an answer may quote it: half a surrogate pair cannot be encoded."""
    return name[:80] if name.isprintable() else "?"


def read_targets(names: object) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_TARGETS:
        raise InvalidKnock("targets", f"targets must be a list of 1 to {MOST_TARGETS} target names")
    for name in names:
        if not isinstance(name, str) or not TARGET_NAME.fullmatch(name):
            raise InvalidKnock("targets", f"{str(name)[:40]!r} is not the name of a target")
    return tuple(names)


def read_duration(value: object) -> timedelta | None:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise InvalidKnock("duration", str(error)) from error


def read_text(fields: Mapping[str, Any], name: str) -> str | None:
    """Read a text field. Control characters are refused: SimpleDB does not return them unchanged."""
    value, longest = fields.get(name), LONGEST[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidKnock(name, f"{name} must be a text")
    if len(value) > longest or not value.isprintable():
        raise InvalidKnock(name, f"{name} must be one line of printable text, {longest} characters at most")
    return value


def read_limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(PAGE))
    if not re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII) or int(text) > LARGEST_PAGE:
        raise InvalidKnock("limit", f"limit must be a number from 1 to {LARGEST_PAGE}")
    return int(text)


def read_cursor(query: Mapping[str, str]) -> str | None:
    """Read a cursor: the `order` of the last grant of the page before."""
    if "cursor" not in query:
        return None
    try:
        order = base64.urlsafe_b64decode(query["cursor"]).decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise InvalidKnock("cursor", "this is no cursor that GET /grants gave") from error
    if not CURSOR.fullmatch(order):
        raise InvalidKnock("cursor", "this is no cursor that GET /grants gave")
    return order


def read_source(text: str | None) -> str | None:
    """Read a source in any form as its canonical CIDR. Raises InvalidKnock."""
    try:
        return canonical_source(text) if text is not None else None
    except ValueError as error:
        raise InvalidKnock("source", f"a CIDR or an address was expected: {error}"[:300]) from error
