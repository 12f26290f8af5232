"""Which clients a function makes as Lambda starts it; imported anywhere else, it makes none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from grants import wiring as wiring_module
from grants.wiring import HASTY, ONCE, TWICE, Wiring
from tests import harness
from tests.conftest import ROOT

LIST_CLIENTS = """
import importlib, json, sys
sys.path.insert(0, "functions")
clients = {}
for name in ("api", "authorize", "revoke", "guard", "notify"):
    module = importlib.import_module(name)
    clients[name] = sorted(vars(module.wiring())) if module.wiring.cache_info().currsize else None
print(json.dumps(clients))
"""

# The garbage collector as a function's module finds it while it is loaded, and as it leaves it.
COLLECTING = """
import gc, importlib, json, sys
sys.path.insert(0, "functions")
from grants import settings
while_loading = gc.isenabled()
importlib.import_module(sys.argv[1])
print(json.dumps([while_loading, gc.isenabled(), gc.get_freeze_count() > 10_000]))
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


def answer_of(script: str, environment: dict[str, str], *arguments: str) -> Any:
    """Run a script in a process of its own, and give the JSON that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_function_has_made_its_clients_when_lambda_has_started_it() -> None:
    clients = answer_of(LIST_CLIENTS, LAMBDA)
    for name in ("authorize", "revoke", "guard"):
        expected = {"trail", "ledgers", "ingress", "executions", "closings", "operations"}
        assert expected <= set(clients[name] or ())
    assert {"trail", "executions", "closings", "rights", "functions", "closer"} <= set(clients["api"] or ())
    assert not {"ingress", "ledgers", "operations"} & set(clients["api"] or ())  # its role may not


@pytest.mark.parametrize(
    "name", [path.stem for path in (ROOT / "functions").glob("*.py") if "def handler(" in path.read_text()]
)
def test_garbage_is_not_collected_while_a_function_starts_and_is_again_once_it_has(name: str) -> None:
    """A function that did not call `prepare` would never collect any.

    Mutation: functions/grants/wiring.py: `            gc.enable()` -> `            pass`
    Mutation: functions/grants/wiring.py: `            gc.freeze()` -> `            pass`
    Mutation: functions/grants/__init__.py: `    gc.disable()` -> `    pass`
    """
    assert answer_of(COLLECTING, LAMBDA, name) == [False, True, True]


def test_garbage_is_collected_as_ever_where_a_function_is_imported_elsewhere() -> None:
    assert answer_of(COLLECTING, {}, "api") == [True, True, False]


def test_importing_a_function_elsewhere_makes_nothing_and_needs_no_environment() -> None:
    assert set(answer_of(LIST_CLIENTS, {}).values()) == {None}


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
        ("TRUSTED_ROOTS", "mine"),
    ],
)
def test_a_bad_setting_stops_a_function_as_it_starts_and_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in LAMBDA.items() if key != name}
    with pytest.raises(AssertionError, match=name):
        answer_of(LIST_CLIENTS, environment | ({name: value} if value is not None else {}))


def wired(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Wiring:
    for name in (
        "AWS_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in (LAMBDA | environment).items():
        if name != "AWS_LAMBDA_INITIALIZATION_TYPE":
            monkeypatch.setenv(name, value)
    return Wiring()


def test_adapters_of_one_service_share_one_client_and_so_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutation: functions/grants/wiring.py: `        if known not in self._clients:` -> `        if True:`"""
    wiring = wired(monkeypatch)
    stores = [vars(adapter)["_store"] for adapter in (wiring.trail, wiring.ledgers)]
    assert stores[0]._client is stores[1]._client
    assert stores[0]._domain != stores[1]._domain
    assert vars(wiring.executions)["_client"] is vars(wiring.closings)["_client"]
    assert wiring.client("sdb") is not wiring.client("sdb", HASTY)
    assert wiring.client("sdb") is not wiring.client("sdb", region="us-east-1")


def test_a_function_loads_no_module_that_it_does_not_need() -> None:
    """The API then starts without what opens and closes, and every function without the other store."""
    code = LIST_CLIENTS.replace('("api", "authorize", "revoke", "guard", "notify")', '("api",)').replace(
        "json.dumps(clients)",
        "json.dumps({'loaded': sorted(name for name in sys.modules if name[:7] == 'grants.')})",
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=LAMBDA, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout)["loaded"])
    assert {"grants.trail", "grants.simpledb"} <= loaded
    assert (
        not {"grants.dynamodb", "grants.ingress", "grants.ledger", "grants.opening", "grants.closing"}
        & loaded
    )


def test_a_call_to_ec2_is_made_once_and_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/unit/test_timing.py ties these times to the protocol's.

    Mutation: functions/grants/wiring.py: `self.client("ec2", ONCE)` -> `self.client("ec2")`
    """
    config = wired(monkeypatch).operations.ingress._client.meta.config  # type: ignore[attr-defined]
    assert (config.connect_timeout, config.read_timeout) == (ONCE.connect_timeout, ONCE.read_timeout)
    assert config.retries == ONCE.retries


def test_force_has_clients_of_its_own_that_do_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: functions/grants/wiring.py:
    `ledgers=Ledgers(self.store(self.settings.ledger_domain, HASTY)),` -> ``
    """
    wiring = wired(monkeypatch)
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


def test_a_call_that_botocore_would_refuse_fails_a_test_though_functions_leave_that_to_aws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutation: functions/grants/wiring.py: `, parameter_validation=False)` -> `)`"""
    assert harness.wiring is wiring_module
    store: Any = vars(wired(monkeypatch).trail)["_store"]
    assert type(store._client._serializer).__name__ == "QuerySerializer"  # not within a validating one
    with pytest.raises(AssertionError, match="GetAttributes: Invalid type for parameter ItemName"):
        store._client.get_attributes(DomainName="knock-trail-x", ItemName=5)
    with pytest.raises(AssertionError, match="Missing required parameter"):
        store._client.put_attributes(DomainName="knock-trail-x", ItemName="g1")
