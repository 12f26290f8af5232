"""`knock-admin target adopt`, `release` and `rm`: groups that others made, and live grants."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from knock_admin import adopt
from tests.clients.admin_support import STACK, World, failing_at, make_world

world = pytest.fixture(make_world)


@pytest.fixture(autouse=True)
def no_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for knocks that are still under way."""
    monkeypatch.setattr(adopt, "FLIGHT", 0.0)


def tags(world: World, group: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in world.group(group).get("Tags", [])}


def database(world: World) -> str:
    """Make a group as Terraform may have: with tags, a rule and egress, attached to an interface."""
    group = world.make_group("orders-db")
    world.ec2.create_tags(Resources=[group], Tags=[{"Key": "terraform", "Value": "yes"}])
    world.open_rule(group, "10.0.0.0/8", port=5432)
    world.make_interface(group)
    return group


def adopted(world: World) -> str:
    group = database(world)
    world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    return group


def stub_revoke(world: World, at_call: Callable[[], Any] = lambda: None) -> None:
    """Let the revoke function revoke every grant; `at_call` runs first."""

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        at_call()
        return {
            "grant_id": payload["grant"]["grant_id"],
            "status": "revoked",
            "revoked": ["sgr-0a"],
            "kept": [],
        }

    world.functions["revoke"] = revoke


def test_adopting_tags_a_group_and_changes_nothing_else(world: World) -> None:
    """Break it: revoke the adopted group's egress rule, as that of a new group is."""
    group = database(world)
    before = world.group(group)
    result = world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert f"adopted {group}\nThe target orders opens 5432/tcp with 1 group, for IPv4.\n" == result.out
    wanted = {"knock:stack": STACK, "knock:target": "orders", "knock:ports": "5432/tcp"}
    assert tags(world, group) == {"terraform": "yes", "knock:families": "ipv4", **wanted}
    after = world.group(group)
    for unchanged in ("IpPermissions", "IpPermissionsEgress", "GroupName"):
        assert after[unchanged] == before[unchanged]
    target = world.ok("target", "ls", "orders", "--json").json["targets"][0]
    assert (target["families"], target["groups"][0]["adopted"]) == (["ipv4"], True)
    assert re.search(rf"orders +5432/tcp +IPv4 +{group} +adopted ", world.ok("target", "ls").out)


def test_adopting_twice_changes_nothing(world: World) -> None:
    group = adopted(world)
    again = ["target", "adopt", "orders", group]
    assert world.ok(*again, "--dry-run").out == "This would change nothing.\n"
    assert f"{group} is of the target orders already" in world.ok(*again).out


def test_groups_attached_to_different_interfaces_are_no_pool(world: World) -> None:
    """A knock opens one group of a pool, so it would not open the other interface."""
    group, other_group = world.make_group("one"), world.make_group("other")
    interface, _ = world.make_interface(group), world.make_interface(other_group)
    result = world.run("target", "adopt", "apps", group, other_group, "--ports", "443/tcp")
    assert (result.code, "attached to different things" in result.err) == (1, True)
    assert f"{group}: interface {interface}" in result.err
    assert "knock:target" not in tags(world, group)


def test_a_group_joins_a_pool_that_is_attached_alike(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    result = world.ok("target", "adopt", "bastion", world.office)
    assert "opens 22/tcp with 2 groups" in result.out
    assert tags(world, world.office)["knock:ports"] == "22/tcp"


@pytest.mark.parametrize(
    ("group_tags", "message"),
    [
        ({"knock:stack": "other", "knock:target": "x"}, "is of the stack other (target x)"),
        ({"knock:stack": STACK, "knock:target": "x"}, "is of the target x, and a group is of one target"),
        ({"knock:unfinished": f"{STACK}/x"}, "`target add x` has not finished"),
        ({"knock:stack": STACK, "knock:leaving": f"{STACK}/x"}, "`knock-admin target release x` goes on"),
    ],
)
def test_a_group_of_another_stack_or_target_is_refused(
    world: World, group_tags: dict[str, str], message: str
) -> None:
    group = database(world)
    world.tag(group, group_tags)
    result = world.run("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert (result.code, message in result.err) == (1, True), result.err


def test_a_group_that_does_not_exist_is_an_error_that_says_what_to_name(world: World) -> None:
    result = world.run("target", "adopt", "orders", "sg-0123456789abcdef0", "--ports", "5432/tcp")
    assert (result.code, "Groups are named by id" in result.err, "Traceback" in result.err) == (
        1,
        True,
        False,
    )
    assert world.run("target", "adopt", "orders", "orders-db", "--ports", "5432/tcp").code == 2
    assert world.run("target", "adopt", "orders", database(world)).code == 2, "a new target needs ports"


def test_adopting_a_group_that_is_nearly_full_warns(world: World) -> None:
    group = database(world)
    for number in range(40):
        world.open_rule(group, f"198.51.100.{number}/32")
    result = world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert f"{group} has room for 19 rules more" in result.err


# ---------------------------------------------------------------------------- release


def test_releasing_leaves_the_group_as_it_was(world: World) -> None:
    group = adopted(world)
    before = world.group(group)
    result = world.ok("target", "release", "orders")
    assert f"released {group}\nThere is no target orders any more." in result.out
    assert tags(world, group) == {"terraform": "yes"}
    assert world.group(group)["IpPermissions"] == before["IpPermissions"]
    assert world.run("target", "ls", "orders").code == 1


def test_a_target_with_live_grants_is_not_released_and_they_are_listed(world: World) -> None:
    group = adopted(world)
    grant = world.record("alice", target="orders", group=group)
    result = world.run("target", "release", "orders")
    assert (result.code, f"{grant.id}  alice" in result.err, "--revoke" in result.err) == (1, True, True)
    assert tags(world, group)["knock:target"] == "orders"


def test_a_released_targets_grants_are_ended_before_its_stack_tag_is_deleted(world: World) -> None:
    """Mutation: clients/knock_admin/adopt.py: `gone = (tags.TARGET, tags.PORTS, tags.FAMILIES)` ->
    `gone = (tags.TARGET, tags.PORTS, tags.FAMILIES, tags.STACK)`
    """
    group = adopted(world)
    world.record("alice", target="orders", group=group)
    tags_at_revoke: list[dict[str, str]] = []
    stub_revoke(world, lambda: tags_at_revoke.append(tags(world, group)))
    result = world.ok("target", "release", "orders", "--revoke")
    assert "revoked; rules gone: sgr-0a" in result.out
    (group_tags,) = tags_at_revoke
    assert (group_tags["knock:stack"], "knock:target" in group_tags) == (STACK, False)
    assert tags(world, group) == {"terraform": "yes"}


def test_a_group_with_a_rule_of_knocks_keeps_the_stack_tag_that_revoking_needs(world: World) -> None:
    """Mutation: clients/knock_admin/adopt.py: `    _refuse_rules(stack, chosen)` -> `    pass`"""
    group = adopted(world)
    rule = world.ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 5432,
                "ToPort": 5432,
                "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
            }
        ],
        TagSpecifications=[
            {"ResourceType": "security-group-rule", "Tags": [{"Key": "knock:stack", "Value": STACK}]}
        ],
    )["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    result = world.run("target", "release", "orders")
    assert (result.code, f"Knock still has 1 rule there ({rule})" in result.err) == (1, True)
    assert tags(world, group)["knock:stack"] == STACK
    world.ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[rule])
    world.ok("target", "release", "orders")
    assert tags(world, group) == {"terraform": "yes"}


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_release_that_failed_at_any_call_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    group = adopted(world)
    with failing_at(monkeypatch, number, after=after):
        assert world.run("target", "release", "orders").code == 1
    released = number == 3 and after
    assert world.run("target", "release", "orders").code == (1 if released else 0)
    assert tags(world, group) == {"terraform": "yes"}


def test_one_group_of_a_pool_is_released_and_the_target_goes_on(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("target", "adopt", "bastion", world.office)
    result = world.ok("target", "release", "bastion", world.office)
    assert "The target bastion goes on with sg-" in result.out
    assert tags(world, world.office) == {}
    result = world.run("target", "release", "bastion", world.office)
    assert (result.code, "not of the target bastion" in result.err) == (1, True)


# ---------------------------------------------------------------------------- rm


def test_rm_deletes_no_group_that_knock_admin_did_not_make(world: World) -> None:
    """Break it: let `rm` delete every group of the target, as it once did."""
    group = adopted(world)
    result = world.run("target", "rm", "orders")
    assert (result.code, f"`knock-admin target release orders {group}`" in result.err) == (1, True)
    assert world.group(group)


def test_a_group_is_untagged_before_it_is_deleted(world: World) -> None:
    """The tagging API lists a deleted group for hours: a knock for all targets would include it."""
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    planned = world.ok("target", "rm", "bastion", "--dry-run").out
    assert re.findall(r"\d+\. ec2:(\w+)", planned) == ["CreateTags", "DeleteTags", "DeleteSecurityGroup"]
    assert '{"Key": "knock:stack"}, {"Key": "knock:target"}' in planned


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_rm_that_failed_at_any_call_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    with failing_at(monkeypatch, number, after=False):
        assert world.run("target", "rm", "bastion").code == 1
    world.ok("target", "rm", "bastion")
    assert "knock-bastion-1" not in str(world.ec2.describe_security_groups()["SecurityGroups"])


def test_rm_lists_live_grants_and_ends_them_with_revoke(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    grant = world.record("alice")
    result = world.run("target", "rm", "bastion")
    assert (result.code, f"{grant.id}  alice" in result.err) == (1, True)
    assert "Say --revoke to end them" in result.err
    stub_revoke(world)
    result = world.ok("target", "rm", "bastion", "--revoke")
    assert f"{grant.id}: revoked" in result.out
    assert "deleted sg-" in result.out


def test_rm_keeps_a_target_whose_grants_could_not_be_closed(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    world.record("alice")

    def fail(_: object) -> None:
        raise RuntimeError("no")

    world.functions["revoke"] = fail
    result = world.run("target", "rm", "bastion", "--revoke")
    assert (result.code, "nothing else was done" in result.err, "NOT closed" in result.err) == (1, True, True)
    world.ok("target", "ls", "bastion")


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_rm_asks_at_a_terminal_and_deletes_after_a_yes_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: f"{answer}\n", raising=False)
    result = world.run("target", "rm", "bastion")
    assert (result.code, "`target release bastion` would leave them. [y/N]" in result.err) == (code, True)
    assert world.run("target", "ls", "bastion").code == 1 - code


def test_detaching_lists_live_grants_and_leaves_or_ends_them_as_told(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    grant = world.record("alice")
    attached = world.groups_of(world.eni)
    result = world.run("target", "detach", "bastion", "--all")
    assert (result.code, f"{grant.id}  alice" in result.err, "--leave-grants" in result.err) == (
        1,
        True,
        True,
    )
    assert world.groups_of(world.eni) == attached
    result = world.ok("target", "detach", "bastion", "--all", "--leave-grants")
    assert "1 live grant of the target bastion left open" in result.err
    assert world.groups_of(world.eni) == [world.office]
    world.ok("target", "add", "bastion", "--eip", world.eip)
    stub_revoke(world)
    result = world.ok("target", "detach", "bastion", "--eip", world.eip, "--revoke")
    assert f"{grant.id}: revoked" in result.out


def test_a_release_whose_grants_could_not_be_closed_leaves_knock_the_right_to_close_them(
    world: World,
) -> None:
    group = adopted(world)
    world.record("alice", target="orders", group=group)

    def fail(_: object) -> None:
        raise RuntimeError("no")

    world.functions["revoke"] = fail
    result = world.run("target", "release", "orders", "--revoke")
    assert (result.code, "Knock may still revoke its rules" in result.err) == (1, True)
    assert tags(world, group)["knock:stack"] == STACK
    assert "knock:target" not in tags(world, group)
    stub_revoke(world)
    world.ok("target", "release", "orders", "--revoke")
    assert tags(world, group) == {"terraform": "yes"}
