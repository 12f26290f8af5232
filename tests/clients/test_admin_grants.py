"""`knock-admin revoke` and `guard`: the same calls as the API makes, and what happens when they fail."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from moto.stepfunctions.responses import StepFunctionResponse

from tests.clients.admin_support import MACHINE, World, client, make_world

world = pytest.fixture(make_world)


@pytest.fixture
def calls(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Watch the revoke function and StopExecution, in the order in which they are called."""
    seen: list[tuple[str, Any]] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        seen.append(("revoke", payload))
        return {
            "grant_id": payload["grant"]["grant_id"],
            "status": "revoked",
            "revoked": ["sgr-1"],
            "kept": [],
        }

    def stop(response: StepFunctionResponse) -> str:
        seen.append(("stop", json.loads(response.body)))
        return '{"stopDate": 0}'

    world.functions["revoke"] = revoke
    monkeypatch.setattr(StepFunctionResponse, "stop_execution", stop)
    return seen


def test_a_grant_is_closed_first_and_its_execution_stopped_then_saying_who_and_why(
    world: World, calls: list[tuple[str, Any]]
) -> None:
    """Break it: stop the execution before the revoke function has run."""
    ran = world.ok("revoke", "alice_1", "--reason", "left the team")
    (first, payload), (second, stopped) = calls
    assert (first, second) == ("revoke", "stop")
    assert payload["how"] == "revoked"
    assert payload["grant"] == {"grant_id": "alice_1"}
    assert payload["reason"] == "left the team"
    assert set(payload["by"]) == {"id", "name"}
    name = payload["by"]["name"]
    assert name.startswith(("user/", "assumed-role/", "root"))
    assert stopped == {
        "executionArn": MACHINE.replace(":stateMachine:", ":execution:") + ":alice_1",
        "error": "Revoked",
        "cause": f"revoked by {name}: left the team",
    }
    assert ran.out == "alice_1: revoked; rules gone: sgr-1\n"


def test_a_grant_named_by_id_is_ended_without_reading_the_trail(
    world: World, calls: list[tuple[str, Any]]
) -> None:
    world.sdb.delete_domain(DomainName="knock-Trail-1ABC")
    world.ok("revoke", "alice_1", "bob_2")
    assert [what for what, _ in calls] == ["revoke", "stop", "revoke", "stop"]


def test_a_filter_ends_every_live_grant_it_chooses_and_no_other(
    world: World, calls: list[tuple[str, Any]]
) -> None:
    mine = [world.record("alice", random="a").id, world.record("alice", target="web", random="b").id]
    world.record("bob")
    ended = world.record("alice", random="c")
    world.trail.end(ended.id, "expired", ended.requested_at, "knock", "")
    ran = world.ok("revoke", "--principal", "alice", "--yes", "--json")
    assert {payload["grant"]["grant_id"] for what, payload in calls if what == "revoke"} == set(mine)
    assert {each["grant_id"] for each in ran.json["ended"]} == set(mine)
    assert ran.json["failed"] == {}


def test_all_ends_all(world: World, calls: list[tuple[str, Any]]) -> None:
    grants = {world.record("alice").id, world.record("bob").id}
    world.ok("revoke", "--all", "--yes")
    assert {payload["grant"]["grant_id"] for what, payload in calls if what == "revoke"} == grants
    assert world.ok("revoke", "--source", "198.51.100.1", "--yes").out == "No live grant matches.\n"


def test_without_a_terminal_a_filter_needs_a_yes(world: World, calls: list[tuple[str, Any]]) -> None:
    world.record("alice")
    ran = world.run("revoke", "--all")
    assert (ran.code, "say --yes" in ran.err, calls) == (2, True, [])


@pytest.mark.parametrize(
    ("typed", "code", "ended"), [("y\n", 0, 2), ("yes\n", 0, 2), ("n\n", 1, 0), ("", 1, 0)]
)
def test_on_a_terminal_it_is_asked_once(
    world: World,
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
    ended: int,
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return typed

    grants = [world.record("alice").id, world.record("bob").id]
    monkeypatch.setattr(sys, "stdin", Terminal())
    ran = world.run("revoke", "--target", "bastion")
    assert "End these 2 grants? [y/N]" in ran.err
    assert all(grant in ran.err for grant in grants)
    assert (ran.code, len(calls) // 2) == (code, ended)


@pytest.mark.parametrize(
    "command", [["revoke"], ["revoke", "alice_1", "--all"], ["revoke", "a", "--principal", "b"]]
)
def test_grants_are_named_or_chosen_and_not_both(world: World, command: list[str]) -> None:
    assert world.run(*command).code == 2


def test_one_that_fails_stops_no_other_and_is_named(world: World, calls: list[tuple[str, Any]]) -> None:
    whole = world.functions["revoke"]

    class GrantNotFound(Exception):
        pass

    def revoke(payload: dict[str, Any]) -> Any:
        if payload["grant"]["grant_id"] == "bad":
            raise GrantNotFound("the trail holds no grant 'bad'\x1b[2J")
        return whole(payload)

    world.functions["revoke"] = revoke
    ran = world.run("revoke", "one", "bad", "two")
    assert ran.code == 1
    assert [payload["grant"]["grant_id"] for what, payload in calls if what == "revoke"] == ["one", "two"]
    assert (
        "bad: NOT ended: knock-revoke failed with GrantNotFound: the trail holds no grant 'bad'\\x1b[2J"
        in ran.out
    )
    assert "1 of 3 not ended" in ran.out
    assert world.run("revoke", "bad", "--json").json["failed"].keys() == {"bad"}


def test_rules_that_other_live_grants_keep_are_told(world: World, calls: list[tuple[str, Any]]) -> None:
    world.functions["revoke"] = lambda _: {
        "status": "revoked",
        "revoked": [],
        "kept": ["sg-0a/tcp/22/22/203.0.113.7/32"],
    }
    out = world.ok("revoke", "alice_1").out
    assert "none left to close; kept for other live grants: sg-0a/tcp/22/22/203.0.113.7/32" in out


def test_an_execution_that_is_not_there_is_no_failure(world: World) -> None:
    """The machine exists in no account of these tests, so StopExecution finds nothing to stop."""
    world.functions["revoke"] = lambda _: {"status": "revoked", "revoked": [], "kept": []}
    ran = world.run("revoke", "alice_1")
    assert (ran.code, ran.err) == (0, "")


def test_a_dry_run_names_the_payload_and_ends_nothing(world: World, calls: list[tuple[str, Any]]) -> None:
    grant = world.record("alice").id
    planned = world.ok("revoke", "--all", "--dry-run", "--json").json["calls"]
    assert [call["call"] for call in planned] == ["lambda:Invoke", "states:StopExecution"]
    assert json.loads(planned[0]["parameters"]["Payload"])["grant"] == {"grant_id": grant}
    assert calls == []


def test_the_guard_that_finds_nothing_is_a_success(world: World) -> None:
    seen = []
    world.functions["guard"] = lambda payload: seen.append(payload) or {"findings": []}  # type: ignore[func-returns-value]
    assert world.ok("guard").out == "The drift guard found nothing.\n"
    assert seen == [{}]


def test_what_the_guard_finds_is_printed_and_is_exit_code_1(world: World) -> None:
    finding = {"kind": "rule without a live claim", "grant_id": "", "rule": "sgr-1", "did": "revoked it"}
    world.functions["guard"] = lambda _: {"findings": [finding]}
    ran = world.run("guard")
    assert ran.code == 1
    assert re.fullmatch(r"rule without a live claim +- +sgr-1 +revoked it", ran.out.splitlines()[1])
    assert world.run("guard", "--json").json == {"findings": [finding]}


def test_a_dry_run_of_the_guard_says_that_it_cannot_tell_what_would_be_done(world: World) -> None:
    world.functions["guard"] = lambda _: pytest.fail("it was run")
    ran = world.ok("guard", "--dry-run")
    assert "is not known before it has run" in ran.err
    (line,) = ran.out.splitlines()[1:]
    assert "lambda:Invoke" in line
    assert world.ok("guard", "--dry-run", "--json").json["dry_run"] is True


def test_a_guard_that_fails_says_with_what(world: World) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no trail")

    world.functions["guard"] = fail
    ran = world.run("guard")
    assert (ran.code, ran.err) == (1, "knock-admin: knock-guard failed with RuntimeError: no trail\n")


def test_a_stack_without_the_function_says_so(world: World) -> None:
    client("lambda").delete_function(FunctionName="knock-guard")
    ran = world.run("guard")
    assert (ran.code, "has no function for guard" in ran.err) == (1, True)
