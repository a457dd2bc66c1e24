"""The exact GELU of a tower's MLP and of the projector, with the product's bias."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, quantised


def reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, F), bias (F,) -> (M, F) of x's type; the biased row is rounded to it first."""
    biased = x if bias is None else x + bias
    return F.gelu(biased.float()).to(x.dtype)


def reference_int8(x: Tensor, bias: Tensor | None) -> Int8Rows:
    return quantised(reference(x, bias))
