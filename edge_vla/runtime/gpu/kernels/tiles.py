"""How a chip's kernels tile their work: tables by compute capability, fitted to the device's shared memory.

Pure functions of numbers read off the device; importing this makes no CUDA call. `TUNED` holds what
`python -m benchmarks.gpu.tune` measured, but where a line says otherwise; any other chip or shape gets the candidate
that costs least on paper.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal, TypeVar

import torch

T = TypeVar("T")
Reader = Literal["torch", "tower", "decoder"]  # of a GEMM's product; torch takes it whole, our kernels add partial sums

GEMV_ROWS: Final = 8  # rows of a decode step or a verifying pass: one tensor-core instruction costs the same for 1 to 8
RESERVE: Final = 8 * 1024  # bytes of shared memory that a kernel needs beside its pipeline
PROGRAMS_PER_SM: Final = 4  # that a memory-bound kernel needs to hide latency
MAX_SPLITS: Final = 8
HEAD_SPLITS: Final = 16
ROW_TILES: Final = 3  # that a GEMM kernel has code for
LEAST_ROWS: Final = 16  # of a row tile
# Tiles are chosen for the rows of a usual prefill, whatever the rows are, so that no bit depends on their number.
TYPICAL_ROWS: Final = 288
START_CYCLES: Final = 3000.0  # of a program, roughly


@dataclass(frozen=True, slots=True)
class Chip:
    """What tiles depend on. No chip is known by its name."""

    capability: tuple[int, int]
    sm_count: int
    shared_bytes: int  # per program, with opt-in

    @staticmethod
    def of(device: torch.device) -> Chip:
        """The device's own properties; for the interpreter on a CPU, the least that any supported chip has."""
        ahead = _AHEAD.get()
        if ahead is not None:
            return ahead
        return _chip(device) if device.type == "cuda" else INTERPRETER


INTERPRETER: Final = Chip((8, 0), 2, 99 * 1024)
_AHEAD: Final[ContextVar[Chip | None]] = ContextVar("ahead", default=None)


@contextmanager
def ahead_of(chip: Chip) -> Iterator[None]:
    """Within, kernels are compiled for `chip`, whatever device their arguments are on."""
    token = _AHEAD.set(chip)
    try:
        yield
    finally:
        _AHEAD.reset(token)


def compiles(device: torch.device) -> bool:
    """Whether kernels are compiled, for this device or ahead for another: not interpreted."""
    return device.type == "cuda" or _AHEAD.get() is not None


@cache
def _chip(device: torch.device) -> Chip:
    about: Any = torch.cuda.get_device_properties(device)
    # torch before 2.7 does not tell; Triton asks the driver itself
    shared = getattr(about, "shared_memory_per_block_optin", None) or _triton_shared_bytes(device)
    return Chip((about.major, about.minor), about.multi_processor_count, shared)


def _triton_shared_bytes(device: torch.device) -> int:
    driver: Any = importlib.import_module("triton.runtime").driver
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's share of a product: `block_n` outputs by `row_tiles` tiles of at most `block_m` rows.

    `block_k` inputs are a pipeline stage. `splits`: programs along K, 0 for as many as fill the chip.
    """

    block_n: int
    block_m: int
    block_k: int
    warps: int
    stages: int
    row_tiles: int = 1
    splits: int = 0

    def stage_bytes(self, weight_bits: int, row_bits: int) -> int:
        """Shared memory of one pipeline stage, with every row tile full."""
        rows = self.block_m * self.row_tiles
        return self.block_k * (self.block_n * weight_bits + rows * row_bits) // 8

    def fitted(self, chip: Chip, weight_bits: int, row_bits: int) -> Tile:
        """With as many stages as shared memory holds, at least one."""
        stages = (chip.shared_bytes - RESERVE) // self.stage_bytes(weight_bits, row_bits)
        return replace(self, stages=max(1, min(self.stages, stages)))

    def launch(self, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """The launch arguments that every product kernel takes; `sizes` of its row tiles, else it has one."""
        rows = {"BLOCK_M": self.block_m} if sizes is None else sizes
        return {"BLOCK_N": self.block_n, "num_warps": self.warps, "num_stages": self.stages, **rows}

    def rows(self, m: int) -> RowTiles:
        """How programs share `m` rows: alike but for the last, which computes only what is left."""
        programs = -(-m // (self.block_m * self.row_tiles))
        sizes = self._tiles_of(-(-m // programs))
        return RowTiles(programs, sizes, self._tiles_of(m - (programs - 1) * sum(sizes)))

    def _tiles_of(self, rows: int) -> tuple[int, ...]:
        """Sizes of at most `row_tiles` tiles that hold so many rows."""
        sizes = list[int]()
        while rows > 0:
            full = rows >= self.block_m or len(sizes) == self.row_tiles - 1
            sizes.append(min(self.block_m, _power_above(rows) if full else _best_first(rows)))
            rows -= sizes[-1]
        return tuple(sizes)


@dataclass(frozen=True, slots=True)
class RowTiles:
    """The row tiles of a GEMM's programs along M, and those of the last program."""

    programs: int
    sizes: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def computed(self) -> int:
        """Rows, those included that no tile needs."""
        return (self.programs - 1) * sum(self.sizes) + sum(self.last)

    def launch(self) -> dict[str, int]:
        """M0, M1 and M2 of every program; L0, L1 and L2 of the last one, all 0 where it is like the others."""
        last = () if self.last == self.sizes else self.last
        named = (("M", self.sizes), ("L", last))
        return {f"{name}{i}": sizes[i] if i < len(sizes) else 0 for name, sizes in named for i in range(ROW_TILES)}


def _power_above(rows: int) -> int:
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


def _best_first(rows: int) -> int:
    """The power of two that leaves the next tile the least to pad."""
    above = _power_above(rows)
    return above if above <= LEAST_ROWS or above // 2 + _power_above(rows - above // 2) >= above else above // 2


# For up to GEMV_ROWS rows, by the lowest capability that a line applies to.
_GEMV: Final = {(8, 0): Tile(64, GEMV_ROWS, 128, 4, 4), (9, 0): Tile(128, GEMV_ROWS, 128, 4, 4)}
_GEMV_4: Final = _GEMV[(9, 0)]  # on every chip: half of the narrower one's other instructions for each weight
_GEMV_16: Final = Tile(64, GEMV_ROWS, 128, 4, 4)  # four times the bytes of int4: narrower for as many programs

# For more rows. On 9.0 a program holds up to 384 rows, because its tensor cores leave the registers for the sums.
# The tensor memory of 10.0 does not hold both operands of a tall tile. Elsewhere operands come through registers: three
# or four small programs on an SM, whose loads and conversions hide behind each other's products.
_SMALL: Final = {
    "w4a16": (Tile(128, 64, 128, 8, 3),),
    "w8a16": (Tile(64, 32, 64, 4, 3, 2),),
    "w8a8": (Tile(128, 64, 64, 4, 3), Tile(64, 64, 64, 4, 3)),
    "w4a8": (Tile(64, 64, 128, 4, 2, 2),),  # a third stage takes the registers of a fourth program
}
_TENSOR_MEMORY: Final = {**_SMALL, "w8a16": (Tile(128, 64, 64, 8, 3),)}
_WARP_GROUPS: Final = {
    "w4a16": (Tile(128, 128, 128, 8, 2, 3), Tile(128, 128, 128, 8, 3, 2), Tile(64, 128, 128, 4, 3, 1)),
    "w8a16": (
        Tile(128, 128, 64, 8, 3, 3),
        Tile(128, 128, 64, 8, 3, 2),
        Tile(64, 128, 64, 4, 4, 1),
        Tile(64, 64, 64, 4, 4, 1),
    ),
    "w8a8": (
        Tile(128, 128, 128, 8, 4, 3),
        Tile(128, 128, 128, 8, 4, 2),
        Tile(64, 128, 128, 4, 4, 1),
        Tile(64, 64, 128, 4, 4, 1),
    ),
    "w4a8": (Tile(64, 64, 128, 4, 3, 2), Tile(64, 128, 128, 4, 2, 2)),
}
_GEMM: Final = {(8, 0): _SMALL, (9, 0): _WARP_GROUPS, (10, 0): _TENSOR_MEMORY, (12, 0): _SMALL}


@dataclass(frozen=True, slots=True)
class Rates:
    """What an SM does in a cycle: rough, but enough to choose among tiles."""

    multiplies: Mapping[int, float]  # by the bits of a row
    loaded_bytes: float  # from the L2
    parts_bytes: float  # of partial sums, written and read again
    together: int  # programs of four warps, which hide each other's waits: fewer take as long


_WORKSTATION: Final = Rates({16: 1024, 8: 2048}, 32, 8, 4)
_CONSUMER: Final = Rates({16: 256, 8: 1024}, 16, 4, 4)
_RATES: Final = {
    (8, 0): _WORKSTATION,
    (8, 6): _CONSUMER,
    (8, 7): _WORKSTATION,
    (8, 9): _CONSUMER,
    (9, 0): Rates({16: 2048, 8: 2 * 2048}, 32, 32, 1),  # a program there waits for no other
    (12, 0): _CONSUMER,
}
BITS: Final = {"w4a16": (4, 16), "w8a16": (8, 16), "w8a8": (8, 8), "w4a8": (4, 8), "w16": (16, 16)}
GEMMS: Final = ("w4a16", "w8a16", "w8a8", "w4a8")  # 16-bit weights are multiplied by a library

# A pass of few rows through all layers in one launch: its programs stay, as many on an SM whatever the product.
PASS_PROGRAMS: Final = 2
PASS_WARPS: Final = 8
PASS_REGISTERS: Final = 128  # of a thread: two programs of eight warps take all that an SM has
_PASS_WIDE: Final = Tile(256, GEMV_ROWS, 128, PASS_WARPS, 4)
_PASS_NARROW: Final = replace(_PASS_WIDE, block_n=128)
NARROW_COST: Final = 1.2  # of a weight, in instructions, beside the wide tile's; these three are rough
PASS_START: Final = 64.0  # of a turn, in outputs times blocks
PASS_PART: Final = 0.1  # to write and add up an output's partial sum

# Measured by `python -m benchmarks.gpu.tune`: (kernel, capability) -> (bits of N, bits of K) -> tile. Shapes of like
# size share one. A "tower" is a GEMM of the vision. 9.0: H200, 2026-11-26; a tower's splits of K are of arithmetic.
TUNED: Final[Mapping[tuple[str, tuple[int, int]], Mapping[tuple[int, int], Tile]]] = {
    ("w4a16_gemv", (9, 0)): {
        (13, 13): Tile(64, 8, 128, 4, 3, 1, 8),
        (13, 14): Tile(64, 8, 128, 4, 3, 1, 8),
        (14, 13): Tile(128, 8, 128, 4, 3, 1, 6),
        (15, 13): Tile(128, 8, 128, 4, 3, 1, 3),
    },
    ("w8a16_gemv", (9, 0)): {
        (13, 13): Tile(64, 8, 128, 4, 5, 1, 4),
        (13, 14): Tile(32, 8, 128, 2, 5, 1, 4),
        (14, 13): Tile(32, 8, 256, 2, 3, 1, 2),
        (15, 13): Tile(32, 8, 256, 2, 3, 1, 1),
    },
    ("w16_gemv", (9, 0)): {
        (13, 13): Tile(64, 8, 64, 4, 5, 1, 4),
        (13, 14): Tile(64, 8, 128, 4, 3, 1, 6),
        (14, 13): Tile(64, 8, 128, 4, 3, 1, 2),
        (15, 13): Tile(64, 8, 128, 4, 3, 1, 1),
    },
    ("w4a16_gemm", (9, 0)): {
        (14, 13): Tile(128, 128, 128, 8, 2, 3, 4),
        (15, 13): Tile(128, 128, 128, 8, 2, 3, 2),  # three splits are 4 % faster and hold 25 MB more
    },
    ("w4a8_gemm", (9, 0)): {  # not measured yet: the least by `benchmarks.gpu.model`
        (13, 13): Tile(64, 128, 128, 4, 2, 2, 3),
        (13, 14): Tile(64, 128, 128, 4, 2, 2, 3),
        (14, 13): Tile(64, 128, 128, 4, 2, 2, 1),
        (15, 13): Tile(64, 64, 128, 4, 3, 2, 1),
    },
    ("w8a8_tower", (9, 0)): {
        (11, 11): Tile(64, 64, 128, 4, 4, 1, 2),
        (11, 13): Tile(64, 64, 128, 4, 5, 1, 3),
        (12, 11): Tile(64, 64, 128, 4, 5, 1, 1),
        (13, 11): Tile(64, 64, 128, 4, 4, 1, 1),
        (13, 13): Tile(64, 64, 128, 4, 4, 1, 1),
        (13, 14): Tile(64, 64, 128, 4, 4, 1, 1),
        (14, 12): Tile(128, 64, 128, 8, 4, 1, 1),
    },
    ("w8a16_tower", (9, 0)): {
        (11, 11): Tile(64, 64, 128, 4, 4, 1, 2),
        (11, 13): Tile(64, 64, 128, 4, 4, 1, 3),
        (12, 11): Tile(64, 64, 128, 4, 4, 1, 1),
        (13, 11): Tile(64, 64, 128, 4, 3, 2, 1),
        (13, 13): Tile(64, 64, 128, 4, 4, 1, 1),  # whole, for a bias: by arithmetic, as other splits of towers
        (13, 14): Tile(64, 128, 128, 4, 3, 1, 2),  # three stages, so that an SM holds two
        (14, 12): Tile(64, 64, 64, 4, 4, 2, 1),
    },
    ("w8a8_gemm", (9, 0)): {
        (13, 13): Tile(64, 128, 128, 4, 3, 2, 2),
        (13, 14): Tile(128, 64, 128, 8, 4, 2, 2),
        (14, 13): Tile(128, 64, 128, 8, 4, 1, 1),
        (15, 13): Tile(128, 64, 128, 8, 4, 2, 1),
    },
    ("w8a16_gemm", (9, 0)): {
        (13, 13): Tile(64, 128, 128, 4, 2, 2, 2),
        (13, 14): Tile(64, 128, 128, 4, 2, 2, 2),
        (14, 13): Tile(64, 128, 128, 4, 2, 2, 2),
    },
}


def size_class(n: int, k: int) -> tuple[int, int]:
    """What `TUNED` knows a weight (n, k) by: the binary digits of both."""
    return n.bit_length(), k.bit_length()


def gemv_tile(chip: Chip, kind: str, n: int, k: int) -> Tile:
    """For at most GEMV_ROWS rows; narrower where `n` outputs would leave half of the SMs without a program."""
    tile = TUNED.get((f"{kind}_gemv", chip.capability), {}).get(size_class(n, k))
    if tile is None:
        tile = {"w4a16": _GEMV_4, "w16": _GEMV_16}.get(kind) or _of(_GEMV, chip)
        if n < tile.block_n * chip.sm_count // 2:
            tile = replace(tile, block_n=_GEMV[(8, 0)].block_n)
    return tile.fitted(chip, *BITS[kind])


def head_tile(chip: Chip, n: int) -> Tile:
    """For the logits of `n` action ids: few outputs, so each program takes the fewest possible."""
    tile = Tile(16, GEMV_ROWS, 128, 2, 4)
    splits = round(PROGRAMS_PER_SM * chip.sm_count / -(-n // tile.block_n))
    return replace(tile, splits=max(1, min(HEAD_SPLITS, splits))).fitted(chip, 16, 16)


def gemm_tile(chip: Chip, kind: str, n: int, k: int, reader: Reader = "torch") -> Tile:
    """For more than GEMV_ROWS rows of a weight (n, k). `kind` is one of GEMMS. Never depends on the number of rows."""
    whole, place = reader == "torch", "gemm" if reader == "decoder" else "tower"
    tile = TUNED.get((f"{kind}_{place}", chip.capability), {}).get(size_class(n, k))
    if tile is None:
        splits = (1,) if whole else (1, 2, 3, 4)
        candidates = [replace(tile, splits=s) for tile in gemm_candidates(chip, kind) for s in splits]
        tile = min(candidates, key=lambda one: cost(chip, one, kind, n, k))
    return replace(tile, splits=1 if whole else max(1, tile.splits)).fitted(chip, *BITS[kind])


def gemm_candidates(chip: Chip, kind: str) -> tuple[Tile, ...]:
    """Tiles without splits that the chip's registers hold."""
    return _of(_GEMM, chip)[kind]


def cost(chip: Chip, tile: Tile, kind: str, n: int, k: int) -> float:
    """Cycles, on paper, of TYPICAL_ROWS rows: rounds of programs, each bound by tensor cores or by its loads."""
    (weight_bits, row_bits), splits, rates = BITS[kind], max(1, tile.splits), _of(_RATES, chip)
    shared = tile.rows(TYPICAL_ROWS)
    rows, together = sum(shared.sizes), rates.together if tile.warps <= 4 else 1
    waves = -(-shared.programs * -(-n // tile.block_n) * splits // chip.sm_count)
    multiply = tile.block_n * rows / rates.multiplies[row_bits]
    load = (tile.block_n * weight_bits + rows * row_bits) / 8 / rates.loaded_bytes
    convert = tile.block_n / 32 if weight_bits != row_bits else 0.0
    parts = TYPICAL_ROWS * n * 8 * splits / chip.sm_count / rates.parts_bytes if splits > 1 else 0.0
    whole = -(-waves // together) * together
    return whole * (START_CYCLES / together + k / splits * (max(multiply, load) + convert)) + parts


def attention_tile(chip: Chip, width: int, parts: int) -> Tile:
    """`block_m` rows, against `block_n` slots at a time, of a product of so many `parts`.

    Where warps multiply by themselves small tiles leave registers for four programs on an SM, which hide what each
    waits for. On 9.0 four warps multiply together, 64 rows at least; on 10.0 into a memory of their own. Summands are
    loaded all at once and take registers, and a pipeline of them more shared memory than there is.
    """
    halved = 1 if parts <= 2 else 2
    if chip.capability[0] not in (9, 10):
        return Tile(32 // halved, 32, width, 4, 1)
    return Tile(64 // halved, 64, width, 4 if chip.capability[0] == 9 else 8, 2 if parts == 1 else 1)


def split_k(chip: Chip, tile: Tile, n: int, blocks: int) -> tuple[int, int]:
    """(programs along K, blocks of K per program). Independent of the number of rows, which thus changes no bit."""
    programs = -(-n // tile.block_n)
    wanted = tile.splits or min(MAX_SPLITS, round(PROGRAMS_PER_SM * chip.sm_count / programs))
    blocks_each = -(-blocks // max(1, min(wanted, blocks)))
    return -(-blocks // blocks_each), blocks_each


def pass_tile(chip: Chip, kind: str, n: int, k: int) -> Tile:
    """For a product inside a whole pass: the tile and the splits of K whose last turn of programs ends first."""
    tiles = [_PASS_NARROW] if kind == "w16" else [_PASS_NARROW, _PASS_WIDE]
    blocks, programs = -(-k // _PASS_WIDE.block_k), PASS_PROGRAMS * chip.sm_count

    def cost_of(tile: Tile) -> float:
        splits, blocks_each = split_k(chip, tile, n, blocks)
        turns = -(-(-(-n // tile.block_n) * splits) // programs)
        work = blocks_each * tile.block_n * (NARROW_COST if tile.block_n == _PASS_NARROW.block_n else 1.0)
        return turns * (work + PASS_START) + splits * n * PASS_PART / chip.sm_count

    candidates = [replace(tile, splits=splits) for tile in tiles for splits in range(1, min(MAX_SPLITS, blocks) + 1)]
    return fitted_to_pass(chip, min(candidates, key=cost_of), kind)


def fitted_to_pass(chip: Chip, tile: Tile, kind: str) -> Tile:
    """With as many stages as leave room for PASS_PROGRAMS; the last stage of a loop is in registers."""
    free = (chip.shared_bytes + 1024) // PASS_PROGRAMS - 1024
    return replace(tile, stages=max(1, min(tile.stages, 1 + free // tile.stage_bytes(*BITS[kind]))))


def _of(table: Mapping[tuple[int, int], T], chip: Chip) -> T:
    return table[max((known for known in table if known <= chip.capability), default=min(table))]
