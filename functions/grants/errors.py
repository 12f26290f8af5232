"""Every error of Knock's own. A class's name is also the error name in the state machine.

    KnockError
    ├── Refusal                 the answer is no, and trying again gives the same
    │   ├── InvalidKnock        400  the request does not say what it should
    │   ├── NotAllowed          403  the key lacks a right
    │   │   └── InvalidTag      403  a tag on the key cannot be read, so it gives no right
    │   ├── GrantNotFound       404
    │   ├── WrongFamily         409  the source is IPv4 and the targets have IPv6 alone, or the reverse
    │   ├── TooManyGrants       409  the principal holds as many live grants as it may
    │   ├── SourceFull          409  the source's ledger holds as many claims or rules as it may
    │   ├── PoolExhausted       409  every security group of a target is full
    │   ├── TargetGone          409  a target's security groups exist no more, or are no target's any more
    │   ├── GrantEnded               the grant is over: nothing may be opened for it
    │   ├── InvalidGrant             an execution's input is not a grant that may be opened
    │   ├── IngressRefused           EC2 refuses for good: missing permission, bad group
    │   └── StoreRefused             trail or ledger refuses for good, or holds what cannot be read
    └── Unavailable             503  worth another try
        ├── StoreUnavailable         trail or ledger did not answer
        ├── IngressUnavailable       EC2 did not answer; whether it acted is not known
        ├── IngressThrottled         EC2's request limit; it did not act
        ├── EngineUnavailable        Step Functions or Lambda
        ├── RightsUnavailable        API Gateway or the tagging API, when asked what a key may do
        │   └── RightsThrottled      their request limit for the whole account is reached
        └── RuleUnsettled            what became of a rule cannot be known yet

Beside these, adapters answer with GroupFull, GroupGone, RuleDuplicate and RuleNotFound (`operations`) and
with Conflict (`store`): answers to a call, which `opening`, `closing`, `trail` and `ledgers` handle.

No error of boto3 or of the standard library leaves the adapters.
"""

from __future__ import annotations


class KnockError(Exception):
    """The root. `status` is the HTTP status the API answers with, `title` a constant name for people."""

    status = 500
    title = "Something went wrong in Knock"


class Refusal(KnockError):
    """The answer is no. Trying the same again gives the same."""

    status = 409
    title = "Refused"


class InvalidKnock(Refusal):
    """A request that does not say what it should. `field` names the part that is wrong."""

    status = 400
    title = "The request is malformed"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class NotAllowed(Refusal):
    """A knock or a look that the key's rights do not cover. `right` names the missing tag."""

    status = 403
    title = "The key may not do this"

    def __init__(self, right: str, detail: str) -> None:
        super().__init__(detail)
        self.right = right


class InvalidTag(NotAllowed):
    """A tag that cannot be read. It gives no right; an operator has to mend it."""

    title = "A tag cannot be read"


class GrantNotFound(Refusal):
    """No grant of that id, or not one the caller may see: the two are not told apart."""

    status = 404
    title = "No such grant"


class TooManyGrants(Refusal):
    """The principal holds as many live grants as it may. The detail names those to end."""

    title = "Too many grants at once"


class SourceFull(Refusal):
    """The source holds as many claims or rules as one may. Names no grant: others share the address."""

    title = "Too many grants for one source"


class WrongFamily(Refusal):
    """A source of an address family that no target has. `families` are those that the targets have."""

    title = "The targets have no address of this family"

    def __init__(self, detail: str, families: tuple[str, ...] = ("ipv4",)) -> None:
        super().__init__(detail)
        self.families = families


class TargetGone(Refusal):
    """No security group of a target carries its tags any more. Not the same as a full pool."""

    title = "A target has no security group any more"


class PoolExhausted(Refusal):
    """No security group of a target has room for another rule."""

    title = "No room left in the security groups of a target"


class GrantEnded(Refusal):
    """The grant is over, or was never to begin: nothing may be opened for it."""

    title = "The grant has ended"


class InvalidGrant(Refusal):
    """An execution's input that is not a grant, or one that tags and limits do not allow."""

    title = "The execution's input is not a grant that may be opened"


class IngressRefused(Refusal):
    """EC2 refuses for good: a missing permission, a group that cannot be changed."""

    status = 503
    title = "EC2 refuses to change a security group"


class StoreRefused(Refusal):
    """Trail or ledger refuses for good: no such domain, no permission, an item that cannot be read."""

    status = 503
    title = "The trail or the ledger refuses"


class Unavailable(KnockError):
    """Something Knock needs did not answer. The same call may succeed in a moment."""

    status = 503
    title = "Try again in a moment"


class StoreUnavailable(Unavailable):
    """Trail or ledger did not answer, or refused for now. What was written is not known."""


class IngressUnavailable(Unavailable):
    """EC2 did not answer; whether it acted is not known."""


class IngressThrottled(Unavailable):
    """EC2's request limit for the account and region is reached; it did not act."""


class EngineUnavailable(Unavailable):
    """Step Functions or Lambda did not answer."""


class RightsUnavailable(Unavailable):
    """What a key may do could not be read."""


class RightsThrottled(RightsUnavailable):
    """The account's request limit kept AWS from telling what a key may do."""


class RuleUnsettled(Unavailable):
    """What an attempt came to, or whether a rule is gone, cannot be known yet. Later it can."""
