"""The watcher's process: samples the memory of one process and its children until its input says stop.

Run by `memory.Watcher` as `python -m edge_vla.bench.memory_watcher PID`. Imports nothing heavy. RSS is fast and counts
a page once for each process that maps it; PSS is slow and counts it once in all; available memory is the whole
machine's, which runs out first where CPU and GPU share it. A child that lives shorter than `CHILDREN_S` can be missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import Final

import psutil

from edge_vla.device.memory import available_bytes, peak_resident_bytes, resident_bytes, total_bytes
from edge_vla.device.sensors import GpuMemory, GpuMemoryPeaks, nvml
from edge_vla.errors import BackendError

PERIOD_S: Final = 0.01
SLOW_S: Final = 0.1  # the machine, and the kernel's own peak
GPU_S: Final = 0.02
CHILDREN_S: Final = 0.5
PSS_S: Final = 0.5
PSS_DUTY: Final = 0.02  # reading PSS walks page tables under the process's own lock: rest fifty times as long
POINTS: Final = 600


@dataclass(frozen=True)
class Mark:
    """Bytes at the end of a phase, and the peak since the mark before."""

    bytes: int
    pss_bytes: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Watched:
    """Everything the watcher saw. `kernel_peak_bytes` is the watched process's own, without children."""

    samples: int
    period_ms: float
    peak_bytes: int
    kernel_peak_bytes: int
    pss_peak_bytes: int | None
    marks: dict[str, Mark]
    series: list[tuple[float, int]]  # (seconds, bytes)
    total_bytes: int
    available_at_start_bytes: int
    available_drop_bytes: int
    gpu: GpuMemoryPeaks | None
    watcher_cpu_share: float
    watcher_bytes: int


@dataclass(frozen=True)
class Started:
    pid: int


class Series:
    """Peaks over time in at most `POINTS` points: when full, neighbours merge into their larger, so none is lost."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int]] = []
        self.each, self._count = 1, 0  # samples a point stands for

    def add(self, seconds: float, value: int) -> None:
        if self._count % self.each == 0:
            self.points.append((round(seconds, 3), value))
        else:
            at, largest = self.points[-1]
            self.points[-1] = (at, max(largest, value))
        self._count += 1
        if len(self.points) == POINTS and self._count % self.each == 0:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(one[0], max(one[1], two[1])) for one, two in pairs]
            self.each *= 2


class Watch:
    """Sampled by `tick`, read by `mark` and `result`."""

    def __init__(self, pid: int, period_s: float) -> None:
        """Raises psutil.NoSuchProcess."""
        self.root, self.period_s = psutil.Process(pid), period_s
        self.processes, self.gpu = [self.root], _gpu_memory()
        self.spent = time.process_time()  # on starting up, which is over before watching begins
        self.start, self.samples = time.monotonic(), 0
        self.peak = self.peak_since_mark = self.pss_peak = self.kernel_peak = 0
        self.series, self.marks = Series(), dict[str, Mark]()
        self.due = dict.fromkeys(("children", "slow", "pss", "gpu"), 0.0)
        self.available = self.available_low = available_bytes() or 0

    def tick(self) -> None:
        now = time.monotonic()
        if self._is_due("children", now, CHILDREN_S):
            with contextlib.suppress(psutil.Error):
                children = self.root.children(recursive=True)
                self.processes = [self.root, *(child for child in children if child.pid != os.getpid())]
        held = self._resident()
        self.samples += 1
        self.peak, self.peak_since_mark = max(self.peak, held), max(self.peak_since_mark, held)
        self.series.add(now - self.start, held)
        if self._is_due("slow", now, SLOW_S):
            self.kernel_peak = max(self.kernel_peak, peak_resident_bytes(self.root.pid))
            self.available_low = min(self.available_low, available_bytes() or 0)
        if self.gpu and self._is_due("gpu", now, GPU_S):
            self.gpu.sample({process.pid for process in self.processes})
        if self._is_due("pss", now, PSS_S):
            self._pss()
            self.due["pss"] = max(self.due["pss"], now + (time.monotonic() - now) / PSS_DUTY)

    def mark(self, name: str) -> Mark:
        self.due.update(children=0.0, slow=0.0)
        self.tick()
        found = Mark(bytes=self._resident(), pss_bytes=self._pss() or None, peak_bytes=self.peak_since_mark)
        self.marks[name], self.peak_since_mark = found, 0
        return found

    def result(self) -> Watched:
        seconds = time.monotonic() - self.start
        return Watched(
            samples=self.samples,
            period_ms=round(self.period_s * 1e3, 3),
            peak_bytes=self.peak,
            kernel_peak_bytes=self.kernel_peak,
            pss_peak_bytes=self.pss_peak or None,
            marks=self.marks,
            series=self.series.points,
            total_bytes=total_bytes() or 0,
            available_at_start_bytes=self.available,
            available_drop_bytes=self.available - self.available_low,
            gpu=self.gpu.peaks() if self.gpu else None,
            watcher_cpu_share=round((time.process_time() - self.spent) / seconds, 4),
            watcher_bytes=resident_bytes(),
        )

    def _is_due(self, what: str, now: float, period_s: float) -> bool:
        if now < self.due[what]:
            return False
        self.due[what] = now + period_s
        return True

    def _resident(self) -> int:
        """Over the family; a process that ends meanwhile holds nothing."""
        held = 0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        return held

    def _pss(self) -> int:
        held = 0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                held += process.memory_full_info().pss
        self.pss_peak = max(self.pss_peak, held)
        return held


def reply(message: Started | Mark | Watched) -> None:
    sys.stdout.write(json.dumps(dataclasses.asdict(message)) + "\n")
    sys.stdout.flush()


def watch(pid: int, period_s: float) -> None:
    """Sample until the input says stop or ends; one JSON line for each line read."""
    watched, unread, due = Watch(pid, period_s), b"", time.monotonic()
    watched.tick()
    reply(Started(pid))
    while True:
        due = max(due + period_s, time.monotonic())  # a missed sample is not made up for
        while (left := due - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                unread += (more := os.read(0, 1 << 16))
                *lines, unread = unread.split(b"\n")
                for line in map(bytes.decode, lines):
                    if line == "stop":
                        return reply(watched.result())
                    reply(watched.mark(line.removeprefix("mark ")))
                if not more:
                    return None
        watched.tick()


def _gpu_memory() -> GpuMemory | None:
    try:
        return GpuMemory(nvml())
    except BackendError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m edge_vla.bench.memory_watcher", description=__doc__)
    parser.add_argument("pid", type=int)
    parser.add_argument("--period", type=float, default=PERIOD_S)
    given = parser.parse_args()
    with contextlib.suppress(psutil.NoSuchProcess):
        watch(given.pid, given.period)
