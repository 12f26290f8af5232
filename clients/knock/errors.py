"""The errors of the client. It raises no exceptions of the standard library.

    KnockError
    ├── ConfigurationError      no URL or key, an unknown profile, a file that others can change
    │   └── KeyringUnavailable  the keyring that has the key is locked, fails or does not answer
    ├── CannotReach             no answer: DNS, proxy, TLS, a connection refused or timed out
    │   └── AnswerLost          the request was sent and may have been done; its answer was lost
    ├── UnexpectedAnswer        something answered that is not the Knock API
    ├── Problem                 the API's own answer (RFC 9457): status, title, detail, field, right
    │   ├── Refusal             permanent: the same request is refused again
    │   │   ├── InvalidKnock    400: `field` is malformed
    │   │   ├── KeyRejected     403 of the gateway: the key is wrong, disabled, or another API's
    │   │   ├── NotAllowed      403: the key lacks `right`
    │   │   ├── GrantNotFound   404
    │   │   ├── PoolExhausted   409: no room left in the security groups of a target
    │   │   ├── SourceFull      409: this source has as many grants and rules as one may have
    │   │   ├── TooManyGrants   409: the key has as many live grants as it may have
    │   │   ├── TargetGone      409: a target was taken away while it was being opened
    │   │   └── WrongFamily     409: a target is reached only over the other address family: `families`
    │   └── Unavailable         503 and its like: try again, after `retry_after` seconds if given;
    │       │                   with a `grant_id`, that grant may be open all the same
    │       └── Throttled       429: too many requests
    └── GrantNotOpened          the knock was accepted, and `grant` did not become active

Each class has an exit code of the command line program: 1 refused or failed, 2 usage, 3 cannot reach the API,
4 no room. Messages are for people, and never contain a key.

`Interrupted` is not in this tree: Ctrl-C interrupted a call, and the message says what may be open.

Beside these, modules of the program raise NothingToRevoke (`session`), OutputGone (`screen`), NoHome and
BrokenFile (`config`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .names import is_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .values import Grant


MAYBE_MADE = "The grant may have been made: look with `knock ls`; another knock opens one beside it"
"""The text for a knock that was sent, and whose answer names no grant."""


class KnockError(Exception):
    """The base class of all errors of this package, but for Interrupted."""

    exit_code = 1


class ConfigurationError(KnockError):
    """The configuration is missing or cannot be used; nothing was sent."""

    exit_code = 2


class KeyringUnavailable(ConfigurationError):
    """The system's keyring, which has the key, is locked or does not work."""

    exit_code = 3


class CannotReach(KnockError):
    """The API could not be reached; but for AnswerLost, nothing was done.

    `transient` is True if the same call may succeed later (after a timeout), and False if something has to be
    corrected first (a wrong name, a certificate).
    """

    exit_code = 3

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class AnswerLost(CannotReach):
    """The request was sent, and its answer was lost: it may have been done or not."""


class UnexpectedAnswer(KnockError):
    """The answer is not one of the Knock API's: of a wrong URL, a proxy, a hotspot's login page.

    With a `grant_id` it is the answer to a knock that this client cannot read: that grant may be open.
    """

    exit_code = 3

    def __init__(self, message: str, *, grant_id: str | None = None) -> None:
        super().__init__(message + (_may_be_open(grant_id) if grant_id else ""))
        self.grant_id = grant_id


class Problem(KnockError):
    """The API's answer is a problem; the attributes are its members (RFC 9457).

    `retry_after` is in seconds, or None; `grant_id` is the grant that may be open all the same, or None.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        self.field = _text(problem.get("field"))
        self.right = _text(problem.get("right"))
        self.retry_after = retry_after
        self.json = dict(problem)
        text = ": ".join(part for part in (self.title, self.detail) if part) or f"HTTP status {status}"
        for name, value in (("field", self.field), ("right", self.right)):
            if value and str(value) not in text:
                text += f" ({name}: {value})"
        grant_id = problem.get("grant_id")
        self.grant_id = str(grant_id) if is_name(grant_id) else None
        super().__init__(text + (_may_be_open(self.grant_id) if self.grant_id else ""))


class Refusal(Problem):
    """A permanent error: the API refuses the same call again."""


class InvalidKnock(Refusal):
    """The request is malformed; `field` names the part."""


class KeyRejected(Refusal):
    """The gateway does not accept the key: it is wrong, disabled, or a key of another API."""


class NotAllowed(Refusal):
    """The key lacks a right; `right` names its tag."""


class GrantNotFound(Refusal):
    """There is no grant of that id, or the key may not see it."""


class PoolExhausted(Refusal):
    """No security group of a target has room for another rule, until a grant ends."""

    exit_code = 4


class WrongFamily(Refusal):
    """The targets cannot be reached over the source's address family, IPv4 or IPv6.

    `families` are those over which they can, as 4 and 6; empty if the API did not say.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(status, problem, retry_after)
        families = problem.get("families")
        names = families if isinstance(families, list) else []
        self.families = tuple(number for number, name in ((4, "ipv4"), (6, "ipv6")) if name in names)


class SourceFull(Refusal):
    """The source has as many live grants or rules, of all keys, as a source may have."""

    exit_code = 4


class TooManyGrants(Refusal):
    """The key has as many live grants as it may have; `detail` names some to end."""

    exit_code = 4


class TargetGone(Refusal):
    """A target lost its security groups between the knock and the authorization of its rules."""


class Unavailable(Problem):
    """A transient error: the same call may succeed later.

    With a `grant_id` it is the answer to a knock whose execution may have started: that grant may be open.
    """


class Throttled(Unavailable):
    """The request limit or quota of the key's usage plan is reached."""


class GrantNotOpened(KnockError):
    """The knock was accepted, and its grant failed or did not become active in time.

    `grant` is its last known state. `full` is True if there was no room, until a grant ends; the exit code
    is 4 then.
    """

    def __init__(self, message: str, grant: Grant, *, full: bool = False) -> None:
        super().__init__(message)
        self.grant = grant
        self.full = full
        if full:
            self.exit_code = 4


class Interrupted(KeyboardInterrupt):
    """A call was interrupted; the message says what may be open, and `grant_id` names it, if known."""

    def __init__(self, message: str, grant_id: str | None = None) -> None:
        super().__init__(message)
        self.grant_id = grant_id


def _may_be_open(grant_id: str) -> str:
    return (
        f". Grant {grant_id} may be open all the same: look with `knock ls`, and end it with "
        f"`knock revoke {grant_id}`"
    )


def _text(value: object) -> str | None:
    """Give a member of a problem as text; None if it is missing."""
    return None if value is None else str(value)
