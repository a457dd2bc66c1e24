"""One candidate against its reference: each measured in its own process, then compared.

Three runs: the reference, the reference with its rounding shaken (the noise floor), the candidate. The reference's
full head is then applied to both sides' hidden states, to see what unconstrained decoding would have done.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_vla import errors
from edge_vla.artifact import Artifact
from edge_vla.benchmarks.agreement import Side, compare, margin_floor
from edge_vla.benchmarks.environment import environment
from edge_vla.benchmarks.report import markdown
from edge_vla.benchmarks.worker import Job
from edge_vla.checkpoint import Arithmetic, open_checkpoint
from edge_vla.checkpoint.keys import HEAD
from edge_vla.errors import BackendError, ResourceError, UsageError
from edge_vla.files import write_whole
from edge_vla.frames import Frame, episodes, read_frames, synthetic_image, write_frames
from edge_vla.openvla import ActionTokens, PolicyConfig

log = logging.getLogger(__name__)

VERSION = 1
P90_QUERIES = 64  # MLPerf: fewer cannot carry a 90th percentile
SYNTHETIC = 64
INSTRUCTIONS = ("pick up the object", "open the drawer", "put the spoon on the towel", "close the drawer")


@dataclass(frozen=True)
class Question:
    """What to compare on what. Without `frames`, synthetic images are used, and the result says so."""

    artifact: Path
    reference: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    frames: Path | None = None
    limit: int | None = None
    unnorm_key: str | None = None
    vision: str = "torch"
    kernel: str = "auto"


def bench(question: Question, out: Path, tell: Callable[[str], None] = log.info) -> dict[str, Any]:
    """Measure, compare, and write `result.json` and `report.md` to `out`. Returns the result."""
    artifact = Artifact(question.artifact)
    config = artifact.manifest.config
    checkpoint = open_checkpoint(
        question.reference, [Path(adapter) for adapter in question.adapters], question.merge_arithmetic
    )
    if checkpoint.config.spec != config.spec:
        raise UsageError(f"{question.artifact} and {question.reference} are different networks: compare like with like")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {out}: {error.strerror}") from error
    key = config.statistics.resolve(question.unnorm_key) if question.unnorm_key or len(config.statistics) == 1 else None
    with tempfile.TemporaryDirectory(prefix="edge-vla-bench-") as scratch:
        frames_dir = question.frames or _synthetic_frames(Path(scratch) / "frames", config, question.limit, key)
        frames = read_frames(frames_dir)[: question.limit]
        common = {"frames": str(frames_dir), "limit": question.limit, "unnorm_key": key}
        reference_job = Job(
            path=question.reference,
            out="",
            adapters=question.adapters,
            merge_arithmetic=question.merge_arithmetic,
            **common,  # type: ignore[arg-type]
        )
        reference = _run("reference", reference_job, Path(scratch), tell)
        forced = str(reference.answers)
        shaken = _run("floor", dataclasses.replace(reference_job, forced=forced, shake=True), Path(scratch), tell)
        job = Job(
            path=str(question.artifact),
            out="",
            forced=forced,
            vision=question.vision,
            kernel=question.kernel,
            **common,  # type: ignore[arg-type]
        )
        candidate = _run("candidate", job, Path(scratch), tell)
        head = checkpoint.tensors.load(HEAD)
        sides = {name: _side(run, head) for name, run in [("r", reference), ("s", shaken), ("c", candidate)]}
    tokens, names = ActionTokens(config.spec.action), episodes(frames)
    floor = margin_floor(sides["r"], sides["s"])
    result = {
        "version": VERSION,
        "kind": "bench",
        "environment": environment(),
        "artifact": {
            "name": question.artifact.name,
            "identity": artifact.identity,
            "recipe": dict(artifact.manifest.recipe),
            "disk_bytes": sum(entry["size"] for entry in artifact.manifest.files.values()),
        },
        "reference": {"name": Path(question.reference).name, "adapters": [Path(a).name for a in question.adapters]},
        "frames": {"source": "given" if question.frames else "synthetic", "count": len(frames)},
        "agreement": compare(sides["r"], sides["c"], names, tokens, floor, _recorded(frames, config, key)),
        "noise_floor": compare(sides["r"], sides["s"], names, tokens, floor),
        "measured": {"reference": reference.summary(), "candidate": candidate.summary()},
    }
    write_whole(out / "result.json", json.dumps(result, indent=1) + "\n")
    write_whole(out / "report.md", markdown(result))
    return result


@dataclass(frozen=True)
class Run:
    answers: Path
    measured: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Latency percentiles that the sample can carry, and memory."""
        timings = self.measured["timings_ms"]
        totals = np.array([timing["total"] for timing in timings])
        stages = {stage: float(np.median([timing[stage] for timing in timings])) for stage in timings[0]}
        p50 = float(np.median(totals))
        return {
            **{key: value for key, value in self.measured.items() if key != "timings_ms"},
            "queries": len(totals),
            "p50_ms": p50,
            "p90_ms": float(np.percentile(totals, 90)) if len(totals) >= P90_QUERIES else None,
            "hz": 1e3 / p50,
            "stages_p50_ms": stages,
        }


def _run(name: str, job: Job, scratch: Path, tell: Callable[[str], None]) -> Run:
    tell(name)
    out = scratch / name
    out.mkdir()
    path = out / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(job, out=str(out)))), encoding="utf-8")
    worker = [sys.executable, "-m", "edge_vla.benchmarks.worker", str(path)]
    done = subprocess.run(worker, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        kind, _, message = reason.partition(": ")
        error = getattr(errors, kind, None) if kind in errors.__all__ else None
        raise (error or BackendError)(f"the {name} run stopped: {message if error else reason}")
    return Run(out / "answers.npz", json.loads((out / "measured.json").read_text(encoding="utf-8")))


def _side(run: Run, head: torch.Tensor) -> Side:
    with np.load(run.answers) as answers:
        hidden = torch.from_numpy(answers["free_hidden"]).to(head.dtype)
        would_be = torch.stack([(row @ head.T).float().argmax(-1) for row in hidden])
        return Side(answers["free"], answers["forced"], answers["forced_margins"], would_be.numpy())


def _recorded(frames: Sequence[Frame], config: PolicyConfig, key: str | None) -> NDArray[np.int64] | None:
    """The recorded actions as tokens, if every frame has one in its statistics' dimensions."""
    tokens, rows = ActionTokens(config.spec.action), []
    for frame in frames:
        name = frame.unnorm_key if frame.unnorm_key in config.statistics else key
        if frame.action is None or name is None or len(frame.action) != config.statistics[name].dims:
            return None
        rows.append(tokens.encode(config.statistics[name].normalise(np.array(frame.action))))
    return np.stack(rows)


def _synthetic_frames(directory: Path, config: PolicyConfig, limit: int | None, key: str | None) -> Path:
    size = config.spec.image_size
    key = key or next(iter(config.statistics))
    write_frames(
        directory,
        (
            (Frame(Path(f"{i:03d}.png"), INSTRUCTIONS[i % len(INSTRUCTIONS)], key), synthetic_image(i, size))
            for i in range(limit or SYNTHETIC)
        ),
    )
    return directory
