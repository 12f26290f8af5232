"""Odd homes: none at all, read-only, full, with files of any content, under a clock that was wrong."""

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

from knock import ConfigurationError, config, network, notices, state
from knock.errors import CannotReach
from tests.clients.conftest import CLIENTS, Done
from tests.clients.double import Double

Run = Callable[..., Done]


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


def test_a_user_without_a_home_can_do_everything_that_needs_none(
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
    done = run("bastion")
    assert (done.code, "no API is known yet" in done.err) == (2, True)


def test_a_state_folder_that_cannot_be_written_costs_calls_and_nothing_else(
    run: Run, home: Path, double: Double
) -> None:
    (home / ".local").write_text("a file is in the way")
    assert run("bastion", "--for", "1h").code == 0
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    assert run("__complete", "b").code == 0
    assert run("revoke", "--all", "-q").code == 0


def test_a_full_disk_leaves_the_old_file_and_the_command_done(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("bastion", "--for", "1h")
    before = grants_file(home).read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("web", "--for", "1h")
    assert (done.code, done.err) == (0, "")
    assert grants_file(home).read_text() == before
    assert [path.name for path in grants_file(home).parent.glob(".*")] == []


WHOLE = {
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


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_each_field_of_what_is_known_is_checked(home: Path, name: str) -> None:
    """Mutation: clients/knock/state.py: `if not isinstance(stored, list) or not all(map(_is_entry, stored)):`
    -> `if not isinstance(stored, list):`
    """
    file = grants_file(home)
    file.parent.mkdir(parents=True)
    good = WHOLE | {"at": time.time(), "until": time.time() + 3600}
    for wrong in (None, [], {}, -1, "x\n", [1], float("inf"), True):
        if type(wrong) is type(good[name]) or (name == "targets" and wrong == []):
            continue
        if isinstance(wrong, (int, float)) and name in ("at", "until", "duration") and wrong == -1:
            continue  # a number, though one that makes it old
        file.write_text(json.dumps([good | {name: wrong}, good]))
        file.chmod(0o600)
        assert state.known("https://api.example.com", ["bastion"], "here") is not None, (
            "the other is as it was"
        )
        assert file.with_name("grants.json.unusable").exists(), (name, wrong)
        assert not file.exists()
        file.with_name("grants.json.unusable").unlink()
    assert notices.warnings == [
        f"{file} did not hold what this program writes, and was set aside as {file}.unusable"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b"x" * 2_000_000])
def test_a_state_file_of_any_content_is_set_aside_and_said(run: Run, home: Path, content: bytes) -> None:
    file = grants_file(home)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    file.chmod(0o600)
    done = run("bastion", "--for", "1h")
    assert done.code == 0
    assert f"set aside as {file}.unusable" in done.err
    assert done.err.count("\n") == 1
    assert json.loads(file.read_text())[0]["targets"] == ["bastion"], "a new one is there"


@pytest.mark.parametrize(
    "kept", [[], {"u": 1}, {"u": {"targets": []}}, {"u": {"targets": {"at": "x", "words": {}}}}]
)
def test_kept_words_of_any_content_are_none(run: Run, home: Path, double: Double, kept: Any) -> None:
    text = json.dumps(kept).replace('"u"', json.dumps(double.url))
    config.write_private(config.state_folder() / "completion.json", json.loads(text))
    done = run("__complete", "b")
    assert (done.code, done.out) == (0, "bastion\t22/tcp\n")
    assert run("basion").code == 2, "and what is learned is kept"


@pytest.mark.parametrize(
    "content", ['{"profiles": {"default": {}}}', '{"profiles": {"default": {"url": 1}}}', "[" * 100_000, "\0"]
)
def test_a_config_file_of_any_content_is_an_error_that_names_it_and_login_sets_it_aside(
    run: Run, home: Path, double: Double, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.delenv("KNOCK_API_KEY")
    file = home / ".config" / "knock" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    file.chmod(0o600)
    done = run("whoami")
    assert (done.code, str(file) in done.err) == (2, True)
    config.store("default", double.url, double.keys["alice"])
    assert file.with_name("config.json.unusable").read_text() == content
    assert run("whoami", "-q").out == "alice\n"


def test_a_file_that_is_none_is_not_waited_for(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOCK_API_KEY")
    file = home / ".config" / "knock" / "config.json"
    file.parent.mkdir(parents=True)
    os.mkfifo(file, 0o600)
    assert "is not a plain file" in run("whoami").err


def test_an_entry_from_the_future_was_made_under_a_wrong_clock(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: clients/knock/state.py: `entry["at"] - AHEAD <= now <` -> `now <`"""
    now = time.time()
    clock = [now + 365 * 86_400]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    run("bastion", "--for", "1h")
    assert state.known(double.url, ["bastion"], network.fingerprint()) is not None
    clock[0] = now  # the clock is put right
    assert state.known(double.url, ["bastion"], network.fingerprint()) is None
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    clock[0] = now - 3 * 3600  # and wrong again, the other way
    assert state.known(double.url, ["bastion"], network.fingerprint()) is None


# ---------------------------------------------------------------------- locks, and an API that hangs


def test_a_file_system_without_locks_is_done_without(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open: ")
    slot = state.WatchSlot("x")
    slot.keep(["a"])
    assert slot.ids == []


def test_an_api_that_hangs_costs_many_hooks_one_timeout_and_not_one_after_the_other(
    home: Path, double: Double
) -> None:
    """Mutation: clients/knock/state.py: `_fail_as_others_did(url, began)` -> `pass`"""
    tried: list[str] = []
    failures: list[str] = []

    def hook() -> None:
        try:
            with state.opening(double.url):
                tried.append("it hangs")
                time.sleep(0.3)
                raise CannotReach("the API did not answer within 10 s")
        except CannotReach as error:
            failures.append(str(error))

    hooks = [threading.Thread(target=hook) for _ in range(5)]
    for one in hooks:
        one.start()
    for one in hooks:
        one.join(timeout=10)
    assert len(tried) == 1
    assert sum("as another ssh has just found" in text for text in failures) == 4
    hook()
    assert len(tried) == 2, "who comes later tries for itself"
    with state.opening("https://another.example.com"):
        pass


def test_a_hook_gives_up_long_before_people_do(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    from knock import session, sshconfig

    limits = session.Limits(sshconfig.ANSWER, sshconfig.CONNECT, sshconfig.TRIES, sshconfig.KEYRING)
    assert limits.answer + limits.tries * limits.connect <= 20
    monkeypatch.setattr(sshconfig, "ANSWER", 0.3)
    double.faults = [5]
    began = time.monotonic()
    done = run("ssh-hook", "--target", "bastion")
    assert (done.code, time.monotonic() - began < 4) == (3, True)
    assert "did not answer within 0.3 s" in done.err


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
        done = spawn("bash", "-c", f"cd {project}; {command}")
        assert (done.code, "this ran" in done.err) == (0, False), done
    assert len(double.grants) == 1
    assert stat.S_IMODE(grants_file(home).stat().st_mode) == 0o600
