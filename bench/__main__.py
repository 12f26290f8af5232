"""`python -m bench`: measure Knock on this machine, and print tables.

Nothing here is a test: times depend on the machine and its other load. docs/benchmarks.md explains each
figure and its limits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import calls, cold, knocks, lag, listing, plots, report, starts, stores
from bench.scale import FULL, QUICK, BenchError, Scale
from tools import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PARTS: dict[str, Callable[[Scale], list[report.Table]]] = {
    "start": starts.start,
    "functions": starts.functions,
    "cold": cold.cold,
    "clients": starts.clients,
    "knock": knocks.knock,
    "lag": lag.lag,
    "calls": calls.calls,
    "stores": stores.stores,
    "list": listing.listing,
    "load": knocks.load,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 when a part could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Knock on this machine. All of it takes about a quarter of an hour.",
        epilog="Example: make bench ARGS='--only knock lag --json figures.json'",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    parser.add_argument("--page", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args(arguments)
    if args.page and args.quick:
        parser.error("--quick measures too little for the page")
    scale = QUICK if args.quick else FULL
    figures: dict[str, Any] = {"machine": report.machine(), "quick": args.quick, "parts": {}}
    print(report.show_machine(), "\n", flush=True)
    failed = 0
    for name in args.only or PARTS:
        before, began = report.load(), time.monotonic()
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            tables = PARTS[name](scale)
        except BenchError as error:
            failed = 1
            print(f"{name} could not be measured: {error}", file=sys.stderr, flush=True)
            continue
        took, after = time.monotonic() - began, report.load()
        tables[-1].notes.append(f"load average {before} before, {after} after; {took:.0f} s in all")
        figures["parts"][name] = {
            "tables": [table.as_json() for table in tables],
            "load_before": before,
            "load_after": after,
            "seconds": round(took, 1),
        }
        for table in tables:
            print(table.as_markdown() if args.markdown else table.as_text(), "\n", flush=True)
        if args.page:
            report.put_on_page(PAGE, name, tables)
    if args.page:
        plots.write()
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
