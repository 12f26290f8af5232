"""Ledgers, over every store: an item a source, changed by compare-and-set; and refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import StoreRefused
from grants.ledger import LARGEST, Ledger, Own, Snapshot, claim, encode, name_attempt, record_results, release
from grants.ledgers import Ledgers
from grants.refusals import Refusals
from grants.store import Store
from grants.trail import Trail
from grants.values import Ports, RuleKey, Unreadable
from tests.adapters.parts import ALICE, ELSEWHERE, HERE, NOW, Stores, simpledbs_own

EMPTY = Ledger(HERE)
NEW = Snapshot(EMPTY, None)


@pytest.fixture
def ledgers(store: Store) -> Ledgers:
    return Ledgers(store)


def ledger(rules: int = 1, grant: str = "g1", source: str = HERE) -> Ledger:
    keys = [RuleKey(f"sg-{n:017}", Ports(22, 22, "tcp"), source) for n in range(rules)]
    end = NOW.replace(microsecond=0) + timedelta(days=1)
    attempt = name_attempt(NOW, "00000001")
    claimed = claim(Ledger(source), grant, end, keys, attempt, NOW)
    return record_results(
        claimed, grant, attempt, {key: Own(f"sgr-{n:017}") for n, key in enumerate(keys)}, NOW
    )


def write(ledgers: Ledgers, after: Ledger, before: Snapshot | None = None) -> Snapshot:
    snapshot = ledgers.write(before or Snapshot(Ledger(after.source), None), after)
    assert snapshot
    return snapshot


class TestWrite:
    def test_a_source_without_an_item_has_an_empty_ledger(self, ledgers: Ledgers) -> None:
        assert ledgers.read(HERE) == NEW

    @pytest.mark.parametrize("rules", [1, 14, 128])
    def test_it_is_read_as_it_was_written(self, ledgers: Ledgers, rules: int) -> None:
        snapshot = write(ledgers, ledger(rules))
        assert snapshot.token
        assert ledgers.read(HERE) == snapshot == Snapshot(ledger(rules), snapshot.token)
        assert ledgers.read(ELSEWHERE) == Snapshot(Ledger(ELSEWHERE), None)

    def test_every_write_has_a_token_of_its_own(self, ledgers: Ledgers) -> None:
        tokens = []
        snapshot = NEW
        for n in range(5):
            snapshot = write(ledgers, ledger(grant=f"g{n % 2}"), snapshot)
            tokens.append(snapshot.token)
        assert len(set(tokens)) == 5

    def test_a_write_with_an_old_token_changes_nothing(self, ledgers: Ledgers) -> None:
        """Mutation: functions/grants/ledgers.py:
        `self._store.put(after.source, values, expected=expected)` -> `self._store.put(after.source, values)`
        """
        first = write(ledgers, ledger())
        second = write(ledgers, ledger(2), first)
        assert ledgers.write(first, ledger(3)) is None
        assert ledgers.write(NEW, ledger(3)) is None
        assert ledgers.write(first, EMPTY) is None
        assert ledgers.read(HERE) == second

    def test_one_text_replaces_another_whatever_its_length(self, ledgers: Ledgers) -> None:
        """Parts of a longer one are left in the item, and ignored.

        Mutation: functions/grants/ledgers.py: `for number in range(int(count))` -> `for number in range(9)`
        """
        snapshot = NEW
        for rules in (128, 1, 60, 2, 128, 1):
            snapshot = write(ledgers, ledger(rules), snapshot)
            assert ledgers.read(HERE).ledger == ledger(rules)

    def test_the_longest_ledger_fits_the_item_and_a_longer_one_is_refused(self, ledgers: Ledgers) -> None:
        size, fits = 0, EMPTY
        while size <= LARGEST - 60:
            number = len(fits.tombstones)
            names = [f"sgr-{n:017x}" for n in range(number, number + max(1, (LARGEST - size) // 60))]
            fits = replace(fits, tombstones={**fits.tombstones, **dict.fromkeys(names, NOW)})
            size = len(encode(fits))
        snapshot = write(ledgers, fits)
        assert ledgers.read(HERE).ledger == fits
        too_long = replace(fits, released={f"g{n:080}": NOW for n in range(3)})
        with pytest.raises(StoreRefused, match="longer than an item"):
            ledgers.write(snapshot, too_long)
        assert ledgers.read(HERE) == snapshot
        assert write(ledgers, ledger(), snapshot)


class TestLostAnswers:
    def test_a_client_that_tries_again_and_meets_its_own_token_has_written(
        self, stores: Stores, ledgers: Ledgers
    ) -> None:
        """Mutation: functions/grants/ledgers.py:
        `if self._store.get(after.source).get("token") != (token,):` -> `if True:`
        """
        stores.lose_answer()
        first = write(ledgers, ledger())
        assert ledgers.read(HERE) == first
        stores.lose_answer()
        second = write(ledgers, ledger(2), first)
        assert ledgers.read(HERE) == second

    def test_a_client_that_meets_another_token_has_not(self, store: Store) -> None:
        """Mutation: functions/grants/ledgers.py:
        `if self._store.get(after.source).get("token") != (token,):` -> `if False:`
        """
        first = write(Ledgers(store, lambda: "a"), ledger())
        assert Ledgers(store, lambda: "b").write(NEW, ledger(2)) is None
        assert Ledgers(store).read(HERE) == first

    def test_a_delete_whose_answer_was_lost_has_deleted(self, stores: Stores, ledgers: Ledgers) -> None:
        snapshot = write(ledgers, ledger())
        stores.lose_answer()
        assert ledgers.write(snapshot, EMPTY) == NEW
        assert ledgers.read(HERE) == NEW


class TestDelete:
    def test_the_item_of_an_empty_ledger_is_deleted(self, ledgers: Ledgers, store: Store) -> None:
        snapshot = write(ledgers, ledger(128))
        assert ledgers.write(snapshot, EMPTY) == NEW
        assert dict(store.get(HERE)) == {}
        assert ledgers.read(HERE) == NEW
        assert list(ledgers.all()) == []

    def test_an_empty_ledger_without_an_item_is_not_written(self, ledgers: Ledgers, store: Store) -> None:
        assert ledgers.write(NEW, EMPTY) == NEW
        assert dict(store.get(HERE)) == {}

    def test_an_item_that_was_written_meanwhile_is_not_deleted(self, ledgers: Ledgers) -> None:
        """Mutation: functions/grants/ledgers.py:
        `if self._store.get(after.source):` -> `if False:`
        """
        first = write(ledgers, ledger())
        second = write(ledgers, ledger(2), first)
        assert ledgers.write(first, EMPTY) is None
        assert ledgers.read(HERE) == second

    def test_an_item_written_anew_after_its_deletion_has_another_token(self, ledgers: Ledgers) -> None:
        old = write(ledgers, ledger())
        ledgers.write(old, EMPTY)
        new = write(ledgers, ledger())
        assert new.token != old.token
        assert ledgers.write(old, ledger(2)) is None
        assert ledgers.write(old, EMPTY) is None
        assert ledgers.read(HERE) == new

    def test_a_ledger_with_a_released_grant_is_not_empty(self, ledgers: Ledgers) -> None:
        snapshot = write(ledgers, ledger())
        after = release(ledger(), "g1", NOW)
        assert after
        assert write(ledgers, after, snapshot).token


class TestUnreadable:
    @pytest.mark.parametrize(
        "changes",
        [
            {"part_000": "{"},
            {"part_000": "[]"},
            {"part_000": "é"},
            {"parts": "2"},
            {"parts": "many"},
            {"parts": "-1"},
            {"parts": "0"},
            {"part_000": '{"keys":[],"claims":{},"rules":{"9":{}},"tombstones":{},"released":{}}'},
        ],
    )
    def test_a_ledger_changed_by_hand_is_an_error_and_named_in_a_list(
        self, ledgers: Ledgers, store: Store, changes: dict[str, str]
    ) -> None:
        readable = write(ledgers, ledger(source=ELSEWHERE))
        write(ledgers, ledger())
        store.put(HERE, changes)
        with pytest.raises(StoreRefused, match=f"{HERE} cannot be read"):
            ledgers.read(HERE)
        items = list(ledgers.all())
        assert readable in items
        (unreadable,) = [item for item in items if isinstance(item, Unreadable)]
        assert unreadable.name == HERE
        assert "cannot be read" in unreadable.why

    @simpledbs_own
    @pytest.mark.parametrize("sets", [[("token", "another")], [("parts", "9")], [("part_000", "x")]])
    def test_so_is_an_item_with_two_values_of_an_attribute(
        self, ledgers: Ledgers, store: Store, sets: list[tuple[str, str]]
    ) -> None:
        write(ledgers, ledger())
        store.put(HERE, {}, sets)
        with pytest.raises(StoreRefused):
            ledgers.read(HERE)

    def test_so_is_an_item_that_is_no_ledger(self, ledgers: Ledgers, store: Store) -> None:
        store.put(HERE, {"kind": "note"})
        with pytest.raises(StoreRefused):
            ledgers.read(HERE)


class TestAll:
    def test_the_ledger_of_every_source_is_listed(self, ledgers: Ledgers) -> None:
        snapshots = [write(ledgers, ledger(n, source=f"203.0.113.{n}/32")) for n in range(1, 30)]
        assert {
            (snapshot.ledger.source, snapshot.token)
            for snapshot in ledgers.all()
            if isinstance(snapshot, Snapshot)
        } == {(snapshot.ledger.source, snapshot.token) for snapshot in snapshots}
        assert all(snapshot in snapshots for snapshot in ledgers.all())


class TestRefusals:
    def record(self, refusals: Refusals, **changes: Any) -> None:
        refusals.record(
            **{
                "refusal_id": "r1",
                "principal": ALICE,
                "source": HERE,
                "at": NOW,
                "call": "POST /knock",
                "right": "knock:targets",
                "detail": "the key may not open web",
                **changes,
            }
        )

    def test_a_refusal_is_recorded_once(self, store: Store) -> None:
        for _ in range(2):
            self.record(Refusals(store))
        assert {name: set(texts) for name, texts in store.get("r1").items()} == {
            "kind": {"refusal"},
            "principal_id": {"k1"},
            "principal_name": {"alice"},
            "source": {HERE},
            "requested_at": {"2026-11-23T21:17:19.123Z"},
            "order": {"2026-11-23T21:17:19.123Z r1"},
            "call": {"POST /knock"},
            "right": {"knock:targets"},
            "detail": {"the key may not open web"},
        }

    def test_it_is_no_grant(self, store: Store) -> None:
        self.record(Refusals(store))
        assert Trail(store).get("r1") is None
        assert Trail(store).page(limit=10).records == ()

    def test_a_refusal_for_no_right_says_so(self, store: Store) -> None:
        self.record(Refusals(store), right="")
        assert store.get("r1")["right"] == ("-",)

    @pytest.mark.parametrize("letter", ["x", "é", "😀", "\n"])
    def test_it_is_recorded_with_any_name_and_detail(self, store: Store, letter: str) -> None:
        """Mutation: functions/grants/refusals.py: `cut(detail, 1000)` -> `detail`"""
        principal = replace(ALICE, name=letter * 1000)
        self.record(Refusals(store), principal=principal, detail=letter * 5000)
        assert len(store.get("r1")["detail"][0].encode()) <= 1000
