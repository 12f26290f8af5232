"""`make deploy`: looks at the account first, says what it will do, and has SAM do it.

    python -m tools.deploy                        asks for what it needs, and before every step
    python -m tools.deploy --file knock.toml      asks nothing: for pipelines (docs/deploying.md)

The alternative was `sam deploy --guided`. This program does more before anything is built: it finds out
whether SimpleDB accepts this account, checks the parameters against the template, and refuses to change the
store, or its region, while grants are live. SAM's questions come too late for each of these.

This program only reads from AWS. SAM shows and makes all changes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import boto3
import tomllib
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NotConnected

from local.template import Place, Template, TemplateError, load
from tools import ROOT

TEMPLATE = ROOT / "template.yaml"
SAM = ROOT / ".venv-sam" / "bin" / "sam"
RUNTIME = "python3.13"  # as in template.yaml; a test compares them

STORE, PLACE = "TrailStore", "TrailRegion"
# The prefixes of tags that are rights (docs/architecture.md), and of AWS's own tags.
RESERVED_TAGS = ("knock:", "aws:")
# The states of a stack whose creation failed: CloudFormation cannot update it.
NEVER_MADE = ("CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "REVIEW_IN_PROGRESS")
SHORT = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})


class DeployError(Exception):
    """Nothing is deployed; the message says why, and what to do."""


class SimpleDb(Enum):
    """How SimpleDB answers this account, in a region."""

    HAS_DOMAINS = "it answers, and this account has domains there"
    IS_EMPTY = "it answers, but this account has no domain there, so AWS may refuse it the first one"
    REFUSES = "it refuses this account, or you may not ask it (sdb:ListDomains)"
    CANNOT_TELL = "it did not answer, so whether it accepts this account is not known"
    IS_NOT_NEAR = "there is none in this partition, or none is known to be near this region"


@dataclass(frozen=True)
class Wanted:
    """The deployment that is wanted. A parameter that is not given keeps the stack's value, or the template's
    default.
    """

    stack: str = "knock"
    region: str | None = None
    bucket: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Existing:
    """A stack that exists."""

    status: str
    parameters: Mapping[str, str]
    machines: tuple[str, ...]


class Account(Protocol):
    """The calls to AWS, all of which only read."""

    region: str | None

    def identity(self) -> tuple[str, str, str]: ...
    def stack(self, name: str) -> Existing | None: ...
    def simpledb(self, region: str) -> SimpleDb: ...
    def running(self, machine: str) -> list[str]: ...


class Aws:
    """AWS, with the credentials of a profile or of the environment."""

    def __init__(self, profile: str | None = None, region: str | None = None) -> None:
        try:
            self._session = boto3.Session(profile_name=profile, region_name=region)
        except BotoCoreError as error:  # such as a profile that does not exist
            raise DeployError(f"{error}.") from error
        self.region: str | None = self._session.region_name

    def identity(self) -> tuple[str, str, str]:
        """Give the account, the partition, and the ARN of the caller. Raises DeployError."""
        try:
            identity = self._client("sts").get_caller_identity()
        except NoCredentialsError as error:
            raise DeployError(
                "there are no AWS credentials. Sign in first (aws login, aws sso login, or AWS_PROFILE=…)."
            ) from error
        except (NotConnected, HTTPClientError) as error:
            raise DeployError(f"AWS cannot be reached: {error}.") from error
        except (BotoCoreError, ClientError) as error:
            raise DeployError(f"AWS does not take these credentials: {error}.") from error
        return identity["Account"], identity["Arn"].split(":")[1], identity["Arn"]

    def stack(self, name: str) -> Existing | None:
        """Read a stack; None if there is none of that name. Raises DeployError."""
        try:
            (described,) = self._client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationError" and "does not exist" in str(error):
                return None
            raise DeployError(f"the stack {name} cannot be looked at: {error}.") from error
        except BotoCoreError as error:
            raise DeployError(f"CloudFormation cannot be reached: {error}.") from error
        outputs = {pair["OutputKey"]: pair["OutputValue"] for pair in described.get("Outputs", [])}
        return Existing(
            described["StackStatus"],
            {pair["ParameterKey"]: pair["ParameterValue"] for pair in described.get("Parameters", [])},
            tuple(outputs[name] for name in ("StateMachineArn", "ClosingsArn") if name in outputs),
        )

    def simpledb(self, region: str) -> SimpleDb:
        """Call SimpleDB's ListDomains, which changes nothing.

        Its answer to a new customer is not documented, so every error but those from 500 on is a refusal.
        """
        try:
            answer = self._client("sdb", region).list_domains(MaxNumberOfDomains=1)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            return SimpleDb.CANNOT_TELL if status >= 500 else SimpleDb.REFUSES
        except BotoCoreError:
            return SimpleDb.CANNOT_TELL
        return SimpleDb.HAS_DOMAINS if answer.get("DomainNames") else SimpleDb.IS_EMPTY

    def running(self, machine: str) -> list[str]:
        """List the names of a state machine's running executions. Raises DeployError."""
        query = {"stateMachineArn": machine, "statusFilter": "RUNNING"}
        try:
            pages = self._client("stepfunctions").get_paginator("list_executions").paginate(**query)
            return [execution["name"] for page in pages for execution in page["executions"]]
        except ClientError as error:
            if error.response["Error"]["Code"] == "StateMachineDoesNotExist":
                return []
            raise DeployError(f"whether grants are live cannot be seen: {error}.") from error
        except BotoCoreError as error:
            raise DeployError(f"Step Functions cannot be reached: {error}.") from error

    def _client(self, service: str, region: str | None = None) -> Any:  # boto3 makes its clients at run time
        # With AWS_USE_DUALSTACK_ENDPOINT botocore builds a name for SimpleDB that is not known to exist.
        config = SHORT.merge(Config(use_dualstack_endpoint=False)) if service == "sdb" else SHORT
        return self._session.client(service, region_name=region, config=config)  # type: ignore[call-overload]


# -------------------------------------------------------------------------------------- the wanted deployment


def read_file(path: Path) -> Wanted:
    """Read a TOML file with the wanted deployment. Raises DeployError for unknown or malformed content."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # of TOML, and of text that is not UTF-8
        raise DeployError(f"{path} is not TOML: {error}.") from error
    keys = ("stack", "region", "bucket", "parameters", "tags")
    if unknown := sorted(set(content) - set(keys)):
        raise DeployError(f"{path} says {', '.join(unknown)}; it may say {', '.join(keys)}.")
    tables = {name: _texts(path, name, content.get(name, {})) for name in ("parameters", "tags")}
    for name in ("stack", "region", "bucket"):
        if not isinstance(content.get(name, ""), str):
            raise DeployError(f'{path}: {name} must be a text, such as {name} = "…".')
    return Wanted(content.get("stack", "knock"), content.get("region"), content.get("bucket"), **tables)


def _texts(path: Path, name: str, table: object) -> dict[str, str]:
    """Read a table of texts and whole numbers; CloudFormation takes both as texts."""
    if not isinstance(table, dict):
        raise DeployError(f"{path}: {name} must be a table that begins with [{name}].")
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DeployError(f'{path}: {key} must be a text or a whole number, such as {key} = "…".')
    return {key: str(value) for key, value in table.items()}


def check_tags(tags: Mapping[str, str]) -> None:
    """Refuse reserved tags, since a stack's tags are put on its API keys too. Raises DeployError."""
    for name in tags:
        if name.lower().startswith(RESERVED_TAGS):
            raise DeployError(
                f"the tag {name} may not be given to the stack: it would be on the sample API keys too, "
                "where knock: tags are rights, and aws: is AWS's own."
            )


def check_texts(texts: Mapping[str, str]) -> None:
    """Refuse texts that SAM's command line would split. Raises DeployError."""
    for name, value in texts.items():
        if set(value) & set("\"'\\") or value != " ".join(value.split()) or not value.isprintable():
            raise DeployError(f"{name} holds quotes, backslashes or odd spaces, which SAM cannot be given.")


def resolved(wanted: Wanted, existing: Existing | None, place: Place) -> Template:
    """Evaluate the template with the parameters. Raises DeployError for one that it does not allow."""
    try:
        return _load(place, tuple(sorted(effective(wanted, existing).items())))
    except TemplateError as error:
        raise DeployError(str(error)) from error


def effective(wanted: Wanted, existing: Existing | None) -> dict[str, str]:
    """Give all parameters of the deployment. Those that only an older template has are left out."""
    current = existing.parameters if existing else {}
    declared = _load(Place("knock", "us-east-1"), ()).parameters
    return {name: value for name, value in current.items() if name in declared} | dict(wanted.parameters)


@cache
def _load(place: Place, parameters: tuple[tuple[str, str], ...]) -> Template:
    return load(TEMPLATE, place, dict(parameters))


# -------------------------------------------------------------------------------------------------- the store


def simpledb_region(wanted: Wanted, existing: Existing | None, place: Place) -> str | None:
    """Give the region that a trail in SimpleDB would be in; None if there is none."""
    with_simpledb = replace(wanted, parameters=dict(wanted.parameters) | {STORE: "simpledb"})
    try:
        template = resolved(with_simpledb, existing, place)
    except DeployError:
        return None
    return template.resources["Trail"].attributes["Region"]


def proposal(answer: SimpleDb) -> str:
    """Propose a store: SimpleDB if it is known to work, else DynamoDB, which works everywhere."""
    return "simpledb" if answer is SimpleDb.HAS_DOMAINS else "dynamodb"


def check_store(store: str, answer: SimpleDb, region: str | None) -> None:
    """Raise DeployError for SimpleDB if it does not accept the account."""
    if store == "simpledb" and answer in (SimpleDb.REFUSES, SimpleDb.IS_NOT_NEAR):
        where = f" in {region}" if region else ""
        raise DeployError(
            f"SimpleDB{where}: {answer.value}. AWS takes no new customers for SimpleDB since July 2024. "
            "Use DynamoDB instead, which works in every account and region: TrailStore=dynamodb."
        )


def check_change(name: str, account: Account, existing: Existing, before: str, after: str) -> None:
    """Raise DeployError if the store or its region changes while grants are live."""
    if before == after:
        return
    live = [grant for machine in existing.machines for grant in account.running(machine)]
    if live:
        few = ", ".join(sorted(live)[:3]) + (", …" if len(live) > 3 else "")
        raise DeployError(
            f"the trail would go from {before} to {after} while {len(live)} executions of {name} run "
            f"({few}). Their records would stay behind, and access end early. Wait until they have ended, or "
            f"end them (knock-admin --stack {name} revoke --all), and deploy again."
        )


# --------------------------------------------------------------------------------------------------- the plan


def commands(
    wanted: Wanted, region: str, profile: str | None, more: Sequence[str], *, ask: bool
) -> list[list[str]]:
    """Give the commands that build and deploy."""
    deploy = [str(SAM), "deploy", "--stack-name", wanted.stack, "--region", region]
    deploy += ["--capabilities", "CAPABILITY_NAMED_IAM"]
    deploy += ["--s3-bucket", wanted.bucket] if wanted.bucket else ["--resolve-s3"]
    deploy += ["--profile", profile] if profile else []
    deploy += ["--confirm-changeset"] if ask else ["--no-confirm-changeset", "--no-fail-on-empty-changeset"]
    for option, texts in (("--parameter-overrides", wanted.parameters), ("--tags", wanted.tags)):
        deploy += [option, *(f'{name}="{value}"' for name, value in sorted(texts.items()))] if texts else []
    return [[str(SAM), "build"], [*deploy, *more]]


def compiling() -> list[str]:
    """Give the command that compiles the build. Raises DeployError without the runtime's Python."""
    if shutil.which(RUNTIME) is None:
        raise DeployError(
            f"--bytecode needs {RUNTIME} on the PATH, since the functions run on it and take no other's "
            "bytecode. Install it, or deploy without: the functions then start some tenths slower."
        )
    return [RUNTIME, "-m", "tools.bytecode", "--for", RUNTIME, ".aws-sam/build"]


def plan(wanted: Wanted, existing: Existing | None, who: tuple[str, str, str], lines: Sequence[str]) -> str:
    """Describe the deployment, for people."""
    account, _, arn = who
    described = [
        f"account     {account}, as {arn}",
        f"region      {wanted.region}",
        f"stack       {wanted.stack} ({f'is there, {existing.status}' if existing else 'will be made'})",
        *(f"trail       {line}" for line in lines),
        *(f"parameter   {name} = {value}" for name, value in sorted(wanted.parameters.items())),
        *(f"tag         {name} = {value}" for name, value in sorted(wanted.tags.items())),
    ]
    return "\n".join(described)


def as_typed(command: Sequence[str]) -> str:
    """Write a command as it would be typed."""
    return shlex.join([Path(command[0]).name, *command[1:]])


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    file: Path | None
    stack: str | None
    region: str | None
    profile: str | None
    dry_run: bool
    more: tuple[str, ...]
    bytecode: bool = False


def read_options(words: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make deploy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", type=Path, help="what to deploy, as TOML; then nothing is asked")
    parser.add_argument("--stack", help="the stack's name")
    parser.add_argument("--region", help="where to deploy")
    parser.add_argument("--profile", help="the AWS profile to use")
    parser.add_argument(
        "--bytecode", action="store_true", help=f"compile the functions, for faster starts; needs {RUNTIME}"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("more", nargs="*", help="after --: options for sam deploy")
    options = parser.parse_args(words)
    more = tuple(options.more)
    return Options(
        options.file, options.stack, options.region, options.profile, options.dry_run, more, options.bytecode
    )


Ask = Callable[[str], str]


def question(ask: Ask, text: str, proposed: str, allowed: Sequence[str] = ()) -> str:
    """Ask until the answer is allowed. An empty answer is the proposed one."""
    while True:
        choice = f" ({' or '.join(allowed)})" if allowed else ""
        answer = ask(f"{text}{choice} [{proposed}]: ").strip() or proposed
        if not allowed or answer in allowed:
            return answer


def deploy(
    options: Options,
    account: Account,
    ask: Ask | None,
    run: Callable[[list[str]], int],
    tell: Callable[[str], None],
) -> int:
    """Read the account, decide, print the plan and run SAM; give the exit code.

    `ask` is None to ask nothing. Raises DeployError before anything is built.
    """
    wanted = read_file(options.file) if options.file else Wanted()
    wanted = replace(
        wanted, stack=options.stack or wanted.stack, region=options.region or wanted.region or account.region
    )
    if ask and not options.stack:
        wanted = replace(wanted, stack=question(ask, "Name of the stack", wanted.stack))
    if not wanted.region:
        raise DeployError("there is no region: give --region, or AWS_REGION, or a profile that has one.")
    who = account.identity()
    place = Place(wanted.stack, wanted.region, who[0], who[1])
    existing = look(account, wanted.stack, wanted.region)
    wanted, lines = decide_store(account, wanted, existing, place, ask, tell, proposes=options.file is None)
    steps = commands(wanted, place.region, options.profile, options.more, ask=bool(ask))
    if options.bytecode:
        steps.insert(1, compiling())
    tell(plan(wanted, existing, who, lines))
    for step in steps:
        tell(f"will run    {as_typed(step)}")
    if options.dry_run:
        return 0
    if ask and question(ask, "Go on?", "no", ("yes", "no")) == "no":
        return 1
    return next((code for step in steps if (code := run(step))), 0)


def look(account: Account, name: str, region: str) -> Existing | None:
    """Read the stack; None if there is none. Raises DeployError for a stack that cannot be updated."""
    existing = account.stack(name)
    if existing and existing.status in NEVER_MADE:
        raise DeployError(
            f"the stack {name} was begun and never made ({existing.status}). Delete it first: "
            f"aws cloudformation delete-stack --stack-name {name} --region {region}"
        )
    if existing and STORE not in existing.parameters:
        raise DeployError(f"there is a stack {name} already, and it is not Knock's: choose another name.")
    return existing


def decide_store(
    account: Account,
    wanted: Wanted,
    existing: Existing | None,
    place: Place,
    ask: Ask | None,
    tell: Callable[[str], None],
    *,
    proposes: bool,
) -> tuple[Wanted, list[str]]:
    """Decide on the store of the trail: (the deployment, lines for the plan).

    With `proposes`, a new stack gets the proposed store without a question. Raises DeployError for a store
    that does not work here, or that cannot be changed while grants are live.
    """
    store_region = simpledb_region(wanted, existing, place)
    answer = account.simpledb(store_region) if store_region else SimpleDb.IS_NOT_NEAR
    lines = [f"SimpleDB{f' in {store_region}' if store_region else ''}: {answer.value}"]
    if ask:
        tell(lines[0])
        wanted = _ask_parameters(ask, tell, wanted, existing, answer)
    elif proposes and not existing:
        wanted = replace(wanted, parameters={STORE: proposal(answer)})
    check_tags(wanted.tags)
    check_texts({**wanted.parameters, **wanted.tags, "stack": wanted.stack})
    before = _home(replace(wanted, parameters={}), existing, place) if existing else None
    after = _home(wanted, existing, place)
    if before != after:
        check_store(after.partition(" ")[0], answer, store_region)
        lines.append(f"will be kept in {after}" + (f", and was in {before}" if before else ""))
    if existing and before:
        check_change(wanted.stack, account, existing, before, after)
    return wanted, lines


def _ask_parameters(
    ask: Ask, tell: Callable[[str], None], wanted: Wanted, existing: Existing | None, answer: SimpleDb
) -> Wanted:
    """Ask for the parameters without a good default: the store, and the address for alarms."""
    current = existing.parameters if existing else {}
    tell("The trail is kept in SimpleDB, or in DynamoDB, which works everywhere: docs/choosing-a-store.md.")
    store = question(
        ask, "Store of the trail", current.get(STORE) or proposal(answer), ("simpledb", "dynamodb")
    )
    email = question(ask, "E-mail address for alarms, or - for nobody", current.get("AlarmEmail") or "-")
    answers = {STORE: store, "AlarmEmail": "" if email == "-" else email}
    return replace(wanted, parameters=dict(wanted.parameters) | answers)


def _home(wanted: Wanted, existing: Existing | None, place: Place) -> str:
    """Give the store of the trail and its region, as text, with these parameters."""
    template = resolved(wanted, existing, place)
    store = str(template.parameters[STORE])
    region = template.resources["Trail"].attributes["Region"] if store == "simpledb" else place.region
    return f"{store} in {region}"


def run_sam(command: list[str]) -> int:
    """Run a command of SAM's, which prints what it does. Gives its exit code."""
    environment = os.environ | {"SAM_CLI_TELEMETRY": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode  # noqa: S603 - our own words


def main(words: Sequence[str] | None = None) -> int:
    """Deploy; give the exit code: 0 done, 1 not done, 2 wrong usage, 130 interrupted."""
    options = read_options(sys.argv[1:] if words is None else words)
    asks = options.file is None and not options.dry_run
    try:
        if asks and not sys.stdin.isatty():
            raise DeployError("there is nobody to ask: say what to deploy in a file (--file knock.toml).")
        region = options.region or (read_file(options.file).region if options.file else None)
        account = Aws(options.profile, region)
        return deploy(options, account, input if asks else None, run_sam, print)
    except DeployError as error:
        print(f"make deploy: {error}", file=sys.stderr)
        return 1
    except (EOFError, KeyboardInterrupt):
        print("\nmake deploy: stopped; nothing was deployed unless SAM said so.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
