"""The commands about API keys: their options, and the way from those to `keys.py` and `many.py`.

The functions that do the work take values. They are imported when a command runs: importing boto3 takes
longer than `--help` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knock_admin import tags
from knock_admin.arguments import checked

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from knock_admin.output import Result
    from knock_admin.stack import Stack

_DURATION = checked(tags.parse_duration, tags.show_duration)
_LIVE = checked(tags.parse_max_live)
_WIDTHS = checked(tags.parse_any_source, str)
_UNTIL = checked(tags.parse_until)
_PRINCIPAL = checked(tags.principal_name)
_TARGET = checked(tags.target_name)


def _add_rights(command: ArgumentParser) -> None:
    command.add_argument("--targets", nargs="+", metavar="NAME", help="what it may open; * for everything")
    command.add_argument("--max", type=_DURATION, metavar="DURATION", help="for how long, like 8h")
    command.add_argument(
        "--max-live",
        type=_LIVE,
        metavar="N",
        help="how many grants it may have at once (else the stack's MaxLive)",
    )
    command.add_argument(
        "--until", type=_UNTIL, metavar="TIME", help="until when: 2027-01-15, or a time with a Z"
    )
    command.add_argument("--operator", action="store_true", help="may see and revoke everyone's grants")
    command.add_argument(
        "--any-source",
        type=_WIDTHS,
        metavar="WIDTH",
        help="may name another source, this wide at most, like /28",
    )


def _add_keeping(command: ArgumentParser) -> None:
    command.add_argument(
        "--values", metavar="FILE", help="where to write the values: CSV, a file only you can read"
    )
    command.add_argument(
        "--values-to",
        metavar="COMMAND",
        help="a command that gets each value on its standard input, and the key's name in KNOCK_KEY_NAME",
    )


def register(key: Any, command: Callable[..., ArgumentParser]) -> None:
    """Add the commands of the group `key`; `command` makes one."""
    add = command(
        key,
        "add [NAME] --targets NAME [NAME ...] --max DURATION",
        "key_commands:add",
        "make a key, its value is shown once; or many, from a file",
        "knock-admin key add alice --targets bastion web --max 8h",
        "knock-admin key add ci --targets web --max 30m --any-source /28 --max-live 200",
        "knock-admin key add --from people.csv --values keys.csv",
    )
    add.add_argument("name", nargs="?", type=_PRINCIPAL, help="the principal's name, also on record")
    _add_rights(add)
    add.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="a key for each line of a CSV file with the columns name, targets, max, and any of max_live, "
        "until, operator, any_source",
    )
    _add_keeping(add)
    show = command(
        key,
        "ls [NAME ...]",
        "key_commands:show",
        "list keys and their rights, never their values",
        "knock-admin key ls",
        changing=False,
    )
    show.add_argument("name", nargs="*", help="only these, by name or id")
    change = command(
        key,
        "set NAME [NAME ...]",
        "key_commands:change",
        "change keys' rights",
        "knock-admin key set alice --max 4h",
        "knock-admin key set alice bob --add-targets web",
    )
    change.add_argument("name", nargs="+", help="the keys' names or ids")
    _add_rights(change)
    change.add_argument(
        "--add-targets", nargs="+", type=_TARGET, default=[], metavar="NAME", help="more of them"
    )
    change.add_argument(
        "--remove-targets", nargs="+", type=_TARGET, default=[], metavar="NAME", help="fewer of them"
    )
    change.add_argument("--no-max-live", action="store_true", help="as many as the stack's MaxLive again")
    change.add_argument("--no-until", action="store_true", help="without an end again")
    change.add_argument("--no-operator", action="store_true", help="may no longer")
    change.add_argument("--no-any-source", action="store_true", help="may no longer")
    disable = command(
        key,
        "disable NAME",
        "key_commands:disable",
        "stop a key from knocking; its running grants keep their end",
        "knock-admin key disable alice",
        "knock-admin key disable alice --revoke",
    )
    enable = command(
        key,
        "enable NAME",
        "key_commands:enable",
        "let a disabled key knock again",
        "knock-admin key enable alice",
    )
    remove = command(
        key,
        "rm NAME",
        "key_commands:remove",
        "delete a key; its running grants keep their end",
        "knock-admin key rm alice --revoke",
    )
    for parser in (disable, enable, remove):
        parser.add_argument("name", help="the key's name or id")
    for parser in (disable, remove):
        parser.add_argument("--revoke", action="store_true", help="end its live grants too")
    rotate = command(
        key,
        "rotate [NAME]",
        "key_commands:rotate",
        "replace a key; old and new are valid for a while",
        "knock-admin key rotate alice --overlap 24h",
        "knock-admin key rotate --all --values new-keys.csv",
        "knock-admin key rotate alice --finish",
    )
    rotate.add_argument("name", nargs="?", help="the key's name or id; with --finish, all when none is named")
    rotate.add_argument("--all", action="store_true", help="every key; those that are being rotated are left")
    rotate.add_argument(
        "--overlap", type=_DURATION, default="1d", metavar="DURATION", help="how long (default: 24h)"
    )
    rotate.add_argument("--finish", action="store_true", help="delete the old key, when its time has come")
    _add_keeping(rotate)


def _rights(args: Namespace) -> dict[str, str]:
    """Give the rights that the command line names, as tags."""
    rights = {
        tags.TARGETS: args.targets,
        tags.MAX_DURATION: args.max,
        tags.MAX_LIVE: args.max_live,
        tags.UNTIL: args.until,
        tags.OPERATOR: "true" if args.operator else None,
        tags.ANY_SOURCE: args.any_source,
    }
    return {tag: value for tag, value in rights.items() if value}


def add(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys, many
    from knock_admin.errors import UsageError

    rights = _rights(args)
    if args.file:
        if args.name or rights:
            raise UsageError("--from: the file says whose keys and which rights; name neither beside it.")
        people = many.read(args.file)
        keep = many.keeper(args.values, args.values_to, stack.aws.calls.dry_run)
        for name, rights_of in people.items():
            keys.check_times(stack, name, rights_of, args.now)
        return many.add(stack, people, keep)
    if args.values or args.values_to:
        raise UsageError("--values and --values-to go with --from; one key's value is shown.")
    if not args.name or not args.targets or not args.max:
        raise UsageError(
            "Whose key, for which --targets, and for how long at most (--max)? Or name a file, --from."
        )
    keys.check_times(stack, args.name, rights, args.now)
    return keys.add(stack, args.name, rights)


def show(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys

    return keys.show(stack, args.name, args.now)


def change(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys
    from knock_admin.errors import UsageError

    wanted = _rights(args)
    removals = {
        tags.ANY_SOURCE: args.no_any_source,
        tags.OPERATOR: args.no_operator,
        tags.MAX_LIVE: args.no_max_live,
        tags.UNTIL: args.no_until,
    }
    unwanted = [tag for tag, taken_away in removals.items() if taken_away]
    if not wanted and not unwanted and not args.add_targets and not args.remove_targets:
        raise UsageError("Change what? Name at least one right; see `knock-admin key set --help`.")
    if contradicting := wanted.keys() & set(unwanted):
        raise UsageError(f"{', '.join(sorted(contradicting))}: given and taken in one command.")
    if args.targets and (args.add_targets or args.remove_targets):
        raise UsageError(
            "--targets says all it shall have; --add-targets and --remove-targets go without it."
        )
    if contradicting := set(args.add_targets) & set(args.remove_targets):
        raise UsageError(f"{', '.join(sorted(contradicting))}: added and removed in one command.")
    keys.check_times(stack, ", ".join(args.name), wanted, args.now)
    return keys.change(stack, args.name, wanted, unwanted, more=args.add_targets, fewer=args.remove_targets)


def enable(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys

    return keys.enable(stack, args.name)


def disable(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys

    return keys.disable(stack, args.name, now=args.now, revoke=args.revoke)


def remove(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys

    return keys.remove(stack, args.name, now=args.now, revoke=args.revoke)


def rotate(stack: Stack, args: Namespace) -> Result:
    from knock_admin import keys, many
    from knock_admin.errors import UsageError

    if args.finish:
        return keys.finish(stack, args.name, args.now)
    overlap = tags.parse_duration(args.overlap)
    if args.all:
        if args.name:
            raise UsageError("--all is every key; name none beside it.")
        keep = many.keeper(args.values, args.values_to, stack.aws.calls.dry_run)
        return many.rotate(stack, keep, overlap=overlap, now=args.now)
    if args.values or args.values_to:
        raise UsageError("--values and --values-to go with --all; one key's value is shown.")
    if not args.name:
        raise UsageError("Which key? Name it, or say --all.")
    return keys.rotate(stack, args.name, overlap=overlap, now=args.now)
