"""The files of a release: wheel, single file and checksums. The same sources give the same bytes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

import knock
from tests.clients.conftest import CLIENTS, ROOT, Result
from tests.clients.double import Double
from tools import dist

Run = Callable[..., Result]
WHEEL = f"knock_client-{knock.__version__}-py3-none-any.whl"
INFO = f"knock_client-{knock.__version__}.dist-info"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` writes."""
    folder = tmp_path_factory.mktemp("dist")
    assert dist.main([str(folder)]) == 0
    return folder


def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """From another copy, whose files have other times and modes, in a time zone of its own."""
    code = (
        "import os, pathlib, sys; os.umask(0o077); from tools import dist; "
        "dist.CLIENTS = pathlib.Path(sys.argv[1]); sys.exit(dist.main(sys.argv[2:]))"
    )
    for path in sorted(CLIENTS.rglob("*"), reverse=True):
        copy = tmp_path / "clients" / path.relative_to(CLIENTS)
        if path.is_file() and "__pycache__" not in path.parts:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    environment = {"PATH": os.environ["PATH"], "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "clients", tmp_path / "out"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    names = sorted(path.name for path in built.iterdir())
    assert names == ["SHA256SUMS", "knock.pyz", "knock.sh", WHEEL]
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_the_checksums_are_those_of_the_files(built: Path) -> None:
    result = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=built, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"knock.pyz: OK\nknock.sh: OK\n{WHEEL}: OK\n"


def test_the_wheel_has_its_metadata_and_the_files_of_its_record(built: Path) -> None:
    with zipfile.ZipFile(built / WHEEL) as wheel:
        names = wheel.namelist()
        contents = {name: wheel.read(name) for name in names}
    metadata = message_from_bytes(contents[f"{INFO}/METADATA"])
    assert (
        metadata["Name"],
        metadata["Version"],
        metadata["License-Expression"],
        metadata["Requires-Python"],
    ) == (
        "knock-client",
        knock.__version__,
        "Apache-2.0",
        ">=3.10",
    )
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert not [
        classifier for classifier in metadata.get_all("Classifier", []) if classifier.startswith("License ::")
    ], "as PEP 639 wants it"
    assert set(metadata.get_all("Provides-Extra", [])) == {"admin", "keyring"}
    assert all("extra ==" in requirement for requirement in metadata.get_all("Requires-Dist", [])), (
        "nothing without an extra"
    )
    assert metadata.get_payload() == (CLIENTS / "README.md").read_text()
    assert contents[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert {"knock/py.typed", "knock_admin/py.typed"} <= set(names)
    assert contents[f"{INFO}/entry_points.txt"].decode().splitlines() == [
        "[console_scripts]",
        "knock = knock.cli:main",
        "knock-admin = knock_admin.cli:main",
    ]
    rows = list(csv.reader(io.StringIO(contents[f"{INFO}/RECORD"].decode())))
    assert [row[0] for row in rows[:-1]] == sorted(set(names) - {f"{INFO}/RECORD"})
    for name, digest, size in rows[:-1]:
        expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(contents[name])))


def test_the_links_are_the_repository_s_that_the_release_is_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert dist.urls({}) == {}
    assert dist.urls({"urls": {"Homepage": "https://example.com"}}) == {"Homepage": "https://example.com"}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://git.example.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/knock")
    assert dist.urls({})["Documentation"] == "https://git.example.com/owner/knock/blob/HEAD/docs/knock.md"


def test_the_wheel_installs_and_runs(built: Path, tmp_path: Path, double: Double, home: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--disable-pip-version-check", "--target", tmp_path / "site", built / WHEEL],
        check=True,
    )  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "KNOCK_URL": double.url,
        "KNOCK_API_KEY": double.keys["alice"],
    }
    program = tmp_path / "site" / "bin" / "knock"
    result = subprocess.run(
        [program, "bastion", "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["status"] == "active"


def test_the_single_file_runs_alone_and_its_ssh_configuration_starts_it(
    built: Path, double: Double, home: Path, spawn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    archive = str(built / "knock.pyz")
    assert spawn(archive, "--version").out == f"knock {knock.__version__}\n"
    assert spawn(archive, "run", "bastion", "-q", "--", "echo", "inside").out == "inside\n"
    for start in ([archive], [sys.executable, archive]):
        printed = spawn(*start, "ssh-config", "bastion", "--target", "bastion").out
        command = printed.splitlines()[-1].partition('exec "')[2].rstrip('"')
        assert archive in command
        assert spawn("sh", "-c", command).code == 0
    with zipfile.ZipFile(archive) as members:
        assert not [name for name in members.namelist() if name.startswith("knock_admin")]


def test_the_page_on_installing_names_the_files_of_a_release() -> None:
    page = (ROOT / "docs" / "knock" / "log-in.md").read_text()
    assert f"`pipx install {WHEEL.replace(knock.__version__, 'VERSION')}`" in page
    assert "`knock.pyz`" in page


def test_the_help_of_knock_names_no_program_that_is_not_installed_with_it(run: Run) -> None:
    assert "knock-admin" not in run("--help").out
    assert "knock-admin" not in run("__complete", "").out
