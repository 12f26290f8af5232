"""Draws the grant's life from `statemachine/grant.asl.json`, as Mermaid text for the README.

    python -m tests.docs.diagram      puts today's diagram into the README

The text is what a page of code shows as a picture, and it reads without one too. A picture kept as a file
would need a program to draw it, and could not be compared line by line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.conftest import ROOT

README = ROOT / "README.md"
BEGIN, END = "```mermaid\n", "```\n"


def diagram(definition: dict[str, Any]) -> str:
    """Draw every state and every way between two, in the order the definition gives them."""
    lines = ["stateDiagram-v2", f"    [*] --> {definition['StartAt']}"]
    for name, state in definition["States"].items():
        lines += (f"    {name} --> {way}" for way in _ways(state))
    return "\n".join(lines) + "\n"


def _ways(state: dict[str, Any]) -> Iterator[str]:
    if state["Type"] in ("Succeed", "Fail"):
        yield f"[*]: {'succeeded' if state['Type'] == 'Succeed' else 'failed'}"
        return
    if state["Type"] == "Wait":
        yield f"{state['Next']}: at {state['TimestampPath'].removeprefix('$.')}"
    elif state["Type"] == "Task":
        yield f"{state['Next']}: done"
    else:
        raise ValueError(f"how is a {state['Type']} drawn? Only Task, Wait, Succeed and Fail are")
    tried = "failed, after its retries" if state.get("Retry") else "failed"
    for catcher in state.get("Catch", ()):
        errors = catcher["ErrorEquals"]
        yield f"{catcher['Next']}: {tried if errors == ['States.ALL'] else ', '.join(errors)}"


def put(page: str, text: str) -> str:
    """Give the page with this diagram in the place of the one it has."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no block that begins with {BEGIN.strip()}")
    return before + begin + text + end + after


def today() -> str:
    """Draw the definition as it is."""
    return diagram(json.loads((ROOT / "statemachine" / "grant.asl.json").read_text()))


if __name__ == "__main__":
    README.write_text(put(README.read_text(), today()))
