"""Tensors of a safetensors file to a device, one at a time, through two pinned buffers: no copy stays on the host.

While one buffer is copied, the other is read from the file. Knows bytes and types; knows nothing of what they mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import ArtifactError
from edge_vla.typed_json import from_json

BUFFER_BYTES: Final = 16 << 20  # of one pinned buffer; there are two
MAX_HEADER: Final = 100 << 20  # bytes, as in safetensors itself
TYPES: Final[Mapping[str, torch.dtype]] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class Staging:
    """Two page-locked buffers on the host. `moved` counts the bytes that went through them."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device, self.moved = device, 0
        pinned = device.type == "cuda"
        self._buffers = [torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        # Recorded behind the last copy out of each buffer.
        self._copied = [torch.cuda.Event() if pinned else None for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    @property
    def bytes(self) -> int:
        """Of the buffers on the host."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def fill(self, target: Tensor, file: FileIO) -> None:
        """Fill `target`, contiguous on the device, with the next bytes of `file`. ArtifactError if the file ends."""
        if target.is_meta:  # kernels are compiled ahead: shapes are all that is asked of a file
            return
        flat = target.view(-1).view(torch.uint8)
        at = 0
        while at < flat.numel():
            buffer, copied = self._buffers[self._turn], self._copied[self._turn]
            if copied is not None:
                copied.synchronize()
            got = file.readinto(buffer.numpy()[: flat.numel() - at])  # type: ignore[arg-type]
            if not got:
                raise ArtifactError(f"{file.name} is truncated: copy or export the artifact again")
            flat[at : at + got].copy_(buffer[:got], non_blocking=True)
            if copied is not None:
                copied.record()
            at, self._turn = at + got, 1 - self._turn
        self.moved += at


@dataclass(frozen=True)
class Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # offset in the file, bytes
    end: int


class StagedFile(Mapping[str, Tensor]):
    """A safetensors file by tensor name. Each look-up copies the tensor to the device again."""

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


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor in the file's JSON header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]  # behind the header, bytes


def read_header(path: Path) -> dict[str, Entry]:
    """Where each tensor lies in the file. ArtifactError for a header that does not fit it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        size = path.stat().st_size
        header.pop("__metadata__", None)
        return {name: _entry(from_json(HeaderEntry, raw, name), 8 + length, size) for name, raw in header.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not a valid safetensors file ({error!r}): copy or export the artifact again"
        ) from error


def _entry(raw: HeaderEntry, start: int, size: int) -> Entry:
    dtype, shape = TYPES[raw.dtype], tuple(raw.shape)
    begin, end = (start + offset for offset in raw.data_offsets)
    if min(shape, default=0) < 0 or not start <= begin <= end <= size:
        raise ValueError(f"{raw} in a file of {size} bytes")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{raw}: shape and offsets disagree")
    return Entry(dtype, shape, begin, end)
