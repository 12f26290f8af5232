"""Every error of the client. None of the standard library's leaves it.

    KnockError
    ├── ConfigurationError      no URL or key, an unknown profile, a file that others can change
    │   └── KeyringUnavailable  the keyring that has the key is locked, fails or does not answer
    ├── CannotReach             no answer: DNS, proxy, TLS, a connection refused or timed out
    │   └── AnswerLost          the request was sent and may have been done; its answer was lost
    ├── UnexpectedAnswer        something answered that is not the Knock API
    ├── Problem                 the API's own answer (RFC 9457): status, title, detail, field, right
    │   ├── Refusal             no, and no again for the same request
    │   │   ├── InvalidKnock    400: `field` is malformed
    │   │   ├── KeyRejected     403 of the gateway: the key is wrong, disabled, or another API's
    │   │   ├── NotAllowed      403: the key lacks `right`
    │   │   ├── GrantNotFound   404
    │   │   ├── PoolExhausted   409: no room left in the security groups of a target
    │   │   ├── SourceFull      409: this source has as many grants and rules as one may have
    │   │   ├── TooManyGrants   409: the key has as many live grants as it may have
    │   │   ├── TargetGone      409: a target was taken away while it was being opened
    │   │   └── WrongFamily     409: a target is reached by the other of IPv4 and IPv6: `families`
    │   └── Unavailable         503 and its like: try again, after `retry_after` seconds if given;
    │       │                   with a `grant_id`, that grant may be open all the same
    │       └── Throttled       429: too many requests
    └── GrantNotOpened          the knock was accepted, and `grant` did not become active

Each class carries the exit code of the command line program: 1 refused or failed, 2 usage, 3 cannot
reach the API, 4 no room. Messages are written for the reader and never hold a key.

`Interrupted` is beside this tree: Ctrl-C came while an answer was awaited, and it says what may be open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .names import is_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .values import Grant


MAYBE_MADE = "The grant may have been made: look with `knock ls`; another knock opens one beside it"
"""What is said where a knock was sent, and its answer tells of no grant."""


class KnockError(Exception):
    """The root. Catch it to catch everything this package raises on purpose."""

    exit_code = 1


class ConfigurationError(KnockError):
    """What the client was told to use cannot be used; nothing was sent."""

    exit_code = 2


class KeyringUnavailable(ConfigurationError):
    """The system's keyring has the key and does not give it, as long as it is locked or out of order."""

    exit_code = 3


class CannotReach(KnockError):
    """The API could not be reached; nothing was done.

    `passing` says whether the same call may succeed in a moment (a timeout), or something has to be
    mended first (a wrong name, a certificate).
    """

    exit_code = 3

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class AnswerLost(CannotReach):
    """The request was sent and no answer came: it may have been done, or not."""


class UnexpectedAnswer(KnockError):
    """Something answered, and it was not the Knock API: a wrong URL, a proxy, a hotspot's login page.

    With a `grant_id` it answers a knock, in a way that this client cannot read: that grant may be open.
    """

    exit_code = 3

    def __init__(self, message: str, *, grant_id: str | None = None) -> None:
        super().__init__(message + (_may_be_open(grant_id) if grant_id else ""))
        self.grant_id = grant_id


class Problem(KnockError):
    """The API answered with a problem. The attributes are its members, as RFC 9457 names them."""

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
    """The answer is no, with its reason."""


class InvalidKnock(Refusal):
    """The request does not say what it should; `field` names the part that is wrong."""


class KeyRejected(Refusal):
    """The gateway does not know the key: it is wrong, disabled, or meant for another API."""


class NotAllowed(Refusal):
    """The key lacks a right; `right` names it."""


class GrantNotFound(Refusal):
    """No grant of that id, or not one this key may see."""


class PoolExhausted(Refusal):
    """No security group of a target has room for another rule: there is again once a grant has ended."""

    exit_code = 4


class WrongFamily(Refusal):
    """The source is of a family of addresses, IPv4 or IPv6, by which a target cannot be reached.

    `families` are those by which it can, as 4 and 6; empty when the API did not say.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(status, problem, retry_after)
        families = problem.get("families")
        told = families if isinstance(families, list) else []
        self.families = tuple(number for number, name in ((4, "ipv4"), (6, "ipv6")) if name in told)


class SourceFull(Refusal):
    """The source has as many live grants, or rules, as one source may have, whoever they are of."""

    exit_code = 4


class TooManyGrants(Refusal):
    """The key has as many live grants as it may have; `detail` names those that can be ended."""

    exit_code = 4


class TargetGone(Refusal):
    """A target lost its security groups between the decision and the opening of its ports."""


class Unavailable(Problem):
    """The API cannot do it now. The same call may succeed later.

    With a `grant_id` it answers a knock whose execution may have started: that grant may be open.
    """


class Throttled(Unavailable):
    """Too many requests for this key's usage plan."""


class GrantNotOpened(KnockError):
    """The knock was accepted, but did not open access in time, or at all. `grant` is as last seen.

    `full` says that it failed for want of room, which comes back as grants end; the exit code is 4 then.
    """

    def __init__(self, message: str, grant: Grant, *, full: bool = False) -> None:
        super().__init__(message)
        self.grant = grant
        self.full = full
        if full:
            self.exit_code = 4


class Interrupted(KeyboardInterrupt):
    """An interruption came while an answer was awaited; the message says what may be open."""

    def __init__(self, message: str, grant_id: str | None = None) -> None:
        super().__init__(message)
        self.grant_id = grant_id


def _may_be_open(grant_id: str) -> str:
    return (
        f". Grant {grant_id} may be open all the same: look with `knock ls`, and end it with "
        f"`knock revoke {grant_id}`"
    )


def _text(value: object) -> str | None:
    """Give a member of a problem that should be a text, as one; None for nothing."""
    return None if value is None else str(value)
