"""Writes docs/cost.md and docs/choosing-a-store.md from measured calls, dated prices and quotas: `make cost`.

The calls are counted while the functions run in the test harness. The prices, quotas and assumptions are in
docs/cost/prices.json. The durations of calls are assumptions: nothing here was measured on AWS.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from grants.settings import SIMPLEDB_REGIONS
from tests.conftest import ROOT
from tests.cost.counted import ASKED, Calls, await_closings, counting
from tests.harness import running
from tests.template.policies import listed, statements_of
from tests.template.transform import read, transformed

PAGE, STORES_PAGE = ROOT / "docs" / "cost.md", ROOT / "docs" / "choosing-a-store.md"
DATA = json.loads((ROOT / "docs" / "cost" / "prices.json").read_text())
SIZES = (10, 100, 1000)
PRICE = {name: entry["usd"] for name, entry in DATA["prices"].items()}
ASSUMED = DATA["assumed"]

HOURS = 730  # in a month


@dataclass(frozen=True)
class Measured:
    """The use of AWS by one grant: calls, state transitions and executions of both state machines."""

    calls: Calls
    states: int
    executions: int


@cache
def measure(ports: str = "22/tcp", *, early: bool = False, store: str = "simpledb") -> Measured:
    """Count the calls of one grant, from the knock to its expiry, or until it is revoked (`early`).

    How often the API polls the trail depends on how long opening takes: that count is an assumption.
    """
    polls = ASKED if store == "simpledb" else ("api", "dynamodb.GetItem")
    with running(store) as knock:
        knock.add_group("measured", ports)
        knock.add_key("dave", targets="@all", max_duration="24h")
        with counting(knock) as calls:
            grant = knock.open("dave", targets=["measured"], duration="8h")
            calls[polls] = ASSUMED["asks_while_opening"]
            knock.wait(lambda: knock.states(grant["id"])[-1:] == ["HoldUntilExpiry"], "it does not hold")
            if early:
                knock.request("DELETE", f"/grants/{grant['id']}", key="dave")
                closings = await_closings(knock, 1)
            else:
                knock.expire(grant)
                closings = 0
        return Measured(calls, len(knock.states(grant["id"])) + closings, 1 + early)


@cache
def measure_guard(store: str = "simpledb") -> Calls:
    """Count the calls of one run of the guard, with one live grant and no drift."""
    with running(store) as knock, counting(knock) as calls:
        knock.open(duration="8h")
        calls.clear()
        knock.call("guard", {})
        return calls


def per_grant(measured: Measured) -> dict[str, float]:
    """Price one grant, by service."""
    calls = measured.calls
    return {
        "API Gateway": calls["api", "invocations"] * PRICE["api_request"],
        "Lambda": _lambda(calls),
        "Step Functions": (measured.states + measured.executions) * PRICE["state_transition"],
        **({"DynamoDB": _dynamodb(calls)} if _dynamodb(calls) else {"SimpleDB": _simpledb(calls)}),
        "CloudWatch Logs": ASSUMED["log_bytes"] / 1e9 * PRICE["log_gb"],
    }


def _lambda(calls: Calls) -> float:
    memory = {
        resource["Properties"]["Handler"].partition(".")[0]: resource["Properties"]["MemorySize"] / 1024
        for resource in transformed()["Resources"].values()
        if resource["Type"] == "AWS::Lambda::Function" and "MemorySize" in resource["Properties"]
    }
    seconds, gb_second = ASSUMED["seconds"], PRICE["lambda_gb_second"]
    usd: float = sum(
        count * (PRICE["lambda_request"] + memory[name] * seconds[name] * gb_second)
        for (name, operation), count in calls.items()
        if operation == "invocations"
    )
    return usd


def _simpledb(calls: Calls) -> float:
    hours = sum(
        count * DATA["simpledb_hours"][operation.removeprefix("sdb.")]
        for (_, operation), count in calls.items()
        if operation.startswith("sdb.")
    )
    return float(hours * PRICE["simpledb_hour"])


def _dynamodb(calls: Calls) -> float:
    price = dict.fromkeys(("GetItem", "Query", "Scan"), PRICE["dynamodb_read"])
    return float(
        sum(
            count * DATA["dynamodb_units"][name] * price.get(name, PRICE["dynamodb_write"])
            for (_, operation), count in calls.items()
            for service, _, name in [operation.partition(".")]
            if service == "dynamodb"
        )
    )


def per_look(store: str = "simpledb") -> float:
    """Price a request that only reads a list of grants, or a grant."""
    compute = PRICE["lambda_request"] + 0.1 * PRICE["lambda_gb_second"]
    reads = {
        "simpledb": DATA["simpledb_hours"]["Select"] * PRICE["simpledb_hour"],
        "dynamodb": DATA["dynamodb_units"]["Query"] * PRICE["dynamodb_read"],
    }
    return float(PRICE["api_request"] + compute + reads[store])


def per_gb_month(store: str) -> float:
    """Price a GB of trail for a month. With DynamoDB it is stored in the table, its indexes and a backup."""
    if store == "simpledb":
        return float(PRICE["simpledb_gb_month"])
    indexes = transformed("dynamodb")["Resources"]["TrailTable"]["Properties"]["GlobalSecondaryIndexes"]
    return float((1 + len(indexes)) * PRICE["dynamodb_gb_month"] + PRICE["dynamodb_backup_gb_month"])


def warmth() -> tuple[int, float]:
    """Count and price the calls that KeepWarm makes in a month, to both functions."""
    rule = read()["Resources"]["Warmth"]["Properties"]
    minutes = int(rule["ScheduleExpression"].removeprefix("rate(").partition(" ")[0])
    calls = HOURS * 60 // minutes
    functions = [target["Arn"]["Fn::GetAtt"][0] for target in rule["Targets"]]
    memory = [transformed()["Resources"][name]["Properties"]["MemorySize"] / 1024 for name in functions]
    prices = [
        PRICE["lambda_request"] + gb * ASSUMED["warm_seconds"] * PRICE["lambda_gb_second"] for gb in memory
    ]
    return calls * len(functions), calls * sum(prices)


def fixed() -> dict[str, float]:
    """Price a month without a knock. The free tier of an account covers a part of it."""
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
    """Rank the quotas by the share that this number of users needs, the scarcest first."""
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
    return sorted(ranked, key=lambda bound: -bound["share"])


def page() -> str:
    """Write the page of costs."""
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
            (name, operation, expired.calls[name, operation], early.calls[name, operation])
            for name, operation in sorted({**expired.calls, **early.calls})
        ],
        expired=expired,
        early=early,
        prices=prices,
        of_early=of_early,
        guard=measure_guard(),
        fixed=fixed(),
        warmth=warmth(),
        months=[_month(users, sum(prices.values())) for users in SIZES],
        bounds=[
            bound
            for ranked in bounds.values()
            for bound in ([bound for bound in ranked if bound["share"] > 1] or ranked[:1])
        ],
        rest=[bound for bound in bounds[SIZES[-1]] if bound["share"] <= 1],
    )


def stores_page() -> str:
    """Write the page that compares the stores."""
    stores = ("simpledb", "dynamodb")
    prices = {store: per_grant(measure(store=store)) for store in stores}
    guards = {store: measure_guard(store) for store in stores}
    template = jinja2.Environment(  # noqa: S701  # it makes Markdown of our own data
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string((ROOT / "docs" / "cost" / "choosing-a-store.md.j2").read_text())
    return template.render(
        region=DATA["region"],
        read_on=DATA["read_on"],
        assumed=ASSUMED,
        limits=[
            row
            | {
                "simpledb": row["simpledb"].format(regions=len(SIMPLEDB_REGIONS)),
                "link": _link(row["source"]),
            }
            for row in DATA["stores"]["limits"]
        ],
        regions=sorted(SIMPLEDB_REGIONS),
        names={"simpledb": "SimpleDB", "dynamodb": "DynamoDB"},
        grants={
            store: prices[store][name] for store, name in zip(stores, ("SimpleDB", "DynamoDB"), strict=True)
        },
        guards={store: HOURS * (_simpledb(guards[store]) + _dynamodb(guards[store])) for store in stores},
        storage={store: per_gb_month(store) for store in stores},
        months=[(users, *(_of_store(users, store, prices[store]) for store in stores)) for users in SIZES],
        permissions=list(permissions()),
    )


def _link(source: str) -> str:
    return source if source.startswith("https:") else f"../{source}"


def _of_store(users: int, store: str, prices: dict[str, float]) -> float:
    """Price a store for a month: its part of grants and of reads, and the trail of a year."""
    days = users * ASSUMED["working_days"]
    grants, looks = days * ASSUMED["grants_a_day"], days * ASSUMED["looks_a_day"]
    trail = grants * 12 * ASSUMED["trail_bytes"] / 1e9 * per_gb_month(store)
    own = {"simpledb": "SimpleDB", "dynamodb": "DynamoDB"}[store]
    asks = per_look(store) - per_look() + DATA["simpledb_hours"]["Select"] * PRICE["simpledb_hour"]
    return float(grants * prices[own] + looks * asks + trail)


def permissions() -> list[tuple[str, str, str]]:
    """List the permissions of each function's role on SimpleDB and on DynamoDB, from the template."""
    by_role: dict[str, dict[str, list[str]]] = {}
    for store, service in (("simpledb", "sdb:"), ("dynamodb", "dynamodb:")):
        resources = transformed(store)["Resources"]
        for role in ("Api", "Authorize", "Revoke", "Guard", "Notify", "Setup"):
            may = [
                f"{action.partition(':')[2]} ({_kind(resource)})"
                for statement in statements_of(f"{role}Role", resources)
                for resource in listed(statement["Resource"])
                for action in sorted(listed(statement["Action"]))
                if action.startswith(service)
            ]
            by_role.setdefault(role.lower(), {})[store] = sorted(set(may))
    return [
        (role, ", ".join(may["simpledb"]) or "nothing", ", ".join(may["dynamodb"]) or "nothing")
        for role, may in by_role.items()
    ]


def _kind(resource: dict[str, Any]) -> str:
    """Name the kind of record that a statement is about, and whether it is about an index."""
    text = str(resource).lower()
    (kind,) = (
        kind for kind in ("ledger", "refusals", "trail") if kind in text.replace("${trail.region}", "")
    )
    return f"{kind}, by index" if "/index/" in text else kind


def _month(users: int, price: float) -> dict[str, float]:
    days = users * ASSUMED["working_days"]
    grants, looks = days * ASSUMED["grants_a_day"], days * ASSUMED["looks_a_day"]
    use = grants * price + looks * per_look()
    trail = grants * 12 * ASSUMED["trail_bytes"] / 1e9 * PRICE["simpledb_gb_month"]
    total = use + trail + sum(fixed().values())
    return {"users": users, "grants": grants, "use": use, "trail": trail, "total": total}


if __name__ == "__main__":
    for path, text in ((PAGE, page()), (STORES_PAGE, stores_page())):
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
