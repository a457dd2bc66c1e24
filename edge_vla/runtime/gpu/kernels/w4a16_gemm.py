"""Many rows times an int4 weight: a prefill."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import dequantise
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, restore_int4


def reference(x: Tensor, weight: Int4Weight, *, half_sums: bool = False) -> Tensor:  # noqa: ARG001
    """x (M, K) 16-bit -> (M, N) of its type; the oracle sums in float32 whatever `half_sums` says."""
    return F.linear(x.float(), dequantise(restore_int4(weight))).to(x.dtype)
