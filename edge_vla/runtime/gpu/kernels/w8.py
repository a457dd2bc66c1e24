"""Rows of 16 bits times an int8 weight: a gemv for up to eight, a GEMM for more.

A gemv of up to eight rows splits K, so that enough programs read the weight, and leaves the partial sums for the next
kernel to add in order. Its tile always has eight rows and its splits do not depend on their number: a row's bits
depend on neither its neighbours nor their number. 16-bit rows meet codes that `widen` made 16-bit numbers of: a GEMM
converts a step ahead where its tensor cores read shared memory (see `w4a16`), elsewhere as it multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_tiles import load_rows, store_rows, with_bias
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Reader, Tile, gemm_tile, gemv_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, restore_int8, sums_of
from edge_vla.runtime.gpu.kernels.widen import converts_ahead, load_codes, load_words, widened, widened_words, widening


def reference_a16_gemv(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int8(weight)))[None]


def kernel_a16_gemv(x: Tensor, weight: Int8Weight, tile: Tile | None = None) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    m, (n, k) = x.shape[0], weight.shape
    assert m <= GEMV_ROWS, f"{m} rows: a gemv kernel takes at most {GEMV_ROWS}"
    chip = Chip.of(x.device)
    tile = tile or gemv_tile(chip, "w8a16", n, k)
    splits, blocks_each = split_k(chip, tile, n, -(-k // tile.block_k))
    out = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    grid = (-(-n // tile.block_n), splits)
    constants = {"BLOCK_M": GEMV_ROWS, "WIDENING": widening(x.dtype, x.device)}
    return _launch(_w8a16_gemv[grid], x, weight.scales, weight, out, tile, blocks_each, **constants)


def reference_a16_gemm(
    x: Tensor,
    weight: Int8Weight,
    reader: Reader = "torch",  # noqa: ARG001
    bias: Tensor | None = None,
) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type, rounded once more where a bias (N,) of that type is added."""
    return biased(F.linear(x.float(), dequantise(restore_int8(weight))).to(x.dtype), bias)


def kernel_a16_gemm(
    x: Tensor, weight: Int8Weight, tile: Tile | None = None, reader: Reader = "torch", bias: Tensor | None = None
) -> Tensor:
    """What `reference_a16_gemm` computes; for a `reader` that adds them, perhaps partial sums (S, M, N) float32."""
    tile = tile or gemm_tile(Chip.of(x.device), "w8a16", *weight.shape, reader)
    ahead = converts_ahead(Chip.of(x.device), weight.shape[1])
    constants = {"AHEAD": ahead, "WIDENING": widening(x.dtype, x.device)}
    return gemm(_w8a16_gemm, x, weight.scales, weight, x.dtype, tile, bias, **constants)


def biased(product: Tensor, bias: Tensor | None) -> Tensor:
    """As `row_tiles.with_bias`."""
    return product if bias is None else product + bias


def gemm(
    kernel: Any,
    x: Tensor,
    row_scales: Tensor,
    weight: Int8Weight,
    dtype: torch.dtype,
    tile: Tile,
    bias: Tensor | None,
    **constants: Any,
) -> Tensor:
    m, (n, k) = x.shape[0], weight.shape
    rows = tile.rows(m)
    splits, blocks_each = split_k(Chip.of(x.device), tile, n, -(-k // tile.block_k))
    assert splits == 1 or bias is None, "a bias is added to a whole product"
    out = sums_of(splits, m, n, dtype, x.device)
    grid = (rows.programs, -(-n // tile.block_n), splits)
    return _launch(kernel[grid], x, row_scales, weight, out, tile, blocks_each, bias=bias, **rows.launch(), **constants)


def _launch(
    launcher: Any,
    x: Tensor,
    row_scales: Tensor,
    weight: Int8Weight,
    out: Tensor,
    tile: Tile,
    blocks_each: int,
    **constants: Any,
) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    check_rows(x)
    assert k == weight.shape[1], f"{k} inputs for a weight {weight.shape}"
    launcher(
        x,
        row_scales,
        weight.codes,
        weight.scales,
        out,
        m,
        n,
        k,
        -(-k // tile.block_k),
        blocks_each,
        EVEN_K=k % tile.block_k == 0,
        BLOCK_K=tile.block_k,
        **tile.launch(constants),
        **overlap(x.device),
    )
    return out


@jit
def _w8a16_gemv(
    x: tl.tensor,
    row_scales: tl.tensor,  # noqa: ARG001  as the GEMMs' launches have it
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDENING: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    w8a16_part(
        x, codes, scales, out, tl.program_id(0), tl.program_id(1), m, n, k, blocks, blocks_each,
        EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, WIDENING, EARLY,
    )  # fmt: skip


@jit
def w8a16_part(
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
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDENING: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program's share of a gemv: outputs of tile `column`, inputs of split `split`."""
    row = tl.arange(0, BLOCK_M)
    output = column * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    scale = tl.load(scales + output, mask=output < n, other=0.0).to(tl.float32) * WIDENING[0]
    wait_for_inputs(EARLY)
    for block in range(first, last):
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight = widened(load_codes(codes, output, place, n, k, EVEN_K), x.dtype.element_ty, WIDENING)
        acc = tl.dot(weight, load_rows(x, row, place, m, k, EVEN_K), acc)
    store_rows(out + split * m * n, acc * scale[:, None], row, output, m, n, False, scales)


@jit
def _w8a16_gemm(
    x: tl.tensor,
    row_scales: tl.tensor,  # noqa: ARG001  as that of int8 rows has it
    codes: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    bias: tl.tensor,
    EVEN_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    L0: tl.constexpr,
    L1: tl.constexpr,
    L2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDENING: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0) * (M0 + M1 + M2)
    if L0 == 0 or tl.program_id(0) + 1 < tl.num_programs(0):
        w8a16_tiles(
            x, codes, scales, bias, out, row, m, n, k, blocks, blocks_each,
            EVEN_K, M0, M1, M2, BLOCK_N, BLOCK_K, AHEAD, WIDENING, EARLY,
        )  # fmt: skip
    else:
        w8a16_tiles(
            x, codes, scales, bias, out, row, m, n, k, blocks, blocks_each,
            EVEN_K, L0, L1, L2, BLOCK_N, BLOCK_K, AHEAD, WIDENING, EARLY,
        )  # fmt: skip


@jit
def w8a16_tiles(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    row: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    EVEN_K: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDENING: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """A program's outputs of up to three tiles of rows, from `row` on."""
    TYPE: tl.constexpr = x.dtype.element_ty
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
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
    scale = tl.load(scales + output, mask=output < n, other=0.0).to(tl.float32)[:, None] * WIDENING[0]
    if AHEAD:
        weight = widened_words(load_words(codes, output, first, last, n, k, BLOCK_K, EVEN_K), TYPE, WIDENING)
        raw = load_words(codes, output, first + 1, last, n, k, BLOCK_K, EVEN_K)
    wait_for_inputs(EARLY)
    for block in range(first, last):
        place = block * BLOCK_K + step
        if AHEAD:
            after = load_words(codes, output, block + 2, last, n, k, BLOCK_K, EVEN_K)
        else:
            weight = widened(load_codes(codes, output, place, n, k, EVEN_K), TYPE, WIDENING)
        acc0 = tl.dot(weight, load_rows(x, row0, place, m, k, EVEN_K), acc0)
        if M1 > 0:
            acc1 = tl.dot(weight, load_rows(x, row1, place, m, k, EVEN_K), acc1)
        if M2 > 0:
            acc2 = tl.dot(weight, load_rows(x, row2, place, m, k, EVEN_K), acc2)
        if AHEAD:
            weight, raw = widened_words(raw, TYPE, WIDENING), after
    out += tl.program_id(2) * m * n
    store_rows(out, with_bias(acc0 * scale, bias, output, n), row0, output, m, n, False, scales)
    if M1 > 0:
        store_rows(out, with_bias(acc1 * scale, bias, output, n), row1, output, m, n, False, scales)
    if M2 > 0:
        store_rows(out, with_bias(acc2 * scale, bias, output, n), row2, output, m, n, False, scales)
