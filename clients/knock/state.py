"""The state that this machine keeps: live grants, with which ssh's hook needs no call to the API, and words
for completion.

The files are in the platform's state folder, readable by their owner only, and without a key. An entry in
`grants.json` says until when which targets are open from a network (`knock.network.fingerprint`), through an
API. Times are by this machine's clock, from the seconds left in the API's answer, so a wrong clock does no
harm; an entry from the future was made before the clock was corrected, and is ignored. An entry is used until
a margin before the grant's end, so that no connection starts in its last seconds.

An entry also has the opener of its grant: a person (`hand`), a `script` (--quiet or --json), the ssh `hook`
or a `watch`. Each renews only grants of its own kind, since others may close theirs at any time.

The files are caches: if one is lost, that costs a call, or a grant stays open until it expires. Their content
may be anything, so each field is checked; an unusable file is renamed, with a warning. `opening()` is a lock
with which many ssh processes that start at once knock only once, and all fail if that knock fails.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from . import config
from .errors import CannotReach, ConfigurationError, KnockError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .values import Grant

Opener = Literal["hand", "script", "hook", "watch"]

OPENERS = ("hand", "script", "hook", "watch")
AHEAD = 5.0  # seconds by which an entry may be from the future: a clock may be set back a little
MARGIN = 60.0  # seconds before its end from which on a grant is not used, or a tenth of its duration


def _read(name: str) -> Any:
    try:
        path = config.state_folder() / name
    except config.NoHome:
        return None
    try:
        return config.read_private(path)
    except config.BrokenFile:
        config.set_aside(path)
    except ConfigurationError:
        pass  # others can write it, or it cannot be read: it is not used
    return None


def _write(name: str, value: Any) -> None:
    # A failure costs calls to the API, but the command has succeeded.
    with contextlib.suppress(ConfigurationError):
        config.write_private(config.state_folder() / name, value)


def _entries() -> list[dict[str, Any]]:
    stored = _read("grants.json")
    if stored is None:
        return []
    if not isinstance(stored, list) or not all(map(_is_entry, stored)):
        with contextlib.suppress(config.NoHome):
            config.set_aside(config.state_folder() / "grants.json")
    if not isinstance(stored, list):
        return []
    now = time.time()
    return [entry for entry in stored if _is_entry(entry) and entry["at"] - AHEAD <= now < entry["until"]]


def _is_entry(entry: object) -> bool:
    """Say whether an entry has the format that `remember` writes, field by field."""
    if not isinstance(entry, dict):
        return False
    texts = ("id", "principal", "url", "network", "by", "source")
    targets = entry.get("targets")
    return (
        all(isinstance(entry.get(name), str) for name in texts)
        and entry["by"] in OPENERS
        and all(_is_number(entry.get(name)) for name in ("at", "until", "duration"))
        and isinstance(entry.get("all"), bool)
        and isinstance(targets, list)
        and all(isinstance(name, str) for name in targets)
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def known(url: str, targets: Sequence[str], network: str, family: int | None = None) -> dict[str, Any] | None:
    """Give the entry of a grant that opens these targets, or without targets all, from a network; else None.

    `family` is 4 or 6 if the grant has to be for IPv4 or IPv6.
    """
    for entry in _entries():
        if entry.get("url") != url or entry.get("network") != network:
            continue
        if family and (":" in entry["source"]) != (family == 6):
            continue
        margin = min(MARGIN, entry.get("duration", 0) / 10)
        if entry["until"] - margin <= time.time():
            continue
        if set(targets) <= set(entry.get("targets", ())) if targets else entry.get("all"):
            return entry
    return None


def opened_by(opener: Opener, url: str, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Give the live entries with an opener, for exactly these targets, or without targets for all.

    The entry that ends last is the first.
    """
    entries = [
        entry
        for entry in _entries()
        if (entry.get("by"), entry.get("url")) == (opener, url)
        and (set(targets) == set(entry.get("targets", ())) if targets else entry.get("all"))
    ]
    return sorted(entries, key=lambda entry: -entry["until"])


def entry(grant_id: str) -> dict[str, Any] | None:
    """Give the live entry of a grant, or None."""
    return next((entry for entry in _entries() if entry.get("id") == grant_id), None)


def remember(url: str, grant: Grant, network: str, *, everything: bool, asked_at: float, by: Opener) -> None:
    """Store a grant, in place of an entry with its id.

    `everything` is True if the knock named no targets, and `asked_at` the time before the call, by this
    clock. `network` is empty if the grant is not for this network's address, or is not active yet.
    """
    entries = [entry for entry in _entries() if entry.get("id") != grant.id]
    entries.append(
        {
            "id": grant.id,
            "principal": grant.principal.id,
            "url": url,
            "network": network,
            "by": by,
            "targets": [target.name for target in grant.targets],
            "all": everything,
            "source": grant.source,
            "at": asked_at,
            "until": asked_at + grant.seconds_left,
            "duration": grant.seconds_left,
        }
    )
    _write("grants.json", entries)


def forget(*grant_ids: str, url: str | None = None) -> None:
    """Remove grants by id, or all grants of an API."""
    entries = _entries()
    remaining = [
        entry
        for entry in entries
        if entry.get("id") not in grant_ids and (url is None or entry.get("url") != url)
    ]
    if len(remaining) != len(entries):
        _write("grants.json", remaining)


class WatchSlot:
    """A place for the ids of a running watch's grants, from which the next watch reads them if it is killed.

    A slot is held with a lock on a file, which the system releases at the end of the process. So a watch gets
    the ids of a killed watch of the same name, and never those of a running one. Without file locks (Windows)
    or a state folder nothing is stored, and the grants of a killed watch stay open until they expire.
    """

    MOST = 32  # slots for watches of the same name

    def __init__(self, name: str) -> None:
        from hashlib import sha256

        self._file = ""
        self._lock: int | None = None
        stem = sha256(name.encode()).hexdigest()[:16]
        for number in range(self.MOST):
            file = f"watch-{stem}-{number}"
            self._lock = _lock_file(f"{file}.lock")
            if self._lock is not None:
                self._file = f"{file}.json"
                return

    @property
    def ids(self) -> list[str]:
        """The stored ids, oldest first."""
        stored = _read(self._file) if self._file else None
        if not isinstance(stored, list):
            return []
        return [grant_id for grant_id in stored if isinstance(grant_id, str)]

    def keep(self, grant_ids: Sequence[str]) -> None:
        """Store these ids in place of the former ones."""
        if self._file:
            _write(self._file, list(grant_ids))

    def close(self) -> None:
        """Release the slot, and the ids in it, for the next watch."""
        if self._lock is not None:
            os.close(self._lock)
        self._file, self._lock = "", None


def _lock_file(name: str) -> int | None:
    """Lock a file without waiting, and give its descriptor; None if it is locked, or cannot be."""
    try:
        import fcntl

        path = config.state_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError, ConfigurationError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def keep_words(url: str, kind: str, words: dict[str, str]) -> None:
    """Store words for completion, each with a description, in place of those of the same kind."""
    stored = _read("completion.json")
    if not isinstance(stored, dict):
        stored = {}
    if not isinstance(stored.get(url), dict):
        stored[url] = {}
    stored[url][kind] = {"at": time.time(), "words": words}
    _write("completion.json", stored)


def kept_words(url: str, kind: str, fresh: float = math.inf) -> dict[str, str] | None:
    """Give the stored words of a kind; None if there are none, or they are older than `fresh` seconds."""
    stored = _read("completion.json")
    for name in (url, kind):
        stored = stored.get(name) if isinstance(stored, dict) else None
    if (
        not isinstance(stored, dict)
        or not _is_number(at := stored.get("at"))
        or not 0 <= time.time() - at <= fresh
    ):
        return None
    words = stored.get("words")
    if not isinstance(words, dict):
        return None
    return {word: description for word, description in words.items() if isinstance(description, str)}


@contextlib.contextmanager
def opening(url: str = "", wait: float = 20.0) -> Iterator[None]:
    """Hold the lock under which the hooks of this user knock.

    Raises KnockError after `wait` seconds, and CannotReach if the hook that held the lock before could not
    reach the API: so many hooks at once have one timeout, and not each its own.
    """
    began = time.time()
    lock = _wait_for_lock(wait)
    try:
        _fail_as_others_did(url, began)
        try:
            yield
        except CannotReach as error:
            if lock is not None:
                _write("failed.json", {"at": time.time(), "url": url, "detail": str(error)})
            raise
    finally:
        if lock is not None:
            os.close(lock)


def _fail_as_others_did(url: str, began: float) -> None:
    failed = _read("failed.json")
    if not isinstance(failed, dict) or failed.get("url") != url:
        return
    if _is_number(at := failed.get("at")) and began < at <= time.time():
        raise CannotReach(f"{failed.get('detail')} (as another ssh has just found)")


def _wait_for_lock(wait: float) -> int | None:
    """Lock the file and give its descriptor; None if locks cannot be used. Raises KnockError after `wait` s.

    Without locks (on Windows, without a state folder, on some file systems) two hooks at once may both knock,
    and both grants stay open until they expire.
    """
    try:
        import fcntl

        folder = config.state_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError, ConfigurationError):
        return None
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise KnockError("another knock on this machine has been under way for too long") from None
            time.sleep(0.05)
        except OSError:
            os.close(descriptor)
            return None
        else:
            return descriptor
