"""The event of the rule Warmth, which keeps the functions that people wait for warm: answered, and nothing
more.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from botocore.client import BaseClient

import api
import authorize
from grants.errors import KnockError
from grants.wiring import WARM
from tests.statemachine.definition import load

HANDLERS = {"api": api.handler, "authorize": authorize.handler}
every_handler = pytest.mark.parametrize("name", HANDLERS)


@every_handler
def test_it_is_answered_without_a_call_or_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: functions/authorize.py: `    if event == WARM:` -> `    if False:`"""
    for variable in ("KNOCK_STACK", "TRAIL_STORE", "STATE_MACHINE_ARN"):
        monkeypatch.delenv(variable, raising=False)
    with mock.patch.object(BaseClient, "_make_api_call", side_effect=AssertionError("a call")):
        assert not HANDLERS[name](dict(WARM), None)


@every_handler
@pytest.mark.parametrize("event", [{}, {"warm": "yes"}, WARM | {"grant": {}}])
def test_no_other_event_is_taken_for_it(name: str, event: dict[str, Any]) -> None:
    """Else a request or a grant would be answered as if it had been carried out."""
    with pytest.raises((KeyError, KnockError)):
        HANDLERS[name](event, None)


def test_no_state_of_a_grant_can_send_it() -> None:
    for state in load()["States"].values():
        if state["Type"] == "Task":
            assert "grant.$" in state["Parameters"]
