"""The mutations that tests name can be made: `make mutants` makes them, and sees that the tests notice."""

from __future__ import annotations

from tools.mutants import mutations


class TestMutations:
    def test_each_can_be_made_in_one_place(self) -> None:
        assert [problem for one in mutations() if (problem := one.problem())] == []

    def test_there_are_enough_of_them_in_every_part_that_holds_an_invariant(self) -> None:
        named = mutations()
        assert len(named) >= 20
        parts = {one.file.rpartition("/")[2] for one in named}
        core = {"policy.py", "values.py", "ledger.py", "opening.py", "closing.py", "timing.py"}
        shell = {"trail.py", "ledgers.py", "simpledb.py", "ingress.py", "wiring.py", "revoke.py", "api.py"}
        assert parts >= core | shell | {"grant.asl.json", "close.asl.json"}
