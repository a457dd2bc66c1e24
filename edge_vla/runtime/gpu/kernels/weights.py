"""Weights and rows as the kernels read them: weights repacked at load and exactly restorable, rows quantised per token.

int4: blocks of 128 inputs, in each block one line of 16 words of 32 bits per output. Bits 4j..4j+3 of the low and of
the high half of word h hold inputs 32j + 2h and 32j + 2h + 1 of the block, so that one shift and one mask turn a word
into two neighbouring inputs of a 16-bit type, in place. The lines of a block are contiguous, as a program reads them.
Knows nothing of launches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.quant import INT8_MAX, PackedWeight, Scheme, pack_nibbles, unpack_nibbles

SHIFTS: Final = 4  # nibbles in half a word
WORDS: Final = 16  # in a line
SHIFT_K: Final = 2 * WORDS  # neighbouring inputs that one shift of a line yields
BLOCK_K: Final = SHIFTS * SHIFT_K  # inputs in a line
ZERO_CODE: Final = 8  # the int4 code of a zero weight
STEPS: Final = 128  # of an int8 level, in which an int4 level is counted
MOST_STEPS: Final = 16 * STEPS  # of an int4 level: -8 of them are the lowest int8 level

RowFormat = Literal["16 bits", "int8", "int8 for int4"]  # the last: int8 in the byte order of an int4 weight
PLAIN: Final[RowFormat] = "16 bits"


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """`shape` is (N, K) of the real weight; inputs are padded to whole blocks with zero weights."""

    codes: Tensor  # (blocks, N, WORDS) int32
    scales: Tensor  # (groups, N) float16; groups cover all blocks
    levels: Tensor  # (N,) float32: STEPS int8 levels of a unit of weight, see `as_int8`
    shape: tuple[int, int]
    group: int

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.levels.nbytes


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight with one scale per output, for 16-bit rows and for int8 rows alike."""

    codes: Tensor  # (N, K) int8, at an aligned address
    scales: Tensor  # (N,) float16; float32 in `as_int8`

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """Activations rounded to int8, one scale per row.

    `for_int4`: codes are in the byte order of an int4 weight, padded with zeros to whole blocks.
    """

    codes: Tensor  # (M, K) int8
    scales: Tensor  # (M,) float32
    for_int4: bool = False


Weight: TypeAlias = "Int4Weight | Int8Weight | Tensor"  # (N, K); a tensor is one of 16 bits
Rows: TypeAlias = "Tensor | Int8Rows"  # what a product reads, in the RowFormat that it asks for


def empty_rows(m: int, k: int, dtype: torch.dtype, device: torch.device, row_format: RowFormat) -> Rows:
    """Uninitialised rows (M, K) for a kernel to write; `dtype` is that of 16-bit rows."""
    if row_format == PLAIN:
        return torch.empty(m, k, dtype=dtype, device=device)
    for_int4 = row_format == "int8 for int4"
    stride = -(-k // BLOCK_K) * BLOCK_K if for_int4 else k
    codes = torch.empty(m, stride, dtype=torch.int8, device=device)
    return Int8Rows(codes, torch.empty(m, dtype=torch.float32, device=device), for_int4)


def in_format(x: Tensor, row_format: RowFormat) -> Rows:
    """16-bit rows (M, K) in `row_format`."""
    return x if row_format == PLAIN else quantised(x, for_int4=row_format == "int8 for int4")


def repack_int4(packed: PackedWeight) -> Int4Weight:
    """BackendError for a group that is not a multiple of 32: no kernel here reads it."""
    if packed.scheme is not Scheme.INT4 or packed.scales is None or packed.group is None:
        raise BackendError(f"expected an int4 weight, got {packed.scheme.value}; widen int3 and int2 with as_int4")
    if packed.group % SHIFT_K:
        raise BackendError(
            f"int4 group size is {packed.group}; the GPU kernels need a multiple of {SHIFT_K}: "
            "export again with another --group"
        )
    n, k = packed.shape
    blocks = -(-k // BLOCK_K)
    codes = F.pad(unpack_nibbles(packed.codes), (0, blocks * BLOCK_K - k), value=ZERO_CODE)
    nibbles = codes.view(n, blocks, SHIFTS, SHIFT_K).permute(2, 1, 0, 3).to(torch.int32)
    halves = nibbles[0] | nibbles[1] << 4 | nibbles[2] << 8 | nibbles[3] << 12
    words = halves.to(torch.int16).contiguous().view(torch.int32)  # little-endian: the even input is the low half
    groups = -(-blocks * BLOCK_K // packed.group)
    scales = F.pad(packed.scales, (0, groups - packed.scales.shape[1]), value=1.0)
    levels = _levels(codes[:, :k].reshape(n, -1, packed.group), packed.scales)
    return Int4Weight(words, scales.T.contiguous(), levels, packed.shape, packed.group)


def _levels(codes: Tensor, scales: Tensor) -> Tensor:
    """codes (N, groups, group), scales (N, groups) -> (N,) float32, by which the widest group just fits int8.

    Cut to as many bits as float16 has, so that float32 holds its product with any scale.
    """
    used = torch.where((codes != ZERO_CODE).any(dim=2), scales.float(), 0.0)
    widest = used.amax(dim=1)
    levels = torch.where(widest > 0, MOST_STEPS / widest, 1.0)
    return (levels.view(torch.int32) & ~0x1FFF).view(torch.float32)


def as_int8(weight: Int4Weight) -> Int8Weight:
    """An int4 weight as an int8 GEMM multiplies by it.

    One scale an output, so that nothing happens to the integer sums before their end. A weight moves by at most half
    of a 1/127th, or so, of the largest that its output's scales allow; int4's own steps are some sixteen times wider.
    """
    packed = restore_int4(weight)
    assert packed.scales is not None, "int4 has scales"
    levels = unpack_nibbles(packed.codes).to(torch.int32).view(weight.shape[0], -1, weight.group) - ZERO_CODE
    exact = packed.scales.double() * weight.levels.double()[:, None]
    steps = exact.round().clamp(max=MOST_STEPS).to(torch.int32)
    codes = (levels * steps[:, :, None] + STEPS // 2).div(STEPS, rounding_mode="floor")
    return Int8Weight(codes.flatten(1).to(torch.int8), STEPS / weight.levels)


def restore_int4(weight: Int4Weight) -> PackedWeight:
    """Exact inverse of `repack_int4`."""
    n, k = weight.shape
    halves = weight.codes.view(torch.int16)
    nibbles = torch.stack([halves >> 4 * shift & 0xF for shift in range(SHIFTS)])  # (SHIFTS, blocks, N, SHIFT_K)
    codes = nibbles.permute(2, 1, 0, 3).reshape(n, -1)[:, :k].to(torch.uint8)
    scales = weight.scales.T[:, : k // weight.group].contiguous()
    return PackedWeight(Scheme.INT4, weight.shape, weight.group, pack_nibbles(codes), scales)


def repack_int8(packed: PackedWeight) -> Int8Weight:
    """A copy, because codes mapped from a file may start at any address. BackendError for another format."""
    if packed.scheme is not Scheme.INT8 or packed.scales is None:
        raise BackendError(f"expected an int8 weight, got {packed.scheme.value}")
    return Int8Weight(packed.codes.clone(memory_format=torch.contiguous_format), packed.scales.clone())


def restore_int8(weight: Int8Weight) -> PackedWeight:
    """Exact inverse of `repack_int8`."""
    return PackedWeight(Scheme.INT8, weight.shape, None, weight.codes, weight.scales)


def summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Partial sums (S, M, N) float32, added in order and rounded once to (M, N); a product (M, N) as it is."""
    if parts.dim() == 2:
        return parts.to(dtype)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(dtype)


def sums_of(splits: int, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised, for a product to write: (M, N) in `dtype`, or with several splits of K (S, M, N) float32."""
    if splits == 1:
        return torch.empty(m, n, dtype=dtype, device=device)
    return torch.empty(splits, m, n, dtype=torch.float32, device=device)


def quantised(x: Tensor, *, for_int4: bool = False) -> Int8Rows:
    """Rows (M, K) of a float type, rounded to 255 levels per row; a row that is not finite gets scale infinity."""
    full = x.float()
    largest = torch.where(full.isnan(), torch.inf, full.abs()).amax(dim=1)
    levels = torch.full_like(largest, INT8_MAX)  # a tensor: torch multiplies by a number's inverse, which rounds twice
    inverse = torch.where(largest > 0, levels / largest, 0.0)
    codes = torch.round(full * inverse[:, None]).nan_to_num_(0.0).clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return Int8Rows(in_byte_order(codes) if for_int4 else codes, largest / levels, for_int4)


def in_byte_order(codes: Tensor) -> Tensor:
    """(M, K) -> (M, blocks x BLOCK_K): input 32j + 2h + i of a block goes to place 64 (j % 2) + 4h + 2i + j // 2.

    These are the bytes of `words >> 4 (j % 2) & 0x0F0F0F0F`, lowest first.
    """
    m, k = codes.shape
    blocks = -(-k // BLOCK_K)
    padded = F.pad(codes, (0, blocks * BLOCK_K - k)).view(m, blocks, 2, 2, WORDS, 2)  # j // 2, j % 2, h, i
    return padded.permute(0, 1, 3, 4, 5, 2).reshape(m, -1)


def in_input_order(codes: Tensor, k: int) -> Tensor:
    """Inverse of `in_byte_order`."""
    m = codes.shape[0]
    places = codes.view(m, -1, 2, WORDS, 2, 2)  # j % 2, h, i, j // 2
    return places.permute(0, 1, 5, 2, 3, 4).reshape(m, -1)[:, :k]
