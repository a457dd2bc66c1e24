"""The watcher's process: samples the memory of one process and its children until its input says stop.

Run by `memory.Poller` as `python -m edge_vla.bench.memory_watcher PID`. Imports nothing heavy and reads three of the
kernel's figures: RSS (fast, counts a page once for each process that maps it), PSS (slow, counts it once in all) and
MemAvailable (the whole machine, which is what runs out where CPU and GPU share it). Bytes throughout. A child that
lives shorter than `FAMILY_S` can be missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edge_vla.device.sensors import GpuMemory, nvml
from edge_vla.errors import BackendError

PERIOD_S: Final = 0.01
SLOW_S: Final = 0.1  # the machine, and the kernel's own peak
GPU_S: Final = 0.02
FAMILY_S: Final = 0.5
PSS_S: Final = 0.5
PSS_DUTY: Final = 0.02  # reading PSS walks page tables under the process's own lock: rest fifty times as long
POINTS: Final = 600
PROC: Final = Path("/proc")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


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
    """What the watcher knows: sampled by `tick`, asked by `mark` and `result`."""

    def __init__(self, pid: int, period_s: float) -> None:
        self.pid, self.period_s = pid, period_s
        self.gpu, self.no_gpu = _gpu_memory()
        self.spent = time.process_time()  # on starting up, which is over before watching begins
        self.start, self.samples, self.peak, self.peak_since, self.pss_peak = time.monotonic(), 0, 0, 0, 0
        self.series, self.marks, self.kernel_peak = Series(), dict[str, dict[str, Any]](), 0
        self.files: dict[int, int] = {}  # pid -> open file; its statm is read again and again
        self.due = {"family": 0.0, "slow": 0.0, "pss": 0.0, "gpu": 0.0}
        self.available = self.available_low = _kilobytes(PROC / "meminfo", "MemAvailable:")
        self.gone, self.most = False, 0

    def tick(self) -> None:
        now = time.monotonic()
        if self._is_due("family", now, FAMILY_S):
            self._meet(family(self.pid))
        held = self._resident()
        self.samples += 1
        self.peak, self.peak_since = max(self.peak, held), max(self.peak_since, held)
        self.series.add(now - self.start, held)
        if self._is_due("slow", now, SLOW_S):
            self.kernel_peak = max(self.kernel_peak, _kilobytes(PROC / str(self.pid) / "status", "VmHWM:"))
            self.available_low = min(self.available_low, _kilobytes(PROC / "meminfo", "MemAvailable:"))
        if self.gpu and self._is_due("gpu", now, GPU_S):
            self.gpu.sample(self.files)
        if self._is_due("pss", now, PSS_S):
            self.pss()
            self.due["pss"] = max(self.due["pss"], now + (time.monotonic() - now) / PSS_DUTY)

    def pss(self) -> int:
        held = sum(_kilobytes(PROC / str(pid) / "smaps_rollup", "Pss:") for pid in self.files)
        self.pss_peak = max(self.pss_peak, held)
        return held

    def mark(self, name: str) -> dict[str, Any]:
        self.due.update(family=0.0, slow=0.0)
        self.tick()
        found = {
            "at_s": round(time.monotonic() - self.start, 3),
            "bytes": self._resident(),
            "pss_bytes": self.pss() or None,
            "peak_bytes": self.peak_since,
        }
        self.marks[name], self.peak_since = found, 0
        return found

    def result(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.start
        return {
            "pid": self.pid,
            "ended": self.gone,
            "samples": self.samples,
            "seconds": round(seconds, 3),
            "period_ms": round(self.period_s * 1e3, 3),
            "hz": round(self.samples / seconds, 1),
            "processes": self.most,
            "peak_bytes": self.peak,
            "kernel_peak_bytes": self.kernel_peak,
            "pss_peak_bytes": self.pss_peak or None,
            "marks": self.marks,
            "series": self.series.points,
            "system": {
                "total_bytes": _kilobytes(PROC / "meminfo", "MemTotal:"),
                "available_at_start_bytes": self.available,
                "available_drop_bytes": self.available - self.available_low,
            },
            "cuda": self.gpu.result() if self.gpu else None,
            "no_cuda_because": self.no_gpu,
            "watcher": {
                "cpu_share": round((time.process_time() - self.spent) / seconds, 4),
                "bytes": _kilobytes(PROC / "self" / "status", "VmRSS:"),
            },
        }

    def _is_due(self, what: str, now: float, period_s: float) -> bool:
        if now < self.due[what]:
            return False
        self.due[what] = now + period_s
        return True

    def _meet(self, pids: set[int]) -> None:
        for pid in self.files.keys() - pids:
            os.close(self.files.pop(pid))
        for pid in pids - self.files.keys():
            with contextlib.suppress(OSError):
                self.files[pid] = os.open(PROC / str(pid) / "statm", os.O_RDONLY)
        self.most = max(self.most, len(self.files))

    def _resident(self) -> int:
        held = 0
        for pid, file in list(self.files.items()):
            try:
                held += int(os.pread(file, 128, 0).split()[1]) * PAGE
            except (OSError, IndexError):
                os.close(self.files.pop(pid))
        self.gone = self.pid not in self.files
        return held


def family(pid: int) -> set[int]:
    """A process and its descendants, but this one. Read from every process's parent: not all kernels list children."""
    parents = {}
    for name in os.listdir(PROC):  # noqa: PTH208
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError, ValueError):
                # The name in parentheses may hold anything, so the fields are counted from its end.
                fields = (PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    parents[int(name)] = int(fields[1])
    found = {pid} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def watch(pid: int, period_s: float) -> None:
    """Sample until told to stop or standard input ends; one JSON line for each word heard."""

    def reply(message: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    if not family(pid):
        return reply({"error": f"there is no process {pid} to watch"})
    watched, heard, due = Watch(pid, period_s), b"", time.monotonic()
    watched.tick()
    reply({"watching": pid})
    while True:
        due = max(due + period_s, time.monotonic())  # a sample that was missed is not made up for
        while (left := due - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                heard += (more := os.read(0, 1 << 16))
                *words, heard = heard.split(b"\n")
                for word in map(bytes.decode, words):
                    if word == "stop":
                        return reply(watched.result())
                    reply(watched.mark(word.removeprefix("mark ")))
                if not more:
                    return None
        watched.tick()


def _gpu_memory() -> tuple[GpuMemory | None, str | None]:
    try:
        return GpuMemory(nvml()), None
    except BackendError as error:
        return None, str(error)


def _kilobytes(path: Path, field: str) -> int:
    """A field that the kernel gives in kB, as bytes; 0 if the file has gone or may not be read."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m edge_vla.bench.memory_watcher", description=__doc__)
    parser.add_argument("pid", type=int)
    parser.add_argument("--period", type=float, default=PERIOD_S)
    given = parser.parse_args()
    watch(given.pid, given.period)
