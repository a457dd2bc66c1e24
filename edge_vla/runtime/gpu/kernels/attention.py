"""Attention of a pass's rows over the static cache: each row sees the slots up to its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, attention_tile


def reference(query: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """query (M, H, d); keys, values (Hkv, slots, d); start (1,) int32 on the device -> (M, H d) of the query's type.

    Row i sees slots up to start + i. What lies in later slots is never multiplied, whatever it is.
    """
    rows, heads, width = query.shape
    places = start.long() + torch.arange(rows, device=query.device)
    slots = torch.arange(keys.shape[1], device=query.device)
    written = (slots <= places[-1])[None, :, None]
    wide_keys = torch.where(written, keys, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    wide_values = torch.where(written, values, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    scores = query.float().transpose(0, 1) @ wide_keys.transpose(1, 2) / math.sqrt(width)  # (H, M, slots)
    scores = scores.masked_fill(slots > places[:, None], -math.inf)
    mixed = scores.softmax(dim=-1) @ wide_values
    return mixed.transpose(0, 1).flatten(1).to(query.dtype)


def kernel(query: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """What `reference` computes, in one launch."""
    rows, heads, width = query.shape
    check_rows(query)
    assert keys.stride()[1:] == values.stride()[1:] == (width, 1), "slots of a head lie one after another"
    assert heads % keys.shape[0] == 0, f"{heads} heads do not share {keys.shape[0]}"
    out = torch.empty(rows, heads * width, dtype=query.dtype, device=query.device)
    wide = max(16, block_of(width))
    tile = attention_tile(Chip.of(query.device), rows, wide)
    _attention[(-(-rows // tile.rows), heads)](
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
        SHARE=heads // keys.shape[0],
        HEADS=heads,
        WIDTH=width,
        TALL=tile.rows,
        SLOTS=tile.outputs,
        WIDE=wide,
        num_warps=tile.warps,
        num_stages=tile.stages,
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
    SHARE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TALL: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Softmax as the tiles of slots come by. A tile that a row does not see changes none of its bits."""
    TYPE: tl.constexpr = query.dtype.element_ty
    row = tl.program_id(0) * TALL + tl.arange(0, TALL)
    head = tl.program_id(1)
    near = tl.arange(0, SLOTS)
    column = tl.arange(0, WIDE)
    first = tl.load(start)
    place = row[:, None] * HEADS * WIDTH + head * WIDTH + column[None, :]
    asks = (row < rows)[:, None] & (column < WIDTH)[None, :]
    asked = tl.load(query + place, mask=asks, other=0.0)
    best = tl.full([TALL], -1.0e30, tl.float32)
    weight = tl.zeros([TALL], tl.float32)
    mixed = tl.zeros([TALL, WIDE], tl.float32)
    last = tl.minimum(first + tl.minimum(rows, (tl.program_id(0) + 1) * TALL), length)
    for from_slot in range(0, last, SLOTS):
        slot = from_slot + near
        inside = (slot < last)[:, None] & (column < WIDTH)[None, :]
        where = slot[:, None] * WIDTH + column[None, :]
        key = tl.load(keys + head // SHARE * key_stride + where, mask=inside, other=0.0)
        value = tl.load(values + head // SHARE * value_stride + where, mask=inside, other=0.0)
        scores = tl.dot(asked, tl.trans(key)) * scale
        scores = tl.where(slot[None, :] <= (first + row)[:, None], scores, -float("inf"))
        better = tl.maximum(best, tl.max(scores, axis=1))
        shares = tl.math.exp2(scores - better[:, None])
        fade = tl.math.exp2(best - better)
        weight = weight * fade + tl.sum(shares, axis=1)
        mixed = tl.dot(shares.to(TYPE), value, mixed * fade[:, None])
        best = better
    tl.store(out + place, (mixed / weight[:, None]).to(TYPE), mask=asks)
