"""The pages in docs/: a page a task, each in its index and with a transcript, and links that lead somewhere.

Their transcripts are run, every page that an index lists, in its order: the users' by
tests/clients/test_docs.py, the operators' by tests/clients/test_admin_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.index import OPERATORS, USERS, commands, tasks

PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md")
    ),
    ROOT / "tests" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[tuple[Path, str]]:
    """Give the files of the project that a page links to, each with its anchor or nothing."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    return [((page.parent / file).resolve() if file else page, anchor) for file, _, anchor in found]


def anchors(page: Path) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{named(page)}: {file}"
        assert not anchor or anchor in anchors(file), (
            f"{named(page)}: {named(file)} has no heading for #{anchor}"
        )


@pytest.mark.parametrize("index", [USERS, OPERATORS], ids=named)
def test_an_index_lists_every_page_of_its_folder_once(index: Path) -> None:
    listed = tasks(index)
    assert len(listed) == len(set(listed))
    assert {*index.with_suffix("").glob("*.md")} <= {*listed}


@pytest.mark.parametrize("page", [*tasks(USERS), *tasks(OPERATORS)], ids=named)
def test_every_task_is_shown_by_a_transcript_and_leads_back_to_its_index(page: Path) -> None:
    assert commands(page.read_text()), "a task is shown, not only told"
    assert {USERS, OPERATORS} & {file for file, _ in links(page)}


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        left += [file for file, _ in links(page)]
    assert {*PAGES} <= seen
