"""16-bit rows times an int4 weight: a kernel for up to eight rows, bound by bytes, and one for more, by arithmetic.

The gemv reads the weight once, in lines, and scales sums. It splits K and leaves the partial sums for the next kernel
to add in order; its tile always has eight rows and its splits do not depend on their number, so a row's bits
depend on neither its neighbours nor their number. The gemm scales weights, two to an instruction, because scaled sums
would need a second set of registers: level times scale is rounded to the working type, as a dequantised weight is. It
converts a block of weights while it multiplies by the one before: a tensor that one turn of the loop hands to the next
goes to shared memory, where the tensor cores of 9.0 read it without waiting for the registers it came from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.lanes import inputs_of, outputs_of, quads_of, scale_pairs, scale_sums, words_of
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.nibbles import MAGIC, assembly, block_of_weights, scale_k, weights_of
from edge_vla.runtime.gpu.kernels.row_tiles import load_rows, store_rows
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Reader, Tile, gemm_tile, gemv_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import BLOCK_K, SHIFT_K, WORDS, Int4Weight, restore_int4, sums_of


def reference_gemv(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int4(weight)))[None]


def kernel_gemv(x: Tensor, weight: Int4Weight, tile: Tile | None = None) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    m, n, blocks = x.shape[0], weight.shape[0], weight.codes.shape[0]
    assert m <= GEMV_ROWS, f"{m} rows: a gemv kernel takes at most {GEMV_ROWS}"
    chip = Chip.of(x.device)
    tile = tile or gemv_tile(chip, "w4a16", *weight.shape)
    splits, blocks_each = split_k(chip, tile, n, blocks)
    out = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    grid = (-(-n // tile.block_n), splits)
    sizes = {"BLOCK_M": GEMV_ROWS, "SHIFT_K": SHIFT_K, "EVEN_N": n % tile.block_n == 0}
    _launch(_w4a16_gemv[grid], x, weight, out, tile, blocks, blocks_each, **sizes)
    return out


def reference_gemm(x: Tensor, weight: Int4Weight, reader: Reader = "torch") -> Tensor:  # noqa: ARG001
    """x (M, K) 16-bit -> (M, N) of its type."""
    return F.linear(x.float(), dequantise(restore_int4(weight))).to(x.dtype)


def kernel_gemm(x: Tensor, weight: Int4Weight, tile: Tile | None = None, reader: Reader = "torch") -> Tensor:
    """What `reference_gemm` computes; for a `reader` that adds them, perhaps partial sums (S, M, N), as a gemv's."""
    (m, (n, k)), blocks = (x.shape[0], weight.shape), weight.codes.shape[0]
    chip = Chip.of(x.device)
    tile = tile or gemm_tile(chip, "w4a16", n, k, reader)
    rows, (splits, blocks_each) = tile.rows(m), split_k(chip, tile, n, blocks)
    out = sums_of(splits, m, n, x.dtype, x.device)
    launcher = _w4a16_gemm[(rows.programs, -(-n // tile.block_n), splits)]
    _launch(launcher, x, weight, out, tile, blocks, blocks_each, **rows.launch())
    return out


def _launch(
    launcher: Any, x: Tensor, weight: Int4Weight, out: Tensor, tile: Tile, blocks: int, blocks_each: int, **sizes: int
) -> None:
    check_rows(x)
    k = x.shape[1]
    assert k == weight.shape[1], f"{k} inputs for a weight {weight.shape}"
    launcher(
        x,
        weight.codes,
        weight.scales,
        out,
        x.shape[0],
        weight.shape[0],
        k,
        blocks,
        blocks_each,
        GROUP=weight.group,
        SCALE_K=scale_k(weight.group),
        EVEN_K=k % BLOCK_K == 0,
        BLOCK_K=BLOCK_K,
        WORDS=WORDS,
        MAGIC=MAGIC[x.dtype][0],
        OFFSET=MAGIC[x.dtype][1],
        ASSEMBLY=assembly(x.dtype, x.device),
        **tile.launch(sizes),
        **overlap(x.device),
    )


@jit
def _w4a16_gemv(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    w4a16_part(
        x, codes, scales, out, tl.program_id(0), tl.program_id(1), m, n, k, blocks, blocks_each,
        GROUP, SCALE_K, EVEN_N, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, SHIFT_K, WORDS, MAGIC, OFFSET, ASSEMBLY, EARLY,
    )  # fmt: skip


@jit
def w4a16_part(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    column: tl.tensor,
    split: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program's share of a gemv: outputs of tile `column`, inputs of split `split`. Operands as `lanes` says."""
    TYPE: tl.constexpr = x.dtype.element_ty
    first = split * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    line = tl.arange(0, BLOCK_N)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    n_mask = None if EVEN_N else (column * BLOCK_N + tl.arange(0, BLOCK_N) < n)[:, None]
    codes += (first * n + column * BLOCK_N) * WORDS
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    scale = scale_pairs(scales, group_of(first, 0, GROUP, BLOCK_K) * n, column, n, BLOCK_N, EVEN_N)
    wait_for_inputs(EARLY)
    quads = quads_of(x, first, m, k, BLOCK_M, EVEN_K)
    for block in range(first, last):
        # The next block's scales and rows are loaded a turn ahead, straight to the registers that need them.
        later = tl.minimum(block + 1, last - 1)
        next_scale = scale_pairs(scales, group_of(later, 0, GROUP, BLOCK_K) * n, column, n, BLOCK_N, EVEN_N)
        words = words_of(tl.load(codes + line, mask=n_mask))
        for start in tl.static_range(0, BLOCK_K, SCALE_K):
            if start > 0:
                place = group_of(block, start, GROUP, BLOCK_K) * n
                scale = scale_pairs(scales, place, column, n, BLOCK_N, EVEN_N)
            part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for shift in tl.static_range(start // SHIFT_K, (start + SCALE_K) // SHIFT_K):
                weight = weights_of(words, 4 * shift, TYPE, MAGIC, OFFSET, ASSEMBLY)
                part = tl.dot(weight, inputs_of(quads[shift], TYPE, ASSEMBLY), part)
            acc = scale_sums(acc, part, scale)
        quads = quads_of(x, later, m, k, BLOCK_M, EVEN_K)
        codes += n * WORDS
        scale = next_scale
    output, row = column * BLOCK_N + outputs_of(BLOCK_N)[:, None], tl.arange(0, BLOCK_M)[None, :]
    tl.store(out + (split * m + row) * n + output, acc, mask=(output < n) & (row < m))


@jit
def group_of(block: tl.tensor, start: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr) -> tl.tensor:
    """The group of a block's input `start`."""
    if GROUP % BLOCK_K == 0:  # without a product to divide, which takes more instructions
        return block // (GROUP // BLOCK_K)
    return (block * BLOCK_K + start) // GROUP


@jit
def _w4a16_gemm(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    L0: tl.constexpr,
    L1: tl.constexpr,
    L2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0) * (M0 + M1 + M2)
    if L0 == 0 or tl.program_id(0) + 1 < tl.num_programs(0):
        w4a16_tiles(
            x, codes, scales, out, row, m, n, k, blocks, blocks_each,
            GROUP, SCALE_K, EVEN_K, M0, M1, M2, BLOCK_N, BLOCK_K, WORDS, MAGIC, OFFSET, ASSEMBLY, EARLY,
        )  # fmt: skip
    else:
        w4a16_tiles(
            x, codes, scales, out, row, m, n, k, blocks, blocks_each,
            GROUP, SCALE_K, EVEN_K, L0, L1, L2, BLOCK_N, BLOCK_K, WORDS, MAGIC, OFFSET, ASSEMBLY, EARLY,
        )  # fmt: skip


@jit
def w4a16_tiles(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    row: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """A program's outputs of up to three tiles of rows, from `row` on."""
    TYPE: tl.constexpr = x.dtype.element_ty
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask, line = (output < n)[:, None], output[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    first = tl.program_id(2) * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    row0, acc0 = row + tl.arange(0, M0), tl.zeros([BLOCK_N, M0], tl.float32)
    if M1 > 0:
        row1 = row + M0 + tl.arange(0, M1)
        acc1 = tl.zeros([BLOCK_N, M1], tl.float32)
    if M2 > 0:
        row2 = row + M0 + M1 + tl.arange(0, M2)
        acc2 = tl.zeros([BLOCK_N, M2], tl.float32)
    words = tl.load(codes + first * n * WORDS + line, mask=n_mask, other=0)
    weight = block_of_weights(words, scales, first, output, n, GROUP, SCALE_K, TYPE, MAGIC, OFFSET, ASSEMBLY)
    words = tl.load(codes + tl.minimum(first + 1, last - 1) * n * WORDS + line, mask=n_mask, other=0)
    wait_for_inputs(EARLY)
    for block in range(first, last):
        # Loaded two blocks ahead and converted one ahead: the compiler pipelines only what feeds a product directly.
        after = tl.load(codes + tl.minimum(block + 2, last - 1) * n * WORDS + line, mask=n_mask, other=0)
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        acc0 = tl.dot(weight, load_rows(x, row0, place, m, k, EVEN_K), acc0)
        if M1 > 0:
            acc1 = tl.dot(weight, load_rows(x, row1, place, m, k, EVEN_K), acc1)
        if M2 > 0:
            acc2 = tl.dot(weight, load_rows(x, row2, place, m, k, EVEN_K), acc2)
        at = tl.minimum(block + 1, last - 1)
        weight = block_of_weights(words, scales, at, output, n, GROUP, SCALE_K, TYPE, MAGIC, OFFSET, ASSEMBLY)
        words = after
    out += tl.program_id(2) * m * n
    store_rows(out, acc0, row0, output, m, n, False, x)
    if M1 > 0:
        store_rows(out, acc1, row1, output, m, n, False, x)
    if M2 > 0:
        store_rows(out, acc2, row2, output, m, n, False, x)
