"""The GPU engine: an action is one launch of a CUDA graph. On a CPU the reference kernels make the same calls."""

from __future__ import annotations

from typing import Final

TRITON: Final = "triton"
ROUNDED: Final = "triton/int8"  # gemv as in `triton`; prefill and towers with activations in int8
PERSISTENT: Final = "/persistent"  # behind either: a decode step's layers are one launch, or loading fails
CHAIN: Final = "/chain"  # behind either: they are a launch for each kernel; without either word, loading finds out
NAMES: Final = tuple(name + steps for name in (TRITON, ROUNDED) for steps in ("", PERSISTENT, CHAIN))  # of `--kernel`
