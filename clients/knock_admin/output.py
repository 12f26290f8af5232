"""The output of commands: tables for people, JSON for programs. Data goes to standard output, all else to
standard error.

Some texts come from others, like the name of a key or the reason of a grant. Control and format characters in
them are printed as escapes, so that they cannot move the cursor, change colours or the direction of a line.
In a CSV file, a quote is put before text that a spreadsheet would take for a formula
(https://owasp.org/www-community/attacks/CSV_Injection). The separator that a spreadsheet splits at depends on
its language and settings, so the quote is also put after each possible separator within a cell.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from knock import streams

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# The full-width forms of = + - @ count too: spreadsheets for East Asian scripts treat them alike.
# A cell may begin after any of , ; | and white space, and with quotes that a spreadsheet removes.
_FORMULA = re.compile("(^|[,;|\\s])([\"'\\s]*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")
# The rows that decide on a table's column widths; the rows after them are streamed.
_SAMPLE = 100


@dataclass(frozen=True)
class Result:
    """The result of a command: `data` for programs (`--json`), `lines` for people.

    Without `data`, the lines are printed with `--json` as well.
    """

    data: Any
    lines: Iterable[str]
    exit_code: int = 0
    notes: Sequence[str] = ()
    """Remarks for people; printed to standard error, before the lines."""


def visible(value: object) -> str:
    """Write a value with control and format characters as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def visible_lines(value: object) -> str:
    """Write several lines with control and format characters as escapes."""
    return "\n".join(map(visible, str(value).split("\n")))


def cell(value: object) -> str:
    """Write a value for a CSV file that a spreadsheet may open."""
    return _FORMULA.sub(r"\1'\2", visible(value))


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> Iterator[str]:
    """Lay out rows in columns, in constant memory: the first hundred rows decide on the widths."""
    cells = ([visible(value) for value in row] for row in rows)
    first = [[*header], *islice(cells, _SAMPLE)]
    widths = [max(len(row[i]) for row in first) for i in range(len(header))]
    for row in chain(first, cells):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def csv_lines(rows: Iterable[Sequence[object]], header: Sequence[str]) -> Iterator[str]:
    """Write rows as CSV (RFC 4180), one line at a time."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="")
    for row in chain([header], rows):
        writer.writerow([cell(value) for value in row])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def json_lines(items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Write each item as one line of JSON, in ASCII, so that it has no control characters."""
    return (json.dumps(item) for item in items)


def count(number: int, noun: str) -> str:
    """Write a number with its noun: `1 group`, `2 groups`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def warn(text: str) -> None:
    """Print a warning, to standard error."""
    streams.say(f"warning: {visible_lines(text)}")


def note(text: str) -> None:
    """Print a remark on the data, to standard error."""
    streams.say(f"note: {visible_lines(text)}")


def progress(text: str) -> None:
    """Print the progress of a long command, to standard error if it is a terminal."""
    if sys.stderr.isatty():
        streams.say(visible_lines(text))
