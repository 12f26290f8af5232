"""README, tour and the page on deploying: transcripts are run, diagram and lists compared with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.player import comparable_lines, play
from tests.e2e.conftest import Stack
from tests.template.transform import read
from tools.diagram import README, diagram, put, today

TOUR = ROOT / "docs" / "tour.md"
DEPLOYING = ROOT / "docs" / "deploying.md"


@pytest.mark.timeout(180)
def test_every_transcript_of_the_readme_and_the_tour_is_what_its_commands_print(tmp_path: Path) -> None:
    """On one stack, in this order, as `python -m tests.docs.player README.md docs/tour.md` does."""
    with Stack.start(store="simpledb") as stack:
        for page in (README, TOUR):
            folder = tmp_path / page.stem
            folder.mkdir()
            text = page.read_text()
            assert comparable_lines(play(text, stack, folder)) == comparable_lines(text), (
                "run tests.docs.player and read the diff"
            )


def test_ids_times_and_widths_are_masked_and_nothing_else_is() -> None:
    first = "a_20261128T004915Z_9d0421cd00000001 8 h  until 05:17:20 UTC 2026-11-28T00:49:17Z active"
    second = (
        "a_20261201T104915Z_0000000000000000 7 h 59 min until Tue  1 Dec 05:17:21 UTC "
        "2026-12-01T10:49:17Z active"
    )
    assert comparable_lines(first.replace("  ", " ")) == comparable_lines(second)
    assert comparable_lines(first) != comparable_lines(second.replace("active", "expired"))
    assert comparable_lines(first) != comparable_lines(second.replace("a_", "b_"))


def test_the_readme_shows_the_grants_life_as_the_definition_has_it() -> None:
    page = README.read_text()
    assert put(page, today()) == page, "run python -m tools.diagram"


def test_the_diagram_has_every_state_and_every_transition() -> None:
    definition = json.loads((ROOT / "statemachine" / "grant.asl.json").read_text())
    lines = [line.strip().split(":")[0] for line in today().splitlines()[1:]]
    drawn = {tuple(line.split(" --> ")) for line in lines}
    for name, state in definition["States"].items():
        following = {field["Next"] for field in (state, *state.get("Catch", ())) if "Next" in field}
        assert {to for start, to in drawn if start == name} == (following or {"[*]"}), name
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


def test_the_page_on_deploying_names_every_type_of_resource() -> None:
    resources = read()["Resources"].values()
    _, _, section = DEPLOYING.read_text().partition("## What it changes in your AWS account")
    section = re.sub(r"\s+", " ", section.partition("\n## ")[0])
    assert {resource["Type"] for resource in resources} == set(WORDS)
    assert {word for word in WORDS.values() if word not in section} == set()
    functions = [function for function in resources if function["Type"] == "AWS::Serverless::Function"]
    assert sum("Condition" not in function for function in functions) == 4, "the page says four"


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150
