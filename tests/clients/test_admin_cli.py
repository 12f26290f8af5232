"""The program `knock-admin` as a whole: help, exit codes, dry runs, errors, and the choice of a stack."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.config import Config
from botocore.endpoint import Endpoint

from knock_admin import adopt, aws, cli, errors
from tests.clients.admin_support import MODULES, REGION, World, at, client, make_world
from tests.conftest import ROOT

world = pytest.fixture(make_world)


def commands(parser: argparse.ArgumentParser | None = None) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Walk through all parsers: the program's, those of groups of commands, and the commands'."""
    parser = parser or cli.make_parser()
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from commands(child)


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_every_help_has_an_example_that_the_program_accepts(name: str) -> None:
    text = ALL[name].format_help()
    assert "Example:\n  knock-admin" in text
    for line in text.split("Example:\n")[1].splitlines():
        if not line.startswith("  knock-admin"):
            break
        words = shlex.split(line.split(" > ")[0])[1:]
        assert cli.make_parser().parse_args(words).run


@pytest.mark.parametrize("name", [name for name, parser in ALL.items() if parser.get_default("run")])
def test_every_command_takes_the_common_options_before_and_after_it(name: str) -> None:
    common = ["--json", "--stack", "s", "--region", "r", "--profile", "p", "--endpoint-url", "u"]
    (example,) = [line for line in ALL[name].format_help().splitlines() if line.startswith("  knock-admin")][
        :1
    ]
    words = shlex.split(example.split(" > ")[0])[1:]
    before, after = (cli.make_parser().parse_args(line) for line in ([*common, *words], [*words, *common]))
    assert vars(before) == vars(after)
    assert (before.json, before.stack, before.region) == (True, "s", "r")


CHANGING = {
    "target add": ["bastion", "--groups", "3"],
    "target grow": ["bastion", "--groups", "3"],
    "target detach": ["bastion", "--all", "--leave-grants"],
    "target rm": ["loose"],
    "target adopt": ["other", "OFFICE", "--ports", "443/tcp"],
    "target release": ["loose"],
    "target set": ["bastion", "--ports", "2222/tcp"],
    "target rename": ["bastion", "gate"],
    "key add": ["bob", "--targets", "bastion", "--max", "8h"],
    "key set": ["alice", "--max", "4h", "--no-operator"],
    "key disable": ["alice"],
    "key enable": ["off"],
    "key rm": ["alice"],
    "key rotate": ["alice"],
    "revoke": ["--all"],
    "guard": [],
    "doctor": ["--test-grant"],
}


def words_of(world: World, command: str) -> list[str]:
    """Give a command line of CHANGING, with the id of the office's group for OFFICE."""
    return [*command.split(), *(world.office if word == "OFFICE" else word for word in CHANGING[command])]


@pytest.fixture
def busy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Give a world in which every command of CHANGING has something to change."""
    monkeypatch.setattr(adopt, "FLIGHT", 0.0)
    world.ok("target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip)
    world.ok("target", "add", "loose", "--ports", "22/tcp")
    world.ok("key", "add", "alice", "--targets", "bastion", "--max", "8h", "--operator")
    world.ok("key", "add", "off", "--targets", "bastion", "--max", "8h")
    world.ok("key", "disable", "off")
    world.record("alice", lasts=timedelta(days=365))
    return world


def test_the_table_of_changing_commands_is_complete() -> None:
    changing = {
        name.removeprefix("knock-admin ")
        for name, parser in ALL.items()
        if parser.get_default("run") and "--dry-run" in parser.format_help()
    }
    assert changing == {
        *CHANGING,
        "trail copy",
    }  # which lists its writes by their number: test_admin_trailcopy.py


RANDOM = ("doctor", "revoke")  # a scratch group's name, and a request's
VERBS = (
    "Attach",
    "Authorize",
    "Batch",
    "Create",
    "Delete",
    "Invoke",
    "Modify",
    "Put",
    "Revoke",
    "Set",
    "Start",
)


def test_a_dry_run_lists_calls_and_sends_none_that_changes(
    busy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it: let _hold_back pass an operation, or name it as one that reads."""
    operations: list[str] = []
    real_request = Endpoint.make_request

    def watch(self: Any, operation_model: Any, request_dict: Any) -> Any:
        operations.append(operation_model.name)
        return real_request(self, operation_model, request_dict)

    monkeypatch.setattr(Endpoint, "make_request", watch)
    at(monkeypatch, datetime(2026, 11, 23, 21, 17, 19, tzinfo=timezone.utc))
    for command in CHANGING:
        operations.clear()
        words = [*words_of(busy, command), "--dry-run"]
        planned = busy.ok(*words, "--json").json
        assert planned["dry_run"] is True
        assert planned["calls"], f"{command} has something to change"
        assert operations, command
        assert [
            name for name in operations if name.startswith((*VERBS, "Stop", "Tag", "Untag", "Update"))
        ] == [], command
        lines = busy.ok(*words).out.splitlines()
        assert lines[0] == "Calls this would make:"
        assert len(lines) == 1 + len(planned["calls"]), command
        first = planned["calls"][0]
        number, call, parameters = lines[1].split(maxsplit=2)
        assert (number, call) == ("1.", first["call"])
        assert command in RANDOM or json.loads(parameters) == first["parameters"], command


@pytest.mark.parametrize("command", sorted({*CHANGING} - {"doctor"}))  # doctor's calls depend on answers
def test_a_command_makes_the_calls_that_its_dry_run_listed(
    busy: World, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    words = words_of(busy, command)
    planned = [
        call["call"].partition(":")[2] for call in busy.ok(*words, "--dry-run", "--json").json["calls"]
    ]
    operations: list[str] = []
    real_request = Endpoint.make_request

    def watch(self: Any, operation_model: Any, request_dict: Any) -> Any:
        if not operation_model.name.startswith(aws.READING):
            operations.append(operation_model.name)
        return real_request(self, operation_model, request_dict)

    monkeypatch.setattr(Endpoint, "make_request", watch)
    busy.functions["guard"] = lambda _: {"findings": []}
    busy.functions["revoke"] = lambda _: {"grant_id": "g", "status": "revoked", "revoked": [], "kept": []}
    busy.ok(*words, *(["--yes"] if command == "revoke" else []))
    assert operations == planned


def test_a_dry_run_holds_back_an_operation_that_knock_admin_does_not_use(world: World) -> None:
    dry_aws = aws.Aws(region=REGION, dry_run=True)
    answer = dry_aws.client("ec2").accept_vpc_peering_connection(VpcPeeringConnectionId="pcx-1")
    assert [call.name for call in dry_aws.calls.planned] == ["ec2:AcceptVpcPeeringConnection"]
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_a_planned_call_names_the_earlier_call_whose_answer_it_needs(busy: World) -> None:
    calls = busy.ok("key", "add", "bob", "--targets", "bastion", "--max", "8h", "--dry-run", "--json").json[
        "calls"
    ]
    assert calls[1]["parameters"]["keyId"] == "<id of call 1>"


def test_a_dry_run_with_nothing_left_to_change_says_so(busy: World) -> None:
    assert busy.ok("key", "enable", "alice", "--dry-run").out == "This would change nothing.\n"
    assert busy.ok("key", "enable", "alice", "--dry-run", "--json").json == {"dry_run": True, "calls": []}


# ---------------------------------------------------------------------------- which stack, which AWS


def test_the_only_stack_of_the_region_needs_no_name(world: World) -> None:
    world.ok("target", "ls")


def test_one_of_several_stacks_must_be_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_stack("other")
    result = world.run("target", "ls")
    assert (result.code, "there are: knock, other." in result.err) == (2, True)
    world.ok("target", "ls", "--stack", "other")
    monkeypatch.setenv("KNOCK_STACK", "knock")
    world.ok("target", "ls")
    result = world.run("target", "ls", "--stack", "third")
    assert (result.code, "There is no stack third" in result.err) == (2, True)


def test_a_region_without_a_stack_says_so(world: World) -> None:
    code = cli.main(["target", "ls", "--region", "eu-north-1"])
    assert (code, "In eu-north-1 there are: none" in world.capsys.readouterr().err) == (2, True)


def test_the_region_may_come_from_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    assert cli.main(["target", "ls"]) == 0


def test_without_a_region_it_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert cli.main(["target", "ls"]) == 2
    assert "No region: give --region" in capsys.readouterr().err


def test_an_unknown_profile_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["target", "ls", "--profile", "nobody"]) == 2
    assert "aws configure list-profiles" in capsys.readouterr().err


def test_without_credentials_it_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert cli.main(["target", "ls"]) == 3
    assert "No usable AWS credentials" in capsys.readouterr().err


def test_an_endpoint_that_does_not_answer_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aws, "CONFIG", aws.CONFIG.merge(Config(retries={"total_max_attempts": 1})))
    monkeypatch.setattr(aws, "PATIENT", aws.CONFIG)
    assert cli.main(["target", "ls", "--endpoint-url", "http://127.0.0.1:1"]) == 3
    assert "cannot reach AWS" in capsys.readouterr().err


def test_a_stack_whose_functions_lack_a_setting_says_which(world: World) -> None:
    for module in MODULES:
        client("lambda").update_function_configuration(
            FunctionName=f"knock-{module}", Environment={"Variables": {"KNOCK_STACK": "knock"}}
        )
    result = world.run("trail")
    assert (result.code, "has TRAIL_DOMAIN in its environment" in result.err) == (1, True)


# ---------------------------------------------------------------------------- errors


def client_error(code: str, message: str = "said AWS") -> boto.ClientError:
    return boto.ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


CALL = aws.Call("lambda:Invoke", "lambda:InvokeFunction", {}, reads=False)


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (
            client_error("UnauthorizedOperation"),
            1,
            "AWS refused lambda:Invoke: said AWS\nYour credentials need lambda:Inv",
        ),
        (client_error("AccessDeniedException"), 1, "Your credentials need lambda:InvokeFunction"),
        (client_error("ExpiredToken"), 1, "your credentials have expired"),
        (client_error("InvalidClientTokenId"), 1, "AWS does not know these credentials"),
        (client_error("Throttling"), 1, "lambda:Invoke: said AWS (Throttling)"),
        (boto.ProfileNotFound(profile="x"), 2, "list-profiles"),
        (boto.NoRegionError(), 2, "give --region"),
        (boto.NoCredentialsError(), 3, "No usable AWS credentials"),
        (boto.EndpointConnectionError(endpoint_url="u"), 3, "cannot reach AWS"),
        (boto.ReadTimeoutError(endpoint_url="u"), 3, "cannot reach AWS"),
        (boto.ParamValidationError(report="bad"), 1, "lambda:Invoke: Parameter validation failed"),
    ],
)
def test_an_error_of_botocore_becomes_a_message_and_an_exit_code(
    error: Any, exit_code: int, message: str
) -> None:
    failure = errors.translated(error, CALL)
    assert (failure.exit_code, message in str(failure)) == (exit_code, True), failure
    assert isinstance(errors.translated(error, None), errors.AdminError)


def test_a_missing_permission_is_named_as_iam_names_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.apigateway.responses import APIGatewayResponse

    def refuse(_: Any) -> None:
        raise client_error("AccessDeniedException", "not authorized")

    monkeypatch.setattr(APIGatewayResponse, "get_usage_plans", refuse)
    result = world.run("key", "ls")
    assert result.code == 1
    assert "AWS refused apigateway:GetUsagePlans: not authorized" in result.err
    assert "Your credentials need apigateway:GET on /usageplans." in result.err


@pytest.mark.parametrize(
    ("service", "call", "arguments", "permission"),
    [
        (
            "elbv2",
            "set_security_groups",
            {"LoadBalancerArn": "a", "SecurityGroups": []},
            "elasticloadbalancing:SetSecurityGroups",
        ),
        ("stepfunctions", "stop_execution", {"executionArn": "a"}, "states:StopExecution"),
        ("cloudwatch", "delete_alarms", {"AlarmNames": []}, "cloudwatch:DeleteAlarms"),
        (
            "apigateway",
            "tag_resource",
            {"resourceArn": "a", "tags": {}},
            "apigateway:PUT on /tags/{resource_arn}",
        ),
        ("lambda", "invoke", {"FunctionName": "f"}, "lambda:InvokeFunction"),
    ],
)
def test_permissions_have_iams_names(service: str, call: str, arguments: Any, permission: str) -> None:
    dry_aws = aws.Aws(region=REGION, dry_run=True)
    getattr(dry_aws.client(service), call)(**arguments)
    assert [planned.permission for planned in dry_aws.calls.planned] == [permission]


def test_an_error_of_aws_is_shown_without_a_traceback(world: World) -> None:
    result = world.run("target", "add", "bastion", "--ports", "22/tcp", "--eip", "203.0.113.250")
    assert result.code == 1
    assert result.err.startswith("knock-admin: ec2:DescribeAddresses: ")
    assert "Traceback" not in result.err


def test_an_interrupt_says_what_was_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from knock_admin import targets

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "_close_way_out", interrupt)
    result = world.run("target", "add", "bastion", "--ports", "22/tcp")
    assert result.code == 130, "the shell's code for a program that Ctrl-C ended, as knock's is"
    assert result.err.startswith("knock-admin: interrupted\nDone before that:\n  ec2:CreateSecurityGroup")
    assert result.err.endswith("Run the same command again: it goes on where this one stopped.\n")
    assert "Not known" not in result.err


def test_an_interrupt_names_the_call_that_had_no_answer_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_request = Endpoint.make_request

    def interrupted(self: Any, operation_model: Any, request_dict: Any) -> Any:
        if operation_model.name in ("CreateUsagePlanKey", "Invoke"):
            raise KeyboardInterrupt
        return real_request(self, operation_model, request_dict)

    monkeypatch.setattr(Endpoint, "make_request", interrupted)
    result = world.run("key", "add", "bob", "--targets", "*", "--max", "8h")
    lines = result.err.splitlines()
    assert (result.code, lines[0], lines[1]) == (130, "knock-admin: interrupted", "Done before that:")
    assert lines[2].startswith("  apigateway:CreateApiKey {")
    assert lines[3] == "Not known whether done:"
    assert lines[4].startswith("  apigateway:CreateUsagePlanKey {")
    result = world.run("guard")
    assert result.code == 130
    assert "Not known whether done:\n  lambda:Invoke {" in result.err
    assert "The drift guard goes on in AWS" in result.err
    assert "where this one stopped" not in result.err


def test_an_interrupt_while_libraries_are_imported_has_the_same_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_main", interrupt)
    assert cli.main(["target", "ls"]) == 130
    assert capsys.readouterr().err == "knock-admin: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, reader = os.pipe()
    os.close(pipe)

    class Gone:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            return

        def fileno(self) -> int:
            return reader

    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(["target", "ls", "--region", REGION]) == 1
    os.close(reader)


def test_output_that_cannot_be_written_is_an_error_that_says_what_was_done(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:  # a file's text is kept in memory until then
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["target", "ls", "--region", REGION]) == 1
    message = "knock-admin: standard output cannot be written (No space left on device)\n"
    assert capsys.readouterr().err == message
    add = ["target", "add", "web", "--ports", "80/tcp", "--eip", world.eip, "--region", REGION]
    assert cli.main(add) == 1
    assert f"{message}Done before that:\n  ec2:CreateSecurityGroup " in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["target", "add", "bastion", "--ports", "22/tcp", "--eip", world.eip]
    assert world.ok(*command, "--groups", "1").err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    result = world.ok("target", "grow", "bastion", "--groups", "2")
    assert "done: ec2:CreateSecurityGroup\n" in result.err
    assert f"attaching 1 of 1: interface {world.eni}\n" in result.err


def test_help_and_version_need_neither_boto3_nor_credentials(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from knock_admin.cli import main; sys.exit(main())"
    )
    program = [sys.executable, "-I", "-c", code, str(ROOT / "clients")]
    for words in (["--version"], ["target", "add", "--help"]):
        result = subprocess.run(
            [*program, *words], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)}
        )
        assert "knock-admin" in result.stdout
    result = subprocess.run(  # a command, without the extra that brings boto3
        [*program, "target", "ls"], capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)}
    )
    assert (result.returncode, "boto3 is not installed" in result.stderr) == (2, True)


def test_the_program_imports_nothing_of_the_functions() -> None:
    """An operator's machine has only the wheel."""
    modules = list((ROOT / "clients/knock_admin").glob("*.py"))
    lines = [line.strip() for module in modules for line in module.read_text().splitlines()]
    assert len(modules) > 5
    assert [line for line in lines if line.startswith(("from grants", "import grants"))] == []
