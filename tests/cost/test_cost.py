"""docs/cost.md is made of the calls of today's code, and of dated prices with their sources."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest

from tests.template.transform import read
from tools.cost import (
    DATA,
    PAGE,
    SIZES,
    STORES_PAGE,
    binding,
    fixed,
    measure,
    page,
    per_grant,
    stores_page,
    warmth,
)


def test_the_page_is_what_the_script_makes_of_the_code_today() -> None:
    """Mutation: one call more in any function. `make cost` mends it."""
    assert PAGE.read_text() == page(), "run make cost"


def test_the_page_of_the_stores_is_what_the_script_makes_too() -> None:
    """Mutation: an action in a statement of one store. `make cost` mends it."""
    assert STORES_PAGE.read_text() == stores_page(), "run make cost"


def test_either_store_costs_a_fraction_of_the_transitions() -> None:
    for store, name in (("simpledb", "SimpleDB"), ("dynamodb", "DynamoDB")):
        prices = per_grant(measure(store=store))
        assert 0 < prices[name] < prices["Step Functions"]


def test_keeping_warm_costs_cents() -> None:
    calls, price = warmth()
    assert calls == 2 * 730 * 12
    assert 0 < price < 0.1


def test_another_range_of_ports_of_a_group_adds_no_call() -> None:
    assert measure("22/tcp 80/tcp 8000-8010/udp") == measure("22/tcp")


def test_a_grant_costs_less_than_a_hundredth_of_a_cent_more_than_its_transitions() -> None:
    """A bound on everything else, to notice a change that makes grants dear."""
    prices = per_grant(measure())
    assert sum(prices.values()) - prices["Step Functions"] < 0.0001


def test_an_early_end_costs_one_closing_more_which_finds_the_grant_closed() -> None:
    expired, early = measure(), measure(early=True)
    assert early.executions == expired.executions + 1 == 2
    assert early.states == expired.states == 4  # without RevokeIngress and Expired, with Close and Closed
    assert early.calls["revoke", "invocations"] == expired.calls["revoke", "invocations"] + 1 == 2
    assert early.calls["revoke", "sdb.PutAttributes"] == expired.calls["revoke", "sdb.PutAttributes"]
    assert sum(per_grant(early).values()) < 1.5 * sum(per_grant(expired).values())


def test_the_guard_costs_less_than_a_tenth_of_a_dollar_a_month() -> None:
    (guard,) = (price for label, price in fixed().items() if "guard" in label)
    assert 0 < guard < 0.1
    assert "rate(1 hour)" in str(read()["Resources"])


@pytest.mark.parametrize("name", DATA["prices"])
def test_every_price_has_its_source(name: str) -> None:
    entry = DATA["prices"][name]
    assert entry["usd"] > 0
    assert entry["source"].startswith("https://aws.amazon.com/")


def test_the_prices_are_dated() -> None:
    """In the past; and how old, the page says."""
    assert date.fromisoformat(DATA["read_on"]) <= datetime.now(UTC).date() + timedelta(days=1)
    assert DATA["read_on"] in PAGE.read_text()


def test_the_quotas_have_the_templates_values() -> None:
    parameters = read()["Parameters"]
    (stage,) = (quota for quota in DATA["quotas"] if "StageThrottleRate" in quota["name"])
    rate, burst = parameters["StageThrottleRate"]["Default"], parameters["StageThrottleBurst"]["Default"]
    assert stage["limit"] == burst + 60 * rate
    (group,) = (quota for quota in DATA["quotas"] if quota["name"] == "rules a security group")
    assert group["limit"] == parameters["RulesPerGroup"]["Default"]


def test_quotas_are_ranked_by_their_share_and_say_what_to_do() -> None:
    for users in SIZES:
        shares = [quota["share"] for quota in binding(users)]
        assert shares == sorted(shares, reverse=True)
    assert all(quota["then"].endswith(".") for quota in DATA["quotas"])
    assert sum(fixed().values()) > 1
    assert re.search(r"^\| 1,000 \|", PAGE.read_text(), re.MULTILINE)
