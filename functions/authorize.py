"""AuthorizeIngress: opens what a grant asks for, or raises an error the state machine knows by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

from grants.opening import authorize
from grants.operations import Operations
from grants.settings import read_max_duration, read_rules_per_group
from grants.values import Grant
from grants.wiring import WARM, Wiring, count, logger, metrics, prepare

# Characters. A state above 256 KiB kills its execution past every Catch: there must be room for the rules and
# for an error's cause. https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
LARGEST_STATE = 128 * 1024


class AuthorizeWiring(Wiring):
    """The settings that only this task needs."""

    @cached_property
    def opening(self) -> Operations:
        limits, rules = read_max_duration(os.environ), read_rules_per_group(os.environ)
        return replace(self.operations, limits=limits, rules_per_group=rules)


wiring = cache(AuthorizeWiring)
prepare(lambda: wiring().opening)


def _is_too_large(state: object) -> bool:
    try:
        return len(json.dumps(state)) > LARGEST_STATE
    except RecursionError:
        return True


@metrics.log_metrics
def handler(event: dict[str, Any], _context: object) -> list[dict[str, object]]:
    """Authorize the grant in `event["grant"]`; the answer is the state's `$.rules`.

    Twice adds nothing. Raises InvalidGrant, GrantEnded, PoolExhausted, SourceFull, TargetGone,
    IngressRefused, StoreRefused, or a transient error.
    """
    if event == WARM:
        return []
    grant = Grant.from_input(event["grant"])
    logger.append_keys(grant_id=grant.id)
    opened = authorize(wiring().opening, grant, too_large=_is_too_large(event["grant"]))
    count("GrantOpened")
    logger.info("authorized", extra={"grant_id": grant.id, "rules": [rule.as_json() for rule in opened]})
    return [rule.as_json() for rule in opened]
