"""Tensors of a safetensors file onto a device, one at a time, through two pinned buffers: no copy on the host.

While one buffer travels the other is read from the file. Knows bytes and types; knows nothing of what they mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.errors import ArtifactError

PIECE: Final = 16 << 20  # bytes of a pinned buffer; there are two
HEADER_MOST: Final = 100 << 20  # as safetensors itself allows
TYPES: Final[Mapping[str, torch.dtype]] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class Staging:
    """Two buffers in host memory that the device can read by itself. `moved` counts bytes that went through."""

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device, self.moved = device, 0
        pinned = device.type == "cuda"
        self._buffers = [torch.empty(piece, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        # When the last piece that a buffer held has gone.
        self._left = [torch.cuda.Event() if pinned else None for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    @property
    def bytes(self) -> int:
        """What it holds on the host, however much goes through."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def fill(self, target: Tensor, file: FileIO) -> None:
        """The next bytes of `file` into all of `target`, contiguous and on the device. ArtifactError if it ends."""
        flat = target.view(-1).view(torch.uint8)
        at = 0
        while at < flat.numel():
            buffer, left = self._buffers[self._turn], self._left[self._turn]
            if left is not None:
                left.synchronize()
            got = file.readinto(buffer.numpy()[: flat.numel() - at])  # type: ignore[arg-type]
            if not got:
                raise ArtifactError(f"{file.name} ends too early: copy or export the artifact again")
            flat[at : at + got].copy_(buffer[:got], non_blocking=True)
            if left is not None:
                left.record()
            at, self._turn = at + got, 1 - self._turn
        self.moved += at


@dataclass(frozen=True)
class Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


class StagedFile(Mapping[str, Tensor]):
    """A safetensors file whose tensors come onto the device each time they are asked for: ask once."""

    def __init__(self, path: Path, staging: Staging) -> None:
        self.path, self.staging = path, staging
        self.entries = read_header(path)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        target = torch.empty(entry.shape, dtype=entry.dtype, device=self.staging.device)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.begin)
                self.staging.fill(target, file)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read ({error}): export again") from error
        return target

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_header(path: Path) -> dict[str, Entry]:
    """Where each tensor lies. ArtifactError for a header that does not fit its file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_MOST:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        size = path.stat().st_size
        header.pop("__metadata__", None)
        return {name: _entry(raw, 8 + length, size) for name, raw in header.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is no safetensors file ({error!r}): copy or export the artifact again") from error


def _entry(raw: Mapping[str, Any], start: int, size: int) -> Entry:
    dtype, shape = TYPES[raw["dtype"]], tuple(map(int, raw["shape"]))
    begin, end = (start + int(offset) for offset in raw["data_offsets"])
    if min(shape, default=0) < 0 or not start <= begin <= end <= size:
        raise ValueError(f"{raw} in a file of {size} bytes")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{raw} says two sizes")
    return Entry(dtype, shape, begin, end)
