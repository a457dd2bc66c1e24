"""Rows of activations to int8, one scale per row."""

from __future__ import annotations

from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, layout, pointers, store_row, stride_of, warps_of
from edge_vla.runtime.gpu.kernels.weights import RowFormat, Rows, empty_rows, in_format


def reference(x: Tensor, row_format: RowFormat) -> Rows:
    """x (M, K) 16-bit -> codes and scales; a row that is not finite gets scale infinity."""
    return in_format(x, row_format)


def kernel(x: Tensor, row_format: RowFormat) -> Rows:
    """What `reference` computes, in one launch."""
    m, width = x.shape
    check_rows(x)
    out = empty_rows(m, width, x.dtype, x.device, row_format)
    block = block_of(stride_of(out))
    _quantise_rows[(m,)](
        x,
        *pointers(out),
        WIDTH=width,
        **layout(out),
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(x.device),
    )
    return out


@jit
def _quantise_rows(
    x: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    wait_for_inputs(EARLY)
    values = tl.load(x + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    store_row(out, scales, values, row, column, WIDTH, STRIDE, INT8, FOR_INT4)
