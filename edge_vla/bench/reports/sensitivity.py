"""Why each linear of a mixed export has its bits: the predicted KL cost of every format, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.charts import Scale
from edge_vla.bench.reports.figures import Figure
from edge_vla.bench.reports.table import Columns, Row, Shade, Table, table
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
    columns: Columns[Allocation] = {
        "bytes": lambda one: text.size(one.bytes),
        "bits per weight": lambda one: f"{one.bits_per_weight:.3f}",
        "KL per token, nats": lambda one: text.number(one.kl_cost, 2),
        # Pinsker: the total variation of two distributions is at most the root of half their divergence.
        "sampled tokens that could differ, at most": lambda one: text.share(math.sqrt(one.kl_cost / 2)),
    }
    return table(f"Predicted cost of the decoder's bits: {name}", "linears", rows, columns)


def by_linear(name: str, report: SensitivityReport) -> Table:
    """The choice for each linear, the costliest first, as a map of its formats: the chosen one is bold."""
    ranked = sorted(report.linears, key=lambda one: -one.chosen.kl_cost)
    head = [[f"{one.layer} {one.name}", one.format, text.size(one.chosen.bytes)] for one in ranked]
    found = _map(f"Bits by linear: {name}", ["linear", "format", "bytes"], head, [*map(costs, ranked)], report)
    shades = {
        (i, j): Shade(shade.depth, found.columns[j] == ranked[i].format) for (i, j), shade in found.shades.items()
    }
    return replace(found, shades=shades)


def by_layer(name: str, report: SensitivityReport) -> Table:
    """The same map, with the linears of each layer added up."""
    layers: dict[int, dict[str, float]] = {}
    for linear in report.linears:
        layer = layers.setdefault(linear.layer, {})
        for form, cost in costs(linear).items():
            layer[form] = layer.get(form, 0.0) + cost
    return _map(f"Bits by layer: {name}", ["layer"], [[f"{layer}"] for layer in layers], [*layers.values()], report)


def _map(
    title: str,
    columns: Sequence[str],
    head: Sequence[Sequence[str]],
    found: Sequence[Mapping[str, float]],
    report: SensitivityReport,
) -> Table:
    """`head`: the first cells of each row. `found`: each row's costs by format, shaded on a logarithmic scale."""
    names = formats(report)
    known = [cost for row in found for form, cost in row.items() if form != FREE and cost > 0] or [1.0]
    depth = Scale(min(known), max(known), log=True)
    rows, shades = list[list[str]](), dict[tuple[int, int], Shade]()
    for i, row in enumerate(found):
        rows.append([*head[i], *(text.number(row.get(form), 2) for form in names)])
        for j, form in enumerate(names, len(columns)):
            if form in row:
                shades[i, j] = Shade(depth(row[form]) / 100)
    return Table(title, [*columns, *names], rows, shades=shades)


def tables(result: Result) -> Iterator[Table | None]:
    """What all one format would cost; and the linears, where the figure has a row a layer."""
    for name, report in reports(result):
        yield allocations(name, report)
        if len(report.linears) > MOST_ROWS:
            yield by_linear(name, report)


def figures(result: Result) -> Iterator[Figure]:
    """One map a mixed export: linears (or layers) down, formats across."""
    for name, report in reports(result):
        draw = by_linear if len(report.linears) <= MOST_ROWS else by_layer
        yield Figure(
            f"Predicted cost of bits: {name}",
            "KL divergence per token, in nats, if this linear (or layer) alone were stored in this format; darker is "
            f"more, on a logarithmic scale; the chosen format is bold.{_saving(report)}",
            None,
            draw(name, report),
        )


def _saving(report: SensitivityReport) -> str:
    if not report.predicted_kl_uniform:
        return ""
    saved = f" Mixing saves {text.share(1 - report.predicted_kl_mixed / report.predicted_kl_uniform)} of the KL "
    saved += "predicted for the best single format"
    alone = report.predicted_kl == report.predicted_kl_uniform
    return saved + (", too little to be sure of: all linears have one format." if alone else ".")
