"""SimpleDB and DynamoDB that fail now and then, lose answers, or refuse the account.

A lost answer is a 5xx after the effect: the SDK repeats the call by itself, and a conditional write then
fails with `ConditionalCheckFailed` because of its own first attempt.
"""

from __future__ import annotations

from local.endpoint import Answer, Call, Forward, failure
from local.hostile.dice import Dice

FAILS, LOSES = 0.02, 0.01

# https://docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/APIError.html
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
_BEFORE = {"sdb": ("ServiceUnavailable", 503), "dynamodb": ("ThrottlingException", 400)}
_AFTER = {"sdb": ("ServiceUnavailable", 503), "dynamodb": ("InternalServerError", 500)}
_READS = ("Get", "Select", "List", "Domain", "Query", "Scan", "BatchGet", "Describe")


class Store:
    """A store that fails before the effect of a call, or, of a write, after it."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def __call__(self, call: Call, forward: Forward) -> Answer:
        chance = self._dice.throw(call.service, call.operation, call.access_key).random()
        if chance < FAILS:
            code, status = _BEFORE[call.service]
            return failure(call, code, "Service is currently unavailable. Please try again later.", status)
        answer = forward()
        if chance < FAILS + LOSES and not call.operation.startswith(_READS):
            code, status = _AFTER[call.service]
            return failure(call, code, "Service is currently unavailable. Please try again later.", status)
        return answer


class ClosedSimpleDb:
    """SimpleDB for an account that has never used it: it has taken no new customers since 25 July 2024.

    AWS does not document its error; this is an error code that SimpleDB documents.
    """

    def __call__(self, call: Call, _forward: Forward) -> Answer:
        return failure(
            call, "OptInRequired", "The AWS Access Key Id needs a subscription for the service.", 403
        )
