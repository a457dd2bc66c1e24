"""The gate of a Llama MLP: silu(gate) times up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, parts_of, rounded, store_int8, sum_of, warps_of
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, empty_rows, quantised, summed

CHUNK = 1024  # outputs of a program where rows need not be whole


def reference(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """gate and up side by side (M, 2 F), or parts (S, M, 2 F) float32 -> (M, F) in `dtype`.

    Rounds where `model.decoder` does: both products, the activated gate, its product with up.
    """
    gate, up = summed(gate_up, dtype).chunk(2, dim=-1)
    return F.silu(gate) * up


def reference_int8(gate_up: Tensor, dtype: torch.dtype, *, for_int4: bool = False) -> Int8Rows:
    """`reference`, its rows rounded to int8."""
    return quantised(reference(gate_up, dtype), for_int4=for_int4)


def kernel(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    out = torch.empty(rows, width, dtype=dtype, device=gate_up.device)
    _launch(gate_up, out, out, None, min(CHUNK, block_of(width)))
    return out


def kernel_int8(gate_up: Tensor, dtype: torch.dtype, *, for_int4: bool = False) -> Int8Rows:
    """What `reference_int8` computes, in one launch."""
    rows, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    out = empty_rows(rows, width, gate_up.device, for_int4=for_int4)
    typed = torch.empty(0, dtype=dtype, device=gate_up.device)
    _launch(gate_up, typed, out.codes, out, block_of(out.codes.shape[1]))
    return out


def _launch(gate_up: Tensor, typed: Tensor, out: Tensor, int8: Int8Rows | None, block: int) -> None:
    check_rows(gate_up)
    rows, width = gate_up.shape[-2], gate_up.shape[-1] // 2
    _swiglu[(rows, -(-width // block))](
        gate_up,
        typed,
        out,
        out if int8 is None else int8.scales,
        PARTS=parts_of(gate_up),
        ROWS=rows,
        WIDTH=width,
        STRIDE=out.shape[1],
        INT8=int8 is not None,
        FOR_INT4=int8 is not None and int8.for_int4,
        BLOCK=block,
        num_warps=warps_of(block),
    )


@jit
def _swiglu(
    gate_up: tl.tensor,
    typed: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = typed.dtype.element_ty
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < WIDTH
    place = row * 2 * WIDTH + column
    gate = rounded(sum_of(gate_up, place, real, ROWS * 2 * WIDTH, PARTS), TYPE)
    up = rounded(sum_of(gate_up, place + WIDTH, real, ROWS * 2 * WIDTH, PARTS), TYPE)
    active = rounded(gate / (1.0 + tl.exp(-gate)), TYPE)
    values = rounded(active * up, TYPE)
    if INT8:
        store_int8(out, scales, values, row, column, STRIDE, FOR_INT4)
    else:
        tl.store(out + row * WIDTH + column, values.to(TYPE), mask=real)
