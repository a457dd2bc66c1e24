"""A result as figures: each a plot, a sentence that says how to read it, and the table of what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from edge_vla.bench.reports import charts, more_tables, tables, text
from edge_vla.bench.reports.samples import distribution
from edge_vla.bench.reports.systems import Result, Side, dims, judged, shown, sides, timed
from edge_vla.bench.reports.tables import Table

APART: Final = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 10**6))
FEW_LAYERS: Final = 12  # more, and a cell has no room for its value
SEE: Final = "Values in the table below."


@dataclass(frozen=True)
class Figure:
    title: str
    says: str
    picture: Markup
    table: Table | None


def pareto(result: Result) -> Figure | None:
    """Rate against agreement; the area of a point is its memory."""
    found = []
    for side in sides(result):
        latency = side.headline or {}
        same = {"mean": 1.0, "low": 1.0, "high": 1.0} if side.role == "reference" else None
        if side.agreement and side.role != "floor":
            same = side.agreement["exact_action"]
        if same and latency.get("hz"):
            found.append((side, latency["hz"], same, (side.memory or {}).get("peak_bytes")))
    if len(found) < 2:
        return None
    largest = max((memory or 0 for *_, memory in found), default=0) or 1
    points = [
        charts.Point(
            side.name,
            side.slot,
            hz,
            same["mean"],
            same["low"],
            same["high"],
            3 + 4 * ((memory or 0) / largest) ** 0.5,
            text.size(memory),
            not any(h >= hz and s["mean"] >= same["mean"] and (h, s) != (hz, same) for _, h, s, _ in found),
        )
        for side, hz, same, memory in found
    ]
    bands = [
        (floor["exact_action"]["low"], floor["exact_action"]["high"], f"floor: {name}")
        for name, floor in list(result["floors"].items())[:1]
    ]
    return Figure(
        "Rate, agreement, memory",
        "Right is faster, up is more like the reference, a larger dot needs more memory. Hollow: another side is at "
        "least as good in both. The band is the reference against itself with its rounding shaken.",
        charts.scatter("Rate against agreement", _list(points), points, "actions per second", "same action", bands),
        tables.table(
            "Rate, agreement, memory",
            ["side", "rate", "same action", "peak memory"],
            [[side.name, text.hertz(hz), text.interval(same), text.size(memory)] for side, hz, same, memory in found],
        ),
    )


def _list(points: Sequence[charts.Point]) -> str:
    return "; ".join(f"{point.name}: {point.x:.3g} Hz, {point.y:.1%}, {point.note}" for point in points)


def by_dimension(result: Result) -> Figure | None:
    found = [side for side in judged(result) if (side.agreement or {}).get("teacher_forced_by_dimension")]
    if not found:
        return None
    rows, cells = [], []
    floor = next((side.agreement for side in found if side.role == "floor"), None)
    means = [iv["mean"] for side in found for iv in (side.agreement or {})["teacher_forced_by_dimension"]]
    low, span = min(means), (max(means) - min(means)) or 1.0
    for i, side in enumerate(found):
        last = side.role == "floor" and (i + 1 == len(found) or found[i + 1].role != "floor")
        rows.append((shown(side), last and i + 1 < len(found)))
        ivs = [*(side.agreement or {})["teacher_forced_by_dimension"], (side.agreement or {})["teacher_forced"]]
        floors = [*floor["teacher_forced_by_dimension"], floor["teacher_forced"]] if floor else [None] * len(ivs)
        cells.append(
            [
                charts.Cell(
                    f"{100 * iv['mean']:.1f}",
                    min(1.0, max(0.0, (max(means) - iv["mean"]) / span)),
                    f"{shown(side)}, {name}: {text.interval(iv)}",
                    bool(bound and side.role != "floor" and iv["high"] < bound["low"]),
                )
                for iv, bound, name in zip(ivs, floors, [*dims(result), "all"], strict=True)
            ]
        )
    return Figure(
        "Same token, by dimension",
        f"Percent, the reference's tokens before each. Darker is less: {low:.1%} to {low + span:.1%}. Bold with a "
        "line below: the whole interval lies below the first floor's.",
        charts.heat("Same token by dimension and side", SEE, rows, [*dims(result), "all"], cells),
        tables.by_dimension(result),
    )


def apart(result: Result) -> Figure | None:
    """How far apart, where the bins differ."""
    found = [side for side in judged(result) if (side.agreement or {})["bins_apart"].get("histogram")]
    series, rows = [], []
    for side in found:
        counts = [(int(k), int(n)) for k, n in (side.agreement or {})["bins_apart"]["histogram"]]
        whole = sum(n for _, n in counts) or 1
        shares = [sum(n for k, n in counts if low <= k <= high) / whole for low, high in APART]
        equal = sum(n for k, n in counts if k == 0) / whole
        rows.append([shown(side), text.share(equal), *map(text.share, shares)])
        if equal < 1:
            series.append(charts.Series(shown(side), side.slot, shares))
    if not series:
        return None
    names = [f"{low}" if low == high else f"{low}–{high}" if high < 10**6 else f"≥{low}" for low, high in APART]
    return Figure(
        "How far apart, where the bins differ",
        "Share of all positions, free-running. A side whose bins never differ is not drawn.",
        charts.bars("Bins apart", SEE, names, _floors_once(series), "bins apart", "positions"),
        tables.table("Bins apart, share of positions", ["side", "0", *names], rows, [side.role for side in found]),
    )


def _floors_once(series: Sequence[charts.Series]) -> list[charts.Series]:
    """One floor is drawn, the first: all have one colour. Tables have them all."""
    floors = [one for one in series if one.slot is None]
    return floors[:1] + [one for one in series if one.slot is not None]


def flips(result: Result) -> Figure | None:
    table = tables.deciles(result)
    found = [side for side in judged(result) if (side.agreement or {}).get("margins")]
    series = []
    for side in found:
        entries = (side.agreement or {})["margins"].get("deciles") or ()
        values = [entry["flips"] / entry["positions"] if entry["positions"] else None for entry in entries]
        if values:
            series.append(charts.Series(shown(side), side.slot, values))
    if not series or table is None:
        return None
    entries, floor = _deciles_of(found)
    return Figure(
        "Flips by the reference's lead",
        "Positions sorted by how clearly the reference chose: 1 are near ties, 10 its clearest. Near ties flip by "
        "rounding alone; right of the line a flip is the candidate's own.",
        charts.lines(
            "Flips by the reference's lead",
            SEE,
            [str(i + 1) for i in range(max(len(one.values) for one in series))],
            _floors_once(series),
            "decile of the reference's lead",
            "flipped",
            _position(entries, floor),
        ),
        table,
    )


def _deciles_of(found: Sequence[Side]) -> tuple[Sequence[Result], float | None]:
    margins = next((side.agreement or {})["margins"] for side in reversed(found))
    return margins.get("deciles") or (), margins.get("floor")


def _position(entries: Sequence[Result], floor: float | None) -> tuple[float, str] | None:
    """Where the floor's lead lies among the deciles."""
    if floor is None:
        return None
    for i, entry in enumerate(entries):
        low, high = entry.get("from"), entry.get("to")
        if low is not None and high is not None and low <= floor <= high:
            return i + (floor - low) / ((high - low) or 1.0), f"clear lead: above {text.number(floor)}"
    return None


def layers(result: Result) -> Iterator[Figure]:
    """One map a candidate: modules down, layers across."""
    for side in sides(result):
        errors = side.layer_errors
        modules = list(dict.fromkeys(name for layer in errors.values() for name in layer))
        known = [value for layer in errors.values() for value in layer.values() if value is not None]
        if not known:
            continue
        largest = max(known) or 1.0
        cells = [
            [_error(side, layer, module, errors[layer].get(module), largest) for layer in errors] for module in modules
        ]
        names = [layer if len(errors) <= FEW_LAYERS or i % 4 == 0 else "" for i, layer in enumerate(errors)]
        yield Figure(
            f"Quantisation error by layer: {side.name}",
            f"Relative error of each matrix in percent, layers across. Darkest: {text.share(largest)}.",
            charts.heat(
                f"Quantisation error of {side.name}",
                SEE,
                [(module, False) for module in modules],
                names,
                cells,
            ),
            more_tables.layers({**result, "candidates": _only(result, side.name), "peers": []}),
        )


def _error(side: Side, layer: str, module: str, value: float | None, largest: float) -> charts.Cell:
    if value is None:
        return charts.Cell("", None)
    tip = f"{side.name}, layer {layer}, {module}: {value:.3%}"
    return charts.Cell(f"{100 * value:.2g}", value / largest, tip)


def _only(result: Result, name: str) -> list[Result]:
    return [candidate for candidate in result["candidates"] if candidate["name"] == name]


def stages(result: Result) -> Figure | None:
    rows = []
    for side in timed(result):
        latency = side.headline or {}
        if not latency.get("stages") or not latency.get("p50_ms"):
            continue
        whole, at = latency["p50_ms"], 0.0
        rows.append(charts.Bar(side.name, side.slot, 0, whole, text.milliseconds(whole), head=True))
        for stage in latency["stages"]:
            length = stage["p50_ms"]
            rows.append(charts.Bar(stage["name"], side.slot, at, length, text.milliseconds(length)))
            at += length
        left = latency.get("unattributed_ms")
        if left is not None and left > 0:
            rows.append(charts.Bar("in no stage", side.slot, at, left, text.milliseconds(left), faint=True))
    if not rows:
        return None
    return Figure(
        "Where the time of one action goes",
        "Medians, each stage from where the one above ended; the thin line is the whole action, measured, not summed.",
        charts.waterfall("Latency by stage", SEE, rows, "ms"),
        tables.stages(result),
    )


def waterfalls(result: Result) -> Iterator[Figure]:
    """One a candidate that was looked into: each stage, and below it the least that it could take here."""
    for side in sides(result):
        candidate = next(iter(_only(result, side.name)), {})
        found = candidate.get("waterfall")
        if not found:
            continue
        limits = {stage["name"]: stage for stage in found["limits"]["stages"]}
        whole, at = found["measured_ms"][more_tables.TOTAL], 0.0
        rows = [charts.Bar(side.name, side.slot, 0, whole, text.milliseconds(whole), head=True)]
        for name, length in found["measured_ms"].items():
            if name == more_tables.TOTAL:
                continue
            limit = limits.get(name)
            told = text.milliseconds(length) + (f", {text.share(limit['share'])} of its limit" if limit else "")
            rows.append(charts.Bar(name, side.slot, at, length, told))
            if limit:
                needs = f"{text.size(limit['bytes'])}, {text.number(limit['operations'] / 1e9)} G operations"
                rows.append(charts.Bar("", side.slot, at, limit["limit_ms"], needs, faint=True))
            at += length
        yield Figure(
            f"One action of {side.name} beside its limit",
            "Medians of one frame, each stage from where the one above ended. The faint bar is the least that the "
            "stage's bytes and operations take at this machine's measured ceilings.",
            charts.waterfall(f"One action of {side.name} beside its limit", SEE, rows, "ms"),
            more_tables.waterfall(candidate),
        )


def ecdf(result: Result, beside: Path | None) -> Figure | None:
    curves = []
    deadline = None
    for side in timed(result):
        points, samples = distribution(side.headline or {}, beside)
        if len(points) > 1:
            curves.append(charts.Curve(side.name, side.slot, points, stepped=samples))
        deadline = deadline or next((e["deadline_ms"] for e in side.latency.values() if e.get("deadline_ms")), None)
    if not curves:
        return None
    every = all(curve.stepped for curve in curves)
    how = (
        "" if every else " A curve with dots joins the reported percentiles; its raw samples are not beside the result."
    )
    mark = (deadline, f"deadline {deadline:g} ms") if deadline else None
    return Figure(
        "Latency, cumulative",
        f"Share of actions done after so many milliseconds, asked back to back.{how}",
        charts.steps("Latency, cumulative", SEE, curves, "ms, logarithmic", "done", mark),
        tables.latency(result),
    )


def rates(result: Result) -> Figure | None:
    by_regime: dict[str, list[charts.Range]] = {}
    for side in sides(result):
        for regime, entry in ((side.closed_loop or {}).get("regimes") or {}).items():
            rows = by_regime.setdefault(regime, [_rate(f"reference, {regime}", 0, entry["reference"]["all"])])
            rows.append(_rate(f"{side.name}, {regime}", side.slot, entry["candidate"]["all"]))
    if not by_regime:
        return None
    worlds = ", ".join(dict.fromkeys(side.closed_loop["world"] for side in sides(result) if side.closed_loop))
    return Figure(
        "Closed-loop success",
        f"World {worlds}, all tasks; Wilson 95 % intervals.",
        charts.ranges("Closed-loop success", SEE, list(by_regime.values()), "success, %", write=_percent),
        more_tables.closed_loop(result),
    )


def _rate(name: str, slot: int | None, rate: Result) -> charts.Range:
    share = rate["success"] / rate["episodes"] if rate["episodes"] else 0.0
    return charts.Range(name, slot, share, rate["low"], rate["high"], text.of(rate["success"], rate["episodes"]))


def _percent(value: float) -> float:
    return 100 * value


def differences(result: Result) -> Figure | None:
    by_regime: dict[str, list[charts.Range]] = {}
    margins = set()
    for side in sides(result):
        loop = side.closed_loop or {}
        for regime, entry in (loop.get("regimes") or {}).items():
            d = entry["difference"]
            said = more_tables.verdict(entry)
            row = charts.Range(f"{side.name}, {regime}", side.slot, d["mean"], d["low"], d["high"], said)
            by_regime.setdefault(regime, []).append(row)
            margins.add(loop["margin"])
    if not by_regime:
        return None
    marks = [(0.0, "", "axis"), *((-margin, f"margin −{100 * margin:g}", "mark") for margin in sorted(margins))]
    return Figure(
        "Is the loss within the margin?",
        "Candidate minus reference on the same episodes, 90 % intervals: a one-sided test at 5 %. Non-inferior: "
        "the whole interval lies right of the margin, which was declared beforehand.",
        charts.ranges(
            "Difference in success", SEE, list(by_regime.values()), "percentage points", marks, write=_percent
        ),
        more_tables.non_inferiority(result),
    )
