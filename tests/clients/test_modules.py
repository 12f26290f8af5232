"""How the modules of `knock` depend on each other: without cycles, so that each can be read by itself."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import sys
from graphlib import TopologicalSorter

import pytest

from tests.clients.conftest import CLIENTS

FOLDER = CLIENTS / "knock"


def imports(module: str) -> set[str]:
    """Give the modules of the package that a module imports anywhere, for types and in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return {name for name in names if (FOLDER / f"{name}.py").exists()}


def test_imports_form_no_cycle() -> None:
    names = [path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")]
    order = list(TopologicalSorter({name: imports(name) for name in names}).static_order())
    assert order.index("values") < order.index("errors") < order.index("transport") < order.index("client")


@pytest.mark.parametrize("name", ["run", "watch", "sshconfig", "state", "streams", "network"])
def test_a_module_loads_where_unix_is_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Without these, which Windows lacks; no test runs on Windows."""
    for missing in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        monkeypatch.delattr(signal, missing)
    for module in ("fcntl", "pwd", "termios"):
        monkeypatch.setitem(sys.modules, module, None)
    for missing in ("O_NOCTTY", "O_NONBLOCK", "geteuid", "tcgetpgrp", "getpgrp"):
        monkeypatch.delattr(os, missing)
    spec = importlib.util.spec_from_file_location(f"knock.{name}_elsewhere", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_values_import_nothing_of_ours() -> None:
    assert imports("values") == set()


def test_every_module_says_what_it_is_for_and_is_no_longer_than_a_few_screens() -> None:
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), path.name
        assert len(text.splitlines()) <= 520, path.name
