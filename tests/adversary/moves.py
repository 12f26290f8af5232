"""The moves of an attack, drawn: each is one call that a right allows, with an input that is nearly right.

Inputs begin as valid ones (a forged grant under the id of its content, or the input of a grant that there
is), and are then changed in a few places, so that most of them get past the first checks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from botocore.exceptions import ClientError
from hypothesis import strategies as st

from tests.adversary.world import VICTIM_SOURCE, World
from tests.harness import CLOSINGS, MACHINE, STACK

GRANTS = ("alice", "bob", "elsewhere", "ended", "expired", "forged")
HUGE = 150_000  # characters

# ---------------------------------------------------------------------------- a forged grant

BASTION = ("bastion", ("22/tcp",), ("bastion", "second"))
WEB = ("web", ("80/tcp", "443/tcp"), ("web",))
NEAR_MISSES = (
    ("bastion", ("1-65535/tcp",), ("bastion", "second")),
    ("bastion", ("22/udp",), ("bastion",)),
    ("bastion", ("22/tcp", "80/tcp"), ("bastion",)),
    ("bastion", ("22/tcp",), ("web",)),
    ("bastion", ("22/tcp",), ("untagged",)),
    ("bastion", ("22/tcp",), ("other-stack",)),
    ("bastion", ("22/tcp",), ("released",)),
    ("bastion", ("22/tcp",), ("bastion", "other-stack", "untagged", "released", "web")),
    ("bastion", ("22/tcp",), ("sg-*",)),
    ("bastion", ("22/tcp",), ("second", *(f"sg-{number:017x}" for number in range(150)))),
    ("bastion", ("22/tcp",), ("second", *(f"sg-{number}" for number in range(2500)))),
    ("bastion 2", ("22/tcp",), ("odd-name",)),
    ("odd", ("22/tcp",), ("odd-ports",)),
    ("Bastion", ("22/tcp",), ("bastion",)),
    ("web", ("443/tcp", "80/tcp"), ("web",)),
    ("web", ("443/tcp",), ("web",)),
    ("web", ("80/tcp", "443/tcp"), ("web", "bastion")),
)
TARGETS = st.one_of(
    st.sampled_from([(BASTION,), (WEB,), (BASTION, WEB)]),
    st.sampled_from(NEAR_MISSES).map(lambda target: (target,)),
    st.sampled_from(NEAR_MISSES).map(lambda target: (WEB, target)),
    st.sampled_from(NEAR_MISSES).map(lambda target: (target, BASTION)),
)
SOURCES = (
    f"{VICTIM_SOURCE}/32", "203.0.113.200/32", "198.51.100.1/32", "198.51.100.9/32", "8.8.8.0/24",
    "8.8.0.0/23", "0.0.0.0/0", "0.0.0.0/32", "10.0.0.0/24", "10.0.0.1/32", "2600:1f18::1/128",
    "2600:1f18::/56", "2600:1f18::/55", "::/0", "::1/128", "fc00::/56", "::ffff:0:0/96",
)  # fmt: skip


@dataclass(frozen=True)
class Forged:
    """A grant made by hand, under the id of its content.

    `requested` and `lasts` are in seconds: from now to the request, and from the request to the end.
    """

    who: str = "mallory"
    source: str = "198.51.100.9/32"
    targets: tuple[Any, ...] = (BASTION,)
    requested: int = 0
    lasts: int = 3600
    renews: str | None = None
    by_name: bool = True

    def make(self, world: World) -> dict[str, Any]:
        return world.forge(
            self.who,
            self.source,
            self.targets,
            self.requested,
            self.lasts,
            self.renews,
            by_name=self.by_name,
        )


def _changed(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Callable[[Forged], Forged]]:
    return values.map(lambda value: lambda grant: replace(grant, **{name: value}))


CHANGES = st.one_of(
    _changed("who", st.sampled_from(["alice", "bob", "operator"])),
    _changed("source", st.sampled_from(SOURCES)),
    _changed("targets", TARGETS),
    _changed("requested", st.sampled_from([-7200, -3590, -60, 50, 70, 10**9])),
    _changed("lasts", st.sampled_from([1, 30, 86_400, 86_460, 30 * 86_400])),
    _changed("renews", st.sampled_from([*GRANTS, "nobody"])),
    _changed("by_name", st.just(False)),
)


@st.composite
def forged(draw: st.DrawFn) -> Forged:
    """Draw a forged grant: a valid one, changed in up to three places."""
    grant = Forged()
    for change in draw(st.lists(CHANGES, max_size=3)):
        grant = change(grant)
    return grant


# ---------------------------------------------------------------------------- an input

ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.5, 10**30, "", "*", "\ud800", "x" * 300, [], {}, [[]], {"name": 1}]
)
RULES = st.sampled_from([*GRANTS, "foreign", "equal", "theirs", "sgr-*"])
FIELDS = st.sampled_from(
    ["grant_id", "version", "principal", "source", "targets", "by_name", "requested_at", "expires_at",
     "reason", "renews", "nonce", "rules", "error"]
)  # fmt: skip
TAMPERED = st.fixed_dictionaries(
    {},
    optional={
        "targets": st.just([{"name": "bastion", "ports": ["1-65535/tcp"], "groups": ["*"]}]),
        "source": st.sampled_from(SOURCES),
        "expires_at": st.sampled_from(
            ["2999-01-01T00:00:00Z", "2026-11-23T21:17:19Z", "0001-01-01T00:00:00Z"]
        ),
        "requested_at": st.just("0001-01-01T00:00:00.000Z"),
        "reason": st.just("another"),
        "version": st.sampled_from([0, 2, "1", 1.0]),
    },
)


@dataclass(frozen=True)
class Input:
    """An execution's input: `base` is a forged grant, or the word for an existing one.

    A `replacement` other than "-" takes the place of all of it.
    """

    base: Forged | str
    rules: tuple[str, ...] | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    changed: tuple[tuple[str, Any], ...] = ()
    replacement: Any = "-"

    def make(self, world: World) -> Any:
        if self.replacement != "-":
            return self.replacement
        base = self.base.make(world) if isinstance(self.base, Forged) else world.inputs.get(self.base, {})
        value = {**base, **dict(self.extra), **dict(self.changed)}
        if self.rules is not None:
            value["rules"] = [world.rule_of(word) for word in self.rules]
        return value


EXTRA = st.fixed_dictionaries(
    {},
    optional={
        "error": st.sampled_from(
            [{"Error": "GrantEnded", "Cause": '{"errorMessage": "x"}'}, "x", {"Cause": 5}]
        ),
        "rollback_error": st.just({}),
        "revocation": st.just({"status": "expired"}),
        "junk": st.sampled_from(["x" * HUGE, "[" * 500 + "]" * 500]),
        "authorized_at": st.just("2026-11-23T21:17:19.123Z"),
    },
)


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    """Draw an input: a grant's with more fields; sometimes changed under its id; seldom an odd value."""
    base = draw(st.one_of(forged(), forged(), st.sampled_from(GRANTS)))
    rules = draw(st.none() | st.lists(RULES, max_size=3).map(tuple))
    extra = draw(st.just({}) | EXTRA)
    odd = st.tuples(FIELDS, ODD).map(lambda pair: {pair[0]: pair[1]})
    changed = draw(st.one_of(st.just({}), st.just({}), st.just({}), TAMPERED, odd))
    replacement = draw(st.one_of(*[st.just("-")] * 12, ODD))
    return Input(base, rules, tuple(extra.items()), tuple(changed.items()), replacement)


NAMES = st.one_of(st.just("own"), st.just("own"), st.sampled_from([*GRANTS, "free-1", "free-2", "free-3"]))


def _name(word: str, value: Any, world: World) -> str:
    own = value.get("grant_id") if isinstance(value, dict) else None
    return own if word == "own" and isinstance(own, str) and own else world.id_of(word)


def _start(world: World, machine: str, name: str | None, value: Any) -> None:
    """Start an execution. AWS may refuse its name or its size."""
    named = {"name": name} if name else {}
    try:
        world.knock.client("stepfunctions").start_execution(
            stateMachineArn=machine, input=json.dumps(value), **named
        )
    except ClientError:
        return


def _invoke(world: World, payload: Any) -> None:
    world.knock.invoke(f"{STACK}-revoke", json.dumps(payload).encode())


# ---------------------------------------------------------------------------- payloads of the revoke function

TEXTS = st.sampled_from(
    ["", "on call", '"' * 400, "é" * 700, "\ud800", "\x00\n", "GrantEnded: x", "x" * 40_000]
)
WORDS = st.one_of(st.sampled_from(GRANTS), st.sampled_from(["*", "alice*", "?", "", "nobody", "x" * 100]))


@dataclass(frozen=True)
class Payload:
    """A payload of the revoke function: of a task, of an early end, or of a closing."""

    how: Any
    value: Input | str  # an input, or the word for an id that stands alone
    by: Any
    reason: Any
    event: tuple[str, Any, str, Any] | None = None  # name, status, input ("given", "left out" or odd), error

    def make(self, world: World) -> Any:
        value = (
            self.value.make(world) if isinstance(self.value, Input) else {"grant_id": world.id_of(self.value)}
        )
        how = self.how
        if self.event is None and how not in ("close", "force-close"):
            return {"how": how, "grant": value, "by": self.by, "reason": self.reason, "request": "r"}
        return {"how": how, "closing": self.closing(world, value)}

    def closing(self, world: World, value: Any | None = None) -> Any:
        """Give it as a closing's input."""
        if value is None:
            value = (
                self.value.make(world)
                if isinstance(self.value, Input)
                else {"grant_id": world.id_of(self.value)}
            )
        if self.event is None:
            return {"how": "revoked", "grant": value, "by": self.by, "reason": self.reason}
        word, status, text, error = self.event
        detail: dict[str, Any] = {"name": _name(word, value, world), "status": status}
        detail |= {"error": error, "cause": self.reason, "stateMachineArn": MACHINE}
        if text != "left out":
            detail["input"] = json.dumps(value) if text == "given" else text
        return {
            "source": "aws.states",
            "detail-type": "Step Functions Execution Status Change",
            "detail": detail,
        }


PAYLOADS = st.builds(
    Payload,
    st.sampled_from(
        ["expired", "failed", "force", "revoked", "superseded", "close", "force-close", "x", None]
    ),
    st.one_of(inputs(), WORDS),
    st.one_of(TEXTS.map(lambda name: {"id": "k", "name": name}), ODD),
    TEXTS,
    st.none()
    | st.tuples(
        st.one_of(NAMES, WORDS),
        st.sampled_from(["ABORTED", "FAILED", "TIMED_OUT", "RUNNING", None]),
        st.sampled_from(["given", "given", "left out", "[]", "[" * 100_000, None]),
        TEXTS,
    ),
)


# ---------------------------------------------------------------------------- moves


@dataclass(frozen=True)
class StartGrant:
    """`states:StartExecution` on the grants' machine."""

    value: Input
    name: str

    def do(self, world: World) -> None:
        value = self.value.make(world)
        _start(world, MACHINE, _name(self.name, value, world), value)


@dataclass(frozen=True)
class StartClosing:
    """`states:StartExecution` on the closings' machine."""

    value: Payload | Input

    def do(self, world: World) -> None:
        value = self.value.closing(world) if isinstance(self.value, Payload) else self.value.make(world)
        _start(world, CLOSINGS, None, value)


@dataclass(frozen=True)
class Invoke:
    """`lambda:InvokeFunction` on the revoke function."""

    payload: Payload

    def do(self, world: World) -> None:
        _invoke(world, self.payload.make(world))


@dataclass(frozen=True)
class WriteRefusal:
    """`sdb:PutAttributes` on the domain of the refusals."""

    name: str

    def do(self, world: World) -> None:
        domain = world.knock.client("sdb")
        pairs = {"kind": "grant", "state": "live", "closed_at": "-", "token": "x", "parts": "0"}
        attributes = [{"Name": key, "Value": value, "Replace": True} for key, value in pairs.items()]
        domain.put_attributes(
            DomainName=os.environ["REFUSALS_DOMAIN"], ItemName=world.id_of(self.name), Attributes=attributes
        )


@dataclass(frozen=True)
class Stop:
    """`states:StopExecution` on a running grant: the nth there is."""

    nth: int
    error: str
    cause: str

    def do(self, world: World) -> None:
        names = sorted(world.executions())
        if names:
            arn = f"{MACHINE.replace(':stateMachine:', ':execution:')}:{names[self.nth % len(names)]}"
            texts = {"error": self.error[:200], "cause": self.cause}
            world.knock.client("stepfunctions").stop_execution(executionArn=arn, **texts)


@dataclass(frozen=True)
class RunGuard:
    """`lambda:InvokeFunction` on the guard."""

    def do(self, world: World) -> None:
        world.knock.call("guard", {})


@dataclass(frozen=True)
class Untag:
    """`ec2:DeleteTags` on a group of the stack, as taking a target away does."""

    group: str

    def do(self, world: World) -> None:
        world.knock.client("ec2").delete_tags(
            Resources=[world.group(self.group)], Tags=[{"Key": "knock:target"}]
        )


@dataclass(frozen=True)
class Wait:
    """Let time pass."""

    minutes: int

    def do(self, world: World) -> None:
        world.knock.clock.advance(timedelta(minutes=self.minutes))


Move = StartGrant | StartClosing | Invoke | WriteRefusal | Stop | RunGuard | Untag | Wait

START_GRANT = st.builds(StartGrant, inputs(), NAMES)
START_CLOSING = st.builds(StartClosing, PAYLOADS | PAYLOADS | inputs())
INVOKE = st.builds(Invoke, PAYLOADS)
WRITE_REFUSAL = st.builds(WriteRefusal, st.sampled_from(GRANTS))
STOP = st.builds(
    Stop, st.integers(0, 9), st.sampled_from(["", "x", "\ue000"]), st.sampled_from(["", "x" * 30_000])
)
WAIT = st.builds(Wait, st.sampled_from([0, 1, 4, 61, 90]))
UNTAG = st.builds(Untag, st.sampled_from(["bastion", "second", "web"]))

RIGHTS: dict[str, st.SearchStrategy[Move]] = {
    "the api function's": st.one_of(
        START_GRANT, START_GRANT, START_CLOSING, INVOKE, INVOKE, WRITE_REFUSAL, WAIT
    ),
    "to start executions": st.one_of(START_GRANT, START_GRANT, START_GRANT, WAIT),
    "to invoke the revoke function": st.one_of(INVOKE, INVOKE, INVOKE, WAIT),
    "an operator's": st.one_of(INVOKE, STOP, st.just(RunGuard()), UNTAG, WAIT),
}
