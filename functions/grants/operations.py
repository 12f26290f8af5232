"""What authorizing and closing need of a stack, and the shell around the ledger's transitions.

`opening` and `closing` hold the order of calls that keeps the invariants (docs/protocol.md). Both may run
twice, at once, late, or after the grant ended; tests/proofs tries every order. Nothing here knows boto3.
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
from .ledger import Ledger
from .ledgers import Snapshot, Unreadable
from .policy import Limits
from .values import Grant, Opened, Ports, Record, Rule, RuleKey, State

# Conflicts in a row that one writer puts up with. With a source's 64 claims in flight at once each has its
# turn.
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
    """The security group has no room for what was to be added; nothing was."""


class GroupGone(KnockError):
    """There is no such security group any more, or EC2 does not know it yet."""


class RuleDuplicate(KnockError):
    """A rule that was to be added is there already, or EC2 still says so; nothing was added."""


class RuleNotFound(KnockError):
    """A rule that was to be removed is not there, or EC2 does not know it yet; nothing was removed."""


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


@dataclass(frozen=True, slots=True)
class Execution:
    """A grant's execution: its status (`RUNNING`, `SUCCEEDED`, …), and its input as text."""

    status: str
    input: str


class Executions(Protocol):
    """What `executions.Executions` does; the tests' in-memory twin does the same."""

    def stop(self, grant_id: str, error: str, cause: str) -> bool: ...
    def describe(self, grant_id: str) -> Execution | None: ...
    def running(self) -> Iterator[tuple[str, datetime]]: ...


class Closings(Protocol):
    """What `executions.Closings` does: start something that closes a grant however long that takes."""

    def start(self, grant_id: str, closing: Mapping[str, Any]) -> None: ...


Transition = Callable[[Ledger], Ledger]

# For functions that open nothing.
NOTHING = Limits(timedelta(0), timedelta(0), 0)


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
    limits: Limits = NOTHING
    rules_per_group: int = 60
    count: Callable[[str, float], None] = lambda _metric, _value: None
    token: Callable[[], str] = lambda: os.urandom(4).hex()
    sleep: Callable[[float], None] = time.sleep

    def change(self, source: str, transition: Transition, known: Snapshot | None = None) -> Snapshot:
        """Apply a transition to a source's ledger, and write it if nobody else has since it was read; else
        again.

        `known` is a ledger read before, which saves a call. Nothing is written where nothing changes. What
        the transition raises is raised; RuleUnsettled when others write too often to get a turn.
        """
        for conflicts in range(MOST_CONFLICTS):
            snapshot = known or self.ledgers.read(source)
            after = transition(snapshot.ledger)
            if after == snapshot.ledger:
                return snapshot
            written = self.ledgers.write(snapshot, after)
            if written:
                return written
            known = None
            self.sleep(random.uniform(0, min(0.01 * 2 ** min(conflicts, 5), 0.25)))  # noqa: S311  # jitter
        raise RuleUnsettled(f"too many change what {source} may reach at once")
