"""`knock`: the entry point of the command line program. The commands use the library only.

Data goes to standard output; progress, notes and errors go to standard error. Exit codes: 0 done, 1 refused
or failed, 2 usage, 3 cannot reach the API, 4 no room now, 130 interrupted; those of `knock run` are the
command's.

The module of a command is imported when the command runs, since `knock --version`, the ssh hook and
completion must not wait for the import of an HTTP client. argparse was chosen because its import takes 6 ms;
click and typer take 30 ms and more.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, notices, streams
from .errors import KnockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELP = """\
usage: knock [TARGET…] [--for 8h] [--reason TEXT] [--source CIDR] [--renews ID | --new] [--wait 5m]
       knock COMMAND …

Open a few ports to your own address, for a bounded time.

commands:
  open [TARGET…]     the same as knock [TARGET…], also for a target named like a command
  run [TARGET…] -- COMMAND…   open, run a command, and end what was opened
  ls                 list live grants
  show ID            one grant and what happened to it
  renew [ID…]        knock again in place of what you opened, for as long again
  revoke [ID…]       end grants now: what you opened here by hand, or those you name
  whoami             who you are, which address the API sees, what you may open
  watch [TARGET…]    keep access open while the address changes
  ssh-config HOST…   print an ssh configuration that knocks by itself
  login, logout      store or delete the API's URL and key
  profiles           list what is stored
  completion SHELL   print the completion script for bash, zsh or fish

Each command has a --help of its own, and takes:
  --profile NAME     the profile to use (or KNOCK_PROFILE)
  --json             print JSON with stable fields
  -q, --quiet        print ids only, and nothing on standard error but errors
(ssh-config and completion print text for other programs, and have no --quiet.)
What calls the API also takes -4 or -6, to call over IPv4 or IPv6 alone.

KNOCK_URL and KNOCK_API_KEY (or KNOCK_KEY_FILE, a file with the key) win over what is stored.
Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach the API, 4 no room now, 130 interrupted;
those of `knock run` are the command's.

examples:
  knock                          everything you may open, for the default time
  knock bastion --for 8h         one target
  knock open ls                  a target whose name is a command
  knock run bastion -- ./deploy  open while a command runs
"""

# The module of each command, which has its function, run_COMMAND.
COMMANDS = {
    "open": "commands",
    "run": "run",
    "ls": "commands",
    "show": "commands",
    "renew": "commands",
    "revoke": "commands",
    "whoami": "commands",
    "watch": "watch",
    "ssh-config": "sshconfig",
    "ssh-hook": "sshconfig",
    "ssh-proxy": "sshconfig",
    "login": "commands",
    "logout": "commands",
    "profiles": "commands",
    "completion": "completion",
    "__complete": "completion",
    "__implied": "commands",  # `open` without the word
}

# Options with a value, which must be skipped to find the command.
VALUED = (
    *("--profile", "--for", "--reason", "--source", "--wait", "--target", "--status", "--principal"),
    *("--limit", "--every", "--url", "--host", "--renews"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code. All errors are reported on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    try:
        code = _run(words)
    except SystemExit as stop:  # from argparse
        code = stop.code if isinstance(stop.code, int) else 1
    flushed = _show("")  # here, where a failure can still be reported
    return code or flushed


def _run(words: list[str]) -> int:
    if words in (["--version"], ["-V"]):
        return _show(f"knock {__version__}\n")
    if words in (["--help"], ["-h"]):
        return _show(HELP)
    command, rest = find_command(words)
    own = words[: words.index("--")] if "--" in words else words
    try:
        module = import_module(f".{COMMANDS[command]}", __package__)
        run: Callable[[list[str]], int] = getattr(module, "run_" + command.strip("_").replace("-", "_"))
        return run(rest)
    except KnockError as error:
        from .screen import OutputGone, Screen

        if not (isinstance(error, OutputGone) and error.reader_left):
            Screen(as_json="--json" in own).error(error)
        return error.exit_code
    except KeyboardInterrupt as error:
        from .screen import Screen

        Screen(as_json="--json" in own).interrupted(error)
        return 130
    finally:
        _warn(quiet=bool({"-q", "--quiet"} & set(own)))


def _show(text: str) -> int:
    """Print a text, flush it, and give the exit code."""
    try:
        print(text, end="", flush=True)
    except (OSError, ValueError) as error:
        streams.silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            streams.say(
                f"knock: standard output cannot be written ({getattr(error, 'strerror', None) or error})"
            )
        return 1
    return 0


def _warn(*, quiet: bool) -> None:
    """Print the warnings about files and the keyring, one line each."""
    for warning in notices.warnings:
        if not quiet:
            from .screen import plain

            streams.say(f"knock: {plain(warning)}")
    notices.warnings.clear()


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """Split words into the command and the rest. The first word that is no option may be a command."""
    remaining = iter(enumerate(words))
    for index, word in remaining:
        if word in VALUED:
            next(remaining, None)
        elif word == "--":
            break
        elif not word.startswith("-"):
            if word in COMMANDS:
                return word, words[:index] + words[index + 1 :]
            break
    return "__implied", words


def split_at_dashes(words: list[str]) -> tuple[list[str], bool, list[str]]:
    """Split words at the first `--`: those before it, whether it is there, and those behind it."""
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]


class Parser(argparse.ArgumentParser):
    """A parser that allows arguments before and after options, and reports if its help cannot be written.

    With --json its errors are JSON, as all others.
    """

    _as_json = False

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Read the words of a command. Raises SystemExit(2) after printing what is wrong."""
        self._as_json = "--json" in words
        return self.parse_intermixed_args(words)

    def peek(self, words: list[str]) -> argparse.Namespace:
        """Read the words of a command, but leave out options that it does not know."""
        self._as_json = "--json" in words
        return self.parse_known_intermixed_args(words)[0]

    def error(self, message: str) -> NoReturn:
        if not self._as_json:
            super().error(message)
        from .screen import Screen

        Screen(as_json=True).json_error("UsageError", 2, detail=message)
        raise SystemExit(2)

    def print_help(self, file: Any = None) -> None:
        if file is not None:
            super().print_help(file)
        else:
            self.exit(_show(self.format_help()))


def make_parser(
    command: str,
    about: str,
    *examples: str,
    usage: str | None = None,
    json: bool = True,
    quiet: bool = True,
    calls: bool = True,
) -> Parser:
    """Make the parser of a command, with its examples and the options that all commands have."""
    parser = Parser(
        prog=f"knock {command}",
        usage=usage,
        description=about,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", metavar="NAME", help="the profile to use (or KNOCK_PROFILE)")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON with stable fields")
    if quiet:
        parser.add_argument("-q", "--quiet", action="store_true", help="print ids only, and no notes")
    if calls:
        ways = parser.add_mutually_exclusive_group()
        for family in (4, 6):
            ways.add_argument(
                f"-{family}",
                dest="family",
                action="store_const",
                const=family,
                help=f"call over IPv{family} alone",
            )
    return parser


def grant_id(text: str) -> str:
    """Check that an id is not empty: the API's path would be that of all grants."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: is a variable not set?")
    return text


def time_with_unit(text: str) -> str:
    """Check that a duration has a unit; else it is not clear. The API takes a bare number as seconds."""
    bare = text.strip()
    if bare.isascii() and bare.isdigit():
        raise argparse.ArgumentTypeError(f"{bare} what? Say {bare}m, {bare}h or {bare}s")
    return text


def time_to_wait(text: str) -> float:
    """Read a duration like 90s or 5m, or 0, in seconds."""
    from .session import read_duration

    if text.strip() == "0":
        return 0.0
    seconds = read_duration(time_with_unit(text))
    if not seconds:
        raise argparse.ArgumentTypeError(f"a time like 90s, 5m or 1h was expected, not {text!r}")
    return float(seconds)
