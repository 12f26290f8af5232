"""`python -m local up`: run Knock on this machine until Ctrl-C or SIGTERM.

With `--json` the first line on standard output is one JSON object, printed once everything answers; without
it, a page for a person. Standard output carries nothing else; the functions' output goes to a log file, or
with `--verbose` to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from local.hostile import ROWS, Plan
from local.lambdas import FunctionNotLoaded
from local.serving import PortInUse
from local.stack import KEYS, Options, Stack, StackError, Summary
from local.stepfunctions_local import EngineNotFound
from local.template import TemplateError

STOPS_WITHIN = 4.5  # seconds; after that the process is ended, stopped or not

PAGE = """\
Knock runs on this machine. Ctrl-C stops it, and nothing is kept.

  knock API   {api_url}
  console     {console_url}
  AWS         {aws_endpoint_url}   (any AWS client; region {region})
  log         {log}
{hostile}
Targets
{targets}

Keys
{keys}

Open the door for ten seconds:

  curl -X POST -H "x-api-key: {alice}" {api_url}/knock -d '{{"duration": "10s"}}'

In a second terminal, for `knock`, for `knock-admin` (the pages of docs/operators.md can be typed as they
are), and for `aws` to see what AWS's own consoles would show:

  export KNOCK_URL={api_url} KNOCK_API_KEY={alice}
  export AWS_ENDPOINT_URL={aws_endpoint_url} AWS_DEFAULT_REGION={region}
  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local

  aws stepfunctions list-executions --state-machine-arn {state_machine_arn}
"""

POLL_SECONDS = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m local", description="Run Knock on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command")
    up = commands.add_parser(
        "up",
        help="run the stack until Ctrl-C",
        description="Keys are new at every start, and nothing is kept when it stops: what one run leaves can"
        " then never explain what the next one does. So there is no option to keep it.",
        epilog="Example: python -m local up --port 8080 --duration 8h",
    )
    up.add_argument("--port", type=_port, default=8080, help="of the knock API (8080); 0 picks a free one")
    up.add_argument("--aws-port", type=_port, default=0, help="of the AWS endpoint; a free one by default")
    up.add_argument("--duration", default="24h", help="of a grant when a knock names none (24h)")
    up.add_argument(
        "--engine",
        default="moto",
        help="what runs the state machine: moto (embedded), stepfunctions-local (npm), or the http:// address"
        " of a Step Functions endpoint",
    )
    up.add_argument(
        "--store",
        choices=("simpledb", "dynamodb"),
        help="what keeps trail and ledger (the template's default, simpledb)",
    )
    up.add_argument(
        "--hostile",
        nargs="?",
        const="",
        metavar="SEED",
        help="an AWS as unkind as it is documented to be (docs/simulated-aws.md), drawn from a seed, a"
        " number; a new one where none is given",
    )
    up.add_argument(
        "--hostile-only",
        metavar="ROWS",
        help=f"of a hostile AWS only this, with commas between: {', '.join(ROWS)}",
    )
    up.add_argument(
        "--hostile-scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="shorten a hostile AWS's delays: 0.1",
    )
    up.add_argument("--json", action="store_true", help="print one line of JSON instead of a page")
    up.add_argument(
        "--verbose", action="store_true", help="print requests and what functions print to standard error"
    )
    args = parser.parse_args(arguments)
    try:
        args.plan = _plan(args)
    except ValueError as error:
        up.error(str(error))
    return _up(args)


def _plan(args: argparse.Namespace) -> Plan | None:
    """Read the plan of a hostile AWS; None where AWS is not to be hostile. Raises ValueError."""
    if args.hostile is None and not args.hostile_only:
        return None
    seed = args.hostile or str(secrets.randbelow(1_000_000))
    if not seed.isascii() or not seed.isdigit():
        raise ValueError(f"a seed is a number, not {seed!r}")
    return Plan.of(int(seed), args.hostile_only, args.hostile_scale)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _up(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    for library in ("moto", "botocore", "urllib3"):
        logging.getLogger(library).setLevel(
            logging.CRITICAL
        )  # moto prints a state's syntax tree when it fails
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(130)  # the second signal
        stopping.set()
        if not ready:
            raise KeyboardInterrupt

    ready = False
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.NamedTemporaryFile(prefix="knock-local-", suffix=".log") as log:
        options = Options(
            port=args.port,
            aws_port=args.aws_port,
            duration=args.duration,
            engine=args.engine,
            store=args.store,
            output=2 if args.verbose else log.fileno(),
            hostile=args.plan,
            furnished=True,
        )
        try:
            stack = Stack(options)
            ready = True
        except (StackError, TemplateError, PortInUse, EngineNotFound, FunctionNotLoaded) as error:
            sys.stdout.flush()
            print(f"The local stack cannot start: {error}{_another_port(error, args)}", file=sys.stderr)
            if isinstance(error, FunctionNotLoaded) and not args.verbose:
                sys.stderr.write(Path(log.name).read_text(errors="replace"))
            return 1
        except KeyboardInterrupt:
            return 0
        try:
            print(
                json.dumps(stack.summary.as_json())
                if args.json
                else _page(stack.summary, "standard error" if args.verbose else log.name),
                flush=True,
            )
            _calm_collector()
            # Python runs a signal's handler in this thread alone, and a signal that another thread has taken
            # does not wake it. So this thread polls.
            while not stopping.wait(POLL_SECONDS):
                pass
        finally:
            _give_up_in(STOPS_WITHIN)
            stack.stop()
    return 0


def _another_port(error: Exception, args: argparse.Namespace) -> str:
    """Name the option that picks a free port, where the port given is in use."""
    if not isinstance(error, PortInUse) or not (args.port or args.aws_port):
        return ""
    return '. On any free port instead: make local ARGS="--port 0", or python -m local up --port 0.'


def _calm_collector() -> None:
    from local.engine import calm_collector  # with moto, which the stack has imported by now

    calm_collector()


def _give_up_in(seconds: float) -> None:
    """End the process after so many seconds; its functions' processes end with it."""

    def give_up() -> None:
        print(f"The local stack did not stop within {seconds} s, and was ended.", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


def _hostile(summary: Summary) -> str:
    """Describe a hostile stack by the options that start the same one again."""
    if not (plan := summary.hostile):
        return ""
    options = (
        f"--hostile {plan['seed']} --hostile-only {','.join(plan['rows'])} --hostile-scale {plan['scale']:g}"
    )
    return f"  at its worst  {options}\n"


def _rights(tags: Mapping[str, str]) -> str:
    """Describe a key's rights, read from its tags."""
    targets = " and ".join(tags.get("knock:targets", "no target").split()).replace("@all", "every target")
    rights = [f"{targets} for {tags.get('knock:max-duration', 'no time')}"]
    if widths := tags.get("knock:any-source"):
        rights.append(f"for any source of {widths.replace(' ', ' or ')}")
    if number := tags.get("knock:max-live"):
        rights.append(f"{number} grants at once")
    if tags.get("knock:operator") == "true":
        rights.append("sees and ends everyone's grants")
    return ", ".join(rights)


def _page(summary: Summary, log: str) -> str:
    width = max(map(len, summary.keys))
    return PAGE.format(
        **summary.as_json()
        | {
            "log": log,
            "hostile": _hostile(summary),
            "targets": "\n".join(
                f"  {name:<{width}}  {' '.join(target['ports'])} on {', '.join(target['groups'])}"
                for name, target in summary.targets.items()
            ),
            "keys": "\n".join(
                f"  {name:<{width}}  {value}  {_rights(KEYS.get(name, {}))}"
                for name, value in summary.keys.items()
            ),
            "alice": summary.keys["alice"],
        }
    )


def _leave(code: int) -> NoReturn:
    """End the process at once. All is stopped by now.

    Python would first take apart each execution that was ever started: seconds for some hundred, and with its
    lock held, so that `_give_up_in` could not end it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # no reader is left
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    gc.disable()  # until all is loaded, of which nothing is garbage: a start takes a third less time so
    _leave(main())
