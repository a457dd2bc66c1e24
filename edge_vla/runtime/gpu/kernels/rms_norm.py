"""The residual stream and its norm in one pass: what a product added, and the next product's input."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, parts_of, rounded, store_int8, sum_of, warps_of
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, empty_rows, quantised, summed


def reference(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (M, D), added (M, D) or parts (S, M, D) float32 -> the sum, and its norm, both (M, D) of x's type.

    Rounds where `model.decoder` does: the product, the sum, the normalised row, the row times the weight.
    """
    total = x if added is None else x + summed(added, x.dtype)
    wide = total.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return total, weight * wide.to(x.dtype)


def reference_int8(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, *, for_int4: bool = False
) -> tuple[Tensor, Int8Rows]:
    """`reference`, its normed rows rounded to int8."""
    total, normed = reference(x, added, weight, eps)
    return total, quantised(normed, for_int4=for_int4)


def kernel(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What `reference` computes, in one launch."""
    normed = torch.empty_like(x)
    return _launch(x, added, weight, eps, normed, None), normed


def kernel_int8(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, *, for_int4: bool = False
) -> tuple[Tensor, Int8Rows]:
    """What `reference_int8` computes, in one launch."""
    rows = empty_rows(x.shape[0], x.shape[1], x.device, for_int4=for_int4)
    return _launch(x, added, weight, eps, rows.codes, rows), rows


def _launch(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, normed: Tensor, int8: Int8Rows | None
) -> Tensor:
    rows, width = x.shape
    check_rows(x, weight, *([] if added is None else [added]))
    total = x if added is None else torch.empty_like(x)
    block = block_of(normed.shape[1])
    _rms_norm[(rows,)](
        x,
        x if added is None else added,
        weight,
        total,
        normed,
        normed if int8 is None else int8.scales,
        eps,
        ADDED=added is not None,
        PARTS=1 if added is None else parts_of(added),
        ROWS=rows,
        WIDTH=width,
        STRIDE=normed.shape[1],
        INT8=int8 is not None,
        FOR_INT4=int8 is not None and int8.for_int4,
        BLOCK=block,
        num_warps=warps_of(block),
    )
    return total


@jit
def _rms_norm(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    values = tl.load(x + row * WIDTH + column, mask=real, other=0.0).to(tl.float32)
    if ADDED:
        step = sum_of(added, row * WIDTH + column, real, ROWS * WIDTH, PARTS)
        values = rounded(values + rounded(step, TYPE), TYPE)
        tl.store(total + row * WIDTH + column, values.to(TYPE), mask=real)
    scale = tl.math.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    gain = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    values = rounded(gain * rounded(values * scale, TYPE), TYPE)
    if INT8:
        store_int8(normed, scales, values, row, column, STRIDE, FOR_INT4)
    else:
        tl.store(normed + row * WIDTH + column, values.to(TYPE), mask=real)
