"""Functions start and do their work over TLS as on Lambda: with today's botocore, the newest, and bytecode.

Against the benchmark's recorded AWS, by the address of its own that each service has.
"""

from __future__ import annotations

import marshal
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore
import pytest

from bench import cold
from bench.recorded import Recorded
from bench.scale import BenchError
from tests.conftest import ROOT, need
from tests.template.transform import read
from tools import bytecode, deploy

pytestmark = pytest.mark.enable_socket

NEWEST = ROOT / ".venv-newest"
CALLS = {
    "api": {"GetTags", "GetResources", "Select", "StartExecution", "GetAttributes"},
    "authorize": {
        "DescribeSecurityGroups",
        "GetAttributes",
        "PutAttributes",
        "AuthorizeSecurityGroupIngress",
    },
    "revoke": {"GetAttributes", "PutAttributes", "RevokeSecurityGroupIngress"},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    aws = Recorded(tmp_path_factory.mktemp("recorded"))
    yield aws
    aws.close()


@pytest.fixture(scope="module")
def environments() -> dict[str, dict[str, str]]:
    return cold.variables()


def started(
    aws: Recorded, function: str, environment: dict[str, str], folder: Path = ROOT / "functions"
) -> tuple[str, int]:
    """Start a function and invoke it twice: what it logged, and how many connections it made."""
    aws.calls.clear()
    before = aws.handshakes
    cpu, logged = cold.run(aws, folder, function, environment, cold.prepared(aws, function))
    assert cpu == sorted(cpu)
    assert set(aws.calls) == CALLS[function]
    assert "slim_data_not_used" not in logged
    return logged, aws.handshakes - before


@pytest.mark.parametrize("function", CALLS)
def test_a_function_starts_and_opens_one_connection_a_service(
    function: str, recorded: Recorded, environments: dict[str, dict[str, str]]
) -> None:
    """And opens it again where AWS has closed it. The API's first three calls are made at the same time.

    Mutation: functions/grants/wiring.py: `        if known not in self._clients:` -> `        if True:`
    """
    logged, connections = started(recorded, function, environments[function])
    # The API keeps rights and targets for a minute: the second time it asks trail and state machine alone.
    assert connections == {"api": 4 + 2, "authorize": 2 + 2, "revoke": 2 + 2}[function]
    assert '"level":"ERROR"' not in logged


@pytest.mark.parametrize("function", CALLS)
def test_a_function_starts_with_the_newest_botocore_in_place_of_the_pinned_one(
    function: str, recorded: Recorded, environments: dict[str, dict[str, str]]
) -> None:
    """AWS brings the runtime's botocore up to date unasked. `make test` fetches the newest there is."""
    need((NEWEST / ".done").exists(), "the newest botocore is missing: run make .venv-newest/.done")
    version = re.search(r"__version__ = '(.+)'", (NEWEST / "botocore" / "__init__.py").read_text())
    assert version
    assert numbers(version[1]) >= numbers(botocore.__version__)
    environment = environments[function] | {"PYTHONPATH": str(NEWEST)}
    result = subprocess.run(
        [sys.executable, "-c", "import botocore; print(botocore.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(NEWEST))
    logged, _ = started(recorded, function, environment)
    assert '"level":"ERROR"' not in logged


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def test_a_function_that_answers_with_an_error_fails_the_measurement(
    recorded: Recorded, environments: dict[str, dict[str, str]]
) -> None:
    bad = environments["authorize"] | {"MAX_DURATION": "1s"}
    with pytest.raises(BenchError, match="InvalidGrant"):
        cold.run(recorded, ROOT / "functions", "authorize", bad, cold.prepared(recorded, "authorize"))


# ---------------------------------------------------------------------------- bytecode


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Give a folder as `sam build` leaves it: sources alone."""
    return Path(
        shutil.copytree(ROOT / "functions", tmp_path / "built", ignore=shutil.ignore_patterns("__pycache__"))
    )


def test_bytecode_stands_for_its_source_whatever_times_a_zip_gives_the_files(
    built: Path, recorded: Recorded, environments: dict[str, dict[str, str]]
) -> None:
    """SAM's zip gives every file a time of 1980.

    Mutation: tools/bytecode.py: `PycInvalidationMode.UNCHECKED_HASH` -> `PycInvalidationMode.TIMESTAMP`
    """
    assert bytecode.main([str(built)]) == 0
    for source in built.rglob("*.py"):
        source.write_text("raise SystemExit('compiled anew')\n")
        os.utime(source, (315_532_800, 315_532_800))
    logged, _ = started(recorded, "api", environments["api"], built)
    assert "compiled anew" not in logged


def test_every_module_is_compiled_under_the_path_it_has_on_lambda(built: Path) -> None:
    bytecode.write(built)
    sources = {source.relative_to(built) for source in built.rglob("*.py")}
    for source in sources:
        tag = sys.implementation.cache_tag
        compiled = (built / source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc").read_bytes()
        assert int.from_bytes(compiled[4:8], "little") == 0b01, "unchecked, by hash"
        assert marshal.loads(compiled[16:]).co_filename == f"/var/task/{source.as_posix()}"  # noqa: S302  # ours


def test_every_function_of_a_build_is_compiled_as_the_root_it_is_on_lambda(
    built: Path, tmp_path: Path
) -> None:
    (tmp_path / "template.yaml").write_text("Resources: {}\n")
    assert bytecode.main([str(tmp_path)]) == 0
    (compiled,) = (built / "__pycache__").glob("api.*.pyc")
    assert marshal.loads(compiled.read_bytes()[16:]).co_filename == "/var/task/api.py"  # noqa: S302  # ours


@pytest.mark.parametrize("installed", [True, False])
def test_deploying_with_bytecode_takes_the_runtimes_own_python(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if installed else None)
    assert read()["Globals"]["Function"]["Runtime"] == deploy.RUNTIME
    if installed:
        command = [deploy.RUNTIME, "-m", "tools.bytecode", "--for", deploy.RUNTIME, ".aws-sam/build"]
        assert deploy.compiling() == command
        assert deploy.read_options(["--bytecode"]).bytecode
        assert not deploy.read_options([]).bytecode
    else:
        with pytest.raises(deploy.DeployError, match=r"--bytecode needs python3\.13 on the PATH"):
            deploy.compiling()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "python2.7", "{built}"], "the functions run on python2.7: bytecode of python3."),
        (["{built}/none"], "is no folder: run `sam build` first"),
        (["{built}/broken"], "not every module in"),
    ],
)
def test_bytecode_that_lambda_could_not_use_is_not_written(
    arguments: list[str], message: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "broken").mkdir()
    (built / "broken" / "module.py").write_text("def\n")
    assert bytecode.main([argument.format(built=built) for argument in arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list((built / "grants").rglob("*.pyc"))
