"""The trees of errors, as the docstrings of the three modules `errors` draw them."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import knock.errors
import knock_admin.errors
from grants import errors
from tests.conftest import ROOT

# Each module with a tree, and the folder in which its errors are raised.
TREES = {
    errors: ROOT / "functions",
    knock.errors: ROOT / "clients" / "knock",
    knock_admin.errors: ROOT / "clients" / "knock_admin",
}
LINE = re.compile(r"^    ((?:[│ ] {3})*(?:[├└]── )?)([A-Z]\w+)(?: +(\d{3}) |  |$)")
BUILTIN = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)
}
every_tree = pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)


def drawn(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Read the tree in a module's docstring: (class, its parent)."""
    path: list[str] = []
    for line in (module.__doc__ or "").splitlines():
        if match := LINE.match(line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            yield match[2], path[depth - 1] if depth else "Exception"


def defined(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Walk through the errors that a module defines: (class, its parent)."""
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.__name__:
            yield name, value.__bases__[0].__name__


def raised_elsewhere(module: ModuleType) -> set[str]:
    """List the errors that other modules define for their callers, without loading these modules."""
    bases = BUILTIN | {name for name, _ in defined(module)}
    return {
        node.name
        for file in TREES[module].rglob("*.py")
        if file != Path(str(module.__file__))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and bases & {ast.unparse(base) for base in node.bases}
        if not node.name.startswith("_")
    }


class TestTree:
    @every_tree
    def test_the_drawing_has_every_error_once_and_under_its_parent(self, module: ModuleType) -> None:
        """
        Mutation: functions/grants/errors.py: `class InvalidTag(NotAllowed):` -> `class InvalidTag(Refusal):`
        """
        tree = list(drawn(module))
        assert sorted(tree) == sorted(defined(module))
        assert len(tree) > 3

    @every_tree
    def test_errors_of_other_modules_are_named_beside_it(self, module: ModuleType) -> None:
        beside = (module.__doc__ or "").partition("\nBeside these,")[2]
        assert set(re.findall(r"\b[A-Z]\w+", beside)) >= raised_elsewhere(module)

    def test_other_modules_have_some(self) -> None:
        assert {"Conflict", "BadSetting"} <= raised_elsewhere(errors)
        assert "OutputGone" in raised_elsewhere(knock.errors)

    def test_each_of_the_functions_stands_with_its_http_status(self) -> None:
        lines = filter(None, map(LINE.match, (errors.__doc__ or "").splitlines()))
        statuses = {line[2]: int(line[3]) for line in lines}
        assert statuses == {name: vars(errors)[name].status for name, _ in defined(errors)}
