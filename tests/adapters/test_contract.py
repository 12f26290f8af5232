"""The contract of the trail, the groups and the executions, over the adapters and over their twins.

What is not told apart here may differ: a twin's rule ids, and words of an error's detail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import GrantEnded, GrantNotFound, InvalidKnock
from grants.ingress import GroupFull, GroupGone
from grants.trail import Page
from grants.values import Event, Grant, Ports, RuleKey, State, Target, make_stamp
from tests.adapters.parts import ALICE, BOB, HERE, HTTP, HTTPS, NOW, SSH, Parts, grant

KEY = RuleKey("sg-0a", SSH, HERE)
OTHER = RuleKey("sg-0b", HTTPS, HERE)
RUN, LATER = make_stamp(NOW, "1f0c9a3e"), make_stamp(NOW + timedelta(seconds=1), "00000000")
ELSEWHERE = "2001:db8::7/128"


def recorded(parts: Parts, grant_id: str = "g1", **changes: Any) -> Grant:
    parts.trail.record_request(grant(grant_id, **changes))
    found: Grant = parts.trail.get(grant_id)
    return found


def lasting(parts: Parts, grant_id: str) -> Grant:
    """A grant that its execution's clock gives another day."""
    return grant(grant_id, expires_at=parts.now().replace(microsecond=0) + timedelta(days=1))


def end(parts: Parts, grant_id: str = "g1", how: State = "revoked", **changes: Any) -> bool:
    ended: bool = parts.trail.end(
        grant_id, how, changes.get("at", NOW), changes.get("by", "alice"), changes.get("reason", "")
    )
    return ended


def ids(grants: Iterable[Grant]) -> list[str]:
    return [grant.id for grant in grants]


class TestRequest:
    def test_it_is_read_as_it_was_recorded_without_its_groups(self, parts: Parts) -> None:
        targets = (Target("web", (HTTP, HTTPS), ("sg-0b",)), Target("bastion", (SSH,), ("sg-0a",)))
        asked = grant("g1", targets=targets, reason='it\'s `on` call, \\ "now" é')
        parts.trail.record_request(asked)
        assert parts.trail.get("g1") == replace(
            asked,
            targets=(Target("bastion", (SSH,)), Target("web", (HTTP, HTTPS))),
            events=(Event(NOW, "requested", "alice"),),
        )

    def test_it_keeps_milliseconds_and_no_more(self, parts: Parts) -> None:
        recorded(parts, requested_at=NOW.replace(microsecond=123_999))
        assert parts.trail.get("g1").requested_at == NOW
        assert parts.trail.get("g1").events[0].at == NOW

    def test_the_first_record_stands(self, parts: Parts) -> None:
        first = recorded(parts)
        assert recorded(parts, reason="another") == first

    def test_a_second_one_after_the_end_revives_nothing(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        assert recorded(parts).state == "revoked"

    def test_there_is_none_of_an_id_that_was_not_recorded(self, parts: Parts) -> None:
        assert parts.trail.get("g1") is None


class TestRefusal:
    def test_it_is_no_grant(self, parts: Parts) -> None:
        for _ in range(2):
            parts.trail.record_refusal("r1", ALICE, HERE, NOW, "knock:targets", "x" * 2000)
        assert parts.trail.get("r1") is None
        assert parts.trail.unclosed(HERE) == []
        assert list(parts.trail.all_unclosed()) == []
        assert parts.trail.page(limit=10) == Page((), None)
        with pytest.raises(GrantNotFound):
            end(parts, "r1")


class TestClaim:
    def test_it_is_a_set_of_keys_each_without_an_outcome(self, parts: Parts) -> None:
        recorded(parts)
        parts.trail.add_claims("g1", {KEY}, RUN)
        parts.trail.add_claims("g1", [KEY, OTHER], RUN)
        parts.trail.add_claims("g1", [KEY], LATER)
        found = parts.trail.get("g1")
        assert found.claims == found.keys == {KEY, OTHER}
        assert found.unsettled == {KEY: {RUN, LATER}, OTHER: {RUN}}

    def test_an_ended_grant_gains_none(self, parts: Parts) -> None:
        """Mutation: functions/grants/trail.py:
        `WHILE_LIVE = {"Name": "state", "Value": LIVE}` -> `WHILE_LIVE = None`
        """
        recorded(parts)
        parts.trail.add_claims("g1", {KEY}, RUN)
        end(parts)
        with pytest.raises(GrantEnded):
            parts.trail.add_claims("g1", {OTHER}, RUN)
        assert parts.trail.get("g1").claims == {KEY}

    def test_a_grant_that_was_not_recorded_gains_none(self, parts: Parts) -> None:
        with pytest.raises(GrantEnded):
            parts.trail.add_claims("g1", {KEY}, RUN)
        assert parts.trail.get("g1") is None

    def test_it_can_be_dropped_by_its_run_once_and_again_and_after_the_end(self, parts: Parts) -> None:
        recorded(parts)
        parts.trail.add_claims("g1", {KEY, OTHER}, RUN)
        parts.trail.add_claims("g1", {KEY}, LATER)
        parts.trail.drop_claims("g1", {OTHER}, RUN)
        parts.trail.drop_claims("g1", {OTHER}, RUN)
        assert parts.trail.get("g1").claims == {KEY}
        end(parts)
        parts.trail.drop_claims("g1", {KEY, OTHER}, RUN)
        assert parts.trail.get("g1").unsettled == {KEY: {LATER}}
        parts.trail.drop_claims("g1", {KEY}, LATER)
        assert parts.trail.get("g1").claims == frozenset()

    def test_dropping_one_of_no_grant_makes_none(self, parts: Parts) -> None:
        parts.trail.drop_claims("g1", {KEY}, RUN)
        assert parts.trail.get("g1") is None

    def test_more_than_an_item_holds_are_refused_whole(self, parts: Parts) -> None:
        recorded(parts)
        before = parts.trail.get("g1")
        pairs = 10 + 2 + 1  # the single ones, the target twice, one event
        keys = [RuleKey("sg-0a", Ports(port, port, "tcp"), HERE) for port in range(1, 256 - pairs + 2)]
        with pytest.raises(InvalidKnock):
            parts.trail.add_claims("g1", keys, RUN)
        assert parts.trail.get("g1") == before
        parts.trail.add_claims("g1", keys[1:], RUN)
        with pytest.raises(InvalidKnock):
            parts.trail.record_rule("g1", keys[1], "sgr-1", RUN)


class TestRuleRecord:
    def test_it_says_what_became_of_a_claim(self, parts: Parts) -> None:
        recorded(parts)
        parts.trail.add_claims("g1", {KEY, OTHER}, RUN)
        parts.trail.add_claims("g1", {KEY}, LATER)
        for _ in range(2):
            parts.trail.record_rule("g1", KEY, "sgr-1", RUN)
        found = parts.trail.get("g1")
        assert found.unsettled == {KEY: {LATER}, OTHER: {RUN}}
        parts.trail.record_rule("g1", KEY, "sgr-2", LATER)
        parts.trail.record_rule("g1", OTHER, "sgr-3", RUN, foreign=True)
        found = parts.trail.get("g1")
        assert found.unsettled == {}
        assert found.claims == {KEY, OTHER}
        assert found.rules == {KEY: {"sgr-1", "sgr-2"}}
        assert found.outcomes == {KEY: ("sgr-2", False), OTHER: ("sgr-3", True)}
        assert found.authorized_at is None

    def test_the_last_says_that_all_is_open(self, parts: Parts) -> None:
        recorded(parts)
        at = NOW + timedelta(seconds=1, microseconds=77)
        parts.trail.record_rule("g1", KEY, "sgr-1", RUN, authorized_at=at, supersedes=["g0", "g00"])
        found = parts.trail.get("g1")
        assert found.supersedes == {"g0", "g00"}
        assert found.authorized_at == NOW + timedelta(seconds=1)
        assert [event.event for event in found.events] == ["requested", "authorized"]
        assert found.status_at(at) == "active"

    def test_an_ended_grant_gains_none(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        before = parts.trail.get("g1")
        with pytest.raises(GrantEnded):
            parts.trail.record_rule("g1", KEY, "sgr-1", RUN, authorized_at=NOW)
        assert parts.trail.get("g1") == before
        with pytest.raises(GrantEnded):
            parts.trail.record_rule("g9", KEY, "sgr-1", RUN)


class TestHandingOver:
    def test_a_live_grant_answers_for_the_rules_and_its_claim_still_lacks_an_outcome(
        self, parts: Parts
    ) -> None:
        recorded(parts)
        parts.trail.add_claims("g1", {KEY}, RUN)
        for _ in range(2):
            parts.trail.hand_over("g1", {KEY: {"sgr-1", "sgr-2"}, OTHER: {"sgr-3"}})
        found = parts.trail.get("g1")
        assert found.rules == {KEY: {"sgr-1", "sgr-2"}, OTHER: {"sgr-3"}}
        assert found.outcomes == {}
        assert found.unsettled == {KEY: {RUN}}
        assert found.claims == {KEY}
        assert found.keys == {KEY, OTHER}

    def test_an_ended_grant_takes_nothing_over(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        for grant_id in ("g1", "g9"):
            with pytest.raises(GrantEnded):
                parts.trail.hand_over(grant_id, {KEY: {"sgr-1"}})
        assert parts.trail.get("g1").rules == {}


class TestCondemning:
    def test_it_is_decided_by_who_knows_of_every_decision_before(self, parts: Parts) -> None:
        """Mutation: functions/grants/trail.py:
        `expected={"Name": "decided", "Value": str(decided)}` -> `expected=None`
        """
        recorded(parts)
        end(parts)
        assert parts.trail.get("g1").decided == 0
        assert parts.trail.condemn("g1", 0, {KEY: {"sgr-1"}, OTHER: {"sgr-2", "sgr-3"}}) is True
        assert parts.trail.condemn("g1", 0, {KEY: {"sgr-4"}}) is False
        assert parts.trail.condemn("g1", 1, {KEY: {"sgr-5"}}) is True
        assert parts.trail.condemn("g1", 2, {}) is True
        found = parts.trail.get("g1")
        assert found.decided == 3
        assert found.condemned == {KEY: {"sgr-1", "sgr-5"}, OTHER: {"sgr-2", "sgr-3"}}
        assert found.rules == {}
        assert found.keys == {KEY, OTHER}

    def test_nothing_is_decided_about_a_closed_grant_or_none(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        assert parts.trail.close("g1", 0, NOW, [], []) is True
        for decided in (0, 1, -1):
            assert parts.trail.condemn("g1", decided, {KEY: {"sgr-1"}}) is False
        assert parts.trail.condemn("g9", 0, {KEY: {"sgr-1"}}) is False
        assert parts.trail.get("g9") is None
        assert parts.trail.get("g1").condemned == {}


class TestEnd:
    def test_the_first_one_stands(self, parts: Parts) -> None:
        recorded(parts)
        at = NOW + timedelta(seconds=5)
        assert end(parts, how="revoked", at=at, by="bob", reason="lost laptop") is True
        first = parts.trail.get("g1")
        assert (first.state, first.ended_at, first.ended_by) == ("revoked", at, "bob")
        assert first.end_reason == "lost laptop"
        assert first.events[-1] == Event(at, "revoked", "bob", {"reason": "lost laptop"})
        assert end(parts, how="expired", at=at + timedelta(1)) is False
        assert parts.trail.get("g1") == first

    @pytest.mark.parametrize("how", ["expired", "revoked", "superseded", "failed"])
    def test_it_says_how(self, parts: Parts, how: State) -> None:
        recorded(parts)
        end(parts, how=how)
        assert parts.trail.get("g1").state == how
        assert parts.trail.get("g1").events[-1].event == how

    def test_there_is_none_of_a_grant_that_was_not_recorded(self, parts: Parts) -> None:
        with pytest.raises(GrantNotFound):
            end(parts)
        assert parts.trail.get("g1") is None

    def test_a_long_reason_is_cut(self, parts: Parts) -> None:
        recorded(parts)
        end(parts, reason="é" * 400)
        assert parts.trail.get("g1").events[-1].detail == {"reason": "é" * 150}


class TestClosing:
    def test_the_first_time_stands(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        at = NOW + timedelta(seconds=1)
        assert parts.trail.close("g1", 0, at, ["sgr-2", "sgr-1"], [str(OTHER), str(KEY)]) is True
        first = parts.trail.get("g1")
        assert first.closed_at == at
        detail = {"revoked": ["sgr-1", "sgr-2"], "kept": [str(KEY), str(OTHER)]}
        assert first.events[-1] == Event(at, "closed", "knock", detail)
        assert parts.trail.close("g1", 0, at + timedelta(1), ["sgr-9"], []) is False
        assert parts.trail.get("g1") == first

    def test_it_is_recorded_by_who_knows_of_every_decision_before(self, parts: Parts) -> None:
        recorded(parts)
        end(parts)
        parts.trail.condemn("g1", 0, {KEY: {"sgr-1"}})
        assert parts.trail.close("g1", 0, NOW, [], []) is False
        assert parts.trail.get("g1").closed_at is None
        assert parts.trail.close("g1", 1, NOW, [], []) is True
        assert parts.trail.get("g1").closed_at == NOW

    def test_it_records_nothing_of_a_grant_there_is_none_of(self, parts: Parts) -> None:
        assert parts.trail.close("g1", 0, NOW, [], []) is False
        assert parts.trail.get("g1") is None

    def test_its_event_names_some_of_many_rules(self, parts: Parts) -> None:
        recorded(parts)
        parts.trail.close("g1", 0, NOW, [f"sgr-{n:017}" for n in range(80)], [str(KEY)] * 80)
        detail = parts.trail.get("g1").events[-1].detail
        assert len(detail["revoked"]) == 20
        assert len(detail["kept"]) == 4


class TestEvents:
    def test_they_are_in_the_order_of_time_whenever_they_were_written(self, parts: Parts) -> None:
        recorded(parts)
        end(parts, at=NOW + timedelta(days=2))
        parts.trail.close("g1", 0, NOW + timedelta(days=1), [], [])
        assert [event.event for event in parts.trail.get("g1").events] == ["requested", "closed", "revoked"]


class TestUnclosed:
    def test_it_lists_the_live_ones_and_those_being_closed_of_one_source(self, parts: Parts) -> None:
        for name in ("live", "ended", "closed"):
            recorded(parts, name)
        recorded(parts, "elsewhere", source=ELSEWHERE)
        end(parts, "ended")
        end(parts, "closed")
        parts.trail.close("closed", 0, NOW, [], [])
        assert sorted(ids(parts.trail.unclosed(HERE))) == ["ended", "live"]
        assert ids(parts.trail.unclosed(ELSEWHERE)) == ["elsewhere"]
        assert parts.trail.unclosed("203.0.113.8/32") == []
        assert sorted(ids(parts.trail.all_unclosed())) == ["elsewhere", "ended", "live"]

    def test_it_shows_a_grant_whole(self, parts: Parts) -> None:
        recorded(parts)
        parts.trail.add_claims("g1", {KEY, OTHER}, RUN)
        parts.trail.record_rule("g1", KEY, "sgr-1", RUN)
        assert parts.trail.unclosed(HERE) == [parts.trail.get("g1")]
        assert list(parts.trail.all_unclosed()) == [parts.trail.get("g1")]

    def test_a_source_is_a_value_and_no_part_of_a_question(self, parts: Parts) -> None:
        recorded(parts)
        assert parts.trail.unclosed("x' or `closed_at` = '-") == []
        recorded(parts, "odd", source="it's")
        assert ids(parts.trail.unclosed("it's")) == ["odd"]


class TestPage:
    @pytest.fixture
    def many(self, parts: Parts) -> Parts:
        """Grants g0 (oldest) to g6: bob's are 1 and 4; 2 and 4 are for the web; 5 ended; 6 is past."""
        web = (Target("web", (HTTP,), ("sg-0b",)), Target("bastion", (SSH,), ("sg-0a",)))
        for n in range(7):
            changes: dict[str, Any] = {"requested_at": NOW + timedelta(milliseconds=n)}
            if n in (1, 4):
                changes |= {"principal": BOB, "source": ELSEWHERE}
            if n in (2, 4):
                changes |= {"targets": web}
            if n == 6:
                changes |= {"expires_at": NOW.replace(microsecond=0)}
            recorded(parts, f"g{n}", **changes)
        end(parts, "g5")
        return parts

    @pytest.mark.parametrize(
        ("question", "found"),
        [
            ({}, "6543210"),
            ({"live_after": NOW}, "43210"),
            ({"live_after": NOW - timedelta(seconds=1)}, "643210"),
            ({"principal_id": "k2"}, "41"),
            ({"principal_name": "alice"}, "65320"),
            ({"source": ELSEWHERE}, "41"),
            ({"target": "web"}, "42"),
            ({"state": "revoked"}, "5"),
            ({"state": "expired"}, ""),
            ({"principal_id": "k1", "target": "web", "live_after": NOW}, "2"),
            ({"principal_id": "k1", "principal_name": "bob"}, ""),
        ],
    )
    def test_all_conditions_hold_and_the_newest_come_first(
        self, many: Parts, question: dict[str, Any], found: str
    ) -> None:
        page = many.trail.page(limit=10, **question)
        assert ids(page.grants) == [f"g{n}" for n in found]
        assert page.after is None

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
    def test_pages_meet(self, many: Parts, limit: int) -> None:
        seen: list[str] = []
        after = None
        for _ in range(8):
            page = many.trail.page(limit=limit, after=after)
            seen += ids(page.grants)
            after = page.after
            if after is None:
                break
            assert len(page.grants) == limit
        assert seen == [f"g{n}" for n in range(6, -1, -1)]

    def test_it_goes_on_though_grants_ended_meanwhile(self, many: Parts) -> None:
        first = many.trail.page(limit=2, live_after=NOW)
        assert ids(first.grants) == ["g4", "g3"]
        end(many, "g3")
        assert ids(many.trail.page(limit=2, live_after=NOW, after=first.after).grants) == ["g2", "g1"]

    def test_values_are_values(self, many: Parts) -> None:
        for hostile in ("' or '1' = '1", "web' or `kind` = 'grant", "%", "`", '"', "\\"):
            assert many.trail.page(limit=10, target=hostile) == Page((), None)
            assert many.trail.page(limit=10, principal_name=hostile) == Page((), None)


class TestRule:
    def key(self, parts: Parts, ports: Ports = SSH, cidr: str = HERE, group: int = 0) -> RuleKey:
        return RuleKey(parts.groups[group], ports, cidr)

    @pytest.mark.parametrize("cidr", [HERE, "198.51.100.0/28", ELSEWHERE, "2001:db8::/60"])
    @pytest.mark.parametrize("ports", [SSH, Ports(8000, 8010, "udp")])
    def test_it_is_authorized_once_and_is_ours(self, parts: Parts, cidr: str, ports: Ports) -> None:
        """Mutation: functions/grants/ingress.py:
        `if code == "InvalidPermission.Duplicate":` -> `if False:`
        """
        key = self.key(parts, ports, cidr)
        rule_id = parts.ingress.authorize(key, "g1")
        assert parts.ingress.authorize(key, "g2") is None
        (rule,) = parts.ingress.find([key.group])
        assert (rule.id, rule.key, rule.grant_id) == (rule_id, key, "g1")
        assert parts.ingress.is_ours(rule)
        assert parts.ingress.ours() == [rule]

    def test_it_is_revoked_once(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `if _code(error) in GONE:` -> `if False:`"""
        key = self.key(parts)
        rule_id = parts.ingress.authorize(key, "g1")
        assert parts.ingress.revoke(key.group, rule_id) is True
        assert parts.ingress.revoke(key.group, rule_id) is False
        assert parts.ingress.find([key.group]) == []
        assert parts.ingress.authorize(key, "g2") not in (None, rule_id)

    def test_a_foreign_one_is_there_and_stays_as_it_is(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `return rule.stack == self.stack` -> `return True`"""
        key = self.key(parts)
        rule_id = parts.add_rule(key)
        assert parts.ingress.authorize(key, "g1") is None
        (rule,) = parts.ingress.find([key.group])
        assert (rule.id, rule.stack, rule.grant_id) == (rule_id, None, None)
        assert not parts.ingress.is_ours(rule)
        assert parts.ingress.ours() == []
        parts.remove_rule(key, rule_id)
        assert parts.ingress.authorize(key, "g1")

    def test_it_is_another_one_with_other_ports_protocol_source_or_group(self, parts: Parts) -> None:
        keys = [
            self.key(parts),
            self.key(parts, Ports(22, 23, "tcp")),
            self.key(parts, Ports(22, 22, "udp")),
            self.key(parts, cidr="203.0.113.8/32"),
            self.key(parts, cidr="203.0.113.0/28"),
            self.key(parts, group=1),
        ]
        made = {key: parts.ingress.authorize(key, "g1") for key in keys}
        assert None not in made.values()
        assert len(set(made.values())) == len(keys)
        assert {rule.key: rule.id for rule in parts.ingress.find(parts.groups)} == made
        assert {rule.key for rule in parts.ingress.find(parts.groups[1:])} == {keys[-1]}
        assert {rule.key for rule in parts.ingress.ours()} == set(keys)

    def test_it_is_revoked_only_in_its_own_group(self, parts: Parts) -> None:
        rule_id = parts.ingress.authorize(self.key(parts), "g1")
        assert parts.ingress.revoke(parts.groups[1], rule_id) is False
        assert [rule.id for rule in parts.ingress.find(parts.groups)] == [rule_id]

    def test_a_full_group_takes_no_more_of_one_address_family(self, parts: Parts) -> None:
        parts.set_quota(2)
        parts.add_rule(self.key(parts, HTTP))
        rule_id = parts.ingress.authorize(self.key(parts), "g1")
        with pytest.raises(GroupFull):
            parts.ingress.authorize(self.key(parts, HTTPS), "g1")
        assert len(parts.ingress.find(parts.groups)) == 2
        assert parts.ingress.authorize(self.key(parts, HTTPS, ELSEWHERE), "g1")
        assert parts.ingress.authorize(self.key(parts, HTTPS, group=1), "g1")
        assert parts.ingress.authorize(self.key(parts), "g2") is None, "what is there needs no room"
        parts.ingress.revoke(parts.groups[0], rule_id)
        assert parts.ingress.authorize(self.key(parts, HTTPS), "g1")

    def test_there_is_none_in_a_group_that_was_deleted(self, parts: Parts) -> None:
        key = self.key(parts)
        rule_id = parts.ingress.authorize(key, "g1")
        parts.delete_group(key.group)
        assert parts.ingress.revoke(key.group, rule_id) is False
        assert parts.ingress.find(parts.groups) == []
        assert parts.ingress.ours() == []
        with pytest.raises(GroupGone):
            parts.ingress.authorize(key, "g1")


class TestExecution:
    def test_there_is_none_before_it_starts(self, parts: Parts) -> None:
        assert parts.executions.status("never") is None
        assert parts.executions.stop("never", "Revoked", "revoked by bob") is False

    def test_it_runs_once_however_often_it_is_started(self, parts: Parts) -> None:
        made = lasting(parts, f"once-{parts.name}")
        parts.executions.start(made)
        parts.executions.start(made)
        parts.executions.start(replace(made, reason="another input"))
        assert parts.executions.status(made.id) == "RUNNING"
        assert list(parts.executions.running()).count(made.id) == 1

    def test_it_is_stopped_once_and_for_all(self, parts: Parts) -> None:
        made = lasting(parts, f"stopped-{parts.name}")
        parts.executions.start(made)
        for _ in range(2):
            assert parts.executions.stop(made.id, "Revoked", "revoked by bob: x" * 3000) is True
            assert parts.executions.status(made.id) == "ABORTED"
        parts.executions.start(made)
        assert parts.executions.status(made.id) == "ABORTED"
        assert made.id not in parts.executions.running()

    def test_stopping_one_that_ended_by_itself_changes_nothing(self, parts: Parts) -> None:
        made = lasting(parts, f"ended-{parts.name}")
        parts.executions.start(made)
        parts.finish(made.id)
        assert parts.executions.stop(made.id, "Revoked", "") is True
        assert parts.executions.status(made.id) == "SUCCEEDED"
        assert made.id not in parts.executions.running()

    def test_its_arn_names_the_grant(self, parts: Parts) -> None:
        arn: str = parts.executions.arn("g1")
        assert arn.startswith("arn:aws:states:eu-west-1:123456789012:execution:knock-grants:")
        assert arn.endswith(":g1")
