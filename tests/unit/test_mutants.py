"""The mutations that tests name can be made: `make mutants` makes them, and sees that the tests notice."""

from __future__ import annotations

from tools.mutants import mutations


class TestMutations:
    def test_each_can_be_made_in_one_place(self) -> None:
        assert [problem for mutation in mutations() if (problem := mutation.problem())] == []

    def test_there_are_enough_of_them_in_every_part_that_holds_an_invariant(self) -> None:
        all_mutations = mutations()
        assert len(all_mutations) >= 20
        parts = {mutation.file.rpartition("/")[2] for mutation in all_mutations}
        core = {"policy.py", "values.py", "ledger.py", "opening.py", "closing.py", "timing.py"}
        shell = {"trail.py", "ledgers.py", "simpledb.py", "ingress.py", "wiring.py", "revoke.py", "api.py"}
        assert parts >= core | shell | {"grant.asl.json", "close.asl.json"}
