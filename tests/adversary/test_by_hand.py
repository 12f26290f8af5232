"""Functions invoked by hand (`lambda:InvokeFunction`, or a rule of EventBridge's), as SECURITY.md has it.

An execution ends a grant, and invoking the authorize function alone starts none: these tests show which rules
can be opened so, and that the guard, which runs hourly, closes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from grants.drift import GONE_EXECUTION, UNCLOSED_GRANT
from grants.timing import GRACE
from tests.adversary.moves import NEAR_MISSES, Forged
from tests.adversary.world import Open, World, world
from tests.harness import ACCOUNT, REGION, STACK
from tests.permissions.simulator import Request, deployed

FUNCTION = "AWS::Lambda::Function"


@pytest.fixture
def attacked() -> Iterator[World]:
    with world() as stack:
        yield stack


def authorize(attacked: World, grant: Any) -> str:
    """Invoke the authorize function, and give the name of its error, if any."""
    result = attacked.knock.invoke(f"{STACK}-authorize", json.dumps({"grant": grant}).encode())
    attacked.settle()
    return str(json.loads(result.payload)["errorType"]) if result.function_error else ""


def of(attacked: World, grant: dict[str, Any]) -> list[Open]:
    return [rule for rule in attacked.rules() if ("knock:grant", grant["grant_id"]) in rule.tags]


def guard(attacked: World) -> dict[str, str]:
    """Run the guard, and give the kind of its finding for each grant."""
    findings = attacked.knock.call("guard", {})["findings"]
    attacked.settle()
    return {finding["grant_id"]: finding["kind"] for finding in findings}


class TestAuthorize:
    @pytest.mark.parametrize(
        ("lasts", "kind"), [(8 * 3600, GONE_EXECUTION), (120, UNCLOSED_GRANT)], ids=["8 hours", "2 minutes"]
    )
    def test_a_grant_without_an_execution_is_closed_by_the_guard_alone(
        self, attacked: World, lasts: int, kind: str
    ) -> None:
        """The rule that calls it every five minutes, with the same input, cannot open it again.

        Mutation: functions/grants/drift.py:
        `        if self.running is not None and record.id not in self.running:` -> `        if False:`

        Mutation: functions/grants/drift.py:
        `                yield self._close(UNCLOSED_GRANT, record, "expired", "")` -> `                pass`
        """
        grant = Forged(lasts=lasts).make(attacked)
        assert authorize(attacked, grant) == ""
        assert len(of(attacked, grant)) == 1
        assert grant["grant_id"] not in attacked.executions()
        attacked.check()  # it is in the trail, and no wider than tags and limits allow
        attacked.knock.clock.advance(timedelta(seconds=lasts) if kind == UNCLOSED_GRANT else timedelta())
        attacked.settle()
        assert len(of(attacked, grant)) == 1, "no timer closes it"
        assert grant["grant_id"] not in guard(attacked)
        attacked.knock.clock.advance(GRACE + timedelta(seconds=1))
        attacked.settle()
        assert guard(attacked)[grant["grant_id"]] == kind
        assert of(attacked, grant) == []
        assert authorize(attacked, grant) == "GrantEnded"
        assert of(attacked, grant) == []
        attacked.check()

    def test_it_opens_nothing_that_live_tags_and_limits_do_not_allow(self, attacked: World) -> None:
        before = attacked.rules()
        for target in NEAR_MISSES[:6]:
            assert authorize(attacked, Forged(targets=(target,)).make(attacked))
        assert authorize(attacked, Forged(source="198.51.0.0/16").make(attacked)) == "InvalidGrant"
        assert authorize(attacked, Forged(lasts=30 * 86_400).make(attacked)) == "InvalidGrant"
        assert authorize(attacked, Forged(requested=-7200, lasts=4 * 3600).make(attacked)) == "InvalidGrant"
        assert attacked.rules() == before


@pytest.mark.parametrize(("keep_warm", "reaches"), [("on", {"Api", "Authorize"}), ("off", set())])
def test_an_eventbridge_rule_reaches_two_functions_and_only_with_keep_warm(
    keep_warm: str, reaches: set[str]
) -> None:
    """IAM knows the rule that calls, not its input, which anyone with events:PutTargets may choose. The guard
    is another rule's target, and does not read its event.
    """
    stack = deployed(KeepWarm=keep_warm, EnableNotifications="true")
    functions = {
        function.logical_id.removesuffix("Function"): function.arn
        for function in stack.template.all(FUNCTION)
    }
    context = {"aws:SourceArn": f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{STACK}-warmth"}
    context |= {"aws:SourceAccount": ACCOUNT}
    requests = [
        Request("events.amazonaws.com", "lambda:InvokeFunction", arn, context) for arn in functions.values()
    ]
    answers = zip(functions, stack.judge(requests), strict=True)
    assert {name for name, answer in answers if answer.allowed} == reaches


class TestApi:
    def test_a_forged_event_opens_in_the_name_of_the_key_it_names_and_ends_on_time(
        self, attacked: World
    ) -> None:
        """The key's value, whether it is enabled, and the address are API Gateway's to check, not Knock's."""
        knock = attacked.knock
        knock.add_key("carol", targets="web", max_duration="1h")
        off = [{"op": "replace", "path": "/enabled", "value": "false"}]
        knock.client("apigateway").update_api_key(apiKey=knock.keys["carol"], patchOperations=off)
        opened = knock.open("carol", caller="198.51.100.77")
        record = attacked.records()[opened["id"]]
        assert record.grant.principal.name == "carol"
        assert record.grant.source == "198.51.100.77/32"
        answer = knock.request("POST", "/knock", key="carol", body={"targets": ["bastion"]})
        assert answer.status == 403
        attacked.check()
        knock.clock.advance(timedelta(hours=1, seconds=10))
        attacked.settle()
        assert attacked.records()[opened["id"]].state == "expired"
        attacked.check()
