"""The artifact's ONNX graph in ONNX Runtime, in float32, on the CPU or on CUDA where that provider is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_vla.errors import ArtifactError, BackendError


class OnnxVision:
    """With `fold`, weights are cast to float32 once at load: faster, twice the memory. `parameters`: their number."""

    def __init__(self, graph: Path, device: torch.device, *, fold: bool = True, parameters: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError("--vision onnx needs: pip install onnxruntime (or onnxruntime-gpu)") from error
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise BackendError(f"--vision onnx on {device.type} needs {provider}: pip install onnxruntime-gpu")
        self.bytes = 4 * parameters if fold else 0  # float32; what ONNX Runtime keeps besides is not counted
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if not fold:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = ort.InferenceSession(str(graph), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's own errors share no base but this
            raise ArtifactError(f"{graph} does not load in ONNX Runtime: {str(error).splitlines()[0]}") from error
        if self.session.get_providers()[0] != provider:
            raise BackendError(f"--vision onnx: ONNX Runtime could not start {provider}; check its CUDA libraries")

    def __call__(self, pixels: Tensor) -> Tensor:
        values = np.ascontiguousarray(pixels.float().cpu().numpy())
        (embeddings,) = self.session.run(None, {"pixel_values": values})
        return torch.from_numpy(embeddings)
