"""What this machine knows for a while: its live grants, so that the ssh hook need not ask the API, and
the words that completion offers.

The files are in the platform's state folder, readable by their owner only; no key is in them. An entry in
`grants.json` says: from this network (`knock.network.fingerprint`), through this API, these targets are open
until then. The times are by this machine's own clock (seconds left when the API answered), so a wrong clock
does no harm; an entry from the future was made before the clock was put right, and is dropped. It counts
until a margin before the end, so that no connection starts on the last second.

An entry also says what opened its grant: a person (`hand`), a `script` (--quiet or --json), the ssh `hook` or
a `watch`. Each of them renews only its own kind: a script's id is the script's to end, and nobody else's.

The files are caches: lost or broken, they cost a call, or leave a grant to its own end. What is in them may
be anything, so each field is checked; a file that cannot be used is set aside, and that is said. `opening()`
is the lock that makes fifty ssh processes that start at once knock once, and fail at once when the one has
failed.
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
AHEAD = 5.0  # seconds that an entry may be from the future: clocks are set in steps, too
MARGIN = 60.0  # seconds before the end at which a grant no longer counts, or a tenth of a short one


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
        pass  # others could have written it, or it cannot be read: then nothing is known
    return None


def _write(name: str, value: Any) -> None:
    # A cache that cannot be written costs calls, not access; the command itself succeeded.
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
    """Say whether an entry is as `remember` writes it, field by field."""
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
    """Give the entry of a grant that opens these targets (all the key may open, when none) from here.

    `family`: 4 or 6 where only a grant for IPv4 or IPv6 will do.
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
    """Give the live entries of exactly these targets, or of a knock that named none. Latest end first."""
    found = [
        entry
        for entry in _entries()
        if (entry.get("by"), entry.get("url")) == (opener, url)
        and (set(targets) == set(entry.get("targets", ())) if targets else entry.get("all"))
    ]
    return sorted(found, key=lambda entry: -entry["until"])


def entry(grant_id: str) -> dict[str, Any] | None:
    """Give what is known of one grant."""
    return next((entry for entry in _entries() if entry.get("id") == grant_id), None)


def remember(url: str, grant: Grant, network: str, *, everything: bool, asked_at: float, by: Opener) -> None:
    """Note a grant. `everything`: no targets were named; `asked_at`: this clock before the call.

    `network` is empty for a grant that says nothing about this one: of another source, or not active yet.
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
    """Drop grants by id, or all of one API."""
    entries = _entries()
    kept = [e for e in entries if e.get("id") not in grant_ids and (url is None or e.get("url") != url)]
    if len(kept) != len(entries):
        _write("grants.json", kept)


class WatchSlot:
    """Where one running watch keeps the ids of what it opened, for the next one should it be killed.

    A slot is held by a lock on a file, which the system drops with the process. So a watch finds what a dead
    one of the same name left, and never what a living one has open. Without file locks (Windows), or a place
    for them, nothing is kept: what a killed watch left runs to its own end.
    """

    MOST = 32  # watches of one name at once that are remembered

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
        """Give the ids that are kept, oldest first."""
        stored = _read(self._file) if self._file else None
        return [one for one in stored if isinstance(one, str)] if isinstance(stored, list) else []

    def keep(self, grant_ids: Sequence[str]) -> None:
        """Keep these ids in place of those that were."""
        if self._file:
            _write(self._file, list(grant_ids))

    def close(self) -> None:
        """Let another watch have the slot, and what is kept in it."""
        if self._lock is not None:
            os.close(self._lock)
        self._file, self._lock = "", None


def _lock_file(name: str) -> int | None:
    """Lock a file without waiting, and give its descriptor; None when another process has it, or none can."""
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
    """Keep words for completion, each with what it is: the names of targets, the ids of live grants."""
    stored = _read("completion.json")
    if not isinstance(stored, dict):
        stored = {}
    if not isinstance(stored.get(url), dict):
        stored[url] = {}
    stored[url][kind] = {"at": time.time(), "words": words}
    _write("completion.json", stored)


def kept_words(url: str, kind: str, fresh: float = math.inf) -> dict[str, str] | None:
    """Give the kept words of a kind, or None when there are none, or they are older than `fresh` seconds."""
    kept = _read("completion.json")
    for name in (url, kind):
        kept = kept.get(name) if isinstance(kept, dict) else None
    if (
        not isinstance(kept, dict)
        or not _is_number(at := kept.get("at"))
        or not 0 <= time.time() - at <= fresh
    ):
        return None
    words = kept.get("words")
    if not isinstance(words, dict):
        return None
    return {word: what for word, what in words.items() if isinstance(what, str)}


@contextlib.contextmanager
def opening(url: str = "", wait: float = 20.0) -> Iterator[None]:
    """Hold the one lock under which the hooks of this user knock.

    Raises KnockError after `wait` seconds, and CannotReach at once when the API could not be reached by the
    hook that was waited for: fifty hooks cost one timeout, and not one after the other.
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
    """Lock the file and give its descriptor; None where there is no lock to be had.

    Without one (Windows, no folder, a file system that has no locks) two hooks at once may knock twice, and
    each grant then runs to its own end.
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
