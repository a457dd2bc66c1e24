"""What the kernels of attention share: references of its two halves, and rotation on the way to a product."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from edge_vla.model.decoder import rotate
from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.row_kernel import rounded, sum_of
from edge_vla.runtime.gpu.kernels.weights import summed

LEAST: Final = 16  # a side of a product


def in_cache(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Splits queries, keys and values, rotates queries and keys, writes keys and values to the cache.

    qkv (M, (H + 2 Hkv) d) or parts (S, M, …) float32 -> queries (M, H, d) of the cache's type.

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


def attended(query: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """query (M, H, d); keys, values (Hkv, slots, d); places (M,), the slot up to which a row sees -> (M, H d)."""
    heads, width = query.shape[1:]
    slots = torch.arange(keys.shape[1], device=query.device)
    written = (slots <= places[-1])[None, :, None]
    all_keys = torch.where(written, keys, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    all_values = torch.where(written, values, 0).float().repeat_interleave(heads // keys.shape[0], dim=0)
    scores = query.float().transpose(0, 1) @ all_keys.transpose(1, 2) / math.sqrt(width)  # (H, M, slots)
    scores = scores.masked_fill(slots > places[:, None], -math.inf)
    mixed = scores.softmax(dim=-1) @ all_values
    return mixed.transpose(0, 1).flatten(1).to(query.dtype)


@jit
def summed_halves(
    qkv: tl.tensor,
    place: tl.tensor,
    mask: tl.tensor,
    stride: tl.tensor,
    half: tl.constexpr,
    PARTS: tl.constexpr,
    TYPE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of a product's rows, float32, rounded to its type."""
    left = rounded(sum_of(qkv, place, mask, stride, PARTS), TYPE)
    return left, rounded(sum_of(qkv, place + half, mask, stride, PARTS), TYPE)


@jit
def turned(
    left: tl.tensor, right: tl.tensor, c: tl.tensor, s: tl.tensor, TYPE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of rotated rows, each product rounded as torch rounds it.

    Compile with enable_fp_fusion off: LLVM narrows to 16 bits, and would make one fma of a product and a sum that are
    rounded apart.
    """
    rotated_left = rounded(left * c, TYPE) - rounded(right * s, TYPE)
    rotated_right = rounded(right * c, TYPE) + rounded(left * s, TYPE)
    return rotated_left.to(TYPE), rotated_right.to(TYPE)
