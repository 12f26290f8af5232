"""What a command prints: tables for people, JSON for programs; data on standard output, the rest on standard
error.

Much of it was written by others: the name of a key, the reason of a grant. Such text is data. Control and
format characters are shown as escapes, so that no reason can move the cursor, colour a line or turn its
direction, and what a spreadsheet would take for a formula in a CSV file has a quote before it
(https://owasp.org/www-community/attacks/CSV_Injection). Which separator a spreadsheet splits at depends on
its language and on what its user chooses, so that holds after each of them, within a cell too.
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# The wide forms of = + - @ count too: spreadsheets for East Asian scripts take them for the same.
# A cell may begin after any of , ; | and white space, and with quotes that a spreadsheet takes away.
_FORMULA = re.compile("(^|[,;|\\s])([\"'\\s]*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")
# Rows that are looked at to choose a table's widths; those after them stream.
_SAMPLE = 100


@dataclass(frozen=True)
class Result:
    """What came of a command: for programs (`--json`), and for people.

    Without `data` the lines are for both: they are JSON lines already.
    """

    data: Any
    lines: Iterable[str]
    exit_code: int = 0
    notes: Sequence[str] = ()
    """What people should know beside it; on standard error, before the lines."""


def visible(value: object) -> str:
    """Write a value so that a terminal only shows it: what steers a terminal, as escapes."""
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
    """Write several lines so that a terminal only shows them."""
    return "\n".join(map(visible, str(value).split("\n")))


def cell(value: object) -> str:
    """Write a value for a CSV file that a spreadsheet may open."""
    return _FORMULA.sub(r"\1'\2", visible(value))


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> Iterator[str]:
    """Lay out rows in columns, in constant memory: the first hundred rows decide on the widths."""
    shown = ([visible(value) for value in row] for row in rows)
    first = [[*header], *islice(shown, _SAMPLE)]
    widths = [max(len(row[i]) for row in first) for i in range(len(header))]
    for row in chain(first, shown):
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
    """Write each item as one line of JSON, in ASCII: nothing in it can steer a terminal."""
    return (json.dumps(item) for item in items)


def count(number: int, what: str) -> str:
    """Write a number of things: `1 group`, `2 groups`."""
    return f"{number} {what}{'s' * (number != 1)}"


def warn(text: str) -> None:
    """Say something that does not stop the command."""
    print(f"warning: {visible_lines(text)}", file=sys.stderr)


def note(text: str) -> None:
    """Say what a reader should know beside the data."""
    print(f"note: {visible_lines(text)}", file=sys.stderr)


def progress(text: str) -> None:
    """Say how far long work has come, when somebody is watching."""
    if sys.stderr.isatty():
        print(visible_lines(text), file=sys.stderr)
