"""Rows times an int8 weight: one kernel for 16-bit rows, as gemv and as GEMM, and for int8 rows on int8 tensor cores.

A gemv of up to eight rows splits K, so that enough programs read the weight, and leaves the partial sums for the next
kernel to add in order. Its tile always has eight rows and its splits do not depend on their number: a row's bits
depend on neither its neighbours nor their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Tile, gemm_tile, gemv_tile, split_k
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, Int8Weight, restore_int8


def reference_a16_gemv(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int8(weight)))[None]


def kernel_a16_gemv(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (S, M, N) float32, whose sum over S, in order, is the product."""
    m, n = x.shape[0], weight.shape[0]
    assert m <= GEMV_ROWS, f"{m} rows: a gemv kernel takes at most {GEMV_ROWS}"
    chip = Chip.of(x.device)
    tile = gemv_tile(chip, 8, n)
    splits, blocks_each = split_k(chip, tile, n, -(-weight.shape[1] // tile.block_k))
    out = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    return _launch(x, weight.scales, weight, out, tile, splits, blocks_each)


def reference_a16_gemm(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type."""
    return F.linear(x.float(), dequantise(restore_int8(weight))).to(x.dtype)


def kernel_a16_gemm(x: Tensor, weight: Int8Weight) -> Tensor:
    """What `reference_a16_gemm` computes, in one launch: codes become 16-bit in registers."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    return _launch(x, weight.scales, weight, out, gemm_tile(Chip.of(x.device), "w8a16"))


def reference_a8_gemm(x: Int8Rows, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    """x (M, K) int8 -> (M, N) in `dtype`: exact integer sums, times the row's scale, times the output's."""
    # float64 holds every sum of int8 products exactly, and torch multiplies no integers on a GPU.
    sums = (x.codes.double() @ weight.codes.double().T).float()
    return (sums * x.scales[:, None] * weight.scales.float()).to(dtype)


def kernel_a8_gemm(x: Int8Rows, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    """What `reference_a8_gemm` computes, in one launch."""
    assert not x.for_int4, "rows are in the byte order of an int4 weight"
    out = torch.empty(x.codes.shape[0], weight.shape[0], dtype=dtype, device=x.codes.device)
    return _launch(x.codes, x.scales, weight, out, gemm_tile(Chip.of(x.codes.device), "w8a8"))


def _launch(
    x: Tensor,
    row_scales: Tensor,
    weight: Int8Weight,
    out: Tensor,
    tile: Tile,
    splits: int = 1,
    blocks_each: int = 0,
) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    check_rows(x)
    assert k == weight.shape[1], f"{k} inputs for a weight {weight.shape}"
    blocks = -(-k // tile.block_k)
    _int8_gemm[(-(-m // tile.block_m), -(-n // tile.block_n), splits)](
        x,
        row_scales,
        weight.codes,
        weight.scales,
        out,
        m,
        n,
        k,
        blocks,
        blocks_each,
        SPLIT_K=blocks_each > 0,  # known when compiling: a GEMM would need more registers to find out
        EVEN_K=k % tile.block_k == 0,
        BLOCK_K=tile.block_k,
        **tile.launch(),
    )
    return out


@jit
def _int8_gemm(
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
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = x.dtype.element_ty
    INT8_ROWS: tl.constexpr = tl.int8 == TYPE
    SUM: tl.constexpr = tl.int32 if INT8_ROWS else tl.float32
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * blocks_each if SPLIT_K else 0
    last = tl.minimum(first + blocks_each, blocks) if SPLIT_K else blocks
    n_mask = (output < n)[:, None]
    m_mask = (row < m)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], SUM)
    for block in range(first, last):
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight_mask = n_mask if EVEN_K else n_mask & (place < k)[None, :]
        row_mask = m_mask if EVEN_K else m_mask & (place < k)[:, None]
        weight = tl.load(codes + output[:, None] * k + place[None, :], mask=weight_mask, other=0)
        values = tl.load(x + row[None, :] * k + place[:, None], mask=row_mask, other=0)
        acc = tl.dot(weight.to(TYPE), values, acc, out_dtype=SUM)
    total = acc.to(tl.float32)
    if INT8_ROWS:
        total *= tl.load(row_scales + row, mask=row < m, other=0.0)[None, :]
    total *= tl.load(scales + output, mask=output < n, other=0.0).to(tl.float32)[:, None]
    part = tl.program_id(2) * m if SPLIT_K else 0
    place = (part + row[None, :]) * n + output[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=n_mask & m_mask)
