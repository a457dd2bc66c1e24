"""Why each linear has the bits it has: what every form would cost the answers, and what a budget buys.

Reads the evidence that a mixed export keeps (`evidence/sensitivity.json`, in a result as a candidate's
`artifact.sensitivity`). Costs are the mean divergence of the action distribution per action token, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from edge_vla.bench.reports import charts, text
from edge_vla.bench.reports.plots import Figure
from edge_vla.bench.reports.svg import FONT, WIDTH, Canvas, Frame, Scale, paint, spread, text_width, x_axis, y_axis
from edge_vla.bench.reports.systems import Result, Side, sides
from edge_vla.bench.reports.tables import Table, table

Report = Mapping[str, Any]

MOST_ROWS: Final = 56  # of a map; with more linears a row is a whole layer
MICRO: Final = 1e6
WHOLE: Final = "bf16"  # costs nothing


def figures(result: Result) -> Iterator[Figure]:
    """For each candidate with mixed bits: the map of costs, and what a budget buys."""
    for side, report in reports(result):
        yield _map(side.name, report)
        yield _budget(side, report)


def tables(result: Result) -> Iterator[Table | None]:
    """The same as text."""
    for side, report in reports(result):
        yield alike(side.name, report)
        yield by_linear(side.name, report)


def reports(result: Result) -> Iterator[tuple[Side, Report]]:
    found = {row["name"]: row["artifact"].get("sensitivity") for row in result["candidates"]}
    for side in sides(result):
        if side.role == "candidate" and found.get(side.name):
            yield side, found[side.name]


def costs(linear: Report) -> dict[str, float]:
    return {choice["name"]: choice["damage"] for choice in linear["choices"]}


def uniform(report: Report) -> list[tuple[str, int, float]]:
    """Every linear alike: (form, bytes, predicted KL), for the forms that all linears have, fewest bytes first."""
    linears = report["linears"]
    shared = [name for name in costs(linears[0]) if all(name in costs(linear) for linear in linears)]
    found = []
    for name in shared:
        size = sum(choice["size"] for linear in linears for choice in linear["choices"] if choice["name"] == name)
        found.append((name, size, math.fsum(costs(linear)[name] for linear in linears)))
    return sorted(found, key=lambda row: row[1])


def alike(name: str, report: Report) -> Table | None:
    """What each form costs where all linears have it, and what was chosen."""
    weights = sum(linear["weights"] for linear in report["linears"])
    rows = [
        [form, text.size(size), f"{8 * size / weights:.3f}", _nats(cost), _share(cost)]
        for form, size, cost in uniform(report)
    ]
    chosen = math.fsum(costs(linear)[linear["form"]] for linear in report["linears"])
    size, bits = report["linears_bytes"], report["bits_per_weight"]
    rows.append(["as chosen", text.size(size), f"{bits:.3f}", _nats(chosen), _share(chosen)])
    marks = [""] * (len(rows) - 1) + ["pass"]
    return table(
        f"What bits cost the action, predicted: {name}",
        ["linears", "bytes", "bits per weight", "KL per token", "sampled tokens that could differ, at most"],
        rows,
        marks,
    )


def by_linear(name: str, report: Report) -> Table | None:
    """The choice for each linear, the costliest first."""
    rows = []
    for linear in sorted(report["linears"], key=lambda one: -costs(one)[one["form"]]):
        size = next(choice["size"] for choice in linear["choices"] if choice["name"] == linear["form"])
        others = [_nats(costs(linear).get(form)) for form in _forms(report)]
        rows.append([f"{linear['layer']} {linear['name']}", linear["form"], text.size(size), *others])
    return table(f"Bits by linear: {name}", ["linear", "form", "bytes", *_forms(report)], rows)


def _forms(report: Report) -> list[str]:
    """All that cost anything, fewest bits first."""
    bits = {choice["name"]: choice["size"] / one["weights"] for one in report["linears"] for choice in one["choices"]}
    return sorted((name for name in bits if name != WHOLE), key=lambda name: bits[name])


def _map(name: str, report: Report) -> Figure:
    linears, forms = report["linears"], _forms(report)
    if len(linears) <= MOST_ROWS:
        rows = [(f"{one['layer']} {one['name'].rpartition('.')[2]}", costs(one), one["form"]) for one in linears]
    else:
        rows = [(f"layer {layer}", found, "") for layer, found in _by_layer(linears).items()]
    known = [cost for _, found, _ in rows for form, cost in found.items() if form != WHOLE and cost > 0] or [1.0]
    scale = Scale(min(known), max(known), 0, 1, log=True)
    cells = [
        [
            charts.Cell(_micro(found[form]), scale(found[form]), f"{row}, {form}: {_nats(found[form])}", form == chosen)
            if form in found
            else charts.Cell("", None)
            for form in forms
        ]
        for row, found, chosen in rows
    ]
    return Figure(
        f"What bits cost the action: {name}",
        "Divergence of the action distribution per token, in millionths of a nat, if this alone were stored so. Darker "
        "is more, by ratio. " + ("Bold is what was chosen." if len(linears) <= MOST_ROWS else "Summed over a layer."),
        charts.heat(
            f"Cost by linear and form: {name}",
            "Values in the table below.",
            [(row, False) for row, _, _ in rows],
            forms,
            cells,
        ),
        by_linear(name, report),
    )


def _by_layer(linears: Sequence[Report]) -> dict[int, dict[str, float]]:
    layers: dict[int, dict[str, float]] = {}
    for linear in linears:
        layer = layers.setdefault(linear["layer"], {})
        for form, cost in costs(linear).items():
            layer[form] = layer.get(form, 0.0) + cost
    return layers


def _budget(side: Side, report: Report) -> Figure:
    """The least cost by bytes, every linear alike beside it, and the choice."""
    traded = report.get("vision") or {}
    towers = {choice["name"]: choice for choice in traded.get("choices", ())}
    extra = towers.get(f"{traded.get('bits')} bits", {"size": 0, "damage": 0.0})
    curve = [(row["bytes"], row["damage"]) for row in report["pareto"] if row["damage"] > 0]
    dots = [(f, size + extra["size"], cost + extra["damage"]) for f, size, cost in uniform(report) if cost > 0]
    chosen = (report["linears_bytes"] + extra["size"], report["predicted_kl"])
    canvas = Canvas(WIDTH, 300, f"Predicted cost by bytes: {side.name}", "Values in the table below.")
    frame = Frame(58, 12, WIDTH - 10, 262)
    positive = [cost for _, cost in [*curve, *((s, c) for _, s, c in dots), chosen] if cost > 0]
    across = Scale(*spread([size / 1e6 for size, _ in [*curve, chosen]]), frame.left, frame.right)
    up = Scale(min(positive) / 1.5, max(positive) * 1.5, frame.bottom, frame.top, log=True)
    y_axis(canvas, frame, up, "KL per token, nats")
    x_axis(canvas, frame, across, "megabytes of what was chosen about")
    canvas.path([(across(size / 1e6), up(cost)) for size, cost in curve], f"{paint(side.slot)} stroke", "mixed, best")
    for form, size, cost in dots:
        canvas.circle(across(size / 1e6), up(cost), 3, f"{paint(0)} hollow", f"all {form}: {_nats(cost)}")
    for form, size, cost in _apart(dots, across, up):
        x = min(across(size / 1e6) + 6, frame.right - text_width(form, FONT))
        canvas.text(x, up(cost) - 5, form, kind="tick")
    if chosen[1] > 0:
        tip = f"chosen: {text.size(chosen[0])}, {_nats(chosen[1])}"
        canvas.circle(across(chosen[0] / 1e6), up(chosen[1]), 5, f"{paint(side.slot)} fill", tip)
    return Figure(
        f"What a budget buys: {side.name}",
        "The line is the least predicted cost for so many bytes. Hollow: every linear in one form. Filled: the choice. "
        + _why(report),
        canvas.markup(),
        alike(side.name, report),
    )


def _apart(
    dots: Sequence[tuple[str, int, float]], across: Scale, up: Scale, least: float = 14
) -> list[tuple[str, int, float]]:
    """Those whose names do not lie on one another."""
    shown: list[tuple[str, int, float]] = []
    for dot in dots:
        near = [
            other
            for other in shown
            if abs(across(dot[1] / 1e6) - across(other[1] / 1e6)) < text_width(other[0])
            and abs(up(dot[2]) - up(other[2])) < least
        ]
        if not near:
            shown.append(dot)
    return shown


def _why(report: Report) -> str:
    mixed, same = report.get("predicted_kl_mixed"), report.get("predicted_kl_same")
    if mixed is None or not same:
        return ""
    saved = f"Mixing is predicted to save {text.share(1 - mixed / same)} of the best single form's cost"
    alone = report["predicted_kl"] == same
    return saved + (", too little to be told from luck: all linears alike." if alone else ".")


def _micro(cost: float) -> str:
    return f"{cost * MICRO:.0f}" if cost * MICRO >= 1 else f"{cost * MICRO:.1f}".removeprefix("0")


def _nats(cost: float | None) -> str:
    return text.number(cost, 2)


def _share(cost: float) -> str:
    """Pinsker: the total variation of two distributions is at most the root of half their divergence."""
    return text.share(math.sqrt(cost / 2), 1)
