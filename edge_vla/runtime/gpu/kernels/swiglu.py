"""The gate of a Llama MLP: silu(gate) times up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, quantised, summed


def reference(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """gate and up side by side (M, 2 F), or parts (S, M, 2 F) float32 -> (M, F) in `dtype`."""
    gate, up = summed(gate_up, dtype).chunk(2, dim=-1)
    return F.silu(gate) * up


def reference_int8(gate_up: Tensor, dtype: torch.dtype) -> Int8Rows:
    return quantised(reference(gate_up, dtype))
