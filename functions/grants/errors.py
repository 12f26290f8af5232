"""Every error of Knock's own. A class's name is also the error name in the state machine.

    KnockError                  500  a fault in Knock itself
    ├── Refusal                 409  permanent: the same call is refused again
    │   ├── InvalidKnock        400  the request is malformed
    │   ├── NotAllowed          403  the key lacks a right
    │   │   └── InvalidTag      403  a tag on the key cannot be read, so it gives no right
    │   ├── GrantNotFound       404  no such grant, or none that the key may see
    │   ├── WrongFamily         409  the source is IPv4 and the targets have IPv6 alone, or the reverse
    │   ├── TooManyGrants       409  the principal holds as many live grants as it may
    │   ├── SourceFull          409  the source's ledger holds as many claims or rules as it may
    │   ├── PoolExhausted       409  every security group of a target is full
    │   ├── TargetGone          409  a target's security groups are deleted, or no longer tagged for it
    │   ├── GrantEnded          409  the grant has ended: nothing is opened for it
    │   ├── InvalidGrant        409  an execution's input is not a grant that may be opened
    │   ├── IngressRefused      503  EC2 refuses: a missing permission, a bad group
    │   └── StoreRefused        503  trail or ledger refuses, or holds an item that cannot be read
    └── Unavailable             503  transient: worth another try
        ├── StoreUnavailable    503  trail or ledger did not answer
        ├── IngressUnavailable  503  EC2 did not answer; whether it acted is not known
        ├── IngressThrottled    503  EC2's request limit is reached; it did not act
        ├── EngineUnavailable   503  Step Functions or Lambda did not answer
        ├── RightsUnavailable   503  API Gateway or the tagging API did not answer
        │   └── RightsThrottled 503  their request limit for the whole account is reached
        └── RuleUnsettled       503  an attempt is not quiescent, so its result is not known yet

Beside these, adapters raise GroupFull, GroupGone, RuleDuplicate and RuleNotFound (`operations`) and Conflict
(`store`): answers to a call, which `opening`, `closing`, `trail` and `ledgers` handle. `notify` raises
EventsNotDelivered, for Lambda to retry its batch; `settings` BadSetting, a ValueError that names a variable;
`api` FailedAfterStart, which carries one of these errors and the id of a grant that has started.

No error of boto3 or of the standard library leaves the adapters.
"""

from __future__ import annotations


class KnockError(Exception):
    """A fault in Knock itself.

    Of this class and those below, `status` is the HTTP status, and `title` a constant name for people.
    """

    status = 500
    title = "Something went wrong in Knock"


class Refusal(KnockError):
    """A permanent error: the same call is refused again."""

    status = 409
    title = "Refused"


class InvalidKnock(Refusal):
    """The request is malformed. `field` names the part that is wrong."""

    status = 400
    title = "The request is malformed"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class NotAllowed(Refusal):
    """The key's rights do not cover the request. `right` names the missing tag."""

    status = 403
    title = "The key may not do this"

    def __init__(self, right: str, detail: str) -> None:
        super().__init__(detail)
        self.right = right


class InvalidTag(NotAllowed):
    """A tag of the key cannot be read. It gives no right until an operator corrects it."""

    title = "A tag cannot be read"


class GrantNotFound(Refusal):
    """No grant has this id, or the key may not see it: the answer does not say which."""

    status = 404
    title = "No such grant"


class TooManyGrants(Refusal):
    """The principal holds as many live grants as it may. The detail names some to end."""

    title = "Too many grants at once"


class SourceFull(Refusal):
    """The source has as many live grants or rules as it may. Names no grant: other keys share the address."""

    title = "Too many grants for one source"


class WrongFamily(Refusal):
    """No target can be reached over the source's address family. `families` are those that can."""

    title = "The targets have no address of this family"

    def __init__(self, detail: str, families: tuple[str, ...] = ("ipv4",)) -> None:
        super().__init__(detail)
        self.families = families


class TargetGone(Refusal):
    """No security group carries a target's tags any more. Not the same as a full pool."""

    title = "A target has no security group any more"


class PoolExhausted(Refusal):
    """No security group of a target has room for another rule."""

    title = "No room left in the security groups of a target"


class GrantEnded(Refusal):
    """The grant has ended: nothing is opened for it."""

    title = "The grant has ended"


class InvalidGrant(Refusal):
    """The execution's input is not a grant, or one that tags and limits do not allow."""

    title = "The execution's input is not a grant that may be opened"


class IngressRefused(Refusal):
    """EC2 refuses, and would again: a missing permission, a group that cannot be changed."""

    status = 503
    title = "EC2 refuses to change a security group"


class StoreRefused(Refusal):
    """Trail or ledger refuses, and would again: no such domain, no permission, an unreadable item."""

    status = 503
    title = "The trail or the ledger refuses"


class Unavailable(KnockError):
    """A transient error: a service that Knock needs did not answer. The same call may succeed in a moment."""

    status = 503
    title = "Try again in a moment"


class StoreUnavailable(Unavailable):
    """Trail or ledger did not answer, or refused for now. Whether a write took effect is not known."""


class IngressUnavailable(Unavailable):
    """EC2 did not answer; whether it acted is not known."""


class IngressThrottled(Unavailable):
    """EC2's request limit for the account and region is reached; it did not act."""


class EngineUnavailable(Unavailable):
    """Step Functions or Lambda did not answer."""


class RightsUnavailable(Unavailable):
    """API Gateway or the tagging API did not answer, so rights or targets could not be read."""


class RightsThrottled(RightsUnavailable):
    """The account's request limit is reached, so rights or targets could not be read."""


class RuleUnsettled(Unavailable):
    """An attempt's result, or whether a rule is gone, is not known yet. In a few minutes it is."""
