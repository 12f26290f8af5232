"""How long things take at most, each number derived from the ones above it.

A run of authorize sends calls to EC2 for ACTS at most: then Lambda kills it. A call that was sent takes
effect within CALL, or never. What took effect shows in EC2's lists within EC2_LAG. So SETTLES after an
attempt began, its effect is final and visible: the attempt is quiescent. tests/unit/test_timing.py ties these
to the timeouts in template.yaml, to the clients' own, and to the patience of the state machines.

        attempt ──────────── ACTS ─┬─ CALL ─┬──────────── EC2_LAG ─┐
        written    calls are sent  │ effect │ lists may not show it │ quiescent
"""

from __future__ import annotations

from datetime import timedelta

# The Timeout of the functions that change security groups.
ACTS = timedelta(seconds=20)

# One call to EC2, connecting and reading, without a second try.
CONNECT_TIMEOUT, READ_TIMEOUT = 2, 8
CALL = timedelta(seconds=CONNECT_TIMEOUT + READ_TIMEOUT)

# For how long EC2 may hide a rule that it has made, show one that it has removed, or not know an id. AWS
# names no number; more than two minutes have been seen: https://github.com/hashicorp/terraform/issues/6325
# https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
EC2_LAG = timedelta(seconds=150)

SETTLES = ACTS + CALL + EC2_LAG

# By how much two functions' clocks may differ: a claim counts this much longer than its grant.
SKEW = timedelta(seconds=5)

# How often a run records its progress, so that a run which is cut off loses little.
PROGRESS = timedelta(seconds=4)

# How long after a knock EC2 may not show a target's tags yet, though the tagging API, which lags more, did.
TAGS_LAG = timedelta(seconds=15)

# Force tries to reach the trail and the ledger, with one call each, connecting and reading, before it revokes
# without them.
FORCE_CONNECT_TIMEOUT, FORCE_READ_TIMEOUT = 1, 2
FORCE_PATIENCE = 2 * timedelta(seconds=FORCE_CONNECT_TIMEOUT + FORCE_READ_TIMEOUT)

# How long the guard leaves a change to the run that made it and its retries: those of RevokeIngress, and
# SETTLES.
GRACE = timedelta(minutes=15)

# How far behind Step Functions' answers may be about an execution that has just started.
ENGINE_LAG = timedelta(seconds=10)
