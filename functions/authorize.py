"""AuthorizeIngress: opens what a grant asks for, or raises an error the state machine knows by name."""

from __future__ import annotations

import ipaddress
import os
from functools import cache
from typing import Any

from grants.errors import KnockError
from grants.operations import Opened
from grants.settings import read_rules_per_group
from grants.values import Grant
from grants.wiring import Wiring, count, logger, metrics, prepare


class AuthorizeWiring(Wiring):
    """What only this task needs beside the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.rules_per_group = read_rules_per_group(os.environ)


wiring = cache(AuthorizeWiring)
prepare(lambda: wiring().operations)


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> list[dict[str, object]]:
    """Authorize the grant in `event["grant"]`; the answer is the state's `$.rules`.

    Twice adds nothing. Raises InvalidGrant, GrantEnded, PoolExhausted, or an error worth another try.
    """
    grant = Grant.from_input(event["grant"])
    logger.append_keys(grant_id=grant.id)
    opened = wiring().operations.authorize(grant)
    count("GrantOpened")
    logger.info("authorized", extra={"grant_id": grant.id, "rules": [rule.as_json() for rule in opened]})
    _report_room(grant, opened)
    return [rule.as_json() for rule in opened]


def _report_room(grant: Grant, opened: list[Opened]) -> None:
    """Count the rules that the last group of a pool still takes, when this grant had to use it.

    For an alarm, after the door is open: not knowing is logged, and no reason to close it again.
    """
    last = {target.name: max(target.groups) for target in grant.targets}
    version = ipaddress.ip_network(grant.source).version
    for group in {rule.key.group for rule in opened if rule.key.group == last[rule.target]}:
        try:
            used = wiring().ingress.used(group)[version]
        except KnockError:
            logger.warning("room_not_known", extra={"group": group}, exc_info=True)
        else:
            count("PoolFree", max(0, wiring().rules_per_group - used))
