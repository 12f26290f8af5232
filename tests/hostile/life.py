"""A morning on a hostile AWS, drawn from a seed: people knock, renew, end and are stopped. What must hold:

- Every knock is answered 201, or 202 and is active soon after, or refused with a Retry-After.
- No grant is cut short: what the API has called active is open until its end, whatever ends beside it.
- A minute after its end nothing of a grant is open, once what EC2 was drawn to hide is over; what a lost stop
  event has left is closed by a run of the guard.
- The trail tells all of it, and each grant is closed on record.
- No answer is a fault of Knock's own (500).

The clock is moved while nothing is at work, so hours pass in seconds.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from botocore.exceptions import ClientError

from local.hostile import Hostile, Plan
from tests.harness import CLOSINGS, MACHINE, Answer, Knock, at, running
from tests.hostile.bridge import hostile, meeting_it

SOURCES = ("203.0.113.7", "203.0.113.8", "2001:db8::7")
PEOPLE = ("alice", "bob")
TARGETS = {"bastion": (22,), "web": (80, 443)}
WITHIN = timedelta(minutes=1)
OUTAGE = timedelta(seconds=130)  # for which EC2 may not know a rule's id
SHORTLY = timedelta(minutes=8)  # for which AuthorizeIngress may go on trying
ENDS = {"expired", "revoked", "superseded", "failed"}


@dataclass
class Held:
    """A grant that somebody was told is open."""

    shown: dict[str, Any]
    who: str
    stopped: bool = False
    asked_to_end: bool = False

    @property
    def id(self) -> str:
        return str(self.shown["id"])


@dataclass
class Morning:
    """What happens, and what has to be true of it."""

    knock: Knock
    aws: Hostile
    dice: random.Random
    held: dict[str, Held] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)  # also those refused after they had started
    told: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)  # groups that an operator has added

    # ---------------------------------------------------------------- time

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let time pass while somebody waits for an answer: half a second whenever no function is at work."""
        over = threading.Event()

        def pass_() -> None:
            while not over.wait(0.004):
                if not any(self.knock.busy.values()):
                    self.knock.clock.advance(timedelta(seconds=0.5))

        thread = threading.Thread(target=pass_, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def wait(self, long: timedelta) -> None:
        """Let so much time pass, in seconds that are over only when nothing is at work."""
        until = self.knock.clock.now() + long
        real = time.monotonic() + 60
        while (left := until - self.knock.clock.now()) > timedelta(0):
            assert time.monotonic() < real, "a function hangs"
            if any(self.knock.busy.values()):
                time.sleep(0.001)
                continue
            self.knock.clock.advance(min(left, timedelta(seconds=1)))
            time.sleep(0.001)  # whoever is due by now begins
        self.rest()

    def rest(self) -> None:
        """Wait until nothing is at work at this moment."""
        quiet = 0
        while quiet < 5:
            quiet = 0 if any(self.knock.busy.values()) else quiet + 1
            time.sleep(0.001)

    def skip(self, long: timedelta) -> None:
        """Let a long time pass at once, in which nothing is due."""
        self.rest()
        self.knock.clock.advance(max(long, timedelta(0)))
        self.rest()

    # ---------------------------------------------------------------- what people do

    def ask(self, method: str, path: str, who: str, caller: str, **body: Any) -> Answer:
        with self.passing():
            answer = self.knock.request(method, path, key=who, caller=caller, body=body or None)
        self.told.append(f"{who} {method} {path} {body or ''}: {answer.status} {answer.text[:160]}")
        assert answer.status != 500, answer.text
        return answer

    def open(self, who: str, caller: str, **body: Any) -> Held | None:
        """Knock until the door is open, as somebody does who heeds Retry-After; None after five refusals."""
        for _ in range(5):
            answer = self.ask("POST", "/knock", who, caller, **body)
            if answer.status in (201, 202):
                break
            assert answer.status == 503, answer.text
            assert "Retry-After" in answer.headers, answer.text
            if grant := answer.json.get("grant_id"):
                self.started.add(grant)
            self.wait(timedelta(seconds=int(answer.headers["Retry-After"])))
        else:
            return None
        shown = answer.json
        self.started.add(shown["id"])
        if answer.status == 202:
            shown = self._active(shown["id"], who, caller)
        held = self.held[shown["id"]] = Held(shown, who)
        return held

    def _active(self, grant: str, who: str, caller: str) -> dict[str, Any]:
        """Wait until a grant that was answered 202 is active."""
        until = self.knock.clock.now() + SHORTLY
        while True:
            answer = self.ask("GET", f"/grants/{grant}", who, caller)
            if answer.status == 200 and answer.json["status"] == "active":
                shown: dict[str, Any] = answer.json
                return shown
            assert answer.status in (200, 503), answer.text
            assert answer.status == 503 or answer.json["status"] == "pending", answer.text
            assert self.knock.clock.now() < until, f"answered 202, and never active: {answer.text}"
            self.wait(timedelta(seconds=5))

    def renew(self, old: Held) -> None:
        self.open(old.who, _caller(old.shown), renews=old.id, duration=self._duration())

    def end(self, held: Held) -> None:
        """End a grant; an answer of 503 says when to look again, and it is closed by then or soon after."""
        held.asked_to_end = True
        answer = self.ask("DELETE", f"/grants/{held.id}", held.who, _caller(held.shown))
        if answer.status == 503:
            assert "Retry-After" in answer.headers
            return
        assert answer.status == 200, answer.text
        assert not self._open(held) - self._claimed(held), f"{held.id} was answered as ended, and is open"

    def blink(self, who: str, caller: str) -> None:
        """Open, end at once and open again: EC2 knows neither that the rule is there nor that it has gone."""
        for _ in range(2):
            held = self.open(who, caller, duration="30m", targets=["bastion"])
            if held:
                self.end(held)
        self.open(who, caller, duration=self._duration(), targets=["bastion"])

    def regroup(self) -> None:
        """Add a group to a target's pool, or delete one that an operator has added, tags and all."""
        self.told.append(f"regroup: {self.added}")
        ec2 = self.knock.client("ec2")
        with meeting_it("operator"):
            if self.added:
                # What is open there goes with it; only a group that nothing is open in is one to delete.
                group = self.added[-1]
                with meeting_it(None):
                    empty = not self.knock.rules(group)
                if empty and not _refused(lambda: ec2.delete_security_group(GroupId=group)):
                    self.added.remove(group)
                    self.knock.groups["web"].remove(group)
                return
            tags = {"knock:stack": "knock", "knock:target": "web", "knock:ports": "80/tcp 443/tcp"}
            pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
            asked = {
                "GroupName": f"added-{len(self.told)}",
                "Description": "test",
                "TagSpecifications": [{"ResourceType": "security-group", "Tags": pairs}],
            }
            made: list[Any] = []
            if not _refused(lambda: made.append(ec2.create_security_group(**asked))):
                self.added.append(made[0]["GroupId"])
                self.knock.groups["web"].append(made[0]["GroupId"])

    def stop(self, held: Held) -> None:
        """Stop its execution, as an operator does in the console."""
        held.stopped = held.asked_to_end = True
        self.told.append(f"stop {held.id}")
        states = self.knock.client("stepfunctions")
        states.stop_execution(executionArn=held.shown["execution_arn"], cause="laptop stolen")

    def storm(self, count: int) -> None:
        """Have people knock at once, each at an address of their own."""
        body = {"duration": self._duration(), "targets": ["bastion"]}
        callers = [f"198.51.100.{number + 1}" for number in range(count)]
        with self.passing(), ThreadPoolExecutor(count) as pool:
            ask = lambda caller: self.knock.request("POST", "/knock", key="ci", caller=caller, body=body)  # noqa: E731
            answers = list(zip(callers, pool.map(ask, callers), strict=True))
        for caller, answer in answers:
            self.told.append(f"storm {caller}: {answer.status} {answer.text[:160]}")
            assert answer.status in (201, 202, 503), answer.text
            if answer.status == 503:
                assert "Retry-After" in answer.headers
                self.started |= {answer.json["grant_id"]} if "grant_id" in answer.json else set()
                continue
            shown = answer.json
            self.started.add(shown["id"])
            if answer.status == 202:
                shown = self._active(shown["id"], "ci", caller)
            self.held[shown["id"]] = Held(shown, "ci")

    def _duration(self) -> str:
        return self.dice.choice(("30m", "40m", "1h", "3h", "8h"))

    # ---------------------------------------------------------------- what must hold

    def _open(self, held: Held) -> set[tuple[str, int, str]]:
        """Give the rules that are really open of what a grant asked for."""
        groups = {group for target in held.shown["targets"] for group in self.knock.groups[target["name"]]}
        ports = {port for target in held.shown["targets"] for port in TARGETS[target["name"]]}
        there = self.knock.rules()
        return {
            rule
            for rule in there
            if rule[0] in groups and rule[1] in ports and rule[2] == held.shown["source"]
        }

    def _claimed(self, but: Held) -> set[tuple[str, int, str]]:
        """Give the rules of others: of live grants, and of those being closed or stopped unheard."""
        trail = self.knock.items("trail")
        closing = [held for held in self.held.values() if trail[held.id]["closed_at"] == ["-"]]
        others = [held for held in (*self.live(), *closing) if held is not but]
        return {rule for held in others for rule in self._open(held)}

    def live(self) -> list[Held]:
        """Give the grants that nobody has ended, and whose time is not up."""
        now = self.knock.clock.now()
        renewed = {held.shown["renews"] for held in self.held.values()}
        return [
            held
            for held in self.held.values()
            if not held.asked_to_end and held.id not in renewed and now < at(held.shown["expires_at"])
        ]

    def check_open(self) -> None:
        """No grant is cut short."""
        for held in self.live():
            there = {(group, port) for group, port, _ in self._open(held)}
            for target in held.shown["targets"]:
                pool = self.knock.groups[target["name"]]
                for port in TARGETS[target["name"]]:
                    assert any((group, port) in there for group in pool), (
                        f"{held.id} lost {target['name']}:{port}"
                    )

    def close_all(self) -> None:
        """Let every grant come to its end, and look at what is left."""
        while live := sorted(self.live(), key=lambda held: held.shown["expires_at"]):
            first = live[0]
            self.skip(at(first.shown["expires_at"]) - self.knock.clock.now() - timedelta(seconds=30))
            self.check_open()
            self.wait(timedelta(seconds=30) + OUTAGE + WITHIN)
            if not first.stopped:
                assert not self._open(first) - self._claimed(first), (
                    f"{first.id} is open a minute after its end"
                )
            self.check_open()
        self.wait(OUTAGE + WITHIN)
        lost = self._lost()
        left = self.knock.rules()
        of_lost = {rule for held in self.held.values() if held.id in lost for rule in self._open(held)}
        assert left <= of_lost, f"open at the end: {left - of_lost}; stop events lost: {lost}"
        self.guard()
        assert not self.knock.rules(), "the guard left something open"

    def _lost(self) -> set[str]:
        return set(self.aws.events.lost) if self.aws.events else set()

    def guard(self) -> None:
        """Run the guard until it finds nothing, as the hours do."""
        for _ in range(4):
            self.skip(timedelta(minutes=20))
            with self.passing():
                result = self.knock.invoke("knock-guard", b"{}")
            said = json.loads(result.payload)
            self.told.append(f"guard: {said}")
            self.wait(OUTAGE + WITHIN)
            if not result.function_error and not said["findings"]:
                return
        raise AssertionError(f"the guard goes on finding: {said}")

    def check_trail(self) -> None:
        """The trail tells of every grant that was started: how it ended, by whom, and that it is closed."""
        items = self.knock.items("trail")
        assert self.started <= items.keys() | self._never_ran(), self.started - items.keys()
        for name, item in items.items():
            events = [json.loads(text) for text in item["event"]]
            told = [event["event"] for event in sorted(events, key=lambda event: str(event["at"]))]
            held = self.held.get(name)
            assert "requested" in told, told
            assert len(ENDS & set(told)) == 1, f"{name}: {told}"
            assert item["state"][0] in told, f"{name}: {item['state']}, {told}"
            assert item["closed_at"][0] != "-", f"{name} is not closed: {told}"
            assert held is None or "authorized_at" in item, f"{name}: {item}"
            if held and held.stopped:
                # Nobody heard of it where the event was lost: then its own end came, or the guard.
                assert item["state"] == ["revoked"] or name in self._lost(), f"{name}: {item}"
            elif held and not held.asked_to_end and held.id not in self._renewed():
                assert item["state"] == ["expired"], f"{name}: {item}"

    def _renewed(self) -> set[str]:
        return {held.shown["renews"] for held in self.held.values() if held.shown["renews"]}

    def _never_ran(self) -> set[str]:
        """Give the grants that Step Functions knows nothing of."""
        return {name for name in self.started if self.knock.execution_status(name) is None}

    def check_engine(self) -> None:
        """Nothing runs any more, and nothing gave up."""
        states = self.knock.client("stepfunctions")
        for machine in (MACHINE, CLOSINGS):
            found = states.list_executions(stateMachineArn=machine, maxResults=1000)["executions"]
            assert not [one["name"] for one in found if one["status"] == "RUNNING"], machine
        assert not [one for one in self.knock.closings() if one == "FAILED"]

    # ---------------------------------------------------------------- all of it

    def run(self, steps: int, storm: int) -> None:
        for number in range(steps):
            self._step()
            if number == steps // 2 and storm:
                self.storm(storm)
            self.check_open()
        self.close_all()
        self.check_trail()
        self.check_engine()

    def _step(self) -> None:
        live = self.live()
        what = self.dice.choice(
            ("knock", "knock", "knock", "blink", "renew", "end", "stop", "wait", "list", "regroup")
        )
        if what == "wait":
            self.wait(timedelta(seconds=self.dice.choice((5, 60, 300))))
        elif what == "list":
            answer = self.ask("GET", "/grants", self.dice.choice(PEOPLE), SOURCES[0])
            assert answer.status in (200, 503)
        elif what == "blink":
            self.blink(self.dice.choice(PEOPLE), self.dice.choice(SOURCES))
        elif what == "regroup":
            self.regroup()
        elif what == "knock" or not live:
            who, caller = self.dice.choice(PEOPLE), self.dice.choice(SOURCES)
            asked = self.dice.choice((None, ["bastion"], ["web"]))
            self.open(who, caller, duration=self._duration(), **({"targets": asked} if asked else {}))
        else:
            {"renew": self.renew, "end": self.end, "stop": self.stop}[what](self.dice.choice(live))


def _refused(call: Callable[[], object]) -> bool:
    """Make a call that AWS may refuse, as an operator does who looks again later."""
    try:
        call()
    except ClientError:
        return True
    return False


def _caller(shown: dict[str, Any]) -> str:
    return str(shown["source"].partition("/")[0])


def live_through(plan: Plan, steps: int = 14, storm: int = 8, store: str = "simpledb") -> Morning:
    """Live through a morning of a plan's seed. A violation names the seed, and what was done until then."""
    with running(store=store) as knock, hostile(knock, plan) as aws:
        morning = Morning(knock, aws, random.Random(plan.seed))  # noqa: S311  # has to come again
        try:
            morning.run(steps, storm)
        except AssertionError as violation:
            done = "\n  ".join(morning.told[-40:])
            raise AssertionError(f"seed {plan.seed} on {store}: {violation}\n  {done}") from violation
        return morning
