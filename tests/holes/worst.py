"""EC2 at its worst, between the functions and the embedded one: slow, with late lists and unknown ids.

Documented by AWS in "Eventual consistency in the Amazon EC2 API", and reported by users in
https://github.com/hashicorp/terraform/issues/6325. The test's own calls see the rules as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from tests.harness import Crash, Knock

NONE = timedelta(0)


@dataclass
class Worst:
    """EC2 at its worst, as a function's calls meet it.

    `hides`: how long lists leave a new rule out. `unknown`: how long a revocation does not know its id,
    which is NotFound, or with `lenient`, as in a default VPC, success that names the rules removed. `takes`:
    how long a call takes on the stack's clock. `kills_after`: when Lambda kills a function.
    """

    knock: Knock
    hides: timedelta = NONE
    unknown: timedelta = NONE
    lenient: bool = False
    takes: timedelta = NONE
    kills_after: timedelta | None = None
    authorized_at: dict[str, datetime] = field(default_factory=dict)
    calls: list[tuple[str, datetime]] = field(default_factory=list)
    killed: int = 0
    _began: ContextVar[datetime | None] = field(default_factory=lambda: ContextVar("began", default=None))

    @contextmanager
    def function(self, _name: str) -> Iterator[None]:
        token = self._began.set(self.knock.clock.now())
        try:
            yield
        finally:
            self._began.reset(token)

    def call(self, real: Callable[..., Any], client: BaseClient, operation: str, arguments: Any) -> Any:
        began = self._began.get()
        if began is None or client.meta.service_model.service_name != "ec2":
            return real(client, operation, arguments)
        self.calls.append((operation, self.knock.clock.now()))
        self.knock.clock.advance(self.takes)
        if self.kills_after is not None and self.knock.clock.now() - began > self.kills_after:
            self.killed += 1
            raise Crash("Task timed out")
        if operation == "RevokeSecurityGroupIngress":
            return self._revoke(real, client, arguments)
        answer = real(client, operation, arguments)
        if operation == "AuthorizeSecurityGroupIngress":
            now = self.knock.clock.now()
            self.authorized_at |= {rule["SecurityGroupRuleId"]: now for rule in answer["SecurityGroupRules"]}
        if operation == "DescribeSecurityGroupRules":
            rules = answer["SecurityGroupRules"]
            rules[:] = [r for r in rules if not self._younger(r["SecurityGroupRuleId"], self.hides)]
        return answer

    def _revoke(self, real: Callable[..., Any], client: BaseClient, arguments: Any) -> Any:
        ids = arguments["SecurityGroupRuleIds"]
        known = [rule_id for rule_id in ids if not self._younger(rule_id, self.unknown)]
        if self.lenient:
            present = {rule["SecurityGroupRuleId"] for rule in self.knock.of_group(arguments["GroupId"])}
            known = [rule_id for rule_id in known if rule_id in present]
            if not known:
                return {"Return": True, "RevokedSecurityGroupRules": []}
        elif len(known) < len(ids):
            raise _error("InvalidSecurityGroupRuleId.NotFound", "RevokeSecurityGroupIngress")
        return real(client, "RevokeSecurityGroupIngress", arguments | {"SecurityGroupRuleIds": known})

    def _younger(self, rule_id: str, age: timedelta) -> bool:
        at = self.authorized_at.get(rule_id)
        return at is not None and self.knock.clock.now() - at < age


@contextmanager
def worst(knock: Knock, **how: Any) -> Iterator[Worst]:
    """Put EC2 at its worst between every function and EC2."""
    ec2 = Worst(knock, **how)
    real = BaseClient._make_api_call  # type: ignore[attr-defined]
    before, knock.around = knock.around, ec2.function

    def call(client: BaseClient, operation: str, arguments: Any) -> Any:
        return ec2.call(real, client, operation, arguments)

    try:
        with mock.patch.object(BaseClient, "_make_api_call", call):
            yield ec2
    finally:
        knock.around = before


def delete(knock: Knock, domain: str, item: str) -> None:
    """Lose an item of the trail or the ledger."""
    name = os.environ[f"{domain.upper()}_DOMAIN"]
    knock.client("sdb").delete_attributes(DomainName=name, ItemName=item)


def _error(code: str, operation: str) -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": "as AWS may"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    return ClientError(answer, operation)
