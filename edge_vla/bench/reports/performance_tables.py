"""Time, memory and the limits of the machine, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.systems import systems, timed
from edge_vla.bench.reports.table import Columns, Row, Table, table
from edge_vla.bench.result import Energy, Latency, Memory, PowerDraw, Result, Stage, StageProfile
from edge_vla.device.limits import WHOLE, Limits, StageLimit

TOTAL: Final = "total"  # the whole action, as a policy names its time


def latency(result: Result) -> Table | None:
    """One row a system and mode. Where a percentile was refused, the reason stands in its place."""
    rows = [
        Row(f"{system.name}, {mode}", one)
        for system, _ in timed(result)
        for mode, one in system.performance.latency.items()
    ]
    columns: Columns[Latency] = {
        "queries": lambda one: f"{one.queries:,}",
        "p50": _median,
        "p90": lambda one: _percentile(one, "p90", one.p90_ms),
        "p95": lambda one: _percentile(one, "p95", one.p95_ms),
        "p99": lambda one: _percentile(one, "p99", one.p99_ms),
        "p99.9": lambda one: _percentile(one, "p999", one.p999_ms),
        "max": lambda one: text.milliseconds(one.max_ms),
        "CoV": lambda one: text.share(one.cov),
        "rate": lambda one: text.hertz(one.hz),
        "sustained": lambda one: text.hertz(one.sustained_hz),
        "deadline missed": lambda one: (
            text.ABSENT if one.deadline_misses is None else text.of(one.deadline_misses, one.queries)
        ),
        "ready after": lambda one: f"{one.cold.ready_s:.2f} s" if one.cold else text.ABSENT,
        "first action": lambda one: text.milliseconds(one.cold.first_ms if one.cold else None),
    }
    return table("Latency of one action", "system, mode", rows, columns)


def _median(one: Latency) -> str:
    low, high = (text.milliseconds(bound).partition(" ")[0] for bound in one.p50_interval_ms)
    return f"{text.milliseconds(one.p50_ms)} [{low}, {high}]"


def _percentile(one: Latency, name: str, value: float | None) -> str:
    return one.refused.get(name, text.ABSENT) if value is None else text.milliseconds(value)


def stages(result: Result) -> Table | None:
    rows = []
    for system, one in timed(result):
        rest = Stage(name="outside all stages", p50_ms=one.unattributed_ms, share=one.unattributed_ms / one.p50_ms)
        rows += [Row(f"{system.name}, {stage.name}", stage) for stage in (*one.stages, rest)] if one.stages else []
    columns: Columns[Stage] = {
        "p50": lambda stage: text.milliseconds(stage.p50_ms),
        "share": lambda stage: text.share(stage.share),
    }
    return table("Time of one action by stage", "system, stage", rows, columns)


def memory(result: Result) -> Table | None:
    rows = [Row(one.name, one.performance.memory) for one in systems(result) if one.performance.memory is not None]
    parts = dict.fromkeys(part for row in rows for part in row.figures.weights)
    columns: Columns[Memory] = {
        **{f"weights: {part}": partial(_weights, part) for part in parts},
        "peak while loading": lambda one: text.size(one.load_peak_bytes),
        "loaded": lambda one: text.size(one.loaded_bytes),
        "peak": lambda one: text.size(one.peak_bytes),
        "peak PSS": lambda one: text.size(one.pss_peak_bytes),
        "GPU peak of the process": lambda one: text.size(one.cuda.process_peak_bytes if one.cuda else None),
        "GPU peak of torch": lambda one: text.size(one.cuda.allocated_peak_bytes if one.cuda else None),
    }
    return table("Memory of the system's own process", "system", rows, columns)


def energy(result: Result) -> Table | None:
    """A row for each system and sensor; one that says why, where there is no figure."""
    rows = list[Row[Energy | str]]()
    for system in systems(result):
        if (power := system.performance.power) is None:
            continue
        rows += [Row(f"{system.name}, {one.sensor}", one) for one in power.energy]
        if power.withheld is not None:
            rows.append(Row(system.name, power.withheld))
    columns: Columns[Energy | str] = {
        "energy of an action": lambda one: _of_energy(one, lambda one: f"{text.number(one.joules_per_action)} J"),
        "mean": lambda one: _of_energy(one, lambda one: f"{text.number(one.mean_w)} W"),
        "highest": lambda one: _of_energy(
            one, lambda one: text.ABSENT if one.highest_w is None else f"{text.number(one.highest_w)} W"
        ),
        "actions": lambda one: _of_energy(one, lambda one: f"{one.actions:,}"),
        "withheld": lambda one: one if isinstance(one, str) else text.ABSENT,
    }
    return table("Energy, all that the sensor covers, idle or not", "system, sensor", rows, columns)


def _of_energy(one: Energy | str, write: Callable[[Energy], str]) -> str:
    return text.ABSENT if isinstance(one, str) else write(one)


def throttling(result: Result) -> Table | None:
    rows = [Row(one.name, one.performance.power) for one in systems(result) if one.performance.power is not None]
    columns: Columns[PowerDraw] = {
        "GPU slowed by": lambda one: ", ".join(one.throttling.gpu) or text.ABSENT,
        "CPU throttled": lambda one: _events(one.throttling.cpu_events),
        "over-current": lambda one: _events(one.throttling.over_current_events),
        "hottest": _hottest,
    }
    return table("Throttling while actions were timed", "system", rows, columns)


def _events(count: int | None) -> str:
    return text.ABSENT if count is None else f"{count} times"


def _hottest(one: PowerDraw) -> str:
    zones = one.throttling.temperatures_c
    if not zones:
        return text.ABSENT
    zone = max(zones, key=lambda name: zones[name].highest)
    return f"{zone} {zones[zone].lowest:.0f} to {zones[zone].highest:.0f} °C"


def _weights(part: str, one: Memory) -> str:
    return text.size(one.weights.get(part))


def limits(limits: Limits | None) -> Table | None:
    """What the machine's measured ceilings allow, stage by stage."""
    if limits is None:
        return None
    columns = {**LIMIT, "measured": lambda stage: text.milliseconds(stage.measured_ms)}
    rows = [Row(stage.name, stage) for stage in limits.stages]
    return table(f"Limits of this machine: {limits.model}", "stage", rows, columns)


LIMIT: Final[Columns[StageLimit]] = {
    "bytes": lambda stage: text.size(stage.bytes),
    "operations": lambda stage: text.operations(stage.operations),
    "bytes alone": lambda stage: text.milliseconds(stage.bytes_ms),
    "arithmetic alone": lambda stage: text.milliseconds(stage.operations_ms),
    "limit": lambda stage: text.milliseconds(stage.limit_ms),
    "limit ÷ measured": lambda stage: text.part(stage.share),
}


def ceilings(limits: Limits | None) -> str:
    """One sentence: the machine's ceilings, and how they were measured."""
    if limits is None:
        return ""
    found = limits.ceilings
    rates = [f"{dtype} matrix products {text.number(rate / 1e9)} GFLOP/s" for dtype, rate in found.gemm_flops.items()]
    rates.insert(0, f"memory {text.number(found.read_bytes_per_s / 1e9)} GB/s")
    return f"Measured ceilings: {', '.join(rates)} ({found.how})."


def stage_profile(name: str, profile: StageProfile) -> Table | None:
    """The stages of a candidate that was profiled, in order, each beside its limit."""
    limits = {TOTAL if stage.name == WHOLE else stage.name: stage for stage in profile.limits.stages}
    measured = profile.measured_ms
    columns: Columns[str] = {
        "median": lambda stage: text.milliseconds(measured[stage]),
        "of the action": lambda stage: text.share(measured[stage] / measured[TOTAL]),
        **{title: partial(_limit, limits, write) for title, write in LIMIT.items()},
    }
    return table(f"One action of {name}, stage by stage", "stage", [Row(stage, stage) for stage in measured], columns)


def _limit(limits: Mapping[str, StageLimit], write: Callable[[StageLimit], str], stage: str) -> str:
    return write(limits[stage]) if stage in limits else text.ABSENT
