"""`knock-admin why sgr-…`: from a rule in EC2 to the grants that claim it now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import pytest

from grants.ledger import Foreign, Ledger, Own, claim, name_attempt, record_results, release
from grants.values import Grant, Ports, RuleKey
from tests.clients.admin_support import STACK, World, make_world

world = pytest.fixture(make_world)

SOURCE = "203.0.113.7/32"


@dataclass
class Door:
    """A rule for one source, and its ledger."""

    world: World
    group: str
    rule: str

    @classmethod
    def open(cls, world: World, by: str, *, foreign: bool = False) -> Door:
        world.ok("target", "add", "bastion", "--ports", "22/tcp")
        group = world.ok("target", "ls", "--json").json["targets"][0]["groups"][0]["id"]
        tags = [{"Key": "knock:stack", "Value": STACK}, {"Key": "knock:grant", "Value": by}]
        answer = world.ec2.authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": SOURCE}]}
            ],
            TagSpecifications=[] if foreign else [{"ResourceType": "security-group-rule", "Tags": tags}],
        )
        return cls(world, group, answer["SecurityGroupRules"][0]["SecurityGroupRuleId"])

    def claim(self, *grants: Grant, released: str = "", foreign: bool = False) -> None:
        """Write the ledger: these grants claim the rule, but for the one `released`."""
        now = datetime.now(timezone.utc)
        key, ledger = RuleKey(self.group, Ports(22, 22, "tcp"), SOURCE), Ledger(SOURCE)
        for number, grant in enumerate(grants):
            attempt = name_attempt(now, str(number))
            ledger = claim(ledger, grant.id, grant.expires_at, [key], attempt, now)
            result = Foreign(self.rule) if foreign else Own(self.rule)
            ledger = record_results(ledger, grant.id, attempt, {key: result}, now)
        if released:
            ledger = release(ledger, released, now)
        self.world.ledgers.write(self.world.ledgers.read(SOURCE), ledger)


def test_a_rule_leads_to_the_grants_that_claim_it_and_not_to_the_one_that_made_it(world: World) -> None:
    """Break it: answer with the grant that the rule's tag names."""
    alice, bob = world.record("alice", reason="on call"), world.record("bob", reason="help")
    door = Door.open(world, alice.id)
    door.claim(alice, bob, released=alice.id)
    world.trail.end(alice.id, "revoked", datetime.now(timezone.utc), "alice", "")
    result = world.ok("why", door.rule)
    lines = result.out.splitlines()
    assert lines[0] == f"{door.rule} opens 22/tcp to {SOURCE} in {door.group} (target bastion)"
    assert lines[1] == f"The grant {alice.id} made it, and is revoked now."
    assert lines[2] == "These live grants claim it; it is revoked when the last of them ends:"
    assert lines[5].split()[:3] == [bob.id, "bob", "active"]
    assert len(lines) == 6
    answer = world.ok("why", door.rule, "--json").json
    assert [grant["id"] for grant in answer["held_by"]] == [bob.id]
    assert (answer["phase"], answer["made_by"]["id"], answer["target"]) == ("open", alice.id, "bastion")


def test_a_rule_that_no_grant_claims_any_more_is_being_revoked(world: World) -> None:
    alice = world.record("alice")
    door = Door.open(world, alice.id)
    door.claim(alice, released=alice.id)
    assert "No live grant claims it: it is being revoked." in world.ok("why", door.rule).out


def test_a_rule_that_the_ledger_does_not_know_is_left_to_the_guard(world: World) -> None:
    door = Door.open(world, "nobody_1")
    result = world.ok("why", door.rule)
    assert "The grant nobody_1 made it, and is not on record." in result.out
    assert f"The ledger of {SOURCE} does not know it. `knock-admin guard` revokes it" in result.out


def test_a_rule_that_knock_did_not_make_is_said_to_stay(world: World) -> None:
    alice = world.record("alice")
    door = Door.open(world, alice.id, foreign=True)
    assert "Knock did not make it, and never revokes it." in world.ok("why", door.rule).out
    door.claim(alice, foreign=True)
    result = world.ok("why", door.rule)
    assert "These grants found it open. Ending them does not close it" in result.out
    assert alice.id in result.out


def test_a_rule_of_another_stack_is_answered_with_the_command_for_that_stack(world: World) -> None:
    door = Door.open(world, "x")
    world.ec2.create_tags(Resources=[door.rule], Tags=[{"Key": "knock:stack", "Value": "other"}])
    assert f"`knock-admin why {door.rule} --stack other`" in world.ok("why", door.rule).out


def test_a_rule_that_was_changed_by_hand_is_found_by_the_grant_that_made_it(world: World) -> None:
    """EC2 keeps its id when its source is changed; the ledger has it under the old source."""
    alice = world.record("alice")
    door = Door.open(world, alice.id)
    door.claim(alice)
    changed = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "198.51.100.0/24"}
    world.ec2.modify_security_group_rules(
        GroupId=door.group,
        SecurityGroupRules=[{"SecurityGroupRuleId": door.rule, "SecurityGroupRule": changed}],
    )
    result = world.ok("why", door.rule)
    assert "opens 22/tcp to 198.51.100.0/24" in result.out
    assert alice.id in result.out.splitlines()[-1]


def test_a_grant_that_claims_it_and_is_not_on_record_is_shown_as_such(world: World) -> None:
    alice = world.record("alice")
    door = Door.open(world, alice.id)
    unknown = Grant.decide(
        alice.principal, SOURCE, alice.targets, alice.requested_at, alice.expires_at, nonce="other"
    )
    door.claim(unknown)
    assert f"{unknown.id}  ?          not on record" in world.ok("why", door.rule).out


def test_a_rule_that_ec2_does_not_know_and_an_egress_rule_are_errors(world: World) -> None:
    result = world.run("why", "sgr-0123456789abcdef0")
    assert result.code == 1
    assert "EC2 knows no rule sgr-0123456789abcdef0" in result.err
    assert "`knock-admin trail --format jsonl | grep sgr-0123456789abcdef0`" in result.err
    egress = world.ec2.describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": [world.office]}]
    )["SecurityGroupRules"][0]
    result = world.run("why", egress["SecurityGroupRuleId"])
    assert (result.code, "a rule for the way out" in result.err) == (1, True)
