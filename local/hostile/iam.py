"""Permissions that take effect late: a role that is seconds old may be denied what its policy allows."""

from __future__ import annotations

import threading
from datetime import datetime

from local.endpoint import Answer, Call, Forward, failure
from local.hostile.dice import Dice, Moment

DENIES = 0.7

_CODES = {"ec2": "UnauthorizedOperation", "sdb": "AuthorizationFailure", "dynamodb": "AccessDeniedException"}


class PermissionLag:
    """Denies calls of each role, each by a throw, until the role's delay after its first call is over."""

    def __init__(self, dice: Dice, moment: Moment) -> None:
        self._dice, self._moment = dice, moment
        self._until: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if not call.access_key.startswith("ASIA"):  # not a role's
            return forward()
        with self._lock:
            if call.access_key not in self._until:
                lag = self._moment.delay(self._dice.of("role", call.access_key), 10)
                self._until[call.access_key] = self._moment.now() + lag
            young = self._moment.now() < self._until[call.access_key]
        if young and self._dice.throw("role", call.service, call.access_key).random() < DENIES:
            code = _CODES.get(call.service, "AccessDeniedException")
            return failure(call, code, "not authorized to perform this operation", 403)
        return forward()
