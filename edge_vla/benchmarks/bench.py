"""Candidates against their reference: each measured in its own process, then compared.

First the reference, and the reference with its rounding shaken (the noise floor); then each candidate. The
reference's full head is applied to every side's hidden states, to see what unconstrained decoding would have done.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
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
from edge_vla.checkpoint import Arithmetic, Checkpoint, open_checkpoint
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
class Reference:
    """The policy to be equal to, and the frames to be asked. Without `frames`, synthetic images are used."""

    source: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    frames: Path | None = None
    limit: int | None = None
    unnorm_key: str | None = None
    device: str = "auto"

    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.source, [Path(adapter) for adapter in self.adapters], self.merge_arithmetic)


def bench(
    artifact: Path,
    reference: Reference,
    out: Path,
    vision: str = "torch",
    kernel: str = "auto",
    tell: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Measure both, compare, and write `result.json` and `report.md` to `out`. Returns the result."""
    check_alike(Artifact(artifact), reference)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {out}: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="edge-vla-bench-") as scratch:
        baseline = measure_baseline(reference, Path(scratch), tell)
        result = baseline.judge(artifact, vision, kernel, tell)
    write_whole(out / "result.json", json.dumps(result, indent=1) + "\n")
    write_whole(out / "report.md", markdown(result))
    return result


def check_alike(artifact: Artifact, reference: Reference) -> None:
    """Raise UsageError if artifact and reference are not the same network."""
    if reference.checkpoint().config.spec != artifact.manifest.config.spec:
        raise UsageError(f"{artifact.directory} and {reference.source} are different networks: compare like with like")


@dataclass(frozen=True)
class Baseline:
    """The reference measured on its frames, with its noise floor; any number of candidates can be judged by it."""

    reference: Reference
    config: PolicyConfig
    frames: Sequence[Frame]
    job: Job
    run: Run
    plain: Side
    shaken: Side
    head: torch.Tensor
    scratch: Path

    def judge(self, path: Path, vision: str, kernel: str, tell: Callable[[str], None] = log.info) -> dict[str, Any]:
        """The result of one artifact against this reference."""
        artifact = Artifact(path)
        job = dataclasses.replace(
            self.job,
            path=str(path),
            adapters=(),
            forced=str(self.run.answers),
            vision=vision,
            kernel=kernel,
        )
        candidate = _run(f"candidate {path.name}", job, self.scratch, tell)
        side = _side(candidate, self.head)
        tokens, names = ActionTokens(self.config.spec.action), episodes(self.frames)
        floor = margin_floor(self.plain, self.shaken)
        recorded = _recorded(self.frames, self.config, self.job.unnorm_key)
        return {
            "version": VERSION,
            "kind": "bench",
            "environment": environment(),
            "artifact": {
                "name": path.name,
                "identity": artifact.identity,
                "recipe": dict(artifact.manifest.recipe),
                "disk_bytes": sum(entry["size"] for entry in artifact.manifest.files.values()),
            },
            "reference": {
                "name": Path(self.reference.source).name,
                "adapters": [Path(adapter).name for adapter in self.reference.adapters],
            },
            "frames": {"source": "given" if self.reference.frames else "synthetic", "count": len(self.frames)},
            "agreement": compare(self.plain, side, names, tokens, floor, recorded),
            "noise_floor": compare(self.plain, self.shaken, names, tokens, floor),
            "measured": {"reference": self.run.summary(), "candidate": candidate.summary()},
        }


def measure_baseline(reference: Reference, scratch: Path, tell: Callable[[str], None] = log.info) -> Baseline:
    """Run the reference, and the reference with its rounding shaken, on its frames."""
    checkpoint = reference.checkpoint()
    config, key = checkpoint.config, reference.unnorm_key
    if key is not None:
        config.statistics.resolve(key)
    directory = reference.frames or _synthetic_frames(scratch / "frames", config, reference.limit, key)
    frames = read_frames(directory)[: reference.limit]
    job = Job(
        path=reference.source,
        frames=str(directory),
        out="",
        limit=reference.limit,
        adapters=reference.adapters,
        merge_arithmetic=reference.merge_arithmetic,
        unnorm_key=key,
        device=reference.device,
    )
    run = _run("reference", job, scratch, tell)
    shaken = _run("noise floor", dataclasses.replace(job, forced=str(run.answers), shake=True), scratch, tell)
    head = checkpoint.tensors.load(HEAD)
    return Baseline(reference, config, frames, job, run, _side(run, head), _side(shaken, head), head, scratch)


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
    out = Path(tempfile.mkdtemp(prefix=name.replace(" ", "-"), dir=scratch))
    path = out / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(job, out=str(out)))), encoding="utf-8")
    worker = [sys.executable, "-m", "edge_vla.benchmarks.worker", str(path)]
    done = subprocess.run(worker, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode == -signal.SIGKILL:
        raise ResourceError(
            f"the {name} run was killed: out of memory? Use fewer --bits, a smaller reference, or more memory"
        )
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
        name = config.statistics.resolve(key or frame.unnorm_key)
        if frame.action is None or len(frame.action) != config.statistics[name].dims:
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
