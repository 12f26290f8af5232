"""`knock-admin revoke` and `guard`: the same calls as the API makes, and what happens when they fail."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from grants.values import Grant
from knock_admin import grants
from tests.clients.admin_support import CLOSINGS, MACHINE, TRAIL, World, client, make_world

world = pytest.fixture(make_world)


class GrantNotFound(Exception):
    """As the functions name it."""


class StoreUnavailable(Exception):
    """As the functions name it."""


class RuleUnsettled(Exception):
    """As the functions name it."""


@pytest.fixture
def calls(world: World) -> list[dict[str, Any]]:
    """Let the revoke function revoke every grant; give the list that its payloads go to."""
    payloads: list[dict[str, Any]] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        payloads.append(payload)
        return {
            "grant_id": payload["grant"]["grant_id"],
            "status": "revoked",
            "revoked": ["sgr-1"],
            "kept": [],
        }

    world.functions["revoke"] = revoke
    return payloads


@pytest.fixture
def closings(world: World) -> Callable[[], list[tuple[str, Any]]]:
    """Make both state machines; give what lists the started closings: their names and inputs."""
    world.make_machines(MACHINE, CLOSINGS)
    engine = client("stepfunctions")

    def started() -> list[tuple[str, Any]]:
        executions = engine.list_executions(stateMachineArn=CLOSINGS)["executions"]
        described = [
            engine.describe_execution(executionArn=execution["executionArn"]) for execution in executions
        ]
        return [(execution["name"], json.loads(execution["input"])) for execution in described]

    return started


def failing(error: Exception, *, times: int = 1_000, then: Any = None) -> Callable[[Any], Any]:
    """Make a revoke function that fails so many times, and then does as `then` does."""
    errors = [error] * times

    def revoke(payload: Any) -> Any:
        if errors:
            raise errors.pop()
        return then(payload)

    return revoke


def test_a_grant_is_ended_by_the_revoke_function_which_gets_the_operator_and_the_reason(
    world: World, calls: list[dict[str, Any]]
) -> None:
    result = world.ok("revoke", "alice_1", "--reason", "left the team")
    (payload,) = calls
    assert payload["how"] == "revoked"
    assert payload["grant"] == {"grant_id": "alice_1"}
    assert payload["reason"] == "left the team"
    assert set(payload["by"]) == {"id", "name"}
    assert payload["by"]["name"].startswith(("user/", "assumed-role/", "root"))
    assert re.fullmatch(r"[0-9a-f]{16}", payload["request"])
    assert result.out == "alice_1: revoked; rules gone: sgr-1\n"


@pytest.mark.parametrize("text", ["alice_1 ", "alice 1", "alice\x1b[31m", "a" * 81, ""])
def test_an_id_that_no_grant_can_have_is_a_usage_error(
    world: World, calls: list[dict[str, Any]], text: str
) -> None:
    result = world.run("revoke", "alice_1", text)
    assert (result.code, calls) == (2, [])
    assert "a grant's id, as `knock-admin grants` shows it, was expected" in result.err


def test_a_grant_named_by_id_is_ended_without_reading_the_trail(
    world: World, calls: list[dict[str, Any]]
) -> None:
    world.sdb.delete_domain(DomainName=TRAIL)
    world.ok("revoke", "alice_1", "bob_2")
    assert [payload["grant"]["grant_id"] for payload in calls] == ["alice_1", "bob_2"]


def test_a_grant_that_the_function_cannot_close_gets_a_closing_with_the_executions_input(
    world: World, closings: Callable[[], list[tuple[str, Any]]]
) -> None:
    """Break it: report the failure and start no closing, so that the rules stay."""
    grant = world.start(world.record("alice"))
    world.functions["revoke"] = failing(StoreUnavailable("SimpleDB did not answer"))
    result = world.run("revoke", grant.id, "--reason", "laptop stolen")
    ((name, closing),) = closings()
    assert name.startswith(grant.id[:63])
    assert (closing["how"], closing["reason"], set(closing["by"])) == (
        "revoked",
        "laptop stolen",
        {"id", "name"},
    )
    assert Grant.from_input(closing["grant"]) == grant
    assert result.code == 1
    assert (
        f"{grant.id}: NOT closed: knock-revoke failed with StoreUnavailable: SimpleDB did not" in result.out
    )
    assert f"; the execution {name} retries until it is closed\n" in result.out


def test_a_closing_that_cannot_start_is_reported(world: World) -> None:
    world.make_machines(MACHINE)
    grant = world.start(world.record("alice"))
    world.functions["revoke"] = failing(StoreUnavailable("SimpleDB did not answer"))
    result = world.run("revoke", grant.id)
    assert "; and no execution retries: states:StartExecution: " in result.out


def test_no_closing_is_started_for_an_id_without_an_execution(
    world: World, closings: Callable[[], list[tuple[str, Any]]]
) -> None:
    """Break it: start one for any id. For a mistyped id it would be retried for days, and end in an alarm."""
    world.functions["revoke"] = failing(StoreUnavailable("SimpleDB did not answer"))
    result = world.run("revoke", "alise_1")
    assert (result.code, closings()) == (1, [])
    assert "alise_1: NOT closed: knock-revoke failed with StoreUnavailable: SimpleDB did not" in result.out


def test_a_grant_that_is_not_recorded_yet_is_ended_by_its_executions_input(
    world: World, calls: list[dict[str, Any]], closings: Callable[[], list[tuple[str, Any]]]
) -> None:
    grant = world.start(world.record("alice", nonce="x"))
    world.functions["revoke"] = failing(
        GrantNotFound("the trail holds none"), times=1, then=world.functions["revoke"]
    )
    world.ok("revoke", grant.id)
    assert [Grant.from_input(payload["grant"]) for payload in calls] == [grant]
    assert closings() == []


def test_no_closing_is_started_from_an_execution_whose_input_is_another_grants(
    world: World, closings: Callable[[], list[tuple[str, Any]]]
) -> None:
    world.start(world.record("alice"), name="bob_1")
    world.functions["revoke"] = failing(GrantNotFound("the trail holds no grant 'bob_1'"))
    result = world.run("revoke", "bob_1")
    assert (result.code, "NOT closed: knock-revoke failed with GrantNotFound" in result.out) == (1, True)
    assert closings() == []


def test_revoking_is_tried_again_while_the_grant_is_being_authorized(
    world: World,
    calls: list[dict[str, Any]],
    closings: Callable[[], list[tuple[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grants, "PAUSE", 0.0)
    revoke = world.functions["revoke"]
    world.functions["revoke"] = failing(RuleUnsettled("under way"), times=2, then=revoke)
    grant = world.start(world.record("alice"))
    world.ok("revoke", grant.id)
    monkeypatch.setattr(grants, "CLOSES_WITHIN", 0.0)
    world.functions["revoke"] = failing(RuleUnsettled("under way"))
    assert world.run("revoke", grant.id).code == 1
    assert len(closings()) == 1


def test_a_filter_ends_every_live_grant_it_chooses_and_no_other(
    world: World, calls: list[dict[str, Any]]
) -> None:
    chosen = [world.record("alice", nonce="a").id, world.record("alice", target="web", nonce="b").id]
    world.record("bob")
    ended = world.record("alice", nonce="c")
    world.trail.end(ended.id, "expired", ended.requested_at, "knock", "")
    result = world.ok("revoke", "--principal", "alice", "--yes", "--json")
    assert {payload["grant"]["grant_id"] for payload in calls} == set(chosen)
    assert {grant["grant_id"] for grant in result.json["ended"]} == set(chosen)
    assert result.json["failed"] == {}


def test_all_ends_every_live_grant(world: World, calls: list[dict[str, Any]]) -> None:
    grant_ids = {world.record("alice").id, world.record("bob").id}
    world.ok("revoke", "--all", "--yes")
    assert {payload["grant"]["grant_id"] for payload in calls} == grant_ids
    world.refuse()  # of another source, which has no grant
    assert world.ok("revoke", "--source", "203.0.113.9", "--yes").out == "No live grant matches.\n"


def test_without_a_terminal_a_filter_needs_a_yes(world: World, calls: list[dict[str, Any]]) -> None:
    world.record("alice")
    result = world.run("revoke", "--all")
    assert (result.code, "say --yes" in result.err, calls) == (2, True, [])


@pytest.mark.parametrize(
    ("typed", "code", "ended"), [("y\n", 0, 2), ("yes\n", 0, 2), ("n\n", 1, 0), ("", 1, 0)]
)
def test_on_a_terminal_one_yes_ends_all_chosen_grants(
    world: World,
    calls: list[dict[str, Any]],
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

    grant_ids = [world.record("alice").id, world.record("bob").id]
    monkeypatch.setattr(sys, "stdin", Terminal())
    result = world.run("revoke", "--target", "bastion")
    assert "End these 2 grants? [y/N]" in result.err
    assert all(grant in result.err for grant in grant_ids)
    assert (result.code, len(calls)) == (code, ended)


@pytest.mark.parametrize(
    "command", [["revoke"], ["revoke", "alice_1", "--all"], ["revoke", "a", "--principal", "b"]]
)
def test_grants_are_named_or_chosen_and_not_both(world: World, command: list[str]) -> None:
    assert world.run(*command).code == 2


def test_a_grant_that_cannot_be_ended_is_named_and_stops_no_other(
    world: World, calls: list[dict[str, Any]]
) -> None:
    succeed = world.functions["revoke"]

    def revoke(payload: dict[str, Any]) -> Any:
        if payload["grant"]["grant_id"] == "bad":
            raise GrantNotFound("the trail holds no grant 'bad'\x1b[2J")
        return succeed(payload)

    world.functions["revoke"] = revoke
    result = world.run("revoke", "one", "bad", "two")
    assert result.code == 1
    assert [payload["grant"]["grant_id"] for payload in calls] == ["one", "two"]
    assert (
        "bad: NOT closed: knock-revoke failed with GrantNotFound: the trail holds no grant 'bad'\\x1b[2J"
        in result.out
    )
    assert "1 of 3 not closed" in result.out
    assert world.run("revoke", "bad", "--json").json["failed"].keys() == {"bad"}


def test_rules_that_other_live_grants_keep_are_listed(world: World, calls: list[dict[str, Any]]) -> None:
    world.functions["revoke"] = lambda _: {
        "status": "revoked",
        "revoked": [],
        "kept": ["sg-0a/tcp/22/22/203.0.113.7/32"],
    }
    out = world.ok("revoke", "alice_1").out
    assert "none left to close; kept for other live grants: sg-0a/tcp/22/22/203.0.113.7/32" in out


def test_a_dry_run_names_the_payload_and_ends_nothing(world: World, calls: list[dict[str, Any]]) -> None:
    grant = world.record("alice").id
    planned = world.ok("revoke", "--all", "--dry-run", "--json").json["calls"]
    assert [call["call"] for call in planned] == ["lambda:Invoke"]
    assert json.loads(planned[0]["parameters"]["Payload"])["grant"] == {"grant_id": grant}
    assert calls == []


def test_the_guard_that_finds_nothing_is_a_success(world: World) -> None:
    payloads = []
    world.functions["guard"] = lambda payload: payloads.append(payload) or {"findings": []}  # type: ignore[func-returns-value]
    assert world.ok("guard").out == "The drift guard found nothing.\n"
    assert payloads == [{}]


def test_findings_of_the_guard_are_printed_and_are_exit_code_1(world: World) -> None:
    finding = {"kind": "rule without a live claim", "grant_id": "", "rule": "sgr-1", "did": "revoked it"}
    world.functions["guard"] = lambda _: {"findings": [finding]}
    result = world.run("guard")
    assert result.code == 1
    assert re.fullmatch(r"rule without a live claim +- +sgr-1 +revoked it", result.out.splitlines()[1])
    assert world.run("guard", "--json").json == {"findings": [finding]}


def test_a_dry_run_of_the_guard_says_that_its_changes_are_not_known_before(world: World) -> None:
    world.functions["guard"] = lambda _: pytest.fail("the guard was run")
    result = world.ok("guard", "--dry-run")
    assert "is not known before it has run" in result.err
    (line,) = result.out.splitlines()[1:]
    assert "lambda:Invoke" in line
    assert world.ok("guard", "--dry-run", "--json").json["dry_run"] is True


def test_a_guard_that_fails_says_with_what(world: World) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no trail")

    world.functions["guard"] = fail
    result = world.run("guard")
    assert (result.code, result.err) == (1, "knock-admin: knock-guard failed with RuntimeError: no trail\n")


def test_a_stack_without_the_function_says_so(world: World) -> None:
    client("lambda").delete_function(FunctionName="knock-guard")
    result = world.run("guard")
    assert (result.code, "has no function for guard" in result.err) == (1, True)
