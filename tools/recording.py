"""Draws docs/recording.svg: an animation of a terminal with the README's first transcript.

    python -m tools.recording        writes it from the README as it is now

A test runs the README's transcripts, and another compares the drawing with the README, so it shows the real
output of the commands. It is an SVG with CSS alone, since GitHub runs no scripts in pictures. It follows the
reader's light or dark theme, and with the preference for reduced motion it is the last frame. Decided against
a GIF or a recorder: they show a single run, and no test can tell when they are out of date.
"""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

from tools import ROOT

DRAWING = ROOT / "docs" / "recording.svg"

WIDE = 132  # characters in a line
CHARACTER, LINE, PADDING = 7.25, 19, 16  # pixels
TYPING, THINKING, READING = 0.045, 0.6, 1.6  # seconds: for a character, until the answer, to read it
REST = 6.0  # seconds the last frame stays

STYLE = """
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#24292f}
.typed{font-weight:600;fill:#0550ae} .paper{fill:#f6f8fa;stroke:#d0d7de} .dot{fill:#d0d7de}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3} .typed{fill:#79c0ff} .paper{fill:#161b22;stroke:#30363d} .dot{fill:#30363d}
}"""


def transcript(page: str) -> list[str]:
    """Give the lines of a page's first `console` block. Raises ValueError if there is none."""
    block = re.search(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    if not block:
        raise ValueError("the page has no console block")
    return block[1].splitlines()


def wrapped(lines: list[str]) -> list[tuple[str, bool]]:
    """Wrap lines at the terminal's width: (text, whether it is typed). Continuation lines are indented."""
    wrapped_lines: list[tuple[str, bool]] = []
    for line in lines:
        typed = line.startswith("$ ")
        text = line
        while len(text) > WIDE:
            at = text.rfind(" ", 20, WIDE) if " " in text[20:WIDE] else WIDE
            wrapped_lines.append((text[:at], typed))
            text = "    " + text[at:].lstrip()
        wrapped_lines.append((text, typed))
    return wrapped_lines


def draw(page: str) -> str:
    """Draw the first transcript of a page."""
    lines = wrapped(transcript(page))
    width, height = round(2 * PADDING + WIDE * CHARACTER), 2 * PADDING + len(lines) * LINE + 24
    at, appears = 0.4, []
    for number, (text, typed) in enumerate(lines):
        appears.append(at)
        answered = number + 1 < len(lines) and not lines[number + 1][1]
        if typed:
            at += len(text) * TYPING + (THINKING if answered else 0.2)
        elif not answered:
            at += READING
    duration = at + REST
    rules, drawn = [], []
    for number, ((text, typed), begins) in enumerate(zip(lines, appears, strict=True)):
        start, took = 100 * begins / duration, 100 * (len(text) * TYPING if typed else 0.05) / duration
        pace = f"steps({len(text)})" if typed else "linear"
        rules.append(
            f"@keyframes l{number}{{0%,{start:.2f}%{{clip-path:inset(0 100% 0 0)}}"
            f"{min(start + took, 99.5):.2f}%,100%{{clip-path:inset(0 0 0 0)}}}}"
            f"#l{number}{{animation:l{number} {duration:.1f}s {pace} infinite}}"
        )
        place = f'x="{PADDING}" y="{PADDING + 18 + (number + 1) * LINE}" xml:space="preserve"'
        kind = ' class="typed"' if typed else ""
        drawn.append(f'<text id="l{number}"{kind} {place}>{escape(text)}</text>')
    label = "A terminal: " + " Then: ".join(text[2:] for text, typed in lines if typed)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    paper = f'width="{width - 1}" height="{height - 1}" rx="8"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(label)}>',
            f"<style>{STYLE}",
            *rules,
            "@media (prefers-reduced-motion:reduce){text{animation:none!important}}</style>",
            f'<rect class="paper" x=".5" y=".5" {paper}/>',
            *(f'<circle class="dot" cx="{PADDING + 5 + 18 * n}" cy="18" r="5"/>' for n in range(3)),
            *drawn,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    DRAWING.write_text(draw((ROOT / "README.md").read_text()))
