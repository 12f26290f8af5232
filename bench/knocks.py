"""The time from a knock to its 201, and a working day's mix of requests, over HTTP."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

from bench.report import Cell, Table, spread
from bench.scale import BenchError, Scale
from bench.stacks import RULES_PER_GROUP, Answer, Stack, local_up, new_source, together, wait_until

MIX = {"knock": 30, "list": 25, "show": 25, "revoke": 20}  # of a hundred requests
FINE = {"knock": {201, 202}, "list": {200}, "show": {200}, "revoke": {200}}


def knock(scale: Scale) -> list[Table]:
    """Measure knocks that follow one another, and knocks that are in flight together."""
    table = Table("From a knock to 201", notes=["a 202 is a knock whose ingress took longer than 5 s"])
    with local_up() as stack:
        targets = _targets(stack, scale.knocks_alone + scale.knocks_together)
        numbers = count()

        def knock_once(_: int) -> Answer:
            target = targets[next(numbers) // RULES_PER_GROUP]
            return stack.call("POST", "/knock", "ci", new_source(), {"targets": [target], "duration": "8h"})

        # A worker's first request reads the key's tags and the targets, and creates its clients.
        knock_once(0)
        table.rows.append(_row("alone, 1 rule", [knock_once(0) for _ in range(scale.knocks_alone)]))
        table.rows.append(_row("alone, 3 rules", [_three(stack) for _ in range(scale.knocks_alone)]))
        # The first burst is not measured: it starts the workers that a burst needs, as on AWS.
        together(scale.in_flight, knock_once, range(scale.in_flight))
        answers = together(scale.in_flight, knock_once, range(scale.knocks_together))
        table.rows.append(_row(f"{scale.in_flight} in flight, 1 rule", answers))
    return [table]


def _targets(stack: Stack, knocks: int) -> list[str]:
    names = [f"bench-{number}" for number in range(knocks // RULES_PER_GROUP + 3)]
    for name in names:
        stack.add_target(name, 1)
    return names


def _three(stack: Stack) -> Answer:
    """Knock for all of alice's targets, 3 rules, and revoke the grant."""
    answer = stack.call("POST", "/knock", "alice", new_source())
    stack.call("DELETE", f"/grants/{answer.json['id']}", "alice")
    return answer


def _row(label: str, answers: list[Answer]) -> dict[str, Cell]:
    statuses = Counter(answer.status for answer in answers)
    if set(statuses) - {201, 202}:
        wrong = next(answer for answer in answers if answer.status not in (201, 202))
        raise BenchError(f"a knock was answered with {wrong.status}: {wrong.json}")
    return {
        "knocks": label,
        "count": len(answers),
        "201": statuses[201],
        "202": statuses[202],
        **spread((answer.ms for answer in answers if answer.status == 201), longest=True),
    }


def load(scale: Scale) -> list[Table]:
    """Run many clients with mixed requests at once, and count what they leave behind."""
    with local_up() as stack:
        for name, ports in (("bench-a", "22/tcp"), ("bench-b", "80/tcp 443/tcp")):
            stack.add_target(name, -(-scale.load_clients * 2 // RULES_PER_GROUP), ports)
        share, remainder = divmod(scale.load_requests, scale.load_clients)
        clients = [
            _Client(stack, number, share + (number < remainder)) for number in range(scale.load_clients)
        ]
        together(scale.load_clients, lambda client: client.run(), clients)
        answers = [answer for client in clients for answer in client.answers]
        together(8, lambda client: client.leave(), clients)
        return [_by_kind(answers, scale), _end(stack, clients)]


class _Client:
    """A client behind one address that knocks, lists, shows and revokes in a random order of its own."""

    def __init__(self, stack: Stack, number: int, requests: int) -> None:
        self.answers: list[tuple[str, Answer]] = []
        self.grants: list[str] = []
        self._open: list[str] = []
        self._stack = stack
        self._source = new_source()
        self._random = random.Random(number)  # noqa: S311 - the same mix every time
        self._requests = requests

    def run(self) -> None:
        for _ in range(self._requests):
            kind = self._random.choices(list(MIX), list(MIX.values()))[0]
            if kind in ("show", "revoke") and not self.grants:
                kind = "knock"
            self.answers.append((kind, getattr(self, f"_{kind}")()))

    def leave(self) -> None:
        """Revoke all grants that are still open."""
        while self._open:
            self._revoke()

    def _knock(self) -> Answer:
        targets = self._random.choice((["bench-a"], ["bench-b"], ["bench-a", "bench-b"]))
        answer = self._stack.call(
            "POST", "/knock", "ci", self._source, {"targets": targets, "duration": "8h", "reason": "load"}
        )
        if answer.status in FINE["knock"]:
            self.grants.append(answer.json["id"])
            self._open.append(answer.json["id"])
        return answer

    def _list(self) -> Answer:
        return self._stack.call("GET", "/grants", "operator", self._source, limit="50")

    def _show(self) -> Answer:
        return self._stack.call("GET", f"/grants/{self._random.choice(self.grants)}", "ci", self._source)

    def _revoke(self) -> Answer:
        grant = self._open.pop(0) if self._open else self.grants[-1]  # revoking it again succeeds, too
        return self._stack.call("DELETE", f"/grants/{grant}", "ci", self._source)


def _by_kind(answers: list[tuple[str, Answer]], scale: Scale) -> Table:
    table = Table(f"{len(answers)} requests by {scale.load_clients} clients at once, by kind")
    for kind in MIX:
        of_kind = [answer for name, answer in answers if name == kind]
        table.rows.append(
            {
                "request": kind,
                "count": len(of_kind),
                "5xx": sum(answer.status >= 500 for answer in of_kind),
                "other errors": sum(
                    answer.status < 500 and answer.status not in FINE[kind] for answer in of_kind
                ),
                "202": sum(answer.status == 202 for answer in of_kind),
                **spread(answer.ms for answer in of_kind),
            }
        )
    return table


def _end(stack: Stack, clients: list[_Client]) -> Table:
    """Count what is left after all clients have revoked: nothing may be open, and no grant lost."""
    wait_until(lambda: not stack.running(), "not all executions ended", 30)
    grants = [grant for client in clients for grant in client.grants]
    answers = [stack.call("GET", f"/grants/{grant}", "operator") for grant in grants]
    events = [{event["event"] for event in answer.json.get("events", ())} for answer in answers]
    recorded = sum({"requested", "closed"} <= names for names in events)
    rows: list[dict[str, Cell]] = [
        {"at the end": "grants that were answered with 201 or 202", "count": len(grants)},
        {"at the end": "of these, not in the trail as requested and closed", "count": len(grants) - recorded},
        {"at the end": "rules open", "count": stack.open_rules()},
        {"at the end": "executions running", "count": len(stack.running())},
        {
            "at the end": "live grants",
            "count": len(stack.call("GET", "/grants", "operator").json["grants"]),
        },
    ]
    return Table("What the mixed load leaves behind", rows)
