"""`key add --from` and `key rotate --all`: many keys, of which none is usable before its value is stored."""

from __future__ import annotations

import csv
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.admin_support import World, failing_at, make_world
from tests.clients.test_admin_keys import all_keys, in_plan

world = pytest.fixture(make_world)

PEOPLE = """name,targets,max,max_live,until,operator,any_source
alice,bastion web,8h,,2099-01-15,,
bob,bastion,4h,5,,,/28
ops,*,1d,,,yes,
"""


@pytest.fixture
def people(tmp_path: Path) -> str:
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    return str(file)


def values_in(file: Path) -> dict[str, str]:
    return {line["name"]: line["value"] for line in csv.DictReader(file.open())}


class TestAdding:
    def test_a_key_is_made_for_each_line_with_its_rights_and_its_value_stored(
        self, world: World, people: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "keys.csv"
        result = world.ok("key", "add", "--from", people, "--values", str(file))
        keys = {key["name"]: key for key in all_keys(world)}
        assert {name: key["value"] for name, key in keys.items()} == values_in(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert in_plan(world) == {key["id"] for key in keys.values()}
        assert keys["bob"]["tags"]["knock:any-source"] == "/28"
        assert keys["bob"]["tags"]["knock:max-live"] == "5"
        assert keys["alice"]["tags"]["knock:until"] == "2099-01-15"
        assert keys["ops"]["tags"]["knock:operator"] == "true"
        assert keys["ops"]["tags"]["knock:targets"] == "@all"
        assert not any(value in result.out + result.err for value in values_in(file).values())
        assert "3 keys made, 0 left as they were." in result.err

    def test_adding_again_makes_no_second_key_and_reports_rights_that_differ(
        self, world: World, people: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "keys.csv"
        world.ok("key", "add", "--from", people, "--values", str(file))
        world.ok("key", "set", "bob", "--max", "1h")
        result = world.ok("key", "add", "--from", people, "--values", str(file))
        assert len(all_keys(world)) == len(values_in(file)) == 3
        assert "with another knock:max-duration; `key set` changes that" in result.out

    def test_a_dry_run_makes_nothing_and_needs_no_place_for_values(self, world: World, people: str) -> None:
        result = world.ok("key", "add", "--from", people, "--dry-run")
        assert "apigateway:CreateApiKey" in result.out
        assert all_keys(world) == []

    @pytest.mark.parametrize("after", [False, True])
    def test_wherever_it_stops_the_same_command_completes_it_and_no_value_is_lost(
        self, world: World, people: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
    ) -> None:
        """Break it: put a key into the plan before its value is stored."""
        file = tmp_path / "keys.csv"
        codes = []
        for number in range(1, 7):
            with failing_at(monkeypatch, number, after=after):
                codes.append(world.run("key", "add", "--from", people, "--values", str(file)).code)
            usable = [key for key in all_keys(world) if key["id"] in in_plan(world)]
            values = values_in(file) if file.exists() else {}
            assert all(values[key["name"]] == key["value"] for key in usable)
        world.ok("key", "add", "--from", people, "--values", str(file))
        usable = {key["name"]: key["value"] for key in all_keys(world) if key["id"] in in_plan(world)}
        assert usable == values_in(file)
        assert codes.count(1) >= 3, (
            "it was stopped when a key was made, when one was put into the plan, and in between"
        )

    def test_a_value_that_cannot_be_stored_leaves_no_usable_key_and_the_number_done_is_told(
        self, world: World, people: str
    ) -> None:
        fails = f"{sys.executable} -c raise(SystemExit(3))"
        result = world.run("key", "add", "--from", people, "--values-to", fails)
        assert result.code == 1
        assert "failed for the value of alice, with exit code 3" in result.err
        assert "0 of 3 were done before alice, whose key opens nothing yet" in result.err
        assert in_plan(world) == set()

    def test_a_command_gets_each_value_on_its_input_and_the_name_in_its_environment(
        self, world: World, people: str, tmp_path: Path
    ) -> None:
        store = tmp_path / "store.py"
        store.write_text(
            "import os, sys, pathlib\n"
            "pathlib.Path(sys.argv[1], os.environ['KNOCK_KEY_NAME']).write_text(sys.stdin.read())\n"
        )
        world.ok("key", "add", "--from", people, "--values-to", f"{sys.executable} {store} {tmp_path}")
        for key in all_keys(world):
            assert (tmp_path / key["name"]).read_text() == key["value"]

    @pytest.mark.parametrize(
        ("command", "code", "message"),
        [
            ("/nowhere/store", 1, "/nowhere/store cannot be run: No such file or directory"),
            ("echo 'half", 2, "No closing quotation"),
        ],
    )
    def test_a_command_that_cannot_be_run_is_an_error(
        self, world: World, people: str, command: str, code: int, message: str
    ) -> None:
        result = world.run("key", "add", "--from", people, "--values-to", command)
        assert (result.code, message in result.err) == (code, True), result.err
        assert in_plan(world) == set()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name,targets\n", "names no column max"),
            ("name,targets,max,colour\n", "there is no column colour"),
            ("name,targets,max\nalice,bastion\n", "line 2: it has another number of fields"),
            ("name,targets,max\nalice,bastion,8h,x\n", "line 2: it has another number of fields"),
            ("name,targets,max\nalice,,8h\n", "line 2: it has no targets"),
            ("name,targets,max\nalice,bastion,soon\n", "line 2: a duration is like"),
            ("name,targets,max\nalice,bastion,8h\nalice,web,8h\n", "line 3: alice is there twice"),
            ("name,targets,max,operator\nalice,bastion,8h,maybe\n", "operator is yes or no"),
            ("name,targets,max,until\nalice,bastion,8h,soon\n", "a date like 2027-01-15"),
            ("name,targets,max\n", "it has 0 lines"),
            ('name,targets,max\n"alice,bastion,8h\n', "unexpected end of data"),
        ],
    )
    def test_a_file_with_one_wrong_line_makes_nothing_and_is_an_error_that_names_the_line(
        self, world: World, tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "people.csv"
        file.write_text(text)
        result = world.run("key", "add", "--from", str(file), "--values", str(tmp_path / "keys.csv"))
        assert (result.code, message in result.err, all_keys(world)) == (2, True, []), result.err

    def test_a_file_that_is_not_there_is_a_usage_error(self, world: World, tmp_path: Path) -> None:
        result = world.run("key", "add", "--from", str(tmp_path / "none.csv"), "--values", "keys.csv")
        assert (result.code, "No such file" in result.err) == (2, True)

    def test_values_do_not_go_into_a_file_that_others_can_read(
        self, world: World, people: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "keys.csv"
        file.touch(0o644)
        file.chmod(0o644)
        result = world.run("key", "add", "--from", people, "--values", str(file))
        assert (result.code, "others can read it" in result.err, all_keys(world)) == (2, True, [])

    @pytest.mark.parametrize(
        "more",
        [
            (),
            ("--values", "a", "--values-to", "b"),
            ("alice", "--values", "a"),
            ("--max", "1h", "--values", "a"),
        ],
    )
    def test_options_that_exclude_each_other_are_a_usage_error(
        self, world: World, people: str, more: tuple[str, ...]
    ) -> None:
        assert world.run("key", "add", "--from", people, *more).code == 2
        assert all_keys(world) == []

    @pytest.mark.parametrize("words", [("alice",), ("alice", "--targets", "web"), ("--targets", "web")])
    def test_one_key_needs_a_name_targets_and_a_duration(self, world: World, words: tuple[str, ...]) -> None:
        assert world.run("key", "add", *words).code == 2


class TestRotatingAll:
    def rotate(self, world: World, file: Path) -> Any:
        return world.ok("key", "rotate", "--all", "--values", str(file), "--overlap", "2h")

    def test_every_key_gets_a_successor_and_rotating_again_changes_nothing(
        self, world: World, people: str, tmp_path: Path
    ) -> None:
        old, new = tmp_path / "old.csv", tmp_path / "new.csv"
        world.ok("key", "add", "--from", people, "--values", str(old))
        before = {key["id"] for key in all_keys(world)}
        self.rotate(world, new)
        successors = [key for key in all_keys(world) if key["id"] not in before]
        assert {key["name"]: key["value"] for key in successors} == values_in(new)
        again = self.rotate(world, new)
        assert len(all_keys(world)) == 6
        assert again.out.count("is being rotated already") == 3

    @pytest.mark.parametrize(
        "words", [(), ("--all",), ("--all", "alice", "--values", "x"), ("alice", "--values", "x")]
    )
    def test_options_that_exclude_each_other_are_a_usage_error(
        self, world: World, words: tuple[str, ...]
    ) -> None:
        assert world.run("key", "rotate", *words).code == 2
