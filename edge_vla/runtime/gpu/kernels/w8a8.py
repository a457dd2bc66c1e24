"""int8 rows times an int8 weight: exact integer sums, by the launches of `w8`."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import jit, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_tiles import load_rows, store_int8_rows
from edge_vla.runtime.gpu.kernels.tiles import Chip, Reader, Tile, gemm_tile
from edge_vla.runtime.gpu.kernels.w8 import biased, gemm
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, Int8Weight
from edge_vla.runtime.gpu.kernels.widen import load_codes


def reference(
    x: Int8Rows,
    weight: Int8Weight,
    dtype: torch.dtype,
    reader: Reader = "torch",  # noqa: ARG001
    bias: Tensor | None = None,
) -> Tensor:
    """x (M, K) int8 -> (M, N) in `dtype`: exact integer sums, times the row's scale, times the output's.

    Rounded once more where a bias (N,) in `dtype` is added.
    """
    # float64 holds every sum of int8 products exactly, and torch multiplies no integers on a GPU.
    sums = (x.codes.double() @ weight.codes.double().T).float()
    return biased((sums * x.scales[:, None] * weight.scales.float()).to(dtype), bias)


def kernel(
    x: Int8Rows,
    weight: Int8Weight,
    dtype: torch.dtype,
    tile: Tile | None = None,
    reader: Reader = "torch",
    bias: Tensor | None = None,
) -> Tensor:
    """What `reference` computes; for a `reader` that adds them, perhaps as partial sums (S, M, N) float32."""
    assert not x.for_int4, "rows are in the byte order of an int4 weight"
    tile = tile or gemm_tile(Chip.of(x.codes.device), "w8a8", *weight.shape, reader)
    return gemm(_w8a8_gemm, x.codes, x.scales, weight, dtype, tile, bias)


@jit
def _w8a8_gemm(
    x: tl.tensor,
    row_scales: tl.tensor,
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
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0) * (M0 + M1 + M2)
    if L0 == 0 or tl.program_id(0) + 1 < tl.num_programs(0):
        w8a8_tiles(
            x, row_scales, codes, scales, bias, out, row, m, n, k, blocks, blocks_each,
            EVEN_K, M0, M1, M2, BLOCK_N, BLOCK_K, EARLY,
        )  # fmt: skip
    else:
        w8a8_tiles(
            x, row_scales, codes, scales, bias, out, row, m, n, k, blocks, blocks_each,
            EVEN_K, L0, L1, L2, BLOCK_N, BLOCK_K, EARLY,
        )  # fmt: skip


@jit
def w8a8_tiles(
    x: tl.tensor,
    row_scales: tl.tensor,
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
    EARLY: tl.constexpr,
) -> None:
    """A program's outputs of up to three tiles of rows, from `row` on."""
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    row0 = row + tl.arange(0, M0)
    acc0 = tl.zeros([BLOCK_N, M0], tl.int32)
    if M1 > 0:
        row1 = row + M0 + tl.arange(0, M1)
        acc1 = tl.zeros([BLOCK_N, M1], tl.int32)
    if M2 > 0:
        row2 = row + M0 + M1 + tl.arange(0, M2)
        acc2 = tl.zeros([BLOCK_N, M2], tl.int32)
    scale = tl.load(scales + output, mask=output < n, other=0.0).to(tl.float32)[:, None]
    wait_for_inputs(EARLY)
    for block in range(first, last):
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight = load_codes(codes, output, place, n, k, EVEN_K)
        acc0 = tl.dot(weight, load_rows(x, row0, place, m, k, EVEN_K), acc0, out_dtype=tl.int32)
        if M1 > 0:
            acc1 = tl.dot(weight, load_rows(x, row1, place, m, k, EVEN_K), acc1, out_dtype=tl.int32)
        if M2 > 0:
            acc2 = tl.dot(weight, load_rows(x, row2, place, m, k, EVEN_K), acc2, out_dtype=tl.int32)
    out += tl.program_id(2) * m * n
    store_int8_rows(out, acc0, scale, row0, output, m, n, row_scales, bias)
    if M1 > 0:
        store_int8_rows(out, acc1, scale, row1, output, m, n, row_scales, bias)
    if M2 > 0:
        store_int8_rows(out, acc2, scale, row2, output, m, n, row_scales, bias)
