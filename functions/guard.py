"""The drift guard's entry point: daily, and when an operator asks for it."""

from __future__ import annotations

from functools import cache
from typing import Any

from grants.drift import guard
from grants.wiring import Wiring, count, logger, metrics, prepare

wiring = cache(Wiring)
prepare(lambda: wiring().operations)


@metrics.log_metrics
def handler(_event: dict[str, Any], _context: object) -> dict[str, list[dict[str, str]]]:
    """Compare trail, rules and executions, mend what has drifted, and tell. Expected to find nothing.

    The metric DriftFound is written every time, 0 too: an alarm can then tell silence from calm.
    """
    findings = [finding.as_json() for finding in guard(wiring().operations)]
    count("DriftFound", len(findings))
    for finding in findings:
        logger.error("drift_found", extra={"finding": finding})
    return {"findings": findings}
