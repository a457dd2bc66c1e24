"""A checkpoint that another program quantised, as plain tensors: each matrix is dequantised when it is read.

Knows which stored tensors make up one matrix. What their numbers mean is `edge_vla.interop`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import KeysView
from pathlib import Path
from typing import Final

from torch import Tensor

from edge_vla.checkpoint.tensors import BYTES, FLOATS, SafetensorsDirectory, TensorSource, finite
from edge_vla.errors import CheckpointError
from edge_vla.interop import Layout, Parts, Shape, read_layout
from edge_vla.openvla.config import read_json
from edge_vla.quant import PackedWeight, Scheme

SETTINGS: Final = "quantize_config.json"  # where GPTQ's were before config.json held them


def open_directory(directory: Path) -> tuple[SafetensorsDirectory | DequantisedTensors, list[Path]]:
    """A directory's tensors, dequantised if its config.json says that they are quantised, and their files."""
    raw = read_json(directory / "config.json").get("quantization_config")
    if raw is None and (directory / SETTINGS).exists():
        stored = SafetensorsDirectory(directory, BYTES)
        if any(name.endswith(".qweight") for name in stored.names()):  # else it was left over
            raw = {"quant_method": "gptq", **read_json(directory / SETTINGS)}
    if raw is None:
        plain = SafetensorsDirectory(directory)
        return plain, plain.files
    try:
        layout = read_layout(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    stored = SafetensorsDirectory(directory, BYTES)
    return DequantisedTensors(stored, layout), stored.files


class DequantisedTensors:
    """`packed` gives a matrix's own codes where our formats can hold them, so that an export need not round again."""

    def __init__(self, stored: SafetensorsDirectory, layout: Layout) -> None:
        self.stored, self.layout = stored, layout
        self._parts = _gather(stored, layout)
        plain = stored.names() - {name for parts in self._parts.values() for name in parts.names.values()}
        self._shape = {name: stored.shape(name) for name in plain}
        self._shape |= {name: layout.shape(parts) for name, parts in self._parts.items()}

    @property
    def matrices(self) -> int:
        """How many matrices are stored quantised."""
        return len(self._parts)

    def __str__(self) -> str:
        return f"{self.stored} ({self.layout.name})"

    def names(self) -> KeysView[str]:
        return self._shape.keys()

    def shape(self, name: str) -> Shape:
        return self._shape[name]

    def bytes(self, name: str) -> int | None:
        """What a quantised matrix takes as stored; None for a plain tensor."""
        return sum(map(self.stored.bytes, self._parts[name].names.values())) if name in self._parts else None

    def load(self, name: str) -> Tensor:
        """A plain tensor as stored; a quantised one in the type that its own library dequantises to."""
        if name in self._parts:
            parts = self._parts[name]
            return finite(self.layout.decode(parts).weight(), f"{parts.what}, dequantised,")
        tensor = self.stored.load(name)
        if tensor.dtype not in FLOATS.values():
            raise CheckpointError(f"{self.stored}: {name} is {tensor.dtype}, and no part of a quantised matrix")
        return tensor

    def packed(self, name: str) -> PackedWeight | None:
        """The codes as they are stored, or None for a plain tensor or a grid that is not ours."""
        return self.layout.decode(self._parts[name]).packed() if name in self._parts else None


def stored_codes(source: TensorSource, name: str, scheme: Scheme, group: int | None) -> PackedWeight | None:
    """The codes that a quantised source has of a matrix, if they are of this scheme and group."""
    packed = source.packed(name) if isinstance(source, DequantisedTensors) else None
    return packed if packed is not None and (packed.scheme, packed.group) == (scheme, group) else None


def _gather(stored: SafetensorsDirectory, layout: Layout) -> dict[str, Parts]:
    """Each quantised weight's parts, under the name that it has where it is not quantised."""
    found = defaultdict[str, dict[str, str]](dict)
    for name in stored.names():
        for part in layout.parts:
            if name.endswith("." + part):
                found[name.removesuffix(part)][part] = name
    quantised = {path: names for path, names in found.items() if set(names) != {"weight"}}
    for path, names in quantised.items():
        missing = [part for part, required in layout.parts.items() if required and part not in names]
        if missing:
            raise CheckpointError(f"{stored}: {path[:-1]} lacks {missing} of {layout.name}: download it again")
    return {f"{path}weight": Parts(f"{stored}: {path[:-1]}", stored, names) for path, names in quantised.items()}
