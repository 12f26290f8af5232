"""docs/cost.md, made of measured calls, dated prices and quotas: `make cost`.

The calls are counted where the functions run as they are, in the harness; the prices and quotas, and what can
only be assumed, are in docs/cost/prices.json. Times there are assumptions, since no AWS was at hand.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jinja2

from tests.conftest import ROOT
from tests.cost.counted import ASKED, Calls, await_closings, counting
from tests.harness import running
from tests.template.transform import read, transformed

PAGE = ROOT / "docs" / "cost.md"
DATA = json.loads((ROOT / "docs" / "cost" / "prices.json").read_text())
SIZES = (10, 100, 1000)
PRICE = {name: entry["usd"] for name, entry in DATA["prices"].items()}
ASSUMED = DATA["assumed"]

HOURS = 730  # of a month


@dataclass(frozen=True)
class Measured:
    """What one grant comes to: calls, states entered, and executions, of both state machines."""

    calls: Calls
    states: int
    executions: int


def measure(ports: str = "22/tcp", *, early: bool = False) -> Measured:
    """Count what one grant takes from knock to expiry, or until somebody ends it early.

    The API asks the trail as often as opening takes: that one count is not taken from here.
    """
    with running() as knock:
        knock.add_group("measured", ports)
        knock.add_key("dave", targets="@all", max_duration="24h")
        with counting(knock) as calls:
            grant = knock.open("dave", targets=["measured"], duration="8h")
            calls[ASKED] = ASSUMED["asks_while_opening"]
            knock.wait(lambda: knock.states(grant["id"])[-1:] == ["HoldUntilExpiry"], "it does not hold")
            if early:
                knock.request("DELETE", f"/grants/{grant['id']}", key="dave")
                closings = await_closings(knock, 1)
            else:
                knock.expire(grant)
                closings = 0
        return Measured(calls, len(knock.states(grant["id"])) + closings, 1 + early)


def measure_guard() -> Calls:
    """Count one run of the guard that finds one live grant and nothing wrong."""
    with running() as knock, counting(knock) as calls:
        knock.open(duration="8h")
        calls.clear()
        knock.call("guard", {})
        return calls


def per_grant(measured: Measured) -> dict[str, float]:
    """Price one grant, by service. API Gateway and the API's function: once a request."""
    calls = measured.calls
    return {
        "API Gateway": calls["api", "invocations"] * PRICE["api_request"],
        "Lambda": _lambda(calls),
        "Step Functions": (measured.states + measured.executions) * PRICE["state_transition"],
        "SimpleDB": _simpledb(calls),
        "CloudWatch Logs": ASSUMED["log_bytes"] / 1e9 * PRICE["log_gb"],
    }


def _lambda(calls: Calls) -> float:
    memory = {
        one["Properties"]["Handler"].partition(".")[0]: one["Properties"]["MemorySize"] / 1024
        for one in transformed()["Resources"].values()
        if one["Type"] == "AWS::Lambda::Function" and "MemorySize" in one["Properties"]
    }
    seconds, gb_second = ASSUMED["seconds"], PRICE["lambda_gb_second"]
    return sum(
        count * (PRICE["lambda_request"] + memory[name] * seconds[name] * gb_second)
        for (name, operation), count in calls.items()
        if operation == "invocations"
    )


def _simpledb(calls: Calls) -> float:
    hours = sum(
        count * DATA["simpledb_hours"][operation.removeprefix("sdb.")]
        for (_, operation), count in calls.items()
        if operation.startswith("sdb.")
    )
    return float(hours * PRICE["simpledb_hour"])


def per_look() -> float:
    """Price one request that only reads: a list, or one grant."""
    compute = PRICE["lambda_request"] + 0.1 * PRICE["lambda_gb_second"]
    return float(PRICE["api_request"] + compute + DATA["simpledb_hours"]["Select"] * PRICE["simpledb_hour"])


def fixed() -> dict[str, float]:
    """Price what is there without anybody knocking, a month. Accounts have some of most free."""
    kinds = Counter(resource["Type"] for resource in transformed()["Resources"].values())
    guard = measure_guard()
    metrics = sum(len(entry["Functions"]) for entry in read()["Metadata"]["Knock"]["Metrics"].values())
    return {
        f"{kinds['AWS::CloudWatch::Alarm']} alarms (10 are free)": kinds["AWS::CloudWatch::Alarm"]
        * PRICE["alarm"],
        f"{metrics} custom metrics (10 are free)": metrics * PRICE["metric"],
        "1 dashboard (3 are free)": PRICE["dashboard"],
        f"{HOURS} runs of the hourly guard": HOURS * (_lambda(guard) + _simpledb(guard)),
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
    expired, early = measure(), measure(early=True)
    prices, of_early = per_grant(expired), per_grant(early)
    template = jinja2.Environment(  # noqa: S701  # it makes Markdown of our own data
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string((ROOT / "docs" / "cost" / "cost.md.j2").read_text())
    bounds = {users: binding(users) for users in SIZES}
    return template.render(
        region=DATA["region"],
        read_on=DATA["read_on"],
        unseen=[f"a {entry['unit']} of SimpleDB" for entry in DATA["prices"].values() if not entry["seen"]],
        assumed=ASSUMED,
        calls=[
            (name, what, expired.calls[name, what], early.calls[name, what])
            for name, what in sorted({**expired.calls, **early.calls})
        ],
        expired=expired,
        early=early,
        prices=prices,
        of_early=of_early,
        guard=measure_guard(),
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
