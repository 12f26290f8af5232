"""The plots of docs/benchmarks.md are drawn from its tables."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from bench import model, plots

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", plots.DRAWINGS)
def test_a_plot_is_up_to_date_with_its_table(name: str) -> None:
    page = plots.PAGE.read_text()
    assert (plots.PLOTS / name).read_text() == plots.DRAWINGS[name](page), "run python -m bench.plots"


@pytest.mark.parametrize("name", plots.DRAWINGS)
def test_a_plot_is_on_the_page_has_no_script_and_follows_the_theme(name: str) -> None:
    text = (plots.PLOTS / name).read_text()
    ElementTree.fromstring(text)  # noqa: S314  # our own
    assert f"](plots/{name})" in plots.PAGE.read_text()
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_lag_of_each_count_is_drawn_beside_the_engines() -> None:
    page = plots.PAGE.read_text()
    rows = plots.table(page, "From expires_at to the rule's end")
    texts = {text.text for text in ElementTree.fromstring(plots.lag(page)).iter(f"{SVG}text")}  # noqa: S314
    assert {row["at once"] for row in rows} <= texts


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table under"):
        plots.lag("# Figures\n")


class TestModel:
    """The time from a knock to its 201, part by part."""

    def test_it_has_every_part_of_every_case_and_they_add_up(self) -> None:
        cases = model.cases(plots.PAGE.read_text())
        assert [case.name for case in cases] == ["cold, before", "cold, now", "warm, before", "warm, now"]
        for case in cases:
            assert tuple(case.milliseconds) == model.PARTS
            assert case.total == pytest.approx(sum(case.milliseconds.values()))

    def test_rights_are_read_in_parallel_now_and_take_less_time_than_before(self) -> None:
        cold, now, *_ = model.cases(plots.PAGE.read_text())
        assert cold.milliseconds["rights"] > now.milliseconds["rights"]

    def test_a_function_that_is_warm_has_nothing_to_load(self) -> None:
        *_, warm = model.cases(plots.PAGE.read_text())
        assert warm.milliseconds["loading"] == warm.milliseconds["new sandboxes"] == 0
        assert warm.milliseconds["functions' CPU"] > 0

    def test_a_page_without_a_functions_cpu_is_an_error(self) -> None:
        page = plots.PAGE.read_text().replace("| knock: api ", "| knock: none ")
        with pytest.raises(ValueError, match="has no row"):
            model.cases(page)
