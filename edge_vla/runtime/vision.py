"""Vision backends: the network in torch, or the artifact's ONNX graph in ONNX Runtime.

Both map pixel values (B, 3 x towers, H, W) float32 to image embeddings (B, patches, decoder width).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.errors import ArtifactError, BackendError
from edge_vla.model import Projector, Tower, VisionBackbone
from edge_vla.spec import PolicySpec


class Vision(Protocol):
    """Of a network's parts, the one that sees."""

    @property
    def bytes(self) -> int:
        """Of its weights in memory."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3 x towers, H, W) -> (B, patches, decoder width), which may be lent until the next call."""


class TorchVision(nn.Module):
    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.vision_backbone = VisionBackbone(spec)
        self.projector = Projector(spec)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.projector.fc1.weight
        out: Tensor = self.projector(self.vision_backbone(pixels.to(weight.device, weight.dtype)))
        return out


def torch_vision(
    spec: PolicySpec, weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device
) -> TorchVision:
    """The network with `weights`, keyed as in the checkpoint, in `dtype` (None: as stored) on `device`."""
    with torch.device("meta"):
        network = TorchVision(spec)
    placed = {name: weights[name].to(device, dtype) for name in network.state_dict()}
    network.load_state_dict(placed, assign=True)
    return network.eval().requires_grad_(False)


class FlatPatches(nn.Module):
    """A tower's patch embedding as one matrix product: strides of a patch make a convolution just that."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, width)."""
        batch, channels, height, width = pixels.shape
        side = self.proj.kernel_size[0]
        rows, columns = height // side, width // side
        cut = pixels[:, :, : rows * side, : columns * side].reshape(batch, channels, rows, side, columns, side)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def with_flat_patches(network: TorchVision) -> TorchVision:
    for module in network.vision_backbone.children():
        if isinstance(module, Tower):
            setattr(module, "patch_embed", FlatPatches(module.patch_embed.proj))  # noqa: B010
    return network


class OnnxVision:
    """The graph in ONNX Runtime, in float32, on the CPU or on CUDA where that provider is installed.

    With `fold`, weights are widened once at load: faster, and twice the memory. `parameters`: how many there are.
    """

    def __init__(self, graph: Path, device: torch.device, *, fold: bool = True, parameters: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError("--vision onnx needs: pip install onnxruntime (or onnxruntime-gpu)") from error
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise BackendError(f"--vision onnx on {device.type} needs {provider}: pip install onnxruntime-gpu")
        self.bytes = 4 * parameters if fold else 0  # float32; what Runtime keeps besides is not counted
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
            raise BackendError(f"--vision onnx: ONNX Runtime could not start {provider}; are its CUDA libraries there?")

    def __call__(self, pixels: Tensor) -> Tensor:
        values = np.ascontiguousarray(pixels.float().cpu().numpy())
        (embeddings,) = self.session.run(None, {"pixel_values": values})
        return torch.from_numpy(embeddings)
