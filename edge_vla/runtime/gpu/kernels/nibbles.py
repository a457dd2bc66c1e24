"""Words of nibbles to the operands of tensor cores, two weights per instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.weights import BLOCK_K, SHIFT_K

# A power of two whose last mantissa bit is worth one: or-ing a nibble into it adds the nibble, without a conversion.
# Both halves of a word get it; the offset then subtracts that power and the code of a zero weight.
MAGIC: Final[Mapping[torch.dtype, tuple[int, float]]] = {
    torch.bfloat16: (0x43004300, 128.0 + 8.0),
    torch.float16: (0x64006400, 1024.0 + 8.0),
}


def scale_k(group: int) -> int:
    """Neighbouring inputs of a block that share a scale for this group size."""
    return next(inputs for inputs in (BLOCK_K, BLOCK_K // 2, SHIFT_K) if group % inputs == 0)


@jit
def weights_of(
    words: tl.tensor, shift: tl.tensor, TYPE: tl.constexpr, MAGIC: tl.constexpr, OFFSET: tl.constexpr
) -> tl.tensor:
    """words (N, 16) -> levels -8..7 of 32 neighbouring inputs (N, 32), exactly, in the 16-bit TYPE."""
    codes = ((words >> shift) & 0x000F000F) | MAGIC
    halves = tl.join(codes.to(tl.int16), (codes >> 16).to(tl.int16))
    return halves.reshape(words.shape[0], 2 * words.shape[1]).to(TYPE, bitcast=True) - OFFSET


@jit
def bytes_of(words: tl.tensor, shift: tl.tensor, KEEP: tl.constexpr) -> tl.tensor:
    """words (N, 16) -> levels -8..7 of 64 inputs (N, 64) int8, in the order of `weights.in_byte_order`.

    Bytes that KEEP masks out become level 0.
    """
    # In every byte: 128 + code - 8, whose highest bit is then flipped; no byte borrows from its neighbour.
    raised = (((words >> shift) & 0x0F0F0F0F) | -0x7F7F7F80) - 0x08080808
    codes = (raised ^ -0x7F7F7F80) & KEEP
    even = tl.join(codes.to(tl.int8), (codes >> 16).to(tl.int8))
    odd = tl.join((codes >> 8).to(tl.int8), (codes >> 24).to(tl.int8))
    return tl.join(even, odd).reshape(words.shape[0], 4 * words.shape[1])
