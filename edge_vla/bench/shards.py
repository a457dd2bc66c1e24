"""A bench's work in parts that any machine can do: packed, done by the same worker process, merged in order.

A part is a folder of frames as bytes, or blocks of episodes; what comes back is bytes or rows. Knows no cluster.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from edge_vla.bench.messages import System
from edge_vla.bench.predictions import code_hash
from edge_vla.bench.provenance import device_name
from edge_vla.bench.result import EpisodeRow
from edge_vla.bench.systems import WorkerProcess
from edge_vla.data import Frame, write_frames
from edge_vla.errors import UsageError
from edge_vla.files import write_whole

Files = Mapping[str, bytes]
THREADS = "OMP_NUM_THREADS"  # an environment variable's name


@dataclass(frozen=True)
class Machine:
    """What a prediction's bits depend on beside its inputs."""

    device: str
    cores: int | None
    torch: str
    code: str


@dataclass(frozen=True)
class Block:
    """Episodes of one kind of task, `count` from start number `first` on."""

    kind: str
    first: int
    count: int


def machine() -> Machine:
    return Machine(device_name(), os.cpu_count(), torch.__version__, code_hash())


def ranges(count: int, parts: int) -> list[range]:
    """0..count in order, in at most `parts` parts that differ by one at most; none is empty."""
    parts = min(parts, count)
    edges = [count * part // parts for part in range(parts + 1)] if parts else [0]
    return [range(*pair) for pair in pairwise(edges)]


def blocks(kinds: Sequence[str], episodes: int, size: int) -> list[Block]:
    """Kind by kind, in the order of starts."""
    return [Block(kind, first, min(size, episodes - first)) for kind in kinds for first in range(0, episodes, size)]


def pack(frames: Sequence[Frame]) -> Files:
    """Frames as a folder's files, by name; pixels are stored without loss, whatever they came from."""
    with tempfile.TemporaryDirectory(prefix="edge-vla-shard-") as scratch:
        folder = Path(scratch)
        named = ((replace(frame, image=Path(f"{i:06}.png")), frame.open()) for i, frame in enumerate(frames))
        write_frames(folder, named)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pack_tokens(file: Path, part: range) -> bytes:
    """The tokens of some frames from a file of predictions, as a file to be forced along."""
    buffer = io.BytesIO()
    with np.load(file) as arrays:
        np.savez(buffer, free=arrays["free"][part.start : part.stop])
    return buffer.getvalue()


def merge(parts: Sequence[bytes], out: Path) -> None:
    """Predictions of consecutive frames as one file."""
    loaded = [dict(np.load(io.BytesIO(part))) for part in parts]
    if len({arrays["free"].shape[1] for arrays in loaded}) > 1:
        raise UsageError("the frames' data sets have actions of different lengths: bench one --unnorm-key")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate([arrays[name] for arrays in loaded]) for name in loaded[0]})  # type: ignore[arg-type]
    write_whole(out, buffer.getvalue())


def predict_part(system: System, floor: str | None, files: Files, forced: bytes | None, threads: str | None) -> bytes:
    """A system's predictions on packed frames, by a worker process, as the bytes of its file."""
    _set_threads(threads)
    with tempfile.TemporaryDirectory(prefix="edge-vla-shard-") as scratch, WorkerProcess(system) as process:
        folder = Path(scratch)
        process.load(_unpack(files, folder / "frames"), None)
        along = None if forced is None else folder / "forced.npz"
        if along is not None and forced is not None:
            along.write_bytes(forced)
        process.predict(folder / "out.npz", along, floor)
        return (folder / "out.npz").read_bytes()


def run_part(
    system: System,
    environment: str,
    some: Sequence[Block],
    files: Files,
    delays_ms: Sequence[float] | None,
    threads: str | None,
) -> list[EpisodeRow]:
    """A system's episodes of some blocks, in their order."""
    _set_threads(threads)
    rows = list[EpisodeRow]()
    with tempfile.TemporaryDirectory(prefix="edge-vla-shard-") as scratch, WorkerProcess(system) as process:
        process.load(_unpack(files, Path(scratch) / "frames"), 1)
        for block in some:
            rows += process.episodes(environment, block.kind, block.first, block.count, delays_ms)
    return rows


def _set_threads(threads: str | None) -> None:
    """As many as on the machine that asked, because another number of them rounds differently; None: its own choice."""
    if threads is None:
        os.environ.pop(THREADS, None)
    else:
        os.environ[THREADS] = threads


def _unpack(files: Files, folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
