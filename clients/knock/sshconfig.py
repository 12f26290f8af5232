"""SSH that knocks by itself: the configuration to print, and what it runs.

    Match host bastion exec "knock ssh-hook …"      ssh runs the hook before it connects. When the hook
                                                    fails, ssh tries all the same: a static rule may let it in
    ProxyCommand knock ssh-proxy … %h %p            the program knocks, connects, and hands ssh the open
                                                    connection (ProxyUseFdpass): no byte passes through it

The hook answers from `knock.state` when a live grant for this network is known: no name is resolved and
nothing is sent. Where ssh only shows its configuration (-G) or asks a connection that runs (-O), it opens
nothing. The second form tries the addresses of the kind that was let in first, and so cannot run into an open
IPv4 and a closed IPv6; it needs a system where a process can hand over a connection (Linux, macOS, the BSDs).

Only names without shell characters are put into the configuration: ssh gives the line to a shell.
"""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any

from . import config, network, state
from .errors import ConfigurationError, KnockError

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Iterator, Sequence

# ssh's user is watching: a hook gives up long before they do, and ssh then tries as it is.
WAIT = 15.0  # seconds for a pending grant
ANSWER, CONNECT, TRIES, KEYRING = 10.0, 3.0, 2, 3.0  # seconds; each knock of a hook is tried so often


def run_ssh_config(words: list[str]) -> int:
    """`knock ssh-config HOST…`"""
    from .cli import parser, time_with_unit

    made = parser(
        "ssh-config",
        "Print an ssh configuration that knocks by itself. Nothing is changed: put it into a file of its\n"
        "own, and include that in the first line of ~/.ssh/config.",
        "knock ssh-config bastion > ~/.ssh/knock.conf    and at the top of ~/.ssh/config: Include knock.conf",
        "knock ssh-config bastion db --target bastion --for 8h",
        "knock ssh-config --proxy-command bastion",
        quiet=False,
    )
    made.add_argument("hosts", nargs="+", metavar="HOST", help="as it is typed after ssh")
    made.add_argument("--target", action="append", metavar="NAME", help="what to open (default: all you may)")
    made.add_argument(
        "--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long: 90m, 8h, 1d"
    )
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    made.add_argument("--proxy-command", action="store_true", help="print the ProxyCommand variant")
    args = made.parse(words)
    for host in args.hosts:
        if not re.fullmatch(r"[A-Za-z0-9_*?.:-]+", host) or host.startswith("-"):
            raise ConfigurationError(f"{host!r} is not a host name or pattern")
        if args.proxy_command and _is_pattern(host):
            raise ConfigurationError(
                f"{host!r}: --proxy-command takes no pattern. ssh puts the name it was given into the "
                "command, which a shell reads, and a pattern lets anything through: name each host"
            )
    text = block(args)
    from .screen import Screen

    screen = Screen(args.json)
    if args.json:
        screen.json({"hosts": args.hosts, "config": text})
    else:
        screen.text(text)
    return 0


def block(args: argparse.Namespace) -> str:
    """Write the configuration for some hosts."""
    options: list[str] = []
    for name, value in (("--profile", args.profile), ("--for", args.duration), ("--reason", args.reason)):
        options += [name, value] if value else []
    for target in args.target or ():
        options += ["--target", target]
    if args.family:
        options.append(f"-{args.family}")
    hosts = " ".join(args.hosts)
    if args.proxy_command:
        return (
            "# knock: opens before ssh connects, and connects itself\n"
            f"Host {hosts}\n"
            f"    ProxyCommand {_command('ssh-proxy', options)} -- %h %p\n"
            "    ProxyUseFdpass yes\n"
        )
    # One host is named to the hook, so that it can tell which address ssh will use. ssh's own %h could be
    # anything that a pattern lets through, and a shell reads it.
    if len(args.hosts) == 1 and not _is_pattern(args.hosts[0]):
        options += ["--host", args.hosts[0]]
    return (
        "# knock: opens before ssh connects. Keep this above the Host blocks of the same hosts:\n"
        '# "Match host" compares with HostName, once that is set.\n'
        f'Match host {hosts.replace(" ", ",")} exec "{_command("ssh-hook", options)}"\n'
    )


def _is_pattern(host: str) -> bool:
    return bool(set("*?") & set(host))


def _command(name: str, options: Sequence[str]) -> str:
    """Write a command for ssh's configuration: for a shell, % doubled, no double quote in it."""
    from shlex import join

    command = join([*_program(), name, *options])
    if not command.isprintable() or '"' in command:
        raise ConfigurationError("ssh has no way to write quotes inside its quotes here: leave out ' and \"")
    return command.replace("%", "%%")


def _program() -> list[str]:
    """Give the words that start this program. Absolute: programs started from a desktop have another PATH."""
    from pathlib import Path
    from shutil import which

    found = which(sys.argv[0]) if Path(sys.argv[0]).stem == "knock" else None
    if found:
        # Not resolved: a link that pipx made outlives an upgrade, what it points to does not.
        return [str(Path(found).absolute())]
    # From a checkout. Not `-m knock`: that looks for modules in the current folder first, which is anybody's.
    folder = Path(__file__).absolute().parent
    if folder.parent.is_file():  # knock.pyz, which was not started by its own name
        return [sys.executable, "-I", str(folder.parent)]
    return [sys.executable, "-I", str(folder / "__main__.py")]


# ---------------------------------------------------------------------- what ssh runs


def _hook_options(made: argparse.ArgumentParser) -> None:
    from .cli import time_with_unit

    made.add_argument("--target", action="append", default=[], metavar="NAME", help="what to open")
    made.add_argument("--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long")
    made.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")


def run_ssh_hook(words: list[str]) -> int:
    """`knock ssh-hook`: make sure of a grant for this network. Exit code 0 when there is one."""
    from .cli import parser

    made = parser(
        "ssh-hook",
        "What `knock ssh-config` lets ssh run.",
        "knock ssh-hook --target bastion",
        json=False,
        quiet=False,
    )
    _hook_options(made)
    made.add_argument(
        "--host", metavar="HOST", help="where ssh goes, to warn when that is by another address"
    )
    args = made.parse_args(words)
    ensure_open(args, args.host)
    return 0


# Of ssh(1): which options take a value has to be known to find the others.
_SSH_OPTIONS = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVw:W:XYy"


def only_asks() -> bool:
    """Say whether the ssh that started this hook makes no connection of its own.

    It shows its configuration (-G), or asks a connection that runs already (-O). OpenSSH runs `Match exec`
    for these too, and tells the command nothing of it.
    """
    from getopt import GetoptError, getopt

    for words in _ancestors():
        if not words or words[0].rpartition("/")[2] != "ssh":
            continue
        given, left = [], words[1:]
        try:
            for _ in range(2):  # ssh takes options on either side of the host
                found, left = getopt(left, _SSH_OPTIONS)
                given += [name for name, _ in found]
                left = left[1:]
        except GetoptError:
            pass  # ssh itself will say so
        return bool({"-G", "-O"} & set(given))
    return False


def _ancestors() -> Iterator[list[str]]:
    """Give the words of this process's parent, and of two more: a shell may stand between."""
    import os

    pid = os.getppid()
    for _ in range(3):
        if sys.platform.startswith("linux"):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 — pathlib is not worth its import
                    words = [word.decode(errors="replace") for word in file.read().split(b"\0")[:-1]]
                with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                    pid = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                return
        elif sys.platform == "darwin":
            parent, _, line = (
                network.run("/bin/ps", "-o", "ppid=,args=", "-p", str(pid)).strip().partition(" ")
            )
            if not parent.isdigit():
                return
            pid, words = int(parent), line.split()
        else:
            return
        yield words


def ensure_open(args: argparse.Namespace, host: str | None) -> str:
    """Knock unless a live grant for this network is known. Gives the source that is let in."""
    url = config.address(args.profile)
    where = network.fingerprint()
    entry = state.known(url, args.target, where, args.family)
    if entry is None:
        if only_asks():
            return ""
        with state.opening(url):
            # Another ssh may have knocked meanwhile.
            entry = state.known(url, args.target, where, args.family)
            if entry is None:
                return _open(args, host)
    source: str = entry["source"]
    return source


def _open(args: argparse.Namespace, host: str | None) -> str:
    from .errors import AnswerLost, CannotReach
    from .screen import Screen, say_open
    from .session import Limits, Session

    screen = Screen(as_json=False, quiet=False)
    # The API sees the address of the family it is called by; where the host has one alone, that is the one.
    way = args.family or (network.only_family(host) if host else None)
    limits = Limits(ANSWER, CONNECT, TRIES, KEYRING)
    with (
        Session(args.profile, screen, limits=limits, family=way) as api,
        screen.progress("knocking"),
    ):
        told: dict[str, Any] = {"wait": WAIT, "by": "hook", "earlier": _earlier(api.url, args)}
        try:
            grant = api.open(args.target, args.duration, args.reason, **told)
        except CannotReach as error:
            if args.family or way is None or isinstance(error, AnswerLost):
                raise
            api.client.family = None  # the API cannot be reached by the host's family
            grant = api.open(args.target, args.duration, args.reason, **told)
    screen.note(say_open(grant))
    api.notes(grant, named_source=False, host=host)
    return grant.source


def _earlier(url: str, args: argparse.Namespace) -> str | None:
    """Give the id of a hook's own grant of these targets that is about to end, by what is remembered here.

    One that would outlast this knock is left to its end.
    """
    from .session import read_duration

    here = network.fingerprint()
    for entry in state.opened_by("hook", url, args.target):
        lasts = read_duration(args.duration) if args.duration else state.MARGIN
        if entry["network"] == here and entry["until"] - time.time() < lasts:
            grant_id: str = entry["id"]
            return grant_id
    return None


def run_ssh_proxy(words: list[str]) -> int:
    """`knock ssh-proxy HOST PORT`: knock, connect, and hand the connection to ssh on standard output."""
    from .cli import parser
    from .screen import Screen

    made = parser(
        "ssh-proxy",
        "What the ProxyCommand of `knock ssh-config --proxy-command` runs, with ProxyUseFdpass yes.",
        "knock ssh-proxy --target bastion -- bastion.example.com 22",
        json=False,
        quiet=False,
    )
    _hook_options(made)
    made.add_argument("host", metavar="HOST")
    made.add_argument("port", type=int, metavar="PORT")
    args = made.parse_args(words)
    source = None
    try:
        source = ensure_open(args, args.host)
    except ConfigurationError:
        raise
    except KnockError as error:
        # As with the hook: what is open already, ssh may still use.
        Screen(as_json=False, quiet=False).error(error)
    hand_over(connect(args.host, args.port, source))
    return 0


def connect(host: str, port: int, source: str | None) -> socket.socket:
    """Connect to a host, by addresses of the source's kind first. Raises KnockError."""
    import socket

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise KnockError(f"the name {host} is not known: {error.strerror}") from error
    if source:
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        found.sort(key=lambda info: info[0] != family)  # stable: the system's order within a kind
    trouble = "no address"
    for family, kind, protocol, _, address in found:
        try:
            sock = socket.socket(family, kind, protocol)  # fails where IPv6 is switched off
        except OSError as error:
            trouble = f"{address[0]}: {error.strerror}"
            continue
        sock.settimeout(10)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            trouble = f"{address[0]}: {error.strerror or 'no answer'}"
            continue
        sock.settimeout(None)
        return sock
    raise KnockError(f"{host} port {port} does not take the connection ({trouble})")


def hand_over(connection: Any) -> None:
    """Pass an open connection to the ssh that started us, which waits for it on standard output."""
    import os
    import socket

    if not hasattr(socket, "send_fds"):
        raise ConfigurationError("this system cannot hand over a connection: use the Match variant")
    try:
        with socket.socket(fileno=os.dup(1)) as ssh:
            socket.send_fds(ssh, [b"\0"], [connection.fileno()])
    except OSError as error:
        raise ConfigurationError("ssh does not wait for a connection: set ProxyUseFdpass yes") from error
    finally:
        connection.close()
