"""How long one action takes on every side that loads here, in turns A B B A.

A side that breaks says why, and the others go on. Knows clocks; `gpu_sides` knows who is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.gpu import systems
from benchmarks.gpu.clock import host_ms
from benchmarks.gpu.forms import CHANCE, DRAFTED, DRAFTS_ON, FORMS, RIDES_IN, RIDING, load
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import Side, Task
from edge_vla.bench import latency, schedule
from edge_vla.bench.peers.packages import versions
from edge_vla.bench.statistics import median_interval
from edge_vla.runtime.gpu.engine import GpuEngine

FIRST = 4  # actions before any is timed: kernels are compiled, graphs recorded


def latency_of(run: Run, forms: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
    """These of our forms, drafts too if a form that drafts is among them, and these peers."""
    task = Task.make(run.checkpoint, run.scale.pictures, run.scale.text, run.scale.dims, run.device)
    sides, rows = list[Side](), dict[str, dict[str, Any]]()
    for name, make in _makers(run, task, forms, peers):
        try:
            side = make()
            cold = _timed(side, 0)
            _warm(side)
            rows[name] = {"about": side.about, "first_ms": cold, "tokens": list(side.act(0))}
        except Exception as error:  # noqa: BLE001 - whatever a side raises is its row
            rows[name] = {"failed": reason(error)}
            continue
        sides.append(side)
    # A peer that compiles clears libraries' workspaces and torch's cache: what is timed is recorded after that.
    for side in sides:
        side.renew()
    blocks, failed = _in_turns(sides, run)
    for side in sides:
        name = side.name
        if name in blocks:
            rows[name] |= _summary(blocks[name], side)
        else:
            rows[name] = {**rows[name], "failed": failed[name]}
    return {
        "prompt_rows": run.checkpoint.config.spec.patches + run.scale.text,
        "dims": run.scale.dims,
        "sides": rows,
        "times_faster": _ratios(blocks),
        "versions": versions(),
        "not_timed": dict.fromkeys(("gptqmodel", "gemlite"), "no side for it has been written"),
    }


def _makers(
    run: Run, task: Task, forms: Sequence[str], peers: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Side]]]:
    loaded = dict[str, GpuEngine]()

    def plain(form: str) -> Side:
        loaded[form] = load(run, form)
        bits, vision, activations = FORMS[form]
        about = f"{bits}-bit decoder, {vision}-bit towers, {activations}-bit activations where rows are many"
        return systems.ours(form, loaded[form], task, about)

    def drafted(name: str, form: str, bitwise_exact: bool) -> Side:
        where = (
            "after the prefill, same bits as without"
            if bitwise_exact
            else "in the prefill, near-ties may fall otherwise"
        )
        about = f"planted drafts, each dimension right with p = {CHANCE:g}, verified {where}"
        assert bitwise_exact or loaded[form].decoder.prefill_matches_step, f"nothing rides in a prefill of {form}"
        return systems.drafted(name, loaded[form], task, CHANCE, bitwise_exact=bitwise_exact, about=about)

    for form in forms:
        yield form, partial(plain, form)
    if DRAFTS_ON in forms:
        yield DRAFTED, partial(drafted, DRAFTED, DRAFTS_ON, True)
    if RIDES_IN in forms:
        yield RIDING, partial(drafted, RIDING, RIDES_IN, False)
    for name in peers:
        yield name, partial(systems.PEERS[name], run.checkpoint, task)


def _in_turns(sides: Sequence[Side], run: Run) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Milliseconds by side and block, and why a side has none: one that breaks drops out, the others go on.

    The first action of a block is thrown away: clocks and caches were another's.
    """
    by_name, turns, asked = {side.name: side for side in sides}, 2 * run.scale.rounds, 0
    counts, failed = dict[str, int](), dict[str, str]()
    for side in sides:
        try:
            _warm(side)
            fitting = int(run.scale.side_s * 1e3 / _timed(side, 0))
            counts[side.name] = max(2, min(run.scale.actions, fitting) // turns)
        except Exception as error:  # noqa: BLE001 - whatever a side raises is its row
            failed[side.name] = reason(error)
        side.passes.clear()
    taken: dict[str, list[list[float]]] = {name: [] for name in counts}
    for name in schedule.blocks(list(counts), run.scale.rounds):
        if name in failed:
            continue
        try:
            block = [_timed(by_name[name], asked + index) for index in range(counts[name] + 1)]
        except Exception as error:  # noqa: BLE001
            failed[name] = reason(error)
            continue
        asked += counts[name]
        taken[name].append(block[1:])
    return {name: blocks for name, blocks in taken.items() if name not in failed}, failed


def _warm(side: Side) -> None:
    for index in range(FIRST):
        side.act(index)


def _timed(side: Side, index: int) -> float:
    """Its tokens are on the host when a side returns, so the device has finished."""
    return host_ms(partial(side.act, index))


def _summary(blocks: Sequence[Sequence[float]], side: Side) -> dict[str, Any]:
    times = [one for block in blocks for one in block]
    low, high = median_interval(blocks)
    return {
        "actions": len(times),
        "p50_ms": statistics.median(times),
        "p50_interval": [low, high],
        "best_ms": min(times),
        "worst_ms": max(times),
        "samples_ms": [[round(one, 4) for one in block] for block in blocks],
        **({"passes_mean": statistics.fmean(side.passes)} if side.passes else {}),
    }


def _ratios(blocks: Mapping[str, list[list[float]]]) -> dict[str, dict[str, Any]]:
    """How much faster each of ours is than each other side that it took turns with."""
    mine = [name for name in blocks if name in FORMS or name in (DRAFTED, RIDING)]
    return {
        name: {other: asdict(latency.ratio(blocks[name], blocks[other])) for other in blocks if other != name} for name in mine
    }
