"""The command line of `knock-admin`: common options, help, exit codes. Each `…_commands.py` has its commands.

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach AWS, 130 interrupted (as `knock` has them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from knock import __version__, streams
from knock_admin import check_commands, grant_commands, key_commands, tags, target_commands, trail_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knock_admin.aws import Aws, Calls
    from knock_admin.output import Result

EXITS = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach AWS, 130 interrupted."

AGAIN = {
    "check_commands:doctor": "What the test is known to have made is removed again, but for what a warning "
    "above names. Run again, doctor begins anew.",
    "check_commands:guard": "The drift guard goes on in AWS, and mends what it finds. "
    "Run the same command again to see what is left then.",
}
"""What running the same command again does, where it does not continue what it had begun."""

OF_TWO_WORDS = ("trail copy",)
"""Commands of two words of which the first is a command as well."""


class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]  # generic to type checkers alone
    """Reads commands of two words as well."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if " ".join(values[:2]) in OF_TWO_WORDS:
            values = [" ".join(values[:2]), *values[2:]]
        super().__call__(parser, namespace, values, option_string)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of the same width on every terminal, so that the documentation can show it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100, max_help_position=30)


def _common(*, changes: bool) -> argparse.ArgumentParser:
    """Make the options that every command has, which mean the same before and after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("which AWS, which stack")
    group.add_argument("--stack", help="the stack's name (KNOCK_STACK; else the only one of the region)")
    group.add_argument("--profile", help="a profile of your AWS configuration (AWS_PROFILE)")
    group.add_argument("--region", help="the stack's region (AWS_REGION)")
    group.add_argument("--endpoint-url", metavar="URL", help="where AWS answers (AWS_ENDPOINT_URL)")
    group.add_argument(
        "--usage-plan", metavar="ID", help="the keys' usage plan (KNOCK_USAGE_PLAN; else found)"
    )
    common.add_argument("--json", action="store_true", help="print JSON for programs")
    if changes:
        common.add_argument(
            "--dry-run", action="store_true", help="list the AWS calls this would make, and change nothing"
        )
    return common


class _Builder:
    """Makes the commands, so that all have the same common options and the same layout of their help."""

    def __init__(self) -> None:
        self._reads, self._changes = _common(changes=False), _common(changes=True)
        self.parser = argparse.ArgumentParser(
            prog="knock-admin",
            usage="%(prog)s [options] COMMAND ...",
            description="Operate a deployment of Knock with your own AWS credentials.",
            epilog=f"Example:\n  knock-admin --stack knock target ls\n\n{EXITS}",
            formatter_class=_Help,
            parents=[self._changes],
            allow_abbrev=False,
        )
        self.parser.add_argument("--version", action="version", version=f"knock-admin {__version__}")
        self.commands = self.parser.add_subparsers(
            metavar="COMMAND", required=True, prog="knock-admin", action=_Commands
        )

    def group(self, name: str, text: str, example: str) -> Any:
        """Make a group of commands."""
        parser = self.commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example:\n  {example}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        return parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        self, group: Any, line: str, run: str, text: str, *examples: str, changing: bool = True
    ) -> argparse.ArgumentParser:
        """Make a command, without options of its own.

        `line` is its name and its arguments, for the usage: argparse would list every option there. `run`
        names the function that runs it, as `module:function`; the module is imported when it is called.
        """
        name = next((name for name in OF_TWO_WORDS if line.startswith(f"{name} ")), line.partition(" ")[0])
        arguments = line[len(name) :].strip()
        parser: argparse.ArgumentParser = group.add_parser(
            name,
            usage=f"%(prog)s {arguments} [options]".replace("  ", " "),
            help=text,
            description=text,
            epilog="Example:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=_Help,
            parents=[self._changes if changing else self._reads],
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        return parser


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; each module of commands adds its own, in the order in which the help lists them."""
    builder = _Builder()
    target = builder.group("target", "pools of security groups that a knock opens", "knock-admin target ls")
    target_commands.register(builder.commands, target, builder.command)
    key = builder.group("key", "API keys and their rights", "knock-admin key ls")
    key_commands.register(key, builder.command)
    grant_commands.register(builder.commands, builder.command)
    trail_commands.register(builder.commands, builder.command)
    check_commands.register(builder.commands, builder.command)
    return builder.parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code. Reports all errors of AWS and of ours on standard error."""
    streams.prepare()
    parser = make_parser()
    args = parser.parse_args(argv)
    _defaults(args, parser)
    try:
        return _main(args)
    except KeyboardInterrupt:  # while the libraries are loaded: no call was made yet
        streams.say("knock-admin: interrupted")
        return 130


def _main(args: argparse.Namespace) -> int:
    # Imported late: boto3 takes some 150 ms, which --help and a mistyped option need not wait for.
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        print(
            "knock-admin: boto3 is not installed. It comes with the package's extra `admin`: "
            "pipx install --force './clients[admin]'",
            file=sys.stderr,
        )
        return 2

    from knock_admin.errors import AdminError, translated
    from knock_admin.output import visible_lines

    aws: Aws | None = None
    try:
        try:
            from knock_admin.aws import Aws

            aws = Aws(
                profile=args.profile, region=args.region, endpoint_url=args.endpoint_url, dry_run=args.dry_run
            )
            return _finish(_run(aws, args), aws.calls, args)
        except (BotoCoreError, ClientError) as error:
            raise translated(error, aws.calls.last if aws else None) from error
    except AdminError as error:
        streams.say(f"knock-admin: {visible_lines(error)}")
        _print_done(aws.calls if aws else None, args)
        return error.exit_code
    except BrokenPipeError:
        # The pipe's reader has closed it. Without this, Python would report the error again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        streams.say("knock-admin: interrupted")
        _print_done(aws.calls if aws else None, args, interrupted=True)
        return 130


def _defaults(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Set options that the command line does not give: from the environment, or to their defaults."""
    for name, value in (
        ("stack", os.environ.get("KNOCK_STACK") or None),
        ("usage_plan", os.environ.get("KNOCK_USAGE_PLAN") or None),
        ("api_url", os.environ.get("KNOCK_URL") or None),
        ("profile", None),
        ("region", os.environ.get("AWS_REGION") or None),  # boto3 itself only knows AWS_DEFAULT_REGION
        ("endpoint_url", None),
        ("json", False),
        ("dry_run", False),
    ):
        if not hasattr(args, name):
            setattr(args, name, value)
    args.now = datetime.now(timezone.utc)
    if isinstance(getattr(args, "targets", None), list):
        try:
            args.targets = tags.parse_targets(" ".join(args.targets))
        except ValueError as error:
            parser.error(f"argument --targets: {error}")


def _run(aws: Aws, args: argparse.Namespace) -> Result:
    from importlib import import_module

    from knock_admin import stack

    module, function = args.run.split(":")
    deployment = stack.find(aws, args.stack, usage_plan=args.usage_plan, api_url=args.api_url)
    result: Result = getattr(import_module(f"knock_admin.{module}"), function)(deployment, args)
    return result


def _finish(result: Result, calls: Calls, args: argparse.Namespace) -> int:
    """Print a command's result, or with `--dry-run` the calls that it would make. Gives the exit code."""
    from knock_admin.errors import AdminError

    try:
        code = _print_planned(calls, args) if calls.dry_run else _print_result(result, args)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        streams.silence(sys.stdout)
        why = getattr(error, "strerror", None) or error
        raise AdminError(f"standard output cannot be written ({why})") from error
    return code


def _print_planned(calls: Calls, args: argparse.Namespace) -> int:
    planned = [{"call": call.name, "parameters": call.parameters} for call in calls.planned]
    if args.json:
        print(json.dumps({"dry_run": True, "calls": planned}, indent=2, default=str))
        return 0
    print("Calls this would make:" if planned else "This would change nothing.")
    for number, call in enumerate(planned, 1):
        print(f"{number:3}. {call['call']} {json.dumps(call['parameters'], default=str)}")
    return 0


def _print_result(result: Result, args: argparse.Namespace) -> int:
    if args.json and result.data is not None:
        print(json.dumps(result.data, indent=2, default=str))
        return result.exit_code
    from knock_admin.output import visible

    # Each is one line. A line break inside comes from a name, which may be an attacker's: it is escaped.
    for note in result.notes:
        streams.say(visible(note))
    for line in result.lines:
        print(visible(line))
    return result.exit_code


def _print_done(calls: Calls | None, args: argparse.Namespace, *, interrupted: bool = False) -> None:
    """Print which changes a failed command had made, and what running it again does."""
    if not calls:
        return
    unknown = calls.unanswered if interrupted else []
    for heading, listed in (("Done before that:", calls.done), ("Not known whether done:", unknown)):
        if listed:
            streams.say(heading)
        for call in listed:
            streams.say(f"  {call.name} {json.dumps(call.parameters, default=str)}")
    if calls.done or unknown:
        usual = "Run the same command again: it goes on where this one stopped."
        streams.say(AGAIN.get(args.run, usual))


if __name__ == "__main__":
    sys.exit(main())
