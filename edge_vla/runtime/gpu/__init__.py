"""The GPU engine: an action is one launch of a CUDA graph. On a CPU the reference kernels make the same calls."""

from __future__ import annotations

from typing import Final

TRITON: Final = "triton"
ROUNDED: Final = "triton/int8"  # gemv as in `triton`; prefill and towers with activations in int8
PERSISTENT: Final = "/persistent"  # behind either: a decode step is one launch
NAMES: Final = (TRITON, ROUNDED, TRITON + PERSISTENT, ROUNDED + PERSISTENT)  # as `--kernel` has them
