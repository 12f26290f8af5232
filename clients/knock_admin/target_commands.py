"""The commands about targets, and `why`: their options, and the way from those to `targets.py` and others.

The functions that do the work take values. They are imported when a command runs: importing boto3 takes
longer than `--help` does.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from knock_admin import tags
from knock_admin.arguments import SOURCE, checked, group_count

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from knock_admin.output import Result
    from knock_admin.stack import Stack

_NAME = checked(tags.target_name)
_PORTS = checked(tags.parse_ports)
_PLACES = ("eip", "instance", "interface", "load_balancer", "rds", "ecs", "elasticache")


def _group_id(text: str) -> str:
    if not re.fullmatch(r"sg-[0-9a-f]{8,17}", text):
        raise argparse.ArgumentTypeError(
            f"a security group's id like sg-0123456789abcdef0 was expected, not {text!r}"
        )
    return text


def _rule_id(text: str) -> str:
    from knock_admin.errors import UsageError

    if not re.fullmatch(r"sgr-[0-9a-f]{8,17}", text):
        raise UsageError(
            f"The id of a security group's rule, like sgr-0123456789abcdef0, was expected, not {text!r}."
        )
    return text


def _service(text: str) -> str:
    if not re.fullmatch(r"[\w-]+/[\w-]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"an ECS service like main/web, its cluster first, was expected, not {text!r}"
        )
    return text


def _add_places(command: ArgumentParser) -> None:
    """Add the options that name resources to attach to, or to detach from."""
    for option, metavar, text, read in (
        ("--eip", "ADDRESS", "the interface behind an Elastic IP", str),
        ("--instance", "ID", "every interface of an instance", str),
        ("--interface", "ID", "one network interface", str),
        ("--load-balancer", "NAME", "an application or network load balancer, by name or ARN", str),
        ("--rds", "ID", "a DB instance or cluster of RDS or Aurora", str),
        ("--ecs", "CLUSTER/SERVICE", "an ECS service; its tasks are replaced", _service),
        ("--elasticache", "ID", "a replication group or cache cluster", str),
    ):
        command.add_argument(option, nargs="+", default=[], metavar=metavar, help=text, type=read)


def _add_revoke(command: ArgumentParser, text: str) -> None:
    command.add_argument("--revoke", action="store_true", help=text)


def register(commands: Any, target: Any, command: Callable[..., ArgumentParser]) -> None:
    """Add the commands of the group `target`, and `why` to `commands`; `command` makes one."""
    _register_pools(target, command)
    _register_changes(target, command)
    _register_removals(target, command)
    why = command(
        commands,
        "why NAME|RULE",
        "target_commands:why",
        "say why a person is not let in; or who is in by a rule of EC2's, and who made it",
        "knock-admin why alice",
        "knock-admin why alice --source 203.0.113.7",
        "knock-admin why sgr-0123456789abcdef0",
        changing=False,
    )
    why.add_argument(
        "what", metavar="NAME|RULE", help="a key, by name or id; or a security group's rule, by id"
    )
    why.add_argument("--source", type=SOURCE, help="from where: an address or a CIDR")


def _register_pools(target: Any, command: Callable[..., ArgumentParser]) -> None:
    add = command(
        target,
        "add NAME [--ports PORTS [PORTS ...]]",
        "target_commands:add",
        "make a target, complete it, or attach it to more",
        "knock-admin target add bastion --ports 22/tcp --groups 2 --eip 198.51.100.10",
        "knock-admin target add web --ports 80/tcp 443/tcp --load-balancer web --dry-run",
        "knock-admin target add orders --ports 5432/tcp --rds orders",
    )
    add.add_argument("name", type=_NAME, help="the target's name")
    add.add_argument("--ports", nargs="+", type=_PORTS, metavar="PORTS", help="like 22/tcp or 8000-8010/udp")
    add.add_argument(
        "--groups", type=group_count, metavar="N", help="how many groups its pool has (default: 1)"
    )
    add.add_argument("--vpc", metavar="ID", help="where, when it is not clear from what it is attached to")
    _add_places(add)
    adopt = command(
        target,
        "adopt NAME SG [SG ...] [--ports PORTS [PORTS ...]]",
        "target_commands:adopt",
        "make groups a target that are there already, by tagging them",
        "knock-admin target adopt orders sg-0123456789abcdef0 --ports 5432/tcp",
    )
    adopt.add_argument("name", type=_NAME, help="the target's name")
    adopt.add_argument("group", nargs="+", type=_group_id, metavar="SG", help="a security group, by id")
    adopt.add_argument(
        "--ports", nargs="+", type=_PORTS, metavar="PORTS", help="what a knock opens, like 5432/tcp"
    )
    show = command(
        target,
        "ls [NAME ...]",
        "target_commands:show",
        "list targets: rules used and free, and what they are attached to",
        "knock-admin target ls bastion --json",
        changing=False,
    )
    show.add_argument("name", nargs="*", help="only these")


def _register_changes(target: Any, command: Callable[..., ArgumentParser]) -> None:
    change = command(
        target,
        "set NAME",
        "target_commands:change",
        "change a target's ports, or the address families it has",
        "knock-admin target set bastion --ports 2222/tcp",
        "knock-admin target set bastion --families ipv4",
    )
    change.add_argument("name", type=_NAME, help="the target's name")
    change.add_argument("--ports", nargs="+", type=_PORTS, metavar="PORTS", help="all ports it shall have")
    change.add_argument(
        "--families",
        nargs="+",
        choices=["ipv4", "ipv6", "auto", "any"],
        metavar="FAMILY",
        help="ipv4, ipv6 or both; auto finds out; any accepts knocks over both",
    )
    _add_revoke(change, "end live grants of it, which keep the old ports else")
    rename = command(
        target,
        "rename OLD NEW",
        "target_commands:rename",
        "give a target another name, in the keys that may open it too",
        "knock-admin target rename bastion gate",
    )
    rename.add_argument("name", type=_NAME, metavar="OLD", help="the target's name")
    rename.add_argument("new", type=_NAME, metavar="NEW", help="the name it shall have")
    _add_revoke(rename, "end live grants of it, which keep the old name else")
    grow = command(
        target,
        "grow NAME --groups N",
        "target_commands:grow",
        "give a target more groups, attached where the others are",
        "knock-admin target grow bastion --groups 4",
    )
    grow.add_argument("name", type=_NAME, help="the target's name")
    grow.add_argument(
        "--groups", type=group_count, metavar="N", required=True, help="how many groups it shall have"
    )


def _register_removals(target: Any, command: Callable[..., ArgumentParser]) -> None:
    detach = command(
        target,
        "detach NAME",
        "target_commands:detach",
        "take a target's groups off what they are attached to",
        "knock-admin target detach bastion --instance i-0123456789abcdef0",
    )
    detach.add_argument("name", type=_NAME, help="the target's name")
    detach.add_argument("--all", action="store_true", help="off everything")
    _add_places(detach)
    live = detach.add_mutually_exclusive_group()
    live.add_argument("--revoke", action="store_true", help="end live grants of it first")
    live.add_argument(
        "--leave-grants", action="store_true", help="leave live grants as they are: they reach nothing there"
    )
    release = command(
        target,
        "release NAME [SG ...]",
        "target_commands:release",
        "take Knock's tags off a target's groups, and leave the groups",
        "knock-admin target release orders",
    )
    release.add_argument("name", type=_NAME, help="the target's name")
    release.add_argument("group", nargs="*", type=_group_id, metavar="SG", help="only these groups")
    _add_revoke(release, "end live grants of it first")
    remove = command(
        target,
        "rm NAME",
        "target_commands:remove",
        "delete a target's groups that knock-admin made, when they are attached to nothing",
        "knock-admin target rm bastion",
    )
    remove.add_argument("name", type=_NAME, help="the target's name")
    _add_revoke(remove, "end live grants of it first")
    remove.add_argument("--yes", action="store_true", help="do not ask at a terminal")


def _read_places(args: Namespace) -> dict[str, list[str]]:
    return {name: getattr(args, name) for name in _PLACES}


def _ports(args: Namespace) -> tuple[tags.Ports, ...] | None:
    from knock_admin.errors import UsageError

    try:
        return tags.parse_ports(" ".join(args.ports)) if args.ports else None
    except ValueError as error:  # each is well-formed, and together they are too long for a tag
        raise UsageError(f"--ports: {error}") from error


def add(stack: Stack, args: Namespace) -> Result:
    from knock_admin import targets

    return targets.add(
        stack, args.name, ports=_ports(args), groups=args.groups, vpc=args.vpc, places=_read_places(args)
    )


def adopt(stack: Stack, args: Namespace) -> Result:
    from knock_admin import adopt

    return adopt.adopt(stack, args.name, args.group, ports=_ports(args))


def show(stack: Stack, args: Namespace) -> Result:
    from knock_admin import targets

    return targets.show(stack, args.name)


def change(stack: Stack, args: Namespace) -> Result:
    from knock_admin import retarget
    from knock_admin.errors import UsageError

    families = sorted(set(args.families or ()))
    if len(families) > 1 and {"auto", "any"} & set(families):
        raise UsageError("--families: auto and any stand alone.")
    text = " ".join(families) if args.families else None
    return retarget.change(
        stack, args.name, ports=_ports(args), families=text, now=args.now, revoke=args.revoke
    )


def rename(stack: Stack, args: Namespace) -> Result:
    from knock_admin import retarget

    return retarget.rename(stack, args.name, args.new, now=args.now, revoke=args.revoke)


def grow(stack: Stack, args: Namespace) -> Result:
    from knock_admin import targets

    return targets.grow(stack, args.name, args.groups)


def detach(stack: Stack, args: Namespace) -> Result:
    from knock_admin import targets

    return targets.detach(
        stack,
        args.name,
        places=_read_places(args),
        everywhere=args.all,
        now=args.now,
        revoke=args.revoke,
        leave=args.leave_grants,
    )


def release(stack: Stack, args: Namespace) -> Result:
    from knock_admin import adopt

    return adopt.release(stack, args.name, args.group, now=args.now, revoke=args.revoke)


def remove(stack: Stack, args: Namespace) -> Result:
    from knock_admin import targets

    return targets.remove(stack, args.name, now=args.now, revoke=args.revoke, yes=args.yes)


def why(stack: Stack, args: Namespace) -> Result:
    from knock_admin import why, why_key
    from knock_admin.errors import UsageError

    if args.what.startswith("sgr-"):
        if args.source:
            raise UsageError("--source goes with a key: a rule has a source of its own.")
        return why.rule(stack, _rule_id(args.what), now=args.now)
    return why_key.key(stack, args.what, source=args.source, now=args.now)
