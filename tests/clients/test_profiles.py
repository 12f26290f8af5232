"""Profiles: where a key is stored, who can read it, and to which URL it is sent."""

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
from tests.clients.conftest import Result
from tests.clients.double import Double
from tests.waiting import wait_for

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not use the keyring of this machine."""
    monkeypatch.setitem(sys.modules, "keyring", None)


@pytest.fixture
def file(home: Path) -> Path:
    return home / ".config" / "knock" / "config.json"


@pytest.fixture
def login(home: Path, spawn: Run, double: Double) -> Callable[..., Result]:
    def log_in(principal: str = "alice", *words: str) -> Result:
        return spawn("knock", "login", "--url", double.url, *words, stdin=double.keys[principal] + "\n")

    return log_in


def test_a_key_from_a_pipe_is_tried_and_stored_for_its_owner_only(
    no_umask: None, login: Run, run: Run, double: Double, file: Path
) -> None:
    result = login()
    assert (result.code, result.out) == (0, f"profile default: alice at {double.url}, key in {file}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["config.json"], "no temporary file is left"
    assert run("whoami", "-q").out == "alice\n"
    assert double.keys["alice"] not in result.out + result.err


def test_a_wrong_key_is_not_stored(spawn: Run, double: Double, file: Path) -> None:
    result = spawn("knock", "login", "--url", double.url, stdin="no-such-key-00000000\n")
    assert (result.code, result.out) == (1, "")
    assert "The key is not accepted" in result.err
    assert not file.exists()
    assert spawn("knock", "login", "--url", double.url, stdin="").code == 2


def test_a_key_can_be_stored_without_trying_it(spawn: Run, file: Path) -> None:
    result = spawn(
        "knock", "login", "--no-check", "--url", "https://api.example.com/prod/knock", stdin="k" * 30
    )
    assert result.out == f"profile default: https://api.example.com/prod, key in {file}\n"


def test_without_a_terminal_the_url_must_be_named(spawn: Run) -> None:
    result = spawn("knock", "login", stdin="key\n")
    assert result.code == 2
    assert "--url URL" in result.err


def test_login_prompts_for_url_and_key_on_a_terminal_and_does_not_echo_the_key(
    home: Path, double: Double, run: Run
) -> None:
    # The program gets a terminal of its own; pty.spawn forks, so a process without threads calls it.
    code = "import pty, sys; sys.exit(pty.spawn(['knock', 'login']) >> 8)"
    running = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    terminal, typed = running.stdout.fileno(), running.stdin.fileno()
    output = b""

    def read_until(words: bytes) -> None:
        nonlocal output
        while words not in output:
            output += os.read(terminal, 4096)

    read_until(b"URL of the API: ")
    os.write(typed, double.url.encode() + b"\n")
    read_until(b"API key (it is not shown): ")
    os.write(typed, double.keys["alice"].encode() + b"\n")
    read_until(b"key in ")
    running.communicate(timeout=10)
    assert running.returncode == 0
    assert double.keys["alice"].encode() not in output
    assert run("whoami", "-q").out == "alice\n"


def test_no_key_at_the_prompt_stores_nothing(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, double: Double
) -> None:
    def closed(*args: Any) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", closed)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    result = run("login", "--url", double.url)
    assert (result.code, result.err) == (2, "knock: no key was given\n")
    assert not file.exists()


def test_profiles_are_selected_listed_and_deleted(
    login: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("alice")
    login("bob", "--profile", "work")
    assert run("whoami", "-q").out == "alice\n"
    assert run("whoami", "-q", "--profile", "work").out == "bob\n"
    monkeypatch.setenv("KNOCK_PROFILE", "work")
    assert run("whoami", "-q").out == "bob\n"
    assert run("whoami", "-q", "--profile", "default").out == "alice\n"
    table = run("profiles").out.splitlines()
    assert table[0].split() == ["PROFILE", "URL", "KEY", "IN"]
    assert table[2].startswith("*  work")
    assert table[2].endswith("  file")
    assert run("profiles", "-q").out == "default\nwork\n"
    listing = json.loads(run("profiles", "--json").out)["profiles"]
    assert listing[1]["name"] == "work"
    assert listing[1]["current"]
    assert "key" not in listing[1]
    assert run("logout").out == "profile work is deleted\n"
    assert run("logout").code == 2
    assert json.loads(run("logout", "--profile", "default", "--json").out) == {"profile": "default"}
    assert run("profiles").err == "knock: no profile is stored: run `knock login`\n"


def test_the_error_for_an_unknown_profile_names_the_stored_ones(login: Run, run: Run) -> None:
    assert (
        run("ls").err == "knock: no API is known yet: run `knock login`, or set KNOCK_URL and KNOCK_API_KEY\n"
    )
    login("alice", "--profile", "work")
    result = run("ls", "--profile", "home")
    assert result.code == 2
    assert "there is no profile 'home'; there is: work" in result.err


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
    elsewhere = Double()
    monkeypatch.setenv("KNOCK_URL", elsewhere.url)
    result = run("whoami")
    assert result.code == 2
    assert "it is not sent elsewhere" in result.err
    assert elsewhere.requests == []
    monkeypatch.setenv("KNOCK_API_KEY", elsewhere.keys["bob"])
    assert run("whoami", "-q").out == "bob\n"
    elsewhere.stop()
    monkeypatch.delenv("KNOCK_API_KEY")
    monkeypatch.setenv("KNOCK_URL", double.url + "/")
    assert run("whoami", "-q").out == "alice\n", "the profile's own URL may be set too"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(login: Run, run: Run, file: Path, mode: int) -> None:
    login("alice")
    file.chmod(mode)
    result = run("whoami")
    assert (result.code, result.out) == (2, "")
    assert f"{file} can be changed by others; close it with: chmod 600 {file}" in result.err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
def test_a_file_that_others_can_read_is_used_with_a_warning(
    login: Run, run: Run, file: Path, mode: int
) -> None:
    login("alice")
    file.chmod(mode)
    result = run("whoami")
    assert result.code == 0
    warning = f"knock: others on this machine can read the key in {file}; if it is yours: chmod 600 {file}\n"
    assert result.err == warning
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
def test_a_broken_file_is_an_error_that_names_it(run: Run, file: Path, content: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(content)
    file.chmod(0o600)
    result = run("whoami")
    assert result.code == 2
    assert str(file) in result.err


def test_a_file_that_cannot_be_read_or_written_is_an_error_and_no_traceback(
    login: Run, file: Path, run: Run
) -> None:
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
    dotfile = tmp_path / "dotfiles.json"
    file.rename(dotfile)
    file.symlink_to(dotfile)
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
    """The part of the keyring package that is used, over a dict."""

    class KeyringError(Exception):
        pass

    class PasswordDeleteError(KeyringError):
        pass

    def __init__(self, priority: float = 5) -> None:
        super().__init__("keyring")
        self.passwords: dict[tuple[str, str], str] = {}
        self.locked = False
        self.priority = priority
        self.errors = self

    def get_keyring(self) -> Any:
        return self

    def set_password(self, service: str, name: str, key: str) -> None:
        self._check()
        self.passwords[service, name] = key

    def get_password(self, service: str, name: str) -> str | None:
        self._check()
        return self.passwords.get((service, name))

    def delete_password(self, service: str, name: str) -> None:
        self._check()
        if (service, name) not in self.passwords:
            raise self.PasswordDeleteError("not there")
        del self.passwords[service, name]

    def _check(self) -> None:
        if self.locked:
            raise self.KeyringError("locked")


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    package = Keyring()
    monkeypatch.setitem(sys.modules, "keyring", package)
    monkeypatch.setitem(sys.modules, "keyring.errors", package)
    return package


def test_the_keyring_keeps_the_key_where_there_is_one(home: Path, keyring: Keyring, file: Path) -> None:
    assert config.store("default", "https://api.example.com", "k" * 30) == "the system's keyring"
    assert "k" * 30 not in file.read_text()
    assert config.access() == ("https://api.example.com", "k" * 30)
    assert Client.from_profile().url == "https://api.example.com"
    assert config.forget("default")
    assert keyring.passwords == {}
    config.store("default", "https://api.example.com", "k" * 30)
    keyring.passwords.clear()
    with pytest.raises(ConfigurationError, match="keyring has no key for profile 'default'"):
        config.access()
    assert config.forget("default"), "a key that was deleted by hand is no obstacle"


def test_a_key_may_stay_out_of_the_keyring(home: Path, keyring: Keyring, file: Path) -> None:
    assert config.store("default", "https://api.example.com", "k" * 30, use_keyring=False) == str(file)
    assert keyring.passwords == {}


def test_a_keyring_that_refuses_is_a_warning_and_the_file_is_used(
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
        wait_for(lambda: double.calls("GET") == 1)
        listed = subprocess.run(
            ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
        ).stdout
        running.kill()
    assert "knock login" in listed
    assert double.keys["alice"] not in listed
