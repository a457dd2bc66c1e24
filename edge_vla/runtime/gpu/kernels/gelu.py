"""The exact GELU of a tower's MLP and of the projector, with the product's bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, rounded, store_int8, warps_of
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, empty_rows, quantised

CHUNK = 1024  # outputs of a program where rows need not be whole


def reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, F), bias (F,) -> (M, F) of x's type; the biased row is rounded to it first."""
    biased = x if bias is None else x + bias
    return F.gelu(biased.float()).to(x.dtype)


def reference_int8(x: Tensor, bias: Tensor | None, *, for_int4: bool = False) -> Int8Rows:
    """`reference`, its rows rounded to int8."""
    return quantised(reference(x, bias), for_int4=for_int4)


def kernel(x: Tensor, bias: Tensor | None) -> Tensor:
    """What `reference` computes, in one launch."""
    out = torch.empty_like(x)
    _launch(x, bias, out, None, min(CHUNK, block_of(x.shape[1])))
    return out


def kernel_int8(x: Tensor, bias: Tensor | None, *, for_int4: bool = False) -> Int8Rows:
    """What `reference_int8` computes, in one launch."""
    out = empty_rows(x.shape[0], x.shape[1], x.device, for_int4=for_int4)
    _launch(x, bias, out.codes, out, block_of(out.codes.shape[1]))
    return out


def _launch(x: Tensor, bias: Tensor | None, out: Tensor, int8: Int8Rows | None, block: int) -> None:
    rows, width = x.shape
    check_rows(x)
    _gelu[(rows, -(-width // block))](
        x,
        x if bias is None else bias,
        out,
        out if int8 is None else int8.scales,
        BIASED=bias is not None,
        WIDTH=width,
        STRIDE=out.shape[1],
        INT8=int8 is not None,
        FOR_INT4=int8 is not None and int8.for_int4,
        BLOCK=block,
        num_warps=warps_of(block),
    )


@jit
def _gelu(
    x: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < WIDTH
    values = tl.load(x + row * WIDTH + column, mask=real, other=0.0).to(tl.float32)
    if BIASED:
        values = rounded(values + tl.load(bias + column, mask=real, other=0.0).to(tl.float32), TYPE)
    values = rounded(0.5 * values * (1.0 + tl.math.erf(values * 0.7071067811865476)), TYPE)
    if INT8:
        store_int8(out, scales, values, row, column, STRIDE, FOR_INT4)
    else:
        tl.store(out + row * WIDTH + column, values.to(TYPE), mask=real)
