"""A few rows times an int8 weight: a decode step, a verifying pass. Made as `w4a16_gemv` is; one scale an output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Tile, gemv_tile, splits
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, restore_int8


def reference(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int8(weight)))[None]


def kernel(x: Tensor, weight: Int8Weight, tile: Tile | None = None) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    rows, inner = x.shape
    check_rows(x)
    outer = weight.shape[0]
    assert rows <= GEMV_ROWS, f"{rows} rows: a gemv kernel takes at most {GEMV_ROWS}"
    assert inner == weight.shape[1], f"{inner} inputs for a weight {weight.shape}"
    chip = Chip.of(x.device)
    tile = tile or gemv_tile(chip, 8, outer)
    blocks = -(-inner // tile.inner)
    parts, each = splits(chip, tile, outer, blocks)
    out = torch.empty(parts, rows, outer, dtype=torch.float32, device=x.device)
    _w8a16_gemv[(-(-outer // tile.outputs), parts)](
        x,
        weight.codes,
        weight.scales,
        out,
        rows,
        outer,
        inner,
        blocks,
        each,
        EVEN=inner % tile.inner == 0,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        INNER=tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _w8a16_gemv(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    blocks: tl.tensor,
    each: tl.tensor,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    near = tl.arange(0, INNER)
    real = output < outer
    asks = row < rows
    first = tl.program_id(1) * each
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for block in range(first, tl.minimum(first + each, blocks)):
        place = block * INNER + near
        told = real[:, None] if EVEN else real[:, None] & (place < inner)[None, :]
        seen = asks[None, :] if EVEN else asks[None, :] & (place < inner)[:, None]
        weight = tl.load(codes + output[:, None] * inner + place[None, :], mask=told, other=0)
        values = tl.load(x + row[None, :] * inner + place[:, None], mask=seen, other=0.0)
        total = tl.dot(weight.to(TYPE), values, total)
    scale = tl.load(scales + output, mask=real, other=0.0).to(tl.float32)
    place = (tl.program_id(1) * rows + row[None, :]) * outer + output[:, None]
    tl.store(out + place, total * scale[:, None], mask=real[:, None] & asks[None, :])
