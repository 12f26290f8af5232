"""`knock-admin key`: rights as tags, values shown once, rotation, and commands that fail half-way."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from knock_admin.aws import LOUD
from knock_admin.errors import AdminError
from tests.clients.admin_support import STACK, World, at, client, failing_at, make_world

world = pytest.fixture(make_world)


@pytest.fixture
def _target(world: World) -> None:
    world.ok("target", "add", "bastion", "--ports", "22/tcp")


def all_keys(world: World) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = world.gateway.get_api_keys(includeValues=True)["items"]
    return keys


def in_plan(world: World) -> set[str]:
    plan = next(plan["id"] for plan in world.gateway.get_usage_plans()["items"] if plan["name"] == "knock")
    return {key["id"] for key in world.gateway.get_usage_plan_keys(usagePlanId=plan)["items"]}


def add(world: World, name: str = "alice", *more: str) -> Any:
    return world.ok("key", "add", name, "--targets", "bastion", "--max", "8h", *more)


@pytest.mark.usefixtures("_target")
def test_a_key_has_its_rights_as_tags_is_in_the_plan_and_its_value_is_printed_alone(world: World) -> None:
    result = add(world, "alice", "--operator", "--any-source", "/28 /60", "--max-live", "200")
    (key,) = all_keys(world)
    assert result.out == key["value"] + "\n"
    assert result.err == f"The key alice ({key['id']}). This is its value; it is not shown again:\n"
    assert key["tags"] == {
        "knock:stack": "knock",
        "knock:name": "alice",
        "knock:targets": "bastion",
        "knock:max-duration": "8h",
        "knock:max-live": "200",
        "knock:any-source": "/28 /60",
        "knock:operator": "true",
    }
    assert key["enabled"]
    assert in_plan(world) == {key["id"]}


def test_no_value_gets_into_a_log_however_much_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Break it: leave botocore's loggers at their levels: their debug messages have whole answers."""
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    value = add(world).out.strip()
    (member,) = world.gateway.get_usage_plan_keys(usagePlanId=plan)["items"]
    assert member["value"] == value, "GetUsagePlanKeys sends values, as on AWS"
    for library in LOUD:
        caplog.set_level(logging.NOTSET, logger=library)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore.parsers").debug("heard")
    assert "heard" in caplog.text
    results = [
        world.ok("key", "ls"),
        world.ok("key", "set", "alice", "--max", "1h"),
        world.run("why", "alice"),
    ]
    assert value not in caplog.text + "".join(result.out + result.err for result in results)
    new = world.ok("key", "rotate", "alice").out.strip()
    assert new not in caplog.text


def test_rights_that_were_not_given_leave_no_tag(world: World) -> None:
    add(world)
    tags = {"knock:stack", "knock:name", "knock:targets", "knock:max-duration"}
    assert set(all_keys(world)[0]["tags"]) == tags


@pytest.mark.parametrize("name", ["", " alice", "O'Brien", "a\tb", "x" * 129])
def test_a_name_that_no_tag_can_hold_is_a_usage_error(world: World, name: str) -> None:
    """Break it: accept any name; the grants would be on record under another."""
    result = world.run("key", "add", name, "--targets", "bastion", "--max", "8h")
    assert (result.code, "a key's name is" in result.err, all_keys(world)) == (2, True, [])


@pytest.mark.parametrize("number", ["0", "10000", "-1", "many", "1.5"])
def test_a_max_live_that_is_no_number_of_grants_is_a_usage_error(world: World, number: str) -> None:
    assert world.run("key", "add", "a", "--targets", "b", "--max", "8h", "--max-live", number).code == 2


def test_a_star_is_written_as_all(world: World) -> None:
    world.ok("key", "add", "ops", "--targets", "*", "--max", "1d")
    assert all_keys(world)[0]["tags"]["knock:targets"] == "@all"


def test_a_target_that_does_not_exist_yet_is_warned_of(world: World) -> None:
    assert "warning: there is no target bastion yet" in add(world).err


@pytest.mark.parametrize(
    "command",
    [["add", "ci", "--targets", "web", "--max", "30d"], ["set", "alice", "--max", "30d"]],
    ids=["add", "set"],
)
def test_a_duration_beyond_the_stacks_is_warned_of(world: World, command: list[str]) -> None:
    add(world)
    result = world.ok("key", *command)
    assert f"{command[1]}: may have grants of 30d, and the stack allows 1d (MaxDuration)" in result.err
    assert "MaxDuration" not in world.ok("key", "set", command[1], "--max", "24h").err


def test_a_duration_beyond_the_stacks_in_a_file_is_warned_of(world: World, tmp_path: Path) -> None:
    people = tmp_path / "people.csv"
    people.write_text("name,targets,max\ncarol,web,30d\ndave,web,1h\n")
    result = world.ok("key", "add", "--from", str(people), "--values", str(tmp_path / "keys.csv"))
    warnings = [line for line in result.err.splitlines() if "MaxDuration" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: carol: may have grants of 30d")


def test_rights_other_than_a_duration_change_where_no_function_says_the_longest(world: World) -> None:
    """As when the stack's functions are being deployed anew."""
    add(world)
    for module in ("api", "authorize"):
        client("lambda").delete_function(FunctionName=f"{STACK}-{module}")
    world.ok("key", "set", "alice", "--operator")


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    add(world)
    result = world.run("key", "add", "alice", "--targets", "bastion", "--max", "8h")
    assert (result.code, "has a key alice already" in result.err) == (1, True)
    assert len(all_keys(world)) == 1


def test_no_command_shows_the_value_again_that_key_add_has_shown(world: World) -> None:
    add(world)
    value = all_keys(world)[0]["value"]
    for command in (
        ["key", "ls"],
        ["key", "ls", "--json"],
        ["key", "set", "alice", "--max", "4h"],
        ["key", "disable", "alice"],
        ["key", "enable", "alice", "--json"],
        ["key", "rotate", "alice", "--dry-run"],
        ["key", "rm", "alice", "--dry-run", "--json"],
        ["doctor"],
    ):
        result = world.run(*command)
        assert value not in result.out + result.err


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_failed_is_completed_by_running_it_again_and_shows_the_value(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    command = ["key", "add", "alice", "--targets", "bastion", "--max", "8h"]
    assert world.ok(*command, "--dry-run").out.count(". apigateway:") == 2
    with failing_at(monkeypatch, number, after=after):
        broken = world.run(*command)
    assert broken.code == 1
    values = {key["value"] for key in all_keys(world)}
    assert not any(value in broken.out + broken.err for value in values)
    if number == 2 and after:  # only the value was left to print, and it may have been printed
        result = world.run(*command)
        assert (result.code, "If nobody has seen its value" in result.err) == (1, True)
        return
    result = world.ok(*command)
    (key,) = all_keys(world)
    assert (result.out, in_plan(world)) == (key["value"] + "\n", {key["id"]})


def test_ls_shows_rights_and_faults_of_their_tags(world: World) -> None:
    add(world, "alice", "--any-source", "/28", "--max-live", "64")
    add(world, "bob", "--operator")
    key = next(key["id"] for key in all_keys(world) if key["name"] == "bob")
    world.gateway.tag_resource(
        resourceArn=f"arn:aws:apigateway:eu-central-1::/apikeys/{key}",
        tags={"knock:max-duration": "soon", "knock:operator": "yes", "knock:max-live": "lots"},
    )
    result = world.ok("key", "ls")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["NAME", "ID", "TARGETS", "MAX", "LIVE", "SOURCE", "OPERATOR", "NOTE"]
    assert lines[1][2:] == ["bastion", "8h", "64", "/28", "no"]
    assert lines[2][2:] == ["bastion", "soon", "lots", "own", "no"]
    assert f"warning: bob ({key}): the tag knock:max-duration cannot be read" in result.err
    assert "the tag knock:operator is neither true nor false; it gives no right" in result.err
    assert "the tag knock:max-live cannot be read" in result.err
    keys = {item["name"]: item for item in world.ok("key", "ls", "--json").json["keys"]}
    assert (len(keys["alice"]["faults"]), len(keys["bob"]["faults"])) == (0, 3)
    assert (keys["alice"]["max_live"], keys["bob"]["max_live"]) == (64, None)
    add(world, "carol")
    assert world.ok("key", "ls", "carol").out.splitlines()[1].split()[4] == "stack's"


def by_hand(world: World, key_name: str | None, **tags: str) -> str:
    """Make a key as the console does, in the stack's usage plan; `tags` are those of Knock."""
    optional = {} if key_name is None else {"name": key_name}
    key = world.gateway.create_api_key(
        **optional, enabled=True, tags={f"knock:{tag}": value for tag, value in tags.items()}
    )
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=key["id"], keyType="API_KEY")
    return str(key["id"])


def test_a_key_without_a_name_goes_by_its_id(world: World) -> None:
    """Break it: expect a name of every key."""
    key = by_hand(world, None, targets="bastion")
    assert world.ok("key", "ls").out.splitlines()[1].split()[:2] == [key, key]
    assert world.ok("key", "ls", key, "--json").json["keys"][0]["name"] == key
    for command in (["set", key, "--max", "1h"], ["disable", key], ["enable", key], ["rotate", key]):
        world.ok("key", *command)
    assert {item["tags"]["knock:name"] for item in all_keys(world)} == {key}
    assert (
        len([world.ok("key", "rm", key) for _ in all_keys(world)]) == 2
    )  # by its id, and by the id as a name
    assert all_keys(world) == []


def test_a_key_without_the_tag_of_its_name_gets_it_with_any_change(world: World) -> None:
    key = by_hand(world, "alice", targets="bastion")
    assert f"on record as {key}" in world.ok("key", "ls").out
    world.record(key, key=key)
    assert f"knock-admin revoke --principal {key}" in world.ok("key", "disable", "alice").err
    assert "knock:name is alice" in world.ok("key", "set", "alice", "--max", "1h").out
    assert "on record" not in world.ok("key", "ls").out
    assert "knock-admin revoke --principal alice" in world.ok("key", "disable", "alice").err


def test_a_name_on_record_is_never_written_over(world: World) -> None:
    by_hand(world, "alice", targets="bastion", name="Alice Example")
    world.ok("key", "set", "alice", "--max", "1h")
    assert all_keys(world)[0]["tags"]["knock:name"] == "Alice Example"
    world.ok("key", "rotate", "alice")
    assert [key["tags"]["knock:name"] for key in all_keys(world)] == ["Alice Example"] * 2


def test_a_key_whose_name_no_tag_can_hold_can_be_changed(world: World) -> None:
    by_hand(world, "O'Brien", targets="bastion")
    world.ok("key", "set", "O'Brien", "--max", "1h")
    world.ok("key", "rotate", "O'Brien")
    assert not any("knock:name" in key["tags"] for key in all_keys(world))


def test_max_live_is_set_and_removed(world: World) -> None:
    add(world)
    assert "knock:max-live is 50" in world.ok("key", "set", "alice", "--max-live", "50").out
    assert world.run("key", "set", "alice", "--max-live", "50", "--no-max-live").code == 2
    assert "knock:max-live is gone" in world.ok("key", "set", "alice", "--no-max-live").out
    assert "knock:max-live" not in all_keys(world)[0]["tags"]


def test_ls_shows_no_key_of_another_plan(world: World) -> None:
    world.gateway.create_api_key(name="stranger", enabled=True)
    add(world)
    assert [key["name"] for key in world.ok("key", "ls", "--json").json["keys"]] == ["alice"]
    assert world.run("key", "ls", "stranger").code == 1


def test_ls_of_an_unknown_key_is_an_error(world: World) -> None:
    result = world.run("key", "ls", "nobody")
    assert (result.code, result.out) == (1, "")
    assert "The stack knock has no key nobody" in result.err


def test_set_changes_the_named_rights_alone(world: World) -> None:
    add(world, "alice", "--operator", "--any-source", "/28")
    result = world.ok("key", "set", "alice", "--max", "4h", "--no-operator", "--targets", "bastion", "web")
    assert all_keys(world)[0]["tags"] == {
        "knock:stack": "knock",
        "knock:name": "alice",
        "knock:targets": "bastion web",
        "knock:max-duration": "4h",
        "knock:any-source": "/28",
    }
    assert "knock:max-duration is 4h" in result.out
    assert "knock:operator is gone" in result.out
    again = world.ok("key", "set", "alice", "--max", "4h")
    assert "nothing to change" in again.out
    world.ok("key", "set", "alice", "--no-any-source")
    assert "knock:any-source" not in all_keys(world)[0]["tags"]


@pytest.mark.parametrize(
    "more", [[], ["--operator", "--no-operator"], ["--max", "soon"], ["--targets", "* web"]]
)
def test_set_without_a_clear_change_is_a_usage_error(world: World, more: list[str]) -> None:
    add(world)
    assert world.run("key", "set", "alice", *more).code == 2


def test_a_key_is_disabled_and_enabled(world: World) -> None:
    add(world)
    result = world.ok("key", "disable", "alice")
    assert not all_keys(world)[0]["enabled"]
    assert "Nobody is in by it now." in result.err
    assert "disabled already" in world.ok("key", "disable", "alice").out
    assert "disabled" in world.ok("key", "ls").out
    world.ok("key", "enable", "alice")
    assert all_keys(world)[0]["enabled"]


def test_an_unknown_key_is_an_error(world: World) -> None:
    for command in ("disable", "rm", "rotate"):
        result = world.run("key", command, "nobody")
        assert (result.code, "has no key nobody" in result.err) == (1, True)


def test_a_rotation_keeps_the_old_key_valid_and_gives_the_new_one_its_rights(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, datetime(2026, 11, 23, 21, 17, 19, tzinfo=timezone.utc))
    add(world, "alice", "--any-source", "/28", "--max-live", "50")
    old = all_keys(world)[0]
    result = world.ok("key", "rotate", "alice", "--overlap", "2h")
    new = next(key for key in all_keys(world) if key["id"] != old["id"])
    assert result.out == new["value"] + "\n"
    assert (new["name"], new["tags"], new["enabled"]) == ("alice", old["tags"], True)
    retiring = next(key for key in all_keys(world) if key["id"] == old["id"])
    assert retiring["enabled"]
    assert retiring["tags"]["knock:retires-at"] == "2026-11-23T23:17:19Z"
    assert in_plan(world) == {old["id"], new["id"]}
    assert "retires" in world.ok("key", "ls").out


def test_a_command_by_name_acts_on_both_keys_of_a_rotation(world: World) -> None:
    """Break it: act on the new key only, and a stolen old one works on."""
    add(world)
    world.ok("key", "rotate", "alice")
    world.ok("key", "set", "alice", "--max", "1h")
    world.ok("key", "disable", "alice")
    assert [(key["enabled"], key["tags"]["knock:max-duration"]) for key in all_keys(world)] == [
        (False, "1h")
    ] * 2
    key_id = all_keys(world)[0]["id"]
    world.ok("key", "enable", key_id)
    assert {key["id"] for key in all_keys(world) if key["enabled"]} == {key_id}
    world.ok("key", "rm", "alice")
    assert all_keys(world) == []


def test_the_key_that_retires_is_listed_before_its_successor_though_both_are_of_one_second(
    world: World,
) -> None:
    for name in "abcdef":  # ids are random: by id alone, one in 64 runs would have all of them in order
        world.ok("key", "add", name, "--targets", "*", "--max", "8h")
        world.ok("key", "rotate", name)
    keys = world.ok("key", "ls", "--json").json["keys"]
    assert [(key["name"], bool(key["retires_at"])) for key in keys] == [
        (name, old) for name in "abcdef" for old in (True, False)
    ]


def test_a_second_rotation_is_refused_until_the_first_is_finished(world: World) -> None:
    add(world)
    world.ok("key", "rotate", "alice")
    result = world.run("key", "rotate", "alice")
    assert (result.code, "is being rotated" in result.err) == (1, True)


def test_a_rotation_is_finished_after_its_overlap_and_not_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(world)
    old = all_keys(world)[0]["id"]
    world.ok("key", "rotate", "alice", "--overlap", "2h")
    early = world.run("key", "rotate", "alice", "--finish")
    assert (early.code, "retires at" in early.out) == (1, True)
    assert len(all_keys(world)) == 2
    assert world.ok("key", "rotate", "--finish").out.startswith("The key alice")
    at(monkeypatch, datetime.now(timezone.utc) + timedelta(hours=3))
    world.ok("key", "rotate", "alice", "--finish")
    assert [key["id"] == old for key in all_keys(world)] == [False]
    assert in_plan(world) == {key["id"] for key in all_keys(world)}
    assert world.ok("key", "rotate", "--finish").out == "No key is being rotated.\n"
    result = world.run("key", "rotate", "alice", "--finish")
    assert (result.code, "No key called alice is being rotated" in result.err) == (1, True)


def test_an_old_key_without_a_successor_is_never_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(world)
    with failing_at(monkeypatch, 2, after=False):
        assert world.run("key", "rotate", "alice", "--overlap", "1h").code == 1
    at(monkeypatch, datetime.now(timezone.utc) + timedelta(hours=3))
    result = world.run("key", "rotate", "alice", "--finish")
    assert (result.code, "has no successor" in result.out) == (1, True)
    assert len(all_keys(world)) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-done", "after-it-is-done"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rotation_that_failed_is_completed_by_running_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    add(world)
    old = all_keys(world)[0]["id"]
    assert world.ok("key", "rotate", "alice", "--dry-run").out.count(". apigateway:") == 3
    with failing_at(monkeypatch, number, after=after):
        assert world.run("key", "rotate", "alice").code == 1
    assert old in in_plan(world)
    if number == 3 and after:  # only the value was left to print, and it may have been printed
        result = world.run("key", "rotate", "alice")
        (new_id,) = in_plan(world) - {old}
        assert (result.code, f"`knock-admin key rm {new_id}` and rotate again" in result.err) == (1, True)
        world.ok("key", "rm", new_id)
        world.ok("key", "rotate", "alice")
        return
    result = world.ok("key", "rotate", "alice")
    new = [key for key in all_keys(world) if key["id"] != old]
    assert [result.out] == [key["value"] + "\n" for key in new]
    assert in_plan(world) == {old, new[0]["id"]}


def test_two_keys_of_one_name_that_are_not_a_rotation_are_rotated_by_id(world: World) -> None:
    add(world)
    plan = world.gateway.get_usage_plans()["items"][0]["id"]
    second = world.gateway.create_api_key(name="alice", enabled=True, tags={"knock:stack": "knock"})["id"]
    world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=second, keyType="API_KEY")
    result = world.run("key", "rotate", "alice")
    assert (result.code, "say which by id" in result.err, second in result.err) == (1, True, True)
    world.ok("key", "rotate", second)


def test_a_retirement_that_is_no_time_is_an_error_that_names_the_key(world: World) -> None:
    add(world)
    key = all_keys(world)[0]["id"]
    world.gateway.tag_resource(
        resourceArn=f"arn:aws:apigateway:eu-central-1::/apikeys/{key}", tags={"knock:retires-at": "soon"}
    )
    result = world.run("key", "rotate", "alice")
    assert (result.code, f"The tag knock:retires-at of the key alice ({key})" in result.err) == (1, True)


def test_rotating_needs_a_key_to_rotate(world: World) -> None:
    assert world.run("key", "rotate").code == 2


def test_the_usage_plan_is_the_one_with_the_stacks_name_or_the_one_given(world: World) -> None:
    other_plan = world.gateway.create_usage_plan(name="knock-other")["id"]
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h", "--usage-plan", other_plan)
    assert in_plan(world) == set()
    assert world.ok("key", "ls", "--usage-plan", "knock-other", "--json").json["keys"][0]["name"] == "alice"
    result = world.run("key", "ls", "--usage-plan", "none")
    assert result.code == 1
    assert f"There are: knock ({world.gateway.get_usage_plans()['items'][0]['id']})" in result.err


class TestLiveGrants:
    """Disabling or deleting a key ends no grant: its live grants are listed, and ended with --revoke."""

    @pytest.mark.parametrize("command", ["disable", "rm"])
    def test_they_are_listed_with_the_command_that_ends_them(self, world: World, command: str) -> None:
        add(world)
        grant = world.record("alice", key=all_keys(world)[0]["id"])
        result = world.ok("key", command, "alice")
        assert "Still in, until its end (`knock-admin revoke --principal alice` ends it now):" in result.err
        assert grant.id in result.err

    @pytest.mark.parametrize("command", ["disable", "rm"])
    def test_they_are_ended_with_revoke(self, world: World, command: str) -> None:
        add(world)
        grant = world.record("alice", key=all_keys(world)[0]["id"])
        ended: list[str] = []

        def revoke(payload: dict[str, Any]) -> dict[str, Any]:
            ended.append(payload["grant"]["grant_id"])
            return {"grant_id": grant.id, "status": "revoked", "revoked": ["sgr-1"], "kept": []}

        world.functions["revoke"] = revoke
        result = world.ok("key", command, "alice", "--revoke")
        assert ended == [grant.id]
        assert "Still in" not in result.err

    def test_a_key_is_disabled_although_the_trail_cannot_be_read(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(world)

        def fail(*_arguments: object) -> Any:
            raise AdminError("SimpleDB did not answer")

        monkeypatch.setattr("knock_admin.trail.grants", fail)
        result = world.ok("key", "disable", "alice")
        assert "who is in cannot be said: SimpleDB did not answer" in result.err
        assert not all_keys(world)[0]["enabled"]


class TestUntil:
    def test_it_is_a_tag_and_is_shown(self, world: World) -> None:
        add(world, "alice", "--until", "2099-01-15")
        assert all_keys(world)[0]["tags"]["knock:until"] == "2099-01-15"
        assert "until 2099-01-15" in world.ok("key", "ls").out
        assert world.ok("key", "ls", "--json").json["keys"][0]["until"] == "2099-01-15"

    def test_an_end_in_the_past_is_warned_of(self, world: World) -> None:
        added = add(world, "alice", "--until", "2020-01-15T17:00:00Z")
        assert "alice: 2020-01-15T17:00:00Z is past, so the key opens nothing" in added.err
        changed = world.ok("key", "set", "alice", "--until", "2020-01-15")
        assert "alice: 2020-01-15 is past, so the key opens nothing" in changed.err
        assert "ended 2020-01-15" in world.ok("key", "ls").out

    def test_it_is_removed_again(self, world: World) -> None:
        add(world, "alice", "--until", "2099-01-15")
        world.ok("key", "set", "alice", "--no-until")
        assert "knock:until" not in all_keys(world)[0]["tags"]

    @pytest.mark.parametrize("text", ["tomorrow", "2099-02-30", "15.1.2099", "2099-01-15T17:00:00"])
    def test_a_text_that_is_no_time_is_a_usage_error(self, world: World, text: str) -> None:
        result = world.run("key", "add", "alice", "--targets", "bastion", "--max", "8h", "--until", text)
        assert (result.code, "a date like 2027-01-15" in result.err, all_keys(world)) == (2, True, [])


class TestTargets:
    def test_targets_are_added_to_and_removed_from_several_keys(self, world: World) -> None:
        for name in ("alice", "bob"):
            add(world, name)
        world.ok("key", "set", "alice", "bob", "--add-targets", "web", "db", "--remove-targets", "bastion")
        assert {key["tags"]["knock:targets"] for key in all_keys(world)} == {"web db"}
        again = world.ok("key", "set", "alice", "bob", "--add-targets", "web")
        assert again.out.count("nothing to change") == 2

    def test_no_key_is_changed_where_one_of_them_cannot_be(self, world: World) -> None:
        add(world, "alice")
        world.ok("key", "add", "ops", "--targets", "*", "--max", "1d")
        result = world.run("key", "set", "alice", "ops", "--add-targets", "web")
        assert (result.code, "ops" in result.err, "may open every target" in result.err) == (1, True, True)
        assert world.run("key", "set", "alice", "nobody", "--add-targets", "web").code == 1
        assert {key["tags"]["knock:targets"] for key in all_keys(world)} == {"bastion", "@all"}

    def test_the_last_target_is_not_removed(self, world: World) -> None:
        add(world)
        result = world.run("key", "set", "alice", "--remove-targets", "bastion")
        assert (result.code, "could open nothing then" in result.err) == (1, True)

    def test_more_targets_than_a_tag_holds_are_refused_with_the_alternative(self, world: World) -> None:
        add(world)
        names = [f"target-{number:030}" for number in range(9)]
        result = world.run("key", "set", "alice", "--add-targets", *names)
        assert (result.code, "@all" in result.err, "256" in result.err) == (1, True, True)

    @pytest.mark.parametrize(
        "more",
        [
            ("--targets", "web", "--add-targets", "db"),
            ("--add-targets", "web", "--remove-targets", "web"),
            ("--add-targets", "not a name"),
        ],
    )
    def test_contradictions_are_usage_errors(self, world: World, more: tuple[str, ...]) -> None:
        add(world)
        assert world.run("key", "set", "alice", *more).code == 2
