"""Rotation, cache and causal attention of a pass of many rows in one launch: a row attends to slots up to its own.

A program has a tile of rows and a head. It rotates its rows' keys and writes them to the cache with their values. Those
of the rows before its own, which other programs write, it takes from the product and rotates again: no program reads
what another one writes. It costs a few instructions, and saves a launch and the queries' way through memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.attention import LEAST, attended, in_cache, summed_halves, turned
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, parts_of, sum_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, attention_tile


def reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    begin: Tensor,
    count: int,
) -> Tensor:
    """The first arguments as `attention.in_cache`; of the rows `begin` .. `begin` + `count` - 1 -> (count, H d).

    begin (1,) int32 on the device. Row i attends to slots up to start + i. Later slots may hold anything, NaN too:
    nothing is multiplied by them.
    """
    query = in_cache(qkv, cos, sin, start, keys, values)
    chosen = begin.long() + torch.arange(count, device=query.device)
    return attended(query[chosen], keys, values, start.long() + chosen)


def kernel(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    begin: Tensor,
    count: int,
) -> Tensor:
    """What `reference` computes, in one launch."""
    kv_heads, _, width = keys.shape
    check_rows(qkv, cos, sin)
    rows, heads = qkv.shape[-2], qkv.shape[-1] // width - 2 * kv_heads
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "the slots of a head must be contiguous"
    assert heads % kv_heads == 0, f"{heads} query heads cannot share {kv_heads} KV heads"
    out = torch.empty(count, heads * width, dtype=keys.dtype, device=qkv.device)
    parts = parts_of(qkv)
    tile = attention_tile(Chip.of(qkv.device), width, parts)
    _prefill_attention[(-(-rows // tile.block_m), heads)](
        qkv,
        cos,
        sin,
        start,
        keys,
        values,
        begin,
        out,
        rows,
        count,
        keys.stride(0),
        values.stride(0),
        math.log2(math.e) / math.sqrt(width),
        PARTS=parts,
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        HALF=max(LEAST, block_of(width // 2)),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=False,  # as `turned` asks
        **overlap(qkv.device),
    )
    return out


@jit
def _prefill_attention(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    begin: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    TYPE: tl.constexpr = keys.dtype.element_ty
    ALL: tl.constexpr = (HEADS + 2 * KV_HEADS) * WIDTH
    half: tl.constexpr = WIDTH // 2
    head, own = tl.program_id(1), (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # what takes longest, first
    kv_head = head // (HEADS // KV_HEADS)
    keys += kv_head * key_stride
    values += kv_head * value_stride
    fresh = qkv + (HEADS + kv_head) * WIDTH
    first, wanted = tl.load(start), tl.load(begin)
    row = own + tl.arange(0, BLOCK_M)[:, None]
    column, both = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    mask, slot = (row < rows) & (column < half), (first + row) * WIDTH
    c, s = _angles(cos, sin, slot + column, mask)
    wait_for_inputs(EARLY)
    stride, is_row = rows * ALL, row < rows
    key_left, key_right, value = _fresh(fresh, row, is_row, stride, c, s, PARTS, KV_HEADS, WIDTH, HALF, ALL, TYPE)
    tl.store(keys + slot + column, key_left, mask=mask)  # heads that share keys write the same
    tl.store(keys + slot + half + column, key_right, mask=mask)
    tl.store(values + slot + both, value, mask=is_row & (both < WIDTH))
    if (own + BLOCK_M > wanted) & (own < wanted + count):
        left, right = summed_halves(qkv, row * ALL + head * WIDTH + column, mask, stride, half, PARTS, TYPE)
        left, right = turned(left, right, c, s, TYPE)
        best, weight, mixed = _before(
            fresh, cos + first * WIDTH, sin + first * WIDTH, left, right, own, stride, scale,
            PARTS, KV_HEADS, WIDTH, HALF, ALL, TYPE, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()  # every thread's slots before any thread reads them
        weight, mixed = _cached(
            keys, values, left, right, first, own, rows, scale, best, weight, mixed, WIDTH, HALF, BLOCK_M, BLOCK_N
        )
        in_out = (row >= wanted) & (row < wanted + count) & (both < WIDTH)
        to = out + (row - wanted) * HEADS * WIDTH + head * WIDTH + both
        tl.store(to, (mixed / weight[:, None]).to(TYPE), mask=in_out)


@jit
def _before(
    fresh: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    own: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    ALL: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax over the pass's rows before a program's own, which see all of them."""
    column = tl.arange(0, HALF)[None, :]
    best = tl.full([BLOCK_M], -1.0e30, tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, 2 * HALF], tl.float32)
    for begins in range(0, own, BLOCK_N):
        row = begins + tl.arange(0, BLOCK_N)[:, None]
        c, s = _angles(cos, sin, row * WIDTH + column, column < WIDTH // 2)
        key_left, key_right, value = _fresh(fresh, row, row >= 0, stride, c, s, PARTS, KV_HEADS, WIDTH, HALF, ALL, TYPE)
        scores = _scores(left, right, key_left, key_right, scale)
        best, weight, mixed = _mix(scores, value, best, weight, mixed)
    return best, weight, mixed


@jit
def _cached(
    keys: tl.tensor,
    values: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    first: tl.tensor,
    own: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    best: tl.tensor,
    weight: tl.tensor,
    mixed: tl.tensor,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The same, over the slots from before the pass, then those of the program's own rows."""
    half: tl.constexpr = WIDTH // 2
    column, both = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    last = first + own + tl.arange(0, BLOCK_M)[:, None]  # the slot up to which a row sees
    older = tl.cdiv(first, BLOCK_N)
    for tile in tl.range(0, older + BLOCK_M // BLOCK_N, num_stages=1):
        is_old = tile < older
        end = tl.where(is_old, first, first + rows)
        begins = tl.where(is_old, tile * BLOCK_N, first + own + (tile - older) * BLOCK_N)
        slot, across = begins + tl.arange(0, BLOCK_N)[:, None], begins + tl.arange(0, BLOCK_N)[None, :]
        mask = (slot < end) & (column < half)
        key_left = tl.load(keys + slot * WIDTH + column, mask=mask, other=0.0)
        key_right = tl.load(keys + slot * WIDTH + half + column, mask=mask, other=0.0)
        value = tl.load(values + slot * WIDTH + both, mask=(slot < end) & (both < WIDTH), other=0.0)
        scores = _scores(left, right, key_left, key_right, scale)
        scores = tl.where((across < end) & (across <= last), scores, -float("inf"))
        best, weight, mixed = _mix(scores, value, best, weight, mixed)
    return weight, mixed


@jit
def _angles(cos: tl.tensor, sin: tl.tensor, place: tl.tensor, mask: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    c = tl.load(cos + place, mask=mask, other=0.0).to(tl.float32)
    return c, tl.load(sin + place, mask=mask, other=0.0).to(tl.float32)


@jit
def _fresh(
    fresh: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    stride: tl.tensor,
    c: tl.tensor,
    s: tl.tensor,
    PARTS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    ALL: tl.constexpr,
    TYPE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Both halves of the rotated keys of rows of the product, and their values."""
    half: tl.constexpr = WIDTH // 2
    column, both = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    left, right = summed_halves(fresh, row * ALL + column, is_row & (column < half), stride, half, PARTS, TYPE)
    left, right = turned(left, right, c, s, TYPE)
    place = row * ALL + KV_HEADS * WIDTH + both
    return left, right, sum_of(fresh, place, is_row & (both < WIDTH), stride, PARTS).to(TYPE)


@jit
def _scores(
    left: tl.tensor, right: tl.tensor, key_left: tl.tensor, key_right: tl.tensor, scale: tl.tensor
) -> tl.tensor:
    """(rows, slots), of base 2."""
    return tl.dot(right, tl.trans(key_right), tl.dot(left, tl.trans(key_left))) * scale


@jit
def _mix(
    scores: tl.tensor, value: tl.tensor, best: tl.tensor, weight: tl.tensor, mixed: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One tile of slots more in the running maximum, sum of exponentials, and mixed values."""
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    exponentials = tl.math.exp2(scores - new_best[:, None])
    decay = tl.math.exp2(best - new_best)
    weight = weight * decay + tl.sum(exponentials, axis=1)
    return new_best, weight, tl.dot(exponentials.to(value.dtype), value, mixed * decay[:, None])
