"""Measures in a process of its own; where a part ends it, or the device with it, the other parts go on in another.

An illegal access or a kernel that never ends costs its own part. Knows processes; knows nothing of what is measured.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.gpu.plan import measure, open_parts, start
from benchmarks.gpu.result import GpuResult, read, write

P = ParamSpec("P")
T = TypeVar("T")


def supervise(out: Path, dry: bool, budget_s: float, only: Sequence[str], commit: str | None, verbose: bool) -> Path:
    """As `bench`, and the result is whole whatever a part does to its process."""
    ends = time.monotonic() + budget_s
    path = in_child(verbose, start, out, dry, only, commit)
    with tempfile.TemporaryDirectory(prefix="edge-vla-gpu-") as scratch:
        while True:
            try:
                result = in_child(verbose, measure, path, Path(scratch), ends - time.monotonic(), only)
            except BrokenProcessPool:
                result = blame(path, only)
            if not open_parts(result, only):
                return path
            result.device_lost = None  # for the next process it is another context
            write(result, path)


def blame(path: Path, only: Sequence[str]) -> GpuResult:
    """The first part that has no outcome is the one the process ended in."""
    result = read(path)
    part = open_parts(result, only)[0].part
    part.failed = "its process ended: a crash or a hang, see the log"
    write(result, path)
    return result


def in_child(verbose: bool, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What `work` returns in a new process; BrokenProcessPool if that ends first."""
    fresh = multiprocessing.get_context("spawn")  # a forked one could not use CUDA
    with ProcessPoolExecutor(1, fresh, configure_log, (verbose,)) as pool:
        return pool.submit(work, *given, **named).result()


def configure_log(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("benchmarks.gpu").setLevel(logging.DEBUG if verbose else logging.INFO)
