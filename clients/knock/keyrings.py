"""The system's keyring, through the `keyring` package if it is installed, with a time limit.

A keyring may be locked, wait for a person who sees no prompt, or raise any exception, and importing the
package may fail. So each call runs in a thread of its own, and is given up after some seconds. If the keyring
does not store a key, the key is stored in a file; if it does not give a key, the error says what to do.
"""

from __future__ import annotations

import contextlib
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import notices
from .errors import ConfigurationError, KeyringUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "knock"
PATIENCE = 20.0  # seconds; it may ask a person for a password


class _NoKeyring(Exception):
    """There is no usable keyring."""


class _Failed(Exception):
    """A call of the keyring failed; the message says why."""


def write_key(profile: str, key: str) -> bool:
    """Store a key in the keyring. False if there is no keyring, or, with a warning, if it fails."""
    try:
        _ask(lambda keyring: keyring.set_password(SERVICE, profile, key), PATIENCE)
    except _NoKeyring:
        return False
    except _Failed as error:
        notices.warn(f"the keyring does not take the key ({error}); it goes to a file")
        return False
    return True


def read_key(profile: str, patience: float = PATIENCE) -> str | None:
    """Give a profile's key; None if the keyring has none. Raises ConfigurationError, KeyringUnavailable.

    `patience` is the time limit in seconds.
    """
    ways = "set KNOCK_API_KEY, or run `knock login --no-keyring` to keep the key in a file"
    try:
        key = _ask(lambda keyring: keyring.get_password(SERVICE, profile), patience)
    except _NoKeyring:
        raise ConfigurationError(
            f"the key of profile {profile!r} is in the system's keyring, which cannot be used here: "
            f"pip install 'knock-client[keyring]', {ways}"
        ) from None
    except _Failed as error:
        raise KeyringUnavailable(
            f"the keyring does not give the key of {profile!r} ({error}): unlock it, {ways}"
        ) from None
    return key if isinstance(key, str) else None


def delete_key(profile: str) -> None:
    """Delete a profile's key. It is no error if there is no key or no keyring. Raises ConfigurationError."""

    def delete(keyring: Any) -> None:
        with contextlib.suppress(keyring.errors.PasswordDeleteError):  # there is no key: deleted by hand
            keyring.delete_password(SERVICE, profile)

    try:
        _ask(delete, PATIENCE)
    except _NoKeyring:
        pass
    except _Failed as error:
        raise ConfigurationError(f"the keyring does not delete the key: {error}") from None


def _ask(question: Callable[[Any], Any], patience: float) -> Any:
    """Call the keyring in a thread, and abandon it after `patience` seconds. Raises _NoKeyring, _Failed."""
    answers: list[Any] = []
    troubles: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question(_keyring()))
        except Exception as error:  # noqa: BLE001 — backends may raise anything; it is reported
            troubles.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    if answers:
        return answers[0]
    if not troubles:
        raise _Failed(f"it did not answer within {patience:g} s")
    if isinstance(troubles[0], _NoKeyring):
        raise troubles[0]
    raise _Failed(str(troubles[0]) or type(troubles[0]).__name__)


def _keyring() -> Any:
    """Give the keyring package. Raises _NoKeyring if it is not installed, or has no usable keyring."""
    try:
        keyring = import_module("keyring")
        import_module("keyring.errors")
    except ImportError:
        raise _NoKeyring from None
    # The package recommends none with a priority below 1: its placeholder for no keyring, plain text files.
    # https://keyring.readthedocs.io/en/latest/#writing-your-own-backend
    if keyring.get_keyring().priority < 1:
        raise _NoKeyring
    return keyring
