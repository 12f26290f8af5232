"""Draws the figures page's tables: docs/plots/*.svg, from docs/benchmarks.md.

    python -m bench.plots        (`make bench ARGS=--page` does it at its end)

From the page and not from a run, so that a plot shows exactly its table; a test compares each plot with the
page. The drawings follow the reader's light or dark theme, and have no script. pygal because it is pure
Python, writes SVG with classes that a style sheet can select, and is maintained; decided against matplotlib,
whose SVG has paths with fixed colours, and which is a hundred times as large.
"""

from __future__ import annotations

import re
from typing import Any

import pygal
from pygal.style import Style

from bench import model
from tools import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "plots"

# Okabe and Ito's colours, which colour-blind readers can tell apart, and which are visible on light and dark
# backgrounds.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c8c8c",
    "#b79f00",
    "#882255",
    "#44aa99",
)
STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#57606a",
    foreground_strong="#24292f",
    foreground_subtle="#57606a",
    colors=COLOURS,
    font_family="ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif",
    label_font_size=12,
    major_label_font_size=12,
    value_font_size=11,
    legend_font_size=12,
    title_font_size=15,
    opacity="1",
)
THEMES = """<style>
.guide { stroke: #d0d7de !important; stroke-dasharray: none !important }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9 !important }
  .guide, .axis .line { stroke: #3d444d !important }
}
</style>"""

Rows = list[dict[str, str]]


def table(page: str, title: str) -> Rows:
    """Read the page's table under a heading. Raises ValueError where there is none."""
    match = re.search(rf"^### {re.escape(title)}\n\n((?:\|.*\n)+)", page, re.MULTILINE)
    if not match:
        raise ValueError(f"the page has no table under {title!r}")
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in match[1].splitlines()]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


def lag(page: str) -> str:
    """Draw the lag of closing, by how many grants end in one second, beside the engine's own lag."""
    rows = table(page, "From expires_at to the rule's end")
    counts = list(dict.fromkeys(row["at once"] for row in rows))
    chart = _chart(
        pygal.Bar,
        "Lag at a grant's end, p99, by how many end in one second",
        y_title="milliseconds, logarithmic",
        logarithmic=True,
        print_values=True,
        y_labels=[1, 10, 100, 1_000, 10_000],
        zero=1,
    )
    chart.x_labels = counts
    for kind, name in (("closed", "Knock: the rule is gone"), ("engine", "the engine alone")):
        values = {row["at once"]: float(row["p99 ms"]) for row in rows if row["what"] == kind}
        chart.add(name, [values[count] for count in counts])
    return _drawn(chart)


def calls(page: str) -> str:
    """Draw the AWS calls of a grant, by how many are live, and for the last that a source may hold."""
    rows = table(page, "Per grant: AWS calls, Lambda invocations, states entered")
    situations = [name for name in rows[0] if name not in ("phase", "what") and name.startswith("1 rule")]
    chart = _chart(
        pygal.StackedBar,
        "AWS calls of a grant of one rule, everything included",
        y_title="calls",
        print_values=True,
        print_zeroes=False,
    )
    chart.x_labels = [name.removeprefix("1 rule, ") for name in situations]
    for phase in ("knock", "authorize", "revoke"):
        parts = [row for row in rows if row["phase"] == phase]
        chart.add(
            phase, [round(sum(_calls_with_one_poll(row, name) for row in parts), 1) for name in situations]
        )
    return _drawn(chart)


def _calls_with_one_poll(row: dict[str, str], situation: str) -> float:
    """Return a row's calls; the API's polls of the trail count as one call, as in the page's sum."""
    if (row["phase"], row["what"].rpartition(".")[2]) in (("knock", "GetAttributes"), ("knock", "GetItem")):
        return min(1.0, float(row[situation]))
    return float(row[situation])


def time_to_201(page: str) -> str:
    """Draw the model of the time from a knock to its answer, with a colour for each kind of wait."""
    cases = model.cases(page)
    chart = _chart(
        pygal.HorizontalStackedBar,
        "Time to 201 on AWS, by the model: one rule",
        x_title="milliseconds",
        print_values=True,
        print_zeroes=False,
    )
    chart.x_labels = [case.name for case in reversed(cases)]
    for part in model.PARTS:
        chart.add(part, [round(case.milliseconds[part]) for case in reversed(cases)])
    return _drawn(chart)


DRAWINGS = {"lag.svg": lag, "calls.svg": calls, "time-to-201.svg": time_to_201}


def _chart(kind: Any, title: str, **options: Any) -> Any:
    """Create a chart with the options of all: no script, and the same output at every run."""
    return kind(
        title=title,
        style=STYLE,
        width=860,
        height=420,
        explicit_size=True,
        js=(),
        no_prefix=True,
        disable_xml_declaration=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        truncate_legend=-1,
        truncate_label=-1,
        show_x_guides=False,
        margin=20,
        margin_bottom=32,
        formatter=lambda value: f"{value:,.0f}" if value and value >= 100 else f"{value:g}" if value else "",
        **options,
    )


def _drawn(chart: Any) -> str:
    """Render a chart, with the colours of both themes."""
    text: str = chart.render(is_unicode=True)
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    return text.replace("</defs>", f"{THEMES}</defs>", 1) + "\n"


def write() -> None:
    """Draw all plots."""
    PLOTS.mkdir(exist_ok=True)
    page = PAGE.read_text()
    for name, draw in DRAWINGS.items():
        (PLOTS / name).write_text(draw(page))


if __name__ == "__main__":
    write()
