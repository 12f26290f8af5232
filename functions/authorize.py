"""AuthorizeIngress: opens what a grant asks for, or raises an error the state machine knows by name."""

from __future__ import annotations

from functools import cache
from typing import Any

from grants.values import Grant
from grants.wiring import Wiring, count, logger, metrics

wiring = cache(Wiring)


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> list[dict[str, object]]:
    """Authorize the grant in `event["grant"]`; the answer is the state's `$.rules`.

    Twice adds nothing. Raises InvalidGrant, GrantEnded, PoolExhausted, or an error worth another try.
    """
    grant = Grant.from_input(event["grant"])
    logger.append_keys(grant_id=grant.id)
    opened = wiring().operations.authorize(grant)
    count("GrantOpened")
    logger.info("authorized", extra={"rules": [rule.as_json() for rule in opened]})
    return [rule.as_json() for rule in opened]
