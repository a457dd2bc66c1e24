"""Towers and projector in C: the face of `edge_vla.runtime.vision.TorchVision`, one call an image.

Weights that are stored in 8 bits stay so in memory. Knows shapes, structures of vision.c and who owns their memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from edge_vla.checkpoint.keys import TOWER_PREFIXES
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.native.decoder import TILE
from edge_vla.runtime.cpu.native.layout import BLOCK, PIECE, STEP, Matrix, address, fits, matrix, vector
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.cpu.native.team import Team
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec, TowerSpec

LINEARS: Final = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
VECTORS: Final = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.scale_factor", "ls2.scale_factor")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "proj", "fc1", "fc2")),
        *((name, ctypes.c_void_p) for name in ("norm1", "norm1_bias", "norm2", "norm2_bias", "gain1", "gain2")),
    )


class _Tower(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("width", "heads", "prefix", "grid", "side", "layers")),
        ("norm_eps", ctypes.c_double),
        ("patch", Matrix),
        *((name, ctypes.c_void_p) for name in ("first", "positions", "layer")),
    )


class _Vision(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("towers", "linears")),
        *((name, ctypes.c_void_p) for name in ("tower", "linear")),
    )


class _Desk(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "normed", "qkv", "mixed", "hidden", "patches", "features")),
        ("projected", ctypes.c_void_p * 3),
        *((f"{name}pitch", ctypes.c_int64) for name in ("", "qkv_", "hidden_", "patches_", "features_")),
        ("slots", ctypes.c_int64),
        ("own", ctypes.c_void_p),
        ("own_bytes", ctypes.c_int64),
    )


Weights = Mapping[str, PackedWeight | Tensor]


def vision_fits(spec: PolicySpec, weights: Weights) -> bool:
    """Whether C can run them: heads in fours, formats it knows."""
    heads = all(tower.width // tower.heads % STEP == 0 for tower in spec.towers)
    return heads and all(fits(weight) for weight in weights.values() if isinstance(weight, PackedWeight))


class NativeVision:
    """Pixel values (B, 3 x towers, H, W) float32 -> image embeddings (B, patches, decoder width) bfloat16.

    These are lent: the next call overwrites them.
    """

    def __init__(self, spec: PolicySpec, weights: Weights) -> None:
        compiled = library()
        assert compiled is not None, "ask `fast` or `library` first"
        self.spec, self._call, self._weights = spec, compiled.edge_vla_see, weights
        self._kept, self._multiplications = list[object](), 0
        towers = [self._tower(tower, prefix) for tower, prefix in zip(spec.towers, TOWER_PREFIXES, strict=False)]
        linears = [self._matrix(f"projector.fc{i + 1}") for i in range(len(spec.projector_widths) - 1)]
        tower_array, linear_array = (_Tower * len(towers))(*towers), (Matrix * len(linears))(*linears)
        self._kept += [tower_array, linear_array]
        self._vision = _Vision(len(towers), len(linears), ctypes.addressof(tower_array), ctypes.addressof(linear_array))
        self._weights = {}
        self._team, self._members = Team(), 0
        self._desk, self._buffers = _Desk(), list[Tensor]()
        self._pixels = self._out = torch.empty(0)

    @property
    def bytes(self) -> int:
        """Of the weights, as they lie in memory."""
        tensors = [kept for kept in self._kept if isinstance(kept, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)

    @torch.inference_mode()  # its buffers were made in it, and may only be written in it
    def __call__(self, pixels: Tensor) -> Tensor:
        self._reach(torch.get_num_threads())
        width, batch = self.spec.decoder.width, pixels.shape[0]
        if self._out.shape[0] < batch:
            self._pixels = torch.empty_like(pixels, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
            self._out = torch.empty(batch, self.spec.patches, width, dtype=torch.bfloat16)
        self._pixels[:batch] = pixels
        for image, embeddings in zip(self._pixels[:batch], self._out, strict=False):
            given = (
                ctypes.byref(self._vision), ctypes.byref(self._desk), ctypes.c_void_p(image.data_ptr()),
                ctypes.c_int64(image.shape[-1]), ctypes.c_void_p(embeddings.data_ptr()), ctypes.c_int64(width),
            )  # fmt: skip
            self._team.run(lambda *member, given=given: self._call(*given, *member), self._multiplications)
        return self._out[:batch]

    def _tower(self, spec: TowerSpec, prefix: str) -> _Tower:
        layers = [self._layer(spec, f"{prefix}blocks.{index}.") for index in range(spec.used_blocks)]
        array = (_Layer * len(layers))(*layers)
        rows = [self._tensor(prefix + name)[0] for name in self._first_rows(spec)]
        first = torch.cat(rows).bfloat16().contiguous() if rows else None
        positions = self._tensor(f"{prefix}pos_embed").to(torch.bfloat16, copy=True).contiguous()
        self._kept += [array, first, positions]
        patch = self._matrix(f"{prefix}patch_embed.proj", spec.patches)
        return _Tower(
            spec.width, spec.heads, spec.prefix, spec.grid, spec.patch, len(layers), spec.norm_eps, patch,
            address(first), address(positions), ctypes.addressof(array),
        )  # fmt: skip

    @staticmethod
    def _first_rows(spec: TowerSpec) -> Iterator[str]:
        if spec.class_token:
            yield "cls_token"
        if spec.registers:
            yield "reg_token"

    def _layer(self, spec: TowerSpec, prefix: str) -> _Layer:
        rows = spec.prefix + spec.patches
        matrices = [self._matrix(prefix + name, rows) for name in LINEARS]
        vectors = [
            vector(self._tensor(prefix + name), padded(spec.width, BLOCK))
            for name in (VECTORS if spec.layer_scale else VECTORS[:4])
        ]
        self._kept += vectors
        addresses = [address(one) for one in vectors] + [None] * (len(VECTORS) - len(vectors))
        return _Layer(*matrices, *addresses)

    def _matrix(self, name: str, rows: int | None = None) -> Matrix:
        weight = self._weights[f"{name}.weight"]
        if isinstance(weight, Tensor):
            flat = weight.flatten(1)
            weight = PackedWeight(Scheme.BF16, (flat.shape[0], flat.shape[1]), None, flat, None)
        made = matrix(weight, self._tensor(f"{name}.bias"))
        self._kept += made.kept
        self._multiplications += made.outer * made.inner * (rows or self.spec.patches)
        return made

    def _tensor(self, name: str) -> Tensor:
        tensor = self._weights[name]
        assert isinstance(tensor, Tensor), f"{name} is no matrix"
        return tensor

    def _reach(self, members: int) -> None:
        """Buffers for so many threads, made anew only when there are more than before."""
        if members <= self._members:
            return
        towers, patches = self.spec.towers, self.spec.patches
        rows, width = max(t.prefix + t.patches for t in towers), max(t.width for t in towers)
        pitch, qkv = padded(width, BLOCK), padded(3 * width, BLOCK)
        hidden = padded(max(t.mlp_width for t in towers), BLOCK)
        cut = padded(3 * max(t.patch for t in towers) ** 2, STEP)
        features = padded(self.spec.vision_width, BLOCK)
        slots, head = padded(rows, BLOCK), max(t.width // t.heads for t in towers)
        sizes = [(rows, pitch), (rows, pitch), (rows, qkv), (rows, pitch), (rows, hidden), (patches, cut)]
        sizes += [(patches, features), *((patches, padded(w, BLOCK)) for w in self.spec.projector_widths[1:])]
        buffers = [torch.zeros(size, dtype=torch.bfloat16) for size in sizes]
        memory = slots * (head + padded(head, BLOCK)) * 2 + TILE * slots * 6
        own = padded(max(PIECE * BLOCK * 2 + rows * BLOCK * 4, memory), BLOCK)
        buffers.append(torch.zeros(members, own, dtype=torch.uint8))
        at = [address(buffer) for buffer in buffers]
        projected = (ctypes.c_void_p * 3)(*at[7:-1])
        self._desk = _Desk(*at[:7], projected, pitch, qkv, hidden, cut, features, slots, at[-1], own)
        self._buffers, self._members = buffers, members
