"""Unusual homes: none, read-only, full, with files of any content, written under a wrong clock."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knock import ConfigurationError, config, network, notices, sshconfig, state
from knock.errors import CannotReach
from tests.clients.conftest import CLIENTS, Result
from tests.clients.double import Double, Held

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _as_alice(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    monkeypatch.setattr(notices, "warnings", [])


def grants_file(home: Path) -> Path:
    return home / ".local" / "state" / "knock" / "grants.json"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and no entry in passwd."""
    import pwd

    def unknown(_: object) -> Any:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_can_use_every_command_that_needs_none(
    run: Run, double: Double, no_home: None
) -> None:
    assert run("bastion", "--for", "1h").out.startswith("open: ")
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: "), "nothing is remembered"
    assert run("run", "web", "--", "true").code == 0
    assert run("ls", "-q").code == 0
    assert run("__complete", "").code == 0
    assert run("profiles").code == 0
    assert run("revoke", "--all").code == 0
    assert state.WatchSlot("x").ids == []


def test_a_user_without_a_home_is_told_what_to_set(
    run: Run, no_home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="no home folder: set HOME or XDG_CONFIG_HOME"):
        config.store("default", "https://api.example.com", "k" * 30)
    monkeypatch.delenv("KNOCK_URL")
    result = run("bastion")
    assert (result.code, "no API is known yet" in result.err) == (2, True)


def test_a_state_folder_that_cannot_be_written_costs_calls_and_nothing_else(
    run: Run, home: Path, double: Double
) -> None:
    (home / ".local").write_text("a file is in the way")
    assert run("bastion", "--for", "1h").code == 0
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    assert run("__complete", "b").code == 0
    assert run("revoke", "--all", "-q").code == 0


def test_on_a_full_disk_the_old_file_stays_and_the_command_succeeds(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("bastion", "--for", "1h")
    before = grants_file(home).read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("web", "--for", "1h")
    assert (result.code, result.err) == (0, "")
    assert grants_file(home).read_text() == before
    assert [path.name for path in grants_file(home).parent.glob(".*")] == []


ENTRY = {
    "id": "alice_1",
    "principal": "id-alice",
    "url": "https://api.example.com",
    "network": "here",
    "by": "hand",
    "targets": ["bastion"],
    "all": False,
    "source": "203.0.113.7/32",
    "at": 0,
    "until": 0,
    "duration": 3600,
}


@pytest.mark.parametrize("name", sorted(ENTRY))
def test_each_field_of_a_remembered_grant_is_checked(home: Path, name: str) -> None:
    """Mutation: clients/knock/state.py: `if not isinstance(stored, list) or not all(map(_is_entry, stored)):`
    -> `if not isinstance(stored, list):`
    """
    file = grants_file(home)
    file.parent.mkdir(parents=True)
    valid = ENTRY | {"at": time.time(), "until": time.time() + 3600}
    for value in (None, [], {}, -1, "x\n", [1], float("inf"), True):
        if type(value) is type(valid[name]) or (name == "targets" and value == []):
            continue
        if isinstance(value, (int, float)) and name in ("at", "until", "duration") and value == -1:
            continue  # a number, with which the grant has expired
        file.write_text(json.dumps([valid | {name: value}, valid]))
        file.chmod(0o600)
        assert state.known("https://api.example.com", ["bastion"], "here") is not None, (
            "the valid entry is kept"
        )
        assert file.with_name("grants.json.unusable").exists(), (name, value)
        assert not file.exists()
        file.with_name("grants.json.unusable").unlink()
    assert notices.warnings == [
        f"{file} did not hold what this program writes, and was set aside as {file}.unusable"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b"x" * 2_000_000])
def test_a_broken_state_file_is_set_aside_with_a_warning(run: Run, home: Path, content: bytes) -> None:
    file = grants_file(home)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    file.chmod(0o600)
    result = run("bastion", "--for", "1h")
    assert result.code == 0
    assert f"set aside as {file}.unusable" in result.err
    assert result.err.count("\n") == 1
    assert json.loads(file.read_text())[0]["targets"] == ["bastion"], "a new file was written"


@pytest.mark.parametrize(
    "words", [[], {"u": 1}, {"u": {"targets": []}}, {"u": {"targets": {"at": "x", "words": {}}}}]
)
def test_malformed_cached_words_are_ignored(run: Run, home: Path, double: Double, words: Any) -> None:
    text = json.dumps(words).replace('"u"', json.dumps(double.url))
    config.write_private(config.state_folder() / "completion.json", json.loads(text))
    result = run("__complete", "b")
    assert (result.code, result.out) == (0, "bastion\t22/tcp\n")
    assert run("basion").code == 2, "the words that were read then are cached: a mistyped target"


@pytest.mark.parametrize(
    "content", ['{"profiles": {"default": {}}}', '{"profiles": {"default": {"url": 1}}}', "[" * 100_000, "\0"]
)
def test_a_broken_config_file_is_an_error_that_names_it_and_login_sets_it_aside(
    run: Run, home: Path, double: Double, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.delenv("KNOCK_API_KEY")
    file = home / ".config" / "knock" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    file.chmod(0o600)
    result = run("whoami")
    assert (result.code, str(file) in result.err) == (2, True)
    config.store("default", double.url, double.keys["alice"])
    assert file.with_name("config.json.unusable").read_text() == content
    assert run("whoami", "-q").out == "alice\n"


def test_a_pipe_in_place_of_the_config_file_is_refused_without_reading(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KNOCK_API_KEY")
    file = home / ".config" / "knock" / "config.json"
    file.parent.mkdir(parents=True)
    os.mkfifo(file, 0o600)
    assert "is not a plain file" in run("whoami").err


def test_a_remembered_grant_from_the_future_is_ignored(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: clients/knock/state.py: `entry["at"] - AHEAD <= now <` -> `now <`"""
    now = time.time()
    clock = [now + 365 * 86_400]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    run("bastion", "--for", "1h")
    assert state.known(double.url, ["bastion"], network.fingerprint()) is not None
    clock[0] = now  # the clock is corrected
    assert state.known(double.url, ["bastion"], network.fingerprint()) is None
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    clock[0] = now - 3 * 3600  # and wrong again, the other way
    assert state.known(double.url, ["bastion"], network.fingerprint()) is None


# ---------------------------------------------------------------------- locks, and an API that hangs


def test_a_file_system_without_locks_is_no_error(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    slot = state.WatchSlot("x")
    slot.keep(["a"])
    assert slot.ids == []


def test_hooks_that_wait_for_one_whose_api_hangs_fail_with_it(home: Path, double: Double) -> None:
    """Mutation: clients/knock/state.py: `_fail_as_others_did(url, began)` -> `pass`"""
    calls: list[str] = []
    failures: list[str] = []

    def hook() -> None:
        try:
            with state.opening(double.url):
                calls.append("it hangs")
                time.sleep(0.3)
                raise CannotReach("the API did not answer within 10 s")
        except CannotReach as error:
            failures.append(str(error))

    hooks = [threading.Thread(target=hook) for _ in range(5)]
    for thread in hooks:
        thread.start()
    for thread in hooks:
        thread.join(timeout=10)
    assert len(calls) == 1
    assert sum("as another ssh has just found" in text for text in failures) == 4
    hook()
    assert len(calls) == 2, "a later hook calls the API itself"
    with state.opening("https://another.example.com"):
        pass


def test_a_hook_gives_up_within_twenty_seconds(
    run: Run, double: Double, limits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("ssh-hook", "--target", "web").code == 0
    assert limits[0]["timeout"] + limits[0]["tries"] * limits[0]["connect_timeout"] <= 20
    monkeypatch.setattr(sshconfig, "ANSWER", 0.3)
    held = Held()
    double.faults = [held]
    result = run("ssh-hook", "--target", "bastion")
    assert held.waiting, "it waited for the answer"
    held.release()
    assert result.code == 3
    assert "did not answer within 0.3 s" in result.err
    assert double.calls("POST") == 2, "the first hook's knock, and one of this hook"


# ---------------------------------------------------------------------- a configuration from a checkout


def test_a_configuration_from_a_checkout_runs_nothing_of_the_current_folder(
    spawn: Run, home: Path, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CLIENTS))
    printed = spawn(sys.executable, "-m", "knock", "ssh-config", "bastion", "--target", "bastion").out
    command = printed.splitlines()[-1].partition('exec "')[2].rstrip('"')
    project = home / "project"
    project.mkdir()
    for name in ("argparse", "knock", "socket", "json", "state", "__main__"):
        (project / f"{name}.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.delenv("PYTHONPATH")
    for path in ("", str(project)):
        monkeypatch.setenv("PYTHONPATH", path)
        result = spawn("bash", "-c", f"cd {project}; {command}")
        assert (result.code, "this ran" in result.err) == (0, False), result
    assert len(double.grants) == 1
    assert stat.S_IMODE(grants_file(home).stat().st_mode) == 0o600
