"""Where a key comes from: variables, a file, the keyring. A missing one is named, and waits are bounded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from knock import Client, ConfigurationError, config, keyrings, notices
from tests.clients.conftest import Result
from tests.clients.double import Double
from tests.clients.test_profiles import Keyring, keyring, owned_by_another

Run = Callable[..., Result]
__all__ = ["keyring"]  # a fixture


@pytest.fixture(autouse=True)
def _alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "warnings", [])


@pytest.fixture
def key_file(double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key in a file that KNOCK_KEY_FILE names, and the API's URL beside it."""
    file = tmp_path / "key"
    file.write_text(double.keys["alice"] + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_KEY_FILE", str(file))
    return file


def test_a_key_is_read_from_the_file_that_is_named(
    run: Run, double: Double, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("whoami", "-q")
    assert (result.out, result.err) == ("alice\n", "")
    with Client.from_profile() as client:
        assert client.whoami().principal.name == "alice"
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    assert run("whoami", "-q").out == "bob\n", "the variable wins"
    monkeypatch.setenv("KNOCK_API_KEY", "")
    assert run("whoami", "-q").out == "alice\n", "an empty variable does not hide the file"


def test_a_secret_that_a_platform_mounts_is_used_with_a_warning_if_others_can_read_it(
    run: Run, key_file: Path
) -> None:
    mounted = key_file.with_name("..data")
    key_file.rename(mounted)
    key_file.symlink_to(mounted)  # as Kubernetes does
    assert run("whoami", "-q").out == "alice\n"
    mounted.chmod(0o444)
    result = run("whoami")
    warning = f"knock: others on this machine can read the key in {key_file}; if it is yours: chmod 600"
    assert (result.code, result.err) == (0, f"{warning} {key_file}\n")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_key_file_that_others_can_write_is_refused(
    run: Run, double: Double, key_file: Path, mode: int
) -> None:
    """Mutation: clients/knock/config.py: `& 0o022` -> `& 0o002`"""
    key_file.chmod(mode)
    result = run("whoami")
    assert (result.code, double.requests) == (2, [])
    assert f"{key_file} can be changed by others; close it with: chmod 600 {key_file}" in result.err


def test_a_key_file_of_another_user_is_refused(
    run: Run, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by_another(monkeypatch)
    assert f"{key_file} belongs to another user" in run("whoami").err


@pytest.mark.parametrize("way", ["itself", "a link", "its target", "a hard link", "a link to another file"])
def test_a_stored_key_that_is_named_goes_only_to_the_url_it_was_stored_with(
    run: Run, double: Double, home: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Mutation: clients/knock/config.py: `if folder is None:` -> `if True:`"""
    folder = config.config_folder()
    folder.mkdir(parents=True)
    stored, named = folder / ("another" if way == "a link to another file" else "key"), home / "named"
    key_file.rename(stored)
    if way == "itself":
        named = stored
    elif way.startswith("a link"):
        named.symlink_to(stored)
    elif way == "its target":
        stored.rename(named)
        stored.symlink_to(named)
    else:
        named.hardlink_to(stored)
    monkeypatch.setenv("KNOCK_KEY_FILE", str(named))
    for url in (None, "https://api.example.com/prod/knock\n"):
        if url:
            (folder / "url").write_text(url)
        result = run("whoami")
        assert (result.code, result.out, double.requests) == (2, "", [])
        assert f"KNOCK_URL is {double.url}, and the key in {named} is for " in result.err
        assert "it is not sent elsewhere" in result.err
    (folder / "url").write_text(double.url + "/knock\n")
    assert run("whoami", "-q").out == "alice\n", "its own URL"
    (folder / "url").unlink()
    config.store("default", double.url, double.keys["bob"], use_keyring=False)
    monkeypatch.delenv("KNOCK_URL")
    assert run("whoami", "-q").out == "alice\n", "the profile's URL"


def test_a_key_file_in_a_cycle_of_links_is_an_error_and_no_traceback(run: Run, key_file: Path) -> None:
    key_file.unlink()
    key_file.symlink_to(key_file)
    result = run("whoami")
    assert (result.code, "cannot be read" in result.err) == (2, True)


def test_a_key_file_that_is_missing_or_empty_is_named(run: Run, double: Double, key_file: Path) -> None:
    for content in ("", "\n", "  \nkey on the second line\n"):
        key_file.write_text(content)
        result = run("whoami")
        assert (result.code, f"{key_file} is empty: the key is missing" in result.err) == (2, True)
    key_file.unlink()
    assert f"KNOCK_KEY_FILE is {key_file}, and there is no such file" in run("whoami").err
    assert double.requests == []


@pytest.mark.parametrize("name", ["KNOCK_URL", "KNOCK_API_KEY", "KNOCK_KEY_FILE"])
def test_a_secret_that_is_missing_is_named(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    config.store("default", double.url, double.keys["alice"])
    monkeypatch.setenv(name, "")
    for command in (["bastion"], ["run", "bastion", "--", "true"], ["ssh-hook"]):
        result = run(*command)
        assert (result.code, double.requests) == (2, []), "the stored profile is not used instead"
        assert result.err.startswith(f"knock: {name} is empty: is the secret given to this job?")


def test_a_url_without_a_key_says_that_the_key_is_missing(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    result = run("bastion")
    assert (result.code, result.err.startswith("knock: KNOCK_API_KEY is not set")) == (2, True)


# ---------------------------------------------------------------------- the keyring


class Odd(Exception):
    """An exception that no keyring documents."""


@pytest.fixture
def in_keyring(keyring: Keyring, double: Double) -> Keyring:
    """A profile whose key is in the keyring."""
    config.store("default", double.url, double.keys["alice"])
    return keyring


def test_a_keyring_that_never_answers_is_given_up(
    run: Run, in_keyring: Keyring, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a knock, the hook and a job this is an error of one line; for login the key goes to the file.

    Mutation: clients/knock/keyrings.py: `thread.join(patience)` -> `thread.join(5)`
    """
    never = threading.Event()
    monkeypatch.setattr(in_keyring, "_check", lambda: never.wait(60))
    monkeypatch.setattr(keyrings, "PATIENCE", 0.2)
    monkeypatch.setattr("knock.session.Limits.__new__.__defaults__", (32.0, 5.0, 3, 0.2))
    monkeypatch.setattr("knock.sshconfig.KEYRING", 0.2)
    waits: list[float | None] = []

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            waits.append(timeout)
            super().join(timeout)

    monkeypatch.setattr(keyrings, "threading", SimpleNamespace(Thread=Thread))
    for words in (["bastion"], ["ssh-hook"], ["run", "bastion", "--", "true"]):
        result = run(*words)
        assert result.code == 3
        assert "the keyring does not give the key of 'default' (it did not answer within 0.2 s)" in result.err
        assert "knock login --no-keyring" in result.err
        assert result.err.count("\n") == 1
    assert double.requests == []
    assert config.store("work", double.url, double.keys["bob"]).endswith("config.json")
    result = run("whoami", "-q", "--profile", "work")
    assert result.out == "bob\n"
    never.set()
    assert waits
    assert set(waits) == {0.2}, "no call of the keyring is waited for longer"


def test_completion_offers_nothing_when_the_keyring_is_locked(run: Run, in_keyring: Keyring) -> None:
    in_keyring.locked = True
    result = run("__complete", "revoke", "")
    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize(
    "error", [Odd("org.freedesktop.DBus"), RuntimeError(), OSError(5, "io"), TypeError("x")]
)
def test_a_keyring_that_fails_in_a_way_of_its_own_is_no_traceback(
    run: Run, in_keyring: Keyring, double: Double, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(in_keyring, "_check", fail)
    result = run("bastion")
    assert (result.code, "the keyring does not give the key of 'default' (" in result.err) == (3, True)
    assert config.store("default", double.url, double.keys["alice"]).endswith("config.json")
    assert notices.warnings[0].startswith("the keyring does not take the key (")
    assert run("whoami", "-q").out == "alice\n"


def test_a_keyring_package_that_does_not_import_is_treated_as_missing(
    double: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keyring.py").write_text("raise AttributeError('a broken backend')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("keyring", "keyring.errors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert config.store("default", double.url, double.keys["alice"]).endswith("config.json")
    assert notices.warnings == ["the keyring does not take the key (a broken backend); it goes to a file"]


def test_a_login_whose_keyring_refuses_prints_one_line(
    run: Run, keyring: Keyring, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    keyring.locked = True
    monkeypatch.setattr("sys.stdin", io.StringIO(double.keys["alice"] + "\n"))
    result = run("login", "--url", double.url)
    assert result.code == 0
    assert result.err == "knock: the keyring does not take the key (locked); it goes to a file\n"
    keyring.locked = False
    config.store("default", double.url, double.keys["alice"])
    keyring.locked = True
    with pytest.raises(ConfigurationError, match="does not delete the key"):
        config.forget("default")
