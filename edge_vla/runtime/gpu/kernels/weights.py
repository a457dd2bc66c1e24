"""Weights as the kernels read them, made from the artifact's at load and exactly restorable; rows quantised by token.

int4: blocks of 128 inputs, in each block one line of 16 words of 32 bits an output. Bits 4j..4j+3 of the low and of the
high half of word h hold inputs 32j + 2h and 32j + 2h + 1 of the block, so that one shift and one mask turn a word into
two neighbouring inputs of a 16-bit type, in place. Lines of one block lie together: what a program reads at once is
contiguous. Knows nothing of launches.
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

SHIFTS: Final = 4  # nibbles in half a word
WORDS: Final = 16  # in a line
REACH: Final = 2 * WORDS  # neighbouring inputs that one shift of a line yields
BLOCK: Final = SHIFTS * REACH  # inputs in a line
ZERO: Final = 8  # the code that stands for no weight


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """`shape` is (N, K) of the real weight; inputs are filled up to whole blocks with zero weights."""

    codes: Tensor  # (blocks, N, WORDS) int32
    scales: Tensor  # (groups, N) float16; groups cover all blocks
    shape: tuple[int, int]
    group: int

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight of one scale an output, for 16-bit rows and for int8 rows alike."""

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
    """Activations rounded to int8, one scale a row.

    `for_int4`: the codes stand in the order of an int4 weight's bytes, filled up with zeros to whole blocks.
    """

    codes: Tensor  # (M, K) int8
    scales: Tensor  # (M,) float32
    for_int4: bool = False


def empty_rows(rows: int, width: int, device: torch.device, *, for_int4: bool) -> Int8Rows:
    """Room for a kernel's int8 rows."""
    stride = -(-width // BLOCK) * BLOCK if for_int4 else width
    codes = torch.empty(rows, stride, dtype=torch.int8, device=device)
    return Int8Rows(codes, torch.empty(rows, dtype=torch.float32, device=device), for_int4)


def repack_int4(packed: PackedWeight) -> Int4Weight:
    """BackendError for a group that is not a multiple of 32, which no kernel here reads."""
    if packed.scheme is not Scheme.INT4 or packed.scales is None or packed.group is None:
        raise BackendError(f"{packed.scheme.value} has no nibbles: int3 and int2 go through quant.as_int4")
    if packed.group % REACH:
        raise BackendError(f"GPU kernels read groups of {REACH} and multiples, not {packed.group}: export again")
    outer, inner = packed.shape
    blocks = -(-inner // BLOCK)
    codes = F.pad(unpack_nibbles(packed.codes), (0, blocks * BLOCK - inner), value=ZERO)
    nibbles = codes.view(outer, blocks, SHIFTS, REACH).permute(2, 1, 0, 3).to(torch.int32)
    halves = nibbles[0] | nibbles[1] << 4 | nibbles[2] << 8 | nibbles[3] << 12
    words = halves.to(torch.int16).contiguous().view(torch.int32)  # little-endian: the even input is the low half
    groups = -(-blocks * BLOCK // packed.group)
    scales = F.pad(packed.scales, (0, groups - packed.scales.shape[1]), value=1.0)
    return Int4Weight(words, scales.T.contiguous(), packed.shape, packed.group)


def restore_int4(weight: Int4Weight) -> PackedWeight:
    """Exact inverse of `repack_int4`."""
    outer, inner = weight.shape
    halves = weight.codes.view(torch.int16)
    nibbles = torch.stack([halves >> 4 * shift & 0xF for shift in range(SHIFTS)])  # (SHIFTS, blocks, N, REACH)
    codes = nibbles.permute(2, 1, 0, 3).reshape(outer, -1)[:, :inner].to(torch.uint8)
    scales = weight.scales.T[:, : inner // weight.group].contiguous()
    return PackedWeight(Scheme.INT4, weight.shape, weight.group, pack_nibbles(codes), scales)


def repack_int8(packed: PackedWeight) -> Int8Weight:
    """A copy, because codes mapped from a file may start at any address. BackendError for another format."""
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


def quantised(x: Tensor, *, for_int4: bool = False) -> Int8Rows:
    """Rows (M, K) of a float type to the nearest of 255 codes; a row that is not finite gets scale infinity."""
    wide = x.float()
    largest = torch.where(wide.isnan(), torch.inf, wide.abs()).amax(dim=1)
    whole = torch.full_like(largest, INT8_MAX)  # a tensor: by a number torch multiplies, which rounds otherwise
    inverse = torch.where(largest > 0, whole / largest, 0.0)
    codes = torch.round(wide * inverse[:, None]).nan_to_num_(0.0).clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return Int8Rows(in_byte_order(codes) if for_int4 else codes, largest / whole, for_int4)


def in_byte_order(codes: Tensor) -> Tensor:
    """(M, K) -> (M, blocks x BLOCK): input 32j + 2h + half of a block goes to place 64 (j % 2) + 4h + 2 half + j // 2.

    These are the bytes of `words >> 4 (j % 2) & 0x0F0F0F0F`, lowest first.
    """
    rows, inner = codes.shape
    blocks = -(-inner // BLOCK)
    filled = F.pad(codes, (0, blocks * BLOCK - inner)).view(rows, blocks, 2, 2, WORDS, 2)  # j // 2, j % 2, h, half
    return filled.permute(0, 1, 3, 4, 5, 2).reshape(rows, -1)


def in_input_order(codes: Tensor, inner: int) -> Tensor:
    """Inverse of `in_byte_order`."""
    rows = codes.shape[0]
    places = codes.view(rows, -1, 2, WORDS, 2, 2)  # j % 2, h, half, j // 2
    return places.permute(0, 1, 5, 2, 3, 4).reshape(rows, -1)[:, :inner]
