"""docs/protocol.md names a scenario for each crash, and the gate explores each with a fault at any call."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.proofs.test_interleavings import WITH_A_FAULT


def test_every_crash_on_the_page_has_its_scenario_in_the_gate() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\|.*\| `([a-z_]+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 12
    assert set(rows) <= {scenario.__name__ for scenario in WITH_A_FAULT}
