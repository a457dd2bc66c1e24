"""What `make bench-gpu` measures, in order of value, and the result that it adds to part by part."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu import decode_steps, stages, targets, tokens, trace, weights
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, W4A8, W4A16, W8A16
from benchmarks.gpu.latency import latency_of
from benchmarks.gpu.peers import COMPILED, EAGER, INT8, NF4
from benchmarks.gpu.result import GpuDevice, GpuProcess, GpuResult, Part, read, write
from benchmarks.gpu.run import DRY, FULL, PlannedPart, Run, Scale
from edge_vla.bench.provenance import Provenance, provenance
from edge_vla.device.sensors import device_state
from edge_vla.errors import UsageError
from edge_vla.runtime.gpu.device import Backend, CudaDevice, DeviceInfo, check

BUDGET_S: Final = 460.0
TRACED: Final = (W4A16, W4A8, BF16)
OURS, BITSANDBYTES, COMPILE = "ours and eager HF", "beside bitsandbytes", "beside torch.compile"


def plan(result: GpuResult) -> list[PlannedPart[Any]]:
    """What is measured, in order of value, with a guess of its seconds at full size.

    All of ours fit into one budget, Triton's compilation included, and so do the two last parts into another.
    """
    turns = [W4A8, BF16]  # ours that take turns with the peers that are slow to load
    return [
        PlannedPart("ceilings", 5, result.ceilings, stages.ceilings),
        PlannedPart("compilation", 60, result.compilation, stages.compilation),
        PlannedPart("kernels", 10, result.kernels, stages.kernels),
        PlannedPart("memory int4", 15, result.memory["4"], partial(stages.memory, configuration=W4A16)),
        PlannedPart("memory int8", 15, result.memory["8"], partial(stages.memory, configuration=W8A16)),
        PlannedPart(
            f"latency {OURS}",
            120,
            result.latency[OURS],
            partial(latency_of, configurations=CONFIGURATIONS, peers=[EAGER]),
        ),
        *(
            PlannedPart(f"stages {one.name}", 5, result.stages[one.name], partial(stages.stages, configuration=one))
            for one in CONFIGURATIONS
        ),
        PlannedPart(
            "decode steps",
            15,
            result.decode_steps,
            partial(decode_steps.both_ways, configurations=[W4A16, W8A16, BF16]),
        ),
        *(
            PlannedPart(f"trace {one.name}", 5, result.traces[one.name], partial(trace.trace, configuration=one))
            for one in TRACED
        ),
        PlannedPart("demo tokens", 30, result.demo_tokens, tokens.demo_tokens),
        PlannedPart("agreement", 40, result.agreement, tokens.agreement),
        PlannedPart(
            f"latency {BITSANDBYTES}",
            120,
            result.latency[BITSANDBYTES],
            partial(latency_of, configurations=turns, peers=[NF4, INT8]),
        ),
        PlannedPart(
            f"latency {COMPILE}",
            150,
            result.latency[COMPILE],
            partial(latency_of, configurations=turns, peers=[COMPILED]),
        ),
    ]


def bench(out: Path, dry: bool, budget_s: float = BUDGET_S, only: Sequence[str] = ()) -> Path:
    """Measure what can be measured and write the result; returns its path. BackendError without a GPU."""
    path = start(out, dry, only)
    with tempfile.TemporaryDirectory(prefix="edge-vla-gpu-") as scratch:
        measure(path, Path(scratch), budget_s, only)
    return path


def start(out: Path, dry: bool, only: Sequence[str] = (), commit: str | None = None) -> Path:
    """A result that has measured nothing, on disk under a name of its own. BackendError without a GPU."""
    device = torch.device("cpu" if dry else "cuda")
    backend: Backend = "reference" if dry else "triton"
    check(backend, device)
    result = empty_result(DRY if dry else FULL, device, backend)
    if commit is not None:
        result.provenance = replace(result.provenance, commit=commit)
    chosen(plan(result), only)
    out.mkdir(parents=True, exist_ok=True)
    path = unused(out / file_name(result.provenance, dry))
    write(result, path)
    return path


def measure(path: Path, scratch: Path, budget_s: float, only: Sequence[str] = ()) -> GpuResult:
    """Add to the result at `path` what it lacks of the chosen parts, until none is left or the device is lost."""
    result = read(path)
    dry = result.dry_run
    device, scale = torch.device("cpu" if dry else "cuda"), DRY if dry else FULL
    checkpoint = weights.seeded(scale.model, device)
    run = Run(path, scale, device, result.backend, checkpoint, scratch, math.inf if dry else budget_s, result)
    for planned in open_parts(result, only):
        run.fill(planned)
        result.targets = targets.evaluate(result)
        run.save()
        if result.device_lost is not None:
            break
    return result


def open_parts(result: GpuResult, only: Sequence[str]) -> list[PlannedPart[Any]]:
    """The chosen parts that have neither been measured nor failed."""
    return [one for one in chosen(plan(result), only) if one.part.measured is None and one.part.failed is None]


def chosen(parts: Sequence[PlannedPart[Any]], only: Sequence[str]) -> list[PlannedPart[Any]]:
    """Parts whose names begin with one of `only`, or all. UsageError for a word that begins none."""
    names = [planned.name for planned in parts]
    unknown = [word for word in only if not any(name.startswith(word) for name in names)]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: choose among {names}")
    return [planned for planned in parts if not only or planned.name.startswith(tuple(only))]


def empty_result(scale: Scale, device: torch.device, backend: Backend) -> GpuResult:
    return GpuResult(
        dry_run=device.type != "cuda",
        model=f"random:{scale.model}",
        backend=backend,
        provenance=provenance(device_state() if device.type == "cuda" else None),
        device=_device(device) if device.type == "cuda" else None,
        memory={"4": Part(), "8": Part()},
        latency={OURS: Part(), BITSANDBYTES: Part(), COMPILE: Part()},
        stages={one.name: Part() for one in CONFIGURATIONS},
        traces={one.name: Part() for one in TRACED},
    )


def file_name(about: Provenance, dry: bool) -> str:
    """`<date>-<device>-<commit>.json`; a dry run's begins with `dry-run-`."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    commit = (about.commit or "unknown")[:12]
    device = re.sub(r"[^a-z0-9]+", "-", about.device.lower()).strip("-")
    return f"{'dry-run-' if dry else ''}{date}-{device}-{commit}.json"


def unused(path: Path) -> Path:
    """`path`, or with -2, -3 .. behind its stem: no run overwrites another's result."""
    names = (path, *(path.with_stem(f"{path.stem}-{count}") for count in range(2, 1000)))
    return next(one for one in names if not one.exists())


def _device(device: torch.device) -> GpuDevice:
    info = DeviceInfo.read(device)
    others = [GpuProcess(pid, held) for pid, held in CudaDevice(device).others()]
    return GpuDevice(info.name, info.capability, info.total, info.free, others, torch.version.cuda)
