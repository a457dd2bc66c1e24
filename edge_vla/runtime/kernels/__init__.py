"""Matrix products over packed weights: the slow reference, and faster ones beside it with the same signature.

A kernel is a module `y = x W^T` made from a `PackedWeight`. `auto` takes the first that runs here; a kernel asked
for by name runs or raises. The choice is named in every result. In a name `a/b`, `a` is the gemv and `b`
the gemm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.kernels.arm import DynamicInt4
from edge_vla.runtime.kernels.cpu import CpuInt4, CpuInt8
from edge_vla.runtime.kernels.gemm import DynamicInt8, GemmInt4, GemmInt8
from edge_vla.runtime.kernels.probe import gemm_pays
from edge_vla.runtime.kernels.reference import Dense, Reference
from edge_vla.runtime.kernels.w8a8 import CpuW8A8, RoundedRows

AUTO: Final = "auto"
TORCH: Final = "torch"  # its own products of 16-bit weights, and its operators between products
NATIVE: Final = "native"  # the whole decoder in C, `edge_vla.runtime.cpu.native`: not chosen weight by weight
AUTO_BF16: Final = "auto/bf16"  # without the stopwatch: a gemm in bf16 wherever there is one; so is "torch/bf16"
TORCH_BF16: Final = "torch/bf16"
NATIVE_INT8: Final = "native/int8"  # the same with a prefill's rows rounded to 8 bits


class Kernel(Protocol):
    """The class of a kernel; an instance maps (…, K) to (…, N) in the given dtype."""

    name: str

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool: ...

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


# Fastest at a decode step first, down to one that runs on any device. After it: what only a name chooses.
KERNELS: Final[Mapping[Scheme, tuple[type[Kernel], ...]]] = {
    Scheme.BF16: (Dense,),
    Scheme.INT8: (CpuInt8, GemmInt8, Reference, DynamicInt8),
    Scheme.W8A8: (CpuW8A8, RoundedRows),
    Scheme.UINT4: (CpuInt4, Reference),
    Scheme.INT4: (CpuInt4, GemmInt4, Reference, DynamicInt4),
}
NAMES: Final = tuple(
    sorted(
        {
            AUTO_BF16,
            TORCH_BF16,
            NATIVE,
            NATIVE_INT8,
            *(kernel.name for kernels in KERNELS.values() for kernel in kernels),
        }
    )
)


def pick(
    packed: PackedWeight, dtype: torch.dtype, device: torch.device, want: str = AUTO, rows: int = 1
) -> type[Kernel]:
    """The kernel for this weight. A name binds the schemes that have such a kernel; there it runs or raises.

    `rows` is how many a typical prefill has: above GEMV_ROWS a probe decides whether a gemm over the dequantised
    weight pays.
    """
    if want != AUTO and want not in NAMES:
        raise UsageError(f"kernel {want!r}: choose {AUTO} or one of {list(NAMES)}")
    made_for = KERNELS.get(packed.scheme, (Reference,))
    able = [kernel for kernel in made_for if kernel.runs(packed, dtype, device)]
    named = [kernel for kernel in able if kernel.name == want]
    if want == AUTO or want not in {kernel.name for kernel in made_for}:
        gemm = next((kernel for kernel in able if issubclass(kernel, (GemmInt4, GemmInt8))), None)
        pays = want in (AUTO_BF16, TORCH_BF16) or (gemm is not None and gemm_pays(gemm, packed, rows, device))
        return gemm if gemm is not None and pays else able[0]
    if not named:
        raise UsageError(
            f"kernel {want!r} does not run {packed.scheme.value} {packed.shape} in {dtype} on {device}; "
            f"these do: {[kernel.name for kernel in able]}"
        )
    return named[0]
