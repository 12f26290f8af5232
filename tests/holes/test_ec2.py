"""EC2 where an obliging emulator hides it: rules changed by hand, late lists, success for no rule."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from grants.timing import EC2_LAG
from grants.values import parse_time
from tests.harness import STACK, Crash, Knock
from tests.holes.worst import worst

CIDR, BY_HAND = "203.0.113.7/32", "198.51.100.1/32"


def change(knock: Knock, grant: dict[str, Any], cidr: str = BY_HAND) -> str:
    """Change a grant's rule as an operator may: it keeps its id."""
    (rule,) = knock.of_grant(grant["id"])
    description = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": cidr}
    update = {"SecurityGroupRuleId": rule["SecurityGroupRuleId"], "SecurityGroupRule": description}
    knock.client("ec2").modify_security_group_rules(GroupId=rule["GroupId"], SecurityGroupRules=[update])
    rule_id: str = rule["SecurityGroupRuleId"]
    return rule_id


class TestTwoIdsUnderOneKey:
    @pytest.mark.parametrize("first", ["alice", "bob"])
    def test_a_rule_that_an_operator_changed_goes_with_the_one_in_its_place(
        self, knock: Knock, first: str
    ) -> None:
        """Mutation: functions/grants/ledger.py:
        `            ids.setdefault(result.rule_id, cut_to_milliseconds(now))` ->
        `            ids = {result.rule_id: cut_to_milliseconds(now)}`
        """
        alice = knock.open("alice", targets=["bastion"], duration="1h")
        change(knock, alice)
        bob = knock.open("bob", targets=["bastion"], duration="8h")
        assert {cidr for _, _, cidr in knock.rules()} == {CIDR, BY_HAND}
        grants = {"alice": alice, "bob": bob}
        for name in (first, *(grants.keys() - {first})):
            assert knock.request("DELETE", f"/grants/{grants[name]['id']}", key=name).status == 200
        assert knock.rules() == set()

    def test_a_shared_rule_that_an_operator_changed_goes_with_the_one_in_its_place(
        self, knock: Knock
    ) -> None:
        alice = knock.open("alice", targets=["bastion"], duration="1h")
        knock.open("bob", targets=["bastion"], duration="8h")
        change(knock, alice)
        carol = knock.open("operator", targets=["bastion"], duration="8h")
        assert {cidr for _, _, cidr in knock.rules()} == {CIDR, BY_HAND}
        answer = knock.request("DELETE", "/grants", key="operator", source=CIDR)
        assert carol["id"] in {grant["id"] for grant in answer.json["grants"]}
        assert knock.rules() == set()

    def test_a_rule_that_was_changed_into_another_grants_rule_is_closed_with_it(self, knock: Knock) -> None:
        """The duplicate carries Knock's own tag: it is shared, and closed as such."""
        alice = knock.open("alice", targets=["bastion"], duration="8h")
        change(knock, alice)
        bob = knock.open("bob", targets=["bastion"], caller="198.51.100.1", duration="1h")
        knock.expire(bob)
        assert knock.rules() == set()
        assert knock.request("DELETE", f"/grants/{alice['id']}").status == 200

    @pytest.mark.parametrize("lenient", [False, True])
    def test_a_rule_that_was_removed_by_hand_does_not_hide_the_one_in_its_place(
        self, knock: Knock, lenient: bool
    ) -> None:
        """Success for an id that is gone does not say that the rule in its place is gone."""
        alice = knock.open("alice", targets=["bastion"], duration="1h")
        (rule,) = knock.of_grant(alice["id"])
        knock.client("ec2").revoke_security_group_ingress(
            GroupId=rule["GroupId"], SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
        )
        bob = knock.open("bob", targets=["bastion"], duration="1h")
        assert len(knock.rules()) == 1
        with worst(knock, lenient=lenient):
            knock.expire(alice)
            knock.expire(bob)
        assert knock.rules() == set()


class TestYoungIds:
    @pytest.mark.parametrize("lenient", [False, True])
    def test_a_rule_made_a_second_ago_is_not_gone_for_not_found_or_mere_success(
        self, knock: Knock, monkeypatch: pytest.MonkeyPatch, lenient: bool
    ) -> None:
        """Mutation: functions/grants/closing.py:
        `            if name in removed or operations.clock() >= at + SETTLES:` -> `            if True:`

        Mutation: functions/grants/ingress.py:
        `        return frozenset(removed & set(rule_ids))` -> `        return frozenset(rule_ids)`
        """
        monkeypatch.setattr("api.CLOSES_WITHIN", 0.1)
        with worst(knock, unknown=timedelta(seconds=20), lenient=lenient):
            grant = knock.open(targets=["bastion"])
            answer = knock.request("DELETE", f"/grants/{grant['id']}")
            assert (answer.status, answer.json["type"]) == (503, "urn:knock:problem:rule-unsettled")
            assert knock.grant(grant["id"])["events"][-1]["event"] == "revoked"
            knock.wait(lambda: not knock.rules(), "the rule stays open", step=timedelta(seconds=1))
        knock.wait(lambda: set(knock.closings()) == {"SUCCEEDED"}, "its closing does not end")
        assert knock.grant(grant["id"])["events"][-1]["event"] == "closed"

    def test_the_rule_of_a_grant_that_ends_while_it_is_authorized_is_closed(self, knock: Knock) -> None:
        """By its own run, or by the closing of its end."""
        with worst(knock, unknown=timedelta(seconds=20)) as ec2:
            real = ec2.call

            def end_meanwhile(call: Any, client: Any, operation: str, arguments: Any) -> Any:
                answer = real(call, client, operation, arguments)
                if operation == "AuthorizeSecurityGroupIngress":
                    (grant_id,) = knock.items("trail")
                    knock.invoke(f"{STACK}-revoke", _early(grant_id))
                return answer

            ec2.call = end_meanwhile  # type: ignore[method-assign]
            with knock.ticking(timedelta(milliseconds=200)):
                answer = knock.request("POST", "/knock", body={"targets": ["bastion"]})
        assert answer.status in (202, 503)
        knock.wait(lambda: not knock.rules(), "the rule stays open", step=timedelta(seconds=1))

    def test_a_rule_of_a_run_that_crashed_is_closed_however_long_it_is_hidden(self, knock: Knock) -> None:
        """Mutation: functions/grants/timing.py: `SETTLES = ACTS + CALL + EC2_LAG` -> `SETTLES = ACTS`"""
        with worst(knock, hides=EC2_LAG - timedelta(seconds=5)) as ec2:
            real = ec2.call

            def crash_after(call: Any, client: Any, operation: str, arguments: Any) -> Any:
                try:
                    return real(call, client, operation, arguments)
                finally:
                    if operation == "AuthorizeSecurityGroupIngress":
                        raise Crash("Runtime.ExitError")

            ec2.call = crash_after  # type: ignore[method-assign]
            with knock.ticking(timedelta(milliseconds=100)):
                answer = knock.request("POST", "/knock", body={"targets": ["bastion"]})
            assert len(knock.rules()) == 1
            grant_id = next(iter(knock.items("trail")))
            assert answer.status in (202, 503)
            knock.wait_status(grant_id, "FAILED", step=timedelta(seconds=2))
            assert knock.rules() == set()
            assert knock.grant(grant_id)["events"][-1]["event"] == "closed"


def _early(grant_id: str) -> bytes:
    by = {"id": "k", "name": "operator"}
    return json.dumps({"how": "revoked", "grant": {"grant_id": grant_id}, "by": by}).encode()


class TestAfterTheEnd:
    def test_no_rule_is_authorized_at_or_after_the_end_and_the_grant_to_be_renewed_lives_on(
        self, knock: Knock
    ) -> None:
        """A knock of ten seconds, EC2 at two a call: each call looks at the clock first.

        Mutation: functions/grants/opening.py:
        `    if not grant.live_at(operations.clock()):` -> `    if False:`
        """
        for number in range(8):
            knock.add_group(f"t{number}", f"{8000 + number}/tcp")
        knock.add_key("eve", targets="*", max_duration="24h")
        old = knock.open("eve", duration="8h", targets=["bastion"])
        with worst(knock, takes=timedelta(seconds=2)) as ec2:
            body = {"duration": "10s", "renews": old["id"]}
            answer = knock.request("POST", "/knock", key="eve", body=body)
            new = next(name for name in knock.items("trail") if name != old["id"])
            over(knock, new)
        end = parse_time(knock.grant(new)["expires_at"])
        authorized = [at for operation, at in ec2.calls if operation.startswith("Authorize")]
        assert authorized
        assert max(authorized) < end
        assert answer.status == 409, answer.text
        assert answer.json["type"] == "urn:knock:problem:grant-ended"
        assert knock.grant(old["id"])["status"] == "active"
        assert knock.rules() == {(knock.groups["bastion"][0], 22, CIDR)}

    def test_a_rule_that_a_slow_call_makes_after_the_end_is_closed_soon(self, knock: Knock) -> None:
        """The stack's clock moves by 8 s with each call; one of them ends after the grant's end."""
        with worst(knock, takes=timedelta(seconds=8)):
            answer = knock.request("POST", "/knock", body={"duration": "10s", "targets": ["bastion"]})
            new = next(iter(knock.items("trail")))
            over(knock, new)
        assert answer.status in (409, 503)
        assert knock.rules() == set()
        failed = knock.grant(new)
        assert failed["events"][-1]["event"] == "closed"
        assert _at(failed, "failed") - parse_time(failed["expires_at"]) < timedelta(seconds=20)


def over(knock: Knock, grant_id: str) -> None:
    knock.wait(lambda: knock.execution_status(grant_id) != "RUNNING", "it runs on", step=timedelta(seconds=1))


def _at(grant: dict[str, Any], event: str) -> datetime:
    return next(parse_time(entry["at"]) for entry in grant["events"] if entry["event"] == event)
