"""The README is what a stranger has: its transcripts are run again, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.player import play
from tests.e2e.conftest import start, stop

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.timeout(180)
def test_every_transcript_of_the_readme_is_what_the_commands_answer(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    stack = start("moto")
    try:
        played = play(page, stack, tmp_path)
    finally:
        stop(stack)
    assert played == page, "run python -m tests.docs.player README.md and look"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_make_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", readme, re.MULTILINE))
    assert named <= targets
