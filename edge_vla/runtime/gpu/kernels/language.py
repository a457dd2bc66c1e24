"""Triton, if it is installed. Kernel files import it from here, so that their references work without it.

Triton itself decides whether to interpret kernels on the CPU: it reads TRITON_INTERPRET=1 when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.runtime.gpu.kernels.tiles import Chip, compiles

REMEDY: Final = "pip install 'edge-vla[triton]' (Linux), or run with --kernel reference (slow)"


class _Missing:
    """In place of a kernel: launching it raises an error that says what to install."""

    def __init__(self, cause: ImportError) -> None:
        self._cause = cause

    def __getitem__(self, grid: object) -> Callable[..., None]:
        raise BackendError(f"Triton kernels need triton, which cannot be imported ({self._cause}): {REMEDY}")


try:
    import triton
    import triton.language as tl

    _missing: _Missing | None = None
except ImportError as cause:
    tl, _missing = None, _Missing(cause)


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`; without Triton, an object that raises when it is launched."""
    return triton.jit(function) if _missing is None else _missing


def called(function: Callable[..., Any]) -> Any:
    """`jit` of a function that stays one: its values take no registers of what calls it in a loop."""
    return triton.jit(function, noinline=True) if _missing is None else _missing


def check_rows(*tensors: Tensor) -> None:
    """Kernels assume contiguous rows: with other strides they would read the wrong values."""
    for tensor in tensors:
        assert tensor.is_contiguous(), f"{tuple(tensor.shape)} with strides {tensor.stride()}"


def overlap(device: torch.device) -> dict[str, Any]:
    """Launch arguments with which a kernel starts before the one in front of it has ended, from 9.0 on.

    CUDA calls it programmatic dependent launch. Such a kernel calls `wait_for_inputs` before it touches what an
    earlier kernel reads or writes, and each must, for a kernel waits only for the one in front of it.
    """
    early = compiles(device) and Chip.of(device).capability >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def cooperative(device: torch.device) -> bool:
    """Whether all programs of a launch can be resident, so that they may wait for each other; none interpreted are."""
    return compiles(device)


@jit
def wait_for_inputs(EARLY: tl.constexpr) -> None:
    """Until the kernel in front has ended; then the next one may start. EARLY as `overlap` says."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


__all__ = ["called", "check_rows", "cooperative", "jit", "overlap", "tl", "wait_for_inputs"]
