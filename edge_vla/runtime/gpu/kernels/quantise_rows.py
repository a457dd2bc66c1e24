"""Rows of activations to int8, one scale a row."""

from __future__ import annotations

from torch import Tensor

from edge_vla.runtime.gpu.kernels.weights import Int8Rows, quantised


def reference(x: Tensor) -> Int8Rows:
    """x (M, K) 16-bit -> codes and scales; a row that is not finite gets scale infinity."""
    return quantised(x)
