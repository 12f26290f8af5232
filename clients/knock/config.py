"""The client's configuration: profiles (a URL and its key), and the files that have them.

The environment takes precedence: KNOCK_URL, KNOCK_API_KEY or KNOCK_KEY_FILE, KNOCK_PROFILE. Profiles are in
`config.json` in the platform's config folder (or below XDG_CONFIG_HOME, on any platform). A key is in the
system's keyring if the `keyring` package is installed and has a usable keyring, else in that file.

A file with a key is refused if others than its owner (or root) can write it, since they could replace the
key. If others can read it, it is used, with a warning. ssh refuses such a file too, but that would not work
for jobs: container platforms mount secrets as links to files that all may read (0444, 0644). The files that
this program writes are readable by their owner only.

A stored key is sent only to the URL that it was stored with. If KNOCK_URL has another URL, for instance from
a project's `.envrc`, the profile's key is not sent there. Nor is a key in a file of the configuration folder
that KNOCK_KEY_FILE names: knock.sh stores its key there, and the same `.envrc` may name it.

The files are JSON, since Python 3.10 cannot read TOML and INI files need percent signs escaped. The folders
are found here, in a few lines, and not by platformdirs, which would be a dependency.
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
LARGEST_FILE = 1024 * 1024  # bytes; files of this program are about a thousandth of it

# ---------------------------------------------------------------------- folders and private files


def config_folder() -> Path:
    """Give the folder of the profiles, which may not exist yet. Raises NoHome."""
    return _folder("XDG_CONFIG_HOME", ".config", "Library/Application Support", "APPDATA")


def state_folder() -> Path:
    """Give the folder of cached data, which may be deleted at any time. Raises NoHome."""
    return _folder("XDG_STATE_HOME", ".local/state", "Library/Caches", "LOCALAPPDATA")


def _folder(variable: str, unix: str, mac: str, windows: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():  # the XDG specification says that relative paths are ignored
        try:
            if sys.platform == "win32":
                base = Path(os.environ.get(windows) or Path.home())
            else:
                base = Path.home() / (mac if sys.platform == "darwin" else unix)
        except RuntimeError:  # no HOME, and no entry in passwd, as in many containers
            raise NoHome(f"this user has no home folder: set HOME or {variable}") from None
    return base / "knock"


class NoHome(ConfigurationError):
    """The user has no home folder, and so no folder for files."""


class BrokenFile(ConfigurationError):
    """The content of a file is not in the format that this program writes."""


def _open_checked(path: Path, holds_key: Callable[[bytes], bool]) -> str:
    """Read a text file that may have a key.

    Raises FileNotFoundError; ConfigurationError if others can write it, or it cannot be read or is no plain
    file; BrokenFile if it is too large or no text. There is a warning if others can read the key in it.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
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
    """Say whether a file of profiles has a key; the keys may all be in the keyring."""
    return b'"key"' in content


def _is_key(_content: bytes) -> bool:
    """Say that a file has a key, as the one that KNOCK_KEY_FILE names always has."""
    return True


def read_private(path: Path) -> Any:
    """Read a JSON file of this program; None if it does not exist.

    Raises ConfigurationError if others can write it, and BrokenFile, a kind of it, if it is not JSON.
    """
    try:
        return json.loads(_open_checked(path, _has_key))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path} is not JSON as `knock login` writes it: {error}") from error


def set_aside(path: Path) -> None:
    """Rename a file that cannot be used, with a warning, so that its content is not lost."""
    new_path = path.with_name(f"{path.name}.unusable")
    with contextlib.suppress(OSError):
        path.replace(new_path)
        notices.warn(f"{path} did not hold what this program writes, and was set aside as {new_path}")


def write_private(path: Path, value: Any) -> None:
    """Write, atomically, a JSON file that only its owner can read. Raises ConfigurationError."""
    try:
        path = path.resolve()  # keeps a link, and writes the file that it points to
        new = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)
        # With O_EXCL and the mode at creation, others can never open the file.
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
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links
        raise ConfigurationError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error


# ---------------------------------------------------------------------- profiles


def profile_name(named: str | None = None) -> str:
    """Give the profile to use: the named one, or KNOCK_PROFILE, or "default"."""
    return named or os.environ.get("KNOCK_PROFILE") or DEFAULT_PROFILE


def profiles() -> dict[str, dict[str, str]]:
    """Give the stored profiles by name: `url`, and `key` unless it is in the keyring. Raises BrokenFile."""
    try:
        path = config_folder() / "config.json"
    except NoHome:
        return {}
    stored = read_private(path)
    if stored is None:
        return {}
    listed = stored.get("profiles", {}) if isinstance(stored, dict) else None
    if not isinstance(listed, dict) or not all(map(_is_profile, listed.values())):
        raise BrokenFile(
            f"{path} is not as `knock login` writes it: mend it, or log in anew, which sets it aside"
        )
    return listed


def _is_profile(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("url"), str)
        and isinstance(value.get("key", ""), str)
    )


def address(profile: str | None = None) -> str:
    """Give the API's URL. It does not use the keyring. Raises ConfigurationError."""
    _refuse_empty("KNOCK_URL")
    if url := os.environ.get("KNOCK_URL"):
        return url
    if url := profiles().get(profile_name(profile), {}).get("url"):
        return url
    raise _nothing_stored(profile)


def access(profile: str | None = None, *, patience: float = 20.0) -> tuple[str, str]:
    """Give the API's URL and key. Raises ConfigurationError, which says what is missing and what to do.

    `patience` is the time for the keyring, in seconds: it may ask a person to unlock it.
    """
    url = address(profile)
    if key := os.environ.get("KNOCK_API_KEY"):
        return url, key
    if file := os.environ.get("KNOCK_KEY_FILE"):
        _refuse_elsewhere(Path(file), url, profile)
        return url, _key_in(Path(file))
    _refuse_empty("KNOCK_API_KEY", "KNOCK_KEY_FILE")
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


def _refuse_empty(*names: str) -> None:
    """Raise ConfigurationError for an empty variable: most likely a job lacks the secret."""
    for name in names:
        if os.environ.get(name) == "":
            raise ConfigurationError(
                f"{name} is empty: is the secret given to this job? (Forks are given none.) To use what "
                f"`knock login` stored, unset {name}"
            )


def _refuse_elsewhere(path: Path, url: str, profile: str | None) -> None:
    """Raise ConfigurationError if a file is a stored key, and the URL not the profile's or knock.sh's."""
    folder = _stored_in(path)
    if folder is None:
        return
    from .urls import clean_url

    stored = [profiles().get(profile_name(profile), {}).get("url", "")]
    with contextlib.suppress(FileNotFoundError):
        stored += _open_checked(folder / "url", lambda _: False).splitlines()[:1]
    stored = [text for text in stored if text.strip()]
    if clean_url(url) not in map(clean_url, stored):
        known = " or ".join(stored) or f"the URL in {folder / 'url'}, where there is none"
        raise ConfigurationError(
            f"KNOCK_URL is {url}, and the key in {path} is for {known}: it is not sent elsewhere. "
            "Set KNOCK_API_KEY too, or unset KNOCK_URL"
        )


def _stored_in(path: Path) -> Path | None:
    """Give the configuration folder, of this program or knock.sh, that a file is in; links are followed.

    A file outside is in it too if the folder's `key` is a link to it.
    """
    try:
        for folder in (config_folder(), _folder("XDG_CONFIG_HOME", ".config", ".config", "APPDATA")):
            if path.resolve().is_relative_to(folder.resolve()):
                return folder
            with contextlib.suppress(OSError):
                if path.samefile(folder / "key"):
                    return folder
    except (NoHome, OSError, RuntimeError):  # RuntimeError: a cycle of links, which cannot be read either
        pass
    return None


def _key_in(path: Path) -> str:
    """Read the key from the file that KNOCK_KEY_FILE names: its first line. Raises ConfigurationError."""
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
    """Store a profile, in place of one of that name. Gives the place of its key: the keyring, or the file."""
    path = config_folder() / "config.json"
    try:
        listed = profiles()
    except BrokenFile:
        set_aside(path)
        listed = {}
    in_keyring = False
    if use_keyring:
        from .keyrings import write_key

        in_keyring = write_key(profile, key)
    listed[profile] = {"url": url} if in_keyring else {"url": url, "key": key}
    write_private(path, {"profiles": listed})
    return "the system's keyring" if in_keyring else str(path)


def forget(profile: str) -> bool:
    """Delete a profile and its key. False if there was none."""
    listed = profiles()
    stored = listed.pop(profile, None)
    if stored is None:
        return False
    if "key" not in stored:
        from .keyrings import delete_key

        delete_key(profile)
    write_private(config_folder() / "config.json", {"profiles": listed})
    return True
