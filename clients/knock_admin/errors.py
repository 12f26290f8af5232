"""The errors of this program, and the translation of botocore's.

    AdminError           exit 1   refused or failed; the message says what to do
    ├── FunctionFailed   exit 1   a function of the stack answered with an error of its own
    ├── UsageError       exit 2   the command line does not make sense
    └── Unreachable      exit 3   AWS did not answer, or there are no credentials to ask it with

`translated` turns an error of botocore into one of these. It names a missing permission, because an operation
may need a permission of another name (`lambda:Invoke` needs `lambda:InvokeFunction`, and API Gateway's
permissions are HTTP methods on paths).
"""

from __future__ import annotations

from contextlib import contextmanager
from getpass import GetPassWarning
from typing import TYPE_CHECKING

from botocore import exceptions as boto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knock_admin.aws import Call

DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "AuthFailure",
    "UnauthorizedOperation",
    "UnauthorizedException",
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
UNKNOWN_CREDENTIALS = {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class AdminError(Exception):
    """The command was refused or failed; the text says why and what to do."""

    exit_code = 1


class FunctionFailed(AdminError):
    """A function of the stack answered with an error of its own; `kind` is its name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class UsageError(AdminError):
    """The command line does not make sense."""

    exit_code = 2


class Unreachable(AdminError):
    """AWS did not answer, or could not be asked."""

    exit_code = 3


def code_of(error: boto.ClientError) -> str:
    """Give AWS's code of an error. A client's `exceptions` lack some codes, so callers compare texts."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def already_done(code: str) -> Iterator[None]:
    """Ignore the error with this code, which says that the change has been made before."""
    try:
        yield
    except boto.ClientError as error:
        if code_of(error) != code:
            raise


def translated(error: boto.BotoCoreError | boto.ClientError, call: Call | None) -> AdminError:
    """Make our error from one of botocore; `call` is the call that failed, if there was one."""
    where = f"{call.name}: " if call else ""
    if isinstance(error, boto.ClientError):
        code = code_of(error)
        message = error.response.get("Error", {}).get("Message", "") or code
        if code in DENIED:
            needed = call.permission if call else "the permission for this call"
            return AdminError(
                f"AWS refused {call.name if call else 'a call'}: {message}\nYour credentials need {needed}."
            )
        if code in EXPIRED:
            return AdminError(
                f"{where}your credentials have expired. Sign in again, then repeat the command."
            )
        if code in UNKNOWN_CREDENTIALS:
            return AdminError(f"{where}AWS does not know these credentials: {message}")
        return AdminError(f"{where}{message} ({code})")
    if isinstance(error, boto.ProfileNotFound):
        return UsageError(f"{error}. See `aws configure list-profiles`.")
    if isinstance(error, boto.NoRegionError):
        return UsageError("No region: give --region, or set AWS_REGION.")
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        return not_signed_in(error, None)
    if isinstance(
        error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError
    ):
        return Unreachable(
            f"No usable AWS credentials: {str(error).rstrip('.')}. Sign in, or name a profile with --profile."
        )
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return Unreachable(f"{where}cannot reach AWS: {error}")
    return AdminError(f"{where}{error}")


def not_signed_in(error: Exception, profile: str | None) -> Unreachable:
    """Make the error that says, in one line, why there are no credentials."""
    of, login = (f" of the profile {profile}", f" --profile {profile}") if profile else ("", "")
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        why = f"{str(error).rstrip('.')}. Sign in with `aws sso login{login}`, then repeat the command."
    elif isinstance(error, GetPassWarning | EOFError):
        why = (
            f"the role{of} asks for an MFA code, and there is no terminal to type it at. Run it from a "
            "terminal, or with credentials that have passed MFA (`aws sts get-session-token`)."
        )
    elif isinstance(error, FileNotFoundError):
        why = (
            f"there is no {error.filename}, which the configuration names (credential_process or a web "
            "identity token file). Mend it, or name another profile with --profile."
        )
    elif isinstance(error, boto.ClientError):
        message = error.response.get("Error", {}).get("Message", "") or code_of(error)
        why = (
            f"{error.operation_name} answered {code_of(error)}: {message}. Sign in again, or name another "
            "profile."
        )
    elif isinstance(error, boto.BotoCoreError):  # a program that failed may have said nothing: "…-process: "
        why = f"{str(error).rstrip(' .:')}. Sign in, or name a profile with --profile."
    else:  # without its text, in which a program may have put credentials
        why = (
            f"what the configuration{of} names gave no credentials ({type(error).__name__}). Try it by "
            f"hand: `aws sts get-caller-identity{login}`."
        )
    return Unreachable(" ".join(f"No usable AWS credentials: {why}".split()))
