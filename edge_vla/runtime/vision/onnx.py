"""An artifact's ONNX graph in ONNX Runtime on the host: its own CPU kernels, or OpenVINO's.

The artifact's graph computes in float32, the int8 graph of the device cache in int8 and float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.artifact import GRAPH, VISION
from edge_vla.errors import ArtifactError, BackendError
from edge_vla.runtime.vision.graphs import TypedGraph

CPU: Final = "CPUExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
PACKAGES: Final[Mapping[str, str]] = {
    CPU: "pip install onnxruntime",
    OPENVINO: "pip uninstall -y onnxruntime; pip install onnxruntime-openvino",
    "CUDAExecutionProvider": "pip uninstall -y onnxruntime; pip install onnxruntime-gpu",
    "TensorrtExecutionProvider": "pip uninstall -y onnxruntime; pip install onnxruntime-gpu, beside TensorRT",
}


class OnnxVision:
    """With `fold`, weights are cast to float32 once at load: faster, twice the memory. `parameters`: their number."""

    def __init__(
        self,
        graph: Path | TypedGraph,
        device: torch.device,
        *,
        fold: bool = True,
        parameters: int = 0,
        provider: str = CPU,
        name: str = "onnx",
    ) -> None:
        if device.type != "cpu":
            raise BackendError(f"--vision {name} runs on the CPU, got --device {device.type}: choose onnx-cuda there")
        self.bytes = 4 * parameters if fold else 0  # float32; what ONNX Runtime keeps besides is not counted
        typed = graph if isinstance(graph, TypedGraph) else TypedGraph(graph, graph.with_name(VISION))
        options = {"num_of_threads": str(torch.get_num_threads())} if provider == OPENVINO else {}
        self.session = open_session(typed, provider, options, name, fold=fold)

    def __call__(self, pixels: Tensor) -> Tensor:
        values = np.ascontiguousarray(pixels.float().cpu().numpy())
        (embeddings,) = self.session.run(None, {"pixel_values": values})
        return torch.from_numpy(embeddings)


def runtime() -> Any:
    """The module, or BackendError with the remedy."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime does not import ({error}): {PACKAGES[CPU]} (or onnxruntime-gpu)") from error
    return onnxruntime


def open_session(
    graph: TypedGraph, provider: str, provider_options: Mapping[str, str], name: str, *, fold: bool = True
) -> Any:
    """A session on this provider and no other first. BackendError where it is missing or does not start."""
    ort = runtime()
    if provider not in ort.get_available_providers():
        raise BackendError(f"--vision {name} needs ONNX Runtime's {provider}: {PACKAGES[provider]}")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not fold:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source: str | bytes = str(graph.path)
    if graph.data.parent != graph.path.parent:  # the weights lie in the artifact, the graph in the device cache
        folder = str(graph.data.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        source = graph.path.read_bytes()
    try:
        session = ort.InferenceSession(source, options, providers=[(provider, dict(provider_options))])
    except Exception as error:  # ONNX Runtime's own errors share no base but this
        remedy = (
            "copy or export it again" if graph.path.name == GRAPH else "edge-vla build-engine --fresh makes it again"
        )
        raise ArtifactError(
            f"{graph.path} does not load in ONNX Runtime: {str(error).splitlines()[0]}: {remedy}"
        ) from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"--vision {name}: ONNX Runtime could not start {provider}; check its libraries")
    return session
