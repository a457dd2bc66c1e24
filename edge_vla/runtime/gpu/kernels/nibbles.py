"""Words of nibbles to the operands of tensor cores, two weights per instruction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import torch

from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.tiles import compiles
from edge_vla.runtime.gpu.kernels.weights import BLOCK_K, SHIFT_K

# A power of two whose last mantissa bit is worth one: or-ing a nibble into it adds the nibble, without a conversion.
# Both halves of a word get it; the offset then subtracts that power and the code of a zero weight.
MAGIC: Final[Mapping[torch.dtype, tuple[int, float]]] = {
    torch.bfloat16: (0x43004300, 128.0 + 8.0),
    torch.float16: (0x64006400, 1024.0 + 8.0),
}


def assembly(dtype: torch.dtype, device: torch.device) -> str | None:
    """What `weights_of` does with a shifted word, in two instructions for two weights; None where Triton interprets."""
    return _assembly(dtype) if compiles(device) else None


@cache
def _assembly(dtype: torch.dtype) -> str:
    magic, offset = MAGIC[dtype]
    kind, one = ("bf16x2", 0x3F803F80) if dtype == torch.bfloat16 else ("f16x2", 0x3C003C00)
    subtracted = int(torch.tensor([-offset] * 2, dtype=dtype).view(torch.int32))
    return (
        "{ .reg .b32 codes, one, less; "
        f"mov.b32 one, {one:#x}; mov.b32 less, {subtracted & 0xFFFFFFFF:#x}; "
        f"lop3.b32 codes, $1, 0x000F000F, {magic:#x}, 0xEA; "  # (a & b) | c
        f"fma.rn.{kind} $0, codes, one, less; }}"  # bfloat16 has no subtraction before 9.0
    )


def byte_assembly(shift: int, device: torch.device) -> str | None:
    """What `bytes_of` does with four bytes, five instructions for two; None where Triton interprets.

    Two nibbles are multiplied at a time, in halves of a register; the upper byte of each half is the result. A half
    below zero borrows one from the half above: that is odd, so its upper byte stays.
    """
    return _byte_assembly(shift) if compiles(device) else None


@cache
def _byte_assembly(shift: int) -> str:
    less, half = -8 * 0x10001, 0x00810081  # (code - 8) * step + 129
    return (
        "{ .reg .b32 even, odd, more; "
        f"shr.u32 even, $1, {shift}; shr.u32 odd, $1, {shift + 8}; "
        "and.b32 even, even, 0x000F000F; and.b32 odd, odd, 0x000F000F; "
        f"mad.lo.s32 more, $2, {less}, {half}; mad.lo.s32 even, even, $2, more; "
        f"mad.lo.s32 more, $3, {less}, {half}; mad.lo.s32 odd, odd, $3, more; "
        "prmt.b32 $0, even, odd, 0x7351; }"
    )


def scale_k(group: int) -> int:
    """Neighbouring inputs of a block that share a scale for this group size."""
    return next(inputs for inputs in (BLOCK_K, BLOCK_K // 2, SHIFT_K) if group % inputs == 0)


@jit
def weights_of(
    words: tl.tensor,
    shift: tl.tensor,
    TYPE: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
) -> tl.tensor:
    """words (N, 16) -> levels -8..7 of 32 neighbouring inputs (N, 32), exactly, in the 16-bit TYPE."""
    if ASSEMBLY is not None:
        pairs = tl.inline_asm_elementwise(ASSEMBLY, "=r,r", [words >> shift], dtype=tl.int32, is_pure=True, pack=1)
    else:
        pairs = ((words >> shift) & 0x000F000F) | MAGIC
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    levels = halves.reshape(words.shape[0], 2 * words.shape[1]).to(TYPE, bitcast=True)
    return levels if ASSEMBLY is not None else levels - OFFSET


@jit
def block_of_weights(
    words: tl.tensor,
    scales: tl.tensor,
    block: tl.tensor,
    output: tl.tensor,
    n: tl.tensor,
    GROUP: tl.constexpr,
    SCALE_K: tl.constexpr,
    TYPE: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
) -> tl.tensor:
    """words (N, 16) of block `block` -> its 128 inputs' weights (N, 128) in input order, scaled and rounded to TYPE."""
    a = weights_of(words, 0, TYPE, MAGIC, OFFSET, ASSEMBLY)
    b = weights_of(words, 4, TYPE, MAGIC, OFFSET, ASSEMBLY)
    c = weights_of(words, 8, TYPE, MAGIC, OFFSET, ASSEMBLY)
    d = weights_of(words, 12, TYPE, MAGIC, OFFSET, ASSEMBLY)
    if SCALE_K < 128:
        a *= scale_of(scales, block * 128, output, n, GROUP, TYPE)
        b *= scale_of(scales, block * 128 + 32, output, n, GROUP, TYPE)
        c *= scale_of(scales, block * 128 + 64, output, n, GROUP, TYPE)
        d *= scale_of(scales, block * 128 + 96, output, n, GROUP, TYPE)
    # (N, 32, j // 2, j % 2) of shift j
    quarters = tl.join(tl.join(a, c), tl.join(b, d))
    weights = tl.reshape(tl.permute(quarters, (0, 2, 3, 1)), (words.shape[0], 128))
    if SCALE_K == 128:
        weights *= scale_of(scales, block * 128, output, n, GROUP, TYPE)
    return weights


@jit
def scale_of(
    scales: tl.tensor, place: tl.tensor, output: tl.tensor, n: tl.tensor, GROUP: tl.constexpr, TYPE: tl.constexpr
) -> tl.tensor:
    """(N, 1): the scale of input `place` of each output."""
    return tl.load(scales + place // GROUP * n + output, mask=output < n, other=0.0).to(TYPE)[:, None]


@jit
def bytes_of(
    codes: tl.tensor, even: tl.tensor, odd: tl.tensor, SHIFT: tl.constexpr, ASSEMBLY: tl.constexpr
) -> tl.tensor:
    """codes (N, 64) int8 -> the nibbles at SHIFT of each byte, less 8, times their steps, in int8 levels (N, 64).

    `even` and `odd`: steps (N, 1) of such bytes. Rounded, halves up. ASSEMBLY: `byte_assembly` of SHIFT.
    """
    step = tl.where((tl.arange(0, codes.shape[1]) % 2 == 0)[None, :], even, odd)
    if ASSEMBLY is not None:
        return tl.inline_asm_elementwise(ASSEMBLY, "=r,r,r,r,r,r", [codes, step], dtype=tl.int8, is_pure=True, pack=4)
    return (((codes.to(tl.int32) >> SHIFT & 15) - 8) * step + 128 >> 8).to(tl.int8)


@jit
def steps_of(scale: tl.tensor, levels: tl.tensor) -> tl.tensor:
    """scale, levels (N,) -> (N, 1) int32: int8 levels of one int4 level of each output, in halves of a step, even."""
    steps = tl.minimum(scale.to(tl.float32) * levels, 2048.0)
    # A sum with 1.5 * 2**23 is rounded to an integer, in its last bits; the product before it is exact.
    return (((steps + 12582912.0).to(tl.int32, bitcast=True) & 0xFFF) << 1)[:, None]
