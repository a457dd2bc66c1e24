"""Many rows times an int4 weight: a prefill. Arithmetic decides: nibbles become 16-bit weights in registers.

The group's scale goes onto the weight, where one instruction scales two, and not onto sums, which would need a second
set of registers. The product of level and scale is rounded to the working type, as a dequantised weight would be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.nibbles import MAGIC, span_of, weights_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile, gemm_tile
from edge_vla.runtime.gpu.kernels.weights import BLOCK, REACH, WORDS, Int4Weight, restore_int4


def reference(x: Tensor, weight: Int4Weight, *, half_sums: bool = False) -> Tensor:  # noqa: ARG001
    """x (M, K) 16-bit -> (M, N) of its type; the oracle sums in float32 whatever `half_sums` says."""
    return F.linear(x.float(), dequantise(restore_int4(weight))).to(x.dtype)


def kernel(x: Tensor, weight: Int4Weight, *, half_sums: bool = False, tile: Tile | None = None) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type.

    `half_sums`, for float16 rows, adds up each block of 128 inputs in float16, at which GeForce multiplies twice as
    fast, and blocks in float32. A block's sum must stay below 65504 then; beyond it the result is not finite.
    """
    rows, inner = x.shape
    check_rows(x)
    outer, blocks = weight.shape[0], weight.codes.shape[0]
    assert inner == weight.shape[1], f"{inner} inputs for a weight {weight.shape}"
    assert not half_sums or x.dtype == torch.float16, "half sums are of float16 rows"
    tile = tile or gemm_tile(Chip.of(x.device), "w4a16")
    out = torch.empty(rows, outer, dtype=x.dtype, device=x.device)
    _w4a16_gemm[(-(-rows // tile.rows), -(-outer // tile.outputs))](
        x,
        weight.codes,
        weight.scales,
        out,
        rows,
        outer,
        inner,
        blocks,
        GROUP=weight.group,
        SPAN=span_of(weight.group),
        EVEN=inner % BLOCK == 0,
        HALF_SUMS=half_sums,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        BLOCK=BLOCK,
        REACH=REACH,
        WORDS=WORDS,
        MAGIC=MAGIC[x.dtype][0],
        OFFSET=MAGIC[x.dtype][1],
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _w4a16_gemm(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    blocks: tl.tensor,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    EVEN: tl.constexpr,
    HALF_SUMS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    REACH: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    word = tl.arange(0, WORDS)
    near = tl.arange(0, REACH)
    real = output < outer
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for block in range(0, blocks):
        words = tl.load(codes + (block * outer + output)[:, None] * WORDS + word[None, :], mask=real[:, None], other=0)
        if HALF_SUMS:
            part = tl.zeros([OUTPUTS, ROWS], tl.float16)
        for start in tl.static_range(0, BLOCK, SPAN):
            group = (block * BLOCK + start) // GROUP
            scale = tl.load(scales + group * outer + output, mask=real, other=0.0).to(TYPE)
            for reach in tl.static_range(start // REACH, (start + SPAN) // REACH):
                place = block * BLOCK + reach * REACH + near
                seen = (row < rows)[None, :] if EVEN else (row < rows)[None, :] & (place < inner)[:, None]
                values = tl.load(x + row[None, :] * inner + place[:, None], mask=seen, other=0.0)
                weight = weights_of(words, 4 * reach, TYPE, MAGIC, OFFSET) * scale[:, None]
                if HALF_SUMS:
                    part = tl.dot(weight, values, part, out_dtype=tl.float16)
                else:
                    total = tl.dot(weight, values, total)
        if HALF_SUMS:
            total += part.to(tl.float32)
    place = row[None, :] * outer + output[:, None]
    tl.store(out + place, total.to(TYPE), mask=real[:, None] & (row < rows)[None, :])
