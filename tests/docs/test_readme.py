"""The README is what a stranger has: its transcripts are run again, and what it counts is counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.diagram import README, diagram, put, today
from tests.docs.player import alike, play
from tests.e2e.conftest import Stack
from tests.template.transform import read

TOUR = ROOT / "docs" / "tour.md"
DEPLOYING = ROOT / "docs" / "deploying.md"


@pytest.mark.timeout(180)
def test_every_transcript_of_the_readme_and_the_tour_is_what_the_commands_answer(tmp_path: Path) -> None:
    """On one stack, in this order, as `python -m tests.docs.player README.md docs/tour.md` does."""
    with Stack.start(store="simpledb") as stack:
        for page in (README, TOUR):
            folder = tmp_path / page.stem
            folder.mkdir()
            written = page.read_text()
            assert alike(play(written, stack, folder)) == alike(written), "run tests.docs.player and look"


def test_what_differs_from_run_to_run_and_nothing_else_is_made_alike() -> None:
    one = "a_20261128T004915Z_9d0421cd00000001 8 h  until 05:17:20 UTC 2026-11-28T00:49:17Z active"
    other = (
        "a_20261201T104915Z_0000000000000000 7 h 59 min until Tue  1 Dec 05:17:21 UTC "
        "2026-12-01T10:49:17Z active"
    )
    assert alike(one.replace("  ", " ")) == alike(other)
    assert alike(one) != alike(other.replace("active", "expired"))
    assert alike(one) != alike(other.replace("a_", "b_"))


def test_the_readme_shows_the_grants_life_as_the_definition_has_it() -> None:
    page = README.read_text()
    assert put(page, today()) == page, "run python -m tests.docs.diagram"


def test_the_diagram_has_every_state_and_every_way_between_them() -> None:
    definition = json.loads((ROOT / "statemachine" / "grant.asl.json").read_text())
    lines = [line.strip().split(":")[0] for line in today().splitlines()[1:]]
    drawn = {tuple(line.split(" --> ")) for line in lines}
    for name, state in definition["States"].items():
        ways = {way["Next"] for way in (state, *state.get("Catch", ())) if "Next" in way}
        assert {to for start, to in drawn if start == name} == (ways or {"[*]"}), name
    assert {start for start, _ in drawn} == {"[*]", *definition["States"]}


def test_a_kind_of_state_that_cannot_be_drawn_is_an_error() -> None:
    machine = {"StartAt": "Which", "States": {"Which": {"Type": "Choice"}}}
    with pytest.raises(ValueError, match="Choice"):
        diagram(machine)


# What docs/deploying.md calls a type of resource under "What it changes in your AWS account".
WORDS = {
    "AWS::ApiGateway::Account": "access logs",
    "AWS::ApiGateway::ApiKey": "API keys",
    "AWS::ApiGateway::UsagePlan": "usage plan",
    "AWS::ApiGateway::UsagePlanKey": "usage plan",
    "AWS::CloudWatch::Alarm": "alarms",
    "AWS::CloudWatch::Dashboard": "dashboard",
    "AWS::DynamoDB::Table": "three DynamoDB tables",
    "AWS::Events::Rule": "EventBridge rule",
    "AWS::IAM::ManagedPolicy": "managed policy",
    "AWS::IAM::Role": "IAM role",
    "AWS::Lambda::Function": "fifth",
    "AWS::Lambda::Permission": "functions",
    "AWS::Logs::LogGroup": "log groups",
    "AWS::Logs::SubscriptionFilter": "subscription filters",
    "AWS::SNS::Subscription": "subscription",
    "AWS::SNS::Topic": "SNS topic",
    "AWS::SQS::Queue": "SQS queue",
    "AWS::SQS::QueuePolicy": "SQS queue",
    "AWS::Serverless::Api": "REST API",
    "AWS::Serverless::Function": "Lambda functions",
    "AWS::Serverless::StateMachine": "two state machines",
    "Custom::Domain": "three SimpleDB domains",
    "Custom::LastGrants": "live grants",
    "Custom::LastRules": "every rule of its own",
}


def test_the_page_on_deploying_names_every_kind_of_thing_that_a_deployment_makes() -> None:
    resources = read()["Resources"].values()
    _, _, said = DEPLOYING.read_text().partition("## What it changes in your AWS account")
    said = re.sub(r"\s+", " ", said.partition("\n## ")[0])
    assert {resource["Type"] for resource in resources} == set(WORDS)
    assert {word for word in WORDS.values() if word not in said} == set()
    functions = [one for one in resources if one["Type"] == "AWS::Serverless::Function"]
    assert sum("Condition" not in one for one in functions) == 4, "the page says four"


def test_every_make_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = README.read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", readme, re.MULTILINE))
    assert named <= targets


def test_the_readme_is_a_front_page_and_not_a_manual() -> None:
    assert len(README.read_text().splitlines()) <= 150
