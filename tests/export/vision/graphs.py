"""Policies and small helpers that the tests of vision graphs share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from edge_vla.checkpoint.keys import vision_keys
from edge_vla.checkpoint.random import RandomTensors
from edge_vla.runtime.vision.towers import TorchVision, torch_vision
from edge_vla.spec import TINY, PolicySpec

# SigLIP alone, and pictures that patches do not fill.
ONE_TOWER: Final = replace(TINY, towers=(replace(TINY.towers[1], image_size=45),))
SPECS: Final = {"two towers": TINY, "one tower": ONE_TOWER}


def weights_of(spec: PolicySpec) -> dict[str, Tensor]:
    source = RandomTensors("openvla-tiny", spec)
    return {name: source.load(name) for name in vision_keys(spec)}


def stored(spec: PolicySpec, folder: Path) -> Path:
    path = folder / "vision.safetensors"
    save_file(weights_of(spec), path)
    return path


def exact(spec: PolicySpec) -> TorchVision:
    """The plain network in float32, with its convolution."""
    return torch_vision(spec, weights_of(spec), torch.float32, torch.device("cpu"))


def pixels_for(spec: PolicySpec, count: int = 3) -> Tensor:
    shape = (count, 3 * len(spec.towers), spec.image_size, spec.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run(graph: Path, pixels: Tensor) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixel_values": pixels.numpy()})
    return np.asarray(found)


def apart(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def types(graph: Path) -> dict[str, int]:
    """Element type of every value, by ONNX's own inference, which refuses operands of mixed types."""
    onnx.checker.check_model(str(graph), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False), strict_mode=True)
    return {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
