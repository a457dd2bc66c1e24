"""What each system predicts on the frames, cached by content: the reference is run once.

An entry of the cache is named by a hash of everything a prediction depends on: weights, frames, the code that computes,
torch and the device. Knows nothing of what makes two predictions agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.bench.agreement import Predictions
from edge_vla.bench.messages import System
from edge_vla.bench.provenance import device_name
from edge_vla.bench.systems import WorkerProcess
from edge_vla.checkpoint import Checkpoint
from edge_vla.data import Frame
from edge_vla.errors import EdgeVLAError
from edge_vla.files import PACKAGE
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.runtime.store import user_cache
from edge_vla.spec import ActionSpec

CODE: Final = ("checkpoint", "model", "openvla", "runtime", "quant.py", "bench/floors.py", "bench/worker.py")
CACHE_BYTES: Final = 2 << 30
CHUNK: Final = 64  # frames a time through the full head


@dataclass(frozen=True)
class Job:
    """One system's predictions to write to `file`; `floor` names a harmless change to make first."""

    system: System
    file: Path
    floor: str | None = None


def cache_directory() -> Path:
    """Where predictions are kept: `$EDGE_VLA_CACHE`, else the user's cache. OSError where that cannot be used."""
    own = os.environ.get("EDGE_VLA_CACHE")
    return Path(own) / "edge-vla" / "predictions" if own else user_cache() / "predictions"


def cache_key(weights: str, settings: str, system: System, frames_hash: str, floor: str | None) -> str:
    """sha256 of everything that the reference's predictions depend on.

    `weights` is from `identity`, `settings` from `Checkpoint.settings_sha256`.
    """
    parts = {
        "weights": weights,
        "settings": settings,
        "arithmetic": [system.merge_arithmetic, system.dtype, system.device],
        "unnorm_key": system.unnorm_key,
        "preprocess": system.preprocess,
        "frames": frames_hash,
        "floor": floor,
        "code": code_hash(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "on": device_name(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """sha256 of the source files that compute a prediction."""
    digest = hashlib.sha256()
    for name in CODE:
        path = PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def cached(key: str) -> Path | None:
    """The file of earlier predictions, if it is still there and whole."""
    try:
        path = cache_directory() / f"{key}.npz"
        with np.load(path) as arrays:
            _ = arrays["free"].shape
    except (OSError, ValueError, KeyError, EOFError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def store(key: str, predictions: Path) -> None:
    """Copy a file into the cache and drop the least recently used beyond its size; a failure only costs time."""
    with contextlib.suppress(OSError):
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        beside = directory / f".{key}.partial"
        shutil.copyfile(predictions, beside)
        beside.replace(directory / f"{key}.npz")
        left = CACHE_BYTES
        for path in sorted(directory.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()


def predict(job: Job, frames: Path, limit: int | None, forced: Path | None) -> None:
    """Run one job in a process of its own, teacher-forced along the tokens in `forced` (None: its own)."""
    with WorkerProcess(job.system) as process:
        process.load(frames, limit)
        process.predict(job.file, forced, job.floor)


def predict_all(
    jobs: Sequence[Job], frames: Path, limit: int | None, forced: Path | None, parallel: int
) -> list[EdgeVLAError | None]:
    """Run jobs, `parallel` at a time; what stopped a job, in its place.

    Each uses as many threads as when it is timed, because another number of them rounds differently.
    """

    def run(job: Job) -> EdgeVLAError | None:
        try:
            predict(job, frames, limit, forced)
        except EdgeVLAError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        return list(pool.map(run, jobs))


def read(path: Path, head: Tensor, action: ActionSpec) -> Predictions:
    """Predictions from their file. `head` (vocabulary, width) is the reference's full head, for every system alike."""
    with np.load(path) as arrays:
        forced_hidden, free_hidden = arrays["forced_hidden"], arrays["free_hidden"]
        logits = arrays["logits"]
        outside = np.concatenate([_outside(rows, action) for rows in _full_logits(forced_hidden, head)])
        best = np.concatenate([rows.argmax(-1).numpy() for rows in _full_logits(free_hidden, head)])
        return Predictions(
            free=arrays["free"],
            forced=logits.argmax(-1) + action.first,
            logits=logits,
            outside=outside,
            unrestricted=best,
        )


def _full_logits(hidden: NDArray[np.float32], head: Tensor) -> Iterator[Tensor]:
    """Hidden states (frames, dims, width) -> float32 logits (chunk, dims, vocabulary), in the head's own rounding."""
    for start in range(0, len(hidden), CHUNK):
        yield (torch.from_numpy(hidden[start : start + CHUNK]).to(head.dtype) @ head.T).float()


def _outside(logits: Tensor, action: ActionSpec) -> NDArray[np.float64]:
    """Probability on ids that are no action: (frames, dims) float64."""
    inside = logits.double().softmax(-1)[..., action.first : action.end].sum(-1)
    outside: NDArray[np.float64] = (1 - inside).clamp_min(0).numpy()
    return outside


def frames_hash(frames: Sequence[Frame]) -> str:
    """sha256 over every frame's own hash, in order."""
    return hashlib.sha256("".join(frame.sha256() for frame in frames).encode()).hexdigest()


def identity(files: Sequence[Mapping[str, str]], checkpoint: Checkpoint) -> str:
    """sha256 over the hashes of all `files` that the weights come from, or of a random source's name."""
    weights = json.dumps([list(map(dict, files)) or checkpoint.origin, checkpoint.arithmetic], sort_keys=True)
    return hashlib.sha256(weights.encode()).hexdigest()


def units_off(
    path: Path, predictions: Predictions, tokens: ActionTokens, statistics: Sequence[ActionStatistics]
) -> float:
    """Largest difference between a system's own actions and its tokens decoded by the reference's statistics."""
    with np.load(path) as arrays:
        values = arrays["values"]
    pairs = zip(predictions.free, statistics, strict=True)
    decoded = [one.unnormalise(tokens.decode(row.tolist())) for row, one in pairs]
    return float(np.abs(values - np.stack(decoded)).max())
