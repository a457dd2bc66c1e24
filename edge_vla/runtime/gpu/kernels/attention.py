"""Attention of a pass's rows over the static cache: each row sees the slots up to its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
