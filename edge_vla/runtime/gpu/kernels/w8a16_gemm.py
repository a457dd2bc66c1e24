"""Many rows times an int8 weight: a prefill whose activations are not rounded."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, restore_int8


def reference(x: Tensor, weight: Int8Weight) -> Tensor:
    """x (M, K) 16-bit -> (M, N) of its type."""
    return F.linear(x.float(), dequantise(restore_int8(weight))).to(x.dtype)
