"""The bounds of a key, a source and an item, and that grants at the bound can be closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from grants.errors import StoreUnavailable
from grants.ledger import MAX_CLAIMS
from grants.simpledb import SimpleDb
from tests.faults.injector import Injector, injecting
from tests.harness import STACK, Answer, Knock
from tests.holes.worst import worst

CIDR = "203.0.113.7/32"
MANY = 42


def add_targets(knock: Knock, count: int = MANY) -> None:
    for number in range(count):
        knock.add_group(f"t{number:02d}", f"{2000 + number}/tcp")


def check_items(knock: Knock) -> None:
    """Check that every item is well below SimpleDB's limits: 256 pairs, of 1,024 bytes each."""
    for domain in ("trail", "ledger"):
        for item in knock.items(domain).values():
            pairs = [(name, text) for name, texts in item.items() for text in texts]
            assert len(pairs) <= 220
            assert max(len(text.encode()) for _, text in pairs) <= 1024


class TestAnItemThatOverflows:
    @pytest.fixture
    def many(self, knock: Knock) -> None:
        add_targets(knock)
        names = " ".join(f"t{number:02d}" for number in range(MANY))
        for key in ("max", "neighbour"):
            knock.add_key(key, targets=names, max_duration="24h")

    @pytest.mark.usefixtures("many")
    def test_many_targets_are_closed_on_time_after_a_failed_try_to_open_them(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the neighbour's grant, which has the same rules, lives on.

        Mutation: functions/grants/trail.py: `"kept": sorted(kept)[:4]}` -> `"kept": sorted(kept)}`

        Mutation: functions/grants/store.py: `PART = 1024` -> `PART = 1025`
        """
        real, failures = SimpleDb._call, [1]

        def call(self: SimpleDb, operation: str, **arguments: Any) -> Any:
            records_rules = "part_000" in str(arguments) and "sgr-" in str(arguments)
            if records_rules and failures[0]:
                failures[0] -= 1
                raise StoreUnavailable("SimpleDB answered ServiceUnavailable to put_attributes")
            return real(self, operation, **arguments)

        monkeypatch.setattr(SimpleDb, "_call", call)
        with knock.ticking(timedelta(milliseconds=100)):
            grant = knock.open("max", duration="1h")
        assert failures == [0]
        assert len(knock.rules()) == MANY
        neighbour = knock.open("neighbour", duration="8h")
        check_items(knock)
        knock.expire(grant)
        expired = knock.grant(grant["id"])
        assert [event["event"] for event in expired["events"]][-2:] == ["expired", "closed"]
        assert knock.grant(neighbour["id"])["status"] == "active"
        assert len(knock.rules()) == MANY
        renewal = knock.open("neighbour", duration="8h", renews=neighbour["id"])
        assert knock.request("DELETE", f"/grants/{renewal['id']}", key="neighbour").status == 200
        assert knock.rules() == set()
        assert "RevocationForced" not in dict(knock.metrics)
        check_items(knock)

    @pytest.mark.usefixtures("many")
    def test_many_targets_are_closed_when_their_execution_is_stopped(self, knock: Knock) -> None:
        grant = knock.open("max")
        knock.client("stepfunctions").stop_execution(executionArn=grant["execution_arn"])
        knock.wait(lambda: not knock.rules(), "rules stay open")
        knock.wait(lambda: knock.closings() == ["SUCCEEDED"], "its closing does not end")

    def test_many_renewals_of_one_grant_at_once_can_all_be_closed(self, knock: Knock) -> None:
        """Each becomes a grant, and the grant they renew ends once.

        Mutation: functions/grants/operations.py: `MOST_CONFLICTS = 80` -> `MOST_CONFLICTS = 1`
        """
        old = knock.open("ci", targets=["bastion"])
        answers: list[Answer] = []

        def renew() -> None:
            body = {"renews": old["id"], "targets": ["bastion"]}
            answers.append(knock.request("POST", "/knock", key="ci", body=body))

        threads = [threading.Thread(target=renew) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status for answer in answers} <= {201, 202}, [a.text for a in answers]
        renewals = [answer.json["id"] for answer in answers]

        def all_open() -> bool:
            return {knock.grant(renewal)["status"] for renewal in renewals} == {"active"}

        knock.wait(all_open, "they do not open", step=timedelta(milliseconds=100))
        assert knock.request("DELETE", f"/grants/{old['id']}", key="ci").json["status"] == "superseded"
        events = [event["event"] for event in knock.grant(old["id"])["events"]]
        assert events == ["requested", "authorized", "superseded", "closed"]
        check_items(knock)
        assert knock.request("DELETE", "/grants", key="operator", principal="ci").status == 200
        assert knock.rules() == set()
        assert knock.ledger().claims == {}


class TestBoundsOfAKeyAndASource:
    def test_one_key_from_many_addresses_leaves_room_for_others(self, knock: Knock) -> None:
        """Mutation: functions/grants/policy.py: `    if live >= most:` -> `    if False:`"""
        knock.add_key("eve", targets="web", max_duration="24h")
        answers = [knock.request("POST", "/knock", key="eve", caller=f"2001:db8::{n:x}") for n in range(22)]
        assert [answer.status for answer in answers] == [201] * 20 + [409] * 2
        assert knock.open("bob", targets=["web"], caller="2001:db8:1::1")["status"] == "active"

    def test_a_source_has_a_bound_and_its_last_grant_takes_hardly_more_calls_than_its_first(
        self, knock: Knock
    ) -> None:
        """Mutation: functions/grants/ledger.py: `    if len(others) >= MAX_CLAIMS:` -> `    if False:`"""
        knock.request("GET", "/whoami", key="ci")
        with calls_of(knock) as first:
            knock.expire(knock.open("ci", targets=["bastion"], duration="1m"))
        for _ in range(MAX_CLAIMS - 1):
            knock.open("ci", targets=["bastion"])
        knock.request("GET", "/whoami", key="ci")
        with calls_of(knock) as last:
            knock.expire(knock.open("ci", targets=["bastion"], duration="1m"))
        assert len(last) <= len(first) + 2
        knock.open("ci", targets=["bastion"])
        full = knock.request("POST", "/knock", key="ci", body={"targets": ["bastion"]})
        assert (full.status, full.json["type"]) == (409, "urn:knock:problem:source-full")
        assert knock.request("POST", "/knock", key="bob", body={"targets": ["web"]}).status == 409
        check_items(knock)
        while knock.request("DELETE", "/grants", key="operator", source=CIDR).json["more"]:
            pass
        assert knock.rules() == set()
        assert knock.open("bob")["status"] == "active"

    def test_grants_of_different_targets_count_for_one_source(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: functions/grants/ledger.py: `    if len(rules) > MAX_RULES:` -> `    if False:`"""
        monkeypatch.setattr("grants.ledger.MAX_RULES", 5)
        add_targets(knock, 6)
        names = [f"t{number:02d}" for number in range(6)]
        knock.add_key("eve", targets=" ".join(names), max_duration="24h")
        answers = [knock.request("POST", "/knock", key="eve", body={"targets": [name]}) for name in names]
        assert [answer.status for answer in answers] == [201] * 5 + [409]
        assert answers[-1].json["type"] == "urn:knock:problem:source-full"
        assert knock.open("bob", targets=["bastion"], caller="198.51.100.1")["status"] == "active"


@contextmanager
def calls_of(knock: Knock) -> Iterator[list[str]]:
    """Record the calls to AWS of a grant's life, but for the API's polls while it opens."""
    injector, calls = Injector(), list[str]()
    before, knock.around = knock.around, injector.function
    with injecting(injector):
        yield calls
    knock.around = before
    calls += [call for call in injector.calls if call != f"{STACK}-api: sdb.GetAttributes"]


class TestClosingThatIsCutOff:
    @pytest.mark.parametrize("takes", [0.5, 3.0])
    def test_it_continues_where_it_was_cut_off(self, knock: Knock, takes: float) -> None:
        """Half a second a call, and Lambda kills a function after 20: many rules take a few tries.

        Mutation: functions/grants/timing.py:
        `PROGRESS = timedelta(seconds=4)` -> `PROGRESS = timedelta(hours=4)`

        Mutation: functions/grants/closing.py:
        `    if record and record.authorized_at and now < record.authorized_at + SETTLES:` -> `    if record:`
        """
        add_targets(knock)
        knock.add_key("max", targets="*", max_duration="24h")
        grant = knock.open("max", duration="1h")
        assert len(knock.rules()) == MANY + 3
        slow = {"takes": timedelta(seconds=takes), "kills_after": timedelta(seconds=20)}
        with worst(knock, **slow) as ec2:
            knock.advance_to(grant["expires_at"])
            knock.wait_status(grant["id"], "SUCCEEDED", 30, step=timedelta(seconds=1))
        assert ec2.killed <= (MANY + 2) * takes / 12 + 1
        assert ec2.killed >= 1
        assert knock.rules() == set()
        assert "ForceRevokeIngress" not in knock.states(grant["id"])
        assert knock.grant(grant["id"])["events"][-1]["event"] == "closed"
