"""The activation functions between two products: SwiGLU of the decoder's MLP, GELU of a tower's."""

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

CHUNK = 1024  # outputs of a program where it need not hold a whole row


def reference_swiglu(gate_up: Tensor, dtype: torch.dtype, row_format: RowFormat = PLAIN) -> Rows:
    """gate and up side by side (M, 2 F), or parts (S, M, 2 F) float32 -> silu(gate) * up (M, F) in `row_format`.

    Rounds to `dtype` where `model.decoder` does: both products, the activated gate, its product with up.
    """
    gate, up = summed(gate_up, dtype).chunk(2, dim=-1)
    return in_format(F.silu(gate) * up, row_format)


def kernel_swiglu(gate_up: Tensor, dtype: torch.dtype, row_format: RowFormat = PLAIN) -> Rows:
    """What `reference_swiglu` computes, in one launch."""
    check_rows(gate_up)
    m, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    out = empty_rows(m, width, dtype, gate_up.device, row_format)
    block = _block(out, row_format)
    typed = torch.empty(0, dtype=dtype, device=gate_up.device)
    _swiglu[(m, -(-width // block))](
        gate_up,
        typed,
        *pointers(out),
        m,
        PARTS=parts_of(gate_up),
        WIDTH=width,
        **layout(out),
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(gate_up.device),
    )
    return out


def reference_gelu(x: Tensor, bias: Tensor, row_format: RowFormat = PLAIN) -> Rows:
    """x (M, F) or parts (S, M, F) float32, bias (F,) -> the exact GELU of x + bias (M, F), in `row_format`.

    Rounds to the bias's type after the product, the bias, the GELU.
    """
    return in_format(F.gelu((summed(x, bias.dtype) + bias).float()).to(bias.dtype), row_format)


def kernel_gelu(x: Tensor, bias: Tensor, row_format: RowFormat = PLAIN) -> Rows:
    """What `reference_gelu` computes, in one launch."""
    check_rows(x)
    m, width = x.shape[-2:]
    out = empty_rows(m, width, bias.dtype, x.device, row_format)
    block = _block(out, row_format)
    _gelu[(m, -(-width // block))](
        x,
        bias,
        *pointers(out),
        m,
        PARTS=parts_of(x),
        WIDTH=width,
        **layout(out),
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(x.device),
    )
    return out


def _block(out: Rows, row_format: RowFormat) -> int:
    """Columns of a program: the scale of an int8 row needs the whole row."""
    block = block_of(stride_of(out))
    return min(CHUNK, block) if row_format == PLAIN else block


@jit
def _swiglu(
    gate_up: tl.tensor,
    typed: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = typed.dtype.element_ty
    swiglu_chunk(
        gate_up, out, scales, tl.program_id(0), tl.program_id(1), rows,
        TYPE, PARTS, WIDTH, STRIDE, INT8, FOR_INT4, BLOCK, EARLY,
    )  # fmt: skip


@jit
def swiglu_chunk(
    gate_up: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    chunk: tl.tensor,
    rows: tl.tensor,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """BLOCK columns of one row, from `chunk` times BLOCK on."""
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    place = row * 2 * WIDTH + column
    wait_for_inputs(EARLY)
    gate = rounded(sum_of(gate_up, place, mask, rows * 2 * WIDTH, PARTS), TYPE)
    up = rounded(sum_of(gate_up, place + WIDTH, mask, rows * 2 * WIDTH, PARTS), TYPE)
    active = rounded(gate / (1.0 + tl.exp(-gate)), TYPE)
    values = rounded(active * up, TYPE)
    store_row(out, scales, values, row, column, WIDTH, STRIDE, INT8, FOR_INT4)


@jit
def _gelu(
    x: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = bias.dtype.element_ty
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    shift = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    values = rounded(sum_of(x, row * WIDTH + column, mask, rows * WIDTH, PARTS), TYPE)
    values = rounded(values + shift, TYPE)
    values = rounded(0.5 * values * (1.0 + tl.math.erf(values * 0.7071067811865476)), TYPE)
    store_row(out, scales, values, row, column, WIDTH, STRIDE, INT8, FOR_INT4)
