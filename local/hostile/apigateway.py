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
    """Ten requests a second and a burst of forty, of everybody in the account together; not raisable.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    """

    def __init__(self, moment: Moment) -> None:
        self._bucket = Bucket(moment.now, 40, 10)

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if self._bucket.take():
            return forward()
        return failure(call, "TooManyRequestsException", "Too Many Requests", 429)


class KeyNames:
    """Shows some keys without a name, as its model allows: always the same ones."""

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
    """What the gateway knows of the keys is late: a change shows when its delay is over.

    It looks at the keys after each call that may have changed one, and at each request.
    """

    def __init__(self, dice: Dice, moment: Moment, count: Callable[[str], None]) -> None:
        self._dice, self._moment, self._count = dice, moment, count
        self._really: Keys = lambda: ()
        self._now: dict[str, Caller] = {}
        self._late: dict[str, tuple[Caller | None, datetime]] = {}  # id → as it was, and until when it is
        self._began = False
        self._lock = threading.Lock()

    def known(self, really: Keys) -> Keys:
        """Begin with the keys there are, which are all known; give what the gateway knows at each request."""
        self._really = really

        def known() -> Iterable[Caller]:
            with self._lock:
                self._look()
                now = self._moment.now()
                self._late = {key: late for key, late in self._late.items() if now < late[1]}
                shown: dict[str, Caller | None] = {**self._now}
                shown |= {key: was for key, (was, _) in self._late.items()}
            return [caller for caller in shown.values() if caller]

        return known

    def __call__(self, call: Call, forward: Forward) -> Answer:
        answer = forward()
        if not call.operation.startswith("Get"):
            with self._lock:
                self._look()
        return answer

    def _look(self) -> None:
        really = {caller.key_id: caller for caller in self._really()}
        if self._began:
            for key in really.keys() | self._now.keys():
                was = self._now.get(key)
                if really.get(key) != was and key not in self._late:
                    lag = self._moment.delay(self._dice.throw("key"), 60, 150, 0.1)
                    self._count("key-lag")
                    self._late[key] = was, self._moment.now() + lag
        self._began, self._now = True, really
