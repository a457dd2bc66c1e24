"""`make bench-gpu`: kernels, tokens, memory and speed of the GPU engine beside its peers, in one short run.

    python -m benchmarks.gpu.__main__ [--out benchmarks/results] [--only PART ..] [--dry-run]

Weights of the 7B policy are random, made on the device from seeds: time and memory do not depend on what they are.
Every part is saved as it ends. A dry run does all of it at toy size on a CPU, with the reference kernels, and what it
writes is marked as such: it shows that the run holds together and measures nothing.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu import stages, systems, targets, tokens, weights
from benchmarks.gpu.forms import DRAFTS_ON, FORMS
from benchmarks.gpu.latency import latency_of
from benchmarks.gpu.run import DRY, FULL, Run, log
from edge_vla.bench.provenance import provenance
from edge_vla.device.sensors import device_state
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.runtime.gpu.device import Backend, CudaDevice, DeviceInfo, check

RESULTS: Final = Path("benchmarks/results")
DRY_OUT: Final = Path("bench-out")
BUDGET_S: Final = 460.0


def parts(run: Run) -> Mapping[str, tuple[Callable[[], Mapping[str, Any]], float]]:
    """What is measured, in order, and about how many seconds each needs at full size: the dearest knowledge first.

    The seconds are guesses. All of ours fit into one budget, what Triton builds included, and so do the last two.
    """
    eager, compiled, *others = systems.PEERS
    beside = [DRAFTS_ON, "bf16"]  # ours that take turns with the peers that are slow to make
    return {
        "ceilings": (partial(stages.ceilings, run), 5),
        "compiling": (partial(stages.compiling, run), 120),
        "kernels": (partial(stages.kernels, run), 30),
        **{f"memory: int{bits}": (partial(stages.memory, run, bits), 30) for bits in (4, 8)},
        "latency": (partial(latency_of, run, list(FORMS), [eager]), 120),
        **{f"stages: {form}": (partial(stages.stages, run, form), 5) for form in FORMS},
        "demo tokens": (partial(tokens.demo_tokens, run), 30),
        "agreement": (partial(tokens.agreement, run), 40),
        "latency beside bitsandbytes": (partial(latency_of, run, beside, others), 120),
        "latency beside torch.compile": (partial(latency_of, run, beside, [compiled]), 150),
    }


def bench(out: Path, dry: bool, budget_s: float = BUDGET_S, only: Sequence[str] = ()) -> Path:
    """Measure what can be measured and write the result, whose path is returned. BackendError without a GPU."""
    device = torch.device("cpu" if dry else "cuda")
    backend: Backend = "reference" if dry else "triton"
    check(backend, device)
    scale, about = DRY if dry else FULL, asdict(provenance())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edge-vla-gpu-") as scratch:
        run = Run(
            unused(out / name(about, dry)), scale, device, backend, weights.seeded(scale.model, device),
            Path(scratch), budget_s,
            {"version": 1, "kind": "gpu", "dry_run": dry, "environment": about, "card": _card(device)},
        )  # fmt: skip
        run.result |= {"model": f"random:{scale.model}", "backend": backend, "parts": {}}
        chosen = parts(run)
        unknown = [word for word in only if not any(part.startswith(word) for part in chosen)]
        if unknown:
            raise UsageError(f"--only {unknown[0]}: choose among {list(chosen)}")
        for part, (measure, least_s) in chosen.items():
            if not only or part.startswith(tuple(only)):
                run.part(part, measure, 0.0 if dry else least_s)
                run.result["table"] = targets.judge(run.result["parts"], dry)
                run.save()
    for line in targets.lines(run.result["table"]):
        log.info("%s", line)
    return run.path


def name(about: Mapping[str, Any], dry: bool) -> str:
    """`<date>-<device>-<commit>.json`, and what a dry run wrote never looks like it."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    commit = str(about["commit"] or "unknown")[:12]
    chip = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    return f"{'dry-run-' if dry else ''}{date}-{chip}-{commit}.json"


def unused(path: Path) -> Path:
    """`path`, or with -2, -3 .. behind its name: no run overwrites another's result."""
    names = (path, *(path.with_stem(f"{path.stem}-{count}") for count in range(2, 1000)))
    return next(one for one in names if not one.exists())


def _card(device: torch.device) -> dict[str, Any]:
    """What the card is, who else is on it, and the state it was found in."""
    if device.type != "cuda":
        return {"name": "none: a dry run"}
    chip = DeviceInfo.read(device)
    return {
        "name": chip.name,
        "capability": list(chip.capability),
        "total_bytes": chip.total,
        "free_bytes": chip.free,
        "others": [{"pid": pid, "bytes": held} for pid, held in CudaDevice(device).others()],
        "cuda": torch.version.cuda,
        "state": asdict(device_state()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.__main__", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results, or bench-out for a dry run")
    parser.add_argument("--dry-run", action="store_true", help="everything at toy size on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds; parts that would not fit are left out")
    parser.add_argument("--only", action="append", default=[], help="parts whose name begins so; may be repeated")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.dry_run and given.out is not None and given.out.resolve() == RESULTS.resolve():
        raise UsageError(f"--dry-run measures nothing: its result does not belong in {RESULTS}")
    out = given.out or (DRY_OUT if given.dry_run else RESULTS)
    log.info("written: %s", bench(out, given.dry_run, given.budget, given.only))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
