"""The decoder's residual stream and its norm in one pass: adds what a product left, writes the next product's input."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import (
    block_of,
    layout,
    parts_of,
    pointers,
    rounded,
    store_row,
    stride_of,
    sum_of,
    warps_of,
)
from edge_vla.runtime.gpu.kernels.weights import PLAIN, RowFormat, Rows, empty_rows, in_format, summed


def reference(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, row_format: RowFormat = PLAIN
) -> tuple[Tensor, Rows]:
    """x (M, D), added (M, D) or parts (S, M, D) float32 -> the sum (M, D) of x's type, and its norm in `row_format`.

    Rounds where `model.decoder` does: the product, the sum, the normalised row, the row times the weight.
    """
    total = x if added is None else x + summed(added, x.dtype)
    full = total.float()
    full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    return total, in_format(weight * full.to(x.dtype), row_format)


def kernel(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, row_format: RowFormat = PLAIN
) -> tuple[Tensor, Rows]:
    """What `reference` computes, in one launch."""
    m, width = x.shape
    check_rows(x, weight, *([] if added is None else [added]))
    total = x if added is None else torch.empty_like(x)
    normed = empty_rows(m, width, x.dtype, x.device, row_format)
    block = block_of(stride_of(normed))
    _rms_norm[(m,)](
        x,
        x if added is None else added,
        weight,
        total,
        *pointers(normed),
        eps,
        m,
        ADDED=added is not None,
        PARTS=1 if added is None else parts_of(added),
        WIDTH=width,
        **layout(normed),
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(x.device),
    )
    return total, normed


@jit
def _rms_norm(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    rows: tl.tensor,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    norm_row(
        x, added, weight, total, out, scales, eps, tl.program_id(0), rows,
        ADDED, PARTS, WIDTH, STRIDE, INT8, FOR_INT4, BLOCK, EARLY,
    )  # fmt: skip


@jit
def norm_row(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One row: the sum to `total`, its norm to `out`."""
    TYPE: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    gain = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    values = tl.load(x + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        step = sum_of(added, row * WIDTH + column, mask, rows * WIDTH, PARTS)
        values = rounded(values + rounded(step, TYPE), TYPE)
        tl.store(total + row * WIDTH + column, values.to(TYPE), mask=mask)
    scale = tl.math.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    values = rounded(gain * rounded(values * scale, TYPE), TYPE)
    store_row(out, scales, values, row, column, WIDTH, STRIDE, INT8, FOR_INT4)
