"""Breaks the code in each way that a test says it would notice, and sees that it does: `make mutants`.

A test names its mutations in its docstring, with the text before and after:

    Mutation: functions/grants/values.py: `now < self.expires_at` -> `True`

Each is made in a copy of the tree, and that test is run: it must fail. The text before has to occur once in
its file, which a test of the gate checks, so that a mutation cannot outlive the code it changes.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"Mutation: (\S+):\s+`([^\n]+?)`\s+->\s+`([^\n]*?)`")
NEEDED = (
    "functions",
    "clients",
    "local",
    "tools",
    "bench",
    "statemachine",
    "template.yaml",
    "tests",
    "pyproject.toml",
    "docs",
)


@dataclass(frozen=True)
class Mutation:
    """One change of one line, and the test that says it would notice."""

    test: str
    file: str
    before: str
    after: str

    def problem(self) -> str | None:
        """Say why it cannot be made, if it cannot."""
        count = (ROOT / self.file).read_text().count(self.before)
        return (
            None if count == 1 else f"{self.file} has {self.before!r} {count} times, not once ({self.test})"
        )


def mutations() -> list[Mutation]:
    """List those of all tests, in the order of the files."""
    return [
        Mutation(test, *named)
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for test, text in _docstrings(file)
        for named in NAMED.findall(text)
    ]


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    where = file.relative_to(ROOT).as_posix()
    for node in ast.parse(file.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{where}::{node.name}" if isinstance(node, ast.ClassDef) else where
        if isinstance(node, ast.ClassDef):
            yield prefix, ast.get_docstring(node) or ""
        for one in inner:
            if isinstance(one, ast.FunctionDef):
                yield f"{prefix}::{one.name}", ast.get_docstring(one) or ""


def copy_to(tree: Path) -> None:
    for name in NEEDED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tree / name)
    (tree / "node_modules").symlink_to(ROOT / "node_modules")


def survives(mutation: Mutation, tree: Path) -> bool:
    """Make the change in a copy of the tree, run the test, and undo it. True says that nobody noticed."""
    file = tree / mutation.file
    whole = file.read_text()
    file.write_text(whole.replace(mutation.before, mutation.after))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "600"]
    try:
        done = subprocess.run(  # noqa: S603  # this Python, and a test of ours
            [sys.executable, "-m", "pytest", *options, mutation.test],
            cwd=tree,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(whole)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutation.test} could not be run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="those whose test or file has this in its name")
    only = parser.parse_args().only
    chosen = [one for one in mutations() if only in one.test or only in one.file]
    problems = [problem for one in chosen if (problem := one.problem())]
    if problems:
        raise SystemExit("\n".join(problems))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_to(Path(folder))
        for number, one in enumerate(chosen, 1):
            began = time.monotonic()
            survived = survives(one, Path(folder))
            survivors += survived
            took = f"{time.monotonic() - began:5.1f} s"
            said = "SURVIVED" if survived else "noticed "
            print(
                f"{number:3}/{len(chosen)} {said} {took}  {one.file}: `{one.before}` -> `{one.after}`",
                flush=True,
            )
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    if survivors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
