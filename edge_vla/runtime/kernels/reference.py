"""The oracle: dequantise, then multiply in the working type. Slow, exact about what the codes mean, runs anywhere."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.quant import PackedWeight, Scheme, dequantise

BATCH_INVARIANT_ROWS: Final = 8  # fewer are padded to this many: bits would depend on their number


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, K) times weight (N, K) transposed -> (rows, N)."""
    rows = x.shape[0]
    if rows >= BATCH_INVARIANT_ROWS:
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, BATCH_INVARIANT_ROWS - rows)), weight)[:rows]


class Dense(nn.Module):
    """An unquantised weight: torch's own product."""

    name = "torch"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:  # noqa: ARG003
        return packed.scheme is Scheme.BF16

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = packed.codes.to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Reference(nn.Module):
    """Codes stay packed; each product dequantises the whole weight first."""

    name = "reference"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:  # noqa: ARG003
        return True

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        scales, zeros = (None if part is None else part.to(device) for part in (packed.scales, packed.zeros))
        self.packed = dataclasses.replace(packed, codes=packed.codes.to(device), scales=scales, zeros=zeros)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantise(self.packed, self.dtype)
        return product(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)
