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
from knock_admin import tags

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def _checked(read: Callable[[str], Any], show: Callable[[Any], str] | None = None) -> Callable[[str], str]:
    """Make a type for argparse of a parser of ours: the text stays a text, and its error is shown."""

    def check(text: str) -> str:
        try:
            value = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return show(value) if show else text

    return check


_DURATION = _checked(tags.parse_duration, tags.show_duration)
_NAME = _checked(tags.target_name)
_WIDTHS = _checked(tags.parse_any_source, str)
_PORTS = _checked(tags.parse_ports)
_LIVE = _checked(tags.parse_max_live)
_PRINCIPAL = _checked(tags.principal_name)
_SOURCE = _checked(tags.canonical_source, str)


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
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="knock-admin")

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
        name, _, takes = line.partition(" ")
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

    def holders(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--eip", nargs="+", default=[], metavar="ADDRESS", help="the interface behind an Elastic IP"
        )
        to.add_argument(
            "--instance", nargs="+", default=[], metavar="ID", help="every interface of an instance"
        )
        to.add_argument("--interface", nargs="+", default=[], metavar="ID", help="one network interface")
        to.add_argument(
            "--load-balancer",
            nargs="+",
            default=[],
            metavar="ARN",
            help="an application or network load balancer",
        )

    target = group("target", "pools of security groups that a knock opens", "knock-admin target ls")
    add = command(
        target,
        "add NAME [--ports PORTS [PORTS ...]]",
        "targets:add",
        "make a target, complete it, or attach it to more",
        "knock-admin target add bastion --ports 22/tcp --groups 2 --eip 198.51.100.10",
        "knock-admin target add web --ports 80/tcp 443/tcp --load-balancer ARN --dry-run",
    )
    add.add_argument("name", type=_NAME, help="the target's name")
    add.add_argument("--ports", nargs="+", type=_PORTS, metavar="PORTS", help="like 22/tcp or 8000-8010/udp")
    add.add_argument("--groups", type=_count, metavar="N", help="how many groups its pool has (default: 1)")
    add.add_argument("--vpc", metavar="ID", help="where, when it is not clear from what it is attached to")
    holders(add)
    show = command(
        target,
        "ls [NAME ...]",
        "targets:show",
        "list targets: rules used and free, and what they are attached to",
        "knock-admin target ls bastion --json",
        changing=False,
    )
    show.add_argument("name", nargs="*", help="only these")
    grow = command(
        target,
        "grow NAME --groups N",
        "targets:grow",
        "give a target more groups, attached where the others are",
        "knock-admin target grow bastion --groups 4",
    )
    grow.add_argument("name", type=_NAME, help="the target's name")
    grow.add_argument(
        "--groups", type=_count, metavar="N", required=True, help="how many groups it shall have"
    )
    grow.set_defaults(eip=[], instance=[], interface=[], load_balancer=[])
    detach = command(
        target,
        "detach NAME",
        "targets:detach",
        "take a target's groups off interfaces and load balancers",
        "knock-admin target detach bastion --instance i-0123456789abcdef0",
    )
    detach.add_argument("name", type=_NAME, help="the target's name")
    detach.add_argument("--all", action="store_true", help="off everything")
    holders(detach)
    remove = command(
        target,
        "rm NAME",
        "targets:remove",
        "delete a target's groups, when they hold no rule and are attached to nothing",
        "knock-admin target rm bastion",
    )
    remove.add_argument("name", type=_NAME, help="the target's name")

    key = group("key", "API keys and their rights", "knock-admin key ls")

    def rights(to: argparse.ArgumentParser, *, required: bool) -> None:
        to.add_argument(
            "--targets",
            nargs="+",
            required=required,
            metavar="NAME",
            help="what it may open; * for everything",
        )
        to.add_argument(
            "--max", type=_DURATION, required=required, metavar="DURATION", help="for how long, like 8h"
        )
        to.add_argument(
            "--max-live",
            type=_LIVE,
            metavar="N",
            help="how many grants it may have at once (else the stack's MaxLive)",
        )
        to.add_argument("--operator", action="store_true", help="may see and revoke everyone's grants")
        to.add_argument(
            "--any-source",
            type=_WIDTHS,
            metavar="WIDTH",
            help="may name another source, this wide at most, like /28",
        )

    add = command(
        key,
        "add NAME --targets NAME [NAME ...] --max DURATION",
        "keys:add",
        "make a key; its value is shown once",
        "knock-admin key add alice --targets bastion web --max 8h",
        "knock-admin key add ci --targets web --max 30m --any-source /28 --max-live 200",
    )
    add.add_argument("name", type=_PRINCIPAL, help="the principal's name, also on record")
    rights(add, required=True)
    show = command(
        key,
        "ls [NAME ...]",
        "keys:show",
        "list keys and their rights, never their values",
        "knock-admin key ls",
        changing=False,
    )
    show.add_argument("name", nargs="*", help="only these, by name or id")
    change = command(
        key, "set NAME", "keys:change", "change a key's rights", "knock-admin key set alice --max 4h"
    )
    change.add_argument("name", help="the key's name or id")
    rights(change, required=False)
    change.add_argument("--no-max-live", action="store_true", help="as many as the stack's MaxLive again")
    change.add_argument("--no-operator", action="store_true", help="may no longer")
    change.add_argument("--no-any-source", action="store_true", help="may no longer")
    for name, where, text in (
        ("disable", "keys:disable", "stop a key from knocking; its running grants keep their end"),
        ("enable", "keys:enable", "let a disabled key knock again"),
        ("rm", "keys:remove", "delete a key; its running grants keep their end"),
    ):
        one = command(key, f"{name} NAME", where, text, f"knock-admin key {name} alice")
        one.add_argument("name", help="the key's name or id")
    rotate = command(
        key,
        "rotate [NAME]",
        "keys:rotate",
        "replace a key; old and new are valid for a while",
        "knock-admin key rotate alice --overlap 24h",
        "knock-admin key rotate alice --finish",
    )
    rotate.add_argument("name", nargs="?", help="the key's name or id; with --finish, all when none is named")
    rotate.add_argument(
        "--overlap", type=_DURATION, default="1d", metavar="DURATION", help="how long (default: 24h)"
    )
    rotate.add_argument("--finish", action="store_true", help="delete the old key, when its time has come")

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
    trail.add_argument("--events", action="store_true", help="a line an event, not a line a grant")
    trail.add_argument(
        "--format", choices=["table", "jsonl", "csv"], default="table", help="(default: table)"
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


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"a number from 1 to 16 was expected, not {text!r}")
    return int(text)


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
        print(f"knock-admin: {error}", file=sys.stderr)
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
    if args.run == "keys:rotate" and not args.name and not args.finish:
        parser.error("which key? Name it")


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
    for note in result.notes:
        print(note, file=sys.stderr)
    sys.stderr.flush()
    for line in result.lines:
        print(line)
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
