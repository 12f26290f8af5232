"""The drift guard's entry point: hourly, and when an operator asks for it."""

from __future__ import annotations

from functools import cache
from typing import Any

from grants.drift import guard
from grants.wiring import Wiring, count, logger, metrics, prepare

wiring = cache(Wiring)
prepare(lambda: wiring().operations)


@metrics.log_metrics
def handler(_event: dict[str, Any], _context: object) -> dict[str, list[dict[str, str]]]:
    """Compare trail, ledgers, rules and executions, repair drift, and report it: mostly there is none.

    Each finding is logged as soon as it is made, so that repairs before a failure are reported. The metric
    DriftFound is written every time, 0 too: an alarm then notices a guard that does not run.
    """
    findings: list[dict[str, str]] = []
    try:
        for finding in guard(wiring().operations):
            findings.append(finding.as_json())
            logger.error("drift_found", extra={"finding": finding.as_json()})
    finally:
        count("DriftFound", len(findings))
    return {"findings": findings}
