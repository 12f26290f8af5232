"""Profiles: where a key is kept, who can read it, and where it is never sent."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knock import Client, ConfigurationError, config, notices
from tests.clients.conftest import Done
from tests.clients.double import Double

Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keyring the machine has is not for tests."""
    monkeypatch.setitem(sys.modules, "keyring", None)


@pytest.fixture
def file(home: Path) -> Path:
    return home / ".config" / "knock" / "config.json"


@pytest.fixture
def login(home: Path, spawn: Run, double: Double) -> Callable[..., Done]:
    def do(who: str = "alice", *words: str) -> Done:
        return spawn("knock", "login", "--url", double.url, *words, stdin=double.keys[who] + "\n")

    return do


def test_a_key_from_a_pipe_is_tried_and_stored_for_its_owner_only(
    no_umask: None, login: Run, run: Run, double: Double, file: Path
) -> None:
    done = login()
    assert (done.code, done.out) == (0, f"profile default: alice at {double.url}, key in {file}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["config.json"], "no temporary file is left"
    assert run("whoami", "-q").out == "alice\n"
    assert double.keys["alice"] not in done.out + done.err


def test_a_wrong_key_is_not_stored(spawn: Run, double: Double, file: Path) -> None:
    done = spawn("knock", "login", "--url", double.url, stdin="no-such-key-00000000\n")
    assert (done.code, done.out) == (1, "")
    assert "The key is not accepted" in done.err
    assert not file.exists()
    assert spawn("knock", "login", "--url", double.url, stdin="").code == 2


def test_a_key_can_be_stored_without_trying_it(spawn: Run, file: Path) -> None:
    done = spawn(
        "knock", "login", "--no-check", "--url", "https://api.example.com/prod/knock", stdin="k" * 30
    )
    assert done.out == f"profile default: https://api.example.com/prod, key in {file}\n"


def test_without_a_terminal_the_url_must_be_named(spawn: Run) -> None:
    done = spawn("knock", "login", stdin="key\n")
    assert done.code == 2
    assert "--url URL" in done.err


def test_url_and_key_are_asked_for_on_a_terminal_and_the_key_is_not_shown(
    home: Path, double: Double, run: Run
) -> None:
    # A terminal of its own for the program, which a process without threads must make.
    spawn = "import pty, sys; sys.exit(pty.spawn(['knock', 'login']) >> 8)"
    running = subprocess.Popen([sys.executable, "-c", spawn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    terminal, typed = running.stdout.fileno(), running.stdin.fileno()
    said = b""

    def read_until(words: bytes) -> None:
        nonlocal said
        while words not in said:
            said += os.read(terminal, 4096)

    read_until(b"URL of the API: ")
    os.write(typed, double.url.encode() + b"\n")
    read_until(b"API key (it is not shown): ")
    os.write(typed, double.keys["alice"].encode() + b"\n")
    read_until(b"key in ")
    running.communicate(timeout=10)
    assert running.returncode == 0
    assert double.keys["alice"].encode() not in said
    assert run("whoami", "-q").out == "alice\n"


def test_no_key_at_the_prompt_stores_nothing(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, double: Double
) -> None:
    def closed(*args: Any) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", closed)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    done = run("login", "--url", double.url)
    assert (done.code, done.err) == (2, "knock: no key was given\n")
    assert not file.exists()


def test_profiles_are_told_apart_listed_and_deleted(
    login: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    login("bob", "--profile", "work")
    assert run("whoami", "-q").out == "alice\n"
    assert run("whoami", "-q", "--profile", "work").out == "bob\n"
    monkeypatch.setenv("KNOCK_PROFILE", "work")
    assert run("whoami", "-q").out == "bob\n"
    assert run("whoami", "-q", "--profile", "default").out == "alice\n"
    shown = run("profiles").out.splitlines()
    assert shown[0].split() == ["PROFILE", "URL", "KEY", "IN"]
    assert shown[2].startswith("*  work")
    assert shown[2].endswith("  file")
    assert run("profiles", "-q").out == "default\nwork\n"
    told = json.loads(run("profiles", "--json").out)["profiles"]
    assert told[1]["name"] == "work"
    assert told[1]["current"]
    assert "key" not in told[1]
    assert run("logout").out == "profile work is deleted\n"
    assert run("logout").code == 2
    assert json.loads(run("logout", "--profile", "default", "--json").out) == {"profile": "default"}
    assert run("profiles").err == "knock: no profile is stored: run `knock login`\n"


def test_an_unknown_profile_names_those_there_are(login: Run, run: Run) -> None:
    assert (
        run("ls").err == "knock: no API is known yet: run `knock login`, or set KNOCK_URL and KNOCK_API_KEY\n"
    )
    login("alice", "--profile", "work")
    done = run("ls", "--profile", "home")
    assert done.code == 2
    assert "there is no profile 'home'; there is: work" in done.err


def test_the_environment_wins_and_login_says_so(
    login: Run, run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    assert run("whoami", "-q").out == "bob\n"
    assert "KNOCK_API_KEY is set, and wins" in login("alice").err
    assert json.loads(login("alice", "--json").out)["principal"] == {"id": "id-alice", "name": "alice"}


def test_a_stored_key_is_sent_to_no_other_url(
    login: Run, run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    other = Double()
    monkeypatch.setenv("KNOCK_URL", other.url)
    done = run("whoami")
    assert done.code == 2
    assert "it is not sent elsewhere" in done.err
    assert other.seen == []
    monkeypatch.setenv("KNOCK_API_KEY", other.keys["bob"])
    assert run("whoami", "-q").out == "bob\n"
    other.stop()
    monkeypatch.delenv("KNOCK_API_KEY")
    monkeypatch.setenv("KNOCK_URL", double.url + "/")
    assert run("whoami", "-q").out == "alice\n", "the same URL may be set beside it"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_change_is_refused(login: Run, run: Run, file: Path, mode: int) -> None:
    login("alice")
    file.chmod(mode)
    done = run("whoami")
    assert (done.code, done.out) == (2, "")
    assert f"{file} can be changed by others; close it with: chmod 600 {file}" in done.err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
def test_a_file_that_others_can_read_is_used_and_that_is_said(
    login: Run, run: Run, file: Path, mode: int
) -> None:
    login("alice")
    file.chmod(mode)
    done = run("whoami")
    assert done.code == 0
    said = f"knock: others on this machine can read the key in {file}; if it is yours: chmod 600 {file}\n"
    assert done.err == said
    assert run("whoami", "-q").err == ""


def owned_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file seem to be of a user who is neither root nor the one who runs the tests."""
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[4] = os.geteuid() + 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", fstat)


def test_a_file_of_another_user_is_refused(
    login: Run, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    owned_by_another(monkeypatch)
    assert f"{file} belongs to another user, who can change it" in run("whoami").err


@pytest.mark.parametrize("content", ["not json", "[]", '{"profiles": []}', '{"profiles": {"default": 1}}'])
def test_a_broken_file_is_said_to_be_one(run: Run, file: Path, content: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(content)
    file.chmod(0o600)
    done = run("whoami")
    assert done.code == 2
    assert str(file) in done.err


def test_what_cannot_be_read_or_written_is_an_error_of_ours(login: Run, file: Path, run: Run) -> None:
    file.mkdir(parents=True)
    assert f"{file} cannot be read: Is a directory" in run("profiles").err
    file.rmdir()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert "cannot be" in login("alice").err


def test_a_write_that_fails_leaves_the_old_file_whole(
    login: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    before = file.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        config.store("work", "https://api.example.com", "k" * 30)
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


def test_a_linked_file_stays_a_link(login: Run, run: Run, file: Path, tmp_path: Path) -> None:
    login("alice")
    kept = tmp_path / "dotfiles.json"
    file.rename(kept)
    file.symlink_to(kept)
    login("bob", "--profile", "work")
    assert file.is_symlink()
    assert run("profiles", "-q").out == "default\nwork\n"


def test_folders_are_the_platforms(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config.config_folder() == home / ".config" / "knock"
    assert config.state_folder() == home / ".local" / "state" / "knock"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert config.config_folder() == home / "Library" / "Application Support" / "knock"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert config.state_folder() == tmp_path / "local" / "knock"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config.config_folder() == tmp_path / "xdg" / "knock"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert config.config_folder() == home / ".config" / "knock"


# ---------------------------------------------------------------------- keyring


class Keyring(types.ModuleType):
    """The keyring package, as much as is used, over a dict."""

    class KeyringError(Exception):
        pass

    class PasswordDeleteError(KeyringError):
        pass

    def __init__(self, priority: float = 5) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False
        self.priority = priority
        self.errors = self

    def get_keyring(self) -> Any:
        return self

    def set_password(self, service: str, name: str, key: str) -> None:
        self._check()
        self.kept[service, name] = key

    def get_password(self, service: str, name: str) -> str | None:
        self._check()
        return self.kept.get((service, name))

    def delete_password(self, service: str, name: str) -> None:
        self._check()
        if (service, name) not in self.kept:
            raise self.PasswordDeleteError("not there")
        del self.kept[service, name]

    def _check(self) -> None:
        if self.locked:
            raise self.KeyringError("locked")


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    made = Keyring()
    monkeypatch.setitem(sys.modules, "keyring", made)
    monkeypatch.setitem(sys.modules, "keyring.errors", made)
    return made


def test_the_keyring_keeps_the_key_where_there_is_one(home: Path, keyring: Keyring, file: Path) -> None:
    assert config.store("default", "https://api.example.com", "k" * 30) == "the system's keyring"
    assert "k" * 30 not in file.read_text()
    assert config.access() == ("https://api.example.com", "k" * 30)
    assert Client.from_profile().url == "https://api.example.com"
    assert config.forget("default")
    assert keyring.kept == {}
    config.store("default", "https://api.example.com", "k" * 30)
    keyring.kept.clear()
    with pytest.raises(ConfigurationError, match="keyring has no key for profile 'default'"):
        config.access()
    assert config.forget("default"), "a key that was deleted by hand is no obstacle"


def test_a_key_may_stay_out_of_the_keyring(home: Path, keyring: Keyring, file: Path) -> None:
    assert config.store("default", "https://api.example.com", "k" * 30, use_keyring=False) == str(file)
    assert keyring.kept == {}


def test_a_keyring_that_refuses_is_said_to_and_the_file_is_used(
    home: Path, keyring: Keyring, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.store("other", "https://api.example.com", "k" * 30)
    keyring.locked = True
    assert config.store("default", "https://api.example.com", "k" * 30) == str(file)
    assert notices.warnings == ["the keyring does not take the key (locked); it goes to a file"]
    notices.warnings.clear()
    with pytest.raises(ConfigurationError, match=r"does not give the key of 'other' \(locked\): unlock it"):
        config.access("other")
    with pytest.raises(ConfigurationError, match="does not delete the key: locked"):
        config.forget("other")


def test_a_keyring_that_is_gone_is_explained(
    home: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.store("default", "https://api.example.com", "k" * 30)
    keyring.priority = 0.5  # a plain file, which the package does not recommend
    with pytest.raises(
        ConfigurationError, match=r"cannot be used here: pip install 'knock-client\[keyring\]'"
    ):
        config.access()
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigurationError, match="cannot be used here"):
        config.access()
    assert config.forget("default")


def test_the_key_of_a_login_is_in_no_process_list(home: Path, double: Double) -> None:
    double.faults = [10]
    with subprocess.Popen(
        ["knock", "login", "--url", double.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        running.stdin.write(double.keys["alice"] + "\n")
        running.stdin.flush()
        from tests.clients.conftest import wait_until

        wait_until(lambda: double.calls("GET") == 1)
        listed = subprocess.run(
            ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
        ).stdout
        running.kill()
    assert "knock login" in listed
    assert double.keys["alice"] not in listed
