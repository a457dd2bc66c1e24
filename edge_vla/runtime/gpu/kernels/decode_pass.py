"""A pass of up to eight rows through all layers in one launch, in place of eight a layer.

Where all programs can be resident (a device), the launch is cooperative and a barrier lies between phases; elsewhere
each phase is a launch. Which programs work on a product decides no bit: its tile and its splits do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.runtime.gpu.kernels import activations, pass_attention, rms_norm, w4a16, w8, w16
from edge_vla.runtime.gpu.kernels.attention import LEAST
from edge_vla.runtime.gpu.kernels.decode_phases import PHASES, POINTERS, _decode_pass
from edge_vla.runtime.gpu.kernels.grid import OPEN, POLLS
from edge_vla.runtime.gpu.kernels.language import check_rows, cooperative
from edge_vla.runtime.gpu.kernels.nibbles import MAGIC, assembly, scale_k
from edge_vla.runtime.gpu.kernels.pass_attention import SLOTS, SPLITS, Scratch
from edge_vla.runtime.gpu.kernels.row_kernel import block_of
from edge_vla.runtime.gpu.kernels.tiles import (
    GEMV_ROWS,
    PASS_PROGRAMS,
    PASS_REGISTERS,
    PASS_WARPS,
    Chip,
    Tile,
    pass_tile,
    split_k,
)
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, Int8Weight, Weight
from edge_vla.runtime.gpu.kernels.widen import widening


@dataclass(frozen=True, slots=True)
class PassLayer:
    """A layer's products (qkv, o_proj, gate_up, down_proj) and the norms before the first and before the third."""

    products: tuple[Weight, Weight, Weight, Weight]
    norms: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class PassNetwork:
    """What every pass reads beside its rows and the cache; `make` fills the table."""

    layers: tuple[PassLayer, ...]
    norm: Tensor  # (width,)
    eps: float
    cos: Tensor  # (positions, head width)
    sin: Tensor
    scratch: Scratch
    table: Tensor  # (layers + 1, POINTERS) int64, addresses
    barrier: Tensor  # (2,) int64: a counter, and 1 once a program has waited too long

    @staticmethod
    def make(
        layers: Sequence[PassLayer], norm: Tensor, eps: float, cos: Tensor, sin: Tensor, scratch: Scratch
    ) -> PassNetwork:
        """BackendError where a layer's formats or shapes are not those of the first."""
        kinds = [tuple(map(_format, layer.products)) for layer in layers]
        for index, found in enumerate(kinds):
            if found != kinds[0]:
                raise BackendError(f"layer {index}'s products are {found}, the first one's {kinds[0]}")
        rows = [[at for one in layer.products for at in _addresses(one)] for layer in layers]
        rows = [row + [one.data_ptr() for one in layer.norms] for row, layer in zip(rows, layers, strict=True)]
        rows.append([norm.data_ptr()] * POINTERS)
        table = torch.tensor(rows, dtype=torch.int64).to(norm.device)
        barrier = torch.zeros(2, dtype=torch.int64, device=norm.device)
        return PassNetwork(tuple(layers), norm, eps, cos, sin, scratch, table, barrier)

    def gave_up(self) -> bool:
        """Whether programs waited in vain for each other since this was last asked. Waits for the device."""
        if not bool(self.barrier[1]):
            return False
        self.barrier.zero_()
        self.scratch.tickets.zero_()  # the chain's too, which would add up parts that are not there yet
        return True

    @property
    def bytes(self) -> int:
        return self.table.nbytes + self.barrier.nbytes


def reference(x: Tensor, network: PassNetwork, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """x (M <= 8, D), keys and values (layers, Hkv, slots, d) -> normed hidden rows (M, D).

    start (1,) int32 on the device: the first row's position. Each step as its own kernel's reference has it.
    """
    stream, added = x, None
    for index, layer in enumerate(network.layers):
        qkv, o_proj, gate_up, down_proj = layer.products
        stream, normed = rms_norm.reference(stream, added, layer.norms[0], network.eps)
        cache = keys[index], values[index]
        parts = _times(normed, qkv)
        mixed = pass_attention.reference(parts, network.cos, network.sin, start, *cache, network.scratch)
        stream, normed = rms_norm.reference(stream, _times(mixed, o_proj), layer.norms[1], network.eps)
        added = _times(activations.reference_swiglu(_times(normed, gate_up), x.dtype), down_proj)
    hidden = rms_norm.reference(stream, added, network.norm, network.eps)[1]
    assert isinstance(hidden, Tensor), "16-bit rows were asked for"
    return hidden


def kernel(
    x: Tensor,
    network: PassNetwork,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Sequence[Tile] | None = None,
    programs: int | None = None,
) -> Tensor:
    """What `reference` computes, in one launch on a device; `tiles` of the four products, `programs` in all."""
    (m, width), (_, kv_heads, _, head_width) = x.shape, keys.shape
    check_rows(x)
    assert m <= GEMV_ROWS, f"{m} rows: a pass takes at most {GEMV_ROWS}"
    assert keys.stride() == values.stride(), "keys and values share their strides"
    assert keys.stride()[2:] == (head_width, 1), "the slots of a head must be contiguous"
    chip, together = Chip.of(x.device), cooperative(x.device)
    weights = network.layers[0].products
    tiles = tiles or [pass_tile(chip, *_format(weight)[:3]) for weight in weights]
    split = [split_k(chip, tile, one.shape[0], _blocks(one, tile)) for one, tile in zip(weights, tiles, strict=True)]
    heads = weights[1].shape[1] // head_width
    normed, stream, mixed = torch.empty_like(x), torch.empty_like(x), x.new_empty(m, heads * head_width)
    gated = x.new_empty(m, weights[3].shape[1])
    most = max(splits * weight.shape[0] for weight, (splits, _) in zip(weights, split, strict=True))
    parts = torch.empty(most * m, dtype=torch.float32, device=x.device)
    programs = programs or PASS_PROGRAMS * chip.sm_count
    buffers = x, stream, normed, mixed, gated, parts
    tables = network.table, network.cos, network.sin, start, keys, values
    numbers = keys.stride(0), keys.stride(1), network.eps, math.log2(math.e) / math.sqrt(head_width)
    last = len(network.layers) * PHASES + 1
    for first, end in [(0, last)] if together else [(at, at + 1) for at in range(last)]:
        _decode_pass[(programs,)](
            *(*buffers, *tables, network.scratch.sums, network.scratch.tickets, network.barrier),
            *(m, first, end, *numbers, *(blocks_each for _, blocks_each in split)),
            **_constants(weights, tiles, [splits for splits, _ in split]),
            HEADS=heads,
            KV_HEADS=kv_heads,
            HEAD_WIDTH=head_width,
            HALF=max(LEAST, block_of(head_width // 2)),
            WIDTH=width,
            NORM_BLOCK=block_of(width),
            CHUNK=min(activations.CHUNK, block_of(gated.shape[1])),
            MAGIC=MAGIC[x.dtype][0],
            OFFSET=MAGIC[x.dtype][1],
            ASSEMBLY=assembly(x.dtype, x.device),
            WIDENING=widening(x.dtype, x.device),
            PROGRAMS=programs,
            TOGETHER=together,
            num_stages=min(tile.stages for tile in tiles),
            **FIXED,
            launch_cooperative_grid=together,
        )
    return normed


FIXED: Final[Mapping[str, Any]] = {
    "SLOTS": SLOTS,
    "ATTENTION_SPLITS": SPLITS,
    "ROWS": GEMV_ROWS,
    "PHASES": PHASES,
    "POINTERS": POINTERS,
    "POLLS": POLLS,
    "OPEN": OPEN,
    "num_warps": PASS_WARPS,
    "maxnreg": PASS_REGISTERS,
    "enable_fp_fusion": False,  # as `attention.turned` asks
}


def _constants(
    weights: Sequence[Weight], tiles: Sequence[Tile], splits: Sequence[int]
) -> dict[str, tuple[str | int, ...]]:
    """Of each product, in the order that `decode_phases` says."""
    made = list[tuple[str | int, ...]]()
    for weight, tile, split in zip(weights, tiles, splits, strict=True):
        kind, n, k, group = _format(weight)
        shared = scale_k(group) if kind == "w4a16" else 0
        made.append((kind, n, k, group, shared, tile.block_n, tile.block_k, split))
    return dict(zip(("QKV", "O_PROJ", "GATE_UP", "DOWN"), made, strict=True))


def _blocks(weight: Weight, tile: Tile) -> int:
    return -(-weight.shape[1] // tile.block_k)


def _format(weight: Weight) -> tuple[str, int, int, int]:
    """Its kernel, outputs, inputs, and inputs that share a scale."""
    n, k = weight.shape
    if isinstance(weight, Int4Weight):
        return "w4a16", n, k, weight.group
    return "w8a16" if isinstance(weight, Int8Weight) else "w16", n, k, k


def _addresses(weight: Weight) -> tuple[int, int]:
    """Of codes and scales; a 16-bit weight has no scales, and the kernel reads none."""
    if isinstance(weight, Tensor):
        check_rows(weight)
        return weight.data_ptr(), weight.data_ptr()
    return weight.codes.data_ptr(), weight.scales.data_ptr()


def _times(rows: Any, weight: Weight) -> Tensor:
    if isinstance(weight, Int4Weight):
        return w4a16.reference_gemv(rows, weight)
    return w8.reference_a16_gemv(rows, weight) if isinstance(weight, Int8Weight) else w16.reference_gemv(rows, weight)
