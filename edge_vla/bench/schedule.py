"""When to query a policy: back to back, paced, warm-up, interleaved blocks.

Clock and sleep are passed in, so that every rule here is tested without waiting. Latency counts from the moment a query
was *scheduled*: one that waits behind a slow one is charged for the wait. Runs in a worker; knows no policy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_vla.errors import UsageError

Query = Callable[[int], Mapping[str, float]]  # frame index -> milliseconds by stage

WINDOW: Final = 20  # queries in one window of the warm-up
WINDOWS: Final = 3
STABLE: Final = 0.02
WARM_UP_S: Final = 5.0
TOTAL: Final = "total"  # a policy's name for the sum of its stages, itself no stage


@dataclass(frozen=True)
class Clock:
    now: Callable[[], int] = time.perf_counter_ns  # nanoseconds
    sleep: Callable[[float], None] = time.sleep  # seconds

    def wait_until(self, moment: int) -> None:
        while (left := moment - self.now()) > 0:
            self.sleep(left / 1e9)


SYSTEM_CLOCK: Final = Clock()


@dataclass(frozen=True)
class Record:
    """One query: moments in nanoseconds of one clock, stages in milliseconds as the policy measured them."""

    index: int
    scheduled_ns: int
    started_ns: int
    finished_ns: int
    stages: dict[str, float]

    @property
    def latency_ms(self) -> float:
        return (self.finished_ns - self.scheduled_ns) / 1e6

    @property
    def late_ms(self) -> float:
        return (self.started_ns - self.scheduled_ns) / 1e6


@dataclass(frozen=True)
class Warmed:
    """How the warm-up went; `p50_ms` is that of its last window."""

    queries: int
    seconds: float
    stable: bool
    p50_ms: float


def back_to_back(query: Query, indices: Iterable[int], clock: Clock = SYSTEM_CLOCK) -> list[Record]:
    """Each query is scheduled when the one before it has returned."""
    return [_timed(query, index, clock.now(), clock) for index in indices]


def paced(query: Query, indices: Iterable[int], period_s: float, clock: Clock = SYSTEM_CLOCK) -> list[Record]:
    """Query i is scheduled at start + i x period, however long the ones before it took. One at a time."""
    if period_s <= 0:
        raise UsageError(f"a period of {period_s} s: expected a positive one")
    start, records = clock.now(), list[Record]()
    for turn, index in enumerate(indices):
        scheduled = start + round(turn * period_s * 1e9)
        clock.wait_until(scheduled)
        records.append(_timed(query, index, scheduled, clock))
    return records


def warm_up(query: Query, max_s: float = 60.0, min_s: float = WARM_UP_S, clock: Clock = SYSTEM_CLOCK) -> Warmed:
    """Query until the medians of three windows in a row lie within 2 %, for `min_s` at least and `max_s` at most."""
    start, times, medians = clock.now(), list[float](), list[float]()
    while True:
        times.append(_timed(query, len(times), clock.now(), clock).latency_ms)
        if len(times) % WINDOW == 0:
            medians.append(statistics.median(times[-WINDOW:]))
        last, seconds = medians[-WINDOWS:], (clock.now() - start) / 1e9
        # Checked at the end of a window only: between them the medians say nothing new.
        ended = len(times) % WINDOW == 0 and len(last) == WINDOWS
        stable = ended and seconds >= min_s and max(last) <= min(last) * (1 + STABLE)
        if stable or seconds >= max_s:
            return Warmed(len(times), round(seconds, 3), stable, statistics.median(times[-WINDOW:]))


def blocks(names: Sequence[str], rounds: int) -> list[str]:
    """Whose turn it is: each round goes there and back (A B B A), so that a constant drift falls on all alike."""
    return [name for _ in range(rounds) for name in (*names, *reversed(names))]


def _timed(query: Query, index: int, scheduled: int, clock: Clock) -> Record:
    started = clock.now()
    stages = query(index)
    finished = clock.now()
    return Record(index, scheduled, started, finished, {k: v for k, v in stages.items() if k != TOTAL})
