"""The files for contributors: workflows, forms and pages name targets, modules and folders that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "file", [*WORKFLOWS, *FORMS, ROOT / ".github" / "dependabot.yml"], ids=lambda f: f.name
)
def test_a_file_for_github_is_valid_yaml(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_uses_no_secret_and_may_only_read_by_default(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in file.read_text()


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_targets_and_modules_that_exist(file: Path) -> None:
    text = file.read_text()
    assert set(re.findall(r"make ([a-z0-9-]+)", text)) <= TARGETS
    for module in re.findall(r"python3 -m ([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_release_waits_for_the_gate() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert jobs["release"]["needs"] == "gate"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "tests/README.md", "docs/local.md"])
def test_a_page_names_targets_and_folders_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE))
    assert targets
    assert targets <= TARGETS
    for path, name, word in re.findall(
        r"\.venv/bin/python -m pytest (?:-n 2 )?([\w./]+)(?:::(\w+))?(?: -k (\w+))?", text
    ):
        assert (ROOT / path).exists(), path
        if name:
            _, _, tests = (ROOT / path).read_text().partition(f"class {name}:")
            assert re.search(rf"def test_\w*{word}", tests.partition("\nclass ")[0]), (name, word)


def test_the_tests_page_lists_every_folder_of_tests() -> None:
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    listed = set(re.findall(r"\[`(\w+)`\]\(\1\)", (ROOT / "tests" / "README.md").read_text()))
    assert folders <= listed
