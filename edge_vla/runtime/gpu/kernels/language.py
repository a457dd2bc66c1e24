"""Triton, if it is there. A kernel file imports from here, so that its reference works where Triton does not.

Whether kernels are interpreted on the CPU is Triton's to say: it reads TRITON_INTERPRET=1 when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from edge_vla.errors import BackendError

REMEDY: Final = "pip install 'edge-vla[triton]' (Linux), or name the reference kernels"

# What a kernel's parameters hold. Triton compiles them by its own types; these are for the reader.
Pointer: TypeAlias = Any  # the first element of a tensor
Scalar: TypeAlias = Any  # a number known only when launched
Block: TypeAlias = Any  # a tile of values inside a kernel


class _Missing:
    """Stands where a kernel would: launching it says what to install."""

    def __init__(self, cause: ImportError) -> None:
        self._cause = cause

    def __getitem__(self, grid: object) -> Callable[..., None]:
        raise BackendError(f"Triton kernels need triton, which cannot be imported ({self._cause}): {REMEDY}")


try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError as cause:
    _missing = _Missing(cause)
    tl = None

    def jit(_: Callable[..., Any]) -> Any:
        return _missing


__all__ = ["Block", "Pointer", "Scalar", "jit", "tl"]
