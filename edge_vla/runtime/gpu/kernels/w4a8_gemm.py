"""Many int8 rows times an int4 weight on int8 tensor cores: int8 arithmetic from weights stored in 4 bits.

A nibble is a small int8, so widening it rounds nothing; each group's integer sum gets the group's own scale. The rows
come in the order of the weight's bytes, so that four nibbles are widened at once, in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.quant import GRIDS, Scheme, unpack_nibbles
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.nibbles import bytes_of, span_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile, gemm_tile
from edge_vla.runtime.gpu.kernels.weights import BLOCK, REACH, WORDS, Int4Weight, Int8Rows, in_input_order, restore_int4


def reference(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """x (M, K) for int4 -> (M, N) in `dtype`: exact integer sums in each group, float32 between groups, in order."""
    assert x.for_int4, "rows in the order of their inputs"
    packed = restore_int4(weight)
    levels = GRIDS[Scheme.INT4].levels(unpack_nibbles(packed.codes))
    codes = in_input_order(x.codes, weight.shape[1])
    total = x.scales.new_zeros(codes.shape[0], levels.shape[0])
    for index, start in enumerate(range(0, levels.shape[1], weight.group)):
        inputs = slice(start, start + weight.group)
        # float64, because a GPU may multiply float32 in fewer bits than these sums have
        sums = (codes[:, inputs].double() @ levels[:, inputs].double().T).float()
        total = total + sums * weight.scales[index].float()
    return (total * x.scales[:, None]).to(dtype)


def kernel(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype, tile: Tile | None = None) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, stride = x.codes.shape
    check_rows(x.codes)
    outer, blocks = weight.shape[0], weight.codes.shape[0]
    assert x.for_int4, "rows in the order of their inputs"
    assert stride == blocks * BLOCK, f"{stride} places for a weight {weight.shape}"
    tile = tile or gemm_tile(Chip.of(x.codes.device), "w4a8")
    out = torch.empty(rows, outer, dtype=dtype, device=x.codes.device)
    _w4a8_gemm[(-(-rows // tile.rows), -(-outer // tile.outputs))](
        x.codes,
        x.scales,
        weight.codes,
        weight.scales,
        out,
        rows,
        outer,
        stride,
        blocks,
        GROUP=weight.group,
        SPAN=span_of(weight.group),
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        BLOCK=BLOCK,
        REACH=REACH,
        WORDS=WORDS,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _w4a8_gemm(
    x: tl.tensor,
    row_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outer: tl.tensor,
    stride: tl.tensor,
    blocks: tl.tensor,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    REACH: tl.constexpr,
    WORDS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    word = tl.arange(0, WORDS)
    near = tl.arange(0, BLOCK // 2)
    real = output < outer
    asks = row < rows
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for block in range(0, blocks):
        words = tl.load(codes + (block * outer + output)[:, None] * WORDS + word[None, :], mask=real[:, None], other=0)
        place = row[None, :] * stride + block * BLOCK + near[:, None]
        low = tl.load(x + place, mask=asks[None, :], other=0)
        high = tl.load(x + place + BLOCK // 2, mask=asks[None, :], other=0)
        for start in tl.static_range(0, BLOCK, SPAN):
            group = (block * BLOCK + start) // GROUP
            scale = tl.load(scales + group * outer + output, mask=real, other=0.0).to(tl.float32)
            sums = tl.zeros([OUTPUTS, ROWS], tl.int32)
            if SPAN == BLOCK:
                sums = tl.dot(bytes_of(words, 0, -1), low, sums, out_dtype=tl.int32)
                sums = tl.dot(bytes_of(words, 4, -1), high, sums, out_dtype=tl.int32)
            else:  # every second byte is another group's: it counts as no weight
                for reach in tl.static_range(start // REACH, (start + SPAN) // REACH):
                    KEEP: tl.constexpr = 0x00FF00FF if reach // 2 == 0 else -0x00FF0100
                    if reach % 2 == 0:
                        sums = tl.dot(bytes_of(words, 0, KEEP), low, sums, out_dtype=tl.int32)
                    else:
                        sums = tl.dot(bytes_of(words, 4, KEEP), high, sums, out_dtype=tl.int32)
            total += sums.to(tl.float32) * scale[:, None]
    row_scale = tl.load(row_scales + row, mask=asks, other=0.0)
    place = row[None, :] * outer + output[:, None]
    tl.store(out + place, (total * row_scale[None, :]).to(out.dtype.element_ty), mask=real[:, None] & asks[None, :])
