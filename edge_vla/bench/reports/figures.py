"""A result as figures: each a chart or a map, a sentence that says how to read it, and the table of what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_vla.bench.reports import agreement_tables, performance_tables, tables, text
from edge_vla.bench.reports.charts import Colour, Intervals, Range, Segment, Stacked
from edge_vla.bench.reports.systems import REFERENCE, SystemResult, compared, systems, timed
from edge_vla.bench.reports.table import Table
from edge_vla.bench.result import Interval, Memory, Rate, Result


@dataclass(frozen=True)
class Figure:
    """`reading` says in a sentence or two how to read it. Without a chart the table itself is the map."""

    title: str
    reading: str
    chart: Intervals | Stacked | None
    table: Table


def agreement(result: Result) -> Iterator[Figure]:
    if table := agreement_tables.by_dimension(result):
        yield Figure(
            "Agreement by dimension",
            "Share of tokens equal to the reference's, given its previous tokens, with 95 % intervals. Grey is the "
            "reference against itself with its rounding changed: a candidate whose interval ends left of it lost more "
            "than rounding costs.",
            _by_dimension(result),
            table,
        )
    if table := agreement_tables.by_margin(result):
        floor = next((figures.margins.floor for _, figures in compared(result) if figures.margins.floor), None)
        above = f" Bold: flips although all margins are above the rounding noise, {text.number(floor)}."
        yield Figure(
            table.title,
            "Tokens that changed; darker is more. The first row holds the tenth of positions where the reference's two "
            "best tokens were closest, the last its clearest choices. Near ties flip by rounding alone; flips further "
            f"down are errors of the candidate.{above if floor else ''}",
            None,
            table,
        )


def first(result: Result) -> Figure | None:
    """The picture that a report begins with: each candidate's tokens beside the noise floor's."""
    table, found = agreement_tables.agreement(result), compared(result)
    if table is None or not any(system.role == "candidate" for system, _ in found):
        return None
    return Figure(
        "The reference's token, given its previous ones",
        "Share of tokens that are the reference's, with 95 % intervals. Compare with the floor, which is the reference "
        "against itself with its rounding changed, not with 100 %.",
        Intervals("same token, %", {system.name: [_range(system, own.teacher_forced)] for system, own in found}),
        table,
    )


def _by_dimension(result: Result) -> Intervals:
    """One floor is drawn, the first; the table has them all."""
    found = compared(result)
    floors = [one for one in found if one[0].role == "floor"]
    drawn = floors[:1] + [one for one in found if one[0].role != "floor"]
    groups = {"all": [_range(system, figures.teacher_forced) for system, figures in drawn]}
    for i, name in enumerate(found[0][1].dims):
        groups[name] = [_range(system, figures.teacher_forced_by_dimension[i]) for system, figures in drawn]
    return Intervals("same token, %", groups)


def _range(system: SystemResult, share: Interval) -> Range:
    mean, low, high = 100 * share.mean, 100 * share.low, 100 * share.high
    return Range(system.label, system.colour, mean, low, high, text.interval(share))


def speed(result: Result) -> Iterator[Figure]:
    if table := performance_tables.latency(result):
        yield Figure(
            table.title,
            "Dot: median. Line: up to the 99th percentile, or the highest that so many queries support.",
            _latency(result),
            table,
        )
    if table := performance_tables.stages(result):
        rows = {}
        for system, one in timed(result):
            if one.stages:
                parts = {stage.name: stage.p50_ms for stage in one.stages}
                rows[system.name] = _segments({**parts, "outside all stages": one.unattributed_ms})
        yield Figure(
            "Where the time goes", "Median time of each stage of one action, end to end.", Stacked("ms", rows), table
        )
    for row in result.candidates:
        if row.stage_profile and (table := performance_tables.stage_profile(row.name, row.stage_profile)):
            ours, limits = row.stage_profile.measured_ms, row.stage_profile.limits.stages
            measured = {name: ms for name, ms in ours.items() if name != performance_tables.TOTAL}
            least = {stage.name: stage.limit_ms for stage in limits if stage.name in measured}
            yield Figure(
                f"{row.name} beside its limit",
                "The lower bar is the least time that each stage's bytes and operations need at this machine's "
                "measured ceilings; the difference is what better code could save.",
                Stacked("ms", {"measured": _segments(measured), "limit": _segments(least)}),
                table,
            )


def _latency(result: Result) -> Intervals:
    groups, deadlines = dict[str, list[Range]](), set[float]()
    for system, _ in timed(result):
        for mode, one in system.performance.latency.items():
            high = next((value for value in (one.p99_ms, one.p95_ms, one.p90_ms) if value is not None), one.max_ms)
            tip = f"p50 {text.milliseconds(one.p50_ms)}, max {text.milliseconds(one.max_ms)}"
            groups.setdefault(mode, []).append(Range(system.name, system.colour, one.p50_ms, one.p50_ms, high, tip))
            deadlines |= set() if one.deadline_ms is None else {one.deadline_ms}
    lines = {deadline: f"deadline {deadline:g} ms" for deadline in sorted(deadlines)}
    return Intervals("ms, logarithmic", groups, lines, log=True)


def _segments(milliseconds: Mapping[str, float]) -> list[Segment]:
    return [Segment(name, max(0.0, value), text.milliseconds(value)) for name, value in milliseconds.items()]


def memory(result: Result) -> Iterator[Figure]:
    if table := performance_tables.memory(result):
        rows = {one.name: _parts(one.performance.memory) for one in systems(result) if one.performance.memory}
        yield Figure(
            "Memory",
            "Peak memory of each system's process: its weights by part, and the rest (libraries, activations, caches).",
            Stacked("MiB", rows),
            table,
        )


def _parts(memory: Memory) -> list[Segment]:
    """On a GPU the larger of the two peaks is drawn: weights lie there."""
    peaks = [memory.peak_bytes, *([memory.cuda.process_peak_bytes or 0] if memory.cuda else [])]
    rest = max(0, max(peaks) - sum(memory.weights.values()))
    return [Segment(name, size / 2**20, text.size(size)) for name, size in {**memory.weights, "rest": rest}.items()]


def closed_loop(result: Result) -> Iterator[Figure]:
    success, difference = dict[str, list[Range]](), dict[str, list[Range]]()
    lines = {0.0: ""}
    for system, margin, regime in tables.regimes(result):
        rows = success.setdefault(regime.name, [_rate(REFERENCE, 0, regime.reference["all"])])
        rows.append(_rate(system.name, system.colour, regime.candidate["all"]))
        difference.setdefault(regime.name, []).append(_range(system, regime.overall.difference))
        lines[-100 * margin] = f"margin −{100 * margin:g}"
    if table := tables.closed_loop(result):
        yield Figure(
            table.title,
            "Share of episodes in which the task was done, all kinds of tasks, with Wilson 95 % intervals.",
            Intervals("success, %", success),
            table,
        )
    if table := tables.non_inferiority(result):
        yield Figure(
            "Is the loss within the margin?",
            "Candidate minus reference on the same episodes, with 90 % intervals (a one-sided test at 5 %). "
            "Non-inferior: the whole interval lies right of the margin, which was declared before the run.",
            Intervals("difference in success, percentage points", difference, lines),
            table,
        )


def _rate(name: str, colour: Colour, rate: Rate) -> Range:
    share = rate.success / rate.episodes if rate.episodes else 0.0
    return Range(name, colour, 100 * share, 100 * rate.low, 100 * rate.high, tables.success(rate))
