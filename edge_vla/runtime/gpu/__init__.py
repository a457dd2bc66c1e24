"""The GPU engine: an action is one launch of a CUDA graph. On a CPU the reference kernels make the same calls."""

from __future__ import annotations

from typing import Final

TRITON: Final = "triton"
ROUNDED: Final = "triton/int8"  # gemv as in `triton`; prefill and towers with activations in int8
NAMES: Final = (TRITON, ROUNDED)  # as `--kernel` has them
