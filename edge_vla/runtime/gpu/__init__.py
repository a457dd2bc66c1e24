"""The GPU engine: an action is one launch of one CUDA graph, or on a CPU the same calls with the reference kernels."""

from __future__ import annotations

from typing import Final

TRITON: Final = "triton"
ROUNDED: Final = "triton/int8"  # few rows as `triton`; the prefill and the towers with activations in int8
NAMES: Final = (TRITON, ROUNDED)  # as `--kernel` has them
