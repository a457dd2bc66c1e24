"""Towers and projector in C, with the interface of `edge_vla.runtime.vision.towers.TorchVision`: one call an image.

Weights that are stored in 8 bits stay so in memory. Knows shapes, structures and who owns their memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from edge_vla.checkpoint.keys import TOWER_PREFIXES
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.native.layout import (
    BLOCK,
    STEP,
    TILE,
    address,
    fits,
    int_rows,
    matrix,
    planes,
    scratch_bytes,
    vector,
    zero_point_of,
)
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.structs import Matrix, Tower, TowerLayer, Vision, VisionWorkspace
from edge_vla.runtime.cpu.native.thread_pool import ThreadPool
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec, TowerSpec

LINEARS: Final = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
NORMS: Final = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
LAYER_SCALES: Final = ("ls1.scale_factor", "ls2.scale_factor")

Weights = Mapping[str, PackedWeight | Tensor]


def vision_fits(spec: PolicySpec, weights: Weights) -> bool:
    """Whether C can run them: head widths in fours, formats it knows."""
    heads = all(tower.width // tower.heads % STEP == 0 for tower in spec.towers)
    return heads and all(fits(weight) for weight in weights.values() if isinstance(weight, PackedWeight))


class NativeVision:
    """Pixel values (B, 3 x towers, H, W) float32 -> image embeddings (B, patches, decoder width) bfloat16.

    The next call overwrites the result.
    """

    def __init__(self, spec: PolicySpec, weights: Weights, compiled: ctypes.CDLL | None = None) -> None:
        self.spec, self._weights = spec, weights
        library = compiled or require_library()
        self._call, self._zero_point, self._planes, self._widest = library.edge_vla_vision, zero_point_of(library), 0, 0
        self._kept, self._multiplications = list[object](), 0
        towers = [self._tower(tower, prefix) for tower, prefix in zip(spec.towers, TOWER_PREFIXES, strict=False)]
        linears = [self._matrix(f"projector.fc{i + 1}") for i in range(len(spec.projector_widths) - 1)]
        tower_array, linear_array = (Tower * len(towers))(*towers), (Matrix * len(linears))(*linears)
        self._kept += [tower_array, linear_array]
        self._vision = Vision(len(towers), len(linears), ctypes.addressof(tower_array), ctypes.addressof(linear_array))
        self._weights = {}
        self._pool, self._threads = ThreadPool(), 0
        self._pixels = self._out = torch.empty(0)

    @property
    def bytes(self) -> int:
        """Of the weights in memory."""
        return sum(kept.nbytes for kept in self._kept if isinstance(kept, Tensor))

    @torch.inference_mode()  # its buffers were made in it, and may only be written in it
    def __call__(self, pixels: Tensor) -> Tensor:
        self._reserve(torch.get_num_threads())
        width, batch = self.spec.decoder.width, pixels.shape[0]
        if self._out.shape[0] < batch:
            self._pixels = torch.empty_like(pixels, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
            self._out = torch.empty(batch, self.spec.patches, width, dtype=torch.bfloat16)
        self._pixels[:batch] = pixels
        for image, embeddings in zip(self._pixels[:batch], self._out, strict=False):
            arguments = (
                ctypes.byref(self._vision), ctypes.byref(self._workspace), ctypes.c_void_p(image.data_ptr()),
                ctypes.c_int64(image.shape[-1]), ctypes.c_void_p(embeddings.data_ptr()), ctypes.c_int64(width),
            )  # fmt: skip
            self._pool.run(lambda *thread, given=arguments: self._call(*given, *thread), self._multiplications)
        return self._out[:batch]

    def _tower(self, spec: TowerSpec, prefix: str) -> Tower:
        layers = [self._layer(spec, f"{prefix}blocks.{index}.") for index in range(spec.used_blocks)]
        array = (TowerLayer * len(layers))(*layers)
        names = [*(["cls_token"] if spec.class_token else []), *(["reg_token"] if spec.registers else [])]
        prefix_rows = torch.cat([self._tensor(prefix + name)[0] for name in names]).bfloat16() if names else None
        positions = self._tensor(f"{prefix}pos_embed").to(torch.bfloat16, copy=True).contiguous()
        self._kept += [array, prefix_rows, positions]
        patch = self._matrix(f"{prefix}patch_embed.proj", spec.patches)
        return Tower(
            spec.width, spec.heads, spec.prefix, spec.grid, spec.patch, len(layers), spec.norm_eps, patch,
            address(prefix_rows), address(positions), ctypes.addressof(array),
        )  # fmt: skip

    def _layer(self, spec: TowerSpec, prefix: str) -> TowerLayer:
        matrices = [self._matrix(prefix + name, spec.prefix + spec.patches) for name in LINEARS]
        names = (*NORMS, *LAYER_SCALES) if spec.layer_scale else NORMS
        vectors = [vector(self._tensor(prefix + name), padded(spec.width, BLOCK)) for name in names]
        self._kept += vectors
        return TowerLayer(*matrices, *map(address, vectors))

    def _matrix(self, name: str, rows: int | None = None) -> Matrix:
        weight = self._weights[f"{name}.weight"]
        if isinstance(weight, Tensor):
            flat = weight.flatten(1)
            weight = PackedWeight(Scheme.BF16, (flat.shape[0], flat.shape[1]), None, flat, None)
        made = matrix(weight, self._zero_point, self._tensor(f"{name}.bias"))
        self._planes, self._widest = max(self._planes, planes(made)), max(self._widest, made.k)
        self._kept += made.kept
        self._multiplications += made.n * made.k * (rows or self.spec.patches)
        return made

    def _tensor(self, name: str) -> Tensor:
        tensor = self._weights[name]
        assert isinstance(tensor, Tensor), f"{name} is quantised, expected a tensor"
        return tensor

    def _reserve(self, threads: int) -> None:
        """Workspace for so many threads; it only grows."""
        if threads <= self._threads:
            return
        towers, patches = self.spec.towers, self.spec.patches
        rows, width = max(t.prefix + t.patches for t in towers), max(t.width for t in towers)
        pitch, qkv = padded(width, BLOCK), padded(3 * width, BLOCK)
        hidden = padded(max(t.mlp_width for t in towers), BLOCK)
        patch = padded(3 * max(t.patch for t in towers) ** 2, STEP)
        features = padded(self.spec.vision_width, BLOCK)
        slots, head = padded(rows, BLOCK), max(t.width // t.heads for t in towers)
        sizes = [(rows, pitch), (rows, pitch), (rows, qkv), (rows, pitch), (rows, hidden), (patches, patch)]
        sizes += [(patches, features), *((patches, padded(w, BLOCK)) for w in self.spec.projector_widths[1:])]
        buffers = [torch.zeros(size, dtype=torch.bfloat16) for size in sizes]
        attention = slots * (head + padded(head, BLOCK)) * 2 + TILE * slots * 6  # keys, values, scores, probabilities
        scratch = padded(max(scratch_bytes(rows), attention), BLOCK)
        buffers.append(torch.zeros(threads, scratch, dtype=torch.uint8))
        at = [address(buffer) for buffer in buffers]
        self._integers = int_rows(max(rows, patches), self._widest, self._planes)
        projected = (ctypes.c_void_p * 3)(*at[7:-1])
        self._workspace = VisionWorkspace(
            *at[:7], projected, pitch, qkv, hidden, patch, features, slots, at[-1], scratch, self._integers
        )
        self._buffers, self._threads = buffers, threads  # the workspace points into the buffers
