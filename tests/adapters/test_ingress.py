"""Security group rules, over EC2's adapter and over the twin: several of one group a call, all or none."""

from __future__ import annotations

from typing import Any

import pytest

from grants.errors import IngressRefused, IngressThrottled, IngressUnavailable, KnockError
from grants.ingress import GONE, MOST_VALUES, THROTTLED, TRANSIENT, Ingress
from grants.operations import GroupFull, GroupGone, RuleDuplicate, RuleNotFound
from grants.values import Ports, Rule, RuleKey, Target
from tests.adapters.parts import (
    ELSEWHERE,
    HERE,
    HTTP,
    HTTPS,
    NO_ANSWER,
    SSH,
    Adapters,
    Answers,
    Parts,
    answered,
)


def keyed(parts: Parts, ports: Ports = SSH, cidr: str = HERE, group: int = 0) -> RuleKey:
    return RuleKey(parts.groups[group], ports, cidr)


def authorized(parts: Parts, *ports: Ports, cidr: str = HERE, group: int = 0, grant: str = "g1") -> list[str]:
    rule_ids = parts.ingress.authorize(parts.groups[group], ports or (SSH,), cidr, grant)
    return [rule_ids[RuleKey(parts.groups[group], range_, cidr)] for range_ in ports or (SSH,)]


def keys_by_id(rules: list[Rule]) -> dict[str, RuleKey]:
    return {rule.id: rule.key for rule in rules}


class TestAuthorize:
    @pytest.mark.parametrize("cidr", [HERE, "198.51.100.0/28", ELSEWHERE, "2001:db8::/60"])
    def test_several_rules_of_one_group_are_added_in_one_call_and_are_ours(
        self, parts: Parts, cidr: str
    ) -> None:
        ports = [SSH, HTTP, HTTPS, Ports(8000, 8010, "udp")]
        rule_ids = parts.ingress.authorize(parts.groups[0], ports, cidr, "g1")
        assert set(rule_ids) == {keyed(parts, range_, cidr) for range_ in ports}
        assert len(set(rule_ids.values())) == 4
        rules = parts.ingress.find([parts.groups[0]])
        assert keys_by_id(rules) == {rule_id: key for key, rule_id in rule_ids.items()}
        assert {rule.grant_id for rule in rules} == {"g1"}
        assert all(map(parts.ingress.is_ours, rules))
        assert keys_by_id(parts.ingress.ours()) == keys_by_id(rules)

    def test_a_rule_that_exists_has_the_whole_call_refused(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py:
        `if code == "InvalidPermission.Duplicate":` -> `if False:`
        """
        (rule_id,) = authorized(parts, HTTP)
        for ports in ([HTTP], [SSH, HTTP], [HTTP, HTTPS]):
            with pytest.raises(RuleDuplicate):
                parts.ingress.authorize(parts.groups[0], ports, HERE, "g2")
        assert keys_by_id(parts.ingress.find(parts.groups)) == {rule_id: keyed(parts, HTTP)}

    def test_a_foreign_rule_is_a_duplicate_and_stays_as_it_is(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `return rule.stack == self.stack` -> `return True`"""
        rule_id = parts.add_rule(keyed(parts))
        with pytest.raises(RuleDuplicate):
            parts.ingress.authorize(parts.groups[0], [SSH], HERE, "g1")
        (rule,) = parts.ingress.find([parts.groups[0]])
        assert (rule.id, rule.stack, rule.grant_id) == (rule_id, None, None)
        assert not parts.ingress.is_ours(rule)
        assert parts.ingress.ours() == []
        assert parts.ingress.tagged("g1") == []
        parts.remove_rule(keyed(parts), rule_id)
        assert authorized(parts)

    def test_other_ports_protocol_source_or_group_make_another_rule(self, parts: Parts) -> None:
        keys = [
            keyed(parts),
            keyed(parts, Ports(22, 23, "tcp")),
            keyed(parts, Ports(22, 22, "udp")),
            keyed(parts, cidr="203.0.113.8/32"),
            keyed(parts, cidr="203.0.113.0/28"),
            keyed(parts, group=1),
        ]
        rule_ids = {key: parts.ingress.authorize(key.group, [key.ports], key.cidr, "g1")[key] for key in keys}
        assert len(set(rule_ids.values())) == len(keys)
        assert {rule.key: rule.id for rule in parts.ingress.find(parts.groups)} == rule_ids
        assert {rule.key for rule in parts.ingress.find(parts.groups[1:])} == {keys[-1]}
        assert {rule.key for rule in parts.ingress.ours()} == set(keys)

    def test_a_group_without_room_for_all_takes_none(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py:
        `if code == "RulesPerSecurityGroupLimitExceeded":` -> `if False:`
        """
        parts.set_quota(2)
        parts.add_rule(keyed(parts, HTTP))
        with pytest.raises(GroupFull):
            parts.ingress.authorize(parts.groups[0], [SSH, HTTPS], HERE, "g1")
        assert len(parts.ingress.find(parts.groups)) == 1
        assert authorized(parts, SSH)
        with pytest.raises(GroupFull):
            parts.ingress.authorize(parts.groups[0], [HTTPS], HERE, "g1")

    def test_room_is_that_of_one_address_family_in_one_group(self, parts: Parts) -> None:
        parts.set_quota(1)
        (rule_id,) = authorized(parts)
        assert authorized(parts, cidr=ELSEWHERE)
        assert authorized(parts, group=1)
        with pytest.raises(RuleDuplicate):
            parts.ingress.authorize(parts.groups[0], [SSH], HERE, "g2")
        parts.ingress.revoke(parts.groups[0], [rule_id])
        assert authorized(parts, HTTPS)

    def test_a_group_that_was_deleted_is_gone(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `if code == "InvalidGroup.NotFound":` -> `if False:`"""
        (rule_id,) = authorized(parts)
        parts.delete_group(parts.groups[0])
        with pytest.raises(GroupGone):
            parts.ingress.authorize(parts.groups[0], [SSH], HERE, "g1")
        with pytest.raises(RuleNotFound):
            parts.ingress.revoke(parts.groups[0], [rule_id])
        assert parts.ingress.find(parts.groups) == []
        assert parts.ingress.ours() == []
        assert set(parts.ingress.groups(parts.groups)) == {parts.groups[1]}


class TestRevoke:
    def test_several_rules_of_one_group_are_removed_in_one_call(self, parts: Parts) -> None:
        first, second, third = authorized(parts, SSH, HTTP, HTTPS)
        assert parts.ingress.revoke(parts.groups[0], [second, first]) == {first, second}
        assert set(keys_by_id(parts.ingress.find(parts.groups))) == {third}

    def test_a_rule_that_does_not_exist_has_the_whole_call_refused(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `if _code(error) in GONE:` -> `if False:`"""
        first, second = authorized(parts, SSH, HTTP)
        assert parts.ingress.revoke(parts.groups[0], [first]) == {first}
        for ids in ([first], [first, second]):
            with pytest.raises(RuleNotFound):
                parts.ingress.revoke(parts.groups[0], ids)
        assert set(keys_by_id(parts.ingress.find(parts.groups))) == {second}
        assert authorized(parts) != [first]

    def test_a_rule_is_removed_only_through_its_own_group(self, parts: Parts) -> None:
        (rule_id,) = authorized(parts)
        with pytest.raises(RuleNotFound):
            parts.ingress.revoke(parts.groups[1], [rule_id])
        assert set(keys_by_id(parts.ingress.find(parts.groups))) == {rule_id}


class TestByHand:
    @pytest.mark.parametrize("cidr", [HERE, "203.0.113.0/24"])
    def test_a_rule_that_was_changed_keeps_its_id_and_its_tags(self, parts: Parts, cidr: str) -> None:
        (rule_id,) = authorized(parts)
        changed = keyed(parts, HTTPS, cidr)
        parts.modify_rule(rule_id, changed)
        for rules in (
            parts.ingress.find(parts.groups),
            parts.ingress.tagged("g1"),
            parts.ingress.show([rule_id]),
            parts.ingress.ours(),
        ):
            assert keys_by_id(rules) == {rule_id: changed}
            assert rules[0].grant_id == "g1"
        (second_id,) = authorized(parts)
        assert second_id != rule_id
        assert parts.ingress.revoke(parts.groups[0], [rule_id]) == {rule_id}

    def test_an_egress_rule_never_counts(self, parts: Parts) -> None:
        """Mutation: functions/grants/ingress.py: `if value["IsEgress"]:` -> `if False:`"""
        rule_id = parts.add_rule(keyed(parts), egress=True)
        assert parts.ingress.find(parts.groups) == []
        assert parts.ingress.show([rule_id]) == []
        assert parts.ingress.ours() == []
        group = parts.ingress.groups(parts.groups)[parts.groups[0]]
        assert group.rule_keys == frozenset()
        assert group.used == {4: 0, 6: 0}
        assert authorized(parts)


class TestLists:
    def test_the_rules_of_one_grant_are_found_by_its_tag_in_whatever_group(self, parts: Parts) -> None:
        first, second = authorized(parts, SSH, HTTP)
        (third,) = authorized(parts, group=1, cidr=ELSEWHERE)
        authorized(parts, HTTPS, grant="g2")
        assert set(keys_by_id(parts.ingress.tagged("g1"))) == {first, second, third}
        assert parts.ingress.tagged("g9") == []

    @pytest.mark.parametrize("name", ["*", "g?", "g*", "sgr-*"])
    def test_a_name_is_no_pattern(self, parts: Parts, name: str) -> None:
        """EC2 reads * and ? in a filter as wildcards.

        Mutation: functions/grants/ingress.py: ` and rule.grant_id == grant_id]` -> `]`
        """
        authorized(parts)
        assert parts.ingress.tagged(name) == []
        assert parts.ingress.show([name]) == []

    def test_rules_are_shown_by_id_and_those_that_are_gone_left_out(self, parts: Parts) -> None:
        first, second, third = authorized(parts, SSH, HTTP, HTTPS)
        foreign = parts.add_rule(keyed(parts, cidr="203.0.113.8/32"))
        parts.ingress.revoke(parts.groups[0], [second])
        assert set(keys_by_id(parts.ingress.show([first, second, foreign]))) == {first, foreign}
        assert parts.ingress.show([]) == []
        assert third in keys_by_id(parts.ingress.ours())

    def test_no_groups_have_no_rules(self, parts: Parts) -> None:
        authorized(parts)
        assert parts.ingress.find([]) == []
        assert parts.ingress.groups([]) == {}


class TestGroups:
    def test_one_list_shows_tags_rules_and_room(self, parts: Parts) -> None:
        parts.tag(parts.groups[0], Target("web", (HTTP, HTTPS)))
        authorized(parts, HTTP, HTTPS)
        authorized(parts, HTTP, cidr=ELSEWHERE)
        parts.add_rule(keyed(parts, SSH, "198.51.100.0/28"))
        groups = parts.ingress.groups(parts.groups)
        assert set(groups) == set(parts.groups)
        first, second = (groups[name] for name in parts.groups)
        assert first.id == parts.groups[0]
        assert first.tags == {
            "knock:stack": parts.ingress.stack,
            "knock:target": "web",
            "knock:ports": "80/tcp 443/tcp",
        }
        assert first.rule_keys == {
            keyed(parts, HTTP),
            keyed(parts, HTTPS),
            keyed(parts, HTTP, ELSEWHERE),
            keyed(parts, SSH, "198.51.100.0/28"),
        }
        assert first.used == {4: 3, 6: 1}
        assert (second.rule_keys, second.used) == (frozenset(), {4: 0, 6: 0})
        assert second.tags == {"knock:stack": parts.ingress.stack}

    def test_a_rule_that_names_a_group_counts_for_both_families(self, adapters: Adapters) -> None:
        """Mutation: functions/grants/ingress.py: `used[6] += len(v6) + both` -> `used[6] += len(v6)`"""
        first, second = adapters.groups
        adapters.ec2.authorize_security_group_ingress(
            GroupId=first,
            IpPermissions=[
                {
                    "IpProtocol": "tcp",
                    "FromPort": 22,
                    "ToPort": 22,
                    "UserIdGroupPairs": [{"GroupId": second}],
                },
                {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "198.51.100.0/24"}]},
            ],
        )
        group = adapters.ingress.groups([first])[first]
        assert group.used == {4: 2, 6: 1}
        assert group.rule_keys == frozenset()
        rules = adapters.ingress.find([first])
        assert {rule.key.cidr for rule in rules} == {second, "198.51.100.0/24"}
        assert not any(map(adapters.ingress.is_ours, rules))

    def test_a_rule_of_ours_that_was_changed_into_another_kind_is_still_ours(
        self, adapters: Adapters
    ) -> None:
        (rule_id,) = authorized(adapters)
        adapters.ec2.modify_security_group_rules(
            GroupId=adapters.groups[0],
            SecurityGroupRules=[
                {
                    "SecurityGroupRuleId": rule_id,
                    "SecurityGroupRule": {"IpProtocol": "-1", "ReferencedGroupId": adapters.groups[1]},
                }
            ],
        )
        (rule,) = adapters.ingress.tagged("g1")
        assert (rule.id, rule.key.cidr) == (rule_id, adapters.groups[1])
        assert adapters.ingress.revoke(adapters.groups[0], [rule_id]) == {rule_id}


# ---------------------------------------------------------------------------- EC2's own


def over(*answers: Any) -> tuple[Ingress, Answers]:
    client = Answers(*answers)
    return Ingress(client, "knock"), client  # type: ignore[arg-type]


def rule(rule_id: str, group: str = "sg-0a", port: int = 22, **more: Any) -> dict[str, Any]:
    return {
        "SecurityGroupRuleId": rule_id,
        "GroupId": group,
        "IsEgress": False,
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port,
        "CidrIpv4": HERE,
        "Tags": [{"Key": "knock:stack", "Value": "knock"}, {"Key": "knock:grant", "Value": "g1"}],
        **more,
    }


CALLS = {
    "authorize": lambda ingress: ingress.authorize("sg-0a", [SSH], HERE, "g1"),
    "revoke": lambda ingress: ingress.revoke("sg-0a", ["sgr-1"]),
    "groups": lambda ingress: ingress.groups(["sg-0a"]),
    "find": lambda ingress: ingress.find(["sg-0a"]),
    "tagged": lambda ingress: ingress.tagged("g1"),
    "show": lambda ingress: ingress.show(["sgr-1"]),
    "ours": lambda ingress: ingress.ours(),
}
LISTS = [name for name in CALLS if name not in ("authorize", "revoke")]
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class TestErrors:
    @every_call
    @pytest.mark.parametrize("code", sorted(THROTTLED))
    def test_a_throttled_call_has_an_error_of_its_own(self, call: Any, code: str) -> None:
        """Mutation: functions/grants/ingress.py: `if code in THROTTLED:` -> `if False:`"""
        with pytest.raises(IngressThrottled):
            call(over(answered(code, 503))[0])

    @every_call
    @pytest.mark.parametrize("code", sorted(TRANSIENT))
    def test_after_an_error_of_ec2s_own_the_call_may_have_taken_effect(self, call: Any, code: str) -> None:
        with pytest.raises(IngressUnavailable):
            call(over(answered(code, 400))[0])

    @every_call
    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_an_unlisted_error_of_ec2s_own_is_no_refusal(self, call: Any, status: int) -> None:
        """Mutation: functions/grants/ingress.py: ` or status >= 500:` -> `:`"""
        with pytest.raises(IngressUnavailable):
            call(over(answered("NeverHeardOf", status))[0])

    @every_call
    def test_a_missing_answer_is_no_refusal(self, call: Any) -> None:
        with pytest.raises(IngressUnavailable):
            call(over(NO_ANSWER)[0])

    @every_call
    @pytest.mark.parametrize("code", ["UnauthorizedOperation", "InvalidGroupId.Malformed", "NeverHeardOf"])
    def test_a_permanent_error_is_refused(self, call: Any, code: str) -> None:
        with pytest.raises(IngressRefused, match=code):
            call(over(answered(code))[0])

    @pytest.mark.parametrize("code", sorted(GONE))
    def test_a_missing_rule_was_not_removed(self, code: str) -> None:
        with pytest.raises(RuleNotFound):
            over(answered(code))[0].revoke("sg-0a", ["sgr-1", "sgr-2"])

    @every_call
    def test_no_error_of_boto3_leaves_the_adapter(self, call: Any) -> None:
        for error in (answered("InvalidPermission.Duplicate"), answered("InvalidGroup.NotFound"), NO_ANSWER):
            with pytest.raises(KnockError):
                call(over(error)[0])


class TestAnswers:
    def test_only_rules_that_the_answer_names_were_removed(self) -> None:
        """In a default VPC, EC2 answers success for what is not there.

        Mutation: functions/grants/ingress.py: `frozenset(removed & set(rule_ids))` -> `frozenset(rule_ids)`
        """
        answer = {"Return": True, "RevokedSecurityGroupRules": [{"SecurityGroupRuleId": "sgr-2"}]}
        assert over(answer)[0].revoke("sg-0a", ["sgr-1", "sgr-2"]) == {"sgr-2"}
        assert over({"Return": True})[0].revoke("sg-0a", ["sgr-1"]) == frozenset()
        unasked = {"RevokedSecurityGroupRules": [{"SecurityGroupRuleId": "sgr-9"}]}
        assert over(unasked)[0].revoke("sg-0a", ["sgr-1"]) == frozenset()

    def test_ids_are_matched_by_their_rules_keys_and_not_by_their_order(self) -> None:
        answer = {"SecurityGroupRules": [rule("sgr-2", port=443), rule("sgr-1", port=80)]}
        assert over(answer)[0].authorize("sg-0a", [HTTP, HTTPS], HERE, "g1") == {
            RuleKey("sg-0a", HTTP, HERE): "sgr-1",
            RuleKey("sg-0a", HTTPS, HERE): "sgr-2",
        }

    @pytest.mark.parametrize(
        "rules",
        [
            [],
            [rule("sgr-1")],
            [rule("sgr-1"), rule("sgr-2", port=443)],
            [rule("sgr-1", port=80), rule("sgr-2", port=443), rule("sgr-3")],
            [rule("sgr-1", port=80, CidrIpv4="203.0.113.8/32"), rule("sgr-2", port=443)],
            [rule("sgr-1", port=80, IsEgress=True), rule("sgr-2", port=443)],
        ],
    )
    def test_an_answer_with_other_rules_than_were_requested_is_unavailable(
        self, rules: list[dict[str, Any]]
    ) -> None:
        """Mutation: functions/grants/ingress.py:
        `if rule_ids.keys() != {RuleKey(group, range_, cidr) for range_ in ports}:` -> `if False:`
        """
        with pytest.raises(IngressUnavailable, match="other rules"):
            over({"SecurityGroupRules": rules})[0].authorize("sg-0a", [HTTP, HTTPS], HERE, "g1")

    def test_a_call_has_one_permission_a_range_and_the_tags_of_knocks_own_rules(self) -> None:
        ingress, client = over({"SecurityGroupRules": [rule("sgr-1"), rule("sgr-2", port=443)]})
        ingress.authorize("sg-0a", [SSH, HTTPS], HERE, "g1")
        ((operation, arguments),) = client.calls
        assert operation == "authorize_security_group_ingress"
        assert [permission["FromPort"] for permission in arguments["IpPermissions"]] == [22, 443]
        assert arguments["TagSpecifications"] == [
            {
                "ResourceType": "security-group-rule",
                "Tags": [{"Key": "knock:stack", "Value": "knock"}, {"Key": "knock:grant", "Value": "g1"}],
            }
        ]


class TestPages:
    @pytest.mark.parametrize("name", LISTS)
    def test_a_list_goes_on_to_its_last_page(self, name: str) -> None:
        """Mutation: functions/grants/ingress.py: `if not answer.get("NextToken"):` -> `if True:`"""
        field, pages = "SecurityGroupRules", [[], [rule("sgr-1")]]
        if name == "groups":
            field, pages = "SecurityGroups", [[], [{"GroupId": "sg-0a"}]]
        ingress, client = over({field: pages[0], "NextToken": "1"}, {field: pages[1]})
        assert len(CALLS[name](ingress)) == 1
        assert [arguments.get("NextToken") for _, arguments in client.calls] == [None, "1"]

    def test_more_values_than_one_filter_takes_are_sent_in_several_calls(self) -> None:
        names = [f"sgr-{n:03}" for n in range(2 * MOST_VALUES + 1)]
        answers = [
            {"SecurityGroupRules": [rule(name) for name in names[at : at + MOST_VALUES]]}
            for at in range(0, len(names), MOST_VALUES)
        ]
        ingress, client = over(*answers)
        assert [listed.id for listed in ingress.show(reversed(names))] == names
        batches = [arguments["Filters"][0]["Values"] for _, arguments in client.calls]
        assert [len(values) for values in batches] == [200, 200, 1]
        assert [name for values in batches for name in values] == names
