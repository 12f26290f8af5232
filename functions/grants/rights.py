"""The rights of keys and the targets of the stack: tags, read through AWS and cached for a
minute, and for up to eleven while AWS throttles.

Targets are found by the tagging API, not by EC2: the function that faces the network then needs no
permission on EC2 at all.
https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from .errors import NotAllowed, RightsThrottled, RightsUnavailable
from .policy import TAG_NAME, TAG_STACK, TAG_TARGETS, Rights, read_rights, read_targets
from .values import Principal, Target

if TYPE_CHECKING:
    from botocore.client import BaseClient

KEPT = timedelta(seconds=60)

# For how much longer an answer is used while AWS throttles the call. API Gateway's control plane takes ten
# requests a second for the whole account, deployments and the console included, and the limit cannot be
# raised:
# https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
KEPT_WHILE_THROTTLED = timedelta(minutes=10)
THROTTLED = {"TooManyRequestsException", "ThrottlingException", "ThrottledException", "Throttling"}

T = TypeVar("T")

logger = logging.getLogger("knock")


class _Cache:
    """Answers kept for KEPT, and longer while the call is throttled. Failures are not kept.

    The API reads a key's rights and the targets in two threads at once. A call is made without the lock, so
    the slower one does not delay the other.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._answers: dict[str, tuple[datetime, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, ask: Callable[[], T]) -> T:
        """Give the answer kept under a key, or call for it. Raises what the call raises."""
        now, longest = self._clock(), KEPT + KEPT_WHILE_THROTTLED
        with self._lock:
            self._answers = {name: kept for name, kept in self._answers.items() if now - kept[0] < longest}
            kept = self._answers.get(key)
        if kept is None or now - kept[0] >= KEPT:
            try:
                kept = now, ask()
                with self._lock:
                    self._answers[key] = kept
            except RightsThrottled:
                if kept is None:
                    raise
                logger.warning("stale_rights_used", extra={"of": key, "age": (now - kept[0]).total_seconds()})
        answer: T = kept[1]
        return answer


def _unavailable(detail: str, error: ClientError) -> RightsUnavailable:
    code = error.response["Error"]["Code"]
    kind = RightsThrottled if code in THROTTLED else RightsUnavailable
    return kind(detail.format(code))


class RightsReader:
    """The API keys' tags and the stack's targets, each answer up to a minute old; while throttled, eleven."""

    def __init__(
        self, apigateway: BaseClient, tagging: BaseClient, stack: str, clock: Callable[[], datetime]
    ) -> None:
        self._apigateway: Any = apigateway
        region, partition = apigateway.meta.region_name, apigateway.meta.partition
        self._keys_arn = f"arn:{partition}:apigateway:{region}::/apikeys"
        self._tagging: Any = tagging
        self._stack = stack
        self._cache = _Cache(clock)

    def of_key(self, key_id: str) -> Rights:
        """Read a key's rights. Raises NotAllowed for a key that was deleted, RightsUnavailable."""
        return self._cache.get(f"key {key_id}", lambda: self._read_key(key_id))

    def targets(self) -> tuple[dict[str, Target], list[str]]:
        """List the stack's targets by name, and the faults of their tags. Raises RightsUnavailable."""
        return self._cache.get("targets", self._read_targets)

    def _read_key(self, key_id: str) -> Rights:
        """Read a key's tags by a call that gives tags alone: GetApiKey can be made to give the value.

        Whether the key is enabled API Gateway has checked: it passed the request on.
        https://docs.aws.amazon.com/apigateway/latest/api/API_GetTags.html
        """
        try:
            answer = self._apigateway.get_tags(resourceArn=f"{self._keys_arn}/{key_id}")
        except ClientError as error:
            if error.response["Error"]["Code"] == "NotFoundException":
                raise NotAllowed(TAG_TARGETS, "the key does not exist any more") from error
            raise _unavailable("API Gateway answered {} when asked for the key's tags", error) from error
        except BotoCoreError as error:
            raise RightsUnavailable(f"API Gateway did not answer: {type(error).__name__}") from error
        tags = answer.get("tags", {})
        return read_rights(Principal(key_id, tags.get(TAG_NAME) or key_id), tags)

    def _read_targets(self) -> tuple[dict[str, Target], list[str]]:
        groups: dict[str, dict[str, str]] = {}
        try:
            pages = self._tagging.get_paginator("get_resources").paginate(
                TagFilters=[{"Key": TAG_STACK, "Values": [self._stack]}],
                ResourceTypeFilters=["ec2:security-group"],
            )
            for page in pages:
                for resource in page["ResourceTagMappingList"]:
                    group = resource["ResourceARN"].rpartition("/")[2]
                    groups[group] = {tag["Key"]: tag["Value"] for tag in resource["Tags"]}
        except ClientError as error:
            raise _unavailable("the tagging API answered {} when asked for the targets", error) from error
        except BotoCoreError as error:
            raise RightsUnavailable(f"the tagging API did not answer: {type(error).__name__}") from error
        return read_targets(groups)
