"""What timed queries say: percentiles, stages, ratios, and warnings about them.

A percentile that the sample is too small for is refused, not printed. `schedule.py` decides when a query is made.
Knows nothing of policies, processes or files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.quantiles import percentile, queries_needed
from edge_vla.bench.result import ColdStart, Latency, SpeedRatio, Stage, WarmUp
from edge_vla.bench.schedule import Record, Warmed
from edge_vla.bench.statistics import cluster_interval, median_interval
from edge_vla.errors import UsageError

UNATTRIBUTED: Final = 0.05
CACHED: Final = 0.9  # MLPerf TEST04: a repeated input takes at least this share of the time of varied inputs
LATE: Final = "late start"
SHARES: Final[Mapping[str, float]] = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class Profile:
    """How many queries: at least `queries` and `seconds`, until `max_seconds`, but never fewer than `min_queries`."""

    queries: int
    seconds: float
    max_seconds: float
    min_queries: int = 8

    def count(self, action_ms: float) -> int:
        """Queries to make of a policy that takes `action_ms`. A slow one stops short of its percentiles."""
        wanted = max(self.queries, math.ceil(self.seconds * 1e3 / action_ms))
        return max(min(wanted, math.floor(self.max_seconds * 1e3 / action_ms)), min(self.min_queries, wanted))


PROFILES: Final[Mapping[str, Profile]] = {
    "brief": Profile(queries=8, seconds=0, max_seconds=240),
    "quick": Profile(queries=64, seconds=0, max_seconds=300),
    "default": Profile(queries=662, seconds=60, max_seconds=1200),
    "publish": Profile(queries=662, seconds=600, max_seconds=3600),
}


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> SpeedRatio:
    """p50 of `theirs` over p50 of `ours`, block by block in the order run: above 1, ours is faster.

    What drifts between blocks measured in turns (ABBA) cancels in their ratio. Geometric mean over blocks, which vary
    more than the queries within one do, so the interval is over blocks too; from one pair there is none.
    """
    if len(ours) != len(theirs) or not ours:
        raise UsageError(f"{len(ours)} blocks against {len(theirs)}: a ratio needs as many of both")
    medians = [
        (statistics.median(first), statistics.median(second)) for first, second in zip(ours, theirs, strict=True)
    ]
    logs = np.array([math.log(second / first) for first, second in medians])
    if len(logs) == 1:
        return SpeedRatio(ratio=math.exp(logs[0]), low=None, high=None, blocks=1)
    found = cluster_interval(logs, [str(block) for block in range(len(logs))])
    low, high = math.exp(found.low), math.exp(found.high)
    return SpeedRatio(ratio=math.exp(found.mean), low=low, high=high, blocks=found.n)


def repeat_ratio(repeated: Sequence[Sequence[Record]], varied: Sequence[Sequence[Record]]) -> float:
    """p50 on one frame repeated over p50 on varied frames, the median of turns; below `CACHED`, something is cached.

    Each turn is compared with the one beside it, so that other work, which comes and goes, is no sign of a cache.
    """
    return statistics.median(
        statistics.median(record.latency_ms for record in same) / statistics.median(record.latency_ms for record in new)
        for same, new in zip(repeated, varied, strict=True)
    )


def summary(
    runs: Sequence[Sequence[Record]],
    mode: str,
    *,
    warmed: Warmed | None = None,
    period_s: float | None = None,
    cold: ColdStart | None = None,
    repeat_ratio: float | None = None,
) -> Latency:
    """The records of one or more blocks or process restarts as a Latency. With `period_s` that is the deadline."""
    records = [record for run in runs for record in run]
    if not records:
        raise UsageError(f"{mode}: no query was made, expected one or more")
    times = [record.latency_ms for record in records]
    p50, mean = statistics.median(times), statistics.fmean(times)
    spread = statistics.stdev(times) if len(times) > 1 else 0.0
    wall_s = sum(run[-1].finished_ns - run[0].scheduled_ns for run in runs if run) / 1e9
    deadline = None if period_s is None else period_s * 1e3
    tail = {name: percentile(times, share) for name, share in SHARES.items()}
    stages, rest = _stages(records, paced=period_s is not None)
    return Latency(
        mode=mode,
        queries=len(times),
        warm_up=None
        if warmed is None
        else WarmUp(queries=warmed.queries, seconds=warmed.seconds, stable=warmed.stable),
        p50_ms=p50,
        p90_ms=tail["p90"],
        p95_ms=tail["p95"],
        p99_ms=tail["p99"],
        p999_ms=tail["p999"],
        refused={
            name: f"n/a (n={len(times)} < {queries_needed(SHARES[name])})"
            for name, value in tail.items()
            if value is None
        },
        max_ms=max(times),
        mean_ms=mean,
        stdev_ms=spread,
        cov=spread / mean,
        hz=1e3 / p50,
        sustained_hz=len(times) / wall_s,
        p50_interval_ms=median_interval([[record.latency_ms for record in run] for run in runs]),
        stages=stages,
        unattributed_ms=rest,
        deadline_ms=deadline,
        deadline_misses=None if deadline is None else sum(value > deadline for value in times),
        cold=cold,
        repeat_ratio=repeat_ratio,
    )


def warnings(latency: Latency) -> Iterator[str]:
    """What a reader should know before trusting these times."""
    stages = {stage.name: stage.p50_ms for stage in latency.stages}
    if stages and latency.unattributed_ms > UNATTRIBUTED * latency.p50_ms:
        share = latency.unattributed_ms / latency.p50_ms
        yield f"{share:.0%} of an action's time belongs to no stage"
    if stages.get(LATE, 0.0) > (latency.deadline_ms or math.inf):
        yield "slower than the pace: queries queue up, so read the misses and the sustained rate, not p50"
    if latency.warm_up is not None and not latency.warm_up.stable:
        yield "the warm-up ended before the times were stable"
    if latency.repeat_ratio is not None and latency.repeat_ratio < CACHED:
        yield "one frame repeated is faster than varied frames: something may be cached between queries"


def samples(runs: Sequence[Sequence[Record]]) -> dict[str, NDArray[Any]]:
    """The raw records as arrays for an npz file: `run`, `index`, three moments (ns), `stage NAME` (ms)."""
    records = [(number, record) for number, run in enumerate(runs) for record in run]
    names = dict.fromkeys(name for _, record in records for name in record.stages)
    arrays: dict[str, NDArray[Any]] = {"run": np.array([number for number, _ in records], dtype=np.int64)}
    for field in ("index", "scheduled_ns", "started_ns", "finished_ns"):
        arrays[field] = np.array([getattr(record, field) for _, record in records], dtype=np.int64)
    for name in names:
        arrays[f"stage {name}"] = np.array([record.stages.get(name, math.nan) for _, record in records])
    return arrays


def _stages(records: Sequence[Record], paced: bool) -> tuple[list[Stage], float]:
    """p50 of each stage and its share of all the time; and p50 of what no stage accounts for, milliseconds."""
    rows = [{**({LATE: record.late_ms} if paced else {}), **record.stages} for record in records]
    whole = sum(record.latency_ms for record in records)
    stages = [
        Stage(
            name=name,
            p50_ms=statistics.median(row.get(name, 0.0) for row in rows),
            share=sum(row.get(name, 0.0) for row in rows) / whole,
        )
        for name in dict.fromkeys(name for row in rows for name in row)
    ]
    rest = statistics.median(record.latency_ms - sum(row.values()) for record, row in zip(records, rows, strict=True))
    return stages, rest
