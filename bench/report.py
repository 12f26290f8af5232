"""Tables of figures: for a terminal, for a page, and as JSON."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Cell = str | int | float | None


@dataclass
class Table:
    """Rows of figures. A column's name has its unit; `notes` are for the reader, below the table."""

    title: str
    rows: list[dict[str, Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return f"{self.title}\n" + "\n".join(
            "  " + line for line in [*self._lines("  ", "-"), *(f"({note})" for note in self.notes)]
        )

    def as_markdown(self) -> str:
        head, rule, *rows = self._lines(" | ", "-")
        body = [f"| {line} |" for line in (head, rule, *rows)]
        return "\n".join([f"### {self.title}", "", *body, "", *(f"{note}\n" for note in self.notes)])

    def _lines(self, between: str, dash: str) -> list[str]:
        columns = list(self.rows[0])
        cells = [columns, *([_show(row[column]) for column in columns] for row in self.rows)]
        widths = [max(3, *(len(line[at]) for line in cells)) for at in range(len(columns))]
        numeric = [all(not isinstance(row[column], str) for row in self.rows) for column in columns]

        def line(values: Sequence[str]) -> str:
            padded = (
                value.rjust(width) if right else value.ljust(width)
                for value, width, right in zip(values, widths, numeric, strict=True)
            )
            return between.join(padded).rstrip()

        # In Markdown the colon aligns a column of numbers to the right.
        colon = ":" if "|" in between else dash
        rule = between.join(
            dash * (width - 1) + (colon if right else dash)
            for width, right in zip(widths, numeric, strict=True)
        )
        return [line(cells[0]), rule, *map(line, cells[1:])]


def _show(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def spread(values: Iterable[float], name: str = "", *, longest: bool = False) -> dict[str, Cell]:
    """Return median and 99th percentile (nearest rank) of milliseconds; with `longest` the maximum."""
    ordered = sorted(values)
    figures: dict[str, Cell] = {f"{name}p50 ms": rank(ordered, 50), f"{name}p99 ms": rank(ordered, 99)}
    return figures | ({f"{name}max ms": round(ordered[-1], 1)} if longest else {})


def rank(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of sorted values by nearest rank, which is one of the values."""
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 1)


def machine() -> dict[str, Cell]:
    """Describe this machine, as far as it affects the figures."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def show_machine() -> str:
    """Describe this machine on one line."""
    return " · ".join(f"{name} {value}" for name, value in machine().items())


def put_on_page(page: Path, part: str, tables: Sequence[Table]) -> None:
    """Replace a page's text between the marks of a part. Raises ValueError where a mark is missing."""
    begin, end = f"<!-- {part}: made by make bench -->", f"<!-- end of {part} -->"
    before, _, rest = page.read_text().partition(begin)
    _, end_mark, after = rest.partition(end)
    if not end_mark:
        raise ValueError(f"{page.name} has no marks of the part {part}")
    body = "\n".join([*(table.as_markdown() for table in tables), show_machine()])
    page.write_text(f"{before}{begin}\n\n{body}\n\n{end}{after}")


def load() -> float:
    """Return the load average of the last minute; above the number of cores, processes had to wait."""
    return round(os.getloadavg()[0], 1)
