"""The command line: arguments, help, exit codes.

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach AWS, 130 interrupted (as `knock` has them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from knock import __version__
from knock.cli import speak_as_the_terminal_can
from knock_admin import key_commands, tags, target_commands
from knock_admin.arguments import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knock_admin.aws import Aws, Calls
    from knock_admin.output import Result

EXITS = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach AWS, 130 interrupted."

AGAIN = {
    "doctor:doctor": "What the test is known to have made is removed again, but for what a warning above "
    "names. Run again, doctor begins anew.",
    "grants:guard": "The drift guard goes on in AWS, and mends what it finds. "
    "Run the same command again to see what is left then.",
}
"""What running the same command again does, where that is not to go on."""


OF_TWO_WORDS = ("trail copy",)
"""Commands beside one whose name is their first word."""

_SOURCE = checked(tags.canonical_source, str)


class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]  # generic to type checkers alone
    """Knows commands of two words, too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if " ".join(values[:2]) in OF_TWO_WORDS:
            values = [" ".join(values[:2]), *values[2:]]
        super().__call__(parser, namespace, values, option_string)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of one width everywhere, so that the documentation can hold it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100, max_help_position=30)


def _common(*, changes: bool) -> argparse.ArgumentParser:
    """Make the options that every command has; given before or after the command, they mean the same."""
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


def make_parser() -> argparse.ArgumentParser:
    reads, changes = _common(changes=False), _common(changes=True)
    parser = argparse.ArgumentParser(
        prog="knock-admin",
        usage="%(prog)s [options] COMMAND ...",
        description="Operate a deployment of Knock with your own AWS credentials.",
        epilog=f"Example:\n  knock-admin --stack knock target ls\n\n{EXITS}",
        formatter_class=_Help,
        parents=[changes],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"knock-admin {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="knock-admin", action=_Commands)

    def group(name: str, text: str, example: str) -> Any:
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example:\n  {example}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        return made.add_subparsers(metavar="COMMAND", required=True)

    def command(
        under: Any, line: str, where: str, text: str, *examples: str, changing: bool = True
    ) -> argparse.ArgumentParser:
        """Make a command; `line` is its name and what it takes; argparse would show every option."""
        name = next((name for name in OF_TWO_WORDS if line.startswith(f"{name} ")), line.partition(" ")[0])
        takes = line[len(name) :].strip()
        made: argparse.ArgumentParser = under.add_parser(
            name,
            usage=f"%(prog)s {takes} [options]".replace("  ", " "),
            help=text,
            description=text,
            epilog="Example:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=_Help,
            parents=[changes if changing else reads],
            allow_abbrev=False,
        )
        made.set_defaults(run=where)
        return made

    target = group("target", "pools of security groups that a knock opens", "knock-admin target ls")
    target_commands.register(commands, target, command)

    key = group("key", "API keys and their rights", "knock-admin key ls")
    key_commands.register(key, command)

    def filters(to: argparse.ArgumentParser) -> None:
        to.add_argument("--principal", metavar="NAME", help="of one key, by name or id")
        to.add_argument("--source", metavar="CIDR", help="for one source: an address or a CIDR")
        to.add_argument("--target", metavar="NAME", help="for one target")

    show = command(
        commands,
        "grants",
        "grants:show",
        "list grants: who is in, from where, for how long",
        "knock-admin grants",
        "knock-admin grants --principal alice --status all",
        changing=False,
    )
    filters(show)
    show.add_argument(
        "--status",
        choices=["live", "all", "expired", "revoked", "superseded", "failed"],
        default="live",
        help="live (default), all, or how they ended",
    )
    revoke = command(
        commands,
        "revoke [ID ...]",
        "grants:revoke",
        "end grants early; answers after their rules are gone",
        "knock-admin revoke alice_203-0-113-7_20261123T211719Z_9f86d081884c7d65 --reason 'left the team'",
        "knock-admin revoke --principal alice --reason 'laptop stolen' --yes",
    )
    revoke.add_argument("id", nargs="*", help="grants, by id")
    filters(revoke)
    revoke.add_argument("--all", action="store_true", help="every live grant of the stack")
    revoke.add_argument("--reason", default="", help="why, for the trail")
    revoke.add_argument("--yes", action="store_true", help="do not ask before ending what the filters choose")
    trail = command(
        commands,
        "trail [ID]",
        "trail:show",
        "print what happened, oldest first: grants and refusals",
        "knock-admin trail --principal alice --since 7d",
        "knock-admin trail --target web --open-between 2026-11-23T10:00:00Z 2026-11-23T11:00:00Z",
        "knock-admin trail --since 2026-11-01 --until 2026-12-01 --events --format csv > november.csv",
        changing=False,
    )
    trail.add_argument("id", nargs="?", help="one grant or refusal, by id")
    filters(trail)
    trail.add_argument("--kind", choices=["grant", "refusal"], help="only these")
    trail.add_argument(
        "--since", metavar="TIME", help="asked for at or after: 2026-11-23, 2026-11-23T21:17:19Z, 7d (ago)"
    )
    trail.add_argument("--until", metavar="TIME", help="asked for before")
    when = trail.add_mutually_exclusive_group()
    when.add_argument(
        "--open-between",
        nargs=2,
        metavar=("FROM", "TO"),
        help="grants whose door was open in that time, however long before they were asked for",
    )
    when.add_argument("--open-at", metavar="TIME", help="grants whose door was open then")
    trail.add_argument(
        "--events", action="store_true", help="a line an event, in their order, not a line a grant"
    )
    trail.add_argument(
        "--format", choices=["table", "jsonl", "csv"], default="table", help="(default: table)"
    )
    copy = command(
        commands,
        "trail copy --to STORE",
        "trailcopy:copy",
        "carry grants and refusals over from the store the stack had before",
        "knock-admin trail copy --to dynamodb --dry-run",
        "knock-admin trail copy --to dynamodb --from-trail knock-trail-1c2fa620 --from-region eu-west-1",
    )
    copy.add_argument(
        "--to", choices=["dynamodb", "simpledb"], required=True, help="the store that the stack has now"
    )
    copy.add_argument(
        "--from-trail", metavar="NAME", help="the other store's domain or table of grants (else found)"
    )
    copy.add_argument(
        "--from-refusals", metavar="NAME", help="the other store's domain or table of refusals (else found)"
    )
    copy.add_argument("--from-region", metavar="REGION", help="where those are (else found)")
    report = command(
        commands,
        "report --month MONTH",
        "report:show",
        "report a month: hours by person and target, refusals, forced and late closings",
        "knock-admin report --month 2026-11 > november.md",
        changing=False,
    )
    report.add_argument("--month", required=True, metavar="MONTH", help="like 2026-11, in UTC")
    report.add_argument(
        "--format", choices=["markdown", "csv", "json"], default="markdown", help="(default: markdown)"
    )
    show = command(
        commands,
        "ledger SOURCE",
        "ledger:show",
        "show why a door is open or shut: a source's claims and rules",
        "knock-admin ledger 203.0.113.7",
        changing=False,
    )
    show.add_argument("source", type=_SOURCE, help="an address or a CIDR")
    command(
        commands,
        "guard",
        "grants:guard",
        "run the drift guard now; exit code 1 when it finds something",
        "knock-admin guard",
    )
    doctor = command(
        commands,
        "doctor",
        "doctor:doctor",
        "check the deployment; exit code 1 when a check fails",
        "knock-admin doctor",
        "knock-admin doctor --test-grant",
    )
    doctor.add_argument(
        "--test-grant",
        action="store_true",
        help="make a grant on a scratch group and watch it open and close",
    )
    doctor.add_argument("--vpc", metavar="ID", help="where to make the scratch group")
    doctor.add_argument(
        "--api-url", metavar="URL", default=argparse.SUPPRESS, help="the knock API (KNOCK_URL; else found)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    speak_as_the_terminal_can()
    parser = make_parser()
    args = parser.parse_args(argv)
    _defaults(args, parser)
    try:
        return _main(args)
    except KeyboardInterrupt:  # while the libraries are read: nothing has been done yet
        print("knock-admin: interrupted", file=sys.stderr)
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
        print(f"knock-admin: {visible_lines(error)}", file=sys.stderr)
        _tell_done(aws.calls if aws else None, args)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("knock-admin: interrupted", file=sys.stderr)
        _tell_done(aws.calls if aws else None, args, interrupted=True)
        return 130


def _defaults(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in what the command line left open, from the environment."""
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
    found = stack.find(aws, args.stack, usage_plan=args.usage_plan, api_url=args.api_url)
    result: Result = getattr(import_module(f"knock_admin.{module}"), function)(found, args)
    return result


def _finish(result: Result, calls: Calls, args: argparse.Namespace) -> int:
    """Print what came of a command, or what it would do."""
    if calls.dry_run:
        planned = [{"call": call.name, "parameters": call.parameters} for call in calls.planned]
        if args.json:
            print(json.dumps({"dry_run": True, "calls": planned}, indent=2, default=str))
            return 0
        print("Calls this would make:" if planned else "This would change nothing.")
        for number, call in enumerate(planned, 1):
            print(f"{number:3}. {call['call']} {json.dumps(call['parameters'], default=str)}")
        return 0
    if args.json and result.data is not None:
        print(json.dumps(result.data, indent=2, default=str))
        return result.exit_code
    from knock_admin.output import visible

    # Each is one line: a line's end in it is from a name that somebody else chose.
    for note in result.notes:
        print(visible(note), file=sys.stderr)
    sys.stderr.flush()
    for line in result.lines:
        print(visible(line))
    return result.exit_code


def _tell_done(calls: Calls | None, args: argparse.Namespace, *, interrupted: bool = False) -> None:
    """Say what a command that failed had changed before, and what running it again does."""
    if not calls:
        return
    unknown = calls.unanswered if interrupted else []
    for heading, told in (("Done before that:", calls.done), ("Not known whether done:", unknown)):
        if told:
            print(heading, file=sys.stderr)
        for call in told:
            print(f"  {call.name} {json.dumps(call.parameters, default=str)}", file=sys.stderr)
    if calls.done or unknown:
        usual = "Run the same command again: it goes on where this one stopped."
        print(AGAIN.get(args.run, usual), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
