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
def bytes_of(words: tl.tensor) -> tl.tensor:
    """words (N, 16) -> levels -8..7 of 128 inputs (N, 128) int8, in the order of `weights.in_byte_order`."""
    low, high = half_of_bytes(words), half_of_bytes(words >> 4)
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (words.shape[0], 8 * words.shape[1]))


@jit
def half_of_bytes(words: tl.tensor) -> tl.tensor:
    """The lower nibble of every byte of words (N, 16) -> levels (N, 64) int8, lowest byte first."""
    # In every byte: 128 + code - 8, whose highest bit is then flipped; no byte borrows from its neighbour.
    codes = (((words & 0x0F0F0F0F) | -0x7F7F7F80) - 0x08080808) ^ -0x7F7F7F80
    even = tl.join(codes.to(tl.int8), (codes >> 16).to(tl.int8))
    odd = tl.join((codes >> 8).to(tl.int8), (codes >> 24).to(tl.int8))
    return tl.join(even, odd).reshape(words.shape[0], 4 * words.shape[1])
