"""Where the client keeps what it was told: profiles (a URL and its key), and what it knows for a while.

The environment wins: KNOCK_URL, KNOCK_API_KEY, KNOCK_PROFILE. Below it, `config.json` in the platform's
config folder (XDG_CONFIG_HOME on any platform, where set) holds the profiles. A key is in the system's
keyring when the `keyring` package is installed and has a keyring to use, else in that file, which is
readable by its owner only: a file that others can read is refused, as ssh does, not quietly mended.

A stored key goes only to the URL it was stored with. KNOCK_URL alone, say from a project's `.envrc`,
does not get a profile's key sent elsewhere.

JSON, since Python 3.10 reads no TOML and INI mangles percent signs; the folders are found by ten lines
here and not by platformdirs, to stay without dependencies.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from .errors import ConfigurationError

DEFAULT_PROFILE = "default"
KEYRING_SERVICE = "knock"


# ---------------------------------------------------------------------- folders and private files


def config_folder() -> Path:
    """Give the folder of the profiles; it may not exist yet."""
    return _folder("XDG_CONFIG_HOME", ".config", "Library/Application Support", "APPDATA")


def state_folder() -> Path:
    """Give the folder of what is known for a while: it may be deleted at any time."""
    return _folder("XDG_STATE_HOME", ".local/state", "Library/Caches", "LOCALAPPDATA")


def _folder(variable: str, elsewhere: str, mac: str, windows: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():  # the XDG specification: a relative path is to be ignored
        if sys.platform == "win32":
            base = Path(os.environ.get(windows) or Path.home())
        else:
            base = Path.home() / (mac if sys.platform == "darwin" else elsewhere)
    return base / "knock"


def read_private(path: Path) -> Any:
    """Read a JSON file of ours, or give None when there is none.

    Raises ConfigurationError when others than its owner can read or change it, or it is not JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if os.name == "posix":
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) & 0o077:
                    raise ConfigurationError(
                        f"{path} can be read or changed by others, and it may hold a key. "
                        f"Close it with: chmod 600 {path}"
                    )
                if status.st_uid != os.geteuid():
                    raise ConfigurationError(f"{path} belongs to another user, and is not trusted")
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON as `knock login` writes it: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def write_private(path: Path, value: Any) -> None:
    """Write a JSON file that only its owner can read, whole or not at all. Raises ConfigurationError."""
    path = path.resolve()  # a link to a file kept elsewhere stays a link
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)
        # O_EXCL and the mode at creation: at no moment is there a file that others could open.
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(value, file, indent=2, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


# ---------------------------------------------------------------------- profiles


def profile_name(asked: str | None = None) -> str:
    """Give the profile in use: the one asked for, or KNOCK_PROFILE, or "default"."""
    return asked or os.environ.get("KNOCK_PROFILE") or DEFAULT_PROFILE


def profiles() -> dict[str, dict[str, str]]:
    """Give the stored profiles by name: `url`, and `key` unless the keyring has it."""
    stored = read_private(config_folder() / "config.json")
    found = stored.get("profiles", {}) if isinstance(stored, dict) else None
    if stored is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ConfigurationError(f"{config_folder() / 'config.json'} is not as `knock login` writes it")
    return found


def address(profile: str | None = None) -> str:
    """Give the API's URL alone: no key is read, no keyring asked. Raises ConfigurationError."""
    url = os.environ.get("KNOCK_URL") or profiles().get(profile_name(profile), {}).get("url")
    if not url:
        raise _nothing_stored(profile)
    return url


def access(profile: str | None = None) -> tuple[str, str]:
    """Give the API's URL and key. Raises ConfigurationError that says what is missing, and the way to it."""
    url = address(profile)
    if key := os.environ.get("KNOCK_API_KEY"):
        return url, key
    name = profile_name(profile)
    stored = profiles().get(name)
    if stored is None:
        raise _nothing_stored(profile)
    if url.rstrip("/") != stored["url"]:
        raise ConfigurationError(
            f"KNOCK_URL is {url}, and the key of profile {name!r} is for {stored['url']}: it is not sent "
            "elsewhere. Set KNOCK_API_KEY too, or unset KNOCK_URL"
        )
    key = stored.get("key") or _from_keyring(name)
    if not key:
        raise ConfigurationError(f"the keyring has no key for profile {name!r}: run `knock login`")
    return url, key


def _nothing_stored(profile: str | None) -> ConfigurationError:
    name = profile_name(profile)
    known = ", ".join(sorted(profiles()))
    if known:
        return ConfigurationError(
            f"there is no profile {name!r}; there is: {known}. Add it with: knock login --profile {name}"
        )
    return ConfigurationError("no API is known yet: run `knock login`, or set KNOCK_URL and KNOCK_API_KEY")


def store(profile: str, url: str, key: str, *, use_keyring: bool = True) -> str:
    """Store a profile, and say where its key is: "keyring" or the file's path."""
    found = profiles()
    in_keyring = use_keyring and _to_keyring(profile, key)
    found[profile] = {"url": url} if in_keyring else {"url": url, "key": key}
    path = config_folder() / "config.json"
    write_private(path, {"profiles": found})
    return "the system's keyring" if in_keyring else str(path)


def forget(profile: str) -> bool:
    """Delete a profile and its key. Says whether there was one."""
    found = profiles()
    stored = found.pop(profile, None)
    if stored is None:
        return False
    if "key" not in stored:
        keyring = _keyring()
        if keyring is not None:
            try:
                keyring.delete_password(KEYRING_SERVICE, profile)
            except keyring.errors.PasswordDeleteError:
                pass  # gone already: deleted by hand
            except keyring.errors.KeyringError as error:
                raise ConfigurationError(f"the keyring does not delete the key: {error}") from error
    write_private(config_folder() / "config.json", {"profiles": found})
    return True


# ---------------------------------------------------------------------- keyring


def _keyring() -> Any:
    """Give the keyring package if it is installed and there is a keyring it can use, else None."""
    from importlib import import_module

    try:
        keyring = import_module("keyring")
        import_module("keyring.errors")
    except ImportError:
        return None
    # Below 1 the package itself does not recommend one: its stand-in for "none here", files in plain text.
    # https://keyring.readthedocs.io/en/latest/#writing-your-own-backend
    return keyring if keyring.get_keyring().priority >= 1 else None


def _to_keyring(profile: str, key: str) -> bool:
    keyring = _keyring()
    if keyring is None:
        return False
    try:
        keyring.set_password(KEYRING_SERVICE, profile, key)
    except keyring.errors.KeyringError as error:
        print(f"knock: the keyring does not take the key ({error}); it goes to a file", file=sys.stderr)
        return False
    return True


def _from_keyring(profile: str) -> str | None:
    keyring = _keyring()
    if keyring is None:
        raise ConfigurationError(
            f"the key of profile {profile!r} is in the system's keyring, which cannot be used here: "
            "pip install 'knock-client[keyring]', set KNOCK_API_KEY, or run `knock login` again"
        )
    try:
        key: str | None = keyring.get_password(KEYRING_SERVICE, profile)
    except keyring.errors.KeyringError as error:
        raise ConfigurationError(f"the keyring does not give the key of {profile!r}: {error}") from error
    return key
