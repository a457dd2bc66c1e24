"""int8 times int8: each row of activations is rounded to 255 steps, and sums of products are whole numbers.

Whole sums do not depend on their order, so the product is batch-invariant and the fast one equals the slow one bit for
bit.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.quant import PackedWeight, Scheme

STEPS: Final = 127  # the code of a row's largest magnitude
MOST_INPUTS: Final = (2**31 - 1) // STEPS**2  # the sum of this many products fits 32 bits


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (T, K) -> int8 codes (T, K) and float32 steps (T, 1), one a row.

    A row that is not finite has a step that is not, and its products are not finite either.
    """
    steps = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=torch.float32).div_(STEPS)
    steps.clamp_(min=torch.finfo(torch.float32).tiny)
    return x.div(steps).round_().to(torch.int8), steps


def multiply(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x (T, K) rounded by rows, times int8 codes (N, K) with float32 scales (N,) -> (T, N) in x's type."""
    rounded, steps = round_rows(x)
    sums = torch._int_mm(rounded, codes.t()).float()
    return sums.mul_(steps).mul_(scales).to(x.dtype)


class RoundedRows(nn.Module):
    """The oracle: the whole sums in float64, which holds them exactly. Runs anywhere."""

    name = "reference"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:  # noqa: ARG003
        return packed.scheme is Scheme.W8A8

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:  # noqa: ARG002
        super().__init__()
        assert packed.scales is not None, "int8 has scales"
        # Copies: a weight mapped from a file may lie at an odd address.
        self.codes = packed.codes.to(device, copy=True)
        self.scales = packed.scales.to(device, torch.float32, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rounded, steps = round_rows(flat)
        sums = (rounded.double() @ self.codes.double().T).float()
        return sums.mul_(steps).mul_(self.scales).to(x.dtype).view(*x.shape[:-1], -1)


class CpuW8A8(RoundedRows):
    """torch's own int8 product, for decode steps and prefills."""

    name = "torch-int-mm"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:  # noqa: ARG003
        fits = packed.scheme is Scheme.W8A8 and packed.shape[1] <= MOST_INPUTS
        return fits and device.type == "cpu" and works()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return multiply(flat, self.codes, self.scales).view(*x.shape[:-1], -1)


@cache
def works() -> bool:
    """Whether torch has its private product, exact for one row and for many, at the largest codes too."""
    if not hasattr(torch, "_int_mm"):
        return False
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-STEPS, STEPS + 1, (48, 1024), generator=generator).to(torch.int8)
    codes[:2] = STEPS
    try:
        got = [torch._int_mm(rows, codes.t()) for rows in (codes[:1], codes[:9], codes)]
    except (RuntimeError, NotImplementedError):
        return False
    return all(torch.equal(sums.double(), codes[: len(sums)].double() @ codes.double().T) for sums in got)
