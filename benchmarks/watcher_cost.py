"""What watching memory costs the process that is watched: `python -m benchmarks.watcher_cost --out FILE`. A minute.

Fixed work in a child process, watched and unwatched in interleaved blocks. `count` only computes; `allocate` faults in
fresh pages, which contends for the lock that reading PSS takes.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import ClassVar, Final

from benchmarks import study
from edge_vla.bench.latency import ratio
from edge_vla.bench.memory import PERIOD_S, Watcher
from edge_vla.bench.result import SpeedRatio
from edge_vla.bench.schedule import blocks

QUERIES: Final = 20  # repetitions in a block
BALLAST_BYTES: Final = 256 << 20
ALONE, WATCHED = "alone", "watched"


@dataclass(frozen=True, kw_only=True)
class WorkCost:
    """`slowdown`: p50 watched over p50 unwatched; above 1, watching slows it."""

    slowdown: SpeedRatio
    alone_p50_ms: float
    watched_p50_ms: float


@dataclass(frozen=True, kw_only=True)
class WatcherCostResult:
    KIND: ClassVar[str] = "watcher"
    VERSION: ClassVar[int] = 2

    rounds: int
    queries: int
    ballast_bytes: int
    period_ms: float
    watcher_cpu_share: float
    costs: dict[str, WorkCost]


def measure(rounds: int = 8, queries: int = QUERIES, ballast: int = BALLAST_BYTES) -> WatcherCostResult:
    """`ballast` bytes are resident in the child while it works."""
    times: dict[str, dict[str, list[list[float]]]] = {name: {ALONE: [], WATCHED: []} for name in WORK}
    shares = []
    command = [sys.executable, "-m", "benchmarks.watcher_cost", "--work", str(ballast)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=study.child_environment()
    ) as child:
        assert child.stdin
        assert child.stdout
        for mode in blocks([ALONE, WATCHED], rounds):
            with Watcher(child.pid) if mode == WATCHED else nullcontext() as watcher:
                time.sleep(0.2)
                for name in WORK:
                    child.stdin.write(f"{name} {queries}\n")
                    child.stdin.flush()
                    times[name][mode].append(json.loads(child.stdout.readline()))
                if watcher is not None:
                    mark = watcher.mark()
                    shares.append(watcher.summary({}, mark, mark).watcher.cpu_share)
        child.stdin.close()
    return WatcherCostResult(
        rounds=rounds,
        queries=queries,
        ballast_bytes=ballast,
        period_ms=PERIOD_S * 1e3,
        watcher_cpu_share=median(shares),
        costs={
            name: WorkCost(
                slowdown=ratio(modes[ALONE], modes[WATCHED]),
                alone_p50_ms=median(chain.from_iterable(modes[ALONE])),
                watched_p50_ms=median(chain.from_iterable(modes[WATCHED])),
            )
            for name, modes in times.items()
        },
    )


def work(ballast: int) -> None:
    """The child: one JSON list of milliseconds for each line `NAME REPETITIONS`."""
    held = bytearray(os.urandom(1 << 20) * (ballast >> 20))
    for line in sys.stdin:
        name, repetitions = line.split()
        milliseconds = [_milliseconds(WORK[name]) for _ in range(int(repetitions))]
        sys.stdout.write(json.dumps(milliseconds) + "\n")
        sys.stdout.flush()
    del held


def _milliseconds(once: Callable[[], object]) -> float:
    started = time.perf_counter()
    once()
    return (time.perf_counter() - started) * 1e3


def _count() -> int:
    return sum(range(200_000))


def _allocate(size: int = 16 << 20) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


WORK: Final[Mapping[str, Callable[[], object]]] = {"count": _count, "allocate": _allocate}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watcher_cost", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        return work(given.work)
    if given.out is None:
        parser.error("--out FILE is needed")
    return study.write_result(given.out, measure(given.rounds))


if __name__ == "__main__":
    study.run(main)
