"""What a function makes as Lambda starts it, and that importing it anywhere else makes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from grants.wiring import HASTY, TWICE, Wiring
from tests.conftest import ROOT

MADE = """
import importlib, json, sys
sys.path.insert(0, "functions")
made = {}
for name in ("api", "authorize", "revoke", "guard"):
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
    "TRAIL_STORE": "simpledb",
    "TRAIL_DOMAIN": "knock-trail-x",
    "LEDGER_DOMAIN": "knock-ledger-x",
    "REFUSALS_DOMAIN": "knock-refusals-x",
    "TRAIL_REGION": "eu-west-1",
    "STATE_MACHINE_ARN": "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-grants",
    "CLOSINGS_ARN": "arn:aws:states:eu-west-1:123456789012:stateMachine:knock-closings",
    "REVOKE_FUNCTION": "knock-revoke",
    "DEFAULT_DURATION": "24h",
    "MAX_DURATION": "24h",
    "MAX_LIVE": "20",
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
    for name in ("authorize", "revoke", "guard"):
        made_by = {"trail", "ledgers", "ingress", "executions", "closings", "operations"}
        assert made_by <= set(found[name] or ())
    assert {"trail", "executions", "closings", "rights", "functions", "closer"} <= set(found["api"] or ())
    assert not {"ingress", "ledgers", "operations"} & set(found["api"] or ())  # nor may it: its role has none


def test_importing_a_function_elsewhere_makes_nothing_and_needs_no_environment() -> None:
    assert set(made({}).values()) == {None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAIL_DOMAIN", None),
        ("LEDGER_DOMAIN", None),
        ("CLOSINGS_ARN", ""),
        ("TRAIL_STORE", "files"),
        ("TRAIL_REGION", "eu-central-1"),
        ("MAX_LIVE", "many"),
        ("MAX_DURATION", "long"),
        ("RULES_PER_GROUP", "-1"),
    ],
)
def test_a_bad_setting_stops_a_function_as_it_starts_and_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in LAMBDA.items() if key != name}
    with pytest.raises(AssertionError, match=name):
        made(environment | ({name: value} if value is not None else {}))


def test_force_has_clients_of_its_own_that_do_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: functions/grants/wiring.py:
    `ledgers=Ledgers(self.store(self.settings.ledger_domain, HASTY)),` -> ``
    """
    for name, value in LAMBDA.items():
        if name != "AWS_LAMBDA_INITIALIZATION_TYPE":
            monkeypatch.setenv(name, value)
    wiring = Wiring()
    for trail, ledgers, expected in (
        (wiring.operations.trail, wiring.operations.ledgers, TWICE),
        (wiring.forcing.trail, wiring.forcing.ledgers, HASTY),
    ):
        for store in (trail._store, ledgers._store):  # type: ignore[attr-defined]
            config = store._client.meta.config
            assert (config.connect_timeout, config.read_timeout) == (
                expected.connect_timeout,
                expected.read_timeout,
            )
    assert wiring.forcing.ingress is wiring.operations.ingress
