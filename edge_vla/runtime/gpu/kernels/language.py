"""Triton, if it is there. A kernel file imports from here, so that its reference works where Triton does not.

Whether kernels are interpreted on the CPU is Triton's to say: it reads TRITON_INTERPRET=1 when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from edge_vla.errors import BackendError

REMEDY: Final = "pip install 'edge-vla[triton]' (Linux), or name the reference kernels"


class _Missing:
    """Stands where a kernel would: launching it says what to install."""

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
    """`triton.jit`; without Triton, what raises when it is launched."""
    return triton.jit(function) if _missing is None else _missing


def check_rows(*tensors: Tensor) -> None:
    """Kernels count on rows that lie one after another: with other strides they would read something else."""
    for tensor in tensors:
        assert tensor.is_contiguous(), f"{tuple(tensor.shape)} with strides {tensor.stride()}"


__all__ = ["check_rows", "jit", "tl"]
