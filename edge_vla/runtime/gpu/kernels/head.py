"""The next token without leaving the device: logits of the action ids, the best of them, its lead, its embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """`margins`: the best logit's lead over the second; NaN where a logit of the row is not finite."""

    bins: Tensor  # (M,) int32: the lowest index among the best
    margins: Tensor  # (M,) float32
    embedded: Tensor  # (M, D): the chosen rows' embeddings


def reference(hidden: Tensor, head: Tensor, embeddings: Tensor) -> Choice:
    """hidden (M <= 8, D), head and embeddings (bins, D), all of one 16-bit type. Logits are rounded to it first."""
    logits = F.linear(hidden.float(), head.float()).to(hidden.dtype).float()
    best = logits.amax(dim=1, keepdim=True)
    order = torch.arange(logits.shape[1], device=logits.device)
    bins = torch.where(logits == best, order, logits.shape[1]).amin(dim=1).clamp(max=logits.shape[1] - 1)
    second = logits.masked_fill(order == bins[:, None], -torch.inf).amax(dim=1)
    margins = torch.where(logits.isfinite().all(dim=1), best[:, 0] - second, torch.nan)
    return Choice(bins.to(torch.int32), margins, embeddings[bins])
