"""docs/cost.md, made of measured calls, dated prices and quotas: `make cost`.

The calls are counted where the functions run as they are, in the harness; the prices and quotas, and what can
only be assumed, are in docs/cost/prices.json. Times there are assumptions, since no AWS was at hand.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jinja2
from botocore.client import BaseClient

from tests.conftest import ROOT
from tests.harness import STACK, running
from tests.template.transform import read, transformed

PAGE = ROOT / "docs" / "cost.md"
DATA = json.loads((ROOT / "docs" / "cost" / "prices.json").read_text())
SIZES = (10, 100, 1000)
PRICE = {name: entry["usd"] for name, entry in DATA["prices"].items()}
ASSUMED = DATA["assumed"]

Calls = Counter[tuple[str, str]]  # by function and by operation


def measure(ports: str = "22/tcp") -> tuple[Calls, int]:
    """Count the AWS calls of one grant from knock to expiry, by function, and the states it enters.

    The API asks the trail as often as opening takes: that one count is not taken from here.
    """
    calls: Calls = Counter()
    inside = threading.local()
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    @contextmanager
    def around(name: str) -> Iterator[None]:
        before, inside.name = getattr(inside, "name", None), name.removeprefix(f"{STACK}-")
        calls[inside.name, "invocations"] += 1
        try:
            yield
        finally:
            inside.name = before

    def call(client: BaseClient, operation: str, asked: Any) -> Any:
        if name := getattr(inside, "name", None):
            calls[name, f"{client.meta.service_model.service_name}.{operation}"] += 1
        return real(client, operation, asked)

    with running() as knock:
        knock.add_group("measured", ports)
        knock.add_key("dave", targets="*", max_duration="24h")
        knock.request("GET", "/whoami", key="dave")  # tags are read once a minute, not once a knock
        with mock.patch.object(BaseClient, "_make_api_call", call):
            knock.around = around
            grant = knock.open("dave", targets=["measured"], duration="8h")
            knock.expire(grant)
            states = len(knock.states(grant["id"]))
    calls["api", "sdb.GetAttributes"] = ASSUMED["asks_while_opening"]
    return calls, states


def per_grant(calls: Calls, states: int) -> dict[str, float]:
    """Price one grant, by service."""
    memory = {"api": 1.0, "authorize": 0.5, "revoke": 0.5}
    invocations = {name: calls[name, "invocations"] for name in memory}
    hours = sum(
        count * DATA["simpledb_hours"][operation.removeprefix("sdb.")]
        for (_, operation), count in calls.items()
        if operation.startswith("sdb.")
    )
    return {
        "API Gateway": PRICE["api_request"],
        "Lambda": sum(
            count
            * (PRICE["lambda_request"] + memory[name] * ASSUMED["seconds"][name] * PRICE["lambda_gb_second"])
            for name, count in invocations.items()
        ),
        "Step Functions": (states + 1) * PRICE["state_transition"],
        "SimpleDB": hours * PRICE["simpledb_hour"],
        "CloudWatch Logs": ASSUMED["log_bytes"] / 1e9 * PRICE["log_gb"],
    }


def per_look() -> float:
    """Price one request that only reads: a list, or one grant."""
    compute = PRICE["lambda_request"] + 0.1 * PRICE["lambda_gb_second"]
    return float(PRICE["api_request"] + compute + DATA["simpledb_hours"]["Select"] * PRICE["simpledb_hour"])


def fixed() -> dict[str, float]:
    """Price what is there without anybody knocking, a month. Accounts have some of each free."""
    kinds = Counter(resource["Type"] for resource in transformed()["Resources"].values())
    metrics = sum(len(entry["Functions"]) for entry in read()["Metadata"]["Knock"]["Metrics"].values())
    return {
        f"{kinds['AWS::CloudWatch::Alarm']} alarms (10 are free)": kinds["AWS::CloudWatch::Alarm"]
        * PRICE["alarm"],
        f"{metrics} custom metrics (10 are free)": metrics * PRICE["metric"],
        "1 dashboard (3 are free)": PRICE["dashboard"],
    }


def binding(users: int) -> list[dict[str, Any]]:
    """Rank the quotas by how much of each so many users need, the scarcest first."""
    busiest = users * ASSUMED["knocks_within_a_minute"]
    grants = users * ASSUMED["grants_a_day"] * ASSUMED["working_days"]
    need = {
        "rules": users * ASSUMED["live_at_once"],
        "changes": busiest,
        "knocks": busiest,
        "concurrency": math.ceil(
            busiest / 60 * (ASSUMED["seconds"]["api"] + ASSUMED["seconds"]["authorize"])
        ),
        "trail": grants * 12 * 5 * ASSUMED["trail_bytes"],
    }
    ranked = [
        {
            "users": users,
            "quota": quota,
            "need": need[quota["need"]],
            "share": need[quota["need"]] / quota["limit"],
            "link": quota["source"] if quota["source"].startswith("https:") else f"../{quota['source']}",
        }
        for quota in DATA["quotas"]
    ]
    return sorted(ranked, key=lambda one: -one["share"])


def page() -> str:
    """Write the page."""
    calls, states = measure()
    prices = per_grant(calls, states)
    template = jinja2.Environment(  # noqa: S701  # it makes Markdown of our own data
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string((ROOT / "docs" / "cost" / "cost.md.j2").read_text())
    bounds = {users: binding(users) for users in SIZES}
    return template.render(
        region=DATA["region"],
        read_on=DATA["read_on"],
        unseen=[f"a {entry['unit']} of SimpleDB" for entry in DATA["prices"].values() if not entry["seen"]],
        assumed=ASSUMED,
        calls=sorted(calls.items()),
        states=states,
        prices=prices,
        fixed=fixed(),
        months=[_month(users, sum(prices.values())) for users in SIZES],
        bounds=[
            one for found in bounds.values() for one in ([b for b in found if b["share"] > 1] or found[:1])
        ],
        rest=[one for one in bounds[SIZES[-1]] if one["share"] <= 1],
    )


def _month(users: int, price: float) -> dict[str, float]:
    days = users * ASSUMED["working_days"]
    grants, looks = days * ASSUMED["grants_a_day"], days * ASSUMED["looks_a_day"]
    use = grants * price + looks * per_look()
    trail = grants * 12 * ASSUMED["trail_bytes"] / 1e9 * PRICE["simpledb_gb_month"]
    total = use + trail + sum(fixed().values())
    return {"users": users, "grants": grants, "use": use, "trail": trail, "total": total}


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
