"""A result as figures: each a chart, a sentence that says how to read it, and the table of what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edge_vla.bench.reports import agreement_tables, charts, performance_tables, tables, text
from edge_vla.bench.reports.charts import Cell, Line, Range, Segment
from edge_vla.bench.reports.svg import Canvas, Colour
from edge_vla.bench.reports.systems import REFERENCE, SystemResult, compared, systems, timed
from edge_vla.bench.reports.table import Table
from edge_vla.bench.result import Agreement, Flips, Interval, Memory, Rate, Result


@dataclass(frozen=True)
class Figure:
    """`reading` says in a sentence or two how to read it."""

    title: str
    reading: str
    drawing: Canvas
    table: Table | None

    @property
    def picture(self) -> Markup:
        return self.drawing.markup(self.title, f"{self.reading} The values are in the table below.")


def by_dimension(result: Result) -> Figure | None:
    """One floor is drawn, the first; the table has them all."""
    found = _one_floor(compared(result))
    if not found:
        return None
    dims = found[0][1].dims
    groups: dict[str, list[Range]] = {
        "all": [_range(system, figures.teacher_forced) for system, figures in found],
        **{
            name: [_range(system, figures.teacher_forced_by_dimension[i]) for system, figures in found]
            for i, name in enumerate(dims)
        },
    }
    return Figure(
        "Agreement by dimension",
        "Share of tokens equal to the reference's, given its previous tokens, with 95 % intervals. Grey is the "
        "reference against itself with its rounding changed: a candidate whose interval ends left of it lost more "
        "than rounding costs.",
        charts.intervals(groups, "same token, %"),
        agreement_tables.by_dimension(result),
    )


def _range(system: SystemResult, share: Interval) -> Range:
    mean, low, high = 100 * share.mean, 100 * share.low, 100 * share.high
    return Range(system.label, system.colour, mean, low, high, text.interval(share))


def _one_floor(found: Sequence[tuple[SystemResult, Agreement]]) -> list[tuple[SystemResult, Agreement]]:
    floors = [one for one in found if one[0].role == "floor"]
    return floors[:1] + [one for one in found if one[0].role != "floor"]


def by_margin(result: Result) -> Figure | None:
    found = [(system, figures.margins) for system, figures in compared(result) if figures.margins.deciles]
    if not found:
        return None
    shares = [flips.share or 0.0 for _, margins in found for flips in margins.deciles]
    largest = max(shares) or 1.0
    floor = next((margins.floor for _, margins in found if margins.floor is not None), None)
    rows = {system.label: [_flips(one, largest, floor) for one in margins.deciles] for system, margins in found}
    above = f" Bold: flips although all margins are above the rounding noise, {text.number(floor)}." if floor else ""
    return Figure(
        "Flips by the reference's margin",
        "Percent of tokens that changed. Column 1 holds the tenth of positions where the reference's two best tokens "
        f"were closest, column 10 its clearest choices. Near ties flip by rounding alone; flips on the right are "
        f"errors of the candidate.{above}",
        charts.heat([str(i + 1) for i in range(10)], rows),
        agreement_tables.by_margin(result),
    )


def _flips(flips: Flips, largest: float, floor: float | None) -> Cell:
    share = flips.share or 0.0
    shown = "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"
    above = floor is not None and flips.low is not None and flips.low > floor
    return Cell(shown, share / largest, text.of(flips.flips, flips.positions), strong=above and flips.flips > 0)


def latency(result: Result) -> Figure | None:
    groups: dict[str, list[Range]] = {}
    deadlines: set[float] = set()
    for system, _ in timed(result):
        for mode, one in system.performance.latency.items():
            known = [value for value in (one.p99_ms, one.p95_ms, one.p90_ms) if value is not None]
            high = known[0] if known else one.max_ms
            tip = f"p50 {text.milliseconds(one.p50_ms)}, max {text.milliseconds(one.max_ms)}"
            groups.setdefault(mode, []).append(Range(system.name, system.colour, one.p50_ms, one.p50_ms, high, tip))
            deadlines |= set() if one.deadline_ms is None else {one.deadline_ms}
    if not groups:
        return None
    lines = [Line(deadline, f"deadline {deadline:g} ms") for deadline in sorted(deadlines)]
    return Figure(
        "Latency of one action",
        "Dot: median. Line: up to the 99th percentile, or the highest that so many queries support.",
        charts.intervals(groups, "ms, logarithmic", lines=lines, log=True),
        performance_tables.latency(result),
    )


def stages(result: Result) -> Figure | None:
    rows = {}
    for system, one in timed(result):
        if one.stages:
            parts = {stage.name: stage.p50_ms for stage in one.stages} | {"outside all stages": one.unattributed_ms}
            rows[system.name] = _segments(parts)
    if not rows:
        return None
    return Figure(
        "Where the time goes",
        "Median time of each stage of one action, end to end.",
        charts.stacked(rows, "ms"),
        performance_tables.stages(result),
    )


def _segments(milliseconds: Mapping[str, float]) -> list[Segment]:
    return [Segment(name, max(0.0, value), text.milliseconds(value)) for name, value in milliseconds.items()]


def stage_profiles(result: Result) -> Iterator[Figure]:
    """Of each candidate that was profiled: its stages, and the least that they could take on this machine."""
    for row in result.candidates:
        if (profile := row.stage_profile) is None:
            continue
        measured = {name: ms for name, ms in profile.measured_ms.items() if name != performance_tables.TOTAL}
        limits = {stage.name: stage.limit_ms for stage in profile.limits.stages if stage.name in measured}
        title = f"{row.name} beside its limit"
        yield Figure(
            title,
            "The lower bar is the least time that each stage's bytes and operations need at this machine's measured "
            "ceilings; the difference is what better code could save.",
            charts.stacked({"measured": _segments(measured), "limit": _segments(limits)}, "ms"),
            performance_tables.stage_profile(row.name, profile),
        )


def memory(result: Result) -> Figure | None:
    rows = {one.name: _parts(one.performance.memory) for one in systems(result) if one.performance.memory}
    if not rows:
        return None
    return Figure(
        "Memory",
        "Peak memory of each system's process: its weights by part, and the rest (libraries, activations, caches).",
        charts.stacked(rows, "MiB"),
        performance_tables.memory(result),
    )


def _parts(memory: Memory) -> list[Segment]:
    """On a GPU the larger of the two peaks is drawn: weights lie there."""
    peaks = [memory.peak_bytes, *([memory.cuda.process_peak_bytes or 0] if memory.cuda else [])]
    rest = max(0, max(peaks) - sum(memory.weights.values()))
    return [Segment(name, size / 2**20, text.size(size)) for name, size in {**memory.weights, "rest": rest}.items()]


def success(result: Result) -> Figure | None:
    groups: dict[str, list[Range]] = {}
    for system, regime in tables.regimes(result):
        rows = groups.setdefault(regime.name, [_rate(REFERENCE, 0, regime.reference["all"])])
        rows.append(_rate(system.name, system.colour, regime.candidate["all"]))
    if not groups:
        return None
    return Figure(
        "Closed-loop success",
        "Share of episodes in which the task was done, all kinds of tasks, with Wilson 95 % intervals.",
        charts.intervals(groups, "success, %"),
        tables.closed_loop(result),
    )


def _rate(name: str, colour: Colour, rate: Rate) -> Range:
    share = rate.success / rate.episodes if rate.episodes else 0.0
    return Range(name, colour, 100 * share, 100 * rate.low, 100 * rate.high, tables.success(rate))


def differences(result: Result) -> Figure | None:
    groups: dict[str, list[Range]] = {}
    for system, regime in tables.regimes(result):
        groups.setdefault(regime.name, []).append(_range(system, regime.overall.difference))
    if not groups:
        return None
    margins = sorted({one.closed_loop.margin for one in systems(result) if one.closed_loop})
    lines = [Line(0.0), *(Line(-100 * margin, f"margin −{100 * margin:g}") for margin in margins)]
    return Figure(
        "Is the loss within the margin?",
        "Candidate minus reference on the same episodes, with 90 % intervals (a one-sided test at 5 %). Non-inferior: "
        "the whole interval lies right of the margin, which was declared before the run.",
        charts.intervals(groups, "difference in success, percentage points", lines=lines),
        tables.non_inferiority(result),
    )
