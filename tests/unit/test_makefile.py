"""The Makefile's targets exist, say what they do, and are the only ones that pages and messages name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
HELP = dict(re.findall(r"^([a-z0-9-]+):.*?## (\S.*)$", MAKEFILE, re.MULTILINE))
FOLDERS = (
    ".github",
    ".ci",
    "bench",
    "clients",
    "docs",
    "functions",
    "local",
    "statemachine",
    "tests",
    "tools",
)
KINDS = {".md", ".py", ".yaml", ".yml", ".toml", ".j2", ".sh", ""}

# A command: in backticks, alone on its line, or as what is to be run.
NAMED = re.compile(
    r"`make ([a-z0-9-]+)(?![\w/])|^\s*(?:\$ |run: )?make ([a-z0-9-]+)(?: [A-Z]+=\S.*)?(?:\s+#.*)?$",
    re.MULTILINE,
)
MODULE = re.compile(r"python3? -m ((?:tools|local|bench|tests)[\w.]*)")


def texts() -> list[Path]:
    """List the files that may name a target, but for this one."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in {".md", ".yaml", ".toml"}]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in KINDS]
    return [path for path in files if "__pycache__" not in path.parts and path != Path(__file__)]


def test_every_target_that_is_declared_exists() -> None:
    declared = set(" ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)).split())
    assert {name for name in declared if not name.startswith(".")} == TARGETS


def test_every_target_says_what_it_does() -> None:
    assert HELP.keys() == TARGETS


@pytest.mark.parametrize("pattern", [NAMED, MODULE], ids=["make", "python"])
def test_every_command_that_a_text_advises_exists(pattern: re.Pattern[str]) -> None:
    missing: dict[str, set[str]] = {}
    for path in texts():
        for match in pattern.finditer(path.read_text(errors="replace")):
            name = next(filter(None, match.groups()))
            if pattern is MODULE:
                place = ROOT / name.rstrip(".").replace(".", "/")
                exists = place.with_suffix(".py").is_file() or place.is_dir()
            else:
                exists = name in TARGETS
            if not exists:
                missing.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert missing == {}
