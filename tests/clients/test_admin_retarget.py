"""`knock-admin target set` and `rename`, with live grants; and the length of a tag's value."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.admin_support import World, failing_at, make_world

world = pytest.fixture(make_world)


def tags(world: World, target: str) -> list[dict[str, str]]:
    answer = world.ec2.describe_security_groups(Filters=[{"Name": "tag:knock:target", "Values": [target]}])
    return [{tag["Key"]: tag["Value"] for tag in group["Tags"]} for group in answer["SecurityGroups"]]


def rights(world: World) -> dict[str, str]:
    keys = world.gateway.get_api_keys()["items"]
    return {key["name"]: key["tags"].get("knock:targets", "") for key in keys}


def make(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--groups", "2", "--eip", world.eip)


def stub_revoke(world: World) -> list[str]:
    """Let the revoke function revoke every grant; give the list that their ids go to."""
    ended: list[str] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        ended.append(payload["grant"]["grant_id"])
        return {"grant_id": ended[-1], "status": "revoked", "revoked": ["sgr-0a"], "kept": []}

    world.functions["revoke"] = revoke
    return ended


# ---------------------------------------------------------------------------- set


def test_ports_are_changed_on_every_group_and_live_grants_keep_the_old_ones(world: World) -> None:
    make(world)
    grant, ended = world.record("alice"), stub_revoke(world)
    result = world.ok("target", "set", "bastion", "--ports", "443/tcp", "80/tcp")
    assert [group["knock:ports"] for group in tags(world, "bastion")] == ["80/tcp 443/tcp"] * 2
    assert result.out == "bastion: knock:ports is 80/tcp 443/tcp\n"
    assert "1 live grant of bastion keeps the old ports, and its rules until it ends:" in result.err
    assert f"{grant.id}  alice" in result.err
    assert "For about a minute, knocks for it may be refused" in result.err
    assert ended == []
    assert world.ok("target", "set", "bastion", "--ports", "80/tcp", "443/tcp").out == (
        "bastion: nothing to change\n"
    )


def test_changing_ports_with_revoke_ends_live_grants(world: World) -> None:
    make(world)
    grant, ended = world.record("alice"), stub_revoke(world)
    result = world.ok("target", "set", "bastion", "--ports", "2222/tcp", "--revoke")
    assert (ended, f"{grant.id}: revoked" in result.out) == ([grant.id], True)


def test_ports_that_differ_between_groups_are_made_equal(world: World) -> None:
    make(world)
    group = world.ec2.describe_security_groups(Filters=[{"Name": "tag:knock:target", "Values": ["bastion"]}])
    world.ec2.create_tags(
        Resources=[group["SecurityGroups"][0]["GroupId"]], Tags=[{"Key": "knock:ports", "Value": "1/tcp"}]
    )
    assert (
        "`knock-admin target set bastion --ports …`"
        in world.run("target", "grow", "bastion", "--groups", "3").err
    )
    world.ok("target", "set", "bastion", "--ports", "22/tcp")
    assert [group["knock:ports"] for group in tags(world, "bastion")] == ["22/tcp"] * 2


def test_new_ports_that_another_group_opens_to_the_world_are_warned_of(world: World) -> None:
    make(world)
    world.open_rule(world.office, "0.0.0.0/0", port=443)
    assert "guards nothing there" in world.ok("target", "set", "bastion", "--ports", "443/tcp").err


@pytest.mark.parametrize(
    "more", [[], ["--families", "auto", "ipv4"], ["--families", "ipv5"], ["--ports", "22"]]
)
def test_set_without_a_change_or_with_a_malformed_one_is_a_usage_error(world: World, more: list[str]) -> None:
    make(world)
    assert world.run("target", "set", "bastion", *more).code == 2


def test_ports_are_changed_although_the_trail_cannot_be_read(world: World) -> None:
    make(world)
    world.sdb.delete_domain(DomainName="knock-trail-1c2fa620")
    result = world.ok("target", "set", "bastion", "--ports", "2222/tcp")
    assert "warning: who is in cannot be said" in result.err


# ---------------------------------------------------------------------------- rename


def keys(world: World) -> None:
    for name, targets in (("alice", ["bastion", "web"]), ("bob", ["web"]), ("ops", ["*"])):
        world.ok("key", "add", name, "--targets", *targets, "--max", "8h")


RENAMED = {"alice": "gate web", "bob": "web", "ops": "@all"}


def test_a_target_is_renamed_in_its_groups_and_in_the_keys_that_may_open_it(world: World) -> None:
    make(world)
    keys(world)
    grant, ended = world.record("alice"), stub_revoke(world)
    result = world.ok("target", "rename", "bastion", "gate")
    assert "bastion is gate now, with 2 groups.\nalice (" in result.out
    assert (len(tags(world, "gate")), tags(world, "bastion")) == (2, [])
    assert rights(world) == RENAMED
    assert f"{grant.id}  alice" in result.err
    assert "Who knocks for bastion by name has to say gate" in result.err
    assert ended == []


def test_a_key_has_the_new_name_before_the_target_has_it(world: World) -> None:
    """Otherwise keys that name the target could not open it in between."""
    make(world)
    keys(world)
    calls = world.ok("target", "rename", "bastion", "gate", "--dry-run", "--json").json["calls"]
    assert [call["call"] for call in calls] == [
        "apigateway:TagResource",
        "ec2:CreateTags",
        "apigateway:TagResource",
    ]
    assert calls[0]["parameters"]["tags"] == {"knock:targets": "bastion gate web"}
    assert calls[2]["parameters"]["tags"] == {"knock:targets": "gate web"}


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rename_that_failed_at_any_call_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    make(world)
    keys(world)
    with failing_at(monkeypatch, number, after=after):
        assert world.run("target", "rename", "bastion", "gate").code == 1
    renamed = number == 3 and after
    result = world.run("target", "rename", "bastion", "gate")
    assert (result.code, "has no target bastion" in result.err) == ((1, True) if renamed else (0, False))
    assert (len(tags(world, "gate")), rights(world)) == (2, RENAMED)


def test_a_target_is_not_renamed_to_an_existing_one(world: World) -> None:
    make(world)
    world.ok("target", "add", "web", "--ports", "80/tcp")
    result = world.run("target", "rename", "bastion", "web")
    assert (result.code, "two targets do not become one" in result.err) == (1, True)
    assert world.run("target", "rename", "nope", "gate").code == 1
    assert world.run("target", "rename", "bastion", "bastion").code == 2


def test_a_key_that_cannot_hold_the_new_name_is_named_before_anything_is_changed(world: World) -> None:
    make(world)
    long = ["bastion", *(f"target-with-a-long-name-{number}" for number in range(9))]
    world.ok("key", "add", "alice", "--targets", *long, "--max", "8h")
    result = world.run("target", "rename", "bastion", "gate-with-quite-a-long-name-too")
    assert (result.code, "The key alice (" in result.err, "a tag holds 256" in result.err) == (1, True, True)
    assert len(tags(world, "bastion")) == 2


def test_a_list_of_targets_that_no_tag_holds_points_to_every_target(world: World) -> None:
    long = [f"target-with-a-long-name-{number}" for number in range(11)]
    result = world.run("key", "add", "alice", "--targets", *long, "--max", "8h")
    assert result.code == 2
    assert "these 11 targets take 286 characters, and a tag holds 256: name fewer, or * (@all)" in result.err


def test_ports_that_no_tag_holds_are_refused(world: World) -> None:
    ports = [f"{number}/tcp" for number in range(20_001, 20_060, 2)]
    result = world.run("target", "add", "bastion", "--ports", *ports)
    assert (result.code, "and a tag holds 256: name ranges" in result.err) == (2, True)
