"""Many rows times an int8 weight: a prefill whose activations are not rounded. Codes become 16-bit in registers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile, gemm_tile
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, restore_int8


def reference(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type."""
    return F.linear(x.float(), dequantise(restore_int8(weight))).to(x.dtype)


def kernel(x: Tensor, weight: Int8Weight, tile: Tile | None = None) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, inner = x.shape
    check_rows(x)
    outer = weight.shape[0]
    assert inner == weight.shape[1], f"{inner} inputs for a weight {weight.shape}"
    tile = tile or gemm_tile(Chip.of(x.device), "w8a16")
    out = torch.empty(rows, outer, dtype=x.dtype, device=x.device)
    _w8a16_gemm[(-(-rows // tile.rows), -(-outer // tile.outputs))](
        x,
        weight.codes,
        weight.scales,
        out,
        rows,
        outer,
        inner,
        EVEN=inner % tile.inner == 0,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        INNER=tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _w8a16_gemm(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    near = tl.arange(0, INNER)
    real = output < outer
    asks = row < rows
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, inner, INNER):
        place = start + near
        told = real[:, None] if EVEN else real[:, None] & (place < inner)[None, :]
        seen = asks[None, :] if EVEN else asks[None, :] & (place < inner)[:, None]
        weight = tl.load(codes + output[:, None] * inner + place[None, :], mask=told, other=0)
        values = tl.load(x + row[None, :] * inner + place[:, None], mask=seen, other=0.0)
        total = tl.dot(weight.to(TYPE), values, total)
    scale = tl.load(scales + output, mask=real, other=0.0).to(tl.float32)
    place = row[None, :] * outer + output[:, None]
    tl.store(out + place, (total * scale[:, None]).to(TYPE), mask=real[:, None] & asks[None, :])
