"""`python -m local up --hostile` and `make soak ARGS="--hostile"`: what they ask for, what they say."""

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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that the command line gives a stack, which does not start."""
    found: list[Options] = []

    def start(options: Options) -> Any:
        found.append(options)
        raise StackError("it is not to start")

    monkeypatch.setattr(command, "Stack", start)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    return found


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ([], None),
        (["--hostile", "7"], Plan(7)),
        (["--hostile", "7", "--hostile-only", "sdb,events"], Plan(7, ("sdb", "events"))),
        (["--hostile", "7", "--hostile-scale", "0.1"], Plan(7, scale=0.1)),
    ],
)
def test_a_stack_is_as_hostile_as_it_is_asked_to_be(
    asked: list[Options], words: list[str], plan: Plan | None
) -> None:
    assert command.main(["up", *words]) == 1
    assert [options.hostile for options in asked] == [plan]


def test_a_seed_is_drawn_where_none_is_given(asked: list[Options]) -> None:
    for words in (["--hostile"], ["--hostile-only", "sdb"], ["--hostile", "--port", "0"]):
        command.main(["up", *words])
    plans = [options.hostile for options in asked]
    assert len({plan.seed for plan in plans if plan}) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hostile", "x"], "a seed is a number, not 'x'"),
        (["--hostile=-1"], "a seed is a number, not '-1'"),
        (["--hostile-only", "ec2"], "there is no row 'ec2'; there are sdb, dynamodb, ec2-lag"),
        (["--hostile", "1", "--hostile-scale", "2"], "a scale is more than 0 and at most 1, not 2"),
    ],
)
def test_what_cannot_be_is_a_usage_error_that_says_what_can(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["up", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_page_says_with_which_words_the_same_happens_again() -> None:
    plan = Plan(7, ("sdb", "events"), 0.1)
    page = command._page(type(SUMMARY)(**vars(SUMMARY) | {"hostile": plan.as_json()}), "log")
    assert "--hostile 7 --hostile-only sdb,events --hostile-scale 0.1" in page
    assert "hostile" not in command._page(SUMMARY, "log")
    assert "hostile" not in SUMMARY.as_json()


def start_and_fail(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "local", "up", "--port", "0", "--json", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_an_account_that_simpledb_refuses_is_told_of_dynamodb() -> None:
    said = start_and_fail("--hostile-only", "sdb-closed", "--store", "simpledb")
    assert "AWS answered OptInRequired to CreateDomain" in said
    assert "--store dynamodb" in said
    assert "Traceback" not in said


def test_soaking_prints_the_seed_of_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plan: Plan, store: str) -> None:
        raise AssertionError(f"seed {plan.seed} on {store}: a rule is open")

    monkeypatch.setattr(life, "live_through", fail)
    with pytest.raises(SystemExit, match="morning seed 41 on dynamodb: a rule is open"):
        soak._morning(41)


def test_soaking_runs_a_stack_of_a_seed_now_and_then_and_prints_how_to_run_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []

    def run(_command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        ran.append(env["HOSTILE_SEED"])
        return subprocess.CompletedProcess([], 1, stdout="a door is open")

    monkeypatch.setattr(life, "live_through", lambda *_args, **_more: type("Lived", (), {"started": {1, 2}}))
    monkeypatch.setattr(soak.subprocess, "run", run)
    assert soak._morning(41) == 2
    with pytest.raises(SystemExit, match=r"HOSTILE_SEED=50 pytest(.|\n)*a door is open"):
        soak._morning(50)
    assert ran == ["50"]
