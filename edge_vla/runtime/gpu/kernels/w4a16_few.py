"""A few rows times an int4 weight: a decode step, a verifying pass.

Bytes decide here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, restore_int4


def reference(x: Tensor, weight: Int4Weight) -> Tensor:
    """x (M <= 8, K) 16-bit -> (1, M, N) float32."""
    return F.linear(x.float(), dequantise(restore_int4(weight)))[None]
