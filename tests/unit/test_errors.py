"""The tree of errors, as it is drawn in `errors`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from grants import errors
from grants.errors import KnockError

FUNCTIONS = Path(errors.__file__).parent.parent
LINE = re.compile(r"^    ((?:[│ ] {3})*(?:[├└]── )?)([A-Z]\w+) +(\d{3})  \S")


def drawn() -> Iterator[tuple[str, str, int]]:
    """Read the tree in the docstring: (class, its parent, its HTTP status)."""
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.match(line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            yield match[2], path[depth - 1] if depth else "Exception", int(match[3])


def defined(root: type[KnockError] = KnockError) -> Iterator[tuple[str, str, int]]:
    """Walk through the classes of `errors`: (class, its parent, its HTTP status)."""
    yield root.__name__, root.__mro__[1].__name__, root.status
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from defined(child)


def raised_elsewhere() -> set[str]:
    """List the KnockErrors that other modules define, without loading them."""
    names = {name for name, _, _ in defined()}
    return {
        node.name
        for file in FUNCTIONS.rglob("*.py")
        if file != Path(errors.__file__)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and names & {ast.unparse(base) for base in node.bases}
    }


class TestTree:
    def test_the_drawing_has_every_error_under_its_parent_with_its_status(self) -> None:
        """
        Mutation: functions/grants/errors.py: `class InvalidTag(NotAllowed):` -> `class InvalidTag(Refusal):`
        """
        assert set(drawn()) == set(defined())

    def test_it_has_each_once(self) -> None:
        names = [name for name, _, _ in drawn()]
        assert len(names) == len(set(names)) >= 20

    def test_errors_of_other_modules_are_named_beside_it(self) -> None:
        beside = (errors.__doc__ or "").partition("\nBeside these,")[2]
        assert set(re.findall(r"\b[A-Z]\w+", beside)) >= raised_elsewhere() >= {"Conflict"}
