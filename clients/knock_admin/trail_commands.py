"""The commands that read the record: their options, and the way from those to `trail.py`, `report.py`….

The functions that do the work take values. They are imported when a command runs: importing boto3 takes
longer than `--help` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knock_admin.arguments import SOURCE, add_filters, conditions

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from datetime import datetime

    from knock_admin.output import Result
    from knock_admin.stack import Stack


def register(commands: Any, command: Callable[..., ArgumentParser]) -> None:
    """Add the commands to `commands`; `command` makes one."""
    _register_trail(commands, command)
    _register_copy(commands, command)
    report = command(
        commands,
        "report --month MONTH",
        "trail_commands:report",
        "report a month: hours by person and target, refusals, forced and late closings",
        "knock-admin report --month 2026-11 > november.md",
        changing=False,
    )
    report.add_argument("--month", required=True, metavar="MONTH", help="like 2026-11, in UTC")
    report.add_argument(
        "--format", choices=["markdown", "csv", "json"], default="markdown", help="(default: markdown)"
    )
    ledger = command(
        commands,
        "ledger SOURCE",
        "trail_commands:ledger",
        "show why a port is open or closed: a source's claims and rules",
        "knock-admin ledger 203.0.113.7",
        changing=False,
    )
    ledger.add_argument("source", type=SOURCE, help="an address or a CIDR")


def _register_trail(commands: Any, command: Callable[..., ArgumentParser]) -> None:
    trail = command(
        commands,
        "trail [ID]",
        "trail_commands:trail",
        "print what happened, oldest first: grants and refusals",
        "knock-admin trail --principal alice --since 7d",
        "knock-admin trail --target web --open-between 2026-11-23T10:00:00Z 2026-11-23T11:00:00Z",
        "knock-admin trail --target web --open-between 2h now",
        "knock-admin trail --since 2026-11-01 --until 2026-12-01 --events --format csv > november.csv",
        changing=False,
    )
    trail.add_argument("id", nargs="?", help="one grant or refusal, by id")
    add_filters(trail)
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
        help="grants that were open in that time, like 2h now, however long before they were asked for",
    )
    when.add_argument("--open-at", metavar="TIME", help="grants that were open then")
    trail.add_argument(
        "--events", action="store_true", help="a line an event, in their order, not a line a grant"
    )
    trail.add_argument(
        "--format", choices=["table", "jsonl", "csv"], default="table", help="(default: table)"
    )


def _register_copy(commands: Any, command: Callable[..., ArgumentParser]) -> None:
    copy = command(
        commands,
        "trail copy --to STORE",
        "trail_commands:copy",
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


def trail(stack: Stack, args: Namespace) -> Result:
    from knock_admin import open_periods, trail
    from knock_admin.errors import UsageError

    output = "jsonl" if args.json else args.format
    if args.open_between or args.open_at:
        first, last = _open_period(args)
        return open_periods.show(stack, conditions(args), first, last, now=args.now, output=output)
    if args.kind == "refusal" and args.target is not None:
        raise UsageError("No refusal has a target on record: leave out --target, or --kind.")
    filters = conditions(args)
    since, until = (_moment(args, option) for option in ("since", "until"))
    period = trail.requested_between(since, until)
    kinds = [args.kind] if args.kind else list(trail.KINDS)
    if args.id is None:
        entries = trail.entries(stack, kinds, filters, period)
    elif filters or period:
        raise UsageError("An id names one entry: leave out the other filters.")
    else:
        entries = iter([trail.entry(stack, args.id, kinds)])
    return trail.show(entries, now=args.now, output=output, events=args.events)


def _moment(args: Namespace, option: str) -> datetime | None:
    """Read the time that an option names, None without the option. Raises UsageError."""
    from knock_admin import trail

    text = getattr(args, option)
    return None if text is None else trail.read_moment(f"--{option}", text, args.now)


def _open_period(args: Namespace) -> tuple[datetime, datetime]:
    """Read --open-between or --open-at, whose two times are equal. Raises UsageError."""
    from knock_admin import trail
    from knock_admin.errors import UsageError

    incompatible = ("id", "kind", "since", "until", "events")
    if excess := [name for name in incompatible if getattr(args, name)]:
        raise UsageError(f"Beside --open-between or --open-at there is no {', no '.join(excess)}.")
    if args.open_at:
        moment = trail.read_moment("--open-at", args.open_at, args.now)
        return moment, moment
    first, last = (trail.read_moment("--open-between", text, args.now) for text in args.open_between)
    if first >= last:
        raise UsageError(f"--open-between: {args.open_between[0]} is not before {args.open_between[1]}.")
    return first, last


def copy(stack: Stack, args: Namespace) -> Result:
    from knock_admin import trailcopy

    named = {"grant": args.from_trail, "refusal": args.from_refusals}
    return trailcopy.copy(stack, args.to, names=named, region=args.from_region, now=args.now)


def report(stack: Stack, args: Namespace) -> Result:
    from knock_admin import report

    args.json = args.json or args.format == "json"
    return report.show(stack, args.month, now=args.now, output="json" if args.json else args.format)


def ledger(stack: Stack, args: Namespace) -> Result:
    from knock_admin import ledger

    return ledger.show(stack, args.source, now=args.now)
