"""Towers and projector in torch's operators, on any device and in any type."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.model import Projector, Tower, VisionBackbone
from edge_vla.spec import PolicySpec


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
    """A tower's patch embedding as one matrix product: its convolution's patches do not overlap."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, width)."""
        batch, channels, height, width = pixels.shape
        patch = self.proj.kernel_size[0]
        rows, columns = height // patch, width // patch
        cut = pixels[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
        flat = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(flat, self.proj.weight.flatten(1), self.proj.bias)


def with_flat_patches(network: TorchVision) -> TorchVision:
    for module in network.vision_backbone.children():
        if isinstance(module, Tower):
            setattr(module, "patch_embed", FlatPatches(module.patch_embed.proj))  # noqa: B010
    return network
