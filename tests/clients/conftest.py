"""What the clients' tests share: an API to call, a home of its own, and ways to run the programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from knock import Client
from tests.clients.double import Double

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "clients"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def double() -> Iterator[Double]:
    api = Double()
    yield api
    api.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `knock` as pip would install it, and nothing else."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "knock"
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(CLIENTS)!r})\n"
        "from knock.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def home(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, with no settings in it and `knock` on the PATH."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("XDG_", "SSL_CERT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `knock` in this process."""

    def knock(*words: str) -> Done:
        from knock.cli import main

        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as stop:  # argparse's way out
            code = stop.code if isinstance(stop.code, int) else 1
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return knock


@pytest.fixture
def spawn(home: Path) -> Callable[..., Done]:
    """Run a program as a person does, with its own process and streams."""

    def command(*words: str, stdin: str = "", timeout: float = 30) -> Done:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return command


# ---------------------------------------------------------------------- one API, two of them


class Api:
    """The knock API as a client's test sees it: the double, or the local stack behind its edge."""

    def __init__(
        self, url: str, keys: dict[str, str], come_from: Callable[[str], None], double: Double | None
    ) -> None:
        self.url = url
        self.keys = keys
        self.come_from = come_from
        self.double = double

    def client(self, who: str) -> Client:
        return Client(self.url, self.keys[who])

    def pages_of(self, size: int) -> None:
        """Make pages small where that can be told; the stack's are as large as they are."""
        if self.double:
            self.double.page = size


@pytest.fixture(params=["double"])
def api(request: pytest.FixtureRequest, double: Double) -> Api:
    def come_from(address: str) -> None:
        double.source = address

    return Api(double.url, double.keys, come_from, double)


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true, and fail when it is not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
