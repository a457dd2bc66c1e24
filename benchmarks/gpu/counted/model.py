"""What an action should take on a chip, from the counted table: a paper figure, to weigh a change by without a card.

A launch takes a start, and then the longest of three: its bytes at the chip's copy rate, its products at the chip's
GEMM rate, the instructions of its loop at one a cycle and scheduler. The start is fitted on the H200 whose stages stand
beside the expected ones. Launches of torch cost a start each, and its products in 16 bits what ours would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.gpu.counted.chips import CHIPS
from benchmarks.gpu.counted.result import Expected, KernelRow, LaunchRow

SCHEDULERS: Final = 4  # of an SM, each an instruction of a warp in a cycle
START_US: Final = 2.0


@dataclass(frozen=True, slots=True)
class Device:
    """Bytes and operations a second that a copy and a library's GEMM reach; the clock in Hz."""

    name: str
    chip: str
    copy: float
    bf16: float
    int8: float
    clock: float
    source: str


DEVICES: Final = (
    Device("H200", "H200", 4.24e12, 671e12, 1342e12, 1.755e9, "copy and bf16 GEMM measured; int8 twice bf16"),
    Device("H100 SXM", "H200", 3.0e12, 671e12, 1342e12, 1.755e9, "an H200's GEMM; 90 % of the data sheet's bytes"),
    Device("RTX 4090", "4090", 0.92e12, 150e12, 600e12, 2.52e9, "91 % of the data sheet"),
    Device("AGX Orin", "Orin", 173e9, 29.5e12, 64.4e12, 1.3e9, "ceilings that FlashRT measured"),
)

# Milliseconds of a stage of one action on an H200: 2026-11-26-nvidia-h200-6552a05c3217.json
MEASURED: Final[Mapping[tuple[str, str], float]] = {
    ("int4, w4a16 prefill", "vision"): 3.66,
    ("int4, w4a16 prefill", "prefill"): 11.34,
    ("int4, w4a16 prefill", "step"): 6 * 2.044,
    ("int4, w4a8 prefill", "vision"): 2.03,
    ("int4, w4a8 prefill", "prefill"): 9.36,
    ("int4, w4a8 prefill", "step"): 6 * 2.043,
    ("int8, w8a16 prefill", "vision"): 3.66,
    ("int8, w8a16 prefill", "prefill"): 13.00,
    ("int8, w8a16 prefill", "step"): 6 * 2.356,
    ("int8, w8a8 prefill", "vision"): 2.03,
    ("int8, w8a8 prefill", "prefill"): 5.53,
    ("int8, w8a8 prefill", "step"): 6 * 2.359,
    ("bf16", "step"): 6 * 3.636,
}


def expected(launches: Sequence[LaunchRow], kernels: Sequence[KernelRow]) -> Iterator[Expected]:
    """Every configuration's stages on every device whose chip was compiled for."""
    for device in DEVICES:
        rows = [row for row in kernels if row.chip == device.chip]
        for one in launches if rows else ():
            measured = MEASURED.get((one.configuration, one.stage)) if device.name == "H200" else None
            yield Expected(device.name, one.configuration, one.stage, round(stage_ms(device, one, rows), 2), measured)


def stage_ms(device: Device, stage: LaunchRow, rows: Sequence[KernelRow]) -> float:
    """All its launches in one action."""
    us = stage.torch * START_US
    for kernel, calls in stage.kernels.items():
        chosen = cases(kernel, stage.stage, rows)
        us += calls * sum(launch_us(device, row) for row in chosen) / len(chosen)
    return stage.times * us / 1e3


def cases(kernel: str, stage: str, rows: Sequence[KernelRow]) -> list[KernelRow]:
    """The shapes at which a stage launches a kernel, each as often as the others."""
    of_kernel = [row for row in rows if row.kernel == kernel and "groups" not in row.case]
    of_stage = {
        "vision": [row for row in of_kernel if "tower" in row.case or kernel in ("layer_norm", "gelu")],
        "prefill": [row for row in of_kernel if "tower" not in row.case and ", 288 rows" in row.case],
        "step": [row for row in of_kernel if ", 8 rows" in row.case],
    }
    found = of_stage[stage] or [row for row in of_kernel if ", 1 rows" in row.case] or of_kernel
    assert found, f"{kernel} of {stage} is in no row"
    return found


def launch_us(device: Device, row: KernelRow) -> float:
    seconds = [row.moved_bytes / device.copy]
    seconds.append(row.operations / (device.int8 if "a8_gemm" in row.kernel else device.bf16))
    if row.per_weight is not None:
        weights = row.operations / 2 / rows_of(row) * row.passes
        lanes = CHIPS[device.chip].sm_count * SCHEDULERS * 32
        seconds.append(row.per_weight * weights / lanes / device.clock)
    return START_US + max(seconds) * 1e6


def rows_of(row: KernelRow) -> int:
    """Rows that a product multiplies a weight by, which end its name."""
    return int(row.case.split(", ")[-1].split(" ")[0])
