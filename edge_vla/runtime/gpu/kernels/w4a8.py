"""Many int8 rows times an int4 weight on int8 tensor cores: int8 arithmetic on weights stored in 4 bits.

A nibble is a small int8, so widening it rounds nothing; each group's integer sum gets the group's own scale. The rows
come in the byte order of the weight, so that four nibbles are widened at once, in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.quant import GRIDS, Scheme, unpack_nibbles
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.nibbles import bytes_of, scale_k
from edge_vla.runtime.gpu.kernels.tiles import Chip, gemm_tile
from edge_vla.runtime.gpu.kernels.weights import (
    BLOCK_K,
    SHIFT_K,
    WORDS,
    Int4Weight,
    Int8Rows,
    in_input_order,
    restore_int4,
)


def reference(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype) -> Tensor:
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


def kernel(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """What `reference` computes, in one launch."""
    (m, stride), n, blocks = x.codes.shape, weight.shape[0], weight.codes.shape[0]
    check_rows(x.codes)
    assert x.for_int4, "rows are in input order, not in the byte order of an int4 weight"
    assert stride == blocks * BLOCK_K, f"rows of {stride} bytes for a weight {weight.shape}"
    tile = gemm_tile(Chip.of(x.codes.device), "w4a8")
    out = torch.empty(m, n, dtype=dtype, device=x.codes.device)
    _w4a8_gemm[(-(-m // tile.block_m), -(-n // tile.block_n))](
        x.codes,
        x.scales,
        weight.codes,
        weight.scales,
        out,
        m,
        n,
        stride,
        blocks,
        GROUP=weight.group,
        SCALE_K=scale_k(weight.group),
        BLOCK_K=BLOCK_K,
        SHIFT_K=SHIFT_K,
        WORDS=WORDS,
        **tile.launch(),
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
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT_K: tl.constexpr,
    WORDS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    word = tl.arange(0, WORDS)
    half = tl.arange(0, BLOCK_K // 2)
    n_mask = output < n
    m_mask = row < m
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(0, blocks):
        words = tl.load(codes + (block * n + output)[:, None] * WORDS + word[None, :], mask=n_mask[:, None], other=0)
        place = row[None, :] * stride + block * BLOCK_K + half[:, None]
        low = tl.load(x + place, mask=m_mask[None, :], other=0)
        high = tl.load(x + place + BLOCK_K // 2, mask=m_mask[None, :], other=0)
        for start in tl.static_range(0, BLOCK_K, SCALE_K):
            group = (block * BLOCK_K + start) // GROUP
            scale = tl.load(scales + group * n + output, mask=n_mask, other=0.0).to(tl.float32)
            sums = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
            if SCALE_K == BLOCK_K:
                sums = tl.dot(bytes_of(words, 0, -1), low, sums, out_dtype=tl.int32)
                sums = tl.dot(bytes_of(words, 4, -1), high, sums, out_dtype=tl.int32)
            else:  # every second byte belongs to another group: it counts as a zero weight
                for shift in tl.static_range(start // SHIFT_K, (start + SCALE_K) // SHIFT_K):
                    # written out: Triton's compiler refuses a constexpr that is assigned twice in an unrolled loop
                    if shift % 2 == 0:
                        kept = bytes_of(words, 0, 0x00FF00FF if shift // 2 == 0 else -0x00FF0100)
                        sums = tl.dot(kept, low, sums, out_dtype=tl.int32)
                    else:
                        kept = bytes_of(words, 4, 0x00FF00FF if shift // 2 == 0 else -0x00FF0100)
                        sums = tl.dot(kept, high, sums, out_dtype=tl.int32)
            acc += sums.to(tl.float32) * scale[:, None]
    row_scale = tl.load(row_scales + row, mask=m_mask, other=0.0)
    place = row[None, :] * n + output[:, None]
    tl.store(out + place, (acc * row_scale[None, :]).to(out.dtype.element_ty), mask=n_mask[:, None] & m_mask[None, :])
