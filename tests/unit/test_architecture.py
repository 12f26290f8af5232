"""docs/architecture.md is true: modules, imports, payloads, errors, attributes. So are README's limits."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from grants import errors
from grants.closing import CloseResult
from grants.errors import KnockError, Unavailable
from grants.ledger import MAX_CLAIMS, MAX_RULES, Ledger, encode
from grants.refusals import Refusals
from grants.trail import Trail
from grants.values import MOST_RULES, Grant, Opened, Ports, Principal, RuleKey, Target, parse_duration
from tests.conftest import ROOT

FUNCTIONS = ROOT / "functions"
CORE = {"errors", "ledger", "policy", "timing", "values"}
OPERATIONS = {"closing", "drift", "opening", "operations"}
ADAPTERS = {
    *("dynamodb", "executions", "ingress", "ledgers", "models", "refusals", "rights", "settings"),
    *("simpledb", "store", "trail", "trust", "wiring"),
}

NOW = datetime(2026, 11, 23, 21, 17, 19, tzinfo=timezone.utc)
SSH = Ports.parse("22/tcp")


def section(title: str) -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def listed(text: str) -> set[str]:
    """Read the names in the first column of a section's tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@cache
def imports(module: str) -> frozenset[str]:
    """List what a module of `grants` imports: `.name` for one of the package, else the library's name."""
    modules = set()
    for node in ast.walk(ast.parse((FUNCTIONS / "grants" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            modules |= {f".{node.module}"} if node.module else {f".{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {name.name.partition(".")[0] for name in node.names}
    return frozenset(modules)


class TestPieces:
    def test_every_function_and_folder_has_a_row(self) -> None:
        rows = {name.rstrip("/") for name in listed(section("The pieces")) if name.startswith("functions/")}
        pieces = {f"functions/{path.name}" for path in FUNCTIONS.iterdir() if path.name != "__pycache__"}
        assert rows == pieces - {"functions/console.html"}

    def test_every_module_of_the_package_has_a_row(self) -> None:
        rows = {name for name in listed(section("The pieces")) if (FUNCTIONS / "grants" / name).is_file()}
        modules = {path.name for path in (FUNCTIONS / "grants").glob("*.py")}
        assert rows == modules - {"__init__.py"}

    def test_every_row_names_a_file_or_folder_that_exists(self) -> None:
        folders = (ROOT, FUNCTIONS / "grants", ROOT / "local")
        rows = listed(section("The pieces"))
        assert {row for row in rows if not any((folder / row).exists() for folder in folders)} == set()


class TestImports:
    def test_the_core_imports_itself_alone(self) -> None:
        """Mutation: functions/grants/timing.py: `from __future__ import annotations` -> `import os`"""
        for module in CORE:
            own = {name for name in imports(module) if name.startswith(".")}
            assert own <= {f".{name}" for name in CORE}, module
            assert not imports(module) & {"boto3", "botocore", "os", "time"}, module

    def test_it_reads_no_clock(self) -> None:
        for module in CORE:
            text = (FUNCTIONS / "grants" / f"{module}.py").read_text()
            assert not re.search(r"\b(now|utcnow|today)\(", text), module

    def test_the_operations_import_no_adapter(self) -> None:
        forbidden = {f".{name}" for name in ADAPTERS} | {"boto3", "botocore"}
        for module in OPERATIONS:
            assert not imports(module) & forbidden, module

    def test_no_module_of_the_package_imports_the_wiring(self) -> None:
        modules = {path.stem for path in (FUNCTIONS / "grants").glob("*.py")} - {"wiring"}
        assert {module for module in modules if ".wiring" in imports(module)} == set()


class Columns:
    """A store that remembers the names of attributes it was given."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def put(
        self, name: str, values: Mapping[str, str], sets: Iterable[tuple[str, str]] = (), **_: Any
    ) -> None:
        self.names |= {*values, *(attribute for attribute, _ in sets)}


class TestItems:
    def test_the_page_names_every_attribute_of_the_trail(self) -> None:
        store = Columns()
        trail = Trail(store)  # type: ignore[arg-type]  # put alone is called
        target = Target("bastion", (SSH,), ("sg-0a",))
        end = NOW + timedelta(hours=1)
        principal = Principal("a1", "alice")
        grant = Grant.decide(principal, "203.0.113.7/32", (target,), NOW, end, reason="on call", renews="old")
        trail.record(grant)
        trail.authorize(grant.id, NOW, [Opened(RuleKey("sg-0a", SSH, grant.source), "sgr-1", "bastion")])
        trail.end(grant.id, "revoked", NOW, "alice", "done")
        trail.close(grant.id, NOW, "request", [], [])
        store.names.add("unopened")  # of a record that begins as ended
        inputs = {name for name in store.names if name.startswith("input_")}
        rows = listed(section("The trail"))
        assert {name for name in rows if not name.startswith("input_")} == store.names - inputs
        assert {"input_00", "input_01"} <= rows

    def test_it_names_every_part_of_a_ledger(self) -> None:
        parts = json.loads(encode(Ledger("203.0.113.7/32"))).keys()
        assert {part for part in parts if f"`{part}`" not in section("The ledger")} == set()

    def test_it_names_every_attribute_of_a_refusal(self) -> None:
        store = Columns()
        refusals = Refusals(store)  # type: ignore[arg-type]  # put alone is called
        refusals.record("id", Principal("a1", "alice"), "203.0.113.7/32", NOW, "GET /grants", "", "no")
        attributes = set(re.findall(r"`(\w+)`", section("The refusals")))
        assert attributes == store.names | {"refusal"}


class TestTasks:
    def test_what_closing_answers_with_is_on_the_page(self) -> None:
        answer = re.search(r"`\{([^`]*)\}` at `\$\.revocation`", section("The payload of a task"))
        assert answer
        assert re.findall(r'"(\w+)"', answer[1]) == list(CloseResult("id", "expired").as_json())

    def test_its_errors_are_all_but_those_of_requests(self) -> None:
        """
        Mutation: functions/grants/errors.py:
            `class RuleUnsettled(Unavailable):` -> `class RuleUnsettled(Refusal):`
        """
        of_requests = {"InvalidKnock", "NotAllowed", "InvalidTag", "WrongFamily", "TooManyGrants"}
        of_requests |= {"RightsUnavailable", "RightsThrottled"}
        text = section("The payload of a task").partition("A task's errors")[2]
        permanent, transient = (set(re.findall(r"`(\w+)`", part)) for part in text.split("(permanent)"))
        kinds = {
            name: kind
            for name, kind in vars(errors).items()
            if isinstance(kind, type) and issubclass(kind, KnockError)
        }
        leaves = kinds.keys() - {"KnockError", "Refusal", "Unavailable"} - of_requests
        assert permanent | transient == leaves
        assert transient == {name for name in leaves if issubclass(kinds[name], Unavailable)}


class TestLimits:
    def test_the_readme_has_those_of_the_code_and_the_template(self) -> None:
        """Mutation: functions/grants/ledger.py: `MAX_CLAIMS = 64` -> `MAX_CLAIMS = 65`"""
        template = (ROOT / "template.yaml").read_text()

        def default(name: str) -> str:
            parameter = template.split(f"\n  {name}:\n")[1].split("\n\n")[0]
            return re.findall(r"Default: [\"']?(\w+)", parameter)[0]

        limits = (ROOT / "README.md").read_text().split("\n## Limits and cost\n")[1].split("\n## ")[0]
        limits = re.sub(r"\s+", " ", limits)
        assert parse_duration(default("MaxDuration")) == timedelta(days=1)
        assert "A grant lasts a day at most, unless you set more (`MaxDuration`)" in limits
        assert f"opens at most {MOST_RULES} rules" in limits
        assert f"A key holds {default('MaxLive')} live grants at once" in limits
        assert f"{MAX_CLAIMS} grants and {MAX_RULES} rules" in limits
        assert f"A security group holds {default('RulesPerGroup')} inbound rules by default" in limits
