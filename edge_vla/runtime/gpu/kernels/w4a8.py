"""Many int8 rows times an int4 weight on int8 tensor cores: int8 arithmetic on weights stored in 4 bits.

A nibble is a small int8, so widening it rounds nothing; each group's integer sum gets the group's own scale. The rows
come in the byte order of the weight, so that four nibbles are widened at once, in place, a block ahead of the product
(see `w4a16`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edge_vla.quant import GRIDS, Scheme, unpack_nibbles
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.nibbles import bytes_of, scale_k
from edge_vla.runtime.gpu.kernels.row_tiles import load_rows, store_rows
from edge_vla.runtime.gpu.kernels.tiles import Chip, Reader, Tile, gemm_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import (
    BLOCK_K,
    WORDS,
    Int4Weight,
    Int8Rows,
    in_input_order,
    restore_int4,
    sums_of,
)


def reference(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype, reader: Reader = "torch") -> Tensor:  # noqa: ARG001
    """x (M, K) for int4 -> (M, N) in `dtype`: exact integer sums in each group, float32 between groups, in order."""
    assert x.for_int4, "rows are in input order, not in the byte order of an int4 weight"
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


def kernel(
    x: Int8Rows, weight: Int4Weight, dtype: torch.dtype, tile: Tile | None = None, reader: Reader = "torch"
) -> Tensor:
    """What `reference` computes; for a `reader` that adds them, perhaps as partial sums (S, M, N) float32."""
    (m, stride), (n, k), blocks = x.codes.shape, weight.shape, weight.codes.shape[0]
    check_rows(x.codes)
    assert x.for_int4, "rows are in input order, not in the byte order of an int4 weight"
    assert stride == blocks * BLOCK_K, f"rows of {stride} bytes for a weight {weight.shape}"
    device = x.codes.device
    chip = Chip.of(device)
    tile = tile or gemm_tile(chip, "w4a8", n, k, reader)
    if (inputs := scale_k(weight.group)) < BLOCK_K:  # several sums of a block at a time: more registers
        block_m = min(tile.block_m, inputs)
        tile = replace(tile, block_m=block_m, row_tiles=1, block_n=min(tile.block_n, 64))
    rows, (splits, blocks_each) = tile.rows(m), split_k(chip, tile, n, blocks)
    out = sums_of(splits, m, n, dtype, device)
    _w4a8_gemm[(rows.programs, -(-n // tile.block_n), splits)](
        x.codes,
        x.scales,
        weight.codes,
        weight.scales,
        out,
        m,
        n,
        stride,
        blocks,
        blocks_each,
        GROUP=weight.group,
        SCALE_K=scale_k(weight.group),
        BLOCK_K=BLOCK_K,
        WORDS=WORDS,
        **tile.launch(rows.launch()),
        **overlap(device),
    )
    return out


@jit
def _w4a8_gemm(
    x: tl.tensor,
    row_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    stride: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    L0: tl.constexpr,
    L1: tl.constexpr,
    L2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORDS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0) * (M0 + M1 + M2)
    if L0 == 0 or tl.program_id(0) + 1 < tl.num_programs(0):
        w4a8_tiles(
            x, row_scales, codes, scales, out, row, m, n, stride, blocks, blocks_each,
            GROUP, SCALE_K, M0, M1, M2, BLOCK_N, BLOCK_K, WORDS, EARLY,
        )  # fmt: skip
    else:
        w4a8_tiles(
            x, row_scales, codes, scales, out, row, m, n, stride, blocks, blocks_each,
            GROUP, SCALE_K, L0, L1, L2, BLOCK_N, BLOCK_K, WORDS, EARLY,
        )  # fmt: skip


@jit
def w4a8_tiles(
    x: tl.tensor,
    row_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    row: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    stride: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORDS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """A program's outputs of up to three tiles of rows, from `row` on."""
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask, line = output < n, output[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    first = tl.program_id(2) * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    row0 = row + tl.arange(0, M0)
    acc0 = tl.zeros([BLOCK_N, M0], tl.float32)
    if M1 > 0:
        row1 = row + M0 + tl.arange(0, M1)
        acc1 = tl.zeros([BLOCK_N, M1], tl.float32)
    if M2 > 0:
        row2 = row + M0 + M1 + tl.arange(0, M2)
        acc2 = tl.zeros([BLOCK_N, M2], tl.float32)
    weight = bytes_of(tl.load(codes + first * n * WORDS + line, mask=n_mask[:, None], other=0))
    words = tl.load(codes + tl.minimum(first + 1, last - 1) * n * WORDS + line, mask=n_mask[:, None], other=0)
    scale = tl.load(scales + first * BLOCK_K // GROUP * n + output, mask=n_mask, other=0.0)
    wait_for_inputs(EARLY)
    for block in range(first, last):
        after = tl.load(codes + tl.minimum(block + 2, last - 1) * n * WORDS + line, mask=n_mask[:, None], other=0)
        later = tl.minimum(block + 1, last - 1) * BLOCK_K // GROUP
        next_scale = tl.load(scales + later * n + output, mask=n_mask, other=0.0)
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        for start in tl.static_range(0, BLOCK_K, SCALE_K):
            if start > 0:
                group = (block * BLOCK_K + start) // GROUP
                scale = tl.load(scales + group * n + output, mask=n_mask, other=0.0)
            acc0 += group_sums(weight, load_rows(x, row0, place, m, stride, True), start, SCALE_K) * scale_of(scale)
            if M1 > 0:
                acc1 += group_sums(weight, load_rows(x, row1, place, m, stride, True), start, SCALE_K) * scale_of(scale)
            if M2 > 0:
                acc2 += group_sums(weight, load_rows(x, row2, place, m, stride, True), start, SCALE_K) * scale_of(scale)
        weight, words, scale = bytes_of(words), after, next_scale
    out += tl.program_id(2) * m * n
    store_rows(out, acc0, row0, output, m, n, True, row_scales)
    if M1 > 0:
        store_rows(out, acc1, row1, output, m, n, True, row_scales)
    if M2 > 0:
        store_rows(out, acc2, row2, output, m, n, True, row_scales)


@jit
def group_sums(weight: tl.tensor, values: tl.tensor, start: tl.constexpr, SCALE_K: tl.constexpr) -> tl.tensor:
    """Sums (N, M) float32 of the SCALE_K inputs from `start` of a block; the bytes of the others count as zero."""
    if SCALE_K < 128:
        byte = tl.arange(0, 128)
        shift = byte // 64 + byte % 2 * 2  # whose nibble a byte is
        kept = (shift * 32 >= start) & (shift * 32 < start + SCALE_K)
        weight = tl.where(kept[None, :], weight, tl.zeros_like(weight))
    return tl.dot(weight, values, out_dtype=tl.int32).to(tl.float32)


@jit
def scale_of(scale: tl.tensor) -> tl.tensor:
    """(N,) -> (N, 1) float32."""
    return scale.to(tl.float32)[:, None]
