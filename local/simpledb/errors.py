"""The one exception of the local SimpleDB: what the service would have answered.

Codes, messages and HTTP statuses are those of the SimpleDB developer guide's "API Error Codes"
(docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/APIError.html); where the guide says too little to
help (the place of a syntax error, say), the message adds it after the guide's words.
"""

from __future__ import annotations


class SimpleDBError(Exception):
    """A refusal, as the service words it."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def invalid_value(value: object, parameter: str, reason: str = "") -> SimpleDBError:
    """Word an InvalidParameterValue; the reason is appended as the guide appends it."""
    return SimpleDBError(
        "InvalidParameterValue", f"Value ({value}) for parameter {parameter} is invalid. {reason}".rstrip()
    )


def missing(message: str) -> SimpleDBError:
    """Word a MissingParameter."""
    return SimpleDBError("MissingParameter", message)
