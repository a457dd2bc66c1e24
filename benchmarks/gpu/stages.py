"""Single passes on the device against what it could do at best: ceilings, kernels, stages of an action, memory.

Knows bytes and operations; knows nothing of peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch

from benchmarks.gpu.clock import device_ms
from benchmarks.gpu.configurations import Configuration, artifact_of, load
from benchmarks.gpu.kernel_checks.cases import Case, of_policy
from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs, evaluate
from benchmarks.gpu.result import Compilation, KernelRow, KernelTable, Memory, StageRow, StageTable
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import Task
from edge_vla.device import limits
from edge_vla.errors import ResourceError
from edge_vla.quant import GROUPS
from edge_vla.runtime.gpu.engine import GpuEngine, Piece, Shape
from edge_vla.runtime.padding import padded
from edge_vla.typed_json import from_json

PIECES: Final[tuple[Piece, ...]] = ("vision", "prefill", "verify", "action")
MEMORY_TIMEOUT_S: Final = 180.0


def ceilings(run: Run) -> limits.Ceilings:
    """Copy bandwidth and GEMM rates of this device, measured here."""
    return limits.measure(run.checkpoint.config.spec, run.device, run.scale.prompt, run.scale.buffer_bytes)


def compilation(run: Run) -> Compilation:
    """Every kernel launched once. Triton caches on disk what it compiles, so no later part pays for that."""
    failed, cases = dict[str, str](), cases_of(run)
    for case in cases:
        try:
            _check(run, case).kernel()
        except Exception as error:  # noqa: BLE001 - the kernels' own part reports it too
            failed[case.name] = reason(error)
    return Compilation(len(cases) - len(failed), failed)


def kernels(run: Run) -> KernelTable:
    """Every kernel against plain PyTorch and float64, and its rate. One that fails does not stop the rest."""
    return KernelTable(run.backend, [_kernel(run, case) for case in cases_of(run)])


def cases_of(run: Run) -> list[Case]:
    spec = run.checkpoint.config.spec
    group = next(size for size in GROUPS if spec.decoder.width % size == 0)
    return of_policy(spec, padded(spec.patches + run.scale.prompt), group)


def _check(run: Run, case: Case) -> KernelCheck:
    check = case.make(RandomInputs.seeded(0, run.device, torch.bfloat16))
    return replace(check, kernel=check.plain, launch=None) if run.backend == "reference" else check


def _kernel(run: Run, case: Case) -> KernelRow:
    try:
        check = _check(run, case)
        verdict = evaluate(check)
        time_ms = device_ms(check.launch or check.kernel, run.device, run.scale.repeats)
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is its row
        return KernelRow(case.name, case.kernel, passed=False, failed=reason(error))
    return KernelRow(
        case.name,
        case.kernel,
        passed=verdict.passed,
        error=verdict.error,
        allowed=verdict.allowed,
        bits_equal_torch=verdict.equal,
        time_ms=time_ms,
        gb_s=check.moved_bytes / time_ms / 1e6,
        tflop_s=check.operations / time_ms / 1e9,
    )


def memory(run: Run, configuration: Configuration) -> Memory:
    """Peaks while loading and acting with one artifact at full size, in its own process. The artifact is kept."""
    artifact = artifact_of(run, configuration)
    command = [sys.executable, "-m", "benchmarks.gpu.memory", str(artifact.directory), run.device.type,
               run.backend, str(run.scale.prompt), str(run.scale.dims)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MEMORY_TIMEOUT_S)
    if done.returncode:
        raise ResourceError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}, no message"])[-1])
    return from_json(Memory, json.loads(done.stdout.splitlines()[-1]))


def stages(run: Run, configuration: Configuration) -> StageTable:
    """Towers, prefill and one step of one configuration, each replayed alone, against the device's ceilings."""
    engine = load(run, configuration)
    piece_ms = _piece_ms(run, engine, PIECES)
    found = run.result.ceilings.measured
    rows = None if found is None else _against(found, run, configuration, engine, piece_ms)
    return StageTable(dict(engine.network.kernels), piece_ms, rows)


def _piece_ms(run: Run, engine: GpuEngine, pieces: Sequence[Piece]) -> dict[str, float]:
    scale = run.scale
    task, shape = Task.make(run.checkpoint, 1, scale.prompt, scale.dims, run.device), Shape(scale.prompt, scale.dims)
    engine.decide(task.prompt, task.pixels[0], scale.dims)
    return {piece: device_ms(partial(engine.run, piece, shape), run.device, scale.repeats) for piece in pieces}


def _against(
    ceilings: limits.Ceilings, run: Run, configuration: Configuration, engine: GpuEngine, piece_ms: dict[str, float]
) -> list[StageRow]:
    int8 = configuration.activations == "8" and "int8" in ceilings.gemm_flops
    passes = limits.costs(
        engine.spec,
        engine.network.weight_bytes["decoder"],
        run.scale.prompt,
        run.scale.dims,
        vision_bits=configuration.vision_bits,
        arithmetic="int8" if int8 else "bf16",
    )
    return [
        _row("vision", passes, piece_ms["vision"], ceilings),
        _row("prefill", passes, piece_ms["prefill"] - piece_ms["vision"], ceilings),
        _row("one step", passes, piece_ms["verify"], ceilings),
    ]


def _row(stage: str, passes: Sequence[limits.Cost], time_ms: float, ceilings: limits.Ceilings) -> StageRow:
    """Rates reached, and the share of the ceiling that binds."""
    own = [replace(cost, times=1) for cost in passes if stage in (cost.stage, cost.name)]
    pairs = [ceilings.limit_ms(cost) for cost in own]
    limit_ms = sum(map(max, pairs))
    return StageRow(
        stage=stage,
        time_ms=time_ms,
        gb_s=sum(cost.bytes for cost in own) / time_ms / 1e6,
        tflop_s=sum(cost.operations for cost in own) / time_ms / 1e9,
        limit_ms=limit_ms,
        share=limit_ms / time_ms,
        bound_by="bytes" if sum(pair[0] for pair in pairs) > sum(pair[1] for pair in pairs) else "arithmetic",
    )
