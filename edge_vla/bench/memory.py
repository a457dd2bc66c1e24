"""How much memory a process and its children hold, watched from a process of its own (`memory_watcher.py`).

Bytes throughout. Knows nothing of what the watched process does.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final, TypeVar

from edge_vla import typed_json
from edge_vla.bench.memory_watcher import PERIOD_S, Mark, Started, Watched
from edge_vla.bench.result import CudaMemory, Memory, SystemMemory, WatcherCost
from edge_vla.bench.systems import child_environment
from edge_vla.device.memory import available_bytes
from edge_vla.device.sensors import GpuMemoryPeaks
from edge_vla.errors import BackendError

Reply = TypeVar("Reply")

LOADED: Final = "loaded"
RUNNING: Final = "running"


class Watcher:
    """Watches `pid` from when the block is entered until `stop`, or the block's end, whichever is first."""

    def __init__(self, pid: int, period_s: float = PERIOD_S) -> None:
        """Raises BackendError if there is no such process, or no /proc to read."""
        if available_bytes() is None:
            raise BackendError("memory is read from /proc, which this system lacks: measure on Linux")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge_vla.bench.memory_watcher", str(pid), "--period", str(period_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        self._watched: Watched | None = None
        self._reply(Started)  # it has taken its first sample

    def mark(self, name: str) -> Mark:
        """Bytes now, and the peak since the mark before (or the start): call it at the end of a phase."""
        return self._call(f"mark {name}", Mark)

    def stop(self) -> Watched:
        """Everything seen so far; the same when called again."""
        if self._watched is None:
            self._watched = self._call("stop", Watched)
            self.close()
        return self._watched

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            self._process.wait(timeout=5)  # it ends when its input does
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, line: str, expected: type[Reply]) -> Reply:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._reply(expected)

    def _reply(self, expected: type[Reply]) -> Reply:
        assert self._process.stdout
        try:
            line = self._process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            self.close()
            raise BackendError(f"the memory watcher stopped (exit {self._process.returncode}): is its process gone?")
        return typed_json.from_json(expected, json.loads(line))


def summary(watched: Watched, weights: Mapping[str, int], allocator: CudaMemory | None = None) -> Memory:
    """What was watched as a Memory. `allocator`: the watched process's own peaks of torch's CUDA allocator."""
    loaded, running = watched.marks.get(LOADED), watched.marks.get(RUNNING)
    return Memory(
        weights=dict(weights),
        load_peak_bytes=None if loaded is None else loaded.peak_bytes,
        loaded_bytes=None if running is None else running.bytes,
        peak_bytes=max(watched.peak_bytes, watched.kernel_peak_bytes),
        pss_peak_bytes=watched.pss_peak_bytes,
        cuda=_cuda(allocator, watched.gpu),
        system=SystemMemory(
            total_bytes=watched.total_bytes,
            available_at_start_bytes=watched.available_at_start_bytes,
            available_drop_bytes=watched.available_drop_bytes,
        ),
        samples=watched.samples,
        period_ms=watched.period_ms,
        series=watched.series,
        watcher=WatcherCost(cpu_share=watched.watcher_cpu_share, bytes=watched.watcher_bytes),
    )


def _cuda(allocator: CudaMemory | None, gpu: GpuMemoryPeaks | None) -> CudaMemory | None:
    if gpu is None:
        return allocator
    own = allocator or CudaMemory()
    return CudaMemory(
        allocated_peak_bytes=own.allocated_peak_bytes,
        reserved_peak_bytes=own.reserved_peak_bytes,
        process_peak_bytes=gpu.process_peak_bytes,
        device_peak_bytes=gpu.device_peak_bytes,
        device_start_bytes=gpu.device_start_bytes,
    )
