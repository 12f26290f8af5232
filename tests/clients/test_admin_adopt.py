"""`knock-admin target adopt`, `release` and `rm`: groups that were there before Knock, and who is in."""

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
    """No knock is ever on its way here."""
    monkeypatch.setattr(adopt, "FLIGHT", 0.0)


def tags(world: World, group: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in world.group(group).get("Tags", [])}


def database(world: World) -> str:
    """Make a group as Terraform may have: with tags, a rule and a way out, attached to something."""
    group = world.make_group("orders-db")
    world.ec2.create_tags(Resources=[group], Tags=[{"Key": "terraform", "Value": "yes"}])
    world.open_rule(group, "10.0.0.0/8", port=5432)
    world.make_interface(group)
    return group


def adopted(world: World) -> str:
    group = database(world)
    world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    return group


def ends(world: World, then: Callable[[str], Any] = lambda _: None) -> None:
    """Let the revoke function end grants."""

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        name = payload["grant"]["grant_id"]
        then(name)
        return {"grant_id": name, "status": "revoked", "revoked": ["sgr-0a"], "kept": []}

    world.functions["revoke"] = revoke


def test_adopting_tags_a_group_and_changes_nothing_else(world: World) -> None:
    """Break it: take the adopted group's way out away, as that of a new group is."""
    group = database(world)
    before = world.group(group)
    ran = world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert f"adopted {group}\nThe target orders opens 5432/tcp with 1 group, for IPv4.\n" == ran.out
    wanted = {"knock:stack": STACK, "knock:target": "orders", "knock:ports": "5432/tcp"}
    assert tags(world, group) == {"terraform": "yes", "knock:families": "ipv4", **wanted}
    after = world.group(group)
    for unchanged in ("IpPermissions", "IpPermissionsEgress", "GroupName"):
        assert after[unchanged] == before[unchanged]
    seen = world.ok("target", "ls", "orders", "--json").json["targets"][0]
    assert (seen["families"], seen["groups"][0]["adopted"]) == (["ipv4"], True)
    assert re.search(rf"orders +5432/tcp +IPv4 +{group} +adopted ", world.ok("target", "ls").out)


def test_adopting_twice_changes_nothing(world: World) -> None:
    group = adopted(world)
    again = ["target", "adopt", "orders", group]
    assert world.ok(*again, "--dry-run").out == "This would change nothing.\n"
    assert f"{group} is of the target orders already" in world.ok(*again).out


def test_groups_attached_to_different_things_are_no_pool(world: World) -> None:
    """A knock fills one group of a pool: the other things would stay shut."""
    one, other = world.make_group("one"), world.make_group("other")
    first, _ = world.make_interface(one), world.make_interface(other)
    ran = world.run("target", "adopt", "apps", one, other, "--ports", "443/tcp")
    assert (ran.code, "attached to different things" in ran.err) == (1, True)
    assert f"{one}: interface {first}" in ran.err
    assert "knock:target" not in tags(world, one)


def test_a_group_joins_a_pool_that_is_attached_alike(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    ran = world.ok("target", "adopt", "bastion", world.office)
    assert "opens 22/tcp with 2 groups" in ran.out
    assert tags(world, world.office)["knock:ports"] == "22/tcp"


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"knock:stack": "other", "knock:target": "x"}, "is of the stack other (target x)"),
        ({"knock:stack": STACK, "knock:target": "x"}, "is of the target x, and a group is of one target"),
        ({"knock:unfinished": f"{STACK}/x"}, "`target add x` has not finished"),
        ({"knock:stack": STACK, "knock:leaving": f"{STACK}/x"}, "`knock-admin target release x` goes on"),
    ],
)
def test_a_group_of_somebody_else_is_refused(world: World, theirs: dict[str, str], said: str) -> None:
    group = database(world)
    world.ec2.create_tags(
        Resources=[group], Tags=[{"Key": key, "Value": value} for key, value in theirs.items()]
    )
    ran = world.run("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert (ran.code, said in ran.err) == (1, True), ran.err


def test_a_group_that_is_not_there_is_named(world: World) -> None:
    ran = world.run("target", "adopt", "orders", "sg-0123456789abcdef0", "--ports", "5432/tcp")
    assert (ran.code, "Groups are named by id" in ran.err, "Traceback" in ran.err) == (1, True, False)
    assert world.run("target", "adopt", "orders", "orders-db", "--ports", "5432/tcp").code == 2
    assert world.run("target", "adopt", "orders", database(world)).code == 2, "a new target needs ports"


def test_a_group_that_is_nearly_full_is_warned_of(world: World) -> None:
    group = database(world)
    for number in range(40):
        world.open_rule(group, f"198.51.100.{number}/32")
    ran = world.ok("target", "adopt", "orders", group, "--ports", "5432/tcp")
    assert f"{group} has room for 19 rules more" in ran.err


# ---------------------------------------------------------------------------- release


def test_releasing_leaves_the_group_as_it_was(world: World) -> None:
    group = adopted(world)
    before = world.group(group)
    ran = world.ok("target", "release", "orders")
    assert f"released {group}\nThere is no target orders any more." in ran.out
    assert tags(world, group) == {"terraform": "yes"}
    assert world.group(group)["IpPermissions"] == before["IpPermissions"]
    assert world.run("target", "ls", "orders").code == 1


def test_a_target_with_somebody_in_is_not_released_and_who_it_is_is_said(world: World) -> None:
    group = adopted(world)
    grant = world.record("alice", target="orders", group=group)
    ran = world.run("target", "release", "orders")
    assert (ran.code, f"{grant.id}  alice" in ran.err, "--revoke" in ran.err) == (1, True, True)
    assert tags(world, group)["knock:target"] == "orders"


def test_a_released_targets_grants_are_ended_while_the_functions_may_still_touch_it(world: World) -> None:
    """Mutation: clients/knock_admin/adopt.py: `gone = (tags.TARGET, tags.PORTS, tags.FAMILIES)` ->
    `gone = (tags.TARGET, tags.PORTS, tags.FAMILIES, tags.STACK)`
    """
    group = adopted(world)
    world.record("alice", target="orders", group=group)
    seen: list[dict[str, str]] = []
    ends(world, lambda _: seen.append(tags(world, group)))
    ran = world.ok("target", "release", "orders", "--revoke")
    assert "revoked; rules gone: sgr-0a" in ran.out
    assert (seen[0]["knock:stack"], "knock:target" in seen[0]) == (STACK, False)
    assert tags(world, group) == {"terraform": "yes"}


def test_a_rule_of_knocks_keeps_the_tag_without_which_nobody_could_close_it(world: World) -> None:
    """Mutation: clients/knock_admin/adopt.py: `    _refuse_rules(stack, chosen)` -> `    pass`"""
    group = adopted(world)
    made = world.ec2.authorize_security_group_ingress(
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
    ran = world.run("target", "release", "orders")
    assert (ran.code, f"Knock still has 1 rule there ({made})" in ran.err) == (1, True)
    assert tags(world, group)["knock:stack"] == STACK
    world.ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[made])
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
    done = number == 3 and after
    assert world.run("target", "release", "orders").code == (1 if done else 0)
    assert tags(world, group) == {"terraform": "yes"}


def test_one_group_of_a_pool_is_released_and_the_target_goes_on(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("target", "adopt", "bastion", world.office)
    ran = world.ok("target", "release", "bastion", world.office)
    assert "The target bastion goes on with sg-" in ran.out
    assert tags(world, world.office) == {}
    ran = world.run("target", "release", "bastion", world.office)
    assert (ran.code, "not of the target bastion" in ran.err) == (1, True)


# ---------------------------------------------------------------------------- rm


def test_what_knock_admin_did_not_make_is_not_deleted(world: World) -> None:
    """Break it: let `rm` delete every group of the target, as it once did."""
    group = adopted(world)
    ran = world.run("target", "rm", "orders")
    assert (ran.code, f"`knock-admin target release orders {group}`" in ran.err) == (1, True)
    assert world.group(group)


def test_a_group_is_untagged_before_it_is_deleted(world: World) -> None:
    """Or the tagging API lists it for hours, and every knock for all targets is for that one too."""
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


def test_rm_says_who_is_in_and_ends_them_when_told_to(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    grant = world.record("alice")
    ran = world.run("target", "rm", "bastion")
    assert (ran.code, f"{grant.id}  alice" in ran.err) == (1, True)
    assert "Say --revoke to end them" in ran.err
    ends(world)
    ran = world.ok("target", "rm", "bastion", "--revoke")
    assert f"{grant.id}: revoked" in ran.out
    assert "deleted sg-" in ran.out


def test_what_could_not_be_closed_keeps_the_target(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    world.record("alice")

    def fails(_: object) -> None:
        raise RuntimeError("no")

    world.functions["revoke"] = fails
    ran = world.run("target", "rm", "bastion", "--revoke")
    assert (ran.code, "nothing else was done" in ran.err, "NOT closed" in ran.err) == (1, True, True)
    world.ok("target", "ls", "bastion")


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_rm_asks_at_a_terminal(world: World, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: f"{answer}\n", raising=False)
    ran = world.run("target", "rm", "bastion")
    assert (ran.code, "`target release bastion` would leave them. [y/N]" in ran.err) == (code, True)


def test_detaching_says_who_is_in_and_leaves_the_choice(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    grant = world.record("alice")
    attached = world.groups_of(world.eni)
    ran = world.run("target", "detach", "bastion", "--all")
    assert (ran.code, f"{grant.id}  alice" in ran.err, "--leave-grants" in ran.err) == (1, True, True)
    assert world.groups_of(world.eni) == attached
    ran = world.ok("target", "detach", "bastion", "--all", "--leave-grants")
    assert "1 live grant of the target bastion left open" in ran.err
    assert world.groups_of(world.eni) == [world.office]
    world.ok("target", "add", "bastion", "--eip", world.eip)
    ends(world)
    ran = world.ok("target", "detach", "bastion", "--eip", world.eip, "--revoke")
    assert f"{grant.id}: revoked" in ran.out


def test_a_release_whose_grants_could_not_be_closed_leaves_knock_its_right_to_close_them(
    world: World,
) -> None:
    group = adopted(world)
    world.record("alice", target="orders", group=group)

    def fails(_: object) -> None:
        raise RuntimeError("no")

    world.functions["revoke"] = fails
    ran = world.run("target", "release", "orders", "--revoke")
    assert (ran.code, "Knock may still close its rules" in ran.err) == (1, True)
    assert tags(world, group)["knock:stack"] == STACK
    assert "knock:target" not in tags(world, group)
    ends(world)
    world.ok("target", "release", "orders", "--revoke")
    assert tags(world, group) == {"terraform": "yes"}
