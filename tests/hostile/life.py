"""A morning on a hostile AWS, drawn from a seed: grants are opened, renewed, ended and stopped. It checks:

- Every knock is answered 201, or 202 and is active soon after, or refused with a Retry-After.
- No grant is cut short: once the API answers active, its rules are open until its end, whatever other grants
  end.
- A minute after its end no rule of a grant is open, not counting the time for which EC2 was drawn to hide
  rules; a run of the guard closes grants whose stop event was lost.
- The trail records every event, and each grant is closed on record.
- No answer is a 500.

The clock is moved while no function is at work, so hours pass in seconds.
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
class Grant:
    """A grant that was answered as open: the answer, and the key that knocked."""

    answer: dict[str, Any]
    key: str
    stopped: bool = False
    asked_to_end: bool = False

    @property
    def id(self) -> str:
        return str(self.answer["id"])


@dataclass
class Morning:
    """The steps of a morning, and the checks after each."""

    knock: Knock
    aws: Hostile
    dice: random.Random
    grants: dict[str, Grant] = field(default_factory=dict)  # those answered as open, by id
    started: set[str] = field(default_factory=set)  # ids; also of those refused after they had started
    log: list[str] = field(default_factory=list)  # of requests and their answers
    added_groups: list[str] = field(default_factory=list)  # by an operator

    # ---------------------------------------------------------------- time

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let time pass while a request waits: half a second whenever no function is at work."""
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
        """Let `long` pass in steps of a second, each once no function is at work."""
        until = self.knock.clock.now() + long
        real = time.monotonic() + 60
        while (left := until - self.knock.clock.now()) > timedelta(0):
            assert time.monotonic() < real, "a function hangs"
            if any(self.knock.busy.values()):
                time.sleep(0.001)
                continue
            self.knock.clock.advance(min(left, timedelta(seconds=1)))
            time.sleep(0.001)  # so that what is due by now begins
        self.rest()

    def rest(self) -> None:
        """Wait until no function is at work."""
        quiet = 0
        while quiet < 5:
            quiet = 0 if any(self.knock.busy.values()) else quiet + 1
            time.sleep(0.001)

    def skip(self, long: timedelta) -> None:
        """Let `long` pass in one step; nothing must be due in it."""
        self.rest()
        self.knock.clock.advance(max(long, timedelta(0)))
        self.rest()

    # ---------------------------------------------------------------- what people do

    def ask(self, method: str, path: str, key: str, caller: str, **body: Any) -> Answer:
        with self.passing():
            answer = self.knock.request(method, path, key=key, caller=caller, body=body or None)
        self.log.append(f"{key} {method} {path} {body or ''}: {answer.status} {answer.text[:160]}")
        assert answer.status != 500, answer.text
        return answer

    def open(self, key: str, caller: str, **body: Any) -> Grant | None:
        """Knock until the grant is active, waiting for each Retry-After; None after five refusals."""
        for _ in range(5):
            answer = self.ask("POST", "/knock", key, caller, **body)
            if answer.status in (201, 202):
                break
            assert answer.status == 503, answer.text
            assert "Retry-After" in answer.headers, answer.text
            if grant_id := answer.json.get("grant_id"):
                self.started.add(grant_id)
            self.wait(timedelta(seconds=int(answer.headers["Retry-After"])))
        else:
            return None
        answered = answer.json
        self.started.add(answered["id"])
        if answer.status == 202:
            answered = self._active(answered["id"], key, caller)
        opened = self.grants[answered["id"]] = Grant(answered, key)
        return opened

    def _active(self, grant_id: str, key: str, caller: str) -> dict[str, Any]:
        """Wait until a grant that was answered 202 is active."""
        until = self.knock.clock.now() + SHORTLY
        while True:
            answer = self.ask("GET", f"/grants/{grant_id}", key, caller)
            if answer.status == 200 and answer.json["status"] == "active":
                active: dict[str, Any] = answer.json
                return active
            assert answer.status in (200, 503), answer.text
            assert answer.status == 503 or answer.json["status"] == "pending", answer.text
            assert self.knock.clock.now() < until, f"answered 202, and never active: {answer.text}"
            self.wait(timedelta(seconds=5))

    def renew(self, grant: Grant) -> None:
        self.open(grant.key, _caller(grant.answer), renews=grant.id, duration=self._duration())

    def end(self, grant: Grant) -> None:
        """End a grant; after an answer of 503 it is closed by Retry-After or soon after."""
        grant.asked_to_end = True
        answer = self.ask("DELETE", f"/grants/{grant.id}", grant.key, _caller(grant.answer))
        if answer.status == 503:
            assert "Retry-After" in answer.headers
            return
        assert answer.status == 200, answer.text
        assert not self._open_rules(grant) - self._rules_of_others(grant), (
            f"{grant.id} was answered as ended, and is open"
        )

    def blink(self, key: str, caller: str) -> None:
        """Open, end at once and open again, while EC2 may show neither the new rule nor that it is gone."""
        for _ in range(2):
            grant = self.open(key, caller, duration="30m", targets=["bastion"])
            if grant:
                self.end(grant)
        self.open(key, caller, duration=self._duration(), targets=["bastion"])

    def regroup(self) -> None:
        """Add a group to a target's pool, or delete one that an operator has added, tags and all."""
        self.log.append(f"regroup: {self.added_groups}")
        ec2 = self.knock.client("ec2")
        with meeting_it("operator"):
            if self.added_groups:
                # Its rules would go with it, so only a group without rules is deleted.
                group = self.added_groups[-1]
                with meeting_it(None):
                    empty = not self.knock.rules(group)
                if empty and not _refused(lambda: ec2.delete_security_group(GroupId=group)):
                    self.added_groups.remove(group)
                    self.knock.groups["web"].remove(group)
                return
            tags = {"knock:stack": "knock", "knock:target": "web", "knock:ports": "80/tcp 443/tcp"}
            pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
            request = {
                "GroupName": f"added-{len(self.log)}",
                "Description": "test",
                "TagSpecifications": [{"ResourceType": "security-group", "Tags": pairs}],
            }
            answers: list[Any] = []
            if not _refused(lambda: answers.append(ec2.create_security_group(**request))):
                self.added_groups.append(answers[0]["GroupId"])
                self.knock.groups["web"].append(answers[0]["GroupId"])

    def stop(self, grant: Grant) -> None:
        """Stop its execution, as an operator does in the console."""
        grant.stopped = grant.asked_to_end = True
        self.log.append(f"stop {grant.id}")
        states = self.knock.client("stepfunctions")
        states.stop_execution(executionArn=grant.answer["execution_arn"], cause="laptop stolen")

    def storm(self, count: int) -> None:
        """Have `count` clients knock at once, each at an address of its own."""
        body = {"duration": self._duration(), "targets": ["bastion"]}
        callers = [f"198.51.100.{number + 1}" for number in range(count)]
        with self.passing(), ThreadPoolExecutor(count) as pool:
            ask = lambda caller: self.knock.request("POST", "/knock", key="ci", caller=caller, body=body)  # noqa: E731
            answers = list(zip(callers, pool.map(ask, callers), strict=True))
        for caller, answer in answers:
            self.log.append(f"storm {caller}: {answer.status} {answer.text[:160]}")
            assert answer.status in (201, 202, 503), answer.text
            if answer.status == 503:
                assert "Retry-After" in answer.headers
                self.started |= {answer.json["grant_id"]} if "grant_id" in answer.json else set()
                continue
            answered = answer.json
            self.started.add(answered["id"])
            if answer.status == 202:
                answered = self._active(answered["id"], "ci", caller)
            self.grants[answered["id"]] = Grant(answered, "ci")

    def _duration(self) -> str:
        return self.dice.choice(("30m", "40m", "1h", "3h", "8h"))

    # ---------------------------------------------------------------- what must hold

    def _open_rules(self, grant: Grant) -> set[tuple[str, int, str]]:
        """List the rules a grant asked for that are really open."""
        groups = {group for target in grant.answer["targets"] for group in self.knock.groups[target["name"]]}
        ports = {port for target in grant.answer["targets"] for port in TARGETS[target["name"]]}
        rules = self.knock.rules()
        return {
            rule
            for rule in rules
            if rule[0] in groups and rule[1] in ports and rule[2] == grant.answer["source"]
        }

    def _rules_of_others(self, excepted: Grant) -> set[tuple[str, int, str]]:
        """List the open rules of other grants: of live ones, and of ended ones that are not closed yet."""
        trail = self.knock.items("trail")
        closing = [grant for grant in self.grants.values() if trail[grant.id]["closed_at"] == ["-"]]
        others = [grant for grant in (*self.live(), *closing) if grant is not excepted]
        return {rule for grant in others for rule in self._open_rules(grant)}

    def live(self) -> list[Grant]:
        """List the grants that were not ended early, and whose time is not up."""
        now = self.knock.clock.now()
        renewed = {grant.answer["renews"] for grant in self.grants.values()}
        return [
            grant
            for grant in self.grants.values()
            if not grant.asked_to_end and grant.id not in renewed and now < at(grant.answer["expires_at"])
        ]

    def check_open(self) -> None:
        """Check that no grant is cut short."""
        for grant in self.live():
            open_ports = {(group, port) for group, port, _ in self._open_rules(grant)}
            for target in grant.answer["targets"]:
                pool = self.knock.groups[target["name"]]
                for port in TARGETS[target["name"]]:
                    assert any((group, port) in open_ports for group in pool), (
                        f"{grant.id} lost {target['name']}:{port}"
                    )

    def close_all(self) -> None:
        """Let every grant come to its end, and check that no rule is left."""
        while live := sorted(self.live(), key=lambda grant: grant.answer["expires_at"]):
            first = live[0]
            self.skip(at(first.answer["expires_at"]) - self.knock.clock.now() - timedelta(seconds=30))
            self.check_open()
            self.wait(timedelta(seconds=30) + OUTAGE + WITHIN)
            if not first.stopped:
                assert not self._open_rules(first) - self._rules_of_others(first), (
                    f"{first.id} is open a minute after its end"
                )
            self.check_open()
        self.wait(OUTAGE + WITHIN)
        lost = self._lost()
        remaining = self.knock.rules()
        of_lost = {
            rule for grant in self.grants.values() if grant.id in lost for rule in self._open_rules(grant)
        }
        assert remaining <= of_lost, f"open at the end: {remaining - of_lost}; stop events lost: {lost}"
        self.guard()
        assert not self.knock.rules(), "the guard left a rule open"

    def _lost(self) -> set[str]:
        return set(self.aws.events.lost) if self.aws.events else set()

    def guard(self) -> None:
        """Run the guard until it finds nothing, as it runs each hour."""
        for _ in range(4):
            self.skip(timedelta(minutes=20))
            with self.passing():
                result = self.knock.invoke("knock-guard", b"{}")
            report = json.loads(result.payload)
            self.log.append(f"guard: {report}")
            self.wait(OUTAGE + WITHIN)
            if not result.function_error and not report["findings"]:
                return
        raise AssertionError(f"the guard goes on finding: {report}")

    def check_trail(self) -> None:
        """Check that the trail has every grant that was started, how it ended, and that it is closed."""
        items = self.knock.items("trail")
        assert self.started <= items.keys() | self._never_ran(), self.started - items.keys()
        for grant_id, item in items.items():
            events = [json.loads(text) for text in item["event"]]
            names = [event["event"] for event in sorted(events, key=lambda event: str(event["at"]))]
            grant = self.grants.get(grant_id)
            assert "requested" in names, names
            assert len(ENDS & set(names)) == 1, f"{grant_id}: {names}"
            assert item["state"][0] in names, f"{grant_id}: {item['state']}, {names}"
            assert item["closed_at"][0] != "-", f"{grant_id} is not closed: {names}"
            assert grant is None or "authorized_at" in item, f"{grant_id}: {item}"
            if grant and grant.stopped:
                # Where the stop event was lost, its own end or the guard closed it.
                assert item["state"] == ["revoked"] or grant_id in self._lost(), f"{grant_id}: {item}"
            elif grant and not grant.asked_to_end and grant.id not in self._renewed():
                assert item["state"] == ["expired"], f"{grant_id}: {item}"

    def _renewed(self) -> set[str]:
        return {grant.answer["renews"] for grant in self.grants.values() if grant.answer["renews"]}

    def _never_ran(self) -> set[str]:
        """List the started grants that have no execution."""
        return {grant_id for grant_id in self.started if self.knock.execution_status(grant_id) is None}

    def check_engine(self) -> None:
        """Check that no execution runs, and no closing failed."""
        states = self.knock.client("stepfunctions")
        for machine in (MACHINE, CLOSINGS):
            executions = states.list_executions(stateMachineArn=machine, maxResults=1000)["executions"]
            assert not [execution["name"] for execution in executions if execution["status"] == "RUNNING"], (
                machine
            )
        assert "FAILED" not in self.knock.closings()

    # ---------------------------------------------------------------- the morning

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
        action = self.dice.choice(
            ("knock", "knock", "knock", "blink", "renew", "end", "stop", "wait", "list", "regroup")
        )
        if action == "wait":
            self.wait(timedelta(seconds=self.dice.choice((5, 60, 300))))
        elif action == "list":
            answer = self.ask("GET", "/grants", self.dice.choice(PEOPLE), SOURCES[0])
            assert answer.status in (200, 503)
        elif action == "blink":
            self.blink(self.dice.choice(PEOPLE), self.dice.choice(SOURCES))
        elif action == "regroup":
            self.regroup()
        elif action == "knock" or not live:
            key, caller = self.dice.choice(PEOPLE), self.dice.choice(SOURCES)
            targets = self.dice.choice((None, ["bastion"], ["web"]))
            self.open(key, caller, duration=self._duration(), **({"targets": targets} if targets else {}))
        else:
            {"renew": self.renew, "end": self.end, "stop": self.stop}[action](self.dice.choice(live))


def _refused(call: Callable[[], object]) -> bool:
    """Make a call, and say whether AWS refused it."""
    try:
        call()
    except ClientError:
        return True
    return False


def _caller(answer: dict[str, Any]) -> str:
    return str(answer["source"].partition("/")[0])


def live_through(plan: Plan, steps: int = 14, storm: int = 8, store: str = "simpledb") -> Morning:
    """Run the morning of a plan's seed. A violation names the seed and the last requests."""
    with running(store=store) as knock, hostile(knock, plan) as aws:
        morning = Morning(knock, aws, random.Random(plan.seed))  # noqa: S311  # reproducible
        try:
            morning.run(steps, storm)
        except AssertionError as violation:
            log = "\n  ".join(morning.log[-40:])
            raise AssertionError(f"seed {plan.seed} on {store}: {violation}\n  {log}") from violation
        return morning
