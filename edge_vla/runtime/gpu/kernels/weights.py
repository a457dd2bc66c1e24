"""Weights as the kernels read them, made from the artifact's at load and exactly restorable; rows quantised by token.

int4: blocks of 128 inputs, in each block one line of 32 words an output. Bits 4j..4j+3 of word p hold input 32j + p, so
that a shift turns a tile of words into a tile of 32 neighbouring inputs: no value changes its thread. Lines of one
block lie together: what a program reads at once is contiguous. Knows nothing of launches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.quant import PackedWeight, Scheme, pack_nibbles, unpack_nibbles
from edge_vla.quant.formats import INT8_MAX

NIBBLES: Final = 4  # in a word of 16 bits
WORDS: Final = 32  # in a line: also the inputs that one shift of it yields
BLOCK: Final = NIBBLES * WORDS  # inputs in a line
ZERO: Final = 8  # the code that stands for no weight


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """`shape` is (N, K) of the real weight; inputs are filled up to whole blocks with zero weights."""

    codes: Tensor  # (blocks, N, WORDS) int16
    scales: Tensor  # (groups, N) float16; groups cover all blocks
    shape: tuple[int, int]
    group: int

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Int8Weight:
    codes: Tensor  # (N, K) int8, from an aligned address
    scales: Tensor  # (N,) float16

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """Activations rounded to int8, one scale a row."""

    codes: Tensor  # (M, K) int8
    scales: Tensor  # (M,) float32


def repack_int4(packed: PackedWeight) -> Int4Weight:
    """BackendError for a group that is not a multiple of 32, which no kernel here reads."""
    if packed.scheme is not Scheme.INT4 or packed.scales is None or packed.group is None:
        raise BackendError(f"{packed.scheme.value} has no nibbles: int3 and int2 go through quant.as_int4")
    if packed.group % WORDS:
        raise BackendError(f"GPU kernels read groups of {WORDS} and multiples, not {packed.group}: export again")
    outer, inner = packed.shape
    blocks = -(-inner // BLOCK)
    codes = F.pad(unpack_nibbles(packed.codes), (0, blocks * BLOCK - inner), value=ZERO)
    nibbles = codes.view(outer, blocks, NIBBLES, WORDS).permute(2, 1, 0, 3).to(torch.int32)
    words = nibbles[0] | nibbles[1] << 4 | nibbles[2] << 8 | nibbles[3] << 12
    groups = -(-blocks * BLOCK // packed.group)
    scales = F.pad(packed.scales, (0, groups - packed.scales.shape[1]), value=1.0)
    return Int4Weight(words.to(torch.int16).contiguous(), scales.T.contiguous(), packed.shape, packed.group)


def restore_int4(weight: Int4Weight) -> PackedWeight:
    """Exact inverse of `repack_int4`."""
    outer, inner = weight.shape
    planes = torch.stack([(weight.codes >> 4 * j) & 0xF for j in range(NIBBLES)])  # (4, blocks, N, WORDS)
    codes = planes.permute(2, 1, 0, 3).reshape(outer, -1)[:, :inner].to(torch.uint8)
    scales = weight.scales.T[:, : inner // weight.group].contiguous()
    return PackedWeight(Scheme.INT4, weight.shape, weight.group, pack_nibbles(codes), scales)


def repack_int8(packed: PackedWeight) -> Int8Weight:
    if packed.scheme is not Scheme.INT8 or packed.scales is None:
        raise BackendError(f"{packed.scheme.value} is not int8")
    return Int8Weight(packed.codes.clone(memory_format=torch.contiguous_format), packed.scales.clone())


def restore_int8(weight: Int8Weight) -> PackedWeight:
    """Exact inverse of `repack_int8`."""
    return PackedWeight(Scheme.INT8, weight.shape, None, weight.codes, weight.scales)


def summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Partial sums (S, M, N) float32 added in order and rounded once -> (M, N); a product (M, N) as it is."""
    if parts.dim() == 2:
        return parts.to(dtype)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(dtype)


def quantised(x: Tensor) -> Int8Rows:
    """Rows (M, K) of a float type, rounded to the nearest of 255 codes; a row that is not finite gets scale infinity."""
    wide = x.float()
    largest = torch.where(wide.isnan(), torch.inf, wide.abs()).amax(dim=1)
    inverse = torch.where(largest > 0, INT8_MAX / largest, 0.0)
    codes = torch.round(wide * inverse[:, None]).nan_to_num_(0.0, INT8_MAX, -INT8_MAX)
    return Int8Rows(codes.clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), largest / INT8_MAX)
