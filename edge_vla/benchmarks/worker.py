"""One policy measured in a process of its own, so that its memory is its own: `python -m …worker JOB.json`.

Reads a job, writes `answers.npz` and `measured.json` beside it. Knows nothing of the other side.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_vla.benchmarks.environment import peak_memory_bytes, resident_bytes
from edge_vla.checkpoint import Arithmetic
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.files import write_whole
from edge_vla.frames import Frame, read_frames
from edge_vla.runtime import Policy, load, shaken

WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run. `forced` names a file with the reference's tokens; without it the policy forces its own."""

    path: str
    frames: str
    out: str
    limit: int | None = None
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    dtype: str = "bf16"
    device: str = "auto"
    vision: str = "torch"
    kernel: str = "auto"
    unnorm_key: str | None = None
    forced: str | None = None
    shake: bool = False

    @staticmethod
    def read(path: Path) -> Job:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Job(**{**raw, "adapters": tuple(raw["adapters"])})


def run(job: Job) -> None:
    frames = read_frames(Path(job.frames))[: job.limit]
    started = time.perf_counter()
    policy = load(
        job.path,
        job.device,
        job.vision,
        dtype=job.dtype,
        kernel=job.kernel,
        adapters=[Path(adapter) for adapter in job.adapters],
        merge_arithmetic=job.merge_arithmetic,
    )
    load_s, load_peak = time.perf_counter() - started, peak_memory_bytes()
    out = Path(job.out)
    with shaken(policy.network, seed=0) if job.shake else nullcontext():
        for frame in frames[:WARM_UP]:
            policy.act(frame.open(), frame.instruction, job.unnorm_key or frame.unnorm_key)
        actions = [policy.act(frame.open(), frame.instruction, job.unnorm_key or frame.unnorm_key) for frame in frames]
        if len({len(action.tokens) for action in actions}) > 1:
            raise UsageError(
                "the frames' data sets have actions of different lengths: bench one at a time, --unnorm-key"
            )
        free = np.array([action.tokens for action in actions], dtype=np.int64)
        forced = np.load(job.forced)["free"] if job.forced else free
        _save_answers(out / "answers.npz", policy, frames, free, forced)
    timings = [dict(action.timing_ms) for action in actions]
    measured = {
        "load_s": round(load_s, 3),
        "load_peak_bytes": load_peak,
        "peak_bytes": peak_memory_bytes(),
        "steady_bytes": resident_bytes(),
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "weight_bytes": dict(policy.network.weight_bytes),
        "kernels": dict(policy.network.kernels),
        "timings_ms": timings,
    }
    write_whole(out / "measured.json", json.dumps(measured))


def _save_answers(
    path: Path, policy: Policy, frames: list[Frame], free: NDArray[np.int64], forced: NDArray[np.int64]
) -> None:
    """Free tokens; forced tokens with their leads; hidden states along the policy's own tokens, from one pass."""
    first = policy.config.spec.action.first
    rows: dict[str, list[NDArray[Any]]] = {"forced": [], "forced_margins": [], "free_hidden": []}
    for frame, own, given in zip(frames, free, forced, strict=True):
        image = frame.open()
        hidden = policy.forced(image, frame.instruction, given.tolist())
        logits = policy.network.head.logits(hidden)
        top = logits.topk(2, dim=-1).values
        rows["forced"].append((logits.argmax(-1) + first).cpu().numpy())
        rows["forced_margins"].append((top[:, 0] - top[:, 1]).double().cpu().numpy())
        if not np.array_equal(own, given):
            hidden = policy.forced(image, frame.instruction, own.tolist())
        rows["free_hidden"].append(hidden.float().cpu().numpy())
    np.savez(
        path,
        free=free,
        forced=np.stack(rows["forced"]),
        forced_margins=np.stack(rows["forced_margins"]),
        free_hidden=np.stack(rows["free_hidden"]),
    )


if __name__ == "__main__":
    try:
        run(Job.read(Path(sys.argv[1])))
    except EdgeVLAError as problem:
        # The parent raises the same kind again, by its name.
        sys.exit(f"{type(problem).__name__}: {problem}")
