"""Rotation, cache and attention of a pass of few rows in one launch: split over the cache's slots, combined at once.

Slots before the pass go to SPLITS - 1 programs per head, in tiles of SLOTS; the pass's own keys and values come from
its product and belong to the last program, which alone writes them to the cache. Each leaves a partial sum; the last to
arrive adds them, always in the order of the splits, so that no bit depends on who that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.attention import LEAST, attended, in_cache, summed_halves, turned
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, parts_of
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS

SPLITS: Final = 8  # programs per head; seven tiles hold the image and a prompt of 192 tokens
SLOTS: Final = 64  # of a tile


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the programs of a head tell each other. Each launch leaves `tickets` at zero, as the next expects them."""

    sums: Tensor  # (heads, SPLITS, width + 2, GEMV_ROWS) float32: mixed values, largest score, sum of exponentials
    tickets: Tensor  # (heads,) int32: programs that have arrived

    @staticmethod
    def allocate(heads: int, width: int, device: torch.device) -> Scratch:
        sums = torch.zeros(heads, SPLITS, width + 2, GEMV_ROWS, device=device)
        return Scratch(sums, torch.zeros(heads, dtype=torch.int32, device=device))

    @property
    def bytes(self) -> int:
        return self.sums.nbytes + self.tickets.nbytes


def reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    scratch: Scratch,  # noqa: ARG001  the kernel's
) -> Tensor:
    """Arguments as `attention.in_cache` -> what each row attends to (M, H d). M <= GEMV_ROWS."""
    query = in_cache(qkv, cos, sin, start, keys, values)
    return attended(query, keys, values, start.long() + torch.arange(query.shape[0], device=query.device))


def kernel(
    qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor, scratch: Scratch
) -> Tensor:
    """What `reference` computes, in one launch."""
    kv_heads, _, width = keys.shape
    check_rows(qkv, cos, sin)
    rows, heads = qkv.shape[-2], qkv.shape[-1] // width - 2 * kv_heads
    assert rows <= GEMV_ROWS, f"{rows} rows: a pass takes at most {GEMV_ROWS}"
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "the slots of a head must be contiguous"
    assert scratch.sums.shape == (heads, SPLITS, width + 2, GEMV_ROWS), tuple(scratch.sums.shape)
    out = torch.empty(rows, heads * width, dtype=keys.dtype, device=qkv.device)
    _pass_attention[(heads, SPLITS)](
        qkv,
        cos,
        sin,
        start,
        keys,
        values,
        scratch.sums,
        scratch.tickets,
        out,
        rows,
        keys.stride(0),
        values.stride(0),
        math.log2(math.e) / math.sqrt(width),
        PARTS=parts_of(qkv),
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        HALF=max(LEAST, block_of(width // 2)),
        SLOTS=SLOTS,
        SPLITS=SPLITS,
        ROWS=GEMV_ROWS,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,  # as `turned` asks
        **overlap(qkv.device),
    )
    return out


@jit
def _pass_attention(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    sums: tl.tensor,
    tickets: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    attend_part(
        qkv, cos, sin, start, keys, values, sums, tickets, out, tl.program_id(0), tl.program_id(1),
        rows, key_stride, value_stride, scale,
        PARTS, HEADS, KV_HEADS, WIDTH, HALF, SLOTS, SPLITS, ROWS, EARLY,
    )  # fmt: skip


@jit
def attend_part(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    sums: tl.tensor,
    tickets: tl.tensor,
    out: tl.tensor,
    head: tl.tensor,
    split: tl.tensor,
    rows: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program's share: split `split` of head `head`, and the head's result if it arrives last."""
    OLD: tl.constexpr = SPLITS - 1
    SHARE: tl.constexpr = HEADS // KV_HEADS
    first = tl.load(start)
    tiles = tl.cdiv(first, SLOTS)
    each = tl.maximum(tl.cdiv(tiles, OLD), 1)
    used = tl.cdiv(tiles, each)
    if (split == OLD) | (split < used):
        key, value = keys + head // SHARE * key_stride, values + head // SHARE * value_stride
        begin = tl.where(split == OLD, first, split * each * SLOTS)
        end = tl.where(split == OLD, first + rows, tl.minimum(begin + each * SLOTS, first))
        to = sums + (head * SPLITS + split) * (WIDTH + 2) * ROWS
        _split(
            qkv, cos, sin, key, value, to, first, rows, scale, head, begin, end, split == OLD,
            PARTS, HEADS, KV_HEADS, WIDTH, HALF, ROWS, SLOTS, EARLY,
        )  # fmt: skip
        tl.debug_barrier()  # every thread's part before the ticket, whose release covers them all
        arrived = tl.atomic_add(tickets + head, 1, sem="acq_rel", scope="gpu")
        if arrived == used:
            place = sums + head * SPLITS * (WIDTH + 2) * ROWS
            _combine(place, out + head * WIDTH, used, rows, HEADS * WIDTH, WIDTH, HALF, SPLITS, ROWS)
            tl.store(tickets + head, 0)


@jit
def _split(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    to: tl.tensor,
    first: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    head: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    is_new: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """The partial sum over the slots `begin` .. `end` of a head; the pass's own are written first.

    Scores of a tile are (slots, rows), mixed values (half a width, rows): a product's narrow side is the rows.
    Positions and older slots are read before the wait: what wrote them lies more than one kernel back, and has ended.
    """
    TYPE: tl.constexpr = keys.dtype.element_ty
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    half: tl.constexpr = WIDTH // 2
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    in_rows = (row < rows) & (column < half)
    new = (first + row) * WIDTH + column
    slot = begin + tl.arange(0, SLOTS)
    where = slot[:, None] * WIDTH + column
    mask = (slot < tl.minimum(end, first))[:, None] & (column < half)
    key_left, key_right = _halves(keys, where, mask, half)
    value_left, value_right = _halves(values, where, mask, half)
    c = tl.load(cos + new, mask=in_rows, other=0.0).to(tl.float32)
    s = tl.load(sin + new, mask=in_rows, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    stride, own, place = rows * ALL * WIDTH, in_rows & is_new, row * ALL * WIDTH + head * WIDTH + column
    kv_place = row * ALL * WIDTH + (HEADS + head // (HEADS // KV_HEADS)) * WIDTH + column
    new_left, new_right = summed_halves(qkv, kv_place, own, stride, half, PARTS, TYPE)
    new_value_left, new_value_right = summed_halves(qkv, kv_place + KV_HEADS * WIDTH, own, stride, half, PARTS, TYPE)
    query_left, query_right = summed_halves(qkv, place, in_rows, stride, half, PARTS, TYPE)
    new_left, new_right = turned(new_left, new_right, c, s, TYPE)
    query_left, query_right = turned(query_left, query_right, c, s, TYPE)
    _store_halves(keys + new, new_left, new_right, own, half)
    _store_halves(values + new, new_value_left.to(TYPE), new_value_right.to(TYPE), own, half)
    if is_new:  # all heads that share keys write the same, so each may read what it wrote
        tl.debug_barrier()  # every thread's slots before any thread reads them
        mask = (slot < end)[:, None] & (column < half)
        key_left, key_right = _halves(keys, where, mask, half)
        value_left, value_right = _halves(values, where, mask, half)
    _attend(
        keys, values, key_left, key_right, value_left, value_right, query_left, query_right, to, slot, begin, end,
        first, scale, WIDTH, HALF, ROWS, SLOTS,
    )  # fmt: skip


@jit
def _attend(
    keys: tl.tensor,
    values: tl.tensor,
    key_left: tl.tensor,
    key_right: tl.tensor,
    value_left: tl.tensor,
    value_right: tl.tensor,
    query_left: tl.tensor,
    query_right: tl.tensor,
    to: tl.tensor,
    slot: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    first: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Online softmax over the slots `begin` .. `end`, whose first tile is loaded; the sum is left for others."""
    half: tl.constexpr = WIDTH // 2
    column = tl.arange(0, HALF)[None, :]
    where = slot[:, None] * WIDTH + column
    last = first + tl.arange(0, ROWS)  # the slot up to which a row sees
    best = tl.full([ROWS], -1.0e30, tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    left = tl.zeros([HALF, ROWS], tl.float32)
    right = tl.zeros([HALF, ROWS], tl.float32)
    for _ in tl.range(begin, end, SLOTS, num_stages=1):  # the loop loads ahead itself
        scores = tl.dot(key_left, tl.trans(query_left))
        scores = tl.dot(key_right, tl.trans(query_right), scores) * scale
        scores = tl.where((slot < end)[:, None] & (slot[:, None] <= last[None, :]), scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=0))
        exponentials = tl.math.exp2(scores - new_best[None, :])
        decay = tl.math.exp2(best - new_best)
        weight = weight * decay + tl.sum(exponentials, axis=0)
        left = tl.dot(tl.trans(value_left), exponentials.to(keys.dtype.element_ty), left * decay[None, :])
        right = tl.dot(tl.trans(value_right), exponentials.to(keys.dtype.element_ty), right * decay[None, :])
        best = new_best
        slot += SLOTS
        where += SLOTS * WIDTH
        mask = (slot < end)[:, None] & (column < half)
        key_left, key_right = _halves(keys, where, mask, half)
        value_left, value_right = _halves(values, where, mask, half)
    _leave(to, left, right, best, weight, WIDTH, HALF, ROWS)


@jit
def _halves(tensor: tl.tensor, place: tl.tensor, mask: tl.tensor, half: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of slots (slots, HALF)."""
    return tl.load(tensor + place, mask=mask, other=0.0), tl.load(tensor + place + half, mask=mask, other=0.0)


@jit
def _store_halves(to: tl.tensor, left: tl.tensor, right: tl.tensor, mask: tl.tensor, half: tl.constexpr) -> None:
    tl.store(to, left, mask=mask)
    tl.store(to + half, right, mask=mask)


@jit
def _leave(
    to: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    best: tl.tensor,
    weight: tl.tensor,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A partial sum, for whoever combines them."""
    row, column = tl.arange(0, ROWS), tl.arange(0, HALF)[:, None]
    mask = (column < WIDTH // 2) & (row[None, :] < ROWS)
    tl.store(to + column * ROWS + row[None, :], left, mask=mask)
    tl.store(to + (column + WIDTH // 2) * ROWS + row[None, :], right, mask=mask)
    tl.store(to + WIDTH * ROWS + row, best)
    tl.store(to + (WIDTH + 1) * ROWS + row, weight)


@jit
def _combine(
    sums: tl.tensor,
    out: tl.tensor,
    used: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The head's result from the partial sums of the splits in use. They lie in L2: another SM wrote them."""
    EACH: tl.constexpr = (WIDTH + 2) * ROWS
    row, column = tl.arange(0, ROWS), tl.arange(0, HALF)[:, None]
    in_half = (column < WIDTH // 2) & (row[None, :] < ROWS)
    place = column * ROWS + row[None, :]
    best = tl.full([ROWS], -1.0e30, tl.float32)
    for split in tl.static_range(SPLITS):
        in_use = (row < ROWS) & ((split < used) | (split == SPLITS - 1))
        at = sums + split * EACH + WIDTH * ROWS + row
        best = tl.maximum(best, tl.load(at, mask=in_use, other=-1.0e30, cache_modifier=".cg"))
    weight = tl.zeros([ROWS], tl.float32)
    left = tl.zeros([HALF, ROWS], tl.float32)
    right = tl.zeros([HALF, ROWS], tl.float32)
    for split in tl.static_range(SPLITS):
        is_used = (split < used) | (split == SPLITS - 1)
        in_use, mask, at = (row < ROWS) & is_used, in_half & is_used, sums + split * EACH
        here = tl.load(at + WIDTH * ROWS + row, mask=in_use, other=-1.0e30, cache_modifier=".cg")
        factor = tl.math.exp2(here - best)
        weight += factor * tl.load(at + (WIDTH + 1) * ROWS + row, mask=in_use, other=0.0, cache_modifier=".cg")
        left += factor[None, :] * tl.load(at + place, mask=mask, other=0.0, cache_modifier=".cg")
        right += factor[None, :] * tl.load(at + place + WIDTH // 2 * ROWS, mask=mask, other=0.0, cache_modifier=".cg")
    to = out + row[None, :] * stride + column
    mask = in_half & (row < rows)[None, :]
    tl.store(to, (left / weight[None, :]).to(out.dtype.element_ty), mask=mask)
    tl.store(to + WIDTH // 2, (right / weight[None, :]).to(out.dtype.element_ty), mask=mask)
