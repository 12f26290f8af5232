"""The exception of the local SimpleDB: an error of the service.

Codes, messages and HTTP statuses are those of the SimpleDB developer guide's "API Error Codes"
(docs.aws.amazon.com/AmazonSimpleDB/latest/DeveloperGuide/APIError.html); where the guide's
message says too little (the place of a syntax error, for example), ours adds it at the end.
"""

from __future__ import annotations


class SimpleDBError(Exception):
    """A refusal, in the service's words."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def invalid_value(value: object, parameter: str, reason: str = "") -> SimpleDBError:
    """Build an InvalidParameterValue, with the reason appended as in the guide."""
    return SimpleDBError(
        "InvalidParameterValue", f"Value ({value}) for parameter {parameter} is invalid. {reason}".rstrip()
    )


def missing(message: str) -> SimpleDBError:
    """Build a MissingParameter."""
    return SimpleDBError("MissingParameter", message)
