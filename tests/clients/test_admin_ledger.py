"""`knock-admin ledger`: it shows the ledger that the functions wrote for a source, and changes nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grants import ledger as function_ledger
from grants.ledger import Claim, Foreign, Ledger, LedgerRule, Own
from grants.store import PART
from grants.values import Ports, RuleKey, show_second, show_time
from knock_admin import ledger as admin_ledger
from knock_admin.errors import AdminError
from tests.clients.admin_support import LEDGER, STORES, World, make_world, make_worlds

world = pytest.fixture(make_world)
either = pytest.fixture(params=STORES)(make_worlds)

SOURCE = "203.0.113.7/32"
NOW = datetime.now(timezone.utc).replace(microsecond=0)
SSH = RuleKey("sg-0a", Ports(22, 22, "tcp"), SOURCE)
WEB = RuleKey("sg-0b", Ports(8000, 8010, "udp"), SOURCE)


def item(ledger: Ledger) -> dict[str, tuple[str, ...]]:
    """Give the item that `Ledgers` writes, and a part that is left of a longer ledger before."""
    text = function_ledger.encode(ledger).decode("ascii")
    parts = [text[at : at + PART] for at in range(0, len(text), PART)]
    values: dict[str, tuple[str, ...]] = {"token": ("t",), "parts": (str(len(parts)),)}
    values |= {f"part_{number:03}": (part,) for number, part in enumerate(parts)}
    return values | {f"part_{len(parts):03}": ("left from a longer one",)}


def as_shown(ledger: Ledger) -> dict[str, Any]:
    """Give a ledger of the functions' as the command shows it."""

    def key(rule_key: RuleKey) -> dict[str, str]:
        return {"group": rule_key.group, "ports": str(rule_key.ports), "cidr": rule_key.cidr}

    def timed(name: str, times: Any) -> list[dict[str, str]]:
        pairs = sorted(times.items(), key=lambda pair: (show_time(pair[1]), pair[0]))
        return [{name: id_, "at": show_time(at)} for id_, at in pairs]

    return {
        "source": ledger.source,
        "claims": [
            {
                "grant_id": grant,
                "expires_at": show_second(claim.expires_at),
                "rules": [key(rule_key) for rule_key in sorted(claim.rule_keys)],
                "foreign": [
                    key(rule_key) | {"rule": rule} for rule_key, rule in sorted(claim.foreign.items())
                ],
            }
            for grant, claim in sorted(ledger.claims.items(), key=lambda pair: (pair[1].expires_at, pair[0]))
        ],
        "rules": [
            key(rule_key)
            | {
                "phase": "closing" if rule.closing else "open",
                "ids": timed("rule", rule.ids),
                "attempts": sorted(rule.attempts),
                "claimed_by": [
                    grant
                    for grant, claim in sorted(
                        ledger.claims.items(), key=lambda pair: (pair[1].expires_at, pair[0])
                    )
                    if rule_key in claim.rule_keys
                ],
            }
            for rule_key, rule in sorted(ledger.rules.items(), key=lambda pair: pair[0])
        ],
        "tombstones": timed("rule", ledger.tombstones),
        "released": timed("grant_id", ledger.released),
    }


TIMES = st.integers(0, 10_000).map(lambda seconds: NOW + timedelta(seconds=seconds))
KEYS = st.builds(
    RuleKey,
    st.sampled_from(["sg-0a", "sg-0b"]),
    st.builds(lambda first, more: Ports(first, first + more, "tcp"), st.integers(1, 9), st.integers(0, 2)),
    st.sampled_from([SOURCE, "198.51.100.0/24", "sg-0c"]),
)
IDS = st.sampled_from([f"sgr-{number}" for number in range(9)])
ATTEMPTS = st.builds(function_ledger.name_attempt, TIMES, st.sampled_from("abc"))
LEDGERS = st.builds(
    Ledger,
    st.just(SOURCE),
    st.dictionaries(
        st.sampled_from(["alice_1", "bob_2", "ci_3"]),
        st.builds(Claim, TIMES, st.frozensets(KEYS, max_size=3), st.dictionaries(KEYS, IDS, max_size=2)),
        max_size=3,
    ),
    st.dictionaries(
        KEYS,
        st.builds(
            LedgerRule,
            st.booleans(),
            st.dictionaries(IDS, TIMES, max_size=2),
            st.frozensets(ATTEMPTS, max_size=2),
        ),
        max_size=4,
    ),
    st.dictionaries(IDS, TIMES, max_size=2),
    st.dictionaries(st.sampled_from(["gone_1", "gone_2"]), TIMES, max_size=2),
)


@given(LEDGERS)
def test_a_ledger_that_the_functions_write_is_read_completely(ledger: Ledger) -> None:
    """Break it: read a part too many, take the phase of another rule, or drop a rule key's CIDR."""
    assert admin_ledger.decode(SOURCE, item(ledger)) == as_shown(ledger)


@given(
    st.dictionaries(
        st.sampled_from(["parts", "part_000", "token"]), st.tuples(st.text(max_size=9)), max_size=3
    )
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["keys", "claims", "rules", "until", "0", "a"]), inner, max_size=4
            )
        ),
    ).map(lambda content: {"parts": ("1",), "part_000": (json.dumps(content),)})
)
def test_an_item_that_is_no_ledger_raises_admin_errors_alone(values: dict[str, tuple[str, ...]]) -> None:
    """Any other exception would be shown as a traceback."""
    with suppress(AdminError):
        assert admin_ledger.decode(SOURCE, values)["source"] == SOURCE


def test_the_limits_shown_are_those_of_the_functions() -> None:
    assert (admin_ledger.MOST_CLAIMS, admin_ledger.MOST_RULES) == (
        function_ledger.MAX_CLAIMS,
        function_ledger.MAX_RULES,
    )


@pytest.fixture
def busy(world: World) -> World:
    return make_busy(world)


def make_busy(world: World) -> World:
    """Write a ledger with every kind of entry."""
    attempt, later = (function_ledger.name_attempt(NOW, token) for token in ("a1", "b2"))
    until = NOW + timedelta(hours=8)
    ledger = function_ledger.claim(Ledger(SOURCE), "alice_1", until, [SSH, WEB], attempt, NOW)
    ledger = function_ledger.record_results(
        ledger, "alice_1", attempt, {SSH: Own("sgr-1"), WEB: Foreign("sgr-9")}, NOW
    )
    ledger = function_ledger.claim(ledger, "bob_2", until, [SSH], later, NOW)
    ledger = function_ledger.claim(ledger, "ci_3", NOW + timedelta(hours=1), [WEB], later, NOW)
    ledger = function_ledger.release(ledger, "ci_3", NOW)
    ledger = function_ledger.record_lost(
        function_ledger.record_ids(ledger, {SSH: ["sgr-2"]}, NOW), ["sgr-2"], NOW
    )
    world.ledgers.write(world.ledgers.read(SOURCE), ledger)
    return world


def test_a_ledger_is_found_by_any_form_of_its_source(either: World) -> None:
    busy = make_busy(either)
    ledger = busy.ok("ledger", "203.0.113.7", "--json").json
    assert ledger == as_shown(busy.ledgers.read(SOURCE).ledger)
    assert busy.ok("ledger", SOURCE, "--json").json == ledger
    assert busy.ok("ledger", "::ffff:203.0.113.7", "--json").json == ledger
    assert [claim["grant_id"] for claim in ledger["claims"]] == ["alice_1", "bob_2"]
    assert {rule["group"]: rule["phase"] for rule in ledger["rules"]} == {"sg-0a": "open", "sg-0b": "closing"}


def test_the_tables_show_claims_rules_tombstones_and_released_grants(busy: World) -> None:
    claims, rules, tombstones, released = busy.ok("ledger", SOURCE).out.split("\n\n")[1:]
    assert [line.split()[0] for line in claims.splitlines()[1:]] == ["alice_1", "bob_2"]
    assert claims.splitlines()[1].endswith("sgr-9")
    (ssh, web) = rules.splitlines()[1:]
    assert ssh.split()[:4] == ["sg-0a", "22/tcp", "open", "sgr-1"]
    assert ssh.endswith("alice_1 and 1 more")
    assert web.split()[:4] == ["sg-0b", "8000-8010/udp", "closing", "-"]
    assert web.split()[4].endswith("/b2")
    assert tombstones.splitlines()[1].split()[0] == "sgr-2"
    assert released.splitlines()[1].split()[0] == "ci_3"
    assert busy.ok("ledger", SOURCE).out.startswith(f"{SOURCE}: 2 of 64 claims, 2 of 128 rules\n\n")


def test_a_source_without_a_ledger_is_shown_with_none_of_its_limits_used(world: World) -> None:
    assert world.ok("ledger", "2001:db8::7").out == "2001:db8::7/128: 0 of 64 claims, 0 of 128 rules\n"
    assert world.ok("ledger", "2001:db8::7", "--json").json == as_shown(Ledger("2001:db8::7/128"))


def test_a_text_that_is_no_source_is_a_usage_error(world: World) -> None:
    for text in ("there", "203.0.113.7/24", "fe80::1%eth0", ""):
        assert world.run("ledger", text).code == 2, text


def test_a_ledger_that_cannot_be_read_is_an_error(world: World) -> None:
    world.store(LEDGER).put(SOURCE, {"parts": "2", "part_000": "{"})
    result = world.run("ledger", SOURCE)
    assert (result.code, f"The ledger of {SOURCE} cannot be read: " in result.err) == (1, True)


def test_showing_a_ledger_changes_nothing(busy: World) -> None:
    before = busy.ledgers.read(SOURCE)
    busy.ok("ledger", SOURCE)
    assert busy.ledgers.read(SOURCE) == before
    assert "--dry-run" not in busy.run("ledger", "--help").out
