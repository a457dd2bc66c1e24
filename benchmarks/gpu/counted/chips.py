"""What a streaming multiprocessor of each supported chip holds, and how many programs of a kernel run on it at a time.

Source: the CUDA C++ programming guide, technical specifications by compute capability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_vla.runtime.gpu.kernels.tiles import Chip

REGISTERS: Final = 64 * 1024  # of an SM
REGISTERS_AT_A_TIME: Final = 256  # are given to a warp in such portions
WARPS_AT_A_TIME: Final = 4  # the four schedulers of an SM share its registers
RESERVED_SHARED_BYTES: Final = 1024  # of each program, by the driver
WARP: Final = 32

CHIPS: Final[Mapping[str, Chip]] = {  # shared memory of a program, by NVIDIA's table of capabilities
    "A100": Chip((8, 0), 108, 163 * 1024),
    "3090": Chip((8, 6), 82, 99 * 1024),
    "Orin": Chip((8, 7), 16, 163 * 1024),
    "4090": Chip((8, 9), 128, 99 * 1024),
    "H200": Chip((9, 0), 132, 227 * 1024),
    "B200": Chip((10, 0), 148, 227 * 1024),
    "5090": Chip((12, 0), 170, 99 * 1024),
}


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    warps: int
    programs: int
    shared_bytes: int


_MULTIPROCESSORS: Final[Mapping[tuple[int, int], Multiprocessor]] = {
    (8, 0): Multiprocessor(64, 32, 164 * 1024),
    (8, 6): Multiprocessor(48, 16, 100 * 1024),
    (8, 7): Multiprocessor(48, 16, 164 * 1024),
    (8, 9): Multiprocessor(48, 24, 100 * 1024),
    (9, 0): Multiprocessor(64, 32, 228 * 1024),
    (10, 0): Multiprocessor(64, 32, 228 * 1024),
    (12, 0): Multiprocessor(48, 24, 100 * 1024),
}


def resident(chip: Chip, warps: int, registers: int, shared_bytes: int) -> int:
    """Programs of so many warps, registers a thread and bytes of shared memory that one SM runs at a time."""
    sm = _MULTIPROCESSORS[chip.capability]
    of_a_warp = -(-registers * WARP // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
    by_registers = REGISTERS // of_a_warp // WARPS_AT_A_TIME * WARPS_AT_A_TIME // warps
    by_shared = sm.shared_bytes // (shared_bytes + RESERVED_SHARED_BYTES)
    return min(sm.programs, sm.warps // warps, by_registers, by_shared)
