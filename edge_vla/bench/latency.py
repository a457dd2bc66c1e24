"""When to ask, and what the answers' times say: schedules, warm-up, percentiles, interleaving.

The clock and the pause are given, so that every rule here is tested without waiting. Latency counts from the moment
a query was *scheduled*: one that waits behind a slow one is charged for the wait. A percentile that the sample
cannot carry is refused, not printed. Knows nothing of policies, processes or files.
"""

from __future__ import annotations

import math
import statistics as plain
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.quantiles import Refusal, percentile, ratio_of_medians
from edge_vla.errors import UsageError

Query = Callable[[int], Mapping[str, float]]  # frame index -> milliseconds by stage

WINDOW: Final = 20  # queries in one window of the warm-up
WINDOWS: Final = 3
STABLE: Final = 0.02
WARM_UP_S: Final = 5.0
UNATTRIBUTED: Final = 0.05
SLOWEST_REPEAT: Final = 0.9  # MLPerf TEST04: repeated inputs may not be answered more than 10 % faster
RESAMPLES: Final = 1000
TOTAL: Final = "total"  # what a policy calls the sum of its stages: no stage
LATE: Final = "late start"

SHARES: Final[Mapping[str, float]] = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class Clock:
    now: Callable[[], int] = time.perf_counter_ns  # nanoseconds
    sleep: Callable[[float], None] = time.sleep  # seconds

    def wait_until(self, moment: int) -> None:
        while (left := moment - self.now()) > 0:
            self.sleep(left / 1e9)


SYSTEM: Final = Clock()


@dataclass(frozen=True)
class Record:
    """One query: moments in nanoseconds of one clock, stages in milliseconds as the policy measured them."""

    index: int
    scheduled_ns: int
    started_ns: int
    finished_ns: int
    stages: Mapping[str, float]

    @property
    def latency_ms(self) -> float:
        return (self.finished_ns - self.scheduled_ns) / 1e6

    @property
    def late_ms(self) -> float:
        return (self.started_ns - self.scheduled_ns) / 1e6

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stages": dict(self.stages)}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Record:
        return Record(**raw)


@dataclass(frozen=True)
class Profile:
    """How many queries: at least `queries` and `seconds`, until `most_seconds`, but never fewer than `fewest`."""

    queries: int
    seconds: float
    most_seconds: float
    fewest: int = 8

    def count(self, action_ms: float) -> int:
        """Queries to make of a policy that takes `action_ms`. A slow one stops short of its percentiles."""
        wanted = max(self.queries, math.ceil(self.seconds * 1e3 / action_ms))
        return max(min(wanted, math.floor(self.most_seconds * 1e3 / action_ms)), min(self.fewest, wanted))


PROFILES: Final[Mapping[str, Profile]] = {
    "few": Profile(queries=8, seconds=0, most_seconds=240),
    "quick": Profile(queries=64, seconds=0, most_seconds=300),
    "default": Profile(queries=662, seconds=60, most_seconds=1200),
    "publish": Profile(queries=662, seconds=600, most_seconds=3600),
}


@dataclass(frozen=True)
class WarmUp:
    """`p50_ms` is that of the last window: what to plan the measurement by."""

    queries: int
    seconds: float
    stable: bool
    p50_ms: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def back_to_back(query: Query, indices: Iterable[int], clock: Clock = SYSTEM) -> list[Record]:
    """Each query is scheduled when the one before it has been answered."""
    return [_ask(query, index, clock.now(), clock) for index in indices]


def paced(query: Query, indices: Iterable[int], period_s: float, clock: Clock = SYSTEM) -> list[Record]:
    """Query i is scheduled at start + i x period, however long the ones before it took. One at a time."""
    if period_s <= 0:
        raise UsageError(f"a period of {period_s} s: it must be positive")
    start, records = clock.now(), list[Record]()
    for turn, index in enumerate(indices):
        scheduled = start + round(turn * period_s * 1e9)
        clock.wait_until(scheduled)
        records.append(_ask(query, index, scheduled, clock))
    return records


def warm_up(query: Query, most_s: float = 60.0, least_s: float = WARM_UP_S, clock: Clock = SYSTEM) -> WarmUp:
    """Ask until the medians of three windows in a row lie within 2 %, for `least_s` at least and `most_s` at most."""
    start, times, medians = clock.now(), list[float](), list[float]()
    while True:
        times.append(_ask(query, len(times), clock.now(), clock).latency_ms)
        if len(times) % WINDOW == 0:
            medians.append(plain.median(times[-WINDOW:]))
        last, seconds = medians[-WINDOWS:], (clock.now() - start) / 1e9
        # Judged at the end of a window only: between them the last medians say nothing new.
        ended = len(times) % WINDOW == 0 and len(last) == WINDOWS
        stable = ended and seconds >= least_s and max(last) <= min(last) * (1 + STABLE)
        if stable or seconds >= most_s:
            return WarmUp(len(times), round(seconds, 3), stable, plain.median(times[-WINDOW:]))


def blocks(names: Sequence[str], rounds: int) -> list[str]:
    """Who runs when: each round goes there and back (A B B A), so that a steady drift falls on all alike."""
    return [name for _ in range(rounds) for name in (*names, *reversed(names))]


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """p50 of `theirs` over p50 of `ours`, block by block in the order run: above 1, ours is faster.

    Blocks vary more than the queries within one do, so the interval is over blocks; from one pair there is none.
    """
    if len(ours) != len(theirs) or not ours:
        raise UsageError(f"{len(ours)} blocks against {len(theirs)}: a ratio needs as many of either side")
    if len(ours) == 1:
        return {"ratio": plain.median(theirs[0]) / plain.median(ours[0]), "low": None, "high": None, "blocks": 1}
    found = ratio_of_medians(list(zip(theirs, ours, strict=True)))
    return {"ratio": found.mean, "low": found.low, "high": found.high, "blocks": found.n}


def repeat_ratio(repeated: Sequence[Record], varied: Sequence[Record]) -> float:
    """p50 on one frame asked again and again over p50 on varied frames; below `SLOWEST_REPEAT`, answers are cached."""
    return plain.median(record.latency_ms for record in repeated) / plain.median(r.latency_ms for r in varied)


def p50_interval(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % bootstrap interval of the median. With three runs or more whole runs are drawn, then queries in them."""
    generator, samples = np.random.default_rng(0), [np.asarray(run, dtype=float) for run in runs if len(run)]
    if len(samples) < 3:
        samples = [np.concatenate(samples)]

    def drawn() -> Iterator[NDArray[np.float64]]:
        for chosen in generator.integers(0, len(samples), len(samples)):
            yield generator.choice(samples[chosen], len(samples[chosen]))

    medians = [float(np.median(np.concatenate(list(drawn())))) for _ in range(RESAMPLES)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def summary(
    runs: Sequence[Sequence[Record]],
    mode: str,
    *,
    warm_up: Mapping[str, Any] | None = None,
    period_s: float | None = None,
    deadline_ms: float | None = None,
    cold: Mapping[str, float] | None = None,
    repeat_ratio: float | None = None,
) -> dict[str, Any]:
    """LATENCY of the result document, from the records of one or more blocks or process restarts.

    With `period_s` the deadline is the period unless given.
    """
    records = [record for run in runs for record in run]
    if not records:
        raise UsageError(f"{mode}: no query was made, so there is nothing to say about latency")
    times = [record.latency_ms for record in records]
    p50, mean = plain.median(times), plain.fmean(times)
    spread = plain.stdev(times) if len(times) > 1 else 0.0
    wall_s = sum(run[-1].finished_ns - run[0].scheduled_ns for run in runs if run) / 1e9
    deadline = period_s * 1e3 if deadline_ms is None and period_s is not None else deadline_ms
    tail = {name: percentile(times, share) for name, share in SHARES.items()}
    stages, rest = _stages(records, paced=period_s is not None)
    return {
        "mode": mode,
        "queries": len(times),
        "warm_up": warm_up and {key: warm_up[key] for key in ("queries", "seconds", "stable")},
        "p50_ms": p50,
        **{f"{name}_ms": None if isinstance(value, Refusal) else value for name, value in tail.items()},
        "refused": {name: str(value) for name, value in tail.items() if isinstance(value, Refusal)},
        "max_ms": max(times),
        "mean_ms": mean,
        "stdev_ms": spread,
        "cov": spread / mean,
        "hz": 1e3 / p50,
        "sustained_hz": len(times) / wall_s,
        "p50_interval": list(p50_interval([[record.latency_ms for record in run] for run in runs])),
        "stages": stages,
        "unattributed_ms": rest,
        "deadline_ms": deadline,
        "deadline_misses": None if deadline is None else sum(value > deadline for value in times),
        "samples": None,
        "samples_sha256": None,
        "cold": None if cold is None else dict(cold),
        "repeat_ratio": repeat_ratio,
    }


def warnings(latency: Mapping[str, Any]) -> list[str]:
    """What a reader of one LATENCY should know before believing it."""
    found = []
    stages = {stage["name"]: stage["p50_ms"] for stage in latency["stages"]}
    if stages and latency["unattributed_ms"] > UNATTRIBUTED * latency["p50_ms"]:
        share = latency["unattributed_ms"] / latency["p50_ms"]
        found.append(f"{share:.0%} of an action is in none of its stages: the stages do not explain the time")
    if stages.get(LATE, 0.0) > (latency["deadline_ms"] or math.inf):
        found.append(
            "slower than the pace: each query waits longer, so misses and the sustained rate mean more than p50"
        )
    if latency["warm_up"] is not None and not latency["warm_up"]["stable"]:
        found.append("the warm-up ended before the times were steady")
    if latency["repeat_ratio"] is not None and latency["repeat_ratio"] < SLOWEST_REPEAT:
        found.append("one frame repeated is answered faster than varied frames: something is cached between queries")
    return found


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


def _ask(query: Query, index: int, scheduled: int, clock: Clock) -> Record:
    started = clock.now()
    stages = query(index)
    finished = clock.now()
    return Record(index, scheduled, started, finished, {k: v for k, v in stages.items() if k != TOTAL})


def _stages(records: Sequence[Record], paced: bool) -> tuple[list[dict[str, Any]], float]:
    """p50 of each stage and its share of all the time; and p50 of what no stage accounts for, milliseconds."""
    rows = [{**({LATE: record.late_ms} if paced else {}), **record.stages} for record in records]
    whole = sum(record.latency_ms for record in records)
    stages = [
        {
            "name": name,
            "p50_ms": plain.median(row.get(name, 0.0) for row in rows),
            "share": sum(row.get(name, 0.0) for row in rows) / whole,
        }
        for name in dict.fromkeys(name for row in rows for name in row)
    ]
    rest = plain.median(record.latency_ms - sum(row.values()) for record, row in zip(records, rows, strict=True))
    return stages, rest
