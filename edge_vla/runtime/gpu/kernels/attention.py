"""Causal attention of a pass's rows over the static KV cache: each row attends to the slots up to its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, attention_tile


def reference(query: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """query (M, H, d); keys, values (Hkv, slots, d); start (1,) int32 on the device -> (M, H d) of the query's type.

    Row i attends to slots up to start + i. Later slots may hold anything, NaN too: nothing is multiplied by them.
    """
    rows, heads, width = query.shape
    places = start.long() + torch.arange(rows, device=query.device)
    slots = torch.arange(keys.shape[1], device=query.device)
    written = (slots <= places[-1])[None, :, None]
    all_keys = torch.where(written, keys, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    all_values = torch.where(written, values, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    scores = query.float().transpose(0, 1) @ all_keys.transpose(1, 2) / math.sqrt(width)  # (H, M, slots)
    scores = scores.masked_fill(slots > places[:, None], -math.inf)
    mixed = scores.softmax(dim=-1) @ all_values
    return mixed.transpose(0, 1).flatten(1).to(query.dtype)


def kernel(query: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, heads, width = query.shape
    check_rows(query)
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "the slots of a head must be contiguous"
    assert heads % keys.shape[0] == 0, f"{heads} query heads cannot share {keys.shape[0]} KV heads"
    out = torch.empty(rows, heads * width, dtype=query.dtype, device=query.device)
    block_d = max(16, block_of(width))
    tile = attention_tile(Chip.of(query.device), rows, block_d)
    _attention[(-(-rows // tile.block_m), heads)](
        query,
        keys,
        values,
        start,
        out,
        rows,
        keys.shape[1],
        keys.stride(0),
        values.stride(0),
        math.log2(math.e) / math.sqrt(width),
        QUERIES_PER_KV=heads // keys.shape[0],
        HEADS=heads,
        WIDTH=width,
        BLOCK_D=block_d,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **overlap(query.device),
    )
    return out


@jit
def _attention(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    scale: tl.tensor,
    QUERIES_PER_KV: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Online softmax over tiles of slots. A tile beyond a row's own slot changes none of its bits."""
    TYPE: tl.constexpr = query.dtype.element_ty
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1)
    offset = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    first = tl.load(start)
    place = row[:, None] * HEADS * WIDTH + head * WIDTH + column[None, :]
    row_mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
    wait_for_inputs(EARLY)
    q = tl.load(query + place, mask=row_mask, other=0.0)
    best = tl.full([BLOCK_M], -1.0e30, tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(first + tl.minimum(rows, (tl.program_id(0) + 1) * BLOCK_M), length)
    for tile in range(0, last, BLOCK_N):
        slot = tile + offset
        slot_mask = (slot < last)[:, None] & (column < WIDTH)[None, :]
        where = slot[:, None] * WIDTH + column[None, :]
        key = tl.load(keys + head // QUERIES_PER_KV * key_stride + where, mask=slot_mask, other=0.0)
        value = tl.load(values + head // QUERIES_PER_KV * value_stride + where, mask=slot_mask, other=0.0)
        scores = tl.dot(q, tl.trans(key)) * scale
        scores = tl.where(slot[None, :] <= (first + row)[:, None], scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        exponentials = tl.math.exp2(scores - new_best[:, None])
        decay = tl.math.exp2(best - new_best)
        weight = weight * decay + tl.sum(exponentials, axis=1)
        mixed = tl.dot(exponentials.to(TYPE), value, mixed * decay[:, None])
        best = new_best
    tl.store(out + place, (mixed / weight[:, None]).to(TYPE), mask=row_mask)
