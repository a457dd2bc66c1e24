"""Tensors of a Hugging Face directory, one at a time: never the model, never a file held open.

Checks what can be checked without a reference: that index, shards and headers agree, that each tensor stands
in exactly one shard, and that its numbers are finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, KeysView
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge_vla import typed_json
from edge_vla.checkpoint.folder import INDEX, choose_weights, shard
from edge_vla.errors import CheckpointError
from edge_vla.files import stand_in

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
}  # with what quantised checkpoints hold
# Tables that older Llamas saved and every Llama computes anew: transformers ignores them too.
BUFFERS = re.compile(r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)")


@dataclass(frozen=True)
class Index:
    """What is read of model.safetensors.index.json: the shard of each tensor."""

    weight_map: dict[str, str]


class TensorSource(Protocol):
    """Named tensors, read one at a time. `str()` of it says where they come from."""

    def names(self) -> KeysView[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def load(self, name: str) -> Tensor:
        """The tensor on the CPU in its stored type; CheckpointError if it holds a non-finite number."""
        ...


class SafetensorsDirectory:
    """The tensors of one directory, from the file that transformers would open (`folder.choose_weights`).

    `types` are the stored types that are expected, under safetensors' names. `ignored` are tensors that nothing reads.
    """

    def __init__(self, directory: Path, types: Collection[str] = FLOATS) -> None:
        self.directory, self.types = directory, types
        self.weights = choose_weights(directory)
        self.ignored: list[str] = []
        self._file: dict[str, Path] = {}
        self._shape: dict[str, tuple[int, ...]] = {}
        self._bytes: dict[str, int] = {}
        if not self.weights.sharded:
            self._read_header(self.weights.path, None)
            return
        expected = _read_index(self.weights.path)
        for path in sorted(set(expected.values())):
            self._read_header(path, {name for name, file in expected.items() if file == path})

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def files(self) -> list[Path]:
        return sorted(set(self._file.values()))

    def names(self) -> KeysView[str]:
        return self._file.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def bytes(self, name: str) -> int:
        return self._bytes[name]

    def load(self, name: str) -> Tensor:
        with open_safetensors(self._file[name]) as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return finite(tensor, f"{self._file[name]}: {name}")

    def _read_header(self, path: Path, expected: set[str] | None) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: expected every shard that {INDEX} names; download it again")
        with open_safetensors(path) as file:
            names = set(file.keys())
            odd = [] if expected is None else sorted(name for name in names ^ expected if not BUFFERS.fullmatch(name))
            if odd:
                raise CheckpointError(
                    f"{path} and {INDEX} disagree on {len(odd)} tensors, first {odd[0]!r}: download the directory again"
                )
            for name in names:
                if BUFFERS.fullmatch(name):
                    self.ignored.append(name)
                    continue
                view = file.get_slice(name)
                if view.get_dtype() not in self.types:
                    raise CheckpointError(
                        f"{path}: {name} is {view.get_dtype()}, expected one of {sorted(self.types)}"
                        " (config.json's quantization_config says whether a checkpoint is quantised, and how)"
                    )
                self._file[name] = path
                self._shape[name] = tuple(view.get_shape())
                self._bytes[name] = BYTES[view.get_dtype()] * math.prod(self._shape[name])


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """`safe_open` with its errors turned into ours."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if reason := stand_in(path):
            raise CheckpointError(f"{path} is {reason}") from error
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): truncated? download it again"
        ) from error


def finite(tensor: Tensor, what: str) -> Tensor:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"{what} holds {bad} non-finite numbers (NaN or infinity): the file is damaged")
    return tensor


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor -> its shard."""
    try:
        index = typed_json.from_json(Index, typed_json.parse(path.read_bytes()), "index", ignore_unknown=True)
    except (OSError, ValueError) as error:
        if reason := stand_in(path):
            raise CheckpointError(f"{path} is {reason}") from error
        raise CheckpointError(f"{path} is not a safetensors index ({error}): download it again") from error
    if not index.weight_map:
        raise CheckpointError(f"{path} lists no tensors: download it again")
    return {name: shard(path, file) for name, file in index.weight_map.items()}
