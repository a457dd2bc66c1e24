"""The next action id without leaving the device: logits of the action ids, the best bin and its margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels import w16
from edge_vla.runtime.gpu.kernels.language import jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, rounded, sum_of, warps_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, head_tile


@dataclass(frozen=True, slots=True)
class Choice:
    bins: Tensor  # (M,) int32: the lowest index among the best logits
    margins: Tensor  # (M,) float32: best minus second-best logit; NaN where a logit of the row is not finite


def reference(hidden: Tensor, head: Tensor) -> Choice:
    """hidden (M <= 8, D) and head (bins, D), both of one 16-bit type. Logits are rounded to it first."""
    logits = F.linear(hidden.float(), head.float()).to(hidden.dtype).float()
    best = logits.amax(dim=1, keepdim=True)
    order = torch.arange(logits.shape[1], device=logits.device)
    bins = torch.where(logits == best, order, logits.shape[1]).amin(dim=1).clamp(max=logits.shape[1] - 1)
    second = logits.masked_fill(order == bins[:, None], -torch.inf).amax(dim=1)
    margins = torch.where(logits.isfinite().all(dim=1), best[:, 0] - second, torch.nan)
    return Choice(bins.to(torch.int32), margins)


def kernel(hidden: Tensor, head: Tensor) -> Choice:
    """What `reference` computes, in two launches."""
    m, n, device = hidden.shape[0], head.shape[0], hidden.device
    logits = w16.kernel_gemv(hidden, head, head_tile(Chip.of(device), n))
    bins = torch.empty(m, dtype=torch.int32, device=device)
    margins = torch.empty(m, dtype=torch.float32, device=device)
    block = block_of(n)
    _choose[(m,)](
        logits,
        hidden,
        bins,
        margins,
        m,
        SPLITS=logits.shape[0],
        COUNT=n,
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(device),
    )
    return Choice(bins, margins)


@jit
def _choose(
    logits: tl.tensor,
    typed: tl.tensor,
    bins: tl.tensor,
    margins: tl.tensor,
    rows: tl.tensor,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    order = tl.arange(0, BLOCK)
    mask = order < COUNT
    wait_for_inputs(EARLY)
    values = rounded(sum_of(logits, row * COUNT + order, mask, rows * COUNT, SPLITS), typed.dtype.element_ty)
    wrong = tl.sum(tl.where(mask & ~(tl.abs(values) < float("inf")), 1, 0), axis=0)
    values = tl.where(mask, values, -float("inf"))
    best = tl.max(values, axis=0)
    chosen = tl.minimum(tl.min(tl.where(values == best, order, COUNT), axis=0), COUNT - 1)
    second = tl.max(tl.where(order == chosen, -float("inf"), values), axis=0)
    tl.store(bins + row, chosen)
    tl.store(margins + row, tl.where(wrong > 0, float("nan"), best - second))
