"""Single passes on the device beside what it could do at best: ceilings, kernels, the stages of an action, memory.

Milliseconds and bytes throughout. Knows bytes and operations; knows nothing of peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import torch

from benchmarks.gpu.clock import device_ms
from benchmarks.gpu.forms import FORMS, artifact_of, load
from benchmarks.gpu.kernel_checks.cases import Case, of_policy
from benchmarks.gpu.kernel_checks.check import KernelCheck, Maker, judge
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import Task
from edge_vla.device import limits
from edge_vla.errors import ResourceError
from edge_vla.quant import GROUPS
from edge_vla.runtime.gpu.engine import Piece, Shape
from edge_vla.runtime.padding import padded

PIECES: Final[tuple[Piece, ...]] = ("vision", "prefill", "verify", "action")
MEMORY_S: Final = 180.0  # after which a process that measures memory is given up


def ceilings(run: Run) -> dict[str, Any]:
    """Copy bandwidth and product rates of this device, measured here."""
    rows = run.scale.text
    return asdict(limits.measure(run.checkpoint.config.spec, run.device, rows, run.scale.buffer))


def compiling(run: Run) -> dict[str, Any]:
    """Every kernel launched once. Triton keeps on disk what it builds, so this part's seconds are no other part's."""
    broken = dict[str, str]()
    cases = _cases(run)
    for case in cases:
        try:
            _check(run, case).kernel()
        except Exception as error:  # noqa: BLE001 - the part that judges it says the same
            broken[case.name] = reason(error)
    return {"launched": len(cases) - len(broken), "broken": broken}


def kernels(run: Run) -> dict[str, Any]:
    """Every kernel beside plain PyTorch and beside float64, and its rate. One that fails does not stop the rest."""
    rows = [dict(_kernel(run, case)) for case in _cases(run)]
    return {"backend": run.backend, "kernels": rows, "passed": sum(row["passed"] for row in rows), "of": len(rows)}


def _cases(run: Run) -> list[Case]:
    spec = run.checkpoint.config.spec
    group = next(size for size in GROUPS if spec.decoder.width % size == 0)
    return of_policy(spec, padded(spec.patches + run.scale.text), group)


def _check(run: Run, case: Case) -> KernelCheck:
    check = case.make(Maker.seeded(0, run.device, torch.bfloat16))
    return replace(check, kernel=check.plain, launch=None) if run.backend == "reference" else check


def _kernel(run: Run, case: Case) -> Mapping[str, Any]:
    try:
        check = _check(run, case)
        verdict = judge(check)
        milliseconds = device_ms(check.launch or check.kernel, run.device, run.scale.repeats)
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is its row
        return {"name": case.name, "passed": False, "failed": reason(error)}
    return {
        "name": case.name,
        "passed": verdict.passed,
        "error": verdict.error,
        "allowed": verdict.allowed,
        "equal": verdict.equal,
        "ms": milliseconds,
        "gb_per_s": check.moved / milliseconds / 1e6,
        "tflop_per_s": check.operations / milliseconds / 1e9,
    }


def memory(run: Run, bits: int) -> dict[str, Any]:
    """Load and steady peaks of one artifact at full size, in a process of its own. The artifact stays for later."""
    artifact = artifact_of(run, bits)
    command = [sys.executable, "-m", "benchmarks.gpu.memory", str(artifact.directory), run.device.type,
               run.backend, str(run.scale.text), str(run.scale.dims)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MEMORY_S)
    if done.returncode:
        raise ResourceError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def stages(run: Run, name: str) -> dict[str, Any]:
    """Towers, prefill and one step of one of our forms, each replayed alone, beside what the device could do."""
    _, vision_bits, activations = FORMS[name]
    spec, scale = run.checkpoint.config.spec, run.scale
    engine = load(run, name)
    task = Task.make(run.checkpoint, 1, scale.text, scale.dims, run.device)
    engine.decide(task.prompt, task.pixels[0], scale.dims)
    shape, pieces = Shape(scale.text, scale.dims), dict[str, float]()
    for piece in PIECES:
        pieces[piece] = device_ms(partial(engine.run, piece, shape), run.device, scale.repeats)
    found = run.found("ceilings")
    rows = dict[str, Any]()
    if found is not None:
        limit = limits.Ceilings(found["read_bytes_per_s"], found["gemm_flops"], found["how"])
        arithmetic = {"16": "bf16", "8": "int8"}[activations]
        arithmetic = arithmetic if arithmetic in limit.gemm_flops else "bf16"
        passes = limits.costs(
            spec,
            engine.network.weight_bytes["decoder"],
            scale.text,
            scale.dims,
            vision_bits=vision_bits,
            arithmetic=arithmetic,
        )
        measured = {
            "vision": pieces["vision"], "prefill": pieces["prefill"] - pieces["vision"], "one step": pieces["verify"],
        }  # fmt: skip
        rows = {stage: _share(stage, passes, ms, limit) for stage, ms in measured.items()}
    return {"form": name, "kernels": dict(engine.network.kernels), "ms": pieces, "stages": rows}


def _share(stage: str, passes: Sequence[limits.Cost], ms: float, ceilings: limits.Ceilings) -> dict[str, Any]:
    """Rates reached, and the share of the ceiling that binds."""
    chosen = [replace(cost, times=1) for cost in passes if stage in (cost.stage, cost.name)]
    size, operations = sum(cost.bytes for cost in chosen), sum(cost.operations for cost in chosen)
    pairs = [ceilings.limit_ms(cost) for cost in chosen]
    limit = sum(map(max, pairs))
    return {
        "ms": ms,
        "gb_per_s": size / ms / 1e6,
        "tflop_per_s": operations / ms / 1e9,
        "limit_ms": limit,
        "share": limit / ms,
        "bound_by": "bytes" if sum(pair[0] for pair in pairs) > sum(pair[1] for pair in pairs) else "arithmetic",
    }
