"""What the model knows of a device: the chip whose counted rows it takes, its clock, and what it copies and multiplies.

Rates are what software reaches, not what a data sheet promises. Where nobody measured them the sheet's are scaled by
what an H200 reached of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.gpu.counted.chips import CHIPS
from edge_vla.device.limits import Ceilings

H200_SHEET: Final = (4.8e12, 989e12)  # bytes a second; dense bf16 operations a second
H200_CLOCK: Final = 1.98e9


@dataclass(frozen=True, slots=True)
class Device:
    """`bf16` and `int8` are dense operations a second, `clock` cycles a second; `source` says where all are from."""

    name: str
    chip: str  # of the counted table
    clock: float
    copy_bytes_per_s: float
    bf16: float
    int8: float
    source: str

    @property
    def sm_count(self) -> int:
        return CHIPS[self.chip].sm_count


def h200(measured: Ceilings) -> Device:
    """int8 at twice bf16's rate: our own int8 kernels are faster than the library's that was measured."""
    bf16 = measured.gemm_flops["bf16"]
    return Device(
        "H200",
        "H200",
        H200_CLOCK,
        measured.read_bytes_per_s,
        bf16,
        2 * bf16,
        "copy and bf16 GEMM measured in the run; int8 twice bf16; clock read in the run",
    )


def others(measured: Ceilings) -> tuple[Device, ...]:
    """H100 SXM5, RTX 4090 and Jetson AGX Orin 64 GB."""
    copies, multiplies = (
        reached / sheet
        for reached, sheet in zip((measured.read_bytes_per_s, measured.gemm_flops["bf16"]), H200_SHEET, strict=True)
    )
    scaled = f"data sheet times what an H200 reaches of its own ({copies:.2f} of bytes, {multiplies:.2f} of products)"
    return (
        Device("H100", "H200", H200_CLOCK, 3.35e12 * copies, 989e12 * multiplies, 1979e12 * multiplies,
               f"SXM5, 3.35 TB/s, 989 TFLOP/s, 1979 TOPS, 132 SMs, the H200's kernels; {scaled}"),
        Device("RTX 4090", "4090", 2.52e9, 1.008e12 * copies, 165.2e12 * multiplies, 660.6e12 * multiplies,
               f"1.008 TB/s, 165.2 TFLOP/s with fp32 sums, 660.6 TOPS, 128 SMs, 2.52 GHz; {scaled}"),
        Device("AGX Orin", "Orin", 1.3e9, 173e9, 29.5e12, 64.4e12,
               "64 GB, MAXN, 16 SMs, 1.3 GHz; best published measurements: weights 173 GB/s, bf16 29.5 TFLOP/s by "
               "cuBLAS, int8 64.4 TOPS by CUTLASS (FlashRT, docs/chameleon7b_rtx_sm87.md)"),
    )  # fmt: skip
