"""Towers and projector as kernel calls: pixel values in, image embeddings out, weights in 8 or 16 bits.

A tower's residual stream is handed from norm to norm as the decoder's is; attention is torch's. int8 weights stay
int8. Arithmetic follows `edge_vla.model.vision`. Knows shapes and the checkpoint's keys; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.artifact import VISION_SCALES
from edge_vla.checkpoint.keys import TOWER_PREFIXES
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.gpu.config import GpuConfig
from edge_vla.runtime.gpu.kernels.weights import PLAIN, RowFormat, repack_int8
from edge_vla.runtime.gpu.products import int8_gemm
from edge_vla.spec import PolicySpec, TowerSpec


class Linear:
    """A weight and its bias. `times` leaves the bias to the kernel that reads its output; a call is the whole product.

    Both take rows in `row_format`, which `prepare` makes of rows (M, K) of the working type. `times` may leave partial
    sums (S, M, N) float32.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str, config: GpuConfig) -> None:
        weight, use = weights[f"{name}.weight"], config.kernels
        self._quantise_rows, self._gelu = use.quantise_rows, use.gelu
        self.bias = weights[f"{name}.bias"].to(config.dtype)
        self.row_format: RowFormat = PLAIN
        self.times: Callable[[Any], Tensor]
        self._dense = weight.dtype != torch.int8
        self._biased: Callable[[Any], Tensor]
        if weight.dtype == torch.int8:
            scales, shape = weights[f"{name}.weight{VISION_SCALES}"], (weight.shape[0], weight.shape[1])
            int8 = repack_int8(PackedWeight(Scheme.INT8, shape, None, weight, scales).check(name))
            self.row_format, self.times = int8_gemm(int8, config, "tower")
            self._biased = int8_gemm(int8, config, "torch", self.bias)[1]
            size = int8.bytes
        else:
            dense = weight.to(config.dtype)
            self.times, size = lambda x: F.linear(x, dense), dense.nbytes
            self._biased = lambda x: F.linear(x, dense, self.bias)  # one launch, and one rounding, as the original's
        self.bytes = size + self.bias.nbytes

    def prepare(self, x: Tensor) -> Any:
        return x if self.row_format == PLAIN else self._quantise_rows(x, self.row_format)

    def __call__(self, x: Any) -> Tensor:
        return self._biased(x)

    def gelu(self, x: Any, reader: Linear) -> Any:
        """The GELU of a call, as `reader` takes it."""
        return (
            reader.prepare(F.gelu(self(x))) if self._dense else self._gelu(self.times(x), self.bias, reader.row_format)
        )


@dataclass(frozen=True)
class Branch:
    """What half a block adds to the stream, as its last product leaves it: scale * (out + bias)."""

    out: Tensor
    bias: Tensor
    scale: Tensor | None


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Block:
    norms: tuple[Norm, Norm]
    scales: tuple[Tensor | None, Tensor | None]
    qkv: Linear
    proj: Linear
    fc1: Linear
    fc2: Linear

    @property
    def bytes(self) -> int:
        norms = sum(norm.weight.nbytes + norm.shift.nbytes for norm in self.norms)
        scales = sum(scale.nbytes for scale in self.scales if scale is not None)
        return norms + scales + sum(linear.bytes for linear in (self.qkv, self.proj, self.fc1, self.fc2))


class Tower:
    """Pixel values (3, H, W) -> features of the second-to-last block (patches, width)."""

    def __init__(self, spec: TowerSpec, weights: Mapping[str, Tensor], prefix: str, config: GpuConfig) -> None:
        self.spec, self.kernels = spec, config.kernels

        def load(name: str) -> Tensor:
            return weights[prefix + name].to(config.dtype)

        def block(at: str) -> Block:
            norms = [Norm(load(f"{at}{name}.weight"), load(f"{at}{name}.bias")) for name in ("norm1", "norm2")]
            scales = [load(f"{at}{name}.scale_factor") if spec.layer_scale else None for name in ("ls1", "ls2")]
            names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            linears = [Linear(weights, prefix + at + name, config) for name in names]
            return Block((norms[0], norms[1]), (scales[0], scales[1]), *linears)

        first = [load("cls_token")[0]] if spec.class_token else []
        first += [load("reg_token")[0]] if spec.registers else []
        self.first = torch.cat(first) if first else None  # (prefix, width)
        self.positions = load("pos_embed")[0]
        self.patch_weight, self.patch_bias = load("patch_embed.proj.weight").flatten(1), load("patch_embed.proj.bias")
        self.blocks = [block(f"blocks.{i}.") for i in range(spec.used_blocks)]

    @property
    def bytes(self) -> int:
        tensors = (self.first, self.positions, self.patch_weight, self.patch_bias)
        return sum(one.nbytes for one in tensors if one is not None) + sum(block.bytes for block in self.blocks)

    def __call__(self, pixels: Tensor) -> Tensor:
        stream = F.linear(self._patches(pixels), self.patch_weight, self.patch_bias) + self.positions
        if self.first is not None:
            stream = torch.cat([self.first, stream])
        branch: Branch | None = None
        for block in self.blocks:
            stream, normed = self._norm(stream, branch, block.norms[0], block.qkv.row_format)
            mixed = self._attend(block.qkv(normed))
            branch = Branch(block.proj.times(block.proj.prepare(mixed)), block.proj.bias, block.scales[0])
            stream, normed = self._norm(stream, branch, block.norms[1], block.fc1.row_format)
            hidden = self.kernels.gelu(block.fc1.times(normed), block.fc1.bias, block.fc2.row_format)
            branch = Branch(block.fc2.times(hidden), block.fc2.bias, block.scales[1])
        if branch is not None:
            stream, _ = self._norm(stream, branch, self.blocks[-1].norms[0])  # for its sum
        return stream[self.spec.prefix :]

    def _patches(self, pixels: Tensor) -> Tensor:
        """(3, H, W) -> (patches, 3 x patch x patch): a convolution whose stride is its size is a matrix product."""
        size, grid = self.spec.patch, self.spec.grid
        cut = pixels[:, : grid * size, : grid * size].reshape(-1, grid, size, grid, size)
        return cut.permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)

    def _attend(self, qkv: Tensor) -> Tensor:
        rows = qkv.shape[0]
        query, key, value = qkv.view(rows, 3, self.spec.heads, -1).permute(1, 2, 0, 3)[:, None]
        return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).reshape(rows, -1)

    def _norm(
        self, stream: Tensor, branch: Branch | None, norm: Norm, row_format: RowFormat = PLAIN
    ) -> tuple[Tensor, Any]:
        """The stream with what the branch adds, and its norm."""
        added = (None, None, None) if branch is None else (branch.out, branch.bias, branch.scale)
        return self.kernels.layer_norm(stream, *added, norm.weight, norm.shift, self.spec.norm_eps, row_format)


class KernelVision:
    """Pixel values (B, 3 x towers, H, W) of any float type -> image embeddings (B, patches, decoder width)."""

    def __init__(self, spec: PolicySpec, weights: Mapping[str, Tensor], config: GpuConfig) -> None:
        self.dtype = config.dtype
        self.towers = [
            Tower(tower, weights, prefix, config) for tower, prefix in zip(spec.towers, TOWER_PREFIXES, strict=False)
        ]
        self.projector = [Linear(weights, f"projector.fc{i}", config) for i in range(1, len(spec.projector_widths))]
        device = self.towers[0].positions.device
        more = self.towers[1:] if device.type == "cuda" else []
        self._streams = [torch.cuda.Stream(device) for _ in more]  # type: ignore[no-untyped-call]

    @property
    def bytes(self) -> int:
        return sum(tower.bytes for tower in self.towers) + sum(linear.bytes for linear in self.projector)

    @property
    def activation_bits(self) -> int:
        return 16 if all(linear.row_format == PLAIN for linear in self.projector) else 8

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self.towers[0].positions.device, self.dtype)
        return torch.stack([self._one(image) for image in values])

    def _one(self, pixels: Tensor) -> Tensor:
        x = torch.cat(self._features([pixels[3 * i : 3 * i + 3] for i in range(len(self.towers))]), dim=1)
        rows = self.projector[0].prepare(x)
        for linear, reader in pairwise(self.projector):
            rows = linear.gelu(rows, reader)
        return self.projector[-1](rows)

    def _features(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Of each tower. Further ones run beside the first, on streams of their own: one does not fill a big chip."""
        if not self._streams:
            return [tower(part) for tower, part in zip(self.towers, pixels, strict=True)]
        current = torch.cuda.current_stream(pixels[0].device)
        beside = list[Tensor]()
        for tower, part, stream in zip(self.towers[1:], pixels[1:], self._streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                beside.append(tower(part))
            beside[-1].record_stream(current)
        first = self.towers[0](pixels[0])
        for stream in self._streams:
            current.wait_stream(stream)
        return [first, *beside]
