"""The few PTX instructions that kernels have as inline assembly, by the PTX ISA, one register at a time."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Final

WORD: Final = 0xFFFFFFFF


def run(assembly: str, *arguments: int) -> int:
    """What `{ .reg ..; op a, b, c; .. }` leaves in $0; $1, $2 .. are `arguments`."""
    return results(1, assembly, *arguments)[0]


def results(count: int, assembly: str, *arguments: int) -> list[int]:
    """What it leaves in so many registers from $0 on; behind them come `arguments`."""
    registers = {f"${place}": value & WORD for place, value in enumerate(arguments, count)}
    body = assembly.strip().removeprefix("{").removesuffix("}")
    for line in filter(None, map(str.strip, body.split(";"))):
        name, *operands = re.split(r"[\s,]+", line)
        if name != ".reg":
            target, *sources = operands
            values = [registers[one] if one in registers else int(one, 0) & WORD for one in sources]
            registers[target] = OPERATIONS[name](values) & WORD
    return [registers[f"${place}"] for place in range(count)]


def _prmt(values: Sequence[int]) -> int:
    low, high, selector = values
    source = [(low | high << 32) >> 8 * byte & 0xFF for byte in range(8)]
    chosen = [selector >> 4 * byte & 0xF for byte in range(4)]
    assert max(chosen) < 8, "no sign is replicated here"
    return sum(source[one] << 8 * byte for byte, one in enumerate(chosen))


def _lop3(values: Sequence[int]) -> int:
    """Bit by bit: the three inputs' bits number an entry of the table."""
    a, b, c, table = values
    bits = ((a >> at & 1) << 2 | (b >> at & 1) << 1 | c >> at & 1 for at in range(32))
    return sum((table >> one & 1) << at for at, one in enumerate(bits))


def _fma_bf16x2(values: Sequence[int]) -> int:
    return _fma_halves(values, lambda bits: struct.unpack("<f", struct.pack("<I", bits << 16))[0], _bf16)


def _fma_f16x2(values: Sequence[int]) -> int:
    return _fma_halves(
        values,
        lambda bits: struct.unpack("<e", struct.pack("<H", bits))[0],
        lambda value: struct.unpack("<H", struct.pack("<e", value))[0],
    )


def _fma_halves(values: Sequence[int], read: Callable[[int], float], write: Callable[[float], int]) -> int:
    """A double holds such products and sums exactly."""
    halves = [[read(value >> shift & 0xFFFF) for value in values] for shift in (0, 16)]
    return sum(write(a * b + c) << 16 * half for half, (a, b, c) in enumerate(halves))


def _bf16(value: float) -> int:
    """Of a value that bfloat16 holds."""
    bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    assert bits & 0xFFFF == 0, f"{value} would be rounded"
    return bits >> 16


OPERATIONS: Final[dict[str, Callable[[Sequence[int]], int]]] = {
    "mov.b32": lambda values: values[0],
    "shr.u32": lambda values: values[0] >> values[1],
    "and.b32": lambda values: values[0] & values[1],
    "or.b32": lambda values: values[0] | values[1],
    "xor.b32": lambda values: values[0] ^ values[1],
    "mad.lo.s32": lambda values: values[0] * values[1] + values[2],
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": _fma_bf16x2,
    "fma.rn.f16x2": _fma_f16x2,
}
