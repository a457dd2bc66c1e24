"""The sensitivity report: its numbers are the evidence's, its choice is marked, and it scales to many layers."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import pytest

from edge_vla.bench.reports import html, markdown, sensitivity
from edge_vla.bench.reports import text as words
from edge_vla.bench.reports.schema import ResultError, validate
from edge_vla.bench.rows import SENSITIVITY
from edge_vla.export.budget import REPORT_VERSION
from edge_vla.spec import TINY
from tests.bench.sample_parts import sample_sensitivity
from tests.bench.sample_result import Document, sample_result


@pytest.fixture(scope="module")
def result() -> Document:
    return sample_result()


def with_report(result: Document, report: Document | None) -> Document:
    changed = copy.deepcopy(result)
    for candidate in changed["candidates"]:
        candidate["artifact"]["sensitivity"] = report
    return changed


def test_the_bench_reads_what_the_export_writes() -> None:
    assert SENSITIVITY == REPORT_VERSION == sample_sensitivity()["version"]


def test_it_is_part_of_a_valid_result(result: Document) -> None:
    validate(result)
    broken = with_report(result, {**sample_sensitivity(), "linears": []})
    with pytest.raises(ResultError, match="sensitivity"):
        validate(broken)


def test_page_and_markdown_have_it(result: Document) -> None:
    page, text = html(result), markdown(result)
    for title in ("What bits cost the action", "What a budget buys"):
        assert page.count(f"{title}: int4") >= 1
    assert "Bits by linear: int4" in text
    without = with_report(result, None)
    assert "What bits cost" not in html(without) + markdown(without)


def test_one_form_for_all_adds_up() -> None:
    report = sample_sensitivity()
    rows = sensitivity.uniform(report)
    assert [size for _, size, _ in rows] == sorted(size for _, size, _ in rows)
    for form, size, cost in rows:
        choices = [choice for one in report["linears"] for choice in one["choices"] if choice["name"] == form]
        assert len(choices) == len(report["linears"])
        assert size == sum(choice["size"] for choice in choices)
        assert cost == pytest.approx(math.fsum(choice["damage"] for choice in choices))


def test_no_form_for_all_lies_below_the_pareto() -> None:
    """The curve is the least cost at so many bytes: what is smaller and cheaper would have been found."""
    report = sample_sensitivity()
    for _, size, cost in sensitivity.uniform(report):
        within = [row["damage"] for row in report["pareto"] if row["bytes"] <= size]
        assert not within or min(within) <= cost * 1.25 + 1e-12, "the curve has sixty points, not all"


def test_the_choice_is_strong_and_there_is_one_a_row(result: Document) -> None:
    report = sample_sensitivity()
    figures = list(sensitivity.figures(with_report(result, report)))
    picture = str(figures[0].picture)
    assert len(re.findall(r'class="cell strong"', picture)) <= len(report["linears"])
    assert figures[0].table is not None
    assert [name for name in figures[0].table.columns if name.startswith("int4")] == [
        "int4 g128",
        "int4 g64",
        "int4 g32",
    ]
    assert {tuple(row[:2]) for row in figures[0].table.rows} == {
        (f"{one['layer']} {one['name']}", one["form"]) for one in report["linears"]
    }


def test_many_layers_are_summed(result: Document) -> None:
    """More linears than fit: a row a layer, and each is the sum of its linears."""
    deep = replace(TINY, decoder=replace(TINY.decoder, layers=12))
    report = sample_sensitivity(deep)
    assert len(report["linears"]) > sensitivity.MOST_ROWS
    picture = str(next(sensitivity.figures(with_report(result, report))).picture)
    assert "layer 11" in picture
    total = math.fsum(sensitivity.costs(one)["int8"] for one in report["linears"] if one["layer"] == 11)
    assert f"layer 11, int8: {words.number(total, 2)}" in picture


@pytest.mark.parametrize("cost", [0.0, 0.02, 2.0])
def test_pinsker(cost: float) -> None:
    """Total variation is at most sqrt(KL / 2)."""
    report = sample_sensitivity()
    for one in report["linears"]:
        one["choices"] = [{**choice, "damage": cost / len(report["linears"])} for choice in one["choices"]]
    found = sensitivity.alike("x", report)
    assert found is not None
    assert found.rows[0][-1] == {0.0: "0.0%", 0.02: "10.0%", 2.0: "100.0%"}[cost]
