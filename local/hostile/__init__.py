"""A hostile AWS around the embedded one: faults and delays that AWS documents or its users report.

`Hostile` is a watcher of the stack's AWS endpoint (`local.endpoint`): it sees every AWS call of every
program, and throttles it, fails it before or after its effect, or answers it as a replica that lags behind
would. Three things do not pass the endpoint, so the stack hands them over: the keys that the gateway accepts
(`keys`), the events of Step Functions (`publish`), and a function's start (`admit`).

Each kind of fault is a *row* of `ROWS`, and can be chosen alone or with others; docs/simulated-aws.md has
their sources. Faults are drawn from a seed, by the kind of a call and its number among the calls of that kind
(`local.hostile.dice`): two runs with the same seed have the same faults as far as they make the same calls.

    python -m local up --hostile 7
    python -m local up --hostile-only ec2-lag,events --hostile-scale 0.1

Calls signed with the access key TRUTH meet no faults: tests use it to check the true state.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from local.endpoint import Answer, Call, Forward, Watcher
from local.gateway import Keys
from local.hostile.apigateway import ControlPlane, KeyLag, KeyNames
from local.hostile.dice import Dice, Moment
from local.hostile.ec2 import Ec2Errors, Ec2Lag, Ec2Lenient, Ec2Throttle
from local.hostile.events import Publish, Unreliable
from local.hostile.functions import Lambda
from local.hostile.iam import PermissionLag
from local.hostile.states import StatesLag
from local.hostile.stores import ClosedSimpleDb, Store
from local.hostile.tagging import TaggingLag

__all__ = ["ALONE", "ROWS", "TRUTH", "Hostile", "Plan"]

TRUTH = "AKIATRUTH"

# row → its effect on a client; the figures are probabilities and ranges of delays
ROWS = {
    "sdb": "SimpleDB answers 503 [2 %], or loses the answer to a write it has made [1 %]",
    "dynamodb": "DynamoDB throttles [2 %], or loses the answer to a write it has made [1 %]",
    "ec2-lag": "a rule just made is hidden and its id unknown, one just revoked is listed and called a"
    " duplicate [0-10 s, now and then 130 s]; two lists in a row differ",
    "ec2-throttle": "EC2 takes 50 changes, then 5 a second; 100 lists, then 20 a second",
    "ec2-errors": "EC2 answers 5xx before [1 %] or after [1 %] it has acted",
    "ec2-lenient": "revoking an unknown rule succeeds, and names the revoked rules [half of the time]",
    "tagging": "the tagging API lists deleted groups [5 min-3 h], and new tags late [0-60 s]",
    "control-plane": "API Gateway's control plane takes 40 calls, then 10 a second, for the whole account",
    "key-lag": "a new, changed or disabled API key takes effect late [0-60 s, now and then 150 s]",
    "key-name": "an API key is shown without a name [20 %]",
    "states-lag": "ListExecutions and DescribeExecution are behind [0-5 s]",
    "events": "status-change events come late [0-60 s], twice [10 %] or never [2 %]",
    "concurrency": "the account runs 10 functions at a time",
    "cold-starts": "a function starts cold [0.3-2 s] when more of it run than before, and now and then",
    "sdb-closed": "SimpleDB refuses the account",
    "iam-lag": "a role of the new stack is denied what its policy grants [0-10 s]",
}
ALONE = ("sdb-closed", "iam-lag")
"""Rows that have to be named: a stack that runs normally is past them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a hostile AWS, and its seed. `scale` multiplies every delay, and no rate."""

    seed: int
    rows: tuple[str, ...] = tuple(row for row in ROWS if row not in ALONE)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse unknown rows and scales. Raises ValueError with a message for the command line."""
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"there is no row {row!r}; there are {', '.join(ROWS)}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"a scale is more than 0 and at most 1, not {self.scale:g}")

    @classmethod
    def of(cls, seed: int, only: str | None = None, scale: float = 1.0) -> Plan:
        """Read a plan from the command line: `only` names rows, separated by commas. Raises ValueError."""
        return cls(seed, tuple(only.split(",")), scale) if only else cls(seed, scale=scale)

    def as_json(self) -> dict[str, Any]:
        return {"seed": self.seed, "rows": list(self.rows), "scale": self.scale}


class Hostile:
    """The faults of a plan, as a watcher of the endpoint. They begin with `begin`; sdb-closed at once."""

    def __init__(
        self,
        plan: Plan,
        clock: Callable[[], datetime],
        at: Callable[[datetime, Callable[[], None]], object],
    ) -> None:
        """Prepare the faults; `clock` is the stack's time, and `at` calls back at a time on it."""
        self.plan = plan
        dice = Dice(plan.seed)
        moment = Moment(clock, plan.scale)
        self._begun = False
        self._counting = threading.Lock()
        count = self._count
        self._key_lag = KeyLag(dice, moment, count) if "key-lag" in plan.rows else None
        self._states = StatesLag(dice, moment) if "states-lag" in plan.rows else None
        self.events = Unreliable(dice, moment, at, count) if "events" in plan.rows else None
        self._functions = (
            Lambda(dice, moment, count, limited="concurrency" in plan.rows, cold="cold-starts" in plan.rows)
            if {"concurrency", "cold-starts"} & set(plan.rows)
            else None
        )
        # In the order in which they see a call: throttling comes before, a lost answer after the effect.
        watchers: list[tuple[str, str, Watcher]] = [
            ("iam-lag", "", PermissionLag(dice, moment)),
            ("sdb", "sdb", Store(dice)),
            ("dynamodb", "dynamodb", Store(dice)),
            ("ec2-throttle", "ec2", Ec2Throttle(moment)),
            ("ec2-errors", "ec2", Ec2Errors(dice)),
            ("ec2-lag", "ec2", Ec2Lag(dice, moment, lenient="ec2-lenient" in plan.rows)),
            ("ec2-lenient", "ec2", Ec2Lenient(dice)),
            ("tagging", "ec2", tagging := TaggingLag(dice, moment)),
            ("tagging", "tagging", tagging),
            ("control-plane", "apigateway", ControlPlane(moment)),
            ("key-name", "apigateway", KeyNames(dice)),
        ]
        if self._key_lag:
            watchers.append(("key-lag", "apigateway", self._key_lag))
        if self._states:
            watchers.append(("states-lag", "states", self._states))
        self._watchers = [(row, service, watcher) for row, service, watcher in watchers if row in plan.rows]
        self.met: Counter[str] = Counter()
        """How many answers each row has changed or withheld."""
        self._closed = ClosedSimpleDb() if "sdb-closed" in plan.rows else None

    def begin(self) -> None:
        """Begin with faults and delays: the stack is set up."""
        self._begun = True

    def __call__(self, call: Call, forward: Forward) -> Answer:
        """Answer one call: through the watchers of its service, last of all by AWS."""
        if call.access_key == TRUTH:
            return forward()
        if self._closed and call.service == "sdb":
            return self._closed(call, forward)
        if not self._begun:
            return forward()
        for row, service, watcher in reversed(self._watchers):
            if service in ("", call.service):
                forward = self._passing(row, watcher, call, forward)
        return forward()

    def _passing(self, row: str, watcher: Watcher, call: Call, forward: Forward) -> Forward:
        """Return `forward` for the watcher before this one; a call with another body bypasses it."""

        def passing(body: bytes | None = None) -> Answer:
            if body is not None:
                return forward(body)
            answers: list[Answer] = []

            def forward_and_note(*changed_body: bytes) -> Answer:
                answers.append(forward(*changed_body))
                return answers[-1]

            answer = watcher(call, forward_and_note)
            if all(answer is not genuine for genuine in answers):
                self._count(row)
            return answer

        return passing

    def _count(self, row: str) -> None:
        with self._counting:
            self.met[row] += 1

    def keys(self, actual_keys: Keys) -> Keys:
        """Return the keys that the gateway accepts now."""
        return self._key_lag.known(actual_keys) if self._key_lag else actual_keys

    def publish(self, deliver: Publish) -> Publish:
        """Return the `publish` of Step Functions' events, with the faults of EventBridge."""
        carry = self.events.carry(deliver) if self.events else deliver

        def publish(account: str, region: str, event: dict[str, Any]) -> None:
            if self._states:
                self._states.hear(event)
            (carry if self._begun else deliver)(account, region, event)

        return publish

    def admit(self, function: str) -> AbstractContextManager[None]:
        """Admit one run of a function. Raises InvocationError when the account's concurrency is used up."""
        return self._functions.admit(function) if self._functions and self._begun else nullcontext()
