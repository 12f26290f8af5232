"""What a function makes as Lambda starts it, and that importing it anywhere else makes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MADE = """
import importlib, json, sys
sys.path.insert(0, "functions")
made = {}
for name in ("api", "authorize", "revoke", "stopped", "guard"):
    module = importlib.import_module(name)
    made[name] = sorted(vars(module.wiring())) if module.wiring.cache_info().currsize else None
print(json.dumps(made))
"""

LAMBDA = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_LAMBDA_FUNCTION_NAME": "knock-test",
    "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
    "KNOCK_STACK": "knock",
    "TRAIL_DOMAIN": "knock-Trail",
    "TRAIL_REGION": "eu-west-1",
    "STATE_MACHINE_ARN": "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-grants",
    "REVOKE_FUNCTION": "knock-revoke",
    "DEFAULT_DURATION": "24h",
    "MAX_DURATION": "24h",
    "RULES_PER_GROUP": "60",
    "POWERTOOLS_SERVICE_NAME": "knock-test",
}


def made(environment: dict[str, str]) -> dict[str, list[str] | None]:
    done = subprocess.run(
        [sys.executable, "-c", MADE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str] | None] = json.loads(done.stdout)
    return found


def test_a_function_has_made_its_clients_when_lambda_has_started_it() -> None:
    found = made(LAMBDA)
    for name in ("authorize", "revoke", "stopped", "guard"):
        assert {"trail", "ingress", "executions", "operations"} <= set(found[name] or ())
    assert {"trail", "executions", "rights", "functions"} <= set(found["api"] or ())
    assert "ingress" not in (found["api"] or ())  # nor may it: its role has no EC2


def test_importing_a_function_elsewhere_makes_nothing_and_needs_no_environment() -> None:
    assert set(made({}).values()) == {None}


def test_a_bad_setting_stops_a_function_as_it_starts_and_is_named() -> None:
    environment = {name: value for name, value in LAMBDA.items() if name != "TRAIL_DOMAIN"}
    with pytest.raises(AssertionError, match="TRAIL_DOMAIN"):
        made(environment)
