"""Many int8 rows times an int4 weight on int8 tensor cores: int8 arithmetic on weights stored in 4 bits.

The weight is widened to int8 with one scale an output (`weights.as_int8`), four nibbles at a time, right before its
product: sums stay integers to the end, as those of an int8 weight do. Scales of groups within the sums
would be a conversion and a product on slow pipes for every row and group, twice the time of the whole product. The
rows come in the byte order of the weight, so that nibbles are widened in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels import w8a8
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.nibbles import byte_assembly, bytes_of, scale_k, steps_of
from edge_vla.runtime.gpu.kernels.row_tiles import load_rows, store_int8_rows
from edge_vla.runtime.gpu.kernels.tiles import Chip, Reader, Tile, gemm_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import (
    BLOCK_K,
    SHIFT_K,
    Int4Weight,
    Int8Rows,
    as_int8,
    in_input_order,
    sums_of,
)


def reference(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype, reader: Reader = "torch") -> Tensor:  # noqa: ARG001
    """x (M, K) for int4 -> (M, N) in `dtype`: the product of `w8a8` by the weight as int8."""
    assert x.for_int4, "rows are in input order, not in the byte order of an int4 weight"
    return w8a8.reference(Int8Rows(in_input_order(x.codes, weight.shape[1]), x.scales), as_int8(weight), dtype)


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
    rows, (splits, blocks_each) = tile.rows(m), split_k(chip, tile, n, blocks)
    out = sums_of(splits, m, n, dtype, device)
    _w4a8_gemm[(rows.programs, -(-n // tile.block_n), splits)](
        x.codes,
        x.scales,
        weight.codes.view(torch.int8),
        weight.scales,
        weight.levels,
        out,
        m,
        n,
        stride,
        blocks,
        blocks_each,
        GROUP=weight.group,
        SCALE_K=scale_k(weight.group),
        BLOCK_K=BLOCK_K,
        SHIFT_K=SHIFT_K,
        LOW=byte_assembly(0, device),
        HIGH=byte_assembly(4, device),
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
    levels: tl.tensor,
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
    SHIFT_K: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0) * (M0 + M1 + M2)
    if L0 == 0 or tl.program_id(0) + 1 < tl.num_programs(0):
        w4a8_tiles(
            x, row_scales, codes, scales, levels, out, row, m, n, stride, blocks, blocks_each,
            GROUP, SCALE_K, M0, M1, M2, BLOCK_N, BLOCK_K, SHIFT_K, LOW, HIGH, EARLY,
        )  # fmt: skip
    else:
        w4a8_tiles(
            x, row_scales, codes, scales, levels, out, row, m, n, stride, blocks, blocks_each,
            GROUP, SCALE_K, L0, L1, L2, BLOCK_N, BLOCK_K, SHIFT_K, LOW, HIGH, EARLY,
        )  # fmt: skip


@jit
def w4a8_tiles(
    x: tl.tensor,
    row_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
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
    SHIFT_K: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """A program's outputs of up to three tiles of rows, from `row` on."""
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask, line = (output < n)[:, None], output[:, None] * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)[None, :]
    first = tl.program_id(2) * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    row0, acc0 = row + tl.arange(0, M0), tl.zeros([BLOCK_N, M0], tl.int32)
    if M1 > 0:
        row1, acc1 = row + M0 + tl.arange(0, M1), tl.zeros([BLOCK_N, M1], tl.int32)
    if M2 > 0:
        row2, acc2 = row + M0 + M1 + tl.arange(0, M2), tl.zeros([BLOCK_N, M2], tl.int32)
    level = tl.load(levels + output, mask=output < n, other=1.0)
    scale = tl.load(scales + first * BLOCK_K // GROUP * n + output, mask=output < n, other=0.0)
    wait_for_inputs(EARLY)
    for block in range(first, last):
        # The next block's scales are loaded now: the compiler does not pipeline loads this narrow.
        later = tl.minimum(block + 1, last - 1) * BLOCK_K // GROUP
        next_scale = tl.load(scales + later * n + output, mask=output < n, other=0.0)
        raw = tl.load(codes + block * n * (BLOCK_K // 2) + line, mask=n_mask, other=0)
        for half in tl.static_range(2):
            even, odd = _steps(scale, level, scales, block * 4 + half, output, n, GROUP, SCALE_K, SHIFT_K)
            weight = bytes_of(raw, even, odd, 4 * half, HIGH if half else LOW)
            place = block * BLOCK_K + half * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)
            acc0 = tl.dot(weight, load_rows(x, row0, place, m, stride, True), acc0, out_dtype=tl.int32)
            if M1 > 0:
                acc1 = tl.dot(weight, load_rows(x, row1, place, m, stride, True), acc1, out_dtype=tl.int32)
            if M2 > 0:
                acc2 = tl.dot(weight, load_rows(x, row2, place, m, stride, True), acc2, out_dtype=tl.int32)
        scale = next_scale
    out += tl.program_id(2) * m * n
    scale = tl.div_rn(128.0, level)[:, None]  # STEPS
    store_int8_rows(out, acc0, scale, row0, output, m, n, row_scales, None)
    if M1 > 0:
        store_int8_rows(out, acc1, scale, row1, output, m, n, row_scales, None)
    if M2 > 0:
        store_int8_rows(out, acc2, scale, row2, output, m, n, row_scales, None)


@jit
def _steps(
    scale: tl.tensor,
    level: tl.tensor,
    scales: tl.tensor,
    shift: tl.tensor,
    output: tl.tensor,
    n: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """`steps_of` the nibbles of even bytes and of odd ones, which are two shifts further; `scale` if all share it."""
    even = steps_of(scale, level)
    odd = even
    if SCALE_K < 4 * SHIFT_K:
        mask = output < n
        even = steps_of(tl.load(scales + shift * SHIFT_K // GROUP * n + output, mask=mask, other=0.0), level)
        odd = steps_of(tl.load(scales + (shift + 2) * SHIFT_K // GROUP * n + output, mask=mask, other=0.0), level)
    return even, odd
