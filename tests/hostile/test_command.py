"""The options of `python -m local up --hostile` and of `make soak ARGS="--hostile"`, and their messages."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from local import __main__ as command
from local.hostile import Plan
from local.stack import Options, StackError
from tests.conftest import ROOT
from tests.hostile import life
from tests.local.test_main import SUMMARY
from tools import soak


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that the command line gives a stack, which does not start."""
    requests: list[Options] = []

    def start(options: Options) -> Any:
        requests.append(options)
        raise StackError("it is not to start")

    monkeypatch.setattr(command, "Stack", start)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    return requests


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ([], None),
        (["--hostile", "7"], Plan(7)),
        (["--hostile", "7", "--hostile-only", "sdb,events"], Plan(7, ("sdb", "events"))),
        (["--hostile", "7", "--hostile-scale", "0.1"], Plan(7, scale=0.1)),
    ],
)
def test_the_options_make_the_stacks_plan(
    requested: list[Options], words: list[str], plan: Plan | None
) -> None:
    assert command.main(["up", *words]) == 1
    assert [options.hostile for options in requested] == [plan]


def test_a_seed_is_drawn_where_none_is_given(requested: list[Options]) -> None:
    for words in (["--hostile"], ["--hostile-only", "sdb"], ["--hostile", "--port", "0"]):
        command.main(["up", *words])
    plans = [options.hostile for options in requested]
    assert len({plan.seed for plan in plans if plan}) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hostile", "x"], "a seed is a number, not 'x'"),
        (["--hostile=-1"], "a seed is a number, not '-1'"),
        (["--hostile-only", "ec2"], "there is no row 'ec2'; there are sdb, dynamodb, ec2-lag"),
        (["--hostile", "1", "--hostile-scale", "2"], "a scale is more than 0 and at most 1, not 2"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_says_what_is_possible(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["up", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_the_options_that_repeat_the_run() -> None:
    plan = Plan(7, ("sdb", "events"), 0.1)
    page = command._page(type(SUMMARY)(**vars(SUMMARY) | {"hostile": plan.as_json()}), "log")
    assert "--hostile 7 --hostile-only sdb,events --hostile-scale 0.1" in page
    assert "hostile" not in command._page(SUMMARY, "log")
    assert "hostile" not in SUMMARY.as_json()


def start_and_fail(*words: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "local", "up", "--port", "0", "--json", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    return result.stderr


def test_a_stack_that_simpledb_refuses_proposes_dynamodb() -> None:
    stderr = start_and_fail("--hostile-only", "sdb-closed", "--store", "simpledb")
    assert "AWS answered OptInRequired to CreateDomain" in stderr
    assert "--store dynamodb" in stderr
    assert "Traceback" not in stderr


def test_soaking_prints_the_seed_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plan: Plan, store: str) -> None:
        raise AssertionError(f"seed {plan.seed} on {store}: a rule is open")

    monkeypatch.setattr(life, "live_through", fail)
    with pytest.raises(SystemExit, match="morning seed 41 on dynamodb: a rule is open"):
        soak._morning(41)


def test_soaking_runs_the_tests_of_a_stack_at_times_and_prints_how_to_repeat_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[str] = []

    def run(_command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        seeds.append(env["HOSTILE_SEED"])
        return subprocess.CompletedProcess([], 1, stdout="a door is open")

    monkeypatch.setattr(life, "live_through", lambda *_args, **_more: type("Lived", (), {"started": {1, 2}}))
    monkeypatch.setattr(soak.subprocess, "run", run)
    assert soak._morning(41) == 2
    with pytest.raises(SystemExit, match=r"HOSTILE_SEED=50 pytest(.|\n)*a door is open"):
        soak._morning(50)
    assert seeds == ["50"]
