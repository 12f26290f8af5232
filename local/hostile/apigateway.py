"""API Gateway: the control plane's request limit, keys that take effect late, and keys without a name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from local.endpoint import Answer, Call, Forward, failure
from local.gateway import Caller, Keys
from local.hostile.dice import Bucket, Dice, Moment

NAMELESS = 0.2


class ControlPlane:
    """Ten requests a second and a burst of forty, for the whole account; the quota cannot be raised.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    """

    def __init__(self, moment: Moment) -> None:
        self._bucket = Bucket(moment.now, 40, 10)

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if self._bucket.take():
            return forward()
        return failure(call, "TooManyRequestsException", "Too Many Requests", 429)


class KeyNames:
    """Shows some keys without a name, as API Gateway's model allows: always the same keys."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._nameless: dict[str, bool] = {}
        self._lock = threading.Lock()

    def __call__(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if call.operation not in ("GetApiKey", "GetApiKeys") or answer.status != 200:
            return answer
        body, nameless = json.loads(answer.body), 0
        for key in body.get("item", [body]):
            with self._lock:
                if key["id"] not in self._nameless:
                    self._nameless[key["id"]] = self._dice.throw("nameless").random() < NAMELESS
                if self._nameless[key["id"]]:
                    nameless += bool(key.pop("name", None))
        if not nameless:
            return answer
        return Answer(answer.status, answer.headers, json.dumps(body).encode())


class KeyLag:
    """Keys in the gateway that lag behind the control plane: a change takes effect after its delay.

    The actual keys are read after each call that may have changed a key, and at each request.
    """

    def __init__(self, dice: Dice, moment: Moment, count: Callable[[str], None]) -> None:
        self._dice, self._moment, self._count = dice, moment, count
        self._actual_keys: Keys = lambda: ()
        self._now: dict[str, Caller] = {}
        # id → the key before its change, and until when that is in effect
        self._late: dict[str, tuple[Caller | None, datetime]] = {}
        self._began = False
        self._lock = threading.Lock()

    def known(self, actual_keys: Keys) -> Keys:
        """Begin with the present keys, without delay; return the gateway's source of keys."""
        self._actual_keys = actual_keys

        def effective_keys() -> Iterable[Caller]:
            with self._lock:
                self._look()
                now = self._moment.now()
                self._late = {
                    key: (before, until) for key, (before, until) in self._late.items() if now < until
                }
                effective: dict[str, Caller | None] = {**self._now}
                effective |= {key: before for key, (before, _) in self._late.items()}
            return [caller for caller in effective.values() if caller]

        return effective_keys

    def __call__(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if not call.operation.startswith("Get"):
            with self._lock:
                self._look()
        return answer

    def _look(self) -> None:
        actual = {caller.key_id: caller for caller in self._actual_keys()}
        if self._began:
            for key in actual.keys() | self._now.keys():
                before = self._now.get(key)
                if actual.get(key) != before and key not in self._late:
                    lag = self._moment.delay(self._dice.throw("key"), 60, 150, 0.1)
                    self._count("key-lag")
                    self._late[key] = before, self._moment.now() + lag
        self._began, self._now = True, actual
