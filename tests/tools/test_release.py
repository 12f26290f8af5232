"""A release's version and notes are each read from one file, and have to agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.release import NotReleasable, main, notes, version


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "clients" / "knock").mkdir(parents=True)
    (tmp_path / "clients" / "knock" / "__init__.py").write_text('"""Knock."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "tests" / "fixtures" / "releases").mkdir(parents=True)
    for released in ("1.2.2", "1.2.3"):
        (tmp_path / "tests" / "fixtures" / "releases" / f"{released}.json").write_text("{}")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changes\n\n## Unreleased\n\n- more\n\n"
        "## 1.2.3, 2026-12-01\n\n- this\n\n## 1.2.2, 2026-11-01\n\n- that\n"
    )
    return tmp_path


class TestNotes:
    def test_they_are_the_changelogs_section_of_the_version(self, project: Path) -> None:
        assert notes("v1.2.3", project) == "- this\n"

    def test_the_oldest_versions_section_goes_to_the_end_of_the_file(self, project: Path) -> None:
        (project / "clients" / "knock" / "__init__.py").write_text('__version__ = "1.2.2"\n')
        assert notes("v1.2.2", project) == "- that\n"

    @pytest.mark.parametrize("tag", ["v1.2.2", "1.2.3", "v1.2.3-rc1"])
    def test_a_tag_that_is_not_the_version_releases_nothing(self, project: Path, tag: str) -> None:
        with pytest.raises(NotReleasable, match=r"the version is 1\.2\.3"):
            notes(tag, project)

    def test_a_version_with_an_empty_section_is_not_released(self, project: Path) -> None:
        (project / "CHANGELOG.md").write_text(
            "# Changes\n\n## Unreleased\n\n- this\n\n## 1.2.3, 2026-12-01\n"
        )
        with pytest.raises(NotReleasable, match=r"says nothing of 1\.2\.3"):
            notes("v1.2.3", project)

    def test_a_version_without_a_snapshot_is_not_released(self, project: Path) -> None:
        (project / "tests" / "fixtures" / "releases" / "1.2.3.json").unlink()
        with pytest.raises(NotReleasable, match=r"1\.2\.3 has no snapshot"):
            notes("v1.2.3", project)


class TestVersion:
    def test_a_missing_version_is_an_error(self, project: Path) -> None:
        (project / "clients" / "knock" / "__init__.py").write_text("")
        with pytest.raises(NotReleasable, match="no line like"):
            version(project)


class TestCommand:
    def test_it_prints_the_version_the_clients_have(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["version"]) == 0
        assert capsys.readouterr().out == f"{version()}\n"

    def test_a_tag_that_cannot_be_released_fails_with_the_reason(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["notes", "v0.0.1-never"]) == 1
        assert "release: the tag is v0.0.1-never" in capsys.readouterr().err

    def test_any_other_argument_shows_the_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert "python -m tools.release" in capsys.readouterr().err
