"""`make bench-gpu`: kernels, tokens, memory and speed of the GPU engine against its peers, in one short run.

    python -m benchmarks.gpu [--out benchmarks/results] [--only PART ..] [--dry-run]

The 7B policy's weights are random, made on the device from seeds: time and memory do not depend on their values.
Every part is saved as it ends. A dry run goes through all of it at toy size on a CPU with the reference kernels, and
its result says so: it shows that the run holds together and measures nothing.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu import stages, targets, tokens, trace, weights
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, W4A8, W4A16, W8A16
from benchmarks.gpu.latency import latency_of
from benchmarks.gpu.peers import COMPILED, EAGER, INT8, NF4
from benchmarks.gpu.result import GpuDevice, GpuProcess, GpuResult, Part
from benchmarks.gpu.run import DRY, FULL, PlannedPart, Run, Scale, log
from edge_vla.bench.provenance import Provenance, provenance
from edge_vla.device.sensors import device_state
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.runtime.gpu.device import Backend, CudaDevice, DeviceInfo, check

RESULTS: Final = Path("benchmarks/results")
DRY_OUT: Final = Path("bench-out")
BUDGET_S: Final = 460.0
TRACED: Final = (W4A16, W4A8, BF16)
OURS, BITSANDBYTES, COMPILE = "ours and eager HF", "beside bitsandbytes", "beside torch.compile"


def plan(run: Run) -> list[PlannedPart[Any]]:
    """What is measured, in order of value, with a guess of its seconds at full size.

    All of ours fit into one budget, Triton's compilation included, and so do the two last parts into another.
    """
    result = run.result
    turns = [W4A8, BF16]  # ours that take turns with the peers that are slow to load
    return [
        PlannedPart("ceilings", 5, result.ceilings, partial(stages.ceilings, run)),
        PlannedPart("compilation", 120, result.compilation, partial(stages.compilation, run)),
        PlannedPart("kernels", 30, result.kernels, partial(stages.kernels, run)),
        PlannedPart("memory int4", 30, result.memory["4"], partial(stages.memory, run, W4A16)),
        PlannedPart("memory int8", 30, result.memory["8"], partial(stages.memory, run, W8A16)),
        PlannedPart("latency", 120, result.latency[OURS], partial(latency_of, run, CONFIGURATIONS, [EAGER])),
        *(
            PlannedPart(f"stages {one.name}", 5, result.stages[one.name], partial(stages.stages, run, one))
            for one in CONFIGURATIONS
        ),
        *(
            PlannedPart(f"trace {one.name}", 15, result.traces[one.name], partial(trace.trace, run, one))
            for one in TRACED
        ),
        PlannedPart("demo tokens", 30, result.demo_tokens, partial(tokens.demo_tokens, run)),
        PlannedPart("agreement", 40, result.agreement, partial(tokens.agreement, run)),
        PlannedPart(
            f"latency {BITSANDBYTES}", 120, result.latency[BITSANDBYTES], partial(latency_of, run, turns, [NF4, INT8])
        ),
        PlannedPart(f"latency {COMPILE}", 150, result.latency[COMPILE], partial(latency_of, run, turns, [COMPILED])),
    ]


def bench(
    out: Path, dry: bool, budget_s: float = BUDGET_S, only: Sequence[str] = (), commit: str | None = None
) -> Path:
    """Measure what can be measured and write the result; returns its path. BackendError without a GPU."""
    device = torch.device("cpu" if dry else "cuda")
    backend: Backend = "reference" if dry else "triton"
    check(backend, device)
    scale = DRY if dry else FULL
    result = empty_result(scale, device, backend)
    if commit is not None:
        result.provenance = replace(result.provenance, commit=commit)
    out.mkdir(parents=True, exist_ok=True)
    path = unused(out / file_name(result.provenance, dry))
    with tempfile.TemporaryDirectory(prefix="edge-vla-gpu-") as scratch:
        checkpoint = weights.seeded(scale.model, device)
        run = Run(path, scale, device, backend, checkpoint, Path(scratch), math.inf if dry else budget_s, result)
        for planned in chosen(plan(run), only):
            run.fill(planned)
            result.targets = targets.evaluate(result)
            run.save()
    for line in targets.lines(result.targets):
        log.info("%s", line)
    return path


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results, or bench-out for a dry run)")
    parser.add_argument("--dry-run", action="store_true", help="everything at toy size on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds; parts that would not fit are skipped")
    parser.add_argument("--only", action="append", default=[], help="parts whose name begins like this; repeatable")
    parser.add_argument("--commit", help="of this source tree, where it has no .git that would tell")
    parser.add_argument("--verbose", action="store_true", help="with the traceback of whatever fails")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    if options.dry_run and options.out is not None and options.out.resolve() == RESULTS.resolve():
        raise UsageError(f"--dry-run measures nothing, and {RESULTS} is for measurements: choose another --out")
    out = options.out or (DRY_OUT if options.dry_run else RESULTS)
    log.info("written: %s", bench(out, options.dry_run, options.budget, options.only, options.commit))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
