"""The ledger's transitions, one by one and in any order, and what holds of every ledger they lead to."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grants.errors import GrantEnded, SourceFull, StoreRefused
from grants.ledger import (
    CLAIM_ROOM,
    LARGEST,
    MAX_CLAIMS,
    MAX_RULES,
    Claim,
    Foreign,
    Ledger,
    LedgerRule,
    NoRule,
    Own,
    Result,
    Snapshot,
    Unsent,
    attempted_at,
    claim,
    decode,
    encode,
    name_attempt,
    quiescent,
    record_ids,
    record_lost,
    record_results,
    record_revoked,
    release,
    tidy,
)
from grants.ledgers import Ledgers
from grants.store import Expected, Values
from grants.timing import SETTLES, SKEW
from grants.values import MOST_RULES, Ports, Principal, RuleKey, name_grant, show_time
from local.simpledb import store as simpledb

SOURCE = "203.0.113.7/32"
NOW = datetime(2026, 11, 23, 21, 17, 19, 123_000, tzinfo=timezone.utc)
END = NOW.replace(microsecond=0) + timedelta(hours=8)
SECOND, MOMENT = timedelta(seconds=1), timedelta(milliseconds=1)
EMPTY = Ledger(SOURCE)
ATTEMPT_1, ATTEMPT_2 = name_attempt(NOW, "00000001"), name_attempt(NOW, "00000002")


def key(number: int, source: str = SOURCE) -> RuleKey:
    return RuleKey(f"sg-{number % 7:017x}", Ports(number + 1, number + 1, "tcp"), source)


SSH, WEB = key(21), key(442)


def claimed(
    *keys: RuleKey,
    ledger: Ledger = EMPTY,
    grant: str = "alice",
    attempt: str = ATTEMPT_1,
    now: datetime = NOW,
    **more: Any,
) -> Ledger:
    return claim(ledger, grant, more.pop("end", END), keys, attempt, now, **more)


def opened(*keys: RuleKey, **changes: Any) -> Ledger:
    """A ledger in which a grant's rules are open: each has the id `sgr-<its port>`."""
    ledger = claimed(*keys, **changes)
    grant, attempt = changes.get("grant", "alice"), changes.get("attempt", ATTEMPT_1)
    results: dict[RuleKey, Result] = {rule_key: Own(rule_id(rule_key)) for rule_key in keys}
    return record_results(ledger, grant, attempt, results, changes.get("now", NOW))


def rule_id(of: RuleKey, number: int = 0) -> str:
    return f"sgr-{of.ports.first:04x}{crc32(str(of).encode()):08x}{number:05x}"


class TestClaim:
    def test_it_refers_to_rules_and_is_an_attempt_at_each(self) -> None:
        ledger = claimed(SSH, WEB)
        assert ledger.claims == {"alice": Claim(END, frozenset({SSH, WEB}))}
        assert ledger.rules == {
            rule_key: LedgerRule(attempts=frozenset({ATTEMPT_1})) for rule_key in (SSH, WEB)
        }

    def test_a_further_try_is_another_attempt_and_keeps_what_was_claimed(self) -> None:
        ledger = claimed(WEB, ledger=claimed(SSH), attempt=ATTEMPT_2)
        assert ledger.claims["alice"].rule_keys == {SSH, WEB}
        assert ledger.rules[SSH].attempts == {ATTEMPT_1}
        assert ledger.rules[WEB].attempts == {ATTEMPT_2}
        assert claimed(SSH, ledger=ledger, attempt=ATTEMPT_2).rules[SSH].attempts == {ATTEMPT_1, ATTEMPT_2}

    def test_it_shares_a_rule_that_is_open(self) -> None:
        ledger = claimed(SSH, ledger=opened(SSH), grant="bob", attempt=ATTEMPT_2)
        assert ledger.rules[SSH] == LedgerRule(False, {rule_id(SSH): NOW}, frozenset({ATTEMPT_2}))
        assert set(ledger.claims) == {"alice", "bob"}

    def test_a_rule_with_an_id_that_is_closing_stays_closing_and_gets_no_attempt(self) -> None:
        """Mutation: functions/grants/ledger.py: `if not (rule.closing and rule.ids):` -> `if True:`"""
        closing = release(opened(SSH), "alice", NOW)
        ledger = claimed(SSH, ledger=closing, grant="bob", attempt=ATTEMPT_2)
        assert ledger.rules[SSH] == LedgerRule(True, {rule_id(SSH): NOW})
        assert ledger.claims["bob"].rule_keys == {SSH}

    def test_a_closing_rule_without_an_id_is_open_again(self) -> None:
        closing = release(claimed(SSH), "alice", NOW)
        assert closing.rules[SSH].closing
        ledger = claimed(SSH, ledger=closing, grant="bob", attempt=ATTEMPT_2)
        assert ledger.rules[SSH] == LedgerRule(attempts=frozenset({ATTEMPT_1, ATTEMPT_2}))

    def test_an_ended_grant_claims_nothing(self) -> None:
        ledger = claimed(SSH, now=END + SKEW, attempt=name_attempt(END + SKEW, "1"))
        assert ledger.claims == {}
        assert ledger.rules[SSH].closing

    def test_the_end_of_the_first_claim_stands(self) -> None:
        assert claimed(WEB, ledger=claimed(SSH), end=END + SECOND).claims["alice"].expires_at == END


class TestBounds:
    """The bounds of a source: 64 claims, 128 rules, and what one item holds."""

    def full(self) -> Ledger:
        ledger = EMPTY
        for number in range(MAX_CLAIMS):
            ledger = claimed(SSH, ledger=ledger, grant=f"g{number}")
        return ledger

    def test_a_source_has_sixty_four_claims_and_no_more(self) -> None:
        """Mutation: functions/grants/ledger.py: `len(others) >= MAX_CLAIMS` -> `len(others) > MAX_CLAIMS`"""
        assert MAX_CLAIMS == 64
        full = self.full()
        assert len(full.claims) == 64
        with pytest.raises(SourceFull, match="64 live grants"):
            claimed(SSH, ledger=full, grant="late")

    def test_a_further_attempt_of_a_claim_adds_no_claim(self) -> None:
        assert claimed(SSH, WEB, ledger=self.full(), grant="g7", attempt=ATTEMPT_2)

    def test_the_claim_of_the_renewed_grant_does_not_count(self) -> None:
        """Mutation: functions/grants/ledger.py:
        `{renews} if renews else set()` -> `set()`
        """
        ledger = claimed(SSH, ledger=self.full(), grant="late", renews="g7")
        assert len(ledger.claims) == 65
        with pytest.raises(SourceFull):
            claimed(SSH, ledger=ledger, grant="later", renews="g8")
        with pytest.raises(SourceFull):
            claimed(SSH, ledger=self.full(), grant="late", renews="another's")

    def test_claims_of_ended_grants_do_not_count(self) -> None:
        full = replace(
            self.full(),
            claims={
                name: replace(entry, expires_at=NOW - SKEW) for name, entry in self.full().claims.items()
            },
        )
        assert set(claimed(SSH, ledger=full, grant="late").claims) == {"late"}

    def test_a_source_has_a_hundred_and_twenty_eight_rules_and_no_more(self) -> None:
        """Mutation: functions/grants/ledger.py: `len(rules) > MAX_RULES` -> `len(rules) > MAX_RULES + 1`"""
        assert MAX_RULES == 128
        full = claimed(*map(key, range(127)))
        assert len(claimed(key(127), ledger=full, grant="bob").rules) == 128
        with pytest.raises(SourceFull, match="would have 129 rules"):
            claimed(key(127), key(128), ledger=full, grant="bob")

    def test_rules_that_are_shared_count_once_and_those_that_are_closing_count(self) -> None:
        full = claimed(*map(key, range(128)))
        assert claimed(*map(key, range(128)), ledger=full, grant="bob", attempt=ATTEMPT_2)
        closing = release(full, "alice", NOW)
        with pytest.raises(SourceFull, match="129 rules"):
            claimed(key(128), ledger=closing, grant="bob")

    def test_rules_that_only_the_renewed_grant_claims_do_not_count(self) -> None:
        full = claimed(*map(key, range(128)))
        shared = claimed(key(0), ledger=full, grant="bob")
        new = [key(number) for number in range(200, 200 + 128)]
        assert claimed(*new, ledger=full, grant="new", renews="alice")
        with pytest.raises(SourceFull, match="129 rules"):
            claimed(*new, ledger=shared, grant="new", renews="alice")
        with pytest.raises(SourceFull):
            claimed(*new, ledger=full, grant="new")

    def test_the_largest_grant_that_policy_admits_fits_an_empty_ledger(self) -> None:
        assert len(claimed(*map(key, range(MOST_RULES))).rules) == MOST_RULES

    def test_too_many_attempts_in_a_few_minutes_are_refused(self) -> None:
        """Mutation: functions/grants/ledger.py:
        `if new_keys and len(encode(ledger)) + reserved > CLAIM_ROOM:` -> `if False:`
        """
        ledger = EMPTY
        tries = [name_attempt(NOW, f"{number:08x}") for number in range(20)]
        for attempt in tries[:8]:
            ledger = claimed(*map(key, range(128)), ledger=ledger, attempt=attempt)
        with pytest.raises(SourceFull, match="in the last minutes"):
            functools.reduce(
                lambda filled, attempt: claimed(*map(key, range(128)), ledger=filled, attempt=attempt),
                tries,
                ledger,
            )

    def test_a_refusal_names_no_grants(self) -> None:
        with pytest.raises(SourceFull) as refusal:
            claimed(SSH, ledger=self.full(), grant="late")
        assert not any(name in str(refusal.value).split() for name in self.full().claims)


class TestResults:
    def test_an_id_is_recorded_with_its_time_and_the_attempt_is_over(self) -> None:
        at = NOW + timedelta(seconds=1, microseconds=7)
        ledger = record_results(claimed(SSH, WEB), "alice", ATTEMPT_1, {SSH: Own("sgr-1")}, at)
        assert ledger.rules[SSH] == LedgerRule(False, {"sgr-1": NOW + SECOND})
        assert ledger.rules[WEB].attempts == {ATTEMPT_1}

    def test_a_rule_that_was_made_without_a_claim_is_closing(self) -> None:
        """Mutation: functions/grants/ledger.py: `rule.closing or key not in claimed` -> `rule.closing`"""
        ledger = release(claimed(SSH), "alice", NOW)
        assert record_results(ledger, "alice", ATTEMPT_1, {SSH: Own("sgr-1")}, NOW).rules[SSH].closing
        assert record_results(EMPTY, "alice", ATTEMPT_1, {SSH: Own("sgr-1")}, NOW).rules[SSH].closing

    def test_a_closing_rule_stays_closing_though_another_grant_claims_it(self) -> None:
        ledger = release(opened(SSH), "alice", NOW)
        ledger = claimed(SSH, ledger=ledger, grant="bob", attempt=ATTEMPT_2)
        ledger = record_results(ledger, "bob", ATTEMPT_2, {SSH: Own("sgr-2")}, NOW)
        assert ledger.rules[SSH].closing
        assert set(ledger.rules[SSH].ids) == {rule_id(SSH), "sgr-2"}

    def test_the_time_of_an_ids_first_record_stands(self) -> None:
        ledger = claimed(SSH, ledger=opened(SSH), grant="bob", attempt=ATTEMPT_2)
        ledger = record_results(ledger, "bob", ATTEMPT_2, {SSH: Own(rule_id(SSH))}, NOW + SECOND)
        assert ledger.rules[SSH].ids == {rule_id(SSH): NOW}

    def test_an_id_with_a_tombstone_is_not_recorded(self) -> None:
        """Mutation: functions/grants/ledger.py: `and result.rule_id not in ledger.tombstones:` -> `:`"""
        revoked = record_revoked(release(opened(SSH), "alice", NOW), {SSH: [rule_id(SSH)]}, {}, NOW)
        ledger = claimed(SSH, ledger=revoked, grant="bob", attempt=ATTEMPT_2)
        ledger = record_results(ledger, "bob", ATTEMPT_2, {SSH: Own(rule_id(SSH))}, NOW)
        assert SSH not in ledger.rules

    def test_a_foreign_rule_is_recorded_in_the_claim_and_not_as_a_rule(self) -> None:
        ledger = record_results(claimed(SSH, WEB), "alice", ATTEMPT_1, {SSH: Foreign("sgr-9")}, NOW)
        assert ledger.claims["alice"] == Claim(END, frozenset({WEB}), {SSH: "sgr-9"})
        assert set(ledger.rules) == {WEB}

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_rule_that_was_not_made_is_not_claimed_unless_it_is_shared(self, shared: bool) -> None:
        before = opened(SSH, grant="bob", attempt=ATTEMPT_2) if shared else EMPTY
        ledger = record_results(claimed(SSH, ledger=before), "alice", ATTEMPT_1, {SSH: NoRule()}, NOW)
        assert ledger.claims["alice"].rule_keys == ({SSH} if shared else set())
        assert (SSH in ledger.rules) is shared

    def test_a_rule_that_was_not_sent_stays_claimed(self) -> None:
        """Mutation: functions/grants/ledger.py:
        `elif own_claim and isinstance(result, NoRule) and not ids:` -> `elif own_claim and not ids:`
        """
        ledger = record_results(claimed(SSH, WEB), "alice", ATTEMPT_1, {SSH: Unsent()}, NOW)
        assert ledger.claims["alice"].rule_keys == {SSH, WEB}
        assert set(ledger.rules) == {WEB}

    def test_another_attempt_is_not_over(self) -> None:
        ledger = claimed(SSH, ledger=claimed(SSH), attempt=ATTEMPT_2)
        ledger = record_results(ledger, "alice", ATTEMPT_1, {SSH: NoRule()}, NOW)
        assert ledger.rules[SSH].attempts == {ATTEMPT_2}


class TestRelease:
    def test_rules_without_another_live_claim_are_closing(self) -> None:
        ledger = claimed(SSH, ledger=opened(SSH, WEB), grant="bob", attempt=ATTEMPT_2)
        after = release(ledger, "alice", NOW)
        assert set(after.claims) == {"bob"}
        assert not after.rules[SSH].closing
        assert after.rules[WEB] == LedgerRule(True, {rule_id(WEB): NOW})
        assert after.closing([SSH, WEB, key(9)]) == {WEB: after.rules[WEB]}

    def test_a_release_is_on_record_until_an_attempt_is_quiescent(self) -> None:
        """Mutation: functions/grants/ledger.py:
        `in ledger.released.items() if abs(now - at) < SETTLES` -> `in ledger.released.items() if False`
        """
        ledger = release(claimed(SSH), "alice", NOW)
        assert ledger.released == {"alice": NOW}
        assert tidy(ledger, NOW + SETTLES - MOMENT).released == {"alice": NOW}
        assert tidy(ledger, NOW + SETTLES).released == {}

    def test_the_release_of_a_grant_without_a_claim_is_on_record_too(self) -> None:
        ledger = release(EMPTY, "alice", NOW)
        assert ledger == Ledger(SOURCE, released={"alice": NOW})
        assert ledger
        assert release(ledger, "alice", NOW + SECOND) == ledger, "the time of the first release stands"

    def test_a_released_grant_claims_nothing_any_more(self) -> None:
        """Mutation: functions/grants/ledger.py: `if grant_id in ledger.released:` -> `if False:`"""
        ledger = release(EMPTY, "alice", NOW)
        late = NOW + SETTLES - MOMENT
        with pytest.raises(GrantEnded, match="alice"):
            claimed(SSH, ledger=ledger, now=late, attempt=name_attempt(late, "2"))
        assert claimed(SSH, ledger=ledger, grant="bob").claims
        assert claimed(SSH, ledger=tidy(ledger, NOW + SETTLES)).claims

    def test_nor_does_a_grant_that_expired(self) -> None:
        after = tidy(claimed(SSH), END + SKEW)
        with pytest.raises(GrantEnded):
            claimed(SSH, ledger=after, now=END + SKEW)

    def test_an_attempt_that_sent_nothing_is_over(self) -> None:
        ledger = claimed(SSH, ledger=claimed(SSH, WEB), attempt=ATTEMPT_2)
        after = release(ledger, "alice", NOW, untouched=ATTEMPT_2)
        assert after.rules[SSH].attempts == {ATTEMPT_1}
        assert release(claimed(SSH), "alice", NOW, untouched=ATTEMPT_1).rules == {}


class TestRevoked:
    def test_ids_become_tombstones_and_their_rule_leaves(self) -> None:
        ledger = record_revoked(release(opened(SSH), "alice", NOW), {SSH: [rule_id(SSH)]}, {}, NOW)
        assert ledger.rules == {}
        assert ledger.tombstones == {rule_id(SSH): NOW}
        assert ledger.knows(rule_id(SSH))

    def test_a_rule_with_another_id_or_an_attempt_stays(self) -> None:
        ledger = record_ids(release(opened(SSH), "alice", NOW), {SSH: ["sgr-2"]}, NOW)
        ledger = record_revoked(ledger, {SSH: [rule_id(SSH)]}, {}, NOW)
        assert ledger.rules[SSH] == LedgerRule(True, {"sgr-2": NOW})
        ledger = release(claimed(SSH, ledger=opened(SSH), attempt=ATTEMPT_2), "alice", NOW)
        ledger = record_revoked(ledger, {SSH: [rule_id(SSH)]}, {}, NOW)
        assert ledger.rules[SSH] == LedgerRule(True, {}, frozenset({ATTEMPT_2}))

    def test_attempts_that_made_no_rule_are_over(self) -> None:
        ledger = release(claimed(SSH, ledger=claimed(SSH), attempt=ATTEMPT_2), "alice", NOW)
        assert record_revoked(ledger, {}, {SSH: [ATTEMPT_1]}, NOW).rules[SSH].attempts == {ATTEMPT_2}
        assert record_revoked(ledger, {}, {SSH: [ATTEMPT_1, ATTEMPT_2]}, NOW).rules == {}

    def test_a_tombstone_stays_when_its_rule_has_left_and_is_made_anew(self) -> None:
        """Mutation: functions/grants/ledger.py:
        `in ledger.tombstones.items() if abs(now - at) < SETTLES` -> `in ledger.tombstones.items() if key`
        """
        ledger = record_revoked(release(opened(SSH), "alice", NOW), {SSH: [rule_id(SSH)]}, {}, NOW)
        late = NOW + SETTLES - MOMENT
        reopened = opened(WEB, ledger=ledger, grant="bob", attempt=name_attempt(late, "2"), now=late)
        assert reopened.tombstones == {rule_id(SSH): NOW}
        assert tidy(reopened, NOW + SETTLES).tombstones == {}

    def test_ids_that_the_ledger_does_not_have_are_tombstones_too(self) -> None:
        assert record_revoked(EMPTY, {SSH: ["sgr-1"]}, {}, NOW).tombstones == {"sgr-1": NOW}


class TestLost:
    def test_ids_that_force_revoked_are_tombstones_though_their_rules_are_claimed(self) -> None:
        ledger = claimed(SSH, ledger=opened(SSH, WEB), grant="bob", attempt=ATTEMPT_2)
        after = record_lost(ledger, [rule_id(SSH)], NOW)
        assert after.tombstones == {rule_id(SSH): NOW}
        assert after.rules[SSH] == LedgerRule(False, {}, frozenset({ATTEMPT_2}))
        assert after.rules[WEB] == ledger.rules[WEB]
        assert after.claims == ledger.claims

    def test_ids_the_ledger_does_not_have_change_nothing(self) -> None:
        assert record_lost(opened(SSH), ["sgr-9"], NOW) == opened(SSH)


class TestFoundIds:
    def test_an_id_is_open_where_a_live_grant_claims_the_rule_and_else_closing(self) -> None:
        ledger = record_ids(claimed(SSH), {SSH: ["sgr-1"], WEB: ["sgr-2"]}, NOW)
        assert ledger.rules[SSH] == LedgerRule(False, {"sgr-1": NOW}, frozenset({ATTEMPT_1}))
        assert ledger.rules[WEB] == LedgerRule(True, {"sgr-2": NOW})

    def test_an_id_of_a_claimed_rule_that_the_ledger_had_dropped_is_open(self) -> None:
        """Its only id was lost, so the ledger kept the claim alone.

        Mutation: functions/grants/ledger.py:
        `            rule = rules.get(key, LedgerRule())  # closing` ->
        `            rule = rules.get(key, LedgerRule(closing=True))  # closing`
        """
        ledger = record_lost(opened(SSH), [rule_id(SSH)], NOW)
        assert (ledger.rules, ledger.claimed()) == ({}, {SSH})
        assert record_ids(ledger, {SSH: ["sgr-1"]}, NOW).rules[SSH] == LedgerRule(False, {"sgr-1": NOW})

    def test_the_claim_of_an_ended_grant_opens_no_id(self) -> None:
        assert record_ids(claimed(SSH), {SSH: ["sgr-1"]}, END + SKEW).rules[SSH].closing

    def test_an_id_that_the_ledger_knows_changes_nothing(self) -> None:
        """Mutation: functions/grants/ledger.py: `if ledger.knows(rule_id):` -> `if False:`"""
        revoked = record_revoked(release(opened(SSH), "alice", NOW), {SSH: [rule_id(SSH)]}, {}, NOW)
        assert record_ids(revoked, {SSH: [rule_id(SSH)]}, NOW) == revoked
        assert record_ids(opened(SSH), {WEB: [rule_id(SSH)]}, NOW + SECOND) == opened(SSH)

    def test_an_id_of_a_closing_rule_is_closing(self) -> None:
        ledger = claimed(SSH, ledger=release(opened(SSH), "alice", NOW), grant="bob", attempt=ATTEMPT_2)
        after = record_ids(ledger, {SSH: ["sgr-2"]}, NOW)
        assert after.rules[SSH].closing
        assert set(after.rules[SSH].ids) == {rule_id(SSH), "sgr-2"}


class TestTime:
    def test_a_claim_counts_a_little_longer_than_its_grant(self) -> None:
        """Mutation: functions/grants/ledger.py: `now < self.expires_at + SKEW` -> `now < self.expires_at`"""
        ledger = opened(SSH)
        assert tidy(ledger, END + SKEW - MOMENT) == ledger
        after = tidy(ledger, END + SKEW)
        assert after.claims == {}
        assert after.released == {"alice": END + SKEW}
        assert after.rules[SSH].closing

    def test_an_attempt_is_quiescent_when_its_effect_is_final_and_visible(self) -> None:
        """Mutation: functions/grants/ledger.py: `now >= attempted_at(attempt) + SETTLES` -> `True`"""
        assert attempted_at(ATTEMPT_1) == NOW
        assert not quiescent(ATTEMPT_1, NOW + SETTLES - MOMENT)
        assert quiescent(ATTEMPT_1, NOW + SETTLES)

    def test_of_old_attempts_one_stands_for_all(self) -> None:
        """While one is left, EC2 has to be read before the rule leaves, also where an id is known.

        Mutation: functions/grants/ledger.py: `attempts -= set(old[:-1])` -> `attempts -= set(old)`
        """
        late = name_attempt(NOW + SECOND, "00000003")
        ledger = claimed(SSH, ledger=claimed(SSH, ledger=claimed(SSH, WEB), attempt=ATTEMPT_2), attempt=late)
        ledger = record_ids(ledger, {SSH: ["sgr-1"]}, NOW)
        assert tidy(ledger, NOW + SETTLES - MOMENT) == ledger
        assert tidy(ledger, NOW + SETTLES).rules[SSH].attempts == {ATTEMPT_2, late}
        assert tidy(ledger, NOW + SETTLES + SECOND).rules[SSH].attempts == {late}
        assert tidy(ledger, NOW + SETTLES).rules[WEB].attempts == {ATTEMPT_1}

    @pytest.mark.parametrize("name", ["", "x/1", "2026-11-23/1"])
    def test_a_name_that_is_no_attempts_has_no_time(self, name: str) -> None:
        with pytest.raises(ValueError, match="time"):
            attempted_at(name)


# ---------------------------------------------------------------------------- as text

PARTS = ["keys", "claims", "rules", "tombstones", "released"]


class TestText:
    def test_it_is_plain_json_with_each_key_once(self) -> None:
        text = encode(opened(SSH))
        assert json.loads(text) == {
            "keys": ["sg-00000000000000000/tcp/22/22"],
            "claims": {"alice": {"until": "2026-11-24T05:17:19Z", "rules": [0]}},
            "rules": {"0": {"phase": "open", "ids": {rule_id(SSH): show_time(NOW)}, "attempts": []}},
            "tombstones": {},
            "released": {},
        }

    def test_rules_of_other_sources_that_were_found_are_kept(self) -> None:
        odd = [
            key(1, "203.0.113.8/32"),
            key(1, "2001:db8::/56"),
            RuleKey("sg-1", Ports(-1, -1, "-1"), "pl-1234"),
            RuleKey("sg-1", Ports(-1, -1, "47"), ""),
        ]
        ledger = record_ids(EMPTY, {rule_key: [f"sgr-{n}"] for n, rule_key in enumerate(odd)}, NOW)
        assert decode(encode(ledger), SOURCE) == ledger
        assert set(ledger.rules) == set(odd)

    @given(
        st.binary()
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(PARTS) | st.text(), inner),
        ).map(lambda value: json.dumps(value).encode())
    )
    def test_anything_else_is_refused(self, text: bytes) -> None:
        reasons = r"ledger|Expecting|Extra|Unterminated|Invalid|decode|JSON|expected|literal"
        with pytest.raises(ValueError, match=reasons):
            decode(text, SOURCE)

    @given(st.data())
    def test_a_ledger_changed_by_hand_is_a_ledger_or_refused(self, data: st.DataObject) -> None:
        ledger = record_results(opened(SSH, WEB, key(3)), "alice", ATTEMPT_1, {key(3): Foreign("sgr-9")}, NOW)
        ledger = record_revoked(
            release(claimed(SSH, ledger=ledger, grant="b"), "b", NOW), {WEB: ["sgr-8"]}, {}, NOW
        )
        content = json.loads(encode(ledger))
        part, name = content, ""
        while isinstance(part, (dict, list)) and part and (not name or data.draw(st.booleans())):
            inner = part
            name = data.draw(
                st.sampled_from(list(part) if isinstance(part, dict) else list(range(len(part))))
            )
            part = part[name]  # type: ignore[index]
        inner[name] = data.draw(  # type: ignore[index]
            st.sampled_from([None, "", "x", 0, -1, 99, 1.5, True, [], {}, [[]], [{}], {"x": 1}, "é", [None]])
        )
        try:
            read = decode(json.dumps(content).encode(), SOURCE)
        except ValueError:
            return
        assert isinstance(read, Ledger)


# ---------------------------------------------------------------------------- in any order

KEYS = [key(number) for number in range(3)]
GRANTS = ["alice", "bob", "carol"]
Transition = Callable[[Ledger], Ledger]
Step = Callable[[Ledger, datetime], Transition]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, timedelta]:
    """Draw a step, which makes a transition of a ledger and a time, and how long it comes after the last."""
    key_lists = st.lists(st.sampled_from(KEYS), unique=True, max_size=3)
    kind = draw(st.sampled_from(["claim", "results", "release", "revoked", "lost", "found", "tidy"]))
    wait = draw(
        st.sampled_from([timedelta(0), MOMENT, SECOND, SKEW, SETTLES / 2, SETTLES, timedelta(hours=1)])
    )
    grant, renews = draw(st.sampled_from(GRANTS)), draw(st.sampled_from([None, *GRANTS]))
    keys, number = draw(key_lists), draw(st.integers(0, 99))
    lasts = draw(st.sampled_from([timedelta(seconds=10), timedelta(minutes=5), timedelta(hours=8)]))
    numbers = st.sets(st.integers(0, 2), max_size=3)
    ids = {rule_key: [rule_id(rule_key, n) for n in sorted(draw(numbers))] for rule_key in draw(key_lists)}

    def step(ledger: Ledger, now: datetime) -> Transition:
        attempts = sorted({name for rule in ledger.rules.values() for name in rule.attempts})
        new = name_attempt(now, f"{number:08x}")
        attempt = attempts[number % len(attempts)] if attempts and number % 3 else new
        results: dict[RuleKey, Result] = {
            rule_key: [Own(rule_id(rule_key, number % 3)), Foreign("sgr-9"), NoRule(), Unsent()][  # type: ignore[misc]
                (number + n) % 4
            ]
            for n, rule_key in enumerate(keys)
        }
        transitions: dict[str, Transition] = {
            "claim": lambda before: claim(
                before, grant, now.replace(microsecond=0) + lasts, keys, new, now, renews
            ),
            "results": lambda before: record_results(before, grant, attempt, results, now),
            "release": lambda before: release(before, grant, now, attempt if number % 2 else None),
            "revoked": lambda before: record_revoked(before, ids, dict.fromkeys(keys, (attempt,)), now),
            "lost": lambda before: record_lost(
                before, [name for names in ids.values() for name in names], now
            ),
            "found": lambda before: record_ids(before, ids, now),
            "tidy": lambda before: tidy(before, now),
        }
        return transitions[kind]

    return step, wait


def check(before: Ledger, after: Ledger, now: datetime) -> None:
    """Check what holds of every ledger, and of every transition from one to the next."""
    live = {rule_key for entry in after.claims.values() for rule_key in entry.rule_keys}
    assert all(entry.counts_at(now) for entry in after.claims.values())
    for rule_key, rule in after.rules.items():
        assert rule.closing or rule_key in live, "a rule that no live grant claims is closing"
        assert rule.ids or rule.attempts, "a rule that is in a ledger has an id or an attempt"
        assert not rule.ids.keys() & after.tombstones.keys(), "an id with a tombstone is gone"
    on_its_way = {name for rule in before.rules.values() if rule.closing for name in rule.ids}
    on_its_way |= {name for name, at in before.tombstones.items() if now < at + SETTLES}
    still_open = {name for rule in after.rules.values() if not rule.closing for name in rule.ids}
    assert not on_its_way & still_open, "an id that is closing never becomes open again"
    for rule_key, rule in before.rules.items():
        if rule.closing and rule.ids and rule_key in after.rules and after.rules[rule_key].ids:
            assert after.rules[rule_key].closing, "a rule that is closing never becomes open again"
    for name, at in before.tombstones.items():
        assert (after.tombstones.get(name, at - SECOND) >= at) is (
            now < at + SETTLES or name in after.tombstones
        )
    for name in before.claims.keys() - after.claims.keys():
        assert after.released[name] == now, "that a claim was dropped is on record"
    for name, at in before.released.items():
        assert now >= at + SETTLES or name in after.released


class TestAnyOrder:
    @given(st.lists(steps(), max_size=25))
    def test_every_transition_keeps_the_invariants_and_changes_nothing_when_repeated(
        self, sequence: list[tuple[Step, timedelta]]
    ) -> None:
        ledger, now = EMPTY, NOW
        for step, wait in sequence:
            now += wait
            transition = step(ledger, now)
            try:
                after = transition(ledger)
            except GrantEnded:
                continue  # it changes nothing
            check(ledger, after, now)
            # What the first dropped as old at this very moment, the second may put on record once more.
            if all(now < at + SETTLES for at in (*ledger.tombstones.values(), *ledger.released.values())):
                try:
                    assert transition(after) == after
                except GrantEnded:
                    assert after.released.keys() - ledger.released.keys()
            assert decode(encode(after), SOURCE) == after
            assert encode(decode(encode(after), SOURCE)) == encode(after)
            ledger = after


# ---------------------------------------------------------------------------- room


class Item:
    """SimpleDB's own limits under one ledger: 256 pairs an item, 1,024 bytes a value."""

    def __init__(self) -> None:
        self.sdb = simpledb.Store()
        self.sdb.create_domain("ledger")

    def get(self, name: str) -> Values:
        return self.sdb.get("ledger", name).attributes

    def put(self, name: str, values: dict[str, str], sets: Any = (), *, expected: Expected) -> None:
        puts = [simpledb.Put(key, text, replace=True) for key, text in values.items()]
        condition = simpledb.Expected(expected.attribute, expected.text)
        self.sdb.put("ledger", {name: puts}, condition)

    def delete(self, name: str, *, expected: Expected) -> None:
        self.sdb.delete("ledger", {name: []}, simpledb.Expected(expected.attribute, expected.text))


class Room:
    """A source's ledger and its item. What cannot be written fails the test."""

    def __init__(self, source: str) -> None:
        self.ledgers = Ledgers(Item())  # type: ignore[arg-type]  # no other method is called
        self.snapshot = Snapshot(Ledger(source), None)
        self.largest = 0
        self.now = NOW

    @property
    def ledger(self) -> Ledger:
        return self.snapshot.ledger

    def step(self, after: Ledger) -> None:
        self.largest = max(self.largest, len(encode(after)))
        self.snapshot = replace(self.snapshot, ledger=after)

    def write(self) -> None:
        """Write the ledger as it is, and see that it reads back."""
        snapshot = self.ledgers.write(self.snapshot, self.ledger)
        assert snapshot
        assert self.ledgers.read(self.ledger.source) == snapshot
        self.snapshot = snapshot

    def close_all(self) -> None:
        """Record a rule for each attempt, and one more id for each rule; then close them all."""
        rules = self.ledger.rules.items()
        for number, attempt in enumerate(sorted({name for _, rule in rules for name in rule.attempts})):
            results: dict[RuleKey, Result] = {
                rule_key: Own(rule_id(rule_key, number))
                for rule_key, rule in rules
                if attempt in rule.attempts
            }
            self.step(record_results(self.ledger, "another", attempt, results, self.now))
        self.write()
        for grant in sorted(self.ledger.claims):
            self.step(release(self.ledger, grant, self.now))
        self.write()
        more_ids = {rule_key: [f"sgr-{number:017}"] for number, rule_key in enumerate(self.ledger.rules)}
        self.step(record_ids(self.ledger, more_ids, self.now))
        self.write()
        while self.ledger.rules:
            closing = list(self.ledger.closing(self.ledger.rules).items())[:64]
            assert closing
            revoked = {rule_key: list(rule.ids) for rule_key, rule in closing}
            self.step(record_revoked(self.ledger, revoked, {}, self.now))
            self.write()
        self.now += SETTLES
        self.step(tidy(self.ledger, self.now))
        self.write()
        assert not self.ledger
        assert self.snapshot.token is None


WIDE = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff/128"


def long_key(number: int) -> RuleKey:
    return RuleKey(f"sg-{number // 100:017x}", Ports(60_000 + number % 100, 65_535, "tcp"), WIDE)


def long_grant(number: int) -> str:
    return name_grant(Principal("k1", "x" * 80), WIDE, NOW, f"{number:016x}")


class TestRoom:
    """Closing needs no room: each step of closing what was claimed can be written."""

    @settings(max_examples=10)
    @given(
        st.sampled_from([1, 3, 42, 127, 128]),
        st.sampled_from([1, 2, 20, 64, 65]),
        st.sampled_from([1, 2, 12]),
        st.booleans(),
        st.booleans(),
    )
    def test_all_that_was_claimed_fits_and_can_be_closed(
        self, rules: int, grants: int, tries: int, shared: bool, foreign: bool
    ) -> None:
        room = Room(WIDE)
        for number in range(tries * grants):
            grant = number % grants
            first = 0 if shared else grant * rules
            keys = [long_key(n) for n in range(first, first + rules)]
            attempt = name_attempt(NOW, f"{number:08x}")
            try:
                after = claim(room.ledger, long_grant(grant), END, keys, attempt, NOW)
            except SourceFull:
                break
            if foreign:
                results: dict[RuleKey, Result] = {
                    rule_key: Foreign(rule_id(rule_key)) for rule_key in keys[::2]
                }
                after = record_results(after, long_grant(grant), attempt, results, NOW)
            room.step(after)
        room.write()
        room.close_all()
        assert room.largest <= LARGEST

    def test_the_fullest_a_source_can_get_can_be_closed(self) -> None:
        room, keys = Room(WIDE), [long_key(number) for number in range(128)]
        for number in range(1000):
            attempt = name_attempt(NOW, f"{number:08x}")
            try:
                room.step(claim(room.ledger, long_grant(number % 64), END, keys, attempt, NOW))
            except SourceFull:
                break
        assert number < 999
        room.write()
        room.close_all()
        assert room.largest > CLAIM_ROOM / 2
        assert room.largest <= LARGEST

    def test_a_source_whose_rules_come_and_go_for_minutes_can_be_closed(self) -> None:
        """Each round leaves its ids as tombstones for as long as EC2's lists may lag.

        Mutation: functions/grants/ledger.py: `CLAIM_ROOM = 160 * 1024` -> `CLAIM_ROOM = 240 * 1024`
        """
        room, keys = Room(WIDE), [long_key(number) for number in range(128)]
        for number in range(1000):
            attempt, grant = name_attempt(room.now, f"{number:08x}"), long_grant(number)
            try:
                room.step(claim(room.ledger, grant, END, keys, attempt, room.now))
            except SourceFull:
                break
            results: dict[RuleKey, Result] = {rule_key: Own(rule_id(rule_key, number)) for rule_key in keys}
            room.step(record_results(room.ledger, grant, attempt, results, room.now))
            room.step(release(room.ledger, grant, room.now))
            room.step(
                record_revoked(
                    room.ledger, {rule_key: [rule_id(rule_key, number)] for rule_key in keys}, {}, room.now
                )
            )
        assert number < 999
        assert number > 8
        room.write()
        room.close_all()
        later_ids = 1000 * 60  # bytes of ids found later, as after a change by hand: they still have room
        assert room.largest + later_ids <= LARGEST
        assert claim(room.ledger, "again", END, keys, name_attempt(room.now, "1"), room.now).claims

    def test_a_ledger_that_would_not_fit_is_refused_whole(self) -> None:
        room = Room(WIDE)
        ids = {long_key(n): [f"sgr-{n:08x}{m:09x}" for m in range(60)] for n in range(100)}
        room.step(record_ids(room.ledger, ids, NOW))
        with pytest.raises(StoreRefused, match="longer than an item"):
            room.write()
        assert room.ledgers.read(WIDE) == Snapshot(Ledger(WIDE), None)

    def test_a_whole_item_is_within_simpledbs_limits(self) -> None:
        """Mutation: functions/grants/ledger.py: `LARGEST = 250 * 1024` -> `LARGEST = 255 * 1024`"""
        room, size = Room(WIDE), 0
        while size <= LARGEST - 52:
            number = len(room.ledger.tombstones)
            new = range(number, number + max(1, (LARGEST - size) // 60))
            tombstones = {**room.ledger.tombstones, **{f"sgr-{n:017x}": NOW for n in new}}
            room.step(replace(room.ledger, tombstones=tombstones))
            size = len(encode(room.ledger))
        assert LARGEST - 52 < size <= LARGEST
        room.write()


class TestChangedByHand:
    """EC2's ModifySecurityGroupRules changes a rule's ports or CIDR, and keeps its id."""

    def test_an_id_goes_with_the_key_that_ec2_shows(self) -> None:
        before = record_results(claimed(SSH), "alice", ATTEMPT_1, {SSH: Own("sgr-1")}, NOW)
        with_claim = claim(before, "bob", END, [WEB], ATTEMPT_2, NOW)
        after = record_results(with_claim, "bob", ATTEMPT_2, {WEB: Own("sgr-1")}, NOW)
        assert {key: set(rule.ids) for key, rule in after.rules.items()} == {WEB: {"sgr-1"}}

    def test_an_id_that_is_closing_under_another_key_is_no_result(self) -> None:
        """Else the rule would be reported as open, and then be revoked.

        Mutation: functions/grants/ledger.py:
            `if not other_key or not rules[other_key].closing:` -> `if True:`
        """
        before = record_results(claimed(SSH), "alice", ATTEMPT_1, {SSH: Own("sgr-1")}, NOW)
        with_claim = claim(release(before, "alice", NOW), "bob", END, [WEB], ATTEMPT_2, NOW)
        after = record_results(with_claim, "bob", ATTEMPT_2, {WEB: Own("sgr-1")}, NOW)
        assert after.rules[SSH].closing
        assert set(after.rules[SSH].ids) == {"sgr-1"}
        assert WEB not in after.rules
