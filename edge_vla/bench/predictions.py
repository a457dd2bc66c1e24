"""What each side answers to the frames, kept by content: the reference is asked once.

An entry of the cache is named by a hash of everything an answer depends on: weights, frames, the code that computes,
torch and the device. Knows nothing of what makes two answers agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.bench.agreement import Side
from edge_vla.bench.provenance import device_name
from edge_vla.bench.systems import Contestant, Station
from edge_vla.checkpoint import Checkpoint
from edge_vla.data import Frame
from edge_vla.errors import EdgeVLAError
from edge_vla.files import PACKAGE
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.runtime.store import user_cache
from edge_vla.spec import ActionSpec

COMPUTES: Final = ("checkpoint", "model", "openvla", "quant", "runtime", "benchmarks/station.py")
CACHE_BYTES: Final = 2 << 30
CHUNK: Final = 64  # frames a time through the full head


def cache_directory() -> Path:
    """Where answers are kept: `$EDGE_VLA_CACHE`, else the user's cache. OSError where that cannot be used."""
    own = os.environ.get("EDGE_VLA_CACHE")
    return Path(own) / "edge-vla" / "answers" if own else user_cache() / "answers"


def reference_key(weights: str, contestant: Contestant, frames_hash: str, floor: str | None) -> str:
    """sha256 of all that the reference's answers depend on. `weights`: from `identity`."""
    about = {
        "weights": weights,
        "arithmetic": [contestant.merge_arithmetic, contestant.dtype, contestant.device],
        "unnorm_key": contestant.unnorm_key,
        "frames": frames_hash,
        "floor": floor,
        "code": code_hash(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "on": device_name(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def code_hash() -> str:
    """sha256 of the source files that an answer is computed by."""
    package = PACKAGE
    digest = hashlib.sha256()
    for room in COMPUTES:
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def kept(key: str) -> Path | None:
    """The file of an earlier answer, if it is still there and whole."""
    try:
        path = cache_directory() / f"{key}.npz"
        with np.load(path) as answers:
            _ = answers["free"].shape
    except (OSError, ValueError, KeyError, EOFError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def keep(key: str, answers: Path) -> None:
    """Copy an answer into the cache, dropping the longest unused beyond its size. A cache that cannot be written to
    only costs time."""
    with contextlib.suppress(OSError):
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        beside = directory / f".{key}.partial"
        shutil.copyfile(answers, beside)
        beside.replace(directory / f"{key}.npz")
        left = CACHE_BYTES
        for path in sorted(directory.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()


def ask(
    contestant: Contestant, frames: Path, limit: int | None, out: Path, forced: Path | None, floor: str | None
) -> None:
    """One side's answers, in a process of its own, to the file `out`."""
    with Station(contestant) as station:
        station.load(frames, limit)
        station.answer(out, forced, floor)


def ask_all(
    jobs: Sequence[tuple[Contestant, Path, str | None]], frames: Path, limit: int | None, forced: Path, together: int
) -> list[EdgeVLAError | None]:
    """Several sides (contestant, file, floor) with the reference's answers given, `together` at a time; what stopped a
    side, in its place. Threads are those of the timing: another number of them rounds differently."""

    def one(job: tuple[Contestant, Path, str | None]) -> EdgeVLAError | None:
        contestant, out, floor = job
        try:
            ask(contestant, frames, limit, out, forced, floor)
        except EdgeVLAError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=together) as pool:
        return list(pool.map(one, jobs))


def read_side(path: Path, head: Tensor, action: ActionSpec) -> Side:
    """A side from its file. `head` (vocabulary, width) is the reference's full head, for every side alike."""
    with np.load(path) as answers:
        forced, would_be = answers["forced_hidden"], answers["free_hidden"]
        logits = answers["logits"]
        outside = np.concatenate([_outside(rows, action) for rows in _full_logits(forced, head)])
        best = np.concatenate([rows.argmax(-1).numpy() for rows in _full_logits(would_be, head)])
        return Side(
            free=answers["free"],
            forced=logits.argmax(-1) + action.first,
            logits=logits,
            outside=outside,
            would_be=best,
        )


def _full_logits(hidden: Any, head: Tensor) -> Iterator[Tensor]:
    """Hidden states (frames, dims, width) -> float32 logits (chunk, dims, vocabulary), in the head's own rounding."""
    for start in range(0, len(hidden), CHUNK):
        yield (torch.from_numpy(hidden[start : start + CHUNK]).to(head.dtype) @ head.T).float()


def _outside(logits: Tensor, action: ActionSpec) -> Any:
    """Probability that is on no action id: (frames, dims) float64."""
    probability = logits.double().softmax(-1)
    return (1 - probability[..., action.first : action.end].sum(-1)).clamp_min(0).numpy()


def frames_hash(frames: Sequence[Frame]) -> str:
    """sha256 over every frame's own hash, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.sha256().encode())
    return digest.hexdigest()


def identity(files: Sequence[Mapping[str, str]], checkpoint: Checkpoint) -> str:
    """sha256 over the hashes of all `files` that the weights come from, or of a random source's name."""
    about = json.dumps([list(map(dict, files)) or checkpoint.origin, checkpoint.arithmetic], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()


def units_off(path: Path, side: Side, tokens: ActionTokens, statistics: Sequence[ActionStatistics]) -> float:
    """Largest difference between a side's own actions and its tokens decoded by the reference's statistics."""
    with np.load(path) as answers:
        values = answers["values"]
    decoded = [one.unnormalise(tokens.decode(row.tolist())) for row, one in zip(side.free, statistics, strict=True)]
    return float(np.abs(values - np.stack(decoded)).max())
