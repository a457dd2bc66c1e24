"""Many int8 rows times an int8 weight on int8 tensor cores: a prefill, a tower."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile, gemm_tile
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, Int8Weight


def reference(x: Int8Rows, weight: Int8Weight, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """x (M, K), bias (N,) -> (M, N) in `dtype`: exact integer sums, then the row's scale, the output's, the bias."""
    # float64 holds every sum of int8 products exactly, and torch multiplies no integers on a GPU.
    sums = (x.codes.double() @ weight.codes.double().T).float()
    out = sums * x.scales[:, None] * weight.scales.float()
    return (out if bias is None else out + bias.float()).to(dtype)


def kernel(
    x: Int8Rows, weight: Int8Weight, dtype: torch.dtype, bias: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, inner = x.codes.shape
    check_rows(x.codes)
    outer = weight.shape[0]
    assert inner == weight.shape[1], f"{inner} inputs for a weight {weight.shape}"
    assert not x.for_int4, "rows in the order of an int4 weight"
    tile = tile or gemm_tile(Chip.of(x.codes.device), "w8a8")
    out = torch.empty(rows, outer, dtype=dtype, device=x.codes.device)
    _w8a8_gemm[(-(-rows // tile.rows), -(-outer // tile.outputs))](
        x.codes,
        x.scales,
        weight.codes,
        weight.scales,
        weight.scales if bias is None else bias,
        out,
        rows,
        outer,
        inner,
        BIASED=bias is not None,
        EVEN=inner % tile.inner == 0,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        INNER=tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _w8a8_gemm(
    x: tl.tensor,
    row_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    BIASED: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    near = tl.arange(0, INNER)
    real = output < outer
    asks = row < rows
    sums = tl.zeros([OUTPUTS, ROWS], tl.int32)
    for start in range(0, inner, INNER):
        place = start + near
        told = real[:, None] if EVEN else real[:, None] & (place < inner)[None, :]
        seen = asks[None, :] if EVEN else asks[None, :] & (place < inner)[:, None]
        weight = tl.load(codes + output[:, None] * inner + place[None, :], mask=told, other=0)
        values = tl.load(x + row[None, :] * inner + place[:, None], mask=seen, other=0)
        sums = tl.dot(weight, values, sums, out_dtype=tl.int32)
    row_scale = tl.load(row_scales + row, mask=asks, other=0.0)
    scale = tl.load(scales + output, mask=real, other=0.0).to(tl.float32)
    total = sums.to(tl.float32) * row_scale[None, :] * scale[:, None]
    if BIASED:
        total += tl.load(bias + output, mask=real, other=0.0).to(tl.float32)[:, None]
    place = row[None, :] * outer + output[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=real[:, None] & asks[None, :])
