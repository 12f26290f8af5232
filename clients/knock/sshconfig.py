"""`knock ssh-config` prints a configuration with which ssh runs `ssh-hook` or `ssh-proxy`, and so knocks.

    Match host bastion exec "knock ssh-hook …"      ssh runs the hook before it connects. It connects also if
                                                    the hook fails: a static rule may let it in
    ProxyCommand knock ssh-proxy … %h %p            the program knocks, connects, and passes the connection
                                                    to ssh (ProxyUseFdpass), which then uses it directly

If `knock.state` has a live grant for this network, the hook resolves no name and sends nothing. If ssh only
prints its configuration (-G) or controls a running connection (-O), the hook opens nothing. The second form
connects to addresses of the grant's family first, so a closed IPv6 does not delay an open IPv4. It needs a
system where a process can pass a connection to another (Linux, macOS, the BSDs).

Only names without shell characters are put into the configuration, since ssh passes the line to a shell.
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

# The user of ssh waits for the hook, so its limits are short; ssh then connects all the same.
WAIT = 15.0  # seconds to wait for a pending grant
ANSWER, CONNECT, TRIES, KEYRING = 10.0, 3.0, 2, 3.0  # seconds, but for the most attempts of a call


class Hook:
    """What a hook opens, as which profile, and over which address family."""

    __slots__ = ("duration", "family", "profile", "reason", "targets")

    def __init__(self, args: argparse.Namespace) -> None:
        self.targets: list[str] = args.target or []
        self.duration: str | None = args.duration
        self.reason: str | None = args.reason
        self.profile: str | None = args.profile
        self.family: int | None = args.family


def run_ssh_config(words: list[str]) -> int:
    """`knock ssh-config HOST…`"""
    from .cli import make_parser, time_with_unit

    parser = make_parser(
        "ssh-config",
        "Print an ssh configuration that knocks by itself. Nothing is changed: put it into a file of its\n"
        "own, and include that in the first line of ~/.ssh/config.",
        "knock ssh-config bastion > ~/.ssh/knock.conf    and at the top of ~/.ssh/config: Include knock.conf",
        "knock ssh-config bastion db --target bastion --for 8h",
        "knock ssh-config --proxy-command bastion",
        quiet=False,
    )
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="as it is typed after ssh")
    parser.add_argument(
        "--target", action="append", metavar="NAME", help="what to open (default: all you may)"
    )
    parser.add_argument(
        "--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long: 90m, 8h, 1d"
    )
    parser.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")
    parser.add_argument("--proxy-command", action="store_true", help="print the ProxyCommand variant")
    args = parser.parse(words)
    for host in args.hosts:
        if not re.fullmatch(r"[A-Za-z0-9_*?.:-]+", host) or host.startswith("-"):
            raise ConfigurationError(f"{host!r} is not a host name or pattern")
        if args.proxy_command and _is_pattern(host):
            raise ConfigurationError(
                f"{host!r}: --proxy-command takes no pattern. ssh puts the name it was given into the "
                "command, which a shell reads, and a pattern lets anything through: name each host"
            )
    text = block(args.hosts, Hook(args), proxy_command=args.proxy_command)
    from .screen import Screen

    screen = Screen(args.json)
    if args.json:
        screen.json({"hosts": args.hosts, "config": text})
    else:
        screen.text(text)
    return 0


def block(hosts: Sequence[str], hook: Hook, *, proxy_command: bool) -> str:
    """Write the configuration for some hosts. Raises ConfigurationError for a text that ssh cannot quote."""
    options: list[str] = []
    texts = {"--profile": hook.profile, "--for": hook.duration, "--reason": hook.reason}
    for name, value in texts.items():
        options += [name, value] if value else []
    for target in hook.targets:
        options += ["--target", target]
    if hook.family:
        options.append(f"-{hook.family}")
    if proxy_command:
        return (
            "# knock: opens before ssh connects, and connects itself\n"
            f"Host {' '.join(hosts)}\n"
            f"    ProxyCommand {_command('ssh-proxy', options)} -- %h %p\n"
            "    ProxyUseFdpass yes\n"
        )
    # A single host is an argument of the hook, which then knows the addresses that ssh will use. ssh's %h may
    # be any text that matches a pattern, and a shell would read it.
    if len(hosts) == 1 and not _is_pattern(hosts[0]):
        options += ["--host", hosts[0]]
    return (
        "# knock: opens before ssh connects. Keep this above the Host blocks of the same hosts:\n"
        '# "Match host" compares with HostName, once that is set.\n'
        f'Match host {",".join(hosts)} exec "{_command("ssh-hook", options)}"\n'
    )


def _is_pattern(host: str) -> bool:
    return bool(set("*?") & set(host))


def _command(name: str, options: Sequence[str]) -> str:
    """Write a command for ssh's configuration: quoted for a shell, with % doubled.

    Raises ConfigurationError for quotes, which ssh cannot escape.
    """
    from shlex import join

    command = join([*_program(), name, *options])
    if not command.isprintable() or '"' in command:
        raise ConfigurationError("ssh has no way to write quotes inside its quotes here: leave out ' and \"")
    return command.replace("%", "%%")


def _program() -> list[str]:
    """Give the words that start this program, with an absolute path: desktop programs have another PATH."""
    from pathlib import Path
    from shutil import which

    path = which(sys.argv[0]) if Path(sys.argv[0]).stem == "knock" else None
    if path:
        # Links are not resolved: pipx keeps its links in an upgrade, and removes the files they point to.
        return [str(Path(path).absolute())]
    # From a checkout. `-m knock` would import modules from the current folder, which others may write.
    folder = Path(__file__).absolute().parent
    if folder.parent.is_file():  # knock.pyz, started with Python
        return [sys.executable, "-I", str(folder.parent)]
    return [sys.executable, "-I", str(folder / "__main__.py")]


# ---------------------------------------------------------------------- the commands that ssh runs


def _hook_options(parser: argparse.ArgumentParser) -> None:
    from .cli import time_with_unit

    parser.add_argument("--target", action="append", default=[], metavar="NAME", help="what to open")
    parser.add_argument("--for", dest="duration", type=time_with_unit, metavar="TIME", help="how long")
    parser.add_argument("--reason", metavar="TEXT", help="why; it is kept in the trail")


def run_ssh_hook(words: list[str]) -> int:
    """`knock ssh-hook`: knock, unless there is a grant for this network. Exit code 0 if there is one then."""
    from .cli import make_parser

    parser = make_parser(
        "ssh-hook",
        "What `knock ssh-config` lets ssh run.",
        "knock ssh-hook --target bastion",
        json=False,
        quiet=False,
    )
    _hook_options(parser)
    parser.add_argument(
        "--host", metavar="HOST", help="where ssh goes, to warn when that is by another address"
    )
    args = parser.parse_args(words)
    ensure_open(Hook(args), args.host)
    return 0


# The options of ssh(1); a colon marks those with a value.
_SSH_OPTIONS = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVw:W:XYy"


def only_asks() -> bool:
    """Say whether the ssh that started this hook will not connect.

    It prints its configuration (-G), or controls a running connection (-O). OpenSSH runs `Match exec` in
    these cases as well, and does not tell the command.
    """
    from getopt import GetoptError, getopt

    for words in _ancestors():
        if not words or words[0].rpartition("/")[2] != "ssh":
            continue
        options, rest = [], words[1:]
        try:
            for _ in range(2):  # ssh has options before and after the host
                parsed, rest = getopt(rest, _SSH_OPTIONS)
                options += [name for name, _ in parsed]
                rest = rest[1:]
        except GetoptError:
            pass  # ssh reports it
        return bool({"-G", "-O"} & set(options))
    return False


def _ancestors() -> Iterator[list[str]]:
    """Give the command lines of this process's parent and two more ancestors: a shell may be between."""
    import os

    pid = os.getppid()
    for _ in range(3):
        if sys.platform.startswith("linux"):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 — importing pathlib would take too long
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


def ensure_open(hook: Hook, host: str | None) -> str:
    """Knock, unless the state has a live grant for this network. Gives the grant's source.

    The source is empty, and nothing is opened, if ssh will not connect.
    """
    url = config.address(hook.profile)
    where = network.fingerprint()
    entry = state.known(url, hook.targets, where, hook.family)
    if entry is None:
        if only_asks():
            return ""
        with state.opening(url):
            # Another ssh may have knocked while this one waited.
            entry = state.known(url, hook.targets, where, hook.family)
            if entry is None:
                return _open(hook, host)
    source: str = entry["source"]
    return source


def _open(hook: Hook, host: str | None) -> str:
    from .errors import AnswerLost, CannotReach
    from .screen import Screen, say_open
    from .session import Limits, Session

    screen = Screen(as_json=False, quiet=False)
    # The API sees an address of the family over which it is called: the host's, if it has only one.
    way = hook.family or (network.only_family(host) if host else None)
    limits = Limits(ANSWER, CONNECT, TRIES, KEYRING)
    with (
        Session(hook.profile, screen, limits=limits, family=way) as api,
        screen.progress("knocking"),
    ):
        parameters: dict[str, Any] = {"wait": WAIT, "by": "hook", "earlier": _earlier(api.url, hook)}
        try:
            grant = api.open(hook.targets, hook.duration, hook.reason, **parameters)
        except CannotReach as error:
            if hook.family or way is None or isinstance(error, AnswerLost):
                raise
            api.client.family = None  # the API cannot be reached over the host's family
            grant = api.open(hook.targets, hook.duration, hook.reason, **parameters)
    screen.note(say_open(grant))
    api.notes(grant, named_source=False, host=host)
    return grant.source


def _earlier(url: str, hook: Hook) -> str | None:
    """Give the id of a hook's grant of these targets that ends before this knock would; else None."""
    from .session import read_duration

    here = network.fingerprint()
    for entry in state.opened_by("hook", url, hook.targets):
        lasts = read_duration(hook.duration) if hook.duration else state.MARGIN
        if entry["network"] == here and entry["until"] - time.time() < lasts:
            grant_id: str = entry["id"]
            return grant_id
    return None


def run_ssh_proxy(words: list[str]) -> int:
    """`knock ssh-proxy HOST PORT`: knock, connect, and pass the connection to ssh on standard output."""
    from .cli import make_parser
    from .screen import Screen

    parser = make_parser(
        "ssh-proxy",
        "What the ProxyCommand of `knock ssh-config --proxy-command` runs, with ProxyUseFdpass yes.",
        "knock ssh-proxy --target bastion -- bastion.example.com 22",
        json=False,
        quiet=False,
    )
    _hook_options(parser)
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("port", type=int, metavar="PORT")
    args = parser.parse_args(words)
    source = None
    try:
        source = ensure_open(Hook(args), args.host)
    except ConfigurationError:
        raise
    except KnockError as error:
        # As with the hook, a static rule may let ssh in.
        Screen(as_json=False, quiet=False).error(error)
    hand_over(connect(args.host, args.port, source))
    return 0


def connect(host: str, port: int, source: str | None) -> socket.socket:
    """Connect to a host, with addresses of the source's family first. Raises KnockError."""
    import socket

    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise KnockError(f"the name {host} is not known: {error.strerror}") from error
    if source:
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        infos.sort(key=lambda info: info[0] != family)  # stable: keeps the system's order within a family
    trouble = "no address"
    for family, kind, protocol, _, address in infos:
        try:
            sock = socket.socket(family, kind, protocol)  # fails for IPv6 if it is disabled
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
    """Pass a connection to the ssh that started this program, over standard output.

    Raises ConfigurationError if ssh or the system cannot do that.
    """
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
