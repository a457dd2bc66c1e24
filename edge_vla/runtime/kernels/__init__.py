"""Matrix products over packed weights: the slow reference, and faster ones beside it with the same face.

A kernel is a module `y = x W^T` made from a `PackedWeight`. `auto` takes the first that runs here; a kernel asked
for by name runs or raises. The choice is named in every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.kernels.cpu import CpuInt4, CpuInt8
from edge_vla.runtime.kernels.reference import Dense, Reference

AUTO: Final = "auto"


class Kernel(Protocol):
    """Class-level face of a kernel; an instance is a module from (…, K) to (…, N) in the given dtype."""

    name: str

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool: ...

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


# Fastest first; the last always runs.
KERNELS: Final[Mapping[Scheme, tuple[type[Kernel], ...]]] = {
    Scheme.BF16: (Dense,),
    Scheme.INT8: (CpuInt8, Reference),
    Scheme.INT4: (CpuInt4, Reference),
}
NAMES: Final = tuple(sorted({kernel.name for kernels in KERNELS.values() for kernel in kernels}))


def pick(packed: PackedWeight, dtype: torch.dtype, device: torch.device, want: str = AUTO) -> type[Kernel]:
    """The kernel for this weight. A name binds the schemes that have such a kernel; there it runs or raises."""
    if want != AUTO and want not in NAMES:
        raise UsageError(f"kernel {want!r}: choose {AUTO} or one of {list(NAMES)}")
    able = [kernel for kernel in KERNELS[packed.scheme] if kernel.runs(packed, dtype, device)]
    named = [kernel for kernel in able if kernel.name == want]
    if want == AUTO or want not in {kernel.name for kernel in KERNELS[packed.scheme]}:
        return able[0]
    if not named:
        raise UsageError(
            f"kernel {want!r} does not run {packed.scheme.value} {packed.shape} in {dtype} on {device}; "
            f"these do: {[kernel.name for kernel in able]}"
        )
    return named[0]
