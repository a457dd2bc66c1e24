"""A few rows times an int4 weight: a decode step, a verifying pass. Bytes decide: the weight is read once, in lines.

A program takes some outputs and a run of blocks; the sums of the runs are left for the next kernel to add, in their
order. The tile always has eight rows and the runs do not depend on how many are real, so a row's bits depend on
neither its neighbours nor their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.nibbles import MAGIC, span_of, weights_of
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Tile, gemv_tile, splits
from edge_vla.runtime.gpu.kernels.weights import BLOCK, REACH, WORDS, Int4Weight, restore_int4


def reference(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int4(weight)))[None]


def kernel(x: Tensor, weight: Int4Weight, tile: Tile | None = None) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    rows, inner = x.shape
    check_rows(x)
    outer, blocks = weight.shape[0], weight.codes.shape[0]
    assert rows <= GEMV_ROWS, f"{rows} rows: a gemv kernel takes at most {GEMV_ROWS}"
    assert inner == weight.shape[1], f"{inner} inputs for a weight {weight.shape}"
    chip = Chip.of(x.device)
    tile = tile or gemv_tile(chip, 4, outer)
    parts, each = splits(chip, tile, outer, blocks)
    out = torch.empty(parts, rows, outer, dtype=torch.float32, device=x.device)
    _w4a16_gemv[(-(-outer // tile.outputs), parts)](
        x,
        weight.codes,
        weight.scales,
        out,
        rows,
        outer,
        inner,
        blocks,
        each,
        GROUP=weight.group,
        SPAN=span_of(weight.group),
        EVEN=inner % BLOCK == 0,
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
def _w4a16_gemv(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    blocks: tl.tensor,
    each: tl.tensor,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    REACH: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    word = tl.arange(0, WORDS)
    near = tl.arange(0, REACH)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, blocks)
    real = output < outer
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    scale = tl.load(scales + first * BLOCK // GROUP * outer + output, mask=real, other=0.0)
    for block in range(first, last):
        # The next block's scales are asked for now: such narrow loads are not pipelined by the compiler.
        later = tl.minimum(block + 1, last - 1) * BLOCK // GROUP
        next_scale = tl.load(scales + later * outer + output, mask=real, other=0.0)
        words = tl.load(codes + (block * outer + output)[:, None] * WORDS + word[None, :], mask=real[:, None], other=0)
        for start in tl.static_range(0, BLOCK, SPAN):
            if start > 0:
                group = (block * BLOCK + start) // GROUP
                scale = tl.load(scales + group * outer + output, mask=real, other=0.0)
            part = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for reach in tl.static_range(start // REACH, (start + SPAN) // REACH):
                place = block * BLOCK + reach * REACH + near
                seen = (row < rows)[None, :] if EVEN else (row < rows)[None, :] & (place < inner)[:, None]
                values = tl.load(x + row[None, :] * inner + place[:, None], mask=seen, other=0.0)
                weight = weights_of(words, 4 * reach, x.dtype.element_ty, MAGIC, OFFSET)
                part = tl.dot(weight, values, part)
            total += part * scale.to(tl.float32)[:, None]
        scale = next_scale
    place = (tl.program_id(1) * rows + row[None, :]) * outer + output[:, None]
    tl.store(out + place, total, mask=real[:, None] & (row < rows)[None, :])
