"""How a chip's kernels tile their work: a table by compute capability, fitted to the device's shared memory.

Pure functions of numbers read off the device; importing this makes no CUDA call. The tables are starting points:
`make bench-gpu` measures what each is worth on a chip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import torch

GEMV_ROWS: Final = 8  # rows of a decode step or a verifying pass: one tensor-core instruction costs the same for 1 to 8
RESERVE: Final = 8 * 1024  # bytes of shared memory that a kernel needs beside its pipeline
PROGRAMS_PER_SM: Final = 4  # that a memory-bound kernel needs to hide latency
MAX_SPLITS: Final = 8


@dataclass(frozen=True, slots=True)
class Chip:
    """What tiles depend on. No chip is known by its name."""

    capability: tuple[int, int]
    sm_count: int
    shared_bytes: int  # per program, with opt-in

    @staticmethod
    def of(device: torch.device) -> Chip:
        """The device's own properties; for the interpreter on a CPU, the least that any supported chip has."""
        return _chip(device) if device.type == "cuda" else INTERPRETER


INTERPRETER: Final = Chip((8, 0), 2, 99 * 1024)


@cache
def _chip(device: torch.device) -> Chip:
    about: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the field, its CUDA builds do not
    shared = getattr(about, "shared_memory_per_block_optin", about.shared_memory_per_block)
    return Chip((about.major, about.minor), about.multi_processor_count, shared)


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's share of a product: `block_n` outputs by `block_m` rows, `block_k` inputs per pipeline stage."""

    block_n: int
    block_m: int
    block_k: int
    warps: int
    stages: int

    def stage_bytes(self, weight_bits: int, row_bits: int) -> int:
        """Shared memory of one pipeline stage."""
        return self.block_k * (self.block_n * weight_bits + self.block_m * row_bits) // 8

    def fitted(self, chip: Chip, weight_bits: int, row_bits: int) -> Tile:
        """With as many stages as shared memory holds, at least one."""
        stages = (chip.shared_bytes - RESERVE) // self.stage_bytes(weight_bits, row_bits)
        return replace(self, stages=max(1, min(self.stages, stages)))

    def launch(self) -> dict[str, int]:
        """The launch arguments that every product kernel takes."""
        return {
            "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


# By the lowest capability that a row applies to.
_GEMV: Final = {(8, 0): Tile(64, GEMV_ROWS, 128, 4, 4), (9, 0): Tile(128, GEMV_ROWS, 128, 4, 4)}
# The tensor memory of 10.0 does not hold both operands of the tall tile; 12.0 has half the shared memory.
_GEMM: Final = {
    "w4a16": {(8, 0): Tile(128, 64, 128, 8, 3), (9, 0): Tile(128, 128, 128, 8, 3), (10, 0): Tile(128, 64, 128, 8, 3)},
    "w8a16": {(8, 0): Tile(128, 64, 64, 8, 3), (9, 0): Tile(128, 128, 64, 8, 3), (10, 0): Tile(128, 64, 64, 8, 3)},
    "w8a8": {(8, 0): Tile(128, 64, 128, 4, 3), (9, 0): Tile(128, 128, 128, 8, 4), (10, 0): Tile(128, 64, 128, 4, 3)},
    "w4a8": {(8, 0): Tile(128, 64, 128, 8, 3), (9, 0): Tile(128, 128, 128, 8, 3), (10, 0): Tile(128, 64, 128, 8, 3)},
}
_BITS: Final = {"w4a16": (4, 16), "w8a16": (8, 16), "w8a8": (8, 8), "w4a8": (4, 8)}


def gemv_tile(chip: Chip, weight_bits: int, n: int) -> Tile:
    """For at most GEMV_ROWS rows; narrower where `n` outputs would leave half of the SMs without a program."""
    tile = _of(_GEMV, chip)
    if n < tile.block_n * chip.sm_count // 2:
        tile = replace(tile, block_n=_GEMV[(8, 0)].block_n)
    return tile.fitted(chip, weight_bits, 16)


def head_tile(chip: Chip) -> Tile:
    """For the logits of the action ids: few outputs, so each program takes the fewest possible."""
    return Tile(16, GEMV_ROWS, 128, 2, 4).fitted(chip, 16, 16)


def gemm_tile(chip: Chip, kind: str) -> Tile:
    """For more than GEMV_ROWS rows; `kind` is "w4a16", "w8a16", "w8a8" or "w4a8"."""
    return _of(_GEMM[kind], chip).fitted(chip, *_BITS[kind])


def attention_tile(chip: Chip, rows: int, width: int) -> Tile:
    """`block_n` cache slots by `block_m` queries. A pass of few rows has few programs: each loads more at a time."""
    skinny = Tile(128, 16, width, 8, 2)
    if rows <= GEMV_ROWS and skinny.fitted(chip, 32, 16).stages == skinny.stages:  # keys and values: 16 bits each
        return skinny
    if rows <= GEMV_ROWS:
        return Tile(64, 16, width, 4, 2)
    return Tile(64, 64, width, 4 if chip.capability[0] == 9 else 8, 2)  # on 9.0 four warps are one warp group


def split_k(chip: Chip, tile: Tile, n: int, blocks: int) -> tuple[int, int]:
    """(programs along K, blocks of K per program). Independent of the number of rows, which thus changes no bit."""
    programs = -(-n // tile.block_n)
    wanted = round(PROGRAMS_PER_SM * chip.sm_count / programs)
    blocks_each = -(-blocks // max(1, min(wanted, MAX_SPLITS, blocks)))
    return -(-blocks // blocks_each), blocks_each


def _of(table: dict[tuple[int, int], Tile], chip: Chip) -> Tile:
    return table[max((known for known in table if known <= chip.capability), default=min(table))]
