"""The functions' environment, parsed once into a frozen object. An error names the variable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

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


STORES = ("simpledb", "dynamodb")


class BadSetting(ValueError):
    """An environment variable that is missing or wrong. The message names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that template.yaml gives every function (docs/architecture.md has the table).

    The domains are tables with `dynamodb`.
    """

    stack: str
    store: str
    trail_domain: str
    ledger_domain: str
    trail_region: str
    machine_arn: str
    closings_arn: str

    @property
    def partition(self) -> str:
        """Give the partition of AWS that the stack is in: `aws`, `aws-cn`, `aws-us-gov`, …"""
        return self.machine_arn.split(":")[1]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the variables every function has. Raises BadSetting."""
        store, region = required(environment, "TRAIL_STORE"), required(environment, "TRAIL_REGION")
        if store not in STORES:
            raise BadSetting(f"TRAIL_STORE is {store!r}; there are {' and '.join(STORES)}")
        if store == "simpledb" and region not in SIMPLEDB_REGIONS:
            raise BadSetting(
                f"TRAIL_REGION is {region!r}, where there is no SimpleDB; there is in "
                + ", ".join(sorted(SIMPLEDB_REGIONS))
            )
        return cls(
            required(environment, "KNOCK_STACK"),
            store,
            required(environment, "TRAIL_DOMAIN"),
            required(environment, "LEDGER_DOMAIN"),
            region,
            required(environment, "STATE_MACHINE_ARN"),
            required(environment, "CLOSINGS_ARN"),
        )


def read_limits(environment: Mapping[str, str]) -> Limits:
    """Read the knock API's durations, and how many grants a principal holds at once. Raises BadSetting."""
    default, longest = (_duration(environment, name) for name in ("DEFAULT_DURATION", "MAX_DURATION"))
    return Limits(min(default, longest), longest, _number(environment, "MAX_LIVE"))


def read_max_duration(environment: Mapping[str, str]) -> Limits:
    """Read the limits that the second decision checks a grant against. Raises BadSetting."""
    longest = _duration(environment, "MAX_DURATION")
    return Limits(longest, longest)


def read_rules_per_group(environment: Mapping[str, str]) -> int:
    """Read the account's quota of inbound rules a security group. Raises BadSetting."""
    return _number(environment, "RULES_PER_GROUP")


def _duration(environment: Mapping[str, str], name: str) -> timedelta:
    text = required(environment, name)
    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadSetting(f"{name}: {error}") from error


def _number(environment: Mapping[str, str], name: str) -> int:
    text = required(environment, name)
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise BadSetting(f"{name} must be a number, not {text!r}")
    return int(text)


def required(environment: Mapping[str, str], name: str) -> str:
    """Read a variable that must be there. Raises BadSetting."""
    value = environment.get(name, "")
    if not value:
        raise BadSetting(f"the environment variable {name} is missing; template.yaml sets it")
    return value
