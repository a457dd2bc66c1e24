"""The int8 graph's own weight file, and the graph over it.

What evens out channels goes where it costs nothing: into the norm before, or into the rows of the values that
attention mixes; elsewhere the graph multiplies, in the operation that makes the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from edge_vla.artifact import VISION_SCALES
from edge_vla.export.vision_graph.network import RowRange, write_typed_graph
from edge_vla.export.vision_int8.choose import Choice
from edge_vla.files import disk_errors, sync
from edge_vla.runtime.vision.precision import INT8_DATA, Precision
from edge_vla.spec import PolicySpec

NORM_BEFORE: Final = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}
PARTS: Final = 3  # of a qkv weight's rows: queries, keys, values


def write_int8(spec: PolicySpec, weights: Mapping[str, Tensor], choice: Choice, folder: Path) -> Path:
    """Write `vision.int8.safetensors` and `vision.int8.onnx` of 16-bit `weights` into `folder`; returns the graph."""
    data, graph = folder / INT8_DATA, folder / Precision.INT8.graph
    tensors, ranges = int8_tensors(weights, choice)
    beside = data.with_name(f".{data.name}.partial")
    with disk_errors(f"write {data}"):
        graph.unlink(missing_ok=True)  # never an old graph over new weights
        save_file(tensors, beside)
        sync(beside)
        beside.replace(data)
    write_typed_graph(spec, data, graph, Precision.INT8.arithmetic, ranges, choice.weights_only)
    return graph


def int8_tensors(weights: Mapping[str, Tensor], choice: Choice) -> tuple[dict[str, Tensor], dict[str, RowRange]]:
    """What the file holds: int8 (K, N) with fp16 scales (N,), folded norms in float32, the rest as it was."""
    tensors, ranges = dict(weights), dict[str, RowRange]()
    for name, grid in choice.grids.items():
        tensors[f"{name}.weight"] = grid.codes.T.cpu().contiguous()
        tensors[f"{name}.weight{VISION_SCALES}"] = grid.scales.cpu()
    for name, grid in choice.grids.items():
        shrink = None if grid.even is None else 1 / grid.even.cpu()
        if shrink is not None and _fold(tensors, name, shrink, choice):
            shrink = None
        if grid.scale is not None:
            ranges[name] = RowRange(grid.scale, shrink)
    return tensors, ranges


def _fold(tensors: dict[str, Tensor], name: str, shrink: Tensor, choice: Choice) -> bool:
    """Put `shrink` (K,) into what makes the rows of linear `name`; False where nothing takes it for free."""
    for linear, norm in NORM_BEFORE.items():
        if name.endswith(linear):
            for part in ("weight", "bias"):
                _scale(tensors, f"{name.removesuffix(linear)}{norm}.{part}", shrink)
            return True
    qkv = f"{name.removesuffix('proj')}qkv"
    if name.endswith("attn.proj") and qkv in choice.grids:  # codes stay, their scales take it
        rows = torch.cat([torch.ones((PARTS - 1) * len(shrink)), shrink])
        scales = f"{qkv}.weight{VISION_SCALES}"
        tensors[scales] = (tensors[scales].float() * rows).half()
        _scale(tensors, f"{qkv}.bias", rows)
        return True
    return False


def _scale(tensors: dict[str, Tensor], name: str, factors: Tensor) -> None:
    tensors[name] = tensors[name].float() * factors
