"""A tower's residual stream and its norm in one pass: what a product added, its bias and layer scale, the norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, rounded, store_int8, warps_of
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, empty_rows, quantised


def reference(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x, added (M, D); the rest (D,) -> x + layer_scale (added + bias), and its norm, both (M, D) of x's type.

    Rounds where `model.vision` does: after the bias, after the layer scale, after the sum, after the norm.
    Without `added` there is nothing for a bias or a layer scale to act on, and the sum is x itself.
    """
    total = x
    if added is not None:
        step = added if bias is None else added + bias
        total = x + (step if layer_scale is None else step * layer_scale)
    normed = F.layer_norm(total.float(), (x.shape[1],), weight.float(), shift.float(), eps)
    return total, normed.to(x.dtype)


def reference_int8(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    *,
    for_int4: bool = False,
) -> tuple[Tensor, Int8Rows]:
    """`reference`, its normed rows rounded to int8."""
    total, normed = reference(x, added, bias, layer_scale, weight, shift, eps)
    return total, quantised(normed, for_int4=for_int4)


def kernel(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """What `reference` computes, in one launch."""
    normed = torch.empty_like(x)
    return _launch(x, added, bias, layer_scale, weight, shift, eps, normed, None), normed


def kernel_int8(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    *,
    for_int4: bool = False,
) -> tuple[Tensor, Int8Rows]:
    """What `reference_int8` computes, in one launch."""
    rows = empty_rows(x.shape[0], x.shape[1], x.device, for_int4=for_int4)
    return _launch(x, added, bias, layer_scale, weight, shift, eps, rows.codes, rows), rows


def _launch(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    normed: Tensor,
    int8: Int8Rows | None,
) -> Tensor:
    rows, width = x.shape
    check_rows(x, weight, shift, *([] if added is None else [added]))
    total = x if added is None else torch.empty_like(x)
    block = block_of(normed.shape[1])
    _layer_norm[(rows,)](
        x,
        x if added is None else added,
        x if bias is None else bias,
        x if layer_scale is None else layer_scale,
        weight,
        shift,
        total,
        normed,
        normed if int8 is None else int8.scales,
        eps,
        ADDED=added is not None,
        BIASED=bias is not None,
        SCALED=layer_scale is not None,
        WIDTH=width,
        STRIDE=normed.shape[1],
        INT8=int8 is not None,
        FOR_INT4=int8 is not None and int8.for_int4,
        BLOCK=block,
        num_warps=warps_of(block),
    )
    return total


@jit
def _layer_norm(
    x: tl.tensor,
    added: tl.tensor,
    bias: tl.tensor,
    layer_scale: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    ADDED: tl.constexpr,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
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
        step = tl.load(added + row * WIDTH + column, mask=real, other=0.0).to(tl.float32)
        if BIASED:
            step = rounded(step + tl.load(bias + column, mask=real, other=0.0).to(tl.float32), TYPE)
        if SCALED:
            step = rounded(step * tl.load(layer_scale + column, mask=real, other=0.0).to(tl.float32), TYPE)
        values = rounded(values + step, TYPE)
        tl.store(total + row * WIDTH + column, values.to(TYPE), mask=real)
    away = tl.where(real, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    scale = tl.math.rsqrt(tl.sum(away * away, axis=0) / WIDTH + eps)
    gain = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    values = rounded(away * scale * gain + tl.load(shift + column, mask=real, other=0.0).to(tl.float32), TYPE)
    if INT8:
        store_int8(normed, scales, values, row, column, STRIDE, FOR_INT4)
    else:
        tl.store(normed + row * WIDTH + column, values.to(TYPE), mask=real)
