"""Fifty clients at once, a thousand requests: no grant is lost, nothing fails, nothing stays open.

Each client has an address of its own and knocks on bastion, whose pool has room for them all: more than
thirty at a target of two ports would fill its only group. No more clients share a key than it may hold grants
at once, so no knock is refused. The benchmark measures how fast this goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.e2e.conftest import Stack

ROUNDS = 5  # of four requests
CLIENTS = {"alice": 20, "bob": 20, "ci": 10}  # MaxLive is 20


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A stack of its own, so that every rule open at the end is this test's."""
    with Stack.start() as started:
        yield started


class Client:
    """A person at an address: knocks, shows, lists and revokes, `ROUNDS` times."""

    def __init__(self, stack: Stack, number: int, key: str) -> None:
        self.stack = stack
        self.key = key
        self.source = f"203.0.113.{number}" if number % 5 else f"2001:db8::{number:x}"
        self.session = requests.Session()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.grants: list[str] = []
        self.revoked: set[str] = set()

    def ask(self, kind: str, method: str, path: str, **more: Any) -> Any:
        headers = {"x-api-key": self.stack.keys[self.key], "X-Forwarded-For": self.source}
        url = self.stack.api_url + path
        answer = self.session.request(method, url, headers=headers, timeout=60, **more)
        self.statuses[kind, answer.status_code] += 1
        assert answer.status_code < 400, answer.text
        return answer.json()

    def run(self) -> None:
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            body = {"targets": ["bastion"], "duration": "3s" if last else "1h"}
            grant = self.ask("knock", "POST", "/knock", json=body)
            self.grants.append(grant["id"])
            answer = self.ask("show", "GET", f"/grants/{grant['id']}")
            assert answer["source"].partition("/")[0] == self.source
            assert answer["events"][0]["event"] == "requested"
            live = self.ask("list", "GET", "/grants", params={"limit": 100})["grants"]
            assert last or grant["id"] in [listed["id"] for listed in live]
            if last:  # ends by itself
                self.ask("show", "GET", f"/grants/{grant['id']}")
                continue
            ended = self.ask("revoke", "DELETE", f"/grants/{grant['id']}")
            assert ended["status"] == "revoked"
            self.revoked.add(grant["id"])


@pytest.mark.timeout(300)
def test_a_thousand_requests_by_fifty_clients_lose_nothing_and_leave_nothing_open(stack: Stack) -> None:
    keys = [key for key, count in CLIENTS.items() for _ in range(count)]
    clients = [Client(stack, number, key) for number, key in enumerate(keys, 1)]
    with ThreadPoolExecutor(len(clients)) as pool:
        for run in [pool.submit(client.run) for client in clients]:
            run.result()
    statuses = sum((client.statuses for client in clients), Counter[tuple[str, int]]())
    assert sum(statuses.values()) == len(clients) * ROUNDS * 4 == 1000
    assert set(statuses) <= {("knock", 201), ("knock", 202), ("show", 200), ("list", 200), ("revoke", 200)}

    stack.wait(lambda: not stack.rules(), "a rule outlived its grant", 60)
    states = stack.client("stepfunctions")

    def running() -> list[Any]:
        answer = states.list_executions(
            stateMachineArn=stack.state_machine_arn, statusFilter="RUNNING", maxResults=1000
        )
        return list(answer["executions"])

    stack.wait(lambda: not running(), "an execution runs on", 60)

    by_id = {grant["id"]: grant for grant in every_grant(stack)}
    assert set(by_id) == {grant_id for client in clients for grant_id in client.grants}
    revoked = {grant_id for client in clients for grant_id in client.revoked}
    assert {grant_id for grant_id, grant in by_id.items() if grant["status"] == "revoked"} == revoked
    assert {grant["status"] for grant_id, grant in by_id.items() if grant_id not in revoked} == {"expired"}

    def unclosed() -> list[str]:
        grants = [stack.call("GET", f"/grants/{grant_id}", "operator").json() for grant_id in by_id]
        return [grant["id"] for grant in grants if grant["events"][-1]["event"] != "closed"]

    assert stack.wait(lambda: not unclosed(), "a grant is not closed", 60)
    assert stack.call("GET", "/grants", "operator").json()["grants"] == []


def every_grant(stack: Stack) -> Iterator[dict[str, Any]]:
    query = {"status": "all", "limit": "100"}
    while True:
        page = stack.call("GET", "/grants", "operator", params=query).json()
        yield from page["grants"]
        if page["cursor"] is None:
            return
        query["cursor"] = page["cursor"]
