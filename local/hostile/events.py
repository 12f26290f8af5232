"""EventBridge at best effort: Step Functions' status-change events come late, twice, or never.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-service-event-delivery-level.html
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from local.hostile.dice import Dice, Moment

LOSES, TWICE = 0.02, 0.10

Publish = Callable[[str, str, dict[str, Any]], None]
"""Puts a service's event on the default bus of an account's region."""


class Unreliable:
    """Delivers events late, twice or never; `lost` names the executions whose end was not delivered."""

    def __init__(
        self,
        dice: Dice,
        moment: Moment,
        at: Callable[[datetime, Callable[[], None]], object],
        count: Callable[[str], None],
    ) -> None:
        self._dice, self._moment, self._at, self._count = dice, moment, at, count
        self.lost: list[str] = []

    def carry(self, deliver: Publish) -> Publish:
        """Return a `publish` that passes events to `deliver`, late, twice or never."""

        def carry(account: str, region: str, event: dict[str, Any]) -> None:
            status = event["detail"]["status"]
            dice = self._dice.throw("event", status)
            self._count("events")
            if dice.random() < LOSES:
                if status != "RUNNING":
                    self.lost.append(event["detail"]["name"])
                return
            for _ in range(2 if dice.random() < TWICE else 1):
                when = self._moment.now() + self._moment.delay(dice, 60)
                self._at(when, lambda: deliver(account, region, event))

        return carry
