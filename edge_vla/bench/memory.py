"""How much memory a process and its children hold, sampled by a thread of the process that started it.

RSS is fast and counts a page once for each process that maps it; PSS is slow and counts it once in all; available
memory is the whole machine's, which runs out first where CPU and GPU share it. A child that lives shorter than
`CHILDREN_S` can be missed. Bytes throughout. Knows nothing of what the watched process does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import psutil

from edge_vla.bench.result import CudaMemory, Memory, SystemMemory, WatcherCost
from edge_vla.device.memory import available_bytes, peak_resident_bytes, resident_bytes, total_bytes
from edge_vla.device.sensors import GpuMemory, nvml
from edge_vla.errors import BackendError

PERIOD_S: Final = 0.01
SLOW_S: Final = 0.1  # the machine, and the kernel's own peak
GPU_S: Final = 0.02
CHILDREN_S: Final = 0.5
PSS_S: Final = 0.5
PSS_DUTY: Final = 0.02  # reading PSS walks page tables under the process's own lock: rest fifty times as long


@dataclass(frozen=True)
class Mark:
    """Bytes at the end of a phase, and the peak since the mark before."""

    bytes: int
    pss_bytes: int | None
    peak_bytes: int


class Watcher:
    """Watches `pid` from when it is made until the block ends. `period_s` between samples."""

    def __init__(self, pid: int, period_s: float = PERIOD_S) -> None:
        """Raises BackendError if there is no such process, or no /proc to read."""
        available = available_bytes()
        if available is None:
            raise BackendError("memory is read from /proc, which this system lacks: measure on Linux")
        try:
            self.root = psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise BackendError(f"there is no process {pid} to watch: it has ended") from error
        self.period_s, self.processes, self.gpu = period_s, [self.root], _gpu_memory()
        self.start, self.samples, self.cpu_s = time.monotonic(), 0, 0.0
        self.peak = self.peak_since_mark = self.pss_peak = self.kernel_peak = 0
        self.due = dict.fromkeys(("children", "slow", "pss", "gpu"), 0.0)
        self.available = self.available_low = available
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._sample()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def mark(self) -> Mark:
        """Bytes now, and the peak since the mark before (or the start): call it at the end of a phase."""
        with self._lock:
            self.due.update(children=0.0, slow=0.0)
            self._sample()
            found = Mark(bytes=self._resident(), pss_bytes=self._pss() or None, peak_bytes=self.peak_since_mark)
            self.peak_since_mark = 0
        return found

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def summary(
        self, weights: Mapping[str, int], loaded: Mark, running: Mark, allocator: CudaMemory | None = None
    ) -> Memory:
        """Everything seen so far. `allocator`: the watched process's own peaks of torch's CUDA allocator."""
        with self._lock:
            return Memory(
                weights=dict(weights),
                load_peak_bytes=loaded.peak_bytes,
                loaded_bytes=running.bytes,
                peak_bytes=max(self.peak, self.kernel_peak),
                pss_peak_bytes=self.pss_peak or None,
                cuda=self._cuda(allocator),
                system=SystemMemory(
                    total_bytes=total_bytes() or 0,
                    available_at_start_bytes=self.available,
                    available_drop_bytes=self.available - self.available_low,
                ),
                samples=self.samples,
                period_ms=round(self.period_s * 1e3, 3),
                watcher=WatcherCost(
                    cpu_share=round(self.cpu_s / (time.monotonic() - self.start), 4), bytes=resident_bytes()
                ),
            )

    def _watch(self) -> None:
        while not self._stopped.wait(self.period_s):
            with self._lock:
                self._sample()
            self.cpu_s = time.thread_time()

    def _sample(self) -> None:
        now = time.monotonic()
        if self._is_due("children", now, CHILDREN_S):
            with contextlib.suppress(psutil.Error):
                self.processes = [self.root, *self.root.children(recursive=True)]
        held = self._resident()
        self.samples += 1
        self.peak, self.peak_since_mark = max(self.peak, held), max(self.peak_since_mark, held)
        if self._is_due("slow", now, SLOW_S):
            self.kernel_peak = max(self.kernel_peak, peak_resident_bytes(self.root.pid))
            self.available_low = min(self.available_low, available_bytes() or 0)
        if self.gpu and self._is_due("gpu", now, GPU_S):
            self.gpu.sample({process.pid for process in self.processes})
        if self._is_due("pss", now, PSS_S):
            self._pss()
            self.due["pss"] = max(self.due["pss"], now + (time.monotonic() - now) / PSS_DUTY)

    def _is_due(self, what: str, now: float, period_s: float) -> bool:
        if now < self.due[what]:
            return False
        self.due[what] = now + period_s
        return True

    def _resident(self) -> int:
        """Over the family; a process that has ended holds nothing."""
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

    def _cuda(self, allocator: CudaMemory | None) -> CudaMemory | None:
        if self.gpu is None:
            return allocator
        own, peaks = allocator or CudaMemory(), self.gpu.peaks()
        return CudaMemory(
            allocated_peak_bytes=own.allocated_peak_bytes,
            reserved_peak_bytes=own.reserved_peak_bytes,
            process_peak_bytes=peaks.process_peak_bytes,
            device_peak_bytes=peaks.device_peak_bytes,
            device_start_bytes=peaks.device_start_bytes,
        )


def _gpu_memory() -> GpuMemory | None:
    try:
        return GpuMemory(nvml())
    except BackendError:
        return None
