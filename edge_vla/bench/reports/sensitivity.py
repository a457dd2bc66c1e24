"""Why each linear of a mixed export has its bits: the predicted KL cost of every format, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from edge_vla.bench.reports import charts, text
from edge_vla.bench.reports.charts import Cell
from edge_vla.bench.reports.figures import Figure
from edge_vla.bench.reports.svg import Scale
from edge_vla.bench.reports.table import Row, Table, table
from edge_vla.bench.result import Result
from edge_vla.sensitivity import LinearChoices, SensitivityReport

MOST_ROWS: Final = 56  # of a map; with more linears a row is a whole layer
FREE: Final = "bf16"  # costs nothing


@dataclass(frozen=True)
class Allocation:
    """One way to give the linears their formats: bytes, bits per weight, predicted KL per token in nats."""

    bytes: int
    bits_per_weight: float
    kl_cost: float


def reports(result: Result) -> Iterator[tuple[str, SensitivityReport]]:
    for row in result.candidates:
        if row.artifact.sensitivity is not None:
            yield row.name, row.artifact.sensitivity


def tables(result: Result) -> Iterator[Table | None]:
    for name, report in reports(result):
        yield allocations(name, report)
        yield by_linear(name, report)


def costs(linear: LinearChoices) -> dict[str, float]:
    return {choice.format: choice.kl_cost for choice in linear.choices}


def uniform(report: SensitivityReport) -> dict[str, Allocation]:
    """One format for all linears, by format, for those that every linear can have; fewest bytes first."""
    weights = sum(linear.weights for linear in report.linears)
    found = {}
    for name in formats(report, free=True):
        chosen = [choice for linear in report.linears for choice in linear.choices if choice.format == name]
        if len(chosen) == len(report.linears):
            size = sum(choice.bytes for choice in chosen)
            found[name] = Allocation(size, 8 * size / weights, math.fsum(choice.kl_cost for choice in chosen))
    return found


def formats(report: SensitivityReport, free: bool = False) -> list[str]:
    """Names of all formats, fewest bits first."""
    bits = {choice.format: choice.bytes / one.weights for one in report.linears for choice in one.choices}
    return sorted((name for name in bits if free or name != FREE), key=lambda name: bits[name])


def allocations(name: str, report: SensitivityReport) -> Table | None:
    """What each format would cost if all linears had it, and what was chosen."""
    chosen = math.fsum(linear.chosen.kl_cost for linear in report.linears)
    rows = [Row(f"all {format_}", one) for format_, one in uniform(report).items()]
    rows.append(Row("as chosen", Allocation(report.linears_bytes, report.bits_per_weight, chosen), "pass"))
    columns: dict[str, Callable[[Allocation], str]] = {
        "bytes": lambda one: text.size(one.bytes),
        "bits per weight": lambda one: f"{one.bits_per_weight:.3f}",
        "KL per token, nats": lambda one: text.number(one.kl_cost, 2),
        # Pinsker: the total variation of two distributions is at most the root of half their divergence.
        "sampled tokens that could differ, at most": lambda one: text.share(math.sqrt(one.kl_cost / 2)),
    }
    return table(f"Predicted cost of the decoder's bits: {name}", "linears", rows, columns)


def by_linear(name: str, report: SensitivityReport) -> Table | None:
    """The choice for each linear, the costliest first."""
    columns: dict[str, Callable[[LinearChoices], str]] = {
        "format": lambda one: one.format,
        "bytes": lambda one: text.size(one.chosen.bytes),
        **{format_: partial(_cost, format_) for format_ in formats(report)},
    }
    ranked = sorted(report.linears, key=lambda one: -one.chosen.kl_cost)
    rows = [Row(f"{one.layer} {one.name}", one) for one in ranked]
    return table(f"Bits by linear: {name}", "linear", rows, columns)


def _cost(format_: str, linear: LinearChoices) -> str:
    return text.number(costs(linear).get(format_), 2)


def figures(result: Result) -> Iterator[Figure]:
    """One map a mixed export: linears (or layers) down, formats across."""
    for name, report in reports(result):
        names = formats(report)
        rows = _by_linear(report.linears) if len(report.linears) <= MOST_ROWS else _by_layer(report.linears)
        known = [cost for row in rows for form, cost in row.costs.items() if form != FREE and cost > 0] or [1.0]
        depth = Scale(min(known), max(known), 0, 1, log=True)
        title = f"Predicted cost of bits: {name}"
        yield Figure(
            title,
            "KL divergence per token, in millionths of a nat, if this linear alone were stored in this format; darker "
            f"is more, on a logarithmic scale; the chosen format is bold.{_saving(report)}",
            charts.heat(names, {row.name: [_cell(row, form, depth) for form in names] for row in rows}),
            by_linear(name, report),
        )


@dataclass(frozen=True)
class _MapRow:
    name: str
    costs: dict[str, float]
    chosen: str | None = None


def _by_linear(linears: Sequence[LinearChoices]) -> list[_MapRow]:
    return [_MapRow(f"{one.layer} {one.name.rpartition('.')[2]}", costs(one), one.format) for one in linears]


def _by_layer(linears: Sequence[LinearChoices]) -> list[_MapRow]:
    layers: dict[int, dict[str, float]] = {}
    for linear in linears:
        layer = layers.setdefault(linear.layer, {})
        for form, cost in costs(linear).items():
            layer[form] = layer.get(form, 0.0) + cost
    return [_MapRow(f"layer {number}", found) for number, found in layers.items()]


def _cell(row: _MapRow, form: str, depth: Scale) -> Cell:
    cost = row.costs.get(form)
    if cost is None:
        return Cell("", None)
    shown = f"{cost * 1e6:.0f}" if cost * 1e6 >= 1 else f"{cost * 1e6:.1f}".removeprefix("0")
    return Cell(shown, depth(cost), f"{row.name}, {form}: {text.number(cost, 2)}", form == row.chosen)


def _saving(report: SensitivityReport) -> str:
    if not report.predicted_kl_uniform:
        return ""
    saved = f" Mixing saves {text.share(1 - report.predicted_kl_mixed / report.predicted_kl_uniform)} of the KL "
    saved += "predicted for the best single format"
    alone = report.predicted_kl == report.predicted_kl_uniform
    return saved + (", too little to be sure of: all linears have one format." if alone else ".")
