"""`knock`: the command line program's entrance. The commands use the library only.

Data goes to standard output, progress, notes and errors to standard error. Exit codes: 0 done, 1 refused
or failed, 2 usage, 3 cannot reach the API, 130 interrupted.

A command's module is imported for that command alone: `knock --version`, the ssh hook and completion have
no time for an HTTP client. argparse, and not click or typer: it starts in 6 ms, they take 30 ms and more.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

from . import __version__
from .errors import KnockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELP = """\
usage: knock [TARGET…] [--for 8h] [--reason TEXT] [--source CIDR] [--renews ID | --new]
       knock COMMAND …

Open a few ports to your own address, for a bounded time.

commands:
  open [TARGET…]     the same as knock [TARGET…], also for a target named like a command
  ls                 list live grants
  show ID            one grant and what happened to it
  renew [ID…]        knock again in place of what you opened, for as long again
  revoke [ID…]       end grants now
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

KNOCK_URL and KNOCK_API_KEY win over what is stored.
Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach the API, 130 interrupted.

examples:
  knock                          everything you may open, for the default time
  knock bastion --for 8h         one target
  knock open ls                  a target whose name is a command
"""

# Each command and the module that has its function, run_COMMAND.
COMMANDS = {
    "open": "commands",
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
}

# Options that take the next word: needed to find the command behind them.
VALUED = (
    *("--profile", "--for", "--reason", "--source", "--wait", "--target", "--status", "--principal"),
    *("--limit", "--every", "--url", "--host", "--renews"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    speak_as_the_terminal_can()
    if words in (["--version"], ["-V"]):
        print(f"knock {__version__}")
        return 0
    if words in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    command, rest = find_command(words)
    try:
        module = import_module(f".{COMMANDS[command]}", __package__)
        run: Callable[[list[str]], int] = getattr(module, "run_" + command.strip("_").replace("-", "_"))
        code = run(rest)
        sys.stdout.flush()  # here, where a closed pipe can still be answered
    except KnockError as error:
        from .screen import Screen

        Screen(as_json="--json" in words).error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("knock: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`knock ls | head`); Python would complain once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def speak_as_the_terminal_can() -> None:
    """Show what the terminal's encoding lacks as ?: a name that somebody else chose must not be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a program that calls us may have put another thing there
            stream.reconfigure(errors="replace")


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """Tell the command from the rest. The first word that is no option decides; else it is `open`."""
    left = iter(enumerate(words))
    for index, word in left:
        if word in VALUED:
            next(left, None)
        elif word == "--":
            break
        elif not word.startswith("-"):
            if word in COMMANDS:
                return word, words[:index] + words[index + 1 :]
            break
    return "open", words


def parser(
    command: str, about: str, *examples: str, usage: str | None = None, json: bool = True, quiet: bool = True
) -> argparse.ArgumentParser:
    """Make the parser of one command, with its examples and the options that all commands share."""
    made = argparse.ArgumentParser(
        prog=f"knock {command}",
        usage=usage,
        description=about,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--profile", metavar="NAME", help="the profile to use (or KNOCK_PROFILE)")
    if json:
        made.add_argument("--json", action="store_true", help="print JSON with stable fields")
    if quiet:
        made.add_argument("-q", "--quiet", action="store_true", help="print ids only, and no notes")
    return made
