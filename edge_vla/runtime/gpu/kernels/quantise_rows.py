"""Rows of activations to int8, one scale a row."""

from __future__ import annotations

from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, store_int8, warps_of
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, empty_rows, quantised


def reference(x: Tensor, *, for_int4: bool = False) -> Int8Rows:
    """x (M, K) 16-bit -> codes and scales; a row that is not finite gets scale infinity."""
    return quantised(x, for_int4=for_int4)


def kernel(x: Tensor, *, for_int4: bool = False) -> Int8Rows:
    """What `reference` computes, in one launch."""
    rows, width = x.shape
    check_rows(x)
    out = empty_rows(rows, width, x.device, for_int4=for_int4)
    block = block_of(out.codes.shape[1])
    _quantise_rows[(rows,)](
        x,
        out.codes,
        out.scales,
        WIDTH=width,
        STRIDE=out.codes.shape[1],
        FOR_INT4=for_int4,
        BLOCK=block,
        num_warps=warps_of(block),
    )
    return out


@jit
def _quantise_rows(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    values = tl.load(x + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    store_int8(codes, scales, values, row, column, STRIDE, FOR_INT4)
