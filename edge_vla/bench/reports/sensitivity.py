"""Why each linear of a mixed export has its bits: the predicted KL cost of every format, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.charts import Scale
from edge_vla.bench.reports.figures import Figure
from edge_vla.bench.reports.table import Columns, Row, Shade, Table, table
from edge_vla.bench.result import Result
from edge_vla.sensitivity import LinearChoices, SensitivityReport

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
    """A map of what each linear would cost in each format, the costliest choice first; the chosen one is bold."""
    names, head = formats(report), ["linear", "format", "bytes"]
    ranked = sorted(report.linears, key=lambda one: -one.chosen.kl_cost)
    known = [cost for one in ranked for form, cost in costs(one).items() if form != FREE and cost > 0] or [1.0]
    depth = Scale(min(known), max(known), log=True)
    rows, shades = list[list[str]](), dict[tuple[int, int], Shade]()
    for i, one in enumerate(ranked):
        found = costs(one)
        written = [text.number(found.get(form), 2) for form in names]
        rows.append([f"{one.layer} {one.name}", one.format, text.size(one.chosen.bytes), *written])
        for j, form in enumerate(names, len(head)):
            if form in found:
                shades[i, j] = Shade(depth(found[form]) / 100, form == one.format)
    return Table(f"Bits by linear: {name}", [*head, *names], rows, shades=shades)


def figures(result: Result) -> Iterator[Figure]:
    """One map a mixed export."""
    for name, report in reports(result):
        yield Figure(
            f"Predicted cost of bits: {name}",
            "KL divergence per token, in nats, if this linear alone were stored in this format; darker is more, on a "
            f"logarithmic scale; the chosen format is bold.{_saving(report)}",
            None,
            by_linear(name, report),
        )


def _saving(report: SensitivityReport) -> str:
    if not report.predicted_kl_uniform:
        return ""
    saved = f" Mixing saves {text.share(1 - report.predicted_kl_mixed / report.predicted_kl_uniform)} of the KL "
    saved += "predicted for the best single format"
    alone = report.predicted_kl == report.predicted_kl_uniform
    return saved + (", too little to be sure of: all linears have one format." if alone else ".")
