"""The functions' environment, parsed once into a frozen object. An error names the variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .policy import Limits
from .values import parse_duration

# https://docs.aws.amazon.com/general/latest/gr/simpledb.html; botocore makes up an endpoint for any other.
SIMPLEDB_REGIONS = frozenset(
    {
        "ap-northeast-1",
        "ap-southeast-1",
        "ap-southeast-2",
        "eu-west-1",
        "sa-east-1",
        "us-east-1",
        "us-west-1",
        "us-west-2",
    }
)


class BadSetting(ValueError):
    """An environment variable that is missing or wrong. The message names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What template.yaml gives every function (docs/architecture.md has the table)."""

    stack: str
    trail_domain: str
    trail_region: str
    machine_arn: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the variables every function has. Raises BadSetting."""
        region = required(environment, "TRAIL_REGION")
        if region not in SIMPLEDB_REGIONS:
            raise BadSetting(
                f"TRAIL_REGION is {region!r}, where there is no SimpleDB; there is in "
                + ", ".join(sorted(SIMPLEDB_REGIONS))
            )
        return cls(
            required(environment, "KNOCK_STACK"),
            required(environment, "TRAIL_DOMAIN"),
            region,
            required(environment, "STATE_MACHINE_ARN"),
        )


def read_limits(environment: Mapping[str, str]) -> Limits:
    """Read the knock API's durations. Raises BadSetting."""
    durations = []
    for name in ("DEFAULT_DURATION", "MAX_DURATION"):
        try:
            durations.append(parse_duration(required(environment, name)))
        except BadSetting:
            raise
        except ValueError as error:
            raise BadSetting(f"{name}: {error}") from error
    default, longest = durations
    return Limits(min(default, longest), longest)


def read_rules_per_group(environment: Mapping[str, str]) -> int:
    """Read the account's quota of inbound rules a security group. Raises BadSetting."""
    text = required(environment, "RULES_PER_GROUP")
    if not text.isascii() or not text.isdigit():
        raise BadSetting(f"RULES_PER_GROUP must be a number, not {text!r}")
    return int(text)


def required(environment: Mapping[str, str], name: str) -> str:
    """Read a variable that must be there. Raises BadSetting."""
    value = environment.get(name, "")
    if not value:
        raise BadSetting(f"the environment variable {name} is missing; template.yaml sets it")
    return value
