"""Executions, of grants and of closings, over Step Functions' adapters and over the twins."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from grants.errors import EngineUnavailable
from grants.executions import Closings, Executions
from grants.values import GRANT_ID, Grant
from tests.adapters.parts import NO_ANSWER, Answers, Parts, answered, new_grant

MACHINE = "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-grants"


def lasting(parts: Parts, nonce: str) -> Grant:
    """A grant that its execution's clock gives another day."""
    end = parts.now().replace(microsecond=0) + timedelta(days=1)
    return new_grant(f"{nonce}-{parts.name}", expires_at=end)


def status(parts: Parts, of: Grant) -> str | None:
    execution = parts.executions.describe(of.id)
    return execution.status if execution else None


def running(parts: Parts) -> list[str]:
    return [name for name, _ in parts.executions.running()]


class TestExecution:
    def test_there_is_none_before_it_starts(self, parts: Parts) -> None:
        assert parts.executions.describe("never") is None
        assert parts.executions.stop("never", "Revoked", "revoked by bob") is False

    def test_it_has_the_grant_as_its_input(self, parts: Parts) -> None:
        grant = lasting(parts, "input")
        parts.executions.start(grant)
        execution = parts.executions.describe(grant.id)
        assert execution.status == "RUNNING"
        assert Grant.from_input(json.loads(execution.input)) == grant

    def test_it_runs_once_however_often_it_is_started(self, parts: Parts) -> None:
        grant = lasting(parts, "once")
        parts.executions.start(grant)
        parts.executions.start(grant)
        parts.executions.start(replace(grant, reason="another input"))
        assert status(parts, grant) == "RUNNING"
        assert running(parts).count(grant.id) == 1
        assert Grant.from_input(json.loads(parts.executions.describe(grant.id).input)) == grant

    def test_a_list_says_since_when_it_runs(self, parts: Parts) -> None:
        grant = lasting(parts, "since")
        parts.executions.start(grant)
        (started,) = [at for name, at in parts.executions.running() if name == grant.id]
        assert started.tzinfo is not None
        assert abs(started - parts.now()) < timedelta(days=1)

    def test_it_is_stopped_once_and_for_all(self, parts: Parts) -> None:
        grant = lasting(parts, "stopped")
        parts.executions.start(grant)
        for _ in range(2):
            assert parts.executions.stop(grant.id, "Revoked", "revoked by bob: x" * 3000) is True
            assert status(parts, grant) == "ABORTED"
        parts.executions.start(grant)
        assert status(parts, grant) == "ABORTED"
        assert grant.id not in running(parts)

    def test_stopping_an_execution_that_has_ended_changes_nothing(self, parts: Parts) -> None:
        grant = lasting(parts, "ended")
        parts.executions.start(grant)
        parts.finish(grant.id)
        assert parts.executions.stop(grant.id, "Revoked", "") is True
        assert status(parts, grant) == "SUCCEEDED"
        assert grant.id not in running(parts)

    def test_its_arn_names_the_grant(self, parts: Parts) -> None:
        arn: str = parts.executions.arn("g1")
        assert arn.startswith("arn:aws:states:eu-west-1:123456789012:execution:knock-grants:")
        assert arn.endswith(":g1")


class TestClosing:
    def test_each_is_an_execution_of_its_own_with_what_it_is_to_close(self, parts: Parts) -> None:
        grant = lasting(parts, "closing")
        payload = {"how": "superseded", "grant": grant.as_input(), "by": {"id": "", "name": "é"}}
        for _ in range(2):
            parts.closings.start(grant.id, payload)
        assert parts.closings_started(grant.id) == [payload, payload]
        assert parts.closings_started("another") == []


# ---------------------------------------------------------------------------- Step Functions' own


def over(*answers: Any) -> tuple[Executions, Answers]:
    client = Answers(*answers)
    return Executions(client, MACHINE), client  # type: ignore[arg-type]


CALLS = {
    "start": lambda executions: executions.start(new_grant()),
    "stop": lambda executions: executions.stop("g1", "Revoked", ""),
    "describe": lambda executions: executions.describe("g1"),
    "running": lambda executions: list(executions.running()),
}
FAILURES = [answered("ThrottlingException"), answered("AccessDeniedException"), answered("X", 503), NO_ANSWER]


class TestErrors:
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_call_that_step_functions_does_not_carry_out_is_unavailable(
        self, call: Any, failure: Exception
    ) -> None:
        with pytest.raises(EngineUnavailable):
            call(over(failure)[0])

    @pytest.mark.parametrize("failure", FAILURES)
    def test_so_is_a_closing_that_did_not_start(self, failure: Exception) -> None:
        with pytest.raises(EngineUnavailable):
            Closings(Answers(failure), MACHINE).start("g1", {})  # type: ignore[arg-type]

    def test_an_execution_of_the_same_name_is_the_grants_own(self) -> None:
        over(answered("ExecutionAlreadyExists"))[0].start(new_grant())

    def test_an_error_and_a_cause_are_cut_to_what_step_functions_takes(self) -> None:
        executions, client = over({})
        executions.stop("g1", "x" * 1000, "y" * 40_000)
        assert (len(client.calls[0][1]["error"]), len(client.calls[0][1]["cause"])) == (256, 32_768)

    def test_an_input_that_is_too_large_to_show_is_empty(self) -> None:
        execution = over({"status": "RUNNING"})[0].describe("g1")
        assert execution
        assert execution.input == ""


class TestPages:
    def test_a_list_goes_on_to_its_last_page(self) -> None:
        """Mutation: functions/grants/executions.py: `if not answer.get("nextToken"):` -> `if True:`"""
        at = datetime(2026, 11, 23, tzinfo=timezone.utc)
        executions, client = over(
            {"executions": [{"name": "g1", "startDate": at}], "nextToken": "1"},
            {"executions": [], "nextToken": "2"},
            {"executions": [{"name": "g2", "startDate": at}]},
        )
        assert list(executions.running()) == [("g1", at), ("g2", at)]
        assert [arguments.get("nextToken") for _, arguments in client.calls] == [None, "1", "2"]
        assert {arguments["statusFilter"] for _, arguments in client.calls} == {"RUNNING"}


class TestNames:
    @pytest.mark.parametrize("name", ["g1", "x" * 80, new_grant().id])
    def test_a_closings_name_is_valid_and_begins_with_the_grants(self, name: str) -> None:
        client = Answers({}, {})
        closings = Closings(client, MACHINE)  # type: ignore[arg-type]
        for _ in range(2):
            closings.start(name, {"how": "revoked"})
        execution_names = [arguments["name"] for _, arguments in client.calls]
        assert all(map(GRANT_ID.fullmatch, execution_names))
        assert len(set(execution_names)) == 2
        assert all(execution_name.startswith(name[:63]) for execution_name in execution_names)
