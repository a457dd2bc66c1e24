"""The tensors of an artifact's files as weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge_vla.artifact.manifest import Linear
from edge_vla.errors import ArtifactError
from edge_vla.quant import PackedWeight, Scheme, dequantise

VISION_SCALES: Final = ".scales"  # after the name of an int8 weight of towers and projector


def pack_vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | PackedWeight]:
    """Int8 matrices with their scales as packed weights, the rest as it is; CheckpointError if they do not fit."""
    weights: dict[str, Tensor | PackedWeight] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and tensor.ndim == 2:
            shape, scales = (tensor.shape[0], tensor.shape[1]), tensors.get(name + VISION_SCALES)
            weights[name] = PackedWeight(Scheme.INT8, shape, None, tensor, scales).check(name)
        elif not (name.endswith(VISION_SCALES) and name.removesuffix(VISION_SCALES) in tensors):
            weights[name] = tensor
    return weights


def dequantise_vision(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Int8 matrices as `dtype`, each number rounded once, the rest as it is; CheckpointError if they do not fit."""
    weights = pack_vision(tensors)
    return {
        name: dequantise(weight, dtype) if isinstance(weight, PackedWeight) else weight
        for name, weight in weights.items()
    }


def unpack_linear(name: str, linear: Linear, tensors: Mapping[str, Tensor]) -> PackedWeight:
    """A linear from the tensors of its layer's file; KeyError for a missing one, CheckpointError if they do not fit."""
    scales = None if linear.scheme is Scheme.BF16 else tensors[f"{name}.scales"]
    zeros = tensors[f"{name}.zeros"] if linear.scheme is Scheme.UINT4 else None
    codes = tensors[f"{name}.weight"]
    return PackedWeight(linear.scheme, linear.shape, linear.group, codes, scales, zeros).check(name)


def map_matrix(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file as a memory map: rows are read from disk when they are used."""
    try:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be mapped ({error}): export again") from error
    return tensor
