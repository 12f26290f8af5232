"""Draws the grant's life from `statemachine/grant.asl.json`, as Mermaid text for the README.

    python -m tools.diagram      puts today's diagram into the README

GitHub shows the text as a picture, and it can be read without one too. A picture in a file would need a
program to draw it, and could not be compared line by line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tools import ROOT

README = ROOT / "README.md"
BEGIN, END = "```mermaid\n", "```\n"


def diagram(definition: dict[str, Any]) -> str:
    """Draw every state and every transition, in the order of the definition."""
    lines = ["stateDiagram-v2", f"    [*] --> {definition['StartAt']}"]
    for name, state in definition["States"].items():
        lines += (f"    {name} --> {transition}" for transition in _transitions(state))
    return "\n".join(lines) + "\n"


def _transitions(state: dict[str, Any]) -> Iterator[str]:
    if state["Type"] in ("Succeed", "Fail"):
        yield f"[*]: {'succeeded' if state['Type'] == 'Succeed' else 'failed'}"
        return
    if state["Type"] == "Wait":
        yield f"{state['Next']}: at {state['TimestampPath'].removeprefix('$.')}"
    elif state["Type"] == "Task":
        yield f"{state['Next']}: done"
    else:
        raise ValueError(f"a {state['Type']} cannot be drawn: only Task, Wait, Succeed and Fail can")
    failed = "failed, after its retries" if state.get("Retry") else "failed"
    for catcher in state.get("Catch", ()):
        errors = catcher["ErrorEquals"]
        yield f"{catcher['Next']}: {failed if errors == ['States.ALL'] else ', '.join(errors)}"


def put(page: str, text: str) -> str:
    """Give the page with its diagram replaced by this one."""
    before, begin, remainder = page.partition(BEGIN)
    _, end, after = remainder.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no block that begins with {BEGIN.strip()}")
    return before + begin + text + end + after


def today() -> str:
    """Draw the current definition."""
    return diagram(json.loads((ROOT / "statemachine" / "grant.asl.json").read_text()))


if __name__ == "__main__":
    README.write_text(put(README.read_text(), today()))
