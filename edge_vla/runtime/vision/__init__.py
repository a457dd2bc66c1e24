"""Vision backends of an artifact, one table: pixel values (B, 3 x towers, H, W) -> (B, patches, decoder width).

A backend asked for by name runs or raises. `auto` is C where that is fastest, else torch, and never another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch

from edge_vla.artifact import VISION, Artifact
from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import UsageError
from edge_vla.runtime.cpu.native.library import chosen, require_library, wanted, why_none
from edge_vla.runtime.cpu.native.targets import SCALAR, Target, split
from edge_vla.runtime.cpu.native.vision import NativeVision, vision_fits
from edge_vla.runtime.kernels import AUTO, NATIVE, TORCH
from edge_vla.runtime.network import RowVision, Vision
from edge_vla.runtime.vision.graphs import find_graph
from edge_vla.runtime.vision.onnx import CPU, OPENVINO, OnnxVision
from edge_vla.runtime.vision.onnx_device import CUDA, TENSORRT, load_bound
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.tensorrt.engine import load_engine
from edge_vla.runtime.vision.tensorrt.plan import device_cache
from edge_vla.runtime.vision.towers import torch_vision, with_flat_patches
from edge_vla.spec import PolicySpec

Loader = Callable[[Artifact, torch.dtype, torch.device, Target | None], "Vision | None"]
"""None where the backend cannot run this artifact here. The target is that of the C engine, None where it has none."""

RowLoader = Callable[[Artifact, torch.device], RowVision]
SIXTEEN: Final = (Precision.FP16, Precision.BF16)
EIGHT: Final = (Precision.INT8,)


def shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Of the weights of towers and projector, by checkpoint key."""
    keys = key_table(spec)
    return {name: keys[name].shape for name in vision_keys(spec)}


def _native(artifact: Artifact, dtype: torch.dtype, device: torch.device, target: Target | None) -> Vision | None:
    spec = artifact.manifest.config.spec
    if dtype != torch.bfloat16 or device.type != "cpu" or target is None:
        return None
    weights = artifact.vision_weights(shapes(spec))
    loaded = require_library(target)
    return NativeVision(spec, weights, loaded) if vision_fits(spec, weights) else None


def _torch(artifact: Artifact, dtype: torch.dtype, device: torch.device, target: Target | None) -> Vision:  # noqa: ARG001
    spec = artifact.manifest.config.spec
    return with_flat_patches(torch_vision(spec, artifact.tensors(VISION, shapes(spec)), dtype, device))


def _onnx(
    provider: str,
    name: str,
    artifact: Artifact,
    dtype: torch.dtype,  # noqa: ARG001  always float32
    device: torch.device,
    target: Target | None,  # noqa: ARG001
) -> Vision:
    parameters = sum(map(math.prod, shapes(artifact.manifest.config.spec).values()))
    return OnnxVision(artifact.graph, device, parameters=parameters, provider=provider, name=name)


def _onnx_int8(artifact: Artifact, dtype: torch.dtype, device: torch.device, target: Target | None) -> Vision:  # noqa: ARG001
    graph = find_graph(device_cache(artifact.identity), artifact, Precision.INT8)
    return OnnxVision(graph, device, name="onnx/int8")


def _rows(name: str, artifact: Artifact, dtype: torch.dtype, device: torch.device, target: Target | None) -> Vision:  # noqa: ARG001
    return load_rows(artifact, device, name)


# On CUDA alone. They fill image rows that lie on the device.
ROW_LOADERS: Final[Mapping[str, RowLoader]] = {
    "onnx-cuda": partial(load_bound, SIXTEEN, CUDA, "onnx-cuda"),
    "onnx-tensorrt": partial(load_bound, SIXTEEN, TENSORRT, "onnx-tensorrt"),
    "onnx-tensorrt/int8": partial(load_bound, EIGHT, TENSORRT, "onnx-tensorrt/int8"),
    "tensorrt": partial(load_engine, SIXTEEN),
    "tensorrt/int8": partial(load_engine, EIGHT),
}
LOADERS: Final[Mapping[str, Loader]] = {
    NATIVE: _native,
    TORCH: _torch,
    "onnx": partial(_onnx, CPU, "onnx"),
    "onnx/int8": _onnx_int8,
    "onnx-openvino": partial(_onnx, OPENVINO, "onnx-openvino"),
    **{name: partial(_rows, name) for name in ROW_LOADERS},
}
VISIONS: Final = (AUTO, *LOADERS)


def load_rows(artifact: Artifact, device: torch.device, name: str) -> RowVision:
    """A backend of `ROW_LOADERS`. BackendError with the remedy where this device cannot run it."""
    return ROW_LOADERS[name](artifact, device)


def load_vision(
    artifact: Artifact, dtype: torch.dtype, device: torch.device, want: str, target: Target | None = None
) -> tuple[str, Vision]:
    """The backend of this name, and its name; `auto`: C where that is fastest, else torch.

    C is compiled for `target`, that of the decoder, unless `want` names another; default: the best.
    """
    kind, asked = split(want)
    if asked is not None and kind != NATIVE:
        raise UsageError(f"--vision {want}: only {NATIVE} has targets, as in {NATIVE}@{asked}")
    target = wanted(asked) if asked else target or chosen()
    names = [kind] if kind != AUTO else [NATIVE, TORCH] if target not in (None, SCALAR) else [TORCH]
    for name in names:
        vision = LOADERS[name](artifact, dtype, device, target)
        if vision is not None:
            return f"{name}@{target.name}" if name == NATIVE and target else name, vision
    raise UsageError(f"--vision {want} needs bf16 on the CPU" + ("" if target else f"; {why_none()}"))
