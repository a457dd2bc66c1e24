"""The vision side: one or two ViT towers, their features side by side, and the projector.

Module names are the checkpoint's keys. Only what reaches an action is built: a tower's last block, its final
norm and SigLIP's pooling head never run in OpenVLA, so they do not exist here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.spec import PolicySpec, TowerSpec


class PatchEmbed(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, spec.width, kernel_size=spec.patch, stride=spec.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.proj(pixels)
        return features.flatten(2).transpose(1, 2)  # (B, patches, width)


class TowerAttention(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, heads, T, head width)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class TowerMLP(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """timm calls this parameter `gamma`; OpenVLA's checkpoints call it `scale_factor`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.attn = TowerAttention(spec)
        self.ls1 = LayerScale(spec.width) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.mlp = TowerMLP(spec)
        self.ls2 = LayerScale(spec.width) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Tower(nn.Module):
    """pixels (B, 3, H, W) -> features of the second-to-last block (B, patches, width), no final norm."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        if spec.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, spec.registers, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.patches, spec.width))
        self.patch_embed = PatchEmbed(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.used_blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels) + self.pos_embed
        batch = x.shape[0]
        prefix = []
        if self.spec.class_token:
            prefix.append(self.cls_token.expand(batch, -1, -1))
        if self.spec.registers:
            prefix.append(self.reg_token.expand(batch, -1, -1))
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        for block in self.blocks:
            x = block(x)
        features: Tensor = x[:, self.spec.prefix :]
        return features


class VisionBackbone(nn.Module):
    """pixels (B, 3 x towers, H, W) -> (B, patches, sum of widths); three channels a tower, in order."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.featurizer = Tower(spec.towers[0])
        if spec.fused:
            self.fused_featurizer = Tower(spec.towers[1])
        self.fused = spec.fused

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.fused:
            features: Tensor = self.featurizer(pixels)
            return features
        first, second = pixels[:, :3], pixels[:, 3:]
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class Projector(nn.Module):
    """(B, patches, vision width) -> (B, patches, decoder width): linears with an exact GELU between."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        widths = spec.projector_widths
        self.fc1 = nn.Linear(widths[0], widths[1])
        self.fc2 = nn.Linear(widths[1], widths[2])
        if spec.fused:
            self.fc3 = nn.Linear(widths[2], widths[3])
        self.fused = spec.fused

    def forward(self, features: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(features)))
        for linear in [self.fc3] if self.fused else []:
            x = linear(F.gelu(x))
        out: Tensor = x
        return out
