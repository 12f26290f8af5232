"""Security group rules of the embedded EC2: what EC2 does and moto does not, mend by mend.

Facts are AWS's: the EC2 API reference of AuthorizeSecurityGroupIngress, RevokeSecurityGroupIngress, Modify-
SecurityGroupRules, DescribeSecurityGroupRules and DescribeSecurityGroups, its error codes, and the quotas of
the VPC user guide.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.server import ThreadedMotoServer

from local import ec2
from tests.conftest import ROOT
from tests.local.plain_moto import faults as plain_moto_faults

REGION, ACCOUNT = "eu-west-1", "123456789012"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    ec2.install()
    with mock_aws():
        yield boto3.client("ec2", region_name=REGION)


class Group:
    """A new security group, and short calls for its rules."""

    def __init__(self, client: Any, name: str = "bastion") -> None:
        vpc = client.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.client = client
        answer = client.create_security_group(
            GroupName=f"{name}-{time.time_ns()}", Description="x", VpcId=vpc
        )
        self.id: str = answer["GroupId"]

    def authorize(self, *permissions: Json, **more: Any) -> list[Json]:
        answer = self.client.authorize_security_group_ingress(
            GroupId=self.id, IpPermissions=list(permissions), **more
        )
        assert answer["Return"] is True
        rules: list[Json] = answer["SecurityGroupRules"]
        return rules

    def revoke(self, *permissions: Json, **more: Any) -> list[Json]:
        arguments = {"IpPermissions": list(permissions)} if permissions else {}
        answer = self.client.revoke_security_group_ingress(GroupId=self.id, **arguments, **more)
        assert answer["Return"] is True
        rules: list[Json] = answer["RevokedSecurityGroupRules"]
        return rules

    def rules(self) -> list[Json]:
        """Its ingress rules, as DescribeSecurityGroupRules shows them."""
        answer = self.client.describe_security_group_rules(
            Filters=[{"Name": "group-id", "Values": [self.id]}]
        )
        return [rule for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]]

    def cidrs(self) -> set[str]:
        return {rule.get("CidrIpv4") or rule["CidrIpv6"] for rule in self.rules()}


@pytest.fixture
def group(client: Any) -> Iterator[Group]:
    new_group = Group(client)
    yield new_group
    ec2.install()


def tcp(port: int, *cidrs: str, to: int | None = None, description: str | None = None) -> Json:
    fields = {} if description is None else {"Description": description}
    v4 = [{"CidrIp": cidr, **fields} for cidr in cidrs if ":" not in cidr]
    v6 = [{"CidrIpv6": cidr, **fields} for cidr in cidrs if ":" in cidr]
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port if to is None else to,
        **({"IpRanges": v4} if v4 else {}),
        **({"Ipv6Ranges": v6} if v6 else {}),
    }


def tags(**pairs: str) -> list[Json]:
    return [
        {
            "ResourceType": "security-group-rule",
            "Tags": [{"Key": key.replace("__", ":"), "Value": value} for key, value in pairs.items()],
        }
    ]


@contextlib.contextmanager
def refused(code: str, saying: str = "") -> Iterator[None]:
    with pytest.raises(ClientError) as error:
        yield
    assert error.value.response["Error"]["Code"] == code
    assert saying in error.value.response["Error"]["Message"]


# ------------------------------------------------------------------------------------------- authorizing


def test_a_rule_is_answered_with_every_field(group: Group) -> None:
    (rule,) = group.authorize(
        tcp(22, "203.0.113.7/32", description="on call"), TagSpecifications=tags(knock__grant="g1")
    )
    assert re.fullmatch(r"sgr-[0-9a-f]{17}", rule["SecurityGroupRuleId"])
    expected = {
        "SecurityGroupRuleId": rule["SecurityGroupRuleId"],
        "GroupId": group.id,
        "GroupOwnerId": ACCOUNT,
        "IsEgress": False,
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "CidrIpv4": "203.0.113.7/32",
        "Description": "on call",
        "Tags": [{"Key": "knock:grant", "Value": "g1"}],
        "SecurityGroupRuleArn": (
            f"arn:aws:ec2:{REGION}:{ACCOUNT}:security-group-rule/{rule['SecurityGroupRuleId']}"
        ),
    }
    assert rule == expected
    assert group.rules() == [expected]


def test_every_rule_of_every_permission_is_in_the_answer(group: Group) -> None:
    added = group.authorize(
        tcp(22, "203.0.113.7/32", "203.0.113.8/32"),
        tcp(443, "2001:db8::7/128"),
        TagSpecifications=tags(a="b"),
    )
    assert len({rule["SecurityGroupRuleId"] for rule in added}) == 3
    assert [(rule["FromPort"], rule.get("CidrIpv4") or rule["CidrIpv6"]) for rule in added] == [
        (22, "203.0.113.7/32"),
        (22, "203.0.113.8/32"),
        (443, "2001:db8::7/128"),
    ]
    assert all(rule["Tags"] == [{"Key": "a", "Value": "b"}] for rule in added)
    assert {rule["SecurityGroupRuleId"] for rule in group.rules()} == {
        rule["SecurityGroupRuleId"] for rule in added
    }


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (tcp(22, "203.0.113.7/32"), "InvalidPermission.Duplicate"),
        (tcp(70000, "203.0.113.8/32"), "InvalidParameterValue"),
        (tcp(22, "203.0.113.8/33"), "InvalidParameterValue"),
    ],
)
def test_of_several_permissions_all_are_added_or_none(group: Group, bad: Json, code: str) -> None:
    group.authorize(tcp(22, "203.0.113.7/32"))
    with refused(code):
        group.authorize(tcp(80, "203.0.113.9/32"), bad, tcp(443, "203.0.113.9/32"))
    assert len(group.rules()) == 1


@pytest.mark.parametrize(
    "again",
    [
        tcp(22, "203.0.113.0/24"),
        tcp(22, "203.0.113.0/24", description="another description"),
        tcp(22, "203.0.113.99/24"),
        {**tcp(22, "203.0.113.0/24"), "IpProtocol": "6"},
        {**tcp(22, "203.0.113.0/24"), "IpProtocol": "TCP"},
    ],
)
def test_the_same_protocol_ports_and_cidr_are_the_same_rule(group: Group, again: Json) -> None:
    group.authorize(tcp(22, "203.0.113.0/24", description="first"))
    with refused(
        "InvalidPermission.Duplicate", "peer: 203.0.113.0/24, TCP, from port: 22, to port: 22, ALLOW"
    ):
        group.authorize(again)
    assert [rule["Description"] for rule in group.rules()] == ["first"]


@pytest.mark.parametrize(
    "permission",
    [
        tcp(23, "203.0.113.0/24"),
        tcp(22, "203.0.113.0/24", to=23),
        tcp(22, "203.0.113.0/25"),
        {**tcp(22, "203.0.113.0/24"), "IpProtocol": "udp"},
        {**tcp(22, "203.0.113.0/24"), "IpProtocol": "-1"},
    ],
)
def test_another_port_cidr_or_protocol_is_another_rule(group: Group, permission: Json) -> None:
    group.authorize(tcp(22, "203.0.113.0/24"))
    group.authorize(permission)
    assert len(group.rules()) == 2


def test_another_group_has_rules_of_its_own(group: Group, client: Any) -> None:
    other_group = Group(client)
    group.authorize(tcp(22, "203.0.113.7/32"))
    other_group.authorize(tcp(22, "203.0.113.7/32"))
    assert len(group.rules()) == len(other_group.rules()) == 1


def test_the_same_permission_twice_in_a_call_is_refused(group: Group) -> None:
    with refused("InvalidParameterValue", "The same permission must not appear multiple times"):
        group.authorize(tcp(22, "203.0.113.7/32"), tcp(22, "203.0.113.7/32", description="x"))
    assert group.rules() == []


@pytest.mark.parametrize(
    ("cidr", "canonical"),
    [
        ("203.0.113.9/24", "203.0.113.0/24"),
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0:0::1/128", "2001:db8::1/128"),
        ("2001:db8::ffff/64", "2001:db8::/64"),
        ("::/0", "::/0"),
    ],
)
def test_a_cidr_is_written_as_ec2_writes_it(group: Group, cidr: str, canonical: str) -> None:
    group.authorize(tcp(22, cidr))
    assert group.cidrs() == {canonical}


@pytest.mark.parametrize(
    "cidr",
    [
        "",
        "/32",
        "203.0.113.7",
        "203.0.113.7/",
        "203.0.113.7/33",
        "203.0.113.7/-1",
        "203.0.113/24",
        "203.0.113.0/255.255.255.0",
        "300.0.0.1/32",
        "host/32",
        "2001:db8::1",
        "2001:db8::1/129",
        "2001:db8:::1/64",
        "fe80::1%eth0/128",
    ],
)
def test_a_malformed_cidr_is_refused(group: Group, cidr: str) -> None:
    family = "Ipv6Ranges" if ":" in cidr else "IpRanges"
    ranges = {family: [{"CidrIpv6" if ":" in cidr else "CidrIp": cidr}]}
    with refused("InvalidParameterValue", f"CIDR block {cidr} is malformed"):
        group.authorize({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **ranges})
    assert group.rules() == []


def test_a_cidr_of_the_other_family_is_refused(group: Group) -> None:
    for wrong in ({"IpRanges": [{"CidrIp": "::/0"}]}, {"Ipv6Ranges": [{"CidrIpv6": "0.0.0.0/0"}]}):
        with refused("InvalidParameterValue", "is malformed"):
            group.authorize({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **wrong})


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"FromPort": 65536, "ToPort": 65536}, "TCP/UDP port (65536) out of range"),
        ({"FromPort": -1, "ToPort": -1}, "TCP/UDP port (-1) out of range"),
        ({"FromPort": 443, "ToPort": 80}, "Invalid TCP/UDP port range (443:80)"),
        ({"FromPort": None}, "Must specify both from and to ports"),
        ({"ToPort": None}, "Must specify both from and to ports"),
        ({"IpProtocol": "tpc"}, "Invalid value 'tpc' for IP protocol. Unknown protocol."),
        ({"IpProtocol": "256"}, "Unknown protocol"),
        ({"IpProtocol": None}, "must specify protocols explicitly"),
        ({"IpProtocol": "icmp", "FromPort": 256, "ToPort": -1}, "ICMP type (256) out of range"),
        ({"IpProtocol": "icmp", "FromPort": 8, "ToPort": 65535}, "ICMP code (65535) out of range"),
    ],
)
def test_a_bad_port_or_protocol_is_refused(group: Group, change: Json, saying: str) -> None:
    permission = {
        key: value for key, value in {**tcp(22, "0.0.0.0/0"), **change}.items() if value is not None
    }
    with refused("InvalidParameterValue", saying):
        group.authorize(permission)
    assert group.rules() == []


@pytest.mark.parametrize(
    ("change", "protocol", "ports"),
    [
        ({"FromPort": 0, "ToPort": 65535}, "tcp", (0, 65535)),
        ({"IpProtocol": "17"}, "udp", (22, 22)),
        ({"IpProtocol": "-1"}, "-1", (-1, -1)),
        ({"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1}, "icmp", (-1, -1)),
        ({"IpProtocol": "icmp", "FromPort": 8, "ToPort": 0}, "icmp", (8, 0)),
        ({"IpProtocol": "50"}, "50", (-1, -1)),
    ],
)
def test_protocols_and_ports_are_shown_as_ec2_shows_them(
    group: Group, change: Json, protocol: str, ports: tuple[int, int]
) -> None:
    group.authorize({**tcp(22, "0.0.0.0/0"), **change})
    (rule,) = group.rules()
    assert (rule["IpProtocol"], (rule["FromPort"], rule["ToPort"])) == (protocol, ports)


def test_a_description_of_255_characters_of_the_set_is_kept(group: Group) -> None:
    text = "aZ9 ._-:/()#,@[]+=&;{}!$*" * 10 + "abcde"
    assert len(text) == 255
    group.authorize(tcp(22, "203.0.113.7/32", description=text))
    assert group.rules()[0]["Description"] == text


@pytest.mark.parametrize(
    "text", ["a" * 256, 'say "hi"', "a<b", "été", "a\nb", "tab\t", "don't", "a|b", "50%"]
)
def test_a_description_outside_the_set_is_refused(group: Group, text: str) -> None:
    with refused("InvalidParameterValue", "Invalid rule description"):
        group.authorize(tcp(22, "203.0.113.7/32", description=text))
    assert group.rules() == []


def test_the_short_form_of_a_call_adds_a_rule_too(group: Group, client: Any) -> None:
    client.authorize_security_group_ingress(
        GroupId=group.id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="203.0.113.9/24"
    )
    assert group.cidrs() == {"203.0.113.0/24"}
    client.revoke_security_group_ingress(
        GroupId=group.id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="203.0.113.0/24"
    )
    assert group.rules() == []


def test_a_rule_can_name_a_group_or_a_prefix_list(group: Group) -> None:
    group.authorize(
        {
            "IpProtocol": "tcp",
            "FromPort": 22,
            "ToPort": 22,
            "UserIdGroupPairs": [{"GroupId": group.id, "Description": "itself"}],
            "PrefixListIds": [{"PrefixListId": "pl-12345678"}],
        }
    )
    by_group, by_list = sorted(group.rules(), key=lambda rule: "PrefixListId" in rule)
    assert by_group["ReferencedGroupInfo"] == {"GroupId": group.id, "UserId": ACCOUNT}
    assert by_group["Description"] == "itself"
    assert by_list["PrefixListId"] == "pl-12345678"
    revoked = group.revoke(SecurityGroupRuleIds=[by_group["SecurityGroupRuleId"]])
    assert revoked[0]["ReferencedGroupId"] == group.id


def test_a_call_without_rules_is_refused(group: Group) -> None:
    with refused("MissingParameter"):
        group.authorize({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22})


# -------------------------------------------------------------------------------------------------- quota


def test_ipv4_and_ipv6_have_sixty_rules_each(group: Group) -> None:
    """The quota "is enforced separately for IPv4 rules and IPv6 rules"."""
    group.authorize(tcp(22, *(f"203.0.113.{number}/32" for number in range(60))))
    with refused("RulesPerSecurityGroupLimitExceeded"):
        group.authorize(tcp(22, "198.51.100.1/32"))
    group.authorize(tcp(22, *(f"2001:db8::{number:x}/128" for number in range(60))))
    with refused("RulesPerSecurityGroupLimitExceeded"):
        group.authorize(tcp(22, "2001:db8:1::/64"))
    assert len(group.rules()) == 120


def test_a_rule_that_names_a_group_counts_for_both_families(group: Group) -> None:
    ec2.install(rules_per_group=1)
    group.authorize(
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "UserIdGroupPairs": [{"GroupId": group.id}]}
    )
    for cidr in ("203.0.113.7/32", "2001:db8::7/128"):
        with refused("RulesPerSecurityGroupLimitExceeded"):
            group.authorize(tcp(22, cidr))


def test_a_call_that_does_not_fit_adds_nothing(group: Group) -> None:
    ec2.install(rules_per_group=3)
    group.authorize(tcp(22, "203.0.113.1/32", "203.0.113.2/32"))
    with refused("RulesPerSecurityGroupLimitExceeded"):
        group.authorize(tcp(22, "203.0.113.3/32", "203.0.113.4/32"))
    assert len(group.rules()) == 2
    group.authorize(tcp(22, "203.0.113.3/32"))


def test_a_rule_that_is_there_is_a_duplicate_in_a_full_group_too(group: Group) -> None:
    ec2.install(rules_per_group=1)
    group.authorize(tcp(22, "203.0.113.1/32"))
    with refused("InvalidPermission.Duplicate"):
        group.authorize(tcp(22, "203.0.113.1/32"))


def test_a_family_over_its_quota_does_not_keep_the_other_out(group: Group) -> None:
    group.authorize(tcp(22, *(f"203.0.113.{number}/32" for number in range(5))))
    ec2.install(rules_per_group=2)
    with refused("RulesPerSecurityGroupLimitExceeded"):
        group.authorize(tcp(22, "203.0.113.9/32"))
    group.authorize(tcp(22, "2001:db8::7/128"))


def test_revoking_makes_room(group: Group) -> None:
    ec2.install(rules_per_group=1)
    group.authorize(tcp(22, "203.0.113.1/32"))
    group.revoke(tcp(22, "203.0.113.1/32"))
    group.authorize(tcp(22, "203.0.113.2/32"))


# ------------------------------------------------------------------------------------------------ revoking


def test_rules_are_revoked_by_id(group: Group) -> None:
    first, second, third = group.authorize(tcp(22, *(f"203.0.113.{number}/32" for number in range(3))))
    revoked = group.revoke(SecurityGroupRuleIds=[first["SecurityGroupRuleId"], third["SecurityGroupRuleId"]])
    assert [rule["CidrIpv4"] for rule in revoked] == ["203.0.113.0/32", "203.0.113.2/32"]
    assert group.rules() == [second]


def test_rules_are_revoked_by_permission_whatever_their_description(group: Group) -> None:
    group.authorize(tcp(22, "203.0.113.0/24", description="x"), tcp(443, "203.0.113.0/24"))
    group.revoke(tcp(22, "203.0.113.99/24"))
    assert [rule["FromPort"] for rule in group.rules()] == [443]


def test_a_rule_that_was_revoked_can_be_authorized_again(group: Group) -> None:
    (first,) = group.authorize(tcp(22, "203.0.113.7/32"), TagSpecifications=tags(a="b"))
    group.revoke(SecurityGroupRuleIds=[first["SecurityGroupRuleId"]])
    (second,) = group.authorize(tcp(22, "203.0.113.7/32"))
    assert second["SecurityGroupRuleId"] != first["SecurityGroupRuleId"]
    assert second.get("Tags", []) == []


def test_the_answer_has_the_revoked_rules_alone(group: Group) -> None:
    remaining, *removed = group.authorize(
        tcp(22, "203.0.113.7/32"), tcp(80, "203.0.113.7/32", "2001:db8::7/128")
    )
    ids = [rule["SecurityGroupRuleId"] for rule in removed]
    revoked = group.revoke(SecurityGroupRuleIds=ids)
    assert [rule["SecurityGroupRuleId"] for rule in revoked] == ids
    assert [rule.get("CidrIpv4") or rule["CidrIpv6"] for rule in revoked] == [
        "203.0.113.7/32",
        "2001:db8::7/128",
    ]
    assert all(rule["GroupId"] == group.id and not rule["IsEgress"] for rule in revoked)
    assert [rule["SecurityGroupRuleId"] for rule in group.rules()] == [remaining["SecurityGroupRuleId"]]


def test_an_unknown_rule_id_is_not_found_and_nothing_is_revoked(group: Group) -> None:
    (rule,) = group.authorize(tcp(22, "203.0.113.7/32"))
    unknown = "sgr-" + "0" * 17
    with refused("InvalidSecurityGroupRuleId.NotFound", unknown):
        group.revoke(SecurityGroupRuleIds=[rule["SecurityGroupRuleId"], unknown])
    assert len(group.rules()) == 1


def test_a_rule_of_another_group_is_not_found(group: Group, client: Any) -> None:
    other_group = Group(client)
    (rule,) = other_group.authorize(tcp(22, "203.0.113.7/32"))
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        group.revoke(SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]])
    assert len(other_group.rules()) == 1


def test_an_egress_rule_is_not_found_among_the_ingress(group: Group, client: Any) -> None:
    answer = client.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group.id]}])
    (egress,) = answer["SecurityGroupRules"]
    assert egress["IsEgress"] is True
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        group.revoke(SecurityGroupRuleIds=[egress["SecurityGroupRuleId"]])


def test_an_absent_permission_is_not_found_and_nothing_is_revoked(group: Group) -> None:
    group.authorize(tcp(22, "203.0.113.7/32"))
    with refused("InvalidPermission.NotFound"):
        group.revoke(tcp(22, "203.0.113.7/32"), tcp(22, "203.0.113.8/32"))
    assert len(group.rules()) == 1


@pytest.mark.parametrize(
    "rule_id", ["sgr-", "sgr-xyz", "sg-12345678", "sgr-123", "203.0.113.7/32", "SGR-12345678"]
)
def test_a_malformed_rule_id_is_refused(group: Group, client: Any, rule_id: str) -> None:
    with refused("InvalidSecurityGroupRuleId.Malformed", rule_id):
        group.revoke(SecurityGroupRuleIds=[rule_id])
    with refused("InvalidSecurityGroupRuleId.Malformed", rule_id):
        client.describe_security_group_rules(SecurityGroupRuleIds=[rule_id])


@pytest.mark.parametrize(
    ("group_id", "code"),
    [
        ("sg-0123456789abcdef0", "InvalidGroup.NotFound"),
        ("sg-xyz", "InvalidGroupId.Malformed"),
        ("bastion", "InvalidGroupId.Malformed"),
        ("", "InvalidGroupId.Malformed"),
    ],
)
def test_an_unknown_or_malformed_group_id_is_an_error(client: Any, group_id: str, code: str) -> None:
    with refused(code):
        client.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[tcp(22, "203.0.113.7/32")])
    with refused(code):
        client.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[tcp(22, "203.0.113.7/32")])


def test_a_group_is_given_by_its_name_or_its_id(client: Any) -> None:
    client.authorize_security_group_ingress(GroupName="default", IpPermissions=[tcp(22, "203.0.113.7/32")])
    with refused("InvalidGroup.NotFound"):
        client.authorize_security_group_ingress(GroupName="nobody", IpPermissions=[tcp(22, "203.0.113.7/32")])
    with refused("MissingParameter"):
        client.authorize_security_group_ingress(IpPermissions=[tcp(22, "203.0.113.7/32")])


def test_a_dry_run_changes_nothing(group: Group) -> None:
    with refused("DryRunOperation"):
        group.authorize(tcp(22, "203.0.113.7/32"), DryRun=True)
    assert group.rules() == []


# ---------------------------------------------------------------------------------------------------- tags


def test_rules_are_found_by_tag(group: Group, client: Any) -> None:
    (first,) = group.authorize(
        tcp(22, "203.0.113.1/32"), TagSpecifications=tags(knock__stack="s1", knock__grant="g1")
    )
    (second,) = group.authorize(
        tcp(22, "203.0.113.2/32"), TagSpecifications=tags(knock__stack="s1", knock__grant="g2")
    )
    group.authorize(tcp(22, "203.0.113.3/32"))

    def cidrs(*filters: tuple[str, list[str]]) -> list[str]:
        query = [{"Name": name, "Values": values} for name, values in (("group-id", [group.id]), *filters)]
        rules = client.describe_security_group_rules(Filters=query)["SecurityGroupRules"]
        return sorted(rule["CidrIpv4"] for rule in rules if not rule["IsEgress"])

    assert cidrs(("tag:knock:grant", ["g1"])) == ["203.0.113.1/32"]
    assert cidrs(("tag:knock:grant", ["g1", "g2"])) == ["203.0.113.1/32", "203.0.113.2/32"]
    assert cidrs(("tag:knock:grant", ["g*"])) == ["203.0.113.1/32", "203.0.113.2/32"]
    assert cidrs(("tag:knock:grant", ["g?"]), ("tag:knock:stack", ["s1"])) == [
        "203.0.113.1/32",
        "203.0.113.2/32",
    ]
    assert cidrs(("tag:knock:grant", ["g"])) == []
    assert cidrs(("tag:knock:grant", ["G1"])) == []
    assert cidrs(("tag-key", ["knock:stack"])) == ["203.0.113.1/32", "203.0.113.2/32"]
    assert cidrs(("tag-key", ["knock:nothing"])) == []
    ids = [first["SecurityGroupRuleId"], second["SecurityGroupRuleId"]]
    assert cidrs(("security-group-rule-id", ids)) == ["203.0.113.1/32", "203.0.113.2/32"]
    assert cidrs(("security-group-rule-id", ids), ("tag:knock:grant", ["g2"])) == ["203.0.113.2/32"]


def test_tags_of_a_rule_can_be_added_and_deleted(group: Group, client: Any) -> None:
    (rule,) = group.authorize(tcp(22, "203.0.113.7/32"), TagSpecifications=tags(a="1"))
    ids = [rule["SecurityGroupRuleId"]]
    client.create_tags(Resources=ids, Tags=[{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "one"}])
    assert group.rules()[0]["Tags"] == [{"Key": "a", "Value": "one"}, {"Key": "b", "Value": "2"}]
    client.delete_tags(Resources=ids, Tags=[{"Key": "a"}])
    assert group.rules()[0]["Tags"] == [{"Key": "b", "Value": "2"}]


def test_a_rule_that_is_gone_cannot_be_tagged_and_leaves_no_tags(group: Group, client: Any) -> None:
    (rule,) = group.authorize(tcp(22, "203.0.113.7/32"), TagSpecifications=tags(a="1"))
    ids = [rule["SecurityGroupRuleId"]]
    group.revoke(SecurityGroupRuleIds=ids)
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        client.create_tags(Resources=ids, Tags=[{"Key": "b", "Value": "2"}])
    assert client.describe_tags(Filters=[{"Name": "resource-id", "Values": ids}])["Tags"] == []


def test_tags_are_on_the_rule_and_text_is_escaped(group: Group) -> None:
    (rule,) = group.authorize(tcp(22, "203.0.113.7/32"), TagSpecifications=tags(who='<"é"&>'))
    assert rule["Tags"] == group.rules()[0]["Tags"] == [{"Key": "who", "Value": '<"é"&>'}]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ([{"ResourceType": "security-group", "Tags": [{"Key": "a", "Value": "b"}]}], "InvalidParameterValue"),
        (tags(aws__x="1"), "InvalidParameterValue"),
        (tags(**{"k" * 129: "1"}), "InvalidParameterValue"),
        (tags(a="v" * 257), "InvalidParameterValue"),
        (tags(**{f"k{number}": "1" for number in range(51)}), "TagLimitExceeded"),
    ],
)
def test_tags_that_ec2_does_not_take_are_refused(group: Group, wrong: list[Json], code: str) -> None:
    with refused(code):
        group.authorize(tcp(22, "203.0.113.7/32"), TagSpecifications=wrong)
    assert group.rules() == []


# ---------------------------------------------------------------------------------------------- describing


def test_a_describe_by_id_finds_each_or_fails(group: Group, client: Any) -> None:
    first, second = group.authorize(tcp(22, "203.0.113.1/32", "203.0.113.2/32"))
    ids = [first["SecurityGroupRuleId"], second["SecurityGroupRuleId"]]
    rules = client.describe_security_group_rules(SecurityGroupRuleIds=ids)["SecurityGroupRules"]
    assert {rule["SecurityGroupRuleId"] for rule in rules} == set(ids)
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        client.describe_security_group_rules(SecurityGroupRuleIds=[*ids, "sgr-" + "0" * 17])


def test_pages_of_rules_miss_none_while_rules_are_revoked(group: Group, client: Any) -> None:
    group.authorize(tcp(22, *(f"203.0.113.{number}/32" for number in range(12))))
    query = {"Filters": [{"Name": "group-id", "Values": [group.id]}], "MaxResults": 5}
    ids: list[str] = []
    page = client.describe_security_group_rules(**query)
    sizes = [len(page["SecurityGroupRules"])]
    while True:
        ids += [rule["SecurityGroupRuleId"] for rule in page["SecurityGroupRules"]]
        if "NextToken" not in page:
            break
        present = group.rules()
        group.revoke(
            SecurityGroupRuleIds=[
                next(r["SecurityGroupRuleId"] for r in present if r["SecurityGroupRuleId"] in ids)
            ]
        )
        page = client.describe_security_group_rules(**query, NextToken=page["NextToken"])
        sizes.append(len(page["SecurityGroupRules"]))
    assert sizes == [5, 5, 3]  # the egress rule among them
    assert len(set(ids)) == 13


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"MaxResults": 4}, "InvalidParameterValue"),
        ({"MaxResults": 1001}, "InvalidParameterValue"),
        ({"NextToken": "é"}, "InvalidParameterValue"),
        ({"NextToken": "abc"}, "InvalidParameterValue"),
        ({"Filters": [{"Name": "cidr", "Values": ["0.0.0.0/0"]}]}, "InvalidParameterValue"),
        ({"Filters": [{"Name": "group-id", "Values": ["bastion"]}]}, "InvalidGroupId.Malformed"),
        ({"MaxResults": 5, "SecurityGroupRuleIds": ["sgr-" + "0" * 17]}, "InvalidParameterCombination"),
    ],
)
def test_a_describe_refuses_invalid_parameters(client: Any, query: Json, code: str) -> None:
    unchecked = boto3.client("ec2", region_name=REGION, config=Config(parameter_validation=False))
    with refused(code):
        unchecked.describe_security_group_rules(**query)


def test_a_group_that_does_not_exist_has_no_rules(client: Any) -> None:
    query = [{"Name": "group-id", "Values": ["sg-0123456789abcdef0"]}]
    assert client.describe_security_group_rules(Filters=query)["SecurityGroupRules"] == []


def test_describe_security_groups_shows_the_same_rules(group: Group, client: Any) -> None:
    group.authorize(
        tcp(22, "203.0.113.9/24", "2001:DB8::7/128", description="on call"), tcp(443, "203.0.113.9/24")
    )
    group.revoke(tcp(443, "203.0.113.0/24"))
    (described,) = client.describe_security_groups(GroupIds=[group.id])["SecurityGroups"]
    (permission,) = described["IpPermissions"]
    assert (permission["IpProtocol"], permission["FromPort"], permission["ToPort"]) == ("tcp", 22, 22)
    assert permission["IpRanges"] == [{"CidrIp": "203.0.113.0/24", "Description": "on call"}]
    assert permission["Ipv6Ranges"] == [{"CidrIpv6": "2001:db8::7/128", "Description": "on call"}]


def test_a_permission_of_a_group_has_all_sources_of_its_ports(group: Group, client: Any) -> None:
    """Egress permissions are not among the ingress permissions."""
    for address in ("203.0.113.7/32", "203.0.113.8/32", "2001:db8::7/128"):
        group.authorize(tcp(22, address))
    group.authorize(tcp(443, "203.0.113.7/32"))
    client.authorize_security_group_egress(GroupId=group.id, IpPermissions=[tcp(25, "192.0.2.0/24")])
    (described,) = client.describe_security_groups(GroupIds=[group.id])["SecurityGroups"]
    ssh, https = described["IpPermissions"]
    assert [source["CidrIp"] for source in ssh["IpRanges"]] == ["203.0.113.7/32", "203.0.113.8/32"]
    assert [source["CidrIpv6"] for source in ssh["Ipv6Ranges"]] == ["2001:db8::7/128"]
    assert (https["FromPort"], https["IpRanges"]) == (443, [{"CidrIp": "203.0.113.7/32"}])
    everything, mail = described["IpPermissionsEgress"]
    assert (everything["IpProtocol"], "FromPort" in everything) == ("-1", False)
    assert mail["FromPort"] == 25


def test_groups_come_in_pages(group: Group, client: Any) -> None:
    group_ids = {Group(client, "page").id for _ in range(7)}
    client.create_tags(Resources=sorted(group_ids), Tags=[{"Key": "paged", "Value": "yes"}])
    query = [{"Name": "tag:paged", "Values": ["yes"]}]
    first = client.describe_security_groups(Filters=query, MaxResults=5)
    second = client.describe_security_groups(Filters=query, MaxResults=5, NextToken=first["NextToken"])
    pages = [[described["GroupId"] for described in page["SecurityGroups"]] for page in (first, second)]
    assert [len(page) for page in pages] == [5, 2]
    assert pages[0] + pages[1] == sorted(group_ids)
    assert "NextToken" not in second
    client.delete_tags(Resources=sorted(group_ids), Tags=[{"Key": "paged"}])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"GroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"GroupIds": ["bastion"]}, "InvalidGroupId.Malformed"),
        ({"Filters": [{"Name": "group-id", "Values": ["bastion"]}]}, "InvalidGroupId.Malformed"),
    ],
)
def test_describing_an_unknown_or_malformed_group_id_is_an_error(client: Any, query: Json, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        client.describe_security_groups(**query)
    assert caught.value.response["Error"]["Code"] == code


def test_a_group_is_found_by_id_and_by_several_tags_together(group: Group, client: Any) -> None:
    other_group = Group(client, "other")
    stack = {"Key": "knock:stack", "Value": "knock"}
    client.create_tags(Resources=[group.id], Tags=[stack, {"Key": "knock:target", "Value": "web"}])
    client.create_tags(Resources=[other_group.id], Tags=[stack, {"Key": "knock:target", "Value": "bastion"}])

    def group_ids(**filters: list[str]) -> set[str]:
        query = [
            {"Name": name.replace("__", ":").replace("_", "-"), "Values": values}
            for name, values in filters.items()
        ]
        groups = client.describe_security_groups(Filters=query)["SecurityGroups"]
        return {described["GroupId"] for described in groups}

    ours = {"tag:knock:stack": ["knock"]}
    assert group_ids(**ours) == {group.id, other_group.id}
    assert group_ids(**ours, **{"tag:knock:target": ["web"]}) == {group.id}
    assert group_ids(**ours, **{"tag:knock:target": ["web", "bastion"]}) == {group.id, other_group.id}
    assert group_ids(group_id=[group.id]) == {group.id}
    assert group_ids(group_id=["sg-0123456789abcdef0"]) == set()
    for tagged in (group, other_group):
        client.delete_tags(Resources=[tagged.id], Tags=[{"Key": "knock:stack"}, {"Key": "knock:target"}])


class TestModifying:
    @staticmethod
    def change(rule: Json, **to: Any) -> Json:
        wanted = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "203.0.113.7/32"}
        return {"SecurityGroupRuleId": rule["SecurityGroupRuleId"], "SecurityGroupRule": wanted | to}

    def test_a_rule_keeps_its_id_and_its_tags(self, group: Group, client: Any) -> None:
        (rule,) = group.authorize(
            tcp(22, "203.0.113.7/32", description="ours"), TagSpecifications=tags(a="b")
        )
        changed = self.change(rule, FromPort=1, ToPort=65535, CidrIpv4="198.51.100.9/24", Description="hand")
        client.modify_security_group_rules(GroupId=group.id, SecurityGroupRules=[changed])
        (now,) = group.rules()
        assert now == rule | {
            "FromPort": 1,
            "ToPort": 65535,
            "CidrIpv4": "198.51.100.0/24",
            "Description": "hand",
        }
        group.authorize(tcp(22, "203.0.113.7/32"))  # another rule, now that the first is modified
        with pytest.raises(ClientError, match=r"InvalidPermission\.Duplicate"):
            group.authorize({**tcp(1, "198.51.100.0/24"), "ToPort": 65535})

    @pytest.mark.parametrize(
        ("to", "code"),
        [
            ({"FromPort": 443, "ToPort": 443}, "InvalidPermission.Duplicate"),
            ({"FromPort": 70000, "ToPort": 70000}, "InvalidParameterValue"),
            ({"CidrIpv6": "2001:db8::7/128"}, "InvalidParameterValue"),
        ],
    )
    def test_of_several_changes_all_are_made_or_none(
        self, group: Group, client: Any, to: Json, code: str
    ) -> None:
        ssh, http, _ = group.authorize(*(tcp(port, "203.0.113.7/32") for port in (22, 80, 443)))
        before = group.rules()
        good, bad = self.change(ssh, FromPort=2222, ToPort=2222), self.change(http, **to)
        with pytest.raises(ClientError) as caught:
            client.modify_security_group_rules(GroupId=group.id, SecurityGroupRules=[good, bad])
        assert caught.value.response["Error"]["Code"] == code
        assert group.rules() == before

    def test_an_unknown_id_is_not_found(self, group: Group, client: Any) -> None:
        unknown = self.change({"SecurityGroupRuleId": "sgr-0123456789abcdef0"})
        with pytest.raises(ClientError, match=r"InvalidSecurityGroupRuleId\.NotFound"):
            client.modify_security_group_rules(GroupId=group.id, SecurityGroupRules=[unknown])

    def test_two_rules_can_change_places(self, group: Group, client: Any) -> None:
        ssh, http = group.authorize(tcp(22, "203.0.113.7/32"), tcp(80, "203.0.113.7/32"))
        changes = [self.change(ssh, FromPort=80, ToPort=80), self.change(http)]
        client.modify_security_group_rules(GroupId=group.id, SecurityGroupRules=changes)
        assert {rule["SecurityGroupRuleId"]: rule["FromPort"] for rule in group.rules()} == {
            ssh["SecurityGroupRuleId"]: 80,
            http["SecurityGroupRuleId"]: 22,
        }


def test_egress_and_modifications_still_work(group: Group, client: Any) -> None:
    client.authorize_security_group_egress(GroupId=group.id, IpPermissions=[tcp(443, "203.0.113.0/24")])
    answer = client.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group.id]}])
    assert len(answer["SecurityGroupRules"]) == 2
    (rule,) = group.authorize(tcp(22, "203.0.113.7/32"))
    client.update_security_group_rule_descriptions_ingress(
        GroupId=group.id, IpPermissions=[tcp(22, "203.0.113.7/32", description="later")]
    )
    assert [described["Description"] for described in group.rules()] == ["later"]
    assert group.rules()[0]["SecurityGroupRuleId"] == rule["SecurityGroupRuleId"]


def test_groups_are_still_found_by_their_tags(group: Group, client: Any) -> None:
    client.create_tags(Resources=[group.id], Tags=[{"Key": "knock:target", "Value": "bastion"}])
    answer = client.describe_security_groups(Filters=[{"Name": "tag:knock:target", "Values": ["bastion"]}])
    assert [described["GroupId"] for described in answer["SecurityGroups"]] == [group.id]
    assert answer["SecurityGroups"][0]["Tags"] == [{"Key": "knock:target", "Value": "bastion"}]
    client.delete_tags(Resources=[group.id], Tags=[{"Key": "knock:target"}])


# ----------------------------------------------------------------------------------------------- concurrently


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave time between looking at a group's rules and changing them."""
    plain = ec2._new_rule
    monkeypatch.setattr(ec2, "_new_rule", lambda *arguments: (time.sleep(0.002), plain(*arguments))[1])


def test_of_many_threads_that_add_the_same_rule_one_does(group: Group, slowly: None) -> None:
    """Threads that add and remove other rules at the same time lose none."""
    outcomes: list[str] = []

    def same() -> None:
        try:
            group.authorize(tcp(22, "203.0.113.7/32"))
            outcomes.append("added")
        except ClientError as error:
            outcomes.append(error.response["Error"]["Code"])

    def own(number: int) -> None:
        for _ in range(5):
            (rule,) = group.authorize(tcp(443, f"198.51.100.{number}/32"))
            group.revoke(SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]])
        group.authorize(tcp(443, f"198.51.100.{number}/32"))

    threads = [threading.Thread(target=same) for _ in range(6)]
    threads += [threading.Thread(target=own, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["InvalidPermission.Duplicate"] * 5 + ["added"]
    assert group.cidrs() == {"203.0.113.7/32", *(f"198.51.100.{number}/32" for number in range(6))}


def test_the_quota_holds_when_many_threads_add_rules(group: Group, slowly: None) -> None:
    ec2.install(rules_per_group=10)
    refusals: list[str] = []

    def add(number: int) -> None:
        for host in range(5):
            try:
                group.authorize(tcp(22, f"203.0.{number}.{host}/32"))
            except ClientError as error:
                refusals.append(error.response["Error"]["Code"])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refusals == ["RulesPerSecurityGroupLimitExceeded"] * 30
    assert len(group.rules()) == 10


def test_a_describe_by_group_reads_no_other_groups_rules(
    client: Any, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A describe by group costs what the group costs, however many rules there are elsewhere."""
    other_group = Group(client)
    other_group.authorize(tcp(22, *(f"203.0.113.{number}/32" for number in range(50))))
    lookups: list[str] = []
    plain = ec2._tags_of
    monkeypatch.setattr(
        ec2, "_tags_of", lambda backend, rule_id: lookups.append(rule_id) or plain(backend, rule_id)
    )
    group.authorize(tcp(22, "203.0.113.7/32"))
    lookups.clear()
    assert len(group.rules()) == 1
    assert len(lookups) == 2  # its own rule, and its egress rule


def test_a_moto_server_is_mended_too() -> None:
    ec2.install()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        served = Group(boto3.client("ec2", region_name=REGION, endpoint_url=f"http://127.0.0.1:{port}"))
        added = served.authorize(tcp(22, "203.0.113.9/24"), tcp(443, "2001:db8::7/128"))
        assert len(added) == 2
        with refused("InvalidPermission.Duplicate"):
            served.authorize(tcp(22, "203.0.113.0/24"))
        served.revoke(SecurityGroupRuleIds=[rule["SecurityGroupRuleId"] for rule in added])
        assert served.rules() == []
    finally:
        server.stop()


# ------------------------------------------------------------------------------ is each mend still needed?


@pytest.fixture(scope="module")
def plain_moto() -> dict[str, bool]:
    return plain_moto_faults("security_groups")


@pytest.mark.parametrize(
    "fault",
    [
        "a call that fails adds some of its rules",
        "only the last permission's rules are in the answer",
        "both families are counted together",
        "any port is accepted",
        "any protocol is accepted",
        "any description is accepted",
        "CIDRs are compared as typed",
        "an unknown rule id is reported as an unknown permission",
        "rules have no pages",
        "a modified CIDR is kept as typed",
        "groups have no pages",
        "a rule that is gone can be tagged",
        "a revoked rule leaves its tags",
    ],
)
def test_plain_moto_still_has_the_fault(plain_moto: dict[str, bool], fault: str) -> None:
    """When this fails, moto has mended it itself: see whether our mend can go (local/ec2.py)."""
    assert plain_moto[fault] is True


def test_every_patched_name_exists_in_moto() -> None:
    """`setattr` of a name that a new moto has renamed would mend nothing: so each must exist before."""
    script = """
        import local.ec2
        wrong = []
        real = setattr
        def checked(owner, name, value):
            if not hasattr(owner, name):
                wrong.append(f"{owner!r} has no {name}")
            real(owner, name, value)
        local.ec2.setattr = checked
        local.ec2.install()
        assert not wrong, wrong
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr[-2000:]
