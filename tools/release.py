"""What a release says of itself: its version, in one place, and its notes, in the changelog.

    python -m tools.release version         the version that clients/knock/__init__.py has
    python -m tools.release notes v1.2.3    the changelog's section of that version, for the release's page

A tag that is not the version, a version without notes, or one without a snapshot of what it deploys
(`make release-snapshot`), is an error: nothing is released then.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tools import ROOT

VERSION = re.compile(r"^__version__ = \"(\d+\.\d+\.\d+)\"$", re.MULTILINE)
HEADING = re.compile(r"^## ([^\s,]+)", re.MULTILINE)


class NotReleasable(Exception):
    """The tag, the version and the changelog do not agree; the message says how they differ."""


def version(root: Path = ROOT) -> str:
    """Read the version of the clients, which is the project's version. Raises NotReleasable."""
    match = VERSION.search((root / "clients" / "knock" / "__init__.py").read_text())
    if not match:
        raise NotReleasable('clients/knock/__init__.py has no line like __version__ = "1.2.3"')
    return match[1]


def snapshot_of(release: str, root: Path = ROOT) -> Path:
    """Give the file that holds what a release deploys."""
    return root / "tests" / "fixtures" / "releases" / f"{release}.json"


def notes(tag: str, root: Path = ROOT) -> str:
    """Give the changelog's section of a tag like `v1.2.3`. Raises NotReleasable."""
    current = version(root)
    if tag != f"v{current}":
        raise NotReleasable(
            f"the tag is {tag}, and the version is {current}: tag v{current}, or change the version"
        )
    if not snapshot_of(current, root).exists():
        raise NotReleasable(
            f"{current} has no snapshot, which later updates are held against: make release-snapshot"
        )
    changelog = (root / "CHANGELOG.md").read_text()
    headings = list(HEADING.finditer(changelog))
    for heading, after in zip(headings, [*headings[1:], None], strict=True):
        if heading[1] == current:
            start = changelog.index("\n", heading.end())
            section = changelog[start : after.start() if after else None].strip()
            if section:
                return section + "\n"
    raise NotReleasable(
        f'CHANGELOG.md says nothing of {current}: give it a heading like "## {current}, 2026-12-01"'
    )


def main(arguments: list[str]) -> int:
    """Run the command `version` or `notes`. Gives the exit code."""
    try:
        match arguments:
            case ["version"]:
                print(version())
            case ["notes", tag]:
                print(notes(tag), end="")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except NotReleasable as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
