"""The pages an index lists: docs/knock.md for users and docs/operators.md for operators, a page a task."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT

USERS = ROOT / "docs" / "knock.md"
OPERATORS = ROOT / "docs" / "operators.md"


def tasks(index: Path) -> list[Path]:
    """Give the pages that an index's table lists, in its order."""
    links = re.findall(r"^\|.*\]\(([^)#]+\.md)\).*\|$", index.read_text(), re.MULTILINE)
    return [(index.parent / link).resolve() for link in links]


def commands(page: str) -> list[str]:
    """Give the commands of a page's transcripts."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
