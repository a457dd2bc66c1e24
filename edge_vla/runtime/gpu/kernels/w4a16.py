"""16-bit rows times an int4 weight: a kernel for up to eight rows, bound by bytes, and one for more, by arithmetic.

The gemv reads the weight once, in lines, and scales sums. It splits K and leaves the partial sums for the next kernel
to add in order; its tile always has eight rows and its splits do not depend on their number, so a row's bits
depend on neither its neighbours nor their number. The gemm scales weights, two to an instruction, because scaled sums
would need a second set of registers: level times scale is rounded to the working type, as a dequantised weight is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.nibbles import MAGIC, scale_k, weights_of
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Tile, gemm_tile, gemv_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import BLOCK_K, SHIFT_K, WORDS, Int4Weight, restore_int4


def reference_gemv(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int4(weight)))[None]


def kernel_gemv(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    m, n, blocks = x.shape[0], weight.shape[0], weight.codes.shape[0]
    assert m <= GEMV_ROWS, f"{m} rows: a gemv kernel takes at most {GEMV_ROWS}"
    chip = Chip.of(x.device)
    tile = gemv_tile(chip, 4, n)
    splits, blocks_each = split_k(chip, tile, n, blocks)
    out = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    _launch(_w4a16_gemv[(-(-n // tile.block_n), splits)], x, weight, out, tile, blocks, blocks_each)
    return out


def reference_gemm(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type."""
    return F.linear(x.float(), dequantise(restore_int4(weight))).to(x.dtype)


def kernel_gemm(x: Tensor, weight: Int4Weight) -> Tensor:
    """What `reference_gemm` computes, in one launch."""
    m, n = x.shape[0], weight.shape[0]
    tile = gemm_tile(Chip.of(x.device), "w4a16")
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    _launch(_w4a16_gemm[(-(-m // tile.block_m), -(-n // tile.block_n))], x, weight, out, tile, weight.codes.shape[0])
    return out


def _launch(launcher: Any, x: Tensor, weight: Int4Weight, out: Tensor, tile: Tile, *blocks: int) -> None:
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
        *blocks,
        GROUP=weight.group,
        SCALE_K=scale_k(weight.group),
        EVEN_K=k % BLOCK_K == 0,
        BLOCK_K=BLOCK_K,
        SHIFT_K=SHIFT_K,
        WORDS=WORDS,
        MAGIC=MAGIC[x.dtype][0],
        OFFSET=MAGIC[x.dtype][1],
        **tile.launch(),
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
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    word = tl.arange(0, WORDS)
    first = tl.program_id(1) * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    n_mask = output < n
    m_mask = (row < m)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    scale = tl.load(scales + first * BLOCK_K // GROUP * n + output, mask=n_mask, other=0.0)
    for block in range(first, last):
        # The next block's scales are loaded now: the compiler does not pipeline loads this narrow.
        later = tl.minimum(block + 1, last - 1) * BLOCK_K // GROUP
        next_scale = tl.load(scales + later * n + output, mask=n_mask, other=0.0)
        words = tl.load(codes + (block * n + output)[:, None] * WORDS + word[None, :], mask=n_mask[:, None], other=0)
        for start in tl.static_range(0, BLOCK_K, SCALE_K):
            if start > 0:
                group = (block * BLOCK_K + start) // GROUP
                scale = tl.load(scales + group * n + output, mask=n_mask, other=0.0)
            part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for shift in tl.static_range(start // SHIFT_K, (start + SCALE_K) // SHIFT_K):
                place = block * BLOCK_K + shift * SHIFT_K + tl.arange(0, SHIFT_K)
                row_mask = m_mask if EVEN_K else m_mask & (place < k)[:, None]
                values = tl.load(x + row[None, :] * k + place[:, None], mask=row_mask, other=0.0)
                weight = weights_of(words, 4 * shift, x.dtype.element_ty, MAGIC, OFFSET)
                part = tl.dot(weight, values, part)
            acc += part * scale.to(tl.float32)[:, None]
        scale = next_scale
    place = (tl.program_id(1) * m + row[None, :]) * n + output[:, None]
    tl.store(out + place, acc, mask=n_mask[:, None] & m_mask)


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
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
    WORDS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    word = tl.arange(0, WORDS)
    n_mask = output < n
    m_mask = (row < m)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(0, blocks):
        words = tl.load(codes + (block * n + output)[:, None] * WORDS + word[None, :], mask=n_mask[:, None], other=0)
        for start in tl.static_range(0, BLOCK_K, SCALE_K):
            group = (block * BLOCK_K + start) // GROUP
            scale = tl.load(scales + group * n + output, mask=n_mask, other=0.0).to(TYPE)
            for shift in tl.static_range(start // SHIFT_K, (start + SCALE_K) // SHIFT_K):
                place = block * BLOCK_K + shift * SHIFT_K + tl.arange(0, SHIFT_K)
                row_mask = m_mask if EVEN_K else m_mask & (place < k)[:, None]
                values = tl.load(x + row[None, :] * k + place[:, None], mask=row_mask, other=0.0)
                weight = weights_of(words, 4 * shift, TYPE, MAGIC, OFFSET) * scale[:, None]
                acc = tl.dot(weight, values, acc)
    place = row[None, :] * n + output[:, None]
    tl.store(out + place, acc.to(TYPE), mask=n_mask[:, None] & m_mask)
