"""Generated attacks with the rights of one function, with one permission alone, or with an operator's.

They open no rule that live tags and limits do not allow, touch no foreign rule, remove a live grant's rule
only by ending the grant on record, leave no rule open past its end, and no grant that cannot be ended.
KNOCK_ADVERSARY says how many sequences of moves are tried with each right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grants.values import Record
from tests.adversary.moves import RIGHTS, Move
from tests.adversary.world import world

EXAMPLES = int(os.environ.get("KNOCK_ADVERSARY", "6"))
MOVES = 10
WAYS = ["delete", "stop", "end", "guard"]


@pytest.mark.parametrize("rights", RIGHTS)
def test_nothing_opens_or_closes_beside_the_record(rights: str) -> None:
    moves = st.lists(RIGHTS[rights], min_size=MOVES, max_size=MOVES)

    @settings(
        max_examples=EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(moves, st.sampled_from(WAYS))
    def attack(moves: list[Move], way: str) -> None:
        with world() as attacked:
            for move in moves:
                move.do(attacked)
                attacked.settle()
                attacked.check()
                if rights == "to start executions":
                    _check_that_only_renewals_end(attacked.records(), attacked.ids)
            attacked.end_all(way)

    attack()


def _check_that_only_renewals_end(records: Mapping[str, Record], ids: Mapping[str, str]) -> None:
    for name in ("alice", "bob", "elsewhere"):
        assert records[ids[name]].state in ("live", "superseded", "expired")
