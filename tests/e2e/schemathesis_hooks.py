"""How schemathesis makes the formats of docs/openapi.json, and where its calls come from."""

from __future__ import annotations

import base64
import ipaddress
import itertools
import os
from typing import Any

import schemathesis
from hypothesis import strategies as st

# Up to a day: no key of a local stack may have more.
durations = st.one_of(
    st.integers(1, 86_400).map(str),
    st.integers(1, 1440).map("{}m".format),
    st.integers(1, 24).map("PT{}H".format),
    st.sampled_from(["8h", "1h30m", "1 s", "1d"]),
)
sources = st.one_of(
    st.integers(0, 255).map("203.0.113.{}/32".format),
    st.integers(0, 15).map(lambda block: f"198.51.100.{block * 16}/28"),
    st.integers(0, 65_535).map("2001:db8::{:x}/128".format),
)
lines = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=256)
cursors = st.from_regex(
    r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z [0-9A-Za-z_-]{1,80}",
    fullmatch=True,
).map(lambda order: base64.urlsafe_b64encode(order.encode()).decode())

schemathesis.openapi.format("knock-duration", durations)
schemathesis.openapi.format("knock-cursor", cursors)
schemathesis.openapi.format("cidr", sources)
schemathesis.openapi.format("printable-line", lines)

# One address may hold 64 grants at once, and a target's one group has room for the rules of some thirty.
callers = itertools.cycle(list(ipaddress.ip_network(os.environ["KNOCK_CALLERS"]))[:12])


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case[Any], _kwargs: dict[str, Any]) -> None:
    """Have a call that may open something come from the next of some addresses."""
    if case.meta and case.meta.generation.mode.is_positive:
        case.headers["X-Forwarded-For"] = str(next(callers))
