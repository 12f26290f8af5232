"""Builds the files of a release: the clients' wheel, `knock.pyz`, `knock.sh`, and their checksums.

    python -m tools.dist [FOLDER]        writes into dist/, or that folder

The same sources give the same bytes on any machine: files are sorted by name, with a fixed time and mode, and
not compressed, since versions of zlib differ. The wheel is written here, from clients/pyproject.toml, and not
by hatchling, which builds it if pip installs from a clone: so a release needs no download and no build
isolation, and a wheel is a zip with three text files.
https://packaging.python.org/en/latest/specifications/binary-distribution-format/

The project's links are `project.urls` of pyproject.toml, or those of the repository that a workflow runs for
(GITHUB_SERVER_URL, GITHUB_REPOSITORY). Without both, the wheel has no links.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import tomllib

from tools import ROOT
from tools.release import version

CLIENTS = ROOT / "clients"
TIME = (2020, 1, 1, 0, 0, 0)  # of every file in a zip
PYTHON = b"#!/usr/bin/env python3\n"
MAIN = b"import sys\n\nfrom knock.cli import main\n\nsys.exit(main())\n"


def main(arguments: list[str]) -> int:
    """Build all files and print their paths. Gives the exit code."""
    folder = Path(arguments[0]) if arguments else ROOT / "dist"
    folder.mkdir(parents=True, exist_ok=True)
    built = {**wheel(), "knock.pyz": archive(), "knock.sh": (CLIENTS / "knock.sh").read_bytes()}
    sums = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(built.items())
    )
    for name, content in {**built, "SHA256SUMS": sums.encode()}.items():
        path = folder / name
        path.write_bytes(content)
        path.chmod(0o755 if name in ("knock.pyz", "knock.sh") else 0o644)
        print(path)
    return 0


def archive() -> bytes:
    """Give `knock` as one file, for Python 3.10 and later. knock-admin is not in it, since it needs boto3."""
    return PYTHON + zipped({"__main__.py": MAIN, **sources("knock")})


def wheel() -> dict[str, bytes]:
    """Give the wheel: file name → content."""
    project = tomllib.loads((CLIENTS / "pyproject.toml").read_text())["project"]
    name, current = project["name"].replace("-", "_"), version()
    info = f"{name}-{current}.dist-info"
    files = sources("knock") | sources("knock_admin")
    files |= {
        f"{info}/METADATA": metadata(project, current).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: knock\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "".join(
            ["[console_scripts]\n", *(f"{name} = {where}\n" for name, where in project["scripts"].items())]
        ).encode(),
    }
    files |= {f"{info}/licenses/{name}": (CLIENTS / name).read_bytes() for name in project["license-files"]}
    record = f"{info}/RECORD"
    files[record] = "".join([*(_recorded(*file) for file in sorted(files.items())), f"{record},,\n"]).encode()
    return {f"{name}-{current}-py3-none-any.whl": zipped(files)}


def metadata(project: dict[str, Any], current: str) -> str:
    """Write METADATA. https://packaging.python.org/en/latest/specifications/core-metadata/"""
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {current}"]
    lines.append(f"Summary: {project['description']}")
    lines += [f"Project-URL: {label}, {address}" for label, address in urls(project).items()]
    lines.append(f"License-Expression: {project['license']}")
    lines += [f"License-File: {name}" for name in project["license-files"]]
    lines.append(f"Keywords: {','.join(project['keywords'])}")
    lines += [f"Classifier: {classifier}" for classifier in project["classifiers"]]
    lines.append(f"Requires-Python: {project['requires-python']}")
    lines += [f"Requires-Dist: {needed}" for needed in project["dependencies"]]
    for extra, needed in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f"Requires-Dist: {requirement}; extra == '{extra}'" for requirement in needed]
    readme = (CLIENTS / project["readme"]).read_text()
    return "\n".join([*lines, "Description-Content-Type: text/markdown", "", readme])


def urls(project: dict[str, Any]) -> dict[str, str]:
    """Give the project's links, by their labels."""
    if configured := project.get("urls"):
        return dict(configured)
    repository = os.environ.get("GITHUB_REPOSITORY")
    if not repository:
        return {}
    home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    pages = {
        "Documentation": "blob/HEAD/docs/knock.md",
        "Changelog": "blob/HEAD/CHANGELOG.md",
        "Issues": "issues",
    }
    return {"Homepage": home} | {name: f"{home}/{path}" for name, path in pages.items()}


def sources(package: str) -> dict[str, bytes]:
    """Give the files of a package: path in the archive → content."""
    paths = [
        path for path in (CLIENTS / package).rglob("*") if path.suffix == ".py" or path.name == "py.typed"
    ]
    return {str(path.relative_to(CLIENTS)): path.read_bytes() for path in paths}


def zipped(files: dict[str, bytes]) -> bytes:
    """Write a zip whose bytes depend only on names and contents."""
    from io import BytesIO

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, TIME)
            entry.create_system = 3  # Unix, whatever this machine is
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def _recorded(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
