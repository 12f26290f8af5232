"""The commands that call the API and print its answer, and those for profiles.

Each reads its words, prints its data and gives its exit code; `knock.cli` prints errors of `knock.errors`.
With --json a command prints the API's objects: a grant for open and show, {"grants": […]} for ls, revoke and
renew, the answer of GET /whoami for whoami. revoke adds `still_open`: other live grants that keep targets of
the revoked grants open.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from . import config, state
from .cli import Parser, grant_id, make_parser, split_at_dashes, time_to_wait, time_with_unit
from .client import Client
from .errors import CannotReach, ConfigurationError, KnockError
from .screen import Screen, say_open, show_event, show_left, show_targets, show_time
from .session import Session, canonical, read_duration, say_still_open

if TYPE_CHECKING:
    from .values import Grant

LONG = 8 * 3600  # seconds; opening everything for longer is announced


def run_implied(words: list[str]) -> int:
    """`knock [TARGET…]`, without the word open. The first word may be a mistyped command."""
    return _open(words, implied=True)


def run_open(words: list[str]) -> int:
    """`knock open [TARGET…]`"""
    return _open(words, implied=False)


def _open(words: list[str], *, implied: bool) -> int:
    parser = make_parser(
        "open",
        "Open targets to your address, and say what is open, from where, until when. Each knock is a grant\n"
        "of its own. One by hand, for longer, takes the place of what was opened by hand on this machine\n"
        "for the same targets. One with --json or -q, as in a script, never does.",
        "knock bastion --for 8h --reason 'on call'",
        "knock open ls                        a target named like a command",
        "knock --source 203.0.113.7/32        for another address, if your key may",
        "knock bastion --wait 5m              until there is room",
        usage="knock [open] [TARGET…] [--for TIME] [--reason TEXT] [--source CIDR] [--renews ID | --new]\n"
        "                   [--wait TIME] [-4 | -6] [--json | -q]",
    )
    add_knock_options(parser)
    parser.add_argument(
        "--renews", type=grant_id, metavar="ID", help="an own grant that ends once this one is open"
    )
    parser.add_argument("--new", action="store_true", help="beside what is open, whatever was opened before")
    if implied:
        before, has_dashes, _ = split_at_dashes(words)
        # Words are checked before options, since with a mistyped command those may be the command's.
        named = parser.peek(before)
        check_targets(parser, named, implied=True)
        if has_dashes and named.targets:
            parser.error("only run takes a command behind --: knock run bastion -- ./deploy.sh")
    args = parser.parse(words)
    if args.renews and args.new:
        parser.error("--renews and --new contradict each other: use one")
    check_targets(parser, args, implied=False)
    screen = Screen(args.json, args.quiet)
    by = _opener(args)
    with Session(args.profile, screen, family=args.family) as api:
        if by == "hand" and not args.targets and sys.stderr.isatty():
            _say_what_opens(api, args.duration, screen)
        with screen.progress("knocking"):
            earlier = None
            if by == "hand" and not args.new and not args.renews:
                earlier = api.earlier(args.targets, args.duration, args.source)
            grant = api.open(
                args.targets, args.duration, args.reason, args.source, args.wait,
                by=by, renews=args.renews, earlier=earlier,
            )  # fmt: skip
        screen.matters(f"{say_open(grant)}; end it with `knock revoke {grant.id}`")
        if args.json:
            screen.json(grant.json)
        else:
            screen.data(grant.id if args.quiet else say_open(grant))
        screen.flush()
        if earlier and grant.renews == earlier:
            screen.note(f"it takes the place of {earlier}, opened here before (--new opens one beside it)")
        if not args.quiet:
            api.note_sooner(grant)
        api.notes(grant, named_source=args.source is not None)
    return 0


def add_knock_options(parser: Parser) -> None:
    """Add the arguments of a knock, which `knock open` and `knock run` have."""
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to open (default: all you may)")
    parser.add_argument(
        "--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long: 90m, 8h, 1d, PT8H"
    )
    parser.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    parser.add_argument("--source", metavar="CIDR", help="another source than the address you call from")
    parser.add_argument(
        "--wait", type=time_to_wait, metavar="TIME",
        help="try again for so long while there is no room: 90s, 5m; 0: nor wait for a pending grant",
    )  # fmt: skip


def check_targets(parser: Parser, args: argparse.Namespace, *, implied: bool) -> None:
    """Exit with code 2, before anything is sent, if a word is a mistake and no target."""
    from .mistakes import find_mistake

    if args.targets and (mistake := find_mistake(args.targets, args.profile, implied=implied)):
        parser.error(mistake)


def _say_what_opens(api: Session, duration: str | None, screen: Screen) -> None:
    """Announce what a knock without targets will open, if there are several targets or it is for long."""
    me = api.client.whoami()
    how_long = duration or me.default_duration
    if len(me.targets) > 1 or read_duration(how_long) > LONG:
        screen.note(f"opening all you may: {show_targets(me.targets)}, for {how_long}")


def _opener(args: argparse.Namespace) -> state.Opener:
    """Give the opener: a script for --json and -q, since programs read those, else a person."""
    return "script" if args.quiet or args.json else "hand"


def run_ls(words: list[str]) -> int:
    """`knock ls`"""
    parser = make_parser(
        "ls",
        "List live grants: your own, everyone's for an operator.",
        "knock ls",
        "knock ls --all --limit 20",
        "knock ls --principal alice           for an operator",
        "knock ls --json | jq -r '.grants[].id'",
    )
    parser.add_argument("--all", action="store_true", help="the ended ones too")
    parser.add_argument("--status", metavar="STATUS", help="only these: expired, revoked, superseded, failed")
    parser.add_argument("--principal", metavar="NAME", help="only this principal's")
    parser.add_argument("--source", metavar="CIDR", help="only from this source")
    parser.add_argument("--target", metavar="NAME", help="only for this target")
    parser.add_argument("--limit", type=_positive, metavar="N", help="at most so many")
    args = parser.parse(words)
    if args.all and args.status:
        parser.error("--all and --status are two ways to say which: use one")
    screen = Screen(args.json, args.quiet)
    source = canonical(args.source) if args.source else None
    filters = {"status": args.status, "principal": args.principal, "source": source}
    filters |= {"target": args.target} | ({"status": "all"} if args.all else {})
    with Session(args.profile, screen, family=args.family) as api:
        with screen.progress("asking"):
            grants = list(api.client.grants(limit=args.limit, **filters))
        if not any(filters.values()) and args.limit is None:
            api.keep_grants(grants)
        if args.json:
            screen.json({"grants": [grant.json for grant in grants]})
        elif args.quiet:
            for grant in grants:
                screen.data(grant.id)
        elif grants:
            screen.table([_HEADINGS, *map(_row, grants)])
        else:
            screen.note("no such grants" if any(filters.values()) else "no live grants")
        api.note_clock()
    return 0


_HEADINGS = ("GRANT", "STATUS", "PRINCIPAL", "SOURCE", "TARGETS", "UNTIL", "LEFT")


def _row(grant: Grant) -> tuple[str, ...]:
    return (
        grant.id,
        grant.status,
        grant.principal.name,
        grant.source,
        " ".join(target.name for target in grant.targets),
        show_time(grant.expires_at),
        show_left(grant.seconds_left) if grant.live else "-",
    )


def run_show(words: list[str]) -> int:
    """`knock show ID`"""
    parser = make_parser(
        "show",
        "Show one grant and what happened to it.",
        "knock show alice_203-0-113-7_20261123T211719Z_1a2b3c4d5e6f7081",
    )
    parser.add_argument("id", type=grant_id, metavar="ID", help="as knock ls shows it")
    args = parser.parse(words)
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api, screen.progress("asking"):
        grant = api.client.grant(args.id)
    if args.json:
        screen.json(grant.json)
        return 0
    if args.quiet:
        screen.data(grant.id)
        return 0
    ended = f"{show_time(grant.ended_at)} by {grant.ended_by or 'nobody named'}" if grant.ended_at else ""
    lines = {
        "grant": grant.id,
        "status": grant.status + (f", {show_left(grant.seconds_left)} left" if grant.live else ""),
        "principal": f"{grant.principal.name} ({grant.principal.id})",
        "source": grant.source,
        "targets": show_targets(grant.targets),
        "renews": grant.renews,
        "requested": show_time(grant.requested_at),
        "until": show_time(grant.expires_at),
        "ended": ended,
        "reason": grant.reason,
        "execution": grant.execution_arn,
    }
    for name, value in lines.items():
        if value:
            screen.data(f"{name + ':':<11}{value}")
    for event in grant.events:
        screen.data(show_event(event))
    return 0


def run_revoke(words: list[str]) -> int:
    """`knock revoke [ID… | --all]`"""
    parser = make_parser(
        "revoke",
        "End grants now. The rules are gone when this returns; what another live grant keeps open is said.\n"
        "Connections that are open stay open. Without an ID: what was opened by hand on this machine; what\n"
        "a script, `knock run`, a watch or another machine opened ends by its id, or with --all.",
        "knock revoke                         what you opened here",
        "knock revoke ID --reason 'laptop lost'",
        "knock revoke --all                   all of yours",
        usage="knock revoke [ID… | --all] [--reason TEXT] [-4 | -6] [--json | -q]",
    )
    parser.add_argument("ids", nargs="*", type=grant_id, metavar="ID", help="as knock ls shows it")
    parser.add_argument("--all", action="store_true", help="all your own live grants")
    parser.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    args = parser.parse(words)
    if args.all and args.ids:
        parser.error("name grants or say --all, not both")
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api:
        ids = args.ids
        if not ids:
            with screen.progress("asking"):
                ids = api.own_ids(everything=args.all)
        ended, code = api.for_each(ids, lambda grant_id: api.revoke(grant_id, args.reason), "revoking")
        lines = [f"{g.status}: {show_targets(g.targets)} from {g.source}, grant {g.id}" for g in ended]
        for line in lines:
            screen.matters(line)
        if not args.json:
            for grant, line in zip(ended, lines, strict=True):
                screen.data(grant.id if args.quiet else line)
            screen.flush()
        answered = (args.json or not args.quiet) and code != CannotReach.exit_code
        still_open = _still_open(api, ended, screen) if answered else None
    if args.json:
        screen.json(
            {
                "grants": [grant.json for grant in ended],
                "still_open": None if still_open is None else [grant.json for grant in still_open],
            }
        )
        screen.flush()
    return code


def _still_open(api: Session, ended: list[Grant], screen: Screen) -> list[Grant] | None:
    """Report the grants that keep targets open, and give them; None if they could not be read."""
    try:
        still_open = api.beside(ended)
    except KnockError as error:
        screen.note(f"what other grants keep open could not be asked: {error}")
        return None
    for grant in still_open:
        screen.note(say_still_open(grant))
    return still_open


def run_renew(words: list[str]) -> int:
    """`knock renew [ID… | --all]`"""
    parser = make_parser(
        "renew",
        "Knock again in place of what is open, for as long as it was asked for. Access is not interrupted.\n"
        "Without an ID: what was opened by hand on this machine. What a script, a watch or another machine\n"
        "opened is renewed only when it is named.",
        "knock renew                          what you opened from the address you are at",
        "knock renew ID --for 4h",
        "knock renew --all",
        usage="knock renew [ID… | --all] [--for TIME] [-4 | -6] [--json | -q]",
    )
    parser.add_argument("ids", nargs="*", type=grant_id, metavar="ID", help="as knock ls shows it")
    parser.add_argument("--all", action="store_true", help="what you opened from any source")
    parser.add_argument(
        "--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long: 90m, 8h, 1d, PT8H"
    )
    args = parser.parse(words)
    if args.all and args.ids:
        parser.error("name grants or say --all, not both")
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api:
        with screen.progress("asking"):
            if args.ids:
                grants = [api.client.grant(grant_id) for grant_id in args.ids]
            else:
                grants = api.renewable(everything=args.all)
        by = _opener(args)
        renewed, code = api.for_each(grants, lambda grant: api.renew(grant, args.duration, by), "renewing")
        for grant in renewed:
            screen.matters(f"{say_open(grant)}; end it with `knock revoke {grant.id}`")
        if args.json:
            screen.json({"grants": [grant.json for grant in renewed]})
        else:
            for grant in renewed:
                screen.data(grant.id if args.quiet else say_open(grant))
        screen.flush()
        api.note_clock()
    return code


def run_whoami(words: list[str]) -> int:
    """`knock whoami`"""
    parser = make_parser(
        "whoami",
        "Ask who the key is, which address the API sees, and what you may open.",
        "knock whoami",
        "knock whoami --json | jq -r .source",
    )
    args = parser.parse(words)
    screen = Screen(args.json, args.quiet)
    with Session(args.profile, screen, family=args.family) as api:
        with screen.progress("asking"):
            me = api.client.whoami()
        api.keep_targets(me.targets)
        if args.json:
            screen.json(me.json)
        elif args.quiet:
            screen.data(me.principal.name)
        else:
            screen.data(f"{me.principal.name} ({me.principal.id}), seen from {me.source} by {api.client.url}")
            screen.data(f"may open {show_targets(me.targets) or 'nothing'}")
            for target in me.targets:
                if len(target.families) == 1:
                    way = target.families[0].replace("ipv", "IPv")
                    screen.data(f"{target.name} can be reached over {way} alone")
            if me.max_duration:
                screen.data(f"for {me.max_duration} at most, {me.default_duration} if nothing is said")
            if me.max_live:
                screen.data(f"{me.live} of at most {me.max_live} grants at once are live")
            if me.any_source:
                screen.data("from another source too, up to /{} (IPv4), /{} (IPv6)".format(*me.any_source))
            if me.operator:
                screen.data("and see and end everyone's grants, as an operator")
        for fault in me.faults:
            screen.note(fault)
        api.note_clock()
    return 0


# ---------------------------------------------------------------------- profiles


def run_login(words: list[str]) -> int:
    """`knock login`"""
    parser = make_parser(
        "login",
        "Store the API's URL and your key: in the system's keyring when there is one, else in a file that\n"
        "only you can read. The key is asked for, or read from standard input; it is never an argument.",
        "knock login",
        "pass show knock | knock login --url https://abc.execute-api.eu-central-1.amazonaws.com/prod",
        "knock login --profile work",
    )
    parser.add_argument(
        "--url", metavar="URL", help="the API's URL (default: KNOCK_URL, else it is asked for)"
    )
    parser.add_argument("--no-keyring", action="store_true", help="keep the key in the file")
    parser.add_argument("--no-check", action="store_true", help="store it without trying it")
    args = parser.parse(words)
    screen = Screen(args.json, args.quiet)
    url, key = _ask(args.url or os.environ.get("KNOCK_URL"), parser)
    name = config.profile_name(args.profile)
    who = None
    with Client(url, key, family=args.family) as client:
        if not args.no_check:
            with screen.progress("trying the key"):
                who = client.whoami()
    where = config.store(name, client.url, key.strip(), use_keyring=not args.no_keyring)
    state.forget(url=client.url)
    for variable in ("KNOCK_URL", "KNOCK_API_KEY"):
        if os.environ.get(variable):
            screen.note(f"{variable} is set, and wins over what is stored now")
    if args.json:
        principal = who.json.get("principal") if who else None
        screen.json({"profile": name, "url": client.url, "principal": principal, "key_in": where})
    elif not args.quiet:
        screen.data(
            f"profile {name}: {f'{who.principal.name} at ' if who else ''}{client.url}, key in {where}"
        )
    return 0


def _ask(url: str | None, parser: argparse.ArgumentParser) -> tuple[str, str]:
    """Read URL and key from the terminal, or the key from a pipe."""
    if not sys.stdin.isatty():
        if not url:
            parser.error("standard input is read for the key, so the URL must be named: --url URL")
        return url, sys.stdin.readline()
    import getpass

    if not url:
        print("URL of the API: ", end="", file=sys.stderr, flush=True)
        url = sys.stdin.readline()
    try:
        return url, getpass.getpass("API key (it is not shown): ", sys.stderr)
    except EOFError:
        raise ConfigurationError("no key was given") from None


def run_logout(words: list[str]) -> int:
    """`knock logout`"""
    parser = make_parser(
        "logout",
        "Delete a profile and its key from this machine. Grants stay until their end.",
        "knock logout",
        "knock logout --profile work",
        calls=False,
    )
    args = parser.parse(words)
    screen = Screen(args.json, args.quiet)
    name = config.profile_name(args.profile)
    if not config.forget(name):
        raise ConfigurationError(f"there is no profile {name!r}")
    if args.json:
        screen.json({"profile": name})
    elif not args.quiet:
        screen.data(f"profile {name} is deleted")
    return 0


def run_profiles(words: list[str]) -> int:
    """`knock profiles`"""
    parser = make_parser(
        "profiles",
        "List what is stored. No key is shown.",
        "knock profiles",
        "KNOCK_PROFILE=work knock",
        calls=False,
    )
    args = parser.parse(words)
    screen = Screen(args.json, args.quiet)
    current = config.profile_name(args.profile)
    stored = sorted(config.profiles().items())
    if args.json:
        members = [
            {"name": name, "url": profile["url"], "key_in": _key_in(profile), "current": name == current}
            for name, profile in stored
        ]
        screen.json({"profiles": members})
    elif args.quiet:
        for name, _ in stored:
            screen.data(name)
    elif stored:
        rows = [
            ("*" if name == current else "", name, profile["url"], _key_in(profile))
            for name, profile in stored
        ]
        screen.table([("", "PROFILE", "URL", "KEY IN"), *rows])
    else:
        screen.note("no profile is stored: run `knock login`")
    return 0


def _key_in(profile: dict[str, str]) -> str:
    return "file" if "key" in profile else "keyring"


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"a number from 1 on was expected, not {text!r}")
    return int(text)
