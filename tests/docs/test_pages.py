"""The pages in docs/: each is in an index and has a transcript, and every link leads to a file and a heading.

The transcripts of the pages that an index lists are run in its order: the users' by
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


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[tuple[Path, str]]:
    """List the files of the project that a page links to, each with its anchor or ''."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    return [((page.parent / file).resolve() if file else page, anchor) for file, _, anchor in targets]


def anchors(page: Path) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{relative(page)}: {file}"
        assert not anchor or anchor in anchors(file), (
            f"{relative(page)}: {relative(file)} has no heading for #{anchor}"
        )


@pytest.mark.parametrize("index", [USERS, OPERATORS], ids=relative)
def test_an_index_lists_every_page_of_its_folder_once(index: Path) -> None:
    listed = tasks(index)
    assert len(listed) == len(set(listed))
    assert {*index.with_suffix("").glob("*.md")} <= {*listed}


@pytest.mark.parametrize("page", [*tasks(USERS), *tasks(OPERATORS)], ids=relative)
def test_every_page_of_a_task_has_a_transcript_and_a_link_to_its_index(page: Path) -> None:
    assert commands(page.read_text()), "the page has no transcript"
    assert {USERS, OPERATORS} & {file for file, _ in links(page)}


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        queue += [file for file, _ in links(page)]
    assert {*PAGES} <= seen
