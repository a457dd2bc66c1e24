"""How long one action takes on every system that loads here, in turns A B B A.

A system that fails records why, and the others go on. Knows clocks; `systems` and `peers` know what is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.gpu import systems
from benchmarks.gpu.clock import host_ms
from benchmarks.gpu.configurations import DRAFT_IN_PREFILL, DRAFTED, W4A8, W4A16, Configuration, load
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.result import Comparison, LatencyTable, SystemRow, Times
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import System, Task
from edge_vla.bench.latency import ratio
from edge_vla.bench.peers.packages import versions
from edge_vla.bench.schedule import blocks
from edge_vla.bench.statistics import median_interval
from edge_vla.runtime.gpu.engine import GpuEngine

WARM_UPS = 4  # actions before any is timed: kernels are compiled, graphs recorded
Makers = Iterator[tuple[str, Callable[[], System]]]


@dataclass
class Entry:
    """A system that loaded, its row, and the blocks timed so far."""

    system: System
    row: SystemRow
    per_block: int = 0
    blocks_ms: list[list[float]] = field(default_factory=list)


def latency_of(run: Run, configurations: Sequence[Configuration], peers: Sequence[str]) -> LatencyTable:
    """These configurations, with drafts where one of them drafts, and these peers."""
    task = Task.make(run.checkpoint, run.scale.pictures, run.scale.prompt, run.scale.dims, run.device)
    rows, entries = list[SystemRow](), list[Entry]()
    for name, make in makers(run, task, configurations, peers):
        rows.append(SystemRow(name))
        try:
            entries.append(_loaded(make, rows[-1]))
        except Exception as error:  # noqa: BLE001 - whatever a system raises is its row
            rows[-1].failed = reason(error)
    # A peer that compiles clears cuBLAS workspaces and torch's cache, so graphs are recorded after that.
    for entry in entries:
        entry.system.reset()
    _take_turns(run, entries)
    timed = [entry for entry in entries if entry.row.failed is None]
    for entry in timed:
        entry.row.times = _times(entry)
    return LatencyTable(
        prompt_rows=run.checkpoint.config.spec.patches + run.scale.prompt,
        dims=run.scale.dims,
        systems=rows,
        comparisons=[
            Comparison(one.row.name, other.row.name, ratio(one.blocks_ms, other.blocks_ms))
            for one in timed
            for other in timed
            if one.row.ours and other is not one
        ],
        versions=versions(),
    )


def makers(run: Run, task: Task, configurations: Sequence[Configuration], peers: Sequence[str]) -> Makers:
    """Name and constructor of each system. Drafts share the engine of the configuration that drafts."""
    engines = dict[str, GpuEngine]()

    def plain(configuration: Configuration) -> System:
        engines[configuration.name] = load(run, configuration)
        return systems.plain(configuration, engines[configuration.name], task)

    def drafted(name: str, configuration: Configuration, in_prefill: bool) -> System:
        return systems.drafted(name, engines[configuration.name], task, in_prefill=in_prefill)

    for configuration in configurations:
        yield configuration.name, partial(plain, configuration)
    if W4A8 in configurations:
        yield DRAFTED, partial(drafted, DRAFTED, W4A8, False)
    if W4A16 in configurations:
        yield DRAFT_IN_PREFILL, partial(drafted, DRAFT_IN_PREFILL, W4A16, True)
    for name in peers:
        yield name, partial(PEERS[name], run.checkpoint, task)


def _loaded(make: Callable[[], System], row: SystemRow) -> Entry:
    system = make()
    row.about, row.ours = system.about, system.ours
    row.first_action_ms = _timed_ms(system, 0)
    _warm(system)
    row.tokens = system.act(0)
    return Entry(system, row)


def _take_turns(run: Run, entries: Sequence[Entry]) -> None:
    """Time every system in blocks. One that fails drops out with its reason."""
    turns, by_name, asked = 2 * run.scale.rounds, {entry.row.name: entry for entry in entries}, 0
    for entry in entries:
        try:
            _warm(entry.system)
            fitting = int(run.scale.system_s * 1e3 / _timed_ms(entry.system, 0))
            entry.per_block = max(2, min(run.scale.actions, fitting) // turns)
        except Exception as error:  # noqa: BLE001 - whatever a system raises is its row
            entry.row.failed = reason(error)
        entry.system.passes.clear()
    for name in blocks(list(by_name), run.scale.rounds):
        entry = by_name[name]
        if entry.row.failed is not None:
            continue
        try:
            # The first action of a block is discarded: clocks and caches were another system's.
            block = [_timed_ms(entry.system, asked + index) for index in range(entry.per_block + 1)]
        except Exception as error:  # noqa: BLE001 - whatever a system raises is its row
            entry.row.failed = reason(error)
            continue
        asked += entry.per_block
        entry.blocks_ms.append(block[1:])


def _warm(system: System) -> None:
    for index in range(WARM_UPS):
        system.act(index)


def _timed_ms(system: System, index: int) -> float:
    """When a system returns, its tokens are on the host, so the device has finished."""
    return host_ms(partial(system.act, index))


def _times(entry: Entry) -> Times:
    times, passes = [one for block in entry.blocks_ms for one in block], entry.system.passes
    return Times(
        actions=len(times),
        p50_ms=statistics.median(times),
        p50_interval_ms=median_interval(entry.blocks_ms),
        best_ms=min(times),
        worst_ms=max(times),
        passes_mean=statistics.fmean(passes) if passes else None,
        samples_ms=[[round(one, 4) for one in block] for block in entry.blocks_ms],
    )
