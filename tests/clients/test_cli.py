"""The `knock` program: what it prints where, and how it exits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Done
from tests.clients.double import Double

Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def test_open_says_in_one_line_what_is_open_from_where_and_until_when(run: Run) -> None:
    done = run("bastion", "--for", "8h")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        r"open: bastion \(22/tcp\) from 203\.0\.113\.7/32 until (\w{3} \d\d \w{3} )?\d\d:\d\d:\d\d UTC "
        r"\((8 h|7 h 59 min)\)\n",
        done.out,
    )


def test_a_knock_without_targets_opens_all_the_key_may_open(run: Run) -> None:
    assert "open: bastion (22/tcp), web (80/tcp, 443/tcp) from" in run().out


def test_a_target_named_like_a_command_is_opened_with_open(run: Run, double: Double) -> None:
    double.ports["ls"] = ["22/tcp"]
    assert run("open", "ls").out.startswith("open: ls (22/tcp)")
    assert run("ls").out.startswith("GRANT")
    assert run("--for", "1h", "--", "ls").out.startswith("open: ls (22/tcp)")


def test_the_command_is_found_behind_options_and_their_values(run: Run) -> None:
    run("bastion", "--reason", "ls")
    done = run("--quiet", "--profile", "revoke", "ls")
    assert done.code == 0
    assert done.out.count("\n") == 1


def test_the_reason_the_duration_and_the_source_are_sent(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    done = run("web", "--for", "90m", "--reason", "on call", "--source", "198.51.100.0/28", "--json")
    grant = json.loads(done.out)
    assert (grant["source"], grant["reason"], grant["targets"][0]["name"]) == (
        "198.51.100.0/28",
        "on call",
        "web",
    )
    assert 5395 <= grant["seconds_left"] <= 5400
