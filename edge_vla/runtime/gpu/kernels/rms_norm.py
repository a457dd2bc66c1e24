"""The residual stream and its norm in one pass: what a product added, and the next product's input."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, quantised, summed


def reference(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (M, D), added (M, D) or parts (S, M, D) float32 -> the sum, and its norm, both (M, D) of x's type.

    Rounds where `model.decoder` does: the product, the sum, the normalised row, the row times the weight.
    """
    total = x if added is None else x + summed(added, x.dtype)
    wide = total.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return total, weight * wide.to(x.dtype)


def reference_int8(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Int8Rows]:
    total, normed = reference(x, added, weight, eps)
    return total, quantised(normed)
