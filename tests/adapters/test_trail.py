"""The trail, over every store: entries are only ever added, and the first end wins."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import GrantEnded, GrantNotFound, StoreRefused
from grants.store import Expected, Store
from grants.trail import Page, Trail, cut
from grants.values import (
    LONGEST_TEXT,
    MOST_RULES,
    MOST_TARGETS,
    Event,
    Grant,
    Opened,
    Ports,
    Principal,
    Record,
    RuleKey,
    State,
    Target,
    Unreadable,
)
from tests.adapters.parts import (
    ALICE,
    BASTION,
    BOB,
    ELSEWHERE,
    HERE,
    HTTP,
    HTTPS,
    NOW,
    SSH,
    Stores,
    new_grant,
)

AT = NOW + timedelta(seconds=5)
KEY = RuleKey("sg-0a", SSH, HERE)
OPENED = Opened(KEY, "sgr-1", "bastion")
FOREIGN = Opened(RuleKey("sg-0b", HTTPS, HERE), "sgr-2", "web", foreign=True)
WEB = Target("web", (HTTP, HTTPS), ("sg-0b", "sg-0c"))
ODD = 'it\'s `on` call, \\ "now" é'


@pytest.fixture
def trail(store: Store) -> Trail:
    return Trail(store)


def recorded(trail: Trail, nonce: str = "", **changes: Any) -> Grant:
    grant = new_grant(nonce, **changes)
    trail.record(grant)
    return grant


def end(trail: Trail, of: Grant, how: State = "revoked", **changes: Any) -> bool:
    at, by, reason = changes.get("at", AT), changes.get("by", "alice"), changes.get("reason", "")
    return trail.end(of.id, how, at, by, reason, changes.get("grant"))


def get(trail: Trail, of: Grant) -> Record:
    record = trail.get(of.id)
    assert record
    return record


def ids(records: Iterable[Any]) -> set[str]:
    return {record.id for record in records}


class TestRecord:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"targets": (WEB, BASTION), "reason": ODD, "by_name": False},
            {"renews": "alice_x", "source": ELSEWHERE},
            {"principal": Principal("k9", "é\"\\`'")},
        ],
    )
    def test_it_is_read_as_it_was_written_whole(self, trail: Trail, changes: dict[str, Any]) -> None:
        grant = new_grant(**changes)
        first = trail.record(grant)
        assert (
            first
            == get(trail, grant)
            == Record(grant, events=(Event(NOW, "requested", grant.principal.name),))
        )

    def test_it_keeps_milliseconds_and_no_more(self, trail: Trail) -> None:
        grant = recorded(trail, requested_at=NOW.replace(microsecond=123_999))
        assert get(trail, grant).grant.requested_at == NOW
        assert get(trail, grant).events[0].at == NOW

    def test_the_first_record_stands(self, trail: Trail) -> None:
        grant = recorded(trail)
        end(trail, grant)
        before = get(trail, grant)
        assert trail.record(grant) == before
        assert get(trail, grant) == before
        assert before.state == "revoked", "a second record after the end revives nothing"

    def test_a_record_whose_answer_was_lost_is_found(self, stores: Stores, trail: Trail) -> None:
        stores.lose_answer()
        grant = new_grant()
        assert trail.record(grant) == get(trail, grant)

    def test_there_is_none_of_an_id_that_was_not_recorded(self, trail: Trail) -> None:
        assert trail.get("g1") is None


class TestAuthorized:
    def test_the_open_rules_are_recorded(self, trail: Trail) -> None:
        grant = recorded(trail, targets=(WEB, BASTION))
        trail.authorize(grant.id, AT + timedelta(microseconds=77), [FOREIGN, OPENED], ["vault"])
        record = get(trail, grant)
        assert record.authorized_at == AT
        assert record.opened == (OPENED, FOREIGN)
        assert record.events[-1] == Event(AT, "authorized", "knock", {"left_out": ["vault"]})
        assert record.status_at(AT) == "active"

    def test_twice_is_once(self, trail: Trail) -> None:
        grant = recorded(trail)
        for later in range(3):
            trail.authorize(grant.id, AT + timedelta(seconds=later), [OPENED])
        record = get(trail, grant)
        assert record.opened == (OPENED,)
        assert [event.event for event in record.events] == ["requested", "authorized"]

    def test_an_ended_grant_opens_nothing(self, trail: Trail) -> None:
        """Mutation: functions/grants/trail.py:
        `WHILE_LIVE = Expected("state", LIVE)` -> `WHILE_LIVE = None`
        """
        grant = recorded(trail)
        end(trail, grant)
        before = get(trail, grant)
        with pytest.raises(GrantEnded):
            trail.authorize(grant.id, AT, [OPENED])
        assert get(trail, grant) == before

    def test_nor_does_a_grant_that_was_not_recorded(self, trail: Trail) -> None:
        with pytest.raises(GrantEnded):
            trail.authorize(new_grant().id, AT, [OPENED])
        assert trail.get(new_grant().id) is None


class TestEnd:
    def test_the_first_end_stands(self, trail: Trail) -> None:
        grant = recorded(trail)
        assert end(trail, grant, by="bob", reason="lost laptop") is True
        first = get(trail, grant)
        assert (first.state, first.ended_at, first.ended_by) == ("revoked", AT, "bob")
        assert first.end_reason == "lost laptop"
        assert first.events[-1] == Event(AT, "revoked", "bob", {"reason": "lost laptop"})
        assert end(trail, grant, "expired", at=AT + timedelta(days=1)) is False
        assert end(trail, grant, "expired", grant=grant) is False
        assert get(trail, grant) == first

    @pytest.mark.parametrize("how", ["expired", "revoked", "superseded", "failed"])
    def test_it_says_how(self, trail: Trail, how: State) -> None:
        grant = recorded(trail)
        end(trail, grant, how)
        assert get(trail, grant).state == how
        assert get(trail, grant).events[-1].event == how
        assert not get(trail, grant).live_at(AT)

    def test_there_is_none_of_a_grant_that_was_not_recorded(self, trail: Trail) -> None:
        with pytest.raises(GrantNotFound):
            end(trail, new_grant())
        assert trail.get(new_grant().id) is None

    def test_with_its_input_an_ended_record_is_written_whole(self, trail: Trail) -> None:
        """Mutation: functions/grants/trail.py: `values | {"unopened": "true"}` -> `values`"""
        grant = new_grant(targets=(WEB, BASTION), reason=ODD)
        assert end(trail, grant, by="bob", reason="never mind", grant=grant) is True
        record = get(trail, grant)
        assert record.grant == grant
        assert record.unopened
        assert record.closed_at is None
        assert (record.state, record.ended_at, record.ended_by) == ("revoked", AT, "bob")
        assert [event.event for event in record.events] == ["requested", "revoked"]
        assert end(trail, grant, "expired", grant=grant) is False

    def test_a_late_record_finds_it_and_opens_nothing(self, trail: Trail) -> None:
        """Mutation: functions/grants/trail.py:
        `NOT_RECORDED = Expected("kind", None)` -> `NOT_RECORDED = Expected("nothing", None)`
        """
        grant = new_grant()
        end(trail, grant, grant=grant)
        assert trail.record(grant).state == "revoked"
        with pytest.raises(GrantEnded):
            trail.authorize(grant.id, AT, [OPENED])
        assert get(trail, grant).opened == ()

    @pytest.mark.parametrize("unrecorded", [True, False])
    def test_an_end_whose_answer_was_lost_is_recorded_once(
        self, stores: Stores, trail: Trail, unrecorded: bool
    ) -> None:
        grant = new_grant() if unrecorded else recorded(trail)
        stores.lose_answer(after=1 if unrecorded else 0)
        assert end(trail, grant, grant=grant if unrecorded else None) is False
        assert get(trail, grant).state == "revoked"
        assert [event.event for event in get(trail, grant).events] == ["requested", "revoked"]

    @pytest.mark.parametrize("letter", ["x", "é", "✓", "😀", '"', "\\", "\n", "\ud800"])
    def test_it_is_recorded_with_any_name_and_reason(self, trail: Trail, letter: str) -> None:
        """Mutation: functions/grants/trail.py: `cut(reason, LONGEST_REASON)` -> `reason`"""
        grant = recorded(trail)
        assert end(trail, grant, by=letter * 2000, reason=letter * 2000) is True
        record = get(trail, grant)
        assert record.state == "revoked"
        assert len(record.end_reason.encode()) <= 1000
        assert trail.close(grant.id, AT, letter * 2000, [], []) is True

    def test_a_long_reason_is_cut(self, trail: Trail) -> None:
        grant = recorded(trail)
        end(trail, grant, reason="é" * 600)
        assert get(trail, grant).end_reason == "é" * 500
        assert get(trail, grant).events[-1].detail == {"reason": "é" * 150}

    def test_a_letter_that_cannot_be_printed_becomes_a_space(self) -> None:
        assert cut("a\nb\tc\x00d\u202ee", 100) == "a b c d e"
        assert cut("éé", 3) == "é"


class TestClose:
    def test_the_first_time_stands(self, trail: Trail) -> None:
        """Mutation: functions/grants/trail.py:
        `NOT_CLOSED = Expected("closed_at", NOT_YET)` -> `NOT_CLOSED = Expected("kind", "grant")`
        """
        grant = recorded(trail)
        end(trail, grant)
        kept_keys = [str(FOREIGN.key), str(KEY)]
        assert trail.close(grant.id, AT, "request-1", ["sgr-2", "sgr-1"], kept_keys) is True
        first = get(trail, grant)
        assert (first.closed_at, first.closer) == (AT, "request-1")
        detail = {"revoked": ["sgr-1", "sgr-2"], "kept": sorted(kept_keys)}
        assert first.events[-1] == Event(AT, "closed", "knock", detail)
        assert trail.close(grant.id, AT + timedelta(days=1), "request-2", ["sgr-9"], []) is False
        assert get(trail, grant) == first

    def test_a_request_whose_answer_was_lost_recognizes_its_own_write(
        self, stores: Stores, trail: Trail
    ) -> None:
        """Mutation: functions/grants/trail.py:
        `.get("closer") == (values["closer"],)` -> `.get("closer") == ()`
        """
        grant = recorded(trail)
        end(trail, grant)
        stores.lose_answer()
        assert trail.close(grant.id, AT, "request-1", ["sgr-1"], []) is True
        assert trail.close(grant.id, AT + timedelta(seconds=1), "request-1", [], []) is True
        assert get(trail, grant).closed_at == AT
        assert [event.event for event in get(trail, grant).events].count("closed") == 1

    def test_nothing_is_recorded_of_a_grant_that_was_not_recorded(self, trail: Trail) -> None:
        assert trail.close(new_grant().id, AT, "request-1", [], []) is False
        assert trail.get(new_grant().id) is None

    def test_its_event_names_some_of_many_rules(self, trail: Trail) -> None:
        grant = recorded(trail)
        end(trail, grant)
        keys = [str(RuleKey(f"sg-{n:017}", Ports(60_000, 65_535, "tcp"), ELSEWHERE)) for n in range(80)]
        assert trail.close(grant.id, AT, "x", [f"sgr-{n:017}" for n in range(80)], keys) is True
        detail = get(trail, grant).events[-1].detail
        assert len(detail["revoked"]) == 20
        assert len(detail["kept"]) == 4


class TestRoom:
    """What is recorded is bounded before it is written, so that an end always has room."""

    def largest(self, letter: str) -> tuple[Grant, list[Opened]]:
        text = letter * LONGEST_TEXT
        ports = [(Ports(1000 * n + 1, 1000 * n + 2, "tcp"),) for n in range(MOST_TARGETS)]
        extra = tuple(Ports(n, n, "udp") for n in range(1, MOST_RULES - MOST_TARGETS + 1))
        ports[0] += extra
        grant = new_grant(
            principal=Principal(text, text),
            reason=text,
            renews=text,
            targets=tuple(Target(f"{n:063}", ports[n], (f"sg-{n:017}",)) for n in range(MOST_TARGETS)),
        )
        opened = [
            Opened(RuleKey(target.groups[0], port_range, HERE), f"sgr-{number:017}", target.name)
            for target in grant.targets
            for number, port_range in enumerate(target.ports)
        ]
        assert len(opened) == MOST_RULES
        return Grant.from_input(grant.as_input()), opened

    @pytest.mark.parametrize("letter", ["x", "é", "✓", "😀", '"', "\\"])
    def test_the_largest_grant_can_be_recorded_opened_ended_and_closed(
        self, trail: Trail, letter: str
    ) -> None:
        """Mutation: functions/grants/values.py: `MOST_TARGETS = 50` -> `MOST_TARGETS = 128`"""
        grant, opened = self.largest(letter)
        trail.record(grant)
        for later in range(40):
            at = AT + timedelta(seconds=later)
            trail.authorize(grant.id, at, opened, [letter * LONGEST_TEXT] * 50)
        assert end(trail, grant, by=letter * 2000, reason=letter * 2000) is True
        assert trail.close(grant.id, AT, letter * 2000, [rule.rule_id for rule in opened], []) is True
        record = get(trail, grant)
        assert record.grant == grant
        assert set(record.opened) == set(opened)

    @pytest.mark.parametrize("letter", ["x", "é", "✓", "😀", '"', "\\"])
    def test_the_largest_grant_can_be_recorded_as_ended(self, trail: Trail, letter: str) -> None:
        grant, _ = self.largest(letter)
        assert end(trail, grant, by=letter * 2000, reason=letter * 2000, grant=grant) is True
        assert get(trail, grant).grant == grant

    def test_so_can_a_grant_with_the_longest_names_and_the_most_bytes(self, trail: Trail) -> None:
        groups = tuple("é" * LONGEST_TEXT for _ in range(45))
        grant = new_grant(targets=(Target("✓" * LONGEST_TEXT, (SSH,), groups),))
        grant = Grant.from_input(grant.as_input())
        assert end(trail, grant, grant=grant) is True
        assert get(trail, grant).grant == grant

    def test_targets_left_out_are_named_as_far_as_there_is_room(self, trail: Trail) -> None:
        """Mutation: functions/grants/trail.py:
        `{"left_out": _fitting(left_out)}` -> `{"left_out": list(left_out)}`
        """
        grant = recorded(trail)
        trail.authorize(grant.id, AT, [OPENED], [f"{n:063}" for n in range(50)])
        left_out = get(trail, grant).events[-1].detail["left_out"]
        assert left_out == [f"{n:063}" for n in range(len(left_out))]
        assert 8 <= len(left_out) < 50


class TestEvents:
    def test_they_are_in_the_order_of_time_whenever_they_were_written(self, trail: Trail) -> None:
        grant = recorded(trail)
        end(trail, grant, at=NOW + timedelta(days=2))
        trail.close(grant.id, NOW + timedelta(days=1), "x", [], [])
        assert [event.event for event in get(trail, grant).events] == ["requested", "closed", "revoked"]


class TestUnclosed:
    def test_it_lists_live_grants_and_those_being_closed(self, trail: Trail) -> None:
        live, ended, closed = (recorded(trail, name) for name in ("live", "ended", "closed"))
        end(trail, ended)
        end(trail, closed)
        trail.close(closed.id, AT, "x", [], [])
        assert ids(trail.unclosed()) == {live.id, ended.id}
        assert get(trail, live) in list(trail.unclosed())

    def test_an_item_that_cannot_be_read_is_named_and_the_others_are_listed(
        self, trail: Trail, store: Store
    ) -> None:
        live, broken = recorded(trail, "live"), recorded(trail, "broken")
        store.put(broken.id, {"input_00": "{"})
        items = list(trail.unclosed())
        assert ids(item for item in items if isinstance(item, Record)) == {live.id}
        (unreadable,) = [item for item in items if isinstance(item, Unreadable)]
        assert unreadable.name == broken.id
        assert "cannot be read" in unreadable.why

    def test_an_item_that_is_no_grant_is_left_out(self, trail: Trail, store: Store) -> None:
        store.put("other", {"closed_at": "-", "kind": "note"})
        store.put("another", {"closed_at": "-"})
        assert list(trail.unclosed()) == []


class TestUnreadable:
    @pytest.mark.parametrize(
        "changes",
        [
            {"state": "asleep"},
            {"input_00": "{"},
            {"input_00": "{}"},
            {"input_00": "[]"},
            {"closed_at": "yesterday"},
            {"ended_at": "x"},
            {"authorized_at": ""},
        ],
    )
    def test_a_record_changed_by_hand_is_an_error_and_left_out_of_lists(
        self, trail: Trail, store: Store, changes: dict[str, str]
    ) -> None:
        readable, broken = recorded(trail, "other"), recorded(trail)
        store.put(broken.id, changes)
        with pytest.raises(StoreRefused, match="cannot be read"):
            trail.get(broken.id)
        assert ids(trail.page(limit=10).records) == {readable.id}
        assert ids(trail.page(limit=1).records) == {readable.id}

    @pytest.mark.parametrize("attribute", ["rule", "event"])
    @pytest.mark.parametrize("text", ["{", "{}", "[]", "7", '{"at":"x"}'])
    def test_so_is_a_record_with_an_odd_entry(
        self, trail: Trail, store: Store, attribute: str, text: str
    ) -> None:
        grant = recorded(trail)
        store.put(grant.id, {}, [(attribute, text)])
        with pytest.raises(StoreRefused):
            trail.get(grant.id)

    def test_so_is_a_record_without_a_state(self, trail: Trail, store: Store) -> None:
        store.put("g1", {"kind": "grant", "order": "1", "closed_at": "-"})
        with pytest.raises(StoreRefused):
            trail.get("g1")

    def test_an_item_that_is_no_grant_is_none(self, trail: Trail, store: Store) -> None:
        store.put("g1", {"kind": "note", "order": "1"})
        assert trail.get("g1") is None
        assert trail.page(limit=10) == Page((), None)

    def test_a_grant_under_the_name_of_such_an_item_cannot_be_recorded(
        self, trail: Trail, store: Store
    ) -> None:
        store.put(new_grant().id, {"kind": "note"}, expected=Expected("kind", None))
        with pytest.raises(StoreRefused, match="no grant"):
            trail.record(new_grant())


class TestPage:
    @pytest.fixture
    def many(self, trail: Trail) -> list[Grant]:
        """Grants 0 (oldest) to 6: bob's are 1 and 4; 2 and 4 are for the web; 5 ended; 6 is past."""
        grants = []
        for n in range(7):
            changes: dict[str, Any] = {"requested_at": NOW + timedelta(milliseconds=n)}
            if n in (1, 4):
                changes |= {"principal": BOB, "source": ELSEWHERE}
            if n in (2, 4):
                changes |= {"targets": (WEB, BASTION)}
            if n == 6:
                changes |= {"expires_at": NOW.replace(microsecond=0)}
            grants.append(recorded(trail, **changes))
        end(trail, grants[5])
        return grants

    @pytest.mark.parametrize(
        ("question", "numbers"),
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
        self, trail: Trail, many: list[Grant], question: dict[str, Any], numbers: str
    ) -> None:
        page = trail.page(limit=10, **question)
        assert [record.id for record in page.records] == [many[int(n)].id for n in numbers]
        assert page.after is None

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
    def test_pages_meet(self, trail: Trail, many: list[Grant], limit: int) -> None:
        listed: list[str] = []
        after = None
        for _ in range(8):
            page = trail.page(limit=limit, after=after)
            listed += [record.id for record in page.records]
            after = page.after
            if after is None:
                break
            assert len(page.records) == limit
        assert listed == [grant.id for grant in reversed(many)]

    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_they_meet_around_records_that_cannot_be_read(
        self, trail: Trail, store: Store, many: list[Grant], limit: int
    ) -> None:
        for n in (5, 4, 0):
            store.put(many[n].id, {"input_00": "{"})
        listed: list[str] = []
        after = None
        for _ in range(8):
            page = trail.page(limit=limit, after=after)
            listed += [record.id for record in page.records]
            after = page.after
            if after is None:
                break
        assert listed == [many[n].id for n in (6, 3, 2, 1)]

    def test_it_goes_on_though_grants_ended_meanwhile(self, trail: Trail, many: list[Grant]) -> None:
        first = trail.page(limit=2, live_after=NOW)
        assert [record.id for record in first.records] == [many[4].id, many[3].id]
        end(trail, many[3])
        second = trail.page(limit=2, live_after=NOW, after=first.after)
        assert [record.id for record in second.records] == [many[2].id, many[1].id]

    @pytest.mark.parametrize("hostile", ["' or '1' = '1", "web' or `kind` = 'grant", "%", "`", '"', "\\"])
    def test_hostile_values_match_nothing(self, trail: Trail, many: list[Grant], hostile: str) -> None:
        assert trail.page(limit=10, target=hostile) == Page((), None)
        assert trail.page(limit=10, principal_name=hostile) == Page((), None)

    def test_a_principals_live_grants_are_counted(self, trail: Trail, many: list[Grant]) -> None:
        """Mutation: functions/grants/trail.py:
        `Where("principal_id", "=", principal_id), *_live(now)` -> `*_live(now)`
        """
        assert trail.count_live("k1", NOW) == 3
        assert trail.count_live("k1", NOW - timedelta(seconds=1)) == 4
        assert trail.count_live("k2", NOW) == 2
        assert trail.count_live("k2", NOW + timedelta(days=2)) == 0
        assert trail.count_live("k9", NOW) == 0
        end(trail, many[1])
        assert trail.count_live("k2", NOW) == 1
        assert trail.count_live(ALICE.id, NOW) == 3
