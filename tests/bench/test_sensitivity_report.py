"""The sensitivity report: its numbers are the evidence's, its choice is marked, and it scales to many layers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge_vla.bench.reports import html, markdown, sensitivity
from edge_vla.bench.reports import text as words
from edge_vla.bench.result import Result
from edge_vla.sensitivity import SensitivityReport
from tests.bench import sample_parts as parts
from tests.bench.sample_result import sample_result


def with_report(report: SensitivityReport | None) -> Result:
    result = sample_result()
    for row in result.candidates:
        row.artifact = replace(row.artifact, sensitivity=report)
    return result


def test_page_and_markdown_have_it() -> None:
    page, text = html(sample_result()), markdown(sample_result())
    assert "Predicted cost of bits: int4" in page
    for title in ("Predicted cost of the decoder's bits: int4", "Bits by linear: int4"):
        assert title.replace("'", "&#39;") in page
        assert title in text
    without = with_report(None)
    assert "Predicted cost" not in html(without) + markdown(without)


def test_one_format_for_all_adds_up() -> None:
    report = parts.sensitivity()
    found = sensitivity.uniform(report)
    assert list(found) == ["int2 g128", "int4 g128", "int8", "bf16"]
    for name, one in found.items():
        choices = [choice for linear in report.linears for choice in linear.choices if choice.format == name]
        assert one.bytes == sum(choice.bytes for choice in choices)
        assert one.kl_cost == pytest.approx(math.fsum(choice.kl_cost for choice in choices))


def test_a_format_that_one_linear_cannot_have_is_no_uniform_choice() -> None:
    report = parts.sensitivity()
    first = report.linears[0]
    less = replace(report, linears=(replace(first, choices=first.choices[1:]), *report.linears[1:]))
    assert list(sensitivity.uniform(less)) == ["int4 g128", "int8", "bf16"]


def test_the_choice_is_bold_and_there_is_one_a_row() -> None:
    report = parts.sensitivity()
    (figure, *_) = sensitivity.figures(with_report(report))
    bold = [place for place, shade in figure.table.shades.items() if shade.strong]
    assert len({row for row, _ in bold}) == len(bold) == len(report.linears)
    assert all(figure.table.columns[column] == figure.table.rows[row][1] for row, column in bold)
    assert figure.table.columns == ["linear", "format", "bytes", "int2 g128", "int4 g128", "int8"]
    assert {row[0] for row in figure.table.rows} == {f"{one.layer} {one.name}" for one in report.linears}


def test_a_map_shows_the_cost_of_every_linear_in_every_format() -> None:
    report = parts.sensitivity(layers=12)
    found = sensitivity.by_linear("x", report)
    shown = {row[0]: row[3:] for row in found.rows}
    for one in report.linears:
        expected = [words.number(choice.kl_cost, 2) for choice in one.choices if choice.format != "bf16"]
        assert shown[f"{one.layer} {one.name}"] == expected
    by_cost = sorted((choice.kl_cost, choice.format) for choice in report.linears[0].choices if choice.kl_cost)
    row = next(i for i, cells in enumerate(found.rows) if cells[0] == "0 self_attn.q_proj")
    depths = [found.shades[row, found.columns.index(name)].depth for _, name in by_cost]
    assert depths == sorted(depths)


@pytest.mark.parametrize(("cost", "expected"), [(0.0, "0.0%"), (0.02, "10.0%"), (2.0, "100.0%")])
def test_pinsker(cost: float, expected: str) -> None:
    """Total variation is at most sqrt(KL / 2)."""
    report = parts.sensitivity()
    each = cost / len(report.linears)
    linears = tuple(
        replace(one, choices=tuple(replace(choice, kl_cost=each) for choice in one.choices)) for one in report.linears
    )
    found = sensitivity.allocations("x", replace(report, linears=linears))
    assert found is not None
    assert found.rows[0][-1] == expected
