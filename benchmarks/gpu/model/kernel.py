"""The time of one kernel, from what is counted of it.

Four times compete, and the longest rules; what is not hidden behind it is added:

- bytes: what must be read and written, at the rate of a copy;
- issue: every instruction of the busiest multiprocessor, one a cycle and scheduler;
- products: its matrix products, at the rate of a GEMM;
- chain: one program's own instructions, each waiting for the one before, and its products between them, times the
  rounds in which an SM runs the programs it was given. Few warps are resident, so little hides this wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.gpu.counted.chips import WARP
from benchmarks.gpu.counted.result import KernelRow
from benchmarks.gpu.model.devices import Device
from edge_vla.runtime.gpu.kernels.tiles import BITS
from edge_vla.spec import OPENVLA_7B

SCHEDULERS: Final = 4  # of an SM, on every chip since Volta
WAIT: Final = 4.0  # cycles from an instruction to one that needs its result, on every chip since Volta
TURNS: Final = 3.0  # of a loop that reads no weights: of attention, whose cache is a few tiles long
PREFILL_ATTENTION: Final = "prefill_attention"
FEW_ROWS: Final = 8  # a product of so few rows is one tensor-core instruction wide, and its loop counts that


@dataclass(frozen=True, slots=True)
class Constants:
    """Fitted. `launch_us`: from a kernel's end to the next one's first instruction, and its draining.

    `unhidden`: the share of all that is not the longest which is added to it.
    """

    launch_us: float
    unhidden: float

    def on(self, device: Device, fitted_on: Device) -> Constants:
        """Elsewhere a launch takes as many cycles."""
        return replace(self, launch_us=self.launch_us * fitted_on.clock / device.clock)


@dataclass(frozen=True, slots=True)
class Work:
    """Microseconds of one kernel by each term."""

    bytes_us: float
    issue_us: float
    products_us: float
    chain_us: float

    def us(self, unhidden: float) -> float:
        """Loads are asynchronous, so the two that compete are the bytes and the slowest way to use them."""
        busy = max(self.issue_us, self.products_us, self.chain_us)
        return max(self.bytes_us, busy) + unhidden * min(self.bytes_us, busy)

    def roofline_us(self) -> float:
        """What the first, rejected model took: no waiting, everything hidden."""
        return max(self.bytes_us, self.issue_us, self.products_us)


def turns(row: KernelRow, rows: int) -> float:
    """Of the inner loop, by one program. `rows`: of the product."""
    if not row.loop:
        return 0.0
    if row.kernel == PREFILL_ATTENTION:  # as many as tiles of rows lie before a program's own, half of all but one
        return (row.programs / OPENVLA_7B.decoder.heads - 1) / 2
    if row.per_weight is None or not row.per_weight or not rows:
        return TURNS
    weights = row.operations / (2 * rows) * row.passes
    return weights * row.per_weight / (row.loop * row.warps * WARP) / row.programs


def work(row: KernelRow, rows: int, device: Device) -> Work:
    """`rows` that the kernel multiplies its weights by; of no meaning for others."""
    instructions = row.instructions - row.loop + turns(row, rows) * row.loop
    busiest = math.ceil(row.programs / device.sm_count)
    rounds = math.ceil(busiest / max(1, row.programs_per_sm))
    warps = row.warps / SCHEDULERS  # of a program, of a scheduler
    own_us = 0.0
    if rows > FEW_ROWS:
        rate = device.int8 if _row_bits(row.kernel) == 8 else device.bf16
        own_us = 1e6 * row.operations / row.programs * device.sm_count / rate
    cycle_us = 1e6 / device.clock
    return Work(
        bytes_us=1e6 * row.moved_bytes / device.copy_bytes_per_s,
        issue_us=busiest * warps * instructions * cycle_us,
        products_us=busiest * own_us,
        chain_us=rounds * (max(WAIT, warps) * instructions * cycle_us + own_us),
    )


def _row_bits(kernel: str) -> int:
    return BITS.get(kernel.partition("_")[0], (16, 16))[1]
