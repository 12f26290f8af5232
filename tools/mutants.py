"""Breaks the code in each way that a test says it would notice, and sees that it does: `make mutants`.

The docstring of a test names its mutations, with the text before and after:

    Mutation: functions/grants/values.py: `now < self.expires_at` -> `True`

Each mutation is made in a copy of the tree, in which that test is run: it must fail. The text before must
occur exactly once in its file, which a test of the gate checks, so that mutations follow changes of the code.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import ROOT

NAMED = re.compile(r"Mutation: (\S+):\s+`([^\n]+?)`\s+->\s+`([^\n]*?)`")
AT_ONCE = os.cpu_count() or 1
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
    """A change of a line, and the test that must fail with it."""

    test: str
    file: str
    before: str
    after: str

    def problem(self) -> str | None:
        """Say why it cannot be made; None if it can."""
        count = (ROOT / self.file).read_text().count(self.before)
        return (
            None if count == 1 else f"{self.file} has {self.before!r} {count} times, not once ({self.test})"
        )


def mutations() -> list[Mutation]:
    """List the mutations of all tests, sorted by test file."""
    return [
        Mutation(test, *parts)
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for test, text in _docstrings(file)
        for parts in NAMED.findall(text)
    ]


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    where = file.relative_to(ROOT).as_posix()
    for node in ast.parse(file.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{where}::{node.name}" if isinstance(node, ast.ClassDef) else where
        if isinstance(node, ast.ClassDef):
            yield prefix, ast.get_docstring(node) or ""
        for function in inner:
            if isinstance(function, ast.FunctionDef):
                yield f"{prefix}::{function.name}", ast.get_docstring(function) or ""


def copy_to(tree: Path) -> None:
    """Copy the files that the tests need to a new tree."""
    for name in NEEDED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tree / name)
    (tree / "node_modules").symlink_to(ROOT / "node_modules")


def survives(mutation: Mutation, tree: Path) -> bool:
    """Make the change in a copy of the tree, run the test, and undo it. True if the test passed.

    Raises SystemExit if the test could not be run.
    """
    file = tree / mutation.file
    original = file.read_text()
    file.write_text(original.replace(mutation.before, mutation.after))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "600"]
    try:
        run = subprocess.run(  # noqa: S603  # this Python, and a test of ours
            [sys.executable, "-m", "pytest", *options, mutation.test],
            cwd=tree,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(original)
    if run.returncode not in (0, 1):
        raise SystemExit(f"{mutation.test} could not be run:\n{run.stdout}{run.stderr}")
    return run.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="those whose test or file has this in its name")
    parser.add_argument("--from", dest="first", type=int, default=1, help="the number to start at")
    options = parser.parse_args()
    chosen = [
        mutation for mutation in mutations() if options.only in mutation.test or options.only in mutation.file
    ]
    problems = [problem for mutation in chosen if (problem := mutation.problem())]
    if problems:
        raise SystemExit("\n".join(problems))
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def check(mutation: Mutation) -> tuple[bool, float]:
        tree, began = trees.get(), time.monotonic()
        try:
            return survives(mutation, tree), time.monotonic() - began
        finally:
            trees.put(tree)

    survivors = 0
    selected = chosen[options.first - 1 :]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as threads:
        for number in range(AT_ONCE):
            tree = Path(folder, str(number))
            tree.mkdir()
            copy_to(tree)
            trees.put(tree)
        results = zip(selected, threads.map(check, selected), strict=True)
        for number, (mutation, (survived, took)) in enumerate(results, options.first):
            survivors += survived
            result = "SURVIVED" if survived else "noticed "
            change = f"{mutation.file}: `{mutation.before}` -> `{mutation.after}`"
            print(f"{number:3}/{len(chosen)} {result} {took:5.1f} s  {change}", flush=True)
    print(f"{len(selected) - survivors} passed, {survivors} failed")
    if survivors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
