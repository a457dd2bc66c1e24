"""Many int8 rows times an int8 weight on int8 tensor cores: a prefill, a tower."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, Int8Weight


def reference(x: Int8Rows, weight: Int8Weight, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """x (M, K), bias (N,) -> (M, N) in `dtype`: exact integer sums, then the row's scale, the output's, the bias."""
    # float64 holds every sum of int8 products exactly, and torch multiplies no integers on a GPU.
    sums = (x.codes.double() @ weight.codes.double().T).float()
    out = sums * x.scales[:, None] * weight.scales.float()
    return (out if bias is None else out + bias.float()).to(dtype)
