"""Splits queries, keys and values, rotates queries and keys by their positions, writes keys and values to the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.model.decoder import rotate
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, parts_of, rounded, sum_of
from edge_vla.runtime.gpu.kernels.weights import summed

HEADS_EACH = 8  # heads per program


def reference(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """qkv (M, (H + 2 Hkv) d) or parts (S, M, …) float32 -> queries (M, H, d) of the cache's type.

    cos, sin (positions, d) as `rotary_tables` makes them, two equal halves; start (1,) int32 on the device, the first
    row's position; keys, values (Hkv, slots, d), whose slots start .. start + M - 1 are written.
    """
    heads, width = keys.shape[0], keys.shape[2]
    rows = summed(qkv, keys.dtype)
    rows = rows.view(rows.shape[0], -1, width)
    places = start.long() + torch.arange(rows.shape[0], device=rows.device)
    rotated = rotate(rows[:, :-heads], cos[places, None], sin[places, None])
    keys[:, places] = rotated[:, -heads:].transpose(0, 1)
    values[:, places] = rows[:, -heads:].transpose(0, 1)
    return rotated[:, :-heads].contiguous()


def kernel(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What `reference` computes, in one launch."""
    kv_heads, _, width = keys.shape
    check_rows(qkv, cos, sin)
    rows, heads = qkv.shape[-2], qkv.shape[-1] // width - 2 * kv_heads
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "the slots of a head must be contiguous"
    query = torch.empty(rows, heads, width, dtype=keys.dtype, device=qkv.device)
    _rotary[(rows, -(-(heads + 2 * kv_heads) // HEADS_EACH))](
        qkv,
        cos,
        sin,
        start,
        query,
        keys,
        values,
        keys.stride(0),
        values.stride(0),
        rows,
        PARTS=parts_of(qkv),
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        HALF=block_of(width // 2),
        HEADS_EACH=HEADS_EACH,
        num_warps=2,
        enable_fp_fusion=False,  # LLVM narrows to 16 bits, and would make one fma of a product and a sum rounded apart
        **overlap(qkv.device),
    )
    return query


@jit
def _rotary(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    start: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    rows: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_EACH: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = keys.dtype.element_ty
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS_EACH + tl.arange(0, HEADS_EACH)[:, None]
    column = tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    position = tl.load(start) + row
    in_half = column < half
    mask = (head < ALL) & in_half
    place = row * ALL * WIDTH + head * WIDTH + column
    c = tl.load(cos + position * WIDTH + column, mask=in_half, other=0.0).to(tl.float32)
    s = tl.load(sin + position * WIDTH + column, mask=in_half, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    stride = rows * ALL * WIDTH
    left = rounded(sum_of(qkv, place, mask, stride, PARTS), TYPE)
    right = rounded(sum_of(qkv, place + half, mask, stride, PARTS), TYPE)
    rotated_left, rotated_right = turned(left, right, c, s, TYPE)

    is_query = mask & (head < HEADS)
    to = query + row * HEADS * WIDTH + head * WIDTH + column
    tl.store(to, rotated_left, mask=is_query)
    tl.store(to + half, rotated_right, mask=is_query)
    is_key = mask & (head >= HEADS) & (head < HEADS + KV_HEADS)
    to = keys + (head - HEADS) * key_stride + position * WIDTH + column
    tl.store(to, rotated_left, mask=is_key)
    tl.store(to + half, rotated_right, mask=is_key)
    is_value = mask & (head >= HEADS + KV_HEADS)
    to = values + (head - HEADS - KV_HEADS) * value_stride + position * WIDTH + column
    tl.store(to, left.to(TYPE), mask=is_value)
    tl.store(to + half, right.to(TYPE), mask=is_value)


@jit
def turned(
    left: tl.tensor, right: tl.tensor, c: tl.tensor, s: tl.tensor, TYPE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of rotated rows, each product rounded as torch rounds it; compile with enable_fp_fusion off."""
    rotated_left = rounded(left * c, TYPE) - rounded(right * s, TYPE)
    rotated_right = rounded(right * c, TYPE) + rounded(left * s, TYPE)
    return rotated_left.to(TYPE), rotated_right.to(TYPE)
