"""A tower's residual stream and its norm in one pass: what a product added, its bias and layer scale, the norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, quantised


def reference(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x, added (M, D); the rest (D,) -> x + layer_scale (added + bias), and its norm, both (M, D) of x's type.

    Rounds where `model.vision` does: after the bias, after the layer scale, after the sum, after the norm.
    """
    total = x
    if added is not None:
        step = added if bias is None else added + bias
        total = x + (step if layer_scale is None else step * layer_scale)
    normed = F.layer_norm(total.float(), (x.shape[1],), weight.float(), shift.float(), eps)
    return total, normed.to(x.dtype)


def reference_int8(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> tuple[Tensor, Int8Rows]:
    total, normed = reference(x, added, bias, layer_scale, weight, shift, eps)
    return total, quantised(normed)
