"""Reads the API's JSON into the values of `knock.values`.

The answer may come from a hotspot, a wrong server or a hostile one, so each field is checked: the values can
be printed, compared and put into a command without harm. Any other answer raises UnexpectedAnswer.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from .errors import MAYBE_MADE, UnexpectedAnswer
from .names import is_name
from .values import Grant, Principal, Target, Whoami, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_LONGEST = 366 * 86_400  # seconds until a grant's end; no stack allows more
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def read_grant(value: Mapping[str, Any]) -> Grant:
    """Read a grant as the API writes it. Raises UnexpectedAnswer."""
    try:
        return Grant(
            id=_id(value["id"]),
            status=str(value["status"]),
            principal=_principal(value["principal"]),
            source=_cidr(value["source"]),
            targets=_targets(value["targets"]),
            requested_at=_time(value["requested_at"]),
            expires_at=_time(value["expires_at"]),
            seconds_left=_seconds(value["seconds_left"]),
            reason=str(value.get("reason") or ""),
            ended_at=_time(value["ended_at"]) if value.get("ended_at") else None,
            ended_by=str(value.get("ended_by") or ""),
            execution_arn=str(value.get("execution_arn") or ""),
            renews=_id(value["renews"]) if value.get("renews") else "",
            caller=_cidr(value["caller"]) if value.get("caller") else "",
            events=tuple(dict(event) for event in value.get("events") or ()),
            left_out=_names(value.get("left_out") or []),
            json=value,
        )
    except _WRONG as error:
        raise UnexpectedAnswer(
            f"the answer is not a grant as this client knows it: {_words(error)}"
        ) from error


def read_opened(value: Mapping[str, Any]) -> Grant:
    """Read the answer to a knock. Raises UnexpectedAnswer, with the grant's id if that can be read."""
    try:
        return read_grant(value)
    except UnexpectedAnswer as error:
        if is_name(grant_id := value.get("id")):
            raise UnexpectedAnswer(str(error), grant_id=str(grant_id)) from error
        raise UnexpectedAnswer(f"{error}. {MAYBE_MADE}") from error


def read_whoami(value: Mapping[str, Any]) -> Whoami:
    """Read an answer of GET /whoami. Raises UnexpectedAnswer."""
    try:
        longest = value.get("max_duration")
        return Whoami(
            principal=_principal(value["principal"]),
            source=_cidr(value["source"]),
            targets=_targets(value["targets"]),
            default_duration=str(value.get("default_duration") or ""),
            max_duration=None if longest is None else str(longest),
            operator=bool(value.get("operator")),
            max_live=int(value.get("max_live") or 0),
            live=int(value.get("live") or 0),
            any_source=_widths(value.get("any_source")),
            faults=tuple(str(fault) for fault in _list(value.get("faults") or [])),
            json=value,
        )
    except _WRONG as error:
        raise UnexpectedAnswer(f"the answer does not say who is calling: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else repr(error)


def _id(value: object) -> str:
    if not is_name(value):
        raise ValueError("a grant's id was expected")
    return str(value)


def _names(values: object) -> tuple[str, ...]:
    """Read names of targets that are printed in a command."""
    names = _list(values)
    if not all(map(is_name, names)):
        raise ValueError("names of targets were expected")
    return tuple(names)


def _cidr(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a CIDR was expected")
    if "%" in value:  # an IPv6 zone, which may be any text: https://www.rfc-editor.org/rfc/rfc4007#section-11
        raise ValueError("a CIDR without a zone was expected")
    return str(ipaddress.ip_network(value, strict=False))


def _time(value: object) -> datetime:
    if not isinstance(value, str):
        raise TypeError("a time was expected")
    at = parse_time(value)
    if not 2000 <= at.year <= 2999:  # outside, conversion to a local time may overflow
        raise ValueError("a time of this age was expected")
    return at


def _seconds(value: object) -> int:
    if not isinstance(value, (int, float)):
        raise TypeError("a number of seconds was expected")
    return max(-_LONGEST, min(int(value), _LONGEST))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list was expected")
    return value


def _principal(value: Mapping[str, Any]) -> Principal:
    return Principal(str(value["id"]), str(value["name"]))


def _targets(values: object) -> tuple[Target, ...]:
    return tuple(
        Target(
            str(target["name"]),
            tuple(str(ports) for ports in _list(target["ports"])),
            tuple(str(family) for family in _list(target.get("families") or [])),
        )
        for target in _list(values)
    )


def _widths(value: object) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    return int(value["ipv4"]), int(value["ipv6"])
