"""Where the client keeps what it was told: profiles (a URL and its key), and what it knows for a while.

The environment wins: KNOCK_URL, KNOCK_API_KEY or KNOCK_KEY_FILE, KNOCK_PROFILE. Below it, `config.json` in
the platform's config folder (XDG_CONFIG_HOME on any platform, where set) holds the profiles. A key is in the
system's keyring when the `keyring` package is installed and has a keyring to use, else in that file.

One rule for every file that holds a key: what others than its owner (or root) can write is refused, since
they could have somebody else's key used in one's name; what others can read is used, and said. To refuse that
too, as ssh does, would not do where jobs run: container platforms mount secrets as links to files that all
may read (0444, 0644), and a key that was read has been read. What this program writes is readable by its
owner only.

A stored key goes only to the URL it was stored with. KNOCK_URL alone, say from a project's `.envrc`,
does not get a profile's key sent elsewhere.

JSON, since Python 3.10 reads no TOML and INI mangles percent signs; the folders are found by ten lines
here and not by platformdirs, to stay without dependencies.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import notices
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_PROFILE = "default"
LARGEST_FILE = 1024 * 1024  # bytes; ours are a thousandth of it

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
        try:
            if sys.platform == "win32":
                base = Path(os.environ.get(windows) or Path.home())
            else:
                base = Path.home() / (mac if sys.platform == "darwin" else elsewhere)
        except RuntimeError:  # no HOME, and no entry in passwd, as in many containers
            raise NoHome(f"this user has no home folder: set HOME or {variable}") from None
    return base / "knock"


class NoHome(ConfigurationError):
    """There is no folder to keep anything in."""


class BrokenFile(ConfigurationError):
    """A file of ours does not hold what this program writes."""


def _open_checked(path: Path, holds_key: Callable[[bytes], bool]) -> str:
    """Read a file that may hold a key, as text.

    Raises FileNotFoundError, or ConfigurationError when others can write it, or it is no plain file, or
    unreadable.
    """
    try:
        # Without O_NONBLOCK a named pipe would keep us waiting for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{path} is not a plain file")
            if os.name == "posix":
                if stat.S_IMODE(status.st_mode) & 0o022:
                    raise ConfigurationError(
                        f"{path} can be changed by others; close it with: chmod 600 {path}"
                    )
                if status.st_uid not in (0, os.geteuid()):
                    raise ConfigurationError(f"{path} belongs to another user, who can change it")
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise BrokenFile(f"{path} is larger than any file of Knock's")
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o044 and holds_key(content):
        notices.warn(f"others on this machine can read the key in {path}; if it is yours: chmod 600 {path}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BrokenFile(f"{path} is not a text as `knock login` writes it: {error}") from error


def _has_key(content: bytes) -> bool:
    """Say whether a file of profiles has a key in it; the keyring may have them all."""
    return b'"key"' in content


def _is_key(_content: bytes) -> bool:
    return True


def read_private(path: Path) -> Any:
    """Read a JSON file of ours, or give None when there is none.

    Raises ConfigurationError when others can change it; BrokenFile, which is one, when it is not JSON.
    """
    try:
        return json.loads(_open_checked(path, _has_key))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path} is not JSON as `knock login` writes it: {error}") from error


def set_aside(path: Path) -> None:
    """Rename a file that cannot be used, and say so: what it holds may still be wanted by a person."""
    aside = path.with_name(f"{path.name}.unusable")
    with contextlib.suppress(OSError):
        path.replace(aside)
        notices.warn(f"{path} did not hold what this program writes, and was set aside as {aside}")


def write_private(path: Path, value: Any) -> None:
    """Write a JSON file that only its owner can read, whole or not at all. Raises ConfigurationError."""
    try:
        path = path.resolve()  # a link to a file kept elsewhere stays a link
        new = path.with_name(f".{path.name}.{os.getpid()}")
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
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ConfigurationError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error


# ---------------------------------------------------------------------- profiles


def profile_name(asked: str | None = None) -> str:
    """Give the profile in use: the one asked for, or KNOCK_PROFILE, or "default"."""
    return asked or os.environ.get("KNOCK_PROFILE") or DEFAULT_PROFILE


def profiles() -> dict[str, dict[str, str]]:
    """Give the stored profiles by name: `url`, and `key` unless the keyring has it."""
    try:
        path = config_folder() / "config.json"
    except NoHome:
        return {}
    stored = read_private(path)
    if stored is None:
        return {}
    found = stored.get("profiles", {}) if isinstance(stored, dict) else None
    if not isinstance(found, dict) or not all(map(_is_profile, found.values())):
        raise BrokenFile(
            f"{path} is not as `knock login` writes it: mend it, or log in anew, which sets it aside"
        )
    return found


def _is_profile(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("url"), str)
        and isinstance(value.get("key", ""), str)
    )


def address(profile: str | None = None) -> str:
    """Give the API's URL alone: no key is read, no keyring asked. Raises ConfigurationError."""
    _name_what_is_empty("KNOCK_URL")
    if url := os.environ.get("KNOCK_URL"):
        return url
    if url := profiles().get(profile_name(profile), {}).get("url"):
        return url
    raise _nothing_stored(profile)


def access(profile: str | None = None, *, patience: float = 20.0) -> tuple[str, str]:
    """Give the API's URL and key. Raises ConfigurationError that says what is missing, and the way to it.

    `patience` is how many seconds a keyring may take, which may ask a person to unlock it.
    """
    url = address(profile)
    if key := os.environ.get("KNOCK_API_KEY"):
        return url, key
    if file := os.environ.get("KNOCK_KEY_FILE"):
        return url, _key_in(Path(file))
    _name_what_is_empty("KNOCK_API_KEY", "KNOCK_KEY_FILE")
    name = profile_name(profile)
    stored = profiles().get(name)
    if stored is None:
        if os.environ.get("KNOCK_URL") and not profiles():
            raise ConfigurationError(
                "KNOCK_API_KEY is not set, and KNOCK_URL alone opens nothing: set it, or KNOCK_KEY_FILE to a "
                "file with the key, or run `knock login`"
            )
        raise _nothing_stored(profile)
    if url.rstrip("/") != stored["url"]:
        raise ConfigurationError(
            f"KNOCK_URL is {url}, and the key of profile {name!r} is for {stored['url']}: it is not sent "
            "elsewhere. Set KNOCK_API_KEY too, or unset KNOCK_URL"
        )
    key = stored.get("key")
    if not key:
        from .keyrings import read_key

        key = read_key(name, patience)
    if not key:
        raise ConfigurationError(f"the keyring has no key for profile {name!r}: run `knock login`")
    return url, key


def _name_what_is_empty(*names: str) -> None:
    """Refuse a variable that is set to nothing: a secret that is missing, not a wish for what is stored."""
    for name in names:
        if os.environ.get(name) == "":
            raise ConfigurationError(
                f"{name} is empty: is the secret given to this job? (Forks are given none.) To use what "
                f"`knock login` stored, unset {name}"
            )


def _key_in(path: Path) -> str:
    """Read the key that KNOCK_KEY_FILE names: its first line."""
    try:
        lines = _open_checked(path, _is_key).splitlines()
    except FileNotFoundError:
        raise ConfigurationError(f"KNOCK_KEY_FILE is {path}, and there is no such file") from None
    if not lines or not lines[0].strip():
        raise ConfigurationError(f"{path} is empty: the key is missing (KNOCK_KEY_FILE names it)")
    return lines[0]


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
    path = config_folder() / "config.json"
    try:
        found = profiles()
    except BrokenFile:
        set_aside(path)
        found = {}
    in_keyring = False
    if use_keyring:
        from .keyrings import write_key

        in_keyring = write_key(profile, key)
    found[profile] = {"url": url} if in_keyring else {"url": url, "key": key}
    write_private(path, {"profiles": found})
    return "the system's keyring" if in_keyring else str(path)


def forget(profile: str) -> bool:
    """Delete a profile and its key. Says whether there was one."""
    found = profiles()
    stored = found.pop(profile, None)
    if stored is None:
        return False
    if "key" not in stored:
        from .keyrings import delete_key

        delete_key(profile)
    write_private(config_folder() / "config.json", {"profiles": found})
    return True
