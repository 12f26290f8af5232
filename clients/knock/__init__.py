"""Knock for access: a client for people and for Python programs.

    from knock import Client

    with Client("https://abc.execute-api.eu-central-1.amazonaws.com/prod", key) as client:
        grant = client.knock("bastion", duration="8h", reason="on call")
        print(grant.source, grant.expires_at)
        client.revoke(grant.id)

`Client.from_profile()` uses what `knock login` stored, or KNOCK_URL and KNOCK_API_KEY. The errors and
their tree are in `knock.errors`. The command line program uses nothing else.

Names are imported when they are first used, since `knock --version` and the ssh hook must start quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client
    from .errors import (
        AnswerLost,
        CannotReach,
        ConfigurationError,
        GrantNotFound,
        GrantNotOpened,
        Interrupted,
        InvalidKnock,
        KeyRejected,
        KeyringUnavailable,
        KnockError,
        NotAllowed,
        PoolExhausted,
        Problem,
        Refusal,
        SourceFull,
        TargetGone,
        Throttled,
        TooManyGrants,
        Unavailable,
        UnexpectedAnswer,
        WrongFamily,
    )
    from .values import Grant, Principal, Target, Whoami

__version__ = "0.1.0"

__all__ = [
    "AnswerLost",
    "CannotReach",
    "Client",
    "ConfigurationError",
    "Grant",
    "GrantNotFound",
    "GrantNotOpened",
    "Interrupted",
    "InvalidKnock",
    "KeyRejected",
    "KeyringUnavailable",
    "KnockError",
    "NotAllowed",
    "PoolExhausted",
    "Principal",
    "Problem",
    "Refusal",
    "SourceFull",
    "Target",
    "TargetGone",
    "Throttled",
    "TooManyGrants",
    "Unavailable",
    "UnexpectedAnswer",
    "Whoami",
    "WrongFamily",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = {"Client": ".client"} | dict.fromkeys(("Grant", "Principal", "Target", "Whoami"), ".values")
    value = getattr(import_module(home.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value
