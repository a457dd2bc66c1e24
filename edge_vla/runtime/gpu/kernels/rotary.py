"""Queries, keys and values apart; queries and keys turned by their positions; keys and values into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.model.decoder import rotate
from edge_vla.runtime.gpu.kernels.weights import summed


def reference(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """qkv (M, (H + 2 Hkv) d) or parts (S, M, …) float32 -> queries (M, H, d) of the cache's type.

    cos, sin (positions, d) as `rotary_tables` makes them; start (1,) int32 on the device: the first row's position;
    keys, values (Hkv, slots, d), of which start..start + M - 1 are written.
    """
    heads, width = keys.shape[0], keys.shape[2]
    rows = summed(qkv, keys.dtype)
    rows = rows.view(rows.shape[0], -1, width)
    places = start.long() + torch.arange(rows.shape[0], device=rows.device)
    turned = rotate(rows[:, :-heads], cos[places, None], sin[places, None])
    keys[:, places] = turned[:, -heads:].transpose(0, 1)
    values[:, places] = rows[:, -heads:].transpose(0, 1)
    return turned[:, :-heads].contiguous()
