"""`make deploy`: what it reads from the account, proposes, refuses and has SAM do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from tests.conftest import ROOT, need
from tools import deploy
from tools.deploy import Aws, DeployError, Existing, Options, SimpleDb

SAMPLE = ROOT / "docs" / "examples" / "knock.toml"
REGION = "eu-central-1"
MACHINES = ("arn:aws:states:…:knock-grants", "arn:aws:states:…:knock-closings")
QUIET = Options(None, None, None, None, dry_run=False, more=())


@dataclass
class Double:
    """A double of tools.deploy.Aws: an AWS account, and what it answers."""

    region: str | None = REGION
    partition: str = "aws"
    stacks: dict[str, Existing] = field(default_factory=dict)
    answer: SimpleDb = SimpleDb.HAS_DOMAINS
    executions: dict[str, list[str]] = field(default_factory=dict)
    regions_asked: list[str] = field(default_factory=list)

    def identity(self) -> tuple[str, str, str]:
        return "123456789012", self.partition, f"arn:{self.partition}:iam::123456789012:user/ops"

    def stack(self, name: str) -> Existing | None:
        return self.stacks.get(name)

    def simpledb(self, region: str) -> SimpleDb:
        self.regions_asked.append(region)
        return self.answer

    def running(self, machine: str) -> list[str]:
        return self.executions.get(machine, [])


@dataclass
class Result:
    code: int
    output: str
    commands: list[list[str]]

    @property
    def deployed(self) -> list[str]:
        """Give `sam deploy` as a list of words."""
        return self.commands[1]

    def overrides(self) -> dict[str, str]:
        words = self.deployed[self.deployed.index("--parameter-overrides") + 1 :]
        assignments = [word for word in words if "=" in word and not word.startswith("-")]
        return {name: value.strip('"') for name, _, value in (word.partition("=") for word in assignments)}


def run(
    account: Double, *answers: str, file: Path | None = None, codes: tuple[int, ...] = (0, 0), **options: Any
) -> Result:
    """Run the program with answers to its questions, or with a file; `codes` are SAM's exit codes."""
    unused, printed, commands, results = list(answers), [""], list[list[str]](), list(codes)

    def ask(text: str) -> str:
        printed.append(text)
        return unused.pop(0)

    def execute(command: list[str]) -> int:
        commands.append(command)
        return results.pop(0)

    chosen = replace(QUIET, file=file, **options)
    code = deploy.deploy(chosen, account, None if file else ask, execute, printed.append)
    assert unused == []
    return Result(code, "\n".join(printed), commands)


def write_file(folder: Path, **content: Any) -> Path:
    """Write a knock.toml with this content."""
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in content.items() if not isinstance(value, dict)
    ]
    for name, table in content.items():
        if isinstance(table, dict):
            lines += [
                f"[{name}]",
                *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items()),
            ]
    path = folder / "knock.toml"
    path.write_text("\n".join(lines))
    return path


def existing(store: str = "simpledb", region: str = "", status: str = "UPDATE_COMPLETE") -> Existing:
    return Existing(status, {"TrailStore": store, "TrailRegion": region, "MaxLive": "9"}, MACHINES)


class TestQuestions:
    def test_simpledb_is_proposed_to_an_account_that_uses_it(self) -> None:
        account = Double()
        result = run(account, "", "", "ops@example.com", "yes")
        assert account.regions_asked == ["eu-west-1"]  # the nearest to Frankfurt
        assert result.overrides() == {"TrailStore": "simpledb", "AlarmEmail": "ops@example.com"}
        assert result.code == 0
        assert "--confirm-changeset" in result.deployed

    @pytest.mark.parametrize("answer", [answer for answer in SimpleDb if answer is not SimpleDb.HAS_DOMAINS])
    def test_dynamodb_is_proposed_to_every_other_account(self, answer: SimpleDb) -> None:
        """Mutation: `answer is SimpleDb.HAS_DOMAINS` -> `answer is not SimpleDb.REFUSES`."""
        result = run(Double(answer=answer), "", "", "", "yes")
        assert result.overrides() == {"TrailStore": "dynamodb", "AlarmEmail": ""}
        assert answer.value in result.output

    def test_the_plan_is_shown_first_and_an_empty_answer_deploys_nothing(self) -> None:
        result = run(Double(), "access", "dynamodb", "-", "")
        assert (result.code, result.commands) == (1, [])
        for text in ("123456789012", "eu-central-1", "access (will be made)", "dynamodb in eu-central-1"):
            assert text in result.output
        assert "sam deploy --stack-name access --region eu-central-1" in result.output

    def test_a_word_that_is_no_store_is_asked_for_again(self) -> None:
        result = run(Double(), "", "simple", "DynamoDB", "dynamodb", "", "yes")
        assert result.overrides()["TrailStore"] == "dynamodb"

    def test_an_update_proposes_the_stacks_own_parameters(self) -> None:
        stack = replace(
            existing("dynamodb"), parameters={"TrailStore": "dynamodb", "AlarmEmail": "a@example.com"}
        )
        result = run(Double(stacks={"knock": stack}), "", "", "", "yes")
        assert result.overrides() == {"TrailStore": "dynamodb", "AlarmEmail": "a@example.com"}

    def test_simpledb_that_refuses_cannot_be_chosen(self) -> None:
        """Mutation: the call of `check_store` deleted."""
        with pytest.raises(DeployError, match="TrailStore=dynamodb"):
            run(Double(answer=SimpleDb.REFUSES), "", "simpledb", "")

    @pytest.mark.parametrize(
        ("region", "partition"),
        [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eusc-de-east-1", "aws-eusc")],
    )
    def test_a_partition_without_simpledb_is_not_asked_for_it(self, region: str, partition: str) -> None:
        account = Double(region, partition)
        result = run(account, "", "", "", "yes")
        assert account.regions_asked == []
        assert result.overrides()["TrailStore"] == "dynamodb"


class TestFile:
    def test_it_is_deployed_as_it_is_and_no_question_is_asked(self, tmp_path: Path) -> None:
        path = write_file(
            tmp_path, stack="access", region="us-east-2", bucket="uploads",
            parameters={"TrailStore": "dynamodb", "MaxLive": 5},
            tags={"team": "platform", "cost-centre": "42"},
        )  # fmt: skip
        result = run(Double(), file=path)
        build, sam = result.commands
        assert build[1:] == ["build"]
        assert sam[1:] == [
            "deploy", "--stack-name", "access", "--region", "us-east-2",
            "--capabilities", "CAPABILITY_NAMED_IAM",
            "--s3-bucket", "uploads", "--no-confirm-changeset", "--no-fail-on-empty-changeset",
            "--parameter-overrides", 'MaxLive="5"', 'TrailStore="dynamodb"',
            "--tags", 'cost-centre="42"', 'team="platform"',
        ]  # fmt: skip

    def test_the_sample_can_be_deployed(self) -> None:
        result = run(Double(), file=SAMPLE, dry_run=True)
        assert (result.code, result.commands) == (0, [])
        assert "dynamodb" in result.output

    def test_the_command_line_comes_first_and_passes_options_on_to_sam(self, tmp_path: Path) -> None:
        path = write_file(tmp_path, stack="access", region="us-east-2")
        result = run(
            Double(), file=path, stack="other", region="us-west-2", profile="ci", more=("--role-arn", "r")
        )
        words = " ".join(result.deployed)
        assert "--stack-name other --region us-west-2" in words
        assert "--profile ci" in words
        assert words.endswith("--role-arn r")

    def test_a_new_stack_without_a_store_is_refused_where_simpledb_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(DeployError, match=r"SimpleDB in eu-west-1: .* July 2024.*TrailStore=dynamodb"):
            run(Double(answer=SimpleDb.REFUSES), file=write_file(tmp_path, stack="knock"))

    @pytest.mark.parametrize("answer", [SimpleDb.CANNOT_TELL, SimpleDb.IS_EMPTY])
    def test_an_unclear_answer_of_simpledb_is_shown_and_stops_nothing(
        self, tmp_path: Path, answer: SimpleDb
    ) -> None:
        result = run(Double(answer=answer), file=write_file(tmp_path, parameters={"TrailStore": "simpledb"}))
        assert result.code == 0
        assert answer.value in result.output

    def test_an_update_of_a_stack_on_simpledb_goes_on_where_simpledb_refuses_new_accounts(
        self, tmp_path: Path
    ) -> None:
        account = Double(answer=SimpleDb.REFUSES, stacks={"knock": existing()})
        assert run(account, file=write_file(tmp_path, parameters={"MaxLive": 5})).code == 0

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            ({"parameters": {"TrailStore": "mysql"}}, "must be simpledb or dynamodb"),
            ({"parameters": {"Trailstore": "dynamodb"}}, "has no parameter Trailstore"),
            ({"parameters": {"MaxLive": 5000}}, "MaxLive"),
            ({"parameters": {"MaxLive": True}}, "MaxLive must be a text or a whole number"),
            ({"parameters": {"AlarmEmail": "a@b.c --role-arn x"}}, "AlarmEmail"),
            ({"parameters": "none"}, "must be a table"),
            ({"tags": {"knock:operator": "true"}}, "tags are rights"),
            ({"tags": {"AWS:x": "true"}}, "AWS's own"),
            ({"tags": {"team": 'a" b'}}, "team holds quotes"),
            ({"stacks": "knock"}, "says stacks; it may say"),
            ({"stack": 3}, "stack must be a text"),
        ],
    )
    def test_a_wrong_entry_is_refused_before_anything_is_built(
        self, tmp_path: Path, content: dict[str, Any], why: str
    ) -> None:
        with pytest.raises(DeployError, match=why):
            run(Double(), file=write_file(tmp_path, **content))

    @pytest.mark.parametrize(
        ("text", "why"), [(b"stack = ", "is not TOML"), (b"\xff", "is not TOML"), (None, "cannot be read")]
    )
    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path, text: bytes | None, why: str) -> None:
        path = tmp_path / "x.toml"
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(DeployError, match=f"x.toml {why}"):
            run(Double(), file=path)

    def test_without_a_region_it_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DeployError, match="there is no region"):
            run(Double(region=None), file=write_file(tmp_path))

    def test_a_failing_sam_ends_the_run_with_its_exit_code(self, tmp_path: Path) -> None:
        result = run(Double(), file=write_file(tmp_path), codes=(3,))
        assert (result.code, len(result.commands)) == (3, 1)


class TestAnotherStore:
    LIVE: ClassVar = ["alice_1", "bob_2", "carol_3", "dave_4"]

    def change(self, folder: Path, account: Double, **parameters: str) -> Result:
        return run(account, file=write_file(folder, parameters=parameters))

    def test_it_is_refused_while_grants_are_live_with_what_to_do(self, tmp_path: Path) -> None:
        """Mutation: the call of `check_change` deleted."""
        account = Double(stacks={"knock": existing()}, executions={MACHINES[0]: self.LIVE})
        with pytest.raises(
            DeployError, match="from simpledb in eu-west-1 to dynamodb in eu-central-1"
        ) as refused:
            self.change(tmp_path, account, TrailStore="dynamodb")
        assert "4 executions of knock run (alice_1, bob_2, carol_3, …)" in str(refused.value)
        assert "knock-admin --stack knock revoke --all" in str(refused.value)

    def test_it_is_refused_while_closings_run(self, tmp_path: Path) -> None:
        account = Double(stacks={"knock": existing("dynamodb")}, executions={MACHINES[1]: ["c"]})
        with pytest.raises(DeployError, match="1 executions"):
            self.change(tmp_path, account, TrailStore="simpledb")

    def test_another_region_of_simpledb_is_another_store(self, tmp_path: Path) -> None:
        account = Double(stacks={"knock": existing()}, executions={MACHINES[0]: self.LIVE})
        with pytest.raises(DeployError, match="from simpledb in eu-west-1 to simpledb in us-east-1"):
            self.change(tmp_path, account, TrailRegion="us-east-1")

    @pytest.mark.parametrize(
        "parameters", [{"TrailRegion": "eu-west-1"}, {"TrailStore": "simpledb"}, {"MaxLive": "5"}]
    )
    def test_parameters_that_name_the_same_store_change_nothing(
        self, tmp_path: Path, parameters: dict[str, str]
    ) -> None:
        account = Double(stacks={"knock": existing()}, executions={MACHINES[0]: self.LIVE})
        assert self.change(tmp_path, account, **parameters).code == 0

    def test_without_live_grants_it_is_changed_and_shown(self, tmp_path: Path) -> None:
        result = self.change(tmp_path, Double(stacks={"knock": existing()}), TrailStore="dynamodb")
        assert result.code == 0
        assert "will be kept in dynamodb in eu-central-1, and was in simpledb in eu-west-1" in result.output


class TestOtherStacks:
    def test_a_stack_whose_creation_failed_has_to_be_deleted_first(self, tmp_path: Path) -> None:
        account = Double(stacks={"knock": existing(status="ROLLBACK_COMPLETE")})
        with pytest.raises(DeployError, match="aws cloudformation delete-stack --stack-name knock"):
            run(account, file=write_file(tmp_path))

    def test_a_stack_that_is_not_knocks_is_refused(self, tmp_path: Path) -> None:
        account = Double(stacks={"knock": Existing("CREATE_COMPLETE", {"Size": "3"}, ())})
        with pytest.raises(DeployError, match="it is not Knock's"):
            run(account, file=write_file(tmp_path))


def fails(operation: str, error: Exception) -> Any:
    """Have one operation of AWS fail."""
    real = BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: BaseClient, name: str, parameters: Any) -> Any:
        if name == operation:
            raise error
        return real(client, name, parameters)

    return mock.patch.object(BaseClient, "_make_api_call", call)


def refusal(code: str, status: int, message: str = "no") -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "Any")


class TestAws:
    @pytest.fixture
    def aws(self) -> Iterator[Aws]:
        with mock_aws():
            yield Aws(region=REGION)

    def test_the_identity_is_read(self, aws: Aws) -> None:
        account, partition, arn = aws.identity()
        assert (account, partition) == ("123456789012", "aws")
        assert arn.startswith("arn:aws:")

    def test_a_stack_is_read_with_its_parameters_and_machines(self, aws: Aws) -> None:
        template = {
            "Parameters": {"TrailStore": {"Type": "String"}},
            "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {
                "StateMachineArn": {"Value": "m"},
                "ClosingsArn": {"Value": "c"},
                "ApiUrl": {"Value": "u"},
            },
        }
        boto3.client("cloudformation", region_name=REGION).create_stack(
            StackName="knock",
            TemplateBody=json.dumps(template),
            Parameters=[{"ParameterKey": "TrailStore", "ParameterValue": "dynamodb"}],
        )
        assert aws.stack("knock") == Existing("CREATE_COMPLETE", {"TrailStore": "dynamodb"}, ("m", "c"))
        assert aws.stack("another") is None

    def test_simpledb_is_asked_for_a_list_of_domains_and_nothing_else(self, aws: Aws) -> None:
        operations = []
        real = BaseClient._make_api_call  # type: ignore[attr-defined]

        def call(client: BaseClient, name: str, parameters: Any) -> Any:
            operations.append(name)
            return real(client, name, parameters)

        with mock.patch.object(BaseClient, "_make_api_call", call):
            assert aws.simpledb("eu-west-1") is SimpleDb.IS_EMPTY
        assert operations == ["ListDomains"]
        boto3.client("sdb", region_name="eu-west-1").create_domain(DomainName="used")
        assert aws.simpledb("eu-west-1") is SimpleDb.HAS_DOMAINS

    @pytest.mark.parametrize(
        ("error", "answer"),
        [
            (refusal("OptInRequired", 403), SimpleDb.REFUSES),
            (refusal("AuthFailure", 401), SimpleDb.REFUSES),
            (refusal("SubscriptionRequired", 400), SimpleDb.REFUSES),
            (refusal("ServiceUnavailable", 503), SimpleDb.CANNOT_TELL),
            (EndpointConnectionError(endpoint_url="https://sdb"), SimpleDb.CANNOT_TELL),
        ],
    )
    def test_every_error_of_4xx_counts_as_a_refusal_of_simpledb(
        self, aws: Aws, error: Exception, answer: SimpleDb
    ) -> None:
        """Mutation: `SimpleDb.CANNOT_TELL if status >= 500` -> `SimpleDb.CANNOT_TELL if status >= 400`."""
        with fails("ListDomains", error):
            assert aws.simpledb("eu-west-1") is answer

    def test_a_setting_for_dual_stack_endpoints_does_not_change_simpledbs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutation: `if service == "sdb" else SHORT` -> `if service == "sts" else SHORT`."""
        monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
        with mock_aws():
            endpoint = Aws(region=REGION)._client("sdb", "eu-west-1").meta.endpoint_url
        assert endpoint == "https://sdb.eu-west-1.amazonaws.com"

    def test_running_executions_are_listed_page_by_page(self, aws: Aws) -> None:
        """Mutation: `for page in pages for execution` -> `for page in list(pages)[:1] for execution`."""
        pages = {None: (["one", "two"], "more"), "more": (["three"], None)}

        def call(_client: BaseClient, operation: str, parameters: Any) -> Any:
            assert (operation, parameters["statusFilter"]) == ("ListExecutions", "RUNNING")
            names, token = pages[parameters.get("nextToken")]
            return {"executions": [{"name": name} for name in names]} | (
                {"nextToken": token} if token else {}
            )

        with mock.patch.object(BaseClient, "_make_api_call", call):
            assert aws.running(MACHINES[0]) == ["one", "two", "three"]

    def test_a_machine_that_does_not_exist_runs_nothing(self, aws: Aws) -> None:
        with fails("ListExecutions", refusal("StateMachineDoesNotExist", 400)):
            assert aws.running(MACHINES[0]) == []

    @pytest.mark.parametrize(
        "error", [refusal("AccessDenied", 403), EndpointConnectionError(endpoint_url="https://x")]
    )
    @pytest.mark.parametrize(
        ("operation", "ask", "why"),
        [
            (
                "GetCallerIdentity",
                lambda aws: aws.identity(),
                "AWS does not take these credentials: .*AccessDenied|AWS cannot be reached: .*connect",
            ),
            (
                "DescribeStacks",
                lambda aws: aws.stack("knock"),
                "the stack knock cannot be looked at|cannot be reached",
            ),
            (
                "ListExecutions",
                lambda aws: aws.running("arn:aws:states:m"),
                "cannot be seen|cannot be reached",
            ),
        ],
    )
    def test_a_failing_look_at_the_account_stops_it(
        self, aws: Aws, operation: str, ask: Any, why: str, error: Exception
    ) -> None:
        """Else the store might be changed while grants are live."""
        with fails(operation, error), pytest.raises(DeployError, match=why):
            ask(aws)

    def test_an_unknown_profile_is_named(self) -> None:
        with pytest.raises(DeployError, match="nowhere"):
            Aws(profile="nowhere")


class TestProgram:
    def test_without_a_terminal_it_asks_for_a_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        with mock.patch("sys.stdin.isatty", return_value=False):
            assert deploy.main([]) == 1
        assert "there is nobody to ask: say what to deploy in a file" in capsys.readouterr().err

    def test_without_credentials_it_says_how_to_sign_in(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert deploy.main(["--file", str(write_file(tmp_path, region=REGION))]) == 1
        assert capsys.readouterr().err.startswith("make deploy: there are no AWS credentials. Sign in first")

    def test_a_dry_run_shows_the_commands_and_runs_none(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = write_file(tmp_path, region=REGION, parameters={"TrailStore": "dynamodb"})
        with mock_aws(), mock.patch("subprocess.run", side_effect=AssertionError("a command")):
            assert deploy.main(["--file", str(path), "--dry-run"]) == 0
        assert "will run    sam build" in capsys.readouterr().out

    def test_a_dry_run_without_a_file_has_the_store_that_would_be_proposed(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Mutation: `elif proposes and not existing:` -> `elif False:`."""
        with mock_aws(), fails("ListDomains", refusal("OptInRequired", 403)):
            assert deploy.main(["--dry-run", "--region", REGION]) == 0
        assert "trail       will be kept in dynamodb in eu-central-1" in capsys.readouterr().out

    def test_sam_is_run_in_the_project_without_telemetry(self) -> None:
        with mock.patch("subprocess.run", return_value=mock.Mock(returncode=4)) as execute:
            assert deploy.run_sam(["sam", "build"]) == 4
        assert execute.call_args.kwargs["cwd"] == ROOT
        assert execute.call_args.kwargs["env"]["SAM_CLI_TELEMETRY"] == "0"

    def test_ctrl_c_at_a_question_prints_no_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        with (
            mock_aws(),
            mock.patch("sys.stdin.isatty", return_value=True),
            mock.patch("builtins.input", side_effect=KeyboardInterrupt),
        ):
            assert deploy.main([]) == 130
        assert "nothing was deployed" in capsys.readouterr().err

    def test_sam_parses_the_parameters_and_tags_back(self) -> None:
        """By SAM's own code, in its own environment."""
        python = ROOT / ".venv-sam" / "bin" / "python"
        need(python.exists(), "the SAM CLI is not there: make check puts it into .venv-sam")
        parameters = {
            "AlarmEmail": "", "KeepWarm": "on",
            "PermissionsBoundary": "arn:aws:iam::123456789012:policy/a=b,c/d+e@f",
        }  # fmt: skip
        tags = {"team": "who pays", "mail": "a+b@example.com", "cost:centre": "4/2"}
        deployment = deploy.Wanted(parameters=parameters, tags=tags)
        _, words = deploy.commands(deployment, REGION, None, (), ask=False)
        script = """
import json, sys
from samcli.cli.types import CfnParameterOverridesType, CfnTags
words = json.load(sys.stdin)
at = words.index("--parameter-overrides"), words.index("--tags")
parameters = CfnParameterOverridesType().convert(tuple(words[at[0] + 1 : at[1]]), None, None)
print(json.dumps([parameters, CfnTags().convert(tuple(words[at[1] + 1 :]), None, None)]))
"""
        result = subprocess.run(
            [python, "-c", script],
            input=json.dumps(words),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == [parameters, tags]
