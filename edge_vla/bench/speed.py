"""How fast and how large each system is, all in one run: loaded together where they fit, queried in turns A B B A.

A shared machine drifts; systems that take turns drift together, so their ratio holds where their times do not. Systems
that do not fit together meet the candidates in pairs. Knows processes and clocks; knows nothing of predictions.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.bench import latency, power, schedule
from edge_vla.bench.memory import Mark, Watcher
from edge_vla.bench.messages import Loaded, System
from edge_vla.bench.result import (
    BACK_TO_BACK,
    ColdStart,
    CudaMemory,
    Latency,
    Memory,
    Performance,
    Samples,
    SpeedRatio,
    TimedTokens,
)
from edge_vla.bench.schedule import Record, Warmed
from edge_vla.bench.systems import WorkerProcess
from edge_vla.checkpoint import key_table
from edge_vla.device.energy import Meter, Stretch, nvml_or_none
from edge_vla.device.memory import available_bytes
from edge_vla.errors import BackendError, EdgeVLAError, ResourceError
from edge_vla.files import write_whole
from edge_vla.spec import PolicySpec

OnProgress = Callable[[str], None]

ROUNDS: Final = 4  # there and back: eight blocks a system
WARM_UP_S: Final = 30.0
REPEATS: Final = 8  # queries on one frame in a row, to see whether anything is cached
REPEAT_TURNS: Final = 6  # of them, in turns with as many varied frames: what disturbs the machine meets both
REPEATED_S: Final = 100.0  # at most, for both
PACED_S: Final = 20.0
PROCESS_BYTES: Final = 600_000_000  # what a process holds beside its weights


@dataclass
class Measured:
    """One system's raw times."""

    loaded: Loaded
    warmed: Warmed = field(init=False)
    runs: list[list[Record]] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)  # one a run
    no_sensor: str | None = None
    paced: dict[float, list[Record]] = field(default_factory=dict)
    repeated: list[list[Record]] = field(default_factory=list)  # by turn
    varied: list[list[Record]] = field(default_factory=list)  # beside each
    tokens: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    cuda: CudaMemory | None = None  # peaks so far
    memory: Memory | None = None

    def times(self) -> list[list[float]]:
        """Back-to-back latencies by block, milliseconds."""
        return [[record.latency_ms for record in run] for run in self.runs]

    def timed_tokens(self, predicted: NDArray[np.int64]) -> TimedTokens:
        """How many timed queries gave other tokens than (frames, dims) agreement was computed from."""
        different = sum(tuple(predicted[index]) != tokens for index, tokens in self.tokens)
        return TimedTokens(queries=len(self.tokens), different=different)

    def query(self, process: WorkerProcess, indices: Sequence[int], period_s: float | None = None) -> list[Record]:
        timed = process.time(indices, period_s)
        self.tokens += timed.tokens
        self.cuda = timed.cuda
        return timed.records


@dataclass
class Running:
    """One system of a group while it is loaded."""

    process: WorkerProcess
    watcher: Watcher
    loaded: Mark
    measured: Measured


def groups(systems: Mapping[str, System], candidates: Sequence[str], spec: PolicySpec) -> list[list[str]]:
    """What is loaded together: all, or where memory does not hold all, each candidate with each of the others."""
    need = {name: _bytes(system, spec) for name, system in systems.items()}
    free = available_bytes() or math.inf
    if sum(need.values()) < free:
        return [list(systems)]
    others = [name for name in systems if name not in candidates]
    pairs = [[candidate, other] for candidate in candidates for other in others] or [[name] for name in candidates]
    fitting = [pair for pair in pairs if sum(need[name] for name in pair) < free]
    if not fitting:
        least = min(sum(need[name] for name in pair) for pair in pairs)
        raise ResourceError(
            f"timing two systems needs {least / 1e9:.1f} GB, {free / 1e9:.1f} GB is free: leave out a system, or time "
            "the artifact alone with --no-time-reference"
        )
    return fitting


def parallel(systems: Mapping[str, System], spec: PolicySpec) -> int:
    """How many systems may be loaded at a time, one a core at most."""
    largest = sorted((_bytes(system, spec) for system in systems.values()), reverse=True)
    cores, free = os.cpu_count() or 1, available_bytes() or math.inf
    return next((count for count in range(min(cores, len(largest)), 1, -1) if sum(largest[:count]) < free), 1)


def measure(
    systems: Mapping[str, System],
    frames: Path,
    limit: int | None,
    profile: str,
    paces_hz: Sequence[float],
    on_progress: OnProgress,
) -> dict[str, Measured | str]:
    """Every system of one group: what it measured, or why it could not be measured."""
    found: dict[str, Measured | str] = {}
    running: dict[str, Running] = {}
    meter = Meter(library=nvml_or_none())
    with ExitStack() as stack:

        @contextmanager
        def dropped_on_error(name: str) -> Iterator[None]:
            try:
                yield
            except EdgeVLAError as error:
                on_progress(f"{name}: {error}")
                found[name] = str(error)
                running.pop(name, None)

        for name, system in systems.items():
            on_progress(f"{name}: loading")
            with dropped_on_error(name):
                running[name] = _start(stack, system, frames, limit)
        for name, one in list(running.items()):
            on_progress(f"{name}: warming up")
            with dropped_on_error(name):
                # One slow action is all the warm-up a slow policy needs.
                longest = min(WARM_UP_S, max(1.0, 40 * one.measured.loaded.first_ms / 1e3))
                one.measured.warmed = one.process.warm_up(longest)
        order = schedule.blocks(list(running), ROUNDS)
        for turn, name in enumerate(order):
            if name in running:
                on_progress(f"timing {turn + 1} of {len(order)}: {name}")
                with dropped_on_error(name):
                    _block(running[name], latency.PROFILES[profile], meter)
        for name, one in running.items():
            on_progress(f"{name}: timing repeated frames and paced queries")
            try:
                _alone(one, paces_hz)
            except EdgeVLAError as error:  # what it measured so far is kept
                on_progress(f"{name}: {error}")
            measured, now = one.measured, one.watcher.mark()
            measured.memory = one.watcher.summary(measured.loaded.weights, one.loaded, now, measured.cuda)
            found[name] = one.measured
    return found


def _start(stack: ExitStack, system: System, frames: Path, limit: int | None) -> Running:
    process = stack.enter_context(WorkerProcess(system))
    try:
        watcher = stack.enter_context(Watcher(process.pid))
    except BackendError:
        process.load(frames, limit)  # a worker that has died says why
        raise
    measured = Measured(process.load(frames, limit))
    return Running(process, watcher, watcher.mark(), measured)


def _block(running: Running, profile: latency.Profile, meter: Meter) -> None:
    measured, turns = running.measured, 2 * ROUNDS
    queries = max(1, -(-profile.count(measured.warmed.p50_ms) // turns))
    done = len(measured.runs) * queries
    run, stretch = meter.during(lambda: measured.query(running.process, range(done, done + queries)))
    measured.runs.append(run)
    measured.stretches.append(stretch)
    measured.no_sensor = meter.found.withheld


def _alone(running: Running, paces_hz: Sequence[float]) -> None:
    """One frame repeated, in turns with varied ones; then at a robot's pace."""
    process, measured = running.process, running.measured
    action_s = measured.warmed.p50_ms / 1e3
    if action_s * 2 * REPEATS * REPEAT_TURNS < REPEATED_S:
        for turn in range(REPEAT_TURNS):
            varied = range(turn * REPEATS, (turn + 1) * REPEATS)
            order = [(measured.repeated, [0] * REPEATS), (measured.varied, varied)]
            for turns, indices in order if turn % 2 == 0 else order[::-1]:
                turns.append(measured.query(process, indices))
    for hz in paces_hz:
        queries = max(4, round(PACED_S * hz)) if action_s < 4 / hz else 4
        measured.paced[hz] = measured.query(process, range(queries), 1 / hz)


def record(performance: Performance, measured: Measured, name: str, out: Path) -> None:
    """Enter one system's times into its row; the raw samples go to files in `out`."""
    repeat = latency.repeat_ratio(measured.repeated, measured.varied) if measured.varied else None
    cold = ColdStart(ready_s=measured.loaded.ready_s, first_ms=measured.loaded.first_ms)
    back_to_back = latency.summary(measured.runs, BACK_TO_BACK, warmed=measured.warmed, cold=cold, repeat_ratio=repeat)
    performance.latency[BACK_TO_BACK] = _with_samples(back_to_back, measured.runs, name, out)
    for hz, run in measured.paced.items():
        mode = f"paced {hz:g} Hz"
        paced = latency.summary([run], mode, period_s=1 / hz)
        performance.latency[mode] = _with_samples(paced, [run], name, out)
    performance.memory = measured.memory
    performance.power = power.summary(measured.stretches, sum(map(len, measured.runs)), measured.no_sensor)
    performance.kernels = measured.loaded.kernels


def warnings(performance: Performance) -> Iterator[str]:
    """What a reader of these times should know."""
    for mode, times in performance.latency.items():
        yield from (f"{mode}: {warning}" for warning in latency.warnings(times))


def ratio(candidate: Measured, other: Measured) -> SpeedRatio | None:
    """How much faster a candidate is than a system it took turns with; None where one broke off."""
    ours, theirs = candidate.times(), other.times()
    return latency.ratio(ours, theirs) if ours and len(ours) == len(theirs) else None


def _with_samples(summary: Latency, runs: Sequence[Sequence[Record]], name: str, out: Path) -> Latency:
    file, buffer = f"latency-{name}-{summary.mode}.npz".replace(" ", "-").replace("/", "-"), io.BytesIO()
    np.savez_compressed(buffer, **latency.samples(runs))  # type: ignore[arg-type]
    write_whole(out / file, buffer.getvalue())
    return replace(summary, samples=Samples(file=file, sha256=hashlib.sha256(buffer.getvalue()).hexdigest()))


def _bytes(system: System, spec: PolicySpec) -> int:
    """About what a system will hold."""
    if (Path(system.path) / MANIFEST).exists():
        files = Artifact(Path(system.path)).manifest.files.values()
        return PROCESS_BYTES + sum(record.size for record in files)
    each = 4 if system.dtype == "fp32" else 2
    return PROCESS_BYTES + each * sum(math.prod(entry.shape) for entry in key_table(spec).values())
