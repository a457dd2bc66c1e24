"""Queries, keys and values apart; queries and keys turned by their positions; keys and values into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.model.decoder import rotate
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, parts_of, rounded, sum_of
from edge_vla.runtime.gpu.kernels.weights import summed

TOGETHER = 8  # heads of one program


def reference(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """qkv (M, (H + 2 Hkv) d) or parts (S, M, …) float32 -> queries (M, H, d) of the cache's type.

    cos, sin (positions, d) as `rotary_tables` makes them: two equal halves; start (1,) int32 on the device: the first
    row's position; keys, values (Hkv, slots, d), of which start..start + M - 1 are written.
    """
    heads, width = keys.shape[0], keys.shape[2]
    rows = summed(qkv, keys.dtype)
    rows = rows.view(rows.shape[0], -1, width)
    places = start.long() + torch.arange(rows.shape[0], device=rows.device)
    turned = rotate(rows[:, :-heads], cos[places, None], sin[places, None])
    keys[:, places] = turned[:, -heads:].transpose(0, 1)
    values[:, places] = rows[:, -heads:].transpose(0, 1)
    return turned[:, :-heads].contiguous()


def kernel(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What `reference` computes, in one launch."""
    kv_heads, _, width = keys.shape
    check_rows(qkv, cos, sin)
    rows, heads = qkv.shape[-2], qkv.shape[-1] // width - 2 * kv_heads
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "slots of a head lie one after another"
    query = torch.empty(rows, heads, width, dtype=keys.dtype, device=qkv.device)
    _rotary[(rows, -(-(heads + 2 * kv_heads) // TOGETHER))](
        qkv,
        cos,
        sin,
        start,
        query,
        keys,
        values,
        keys.stride(0),
        values.stride(0),
        PARTS=parts_of(qkv),
        ROWS=rows,
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        HALF=block_of(width // 2),
        TOGETHER=TOGETHER,
        num_warps=2,
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
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = keys.dtype.element_ty
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    row = tl.program_id(0)
    head = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    column = tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    position = tl.load(start) + row
    inside = column < half
    real = (head < ALL) & inside
    place = row * ALL * WIDTH + head * WIDTH + column
    left = rounded(sum_of(qkv, place, real, ROWS * ALL * WIDTH, PARTS), TYPE)
    right = rounded(sum_of(qkv, place + half, real, ROWS * ALL * WIDTH, PARTS), TYPE)
    near = tl.load(cos + position * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    far = tl.load(sin + position * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    turned_left = rounded(left * near, TYPE) - rounded(right * far, TYPE)
    turned_right = rounded(right * near, TYPE) + rounded(left * far, TYPE)

    asks = real & (head < HEADS)
    to = query + row * HEADS * WIDTH + head * WIDTH + column
    tl.store(to, turned_left.to(TYPE), mask=asks)
    tl.store(to + half, turned_right.to(TYPE), mask=asks)
    answers = real & (head >= HEADS) & (head < HEADS + KV_HEADS)
    to = keys + (head - HEADS) * key_stride + position * WIDTH + column
    tl.store(to, turned_left.to(TYPE), mask=answers)
    tl.store(to + half, turned_right.to(TYPE), mask=answers)
    tells = real & (head >= HEADS + KV_HEADS)
    to = values + (head - HEADS - KV_HEADS) * value_stride + position * WIDTH + column
    tl.store(to, left.to(TYPE), mask=tells)
    tl.store(to + half, right.to(TYPE), mask=tells)
