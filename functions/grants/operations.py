"""What authorizing and closing need of a stack, and the compare-and-set around the ledger's transitions.

`opening` and `closing` hold the order of calls that keeps the invariants (docs/protocol.md). Both may run
twice, at once, late, or after the grant ended; tests/proofs tries every order. No boto3 here.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from .errors import KnockError, RuleUnsettled
from .ledger import Ledger, Snapshot
from .policy import Limits
from .values import Execution, Grant, Opened, Ports, Record, Rule, RuleKey, State, Unreadable

# Conflicts in a row before a writer gives up: with 64 claims of a source in flight at once, each is written.
MOST_CONFLICTS = 80


class Trail(Protocol):
    """What `trail.Trail` does; the tests' in-memory twin does the same."""

    def record(self, grant: Grant) -> Record: ...
    def authorize(
        self, grant_id: str, at: datetime, opened: Sequence[Opened], left_out: Sequence[str] = ()
    ) -> None: ...
    def end(
        self, grant_id: str, how: State, at: datetime, by: str, reason: str, grant: Grant | None = None
    ) -> bool: ...
    def close(
        self, grant_id: str, at: datetime, closer: str, revoked: Iterable[str], kept: Iterable[str]
    ) -> bool: ...
    def get(self, grant_id: str) -> Record | None: ...
    def unclosed(self) -> Iterator[Record | Unreadable]: ...


class Ledgers(Protocol):
    """What `ledgers.Ledgers` does; the tests' in-memory twin does the same."""

    def read(self, source: str) -> Snapshot: ...
    def write(self, before: Snapshot, after: Ledger) -> Snapshot | None: ...
    def all(self) -> Iterator[Snapshot | Unreadable]: ...


class Group(Protocol):
    """What `ingress.Group` says of a security group."""

    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def rule_keys(self) -> frozenset[RuleKey]: ...
    @property
    def used(self) -> Mapping[int, int]: ...


class GroupFull(KnockError):
    """The security group has no room for the rules of a call; none was added."""


class GroupGone(KnockError):
    """The security group was deleted, or EC2 does not know it yet."""


class RuleDuplicate(KnockError):
    """A rule of a call exists already, or did until lately; none was added."""


class RuleNotFound(KnockError):
    """A rule of a call does not exist, or EC2 does not know it yet; none was removed."""


class Ingress(Protocol):
    """What `ingress.Ingress` does; the tests' in-memory twin does the same."""

    @property
    def stack(self) -> str: ...
    def authorize(
        self, group: str, ports: Sequence[Ports], cidr: str, grant_id: str
    ) -> dict[RuleKey, str]: ...
    def revoke(self, group: str, rule_ids: Sequence[str]) -> frozenset[str]: ...
    def groups(self, groups: Iterable[str]) -> Mapping[str, Group]: ...
    def find(self, groups: Iterable[str]) -> list[Rule]: ...
    def tagged(self, grant_id: str) -> list[Rule]: ...
    def show(self, rule_ids: Iterable[str]) -> list[Rule]: ...
    def ours(self) -> list[Rule]: ...
    def is_ours(self, rule: Rule) -> bool: ...


class Executions(Protocol):
    """What `executions.Executions` does; the tests' in-memory twin does the same."""

    def stop(self, grant_id: str, error: str, cause: str) -> bool: ...
    def describe(self, grant_id: str) -> Execution | None: ...
    def running(self) -> Iterator[tuple[str, datetime]]: ...


class Closings(Protocol):
    """What `executions.Closings` does: start an execution that closes a grant however long that takes."""

    def start(self, grant_id: str, closing: Mapping[str, Any]) -> None: ...


Transition = Callable[[Ledger], Ledger]

# For functions that open nothing.
NO_GRANTS = Limits(timedelta(0), timedelta(0), 0)


@dataclass(frozen=True, slots=True)
class Operations:
    """One stack's trail, ledgers, groups and executions, and the clock, in UTC.

    `count` adds to a metric; `token` makes an attempt's name unique; `sleep` waits so many seconds.
    """

    trail: Trail
    ledgers: Ledgers
    ingress: Ingress
    executions: Executions
    closings: Closings
    clock: Callable[[], datetime]
    limits: Limits = NO_GRANTS
    rules_per_group: int = 60
    count: Callable[[str, float], None] = lambda _metric, _value: None
    token: Callable[[], str] = lambda: os.urandom(4).hex()
    sleep: Callable[[float], None] = time.sleep

    def change(self, source: str, transition: Transition, cached: Snapshot | None = None) -> Snapshot:
        """Apply a transition to a source's ledger by compare-and-set, and again after a conflict.

        `cached` is a ledger read before, which saves a call. Nothing is written where nothing changes. Raises
        what the transition raises, and RuleUnsettled after MOST_CONFLICTS.
        """
        for conflicts in range(MOST_CONFLICTS):
            snapshot = cached or self.ledgers.read(source)
            after = transition(snapshot.ledger)
            if after == snapshot.ledger:
                return snapshot
            written = self.ledgers.write(snapshot, after)
            if written:
                return written
            cached = None
            self.sleep(random.uniform(0, min(0.01 * 2 ** min(conflicts, 5), 0.25)))  # noqa: S311  # jitter
        raise RuleUnsettled(f"too many runs write the ledger of {source} at once")
