"""How a chip's kernels cut their work: a table by compute capability, fitted to the shared memory that the device has.

Pure functions of numbers read off the device; no CUDA call is made when this is imported. The tables are choices to
start from: `make bench-gpu` says what each is worth on a chip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import torch

GEMV_ROWS: Final = 8  # a decode step or a verifying pass: rows that one tensor-core instruction takes for one
RESERVE: Final = 8 * 1024  # bytes of shared memory that a kernel needs beside its pipeline
PER_PROCESSOR: Final = 4  # programs that a streaming kernel wants on each multiprocessor, to hide latency
MOST_SPLITS: Final = 8


@dataclass(frozen=True, slots=True)
class Chip:
    """What tiles depend on: nothing is known of a chip by its name."""

    capability: tuple[int, int]
    processors: int
    shared_bytes: int  # that one program may have

    @staticmethod
    def of(device: torch.device) -> Chip:
        """What the device says of itself; for the interpreter on a CPU, the least that any chip has."""
        return _chip(device) if device.type == "cuda" else INTERPRETER


INTERPRETER: Final = Chip((8, 0), 2, 99 * 1024)


@cache
def _chip(device: torch.device) -> Chip:
    about: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the field, its CUDA builds do not
    shared = getattr(about, "shared_memory_per_block_optin", about.shared_memory_per_block)
    return Chip((about.major, about.minor), about.multi_processor_count, shared)


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's share: `outputs` of a weight by `rows` of activations, `inner` inputs at a time."""

    outputs: int
    rows: int
    inner: int
    warps: int
    stages: int

    def stage_bytes(self, weight_bits: int, row_bits: int) -> int:
        """Shared memory of one stage of the pipeline."""
        return self.inner * (self.outputs * weight_bits + self.rows * row_bits) // 8

    def fitted(self, chip: Chip, weight_bits: int, row_bits: int) -> Tile:
        """With as many stages as shared memory holds, at least one."""
        room = chip.shared_bytes - RESERVE
        return replace(self, stages=max(1, min(self.stages, room // self.stage_bytes(weight_bits, row_bits))))


# From the smallest capability on: what has 8.0 in common with its successors stands once.
_GEMV: Final = {(8, 0): Tile(64, GEMV_ROWS, 128, 4, 4), (9, 0): Tile(128, GEMV_ROWS, 128, 4, 4)}
# 10.0 has no room in its tensor memory for both operands of the tall tile, and 12.0 half the shared memory.
_GEMM: Final = {
    "w4a16": {(8, 0): Tile(128, 64, 128, 8, 3), (9, 0): Tile(128, 128, 128, 8, 3), (10, 0): Tile(128, 64, 128, 8, 3)},
    "w8a16": {(8, 0): Tile(128, 64, 64, 8, 3), (9, 0): Tile(128, 128, 64, 8, 3), (10, 0): Tile(128, 64, 64, 8, 3)},
    "w8a8": {(8, 0): Tile(128, 64, 128, 4, 3), (9, 0): Tile(128, 128, 128, 8, 4), (10, 0): Tile(128, 64, 128, 4, 3)},
    "w4a8": {(8, 0): Tile(128, 64, 128, 8, 3), (9, 0): Tile(128, 128, 128, 8, 3), (10, 0): Tile(128, 64, 128, 8, 3)},
}
_BITS: Final = {"w4a16": (4, 16), "w8a16": (8, 16), "w8a8": (8, 8), "w4a8": (4, 8)}


def gemv_tile(chip: Chip, weight_bits: int, outer: int) -> Tile:
    """For a product of a few rows; narrower where the outputs would leave half of the chip without a program."""
    tile = _of(_GEMV, chip)
    if outer < tile.outputs * chip.processors // 2:
        tile = replace(tile, outputs=_GEMV[(8, 0)].outputs)
    return tile.fitted(chip, weight_bits, 16)


def head_tile(chip: Chip) -> Tile:
    """For the action ids' logits: a head of few outputs, so that each program takes as few as there can be."""
    return Tile(16, GEMV_ROWS, 128, 2, 4).fitted(chip, 16, 16)


def attention_tile(chip: Chip, rows: int, width: int) -> Tile:
    """`outputs` slots of the cache by `rows` queries. Few rows make few programs: each then asks for more at once."""
    few = Tile(128, 16, width, 8, 2)
    if rows <= GEMV_ROWS and few.fitted(chip, 32, 16).stages == few.stages:  # keys and values: 16 bits each
        return few
    if rows <= GEMV_ROWS:
        return Tile(64, 16, width, 4, 2)
    return Tile(64, 64, width, 4 if chip.capability[0] == 9 else 8, 2)  # four warps are one of 9.0's warp groups


def splits(chip: Chip, tile: Tile, outer: int, blocks: int) -> tuple[int, int]:
    """(programs along the inputs, blocks of each). Independent of the rows, so that their number changes no bit."""
    programs = -(-outer // tile.outputs)
    wanted = round(PER_PROCESSOR * chip.processors / programs)
    each = -(-blocks // max(1, min(wanted, MOST_SPLITS, blocks)))
    return -(-blocks // each), each


def gemm_tile(chip: Chip, kind: str) -> Tile:
    """For a product of many rows; `kind` is "w4a16", "w8a16", "w8a8" or "w4a8"."""
    return _of(_GEMM[kind], chip).fitted(chip, *_BITS[kind])


def _of(table: dict[tuple[int, int], Tile], chip: Chip) -> Tile:
    return table[max((known for known in table if known <= chip.capability), default=min(table))]
