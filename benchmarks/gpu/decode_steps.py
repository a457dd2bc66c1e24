"""A decode step as one launch beside a chain of kernels, on one engine of each configuration, in turns A B B A.

Knows the engine's two ways; knows nothing of peers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.gpu.clock import device_ms
from benchmarks.gpu.configurations import Configuration, load
from benchmarks.gpu.result import StepsRow, StepsTable
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import Task
from edge_vla.runtime.gpu.engine import GpuEngine, Shape
from edge_vla.runtime.gpu.kernels.decode_pass import PassNetwork


def both_ways(run: Run, configurations: Sequence[Configuration]) -> StepsTable:
    """What loading settled on decides nothing here, so that a way it refused is measured, or says why not."""
    return StepsTable([_row(run, configuration) for configuration in configurations])


def _row(run: Run, configuration: Configuration) -> StepsRow:
    try:
        return _measured(run, configuration)
    except Exception as error:  # noqa: BLE001 - whatever a way raises is its row
        return StepsRow(configuration.name, failed=reason(error))


def _measured(run: Run, configuration: Configuration) -> StepsRow:
    engine = load(run, configuration)
    whole = engine.decoder.whole or engine.decoder.network()
    task = Task.make(run.checkpoint, run.scale.pictures, run.scale.prompt, run.scale.dims, run.device)
    turns = [_turn(run, engine, task, way) for way in (whole, None, None, whole)]
    (step, action, tokens), (chain_step, chain_action, chain_tokens) = (
        (
            statistics.fmean(turns[at][0] for at in both),
            statistics.fmean(turns[at][1] for at in both),
            turns[both[0]][2],
        )
        for both in ((0, 3), (1, 2))
    )
    return StepsRow(
        configuration.name,
        chosen=engine.network.kernels["decode steps"],
        one_launch_ms=step,
        chain_ms=chain_step,
        action_one_launch_ms=action,
        action_chain_ms=chain_action,
        pictures=len(tokens),
        equal=sum(one == other for one, other in zip(tokens, chain_tokens, strict=True)),
    )


def _turn(
    run: Run, engine: GpuEngine, task: Task, whole: PassNetwork | None
) -> tuple[float, float, list[tuple[int, ...]]]:
    """Milliseconds of a step and of an action, and the tokens of every picture; with None, a chain of kernels."""
    engine.decoder.whole = whole
    engine.graphs.clear()  # they hold the other way
    tokens = [engine.decide(task.prompt, pixels, task.dims).tokens for pixels in task.pixels]
    shape = Shape(len(task.prompt), task.dims)
    step, action = (
        device_ms(partial(engine.run, piece, shape), run.device, run.scale.repeats) for piece in ("verify", "action")
    )
    return step, action, tokens
