"""The main job over HTTP: a knock authorizes rules, the grant's own timer revokes them.

It runs on each engine and store. Each test knocks from an address of its own, since the stack is shared.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from tests.e2e.conftest import Stack


def at(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def execution(stack: Stack, grant: dict[str, Any]) -> Any:
    return stack.aws("stepfunctions", "describe-execution", "--execution-arn", grant["execution_arn"])


def grant_now(stack: Stack, grant: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = stack.call("GET", f"/grants/{grant['id']}", "operator").json()
    return answer


def closed(stack: Stack, grant: dict[str, Any]) -> bool:
    return "closed" in [event["event"] for event in grant_now(stack, grant)["events"]]


def rule_ids(stack: Stack, cidr: str) -> set[str]:
    rules = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
    return {rule["SecurityGroupRuleId"] for rule in rules if rule.get("CidrIpv4") == cidr}


class TestKnock:
    @pytest.mark.parametrize(("caller", "suffix"), [("203.0.113.21", "/32"), ("2001:db8::21", "/128")])
    def test_a_knocks_rules_are_there_when_it_answers_and_gone_at_its_end(
        self, stack: Stack, caller: str, suffix: str
    ) -> None:
        answer = stack.call("POST", "/knock", caller=caller, data='{"duration":"4s"}')
        assert answer.status_code == 201
        grant, cidr = answer.json(), caller + suffix
        bastion, web = sorted(stack.targets["bastion"]["groups"])[0], stack.targets["web"]["groups"][0]
        assert stack.rules(cidr) == {(bastion, 22, cidr), (web, 80, cidr), (web, 443, cidr)}

        rules = stack.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
        tags = [
            {tag["Key"]: tag["Value"] for tag in rule["Tags"]}
            for rule in rules
            if cidr in (rule.get("CidrIpv4"), rule.get("CidrIpv6"))
        ]
        assert tags == [{"knock:stack": "knock", "knock:grant": grant["id"]}] * 3

        running = stack.client("stepfunctions").list_executions(
            stateMachineArn=stack.state_machine_arn, statusFilter="RUNNING"
        )["executions"]
        running_names = [execution["name"] for execution in running]
        names = [name for name in running_names if caller.replace(".", "-").replace(":", "-") in name]
        assert names == [grant["id"]]
        assert names[0].startswith("alice_")

        def is_shut() -> bool:
            return not stack.rules(cidr)

        stack.wait(is_shut, "the rules outlived the grant")
        assert datetime.now(timezone.utc) >= at(grant["expires_at"])

        def succeeded() -> bool:
            status = execution(stack, grant)["status"]
            assert status in ("RUNNING", "SUCCEEDED")
            return bool(status == "SUCCEEDED")

        stack.wait(succeeded, "the execution did not end")
        now = grant_now(stack, grant)
        assert [event["event"] for event in now["events"]] == ["requested", "authorized", "expired", "closed"]
        assert [event["at"] for event in now["events"]] == sorted(event["at"] for event in now["events"])
        assert (now["status"], now["source"], now["principal"]["name"]) == ("expired", cidr, "alice")
        assert [target["name"] for target in now["targets"]] == ["bastion", "web"]
        assert at(now["ended_at"]) >= at(grant["expires_at"])

    @pytest.mark.parametrize(
        ("duration", "seconds"),
        [(None, 86_400), ("1 s", 1), ("90m", 5400), ("8h", 28_800), ("PT8H", 28_800), (86_400, 86_400)],
    )
    def test_a_duration_means_what_it_says_and_a_day_is_the_default(
        self, moto_stack: Stack, duration: object, seconds: int
    ) -> None:
        body = {} if duration is None else {"duration": duration}
        answer = moto_stack.call("POST", "/knock", caller="203.0.113.22", json=body)
        grant = answer.json()
        lasts = (at(grant["expires_at"]) - at(grant["requested_at"])).total_seconds()
        assert seconds <= lasts < seconds + 1
        moto_stack.call("DELETE", f"/grants/{grant['id']}")

    def test_a_get_without_a_body_opens_everything_for_a_day(self, stack: Stack) -> None:
        answer = stack.call("GET", "/knock", caller="203.0.113.23")
        assert answer.status_code == 201
        assert len(stack.rules("203.0.113.23/32")) == 3
        assert stack.call("DELETE", f"/grants/{answer.json()['id']}").status_code == 200
        assert stack.rules("203.0.113.23/32") == set()


class TestRefusedKnock:
    def test_the_gateway_refuses_a_key_that_is_missing_or_wrong(self, moto_stack: Stack) -> None:
        before = len(executions(moto_stack))
        for key in (None, "wrong", ""):
            answer = moto_stack.call("POST", "/knock", key)
            assert (answer.status_code, answer.json()) == (403, {"message": "Forbidden"})
        answer = moto_stack.call("GET", "/nowhere")
        assert (answer.status_code, answer.json()) == (403, {"message": "Missing Authentication Token"})
        assert len(executions(moto_stack)) == before

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("duration", '{"duration":"24 o\'clock"}'),
            ("duration", '{"duration":0}'),
            ("duration", '{"duration":-1}'),
            ("duration", '{"duration":"25h"}'),
            ("duration", '{"duration":1e99}'),
            ("body", "{"),
            ("body", "x" * 4097),
            ("ttl", '{"ttl":1}'),
            ("targets", '{"targets":"web"}'),
        ],
    )
    def test_a_malformed_knock_is_a_problem_that_names_the_field_and_starts_nothing(
        self, moto_stack: Stack, field: str, body: str
    ) -> None:
        before = len(executions(moto_stack))
        answer = moto_stack.call("POST", "/knock", data=body)
        assert answer.status_code == 400
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["field"] == field
        assert len(executions(moto_stack)) == before

    def test_a_header_cannot_name_the_source_beyond_the_edge(self, moto_stack: Stack) -> None:
        headers = {
            "X-Forwarded-For": "198.51.100.1, 203.0.113.24",
            "X-Real-IP": "198.51.100.2",
            "Forwarded": "x",
        }
        grant = moto_stack.call("POST", "/knock", headers=headers).json()
        assert grant["source"] == "203.0.113.24/32"


def executions(stack: Stack) -> list[Any]:
    arn = stack.state_machine_arn
    answer = stack.client("stepfunctions").list_executions(stateMachineArn=arn, maxResults=1000)
    return list(answer["executions"])


class TestStop:
    def test_stopping_an_execution_with_the_aws_cli_closes_its_rules(self, stack: Stack) -> None:
        grant = stack.open(caller="203.0.113.25")
        arn = grant["execution_arn"]
        stack.aws("stepfunctions", "stop-execution", "--execution-arn", arn, "--cause", "laptop stolen")
        stack.wait(lambda: not stack.rules("203.0.113.25/32"), "the rules outlived the execution")
        stack.wait(lambda: grant_now(stack, grant)["status"] != "active", "the grant lives on")
        now = grant_now(stack, grant)
        assert (now["status"], now["ended_by"]) == ("revoked", "an AWS operator")
        assert "laptop stolen" in json.dumps(now["events"])


class TestEarlyRevocation:
    def test_it_answers_after_the_rules_are_gone_and_nothing_reopens_them(self, stack: Stack) -> None:
        """On stepfunctions-local a stopped execution runs on to its revoke task, which revokes nothing."""
        grant = stack.open(caller="203.0.113.26", duration="2s")
        answer = stack.call("DELETE", f"/grants/{grant['id']}?reason=done")
        assert stack.rules("203.0.113.26/32") == set()
        assert (answer.status_code, answer.json()["status"]) == (200, "revoked")
        new = stack.open(caller="203.0.113.26", duration="5s")
        stack.wait(lambda: datetime.now(timezone.utc) > at(grant["expires_at"]), "time stands still")
        stack.wait(
            lambda: execution(stack, grant)["status"] in ("ABORTED", "SUCCEEDED"), "the old machine runs on"
        )
        if grant_now(stack, new)["status"] == "active":
            assert len(stack.rules("203.0.113.26/32")) == 3
        assert grant_now(stack, grant)["status"] == "revoked"


class TestOverlap:
    def test_two_people_behind_one_address_have_access_until_the_last_grant_ends(self, stack: Stack) -> None:
        short = stack.open("alice", caller="203.0.113.27", duration="1s")
        long = stack.open("bob", caller="203.0.113.27", duration="4s")
        stack.wait(lambda: grant_now(stack, short)["status"] == "expired", "the short one lives on")
        stack.wait(lambda: closed(stack, short), "it is not closed")
        assert len(stack.rules("203.0.113.27/32")) == 3
        stack.wait(lambda: not stack.rules("203.0.113.27/32"), "the rules outlived both")
        assert datetime.now(timezone.utc) >= at(long["expires_at"])

    def test_two_knocks_of_one_principal_are_two_grants_and_neither_ends_the_other(
        self, stack: Stack
    ) -> None:
        first = stack.open(caller="203.0.113.30", duration="1h")
        second = stack.open(caller="203.0.113.30", duration="2s")
        assert first["id"] != second["id"]
        stack.wait(lambda: closed(stack, second), "the short one lives on")
        assert (grant_now(stack, second)["status"], grant_now(stack, first)["status"]) == (
            "expired",
            "active",
        )
        assert len(stack.rules("203.0.113.30/32")) == 3
        third = stack.open(caller="203.0.113.30", duration="1h")
        query = {"source": "203.0.113.30"}
        live = stack.call("GET", "/grants", params=query).json()["grants"]
        assert [grant["id"] for grant in live] == [third["id"], first["id"]]
        assert stack.call("DELETE", f"/grants/{first['id']}").json()["status"] == "revoked"
        assert grant_now(stack, third)["status"] == "active"
        assert execution(stack, third)["status"] == "RUNNING"
        assert len(stack.rules("203.0.113.30/32")) == 3
        assert stack.call("DELETE", f"/grants/{third['id']}").json()["status"] == "revoked"
        assert stack.rules("203.0.113.30/32") == set()

    def test_a_renewal_supersedes_the_old_grant(self, stack: Stack) -> None:
        """The rules keep their ids throughout, also when the old grant's time is up."""
        cidr = "203.0.113.28/32"
        old = stack.open(caller="203.0.113.28", duration="5s")
        rules = rule_ids(stack, cidr)
        new = stack.open(caller="203.0.113.28", duration="1h", renews=old["id"])
        assert (old["renews"], new["renews"]) == (None, old["id"])
        stack.wait(lambda: closed(stack, old), "the old one lives on")
        now = grant_now(stack, old)
        assert (now["status"], now["ended_by"]) == ("superseded", new["id"])
        assert at(now["ended_at"]) < at(old["expires_at"])
        stack.wait(lambda: datetime.now(timezone.utc) > at(old["expires_at"]), "time stands still")
        stack.wait(lambda: execution(stack, old)["status"] != "RUNNING", "the old machine runs on")
        assert grant_now(stack, old)["status"] == "superseded"
        assert grant_now(stack, new)["status"] == "active"
        assert rule_ids(stack, cidr) == rules
        assert len(rules) == 3
        stack.call("DELETE", f"/grants/{new['id']}")
        assert stack.rules(cidr) == set()

    def test_only_a_grant_of_the_keys_own_can_be_renewed(self, stack: Stack) -> None:
        bobs = stack.open("bob", caller="203.0.113.39")
        before = len(executions(stack))
        unknown = f"{bobs['id'][:-4]}ffff"
        for grant_id in (bobs["id"], unknown):
            answer = stack.call("POST", "/knock", caller="203.0.113.39", json={"renews": grant_id})
            assert (answer.status_code, answer.json()["title"]) == (404, "No such grant")
        assert len(executions(stack)) == before
        assert grant_now(stack, bobs)["status"] == "active"
        stack.call("DELETE", f"/grants/{bobs['id']}", "bob")


class TestFailedAuthorization:
    def test_a_pool_that_is_full_answers_409_with_nothing_left_behind(self, moto_stack: Stack) -> None:
        ec2, (group,) = moto_stack.client("ec2"), moto_stack.targets["web"]["groups"]
        permissions = [
            {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}
            for port in range(1000, 1060 - sum(rule[0] == group for rule in moto_stack.rules()))
        ]
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permissions)
        try:
            answer = moto_stack.call("POST", "/knock", caller="203.0.113.29")
        finally:
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=permissions)
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:knock:problem:pool-exhausted")
        assert moto_stack.rules("203.0.113.29/32") == set()
        failed = moto_stack.call("GET", "/grants?status=failed&source=203.0.113.29/32", "operator").json()
        (grant,) = failed["grants"]
        moto_stack.wait(lambda: execution(moto_stack, grant)["status"] == "FAILED", "it did not fail")
