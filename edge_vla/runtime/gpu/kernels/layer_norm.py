"""A tower's residual stream and its norm in one pass: adds a product's output, its bias and layer scale, and norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    row_format: RowFormat = PLAIN,
) -> tuple[Tensor, Rows]:
    """x (M, D); added (M, D) or parts (S, M, D) float32; the rest (D,) -> x + layer_scale (added + bias), and its norm.

    The sum has x's type, the norm `row_format`. Rounds where `model.vision` does: after the product, the bias, the
    layer scale, the sum, the norm.
    Without `added` there is no bias and no layer scale, and the sum is x itself.
    """
    total = x
    if added is not None:
        assert bias is not None, "a product's output comes with its bias"
        step = summed(added, x.dtype) + bias
        total = x + (step if layer_scale is None else step * layer_scale)
    normed = F.layer_norm(total.float(), (x.shape[1],), weight.float(), shift.float(), eps)
    return total, in_format(normed.to(x.dtype), row_format)


def kernel(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    row_format: RowFormat = PLAIN,
) -> tuple[Tensor, Rows]:
    """What `reference` computes, in one launch."""
    m, width = x.shape
    assert (added is None) == (bias is None), "a product's output comes with its bias"
    check_rows(x, weight, shift, *([] if added is None else [added]))
    total = x if added is None else torch.empty_like(x)
    normed = empty_rows(m, width, x.dtype, x.device, row_format)
    block = block_of(stride_of(normed))
    _layer_norm[(m,)](
        x,
        x if added is None else added,
        x if bias is None else bias,
        x if layer_scale is None else layer_scale,
        weight,
        shift,
        total,
        *pointers(normed),
        eps,
        m,
        ADDED=added is not None,
        PARTS=1 if added is None else parts_of(added),
        SCALED=layer_scale is not None,
        WIDTH=width,
        **layout(normed),
        BLOCK=block,
        num_warps=warps_of(block),
        enable_fp_fusion=False,  # as `attention.turned` asks
        **overlap(x.device),
    )
    return total, normed


@jit
def _layer_norm(
    x: tl.tensor,
    added: tl.tensor,
    bias: tl.tensor,
    layer_scale: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    rows: tl.tensor,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    wait_for_inputs(EARLY)
    values = tl.load(x + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        step = rounded(sum_of(added, row * WIDTH + column, mask, rows * WIDTH, PARTS), TYPE)
        step = rounded(step + tl.load(bias + column, mask=mask, other=0.0).to(tl.float32), TYPE)
        if SCALED:
            step = rounded(step * tl.load(layer_scale + column, mask=mask, other=0.0).to(tl.float32), TYPE)
        values = rounded(values + step, TYPE)
        tl.store(total + row * WIDTH + column, values.to(TYPE), mask=mask)
    centred = tl.where(mask, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    scale = tl.math.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    gain = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    values = rounded(centred * scale * gain + tl.load(shift + column, mask=mask, other=0.0).to(tl.float32), TYPE)
    store_row(out, scales, values, row, column, WIDTH, STRIDE, INT8, FOR_INT4)
