"""The benchmark measures every part and writes it down. No test asserts on the times themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.report import Table, put_on_page, rank, spread
from tests.conftest import ROOT
from tests.once import once
from tests.template.transform import read

PARTS = {"start", "functions", "cold", "clients", "knock", "lag", "calls", "stores", "list", "load"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A quick run of every part: what it printed, and its JSON."""
    return once(tmp_path_factory, "bench", run_quickly)


def run_quickly(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / "figures.json"
    result = bench("--quick", "--json", str(path))
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text())


# The first test waits for the fixture, which is the whole run.
pytestmark = pytest.mark.timeout(600)


def tables(quick_run: tuple[str, dict[str, Any]], part: str) -> list[list[dict[str, Any]]]:
    return [table["rows"] for table in quick_run[1]["parts"][part]["tables"]]


def test_every_part_is_measured_and_says_how_busy_the_machine_was(
    quick_run: tuple[str, dict[str, Any]],
) -> None:
    output, figures = quick_run
    assert set(figures["parts"]) == PARTS
    for part in figures["parts"].values():
        assert part["load_before"] >= 0
        assert part["load_after"] >= 0
        for table in part["tables"]:
            assert table["title"] in output
            assert table["rows"]
    assert figures["machine"]["cores"] > 0


def test_every_knock_was_answered_201_or_202(quick_run: tuple[str, dict[str, Any]]) -> None:
    [rows] = tables(quick_run, "knock")
    assert [row["201"] + row["202"] for row in rows] == [row["count"] for row in rows] == [3, 3, 12]


def test_a_grants_calls_do_not_depend_on_how_many_others_are_live(
    quick_run: tuple[str, dict[str, Any]],
) -> None:
    costs, checks = tables(quick_run, "calls")
    phase, what, *situations = costs[0]
    assert (phase, what) == ("phase", "what")
    assert situations == [
        "1 rule, 2 live",
        "3 rules, 2 live",
        "1 rule, 6 live",
        "3 rules, 6 live",
        "1 rule, 2 full groups first",
        "1 rule, no. 5 of its source",
        "3 rules, no. 5 of its source",
    ]
    counted = {(row["phase"], row["what"]): [row[how] for how in situations] for row in costs}
    # In the last two, other grants of the source have one of the rules open: it is looked up, and kept.
    assert counted["all", "AWS calls, with one look of the API"] == [16, 18, 16, 18, 16, 15, 18]
    assert counted["authorize", "ec2.AuthorizeSecurityGroupIngress"] == [1, 2, 1, 2, 1, 1, 2]
    assert counted["revoke", "ec2.RevokeSecurityGroupIngress"] == [1, 2, 1, 2, 1, 0, 2]
    assert counted["knock", "sdb.Select"] == [1] * 7
    assert not [what for phase, what in counted if phase == "knock" and "ec2." in what]
    states = {what for phase, what in counted if phase == "states"}
    assert states == {"AuthorizeIngress", "HoldUntilExpiry", "RevokeIngress", "Expired"}
    assert all(counted["states", state] == [1] * 7 for state in states)
    assert checks[0]["grants"] == 5 * 2 + 1


def test_a_grants_closed_at_is_never_before_ec2s_last_answer(quick_run: tuple[str, dict[str, Any]]) -> None:
    [row] = tables(quick_run, "calls")[1]
    # The trail's milliseconds are cut off, so up to one before.
    assert -1 <= row["p50 ms"] <= row["p99 ms"] <= row["max ms"]


def test_the_lags_of_grants_are_listed_beside_the_engines_own(quick_run: tuple[str, dict[str, Any]]) -> None:
    lags, late = tables(quick_run, "lag")
    assert [(row["at once"], row["what"]) for row in lags] == [
        (size, what) for size in (1, 5) for what in ("closed", "ended", "engine")
    ]
    assert all(row["p50 ms"] >= 0 for row in lags)  # no grant ended before its expires_at
    assert [row["at once"] for row in late] == [1, 5]


def test_the_mixed_load_loses_nothing_and_leaves_nothing_open(quick_run: tuple[str, dict[str, Any]]) -> None:
    by_kind, remaining = tables(quick_run, "load")
    assert sum(row["count"] for row in by_kind) == 60
    assert {row["request"] for row in by_kind} == {"knock", "list", "show", "revoke"}
    assert sum(row["5xx"] + row["other errors"] for row in by_kind) == 0
    counts = [row["count"] for row in remaining]
    assert counts[0] >= by_kind[0]["count"] - by_kind[0]["202"]
    assert counts[1:] == [0, 0, 0, 0]


def test_lists_are_measured_at_every_length_of_the_trail(quick_run: tuple[str, dict[str, Any]]) -> None:
    [rows] = tables(quick_run, "list")
    assert [row["ended grants"] for row in rows] == [50] * 5 + [200] * 5


def test_functions_clients_and_the_stack_are_started(quick_run: tuple[str, dict[str, Any]]) -> None:
    [functions] = tables(quick_run, "functions")
    bare, *measured = functions
    template = read()["Resources"].values()
    deployed = [
        resource["Properties"] for resource in template if resource["Type"] == "AWS::Serverless::Function"
    ]
    assert {f"{row['function']}.handler" for row in measured} == {
        function["Handler"] for function in deployed
    }
    assert all(row["peak memory MiB"] > bare["peak memory MiB"] for row in measured)
    [clients] = tables(quick_run, "clients")
    assert [row["runs"] for row in clients] == [2, 2, 2]
    [starts] = tables(quick_run, "start")
    assert [row["runs"] for row in starts] == [1, 1]


def test_every_cold_start_is_compared_with_a_naive_function(quick_run: tuple[str, dict[str, Any]]) -> None:
    for rows in tables(quick_run, "cold"):
        ours = {row["function"].removeprefix("knock: ") for row in rows if "knock: " in row["function"]}
        naive = {row["function"].removeprefix("naive: ") for row in rows if "naive: " in row["function"]}
        assert ours == {"api", "authorize", "revoke"}
        assert naive == ours | {"api validating"}
        assert {row["runs"] for row in rows} == {1}
        assert all(row["CPU ms"] > 0 for row in rows)
        assert [row["ratio"] for row in rows if row["function"] == "naive: authorize"] == ["1.00"]


def test_the_page_of_figures_has_every_table_with_its_columns_and_functions(
    quick_run: tuple[str, dict[str, Any]],
) -> None:
    def any_number(text: str) -> str:
        return re.sub(r"\d+", "N", text)  # a full run and a quick one differ in size

    page = any_number((ROOT / "docs" / "benchmarks.md").read_text())
    for part in quick_run[1]["parts"].values():
        for table in part["tables"]:
            _, _, section = page.partition(f"### {any_number(table['title'])}\n")
            cells = [
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in section.partition("\n### ")[0].splitlines()
                if line.startswith("|")
            ]
            assert cells, f"make bench ARGS=--page: the page lacks {table['title']}"
            assert cells[0] == [any_number(column) for column in table["rows"][0]]
            functions = {row["function"] for row in table["rows"] if "function" in row}
            assert functions <= {row[0] for row in cells}


def test_a_part_is_put_on_a_page_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A\n\n<!-- lag: made by make bench -->\nold\n<!-- end of lag -->\n\nZ\n")
    for figure in (1, 2):
        put_on_page(page, "lag", [Table("Lags", [{"ms": figure}])])
    text = page.read_text()
    assert text.startswith("A\n\n<!-- lag: made by make bench -->\n\n### Lags\n")
    assert text.endswith("\n\n<!-- end of lag -->\n\nZ\n")
    assert ("|   2 |" in text, "|   1 |" in text, "old" in text) == (True, False, False)
    with pytest.raises(ValueError, match="no marks of the part calls"):
        put_on_page(page, "calls", [])


def test_a_grant_costs_as_many_calls_on_either_store(quick_run: tuple[str, dict[str, Any]]) -> None:
    times, calls = tables(quick_run, "stores")
    assert [(row["knocks"], row["store"]) for row in times] == [
        ("1 rule", "SimpleDB"),
        ("1 rule", "DynamoDB"),
        ("3 rules", "SimpleDB"),
        ("3 rules", "DynamoDB"),
    ]
    what, *columns = calls[-1]
    assert (what, calls[-1]["what"]) == ("what", "all")
    assert [calls[-1][column] for column in columns] == [16, 18, 16, 18]


def test_the_page_has_marks_for_every_part_and_refuses_a_quick_run() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for part in PARTS:
        assert text.count(f"<!-- {part}: made by make bench -->") == 1
        assert text.count(f"<!-- end of {part} -->") == 1
    result = bench("--quick", "--page")
    assert result.returncode == 2
    assert "--quick measures too little" in result.stderr


def test_an_unknown_part_is_refused_with_the_list_of_parts() -> None:
    result = bench("--only", "speed")
    assert result.returncode == 2
    assert "invalid choice: 'speed'" in result.stderr
    assert "load" in result.stderr


def test_a_part_that_fails_to_measure_writes_no_figure_and_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    code = (
        "import sys; from bench import __main__ as bench; from bench.scale import BenchError\n"
        "def fail(scale): raise BenchError('nothing was open')\n"
        "bench.PARTS['start'] = fail\n"
        f"sys.exit(bench.main(['--only', 'start', '--json', {str(path)!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "start could not be measured: nothing was open" in result.stderr
    assert json.loads(path.read_text())["parts"] == {}


def test_a_percentile_is_one_of_the_values_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [rank(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert rank([7.0], 99) == 7
    assert spread([3, 1, 2], "x ", longest=True) == {"x p50 ms": 2, "x p99 ms": 3, "x max ms": 3}


def test_a_table_is_the_same_for_a_terminal_and_for_a_page() -> None:
    table = Table("Times", [{"what": "knock", "ms": 1.25, "n": None}], ["a note"])
    assert table.as_text().splitlines() == [
        "Times",
        "  what    ms    n",
        "  -----  ---  ---",
        "  knock  1.2    -",
        "  (a note)",
    ]
    assert table.as_markdown().splitlines() == [
        "### Times",
        "",
        "| what  |  ms |   n |",
        "| ----- | --: | --: |",
        "| knock | 1.2 |   - |",
        "",
        "a note",
    ]
